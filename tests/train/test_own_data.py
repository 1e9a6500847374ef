"Training on one's own stories: the preset, new words, longer memory, few stories, stories of several lengths."
import json, os, shutil, subprocess, sys
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from arldm.cli.train import train
from arldm.cli.training_run import _say_end
from arldm.core import StoryError, asset
from arldm.data.dataset import StoryDataset, collate
from arldm.data.story import Story, StoryFile, write_stories
from arldm.draw.pipeline import StoryPipeline
from arldm.files.pictures import to_png
from arldm.model.arldm import ARLDM
from arldm.settings import PRESETS, SETTINGS, resolve
from arldm.train import loop
from arldm.train.cache import build_cache
from arldm.train.checkpoint import checkpoints, read_log
from arldm.train.digest import part_digest
from arldm.train.setup import default_preset, make_model, open_run

WORDS = 'a cat', 'Grandma sleeps', 'кошка спит', 'a café', "the cat's boat", 'catches 12 cats!', 'naïve', 'a dog'

def story(i, length):
    pictures = [to_png(Image.new('RGB', (40, 32), (20*k, 30*i, 200 - 20*k))) for k in range(length)]
    return Story(f's{i}', f'a{i}', tuple(WORDS[(i + k) % len(WORDS)] for k in range(length)), pictures)

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "Stories of 2, 4 and 5 frames; the longest, of 8, is in the validation split."
    path = tmp_path_factory.mktemp('own')/'own.h5'
    train = [story(i, n) for i, n in enumerate((5, 2, 5, 4, 2, 5))]
    write_stories(path, {'train': train, 'val': [story(6, 8), story(7, 2)], 'test': [story(8, 5)]}, 'ssid')
    return path

HOW = dict(crops=0, resolution=32, max_train_steps=2, checkpointing_steps=1, num_validation_stories=2)

@pytest.fixture(scope='module')
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')/'run'
    train(folder, data=data, preset='toy', **HOW)
    return folder


# The preset

def test_the_choice_is_said_once(data, tmp_path, capsys):
    "A new run without --preset says which one it takes; with one, or resumed, it says nothing."
    assert open_run(tmp_path/'run', data, None, {})[0].preset == 'ssid'
    assert capsys.readouterr().out == ('no --preset: ssid, Stable Diffusion 1.5 (--model) and BLIP (--blip) at 256 '
                                       'pixels, for a GPU; to try it on a CPU, without downloads: --preset small\n')
    train(tmp_path/'run', data=data, preset='tiny', resolution=16)
    train(tmp_path/'run', max_train_steps=4)
    assert 'no --preset' not in capsys.readouterr().out

def test_every_corpus_has_a_line():
    assert [default_preset(corpus)[0] for corpus in ('toy', 'folder')] == ['toy', 'small']
    assert '--preset ssid --model stable-diffusion-v1-5/' in default_preset('folder')[1]
    for corpus in 'vist-sis', 'vist-dii', 'pororo', 'flintstones':
        with pytest.raises(StoryError) as e: default_preset(corpus)
        assert all(name in str(e.value) for name in PRESETS) and f'the corpus {corpus}: fine-tune' in str(e.value)



# The autoencoder of a small model

SMALL = dict(HOW, crops=1, autoencoder_steps=2, num_validation_stories=0)

@pytest.fixture(scope='module')
def small(data, tmp_path_factory):
    "A run that no test changes, with an autoencoder of its own."
    folder = tmp_path_factory.mktemp('small')/'run'
    train(folder, data=data, preset='small', **SMALL)
    return folder

def weights(run): return {p.relative_to(run): p.read_bytes() for p in (run/'pipeline').rglob('*.safetensors')}

def test_the_autoencoder_learns_first(small, tmp_path, monkeypatch):
    "Once: a run that goes on, even without its pipeline, uses the kept one and computes the same."
    folder = small
    kept, shipped = (part_digest(AutoencoderKL.from_pretrained(p)) for p in (folder/'autoencoder', asset('toy/base')/'vae'))
    assert part_digest(StoryPipeline.from_pretrained(folder/'pipeline').vae) == kept != shipped
    shutil.copytree(folder, tmp_path/'again')
    first, last = checkpoints(tmp_path/'again'/'checkpoints')
    last.unlink()
    shutil.rmtree(tmp_path/'again'/'pipeline')
    def again(*_): raise AssertionError('adapted twice')
    monkeypatch.setattr('arldm.train.autoencoder.adapt_autoencoder', again)
    train(tmp_path/'again')
    assert weights(tmp_path/'again') == weights(folder)
    with pytest.raises(StoryError, match='was trained with autoencoder_steps=2, not 3'):
        train(folder, autoencoder_steps=3, max_train_steps=3)

def test_runs_with_equal_autoencoders_share_a_cache(small, data, tmp_path):
    "The cache holds features of the adapted autoencoder: it is compared after the adaptation, also if that is repeated."
    cache = small/'cache'
    before = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    train(tmp_path/'two', data=data, preset='small', cache=cache, learning_rate=2e-3, **SMALL)
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == before
    with pytest.raises(StoryError, match='was computed from other weights'):
        train(tmp_path/'three', data=data, preset='small', cache=cache, **SMALL | dict(autoencoder_steps=1))

def test_a_folder_of_others_stays(data, tmp_path):
    "`autoencoder/` in a folder that is no run is neither used nor changed."
    (tmp_path/'run/autoencoder').mkdir(parents=True)
    (tmp_path/'run/autoencoder/mine.txt').write_text('mine')
    with pytest.raises(StoryError, match='holds autoencoder, which a run would write'): train(tmp_path/'run', data=data, preset='small', **SMALL)
    assert (tmp_path/'run/autoencoder/mine.txt').read_text() == 'mine'


# Words

def test_new_words_are_learned(run, data, tmp_path, capsys, recwarn):
    "They are said, trained, saved and known when the pipeline is opened again; resuming has the same."
    file = StoryFile(data)
    base = ARLDM.load(asset('toy/base'))
    model = make_model(resolve('toy'), file, tmp_path)
    said = capsys.readouterr().out
    assert 'toy-base gets 10 new words: cat, grandma, кошка, спит, café, boat, catches, cats, …' in said
    rows = [m.text_encoder.get_input_embeddings().weight for m in (base, model)]
    memory = [m.memory_encoder.text_encoder.get_input_embeddings().weight for m in (base, model)]
    for old, new in rows, memory:
        assert len(new) == len(old) + 10 and torch.equal(new[:len(old)], old)
        assert new[len(old):].detach().std().item() == pytest.approx(old.std().item(), rel=.2)
    again = make_model(resolve('toy'), file, tmp_path, quiet=True)
    assert capsys.readouterr().out == ''
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    trained = ARLDM.load(run)
    [old, new] = [m.text_encoder.get_input_embeddings().weight for m in (base, trained)]
    assert len(new) == len(old) + 10 and not torch.equal(new[:len(old)], old)
    assert trained.vocab.unknown_words(WORDS) == [] and trained.vocab.unknown_words(['a hippo']) == ['hippo']
    recwarn.clear()
    pipe = StoryPipeline.from_pretrained(run)
    pipe.set_progress_bar_config(disable=True)
    pipe(list(WORDS[:3]), num_inference_steps=1)
    assert not [w for w in recwarn if 'does not know' in str(w.message)]

def test_one_token_for_each_word(run):
    "In sentences too: capitals, apostrophes, punctuation, and no word inside another."
    vocab = StoryPipeline.from_pretrained(run).model.vocab
    text = "The CAT's café catches Grandma, кошка!"
    words = ['the', 'cat', "'", 's', 'café', 'catches', 'grandma', ',', 'кошка', '!']
    assert [t.replace('</w>', '') for t in vocab.caption_tokenizer.tokenize(text)] == words
    assert vocab.memory_tokenizer.tokenize(text) == [w.replace('é', 'e') for w in words]

def test_resumed_to_the_last_bit(run, tmp_path):
    "With new words and new time embeddings."
    resumed = shutil.copytree(run, tmp_path/'run', ignore=shutil.ignore_patterns('pipeline', '000002.pt'))
    train(resumed)
    assert [x['loss'] for x in read_log(resumed/'log.csv')] == [x['loss'] for x in read_log(run/'log.csv')]
    a, b = ARLDM.load(run).state_dict(), ARLDM.load(resumed).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)

def test_words_of_the_toy_world_stay(tmp_path):
    "Nothing is added where nothing is unknown."
    path = tmp_path/'toy.h5'
    plain = Story('s', 'a', ('a big red star jumps',), [to_png(Image.new('RGB', (32, 32)))])
    write_stories(path, {'train': [plain]}, 'ssid')
    model = make_model(resolve('toy'), StoryFile(path), tmp_path)
    assert len(model.vocab.caption_tokenizer) == len(ARLDM.load(asset('toy/base')).vocab.caption_tokenizer)


def test_words_of_random_weights(tmp_path):
    "A vocabulary made of the captions has a token for each word, in every script."
    path = tmp_path/'own.h5'
    captions = 'हिन्दी बिल्ली', 'кошка спит', "the cat's café"
    write_stories(path, {'train': [Story('s', 'a', captions, [to_png(Image.new('RGB', (32, 32)))]*3)]}, 'ssid')
    model = make_model(resolve('tiny'), StoryFile(path), tmp_path)
    assert model.vocab.unknown_words(captions) == []
    assert model.text_encoder.get_input_embeddings().num_embeddings == len(model.vocab.caption_tokenizer)


# Longer memory

def test_memory_grows_by_itself(run, data, tmp_path, capsys):
    "To the longest story of both splits; what was asked for is obeyed; a resumed run has what it had."
    assert ARLDM.load(run).history.config.n_slots == 8
    assert json.loads((run/'settings.json').read_text())['n_slots'] == 8
    model = make_model(resolve('toy'), StoryFile(data), tmp_path)
    assert 'toy-base has n_slots=5; 3 time embeddings are new' in capsys.readouterr().out
    assert make_model(resolve('tiny'), StoryFile(data), tmp_path).history.config.n_slots == 8
    assert 'time embeddings' not in capsys.readouterr().out
    assert make_model(resolve('toy', n_slots=9), StoryFile(data), tmp_path).history.config.n_slots == 9
    write_stories(tmp_path/'six.h5', dict(train=[story(0, 6)]), 'ssid')
    assert make_model(resolve('toy'), StoryFile(tmp_path/'six.h5'), tmp_path).history.config.n_slots == 6
    with pytest.raises(StoryError, match='has 8 frames, more than the 5'):
        train(tmp_path/'run', data=data, preset='toy', n_slots=5, **HOW)


# What a run says at its end

def test_the_end_of_a_run_says_what_to_do_and_what_rose(run, capsys):
    "A validation loss that has risen is said after training, with its numbers; else only the next command."
    _say_end(run)
    assert capsys.readouterr().out == f'{run}/pipeline is trained; next: arldm-draw {run}\n'
    log = run.parent/'risen'/'log.csv'
    log.parent.mkdir()
    rows = [dict(step=k, loss=1., lr=0., grad_norm=1., stories_per_s=1., val_loss=v) for k, v in ((1, .993), (2, 1.473), (3, 1.656))]
    log.write_text('\n'.join([','.join(rows[0]), *(','.join(map(str, r.values())) for r in rows)]) + '\n')
    _say_end(log.parent)
    assert capsys.readouterr().out.startswith('The validation loss was lowest at step 1 (0.993) and has risen to 1.656: ')


# Few stories

def test_fewer_stories_than_a_step_takes(run, data, tmp_path, capsys):
    train(tmp_path/'run', data=data, preset='tiny', resolution=16, train_batch_size=8, dry_run=True)
    said = 'would train on 6 stories, fewer than the 8 of a step, which takes some several times; nothing was written'
    assert said in capsys.readouterr().out.splitlines()
    taken = [i for i, _ in loop.step_stories(6, 8, 0)]
    assert {taken.count(i) for i in range(6)} == {1, 2} and len(read_log(run/'log.csv')) == 2


# Stories of several lengths

def gradients(model): return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}

def backward(model, s, groups):
    "Loss and gradients as the loop computes them."
    model.zero_grad()
    acc = SimpleNamespace(no_sync=lambda m: torch.enable_grad(), autocast=torch.enable_grad, backward=lambda x: x.backward())
    state = SimpleNamespace(acc=acc, wrapped=model, s=s, places=range(s.stories_per_step), seed_dropout=lambda step, k: None)
    return loop._backward(state, 1, groups).item(), gradients(model)

@pytest.fixture(scope='module')
def tiny(data, tmp_path_factory):
    s = resolve('tiny', resolution=16, train_batch_size=3, gradient_accumulation_steps=2, cond_dropout=.5, crops=1)
    model = make_model(s, StoryFile(data), tmp_path_factory.mktemp('words'))
    stories = StoryDataset(StoryFile(data)['train'], model.vocab, 16, model.memory_side, train=True, crops=1)
    return model.freeze(), stories, s

@pytest.mark.parametrize('cached', [False, True])
def test_the_mean_over_stories(tiny, tmp_path, cached):
    "Loss and gradient of a ragged step are the means of those of its stories, one by one."
    model, stories, s = tiny
    if cached: stories = build_cache(model.freeze(('clip', 'blip', 'words')), stories, tmp_path, progress=False)
    items = [stories[i, 3] for i in range(6)]
    groups = loop.micro_batches(items, s.train_batch_size)
    assert [places for places, _ in groups] == [[0, 2], [1], [3], [4], [5]]
    loss, found = backward(model, s, groups)
    model.zero_grad()
    total = 0.
    for place, item in enumerate(items):
        one = model.loss(collate([item]), [loop._step_generator(s.seed, 1, place)], **loop._loss_options(s))/len(items)
        one.backward()
        total += one.item()
    expected = gradients(model)
    model.freeze()
    assert loss == pytest.approx(total, rel=1e-5) and found.keys() == expected.keys() and len(found) > 100
    largest = max(g.abs().max() for g in expected.values())
    assert max((found[k] - expected[k]).abs().max() for k in found) < 1e-5*largest

def test_one_length_as_ever(tiny):
    "Stories of one length: the loss of whole micro-batches, to the last bit."
    model, stories, s = tiny
    items = [stories[i, epoch] for epoch in range(2) for i in (0, 2, 5)]
    loss, found = backward(model, s, loop.micro_batches(items, s.train_batch_size))
    model.zero_grad()
    batch, total = collate(items), 0.
    for start in 0, 3:
        part = {k: v[start:start + 3] for k, v in batch.items()}
        generators = [loop._step_generator(s.seed, 1, place) for place in range(start, start + 3)]
        one = model.loss(part, generators, **loop._loss_options(s))/2
        one.backward()
        total = total + one.detach()
    expected = gradients(model)
    assert loss == total.item() and all(torch.equal(found[k], expected[k]) for k in expected)

@pytest.mark.skipif(not os.environ.get('ARLDM_SOAK'), reason='a long form: ARLDM_SOAK=1')
def test_two_processes_with_several_lengths(data, tmp_path):
    "Two processes whose groups differ in number compute the steps of one."
    words = ['--data', data, '--preset', 'tiny', '--crops', '0', '--resolution', '32', '--max-train-steps', '3',
             '--autoencoder-steps', '1']
    many = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', '--no-python', 'arldm-train']
    for run, command, size in (tmp_path/'one', ['arldm-train'], 6), (tmp_path/'two', many, 3):
        subprocess.run([*map(str, [*command, run, *words, '--train-batch-size', size])], check=True, timeout=300)
    one, two = ([x['loss'] for x in read_log(tmp_path/name/'log.csv')] for name in ('one', 'two'))
    assert one == pytest.approx(two, rel=1e-4)
    a, b = (torch.load(checkpoints(tmp_path/name/'checkpoints')[-1])['model'] for name in ('one', 'two'))
    assert all(torch.allclose(a[k].float(), b[k].float(), atol=1e-4) for k in a)


# What a run prints

def test_settings_print_what_differs():
    lines = repr(resolve('toy', corpus='ssid', freeze='clip,blip')).splitlines()
    assert lines[0] == 'preset toy, corpus ssid; changed: freeze=clip,blip'
    assert lines[1].startswith('as in the preset: task=visualization model=toy-base blip= bert= resolution=64')
    assert repr(resolve('ssid')).splitlines()[0] == 'preset ssid, corpus ssid'
    assert all(f'{name}=' in repr(resolve('ssid')) for name in SETTINGS if name not in ('preset', 'corpus'))
