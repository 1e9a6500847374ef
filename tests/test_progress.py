"Progress: a bar where it can be redrawn, plain lines in files and pipes."
import io
import subprocess
import sys
from functools import partial

import pytest

from arldm import progress
from arldm.progress import LineFile, progress_bar
from elsewhere import PYTHONPATH


class Terminal(io.StringIO):
    def isatty(self): return True


@pytest.fixture(autouse=True)
def shown(monkeypatch): monkeypatch.setattr(progress, 'tqdm', partial(progress.tqdm, disable=False))


def test_lines_come_every_so_often():
    "The first at once, then one every ten seconds, and the last."
    now = 0.
    out = io.StringIO()
    lines = LineFile(out, 10, lambda: now)
    for step in range(36):
        now = float(step)
        lines.write(f'\rtraining: {step}/36 steps')
        lines.write('')
    lines.write('\n')
    assert out.getvalue() == ''.join(f'training: {n}/36 steps\n' for n in (0, 10, 20, 30, 35))

def test_lines_are_not_repeated():
    out = io.StringIO()
    lines = LineFile(out, 0)
    for text in ('\rone', '\rone', '\r   ', '\n', '\n'): lines.write(text)
    assert out.getvalue() == 'one\n'

def test_first_and_last_line_in_a_file():
    "Fast work has two lines, whole ones, without a carriage return or an escape sequence."
    out = io.StringIO()
    assert list(progress_bar('reading', 'stories', range(1000), file=out)) == [*range(1000)]
    first, last = out.getvalue().splitlines()
    assert first.startswith('reading: 0/1000 stories [') and last.startswith('reading: 1000/1000 stories [')
    assert not set(out.getvalue()) & {'\r', '\x1b'}

def test_the_label_says_what_belongs_to_a_step():
    out = io.StringIO()
    with progress_bar('drawing test set', 'stories', total=64, initial=12, file=out, seconds=0) as bar: bar.set_postfix_str('frame 3')
    assert 'drawing test set: 12/64 stories, frame 3 [' in out.getvalue()

def test_a_bar_in_a_terminal():
    out = Terminal()
    for _ in progress_bar('reading', 'stories', range(4), file=out): pass
    assert '\r' in out.getvalue() and out.getvalue().endswith('\n')
    assert out.getvalue().split('\r')[-1].startswith('reading: 4/4 stories |')

def test_a_notebook_gets_jupyters_bar(monkeypatch):
    import tqdm.auto
    monkeypatch.setattr(progress, '_in_notebook', lambda: True)
    monkeypatch.setattr(tqdm.auto, 'tqdm', lambda items, **options: ('jupyter', options['desc']))
    assert progress_bar('reading', 'stories', []) == ('jupyter', 'reading: ')

def test_quiet_and_short_work_show_nothing():
    out = io.StringIO()
    for _ in progress_bar('reading', 'stories', range(4), quiet=True, file=out): pass
    for _ in progress_bar('reading', 'stories', range(4), delay=60, file=out): pass
    assert out.getvalue() == ''

def test_a_command_in_a_pipe(tmp_path):
    "What a command writes into a pipe names the work and ends with the full count."
    code = '''from arldm.toy.corpus import write_toy
write_toy('raw', (3, 1, 1))
from arldm.cli.convert import convert
convert()'''
    run = subprocess.run([sys.executable, '-c', code, 'toy', 'raw', 'toy.h5'], cwd=tmp_path, capture_output=True, text=True,
                         env={'PYTHONPATH': PYTHONPATH, 'PATH': ''})
    assert run.returncode == 0 and not set(run.stderr) & {'\r', '\x1b'}, run.stderr
    drawing, converting = [[line for line in run.stderr.splitlines() if line.startswith(label)] for label in ('drawing toy albums: ', 'converting')]
    assert drawing[-1].startswith('drawing toy albums: 5/5 albums [')
    assert converting[-1].startswith('converting toy: 5/5 stories [')
