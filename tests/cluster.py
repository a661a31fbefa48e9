"""Studies on a real SLURM, which these tests start on this machine from Debian's packages.
`make test-cluster` runs this (about half an hour); it is not a part of `make test`."""
import csv, json, os, re, subprocess, sys, time
from pathlib import Path
import pytest, yaml
from conftest import copy_project
from slurm import WHY_NOT, slurm

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f'{WHY_NOT} (Debian: apt-get install slurm-wlm munge)')
LONG = dict(seeds=[0, 1], overrides=['schedule.iterations=400', 'schedule.warmup=1', 'train.log_period=20',
                       'train.checkpoint_period=20'])

PAIR = dict(overrides=['train.device=cpu', 'schedule.iterations=6', 'schedule.warmup=1', 'data.batch=4'], gpus=2)

def checkout(folder):
    "A copy of the project, with profiles of two training runs of more than a minute, and of one in two processes."
    copy_project(folder)
    for name, common in dict(long=LONG, pair=PAIR).items():
        plain = yaml.safe_load((folder/'profiles'/'smoke.yaml').read_text())
        plain['train']['common'] |= common
        plain['train']['models'] = {'v1_sr0.5': {}}
        plain['evaluate'].pop('models')
        plain |= dict(tables={}, release={})
        (folder/'profiles'/f'{name}.yaml').write_text('# For tests.\n' + yaml.safe_dump(plain))
    return folder

@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
    with slurm(tmp_path_factory.mktemp('slurm')) as env: yield env

@pytest.fixture(scope='module')
def here(tmp_path_factory): return checkout(tmp_path_factory.mktemp('project')/'copy')

@pytest.fixture(scope='module')
def local(tmp_path_factory): return checkout(tmp_path_factory.mktemp('local')/'copy')

def environment(folder, env=os.environ): return dict(env, PYTHONPATH=str(folder))

def reproduce(folder, profile, *options, env=os.environ, wait=True):
    "Run a study; its output, or the process."
    command = ['python', 'tools/reproduce.py', profile, *options]
    process = subprocess.Popen(command, cwd=folder, env=environment(folder, env), text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    return process.communicate()[0] if wait else process

SLURM = '--workflow-profile', 'profiles/slurm'

def weights(folder, profile):
    "{run: SHA-256 of its weights}."
    records = map(json.loads, (p.read_text() for p in (folder/'results'/'runs'/profile).glob('train_*.json')))
    return {r['name']: r['weights'] for r in records}

def profile_with(folder, here, **resources):
    "The project's profile for SLURM with other default resources, in a folder; its options."
    plain = yaml.safe_load((here/'profiles'/'slurm'/'config.yaml').read_text())
    plain['default-resources'] |= resources
    (folder/'config.yaml').write_text(yaml.safe_dump(plain))
    return '--workflow-profile', str(folder)

def cells(path):
    with path.open() as file: return [*csv.DictReader(file)]

@pytest.mark.parametrize('setting, value, told', [
    ('slurm_partition', 'nope', "no partition 'nope' on this cluster: there are main, short, wide"),
    ('slurm_partition', 'YOUR_PARTITION', 'fill it in, or leave it empty'),
    ('slurm_account', 'me', 'this cluster keeps no accounts'),
])
def test_a_wrong_profile_is_refused_before_anything_is_submitted(cluster, here, tmp_path, setting, value, told):
    said = reproduce(here, 'smoke', *profile_with(tmp_path, here, **{setting: value}), env=cluster)
    assert told in said and 'submitted' not in said and len(said.splitlines()) == 1

def test_what_cannot_be_had_is_told_in_the_clusters_words(cluster, here):
    said = reproduce(here, 'smoke', '--target', 'data', *SLURM, '--set-resources', 'data:mem_mb=900000', env=cluster)
    assert 'failed: data: sbatch: error: Memory specification can not be satisfied' in said

def test_too_little_memory(cluster, here):
    said = reproduce(here, 'smoke', '--target', 'data', *SLURM, '--set-resources', 'data:mem_mb=100', env=cluster)
    assert 'failed: data: OUT_OF_MEMORY (log: ' in said and 'set-resources with mem_mb' in said, said

def test_without_accounting_tools(cluster, here, tmp_path):
    own = str(Path(sys.executable).parent)
    for folder in {*os.environ['PATH'].split(':')} - {own}:
        for name in os.listdir(folder) if os.path.isdir(folder) else []:
            link = tmp_path/name
            if name not in ('sacct', 'sacctmgr', 'sshare') and not link.exists(): link.symlink_to(f'{folder}/{name}')
    said = reproduce(here, 'smoke', '--target', 'data', *SLURM, env=cluster | dict(PATH=f'{own}:{tmp_path}'))
    assert '1 of 1 jobs done' in said and 'squeue is asked for the state of jobs' in said

def test_a_failed_run_leaves_the_record_before_it(cluster, here):
    reproduce(here, 'smoke', '--target', 'data', *SLURM, env=cluster)
    record = here/'results'/'runs'/'smoke'/'data.json'
    before, notebook = record.read_text(), here/'nbs'/'experiments'/'data.ipynb'
    source = notebook.read_text()
    (here/'runs'/'smoke'/'data.ipynb').unlink()
    notebook.write_text(source.replace('make_dataset(', 'no_such_function('))
    try: said = reproduce(here, 'smoke', '--target', 'data', *SLURM, env=cluster)
    finally: notebook.write_text(source)
    assert re.search(r'failed: data: FAILED \(log: \S+\)', said) and 'runs/smoke/data.failed.ipynb' in said
    assert record.read_text() == before

def test_smoke_is_what_it_is_on_one_machine(cluster, here, local):
    said = reproduce(here, 'smoke', *SLURM, env=cluster)
    print(said) # for pytest -s
    assert 'jobs done' in said and 'failed' not in said
    reproduce(local, 'smoke')
    assert weights(here, 'smoke') == weights(local, 'smoke') != {}
    tables = sorted(path.name for path in (local/'figures'/'smoke').glob('*.csv'))
    assert len(tables) > 4
    for name in tables:
        if name != 'table_cost.csv': assert cells(here/'figures'/'smoke'/name) == cells(local/'figures'/'smoke'/name)

MINUTE = '--default-resources', 'slurm_partition=short'

@pytest.fixture(scope='module')
def undisturbed(local):
    reproduce(local, 'long', '--target', 'train')
    return weights(local, 'long')

def test_cancelled_and_out_of_time_and_the_same_weights(cluster, here, undisturbed):
    "On a cluster that queues no job again, time is up, and the rest is another job."
    run, once = 'train_v1_sr0.5_seed0', ['--slurm-no-requeue']
    running = reproduce(here, 'long', '--target', run, *SLURM, env=cluster, wait=False)
    checkpoint = here/'runs'/'long'/run/'checkpoint.pth'
    while not checkpoint.exists() and running.poll() is None: time.sleep(.2)
    listed = subprocess.run(['squeue', '-h', '-o', '%j'], env=cluster, capture_output=True, text=True).stdout.split()
    subprocess.run(['scancel', f'--name={run}'], env=cluster)
    said = running.communicate()[0]
    assert listed == [run] and f'failed: {run}: CANCELLED' in said, said
    said = reproduce(here, 'long', '--target', run, *SLURM, *MINUTE, *once, env=cluster)
    assert f'failed: {run}: TIMEOUT, time is up' in said and f'time is up for {run}: submitted again' in said, said
    assert weights(here, 'long')[run] == undisturbed[run]

def test_a_job_whose_time_is_up_goes_back_into_the_queue(cluster, here, undisturbed):
    run = 'train_v1_sr0.5_seed1'
    said = reproduce(here, 'long', '--target', run, *SLURM, *MINUTE, env=cluster)
    submitted = re.findall(rf'{run} as SLURM job (\d+)', said)
    told = subprocess.run(['scontrol', 'show', 'job', *submitted], env=cluster, capture_output=True, text=True).stdout
    assert len(submitted) == 1 and 'failed' not in said and re.search(r'Restarts=[1-9]', told), f'{said}\n{told}'
    assert weights(here, 'long')[run] == undisturbed[run]

def test_one_training_on_two_nodes(cluster, here, local, tmp_path):
    "Each node has one GPU, by name: the run computes on the CPU, in one process on each."
    reproduce(local, 'pair', '--target', 'train', env=os.environ | dict(CUDA_VISIBLE_DEVICES='0,1'))
    wide = profile_with(tmp_path, here, slurm_partition='wide')
    running = reproduce(here, 'pair', '--target', 'train', *wide, env=cluster, wait=False)
    steps = set()
    while running.poll() is None:
        listed = subprocess.run(['squeue', '-h', '-s', '-o', '%N'], env=cluster, capture_output=True, text=True).stdout
        steps |= {*listed.split()}
        time.sleep(.5)
    assert 'node[2-3]' in steps, running.communicate()[0]
    assert weights(here, 'pair') == weights(local, 'pair') != {}
