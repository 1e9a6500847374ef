"Stories to share are pages and animations that other programs read; no file of anybody else is written over."
import io, json, os, re, zipfile
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

import numpy as np, pytest, torch
from PIL import Image

from arldm.cli import draw as cli
from arldm.core import StoryError
from arldm.data.dataset import Vocabulary, word_tokenizers
from arldm.data.fonts import Lettering
from arldm.data.story import Story, write_stories
from arldm.draw.comic import comic_pages, scale_frame
from arldm.draw.drawing_files import drawn_sets
from arldm.draw.pipeline import StoryPipeline
from arldm.draw.sharing import is_unchanged, save_story
from arldm.draw.story_output import StoryOutput
from arldm.files.atomic import save_json
from arldm.model.arldm import ARLDM
from arldm.settings import SHARING_FORMATS, resolve

COLOURS = [(200, 30, 30), (30, 160, 30), (30, 30, 200), (200, 160, 0), (0, 160, 160), (160, 0, 160), (90, 60, 200),
        (240, 120, 60), (60, 120, 240), (120, 240, 60), (20, 80, 20), (80, 20, 20)]
LINES = ['Ada is a big red star.', 'She jumps.', 'She goes to the right.']
LONG = 'They climbed the hill behind the village and looked for the sea, which was hidden by fog. '

def plain(n, size=(64, 64)): return [Image.new('RGB', size, colour) for colour in COLOURS[:n]]

def colour_at(page, x, y): return np.asarray(page)[y, x].astype(int)

def boxes(page, n):
    "The places of frames of one colour each, in the order of the story: (left, top, right, bottom), to 4 pixels."
    found = []
    pixels = np.asarray(page)[::4, ::4].astype(np.int16)
    for colour in COLOURS[:n]:
        ys, xs = np.nonzero(abs(pixels - colour).max(-1) <= 6)
        if len(ys): found.append((4*xs.min(), 4*ys.min(), 4*xs.max(), 4*ys.max()))
    return found

def ink(page, left, top, right, bottom): return (np.asarray(page.convert('L'))[top:bottom, left:right] < 120).sum()


# pages

@pytest.mark.parametrize('n, per_page', [(1, [1]), (2, [2]), (3, [3]), (5, [5]), (7, [4, 3])])
def test_panels_in_reading_order(n, per_page):
    pages = comic_pages(plain(n), ['It rains.']*n)
    assert [page.size for page in pages] == [(1654, 2339)]*len(per_page)
    found = [boxes(page, n) for page in pages]
    assert [len(places) for places in found] == per_page
    places = sum(found, [])
    assert np.ptp([right - left for left, _, right, _ in places]) <= 4             # equally wide
    for page in found:
        rows = [(top//8, left) for left, top, _, _ in page]
        assert rows == sorted(rows)
        assert all(118 <= left and right < 1654 - 118 and bottom < 2339 - 118 for left, _, right, bottom in page)
    assert places[0][2] - places[0][0] >= 394 - 8                                   # 50 mm, without borders

def test_captions_stand_below_their_panels():
    captions = ['Rain.', '', LONG, 'Sun.']
    page, = comic_pages(plain(4), captions)
    for (left, _, right, bottom), caption in zip(boxes(page, 4), captions):
        assert (ink(page, left, bottom + 8, right, bottom + 60) > 0) == (caption != '')

def test_a_story_in_arabic_goes_to_the_left():
    page, = comic_pages(plain(4), ['خرجت ليلى من البيت.', 'وجدت 3 زهور.', 'ثم عادت.', 'نامت.'])
    first, second, third, _ = boxes(page, 4)
    assert first[0] > second[0] and first[1] == second[1] < third[1]

@pytest.mark.parametrize('n, times', [(1, 1), (1, 80), (2, 12), (5, 3)])
def test_no_line_is_lost(monkeypatch, n, times):
    "However long captions are, every word is drawn, on the page."
    drawn = []
    draw = Lettering.draw
    def note(self, canvas, at, line, ink, width=0):
        drawn.append(line)
        assert 0 <= at[0] and at[0] + self.width(line) <= 1654 and at[1] < 2339, line
        draw(self, canvas, at, line, ink, width)
    monkeypatch.setattr(Lettering, 'draw', note)
    pages = comic_pages(plain(n), [LONG*times]*n, 'A title')
    words = ' '.join(line for line in drawn if not re.fullmatch(r'\d+ / \d+|A title', line))
    assert words.split() == (LONG*times*n).split()
    assert len(sum((boxes(page, n) for page in pages), [])) == n

def test_long_captions_of_wide_frames():
    "Below wide panels they have fewer lines: six fit on a page, although narrow ones do not."
    page, = comic_pages(plain(6, (640, 320)), [LONG*4]*6)
    assert len(boxes(page, 6)) == 6

def test_a_long_title_takes_three_lines():
    page, = comic_pages(plain(1), ['Rain.'], 'A very long title of a story. '*9)
    (_, top, _, _), = boxes(page, 1)
    assert 118 + 3*60 < top < 118 + 4*68 + 50

def test_small_frames_stay_sharp():
    "Blocks are equally wide, edges as sharp as pixels allow; photographs are scaled smoothly."
    row = np.random.default_rng(0).integers(0, 2, 64).astype(np.uint8)*255
    scaled = np.asarray(scale_frame(Image.fromarray(np.tile(row, (64, 1))), 530))[265].astype(int)
    middles = ((np.arange(64) + .5)*530/64).astype(int)
    assert (scaled[middles] == row).all()
    assert ((scaled > 0) & (scaled < 255)).sum() <= (np.diff(row.astype(int)) != 0).sum()
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8))
    assert np.array_equal(scale_frame(photo, 530), photo.resize((530, 530), Image.LANCZOS))

@pytest.mark.parametrize('size', [(64, 16), (10, 100)])
def test_any_shape_fits(size):
    pages = comic_pages(plain(5, size), ['Rain.']*5, 'Shapes')
    assert sum(len(boxes(page, 5)) for page in pages) == 5

@pytest.mark.parametrize('kind', SHARING_FORMATS)
@pytest.mark.parametrize('n, n_captions', [(0, 0), (2, 1), (1, 2)])
def test_lengths(tmp_path, kind, n, n_captions):
    with pytest.raises(StoryError, match=f'^{n} frames? .*{n_captions} captions?, expected'):
        save_story(tmp_path/f'a.{kind}', plain(n), ['Rain.']*n_captions)
    assert not list(tmp_path.iterdir())


# files

def pdf_objects(data):
    "Objects of a PDF by number, found through its table of references, as readers do."
    start = int(re.search(rb'startxref\s+(\d+)\s+%%EOF\s', data)[1])
    table = re.match(rb'xref\s+0 (\d+)\s+((?:\d{10} \d{5} [nf]\s*\n)+)trailer', data[start:])
    places = [int(line[:10]) for line in table[2].splitlines() if line.split()[2] == b'n']
    objects = {}
    for place in places:
        number = re.match(rb'(\d+) 0 obj', data[place:])[1]
        objects[int(number)] = data[place:data.index(b'endobj', place)]
    return objects

def pdf_text(data, key):
    "A text of the metadata."
    raw = re.search(rb'/' + key.encode() + rb' \((.*?(?<!\\))\)\s', data, re.S)[1]
    return re.sub(rb'\\(.)', rb'\1', raw, flags=re.S).decode('utf-16')

def test_pdf(tmp_path):
    save_story(tmp_path/'a.pdf', plain(7), LINES*2 + LINES[:1], 'Ada', 'Bo Çelik')
    data = (tmp_path/'a.pdf').read_bytes()
    objects = pdf_objects(data)
    pages = [o for o in objects.values() if re.search(rb'/Type /Page\b', o)]
    assert len(pages) == 2
    for page in pages:
        box = [float(x) for x in re.search(rb'/MediaBox \[([^]]*)', page)[1].split()]
        assert box == pytest.approx([0, 0, 210/25.4*72, 297/25.4*72], abs=.5)       # A4 in points
    pictures = []
    for o in objects.values():
        if b'/DCTDecode' not in o: continue
        stream = re.search(rb'stream\r?\n(.*)endstream', o, re.S)[1]
        pictures.append(Image.open(io.BytesIO(stream)).convert('RGB'))
    for picture, page in zip(pictures, comic_pages(plain(7), LINES*2 + LINES[:1], 'Ada'), strict=True):
        assert abs(np.asarray(picture).astype(int) - np.asarray(page)).mean() < 1
    assert (pdf_text(data, 'Title'), pdf_text(data, 'Author')) == ('Ada', 'Bo Çelik')
    assert b'Date' not in data

def test_cbz(tmp_path):
    save_story(tmp_path/'a.cbz', plain(12), LINES*3 + ['a < b & "c"\ufffe\n\x07', '', 'žluť'], 'Ada & Bo')
    with zipfile.ZipFile(tmp_path/'a.cbz') as z:
        assert z.testzip() is None
        assert z.namelist() == ['001.jpg', '002.jpg', 'ComicInfo.xml']
        assert {entry.date_time for entry in z.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        pages = [Image.open(io.BytesIO(z.read(name))) for name in z.namelist()[:2]]
        info = ElementTree.fromstring(z.read('ComicInfo.xml'))
    assert [(page.size, page.info['dpi']) for page in pages] == [((1654, 2339), (200, 200))]*2
    assert [len(boxes(page.convert('RGB'), 12)) for page in pages] == [6, 6]
    assert info.findtext('Title') == 'Ada & Bo' and info.findtext('PageCount') == '2'
    assert info.findtext('Summary').split('\n') == LINES*3 + ['a < b & "c"', '', 'žluť']
    assert info.find('Writer') is None

def test_webp(tmp_path):
    captions = ['Rain.', LONG, '']
    save_story(tmp_path/'a.webp', plain(3), captions, 'Ada 中')
    picture = Image.open(tmp_path/'a.webp')
    assert (picture.n_frames, picture.info['loop']) == (3, 0)
    durations = []
    for k, caption in enumerate(captions):
        picture.seek(k)
        frame = picture.convert('RGB')
        durations.append(picture.info['duration'])
        assert abs(colour_at(frame, 272, 272) - COLOURS[k]).max() <= 8
        assert (ink(frame, 16, 16 + 512 + 4, 528, frame.height) > 0) == (caption != '')
    assert durations[2] < durations[0] < durations[1]
    assert picture.getexif()[0x010e].encode('latin1').decode() == 'Ada 中'

def test_too_high_for_webp(tmp_path):
    with pytest.raises(StoryError, match='too many for WebP'): save_story(tmp_path/'a.webp', plain(1), [LONG*300])

@pytest.mark.parametrize('kind', SHARING_FORMATS)
def test_equal_stories_make_equal_files(tmp_path, monkeypatch, kind):
    for k, name in enumerate(('a', 'b')):
        monkeypatch.setattr('time.gmtime', lambda *_, k=k: (2020 + k, 1, 1, 0, 0, 0, 0, 1, 0))
        monkeypatch.setattr('time.localtime', lambda *_, k=k: (2020 + k, 1, 1, 0, 0, 0, 0, 1, 0))
        save_story(tmp_path/f'{name}.{kind}', plain(2), LINES[:2], 'Ada')
    save_story(tmp_path/f'c.{kind}', plain(2), LINES[1:], 'Ada')
    a, b, c = [(tmp_path/f'{name}.{kind}').read_bytes() for name in 'abc']
    assert a == b != c

@pytest.mark.parametrize('kind', SHARING_FORMATS)
@pytest.mark.parametrize('what', ['foreign', 'longer', 'one byte', 'empty', 'folder', 'link to nothing'])
def test_files_of_others_stay(tmp_path, kind, what):
    path = tmp_path/f'a.{kind}'
    if what == 'folder': path.mkdir()
    elif what == 'link to nothing': path.symlink_to('nowhere')
    elif what in ('foreign', 'empty'): path.write_bytes(b'mine'*(what == 'foreign'))
    else:
        save_story(path, plain(1), ['Rain.'])
        data = bytearray(path.read_bytes())
        if what == 'longer': data += b'x'
        else: data[len(data)//2] ^= 1
        path.write_bytes(data)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(StoryError, match='was not written by arldm, or was changed since'):
        save_story(path, plain(1), ['Rain.'])
    assert os.path.lexists(path) and (path.read_bytes() if path.is_file() else None) == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]

@pytest.mark.parametrize('kind', SHARING_FORMATS)
def test_own_files_are_replaced(tmp_path, kind):
    path = tmp_path/f'a.{kind}'
    for caption in 'Rain.', f'arldm:{"0"*32} Snow.', 'arldm: Snow.', 'Rain.':
        save_story(path, plain(1), [caption], caption, caption)
        assert is_unchanged(path)

def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    save_story(tmp_path/'a.cbz', plain(1), ['Rain.'])
    before = (tmp_path/'a.cbz').read_bytes()
    def full(*_): raise OSError(28, 'No space left on device')
    with monkeypatch.context() as patched, pytest.raises(OSError):
        patched.setattr(Path, 'write_bytes', full)
        save_story(tmp_path/'a.cbz', plain(1), ['Snow.'])
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {'a.cbz': before}


# a call of the pipeline

def output(*lengths, bad=None):
    return StoryOutput(frames=[plain(n) for n in lengths], stories=[plain(n) for n in lengths],
        captions=[LINES[:3] for n in lengths], bad=bad or {})

def test_output_saves_one_story(tmp_path):
    output(2).save(tmp_path/'a.cbz', title='Ada')           # interrupted: two of three frames
    save_story(tmp_path/'b.cbz', plain(2), LINES[:2], 'Ada')
    assert (tmp_path/'a.cbz').read_bytes() == (tmp_path/'b.cbz').read_bytes()
    output(1, 3).save(str(tmp_path/'c.WEBP'), 1)
    assert Image.open(tmp_path/'c.WEBP').n_frames == 3

@pytest.mark.parametrize('i, name, said', [(None, 'a.pdf', '3 stories, one file'), (3, 'a.pdf', 'no story 3; there are 3'),
    (-1, 'a.pdf', 'no story -1'), (2, 'a.pdf', 'story 2 was not drawn'), (0, 'a.png', "no format 'png'; there are pdf, cbz"),
    (0, 'pdf', "no format ''")])
def test_output_refuses(tmp_path, i, name, said):
    with pytest.raises(StoryError, match=re.escape(said)): output(1, 2, 0, bad={2: 'torn'}).save(tmp_path/name, i)
    assert not list(tmp_path.iterdir())


# the command

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A run folder of random weights, with two stories to draw."
    run = tmp_path_factory.mktemp('run')/'run'
    run.mkdir()
    words = word_tokenizers(LINES, run/'words')
    torch.manual_seed(0)
    StoryPipeline.from_model(ARLDM.create('tiny', Vocabulary(*words, 36), 16)).save_pretrained(run/'pipeline')
    stories = [Story(f's{i}', f'a{i}', tuple(LINES), plain(3)) for i in range(2)]
    write_stories(run/'stories.h5', dict(test=stories), 'toy')
    settings = resolve(task='continuation', resolution=64)
    save_json(run/'settings.json', {**asdict(settings), 'data': str(run/'stories.h5')})
    return run

FEW = dict(num_inference_steps=1, guidance_scale=1.)

def test_a_split(run, tmp_path):
    "Each story is a file beside the drawings, with the given picture, and drawings stay what they were."
    cli.draw(run, out=tmp_path/'out', **FEW)
    cli.draw(run, out=tmp_path/'out', format='webp', sets=2, **FEW)
    for name in 'drawn', 'drawn2':
        files = sorted((tmp_path/'out'/f'{name}-webp').iterdir())
        assert [f.name for f in files] == ['s0.webp', 's1.webp']
        animation = Image.open(files[1])
        assert animation.n_frames == 3
        for k in 1, 2, 3:
            animation.seek(k - 1)
            frame = plain(1)[0] if k == 1 else Image.open(tmp_path/'out'/name/'s1'/f'{k}.png')
            shown = animation.convert('RGB').crop((16, 16, 528, 528)).resize((8, 8), Image.BOX)
            assert abs(np.asarray(shown).astype(int) - np.asarray(frame.resize((8, 8), Image.BOX))).mean() < 8
    assert [sorted(drawn) for drawn in drawn_sets(tmp_path/'out')] == [['s0', 's1']]*2

@pytest.mark.parametrize('dry_run', [True, False])
def test_a_split_beside_files_of_others(run, tmp_path, dry_run):
    (tmp_path/'out/drawn-pdf').mkdir(parents=True)
    (tmp_path/'out/drawn-pdf/s1.pdf').write_bytes(b'mine')
    with pytest.raises(StoryError, match='s1.pdf was not written by arldm'):
        cli.draw(run, out=tmp_path/'out', format='pdf', dry_run=dry_run, **FEW)
    assert sorted(p.name for p in (tmp_path/'out').rglob('*')) == ['drawn-pdf', 's1.pdf']

def test_a_story_that_cannot_be_shared(run, tmp_path):
    "A frame that is missing is said, and the other stories are shared."
    cli.draw(run, out=tmp_path/'out', **FEW)
    (tmp_path/'out/drawn/s0/2.png').unlink()
    with pytest.raises(StoryError, match='^1 of 2 stories could not be drawn or shared, first s0 .*2.png'):
        cli.draw(run, out=tmp_path/'out', format='cbz', **FEW)
    assert [p.name for p in (tmp_path/'out/drawn-cbz').iterdir()] == ['s1.cbz']

def manifest(folder): return json.loads((folder/'manifest.json').read_text())['files']

def test_own_captions(run, tmp_path, capsys):
    "The file is part of the story's folder: made once, made again with new frames, never without asking."
    text = tmp_path/'ada.txt'
    text.write_text('\n'.join(LINES))
    story = cli.draw(run, captions=text, format='cbz', **FEW)
    assert capsys.readouterr().out.strip().endswith('story.cbz')
    first = (story/'story.cbz').read_bytes()
    frames = [Image.open(story/f'{k}.png') for k in (1, 2, 3)]
    save_story(tmp_path/'same.cbz', frames, LINES, 'ada')
    assert first == (tmp_path/'same.cbz').read_bytes()
    assert 'story.cbz' in manifest(story) and 'story.pdf' not in manifest(story)
    before = {p.name: p.stat().st_mtime_ns for p in story.iterdir()}
    cli.draw(run, captions=text, **FEW)
    assert {p.name: p.stat().st_mtime_ns for p in story.iterdir()} == before
    cli.draw(run, captions=text, format='webp', **FEW)                  # added; nothing is drawn again
    assert (story/'story.cbz').read_bytes() == first and Image.open(story/'story.webp').n_frames == 3
    cli.draw(run, captions=text, redraw='3', seed=1, **FEW)             # both are made again
    assert (story/'story.cbz').read_bytes() != first
    assert {'story.cbz', 'story.webp', 'strip.png', '1.png', '2.png', '3.png'} == manifest(story).keys()
    (story/'story.cbz').unlink()
    cli.draw(run, captions=text, seed=1, redraw='3', **FEW)
    assert (story/'story.cbz').is_file()

def test_own_captions_beside_files_of_others(run, tmp_path):
    text = tmp_path/'ada.txt'
    text.write_text('\n'.join(LINES))
    story = cli.draw(run, captions=text, **FEW)
    (story/'story.pdf').write_bytes(b'mine')
    with pytest.raises(StoryError, match='story.pdf was not written by arldm-draw'):
        cli.draw(run, captions=text, format='pdf', **FEW)
    assert (story/'story.pdf').read_bytes() == b'mine'
