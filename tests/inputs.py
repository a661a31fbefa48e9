"""Data sets as exporters, cameras and file systems make them, each with what is to become of it."""
import json
from types import SimpleNamespace
import numpy as np
from PIL import Image

SIZES = (120, 90), (90, 120), (120, 80), (100, 100)
NAMES = 'cup', 'dog', 'tree'

def base():
    "A good file: four pictures, five objects in each; a polygon has eight points."
    categories = [dict(id=n, name=name, supercategory='') for n, name in enumerate(NAMES, 1)]
    coco = dict(images=[], annotations=[], categories=categories)
    for n, (width, height) in enumerate(SIZES, 1):
        coco['images'].append(dict(id=n, file_name=f'p{n}.jpg', width=width, height=height))
        for k in range(5):
            x, y, w, h = 4 + 15*k, 6 + 9*k, 16 + 2*k, 20
            across, down = (x, x + w/4, x + 3*w/4, x + w), (y, y + 5, y + 15, y + h)
            corners = (1, 0), (2, 0), (3, 1), (3, 2), (2, 3), (1, 3), (0, 2), (0, 1)
            outline = [v for i, j in corners for v in (across[i], down[j])]
            coco['annotations'].append(dict(
                id=len(coco['annotations']) + 1, image_id=n, category_id=k % 3 + 1, bbox=[x, y, w, h],
                area=w*h - w*5/2, iscrowd=0, segmentation=[outline]))
    return coco

def noise(width, height, seed=0):
    "A picture."
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))

def pictures(): return {f'p{n}.jpg': noise(*size, n) for n, size in enumerate(SIZES, 1)}

def run_lengths(a, coco):
    "A rectangle as uncompressed run lengths, column by column."
    image = coco['images'][a['image_id'] - 1]
    (x, y, w, h), height, width = a['bbox'], image['height'], image['width']
    after = (width - x - w)*height + height - y - h
    return dict(size=[height, width], counts=[x*height + y, h] + [height - h, h]*(w - 1) + [after])

CASES = {} # {name: SimpleNamespace(change, taken, left_out, refused, dump, told)}

def case(taken='', left_out='', refused=(), told='', dump=lambda coco: json.dumps(coco).encode()):
    """Name a case after its function, which changes (annotations, pictures, folder) in place.
    It is good, if nothing is said; else `taken` and `left_out` begin lines of the report, and `refused` are words of
    the complaint; `told` are words that the command prints."""
    def named(change):
        words = (refused,) if isinstance(refused, str) else refused
        CASES[change.__name__] = SimpleNamespace(
            change=change, taken=taken, left_out=left_out, refused=words, told=told, dump=dump)
    return named

def write(name, folder):
    "Write a case as a.json and imgs; the data set as the commands take it."
    this, coco, pics = CASES[name], base(), pictures()
    (images := folder/'imgs').mkdir(parents=True)
    images = this.change(coco, pics, images) or images
    for file, picture in pics.items():
        (images/file).parent.mkdir(exist_ok=True)
        picture.save(images/file, quality=90)
    (folder/'a.json').write_bytes(this.dump(coco))
    return f'{folder}/a.json:{images}'


# Ids

@case(taken='an annotation with the id 0')
def roboflow(coco, pics, images):
    "Everything is numbered from 0; the category 0 has no objects."
    for i in coco['images']: i |= dict(id=i['id'] - 1, license=1, date_captured='2020-07-20T19:39:26+00:00')
    for a in coco['annotations']: a |= dict(id=a['id'] - 1, image_id=a['image_id'] - 1, segmentation=[])
    coco['categories'].insert(0, dict(id=0, name='things', supercategory='none'))
    coco |= dict(info={}, licenses=[dict(id=1, url='', name='Public Domain')])

@case(taken='images: ids that are text')
def ids_that_are_text(coco, pics, images):
    for i in coco['images']: i['id'] = f'img_{i["id"]:03}'
    for a in coco['annotations']: a['image_id'] = f'img_{a["image_id"]:03}'

@case(taken='image_id written as text')
def ids_written_as_text_in_annotations(coco, pics, images):
    for a in coco['annotations']: a['image_id'] = str(a['image_id'])

@case()
def ids_of_128_bits(coco, pics, images):
    for i in coco['images']: i['id'] += 2**126
    for a in coco['annotations']: a |= dict(id=a['id'] + 2**126, image_id=a['image_id'] + 2**126)

@case()
def negative_and_large_ids(coco, pics, images):
    for i in coco['images']: i['id'] *= -2**40
    for a in coco['annotations']: a |= dict(id=a['id']*2**60, image_id=a['image_id']*-2**40)

@case(refused='images: a duplicate id')
def one_id_for_all_images(coco, pics, images):
    for i in coco['images']: i['id'] = 1

@case(refused='annotations: a duplicate id')
def one_id_for_all_annotations(coco, pics, images):
    for a in coco['annotations']: a['id'] = 0

@case(refused='annotation 1: [1]')
def category_id_in_a_list(coco, pics, images): coco['annotations'][0]['category_id'] = [1]

@case(refused='annotation 1: [1]')
def image_id_in_a_list(coco, pics, images): coco['annotations'][0]['image_id'] = [1]

@case(taken='images: ids that are text')
def ids_that_are_dates(coco, pics, images):
    "Text that Python would read as numbers: 1_1, 1_2 ..."
    for i in coco['images']: i['id'] = f'2024_0{i["id"]}'
    for a in coco['annotations']: a['image_id'] = f'2024_0{a["image_id"]}'

# What is left out or written in another way

@case(taken='area missing, or 0 everywhere')
def boxes_alone(coco, pics, images):
    for a in coco['annotations']:
        for field in ('area', 'iscrowd', 'segmentation'): del a[field]

@case(taken='category_id written as text')
def pylabel(coco, pics, images):
    unread = dict(segmented='0', pose='Unspecified', truncated='0')
    for a in coco['annotations']: a |= dict(segmentation=None, iscrowd=0., category_id=str(a['category_id'])) | unread

@case(taken='iscrowd missing')
def iscrowd_null(coco, pics, images):
    for a in coco['annotations']: a['iscrowd'] = None

@case(taken='sizes written as text or with a decimal point')
def sizes_with_a_decimal_point(coco, pics, images):
    for i in coco['images']: i |= dict(width=float(i['width']), height=float(i['height']))

@case(taken='sizes written as text or with a decimal point')
def sizes_as_text(coco, pics, images):
    for i in coco['images']: i |= dict(width=str(i['width']), height=str(i['height']))

@case(refused=('images without a size', 'one bare polygon'))
def via(coco, pics, images):
    "Everything at once; all of it is told."
    for i in coco['images']: i |= dict(id=i['id'] - 1, width=-1, height=-1)
    for a in coco['annotations']:
        a |= dict(id=a['id'] - 1, image_id=str(a['image_id'] - 1), segmentation=a['segmentation'][0])
    coco['categories'] *= 3

@case(taken='categories: the same entry twice')
def categories_listed_twice(coco, pics, images): coco['categories'] *= 2

@case(refused="'annotations' is an object")
def annotations_by_id(coco, pics, images): coco['annotations'] = {str(a['id']): a for a in coco['annotations']}

# Objects

@case(refused='all 20 objects are crowd: nothing to learn from, or to measure with; set iscrowd to 0')
def all_crowd(coco, pics, images):
    for a in coco['annotations']:
        a |= dict(segmentation=run_lengths(a, coco), iscrowd=1, attributes=dict(occluded=False))

@case()
def masks_as_run_lengths(coco, pics, images):
    for a in coco['annotations']: a['segmentation'] = run_lengths(a, coco)

@case(refused='has no objects')
def no_annotations(coco, pics, images): coco['annotations'] = []

@case(refused="no list 'annotations'")
def image_info_only(coco, pics, images): del coco['annotations']

@case(refused='no images')
def no_images(coco, pics, images): coco |= dict(images=[], annotations=[])

@case(refused='one bare polygon')
def flat_outlines(coco, pics, images):
    for a in coco['annotations']: a['segmentation'] = a['segmentation'][0]

@case(left_out='objects without an outline, in a set with outlines')
def two_without_an_outline(coco, pics, images):
    del coco['annotations'][3]['segmentation']
    coco['annotations'][7]['segmentation'] = []

@case(refused=('more than 10% of the objects would be left out (10 of 20)', 'remove "segmentation" everywhere'))
def half_without_an_outline(coco, pics, images):
    for a in coco['annotations'][::2]: a['segmentation'] = []

@case(taken='area missing, or 0 everywhere')
def no_outlines_and_no_areas(coco, pics, images):
    for a in coco['annotations']: a |= dict(segmentation=[[]], area=0)

@case(taken='points written as pairs')
def outlines_of_pairs(coco, pics, images):
    for a in coco['annotations']: a['segmentation'] = [[*zip(*[iter(points)]*2)] for points in a['segmentation']]

@case(left_out='parts of outlines')
def a_speck_before_an_outline(coco, pics, images):
    "Contours of a mask begin with a line of two points, by which pycocotools would take all of them for boxes."
    coco['annotations'][0]['segmentation'].insert(0, [5, 7, 6, 7])

@case()
def a_speck_after_an_outline(coco, pics, images):
    "As in COCO itself."
    coco['annotations'][0]['segmentation'].append([5, 7, 6, 7])

@case(left_out='outlines without a polygon of three points')
def an_outline_far_away(coco, pics, images): coco['annotations'][0]['segmentation'][0][0] = 1e9

@case(refused='boxes that are fractions of their image')
def fractions(coco, pics, images):
    for a in coco['annotations']: a['bbox'] = [v/120 for v in a['bbox']]

@case(refused='boxes that seem to be x1, y1, x2, y2')
def corners(coco, pics, images):
    for a in coco['annotations']:
        x, y, w, h = a['bbox']
        a['bbox'] = [x, y, x + w, y + h]

@case()
def numbers_that_json_has_not(coco, pics, images):
    "In fields that nothing reads."
    for a in coco['annotations']: a['truncated'] = float('nan')

@case(left_out='outlines without a polygon of three points')
def a_line_for_an_outline(coco, pics, images): coco['annotations'][0]['segmentation'] = [[1, 2, 3, 4]]

@case(left_out='outlines without a polygon of three points')
def a_lost_coordinate(coco, pics, images): coco['annotations'][0]['segmentation'][0].pop()

@case(taken='boxes that reach over the edge')
def a_box_over_the_edge(coco, pics, images):
    a = coco['annotations'][0]
    a['bbox'][2] = coco['images'][0]['width'] - a['bbox'][0] + 6

@case(left_out='boxes wholly outside')
def a_box_outside(coco, pics, images): coco['annotations'][0]['bbox'][0] = 500

@case(refused='boxes with a negative side')
def a_negative_height(coco, pics, images):
    x, y, w, h = coco['annotations'][0]['bbox']
    coco['annotations'][0]['bbox'] = [x, y + h, w, -h]

@case()
def keypoints(coco, pics, images):
    for c in coco['categories']: c |= dict(keypoints=['a', 'b'], skeleton=[[1, 2]])
    for a in coco['annotations']: a |= dict(keypoints=[*a['bbox'][:2], 2, 0, 0, 0], num_keypoints=1)

@case(refused='objects marked "ignore"')
def difficult_objects(coco, pics, images):
    for a in coco['annotations']: a['ignore'] = int(a['id'] == 1)

# Encodings and names

@case(taken='a byte order mark', dump=lambda coco: json.dumps(coco).encode('utf-8-sig'))
def byte_order_mark(coco, pics, images): pass

@case(refused='Latin-1', dump=lambda coco: json.dumps(coco, ensure_ascii=False).encode('latin-1'))
def latin1(coco, pics, images): coco['categories'][0]['name'] = '\u00c4pfel'

@case(refused='is in UTF-16: save it as UTF-8', dump=lambda coco: json.dumps(coco).encode('utf-16'))
def utf16(coco, pics, images): pass

def renamed(coco, names):
    for c, name in zip(coco['categories'], names): c['name'] = name

@case(dump=lambda coco: json.dumps(coco, ensure_ascii=False).encode())
def names_of_other_scripts(coco, pics, images):
    renamed(coco, ['\u732b', '\u044f\u0431\u043b\u043e\u043a\u043e', '\U0001f34e'])

@case()
def names_with_dollars(coco, pics, images): renamed(coco, ['$$', '5$ bill and 10$ bill', 'a_{b}$x^$'])

@case()
def names_that_look_like_yaml(coco, pics, images): renamed(coco, ['no', '1e3', '~'])

@case()
def names_that_look_like_omegaconf(coco, pics, images): renamed(coco, ['???', '${oc.env:HOME}', ' lead'])

@case(taken='names that are numbers')
def names_that_are_numbers(coco, pics, images): renamed(coco, [1, 2, 3])

@case()
def one_name_for_all(coco, pics, images): renamed(coco, ['tumour']*3)

@case(refused='categories without a name')
def a_null_name(coco, pics, images): renamed(coco, [None])

# Names of files

@case(taken='file names written in another way')
def backslashes(coco, pics, images):
    for file in [*pics]: pics['images/' + file] = pics.pop(file)
    for i in coco['images']: i['file_name'] = 'images\\' + i['file_name']

@case(taken='file names written in another way')
def names_of_a_url(coco, pics, images):
    for file in [*pics]: pics['my ' + file] = pics.pop(file)
    for i in coco['images']: i['file_name'] = 'my%20' + i['file_name']

@case(taken='file names written in another way')
def paths_of_another_machine(coco, pics, images):
    roots = '/home/bob/set/', 'C:\\set\\', 'https://example.org/', '../'
    for i, root in zip(coco['images'], roots): i['file_name'] = root + i['file_name']

@case(refused='images that share a file')
def one_file_for_two_images(coco, pics, images):
    for n, i in enumerate(coco['images'][:2]): i['file_name'] = f'{n}/p1.jpg'

@case(taken='file names written in another way')
def the_folder_once_more(coco, pics, images):
    for i in coco['images']: i['file_name'] = 'imgs/' + i['file_name']

@case(taken='file names written in another way', dump=lambda coco: json.dumps(coco, ensure_ascii=False).encode())
def decomposed_letters(coco, pics, images):
    coco['images'][0]['file_name'] = 'caf\u00e9.jpg'
    pics['cafe\u0301.jpg'] = pics.pop('p1.jpg')

@case(taken='file names written in another way')
def capital_letters(coco, pics, images): pics['P1.JPG'] = pics.pop('p1.jpg')

@case(refused="the nearest is 'p1.jpg'")
def a_misspelt_name(coco, pics, images): coco['images'][0]['file_name'] = 'pp1.jpg'

@case()
def a_colon_in_the_path(coco, pics, images):
    (folder := images.parent/'my data:v2').mkdir()
    return folder

# Pictures

def turned(pics, images, orientation):
    "Write the pictures with an EXIF note that says how they are to be turned."
    exif = Image.Exif()
    exif[0x0112] = orientation
    for file in [*pics]: pics.pop(file).save(images/file, exif=exif)

@case(refused='turn the boxes, or remove the EXIF orientation')
def annotated_before_the_turn(coco, pics, images):
    turned({file: pics.pop(file) for file in ('p1.jpg', 'p2.jpg', 'p3.jpg')}, images, 6)

@case()
def upside_down(coco, pics, images):
    "Nothing can be noticed: sizes agree."
    turned(pics, images, 3)

@case(told='mode I;16')
def sixteen_bits(coco, pics, images):
    for i in coco['images']:
        grey = np.asarray(pics.pop(i['file_name']).convert('L')).astype(np.uint16)*257
        i['file_name'] = i['file_name'].replace('.jpg', '.png')
        pics[i['file_name']] = Image.fromarray(grey)

@case(refused='cannot be read as an image')
def truncated(coco, pics, images):
    for file in [*pics]:
        pics.pop(file).save(images/file)
        (images/file).write_bytes((images/file).read_bytes()[:900])

@case(refused='use that image, or scale the boxes and outlines')
def scaled_after_annotation(coco, pics, images):
    for file in [*pics]: pics[file] = pics[file].resize((60, 45))

@case()
def a_thin_strip(coco, pics, images):
    pics |= {'p1.jpg': Image.new('RGB', (500, 2), 'grey')}
    coco['images'][0] |= dict(width=500, height=2)
    for a in coco['annotations']:
        a['segmentation'] = []
        if a['image_id'] == 1: a |= dict(bbox=[10, 0, 100, 2], area=200)
