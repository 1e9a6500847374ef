"The reader: every figure, landscape and card is read from its pixels, and what is read is the nearest scene there is."
import os
import random
from dataclasses import astuple, replace
from functools import cache
from itertools import product

import numpy as np
import pytest
from PIL import Image

from arldm.toy import reader
from arldm.toy.figures import CARD_GROUND, coverage, draw_card, draw_scene
from arldm.toy.landscapes import landscape
from arldm.toy.reader import read, read_cards
from arldm.toy.scene import (ACCESSORIES, ACTIONS, COLOURS, LANDMARKS, PATTERNS, POSITIONS, RADII, SCARVES, SHAPES,
                             TIMES_OF_DAY, Figure, Look, Scene, random_scene)
from toy_world import scene

LANDSCAPES = [(place, name, time) for place, names in LANDMARKS.items() for name in names for time in TIMES_OF_DAY]
LOOKS = [Look(*x) for x in product(COLOURS, SHAPES, RADII, ACCESSORIES, PATTERNS, SCARVES)]
COLUMNS = dict(left=slice(0, 21), middle=slice(21, 43), right=slice(43, 64))   # of a frame, in pixels

def at(i, *figures):
    "A scene at one of the 72 landscapes."
    place, name, time = LANDSCAPES[i % 72]
    return Scene(place, time, figures, name)

@cache
def crowds():
    "Scenes with a figure in each column: together they show each of the 9,216 figures once."
    figures = list(product(LOOKS, ACTIONS))
    random.Random(0).shuffle(figures)
    scenes = []
    for i in range(0, len(figures), 3):
        three = [Figure(look, p, action) for p, (look, action) in zip(POSITIONS, figures[i:i+3])]
        scenes.append(at(i//3, *three))
    return scenes

def some_scenes(seed, n):
    rng = random.Random(seed)
    return [random_scene(rng) for _ in range(n)]

def with_noise(frames, sigma, seed=0):
    noise = np.random.default_rng(seed).normal(0, sigma, (len(frames), 64, 64, 3))
    return (np.stack(frames) + noise).clip(0, 255).astype(np.uint8)


# every scene is read

LONG = pytest.mark.skipif(not os.environ.get('ARLDM_SOAK'), reason='a long form; run by `make soak`')

@pytest.mark.parametrize('part', [0, *(pytest.param(part, marks=LONG) for part in range(1, 16))])
def test_every_figure_is_read(part):
    "Three in a frame: none is taken for another one because of its neighbours or of what is behind it."
    scenes = crowds()[part::16]
    assert read([draw_scene(one) for one in scenes]) == scenes

def test_the_crowds_show_everything():
    scenes = crowds()
    assert len({replace(f, position='left') for one in scenes for f in one.figures}) == 9216 == 3*len(scenes)
    assert len({(one.place, one.landmark, one.time) for one in scenes}) == 72
    seen = {(f.position, one.place, one.landmark, one.time) for one in scenes for f in one.figures}
    assert len(seen) == 3*72

def test_every_landscape_is_read_without_figures():
    scenes = [at(i) for i in range(72)]
    assert read([draw_scene(one) for one in scenes]) == scenes

def test_pairs_of_neighbours_are_read():
    "Each shape and action beside each, as large as figures are, where they touch."
    bodies = list(product(SHAPES, ACTIONS))
    scenes = []
    for i, ((a, act_a), (b, act_b)) in enumerate(product(bodies, bodies)):
        left, right = LOOKS[37*i % len(LOOKS)], LOOKS[(53*i + 700) % len(LOOKS)]
        positions = ('left', 'middle') if i % 2 else ('middle', 'right')
        scenes.append(at(i, Figure(replace(left, shape=a, size='big'), positions[0], act_a),
                         Figure(replace(right, shape=b, size='big'), positions[1], act_b)))
    assert read([draw_scene(one) for one in scenes]) == scenes

def test_wide_sleepers_in_all_columns_are_read():
    "Figures that reach into the columns of others."
    scenes = []
    for i, (pattern, scarf) in enumerate(product(PATTERNS, SCARVES)):
        looks = [Look(colour, 'star', 'big', 'hat', pattern, scarf) for colour in ('red', 'white', 'yellow')]
        scenes.append(at(5*i, *(Figure(look, p, 'sleep') for look, p in zip(looks, POSITIONS))))
    assert read([draw_scene(one) for one in scenes]) == scenes

def test_larger_greyer_and_noisy_pictures():
    scenes = some_scenes(4, 40)
    assert read([draw_scene(s, 128) for s in scenes]) == scenes
    assert read([np.asarray(draw_scene(s, 256)) for s in scenes[:2]]) == scenes[:2]
    frames = [draw_scene(s) for s in scenes]
    assert read([frame.convert('RGBA') for frame in frames[:5]]) == scenes[:5]
    assert read(with_noise(frames, 50)) == scenes
    dim = [(np.asarray(frame)*.9 + 5).astype(np.uint8) for frame in frames]
    assert read(dim) == scenes

def test_batches_of_any_size_and_order():
    scenes = some_scenes(5, 35)
    frames = [draw_scene(one) for one in scenes]
    frames += list(with_noise(frames[:6], 90))   # not easy: equal answers, right or wrong
    alone = [read([frame])[0] for frame in frames]
    assert alone[:35] == scenes
    for n in 0, 1, 2, 15, 16, 17, 33, len(frames): assert read(frames[:n]) == alone[:n]
    order = list(range(len(frames)))
    random.Random(0).shuffle(order)
    assert read([frames[i] for i in order]) == [alone[i] for i in order]
    mixed = [draw_scene(scenes[0], 128), np.asarray(frames[1]), frames[2].convert('RGBA')]
    assert read(mixed) == alone[:3]

def test_pictures_of_anything_are_read():
    "A model may draw what is no scene at all."
    rng = np.random.default_rng(3)
    pictures = [np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8),
                rng.integers(0, 256, (64, 64, 3), np.uint8), Image.new('L', (30, 50), 128)]
    for one in read(pictures):
        assert one.landmark in LANDMARKS[one.place] and one.time in TIMES_OF_DAY and len(one.figures) <= 3
        assert [f.position for f in one.figures] == [p for p in POSITIONS if p in {f.position for f in one.figures}]

def test_no_pictures():
    assert read([]) == [] and read_cards([]) == []


# the nearest scene

def drawn_column(landscape_number, position, figure):
    "The pixels of a column before a landscape, (64, w, 3) in 0…1, as drawn."
    figures = [] if figure is None else [figure]
    return np.asarray(draw_scene(at(landscape_number, *figures)))[:, COLUMNS[position]]/255

def test_distances_are_those_of_drawn_pictures():
    "Of nobody and of each of the 9,216 figures with their scarves, in each column, before two landscapes."
    frame = with_noise([draw_scene(some_scenes(6, 1)[0])], 30)[0]/255
    for j, (position, lands) in enumerate(zip(POSITIONS, ((0, 71), (20, 45), (33, 50)))):
        found = reader._distances(frame[None].astype(np.float32), np.array([lands]), j)[0]
        x = frame[:, COLUMNS[position]]
        rng = random.Random(j)
        for row, land in zip(found, lands):
            for number in [0, *rng.sample(range(1, found.shape[1]), 1500)]:
                drawn = drawn_column(land, position, reader._figure(number, position))
                # drawn pixels are rounded to whole numbers of 255
                assert abs(((x - drawn)**2).sum() - (x**2).sum() - row[number]) < .5

def test_options_are_all_figures():
    "The numbers of `_distances` stand for nobody and all figures; those without a scarf come three times."
    n = 1 + 768*6*3
    found = [reader._figure(number, 'right') for number in range(n)]
    assert found[0] is None and len({*found[1:]}) == 9216
    assert {(f.look, f.action) for f in found[1:]} == {*product(LOOKS, ACTIONS)}

def naive_nearest(frame):
    "The nearest scene with at most one figure, of 72 landscapes and some figures, by drawing them all."
    figures = [None]
    rng = random.Random(7)
    for position in POSITIONS: figures += [Figure(look, position) for look in rng.sample(LOOKS, 8)]
    scenes = [at(i, *([figure] if figure else [])) for i in range(72) for figure in figures]
    distances = [((np.asarray(draw_scene(one), float) - frame)**2).sum() for one in scenes]
    return scenes, distances

def test_no_drawn_scene_is_nearer():
    "What is read of a noisy frame is at least as near as each of 1,800 scenes that were drawn and compared."
    truth = at(40, Figure(LOOKS[1234], 'middle', 'jump'))
    for frame in with_noise([draw_scene(truth)]*3, 100, seed=1):
        [found] = read([frame])
        own = ((np.asarray(draw_scene(found), float) - frame)**2).sum()
        assert own <= min(naive_nearest(frame)[1]) + 20*255   # rounding of drawn pixels

def exhaustive(frames):
    "The number of the best of all 72 landscapes of each frame, and by how much it is nearer than the others."
    lands = np.tile(np.arange(72), (len(frames), 1))
    total = sum(reader._distances(frames, lands, j).min(2) for j in range(3))
    return total.argmin(1), np.sort(total, 1)

@pytest.mark.parametrize('sigma', [50, pytest.param(0, marks=LONG), pytest.param(100, marks=LONG)])
def test_the_best_landscape_is_among_the_candidates(sigma):
    "Twelve are compared: the best of all 72 is one of them, even if three wide figures hide much of it."
    wide = [at(7*i, *(Figure(Look(c, 'square', 'big', 'crown', pattern), p) for c, p in zip(COLOURS, POSITIONS)))
            for i, pattern in enumerate(PATTERNS*4)]
    frames = [draw_scene(one) for one in some_scenes(8, 30) + wide]
    x = with_noise(frames, sigma).astype(np.float32)/255
    candidates = reader._likely_landscapes(x)
    best, _ = exhaustive(x)
    assert candidates.shape == (len(frames), 12) and all(len({*row}) == 12 for row in candidates.tolist())
    assert all(number in row for number, row in zip(best, candidates))
    found = [LANDSCAPES[i] for i in best]
    assert [(s.place, s.landmark, s.time) for s in read(list((x*255).round().astype(np.uint8)))] == found

def test_landscapes_are_numbered_as_here():
    "The tests above count landscapes as the reader does, and it knows them as they are drawn."
    assert reader._LANDSCAPES == LANDSCAPES
    for back, (place, name, time) in zip(reader._backs(), LANDSCAPES):
        assert (back*255).round().astype(np.uint8).tobytes() == landscape(place, name, time).tobytes()


# cards

def test_cards_are_read():
    looks = LOOKS[::3]   # 1,024 of 3,072, with each value of each fact
    for values in zip(*map(astuple, looks)): assert len({*values}) in (2, 4, 6)
    assert read_cards([draw_card(look) for look in looks]) == looks

def test_cards_of_other_sizes_and_noisy_ones():
    looks = random.Random(9).sample(LOOKS, 40)
    assert read_cards([draw_card(look, 128) for look in looks]) == looks
    cards = [draw_card(look) for look in looks]
    assert read_cards([card.convert('RGBA') for card in cards[:3]]) == looks[:3]
    assert read_cards(with_noise(cards, 40)) == looks
    for n in 1, 16, 17: assert read_cards(cards[:n]) == [read_cards([card])[0] for card in cards[:n]]

def test_a_card_without_a_figure():
    empty = Image.new('RGB', (64, 64), CARD_GROUND)
    assert read_cards([empty]) == [None]
    assert read_cards([empty, draw_card(LOOKS[7]), empty.resize((200, 200))]) == [None, LOOKS[7], None]
    assert read_cards(with_noise([empty]*5, 30)) == [None]*5

def test_a_card_shows_the_figure_as_a_frame_does():
    "The same pixels as of a figure that stands in the middle, where the figure covers the ground whole."
    for look in random.Random(10).sample(LOOKS, 20):
        card, frame = (np.asarray(im)[:, 19:45] for im in
                       (draw_card(look), draw_scene(scene(Figure(look, 'middle')))))
        whole = coverage(look, 'stand')[..., 0] == 0
        assert whole.sum() > 100 and (card[whole] == frame[whole]).all()
