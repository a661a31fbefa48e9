"""Run a profile's graph and show what came out: `python tools/reproduce.py quick --cores all [more options of snakemake]`."""
import fcntl, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUIET = ['--quiet', 'host', 'rules', 'reason']

def show(folder):
    "Print the main table, and where the rest is."
    table = folder/'table_ratio.md'
    if table.exists(): print('\n' + table.read_text())
    print(f'Tables and figures: {folder}\n  ' + '\n  '.join(sorted(p.name for p in folder.glob('*'))))

def main(profile, *options):
    lock = ROOT/'.snakemake'/'reproduce.lock'
    lock.parent.mkdir(exist_ok=True)
    with lock.open('w') as alone:
        try: fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError: sys.exit('make reproduce is already running in this folder: wait for it, or stop it first')
        # snakemake's own lock outlives a killed run; this one does not
        running = subprocess.Popen(['snakemake', '--nolock', '--config', f'profile={profile}', '--rerun-incomplete', '--keep-going', *QUIET, *options], cwd=ROOT)
        try: code = running.wait()
        except KeyboardInterrupt: # snakemake was told too: let it put its house in order
            running.wait()
            sys.exit('interrupted: call again to go on')
    if code: sys.exit(f'not all of profile {profile} was made: the lines with "error:" above say what failed; mend it and call again, what is done stays done')
    if not {'-n', '--dry-run'} & set(options): show(ROOT/'figures'/profile)

if __name__ == '__main__': main(*sys.argv[1:])
