"""The report: one page, complete in itself, of finished and of unfinished runs."""
import math, re, shutil, subprocess
from html import escape
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from arldm.core import StoryError, save_json
from arldm.report import facts_html, flat, img_tag, loss_svg, read_log, report, scores_html, story_html
from arldm.story import Story, StoryFile, write_stories

WILD = '<script>alert("1")</script> & \'quotes\''

class Page(HTMLParser):
    "Tags, texts and addresses of a page; unbalanced tags are an error."
    VOID = {'meta', 'img', 'br'}
    def __init__(self, path):
        super().__init__()
        self.html, self.tags, self.texts, self.open = Path(path).read_text(encoding='utf-8'), [], [], []
        self.feed(self.html)
        assert not self.open, f'not closed: {self.open}'
    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID: self.open.append(tag)
    def handle_startendtag(self, tag, attrs): self.tags.append((tag, dict(attrs)))
    def handle_endtag(self, tag): assert self.open.pop() == tag
    def handle_data(self, data):
        if self.open[-1:] != ['style']: self.texts.append(data)
    def all(self, tag, **want):
        return [a for t, a in self.tags if t == tag and all(v in (a.get(k) or '').split() for k, v in want.items())]
    @property
    def text(self): return ' '.join(self.texts)

def picture(i, side=64): return Image.new('RGB', (side, side), (40*i % 256, 90, 200))

def encoded(p):
    out = BytesIO()
    p.save(out, 'png')
    return out.getvalue()

@pytest.fixture
def run(tmp_path):
    "A finished run of a continuation: three stories told, two drawn."
    run = tmp_path/'a <run>'
    (run/'strips').mkdir(parents=True)
    stories = [Story(f's{i}', f'a{i}', (WILD, 'two', 'three'), tuple(encoded(picture(i + k)) for k in range(3))) for i in range(3)]
    write_stories(run/'stories.h5', dict(test=stories), 'toy')
    for s in 's0', 's1':
        (run/'drawn'/s).mkdir(parents=True)
        for k in 2, 3: picture(k).save(run/'drawn'/s/f'{k}.png')
    for step in 90, 100, 1000: picture(1, 200).save(run/'strips'/f'{step}.png')
    save_json(run/'settings.json', dict(corpus='toy', task='continuation', data=str(run/'stories.h5'), note=WILD, lr=None,
                                        machine=dict(versions=dict(torch='2.13'))))
    (run/'log.csv').write_text('step,loss,lr,grad_norm,stories_per_s\n1,0.5,0,1,1\n2,nan,0,1,1\n3,0.4,0,1,1\n4,0.3')
    save_json(run/'scores.json', dict(split='test', n_stories=2, missing=['s2'],
        scores=[dict(name='FID64', value=None, n=4, note=WILD, better='lower'),
                dict(name='carried facts', value=.5, unit='%', n=8, note='of many', better='higher')],
        facts=[dict(name='carried colour', value=.5, n=8, chance=.25), dict(name='told size', value=1., n=2, chance=None)]))
    return run

def test_page_of_a_finished_run(run):
    path = report(run)
    page = Page(path)
    assert path == run/'report.html' and 'a <run>' in page.text
    assert page.text.count('Story s') == 2
    assert len(page.all('div', **{'class': 'told'})) == 6 + 1 and len(page.all('div', **{'class': 'given'})) == 2  # one .told is a bar
    assert len(page.all('div', **{'class': 'drawn'})) == 4
    assert len(page.all('img')) == 6 + 2 + 4 + 3
    assert page.text.count('two') == 2 and page.text.count(WILD) == 2 + 1 + 1  # captions, note, setting
    assert 'trained for 3 steps' in page.text and 'drew 4 frames of 2 stories' in page.text and 'carried facts 50.0%' in page.text
    assert 'machine.versions.torch' in page.text and not page.all('p', **{'class': 'missing'})

def test_page_is_self_contained(run):
    page = Page(report(run))
    assert not {'script', 'link', 'iframe', 'object', 'base'} & {t for t, _ in page.tags}
    for tag, attrs in page.tags:
        for k, v in attrs.items():
            assert not k.startswith('on')
            if k in ('src', 'href', 'srcset', 'data', 'action'): assert v.startswith('data:image/')
    assert not re.findall(r'url\(|@import', page.html)
    assert set(re.findall(r'https?://[^"\s]+', page.html)) <= {'http://www.w3.org/2000/svg'}  # a name, not an address

def test_pictures_have_texts_and_sizes(run):
    images = Page(report(run)).all('img')
    assert sum(img['alt'] == f'told: {WILD}' for img in images) == 2
    for img in images:
        assert img['alt'] and int(img['width']) <= 900 and int(img['height']) <= 900

def test_strips_stand_in_the_order_of_steps(run):
    html = report(run).read_text(encoding='utf-8')
    places = [html.index(f'<figcaption>step {step}<') for step in (90, 100, 1000)]
    assert places == sorted(places)

def test_many_strips_keep_the_last(run):
    for step in range(2000, 2030): picture(1, 200).save(run/'strips'/f'{step}.png')
    html = report(run).read_text(encoding='utf-8')
    assert '<figcaption>step 2029<' in html and 4 <= len(re.findall(r'<figcaption>step \d+<', html)) <= 8

def test_strips_name_their_story(run):
    (run/'strips'/'1000.png').rename(run/'strips'/'001000-<b>.png')
    assert 'step 1000, story <b>' in Page(report(run)).text

def test_no_more_than_twelve_stories(run):
    for i in range(20): shutil.copytree(run/'drawn'/'s0', run/'drawn'/f't{i}')
    page = Page(report(run))
    assert page.text.count('Story ') == 12 and '12 of 22 stories' in page.text

@pytest.mark.parametrize('keep,missing', [
    ({'drawn'}, {'scores.json', 'log.csv', 'settings.json'}), ({'log.csv'}, {'scores.json', 'drawings', 'settings.json'}),
    ({'settings.json'}, {'scores.json', 'drawings', 'log.csv'}), ({'drawn', 'settings.json', 'stories.h5'}, {'scores.json', 'log.csv'})])
def test_page_of_an_unfinished_run(run, keep, missing):
    for p in run.iterdir():
        if p.name in keep: continue
        if p.is_dir(): shutil.rmtree(p)
        else: p.unlink()
    page = Page(report(run))
    for what in missing: assert re.search(f'There is no [^.]*{what}', page.html), what
    assert ('Told frames and captions are not shown' in page.text or 'No story file' in page.text) == ('drawn' in keep and 'stories.h5' not in keep)
    assert len(page.all('div', **{'class': 'drawn'})) == (4 if 'drawn' in keep else 0)

def test_without_the_story_file_drawings_stand_alone(run):
    (run/'stories.h5').unlink()
    page = Page(report(run))
    assert 'stories.h5: no such file' in page.text and not page.all('div', **{'data-name': 'told'})
    assert len(page.all('div', **{'class': 'drawn'})) == 4

def test_split_may_be_given(run):
    (run/'settings.json').unlink()
    assert page_of_told(run, StoryFile(run/'stories.h5')['test']) == 6

def page_of_told(run, split): return len(Page(report(run, split)).all('div', **{'data-name': 'told'}))

def test_told_frames_come_from_what_was_drawn(run):
    "Trained on one file, drawn from another that has the same ids."
    other = [Story(f's{i}', 'a', ('elsewhere',), (encoded(picture(1)),)) for i in range(2)]
    write_stories(run/'other.h5', dict(val=other), 'toy')
    (run/'scores.json').unlink()
    save_json(run/'drawing.json', dict(data=str(run/'other.h5'), split='val', seed=7))
    page = Page(report(run))
    assert page.text.count('elsewhere') == 2 and WILD not in page.text.replace(WILD, '', 1) and 'drawing.seed' in page.text

def test_unknown_split_is_said(run): assert 'no split' in Page(report(run, 'valid')).text

def test_frames_that_cannot_be_shown(run):
    (run/'drawn'/'s0'/'2.png').write_bytes(b'no picture')
    (run/'drawn'/'s1'/'3.png').unlink()
    (run/'drawn'/'stranger').mkdir()
    picture(1).save(run/'drawn'/'stranger'/'1.png')
    page = Page(report(run))
    assert 'unreadable' in page.text and 'not drawn' in page.text and 'Story stranger' in page.text

def test_empty_folder_is_one_line(tmp_path):
    for folder in tmp_path, tmp_path/'absent':
        with pytest.raises(StoryError, match='no run folder') as e: report(folder)
        assert '\n' not in str(e.value)
    assert list(tmp_path.iterdir()) == []

def test_report_replaces_itself_and_leaves_nothing_else(run):
    before = set(run.iterdir())
    assert report(run).read_bytes() == report(run).read_bytes()
    assert set(run.iterdir()) - before == {run/'report.html'}

def test_pictures_are_bounded():
    photo = Image.effect_noise((3000, 1500), 60).convert('RGB')
    tag = img_tag(photo, 'x')
    assert 'width="256" height="128"' in tag and 'image/jpeg' in tag and len(tag) < 60_000
    assert photo.size == (3000, 1500) and 'image/png' in img_tag(picture(1), 'x')

def test_read_log(tmp_path):
    path = tmp_path/'log.csv'
    path.write_text('step,loss\n1,0.5\n2,\n3,x\nx,1\n4,0.25\n5,0.1')  # the last line has no end
    rows = read_log(path)
    assert [r['step'] for r in rows] == [1, 2, 3, 4] and rows[3]['loss'] == .25 and math.isnan(rows[1]['loss'] + rows[2]['loss'])
    path.write_text('')
    assert read_log(path) == []

@pytest.mark.parametrize('losses', [[1.], [1., 1.], [2., 1., 1e9], list(range(5000))])
def test_loss_svg_stays_in_its_frame(losses):
    svg = loss_svg(list(range(1, len(losses) + 1)), losses)
    from xml.etree import ElementTree
    _, _, W, H = map(float, ElementTree.fromstring(svg).get('viewBox').split())
    points = [tuple(map(float, p.split(','))) for line in re.findall('points="([^"]+)"', svg) for p in line.split()]
    assert points and all(0 <= x <= W and 0 <= y <= H for x, y in points) and len(svg) < 60_000

def test_scores_and_facts():
    html = scores_html([dict(name='a', value=12.3456, n=10, note='', better='lower'), dict(name='b', value=None, note=None)])
    assert '12.35 <span title="lower is better">↓' in html and '—' in html
    html = facts_html([dict(name='told x', value=1, n=3, chance=None), dict(name='carried x', value=.5, n=4, chance=.2)])
    assert html.count('<tr>') == 2 and html.count('<i ') == 1 and 'left:20.0%' in html and 'of 4' in html

def test_flat(): assert flat(dict(a=1, b=dict(c=2, d=dict(e=[3])))) == {'a': 1, 'b.c': 2, 'b.d.e': [3]}

@pytest.mark.skipif(not shutil.which('chromium'), reason='no Chromium here')
@pytest.mark.parametrize('width', [390, 1400])
def test_nothing_sticks_out_of_the_page(run, width, tmp_path):
    "In a browser the page is never wider than its window."
    probe = """<script>const right = e => e.getBoundingClientRect().right
        const outside = [...document.querySelectorAll('body *')].filter(e => !e.closest('.frames'))
        const rows = new Set([...document.querySelectorAll('.frames')[0].children].map(e => e.offsetTop && e.offsetHeight && e.offsetTop))
        rows.delete(0)
        const wide = Math.max(...outside.map(right), document.documentElement.scrollWidth)
        parent.document.title = `wide ${wide} rows ${rows.size}`</script>"""
    inside = report(run).read_text(encoding='utf-8').replace("default-src 'none'", "script-src 'unsafe-inline'")
    inside = escape(inside.replace('<details>', '<details open>').replace('</body>', probe + '</body>'))
    (tmp_path/'frame.html').write_text(f'<title>x</title><iframe width="{width}" height="900" srcdoc="{inside}"></iframe>', 'utf-8')
    flags = ('--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
             '--disable-component-update --disable-sync --dump-dom').split() + [f'--user-data-dir={tmp_path/"profile"}']
    out = subprocess.run(['chromium', *flags, (tmp_path/'frame.html').as_uri()], capture_output=True, text=True, timeout=120).stdout
    wide, rows = map(float, re.search(r'<title>wide ([\d.]+) rows (\d+)', out).groups())
    assert 300 < wide <= width
    assert rows == (3 if width == 390 else 1)  # frames below each other on a telephone, beside each other on a screen
