"""Every option changes something: an option that is silently ignored costs its user a training."""
import json
from pathlib import Path
import pytest, torch
from conftest import spec
from omegaconf import OmegaConf
from detectron2.utils.events import EventStorage
from mimdet.measure import evaluate
from mimdet.training import engine, train
from mimdet.data.augment import TrainMapper, train_augmentation_of
from mimdet.data.datasets import register
from mimdet.detector import build, evaluating
from mimdet.recipes import RECIPES, config, leaves, override, recipe

def base(emoji, *changes, **fields):
    "The tiny recipe for three categories and trainings of a moment."
    return override(config('mimdet_tiny_v1_sr0.5_3x', classes=3, **fields), [
        f'data.train={spec(emoji["train"])}', f'data.val={spec(emoji["val"])}', 'data.workers=0', 'data.batch=2',
        'schedule.iterations=2', 'schedule.warmup=0', 'train.eval_period=0', 'train.log_period=1',
        'model.amp=fp32', 'model.roi_heads.box_head.conv_dims=[48]', *changes])

def keys(**fields):
    names = leaves(OmegaConf.to_container(config('mimdet_tiny_v1_sr0.5_3x', **fields)))
    return [k for k in names if not k.endswith('_target_') and k != 'train.recipe'] # the last is a label

KEYS = keys()
OTHER = { # where doubling a number, or turning a switch, is not the thing to try
    'model.backbone.bottom_up.heads': 4,
    'model.backbone.bottom_up.drop_path': 0.5,
    'model.backbone.bottom_up.fill': 'stem',
    'model.backbone.bottom_up.norm_eps': 0.1,
    'model.backbone.norm': 'FrozenBN',
    'model.backbone.in_features': ['c2', 'c3'],
    'model.proposal_generator.in_features': ['p2', 'p3'],
    'model.proposal_generator.anchor_generator.offset': 0.5,
    'model.proposal_generator.head.conv_dims': [-1, -1],
    'model.proposal_generator.anchor_matcher.labels': [0, 0, 1],
    'model.proposal_generator.anchor_matcher.thresholds': [0.1, 0.2],
    'model.proposal_generator.batch_size_per_image': 16,
    'model.proposal_generator.positive_fraction': 0.01,
    'model.proposal_generator.pre_nms_topk': [20, 20],
    'model.proposal_generator.post_nms_topk': [8, 8],
    'model.proposal_generator.nms_thresh': 0.1,
    'model.roi_heads.positive_fraction': 0.05,
    'model.roi_heads.proposal_matcher.thresholds': [0.9],
    'model.roi_heads.proposal_matcher.labels': [1, 0],
    'model.roi_heads.box_in_features': ['p2', 'p3'],
    'model.roi_heads.mask_in_features': ['p2', 'p3'],
    'model.roi_heads.box_pooler.pooler_type': 'ROIAlign',
    'model.roi_heads.mask_pooler.pooler_type': 'ROIAlign',
    'model.roi_heads.box_pooler.canonical_box_size': 20,
    'model.roi_heads.mask_pooler.canonical_box_size': 20,
    'model.roi_heads.box_head.conv_norm': 'FrozenBN',
    'model.roi_heads.mask_head.conv_norm': 'FrozenBN',
    'model.roi_heads.box_head.conv_dims': [48, 48],
    'model.roi_heads.box_head.fc_dims': [256, 256],
    'model.roi_heads.mask_head.conv_dims': [48],
    'model.roi_heads.box_predictor.test_score_thresh': 0.9,
    'model.strategy': 'grid',
    'model.sample_seed': 1,
    'model.amp': 'bf16',
    'optimizer.groups': 'benchmarking',
    'optimizer.decoder_rate': 'rest',
    'mae_checkpoint.stem': 'random',
    'optimizer.betas': [0.5, 0.5],
    'optimizer.clip': 1e-3,
    'schedule.kind': 'step',
    'schedule.milestones': [1],
    'schedule.warmup': 1,
    'schedule.warmup_factor': 0.5,
    'data.short_edges': [64],
    'data.test_short_edge': 64,
    'data.max_size': 100,
    'data.square': 64,
    'data.jitter': [0.5, 0.6],
    'data.workers': 1,
    'train.seed': 1,
    'train.accumulate': 2,
    'train.ema': 0.5,
    'train.eval_period': 1,
    'train.checkpoint_period': 1,
    'train.log_period': 2,
    'train.device': 'abacus',
    'train.compile': 'abacus',
    'mae_checkpoint.parts': 'encoder',
}
FIRST = { # what has to be set for an option to matter
    'schedule.milestones': ['schedule.kind=step'],
    'data.test_short_edge': ['model.roi_heads.box_predictor.test_score_thresh=0.001'],
    'schedule.warmup_factor': ['schedule.warmup=2'],
    'data.jitter': ['data.square=64', 'model.padded=true', 'data.jitter=[1,1]'],
}

def doubled(values):
    return [2*x if isinstance(x, (int, float)) else [2*y for y in x] for x in values]

LISTS = {list: doubled, bool: lambda v: not v, int: lambda v: 2*v or 1, float: lambda v: v/2 or 0.5}

def alternative(cfg, key):
    value = OmegaConf.to_container(cfg.copy())
    for part in key.split('.'): value = value[part]
    return OTHER[key] if key in OTHER else LISTS[type(value)](value)

def changed(emoji, key, **fields):
    "Two configurations that differ in `key` alone."
    before = base(emoji, *FIRST.get(key, []), **fields)
    after = before.copy()
    OmegaConf.update(after, key, alternative(before, key))
    return before, after

@pytest.fixture(scope='module')
def usual():
    "What came out of a configuration as it is, so that it has to be run once."
    known = {}
    def once(key, function, *arguments, **fields):
        first = *FIRST.get(key, []), *fields.values()
        if first not in known: known[first] = function(*arguments)
        return known[first]
    return once

def outcome(function, *arguments):
    "What comes out, or how it fails: a complaint is not silence."
    try: return function(*arguments)
    except Exception as e: return repr(e)

# --- the network ---

@pytest.fixture(scope='module')
def samples(emoji):
    info = register('options', emoji['train']['json'], images=emoji['train']['images'])
    mapper = TrainMapper(train_augmentation_of(base(emoji).data))
    return [mapper(record) | dict(draw=k) for k, record in enumerate(info.records[:2])]

def behaviour(cfg, samples):
    "Shapes of the weights, losses, detections, and how often blocks run."
    torch.manual_seed(0)
    model = build(cfg)
    runs = []
    for block in getattr(model.backbone.bottom_up.encoder, 'blocks', []):
        block.register_forward_pre_hook(lambda *_: runs.append(1))
    with EventStorage(): losses = model.train()(samples)
    sum(losses.values()).backward()
    inputs = [dict(s, height=100, width=300) for s in samples]
    with evaluating(model): found = [x['instances'] for x in model(inputs)]
    return ([tuple(p.shape) for p in model.state_dict().values()],
            {k: v.item() for k, v in losses.items()},
            [(f.pred_boxes.tensor.tolist(), f.scores.tolist(), f.pred_masks.sum().item()) for f in found],
            len(runs))

def test_the_same_again(emoji, samples):
    assert behaviour(base(emoji), samples) == behaviour(base(emoji), samples)

@pytest.mark.parametrize('key', [k for k in KEYS if k.startswith('model.')])
def test_model(key, emoji, samples, usual):
    before, after = changed(emoji, key)
    assert usual(key, behaviour, before, samples) != outcome(behaviour, after, samples)

BOTTOM_UP = [(backbone, key) for backbone in ('stem', 'patchify') for key in keys(backbone=backbone)
             if '.bottom_up.' in key]

@pytest.mark.parametrize('backbone, key', BOTTOM_UP)
def test_backbone_of_the_ablations(backbone, key, emoji, samples, usual):
    before, after = changed(emoji, key, backbone=backbone)
    assert usual(key, behaviour, before, samples, backbone=backbone) != outcome(behaviour, after, samples)

# --- the training ---

def training(cfg, folder, monkeypatch):
    """What a training leaves: weights, the log; how its data are loaded, what is saved,
    and what is found in the end."""
    seen = []
    def watch(module, name, what):
        real = getattr(module, name)
        def watched(*arguments, **options):
            seen.append(what(*arguments, **options))
            return real(*arguments, **options)
        monkeypatch.setattr(module, name, watched)
    watch(train, 'train_loader', lambda *_, workers, **__: workers)
    watch(engine, 'save_weights', lambda content, path: path.name)
    watch(evaluate, 'average_precisions', lambda json, found, **_: [f['bbox'] for f in found])
    cfg.train.output_dir = cfg.train.output_dir.replace('runs/', f'{folder}/')
    result = train.run_training(cfg)
    monkeypatch.undo()
    output = Path(cfg.train.output_dir)
    rows = [json.loads(line) for line in (output/'metrics.jsonl').read_text().splitlines()]
    log = [{k: v for k, v in row.items() if 'time' not in k} for row in rows]
    return result['weights'], str(output.relative_to(folder)), log, seen

@pytest.fixture(scope='module')
def files(tmp_path_factory, emoji):
    "Weights to start from: an autoencoder and a detector."
    from mimdet.training.pretrain import autoencoder, stem_names
    from mimdet.weights.files import save_weights
    from mimdet.stem import ConvStem
    from mimdet.vit import mae_names
    folder = tmp_path_factory.mktemp('weights')
    mae = mae_names(autoencoder('tiny')[0].state_dict()) | stem_names(ConvStem(192))
    save_weights(dict(model=mae), folder/'mae.pth')
    save_weights(dict(model=build(base(emoji)).state_dict()), folder/'detector.pth')
    partial = {k: v for k, v in build(base(emoji)).state_dict().items() if 'roi_heads' not in k}
    save_weights(dict(model=partial), folder/'partial.pth')
    return folder

ELSEWHERE = {
    'train.fp16_compression': 'tests/test_parallel.py',
    'data.filter_empty': 'tests/test_commands.py',
    'data.strict': 'tests/test_commands.py',
}

@pytest.mark.parametrize('key', [k for k in KEYS if not k.startswith('model.') and k not in ELSEWHERE])
def test_training(key, emoji, files, tmp_path, monkeypatch, usual):
    mae = f'mae_checkpoint.path={files}/mae.pth'
    OTHER.update({
        'data.train': spec(emoji['val']),
        'data.val': '',
        'mae_checkpoint.path': str(files/'mae.pth'),
        'train.init_checkpoint': str(files/'detector.pth'),
        'train.output_dir': 'runs/elsewhere',
    })
    FIRST.update({
        'train.allow_partial': [f'train.init_checkpoint={files}/partial.pth'],
        'mae_checkpoint.parts': [mae],
        'mae_checkpoint.stem': [mae],
    })
    before, after = changed(emoji, key)
    run = [outcome, training] if key == 'train.allow_partial' else [training]
    usually = usual(key, *run, before, tmp_path/'before', monkeypatch, of='training')
    assert usually != outcome(training, after, tmp_path/'after', monkeypatch)

# --- recipes ---

def other_field(r, field):
    value = getattr(r, field)
    words = dict(backbone='benchmarking', fill='stem', schedule='cosine', decoder_rate='encoder', mae_stem='fitted')
    if field in words: return words[field]
    if isinstance(value, tuple): return tuple(2*v for v in value) or (1.,)
    return not value if isinstance(value, bool) else 2*value or 1

FIELDS = [f for f in RECIPES['mimdet_base_v1_sr0.5_3x'].__dataclass_fields__ if f not in ('name', 'size')]
OF_BASELINE = 'window', 'train_positions', 'square', 'jitter'

@pytest.mark.parametrize('name, field', [
    ('benchmarking_base_25ep' if field in OF_BASELINE else 'mimdet_base_v1_sr0.5_3x', field) for field in FIELDS])
def test_recipe(name, field):
    changed = config(name, **{field: other_field(recipe(name), field)})
    assert OmegaConf.to_container(changed) != OmegaConf.to_container(config(name))
