"""Add a bundle made by `make bundle` to the paths of a shell: eval "$(python FOLDER/activate.py)".

Run it with the Python that has PyTorch. Its own numpy and Pillow are used, and its OpenCV or else the bundle's
replacement."""
import importlib.util, json, os, shlex, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent

def refusal(bundle):
    "Return the reason why this Python cannot use the bundle, or None."
    here = '{}.{}'.format(*sys.version_info)
    if here != bundle['python']:
        return (f'this bundle is for Python {bundle["python"]}, but {sys.executable} is {here}: '
                f'make one with  make bundle PYTHON={here}')
    missing = [name for name in bundle['expects'] if importlib.util.find_spec(name) is None]
    if missing:
        return (f'{sys.executable} has no {" and no ".join(missing)}: '
                'activate the environment that has PyTorch first')

def paths(bundle):
    "Return the variables to set."
    def before(name, *folders):
        there = [p for p in os.environ.get(name, '').split(os.pathsep) if p]
        return os.pathsep.join(dict.fromkeys([*map(str, folders), *there]))
    missing = [name for name, module in bundle['if_missing'].items() if importlib.util.find_spec(module) is None]
    gaps = [ROOT/'packages-if-missing'/name for name in missing]
    return dict(PATH=before('PATH', ROOT/'bin'),
                PYTHONPATH=before('PYTHONPATH', ROOT, ROOT/'packages', *gaps),
                JUPYTER_PATH=before('JUPYTER_PATH', ROOT/'packages'/'share'/'jupyter'))

def main():
    sys.path = [p for p in sys.path if Path(p or '.').resolve() != ROOT] # Python adds the folder of this file
    bundle = json.loads((ROOT/'bundle.json').read_text())
    reason = refusal(bundle)
    if reason:
        print(f'activate: error: {reason}', file=sys.stderr)
        print('false') # so that eval fails too
    else:
        for name, value in paths(bundle).items(): print(f'export {name}={shlex.quote(value)}')
    return bool(reason)

if __name__ == '__main__': sys.exit(main())
