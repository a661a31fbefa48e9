"""Files damaged at random: each is read, or refused in one line. MIMDET_FUZZ=10 tries ten times as many."""
import contextlib, copy, io, json, os, struct
import numpy as np
import pytest, torch
from mimdet.data import augment, datasets # as modules: pytest takes names that begin with Test for tests
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import save_file
from mimdet.data.coco import check_objects, contents, read_coco, repaired
from mimdet.base.core import MimdetError, write_json
from mimdet.data.images import read_image
from mimdet.weights.files import read_weights
from test_data import make

def fuzz(examples):
    "So many examples, the same ones at each run."
    times = int(os.environ.get('MIMDET_FUZZ', 1))
    return settings(max_examples=examples*times, derandomize=True, database=None, deadline=None,
                    suppress_health_check=[*HealthCheck])

@contextlib.contextmanager
def one_line():
    "What is refused inside the block is refused in one line."
    try: yield
    except MimdetError as e: assert '\n' not in str(e), str(e)

def tried(counts):
    "Both ends were met; `pytest -s` shows how often."
    print(counts)
    assert min(counts.values()) > sum(counts.values())/25, f'{counts}: one of the two is hardly tried'

# Annotations

LARGE = 2**31, 2**63, 10**40, -2**70, 1e308, float('inf')
NUMBERS = st.integers(-3, 200) | st.sampled_from([*LARGE, -1e-300, .5, float('nan'), -0.])
NUMERALS = '0', '7', '1.5', ' 3 ', '-2', 'nan', 'inf', '١', '1e400', '9'*400, '1_2'
TEXTS = st.text(max_size=5) | st.sampled_from([*NUMERALS, '\ud800', '..', '/', 'a\0b', '1.png', 'images/2.png'])
PLAIN = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
                      max_leaves=6)
WAYS = ['replace', 'remove', 'twice', 'wrap', 'text', 'swap', 'grow', 'key']
ENCODINGS = st.sampled_from(['utf-8']*60 + ['utf-8-sig', 'utf-16', 'utf-32', 'latin-1'])

def damage(coco, draw):
    "Change one thing somewhere, mostly in the objects; one of their fields is as likely as a number in an outline."
    if not coco: return
    parent, last = coco, draw(st.sampled_from([*coco] + ['annotations']*9*('annotations' in coco)))
    while isinstance(parent[last], (dict, list)) and parent[last] and draw(st.integers(0, 9)):
        parent = parent[last]
        last = draw(st.sampled_from([*parent] if isinstance(parent, dict) else range(len(parent))))
    way, value = draw(st.sampled_from(WAYS)), parent[last]
    if way == 'replace': parent[last] = draw(VALUES)
    elif way == 'remove': del parent[last]
    elif way == 'twice' and isinstance(parent, list): parent.append(copy.deepcopy(value))
    elif way == 'wrap': parent[last] = draw(st.sampled_from([[value], {'a': value}, [[value]]]))
    elif way == 'text': parent[last] = str(value)
    elif way == 'swap':
        beside = parent.values() if isinstance(parent, dict) else parent
        parent[last] = copy.deepcopy(draw(st.sampled_from([coco, *beside])))
    elif way == 'grow' and type(value) in (int, float):
        parent[last] = value*draw(st.sampled_from([-1, 0, 1.5, 3, 1000]))
    elif way == 'key' and isinstance(parent, dict): parent[draw(TEXTS)] = parent.pop(last)

@st.composite
def damaged_annotations(draw, good):
    "Bytes of a file."
    coco = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))): damage(coco, draw)
    encoding = draw(ENCODINGS)
    text = json.dumps(coco, ensure_ascii=draw(st.booleans()))
    content = text.encode(encoding, 'replace' if encoding == 'latin-1' else 'surrogatepass')
    if draw(st.integers(0, 29)): return content
    cut = draw(st.integers(0, len(content)))
    return content[:cut] + draw(st.binary(max_size=4)) + content[cut + draw(st.integers(0, 30)):]

def used(reading, folder):
    "Use annotations as training and evaluation do: detectron2's mapper, and pycocotools with a perfect result."
    numbers = {c['id']: n for n, c in enumerate(sorted(reading.coco['categories'], key=lambda c: c['id']))}
    for record in datasets.records_of(reading.coco, folder, reading.masks, numbers):
        with one_line(): # a picture may not fit
            augment.TrainMapper(augment.train_augmentation(short_edges=(24,)), reading.masks)(record)
            augment.TestMapper(augment.test_augmentation(24, 64))(record)
    try: check_objects(reading)
    except MimdetError: return
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(reading.coco)
        truth.createIndex()
        kinds = ['bbox', 'segm'] if reading.masks else ['bbox']
        for kind in kinds:
            key = 'segmentation' if kind == 'segm' else 'bbox'
            found = [dict(image_id=a['image_id'], category_id=a['category_id'], score=.5) |
                     {key: truth.annToRLE(a) if kind == 'segm' else a['bbox']}
                     for a in truth.dataset['annotations'] if not a['iscrowd']]
            scores = COCOeval(truth, truth.loadRes(found), kind)
            scores.evaluate(); scores.accumulate(); scores.summarize()

@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp('toy')
    coco = make(folder, [(32, 24), (24, 32), (30, 30), (20, 36), (40, 16)])
    for a in coco['annotations'][::2]: a |= dict(attributes=dict(occluded=False, depth=.5), score=1.)
    for a in coco['annotations'][::3]: a['segmentation'].append([2, 2, 9, 2, 9, 9])
    for c in coco['categories']: c['supercategory'] = 'thing'
    return coco, folder

def test_annotations(toy):
    good, folder = toy
    counts = dict(read=0, refused=0)

    @fuzz(2000)
    @given(damaged_annotations(good))
    def check(content):
        path = folder/'damaged.json'
        path.write_bytes(content)
        counts['refused'] += 1
        try: reading = read_coco(path, folder/'images')
        except MimdetError as e:
            assert '\n' not in str(e)
            return
        counts['refused'] -= 1; counts['read'] += 1
        str(reading.report), reading.report.digest, contents(reading)
        used(reading, folder/'images')
        write_json(folder/'repaired.json', repaired(reading))
        assert not read_coco(folder/'repaired.json', folder/'images').report.lines, 'the clean form is clean'

    check()
    tried(counts)

# Pictures

def good_pictures():
    "A picture in each of many formats."
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.fromarray(rng.integers(0, 2**16, (20, 30), dtype=np.uint16))
    options = dict(JPEG=dict(exif=exif), TIFF=dict(compression='tiff_lzw'))
    for format in ('JPEG', 'PNG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'JPEG2000', 'PPM', 'TGA', 'ICO', 'AVIF'):
        with io.BytesIO() as f:
            try: colour.save(f, format, **options.get(format, {}))
            except (KeyError, OSError): continue # a format that this Pillow lacks
            yield f.getvalue()
    floats = Image.fromarray(rng.random((20, 30), dtype=np.float32))
    for image, format in ((wide, 'PNG'), (wide, 'TIFF'), (floats, 'TIFF'), (colour.convert('P'), 'PNG')):
        with io.BytesIO() as f:
            image.save(f, format)
            yield f.getvalue()

@st.composite
def damaged_bytes(draw, files):
    "One of some files, with a few bytes changed, taken out, put in or cut off; more often near its beginning."
    content = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, min(len(content), 120) if draw(st.booleans()) else len(content)))
        way = draw(st.sampled_from(['change']*6 + ['out', 'in', 'cut', 'number']))
        if way == 'change': content[at:at + 1] = bytes([draw(st.integers(0, 255))])
        elif way == 'out': del content[at:at + draw(st.integers(1, 40))]
        elif way == 'in': content[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif way == 'cut': del content[at:]
        else: content[at:at + 4] = struct.pack(draw(st.sampled_from('<>')) + 'I', draw(st.integers(0, 2**32 - 1)))
    return bytes(content)

@pytest.mark.filterwarnings('ignore::UserWarning:PIL')
def test_pictures(tmp_path):
    counts = dict(read=0, refused=0)

    @fuzz(500)
    @given(damaged_bytes([*good_pictures()]))
    def check(content):
        (tmp_path/'x').write_bytes(content)
        with one_line():
            counts['refused'] += 1
            pixels = read_image(tmp_path/'x')
            counts['refused'] -= 1; counts['read'] += 1
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3

    check()
    tried(counts)

# Weights

def good_weights(folder):
    "The same weights as a file of each kind."
    weights = dict(a=torch.arange(6.).reshape(2, 3), b=torch.ones(3, dtype=torch.bfloat16))
    torch.save(dict(model=weights, epoch=3), folder/'zip.pth')
    torch.save(dict(model=weights, epoch=3), folder/'old.pth', _use_new_zipfile_serialization=False)
    save_file(weights, folder/'plain.safetensors')
    return [(folder/name).read_bytes() for name in ('zip.pth', 'old.pth', 'plain.safetensors')]

def test_weights(tmp_path):
    counts = dict(read=0, refused=0)

    @fuzz(200)
    @given(damaged_bytes(good_weights(tmp_path)), st.sampled_from(['x.pth', 'x.safetensors', 'x.bin']))
    def check(content, name):
        (tmp_path/name).write_bytes(content)
        with one_line():
            counts['refused'] += 1
            found = read_weights(tmp_path/name)
            counts['refused'] -= 1; counts['read'] += 1
            assert all(isinstance(v, torch.Tensor) for v in found.values())

    check()
    tried(counts)

TENSORS = st.sampled_from([
    torch.ones(2), torch.zeros(0), torch.tensor(3), torch.ones(2, dtype=torch.complex64), torch.ones(2, 2).to_sparse(),
    torch.ones(2, dtype=torch.bool), torch.nn.Parameter(torch.ones(1)), torch.full((2,), float('nan')),
    torch.ones(2, dtype=torch.float8_e4m3fn), np.ones(3), np.float64(2.)])
NAMES = st.sampled_from(['module.a', 'model.a', '_orig_mod.b', 'a', 'a.b', 'stem.x', 'epoch', ''])
HOLDERS = st.sampled_from(['model', 'state_dict', 'model_ema', 'optimizer']) | NAMES | st.integers(0, 3) | st.none()
TREES = st.recursive(
    PLAIN | TENSORS, lambda inner: st.dictionaries(HOLDERS, inner, max_size=4) | st.lists(inner, max_size=3),
    max_leaves=8)
NAMED = st.dictionaries(NAMES, TENSORS, min_size=1, max_size=4)

def test_weights_in_any_tree(tmp_path):
    counts = dict(read=0, refused=0)

    @fuzz(300)
    @given(TREES | NAMED | st.dictionaries(HOLDERS, NAMED | TREES, min_size=1, max_size=3))
    def check(tree):
        torch.save(tree, tmp_path/'x.pth')
        with one_line():
            counts['refused'] += 1
            found = read_weights(tmp_path/'x.pth')
            counts['refused'] -= 1; counts['read'] += 1
            assert found and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in found.items())

    check()
    tried(counts)
