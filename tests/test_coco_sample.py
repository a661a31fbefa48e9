"""Six photographs of COCO, annotations with gaps in the category ids and a crowd region among them:
register, train, evaluate, predict."""
import json
import pytest
from conftest import ROOT, SHORT
from mimdet.training.commands import mimdet_evaluate, mimdet_predict, mimdet_train
from mimdet.data.datasets import check_dataset, register

SAMPLE = ROOT.parent/'shared'/'coco_sample'
pytestmark = pytest.mark.skipif(not SAMPLE.exists(), reason='the photographs are not part of the project')
SPEC = f'{SAMPLE}/instances.json:{SAMPLE}/val2017'

def test_it_is_coco():
    found = check_dataset(SAMPLE/'instances.json', SAMPLE/'val2017', decode=True)
    assert (found['images'], found['annotations'], len(found['categories']), found['crowd']) == (6, 36, 80, 1)
    info = register('coco sample', SAMPLE/'instances.json', images=SAMPLE/'val2017')
    assert info.category_ids[-1] == 90 and len(info.category_ids) == 80

def test_train_evaluate_predict(call, tmp_path):
    small = ['data.short_edges=[128]', 'data.test_short_edge=128', 'data.max_size=256', 'schedule.iterations=3']
    done = call(mimdet_train, *SHORT, *small, '--dataset', SPEC, '--output', tmp_path/'run')
    assert done.returncode == 0, done.stderr
    done = call(mimdet_evaluate, tmp_path/'run', '--dataset', SPEC, '--ratio', '0.5', '--output', tmp_path/'out')
    assert done.returncode == 0 and '6 images' in done.stdout
    row, = json.loads((tmp_path/'out'/'metrics.json').read_text())
    assert 0 <= row['bbox']['AP'] <= 100 and 0 <= row['segm']['AP'] <= 100
    done = call(mimdet_predict, tmp_path/'run', SAMPLE/'val2017', '--output', tmp_path/'drawn', '--threshold', '0.01')
    assert done.returncode == 0 and len(list((tmp_path/'drawn').glob('*.png'))) == 6

def test_the_papers_augmentation_runs(call, tmp_path):
    "The recipe's own image sizes and crops, with the tiny network."
    sizes = ['data.crop=true', 'data.short_edges=[480,512]', 'data.max_size=800']
    done = call(mimdet_train, *SHORT, *sizes, 'schedule.iterations=2', '--dataset', SPEC, '--output', tmp_path/'run')
    assert done.returncode == 0, done.stderr
