"""Data sets as the world makes them, through the commands: used as they were meant, or refused in one line."""
import builtins, copy, io, json, os
import numpy as np
import pytest, torch
from PIL import Image, features
from conftest import SHORT, run_command
from inputs import CASES, noise, write
from mimdet.base import look
from mimdet.data import images
from mimdet.data.coco import read_coco
from mimdet.training.commands import mimdet_data, mimdet_predict, mimdet_train
from mimdet.detector import draw
from mimdet.data.emoji import annotation_mask
from mimdet.measure.evaluate import average_precision
from detectron2.structures import Boxes, Instances # after a module of mimdet, which mends detectron2
from test_commands import complaint
from test_data import packed

ONE_STEP = ['schedule.iterations=1', *SHORT]

@pytest.mark.parametrize('name', CASES)
def test_training(call, name, tmp_path):
    case, data = CASES[name], write(name, tmp_path)
    done = call(mimdet_train, *ONE_STEP, '--dataset', data, '--val', data, '--output', tmp_path/'out')
    if case.refused:
        told = complaint(done)
        assert all(words in told for words in case.refused), told
        assert not (tmp_path/'out'/'model_final.pth').exists()
        return
    assert done.returncode == 0 and 'box AP' in done.stdout and 'Traceback' not in done.stderr, done.stderr
    report = (tmp_path/'out'/'data_report.txt').read_text()
    for kind, words in {'taken': case.taken, 'left out': case.left_out}.items():
        assert (f'  {kind}: {words}' in report) if words else (f'  {kind}: ' not in report), report
    something = bool(case.taken or case.left_out)
    assert (f'{tmp_path}/a.json: ' in done.stdout) == something, 'a line says if there is something to tell'
    assert case.told in done.stdout + done.stderr

@pytest.mark.parametrize('name', CASES)
def test_check(call, name, tmp_path):
    "`mimdet_data --check` tells the same without training, and writes a clean form in which there is nothing to tell."
    case, data = CASES[name], write(name, tmp_path)
    done = call(mimdet_data, '--check', data, '--pictures', '--repair', tmp_path/'clean.json', '--sheet', tmp_path)
    if case.refused and name not in NOTHING_TO_LEARN:
        told = complaint(done)
        assert all(words in told for words in case.refused), told
        assert not (tmp_path/'clean.json').exists()
        return
    assert done.returncode == 0, done.stderr
    assert (case.taken or case.left_out or 'nothing to report') in done.stdout
    assert KINDS.get(name, '4 JPEG RGB') in done.stdout and (tmp_path/'a_sheet.png').exists()
    clean = f'{tmp_path}/clean.json:{data.split(":", 1)[1]}'
    assert 'nothing to report' in call(mimdet_data, '--check', clean, '--strict').stdout

KINDS = dict(sixteen_bits='4 PNG I;16 (scaled to eight bits)', upside_down='4 JPEG RGB, turned by its EXIF orientation')
NOTHING_TO_LEARN = 'no_annotations', 'all_crowd' # there is nothing wrong with these files

def predicted(call, trained, pictures, tmp_path):
    done = call(mimdet_predict, trained, pictures, '--output', tmp_path/'drawn', '--threshold', 0)
    assert done.returncode == 0, done.stderr
    return done, json.loads((tmp_path/'drawn'/'predictions.json').read_text())

HEIC = b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + bytes(200) # what phones write

def test_pictures_are_known_by_what_they_hold(call, trained, tmp_path):
    "What is none is counted and named: a phone's HEIC, under whatever name."
    (folder := tmp_path/'in').mkdir()
    kinds = {'a.jpg': 'JPEG', 'b.jfif': 'JPEG', 'c.gif': 'GIF', 'd.jpe': 'JPEG', 'e.ppm': 'PPM', 'f.jp2': 'JPEG2000',
             'g.png': 'JPEG', 'h': 'PNG'}
    if features.check('avif'): kinds['i.avif'] = 'AVIF'
    for name, kind in kinds.items(): noise(64, 64).save(folder/name, kind)
    for name in ('IMG_1.HEIC', 'IMG_2.jpg'): (folder/name).write_bytes(HEIC)
    done, found = predicted(call, trained, folder, tmp_path)
    assert {f['file_name'] for f in found} == {*kinds}
    assert f'2 of {len(kinds) + 2} files are not readable images' in done.stderr
    assert "'IMG_1.HEIC', 'IMG_2.jpg'" in done.stderr

def test_a_folder_of_nothing_that_is_known(call, trained, tmp_path):
    (tmp_path/'IMG_1.HEIC').write_bytes(HEIC)
    done = call(mimdet_predict, trained, tmp_path, '--output', tmp_path/'drawn')
    assert "no images here among 1 files, such as 'IMG_1.HEIC'" in complaint(done)

@pytest.mark.parametrize('size', [(500, 2), (2, 500), (1, 1)], ids=str)
def test_thin_pictures(call, trained, size, tmp_path):
    Image.new('RGB', size, 'grey').save(tmp_path/'strip.png')
    predicted(call, trained, tmp_path/'strip.png', tmp_path)

def test_a_name_that_is_not_utf8(trained, tmp_path):
    "Under a terminal that refuses what it cannot encode."
    (tmp_path/'in').mkdir()
    name = os.fsencode(tmp_path/'in') + b'/caf\xe9.jpg'
    noise(64, 64).save(tmp_path/'x.jpg')
    os.rename(tmp_path/'x.jpg', name)
    environment = os.environ | dict(PYTHONIOENCODING='utf-8:strict')
    options = '--output', tmp_path/'drawn', '--threshold', 0
    done = run_command('mimdet_predict', trained, tmp_path/'in', *options, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path/'drawn'/'predictions.json').read_text())

def test_very_large_pictures(call, trained, tmp_path, monkeypatch):
    "They are read reduced for a small network; what is larger still is refused with its size."
    monkeypatch.setattr(images, 'MANY_PIXELS', 100_000)
    noise(512, 512).save(tmp_path/'large.jpg')
    done, found = predicted(call, trained, tmp_path/'large.jpg', tmp_path)
    assert 'large.jpg (read at 1/2 of its size' in done.stdout
    assert found and all(f['reduced'] == 2 and f['segmentation']['size'] == [256, 256] for f in found)
    monkeypatch.setattr(images, 'MOST_PIXELS', 60_000)
    done = call(mimdet_predict, trained, tmp_path/'large.jpg', '--output', tmp_path/'again')
    assert '512 x 512 = 262,144 pixels, more than the limit of 60,000' in complaint(done)

def test_a_file_is_read_once(call, tmp_path, monkeypatch):
    "By training with an evaluation at its end, although both ask for it."
    data, opened = write('roboflow', tmp_path), []
    def noted(path, *arguments, open=open, **options):
        if str(path) == str(tmp_path/'a.json'): opened.append(path)
        return open(path, *arguments, **options)
    for module in (io, builtins): monkeypatch.setattr(module, 'open', noted)
    done = call(mimdet_train, *ONE_STEP, '--dataset', data, '--val', data, '--output', tmp_path/'out')
    assert done.returncode == 0
    assert len(opened) == 1

def test_an_evaluator_changes_nothing(tmp_path):
    "pycocotools writes into the annotations that it is given, and others share them."
    json, folder = write('outlines_of_pairs', tmp_path).split(':')
    reading = read_coco(json, folder)
    before = copy.deepcopy(reading.coco)
    result = {k: v for k, v in reading.coco['annotations'][0].items() if k in ('image_id', 'category_id', 'bbox')}
    mask = annotation_mask(reading.coco['annotations'][0]['segmentation'], 90, 120)
    result |= dict(score=1., segmentation=packed(mask))
    average_precision(reading.coco, [result], kind='segm', evaluator='pycocotools')
    assert reading.coco == before

def test_names_are_drawn_in_all_fonts_that_are_needed(monkeypatch):
    "matplotlib asks fonts that are named, one after the other; for 'sans-serif' it asks one."
    characters = {'DejaVu Sans': {*range(128)}, 'DejaVu Serif': {ord('\u732b')}, 'Unifont': {ord('\u0e01')}}
    monkeypatch.setattr(look, '_characters', lambda: {name: (name, known) for name, known in characters.items()})
    chosen = []
    note = lambda text, families: chosen.append((text.get_text(), families))
    monkeypatch.setattr('matplotlib.text.Text.set_fontfamily', note)
    found = Instances((60, 80), pred_boxes=Boxes(torch.tensor([[5., 5., 50., 40.]])), scores=torch.ones(1))
    found.pred_classes = torch.zeros(1, dtype=torch.int64)
    draw(np.zeros((60, 80, 3), dtype=np.uint8), found, class_names=['\u732b'])
    assert ('\u732b 100%', ['DejaVu Sans', 'DejaVu Serif']) in chosen
