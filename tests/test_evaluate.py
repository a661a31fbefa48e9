"""Evaluation: both evaluators agree on every number, a batch changes nothing,
and work in the background keeps its order."""
import copy, json, threading, time
from pathlib import Path
import numpy as np
import pytest, torch
from PIL import Image
from pycocotools import mask as rle
from mimdet.data import augment, datasets, stream
from mimdet.base.core import MimdetError
from mimdet.detector import build, detect
# What is detectron2's comes after a module of mimdet, which mends detectron2.
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances
from mimdet.measure.evaluate import EVALUATORS, average_precisions, coco_results, detections, evaluate_detector
from mimdet.measure.predict import predict_pictures
from mimdet.recipes import config

CFG = config('mimdet_tiny_v1_sr0.5_3x', classes=3)
CFG.data.update(test_short_edge=96, classes=['a', 'b', 'c'], category_ids=[3, 5, 9])

@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return build(CFG).eval()

# --- evaluators ---

def packed(mask):
    made = rle.encode(np.asfortranarray(mask.astype('uint8')))
    return dict(size=made['size'], counts=made['counts'].decode())

def unpacked(mask):
    pixels = mask.T.ravel()
    changes = np.flatnonzero(np.diff(pixels, prepend=False))
    return dict(size=list(mask.shape), counts=np.diff(changes, prepend=0, append=len(pixels)).tolist())

def speckled(rng, box, height, width):
    "A mask that fills most of a box; one in thirty is empty."
    x, y, w, h = (int(v) for v in box)
    mask = np.zeros((height, width), bool)
    if rng.random() > .03:
        inside = mask[y:y + h + 1, x:x + w + 1]
        inside[:] = rng.random(inside.shape) < .8
    return mask

def segmentation_of(rng, box, height, width):
    "Polygons, packed or unpacked run lengths."
    x, y, w, h = box
    polygons = [[x, y, x + w, y, x + w, y + h, x, y + h], [x, y, x + w/2, y, x + w/2, y + 3]]
    mask = speckled(rng, box, height, width)
    return [polygons[:1], polygons, packed(mask), unpacked(mask)][rng.integers(4)]

def random_box(rng, height, width):
    "Small or large; one in ten is flat."
    w, h = rng.uniform(1, rng.choice([8, 25, 100]), 2)*(rng.random() > .1, 1)
    return [rng.uniform(0, width - w), rng.uniform(0, height - h), w, h]

def moved(rng, box, height, width):
    "Another box, by so little that it may still count, or not at all."
    shift = rng.normal(0, 2, 4)*rng.choice([0, .3, 1])
    return (box + shift).clip(0, [width - 1, height - 1, width, height]).tolist()

def generated(seed, images=12, image_ids=None, categories=(1, 2, 3), objects=8, found=20, crowd=.15,
              scores=(.1, .5, .5, .9)):
    """Annotations and results of random images: the last category has no object, some images have no results,
    many scores are equal."""
    rng = np.random.default_rng(seed)
    coco, results = dict(images=[], annotations=[], categories=[dict(id=c, name=f'c{c}') for c in categories]), []
    for image_id in image_ids or range(1, images + 1):
        height, width = rng.integers(110, 260, 2).tolist()
        coco['images'].append(dict(id=image_id, width=width, height=height, file_name=f'{image_id}.png'))
        own = []
        for _ in range(rng.integers(objects + 1)):
            box = random_box(rng, height, width)
            category = categories[rng.integers(max(len(categories) - 1, 1))]
            area = float(rng.choice([box[2]*box[3], 0, 32**2, 96**2], p=[.7, .1, .1, .1]))
            own.append(dict(id=len(coco['annotations']) + len(own) + 1, image_id=image_id, category_id=category,
                            bbox=box, area=area, iscrowd=int(rng.random() < crowd),
                            segmentation=segmentation_of(rng, box, height, width)))
        coco['annotations'] += own
        for _ in range(rng.integers(found + 1) if rng.random() > .2 else 0):
            near = own[rng.integers(len(own))] if own and rng.random() < .7 else None
            box = moved(rng, near['bbox'] if near else random_box(rng, height, width), height, width)
            category = near['category_id'] if near and rng.random() > .1 else categories[rng.integers(len(categories))]
            score = float(rng.choice(scores) if scores else rng.random())
            results.append(dict(image_id=image_id, category_id=category, bbox=box, score=score,
                                segmentation=packed(speckled(rng, box, height, width))))
    rng.shuffle(results)
    return coco, results

def assert_agreement(json, results, **options):
    ours, theirs = (average_precisions(json, results, evaluator=name, **options) for name in ('hotcoco', 'pycocotools'))
    assert ours == theirs

SETS = {
    'usual': {},
    'scores that all differ': dict(scores=()),
    'one score': dict(scores=(.5,)),
    'more than a hundred detections an image': dict(images=3, objects=30, found=600),
    'ids of every size and sign': dict(image_ids=[2**40, 0, -5, 7, 12, 2**53 + 1],
                                       categories=(2**31, 0, -3, 90, 2**53 + 1)),
    'image ids as text': dict(image_ids=['b', 'a', '10', '9', '']),
    'one category': dict(categories=(5,)),
    'crowds only': dict(crowd=1.),
    'no crowds': dict(crowd=0.),
    'no objects': dict(objects=0),
    'no detections': dict(found=0),
}

@pytest.mark.parametrize('options', SETS.values(), ids=SETS)
@pytest.mark.parametrize('part', [False, True], ids=['all images', 'some images'])
def test_evaluators_agree(options, part, tmp_path):
    "Every number, and the whole precision array, to the last bit."
    for seed in range(4):
        coco, results = generated(seed, **options)
        ids = {image['id'] for image in coco['images'][::2 if part else 1]}
        def numbers(run): return list(run(copy.deepcopy(coco), copy.deepcopy(results), ('bbox', 'segm'), ids))
        for one, other in zip(numbers(EVALUATORS['pycocotools']), numbers(EVALUATORS['hotcoco'])):
            assert all(map(np.array_equal, one, other))
        path, before = tmp_path/f'{seed}.json', copy.deepcopy(results)
        path.write_text(json.dumps(coco))
        assert_agreement(path, results, image_ids=ids)
        assert results == before, 'an evaluator adds to what it is given'

def test_masks_without_boxes(tmp_path):
    "Then areas come from the masks."
    coco, results = generated(0, found=60)
    (tmp_path/'coco.json').write_text(json.dumps(coco))
    masks = [{k: v for k, v in r.items() if k != 'bbox'} for r in results]
    assert_agreement(tmp_path/'coco.json', masks, kinds=['segm'])

def test_fields_that_mean_nothing(tmp_path):
    "Whatever else a file holds, and for boxes even its masks."
    coco, results = generated(0, found=60)
    for image in coco['images']: image.update(license='free', date_captured=None, coco_url=7)
    nothing = dict(segmentation=None, keypoints='none', caption=3)
    for annotation in coco['annotations']: annotation.update(nothing, iscrowd=annotation['iscrowd'] == 1)
    for result in results: result.update(id=0, area=0, segmentation={})
    (tmp_path/'coco.json').write_text(json.dumps(coco))
    assert_agreement(tmp_path/'coco.json', results, kinds=['bbox'])

@pytest.mark.parametrize('evaluator', EVALUATORS)
def test_nothing_to_average(evaluator, tmp_path):
    "A size or a category without objects has no AP; one that is not found has 0."
    square = dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 50, 50], area=2500, iscrowd=0,
                  segmentation=[[1, 1, 51, 1, 51, 51, 1, 51]])
    coco = dict(images=[dict(id=1, width=99, height=99, file_name='none.png')], annotations=[square],
                categories=[dict(id=k, name=name) for k, name in enumerate(('none', 'one'))])
    (tmp_path/'coco.json').write_text(json.dumps(coco))
    for row in average_precisions(tmp_path/'coco.json', [], evaluator=evaluator).values():
        assert row == dict(AP=0, AP50=0, AP75=0, APs=None, APm=0, APl=None, per_category=dict(one=0))
    stray = [dict(image_id=2, category_id=1, bbox=[1, 1, 2, 2], score=1)]
    with pytest.raises(MimdetError, match='name image 2'):
        average_precisions(tmp_path/'coco.json', stray, kinds=['bbox'], evaluator=evaluator)

def test_no_other_evaluator(emoji):
    with pytest.raises(MimdetError, match="unknown evaluator 'coco'; there are hotcoco, pycocotools"):
        average_precisions(emoji['val']['json'], [], evaluator='coco')

@pytest.mark.parametrize('count', [0, 1, 30])
def test_masks_encoded_together(count):
    "The same bytes as one by one."
    generator = torch.Generator().manual_seed(count)
    corner = torch.rand(count, 2, generator=generator)*50
    filled = torch.linspace(0, 1, count)[:, None, None] # the first is empty, the last full
    found = Instances((70, 90), pred_boxes=Boxes(torch.cat([corner, corner + 9], dim=1)),
                      scores=torch.rand(count, generator=generator), pred_classes=torch.arange(count) % 4,
                      pred_masks=torch.rand(count, 70, 90, generator=generator) < filled)
    assert coco_results(found, 'picture.jpg') == instances_to_coco_json(found, 'picture.jpg')
    found.remove('pred_masks')
    assert coco_results(found, 3) == instances_to_coco_json(found, 3)

# --- batches ---

SIZES = [ # height, width
    (90, 120), (120, 90), (90, 126), (64, 128), (90, 120), (120, 90), (100, 133), (96, 128), (120, 88)]

@pytest.fixture(scope='module')
def mixed(emoji, tmp_path_factory):
    "A data set of pictures of several sizes, some of which are padded to the same."
    folder = tmp_path_factory.mktemp('mixed')
    coco = json.loads(open(emoji['train']['json']).read())
    coco.update(images=coco['images'][:len(SIZES)], annotations=[])
    for image, (height, width) in zip(coco['images'], SIZES):
        picture = Image.open(f'{emoji["train"]["images"]}/{image["file_name"]}')
        picture.resize((width, height)).save(folder/image['file_name'])
        image.update(height=height, width=width)
    (folder/'coco.json').write_text(json.dumps(coco))
    return datasets.register('mixed', folder/'coco.json', images=folder, objects=False)

def loader_of(info, batch):
    mapper = augment.TestMapper(augment.test_augmentation(96, 160))
    return stream.test_loader(info.records, mapper, batch=batch, multiple=16)

def test_batches_of_one_size(mixed):
    batches = list(loader_of(mixed, 4))
    assert max(map(len, batches)) > 1 and len(batches) == len(loader_of(mixed, 4))
    for batch in batches:
        heights, widths = zip(*(sample['image'].shape[1:] for sample in batch))
        for sides in (heights, widths): assert {-(-side//16) for side in sides} == {-(-max(sides)//16)}
    positions = [sample['position'] for batch in batches for sample in batch]
    assert positions != sorted(positions) == list(range(len(SIZES)))

def found_by(model, info, batch):
    "Detections, and for each image the grid and the tokens that the encoder saw."
    seen = {}
    def note(module, inputs, output):
        for sample, kept in zip(current, inputs[2]): seen[sample['image_id']] = inputs[1], kept.tolist()
    def watched():
        for samples in loader:
            current[:] = samples
            yield samples
    current, loader = [], loader_of(info, batch)
    hook = model.backbone.bottom_up.encoder.register_forward_hook(note)
    try: return detections(model, watched(), info), seen
    finally: hook.remove()

@pytest.mark.parametrize('ratio', [.25, 1.])
def test_a_batch_changes_nothing(ratio, model, mixed):
    "The same tokens, and the same detections within rounding: 0.01 pixels, 1e-5 in the score."
    with model.sampled(ratio):
        (alone, tokens), (together, same_tokens) = (found_by(model, mixed, batch) for batch in (1, 4))
    assert tokens == same_tokens and len(tokens) == len(SIZES)
    assert [r['image_id'] for r in alone] == [r['image_id'] for r in together]
    for one, other in zip(alone, together):
        assert one['category_id'] == other['category_id']
        np.testing.assert_allclose(one['score'], other['score'], atol=1e-5)
        np.testing.assert_allclose(one['bbox'], other['bbox'], atol=1e-2)
        assert rle.area(one['segmentation']) == 0 or rle.iou([one['segmentation']], [other['segmentation']], [0]) > .98

def test_evaluate(model, emoji):
    "The same row by either evaluator, but for its name and the time."
    info = datasets.register('evaluators', emoji['val']['json'], images=emoji['val']['images'])
    rows = [evaluate_detector(model, info, data=CFG.data, batch=4, limit=4, evaluator=name) for name in EVALUATORS]
    assert [row.pop('evaluator') for row in rows] == list(EVALUATORS)
    for row in rows: del row['seconds']
    assert rows[0] == rows[1] and rows[0]['images'] == 4

# --- pictures ---

@pytest.fixture(scope='module')
def pictures(emoji): return sorted(Path(emoji['train']['images']).glob('*'))[:3]

def test_pictures_as_one_by_one(model, pictures, tmp_path, capsys):
    found, lines = [], []
    for path in pictures:
        instances = detect(model, datasets.read_image(path), augment.test_augmentation_of(CFG.data), path.name)
        entries = instances_to_coco_json(instances[instances.scores >= .3], path.name)
        names = [CFG.data.classes[e['category_id']] for e in entries]
        for entry, name in zip(entries, names):
            entry['category_id'] = CFG.data.category_ids[entry['category_id']]
            found.append(dict(file_name=entry.pop('image_id'), category=name) | entry)
        lines.append(f'{path.name}: {", ".join(names) or "nothing"}')
    together = predict_pictures(model, CFG.data, paths=pictures, output=tmp_path, threshold=.3)
    assert found and json.dumps(found) == json.dumps(together)
    assert capsys.readouterr().out.splitlines() == lines
    assert json.loads((tmp_path/'predictions.json').read_text()) == found
    for path in pictures: assert Image.open(tmp_path/f'{path.stem}.png').size == Image.open(path).size

def test_a_drawing_that_cannot_be_written(model, pictures, tmp_path):
    (tmp_path/f'{pictures[1].stem}.png').mkdir()
    with pytest.raises(OSError): predict_pictures(model, CFG.data, paths=pictures, output=tmp_path, threshold=.3)
    assert not (tmp_path/'predictions.json').exists()

# --- in the background ---

def test_background_keeps_the_order():
    def late(k):
        time.sleep(.01*(k % 3))
        return k
    assert list(stream.in_background(late, range(20), workers=3, depth=5)) == list(range(20))
    assert list(stream.in_background(late, [])) == []

def test_background_is_bounded():
    "What the caller has not taken, or is not next in line, has not been drawn."
    drawn, results = [], stream.in_background(str, (drawn.append(k) or k for k in range(9)), depth=3)
    for k in range(5):
        assert next(results) == str(k) and len(drawn) == k + 4

@pytest.mark.parametrize('fails', ['function', 'items'])
def test_background_raises_at_its_turn(fails):
    def items():
        yield from range(3)
        if fails == 'items': raise MimdetError('no more')
        yield -1
    def function(k):
        if k < 0: raise MimdetError('no more')
        return k
    threads, seen = threading.active_count(), []
    with pytest.raises(MimdetError, match='^no more$'):
        for result in stream.in_background(function, items()): seen.append(result)
    assert seen == [0, 1, 2][:3 if fails == 'function' else 1]
    assert threading.active_count() == threads

def test_background_stops_with_its_caller():
    threads, begun = threading.active_count(), []
    for _ in stream.in_background(begun.append, range(99)): break
    assert len(begun) <= 3 and threading.active_count() == threads

@pytest.mark.parametrize('workers', [0, 1])
def test_a_picture_that_cannot_be_read(workers, mixed, tmp_path):
    (tmp_path/'broken.jpg').write_bytes(b'none')
    records = mixed.records[:2] + [dict(mixed.records[2], file_name=str(tmp_path/'broken.jpg'))]
    with pytest.raises(MimdetError, match=r'^\S*broken.jpg cannot be read as an image'):
        list(stream.test_loader(records, augment.TestMapper(augment.test_augmentation(96)), workers=workers))

def test_evaluation_draws_no_random_numbers(mixed):
    "Training goes on after it as if it had not been."
    before = torch.get_rng_state()
    list(loader_of(mixed, 2))
    assert torch.equal(torch.get_rng_state(), before)
