"The story file: what goes in comes out, and what is no story file is named."
import io, json, multiprocessing, pickle
from pathlib import Path

import h5py, numpy as np, pytest
from PIL import Image

from arldm.core import StoryError
import arldm.data.story as story_module
from arldm.files.hdf5 import Disk, open_hdf5
from arldm.files.pictures import decode, to_png
from arldm.data.story import Story, StoryFile, count_stories, write_stories

PARITY = Path(__file__).parents[2]/'shared/parity'

def png(seed, side=12):
    return to_png(Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), 'uint8')))

def story(i, pictures, album='a'):
    return Story(str(i), album, tuple(f'caption {i}|{k}' for k in range(len(pictures))), tuple(pictures))

@pytest.fixture
def splits():
    "Two albums; stories of five, three and one frame that share pictures."
    a = [png(k) for k in range(5)]
    return dict(train=[story(1, a), story(2, a[2:]), story(3, [png(9)], 'b')], val=[], test=[story(1, a[::-1])])

@pytest.fixture
def path(splits, tmp_path):
    write_stories(tmp_path/'stories.h5', splits, 'toy')
    return tmp_path/'stories.h5'

def test_round_trip(splits, path):
    file = StoryFile(path)
    assert (file.splits, file.corpus) == (('train', 'val', 'test'), 'toy')
    assert {s: list(file[s]) for s in file.splits} == splits

def test_every_different_picture_once_with_its_bytes(splits, path):
    with h5py.File(path) as f: assert [bytes(p) for p in f['frames']] == [*splits['train'][0].frames, png(9)]
    assert StoryFile(path)['test'].rows(0).tolist() == [4, 3, 2, 1, 0]

def test_counts_are_those_of_a_dry_run(splits, path):
    file = StoryFile(path)
    assert file.counts == count_stories(splits)
    assert file.counts['train'] == dict(stories=3, albums=2, pictures=9, different=6)
    assert file.counts['val'] == dict(stories=0, albums=0, pictures=0, different=0)

def test_contract_on_disk(path):
    with h5py.File(path) as f:
        assert (f.attrs['format'], f.attrs['version'], bool(f.attrs['complete'])) == ('arldm-stories', 1, True)
        assert json.loads(f.attrs['counts'])['test']['stories'] == 1
        assert f['train/frame'][()].tolist() == [[0, 1, 2, 3, 4], [2, 3, 4, -1, -1], [5, -1, -1, -1, -1]]
        assert f['train/caption'].asstr()[1, 2:].tolist() == ['caption 2|2', '', '']
        assert f['train/album_id'].asstr()[()].tolist() == ['a', 'a', 'b']

@pytest.mark.parametrize('text', ['', 'a|b', 'naïve – “quoted”', '中文 😀', 'line\nbreak\ttab', "it's"])
def test_any_caption(tmp_path, text):
    write_stories(tmp_path/'x.h5', dict(test=[Story('é/1', '', (text,), (png(0),))]), 'toy')
    got = StoryFile(tmp_path/'x.h5')['test'][0]
    assert (got.captions, got.id, got.album) == ((text,), 'é/1', '')

def test_several_pictures_per_frame(tmp_path):
    s = Story('1', 'a', ('x', 'y', 'z'), ((png(0), png(1), png(2)), (png(1), png(3)), png(4)))
    write_stories(tmp_path/'x.h5', dict(test=[s, story(2, [png(0)])]), 'toy')
    split = StoryFile(tmp_path/'x.h5')['test']
    assert list(split)[0] == s and len(split[1]) == 1
    assert split.rows(0).tolist() == [[0, 1, 2], [1, 3, -1], [4, -1, -1]] and split.rows(1).shape == (1, 3)
    assert s.pictures(1) == [decode(p) for p in (png(1), png(3), png(4))]

def test_index_finds_by_id(path):
    split = StoryFile(path)['train']
    assert split.index('3') == split.index(3) == 2
    with pytest.raises(StoryError, match="no story '4' among the 3 of split train"): split.index(4)

def test_first_stories_of_a_split(path):
    split = StoryFile(path)['train']
    first = split.first(2)
    assert list(first) == [split[0], split[1]] and first.name == 'train'
    assert (first.ids, first.albums) == (split.ids[:2], split.albums[:2])
    assert list(split.first(9)) == list(split) and len(split) == 3 and len(split.first(0)) == 0

def _read(file): return [file['train'][i] for i in range(3)]

@pytest.mark.parametrize('how', ['fork', 'spawn'])
def test_worker_processes(splits, path, how):
    file = StoryFile(path)
    file['train'][0]   # the handle is open before the workers start
    with multiprocessing.get_context(how).Pool(2 if how == 'fork' else 1) as pool:
        assert pool.map(_read, [file]*8) == [splits['train']]*8
    assert pickle.loads(pickle.dumps(file['train']))[1] == splits['train'][1]

def test_failed_writing_keeps_the_old_file(splits, path):
    before = path.read_bytes()
    def broken():
        yield splits['train'][0]
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): write_stories(path, dict(train=broken()), 'toy')
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ['stories.h5']

def test_writer_refuses(splits, tmp_path):
    for wrong, said in ((dict(train=[], test=[]), 'not a single story'),
                         (dict(train=[splits['train'][0]]*2), 'story 1 occurs twice')):
        with pytest.raises(StoryError, match=said): write_stories(tmp_path/'x.h5', wrong, 'toy')
    assert not any(tmp_path.iterdir())
    with pytest.raises(StoryError, match='2 captions and 1 pictures'): Story('1', 'a', ('x', 'y'), (png(0),))
    with pytest.raises(StoryError, match='every frame needs one of each'): Story('1', 'a', (), ())

def test_a_story_whose_picture_cannot_be_read_is_named(splits, tmp_path):
    "The error is that of the picture, not of the file to write."
    def stories():
        yield splits['train'][0]
        (tmp_path/'lost.png').read_bytes()
    with pytest.raises(StoryError, match=r'x.h5: cannot be written \(.*lost.png: No such file or directory\)'):
        write_stories(tmp_path/'x.h5', dict(train=stories()), 'toy')
    assert not [*tmp_path.iterdir()]

def spoil(path, **attrs):
    with h5py.File(path, 'a') as f:
        for k, v in attrs.items():
            if v is None: del f.attrs[k]
            else: f.attrs[k] = v

@pytest.mark.parametrize('attrs,said', [
    (dict(facts=np.bytes_('{"format": "other"}')), 'format is other, expected arldm-stories'),
    (dict(facts=None), 'format is None, expected arldm-stories'),
    (dict(version=2), 'version is 2, expected 1'),
    (dict(complete=None), 'complete is None'),
    (dict(complete=False), 'complete is False')])
def test_what_is_no_story_file(path, attrs, said):
    spoil(path, **attrs)
    with pytest.raises(StoryError, match=said) as e: StoryFile(path)
    assert '\n' not in str(e.value) and str(path) in str(e.value)

def test_files_that_cannot_be_opened(path, tmp_path):
    with pytest.raises(StoryError, match='no such file'): StoryFile(tmp_path/'absent.h5')
    with pytest.raises(StoryError, match='no such file'): StoryFile(tmp_path)
    (tmp_path/'text.h5').write_text('hello')
    with pytest.raises(StoryError, match='not an HDF5 file'): StoryFile(tmp_path/'text.h5')
    (tmp_path/'cut.h5').write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(StoryError, match='not a whole one'): StoryFile(tmp_path/'cut.h5')
    with pytest.raises(StoryError, match="h5: no split 'valid'; it holds train, val, test"): StoryFile(path)['valid']

def test_decode_turns_upright_and_limits_size(monkeypatch):
    im, out = Image.new('RGB', (40, 20), 'red'), io.BytesIO()
    exif = im.getexif()
    exif[0x112] = 6
    im.save(out, 'JPEG', exif=exif)
    assert decode(out.getvalue()).size == (20, 40)
    assert decode(to_png(im.convert('P'))).mode == 'RGB'
    monkeypatch.setattr('arldm.files.pictures.MAX_PIXELS', 600)
    with pytest.raises(StoryError, match='exceeds limit'): decode(out.getvalue())
    with pytest.raises(StoryError, match='cannot identify'): decode(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n')

@pytest.mark.skipif(not PARITY.is_dir(), reason='../shared/parity is not here')
def test_original_files():
    file = StoryFile(PARITY/'ssid.h5')
    assert (file.splits, file.corpus) == (('train', 'val', 'test'), 'ssid')
    for split, name in dict(train='Train', val='Validation', test='Test').items():
        records = [g[0] for g in json.loads((PARITY/f'ssid_json/SSID_{name}.json').read_text())['annotations']]
        by_story = {}
        for r in records: by_story.setdefault(r['story_id'], []).append(r)
        stories = list(file[split])
        assert len(stories) == len(by_story) == file.counts[split]['stories']
        for story, records in zip(stories, by_story.values()):
            for caption, r in zip(story.captions, records):   # the original deleted line breaks
                assert caption.replace(' ', '') == ''.join(r['storytext'].split())
            for picture, r in zip(story.pictures(), records):
                want = Image.open(PARITY/f"ssid_img/{r['youtube_image_id']}.jpg").convert('RGB').resize((8, 8))
                assert np.abs(np.array(picture.resize((8, 8)), float) - np.array(want, float)).mean() < 12

def test_original_caption_with_a_bar(tmp_path):
    with h5py.File(tmp_path/'old.h5', 'w') as f:
        for k in range(2):
            f.create_dataset(f'test/image{k}', (1,), h5py.vlen_dtype('uint8'))[0] = np.frombuffer(png(k), 'uint8')
        f.create_dataset('test/sis', data=['left | right|done'], dtype=h5py.string_dtype())
    file = StoryFile(tmp_path/'old.h5')
    assert np.array(decode(file.picture(1))).tolist() == np.array(decode(png(1)))[..., ::-1].tolist()
    with pytest.raises(StoryError, match="story 0 of split test has 3 captions for 2 pictures"): file['test']

def test_original_film_is_refused(tmp_path):
    with h5py.File(tmp_path/'old.h5', 'w') as f:
        f.create_dataset('test/image0', (1,), h5py.vlen_dtype('uint8'))[0] = np.frombuffer(png(0), 'uint8')
        f.create_dataset('test/text', data=['a strip'], dtype=h5py.string_dtype())
    with pytest.raises(StoryError, match='this file holds strips of film; convert its corpus again'):
        StoryFile(tmp_path/'old.h5')

def test_what_a_full_disk_lost_reads_as_zeros(tmp_path):
    "HDF5's library reads what it believes written and never asks how much it got: garbage there has ended the process."
    with Disk(tmp_path/'x.h5') as disk:
        disk.write(b'abc'), disk.seek(1)
        assert disk.readinto(got := bytearray(b'?'*5)) == 5 and got == b'bc\0\0\0'


# a file that takes the place of another

def two_files(folder):
    "Story files of one and of two stories."
    stories = [Story(str(i), 'a', ('A.',), (to_png(Image.new('RGB', (8, 8), (40*i, 0, 0))),)) for i in (1, 2)]
    write_stories(folder/'one.h5', dict(test=stories[:1]), 'toy')
    write_stories(folder/'two.h5', dict(test=stories), 'toy')
    return folder/'one.h5', folder/'two.h5'

def test_a_file_replaced_while_it_is_opened(tmp_path, monkeypatch):
    "Nothing is read from a file that took the place of the checked one between checking and remembering it."
    one, two = two_files(tmp_path)
    def slow_open(path):
        opened = open_hdf5(path)
        two.replace(one)
        return opened
    monkeypatch.setattr(story_module, "open_hdf5", slow_open)
    with pytest.raises(StoryError, match='one.h5 was replaced or deleted while it was in use; start again'): StoryFile(one)

def test_a_file_replaced_between_two_openings(tmp_path):
    "A copy for another process refuses the new file, every time it is asked."
    one, two = two_files(tmp_path)
    copy = pickle.loads(pickle.dumps(StoryFile(one)))
    two.replace(one)
    for _ in range(2):
        with pytest.raises(StoryError, match='was replaced or deleted while it was in use'): copy['test'][0]
    one.unlink()
    with pytest.raises(StoryError, match='was replaced or deleted while it was in use'): copy['test'][0]
