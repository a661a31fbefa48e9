"""Draw a profile's tables and figures from existing records, without any runs:
`python tools/figures.py demo [folder]`.

To use records from another machine, copy their files to results/runs/<profile>/ first."""
import io, sys
from contextlib import redirect_stdout
from pathlib import Path
import matplotlib.pyplot as plt
from IPython.core.interactiveshell import InteractiveShell
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from tqdm import tqdm
from mimdet.base.core import MimdetError, complaining
from mimdet.study.jobs import read_study

ROOT = Path(__file__).resolve().parent.parent

def drawable(study):
    "List the figure jobs that have at least one record; missing runs show as `not run`."
    def there(name): return (ROOT/study.jobs[name].record).exists()
    return [job for job in study.jobs.values() if job.kind == 'figure' and any(map(there, job.needs))]

def draw(notebook, parameters):
    "Run a figure's notebook in this process, since starting a kernel takes longer than drawing."
    shell = InteractiveShell.instance()
    shell.reset()
    for cell in parameterize_notebook(load_notebook_node(str(ROOT/notebook)), parameters).cells:
        if cell.cell_type == 'code': shell.run_cell(cell.source, store_history=True).raise_error()
    plt.close('all')

def draw_all(study, folder):
    "Draw into `folder` everything that has records; return the jobs."
    jobs = drawable(study)
    if not jobs:
        raise MimdetError(f'profile {study.profile}: {study.records} has no records for any table or figure: '
                          f'run make reproduce PROFILE={study.profile} or copy records there')
    plt.switch_backend('Agg')
    places = dict(out=str(folder), records=str(ROOT/'results'/'runs'))
    for job in tqdm(jobs, desc=study.profile, disable=None):
        with redirect_stdout(io.StringIO()): draw(job.notebook, job.parameters | places)
    return jobs

if __name__ == '__main__':
    with complaining('figures'):
        if len(sys.argv) < 2: raise MimdetError('give a profile, such as demo')
        study = read_study(sys.argv[1], ROOT/'profiles')
        folder = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT/study.figures
        jobs = draw_all(study, folder)
        print(f'{folder}: {", ".join(j.name for j in jobs)}')
        left_out = [j.name for j in study.jobs.values() if j.kind == 'figure' and j not in jobs]
        if left_out: print(f'not drawn because records are missing: {", ".join(left_out)}')
