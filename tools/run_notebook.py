"""Run a notebook through papermill:
`python tools/run_notebook.py SOURCE EXECUTED '{"parameter": value}' [GPUS SHARE ALONE]`.

The notebook's output goes to the terminal, with the run's name in front of each line. A failure is reported in one
line, and the executed notebook with its traceback is kept as EXECUTED with the suffix .failed.ipynb; EXECUTED itself
exists only if the notebook ran to its end.

If MIMDET_GPUS lists several GPUs (`make reproduce` sets it), the run sees only as many of them as GPUS says.
Each GPU has slots for SHARE runs; the run takes one slot, or all of them with ALONE=1.

If MIMDET_QUEUE_AGAIN is set (`make reproduce` sets it on a cluster), the run is a SLURM job of its own, and goes back
into the queue if its time is up before its end."""
import fcntl, json, logging, os, sys, time
from itertools import islice
from pathlib import Path
import papermill
from papermill.exceptions import PapermillExecutionError
from cluster import TIME_IS_UP, queue_again

class Prefixed:
    "A text stream that puts a name in front of each line."
    def __init__(self, name): self.name = name
    def write(self, text):
        lines = (line.strip() for line in text.splitlines())
        sys.stdout.writelines(f'[{self.name}] {line}\n' for line in lines if line)
    def flush(self): sys.stdout.flush()

def lock(gpu, place):
    "Return an open file that holds a slot on a GPU, or None if another run has it."
    file = Path('.snakemake', f'gpu{gpu}_{place}.lock').open('w')
    try: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError: return None
    return file

def with_room(pool, share, alone):
    "Yield (GPU, locks) for GPUs with room: all slots of a GPU, or one slot, the emptiest GPU first."
    whole = [[(gpu, place) for place in range(share)] for gpu in pool]
    single = [[(gpu, place)] for place in range(share) for gpu in pool]
    for places in whole if alone else single:
        locks = [lock(*place) for place in places]
        if all(locks): yield places[0][0], locks

def take_gpus(pool, wanted, share, alone):
    "Wait until `wanted` GPUs have room, make only these visible to this run, and return the locks that hold them."
    Path('.snakemake').mkdir(exist_ok=True)
    while len(held := dict(islice(with_room(pool, share, alone), wanted))) < wanted:
        del held # release them for other runs
        time.sleep(1)
    os.environ['CUDA_VISIBLE_DEVICES'] = ','.join(held)
    return held

def fail(name, why, part, failed):
    if part.exists():
        part.replace(failed)
        why += f' (partial run with traceback: {failed})'
    sys.exit(f'{name}: error: {why}')

def main(source, executed, parameters, gpus='0', share='1', alone='0'):
    parameters, executed = json.loads(parameters), Path(executed)
    name, started = executed.stem, time.time()
    part, failed = executed.with_suffix('.part.ipynb'), executed.with_suffix('.failed.ipynb')
    out = Prefixed(name)
    for quiet in ('papermill', 'traitlets'): logging.getLogger(quiet).setLevel(logging.ERROR)
    try:
        executed.parent.mkdir(parents=True, exist_ok=True)
        pool, gpus = os.environ.get('MIMDET_GPUS', '').split(','), int(gpus)
        held = None # the locks are held until this process ends
        if gpus and len(pool) > 1: held = take_gpus(pool, gpus, int(share), alone == '1')
        options = ['--log-level=50'] # suppresses a warning from each kernel that others on this machine might listen
        papermill.execute_notebook(source, part, parameters, kernel_name='python3', progress_bar=False,
                                   stdout_file=out, stderr_file=out, extra_arguments=options)
    except KeyboardInterrupt: sys.exit(f'{name}: interrupted')
    except PapermillExecutionError as e:
        if os.environ.get('MIMDET_QUEUE_AGAIN') and TIME_IS_UP in str(e.evalue): queue_again()
        fail(name, f'{e.ename}: {" ".join(str(e.evalue).split())}', part, failed)
    # for example a killed kernel or a full disk
    except Exception as e: fail(name, f'{type(e).__name__}: {" ".join(str(e).split())}', part, failed)
    part.replace(executed)
    out.write(f'done in {time.time() - started:.0f} s')

if __name__ == '__main__':
    os.environ['PYTHONWARNINGS'] = 'ignore'
    main(*sys.argv[1:])
