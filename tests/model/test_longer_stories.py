"Stories longer than those that a model was trained on: it gets more slots, in a setting, and says so."
import json, warnings

import pytest
import torch
from PIL import Image

from arldm.train.setup import make_model
from arldm.core import StoryError, asset
from arldm.draw.pipeline import StoryPipeline
from arldm.draw.frames import Memory
from arldm.model.history import HistoryEmbeddings
from arldm.model.arldm import ARLDM
from arldm.files.pictures import to_png
from arldm.cli.draw import draw
from arldm.cli.train import train
from arldm.settings import resolve
from arldm.data.story import Story, StoryFile, write_stories

LONG = 8   # frames

def story(i, length=LONG):
    "A story of plain pictures in changing colours."
    pictures = [to_png(Image.new('RGB', (64, 64), (20*k, 30*i, 200 - 20*k))) for k in range(length)]
    return Story(f's{i}', f'a{i}', tuple(f'a big red star jumps {k}' for k in range(length)), pictures)

@pytest.fixture(scope='module')
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp('long')/'long.h5'
    write_stories(path, {'train': [story(i) for i in range(3)], 'val': [story(3)], 'test': [story(4)]}, 'toy')
    return path

HOW = dict(preset='toy', train_batch_size=1, crops=0, checkpointing_steps=2, num_validation_stories=1)

@pytest.fixture(scope='module')
def run(file, tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')/'run'
    train(folder, data=file, n_slots=LONG, max_train_steps=2, **HOW)
    return folder

def test_refused_without_room(file, tmp_path):
    "Too few slots asked for: the line names the flag that makes room; nothing is written."
    with pytest.raises(StoryError, match='has 8 frames, more than the 5 .* or start a new run with --n-slots 8'):
        train(tmp_path/'run', data=file, n_slots=5, max_train_steps=2, **HOW)
    assert not (tmp_path/'run').exists()

def test_trained_and_drawn(run):
    "The finished pipeline has the slots, and its last frame remembers all seven before it."
    assert json.loads((run/'settings.json').read_text())['n_slots'] == LONG
    pipe = StoryPipeline.from_pretrained(run)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.history.config.n_slots == LONG and len(pipe.history.time_embedding.weight) == LONG
    memory, tokens = Memory(pipe.model), pipe.model.vocab.encode(['a big red star'])
    for _ in range(LONG - 1): memory.add(torch.zeros(1, 3, 64, 64), tokens)
    assert len(memory) == LONG - 1
    frames = pipe(list(story(0).captions), num_inference_steps=2).frames[0]
    assert len(frames) == LONG

def test_forgotten_frames_are_said(run, tmp_path, capsys):
    "One warning, from the pipeline and the command, when a story has more frames than slots; none when it has not."
    captions = list(story(0).captions)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', 'a story has more frames')
        for n, folder in (5, asset('toy/arldm')), (LONG, run):
            pipe = StoryPipeline.from_pretrained(folder)
            pipe.set_progress_bar_config(disable=True)
            pipe(captions[:n], num_inference_steps=1)
    pipe = StoryPipeline.from_pretrained(asset('toy/arldm'))
    pipe.set_progress_bar_config(disable=True)
    with pytest.warns(UserWarning, match='which has n_slots=5: each frame remembers only the first and the newest 3 of the frames before it, and forgets the others.*--n-slots') as said:
        pipe([captions, captions], num_inference_steps=1)
    assert sum('more frames' in str(w.message) for w in said) == 1
    (tmp_path/'story.txt').write_text('\n'.join(captions) + '\n')
    with pytest.warns(UserWarning, match='has more frames than the model, which has n_slots=5') as said:
        draw(asset('toy/arldm'), captions=str(tmp_path/'story.txt'), num_inference_steps=1)
    assert sum('more frames' in str(w.message) for w in said) == 1

def test_goes_on(run, file, capsys):
    "A resumed run has the same slots, and does not say again what is new; others are another run."
    train(run, max_train_steps=3)
    said = capsys.readouterr().out
    assert 'parameters train on' in said and 'are new' not in said and 'new word' not in said
    assert ARLDM.load(run).history.config.n_slots == LONG
    with pytest.raises(StoryError, match='was trained with n_slots=8, not 9'): train(run, n_slots=9, max_train_steps=4)

def test_new_rows(file, tmp_path, capsys):
    "Old rows stay, new ones are random with the same spread, the same for the same seed, and it is said."
    base = ARLDM.load(asset('toy/base')).history.time_embedding.weight
    n = len(base)
    s = resolve('toy', n_slots=n + 200)
    rows = make_model(s, StoryFile(file), tmp_path).history.time_embedding.weight
    assert f'toy-base has n_slots={n}; 200 time embeddings are new' in capsys.readouterr().out
    again = make_model(s, StoryFile(file), tmp_path).history.time_embedding.weight
    assert torch.equal(rows, again) and torch.equal(rows[:n], base) and rows.requires_grad
    assert rows[n:].detach().std().item() == pytest.approx(base.std().item(), rel=.1)

def test_random_models_have_them_at_once(file, tmp_path, capsys):
    model = make_model(resolve('tiny', n_slots=7), StoryFile(file), tmp_path)
    assert model.history.config.n_slots == 7 and 'time embeddings' not in capsys.readouterr().out

def test_slots_are_not_taken_away(run, file, tmp_path):
    with pytest.raises(StoryError, match='has n_slots=8, got n_slots=5; slots can be added'):
        train(tmp_path/'run', data=file, model=str(run), n_slots=5, max_train_steps=2, **HOW)

@pytest.mark.parametrize('n, message', [(-1, 'n_slots must not be below 0'), (5000, 'n_slots must be at most 1,000')])
def test_refused_numbers(n, message):
    with pytest.raises(StoryError, match=message): resolve('toy', n_slots=n)

def test_saved_and_loaded(tmp_path):
    "The number of slots travels with the part."
    history = HistoryEmbeddings(8).resize(9)
    history.save_pretrained(tmp_path)
    loaded = HistoryEmbeddings.from_pretrained(tmp_path)
    assert loaded.config.n_slots == 9 and torch.equal(loaded.time_embedding.weight, history.time_embedding.weight)
