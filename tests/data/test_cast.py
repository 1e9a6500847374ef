"Casts: names and pictures of a story's characters go into a story file and come back; what does not fit is one line."
import json

import h5py, numpy as np, pytest
from PIL import Image

from arldm.cli.convert import convert, summary
from arldm.core import StoryError
from arldm.data.story import Story, StoryFile, count_stories, write_stories
from arldm.files.pictures import to_png
from arldm.train.digest import data_digest

def picture(seed): return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (12, 12, 3), 'uint8'))

def png(seed): return to_png(picture(seed))

def story(i, cast={}): return Story(str(i), 'a', ('Ada sits.', 'Bo runs.'), (png(0), png(1)), cast)

SPLITS = dict(train=[story(1), story(2, {'Ada': png(5), 'Bo': png(1)}), story(3, {'Ada': png(5)})],
              test=[story(1)])

@pytest.fixture
def path(tmp_path):
    write_stories(tmp_path/'x.h5', SPLITS, 'toy')
    return tmp_path/'x.h5'

def test_casts_come_back(path):
    file = StoryFile(path)
    assert {split: list(file[split]) for split in SPLITS} == SPLITS
    assert [file['train'].cast(i) for i in range(3)] == [{}, {'Ada': 2, 'Bo': 1}, {'Ada': 2}]
    assert list(file['train'].first(2)) == SPLITS['train'][:2] and file['test'].cast(0) == {}
    assert hash(story(2, {'Ada': png(5)})) == hash(story(2))   # stories may be in sets, as before

def test_casts_on_disk_and_in_the_counts(path):
    with h5py.File(path) as f:
        assert f['train/cast_name'].asstr()[()].tolist() == [['', ''], ['Ada', 'Bo'], ['Ada', '']]
        assert f['train/cast_frame'][()].tolist() == [[-1, -1], [2, 1], [2, -1]]
        assert 'cast_name' not in f['test'] and f.attrs['version'] == 1
    file = StoryFile(path)
    assert file.counts == count_stories(SPLITS)
    assert file.counts['train'] == dict(stories=3, albums=1, pictures=6, different=2, cards=3, with_cast=2)
    assert file.counts['test'] == dict(stories=1, albums=1, pictures=2, different=2)
    assert repr(file['train']).endswith('6 pictures (2 different), 3 cast cards in 2 stories')

def test_a_file_without_casts_is_as_before(tmp_path):
    "No further dataset, so that files and digests of data stay as they were."
    write_stories(tmp_path/'x.h5', dict(test=[story(1)]), 'toy')
    with h5py.File(tmp_path/'x.h5') as f: assert sorted(f['test']) == ['album_id', 'caption', 'frame', 'story_id']

def test_another_cast_is_other_data(tmp_path):
    digests = set()
    for cast in {}, {'Ada': png(1)}, {'Bo': png(1)}, {'Ada': png(0)}:
        write_stories(tmp_path/'x.h5', dict(test=[story(1, cast)]), 'toy')
        digests.add(data_digest(StoryFile(tmp_path/'x.h5')['test']))
    assert len(digests) == 4

BAD_CASTS = {
    'two of a name': ({'Ada': png(5), 'ADA': png(6)}, 'story 7: two cards of the cast are named Ada and ADA; names must differ'),
    'no name': ({'': png(5)}, "story 7: '' cannot name a card of the cast; expected text of one line, such as Ada"),
    'a number': ({3: png(5)}, 'story 7: 3 cannot name a card of the cast; expected text of one line, such as Ada'),
    'two lines': ({'A\nb': png(5)}, "story 7: 'A\\nb' cannot name a card of the cast; expected text of one line, such as Ada"),
    'no picture': ({'Ada': None}, 'story 7, card Ada of the cast: got NoneType, expected a picture: its path, its bytes, '
                                  'a PIL picture or a uint8 array (h, w, 3)'),
    'a list': ([png(5)], 'story 7: the cast is a list, expected a dictionary, name -> picture')}

@pytest.mark.parametrize('what', BAD_CASTS)
def test_bad_casts(what):
    cast, said = BAD_CASTS[what]
    with pytest.raises(StoryError) as e: story(7, cast)
    assert str(e.value) == said

@pytest.mark.parametrize('wrong', [
    dict(cast_frame=None), dict(cast_name=None), dict(cast_frame=np.zeros((3, 1), 'int32')),
    dict(cast_frame=np.full((3, 2), -1, 'int32')), dict(cast_frame=np.zeros((3, 2))),
    dict(cast_frame=np.full((3, 2), -2, 'int32')), dict(cast_name=[['', ''], ['Ada', 'ada'], ['Ada', '']])])
def test_damaged_casts(path, wrong):
    with h5py.File(path, 'a') as f:
        for name, values in wrong.items():
            del f[f'train/{name}']
            if values is None: continue
            is_text = name == 'cast_name'
            f.create_dataset(f'train/{name}', data=values, dtype=h5py.string_dtype() if is_text else None)
    with pytest.raises(StoryError) as e: StoryFile(path)['train']
    assert str(e.value) == (f'{path}: damaged, the casts of split train do not fit to its stories; '
                            'convert the corpus again')

# what is told about cards

ABOUT = {'Bo': {'description': 'a boy\nin blue, 蓝色', 'tag': 'non_human', 'shown_in': '1'}, 'Ada': {'tag': 'realistic_human', 'shown_in': 'none'}}

def told(i, about, cast={'Ada': png(5), 'Bo': png(1)}): return Story(str(i), 'a', ('Ada sits.',), None, cast, about)

def test_descriptions_come_back(tmp_path):
    "Beside the cast, in tables that are only there if something is told; data with other descriptions are other data."
    stories = [story(1), told(2, ABOUT), told(3, {'Ada': {'description': 'a girl', 'tag': ''}, 'Bo': {}}), told(4, {})]
    write_stories(tmp_path/'x.h5', dict(test=stories), 'toy')
    split = StoryFile(tmp_path/'x.h5')['test']
    assert list(split) == stories and [split.about(i) for i in range(4)] == [{}, ABOUT, {'Ada': {'description': 'a girl'}}, {}]
    assert split.first(2)[1] == stories[1] and stories[2].about == {'Ada': {'description': 'a girl'}}
    assert hash(stories[1]) == hash(told(2, {})) and stories[1] != told(2, {})
    with h5py.File(tmp_path/'x.h5') as f:
        assert f['test/cast_tag'].asstr()[()].tolist() == [['', ''], ['realistic_human', 'non_human'], ['', ''], ['', '']]
    digests = []
    for about in {}, {'Ada': {'tag': 'a'}}, {'Ada': {'tag': 'b'}}, {'Bo': {'tag': 'a'}}:
        write_stories(tmp_path/'y.h5', dict(test=[told(2, about)]), 'toy')
        with h5py.File(tmp_path/'y.h5') as f: assert ('cast_tag' in f['test']) == bool(about) and 'cast_description' not in f['test']
        digests.append(data_digest(StoryFile(tmp_path/'y.h5')['test']))
    assert len(set(digests)) == 4

BAD_ABOUT = {"story 7: the cast has no card 'Eve' to tell about": {'Eve': {'tag': 'x'}},
             "story 7, card Ada of the cast: 'looks' is 'red'; expected a text for description or tag or shown_in, which is as '1,3'": {'Ada': {'looks': 'red'}},
             "story 7, card Ada of the cast: 'tag' is None; expected a text for description or tag or shown_in, which is as '1,3'": {'Ada': {'tag': None}},
             "story 7, card Ada of the cast: 'shown_in' is '1, x'; expected a text for description or tag or shown_in, which is as '1,3'":
                 {'Ada': {'shown_in': '1, x'}},
             "story 7: what is known about the cast is 'Ada', expected {name: {'description': text, …}}": 'Ada',
             "story 7: what is known about the cast is {'Ada': 'a girl'}, expected {name: {'description': text, …}}": {'Ada': 'a girl'}}

@pytest.mark.parametrize('said', BAD_ABOUT)
def test_bad_descriptions(said):
    with pytest.raises(StoryError) as e: told(7, BAD_ABOUT[said])
    assert str(e.value) == said

@pytest.mark.parametrize('name, values', [
    ('cast_tag', [['', '']]), ('cast_tag', [['a', ''], ['', '']]), ('cast_name', None), ('cast_tag', np.zeros((2, 2)))])
def test_damaged_descriptions(tmp_path, name, values):
    write_stories(tmp_path/'x.h5', dict(test=[story(1), told(2, ABOUT)]), 'toy')
    with h5py.File(tmp_path/'x.h5', 'a') as f:
        del f[f'test/{name}']
        if name == 'cast_name': del f['test/cast_frame']
        else: f.create_dataset(f'test/{name}', data=values, dtype=h5py.string_dtype() if isinstance(values, list) else None)
    with pytest.raises(StoryError, match='damaged'): StoryFile(tmp_path/'x.h5')['test']

def test_text_that_no_file_can_hold(tmp_path):
    with pytest.raises(StoryError, match='is not text that a file can hold'):
        write_stories(tmp_path/'x.h5', dict(test=[told(2, {'Ada': {'description': 'a\0b'}})]), 'toy')

def test_from_pictures_with_a_cast(tmp_path):
    stories = [(['Ada sits.'], [picture(0)], {'Ada': picture(5)}), (['Bo runs.'], [picture(1)])]
    file = StoryFile.from_pictures(tmp_path/'x.h5', dict(train=stories))
    assert [s.cast for s in file['train']] == [{'Ada': png(5)}, {}]
    with pytest.raises(StoryError, match='^story 1, card Ada of the cast: not a whole picture'):
        StoryFile.from_pictures(tmp_path/'y.h5', dict(train=[(['Ada sits.'], [picture(0)], {'Ada': b'<html>'})]))

# folders

def write_folder(folder, cast=('Ada.png', 'Bo.jpg')):
    (folder/'cast').mkdir(parents=True)
    for k in 1, 2: picture(k).save(folder/f'{k}.png')
    (folder/'captions.txt').write_text('Ada sits.\nBo runs.')
    for k, name in enumerate(cast): picture(10 + k).save(folder/'cast'/name)

def converted(raw, tmp_path, **more):
    convert('folder', raw, tmp_path/'x.h5', **more)
    file = StoryFile(tmp_path/'x.h5')
    return {story.id: story for split in file.splits for story in file[split]}

def test_folders_with_casts(tmp_path, capsys):
    raw = tmp_path/'raw'
    write_folder(raw/'train/monday')
    write_folder(raw/'train/holiday/tuesday', ('Zoë.png',))
    write_folder(raw/'test/friday', ())
    write_folder(raw/'train/cast', ())   # a story of this name, with an empty folder for its cast
    stories = converted(raw, tmp_path)
    assert {name: list(story.cast) for name, story in stories.items()} == {
        'monday': ['Ada', 'Bo'], 'holiday-tuesday': ['Zoë'], 'cast': [], 'friday': []}
    assert stories['monday'].cast['Bo'] == (raw/'train/monday/cast/Bo.jpg').read_bytes()
    out = capsys.readouterr().out
    assert '3 cast cards in 2 stories' in out and 'to no story' not in out

BAD_FOLDERS = {
    ('Ada.png', 'ada.jpg'): 'two cards of the cast are named Ada and ada; names must differ',
    ('Ada.png', 'Ada.jpg'): 'two cards of the cast are named Ada and Ada; names must differ',
    ('Ada.tiff',): 'monday/cast/Ada.tiff is no picture, expected only pictures such as Ada.png'}

@pytest.mark.parametrize('cast', BAD_FOLDERS)
def test_bad_casts_of_folders(tmp_path, cast):
    write_folder(tmp_path/'raw/monday', cast)
    with pytest.raises(StoryError) as e: converted(tmp_path/'raw', tmp_path)
    assert str(e.value) == f'story monday: {BAD_FOLDERS[cast]}; pass --skip-bad to leave such stories out'
    write_folder(tmp_path/'raw/tuesday')
    assert list(converted(tmp_path/'raw', tmp_path, skip_bad=True)) == ['tuesday']

def test_a_card_that_is_no_picture(tmp_path):
    write_folder(tmp_path/'raw/monday', ())
    (tmp_path/'raw/monday/cast/Ada.png').write_text('hello')
    with pytest.raises(StoryError, match='^story monday: Ada.png is not a whole picture'): converted(tmp_path/'raw', tmp_path)

# SSID's layout, which the toy corpus uses

def write_records(raw, cast, of_frame=1):
    (raw/'SSID_Images').mkdir(parents=True, exist_ok=True)
    for name in '1', '2', '3', '4', '5', '0_Ada': picture(len(name)).save(raw/f'SSID_Images/{name}.png')
    for split in 'Train', 'Validation', 'Test':
        records = []
        for k in 3, 1, 2, 5, 4:
            record = dict(storytext='Ada sits.', youtube_image_id=k, album_id=0, story_id=7, image_order=k)
            if k == of_frame: record['cast'] = cast
            records.append([record])
        (raw/f'SSID_{split}.json').write_text(json.dumps(dict(annotations=records)))

def test_casts_of_the_toy_corpus(tmp_path):
    write_records(tmp_path/'raw', {'Ada': '0_Ada'})
    counts = convert('toy', tmp_path/'raw', tmp_path/'x.h5', quiet=True)
    assert StoryFile(tmp_path/'x.h5')['test'][0].cast == {'Ada': (tmp_path/'raw/SSID_Images/0_Ada.png').read_bytes()}
    assert summary(counts).count('1 cast card in 1 story') == 3

BAD_RECORDS = {
    'lost': ({'Ada': 'lost'}, 1, 'story 7: no picture lost in '),
    'no id': ({'Ada': [1]}, 1, 'SSID_Train.json: story 7: the card of Ada is a value of type list, expected text or a whole number below'),
    'a list': (['0_Ada'], 1, 'story 7: cast is a list, expected an object, name -> id of a picture;'),
    'of frame 2': ({'Ada': '0_Ada'}, 2, 'story 7: a cast in the record of frame 2, expected it in that of frame 1;'),
    'two': ({'Ada': '0_Ada', 'ADA': 1}, 1, 'story 7: two cards of the cast are named Ada and ADA; names must differ;')}

@pytest.mark.parametrize('what', BAD_RECORDS)
def test_bad_casts_of_records(tmp_path, what):
    cast, of_frame, said = BAD_RECORDS[what]
    write_records(tmp_path/'raw', cast, of_frame)
    with pytest.raises(StoryError) as e: convert('toy', tmp_path/'raw', tmp_path/'x.h5', quiet=True)
    assert str(e.value).startswith(said) and str(e.value).endswith('pass --skip-bad to leave such stories out')
