"""Weights: each published file into its model, each wrong pairing refused with its own line, conversion there and back.

The names and shapes of published files are written out here by rule, from the architecture and not from our code.
"""
import argparse, contextlib, re
from pathlib import Path
import pytest, torch
from safetensors.torch import load_file, save_file
from mimdet.weights import names
from mimdet.training.commands import mimdet_convert
from mimdet.weights.files import metadata, read_weights, save_weights
from mimdet.base.core import MimdetError, sha256
from mimdet.detector import build
from mimdet.weights.names import describe, mean_share, published_names, to_transformers
from mimdet.weights.load import load_detector, load_mae
from mimdet.recipes import RECIPES, SIZES, config
from mimdet.registry import BACKBONES

# --- published files, by rule: name -> shape ---

def layer(name, *shape): return {f'{name}.weight': shape, f'{name}.bias': shape[:1]}
def norm(name, width): return layer(name, width)
def batch_norm(name, width):
    running = {f'{name}.running_mean': (width,), f'{name}.running_var': (width,),
               f'{name}.num_batches_tracked': ()}
    return norm(name, width) | running
def conv_bn(name, *shape): return {f'{name}.weight': shape} | batch_norm(f'{name}.norm', shape[0])
def union(parts): return {k: v for part in parts for k, v in part.items()}

def blocks(name, count, dim):
    def block(name):
        return (norm(f'{name}.norm1', dim) | layer(f'{name}.attn.qkv', 3*dim, dim)
                | layer(f'{name}.attn.proj', dim, dim) | norm(f'{name}.norm2', dim)
                | layer(f'{name}.mlp.fc1', 4*dim, dim) | layer(f'{name}.mlp.fc2', dim, 4*dim))
    return union(block(f'{name}.{n}') for n in range(count))

def mimdet(design, dim, depth, grid, decoder_dim=512):
    "MIMDet's backbone."
    widths = [3, dim//8, dim//4, dim//2, dim]
    stem = union({f'encoder.patch_embed.proj.{i}.0.weight': (widths[i + 1], widths[i], 3, 3)}
                 | norm(f'encoder.patch_embed.proj.{i}.1', widths[i + 1]) for i in range(4))
    token = {'decoder.mask_token': (1, 1, decoder_dim)}
    fill = token if design == 'v1' else layer('decoder.conv_feat_proj', decoder_dim, dim)
    encoder = (stem | layer('encoder.patch_embed.proj.3.3', dim, dim, 1, 1)
               | {'encoder.pos_embed': (1, 1 + grid**2, dim)}
               | blocks('encoder.blocks', depth, dim) | norm('encoder.norm', dim))
    decoder = (layer('decoder.decoder_embed', decoder_dim, dim) | fill
               | {'decoder.decoder_pos_embed': (1, 1 + grid**2, decoder_dim)}
               | blocks('decoder.decoder_blocks', 4, decoder_dim)
               | norm('decoder.decoder_norm', decoder_dim))
    return encoder | decoder

def baseline(dim, depth, heads, grid, side=64, window=16):
    "The benchmarking ViT; `grid` is that of the position embedding, `side` the model's."
    def bias(name, s):
        return {f'{name}_rel_pos_bias.relative_position_bias_table': ((2*s - 1)**2, heads),
                f'{name}_rel_pos_bias.relative_position_index': (s*s, s*s)}
    biases = bias('windowed', window) | bias('global', side)
    maps = ({f'ms_adaptor.{n}.weight': (dim, dim, 2, 2) for n in ('0.0', '0.3', '1')}
            | {f'ms_adaptor.{n}.bias': (dim,) for n in ('0.0', '0.3', '1')})
    vit = ({'pos_embed': (1, grid**2, dim)} | layer('patch_embed.proj', dim, 3, 16, 16)
           | blocks('blocks', depth, dim))
    return vit | biases | maps | norm('ms_adaptor.0.1', dim)

def detector(backbone, levels, width=256, fc=1024, classes=80):
    "A Mask R-CNN in detectron2's names around a backbone with `levels` channels."
    pyramid = union(conv_bn(f'backbone.fpn_lateral{i}', width, c, 1, 1)
                    | conv_bn(f'backbone.fpn_output{i}', width, width, 3, 3)
                    for i, c in enumerate(levels, 2))
    proposers = (('conv.conv0', width, 3), ('conv.conv1', width, 3), ('objectness_logits', 3, 1),
                 ('anchor_deltas', 12, 1))
    rpn = union(layer(f'proposal_generator.rpn_head.{name}', out, width, k, k) for name, out, k in proposers)
    stacked = [f'box_head.conv{i}' for i in range(1, 5)] + [f'mask_head.mask_fcn{i}' for i in range(1, 5)]
    convs = union(conv_bn(f'roi_heads.{name}', width, width, 3, 3) for name in stacked)
    heads = (layer('roi_heads.box_head.fc1', fc, 49*width)
             | layer('roi_heads.box_predictor.cls_score', classes + 1, fc)
             | layer('roi_heads.box_predictor.bbox_pred', 4*classes, fc)
             | layer('roi_heads.mask_head.deconv', width, width, 2, 2)
             | layer('roi_heads.mask_head.predictor', classes, width, 1, 1))
    return {f'backbone.bottom_up.{k}': v for k, v in backbone.items()} | pyramid | rpn | convs | heads

CONSTANTS = {'pixel_mean': (3, 1, 1), 'pixel_std': (3, 1, 1)}
CONSTANTS |= {f'proposal_generator.anchor_generator.cell_anchors.{i}': (3, 4) for i in range(5)}

def mae(dim, depth, decoder_depth=8, decoder_dim=512, grid=14):
    "A full MAE file."
    encoder = ({'cls_token': (1, 1, dim), 'pos_embed': (1, 1 + grid**2, dim)}
               | layer('patch_embed.proj', dim, 3, 16, 16) | blocks('blocks', depth, dim) | norm('norm', dim))
    decoder = ({'mask_token': (1, 1, decoder_dim), 'decoder_pos_embed': (1, 1 + grid**2, decoder_dim)}
               | layer('decoder_embed', decoder_dim, dim)
               | blocks('decoder_blocks', decoder_depth, decoder_dim) | norm('decoder_norm', decoder_dim)
               | layer('decoder_pred', 768, decoder_dim))
    return encoder | decoder

SHAPES = dict(base=(768, 12, 12), large=(1024, 24, 16))
# recipe: (design, size, side in pixels of its position embeddings, published parameters at `counted` pixels, counted)
ROWS = {
    'mimdet_base_v1_sr0.25_3x': ('v1', 'base', 224, 127_561_552, 800),
    'mimdet_base_v1_sr0.25_3x_bs16': ('v1', 'base', 224, 127_561_552, 800),
    'mimdet_base_v1_sr0.5_3x': ('v1', 'base', 224, 127_561_552, 800),
    'mimdet_large_v1_sr0.5_3x': ('v1', 'large', 224, 345_268_848, 224),
    'mimdet_base_v2_sr0.5_3x': ('v2', 'base', 800, 127_954_768, 800),
    'mimdet_large_v2_sr0.5_3x': ('v2', 'large', 800, 349_332_080, 800),
    **{f'benchmarking_base_{epochs}ep': ('benchmarking', 'base', 1024, 118_674_184, 1024)
       for epochs in (25, 50, 100)},
}
DESIGNS = ('v1', 'v2', 'benchmarking')

def published(design, size, pixels, classes=80):
    "The file of a row, with position embeddings for `pixels`."
    dim, depth, heads = SHAPES[size]
    if design == 'benchmarking': return detector(baseline(dim, depth, heads, pixels//16), [dim]*4, classes=classes)
    return detector(mimdet(design, dim, depth, pixels//16), [dim//4, dim//2, 512, 512], classes=classes)

def narrow(design, pixels, classes=80):
    "The same rule at a width that is quick to load."
    if design == 'benchmarking': return detector(baseline(64, 4, 4, pixels//16, side=16), [64]*4, 16, 32, classes)
    return detector(mimdet(design, 64, 4, pixels//16, 32), [16, 32, 32, 32], 16, 32, classes)

def to_meta(shapes): return {k: torch.empty(s, device='meta', dtype=dtype(k)) for k, s in shapes.items()}

def dtype(name):
    whole = name.endswith(('num_batches_tracked', 'relative_position_index'))
    return torch.int64 if whole else torch.float32

def fill(shapes, seed=0):
    "Weights of these shapes, every number of them random."
    rng = torch.Generator().manual_seed(seed)
    def random(name, shape):
        if dtype(name).is_floating_point: return torch.randn(shape, generator=rng)
        return torch.randint(1, 9, shape, generator=rng)
    return {k: random(k, s) for k, s in shapes.items()}

# --- models ---

def meta_model(name):
    with torch.device('meta'): return build(config(name))

def narrow_model(design, pixels=224, classes=80):
    pixels = 256 if design == 'benchmarking' else pixels
    small = dict(dim=64, depth=4, heads=4, img_size=pixels, decoder_dim=32, decoder_heads=4, channels=16,
                 mask_channels=16, box_fc=32, classes=classes)
    torch.manual_seed(1)
    return build(config(recipe_of(design, 'base'), **small))

@pytest.fixture
def meta_file(monkeypatch):
    "Makes the readers take weights without values for the content of a file."
    def put(weights):
        monkeypatch.setattr('mimdet.weights.load.read_wrapped', lambda path: (weights, ''))
        monkeypatch.setattr('mimdet.weights.load.sha256', lambda path: '0'*64)
        return 'given.pth'
    return put

def recipe_of(design, size):
    return next(name for name, row in ROWS.items() if row[:2] == (design, size))

def positions(names): return sorted(name for name in names if name.endswith('pos_embed'))

# --- every published detector loads ---

def test_every_published_recipe_is_here():
    pattern = r'benchmarking_base_.*|mimdet_(base|large)_.*sr0.5.*|mimdet_base_v1_.*'
    assert {name for name in RECIPES if re.fullmatch(pattern, name)} == set(ROWS)

@pytest.mark.parametrize('row', ROWS)
def test_rule_gives_the_published_count(row):
    design, size, _, count, counted = ROWS[row]
    uncounted = ('running_mean', 'running_var', 'tracked', 'index')
    shapes = [s for k, s in published(design, size, counted).items() if not k.endswith(uncounted)]
    assert sum(torch.Size(s).numel() for s in shapes) == count

@pytest.mark.parametrize('row', ROWS)
def test_published_names_and_shapes(row, meta_file):
    design, size, pixels, *_ = ROWS[row]
    model = meta_model(row)
    own = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    assert own == published(design, size, pixels)
    for side in (224, 1024 if design == 'benchmarking' else 800):
        weights = to_meta(published(design, size, side))
        report = load_detector(model, meta_file(weights))
        assert not report.trouble and not report.new and not report.dropped
        assert report.loaded == sorted(own)
        assert sorted(report.resized) == (positions(own) if side != pixels else [])

def label_of(design): return next(kind.signs[design][0] for kind in BACKBONES.values() if design in kind.signs)

@pytest.mark.parametrize('pixels', [224, 256])
@pytest.mark.parametrize('design', DESIGNS)
def test_published_values(design, pixels, tmp_path):
    model, weights = narrow_model(design, 256), fill(narrow(design, pixels))
    optimizer = dict(state={0: dict(step=torch.ones(()))}, param_groups=[dict(lr=0.1)])
    trainer = dict(iteration=9, hooks={}, optimizer=optimizer)
    torch.save(dict(model=weights | fill(CONSTANTS), trainer=trainer, iteration=9), tmp_path/'given.pth')
    report = load_detector(model, tmp_path/'given.pth')
    assert not report.trouble and not report.new
    assert sorted(report.dropped) == sorted(CONSTANTS)
    assert report.sha256 == sha256(tmp_path/'given.pth') and report.source.endswith('given.pth')
    save_weights(dict(model=model.state_dict()), tmp_path/'back.pth')
    back = read_weights(tmp_path/'back.pth')
    assert back.keys() == weights.keys()
    assert [k for k in weights if k not in report.resized and not torch.equal(back[k], weights[k])] == []
    assert sorted(report.resized) == (positions(weights) if pixels != 256 else [])

def test_regridded_positions_stay_in_place(tmp_path):
    "An embedding that only depends on the column still does so on another grid; the class slot is left alone."
    weights = fill(narrow('v1', 224))
    name = 'backbone.bottom_up.encoder.pos_embed'
    column = torch.arange(14.).repeat(14)[None, :, None].expand(1, -1, 64)
    weights[name] = torch.cat([torch.full((1, 1, 64), 7.), column], 1)
    save_weights(weights, tmp_path/'given.pth')
    model = narrow_model('v1', 256)
    load_detector(model, tmp_path/'given.pth')
    resized = model.state_dict()[name]
    assert (resized[:, 0] == 7).all()
    grid = resized[0, 1:, 0].view(16, 16)
    assert torch.allclose(grid, grid[:1].expand(16, -1), atol=1e-5) and (grid[0].diff() > 0).all()

def test_window_indices_may_be_absent(tmp_path):
    weights = {k: v for k, v in fill(narrow('benchmarking', 256)).items() if not k.endswith('index')}
    save_weights(weights, tmp_path/'given.pth')
    report = load_detector(narrow_model('benchmarking'), tmp_path/'given.pth')
    assert not report.trouble
    assert all(name.endswith('relative_position_index') for name in report.new)

def test_a_whole_base_detector(tmp_path):
    model, weights = build(config('mimdet_base_v1_sr0.5_3x')), published('v1', 'base', 800)
    values = torch.randn(2**24)
    def made(name, shape):
        if not dtype(name).is_floating_point: return torch.tensor(5)
        return values[:torch.Size(shape).numel()].view(shape).clone()
    weights = {k: made(k, s) for k, s in weights.items()}
    save_weights(dict(model=weights), tmp_path/'given.pth')
    report = load_detector(model, tmp_path/'given.pth')
    assert not report.trouble and report.holds == 'MIMDet v1, size base, 80 classes'
    own = model.state_dict()
    assert [k for k in own if k not in report.resized and not torch.equal(own[k], weights[k])] == []

# --- masked autoencoders ---

def encoder_of(weights):
    return {k: v for k, v in weights.items() if not k.startswith(('decoder', 'mask_token'))}

def big_mae(size, kind='full'):
    "A MAE file of real size; only the layer that tells its kind has values."
    tells = fill(layer('decoder_pred', 768, 512)).values()
    weights = to_meta(mae(*SHAPES[size][:2]))
    weights |= dict(zip(('decoder_pred.weight', 'decoder_pred.bias'), tells))
    if kind == 'visualize':
        weights['decoder_pred.weight'] = weights['decoder_pred.weight'] + torch.randn(512)
    return encoder_of(weights) if kind == 'encoder' else weights

def half(name): return 'decoder.' if name.startswith(('decoder', 'mask_token')) else 'encoder.'

@pytest.mark.parametrize('design, size', [('v1', 'base'), ('v2', 'base'), ('v1', 'large'), ('v2', 'large')])
def test_full_mae_into_mimdet(design, size, meta_file):
    weights = big_mae(size)
    backbone = meta_model(recipe_of(design, size)).backbone.bottom_up
    report = load_mae(backbone, meta_file(weights))
    gone = [f'decoder_blocks.{n}.' for n in range(4, 8)]
    gone += ['cls_token', 'patch_embed', 'decoder_pred'] + ['mask_token']*(design == 'v2')
    expected = {half(k) + k for k in weights if not k.startswith(tuple(gone))}
    assert not report.trouble and set(report.loaded) == expected
    assert set(report.dropped) == {half(k) + k for k in weights} - expected
    assert set(report.new) == set(backbone.state_dict()) - expected
    assert all('patch_embed' in k or 'conv_feat_proj' in k for k in report.new)

@pytest.mark.parametrize('kind', ['full', 'encoder'])
def test_mae_into_baseline(kind, meta_file):
    weights = big_mae('base', kind)
    backbone = meta_model('benchmarking_base_25ep').backbone.bottom_up
    report = load_mae(backbone, meta_file(weights))
    expected = {k for k in weights if k.startswith(('blocks.', 'patch_embed.'))}
    assert not report.trouble and set(report.loaded) == expected
    assert set(report.dropped) == set(weights) - expected
    new = {'pos_embed', 'ms_adaptor', 'windowed_rel_pos_bias', 'global_rel_pos_bias'}
    assert {k.split('.')[0] for k in report.new} == new

def hf(weights):
    "transformers' names, by a rule of their own: whole names replaced, q, k and v cut out by hand."
    words = [
        ('patch_embed.proj', 'vit.embeddings.patch_embeddings.projection'),
        ('mlp.fc1', 'intermediate.dense'),
        ('mlp.fc2', 'output.dense'),
        ('attn.proj', 'attention.output.dense'),
        ('norm1', 'layernorm_before'),
        ('norm2', 'layernorm_after'),
    ]
    whole = {
        'cls_token': 'vit.embeddings.cls_token',
        'pos_embed': 'vit.embeddings.position_embeddings',
        'norm.weight': 'vit.layernorm.weight',
        'norm.bias': 'vit.layernorm.bias',
        'mask_token': 'decoder.mask_token',
    }
    out = {}
    for name, value in weights.items():
        new = whole.get(name, name)
        for old, word in words: new = new.replace(old, word)
        if new.startswith('blocks.'):
            new = 'vit.encoder.layer.' + new.removeprefix('blocks.')
        elif new.startswith('decoder_blocks.'):
            new = 'decoder.decoder_layers.' + new.removeprefix('decoder_blocks.')
        elif new.startswith('decoder_'):
            new = 'decoder.' + new
        if 'attn.qkv' not in new: out[new] = value
        else:
            third = len(value)//3
            for i, part in enumerate(('query', 'key', 'value')):
                part_name = new.replace('attn.qkv', f'attention.attention.{part}')
                out[part_name] = value[i*third:(i + 1)*third].clone()
    if any(k.startswith('decoder.') for k in out): return out
    return {k.removeprefix('vit.'): v for k, v in out.items()}

def small_mae(): return fill(mae(64, 4, decoder_dim=32))

def write(weights, path):
    told = argparse.Namespace(mask_ratio=0.75, output_dir='./out')
    if path.suffix == '.safetensors': save_file(weights, path)
    else: torch.save(dict(model=weights, optimizer=dict(state={}), epoch=799, args=told), path)
    return path

SOURCES = {
    'mae.pth': lambda w: w,
    'mae.safetensors': lambda w: w,
    'pytorch_model.bin': hf,
    'model.safetensors': hf,
}

@pytest.mark.parametrize('name', SOURCES)
@pytest.mark.parametrize('design', DESIGNS)
def test_mae_from_every_source(design, name, tmp_path):
    weights, model = small_mae(), narrow_model(design)
    for content in [weights, encoder_of(weights)][:1 + (design == 'benchmarking')]:
        report = load_mae(model.backbone.bottom_up, write(SOURCES[name](content), tmp_path/name))
        own = model.backbone.bottom_up.state_dict()
        assert not report.trouble and report.sha256 == sha256(tmp_path/name)
        for loaded in report.loaded:
            given = weights[loaded.removeprefix('encoder.').removeprefix('decoder.')]
            if loaded not in report.resized: assert torch.equal(own[loaded], given)

def test_timms_encoder_into_baseline(tmp_path):
    weights = {k.replace('norm.', 'fc_norm.') if k.startswith('norm.') else k: v
               for k, v in encoder_of(small_mae()).items()}
    backbone = narrow_model('benchmarking').backbone.bottom_up
    report = load_mae(backbone, write(weights, tmp_path/'model.safetensors'))
    assert not report.trouble
    assert {'fc_norm.weight', 'cls_token', 'pos_embed'} <= set(report.dropped)

@pytest.mark.parametrize('design', ['v1', 'v2', 'patchify'])
def test_encoder_alone(design, tmp_path):
    "From a full or an encoder-only file the same arrives: the encoder. The decoder stays as it was."
    weights, arrived = small_mae(), []
    for content in (weights, encoder_of(weights)):
        backbone = ablation('patchify') if design == 'patchify' else narrow_model(design).backbone.bottom_up
        fresh = {k: v.clone() for k, v in backbone.state_dict().items()}
        report = load_mae(backbone, write(content, tmp_path/'mae.pth'), parts='encoder')
        own = backbone.state_dict()
        assert not report.trouble and 'the encoder alone' in str(report)
        assert all(k.startswith('encoder.') for k in report.loaded)
        assert all(torch.equal(own[k], fresh[k]) for k in own if k not in report.loaded)
        assert torch.equal(own['encoder.blocks.3.mlp.fc1.weight'], weights['blocks.3.mlp.fc1.weight'])
        arrived.append((report.loaded, report.new))
    assert arrived[0] == arrived[1]
    assert {k for k in own if k.startswith('decoder.')} <= set(report.new)

def test_encoder_alone_of_another_run(meta_file):
    backbone = meta_model('mimdet_base_v1_sr0.5_3x').backbone.bottom_up
    file = meta_file(big_mae('base', 'visualize'))
    assert 'a visualize MAE' in complaint(load_mae, backbone, file, parts='encoder')

def ablation(backbone, **changes):
    "The backbone of an ablation, as narrow as the others here."
    torch.manual_seed(1)
    return narrow_ablation(backbone, **changes).backbone.bottom_up

def narrow_ablation(backbone, **changes):
    small = dict(dim=64, depth=4, heads=4, img_size=224, decoder_dim=32, decoder_heads=4, channels=16,
                 mask_channels=16, box_fc=32)
    return build(config('mimdet_base_v1_sr0.5_3x', backbone=backbone, **small | changes))

@pytest.mark.parametrize('fill', ['mask_token', 'stem'])
@pytest.mark.parametrize('depth', [0, 1, 4, 8])
def test_mae_into_patchify(depth, fill, tmp_path):
    "It keeps MAE's patches and the first blocks of its decoder; what makes the finer maps is new."
    weights, backbone = small_mae(), ablation('patchify', decoder_depth=depth, fill=fill)
    report = load_mae(backbone, write(weights, tmp_path/'mae.pth'))
    gone = ['cls_token', 'decoder_pred', *(f'decoder_blocks.{n}.' for n in range(depth, 8)),
            *['mask_token']*(fill == 'stem')]
    expected = {half(k) + k for k in weights if not k.startswith(tuple(gone))}
    own = backbone.state_dict()
    assert not report.trouble
    assert set(report.loaded) == expected and set(report.new) == set(own) - expected
    assert all('upsample' in k or 'conv_feat_proj' in k for k in report.new)
    for k in expected:
        assert torch.equal(own[k], weights[k.removeprefix('encoder.').removeprefix('decoder.')])

@pytest.mark.parametrize('depth', [0, 1, 2, 4])
def test_shorter_decoders_take_the_first_blocks(depth, tmp_path):
    weights, backbone = small_mae(), ablation('mimdet', decoder_depth=depth)
    report = load_mae(backbone, write(weights, tmp_path/'mae.pth'))
    taken = {int(k.split('.')[2]) for k in report.loaded if 'decoder_blocks' in k}
    assert not report.trouble and taken == set(range(depth))
    assert len(backbone.decoder.decoder_blocks) == depth
    for n in taken:
        loaded = backbone.decoder.decoder_blocks[n].attn.qkv.weight
        assert torch.equal(loaded, weights[f'decoder_blocks.{n}.attn.qkv.weight'])

def test_without_vit_takes_nothing(tmp_path):
    says = ('MIMDet without its ViT, 64 wide, which takes nothing from a masked autoencoder: '
            'leave out mae_checkpoint.path')
    for parts in ('all', 'encoder'):
        for partial in (False, True):
            backbone, file = ablation('stem'), write(small_mae(), tmp_path/'mae.pth')
            assert says in complaint(load_mae, backbone, file, allow_partial=partial, parts=parts)

@pytest.mark.parametrize('backbone', ['stem', 'patchify'])
def test_ablations_have_their_own_files(backbone, tmp_path):
    model, other = narrow_ablation(backbone), narrow_ablation('mimdet')
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    save_weights(dict(model=fill(shapes)), tmp_path/'given.pth')
    report = load_detector(model, tmp_path/'given.pth')
    assert not report.trouble and not report.new
    assert describe(read_weights(tmp_path/'given.pth')).design == backbone
    message = complaint(load_detector, other, tmp_path/'given.pth')
    assert f'it holds {label_of(backbone)}' in message
    assert 'no recipe here has that backbone' in message

def test_baseline_keeps_its_positions(tmp_path):
    backbone = narrow_model('benchmarking').backbone.bottom_up
    before = backbone.pos_embed.clone()
    weights = fill(mae(64, 4, decoder_dim=32, grid=16))
    load_mae(backbone, write(weights, tmp_path/'mae.pth'))
    assert torch.equal(backbone.pos_embed, before)

def test_names_agree_with_the_other_rule():
    weights = small_mae()
    for content in (weights, encoder_of(weights)):
        pairs = (to_transformers(content), hf(content)), (published_names(hf(content)), content)
        for given, expected in pairs:
            assert given.keys() == expected.keys()
            assert all(torch.equal(given[k], expected[k]) for k in expected)

def test_sizes_are_the_recipes():
    for name, size in SIZES.items():
        r = config(f'mimdet_{name}_v1_sr0.5_3x').model.backbone.bottom_up
        assert names.SIZE_OF_SHAPE[r.dim, r.depth] == name

# --- wrong pairings ---

FULL = 'mae_pretrain_vit_{}_full.pth (facebookresearch/mae issue 8)'
WRONG_MAE = { # (file, model): what the message says
    (('base', 'encoder'), ('v1', 'base')):
        ['an encoder only', 'MIMDet v1, size base', FULL.format('base')],
    (('large', 'encoder'), ('v2', 'large')):
        ['an encoder only', 'MIMDet v2, size large', FULL.format('large')],
    (('base', 'visualize'), ('v1', 'base')):
        ['a visualize MAE', 'plain pixels', FULL.format('base')],
    (('large', 'visualize'), ('v2', 'large')):
        ['a visualize MAE', FULL.format('large')],
    (('base', 'visualize'), ('benchmarking', 'base')):
        ['a visualize MAE', 'the benchmarking baseline', 'mae_pretrain_vit_base.pth'],
    (('large', 'full'), ('v1', 'base')):
        ['a full MAE (encoder and decoder), size large', 'MIMDet v1, size base', FULL.format('base')],
    (('base', 'full'), ('v2', 'large')):
        ['size base', 'MIMDet v2, size large', FULL.format('large')],
    (('large', 'encoder'), ('benchmarking', 'base')):
        ['size large', 'the benchmarking baseline, size base', 'mae_pretrain_vit_base.pth'],
}

def complaint(function, *arguments, **options):
    with pytest.raises(MimdetError) as error: function(*arguments, **options)
    message = str(error.value)
    assert '\n' not in message and len(message) < 500
    return message

@pytest.mark.parametrize('given, wanted', WRONG_MAE)
def test_wrong_mae(given, wanted, meta_file):
    backbone = meta_model(recipe_of(*wanted)).backbone.bottom_up
    message = complaint(load_mae, backbone, meta_file(big_mae(*given)))
    says = ('given.pth does not fit: it holds', '; use ', *WRONG_MAE[given, wanted])
    for part in says: assert part in message

WRONG_DETECTOR = {
    (('v1', 'large'), ('v1', 'base')): 'recipes that fit: mimdet_large_v1_sr0.5_3x',
    (('v1', 'base'), ('v1', 'large')): 'recipes that fit: mimdet_base_v1_sr0.25_3x, ',
    (('v1', 'base'), ('v2', 'base')): 'recipes that fit: mimdet_base_v1_sr0.25_3x, ',
    (('v2', 'base'), ('v1', 'base')): 'recipes that fit: mimdet_base_v2_sr0.5_3x',
    (('benchmarking', 'base'), ('v1', 'base')): 'recipes that fit: benchmarking_base_25ep, ',
    (('v2', 'base'), ('benchmarking', 'base')): 'recipes that fit: mimdet_base_v2_sr0.5_3x',
}

@pytest.mark.parametrize('given, wanted', WRONG_DETECTOR)
def test_wrong_detector(given, wanted, meta_file):
    model = meta_model(recipe_of(*wanted))
    message = complaint(load_detector, model, meta_file(to_meta(published(*given, 224))))
    named = [f'{label_of(design)}, size {size}' for design, size in (given, wanted)]
    says = (f'given.pth does not fit: it holds {named[0]}', f'the model is {named[1]}',
            WRONG_DETECTOR[given, wanted])
    for part in says: assert part in message

@pytest.mark.parametrize('design', DESIGNS)
def test_other_classes(design, tmp_path):
    model = narrow_model(design)
    fresh = {k: v.clone() for k, v in model.state_dict().items()}
    save_weights(fill(narrow(design, 224, classes=91)), tmp_path/'given.pth')
    message = complaint(load_detector, model, tmp_path/'given.pth')
    for part in ('91 classes', '80 classes', 'set the model to 91 classes', '--allow-partial'):
        assert part in message
    assert all(torch.equal(v, fresh[k]) for k, v in model.state_dict().items())
    report = load_detector(model, tmp_path/'given.pth', allow_partial=True)
    kept = {k for k, v in model.state_dict().items() if torch.equal(v, fresh[k])}
    wrong = {name.split()[0] for name in report.wrong}
    assert len(report.wrong) == 6
    assert kept == wrong == {k for k in fresh if 'predictor' in k}

def test_detector_and_mae_confused(meta_file):
    weights, model = to_meta(published('v1', 'base', 224)), meta_model('mimdet_base_v1_sr0.5_3x')
    message = complaint(load_mae, model.backbone.bottom_up, meta_file(weights))
    assert 'is not an MAE checkpoint: it holds MIMDet v1, size base, 80 classes' in message
    assert FULL.format('base') in message
    message = complaint(load_detector, model, meta_file(big_mae('base')))
    assert 'is not a detector: it holds a full MAE' in message and '--mae' in message
    others = (('conv1.weight', 'neither an MAE nor a detector'),
              ('backbone.bottom_up.stem.conv1.weight', 'a detector with another backbone'))
    for name, holds in others:
        weights = {name: torch.ones(2)}
        for load, part in ((load_mae, model.backbone.bottom_up), (load_detector, model)):
            assert holds in complaint(load, part, meta_file(weights))
            assert complaint(load, part, meta_file(weights), allow_partial=True)

@pytest.mark.parametrize('change, says', [
    (lambda w: w | {'extra.weight': torch.ones(1)},
     '1 unknown to the model, such as extra.weight'),
    (lambda w: {k: v for k, v in w.items() if k != 'backbone.fpn_output2.weight'},
     '1 missing from the file, such as backbone.fpn_output2.weight'),
    (lambda w: w | {'backbone.fpn_output2.weight': torch.ones(3)},
     '1 of another shape, such as backbone.fpn_output2.weight (3,)'),
])
def test_anything_else_is_trouble(change, says, tmp_path):
    model = narrow_model('v1')
    save_weights(change(fill(narrow('v1', 224))), tmp_path/'given.pth')
    assert says in complaint(load_detector, model, tmp_path/'given.pth')
    assert len(load_detector(model, tmp_path/'given.pth', allow_partial=True).trouble) == 1

def test_unexpected_in_a_mae_names_the_file(tmp_path):
    write(small_mae() | {'head.weight': torch.ones(3)}, tmp_path/'mae.pth')
    message = complaint(load_mae, narrow_model('v1').backbone.bottom_up, tmp_path/'mae.pth')
    assert 'unknown to the model, such as encoder.head.weight' in message
    assert 'use a full MAE of size 64 wide, 4 blocks deep' in message

@pytest.mark.parametrize('kind', ['encoder', 'visualize'])
def test_allow_partial_takes_another_mae(kind, tmp_path):
    weights, model = small_mae(), narrow_model('v1')
    if kind == 'encoder': weights = encoder_of(weights)
    else: weights |= {'decoder_pred.weight': weights['decoder_pred.weight'] + 1}
    write(weights, tmp_path/'mae.pth')
    complaint(load_mae, model.backbone.bottom_up, tmp_path/'mae.pth')
    report = load_mae(model.backbone.bottom_up, tmp_path/'mae.pth', allow_partial=True)
    assert all(name.startswith('decoder.') for name in report.missing)
    assert bool(report.missing) == (kind == 'encoder')
    own = model.backbone.bottom_up.state_dict()
    assert torch.equal(own['encoder.norm.weight'], weights['norm.weight'])

def test_values_tell_plain_pixels():
    rng = torch.Generator().manual_seed(0)
    random = torch.randn(768, 512, generator=rng)*0.05
    for offset, kind in ((0., 'mae-full'), (0.001, 'mae-full'), (0.05, 'mae-visualize'),
                         (1., 'mae-visualize')):
        pixels = random + offset*torch.randn(512, generator=rng)
        weights = big_mae('base') | {'decoder_pred.weight': pixels}
        assert describe(weights).kind == kind, mean_share(weights['decoder_pred.weight'])
    zeros = {'decoder_pred.weight': torch.zeros(768, 512)}
    assert describe(big_mae('base') | zeros).kind == 'mae-full'

# --- damaged files ---

class RunsCode:
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return Path.touch, (self.mark,)

def damaged(folder):
    "file name -> what the message says"
    torch.save(dict(model=fill(narrow('v1', 224))), folder/'whole.pth')
    save_file(small_mae(), folder/'whole.safetensors')
    pointer = b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n'
    for suffix in ('pth', 'safetensors'):
        content = (folder/f'whole.{suffix}').read_bytes()
        (folder/f'short.{suffix}').write_bytes(content[:len(content)//2])
        (folder/f'page.{suffix}').write_bytes(b'\n<!DOCTYPE html><html>sign in</html>')
        (folder/f'pointer.{suffix}').write_bytes(pointer)
        (folder/f'empty.{suffix}').touch()
    torch.save(dict(model=dict(a=torch.ones(1)), code=RunsCode(folder/'executed')), folder/'code.pth')
    torch.save(dict(epoch=3, lr=0.1), folder/'numbers.pth')
    save_file({}, folder/'numbers.safetensors')
    for name, value in (('nan', torch.nan), ('inf', torch.inf)):
        weights = fill(narrow('v1', 224))
        weights['backbone.bottom_up.encoder.norm.weight'][3] = value
        save_weights(weights, folder/f'{name}.pth')
    (folder/'folder.pth').mkdir()
    says = dict(short='cut short', page='is a web page', pointer='git lfs pull', empty='is empty',
                code='could run code when loaded', numbers='holds no weights', nan='is broken: 1 of its',
                inf='such as backbone.bottom_up.encoder.norm.weight', folder='is a folder')
    return {name: says[name] for name in says}

def test_damaged_files(tmp_path, call):
    says, model = damaged(tmp_path), narrow_model('v1')
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for path in sorted(tmp_path.iterdir()):
        if path.stem == 'whole': continue
        for load in (load_detector, lambda model, path: load_mae(model.backbone.bottom_up, path)):
            message = complaint(load, model, path)
            if path.stem not in ('nan', 'inf') or load is load_detector:
                assert message.startswith(str(path)) and says[path.stem] in message
        done = call(mimdet_convert, path, tmp_path/'out.safetensors')
        assert done.returncode == 2
        assert says[path.stem] in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path/'executed').exists() and not (tmp_path/'out.safetensors').exists()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with contextlib.suppress(Exception): torch.load(tmp_path/'code.pth', weights_only=False)
    assert (tmp_path/'executed').exists() # read the unsafe way, it does run

# --- conversion ---

def test_convert_there_and_back(tmp_path, call):
    weights = fill(narrow('v2', 800))
    save_weights(dict(model=weights), tmp_path/'a.pth')
    for given, written in (('a.pth', 'b.safetensors'), ('b.safetensors', 'c.pth')):
        done = call(mimdet_convert, tmp_path/given, tmp_path/written)
        assert done.returncode == 0, done.stderr
        assert sha256(tmp_path/given) in done.stdout and sha256(tmp_path/written) in done.stdout
    converted = load_file(tmp_path/'b.safetensors')
    for back in (converted, torch.load(tmp_path/'c.pth', weights_only=True)['model']):
        assert back.keys() == weights.keys()
        assert all(torch.equal(back[k], weights[k]) and back[k].dtype == weights[k].dtype for k in weights)
    words = metadata(tmp_path/'b.safetensors')
    expected = dict(format='pt', kind='detector', design='v2', classes='80', grid='50', names='published',
                    source='a.pth', source_sha256=sha256(tmp_path/'a.pth'))
    assert words.items() >= expected.items()
    assert oct((tmp_path/'b.safetensors').stat().st_mode) == oct((tmp_path/'c.pth').stat().st_mode)
    assert not load_detector(narrow_model('v2', 800), tmp_path/'b.safetensors').trouble

@pytest.mark.parametrize('names', ['published', 'timm', 'transformers'])
def test_convert_names(names, tmp_path, call):
    weights = small_mae()
    write(weights, tmp_path/'a.pth')
    done = call(mimdet_convert, tmp_path/'a.pth', tmp_path/'b.safetensors', f'--names={names}')
    assert done.returncode == 0, done.stderr
    expected = dict(published=weights, timm=encoder_of(weights), transformers=hf(weights))[names]
    back = load_file(tmp_path/'b.safetensors')
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[k], expected[k]) for k in expected)
    assert ('left_out' in done.stdout) == (names == 'timm')

def test_convert_describes(tmp_path, call):
    write(hf(small_mae()), tmp_path/'a.safetensors')
    done = call(mimdet_convert, tmp_path/'a.safetensors')
    told = ('a full MAE (encoder and decoder)', 'transformers', '14 x 14 tokens (224 px)',
            sha256(tmp_path/'a.safetensors'))
    for part in told: assert part in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ['a.safetensors']

def test_convert_refuses(tmp_path, call):
    write(small_mae(), tmp_path/'a.pth')
    save_weights(fill(narrow('v1', 224)), tmp_path/'d.pth')
    (tmp_path/'folder.pth').mkdir()
    cases = {
        ('a.pth', 'd.pth'): '--force',
        ('a.pth', 'b.onnx'): 'must end in',
        ('a.pth', 'folder.pth'): 'is a folder',
        (): 'give a weights file',
        ('none.pth', 'b.pth'): 'no such file',
        ('a.pth', 'b.pth', '--names=mine'): 'there are published, timm, transformers',
        ('d.pth', 'b.pth', '--names=timm'): 'only masked autoencoders',
        ('a.pth', 'b.pth', '--fetch=a/b'): 'one file at most',
        ('--fetch=a',): 'give OWNER/REPO',
    }
    for arguments, says in cases.items():
        placed = (tmp_path/a if a.endswith(('.pth', '.onnx')) else a for a in arguments)
        done = call(mimdet_convert, *placed)
        assert done.returncode == 2 and says in done.stderr, arguments
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.pth', 'd.pth', 'folder.pth']
    assert call(mimdet_convert, tmp_path/'a.pth', tmp_path/'d.pth', '--force').returncode == 0
    assert describe(read_weights(tmp_path/'d.pth')).kind == 'mae-full'

def test_fetch_offline(monkeypatch, call, tmp_path):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('huggingface_hub.try_to_load_from_cache', lambda *args: None)
    done = call(mimdet_convert, tmp_path/'out.safetensors', '--fetch', 'timm/vit_base_patch16_224.mae')
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    told = ('timm/vit_base_patch16_224.mae/model.safetensors cannot be downloaded',
            'https://huggingface.co/timm/vit_base_patch16_224.mae', 'SOURCE')
    for part in told: assert part in done.stderr

def test_fetch_takes_what_the_hub_has(monkeypatch, call, tmp_path):
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
    write(hf(small_mae()), tmp_path/'pytorch_model.bin')
    def ask(url):
        if 'facebook/private' in url: raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)
        if not url.endswith('pytorch_model.bin') or 'facebook/other' in url:
            raise EntryNotFoundError.__new__(EntryNotFoundError)
    monkeypatch.setattr('huggingface_hub.try_to_load_from_cache', lambda *args: None)
    monkeypatch.setattr('huggingface_hub.get_hf_file_metadata', ask)
    monkeypatch.setattr('huggingface_hub.hf_hub_download', lambda repo, file: tmp_path/file)
    done = call(mimdet_convert, tmp_path/'out.pth', '--fetch', 'facebook/vit-mae-base')
    assert done.returncode == 0, done.stderr
    assert read_weights(tmp_path/'out.pth').keys() == mae(64, 4, decoder_dim=32).keys()
    other, private = (call(mimdet_convert, '--fetch', f'facebook/{name}') for name in ('other', 'private'))
    assert 'name the file: --fetch facebook/other/FILE' in other.stderr
    assert 'is not on the Hugging Face hub' in private.stderr
