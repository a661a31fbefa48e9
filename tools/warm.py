"""Warm processes for the tests, which save the time to import PyTorch and other slow packages.

Each is forked from one process that has imported them. Inside `started`, Jupyter's kernels are warm, and so are the
commands in a folder of stand-ins. From outside they look like ordinary processes: same folder, environment, open files
and exit code, and they can be interrupted and killed. Each imports `mimdet` itself, and detectron2, which it adapts."""
import json, os, select, shlex, signal, socket, struct, subprocess, sys, tempfile, tomllib
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
IMPORTED = [
    'torch', 'torchvision.ops', 'torch.distributed.launcher.api', 'torch.utils.tensorboard', 'timm', 'fvcore.nn',
    'omegaconf', 'einops', 'cv2', 'pycocotools.mask', 'pandas', 'matplotlib.pyplot', 'psutil', 'fastcore.all',
    'IPython', 'ipykernel.kernelapp', 'papermill', 'snakemake.cli',
]
NUMBER = struct.Struct('i')

# --- the process that runs the tests ---

@contextmanager
def started(folder):
    "Make commands and kernels warm inside the block, if the system supports it. Stand-ins are written to `folder`."
    if not hasattr(os, 'pidfd_open'):
        yield
        return
    # a socket's path must be short
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as listener:
        address = f'{short}/socket'
        listener.bind(address)
        listener.listen()
        write_stand_ins(folder, [sys.executable, '-I', '-S', __file__, 'run', address])
        os.environ['MIMDET_WARM'] = str(folder/'bin')
        for variable, path in (('PATH', folder/'bin'), ('JUPYTER_PATH', folder/'jupyter')):
            os.environ[variable] = os.pathsep.join(filter(None, [str(path), os.environ.get(variable)]))
        command = [sys.executable, __file__, 'serve', str(listener.fileno())]
        environment = os.environ | dict(JPY_PARENT_PID='1') # the stand-in watches the parent, so kernels need not
        with subprocess.Popen(command, pass_fds=[listener.fileno()], stdin=subprocess.PIPE, env=environment): yield

def write_stand_ins(folder, stand_in):
    "Write scripts that run the commands and Python through `stand_in`, and a kernel specification that uses it."
    bin, kernel = folder/'bin', folder/'jupyter'/'kernels'/'python3'
    for path in (bin, kernel): path.mkdir(parents=True, exist_ok=True)
    spec = dict(
        argv=[*stand_in, '-m', 'ipykernel_launcher', '-f', '{connection_file}'], display_name='Python 3 (ipykernel)',
        language='python', env=dict(MPLBACKEND='module://matplotlib_inline.backend_inline'))
    (kernel/'kernel.json').write_text(json.dumps(spec))
    warm, cold = shlex.join(stand_in), shlex.quote(sys.executable)
    ours = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']['scripts']
    commands = [*ours, 'papermill', 'snakemake', 'torchrun']
    lines = {name: [f'exec {warm} {shlex.quote(str(BIN/name))} "$@"'] for name in commands}
    lines['python'] = ['[ "$1" = -B ] && shift', f'case "$1" in -c|*.py) exec {warm} "$@";; *) exec {cold} "$@";; esac']
    for name in lines:
        (bin/name).write_text('\n'.join(['#!/bin/sh', *lines[name], '']))
        (bin/name).chmod(0o755)

# --- a stand-in for a warm process ---

def run(address, *argv):
    "Have a warm process run `argv`, pass signals on to it, and exit with its exit code or signal."
    parent = os.getppid()
    files = [int(name) for name in os.listdir('/dev/fd') if os.path.exists(f'/dev/fd/{name}')]
    passed_on = signal.SIGINT, signal.SIGTERM
    signal.pthread_sigmask(signal.SIG_BLOCK, passed_on) # until there is a process to pass them on to
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [b'.'], files)
        request = dict(argv=argv, folder=os.getcwd(), environment=dict(os.environ), files=files)
        server.sendall(json.dumps(request).encode() + b'\n')
        def answer(): return NUMBER.unpack(server.recv(NUMBER.size) or NUMBER.pack(1))[0]
        process = answer()
        def pass_on(number, frame): os.kill(process, number)
        for number in passed_on: signal.signal(number, pass_on)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
        while not select.select([server], [], [], 1)[0]:
            if os.getppid() != parent: return 1 # a kernel must end with the process that started it
        code = answer()
    if code < 0:
        with suppress(OSError): signal.signal(-code, signal.SIG_DFL) # SIGKILL needs none
        os.kill(os.getpid(), -code)
    return code

# --- the process that they are forked from ---

def serve(listener):
    "Import, then wait until standard input ends. Returns only in forked processes, with their task."
    import gc, importlib, warnings
    warnings.filterwarnings('ignore', '`torch.jit.script` is deprecated') # an import uses it
    for name in IMPORTED: importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, reap)
    with socket.socket(fileno=int(listener)) as listener:
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            with connection:
                if not os.fork(): return attend(connection)
    os._exit(0)

def reap(*signal):
    "Reap attendants that have ended, so that their CPU time counts as time of the tests."
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]: pass

def attend(connection):
    "Fork the requested process and return in it. The attendant reports its end, or kills it if nobody listens."
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    _, files, *_ = socket.recv_fds(connection, 1, 99)
    request = json.loads(connection.makefile().readline())
    process = os.fork()
    if not process: return request, files
    for file in files: os.close(file)
    connection.sendall(NUMBER.pack(process))
    if connection in select.select([connection, os.pidfd_open(process)], [], [])[0]: os.killpg(0, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    with suppress(OSError): connection.sendall(NUMBER.pack(os.waitstatus_to_exitcode(status)))
    os._exit(0)

def become(request, files):
    "Take over the folder, environment and open files of the stand-in, and run its command."
    import fcntl, multiprocessing, warnings
    import matplotlib, torch
    aside = [fcntl.fcntl(file, fcntl.F_DUPFD, 1000) for file in files] # above all file numbers that will be used
    for file in files: os.close(file)
    for file, number in zip(aside, request['files']):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request['folder'])
    sys.executable = f'{os.environ["MIMDET_WARM"]}/python' # processes that it starts are warm too
    multiprocessing.set_executable(sys.executable)
    os.environ.clear()
    os.environ.update(request['environment'])
    signal.signal(signal.SIGINT, signal.default_int_handler) # background jobs start with SIGINT ignored
    # variables that Python or an earlier import has read already
    if threads := os.environ.get('OMP_NUM_THREADS'): torch.set_num_threads(int(threads))
    if action := os.environ.get('PYTHONWARNINGS'): warnings.simplefilter(action)
    if backend := os.environ.get('MPLBACKEND'): matplotlib.rcParams['backend'] = backend
    try: code = execute(request['argv'])
    except SystemExit as e: code = e.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    leave(code)

def execute(argv):
    "Do what `python` does with these arguments: -c and code, -m and a module, or a script."
    import runpy
    how, sys.argv = argv[0], argv[argv[0] == '-m':]
    sys.path[0] = '' if how in ('-c', '-m') else str(Path(how).parent)
    if how == '-c': exec(sys.argv.pop(1), dict(__name__='__main__'))
    elif how == '-m': runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
    else: runpy.run_path(how, run_name='__main__')

def leave(code):
    "Exit as Python does, but without freeing the imports, which would take longer than importing them."
    import atexit, threading
    if isinstance(code, str): print(code, file=sys.stderr)
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed: stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))

if __name__ == '__main__':
    role, *rest = sys.argv[1:]
    if role == 'run': sys.exit(run(*rest))
    become(*serve(*rest))
