"""The whole study at smoke size, in a copy of the project: it runs, then has nothing to do, then redoes what a removed record asks for and no more."""
import shutil
import pytest
from conftest import ROOT, run_command

@pytest.fixture(scope='module')
def project(tmp_path_factory):
    copy = tmp_path_factory.mktemp('project')
    for name in ('nbs', 'profiles', 'tools'): shutil.copytree(ROOT/name, copy/name)
    shutil.copytree(ROOT/'results'/'paper', copy/'results'/'paper')
    for name in ('Snakefile', 'settings.ini'): shutil.copy(ROOT/name, copy/name)
    return copy

def reproduce(project, profile='smoke'): return run_command('python', project/'tools'/'reproduce.py', profile, '--cores', 'all', cwd=project)

def test_study(project):
    records, figures = project/'results'/'runs'/'smoke', project/'figures'/'smoke'
    first = reproduce(project)
    assert first.returncode == 0, first.stdout + first.stderr
    assert {p.stem for p in records.iterdir()} == {'data', 'pretrain', 'train_sr0.25', 'train_sr0.5', 'evaluate_sr0.25', 'evaluate_sr0.5'}
    assert {p.name for p in figures.glob('*.[mps]*')} == {'table_ratio.md', *(f'{name}.{kind}' for kind in ('png', 'svg') for name in
                                                          ('ap_over_ratio', 'training_curves', 'predictions', 'reconstructions'))}
    assert (figures/'table_ratio.md').read_text() in first.stdout

    again = reproduce(project)
    assert again.returncode == 0 and 'Nothing to be done' in again.stdout + again.stderr

    before = {p.name: p.stat().st_mtime for p in records.iterdir()}
    table = (figures/'table_ratio.md').stat().st_mtime
    (records/'train_sr0.5.json').unlink()
    redone = reproduce(project)
    assert redone.returncode == 0, redone.stdout + redone.stderr
    assert {name for name in before if (records/name).stat().st_mtime != before[name]} == {'train_sr0.5.json', 'evaluate_sr0.5.json'}
    assert (figures/'table_ratio.md').stat().st_mtime > table

def test_unknown_profile(project):
    done = reproduce(project, 'nosuch')
    assert done.returncode != 0 and 'no such profile: nosuch; there are: quick, smoke' in done.stderr
