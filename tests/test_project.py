"""The project's own order: what is generated is up to date, modules keep their layers, versions agree,
and the tools do what they say."""
import ast, configparser, filecmp, graphlib, importlib, json, os, re, shutil, subprocess, sys, tomllib
import urllib.request
from collections import Counter
from pathlib import Path
import nbformat, pytest
import mimdet
from browser import jupyterlab

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = configparser.ConfigParser()
SETTINGS.read(ROOT/'settings.ini')
SETTINGS = SETTINGS['DEFAULT']
PYPROJECT = tomllib.loads((ROOT/'pyproject.toml').read_text())
LOCK = (ROOT/'requirements.lock').read_text()

# A part imports only from itself and parts before it.
PARTS = 'base', 'method', 'weights', 'data', 'measure', 'training', 'study'
WITHOUT_TORCH = { # neither torch, timm nor detectron2
    'base': 'core look doctor',
    'data': 'images coco emoji',
    'method': 'recipes',
    'measure': 'flops',
    'training': 'commands',
    'study': 'records profile jobs plan statistics pages encoder cost tables figures claims',
}

def exported_to(path):
    "The module that a notebook is exported to, below mimdet."
    sources = [cell.source for cell in nbformat.read(path, 4).cells]
    return next((found[1] for source in sources if (found := re.match(r'#\| default_exp (\S+)', source))), None)

NUMBERED = [(part, path) for part in PARTS for path in sorted((ROOT/'nbs'/part).glob('[0-9]*.ipynb'))]
BOOKS = {exported_to(path): path for part, path in NUMBERED} # in reading order
MODULES = ['.'.join(p.relative_to(ROOT/'mimdet').with_suffix('').parts)
           for p in sorted((ROOT/'mimdet').rglob('*.py')) if p.stem not in ('__init__', '_modidx')]

def run(*args, **kwargs):
    return subprocess.run([str(a) for a in args], capture_output=True, text=True, **kwargs)

# --- what is generated ---

@pytest.fixture(scope='module')
def regenerated(tmp_path_factory):
    "A copy of the notebooks, exported into an empty package and cleaned."
    copy = tmp_path_factory.mktemp('regenerated')
    shutil.copytree(ROOT/'nbs', copy/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    (copy/'mimdet').mkdir()
    for name in ('settings.ini', 'pyproject.toml', 'README.md', 'mimdet/__init__.py'):
        shutil.copy(ROOT/name, copy/name)
    shutil.copytree(ROOT/'tools', copy/'tools', ignore=shutil.ignore_patterns('__pycache__'))
    for command in ([Path(sys.executable).parent/'nbdev_export'], [sys.executable, 'tools/clean_notebooks.py']):
        done = run(*command, cwd=copy)
        assert done.returncode == 0, done.stderr
    return copy

def differing(a, b, pattern):
    "Files that only one of two folders has, or that differ."
    def names(folder):
        return {p.relative_to(folder) for p in folder.rglob(pattern) if '.ipynb_checkpoints' not in p.parts}
    def same(name):
        return (a/name).exists() and (b/name).exists() and filecmp.cmp(a/name, b/name, shallow=False)
    return sorted(str(name) for name in names(a) | names(b) if not same(name))

def test_library_is_exported(regenerated):
    assert differing(ROOT/'mimdet', regenerated/'mimdet', '*.py') == [], 'run nbdev_export'

def test_notebooks_are_clean(regenerated):
    different = differing(ROOT/'nbs', regenerated/'nbs', '*.ipynb')
    assert different == [], 'run python tools/clean_notebooks.py'

def test_a_notebook_run_in_jupyterlab_leaves_no_diff(tmp_path):
    "The server as `make lab` starts it; what its page would send when a notebook that was run is saved."
    nbs = tmp_path/'nbs'
    (nbs/'experiments').mkdir(parents=True)
    shutil.copy(ROOT/'nbs'/'experiments'/'train.ipynb', nbs/'experiments')
    shutil.copytree(ROOT/'tools', tmp_path/'tools', ignore=shutil.ignore_patterns('__pycache__'))
    with jupyterlab(tmp_path) as address:
        def ask(content=None):
            url = f'{address}/api/contents/nbs/experiments/train.ipynb'
            request = urllib.request.Request(url, content and json.dumps(content).encode(),
                                             dict(Authorization='token test'), method='PUT' if content else 'GET')
            with urllib.request.urlopen(request, timeout=30) as answer: return json.load(answer)
        model = ask()
        for n, cell in enumerate(c for c in model['content']['cells'] if c['cell_type'] == 'code'):
            cell |= dict(execution_count=n, outputs=[dict(output_type='stream', name='stdout', text='done\n')])
            cell['metadata'] |= dict(execution={'iopub.execute_input': '2026-01-01T00:00:00Z'}, scrolled=True)
        model['content']['metadata']['language_info'] = dict(name='python', version='3.11.0')
        ask(model)
    saved, kept = nbs/'experiments'/'train.ipynb', ROOT/'nbs'/'experiments'/'train.ipynb'
    assert saved.read_text() == kept.read_text()

def test_readme_is_made_from_index(monkeypatch):
    if run('git', 'status', '--porcelain', 'figures/quick', 'results/runs/quick', cwd=ROOT).stdout:
        pytest.skip('the study was run anew here; README.md tells of the committed run')
    monkeypatch.syspath_prepend(ROOT/'tools')
    assert (ROOT/'README.md').read_text() == importlib.import_module('readme').readme(), 'run make readme'

NOTEBOOKS = sorted(str(p.relative_to(ROOT)) for p in (ROOT/'nbs').rglob('*.ipynb')
                   if '.ipynb_checkpoints' not in p.parts)

def prose(file):
    "The text of a Markdown file, or of a notebook's cells of Markdown."
    if file.suffix == '.md': return file.read_text()
    return '\n'.join(c.source for c in nbformat.read(file, 4).cells if c.cell_type == 'markdown')

@pytest.mark.parametrize('path', ['README.md', *NOTEBOOKS])
def test_links_lead_somewhere(path):
    file = ROOT/path
    text = prose(file)
    targets = re.findall(r'\]\(([^)\s#]+)', re.sub(r'```.*?```', '', text, flags=re.S))
    assert [t for t in targets if not re.match(r'[a-z]+:', t) and not (file.parent/t).exists()] == []

# --- parts ---

def imports_of(source, home=()):
    """Modules of mimdet that a source imports, wherever in it;
    `home` are the packages that it lies in, for relative imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import): yield from (a.name.removeprefix('mimdet.') for a in node.names)
        if isinstance(node, ast.ImportFrom):
            base = '.'.join(home[:len(home) + 1 - node.level]) if node.level else ''
            full = '.'.join(filter(None, (base, node.module)))
            yield from (m.removeprefix('mimdet.') for m in (full, *(f'{full}.{a.name}' for a in node.names)))

def imports_of_module(module):
    home = ['mimdet', *module.split('.')[:-1]]
    source = ROOT.joinpath('mimdet', *module.split('.')).with_suffix('.py').read_text()
    return {*imports_of(source, home)} & set(MODULES)

def part_of(module): return BOOKS[module].parent.name

def test_every_module_has_its_place(): assert set(MODULES) == set(BOOKS)

@pytest.mark.parametrize('module', MODULES)
def test_imports_from_parts_before(module):
    later = PARTS[PARTS.index(part_of(module)) + 1:]
    assert [m for m in imports_of_module(module) if part_of(m) in later] == []

def test_no_circles():
    graph = {m: imports_of_module(m) for m in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())

@pytest.mark.parametrize('module', BOOKS)
def test_a_notebook_uses_what_stands_before_it(module):
    order = list(BOOKS)
    cells = [c.source for c in nbformat.read(BOOKS[module], 4).cells if c.cell_type == 'code']
    sources = [re.sub(r'^[%!].*', '', source, flags=re.M) for source in cells]
    used = {m for source in sources for m in imports_of(source)} & set(BOOKS)
    assert [m for m in used if order.index(m) > order.index(module)] == []

def test_each_part_has_an_index_that_leads_to_its_notebooks():
    for part in PARTS:
        text = '\n'.join(c.source for c in nbformat.read(ROOT/'nbs'/part/'index.ipynb', 4).cells)
        paths = [path for path in BOOKS.values() if path.parent.name == part]
        assert [path.name for path in paths if f']({path.name})' not in text] == []

STARTS_WITHOUT_TORCH = [m for m in BOOKS if m.split('.')[-1] in WITHOUT_TORCH.get(part_of(m), '').split()]

@pytest.mark.parametrize('module', STARTS_WITHOUT_TORCH)
def test_starts_without_torch(module):
    code = (f'import sys, mimdet.{module}\n'
            'sys.exit(", ".join({"torch", "timm", "detectron2"} & set(sys.modules)) or 0)')
    done = run(sys.executable, '-c', code)
    assert done.returncode == 0, f'mimdet.{module} imports {done.stderr}'

def test_wheel_has_every_module(tmp_path):
    """A wheel, in a bare folder and not from this checkout;
    the packages that it needs are those of this environment."""
    source = tmp_path/'source'
    source.mkdir()
    shutil.copytree(ROOT/'mimdet', source/'mimdet', ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('pyproject.toml', 'README.md', 'LICENSE'): shutil.copy(ROOT/name, source)
    code = 'from setuptools.build_meta import build_wheel; print(build_wheel("."))'
    built = run(sys.executable, '-c', code, cwd=source)
    assert built.returncode == 0, built.stderr
    bare = tmp_path/'bare'
    shutil.unpack_archive(source/built.stdout.split()[-1], bare, 'zip')
    code = ('import importlib, sys\n'
            'sys.path.insert(0, sys.argv[1])\n'
            'for name in sys.argv[2:]:\n'
            '    assert importlib.import_module(f"mimdet.{name}").__file__.startswith(sys.argv[1]), name')
    environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    done = run(sys.executable, '-c', code, bare, *MODULES, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr

# --- versions and commands ---

def environment_pin(name):
    return re.search(rf'- {name}=+([\d.]+)$', (ROOT/'environment.yml').read_text(), re.M)[1]

def python_version(text): return re.search(r'--python-version ([\d.]+)', text)[1]

def test_python_versions_agree():
    required = PYPROJECT['project']['requires-python'].removeprefix('>=')
    locked = {python_version(LOCK), python_version((ROOT/'Makefile').read_text())}
    assert {SETTINGS['min_python'], environment_pin('python'), required} | locked == {'3.11'}

def test_uv_versions_agree():
    pin = environment_pin('uv')
    assert f'uv=={pin}' in PYPROJECT['project']['optional-dependencies']['dev'] and f'\nuv=={pin} ' in LOCK

def test_package_versions_agree(): assert SETTINGS['version'] == mimdet.__version__

def test_lock_holds_what_is_asked_for():
    asked = PYPROJECT['project']['dependencies'] + PYPROJECT['project']['optional-dependencies']['dev']
    names = [re.match(r'[\w.-]+', a)[0] for a in asked]
    assert [n for n in names if not re.search(rf'^{n}==', LOCK, re.M)] == [], 'run make lock'

HELP = """
import contextlib, importlib, io, sys
commands = {}
for command, source in [pair.split('=') for pair in sys.argv[1:]]:
    module, name = source.split(':')
    commands[command] = getattr(importlib.import_module(module), name)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try: commands[command](['--help'])
        except SystemExit as e: assert not e.code, command
    assert out.getvalue().startswith(f'usage: {command} '), command
with contextlib.redirect_stdout(io.StringIO()):
    for arguments in [], ['mimdet_base_v2_sr0.5_3x']: commands['mimdet_models'](arguments)
slow = {'torch', 'torchvision', 'timm', 'detectron2', 'matplotlib', 'pycocotools', 'pandas'} & sys.modules.keys()
assert not slow, f'imported for a help text or for the list of models: {slow}'
"""

def test_commands_have_help_at_once():
    "Help, and the list of models, import nothing that takes long."
    scripts = [f'{k}={v}' for k, v in PYPROJECT['project']['scripts'].items()]
    done = run(sys.executable, '-c', HELP, *scripts)
    assert done.returncode == 0, done.stderr

# --- tools ---

def cell(source):
    if source.startswith('md:'): return nbformat.v4.new_markdown_cell(source[3:])
    return nbformat.v4.new_code_cell(source)

def notebook(*sources):
    kernel = dict(name='python3', display_name='python3', language='python')
    return nbformat.v4.new_notebook(cells=[cell(s) for s in sources], metadata=dict(kernelspec=kernel))

def test_notebook_runner(tmp_path):
    "It counts, leaves out what nbdev leaves out, has IPython's `In`, and shows where a notebook failed."
    for folder in ('tools', 'nbs/experiments', 'nbs/off', 'nbs/_drafts'): (tmp_path/folder).mkdir(parents=True)
    shutil.copy(ROOT/'tools'/'test_notebooks.py', tmp_path/'tools')
    shutil.copy(ROOT/'settings.ini', tmp_path)
    (tmp_path/'nbs'/'off'/'.notest').touch()
    books = {
        'good': notebook('1/1', '#| eval: false\n1/0', '#| slow\n1/0', 'assert In[1] == "1/1"'),
        'experiments/here': notebook('import os\nassert os.path.exists("here.ipynb")'),
        'bad': notebook('a = 1', 'a/0'),
        'dead': notebook('import os\nos._exit(1)'),
        'skip': notebook('md:# title\n\n- skip_exec: true', '1/0'),
        'off/no': notebook('1/0'),
        '_drafts/no': notebook('1/0'),
    }
    for name, nb in books.items(): nbformat.write(nb, tmp_path/'nbs'/f'{name}.ipynb')
    runner = tmp_path/'tools'/'test_notebooks.py'
    done = run(sys.executable, runner, '--keep', 'kept')
    assert done.stdout.splitlines()[-1] == '2 passed, 2 failed, 1 skipped', done.stdout + done.stderr
    assert done.returncode == 1
    assert 'a/0' in done.stdout and 'ZeroDivisionError' in done.stdout and 'DeadKernelError' in done.stdout
    assert sorted(p.name for p in (tmp_path/'kept').rglob('*.ipynb')) == ['good.ipynb', 'here.ipynb']
    slow = run(sys.executable, runner, tmp_path/'nbs'/'good.ipynb', '--flags', 'slow')
    assert slow.stdout.splitlines()[-1] == '0 passed, 1 failed, 0 skipped'

def test_setup_pins_uv_by_hash(monkeypatch):
    monkeypatch.syspath_prepend(ROOT/'tools')
    lines = importlib.import_module('setup').uv_requirement().splitlines()
    assert lines[0].startswith('uv==') and len(lines) > 5
    assert all('--hash=sha256:' in line for line in lines[1:])

def test_setup_names_an_old_python(tmp_path):
    "The message comes before anything that an old Python could not even read."
    source = (ROOT/'tools'/'setup.py').read_text()
    source = source.replace('sys.version_info < (3, 11)', 'sys.version_info < (99, 0)')
    (tmp_path/'setup.py').write_text(source)
    done = run(sys.executable, tmp_path/'setup.py', tmp_path/'env')
    assert done.returncode == 1 and not (tmp_path/'env').exists()
    assert len(done.stderr.splitlines()) == 1 and 'needs Python 3.11' in done.stderr

def test_make_lists_its_targets():
    outside = {k: v for k, v in os.environ.items() if k not in ('MAKEFLAGS', 'MFLAGS', 'MAKELEVEL')}
    listed = run('make', '--no-print-directory', 'help', cwd=ROOT, env=outside).stdout
    phony = re.search(r'^\.PHONY: (.*)$', (ROOT/'Makefile').read_text(), re.M)[1].split()
    assert [line.split()[1] for line in listed.splitlines()] == phony

# --- lines ---

def code_of(path):
    "The lines of code of a notebook or a Python file; what a picture shows is prose."
    if path.suffix != '.ipynb': return path.read_text().splitlines()
    cells = (c.source for c in nbformat.read(path, 4).cells if c.cell_type == 'code')
    return [line for source in cells for line in source.splitlines() if not line.startswith('#| fig-alt')]

@pytest.mark.parametrize('folder', ['nbs', 'tests', 'tools'])
def test_lines_are_short(folder):
    files = [*(ROOT/folder).rglob('*.ipynb'), *(ROOT/folder).rglob('*.py')]
    assert files
    lines = [(path, line) for path in files for line in code_of(path)]
    long = [f'{path.relative_to(ROOT)}: {line.strip()[:60]}' for path, line in lines if len(line) > 120]
    assert not long, f'{len(long)} lines of more than 120 characters, the first: {long[:3]}'

# --- names and signatures ---

def trees(): return {name: ast.parse((ROOT/'mimdet'/(name.replace('.', '/') + '.py')).read_text()) for name in MODULES}

def test_a_public_name_stands_for_one_thing():
    def is_method(node): return any(getattr(each, 'id', '') == 'patch' for each in node.decorator_list)
    defined = [node.name for tree in trees().values() for node in tree.body
               if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_')
               and not is_method(node)]
    assert sorted(name for name, count in Counter(defined).items() if count > 1) == []

BY_POSITION = {'find_top_rpn_proposals', 'losses', 'fast_rcnn_inference', # as detectron2 calls them
               'register'} # a name, and what `parse_dataset` gives

def test_many_parameters_are_given_by_name():
    "Of five or more, all from the third on."
    unnamed = []
    for module, tree in trees().items():
        scopes = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]
        for node in (node for scope in scopes for node in scope.body if isinstance(node, ast.FunctionDef)):
            if node.name in BY_POSITION or node.name.startswith('_') and node.name != '__init__': continue
            by_position = [a for a in node.args.args if a.arg not in ('self', 'cls')]
            many = len(by_position) + len(node.args.kwonlyargs) >= 5
            if many and len(by_position) > 2: unnamed.append(f'{module}.{node.name}')
    assert unnamed == []
