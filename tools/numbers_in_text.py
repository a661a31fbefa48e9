"""Trace each number in README.md and in the prose of the notebooks to its source:
`python tools/numbers_in_text.py`.

A number counts if it has decimals or a unit of a result (AP, %, minutes, GB, ...). Its source is either a table made
from records (the whole line then occurs in a file in figures/) or an entry in results/numbers.yaml. An entry names
a record and its field, or a table's row and column, or says why no source is needed: a setting of the method, a limit,
arithmetic shown beside it."""
import csv, re, sys
from fnmatch import fnmatch
from functools import reduce
from operator import getitem
from pathlib import Path
import nbformat, yaml
from mimdet.base.core import MimdetError
from mimdet.study.records import read_record, load_records
from mimdet.study.pages import digest, time_taken

ROOT = Path(__file__).resolve().parent.parent
UNIT = (r'(?:%|(?:box |mask )?AP\b|points\b|percent\b|min\b|minutes?\b|seconds?\b|m?s\b|hours?\b|days?\b|[KMG]i?B\b|'
        r'M parameters\b|images/s|GFLOPs?\b|TFLOPs?\b|giga\b|x faster|times (?:as|faster))')
NUMBER = re.compile(rf'(?<![\w.])(\d+\.\d+(?!\.?\w)|\d+\.\d+(?=x\b)|\d+(?:\.\d+)?(?= ?{UNIT})|'
                    r'(?<=AP of )\d+|(?<=AP50 of )\d+)')
NOISE = [
    r'```.*?```', r'`[^`\n]*`', # code
    r'\$\$.*?\$\$', r'\$[^$\n]*\$', # formulas
    r'\]\([^)]*\)', r'https?://\S+', r'arXiv:? ?\d+\.\d+', # link targets, addresses
    r'<!--.*?-->',
]

def prose(text):
    "Remove code, formulas, link targets and addresses from Markdown."
    for noise in NOISE: text = re.sub(noise, ' ', text, flags=re.S)
    return text

def texts():
    "Return {file: Markdown} of README.md and of all notebooks except the source of README.md."
    found = {'README.md': (ROOT/'README.md').read_text()}
    for path in sorted((ROOT/'nbs').rglob('*.ipynb')):
        if path.name == 'index.ipynb' or any(part[0] in '._' for part in path.relative_to(ROOT).parts): continue
        cells = nbformat.read(path, 4).cells
        found[str(path.relative_to(ROOT))] = '\n\n'.join(c.source for c in cells if c.cell_type == 'markdown')
    return found

def table_lines():
    "Return {line: file} of all Markdown tables and captions made from records."
    found = {}
    for path in sorted((ROOT/'figures').rglob('*.md')):
        lines = [line.strip() for line in prose(path.read_text()).splitlines()]
        found |= dict.fromkeys(filter(None, lines), str(path.relative_to(ROOT)))
    return found

def table_cells(entry):
    "The numbers in one column, or in several, of a table's rows in figures/, as they must be written."
    with (ROOT/'figures'/f'{entry["table"]}.csv').open() as file:
        rows = [row for row in csv.DictReader(file) if row.items() >= entry['row'].items()]
    found = [row[column].rstrip('%') for row in rows for column in entry.get('columns') or [entry['column']]]
    return [f'{float(number):.1f}' for number in found if number] if 'columns' in entry else found[:1]

def records_of(entry):
    "The records of the profile that an entry names."
    return load_records(entry['took'], ROOT/'results'/'runs')

def ran_anew(entry):
    "Are there other records than those of the run that the text tells of, since the study was run here too?"
    try: return 'took' in entry and digest(records_of(entry)) != entry['of']
    except MimdetError: return False # there are none

def values(entry):
    "The numbers that an entry of results/numbers.yaml stands for, as they must be written."
    runs = ROOT/'results'/'runs'
    try:
        if 'table' in entry: return table_cells(entry)
        if 'took' in entry: found = time_taken(records_of(entry))[entry['key']]
        else:
            record = read_record(runs/f'{entry["record"]}.json')
            found = reduce(getitem, entry['field'], record)*entry.get('times', 1)
    except MimdetError: return [] # its record is not there
    return [entry.get('format', '{}').format(found)]

def where(entry):
    "Describe the source of an entry."
    if 'why' in entry: return entry['why']
    columns = entry.get('columns') or entry.get('column')
    if 'table' in entry: return f'figures/{entry["table"]}.csv: {entry["row"]}, {columns}'
    if 'took' in entry: return f'runs of profile {entry["took"]}' + ran_anew(entry)*' that are not here'
    return f'results/runs/{entry["record"]}.json: {".".join(map(str, entry["field"]))}'

def sources():
    """Return (file, line, number, source or None) for each number in the texts,
    and the entries of results/numbers.yaml that match no number."""
    tables, ledger = table_lines(), yaml.safe_load((ROOT/'results'/'numbers.yaml').read_text())
    found, idle = [], list(ledger)
    for file, text in texts().items():
        mine = [e for e in ledger if fnmatch(file, e['file'])]
        for line in prose(text).splitlines():
            for number in NUMBER.finditer(line):
                entry = None if line.strip() in tables else _from_ledger(mine, line, number)
                if entry in idle: idle.remove(entry)
                found.append((file, line, number[1], tables.get(line.strip()) or entry and where(entry)))
    return found, idle

def _from_ledger(entries, line, number):
    for entry in entries:
        for at in re.finditer(entry.get('pattern') or re.escape(entry['text']), line):
            if not at.start() <= number.start(1) < at.end(): continue
            if 'why' in entry or number[1] in values(entry) or ran_anew(entry): return entry

def check_numbers():
    "Return the numbers without a source and the unused entries as messages; print the other numbers."
    found, idle = sources()
    for file, line, number, source in found:
        if source: print(f'ok    {file}: {number} <- {source}')
    without = [f'{file}: {number} has no source: {line.strip()[:160]}'
               for file, line, number, source in found if not source]
    return without + [f'results/numbers.yaml: fix or remove the unused entry {entry.get("text") or entry["pattern"]!r}'
                      for entry in idle]

if __name__ == '__main__': sys.exit('\n'.join(check_numbers()) or 0)
