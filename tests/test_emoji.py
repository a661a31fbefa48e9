"""Emoji-COCO: the same bytes again, masks, boxes and areas that agree, options that do something, complaints in one
line."""
import hashlib, json, subprocess, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api
import mimdet.data.emoji as emoji
from mimdet.training.commands import mimdet_data
from mimdet.base.core import MimdetError, read_json
from mimdet.data.emoji import CATEGORIES, EmojiConfig, annotate, make_dataset, make_scene

SMALL = EmojiConfig(categories=66, size=96, max_object=48)

def tree(folder):
    files = (p for p in sorted(Path(folder).rglob('*')) if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp('emoji')/'set'
    return out, make_dataset(out, SMALL, train=40, val=10)

@pytest.mark.parametrize('workers', [1, 2, 3])
def test_same_bytes_again_and_for_any_number_of_workers(made, tmp_path, workers):
    again = make_dataset(tmp_path/'set', SMALL, workers, train=40, val=10)
    assert tree(tmp_path/'set') == tree(made[0])
    assert [s['sha256'] for s in again.values()] == [s['sha256'] for s in made[1].values()]

def test_an_image_does_not_depend_on_how_many_there_are(made, tmp_path):
    make_dataset(tmp_path/'set', SMALL, train=3)
    few, many = read_json(tmp_path/'set/train.json'), read_json(made[0]/'train.json')
    assert few['annotations'] == [a for a in many['annotations'] if a['image_id'] <= 3]
    for name in ('000001.jpg', '000002.jpg', '000003.jpg'):
        assert (tmp_path/'set/train'/name).read_bytes() == (made[0]/'train'/name).read_bytes()

def test_layout_and_summary(made):
    out, splits = made
    assert {p.name for p in out.iterdir()} == {'dataset.json', 'train', 'train.json', 'val', 'val.json'}
    assert splits['train']['count'] == len(list((out/'train').iterdir())) == 40
    assert splits['val']['annotations'] == len(read_json(out/'val.json')['annotations'])
    assert splits['val']['sha256'] == hashlib.sha256((out/'val.json').read_bytes()).hexdigest()
    assert not list(out.parent.glob('.*'))

@pytest.mark.parametrize('index', range(30))
def test_boxes_areas_and_masks_agree_and_masks_do_not_overlap(index):
    scene = make_scene(SMALL, 'train', index)
    found = annotate(scene)
    masks = np.array([mask_api.decode(a['segmentation']) for a in found]).reshape(-1, 96, 96)
    assert masks.sum(0).max() <= 1 and len(found) == len(scene.objects)
    for annotation, mask in zip(found, masks):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert annotation['bbox'] == [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert annotation['area'] == mask.sum() >= emoji.MIN_AREA

def test_most_of_the_objects_are_of_the_size_asked_for():
    config = EmojiConfig(min_object=30, max_object=40, max_count=1, rotation=180)
    sides = [max(a['bbox'][2:]) for n in range(100) for a in annotate(make_scene(config, 'train', n))]
    assert len(sides) == 100 and 28 <= np.median(sides) <= 41 and max(sides) <= 42

def test_annotations_follow_coco(made):
    coco = read_json(made[0]/'train.json')
    assert set(coco) == {'info', 'licenses', 'images', 'annotations', 'categories'}
    assert coco['info']['description'].startswith('Emoji-COCO') and coco['info']['options']['seed'] == 0
    assert [a['id'] for a in coco['annotations']] == list(range(1, len(coco['annotations']) + 1))
    ids = [c['id'] for c in coco['categories']]
    assert ids == sorted(ids) and len(ids) == 66 and ids[-1] == 90 # gaps
    assert {a['category_id'] for a in coco['annotations']} <= set(ids)
    assert all(a['iscrowd'] == 0 and isinstance(a['segmentation']['counts'], str) for a in coco['annotations'])

def test_names_and_ids_are_cocos_own():
    import mimdet.base.compat
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
    theirs = {c['name']: c['id'] for c in COCO_CATEGORIES if c['isthing']}
    assert {c.name: c.id for c in CATEGORIES.values()}.items() <= theirs.items()

def test_every_graphic_is_there_and_not_empty():
    codes = [code for c in CATEGORIES.values() for code in c.codes]
    assert len(codes) == len(set(codes))
    for code in codes: assert np.ptp(emoji.glyph(code).outline, axis=0).max() > 40

@pytest.mark.parametrize('change', [
    dict(categories=11),
    dict(categories=('cat', 'dog')),
    dict(size=100),
    dict(size=(128, 96)),
    dict(min_object=40),
    dict(max_object=90),
    dict(min_count=6),
    dict(max_count=1),
    dict(rotation=0),
    dict(colour=0),
    dict(colour=1),
    dict(seed=1),
    dict(scene='clear'),
], ids=str)
def test_each_option_changes_the_scenes(change):
    one, other = EmojiConfig(), replace(EmojiConfig(), **change)
    def pixels(config, n): return make_scene(config, 'train', n).pixels.tobytes()
    assert any(pixels(one, n) != pixels(other, n) for n in range(5))

def test_format_png_is_exact_and_jpg_close(tmp_path):
    for kind in ('png', 'jpg'): make_dataset(tmp_path/kind, replace(SMALL, format=kind), train=2)
    scene = make_scene(replace(SMALL, format='png'), 'train', 1).pixels
    assert (np.asarray(Image.open(tmp_path/'png/train/000002.png')) == scene).all()
    assert np.abs(np.asarray(Image.open(tmp_path/'jpg/train/000002.jpg'), dtype=int) - scene).mean() < 12

def test_without_jitter_the_colours_are_the_graphics_own():
    config = EmojiConfig(categories=('apple',), colour=0, max_count=1, min_object=64, rotation=0)
    scene = make_scene(config, 'train', 0)
    red, green, blue = scene.pixels[scene.owner == 0].mean(0)
    assert max(red, green) > 2*blue

def test_sides_may_differ(tmp_path):
    make_dataset(tmp_path/'wide', EmojiConfig(size=(160, 96)), train=2)
    entry = read_json(tmp_path/'wide/train.json')['images'][0]
    assert (entry['width'], entry['height']) == Image.open(tmp_path/'wide/train/000001.jpg').size == (160, 96)

@pytest.mark.parametrize('change, complaint', [
    (dict(categories=0), 'choose 1 to 66'),
    (dict(categories=67), 'choose 1 to 66'),
    (dict(categories=('cta',)), "did you mean 'cat'"),
    (dict(categories=()), 'at least one'),
    (dict(size=8), 'size'),
    (dict(size=(128, 8)), 'size'),
    (dict(min_object=2), 'min_object'),
    (dict(max_object=10), 'max_object'),
    (dict(max_object=200), 'max_object'),
    (dict(min_count=-1), 'min_count'),
    (dict(max_count=0), 'max_count'),
    (dict(min_count=7), 'max_count'),
    (dict(rotation=-1), 'rotation'),
    (dict(colour=1.5), 'colour'),
    (dict(colour=float('nan')), 'colour'),
    (dict(format='gif'), 'format'),
    (dict(scene='dark'), 'scene'),
], ids=str)
def test_options_out_of_range(change, complaint):
    with pytest.raises(MimdetError, match=complaint): EmojiConfig(**change)

@pytest.mark.parametrize('config, digest', [
    (EmojiConfig(), '6eb3eefe5cabaf84'),
    (EmojiConfig(categories=66, colour=1, seed=3), '85ce57609e371eba'),
])
def test_busy_scenes_are_those_of_the_first_version(config, digest):
    "Digests of pixels and annotations, taken before there were clear scenes."
    found = hashlib.sha256()
    for scene in (make_scene(config, 'train', n) for n in range(8)):
        found.update(scene.pixels.tobytes() + json.dumps(annotate(scene)).encode())
    assert found.hexdigest()[:16] == digest

def test_folders_of_the_first_version_are_still_taken(tmp_path):
    made = make_dataset(tmp_path/'set', SMALL, train=2)
    card = read_json(tmp_path/'set/dataset.json')
    del card['options']['scene']
    (tmp_path/'set/dataset.json').write_text(json.dumps(card | dict(version=1)))
    before = tree(tmp_path/'set')
    assert make_dataset(tmp_path/'set', SMALL, train=2) == made and tree(tmp_path/'set') == before
    with pytest.raises(MimdetError, match=r'scene differs'):
        make_dataset(tmp_path/'set', replace(SMALL, scene='clear'), train=2)

@pytest.mark.parametrize('index', range(5))
def test_clear_scenes_have_one_background_colour_and_no_texture(index):
    "Away from half-transparent edges, a graphic recoloured by a matrix has few colours, and its background one."
    config = EmojiConfig(scene='clear', min_object=60, max_object=100, max_count=1, colour=1)
    scene = make_scene(config, 'train', index)
    background = scene.pixels[scene.owner < 0]
    _, counts = np.unique(background, axis=0, return_counts=True)
    assert counts.max() > .9*len(background)
    _, counts = np.unique(scene.pixels[scene.owner == 0], axis=0, return_counts=True)
    assert np.sort(counts)[-8:].sum() > .4*counts.sum()
    busy = make_scene(replace(config, scene='busy'), 'train', index)
    assert len(np.unique(busy.pixels[busy.owner < 0], axis=0)) > 100

def test_unlabelled_pictures_have_no_annotations(tmp_path):
    made = make_dataset(tmp_path/'set', SMALL, train=2, unlabelled=3)
    assert made['unlabelled']['count'] == 3 and read_json(made['unlabelled']['json'])['annotations'] == []
    def pictures(split): return {p.read_bytes() for p in (tmp_path/'set'/split).iterdir()}
    assert not pictures('train') & pictures('unlabelled')

def test_what_is_there_is_kept_or_refused(made, tmp_path):
    out, splits = made
    before = {p: p.stat().st_mtime_ns for p in out.rglob('*')}
    assert make_dataset(out, SMALL, train=40, val=10) == splits
    others = ((dict(seed=1), dict(train=40, val=10)), ({}, dict(train=41, val=10)), ({}, dict(train=40)))
    for change, counts in others:
        with pytest.raises(MimdetError, match='holds another'):
            make_dataset(out, replace(SMALL, **change), **counts)
    assert {p: p.stat().st_mtime_ns for p in out.rglob('*')} == before

def test_overwrite_replaces_only_a_data_set_of_this_kind(tmp_path):
    make_dataset(tmp_path/'set', SMALL, train=2)
    made = make_dataset(tmp_path/'set', replace(SMALL, seed=1), overwrite=True, train=3)
    assert made['train']['count'] == 3 and read_json(tmp_path/'set/dataset.json')['options']['seed'] == 1
    (tmp_path/'other').mkdir(); (tmp_path/'other/notes.txt').write_text('mine')
    with pytest.raises(MimdetError, match='is not an Emoji-COCO'):
        make_dataset(tmp_path/'other', SMALL, overwrite=True, train=2)
    assert (tmp_path/'other/notes.txt').read_text() == 'mine'

@pytest.mark.parametrize('damage', ['train.json', 'train/000001.jpg'])
def test_damage_is_noticed(tmp_path, damage):
    make_dataset(tmp_path/'set', SMALL, train=2)
    (tmp_path/'set'/damage).unlink()
    with pytest.raises(MimdetError, match='train is damaged'): make_dataset(tmp_path/'set', SMALL, train=2)
    make_dataset(tmp_path/'set', SMALL, overwrite=True, train=2)
    assert (tmp_path/'set'/damage).exists()

def test_interrupted_it_leaves_nothing(tmp_path, monkeypatch):
    def stop(*args): raise KeyboardInterrupt
    monkeypatch.setattr(emoji, '_render', stop)
    with pytest.raises(KeyboardInterrupt): make_dataset(tmp_path/'set', SMALL, train=2)
    assert list(tmp_path.iterdir()) == []

@pytest.mark.parametrize('options, complaint', [
    (['--categories', 'cat,unicorn'], 'unicorn'),
    (['--size', 'big'], "size 'big'"),
    (['--train', '0', '--val', '0'], 'ask for some images'),
    (['--train=-1'], 'ask for some images'),
    (['--workers', '0'], 'workers=0'),
    (['--colour', '2'], 'colour=2'),
], ids=str)
def test_command_complains_in_one_line(tmp_path, capsys, options, complaint):
    with pytest.raises(SystemExit) as stop: mimdet_data([str(tmp_path/'set'), *options])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and complaint in said and said.count('\n') == 1
    assert not (tmp_path/'set').exists()

def test_command_makes_it_and_says_so(tmp_path, capsys):
    mimdet_data([str(tmp_path/'set'), '--train=4', '--val=2', '--size=96x80', '--min-object=20',
                 '--max_object=40', '--categories=hot dog,cat', '--format=png', '--sheet'])
    said = capsys.readouterr().out
    made = read_json(tmp_path/'set/dataset.json')
    assert all(entry['sha256'] in said for entry in made['splits'].values())
    asked = dict(size=[96, 80], categories=['hot dog', 'cat'], format='png', max_object=40)
    assert made['options'] | asked == made['options']
    assert Image.open(tmp_path/'set/train_sheet.png').width > 1000

def test_contact_sheet_draws_polygons_and_both_kinds_of_run_lengths():
    mask = np.zeros((6, 8), dtype=np.uint8); mask[1:4, 2:6] = 1
    packed = mask_api.encode(np.asfortranarray(mask))
    flat = mask.ravel(order='F')
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    for segmentation in (packed, dict(size=[6, 8], counts=counts), [[2, 1, 6, 1, 6, 4, 2, 4]]):
        assert (emoji.annotation_mask(segmentation, 6, 8) == mask).all()

def test_starting_does_not_need_torch():
    code = 'import sys, mimdet.data.emoji; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
