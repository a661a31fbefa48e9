"""Replace OpenCV on a machine without it: only the outlines that detectron2's visualiser needs.
Part of what `make bundle` packs."""
import contourpy, numpy as np

__version__ = '0.stand-in' # detectron2 reads the number before the dot
RETR_CCOMP, CHAIN_APPROX_NONE = 2, 1

def findContours(mask, mode=RETR_CCOMP, method=CHAIN_APPROX_NONE):
    "Return the outlines of a mask, halfway between its pixels and the next; holes have outline 0 as their parent."
    if (mode, method) != (RETR_CCOMP, CHAIN_APPROX_NONE):
        raise NotImplementedError('this stand-in for OpenCV only finds all outlines, with all their points')
    padded = np.pad(mask.astype(float), 1)
    outlines = [line[:-1] - 1 for line in contourpy.contour_generator(z=padded).lines(0.5)]
    if not outlines: return (), None
    parents = [-1 if _area(line) > 0 else 0 for line in outlines]
    return tuple(line[:, None] for line in outlines), np.array([[[-1, -1, -1, parent] for parent in parents]])

def _area(line):
    x, y = line.T
    return (x*np.roll(y, -1) - y*np.roll(x, -1)).sum()/2

def __getattr__(name):
    if name.startswith('__'): raise AttributeError(name)
    raise ImportError(f'cv2.{name} needs OpenCV; this stand-in only finds the outlines of masks')
