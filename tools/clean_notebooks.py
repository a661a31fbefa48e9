"""Notebooks as they are kept: without outputs, counters and what editors leave in them.
`python tools/clean_notebooks.py [paths]`; JupyterLab does it at each save (`make lab`)."""
import sys
from pathlib import Path
import nbformat
from nbdev.clean import clean_nb

ROOT = Path(__file__).resolve().parent.parent
KEEP = ['tags'] # papermill's mark of the parameters

def clean(notebook):
    "Clean a notebook, which is changed in place; the tags of its cells stay."
    clean_nb(notebook, allowed_cell_metadata_keys=KEEP)
    for cell in notebook['cells']:
        if cell['cell_type'] == 'code': cell['outputs'] = []

def before_save(model, **_):
    "Jupyter's hook: what it is about to write."
    if model['type'] == 'notebook': clean(model['content'])

def main(paths):
    for path in paths:
        notebook = nbformat.read(path, nbformat.NO_CONVERT)
        clean(notebook)
        nbformat.write(notebook, path)

if __name__ == '__main__': main(sys.argv[1:] or sorted((ROOT/'nbs').rglob('*.ipynb')))
