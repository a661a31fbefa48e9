"""Several processes: the same weights as one, and an end with an error when one of them dies."""
import json, os, re, signal, socket, subprocess, time
from pathlib import Path
import psutil, pytest, torch
from conftest import logged, program, run_command, spec
from mimdet.training.commands import mimdet_train
from mimdet.base.core import read_json
from mimdet.data.emoji import EmojiConfig, make_dataset

STEPS = 2
COMMON = [f'schedule.iterations={STEPS}', 'schedule.warmup=0', 'train.log_period=1', 'train.eval_period=0',
          'data.workers=0', 'data.batch=4', 'train.fp16_compression=false',
          'optimizer.lr=0.002', 'optimizer.lr_factor=1', '--device', 'cpu'] # one rate, at which two steps lead far
FROZEN = ['model.backbone.norm=FrozenBN', 'model.roi_heads.box_head.conv_norm=FrozenBN']
ENVIRONMENT = dict(os.environ, OMP_NUM_THREADS='1')
# The losses of the heads are means over regions. With the same number of regions in each image, and all of them used,
# nothing is drawn by lot, and the mean over all images is the mean of the processes' means.
ALL_REGIONS = ['model.proposal_generator.batch_size_per_image=100000', 'model.proposal_generator.post_nms_topk=[8,8]',
               'model.roi_heads.batch_size_per_image=1000', 'model.roi_heads.positive_fraction=1.0', 'model.amp=fp32']
# Of the distance between two runs that have nothing but the recipe in common: one of them sees half of each batch.
TOLERANCE = 0.003

@pytest.fixture(scope='module')
def boxes(tmp_path_factory):
    "Boxes without masks, three in each image."
    config = EmojiConfig(categories=3, seed=5, min_count=3, max_count=3)
    made = make_dataset(tmp_path_factory.mktemp('boxes')/'emoji', config, train=16, val=2)['train']
    coco = read_json(made['json'])
    counts = {image['id']: sum(a['image_id'] == image['id'] for a in coco['annotations']) for image in coco['images']}
    coco['images'] = [image for image in coco['images'] if counts[image['id']] == 3]
    coco['annotations'] = [a | dict(segmentation=[]) for a in coco['annotations'] if counts[a['image_id']] == 3]
    path = Path(made['json']).with_name('boxes.json')
    path.write_text(json.dumps(coco))
    return f'{path}:{made["images"]}'

def arguments(output, *more): return [*COMMON, *map(str, more), '--output', str(output)]

def weights(folder):
    "All that training changes; how many batches a norm has seen is counted by some kinds of norms only."
    state = torch.load(folder/'model_final.pth', weights_only=True)['model']
    return torch.cat([v.double().flatten() for k, v in state.items() if not k.endswith('num_batches_tracked')])

def alone(output, *more):
    mimdet_train(arguments(output, *more))
    return weights(output)

def together(output, *more, command=('mimdet_train', '--num-gpus', 2)):
    name, *options = command
    done = run_command(name, *options, *arguments(output, *more), env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return weights(output)

@pytest.fixture(scope='module')
def single(boxes, tmp_path_factory):
    "Weights after training in one process, and how far away half of each batch leads."
    out, same = tmp_path_factory.mktemp('single'), ['--dataset', boxes, *ALL_REGIONS, *FROZEN]
    whole, half = alone(out/'whole', *same), alone(out/'half', *same, 'data.batch=2')
    return whole, (whole - half).norm()

def test_two_processes_are_one_with_twice_the_batch(single, boxes, tmp_path):
    whole, far = single
    assert (together(tmp_path/'two', '--dataset', boxes, *ALL_REGIONS, *FROZEN) - whole).norm() < TOLERANCE*far

def test_norms_see_the_images_of_all_processes(single, boxes, tmp_path):
    same = ['--dataset', boxes, *ALL_REGIONS]
    assert (together(tmp_path/'two', *same) - alone(tmp_path/'one', *same)).norm() < TOLERANCE*single[1]

def free_port():
    with socket.socket() as s:
        s.bind(('localhost', 0))
        return s.getsockname()[1]

def test_two_machines(single, boxes, tmp_path):
    url = f'tcp://localhost:{free_port()}'
    def command(rank):
        launch = ['--num-machines', '2', '--machine-rank', str(rank), '--dist-url', url]
        same = ['--dataset', boxes, *ALL_REGIONS, *FROZEN]
        return [program('mimdet_train'), *launch, *arguments(tmp_path/'out', *same)]
    piped = dict(env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    machines = [subprocess.Popen(command(rank), **piped) for rank in range(2)]
    (first, _), (second, _) = outputs = [machine.communicate(timeout=300) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert 'model_final.pth' in first and second == '', 'the first process speaks for all'
    whole, far = single
    assert (weights(tmp_path/'out') - whole).norm() < TOLERANCE*far

def test_torchrun_and_accumulation(single, emoji, tmp_path):
    "Masks, regions drawn by lot: two processes with two micro-batches each, or one with four, draw the same."
    norm, precision = 'model.roi_heads.mask_head.conv_norm=FrozenBN', 'model.amp=fp32'
    same = ['--dataset', spec(emoji['train']), *FROZEN, norm, precision]
    torchrun = 'torchrun', '--standalone', '--nproc-per-node', 2, '--no-python', 'mimdet_train'
    two = together(tmp_path/'two', *same, 'train.accumulate=2', command=torchrun)
    assert (two - alone(tmp_path/'one', *same, 'train.accumulate=4')).norm() < TOLERANCE*single[1]

def test_compressed_gradients(single, boxes, tmp_path):
    """They are scaled, since float16 would lose the small ones; while the scale is found,
    steps that overflow are left out."""
    whole, far = single
    compressed = together(tmp_path/'two', '--dataset', boxes, *ALL_REGIONS, *FROZEN, 'train.fp16_compression=true')
    assert compressed.isfinite().all() and (compressed - whole).norm() > TOLERANCE*far
    checkpoint = torch.load(tmp_path/'two'/'checkpoint.pth', weights_only=True)
    assert 1 < checkpoint['trainer']['scaler']['scale'] < 65536

def test_a_killed_process_ends_the_job(emoji, tmp_path):
    out = tmp_path/'out'
    steps = ['schedule.iterations=20', 'train.checkpoint_period=2']
    options = ['--dataset', spec(emoji['train']), *steps, '--num-gpus', '2']
    command = [program('mimdet_train', warm=False), *arguments(out, *options)]
    job = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while job.poll() is None and max(logged(out), default=-1) < 3: time.sleep(0.05)
    workers = [p for p in psutil.Process(job.pid).children() if any('spawn_main' in part for part in p.cmdline())]
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    _, errors = job.communicate(timeout=120)
    told = 'all processes were stopped: process [01] of 2 was killed by SIGKILL'
    assert job.returncode == 2 and re.search(told, errors.splitlines()[-1]), errors
    assert not (out/'model_final.pth').exists() and not any(p.is_running() for p in workers)
    done = logged(out)
    resumed = run_command('mimdet_train', *arguments(out, *options, '--resume'), env=ENVIRONMENT)
    assert resumed.returncode == 0, resumed.stderr
    assert logged(out) == list(range(20)) and len(done) < 20

def test_an_interrupted_job_leaves_nothing_running(emoji, tmp_path):
    out = tmp_path/'out'
    options = arguments(out, '--dataset', spec(emoji['train']), 'schedule.iterations=99', '--num-gpus', '2')
    command = [program('mimdet_train', warm=False), *options]
    job = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while job.poll() is None and not logged(out): time.sleep(0.05)
    children = psutil.Process(job.pid).children(recursive=True)
    job.send_signal(signal.SIGTERM)
    _, errors = job.communicate(timeout=120)
    assert job.returncode == 2 and 'stopped by SIGTERM' in errors.splitlines()[-1], errors
    assert not psutil.wait_procs(children, timeout=10)[1]

def test_a_mistake_in_a_process_is_told_in_one_line(emoji, tmp_path):
    options = ['--dataset', spec(emoji['train']), '--num-gpus', 2, 'data.batch=3']
    done = run_command('mimdet_train', *arguments(tmp_path/'out', *options), env=ENVIRONMENT)
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert 'mimdet_train: error: batch=3 must be a multiple of' in done.stderr
