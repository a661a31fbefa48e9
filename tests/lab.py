"""The tutorials in a real JupyterLab and Chromium, as a reader uses them.
`make test-lab` runs this; it is not a part of `make test`."""
import json, os, subprocess, tempfile, time
from contextlib import contextmanager
import pytest
from browser import CHROMIUM, ROOT, browser, jupyterlab
from conftest import copy_project

PHOTOGRAPHS = sorted((ROOT.parent/'shared'/'coco_sample').rglob('*.jpg'))
pytestmark = pytest.mark.skipif(not CHROMIUM, reason='no Chromium is installed')

@pytest.fixture(scope='module')
def lab():
    "The address of a server as `make lab` starts it."
    with jupyterlab(ROOT, '--expose-app-in-browser') as address: yield f'{address}/lab/tree'

def until(tab, expression, seconds):
    "Wait until JavaScript gives something true; returns it, and fails after so many seconds."
    began = time.time()
    while time.time() - began < seconds:
        if found := tab.evaluate(expression): return found
        time.sleep(.2)
    tab.screenshot(f'{tempfile.gettempdir()}/lab_failed.png')
    pytest.fail(f'not within {seconds} s: {expression}')

APP = 'window.jupyterapp.shell.currentWidget'
IDLE = f"({APP}?.sessionContext?.session?.kernel?.status == 'idle')"

@contextmanager
def notebook(lab, path):
    "A tab with a notebook whose kernel is ready."
    with browser() as tab:
        tab.open(f'{lab}/nbs/{path}?token=test&reset', 1600, 1300, 'light')
        until(tab, f'window.jupyterapp && {APP}?.content?.widgets?.length > 1 && {IDLE}', 60)
        yield tab

def execute(tab, name): tab.evaluate(f"window.jupyterapp.commands.execute('{name}').then(() => 0, () => 0), 0")

def texts(tab): return tab.evaluate(f"""{APP}.content.widgets.map(cell => cell.model.type == 'code' ?
    JSON.stringify(cell.model.outputs.toJSON()) : '')""")

def cell(code): return f'{APP}.content.widgets.find(cell => cell.model.sharedModel.source.includes({json.dumps(code)}))'

def outputs(code): return f'JSON.stringify({cell(code)}.model.outputs.toJSON())'

def broken(tab): return tab.evaluate("""[...document.images].filter(i => i.complete && !i.naturalWidth && i.src)
    .map(i => i.src.slice(0, 80))""")

def mouse(tab, kind, x, y): tab.call('Input.dispatchMouseEvent', type=kind, x=x, y=y, button='left', buttons=1,
                                     clickCount=1)

def click(tab, x, y):
    for kind in ('mousePressed', 'mouseReleased'): mouse(tab, kind, x, y)

CANVAS = "document.querySelector('.jupyter-matplotlib canvas')"

def picture(tab): return tab.evaluate(f'{CANVAS}.toDataURL()')

def changed(tab, act, seconds=10):
    "How long it takes until the picture is another after an action, and then stays."
    before, began = picture(tab), time.time()
    act()
    while (now := picture(tab)) == before:
        if time.time() - began > seconds: pytest.fail('the picture does not change')
        time.sleep(.1)
    took = time.time() - began
    while (later := picture(tab)) != now: now = later
    return took

def upload(tab, path):
    "Press the widget's button, and choose a file."
    tab.call('Page.setInterceptFileChooserDialog', enabled=True)
    click(tab, *tab.evaluate('''(() => { const b = document.querySelector('.jupyter-widget-upload, .widget-upload');
        const r = b.getBoundingClientRect(); return [r.x + r.width/2, r.y + r.height/2] })()'''))
    while (event := json.loads(tab.socket.recv())).get('method') != 'Page.fileChooserOpened': tab.note(event)
    tab.call('DOM.setFileInputFiles', backendNodeId=event['params']['backendNodeId'], files=[str(path)])

def test_opening_a_notebook_leaves_it_clean(lab):
    with notebook(lab, 'tutorials/explore.ipynb') as tab:
        time.sleep(3)
        assert not tab.evaluate(f'{APP}.context.model.dirty')

@pytest.mark.parametrize('path', ['index.ipynb', 'method/index.ipynb', 'tutorials/own_data.ipynb'])
def test_pictures_of_a_page_are_there(lab, path):
    with notebook(lab, path) as tab:
        time.sleep(1)
        assert broken(tab) == []

def test_explore(lab, tmp_path):
    "A slider, three tokens, and a picture of one's own."
    with notebook(lab, 'tutorials/explore.ipynb') as tab:
        began = time.time()
        execute(tab, 'notebook:run-all-cells')
        until(tab, f'{CANVAS}?.width > 300', 90)
        until(tab, IDLE, 90)
        print(f'explore: all cells in {time.time() - began:.0f} s')
        assert 'image/png' in tab.evaluate(outputs('ap_over_ratio(')) # the curve
        tab.evaluate(f'{CANVAS}.scrollIntoView(), 0')
        x, y, width, height = tab.evaluate(f'(() => {{ const r = {CANVAS}.getBoundingClientRect(); '
                                           'return [r.x, r.y, r.width, r.height] })()')
        for k in range(3):
            took = changed(tab, lambda: click(tab, x + width*(.05 + .04*k), y + height*.2))
            print(f'a token: {took:.1f} s')
        slide = "document.querySelector('.widget-slider .noUi-handle')"
        tab.evaluate(f'{slide}.focus(), 0')
        def press(): [tab.call('Input.dispatchKeyEvent', type=kind, key='ArrowRight', code='ArrowRight',
                               windowsVirtualKeyCode=39) for kind in ('keyDown', 'keyUp')]
        print(f'the ratio: {changed(tab, press):.1f} s')
        own = PHOTOGRAPHS[0] if PHOTOGRAPHS else next((ROOT/'figures'/'quick').glob('*.png'))
        print(f"a picture of one's own: {changed(tab, lambda: upload(tab, own)):.1f} s")
        tab.evaluate("[...document.querySelectorAll('.jupyter-button')].find(b => b.textContent == 'paste').click(), 0")
        until(tab, f"{APP}.node.innerText.includes('there is no picture in the clipboard')", 10)
        tab.screenshot(os.environ.get('SCREENSHOT', tmp_path/'explore.png'))
        assert broken(tab) == []

@pytest.mark.parametrize('path, long', [
    ('from_scratch', 'mimdet.pretrain('), ('own_data', 'trained = mimdet.train('), ('own_data', 'mimdet.evaluate(run'),
    ('new_backbone', 'run_training(cfg'), ('evaluate_published', 'evaluate_at(seed=0)')])
def test_a_cell_that_was_interrupted_runs_again(lab, path, long):
    with notebook(lab, f'tutorials/{path}.ipynb') as tab:
        execute(tab, 'notebook:run-all-cells')
        before = f'{APP}.content.widgets.slice(0, {APP}.content.widgets.indexOf({cell(long)}))'
        until(tab, f'{before}.every(cell => cell.model.type != "code" || cell.model.executionCount)', 120)
        time.sleep(1)
        execute(tab, 'kernelmenu:interrupt')
        until(tab, f'{outputs(long)}.includes("KeyboardInterrupt")', 60)
        time.sleep(3) # for a moment after an error a kernel lets nothing run
        tab.evaluate(f'{APP}.content.activeCellIndex = {APP}.content.widgets.indexOf({cell(long)}), 0')
        execute(tab, 'notebook:run-all-below')
        last = f'{APP}.content.widgets.findLast(cell => cell.model.type == "code")'
        error = 'cell => cell.model.type == "code" && JSON.stringify(cell.model.outputs.toJSON()).includes("ename")'
        time.sleep(2)
        until(tab, f'{last}.model.executionCount || {APP}.content.widgets.some({error})', 300)
        assert 'ename' not in ''.join(texts(tab))

def test_what_is_exported_reaches_an_open_kernel(tmp_path):
    "In a copy of the project: a function is called, its notebook changed and exported, and the function called again."
    copy_project(tmp_path)
    with jupyterlab(tmp_path, '--expose-app-in-browser') as address:
        with notebook(f'{address}/lab/tree', 'method/01_tokens.ipynb') as tab:
            call = f'import sys; sys.path.insert(0, {str(tmp_path)!r})\n' \
                   'from mimdet import tokens; print(tokens.__file__, tokens.STRIDE)'
            def asked(): return tab.evaluate(f"""new Promise(answer => {{
                const asked = {APP}.sessionContext.session.kernel.requestExecute({{code: {json.dumps(call)}}})
                asked.onIOPub = message => message.header.msg_type == 'stream' && answer(message.content.text) }})""")
            assert asked() == f'{tmp_path}/mimdet/tokens.py 16\n'
            source = tmp_path/'nbs/method/01_tokens.ipynb'
            source.write_text(source.read_text().replace('STRIDE = 16', 'STRIDE = 17'))
            subprocess.run(['nbdev_export'], cwd=tmp_path, check=True)
            assert asked() == f'{tmp_path}/mimdet/tokens.py 17\n'
