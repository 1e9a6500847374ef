"Learning from own drawings: what they decided, noise that leads to them, items to train on, and rounds that go on."
import itertools
import random
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from arldm.core import StoryError, asset
from arldm.data.dataset import StoryDataset, collate, pixels
from arldm.data.story import StoryFile, write_stories
from arldm.draw.pipeline import StoryPipeline
from arldm.lab import drawn_latents, drawn_memory, own_drawings
from arldm.lab.drawn_latents import decoded_pictures, draw_latents, load_drawn
from arldm.lab.ladder import opening
from arldm.lab.own_drawings import (decided_scenes, from_own_drawings, learn_from_drawings,
                                    noise_between, own_examples)
from arldm.model.arldm import ARLDM
from arldm.toy.corpus import toy_story
from arldm.toy.facts import facts_by_frame, read_story
from arldm.toy.figures import draw_scene
from arldm.toy.reader import read
from arldm.toy.scene import LANDMARKS, PATTERNS, SCARVES

FEW = dict(num_inference_steps=2, guidance_scale=1.5)

@pytest.fixture(autouse=True)
def few(monkeypatch): # steps of denoising, and frames
    for module in drawn_latents, own_drawings: monkeypatch.setattr(module, 'MEMORY_SAMPLING', FEW)
    monkeypatch.setattr(drawn_latents, 'random_frames', lambda n, seed, plain=drawn_latents.random_frames: plain(min(n, 8), seed))

@pytest.fixture(scope='module')
def stories(tmp_path_factory):
    path = tmp_path_factory.mktemp('own')/'s.h5'
    train = [toy_story(i, cards=i % 2 == 1) for i in range(10)] + [opening(i) for i in range(2)]
    write_stories(path, {'train': train, 'val': [toy_story(11)]}, 'toy')
    return StoryFile(path)

def other_looks(scene, rng): # other patterns, scarves and landmark, all else the same
    figures = []
    for figure in scene.figures:
        look = replace(figure.look, pattern=rng.choice(PATTERNS), scarf=rng.choice([*SCARVES]))
        figures.append(replace(figure, look=look))
    return replace(scene, figures=tuple(figures), landmark=rng.choice(LANDMARKS[scene.place]))

@pytest.mark.parametrize('cards', [False, True])
@pytest.mark.parametrize('n_given', [0, 1])
def test_what_was_decided_is_all_that_changes(cards, n_given):
    "Drawn as decided, a story has every fact right, and none but patterns, scarves and landmarks differ from the reference."
    rng = random.Random(0)
    n_changed = 0
    for i in range(8):
        story = toy_story(i, cards=cards)
        wanted, _ = read_story(story)
        shown = [other_looks(scene, rng) for scene in wanted[n_given:]]
        decided = decided_scenes(story, shown)
        first = shown[0] if not n_given else wanted[0]
        if not cards: assert decided[0] == first      # the first frame decides all it shows
        assert decided[:n_given] == list(wanted[:n_given])
        pictures = {k + 1: draw_scene(scene) for k, scene in enumerate(decided) if k >= n_given}
        facts = facts_by_frame(story, pictures)
        assert all(all(right) for of_frame in facts.values() for right in of_frame.values())
        n_changed += sum(a != b for a, b in zip(decided, wanted))
        assert [other_looks(scene, random.Random(k)) for k, scene in enumerate(decided)] == [
            other_looks(scene, random.Random(k)) for k, scene in enumerate(wanted)]
    if not (cards and n_given): assert n_changed > 8

def test_what_a_drawing_does_not_show_decides_nothing():
    "Without its figures, or at another place, a frame is wanted as the story has it; the next one that shows them decides."
    story = next(story for story in map(toy_story, itertools.count()) if len({s.place for s in read_story(story)[0][:2]}) == 1)
    wanted, _ = read_story(story)
    rng = random.Random(1)
    while True:
        shown = [other_looks(scene, rng) for scene in wanted]
        if all(a != b for a, b in zip(shown, wanted)): break
    empty = replace(shown[0], figures=())
    first, second, *_ = decided_scenes(story, [empty, *shown[1:]])
    assert first == replace(wanted[0], landmark=shown[0].landmark)
    assert second == replace(shown[1], landmark=shown[0].landmark)
    elsewhere = next(place for place in LANDMARKS if place != wanted[0].place)
    wrong = replace(shown[0], place=elsewhere, landmark=LANDMARKS[elsewhere][0])
    first, second, *_ = decided_scenes(story, [wrong, *shown[1:]])
    assert first == replace(shown[0], landmark=wanted[0].landmark) and second.landmark == shown[1].landmark

def test_examples(stories, tmp_path):
    "Memory holds the drawings, what is learnt are the decided scenes, and the noise leads to the drawing's own noisy latents."
    start = asset('toy/arldm')
    paths = draw_latents(tmp_path/'out', start, start, stories['train'], range(3))
    drawn, model = load_drawn(paths), ARLDM.load(start)
    examples = own_examples(model, stories['train'], paths)
    assert list(examples) == stories['train'].ids[:3]
    for i, own in enumerate(examples.values()):
        story, rows = stories['train'][i], drawn['story'] == i
        n_given = 5 - int(rows.sum())
        assert n_given == (i == 0)
        frames = decoded_pictures(model, drawn['latents'][rows])
        assert torch.equal(own['memory'], pixels(story.pictures()[:n_given] + frames))
        scenes = decided_scenes(story, read(frames))
        with torch.no_grad(): means, _ = model.moments(pixels(list(map(draw_scene, scenes)))[None])[0].chunk(2, 1)
        assert torch.equal(own['moments'][:, :8], means) and (own['moments'][:, 8:] < -20).all()
        assert (own['timesteps'][:n_given] == -1).all()
        for step, t in enumerate(drawn['timesteps'][rows][0]):
            z = means[n_given:]*model.vae.config.scaling_factor
            noisy = model.noise_scheduler.add_noise(z, own['noise'][n_given:, step], t.expand(len(z)))
            assert torch.allclose(noisy, drawn['noisy'][rows][:, step], atol=1e-3)

def some_examples():
    torch.manual_seed(0)
    own = dict(memory=torch.ones(3, 3, 64, 64, dtype=torch.uint8), moments=torch.ones(3, 16, 8, 8),
               noise=torch.randn(3, 2, 8, 8, 8), timesteps=torch.tensor([[-1, -1], [999, 500], [999, 500]]))
    item = dict(id='a', memory=torch.zeros(3, 3, 64, 64, dtype=torch.uint8), moments=torch.zeros(3, 16, 8, 8), index=0)
    return {'a': own}, item

def test_items_take_their_own_noise_or_random_one():
    examples, item = some_examples()
    change = from_own_drawings(examples, .6)
    changed = [change(item, random.Random(i)) for i in range(400)]
    for found in changed:
        assert torch.equal(found['memory'], examples['a']['memory']) and torch.equal(found['moments'], examples['a']['moments'])
        assert found['timesteps'][0] == -1     # that frame was given
        for k in 1, 2:
            t = int(found['timesteps'][k])
            if t >= 0: assert torch.equal(found['noise'][k], examples['a']['noise'][k, [999, 500].index(t)])
    own = [found['timesteps'].tolist() for found in changed if found['timesteps'][1] >= 0]
    assert len(own)/400 == pytest.approx(.6, abs=.08)
    assert {tuple(t) for t in own} == {(-1, a, b) for a in (999, 500) for b in (999, 500)}    # each frame its own step
    plain = change({**item, 'id': 'b'}, random.Random(0))
    assert (plain['timesteps'] == -1).all() and all(plain[name] is item[name] for name in ('memory', 'moments'))

def test_the_loss_takes_noise_and_timesteps_of_the_batch(stories, monkeypatch):
    "Frame by frame, in step with the frames to draw, and random ones where there is none; stories without it stay as they are."
    model = ARLDM.load(asset('toy/arldm'))
    items = StoryDataset(stories['train'], model, 64)
    batch = collate([items[0], items[2]])
    def seeded(*seeds): return [torch.Generator().manual_seed(seed) for seed in seeds]
    torch.manual_seed(0)
    own = dict(noise=torch.randn(2, 5, 8, 8, 8), timesteps=torch.tensor([[7, 900, -1, 30, -1], [-1]*5]))
    found = model.loss({**batch, **own}, seeded(1, 2), n_given=1, cond_dropout=.5)
    def replaced(self, *args, plain=ARLDM.random_inputs, stories=iter((0, 1)), **how):
        sample, noise, t, dropped = plain(self, *args, **how)
        i = next(stories)
        for k, own_t in enumerate(own['timesteps'][i, 1:]):
            if own_t >= 0: noise[k], t[k] = own['noise'][i, k + 1], own_t
        return sample, noise, t, dropped
    plain = model.loss(batch, seeded(1, 2), n_given=1, cond_dropout=.5)
    monkeypatch.setattr(ARLDM, 'random_inputs', replaced)
    expected = model.loss(batch, seeded(1, 2), n_given=1, cond_dropout=.5)
    assert torch.allclose(found, expected, rtol=1e-5) and not torch.allclose(found, plain, rtol=1e-3)

def test_noise_between_is_what_the_scheduler_adds():
    model = ARLDM.load(asset('toy/arldm'))
    torch.manual_seed(0)
    latents, noise, t = torch.randn(3, 8, 8, 8), torch.randn(3, 2, 8, 8, 8), torch.tensor([[999, 10]]*3)
    noisy = torch.stack([model.noise_scheduler.add_noise(latents, noise[:, k], t[:, k]) for k in range(2)], 1)
    assert torch.allclose(noise_between(model, latents, noisy, t), noise, atol=1e-4)

@pytest.fixture
def small(monkeypatch): # steps on two stories, each of which is a checkpoint
    often = dict(train_batch_size=2, checkpointing_steps=1)
    monkeypatch.setattr(own_drawings, 'resolve', lambda preset, plain=own_drawings.resolve, **s: plain(preset, **s, **often))

def recorded(monkeypatch, name): # what a function of the module is called with
    calls = []
    def call(*args, plain=getattr(own_drawings, name)):
        calls.append(args)
        return plain(*args)
    monkeypatch.setattr(own_drawings, name, call)
    return calls

HOW = dict(max_train_steps=2, decoder_steps=2, n_drawn=3)

def test_each_round_draws_and_learns_with_the_model_of_the_one_before(small, stories, tmp_path, monkeypatch):
    start, run = asset('toy/arldm'), tmp_path/'run'
    names = 'draw_latents', 'sharpen_decoder', 'own_examples', 'train_changed'
    drawing, sharpening, examples, training = (recorded(monkeypatch, name) for name in names)
    assert learn_from_drawings(run, start, stories.path, **HOW) == run/'pipeline'
    first = run/'round1'
    # the second round compares the latents of the first one, and reads all by the first decoder
    of_first = first/'latents', start, start, [0, 1, 2]
    expected = [of_first, of_first, (run/'latents', first/'pipeline', start, [5, 6, 7])]
    assert [(folder, pipeline, decoder, places) for folder, pipeline, decoder, _, places in drawing] == expected
    assert [(folder, pipeline, [p.parent.parent for p in paths], steps) for folder, pipeline, paths, steps, _ in sharpening] == [
        (first/'decoder', start, [first], 2), (run/'decoder', first/'pipeline', [first, run], 2)]
    assert [[p.parent.parent for p in paths] for _, _, paths in examples] == [[first], [run]]
    ids = stories['train'].ids
    rounds = [[*ids[:5], ids[10]], [*ids[5:10], ids[11]]]    # drawn ones, plain ones, an opening
    for (folder, sharp, split, s, _, change), (model, _, paths), chosen in zip(training, examples, rounds):
        assert sharp == folder/'decoder/pipeline' and split.ids == chosen and s.cast_probability == 1
        decoder = ARLDM.load(sharp).vae.decoder.state_dict()
        for name, w in model.vae.decoder.state_dict().items(): assert torch.equal(w, decoder[name])
        item = dict(id=chosen[0], moments=torch.zeros(5, 16, 8, 8), memory=None)
        expected = own_examples(model, stories['train'], paths)[chosen[0]]
        assert torch.equal(change(item, random.Random(0))['memory'], expected['memory'])
    assert len(training) == 2
    old, new = (torch.cat([w.flatten() for w in StoryPipeline.from_pretrained(x).unet.parameters()]) for x in (run/'decoder/pipeline', run/'pipeline'))
    assert not torch.equal(old, new)

def weights(folder):
    pipe = StoryPipeline.from_pretrained(folder)
    return torch.cat([w.flatten() for part in (pipe.unet, pipe.vae) for w in part.parameters()])

def test_rounds_go_on(small, stories, tmp_path, monkeypatch):
    """Stopped in the second round and run again it has the weights of a run that was not stopped; nothing is drawn or trained twice,
    but for latents that are gone: no round trains on a part of them."""
    how = dict(HOW, start=asset('toy/arldm'), data=stories.path)
    whole = learn_from_drawings(tmp_path/'whole', **how).parent
    taken = []
    def stopped(*args, plain=drawn_memory.train_steps): # after the third step
        for record in plain(*args):
            taken.append(record['step'])
            yield record
            if len(taken) == 3: return
    parts = tmp_path/'parts'
    monkeypatch.setattr(drawn_memory, 'train_steps', stopped)
    with pytest.raises(SystemExit): learn_from_drawings(parts, **how)
    assert not (parts/'pipeline').exists() and (parts/'round1/pipeline').exists()
    shutil.rmtree(parts/'round1/latents')
    before = {path: path.stat().st_mtime_ns for path in parts.rglob('*.safetensors') if 'checkpoints' not in path.parts}
    drawing, sharpening = (recorded(monkeypatch, name) for name in ('draw_latents', 'sharpen_decoder'))
    learn_from_drawings(parts, **how)
    assert taken == [1, 2, 1, 2]
    assert all(path.stat().st_mtime_ns == t for path, t in before.items())
    assert len(drawing) == 2 and [len(paths) for _, _, paths, _, _ in sharpening] == [2]
    assert torch.equal(weights(whole/'pipeline'), weights(parts/'pipeline'))
    # a finished run needs none of its earlier rounds
    shutil.rmtree(parts/'round1')
    learn_from_drawings(parts, **how)
    assert not (parts/'round1').exists()

def test_other_rounds_are_refused(small, stories, tmp_path):
    run, how = tmp_path/'run', dict(HOW, start=asset('toy/arldm'), data=stories.path, n_rounds=1)
    learn_from_drawings(run, **how)
    others = {'n_drawn=3, not 2': dict(n_drawn=2), 'seed=0, not 1': dict(seed=1), 'max_train_steps=2, not 3': dict(max_train_steps=3),
              'decoder_steps=2, not 3': dict(decoder_steps=3), 'model=': dict(start=asset('toy/base')), 'n_rounds=1, not 2': dict(n_rounds=2),
              'need 20 training stories and 4 openings, found 10 and 2': dict(n_drawn=6, n_rounds=2),
              'n_drawn must be at least 1': dict(n_drawn=0), 'n_rounds must be at least 1': dict(n_rounds=0),
              'max_train_steps': dict(max_train_steps=0)}
    for said, other in others.items():
        with pytest.raises(StoryError, match=said): learn_from_drawings(run, **{**how, **other})
    pipe = StoryPipeline.from_pretrained(asset('toy/arldm'))
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path/'euler')
    with pytest.raises(StoryError, match='scales latents'): learn_from_drawings(tmp_path/'new', **{**how, 'start': tmp_path/'euler'})
    assert not (tmp_path/'new').exists()
    # what a finished run was made from may be deleted; it has as many steps as before
    for part in 'latents', 'decoder': shutil.rmtree(run/part)
    learn_from_drawings(run, **{**how, 'max_train_steps': None})
    assert not (run/'latents').exists()
