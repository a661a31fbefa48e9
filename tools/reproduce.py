"""Run a profile's jobs and show the results:
`python tools/reproduce.py quick [--target table2] [--cores all] [more options of snakemake]`.

Before the runs it reports how many there are, how long they will take and which files are missing;
during the runs, what is done and what is left.
A failed run does not stop the others; it is named with its log at the end."""
import argparse, fcntl, os, re, shutil, subprocess, sys, tempfile, threading, time
from contextlib import contextmanager
from pathlib import Path
from cluster import Follower, prepared
from mimdet.base.core import MimdetError, complaining
from mimdet.study.plan import gpu_hours, gpu_limits, plan, span, to_go
from mimdet.study.jobs import asked, inputs, missing_files, read_study, recorded, targets

ROOT = Path(__file__).resolve().parent.parent
QUIET = ['--quiet', 'host', 'rules', 'reason']
DRY = {'-n', '--dry-run', '--dryrun'}
# stops the C library from returning the memory of large tensors after each operation and clearing it again
KEEP_MEMORY = {
    'MALLOC_MMAP_THRESHOLD_': str(4*2**30),
    'MALLOC_TRIM_THRESHOLD_': str(16*2**30),
    'MALLOC_TOP_PAD_': str(2**28)}
ELSEWHERE = ('--workflow-profile', '--executor', '--profile') # options that send the runs to a cluster

INCOMPLETE = 'profile {} is incomplete: fix what failed and run the same command again; finished jobs are kept'
ANEW = '--anew' # also repeat runs that have committed records

def command(profile, target, cores, *options, cluster=None):
    # snakemake's own lock outlives a killed run; ours does not
    settings = [f'profile={profile}'] + ['anew=1']*(ANEW in options) + ['cluster=1']*goes_elsewhere(options)
    if cluster: settings += [f'limit={cluster.limit}', f'gpus_per_node={cluster.gpus}']
    options = [option for option in options if option != ANEW]
    # this machine's cores say nothing of those where the runs go
    own = [] if cores == 'all' and goes_elsewhere(options) else ['--cores', str(cores)]
    return ['snakemake', '--nolock', '--config', *settings, '--rerun-incomplete', '--keep-incomplete', '--keep-going',
            *own, *options, '--', target]

def goes_elsewhere(options): return any(option.startswith(ELSEWHERE) for option in options)

def visible_gpus():
    "Return the CUDA names of the visible GPUs; an empty list without a driver."
    told = os.environ.get('CUDA_VISIBLE_DEVICES')
    if told is not None: return [name for name in told.split(',') if name]
    if not shutil.which('nvidia-smi'): return []
    lines = subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True).stdout.splitlines()
    return [str(k) for k in range(sum(line.startswith('GPU ') for line in lines))]

MPS = shutil.which('nvidia-cuda-mps-control')

def on_this_machine(study, names):
    "Return the snakemake options and environment variables that let jobs share the GPUs."
    there = visible_gpus()
    limits = gpu_limits(study, names, len(there), mps=bool(MPS))
    options = ['--resources', *(f'{name}={count}' for name, count in limits.items())] if limits else []
    return options, dict(MIMDET_GPUS=','.join(there)) if there else {}

@contextmanager
def sharing(study, on_gpus):
    """Start CUDA's multi-process service with its own folder, yield the environment for runs that share a GPU,
    and stop the service. No setting of the card is changed. Yields {} if the service is missing or not needed."""
    if not (MPS and on_gpus and study.gpu_share > 1): return (yield {})
    with tempfile.TemporaryDirectory(prefix='mps') as folder: # a short path, since sockets need one
        own = dict(CUDA_MPS_PIPE_DIRECTORY=f'{folder}/pipe', CUDA_MPS_LOG_DIRECTORY=f'{folder}/log')
        for path in own.values(): os.mkdir(path)
        begun = subprocess.run([MPS, '-d'], env=os.environ | own, capture_output=True, text=True)
        if begun.returncode:
            print(f'{MPS} does not start ({begun.stderr.strip()}): runs take turns on the GPU', flush=True)
        try: yield {} if begun.returncode else own
        finally: subprocess.run([MPS], input='quit\n', env=os.environ | own, capture_output=True, text=True)

def waiting(study, *call):
    "The jobs that snakemake would run."
    dry = command(study.profile, *call, '--dry-run', '--quiet', 'host')
    done = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True)
    if done.returncode: sys.exit(done.stderr.strip() or done.stdout.strip())
    listed = re.findall(r'^(\S+) +1$', done.stdout + done.stderr, re.M)
    return [name for name in study.jobs if name in listed]

def size(path, made):
    "Return the size of a file, or say that an earlier job makes it or that it is missing."
    path = Path(path)
    if not path.exists(): return 'made by an earlier job' if str(path) in made else 'missing'
    if path.is_dir(): return f'folder of {sum(1 for _ in path.iterdir())} files'
    return f'{path.stat().st_size/2**20:.1f} MB'

def tell(study, names):
    "Print each command with its parameters, files and cost."
    made = {file for job in study.jobs.values() for file in job.outputs}
    for job in (study.jobs[n] for n in names):
        print(f'\n{job.name}\n  python tools/run_notebook.py {job.notebook} {job.executed} ...')
        for key, value in job.parameters.items(): print(f'    {key} = {value}')
        for file in inputs(study, job): print(f'  reads   {file} ({size(file, made)})')
        for file in job.outputs: print(f'  writes  {file}')
        if job.kind == 'train':
            r = study.models[job.parameters['model']]['built']
            print(f'  takes   {r.iterations} iterations of {r.batch} images '
                  f'up to {max(r.short_edges)} x {r.max_size} pixels, '
                  f'{r.epochs:g} passes over {r.images:,} images')
        if job.gpus:
            hours = gpu_hours(study, job)
            print(f'  needs   {job.gpus} GPUs, {hours:.0f} GPU hours if they are as fast as the authors\'')

def done_since(study, names, since):
    "Those of the jobs that have ended well since a time."
    files = {n: ROOT/study.jobs[n].executed for n in names}
    return [n for n, file in files.items() if file.exists() and file.stat().st_mtime >= since]

class Progress(threading.Thread):
    "Report after each job how many are done, and how long the rest will take at the pace so far."
    def __init__(self, study, ahead):
        super().__init__(daemon=True)
        self.study, self.ahead, self.started, self.over = study, ahead, time.time(), threading.Event()

    def done(self): return done_since(self.study, self.ahead.seconds, self.started)

    def run(self):
        told = []
        while not self.over.wait(2):
            if len(done := self.done()) == len(told): continue
            told, gone = done, time.time() - self.started
            counts, left = f'{len(done)} of {len(self.ahead.seconds)} jobs done', to_go(self.ahead, done, gone)
            print(f'[{counts}, {span(gone)} elapsed, about {span(left)} to go]', flush=True)

def failures(study, left, since):
    "Where the logs of the runs that failed are, or as far as a run came that was killed."
    found = {}
    for name in left:
        for ending in ('.failed.ipynb', '.part.ipynb'):
            log = (ROOT/study.jobs[name].executed).with_suffix(ending)
            if log.exists() and log.stat().st_mtime >= since: found.setdefault(name, log)
    return found

def submit(study, target, call, left, cluster, lock):
    "Run jobs on a cluster; those whose time is up are submitted again, as long as they come further."
    started, before = time.time(), {}
    while True:
        running = subprocess.Popen(
            command(study.profile, *call, '--quiet', 'host', 'reason', cluster=cluster), cwd=ROOT, text=True,
            env=os.environ | KEEP_MEMORY | dict(MIMDET_QUEUE_AGAIN='1'), pass_fds=[lock.fileno()],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        follower = Follower(running.stderr, left, ROOT)
        follower.start()
        try: code = running.wait()
        except KeyboardInterrupt: # snakemake was told too: it cancels what it submitted
            running.wait()
            sys.exit('interrupted: run the same command again to continue')
        follower.join()
        cut = {each.name: last_written(study, each.name) for each in follower.failed if each.out_of_time}
        further = [name for name, saved in cut.items() if saved and saved != before.get(name)]
        if not further or {each.name for each in follower.failed} - {*further}: break
        print(f'time is up for {", ".join(further)}: submitted again from the last checkpoint', flush=True)
        before |= cut
    done = done_since(study, left, started)
    print(f'{len(done)} of {len(left)} jobs done in {span(time.time() - started)}')
    named = {each.name for each in follower.failed}
    for name, log in failures(study, left, started).items():
        if name not in done: print(f'as far as {name} came: {log.relative_to(ROOT)}', file=sys.stderr)
    if code and not named: print(''.join(follower.text[-12:]), file=sys.stderr)
    if code: sys.exit(INCOMPLETE.format(study.profile))
    show(study, target)

def last_written(study, name):
    "When a run last wrote a checkpoint, or its end; None if it never did."
    job = study.jobs[name]
    files = Path(ROOT, job.parameters.get('output', ''), 'checkpoint.pth'), Path(ROOT, job.executed)
    return max((file.stat().st_mtime for file in files if file.exists()), default=None)

def show(study, target):
    "Print the main tables and list the other files."
    folder = ROOT/study.figures
    names = targets(study).get(target, [target]) if target != 'all' else ['table_main', 'table_ratio']
    for table in (folder/f'{n}.md' for n in names if n.startswith('table')):
        if table.exists(): print('\n' + table.read_text().partition('\n## ')[0])
    if folder.exists():
        files = sorted(p.name for p in folder.glob('*'))
        print(f'Tables and figures: {folder}\n  ' + '\n  '.join(files))

def complain(study, absent):
    for file in absent: print(f'missing: {file}', file=sys.stderr)
    raise MimdetError(f'profile {study.profile} needs {len(absent)} missing files: add those listed above')

def main(profile, target, cores, dry, options, lock):
    study = read_study(profile, ROOT/'profiles')
    needed, elsewhere = asked(study, target), goes_elsewhere(options)
    cluster = None if dry else prepared(options, ROOT)
    if cluster: options = [*options, *cluster.options]
    absent, call = missing_files(study, needed), (target, cores, *options)
    if absent and not dry: complain(study, absent)
    left = needed if absent else waiting(study, *call)
    taken = [] if ANEW in options else sorted(recorded(study, ROOT))
    if taken:
        print(f'profile {profile}: {len(taken)} of {len(study.jobs)} jobs have committed records and are not repeated '
              f'({ANEW} runs them again)')
    if not left: return print(f'profile {profile}: nothing to be done')
    if dry: tell(study, left)
    ahead = plan(study, left, cores=os.cpu_count() if cores == 'all' else int(cores), root=ROOT,
                 elsewhere=elsewhere or any(study.jobs[n].gpus > 1 for n in left))
    print(*ahead.lines, *(cluster.lines if cluster else []), sep='\n', flush=True)
    if absent: complain(study, absent)
    if dry: return
    if cluster: return submit(study, target, call, left, cluster, lock)
    limits, environment = ([], {}) if elsewhere else on_this_machine(study, left)
    progress = Progress(study, ahead)
    with sharing(study, environment) as shared:
        environment = os.environ | KEEP_MEMORY | environment | shared
        running = subprocess.Popen(
            command(profile, *call, *limits, *QUIET), cwd=ROOT, env=environment,
            pass_fds=[lock.fileno()]) # if this process is killed, the runs still hold the lock
        progress.start()
        try: code = running.wait()
        except KeyboardInterrupt: # snakemake was interrupted too: let it clean up
            running.wait()
            sys.exit('interrupted: run the same command again to continue')
        progress.over.set()
    took = span(time.time() - progress.started)
    print(f'{len(progress.done())} of {len(left)} jobs done in {took} (estimated: {span(ahead.wall)})')
    for name, log in failures(study, left, progress.started).items():
        print(f'failed: {name}, its log: {log.relative_to(ROOT)}', file=sys.stderr)
    if code: sys.exit(INCOMPLETE.format(profile))
    show(study, target)

def opened(lock):
    "The lock's file. Raises `MimdetError` where nothing can be written."
    try:
        lock.parent.mkdir(exist_ok=True)
        return lock.open('w')
    except OSError as e:
        raise MimdetError(f'{ROOT} cannot be written ({e.strerror}): use a checkout of your own') from None

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description='Run a profile.')
    parser.add_argument('profile')
    parser.add_argument('--target', default='all',
                        help='a stage (data, pretrain, train, evaluate, cost), table1 to table4, figures, or a job')
    parser.add_argument('--cores', default='all')
    args, options = parser.parse_known_args()
    lock = ROOT/'.snakemake'/'reproduce.lock'
    with complaining('reproduce'), opened(lock) as alone:
        try: fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit('make reproduce is already running in this folder: wait for it, or stop it first')
        dry = bool(DRY & {*options})
        main(args.profile, args.target, args.cores, dry, [o for o in options if o not in DRY], alone)
