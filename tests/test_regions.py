"""Proposals, matching and sampling for whole batches: equal to detectron2's, and without waiting for a GPU."""
import warnings
from collections import Counter
from itertools import repeat
from unittest.mock import patch
import pytest, torch
from omegaconf import OmegaConf
import mimdet.base.compat
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from mimdet import regions
from mimdet.base.core import MimdetError
from mimdet.training.cost import synthetic_batch
from mimdet.detector import build, evaluating
from mimdet.training.engine import Trainer
from mimdet.pooling import FullPrecisionPooler
from mimdet.recipes import config
from mimdet.training.optimizer import optimizer_for

OURS = dict(RPN='proposal_generator', Matcher='matcher', StandardROIHeads='roi_heads', FastRCNNOutputLayers='roi_heads',
            MaskRCNNConvUpsampleHead='roi_heads')
MASKS_OFF = dict(mask_in_features=None, mask_pooler=None, mask_head=None)

def configuration(recipe='mimdet_tiny_v1_sr0.5_3x', amp='fp32', masks=True, **heads):
    cfg = config(recipe, classes=5)
    cfg.model.amp = amp
    for name, value in (heads if masks else heads | MASKS_OFF).items():
        OmegaConf.update(cfg, f'model.roi_heads.{name}', value, force_add=True)
    return cfg

def as_detectron2(cfg):
    "The same with detectron2's classes, as configurations of before name them."
    text = OmegaConf.to_yaml(cfg)
    for name, module in OURS.items():
        text = text.replace(f'mimdet.regions.{name}', f'detectron2.modeling.{module}.{name}')
    text = text.replace('mimdet.detector.FullPrecisionPooler', 'detectron2.modeling.poolers.ROIPooler')
    return OmegaConf.create(text)

def pair(cfg):
    "Our detector and detectron2's, with the same weights, which find something and train on every anchor and region."
    torch.manual_seed(0)
    ours, theirs = build(cfg), build(as_detectron2(cfg))
    ours.roi_heads.box_predictor.cls_score.weight.data.mul_(20)
    ours.proposal_generator.rpn_head.anchor_deltas.weight.data.mul_(20)
    theirs.load_state_dict(ours.state_dict())
    for model in (ours, theirs):
        for part in (model.proposal_generator, model.roi_heads):
            part.batch_size_per_image, part.positive_fraction = 10_000, 1.
    return ours, theirs

def batch_of(*counts, height=128, width=128):
    "Images with so many objects."
    samples = synthetic_batch(len(counts), height, width=width, classes=5, objects=max(1, *counts))
    for sample, count in zip(samples, counts): sample['instances'] = sample['instances'][:count]
    return samples

def losses_of(model, batch):
    with EventStorage(): return model.train()(batch)

def same(found, expected):
    found, expected = found['instances'].get_fields(), expected['instances'].get_fields()
    assert torch.equal(found.pop('pred_boxes').tensor, expected.pop('pred_boxes').tensor)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)

# --- equal to detectron2's ---

CASES = {
    'usual': dict(), 'baseline': dict(recipe='benchmarking_tiny_25ep'), 'no masks': dict(masks=False),
    'one box for all categories': {'box_predictor.cls_agnostic_bbox_reg': True},
    'parabola': {'box_predictor.smooth_l1_beta': 0.5}, 'no truth among the proposals': {'proposal_append_gt': False}}

@pytest.fixture(scope='module', params=CASES)
def detectors(request): return pair(configuration(**CASES[request.param]))

@pytest.mark.parametrize('counts', [(3,), (4, 0, 7), (0, 0)])
def test_losses(detectors, counts):
    batch = batch_of(*counts)
    found, expected = (losses_of(model, batch) for model in detectors)
    torch.testing.assert_close(found, expected)

@pytest.mark.parametrize('images', [1, 3])
def test_detections(detectors, images):
    batch = batch_of(*range(images))
    for sample in batch: sample |= dict(height=200, width=301)
    ours, theirs = detectors
    with evaluating(ours), evaluating(theirs):
        found = ours(batch)
        with patch('mimdet.detector.detector_postprocess', detector_postprocess): expected = theirs(batch)
    for own, other in zip(found, expected, strict=True): same(own, other)
    assert any(len(own['instances']) for own in found)

def test_in_bf16():
    "Losses are summed in full precision; regions come in another order, and so round differently."
    ours, theirs = pair(configuration(amp='bf16'))
    found, expected = (losses_of(model, batch_of(4, 2)) for model in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    assert all(loss.dtype == torch.float32 for loss in found.values())

def test_a_score_threshold_of_nothing():
    ours, theirs = pair(configuration(**{'box_predictor.test_score_thresh': 0.}))
    batch = batch_of(1, 1)
    with evaluating(ours), evaluating(theirs):
        for own, other in zip(ours(batch), theirs(batch), strict=True): same(own, other)

# --- corners ---

@pytest.fixture(scope='module')
def detector():
    torch.manual_seed(0)
    return build(configuration())

def proposals(count):
    boxes = Boxes(torch.rand(count, 4).sort(1).values*90)
    return Instances((128, 128), proposal_boxes=boxes, objectness_logits=torch.zeros(count))

def test_no_proposals(detector):
    with evaluating(detector):
        pyramid = {f'p{k}': torch.randn(2, 48, 128 >> k, 128 >> k) for k in (2, 3, 4)}
        for counts in ((0, 0), (0, 3)):
            found, _ = detector.roi_heads(None, pyramid, [proposals(n) for n in counts])
            assert len(found[0]) == 0 and found[0].pred_masks.shape == (0, 1, 28, 28)

def test_numbers_that_are_not_finite(detector):
    network = detector.proposal_generator
    pyramid = {f'p{k}': torch.randn(2, 48, 128 >> k, 128 >> k) for k in (2, 3, 4)}
    pyramid['p3'][1, :, 4, 4] = torch.nan
    class images: image_sizes = [(128, 128)]*2
    targets = [sample['instances'] for sample in batch_of(2, 2)]
    with EventStorage(), pytest.raises(FloatingPointError, match='diverged'): network.train()(images, pyramid, targets)
    found, _ = network.eval()(images, pyramid)
    assert all(len(own) and own.proposal_boxes.tensor.isfinite().all() for own in found)

@pytest.mark.parametrize('place', ['proposal_generator', 'roi_heads.box_predictor'])
def test_a_loss_of_detectron2s(place):
    cfg = configuration()
    OmegaConf.update(cfg, f'model.{place}.box_reg_loss_type', 'giou', force_add=True)
    with pytest.raises(MimdetError, match="smooth_l1; for giou use detectron2's class"): build(cfg)
    build(as_detectron2(cfg))

def test_same_seed_same_sample(detector):
    def sampled(seed):
        torch.manual_seed(seed)
        return losses_of(detector, batch_of(5, 3))
    torch.testing.assert_close(sampled(1), sampled(1), rtol=0, atol=0)
    assert sampled(1)['loss_cls'] != sampled(2)['loss_cls']

def test_as_many_regions_as_asked_for(detector):
    heads, most = detector.roi_heads, detector.roi_heads.batch_size_per_image
    targets = [sample['instances'] for sample in batch_of(5, 0)]
    with EventStorage() as storage:
        for count in (0, 10, 300):
            drawn = heads.label_and_sample_proposals([proposals(count), proposals(count)], targets)
            for own, truth in zip(drawn, targets):
                objects = own.gt_classes < heads.num_classes
                assert len(own) <= most and objects.sum() <= int(most*heads.positive_fraction)
                assert len(own.objects) == objects.sum() and objects[:len(own.objects)].all()
                assert own.has('gt_masks') == (len(truth) > 0)
            assert count < 300 or len(drawn[1]) == most
        regions.write_logged(storage)
    assert len(storage.history('roi_head/num_fg_samples').values()) == 3

@pytest.mark.parametrize('spread', [1., 30.])
def test_suppression_by_rounds(spread):
    "Also of boxes that are all of a size, and of many that are one."
    torch.manual_seed(0)
    corner = torch.randn(4, 400, 2)*spread
    boxes = torch.cat([corner, corner + 20], -1).round()
    usable = torch.rand(4, 400) < 0.8
    for threshold in (0.1, 0.5, 0.9):
        by_rounds = regions.suppress_in_rounds(boxes, usable, threshold)
        assert torch.equal(by_rounds, regions.suppress_one_by_one(boxes, usable, threshold))

# --- waits ---

def trainer_of(model, batch, folder):
    optimizer = optimizer_for(model, configuration().optimizer)
    return Trainer(model, repeat(batch), optimizer=optimizer, seed=0, accumulate=1, clip=1., scaled=False,
                   output_dir=folder,
                   name_batch=lambda _: [], log_period=100)

def waits_of_a_step(cfg, folder):
    "Where a step of four images would wait, with the paths that a GPU takes."
    trainer = trainer_of(build(cfg), batch_of(3, 0, 5, 2), folder)
    trainer.max_iter = 1000
    suppression = patch('mimdet.regions.suppress_one_by_one', regions.suppress_in_rounds)
    pooling = patch.object(FullPrecisionPooler, 'forward', regions.ROIPooler.forward)
    with EventStorage(), patch.object(Trainer, 'asynchronous', True), suppression, pooling:
        for trainer.iter in range(2):
            with regions.Waits() as waits: trainer.run_step()
    return waits.places

def test_waits_of_a_step(tmp_path):
    ours, theirs = (waits_of_a_step(cfg, tmp_path) for cfg in (configuration(), as_detectron2(configuration())))
    assert ours.total() <= 10 and theirs.total() >= 60, (ours, theirs)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_waits_of_a_gpu(tmp_path):
    "torch's own count, copies included: at most half of the 129 of detectron2's parts."
    def places(work):
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            torch.cuda.set_sync_debug_mode('warn')
            try: work()
            finally: torch.cuda.set_sync_debug_mode('default')
        return Counter(f'{w.filename}:{w.lineno}' for w in caught if 'synchroniz' in str(w.message))
    model, batch = build(configuration(amp='auto')).cuda(), batch_of(3, 0, 5, 2)
    trainer = trainer_of(model, batch, tmp_path)
    trainer.max_iter = 1000
    with EventStorage():
        for trainer.iter in range(3): trainer.run_step()
        trainer.iter = 3
        step = places(trainer.run_step)
    with evaluating(model):
        model(batch[:1])
        inference = places(lambda: model(batch[:1]))
    assert step.total() <= 40 and inference.total() <= 12, (step, inference)
