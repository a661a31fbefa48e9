"""The docs site: whole, true to the records, and without a fault in a browser, from the disk and served."""
import csv, functools, http.server, importlib, re, subprocess, sys, threading
import nbformat, pytest
from browser import CHROMIUM, browser
from conftest import ROOT
from mimdet.study.answers import answers
from mimdet.study.records import read_record
from mimdet.study.pages import digest, read_digest

PAGES = {
    'start': 'index.html',
    'method': 'method/index.html',
    'reference': 'method/sampler.html',
    'guide': 'guide/status.html',
    'study': 'results/quick.html',
    'table': 'results/quick/table_ablations.html',
    'tutorial': 'tutorials/own_data.html',
}

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The site with the outputs that are there; it would not be made with a broken link."
    out = tmp_path_factory.mktemp('docs')/'site'
    command = [sys.executable, 'tools/docs.py', '--fast', '--renderer', 'smalldocs', '--out', out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out

@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(ROOT/'tools')
    return importlib.import_module

def text(path): return re.sub(r'\s+', ' ', re.sub(r'<[^>]+>', ' ', path.read_text()))

# --- what it shows ---

def test_every_notebook_has_a_page(site):
    books = [p.relative_to(ROOT/'nbs') for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts]
    def page(book): return (site/book.parent/re.sub(r'^\d+_', '', book.name)).with_suffix('.html')
    assert [b for b in books if not page(b).exists()] == []

def test_start_page_shows_what_the_tables_hold(site):
    with (ROOT/'figures'/'demo'/'table_ratio.csv').open() as file: rows = [*csv.DictReader(file)]
    main = [f'{float(row["mean"]):.1f} ± {float(row["sd"]):.1f}' for row in rows
            if (row['model'], row['task']) == ('v1_sr0.5', 'box') and row['column'] in ('@0.25', '@0.5', '@1')]
    assert len(main) == 3 and f'MIMDet, trained on half of the tokens {" ".join(main)} ' in text(site/'index.html')

def test_readme_is_short():
    words = (ROOT/'README.md').read_text().split()
    assert len(words) <= 1300

def test_every_figure_of_the_study_names_its_records(site):
    study, pages = (site/'results'/'quick.html').read_text(), site/'results'/'quick'
    runs, listed = ROOT/'results'/'runs'/'quick', (pages/'records.html').read_text()
    figures = sorted((ROOT/'figures'/'quick').glob('*.png'))
    assert figures
    for figure in figures:
        assert f'href="quick/{figure.stem}.html"' in study and f'figures/quick/{figure.name}"' in study
        named = re.search(r'class="origin">(.*?)</div>', (pages/f'{figure.stem}.html').read_text(), re.S)[1]
        records = [read_record(runs/f'{name}.json') for name in re.findall('#record-([^"]+)', named)]
        assert f'digest {digest(records)})' in named and digest(records) == read_digest(figure), figure.name
    for record in runs.glob('*.json'): assert f'id="record-{record.stem}"' in listed

def test_a_study_answers_in_sentences_from_its_records(site):
    shown, told = text(site/'results'/'quick.html'), answers('quick', ROOT)
    for name in ('ap_over_ratio', 'table_ablations', 'what_it_sees'):
        sentence = told[name]
        assert sentence and sentence.replace('"', '') in re.sub('[“”"]', '', shown)

def test_whole_tables_lose_no_cell(site):
    table = (ROOT/'figures'/'quick'/'table_ratio.md').read_text().splitlines()
    shown = text(site/'results'/'quick'/'table_ratio.html')
    cells = [cell.strip() for line in table[2:] if line.startswith('| v1_') for cell in line.strip('| ').split('|')]
    assert len(cells) > 10 and all(cell in shown for cell in cells if cell not in ('n/a (paper)', 'not run'))

def test_a_paragraph_that_announces_something_is_followed_by_it(site):
    alone = []
    for page in site.rglob('*.html'):
        main = re.search(r'<main.*?</main>', page.read_text(), re.S)
        for end, after in re.findall(r'([^<>]{0,60}:)</p>\s*(<[^>]*>\s*(?:<[^>]*>)?)', main[0] if main else ''):
            if re.match(r'</|<h[1-6]|<p>\s*(?!<(strong|span|math))', after): alone.append((page.name, end, after))
    assert alone == []

def test_sidebar(site):
    names = re.findall(r'class="menu-text">([^<]*)<', (site/'index.html').read_text())
    sidebar = names[names.index('Start'):]
    assert len({name.lower() for name in sidebar}) == len(sidebar)
    assert sidebar[1:5] == ['Quickstart', 'Your own pictures', 'Models', 'Reproduction status']
    tutorials = sidebar[sidebar.index('Tutorials') + 1:]
    assert tutorials[0] == 'Explore'

def test_wrong_addresses_have_a_page_and_pages_a_version(site):
    assert 'There is no such page' in text(site/'404.html')
    assert re.search(r'mimdet \d+\.\d+', text(site/'guide'/'models.html'))

def test_tutorials_open_elsewhere(site):
    "Binder and Colab get files that are there, and Binder's build calls the set-up."
    told = (site/'tutorials'/'explore.html').read_text()
    for link in re.findall(r'href="(https://(?:mybinder|colab)[^"]*)"', told):
        assert (ROOT/re.search(r'nbs/.*\.ipynb', link)[0]).is_file()
    assert told.count('mybinder.org') == told.count('colab.research') == 1
    script = (ROOT/'.binder'/'postBuild').read_text()
    assert 'python tools/setup.py "$NB_PYTHON_PREFIX"' in script and (ROOT/'tools'/'setup.py').is_file()
    version = (ROOT/'.binder'/'runtime.txt').read_text()
    assert version.strip() in ('python-3.11', 'python-3.12', 'python-3.13')

def test_reference_has_no_marks_of_the_command_line(site):
    assert [page.name for page in site.rglob('*.html') if 'Param(' in text(page)] == []

def test_reference_has_signature_docstring_and_source(site):
    shown = (site/'method'/'tokens.html').read_text()
    plain = re.sub(r'</?span[^>]*>', '', shown)
    assert 'id="keep_count"' in shown and 'keep_count(n: int, ratio: float) -&gt; int' in plain
    lines = (ROOT/'mimdet'/'tokens.py').read_text().splitlines()
    line = next(i for i, line in enumerate(lines, 1) if line.startswith('def keep_count'))
    assert f'/mimdet/tokens.py#L{line}"' in shown

def test_formulas_need_no_script(site):
    shown = (site/'method'/'stem.html').read_text()
    assert '<math' in shown and 'katex' not in shown

def test_names_and_links_of_the_prose(tool):
    docs = tool('docs')
    relinked = docs.relinked
    assert relinked('`keep_tokens` and `keep_tokens()`', 'tutorials') == (
        '[`keep_tokens`](../method/sampler.ipynb#keep_tokens) and '
        '[`keep_tokens()`](../method/sampler.ipynb#keep_tokens)')
    assert relinked('`mimdet.sampler`', '') == '[`mimdet.sampler`](method/sampler.ipynb)'
    assert relinked('[sampler](../method/03_sampler.ipynb#which)', 'tutorials') == (
        '[sampler](../method/sampler.ipynb#which)')
    assert relinked('[table](../figures/quick/table_cost.md)', '') == '[table](results/quick/table_cost.md)'
    assert relinked('[tables](../figures/quick)', '') == '[tables](results/quick.md)'
    assert relinked('[licence](../LICENSE)', '') == f'[licence]({docs.GIT}/LICENSE)'
    for same in ('```\n`keep_tokens`\n```', '[`keep_tokens`](https://example.org)', '`no_such_name`', '[a](#b)'):
        assert relinked(same, '') == same

def test_outputs_of_another_code_are_not_shown(tool, tmp_path, monkeypatch):
    docs = tool('docs')
    for name in ('NBS', 'EXECUTED'):
        monkeypatch.setattr(docs, name, tmp_path/name)
        (tmp_path/name).mkdir()
    def write(folder, source):
        cell = nbformat.v4.new_code_cell(source, id='a')
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path/folder/'a.ipynb')
    write('NBS', '1 + 1')
    assert docs.executed(tmp_path/'NBS'/'a.ipynb') is None
    write('EXECUTED', '1 + 1')
    assert docs.executed(tmp_path/'NBS'/'a.ipynb') is not None
    write('EXECUTED', '1 + 2')
    assert docs.executed(tmp_path/'NBS'/'a.ipynb') is None

# --- what the check finds ---

GOOD = '<title>t</title><meta name="description" content="d"><h1 id="here">t</h1>'

@pytest.mark.parametrize('body, complaint', [
    ('<a href="b.html">b</a>', 'links to nothing: b.html'),
    ('<a href="#there">b</a>', 'missing anchor: #there'),
    ('<a href="../">up</a>', 'links to nothing'),
    ('<img src="a.html">', 'without alternative text'),
    ('<script src="https://example.org/a.js"></script>', 'loads from elsewhere'),
    ('<link rel="stylesheet" href="//example.org/a.css">', 'loads from elsewhere'),
    ('<a href="#here">b</a><a href="a.html#here">c</a><a href="https://example.org">d</a>', ''),
])
def test_check(tool, tmp_path, body, complaint):
    (tmp_path/'a.html').write_text(GOOD + body)
    found = list(tool('check_docs').check(tmp_path))
    assert len(found) == bool(complaint) and complaint in ''.join(found)

def test_check_wants_titles_and_descriptions(tool, tmp_path):
    (tmp_path/'a.html').write_text('<h1>t</h1>')
    assert list(tool('check_docs').check(tmp_path)) == ['a.html has no title', 'a.html has no description']

def test_check_reads_styles(tool, tmp_path):
    (tmp_path/'a.html').write_text(GOOD)
    (tmp_path/'a.css').write_text('@import url(https://example.org/font.css);')
    assert list(tool('check_docs').check(tmp_path)) == ['a.css loads from elsewhere: https://example.org/font.css']

# --- in a browser ---

in_browser = pytest.mark.skipif(
    not CHROMIUM, reason="no Chromium here: install Debian's package chromium, or name one in $CHROMIUM")

@pytest.fixture(scope='module')
def tab():
    with browser() as tab: yield tab

@pytest.fixture(scope='module')
def addresses(site):
    "Where the site is, from the disk and served."
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {'disk': site.as_uri(), 'served': f'http://127.0.0.1:{server.server_port}'}
    server.shutdown()

LIGHT = 'getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).slice(0, 3).every((c) => c > 127)'
PICTURES_ARE_THERE = '[...document.images].every((i) => i.complete && i.naturalWidth > 0)'

CUT = """[...document.querySelectorAll('main .sd-table')].filter((t) => t.scrollWidth > t.clientWidth + 1)
    .map((t) => t.innerText.slice(0, 60))"""

@in_browser
@pytest.mark.parametrize('how', ['disk', 'served'])
@pytest.mark.parametrize('page', PAGES)
def test_page_opens_without_a_fault(tab, addresses, page, how):
    for scheme in ('light', 'dark'):
        for width, height in ((1400, 900), (390, 844)):
            where = f'{page}, {scheme}, {width} pixels'
            assert tab.open(f'{addresses[how]}/{PAGES[page]}', width, height, scheme) == [], where
            wide = tab.evaluate('document.documentElement.scrollWidth')
            assert wide <= width, f'{where}: wider than the window'
            assert tab.evaluate(LIGHT) == (scheme == 'light'), where
            assert tab.evaluate(PICTURES_ARE_THERE), f'{where}: a picture is missing'
            assert width < 600 or tab.evaluate(CUT) == [], f'{where}: a table is cut'

SEARCH = """(async () => {
  const input = document.querySelector('.smalldocs-search input');
  input.value = %r;
  input.dispatchEvent(new Event('input'));
  const found = () => [...document.querySelectorAll('.search-result')];
  for (let i = 0; i < 100 && !found().length; i++) await new Promise((done) => setTimeout(done, 50));
  return found().map((a) => a.href);
})()"""

@in_browser
@pytest.mark.parametrize('how', ['disk', 'served'])
@pytest.mark.parametrize('query, page', [
    ('sample ratio', '/method/tokens.html'),
    ('keep_count', '/method/tokens.html#keep_count'),
])
def test_search(tab, addresses, how, query, page):
    assert tab.open(f'{addresses[how]}/tutorials/own_data.html', 1280, 900, 'light') == []
    assert any(page in found for found in tab.evaluate(SEARCH % query)) and tab.problems == []

@in_browser
@pytest.mark.parametrize('query, pages', [
    ('install', ['quickstart']), ('fine-tune', ['own_pictures']), ('own data', ['own_data', 'own_pictures']),
    ('weights', ['models']), ('cluster', ['clusters']), ('GPU hours', ['status']),
])
def test_search_finds_the_right_page_first(tab, addresses, query, pages):
    tab.open(f'{addresses["disk"]}/method/stem.html', 1400, 900, 'light')
    assert tab.evaluate(SEARCH % query)[0].rpartition('/')[2].partition('.')[0] in pages

PLACE = """(() => { const main = document.querySelector('main').getBoundingClientRect(),
    active = document.querySelector('#quarto-sidebar .active').getBoundingClientRect();
    return [main.left, active.top, active.bottom] })()"""

@in_browser
def test_pages_keep_their_place_and_show_where_they_are(tab, addresses):
    left = set()
    for page in ('index', 'results/index', 'guide/changes', 'results/demo', 'study/verify', 'figures/what_it_sees'):
        tab.open(f'{addresses["disk"]}/{page}.html', 1400, 900, 'light')
        at, top, bottom = tab.evaluate(PLACE)
        left.add(at)
        assert 0 < top and bottom <= 900, page
    assert len(left) == 1

@in_browser
@pytest.mark.parametrize('page', ['quick', 'demo', 'labels'])
def test_study_pages_are_not_endless(tab, addresses, page):
    tab.open(f'{addresses["disk"]}/results/{page}.html', 1400, 900, 'light')
    assert tab.evaluate('document.documentElement.scrollHeight') <= 6000
