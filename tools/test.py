"""Run all tests: tests/, then notebooks. A failure does not stop the rest, and the last line has the total counts.

`make test` calls this."""
import os, subprocess, sys, time
import xml.etree.ElementTree as ET
from pathlib import Path
import warm

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT/'build'/'test'
WORKERS = min(4, os.cpu_count() or 1) # each holds PyTorch in memory
SUITES = {
    'tests': ['-m', 'pytest', '-q', '--durations=20', '-n', str(WORKERS), '--dist=loadfile', '--no-loadscope-reorder'],
    'notebooks': ['tools/test_notebooks.py', '--keep', 'build/executed'],
}
NO_TESTS = 5 # pytest's exit code when it has found none

def counts(report):
    "Return (passed, failed, skipped) from a JUnit report."
    cases = [*ET.parse(report).iter('testcase')]
    failed = sum(c.find('failure') is not None or c.find('error') is not None for c in cases)
    skipped = sum(c.find('skipped') is not None for c in cases)
    return len(cases) - failed - skipped, failed, skipped

def run(name, args):
    "Run one suite and return its counts. A suite that crashes before it can report counts as one failure."
    print(f'\n== {name}', flush=True)
    report = OUT/f'{name}.xml'
    report.unlink(missing_ok=True)
    option = '--junit' if name == 'notebooks' else '--junit-xml'
    code = subprocess.run([sys.executable, *args, option, str(report)], cwd=ROOT).returncode
    if code == NO_TESTS: return 0, 0, 0
    found = counts(report) if report.exists() else (0, 0, 0)
    return found if code == 0 or found[1] else (found[0], 1, found[2])

def main():
    started = time.time()
    OUT.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1)//WORKERS)))
    commands = Path(sys.executable).parent # mimdet_train and so on
    os.environ['PATH'] = f'{commands}{os.pathsep}{os.environ["PATH"]}'
    with warm.started(OUT/'warm'): outcomes = [run(name, args) for name, args in SUITES.items()]
    passed, failed, skipped = map(sum, zip(*outcomes))
    print(f'\n{time.time() - started:.0f} s\n{passed} passed, {failed} failed, {skipped} skipped', flush=True)
    sys.exit(failed > 0 or not passed)

if __name__ == '__main__': main()
