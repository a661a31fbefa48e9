# A profile's jobs for snakemake; `make reproduce PROFILE=quick` calls this. mimdet.study.jobs defines the jobs:
# see nbs/study/03_jobs.ipynb. Each run also writes its executed notebook below runs/, which is not in git. A fresh
# clone has none, so everything runs there, except runs whose committed records the profile accepts.
import json, sys
sys.path.append('tools') # last: names there, such as test, are others' too
from cluster import name_jobs
from mimdet.base.core import MimdetError
from mimdet.study.jobs import inputs, made_by, read_study, recorded, targets
from mimdet.study.plan import cluster_resources, cluster_threads, nodes_for, priority

name_jobs()
gpus_per_node = int(config.get('gpus_per_node') or 0)
try:
    study = read_study(config.get('profile', 'quick'))
    nodes = {name: nodes_for(job, gpus_per_node) for name, job in study.jobs.items()}
except MimdetError as e: sys.exit(f'error: {e}')
jobs = study.jobs
# Only the records of these jobs are left, and only the records are needed.
taken = set() if config.get('anew') else recorded(study)

def files(names): return [file for name in names for file in made_by(jobs[name], taken)]

rule all:
    input: files(jobs)

for target, names in targets(study).items():
    rule:
        name: target
        input: files(names)

for name in taken:
    rule:
        name: name
        input: files([name])

for job in (job for name, job in jobs.items() if name not in taken):
    rule:
        name: job.name
        input: inputs(study, job, taken), notebook=job.notebook
        # a record stays until its next one is finished
        output: [update(file) if file == job.record else file for file in job.outputs], executed=job.executed
        params:
            parameters=json.dumps(job.parameters | (dict(nodes=nodes[job.name]) if nodes[job.name] > 1 else {}),
                                  sort_keys=True),
            threads=job.threads,
            gpus=f'{job.gpus} {study.gpu_share} {int(study.alone(job))}'
        threads: cluster_threads(job, gpus_per_node) if config.get('cluster') else job.threads
        priority: priority(study, job)
        resources:
            gpu_places=study.gpu_places(job), gpu_runs=min(1, job.gpus),
            **cluster_resources(study, job, limit=int(config.get('limit') or 0), gpus_per_node=gpus_per_node)
        shell: # snakemake sets both variables to the number of cores, which is larger on a cluster
            'export OMP_NUM_THREADS={params.threads} MKL_NUM_THREADS={params.threads}; python tools/run_notebook.py '
            '{input.notebook} {output.executed} {params.parameters:q} {params.gpus}'
