"""Multiply-adds: the formula's laws, and fvcore's count of the real detector beside it."""
import subprocess, sys
from dataclasses import replace
import pytest
from mimdet.base.core import MimdetError
from mimdet.measure.flops import PARTS, flops, describe_setting
from mimdet.training.cost import agreement
from mimdet.recipes import networks, parameter_count, recipe
from mimdet.registry import blocks_work

TINY, TINY2 = 'mimdet_tiny_v1_sr0.5_3x', 'mimdet_tiny_v2_sr0.5_3x'
BASE, BASELINE = 'mimdet_base_v1_sr0.5_3x', 'benchmarking_tiny_25ep'
SAMPLED = ('mimdet', 'patchify')
NETWORKS = networks()

def made(name, backbone=None): return recipe(name, **dict(backbone=backbone) if backbone else {})

# --- laws ---

@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('backbone', [None, 'stem', 'patchify'])
def test_parts(name, backbone):
    """They sum to the total; more tokens are never less work; the ratio matters to encoder and decoder alone, and to
    nobody where nothing is sampled."""
    if backbone and not recipe(name).kind.samples: return
    r = made(name, backbone)
    found = [flops(r, ratio, height=800, width=1333) for ratio in (.02, .25, .5, .75, 1.)]
    for row in found:
        assert list(row) == [*PARTS, 'total'] and sum(row[part] for part in PARTS) == row['total']
        assert all(isinstance(n, int) and n >= 0 for n in row.values())
    changed = {part for part in PARTS if len({row[part] for row in found}) > 1}
    assert changed == ({'encoder', 'decoder'} if r.backbone in SAMPLED else set())
    for few, many in zip(found, found[1:]): assert all(few[part] < many[part] for part in changed)

def test_the_encoder_is_linear_but_for_its_comparisons():
    def linear(tokens): return blocks_work(tokens, 768, 12, among=1)
    assert [linear(n)/linear(100) for n in (200, 300, 400)] == [2, 3, 4]
    def compared(tokens): return blocks_work(tokens, 768, 12) - 12*tokens*(12*768**2 + 10*768)
    assert compared(400) == 4*compared(200) == 16*compared(100)

def test_heads_depend_on_what_was_found_alone():
    one, two = (flops(BASE, .5, height=800, width=1333, proposals=n, detections=3*n) for n in (10, 20))
    other = flops(BASE, .5, height=96, width=64, proposals=10, detections=30)
    assert {part for part in PARTS if one[part] != two[part]} == {'boxes', 'masks'}
    assert [two[p]/one[p] for p in ('boxes', 'masks')] == [2, 2]
    assert [one[p] for p in ('boxes', 'masks')] == [other[p] for p in ('boxes', 'masks')]
    usual, most = (flops(BASE, .5, height=800, width=1333, **n) for n in ({}, dict(proposals=1000)))
    assert usual['boxes'] == most['boxes']

def test_padding():
    "To 32 pixels with four levels, to 16 with three; a recipe for squares takes its square."
    def work(recipe, height, width): return flops(recipe, .5, height=height, width=width)
    assert work(BASE, 800, 1333) == work(BASE, 800, 1344) != work(BASE, 800, 1312)
    assert work(TINY, 100, 100) == work(TINY, 112, 112) != work(TINY, 128, 128)
    assert work(BASELINE, 20, 30) == work(BASELINE, 128, 128)
    assert recipe(BASE).level_sizes(65, 64) == [384, 96, 24, 6, 2] # 96 x 64; the last from 3 x 2 by halving

def test_without_a_transformer():
    "Only the map to the decoder's width is left; with patches in its place, only the stem is another."
    whole, stem, patchify = (flops(made(BASE, b), 1., height=800, width=1333) for b in ('mimdet', 'stem', 'patchify'))
    assert stem['encoder'] == 0 and stem['decoder'] == 4200*(768*512 + 5*512)
    assert {p for p in PARTS if whole[p] != stem[p]} == {'encoder', 'decoder'}
    assert {p for p in PARTS if whole[p] != patchify[p]} == {'stem'}
    without = replace(recipe(BASE), decoder_depth=0)
    assert flops(without, 1., height=800, width=1333)['decoder'] == stem['decoder']

def test_mistakes():
    for ratio in (0, 1.5, -1):
        with pytest.raises(MimdetError, match='outside'): flops(BASE, ratio, height=800, width=1333)
    with pytest.raises(MimdetError, match='unknown recipe'): flops('mimdet_bas', 1., height=800, width=1333)

def test_no_torch_for_the_formula():
    code = ('import sys; from mimdet.measure.flops import flops; flops("mimdet_base_v1_sr0.5_3x", 1., '
            'height=800, width=1333); '
            'sys.exit(", ".join({"torch", "timm", "detectron2", "fvcore"} & set(sys.modules)) or 0)')
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).returncode == 0

# --- beside fvcore ---

RATIOS = {TINY: (.02, .25, .5, 1.), TINY2: (.25, 1.), BASELINE: (1.,)}
CASES = [(made(name), ratio) for name, ratios in RATIOS.items() for ratio in ratios]
CASES += [
    (made(TINY, 'patchify'), .26),
    (made(TINY2, 'patchify'), 1.),
    (made(TINY, 'stem'), 1.),
    (replace(recipe(TINY), decoder_depth=0), .5),
    (replace(recipe(TINY2), decoder_depth=4), .5),
]

def label(v): return v if isinstance(v, float) else f'{v.backbone}-{v.fill}-{v.decoder_depth}'

@pytest.mark.parametrize('r, ratio', CASES, ids=label)
def test_fvcore_agrees(r, ratio):
    "Part by part, within 1 %; but for the pasting of masks to the last one."
    found = agreement(r, ratio, 90, 150)
    counted, formula = found['counted'], found['formula']
    assert 0 < found['detections'] <= 100 and 0 < found['proposals'] <= 64
    for part in (*PARTS, 'total'): assert counted[part] == pytest.approx(formula[part], rel=.01)
    assert [part for part in PARTS if counted[part] != formula[part]] in ([], ['masks'])

def test_fvcore_agrees_on_all_that_a_larger_recipe_has():
    "Four levels and one more, box convolutions, batch norms in both heads: a narrow model with the structure of base."
    r = replace(recipe(BASE), dim=64, depth=3, heads=2, decoder_dim=32, decoder_heads=2, img_size=64,
                channels=32, mask_channels=24, box_fc=64, proposals=(40, 20), classes=5)
    found = agreement(r, .5, 100, 140)
    assert {p: found['counted'][p] for p in PARTS[:-1]} == {p: found['formula'][p] for p in PARTS[:-1]}
    assert found['counted']['total'] == pytest.approx(found['formula']['total'], rel=.01)

# --- rows ---

def test_known():
    row = describe_setting(TINY, .25, 64, 96)
    assert row == dict(recipe=TINY, size='tiny', backbone='mimdet', ratio=.25, height=64, width=96,
                       tokens=6, parameters=parameter_count(TINY), flops=flops(TINY, .25, height=64, width=96))
    assert describe_setting('mimdet_base_v1_sr0.25_3x')['tokens'] == 1050
    assert describe_setting(BASELINE, .25)['ratio'] == 1.
