"""The paper's own study: what it would do is told and what is missing is named, on a cluster too; with a tiny folder
laid out as COCO in place of COCO, it runs."""
import os, shutil
import pytest, yaml
from conftest import ROOT, copy_project, run_command
from mimdet.data.emoji import EmojiConfig, make_dataset

@pytest.fixture(scope='module')
def project(tmp_path_factory): return copy_project(tmp_path_factory.mktemp('coco'))

@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    "A handful of scenes under COCO's file names."
    folder = tmp_path_factory.mktemp('datasets')
    made = make_dataset(folder/'made', EmojiConfig(categories=3, size=128), 1, train=16, val=6)
    (folder/'coco'/'annotations').mkdir(parents=True)
    for split, name in (('train', 'train2017'), ('val', 'val2017')):
        shutil.move(made[split]['json'], folder/'coco'/'annotations'/f'instances_{name}.json')
        shutil.move(made[split]['images'], folder/'coco'/name)
    return folder

def reproduce(project, profile, *more, datasets):
    environment = os.environ | dict(DETECTRON2_DATASETS=str(datasets))
    return run_command('python', project/'tools'/'reproduce.py', profile, *more, cwd=project, env=environment)

def test_dry_run_names_everything(project, tmp_path):
    done = reproduce(project, 'coco', '-n', datasets=tmp_path)
    coco, told = tmp_path/'coco', done.stdout + done.stderr
    missing = {line.removeprefix('missing: ') for line in done.stderr.splitlines()
               if line.startswith('missing: ')}
    data = ('annotations/instances_train2017.json', 'annotations/instances_val2017.json', 'train2017', 'val2017')
    weights = {f'weights/mae_pretrain_vit_{size}_full.pth' for size in ('base', 'large')}
    assert done.returncode == 2 and missing == {str(coco/f) for f in data} | weights
    profile = yaml.safe_load((ROOT/'profiles'/'coco.yaml').read_text())
    for model in profile['train']['models']:
        assert f'\ntrain_{model}_seed0\n  python tools/run_notebook.py nbs/experiments/train.ipynb' in told
    assert 'needs   8 GPUs, ' in told and 'writes  runs/coco/train_v1_sr0.5_seed0/model_final.pth' in told
    assert ' jobs to do, about ' in told
    assert "the paper's own rows alone (TARGET=table1): 9 models" in told
    assert 'GB of weights stay' in told and 'GB on each GPU for train_' in told

def test_only_what_is_needed_is_missing(project, tmp_path):
    done = reproduce(project, 'coco', '-n', '--target', 'table4', datasets=tmp_path)
    assert done.returncode == 0 and '\ncost\n' in done.stdout and 'train_' not in done.stdout, done.stderr

def test_cluster_dry_run(project, tmp_path):
    cluster = ['--workflow-profile', 'profiles/slurm', '-n']
    done = run_command('snakemake', *cluster, '--config', 'profile=gpu', 'cluster=1', cwd=project)
    told = done.stdout + done.stderr
    assert done.returncode == 0 and 'nodes=1' in told and 'gpu=1' in told, told
    training = told.partition('rule train_v1_sr0.5_seed0:')[2].partition('resources: ')[2].partition('\n')[0]
    assert 'mem_mb=21000' in training, training
    done = reproduce(project, 'gpu', *cluster, datasets=tmp_path)
    assert done.returncode == 0 and ' GPU hours, ' in done.stdout and 'probe' not in done.stdout, done.stderr

def test_what_is_asked_of_a_cluster(project, tmp_path, monkeypatch):
    "CPUs of the study's, not of this machine; memory and minutes by the kind of job; a name."
    plain = yaml.safe_load((project/'profiles'/'smoke.yaml').read_text())
    plain['threads']['data'] = 5
    (project/'profiles'/'five.yaml').write_text('# Five threads.\n' + yaml.safe_dump(plain))
    for name, act in dict(sbatch=f'echo "$@" > {tmp_path}/asked; exit 1', sinfo="echo 'main*'", squeue='true').items():
        (tmp_path/name).write_text(f'#!/bin/sh\n{act}\n')
        (tmp_path/name).chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    run_command('snakemake', '--nolock', '--workflow-profile', 'profiles/slurm', '--slurm-status-command', 'squeue',
                '--slurm-init-seconds-before-status-checks', '1', '--config', 'profile=five', 'cluster=1', '--', 'data',
                cwd=project)
    asked = (tmp_path/'asked').read_text()
    for words in ('--job-name data', '-t 120', '--mem 2000', '--nodes=1', '--cpus-per-task=5'): assert words in asked

def test_runs_on_a_folder_laid_out_as_coco(project, coco):
    "The coco profile with tiny recipes, a few of its models, and an autoencoder of that size."
    profile = yaml.safe_load((project/'profiles'/'coco.yaml').read_text())
    short = ['schedule.iterations=3', 'schedule.warmup=0', 'data.batch=2', 'train.log_period=1', 'data.workers=0']
    trained = dict(recipe='mimdet_tiny_v1_sr0.5_3x', gpus=0, overrides=short)
    evaluated = dict(ratios=[.02, .25, .5, 1.], seeds=[0], ensembles=[])
    kept = ['v1_sr0.5', 'mae_encoder', 'decoder1']
    profile['train'] = dict(common=profile['train']['common'] | trained,
                            models={k: profile['train']['models'][k] for k in kept})
    profile['pretrain'] = dict(base=dict(file='weights/mae_tiny_full.pth'))
    profile['evaluate'] = dict(common=profile['evaluate']['common'] | evaluated,
                               models={'v1_sr0.5': dict(examples=2)})
    ablations = [row for row in profile['tables']['ablations'] if row['model'] in kept]
    profile['tables'] = dict(main=[dict(published='mimdet_base_v1_sr0.5_3x', model='v1_sr0.5')],
                             ratio=['v1_sr0.5'], ablations=ablations)
    profile |= dict(cost={}, threads={})
    (project/'profiles'/'minicoco.yaml').write_text(yaml.safe_dump(profile))
    done = run_command('mimdet_pretrain', coco/'coco'/'train2017', '--output', project/'mae', '--steps', 2,
                       '--batch', 4, '--warmup', 1)
    assert done.returncode == 0
    shutil.move(project/'mae'/'mae_full.pth', project/'weights'/'mae_tiny_full.pth')
    done = reproduce(project, 'minicoco', datasets=coco)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert 'COCO' in (project/'figures'/'minicoco'/'table_main.md').read_text()
    assert (project/'figures'/'minicoco'/'table_ablations.md').exists()
