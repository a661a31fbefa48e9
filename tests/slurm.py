"""A real SLURM on this machine, for tests: started without installing a service, and ended.
Its partitions main and short have one node with the machine's cores; wide has two, each with a GPU by name only.
All nodes are this machine, under three names."""
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
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
OverTimeLimit=0
KillWait=5
NodeName=node1 NodeHostname={host} Port={ports[1]} CPUs={cores} RealMemory={memory} State=UNKNOWN
NodeName=node2 NodeHostname={host} Port={ports[2]} CPUs=6 RealMemory=64000 Gres=gpu:1 State=UNKNOWN
NodeName=node3 NodeHostname={host} Port={ports[3]} CPUs=6 RealMemory=64000 Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes=node1 Default=YES MaxTime=UNLIMITED State=UP
PartitionName=short Nodes=node1 MaxTime=1 State=UP
PartitionName=wide Nodes=node2,node3 MaxTime=UNLIMITED State=UP
"""
GPUS = 'NodeName=node[2-3] Name=gpu Count=1 File=/dev/zero\n'
NODES = 'node1', 'node2', 'node3'

@contextmanager
def slurm(folder, *, cores=2, memory=12000):
    "The environment in which SLURM's commands reach a cluster whose files are in a folder."
    folder, host = Path(folder), socket.gethostname().partition('.')[0]
    (folder/'state').mkdir()
    folder.chmod(0o755)
    text = CONFIG.format(folder=folder, host=host, ports=free_ports(4), cores=cores, memory=memory)
    ours = {CONF: text, CONF.with_name('gres.conf'): GPUS}
    key = folder/'munge.key'
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    CONF.parent.mkdir(exist_ok=True)
    for path, text in ours.items():
        (folder/path.name).write_text(text)
        if path.is_symlink() and not path.exists(): path.unlink() # left by a killed test
        path.symlink_to(folder/path.name) # for srun inside jobs, which have no variables of SLURM's
    env = os.environ.copy()
    munge = [f'--key-file={key}', f'--socket={folder}/munge.socket', f'--pid-file={folder}/munge.pid',
             f'--log-file={folder}/munge.log', f'--seed-file={folder}/munge.seed', '--force']
    daemons = [['munged', '-F', *munge], ['slurmctld', '-D'], *(['slurmd', '-D', '-N', node] for node in NODES)]
    started = []
    try:
        for command in daemons:
            started.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            time.sleep(1)
        for _ in range(60):
            told = subprocess.run(['sinfo', '-h', '-N', '-o', '%T'], env=env, capture_output=True, text=True)
            if told.stdout.split() == ['idle']*4: break
            time.sleep(.5)
        else: raise RuntimeError(f'the cluster does not come up: {told.stdout} {told.stderr}')
        yield env
    finally:
        subprocess.run(['scancel', '--user=root'], env=env, capture_output=True)
        for process in reversed(started):
            process.terminate()
            process.wait(20)
        for path in ours: path.unlink()
