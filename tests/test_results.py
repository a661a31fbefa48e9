"""Tables and figures from made-up records: exact cells, the same bytes twice, digests, and refusal of records that do
not belong together."""
import json, os, re, shutil, subprocess, sys, warnings
from pathlib import Path
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import pandas as pd, papermill, pytest
from papermill.exceptions import PapermillExecutionError
import mimdet.study.figures as plots
from mimdet.base.core import MimdetError, read_json, write_json
from mimdet.study.figures import captions_of, save_figure, smooth, training_curves
from mimdet.base.look import sampled_view
from mimdet.recipes import PUBLISHED
from mimdet.study.tables import (ablation_table, ensemble_table, main_table, published, ratio_table,
                                 sampling_spread, sampling_table)
from mimdet.study.pages import caption, digest, escape, latex, markdown, read_digest, save_table, write_table
from mimdet.study.cost import cost_of
from mimdet.study.encoder import encoder_use, ordered
from mimdet.study.records import load_records, models, runs_frame, records_of_models
from mimdet.study.statistics import mean_and_sd
from synthetic import (ABLATION_ROWS, MAIN_ROWS, RATIO_ROWS, cost, evaluate, evaluated, example, pretrain, row, scene,
                       study, train, write)

ROOT = Path(__file__).resolve().parent.parent
RECORDS = {
    'ap_over_ratio': (RATIO_ROWS, ()),
    'ap_over_cost': (RATIO_ROWS, ('cost',)),
    'ap_by_size': (RATIO_ROWS, ()),
    'spread': (RATIO_ROWS, ()),
    'sampling': (RATIO_ROWS, ()),
    'training_curves': (MAIN_ROWS, ('pretrain',)),
    'predictions': None,
    'what_it_sees': None,
    'reconstructions': None,
}
FIGURES = [*RECORDS]
STUDY = study() # which no test changes
COCO = dict(dataset=dict(name='coco_2017_val', images=dict(train=117266, val=5000)))

def drawn(name, records=None):
    "A figure of the made-up study."
    records, chosen = records or STUDY, RECORDS[name]
    return getattr(plots, name)(records_of_models(records, chosen[0], chosen[1]) if chosen else records)

def only(records):
    "The one row of the table of records of one model."
    table = ratio_table(records).page
    assert len(table) == 1
    return table.iloc[0]

def number(table, **where):
    "The one cell of a table for machines."
    cells = table.cells
    for column, value in where.items(): cells = cells[cells[column] == value]
    assert len(cells) == 1, cells
    return cells.iloc[0]

# --- cells ---

def test_one_number():
    assert only([train('a'), evaluate('a', [row(.5, 31.06, 25.0)])])['@0.5'] == '31.1 / 25.0 (n=1)'

def test_samplings_are_averaged_and_their_spread_stands_apart():
    records = [train('a'), evaluate('a', [row(.5, box, box - 5, seed=s) for s, box in enumerate((30, 31, 32))])]
    assert only(records)['@0.5'] == '31.0 / 26.0 (n=1)'
    assert sampling_spread(records)['@0.5'].tolist() == ['1.00 / 1.00 (3 samplings)']
    cell = number(ratio_table(records), column='@0.5', task='box')
    assert (cell['mean'], cell['n'], cell['sampling_sd'], cell['samplings']) == (31, 1, 1, 3)
    assert pd.isna(cell['sd'])

def test_spread_is_over_trainings():
    records = [train('a', seed=0), train('a', seed=1),
               evaluate('a', [row(.5, 30, 20), row(.5, 32, 20, seed=1)]),
               evaluate('a', [row(.5, 35, 20)], seed=1)]
    cells = only(records)
    assert cells['@0.5'] == '33.0 ± 2.8 / 20.0 ± 0.0 (n=2)' and cells['trainings'] == '2'

@pytest.mark.parametrize('values, mean, sd, sampling_sd', [
    ([(0, 30)], 30, None, None),
    ([(0, 30), (0, 32)], 31, None, 2**.5),
    ([(0, 30), (1, 32)], 31, 2**.5, None),
    ([(0, 30), (0, 32), (1, 35), (1, 35), (1, 35)], 33, 8**.5, 1.),
    ([(0, None)], None, None, None),
    ([(0, 30), (0, None)], 30, None, None),
])
def test_spread(values, mean, sd, sampling_sd):
    found = mean_and_sd(pd.Series([v for _, v in values], index=[r for r, _ in values], dtype=object))
    assert found['mean'] == mean
    told = [found[k] is None or pytest.approx(found[k]) for k in ('sd', 'sampling_sd')]
    assert told == [sd is None or sd, sampling_sd is None or sampling_sd]

def test_missing_is_not_a_number():
    cells = only([train('a')])
    assert {cells[c] for c in cells.index if c.startswith('@')} == {'not run'}
    assert cells['best box AP50'] == 'not run'

def test_missing_evaluation_of_one_seed_is_told():
    records = [train('a'), train('a', seed=1), evaluate('a', [row(.5, 30, 20)])]
    assert only(records)['trainings'] == '2, 1 evaluated'

def test_a_model_that_was_not_trained_keeps_its_row():
    assert ratio_table(STUDY, ['v1_sr0.5', 'v1_sr0.75']).page['@1'].tolist()[1] == 'not run'

def test_no_value_is_not_a_missing_run():
    cells = only([train('a'), evaluate('a', [row(.5, None, 20)])])
    assert cells['@0.5'] == 'n/a / 20.0 (n=1)'
    assert cells['@1'] == 'not run' and cells['best box AP50'] == 'not run'
    assert only([train('a'), evaluate('a', [row(.5, None, None)])])['@0.5'] == 'n/a'

def test_best_is_over_ratios_without_probes_and_ensembles():
    rows = [row(.5, 30, 20), row(1., 32, 20), row(.02, 40, 18), row(.5, 50, 9, c4='stem'),
            row(.5, 51, 9, samples=4)]
    assert only([train('a'), evaluate('a', rows)])['best box AP50'] == '56.0 (n=1)'

def test_a_model_is_shown_as_it_was_trained_to_sample():
    trained = train('a', strategy='grid')
    records = [trained, evaluate('a', [row(.5, 30, 20), row(.5, 35, 20, strategy='grid')])]
    assert ratio_table(records, ['a']).page['@0.5'].tolist() == ['35.0 / 20.0 (n=1)']
    records = [trained, evaluate('a', [row(.5, 30, 20)])]
    assert ratio_table(records, ['a']).page['@0.5'].tolist() == ['30.0 / 20.0 (n=1)']

# --- published numbers ---

def test_difference_only_on_the_same_images():
    base = dict(recipe='mimdet_base_v1_sr0.5_3x')
    model, done = train('a', size='base', **base), evaluate('a', [row(1., 50, 45)])
    assert only([model, done])['difference @1'] == 'n/a (Emoji-COCO)'
    assert only([model, done | COCO])['difference @1'] == '-1.5 / -1.0 (n=1)'
    few = done | dict(dataset=dict(name='coco_2017_val', images=dict(val=8)))
    assert only([model, few])['difference @1'] == 'n/a (coco_2017_val)'
    for other in (dict(recipe='mimdet_tiny_v1_sr0.5_3x'), dict(ratio=.75)):
        assert only([train('a', **base | other), done | COCO])['difference @1'] == 'n/a (paper)'

def test_published_cells_beside_each_ratio():
    table = ratio_table(STUDY, RATIO_ROWS)
    assert table.page['published @1'].tolist() == ['49.9 / 44.7', '51.5 / 46.0', 'n/a (paper)']
    assert number(table, model='v1_sr0.5', column='published @0.25')['text'] == 'n/a (paper)'

def test_published_table_has_a_source_in_every_row():
    table = published()
    assert len(table) == 16 and table['source'].str.len().min() > 5
    swin = table[table['model'] == 'Swin-B'].iloc[0]
    assert (swin['published box AP'], swin['parameters (M)']) == ('49.2', '–')

# --- table 1 ---

def test_main_table_has_every_published_row_and_fills_none():
    table = main_table(STUDY, MAIN_ROWS).page
    assert len(table) == 10
    assert table['published model'].iloc[-1] == 'Swin-B'
    assert table['published parameters (M)'].iloc[-1] == 'n/a (paper)'
    assert table.ours.tolist() == ['v1_sr0.25', 'not run', 'v1_sr0.5', 'not run', 'benchmarking', 'not run',
                                   'not run', 'v2_sr0.5', 'not run', 'not run']
    empty = table[table.ours == 'not run']
    own = ['@1', '@train', 'AP50 @1', 'difference @1', 'parameters (M)']
    assert {*empty[own].to_numpy().flat} == {'not run'}
    assert (empty['published @1'] != 'not run').all()

def test_main_table_of_a_profile_that_names_nothing():
    assert (main_table(STUDY, []).page.ours == 'not run').all()

def test_main_table_shows_models_without_a_counterpart():
    rows = [dict(model='v1_sr1.0'), dict(published='mimdet_base_v1_sr0.5_3x', model='absent')]
    table = main_table(STUDY, rows).page
    last = table.iloc[-1][['published model', 'published @1', 'ours']]
    assert last.tolist() == ['–', 'n/a (paper)', 'v1_sr1.0']
    assert table[table.ours == 'absent']['@1'].tolist() == ['not run']

def test_main_table_refuses_an_unknown_counterpart():
    with pytest.raises(MimdetError, match="no published row has the recipe 'mimdet_huge'"):
        main_table(STUDY, [dict(published='mimdet_huge', model='v1_sr0.5')])

def test_main_table_carries_the_diagnostics():
    table = main_table(STUDY, MAIN_ROWS)
    for column in ('box AP @0.02', 'lost @0.02', 'gained @1', 'c4 moved', 'box AP, stem guess',
                   'lost, stem guess'):
        cell = number(table, ours='v1_sr0.5', column=column)
        assert cell['n'] == 2 and not pd.isna(cell['sd'])
    assert number(table, ours='benchmarking', column='lost @0.02')['text'] == 'n/a'

# --- what the encoder is worth ---

def test_encoder_use():
    rows = [*RATIO_ROWS, 'v2_sr0.5', 'no_vit', 'benchmarking', 'patchify', 'decoder0']
    use = encoder_use(STUDY, rows).page.set_index('model')
    assert use.loc['patchify', 'box AP, stem guess'] == 'n/a'
    assert use.loc['v1_sr1.0', 'c4 moved'].startswith('5') # of 1.0 itself: that at 0.25

def test_losses_are_taken_training_by_training():
    def rows(own, probe): return [row(.5, own, 1), row(.02, probe, 1), row(1., own, 1)]
    records = [train('a'), train('a', seed=1), evaluate('a', rows(30, 25)),
               evaluate('a', rows(40, 35), seed=1)]
    assert encoder_use(records).page['lost @0.02'].tolist() == ['+5.0 ± 0.0 (n=2)']

# --- table 3 ---

def test_ablations_differ_from_the_first_row():
    table = ablation_table(STUDY, ABLATION_ROWS)
    page = table.page.set_index('model')
    assert page.loc['v1_sr0.5', ['difference @train', 'difference @1']].tolist() == ['–', '–']
    assert page.loc['decoder0', '@1'] == page.loc['decoder0', 'difference @1'] == 'not run'
    assert page.loc['no_vit', '@train'] == page.loc['no_vit', '@1']
    def at(model, column): return number(table, model=model, column=column, task='box')
    here, main, difference = at('random', '@1'), at('v1_sr0.5', '@1'), at('random', 'difference @1')
    assert difference['mean'] == pytest.approx(here['mean'] - main['mean'])
    assert difference['sd'] == pytest.approx((here['sd']**2 + main['sd']**2)**.5, abs=1e-3)
    assert difference['n'] == 2

def test_ablations_of_a_main_model_that_was_not_run():
    rows = [dict(study='main model', variant='', model='absent'),
            dict(study='initialisation', variant='random', model='random')]
    page = ablation_table(STUDY, rows).page
    assert page['difference @1'].tolist() == ['not run', 'not run']
    assert page['@1'].tolist()[1] != 'not run'

def test_ablation_without_spread():
    records = [train('a'), train('b', initialisation='random'), evaluate('a', [row(.5, 30, 20)]),
               evaluate('b', [row(.5, 26, 18)])]
    page = ablation_table(records, [dict(study='', variant='', model=model) for model in 'ab']).page
    assert page['difference @train'].tolist() == ['–', '-4.0 / -2.0 (n=1)']

# --- samplings ---

def test_ensembles_against_equal_compute():
    rows = [row(.25, 30, 20), row(.25, 31, 21, samples=4), row(1., 33, 22)]
    records = [train('a'), evaluate('a', rows), cost()]
    page = ensemble_table(records).page.iloc[0]
    columns = ['k', 'tokens in all', 'ensemble', 'ensemble − one sampling', 'ensemble − pass @1']
    assert page[columns].tolist() == ['4', '100%', '31.0 / 21.0 (n=1)', '+1.0 / +1.0 (n=1)', '-2.0 / -1.0 (n=1)']
    flops = {r['ratio']: r['flops'] for r in records[-1]['metrics']['rows'] if 'tiny' in r['recipe']}
    def sampled(ratio): return flops[ratio]['encoder'] + flops[ratio]['decoder']
    assert page['GFLOPs of encoder and decoder'] == f'{4*sampled(.25)/1e9:.2f}'
    assert page['the same @1'] == f'{sampled(1.)/1e9:.2f}'
    assert ensemble_table(records[:2]).page['the same @1'].tolist() == ['not run']

def test_no_ensembles_say_so():
    assert ensemble_table([train('a')]).page.iloc[0].tolist() == ['not run']*4

def test_agreement_is_averaged_over_trainings():
    def done(seed, share):
        agreement = dict(ratio=.5, seeds=3, always=share, sometimes=.1, never=.9 - share, score_sd=.05, found_sd=.01)
        return evaluate('a', [row(.5, 30, 20)], seed=seed, sampling=[agreement])
    records = [train('a'), train('a', seed=1), done(0, .6), done(1, .7)]
    assert sampling_table(records).page.T[0].tolist()[2:] == [
        '0.5', '3', '65.0 ± 7.1% (n=2)', '10.0 ± 0.0% (n=2)', '25.0 ± 7.1% (n=2)', '1.0 ± 0.0% (n=2)',
        '0.050 ± 0.000 (n=2)']

@pytest.mark.parametrize('changes, mode, heights', [
    ({}, None, {128}),
    ({}, 'forward', {128}),
    ({}, 'training', set()),
    (dict(test_short_edge=256), None, {256}),
    (dict(decoder_depth=0), None, set()),
    (dict(sample_ratio=.25), None, {128}),
])
def test_cost_of_the_same_network_and_image(changes, mode, heights):
    records = [train('a', recipe='mimdet_tiny_v1_sr0.25_3x', changes=changes), cost(),
               cost(side=256) | dict(name='cost_256')]
    costs = cost_of(records, models(records)['a'], mode)
    assert {row['height'] for row in costs.values()} == heights

# --- captions and digests ---

def test_caption_names_what_it_must():
    text = caption(STUDY, 'Box AP.')
    for part in ('Box AP. Profile quick', 'Emoji-COCO', 'train 6000, val 500', 'Model size tiny',
                 'mimdet_tiny_v1_sr0.5_3x (400 iterations of batch 8)', 'Training seeds 0, 1',
                 'sampling seeds 0, 1, 2', 'Synthetic CPU, 2 CPU cores', '2026-01-02', '0123456', digest(STUDY)):
        assert part in text
    dirty = [r | dict(git=dict(commit='0123456789', dirty=True)) for r in STUDY]
    assert '0123456 (with changes)' in caption(dirty)
    assert 'None of this' in caption([])

def test_runs_frame():
    assert runs_frame(STUDY)['name'].tolist()[:2] == ['cost', 'evaluate_benchmarking_seed0']

def test_digest_knows_results_and_not_the_clock():
    one = [train('a'), evaluate('a', [row(.5, 30, 20)]), cost()]
    def changed(i, **more): return digest([r | more if j == i else r for j, r in enumerate(one)])
    date = one[0]['date']
    assert digest(one) == digest(one[::-1])
    assert digest(one) == changed(0, wall_seconds=1.) == changed(1, peak_memory_mb=7)
    assert digest(one) == changed(0, date=date[:11] + '23:59:59+00:00')
    rows = [dict(r, seconds=9.) for r in one[1]['metrics']['rows']]
    slower = one[1] | dict(metrics=dict(rows=rows, c4_variance=[], sampling=[]))
    assert digest([one[0], slower, one[2]]) == digest(one)
    better = evaluate('a', [row(.5, 30.001, 20)])
    others = [changed(0, date='2027' + date[4:]), changed(0, git={}), changed(1, metrics=better['metrics']),
              changed(2, metrics=dict(rows=[])), digest(one[:2])]
    assert len({digest(one), *others}) == 6

# --- files ---

def tables(records, folder):
    chosen = records_of_models(records, RATIO_ROWS)
    sections = [('Encoder', encoder_use(records, RATIO_ROWS).page, 'note')]
    save_table(ratio_table(records, RATIO_ROWS), 't', records=chosen, note='A note.', more=sections, out=folder)
    return [(folder/f't.{kind}').read_bytes() for kind in ('csv', 'md', 'tex')]

def test_tables_are_the_same_bytes_twice(tmp_path):
    assert tables(STUDY, tmp_path/'a') == tables(STUDY[::-1], tmp_path/'b')

def test_tables_are_the_same_bytes_after_another_run(tmp_path):
    "Same seeds, same machine, same day: the clock alone differs."
    again = [r | dict(wall_seconds=1.5, peak_memory_mb=1, date=r['date'].replace('03:04', '05:06'))
             for r in STUDY]
    assert tables(STUDY, tmp_path/'a') == tables(again, tmp_path/'b')

def test_records_of_other_models_change_nothing(tmp_path):
    more = [*STUDY, train('new', decoder_depth=1), evaluate('new', [row(.5, 90, 90)])]
    assert tables(STUDY, tmp_path/'a') == tables(more, tmp_path/'b')

def test_tables_hold_the_cells(tmp_path):
    csv, md, tex = (data.decode() for data in tables(STUDY, tmp_path))
    cells = pd.read_csv(tmp_path/'t.csv')
    cell = cells[(cells.model == 'v1_sr0.5') & (cells.column == '@1') & (cells.task == 'box')].iloc[0]
    assert '\r' not in csv
    assert (cell['mean'], cell['n'], cell['data set'], cell['profile']) == (38.6, 2, 'Emoji-COCO', 'quick')
    assert cell['sd'] == pytest.approx(.2828)
    assert '38.6 ± 0.3 / 31.7 ± 0.2 (n=2)' in md and '## Encoder' in md
    of_page = read_digest(tmp_path/'t.md')
    assert of_page == read_digest(tmp_path/'t.tex') == digest(records_of_models(STUDY, RATIO_ROWS))
    assert read_digest(tmp_path/'t.csv') is None
    assert r'38.6~$\pm$~0.3' in tex and r'\_' in tex
    assert r'\label{tab:t}' in tex and r'\label{tab:t-2}' in tex

def test_latex_has_no_open_command(tmp_path):
    "Braces and environments are balanced, every special character is escaped, nothing is beyond ASCII."
    tables(STUDY, tmp_path)
    comment, _, tex = (tmp_path/'t.tex').read_text().partition('\n')
    assert comment.startswith('% records: ')
    assert tex.isascii() and tex.count('\\begin{') == tex.count('\\end{')
    assert len(re.findall(r'(?<!\\){', tex)) == len(re.findall(r'(?<!\\)}', tex))
    assert not re.search(r'(?<!\\)[%#_]', tex)
    assert len(re.findall(r'(?<!\\)\$', tex)) % 2 == 0

@pytest.mark.parametrize('width, form', [(20, 'table'), (200, 'landscape')])
def test_latex_table_fits_the_page(width, form):
    tex = latex(pd.DataFrame({'a': ['x '*(width//2)], 'b_c': ['1 ± 2']}), 'What it is.', 't')
    assert re.match(rf'\\begin{{{form}}}', tex) and tex.count('What it is.') == 1
    assert ('1~$\\pm$~2' in tex) == ('longtable' in tex) == (form == 'landscape')

@pytest.mark.skipif(not shutil.which('pdflatex'), reason='there is no pdflatex here')
def test_latex_compiles(tmp_path):
    tables(STUDY, tmp_path)
    (tmp_path/'all.tex').write_text('\\documentclass{article}\\usepackage{booktabs,array,longtable,pdflscape}'
                                    '\\begin{document}\\input{t}\\end{document}')
    command = ['pdflatex', '-interaction=nonstopmode', '-halt-on-error', 'all']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors='replace')
    too_wide = [float(pt) for pt in re.findall(r'Overfull .hbox .([\d.]+)pt', done.stdout) if float(pt) > 5]
    assert done.returncode == 0 and not too_wide, done.stdout[-3000:]

@pytest.mark.parametrize('text, escaped', [
    ('a_b & 50%', r'a\_b \& 50\%'),
    ('1 ± 2 – 3', r'1 $\pm$ 2 -- 3'),
    ('a\\b {c}', r'a\textbackslash{}b \{c\}'),
    ('~^$#', r'\textasciitilde{}\textasciicircum{}\$\#'),
])
def test_escape(text, escaped): assert escape(text) == escaped

def test_markdown_escapes_its_own_sign():
    assert markdown(pd.DataFrame({'a': ['x|y']})).splitlines()[-1] == r'| x\|y |'

def test_write_table_of_anything(tmp_path):
    "As table_cost has it: no page, no sections."
    paths = write_table(pd.DataFrame({'a': [1, 2]}), tmp_path/'t', caption='What it is.')
    assert [p.name for p in paths] == ['t.csv', 't.md', 't.tex']
    assert paths[0].read_text() == 'a\n1\n2\n'

DRAW = '''import sys
from pathlib import Path
sys.path.append(sys.argv[2])
import matplotlib
matplotlib.use('Agg')
import mimdet.study.figures as p
from test_results import FIGURES, STUDY, drawn
for f in FIGURES: p.save_figure(drawn(f), f, records=STUDY, out=sys.argv[1])'''

def test_figures_are_the_same_bytes_in_two_processes(tmp_path):
    for name, seed in (('a', '1'), ('b', '2')):
        command = [sys.executable, '-c', DRAW, tmp_path/name, ROOT/'tests']
        subprocess.run(command, check=True, env=os.environ | dict(PYTHONHASHSEED=seed))
    files = sorted(p.name for p in (tmp_path/'a').iterdir())
    assert len(files) == 2*len(FIGURES)
    assert [n for n in files if (tmp_path/'a'/n).read_bytes() != (tmp_path/'b'/n).read_bytes()] == []
    assert {read_digest(p) for p in (tmp_path/'a').iterdir()} == {digest(STUDY)}

def test_a_figure_without_records_has_no_digest(tmp_path):
    save_figure(plt.figure(), 'f', out=tmp_path)
    assert [read_digest(tmp_path/f'f.{kind}') for kind in ('png', 'svg')] == [None, None]

# --- figures ---

@pytest.fixture
def strict():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        warnings.filterwarnings('ignore', message='__array__ implementation') # pycocotools 2.0.11 with numpy 2
        yield
    plt.close('all')

@pytest.mark.parametrize('name', FIGURES)
def test_figures_draw_without_warnings(name, tmp_path, strict):
    save_figure(drawn(name), 'figure', out=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['figure.png', 'figure.svg']

@pytest.mark.parametrize('name', FIGURES)
def test_text_is_inside_the_figure_and_apart(name, strict):
    "No label is cut off at the edge, no tick, title or axis label overlaps another of its axes, and none is tiny."
    fig = drawn(name)
    fig.canvas.draw()
    frame = fig.bbox
    legends = [*fig.legends, *(ax.get_legend() for ax in fig.axes if ax.get_legend())]
    for box in (legend.get_window_extent() for legend in legends):
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1
    for ax in fig.axes:
        limits = (ax.xaxis, ax.viewLim.intervalx), (ax.yaxis, sorted(ax.viewLim.intervaly))
        ticks = [t.label1 for axis, (low, high) in limits for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
        texts = [t for t in (*ticks, ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label)
                 if t.get_text() and t.get_visible() and ax.axison]
        boxes = [(t, t.get_window_extent()) for t in texts]
        for i, (t, box) in enumerate(boxes):
            assert t.get_fontsize() >= 6, t
            assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1, t
            assert not [u for u, other in boxes[i + 1:] if box.overlaps(other)], t

@pytest.mark.parametrize('name', FIGURES)
def test_figures_name_what_they_lack(name):
    with pytest.raises(MimdetError, match='no (evaluate|pretrain|train)'): getattr(plots, name)([])

def test_figures_of_few_records(strict):
    "A figure stands with what there is: one training, one ratio, an empty prediction, a ratio that one image lacks."
    alone = example(0, (.5, 1.))
    alone['views'][0]['predictions'] = []
    records = [train('a'), evaluate('a', [row(.5, 30, 20)], [alone, example(1, (.5,))])]
    for name in set(FIGURES) - {'reconstructions'}: getattr(plots, name)(records)
    training_curves([pretrain()])

@pytest.mark.parametrize('ap', [0., None])
def test_figures_of_nothing_found(ap, strict):
    rows = [row(.5, ap, ap), row(1., ap, ap), row(.02, ap, ap), row(.5, ap, ap, c4='stem'),
            row(.25, ap, ap, samples=4)]
    for name in FIGURES[:5]: getattr(plots, name)([train('a'), evaluate('a', rows), cost()])

def test_figures_of_a_model_that_samples_nothing(strict):
    records = records_of_models(STUDY, ['benchmarking', 'no_vit', 'v1_sr0.5'], ('cost',))
    for name in FIGURES[:6]: getattr(plots, name)(records)

def test_figures_of_many_models(strict):
    "More models than colours: dashes tell them apart."
    records = [r for i in range(9) for r in (train(f'm{i}', i/10 + .1),
                                             evaluated(f'm{i}', i/10 + .1, 0, 30 + i, 3, 20, 15))]
    looks = plots.line_styles(ordered(records))
    assert len({(look['color'], look['linestyle']) for look in looks.values()}) == 9
    for name in FIGURES[:6]: getattr(plots, name)(records)

def test_every_line_has_the_colour_of_its_model():
    records = records_of_models(STUDY, RATIO_ROWS, ('cost',))
    looks = plots.line_styles(ordered(records))
    for name in ('ap_over_ratio', 'ap_over_cost', 'ap_by_size'):
        handles, labels = getattr(plots, name)(records).axes[0].get_legend_handles_labels()
        lines = [handle[0] if isinstance(handle, tuple) else handle for handle in handles]
        colours = {label: line.get_color() for line, label in zip(lines, labels)
                   if not label.endswith('of the tokens')}
        assert colours == {look['label']: look['color'] for look in looks.values()}
    plt.close('all')

def test_points_stand_at_their_values():
    ax = drawn('ap_over_cost').axes[0]
    rows = {r['ratio']: r['flops']['total']/1e9 for r in cost()['metrics']['rows'] if 'tiny' in r['recipe']}
    assert ax.lines[0].get_xdata().tolist() == sorted(rows.values())
    plt.close('all')

def test_captions_tell_models_apart():
    names = captions_of(ordered(STUDY))
    assert len({*names.values()}) == len(names) and names['benchmarking'] == 'benchmarking'
    assert captions_of(ordered(records_of_models(STUDY, RATIO_ROWS)))['v1_sr0.5'] == 'trained at 50%'

def test_sampled_view_shows_the_kept_tokens_alone():
    image, _ = scene(0)
    seen = (sampled_view(image, [0, 63], (8, 8)) == image).all(-1)
    assert seen[:16, :16].all() and seen[-16:, -16:].all()
    assert seen[16:112, 16:112].mean() < .01

def test_smooth_keeps_mean_level():
    assert smooth([2.]*20, 7).tolist() == [2.]*20 and len(smooth([1.], 9)) == 1

# --- records that do not belong together ---

def broken(records, message, rows=()):
    with pytest.raises(MimdetError, match=message): ratio_table(records, rows)

def test_nothing_trained(): broken([pretrain()], 'no train record')

def test_evaluation_without_training():
    broken([train('a'), evaluate('b', [row(.5, 1, 1)])],
           "'evaluate_b_seed0' belongs to the training run 'train_b_seed0', which has no record")

def test_measured_twice():
    broken([train('a'), evaluate('a', [row(.5, 1, 1), row(.5, 2, 2)])],
           'measured twice: run train_a_seed0, .*ratio 0.5')

def test_no_rows():
    broken([train('a'), evaluate('a', []) | dict(metrics={})],
           "evaluate record 'evaluate_a_seed0' has no metrics.rows")

def test_row_without_masks():
    without = {k: v for k, v in row(.5, 1, 1).items() if k != 'segm'}
    broken([train('a'), evaluate('a', [without])], "no 'segm' in row 0")

def test_no_ratio():
    without = train('a') | dict(params=dict(fill='stem', initialisation='mae', recipe='x', seed=0))
    broken([without], "train record 'train_a_seed0' has no params.sample_ratio")

def test_other_settings_in_one_model():
    broken([train('a'), train('a', seed=1, lr=1e-3)],
           "'train_a_seed0' and 'train_a_seed1' are both of the model 'a' and differ in params.lr")

def test_the_same_seed_twice():
    broken([train('a'), train('a') | dict(name='train_a_again')], "with the same seed")

def test_other_data():
    one = [train('a'), evaluate('a', [row(.5, 1, 1)])]
    other = [train('b', .25), evaluate('b', [row(.5, 1, 1)]) | dict(dataset=dict(name='other'))]
    broken(one + other, 'are on different data')

def test_other_weights():
    done = evaluate('a', [row(.5, 1, 1)]) | dict(weights={'in': 'old'})
    broken([train('a') | dict(weights=dict(out='new')), done], 'used different weights')

def test_broken_curve():
    record = train('a')
    record['extra']['curves']['loss_mask'].pop()
    with pytest.raises(MimdetError, match="no complete curve 'loss_mask'"): training_curves([record])

def test_selection_goes_with_the_weights():
    records = [
        pretrain() | dict(weights=dict(out='1')),
        pretrain('pretrain_other') | dict(weights=dict(out='2')),
        train('a') | dict(weights={'in': '1', 'out': '3'}),
        evaluate('a', [row(.5, 1, 1)]),
        train('b'),
        cost(),
    ]
    chosen = [r['name'] for r in records_of_models(records, ['a'], ('pretrain', 'cost'))]
    assert chosen == ['train_a_seed0', 'evaluate_a_seed0', 'pretrain_tiny', 'cost']

def test_records_from_before_a_study():
    "No name of a model, no backbone, size or depth: they follow from what there is."
    old = train('a')
    newer = ('model', 'backbone', 'size', 'decoder_depth')
    old['params'] = {k: v for k, v in old['params'].items() if k not in newer}
    done = evaluate('a', [{k: v for k, v in row(.5, 30, 20).items() if k != 'samples'}])
    done['metrics'] = dict(rows=done['metrics']['rows'])
    m, = models([old]).values()
    assert (m.key, m.backbone, m.size, m.ratio) == ('a_seed0', 'mimdet', 'tiny', .5)
    assert encoder_use([old, done]).page['c4 moved'].tolist() == ['not run']
    assert only([old, done])['@0.5'] == '30.0 / 20.0 (n=1)'
    for name in FIGURES[:6]: getattr(plots, name)([old, done])
    plt.close('all')

def test_load_names_the_folder(tmp_path):
    with pytest.raises(MimdetError, match=f'no run records in {tmp_path}/quick'): load_records('quick', tmp_path)

def test_load_refuses_what_is_no_record(tmp_path):
    write(STUDY, tmp_path)
    assert len(load_records('quick', tmp_path)) == len(STUDY)
    bad = train('v2_sr0.5')
    bad['params']['seed'] = 9
    write_json(tmp_path/'quick'/'train_v2_sr0.5_seed0.json', bad)
    with pytest.raises(MimdetError, match='was it edited'): load_records('quick', tmp_path)
    (tmp_path/'quick'/'train_v2_sr0.5_seed0.json').write_text('{"a": ')
    with pytest.raises(MimdetError, match='train_v2_sr0.5_seed0.json is not JSON'): load_records('quick', tmp_path)

# --- the figure notebooks ---

# the others read other records
MINE = [*FIGURES, 'table_main', 'table_ratio', 'table_ablations', 'table_sampling']
ROWS = dict(table_main=MAIN_ROWS, training_curves=MAIN_ROWS, table_ablations=ABLATION_ROWS)
ROWS |= dict.fromkeys(('table_ratio', 'ap_over_ratio', 'ap_over_cost', 'ap_by_size', 'spread'), RATIO_ROWS)

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('records')
    write(STUDY, folder)
    return folder

def run_notebook(name, records, out, **more):
    "The notebook's cells in this process, as papermill would run them."
    from IPython.core.interactiveshell import InteractiveShell
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook
    shell = InteractiveShell.instance()
    parameters = dict(profile='quick', records=str(records), out=str(out)) | more
    shell.reset()
    notebook = load_notebook_node(str(ROOT/'nbs'/'figures'/f'{name}.ipynb'))
    for cell in parameterize_notebook(notebook, parameters).cells:
        if cell.cell_type == 'code': shell.run_cell(cell.source, store_history=True, silent=False).raise_error()
    plt.close('all')

@pytest.mark.parametrize('with_rows', [True, False])
@pytest.mark.parametrize('notebook', MINE)
def test_figure_notebooks(notebook, with_rows, folder, tmp_path, monkeypatch):
    "With the rows of a profile and without, each writes its own files, which name the records they come from."
    monkeypatch.chdir(ROOT)
    rows = dict(rows=ROWS[notebook]) if with_rows and notebook in ROWS else {}
    run_notebook(notebook, folder, tmp_path, **rows)
    kinds = ('csv', 'md', 'tex') if notebook.startswith('table') else ('png', 'svg')
    assert sorted(p.name for p in tmp_path.iterdir()) == [f'{notebook}.{kind}' for kind in kinds]
    if notebook != 'table_main' or with_rows:
        assert all(read_digest(p) for p in tmp_path.iterdir() if p.suffix != '.csv')

def execute(name, parameters):
    papermill.execute_notebook(ROOT/'nbs'/'figures'/f'{name}.ipynb', None, parameters, kernel_name='python3',
                               progress_bar=False, cwd=ROOT)

def test_figure_notebook_in_a_kernel(folder, tmp_path):
    execute('table_main', dict(records=str(folder), out=str(tmp_path), rows=MAIN_ROWS))
    assert (tmp_path/'table_main.csv').exists()

def test_figure_notebook_refuses_an_unknown_parameter(tmp_path):
    with pytest.raises(PapermillExecutionError, match="unknown parameter 'profil'"):
        execute('ap_over_ratio', dict(profil='quick', out=str(tmp_path/'out')))
    assert not (tmp_path/'out').exists()

# --- layers ---

@pytest.mark.parametrize('module', ['study.tables', 'study.figures'])
def test_import_leaves_torch_alone(module):
    heavy = '("torch", "timm", "detectron2")'
    code = f'import sys, json, mimdet.{module}; print(json.dumps([m for m in {heavy} if m in sys.modules]))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []

def test_recipes_quote_the_published_numbers():
    quoted = read_json(ROOT/'results'/'paper'/'published.json')['rows']
    rows = {row['recipe']: (row['box_AP'], row['mask_AP'], row['parameters_M']) for row in quoted if row['recipe']}
    assert PUBLISHED.items() <= rows.items()
