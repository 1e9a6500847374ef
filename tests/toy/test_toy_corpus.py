"The corpus on disk: stories, pictures and cards arrive in a story file, and the same seed gives the same files."
import hashlib
import json

import pytest
from PIL import Image

from arldm.cli.convert import convert
from arldm.core import StoryError
from arldm.data.story import StoryFile
from arldm.files.atomic import FolderTaken
from arldm.toy import corpus as toy
from arldm.toy.facts import check_facts, word_set
from arldm.toy.reader import read, read_cards
from arldm.toy.scene import ACCESSORIES, COLOURS, LANDMARKS, RADII, SHAPES, has_hard


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}

def looks_in(scenes): return {figure.look for one in scenes for figure in one.figures}

@pytest.fixture(scope='module')
def mixed(tmp_path_factory):
    "A corpus, half of it with cards, two stories for each album: (folder, StoryFile)."
    folder = tmp_path_factory.mktemp('mixed')
    toy.write_toy(folder/'raw', (24, 4, 4, 4), tellings=2, seed=1, progress=False, with_cards=.5)
    convert('toy', folder/'raw', folder/'toy.h5', quiet=True)
    return folder/'raw', StoryFile(folder/'toy.h5')

@pytest.fixture(scope='module')
def albums(mixed):
    "Of that corpus: split -> album -> its two stories, and the scenes that are read of its pictures."
    found = {}
    for split in mixed[1].splits:
        for i in range(len(mixed[1][split])):
            story = mixed[1][split][i]
            found.setdefault(split, {}).setdefault(story.album, []).append(story)
    pictures = [picture for of_split in found.values() for [first, _] in of_split.values() for picture in first.pictures()]
    scenes = iter(read(pictures))
    return {split: {album: (stories, [next(scenes) for _ in stories[0].frames]) for album, stories in of_split.items()}
            for split, of_split in found.items()}


def test_the_corpus_on_disk(tmp_path):
    toy.write_toy(tmp_path/'raw', (3, 1, 1, 2), tellings=2, progress=False)
    convert('toy', tmp_path/'raw', tmp_path/'toy.h5', quiet=True)
    file = StoryFile(tmp_path/'toy.h5')
    assert {s: len(file[s]) for s in file.splits} == dict(train=6, val=2, test=2, hard=4)
    for split in file.splits:
        for i in range(len(file[split])):
            s = file[split][i]
            right = check_facts(s, dict(enumerate(s.pictures(), 1)))
            assert all(map(all, right.values())) and s.cast == {}
            first, = read(s.pictures()[:1])
            assert has_hard(first) == (split == 'hard')

def test_an_older_corpus_without_the_hard_split(tmp_path):
    toy.write_toy(tmp_path/'raw', (3, 1, 1), progress=False)
    convert('toy', tmp_path/'raw', tmp_path/'toy.h5', quiet=True)
    assert StoryFile(tmp_path/'toy.h5').splits == ('train', 'val', 'test')

@pytest.mark.parametrize('settings', [{}, dict(with_cards=.5)])
def test_the_same_seed_gives_the_same_corpus(tmp_path, settings):
    for name in 'ab': toy.write_toy(tmp_path/name, (6, 1, 1), seed=4, progress=False, **settings)
    same, again = files_of(tmp_path/'a'), files_of(tmp_path/'b')
    assert same == again and len(same) > 8*5
    toy.write_toy(tmp_path/'c', (6, 1, 1), seed=5, progress=False, **settings)
    assert files_of(tmp_path/'c')['SSID_Annotations/SSID_Train.json'] != same['SSID_Annotations/SSID_Train.json']

def test_larger_pictures(tmp_path):
    toy.write_toy(tmp_path, (2, 0, 0), side=128, progress=False, with_cards=1)
    assert {Image.open(p).size for p in tmp_path.rglob('*.png')} == {(128, 128)}
    assert len(list(tmp_path.rglob('*_[A-Z]*.png'))) >= 2   # cards, too

def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path/'mine.txt').write_text('mine')
    with pytest.raises(FolderTaken): toy.write_toy(tmp_path, (1, 0, 0), progress=False)
    assert files_of(tmp_path) == {'mine.txt': b'mine'}


# casts

def test_about_half_of_the_albums_have_casts(albums):
    casts = [[story.cast for story in stories] for of_split in albums.values() for stories, _ in of_split.values()]
    assert len(casts) == 36 and all(len(pair) == 2 and pair[0] == pair[1] for pair in casts)
    assert 8 <= sum(bool(pair[0]) for pair in casts) <= 28   # 18, and 3.5 standard deviations

def test_casts_show_the_characters_of_their_frames(albums):
    "A card for each character, under the name that captions use, and nobody else's."
    pairs = 0
    for [story, _], scenes in albums['train'].values():
        if not story.cast: continue
        cards = dict(zip(story.cast, read_cards(list(story.cards().values()))))
        assert {*cards.values()} == looks_in(scenes) and len(cards) == len(looks_in(scenes))
        for name in cards: assert name == name.title() and name.lower() in word_set(' '.join(story.captions))
        hero = next(iter(cards))
        assert cards[hero] == scenes[0].figures[0].look and hero.lower() in word_set(story.captions[0])
        pairs += len(cards) == 2
    assert pairs > 5

def test_what_only_pictures_show_is_in_all_splits(albums):
    for split, of_split in albums.items():
        scenes = [one for _, scenes in of_split.values() for one in scenes]
        looks = looks_in(scenes)
        assert len({look.pattern for look in looks}) > 2 and len({look.scarf for look in looks}) > 2
        assert any(one.landmark != LANDMARKS[one.place][0] for one in scenes)
        assert any(map(has_hard, scenes)) == (split == 'hard')

def test_stories_of_the_corpus_are_right(albums):
    "Each frame of a story is what the story wants, with all kinds of facts."
    kinds = set()
    for [_, story], _ in [*albums['train'].values()][:12]:
        right = check_facts(story, dict(enumerate(story.pictures(), 1)))
        assert all(map(all, right.values()))
        kinds |= {(bool(story.cast), name.split()[0]) for name in right}
    assert kinds == {(False, 'stated'), (False, 'remembered'), (False, 'seen'),
                     (True, 'stated'), (True, 'remembered'), (True, 'seen'), (True, 'card')}

def test_half_of_the_stories_with_casts_tell_no_look(tmp_path):
    toy.write_toy(tmp_path, (60, 0, 0), tellings=2, seed=2, progress=False, with_cards=.5)
    look_words = {*COLOURS, *SHAPES, *RADII, *ACCESSORIES} - {'nothing'}
    captions, with_cast = {}, set()
    for [record] in json.loads((tmp_path/'SSID_Annotations/SSID_Train.json').read_text())['annotations']:
        captions.setdefault(record['story_id'], []).append(record['storytext'])
        if 'cast' in record: with_cast.add(record['story_id'])
    silent = {story for story, texts in captions.items() if not word_set(' '.join(texts)) & look_words}
    assert silent < with_cast and len(captions) == 120 and len(with_cast) > 40
    assert abs(len(silent) - len(with_cast)/2) < 3.5*(len(with_cast)/4)**.5
    # also within an album
    assert any((story in silent) != (story + 1 in silent) for story in with_cast if not story % 2)

def test_only_first_records_name_the_cast(mixed):
    raw, _ = mixed
    for path in raw.rglob('*.json'):
        for [record] in json.loads(path.read_text())['annotations']:
            assert record['image_order'] == 1 or 'cast' not in record
            for name, picture in record.get('cast', {}).items():
                assert picture == f'{record["album_id"]}_{name}' and (raw/'SSID_Images'/f'{picture}.png').exists()

@pytest.mark.parametrize('share', [0., 1.])
def test_all_albums_have_casts_or_none(tmp_path, share):
    toy.write_toy(tmp_path/'raw', (6, 1, 1), progress=False, with_cards=share)
    convert('toy', tmp_path/'raw', tmp_path/'toy.h5', quiet=True)
    file = StoryFile(tmp_path/'toy.h5')
    assert {bool(file['train'][i].cast) for i in range(6)} == {bool(share)}


# single stories

def test_one_story_by_its_number():
    story = toy.toy_story(3, cards=True)
    assert story == toy.toy_story(3, cards=True) and len(story.cast) == 2
    assert story.frames == toy.toy_story(3).frames   # cards change the captions only
    assert story.captions != toy.toy_story(3).captions
    reworded = toy.toy_story(3, cards=True, telling=1)
    assert (reworded.frames, reworded.cast) == (story.frames, story.cast) and reworded.captions != story.captions
    larger = toy.toy_story(3, cards=True, side=128)
    assert read(larger.pictures()) == read(story.pictures())
    looks = [read_cards(list(one.cards().values())) for one in (story, larger)]
    assert looks[0] == looks[1] and {*looks[0]} == looks_in(read(story.pictures()))
    assert toy.toy_story(3).cast == {} and toy.toy_story(3, cards=True).cast.keys()

@pytest.mark.parametrize('n_albums', [(1, 1, 1, 1, 1), (1, -1)])
def test_numbers_of_albums(n_albums, tmp_path):
    with pytest.raises(StoryError, match='n_albums must be up to 4 numbers, 0 or more'): toy.write_toy(tmp_path/'raw', n_albums)
    assert not (tmp_path/'raw').exists()

def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path/'raw').write_text('mine')
    with pytest.raises(FolderTaken): toy.write_toy(tmp_path/'raw', (1,))

def test_no_story_without_frames():
    with pytest.raises(StoryError, match='n must be'): toy.toy_story(3, n=0)
