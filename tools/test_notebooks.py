"""Run notebooks as tests, each in a fresh kernel and in its own folder:
`python tools/test_notebooks.py [nbs/method/04_vit.ipynb ...]`.

nbdev's rules apply. Skipped are cells marked `#| eval: false` or with one of the `tst_flags` in settings.ini, notebooks
whose front matter says `skip_exec: true`, folders with a file `.notest`, and names that begin with a dot or an
underscore."""
import argparse, asyncio, configparser, os, re, sys, tempfile, time
import xml.etree.ElementTree as ET
from contextlib import contextmanager
from pathlib import Path
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = configparser.ConfigParser()
SETTINGS.read(ROOT/'settings.ini')
SKIP = 'skip-execution' # nbclient skips cells with this tag

def notebooks(paths):
    "List the notebooks below `paths`; long ones (experiments) first, so that no worker is left with one at the end."
    found = [f for p in paths for f in ([p] if p.suffix else p.rglob('*.ipynb'))]
    def hidden(f):
        return any(part[0] in '._' for part in f.relative_to(ROOT).parts) or (f.parent/'.notest').exists()
    return sorted((f for f in found if not hidden(f)), key=lambda f: (-len(f.parts), f))

def directives(source):
    "Return the `#|` lines at the top of a cell as a dictionary."
    top = re.match(r'(?:[ \t]*(?:#[ \t]*\|.*)?(?:\n|$))*', source)[0]
    return dict(re.findall(r'#[ \t]*\|[ \t]*([^\s:]+):?[ \t]*(.*)', top))

def skip_exec(nb):
    "Does the front matter say `skip_exec: true`? It is a raw cell or a list below the title."
    says_so = re.compile(r'^[-\s]*skip_exec:\s*true\s*$', re.M | re.I)
    return any(says_so.search(c.source) for c in nb.cells[:2] if c.cell_type != 'code')

@contextmanager
def client(nb, folder, timeout=600):
    """Yield a client that runs `nb` in a fresh kernel in `folder`. The kernel's sockets are files, since ports
    could clash with those of other kernels."""
    with tempfile.TemporaryDirectory() as sockets:
        config = Config(KernelManager=dict(transport='ipc', ip=f'{sockets}/kernel'))
        yield NotebookClient(nb, timeout=timeout, kernel_name='python3', config=config,
                             resources=dict(metadata=dict(path=str(folder))))

async def run(path, flags, timeout, keep):
    "Run one notebook and return (outcome, seconds, message)."
    nb, started = nbformat.read(path, as_version=4), time.time()
    if skip_exec(nb): return 'skipped', 0, 'skip_exec'
    left_out = []
    for cell in nb.cells:
        found = directives(cell.source) if cell.cell_type == 'code' else {}
        if found.get('eval', '').lower() == 'false' or flags & found.keys():
            left_out.append(cell)
            cell.metadata.tags = cell.metadata.get('tags', []) + [SKIP]
    try:
        with client(nb, path.parent, timeout) as running: await running.async_execute()
    except CellExecutionError as e:
        return 'failed', time.time() - started, re.sub(r'\x1b\[[\d;]*m', '', str(e))
    except Exception as e: # for example a dead kernel or a timeout
        return 'failed', time.time() - started, f'{type(e).__name__}: {e}'
    finally:
        for cell in left_out: cell.metadata.tags.remove(SKIP)
    if keep:
        copy = ROOT/keep/path.relative_to(ROOT/'nbs')
        copy.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, copy)
    return 'passed', time.time() - started, ''

async def run_all(files, workers, **options):
    "Run `files`, `workers` at a time, and print each outcome."
    free, outcomes = asyncio.Semaphore(workers), {}
    async def one(f):
        async with free: outcomes[f] = outcome, seconds, message = await run(f, **options)
        print(f'{outcome:8}{seconds:6.1f} s  {f.relative_to(ROOT)}', flush=True)
        if outcome == 'failed': print('\n' + message + '\n', flush=True)
    await asyncio.gather(*map(one, files))
    return outcomes

def write_junit(outcomes, path):
    "Write the outcomes as JUnit XML."
    suite = ET.Element('testsuite', name='notebooks', tests=str(len(outcomes)))
    for f, (outcome, seconds, message) in outcomes.items():
        case = ET.SubElement(suite, 'testcase', name=str(f.relative_to(ROOT)), time=f'{seconds:.1f}')
        if outcome == 'passed': continue
        ET.SubElement(case, {'failed': 'failure', 'skipped': 'skipped'}[outcome]).text = message
    ET.ElementTree(suite).write(path, encoding='utf-8', xml_declaration=True)

def main():
    parser = argparse.ArgumentParser(description='Run notebooks as tests.')
    parser.add_argument('paths', nargs='*', type=lambda p: Path(p).resolve(), default=[ROOT/'nbs'],
                        help='notebooks or folders (default: nbs)')
    parser.add_argument('-n', type=int, default=2, help='notebooks at a time (default: 2)')
    parser.add_argument('--flags', default='', help='flags in tst_flags whose cells run anyway, such as slow')
    parser.add_argument('--timeout', type=int, default=600, help='seconds for one cell (default: 600)')
    parser.add_argument('--keep', help='folder for the executed notebooks, such as build/executed')
    parser.add_argument('--junit', help='file for a JUnit XML report')
    args = parser.parse_args()
    os.environ |= dict(IN_TEST='1', TQDM_DISABLE='1') # nobody can click, and progress bars would clutter the output
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, os.cpu_count()//args.n)))
    flags = set(SETTINGS['DEFAULT']['tst_flags'].split()) - set(args.flags.split())
    outcomes = asyncio.run(run_all(notebooks(args.paths), args.n, flags=flags, timeout=args.timeout, keep=args.keep))
    if args.junit: write_junit(outcomes, args.junit)
    counts = {k: sum(o[0] == k for o in outcomes.values()) for k in ('passed', 'failed', 'skipped')}
    print(', '.join(f'{n} {k}' for k, n in counts.items()))
    sys.exit(counts['failed'] > 0 or not counts['passed'])

if __name__ == '__main__': main()
