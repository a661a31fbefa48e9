"""The baseline at full size (without memory: on the meta device): how many parameters, of what names and shapes; and
what its options do."""
import pytest
import torch
import mimdet.base.compat
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from mimdet.benchmarking import BenchmarkingViT, RelativePositionBias
from mimdet.base.core import MimdetError
from mimdet.detector import build
from mimdet.recipes import RECIPES, config
from mimdet.training.optimizer import optimizer_for

TINY = dict(dim=32, depth=4, heads=2, img_size=128, window_size=4, drop_path=0.)

def images(side=128, batch=2, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return ImageList(torch.randn(batch, 3, side, side, generator=rng), [(side, side)]*batch)

def detector(**options):
    "A detector of the paper's size around the baseline, on the meta device."
    cfg = config('mimdet_base_v1_sr0.5_3x')
    cfg.model.backbone.bottom_up = dict(_target_='mimdet.benchmarking.BenchmarkingViT', **options)
    with torch.device('meta'): return build(cfg)

def expected_state(dim=768, depth=12, heads=12, grid=64, window=16):
    "Names and shapes as in the published files."
    state = {'pos_embed': (1, grid**2, dim), 'patch_embed.proj.weight': (dim, 3, 16, 16),
             'patch_embed.proj.bias': (dim,)}
    parts = (('norm1', dim), ('attn.qkv', 3*dim, dim), ('attn.proj', dim, dim),
             ('norm2', dim), ('mlp.fc1', 4*dim, dim), ('mlp.fc2', dim, 4*dim))
    for n in range(depth):
        for name, out, *into in parts:
            state |= {f'blocks.{n}.{name}.weight': (out, *into), f'blocks.{n}.{name}.bias': (out,)}
    for kind, side in (('windowed', window), ('global', grid)):
        bias = f'{kind}_rel_pos_bias.relative_position'
        state |= {f'{bias}_bias_table': ((2*side - 1)**2, heads), f'{bias}_index': (side**2, side**2)}
    for name in ('0.0', '0.3', '1'):
        state |= {f'ms_adaptor.{name}.weight': (dim, dim, 2, 2), f'ms_adaptor.{name}.bias': (dim,)}
    return state | {'ms_adaptor.0.1.weight': (dim,), 'ms_adaptor.0.1.bias': (dim,)}

def test_names_and_shapes():
    model = detector()
    prefix = 'backbone.bottom_up.'
    state = {name.removeprefix(prefix): value for name, value in model.state_dict().items()
             if name.startswith(prefix)}
    assert {name: tuple(value.shape) for name, value in state.items()} == expected_state()
    whole = {name for name, value in state.items() if value.dtype == torch.int64}
    assert whole == {f'{kind}_rel_pos_bias.relative_position_index' for kind in ('windowed', 'global')}
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ['backbone.bottom_up.pos_embed']

def test_parameters_of_the_whole_detector():
    assert sum(p.numel() for p in detector().parameters()) == 118_674_184

@pytest.mark.parametrize('options', [
    dict(dim=192, heads=3),
    dict(dim=384, heads=6),
    dict(dim=192, heads=3, depth=4, img_size=128, window_size=4),
], ids=str)
def test_other_sizes(options):
    kept = BenchmarkingViT(**options) if options.get('img_size') == 128 else detector(**options).backbone.bottom_up
    sizes = dict(depth=12, window_size=16, img_size=1024) | options
    expected = expected_state(sizes['dim'], sizes['depth'], sizes['heads'], sizes['img_size']//16,
                              sizes['window_size'])
    assert {name: tuple(value.shape) for name, value in kept.state_dict().items()} == expected

def test_index_counts_rows_first_and_query_minus_key():
    index = RelativePositionBias(5, 1).relative_position_index
    for q in range(25):
        for k in range(25):
            rows, columns = q//5 - k//5, q%5 - k%5
            assert index[q, k] == (rows + 4)*9 + columns + 4

def test_norms_and_rates():
    model = BenchmarkingViT(64, 12, heads=2, img_size=128, window_size=4, drop_path=0.1)
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-6}
    rates = [getattr(block.drop_path1, 'drop_prob', 0.) for block in model.blocks]
    assert rates == pytest.approx([0.1*i/11 for i in range(12)])
    assert [getattr(b.drop_path2, 'drop_prob', 0.) for b in model.blocks] == rates

def test_stochastic_depth_drops_whole_images():
    """With the last block's branches always dropped or kept, an image of the batch is either as without that block or
    changed in all its windows."""
    torch.manual_seed(0)
    model = BenchmarkingViT(**TINY | dict(drop_path=0.5)).train()
    block, tokens = model.blocks[-1], torch.randn(16, 64, 32)
    bias = model.windowed_rel_pos_bias()
    block.drop_path2.drop_prob = 1.
    moved = (block(tokens, bias) != tokens).any(-1)                 # (images, tokens)
    assert 0 < moved.all(1).sum() < 16 and (moved.all(1) | ~moved.any(1)).all()

def test_each_option_does_something():
    def outputs(**options):
        torch.manual_seed(0)
        model = BenchmarkingViT(**TINY | dict(depth=8) | options).train()
        torch.manual_seed(1)
        return model(images())['c5']
    base = outputs()
    for change in (dict(window_size=2), dict(drop_path=0.5), dict(depth=4), dict(heads=4)):
        assert not torch.equal(base, outputs(**change)), change
    assert torch.equal(base, outputs(checkpointing=True))

@pytest.mark.parametrize('learns', [False, True])
def test_positions_learn_if_asked_to_and_never_decay(learns):
    cfg = config('benchmarking_tiny_25ep', train_positions=learns)
    model = build(cfg)
    positions = model.backbone.bottom_up.pos_embed
    groups = [g for g in optimizer_for(model, cfg.optimizer).param_groups
              if any(p is positions for p in g['params'])]
    assert positions.requires_grad == learns and [g['weight_decay'] for g in groups] == [0.]*learns

def test_positions_learn_in_the_published_rows():
    assert all(r.train_positions == (r.backbone == 'benchmarking') for r in RECIPES.values())

def test_checkpointing_saves_activations_in_training_only():
    def saved(training, **options):
        count = []
        model = BenchmarkingViT(**TINY, **options).train(training)
        def keep(t):
            count.append(t.numel())
            return t
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t): model(images())
        return sum(count)
    assert saved(True, checkpointing=True) < 0.6*saved(True)
    assert saved(False, checkpointing=True) == saved(False)

def test_images_do_not_see_each_other():
    model = BenchmarkingViT(**TINY).eval()
    batch, other = images(), images()
    other.tensor[1] = 0.
    with torch.no_grad(): one, two = model(batch), model(other)
    for name in one:
        torch.testing.assert_close(one[name][0], two[name][0])
        assert not torch.allclose(one[name][1], two[name][1])

def test_autocast_and_half_precision():
    model = BenchmarkingViT(**TINY)
    for table in (model.windowed_rel_pos_bias, model.global_rel_pos_bias):
        torch.nn.init.normal_(table.relative_position_bias_table)
    expected = model(images())
    with torch.autocast('cpu', torch.bfloat16): levels = model(images())
    for name, level in levels.items():
        torch.testing.assert_close(level.float(), expected[name], rtol=0.1, atol=0.05)
    sum(level.float().square().sum() for level in levels.values()).backward()
    assert model.global_rel_pos_bias.relative_position_bias_table.grad.abs().sum() > 0
    doubles = ImageList(images().tensor.double(), [(128, 128)]*2)
    assert model.double()(doubles)['c2'].dtype == torch.float64

@pytest.mark.parametrize('shape', [(96, 128), (128, 144), (256, 256)], ids=str)
def test_other_image_sizes_are_refused_in_one_line(shape):
    complaint = f'128x128 pixels, not {shape[0]}x{shape[1]}.*fixed size'
    with pytest.raises(MimdetError, match=complaint) as e:
        BenchmarkingViT(**TINY)(ImageList(torch.zeros(1, 3, *shape), [shape]))
    assert '\n' not in str(e.value)

def test_state_survives_saving(tmp_path):
    model, other = BenchmarkingViT(**TINY).eval(), BenchmarkingViT(**TINY).eval()
    torch.save(model.state_dict(), tmp_path/'x.pth')
    other.load_state_dict(torch.load(tmp_path/'x.pth', weights_only=True))
    with torch.no_grad(): assert torch.equal(model(images())['c2'], other(images())['c2'])

def test_a_training_step_of_a_whole_detector():
    cfg = config('mimdet_tiny_v1_sr0.5_3x')
    cfg.model.backbone.bottom_up = dict(_target_='mimdet.benchmarking.BenchmarkingViT', dim=64, depth=4,
                                        heads=2, img_size=128, window_size=4)
    model = build(cfg).train()
    mask = torch.zeros(1, 128, 128, dtype=torch.bool)
    mask[:, 20:60, 30:90] = True
    target = Instances((128, 128), gt_boxes=Boxes(torch.tensor([[30., 20., 90., 60.]])),
                       gt_classes=torch.tensor([3]), gt_masks=BitMasks(mask))
    sample = dict(image=torch.randint(0, 256, (3, 128, 128), dtype=torch.uint8), instances=target)
    with EventStorage(): losses = model([sample]*2)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert model.backbone.bottom_up.patch_embed.proj.weight.grad.abs().sum() > 0
