"Stories and captions: what changes is told, what no caption tells never changes, and names say who is meant."
import random
import re
from dataclasses import replace

import pytest

from arldm.toy.captions import (CARD_CAPTIONS, CAPTIONS, PRONOUNS, TOY_WORDS, cast_looks, describe, invent, tell)
from arldm.toy.facts import word_set
from arldm.toy.scene import (ACCESSORIES, COLOURS, LANDMARKS, PATTERNS, PLACES, RADII, SCARVES, SHAPES,
                             figures_in_order)
from toy_world import short_stories, long_stories

LOOK_WORDS = {*COLOURS, *SHAPES, *RADII, *ACCESSORIES, 'one'} - {'nothing'}


# what happens

@pytest.mark.parametrize('stories', [short_stories, long_stories])
def test_nothing_changes_without_an_event(stories):
    "Looks never change; place, time, cast, positions and actions change only by the event that is told."
    for beats in stories():
        for a, b in zip(beats, beats[1:]):
            looks = {n: f.look for n, f in [*a.cast.items(), *b.cast.items()]}
            assert all(f.look == looks[n] for x in (a, b) for n, f in x.cast.items())
            assert (a.place != b.place) == (b.event == 'travel') and (a.time != b.time) == (b.event == 'time')
            came, went = b.cast.keys() - a.cast.keys(), a.cast.keys() - b.cast.keys()
            assert came == ({b.who} if b.event in ('come', 'back') else set())
            assert went == ({b.who} if b.event == 'leave' else set())
            for n in a.cast.keys() & b.cast.keys():
                assert (a.cast[n].position != b.cast[n].position) == (b.event == 'walk' and b.who == n)
                acts = b.event in ('jump', 'sleep') and b.who in ('', n)
                assert b.cast[n].action == (b.event if acts else 'stand')
            assert len({f.position for f in b.cast.values()}) == len(b.cast) in (1, 2)

def test_who_returns_has_been_there():
    assert any(b.event == 'back' for beats in short_stories() for b in beats)
    for beats in short_stories():
        for k, b in enumerate(beats):
            comes = b.event in ('come', 'back')
            assert (b.event == 'back') == (comes and any(b.who in x.cast for x in beats[:k]))

def test_patterns_scarves_and_landmarks_never_change():
    "Not through absence and return, and not while the story is somewhere else."
    returned, travelled_back = 0, 0
    for beats in long_stories():
        looks, landmarks, here = {}, {}, {}
        for k, beat in enumerate(beats):
            for name, figure in beat.cast.items():
                assert looks.setdefault(name, figure.look) == figure.look
                returned += name in here and here[name] < k - 1
                here[name] = k
            landmark = beat.scene.landmark
            assert landmarks.setdefault(beat.place, landmark) == landmark and landmark in LANDMARKS[beat.place]
            places = [x.place for x in beats[:k]]
            travelled_back += beat.place in places and places[-1] != beat.place
    assert returned > 100 and travelled_back > 5

def test_casts_are_named_in_the_order_of_their_frames():
    for beats in long_stories()[:100]:
        names = []
        for beat in beats: names += [name for name in beat.cast if name not in names]
        looks = cast_looks(beats)
        assert list(looks) == [name.title() for name in names]
        assert all(beat.cast[n].look == looks[n.title()] for beat in beats for n in beat.cast)
        alone = cast_looks(beats[:1])
        assert alone == {names[0].title(): beats[0].cast[names[0]].look}


# captions

@pytest.mark.parametrize('by_name', [False, True])
@pytest.mark.parametrize('stories', [short_stories, long_stories])
def test_captions_name_one_of_those_who_can_be_meant(stories, by_name):
    "A word for a look or a person fits whom the beat is about, and nobody else who is there."
    for i, beats in enumerate(stories()):
        for before, b, caption in zip([None, *beats], beats, tell(beats, random.Random(i), by_name)):
            words = word_set(caption)
            there = before.cast if b.event == 'leave' else b.cast
            if b.event == 'back': there = {b.who: b.cast[b.who]}   # only who is away can come back
            if not b.who or b.event in ('open', 'come'): continue
            for n, f in there.items():
                about = n == b.who
                for w in (n, f.look.colour, f.look.shape): assert about or w not in words, caption
            if len(there) == 2 and words & {'he', 'she'}: assert before.who == b.who, caption
            if words >= {'other', 'one'}: assert before.who and before.who != b.who and len(there) == 2, caption

def test_the_same_story_in_many_words():
    beats = invent(random.Random(1))
    for by_name in False, True:
        assert len({' '.join(tell(beats, random.Random(i), by_name)) for i in range(50)}) > 40

def test_every_word_is_known():
    said = [c for i, beats in enumerate(short_stories()) for c in tell(beats, random.Random(i))]
    said += [c for i, beats in enumerate(long_stories()) for c in tell(beats, random.Random(i), by_name=True)]
    said += [describe(beats[0].scene, random.Random(i)) for i, beats in enumerate(long_stories())]
    assert word_set(' '.join(said)) <= {*TOY_WORDS}

def test_no_word_for_what_only_pictures_show():
    names = {*PATTERNS, *SCARVES, *(name for names in LANDMARKS.values() for name in names)} - {'nothing'}
    assert not names & {*TOY_WORDS} and {'scarf', 'pattern', 'landmark'}.isdisjoint(TOY_WORDS)

def otherwise(beats, rng):
    "The same story with other patterns, scarves and landmarks."
    looks = {}
    for name, look in cast_looks(beats).items():
        looks[name.lower()] = replace(look, pattern=rng.choice(PATTERNS), scarf=rng.choice(list(SCARVES)))
    landmarks = {place: rng.choice(LANDMARKS[place]) for place in PLACES}
    changed = []
    for beat in beats:
        cast = {name: replace(figure, look=looks[name]) for name, figure in beat.cast.items()}
        changed.append(replace(beat, cast=cast, landmarks=landmarks))
    return changed

@pytest.mark.parametrize('by_name', [False, True])
def test_no_caption_depends_on_what_only_pictures_show(by_name):
    "The same random numbers word a story in the same way, whatever its patterns, scarves and landmarks are."
    rng = random.Random(0)
    for i, beats in enumerate(long_stories()[:150]):
        others = otherwise(beats, rng)
        assert [b.scene for b in others] != [b.scene for b in beats]
        assert tell(others, random.Random(i), by_name) == tell(beats, random.Random(i), by_name)
        last = beats[-1].scene, others[-1].scene
        assert describe(last[0], random.Random(i)) == describe(last[1], random.Random(i))


# captions of stories with cards

def test_captions_by_name_tell_no_look_and_name_everybody():
    for i, beats in enumerate(long_stories()):
        captions = tell(beats, random.Random(i), by_name=True)
        known = set()
        for beat, caption in zip(beats, captions):
            words = word_set(caption)
            assert not (words - {'one'} if 'other' in words else words) & LOOK_WORDS, caption
            new = beat.cast.keys() - known   # who was never there before is named, and nobody else can be meant
            assert len(new) <= 1 and new <= words, caption
            if new: assert words & {*PRONOUNS} == new, caption
            known |= new
        assert known == {name.lower() for name in cast_looks(beats)}

def test_captions_by_name_state_where_and_when():
    "A look is all that they leave out: the place, time and position of an opening are told in either way."
    for i, beats in enumerate(long_stories()[:100]):
        opening = beats[0]
        [figure] = opening.cast.values()
        for by_name in False, True:
            words = word_set(tell(beats, random.Random(i), by_name)[0])
            assert {opening.place, opening.time, figure.position} <= words
        for beat, caption in zip(beats, tell(beats, random.Random(i), True)):
            if beat.event == 'come': assert beat.cast[beat.who].position in word_set(caption)

def test_there_are_as_many_wordings_with_cards():
    for event, templates in CARD_CAPTIONS.items():
        assert len({*templates}) == len(templates) == len(CAPTIONS[event])
        assert all('{look}' not in template and '{who}' in template for template in templates)
    said = set()
    for i in range(400): said.add(re.sub('[A-Z][a-z]+', 'X', tell(short_stories()[i % 9], random.Random(i), True)[1]))
    assert len(said) > 9

def test_figures_stand_in_the_order_of_their_positions():
    for beats in long_stories()[:50]:
        for beat in beats:
            figures = beat.scene.figures
            assert figures == figures_in_order(reversed(figures)) and {*figures} == {*beat.cast.values()}
