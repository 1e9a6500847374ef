"A decoder for drawn latents: mixtures are measured, patterns balanced, latents kept, and only the decoder changes."
import itertools
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from arldm.core import StoryError, asset
from arldm.data.dataset import pixels, to_target
from arldm.data.story import StoryFile, write_stories
from arldm.draw.pipeline import StoryPipeline
from arldm.lab import drawn_latents, ladder
from arldm.lab.drawn_latents import (balance, decoder_examples, draw_latents, load_drawn, pattern_weights,
                                     sharpen_decoder, train_decoder)
from arldm.model.arldm import ARLDM
from arldm.toy.corpus import toy_story
from arldm.toy.figures import draw_scene
from arldm.toy.reader import read
from arldm.toy.scene import PATTERNS

FEW = dict(num_inference_steps=2, guidance_scale=1.5)

@pytest.fixture(autouse=True)
def few(monkeypatch): # steps of denoising, and frames
    monkeypatch.setattr(drawn_latents, 'MEMORY_SAMPLING', FEW)
    monkeypatch.setattr(drawn_latents, 'random_frames', lambda n, seed, plain=drawn_latents.random_frames: plain(min(n, 100), seed))

@pytest.fixture(scope='module')
def stories(tmp_path_factory):
    path = tmp_path_factory.mktemp('latents')/'s.h5'
    write_stories(path, {'train': [toy_story(i, cards=i % 2 == 1) for i in range(5)], 'val': [toy_story(9)]}, 'toy')
    return StoryFile(path)

def with_patterns(scene, patterns):
    figures = [replace(f, look=replace(f.look, pattern=p)) for f, p in zip(scene.figures, patterns)]
    return replace(scene, figures=tuple(figures))

def two_figures():
    for i in itertools.count():
        for scene in read(toy_story(i).pictures()):
            if len(scene.figures) == 2: return scene

@pytest.mark.parametrize('i', [0, 1])
def test_weights_of_each_figure(i):
    "Of one pattern, of a mixture with the right shares, and of the figure asked for, whatever the other one has."
    scene = two_figures()
    for a, b in itertools.permutations(range(4), 2):
        patterns = [PATTERNS[(a + 1) % 4]]*2
        def picture(p):
            patterns[i] = PATTERNS[p]
            return np.asarray(draw_scene(with_patterns(scene, patterns)), float)
        assert np.allclose(pattern_weights(picture(a), scene, i), np.eye(4)[a], atol=1e-6)
        mixed = .6*picture(a) + .4*picture(b)
        assert np.allclose(pattern_weights(mixed, scene, i), .6*np.eye(4)[a] + .4*np.eye(4)[b], atol=1e-6)

def test_balance_is_even_and_leaves_clear_cases_alone():
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(800, 4))/20 + [.2, .1, .5, .2]
    offsets = balance(mixed)
    assert np.bincount((mixed + offsets).argmax(1), minlength=4) == pytest.approx([200]*4, abs=5)
    clear = np.eye(4)[rng.integers(4, size=100)]
    assert ((clear + offsets).argmax(1) == clear.argmax(1)).all()
    assert np.abs(balance(np.eye(4)[np.arange(400) % 4])).max() < .01    # nothing to correct

def test_latents_are_those_the_pipeline_draws(stories, tmp_path):
    "Of every story, with its cards, every third one from its own first frame; only openings without either decide."
    start = asset('toy/arldm')
    [path] = draw_latents(tmp_path/'out', start, start, stories['train'], range(5))
    found = load_file(path)
    pipe = StoryPipeline.from_pretrained(start)
    expected, decides, places = [], [], []
    for i in range(5):
        story = stories['train'][i]
        given = story.pictures()[:1] if i in (0, 3) else []
        n = 5 - len(given)
        noise = torch.randn(n, 8, 8, 8, generator=torch.Generator().manual_seed(i))
        expected += pipe(list(story.captions), given, cast=story.cards(), latents=[noise], output_type='latent', **FEW).frames[0]
        decides += [i in (2, 4) and k == 0 for k in range(n)]
        places += [(i, k) for k in range(len(given), 5)]
    assert torch.allclose(found['latents'], torch.stack(expected), atol=1e-3) and found['decides'].tolist() == decides
    assert list(zip(found['story'].tolist(), found['frame'].tolist())) == places
    assert found['weights'].shape == (23, 3, 4) and not found['weights'][:, 0].isnan().any()

def test_noisy_latents_lead_to_the_drawn_ones(stories, tmp_path):
    "The first ones are noise; a step of the scheduler from the last ones gives the latents that were drawn."
    start = asset('toy/arldm')
    found = load_drawn(draw_latents(tmp_path/'out', start, start, stories['train'], range(1)))
    story = stories['train'][0]
    noise = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found['noisy'][:, 0], noise)
    pipe = StoryPipeline.from_pretrained(start)
    visited = []
    def keep(pipe, step, t, tensors): # before the UNet sees them again
        visited.append((int(t), tensors['latents'].clone()))
        return {}
    pipe(list(story.captions), story.pictures()[:1], latents=[noise], cast=story.cards(), callback_on_step_end=keep, **FEW)
    timesteps = [t for t, _ in visited[:2]]
    assert found['timesteps'].tolist() == [timesteps]*4 and timesteps == sorted(timesteps, reverse=True)
    for k in range(4):
        (_, after_first), (_, after_last) = visited[2*k:2*k + 2]
        assert torch.allclose(found['noisy'][k, 1], after_first[0], atol=1e-3)
        assert torch.allclose(found['latents'][k], after_last[0], atol=1e-3)

def test_examples_are_the_nearest_clear_frames(stories, tmp_path):
    start = asset('toy/arldm')
    paths = draw_latents(tmp_path/'out', start, start, stories['train'], range(5))
    latents, frames, figures, patterns = decoder_examples(paths)
    vae = ARLDM.load(start).vae
    with torch.no_grad(): decoded = vae.decode(latents/vae.config.scaling_factor).sample
    decoded = ((decoded.clamp(-1, 1) + 1)*127.5).round().byte()
    scenes, found = (read(list(x.permute(0, 2, 3, 1).numpy())) for x in (decoded, frames))
    plain = [with_patterns(scene, ['plain']*3) for scene in scenes]
    assert [with_patterns(scene, ['plain']*3) for scene in found] == plain       # only patterns may differ from what was read
    assert torch.equal(frames, pixels([draw_scene(scene) for scene in found]))
    # where a pattern is clear, it is that of the drawing
    for n, (scene, other) in enumerate(zip(scenes, found)):
        for i, figure in enumerate(scene.figures):
            weights = pattern_weights(decoded[n].permute(1, 2, 0).numpy(), scene, i)
            if weights.max() > .9: assert other.figures[i].look.pattern == PATTERNS[weights.argmax()]
    checks, dots = (pixels([draw_scene(with_patterns(scene, [pattern]*3)) for scene in found]).int() for pattern in ('checks', 'dots'))
    differ = ((checks - dots).abs() > 30).any(1, True)
    assert differ.any() and (patterns | ~differ).all()
    assert patterns.shape == figures.shape and not (patterns & ~figures).any()
    assert figures.shape == (23, 1, 64, 64) and figures.any((1, 2, 3)).all() and not figures.all((1, 2, 3)).any()

def test_drawing_goes_on_and_is_of_one_model(stories, tmp_path, monkeypatch):
    monkeypatch.setattr(drawn_latents, '_SHARD', 2)
    start = asset('toy/arldm')
    whole = draw_latents(tmp_path/'whole', start, start, stories['train'], range(5))
    assert len(whole) == 3
    def killed(*args, plain=drawn_latents.save_file, done=[]):
        if done: raise KeyboardInterrupt
        done.append(plain(*args))
    with monkeypatch.context() as patch:
        patch.setattr(drawn_latents, 'save_file', killed)
        with pytest.raises(KeyboardInterrupt): draw_latents(tmp_path/'parts', start, start, stories['train'], range(5))
    [kept] = (tmp_path/'parts').glob('*.safetensors')
    before = kept.stat().st_mtime_ns
    monkeypatch.setattr(drawn_latents, '_SHARD', 3)     # files of other stories are not mixed with these
    with pytest.raises(StoryError, match='places='): draw_latents(tmp_path/'parts', start, start, stories['train'], range(5))
    monkeypatch.setattr(drawn_latents, '_SHARD', 2)
    parts = draw_latents(tmp_path/'parts', start, start, stories['train'], range(5))
    assert kept.stat().st_mtime_ns == before and [p.name for p in parts] == [p.name for p in whole]
    for a, b in zip(whole, parts): assert torch.allclose(load_file(a)['latents'], load_file(b)['latents'], atol=1e-3)
    others = {'start=': (asset('toy/base'), start, 'train', range(5)), 'decoder=': (start, asset('toy/base'), 'train', range(5)),
              'stories=': (start, start, 'val', range(1)), 'places=': (start, start, 'train', range(4))}
    for said, (drawing, decoder, split, places) in others.items():
        with pytest.raises(StoryError, match=said): draw_latents(tmp_path/'whole', drawing, decoder, stories[split], places)

def some_examples(vae):
    frames = pixels([draw_scene(scene) for scene in read(toy_story(3).pictures())])
    torch.manual_seed(0)
    latents = torch.randn(5, 8, 8, 8)
    return latents, frames, *torch.ones(2, 5, 1, 64, 64, dtype=bool)

def test_only_the_decoder_learns_and_it_goes_on(tmp_path):
    "Stopped after a step it has the weights of one that was not stopped; the encoder and its latents stay."
    how = dict(max_train_steps=3, train_batch_size=4)
    vaes = [ARLDM.load(asset('toy/arldm')).vae for _ in range(3)]
    whole, parts, resumed = vaes
    before = {name: w.clone() for name, w in whole.state_dict().items()}
    examples = some_examples(whole)
    for _ in train_decoder(tmp_path/'a', whole, examples, **how): pass
    for name, w in whole.state_dict().items():
        assert torch.equal(w, before[name]) != name.startswith(('decoder', 'post_quant_conv')), name
    steps = train_decoder(tmp_path/'b', parts, examples, **how)
    next(steps)
    ladder.save_checkpoint(tmp_path/'b/checkpoints', 1, steps.gi_yieldfrom.gi_frame.f_locals["parts"])
    steps.close()
    assert [step for step, _ in train_decoder(tmp_path/'b', resumed, examples, **how)] == [2, 3]
    for a, b in zip(whole.parameters(), resumed.parameters()): assert torch.equal(a, b)
    fresh = ARLDM.load(asset('toy/arldm')).vae
    others = {'examples=': dict(examples=(examples[0] + 1, *examples[1:])), 'seed=0, not 1': dict(seed=1), 'max_train_steps=3, not 4': dict(max_train_steps=4),
              'train_batch_size=4, not 8': dict(train_batch_size=8), 'autoencoder=': dict(vae=whole), 'at least 2': dict(train_batch_size=1)}
    for said, other in others.items():
        with pytest.raises(StoryError, match=said): next(train_decoder(tmp_path/'b', **{**dict(vae=fresh, examples=examples), **how, **other}))

def test_the_decoder_learns_its_examples(tmp_path):
    "Latents that no encoder makes come to show the frames they have to become."
    vae = ARLDM.load(asset('toy/arldm')).vae
    losses = [loss for _, loss in train_decoder(tmp_path, vae, some_examples(vae), max_train_steps=40, train_batch_size=8)]
    assert np.mean(losses[-5:]) < .7*np.mean(losses[:5])

def test_pixels_of_patterns_weigh_more():
    "By 40 times their absolute error, in drawn and in random frames."
    vae = ARLDM.load(asset('toy/arldm')).vae
    latents, frames, figures, _ = some_examples(vae)
    none = torch.zeros(5, 1, 64, 64, dtype=bool)
    left = none.clone()
    left[..., :8] = True
    losses = []
    for drawn, random_ones in ((none, none), (left, none), (none, left)):
        torch.manual_seed(1)
        examples = latents, frames, figures, drawn
        losses.append(drawn_latents._decoder_loss(vae, examples, (frames, figures, random_ones), 2).item())
    assert losses[2] > losses[0]
    torch.manual_seed(1)
    row = torch.randint(5, (1,))
    with torch.no_grad(): decoded = vae.decode(latents[row]/vae.config.scaling_factor).sample
    error = (decoded - to_target(frames[row])).abs()[..., :8].sum()/(2*decoded.numel())
    assert losses[1] - losses[0] == pytest.approx(40*error.item(), rel=1e-3)

def test_sharpening_changes_the_decoder_only(stories, tmp_path, monkeypatch):
    start = asset('toy/arldm')
    paths = draw_latents(tmp_path/'latents', start, start, stories['train'], range(2))
    how = dict(start=start, paths=paths, max_train_steps=2)
    run = tmp_path/'run'
    assert sharpen_decoder(run, **how) == run/'pipeline'
    old, new = (StoryPipeline.from_pretrained(folder) for folder in (start, run/'pipeline'))
    for part in 'unet', 'text_encoder', 'memory_encoder', 'history', 'vae':
        for (name, a), (_, b) in zip(*(getattr(pipe, part).named_parameters() for pipe in (old, new))):
            changes = part == 'vae' and name.startswith(('decoder', 'post_quant_conv'))
            assert torch.equal(a, b) != changes, (part, name)
    others = {'seed=0, not 1': dict(seed=1), 'max_train_steps=2, not 3': dict(max_train_steps=3), 'start=': dict(start=asset('toy/base')),
              'latents=': dict(paths=paths*2)}
    for said, other in others.items():
        with pytest.raises(StoryError, match=said): sharpen_decoder(run, **{**how, **other})
    monkeypatch.setattr(drawn_latents, 'PATTERN_WEIGHT', 0)
    with pytest.raises(StoryError, match='pattern_weight=40, not 0'): sharpen_decoder(run, **how)

def test_stories_of_one_frame_are_drawn(tmp_path):
    "Also as every third one; and of a few openings nothing is balanced."
    story = toy_story(0)
    write_stories(tmp_path/'s.h5', {'train': [replace(story, captions=story.captions[:1], frames=story.frames[:1])]}, 'toy')
    start = asset('toy/arldm')
    paths = draw_latents(tmp_path/'out', start, start, StoryFile(tmp_path/'s.h5')['train'], range(1))
    assert load_file(paths[0])['decides'].tolist() == [True]
    heaviest = PATTERNS[load_file(paths[0])['weights'][0, 0].argmax()]
    [found] = read([decoder_examples(paths)[1][0].permute(1, 2, 0).numpy()])
    assert found.figures[0].look.pattern == heaviest

def test_mixtures_become_all_patterns_equally_often(tmp_path):
    "Of 200 openings that lean to dots, and not of a figure that is clear."
    [scene] = read(toy_story(5).pictures()[:1])
    rng = np.random.default_rng(0)
    weights = np.full((201, 3, 4), np.nan)
    weights[:200, 0] = rng.normal(size=(200, 4))/20 + [.2, .1, .5, .2]
    weights[200, 0] = np.eye(4)[PATTERNS.index('dots')]
    decides = torch.arange(201) < 200
    scenes = json.dumps([asdict(scene)]*201)
    drawn_latents.save_file(dict(latents=torch.zeros(201, 8, 8, 8), decides=decides, weights=torch.tensor(weights)),
                            tmp_path/'000000.safetensors', dict(scenes=scenes))
    _, frames, *_ = decoder_examples([tmp_path/'000000.safetensors'])
    patterns = [found.figures[0].look.pattern for found in read(list(frames.permute(0, 2, 3, 1).numpy()))]
    assert [patterns[:200].count(p) for p in PATTERNS] == pytest.approx([50]*4, abs=3) and patterns[200] == 'dots'
