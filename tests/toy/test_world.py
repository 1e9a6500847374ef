"The toy world: pictures are read without error, captions state what they should, held-out scenes stay out, guesses are fair."
import json, random, re
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from PIL import Image

from arldm.toy import corpus as toy
from arldm.cli.convert import convert
from arldm.toy.facts import action_in, chance, check_facts, compare_scenes, stated_facts, guess
from arldm.toy.reader import read
from arldm.toy.captions import PRONOUNS, TOY_WORDS, describe, invent, tell
from arldm.toy.figures import draw_scene
from arldm.toy.scene import (ACCESSORIES, ACTIONS, COLOURS, PLACES, POSITIONS, SHAPES, RADII,
                             TIMES_OF_DAY, Figure, Look, Scene, has_hard, is_hard, random_scene)
from arldm.data.story import StoryFile

STAR, DISC = Look('red', 'star', 'big', 'hat'), Look('blue', 'circle', 'small', 'nothing')

def scene(*figures, place='forest', time='night'): return Scene(place, time, figures)
def both(a='stand', b='stand'): return scene(Figure(STAR, 'left', a), Figure(DISC, 'right', b))

@pytest.fixture(scope='module')
def stories(): return [invent(random.Random(i)) for i in range(400)]


# pictures

def test_every_figure_is_read_everywhere():
    "Each of the 576 figures, over the three columns and all 18 landscapes in turn."
    lands, columns = list(product(PLACES, TIMES_OF_DAY)), list(POSITIONS)
    looks = [Look(*x) for x in product(COLOURS, SHAPES, RADII, ACCESSORIES)]
    scenes = [Scene(*lands[i % 18], (Figure(look, columns[i//18 % 3], a),))
              for i, (look, a) in enumerate(product(looks, ACTIONS))]
    assert read([draw_scene(s) for s in scenes]) == scenes

def test_pairs_of_neighbours_are_read():
    rng = random.Random(2)
    scenes = [s for s in (random_scene(rng) for _ in range(600)) if len(s.figures) == 2]
    assert len(scenes) > 200 and read([draw_scene(s) for s in scenes]) == scenes

def test_three_figures_and_nobody_are_read():
    "No story has them, a model may draw them."
    crowd = tuple(Figure(Look(c, sh, 'small', 'bow'), p) for c, sh, p in zip(COLOURS, SHAPES, POSITIONS))
    for s in scene(), scene(*crowd): assert read([draw_scene(s)]) == [s]

def test_larger_greyer_and_noisy_pictures():
    rng = random.Random(4)
    scenes = [random_scene(rng) for _ in range(40)]
    assert read([draw_scene(s, 128) for s in scenes]) == scenes
    assert read([np.asarray(draw_scene(s, 256)) for s in scenes[:2]]) == scenes[:2]
    rgba = [draw_scene(s).convert('RGBA') for s in scenes]
    assert read(rgba) == scenes
    noise = np.random.default_rng(0).normal(0, 40, (40, 64, 64, 3))
    assert read((np.stack([draw_scene(s) for s in scenes]) + noise).clip(0, 255).astype(np.uint8)) == scenes

def test_a_picture_alone_reads_as_among_others():
    rng = random.Random(5)
    frames = [draw_scene(random_scene(rng)) for _ in range(12)]
    assert [read([f])[0] for f in frames] == read(frames)

def test_all_pictures_differ():
    "No two scenes look alike: one fact changed changes pixels."
    s = scene(Figure(STAR, 'middle'))
    others = [replace(s, place=p) for p in PLACES] + [replace(s, time=t) for t in TIMES_OF_DAY]
    others += [scene(Figure(replace(STAR, **{k: v}), 'middle')) for k, of in
               dict(colour=COLOURS, shape=SHAPES, size=RADII, accessory=ACCESSORIES).items() for v in of]
    others += [scene(Figure(STAR, p, a)) for p in POSITIONS for a in ACTIONS]
    seen = {draw_scene(x).tobytes() for x in others}
    assert len(seen) == len({*others})


# stories

def test_held_out_combinations_are_never_shown(stories):
    assert not any(has_hard(b.scene) for beats in stories for b in beats)
    rng = random.Random(0)
    assert not any(has_hard(random_scene(rng)) for _ in range(500))
    assert all(is_hard(b.place, f.look) for i in range(50) for b in invent(random.Random(i), hard=True)[:1]
               for f in b.cast.values())

def test_each_pair_of_held_out_facts_is_shown(stories):
    seen = {(b.place, f.look.colour, f.look.shape) for beats in stories for b in beats for f in b.cast.values()}
    for i, j in combinations(range(3), 2):
        sizes = [len(x) for x in (PLACES, COLOURS, SHAPES)]
        assert len({(x[i], x[j]) for x in seen}) == sizes[i]*sizes[j]

def test_nothing_changes_without_an_event(stories):
    "Looks never change; place, time, cast, positions and actions change only by the event that is told."
    for beats in stories:
        for a, b in zip(beats, beats[1:]):
            looks = {n: f.look for n, f in [*a.cast.items(), *b.cast.items()]}
            assert all(f.look == looks[n] for x in (a, b) for n, f in x.cast.items())
            assert (a.place != b.place) == (b.event == 'travel') and (a.time != b.time) == (b.event == 'time')
            came, went = b.cast.keys() - a.cast.keys(), a.cast.keys() - b.cast.keys()
            assert came == ({b.who} if b.event in ('come', 'back') else set())
            assert went == ({b.who} if b.event == 'leave' else set())
            for n in a.cast.keys() & b.cast.keys():
                assert (a.cast[n].position != b.cast[n].position) == (b.event == 'walk' and b.who == n)
                assert b.cast[n].action == (b.event if b.event in ('jump', 'sleep') and b.who in ('', n) else 'stand')
            assert len({f.position for f in b.cast.values()}) == len(b.cast) in (1, 2)

def test_who_returns_has_been_there(stories):
    assert any(b.event == 'back' for beats in stories for b in beats)
    for beats in stories:
        for k, b in enumerate(beats): assert (b.event == 'back') == (b.event in ('come', 'back') and
                                                                    any(b.who in x.cast for x in beats[:k]))

def test_captions_name_one_of_those_who_can_be_meant(stories):
    "A word for a look or a person fits whom the beat is about, and nobody else who is there."
    for i, beats in enumerate(stories):
        for before, b, caption in zip([None, *beats], beats, tell(beats, random.Random(i))):
            words = {*re.findall('[a-z]+', caption.lower())}
            there = before.cast if b.event == 'leave' else b.cast
            if b.event == 'back': there = {b.who: b.cast[b.who]}                   # only who is away can come back
            if not b.who or b.event in ('open', 'come'): continue
            for n, f in there.items():
                about = n == b.who
                for w in (n, f.look.colour, f.look.shape): assert about or w not in words, caption
            if len(there) == 2 and words & {'he', 'she'}: assert before.who == b.who, caption
            if words >= {'other', 'one'}: assert before.who and before.who != b.who and len(there) == 2, caption

def test_the_same_story_in_many_words():
    beats = invent(random.Random(1))
    assert len({' '.join(tell(beats, random.Random(i))) for i in range(50)}) > 40

def test_every_word_is_known(stories):
    said = [c for i, beats in enumerate(stories) for c in tell(beats, random.Random(i))]
    said += [describe(b.scene, random.Random(i)) for i, beats in enumerate(stories) for b in beats[:1]]
    assert {*re.findall('[a-z]+', ' '.join(said).lower())} <= {*TOY_WORDS}


# stated and remembered

ALL = {'colour', 'shape', 'size', 'accessory', 'position', 'action'}

@pytest.mark.parametrize('caption, s, stated', [
    ('Ada, a big red star with a hat, is in the forest on the left at night.', scene(Figure(STAR, 'left')),
     [{'place', 'time', 'cast'}, ALL]),
    ('Bo, a small blue circle, comes along on the right.', both(), [{'cast'}, set(), ALL]),
    ('Ada jumps.', scene(Figure(STAR, 'left', 'jump')), [set(), {'action'}]),
    ('Ada jumps.', both('jump'), [set(), set(), set()]),
    ('The red one jumps.', both('jump'), [set(), {'colour', 'action'}, set()]),
    ('The circle falls asleep.', both('stand', 'sleep'), [set(), set(), {'shape', 'action'}]),
    ('The other one hops up high.', both('jump'), [set(), set(), set()]),
    ('They take a nap.', both('sleep', 'sleep'), [{'cast'}, {'action'}, {'action'}]),
    ('Bo walks to the right.', both(), [set(), set(), set()]),
    ('The star steps to the left.', both(), [set(), {'shape', 'position', 'action'}, set()]),
    ('She goes to the left.', scene(Figure(STAR, 'left')), [set(), {'position', 'action'}]),
    ('The other one goes home.', scene(Figure(STAR, 'left')), [{'cast'}, {'action'}]),
    ('Night falls.', both(), [{'time'}, set(), set()]),
    ('The sun goes down.', both(), [{'time'}, set(), set()]),
    ('Now they are in the forest.', both(), [{'place', 'cast'}, {'action'}, {'action'}])])
def test_stated_facts(caption, s, stated): assert stated_facts(caption, s) == stated

def test_actions():
    for words, act in {'Eve leaps for joy.': 'jump', 'They take a nap.': 'sleep', 'Leo falls asleep.': 'sleep',
                       'Night falls.': 'stand', 'She waits.': 'stand'}.items(): assert action_in(words) == act

def test_each_fact_is_checked_once():
    right = compare_scenes('The red one jumps.', both('jump'), both('jump'))
    assert sum(map(len, right.values())) == 3 + 12 and all(map(all, right.values()))
    assert {k for k in right if k.startswith('stated')} == {'stated colour', 'stated action'}

def test_a_missing_figure_is_wrong_in_everything():
    right = compare_scenes('The red one jumps.', both('jump'), scene(Figure(STAR, 'left', 'jump')))
    assert right['stated action'] == right['stated colour'] == [True] and right['remembered cast'] == [False]
    assert right['remembered shape'] == [True, False] and right['remembered action'] == [False]

def test_pairing_prefers_stated_facts():
    "The red star jumps; drawn are a red circle that jumps and a blue star: the circle is the one that was stated."
    drawn = scene(Figure(replace(DISC, colour='red'), 'left', 'jump'), Figure(replace(STAR, colour='blue'), 'right'))
    right = compare_scenes('The red one jumps.', both('jump'), drawn)
    assert right['stated colour'] == right['stated action'] == [True] and right['remembered shape'] == [False, False]

def test_one_wrong_fact_is_one_wrong_answer():
    s = scene(Figure(STAR, 'left'))
    for change in dict(place='city'), dict(time='day'):
        right = compare_scenes('Ada waits.', s, replace(s, **change))
        assert [k for k, x in right.items() if not all(x)] == [f'remembered {[*change][0]}']
    for k, v in dict(colour='white', shape='circle', size='small', accessory='bow').items():
        right = compare_scenes('Ada waits.', s, scene(Figure(replace(STAR, **{k: v}), 'left')))
        assert [n for n, x in right.items() if not all(x)] == [f'remembered {k}']

def test_a_guess_follows_only_stated_facts(stories):
    "All that is stated is right; what is remembered is right about as often as `chance` says of other stories."
    rng, right = random.Random(9), {}
    for i, beats in enumerate(stories):
        for b, c in list(zip(beats, tell(beats, random.Random(i))))[1:]:
            for k, x in compare_scenes(c, b.scene, guess(c, b.scene, rng)).items(): right.setdefault(k, []).extend(x)
    assert all(all(x) for k, x in right.items() if k.startswith('stated'))
    for k, p in chance().items():
        n = len(right[k])
        assert abs(sum(right[k])/n - p) < 5*(p*(1 - p)/n)**.5 + .03, k

def test_chance_agrees_with_arithmetic():
    "A place is one of six, whatever else; two figures leave little room for error in the others."
    p = chance()
    assert abs(p['remembered place'] - 1/6) < .03 and abs(p['remembered time'] - 1/3) < .05
    assert 1/6 - .02 < p['remembered colour'] < .25 and 1/4 - .02 < p['remembered shape'] < .35


# the corpus

def test_the_corpus_on_disk(tmp_path):
    toy.write_toy(tmp_path/'raw', (5, 2, 2, 4), tellings=2, progress=False)
    convert('toy', tmp_path/'raw', tmp_path/'toy.h5', quiet=True)
    file = StoryFile(tmp_path/'toy.h5')
    assert {s: len(file[s]) for s in file.splits} == dict(train=10, val=4, test=4, hard=8)
    for split in file.splits:
        for i in range(len(file[split])):
            s = file[split][i]
            right = check_facts(s, dict(enumerate(s.pictures(), 1)))
            assert all(map(all, right.values()))
            first, = read(s.pictures()[:1])
            assert has_hard(first) == (split == 'hard')

def test_an_older_corpus_without_the_hard_split(tmp_path):
    toy.write_toy(tmp_path/'raw', (3, 1, 1), progress=False)
    convert('toy', tmp_path/'raw', tmp_path/'toy.h5', quiet=True)
    assert StoryFile(tmp_path/'toy.h5').splits == ('train', 'val', 'test')

def test_the_same_seed_gives_the_same_corpus(tmp_path):
    for name in 'ab': toy.write_toy(tmp_path/name, (3, 1, 1), seed=4, progress=False)
    files = [{p.relative_to(tmp_path/n): p.read_bytes() for p in (tmp_path/n).rglob('*.*')} for n in 'ab']
    assert files[0] == files[1]
    toy.write_toy(tmp_path/'c', (3, 1, 1), seed=5, progress=False)
    assert (tmp_path/'c/SSID_Annotations/SSID_Train.json').read_bytes() != \
        (tmp_path/'a/SSID_Annotations/SSID_Train.json').read_bytes()

def test_larger_pictures(tmp_path):
    toy.write_toy(tmp_path, (1, 0, 0), side=128, progress=False)
    assert {Image.open(p).size for p in tmp_path.rglob('*.png')} == {(128, 128)}
