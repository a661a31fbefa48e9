"""Run a notebook through papermill: `python tools/run_notebook.py SOURCE EXECUTED '{"parameter": value}' [GPUS [SHARE]]`.

What the notebook prints goes to the terminal, each line with the run's name in front. A failure is told in one line, and the executed notebook
with its traceback is kept as EXECUTED with the ending .failed.ipynb; EXECUTED itself exists only when the notebook ran to its end.

On a machine with several GPUs it sees so many of them that nobody else has taken; a single one is shared by SHARE runs."""
import fcntl, json, logging, os, shutil, subprocess, sys, time
from itertools import islice
from pathlib import Path
import papermill
from papermill.exceptions import PapermillExecutionError

class Prefixed:
    "A text stream that puts a name in front of each line."
    def __init__(self, name): self.name = name
    def write(self, text): sys.stdout.writelines(f'[{self.name}] {line.strip()}\n' for line in text.splitlines() if line.strip())
    def flush(self): sys.stdout.flush()

def count_gpus():
    "As the driver tells; 0 without one."
    if not shutil.which('nvidia-smi'): return 0
    return sum(line.startswith('GPU ') for line in subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True).stdout.splitlines())

def lock(gpu, place):
    "An open file that holds a place on a GPU; None if another run has it."
    file = Path('.snakemake', f'gpu{gpu}_{place}.lock').open('w')
    try: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError: return None
    return file

def with_room(there, share, whole):
    "(GPU, locks) of GPUs that have room: for all places of one, or for one place, the emptiest GPU first."
    for places in [[(gpu, place) for place in range(share)] for gpu in range(there)] if whole else [[(gpu, place)] for place in range(share) for gpu in range(there)]:
        locks = [lock(*place) for place in places]
        if all(locks): yield places[0][0], locks

def take_gpus(wanted, share):
    "Let this run see `wanted` GPUs that have room, unless it has been told which (as SLURM does); returns what holds them."
    there = count_gpus()
    if wanted < 1 or there < 2 or 'CUDA_VISIBLE_DEVICES' in os.environ: return None
    if wanted > there: raise ValueError(f'{wanted} GPUs are asked for, and this machine has {there}')
    Path('.snakemake').mkdir(exist_ok=True)
    while len(held := dict(islice(with_room(there, share, wanted > 1), wanted))) < wanted:
        del held # lets the others have them
        time.sleep(1)
    os.environ['CUDA_VISIBLE_DEVICES'] = ','.join(map(str, held))
    return held

def fail(name, why, part, failed):
    if part.exists(): part.replace(failed)
    sys.exit(f'{name}: error: {why} (as far as it came: {failed})')

def main(source, executed, parameters, gpus=0, share=1):
    parameters, executed = json.loads(parameters), Path(executed)
    name, started = executed.stem, time.time()
    executed.parent.mkdir(parents=True, exist_ok=True)
    part, failed = executed.with_suffix('.part.ipynb'), executed.with_suffix('.failed.ipynb')
    out = Prefixed(name)
    for quiet in ('papermill', 'traitlets'): logging.getLogger(quiet).setLevel(logging.ERROR)
    try:
        held = take_gpus(int(gpus), int(share)) # until this process ends
        papermill.execute_notebook(source, part, parameters, kernel_name='python3', progress_bar=False, stdout_file=out, stderr_file=out,
                                   extra_arguments=['--log-level=50']) # or each kernel warns that others on this machine might listen
    except KeyboardInterrupt: sys.exit(f'{name}: interrupted')
    except PapermillExecutionError as e: fail(name, f'{e.ename}: {" ".join(str(e.evalue).split())}', part, failed)
    except Exception as e: fail(name, f'{type(e).__name__}: {" ".join(str(e).split())}', part, failed) # a kernel that was killed, a full disk
    part.replace(executed)
    out.write(f'done in {time.time() - started:.0f} s')

if __name__ == '__main__':
    os.environ['PYTHONWARNINGS'] = 'ignore'
    main(*sys.argv[1:6])
