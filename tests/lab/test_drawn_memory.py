"Drawings in memory: which frames may be replaced, what is drawn from what, and that a training goes on."
import itertools
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from arldm.core import StoryError, asset
from arldm.data.story import StoryFile, write_stories
from arldm.draw.pipeline import StoryPipeline
from arldm.files.pictures import decode
from arldm.lab import drawn_memory
from arldm.lab.drawn_memory import Changed, deciding_frames, draw_memory, remembered_frames, train_with_drawings
from arldm.toy.corpus import toy_story
from arldm.toy.reader import read, read_cards

FEW = dict(num_inference_steps=2, guidance_scale=1.5)

def decides(story): # the rule in other words: something in the frame has not been shown by a card or an earlier frame
    known = {(look.colour, look.shape) for look in read_cards(list(story.cards().values()))}
    found = []
    for scene in read(story.pictures()):
        shown = {scene.place} | {(figure.look.colour, figure.look.shape) for figure in scene.figures}
        found.append(not shown <= known)
        known |= shown
    return found

@pytest.mark.parametrize('cards', [False, True])
def test_frames_that_show_something_for_the_first_time(cards):
    stories = [toy_story(i, cards=cards) for i in range(12)]
    found = list(map(deciding_frames, stories))
    assert found == list(map(decides, stories))
    assert all(first for first, *_ in found) and not all(map(all, found))
    assert cards or any(any(later) for _, *later in found)

def test_cards_leave_fewer_frames_to_decide():
    "With a card of each character only a new place decides anything."
    of = [sum(map(sum, (deciding_frames(toy_story(i, cards=cards)) for i in range(12)))) for cards in (False, True)]
    assert of[1] < of[0]

def test_what_memory_holds(pipe):
    "A frame that decides something is the reference; the others are what the pipeline draws after that memory."
    stories = [toy_story(0), toy_story(5, cards=True), toy_story(7)]
    memories = remembered_frames(pipe, stories, [0, 100, 200], **FEW)
    for story, memory, seed in zip(stories, memories, (0, 100, 200)):
        assert len(memory) == len(story)
        for k, decides in enumerate(deciding_frames(story)):
            if decides or k == 4: expected = story.pictures()[k]                               # the last one is never remembered
            else: [expected] = pipe(list(story.captions[:k + 1]), memory[:k], cast=story.cards(), seed=seed + k, **FEW).frames[0]
            assert np.abs(np.asarray(memory[k], int) - np.asarray(expected, int)).max() <= 1    # alone or in a batch
    drawn = [not decides for story in stories for decides in deciding_frames(story)[:4]]
    assert any(drawn)

def test_drawing_goes_on_and_is_of_one_model(data, tmp_path, monkeypatch):
    "Killed between two stories it is completed; what is there is not drawn again; another model or other stories are refused."
    monkeypatch.setattr(drawn_memory, 'MEMORY_SAMPLING', FEW)
    stories = StoryFile(data)['train']
    folder = draw_memory(tmp_path/'whole', asset('toy/arldm'), stories, 3)
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == sorted(stories.ids[:3])
    def killed(*args, plain=drawn_memory.write_drawing, done=[]):
        if done: raise KeyboardInterrupt
        done.append(plain(*args))
    with monkeypatch.context() as patch:
        patch.setattr(drawn_memory, 'write_drawing', killed)
        with pytest.raises(KeyboardInterrupt): draw_memory(tmp_path/'parts', asset('toy/arldm'), stories, 3)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path/'parts').rglob('*.png')}
    assert len(before) == 5
    draw_memory(tmp_path/'parts', asset('toy/arldm'), stories, 3)
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    for path in folder.rglob('*.png'):
        other = tmp_path/'parts'/path.relative_to(folder)
        a, b = (np.asarray(decode(p.read_bytes()), int) for p in (path, other))
        assert np.abs(a - b).max() <= 1
    with pytest.raises(StoryError, match='start='): draw_memory(folder, asset('toy/base'), stories, 3)
    with pytest.raises(StoryError, match='stories='): draw_memory(folder, asset('toy/arldm'), StoryFile(data)['val'], 3)

def test_no_drawing_leaves_its_folder(tmp_path):
    story = toy_story(0)
    write_stories(tmp_path/'s.h5', {'train': [replace(story, id='../x')]}, 'toy')
    with pytest.raises(StoryError, match='x'): draw_memory(tmp_path/'here', asset('toy/arldm'), StoryFile(tmp_path/'s.h5')['train'], 1)
    assert not (tmp_path/'x').exists()

class Items: # stories are numbers, and may be asked for in an epoch
    def __len__(self): return 5
    def __getitem__(self, i): return i

def test_changed_stories():
    changed = Changed(Items(), lambda item, rng: (item, rng.random()), 3)
    assert len(changed) == 3 and changed[1] == changed[1] != changed[2]
    assert changed[1, 0] == changed[1, 0] and changed[1, 0][1] != changed[1, 1][1]

def weights(folder):
    return torch.cat([w.flatten() for w in StoryPipeline.from_pretrained(folder).unet.parameters()])

def test_a_training_with_drawings_goes_on(data, tmp_path, monkeypatch):
    "Stopped after a step and run again it takes the other one, and has the weights of one that was not stopped; drawings change what is learnt."
    monkeypatch.setattr(drawn_memory, 'MEMORY_SAMPLING', FEW)
    often = dict(train_batch_size=3, checkpointing_steps=1)
    monkeypatch.setattr(drawn_memory, 'resolve', lambda preset, plain=drawn_memory.resolve, **s: plain(preset, **s, **often))
    taken = []
    def counted(*args, plain=drawn_memory.train_steps):
        for record in plain(*args):
            taken.append(record['step'])
            yield record
    def stopped(*args): return itertools.islice(counted(*args), 1)
    monkeypatch.setattr(drawn_memory, 'train_steps', counted)
    how = dict(start=asset('toy/arldm'), data=data, max_train_steps=2)
    whole = weights(train_with_drawings(tmp_path/'whole', **how, n_drawn=3))
    with monkeypatch.context() as patch:
        patch.setattr(drawn_memory, 'train_steps', stopped)
        with pytest.raises(SystemExit): train_with_drawings(tmp_path/'parts', **how, n_drawn=3)
    assert not (tmp_path/'parts/pipeline').exists()
    parts = train_with_drawings(tmp_path/'parts', **how, n_drawn=3)
    assert taken == [1, 2, 1, 2] and torch.equal(whole, weights(parts))
    assert not torch.equal(whole, weights(train_with_drawings(tmp_path/'control', **how, n_drawn=0)))
    assert not (tmp_path/'control/drawings').exists()
    others = {'n_drawn=3, not 2': dict(n_drawn=2), 'seed=0, not 1': dict(seed=1), 'max_train_steps=2, not 3': dict(max_train_steps=3),
              'model=': dict(start=asset('toy/base'))}
    for said, other in others.items():
        with pytest.raises(StoryError, match=said): train_with_drawings(tmp_path/'whole', **{'n_drawn': 3, **how, **other})
    # the drawings of a finished run may be deleted
    shutil.rmtree(tmp_path/'whole/drawings')
    train_with_drawings(tmp_path/'whole', **how, n_drawn=3)
    assert not (tmp_path/'whole/drawings').exists()
