"Histories are exchanged and nothing else: captions, noise and first frames stay, and the ordinary way stays ordinary."
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np, pytest, torch
from PIL import Image

from arldm.core import StoryError
from arldm.data.dataset import Vocabulary, word_tokenizers
from arldm.score.intervals import resample
from arldm.draw.pipeline import StoryPipeline
from arldm.draw.frames import Memory
from arldm.score.histories import HISTORY_KINDS, draw_histories, frames_in_memory, history_rows, others
from arldm.model.arldm import ARLDM
from arldm.files.pictures import to_png
from arldm.toy.captions import TOY_WORDS
from arldm.report.page import score_row
from arldm.data.story import StoryFile, write_stories
from arldm.score.table import as_lines
from arldm.toy.corpus import toy_story
from parts import part

HOW = dict(num_inference_steps=2, guidance_scale=2.)

def tell(i, n=3, album=None): # a toy story of `n` frames
    return replace(toy_story(i, n), album=str(i if album is None else album))

def split_of(stories, folder):
    write_stories(folder/'stories.h5', dict(test=stories), 'toy')
    return StoryFile(folder/'stories.h5')['test']

@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    "A pipeline with random weights that heeds what it is reference, for frames of 16 pixels."
    words = word_tokenizers(TOY_WORDS, tmp_path_factory.mktemp('words'))
    torch.manual_seed(0)
    pipe = StoryPipeline.from_model(ARLDM.create('tiny', Vocabulary(*words, 36), 16))
    pipe.set_progress_bar_config(disable=True)
    for name, p in pipe.unet.named_parameters():
        if 'attn2.to_out' in name or 'attn2.to_q' in name: p.data *= 100
    return pipe

def draw(pipe, split, out, **how): # {kind: {id: frames}}
    found = {}
    for kind, story_id, frames in draw_histories(pipe, split, out, **{**HOW, **how}):
        found.setdefault(kind, {})[story_id] = frames
    return found

def levels(a, b): return max(int(abs(np.asarray(x, int) - np.asarray(y, int)).max()) for x, y in zip(a, b, strict=True))


# the histories

@pytest.fixture(scope='module')
def long(tiny, tmp_path_factory):
    "Stories of seven frames, two more than the model has slots, and what was drawn of them."
    folder = tmp_path_factory.mktemp('long')
    split = split_of([tell(i, 7) for i in range(3)], folder)
    return split, draw(tiny, split, folder/'out', seed=5)

def test_own_history_is_the_ordinary_way(tiny, long):
    split, drawn = long
    ordinary = tiny([list(s.captions) for s in split], seed=5, **HOW).frames
    for s, frames in zip(split, ordinary): assert levels(drawn['own'][s.id], frames) <= 1

def test_what_was_drawn_told_again_is_the_own_history(tiny, long, tmp_path):
    split, drawn = long
    same = split_of([replace(s, frames=tuple(map(to_png, drawn['own'][s.id]))) for s in split], tmp_path)
    again = draw(tiny, same, tmp_path/'out', kinds=('reference',), seed=5)['reference']
    for s in split: assert levels(again[s.id], drawn['own'][s.id]) <= 1
    assert min(levels(again[s.id][5:], drawn['reference'][s.id][5:]) for s in split) > 5       # history does matter here

def test_first_frames_are_alike_and_later_ones_are_not(long):
    split, drawn = long
    for s in split:
        assert max(levels(drawn['own'][s.id][:1], drawn[kind][s.id][:1]) for kind in HISTORY_KINDS) <= 1
        later = [drawn[kind][s.id][2:] for kind in HISTORY_KINDS]
        assert min(levels(a, b) for i, a in enumerate(later) for b in later[:i]) > 5

@pytest.mark.parametrize('slots', range(1, 8))
def test_what_is_remembered_is_what_memory_keeps(slots):
    model = SimpleNamespace(history=SimpleNamespace(config=SimpleNamespace(n_slots=slots)),
                            encode_slots=lambda picture, tokens: picture)
    memory = Memory(model)
    for k in range(12):
        assert frames_in_memory(k, slots) == memory.slots
        memory.add(k, dict(memory_ids=None, memory_real=None))

class Recorder:
    "Stands for a pipeline, draws grey, and writes down what it was asked."
    model, history = SimpleNamespace(memory_side=8), torch.nn.Linear(1, 1)
    history.config = SimpleNamespace(n_slots=5, cast=False)
    vae = unet = text_encoder = memory_encoder = torch.nn.Linear(1, 1)
    unet.dtype, scheduler = torch.float32, SimpleNamespace(config={})
    tokenizer = memory_tokenizer = SimpleNamespace(get_vocab=dict)
    def __init__(self): self.asked = {}
    def _latent_shape(self, height, width): return 4, 2, 2
    def __call__(self, captions, given, latents, seed, **how):
        for i, *of in zip(seed, captions, given, latents): self.asked.setdefault(i, []).append(of)
        return SimpleNamespace(frames=[[Image.new('RGB', (16, 16), (len(g),)*3)] for g in given])

def same_picture(a, b): return (np.asarray(a) == np.asarray(b)).all()

def test_what_the_pipeline_is_asked(tmp_path):
    split = split_of([tell(i) for i in range(4)], tmp_path)
    other, noise = others(split), {}
    for kind in HISTORY_KINDS:
        pipe = Recorder()
        draw(pipe, split, tmp_path/'out', kinds=(kind,), batch=3)
        for i, s in enumerate(split):
            past = dict(own=s, reference=s, shuffled=split[other[i]], captions=s, none=None)[kind]
            for k, (captions, given, z) in enumerate(pipe.asked[i]):
                n = k if past else 0
                assert captions == [*(past.captions[:n] if past else ()), s.captions[k]] and len(given) == n
                if kind == 'own': assert [(p.size, p.getpixel((0, 0))[0]) for p in given] == [((8, 8), j) for j in range(n)]
                elif kind == 'captions': assert all(not np.asarray(p).any() for p in given)
                else: assert all(map(same_picture, given, past.pictures()[:n] if past else []))
                assert z.shape == (1, 4, 2, 2) and (noise.setdefault((i, k), z) == z).all()     # in all kinds the same
    assert len({float(z.sum()) for z in noise.values()}) == 12                                   # and nowhere twice

def test_others_are_of_another_album_and_of_the_same_length(tmp_path):
    stories = [tell(4*a + j, 2 + a % 2, album=a) for a in range(9) for j in range(1 + a % 3)]
    split = split_of(stories, tmp_path)
    other = others(split)
    assert list(sorted(other)) == list(range(len(stories))) and other == others(split)
    assert all(stories[i].album != stories[j].album and len(stories[i]) == len(stories[j]) for i, j in other.items())
    pairs = {(stories[i].album, stories[j].album) for i, j in other.items()}
    assert len(pairs) == len({b for _, b in pairs}) == 9                 # each album lends to one and borrows from one

def test_one_album_has_nobody_to_exchange_with(tmp_path):
    split = split_of([tell(i, album=0) for i in range(3)], tmp_path)
    with pytest.raises(StoryError, match='one album .* leave out the kind shuffled'): draw(Recorder(), split, tmp_path/'out')
    assert list(draw(Recorder(), split, tmp_path/'out', kinds=('reference', 'none'))) == ['reference', 'none']
    with pytest.raises(StoryError, match='did you mean shuffled'): draw(Recorder(), split, tmp_path/'out', kinds=('shufled',))


# the folder

def test_stopped_and_started_again(tiny, tmp_path):
    split = split_of([tell(i, 2 + i % 2) for i in range(5)], tmp_path)
    quick = dict(num_inference_steps=1, guidance_scale=1.)
    calm = draw(tiny, split, tmp_path/'calm', **quick)
    assert sorted(p.name for p in (tmp_path/'calm').iterdir()) == sorted(HISTORY_KINDS)
    for n, _ in enumerate(draw_histories(tiny, split, tmp_path/'again', limit=3, batch=2, **quick)):
        if n == 4: break
    rest = draw(tiny, split, tmp_path/'again', batch=3, **quick)
    assert sum(map(len, rest.values())) == 5*5 - 5                       # what was there is not drawn again
    for kind in HISTORY_KINDS:
        for i, s in enumerate(split):
            where = tmp_path/'again'/kind/s.id
            assert sorted(p.name for p in where.iterdir()) == [f'{k}.png' for k in range(1, 3 + i % 2)]
            found = [Image.open(where/f'{k}.png') for k in range(1, len(s) + 1)]
            assert levels(found, calm[kind][s.id]) <= 1

def test_a_torn_picture_is_handed_over_and_hinders_nobody_else(tmp_path):
    stories = [tell(i) for i in range(4)]
    stories[2] = replace(stories[2], frames=(stories[2].frames[0][:200], *stories[2].frames[1:]))
    split = split_of(stories, tmp_path)
    found = draw(Recorder(), split, tmp_path/'out')
    bad = {(kind, name): str(e) for kind, of in found.items() for name, e in of.items() if isinstance(e, StoryError)}
    borrower = next(i for i, j in others(split).items() if j == 2)
    assert set(bad) == {('reference', 's2'), ('shuffled', f's{borrower}')} and all('s2' in e for e in bad.values())
    assert len(list((tmp_path/'out').glob('*/*/3.png'))) == 5*4 - 2


# what it amounts to

ALBUM, RESAMPLES = np.repeat(range(12), 4), resample(12)
def noisy(mean, seed, spread=.1): return mean + np.random.default_rng(seed).normal(0, spread, 48)

def test_rows_tell_what_is_lost():
    reference = noisy(.8, 0)
    rows = history_rows(dict(own=reference - .1, reference=reference, shuffled=reference - noisy(.3, 1),
                             captions=reference - noisy(.2, 3), none=reference + noisy(.2, 2)), ALBUM, RESAMPLES,
                        'remembered facts', '%')
    by_name = {r['name']: r for r in rows}
    assert [r['name'] for r in rows[:5]] == [f'remembered facts, history {kind}' for kind in HISTORY_KINDS]
    lost, gained = by_name['remembered facts, reference − shuffled'], by_name['remembered facts, reference − none']
    assert by_name['remembered facts, reference − captions']['note'].startswith('picture memory is used: remembered facts +2')
    assert lost['value'] == pytest.approx(.3, abs=.05) and 0 < lost['low'] < lost['value'] < lost['high']
    assert lost['note'].startswith('history is used') and gained['note'].startswith('history misleads')
    assert {r['group'] for r in rows} == {'histories'} and all(r['n'] == 48 for r in rows)
    assert {r['unit'] for r in rows[:5]} == {'%'} and {r['unit'] for r in rows[5:]} == {'points'}
    said = f'+{100*lost["value"]:.1f} points'
    assert f'remembered facts {said} with it' in lost['note'] and '%' not in lost['note'].replace('95 %', '')
    line = next(x for x in as_lines(rows).splitlines() if x.startswith(lost['name']))
    assert said in line and line.endswith(f'+{100*lost["low"]:.1f} … +{100*lost["high"]:.1f} points')
    shown = re.sub('<svg.*</svg>', '', part('score', score_row(lost))).replace('95 %', '')
    assert f'>{said} ' in shown and line.rpartition('points  ')[2] in shown and '%' not in shown

def test_a_difference_of_shares_ends_at_a_hundred_points():
    few = np.repeat(range(2), 2), resample(2)
    row = history_rows(dict(reference=np.array([1., 1, 0, 0]), none=np.zeros(4)), *few, 'facts', '%', (0, 1))[-1]
    assert -1 <= row['low'] < row['high'] == 1

def test_the_comparison_is_paired():
    hard = np.repeat(np.random.default_rng(0).normal(0, 5, 12), 4)       # some albums are much harder than others
    row = history_rows(dict(reference=hard + .2, shuffled=hard + noisy(0, 1)), ALBUM, RESAMPLES, 'similarity')[-1]
    assert row['high'] - row['low'] < .2 and row['note'].startswith('history is used')

def test_no_effect_is_called_no_effect():
    row = history_rows(dict(reference=noisy(.5, 0), none=noisy(.5, 1)), ALBUM, RESAMPLES, 'similarity')[-1]
    assert row['low'] < 0 < row['high'] and row['note'].startswith('no significant effect of history')
    same = history_rows(dict(reference=noisy(.5, 0), none=noisy(.5, 0)), ALBUM, RESAMPLES, 'similarity')[-1]
    assert same['note'].startswith('no significant effect')

def test_one_album_gives_no_verdict_and_no_number_that_is_none():
    rows = history_rows(dict(reference=[.5, .6], none=[.1, .2]), np.zeros(2, int), resample(1), 'similarity')
    assert rows[-1]['low'] is None and rows[-1]['note'].startswith('no verdict')
    json.dumps(rows, allow_nan=False)
    with pytest.raises(StoryError, match='3 albums for values of 3 frames .reference., 2 frames .none.'):
        history_rows(dict(reference=[1, 2, 3], none=[1, 2]), np.arange(3), resample(3), 'similarity')


# what is in memory: pictures without captions, a given first frame, cards

@pytest.fixture()
def calls(tiny, monkeypatch):
    "What the pipeline is asked for, one entry for each frame: (captions, given, cast) of the first story."
    asked, plain = [], type(tiny).__call__
    def spy(self, captions, given, *, cast, **how):
        asked.append((captions[0], given[0], cast[0]))
        return plain(self, captions, given, cast=cast, **how)
    monkeypatch.setattr(type(tiny), '__call__', spy)
    return asked

def test_pictures_only_hides_earlier_captions(tiny, calls, tmp_path):
    story = tell(1)
    drawn = draw(tiny, split_of([story], tmp_path), tmp_path/'out', kinds=('own', 'pictures'))
    own, pictures = calls[:3], calls[3:]
    assert [list(captions) for captions, _, _ in pictures] == [['']*k + [story.captions[k]] for k in range(3)]
    assert [list(captions) for captions, _, _ in own] == [list(story.captions[:k+1]) for k in range(3)]
    assert [len(given) for _, given, _ in pictures] == [0, 1, 2]
    assert levels(drawn['own']['s1'][:1], drawn['pictures']['s1'][:1]) <= 1          # the first frame has no history

def test_continuation_starts_from_the_reference(tiny, calls, tmp_path):
    "The first frame is given and not written; all others are drawn, with it in memory."
    story = tell(2)
    drawn = draw(tiny, split_of([story], tmp_path), tmp_path/'out', kinds=('own', 'captions'), first_given=True)
    assert [len(drawn[kind]['s2']) for kind in ('own', 'captions')] == [2, 2]
    assert sorted(p.name for p in (tmp_path/'out/own/s2').iterdir()) == ['2.png', '3.png']
    assert np.array_equal(calls[0][1][0], story.pictures()[0]) and np.array_equal(calls[1][1][0], story.pictures()[0])
    assert calls[2][1][0].getextrema() == ((0, 0),)*3
    with pytest.raises(StoryError, match='history=own, first frame given, not own'): draw(tiny, split_of([story], tmp_path), tmp_path/'out', kinds=('own',))

def test_cards_are_shown_to_models_that_know_them(tiny, calls, tmp_path):
    story = toy_story(3, 3, cards=True)
    split = split_of([story], tmp_path)
    draw(tiny, split, tmp_path/'unknown', kinds=('own',))
    assert [cast for _, _, cast in calls] == [{}]*3
    tiny.history.add_cast()
    calls.clear()
    try: draw(tiny, split, tmp_path/'known', kinds=('own', 'none', 'captions'))
    finally:                                                            # as the other tests want it
        del tiny.history.cast_embedding
        tiny.history.register_to_config(cast=False)
    own, none, captions = calls[:3], calls[3:6], calls[6:]
    for _, _, cast in own + none:
        assert {name: im.tobytes() for name, im in cast.items()} == {name: im.tobytes() for name, im in story.cards().items()}
    assert all(cast.keys() == story.cast.keys() and all(im.getextrema() == ((0, 0),)*3 for im in cast.values())
               for _, _, cast in captions)
