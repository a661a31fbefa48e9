"""Check every table, figure and number against its records: `make verify`.

Every record is checked against its schema and its own SHA-256, every table is regenerated and compared byte for byte,
every figure is traced to its records, and every number in the prose to a table, a record or a stated reason."""
import subprocess, sys, tempfile
from pathlib import Path
from figures import ROOT, draw_all
from mimdet.base.core import MimdetError, complaining
from mimdet.study.jobs import read_study
from mimdet.study.verify import check_files, check_records
from numbers_in_text import check_numbers

def check_figures(study):
    "Yield the faults of a profile's tables and figures."
    shown = {path.name: path for path in (ROOT/study.figures).glob('*')}
    draws = any(job.kind == 'figure' for job in study.jobs.values())
    if not shown and not draws: return # only a notebook shows these records
    with tempfile.TemporaryDirectory() as folder:
        try: draw_all(study, folder)
        except MimdetError as e: return (yield f'{study.figures}: {e}')
        for wrong, line in check_files(study, shown, {path.name: path for path in Path(folder).glob('*')}):
            if wrong: yield line
            else: print(f'note  {line}')

def committed():
    "List the profiles with committed records or figures."
    command = ['git', '-C', str(ROOT), 'ls-files', 'results/runs', 'figures']
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode:
        raise MimdetError(f'{ROOT} is not a git checkout, so name the profiles to check')
    return sorted({Path(f).parent.name for f in listed.stdout.split()})

def main(*names):
    complaints = []
    for name in names or committed():
        study = read_study(name, ROOT/'profiles')
        found = list(check_records(study, ROOT)) or list(check_figures(study))
        records, files = (len([*(ROOT/folder).glob('*')]) for folder in (study.records, study.figures))
        print(f'{"FAIL" if found else "ok":5} profile {name}: {records} records, {files} files of tables and figures')
        complaints += found
    complaints += check_numbers()
    for line in complaints: print('FAIL ', line)
    sys.exit(f'{len(complaints)} problems' if complaints else 0)

if __name__ == '__main__':
    with complaining('verify'): main(*sys.argv[1:])
