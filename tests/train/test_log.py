"Watchers let the records pass unchanged, close what they watch, and show what they say they show."
import io, itertools, math, os, subprocess, sys, time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from arldm import progress
from arldm.progress import progress_bar
from arldm.train import log as watch
from arldm.train.log import bar, curves, cut_spikes, plot, running, smooth, tracked, watched
from arldm.train.trackers import Trackers
from elsewhere import PYTHONPATH

ROOT = Path(__file__).resolve().parents[2]
def to_board(records, folder): return tracked(records, Trackers(['tensorboard'], folder))

WRAP = {
    'watched': lambda records, folder: watched(records, lambda r: None),
    'bar': lambda records, folder: bar(records, 10),
    'no bar': lambda records, folder: bar(records, 10, disable=True),
    'plot': lambda records, folder: plot(records),
    'tracked': lambda records, folder: to_board(records, folder),
    'all': lambda records, folder: bar(to_board(plot(records), folder), 10)}
PRETEND = '''
import math
def run(first=1, last=10, trouble=None):
    for k in range(first, last + 1):
        if k == trouble: raise RuntimeError('lost')
        val = 2/k if k % 5 == 0 else math.nan
        yield dict(step=k, loss=1/k, lr=.1*k, grad_norm=.5, stories_per_s=30., val_loss=val)
'''
exec(PRETEND)

@pytest.fixture(params=WRAP)
def wrap(request, tmp_path): return lambda records: WRAP[request.param](records, tmp_path/'board')

@pytest.fixture
def shell(monkeypatch):
    "A notebook's shell of which every drawing is counted."
    class Display:
        drawn, updated, active_types, clock = [], 0, ['text/plain', 'image/png'], 0.
        def display(self, picture, display_id): self.drawn.append(picture); return self
        def update(self, picture): self.drawn.append(picture); self.updated += 1
    class Shell: display_formatter = display = Display()
    Shell.kernel, found = None, Shell()
    ipython = type('IPython', (), dict(get_ipython=staticmethod(lambda: found), display=Shell.display))
    monkeypatch.setitem(sys.modules, 'IPython', ipython)
    Shell.display.drawn.clear()
    return Shell

def python(code, **env):
    "What a fresh process says to that code."
    env = {**os.environ, 'PYTHONPATH': PYTHONPATH, 'COLUMNS': '200', 'TQDM_DISABLE': '', **env}
    done = subprocess.run([sys.executable, '-c', PRETEND + code], capture_output=True, env=env)
    return SimpleNamespace(stdout=done.stdout.decode(), stderr=done.stderr.decode())  # `text=True` would lose the \r

# passing and closing

def test_records_pass_unchanged(wrap):
    records = [*run()]
    before = [{**r} for r in records]
    got = [*wrap(iter(records))]
    assert len(got) == 10 and all(a is b for a, b in zip(got, records))
    assert str(got) == str(before)

def test_lazy(wrap):
    "No step is taken before it is asked for."
    taken = []
    def count():
        for r in run():
            taken.append(r['step'])
            yield r
    w = wrap(count())
    assert taken == []
    next(w)
    next(w)
    assert taken == [1, 2]

def test_closing_closes_what_is_watched(wrap):
    inner = run()
    w = wrap(inner)
    next(w)
    w.close()
    assert inner.gi_frame is None

def test_trouble_passes(wrap):
    got, w = [], wrap(run(trouble=4))
    with pytest.raises(RuntimeError, match='^lost$'):
        for r in w: got.append(r['step'])
    assert got == [1, 2, 3]

def test_a_failing_watcher_closes_the_run():
    inner = run()
    with pytest.raises(ZeroDivisionError): next(watched(inner, lambda r: 1/0))
    assert inner.gi_frame is None

def test_records_without_validation(wrap):
    "A record need not have a validation loss, and a plain list will do."
    records = [{k: v for k, v in r.items() if k != 'val_loss'} for r in run()]
    assert [*wrap(records)] == records


# numbers and curves

def test_running_mean():
    values = [3., 1., 4., 1., 5.]
    weights = [(1 - 1/20)**k for k in range(5)]
    said = [sum(w*v for w, v in zip(weights, values[:n][::-1]))/sum(weights[:n]) for n in range(1, 6)]
    assert smooth(values) == pytest.approx(said)
    assert [*map(running(20), values)] == smooth(values)

def colours(picture): return {c for _, c in picture.getcolors(1 << 20)}
ORANGE = 0xc8, 0x86, 0x2a, 255

def test_curves():
    with_dots, without = curves(run()), curves(run(last=4))
    assert ORANGE in colours(with_dots) and ORANGE not in colours(without)
    for odd in [], [*run(last=1)], [dict(step=1, loss=math.nan), *run(2)], [dict(step=1, loss=1.)]:
        assert curves(odd).size == with_dots.size

def axes(records, monkeypatch):
    "The axes that `curves` draws into."
    from matplotlib.figure import Figure
    found, subplots = [], Figure.subplots
    def kept(*args, **kwargs):
        made = subplots(*args, **kwargs)
        found.extend(made if hasattr(made, '__len__') else [made])
        return made
    monkeypatch.setattr(Figure, 'subplots', kept)
    curves(records)
    return found

def test_curves_show_every_validation(monkeypatch):
    "Also after a step whose loss is NaN, and the first training losses; only spikes are cut off."
    val = {100: .993, 200: 1.473, 300: 1.656}
    log = [dict(step=i, loss=.25 + 1.57/i, val_loss=val.get(i, math.nan)) for i in range(1, 301)]
    log[199]['loss'] = math.nan
    for spike in None, 90.:
        if spike: log[150]['loss'] = spike
        training, validation = axes(log, monkeypatch)
        assert validation.lines[0].get_xydata().tolist() == [[100, .993], [200, 1.473], [300, 1.656]]
        assert validation.get_ylim()[0] < .993 and validation.get_ylim()[1] > 1.656
        assert 1.82 < training.get_ylim()[1] < 2
        assert all(max(line.get_ydata()) == pytest.approx(1.82) for line in training.lines)
        labels = [text.get_text() for text in training.get_legend().get_texts()]
        assert labels == ['each step (1 above 1.82 cut off)' if spike else 'each step', 'running mean']

@pytest.mark.parametrize('losses, cut', [([.1, 9.], ''), ([1.]*98 + [3.]*2, ''), ([1.]*99 + [3.1], '1 above 1 cut off'),
                                         ([-1.]*60, ''), ([1.]*95 + [9.]*5, '')])
def test_only_spikes_are_cut_off(losses, cut):
    got, said = cut_spikes(losses)
    assert said == cut and got == ([min(x, 1.) for x in losses] if cut else losses)

def test_curves_leave_pyplot_alone():
    said = python('import sys; from arldm.train.log import curves; curves(run())\n'
                  'print("matplotlib" in sys.modules, "matplotlib.pyplot" in sys.modules)')
    assert said.stdout.split() == ['True', 'False'], said.stderr


# the plot

def test_plot_outside_a_notebook():
    said = python('import sys; from arldm.train.log import plot\nassert len([*plot(run())]) == 10\n'
                  'print("IPython" in sys.modules, "matplotlib" in sys.modules)')
    assert (said.stdout.split(), said.stderr) == (['False', 'False'], '')

def test_plot_in_a_text_terminal(shell):
    shell.display.active_types = ['text/plain']
    assert len([*plot(run())]) == 10 and not shell.display.drawn

@pytest.mark.parametrize('cost,gap', [(0., 2.), (1., 21.)])
def test_plot_waits_between_drawings(shell, monkeypatch, cost, gap):
    "At least two seconds, and twenty times as long as a drawing takes."
    clock, calls, drawn = [0.], itertools.count(), []
    def drawing(records):
        if records: drawn.append(clock[0])
        clock[0] += cost if next(calls) else 30          # the first one loads matplotlib
    monkeypatch.setattr(watch, 'curves', drawing)
    monkeypatch.setattr(watch.time, 'perf_counter', lambda: clock[0])
    w = plot(run(last=10_000))
    while clock[0] < 120:
        next(w)
        clock[0] += .5                                   # a step takes half a second
    w.close()
    gaps = [after - before for before, after in zip(drawn[:-1], drawn[1:-1])]   # the last drawing does not wait
    assert len(gaps) > 2 and min(gaps) >= gap and max(gaps) <= gap + .5

@pytest.mark.parametrize('end', ['whole', 'closed', 'trouble'])
def test_plot_ends_with_all_records(shell, monkeypatch, end):
    monkeypatch.setattr(watch, 'curves', len)
    w = plot(run(trouble=8 if end == 'trouble' else None))
    try:
        for r in w:
            if end == 'closed' and r['step'] == 7: break
    except RuntimeError: assert end == 'trouble'
    w.close()
    assert shell.display.drawn == [1, 10 if end == 'whole' else 7] and shell.display.updated

def test_plot_without_a_kernel_draws_once(shell, monkeypatch):
    "Where outputs cannot be replaced there is one, however long the run."
    monkeypatch.setattr(watch, 'curves', len)
    del shell.kernel
    assert len([*plot(run(), seconds=0)]) == 10
    assert shell.display.drawn == [10]

def test_plot_in_a_kernel(tmp_path, monkeypatch):
    "A notebook keeps one picture, that of the whole run, however often it was redrawn."
    nbclient, nbformat = pytest.importorskip('nbclient'), pytest.importorskip('nbformat')
    code = ('import itertools, types\nfrom arldm.train import log as watch\n'        # a clock that ticks whenever it is looked at
            'watch.time = types.SimpleNamespace(perf_counter=itertools.count().__next__)\n'
            'for r in watch.plot(run(last=60)): pass', 'watch.curves(run(last=60))',
            'import sys, matplotlib as m; print("matplotlib.pyplot" in sys.modules and m.pyplot.get_fignums())')
    nb, messages = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in (PRETEND, *code)]), []
    class Client(nbclient.NotebookClient):
        def process_message(self, msg, *rest):
            messages.append(msg['msg_type'])
            return super().process_message(msg, *rest)
    monkeypatch.setenv('PYTHONPATH', PYTHONPATH)
    Client(nb, timeout=120, kernel_name='python3', resources=dict(metadata=dict(path=str(tmp_path)))).execute()
    [live], [still], [figures] = (cell.outputs for cell in nb.cells[1:])
    assert messages.count('update_display_data') == 3
    assert live.output_type == 'display_data' and live.data['image/png'] == still.data['image/png']
    assert len(live.data['image/png']) < 60_000
    assert figures.text in ('False\n', '[]\n')


# the bar

def test_bar_text():
    "In a log file: two lines of a fast run, the last one whole."
    said = python('from arldm.train.log import bar\nfor r in bar(run(), 10): pass').stderr
    first, last = said.splitlines()
    assert first.startswith('training: 0/10 steps') and '\r' not in said
    loss = smooth([1/k for k in range(1, 11)])[-1]
    assert last.startswith(f'training: 10/10 steps, loss {loss:.4f} (running mean), 30.0 stories/s, val_loss 0.2000 [')

def test_bar_before_validation():
    assert 'val_loss' not in python('from arldm.train.log import bar\nfor r in bar(run(last=4), 10): pass').stderr

@pytest.fixture
def bars(monkeypatch):
    "The bars that are made; `closed` of each: steps when it was closed."
    made = []
    def make(*args, **options):
        bar = progress_bar(*args, **options, file=io.StringIO())
        close = bar.close
        def closing():
            bar.closed.append(bar.n)
            close()
        bar.close, bar.closed = closing, []
        made.append(bar)
        return bar
    monkeypatch.setattr(watch, 'progress_bar', make)
    monkeypatch.setattr(progress, 'tqdm', partial(progress.tqdm, disable=False))
    return made

def test_bar_of_a_resumed_run(bars):
    "Rate and remaining time count this session's steps only."
    w = bar(run(first=801, last=1000), 1000)
    for _ in range(5): next(w)
    assert (bars[0].initial, bars[0].n, bars[0].total) == (800, 805, 1000)
    said = bars[0].format_meter(**{**bars[0].format_dict, 'elapsed': 10., 'rate': None})
    assert said.startswith('training: 805/1000 steps') and said.endswith('[00:10<06:30]'), said   # 195 steps of 2 s are left

@pytest.mark.parametrize('trouble', [None, 3])
def test_bar_closes(bars, trouble):
    w = bar(run(trouble=trouble), 10)
    next(w), next(w)
    if trouble:
        with pytest.raises(RuntimeError): next(w)
    else: w.close()
    assert [b.closed for b in bars] == [[2]]

def test_no_bar():
    assert python('from arldm.train.log import bar\nfor r in bar(run(), 10, disable=True): pass').stderr == ''
