"""A headless Chromium, driven over its DevTools protocol, and a JupyterLab for it."""
import base64, json, os, shutil, socket, subprocess, tempfile, time, urllib.request
from contextlib import contextmanager
from pathlib import Path
from websocket import create_connection

ROOT = Path(__file__).resolve().parent.parent
NAMES = 'chromium', 'chromium-browser', 'google-chrome', 'chrome'
CHROMIUM = next(filter(None, [os.environ.get('CHROMIUM'), *map(shutil.which, NAMES)]), None)
OPTIONS = '--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--remote-allow-origins=*'

def elsewhere(url):
    "Whether a request leaves this machine."
    return url.split(':')[0] not in ('file', 'data', 'blob') and not url.startswith('http://127.0.0.1')

class Tab:
    "One page, with what went wrong on it."
    def __init__(self, socket): self.socket, self.number, self.problems, self.loaded = socket, 0, [], False

    def note(self, event):
        "Remember what an event tells of a problem."
        method, p = event.get('method', ''), event.get('params', {})
        self.loaded |= method == 'Page.loadEventFired'
        if method == 'Network.loadingFailed': self.problems.append(f'request failed: {p.get("errorText")}')
        if method == 'Network.requestWillBeSent' and elsewhere(p['request']['url']):
            self.problems.append(f'request to elsewhere: {p["request"]["url"]}')
        if method == 'Network.responseReceived' and p['response']['status'] >= 400:
            self.problems.append(f'{p["response"]["status"]}: {p["response"]["url"]}')
        if method == 'Runtime.exceptionThrown':
            self.problems.append(f'script error: {p["exceptionDetails"].get("exception", {}).get("description")}')
        called = method == 'Runtime.consoleAPICalled' and p['type'] == 'error'
        logged = method == 'Log.entryAdded' and p['entry']['level'] == 'error'
        if called or logged: self.problems.append(f'console: {p}')

    def call(self, method, **params):
        "A command's result; events on the way are noted."
        self.number += 1
        self.socket.send(json.dumps(dict(id=self.number, method=method, params=params)))
        while (answer := json.loads(self.socket.recv())).get('id') != self.number: self.note(answer)
        if 'error' in answer: raise RuntimeError(f'{method}: {answer["error"]}')
        return answer['result']

    def open(self, url, width, height, scheme):
        "Load a page at a size, in light or dark; returns its problems."
        self.problems, self.loaded = [], False
        mobile = width < 600
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.call('Emulation.setEmulatedMedia', features=[dict(name='prefers-color-scheme', value=scheme)])
        moved = 'loaderId' not in self.call('Page.navigate', url=url) # within the page: nothing is loaded
        while not (moved or self.loaded): self.note(json.loads(self.socket.recv()))
        time.sleep(0.2)
        self.call('Runtime.evaluate', expression='0') # what has happened since is noted
        return self.problems

    def evaluate(self, expression):
        answer = self.call('Runtime.evaluate', expression=expression, awaitPromise=True, returnByValue=True)
        return answer['result'].get('value')

    def screenshot(self, path): Path(path).write_bytes(base64.b64decode(self.call('Page.captureScreenshot')['data']))

@contextmanager
def browser():
    "A tab of a Chromium with a profile of its own."
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *OPTIONS, '--remote-debugging-port=0', f'--user-data-dir={profile}', 'about:blank']
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = Path(profile)/'DevToolsActivePort'
            for _ in range(600):
                if port.exists() and len(port.read_text().splitlines()) == 2: break
                time.sleep(0.1)
            number, path = port.read_text().split()
            main = Tab(create_connection(f'ws://127.0.0.1:{number}{path}', timeout=60))
            target = main.call('Target.createTarget', url='about:blank')['targetId']
            tab = Tab(create_connection(f'ws://127.0.0.1:{number}/devtools/page/{target}', timeout=60))
            for domain in ('Page', 'Network', 'Runtime', 'Log'): tab.call(f'{domain}.enable')
            yield tab
        finally:
            process.terminate()
            process.wait()

def free_ports(count):
    "Ports that nothing listens on."
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets: each.bind(('127.0.0.1', 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets: each.close()

@contextmanager
def jupyterlab(folder, *options):
    "The address of a server that stands in a folder, as `make lab` starts it; its token is 'test'."
    told = subprocess.run(['make', '--no-print-directory', '-n', 'lab'], cwd=ROOT, capture_output=True, text=True)
    command = told.stdout.replace('\\\n', ' ').splitlines()[-1]
    port, = free_ports(1)
    options = ' '.join(['--no-browser', '--allow-root', f'--port={port}', '--IdentityProvider.token=test', *options])
    server = subprocess.Popen(f'exec env {command} {options}', shell=True, cwd=folder,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try: urllib.request.urlopen(f'http://127.0.0.1:{port}/api?token=test', timeout=5)
            except OSError: time.sleep(.2)
            else: break
        else: raise RuntimeError('the server does not answer')
        yield f'http://127.0.0.1:{port}'
    finally:
        server.terminate()
        server.wait()
