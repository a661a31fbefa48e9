"""Run nbs/index.ipynb and write README.md from it: `make readme`."""
import os, re
import nbformat
from test_notebooks import ROOT, client
from mimdet.architecture import save_architecture

SOURCE = '<!-- Made from nbs/index.ipynb by `make readme`: edit that. -->\n\n'

def shown(cell):
    "Return the visible parts of a cell as Markdown."
    if cell.cell_type == 'markdown': return [cell.source]
    if cell.cell_type != 'code': return []
    silent = re.search(r'^#\| *echo: *false', cell.source, re.M)
    code = '' if silent else re.sub(r'^#\|.*\n', '', cell.source, flags=re.M)
    outputs = [o.data['text/markdown'] for o in cell.outputs if 'text/markdown' in o.get('data', {})]
    return ([f'```python\n{code}\n```'] if code else []) + outputs

def from_root(link):
    "Rewrite a link in a notebook for README.md, one folder up."
    label, target = link.groups()
    if re.match(r'[a-z]+:|#', target): return link[0]
    return f'{label}({os.path.normpath(os.path.join("nbs", target))})'

def readme():
    "Return the text of README.md."
    nb = nbformat.read(ROOT/'nbs'/'index.ipynb', as_version=4)
    with client(nb, ROOT/'nbs') as running: running.execute()
    text = '\n\n'.join(part.strip() for cell in nb.cells for part in shown(cell)) + '\n'
    return SOURCE + re.sub(r'(\[[^\]\n]*\])\(([^)\s]+)\)', from_root, text)

if __name__ == '__main__':
    (ROOT/'README.md').write_text(readme(), encoding='utf-8')
    save_architecture(ROOT/'nbs'/'assets'/'architecture.svg') # which README.md shows
