"""Run a notebook through papermill:
`python tools/run_notebook.py SOURCE EXECUTED '{"parameter": value}' [GPUS SHARE ALONE]`.

What the notebook prints goes to the terminal, each line with the run's name in front. A failure is told in one line,
and the executed notebook with its traceback is kept as EXECUTED with the ending .failed.ipynb; EXECUTED itself exists
only when the notebook ran to its end.

With a list of GPUs in MIMDET_GPUS, which `make reproduce` sets on a machine that has several, it sees GPUS of them:
each has places for SHARE runs, of which it takes one, or with ALONE=1 all."""
import fcntl, json, logging, os, sys, time
from itertools import islice
from pathlib import Path
import papermill
from papermill.exceptions import PapermillExecutionError

class Prefixed:
    "A text stream that puts a name in front of each line."
    def __init__(self, name): self.name = name
    def write(self, text):
        lines = (line.strip() for line in text.splitlines())
        sys.stdout.writelines(f'[{self.name}] {line}\n' for line in lines if line)
    def flush(self): sys.stdout.flush()

def lock(gpu, place):
    "An open file that holds a place on a GPU; None if another run has it."
    file = Path('.snakemake', f'gpu{gpu}_{place}.lock').open('w')
    try: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError: return None
    return file

def with_room(pool, share, alone):
    "(GPU, locks) of GPUs that have room: all places of one, or one place, the emptiest GPU first."
    whole = [[(gpu, place) for place in range(share)] for gpu in pool]
    single = [[(gpu, place)] for place in range(share) for gpu in pool]
    for places in whole if alone else single:
        locks = [lock(*place) for place in places]
        if all(locks): yield places[0][0], locks

def take_gpus(pool, wanted, share, alone):
    "Let this run see `wanted` GPUs that have room, as soon as there are so many; returns what holds them."
    Path('.snakemake').mkdir(exist_ok=True)
    while len(held := dict(islice(with_room(pool, share, alone), wanted))) < wanted:
        del held # lets the others have them
        time.sleep(1)
    os.environ['CUDA_VISIBLE_DEVICES'] = ','.join(held)
    return held

def fail(name, why, part, failed):
    if part.exists(): part.replace(failed)
    sys.exit(f'{name}: error: {why} (as far as it came: {failed})')

def main(source, executed, parameters, gpus='0', share='1', alone='0'):
    parameters, executed = json.loads(parameters), Path(executed)
    name, started = executed.stem, time.time()
    executed.parent.mkdir(parents=True, exist_ok=True)
    part, failed = executed.with_suffix('.part.ipynb'), executed.with_suffix('.failed.ipynb')
    out = Prefixed(name)
    for quiet in ('papermill', 'traitlets'): logging.getLogger(quiet).setLevel(logging.ERROR)
    try:
        pool, gpus = os.environ.get('MIMDET_GPUS', '').split(','), int(gpus)
        held = None # what it takes stays taken until this process ends
        if gpus and len(pool) > 1: held = take_gpus(pool, gpus, int(share), alone == '1')
        options = ['--log-level=50'] # or each kernel warns that others on this machine might listen
        papermill.execute_notebook(source, part, parameters, kernel_name='python3', progress_bar=False,
                                   stdout_file=out, stderr_file=out, extra_arguments=options)
    except KeyboardInterrupt: sys.exit(f'{name}: interrupted')
    except PapermillExecutionError as e: fail(name, f'{e.ename}: {" ".join(str(e.evalue).split())}', part, failed)
    # A kernel that was killed, a full disk.
    except Exception as e: fail(name, f'{type(e).__name__}: {" ".join(str(e).split())}', part, failed)
    part.replace(executed)
    out.write(f'done in {time.time() - started:.0f} s')

if __name__ == '__main__':
    os.environ['PYTHONWARNINGS'] = 'ignore'
    main(*sys.argv[1:])
