"What a stranger shipped is read as it was meant, or is counted as a bad story; what is not ours is left alone."
import io, json, os, pickle, shutil, struct, subprocess, sys, unicodedata, zlib
from pathlib import Path

import h5py, numpy as np, pytest
from PIL import Image

from arldm.cli import fetch_vist as fetch
from arldm.cli.convert import convert
from arldm.core import StoryError
from arldm.cli.fetch_vist import fetch_vist, true_suffix
from arldm.files.pictures import decode, read_picture, upright
from arldm.data.story import Story, StoryFile, write_stories
from arldm.toy.corpus import write_toy
from corpora import WRITE, picture, write_flintstones, write_ssid
from elsewhere import PYTHONPATH


# captions, ids and places

def edit_ssid(raw, change):
    "`change(records)` done to the test records; the first story is 30."
    path = raw/'SSID_Annotations/SSID_Test.json'
    data = json.loads(path.read_text())
    change([group[0] for group in data['annotations']])
    path.write_text(json.dumps(data))

def change(**values): return lambda records: records[0].update(values)
def change_story(**values): return lambda records: [r.update(values) for r in records[:5]]

ODD = dict(
    nan=(change(storytext=float('nan')), 'not text', 1), true=(change(storytext=True), 'not text', 1),
    list=(change(storytext=['a', 'ball']), 'not text', 1), object=(change(storytext=dict(a=1)), 'not text', 1),
    number=(change(storytext=7), 'not text', 1),
    empty=(change(storytext=''), 'empty caption', 1), blank=(change(storytext=' \t'), 'empty caption', 1),
    zero_width=(change(storytext='\u200b\ufeff'), 'empty caption', 1), filler=(change(storytext='\u3164'), 'empty caption', 1),
    control=(change(storytext='\x00\x07'), 'empty caption', 1),
    order_float=(change(image_order=1.7), 'bad image_order', 1), order_true=(change(image_order=True), 'bad image_order', 1),
    order_text=(change(image_order='one'), 'bad image_order', 1),
    picture_float=(change(youtube_image_id=32.0), 'bad id', 1), picture_list=(change(youtube_image_id=['32']), 'bad id', 1),
    album_nan=(change(album_id=float('nan')), 'bad id', 1), album_true=(change(album_id=True), 'bad id', 1),
    story_nan=(change_story(story_id=float('nan')), 'bad id', 5), story_float=(change_story(story_id=30.5), 'bad id', 5))

@pytest.mark.parametrize('what', ODD)
def test_what_is_no_text_is_no_caption(tmp_path, what):
    spoil, reason, n = ODD[what]
    raw = write_ssid(tmp_path/'raw', dict(train=(0,), val=(2,), test=(3,)))
    edit_ssid(raw, spoil)
    with pytest.raises(StoryError, match='^SSID_Test.json: story .*; pass --skip-bad'): convert('ssid', raw, tmp_path/'x.h5', quiet=True)
    counts = convert('ssid', raw, tmp_path/'x.h5', skip_bad=True, quiet=True)
    assert counts['skipped'] == {reason: n} and StoryFile(tmp_path/'x.h5')['test'].ids == ['31']

def test_numbers_in_text_are_numbers(tmp_path):
    raw = write_ssid(tmp_path/'raw', dict(train=(0,), val=(2,), test=(3,)))
    edit_ssid(raw, lambda records: [r.update({k: str(v) for k, v in r.items()}) for r in records])
    convert('ssid', raw, tmp_path/'x.h5', quiet=True)
    assert StoryFile(tmp_path/'x.h5')['test'].captions(0)[1] == 'Telling 0 of album 3, place 1: “it” | goes on.'

@pytest.mark.parametrize('text, reason', [(float('nan'), 'not text'), ([1], 'not text'), (' ', 'empty caption'), (None, 'missing description')])
@pytest.mark.parametrize('source', ['vist-dii', 'pororo', 'flintstones'])
def test_descriptions_are_text_in_every_corpus(tmp_path, source, text, reason):
    "In VIST the longest text of a photo counts, so all of its descriptions are replaced."
    raw = WRITE[source](tmp_path/'raw')
    if source == 'vist-dii':
        path = raw/'dii/test.description-in-isolation.json'
        data = json.loads(path.read_text())
        for [record] in data['annotations']:
            if record['photo_flickr_id'] == '270000032': record['original_text' if 'original_text' in record else 'text'] = text
        path.write_text(json.dumps(data))
    elif source == 'pororo':
        texts = np.load(raw/'descriptions.npy', allow_pickle=True).item()
        name = 'Pororo_ENGLISH1_2_ep2/6'                                  # of story 5 alone
        texts[name] = [text] if text is not None else None
        np.save(raw/'descriptions.npy', np.array(texts, object))
    else:
        path = raw/'flintstones_annotations_v1-0.json'
        records = json.loads(path.read_text())
        records[12]['description'] = text                                 # the first clip of the test split
        path.write_text(json.dumps(records))
    counts = convert(source, raw, tmp_path/'x.h5', skip_bad=True, quiet=True)
    counts['skipped'].pop('too few clips follow', None)
    assert counts['skipped'] == {reason: 2 if source == 'vist-dii' else 1}

def test_a_byte_order_mark_is_read_and_utf_16_is_named(tmp_path):
    raw = write_ssid(tmp_path/'raw', dict(train=(0,), val=(2,), test=(3,)))
    path = raw/'SSID_Annotations/SSID_Test.json'
    text = path.read_text()
    path.write_text(text, encoding='utf-8-sig')
    assert convert('ssid', raw, tmp_path/'x.h5', quiet=True)['test']['stories'] == 2
    path.write_text(text, encoding='utf-16')
    with pytest.raises(StoryError, match='SSID_Test.json: UTF-16, expected UTF-8'): convert('ssid', raw, tmp_path/'x.h5', quiet=True)

def test_an_id_that_stands_twice_is_a_bad_story(tmp_path):
    raw = write_flintstones(tmp_path/'raw')
    path = raw/'train-val-test_split.json'
    splits = json.loads(path.read_text())
    splits['test'].append(splits['test'][0])
    path.write_text(json.dumps(splits))
    with pytest.raises(StoryError, match='s_01_e_03_shot_000000_000075 occurs twice in train-val-test_split.json, test, as number 1 and 3'):
        convert('flintstones', raw, tmp_path/'x.h5', quiet=True)
    counts = convert('flintstones', raw, tmp_path/'x.h5', skip_bad=True, quiet=True)
    assert counts['skipped']['repeated id'] == 1 and counts['test']['stories'] == 2

def test_a_clip_with_too_few_followers_is_counted(tmp_path):
    "It is no mistake of the corpus, so it ends nothing."
    counts = convert('flintstones', write_flintstones(tmp_path/'raw'), tmp_path/'x.h5', quiet=True)
    assert counts['skipped'] == {'too few clips follow': 1} and counts['train']['stories'] == 3

@pytest.mark.parametrize('clips', ['abcd', 5, None, ['a']*5, np.zeros((2, 2))])
def test_what_follows_a_clip_is_a_list_of_clips(tmp_path, clips):
    raw = write_flintstones(tmp_path/'raw')
    path = raw/'following_cache4.pkl'
    follow = pickle.loads(path.read_bytes())
    follow['s_01_e_03_shot_000000_000075'] = clips
    path.write_bytes(pickle.dumps(follow, 2))
    with pytest.raises(StoryError, match='following_cache4.pkl has no list of 4 clips'): convert('flintstones', raw, tmp_path/'x.h5', quiet=True)
    counts = convert('flintstones', raw, tmp_path/'x.h5', skip_bad=True, quiet=True)
    assert counts['skipped']['odd following clips'] == 1 and counts['test']['stories'] == 1

def test_descriptions_of_no_photo_are_told(tmp_path):
    raw = WRITE['vist-dii'](tmp_path/'raw')
    path = raw/'dii/test.description-in-isolation.json'
    data = json.loads(path.read_text())
    data['annotations'] += [[dict(original_text='A very long text of no photo at all.', photo_flickr_id=x)] for x in (None, 1.5)] + ['?']
    path.write_text(json.dumps(data))
    with pytest.warns(UserWarning, match='test.description-in-isolation.json: 3 records without the id of a photo left out'):
        assert convert('vist-dii', raw, tmp_path/'x.h5', quiet=True)['test']['stories'] == 2

@pytest.mark.filterwarnings('ignore:splits share albums')
@pytest.mark.parametrize('name, file', [('NFC', 'NFD'), ('NFD', 'NFC')])
def test_names_of_strips_are_compared_in_one_form(tmp_path, name, file):
    "The folder that holds it all has a composed name in both cases."
    raw = WRITE['pororo'](tmp_path/'\xe9'/'raw')
    for array in 'img_cache4.npy', 'following_cache4.npy':
        names = [[n.decode().replace('ENGLISH1_2', 'é') for n in np.ravel(row)] for row in np.load(raw/array)]
        coded = np.array([[unicodedata.normalize(name, n).encode() for n in row] for row in names])
        np.save(raw/array, coded[:, 0] if array.startswith('img') else coded)
    texts = np.load(raw/'descriptions.npy', allow_pickle=True).item()
    new = {unicodedata.normalize(name, n.replace('ENGLISH1_2', 'é')): t for n, t in texts.items()}
    np.save(raw/'descriptions.npy', np.array(new, object))
    (raw/'Pororo_ENGLISH1_2_ep2').rename(raw/unicodedata.normalize(file, 'Pororo_é_ep2'))
    assert convert('pororo', raw, tmp_path/'x.h5', quiet=True)['test']['stories'] == 3

def test_names_are_compared_in_one_form(tmp_path):
    "Photos unpacked on a Mac have decomposed names; the annotations have composed ones, or the other way round."
    raw = write_ssid(tmp_path/'raw', dict(train=(0,), val=(2,), test=(3,)))
    edit_ssid(raw, lambda records: [r.update(youtube_image_id=unicodedata.normalize(f, f'é{r["youtube_image_id"]}'))
                                    for f, r in zip(['NFC', 'NFD']*5, records)])
    for form, k in zip(['NFD', 'NFC', 'NFD', 'NFC', 'NFD'], range(30, 35)):
        file = next((raw/'SSID_Images').glob(f'{k}.*'))
        file.rename(file.with_name(unicodedata.normalize(form, f'é{file.name}')))
    assert convert('ssid', raw, tmp_path/'x.h5', quiet=True)['test']['stories'] == 2


# pictures

def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

def png(pixels, bits, kind, *more):
    "A PNG of raw pixels (h, w[, c]), with more chunks before the data."
    h, w = pixels.shape[:2]
    rows = b''.join(b'\0' + row.astype('>u2' if bits == 16 else 'u1').tobytes() for row in pixels)
    head = struct.pack('>IIBBBBB', w, h, bits, kind, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + b''.join([chunk(b'IHDR', head), *more, chunk(b'IDAT', zlib.compress(rows)), chunk(b'IEND', b'')])

def saved(im, kind, **how):
    out = io.BytesIO()
    im.save(out, kind, **how)
    return out.getvalue()

def hidden(mode): # red lies under what is transparent; the right half is solid grey
    if mode == 'RGBA': return saved(Image.fromarray(np.array([[[255, 0, 0, 0], [90, 90, 90, 255]]], 'u1')), 'PNG')
    if mode == 'LA': return saved(Image.fromarray(np.array([[[0, 0], [90, 255]]], 'u1')), 'PNG')
    if mode == 'grey tRNS': return png(np.array([[7, 90]]), 8, 0, chunk(b'tRNS', b'\0\7'))
    if mode == 'colour tRNS': return png(np.array([[[255, 0, 0], [90, 90, 90]]]), 8, 2, chunk(b'tRNS', struct.pack('>HHH', 255, 0, 0)))
    if mode == 'palette tRNS':
        return png(np.array([[0, 1]]), 8, 3, chunk(b'PLTE', bytes([255, 0, 0, 90, 90, 90])), chunk(b'tRNS', b'\0'))
    if mode == '16 bits tRNS': return png(np.array([[0x1234, 0x5a5a]]), 16, 0, chunk(b'tRNS', b'\x12\x34'))
    if mode == '16 bits alpha': return png(np.array([[[0x1234, 0], [0x5a5a, 0xffff]]]), 16, 4)
    p = Image.fromarray(np.array([[0, 1]], 'u1'), 'P')
    p.putpalette([255, 0, 0, 90, 90, 90])
    return saved(p, 'GIF', transparency=0)

@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'grey tRNS', 'colour tRNS', 'palette tRNS', '16 bits tRNS', '16 bits alpha', 'GIF'])
def test_what_is_transparent_shows_white(mode):
    assert np.asarray(decode(hidden(mode))).tolist() == [[[255]*3, [90]*3]]

def test_a_picture_is_turned_once():
    "What was decoded may be handed on as a picture."
    array, turned = picture(3, 32, 24), Image.Exif()
    turned[0x112] = 6
    for kind in 'JPEG', 'PNG':
        once = decode(saved(Image.fromarray(array), kind, exif=turned))
        assert once.size == (24, 32) and np.array_equal(upright(once), once) and np.array_equal(decode(saved(once, 'PNG')), once)

def test_half_transparent_is_mixed_with_white():
    half = Image.fromarray(np.array([[[0, 0, 200, 51]]], 'u1'))           # a fifth of blue on white
    assert decode(saved(half, 'PNG')).getpixel((0, 0)) == upright(half).getpixel((0, 0)) == (204, 204, 244)

@pytest.mark.parametrize('array, kind', [(np.array([[0, 0x1234, 0xffff]]), 0), (np.array([[[0x1234]*3, [0]*3, [0xffff]*3]]), 2)])
def test_of_16_bits_the_upper_8(array, kind):
    want = (array >> 8 if array.ndim == 3 else np.repeat(array[..., None] >> 8, 3, 2))
    assert np.array_equal(np.asarray(decode(png(array, 16, kind))), want)

@pytest.mark.parametrize('bits, value', [(1, 1), (2, 1), (4, 5)])
def test_a_transparent_grey_of_few_bits(bits, value):
    "The file says the value in its own bits; what is shown goes from 0 to 255."
    most = 2**bits - 1
    packed = sum(v << bits*(8//bits - 1 - i) for i, v in enumerate([0, value]))
    head = struct.pack('>IIBBBBB', 2, 1, bits, 0, 0, 0, 0)
    data = b'\x89PNG\r\n\x1a\n' + b''.join([chunk(b'IHDR', head), chunk(b'tRNS', struct.pack('>H', value)),
                                         chunk(b'IDAT', zlib.compress(bytes([0, packed]))), chunk(b'IEND', b'')])
    assert np.asarray(decode(data)).tolist() == [[[0]*3, [255]*3]]
    assert np.asarray(decode(data.replace(chunk(b'tRNS', struct.pack('>H', value)), b''))).tolist() == [[[0]*3, [value*255//most]*3]]

def test_the_transparent_colour_of_16_bits():
    array = np.array([[[0xff, 0x12, 0], [0x5a5a]*3]])
    assert np.asarray(decode(png(array, 16, 2, chunk(b'tRNS', struct.pack('>HHH', 0xff, 0x12, 0))))).tolist() == [[[255]*3, [90]*3]]

@pytest.mark.parametrize('mode, value, want', [('I;16', 0x1234, 0x12), ('I;16B', 0x1234, 0x12), ('I', 0x1234, 0x12), ('I', -5, 0),
    ('I', 10**6, 255), ('F', 90.6, 90), ('F', -1., 0), ('F', 300., 255), ('1', 1, 255), ('L', 7, 7), ('La', (7, 0), 255)])
def test_the_modes_of_a_library(mode, value, want):
    "Pictures that a program hands over: 16 bits by their upper 8, floats as levels."
    if mode == 'La': im = Image.frombytes('La', (1, 1), bytes(value))
    elif mode == 'I;16B': im = Image.frombytes(mode, (1, 1), struct.pack('>H', value))
    else: im = Image.new(mode, (1, 1), value)
    assert upright(im).getpixel((0, 0)) == (want,)*3

@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP'])
def test_what_is_upright_is_not_turned_again(tmp_path, kind):
    "A picture is read from its file, and `upright` again where it is drawn."
    exif, array = Image.Exif(), picture(3, 32, 24)
    exif[0x112] = 6
    (tmp_path/'x').write_bytes(saved(Image.fromarray(array).transpose(Image.ROTATE_90), kind, exif=exif))
    once = read_picture(tmp_path/'x')
    assert once.size == (32, 24) and np.array_equal(np.asarray(upright(once)), np.asarray(once))
    if kind == 'PNG': assert np.array_equal(np.asarray(once), array)
    hidden_once = upright(Image.fromarray(np.array([[[9, 9, 9, 0]]], 'u1')))
    assert upright(hidden_once).getpixel((0, 0)) == (255,)*3

class Exif(Image.Exif):
    "Notes of a camera with an entry that no library writes, and an orientation."
    def __init__(self, tag, kind, value):
        entries = [(0x112, 3, 1, struct.pack('<HH', 6, 0)), (tag, kind, 1, value if len(value) == 4 else struct.pack('<I', 38))]
        self.data = b'II*\0\x08\0\0\0' + struct.pack('<H', 2) + b''.join(struct.pack('<HHI', *e[:3]) + e[3] for e in entries)
        self.data += bytes(4) + (value if len(value) != 4 else b'')
    def tobytes(self, offset=8): return b'Exif\0\0' + self.data

@pytest.mark.parametrize('entry', [(0x11a, 10, struct.pack('<ii', -1, 0)), (0x8298, 12, struct.pack('<d', 2021.5)), (0x10e, 2, b'\xff\xfe\0\0')])
def test_odd_notes_of_a_camera_refuse_no_photo(entry):
    "A resolution of -1/0, a copyright that is a number, a title in no encoding: pixels and orientation are there."
    array = picture(3, 32, 24)
    data = saved(Image.fromarray(array).transpose(Image.ROTATE_90), 'JPEG', quality=95, exif=Exif(*entry).tobytes())
    assert Image.open(io.BytesIO(data)).getexif()[0x112] == 6
    seen = np.asarray(decode(data)).astype(int)
    assert seen.shape == array.shape and abs(seen - array).mean() < 12

@pytest.mark.parametrize('kind', [b'zTXt', b'iCCP', b'iTXt'])
def test_a_png_with_megabytes_of_text_is_read(kind):
    packed = zlib.compress(bytes(3_000_000))
    more = b'x\0\1\0\0\0' + packed if kind == b'iTXt' else b'x\0\0' + packed
    array = picture(5, 16, 16)
    assert np.array_equal(np.asarray(decode(png(array, 8, 2, chunk(kind, more)))), array)
    with pytest.raises(StoryError, match='not a whole picture'): decode(png(array, 8, 2, chunk(kind, more))[:-200])

@pytest.mark.parametrize('place', [b'IDAT', b'IEND'])
def test_text_before_and_behind_the_pixels(place):
    array, text = picture(5, 16, 16), chunk(b'zTXt', b'x\0\0' + zlib.compress(bytes(3_000_000)))
    data = png(array, 8, 2)
    at = data.index(place) - 4
    data = data[:at] + text + data[at:]
    assert np.array_equal(np.asarray(decode(data)), array) and true_suffix(data) == '.png'

@pytest.mark.filterwarnings('ignore::UserWarning')                 # the library's, about the notes
def test_notes_of_any_kind_refuse_no_picture():
    "Bytes of the camera's notes and of the colour profile are changed at random; every pixel is there."
    rng, array, exif = np.random.default_rng(0), picture(3, 32, 24), Image.Exif()
    exif.update({0x112: 1, 0x11a: 72.0, 0x10f: 'Maker', 0x132: '2020:01:01'})
    how = dict(exif=exif, icc_profile=bytes(200))
    for kind in 'JPEG', 'PNG':
        data = saved(Image.fromarray(array), kind, **how)
        if kind == 'JPEG': spans = [(data.index(b'Exif') - 0, 80), (data.index(b'ICC_PROFILE'), 100)]
        else: spans = [(data.index(b'eXIf') + 4, 60), (data.index(b'iCCP') + 4, 20)]
        for k in range(150):
            spoilt, (at, n) = bytearray(data), spans[k % 2]
            for i in rng.integers(0, n, 4): spoilt[at + i] = rng.integers(0, 256)
            if kind == 'PNG':                                     # with the right checksum, so that the notes are believed
                size = int.from_bytes(data[at - 8:at - 4], 'big')
                spoilt[at + size:at + size + 4] = struct.pack('>I', zlib.crc32(spoilt[at - 4:at + size]))
            assert sorted(decode(bytes(spoilt)).size) == [24, 32]

@pytest.mark.parametrize('path', ['/dev/zero', 'pipe', 'folder', 'none'])
def test_what_is_no_file_is_no_picture(tmp_path, path):
    os.mkfifo(tmp_path/'pipe'), (tmp_path/'folder').mkdir()
    with pytest.raises(StoryError, match='not a picture that can be read'): read_picture(tmp_path/path)

def test_one_decoder():
    "No module but `pictures` opens picture files; `speed` has the plain loader that ours is compared with."
    for path in (Path(__file__).resolve().parents[2]/'arldm').rglob('*.py'):
        if path.stem not in ('pictures', 'speed'): assert 'Image.open' not in path.read_text(encoding='utf-8'), path.name


# story files

def no_locks(tmp_path): # a library that makes every lock fail, as on some network drives
    source, library = tmp_path/'nolock.c', tmp_path/'nolock.so'
    source.write_text('#include <errno.h>\nint flock(int fd, int op) { errno = ENOLCK; return -1; }\n')
    if not shutil.which('cc') or subprocess.run(['cc', '-shared', '-fPIC', '-o', library, source]).returncode: pytest.skip('needs a C compiler')
    return library

def small_file(path):
    data = saved(Image.new('RGB', (8, 8)), 'PNG')
    write_stories(path, dict(test=[Story('1', 'a', ('A ball.',), (data,))]), 'toy')
    return path

READ = 'import sys; from arldm.data.story import StoryFile; print(StoryFile(sys.argv[1])["test"].captions(0)[0])'

def read_elsewhere(path, **env):
    env = {**os.environ, 'PYTHONPATH': PYTHONPATH, **env}
    return subprocess.run([sys.executable, '-c', READ, path], env=env, capture_output=True, text=True)

def test_a_drive_without_locks_is_read(tmp_path):
    path, library = small_file(tmp_path/'x.h5'), no_locks(tmp_path)
    done = read_elsewhere(path, LD_PRELOAD=str(library))
    assert done.stdout == 'A ball.\n', done.stderr

def test_a_file_that_is_written_to_elsewhere_is_called_so(tmp_path):
    path = small_file(tmp_path/'x.h5')
    with h5py.File(path, 'r+'):
        said = read_elsewhere(path).stderr.splitlines()[-1]
        assert 'open for writing' in said and 'not an HDF5 file' not in said
    killed = f'import h5py, os; f = h5py.File({str(path)!r}, "r+", libver="latest"); f.attrs["x"] = 1; f.flush(); os._exit(9)'
    subprocess.run([sys.executable, '-c', killed])
    with pytest.raises(StoryError, match='open for writing, or was killed while it had.*h5clear -s'): StoryFile(path)

@pytest.mark.parametrize('content', ['my notes', 'hdf5'])
def test_a_file_of_somebody_else_is_not_replaced(tmp_path, content):
    raw, out = write_ssid(tmp_path/'raw', dict(train=(0,), val=(2,), test=(3,))), tmp_path/'out.h5'
    if content == 'hdf5':
        with h5py.File(out, 'w') as f: f['years'] = [1, 2, 3]
    else: out.write_text(content)
    before = out.read_bytes()
    for dry_run in False, True:
        with pytest.raises(StoryError, match='out.h5 is there already and is not a story file'):
            convert('ssid', raw, out, dry_run=dry_run, quiet=True)
    with pytest.raises(StoryError, match='is not a story file'): write_stories(out, {}, 'toy')
    assert out.read_bytes() == before
    out.unlink(), out.mkdir()
    with pytest.raises(StoryError, match='move it away'): convert('ssid', raw, out, quiet=True)

def test_a_damaged_story_file_is_not_replaced(tmp_path):
    "Its library would search its heap for ever; whether it is ours cannot be known, so it stays."
    path = small_file(tmp_path/'x.h5')
    good = path.read_bytes()
    p = good.index(b'GCOL') + 16
    while (number := struct.unpack_from('<H', good, p)[0]): p += 16 + (struct.unpack_from('<Q', good, p + 8)[0] + 7)//8*8
    path.write_bytes(good[:p + 8] + bytes(8) + good[p + 16:])
    with pytest.raises(StoryError) as kept: StoryFile(path)          # whoever keeps the error keeps no file open
    ask = 'import sys; from arldm.data.story import is_story_file; print(is_story_file(sys.argv[1]))'
    env = {**os.environ, 'PYTHONPATH': PYTHONPATH}
    done = subprocess.run([sys.executable, '-c', ask, path], env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout == 'True\n', done.stderr                     # the facts of ours are in no heap
    path.write_bytes(good[:2000])
    with pytest.raises(StoryError, match='is not a story file.*move it away'): write_stories(path, {}, 'toy')
    assert path.read_bytes() == good[:2000]

@pytest.mark.parametrize('facts', ['[]', '3', '{"format": "arldm-stories", "corpus": 3, "counts": {}}',
                                   '{"format": "arldm-stories", "corpus": "toy", "counts": [1]}',
                                   '{"format": "arldm-stories", "corpus": "toy", "counts": {"test": 1}}'])
def test_facts_of_another_shape(tmp_path, facts):
    path = small_file(tmp_path/'x.h5')
    with h5py.File(path, 'r+') as f: f.attrs['facts'] = np.bytes_(facts)
    with pytest.raises(StoryError, match='x.h5: ') as kept: StoryFile(path)
    path.write_text('something else')
    with pytest.raises(StoryError, match='not an HDF5 file'): StoryFile(path)   # the first try has closed it

@pytest.mark.parametrize('caption', ['a\0b', '\ud800', 7, None])
def test_what_no_file_can_hold_is_refused(tmp_path, caption):
    data = saved(Image.new('RGB', (8, 8)), 'PNG')
    with pytest.raises(StoryError, match='story 1: .* is not text that a file can hold'):
        write_stories(tmp_path/'x.h5', dict(test=[Story('1', 'a', (caption,), (data,))]), 'toy')
    assert not (tmp_path/'x.h5').exists()

def test_home_is_found_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_ssid(tmp_path/'raw', dict(train=(0,), val=(2,), test=(3,)))
    convert('ssid', '~/raw', '~/x.h5', quiet=True)
    write_stories('~/y.h5', {s: StoryFile('~/x.h5')[s] for s in ('test',)}, 'ssid')
    assert len(StoryFile('~/y.h5')['test']) == 2 and not (tmp_path/'~').exists()


# folders

def test_a_toy_corpus_is_never_drawn_over(tmp_path):
    (tmp_path/'raw').mkdir()
    (tmp_path/'raw/mine.txt').write_text('mine')
    with pytest.raises(StoryError, match='is there already'): write_toy(tmp_path/'raw', (1, 1, 1), progress=False)
    assert os.listdir(tmp_path/'raw') == ['mine.txt']

@pytest.mark.parametrize('source, wish', [('folder', dict(albums=3)), ('ssid', dict(albums=3)),
                                          ('toy', dict(seed=3)), ('ssid', dict(seed=3))])
def test_a_wish_that_another_source_would_follow(tmp_path, source, wish):
    name, = wish
    with pytest.raises(StoryError, match=f'^{name} is for (toy|folder) only; leave it out for {source}$'):
        convert(source, tmp_path/'raw', tmp_path/'x.h5', **wish)
    assert not list(tmp_path.iterdir())

def test_a_toy_corpus_of_another_size_is_not_taken_for_it(tmp_path):
    convert('toy', tmp_path/'raw', tmp_path/'x.h5', albums=3, quiet=True)
    convert('toy', tmp_path/'raw', tmp_path/'x.h5', albums=3, quiet=True)
    convert('toy', tmp_path/'raw', tmp_path/'x.h5', quiet=True)
    with pytest.raises(StoryError, match='raw has 3 albums for training, not 4; leave --albums out'):
        convert('toy', tmp_path/'raw', tmp_path/'x.h5', albums=4, quiet=True)

@pytest.mark.parametrize('wrong', [dict(workers=-1), dict(workers=10**6), dict(albums=10**12), dict(resolution=-1), dict(resolution=10**9)])
def test_numbers_that_nobody_means(tmp_path, wrong):
    with pytest.raises(StoryError, match=f'{next(iter(wrong))} must be at'): convert('toy', tmp_path/'raw', tmp_path/'x.h5', quiet=True, **wrong)
    assert os.listdir(tmp_path) == []

def test_two_downloads_into_one_folder(tmp_path):
    "The second costs one line, and the unfinished photos of the first stay."
    for split in 'train', 'val', 'test':
        (tmp_path/f'{split}.story-in-sequence.json').write_text(json.dumps(dict(images=[], annotations=[])))
    out = tmp_path/'out'
    (out/'.part-others').mkdir(parents=True)
    hold = f'import fcntl; f = open({str(out/".lock")!r}, "a"); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()'
    with subprocess.Popen([sys.executable, '-c', hold], stdin=-1, stdout=-1) as other:
        other.stdout.readline()
        with pytest.raises(StoryError, match='another process is fetching photos there'): fetch_vist(tmp_path, out)
        other.stdin.close()
    fetch_vist(tmp_path, out)
    assert (out/'.part-others').is_dir()

def test_a_list_of_somebody_else_is_not_replaced(tmp_path):
    for split in 'train', 'val', 'test':
        (tmp_path/f'{split}.story-in-sequence.json').write_text(json.dumps(dict(images=[], annotations=[])))
    (tmp_path/'missing.csv').write_text('name,age\nAda,36\n')
    with pytest.raises(StoryError, match='missing.csv is there already'): fetch_vist(tmp_path, tmp_path)
    assert (tmp_path/'missing.csv').read_text() == 'name,age\nAda,36\n'

def test_a_photo_that_is_there_is_never_replaced(tmp_path):
    "It may have been put there while it was fetched."
    mine, part = tmp_path/'7.jpg', tmp_path/'part'
    fetch._keep(b'fetched', part, tmp_path/'8.jpg')
    mine.write_bytes(b'mine')
    fetch._keep(b'fetched', part, mine)
    assert mine.read_bytes() == b'mine' and (tmp_path/'8.jpg').read_bytes() == b'fetched'

def test_photos_without_an_id_are_told(tmp_path):
    for split in 'train', 'val', 'test':
        records = [[dict(photo_flickr_id=x)] for x in (7, '7', 'a', True, 1.5, None)]
        images = [dict(id=7, url_o='http://x/7'), dict(id='a', url_o=3), 5, dict(id=[1], url_o='http://x/1')]
        (tmp_path/f'{split}.story-in-sequence.json').write_text(json.dumps(dict(images=images, annotations=records)))
    with pytest.warns(UserWarning, match='test.story-in-sequence.json: 3 records without the id of a photo left out'):
        assert fetch.vist_photos(tmp_path) == {'7': ('http://x/7',), 'a': ()}


# story files that do not add up, and stories that no file should hold

def spoil_hole(h): # as if frame 1 of the first story were lost
    rows = h['train/frame'][()]
    rows[0, 0] = -1
    h['train/frame'][...] = rows

def spoil_below(h):
    rows = h['train/frame'][()]
    rows[0, -1] = -5
    h['train/frame'][...] = rows

def spoil_albums(h):
    albums = h['train/album_id'][()][:1]
    del h['train/album_id']
    h['train'].create_dataset('album_id', data=albums, dtype=h5py.string_dtype())

def spoil_ids(h):
    ids = h['train/story_id'][()]
    ids[1] = ids[0]
    h['train/story_id'][...] = ids

@pytest.mark.parametrize('spoil', [spoil_hole, spoil_below, spoil_albums, spoil_ids])
def test_a_story_file_that_does_not_add_up(tmp_path, spoil):
    "A hole would show each later caption beside the picture before it."
    convert('toy', tmp_path/'raw', tmp_path/'x.h5', albums=2, quiet=True)
    with h5py.File(tmp_path/'x.h5', 'r+') as h: spoil(h)
    with pytest.raises(StoryError, match='ids and frames of the stories of split train do not fit together'): StoryFile(tmp_path/'x.h5')['train']

def test_a_slice_is_a_list_of_stories(tmp_path):
    convert('toy', tmp_path/'raw', tmp_path/'x.h5', albums=3, quiet=True)
    split = StoryFile(tmp_path/'x.h5')['train']
    assert split[1:] == [split[1], split[2]] and split[-1] == split[2] == list(split)[2]
    with pytest.raises(IndexError): split[3]

@pytest.mark.parametrize('wrong', [dict(corpus='nonsense'), dict(splits='frames'), dict(splits='a/b'), dict(splits=''),
    dict(resolution=-3), dict(workers=0)])
def test_what_no_story_file_can_be(tmp_path, wrong):
    story = Story('1', 'a', ('A ball.',), (saved(Image.new('RGB', (8, 8)), 'PNG'),))
    more = {'corpus': 'toy', **{k: v for k, v in wrong.items() if k != 'splits'}}
    with pytest.raises(StoryError): write_stories(tmp_path/'x.h5', {wrong.get('splits', 'test'): [story]}, **more)
    assert os.listdir(tmp_path) == []

@pytest.mark.parametrize('captions, frames', [('hello', (b'x',)*5), (('a',), ('a.png',)), (('a',), ((b'x', b''),))])
def test_what_no_story_can_be(captions, frames):
    with pytest.raises(StoryError): Story('1', 'a', captions, frames)

def test_links_that_lead_nowhere_or_round_in_a_circle_are_no_files(tmp_path):
    raw = write_ssid(tmp_path/'raw', dict(train=(0,), val=(2,), test=(3,)))
    (raw/'SSID_Images/loop').symlink_to('loop')
    (raw/'SSID_Images/nothing.png').symlink_to('nowhere')
    assert convert('ssid', raw, tmp_path/'x.h5', quiet=True)['test']['stories'] == 2
