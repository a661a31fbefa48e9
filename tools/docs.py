"""The docs site from the notebooks: `python tools/docs.py [--fast] [--out _docs]`; `make docs` calls this.

Notebooks are shown with their outputs, from the copies in build/executed that `make test` leaves, as long as these
hold the notebook's code. Others are run first, or, with --fast, shown without outputs. Quarto renders where it is
installed, smalldocs elsewhere; what smalldocs makes is then mended to work without network and without a server:
formulas as MathML, the search index as a script, no fonts from elsewhere. At last every link of every page is followed
(tools/check_docs.py)."""
import argparse, ast, html, json, posixpath, re, shutil, subprocess, sys, time
from collections import Counter
from functools import cache
from pathlib import Path
import nbformat, yaml
from nbformat.v4 import new_markdown_cell, new_raw_cell
from check_docs import check
from test_notebooks import ROOT, SETTINGS, directives, notebooks
from mimdet._modidx import d as INDEX
from mimdet.base.core import MimdetError, complaining
from mimdet.study.answers import answers
from mimdet.study.records import read_record, run_seconds
from mimdet.study.pages import read_digest, read_names
from mimdet.study.profile import profiles
from mimdet.study.jobs import read_study

NBS, EXECUTED, SOURCE = ROOT/'nbs', ROOT/'build'/'executed', ROOT/'build'/'docs'
GIT = f'{SETTINGS["DEFAULT"]["git_url"]}/blob/{SETTINGS["DEFAULT"]["branch"]}'
GUIDE = '../guide/quickstart.ipynb#without-installing-anything'
ALWAYS = 'index.ipynb', 'guide/' # show tables, which change without their code
# in reading order
START = 'quickstart', 'own_pictures', 'models', 'status'
TUTORIALS = 'explore', 'step_by_step', 'from_scratch', 'own_data', 'evaluate_published', 'new_backbone', 'clusters'
REFERENCE = 'commands', 'glossary', 'trouble', 'changes'
PARTS = 'base', 'method', 'weights', 'data', 'measure', 'training', 'study' # each with an index of its own
FOLDERS = dict(guide='Guide', tutorials='Tutorials', experiments='Experiments', figures='Tables and figures')
ABOUT = dict(guide='Where to start, how to use it on your own pictures, and what was really run.',
             tutorials='The library put to use, from a first look to models and data of your own.',
             experiments='The programs that papermill runs with the parameters of a profile. '
                         'As they stand here, they run for a few steps.',
             figures='The notebooks that draw tables and figures from run records. '
                     'As they stand here, they draw what the committed records hold.')

# --- names and links ---

def placed(path):
    "A notebook's path in the site: numbers are left out, as nbdev does."
    return re.sub(r'(^|/)\d+[a-z]?_', r'\1', path)

def symbols():
    "Modules and names of the library that mean one thing only, each with its page and anchor."
    found = {}
    for module, names in INDEX['syms'].items():
        short = module.split('.')[-1]
        page = next((target.partition('#')[0] for target, _ in names.values()), '')
        if page: found[module] = {page}
        for full, (target, _) in names.items():
            name = full.removeprefix(f'{module}.')
            if not re.search(r'(^|\.)_', name) and '.' not in name:
                for key in (name, f'{short}.{name}', full): found.setdefault(key, set()).add(target)
    return {name: targets.pop().replace('.html', '.ipynb') for name, targets in found.items() if len(targets) == 1}

SYMBOLS = symbols()

def linked(target, home, place):
    "A link of a notebook in the folder `home` of nbs, as a page in the folder `place` of the site has it."
    path = posixpath.normpath(posixpath.join('nbs', home, target))
    if found := re.fullmatch(r'figures/(\w+)/(\w+)\.md', path): path = f'results/{found[1]}/{found[2]}.md'
    elif found := re.fullmatch(r'figures/(\w+)', path): path = f'results/{found[1]}.md'
    elif path.removeprefix('nbs/') in FOLDERS: path = f'{path[4:]}/index.md'
    elif path.startswith('nbs/'): path = placed(path[4:])
    elif not path.startswith('figures/'): return f'{GIT}/{path}'
    return posixpath.relpath(path, place or '.')

def relinked(text, home, place=None):
    """Markdown as the site has it: links followed to where their targets are, and names of the library linked to their
    reference."""
    place = home if place is None else place
    def link(found):
        if not found[2] or re.match(r'[a-z]+:', found[2]): return found[0]
        return f'{found[1]}({linked(found[2], home, place)}{found[3] or ""})'
    def name(found):
        if not re.search(r'[_.(A-Z]', found[1]): return found[0] # a word
        target = SYMBOLS.get(found[1].removesuffix('()'))
        return f'[{found[0]}]({posixpath.relpath(target, place or ".")})' if target else found[0]
    parts = re.split(r'(^```.*?^```$)', text, flags=re.S | re.M) # code stays
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r'(\[[^\]\n]*\])\(([^)\s#]*)(#[^)\s]*)?\)', link, parts[i])
        parts[i] = re.sub(r'(?<![\[`])`([\w.]+(?:\(\))?)`(?![\]`])', name, parts[i])
    return ''.join(parts)

# --- notebooks ---

def executed(path):
    "The copy of a notebook that was run, if its code is still the notebook's; else None."
    nb, copy = nbformat.read(path, 4), EXECUTED/path.relative_to(NBS)
    if all(c.cell_type != 'code' for c in nb.cells): return nb
    ran = nbformat.read(copy, 4) if copy.exists() else None
    return ran if ran and [c.source for c in ran.cells] == [c.source for c in nb.cells] else None

def run(paths):
    "Run notebooks and keep their copies."
    kept = str(EXECUTED.relative_to(ROOT))
    command = [sys.executable, 'tools/test_notebooks.py', '--keep', kept, *map(str, paths)]
    if paths and subprocess.run(command, cwd=ROOT).returncode:
        raise MimdetError('a notebook failed, see above: '
                          'mend it, or show it without outputs (make docs FLAGS=--fast)')

def opening(nb):
    "Title, description and what else there is in a notebook's first cell."
    found = re.match(r'# (.+)\n+> (.+)\n*', nb.cells[0].source)
    if not found: raise MimdetError('begins without  # title  and  > description')
    return found[1], re.sub(r'[`*]|\[([^\]]*)\]\([^)]*\)', r'\1', found[2]), nb.cells[0].source[found.end():]

class _Plain(ast.NodeTransformer):
    "Leaves out what annotates an argument for the command line alone."
    def visit_arg(self, node):
        called = isinstance(node.annotation, ast.Call) and getattr(node.annotation.func, 'id', '') == 'Param'
        return ast.arg(node.arg) if called else node

def signature(node):
    "How a function or class is called, as Python."
    node = _Plain().visit(node)
    if isinstance(node, ast.FunctionDef):
        returns = f' -> {ast.unparse(node.returns)}' if node.returns else ''
        return f'{node.name}({ast.unparse(node.args)}){returns}'
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == '__init__'), None)
    fields = [ast.unparse(n) for n in node.body if isinstance(n, ast.AnnAssign)]
    return f'{node.name}({re.sub("^self(, )?", "", ast.unparse(init.args)) if init else ", ".join(fields)})'

def qualified(node):
    "The name of what a cell defines; of a method that is patched into its class, with the class."
    patched = any(ast.unparse(decorator) == 'patch' for decorator in node.decorator_list)
    return f'{ast.unparse(node.args.args[0].annotation)}.{node.name}' if patched else node.name

def reference(code, module):
    "Name, signature, docstring and link to the source of what an exported cell defines, as Markdown."
    path = ROOT.joinpath('mimdet', *module.split('.')).with_suffix('.py')
    lines = {n.name: n.lineno for n in ast.parse(path.read_text()).body if hasattr(n, 'name')}
    for node in ast.parse(code).body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)): continue
        name = qualified(node)
        if not any(part.startswith('_') for part in name.split('.')):
            target, file = INDEX['syms'][f'mimdet.{module}'][f'mimdet.{module}.{name}']
            yield (f'### {name} {{#{target.partition("#")[2]}}}\n\n'
                   f'::: {{.reference}}\n```python\n{signature(node)}\n```\n\n'
                   f'{ast.get_docstring(node) or ""} [source]({GIT}/{file}#L{lines[node.name]})\n:::')

def visible(output):
    """Is an output worth a place on the page? Not progress, warnings, the name of a figure, or a widget, which needs a
    kernel."""
    data = output.get('data', {})
    if output.get('name') == 'stderr' or 'application/vnd.jupyter.widget-view+json' in data: return False
    return 'image/png' in data or not data.get('text/plain', '').startswith('<Figure')

def elsewhere(source):
    "Links that open a tutorial on a machine of somebody else's, as Markdown."
    if not source.startswith('nbs/tutorials/') or source.endswith('clusters.ipynb'): return ''
    user, name, branch = (SETTINGS['DEFAULT'][key] for key in ('user', 'lib_name', 'branch'))
    binder = f'https://mybinder.org/v2/gh/{user}/{name}/{branch}?labpath={source}'
    colab = f'https://colab.research.google.com/github/{user}/{name}/blob/{branch}/{source}'
    return f' Open it in [Binder]({binder}) or [Colab]({colab}) ([what they need]({GUIDE})).'

def stage(nb, target, source, note=''):
    "Write a notebook into the site's source; returns its entry for lists."
    home, place, section = posixpath.dirname(source)[4:], posixpath.dirname(target), ''
    modules = (re.match(r'#\| default_exp (\S+)', cell.source) for cell in nb.cells)
    module = next((found[1] for found in modules if found), '')
    try: title, description, rest = opening(nb)
    except MimdetError as e: raise MimdetError(f'{source} {e}') from None
    front = yaml.safe_dump(dict(title=title, description=description), allow_unicode=True, width=1000)
    origin = f'[{source}]({GIT}/{source}){{.notebook-source}} {note}{"." if note else ""}{elsewhere(source)}'
    cells = [new_raw_cell(f'---\n{front}---'), new_markdown_cell(f'{origin}\n\n{relinked(rest, home, place)}')]
    for cell in nb.cells[1:]:
        if cell.cell_type == 'markdown':
            section = (re.findall(r'^#+ (.+)$', cell.source, re.M) or [section])[-1]
            cell.source = relinked(cell.source, home, place)
        elif cell.cell_type == 'code':
            found = directives(cell.source)
            if not cell.source.strip() or found.keys() & {'hide', 'default_exp'}: continue
            if 'export' in found and module: cells += map(new_markdown_cell, reference(cell.source, module))
            if 'Param(' in cell.source: continue # a command: its options stand in the guide, in tables
            cell.outputs = [o for o in cell.outputs if visible(o)]
            for o in cell.outputs:
                if 'text/markdown' not in o.get('data', {}): continue
                o.data['text/markdown'] = relinked(o.data['text/markdown'], home, place)
            cell.source = re.sub(r'^#\|(?! *echo).*\n?', '', cell.source, flags=re.M)
            if any('image/png' in o.get('data', {}) for o in cell.outputs):
                alt = found.get('fig-alt') or f'{title}: {section or description}'
                quoted = json.dumps(alt, ensure_ascii=False) # colons are words here
                cell.source = f'#| fig-alt: {quoted}\n{cell.source}'
        cells.append(cell)
    nb.cells = cells
    for i, cell in enumerate(cells): cell.id = f'c{i}'
    (SOURCE/target).parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, SOURCE/target)
    return title, target, description

# --- pages without a notebook ---

def write(target, title, description, text, **options):
    "A page from Markdown; returns its entry for lists."
    (SOURCE/target).parent.mkdir(parents=True, exist_ok=True)
    front = yaml.safe_dump(dict(title=title, description=description, **options), allow_unicode=True, width=1000)
    (SOURCE/target).write_text(f'---\n{front}---\n\n{text}\n', encoding='utf-8')
    return title, target, description

def listing(target, title, description, entries, text=''):
    "A page that lists others."
    lines = [f'- [{t}]({posixpath.relpath(where, posixpath.dirname(target) or ".")}): {d}'
             for t, where, d in entries]
    return write(target, title, description, '\n'.join([text, '', *lines]), search=False)

# what the text shows of a table, the verdict and the difference first; the whole table has a page of its own
SHORT = dict(
    table_main=['published model', 'ours', '@1', '@train', 'published @1'],
    table_ratio=['model', '@0.25', '@0.5', '@0.75', '@1', 'trainings'],
    table_ablations=['study', 'variant', 'difference @1', '@1', 'difference @train', 'c4 moved'],
    table_sampling=['model', 'ratio', 'ensemble − one sampling', 'ensemble', 'one sampling', 'one pass @1'],
    table_cost=['recipe', 'ratio', "encoder's share of FLOPs", "encoder's share of time", 'GFLOPs',
                'latency (ms an image)', 'training: images/s'],
    table_bench=['what', 'model', 'ratio', 'precision', "ours / authors'", 'ours / plain', 'ours, ms'],
    claims=['verdict', 'claim', 'ours', '95 % interval', 'what goes the other way'])
LONGEST = 7 # rows
EMPTY = 'not run', 'n/a', 'n/a (paper)', '-', '–', ''

def cells(line): return [cell.strip() for cell in re.split(r'(?<!\\)\|', line.strip().strip('|'))]

def narrowed(table, chosen=None):
    "A Markdown table without columns in which nothing stands; or chosen columns of its first rows that were run."
    head, rule, *rows = map(cells, table)
    told = {i for i in range(len(head)) if any(row[i] not in EMPTY for row in rows)}
    kept = [head.index(name) for name in chosen if name in head] if chosen else range(len(head))
    if chosen: rows = [row for row in rows if row[kept[1]] != 'not run'][:LONGEST]
    kept = [i for i in kept if i in told]
    if not rows or len(kept) < 2: return 'Nothing of it was run.'
    return '\n'.join('| ' + ' | '.join(row[i] for i in kept) + ' |' for row in (head, rule, *rows))

def whole_table(text):
    "A table's file with narrower tables, and with captions in small print."
    text = re.sub(r'(?:^\|.*\n)+', lambda found: narrowed(found[0].splitlines()) + '\n', text, flags=re.M)
    return re.sub(r'(^\|.*\n\n)([^#|<\n].*)', r'\1::: {.caption}\n\2\n:::', text, flags=re.M)

def origin_of(study, job, books, up):
    "Where a table or figure comes from, as Markdown."
    table = ROOT/study.figures/f'{job.name}.md'
    origin = table if table.exists() else ROOT/job.outputs[0]
    files = [f'[{Path(f).suffix[1:]}]({up}{f})' for f in job.outputs if not f.endswith('.md')]
    at = f'{up}results/{study.profile}/records.md'
    names = ', '.join(f'[{n}]({at}#record-{n})' for n in read_names(origin))
    program = f'[notebook]({up}{job.notebook[4:]})'
    if job.name in books: program += f', [as run]({up}results/{books[job.name]})'
    return (f'::: {{.origin}}\nFiles: {", ".join(files)}. Made by this {program} from the records {names} '
            f'(common digest {read_digest(origin)}).\n:::')

@cache
def figure_opening(notebook):
    "As `opening`, of a notebook that draws a figure or a table; its title without that word."
    title, question, rest = opening(nbformat.read(ROOT/notebook, 4))
    return title.partition(': ')[2] or title, question, rest

def shown(study, job, books, told, taken):
    """A table or figure on the page of its study: the answer, the picture or a short table, and where to read on.
    `told` is its sentence. A figure is called so if a table has taken its title."""
    table, picture = ROOT/study.figures/f'{job.name}.md', f'../{study.figures}/{job.name}.png'
    title, question, rest = figure_opening(job.notebook)
    about = [p for p in relinked(rest, 'figures', 'results').split('\n\n') if not p.startswith('This notebook ')]
    if title in taken and not table.exists(): title += ': figure'
    parts = [f'## {title[0].upper()}{title[1:]} {{#{job.name}}}', f'*{question}* {told}'.strip()]
    page = f'{study.profile}/{job.name}.md'
    if table.exists():
        head = re.match(r'(?:\|.*\n)+', table.read_text())[0].splitlines()
        short = narrowed(head, SHORT.get(job.name))
        left, rows = short.count('\n') - 1, len(head) - 2
        cut = f'{left} of {rows} rows. ' if 0 < left < rows else ''
        parts.append(short)
        body = whole_table(re.sub(r'^#', '##', table.read_text(), flags=re.M))
    else:
        parts.append(f'[![]({picture}){{fig-alt="{title}: {question}"}}]({picture})')
        body = f'![](../{picture}){{fig-alt="{title}: {question}"}}'
    parts.append(f'{cut}[The whole table]({page}): rows, columns, caption, files and records.' if table.exists() else
                 f'[Full size]({page}), files and records.')
    back = f'[Results: {study.profile}](../{study.profile}.md#{job.name})'
    whole = '\n\n'.join([back, *[p.replace('](../', '](../../') for p in about], body,
                          origin_of(study, job, books, '../../')])
    write(f'results/{page}', f'{study.profile}: {title}', question, whole,
          toc=False, **{'page-layout': 'full'})
    return '\n\n'.join(parts)

def records(study):
    "A study's run records as a Markdown table."
    yield ('Every table and figure of the study is made from these. '
           'SHA-256: the first digits of what each record holds of itself.\n')
    yield '| record | kind | SHA-256 | date | commit | seconds |\n|---|---|---|---|---|---|'
    for path in sorted((ROOT/study.records).glob('*.json')):
        r = read_record(path)
        yield (f'| <span id="record-{r["name"]}"></span>[{r["name"]}]({GIT}/{study.records}/{path.name}) '
               f'| {r["kind"]} | `{r["sha256"][:16]}` | {r["date"][:10]} '
               f'| `{r["git"]["commit"][:7]}` | {run_seconds(r):.0f} |')

def study_pages(name):
    "The page of a profile's tables and figures, and those of its records and executed notebooks, if they are here."
    study, books, runs = read_study(name, ROOT/'profiles'), {}, []
    for job in study.jobs.values():
        if (ROOT/job.executed).exists():
            books[job.name] = f'{name}/{job.name}_run.ipynb'
            nb = nbformat.read(ROOT/job.executed, 4)
            nb.cells[0].source = re.sub(r'^# .*', f'# {name}: {job.name}, as run', nb.cells[0].source)
            note = f'as papermill ran it for the study [{name}](../{name}.md)'
            runs.append(stage(nb, f'results/{books[job.name]}', job.notebook, note))
    shutil.copytree(ROOT/study.figures, SOURCE/study.figures, ignore=shutil.ignore_patterns('*.md'),
                    dirs_exist_ok=True)
    drawn = [job for job in study.jobs.values() if job.kind == 'figure' and (ROOT/job.outputs[0]).exists()]
    comment = re.match(r'# (.*)', (ROOT/'profiles'/f'{name}.yaml').read_text())[1]
    about = comment.split('. ')[0].removesuffix('.') + '.'
    lines = [f'- [{t}]({where.removeprefix(f"results/{name}/")}): {d}' for t, where, d in runs]
    none = f'None here: they are not part of the repository. `make reproduce PROFILE={name}` makes them.'
    write(f'results/{name}/records.md', f'{name}: records', f'The run records of the study {name}.',
          '\n'.join(records(study)) + '\n\n## Executed notebooks\n\n' + ('\n'.join(lines) or none))
    def is_table(job): return (ROOT/study.figures/f'{job.name}.md').exists()
    titles = {figure_opening(job.notebook)[0] for job in drawn if is_table(job)}
    sentences = answers(name, ROOT)
    def part(job): return shown(study, job, books, sentences[job.name], titles)
    cards = [f'::: {{.card}}\n{part(job)}\n:::' for job in drawn if not is_table(job)]
    parts = [f'The [profile]({GIT}/profiles/{name}.yaml) says which runs there are; '
             f'all [records]({name}/records.md) are listed with their digests.',
             *(part(job) for job in drawn if is_table(job))]
    if cards: parts += [':::: {.cards}', *cards, '::::']
    return write(f'results/{name}.md', f'Results: {name}', about, '\n\n'.join(parts))

# --- the site ---

def make_source():
    "Everything that the renderer reads, in build/docs."
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(NBS/'assets', SOURCE/'assets')
    shutil.copy(NBS/'_quarto.yml', SOURCE)
    entries = {}
    for path in sorted(notebooks([NBS])):
        nb, target = executed(path), placed(str(path.relative_to(NBS)))
        note = '' if nb else 'shown without outputs'
        entry = stage(nb or nbformat.read(path, 4), target, str(path.relative_to(ROOT)), note)
        entries.setdefault(posixpath.dirname(target), []).append(entry)
    def chosen(folder, names):
        "Entries of a folder in a given order."
        there = {Path(entry[1]).stem: entry for entry in entries[folder]}
        if {*names} - {*there}: raise MimdetError(f'nbs/{folder} lacks {", ".join({*names} - {*there})}')
        return [there[name] for name in names]
    parts = [sorted(entries[part], key=lambda entry: Path(entry[1]).name != 'index.ipynb') for part in PARTS]
    ordered = entries | dict(tutorials=chosen('tutorials', TUTORIALS))
    lists = {f: listing(f'{f}/index.md', title, ABOUT[f], ordered[f]) for f, title in FOLDERS.items()}
    listing('library.md', 'Library', 'The seven parts of the package, in reading order.', [part[0] for part in parts])
    studies = [study_pages(p) for p in profiles(ROOT/'profiles') if p != 'smoke' and (ROOT/'figures'/p).exists()]
    overview = listing(
        'results/index.md', 'Results',
        'Tables and figures of each profile that has been run, with the records they are made from.', studies,
        'A profile says which models are trained on what, how often, and at which sample ratios they are evaluated. '
        'What is shown was drawn from its run records, nothing else.')
    write('404.md', 'Page not found', 'There is no such page.',
          'There is no such page. Start at the [first page](index.ipynb), or search above.', search=False)
    start, contributing = chosen('', ['index', 'contributing'])
    sections = [
        (('Start', start[1]), chosen('guide', START)), (lists['tutorials'], ordered['tutorials']),
        (overview, [*chosen('guide', ['reproduce']), *studies]), (('Reference', lists['guide'][1]),
                                                                   chosen('guide', REFERENCE)),
        *((part[0], part[1:]) for part in parts), (lists['experiments'], entries['experiments']),
        (lists['figures'], entries['figures']), (contributing, [])]
    sidebar = dict(style='docked', **{'collapse-level': 1}, contents=list(sidebar_entries(sections)))
    website = dict(sidebar=sidebar, **{'page-footer': dict(left=version_and_date())})
    (SOURCE/'sidebar.yml').write_text(yaml.safe_dump(dict(website=website), allow_unicode=True, sort_keys=False))

def sidebar_entries(sections):
    "The sidebar's sections. A name that stands there twice gets its folder before it."
    names = Counter(entry[0].lower() for head, rest in sections for entry in (head, *rest))
    def named(entry):
        folder = posixpath.dirname(entry[1])
        return f'{folder}: {entry[0]}' if names[entry[0].lower()] > 1 and folder in PARTS else entry[0]
    for head, rest in sections:
        contents = [dict(text=named(entry), href=entry[1]) for entry in rest]
        yield dict(section=head[0], href=head[1], contents=contents) if rest else dict(text=head[0], href=head[1])

def version_and_date():
    "The version, and the date of the commit that is shown, if this is a checkout."
    told = subprocess.run(['git', 'log', '-1', '--format=%cs, %h'], cwd=ROOT, capture_output=True, text=True)
    made = f', {told.stdout.strip()}' if told.returncode == 0 else ''
    return f'mimdet {SETTINGS["DEFAULT"]["version"]}{made}'

def replaced(path, old, new):
    "Replace what must be in a file of smalldocs; a version without it needs another mend."
    text = path.read_text(encoding='utf-8')
    if text.count(old) != 1:
        raise MimdetError(f'{path.name} of this smalldocs lacks  {old}: '
                          'tools/docs.py mends the release that requirements.lock names')
    path.write_text(text.replace(old, new), encoding='utf-8')

def mathml(found):
    "A formula as MathML."
    from latex2mathml.converter import convert
    return convert(html.unescape(found[2]), display='block' if found[1] == 'display' else 'inline')

SEARCH = {
    'const r = await fetch(offset + "search.json");':
        "await new Promise((done) => Object.assign(document.head.appendChild(document.createElement('script')), "
        "{ onload: done, src: offset + 'search.js' }));",
    'index = await r.json();': 'index = window.searchIndex;',
    'fuse ? fuse.search(q, { limit }).map((h) => h.item)': 'fuse ? window.ranked(index, q, limit)'}

IN_SIGHT = """
{ const bar = document.querySelector('#quarto-sidebar'), entry = bar?.querySelector('.active');
  const top = (e) => e.getBoundingClientRect().top;
  if (entry) bar.scrollTop += top(entry) - top(bar) - bar.clientHeight/2; }
"""

def render_smalldocs(out):
    "The site by smalldocs, mended to work from a disk without network; returns complaints."
    from smalldocs.config import BuildError, ConfigError, load
    from smalldocs.site import Site
    try:
        site = Site(load(SOURCE), quiet=True)
        site.out = out
        site.build()
    except (BuildError, ConfigError) as e: raise MimdetError(f'smalldocs: {e}') from None
    for path in out.rglob('*.html'):
        text = path.read_text(encoding='utf-8')
        text = re.sub(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', mathml, text, flags=re.S)
        path.write_text(re.sub(r'<(link|script)[^>]*katex[^>]*>(</script>)?', '', text), encoding='utf-8')
    for path in (out/'site_libs').rglob('*.css'):
        text = path.read_text(encoding='utf-8')
        without = re.sub(r'@import url\([^)]*googleapis[^)]*\);?', '', text)
        if 'googleapis' in text: path.write_text(without, encoding='utf-8')
    script = out/'site_libs'/'smalldocs.js'
    for old, new in SEARCH.items(): replaced(script, old, new)
    script.write_text(script.read_text(encoding='utf-8') + IN_SIGHT, encoding='utf-8')
    index, ranked = (out/'search.json').read_text(encoding='utf-8'), (NBS/'assets'/'search.js').read_text()
    (out/'search.js').write_text(f'window.searchIndex = {index}\n{ranked}', encoding='utf-8')
    return site.warnings

def render_quarto(out):
    "The site by Quarto; returns complaints."
    command = ['quarto', 'render', str(SOURCE), '-M', 'html-math-method:mathml', '--output-dir', str(out)]
    return ['quarto failed, see above'] if subprocess.run(command).returncode else []

RENDERERS = dict(quarto=render_quarto, smalldocs=render_smalldocs)

def main():
    parser = argparse.ArgumentParser(description='Make the docs site.')
    parser.add_argument('--fast', action='store_true',
                        help='run no notebook but the start page and the guide; '
                             'those without a fresh copy in build/executed are shown without outputs')
    parser.add_argument('--renderer', choices=RENDERERS, default='quarto' if shutil.which('quarto') else 'smalldocs',
                        help='default: quarto where it is installed')
    parser.add_argument('--out', type=lambda p: Path(p).resolve(), default=ROOT/'_docs',
                        help='folder of the site (default: _docs)')
    args = parser.parse_args()
    started = time.time()
    def always(path): return str(path.relative_to(NBS)).startswith(ALWAYS)
    run([p for p in notebooks([NBS]) if always(p) or not args.fast and not executed(p)])
    make_source()
    complaints = [*RENDERERS[args.renderer](args.out), *check(args.out)]
    for line in complaints: print('FAIL ', line)
    if complaints: sys.exit(f'{len(complaints)} complaints')
    pages, seconds = len(list(args.out.rglob('*.html'))), time.time() - started
    print(f'{args.out}: {pages} pages in {seconds:.0f} s; open {args.out/"index.html"}, or make docs-serve')

if __name__ == '__main__':
    with complaining('docs'): main()
