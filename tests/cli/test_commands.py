"The front of the commands: their list, their help, and mistakes that are answered before torch is imported."
import configparser
import gc
import inspect
import os
import shlex
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest

from arldm import command_line
from arldm.cli.commands import COMMANDS, command_list, docstring_line
from arldm.command_line import command, command_name, command_parser, examples_of, read_arguments
from arldm.core import StoryError
from elsewhere import PYTHONPATH
from processes import end, fork

INI = configparser.ConfigParser()
INI.read(Path(__file__).parents[2]/'settings.ini')
SCRIPTS = dict(line.split('=') for line in INI['DEFAULT']['console_scripts'].split())
each = pytest.mark.parametrize('script', [script for script in SCRIPTS if script != 'arldm'])
HEAVY = 'torch', 'diffusers', 'transformers', 'matplotlib'

def function(script):
    module, _, name = SCRIPTS[script].partition(':')
    return getattr(import_module(module), name)

def run(script, *words):
    "What a command answers in a process of its own, in a terminal of 80 columns; the last line names heavy modules."
    module, _, name = SCRIPTS[script].partition(':')
    code = f'''import sys
from {module} import {name}
sys.argv = {[script, *words]}
try: {name}()
finally: print([m for m in {HEAVY} if m in sys.modules])'''
    env = {**os.environ, 'PYTHONPATH': PYTHONPATH, 'COLUMNS': '80'}
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env)


@pytest.mark.parametrize('script', SCRIPTS)
def test_help_imports_nothing_heavy(script):
    answer = run(script, *['--help'][:script != 'arldm'])
    *lines, heavy = answer.stdout.splitlines()
    assert answer.returncode == 0 and heavy == '[]' and not answer.stderr
    if script == 'arldm': return
    assert lines[0].startswith(f'usage: {script} ') and 'examples:' in lines
    assert max(map(len, lines)) <= 80

@each
def test_mistakes_import_nothing_heavy(script):
    "A misspelled flag, and whatever is missing or cannot be read."
    answer = run(script, '--outt', 'x')
    assert answer.returncode == 1 and answer.stdout == '[]\n' and answer.stderr.startswith(f'{script}: unrecognized arguments: --outt')

@pytest.mark.parametrize('words, said', [
    (('arldm-train',), 'the following arguments are required: run; see arldm-train --help'),
    (('arldm-train', 'runs/x', '--preset', 'ssdi'), "no preset 'ssdi'; there are "),
    (('arldm-train', 'runs/x', '--max-train-steps', 'many'), "argument --max-train-steps: invalid int value: 'many'; see arldm-train --help"),
    (('arldm-draw', 'runs/x', '--scheduler', 'euler'), "no scheduler 'euler'; there are dpm++, unipc, ddim, pndm"),
    (('arldm-draw', 'runs/x', '--redraw', '2'), '--given, --cast and --redraw need --captions'),
    (('arldm-score', 'runs/x', '--batch-size', '0'), 'batch_size must be at least 1, got 0'),
    (('arldm-port', 'nowhere.ckpt', 'out'), 'nowhere.ckpt: expected a checkpoint or a pipeline folder, found nothing'),
    (('arldm-memory-test', '--limit', '0'), 'limit must be at least 1, got 0'),
    (('arldm-ladder', '--seed', '-1'), 'seed must be between 0 and 4294967295, got -1'),
    (('arldm-bench', 'draft'), "no benchmark 'draft'; there are data, train, draw, score, gpu")])
def test_wrong_values_import_nothing_heavy(words, said):
    answer = run(*words)
    assert answer.returncode == 1 and answer.stdout == '[]\n' and answer.stderr.startswith(f'{words[0]}: {said}')
    assert answer.stderr.count('\n') == 1

@each
def test_examples_parse(script):
    "Examples of a command are of this command, and its parser takes them."
    f = function(script).__wrapped__
    examples = examples_of(f)
    assert examples
    for line in examples:
        name, *words = shlex.split(line)
        assert name == script == command_name(f) and len(line) <= 78
        assert read_arguments(f, words).keys() == inspect.signature(f).parameters.keys()

@each
def test_every_flag_is_explained(script):
    "Flags have a help, and a default unless they are switches; headings and choices name parameters."
    f = function(script).__wrapped__
    for action in command_parser(f)._actions[1:]:
        assert action.help, action.dest
        if action.option_strings and action.nargs != 0: assert 'default: ' in action.help or action.dest in NO_DEFAULT, action.dest
    assert {*f.headings, *f.choices} <= inspect.signature(f).parameters.keys()

# what is not there unless it is named
NO_DEFAULT = {'blip', 'captions', 'tables'}


# the list

def test_the_list_has_every_command_once():
    names = [f'arldm-{name}' for names in COMMANDS.values() for name in names]
    assert sorted(names) == sorted(script for script in SCRIPTS if script != 'arldm')

@each
def test_summaries_are_short(script):
    "They stand in 80 columns beside the name."
    summary = docstring_line(SCRIPTS[script])
    assert 10 < len(summary) <= 59 and '\n' not in summary

def test_the_list_is_in_the_order_of_work(monkeypatch):
    monkeypatch.setattr('arldm.cli.commands.summaries', lambda: {script: script.upper() for script in SCRIPTS})
    text = command_list()
    assert max(map(len, text.splitlines())) <= 80
    places = [text.index(f'ARLDM-{name.upper()}') for names in COMMANDS.values() for name in names]
    assert places == sorted(places)


# the parser

@command(headings=dict(size='what'), choices=dict(size=('small', 'large'), shape=['round']))
def paint(
    shape:str,              # Its shape
    path:str|Path='here',   # Where
    *,
    size:str=None,          # How large
    # How many
    # of them, 100 %
    n:int=0,
    share:float=.5,         # Part
    wet:bool=False,         # Whether wet
    dry:bool=None,          # Whether dry; default: as you like
    at:str|Path=None,       # On what; default: paper
):
    """Paint; then wait.

    Examples:
        arldm-paint round --size small
        arldm-paint round there

    Args:
        n (int, default 0): not an example
    """

def test_arguments():
    read = lambda words: read_arguments(paint.__wrapped__, words.split())
    assert read('round') == dict(shape='round', path='here', size=None, n=0, share=.5, wet=False, dry=None, at=None)
    assert read('round x --size=large --n 3 --share 1 --wet --dry false') == dict(
        shape='round', path='x', size='large', n=3, share=1., wet=True, dry=False, at=None)
    assert read('round --dry')['dry'] is True
    for words, said in {'square': "no shape 'square'; there are round", 'round --size huge': "no size 'huge'", '': 'are required: shape',
                        'round --n x': "invalid int value: 'x'", 'round --dry maybe': "argument --dry: expected true or false, got 'maybe'", 'round --dry=': "argument --dry: expected true or false, got ''",
                        'round --at=': 'at is empty; expected a name'}.items():
        with pytest.raises(StoryError, match=said): read(words)

@pytest.mark.parametrize('columns', ['1', '2', '20'])
def test_a_narrow_terminal(columns, monkeypatch):
    "Commands start in a window of any width."
    monkeypatch.setenv('COLUMNS', columns)
    assert 'Its shape' in ' '.join(command_parser(paint.__wrapped__).format_help().split())

def test_the_list_is_named_as_it_is_called():
    assert command_name(function('arldm').__wrapped__) == 'arldm'

def test_help_text(monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    assert command_parser(paint.__wrapped__).format_help() == '''usage: arldm-paint shape [path] [options]

Paint; then wait.

arguments:
  shape                 Its shape: round
  path                  Where; default: here

what:
  --size {small,large}  How large
  --n N                 How many of them, 100 %; default: 0
  --share FLOAT         Part; default: 0.5
  --wet                 Whether wet
  --dry [BOOL]          Whether dry; default: as you like
  --at PATH             On what; default: paper

examples:
  arldm-paint round --size small
  arldm-paint round there
'''


def test_libraries_load_without_looking_for_garbage():
    "Only in a process that runs a command; afterwards garbage is looked for again, but not among what they made."
    def load():
        gc.unfreeze()
        command_line._started = False
        command_line.quiet_libraries()
        print(gc.isenabled(), gc.get_freeze_count())
        command_line._started = True
        gc.freeze = lambda: print('enabled' if gc.isenabled() else 'disabled')
        command_line.quiet_libraries()
        print(gc.isenabled())
    assert end(*fork(load)) == (0, ['True 0', 'disabled', 'True'])

def test_warnings_after_a_command(monkeypatch, capsys):
    "Only the warnings of a command get its name: in a notebook, where it ran in the same process, later ones do not."
    @command
    def warn():
        "Warn."
        warnings.warn('odd')
    before = warnings.showwarning
    monkeypatch.setattr(sys, 'argv', ['arldm-warn'])
    warn()
    assert 'arldm-warn: note: odd' in capsys.readouterr().err and warnings.showwarning is before
