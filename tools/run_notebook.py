"""Run a notebook through papermill: `python tools/run_notebook.py SOURCE EXECUTED '{"parameter": value}'`.

What the notebook prints goes to the terminal, each line with the run's name in front. A failure is told in one line, and the executed notebook
with its traceback is kept as EXECUTED with the ending .failed.ipynb; EXECUTED itself exists only when the notebook ran to its end."""
import json, logging, os, sys, time
from pathlib import Path
import papermill
from papermill.exceptions import PapermillExecutionError

class Prefixed:
    "A text stream that puts a name in front of each line."
    def __init__(self, name): self.name = name
    def write(self, text): sys.stdout.writelines(f'[{self.name}] {line.strip()}\n' for line in text.splitlines() if line.strip())
    def flush(self): sys.stdout.flush()

def fail(name, why, part, failed):
    if part.exists(): part.replace(failed)
    sys.exit(f'{name}: error: {why} (as far as it came: {failed})')

def main(source, executed, parameters):
    parameters, executed = json.loads(parameters), Path(executed)
    name, started = executed.stem, time.time()
    executed.parent.mkdir(parents=True, exist_ok=True)
    part, failed = executed.with_suffix('.part.ipynb'), executed.with_suffix('.failed.ipynb')
    out = Prefixed(name)
    for quiet in ('papermill', 'traitlets'): logging.getLogger(quiet).setLevel(logging.ERROR)
    try: papermill.execute_notebook(source, part, parameters, kernel_name='python3', progress_bar=False, stdout_file=out, stderr_file=out,
                                          extra_arguments=['--log-level=50']) # or each kernel warns that others on this machine might listen
    except KeyboardInterrupt: sys.exit(f'{name}: interrupted')
    except PapermillExecutionError as e: fail(name, f'{e.ename}: {" ".join(str(e.evalue).split())}', part, failed)
    except Exception as e: fail(name, f'{type(e).__name__}: {" ".join(str(e).split())}', part, failed) # a kernel that was killed, a full disk
    part.replace(executed)
    out.write(f'done in {time.time() - started:.0f} s')

if __name__ == '__main__':
    os.environ['PYTHONWARNINGS'] = 'ignore'
    main(*sys.argv[1:4])
