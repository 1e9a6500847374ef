"The corpus on disk: stories, pictures and cards arrive in a story file, and the same seed gives the same files."
import hashlib
import json

import pytest
from PIL import Image

from arldm.cli.convert import convert
from arldm.data.story import StoryFile
from arldm.files.atomic import FolderTaken
from arldm.toy import corpus as toy
from arldm.toy.facts import check_facts, word_set
from arldm.toy.reader import read, read_cards
from arldm.toy.scene import ACCESSORIES, COLOURS, RADII, SHAPES, has_hard


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}

def looks_in(scenes): return {figure.look for one in scenes for figure in one.figures}

@pytest.fixture(scope='module')
def mixed(tmp_path_factory):
    "A corpus of the untold world, half of it with cards, two stories for each album: (folder, StoryFile)."
    folder = tmp_path_factory.mktemp('mixed')
    toy.write_toy(folder/'raw', (60, 8, 8, 8), tellings=2, seed=1, progress=False, untold=True, with_cards=.5)
    convert('toy', folder/'raw', folder/'toy.h5', quiet=True)
    return folder/'raw', StoryFile(folder/'toy.h5')


def test_the_corpus_on_disk(tmp_path):
    toy.write_toy(tmp_path/'raw', (5, 2, 2, 4), tellings=2, progress=False)
    convert('toy', tmp_path/'raw', tmp_path/'toy.h5', quiet=True)
    file = StoryFile(tmp_path/'toy.h5')
    assert {s: len(file[s]) for s in file.splits} == dict(train=10, val=4, test=4, hard=8)
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

@pytest.mark.parametrize('settings', [{}, dict(untold=True, with_cards=.5)])
def test_the_same_seed_gives_the_same_corpus(tmp_path, settings):
    for name in 'ab': toy.write_toy(tmp_path/name, (6, 1, 1), seed=4, progress=False, **settings)
    same, again = files_of(tmp_path/'a'), files_of(tmp_path/'b')
    assert same == again and len(same) > 8*5
    toy.write_toy(tmp_path/'c', (6, 1, 1), seed=5, progress=False, **settings)
    assert files_of(tmp_path/'c')['SSID_Annotations/SSID_Train.json'] != same['SSID_Annotations/SSID_Train.json']

def test_annotations_of_the_old_world_are_as_they_were(tmp_path):
    "The digests of what the version before patterns and cards wrote."
    toy.write_toy(tmp_path/'raw', (20, 5, 5, 5), tellings=2, seed=3, progress=False)
    found = {p.stem: hashlib.sha256(p.read_bytes()).hexdigest()[:16] for p in (tmp_path/'raw').rglob('*.json')}
    assert found == dict(SSID_Hard='c2d2ca214da836fa', SSID_Test='b65abaa24bf906f1', SSID_Train='80a2abb54e031ad1',
                         SSID_Validation='993cb70327d3d404')

def test_larger_pictures(tmp_path):
    toy.write_toy(tmp_path, (2, 0, 0), side=128, progress=False, untold=True, with_cards=1)
    assert {Image.open(p).size for p in tmp_path.rglob('*.png')} == {(128, 128)}
    assert len(list(tmp_path.rglob('*_[A-Z]*.png'))) >= 2   # cards, too

def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path/'mine.txt').write_text('mine')
    with pytest.raises(FolderTaken): toy.write_toy(tmp_path, (1, 0, 0), progress=False)
    assert files_of(tmp_path) == {'mine.txt': b'mine'}


# casts

def test_about_half_of_the_albums_have_casts(mixed):
    _, file = mixed
    albums = {}
    for split in file.splits:
        for i in range(len(file[split])):
            story = file[split][i]
            albums.setdefault(story.album, []).append(story.cast)
    assert len(albums) == 84 and all(len(casts) == 2 and casts[0] == casts[1] for casts in albums.values())
    with_casts = sum(bool(casts[0]) for casts in albums.values())
    assert 26 < with_casts < 58   # 42, and 3.5 standard deviations

def test_casts_show_the_characters_of_their_frames(mixed):
    "A card for each character, under the name that captions use, and nobody else's."
    _, file = mixed
    n_pairs = 0
    for i in range(len(file['train'])):
        story = file['train'][i]
        if not story.cast: continue
        seen = looks_in(read(story.pictures()))
        cards = dict(zip(story.cast, read_cards(list(story.cards().values()))))
        assert {*cards.values()} == seen and len(cards) == len(seen)
        for name in cards: assert name == name.title() and name.lower() in word_set(' '.join(story.captions))
        hero = read(story.pictures()[:1])[0].figures[0].look
        assert next(iter(cards.values())) == hero and next(iter(cards)).lower() in word_set(story.captions[0])
        n_pairs += len(cards) == 2
    assert n_pairs > 10

def test_untold_things_are_in_all_splits(mixed):
    _, file = mixed
    for split in file.splits:
        scenes = [one for i in range(len(file[split])) for one in read(file[split][i].pictures())]
        looks = looks_in(scenes)
        assert {look.pattern for look in looks} == {'plain', 'stripes', 'dots', 'checks'}
        assert len({one.landmark for one in scenes}) > 6
        assert any(map(has_hard, scenes)) == (split == 'hard')

def test_stories_of_the_untold_world_are_right(mixed):
    "Each frame of a story is what the story wants, with all kinds of facts."
    _, file = mixed
    kinds = set()
    for i in range(len(file['train'])):
        story = file['train'][i]
        right = check_facts(story, dict(enumerate(story.pictures(), 1)))
        assert all(map(all, right.values()))
        kinds |= {(bool(story.cast), name.split()[0]) for name in right}
    assert kinds == {(False, 'stated'), (False, 'remembered'), (False, 'untold'),
                     (True, 'stated'), (True, 'remembered'), (True, 'untold'), (True, 'card')}

def test_half_of_the_stories_with_casts_tell_no_look(mixed):
    _, file = mixed
    look_words = {*COLOURS, *SHAPES, *RADII, *ACCESSORIES} - {'nothing'}
    silent, with_cast = 0, 0
    for split in file.splits:
        for i in range(len(file[split])):
            story = file[split][i]
            tells_look = bool(word_set(' '.join(story.captions)) & look_words)
            if story.cast: with_cast += 1
            if story.cast: silent += not tells_look
            else: assert tells_look
    assert abs(silent - with_cast/2) < 3.5*(with_cast/4)**.5 and with_cast > 50

def test_only_first_records_name_the_cast(mixed):
    raw, _ = mixed
    for path in raw.rglob('*.json'):
        for [record] in json.loads(path.read_text())['annotations']:
            assert record['image_order'] == 1 or 'cast' not in record
            for name, picture in record.get('cast', {}).items():
                assert picture == f'{record["album_id"]}_{name}' and (raw/'SSID_Images'/f'{picture}.png').exists()

@pytest.mark.parametrize('share', [0., 1.])
def test_all_albums_have_casts_or_none(tmp_path, share):
    toy.write_toy(tmp_path/'raw', (6, 1, 1), progress=False, untold=True, with_cards=share)
    convert('toy', tmp_path/'raw', tmp_path/'toy.h5', quiet=True)
    file = StoryFile(tmp_path/'toy.h5')
    assert {bool(file['train'][i].cast) for i in range(6)} == {bool(share)}


# single stories

def test_one_story_by_its_number():
    story = toy.toy_story(3, untold=True, cards=True)
    assert story == toy.toy_story(3, untold=True, cards=True) and len(story.cast) == 2
    assert story.frames == toy.toy_story(3, untold=True).frames   # cards change the captions only
    assert story.captions != toy.toy_story(3, untold=True).captions
    reworded = toy.toy_story(3, untold=True, cards=True, telling=1)
    assert (reworded.frames, reworded.cast) == (story.frames, story.cast) and reworded.captions != story.captions
    larger = toy.toy_story(3, untold=True, cards=True, side=128)
    assert read(larger.pictures()) == read(story.pictures())
    looks = [read_cards(list(one.cards().values())) for one in (story, larger)]
    assert looks[0] == looks[1] and {*looks[0]} == looks_in(read(story.pictures()))
    assert toy.toy_story(3).cast == {} and toy.toy_story(3, cards=True).cast.keys()
