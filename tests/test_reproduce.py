"""The whole study at smoke size, in a copy of the project: killed it goes on, then it has nothing to do,
then it redoes what a removed record asks for and no more; what fails is named and loses nothing else;
what is shown and was not measured is found."""
import base64, contextlib, fcntl, json, os, shutil, signal, subprocess, sys, threading, time
import nbformat, pytest, yaml
from conftest import ROOT, WARM, copy_project, run_command
from mimdet.study.records import fingerprint
from mimdet.base.core import read_json

TABLES = {'table_main', 'table_ratio', 'table_ablations', 'table_cost', 'table_sampling', 'claims'}
FIGURES = {'ap_over_ratio', 'ap_over_cost', 'ap_by_size', 'spread', 'training_curves', 'predictions',
           'what_it_sees', 'reconstructions', 'sampling', 'cost_over_ratio'}
MODELS = ('v1_sr0.25_seed0', 'v1_sr0.25_seed1', 'v1_sr0.5_seed0', 'no_vit_seed0', 'benchmarking_seed0')

@pytest.fixture(scope='module')
def project(tmp_path_factory): return copy_project(tmp_path_factory.mktemp('project'))

def reproduce(project, profile='smoke', *more, **kwargs):
    return run_command('python', project/'tools'/'reproduce.py', profile, *more, cwd=project, **kwargs)

def verify(project, *profiles):
    return run_command('python', project/'tools'/'verify.py', *profiles, cwd=project)

def times(folder, names): return {name: (folder/f'{name}.json').stat().st_mtime_ns for name in names}

def test_killed_and_resumed(project):
    "No warning, no mercy: only the unfinished runs run again."
    records = project/'results'/'runs'/'smoke'
    cold = os.environ | dict(PATH=os.environ['PATH'].replace(WARM, '')) # or what is killed would be stand-ins
    command = [sys.executable, project/'tools'/'reproduce.py', 'smoke']
    running = subprocess.Popen(command, cwd=project, env=cold, stdout=subprocess.DEVNULL, start_new_session=True)
    while not list(records.glob('evaluate_*.json')) and running.poll() is None: time.sleep(.2)
    running.kill()
    running.wait()
    assert 'already running' in reproduce(project).stderr # its work goes on
    os.killpg(running.pid, signal.SIGKILL)
    begun = {base64.urlsafe_b64decode(p.name).decode() for p in (project/'.snakemake'/'incomplete').iterdir()}
    finished = [p.stem for p in records.glob('*.json') if str(p.relative_to(project)) not in begun]
    assert 'pretrain_tiny' in finished
    before = times(records, finished)
    done = reproduce(project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert times(records, finished) == before
    runs = {f'{kind}_{m}' for kind in ('train', 'evaluate') for m in MODELS}
    others = {'data', 'pretrain_tiny', 'cost', 'release_toy_mae', 'release_toy_detector'}
    assert {p.stem for p in records.iterdir()} == others | runs
    tables = {f'{t}.{kind}' for t in TABLES for kind in ('csv', 'md', 'tex')}
    figures = {f'{f}.{kind}' for f in FIGURES for kind in ('png', 'svg')}
    folder = project/'figures'/'smoke'
    assert {p.name for p in folder.iterdir()} == tables | figures
    assert (folder/'table_main.md').read_text().partition('\n## ')[0] in done.stdout
    assert ' jobs to do, about ' in done.stdout.splitlines()[0]

def test_nothing_to_be_done(project): assert 'nothing to be done' in reproduce(project).stdout

def test_only_what_is_stale_and_the_same_again(project):
    records, figures = project/'results'/'runs'/'smoke', project/'figures'/'smoke'
    before = times(records, [p.stem for p in records.iterdir()])
    tables = {p.name: p.read_bytes() for p in figures.glob('table_*') if 'cost' not in p.name}
    (records/'train_v1_sr0.5_seed0.json').unlink()
    redone = reproduce(project)
    assert redone.returncode == 0, redone.stdout + redone.stderr
    newer = {name for name in before if times(records, [name])[name] != before[name]}
    assert newer == {'train_v1_sr0.5_seed0', 'evaluate_v1_sr0.5_seed0', 'release_toy_detector'}
    assert {name: (figures/name).read_bytes() for name in tables} == tables # same seeds, same machine, same day

def test_committed_records_stand_for_runs(project, tmp_path):
    """In a fresh copy with the records of a study: only figures are left;
    where one is gone, what it needs is made again, and no more."""
    fresh = copy_project(tmp_path/'fresh')
    records = fresh/'results'/'runs'/'smoke'
    shutil.copytree(project/'results'/'runs'/'smoke', records, dirs_exist_ok=True)
    profile = fresh/'profiles'/'smoke.yaml'
    plain = yaml.safe_load(profile.read_text())
    del plain['release'] # whose files are not kept with the records here
    profile.write_text(yaml.safe_dump(plain | dict(take_records=True)))
    def left(*options):
        done = reproduce(fresh, 'smoke', '-n', *options)
        assert done.returncode == 0, done.stderr
        return {line for line in done.stdout.splitlines() if line in runs}
    for path in records.glob('release_*'): path.unlink()
    runs = {p.stem for p in records.iterdir()}
    assert left() == set() and left('--anew') == runs
    done = reproduce(fresh, 'smoke', '--target', 'table_ratio')
    assert done.returncode == 0 and 'jobs have committed records' in done.stdout
    table = 'figures/smoke/table_ratio.csv'
    assert (fresh/table).read_bytes() == (project/table).read_bytes()
    (records/'evaluate_no_vit_seed0.json').unlink()
    assert left() == {'data', 'train_no_vit_seed0', 'evaluate_no_vit_seed0'}
    assert 'train_v1_sr0.5_seed0' in left('--target', 'train_v1_sr0.5_seed0', '--anew')
    assert left('--target', 'train_v1_sr0.5_seed0') == set()

def test_released_weights(project, call_there):
    "They load by name without network or run, say where they come from, and score what their record says."
    records, folder = project/'results'/'runs'/'smoke', project/'runs'/'smoke'/'weights'
    sizes = {name: (folder/f'{name}.safetensors').stat().st_size for name in ('toy_mae', 'toy_detector')}
    assert max(sizes.values()) < 8e6
    record, data = read_json(records/'release_toy_detector.json'), project/'runs'/'smoke'/'data'
    options = ['--dataset', f'{data}/val.json:{data}/val', '--precision', 'fp32', '--ratio', '1']
    done = call_there('mimdet_evaluate', 'toy_detector', *options, '--output', project/'again')
    assert done.returncode == 0, done.stderr
    row = read_json(project/'again'/'metrics.json')[0]
    assert row['bbox'] == record['metrics']['after'][-1]['bbox']
    assert row['weights'] == record['weights']['out']
    listed = call_there('mimdet_models').stdout
    for words in ('toy_detector', 'Emoji-COCO: box AP at 0.5', 'masked autoencoder'): assert words in listed
    images = data/'val'/'000001.jpg'
    drawn = call_there('mimdet_predict', 'toy_detector', images, '--output', project/'drawn_by_name')
    assert drawn.returncode == 0
    short = ['schedule.iterations=1', 'schedule.warmup=0', 'data.batch=2', 'data.workers=0', 'train.eval_period=0']
    train = 'mimdet_train', *short, '--dataset', f'{data}/train.json:{data}/train'
    for option, name in (('--mae', 'toy_mae'), ('--init', 'toy_detector')):
        done = call_there(*train, option, name, '--output', project/f'from_{name}')
        assert done.returncode == 0 and f'{name}.safetensors' in done.stdout, done.stderr
    done = call_there(*train, '--mae', 'toy_mea', '--output', project/'from_nothing')
    assert done.returncode == 2
    assert "did you mean 'toy_mae'" in done.stderr and len(done.stderr.splitlines()) == 1

@pytest.fixture
def call_there(project):
    environment = os.environ | dict(MIMDET_WEIGHTS=str(project/'runs'/'smoke'/'weights'))
    return lambda *command: run_command(*command, env=environment)

def test_target(project):
    figures = project/'figures'/'smoke'
    (figures/'table_ratio.md').unlink()
    (figures/'spread.png').unlink()
    done = reproduce(project, 'smoke', '--target', 'table2')
    assert done.returncode == 0
    assert (figures/'table_ratio.md').exists() and not (figures/'spread.png').exists()
    assert reproduce(project).returncode == 0

def test_one_at_a_time(project):
    with (project/'.snakemake'/'reproduce.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = reproduce(project)
    assert second.returncode == 1
    assert second.stderr.strip().splitlines() == [
        'make reproduce is already running in this folder: wait for it, or stop it first']

def test_verified(project):
    done = verify(project, 'smoke')
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr

@contextlib.contextmanager
def changed(files):
    "Files with another content inside the block; None: without the file."
    before = {path: path.read_bytes() if path.exists() else None for path in files}
    def write(contents):
        for path, content in contents.items():
            if content is None: path.unlink(missing_ok=True)
            else: path.write_bytes(content)
    write(files)
    try: yield
    finally: write(before)

def edited(path):
    record = read_json(path)
    record['metrics']['rows'][0]['bbox']['AP'] += 10
    return json.dumps(record).encode()

def foreign(path):
    record = read_json(path)
    record['dataset']['sha256']['train'] = '0'*64
    return json.dumps(record | dict(sha256=fingerprint(record))).encode()

def replaced(*change): return lambda path: path.read_bytes().replace(*change)

FRAUDS = {
    'records': {
        'results/runs/smoke/evaluate_v1_sr0.5_seed0.json': (edited, 'was it edited?'),
        'results/runs/smoke/data.json': (
            foreign, 'pretrain_tiny.json: the SHA-256 of train differs from data.json'),
        'results/runs/smoke/evaluate_more.json': (
            lambda path: (path.parent/'data.json').read_bytes(), 'holds the record smoke/data')},
    'what is shown': {
        'figures/smoke/best_of_all.png': (lambda path: b'pixels', 'best_of_all.png has no record'),
        'figures/smoke/spread.svg': (
            replaced(b'</svg>', b'<g/></svg>'), 'note  figures/smoke/spread.svg: redrawing gives a different file'),
        'figures/smoke/table_main.md': (replaced(b'not run', b'51.7', 1), 'table_main.md is stale'),
        'figures/smoke/table_ratio.csv': (lambda path: None, 'table_ratio.csv is missing'),
        'README.md': (
            lambda path: path.read_bytes() + b'\nOn photographs it reaches 61.3 AP.\n',
            'README.md: 61.3 has no source')},
}

@pytest.mark.parametrize('fraud', FRAUDS)
def test_verify_catches(project, fraud):
    contents = {project/file: change(project/file) for file, (change, _) in FRAUDS[fraud].items()}
    with changed(contents): done = verify(project, 'smoke')
    assert done.returncode == 1
    for _, told in FRAUDS[fraud].values(): assert told in done.stdout, done.stdout[-2000:] + done.stderr

@pytest.mark.parametrize('figure', sorted(FIGURES - {'reconstructions'}))
def test_stale_figure_is_caught(stale, figure):
    assert f'figures/smoke/{figure}.png is stale: it was drawn from different records' in stale

@pytest.fixture(scope='module')
def stale(project):
    """What verify says when all figures are replaced by one that was drawn from another record:
    the digest in its metadata tells."""
    shown = project/'figures'/'smoke'
    other = (shown/'reconstructions.png').read_bytes()
    with changed({shown/f'{f}.png': other for f in FIGURES}): return verify(project, 'smoke').stdout

def test_verify_compares_records_with_the_profile(project):
    profile = project/'profiles'/'smoke.yaml'
    other = profile.read_bytes().replace(b'{sample_ratio: 0.25}', b'{sample_ratio: 0.3}')
    with changed({profile: other}): done = verify(project, 'smoke')
    assert done.returncode == 1
    assert ('train_v1_sr0.25_seed0.json does not match its run in the profile smoke: changes differs'
            in done.stdout)

def test_a_kernel_that_dies_is_named(project):
    source = project/'nbs'/'dies.ipynb'
    kernel = dict(name='python3', display_name='python3', language='python')
    cells = [nbformat.v4.new_code_cell(text) for text in ('1', 'import os; os._exit(9)')]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=kernel)), source)
    runner = project/'tools'/'run_notebook.py'
    done = run_command('python', runner, source, project/'runs'/'dies.ipynb', '{}', cwd=project)
    source.unlink()
    assert done.returncode == 1 and 'dies: error: DeadKernelError' in done.stderr, done.stderr
    assert (project/'runs'/'dies.failed.ipynb').exists()

def test_figures_from_records_alone(project):
    "Records made elsewhere: no run, no runs folder."
    away = project/'runs_away'
    (project/'runs').rename(away)
    try: done = run_command('python', project/'tools'/'figures.py', 'smoke', project/'drawn', cwd=project)
    finally: away.rename(project/'runs')
    assert done.returncode == 0, done.stderr
    drawn, figures = project/'drawn', project/'figures'/'smoke'
    for table in TABLES: assert (drawn/f'{table}.csv').read_bytes() == (figures/f'{table}.csv').read_bytes()

def test_a_failing_run_is_named_and_loses_nothing(project):
    profile = yaml.safe_load((project/'profiles'/'smoke.yaml').read_text())
    profile['train']['models'] = {'good': {}, 'bad': dict(overrides=['data.short_edge=[64]'])}
    evaluate = dict(ratios=[1.], seeds=[0], stem_probe=False, variance=False, agreement_ratios=[], ensembles=[])
    profile |= dict(tables={}, cost={}, release={}, evaluate=dict(common=evaluate))
    (project/'profiles'/'broken.yaml').write_text(yaml.safe_dump(profile))
    done = reproduce(project, 'broken', '--target', 'evaluate')
    failed = 'failed: train_bad_seed0, its log: runs/broken/train_bad_seed0.failed.ipynb'
    assert done.returncode == 1 and failed in done.stderr, done.stdout + done.stderr
    kept = {p.stem for p in (project/'results'/'runs'/'broken').iterdir()}
    assert kept == {'data', 'pretrain_tiny', 'train_good_seed0', 'evaluate_good_seed0'}

def test_runs_share_the_gpus(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT/'tools')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    from run_notebook import take_gpus
    def take(*wanted): return take_gpus(['0', '2'], *wanted), os.environ['CUDA_VISIBLE_DEVICES']
    (first, a), (second, b), (third, c) = (take(1, 2, False) for _ in range(3))
    assert (a, b, c) == ('0', '2', '0')
    del first, third
    assert take(1, 2, True)[1] == '0'
    threading.Timer(2, second.clear).start() # until then there is no room for one that needs both
    both, seen = take(2, 2, True)
    assert seen == '0,2' and not second

def gpu_tools(folder):
    "The environment of a machine whose GPU tools are the stand-ins in `folder`, and which hides no GPU."
    shown = {k: v for k, v in os.environ.items() if k != 'CUDA_VISIBLE_DEVICES'}
    return shown | dict(PATH=f'{folder}{os.pathsep}{os.environ["PATH"]}')

def service(told):
    "A stand-in for the control of the multi-process service: writes into `told` that it starts or quits."
    return f'''if [ "$1" = -d ]
then echo start $CUDA_MPS_PIPE_DIRECTORY >> {told}
else read word; echo $word $CUDA_MPS_PIPE_DIRECTORY >> {told}
fi'''

def snakemake(told):
    "A stand-in for snakemake with one job to do: writes into `told` what it sees of the service and of the GPUs."
    return f'''case "$*" in
*--dry-run*) printf "data 1\\n";;
*) echo run $CUDA_MPS_PIPE_DIRECTORY $MIMDET_GPUS "$@" >> {told};;
esac'''

def test_the_multi_process_service_is_begun_and_ended(project, tmp_path):
    "Stand-ins for a GPU's tools: what the service was told, and what the runs saw of it."
    told = tmp_path/'told'
    stand_ins = {'nvidia-smi': 'echo "GPU 0: one (UUID: a)"',
                 'nvidia-cuda-mps-control': service(told),
                 'snakemake': snakemake(told)}
    for name, text in stand_ins.items():
        (tmp_path/name).write_text(f'#!/bin/sh\n{text}\n')
        (tmp_path/name).chmod(0o755)
    profile = project/'profiles'/'shared.yaml'
    profile.write_text((project/'profiles'/'smoke.yaml').read_text() + 'gpu_share: 9\n')
    environment = gpu_tools(tmp_path)
    done = reproduce(project, 'shared', '--target', 'data', env=environment)
    start, run, end = told.read_text().splitlines()
    pipe = start.split()[1]
    assert done.returncode == 0 and end == f'quit {pipe}'
    assert run.startswith(f'run {pipe} 0 ') and 'gpu_places=9 gpu_runs=9' in run
    assert not os.path.exists(pipe)
    told.unlink()
    (tmp_path/'nvidia-cuda-mps-control').unlink()
    reproduce(project, 'shared', '--target', 'data', env=environment)
    assert told.read_text().startswith('run 0 ') and 'gpu_places=9 gpu_runs=3' in told.read_text()
    profile.unlink()

def test_more_gpus_than_there_are(project, tmp_path):
    "A driver that tells of two, one of which CUDA may use."
    (tmp_path/'nvidia-smi').write_text('#!/bin/sh\n'
                                       'echo "GPU 0: one (UUID: a)"\n'
                                       'echo "  MIG"\n'
                                       'echo "GPU 1: two (UUID: b)"\n')
    (tmp_path/'nvidia-smi').chmod(0o755)
    profile = project/'profiles'/'crowd.yaml'
    smoke = (project/'profiles'/'smoke.yaml').read_text()
    profile.write_text(smoke.replace('pretrain: tiny, seeds', 'gpus: 3, pretrain: tiny, seeds'))
    environment = gpu_tools(tmp_path)
    for told, more in ((2, {}), (1, dict(CUDA_VISIBLE_DEVICES='1'))):
        done = reproduce(project, 'crowd', env=environment | more)
        assert done.returncode == 2 and f'is to run on 3 GPUs, and this machine has {told}' in done.stderr
    profile.unlink()

def test_unknown_profile(project):
    done = reproduce(project, 'nosuch')
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert 'no such profile: nosuch' in done.stderr
