"""Is everything that is shown still what was measured? `make verify`.

Every record is checked against its schema and its own SHA-256, every table is made anew and compared byte for byte, every figure is traced to its records,
and every number in README.md to a table, a record or a publication."""
import subprocess, sys, tempfile
from pathlib import Path
from figures import ROOT, draw_all
from mimdet.base.core import MimdetError, complaining
from mimdet.study.records import read_record
from mimdet.study.pages import read_digest
from mimdet.study.jobs import differs, read_study
from numbers_in_text import check_numbers

TABLES = {'.csv', '.md', '.tex'}

def check_records(study):
    "Complaints about a profile's records."
    found = {}
    for path in sorted((ROOT/study.records).glob('*')):
        try: record = read_record(path)
        except MimdetError as e: yield str(e)
        else:
            found[path.stem] = record
            if (record['profile'], record['name']) != (study.profile, path.stem): yield f'{path} holds the record {record["profile"]}/{record["name"]}'
            if path.stem not in study.jobs: yield f'{path}: the profile {study.profile} has no such run'
            elif other := differs(record, study.jobs[path.stem]): yield f'{path} is of another run than the profile {study.profile} now describes: {other} differs; run it again'
    for name in sorted(study.jobs.keys() & found.keys()):
        for need in {*study.jobs[name].needs} & found.keys():
            if other := strange(found[name], found[need]): yield f'{study.records}/{name}.json was made from other {other} than {need}.json tells of: run it again'

def strange(record, source):
    "What a run did not get from another that it needs: its data set's splits, by their SHA-256, or its weights."
    had, made = record['dataset'].get('sha256', {}), source['dataset'].get('sha256', {})
    splits = [split for split in had if split in made and had[split] != made[split]]
    weights = record['weights'].get('in'), source['weights'].get('out')
    return ', '.join(splits + ['weights']*(None not in weights and weights[0] != weights[1]))

def check_figures(study):
    "Complaints about a profile's tables and figures."
    shown = {p.name: p for p in (ROOT/study.figures).glob('*')}
    if not shown and not any(job.kind == 'figure' for job in study.jobs.values()): return # records that a notebook shows
    with tempfile.TemporaryDirectory() as folder:
        try: draw_all(study, folder)
        except MimdetError as e: return (yield f'{study.figures}: {e}')
        made = {p.name: p for p in Path(folder).glob('*')}
        for name in sorted({*shown, *made}):
            where = f'{study.figures}/{name}'
            if name not in made: yield f'{where} has no record: nothing in {study.records} makes it'
            elif name not in shown: yield f'{where} is missing, although its records are there: make figures PROFILE={study.profile}'
            elif made[name].suffix in TABLES and made[name].read_bytes() != shown[name].read_bytes(): yield f'{where} is stale: its records make another table (make figures PROFILE={study.profile})'
            elif made[name].suffix not in TABLES and read_digest(shown[name]) is None: yield f'{where} does not say which records it was drawn from'
            elif read_digest(made[name]) != read_digest(shown[name]): yield f'{where} is stale: it was drawn from other records (make figures PROFILE={study.profile})'
            elif made[name].read_bytes() != shown[name].read_bytes(): print(f'note  {where}: drawn anew it is another file, by other code or on another kind of machine')

def committed():
    "The profiles of which git knows records or figures."
    listed = subprocess.run(['git', '-C', str(ROOT), 'ls-files', 'results/runs', 'figures'], capture_output=True, text=True)
    if listed.returncode: raise MimdetError(f'{ROOT} is no git checkout, so it is not known what is committed: name the profiles to verify')
    return sorted({Path(f).parent.name for f in listed.stdout.split()})

def main(*names):
    complaints = []
    for name in names or committed():
        study = read_study(name, ROOT/'profiles')
        found = list(check_records(study))
        found += [] if found else check_figures(study)
        print(f'{"FAIL" if found else "ok":5} profile {name}: {len(list((ROOT/study.records).glob("*")))} records, {len(list((ROOT/study.figures).glob("*")))} files of tables and figures')
        complaints += found
    complaints += check_numbers()
    for line in complaints: print('FAIL ', line)
    sys.exit(f'{len(complaints)} complaints' if complaints else 0)

if __name__ == '__main__':
    with complaining('verify'): main(*sys.argv[1:])
