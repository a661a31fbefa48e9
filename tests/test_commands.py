"""Commands as a user runs them: bad input earns one line and exit code 2, and leaves nothing behind."""
import json, os, re, resource
from pathlib import Path
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from conftest import ROOT, SHORT, run_command, spec
from mimdet.training.commands import (mimdet_data, mimdet_evaluate, mimdet_models, mimdet_predict, mimdet_pretrain,
                                      mimdet_train)
from mimdet.base.core import sha256
from mimdet.detector import build
from detectron2.data import MetadataCatalog # after a module of mimdet, which mends detectron2
from mimdet.training.pretrain import autoencoder
from mimdet.weights.files import read_weights, save_weights
from mimdet.recipes import config, names
from mimdet.training.train import read_config
from mimdet.vit import mae_names

def complaint(done):
    "The one line of a command that failed as it should."
    lines = [line for line in done.stderr.splitlines() if 'error:' in line]
    assert done.returncode == 2, f'exit {done.returncode}: {done.stderr}'
    assert len(lines) == 1 and 'Traceback' not in done.stderr, done.stderr
    return lines[0]

def changed(split, folder, change):
    "A copy of a data set's annotations, changed; its spec."
    coco = json.loads(open(split['json']).read())
    change(coco)
    path = folder/'changed.json'
    path.write_text(json.dumps(coco))
    return f'{path}:{split["images"]}'

def of_another_size(coco):
    for annotation in coco['annotations']: annotation['segmentation'].update(size=[64, 64])

BAD_DATA = {
    'lacks keys': (lambda c: c.pop('categories'), 'categories'),
    'box with a negative side': (lambda c: c['annotations'][0].update(bbox=[100, 100, -90, 20]), 'bbox'),
    'unknown category': (lambda c: c['annotations'][0].update(category_id=999), 'annotation 1: 999'),
    'bare polygon': (lambda c: c['annotations'][0].update(segmentation=[1, 1, 5, 1, 5, 5]), 'segmentation'),
    'masks of another size': (of_another_size, 'another size'),
    'all crowd': (lambda c: [a.update(iscrowd=1) for a in c['annotations']], 'set iscrowd to 0'),
    'missing image': (lambda c: c['images'][0].update(file_name='gone.jpg'), 'gone.jpg'),
}

@pytest.mark.parametrize('case', BAD_DATA)
def test_bad_annotations(call, case, emoji, tmp_path):
    change, word = BAD_DATA[case]
    data = changed(emoji['train'], tmp_path, change)
    done = call(mimdet_train, *SHORT, '--dataset', data, '--output', tmp_path/'out')
    assert word in complaint(done)
    assert not (tmp_path/'out').exists()

def test_not_json(emoji, tmp_path):
    "The command as it is installed, in a process of its own."
    (tmp_path/'a.json').write_text('{"images": [')
    data = f'{tmp_path}/a.json:{emoji["train"]["images"]}'
    done = run_command('mimdet_train', '--dataset', data, '--output', tmp_path/'out', warm=False)
    assert 'is not JSON' in complaint(done)
    assert not (tmp_path/'out').exists()

def test_truncated_image(call, emoji, tmp_path):
    coco = json.loads(open(emoji['train']['json']).read())
    for image in coco['images']: # all of them, so that the first batch meets one
        data = Path(emoji['train']['images'], image['file_name']).read_bytes()
        (tmp_path/image['file_name']).write_bytes(data[:len(data)//2])
    data = f'{emoji["train"]["json"]}:{tmp_path}'
    done = call(mimdet_train, 'schedule.iterations=2', *SHORT, '--dataset', data, '--output', tmp_path/'out')
    assert 'cannot be read as an image' in complaint(done)
    assert not (tmp_path/'out'/'model_final.pth').exists()

@pytest.mark.parametrize('arguments, message', [
    (['--config', 'mimdet_bas_v1_sr0.5_3x'], "did you mean 'mimdet_base_v1_sr0.5_3x'?"),
    (['model.backbone.bottom_up.sample_ratios=0.5'], "did you mean 'model.backbone.bottom_up.sample_ratio'?"),
    (['model.backbone.bottom_up.sample_ratio=0'], 'outside (0, 1]'),
    (['model.backbone.bottom_up.sample_ratio=1.5'], 'outside (0, 1]'),
    (['model.strategy=spiral'], 'unknown sampling strategy'),
    (['--dataset', 'nowhere.json:images'], 'no such data set'),
    (['--config', 'nowhere.yaml'], 'no such file'),
    (['--device', 'abacus'], "'abacus' is not available"),
    (['--init', 'nowhere.pth'], 'no such file'),
    (['--batch', '-1'], 'batch=-1 must be greater than 0'),
    (['schedule.iterations=0'], 'must be at least 1'),
    (['schedule.kind=step', 'schedule.milestones=[9]', 'schedule.iterations=9'], 'milestones [9] must rise'),
    (['model.backbone.bottom_up.heads=7'], 'no model can be built'),
    (['optimizer.betas=[0.9]'], 'optimizer.betas'),
    (['train.checkpoint_period=0'], 'must be at least 1'),
    (['data.short_edges=[128'], 'not valid YAML'),
    (['optimizer.lr=1e-3x'], 'optimizer.lr is a number'),
])
def test_bad_arguments(call, arguments, message, emoji, tmp_path):
    data = [] if '--dataset' in arguments else ['--dataset', spec(emoji['train'])]
    assert message in complaint(call(mimdet_train, *arguments, *data, '--output', tmp_path/'out'))
    assert not (tmp_path/'out').exists()

def test_checkpoint_of_another_model(call, trained, emoji, tmp_path):
    options = [*SHORT, '--dataset', spec(emoji['train']), '--output', tmp_path/'out']
    done = call(mimdet_train, *options, '--mae', trained/'model_final.pth')
    assert 'is not an MAE checkpoint' in complaint(done)
    torch.save(dict(model={'backbone.x': torch.ones(1)}), tmp_path/'other.pth')
    done = call(mimdet_train, *options, '--init', tmp_path/'other.pth')
    assert 'does not fit' in complaint(done)
    assert not (tmp_path/'out').exists()

def test_evaluate_ratios(call, trained, emoji, tmp_path):
    data = ['--dataset', spec(emoji['val'])]
    for ratio in ('0', '1.5'):
        assert 'outside (0, 1]' in complaint(call(mimdet_evaluate, trained, *data, '--ratio', ratio))
    wrong = call(mimdet_evaluate, trained, *data, '--evaluator', 'coco')
    assert 'there are hotcoco, pycocotools' in complaint(wrong)
    options = ['--ratio', '0.25,1', '--evaluator', 'pycocotools', '--output', tmp_path]
    done = call(mimdet_evaluate, trained, *data, *options)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path/'metrics.json').read_text())
    assert [(row['ratio'], row['evaluator']) for row in rows] == [(0.25, 'pycocotools'), (1.0, 'pycocotools')]
    assert isinstance(json.loads((tmp_path/'predictions_0.25.json').read_text()), list)

def test_evaluate_other_categories(call, trained, emoji, tmp_path):
    def rename(coco): coco['categories'][0]['name'] = 'submarine'
    data = changed(emoji['val'], tmp_path, rename)
    assert "'submarine'" in complaint(call(mimdet_evaluate, trained, '--dataset', data))

@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_unwritable_folder(call, emoji, tmp_path):
    (tmp_path/'locked').mkdir(mode=0o500)
    options = ['schedule.iterations=1', *SHORT, '--dataset', spec(emoji['train'])]
    complaint(call(mimdet_train, *options, '--output', tmp_path/'locked'/'out'))

def test_output_folder_is_a_file(call, emoji, tmp_path):
    (tmp_path/'file').write_text('')
    options = ['schedule.iterations=1', *SHORT, '--dataset', spec(emoji['train'])]
    assert 'file' in complaint(call(mimdet_train, *options, '--output', tmp_path/'file'/'out'))

def test_full_disk(emoji, tmp_path):
    "A limit on the size of files acts like a disk that fills while the weights are written."
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    options = ['schedule.iterations=1', *SHORT, '--dataset', spec(emoji['train']), '--output', tmp_path/'out']
    done = run_command('mimdet_train', *options, warm=False, preexec_fn=limit)
    assert 'cannot be written' in complaint(done)
    assert not list((tmp_path/'out').glob('*.pth*')) and not list((tmp_path/'out').glob('.*'))

def pictures(folder):
    "One picture of each awkward kind."
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.convert('L').save(folder/'grey.png')
    image.convert('RGBA').save(folder/'rgba.png')
    image.convert('CMYK').save(folder/'cmyk.jpg')
    exif = Image.Exif()
    exif[0x0112] = 6 # turned by a quarter
    image.save(folder/'turned.jpg', exif=exif)

def test_predict(call, trained, tmp_path):
    (tmp_path/'in').mkdir()
    pictures(tmp_path/'in')
    options = ['--output', tmp_path/'out', '--threshold', '0', '--ratio', '0.5']
    done = call(mimdet_predict, trained, tmp_path/'in', *options)
    assert done.returncode == 0, done.stderr
    sizes = {p.name: Image.open(p).size for p in (tmp_path/'out').glob('*.png')}
    assert sizes == {'grey.png': (90, 60), 'rgba.png': (90, 60), 'cmyk.png': (90, 60), 'turned.png': (60, 90)}
    found = json.loads((tmp_path/'out'/'predictions.json').read_text())
    keys = {'file_name', 'category', 'category_id', 'bbox', 'score', 'segmentation'}
    assert all(set(f) == keys for f in found)

def test_predict_keeps_the_pictures(call, trained, tmp_path):
    pictures(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    assert 'is one of the input images' in complaint(call(mimdet_predict, trained, tmp_path, '--output', tmp_path))
    Image.open(tmp_path/'grey.png').save(tmp_path/'turned.png')
    assert 'have the same name' in complaint(call(mimdet_predict, trained, tmp_path, '--output', tmp_path/'out'))
    assert {p: p.read_bytes() for p in before} == before

def test_predict_bad_input(call, trained, tmp_path):
    (tmp_path/'broken.jpg').write_bytes(b'\xff\xd8\xff')
    broken = call(mimdet_predict, trained, tmp_path/'broken.jpg', '--output', tmp_path/'out')
    assert 'cannot be read as an image' in complaint(broken)
    assert 'no such image' in complaint(call(mimdet_predict, trained, tmp_path/'gone.jpg'))
    assert 'holds no trained model' in complaint(call(mimdet_predict, tmp_path, tmp_path/'broken.jpg'))
    assert not (tmp_path/'out'/'predictions.json').exists()

def test_pretrain(call, emoji, tmp_path):
    options = ['--steps', 2, '--batch', 2, '--warmup', 1, '--stem-batch', 4]
    done = call(mimdet_pretrain, emoji['train']['images'], '--output', tmp_path/'mae', *options)
    assert done.returncode == 0, done.stderr
    data = ['--dataset', spec(emoji['train']), '--val', spec(emoji['val'])]
    options = ['--output', tmp_path/'out', '--mae', tmp_path/'mae'/'mae_full.pth']
    done = call(mimdet_train, 'schedule.iterations=1', *SHORT, *data, *options)
    assert done.returncode == 0, done.stderr
    assert 'box AP' in done.stdout and 'dropped' in done.stdout and 'fitted' in done.stdout
    assert 'no images here' in complaint(call(mimdet_pretrain, tmp_path, '--output', tmp_path/'none'))

def test_a_stem_for_a_file_that_is_there(call, emoji, tmp_path):
    save_weights(dict(model=mae_names(autoencoder('tiny')[0].state_dict())), tmp_path/'mae.pth')
    before = (tmp_path/'mae.pth').read_bytes()
    def fit(*options):
        output = ['--output', tmp_path/'stem', '--stem-batch', 4]
        return call(mimdet_pretrain, emoji['train']['images'], *output, *options)
    done = fit('--stem-for', tmp_path/'mae.pth', '--stem-steps', 2)
    assert done.returncode == 0 and 'of their variance' in done.stdout
    assert (tmp_path/'mae.pth').read_bytes() == before
    assert any(name.startswith('stem.') for name in read_weights(tmp_path/'stem/mae_full.pth'))
    assert 'steps=0 must be at least 1' in complaint(fit('--stem-for', tmp_path/'mae.pth', '--stem-steps', 0))
    save_weights(dict(model=dict(x=torch.zeros(1))), tmp_path/'other.pth')
    assert 'a stem needs a full MAE' in complaint(fit('--stem-for', tmp_path/'other.pth'))

@pytest.mark.parametrize('first', [1, 3])
def test_the_first_images(call, emoji, tmp_path, first):
    data = [*SHORT, '--dataset', spec(emoji['train'])]
    options = ['--output', tmp_path/'out', '--first', first, '--batch', 1, '--epochs', 1]
    done = call(mimdet_train, *data, *options)
    assert done.returncode == 0, done.stderr
    cfg = OmegaConf.load(tmp_path/'out/config.yaml')
    assert cfg.data.first == first and cfg.schedule.iterations == first
    wrong = call(mimdet_train, *data, '--output', tmp_path/'wrong', 'data.first=17')
    assert 'has 16 images' in complaint(wrong)

def test_boxes_without_masks(call, emoji, tmp_path):
    "Annotations without outlines train a detector of boxes, which is evaluated and predicts as such."
    def outlines_gone(coco):
        for annotation in coco['annotations']: del annotation['segmentation']
    data = changed(emoji['train'], tmp_path, outlines_gone)
    options = ['schedule.iterations=1', *SHORT, '--dataset', data, '--val', data, '--output', tmp_path/'out']
    assert call(mimdet_train, *options).returncode == 0
    done = call(mimdet_evaluate, tmp_path/'out')
    assert 'box AP' in done.stdout and 'mask AP' not in done.stdout
    done = call(mimdet_evaluate, tmp_path/'out', '--dataset', spec(emoji['train']))
    assert 'mask AP' not in done.stdout, 'a detector of boxes has no masks, whatever the data have'
    options = ['schedule.iterations=1', 'data.val=', '--output', tmp_path/'again']
    again = call(mimdet_train, '--config', tmp_path/'out'/'config.yaml', *options)
    assert again.returncode == 0, again.stderr
    pictures(tmp_path)
    options = ['--output', tmp_path/'drawn', '--threshold', 0.01]
    assert call(mimdet_predict, tmp_path/'out', tmp_path/'grey.png', *options).returncode == 0
    found = json.loads((tmp_path/'drawn'/'predictions.json').read_text())
    assert found and 'segmentation' not in found[0]

@pytest.mark.parametrize('recipe', ['mimdet_tiny_v2_sr0.5_3x', 'benchmarking_tiny_25ep'])
def test_weights_of_a_recipe(call, recipe, emoji, tmp_path):
    "A file alone, as the published ones: the recipe says the rest, and the categories are COCO's."
    torch.manual_seed(0)
    weights = build(config(recipe)).state_dict()
    weights = {k: v*(10 if 'cls_score.weight' in k else 1) for k, v in weights.items()}
    torch.save(dict(model=weights), tmp_path/'published.pth')
    pictures(tmp_path)
    options = '--weights', tmp_path/'published.pth'
    drawn = ['--output', tmp_path/'drawn', '--threshold', 0]
    done = call(mimdet_predict, recipe, tmp_path/'turned.jpg', *options, *drawn)
    assert done.returncode == 0 and sha256(tmp_path/'published.pth') in done.stdout, done.stderr
    found = json.loads((tmp_path/'drawn'/'predictions.json').read_text())
    assert found and {f['category'] for f in found} <= set(MetadataCatalog.get('coco_2017_val').thing_classes)
    for x, y, width, height in (f['bbox'] for f in found):
        assert 0 <= x and x + width <= 60.01 and y + height <= 90.01
    assert '80 categories' in complaint(call(mimdet_evaluate, recipe, *options, '--dataset', spec(emoji['val'])))

def test_the_baseline_trains_and_has_no_ratio(call, emoji, tmp_path):
    data = ['--dataset', spec(emoji['train']), '--val', spec(emoji['val'])]
    recipe = ['--config', 'benchmarking_tiny_25ep', *SHORT]
    short = ['schedule.iterations=1', 'train.ema=0.9999']
    done = call(mimdet_train, *recipe, *short, *data, '--output', tmp_path/'out')
    assert done.returncode == 0 and '\n1      decoder' in done.stdout, done.stderr
    kept = torch.load(tmp_path/'out'/'model_final.pth', weights_only=True)['model']
    for name, buffer in build(config('benchmarking_tiny_25ep')).named_buffers():
        if 'index' in name: assert torch.equal(kept[name], buffer), 'an average of whole numbers is none'
    assert 'no sample ratio' in complaint(call(mimdet_evaluate, tmp_path/'out', '--ratio', '0.5'))
    wrong = call(mimdet_train, *recipe, 'data.square=64', *data, '--output', tmp_path/'wrong')
    assert 'takes 128x128 pixels, not 64x64' in complaint(wrong)
    wrong = call(mimdet_train, *SHORT, 'data.square=128', *data, '--output', tmp_path/'wrong')
    assert 'contradict' in complaint(wrong)

def test_images_without_objects(call, emoji, tmp_path):
    "The first image has none; a data set that has none at all is refused."
    def first_without(coco):
        first = coco['images'][0]['id']
        coco['annotations'] = [a for a in coco['annotations'] if a['image_id'] != first]
    data = changed(emoji['train'], tmp_path, first_without)
    options = ['schedule.iterations=1', *SHORT, '--dataset', data,
               '--first', 1, '--batch', 1, '--output', tmp_path/'out']
    assert 'no images to train on' in complaint(call(mimdet_train, *options, 'data.filter_empty=true'))
    assert call(mimdet_train, *options, 'data.filter_empty=false').returncode == 0
    none = changed(emoji['train'], tmp_path, lambda coco: coco['annotations'].clear())
    refused = call(mimdet_train, *SHORT, '--dataset', none, '--output', tmp_path/'none')
    assert 'has no objects' in complaint(refused)

def roboflow(coco):
    "Harmless habits: an annotation numbered 0, iscrowd left out, ids as text, another folder and case in the names."
    for a in coco['annotations']:
        a |= dict(id=a['id'] - 1, image_id=f'img{a["image_id"]}', category_id=str(a['category_id']))
        del a['iscrowd']
    for i in coco['images']: i |= dict(id=f'img{i["id"]}', file_name='train\\' + i['file_name'].upper())

def test_harmless_habits(call, emoji, trained, tmp_path):
    """They are told in one line, the report lies beside the run, AP is that of the good file,
    and results name the file's own ids."""
    data, good = changed(emoji['train'], tmp_path, roboflow), spec(emoji['train'])
    done = call(mimdet_train, 'schedule.iterations=1', *SHORT, '--dataset', data, '--output', tmp_path/'out')
    assert done.returncode == 0, done.stderr
    assert ' things taken as intended (' in done.stdout
    assert 'taken: iscrowd missing' in (tmp_path/'out'/'data_report.txt').read_text()
    strict = call(mimdet_train, *SHORT, '--dataset', data, '--strict', '--output', tmp_path/'strict')
    assert 'cannot be used' in complaint(strict)
    rows = []
    for name, dataset in dict(good=good, habits=data).items():
        options = ['--dataset', dataset, '--ratio', 1, '--output', tmp_path/name]
        assert call(mimdet_evaluate, trained, *options).returncode == 0
        rows.append(json.loads((tmp_path/name/'metrics.json').read_text())[0])
    assert rows[0]['bbox'] == rows[1]['bbox'] and rows[0]['segm'] == rows[1]['segm']
    results = json.loads((tmp_path/'habits'/'predictions_1.json').read_text())
    assert results and all(r['image_id'].startswith('img') for r in results)

ODD_NAMES = ['$$', '5$ bill and 10$ bill', '???', '${oc.env:HOME}', '\u732b', 'a_{b}$x^$', '{0} %s', '~', '']

def test_odd_names(call, emoji, tmp_path):
    "They are kept to the letter, from the annotations over the configuration to predictions."
    def renamed(coco):
        for c, name in zip(coco['categories'], names): c['name'] = name
    for k in range(0, len(ODD_NAMES), 3):
        names = ODD_NAMES[k:k + 3]
        (folder := tmp_path/f'data{k}').mkdir()
        data = changed(emoji['train'], folder, renamed)
        options = ['schedule.iterations=1', *SHORT, 'model.roi_heads.box_predictor.test_score_thresh=0.0']
        done = call(mimdet_train, *options, '--dataset', data, '--val', data, '--output', tmp_path/f'{k}')
        assert done.returncode == 0, done.stderr
        drawn = ['--output', tmp_path/f'drawn{k}', '--threshold', 0]
        done = call(mimdet_predict, tmp_path/f'{k}', emoji['val']['images'], *drawn)
        assert done.returncode == 0, done.stderr
        found = json.loads((tmp_path/f'drawn{k}'/'predictions.json').read_text())
        categories = {r['category'] for r in found}
        assert categories <= {*names} and len(categories) > 1

def test_a_picture_with_a_comma_in_its_name(call, trained, emoji, tmp_path):
    picture = tmp_path/'red, large.jpg'
    picture.write_bytes(next(Path(emoji['val']['images']).iterdir()).read_bytes())
    done = call(mimdet_predict, trained, picture, '--output', tmp_path/'drawn')
    assert done.returncode == 0 and (tmp_path/'drawn'/'red, large.png').exists(), done.stderr

def test_check_and_repair(call, emoji, tmp_path, monkeypatch):
    data = changed(emoji['train'], tmp_path, roboflow)
    options = ['--pictures', '--repair', tmp_path/'clean.json', '--sheet', tmp_path/'sheets']
    done = call(mimdet_data, '--check', data, *options)
    assert done.returncode == 0, done.stderr
    assert '16 images' in done.stdout and 'taken: ' in done.stdout
    assert (tmp_path/'sheets'/'changed_sheet.png').exists()
    clean = f'{tmp_path}/clean.json:{emoji["train"]["images"]}'
    assert 'nothing to report' in call(mimdet_data, '--check', clean, '--strict').stdout
    assert 'exists' in complaint(call(mimdet_data, '--check', data, '--repair', tmp_path/'clean.json'))
    monkeypatch.chdir(tmp_path)
    assert call(mimdet_data, '--check', data, '--sheet').returncode == 0
    assert Path('changed_sheet.png').exists()
    assert 'cannot be used' in complaint(call(mimdet_data, '--check', data, '--strict'))
    assert 'give the folder to make' in complaint(call(mimdet_data))

def test_models(call):
    assert 'unknown recipe' in complaint(call(mimdet_models, 'mimdet_base_v1'))
    listed = call(mimdet_models).stdout
    for name in names(): assert listed.count(f'\n{name} ') == 1
    assert '127,954,768     127.96    51.7     46.2' in listed and '2501' not in listed

@pytest.mark.parametrize('name', names())
def test_a_printed_recipe_is_a_configuration(call, name, tmp_path):
    "What `mimdet_models` prints can be saved and loaded, as YAML and from Python, and is the recipe."
    printed = call(mimdet_models, name).stdout
    assert '# - ' in printed
    (tmp_path/'saved.yaml').write_text(printed)
    (tmp_path/'saved.py').write_text('from mimdet.recipes import config\n'
                                     f'globals().update(config({name!r}))\n')
    assert read_config(str(tmp_path/'saved.yaml')) == read_config(str(tmp_path/'saved.py')) == config(name)

def test_evaluation_only(call, emoji, tmp_path):
    "Without --init: the run in the output folder, with its own configuration and against its own categories."
    options = ['schedule.iterations=1', *SHORT, 'model.backbone.bottom_up.sample_ratio=0.25']
    made = call(mimdet_train, *options, '--dataset', spec(emoji['train']), '--output', tmp_path/'run')
    assert made.returncode == 0, made.stderr
    data = ['--val', spec(emoji['val']), '--eval-only']
    assert '\n0.25   decoder' in call(mimdet_train, *data, '--output', tmp_path/'run').stdout
    weights = ['--config', tmp_path/'run'/'config.yaml', '--init', tmp_path/'run'/'model_final.pth']
    done = call(mimdet_train, *data, *weights, 'model.backbone.bottom_up.sample_ratio=1.0')
    assert done.returncode == 0 and 'sha256' in done.stdout and '\n1      decoder' in done.stdout, done.stderr
    assert 'needs a data set' in complaint(call(mimdet_train, *weights, 'data.val=', '--eval-only'))
    assert '\n0.25   decoder' in call(mimdet_train, *data, '--init', tmp_path/'run'/'model_final.pth').stdout
    released = 'mimdet_tiny_v1_sr0.5_emoji'
    assert f'mimdet_evaluate {released}' in complaint(call(mimdet_train, *data, '--init', released))
    def swap(coco):
        first, second = coco['categories'][:2]
        first['name'], second['name'] = second['name'], first['name']
    swapped = ['--val', changed(emoji['val'], tmp_path, swap), '--eval-only']
    assert 'order or names differ' in complaint(call(mimdet_train, *swapped, '--output', tmp_path/'run'))

@pytest.mark.parametrize('change, told', [
    ('model.amp=fp17', "unknown precision 'fp17'"),
    ('optimizer.lr_factor=0', 'optimizer.lr_factor=0 must be more than 0'),
    ('optimizer.betas=[2,3]', 'must be two numbers in [0, 1)'),
    ('data.short_edges=[]', 'must be sides in pixels'),
    ('data.max_size=0', 'must be sides in pixels'),
    ('train.seed=99999999999999999999', 'is outside 0 to 2**63'),
])
def test_values_that_cannot_be(call, emoji, tmp_path, change, told):
    options = [*SHORT, change, '--dataset', spec(emoji['train']), '--output', tmp_path/'run']
    assert told in complaint(call(mimdet_train, *options))

HARMFUL = 'model: {_target_: os.system, command: "touch executed"}\n'

@pytest.mark.parametrize('text, message', [
    (HARMFUL, "'optimizer' is missing"),
    ('model: !!python/object/apply:os.system ["touch executed"]\n', 'is not a configuration'),
    ('model: {a: 1\n', 'is not a configuration'),
    ('train: {seed: 1}\n', "'model' is missing"),
])
def test_bad_configuration_files(call, text, message, emoji, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('bad.yaml').write_text(text)
    assert message in complaint(call(mimdet_train, '--config', 'bad.yaml', '--dataset', spec(emoji['train'])))
    assert not Path('executed').exists()

def test_a_configuration_runs_no_code(call, trained, emoji, tmp_path, monkeypatch):
    "Not even in the folder of a run that somebody passed on."
    monkeypatch.chdir(tmp_path)
    cfg = OmegaConf.load(trained/'config.yaml')
    cfg.model = OmegaConf.create(HARMFUL).model
    OmegaConf.save(cfg, 'config.yaml')
    assert "'os.system' is not built" in complaint(call(mimdet_evaluate, tmp_path, '--dataset', spec(emoji['val'])))
    assert not Path('executed').exists()

def test_a_configuration_file_may_leave_things_out(call, emoji, tmp_path):
    cfg = config('mimdet_tiny_v1_sr0.5_3x')
    del cfg.train.ema
    OmegaConf.save(cfg, tmp_path/'short.yaml')
    options = ['schedule.iterations=1', *SHORT, '--dataset', spec(emoji['train']), '--output', tmp_path/'out']
    assert call(mimdet_train, '--config', tmp_path/'short.yaml', *options).returncode == 0
    cfg.train.emma = 0.9
    OmegaConf.save(cfg, tmp_path/'typo.yaml')
    wrong = call(mimdet_train, '--config', tmp_path/'typo.yaml', *options)
    assert "nothing reads 'train.emma', did you mean 'train.ema'" in complaint(wrong)

def test_what_was_resolved(call, emoji, tmp_path):
    options = ['schedule.iterations=1', *SHORT, 'optimizer.clip=2']
    done = call(mimdet_train, *options, '--dataset', spec(emoji['train']), '--output', tmp_path/'out')
    assert 'changed from mimdet_tiny_v1_sr0.5_3x:' in done.stdout
    assert '\n  optimizer.clip: 1.0 -> 2\n' in done.stdout
    assert 'optimizer.clip: 1.0 -> 2\n' in (tmp_path/'out'/'changes.txt').read_text()
    assert OmegaConf.load(tmp_path/'out'/'config.yaml').optimizer.clip == 2

def test_divergence_names_the_batch(call, emoji, tmp_path):
    options = ['schedule.iterations=9', *SHORT, 'optimizer.lr=1e30', 'optimizer.clip=0', '--seed', 3]
    done = call(mimdet_train, *options, '--dataset', spec(emoji['train']), '--output', tmp_path/'out')
    assert re.search(r'training diverged at iteration \d: .*; seed 3, images .*image_id', complaint(done))
    facts = json.loads((tmp_path/'out'/'not_finite_0.json').read_text())
    assert facts['seed'] == 3 and len(facts['images']) == 2
    assert not (tmp_path/'out'/'model_final.pth').exists()

def test_half_precision(call, emoji, tmp_path):
    """float16 with scaled losses learns what full precision learns, nearly;
    and the scale is part of a checkpoint."""
    def losses(amp):
        options = ['schedule.iterations=2', *SHORT, f'model.amp={amp}']
        done = call(mimdet_train, *options, '--dataset', spec(emoji['train']), '--output', tmp_path/amp)
        assert done.returncode == 0, done.stderr
        lines = (tmp_path/amp/'metrics.jsonl').read_text().splitlines()
        return [json.loads(line)['total_loss'] for line in lines]
    full, half = losses('fp32'), losses('fp16')
    assert half != full and half == pytest.approx(full, rel=0.02)
    checkpoints = [torch.load(tmp_path/amp/'checkpoint.pth', weights_only=True) for amp in ('fp32', 'fp16')]
    scales = [checkpoint['trainer']['scaler'] for checkpoint in checkpoints]
    assert not scales[0] and scales[1]['scale'] > 1

def test_options_between_changes(call):
    wrong = call(mimdet_train, 'data.batch=2', '--seed', 1, 'train.sed=2')
    assert "did you mean 'train.seed'" in complaint(wrong)

@pytest.mark.parametrize('options, message', [
    (['--num-gpus', 2, '--num-machines', 2], '--dist-url tcp://'),
    (['--num-machines', 2, '--machine-rank', 2], 'outside 0 to 1'),
    (['--num-gpus', 0], 'at least 1'),
    (['--num-gpus', 99, '--device', 'cuda'], '--num-gpus 99: this machine has'),
])
def test_bad_launch(call, options, message):
    assert message in complaint(call(mimdet_train, '--device', 'cpu', *options))

def test_papermill_refuses_unknown_parameters(tmp_path):
    notebook = ROOT/'nbs'/'experiments'/'train.ipynb'
    done = run_command('papermill', notebook, tmp_path/'out.ipynb', '-p', 'sample_rate', '0.5', cwd=tmp_path)
    assert done.returncode != 0 and "unknown parameter 'sample_rate'" in done.stderr

def test_notebook_runner(tmp_path):
    "A failing experiment: one line, the traceback kept aside, and no notebook that looks executed."
    parameters = json.dumps(dict(recipe='mimdet_tiny_v3'))
    script, notebook = ROOT/'tools'/'run_notebook.py', ROOT/'nbs'/'experiments'/'train.ipynb'
    done = run_command('python', script, notebook, tmp_path/'train.ipynb', parameters, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("train: error: MimdetError: unknown recipe 'mimdet_tiny_v3'")
    assert [p.name for p in tmp_path.iterdir()] == ['train.failed.ipynb']

@pytest.mark.parametrize('processes', [1, 2])
def test_a_run_whose_time_is_up_asks_to_be_queued_again(tmp_path, processes):
    scontrol = tmp_path/'scontrol'
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nexit 1\n')
    scontrol.chmod(0o755)
    job = dict(PATH=f'{tmp_path}:{os.environ["PATH"]}', SLURM_JOB_ID='7', MIMDET_ENDS_AT='0', MIMDET_QUEUE_AGAIN='1')
    parameters = dict(gpus=processes, output=str(tmp_path/'run'), overrides=['train.device=cpu'])
    done = run_command('python', ROOT/'tools'/'run_notebook.py', ROOT/'nbs'/'experiments'/'train.ipynb',
                       tmp_path/'train.ipynb', json.dumps(parameters), cwd=tmp_path, env=os.environ | job)
    assert done.returncode == 1 and 'time is up: 1 of 3 steps are done' in done.stdout + done.stderr
    assert (tmp_path/'run'/'checkpoint.pth').exists() and (tmp_path/'asked').read_text() == 'requeue 7\n'
