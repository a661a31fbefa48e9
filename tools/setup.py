"""Make or repair the environment: `python3 tools/setup.py .venv`, or the folder of an active conda environment.
`make setup` calls this."""
import sys
if sys.version_info < (3, 11):
    sys.exit('mimdet needs Python 3.11 or newer, but this is %d.%d: '
             'choose a newer one, as in  make PYTHON=python3.12 setup' % sys.version_info[:2])

import fcntl, importlib.util, re, shutil, subprocess, time, venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT/'requirements.lock'
GB_NEEDED = 8 # for the environment and temporary downloads

def run(*args):
    "Run a command in the project's folder; exit if it fails."
    args = [str(a) for a in args]
    code = subprocess.run(args, cwd=ROOT).returncode
    if code: sys.exit(f'set-up: exit code {code} from  {" ".join(args)}')

def make_venv(env):
    "Create an empty virtual environment, replacing whatever is in `env`."
    if importlib.util.find_spec('ensurepip') is None:
        sys.exit(f'{sys.executable} cannot make virtual environments: install its venv module first '
                 '(Debian, Ubuntu: apt-get install python3-venv)')
    free = shutil.disk_usage(env.parent).free / 1e9
    if free < GB_NEEDED:
        sys.exit(f'set-up: {env.parent} has {free:.1f} GB of free disk space: free at least {GB_NEEDED} GB')
    venv.EnvBuilder(clear=True, symlinks=True).create(env)

def uv_requirement():
    "Return the lock file's entry for uv, so that pip installs uv itself by hash."
    return re.search(r'^uv==.*\n(?: +--hash=.*\n)+', LOCK.read_text(), re.M)[0]

def main(env):
    "Make or update the environment; after an interrupted set-up, rebuild it."
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
