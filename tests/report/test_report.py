"""The report: one self-contained page of a finished run, an unfinished one, or two runs."""
import math, re, shutil
from html import unescape
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image, ImageFilter

from arldm.core import StoryError
from arldm.files.atomic import load_json, save_json
from arldm.data.story import Story, StoryFile, write_stories
from arldm.train.checkpoint import read_log
from arldm.train.digest import data_digest
from arldm.report.charts import Curve, chart, drift_charts, loss_charts, loss_curves
from arldm.report.page import (difference_row, embed, fact_bars, grouped, is_page, range_bar, score_table, score_text,
    story_figure)
from arldm.report.report import choose_stories, write_report
from arldm.report.run_folder import flatten, introduction, memorising, read_run
from folders import write_run
from parts import part

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
    "A finished run of a continuation: three reference stories, two drawn."
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
                dict(name='remembered facts', value=.5, unit='%', n=8, note='of many', better='higher')],
        facts=[dict(name='remembered colour', value=.5, n=8, chance=.25), dict(name='stated size', value=1., n=2, chance=None)]))
    return run

def test_page_of_a_finished_run(run):
    path = write_report(run)
    page = Page(path)
    assert path == run/'report.html' and 'a <run>' in page.text
    assert page.text.count('story s') == 2
    assert len(page.all('div', **{'class': 'reference'})) == 6 and len(page.all('div', **{'class': 'given'})) == 2
    assert len(page.all('tr', **{'class': 'stated'})) == 1                                    # a bar
    assert len(page.all('div', **{'class': 'drawn'})) == 4
    assert len(page.all('img')) == 6 + 2 + 4 + 3
    assert page.text.count('two') == 2 and page.text.count(WILD) == 2 + 1 + 1  # captions, note, setting
    assert ('AR-LDM, which is given the first frame and draws each later one from its caption and the frames before it, was trained '
            'on the toy world for 3 steps. It drew 4 frames of 2 of the 3 stories of split test; scored: remembered facts 50.0%.') in page.text
    assert page.texts.count('a <run>: AR-LDM trained on the toy world') == 2   # in the window's title and in the page's
    assert 'machine.versions.torch' in page.text and not page.all('p', **{'class': 'missing'})

def test_page_is_self_contained(run):
    page = Page(write_report(run))
    assert not {'script', 'link', 'iframe', 'object', 'base'} & {t for t, _ in page.tags}
    for tag, attrs in page.tags:
        for k, v in attrs.items():
            assert not k.startswith('on')
            if k == 'href': assert page.all('section', id=v[1:]) and v[0] == '#'
            elif k in ('src', 'srcset', 'data', 'action'): assert v.startswith('data:image/')
            if k == 'xlink:href': assert v.startswith('#')
    assert not re.findall(r'url\(|@import|https?://', page.html)

def test_pictures_have_texts_and_sizes(run):
    images = Page(write_report(run)).all('img')
    assert sum(img['alt'] == f'reference: {WILD}' for img in images) == 2
    for img in images:
        assert img['alt'] and int(img['width']) <= 900 and int(img['height']) <= 900

def test_strips_are_in_the_order_of_steps(run):
    html = write_report(run).read_text(encoding='utf-8')
    places = [html.index(f'<figcaption>step {step}<') for step in (90, 100, 1000)]
    assert places == sorted(places)

def test_many_strips_keep_the_last(run):
    for step in range(2000, 2030): picture(1, 200).save(run/'strips'/f'{step}.png')
    html = write_report(run).read_text(encoding='utf-8')
    assert '<figcaption>step 2029<' in html and 4 <= len(re.findall(r'<figcaption>step \d+<', html)) <= 8

def test_strips_name_their_story(run):
    (run/'strips'/'1000.png').rename(run/'strips'/'001000-<b>.png')
    assert 'step 1000, story <b>' in Page(write_report(run)).text

def test_no_more_than_twelve_stories(run):
    for i in range(20): shutil.copytree(run/'drawn'/'s0', run/'drawn'/f't{i}')
    page = Page(write_report(run))
    assert len(page.all('ol', **{'class': 'frames'})) == 12 and '12 of 22 stories' in page.text

@pytest.mark.parametrize('keep,missing', [
    ({'drawn'}, {'scores.json', 'log.csv', 'settings.json'}), ({'log.csv'}, {'scores.json', 'drawings', 'settings.json'}),
    ({'settings.json'}, {'scores.json', 'drawings', 'log.csv'}), ({'drawn', 'settings.json', 'stories.h5'}, {'scores.json', 'log.csv'})])
def test_page_of_an_unfinished_run(run, keep, missing):
    for p in run.iterdir():
        if p.name in keep: continue
        if p.is_dir(): shutil.rmtree(p)
        else: p.unlink()
    page = Page(write_report(run))
    for what in missing: assert re.search(f'There is no [^.]*{what}', page.html), what
    assert ('Reference frames and captions are not shown' in page.text or 'No story file' in page.text) == ('drawn' in keep and 'stories.h5' not in keep)
    assert len(page.all('div', **{'class': 'drawn'})) == (4 if 'drawn' in keep else 0)

def test_without_the_story_file_only_drawings_are_shown(run):
    (run/'stories.h5').unlink()
    page = Page(write_report(run))
    assert 'stories.h5: no such file' in page.text and not page.all('div', **{'data-name': 'reference'})
    assert len(page.all('div', **{'class': 'drawn'})) == 4

def test_split_may_be_given(run):
    (run/'settings.json').unlink()
    assert page_of_reference(run, StoryFile(run/'stories.h5')['test']) == 6

def page_of_reference(run, split): return len(Page(write_report(run, split)).all('div', **{'data-name': 'reference'}))

def test_reference_frames_come_from_what_was_drawn(run):
    "Trained on one file, drawn from another that has the same ids."
    other = [Story(f's{i}', 'a', ('elsewhere',), (encoded(picture(1)),)) for i in range(2)]
    write_stories(run/'other.h5', dict(val=other), 'toy')
    (run/'scores.json').unlink()
    save_json(run/'drawing.json', dict(data=str(run/'other.h5'), split='val', seed=7))
    page = Page(write_report(run))
    assert page.text.count('elsewhere') == 2 and WILD not in page.text.replace(WILD, '', 1) and 'drawing.seed' in page.text

def test_drawings_of_other_names_are_reported(run):
    for name in 's0', 's1': (run/'drawn'/name).rename(run/'drawn'/f'story{name}')
    text = Page(write_report(run)).text
    assert (f'{run}/drawn holds none of the 3 stories of split test of {run}/stories.h5: expected folders such as s0, s1, s2 with '
            '1.png … 3.png; found storys0, storys1') in text

def test_unknown_split_is_reported(run): assert 'no split' in Page(write_report(run, 'valid')).text

def test_frames_that_cannot_be_shown(run):
    (run/'drawn'/'s0'/'2.png').write_bytes(b'no picture')
    (run/'drawn'/'s1'/'3.png').unlink()
    (run/'drawn'/'stranger').mkdir()
    picture(1).save(run/'drawn'/'stranger'/'1.png')
    page = Page(write_report(run))
    assert 'unreadable' in page.text and 'not drawn' in page.text and 'story stranger' in page.text

def test_empty_folder_is_one_line(tmp_path):
    for folder in tmp_path, tmp_path/'absent':
        with pytest.raises(StoryError, match='not a run folder') as e: write_report(folder)
        assert '\n' not in str(e.value)
    assert list(tmp_path.iterdir()) == []

def test_a_pipeline_is_no_run(tmp_path):
    "arldm-port writes settings.json beside its parts; a page there would change what its weights are known by."
    (tmp_path/'model_index.json').write_text('{}')
    (tmp_path/'settings.json').write_text('{"corpus": "ssid", "task": "visualization"}')
    with pytest.raises(StoryError, match='is a pipeline, not a run'): write_report(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['model_index.json', 'settings.json']

@pytest.mark.parametrize('settings, said', [('"task": ["visualization"]', 'task must be'), ('"drawing": "x"', 'drawing must be')])
def test_damaged_settings(settings, said, tmp_path):
    (tmp_path/'settings.json').write_text('{"corpus": "toy", %s}' % settings)
    with pytest.raises(StoryError, match=said): write_report(tmp_path)

def test_report_replaces_itself_and_leaves_nothing_else(run):
    before = set(run.iterdir())
    assert write_report(run).read_bytes() == write_report(run).read_bytes()
    assert set(run.iterdir()) - before == {run/'report.html'}

def test_pictures_are_bounded():
    photo = Image.effect_noise((3000, 1500), 60).convert('RGB')
    small = embed(photo, 'x')
    tag = part('image', small)
    assert 'width="256" height="128"' in tag and 'image/jpeg' in tag and len(tag) < 60_000
    assert photo.size == (3000, 1500) and 'image/png' in part('image', embed(picture(1), 'x'))

def test_read_log(tmp_path):
    path = tmp_path/'log.csv'
    path.write_text('step,loss\n1,0.5\n2,\n3,x\nx,1\n4,0.25\n5,0.1')  # the last line has no end
    rows = read_log(path)
    assert [r['step'] for r in rows] == [1, 2, 3, 4] and rows[3]['loss'] == .25 and math.isnan(rows[1]['loss'] + rows[2]['loss'])
    path.write_text('')
    assert read_log(path) == []

def numbers(text): return [*map(float, re.findall(r'-?\d+(?:\.\d+)?', text))]

def points(drawing):
    "The points of a drawing's curves and marks."
    found = []
    for path in re.findall(r'<path d="([^"]+)"[^>]*style="fill: none; stroke: var\(--(?:one|two|reference)', drawing.svg):
        xy = numbers(path)
        found += zip(xy[::2], xy[1::2])
    return found

def labels(drawing):
    "Texts of a drawing, each with its place and the side that it is aligned at."
    found = []
    for tag, text in re.findall(r'<text ([^>]+)>([^<]*)</text>', drawing.svg):
        x, y = (float(re.search(rf'\b{name}="([\d.-]+)"', tag)[1]) for name in 'xy')
        found.append((text, x, y, re.search('text-anchor: (\\w+)', tag)[1]))
    return found

@pytest.mark.parametrize('losses', [[1.], [1., 1.], [2., 1., 1e9], [*range(5000)], [-1e-9, 1e-9], [1e8, 1e8 + 1], [1e-7, 3e-7]])
def test_chart_stays_in_its_frame(losses):
    "Curves and texts, in both drawings; as many numbers beside it as one reads at a glance."
    one = chart(loss_curves([*range(1, len(losses) + 1)], losses), 'loss', 'loss', large=True)
    assert [d.shown for d in one.images] == ['wide-window', 'narrow-window'] and sum(len(d.svg) for d in one.images) < 60_000
    for d in one.images:
        assert points(d) and all(0 <= x <= d.width and 0 <= y <= d.height for x, y in points(d))
        texts = labels(d)
        assert all(0 <= x <= d.width and 0 <= y <= d.height for _, x, y, _ in texts)
        assert 2 <= len([text for text, *_, side in texts if side == 'end' and text != 'step']) <= 6

def test_labels_of_a_chart_are_at_their_numbers():
    "Also for steps that are not evenly spaced."
    for steps in [1, 2, 3, 4, 5], [1, 2, 9], [500, 1000, 6000]:
        d, = chart([Curve(steps, steps)], 'x', 'x').images
        marks = [(float(x), float(y)) for x, y in re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"[^>]*fill: var\(--one', d.svg)]
        below = {int(text.replace(',', '')): x for text, x, _, side in labels(d) if side == 'middle'}
        assert len(marks) == len(steps) and len(below) >= 2
        (first, _), (last, _) = marks[0], marks[-1]
        for number, x in below.items():
            assert x == pytest.approx(first + (last - first)*(number - steps[0])/(steps[-1] - steps[0]), abs=.1)

def test_same_numbers_same_drawing():
    "No date, no random name, and every id occurs once in a page."
    log = [dict(step=i, loss=1/i, val_loss=2/i) for i in range(1, 99)]
    entries = [dict(name=name, k=k, value=k, low=k - 1, high=k + 1) for name in 'ab' for k in range(1, 5)]
    def draw(): return part('loss_charts', loss_charts([log])) + part('charts_by_frame', drift_charts([entries]))
    html = draw()
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert html == draw() and len(ids) == len(set(ids)) > 20
    assert {*re.findall(r'href="#([^"]+)"', html)} <= {*ids}
    assert not re.findall(r'#[0-9a-f]{6}\b|<style|<metadata|20\d\d-', html)

def test_charts_have_titles_and_descriptions():
    html = part('loss_charts', loss_charts([[dict(step=i, loss=1/i) for i in range(1, 9)]]))
    for named in re.findall('aria-labelledby="([^"]+)"', html):
        title, text = (re.search(f'id="{name}">([^<]+)<', html)[1] for name in named.split())
        assert title == 'training loss, running mean 0.3135, last step 0.125' and text == 'step 1 to 8, values from 0.125 to 1'
    assert html.count('role="img"') == 2

def test_losses_that_are_no_numbers_are_counted():
    log = [dict(step=i, loss=math.nan if i == 3 else 1/i) for i in range(1, 9)]
    one, = loss_charts([log])
    assert one.title == 'training loss, running mean 0.3163, last step 0.125; 1 step without one' and loss_charts([log[2:3], []]) == []
    both, = loss_charts([log, log])
    assert both.title.startswith('training loss, running mean 0.3163 and 0.3163, last step 0.125 and 0.125;') and [len(points(d)) for d in both.images] == [14, 14]
    assert all('stroke: var(--one)' in d.svg and 'stroke: var(--two)' in d.svg for d in both.images)
    assert 'swatch two' in part('loss_charts', [both], ['A', 'B']) and 'swatch' not in part('loss_charts', [one])

def test_no_validation_loss_is_cut_off():
    "Nor the beginning of the training curve: only spikes are, and the title counts them."
    val = {100: .993, 200: 1.473, 300: 1.656}
    log = [dict(step=i, loss=.25 + 1.57/i, val_loss=val.get(i, math.nan)) for i in range(1, 301)]
    training, validation = loss_charts([log])
    assert training.description == 'step 1 to 300, values from 0.2552 to 1.82' and 'cut off' not in training.title
    assert validation.title == 'validation loss, last 1.656'
    assert validation.description == 'step 100 to 300, values from 0.993 to 1.656'
    many = [dict(r, val_loss=50. if r['step'] == 300 else 1.) for r in log]
    assert loss_charts([many])[1].description == 'step 1 to 300, values from 1 to 50'
    log[150]['loss'] = log[151]['loss'] = 90.
    training = loss_charts([log])[0]
    assert training.title.endswith('; 2 above 1.82 cut off')
    assert training.description == 'step 1 to 300, values from 0.2552 to 1.82'

def row(name, value, **more): return dict(name=name, value=value, **more)

def test_scores():
    html = part('scores', score_table([row('a', 12.3456, n=10, note='', better='lower'), row('b', None, note=None)]))
    assert '12.35 <span title="lower is better">↓' in html and 'n = 10' in html and 'b: no reason given' in html
    assert '<svg class="range"' not in html[:html.index('</table>')]  # nothing to compare it with, so no bar

def test_scores_with_intervals_and_floors():
    html = part('scores', score_table([row('a', .5, low=.4, high=.6, unit='%', spread=.01, group='story', n=9, better=None,
                            beside=[row(None, .3, what='<chance>'), row(None, None, what='nothing')])]))
    for said in ('40.0% … 60.0%', '± 1.0% over seeds', '&lt;chance&gt; 30.0%', 'Story: do the frames'): assert said in html
    assert 'nothing' not in html and html.count('class="hollow"') == 1   # in the bar
    assert html.count('class="mark"') == 1 + 1   # below it, in the legend

def test_scores_without_values_are_folded_and_refused_ones_are_not():
    rows = [row('a', None, note='not measured: no <weights>'), row('b', math.nan), row('c', None, invalid=True, note='why')]
    html = part('scores', score_table(rows))
    table, folded = html.split('<details>')
    assert 'not measured: 2' in folded and 'a: no &lt;weights&gt;' in folded and 'invalid' in table and 'why' in table
    assert 'No score could be measured' in part('scores', score_table(rows[:2]))

@pytest.mark.parametrize('value, low, high, marks', [(5, 4, 6, [1, 9]), (5, None, None, []), (0, 0, 0, [0]), (-1, -2, 3, [])])
def test_range_bar_stays_in_its_frame(value, low, high, marks):
    html = part('range_bar', range_bar(value, low, high, marks=marks, zero=True))
    found = re.findall(r'x="([\d.-]+)%"', html)
    assert len(found) == 2 + len(marks) + (low is not None) and all(0 <= float(x) <= 100 for x in found)
    assert html.count('class="hollow"') == len(marks) and ('interval' in html) == (low is not None)

def test_facts():
    rows = [row('stated x', 1, n=3, chance=None), row('remembered x', .5, n=4, chance=.2, low=.3, high=.7), row('y', None)]
    html = part('facts', fact_bars(rows))
    assert html.count('<tr') == 2 and html.count('<i ') == 1 and 'left:20.0%' in html and 'of 4' in html
    assert 'left:30.0%;width:40.0%' in html

@pytest.mark.parametrize('n, each', [(0, []), (1, [1]), (2, [1, 1]), (3, [1, 1, 1]), (5, [1, 1, 1]), (7, [2, 2, 2]), (30, [3, 3, 3])])
def test_chosen_stories(n, each):
    "Best, middle, worst; none twice; None and NaN are left out."
    chosen = choose_stories({**{f's{i}': i for i in range(n)}, 'none': None, 'nan': math.nan}, 'lower')
    assert [len(v) for v in chosen.values()] == each and len({s for v in chosen.values() for s in v}) == sum(each)
    if n: assert chosen['best'][0] == 's0' and (n == 1 or chosen['worst'][-1] == f's{n - 1}')
    assert n < 3 or choose_stories({f's{i}': i for i in range(n)}, 'higher')['best'][0] == f's{n - 1}'


# how a page introduces itself

def titles(page):
    "The contents of a page, and its sections in order."
    links = [re.search(f'<a href="#{a["href"][1:]}">([^<]+)<', page.html)[1] for a in page.all('a')]
    return links, re.findall('<section id="[^"]+">\\s*<h2>([^<]+)<', page.html)

def test_contents_are_the_sections(run, finished, other):
    "In order, and only those that are on the page."
    shutil.rmtree(run/'drawn')
    pages = [Page(path) for path in (write_report(finished), write_report(finished, against=other), write_report(run))]
    for page in pages:
        links, sections = titles(page)
        assert links == sections and len({*sections}) == len(page.all('section')) == len(sections)
    assert titles(pages[0])[0] == ['A story', 'Scores', 'Facts', 'From frame to frame', 'Stories', 'Copies', 'Training', 'Settings', 'What the scores mean']
    assert titles(pages[1])[0] == ['Scores', 'From frame to frame', 'Stories', 'Training', 'Settings that differ', 'What the scores mean']
    assert titles(pages[2])[0] == ['Scores', 'Facts', 'Stories', 'Training', 'Settings', 'What the scores mean']

def test_scores_are_explained_with_and_without_a_mouse(finished, other):
    "Every explanation beside the mouse is also in the list at the end; what is not on the page is not explained."
    for page in Page(write_report(finished)), Page(write_report(finished, against=other)):
        listed = dict(re.findall('<dt>([^<]+)</dt><dd>([^<]+)</dd>', page.html))
        beside = {a['title'] for a in page.all('abbr')}
        assert len(beside) >= 4 and beside <= {*map(unescape, listed.values())}
        assert {'FID64', 'KID', 'remembered facts', 'facts correct', 'similarity to the reference frame'} <= {*listed} and 'CMMD' not in listed

@pytest.mark.parametrize('settings, log, said', [
    (dict(corpus='ssid', task='visualization', model='sd-1.5', max_train_steps=500, train_batch_size=4, gradient_accumulation_steps=2, processes=3), 500,
     'AR-LDM, which draws each frame from its caption and the frames before it, was trained on SSID for 500 steps with batches of 24 stories, starting from Stable Diffusion 1.5.'),
    (dict(corpus='mine', task='a <task>', model='tiny', max_train_steps=5000), 1200,
     'AR-LDM was trained on mine for 1,200 of 5,000 steps, starting from random weights.'),
    (dict(corpus=['?'], task=5, model={}, max_train_steps='many', train_batch_size=None), 1, "AR-LDM was trained on ['?'] for 1 step."),
    ({}, 7, 'The model was trained for 7 steps.'), ({}, 0, '')])
def test_the_model_is_introduced(settings, log, said):
    "What is not known is left out, and settings of any kind are no error."
    run = SimpleNamespace(settings=settings, log=[dict(step=log)] if log else [], drawn={}, scores={}, name='x', folder=Path('x'))
    assert introduction(run) == f'{said} Nothing is drawn yet.'.strip()

@pytest.mark.parametrize('record, drawn, said', [
    (dict(scheduler='dpm++', num_inference_steps=20, guidance_scale=7.5, split='val'), 1,
     'The folder holds 2 frames of 1 story of split val, drawn in 20 steps of DPM-Solver++ with guidance 7.5.'),
    (dict(num_inference_steps=1), 2, 'The folder holds 4 frames of 2 stories, drawn in 1 step.'),
    (dict(scheduler={}, num_inference_steps='x', guidance_scale=None), 2, 'The folder holds 4 frames of 2 stories.')])
def test_drawings_are_introduced(record, drawn, said):
    run = SimpleNamespace(settings=dict(drawing=record), log=[], drawn={f's{i}': {1: 0, 2: 0} for i in range(drawn)}, scores={}, name='x', folder=Path('x'))
    assert introduction(run) == said

@pytest.mark.parametrize('n, said', [(1, 'Only 1 story (5 frames) was scored'), (4, 'Only 4 stories (20 frames) were scored')])
def test_few_stories_are_shown_once(n, said, finished, tmp_path):
    "First on the page, before a sentence and the scores; the introduction gives no scores."
    run = shutil.copytree(finished, tmp_path/f'run of {n}')   # a page against another run of its name would not be replaced
    for folder in sorted((run/'drawn').iterdir())[n:]: shutil.rmtree(folder)
    scores = load_json(run/'scores.json')
    save_json(run/'scores.json', scores | dict(n_stories=n, n_frames=5*n))
    page = Page(write_report(run))
    assert titles(page)[0][:2] == ['Stories', 'Scores'] == titles(page)[1][:2] and titles(page)[0].count('Stories') == 1
    assert len(page.all('ol', **{'class': 'frames'})) == n and '; scored: ' not in page.text
    said += ': these numbers say little; look at the strips.'
    assert page.html.index('<h2>Scores') < page.html.index(said) < page.html.index('FID64')
    assert ('; no other story to compare with' in page.text) == (n == 1)
    assert ('All 4 scored stories, the best first' in page.text) == (n == 4) and ' of 4 stories by' not in page.text
    compared = Page(write_report(finished, against=run)).text
    assert f'A: {said}' in compared and f'B: {said}' not in compared

def test_many_stories_have_no_warning(finished): assert 'say little' not in Page(write_report(finished)).text

def test_ids_that_begin_with_story(run):
    (run/'strips'/'1000.png').rename(run/'strips'/'001000-story 6.png')
    scores = load_json(run/'scores.json')
    save_json(run/'scores.json', scores | dict(copies=[dict(story='story 2', k=1, similarity=.5, picture=0)]))
    (run/'drawn'/'s1').rename(run/'drawn'/'story 2')
    page = Page(write_report(run))
    assert {'step 1000, story 6', 'story 2', 'similarity 0.5, frame 1 of story 2', 'story s0'} <= {*page.texts}
    assert 'training pictures was not measured' in page.text

def test_training_stories_are_counted(run):
    "In the story file, if it holds the stories of the run."
    stories = [Story(f's{i}', f'a{i}', ('one', 'two'), (encoded(picture(i)), encoded(picture(i + 1)))) for i in range(4)]
    write_stories(run/'mine.h5', dict(train=stories), 'folder')
    settings = dict(corpus='folder', data=str(run/'mine.h5'), stories=data_digest(StoryFile(run/'mine.h5')['train']))
    save_json(run/'settings.json', settings)
    assert 'on own pictures (4 training stories, 5 pictures) for 3 steps' in introduction(read_run(run))
    save_json(run/'settings.json', settings | dict(max_train_samples=3))
    assert 'on own pictures (the first 3 of 4 training stories) for 3 steps' in introduction(read_run(run))
    save_json(run/'settings.json', settings | dict(stories='another'))
    assert 'on own pictures for 3 steps' in introduction(read_run(run))

@pytest.mark.parametrize('losses, said', [
    ([.993, 1.473, 1.656], 'lowest at step 100 (0.993) and has risen to 1.656: the model has begun to memorise its training stories.'),
    ([1.2, .9, .92, .95], 'lowest at step 200 (0.9) and has risen to 0.95'), ([1., 1.1, 1.04], ''), ([1.2, .9, 1.1], ''), ([1., 2.], ''), ([], '')])
def test_a_rising_validation_loss_is_said(losses, said):
    log = [dict(step=100*k, val_loss=x) for k, x in enumerate(losses, 1)] + [dict(step=1000, val_loss=math.nan)]
    assert said in memorising(log) and bool(memorising(log)) == bool(said)

def test_the_median_story_is_first(finished):
    "Of nine stories the fifth, with its score; ids are small print."
    values = load_json(finished/'scores.json')['stories']['values']
    story, value = sorted(values.items(), key=lambda item: item[1])[4]
    caption = re.findall('<figcaption>(.*?)</figcaption>', write_report(finished).read_text(encoding='utf-8'))[0]
    assert caption == f'Median of 9 stories by facts correct: {value:.1%} <small>story {story}</small>'


# runs with scores of every kind

@pytest.fixture(scope='module')
def finished(tmp_path_factory): return write_run(tmp_path_factory.mktemp('runs')/'b', .2)

@pytest.fixture(scope='module')
def other(tmp_path_factory): return write_run(tmp_path_factory.mktemp('more')/'a&', .7, seed=1, steps=40)

def test_everything_scored_is_on_the_page(finished):
    page = Page(write_report(finished))
    assert '1 of 10 stories of the split are not drawn, first s9' in page.text and page.all('ul', **{'class': 'warnings'})
    for said in ('Best 3 of 9 stories by facts correct', 'Middle 3 of 9 stories by facts correct',
                 'Worst 3 of 9 stories by facts correct', 'not measured: 3', 'features (fields) the 50 reference pictures of split test reach 0.91.', 'similarity 0.99, frame 2 of story s0',
                 '9 stories, 5 albums, 45 drawn frames, intervals from 100 resamples'): assert said in page.text, said
    assert len(page.all('ol', **{'class': 'frames'})) == 9 + 1 and 'scored: FID64 50.4, neighbouring frames alike (fields) 0.93' in page.text
    assert len(page.all('div', **{'class': 'training'})) == 3 and 'not available' not in page.text
    assert len(page.all('figure', **{'class': 'chart'})) == 2 + 2  # two losses, two scores by frame
    assert (finished/'report.html').stat().st_size < 1_000_000

def test_photographs_do_not_make_the_page_heavy(tmp_path):
    "Nine stories of photographs, reference and drawn, in three megabytes."
    noise = Image.effect_noise((256, 256), 60).filter(ImageFilter.GaussianBlur(1)).convert('RGB')
    photos = tuple([encoded(noise)]*5)
    figure = story_figure('x', dict(drawn={k: tmp_path/f'{k}.png' for k in range(1, 6)}), Story('x', 'x', ('a',)*5, photos))
    html = part('story', figure)
    assert 9*2*len(html) < 3_000_000

def test_copies_without_pictures(finished, tmp_path):
    "The training picture is in a file that is gone, or in no row of it; the page is written all the same."
    run = shutil.copytree(finished, tmp_path/'run')
    scores = load_json(run/'scores.json')
    scores['copies'] = [dict(story='gone', k=1, similarity=.5, picture=10**6)]
    save_json(run/'scores.json', scores)
    assert {'not available', 'not drawn'} <= {*Page(write_report(run)).texts}

def test_drawings_alone_have_a_page(finished, tmp_path):
    "A folder of drawings that was scored, as another's drawings may be."
    shutil.copytree(finished/'drawn', tmp_path/'theirs')
    shutil.copy(finished/'scores.json', tmp_path/'theirs')
    page = Page(write_report(tmp_path/'theirs'))
    assert len(page.all('div', **{'class': 'reference'})) == 45 + 5   # all stories, one at a glance
    assert page.texts.count('theirs: drawn stories') == 2 and 'AR-LDM' not in page.text
    assert 'The folder holds 45 frames of 9 of the 10 stories of split test; scored: FID64 50.4' in page.text

def test_two_runs(finished, other):
    path = write_report(finished, against=other)
    page = Page(path)
    assert path == finished/'against-a&.html' and 'b compared with a&' in page.text
    assert 'not paired' in page.text and page.all('td', **{'data-name': 'A'})  # neither has resamples
    for said in 'Where B gained most: 2 of 9 stories by facts correct', 'Where B gained least: 2 of 9', 'A is a&:', 'B is b:', 'for 40 steps', 'A: 1 of 10', 'B: 1 of 10', 'steps': assert said in page.text
    shown = len(page.all('ol', **{'class': 'frames'}))
    assert shown == 6 and all(len(page.all('div', **{'data-name': name})) == 5*shown for name in ('reference', 'A', 'B'))
    charts = page.html.split('<figure class="chart">')[1:]
    assert len(charts) == 2 + 2 and all('stroke: var(--two)' in html for html in charts)  # two scores by frame, two losses
    assert not {'script', 'link'} & {t for t, _ in page.tags}

def test_two_runs_of_one_name(run, other):
    "The page against one of them is not replaced by that against the other."
    page = write_report(run, against=other)
    text = page.read_bytes()
    assert write_report(run, against=other) == page and page.read_bytes() == text
    elsewhere = shutil.copytree(other, run.parent/'older "runs" &'/other.name)
    with pytest.raises(StoryError, match='compares with .*/a&, not with ../older "runs" &/a&; move it away'):
        write_report(run, against=elsewhere)
    assert page.read_bytes() == text
    page.unlink()
    write_report(run, against=elsewhere)
    assert write_report(run, against=elsewhere) == page
    with pytest.raises(StoryError, match='compares with ../older "runs" &/a&, not with .*/a&; move it away'): write_report(run, against=other)

def test_two_runs_without_scores_or_common_stories(run, other):
    (run/'scores.json').unlink()
    page = Page(write_report(run, against=other))
    assert 'cannot be compared' in page.text and 'story s0' in page.text
    for story in 's0', 's1': (run/'drawn'/story).rename(run/'drawn'/f'x{story}')
    assert 'no story that both have drawn' in Page(write_report(run, against=other)).text
    with pytest.raises(StoryError, match='not a run folder'): write_report(run, against=run/'strips'/'no')

def test_verdicts_are_escaped():
    row = dict(name=WILD, group=WILD, a=1., b=None, unit='', better=None, difference=None, low=None, high=None, verdict=WILD)
    html = part('comparison', grouped([row], difference_row))
    assert '<script' not in html and html.count('&lt;script&gt;') == 3 and '—' in html

def test_score_text(): assert [score_text(row('a', x)) for x in (-1.5, None, math.nan)] == ['−1.5', '—', '—']

def test_flatten(): assert flatten(dict(a=1, b=dict(c=2, d=dict(e=[3])))) == {'a': 1, 'b.c': 2, 'b.d.e': [3]}

def test_only_reports_are_replaced(run):
    "A report is replaced, a page that arldm did not write is not."
    path = write_report(run)
    assert is_page(path)
    path.write_text('<!doctype html><title>mine</title>')
    assert not is_page(path)
    with pytest.raises(StoryError, match='is not a report written by arldm; move it away'): write_report(run)
    assert path.read_text() == '<!doctype html><title>mine</title>'
