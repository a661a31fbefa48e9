"""Tables and figures from made-up records: exact cells, the same bytes twice, and refusal of records that do not belong together."""
import json, os, subprocess, sys, warnings
from pathlib import Path
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import papermill, pytest
from papermill.exceptions import PapermillExecutionError
from mimdet.core import MimdetError, read_json, write_json
from mimdet.plots import ap_over_ratio, predictions, reconstructions, sampled_view, save_figure, smooth, training_curves
from mimdet.recipes import PUBLISHED
from mimdet.results import caption, compact, encoder_use, load, markdown, published, ratio_table, runs_frame, verdict, write_table
from synthetic import evaluate, example, pretrain, row, scene, study, train, write

ROOT = Path(__file__).resolve().parent.parent
FIGURES = [ap_over_ratio, training_curves, predictions, reconstructions]

def only(records):
    "The one row of the table of records of one model."
    table = ratio_table(records)
    assert len(table) == 1
    return table.iloc[0]

# --- cells ---

def test_one_number(): assert only([train('a'), evaluate('a', [row(.5, 31.06, 25.0)])])['box AP @0.5'] == '31.1'

def test_mean_and_spread_over_samplings():
    cells = only([train('a'), evaluate('a', [row(.5, box, box - 5, seed=s) for s, box in enumerate((30, 31, 32))])])
    assert cells['box AP @0.5'] == '31.0 ± 1.0 (n=3)' and cells['mask AP @0.5'] == '26.0 ± 1.0 (n=3)'

def test_spread_over_trainings_goes_before_that_over_samplings():
    records = [train('a', seed=0), train('b', seed=1), evaluate('a', [row(.5, 30, 20), row(.5, 32, 20, seed=1)]), evaluate('b', [row(.5, 35, 20)])]
    cells = only(records)
    assert cells['box AP @0.5'] == '33.0 ± 2.8 (n=2)' and cells['trainings'] == '2'

def test_other_settings_are_other_rows():
    records = [train('a'), train('b', seed=1, lr=1e-3), evaluate('a', [row(.5, 30, 20)]), evaluate('b', [row(.5, 35, 20)])]
    assert ratio_table(records)['box AP @0.5'].tolist() in (['30.0', '35.0'], ['35.0', '30.0'])

def test_other_strategies_are_other_rows():
    table = ratio_table([train('a'), evaluate('a', [row(.5, 30, 20), row(.5, 35, 20, strategy='grid')])])
    assert dict(zip(table['sampling'], table['box AP @0.5'])) == dict(random='30.0', grid='35.0')

def test_missing_is_not_a_number():
    cells = only([train('a')])
    assert {cells[c] for c in cells.index if ' @' in c and 'published' not in c} == {'not run'} and cells['best box AP50'] == 'not run'
    assert cells['published box AP @1'] == 'n/a (paper)'

def test_missing_evaluation_of_one_seed_is_told():
    assert only([train('a'), train('b', seed=1), evaluate('a', [row(.5, 30, 20)])])['trainings'] == '2, 1 evaluated'

def test_no_value_is_not_a_missing_run():
    cells = only([train('a'), evaluate('a', [row(.5, None, 20)])])
    assert cells['box AP @0.5'] == 'n/a' and cells['box AP @1'] == 'not run' and cells['best box AP50'] == 'not run'

def test_probes_have_their_own_columns():
    cells = only([train('a'), evaluate('a', [row(.5, 30, 20), row(.02, 28, 18), row(.5, 12, 9, c4='stem')])])
    assert (cells['box AP @0.5'], cells['box AP @0.02 (probe)'], cells['mask AP without ViT (probe)']) == ('30.0', '28.0', '9.0')
    assert 'box AP @0.02' not in cells

def test_best_is_over_ratios_without_probes():
    assert only([train('a'), evaluate('a', [row(.5, 30, 20), row(1., 32, 20), row(.02, 40, 18), row(.5, 50, 9, c4='stem')])])['best box AP50'] == '56.0'

def test_published_numbers_stand_in_their_own_column():
    model = train('a', recipe='mimdet_base_v1_sr0.5_3x')
    done = evaluate('a', [row(.5, 30, 20)])
    assert only([model, done])['published box AP @1'] == 'n/a (paper)'
    on_coco = only([model, done | dict(dataset=dict(name='coco_2017_val'))])
    assert (on_coco['published box AP @1'], on_coco['published mask AP @1'], on_coco['box AP @1']) == ('51.5', '46.0', 'not run')

def test_published_table_has_a_source_in_every_row():
    table = published()
    assert len(table) == 16 and table['source'].str.len().min() > 5
    swin = table[table['model'] == 'Swin-B'].iloc[0]
    assert (swin['published box AP'], swin['parameters (M)']) == ('49.2', '–')

def test_compact_pairs_box_and_mask():
    table = compact(ratio_table([train('a'), evaluate('a', [row(.5, 30, 20), row(.75, None, None)])]))
    assert table.iloc[0][['@0.25', '@0.5', '@0.75', 'published @1']].tolist() == ['not run', '30.0 / 20.0', 'n/a', 'n/a (paper)']

@pytest.mark.parametrize('own, probe, stem, said', [
    (30, 27, 20, 'in use'), (30, 27.04, 20, 'in use'), (30, 27, 28, 'its map is used, but the stem could supply it'), (30, 27.1, 20, 'not in use'),
    (30, 33, 33, 'not in use'), (None, 3, 3, 'not run'), (30, None, 3, 'not run'), (30, 3, None, 'not run'), (2, 0, 0, 'AP too low to tell')])
def test_verdict(own, probe, stem, said): assert verdict(own, probe, stem) == said

def test_encoder_use():
    use = encoder_use(study()).set_index('run')
    assert use.loc['v1_sr0.5', ['box AP @train ratio', 'box AP @0.02', 'lost @0.02', 'box AP without ViT', 'lost without ViT', 'encoder']].tolist() == [
        '34.7', '24.1', '+10.6', '19.7', '+15.0', 'in use']
    assert use.loc['v2_sr0.5', 'encoder'] == 'not in use' and use.loc['v1_sr0.5_random', 'encoder'] == 'not run'

def test_caption_names_what_it_must():
    text = caption(study(), 'Box AP.')
    for part in ('Box AP. Profile quick', 'Emoji-COCO', 'train 6000, val 500', 'mimdet_tiny_v1 (400 iterations of batch 8)', 'Training seeds 0', 'sampling seeds 0, 1, 2',
                 'Synthetic CPU, 2 CPU cores', '2026-01-02', '0123456'): assert part in text
    dirty = [r | dict(git=dict(commit='0123456789', dirty=True)) for r in study()]
    assert '0123456 (with changes)' in caption(dirty)

def test_runs_frame(): assert runs_frame(study())['name'].tolist()[:2] == ['evaluate_v1_sr0.25', 'evaluate_v1_sr0.5']

# --- files ---

def tables(records, folder):
    paths = write_table(ratio_table(records), folder/'t', caption(records), compact(ratio_table(records)), [('Encoder', encoder_use(records), 'note')])
    return [p.read_bytes() for p in paths]

def test_tables_are_the_same_bytes_twice(tmp_path): assert tables(study(), tmp_path/'a') == tables(study()[::-1], tmp_path/'b')

def test_tables_hold_the_cells(tmp_path):
    csv, md, tex = (data.decode() for data in tables(study(), tmp_path))
    assert '\r' not in csv and len(csv.splitlines()) == 5 and 'Emoji-COCO' in csv
    assert '| 34.7 ± 0.3 (n=3) / 28.4 ± 0.2 (n=3) |' in md and '## Encoder' in md
    assert r'34.7 $\pm$ 0.3' in tex and r'\_' in tex and r'\label{tab:t}' in tex and '@1' in tex

def test_markdown_escapes_its_own_sign():
    import pandas as pd
    assert markdown(pd.DataFrame({'a': ['x|y']})).splitlines()[-1] == r'| x\|y |'

DRAW = "import sys; from pathlib import Path; sys.path.append(sys.argv[2]); import matplotlib; matplotlib.use('Agg')\nimport mimdet.plots as p; from synthetic import study\n" \
       "for f in ('ap_over_ratio', 'training_curves', 'predictions', 'reconstructions'): p.save_figure(getattr(p, f)(study()), Path(sys.argv[1])/f)"

def test_figures_are_the_same_bytes_in_two_processes(tmp_path):
    for name, seed in (('a', '1'), ('b', '2')):
        subprocess.run([sys.executable, '-c', DRAW, tmp_path/name, ROOT/'tests'], check=True, env=os.environ | dict(PYTHONHASHSEED=seed))
    files = sorted(p.name for p in (tmp_path/'a').iterdir())
    assert len(files) == 8
    assert [n for n in files if (tmp_path/'a'/n).read_bytes() != (tmp_path/'b'/n).read_bytes()] == []

# --- figures ---

@pytest.mark.parametrize('draw', FIGURES)
def test_figures_draw_without_warnings(draw, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        warnings.filterwarnings('ignore', message='__array__ implementation') # pycocotools 2.0.11 with numpy 2
        figure = draw(study())
        save_figure(figure, tmp_path/'figure')
    plt.close(figure)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['figure.png', 'figure.svg']

@pytest.mark.parametrize('draw', FIGURES)
def test_figures_name_what_they_lack(draw):
    with pytest.raises(MimdetError, match='no (evaluate|pretrain|train)'): draw([])

def test_figures_of_few_records():
    "A figure stands with what there is: one training, one ratio, an empty prediction, a ratio that one image lacks."
    alone = example(0, (.5, 1.))
    alone['views'][0]['predictions'] = []
    records = [train('a'), evaluate('a', [row(.5, 30, 20)], [alone, example(1, (.5,))])]
    for draw in (ap_over_ratio, training_curves, predictions): plt.close(draw(records))
    plt.close(training_curves([pretrain()]))

def test_figure_of_zeros():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        plt.close(ap_over_ratio([train('a'), evaluate('a', [row(.5, 0., 0.), row(1., 0., 0.)])]))

def test_sampled_view_shows_the_kept_tokens_alone():
    image, _ = scene(0)
    seen = (sampled_view(image, [0, 63], (8, 8)) == image).all(-1)
    assert seen[:16, :16].all() and seen[-16:, -16:].all() and seen[16:112, 16:112].mean() < .01

def test_smooth_keeps_mean_level(): assert smooth([2.]*20, 7).tolist() == [2.]*20 and len(smooth([1.], 9)) == 1

# --- records that do not belong together ---

def broken(records, message):
    with pytest.raises(MimdetError, match=message): ratio_table(records)

def test_nothing_trained(): broken([pretrain()], 'no train record')
def test_evaluation_without_training(): broken([train('a'), evaluate('b', [row(.5, 1, 1)])], "'evaluate_b' is of the training 'b', which has no record")
def test_measured_twice(): broken([train('a'), evaluate('a', [row(.5, 1, 1), row(.5, 2, 2)])], 'measured twice: run a, ratio 0.5')
def test_no_rows(): broken([train('a'), evaluate('a', []) | dict(metrics={})], "evaluate record 'evaluate_a' has no metrics.rows")
def test_row_without_masks(): broken([train('a'), evaluate('a', [{k: v for k, v in row(.5, 1, 1).items() if k != 'segm'}])], "no 'segm' in row 0")
def test_no_ratio(): broken([train('a') | dict(params=dict(fill='stem', initialisation='mae', recipe='x'))], "train record 'a' has no params.sample_ratio")

def test_other_data():
    broken([train('a'), train('b', .25), evaluate('a', [row(.5, 1, 1)]), evaluate('b', [row(.5, 1, 1)]) | dict(dataset=dict(name='other'))], 'are on different data')

def test_other_weights():
    broken([train('a') | dict(weights=dict(out='new')), evaluate('a', [row(.5, 1, 1)]) | dict(weights={'in': 'old'})], 'is of other weights')

def test_broken_curve():
    record = train('a')
    record['extra']['curves']['loss_mask'].pop()
    with pytest.raises(MimdetError, match="no whole curve 'loss_mask'"): training_curves([record])

def test_load_names_the_folder(tmp_path):
    with pytest.raises(MimdetError, match=f'no run records in {tmp_path}/quick'): load('quick', tmp_path)

def test_load_refuses_what_is_no_record(tmp_path):
    write(study(), tmp_path)
    assert len(load('quick', tmp_path)) == len(study())
    write_json(tmp_path/'quick'/'v2_sr0.5.json', train('v2_sr0.5') | dict(params=dict(seed=9)))
    with pytest.raises(MimdetError, match='do not match their hash'): load('quick', tmp_path)
    (tmp_path/'quick'/'v2_sr0.5.json').write_text('{"a": ')
    with pytest.raises(MimdetError, match='v2_sr0.5.json is not JSON'): load('quick', tmp_path)

# --- the figure notebooks ---

@pytest.mark.parametrize('notebook', sorted(p.stem for p in (ROOT/'nbs'/'figures').glob('*.ipynb') if p.stem != 'table_cost')) # which reads other records: test_cost
def test_figure_notebooks(notebook, tmp_path):
    write(study(), tmp_path/'records')
    parameters = dict(profile='quick', records=str(tmp_path/'records'), out=str(tmp_path/'out'))
    papermill.execute_notebook(ROOT/'nbs'/'figures'/f'{notebook}.ipynb', None, parameters, kernel_name='python3', progress_bar=False, cwd=ROOT)
    made = sorted(p.name for p in (tmp_path/'out').iterdir())
    assert made == [f'{notebook}.{kind}' for kind in (('csv', 'md', 'tex') if notebook.startswith('table') else ('png', 'svg'))]

def test_figure_notebook_refuses_an_unknown_parameter(tmp_path):
    with pytest.raises(PapermillExecutionError, match="unknown parameter 'profil'"):
        papermill.execute_notebook(ROOT/'nbs'/'figures'/'ap_over_ratio.ipynb', None, dict(profil='quick', out=str(tmp_path/'out')), kernel_name='python3', progress_bar=False, cwd=ROOT)
    assert not (tmp_path/'out').exists()

# --- layers ---

@pytest.mark.parametrize('module', ['results', 'plots'])
def test_import_leaves_torch_alone(module):
    code = f'import sys, json, mimdet.{module}; print(json.dumps([m for m in ("torch", "timm", "detectron2") if m in sys.modules]))'
    assert json.loads(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout) == []

def test_recipes_quote_the_published_numbers():
    rows = {row['recipe']: (row['box_AP'], row['mask_AP'], row['parameters_M']) for row in read_json(ROOT/'results'/'paper'/'published.json')['rows'] if row['recipe']}
    assert PUBLISHED.items() <= rows.items()
