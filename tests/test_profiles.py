"""Every profile's jobs fit the notebooks that they run."""
import ast
import nbformat, pytest
from conftest import ROOT
from mimdet.study.jobs import read_study

PROFILES = sorted(path.stem for path in (ROOT/'profiles').glob('*.yaml'))

def parameters_of(notebook):
    "The names that a notebook's parameters cell sets."
    cell = next(c for c in nbformat.read(ROOT/notebook, 4).cells if 'parameters' in c.metadata.get('tags', ()))
    targets = [t for node in ast.parse(cell.source).body if isinstance(node, ast.Assign) for t in node.targets]
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}

@pytest.mark.parametrize('profile', PROFILES)
def test_notebooks_know_what_they_are_given(profile):
    for job in read_study(profile).jobs.values(): assert {*job.parameters} <= parameters_of(job.notebook), job.name
