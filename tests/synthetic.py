"""Synthetic run records: made-up numbers and pictures for tests and for developing figures. Never a result; never written to results/."""
import io, time
import numpy as np
from PIL import Image
from pycocotools import mask as rle
from mimdet.core import encode_bytes, make_record, rng_for, write_json

COLOURS = dict(apple=(214, 60, 50), banana=(238, 200, 60), bus=(90, 120, 210), cat=(235, 150, 60), dog=(150, 100, 70), pizza=(225, 170, 90))
DATASET = dict(name='Emoji-COCO', images=dict(train=6000, val=500), categories=10, sha256=dict(train='a'*64, val='b'*64))
FIXED = dict(date='2026-01-02T03:04:05+00:00', git=dict(commit='0123456789abcdef', dirty=False), versions={'python': '3.11.0'}, wall_seconds=60.0, peak_memory_mb=1000,
             hardware=dict(device='cpu', cpu='Synthetic CPU', cores=2))
PARTS = dict(loss_cls=.55, loss_box_reg=.45, loss_mask=.65, loss_rpn_cls=.25, loss_rpn_loc=.3)
SIZE, TOKEN = 128, 16

def record(kind, name, params, metrics, profile='quick', **extra):
    "A record as `make_record` makes it, with its provenance made up."
    return make_record(kind, profile, name, params, metrics, time.time(), DATASET, **extra) | FIXED

def train(name, ratio=.5, seed=0, fill='mask_token', initialisation='mae', steps=400, **params):
    "A training run with made-up curves."
    iterations, rng = np.arange(20, steps + 1, 20), rng_for('synthetic', name)
    decay = np.exp(-3*iterations/steps)
    losses = {k: (level*(.35 + .65*decay)*rng.normal(1, .06, len(decay))).round(4).tolist() for k, level in PARTS.items()}
    curves = dict(iteration=iterations.tolist(), total_loss=np.sum(list(losses.values()), 0).round(4).tolist(), lr=(2e-3*decay).tolist(), **losses)
    params = dict(recipe='mimdet_tiny_v1', sample_ratio=ratio, seed=seed, fill=fill, strategy='random', initialisation=initialisation, iterations=steps, batch=8, lr=2e-3) | params
    return record('train', name, params, dict(total_loss=curves['total_loss'][-1], seconds_per_iteration=.3, parameters=4_000_000), curves=curves)

def row(ratio, box, mask, seed=0, c4='decoder', strategy='random'):
    "One evaluation: only box and mask AP are given, the other APs follow by a made-up rule."
    aps = lambda ap: dict(AP=ap, AP50=None if ap is None else min(100, ap*1.75), AP75=ap, APs=None, APm=ap, APl=ap, per_category=dict(cat=ap))
    return dict(ratio=ratio, strategy=strategy, seed=seed, c4=c4, bbox=aps(box), segm=aps(mask), images=500, seconds=20.0)

def evaluate(trained, rows, examples=(), **params):
    "The evaluation of the training run named `trained`."
    return record('evaluate', f'evaluate_{trained}', dict(train=trained, seed=0) | params, dict(rows=rows), examples=list(examples))

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
        inside = (x - cx)**2 + (y - cy)**2 < r*r if rng.random() < .6 else (abs(x - cx) < r) & (abs(y - cy) < r*.8)
        objects = [(c, m & ~inside) for c, m in objects] + [(str(category), inside)]
        pixels[inside] = np.array(COLOURS[str(category)]) + rng.normal(0, 14, (int(inside.sum()), 1))
    return pixels.clip(0, 255).astype('uint8'), [(c, m) for c, m in objects if m.sum() > 40]

def annotation(category, mask, **more):
    "A mask as an entry of `ground_truth` or `predictions`."
    code = rle.encode(np.asfortranarray(mask, dtype='uint8'))
    return dict(category=category, bbox=[float(v) for v in rle.toBbox(code)], segmentation=dict(size=[int(v) for v in code['size']], counts=code['counts'].decode())) | more

def example(number, ratios=(.25, .5, .75, 1.)):
    "One example image with made-up predictions that get better with the ratio."
    pixels, objects = scene(number)
    rows, views = SIZE//TOKEN, []
    for ratio in ratios:
        rng = rng_for('view', number, ratio)
        kept = sorted(rng.permutation(rows*rows)[:int(rows*rows*ratio)].tolist())
        found = [annotation(c, np.roll(m, (rng.integers(-6, 7, 2)*(1.1 - ratio)).astype(int), (0, 1)), score=float(rng.uniform(.4, .99))) for c, m in objects if rng.random() < .55 + .45*ratio]
        views.append(dict(ratio=ratio, kept=kept, predictions=found))
    return dict(image_id=number, image=picture(pixels), height=SIZE, width=SIZE, grid=[rows, rows], ground_truth=[annotation(*o) for o in objects], views=views)

def pretrain(name='mae', steps=600, seed=0):
    "A pre-training run with made-up curves and three examples."
    iterations, rng = np.arange(10, steps + 1, 10), rng_for('synthetic', name)
    loss = (.45 + .55*np.exp(-5*iterations/steps) + rng.normal(0, .015, len(iterations))).round(4).tolist()
    examples = []
    for number in range(5):
        pixels, _ = scene(100 + number)
        hidden = np.kron(rng.random((SIZE//TOKEN, SIZE//TOKEN)) < .75, np.ones((TOKEN, TOKEN))).astype(bool)
        blurred = np.asarray(Image.fromarray(pixels).resize((SIZE//TOKEN*2,)*2, Image.BOX).resize((SIZE, SIZE), Image.BICUBIC))
        examples.append(dict(image=picture(pixels), masked=picture(np.where(hidden[..., None], 127, pixels).astype('uint8')),
                             reconstruction=picture(np.where(hidden[..., None], blurred, pixels).astype('uint8'))))
    params = dict(steps=steps, batch=64, mask_ratio=.75, lr=1.5e-3, seed=seed)
    return record('pretrain', name, params, dict(loss=loss[-1], images_per_second=200.0), curves=dict(iteration=iterations.tolist(), loss=loss, lr=[1e-3]*len(loss)), examples=examples)

def study(seeds=(0, 1, 2)):
    "A whole made-up profile: four trainings, one without its evaluation."
    def rows(at_one, slope, probe, stem):
        boxes = {r: at_one - slope*(1 - r) for r in (.25, .5, .75, 1.)}
        return ([row(r, b + .3*s*(r < 1), .82*b + .2*s*(r < 1), seed=s) for r, b in boxes.items() for s in (seeds if r < 1 else seeds[:1])]
                + [row(.02, probe, .82*probe), row(.5, stem, .8*stem, c4='stem')])
    return [pretrain(), train('v1_sr0.25', .25), train('v1_sr0.5', .5), train('v2_sr0.5', .5, fill='stem'), train('v1_sr0.5_random', .5, initialisation='random'),
            evaluate('v1_sr0.25', rows(36.0, 3, 30.2, 21.5)), evaluate('v1_sr0.5', rows(38.4, 8, 24.1, 19.7), [example(n) for n in range(4)]),
            evaluate('v2_sr0.5', rows(37.1, 1.2, 36.0, 33.9))]

def write(records, folder):
    "Write records as `<folder>/<profile>/<name>.json`."
    for r in records: write_json(f'{folder}/{r["profile"]}/{r["name"]}.json', r)
