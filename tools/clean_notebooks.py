"""Clean notebooks for git: remove outputs, counters and editor metadata.
`python tools/clean_notebooks.py [paths]`; JupyterLab does the same at each save under `make lab`."""
import sys
from pathlib import Path
import nbformat
from nbdev.clean import clean_nb

ROOT = Path(__file__).resolve().parent.parent
KEEP = ['tags'] # papermill finds the parameters by a tag

def clean(notebook):
    "Clean a notebook in place, keeping the tags of its cells."
    clean_nb(notebook, allowed_cell_metadata_keys=KEEP)
    for cell in notebook['cells']:
        if cell['cell_type'] == 'code': cell['outputs'] = []

def before_save(model, **_):
    "Clean the notebook that Jupyter is about to save (a save hook)."
    if model['type'] == 'notebook': clean(model['content'])

def main(paths):
    for path in paths:
        notebook = nbformat.read(path, nbformat.NO_CONVERT)
        clean(notebook)
        nbformat.write(notebook, path)

if __name__ == '__main__': main(sys.argv[1:] or sorted((ROOT/'nbs').rglob('*.ipynb')))
