# A profile's jobs for snakemake; `make reproduce PROFILE=quick` calls this. mimdet.study.jobs defines the jobs:
# see nbs/study/03_jobs.ipynb. Each run also writes its executed notebook below runs/, which is not in git. A fresh
# clone has none, so everything runs there, except runs whose committed records the profile accepts.
import json, sys
sys.path.append('tools') # last: names there, such as test, are others' too
from cluster import name_jobs
from mimdet.base.core import MimdetError
from mimdet.study.jobs import inputs, made_by, read_study, recorded, targets
from mimdet.study.plan import CPUS_PER_GPU, cluster_memory, minutes, priority

name_jobs()
try: study = read_study(config.get('profile', 'quick'))
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
            parameters=json.dumps(job.parameters, sort_keys=True), threads=job.threads,
            gpus=f'{job.gpus} {study.gpu_share} {int(study.alone(job))}'
        threads: max(job.threads, CPUS_PER_GPU*job.gpus) if config.get('cluster') else job.threads
        priority: priority(study, job)
        resources:
            gpu=job.gpus, gpu_places=study.gpu_places(job), gpu_runs=min(1, job.gpus), nodes=1,
            runtime=min(minutes(study, job), int(config.get('limit') or 2**20)), mem_mb=cluster_memory(study, job),
            slurm_extra='--exclusive' if study.alone(job) and not job.gpus else ''
        shell:
            'OMP_NUM_THREADS={params.threads} python tools/run_notebook.py '
            '{input.notebook} {output.executed} {params.parameters:q} {params.gpus}'
