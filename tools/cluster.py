"""A study on a SLURM cluster: what is checked before anything is submitted, the jobs' names, and what failed.
`tools/reproduce.py` calls this for a profile of snakemake whose executor is slurm."""
import getpass, os, re, shutil, subprocess, sys, threading, time
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple
import yaml
from mimdet.base.core import MimdetError

FIRST_LOOK = 10 # seconds until snakemake first asks for the state of its jobs
AGAIN = 'repeat the command: a training run continues at its checkpoint'
OUT_OF_TIME = 'TIMEOUT', 'DEADLINE'
TIME_IS_UP = 'time is up' # what a training run says that ends itself, with a checkpoint

def told(*command):
    "What a command prints, and whether it succeeded."
    if not shutil.which(command[0]): return '', False
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip(), done.returncode == 0

def option(options, name):
    "The value of a long option, as `--name value` or `--name=value`; empty without it."
    for at, word in enumerate(options):
        if word == f'--{name}': return options[at + 1] if at + 1 < len(options) else ''
        if word.startswith(f'--{name}='): return word.partition('=')[2]
    return ''

def profile_of(options, root):
    "The file of a snakemake profile, and the resources that it asks for by default; nothing if it is not for SLURM."
    folder = option(options, 'workflow-profile') or option(options, 'profile')
    if not folder: return None, {}
    file = Path(root, folder, 'config.yaml')
    if not file.is_file(): raise MimdetError(f'{folder}: no such profile: it is a folder with a file config.yaml')
    plain = yaml.safe_load(file.read_text()) or {}
    if plain.get('executor') != 'slurm': return None, {}
    # the command line takes the place of the profile
    given = options[options.index('--default-resources') + 1:] if '--default-resources' in options else []
    given = [word.partition('=') for word in takewhile(lambda word: not word.startswith('-'), given)]
    return file, {name: value for name, _, value in given} or plain.get('default-resources') or {}

class Cluster(NamedTuple):
    "How the jobs of a study are submitted."
    options:list # of snakemake
    lines:list   # to print beforehand
    limit:int    # minutes that the partition allows; 0: any time
    gpus:int     # on each node of the partition; 0: none, or unknown

def prepared(options, root):
    "The cluster that a profile stands for; None if it is not SLURM. Raises `MimdetError` for what cannot work."
    file, asked = profile_of(options, root)
    if not file: return None
    for key, value in asked.items():
        if str(value).startswith('YOUR_'):
            raise MimdetError(f'{file}: {key} is still {value}: fill it in, or leave it empty for the default')
    if not shutil.which('sbatch'):
        raise MimdetError('no sbatch here: call this on a machine that submits jobs to the cluster')
    ours, lines = {'slurm-init-seconds-before-status-checks': str(FIRST_LOOK)}, []
    said, works = told('sacct', '-n', '-X')
    if not works or 'disabled' in said:
        if asked.get('slurm_account'):
            raise MimdetError(f'{file}: slurm_account is {asked["slurm_account"]}, and this cluster keeps no accounts: '
                              'leave it empty')
        _check_squeue()
        ours['slurm-status-command'] = 'squeue'
        lines.append('accounting is off on this cluster: squeue is asked for the state of jobs')
    words = [word for name, value in ours.items() if not option(options, name) for word in (f'--{name}', value)]
    return Cluster(words, lines, *limits(asked.get('slurm_partition')))

def _check_squeue():
    "squeue must remember jobs for longer than snakemake takes to ask."
    said, works = told('scontrol', 'show', 'config')
    if not works or not told('squeue', '-h')[1]:
        raise MimdetError('neither sacct nor squeue answers here: without them nobody knows when a job is done')
    age = re.search(r'MinJobAge\s*= (\d+)', said)
    if age and int(age[1]) < 3*FIRST_LOOK:
        raise MimdetError(f'accounting is off on this cluster, and it forgets jobs after {age[1]} s (MinJobAge): '
                          'ask for accounting, or for a longer MinJobAge')

def limits(partition=''):
    "Minutes and GPUs on a node that a partition allows, the default one without a name; 0: any time, no GPUs."
    said, works = told('sinfo', '-h', '-o', '%P|%l|%G')
    rows = [line.split('|') for line in said.splitlines() if works and line.count('|') == 2]
    names = dict.fromkeys(name.rstrip('*') for name, *_ in rows)
    if partition and partition not in names:
        raise MimdetError(f'no partition {partition!r} on this cluster: there are {", ".join(names)}')
    def is_ours(name): return name.rstrip('*') == partition if partition else name.endswith('*')
    ours = [(allowed, devices) for name, allowed, devices in rows if is_ours(name)]
    gpus = [int(found) for _, devices in ours for found in re.findall(r'\bgpu(?::[^:,(]+)?:(\d+)', devices)]
    return minutes_of(ours[0][0]) if ours else 0, max(gpus, default=0)

def minutes_of(text):
    "Minutes of SLURM's days-hours:minutes:seconds; 0 for infinite or nothing."
    found = re.fullmatch(r'(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)', text)
    if not found: return 0
    days, hours, minutes, _ = (int(part or 0) for part in found.groups())
    return (24*days + hours)*60 + minutes

def name_jobs():
    """Let SLURM's jobs have the names of the study's, in place of one identifier for all. Their state is then asked
    for by user. Without an account in the profile none is guessed, which would need accounting.
    The Snakefile calls this before snakemake submits anything."""
    plugin = sys.modules.get('snakemake_executor_plugin_slurm')
    if not plugin: return
    submit, sacct, squeue = plugin.get_submit_command, plugin.query_job_status_sacct, plugin.query_job_status_squeue
    def named(job, params, *arguments, **options):
        call = submit(job, params, *arguments, **options)
        return call.replace(f'--job-name {params["run_uuid"]}', f'--job-name {job.name}')
    def of_user(query): return lambda run: query(run).replace(f'--name {run}', f'--user {getpass.getuser()}')
    plugin.get_submit_command = named
    plugin.query_job_status_sacct, plugin.query_job_status_squeue = of_user(sacct), of_user(squeue)
    plugin.get_account = lambda logger: None

# --- while it runs ---

def queue_again():
    """Put the job in which this is called back into the queue; it continues as soon as there is room.
    Returns only if the cluster does not do that."""
    if told('scontrol', 'requeue', os.environ.get('SLURM_JOB_ID') or 'none')[1]: time.sleep(600) # until SLURM ends it

class Failure(NamedTuple):
    "A job that the cluster did not finish."
    name:str
    why:str # in the cluster's words
    log:str # its file; empty: none

    @property
    def out_of_time(self): return any(word in self.why for word in OUT_OF_TIME)

    def __str__(self):
        if self.out_of_time or 'CANCELLED' in self.why: what = AGAIN
        elif 'OUT_OF_MEMORY' in self.why: what = 'ask for more: set-resources with mem_mb, in the profile'
        elif 'sbatch' in self.why: what = 'correct what the profile asks for'
        else: what = 'fix what the log says, and repeat the command'
        return f'failed: {self.name}: {self.why}{f" (log: {self.log})" if self.log else ""}; {what}'

# how the lines begin with which snakemake goes on to something else
NEXT = re.compile(r'\[|Job \d|\d+ of |(Cleaning|Exiting|Select|Execute|Finished|No SLURM|Unable|Removing|Complete)\b')

class Follower(threading.Thread):
    "Reads what snakemake says: prints jobs as they are submitted and as they fail, and keeps the rest."
    def __init__(self, stream, names, root):
        super().__init__(daemon=True)
        self.stream, self.names, self.root = stream, names, root
        self.text, self.block, self.rules, self.failed = [], [], {}, []

    def run(self):
        for line in self.stream:
            self.text.append(line)
            if NEXT.match(line): self._finish()
            self.block.append(line)
            if found := re.match(r'Job (\d+) has been submitted with SLURM jobid (\d+) \(log: (.*)\)', line):
                log = self._short(found[3])
                print(f'submitted: {self.rules.get(found[1], "a job")} as SLURM job {found[2]}, log {log}', flush=True)
        self._finish()

    def _short(self, path): return str(path).removeprefix(f'{self.root}/')

    def _finish(self):
        "Look at the lines since the last ones that began something."
        text, self.block = ''.join(self.block), []
        for rule, number in re.findall(r'^(?:local)?rule (\S+):\n(?:    .*\n)*?    jobid: (\d+)', text, re.M):
            self.rules[number] = rule
        for name, rest in re.findall(r'^Error in rule (\S+):\n(.*)', text, re.M | re.S):
            if name in self.names: self._fail(name, rest)

    def _fail(self, name, rest):
        said = ' '.join(rest.partition('message: ')[2].partition('\n    jobid: ')[0].split())
        if found := re.search(r"error message was '(.*?)'\.", said): why = found[1]
        elif found := re.search(r"SLURM status is: '([^']*)'", said): why = found[1]
        else: why = said
        found = re.search(r'^    log: (\S+)', rest, re.M)
        log = Path(found[1]) if found else None
        if log and log.is_file():
            if 'DUE TO TIME LIMIT' in (text := log.read_text(errors='replace')): why = 'TIMEOUT, DUE TO TIME LIMIT'
            elif TIME_IS_UP in text: why = f'TIMEOUT, {TIME_IS_UP}'
            elif re.search('oom.kill|exceeded memory limit', text, re.I): why = 'OUT_OF_MEMORY'
        self.failed.append(Failure(name, why or 'failed', self._short(log) if log else ''))
        print(self.failed[-1], file=sys.stderr, flush=True)
