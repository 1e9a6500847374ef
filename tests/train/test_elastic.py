"A run goes on with another number of processes and computes the steps of one that was never changed."
import json, os, socket

import pytest, torch
from accelerate.state import AcceleratorState
from torch import nn

from arldm.cli import training_run
from arldm.cli.convert import convert
from arldm.cli.train import train
from arldm.core import StoryError
from arldm.settings import resolve
from arldm.toy.corpus import write_toy
from arldm.train import loop
from arldm.train.checkpoint import read_log
from arldm.train.setup import _check_resumed
from processes import end, fork

HOW = dict(preset='tiny', resolution=32, crops=1, train_batch_size=2, checkpointing_steps=50, num_validation_stories=1,
           learning_rate=3e-3, lr_scheduler='constant')
LORA = dict(lora_rank=2, mixed_precision='bf16')
N = 7      # stories, of which a step takes four
soak = pytest.mark.skipif(os.environ.get('ARLDM_SOAK') != '1', reason='long: set ARLDM_SOAK=1')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    write_toy(folder/'raw', (N, 1, 1), progress=False)
    convert('toy', folder/'raw', folder/'stories.h5', quiet=True)
    return folder/'stories.h5'

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def leg(run, data, steps, how, rank, world_size, port):
    "What one process of several does, as torchrun starts it; BLIP has dropout, and the stories of each step are noted."
    started = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=world_size, MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    if world_size > 1: os.environ.update({k: str(v) for k, v in started.items()})
    AcceleratorState._reset_state(reset_partial_state=True)      # of what trained before the fork
    make_model, step_stories = training_run.make_model, loop.step_stories
    def with_dropout(*args, **options):
        model = make_model(*args, **options)
        for module in model.memory_encoder.modules():
            if isinstance(module, nn.Dropout): module.p = .3
        return model
    def noted(n, total, step, seed, places):
        found = step_stories(n, total, step, seed, places)
        with open(run.parent/f'{run.name}-stories.txt', 'a') as f: f.write(json.dumps([step, places, found]) + '\n')
        return found
    training_run.make_model, loop.step_stories = with_dropout, noted
    training_run._write_model = training_run._try_strip = lambda *_, **__: None
    train(run, data=data, **HOW | how, max_train_steps=steps, gradient_accumulation_steps=2//world_size)

def go_on(run, data, steps, how, world_size=1):
    port = free_port()
    started = [fork(lambda rank=rank: leg(run, data, steps, how, rank, world_size, port)) for rank in range(world_size)]
    for process in started:
        code, lines = end(*process)
        assert code == 0, '\n'.join(lines)

def stories_of(run): # step -> [(place, story, epoch)]
    steps = {}
    for line in (run.parent/f'{run.name}-stories.txt').read_text().splitlines():
        step, places, found = json.loads(line)
        steps.setdefault(step, []).extend((place, *pair) for place, pair in zip(places, found, strict=True))
    return {step: sorted(found) for step, found in steps.items()}

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='processes are forked')
@pytest.mark.parametrize('how', [pytest.param({}, marks=soak), LORA], ids=['all', 'lora'])
def test_one_two_and_again_one_process(data, tmp_path, how):
    "The same stories in every step, and the same dropout: losses and weights are equal to float error."
    whole, run = tmp_path/'whole', tmp_path/'run'
    go_on(whole, data, 4, how)
    for steps, world_size in (1, 1), (3, 2), (4, 1):
        go_on(run, data, steps, how, world_size)
        assert json.loads((run/'settings.json').read_text())['processes'] == world_size
    assert stories_of(run) == stories_of(whole) and [*stories_of(whole)] == [*range(4)]
    for name in 'loss', 'grad_norm', 'lr':
        a, b = ([r[name] for r in read_log(path/'log.csv')] for path in (run, whole))
        assert len(a) == 4 and a == pytest.approx(b, rel=1e-5), name
    a, b = (torch.load(path/'checkpoints/000004.pt', weights_only=True)['model'] for path in (run, whole))
    assert all(torch.allclose(a[k].float(), b[k].float(), atol=1e-4) for k in a)

def test_dropout_of_the_first_micro_batch_is_that_of_recorded_runs(monkeypatch):
    "Of one process with one micro-batch; the seeds of the others follow it."
    seeds = []
    monkeypatch.setattr(torch, 'manual_seed', seeds.append)
    for world_size in 1, 2:
        for rank in range(world_size):
            acc = type('', (), dict(num_processes=world_size, process_index=rank))
            state = loop._TrainState(acc, None, None, None, None, resolve('tiny', seed=3, train_batch_size=4), None)
            for k in range(2//world_size): state.seed_dropout(5, k)
    first = (3*1_000_003 + 5)*1_009
    assert seeds == [first, first + 1]*2

@pytest.mark.parametrize('world_size', [1, 2, 3, 6])
def test_micro_batches_are_the_same_for_any_number_of_processes(world_size):
    shared = [loop.step_places(24, 4, rank, world_size) for rank in range(world_size)]
    assert all(len(places) == 24//world_size for places in shared)
    blocks = [places[k:k + 4] for places in shared for k in range(0, len(places), 4)]
    assert sorted(blocks) == [[*range(k, k + 4)] for k in range(0, 24, 4)]
    together = [pair for places in shared for pair in zip(places, loop.step_stories(10, 24, 3, 1, places))]
    assert [pair for _, pair in sorted(together)] == loop.step_stories(10, 24, 3, 1)

CHANGES = {   # processes before and now, settings of the run, changed ones -> what would fit, or None if it goes on
    'half': (1, 2, (8, 1), {}, '--train-batch-size 4'), 'fewer micro-batches': (1, 2, (4, 2), {}, '--gradient-accumulation-steps 1'),
    'more micro-batches': (4, 1, (2, 1), {}, '--gradient-accumulation-steps 4'),
    'both': (1, 4, (6, 2), {}, '--train-batch-size 3 --gradient-accumulation-steps 1'),
    'not as typed': (1, 2, (4, 2), dict(train_batch_size=3), '--train-batch-size 4 --gradient-accumulation-steps 1'),
    'uneven': (1, 3, (8, 1), {}, 'cannot share'), 'fits': (1, 2, (8, 1), dict(train_batch_size=4), None),
    'back': (2, 1, (4, 1), dict(gradient_accumulation_steps=2), None), 'as many': (2, 2, (4, 1), dict(train_batch_size=2,
    gradient_accumulation_steps=2), None)}

@pytest.mark.parametrize('name', CHANGES)
def test_which_flags_fit_another_number_of_processes(tmp_path, monkeypatch, name):
    before, now, (batch, parts), change, flags = CHANGES[name]
    monkeypatch.setenv('WORLD_SIZE', str(now))
    saved = dict(train_batch_size=batch, gradient_accumulation_steps=parts)
    old = dict(preset='tiny', processes=before, **saved)
    def check(): _check_resumed(tmp_path, old, saved, resolve('tiny', **saved | change), 1)
    if not flags: return check()
    with pytest.raises(StoryError) as e: check()
    n = batch*parts*before
    by, would = (f'{k} process' + 'es'*(k > 1) for k in (before, now))
    trained = f'{tmp_path} was trained on {n} stories a step by {by}'
    if name == 'uneven': said = (f'{trained}, which 3 processes cannot share evenly; start as many again '
                                 '(torchrun --nproc_per_node 1), or use another run folder')
    else: said = f'{trained}; with {would}: {flags}'
    assert str(e.value) == said
