"Learning rates, optimizer and length of a run, by the names of diffusers' scripts."
import json
import math
import sys
from types import ModuleType

import pytest, torch
from diffusers.optimization import SchedulerType, get_scheduler
from torch.optim import SGD, AdamW

from arldm.cli.convert import convert
from arldm.cli.train import train
from arldm.core import StoryError
from arldm.data.dataset import StoryDataset
from arldm.data.story import StoryFile
from arldm.report.run_folder import introduction, read_run
from arldm.settings import CHOICES, resolve
from arldm.toy.corpus import write_toy
from arldm.train import cache, loop, setup
from arldm.train.checkpoint import read_log
from arldm.train.loop import _tf32, train_steps
from arldm.train.optim import learning_rates, make_optimizer

NAMES = [x.value for x in SchedulerType if x.value != 'piecewise_constant']     # that one has rules in place of steps


# learning rates

def of_diffusers(s):
    optimizer = SGD([torch.zeros(1)], lr=s.learning_rate)
    schedule = get_scheduler(s.lr_scheduler, optimizer, num_warmup_steps=s.lr_warmup_steps, num_training_steps=s.max_train_steps,
                             num_cycles=s.lr_num_cycles, power=s.lr_power)
    rates = []
    for k in range(s.max_train_steps):
        if k: optimizer.step(), schedule.step()
        rates.append(schedule.get_last_lr()[0])
    return rates

def test_every_name_is_there(): assert {*CHOICES['lr_scheduler']} == {*NAMES, 'legacy'}

@pytest.mark.parametrize('T,W', [(40, 0), (40, 1), (40, 7), (7, 7), (5, 9)])
@pytest.mark.parametrize('name', NAMES)
def test_rates_are_those_of_diffusers(name, T, W):
    "All after warm-up, which begins at 1/(W+1) and not at 0."
    own = dict(cosine_with_restarts=dict(lr_num_cycles=3), polynomial=dict(lr_power=2.)).get(name, {})
    s = resolve('toy', lr_scheduler=name, max_train_steps=T, lr_warmup_steps=W, learning_rate=3e-4, **own)
    rates, theirs = learning_rates(s), of_diffusers(s)
    warmup = 0 if name == 'constant' else min(W, T)
    assert len(rates) == T and rates[:warmup] == pytest.approx([3e-4*(k + 1)/(W + 1) for k in range(warmup)])
    assert rates[warmup:] == (pytest.approx(theirs[warmup:], rel=1e-12) if name == 'cosine' else theirs[warmup:])
    assert min(rates) > 0

def test_cosine_to_the_last_bit():
    "As runs are recorded."
    s = resolve('toy', max_train_steps=300, lr_warmup_steps=20, learning_rate=1e-3)
    def recorded(k): return 1e-3*min(1, (k + 1)/21)*(.5*(1 + math.cos(math.pi*max(0, k - 20)/280)))
    assert learning_rates(s) == [recorded(k) for k in range(300)]

@pytest.mark.parametrize('name', ['cosine', 'legacy', 'polynomial'])
def test_scaled_by_the_stories_of_a_step(name):
    how = dict(lr_scheduler=name, max_train_steps=9, lr_warmup_steps=3, train_batch_size=2, gradient_accumulation_steps=3)
    s, twelve = resolve('toy', scale_lr=True, learning_rate=1e-3, **how), resolve('toy', learning_rate=1e-3*12, **how)
    assert learning_rates(s, world_size=2) == learning_rates(twelve)


# the optimizer

def test_adam_has_its_settings():
    layer = torch.nn.Linear(2, 2)
    [usual] = {(g['betas'], g['eps']) for g in make_optimizer(layer, resolve('tiny')).param_groups}
    assert usual == (AdamW.__init__.__defaults__[1:3]) == ((.9, .999), 1e-8)
    optimizer = make_optimizer(layer, resolve('tiny', adam_beta1=.8, adam_beta2=.95, adam_epsilon=1e-6))
    assert {(g['betas'], g['eps']) for g in optimizer.param_groups} == {((.8, .95), 1e-6)}

def test_adam_in_eight_bits_gets_them(monkeypatch):
    module = ModuleType('bitsandbytes.optim')
    module.AdamW8bit = lambda groups, **options: options
    monkeypatch.setitem(sys.modules, 'bitsandbytes', ModuleType('bitsandbytes'))
    monkeypatch.setitem(sys.modules, 'bitsandbytes.optim', module)
    s = resolve('tiny', optimizer='adamw8bit', adam_beta1=.8, adam_epsilon=1e-6)
    assert make_optimizer(torch.nn.Linear(2, 2), s) == dict(lr=s.learning_rate, betas=(.8, .999), eps=1e-6)

@pytest.mark.parametrize('before', [(False, True), (True, False), (False, False)])
def test_tf32_within_the_training_only(monkeypatch, before):
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    was = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32, cudnn.allow_tf32 = before
        with _tf32(False): assert (matmul.allow_tf32, cudnn.allow_tf32) == before
        with pytest.raises(KeyError), _tf32(True):
            assert matmul.allow_tf32 and cudnn.allow_tf32
            raise KeyError
        assert (matmul.allow_tf32, cudnn.allow_tf32) == before
    finally: matmul.allow_tf32, cudnn.allow_tf32 = was


# runs

HOW = dict(preset='tiny', resolution=16, crops=1, train_batch_size=2, num_validation_stories=0, freeze='attention')

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    write_toy(folder/'raw', (6, 1, 1), progress=False)
    convert('toy', folder/'raw', folder/'stories.h5', quiet=True)
    return folder/'stories.h5'

@pytest.fixture(scope='module')
def run(data, tmp_path_factory):
    "Three of six stories, twice, at a scaled rate, in TF32; a checkpoint after each of three steps, of which one stays."
    run = tmp_path_factory.mktemp('run')/'run'
    taken, tf32 = set(), set()
    backward = loop._backward
    def noted(state, step, groups):
        for _, batch in groups: taken.update(batch['id'])
        tf32.add(torch.backends.cuda.matmul.allow_tf32)
        return backward(state, step, groups)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, '_backward', noted)
        train(run, data=data, max_train_samples=3, num_train_epochs=2, scale_lr=True, learning_rate=1e-3, lr_scheduler='constant',
              checkpointing_steps=1, checkpoints_total_limit=1, allow_tf32=True, **HOW)
    return run, taken, tf32

def test_the_first_stories_only(run, data):
    "They train; words, features and the report are theirs."
    folder, taken, _ = run
    split = StoryFile(data)['train']
    assert taken == {*split.ids[:3]}
    label = json.loads((folder/'cache/cache.json').read_text())
    assert label['data'] == cache.data_digest(split.first(3)) != cache.data_digest(split)
    assert 'was trained on the toy world (the first 3 of 6 training stories) for 3 steps' in introduction(read_run(folder))

def test_the_vocabulary_and_the_slots_are_those_of_the_first_stories(data, tmp_path):
    s, file = resolve(**HOW, max_train_samples=1), StoryFile(data)
    assert setup.all_captions(setup.training_split(file, s)) == setup.all_captions(file['train'].first(1))
    assert len(setup.training_split(file, resolve(**HOW))) == len(setup.training_split(file, resolve(**HOW, max_train_samples=99))) == 6
    n_words = [len(setup.make_model(resolve(**HOW, max_train_samples=n), file, tmp_path/str(n)).vocab.caption_tokenizer) for n in (1, 6)]
    assert n_words[0] < n_words[1]

def test_epochs_are_steps(run, data):
    "Of three stories, two a step, twice."
    folder, _, tf32 = run
    log = read_log(folder/'log.csv')
    assert json.loads((folder/'settings.json').read_text())['max_train_steps'] == len(log) == 3
    assert [r['lr'] for r in log] == [1e-3*2]*3 and tf32 == {True}
    assert [p.name for p in (folder/'checkpoints').iterdir()] == ['000003.pt']

@pytest.mark.parametrize('epochs,n,steps', [(1, 0, 3), (3, 0, 9), (1, 5, 3), (5, 1, 3)])
def test_a_run_for_epochs(data, tmp_path, epochs, n, steps):
    s, _ = setup.open_run(tmp_path/'run', data, 'tiny', dict(train_batch_size=2, max_train_samples=n), epochs)
    assert s.max_train_steps == steps

def test_epochs_of_several_processes(data, tmp_path, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '3')
    s, _ = setup.open_run(tmp_path/'run', data, 'tiny', dict(train_batch_size=1, gradient_accumulation_steps=2), 5)
    assert s.max_train_steps == 5                                       # 30 stories, 6 a step

@pytest.mark.parametrize('epochs,given,said', [
    (2, dict(max_train_steps=5), 'num_train_epochs and max_train_steps both say how long to train; give one of them'),
    (0, {}, 'num_train_epochs must be at least 1, got 0')])
def test_epochs_that_are_none(data, tmp_path, epochs, given, said):
    with pytest.raises(StoryError) as e: setup.open_run(tmp_path/'run', data, 'tiny', given, epochs)
    assert str(e.value) == said

def test_a_run_keeps_its_stories(run):
    folder, *_ = run
    with pytest.raises(StoryError, match='was trained with max_train_samples=3, not 4; use another'): train(folder, max_train_samples=4)
    assert train(folder, checkpoints_total_limit=5) == folder/'pipeline'

WRONG = [(dict(adam_beta1=1.), 'adam_beta1 must be at least 0 and below 1, got 1.0'),
         (dict(adam_beta2=-.1), 'adam_beta2 must be at least 0 and below 1, got -0.1'),
         (dict(adam_epsilon=0.), 'adam_epsilon must be above 0, got 0.0'),
         (dict(checkpoints_total_limit=0), 'checkpoints_total_limit must be at least 1, got 0'),
         (dict(max_train_samples=-1), 'max_train_samples must not be below 0, got -1'),
         (dict(lr_num_cycles=0, lr_scheduler='cosine_with_restarts'), 'lr_num_cycles must be at least 1, got 0'),
         (dict(lr_num_cycles=2), "lr_num_cycles needs lr_scheduler='cosine_with_restarts', got 'cosine'"),
         (dict(lr_power=0., lr_scheduler='polynomial'), 'lr_power must be above 0, got 0.0'),
         (dict(lr_power=2.), "lr_power needs lr_scheduler='polynomial', got 'cosine'"),
         (dict(lr_scheduler='polynomial', learning_rate=1e-7),
          "lr_scheduler='polynomial' ends at 1e-7: learning_rate must be above it, got 1e-07")]

@pytest.mark.parametrize('how,said', WRONG, ids=[next(iter(how)) + str(n) for n, (how, _) in enumerate(WRONG)])
def test_numbers_out_of_range(how, said):
    with pytest.raises(StoryError) as e: resolve('tiny', **how)
    assert str(e.value) == said

def test_accumulation_multiplies(data, tmp_path):
    "Two micro-batches of two are a step of four stories: the losses of one batch of four."
    found = []
    for size, parts in (4, 1), (2, 2):
        s = resolve(**HOW | dict(train_batch_size=size, gradient_accumulation_steps=parts, max_train_steps=2))
        model = setup.make_model(s, StoryFile(data), tmp_path/str(size)).freeze(s.freeze)
        split = StoryDataset(StoryFile(data)['train'], model.vocab, 16, model.memory_side, train=True, crops=1)
        found.append([r['loss'] for r in train_steps(model, split, s)])
    assert found[0] == pytest.approx(found[1], rel=1e-5)
