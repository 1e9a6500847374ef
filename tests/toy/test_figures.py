"Pictures: frames are landscapes with figures laid over them, each material with its share; all pictures differ."
import random
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from PIL import Image

from arldm.toy.figures import (CARD_GROUND, FIXED_COLOURS, MATERIALS, PATTERN_SHADE, coverage, cutout, draw_card,
                               draw_scene, uncoloured)
from arldm.toy.landscapes import landscape
from arldm.toy.scene import (ACCESSORIES, ACTIONS, COLOURS, LANDMARKS, PATTERNS, PLACES, POSITIONS, RADII, SCARVES,
                             SHAPES, TIMES_OF_DAY, Figure, Look, Scene, random_scene)
from toy_world import STAR, scene

# one look for each map of materials, two for each pattern and scarf that could be confused
MAPS = [Look('red', *x) for x in product(SHAPES, RADII, ACCESSORIES, PATTERNS, ('nothing', 'black'))]

def painted(back, figures, side=64):
    """Figures over a background, worked out pixel by pixel on a canvas with margins, then rounded.
    `figures` are (look, action, middle in 64ths of a frame)."""
    margin = side
    canvas = np.zeros((side, side + 2*margin, 3))
    canvas[:, margin:-margin] = back
    for look, action, middle in figures:
        body = np.array(COLOURS[look.colour], float)
        colours = dict(FIXED_COLOURS, body=body, pattern=PATTERN_SHADE*body, scarf=SCARVES[look.scarf])
        shares = coverage(look, action, side)
        start = margin + round(middle*side/64 - shares.shape[1]/2)
        for y, x in np.ndindex(shares.shape[:2]):
            share = dict(zip(MATERIALS, shares[y, x]))
            if share['landscape'] == 1: continue
            pixel = share.pop('landscape')*canvas[y, start + x]
            canvas[y, start + x] = pixel + sum(part*np.array(colours[name]) for name, part in share.items())
    return canvas[:, margin:-margin].round()

def close(a, b): return np.abs(np.asarray(a, float) - np.asarray(b, float)).max() <= 1   # rounding of halves

@pytest.mark.parametrize('action', ACTIONS)
def test_shares_of_materials_sum_to_one(action):
    for look in MAPS:
        shares = coverage(look, action)
        assert shares.shape == (64, 26, len(MATERIALS)) and shares.dtype == np.float32
        assert (shares >= 0).all() and (shares.sum(-1) == 1).all() and (shares*16 % 1 == 0).all()
        has = {name for name, total in zip(MATERIALS, shares.sum((0, 1))) if total}
        # with a knot, a bow shows two materials
        expected = {'landscape', 'body', 'ink', look.accessory} | ({'knot'} if look.accessory == 'bow' else set())
        expected |= {'pattern'} if look.pattern != 'plain' else set()
        expected |= {'scarf'} if look.scarf != 'nothing' else set()
        assert has == expected - {'nothing'}

def test_shares_do_not_depend_on_colours():
    rng = random.Random(0)
    for look in rng.sample(MAPS, 40):
        scarf = look.scarf if look.scarf == 'nothing' else rng.choice(['cyan', 'pink'])
        other = replace(look, colour=rng.choice(list(COLOURS)), scarf=scarf)
        for action in ACTIONS: assert (coverage(other, action) == coverage(look, action)).all()
        assert uncoloured(other) == look

def test_a_cutout_is_its_shares_times_the_colours():
    art, through = cutout(Look('white', 'square', 'big', 'hat', 'checks', 'pink'), 'stand')
    shares = dict(zip(MATERIALS, np.moveaxis(coverage(Look('white', 'square', 'big', 'hat', 'checks', 'pink'), 'stand'), -1, 0)))
    assert (through[..., 0] == shares['landscape']).all()
    assert (art[shares['scarf'] == 1] == SCARVES['pink']).all() and (art[shares['body'] == 1] == 250).all()
    assert np.allclose(art[shares['pattern'] == 1], 250*PATTERN_SHADE) and (shares['pattern'] == 1).any()

def test_frames_are_landscapes_and_figures():
    rng = random.Random(1)
    for _ in range(60):
        one = random_scene(rng)
        back = np.asarray(landscape(one.place, one.landmark, one.time))
        figures = [(f.look, f.action, POSITIONS[f.position]) for f in one.figures]
        assert close(draw_scene(one), painted(back, figures))

@pytest.mark.parametrize('side', [64, 128])
def test_figures_are_cut_off_at_the_edges(side):
    "The widest figure reaches beyond both edges; what is seen of it is what it shows in the middle."
    for look, position in product([Look('red', 'star', 'big', 'bow', 'dots', 'pink'), STAR], POSITIONS):
        one = Scene('mountain', 'day', (Figure(look, position, 'sleep'),), 'lift')
        back = np.asarray(landscape('mountain', 'lift', 'day', side))
        assert close(draw_scene(one, side), painted(back, [(look, 'sleep', POSITIONS[position])], side))
    wide = coverage(look, 'sleep', side)[..., 0] < 1
    assert wide[:, 0].any() or wide[:, -1].any()   # the cut-out is as wide as the figure

def test_later_figures_cover_earlier_ones():
    "Two wide sleepers touch: the right one lies over the left one."
    sleepers = [Figure(Look(colour, 'star', 'big', 'nothing'), p, 'sleep') for colour, p in
                (('red', 'left'), ('blue', 'middle'))]
    back = np.asarray(landscape('city', 'dome', 'night'))
    figures = [(f.look, f.action, POSITIONS[f.position]) for f in sleepers]
    drawn = draw_scene(Scene('city', 'night', tuple(sleepers), 'dome'))
    assert close(drawn, painted(back, figures)) and not close(drawn, painted(back, figures[::-1]))

def test_drawing_leaves_landscapes_alone():
    before = landscape('beach', 'palm', 'day').tobytes()
    draw_scene(Scene('beach', 'day', (Figure(STAR, 'left'),), 'palm'))
    assert landscape('beach', 'palm', 'day').tobytes() == before
    assert draw_scene(Scene('beach', 'day', (), 'palm')).tobytes() == before

@pytest.mark.parametrize('side', [64, 128])
def test_a_card_is_a_figure_on_a_plain_ground(side):
    ground = np.full((side, side, 3), CARD_GROUND)
    for look in random.Random(2).sample(MAPS, 20):
        look = replace(look, colour='white', scarf='cyan' if look.scarf != 'nothing' else 'nothing')
        assert close(draw_card(look, side), painted(ground, [(look, 'stand', 32)], side))

def test_larger_pictures_show_the_same():
    rng = random.Random(5)
    for _ in range(20):
        one = random_scene(rng)
        shrunk = np.asarray(draw_scene(one, 128).resize((64, 64), Image.BOX), float)
        assert np.abs(shrunk - np.asarray(draw_scene(one), float)).mean() < 2

def test_all_pictures_differ():
    "No two scenes look alike: one fact changed changes pixels."
    one = scene(Figure(STAR, 'middle'))
    others = [replace(one, time=t) for t in TIMES_OF_DAY]
    others += [Scene(place, 'night', one.figures, name) for place in PLACES for name in LANDMARKS[place]]
    facts = dict(colour=COLOURS, shape=SHAPES, size=RADII, accessory=ACCESSORIES, pattern=PATTERNS, scarf=SCARVES)
    for fact, values in facts.items():
        others += [scene(Figure(replace(STAR, **{fact: value}), 'middle')) for value in values]
    others += [scene(Figure(STAR, p, a)) for p in POSITIONS for a in ACTIONS]
    seen = {draw_scene(x).tobytes() for x in others}
    assert len(seen) == len({*others}) == 2 + 24 + 5 + 3 + 1 + 3 + 3 + 3 + 8

def test_all_landscapes_differ_wherever_figures_stand():
    "Landmarks are seen beside the widest figure in each column, and beside two."
    wide = Look('red', 'star', 'big', 'hat')
    lands = [(p, name, t) for p in PLACES for name in LANDMARKS[p] for t in TIMES_OF_DAY]
    assert len(lands) == 72
    for positions in ('left',), ('middle',), ('right',), ('left', 'middle'), ('left', 'right'), ('middle', 'right'):
        figures = tuple(Figure(wide, position) for position in positions)
        frames = np.stack([draw_scene(Scene(p, t, figures, name)) for p, name, t in lands]).astype(int)
        for i, frame in enumerate(frames):
            differing = (np.abs(frames[i+1:] - frame).max(-1) > 20).mean((1, 2))
            assert (differing > .01).all(), (positions, lands[i])

def test_a_scene_without_a_landmark_has_the_first():
    for place, names in LANDMARKS.items():
        assert Scene(place, 'day', ()).landmark == names[0] and len({*names}) == 4
        assert Scene(place, 'day', ()) == Scene(place, 'day', (), names[0])
