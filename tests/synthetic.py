"""Made-up run records, pictures and a toy data set, for tests and for developing tables and figures. Never a result;
never written to results/."""
import io, time
from pathlib import Path
import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as rle
from mimdet.base.core import encode_bytes, rng_for, write_json
from mimdet.study.records import fingerprint, make_record

COLOURS = dict(apple=(214, 60, 50), banana=(238, 200, 60), bus=(90, 120, 210), cat=(235, 150, 60),
               dog=(150, 100, 70), pizza=(225, 170, 90))
DATASET = dict(name='Emoji-COCO', images=dict(train=6000, val=500), categories=10,
               sha256=dict(train='a'*64, val='b'*64))
FIXED = dict(
    date='2026-01-02T03:04:05+00:00',
    git=dict(commit='0123456789abcdef'*2 + '01234567', dirty=False),
    versions={'python': '3.11.0'},
    wall_seconds=60.0,
    peak_memory_mb=1000,
    hardware=dict(device='cpu', cpu='Synthetic CPU', cores=2),
)
PARTS = dict(loss_cls=.55, loss_box_reg=.45, loss_mask=.65, loss_rpn_cls=.25, loss_rpn_loc=.3)
SIZE, TOKEN = 128, 16

def record(kind, name, params, metrics, profile='quick', **extra):
    "A record as `make_record` makes it, with its provenance made up."
    made = make_record(kind, profile, name=name, params=params, metrics=metrics, started=time.time(),
                       dataset=DATASET, **extra) | FIXED
    return made | dict(sha256=fingerprint(made))

def train(model, ratio=.5, seed=0, fill='mask_token', initialisation='mae', steps=400, **params):
    "A training run with made-up curves, as the study names it."
    name = f'train_{model}_seed{seed}'
    iterations, rng = np.arange(20, steps + 1, 20), rng_for('synthetic', name)
    decay = np.exp(-3*iterations/steps)
    losses = {k: (level*(.35 + .65*decay)*rng.normal(1, .06, len(decay))).round(4).tolist()
              for k, level in PARTS.items()}
    total = np.sum(list(losses.values()), 0).round(4).tolist()
    curves = dict(iteration=iterations.tolist(), total_loss=total, lr=(2e-3*decay).tolist(), **losses)
    params = dict(model=model, recipe='mimdet_tiny_v1_sr0.5_3x', backbone='mimdet', size='tiny',
                  decoder_depth=2, sample_ratio=ratio, seed=seed, fill=fill, strategy='random',
                  initialisation=initialisation, iterations=steps, batch=8, lr=2e-3) | params
    metrics = dict(total_loss=curves['total_loss'][-1], seconds_per_iteration=.3, parameters=4_000_000)
    return record('train', name, params, metrics, curves=curves)

def row(ratio, box, mask, seed=0, c4='decoder', strategy='random', **more):
    "One evaluation: only box and mask AP are given, the other APs follow by a made-up rule."
    def aps(ap):
        return dict(AP=ap, AP50=None if ap is None else min(100, ap*1.75), AP75=ap,
                    APs=None if ap is None else ap*(.5 + .15*min(1, ratio)), APm=ap,
                    APl=ap and min(100, ap*1.2), per_category=dict(cat=ap))
    return dict(ratio=ratio, strategy=strategy, seed=seed, c4=c4, bbox=aps(box), segm=aps(mask),
                images=500, seconds=20.0) | more

def evaluate(model, rows, examples=(), seed=0, c4_variance=(), sampling=(), **params):
    "The evaluation of a model's training with one seed."
    metrics = dict(rows=rows, c4_variance=list(c4_variance), sampling=list(sampling))
    params = dict(train=f'train_{model}_seed{seed}', model=model, train_seed=seed, seed=0) | params
    return record('evaluate', f'evaluate_{model}_seed{seed}', params, metrics, examples=list(examples))

def picture(pixels):
    "A uint8 RGB array as base64 PNG."
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG')
    return encode_bytes(file.getvalue())

def scene(number):
    "Discs and boxes on a grainy slope: pixels and objects [(category, mask)]."
    rng, (y, x) = rng_for('scene', number), np.mgrid[:SIZE, :SIZE]
    slope = (x*rng.uniform(-.5, .5) + y*rng.uniform(-.5, .5))[..., None]
    pixels = rng.uniform(90, 200, 3) + slope + rng.normal(0, 9, (SIZE, SIZE, 1))
    objects = []
    for category in rng.choice(sorted(COLOURS), int(rng.integers(2, 5))):
        cx, cy, r = *rng.uniform(20, SIZE - 20, 2), rng.uniform(13, 28)
        if rng.random() < .6: inside = (x - cx)**2 + (y - cy)**2 < r*r
        else: inside = (abs(x - cx) < r) & (abs(y - cy) < r*.8)
        objects = [(c, m & ~inside) for c, m in objects] + [(str(category), inside)]
        pixels[inside] = np.array(COLOURS[str(category)]) + rng.normal(0, 14, (int(inside.sum()), 1))
    return pixels.clip(0, 255).astype('uint8'), [(c, m) for c, m in objects if m.sum() > 40]

def annotation(category, mask, **more):
    "A mask as an entry of `ground_truth` or `predictions`."
    code = rle.encode(np.asfortranarray(mask, dtype='uint8'))
    packed = dict(size=[int(v) for v in code['size']], counts=code['counts'].decode())
    return dict(category=category, bbox=[float(v) for v in rle.toBbox(code)], segmentation=packed) | more

def example(number, ratios=(.25, .5, .75, 1.), reconstruction=False):
    "One example image with made-up predictions that get better with the ratio."
    pixels, objects = scene(number)
    rows, views = SIZE//TOKEN, []
    for ratio in ratios:
        rng = rng_for('view', number, ratio)
        kept = sorted(rng.permutation(rows*rows)[:int(rows*rows*ratio)].tolist())
        def shifted(mask):
            by = rng.integers(-6, 7, 2)*(1.1 - ratio)
            return np.roll(mask, by.astype(int), (0, 1))
        found = [annotation(c, shifted(m), score=float(rng.uniform(.4, .99)))
                 for c, m in objects if rng.random() < .55 + .45*ratio]
        views.append(dict(ratio=ratio, kept=kept, predictions=found))
    done = dict(image_id=number, image=picture(pixels), height=SIZE, width=SIZE, grid=[rows, rows],
                ground_truth=[annotation(*o) for o in objects], views=views)
    return done | (dict(reconstruction=picture(blur(pixels))) if reconstruction else {})

def blur(pixels):
    "What an autoencoder might make of a picture."
    small = Image.fromarray(pixels).resize((SIZE//TOKEN*2,)*2, Image.BOX)
    return np.asarray(small.resize((SIZE, SIZE), Image.BICUBIC))

def pretrain(name='pretrain_tiny', steps=600, seed=0):
    "A pre-training run with made-up curves and three examples."
    iterations, rng = np.arange(10, steps + 1, 10), rng_for('synthetic', name)
    noise = rng.normal(0, .015, len(iterations))
    loss = (.45 + .55*np.exp(-5*iterations/steps) + noise).round(4).tolist()
    examples = []
    for number in range(5):
        pixels, _ = scene(100 + number)
        hidden = rng.random((SIZE//TOKEN, SIZE//TOKEN)) < .75
        hidden = np.kron(hidden, np.ones((TOKEN, TOKEN))).astype(bool)[..., None]
        masked = np.where(hidden, 127, pixels).astype('uint8')
        filled = np.where(hidden, blur(pixels), pixels).astype('uint8')
        examples.append(dict(image=picture(pixels), masked=picture(masked),
                             reconstruction=picture(filled)))
    params = dict(steps=steps, batch=64, mask_ratio=.75, lr=1.5e-3, seed=seed)
    metrics = dict(loss=loss[-1], images_per_second=200.0)
    curves = dict(iteration=iterations.tolist(), loss=loss, lr=[1e-3]*len(loss))
    return record('pretrain', name, params, metrics, curves=curves, examples=examples)

def cost(recipes=('mimdet_tiny_v1_sr0.5_3x', 'mimdet_base_v1_sr0.5_3x'), ratios=(.25, .5, .75, 1.), side=SIZE):
    "What a pass might cost."
    rows = []
    for recipe in recipes:
        scale = 1 if 'tiny' in recipe else 40
        for ratio in ratios:
            parts = dict(stem=.12e9, encoder=.15e9*ratio*(1 + .3*ratio), decoder=.05e9, pyramid=.3e9,
                         proposals=.2e9, boxes=.4e9, masks=.5e9)
            flops = {k: v*scale for k, v in parts.items()} | dict(total=scale*sum(parts.values()))
            seconds = [.02*scale*(.6 + .4*ratio)*s for s in (1., 1.05, 1.2)]
            speed = dict(median=1/seconds[1], low=1/seconds[2], high=1/seconds[0])
            rows.append(dict(recipe=recipe, size=recipe.split('_')[1], backbone='mimdet', mode='forward',
                             ratio=ratio, height=side, width=side, batch=1, tokens=int(ratio*64),
                             parameters=4_000_000*scale, flops=flops, fvcore_flops=flops['total'],
                             seconds=seconds, images_per_second=speed,
                             memory_mb=dict(before=500, model=520, peak=600)))
    return record('cost', 'cost', dict(seed=0, mode='forward'), dict(rows=rows))

def evaluated(model, ratio, seed, at_one, slope, probe, stem, samplings=(0, 1, 2), examples=()):
    "A made-up evaluation with all that the experiment measures: the higher the training's seed, the better."
    noise = rng_for('synthetic', model, seed)
    def one(r, s, plus=0., **more):
        box = at_one - slope*(1 - r) + .4*seed + plus + noise.normal(0, .25*(r < 1))
        return row(r, box, .82*box, seed=s, **more)
    rows = [one(r, s) for r in (.25, .5, .75, 1.) for s in (samplings if r < 1 else samplings[:1])]
    rows += [row(.02, probe + noise.normal(0, .4), .8*probe, seed=s) for s in samplings]
    if stem is not None: rows.append(row(ratio, stem, .8*stem, c4='stem'))
    rows += [one(r, s, plus=.8, samples=k) for r, k in ((.25, 4), (.5, 2)) for s in samplings]
    variance = [dict(ratio=r, share=(1 - r)*slope/30 + .01*seed) for r in (.02, .25, .5, .75, 1.)]
    agreement = [dict(ratio=r, seeds=len(samplings), always=.6 + .1*r, sometimes=.2*(1 - r) + .05,
                      never=.35 - .1*r - .2*(1 - r), score_sd=.1*(1 - r) + .002*seed,
                      found_sd=.01*(1 - r))
                 for r in (.25, .5)]
    return evaluate(model, rows, examples, seed, variance, agreement, ratio=ratio)

ABLATIONS = dict(
    no_vit=dict(ratio=None, fill=None, backbone='stem', decoder_depth=None, initialisation='random',
                changes=dict(backbone='stem')),
    random=dict(initialisation='random'),
    mae_encoder=dict(initialisation='mae_encoder'),
    patchify=dict(backbone='patchify', changes=dict(backbone='patchify')),
    decoder0=dict(decoder_depth=0, changes=dict(decoder_depth=0)),
    grid=dict(strategy='grid'),
)
BASELINE = dict(ratio=None, fill=None, strategy=None, decoder_depth=None, backbone='benchmarking',
                recipe='benchmarking_tiny_25ep', initialisation='mae')
MAIN_ROWS = [
    dict(published='mimdet_base_v1_sr0.25_3x', model='v1_sr0.25'),
    dict(published='mimdet_base_v1_sr0.5_3x', model='v1_sr0.5'),
    dict(published='mimdet_base_v2_sr0.5_3x', model='v2_sr0.5'),
    dict(published='benchmarking_base_25ep', model='benchmarking'),
]
RATIO_ROWS = ['v1_sr0.25', 'v1_sr0.5', 'v1_sr1.0']
ABLATION_ROWS = [
    dict(study='main model', variant='v1, MAE, 0.5', model='v1_sr0.5'),
    dict(study='encoder', variant='without the ViT (c4 from the stem alone)', model='no_vit'),
    dict(study='initialisation', variant='MAE encoder only', model='mae_encoder'),
    dict(study='initialisation', variant='random', model='random'),
    dict(study='stem', variant='16x16 patchify', model='patchify'),
    dict(study='fill', variant='stem features (v2)', model='v2_sr0.5'),
    dict(study='decoder depth', variant='0', model='decoder0'),
    dict(study='sampling', variant='grid', model='grid'),
]

def study(seeds=(0, 1)):
    """A whole made-up profile: v1 at three training ratios, v2, the baseline, ablations (of which one has no
    evaluation), an autoencoder and the cost."""
    shape = {
        'v1_sr0.25': (36., 3, 30.2, 21.5),
        'v1_sr0.5': (38.4, 8, 24.1, 19.7),
        'v1_sr1.0': (39.2, 21, 4.9, 14.2),
        'v2_sr0.5': (37.1, 1.2, 36., 33.9),
        'random': (31.3, 5, 22., 16.8),
        'mae_encoder': (37.2, 7, 24.4, 20.),
        'patchify': (33.4, 9, 17., None),
        'grid': (38.1, 6, 25.1, 20.3),
    }
    more = {key: ABLATIONS[key] for key in ABLATIONS}
    more |= {'v2_sr0.5': dict(fill='stem', recipe='mimdet_tiny_v2_sr0.5_3x')}
    made = [pretrain(), cost()]
    for key in (*(k for k in shape), 'decoder0'):
        ratio = float(key.split('sr')[1]) if 'sr' in key else .5
        made += [train(key, **dict(ratio=ratio) | more.get(key, {}) | dict(seed=s)) for s in seeds]
        if key not in shape: continue
        for s in seeds:
            shown = range(4) if (key, s) == ('v1_sr0.5', 0) else ()
            examples = [example(n, reconstruction=True) for n in shown]
            made.append(evaluated(key, ratio, s, *shape[key], examples=examples))
    for key, params, box in (('no_vit', ABLATIONS['no_vit'], 30.1), ('benchmarking', BASELINE, 36.4)):
        made += [train(key, **params | dict(seed=s)) for s in seeds]
        made += [evaluate(key, [row(1., box + .3*s, .8*box)], seed=s) for s in seeds]
    return made

def write(records, folder):
    "Write records as `<folder>/<profile>/<name>.json`."
    for r in records: write_json(f'{folder}/{r["profile"]}/{r["name"]}.json', r)

# --- the smallest study: a model trained with two seeds and evaluated, and one that was trained only ---

def toy_record(kind, name, params, metrics):
    "A record of it."
    data = dict(name='made up', images=dict(train=60, val=5), categories=3)
    return make_record(kind, 'demo', name=name, params=params, metrics=metrics, started=time.time(), dataset=data)

def toy_training(model, ratio, seed=0, **more):
    "One training."
    params = dict(model=model, recipe='mimdet_toy_v1', backbone='mimdet', size='toy', sample_ratio=ratio,
                  fill='mask_token', decoder_depth=2, strategy='random', initialisation='mae',
                  iterations=10, batch=2, lr=1e-3, seed=seed) | more
    metrics = dict(total_loss=1.0, parameters=3_200_000)
    return toy_record('train', f'train_{model}_seed{seed}', params, metrics)

def toy_row(ratio, box, mask, seed=0, c4='decoder', samples=1):
    "AP at one setting."
    def aps(ap): return dict(AP=ap, AP50=2*ap)
    return dict(ratio=ratio, strategy='random', seed=seed, c4=c4, samples=samples, bbox=aps(box),
                segm=aps(mask), images=5, seconds=1.)

def toy_evaluation(seed, plus):
    "The evaluation of a training, `plus` AP better than another."
    rows = [
        toy_row(.5, 30 + plus, 25),
        toy_row(.5, 31 + plus, 26, seed=1),
        toy_row(1., 33 + plus, 27),
        toy_row(.02, 29, 24),
        toy_row(.5, 20, 18, c4='stem'),
        toy_row(.5, 32 + plus, 27, samples=2),
    ]
    agreement = dict(ratio=.5, seeds=2, always=.5, sometimes=.2, never=.3, score_sd=.04, found_sd=.01)
    variance = [dict(ratio=.02, share=.8), dict(ratio=.5, share=.2)]
    metrics = dict(rows=rows, c4_variance=variance, sampling=[agreement])
    params = dict(train=f'train_half_seed{seed}', seed=0)
    return toy_record('evaluate', f'evaluate_half_seed{seed}', params, metrics)

def toy_records():
    "Its records."
    trainings = [toy_training('half', .5), toy_training('half', .5, seed=1), toy_training('quarter', .25)]
    return [*trainings, toy_evaluation(0, 0), toy_evaluation(1, 2)]

def toy_cost():
    "What its network costs."
    def row(ratio, height):
        return dict(recipe='mimdet_toy_v1', mode='forward', ratio=ratio, height=height, width=height,
                    batch=1, seconds=[.1], flops=dict(encoder=ratio*4e9, decoder=1e9, total=9e9))
    rows = [row(r, side) for r in (.5, 1.) for side in (64, 128)]
    return toy_record('cost', 'cost', dict(seed=0), dict(rows=rows))

# --- the smallest data set ---

TRIANGLE = [20, 70, 60, 70, 40, 20]

def toy_dataset(folder):
    """Two images, two categories, a polygon, run lengths and a crowd region; returns the JSON file and the folder of
    images."""
    json, images = Path(folder)/'toy.json', Path(folder)/'toy'
    images.mkdir()
    picture = Image.new('RGB', (128, 96), 'olive')
    draw = ImageDraw.Draw(picture)
    draw.polygon(TRIANGLE, fill='orange')
    draw.ellipse((80, 25, 120, 65), fill='navy')
    picture.save(images/'a.png')
    Image.new('RGB', (96, 128), 'teal').save(images/'b.png')
    distance = np.hypot(*np.mgrid[-45:51, -100:28]) # (96, 128)
    disc = rle.encode(np.asfortranarray(distance < 20, dtype=np.uint8))
    disc = dict(size=disc['size'], counts=disc['counts'].decode())
    def row(id, category_id, bbox, segmentation, iscrowd=0):
        return dict(id=id, image_id=1, category_id=category_id, bbox=bbox, area=bbox[2]*bbox[3],
                    segmentation=segmentation, iscrowd=iscrowd)
    write_json(json, dict(
        images=[dict(id=1, file_name='a.png', width=128, height=96),
                dict(id=7, file_name='b.png', width=96, height=128)],
        categories=[dict(id=3, name='triangle'), dict(id=9, name='disc')],
        annotations=[row(1, 3, [20, 20, 40, 50], [TRIANGLE]),
                     row(2, 9, [81, 26, 39, 39], disc),
                     row(3, 9, [0, 86, 128, 10], dict(size=[96, 128], counts=[86, 10]*128), iscrowd=1)]))
    return json, images
