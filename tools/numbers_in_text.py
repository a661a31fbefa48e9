"""Which numbers stand in README.md and in the notebooks' prose, and where each comes from: `python tools/numbers_in_text.py`.

A number is one with decimals, or with a unit of a result (AP, %, minutes, GB, ...). It may come from a table that was made from records (then the whole line stands
in a file of figures/), from results/paper (a published one), or from results/numbers.yaml, which names for each of the others the record and its field, or says why
it needs none: a setting of the method, a limit, arithmetic shown beside it."""
import json, re, sys
from functools import reduce
from operator import getitem
from pathlib import Path
import nbformat, yaml
from mimdet.core import MimdetError, read_record
from mimdet.results import load, took

ROOT = Path(__file__).resolve().parent.parent
UNIT = r'(?:%|AP\b|points\b|percent\b|min\b|minutes?\b|seconds?\b|s\b|hours?\b|days?\b|[KMG]i?B\b|images/s|GFLOPs?\b|TFLOPs?\b|giga\b)'
NUMBER = re.compile(rf'(?<![\w./-])(\d+\.\d+(?![\w.])|\d+(?:\.\d+)?(?= ?{UNIT}))')

def prose(text):
    "Markdown without what is no statement: code, formulas, link targets, addresses."
    for noise in (r'```.*?```', r'`[^`\n]*`', r'\$\$.*?\$\$', r'\$[^$\n]*\$', r'\]\([^)]*\)', r'https?://\S+', r'arXiv:? ?\d+\.\d+', r'<!--.*?-->'): text = re.sub(noise, ' ', text, flags=re.S)
    return text

def texts():
    "{file: Markdown} of README.md and of all notebooks but the one that README.md is made from."
    found = {'README.md': (ROOT/'README.md').read_text()}
    for path in sorted((ROOT/'nbs').rglob('*.ipynb')):
        if path.name == 'index.ipynb' or any(part[0] in '._' for part in path.relative_to(ROOT).parts): continue
        found[str(path.relative_to(ROOT))] = '\n\n'.join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == 'markdown')
    return found

def table_lines():
    "{line: file} of all Markdown tables and captions that were made from records."
    return {line: str(path.relative_to(ROOT)) for path in sorted((ROOT/'figures').rglob('*.md')) for line in path.read_text().splitlines() if line.strip()}

def value(entry):
    "The number that an entry of results/numbers.yaml stands for, as it must be written."
    if 'took' in entry: found = took(load(entry['took'], ROOT/'results'/'runs'))[entry['key']]
    else: found = reduce(getitem, entry['field'], read_record(ROOT/'results'/'runs'/f'{entry["record"]}.json'))*entry.get('times', 1)
    return entry.get('format', '{}').format(found)

def where(entry): return f'runs of profile {entry["took"]}' if 'took' in entry else f'results/runs/{entry["record"]}.json: {".".join(map(str, entry["field"]))}'

def sources():
    "(file, line, number, where it comes from or None) of each number in the texts."
    tables, paper = table_lines(), json.loads((ROOT/'results'/'paper'/'published.json').read_text())
    published = {f'{row[k]:g}' for row in paper['rows'] for k in ('box_AP', 'mask_AP', 'parameters_M', 'flops_T') if row.get(k) is not None}
    ledger = yaml.safe_load((ROOT/'results'/'numbers.yaml').read_text())
    for file, text in texts().items():
        mine = [e for e in ledger if re.fullmatch(e['file'].replace('*', '.*'), file)]
        for line in prose(text).splitlines():
            for number in NUMBER.finditer(line):
                if any(line.strip() in raw for raw in tables): yield file, line, number[1], next(t for raw, t in tables.items() if line.strip() in raw)
                else: yield file, line, number[1], _from_ledger(mine, line, number) or ('published: results/paper/published.json' if number[1] in published and 'publish' in line else None)

def _from_ledger(entries, line, number):
    for entry in entries:
        for at in re.finditer(entry.get('pattern') or re.escape(entry['text']), line):
            if not at.start() <= number.start() < at.end(): continue
            if 'why' in entry: return entry['why']
            try: found = value(entry)
            except MimdetError: continue # its record is not there
            if found == number[1]: return where(entry)
    return None

def check_numbers():
    "Complaints about numbers without a source; lists the others."
    complaints, found = [], list(sources())
    for file, line, number, source in found:
        if source: print(f'ok    {file}: {number} <- {source}')
        else: complaints.append(f'{file}: {number} has no source: {line.strip()[:160]}')
    return complaints

if __name__ == '__main__': sys.exit('\n'.join(check_numbers()) or 0)
