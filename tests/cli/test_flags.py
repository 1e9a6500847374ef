"Flags: hyphen and underscore, and what answers a flag that no command has."
import configparser
import importlib
import inspect
import json
from pathlib import Path

import pytest

from arldm.command_line import RENAMED, _known_flags, command_parser, read_arguments
from arldm.core import StoryError
from arldm.settings import SETTINGS, resolve

INI = configparser.ConfigParser()
INI.read(Path(__file__).parents[2]/'settings.ini')
COMMANDS = {}
for line in INI['DEFAULT']['console_scripts'].split():
    script, _, place = line.partition('=')
    module, _, function = place.partition(':')
    if script != 'arldm': COMMANDS[script] = (module, function)

def of(script): return getattr(importlib.import_module(COMMANDS[script][0]), COMMANDS[script][1])

def flags_of(script):
    "(option strings, names of positional arguments)"
    actions = command_parser(of(script))._actions
    return ([s for a in actions for s in a.option_strings if s.startswith('--')],
            [a.dest for a in actions if not a.option_strings])

def says(capsys, monkeypatch, script, *words):
    monkeypatch.setattr('sys.argv', [script, *words])
    with pytest.raises(SystemExit) as ended: of(script)()
    lines = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 1 and len(lines) == 1, lines
    assert lines[0].startswith(f'{script}: ') and lines[0].endswith(f'; see {script} --help')
    return lines[0]

@pytest.mark.parametrize('script', COMMANDS)
def test_hyphen_and_underscore(script):
    flags, positional = flags_of(script)
    assert len(flags) > 1
    for flag in flags:
        name = flag[2:]
        for form in name.replace('_', '-'), name.replace('-', '_'):
            for word, known in ((f'--{form}', flag), (f'--{form}=3', f'{flag}=3')):
                got, = _known_flags([word], flags, positional)
                assert got.replace('_', '-') == known.replace('_', '-') and got.partition('=')[0] in flags

@pytest.mark.parametrize('script', COMMANDS)
def test_only_flags_of_the_command(script):
    "A hint names what the command has."
    flags, positional = flags_of(script)
    known = {flag[2:].replace('-', '_') for flag in flags}
    for old in RENAMED:
        if old in known: continue
        with pytest.raises(StoryError) as e: _known_flags([f'--{old}'], flags, positional)
        for word in str(e.value).partition(';')[2].replace('?', ' ').split():
            if word.startswith('--'): assert word[2:].replace('-', '_') in known, e.value

@pytest.mark.parametrize('script, words, hint', [
    ('arldm-train', '--steps 5', 'did you mean --max-train-steps?'), ('arldm-draw', '--steps=5', '--num-inference-steps?'),
    ('arldm-train', '--batch 5', '--train-batch-size?'), ('arldm-draw', '--batch 5', '--batch-size?'),
    ('arldm-train', '--lr 1', '--learning-rate?'), ('arldm-train', '--weight_decay 1', '--adam-weight-decay?'),
    ('arldm-train', '--min_snr_gamma 5', '--snr-gamma?'), ('arldm-train', '--use-8bit-adam', '--optimizer adamw8bit?'),
    ('arldm-train', '--output_dir x', 'the run folder is the first argument'),
    ('arldm-train', '--pretrained_model_name_or_path x', '--model?'), ('arldm-train', '--original', '--legacy?'),
    ('arldm-train', '--resume-from-checkpoint x', 'an existing run folder is resumed'),
    ('arldm-draw', '--guidance 2', '--guidance-scale?'), ('arldm-draw', '--interval 0,1', '--guidance-interval?'),
    ('arldm-train', '--max-train 5', '--max-train-steps?'), ('arldm-train', '--stepps 3', 'unrecognized'),
    ('arldm-convert', '--side 3', '--resolution?'), ('arldm-draw', '--sedd 3', '--seed?')])
def test_did_you_mean(capsys, monkeypatch, script, words, hint):
    line = says(capsys, monkeypatch, script, *words.split())
    assert hint in line and f'unrecognized arguments: {words.split("=")[0].split()[0]}' in line

def table_of_diffusers():
    "[(flag of diffusers, what the chapter says of it)]"
    notebook = json.loads((Path(__file__).parents[2]/'nbs/cli/68_train.ipynb').read_text())
    [text] = [''.join(o['data']['text/markdown']) for cell in notebook['cells'] for o in cell.get('outputs', ())
              if ''.join(o.get('data', {}).get('text/markdown', '')).startswith('| diffusers | here |')]
    for line in text.splitlines()[2:]:
        theirs, here = line.strip('| ').split(' | ')
        for flag in theirs.split(', '): yield flag.strip('`'), here.replace('`', '')

TABLE = [*table_of_diffusers()]

def test_the_table_of_diffusers_flags():
    "Every flag that is said to be ours is one."
    flags, _ = flags_of('arldm-train')
    assert len(TABLE) == len({flag for flag, _ in TABLE}) == 60
    for theirs, here in TABLE:
        if here == 'the same names': assert theirs.replace('_', '-') in flags
        for word in here.split():
            if word.startswith('--'): assert word in flags, (theirs, here)

@pytest.mark.parametrize('flag,here', [row for row in TABLE if row[1] != 'the same names'])
def test_a_flag_of_diffusers_is_answered(capsys, monkeypatch, flag, here):
    "With its line of the table."
    said = f'did you mean {here}?' if here.startswith('--') else here
    for typed in flag, flag.replace('_', '-'):
        assert says(capsys, monkeypatch, 'arldm-train', 'run', typed) == (
            f'arldm-train: unrecognized arguments: {typed}; {said}; see arldm-train --help')

def test_what_only_diffusers_has_is_answered_where_one_trains(capsys, monkeypatch):
    assert says(capsys, monkeypatch, 'arldm-score', 'run', '--dream_training').endswith(
        'unrecognized arguments: --dream_training; see arldm-score --help')
    with pytest.raises(StoryError, match="no setting 'random_flip'; pictures are not flipped"): resolve(random_flip=True)

def test_settings_in_python():
    for old, new in dict(lr='learning_rate', steps='max_train_steps', side='resolution', batch='train_batch_size').items():
        with pytest.raises(StoryError, match=f"no setting '{old}'; did you mean {new}?"): resolve(**{old: 1})
    with pytest.raises(StoryError, match='did you mean snr_gamma=5?'): resolve(weighting='min-snr')
    assert not set(RENAMED) & set(SETTINGS)

@pytest.mark.parametrize('name', ['train_batch_size', 'gradient_accumulation_steps'])
def test_a_step_has_an_end(name):
    "A step of so many stories would fill the memory before it begins."
    with pytest.raises(StoryError, match=f'{name} must be at most 10,000, got 10,001'): resolve(**{name: 10_001})
    resolve(**{name: 10_000})

def test_many_choices_are_in_the_help_text():
    "A line of the help has 80 columns; few choices stand in braces behind the flag."
    text = ' '.join(command_parser(of('arldm-train')).format_help().split())
    assert 'one of linear, cosine, cosine_with_restarts, polynomial, constant, constant_with_warmup, legacy' in text
    assert '--optimizer {adamw,adamw8bit}' in text

def test_weighting():
    "The help shows the choices; the former name has its hint on the command line, too."
    assert '--weighting {none,p2}' in command_parser(of('arldm-train')).format_help()
    given = read_arguments(of('arldm-train'), ['run', '--weighting', 'min-snr'])
    with pytest.raises(StoryError, match='did you mean snr_gamma=5?'): resolve(weighting=given['weighting'])
