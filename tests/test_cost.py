"""What a sample ratio costs: measured rows are sensible, settings come in turn, and the table shows records and nothing else."""
import json, signal, subprocess
import numpy as np, papermill, pytest, torch
from mimdet import cost
from mimdet.core import MimdetError, read_json, read_record, write_json
from mimdet.recipes import parameter_count
from conftest import ROOT
from synthetic import record

TINY, TINY2, BASELINE = 'mimdet_tiny_v1_sr0.5_3x', 'mimdet_tiny_v2_sr0.5_3x', 'benchmarking_tiny_25ep'

def notebook(path, **parameters):
    papermill.execute_notebook(ROOT/'nbs'/path, None, parameters, kernel_name='python3', progress_bar=False, cwd=ROOT)

# --- measuring ---

@pytest.mark.parametrize('recipe', [TINY, TINY2])
def test_inference(recipe):
    rows = [cost.forward_cost(recipe, ratio, 64, 96, 'cpu', repeats=2, batch=2) for ratio in (.26, .5, 1.)]
    assert [row['tokens'] for row in rows] == [int(24*ratio) for ratio in (.26, .5, 1.)] == sorted(row['tokens'] for row in rows)
    for row in rows:
        assert row['parameters'] == parameter_count(recipe) and row['detections'] > 10
        assert (row['height'], row['width'], row['batch'], row['device'], row['threads']) == (64, 96, 2, 'cpu', torch.get_num_threads())
        assert len(row['seconds']) == len(row['backbone_seconds']) == 2 and all(0 < b < s for b, s in zip(row['backbone_seconds'], row['seconds']))
        assert 0 < row['memory_mb']['before'] and row['memory_mb']['model'] <= row['memory_mb']['peak']

def test_ratio_of_the_recipe():
    assert cost.forward_cost('mimdet_tiny_v1_sr0.25_3x', None, 64, 64, 'cpu', 1)['tokens'] == 4

def test_padding_counts():
    "The encoder's share is one of the padded batch: 70 x 100 pixels are padded to 80 x 112."
    assert cost.forward_cost(TINY, .5, 70, 100, 'cpu', 1)['tokens'] == int(5*7*.5)

@pytest.mark.parametrize('recipe', [TINY, TINY2])
def test_checkpointing_keeps_the_losses(recipe):
    kept, again = (cost.training_cost(recipe, .25, checkpointing, 2, 'cpu', 'fp32', steps=2, height=64, width=64, warmup=1) for checkpointing in (False, True))
    assert kept['losses'] == again['losses'] and len(set(kept['losses'])) == 3 # each step changes something
    assert (kept['tokens'], kept['ratio'], kept['parameters'], len(kept['seconds'])) == (4, .25, parameter_count(recipe), 2)
    assert (kept['checkpointing'], again['checkpointing'], kept['precision']) == (False, True, 'float32')

def test_baseline():
    row = cost.training_cost(BASELINE, device='cpu', batch=1, steps=1, height=64, width=96, warmup=0)
    assert (row['height'], row['width'], row['tokens'], row['ratio'], row['checkpointing']) == (128, 128, 64, 1., False)

@pytest.mark.parametrize('arguments, message', [(('mimdet_tiny_v1',), 'unknown recipe'), ((TINY, 0.), 'outside'), ((BASELINE, .5), 'has no sample ratio'), ((TINY, .5, 64, 64, 'abacus'), 'not available')])
def test_complaints(arguments, message):
    with pytest.raises(MimdetError, match=message) as e: cost.forward_cost(*arguments)
    assert '\n' not in str(e.value)

# --- in a process of its own, in turn ---

def test_peak_is_that_of_one_process():
    "What the parent holds is not counted."
    ballast = np.ones(2**27) # 1 GB
    row = cost.in_fresh_process('forward_cost', 1, recipe=TINY, ratio=.5, height=64, width=64, device='cpu', repeats=1)
    assert cost.memory_mb()['now'] > row['memory_mb']['peak'] + 500 and row['threads'] == 1
    del ballast

def test_out_of_memory_is_a_result(monkeypatch, capsys):
    for error in (torch.OutOfMemoryError('CUDA out of memory'), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        def fail(**setting): raise error
        monkeypatch.setattr(cost, 'forward_cost', fail)
        cost._answer('forward_cost', '{}')
        assert json.loads(capsys.readouterr().out) == dict(error='out of memory')
    def fail(**setting): raise RuntimeError('a mistake')
    monkeypatch.setattr(cost, 'forward_cost', fail)
    with pytest.raises(RuntimeError, match='a mistake'): cost._answer('forward_cost', '{}')

@pytest.mark.parametrize('code, error', [(-signal.SIGKILL, 'out of memory'), (1, None)])
def test_a_process_that_dies(monkeypatch, code, error):
    monkeypatch.setattr(subprocess, 'run', lambda *args, **kwargs: subprocess.CompletedProcess(args, code, '', 'Traceback\nValueError: bad luck\n'))
    if error: assert cost.in_fresh_process('forward_cost', recipe=TINY) == dict(error=error)
    else:
        with pytest.raises(MimdetError, match='forward_cost of .* failed: ValueError: bad luck'): cost.in_fresh_process('forward_cost', recipe=TINY)

def test_settings_come_in_turn(monkeypatch):
    calls = []
    def measure(name, threads, ratio):
        calls.append(ratio)
        if ratio == 1: return dict(error='out of memory')
        return dict(batch=2, seconds=[float(len(calls))], memory_mb=dict(peak=10 - len(calls)))
    monkeypatch.setattr(cost, 'in_fresh_process', measure)
    rows = cost.compare('forward_cost', [dict(ratio=r) for r in (.25, .5, 1)], rounds=3)
    assert calls == [.25, .5, 1, .25, .5, .25, .5] # what did not fit is not tried again
    assert rows[0]['seconds'] == [1., 4., 6.] and rows[0]['images_per_second'] == dict(median=.5, low=.3333, high=2.) and rows[0]['memory_mb'] == dict(peak=9)
    assert rows[2] == dict(ratio=1, error='out of memory')

# --- notebooks ---

def test_experiment(tmp_path):
    notebook('experiments/cost.ipynb', mode='training', name='t', ratios=[.25], batch=dict(tiny=1), checkpointing=[True], height=64, width=64, record=str(tmp_path/'t.json'))
    made = read_record(tmp_path/'t.json')
    row, = made['metrics']['rows']
    assert (made['kind'], made['profile'], made['params']['mode'], made['hardware']['device']) == ('cost', 'cost', 'training', 'cpu')
    assert (row['recipe'], row['ratio'], row['tokens'], row['checkpointing'], row['batch']) == (TINY, .25, 4, True, 1) and row['images_per_second']['median'] > 0

def made_up(mode, **hardware):
    "Made-up numbers: two recipes, one of which has a ratio that does not fit."
    rows = []
    for recipe, speed in ((TINY, 4.), ('mimdet_large_v1_sr0.5_3x', 1.)):
        for ratio in (.25, .5, 1.):
            rate = lambda scale: dict(median=scale*speed/(1 + ratio), low=.9*scale*speed/(1 + ratio), high=1.1*scale*speed/(1 + ratio))
            rows.append(dict(recipe=recipe, ratio=ratio, height=800, width=1216, batch=2, tokens=int(3800*ratio), parameters=10**8, threads=2, seconds=[1.]*3, cpu_seconds=[1.8]*3, precision='fp32',
                             checkpointing=True, images_per_second=rate(1), backbone_images_per_second=rate(2), memory_mb=dict(before=512, model=1024, peak=2048 + 1024*ratio, reserved=4096)))
    rows[-1] = dict(recipe=rows[-1]['recipe'], ratio=1., batch=2, checkpointing=True, error='out of memory')
    made = record('cost', mode, dict(mode=mode, rounds=3, repeats=1), dict(rows=rows), profile='cost', load=.25)
    return made | dict(hardware=made['hardware'] | hardware)

def test_table(tmp_path):
    for mode, hardware in (('forward', {}), ('training', dict(gpu='Synthetic GPU'))): write_json(tmp_path/'records'/'cost'/f'{mode}.json', made_up(mode, **hardware))
    notebook('figures/table_cost.ipynb', records=str(tmp_path/'records'), out=str(tmp_path/'out'))
    assert sorted(p.name for p in (tmp_path/'out').iterdir()) == ['cost.csv', 'cost.md', 'cost.png', 'cost.svg']
    inference, training = (tmp_path/'out'/'cost.md').read_text().split('## Training')
    assert 'Synthetic CPU, 2 cores' in inference and '1.80 of 2 cores' in inference and 'commit 0123456' in inference
    assert '| 0.25 | 950 | 800 x 1216 | 2 | 3.2 (2.88 to 3.52) | 6.4 (5.76 to 7.04) | 0.9 | 2.2 | 0.5 | 100.0 |' in inference
    assert 'Synthetic GPU' in training and '| yes | fp32 | 1.6 (1.44 to 1.76) | 3.2 (2.88 to 3.52) | 2.2 | 4.0 |' in training
    assert 'Other work had' not in inference
    assert all('out of memory' in part for part in (inference, training)) and 'not run' not in inference + training
    lines = (tmp_path/'out'/'cost.csv').read_text().splitlines()
    assert len(lines) == 13 and 'images_per_second_median' in lines[0]

def test_a_busy_machine_is_said(tmp_path):
    busy = made_up('forward')
    for row in busy['metrics']['rows'][:-1]: row['cpu_seconds'] = [1.]*3
    for name, made in (('forward', made_up('forward')), ('later', busy | dict(name='later'))): write_json(tmp_path/'records'/'cost'/f'{name}.json', made)
    notebook('figures/table_cost.ipynb', records=str(tmp_path/'records'), out=str(tmp_path/'out'))
    first, second = (tmp_path/'out'/'cost.md').read_text().split('run later')
    assert 'Other work had' in second and 'Other work had' not in first and (tmp_path/'out'/'cost_later.svg').exists() # no run hides another

def test_table_without_records(tmp_path):
    notebook('figures/table_cost.ipynb', records=str(tmp_path/'records'), out=str(tmp_path/'out'))
    assert (tmp_path/'out'/'cost.md').read_text().count('not run') == 2
