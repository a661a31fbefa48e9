"""A real SLURM on this machine, for tests: one node, started without installing a service, and ended."""
import os, shutil, socket, subprocess, time
from contextlib import contextmanager
from pathlib import Path
from browser import free_ports

CONF = Path('/etc/slurm/slurm.conf')
DAEMONS = 'munged', 'slurmctld', 'slurmd'
WHY_NOT = ('SLURM needs root here' if os.geteuid() else
           f'{CONF} is there: this machine has a cluster of its own' if CONF.exists() else
           ', '.join(f'no {name}' for name in DAEMONS if not shutil.which(name)))

CONFIG = """
ClusterName=test
SlurmctldHost={host}
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
OverTimeLimit=0
KillWait=5
NodeName={host} CPUs={cores} RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=UNLIMITED State=UP
PartitionName=short Nodes={host} MaxTime=1 State=UP
"""

@contextmanager
def slurm(folder, *, cores=2, memory=12000):
    "The environment in which SLURM's commands reach a cluster whose files are in a folder."
    folder, host = Path(folder), socket.gethostname().partition('.')[0]
    for name in ('state', 'spool'): (folder/name).mkdir(parents=True)
    folder.chmod(0o755)
    text = CONFIG.format(folder=folder, host=host, ports=free_ports(2), cores=cores, memory=memory)
    (folder/'slurm.conf').write_text(text)
    key = folder/'munge.key'
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    CONF.parent.mkdir(exist_ok=True)
    if CONF.is_symlink() and not CONF.exists(): CONF.unlink() # left by a killed test
    CONF.symlink_to(folder/'slurm.conf') # for srun inside jobs, which have no variables of SLURM's
    env = os.environ.copy()
    munge = [f'--key-file={key}', f'--socket={folder}/munge.socket', f'--pid-file={folder}/munge.pid',
             f'--log-file={folder}/munge.log', f'--seed-file={folder}/munge.seed', '--force']
    started = []
    try:
        for command in (['munged', '-F', *munge], ['slurmctld', '-D'], ['slurmd', '-D', '-N', host]):
            started.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            time.sleep(1)
        for _ in range(60):
            told = subprocess.run(['sinfo', '-h', '-o', '%T'], env=env, capture_output=True, text=True)
            if 'idle' in told.stdout: break
            time.sleep(.5)
        else: raise RuntimeError(f'the cluster does not come up: {told.stdout} {told.stderr}')
        yield env
    finally:
        subprocess.run(['scancel', '--user=root'], env=env, capture_output=True)
        for process in reversed(started):
            process.terminate()
            process.wait(20)
        CONF.unlink()
