"""What a sample ratio costs: measured rows are sensible, settings come in turn,
and the table shows records and nothing else."""
import csv, json, signal, subprocess
import numpy as np, papermill, pytest, torch
from mimdet.training import cost
from mimdet.base.core import MimdetError, write_json
from mimdet.study.records import fingerprint, read_record
from mimdet.measure.flops import PARTS, flops, describe_setting
from mimdet.recipes import parameter_count
from conftest import ROOT
from synthetic import record

TINY, TINY2, BASELINE = 'mimdet_tiny_v1_sr0.5_3x', 'mimdet_tiny_v2_sr0.5_3x', 'benchmarking_tiny_25ep'

def notebook(path, **parameters):
    papermill.execute_notebook(ROOT/'nbs'/path, None, parameters,
                               kernel_name='python3', progress_bar=False, cwd=ROOT)

# --- measuring ---

@pytest.mark.parametrize('recipe', [TINY, TINY2])
def test_inference(recipe):
    ratios = (.26, .5, 1.)
    rows = [cost.forward_cost(recipe, ratio, height=64, width=96, device='cpu', repeats=2, batch=2) for ratio in ratios]
    tokens = [row['tokens'] for row in rows]
    assert tokens == [int(24*ratio) for ratio in ratios] == sorted(tokens)
    for row in rows:
        assert row['parameters'] == parameter_count(recipe) and row['detections'] > 10
        assert (row['height'], row['width'], row['batch']) == (64, 96, 2)
        assert (row['device'], row['threads']) == ('cpu', torch.get_num_threads())
        seconds, backbone_seconds = row['seconds'], row['backbone_seconds']
        assert len(seconds) == len(backbone_seconds) == 2
        assert all(0 < b < s for b, s in zip(backbone_seconds, seconds))
        parts, total = {k: v for k, v in row['part_seconds'].items() if k != 'total'}, row['part_seconds']['total']
        assert list(parts) == list(PARTS) and all(t > 0 for times in parts.values() for t in times)
        assert np.allclose(np.sum(list(parts.values()), 0), total)
        assert all(t <= s for t, s in zip(total, seconds))
        assert 0 < row['memory_mb']['before'] and row['memory_mb']['model'] <= row['memory_mb']['peak']

def test_ratio_of_the_recipe():
    assert cost.forward_cost('mimdet_tiny_v1_sr0.25_3x', None, height=64, width=64, device='cpu',
                             repeats=1)['tokens'] == 4

def test_padding_counts():
    "The encoder's share is one of the padded batch: 70 x 100 pixels are padded to 80 x 112."
    assert cost.forward_cost(TINY, .5, height=70, width=100, device='cpu', repeats=1)['tokens'] == int(5*7*.5)

@pytest.mark.parametrize('recipe', [TINY, TINY2])
def test_checkpointing_keeps_the_losses(recipe):
    def measured(checkpointing):
        return cost.training_cost(recipe, .25, checkpointing=checkpointing, batch=2, device='cpu', amp='fp32',
                                  steps=2, height=64, width=64, warmup=1)
    kept, again = measured(False), measured(True)
    assert kept['losses'] == again['losses'] and len(set(kept['losses'])) == 3 # each step changes something
    assert (kept['tokens'], kept['ratio']) == (4, .25)
    assert (kept['parameters'], len(kept['seconds'])) == (parameter_count(recipe), 2)
    assert (kept['checkpointing'], again['checkpointing'], kept['precision']) == (False, True, 'float32')

def test_baseline():
    row = cost.training_cost(BASELINE, device='cpu', batch=1, steps=1, height=64, width=96, warmup=0)
    assert (row['height'], row['width'], row['tokens']) == (128, 128, 64)
    assert (row['ratio'], row['checkpointing']) == (1., False)
    assert cost.forward_cost(BASELINE, device='cpu', repeats=1)['part_seconds']['decoder'] == [0.] # it has none

def test_the_same_detector_each_time():
    "What is found, and so how much there is to do, depends on the weights."
    assert len({cost.forward_cost(TINY, 1., height=64, width=64, device='cpu',
                                  repeats=1)['detections'] for _ in range(2)}) == 1

@pytest.mark.parametrize('recipe, options, message', [
    ('mimdet_tiny_v1', {}, 'unknown recipe'),
    (TINY, dict(ratio=0.), 'outside'),
    (BASELINE, dict(ratio=.5), 'has no sample ratio'),
    (TINY, dict(height=64, width=64, device='abacus'), 'not available'),
])
def test_complaints(recipe, options, message):
    with pytest.raises(MimdetError, match=message) as e: cost.forward_cost(recipe, **options)
    assert '\n' not in str(e.value)

# --- in a process of its own, in turn ---

def test_peak_is_that_of_one_process():
    "What the parent holds is not counted."
    ballast = np.ones(2**27) # 1 GB
    setting = dict(recipe=TINY, ratio=.5, height=64, width=64, device='cpu', repeats=1)
    row = cost.in_fresh_process('forward_cost', 1, **setting)
    assert cost.memory_mb()['now'] > row['memory_mb']['peak'] + 500 and row['threads'] == 1
    del ballast

def test_out_of_memory_is_a_result(monkeypatch, capsys):
    for error in (torch.OutOfMemoryError('CUDA out of memory'),
                  RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        def fail(**setting): raise error
        monkeypatch.setattr(cost, 'forward_cost', fail)
        cost._answer('forward_cost', '{}')
        assert json.loads(capsys.readouterr().out) == dict(error='out of memory')
    def fail(**setting): raise RuntimeError('a mistake')
    monkeypatch.setattr(cost, 'forward_cost', fail)
    with pytest.raises(RuntimeError, match='a mistake'): cost._answer('forward_cost', '{}')

@pytest.mark.parametrize('code, error', [(-signal.SIGKILL, 'out of memory'), (1, None)])
def test_a_process_that_dies(monkeypatch, code, error):
    def dies(*args, **kwargs):
        return subprocess.CompletedProcess(args, code, '', 'Traceback\nValueError: bad luck\n')
    monkeypatch.setattr(subprocess, 'run', dies)
    if error: assert cost.in_fresh_process('forward_cost', recipe=TINY) == dict(error=error)
    else:
        with pytest.raises(MimdetError, match='forward_cost of .* failed: ValueError: bad luck'):
            cost.in_fresh_process('forward_cost', recipe=TINY)

def test_settings_come_in_turn(monkeypatch):
    calls = []
    def measure(name, threads, ratio):
        calls.append(ratio)
        if ratio == 1: return dict(error='out of memory')
        seconds = [float(len(calls))]
        return dict(batch=2, seconds=seconds, part_seconds=dict(stem=[*seconds]),
                    memory_mb=dict(peak=10 - len(calls)))
    monkeypatch.setattr(cost, 'in_fresh_process', measure)
    rows = cost.compare('forward_cost', [dict(ratio=r) for r in (.25, .5, 1)], rounds=3)
    assert calls == [.25, .5, 1, .25, .5, .25, .5] # what did not fit is not tried again
    assert rows[0]['seconds'] == [1., 4., 6.] and rows[0]['memory_mb'] == dict(peak=9)
    assert rows[0]['images_per_second'] == dict(median=.5, low=.3333, high=2.)
    assert rows[0]['part_seconds'] == dict(stem=[1., 4., 6.])
    assert rows[2] == dict(ratio=1, error='out of memory')

# --- notebooks ---

CONTRACT = {'recipe', 'size', 'backbone', 'mode', 'ratio', 'height', 'width', 'batch', 'tokens', 'parameters',
            'flops', 'fvcore_flops'}

def test_experiment(tmp_path):
    "Both modes, a recipe that is only counted, and fvcore for that one."
    notebook('experiments/cost.ipynb', mode='both', name='t', ratios=[.25], batch=dict(tiny=1),
             checkpointing=[True], height=64, width=64, analytic=[BASELINE, TINY2], analytic_ratios=[.5, 1.],
             fvcore=[BASELINE], record=str(tmp_path/'t.json'))
    made = read_record(tmp_path/'t.json')
    assert (made['kind'], made['profile']) == ('cost', 'cost')
    assert (made['params']['mode'], made['hardware']['device']) == ('both', 'cpu')
    rows = made['metrics']['rows']
    assert [(r['mode'], r['recipe'], r['ratio']) for r in rows] == [
        ('forward', TINY, .25),
        ('training', TINY, .25),
        ('analytic', BASELINE, 1.),
        ('analytic', TINY2, .5),
        ('analytic', TINY2, 1.)]
    for row in rows: assert CONTRACT <= row.keys() and row['parameters'] == parameter_count(row['recipe'])
    for row in rows[:2]:
        assert (row['tokens'], row['batch'], row['height']) == (4, 1, 64)
        assert row['images_per_second']['median'] > 0 and row['flops'] == flops(TINY, .25, height=64, width=64)
    assert rows[1]['checkpointing'] and rows[0]['part_seconds']['encoder'][0] > 0
    assert [(r['height'], r['width'], r['tokens'], 'seconds' in r) for r in rows[2:]] == [
        (128, 128, 64, False),
        (128, 256, 64, False),
        (128, 256, 128, False)]
    assert [r['fvcore_flops'] is None for r in rows] == [True, True, False, True, True]
    assert rows[2]['fvcore_flops'] == pytest.approx(rows[2]['agreement']['formula']['total'], rel=.01)

def made_up(mode, **hardware):
    """Made-up numbers: two recipes, one of which has a ratio that does not fit.
    As in records from before there were FLOPs in them."""
    rows = []
    for recipe, speed in ((TINY, 4.), ('mimdet_large_v1_sr0.5_3x', 1.)):
        for ratio in (.25, .5, 1.):
            def rate(scale):
                median = scale*speed/(1 + ratio)
                return dict(median=median, low=.9*median, high=1.1*median)
            rows.append(dict(recipe=recipe, ratio=ratio, height=800, width=1216, batch=2, tokens=int(3800*ratio),
                             parameters=10**8, threads=2, seconds=[1.]*3, cpu_seconds=[1.8]*3, precision='fp32',
                             images_per_second=rate(1), backbone_images_per_second=rate(2),
                             memory_mb=dict(before=512, model=1024, peak=2048 + 1024*ratio, reserved=4096)))
    rows[-1] = dict(recipe=rows[-1]['recipe'], ratio=1., batch=2, error='out of memory')
    if mode.startswith('training'): rows = [row | dict(checkpointing=mode != 'training') for row in rows]
    params = dict(mode=mode.split()[0], rounds=3, repeats=1, seed=0)
    made = record('cost', mode, params, dict(rows=rows), profile='cost', load=.25)
    return made | dict(hardware=made['hardware'] | hardware)

def complete(mode):
    "The same with all that the experiment adds today, and a recipe that was only counted."
    made = made_up(mode)
    for row in made['metrics']['rows']:
        parts = dict.fromkeys(PARTS, [.1]*3) | dict(encoder=[.4]*3, total=[1.]*3)
        row |= dict(describe_setting(row['recipe'], row['ratio'], 800, 1216), mode=mode.split()[0],
                    fvcore_flops=None, agreement=None)
        if 'error' not in row: row['part_seconds'] = parts
    counted = describe_setting('mimdet_base_v1_sr0.5_3x', 1.)
    agreement = dict(proposals=9, detections=9, counted=dict(total=10**12), formula=dict(total=10**12))
    made['metrics']['rows'].append(
        counted | dict(mode='analytic', batch=1, fvcore_flops=10**12, agreement=agreement))
    return made

def write(folder, **records):
    "As files, with the hashes of what they hold."
    for name, made in records.items():
        made = made | dict(name=name, git=dict(commit='0123456789'*4, dirty=False))
        write_json(folder/'cost'/f'{name}.json', made | dict(sha256=fingerprint(made)))

def table(tmp_path, **records):
    "The lines of the table that is made of records, by recipe, ratio and image; and the whole page."
    write(tmp_path/'records', **records)
    out = tmp_path/'out'
    notebook('figures/table_cost.ipynb', profile='cost', records=str(tmp_path/'records'), out=str(out))
    assert sorted(p.name for p in out.iterdir()) == ['table_cost.csv', 'table_cost.md', 'table_cost.tex']
    with open(out/'table_cost.csv') as f: rows = list(csv.DictReader(f))
    lines = {(row['recipe'], row['ratio'], row['image']): row for row in rows}
    return lines, (out/'table_cost.md').read_text()

def test_table(tmp_path):
    "Inference and training of a setting stand in one line."
    rows, page = table(tmp_path, forward=complete('forward'), training=complete('training'),
                       saving=complete('training with checkpointing'))
    assert len(rows) == 7
    row = rows[TINY, '0.25', '800 x 1216']
    assert (row['tokens'], row['parameters (M)']) == ('950', f'{parameter_count(TINY)/1e6:.1f}')
    assert (row['latency (ms an image)'], row['images/s']) == ('500', '3.2 (2.88 to 3.52)')
    assert row['peak memory (GiB)'] == '2.25'
    for kind in ('training', 'training with checkpointing'):
        assert (row[f'{kind}: images/s'], row[f'{kind}: batch']) == ('3.2 (2.88 to 3.52)', '2')
        assert f'| {kind}: images/s |' in page
    assert row["encoder's share of time"] == '40.0%'
    whole = flops(TINY, .25, height=800, width=1216)
    assert row['GFLOPs'] == f"{whole['total']/1e9:.2f}"
    assert row["encoder's share of FLOPs"] == f"{whole['encoder']/whole['total']:.1%}"
    full = rows['mimdet_large_v1_sr0.5_3x', '1', '800 x 1216']
    for column in ('images/s', 'training: images/s', "encoder's share of time"):
        assert full[column] == 'out of memory'
    assert full['published FLOPs (T), by others'] == '2.6'
    counted = rows['mimdet_base_v1_sr0.5_3x', '1', '800 x 1333']
    assert (counted['fvcore / formula'], counted['published FLOPs (T), by others']) == ('1.0000', '1.1')
    assert (counted['images/s'], counted['hardware']) == ('not run', '-')
    for words in ('1.80 of 2 cores', 'commit 0123456', 'Synthetic CPU'): assert words in page
    assert 'Other work had' not in page and '| hardware |' not in page

def test_table_of_older_records(tmp_path):
    "Without FLOPs in them, and of two machines."
    rows, page = table(tmp_path, forward=made_up('forward'), training=made_up('training', gpu='Synthetic GPU'))
    row = rows[TINY, '0.25', '800 x 1216'] # the later one, of training
    assert (row['hardware'], row['images/s']) == ('Synthetic GPU, 2 CPU cores', 'not run')
    assert row['training: images/s'] == '3.2 (2.88 to 3.52)' and 'with checkpointing' not in page
    later = ('GFLOPs', "encoder's share of FLOPs", "encoder's share of time", 'fvcore / formula')
    assert {row[k] for k in later} == {'not run'}
    for words in ('| hardware |', 'Synthetic GPU', 'out of memory'): assert words in page

def test_a_busy_machine_is_said(tmp_path):
    busy = made_up('forward')
    for row in busy['metrics']['rows'][:-1]: row['cpu_seconds'] = [1.]*3
    _, page = table(tmp_path, forward=made_up('forward'), later=busy)
    first, second = page.split('later: ')
    assert 'Other work had' in second and 'Other work had' not in first

def test_without_cost_records(tmp_path):
    "Both notebooks say so."
    records = tmp_path/'records'
    write(records, data=record('data', 'data', dict(seed=0), dict(objects=1), profile='cost'))
    notebook('figures/table_cost.ipynb', profile='cost', records=str(records), out=str(tmp_path/'out'))
    assert (tmp_path/'out'/'table_cost.csv').read_text() == 'recipe,profile\nnot run,cost\n'
    notebook('figures/cost_over_ratio.ipynb', profile='cost', records=str(records), out=str(tmp_path/'figure'))
    assert (tmp_path/'figure'/'cost_over_ratio.svg').read_text().count('<!-- not run -->') == 8

@pytest.mark.parametrize('made', [made_up, complete])
def test_figure(tmp_path, made):
    write(tmp_path/'records', **{mode: made(mode) for mode in ('forward', 'training')})
    out = tmp_path/'out'
    notebook('figures/cost_over_ratio.ipynb', profile='cost', records=str(tmp_path/'records'), out=str(out))
    assert sorted(p.name for p in out.iterdir()) == ['cost_over_ratio.png', 'cost_over_ratio.svg']
    drawn = (out/'cost_over_ratio.svg').read_text()
    assert (f'<!-- {TINY} -->' in drawn) and ('<!-- encoder -->' in drawn) == (made is complete)
