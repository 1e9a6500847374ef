"The laboratory: the ladder climbs and goes on, rows differ only in their history, changes change one thing, numbers are counted."
import itertools
import json
import os
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from arldm.cli import draw as cli
from arldm.lab import commands
from arldm.lab import ladder, own_drawings
from arldm.lab import memory_test
from arldm.lab import ablations
from arldm.lab.drawn_memory import drawn_memory
from arldm.lab.attention import attention, record_attention, show_attention, token_words
from arldm.core import StoryError, asset
from arldm.draw.pipeline import StoryPipeline
from arldm.toy.facts import check_facts
from arldm.toy.reader import read_cards
from arldm.draw.frames import Memory
from arldm.score.histories import draw_histories
from arldm.toy.scene import has_hard
from arldm.data.story import StoryFile
from arldm.train.checkpoint import read_log
from arldm.toy.corpus import toy_story

ROOT = Path(__file__).resolve().parents[2]
FEW = dict(num_inference_steps=2, guidance_scale=2.)

@pytest.fixture(scope='module')
def stories(data): return StoryFile(data)


# the ladder

def test_a_pair_is_one_picture_twice():
    for i in range(20):
        p = ladder.pair_story(i)
        assert p == ladder.pair_story(i) and p.frames[0] == p.frames[1] and p.captions[1] == ladder.REPEAT_CAPTION
        assert not has_hard(ladder.read(p.pictures()[:1])[0])
    assert len({ladder.pair_story(i).captions[0] for i in range(40)}) > 35

def test_random_frames_and_their_figures():
    scenes, frames, figure = ladder.random_frames(30)
    assert ladder.read(frames.permute(0, 2, 3, 1).numpy()) == scenes
    assert ((figure.float().mean((1, 2, 3)) > .02) & (figure.float().mean((1, 2, 3)) < .4)).all()
    assert not torch.equal(frames, ladder.random_frames(30, 1)[1])

def test_what_the_autoencoder_keeps(pipe):
    "Also of what no caption tells, compared with the frame itself; of another autoencoder, next to nothing."
    kept = ladder.facts_kept(pipe.vae, 80)
    assert {'pattern', 'scarf', 'landmark', 'colour', 'position'} <= kept.keys() and min(kept.values()) >= .97
    torch.manual_seed(0)
    assert ladder.facts_kept(ladder.make_vae(**ladder.SIZES['toy']['vae']).eval(), 10)['pattern'] < .6

def test_the_autoencoder_goes_on(tmp_path):
    "Stopped and resumed it has the weights of one that was not."
    how = dict(max_train_steps=4, train_batch_size=2, n=4)
    *_, whole = ladder.train_autoencoder(tmp_path/'a', **how)
    some = ladder.train_autoencoder(tmp_path/'b', **how)
    for _ in range(2): next(some)
    parts = some.gi_yieldfrom.gi_frame.f_locals['parts']
    ladder.save_checkpoint(tmp_path/'b/checkpoints', 2, parts)
    some.close()
    *_, resumed = ladder.train_autoencoder(tmp_path/'b', **how)
    for a, b in zip(whole.parameters(), resumed.parameters()): assert torch.equal(a, b)

def cards_of(story): # name -> look
    return dict(zip(story.cast, read_cards(list(story.cards().values()))))

def test_an_opening_with_cards_shows_who_is_named_as_on_the_card():
    for i in range(60):
        story = ladder.opening(i)
        assert story == ladder.opening(i) and len(story) == 1
        if i % 5 < 2: continue
        cards, (scene,) = cards_of(story), ladder.read(story.pictures())
        named = [name for name in cards if name in story.captions[0]]
        assert len(cards) in (2, 3) and len(set(map(str, cards.values()))) == len(cards) and not has_hard(scene)
        assert [cards[name] for name in named] == [figure.look for figure in scene.figures] and len(named) == 1
    assert {len(ladder.opening(i).cast) for i in range(60)} == {0, 1, 2, 3}

def test_each_name_has_a_look_of_its_own():
    looks = ladder.OWN_LOOKS
    assert len(looks) == 8 == len({(look.colour, look.shape) for look in looks.values()})
    seen = set()
    for i in range(200):
        if i % 5 > 1: continue
        story = ladder.opening(i)
        (scene,), caption = ladder.read(story.pictures()), story.captions[0]
        if i % 5:
            name, = story.cast
            assert not np.asarray(story.cards()[name]).any() and name not in caption and {'He', 'he', 'She', 'she'} & {*caption.replace('.', '').split()}
        else: name, = (name for name in looks if name in caption)
        assert [figure.look for figure in scene.figures] == [looks[name]] and not has_hard(scene)
        assert bool(story.cast) == bool(i % 5)
        seen.add((name, bool(i % 5)))
    assert len(seen) == 16

@pytest.mark.skipif(os.environ.get('ARLDM_SOAK') != '1', reason='long: set ARLDM_SOAK=1')
def test_the_whole_ladder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ladder, 'SPLIT_SIZES', (10, 1, 1, 1))
    monkeypatch.setattr(ladder, 'write_pairs', partial(ladder.write_pairs, n=40, n_val=2))
    monkeypatch.setattr(ladder, 'train_autoencoder', partial(ladder.train_autoencoder, n=8, train_batch_size=2))
    monkeypatch.setattr(ladder, 'NAMES_MIXTURE', (10, 10))
    monkeypatch.setattr(ladder, 'ARLDM_MIXTURE', (10, 2))
    few = dict(n_drawn=3, decoder_steps=2)
    monkeypatch.setattr(own_drawings, 'learn_from_drawings', partial(own_drawings.learn_from_drawings, **few))
    for stage in commands.STAGES: commands.ladder(out=str(tmp_path), stage=stage, max_train_steps=2)
    assert StoryPipeline.from_pretrained(tmp_path/'drawings').model.noise_scheduler.config.prediction_type == 'v_prediction'
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*.safetensors')}
    for stage in commands.STAGES: commands.ladder(out=str(tmp_path), stage=stage, max_train_steps=2)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*.safetensors')}
    with pytest.raises(StoryError, match="no stage 'top'"): commands.ladder(out=str(tmp_path), stage='top')


# attention

def test_recording_changes_nothing(pipe):
    model, tokens = pipe.model, pipe.model.vocab.encode(['Ada jumps.'])
    memory = Memory(model)
    memory.add(torch.randn(1, 3, model.memory_side, model.memory_side), tokens)
    inputs = torch.randn(1, model.unet.config.in_channels, 8, 8), torch.tensor(500), *memory.context(tokens)
    processors = model.unet.attn_processors
    with torch.no_grad():
        plain = model.predict(*inputs)
        with record_attention(model) as recorders: recorded = model.predict(*inputs)
        with pytest.raises(ZeroDivisionError):
            with record_attention(model): 1/0
    assert torch.allclose(plain, recorded, atol=1e-5) and all(recorder.weights for recorder in recorders)
    assert processors == model.unet.attn_processors
    for recorder in recorders:
        weights = recorder.weights[0]
        assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
        assert not weights[..., ~inputs[3][0]].any()                            # what is hidden is not looked at

def test_attention_of_the_first_and_the_last_frame(pipe):
    story = toy_story(3)
    for k in 1, 5:
        w = attention(pipe, list(story.captions), story.pictures(), k)
        S = pipe.model.vocab.length
        assert w.shape == (k, S, 8, 8) and torch.allclose(w.sum((0, 1)), torch.ones(8, 8), atol=1e-5)
        words = token_words(pipe.model.vocab, story.captions[k-1], True)
        assert len(words) == S

def test_attention_to_cards(pipe):
    "Each card has its part, and those that there is no room for have none, as in drawing."
    story = toy_story(3, cards=True)
    captions, pictures, cast = list(story.captions), story.pictures(), story.cards()
    room = pipe.model.history.config.n_slots - 1
    many = dict(cast)
    for name in 'Uma', 'Vic', 'Wim', 'Xan': many[name] = pictures[0]
    for k in 1, 3:
        few = attention(pipe, captions, pictures, k, cast=cast)
        assert few.shape[0] == 1 + len(cast) + k - 1 and torch.allclose(few.sum((0, 1)), torch.ones(8, 8), atol=1e-5)
        other_order = attention(pipe, captions, pictures, k, cast=dict(reversed(cast.items())))
        assert torch.allclose(other_order[[0, 2, 1, *range(3, len(few))]], few, atol=1e-4)
        assert attention(pipe, captions, pictures, k, cast=many).shape[0] == 1 + room + k - 1
        assert show_attention(attention(pipe, captions, pictures, k, cast=many), pipe.model.vocab, captions, pictures, k,
                              cast=many).width > show_attention(few, pipe.model.vocab, captions, pictures, k, cast=cast).width
        one_more = show_attention(few, pipe.model.vocab, captions, pictures, k, cast=cast)
        with pytest.raises(StoryError, match='its caption, 0 cards and'):
            show_attention(few, pipe.model.vocab, captions, pictures, k)
        alone = attention(pipe, captions, pictures, k)
        assert show_attention(alone, pipe.model.vocab, captions, pictures, k).width < one_more.width
    # another picture on a card changes where a frame attends
    swapped = dict(zip(cast, reversed(cast.values())))
    assert not torch.allclose(attention(pipe, captions, pictures, 3, cast=swapped), few, atol=1e-3)


def test_light_falls_where_attention_is(pipe):
    "Also on a wide picture, of which the middle is seen; a long title has room."
    wide = Image.new('RGB', (128, 64), 'red')
    wide.paste((0, 0, 255), (32, 0, 96, 64))     # the square in the middle is blue
    weights = torch.full((1, pipe.model.vocab.length, 8, 8), 1e-4)
    weights[..., 7, 0] = 1                       # the lower left corner
    figure = np.asarray(show_attention(weights, pipe.model.vocab, ['Ada jumps.'], [wide], 1, side=80).convert('RGB'), int)
    lit = figure[22 + 86:22 + 86 + 80, 12:92]
    assert lit[..., 0].max() < 40 and lit[72:, :8, 2].min() > 200 and lit[:70, 10:, 2].max() < 60
    plain = np.asarray(show_attention(weights[:, :, :1], pipe.model.vocab, ['Ada jumps.'], [wide], 1, side=8).convert('RGB'))
    assert plain.shape[1] > 60


# the memory test

def test_rows_differ_in_their_history_only(tmp_path, pipe, stories):
    split = stories['test']
    kinds = ('none', 'captions', 'own', 'reference')
    drawn = {(kind, i): frames for kind, i, frames in draw_histories(pipe, split, tmp_path, kinds, 'drawn', limit=1, **FEW)}
    first = [np.asarray(frames[0]).astype(int) for frames in drawn.values()]
    assert len(first) == 4 and max(abs(a - first[0]).max() for a in first) <= 1   # the first frame has no history
    later = {kind: np.asarray(frames[2]).astype(int) for (kind, _), frames in drawn.items()}
    far = {(a, b): abs(later[a] - later[b]).max() for a, b in itertools.combinations(kinds, 2)}
    assert far.pop(('own', 'reference')) > 0 and min(far.values()) > 3   # its own frames are nearly the reference frames
    assert {p.parent.parent.parent.name for p in tmp_path.rglob('1.png')} == {*kinds}

def test_captions_only_has_black_pictures(tmp_path, pipe, stories, monkeypatch):
    "Whatever the story shows, the drawing is the same."
    split, seen = stories['test'], []
    plain = pipe.__class__.__call__
    monkeypatch.setattr(pipe.__class__, '__call__', lambda self, captions, given, **how:
                        (seen.append(given), plain(self, captions, given, **how))[1])
    for _ in draw_histories(pipe, split, tmp_path, ('captions',), limit=1, **FEW): pass
    assert [len(g[0]) for g in seen] == [0, 1, 2, 3, 4]
    assert all(im.getextrema() == ((0, 0),)*3 for g in seen for im in g[0])

def test_guessed_rows_obey(stories):
    s = stories['test'][0]
    right = check_facts(s, dict(enumerate(memory_test._draw_guesses(s, 0), 1)))
    assert all(all(x) for name, x in right.items() if name.startswith('stated'))
    assert not all(all(x) for x in right.values())
    assert [a.tobytes() for a in memory_test._draw_guesses(s, 0)] == [a.tobytes() for a in memory_test._draw_guesses(s, 0)]
    assert [a.tobytes() for a in memory_test._draw_guesses(s, 0)] != [a.tobytes() for a in memory_test._draw_guesses(s, 1)]

def test_stories_for_a_cast(tmp_path):
    "The stories of each split are those of that split; swapped ones have the same captions, and cards exchanged."
    plain, swapped = (StoryFile(memory_test.cast_stories(tmp_path/f'{swap}.h5', swap, n=4)) for swap in (False, True))
    for split in 'test', 'hard':
        for i in range(4):
            a, b = plain[split][i], swapped[split][i]
            assert a == memory_test.cast_story(i, split == 'hard') and b == memory_test.cast_story(i, split == 'hard', True)
            assert a.captions == b.captions and a.frames != b.frames
            assert list(a.cast) == list(b.cast) and set(a.cast.values()) == set(b.cast.values()) and a.cast != b.cast
        is_hard = [has_hard(ladder.read(plain[split][i].pictures()[:1])[0]) for i in range(4)]
        assert is_hard == [split == 'hard']*4
    assert plain['test'][0].captions != plain['hard'][0].captions

def test_the_memory_test_as_a_table():
    def cell(v): return dict(value=v, low=v - .01, high=v + .01, spread=0, n=9)
    rows = {'AR-LDM': {'stated facts': cell(.99), 'facts on cards': cell(.5), 'distance': cell(.125),
                       'frames': {'facts on cards': {'1': .9, '2': None, '10': .8}, 'remembered facts': {2: .6, 10: .4}}},
            'chance': {'stated facts': cell(1.), 'facts on cards': dict(value=.25, low=None, high=None),
                       'frames': {'remembered facts': {2: .25}}}}
    assert memory_test.memory_table(rows).splitlines() == [
        '|  | stated facts, % | facts on cards, % | distance |', '| --- | --: | --: | --: |',
        '| AR-LDM | 99.0 (98.0…100.0) | 50.0 (49.0…51.0) | 0.125 (0.115…0.135) |',
        '| chance | 100.0 (99.0…101.0) | 25.0 |  |']
    assert memory_test.drift_table(rows).splitlines() == [
        '| AR-LDM, % | frame 1 | frame 2 | frame 10 |', '| --- | --: | --: | --: |', '| remembered facts |  | 60.0 | 40.0 |',
        '| facts on cards | 90.0 |  | 80.0 |']
    assert memory_test.drift_table(rows, 'chance').splitlines()[2:] == ['| remembered facts | 25.0 |']

def test_the_chapter_shows_the_scores_that_were_measured():
    "The table of the memory test's chapter is the saved one of the journey, without its last column; the README's is a part."
    def rows(text):
        cells = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines() if line.startswith('|')]
        return [row for row in cells if not row[1].startswith('-')]
    def cells(name): return json.loads((ROOT/'nbs'/name).read_text())['cells']
    chapter = [''.join(c['source']) for c in cells('lab/75_memory_test.ipynb') if c['cell_type'] == 'markdown']
    shown = [rows(text) for text in chapter if rows(text)]
    saved = [c for c in cells('journey.ipynb') if "memory_test(out='runs/memory-test')" in ''.join(c['source'])]
    measured = rows(''.join(saved[0]['outputs'][0]['data']['text/markdown']))
    assert shown == [[row[:-1] for row in measured]]
    assert [row[0] for row in measured[1:]] == [*memory_test.ROWS]
    # and the README's rows are rows of it, its headline two of its values
    values = {row: [cell.split(' (')[0] for cell in cells] for row, *cells in measured[1:]}
    named = {'text to image, no story': 'text to image', 'AR-LDM, history of another story': 'history shuffled',
             'AR-LDM, earlier captions without any picture': 'captions only',
             'AR-LDM, earlier pictures without their captions': 'pictures only', 'AR-LDM': 'AR-LDM', 'chance': 'chance'}
    readme = (ROOT/'README.md').read_text().replace('\xa0', ' ')
    head, *lines = rows(readme[readme.index('| 100 unseen stories'):].replace('**', '').split('\n\n')[0])
    assert head[1:] == ['stated', 'remembered', 'given', 'seen', 'on cards'] and [line[0] for line in lines] == [*named]
    for name, *shown in lines:
        stated, remembered, seen, given, on_cards, *_ = values[named[name]]
        assert [x.removesuffix(' %').replace('–', '') for x in shown] == [stated, remembered, given, seen, on_cards], name
    for row, column in ('text to image', 1), ('AR-LDM', 1), ('AR-LDM', 3):
        assert f'{float(values[row][column]):.0f} %' in readme.split('![')[0]


# ablations

def test_changes_change_one_thing(pipe):
    model = StoryPipeline.from_pretrained(asset('toy/arldm')).model
    ablations.without_time(model)
    assert not model.history.time_embedding.weight.any() and model.history.type_embedding.weight.any()
    assert [n for n, p in model.named_parameters() if not p.requires_grad and 'vae' not in n] == ['history.time_embedding.weight']
    ablations.drop_stories(model)
    dropped = [model.random_inputs((5, 4, 8, 8), torch.Generator().manual_seed(i), cond_dropout=.5)[3] for i in range(40)]
    assert {int(d.sum()) for d in dropped} == {0, 5}

def test_stories_changed(tmp_path):
    item = dict(memory=torch.full((5, 3, 8, 8), 100, dtype=torch.uint8), moments=torch.ones(2), id='s')
    assert not ablations.without_pictures(item, random.Random(0))['memory'].any() and item['memory'].all()
    noisy = ablations.noisy_memory(item, random.Random(0))
    assert noisy['memory'].dtype == torch.uint8 and noisy['memory'].float().std() > 5 and noisy['moments'] is item['moments']
    assert torch.equal(noisy['memory'], ablations.noisy_memory(item, random.Random(0))['memory'])
    change = drawn_memory(tmp_path)
    assert change(item, random.Random(0)) is item                                 # nothing is drawn yet
    (tmp_path/'s').mkdir()
    for k in range(1, 6): Image.new('RGB', (64, 64), (k, 0, 0)).save(tmp_path/f's/{k}.png')
    got = [change(item, random.Random(i)) for i in range(100)]
    own = [x for x in got if x is not item]
    assert 30 < len(own) < 70 and own[0]['memory'][:, 0, 0, 0].tolist() == [1, 2, 3, 4, 5]

def test_what_an_experiment_changes_arrives(tmp_path, stories):
    "Settings change the loss of the first step; a change in drawing trains nothing and draws with the control's weights."
    one = partial(ablations.run_experiment, base=asset('toy/base'), file=stories, max_train_steps=1, seed=0, limit=1, **FEW)
    for name, change in dict(control={}, snr=dict(snr_gamma=5.)).items(): one(tmp_path/name, settings=dict(train_batch_size=2) | change)
    losses = [read_log(tmp_path/name/'log.csv')[0]['loss'] for name in ('control', 'snr')]
    assert losses[0] != losses[1]
    one(tmp_path/'middle', drawing=dict(guidance_interval=(.5, 1)), control=tmp_path/'control')
    assert {p.name for p in (tmp_path/'middle').iterdir()} == {'own'}
    frame = next((tmp_path/'middle/own').rglob('5.png')).relative_to(tmp_path/'middle')
    assert (tmp_path/'middle'/frame).read_bytes() != (tmp_path/'control'/frame).read_bytes()

def test_ablations_of_a_file_that_is_not_there(tmp_path):
    "A mistyped name writes no corpus beside whatever is there."
    with pytest.raises((StoryError, SystemExit)): commands.ablations('tricks', out=str(tmp_path/'out'), data=str(tmp_path/'no.h5'))
    assert not [*tmp_path.iterdir()]

def test_experiments_are_compared_story_by_story():
    "Twenty stories, each asked ten things; the second experiment knows one more of each."
    def of(right): return [[i, j < right] for i in range(20) for j in range(10)]
    results = {name: dict.fromkeys(ablations.FACT_KINDS[:3], of(n)) for name, n in (('control', 5), ('better', 6), ('same', 5))}
    control, better, same = ablations.compare_experiments(results, 50)
    assert control['stated − control'] is None and better['stated'] == .6
    assert np.allclose(better['stated − control'], .1) and np.allclose(same['late − control'], 0)
    assert ablations.experiment_line(better).startswith('better') and '(+10.0: +10.0…+10.0)' in ablations.experiment_line(better)
    assert ablations.experiments_table([control, better]).splitlines()[2:] == ['| control | 50.0 | 50.0 | 50.0 |',
        '| better | ' + ' | '.join(['60.0 (+10.0, +10.0…+10.0)']*3) + ' |']

@pytest.mark.parametrize('n', [1, 2])
def test_experiments_on_few_stories_have_possible_intervals(n):
    "A difference of shares is between -100 and 100 points; from one story there is no interval."
    def of(first, second): return dict.fromkeys(ablations.FACT_KINDS[:1], [[i, r] for i, r in enumerate((first, second)[:n])])
    *_, other = ablations.compare_experiments({'control': of(True, False), 'other': of(False, True)}, 50)
    value, low, high = other['stated − control']
    if n == 1: assert (value, low, high) == (-1, None, None) and ablations.experiment_line(other).endswith('(-100.0)')
    else: assert value == 0 and -1 <= low <= high <= 1 and '…' in ablations.experiment_line(other)


# a story of one's own

def test_shipped_weights_draw_beside_the_text(tmp_path):
    "Nothing is drawn into a pipeline folder; drawn again, a frame changes alone."
    (tmp_path/'mine.txt').write_text('Ada is a big red star.\nShe jumps.\n')
    where = cli.draw(str(asset('toy/arldm')), captions=str(tmp_path/'mine.txt'), num_inference_steps=2, guidance_scale=1.)
    assert where == tmp_path/'mine-drawn'
    assert {p.name for p in where.iterdir()} == {'1.png', '2.png', 'manifest.json', 'strip.png'}
    first = (where/'1.png').read_bytes(), (where/'2.png').read_bytes()
    cli.draw(str(asset('toy/arldm')), captions=str(tmp_path/'mine.txt'), redraw='2', seed=9, num_inference_steps=2, guidance_scale=1.)
    assert (where/'1.png').read_bytes() == first[0] and (where/'2.png').read_bytes() != first[1]
    assert not (asset('toy/arldm')/'own').exists()
