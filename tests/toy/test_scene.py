"Scenes: combinations held out of training stay out, and what no caption tells is drawn by lot."
import hashlib
import random
from collections import Counter
from itertools import combinations

from arldm.toy.captions import describe, invent, tell
from arldm.toy.scene import (COLOURS, LANDMARKS, PATTERNS, PLACES, SCARVES, SHAPES, has_hard, is_hard, random_scene,
                             two_looks)
from toy_world import short_stories, long_stories


def digest(lines): return hashlib.sha256('\n'.join(lines).encode()).hexdigest()[:16]

def test_held_out_combinations_are_never_shown():
    for stories in short_stories(), long_stories():
        assert not any(has_hard(beat.scene) for beats in stories for beat in beats)
    rng = random.Random(0)
    assert not any(has_hard(random_scene(rng)) for _ in range(500))
    openings = [invent(random.Random(i), hard=True)[0] for i in range(50)]
    assert all(is_hard(beat.place, figure.look) for beat in openings for figure in beat.cast.values())

def test_each_pair_of_held_out_facts_is_shown():
    seen = set()
    for beats in short_stories():
        for beat in beats: seen |= {(beat.place, f.look.colour, f.look.shape) for f in beat.cast.values()}
    for i, j in combinations(range(3), 2):
        sizes = [len(x) for x in (PLACES, COLOURS, SHAPES)]
        assert len({(x[i], x[j]) for x in seen}) == sizes[i]*sizes[j]

def test_the_world_is_the_one_that_the_shipped_models_know():
    "Stories, captions and scenes; digests of what they were trained on."
    lines = []
    for i in range(200):
        beats = invent(random.Random(i), hard=i % 4 == 0)
        for beat, caption in zip(beats, tell(beats, random.Random(f'words {i}'), by_name=i % 3 == 0)):
            lines.append(repr((beat.event, beat.who, list(beat.cast), beat.scene, caption)))
        lines.append(describe(beats[-1].scene, random.Random(i)))
    assert digest(lines) == 'f15e396199eebff8'
    rng = random.Random(0)
    assert digest(repr(random_scene(rng)) for _ in range(300)) == '8427c1cd863032a3'

def test_what_only_pictures_show_is_as_likely_as_it_can_be():
    "Each pattern, scarf and landmark a quarter, and one says nothing about the others or about the other figure."
    rng = random.Random(2)
    n = 6400
    pairs = [two_looks(rng) for _ in range(n)]
    counts = Counter((a.pattern, a.scarf) for a, b in pairs) + Counter((b.scarf, a.pattern) for a, b in pairs)
    counts += Counter((a.pattern + '+', b.pattern) for a, b in pairs)
    assert len(counts) == 3*16 and all(abs(count - n/16) < 5*(n/16)**.5 for count in counts.values())
    assert {scarf for _, scarf in counts} >= {*SCARVES} and {pattern for pattern, _ in counts} >= {*PATTERNS}
    scenes = [random_scene(rng) for _ in range(9600)]
    for place, names in LANDMARKS.items():
        found = Counter(one.landmark for one in scenes if one.place == place)
        n = sum(found.values())
        assert found.keys() == {*names} and all(abs(count - n/4) < 5*(3*n/16)**.5 for count in found.values())

def test_landmarks_of_places_are_drawn_one_by_one():
    "What stands at one place of a story says nothing about another place."
    beats = [invent(random.Random(i), 2) for i in range(1600)]
    found = Counter((b[0].landmarks['beach'], b[0].landmarks['city']) for b in beats)
    assert len(found) == 16 and all(abs(count - 100) < 50 for count in found.values())
