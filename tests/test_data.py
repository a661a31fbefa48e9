"""COCO-format data sets: what is refused and how, odd images, the augmentation, and a stream that restarts and workers
cannot change."""
import copy, io, os, pickle, sys, time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from pycocotools import mask as mask_api
from mimdet.data import augment, datasets, stream # as modules: pytest takes names that begin with test for tests
from mimdet.data.coco import read_coco, run_lengths
from mimdet.base.core import MimdetError, project_root, write_json, write_text

SIZES = [(64, 48), (48, 64), (64, 48), (50, 50), (64, 40), (40, 64), (64, 48)]

def packed(mask):
    rle = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))
    return dict(size=rle['size'], counts=rle['counts'].decode())

def blob(width, height):
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[10:30, 5:25] = 1
    return mask

def make(folder, sizes=SIZES):
    "A data set of one polygon, one mask and one crowd region per image but the last, which is empty."
    (folder/'images').mkdir()
    coco = dict(images=[], annotations=[], categories=[dict(id=9, name='disc'), dict(id=3, name='box')])
    for n, (width, height) in enumerate(sizes, 1):
        noise = np.random.default_rng(n).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder/f'images/{n}.png')
        coco['images'].append(dict(id=n*10, file_name=f'{n}.png', width=width, height=height))
        if n == len(sizes): continue
        common = dict(image_id=n*10, area=100, iscrowd=0)
        polygon = [[20, 5, 35, 5, 35, 25, 20, 25]]
        stripe = dict(size=[height, width], counts=[0, 2] + [height - 2, 2]*(width - 1) + [height - 2])
        coco['annotations'] += [
            common | dict(id=3*n, category_id=3, bbox=[20, 5, 15, 20], segmentation=polygon),
            common | dict(id=3*n+1, category_id=9, bbox=[5, 10, 20, 20], segmentation=packed(blob(width, height))),
            common | dict(id=3*n+2, category_id=9, bbox=[0, 0, width, 2], segmentation=stripe, iscrowd=1)]
    write_json(folder/'a.json', coco)
    return coco

@pytest.fixture
def toy(tmp_path): return make(tmp_path)

@pytest.fixture
def records(tmp_path, toy):
    return datasets.register(f'toy {tmp_path}', tmp_path/'a.json', images=tmp_path/'images').records

def check(tmp_path, coco, **options):
    write_json(tmp_path/'b.json', coco) if not isinstance(coco, str) else write_text(tmp_path/'b.json', coco)
    return datasets.check_dataset(tmp_path/'b.json', tmp_path/'images', **options)

def test_a_good_one_passes(tmp_path, toy):
    summary = check(tmp_path, toy, decode=True)
    expected = dict(images=7, annotations=18, categories=['box', 'disc'], crowd=6, empty_images=1,
                    flat_boxes=0, masks=True)
    assert {k: summary[k] for k in expected} == expected

# What is put where, and what becomes of it. None removes a field.
A, I, C = 'annotations', 'images', 'categories'

def changed(coco, place, value):
    *path, last = place
    target = coco
    for key in path: target = target[key]
    if value is None: del target[last]
    else: target[last] = value
    return coco

CANNOT = [ # and what the complaint says
    ((A,), None, "no list 'annotations'"),
    ((I,), None, "no list 'images'"),
    ((C,), None, "no list 'categories'"),
    ((I,), {}, "'images' is an object"),
    ((A,), {'1': {}}, 'make it a list of its values'),
    ((A,), 'x', 'is not a list'),
    ((I,), [], "'images' is empty"),
    ((C,), [], "'categories' is empty"),
    ((A, 0), 7, r'annotations\[0\]'),
    ((A, 0, 'image_id'), None, 'image_id is not in the file'),
    ((A, 0, 'category_id'), None, 'category_id is not in the file'),
    ((A, 0, 'bbox'), None, 'objects without a box'),
    ((I, 1, 'id'), None, r'images\[1\]'),
    ((C, 1, 'id'), None, r'categories\[1\]'),
    ((C, 1, 'name'), None, 'name must be text'),
    ((I, 1, 'file_name'), None, 'file_name must be text'),
    ((I, 1, 'width'), None, 'image 20 .*whole numbers'),
    ((I, 1, 'height'), None, 'image 20'),
    ((I, 1, 'id'), 10, 'id 10'),
    ((A, 1, 'id'), 3, 'id 3'),
    ((C, 1, 'id'), 9, 'id 9'),
    ((I, 1, 'id'), [1], r'images\[1\]'),
    ((C, 1, 'id'), {}, r'categories\[1\]'),
    ((I, 1, 'width'), 0, 'image 20'),
    ((I, 1, 'height'), 4.5, 'image 20'),
    ((I, 1, 'width'), -1, 'image 20'),
    ((I, 1, 'file_name'), 5, 'image 20'),
    ((A, 0, 'image_id'), 99, 'annotation 3: 99'),
    ((A, 0, 'category_id'), 4, 'annotation 3: 4'),
    ((A, 0, 'category_id'), [3], 'annotation 3'),
    ((A, 0, 'image_id'), [1], 'annotation 3'),
    ((A, 0, 'iscrowd'), 2, 'neither 0 nor 1'),
    ((A, 0, 'iscrowd'), 'no', 'neither 0 nor 1'),
    ((A, 0, 'ignore'), 1, '"ignore"'),
    ((A, 0, 'area'), 'large', 'area'),
    ((A, 0, 'area'), -3, 'area'),
    *[((A, 0, 'bbox'), box, "annotation 3 of '1.png'.*") for box in (
        [5, 5, -3, 4], [5, 5, 4], [], [5, 5, 'x', 4], '5544', [5, 5, True, 4], {}, 7)],
    ((A, 0, 'segmentation'), [5, 6, 7, 8, 9, 10], 'wrap the polygon in a list'),
    ((I, 1, 'width'), 10**9, 'images of more than 250,000,000 pixels.*image 20'),
    ((I, 2, 'file_name'), 'missing.png', "'missing.png'"),
]

@pytest.mark.parametrize('place, value, complaint', CANNOT,
                         ids=[f'{n}-{c[-30:]}' for n, (_, _, c) in enumerate(CANNOT)])
def test_what_cannot_be_used(tmp_path, toy, place, value, complaint):
    with pytest.raises(MimdetError, match=complaint) as e: check(tmp_path, changed(toy, place, value))
    assert '\n' not in str(e.value) and 'b.json cannot be used: ' in str(e.value)

LEFT_OUT = [
    ([[1, 2, 3, 4, 5]], 'three points'),
    ([[1, 2, 3, 4]], 'three points'),
    ([], 'without an outline'),
    (None, 'without an outline'),
    ([[1, 2, 'x', 4, 5, 6]], 'three points'),
    ([[1, 2, 3, 4, 1e9, 6]], 'in reach of their image'),
    ('mask', 'neither polygons'),
    (dict(size=[48, 64]), 'do not add up'),
    (packed(blob(48, 64)), 'another size'),
    (dict(size=[48, 64], counts=[5, 5]), 'do not add up'),
    (dict(size=[48, 64], counts='zz'), 'do not add up'),
    (dict(size=[48, 64], counts=packed(blob(64, 48))['counts'][:-3]), 'do not add up'),
    (dict(size=[48, 64], counts='x\n'), 'do not add up'),
    (dict(size=[48, 64], counts=None), 'do not add up'),
    (packed(blob(64, 50)) | dict(size=[48, 64]), 'do not add up'),
    (dict(size=[48, 64], counts=[-1, 48*64 + 1]), 'do not add up'),
]

@pytest.mark.parametrize('outline, what', LEFT_OUT, ids=str)
def test_an_object_with_a_damaged_outline_is_left_out(tmp_path, toy, outline, what):
    assert check(tmp_path, changed(toy, (A, 0, 'segmentation'), outline))['annotations'] == 17
    line, = read_coco(tmp_path/'b.json', tmp_path/'images').report.lines
    assert (line.finding.kind, line.count) == ('left out', 1)
    assert what in line.finding.what and "annotation 3 of '1.png'" in line.places[0]
    with pytest.raises(MimdetError, match=what): check(tmp_path, toy, strict=True)

def test_more_than_a_tenth_left_out_is_too_much(tmp_path, toy):
    for n in (0, 3): changed(toy, (A, n, 'segmentation'), [])
    complaint = 'more than 10% of the objects would be left out .2 of 18.: correct'
    with pytest.raises(MimdetError, match=complaint): check(tmp_path, toy)

def test_nothing_to_learn_from(tmp_path, toy):
    for a in toy[A]: a['iscrowd'] = 1
    write_json(tmp_path/'b.json', toy)
    with pytest.raises(MimdetError, match='all 18 objects are crowd: .*set iscrowd to 0'):
        datasets.register(f'crowd {tmp_path}', tmp_path/'b.json', images=tmp_path/'images')
    write_json(tmp_path/'c.json', toy | dict(annotations=[]))
    with pytest.raises(MimdetError, match='has no objects'):
        datasets.register(f'empty {tmp_path}', tmp_path/'c.json', images=tmp_path/'images')
    assert datasets.register(f'empty {tmp_path}', tmp_path/'c.json', images=tmp_path/'images', objects=False).records

def test_one_file_for_two_images(tmp_path, toy):
    first = toy['images'][0]
    with pytest.raises(MimdetError, match='images that share a file'):
        check(tmp_path, changed(toy, (I, 1, 'file_name'), first['file_name']))

def test_outlines_elsewhere_are_left_out(tmp_path, toy):
    x, y, width, height = toy['annotations'][0]['bbox']
    toy['annotations'][0]['segmentation'] = [[x + width + 3, y, x + width + 5, y, x + width + 3, y + 9]]
    assert check(tmp_path, toy)['annotations'] == 17
    assert 'outlines that do not touch their box' in str(read_coco(tmp_path/'b.json').report)

def test_outlines_as_fractions(tmp_path, toy):
    for a in toy['annotations']: a['segmentation'] = [[.1, .1, .2, .1, .1, .2]]
    with pytest.raises(MimdetError, match='outlines that are fractions of their image'): check(tmp_path, toy)

def test_a_box_wholly_outside_is_left_out(tmp_path, toy):
    assert check(tmp_path, changed(toy, (A, 0, 'bbox'), [70, 5, 3, 3]))['annotations'] == 17

@pytest.mark.parametrize('box, cut', [
    ([50, 5, 20, 20], [50, 5, 14, 20]),
    ([-5, 5, 20, 20], [0, 5, 15, 20]),
    ([5, 30, 20, 25], [5, 30, 20, 18]),
    ([5, -2, 20, 20], [5, 0, 20, 18]),
], ids=str)
def test_a_box_over_the_edge_is_cut_off(tmp_path, toy, box, cut):
    x, y, width, height = box
    toy = changed(toy, (A, 0, 'segmentation'), [[x, y, x + width, y, x, y + height]])
    check(tmp_path, changed(toy, (A, 0, 'bbox'), box))
    reading = read_coco(tmp_path/'b.json')
    assert reading.coco['annotations'][0]['bbox'] == cut
    assert [line.finding.kind for line in reading.report.lines] == ['taken']

TAKEN = [
    ((A, 0, 'id'), 0),
    ((A, 0, 'id'), None),
    ((A, 0, 'id'), '3'),
    ((A, 0, 'id'), 'x'),
    ((A, 0, 'id'), 3.0),
    ((A, 0, 'area'), None),
    ((A, 0, 'area'), '100'),
    ((A, 0, 'iscrowd'), None),
    ((A, 0, 'iscrowd'), '0'),
    ((A, 0, 'iscrowd'), 0.0),
    ((A, 0, 'iscrowd'), False),
    ((A, 0, 'image_id'), '10'),
    ((A, 0, 'category_id'), 3.0),
    ((A, 0, 'bbox'), ['20', '5.0', 15, 20]),
    ((I, 1, 'width'), '48'),
    ((I, 1, 'height'), 64.0),
    ((C, 1, 'name'), 7),
    ((C, 1, 'id'), '3'),
    ((A, 0, 'segmentation'), [['20', '5', '35', '5', '35', '25', '20', '25']]),
]

@pytest.mark.parametrize('place, value', TAKEN, ids=str)
def test_what_was_meant_is_taken(tmp_path, toy, place, value):
    """The clean form is that of the good file, but for ids that had to be given anew, areas that had to be derived,
    and a name that is another."""
    good = copy.deepcopy(toy)
    check(tmp_path, changed(toy, place, value))
    reading = read_coco(tmp_path/'b.json')
    assert [line.finding.kind for line in reading.report.lines] == ['taken']
    assert reading.report.summary.startswith(f'{tmp_path/"b.json"}: 1 thing taken as intended (')
    if place[0] == A and place[-1] in ('area', 'id'): derived = {'area', 'id'}
    else: derived = {'name'} if place[-1] == 'name' else set()
    def without(entry): return {k: v for k, v in entry.items() if k not in derived | {'own_id'}}
    def plain(coco): return {kind: [without(entry) for entry in coco[kind]] for kind in (A, I, C)}
    assert plain(reading.coco) == plain(good)
    ids = [a['id'] for a in reading.coco[A]]
    assert all(type(v) is int and v for v in ids) and len({*ids}) == 18
    with pytest.raises(MimdetError, match='taken: '): check(tmp_path, toy, strict=True)

def test_a_good_file_is_passed_on_as_it_is(tmp_path, toy):
    reading = read_coco(tmp_path/'a.json', tmp_path/'images')
    assert reading.coco == toy and reading.report.lines == [] and reading.report.summary == ''

def test_everything_is_told_at_once(tmp_path, toy):
    changed(toy, (A, 0, 'bbox'), [1])
    changed(toy, (A, 1, 'category_id'), 77)
    changed(toy, (I, 2, 'file_name'), 'gone.png')
    changed(toy, (C, 0, 'name'), [])
    with pytest.raises(MimdetError) as e: check(tmp_path, toy)
    words = ('four finite numbers', '77', 'gone.png', 'name must be text')
    assert all(word in str(e.value) for word in words)

def test_records_are_those_of_detectron2(tmp_path, toy):
    from detectron2.data.datasets import load_coco_json
    toy['annotations'][0]['segmentation'].append([1, 2, 3, 4])
    write_json(tmp_path/'a.json', toy)
    ours = datasets.register(f'ours {tmp_path}', tmp_path/'a.json', images=tmp_path/'images').records
    assert ours == load_coco_json(str(tmp_path/'a.json'), str(tmp_path/'images'), f'theirs {tmp_path}')

@pytest.mark.parametrize('text, complaint', [
    ('{"images": [', 'b.json is not JSON'),
    ('', 'is not JSON'),
    ('[]', 'not in COCO format.*a list'),
    ('3', 'not in COCO format'),
    ('['*100000, 'is not JSON'),
])
def test_what_is_not_json_or_not_an_object(tmp_path, toy, text, complaint):
    with pytest.raises(MimdetError, match=complaint): check(tmp_path, text)

@pytest.mark.parametrize('value', ['NaN', 'Infinity', '1e999'])
def test_numbers_that_are_not_finite(tmp_path, toy, value):
    text = (tmp_path/'a.json').read_text().replace('"bbox": [\n    20,', f'"bbox": [\n    {value},', 1)
    assert value in text
    with pytest.raises(MimdetError, match='four finite numbers'): check(tmp_path, text)

def test_missing_json_and_folder(tmp_path, toy):
    with pytest.raises(MimdetError, match='no such file'):
        datasets.check_dataset(tmp_path/'c.json', tmp_path/'images')
    with pytest.raises(MimdetError, match='is not a folder'):
        datasets.check_dataset(tmp_path/'a.json', tmp_path/'pictures')

@pytest.mark.parametrize('box', [[-1, -1, 10, 10], [0, 0, 64.5, 48.9], [5.25, 5.5, 0, 10]], ids=str)
def test_rounding_and_flat_boxes_pass(tmp_path, toy, box):
    x, y, width, height = box
    toy['annotations'][0] |= dict(bbox=box, segmentation=[[x, y, x + width, y, x, y + height]])
    assert check(tmp_path, toy)['flat_boxes'] == (box[2] == 0)

def test_run_lengths_are_read_as_pycocotools_writes_them():
    rng = np.random.default_rng(0)
    for n in range(50):
        shape = (rng.integers(1, 90), rng.integers(1, 90))
        mask = np.asfortranarray(rng.random(shape) < rng.random(), dtype=np.uint8)
        flat = mask.ravel(order='F').astype(int)
        edges = np.flatnonzero(np.diff(flat, prepend=0))
        lengths = np.diff(edges, prepend=0, append=flat.size).tolist()
        assert run_lengths(mask_api.encode(mask)['counts'].decode()) == lengths

def test_short_polygons_beside_a_proper_one_pass(tmp_path, toy):
    toy['annotations'][0]['segmentation'].append([1, 2, 3, 4])
    check(tmp_path, toy)

def test_a_data_set_of_boxes_alone(tmp_path, toy):
    for a in toy['annotations']: del a['segmentation']
    assert not check(tmp_path, toy)['masks']
    info = datasets.register(f'boxes {tmp_path}', tmp_path/'b.json', images=tmp_path/'images')
    sample = augment.TrainMapper(augment.train_augmentation(), masks=info.masks)(info.records[0])
    assert len(sample['instances']) == 2 and not sample['instances'].has('gt_masks')

def test_decode_finds_truncated_images_and_wrong_sizes(tmp_path, toy):
    path = tmp_path/'images/2.png'
    whole = path.read_bytes()
    path.write_bytes(whole[:-800])
    check(tmp_path, toy)
    with pytest.raises(MimdetError, match='2.png cannot be read'): check(tmp_path, toy, decode=True)
    Image.new('RGB', (20, 10)).save(path)
    with pytest.raises(MimdetError, match='2.png is 20x10, its annotations are for an image of 48x64'):
        check(tmp_path, toy, decode=True)

def test_images_in_subfolders(tmp_path, toy):
    (tmp_path/'images/sub').mkdir()
    (tmp_path/'images/1.png').rename(tmp_path/'images/sub/1.png')
    toy['images'][0]['file_name'] = 'sub/1.png'
    check(tmp_path, toy, decode=True)

# Which data set

@pytest.mark.parametrize('spec, complaint', [
    ('nothing', 'give annotations.json:images/'),
    ('', 'give'),
    (':', 'give'),
    ('a.json:', 'give'),
    ('{0}/c.json:{0}/images', 'c.json is not a file'),
    ('{0}/a.json:{0}/pictures', 'pictures is not a folder'),
    ('coco_2017_val', 'instances_val2017.json is not a file: .*DETECTRON2_DATASETS'),
])
def test_no_such_data_set(tmp_path, toy, monkeypatch, spec, complaint):
    monkeypatch.setenv('DETECTRON2_DATASETS', str(tmp_path))
    with pytest.raises(MimdetError, match=complaint): datasets.parse_dataset(spec.format(tmp_path))

def test_coco_is_found_where_detectron2_looks(tmp_path, monkeypatch):
    monkeypatch.setenv('DETECTRON2_DATASETS', str(tmp_path))
    (tmp_path/'coco/annotations').mkdir(parents=True); (tmp_path/'coco/train2017').mkdir()
    (tmp_path/'coco/annotations/instances_train2017.json').write_text('{}')
    found = (tmp_path/'coco/annotations/instances_train2017.json', tmp_path/'coco/train2017')
    assert datasets.parse_dataset('coco_2017_train') == found

def test_the_last_colon_counts(tmp_path):
    folder = tmp_path/'a:b'; folder.mkdir(); (folder/'x.json').touch()
    assert datasets.parse_dataset(f'{folder}/x.json:{tmp_path}') == (folder/'x.json', tmp_path)

# Registration

def test_ids_with_gaps_become_contiguous(tmp_path, toy):
    info = datasets.register(f'gaps {tmp_path}', tmp_path/'a.json', images=tmp_path/'images')
    assert (info.classes, info.category_ids) == (('box', 'disc'), (3, 9))
    assert info.metadata.thing_dataset_id_to_contiguous_id == {3: 0, 9: 1}
    assert [a['category_id'] for a in info.records[0]['annotations']] == [0, 1, 1]
    assert [r['image_id'] for r in info.records] == [10, 20, 30, 40, 50, 60, 70]
    assert info.records[6]['annotations'] == []

def test_registering_again(tmp_path, toy, monkeypatch):
    name = f'again {tmp_path}'
    info = datasets.register(name, tmp_path/'a.json', images=tmp_path/'images')
    monkeypatch.chdir(tmp_path)
    assert datasets.register(name, 'a.json', images='images').sha256 == info.sha256 # the same files by another path
    with pytest.raises(MimdetError, match='another json_file'):
        datasets.register(name, _copy(tmp_path), images=tmp_path/'images')
    toy['annotations'].pop(); write_json(tmp_path/'a.json', toy)
    with pytest.raises(MimdetError, match='another sha256'):
        datasets.register(name, tmp_path/'a.json', images=tmp_path/'images')

def _copy(folder):
    (folder/'copy.json').write_bytes((folder/'a.json').read_bytes())
    return folder/'copy.json'

def test_a_bad_one_is_not_registered(tmp_path, toy):
    toy['annotations'][0]['category_id'] = 5; write_json(tmp_path/'a.json', toy)
    with pytest.raises(MimdetError, match='category_id is not in the file'):
        datasets.register(f'bad {tmp_path}', tmp_path/'a.json', images=tmp_path/'images')
    assert f'bad {tmp_path}' not in datasets.DatasetCatalog.list()

# Images

@pytest.mark.parametrize('mode, suffix', [
    ('RGB', 'png'), ('RGB', 'jpg'), ('L', 'png'), ('L', 'jpg'), ('LA', 'png'), ('RGBA', 'png'), ('P', 'png'),
    ('P', 'gif'), ('1', 'png'), ('CMYK', 'jpg'), ('CMYK', 'tif'), ('RGB', 'bmp'), ('RGB', 'webp')])
def test_every_mode_becomes_rgb(tmp_path, mode, suffix):
    colour = Image.new('RGB', (30, 20), (200, 200, 200)).convert(mode)
    colour.save(tmp_path/f'x.{suffix}')
    image = datasets.read_image(tmp_path/f'x.{suffix}')
    assert image.shape == (20, 30, 3) and image.dtype == np.uint8
    assert mode in ('1', 'P') or np.abs(image.astype(int) - 200).max() < 12 # the others dither

@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_turns_are_undone(tmp_path, orientation):
    seen = np.zeros((24, 40, 3), dtype=np.uint8)
    seen[:8, :16] = 255 # as it should look: white at the top left
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif(); exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(undo(seen))).save(tmp_path/'x.png', exif=exif)
    assert (datasets.read_image(tmp_path/'x.png') == seen).all()

@pytest.mark.parametrize('content', [b'', b'not an image', 'half jpg', 'half png'])
def test_damaged_images(tmp_path, content):
    if isinstance(content, str):
        buffer = io.BytesIO()
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(buffer, 'jpeg' if 'jpg' in content else 'png')
        whole = buffer.getvalue()
        content = whole[:len(whole)//2]
    (tmp_path/'x.img').write_bytes(content)
    with pytest.raises(MimdetError, match='x.img cannot be read') as e: datasets.read_image(tmp_path/'x.img')
    assert '\n' not in str(e.value)

def test_missing_image_and_a_folder(tmp_path):
    with pytest.raises(MimdetError, match='x.png: no such image'): datasets.read_image(tmp_path/'x.png')
    with pytest.raises(MimdetError, match='cannot be read'): datasets.read_image(tmp_path)

@pytest.mark.parametrize('workers', [0, 1])
def test_a_damaged_image_stops_training_in_one_line(tmp_path, records, workers):
    (tmp_path/'images/3.png').write_bytes(b'x')
    loader = stream.train_loader(records, augment.TrainMapper([]), batch=2, seed=0, stop=10, workers=workers)
    with pytest.raises(MimdetError) as e: list(loader)
    assert '\n' not in str(e.value)
    assert str(e.value).startswith(str(tmp_path/'images/3.png') + ' cannot be read')

def test_an_image_of_another_size_than_annotated(tmp_path, records):
    Image.new('RGB', (10, 10)).save(tmp_path/'images/1.png')
    complaint = '1.png is 10x10, its annotations are for an image of 64x48: use that image'
    with pytest.raises(MimdetError, match=complaint): augment.TrainMapper([])(records[0])

# Mapping

CROP = dict(short_edges=(40, 50), size=(24, 40), prob=1)

@pytest.mark.parametrize('options', [
    dict(),
    dict(short_edges=(32, 64)),
    dict(short_edges=(40,), crop=CROP),
    dict(crop=CROP, flip=False),
], ids=str)
def test_boxes_masks_and_images_stay_together(records, options):
    mapper = augment.TrainMapper(augment.train_augmentation(**options))
    np.random.seed(0)
    for _ in range(20):
        for record in records:
            sample = mapper(record)
            shape, found = tuple(sample['image'].shape[1:]), sample['instances']
            assert found.image_size == shape and found.gt_masks.tensor.shape[1:] == shape
            assert sample['image'].dtype == torch.uint8
            assert len(found) <= 2 and found.gt_masks.tensor.dtype == torch.bool # the crowd region is left out
            for box, mask in zip(found.gt_boxes.tensor, found.gt_masks.tensor):
                rows, columns = torch.where(mask)
                tight = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                assert (box - tight).abs().max() <= (0 if 'crop' in options else 1.5)

def test_masks_follow_the_pixels(tmp_path):
    """An object painted white stays where its mask says, through flip, resize and crop, for polygons and run lengths
    alike."""
    coco = make(tmp_path, [(64, 48)]*2)
    white = np.zeros((48, 64, 3), dtype=np.uint8)
    white[5:25, 20:35] = 255
    white[30:45, 40:60] = 255
    mask = np.zeros((48, 64), dtype=np.uint8)
    mask[30:45, 40:60] = 1
    Image.fromarray(white).save(tmp_path/'images/1.png')
    coco['annotations'][1] |= dict(segmentation=packed(mask), bbox=[40, 30, 20, 15])
    write_json(tmp_path/'a.json', coco)
    record = datasets.register(f'white {tmp_path}', tmp_path/'a.json', images=tmp_path/'images').records[0]
    crop = dict(short_edges=(96, 120), size=(70, 90), prob=0.7)
    mapper = augment.TrainMapper(augment.train_augmentation(short_edges=(72, 96), crop=crop))
    np.random.seed(0)
    for _ in range(30):
        sample = mapper(record)
        covered, bright = sample['instances'].gt_masks.tensor.any(0), sample['image'][0] > 127
        assert (covered & bright).sum() >= 0.9*(covered | bright).sum()

def test_whole_number_polygons_are_not_rounded_down(records):
    record = copy.deepcopy(records[0])
    record['annotations'] = [record['annotations'][0] | dict(segmentation=[[20, 5, 35, 5, 35, 25, 20, 25]])]
    floats = copy.deepcopy(record)
    polygons = record['annotations'][0]['segmentation']
    floats['annotations'][0]['segmentation'] = [[float(v) for v in p] for p in polygons]
    mapper = augment.TrainMapper(augment.train_augmentation(short_edges=(37,), flip=False))
    masks, of_floats = (mapper(r)['instances'].gt_masks.tensor for r in (record, floats))
    assert torch.equal(masks, of_floats)

def test_crop_of_polygons_is_crop_of_masks():
    rng = np.random.default_rng(0)
    for _ in range(50):
        polygon = rng.uniform(0, 60, 10)
        x, y = rng.integers(0, 30, 2)
        crop = augment._Crop(int(x), int(y), 30, 25)
        shifted = crop.apply_polygons([polygon.reshape(-1, 2).copy()])[0].reshape(-1)
        raster = lambda p, h, w: mask_api.decode(mask_api.frPyObjects([list(p)], h, w))[..., 0]
        assert (raster(shifted, 25, 30) != raster(polygon, 60, 60)[y:y+25, x:x+30]).mean() < 0.02

def test_records_are_not_changed_and_mapper_keeps_the_basics(records):
    before = pickle.dumps(records)
    sample = augment.TrainMapper(augment.train_augmentation(crop=CROP))(records[0])
    assert pickle.dumps(records) == before
    assert {'file_name', 'height', 'width', 'image_id', 'image', 'instances'} == set(sample)
    assert (sample['height'], sample['width']) == (48, 64)

def test_empty_images_train(records):
    sample = augment.TrainMapper(augment.train_augmentation(short_edges=(32,), crop=CROP))(records[6])
    found = sample['instances']
    assert len(found) == 0 and found.gt_boxes.tensor.shape == (0, 4)
    assert found.gt_masks.tensor.shape[0] == 0

def test_odd_modes_are_mapped(tmp_path, records):
    exif = Image.Exif(); exif[0x0112] = 6
    Image.new('CMYK', (64, 48)).save(tmp_path/'images/1.jpg')
    Image.new('RGBA', (64, 48)).save(tmp_path/'images/1b.png')
    Image.new('L', (48, 64)).save(tmp_path/'images/1c.jpg', exif=exif)
    for name in ('1.jpg', '1b.png', '1c.jpg'):
        record = records[0] | dict(file_name=str(tmp_path/'images'/name))
        assert augment.TrainMapper([])(record)['image'].shape == (3, 48, 64)
        assert augment.TestMapper([])(record)['image'].shape == (3, 48, 64)

def test_the_papers_augmentation_gives_its_sizes():
    shorts, longs = set(), set()
    augmentation = augment.T.AugmentationList(augment.train_augmentation(**augment.PAPER_TRAIN))
    np.random.seed(0)
    for shape in ((480, 640), (427, 640), (640, 360), (500, 1400)):
        for _ in range(60):
            image = augment.T.AugInput(np.zeros((*shape, 3), dtype=np.uint8))
            augmentation(image)
            shorts.add(min(image.image.shape[:2]))
            longs.add(max(image.image.shape[:2]))
    allowed = {480, 512, 544, 576, 608, 640, 736, 768, 800}
    assert allowed <= shorts and not {672, 704} & shorts
    assert max(longs) <= 1333 # below 480 only where the long edge is at its limit
    for short_edge, max_size, shape, expected in (
            (800, 1333, (480, 640), (800, 1067)),
            (800, 1333, (300, 900), (444, 1333)),
            (None, 0, (30, 40), (30, 40))):
        image = augment.T.AugInput(np.zeros((*shape, 3), dtype=np.uint8))
        augment.T.AugmentationList(augment.test_augmentation(short_edge, max_size))(image)
        assert image.image.shape[:2] == expected

@pytest.mark.parametrize('change', [
    dict(short_edges=(40,)),
    dict(short_edges=(64,), max_size=70),
    dict(crop=CROP),
    dict(flip=False),
], ids=str)
def test_each_augmentation_option_does_something(records, change):
    def images(options):
        np.random.seed(0)
        return [augment.TrainMapper(augment.train_augmentation(**options))(records[0])['image']
                for _ in range(10)]
    base = dict(short_edges=(64,)) if 'max_size' in change else {}
    assert any(a.shape != b.shape or not torch.equal(a, b)
               for a, b in zip(images(base), images(base | change)))

# Squares

SQUARE = dict(side=96, jitter=[0.1, 2.0], flip=True)

def tight(mask):
    rows, columns = torch.where(mask)
    return torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])

@pytest.mark.parametrize('options', [
    SQUARE,
    SQUARE | dict(jitter=[0.1, 0.1]),
    SQUARE | dict(jitter=[2, 2]),
    dict(side=96),
    dict(side=40),
    dict(side=1),
], ids=str)
def test_squares_keep_boxes_masks_and_images_together(records, options):
    mapper = augment.TrainMapper(augment.square_augmentation(**options))
    np.random.seed(0)
    for _ in range(20):
        for record in records:
            sample = mapper(record)
            found, side = sample['instances'], options['side']
            assert sample['image'].shape == (3, side, side) and sample['image'].dtype == torch.uint8
            masks = found.gt_masks.tensor
            assert found.image_size == (side, side)
            assert masks.shape == (len(found), side, side) and masks.dtype == torch.bool
            for box, mask in zip(found.gt_boxes.tensor, masks): assert (box == tight(mask)).all()

def bright_objects(tmp_path, shape=(64, 48)):
    """A record whose two objects, a polygon and run lengths, are bright on black; they touch the right and the lower
    border."""
    width, height = shape
    coco = make(tmp_path, [shape]*2)
    bright = np.zeros((height, width, 3), dtype=np.uint8)
    # between this and black lies no grey, which is padding
    bright[5:25, 40:] = bright[30:, 4:34] = [255, 200, 90]
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[30:, 4:34] = 1
    Image.fromarray(bright).save(tmp_path/'images/1.png')
    polygon = [[40, 5, width, 5, width, 25, 40, 25]]
    coco['annotations'][0] |= dict(segmentation=polygon, bbox=[40, 5, width - 40, 20])
    coco['annotations'][1] |= dict(segmentation=packed(mask), bbox=[4, 30, 30, height - 30])
    write_json(tmp_path/'a.json', coco)
    return datasets.register(f'bright {tmp_path}', tmp_path/'a.json', images=tmp_path/'images').records[0]

@pytest.mark.parametrize('options', [
    dict(side=160, jitter=[0.5, 2.0], flip=True),
    dict(side=100),
    dict(side=200),
], ids=str)
def test_masks_follow_the_pixels_into_squares(tmp_path, options):
    mapper = augment.TrainMapper(augment.square_augmentation(**options))
    record = bright_objects(tmp_path)
    np.random.seed(0)
    for _ in range(20):
        sample = mapper(record)
        covered = sample['instances'].gt_masks.tensor.any(0)
        padding = (sample['image'] == 128).all(0)
        bright = (sample['image'][0] > 127) & ~padding
        assert (covered ^ bright).sum() <= 0.05*(covered | bright).sum()
        assert not (covered & padding).any()

def test_nothing_lies_in_the_padding(tmp_path):
    "Although the polygon sticks out of its image by a pixel, in all directions."
    record = bright_objects(tmp_path)
    record['annotations'][0] |= dict(segmentation=[[-1, -1, 65, -1, 65, 49, -1, 49]], bbox=[-1, -1, 66, 50])
    np.random.seed(0)
    for side in (64, 100, 150):
        found = augment.TrainMapper(augment.square_augmentation(side))(record)['instances']
        height = int(side*48/64 + 0.5)
        assert found.gt_masks.tensor[0, :height].all() and not found.gt_masks.tensor[:, height:].any()
        assert found.gt_boxes.tensor[0].tolist() == [0, 0, side, height]

def test_polygons_and_run_lengths_come_out_alike(tmp_path):
    polygon = bright_objects(tmp_path)
    mask = np.zeros((48, 64), dtype=np.uint8)
    mask[5:25, 40:] = 1
    packed_up = copy.deepcopy(polygon)
    packed_up['annotations'][0]['segmentation'] = packed(mask)
    mapper = augment.TrainMapper(augment.square_augmentation(160, [0.5, 2.0], flip=True))
    for seed in range(20):
        with stream.numpy_seed(seed): one = mapper(polygon)['instances']
        with stream.numpy_seed(seed): other = mapper(packed_up)['instances']
        assert len(one) == len(other) and (one.gt_boxes.tensor - other.gt_boxes.tensor).abs().max() <= 1
        for (x0, y0, x1, y1), a, b in zip(one.gt_boxes.tensor, one.gt_masks.tensor, other.gt_masks.tensor):
            assert (a ^ b).sum() <= 2*(x1 - x0 + y1 - y0)

def test_squares_of_images_without_objects_and_of_objects_that_vanish(records):
    for jitter in ([0.1, 0.1], [1, 2], []):
        sample = augment.TrainMapper(augment.square_augmentation(64, jitter))(records[6])
        found = sample['instances']
        assert len(found) == 0
        assert found.gt_masks.tensor.shape == (0, 64, 64) and found.gt_boxes.tensor.shape == (0, 4)
    # of a polygon a pixel always remains
    packed_only = records[0] | dict(annotations=records[0]['annotations'][1:])
    vanished = augment.TrainMapper(augment.square_augmentation(8, [0.1, 0.1]))(packed_only)
    assert vanished['image'].shape == (3, 8, 8)
    assert len(vanished['instances']) == 0 and vanished['instances'].gt_masks.tensor.shape == (0, 8, 8)

@pytest.mark.parametrize('shape', [(3, 500), (500, 3), (1, 1)], ids=str)
def test_thin_images_keep_a_pixel(shape):
    image = augment.T.AugInput(np.zeros((*shape, 3), dtype=np.uint8))
    augment.T.AugmentationList(augment.square_augmentation(64, [0.1, 0.1]))(image)
    assert image.image.shape == (64, 64, 3) and 0 < (image.image == 0).all(2).sum() < 64

def test_jitter_scales_and_crops_over_its_whole_range():
    np.random.seed(0)
    sizes, first = [], set()
    for _ in range(300):
        rows = np.arange(1, 101, dtype=np.uint8)[:, None, None]
        image = augment.T.AugInput(rows.repeat(100, 1).repeat(3, 2))
        augment.T.AugmentationList(augment.square_augmentation(200, [0.1, 2.0]))(image)
        inside = (image.image[0] != 128).all(1).sum() if (image.image == 128).any() else 200
        sizes.append(int(inside))
        first.add(int(image.image[0, 0, 0]))
    assert min(sizes) < 30 and max(sizes) == 200
    assert 0.35 < np.mean(np.array(sizes) < 200) < 0.6 # (1 - 0.1)/(2 - 0.1) of the images are smaller
    assert len(first) > 20 # crops begin at many rows

def test_squares_need_no_shapely_and_are_a_function_of_the_seed(records, monkeypatch):
    monkeypatch.setitem(sys.modules, 'shapely', None)
    mapper = augment.TrainMapper(augment.square_augmentation(**SQUARE))
    def draw(seed):
        with stream.numpy_seed(seed): sample = mapper(records[0])
        return sample['image'], sample['instances'].gt_boxes.tensor
    for seed in range(5): assert all(torch.equal(a, b) for a, b in zip(draw(seed), draw(seed)))
    assert not torch.equal(draw(0)[0], draw(1)[0])
    restarted = trace(stream.train_loader(**options(records, mapper=mapper, start=4, workers=1)))
    assert restarted == trace(stream.train_loader(**options(records, mapper=mapper)))[16:]

def test_square_evaluation(records):
    sample = augment.TestMapper(augment.square_augmentation(100))(records[1]) # 48x64
    assert sample['image'].shape == (3, 100, 100) and (sample['height'], sample['width']) == (64, 48)
    assert (sample['image'][:, :, 75:] == 128).all()
    assert not (sample['image'][:, :, :75] == 128).all(0).all(0).any()

def test_squares_of_boxes_alone(tmp_path, toy):
    for a in toy['annotations']: del a['segmentation']
    write_json(tmp_path/'b.json', toy)
    info = datasets.register(f'square boxes {tmp_path}', tmp_path/'b.json', images=tmp_path/'images')
    mapper = augment.TrainMapper(augment.square_augmentation(**SQUARE), masks=info.masks)
    np.random.seed(0)
    for _ in range(20):
        boxes = mapper(info.records[0])['instances'].gt_boxes
        assert (boxes.tensor >= 0).all() and (boxes.tensor <= 96).all() and boxes.nonempty().all()

@pytest.mark.parametrize('options, complaint', [
    (dict(side=0), 'side=0'),
    (dict(side=9, jitter=[1]), r'jitter=\[1\]'),
    (dict(side=9, jitter=[0, 1]), 'jitter'),
    (dict(side=9, jitter=[2, 1]), 'jitter'),
    (dict(side=9, jitter=['a', 1]), 'jitter'),
], ids=str)
def test_bad_squares(options, complaint):
    with pytest.raises(MimdetError, match=complaint) as e: augment.square_augmentation(**options)
    assert '\n' not in str(e.value)

# From a configuration

SECTION = dict(short_edges=[48, 64], crop=False, flip=True, test_short_edge=32, max_size=100, square=0, jitter=[])

def both(section, records, seed=0):
    with stream.numpy_seed(seed):
        train = augment.TrainMapper(augment.train_augmentation_of(section))
        test = augment.TestMapper(augment.test_augmentation_of(section))
        return [train(records[0])['image'] for _ in range(8)] + [test(records[0])['image']]

def same(some, others):
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(some, others, strict=True))

@pytest.mark.parametrize('change', [
    dict(short_edges=[40]),
    dict(crop=True),
    dict(flip=False),
    dict(test_short_edge=40),
    dict(max_size=50),
    dict(square=64),
    dict(square=64, jitter=[0.5, 1.5]),
], ids=str)
def test_each_key_of_the_data_section_does_something(records, change):
    assert not same(both(SECTION, records), both(SECTION | change, records))

def test_each_key_of_a_square_does_something(records):
    square = SECTION | dict(square=64, jitter=[0.5, 1.5])
    for change in (dict(square=80), dict(jitter=[0.2, 0.4]), dict(jitter=[]), dict(flip=False)):
        assert not same(both(square, records), both(square | change, records))

def test_the_data_section_may_be_omegaconf_or_without_the_newer_keys(records):
    for section in (SECTION, SECTION | dict(square=64, jitter=[0.5, 1.5])):
        assert same(both(section, records), both(OmegaConf.create(section), records))
    older = {k: v for k, v in SECTION.items() if k not in ('flip', 'square', 'jitter')}
    assert same(both(SECTION, records), both(OmegaConf.create(older), records))

def test_without_a_square_all_is_as_before(records):
    section = SECTION | dict(crop=True)
    for seed in range(5):
        with stream.numpy_seed(seed):
            train = augment.TrainMapper(augment.train_augmentation([48, 64], 100, augment.PAPER_CROP))
            test = augment.TestMapper(augment.test_augmentation(32, 100))
            before = [train(records[0])['image'] for _ in range(8)] + [test(records[0])['image']]
        assert same(before, both(section, records, seed))

def test_jitter_without_a_square_is_refused():
    with pytest.raises(MimdetError, match='needs a square.*data.square.*data.jitter='):
        augment.train_augmentation_of(SECTION | dict(jitter=[0.1, 2.0]))

# The stream

def trace(loader):
    def told(s):
        image, boxes = s['image'], s['instances'].gt_boxes.tensor
        return s['draw'], s['image_id'], image.sum().item(), image.shape, boxes.sum().item()
    return [told(s) for batch in loader for s in batch]

def options(records, **more):
    augmentation = augment.train_augmentation(short_edges=(32, 48), crop=dict(CROP, prob=0.5))
    return dict(records=records, mapper=augment.TrainMapper(augmentation), batch=4, seed=0, stop=9) | more

@pytest.mark.parametrize('workers', [1, 2, 3])
def test_the_stream_is_the_same_for_any_number_of_workers(records, workers):
    np.random.seed(workers)
    loaded = trace(stream.train_loader(**options(records, workers=workers)))
    assert loaded == trace(stream.train_loader(**options(records)))

@pytest.mark.parametrize('start', [0, 1, 4, 8, 9])
def test_the_stream_is_the_same_after_a_restart(records, start):
    restarted = trace(stream.train_loader(**options(records, start=start, workers=start % 3)))
    assert restarted == trace(stream.train_loader(**options(records)))[4*start:]

@pytest.mark.parametrize('world', [1, 2, 4])
def test_the_shares_of_all_processes_are_the_whole(records, world):
    def traces(**more):
        return [trace([batch]) for batch in stream.train_loader(**options(records, **more))]
    whole = traces()
    shares = [traces(rank=rank, world=world) for rank in range(world)]
    for batch, *parts in zip(whole, *shares):
        assert sum(parts, []) == batch and all(len(part) == 4//world for part in parts)

@pytest.mark.parametrize('world, accumulate', [(1, 1), (1, 2), (2, 1), (2, 2), (1, 4), (4, 1)])
@pytest.mark.parametrize('start', [0, 3])
def test_the_parts_of_all_processes_are_the_whole(records, world, accumulate, start):
    def loader(**more): return stream.train_loader(**options(records, start=start, **more))
    whole = [trace([batch]) for batch in loader()]
    parts = [[trace([part]) for part in loader(rank=rank, world=world, accumulate=accumulate, workers=rank % 2)]
             for rank in range(world)]
    assert all(len(mine) == accumulate*(9 - start) for mine in parts)
    assert len(loader(world=world, accumulate=accumulate)) == accumulate*(9 - start)
    for step, batch in enumerate(whole):
        shares = [parts[rank][step*accumulate + j] # share j*world + rank
                  for j in range(accumulate) for rank in range(world)]
        assert sum(shares, []) == batch and all(len(share) == 4//(world*accumulate) for share in shares)

def test_another_seed_gives_another_stream_and_draws_count_on(records):
    one, other = (trace(stream.train_loader(**options(records, seed=seed))) for seed in (0, 1))
    assert [s[0] for s in one] == list(range(36)) and one != other

def test_numpys_global_generator_is_left_alone(records):
    samples = stream.TrainingStream(records, augment.TrainMapper(augment.train_augmentation()), 4, 0)
    np.random.seed(3); expected = np.random.rand()
    np.random.seed(3); samples[7]
    assert np.random.rand() == expected

@pytest.mark.parametrize('wide, tall, batch', [
    (7, 0, 3), (0, 5, 8), (6, 4, 4), (30, 11, 8), (1, 1, 2), (1, 0, 16), (3, 2, 64), (100, 1, 8)])
def test_batches_hold_one_shape_and_every_image_comes_equally_often(wide, tall, batch):
    def new_order():
        return stream.BatchOrder([np.arange(wide), np.arange(wide, wide + tall)], batch, seed=5)
    order = new_order()
    images, epochs = wide + tall, 2*batch
    drawn = np.array([order(k) for k in range(images*epochs)])
    batches = drawn.reshape(-1, batch)
    assert ((batches < wide).all(1) | (batches >= wide).all(1)).all()
    assert set(Counter(drawn.tolist()).values()) == {epochs} and len(Counter(drawn.tolist())) == images
    for k in (0, 1, batch, images, images*epochs - 1, 10**7): assert order(k) == new_order()(k)

def test_landscape_and_portrait_do_not_mix(records):
    for batch in stream.train_loader(**options(records, batch=2, stop=20)):
        assert len({s['width'] > s['height'] for s in batch}) == 1

def test_the_stream_can_be_sent_to_another_process(records):
    samples = stream.TrainingStream(records, augment.TrainMapper(augment.train_augmentation(crop=CROP)), 4, 0)
    samples[3]
    assert torch.equal(pickle.loads(pickle.dumps(samples))[5]['image'], samples[5]['image'])

@pytest.mark.parametrize('change, complaint', [
    (dict(batch=3, world=2), 'multiple of the 2 processes'),
    (dict(batch=0), 'batch=0'),
    (dict(batch=6, world=2, accumulate=2), 'batch=6 must be a multiple of the 2 processes x 2 parts'),
    (dict(accumulate=0), 'accumulate=0'),
    (dict(records=[]), 'no images'),
])
def test_bad_loader_options(records, change, complaint):
    with pytest.raises(MimdetError, match=complaint): stream.train_loader(**options(records) | change)

@pytest.mark.parametrize('world, batch, workers', [(1, 1, 0), (1, 3, 2), (3, 1, 0), (10, 2, 0)])
def test_evaluation_sees_every_image_once(records, world, batch, workers):
    mapper = augment.TestMapper(augment.test_augmentation(32))
    seen = [[s['image_id'] for b in stream.test_loader(records, mapper, batch=batch, rank=rank, world=world,
                                                       workers=workers) for s in b]
            for rank in range(world)]
    assert sorted(sum(seen, [])) == [10, 20, 30, 40, 50, 60, 70]

# Real photographs

def test_coco_sample():
    sample = project_root(__file__).parent/'shared/coco_sample'
    if not sample.is_dir(): pytest.skip(f'skipped: the six photographs of COCO are not at {sample}')
    files = datasets.parse_dataset(f'{sample}/instances.json:{sample}/val2017')
    info = datasets.register('coco_sample', *files, decode=True)
    assert len(info.classes) == 80 and info.category_ids[-1] == 90 and info.masks
    crowds = [sum(a['iscrowd'] for a in r['annotations']) for r in info.records]
    assert len(crowds) == 6 and sum(crowds) == 1
    mapper = augment.TrainMapper(augment.train_augmentation(**augment.PAPER_TRAIN))
    for record, crowd in zip(info.records, crowds):
        plain = augment.TrainMapper([])(record)
        assert len(plain['instances']) == len(record['annotations']) - crowd
        with stream.numpy_seed(0): sample = mapper(record)
        assert max(sample['image'].shape) <= 1333
        assert sample['instances'].gt_masks.tensor.flatten(1).any(1).all()

# Processes

@pytest.mark.parametrize('free, workers', [(10**9, 2), (2*10**6, 1), (10**6, 0)])
def test_a_small_shared_memory_is_seen_beforehand(monkeypatch, caplog, free, workers):
    monkeypatch.setattr(stream, 'usable_cores', lambda: 2)
    monkeypatch.setattr(stream.shutil, 'disk_usage', lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr(stream.os.path, 'isdir', lambda _: True)
    assert stream.workers_that_fit(8, 2, 128*128) == workers
    assert stream.workers_that_fit(0, 2, 128*128) == 0
    assert (f'{workers or "none"} will load images' in caplog.text) == (workers < 2)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')
    expected = min(workers, 1)*(free > 2*10**6)
    assert stream.workers_that_fit(8, 2, 128*128) == expected, 'two processes share cores and memory'

class Dies(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, k): os.kill(os.getpid(), 9)

def test_a_worker_that_dies_ends_the_run_in_one_line():
    with pytest.raises(MimdetError, match='a process that loads images died .*data.workers=0'):
        list(stream.Loader(Dies(), num_workers=1))

@pytest.mark.parametrize('told, line', [
    ('unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)',
     '/dev/shm, .* is full'),
    ('unable to mmap 1024 bytes from file </torch_1_2_3>: Cannot allocate memory (12)', '/dev/shm, .* is full'),
    ('unable to open shared memory object </torch_1_2_3> in read-write mode: Too many open files (24)',
     'too many open files'),
    ('received 0 items of ancdata', 'too many open files'),
], ids=str)
def test_a_batch_that_cannot_be_handed_over_ends_the_run_in_one_line(monkeypatch, records, told, line):
    def share_memory_(self): raise RuntimeError(told)
    monkeypatch.setattr(torch.Tensor, 'share_memory_', share_memory_)
    with pytest.raises(MimdetError, match=f'^{line}.*: data.workers=0 loads'):
        trace(stream.train_loader(**options(records, workers=1)))

class Pids(torch.utils.data.Dataset):
    def __len__(self): return 9
    def __getitem__(self, k): return os.getpid()

def test_a_worker_that_dies_while_the_network_computes_is_told_in_one_line():
    "torch raises it in the main process wherever that is."
    complaint = 'a process that loads images died .*data.workers=0'
    with pytest.raises(MimdetError, match=complaint), stream.loader_errors():
        batches = iter(stream.Loader(Pids(), batch_size=1, num_workers=1))
        os.kill(next(batches)[0], 9)
        time.sleep(20)

class Mistaken(Dies):
    def __getitem__(self, k): return [][k]

def test_a_mistake_in_a_worker_keeps_its_traceback():
    with pytest.raises(IndexError, match='Original Traceback'): list(stream.Loader(Mistaken(), num_workers=1))

class Hangs(Dies):
    def __getitem__(self, k): time.sleep(60)

def test_a_worker_that_is_stuck_ends_the_run_in_one_line(monkeypatch):
    monkeypatch.setattr(stream, 'PATIENCE', 1)
    with pytest.raises(MimdetError, match='no images came for 1 seconds.*data.workers=0'):
        list(stream.Loader(Hangs(), num_workers=1))

# Names

def test_a_path_with_colons_is_tried_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'my data:v2').mkdir(); (tmp_path/'a:b.json').touch()
    assert datasets.parse_dataset('a:b.json:my data:v2') == (Path('a:b.json'), Path('my data:v2'))
