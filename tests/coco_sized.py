"""Time and memory of reading annotations as large as COCO's, beside json alone: `python tests/coco_sized.py`."""
import json, resource, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np

IMAGES, OBJECTS, CATEGORIES = 118_000, 860_000, 80

def make(path):
    "A file of polygons with 8 to 44 points, as many as COCO's have."
    rng = np.random.default_rng(0)
    outlines = []
    for points in rng.integers(8, 45, 2000):
        angles = np.sort(rng.random(points))*2*np.pi
        outlines.append(np.stack([100 + 40*np.cos(angles), 100 + 40*np.sin(angles)], 1).ravel().round(2).tolist())
    images = [dict(id=n, file_name=f'{n:012}.jpg', width=640, height=480) for n in range(1, IMAGES + 1)]
    categories = [dict(id=n, name=f'c{n}') for n in range(1, CATEGORIES + 1)]
    common = dict(bbox=[60.5, 60.25, 80.1, 80.3], area=5026.5, iscrowd=0)
    annotations = [common | dict(id=n, image_id=n % IMAGES + 1, category_id=n % CATEGORIES + 1,
                                 segmentation=[outlines[n % len(outlines)]]) for n in range(1, OBJECTS + 1)]
    path.write_text(json.dumps(dict(images=images, categories=categories, annotations=annotations)))

def measure(path, reader):
    from mimdet.data.coco import read_coco # and what it imports, before the clock starts
    before = time.perf_counter()
    if reader == 'json': json.loads(path.read_bytes())
    else: read_coco(path)
    seconds, memory = time.perf_counter() - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20
    print(f'{reader:10} {seconds:6.1f} s {memory:6.2f} GB at most')

if __name__ == '__main__':
    if len(sys.argv) == 3: measure(Path(sys.argv[1]), sys.argv[2])
    else:
        with tempfile.TemporaryDirectory() as folder:
            make(path := Path(folder)/'annotations.json')
            for reader in ('json', 'read_coco'): # each in a process of its own
                subprocess.run([sys.executable, __file__, path, reader], check=True)
