"Every corpus in its raw layout, SSID's real records when they are at hand, and every kind of trouble as one line."
import json, os, pickle, random, re, warnings
from pathlib import Path

import numpy as np, pytest
from PIL import Image

from corpora import WRITE
from arldm.core import BadStory, StoryError
from arldm.cli.convert import convert, summary
from arldm.data.dataset import StoryDataset, Vocabulary, word_tokenizers
from arldm.files.pictures import decode
from arldm.files.raw_folder import RawFolder
from arldm.data.checks import clean
from arldm.data.corpora import SOURCES, ssid
from arldm.data.story import StoryFile

MINI = Path(__file__).parents[2]/'shared/ssid-mini'
PARITY = Path(__file__).parents[2]/'shared/parity'
NAMES = dict(train='Train', val='Validation', test='Test')

def record(story, k, **changes):
    return dict(storytext=f'caption {k} of {story}', youtube_image_id=f'{story//10}{k}', album_id=story//10,
                story_id=story, image_order=k) | changes

@pytest.fixture
def raw(tmp_path):
    "One album per split, four tellings each, records not in order."
    raw = tmp_path/'raw'
    (raw/'a').mkdir(parents=True)
    for album, name in enumerate(NAMES.values(), 1):
        for k in range(1, 6):
            noise = np.random.default_rng(10*album + k).integers(0, 255, (48, 64, 3), 'uint8')
            Image.fromarray(noise).save(raw/f'a/{album}{k}.jpg')
        write(raw, name, [[record(10*album + t, k)] for t in range(4) for k in (3, 1, 5, 2, 4)])
    return raw

def annotations(raw, name='Test'): return json.loads((raw/f'SSID_{name}.json').read_text())['annotations']

def write(raw, name, records): (raw/f'SSID_{name}.json').write_text(json.dumps(dict(annotations=records), indent=0))

def test_convert(raw, tmp_path, capsys):
    counts = convert('ssid', raw, tmp_path/'x.h5')
    assert counts == {**{s: dict(stories=4, albums=1, pictures=20, different=5) for s in NAMES}, 'skipped': {}}
    assert summary(counts) in capsys.readouterr().out
    file = StoryFile(tmp_path/'x.h5')
    assert file.corpus == 'ssid' and list(file.splits) == list(NAMES)
    for split, album in zip(NAMES, (1, 2, 3)):
        for t, story in enumerate(file[split]):
            assert (story.id, story.album) == (f'{10*album + t}', f'{album}')
            assert story.captions == tuple(f'caption {k} of {10*album + t}' for k in range(1, 6))
            assert story.frames == tuple((raw/f'a/{album}{k}.jpg').read_bytes() for k in range(1, 6))

def test_dry_run_counts_the_same_and_writes_nothing(raw, tmp_path):
    counts = convert('ssid', raw, tmp_path/'x.h5', dry_run=True, quiet=True)
    assert not (tmp_path/'x.h5').exists()
    assert counts == convert('ssid', raw, tmp_path/'x.h5', quiet=True)

def test_files_anywhere_by_name(raw, tmp_path):
    for i, file in enumerate(sorted(raw.rglob('*.*'))):
        (raw/f'{i%3}'/'deeper').mkdir(parents=True, exist_ok=True)
        file.rename(raw/f'{i%3}'/'deeper'/(file.stem + {'.jpg': '.JPEG'}.get(file.suffix, file.suffix)))
    assert convert('toy', raw, tmp_path/'x.h5', quiet=True)['train']['stories'] == 4

# Each trouble: what is done to the corpus, the line that is read, and the reason it is counted under
def edit(change):
    def do(raw):
        records = annotations(raw)
        change(records)
        write(raw, 'Test', records)
    return do

def first(**changes): return edit(lambda a: a[0][0].update(changes))

BROKEN, NUMBER = 'story 30: 32.jpg is not a whole picture', r'SSID_Test.json: story 30: image_order is ("third"|Infinity), expected a whole number of at most 9 digits'
BAD = dict(
    photo_missing=(lambda r: (r/'a/32.jpg').unlink(), 'story 30: no picture 32 in .*', 'missing picture'),
    photo_cut=(lambda r: os.truncate(r/'a/32.jpg', 2000), rf'{BROKEN} \(.*truncated.*\)', 'broken picture'),
    photo_html=(lambda r: (r/'a/32.jpg').write_text('<html>'), rf'{BROKEN} \(cannot identify .*\)', 'not a picture'),
    photo_empty=(lambda r: (r/'a/32.jpg').write_bytes(b''), rf'{BROKEN} \(.*\)', 'not a picture'),
    four=(edit(lambda a: a.pop(0)), 'story 30 has 4 pictures, 5 needed', 'wrong length'),
    six=(edit(lambda a: a.append([record(30, 6)])), 'story 30 has 6 pictures, 5 needed', 'wrong length'),
    twice=(first(image_order=1), r'story 30 has 2 pictures with image_order 1; does its id occur twice\?', 'repeated image_order'),
    order=(first(image_order='third'), NUMBER, 'bad image_order'),
    endless=(first(image_order=float('inf')), NUMBER, 'bad image_order'),
    no_text=(edit(lambda a: a[0][0].pop('storytext')), 'story 30: a record has no storytext', 'missing key'),
    null_text=(first(storytext=None), 'story 30: a record has no storytext', 'missing key'),
    outside=(first(youtube_image_id='../33'), "story 30: the id '../33' is not a plain name", 'unsafe id'),
    dots=(first(youtube_image_id='..'), "story 30: the id '..' is not a plain name", 'unsafe id'),
    absolute=(first(youtube_image_id='/etc/passwd'), "story 30: the id '/etc/passwd' .*", 'unsafe id'),
    story_id=(edit(lambda a: [g[0].update(story_id='../x') for g in a[:5]]), "story ../x: the id .*", 'unsafe id'))

@pytest.mark.parametrize('what', BAD)
def test_bad_story(raw, tmp_path, what):
    spoil, said, reason = BAD[what]
    spoil(raw)
    with pytest.raises(BadStory, match=f'^{said}; pass --skip-bad to leave such stories out$') as e:
        convert('ssid', raw, tmp_path/'x.h5', quiet=True)
    assert e.value.reason == reason and '\n' not in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ['raw']
    counts = convert('ssid', raw, tmp_path/'x.h5', skip_bad=True, quiet=True)
    n = 4 if what.startswith('photo') else 1   # a picture of an album is in four stories
    assert counts['skipped'] == {reason: n} and counts['test']['stories'] == 4 - n
    assert f'left out {n}: {n} × {reason}' in summary(counts)
    assert len(StoryFile(tmp_path/'x.h5')['test']) == 4 - n

def test_record_of_no_story(raw, tmp_path):
    edit(lambda a: [a[0][0].pop('story_id'), a.append(['what?'])])(raw)
    with pytest.raises(BadStory, match='story of record 1 in SSID_Test.json: a record has no story_id'):
        list(ssid(raw, 'test'))
    counts = convert('ssid', raw, tmp_path/'x.h5', skip_bad=True, quiet=True)
    assert counts['skipped'] == {'missing key': 2, 'wrong length': 1} and counts['test']['stories'] == 3

@pytest.mark.parametrize('spoil,said', [
    (lambda r: (r/'SSID_Test.json').unlink(), 'no SSID_Test.json in it or below it'),
    (lambda r: os.truncate(r/'SSID_Test.json', 500), r'SSID_Test.json: not valid JSON \(.*line \d+ .*\)'),
    (lambda r: (r/'SSID_Test.json').write_bytes(b'\xff\xfe'), 'SSID_Test.json: UTF-16, expected UTF-8'),
    (lambda r: (r/'SSID_Test.json').write_text('[1, 2]'), 'SSID_Test.json: no list "annotations" in it')])
def test_bad_annotations_end_it_before_any_picture_is_read(raw, tmp_path, monkeypatch, spoil, said):
    spoil(raw)
    monkeypatch.setattr(RawFolder, 'picture', None)
    for skip_bad in False, True:
        with pytest.raises(StoryError, match=said) as e: convert('ssid', raw, tmp_path/'x.h5', skip_bad=skip_bad, quiet=True)
        assert '\n' not in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ['raw']

def test_nothing_there(raw, tmp_path):
    with pytest.raises(StoryError, match='no such folder'): convert('ssid', tmp_path/'absent', tmp_path/'x.h5')
    with pytest.raises(StoryError, match=f"no source 'vist'; there are {', '.join(SOURCES)}, folder"):
        convert('vist', raw, tmp_path/'x.h5')
    for file in (raw/'a').iterdir(): file.unlink()
    with pytest.raises(StoryError, match='not a single story can be used; left out 12: 12 × missing picture'):
        convert('ssid', raw, tmp_path/'x.h5', skip_bad=True, quiet=True)
    for name in NAMES.values(): write(raw, name, [])
    with pytest.raises(StoryError, match='not a single story can be used'):
        convert('ssid', raw, tmp_path/'x.h5', dry_run=True, quiet=True)
    assert not (tmp_path/'x.h5').exists()

def test_empty_split_is_allowed(raw, tmp_path):
    write(raw, 'Validation', [])
    assert convert('ssid', raw, tmp_path/'x.h5', quiet=True)['val']['stories'] == 0
    assert len(StoryFile(tmp_path/'x.h5')['val']) == 0

def test_shared_albums_are_told(raw, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        convert('ssid', raw, tmp_path/'x.h5', quiet=True)
    write(raw, 'Validation', annotations(raw, 'Train'))
    with pytest.warns(UserWarning, match=r'splits share albums, so scores will be too good: train and val \(1\)'):
        convert('ssid', raw, tmp_path/'x.h5', quiet=True)

def test_each_picture_is_decoded_once(raw, tmp_path, monkeypatch):
    import arldm.files.raw_folder
    seen, decode = [], arldm.files.raw_folder.decode
    monkeypatch.setattr(arldm.files.raw_folder, 'decode', lambda data, quick: seen.append(data) or decode(data, quick))
    convert('ssid', raw, tmp_path/'x.h5', quiet=True)
    assert len(seen) == len(set(seen)) == 15

def test_captions_become_one_line(raw, tmp_path):
    assert clean(' the old\r\n house\t\u00a0| \0 “it” \ud800') == 'the old house | “it” ?'
    edit(lambda a: a[0][0].update(storytext='the old\nhouse \ud83d \0 end'))(raw)
    convert('ssid', raw, tmp_path/'x.h5', quiet=True)
    assert StoryFile(tmp_path/'x.h5')['test'][0].captions[2] == 'the old house ? end'

@pytest.mark.skipif(not MINI.is_dir(), reason='../shared/ssid-mini is not here')
def test_real_stories(tmp_path):
    counts = convert('ssid', MINI, tmp_path/'x.h5', quiet=True)
    assert sum(c['stories'] for s, c in counts.items() if s in NAMES) == 48
    assert sum(c['albums'] for s, c in counts.items() if s in NAMES) == 12
    assert sum(c['different'] for s, c in counts.items() if s in NAMES) == 60 and not counts['skipped']
    file = StoryFile(tmp_path/'x.h5')
    for split, name in NAMES.items():
        by_story = {}
        for [r] in json.loads((MINI/f'SSID_Annotations/SSID_{name}.json').read_text())['annotations']:
            by_story.setdefault(str(r['story_id']), {})[r['image_order']] = r
        assert file[split].ids == list(by_story)
        for story in file[split]:
            want = [by_story[story.id][k] for k in range(1, 6)]
            assert story.captions == tuple(' '.join(r['storytext'].split()) for r in want)
            assert story.frames == tuple((MINI/f"SSID_Images/{r['youtube_image_id']}.jpg").read_bytes() for r in want)

@pytest.mark.skipif(not PARITY.is_dir(), reason='../shared/parity is not here')
def test_the_original_layout_gives_the_same_stories(tmp_path):
    with pytest.warns(UserWarning, match='share albums'): convert('ssid', PARITY, tmp_path/'x.h5', quiet=True)
    ours, theirs = StoryFile(tmp_path/'x.h5'), StoryFile(PARITY/'ssid.h5')
    for split in NAMES:
        assert len(ours[split]) == len(theirs[split])
        for a, b in zip(ours[split], theirs[split]):   # it ignored image_order and deleted line breaks
            assert sorted(c.replace(' ', '') for c in a.captions) == sorted(c.replace(' ', '') for c in b.captions)


# The five corpora in their own raw layouts

def read_splits(source, raw):
    "Split -> its stories, through a story file."
    convert(source, raw, raw.parent/f'{source}.h5', quiet=True)
    file = StoryFile(raw.parent/f'{source}.h5')
    return {split: list(file[split]) for split in NAMES}

@pytest.mark.filterwarnings('ignore:splits share albums')
@pytest.mark.parametrize('source', WRITE)
def test_every_corpus(source, tmp_path):
    "Five captions for five frames, in order, each picture once with its bytes, and upright."
    raw = WRITE[source](tmp_path/'raw')
    stories = read_splits(source, raw)
    assert all(stories.values())
    files = {p.read_bytes() for p in raw.rglob('*.*')}
    for story in sum(stories.values(), []):
        assert len(story.captions) == len(story.frames) == 5
        places = [re.search(r'place (\d)', c) for c in story.captions]
        if source != 'vist-dii': assert [(int(p[1]) - int(places[0][1])) % 7 for p in places] == [0, 1, 2, 3, 4]
        assert all('\n' not in c and '  ' not in c and c == c.strip() for c in story.captions)
        if source.startswith(('ssid', 'vist')):
            assert all(f in files for f in story.frames)
            assert story.pictures()[2].size == (32, 48) and story.pictures()[1].size == (48, 32)
    file = StoryFile(tmp_path/f'{source}.h5')
    rows = [file.picture(i) for i in range(len(file.h5['frames']))]
    shown = {p for s in sum(stories.values(), []) for f in s.frames for p in (f if isinstance(f, tuple) else (f,))}
    assert file.corpus == source and len(set(rows)) == len(rows) and set(rows) == shown

@pytest.mark.filterwarnings('ignore:splits share albums')
@pytest.mark.parametrize('source', WRITE)
def test_the_command(source, tmp_path, capsys, monkeypatch):
    "arldm-convert says what it did, and in a dry run the same without a file."
    raw, said = WRITE[source](tmp_path/'raw'), []
    for flags in ['--dry-run'], ['--skip-bad', '--resolution', '20', '--workers', '3']:
        assert not (tmp_path/'x.h5').exists()
        monkeypatch.setattr('sys.argv', ['arldm-convert', source, str(raw), str(tmp_path/'x.h5'), *flags])
        convert()
        said.append(capsys.readouterr().out.split('\n'))
    assert [' '.join(l.split()[:3]) for l in said[0]] == [' '.join(l.split()[:3]) for l in said[1]]
    assert re.match(r'train +\d+ (story|stories), +\d+ albums?, +\d+ pictures?, +\d+ of them different', said[0][0])
    assert all(min(p.size) == 20 for p in StoryFile(tmp_path/'x.h5')['test'][0].pictures())

def test_orders_are_the_corpus_own(tmp_path):
    "The order field counts, not the file: shuffled records give the same stories."
    raw = WRITE['vist-sis'](tmp_path/'a'/'raw')
    before = {s: {x.id: x for x in read_splits('vist-sis', raw)[s]} for s in NAMES}
    file = next(raw.rglob('train.story-in-sequence.json'))
    data = json.loads(file.read_text())
    random.Random(1).shuffle(data['annotations'])
    file.write_text(json.dumps(data))
    assert {x.id: x for x in read_splits('vist-sis', raw)['train']} == before['train']

def test_dii_takes_the_longest_text_and_keeps_equal_ones(tmp_path):
    raw = WRITE['vist-dii'](tmp_path/'raw')
    dii, sis = read_splits('vist-dii', raw), read_splits('vist-sis', raw)
    for a, b in zip(dii['train'], sis['train']):
        assert (a.id, a.album, a.frames) == (b.id, b.album, b.frames)
        assert a.captions == tuple(f'A slope of colours. Number {k}.' for k in range(3)) + ('A slope of colours.',)*2

def test_dii_counts_what_can_be_read(tmp_path):
    "Spaces are no description, however many there are."
    raw = WRITE['vist-dii'](tmp_path/'raw')
    before = read_splits('vist-dii', raw)['train']
    file = next(raw.rglob('train.description-in-isolation.json'))
    data = json.loads(file.read_text())
    for group in [*data['annotations']]: data['annotations'].append([{**group[0], 'text': ' '*500}])
    file.write_text(json.dumps(data))
    assert read_splits('vist-dii', raw)['train'] == before

@pytest.mark.parametrize('source', WRITE)
def test_a_split_that_there_is_not(source, tmp_path):
    with pytest.raises(StoryError, match="no split 'valid'; .*did you mean val"): SOURCES[source](WRITE[source](tmp_path/'raw'), 'valid')

def test_dii_without_a_description_is_a_bad_story(tmp_path):
    raw = WRITE['vist-dii'](tmp_path/'raw')
    file = next(raw.rglob('test.description-in-isolation.json'))
    data = json.loads(file.read_text())
    photo = data['annotations'][0][0]['photo_flickr_id']
    data['annotations'] = [g for g in data['annotations'] if g[0]['photo_flickr_id'] != photo]
    file.write_text(json.dumps(data))
    with pytest.raises(BadStory, match=rf'story \d+: photo {photo} has no description'):
        convert('vist-dii', raw, tmp_path/'x.h5', quiet=True)
    counts = convert('vist-dii', raw, tmp_path/'x.h5', skip_bad=True, quiet=True)
    assert counts['skipped'] == {'missing description': 2} and counts['test']['stories'] == 0

def strip_of(raw, name):
    "The pictures of a strip, as arrays."
    a = np.asarray(Image.open(raw/name))
    return list(a.reshape(-1, a.shape[1], *a.shape[1:]))

def test_pororo_keeps_every_picture_of_a_strip(tmp_path):
    raw = WRITE['pororo'](tmp_path/'raw')
    with pytest.warns(UserWarning, match=r'share albums.*train and val \(1\)$'): stories = read_splits('pororo', raw)
    assert [s.id for s in stories['train'] + stories['val'] + stories['test']] == ['0', '1', '2', '3', '4', '5']
    assert [s.album for s in stories['test']] == ['Pororo_ENGLISH1_2_ep2']*3
    for story, first in zip(stories['test'], range(3)):
        for k, frame in enumerate(story.frames):
            name = f'Pororo_ENGLISH1_2_ep2/{first + k}.png'
            want, frame = strip_of(raw, name), (frame if isinstance(frame, tuple) else (frame,))
            assert len(frame) == len(want) and all((np.asarray(decode(a)) == b).all() for a, b in zip(frame, want))
            if len(want) == 1: assert frame[0] == (raw/name).read_bytes()

@pytest.mark.filterwarnings('ignore:splits share albums')
def test_flintstones_keeps_five_pictures_of_a_clip(tmp_path):
    raw = WRITE['flintstones'](tmp_path/'raw')
    stories = read_splits('flintstones', raw)
    assert {s: len(x) for s, x in stories.items()} == dict(train=3, val=1, test=2)   # a clip with three more begins none
    for story in stories['test']:
        assert story.album == 's_01_e_03'
        frames = np.load(raw/f'video_frames_sampled/{story.id}.npy')
        assert [np.asarray(decode(p)).tolist() for p in story.frames[0]] == frames.tolist()

@pytest.mark.filterwarnings('ignore:splits share albums')
def test_train_picks_a_picture_and_test_takes_the_first(tmp_path):
    raw = WRITE['flintstones'](tmp_path/'raw')
    convert('flintstones', raw, tmp_path/'x.h5', quiet=True)
    vocab, split = Vocabulary(*word_tokenizers(['fred'], tmp_path), 50), StoryFile(tmp_path/'x.h5')['test']
    frames = [[np.asarray(decode(p)) for p in f] for f in split[0].frames]
    fixed, chance = (StoryDataset(split, vocab, 24, 24, train=t) for t in (False, True))
    picked = set()
    for epoch in range(8):
        assert all((x.permute(1, 2, 0).numpy() == f[0]).all() for x, f in zip(fixed[0, epoch]['frames'], frames))
        picked |= {next(i for i, p in enumerate(f) if (x.permute(1, 2, 0).numpy() == p).all())
                   for x, f in zip(chance[0, epoch]['frames'], frames)}
    assert picked == {0, 1, 2, 3, 4}

def npy(raw, name, obj): np.save(raw/name, obj)

def bare_npy(raw, name, obj):
    "A .npy file of objects whose pickle holds `obj` itself, not an array."
    with open(raw/name, 'wb') as f:
        np.lib.format.write_array_header_1_0(f, dict(descr='|O', fortran_order=False, shape=()))
        pickle.dump(obj, f)

ODD = dict(
    crooked=('pororo', lambda r: Image.new('RGB', (24, 50)).save(r/'Pororo_ENGLISH1_2_ep2/3.png'), 'broken strip',
             'expected at most 1,000 squares stacked downwards'),
    no_strip=('pororo', lambda r: (r/'Pororo_ENGLISH1_2_ep2/3.png').unlink(), 'missing picture', 'there is no .*3.png'),
    undescribed=('pororo', lambda r: npy(r, 'descriptions.npy', np.array({}, object)), 'missing description',
                 'Pororo_ENGLISH1_1_ep1/0.png has no description'),
    numbers=('pororo', lambda r: npy(r, 'train_seen_unseen_ids.npy', np.array([[0], [1], [99]])), 'unknown story',
             'there are only 6'),
    outside=('pororo', lambda r: npy(r, 'img_cache4.npy', np.array(['../../x.png']*6, 'S')), 'unsafe id', 'not a plain name'),
    no_clip=('flintstones', lambda r: next(r.rglob('s_01_e_03*_000475.npy')).unlink(), 'missing picture',
             'no s_01_e_03_shot_000400_000475.npy'),
    grey=('flintstones', lambda r: npy(r, 'video_frames_sampled/s_01_e_03_shot_000400_000475.npy', np.zeros((5, 8, 8), 'u1')),
          'broken picture', r'is uint8 \(5, 8, 8\), expected uint8 \(n, h, w, 3\)'),
    no_array=('flintstones', lambda r: bare_npy(r, 'video_frames_sampled/s_01_e_03_shot_000400_000475.npy', {}),
          'broken picture', 'holds no array, but a dict'))

@pytest.mark.filterwarnings('ignore:splits share albums')
@pytest.mark.parametrize('what', ODD)
def test_bad_stories_of_film(what, tmp_path):
    source, spoil, reason, said = ODD[what]
    raw = WRITE[source](tmp_path/'raw')
    spoil(raw)
    with pytest.raises(BadStory, match=said) as e: convert(source, raw, tmp_path/'x.h5', quiet=True)
    assert e.value.reason == reason and '\n' not in str(e.value) and not (tmp_path/'x.h5').exists()
    if what in ('undescribed', 'outside'): return            # nothing is left of these
    assert convert(source, raw, tmp_path/'x.h5', skip_bad=True, quiet=True)['skipped'][reason] > 0
    assert list(StoryFile(tmp_path/'x.h5')['train'])

@pytest.mark.parametrize('source,file,said', [
    ('pororo', 'following_cache4.npy', 'the four .npy files do not fit together'),
    ('flintstones', 'train-val-test_split.json', 'not as their authors ship them')])
def test_tables_that_do_not_fit(source, file, said, tmp_path):
    raw = WRITE[source](tmp_path/'raw')
    np.save(raw/file, np.zeros((3, 4))) if file.endswith('npy') else (raw/file).write_text('[]')
    with pytest.raises(StoryError, match=said) as e: convert(source, raw, tmp_path/'x.h5', quiet=True)
    assert '\n' not in str(e.value)

def test_side_makes_pictures_small_and_keeps_small_ones(raw, tmp_path):
    counts = convert('ssid', raw, tmp_path/'x.h5', resolution=24, quiet=True)
    alike = [convert('ssid', raw, tmp_path/f'{n}.h5', resolution=24, workers=n, quiet=True) for n in (1, 5)]
    files = [StoryFile(tmp_path/name) for name in ('x.h5', '1.h5', '5.h5')]
    assert alike == [counts]*2 and [list(f['train']) for f in files[1:]] == [list(files[0]['train'])]*2
    assert files[0].attrs['resolution'] == 24 and all(p.size == (32, 24) for s in files[0]['train'] for p in s.pictures())
    convert('ssid', raw, tmp_path/'same.h5', resolution=48, quiet=True)
    convert('ssid', raw, tmp_path/'whole.h5', quiet=True)
    assert list(StoryFile(tmp_path/'same.h5')['test']) == list(StoryFile(tmp_path/'whole.h5')['test'])
