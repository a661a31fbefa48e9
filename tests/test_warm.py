"""Warm processes, seen from outside, are ordinary ones. Only `make test` has them."""
import os, signal, subprocess
import psutil, pytest
from conftest import WARM, run_command

pytestmark = pytest.mark.skipif(not WARM, reason='there are none: make test starts them')

@pytest.fixture
def script(tmp_path):
    "Writes a Python script; returns its path."
    def write(*lines):
        (tmp_path/'script.py').write_text('\n'.join(lines))
        return tmp_path/'script.py'
    return write

def test_it_is_warm_and_knows_nothing_of_the_project(script):
    code = script('import sys', 'print([name for name in ("torch", "mimdet", "detectron2") if name in sys.modules])')
    assert run_command('python', code).stdout == "['torch']\n"
    assert run_command('python', code, warm=False).stdout == '[]\n'

def test_arguments_folder_environment_and_streams(script, tmp_path):
    code = script('import os, sys', 'print(sys.argv[1:], os.getcwd(), os.environ["HERE"], __name__, input())',
                  'print("oh", file=sys.stderr)')
    done = run_command('python', code, 'a b', '--c', cwd=tmp_path, env=os.environ | dict(HERE='x y'), input='told\n')
    assert (done.returncode, done.stdout, done.stderr) == (0, f"['a b', '--c'] {tmp_path} x y __main__ told\n", 'oh\n')

def test_open_files(script, tmp_path):
    (tmp_path/'a').write_text('told')
    code = script('import os, sys', 'print(os.read(int(sys.argv[1]), 9))')
    with (tmp_path/'a').open() as file: done = run_command('python', code, file.fileno(), pass_fds=[file.fileno()])
    assert done.stdout == "b'told'\n"

def test_what_it_starts_is_warm(script):
    code = script('import multiprocessing, subprocess, sys',
                  'def work(): print("torch" in sys.modules, flush=True)',
                  'if __name__ == "__main__":',
                  '    process = multiprocessing.get_context("spawn").Process(target=work)',
                  '    process.start()',
                  '    process.join()',
                  '    code = "import sys; print(sys.argv[1:], \'torch\' in sys.modules)"',
                  '    subprocess.run([sys.executable, "-c", code, "x"])')
    done = run_command('python', code)
    assert (done.stdout, done.stderr) == ("True\n['x'] True\n", '')

@pytest.mark.parametrize('line, code, stderr', [
    ('raise SystemExit', 0, ''),
    ('raise SystemExit(3)', 3, ''),
    ('raise SystemExit("no")', 1, 'no\n'),
    ('import os; os._exit(4)', 4, ''),
    ('import os, signal; os.kill(os.getpid(), signal.SIGKILL)', -signal.SIGKILL, ''),
    ('import os, signal; os.kill(os.getpid(), signal.SIGTERM)', -signal.SIGTERM, ''),
])
def test_its_end(script, line, code, stderr):
    done = run_command('python', script(line))
    assert (done.returncode, done.stderr) == (code, stderr)

def test_a_mistake(script):
    "Threads end and functions registered to run at the end do run, in the usual order."
    code = script('import atexit, threading', 'atexit.register(print, "last")',
                  'threading.Timer(.2, print, ["first"]).start()', '1/0')
    done = run_command('python', code)
    assert done.returncode == 1 and 'ZeroDivisionError' in done.stderr and done.stdout.split() == ['first', 'last']

@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_it(script, number):
    code = script('import os, time',
                  'try: print(os.getpid(), flush=True); time.sleep(600)', # the signal may come before the next line
                  'except KeyboardInterrupt: raise SystemExit(5)')
    running = subprocess.Popen([f'{WARM}/python', code], stdout=subprocess.PIPE, text=True)
    process = psutil.Process(int(running.stdout.readline()))
    running.send_signal(number)
    assert running.wait(60) == (5 if number == signal.SIGINT else -number)
    process.wait(60)
