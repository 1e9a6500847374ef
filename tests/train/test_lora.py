"A run that trains a LoRA changes nothing else, computes the same with frozen weights kept small or away, and loses nothing."
import copy
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file

from arldm.cli import training_run
from arldm.cli.convert import convert
from arldm.cli.train import train
from arldm.core import StoryError
from arldm.data.dataset import StoryDataset
from arldm.data.story import StoryFile
from arldm.draw.pipeline import StoryPipeline
from arldm.model.arldm import ARLDM, trained_weights
from arldm.settings import resolve
from arldm.toy.corpus import write_toy
from arldm.train import loop
from arldm.train.cache import build_cache
from arldm.train.checkpoint import Log, read_log
from arldm.train.frozen import Unloaded, store_frozen
from arldm.train.lora import LORA_FILE, LORA_PARTS, TRAINED_FILE, add_lora, lora_layers
from arldm.train.loop import train_steps, validation_loss
from arldm.train.optim import make_ema
from arldm.train.setup import make_model
from processes import end, fork

TEXTS = ['a big red star is at the beach on the left', 'it jumps']
SMALL = dict(resolution=32, crops=1, train_batch_size=2, max_train_steps=4, checkpointing_steps=2, num_validation_stories=1,
             lr_warmup_steps=0, learning_rate=3e-2, ema_decay=.5)
LORA = dict(SMALL, lora_rank=2, lora_alpha=4.)
HISTORY = 'history.type_embedding.weight', 'history.time_embedding.weight'
FROZEN_PARTS = 'vae', 'text_encoder', 'memory_encoder'

@pytest.fixture(scope='module', autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with stories and a base model of random weights."
    folder = tmp_path_factory.mktemp('place')
    write_toy(folder/'raw', (4, 1, 1), progress=False)
    convert('toy', folder/'raw', folder/'stories.h5', quiet=True)
    (folder/'words').mkdir()
    model = make_model(resolve('tiny', resolution=32), StoryFile(folder/'stories.h5'), folder/'words', quiet=True)
    StoryPipeline.from_model(model).save_pretrained(folder/'base')
    return folder

@pytest.fixture(scope='module')
def noted(place):
    "`place/run` is trained by the command; -> how many weights the parts had in each step, and in each strip."
    sizes = dict(step=[], strip=[])
    def note(kind, model):
        for name in FROZEN_PARTS: sizes[kind].append(sum(p.numel() for p in getattr(model, name).parameters()))
    def steps(model, *more):
        for record in train_steps(model, *more):
            note('step', model)
            yield record
    def strips(run, s, file, model, step, captions):
        note('strip', model)
        return {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, 'train_steps', steps)
        patch.setattr(training_run, 'draw_strips', strips)
        begin(place, place/'run', mixed_precision='bf16')
    return sizes

def begin(place, run, **how): train(run, data=place/'stories.h5', preset='tiny', model=str(place/'base'), **LORA | how)

@pytest.fixture(scope='module')
def run(place, noted): return place/'run'

@pytest.fixture
def moved(run, place, tmp_path):
    "The run, its base and its stories, all moved."
    return shutil.copytree(place, tmp_path/'moved')/'run'

@pytest.fixture
def no_strips(monkeypatch): monkeypatch.setattr(training_run, '_try_strip', lambda *_: None)

def files(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob('*') if p.is_file()}
def checkpoint(run, step=4): return torch.load(run/f'checkpoints/{step:06d}.pt', weights_only=True)
def says(f): # -> the one line of its `StoryError`
    with pytest.raises(StoryError) as e: f()
    assert '\n' not in str(e.value)
    return str(e.value)

def start(place, **how): # -> model, training and validation stories, settings
    s = resolve('tiny', model=str(place/'base'), **SMALL | how)
    file = StoryFile(place/'stories.h5')
    model = add_lora(make_model(s, file, place/'words', quiet=True).freeze(s.freeze), s)
    def stories(split, **how): return StoryDataset(file[split], model.vocab, s.resolution, model.memory_side, **how)
    return model, stories('train', train=True, seed=s.seed, crops=s.crops), stories('val'), s

def again(run, settings={}, data=None, **how): return training_run.train_run(run, data, None, settings, **how)

def records(model, stories, s, *more): return [{k: r[k] for k in ('loss', 'grad_norm')} for r in train_steps(model, stories, s, *more)]


# what trains

def is_words(name): return 'token_embedding' in name or 'word_embeddings' in name
def trains(name, words=False): return 'lora_' in name or name in HISTORY or words and is_words(name)

def test_a_checkpoint_holds_what_trains(run, place):
    "The LoRA and the embeddings of type and time, in float32, and their average; no other weight."
    state, base = checkpoint(run), ARLDM.load(place/'base')
    names = state['model'].keys() - {'frozen'}
    assert all(trains(name) for name in names) and set(HISTORY) <= names and len(names) == 2 + 2*len(lora_layers(base.unet, 'attention'))
    n = sum(state['model'][name].numel() for name in names)
    assert [list(x.shape) for x in state['ema']['shadow_params']] == [list(state['model'][k].shape) for k in state['model'] if k != 'frozen']
    assert all(x.dtype == torch.float32 for x in [*state['ema']['shadow_params'], *(state['model'][k] for k in names)])
    # the weights, their average, and two numbers of AdamW each
    path = run/'checkpoints/000004.pt'
    assert 4*4*n < path.stat().st_size < 4*4*n + 200_000 < 4*sum(p.numel() for p in base.parameters())

def test_the_file_of_the_lora_is_in_a_fixed_order(run):
    "Sets of PEFT have none, nor several entries of a header."
    header = safe_open(run/'lora'/LORA_FILE, 'pt').metadata()
    assert [*header] == ['lora_adapter_metadata']
    names = json.loads(header['lora_adapter_metadata'])['unet.target_modules']
    assert len(names) > 2 and names == sorted(names)
    assert len(safe_open(run/'lora'/TRAINED_FILE, 'pt').metadata()) == 1

@pytest.mark.parametrize('words', [False, True])
def test_nothing_else_changes(place, words):
    model, stories, _, s = start(place, lora_rank=2, lora_targets='all', lora_encoders=True, max_train_steps=2,
                                 freeze='all-but-words' if words else 'all')
    before = {k: x.clone() for k, x in model.state_dict().items()}
    ema = make_ema(model, s)
    records(model, stories, s, None, ema)
    changed = [k for k, x in model.state_dict().items() if not torch.equal(x, before[k])]
    assert changed and not [k for k in changed if not trains(k, words)]
    assert {k.partition('.')[0] for k in changed} == {*LORA_PARTS, 'history'} and len([*filter(is_words, changed)]) == 2*words
    # each matrix of the LoRA moves
    assert not [k for k in before if 'lora_' in k and k not in changed]
    assert len(ema.shadow_params) == len(trained_weights(model)) == len([k for k in before if trains(k, words)])


# frozen weights are kept small, or away

@pytest.mark.parametrize('how', [dict(lora_rank=2), dict(lora_rank=2, lora_encoders=True, freeze='all-but-words'), dict(freeze='ssid-baseline'),
                                 dict(lora_rank=2, gradient_checkpointing=True), dict(lora_rank=2, lora_encoders=True, lora_targets='all')],
                         ids=['lora', 'words', 'resnet', 'checkpointing', 'all'])
def test_bfloat16_is_the_precision_of_the_products_anyway(place, how):
    "The losses, the gradients and the weights are the same, bit by bit, as with float32 in memory."
    model, stories, _, s = start(place, mixed_precision='bf16', max_train_steps=1, **how)
    stored = copy.deepcopy(model)
    store_frozen(stored, s)
    assert stored.unet.conv_in.weight.dtype == torch.bfloat16 and model.unet.conv_in.weight.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in trained_weights(stored))
    assert records(model, stories, s) == records(stored, stories, s)
    assert all(torch.equal(a, b) for a, b in zip(trained_weights(model), trained_weights(stored), strict=True))

def test_parts_with_cached_features_are_away(noted):
    "In every step they hold no number, in every strip all of them."
    assert noted['step'] == [0]*3*4
    assert len(noted['strip']) == 3*2 and min(noted['strip']) > 10_000

def test_they_come_back_as_they_were(place, tmp_path):
    "Also after the block has failed; if they come back changed, the block is not entered."
    model, stories, _, s = start(place, lora_rank=2)
    before = {k: x.clone() for k, x in model.state_dict().items()}
    whole, changed = copy.deepcopy(model), copy.deepcopy(model)
    next(changed.vae.parameters()).data += 1
    sources = [whole]*2 + [changed]
    unloaded = Unloaded(model, build_cache(model, stories, tmp_path, progress=False), lambda: sources.pop(0))
    def empty(): return [name for name in FROZEN_PARTS if not any(p.numel() for p in getattr(model, name).parameters())]
    assert empty() == [*FROZEN_PARTS]
    state = torch.random.get_rng_state()
    with unloaded.loaded(): assert all(torch.equal(x, before[k]) for k, x in model.state_dict().items())
    assert empty() == [*FROZEN_PARTS] and torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(ZeroDivisionError):
        with unloaded.loaded(): 1/0
    assert empty() == [*FROZEN_PARTS]
    def use():
        with unloaded.loaded(): raise AssertionError
    assert says(use) == 'the weights of vae have changed where they were loaded from since the training began'
    assert empty() == [*FROZEN_PARTS]

def test_words_that_train_stay(place, tmp_path):
    model, stories, _, s = start(place, lora_rank=2, freeze='all-but-words')
    Unloaded(model, build_cache(model, stories, tmp_path, progress=False), None)
    assert [name for name in FROZEN_PARTS if not any(p.numel() for p in getattr(model, name).parameters())] == ['vae']

def test_validation_with_cached_features(place, tmp_path):
    model, _, val, s = start(place, lora_rank=2)
    model.eval()
    plain, cached = (validation_loss(model, stories, s) for stories in (val, build_cache(model, val, tmp_path, progress=False)))
    assert plain[1] == 1 and cached.tolist() == pytest.approx(plain.tolist(), rel=1e-5)

def merged_by_hand(run, base): # name -> weight of the base with the LoRA of the run
    state, weights = load_file(run/'lora'/LORA_FILE), dict(base.named_parameters())
    found = {k: x for k, x in load_file(run/'lora'/TRAINED_FILE).items() if k in weights}
    for name, A in state.items():
        if '.lora_A.' not in name: continue
        layer = name.partition('.lora_A.')[0]
        found[f'{layer}.weight'] = weights[f'{layer}.weight'].detach() + 4/2*state[name.replace('lora_A', 'lora_B')]@A
    return found

def test_eight_bits(place, tmp_path, no_strips, capsys):
    "Training rounds the frozen matrices of the UNet; the pipeline is made of the base's own."
    run = tmp_path/'run'
    begin(place, run, frozen_storage='fp8', mixed_precision='bf16', max_train_steps=2)
    losses, others = ([r['loss'] for r in read_log(path/'log.csv')] for path in (run, place/'run'))
    assert losses[0] != others[0] and losses[0] == pytest.approx(others[0], rel=.05)
    base, merged = ARLDM.load(place/'base'), ARLDM.load(run/'pipeline')
    expected = merged_by_hand(run, base)
    assert len(expected) == 2 + len(lora_layers(base.unet, 'attention'))
    for name, x in merged.named_parameters():
        if name in expected: assert torch.allclose(x, expected[name], atol=1e-6), name
        else: assert torch.equal(x, base.get_parameter(name)), name


# the end of a run

def frames(pipe):
    pipe.set_progress_bar_config(disable=True)
    return np.stack(pipe(TEXTS, num_inference_steps=2, output_type='np').frames)*255

def test_merged_is_the_base_with_its_lora(run, place):
    "Within one grey level, of pictures that differ from those of the base."
    merged, pipe = (StoryPipeline.from_pretrained(folder) for folder in (run/'pipeline', place/'base'))
    before = frames(pipe)
    pipe.load_lora_weights(run)
    assert abs(frames(pipe) - frames(merged)).max() < 1 < 10 < abs(before - frames(merged)).max()

def test_a_finished_run_is_left_alone(run, capsys):
    before = files(run)
    train(run)
    assert files(run) == before and capsys.readouterr().out.endswith(f'{run} has all its 4 steps\n')

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='processes are forked')
def test_killed_in_a_step_and_before_the_pipeline(run, place, tmp_path, no_strips):
    "kill -9 after three steps, and between LoRA and pipeline: what is there at the end is the same, bit by bit."
    other = tmp_path/'run'
    def die(*_): os.kill(os.getpid(), signal.SIGKILL)
    def in_a_step():
        add = Log.add
        Log.add = lambda log, record: die() if record['step'] == 3 else add(log, record)
        begin(place, other, mixed_precision='bf16')
    def before_the_pipeline():
        training_run.merge_lora = die
        train(other)
    for work, left in (in_a_step, ['000002.pt']), (before_the_pipeline, ['000002.pt', '000004.pt']):
        assert end(*fork(work))[0] == -signal.SIGKILL
        assert sorted(p.name for p in (other/'checkpoints').iterdir()) == left
    assert (other/'lora').is_dir() and not (other/'pipeline').exists()
    train(other)
    for folder in 'lora', 'pipeline':
        a, b = files(other/folder), files(run/folder)
        assert a.keys() == b.keys() and [k for k in a if a[k] != b[k]] == ['manifest.json']     # it names the checkpoint file
    def log(run): return [repr({k: v for k, v in r.items() if k != 'stories_per_s'}) for r in read_log(run/'log.csv')]
    assert log(other) == log(run) and len(log(run)) == 4

def test_a_base_that_changes_meanwhile(moved, run, monkeypatch, no_strips, capsys):
    "A moved run goes on from its moved base; the run ends with one line, and its steps count when the base is as it was."
    (moved/'checkpoints/000004.pt').unlink()
    for name in 'lora', 'pipeline': shutil.rmtree(moved/name)
    path = moved.parent/'base/unet/diffusion_pytorch_model.safetensors'
    good = path.read_bytes()
    def steps(*args):
        yield from train_steps(*args)
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with monkeypatch.context() as patch:
        patch.setattr(training_run, 'train_steps', steps)
        said = says(lambda: again(moved))
    assert said == (f'{moved.parent}/base has changed since the training began: nothing was written from it, and {moved}/checkpoints '
                    'has all steps; restore it, and run the same command again')
    assert [r['step'] for r in read_log(moved/'log.csv')] == [1, 2, 3, 4] and not (moved/'lora').exists()
    path.write_bytes(good)
    train(moved)
    for name in LORA_FILE, TRAINED_FILE: assert (moved/'lora'/name).read_bytes() == (run/'lora'/name).read_bytes()

@pytest.mark.parametrize('name', [LORA_FILE, TRAINED_FILE])
def test_a_lost_file_of_the_lora_comes_back(moved, run, no_strips, capsys, name):
    (moved/'lora'/name).unlink()
    train(moved)
    assert files(moved/'lora') == files(run/'lora') and files(moved/'checkpoints') == files(run/'checkpoints')

def test_a_damaged_file_is_not_taken_for_ours(moved, run, no_strips, capsys):
    path = moved/'lora'/LORA_FILE
    path.write_bytes(path.read_bytes()[:-9])
    before = files(moved)
    assert says(lambda: again(moved)) == (f'{path} was not written by arldm, or was changed since; move {path.parent} away, '
                                          'or name another place')
    assert files(moved) == before
    path.parent.rename(moved/'away')
    train(moved)
    assert files(moved/'lora') == files(run/'lora')

def test_somebodys_lora_is_not_replaced(moved, place, tmp_path, capsys):
    "Neither in a run, before any of its steps, nor in another folder."
    (moved/'lora/notes.txt').write_text('mine')
    before = files(moved)
    for how in {}, dict(dry_run=True):
        assert says(lambda: again(moved, dict(max_train_steps=6), **how)) == (
            f'{moved}/lora/notes.txt was not written by arldm, or was changed since; move {moved}/lora away, or name another place')
    assert files(moved) == before
    run = tmp_path/'run'
    (run/'lora').mkdir(parents=True)
    (run/'lora'/LORA_FILE).write_text('mine')
    assert says(lambda: again(run, data=place/'stories.h5')) == (
        f'{run} has no settings.json, so it is not a run of arldm, but it holds lora, which a run would write; name a new folder')
    assert files(run) == {f'lora/{LORA_FILE}': b'mine'}

CHANGES = dict(lora_rank=(2, 4), lora_alpha=(4., 8.), lora_targets=('attention', 'all'), lora_encoders=(False, True), frozen_storage=('compute', 'fp8'))

@pytest.mark.parametrize('name', CHANGES)
def test_a_lora_stays_as_it_began(run, name):
    was, now = CHANGES[name]
    before = files(run)
    assert says(lambda: again(run, {name: now})) == f'{run} was trained with {name}={was}, not {now}; use another run folder'
    assert files(run) == before


# bad input

BAD = {   # flags of a new run -> the line it ends with
    'lora_rank=0': 'lora_rank must be at least 1, got 0; leave it out to train without a LoRA',
    'lora_rank=-1': 'lora_rank must not be below 0, got -1',
    'lora_rank=17': 'lora_rank=17 is above the width of unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q, 16',
    'lora_alpha=4': 'lora_alpha needs a LoRA: set its rank, lora_rank=8',
    'lora_encoders=True': 'lora_encoders needs a LoRA: set its rank, lora_rank=8',
    'lora_rank=2 lora_encoders=True lora_targets=cross-attention':
        'lora_encoders: CLIP has no cross-attention; set lora_targets to attention or all',
    'lora_rank=2 freeze=clip': 'with lora_rank the LoRA trains in place of the weights: freeze must be all, or all-but-words, got clip',
    'lora_rank=2 lora_targets=self-attention': "no lora_targets 'self-attention'; there are attention, cross-attention, all; did you mean attention?",
    'frozen_storage=fp4': "no frozen_storage 'fp4'; there are compute, fp8; did you mean fp8?"}

@pytest.mark.parametrize('flags', BAD)
def test_flags_that_do_not_fit(place, tmp_path, monkeypatch, capsys, flags):
    "One line, exit code 1, and no file."
    words = [f'--{flag.replace("_", "-")}' for flag in flags.replace('=True', '').split()]
    monkeypatch.setattr('sys.argv', ['arldm-train', str(tmp_path/'run'), f'--data={place}/stories.h5', '--preset=tiny', '--resolution=32',
                                     f'--model={place}/base', *words])
    with pytest.raises(SystemExit) as e: train()
    assert e.value.code == 1 and capsys.readouterr().err.splitlines()[-1] == f'arldm-train: {BAD[flags]}'
    assert not (tmp_path/'run').exists()

def test_a_model_that_takes_no_lora(place):
    "A UNet without attention, and an encoder that is not derived from diffusers' classes."
    model, _, _, _ = start(place)
    unet = UNet2DConditionModel(block_out_channels=(16, 16), down_block_types=('DownBlock2D',)*2, up_block_types=('UpBlock2D',)*2,
                                mid_block_type=None, norm_num_groups=8, layers_per_block=1)
    real, model.unet = model.unet, unet
    def add(**how): return says(lambda: add_lora(model, resolve('tiny', lora_rank=2, **how)))
    assert add() == 'lora_targets=attention: unet has no such layer; try lora_targets=all'
    model.unet, model.memory_encoder = real, torch.nn.Linear(2, 2)
    assert add(lora_encoders=True) == ('lora_encoders: Linear takes no LoRA; derive it from diffusers.loaders.peft.PeftAdapterMixin')

def test_a_card_without_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'Tesla T4')
    assert says(lambda: loop.accelerator(resolve('tiny', mixed_precision='bf16'))) == (
        "mixed_precision='bf16' needs a GPU that computes in bfloat16, which Tesla T4 does not; use fp16 or no")
