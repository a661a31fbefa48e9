"""A training killed at a random step and resumed ends with the weights of one that ran through, bit for bit."""
import json, math, random, shutil, signal, subprocess, time
import pytest, torch
from conftest import SHORT, logged, program, run_command, spec
from mimdet.training.commands import mimdet_train
from mimdet.recipes import recipe

STEPS, PERIOD = 12, 2

def arguments(emoji, out, *more):
    length = [f'schedule.iterations={STEPS}', f'train.checkpoint_period={PERIOD}']
    return [*length, *SHORT, '--dataset', spec(emoji['train']), '--output', str(out), *more]

def weights(out): return torch.load(out/'model_final.pth', weights_only=True)['model']

def test_killed_and_resumed(emoji, tmp_path):
    whole = run_command('mimdet_train', *arguments(emoji, tmp_path/'whole'))
    assert whole.returncode == 0, whole.stderr
    step = random.randrange(PERIOD, STEPS - 1)
    command = [program('mimdet_train', warm=False), *arguments(emoji, tmp_path/'cut')]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while killed.poll() is None and max(logged(tmp_path/'cut'), default=-1) < step: time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path/'cut'/'model_final.pth').exists(), f'killed too late, at step {step}'
    resumed = run_command('mimdet_train', *arguments(emoji, tmp_path/'cut', '--resume'))
    assert resumed.returncode == 0, resumed.stderr
    assert logged(tmp_path/'cut') == list(range(STEPS)), 'each step is logged once'
    one, other = weights(tmp_path/'whole'), weights(tmp_path/'cut')
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, f'killed at step {step}: {different}'

def test_second_run_needs_resume(call, trained, emoji):
    options = [*SHORT, '--dataset', spec(emoji['train']), '--output', trained]
    again = call(mimdet_train, 'schedule.iterations=3', *options)
    assert again.returncode == 2 and 'resume it, or choose another output folder' in again.stderr

def test_resume_says_what_changed(call, trained, emoji, tmp_path):
    "Another configuration is refused, until told that it is meant; then the new one counts from the next step on."
    out = tmp_path/'out'
    shutil.copytree(trained, out)
    before = (out/'config.yaml').read_text()
    options = ['schedule.iterations=5', 'optimizer.lr=0.001', *SHORT,
               '--dataset', spec(emoji['train']), '--output', out, '--resume']
    refused = call(mimdet_train, *options)
    assert refused.returncode == 2 and 'optimizer.lr: 0.00025' in refused.stderr
    assert '-> 0.001; schedule.iterations: 3 -> 5' in refused.stderr
    assert (out/'config.yaml').read_text() == before
    done = call(mimdet_train, *options, '--allow-changes')
    assert done.returncode == 0, done.stderr
    rates = [json.loads(line)['lr'] for line in (out/'metrics.jsonl').read_text().splitlines()]
    encoder = 0.001/recipe('mimdet_tiny_v1_sr0.5_3x').lr_factor # the largest group of parameters, whose rate is logged
    expected = [encoder*(1 + math.cos(math.pi*step/5))/2 for step in (3, 4)]
    assert len(rates) == 5 and rates[3:] == pytest.approx(expected)

def test_a_refused_resume_leaves_the_run_as_it_was(call, trained, emoji, tmp_path):
    out = tmp_path/'out'
    shutil.copytree(trained, out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    options = [*SHORT, '--dataset', spec(emoji['train']), '--output', out, '--resume', '--allow-changes']
    deeper = call(mimdet_train, 'schedule.iterations=5', 'model.backbone.bottom_up.depth=5', *options)
    assert deeper.returncode == 2 and 'does not fit' in deeper.stderr
    fewer = call(mimdet_train, 'schedule.iterations=2', *options)
    assert fewer.returncode == 2 and 'has done 3 iterations already' in fewer.stderr
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    half = call(mimdet_train, 'schedule.iterations=4', 'model.amp=fp16', *options)
    assert half.returncode == 0, 'another precision is a change like others'

def test_changed_weights_are_a_change(call, emoji, tmp_path):
    "The same path with another content is noticed."
    options = ['schedule.iterations=1', *SHORT, '--dataset', spec(emoji['train'])]
    def start(seed): return call(mimdet_train, *options, '--output', tmp_path/'start', '--seed', seed)
    def goes_on():
        first = tmp_path/'start'/'model_final.pth'
        return call(mimdet_train, *options, '--output', tmp_path/'out', '--resume', '--init', first)
    assert start(0).returncode == 0 and goes_on().returncode == 0
    shutil.rmtree(tmp_path/'start')
    assert start(1).returncode == 0
    assert 'train.init_checkpoint' in goes_on().stderr

def test_evaluation_leaves_training_alone(trained, emoji, tmp_path):
    "Evaluating after each step changes no weight, and every result is logged, the last one too."
    out = tmp_path/'watched'
    options = [option for option in SHORT if not option.startswith('train.eval_period')]
    data = ['--dataset', spec(emoji['train']), '--val', spec(emoji['val'])]
    done = run_command('mimdet_train', 'schedule.iterations=3', 'train.eval_period=1', *options, *data, '--output', out)
    assert done.returncode == 0, done.stderr
    one, other = weights(trained), weights(out)
    assert not [name for name in one if not torch.equal(one[name], other[name])]
    lines = [json.loads(line) for line in (out/'metrics.jsonl').read_text().splitlines()]
    assert sum('bbox/AP' in line for line in lines) == 3
