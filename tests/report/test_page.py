"The page in a browser: no errors, no requests, and readable on a telephone and in the dark."
import pytest

from arldm.report import report as chapter
from arldm.report.ranking_page import write_ranking
from arldm.report.report import write_report
from browser import Browser, chromium
from folders import write_run
from painted import draw, painting, stories, story_file

pytestmark = pytest.mark.skipif(not chromium(), reason='no Chromium here; Debian has it as chromium')

VERDICTS = [dict(name='FID64', group='pictures', a=45.4, b=50.4, unit='', better='lower', difference=5., low=3.1, high=7.4,
        verdict='B worse than A: 95 % interval of the difference +3.1 … +7.4'),
    dict(name='remembered facts', group='facts', a=.3, b=.8, unit='%', better='higher', difference=.5, low=None, high=None,
        verdict='no verdict: too few albums for an interval')]

@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    "The page of a run, of two, and of several systems, one with a long name."
    runs = tmp_path_factory.mktemp('runs')
    a, b = write_run(runs/'before', wrong=.7, seed=1, steps=200), write_run(runs/'after <b>', wrong=.2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chapter, 'compare_runs', lambda a, b: VERDICTS)
        found = dict(one=write_report(b), two=write_report(b, against=a))
    split = story_file(runs/'data', test=stories(6))['test']
    systems = [runs/name for name in ('near', 'a-system-with-a-long-name-' + '0123456789'*3, 'far', 'less')]
    draw(systems[0], split)
    for n, system in enumerate(systems[1:], 1): draw(system, split, 1 + n//3, picture=lambda i, k: painting(n*i + k))
    return dict(found, several=write_ranking(systems, split, runs/'ranking', n_resamples=20)[0])

@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp('profile'))
    yield browser
    browser.close()

def each(names, *values, pages=('one', 'two')):
    return pytest.mark.parametrize(names, [(page, *v) for page in pages for v in values])

@each('page, width, dark', (390, False), (1400, True), pages=('one', 'two', 'several'))
def test_page_is_silent_and_complete(browser, pages, page, width, dark):
    "Nothing in the console, no request except for the file itself, every picture loaded."
    browser.open(pages[page], width, dark)
    assert not browser.events('Log.entryAdded') and not browser.events('Runtime.consoleAPICalled')
    assert not browser.events('Runtime.exceptionThrown')
    asked = {e['request']['url'].split(':')[0] for e in browser.events('Network.requestWillBeSent')}
    assert 'file' in asked and asked <= {'file', 'data'}
    loaded = browser.js('[...document.images].map(i => i.complete && i.naturalWidth > 0)')
    assert len(loaded) > 50 and all(loaded)
    assert browser.js('document.querySelectorAll("script, link, iframe").length') == 0

def test_browser_reports_errors_and_requests(browser, tmp_path):
    "A page with an error and a request is noticed, so the test above would fail."
    (bad := tmp_path/'bad.html').write_text('<script>nothing.at.all</script><img src="http://127.0.0.1:9/x.png">')
    browser.open(bad)
    assert browser.events('Runtime.exceptionThrown')
    assert any(e['request']['url'].startswith('http') for e in browser.events('Network.requestWillBeSent'))
    assert browser.js('document.images[0].naturalWidth') == 0

SMALL = """[...document.querySelectorAll('body *')]
    .filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()) && e.offsetParent)
    .filter(e => parseFloat(getComputedStyle(e).fontSize) < 12).map(e => e.outerHTML.slice(0, 80))"""

@each('page, width', (390,), (1400,), pages=('one', 'two', 'several'))
def test_page_can_be_read(browser, pages, page, width):
    "Nothing is wider than the window, no text is smaller than 12 pixels, folded parts included."
    browser.open(pages[page], width)
    browser.js('document.querySelectorAll("details").forEach(d => d.open = true)')
    assert browser.js('innerWidth') == width and browser.js('document.documentElement.scrollWidth') <= width
    assert browser.js(f"""[...document.querySelectorAll('body *')].filter(e => !e.closest('.frames') && !e.closest('svg')
        && e.getBoundingClientRect().right > {width}).map(e => e.outerHTML.slice(0, 80))""") == []
    assert browser.js(SMALL) == []

DRAWN = """[...document.querySelectorAll('.chart svg')].filter(e => e.getBoundingClientRect().height)"""
SIZES = f"""{DRAWN}.flatMap(e => [...e.querySelectorAll('text')])
    .map(e => [parseFloat(getComputedStyle(e).fontSize)*e.getScreenCTM().a, getComputedStyle(e).fontFamily, e.textContent])"""

@each('page, width', (390,), (1400,))
def test_charts_can_be_read(browser, pages, page, width):
    "Their text is in the page's font and about as large as its notes; one drawing of each chart is shown."
    browser.open(pages[page], width)
    sizes = browser.js(SIZES)
    assert len(sizes) > 20 and all(12 <= size <= 17 and 'system-ui' in font for size, font, _ in sizes), sizes
    assert browser.js(f'{DRAWN}.length') == browser.js('document.querySelectorAll(".chart").length') == 4

def test_charts_take_the_colours_of_the_page(browser, pages):
    "The blue of the first run by day and by night, and grey text; no colour is drawn in."
    colours = """(() => { const of = (e, what) => getComputedStyle(e)[what]
        const paths = [...document.querySelectorAll('.chart path')].filter(e => of(e, 'stroke') != 'none')
        return [of(document.querySelector('.swatch.one'), 'borderTopColor'), paths.map(e => of(e, 'stroke')),
            of(document.querySelector('.soft'), 'color'), of(document.querySelector('.chart text'), 'fill')] })()"""
    seen = []
    for dark in False, True:
        browser.open(pages['two'], 1400, dark)
        one, strokes, soft, text = browser.js(colours)
        assert one in strokes and text == soft and len(set(strokes)) == 4   # two runs, reference frames, axes
        seen.append(one)
    assert seen[0] != seen[1]

def test_paper_is_white(browser, pages):
    "A page that is dark on the screen is printed black on white."
    browser.open(pages['one'], 718, dark=True)
    browser.ask('Emulation.setEmulatedMedia', media='print',
        features=[dict(name='prefers-color-scheme', value='dark')])
    paper, card, ink, soft = browser.js(COLOURS)
    browser.ask('Emulation.setEmulatedMedia', media='')
    assert paper == card == [255]*3 and contrast(paper, ink) >= 7 and contrast(paper, soft) >= 4.5

def test_frames_below_each_other_on_a_telephone(browser, pages):
    rows = """new Set([...document.querySelector('.frames').children].filter(e => e.offsetHeight).map(e => e.offsetTop)).size"""
    for width, n in (390, 5), (1400, 1):
        browser.open(pages['one'], width)
        assert browser.js(rows) == n

COLOURS = """(() => { const of = (e, what) => getComputedStyle(e)[what].match(/[\\d.]+/g).slice(0, 3).map(Number),
    soft = document.querySelector('.soft'), card = document.querySelector('figure')
    return [of(document.body, 'backgroundColor'), of(card, 'backgroundColor'), of(document.body, 'color'), of(soft, 'color')] })()"""

def contrast(a, b):
    "Of two colours, as WCAG 2.2 defines it."
    def light(c):
        c = [v/255 for v in c]
        return sum(w*(v/12.92 if v <= .04045 else ((v + .055)/1.055)**2.4) for w, v in zip((.2126, .7152, .0722), c))
    a, b = sorted((light(a), light(b)))
    return (b + .05)/(a + .05)

def test_contrast(): assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)

def test_light_and_dark(browser, pages):
    "In both, every text has enough contrast with page and cards."
    grounds = []
    for dark in False, True:
        browser.open(pages['one'], 1400, dark)
        paper, card, ink, soft = browser.js(COLOURS)
        grounds.append(sum(paper))
        for ground in paper, card:
            assert contrast(ground, ink) >= 7 and contrast(ground, soft) >= 4.5
    assert grounds[1] < 100 < 700 < grounds[0]
