"Trackers get every number, picture and setting of a run; one that fails is named once, and the run goes on."
import json
import math
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import accelerate.tracking
import pytest
import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.tracking import GeneralTracker
from PIL import Image

from arldm.cli.convert import convert
from arldm.cli.train import train
from arldm.core import StoryError
from arldm.settings import resolve
from arldm.toy import corpus as toy
from arldm.train.checkpoint import read_log
from arldm.train.log import tracked
from arldm.train.trackers import Trackers, tracker_names

HOW = dict(preset='tiny', resolution=16, train_batch_size=2, max_train_steps=3, checkpointing_steps=2,
           num_validation_stories=1, learning_rate=3e-3)

def run(first=1, last=10):
    for k in range(first, last + 1):
        val = 2/k if k % 5 == 0 else math.nan
        yield dict(step=k, loss=1/k, lr=.1*k, grad_norm=.5, stories_per_s=30., val_loss=val)

def events(folder):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    return accumulator.EventAccumulator(str(folder)).Reload()

def scalars(folder):
    found = events(folder/'tensorboard')
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()['scalars']}

def said_by(caught): return [str(w.message) for w in caught if str(w.message).startswith('lost ')]

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    toy.write_toy(folder/'raw', (4, 1, 1), progress=False)
    convert('toy', folder/'raw', folder/'toy.h5', quiet=True)
    return folder/'toy.h5'

class Lost(GeneralTracker):
    "A tracker that keeps what it is told, and raises in one of its methods."
    name, requires_logging_directory, tracker = 'lost', False, None
    fails, told = '', []
    def __init__(self, project): super().__init__()
    def _told(self, what, *args):
        self.told.append((what, *args))
        if what == self.fails: raise ConnectionError('no network\nat all')
    def start(self): self._told('start')
    def store_init_configuration(self, values): self._told('settings', values)
    def log(self, values, step=None): self._told('log', values, step)
    def log_images(self, values, step=None): self._told('images', values, step)
    def finish(self): self._told('finish')

@pytest.fixture
def lost(monkeypatch):
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, 'lost', Lost)
    monkeypatch.setattr(Lost, 'told', [])
    return Lost


# what is logged

def test_numbers(tmp_path):
    records = [*tracked(run(), Trackers(['tensorboard'], tmp_path))]
    logged = scalars(tmp_path)
    assert logged.keys() == {'loss', 'lr', 'grad_norm', 'stories_per_s', 'val_loss'}
    for name, points in logged.items():
        theirs = [(r['step'], r[name]) for r in records if not math.isnan(r[name])]
        assert [k for k, _ in points] == [k for k, _ in theirs]
        assert [v for _, v in points] == pytest.approx([v for _, v in theirs])
    assert [k for k, _ in logged['val_loss']] == [5, 10]

def test_resumed_run_replaces_steps(tmp_path):
    "Steps that were taken twice stand there once, with what the later run says."
    trackers = Trackers(['tensorboard'], tmp_path)
    for r in tracked(({**r, 'loss': 99.} for r in run(last=8)), trackers): pass
    # TensorBoard reads files in the order of their names, which begin with the second they were opened in
    opened = int(time.time())
    while int(time.time()) == opened: time.sleep(.02)
    for r in tracked(run(first=5), trackers): pass
    loss = scalars(tmp_path)['loss']
    assert [k for k, _ in loss] == [*range(1, 11)]
    assert [v for _, v in loss] == pytest.approx([99.]*4 + [1/k for k in range(5, 11)])

def test_stopped_run_is_on_disk(tmp_path):
    w = tracked(run(), Trackers(['tensorboard'], tmp_path))
    next(w), next(w)
    w.close()
    assert [k for k, _ in scalars(tmp_path)['loss']] == [1, 2]

def test_run(data, tmp_path, lost):
    "A run logs its numbers, settings and strips; what its trackers are told is what is in its files."
    (tmp_path/'mine.txt').write_text('it jumps\nit rests\n')
    train(tmp_path/'run', data=data, **HOW, report_to='lost, tensorboard', validation_captions=f'{tmp_path}/mine.txt')
    numbers = [(step, values) for what, *rest in lost.told if what == 'log' for values, step in [rest]]
    rows = read_log(tmp_path/'run/log.csv')
    assert [step for step, _ in numbers] == [1, 2, 3] == [r['step'] for r in rows]
    assert [values['loss'] for _, values in numbers] == pytest.approx([r['loss'] for r in rows])
    assert ['val_loss' in values for _, values in numbers] == [False, True, True]
    settings = next(rest[0] for what, *rest in lost.told if what == 'settings')
    assert settings['learning_rate'] == 3e-3 and settings['max_train_steps'] == 3
    assert all(isinstance(value, (bool, int, float, str)) for value in settings.values())
    assert lost.told[0] == ('start',) and lost.told[-1] == ('finish',)
    images = [(name, step) for what, *rest in lost.told if what == 'images' for name in rest[0] for step in [rest[1]]]
    assert [name.partition('/')[0] for name, _ in images] == ['strips', 'captions']*2 and [step for _, step in images] == [2, 2, 3, 3]
    board = events(tmp_path/'run/tensorboard')
    assert sorted(board.Tags()['images']) == sorted({name for name, _ in images})
    height, width = (getattr(board.Images('captions/mine')[0], side) for side in ('height', 'width'))
    assert (width, height) == Image.open(tmp_path/'run/strips/captions/000002-mine.png').size
    assert list((tmp_path/'run/tensorboard').rglob('hparams.yml'))


# bad input

@pytest.mark.parametrize('names, said', [
    ('tensorbord', "no tracker 'tensorbord'; there are aim, comet_ml, mlflow, tensorboard, wandb, clearml, dvclive, swanlab, "
                   'trackio; did you mean tensorboard?'),
    ('tensorboard,', "no tracker ''; there are aim"),
    ('mlflow', 'mlflow is not installed; install it: pip install mlflow')])
def test_unknown_trackers(data, tmp_path, monkeypatch, names, said):
    "One line, before anything is written."
    monkeypatch.setattr(accelerate.tracking, '_available_trackers', ['tensorboard'])
    with pytest.raises(StoryError) as e: train(tmp_path/'run', data=data, **HOW, report_to=names)
    assert str(e.value).startswith(said) and not (tmp_path/'run').exists()

class WandbError(Exception): pass

def fake_wandb(monkeypatch, mode='online', key=None, error=None):
    "As far as a login is checked."
    def login():
        if error: raise WandbError(error)
        return bool(key)
    fake = SimpleNamespace(setup=lambda: SimpleNamespace(settings=SimpleNamespace(mode=mode)), login=login, Error=WandbError)
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    monkeypatch.setattr(accelerate.tracking, '_available_trackers', ['wandb'])

def test_wandb_login(monkeypatch):
    for good in dict(key='x'), dict(mode='offline'), dict(mode='disabled'):
        fake_wandb(monkeypatch, **good)
        assert tracker_names('wandb,wandb') == ['wandb']
    for error, why in (None, 'no API key'), ('No API key configured.\nUse wandb login', 'No API key configured.'):
        fake_wandb(monkeypatch, error=error)
        with pytest.raises(StoryError) as e: tracker_names('wandb')
        assert str(e.value) == (f'wandb is not logged in ({why}); run wandb login, or set WANDB_MODE=offline '
                                'to write files only')

def test_other_processes_log_nothing(data, tmp_path, lost, monkeypatch):
    "Only the first process checks and starts trackers."
    from arldm.cli import training_run
    monkeypatch.setattr(training_run, 'rank_and_world_size', lambda: (1, 2))
    assert training_run._trackers('lost,nonsense', tmp_path, resolve('tiny')).names == []

@pytest.mark.parametrize('world_size', [1, 2])
def test_nothing_trains_here(tmp_path, monkeypatch, lost, world_size):
    "A process that only scores has no state of accelerate, whose log needs one; of several, it waits for no other."
    def wait(*_, **__): raise RuntimeError('waits for the others')
    def start(self): get_logger('accelerate.tracking').debug('started')
    monkeypatch.setattr(torch.distributed, 'init_process_group', wait)
    monkeypatch.setattr(Lost, 'start', start)
    if world_size > 1:
        for name, value in dict(RANK='0', LOCAL_RANK='0', WORLD_SIZE='2').items(): monkeypatch.setenv(name, value)
    PartialState._reset_state()
    try:
        trackers = Trackers(['lost', 'tensorboard'], tmp_path)
        trackers.start()
        assert [*trackers.running] == ['lost', 'tensorboard']
        trackers.finish()
    finally: PartialState._reset_state()


# failures

@pytest.mark.parametrize('fails', ['start', 'settings', 'log', 'images', 'finish'])
def test_tracker_fails(tmp_path, lost, monkeypatch, fails):
    "One line; the others get everything."
    monkeypatch.setattr(Lost, 'fails', fails)
    trackers = Trackers(['lost', 'tensorboard'], tmp_path, dict(seed=0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for r in tracked(run(last=3), trackers): trackers.log_images(dict(strip=Image.new('RGB', (4, 2))), r['step'])
    assert said_by(caught) == ['lost failed (no network); it logs nothing from here on']
    assert lost.told[-1][0] == fails and sum(what == fails for what, *_ in lost.told) == 1
    assert [k for k, _ in scalars(tmp_path)['loss']] == [1, 2, 3]
    assert [e.step for e in events(tmp_path/'tensorboard').Images('strip')] == [1, 2, 3]

def test_run_outlives_its_tracker(data, tmp_path, lost, monkeypatch):
    monkeypatch.setattr(Lost, 'fails', 'log')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        train(tmp_path/'run', data=data, **HOW, report_to='lost')
    assert len(said_by(caught)) == 1 and (tmp_path/'run/pipeline').is_dir()
    assert [r['step'] for r in read_log(tmp_path/'run/log.csv')] == [1, 2, 3]


# wandb itself

def wandb_records(path):
    "The records of a `.wandb` file: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB."
    from wandb.proto.wandb_internal_pb2 import Record
    data, at, whole = Path(path).read_bytes(), 7, b''
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4:at + 6], 'little'), data[at + 6]
        whole += data[at + 7:at + 7 + length]
        at += 7 + length
        if kind in (1, 4):   # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b''

def wandb_history(path):
    "{name: value} of each row that was logged."
    for record in wandb_records(path):
        if record.WhichOneof('record_type') != 'history': continue
        yield {'/'.join([item.key] if item.key else item.nested_key): json.loads(item.value_json) for item in record.history.item}

def test_wandb(data, tmp_path, monkeypatch):
    "Offline, wandb's own files hold losses, pictures and settings, of both parts of a resumed run under one id."
    wandb = pytest.importorskip('wandb.sdk', reason='wandb is not installed') and sys.modules['wandb']
    for name, value in dict(WANDB_MODE='offline', WANDB_SILENT='true').items(): monkeypatch.setenv(name, value)
    wandb.teardown()
    run = tmp_path/'run'
    train(run, data=data, **HOW, report_to='wandb')
    train(run, **{**HOW, 'max_train_steps': 4}, report_to='wandb')
    wandb.teardown()
    key = (run/'wandb/id').read_text()
    files = sorted(run.glob(f'wandb/offline-run-*-{key}/run-{key}.wandb'), key=lambda path: path.parent.name)
    assert len(files) == 2
    rows = [[*wandb_history(path)] for path in files]
    log = read_log(run/'log.csv')
    losses = {row['step']: row['loss'] for part in rows for row in part if 'loss' in row}
    assert losses == pytest.approx({r['step']: r['loss'] for r in log}) and [*losses] == [1, 2, 3, 4]
    pictures = [(row['step'], name) for part in rows for row in part for name in row if name == 'strips/4/filenames']
    assert [step for step, _ in pictures] == [2, 4]
    assert len([*run.glob('wandb/offline-run-*/files/media/images/strips/*.png')]) == 2
    settings = {}
    for record in wandb_records(files[0]):
        for item in record.config.update: settings[item.key] = json.loads(item.value_json)
    assert settings['learning_rate'] == 3e-3 and settings['corpus'] == 'toy'
    metrics = [(m.glob_name, m.step_metric) for m in (record.metric for record in wandb_records(files[1]))]
    assert ('*', 'step') in metrics
