"ViStoryBench's stories: both languages, casts, any number of shots, no pictures; what is wrong is named and counted."
import json, shutil
from dataclasses import replace

import numpy as np, pytest
from PIL import Image

from arldm.cli.convert import convert
from arldm.cli.train import train
from arldm.core import StoryError
from arldm.data.dataset import StoryDataset, Vocabulary, word_tokenizers
from arldm.data.story import Story, StoryFile, count_stories, write_stories
from arldm.data.vistory import LANGUAGES
from arldm.files.pictures import to_png
from arldm.report.page import story_figure
from arldm.train.digest import data_digest
from painted import painting
from vistory import write_told, write_vistory_data

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "The folder of three stories, and what their files hold."
    raw = tmp_path_factory.mktemp('data')/'ViStory'
    return raw, write_vistory_data(raw, 3, 9)

def first_picture(folder, name): # by the rule of ViStoryBench's loader
    paths = sorted(p for p in (folder/'image'/name).iterdir() if p.suffix.lower() in ('.png', '.jpg', '.jpeg'))
    return paths[0].read_bytes()

@pytest.mark.parametrize('source, language', LANGUAGES.items())
def test_stories_are_those_of_the_files(data, tmp_path, source, language):
    raw, told = data
    counts = convert(source, raw, tmp_path/'x.h5', quiet=True)
    cards = sum(len(x['Characters']) for x in told.values())
    assert counts == dict(test=dict(stories=3, albums=3, pictures=0, different=0, cards=cards, with_cast=3), skipped={})
    file = StoryFile(tmp_path/'x.h5')
    assert file.corpus == source and file.splits == ('test',)
    assert file['test'].ids == file['test'].albums == list(told)
    for story, (name, x) in zip(file['test'], told.items()):
        assert story.captions == tuple(shot['Static Shot Description'][language] for shot in x['Shots'])
        assert len(story) == len(x['Shots']) and story.frames is None
        assert story.cast == {about[f'name_{language}']: first_picture(raw/name, key)
                              for key, about in x['Characters'].items()}
        def shown_in(key): return ','.join(str(shot['index']) for shot in x['Shots'] if key in shot['Characters Appearing']['en'])
        assert story.about == {about[f'name_{language}']: dict(description=about[f'prompt_{language}'], tag=about['tag'],
                                                               shown_in=shown_in(key) or 'none')
                               for key, about in x['Characters'].items()}
    assert len({len(story) for story in file['test']}) == 3

def test_numbers_of_shots_as_text(data, tmp_path):
    "The order and the numbers are those of the index, however it is written."
    raw, told = data
    shutil.copytree(raw, tmp_path/'raw')
    for name, x in told.items():
        x = json.loads(json.dumps(x))
        for shot in x['Shots']: shot['index'] = f'{shot["index"]:02d}'
        x['Shots'].reverse()
        write_told(tmp_path/'raw'/name, x)
    for folder in raw, tmp_path/'raw': convert('vistory', folder, tmp_path/f'{folder.name}.h5', quiet=True)
    want, got = (list(StoryFile(tmp_path/f'{folder.name}.h5')['test']) for folder in (raw, tmp_path/'raw'))
    assert [story.about for story in got] == [story.about for story in want]

def test_a_story_that_lists_nobody(data, tmp_path):
    raw, told = data
    shutil.copytree(raw, tmp_path/'raw')
    for name, x in told.items():
        x = json.loads(json.dumps(x))
        for shot in x['Shots']: del shot['Characters Appearing']
        write_told(tmp_path/'raw'/name, x)
    convert('vistory', tmp_path/'raw', tmp_path/'x.h5', quiet=True)
    assert not any('shown_in' in about for story in StoryFile(tmp_path/'x.h5')['test'] for about in story.about.values())

def test_dry_run_and_summary(data, tmp_path, capsys):
    raw, _ = data
    counts = convert('vistory', raw, tmp_path/'x.h5', dry_run=True)
    assert counts == convert('vistory', raw, tmp_path/'y.h5', quiet=True) and not (tmp_path/'x.h5').exists()
    said = capsys.readouterr().out
    assert 'they can be drawn, not trained on' in said and '9 cast cards in 3 stories' in said

def test_order_is_that_of_the_numbers(data, tmp_path):
    raw, told = shutil.copytree(data[0], tmp_path/'raw'), data[1]
    x = json.loads(json.dumps(told['02']))
    x['Shots'].reverse()
    x['Characters'].popitem()[1].pop('name_en')    # the key is its name, but it has left the cast
    for about in x['Characters'].values(): about['name_en'] = ' '    # likewise
    write_told(raw/'02', x)
    convert('vistory', raw, tmp_path/'x.h5', quiet=True)
    story = StoryFile(tmp_path/'x.h5')['test'][1]
    assert story.captions == tuple(shot['Static Shot Description']['en'] for shot in told['02']['Shots'])
    assert list(story.cast) == list(x['Characters'])


# what is wrong

def shots(change): return lambda raw, x: change(x['Shots'])
def third(shots): return shots[2]['Static Shot Description']
def cast(change): return lambda raw, x: change(x['Characters'])
def picture(raw): return next((raw/'02/image').rglob('*.*'))
def cut(raw, x): (raw/'02/story.json').write_text('{"Shots": [')
def no_pictures(raw, x):
    for path in (raw/'02/image/Ada').iterdir(): path.unlink()
def put(path, text): path.write_text(text)
def link(raw, x):
    (raw.parent/'outside.png').write_bytes(to_png(painting(1)))
    for path in (raw/'02/image/Ada').iterdir():
        path.unlink()
        path.symlink_to(raw.parent/'outside.png')

BAD = {
    'no story.json': (lambda raw, x: (raw/'02/story.json').unlink(), 'no story.json in .*/02', 'missing story.json'),
    'cut short': (cut, '.*02/story.json: not valid JSON', 'bad story.json'),
    'a list': (lambda raw, x: put(raw/'02/story.json', '[]'), '.*02/story.json', 'bad story.json'),
    'no shots': (lambda raw, x: x.pop('Shots'), 'expected a list "Shots"', 'no shots'),
    'none of them': (shots(list.clear), 'expected a list "Shots"', 'no shots'),
    'a text as a shot': (shots(lambda s: s.append('x')), 'expected a list "Shots" in its story.json, of objects', 'no shots'),
    'no caption': (shots(lambda s: s[2].pop('Static Shot Description')), 'no Static Shot Description of shot 3', 'missing caption'),
    'no dictionary': (shots(lambda s: s[2].update({'Static Shot Description': 'x'})), 'no Static Shot Description of shot 3', 'missing caption'),
    'other language': (shots(lambda s: third(s).pop('en')), 'Static Shot Description of shot 3 is not in en, only in ch', 'missing language'),
    'empty caption': (shots(lambda s: third(s).update(en=' ')), 'Static Shot Description of shot 3 is empty or only spaces, expected a caption', 'empty caption'),
    'a number': (shots(lambda s: third(s).update(en=3)), 'Static Shot Description of shot 3 is .*, expected text', 'not text'),
    'no index': (shots(lambda s: s[2].pop('index')), 'index of a shot is null, expected a whole number of at most 9 digits', 'bad index of a shot'),
    'a hole': (shots(lambda s: s.pop(2)), r'6 shots with the numbers 1, 2, 4, 5, 6, 7; expected each of 1 to 6 once', 'odd numbers'),
    'twice': (shots(lambda s: s[2].update(index=2)), r'7 shots with the numbers 1, 2, 4, 5, 6, 7; expected each of 1 to 7 once', 'odd numbers'),
    'from zero': (shots(lambda s: [shot.update(index=shot['index'] - 1) for shot in s]), 'numbers 0, 1, 2', 'odd numbers'),
    'no picture': (no_pictures, r'no picture of Ada; expected 02/image/Ada/00.jpg', 'missing picture'),
    'no folder': (lambda raw, x: shutil.rmtree(raw/'02/image'), 'no picture of ', 'missing picture'),
    'no such folder': (cast(lambda c: c.update(Eve={})), 'no picture of Eve', 'missing picture'),
    'no picture inside': (lambda raw, x: put(picture(raw), 'GIF'), ' is not a whole picture', 'not a picture'),
    'link': (link, 'is a link that leads out of', 'link'),
    'one name': (cast(lambda c: [about.update(name_en='Al') for about in c.values()]), 'two cards of the cast are named Al and Al', 'bad cast'),
    'a list of characters': (lambda raw, x: x.update(Characters=['Ada']), 'expected "Characters"', 'bad cast')}

@pytest.mark.parametrize('what', BAD)
def test_bad_stories_are_named_and_counted(data, tmp_path, what):
    change, said, reason = BAD[what]
    raw = shutil.copytree(data[0], tmp_path/'raw')
    x = json.loads(json.dumps(data[1]['02']))
    assert 'Ada' in x['Characters'] and len(x['Shots']) == 7
    write_told(raw/'02', x)
    before = json.dumps(x)
    change(raw, x)
    if json.dumps(x) != before: write_told(raw/'02', x)
    with pytest.raises(StoryError, match=f'story 02: .*{said}.*; pass --skip-bad') as e:
        convert('vistory', raw, tmp_path/'x.h5', quiet=True)
    assert '\n' not in str(e.value) and not (tmp_path/'x.h5').exists()
    counts = convert('vistory', raw, tmp_path/'x.h5', skip_bad=True, quiet=True)
    assert StoryFile(tmp_path/'x.h5')['test'].ids == ['01', '03'] and list(counts['skipped'].values()) == [1]
    assert list(counts['skipped']) == [reason]

def test_wrong_folders(data, tmp_path, capsys):
    raw, _ = data
    with pytest.raises(StoryError, match='no folders 01, 02, … of stories in it; give the folder ViStory'):
        convert('vistory', raw.parent, tmp_path/'x.h5', quiet=True)
    with pytest.raises(StoryError, match='no such folder'): convert('vistory', raw/'none', tmp_path/'x.h5', quiet=True)
    with pytest.raises(StoryError, match='no source .vistory-de.*did you mean vistory'):
        convert('vistory-de', raw, tmp_path/'x.h5', quiet=True)
    more = shutil.copytree(raw, tmp_path/'more')
    (more/'notes').mkdir()
    assert convert('vistory', more, tmp_path/'x.h5')['test']['stories'] == 3
    assert 'not the number of a story: notes' in capsys.readouterr().out


# stories of captions only

def told(i, n, frames=None): return Story(str(i), str(i), tuple(f'line {k} of {i}' for k in range(n)), frames)

def test_in_a_file_beside_others(tmp_path):
    "Also in one split with stories of pictures, and of several pictures a frame."
    film = tuple(to_png(painting(k)) for k in range(5))
    stories = [told(1, 4), told(2, 2, film[:2]), told(3, 3, (film[:2], film[2:], film[0])), told(4, 1)]
    for n in 2, 4:
        counts = write_stories(tmp_path/'x.h5', dict(test=stories[:n]), 'folder')
        split = StoryFile(tmp_path/'x.h5')['test']
        assert list(split) == stories[:n] and split[-1] == stories[n - 1] and split.first(1)[0] == stories[0]
        assert [len(split.rows(i)) for i in range(n)] == [4, 2, 3, 1][:n]
        assert counts == count_stories(dict(test=stories[:n])) and counts['test']['pictures'] == (2 if n == 2 else 8)
    assert ', 1–4 frames per story, 8 pictures (5 different)' in repr(split)
    only = StoryFile.from_pictures(tmp_path/'y.h5', dict(test=[told(1, 3)]))['test']    # not one picture
    assert list(only) == [replace(only[0], frames=None)] and data_digest(only) != data_digest(only.first(0))
    for changed in [-2, -2, 0, -1], [-2, -1, -2, -2], [-3, -2, -2, -2]:
        with pytest.raises(StoryError, match='damaged'): damaged(tmp_path/'x.h5', stories[:2], changed)

def damaged(path, stories, rows):
    import h5py
    write_stories(path, dict(test=stories), 'folder')
    with h5py.File(path, 'r+') as f: f['test/frame'][0] = rows
    return StoryFile(path)['test']

def test_what_needs_pictures_refuses(data, tmp_path):
    raw, _ = data
    convert('vistory', raw, tmp_path/'x.h5', quiet=True)
    with pytest.raises(StoryError, match="no split 'train'; it holds test"):
        train(tmp_path/'run', data=tmp_path/'x.h5', preset='tiny')
    split = StoryFile(tmp_path/'x.h5')['test']
    vocab = Vocabulary(*word_tokenizers([*split[0].captions], tmp_path), 16)
    with pytest.raises(StoryError, match='x.h5: story 01 of split test has captions, but no pictures'):
        StoryDataset(split, vocab, 16, 16)
    with pytest.raises(StoryError, match='story 01 has captions, but no pictures'): split[0].pictures()
    with pytest.raises(StoryError, match='captions, but no pictures'): split.file.picture(int(split.rows(0)[0]))

def test_report_shows_captions(tmp_path):
    painting(1).save(tmp_path/'1.png')
    figure = story_figure('a story', {'drawn': {1: tmp_path/'1.png'}}, told(1, 2))
    assert figure.rows == ['drawn'] and [frame.caption for frame in figure.frames] == ['line 0 of 1']
