"""Files of weights as people have them: under the names that wrappers give, with harmless things beside them,
and what is refused."""
import argparse, collections, datetime, pathlib, pickle
import numpy as np
import pytest, torch
from mimdet.base.core import MimdetError
from mimdet.training.pretrain import autoencoder
from mimdet.weights.load import load_mae
from mimdet.weights.files import read_weights
from mimdet.recipes import config
from mimdet.detector import build
from mimdet.vit import mae_names

@pytest.fixture(scope='module')
def mae(): return mae_names(autoencoder('tiny')[0].state_dict())

def renamed(prefix, weights): return {f'{prefix}{k}': v for k, v in weights.items()}

WRAPPED = {
    'DataParallel': lambda w: renamed('module.', w),
    'compiled': lambda w: {'model': renamed('_orig_mod.', w)},
    'Lightning': lambda w: dict(state_dict=renamed('model.', w), epoch=3, callbacks={}),
    'compiled DataParallel': lambda w: renamed('module._orig_mod.', w),
    'moving average': lambda w: dict(model_ema=renamed('module.', w)),
    'AveragedModel': lambda w: dict(model_ema={'n_averaged': torch.tensor(3)} | renamed('module.', w)),
    'ordered': lambda w: dict(model=collections.OrderedDict(w)),
    'plain': lambda w: w,
}

@pytest.mark.parametrize('wrapper', WRAPPED)
def test_wrapped_names_are_known(mae, tmp_path, wrapper):
    torch.save(WRAPPED[wrapper](mae), tmp_path/'mae.pth')
    found = read_weights(tmp_path/'mae.pth')
    assert found.keys() == mae.keys() and all(torch.equal(found[k], mae[k]) for k in mae)
    report = load_mae(build(config('mimdet_tiny_v1_sr0.5_3x')).backbone.bottom_up, tmp_path/'mae.pth')
    assert ('stripped' in str(report)) == (wrapper not in ('plain', 'ordered')) and not report.trouble

BESIDE = {
    'numpy scalar': np.float64(3.5),
    'numpy whole number': np.int64(3),
    'numpy array': np.arange(3.),
    'numpy flag': np.bool_(True),
    'path': pathlib.Path('a/b'),
    'namespace': argparse.Namespace(lr=1.),
    'date': datetime.datetime(2026, 1, 2),
    'span': datetime.timedelta(3),
    'counter': collections.Counter(a=1),
    'ordered': collections.OrderedDict(a=1),
    'set': {1, 2},
    'slice of plain data': [None, True, 'x', 1+2j],
}

@pytest.mark.parametrize('what', BESIDE)
def test_harmless_things_beside_the_weights(mae, tmp_path, what):
    torch.save(dict(model=mae, args=BESIDE[what]), tmp_path/'mae.pth')
    assert read_weights(tmp_path/'mae.pth').keys() == mae.keys()

class Stranger:
    def __reduce__(self): return pathlib.Path.touch, (pathlib.Path('ran'),)

def test_what_could_run_code_is_refused_and_does_not(mae, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(model=mae, extra=Stranger()), tmp_path/'mae.pth')
    with pytest.raises(MimdetError, match='which is not plain data and could run code'):
        read_weights(tmp_path/'mae.pth')
    assert not (tmp_path/'ran').exists()

def test_the_model_zoo_is_told_what_it_is(tmp_path):
    content = pickle.dumps(dict(model={'conv1.weight': np.zeros(3)}, __author__='Caffe2'), protocol=2)
    for name in ('R-50.pkl', 'renamed.pth'):
        (tmp_path/name).write_bytes(content)
        with pytest.raises(MimdetError, match="a plain pickle, as in detectron2's model zoo"):
            read_weights(tmp_path/name)
