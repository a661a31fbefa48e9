"""Which numbers in a sentence need a source, and what counts as one."""
import subprocess
import pytest
from conftest import ROOT

@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(ROOT/'tools')
    import numbers_in_text
    return numbers_in_text

def found(tool, text):
    return [m[1] for line in tool.prose(text).splitlines() for m in tool.NUMBER.finditer(line)]

@pytest.mark.parametrize('text, numbers', [
    ('On photographs it reaches 61.3 AP.', ['61.3']),
    ('It reaches 61.3.', ['61.3']),
    ('lost -5.1 AP', ['5.1']),
    ('9.9x faster', ['9.9']),
    ('AP50 of 65', ['65']),
    ('5 box AP', ['5']),
    ('50.1-61.3 or 61.3/51.2', ['50.1', '61.3', '61.3', '51.2']),
    ('it took 12 minutes and 3 GB', ['12', '3']),
    ('**40.2 %** of it', ['40.2']),
    ('(49.9)', ['49.9']),
    ('2.9GB, 61.3AP, 8.5ms, 9.9x. 61.3M parameters', ['2.9', '61.3', '8.5', '9.9', '61.3']),
])
def test_is_a_number(tool, text, numbers): assert found(tool, text) == numbers

@pytest.mark.parametrize('text', [
    'two runs on 8 GPUs',
    '`--ratio 0.5`',
    '[table](figures/v1_sr0.5.md)',
    'mimdet_base_v1_sr0.5_3x',
    'arXiv 2204.02964',
    '```\nlr = 0.001\n```',
    '$x = 0.5$',
    'pycocotools 2.0.8',
])
def test_is_none(tool, text): assert found(tool, text) == []

def test_an_entry_covers_only_what_stands_in_it(tool):
    entry, line = dict(file='*', text='took 12 minutes', why='measured'), 'It took 12 minutes, not 13 minutes.'
    first, second = tool.NUMBER.finditer(line)
    assert tool._from_ledger([entry], line, first) == entry
    assert tool._from_ledger([entry], line, second) is None

def test_a_record_must_have_the_number(tool, monkeypatch):
    line, entry = 'It took 12 minutes.', dict(file='*', text='took 12 minutes', took='quick', of='')
    monkeypatch.setattr(tool, 'ran_anew', lambda entry: False)
    number, = tool.NUMBER.finditer(line)
    for value, explained in (('12', True), ('11', False)):
        monkeypatch.setattr(tool, 'values', lambda entry: [value])
        assert bool(tool._from_ledger([entry], line, number)) == explained

def test_everything_in_the_project_has_a_source(tool): assert tool.check_numbers() == []

def test_what_a_run_took_is_told_of_the_committed_run(tool):
    "Where the study was run anew, its minutes and memory are others than README.md's."
    ledger = [entry for entry in tool.yaml.safe_load((ROOT/'results'/'numbers.yaml').read_text()) if 'took' in entry]
    assert ledger
    changed = subprocess.run(['git', 'status', '--porcelain', 'results/runs/quick'], cwd=ROOT, capture_output=True)
    if changed.stdout: pytest.skip('the study was run anew here')
    for entry in ledger:
        assert not tool.ran_anew(entry), f'of: {tool.digest(tool.records_of(entry))} in results/numbers.yaml'
        assert tool.ran_anew(entry | dict(of='0'*16))
