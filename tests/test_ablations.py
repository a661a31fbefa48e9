"""Ablations: backbones under every combination of options, ensembles, the measures beyond AP, and the experiments that
record them."""
import json
from itertools import combinations
import numpy as np
import papermill, pytest, torch
from conftest import ROOT, SHORT, spec
import mimdet.base.compat
from detectron2.structures import ImageList
from detectron2.utils.events import EventStorage
from mimdet.data import augment, datasets, stream
from mimdet.measure.probes import best_scores, c4_variance, fit_stem_alone, sampling_agreement
from mimdet.base.core import MimdetError, sha256
from mimdet.study.records import read_record
from mimdet.detector import build, member_seed
from mimdet.measure.evaluate import evaluate_detector
from mimdet.measure.predict import examples
from mimdet.training.pretrain import autoencoder, run_pretraining
from mimdet.weights.files import save_weights
from mimdet.recipes import config, override
from mimdet.training.optimizer import optimizer_for
from mimdet.training.train import train_on
from mimdet.vit import mae_names

TINY = 'mimdet_tiny_v1_sr0.5_3x'

def model_of(recipe=TINY, **changes):
    torch.manual_seed(0)
    model = build(config(recipe, classes=3, **changes)).eval()
    model.set_precision('fp32') # so that what is computed in two ways agrees
    return model

@pytest.fixture(scope='module')
def val(emoji):
    return datasets.register('ablations', emoji['val']['json'], images=emoji['val']['images'])

# --- backbones ---

OPTIONS = [
    dict(backbone='stem'),
    *(dict(backbone=b, decoder_depth=d, fill=f)
      for b in ('mimdet', 'patchify') for d in (0, 1, 4) for f in ('mask_token', 'stem')),
]

def batch_of(*sizes):
    images = [torch.randn(3, *size, generator=torch.Generator().manual_seed(k))
              for k, size in enumerate(sizes)]
    return ImageList.from_tensors(images, 32)

@pytest.mark.parametrize('options', OPTIONS)
def test_backbone(options):
    """c2 to c5 of the right shape; no image sees another or its own padding's noise; it depends on the noise as far as
    it samples."""
    backbone, images = model_of(**options).backbone.bottom_up, batch_of((64, 96), (90, 60))
    noise = torch.rand(2, 36)
    with torch.no_grad():
        levels = backbone(images, noise)
        shapes = dict(c2=(2, 48, 24, 24), c3=(2, 96, 12, 12), c4=(2, 128, 6, 6), c5=(2, 128, 3, 3))
        assert {k: tuple(v.shape) for k, v in levels.items()} == shapes
        assert all(torch.equal(levels[k], v) for k, v in backbone(images, noise).items())
        other = ImageList(images.tensor.clone(), images.image_sizes)
        other.tensor[1] += 1
        for k, v in backbone(other, noise).items():
            torch.testing.assert_close(v[0], levels[k][0], atol=1e-5, rtol=1e-4)
        moved = not torch.equal(levels['c4'], backbone(images, noise.flip(1))['c4'])
        assert moved == (options['backbone'] != 'stem')
        if moved:
            backbone.sample_ratio = 1.
            assert torch.equal(backbone(images, noise)['c4'], backbone(images, noise.flip(1))['c4'])

@pytest.mark.parametrize('options', OPTIONS)
def test_rates(options):
    """What makes the tokens learns at the stem's rate, the blocks at the encoder's, all else at the third; nothing is
    left out."""
    cfg = config('mimdet_base_v1_sr0.5_3x', **options)
    with torch.device('meta'): model = build(cfg)
    groups = optimizer_for(model, cfg.optimizer).param_groups
    of = {id(p): (g['lr'], g['weight_decay']) for g in groups for p in g['params']}
    for name, p in model.named_parameters():
        if not p.requires_grad: continue
        if '.patch_embed.' in name: part = 8e-5
        elif 'encoder.' in name.removeprefix('backbone.bottom_up.')[:8]: part = 4e-5
        else: part = 16e-5
        assert of.pop(id(p)) == (pytest.approx(part), 0.1 if p.ndim > 1 else 0), name
    assert not of

@pytest.mark.parametrize('options', OPTIONS)
def test_learns(options, emoji):
    "One training step moves every parameter that is not frozen."
    cfg = config(TINY, classes=3, **options)
    info = datasets.register('ablations-train', emoji['train']['json'], images=emoji['train']['images'])
    mapper = augment.TrainMapper(augment.train_augmentation_of(cfg.data))
    torch.manual_seed(0)
    model = build(cfg).train()
    batch = [mapper(r) | dict(draw=k) for k, r in enumerate(info.records[:4])]
    with EventStorage(): sum(model(batch).values()).backward()
    still = [n for n, p in model.backbone.bottom_up.named_parameters()
             if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert still == []

def test_what_cannot_be():
    cases = ((dict(backbone='swin'), 'there are mimdet, benchmarking, stem, patchify'),
             (dict(decoder_depth=-1), 'decoder_depth=-1 cannot be negative'))
    for changes, message in cases:
        with pytest.raises(MimdetError, match=message): config(TINY, **changes)

def test_autoencoder_with_a_deeper_decoder(emoji, tmp_path):
    def run(depth):
        return run_pretraining(emoji['train']['images'], tmp_path/str(depth), steps=1, batch=2, warmup=0,
                        decoder_depth=depth, stem_steps=0)
    runs = {depth: run(depth) for depth in (0, 2, 4)}
    assert [runs[depth]['settings']['decoder_depth'] for depth in (0, 2, 4)] == [2, 2, 4]
    assert runs[0]['sha256'] == runs[2]['sha256'] != runs[4]['sha256'] # 0: tiny's own 2

# --- ensembles ---

def c4(model, loader, samples=1):
    with torch.no_grad(), model.sampled(members=samples):
        tensors = (model.preprocess_image(batch).tensor for batch in loader)
        return torch.cat([model.backbone.bottom_up(tensor)['c4'] for tensor in tensors])

def loader_of(val, batch):
    return stream.test_loader(val.records, augment.TestMapper(augment.test_augmentation(128, 256)), batch=batch)

@pytest.fixture(scope='module')
def loader(val): return loader_of(val, 3)

@pytest.mark.parametrize('strategy', ['random', 'grid', 'block'])
@pytest.mark.parametrize('backbone', ['mimdet', 'patchify'])
def test_ensemble(backbone, strategy, loader):
    model = model_of(backbone=backbone)
    with model.sampled(0.25, strategy=strategy, seed=5):
        members = []
        for m in range(4):
            with model.sampled(seed=member_seed(5, m)): members.append(c4(model, loader))
        assert not any(torch.equal(*pair) for pair in combinations(members, 2))
        for k in (1, 2, 4):
            expected = torch.stack(members[:k]).mean(0)
            torch.testing.assert_close(c4(model, loader, k), expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(c4(model, loader), members[0])
    with model.sampled(1.):
        torch.testing.assert_close(c4(model, loader, 3), c4(model, loader), atol=1e-5, rtol=1e-4)

def test_stem_and_heads_run_once(loader):
    model, runs = model_of(), []
    backbone = model.backbone.bottom_up
    parts = dict(stem=backbone.encoder.patch_embed, encoder=backbone.encoder, decoder=backbone.decoder,
                 heads=model.roi_heads)
    for name, part in parts.items():
        part.register_forward_hook(lambda *_, name=name: runs.append(name))
    with torch.no_grad(), model.sampled(members=3): model(next(iter(loader)))
    assert {name: runs.count(name) for name in runs} == dict(stem=1, encoder=3, decoder=3, heads=1)

def test_ensemble_leaves_the_model_as_it_was(loader):
    model = model_of()
    before, attributes = c4(model, loader), set(vars(model))
    with pytest.raises(ZeroDivisionError), model.sampled(members=2): 1/0
    assert torch.equal(c4(model, loader), before) and set(vars(model)) == attributes

@pytest.mark.parametrize('model', [dict(backbone='stem'), dict(recipe='benchmarking_tiny_25ep')])
def test_nothing_to_sample(model, val, loader):
    model = model_of(**model)
    with model.sampled(members=1): pass
    data = config(TINY).data
    for work in (lambda: c4(model, loader, 2), lambda: evaluate_detector(model, val, data=data, samples=2)):
        with pytest.raises(MimdetError, match='samples no tokens'): work()
    with pytest.raises(MimdetError, match='no sample ratio'): c4_variance(model, loader, [0.5])

def test_samples_of_a_row(val):
    settings, model = config(TINY).data, model_of()
    plain, mean = (evaluate_detector(model, val, data=settings, ratio=0.25, seed=1, **more)
                   for more in ({}, dict(samples=2)))
    assert (plain['samples'], mean['samples']) == (1, 2) and plain['bbox'] != mean['bbox']
    assert evaluate_detector(model, val, data=settings, ratio=0.25, seed=1, samples=1)['bbox'] == plain['bbox']
    with pytest.raises(MimdetError, match='members=0 must be at least 1'):
        evaluate_detector(model, val, data=settings, samples=0)

@pytest.mark.parametrize('model, kept', [
    (dict(), 16),
    (dict(backbone='stem'), 0),
    (dict(recipe='benchmarking_tiny_25ep'), 64),
])
def test_examples_say_what_was_seen(model, kept, val):
    cfg = config(model.get('recipe', TINY))
    shown, = examples(model_of(**model), val, data=cfg.data, count=1, ratios=[0.25 if kept == 16 else 1.])
    assert shown['grid'] == [8, 8] and len(shown['views'][0]['kept']) == kept

# --- variance of c4 ---

def test_variance_is_of_the_images_not_of_the_batches(val):
    model = model_of()
    alone, together = (c4_variance(model, loader_of(val, batch), [0.25, 1.])
                       for batch in (1, 3))
    assert alone[0]['share'] == pytest.approx(together[0]['share'], rel=1e-4)
    assert alone[1] == together[1] == dict(ratio=1., share=0.)
    assert c4_variance(model, loader_of(val, 3), [0.25], seed=1) != together[:1]

def test_variance_by_its_definition(loader):
    model, maps = model_of(), {}
    for ratio in (0.5, 1.):
        with model.sampled(ratio, seed=3): maps[ratio] = c4(model, loader).double()
    whole = maps[1.]
    moved = (maps[0.5] - whole).square().sum()
    spread = (whole - whole.mean((0, 2, 3), keepdim=True)).square().sum()
    found = c4_variance(model, loader, [0.5], seed=3)[0]['share']
    assert found == pytest.approx((moved/spread).item(), rel=1e-3)

# --- the guess from the stem ---

def test_padding_teaches_nothing():
    "The fit is that of the tokens inside the images, by the slow way."
    model, sizes = model_of(), [(160, 96), (128, 160), (256, 64), (96, 208)]
    def image(size, seed):
        rng = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=rng)
    batch = [dict(image=image(size, k), image_id=k) for k, size in enumerate(sizes)]
    pairs = []
    def keep(module, args, out): pairs.append((args[3], out))
    with model.backbone.bottom_up.decoder.register_forward_hook(keep):
        fitted = fit_stem_alone(model, [batch])
    inside = [[tokens[k].unflatten(0, (16, 13))[:h//16, :w//16].flatten(0, 1)
               for k, (h, w) in enumerate(sizes)] for tokens in pairs[0]]
    x, y = (torch.cat(side).double().numpy() for side in inside)
    x = np.hstack([x, np.ones((len(x), 1))])
    expected = np.linalg.solve(x.T @ x + 1e-6*np.square(x).mean()*len(x)*np.eye(x.shape[1]), x.T @ y)
    np.testing.assert_allclose(np.vstack([fitted.weight, fitted.bias]), expected, atol=1e-4)

# --- agreement of samplings ---

def random_results(rng, objects, count):
    "Detections around the objects, of right and of wrong categories."
    chosen = [objects[i] for i in rng.integers(len(objects), size=count)]
    def result(a):
        category = int(rng.choice([a['category_id'], 1, 2]))
        score = float(rng.random())
        corner = np.array(a['bbox'][:2]) + rng.normal(0, 5, 2)
        return dict(image_id=a['image_id'], category_id=category, score=score,
                    bbox=[*corner.tolist(), *a['bbox'][2:]])
    return [result(a) for a in chosen]

def random_objects(rng, count, images):
    return [dict(id=i + 1, image_id=int(rng.integers(images)) + 1, category_id=int(rng.integers(1, 4)),
                 iscrowd=0, area=400., bbox=[*rng.uniform(0, 100, 2).tolist(), 20., 20.])
            for i in range(count)]

def annotations(path, objects, images):
    coco = dict(images=[dict(id=i + 1, file_name=f'{i}.png', width=128, height=128) for i in range(images)],
                categories=[dict(id=k, name=str(k)) for k in range(1, 4)], annotations=objects)
    path.write_text(json.dumps(coco))
    return path

def overlap(a, b):
    width, height = (max(0, min(a[k] + a[k + 2], b[k] + b[k + 2]) - max(a[k], b[k])) for k in (0, 1))
    return width*height/(a[2]*a[3] + b[2]*b[3] - width*height)

def test_best_scores_against_the_slow_way():
    rng = np.random.default_rng(0)
    objects = random_objects(rng, 60, 5)
    results = random_results(rng, objects, 200)
    def kind(entry): return entry['image_id'], entry['category_id']
    def fitting(a): return [r for r in results if kind(r) == kind(a) and overlap(r['bbox'], a['bbox']) >= 0.5]
    slow = [max([r['score'] for r in fitting(a)], default=0) for a in objects]
    assert best_scores(objects, results).tolist() == pytest.approx(slow)
    assert 10 < np.count_nonzero(slow) < 60

def test_agreement(tmp_path):
    rng = np.random.default_rng(1)
    objects = random_objects(rng, 60, 5)
    path = annotations(tmp_path/'a.json', objects, 5)
    seeds = [random_results(rng, objects, 150) for _ in range(3)]
    found = sampling_agreement(path, seeds)
    assert found['always'] + found['sometimes'] + found['never'] == pytest.approx(1)
    assert min(found.values()) > 0
    assert sampling_agreement(path, seeds[::-1]) == pytest.approx(found) # the order of the seeds says nothing
    more = sampling_agreement(path, [*seeds, []])
    assert more['always'] == 0 and more['never'] == found['never'] # one that is blind
    twice = sampling_agreement(path, [seeds[0]]*2) | dict(always=0, never=0)
    assert twice == dict(seeds=2, always=0, sometimes=0, never=0, score_sd=0, found_sd=0)
    stricter = sampling_agreement(path, seeds, score=0.9)
    assert stricter['never'] > found['never'] and stricter['score_sd'] == found['score_sd']
    region = objects[0] | dict(id=99, iscrowd=1, bbox=[0, 0, 100, 100])
    crowd = annotations(tmp_path/'crowd.json', [*objects, region], 5)
    assert sampling_agreement(crowd, seeds) == found
    first = sampling_agreement(path, seeds, image_ids=[1, 2])
    of_two = [a for a in objects if a['image_id'] < 3]
    assert first == sampling_agreement(annotations(tmp_path/'two.json', of_two, 2), seeds)

def test_agreement_without_a_question(tmp_path):
    path = annotations(tmp_path/'a.json', [], 1)
    with pytest.raises(MimdetError, match='no objects'): sampling_agreement(path, [[], []])
    with pytest.raises(MimdetError, match='at least two'): sampling_agreement(path, [[]])

# --- the experiments ---

def experiment(kind, folder, **parameters):
    "The record that an experiment notebook writes."
    parameters = dict(parameters, name=kind, record=f'{folder}/{kind}.json')
    papermill.execute_notebook(ROOT/'nbs'/'experiments'/f'{kind}.ipynb', folder/f'{kind}.ipynb', parameters,
                               kernel_name='python3', progress_bar=False, cwd=str(folder))
    return read_record(folder/f'{kind}.json')

@pytest.fixture
def mae(tmp_path):
    torch.manual_seed(0)
    save_weights(dict(model=mae_names(autoencoder('tiny', 4)[0].state_dict())), tmp_path/'mae.pth')
    return str(tmp_path/'mae.pth')

FAST = ['schedule.iterations=2', 'schedule.warmup=0', 'data.batch=2']

@pytest.mark.parametrize('key, recipe, changes, initialisation', [
    ('no_vit', TINY, dict(backbone='stem'), 'random'),
    ('patchify', TINY, dict(backbone='patchify', decoder_depth=1), 'mae_encoder'),
    ('benchmarking', 'benchmarking_tiny_25ep', dict(depth=4), 'mae'),
])
def test_experiment(key, recipe, changes, initialisation, emoji, mae, tmp_path):
    dataset = {split: spec(emoji[split]) for split in ('train', 'val')}
    sampled = key == 'patchify'
    common = dict(model=key, dataset=dataset, dataset_name='Toy', threads=1)
    trained = experiment('train', tmp_path, recipe=recipe, changes=changes, overrides=FAST,
                         mae='' if initialisation == 'random' else mae, initialisation=initialisation,
                         output=str(tmp_path/'run'), **common)
    expected = dict(model=key, recipe=recipe, backbone=changes.get('backbone', 'benchmarking'), size='tiny',
                    initialisation=initialisation, seed=0, gpus=1, sample_ratio=0.5 if sampled else None,
                    fill='mask_token' if sampled else None, decoder_depth=1 if sampled else None)
    assert {k: trained['params'][k] for k in expected} == expected
    assert trained['dataset']['name'] == 'Toy' and trained['dataset']['images'] == 16
    assert set(trained['weights']) == ({'out'} if initialisation == 'random' else {'in', 'out'})
    done = experiment('evaluate', tmp_path, train='train', train_seed=0, run=str(tmp_path/'run'),
                      ratios=[0.25, 1.0], seeds=[0, 1], agreement_ratios=[0.25],
                      ensembles=[dict(ratio=0.25, samples=3)], examples=1, limit=4, **common)
    rows = [(r['ratio'], r['seed'], r['samples'], r['c4']) for r in done['metrics']['rows']]
    plain = [
        (0.25, 0, 1, 'decoder'),
        (0.25, 1, 1, 'decoder'),
        (1.0, 0, 1, 'decoder'),
        (0.25, 0, 3, 'decoder'),
        (0.25, 1, 3, 'decoder'),
    ]
    assert rows == (plain if sampled else [(1.0, 0, 1, 'decoder')]) # 16x16 patches have no stem to probe
    assert [v['ratio'] for v in done['metrics']['c4_variance']] == ([0.25, 1.0] if sampled else [])
    agreement = [(a['ratio'], a['seeds']) for a in done['metrics']['sampling']]
    assert agreement == ([(0.25, 2)] if sampled else [])
    told = [done['params'][k] for k in ('train', 'model', 'train_seed', 'train_ratio')]
    assert told == ['train', key, 0, expected['sample_ratio']]
    assert done['weights']['in'] == trained['weights']['out'] and done['dataset']['name'] == 'Toy'

@pytest.mark.parametrize('name, parameters, message', [
    ('train', dict(initialisation='random', mae='some.pth'), 'contradict each other'),
    ('evaluate', dict(ratios=[1.0], agreement_ratios=[0.3]), '0.3 is not among'),
])
def test_experiment_complains(name, parameters, message, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match=message):
        experiment(name, tmp_path, **parameters)

def test_data_that_is_there(emoji, tmp_path):
    dataset = {split: spec(emoji[split]) for split in ('train', 'val')}
    found = experiment('data', tmp_path, dataset=dataset, dataset_name='Toy')
    assert found['dataset'] == dict(
        name='Toy',
        images=dict(train=16, val=6),
        objects={k: emoji[k]['annotations'] for k in ('train', 'val')},
        sha256={k: sha256(emoji[k]['json']) for k in ('train', 'val')},
    )

# --- several processes from a notebook ---

def training(emoji, folder, *more):
    data = [f'data.train={spec(emoji["train"])}', 'data.val=']
    changes = ['schedule.iterations=2', *SHORT, *data, f'train.output_dir={folder}', *more]
    return override(config(TINY), changes)

def test_two_processes(emoji, tmp_path, monkeypatch):
    "They leave what one process leaves, and the result is told alike."
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    results = {count: train_on(training(emoji, tmp_path/str(count), 'train.device=cpu'), count)
               for count in (1, 2)}
    for count, result in results.items():
        assert result['weights'] == sha256(tmp_path/str(count)/'model_final.pth')
    assert results[1].keys() == results[2].keys()
    for k in ('iterations', 'device', 'dataset', 'parameters'): assert results[2][k] == results[1][k]

def test_more_gpus_than_there_are(emoji, tmp_path):
    with pytest.raises(MimdetError, match=f'this machine has {torch.cuda.device_count()}'):
        train_on(training(emoji, tmp_path/'run'), 99)
