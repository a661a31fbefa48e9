"""Make or mend the environment: `python3 tools/setup.py .venv`, or the folder of an active conda environment.
`make setup` calls this."""
import sys
if sys.version_info < (3, 11):
    sys.exit('mimdet needs Python 3.11 or newer, and this is %d.%d: '
             'name a newer one, as in  make PYTHON=python3.12 setup' % sys.version_info[:2])

import fcntl, importlib.util, re, shutil, subprocess, time, venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT/'requirements.lock'
GB_NEEDED = 8 # environment and the downloads on their way into it

def run(*args):
    "Run a command in the project's folder; when it fails, the set-up ends."
    args = [str(a) for a in args]
    code = subprocess.run(args, cwd=ROOT).returncode
    if code: sys.exit(f'set-up: exit code {code} from  {" ".join(args)}')

def make_venv(env):
    "An empty virtual environment in place of whatever `env` holds."
    if importlib.util.find_spec('ensurepip') is None:
        sys.exit(f'{sys.executable} cannot make virtual environments: install its venv module first '
                 '(Debian, Ubuntu: apt-get install python3-venv)')
    free = shutil.disk_usage(env.parent).free / 1e9
    if free < GB_NEEDED:
        sys.exit(f'set-up: {env.parent} has {free:.1f} GB of free disk space, and {GB_NEEDED} GB are needed')
    venv.EnvBuilder(clear=True, symlinks=True).create(env)

def uv_requirement():
    "The lock file's entry for uv: with it pip fetches uv itself by hash."
    return re.search(r'^uv==.*\n(?: +--hash=.*\n)+', LOCK.read_text(), re.M)[0]

def main(env):
    "What is there and right stays; what an interrupted set-up has left is made anew."
    started = time.time()
    unfinished, python = env/'.unfinished', env/'bin'/'python'
    conda, interrupted = (env/'conda-meta').is_dir(), unfinished.exists()
    print(f'set-up: {env.name} from requirements.lock', flush=True)
    if not conda and (interrupted or not python.exists()): make_venv(env)
    unfinished.touch()
    if not conda: run(python, '-m', 'ensurepip', '--default-pip')
    (env/'.uv.txt').write_text(uv_requirement())
    by_hash = '--require-hashes', '-r'
    run(python, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', *by_hash, env/'.uv.txt')
    uv = python, '-m', 'uv', 'pip', 'install', '--python', python
    run(*uv, '--compile-bytecode', *by_hash, LOCK, *(['--reinstall'] if conda and interrupted else []))
    run(*uv, '--no-deps', '--no-build-isolation', '-e', '.')
    (env/'.stamp').touch()
    unfinished.unlink()
    print(f'set-up: done in {time.time() - started:.0f} s', flush=True)

if __name__ == '__main__':
    with LOCK.open() as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        main(Path(sys.argv[1]).absolute())
