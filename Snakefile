# Which notebook makes which record, table and figure; `make reproduce PROFILE=quick` calls this.
# Each run also leaves its executed notebook below runs/, which is not in git: a fresh clone has none, so there everything runs.
import json, sys
from pathlib import Path
import yaml

PROFILE = config.get('profile', 'quick')
source = Path('profiles')/f'{PROFILE}.yaml'
if not source.is_file(): sys.exit(f'no such profile: {PROFILE}; there are: {", ".join(sorted(p.stem for p in source.parent.glob("*.yaml")))}')
study = yaml.safe_load(source.read_text())

RUNS, RECORDS, FIGURES = f'runs/{PROFILE}', f'results/runs/{PROFILE}', f'figures/{PROFILE}'
DATA, MAE = f'{RUNS}/data', f'{RUNS}/pretrain/mae_full.pth'
TRAININGS, THREADS = study['train']['runs'], study['threads']
NAMES = ['data', 'pretrain', *(f'{kind}_{name}' for kind in ('train', 'evaluate') for name in TRAININGS)]
EVERY_RECORD = [f'{RECORDS}/{name}.json' for name in NAMES]
FIGURE_FILES = dict(table_ratio=['table_ratio.csv', 'table_ratio.md', 'table_ratio.tex'], ap_over_ratio=['ap_over_ratio.png', 'ap_over_ratio.svg'],
                    training_curves=['training_curves.png', 'training_curves.svg'], predictions=['predictions.png', 'predictions.svg'],
                    reconstructions=['reconstructions.png', 'reconstructions.svg'])

def parameters(settings, name, **values):
    "A notebook's parameters as JSON: what the profile says of the run, and where things are."
    return json.dumps(dict(profile=PROFILE, name=name, record=f'{RECORDS}/{name}.json', **settings, **values), sort_keys=True)

def train_parameters(wildcards):
    common, own = study['train']['common'], TRAININGS[wildcards.name]
    settings = common | own | dict(changes=common.get('changes', {}) | own.get('changes', {}))
    return parameters(settings, f'train_{wildcards.name}', dataset=DATA, mae=MAE, output=f'{RUNS}/train/{wildcards.name}', threads=THREADS['train'])

def evaluate_parameters(wildcards):
    return parameters(study['evaluate'], f'evaluate_{wildcards.name}', train=f'train_{wildcards.name}', run=f'{RUNS}/train/{wildcards.name}', dataset=DATA,
                      output=f'{RUNS}/evaluate/{wildcards.name}', threads=THREADS['evaluate'])

RUN = 'OMP_NUM_THREADS={threads} python tools/run_notebook.py {input.notebook} {output.executed} {params.parameters:q}'

rule all:
    input:
        EVERY_RECORD, [f'{RUNS}/{name}.ipynb' for name in NAMES],
        [f'{RUNS}/figures/{name}.ipynb' for name in FIGURE_FILES], [f'{FIGURES}/{file}' for files in FIGURE_FILES.values() for file in files]

rule data:
    input: notebook='nbs/experiments/data.ipynb'
    output: executed=f'{RUNS}/data.ipynb', record=f'{RECORDS}/data.json'
    params: parameters=parameters(study['data'], 'data', output=DATA, workers=THREADS['data'])
    threads: THREADS['data']
    shell: RUN

rule pretrain:
    input: f'{RECORDS}/data.json', notebook='nbs/experiments/pretrain.ipynb'
    output: MAE, executed=f'{RUNS}/pretrain.ipynb', record=f'{RECORDS}/pretrain.json'
    params: parameters=parameters(study['pretrain'], 'pretrain', dataset=DATA, output=f'{RUNS}/pretrain', threads=THREADS['pretrain'])
    threads: THREADS['pretrain']
    shell: RUN

rule train:
    input: f'{RECORDS}/data.json', MAE, notebook='nbs/experiments/train.ipynb'
    output: f'{RUNS}/train/{{name}}/model_final.pth', executed=f'{RUNS}/train_{{name}}.ipynb', record=f'{RECORDS}/train_{{name}}.json'
    params: parameters=train_parameters
    threads: THREADS['train']
    shell: RUN

rule evaluate:
    input: f'{RECORDS}/data.json', f'{RECORDS}/train_{{name}}.json', f'{RUNS}/train/{{name}}/model_final.pth', notebook='nbs/experiments/evaluate.ipynb'
    output: executed=f'{RUNS}/evaluate_{{name}}.ipynb', record=f'{RECORDS}/evaluate_{{name}}.json'
    params: parameters=evaluate_parameters
    threads: THREADS['evaluate']
    shell: RUN

for figure, files in FIGURE_FILES.items():
    rule:
        name: figure
        input: EVERY_RECORD, notebook=f'nbs/figures/{figure}.ipynb'
        output: [f'{FIGURES}/{file}' for file in files], executed=f'{RUNS}/figures/{figure}.ipynb'
        params: parameters=json.dumps(dict(profile=PROFILE, out=FIGURES))
        shell: RUN
