"""Recipes: the number of parameters by arithmetic is that of the detector which is built."""
from dataclasses import replace
import pytest, torch
from mimdet.base.core import MimdetError
from mimdet.detector import build
from mimdet.recipes import config, names, parameter_count, parameters, recipe
from mimdet.registry import BACKBONES

TINY, BASE, BASELINE = 'mimdet_tiny_v1_sr0.5_3x', 'mimdet_base_v2_sr0.5_3x', 'benchmarking_tiny_25ep'

def built(name, **overrides):
    "Parameters of the detector, which is built without its numbers."
    with torch.device('meta'): return sum(p.numel() for p in build(config(name, **overrides)).parameters())

def test_every_recipe():
    networks = {str(config(name).model): name for name in names()} # rows of the paper that share a network: one of them
    assert len(networks) > 8
    for name in networks.values(): assert parameter_count(name) == built(name), name
    for name in names(): assert parameter_count(name) == parameter_count(networks[str(config(name).model)])

@pytest.mark.parametrize('name, overrides', [
    *((name, dict(backbone=backbone)) for name in (TINY, BASE)
      for backbone in BACKBONES if backbone != 'benchmarking'),
    (TINY, dict(decoder_depth=0)),
    (TINY, dict(fill='stem')),
    (TINY, dict(img_size=800)),
    (TINY, dict(classes=3)),
    (TINY, dict(dim=64, depth=1, heads=4, decoder_dim=48)),
    (TINY, dict(channels=32, rpn_convs=2)),
    (TINY, dict(levels=4, anchors=(20, 36, 64, 100))),
    (TINY, dict(box_convs=2, box_fc=128)),
    (TINY, dict(mask_convs=0)),
    (TINY, dict(mask_convs=3, mask_channels=24)),
    (TINY, dict(fill='stem', backbone='patchify')),
    (BASELINE, dict(window=2)),
    (BASELINE, dict(img_size=256, square=256)),
    (BASELINE, dict(depth=4, heads=6, dim=96)),
])
def test_changes(name, overrides): assert parameter_count(name, **overrides) == built(name, **overrides)

def test_parts():
    "The parts sum to the whole, and a change shows in its own part alone."
    before = parameters(recipe(TINY))
    assert sum(before.values()) == parameter_count(TINY)
    changes = dict(encoder=dict(depth=5), decoder=dict(decoder_depth=3), proposals=dict(rpn_convs=2),
                   boxes=dict(box_fc=10), masks=dict(mask_convs=3))
    for part, change in changes.items():
        after = parameters(recipe(TINY, **change))
        assert {p for p in before if before[p] != after[p]} == {part}

def test_unknown_fill():
    with pytest.raises(MimdetError, match="unknown fill='x'; there are mask_token, stem"):
        parameter_count(TINY, fill='x')

def test_a_backbone_by_its_entry(monkeypatch):
    "Recipes, configurations and counts need the entry alone."
    entry = replace(BACKBONES['stem'], rates='benchmarking', channels=lambda r: [r.dim]*4)
    monkeypatch.setitem(BACKBONES, 'mine', entry)
    changed = recipe(TINY, backbone='mine')
    assert (changed.design, config(TINY, backbone='mine').optimizer.groups) == ('mine', 'benchmarking')
    mine, stem = (config(TINY, backbone=backbone).model.backbone.bottom_up for backbone in ('mine', 'stem'))
    assert mine == stem
    before, after = parameters(recipe(TINY, backbone='stem')), parameters(changed)
    assert {part for part in before if before[part] != after[part]} == {'pyramid'}
