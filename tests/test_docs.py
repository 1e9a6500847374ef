"The site: built once as `make docs` builds it, without what `test_story_browser` looks at, then read by a program and looked at in a browser."
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest

from browser import Browser, chromium

ROOT = Path(__file__).resolve().parent.parent
FIRST = ['draw_a_story', 'your_stories', 'journey', 'howto', 'ssid', 'glossary', 'trouble']
PARTS = 'files', 'data', 'toy', 'model', 'train', 'draw', 'score', 'report', 'cli', 'lab', 'bench'
def in_part(part): return [path.stem.partition('_')[2] for path in sorted((ROOT/'nbs'/part).glob('[0-9][0-9]*_*.ipynb'))]
CHAPTERS = FIRST + in_part('') + [f'{part}/{name}' for part in PARTS for name in ['index', *in_part(part)]]   # and the parts' pages
MISSING = [name for name in ('sphinx', 'myst_nb', 'furo', 'ziamath', 'nbdev') if not find_spec(name)]

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f'the site needs {", ".join(MISSING)}: pip install -e .[dev]')
browses = pytest.mark.skipif(not chromium(), reason='no chromium here')


class Page(HTMLParser):
    "What a page links to, what can be linked to in it, and its elements by class."
    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.ids, self.classes = [], [], set(), {}
        self.text = path.read_text(encoding='utf-8')
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        at = dict(attrs)
        if 'id' in at: self.ids.add(at['id'])
        for name in (at.get('class') or '').split(): self.classes.setdefault(name, []).append((tag, at))
        if tag == 'a' and at.get('href'): self.links.append(at['href'])
        if tag in ('script', 'img', 'iframe') and at.get('src'): self.loads.append(at['src'])
        if tag == 'link' and at.get('rel') != 'canonical': self.loads.append(at['href'])


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The folder of the site."
    out = tmp_path_factory.mktemp('docs')/'site'
    said = subprocess.run([sys.executable, ROOT/'docs/build.py', '--no-drawing', '--out', out], capture_output=True, text=True,
        cwd=ROOT, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert said.returncode == 0, said.stderr[-4000:]
    assert 'arning' not in said.stderr, said.stderr[-4000:]
    return out

@pytest.fixture(scope='module')
def pages(site): return {path.relative_to(site).as_posix(): Page(path) for path in sorted(site.rglob('*.html')) if path.parent.name != '_static'}

def leads(name, link):
    "Where a link on a page leads, from the top of the site."
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), link)) if link else name


# from comments to tables

ODD = '''
def drawn(
    frames:int,     # Of a story
    marks:list=(),  # Numbers to hold it against
    seen:dict={},   # What is known,
                    # if it is
    **way,          # For `denoise`
):                  # -> yields pictures
    "Draw."

def opened(path:str=None): # Of the file
    "Open."

def kept(unet): # -> yields what is kept
    "Keep."

def look(
    path:str,    # Of the file
    *more:str,   # Others
    how:int=1,
)->list:         # Rows
    "Look."

def named() -> set: # Of everybody
    "Name."

class Store:
    "Keep rows."
    def __init__(self, path:str=None): # Default: in memory
        self.path = path

# Not about the path.
def closed(
    path:str,    # Of the file
    # Whether to wait,
    # and how long
    wait:int=0,
    # What was left,
    # and where
)->list:
    "Close."
    # Of this line.
    return []
'''

def module(name, path):
    spec = spec_from_file_location(name, path)
    found = module_from_spec(spec)
    spec.loader.exec_module(found)
    return found

def test_comments(tmp_path):
    "A comment is shown with the parameter, or the result, that it stands beside or above in the source."
    from nbdev.showdoc import show_doc
    (tmp_path/'odd.py').write_text(ODD)
    odd, entries = module('odd', tmp_path/'odd.py'), module('entries', ROOT/'docs/entries.py')
    def beside(name, node, kind):
        _, text = entries.entry(show_doc(getattr(odd, name))._repr_markdown_(), name, node, kind, {}, ODD)
        rows = [line.strip('| ').split(' | ') for line in text.splitlines() if line.startswith('| ')]
        return {row[0].strip('*`'): row[-1].strip() if len(row) == len(rows[0]) else '' for row in rows[2:]}
    assert {name: beside(name, *how) for name, *how in entries.definitions(ODD)} == dict(
        drawn=dict(frames='Of a story', marks='Numbers to hold it against', seen='What is known, if it is',
                   way='For `denoise`', returns='yields pictures'),
        opened=dict(path='Of the file'), kept=dict(unet='', returns='yields what is kept'),
        look=dict(path='Of the file', more='Others', how='', returns='Rows'),
        named=dict(returns='Of everybody'), Store=dict(path='Default: in memory'),
        closed=dict(path='Of the file', wait='Whether to wait, and how long', returns='What was left, and where'))


# read by a program

def test_every_chapter(pages):
    "All chapters are pages, and the sidebar of every page names them in the order of the book."
    names = [f'{name}.html' for name in CHAPTERS]
    assert set(names) | {'index.html', 'search.html', 'genindex.html'} == set(pages)
    for name, page in pages.items():
        tree = re.findall(r'<li class="toctree-l[12][^"]*"><a class="[^"]*" href="([^"]+)"', page.text)
        assert [name if link == '#' else leads(name, link) for link in tree] == [*names, 'genindex.html'], name
    assert 'main chapter' in pages['data/story.html'].text and 'details' in pages['data/strips.html'].text

def test_links(site, pages):
    "Links inside the site lead to something, anchors too."
    broken = []
    for name, page in pages.items():
        for link in page.links + page.loads:
            if re.match('(https?|mailto|data):', link): continue
            path, _, part = unquote(link).partition('#')
            target = leads(name, path.partition('?')[0])
            if target in pages: ok = not part or part in pages[target].ids
            else: ok = (site/target).is_file()
            if not ok: broken.append(f'{name}: {link}')
    assert not broken, '\n'.join(broken[:40])

def test_nothing_from_elsewhere(pages):
    assert not [(name, link) for name, page in pages.items() for link in page.loads if re.match('(https?:)?//', link)]

def test_entries(pages):
    "A function, a patched method, a dataclass and a command have entries; their names in prose lead there."
    for name in 'model.history.history_visible', 'draw.pipeline.StoryPipeline.stream', 'settings.Settings', 'cli.train.train':
        parts = name.split('.')
        page = '/'.join(parts[:1 if parts[0] == 'settings' else 2])
        assert f'arldm.{name}' in pages[f'{page}.html'].ids
    assert '../files/atomic.html#arldm.files.atomic.atomic_path' in pages['data/story.html'].links
    assert 'cli/train.html#arldm.cli.train.train' in pages['ssid.html'].links
    history = pages['model/history.html'].text
    assert '<summary>Source of <code>history_visible</code>, arldm.model.history</summary>' in history
    assert not [name for name, page in pages.items() if '>Source</summary>' in page.text]
    assert '<td><p>Frames given before the first drawn one' in history
    assert 'class="source"' in history and 'def <span class="nf">' not in history
    assert not [name for name, page in pages.items() if re.search('at 0x[0-9a-f]{6}', page.text)]

def test_what_nbdev_hides(pages):
    "Hidden cells, directives and what goes to stderr are left out."
    for name, page in pages.items():
        assert not re.search(r'<span class="c1">#\s*\|', page.text), name
        assert 'output stderr' not in page.text, name
    assert 'quiet_loading' not in re.sub('<details.*?</details>', '', pages['index.html'].text, flags=re.S)

def test_trouble_opens_with_its_tables(pages):
    "All messages stand in tables before the first cell that makes one; what makes them is folded."
    tables, _, rest = pages['trouble.html'].text.partition('id="where-the-lines-come-from"')
    assert tables.count('<table') == 3 and tables.count('<tr class="row-') == 56 + 3 and '<pre' not in tables
    assert '<th class="head"><p>what is printed</p></th>' in tables
    assert 'Show the code' in rest and 'class="n">slip</span>' in rest

def test_openings(tmp_path, monkeypatch):
    "What follows a chapter's claim in its first cell is on its page, though nbdev drops it."
    monkeypatch.syspath_prepend(ROOT/'docs')
    cell = dict(id='a', cell_type='markdown', source='# A title\n\n> A claim.\n\nFive corpora reach us in three layouts.')
    (tmp_path/'01_sample.ipynb').write_text(json.dumps(dict(cells=[cell])), encoding='utf-8')
    build = module('build', ROOT/'docs/build.py')
    chapter = build.Chapter(tmp_path/'01_sample.ipynb', tmp_path/'01_sample.ipynb')
    book = SimpleNamespace(linked=lambda text, chapter: text, label=lambda chapter: '', index=None, drawing=False)
    opening = next(build.Book.page(book, chapter))['source']
    assert '{.claim}\nA claim.' in opening and opening.endswith('Five corpora reach us in three layouts.')

def test_formulas(pages):
    "Formulas are pictures in the colour of the text, with words for those who do not see them; no TeX is left."
    found = [at for page in pages.values() for tag, at in page.classes.get('formula', ()) if tag == 'svg']
    assert len(found) > 20 and all(at['aria-label'] and at['role'] == 'img' for at in found)
    text = pages['score/distances.html'].text
    assert 'currentColor' in text and 'fill="black"' not in text
    assert not [link for page in pages.values() for link in page.loads if 'math' in link.lower()]
    assert r'$\mu' not in text and '$$' not in text
    for name, words in ('model/loss', r'L = \mathbb{E}'), ('draw/sampling', r'\hat y ='), ('model/history', r'\operatorname{softmax}'):
        block = [at for tag, at in pages[f'{name}.html'].classes['formula'] if tag == 'svg' and words in at['aria-label']]
        assert len(block) == 1, f'{name}: {words}'

def test_figures(pages):
    "Figures have words beside them; those of many pixels an inch are shown at half their width."
    for name, page in pages.items():
        assert not re.search(r'<img (?![^>]*alt="[^"]+")[^>]*src="[./]*_images', page.text), name
    assert re.search(r'<img [^>]*style="width: 568px;?"', pages['score/distances.html'].text)
    for name, words in ('index', 'arldm-convert makes'), ('model/arldm', 'CLIP encodes'):
        drawn = [at for tag, at in pages[f'{name}.html'].classes['transparent'] if tag == 'img']
        assert len(drawn) == 1 and drawn[0]['alt'].startswith(words), f'{name}: {drawn}'


# looked at in a browser

SEEN = '''(() => {
  const wide = document.documentElement.clientWidth, scrolls = e => e && (e.tagName == 'ARTICLE' ? false :
    ['auto', 'scroll', 'hidden'].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const out = [...document.querySelectorAll('article *')].filter(e => e.getBoundingClientRect().right > wide + 1
    && !scrolls(e.parentElement) && e.getClientRects().length).map(e => e.outerHTML.slice(0, 80));
  return [document.documentElement.scrollWidth - wide, out.slice(0, 3)] })()'''

CONTRAST = '''(() => {
  const rgb = c => c.match(/[\\d.]+/g).map(Number), part = v => (v /= 255) <= .03928 ? v/12.92 : ((v + .055)/1.055)**2.4
  const light = c => .2126*part(c[0]) + .7152*part(c[1]) + .0722*part(c[2])
  const behind = e => { for (; e; e = e.parentElement) {
    const c = rgb(getComputedStyle(e).backgroundColor)
    if (c.length < 4 || c[3] > .9) return c } return [255, 255, 255] }
  const found = {}, walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement, css = getComputedStyle(e)
    if (!walk.currentNode.data.trim() || !e.getClientRects().length || css.visibility == 'hidden') continue
    const [a, b] = [light(rgb(css.color)), light(behind(e))].sort((x, y) => y - x), ratio = (a + .05)/(b + .05)
    if (ratio < 4.5) found[`${e.tagName}.${e.className} ${css.color} on ${behind(e)}`] = ratio }
  return [light(behind(document.querySelector('article'))), found] })()'''

@pytest.fixture(scope='module')
def served(site):
    "The site as a web server shows it."
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_): pass
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()

@pytest.fixture(scope='module')
def browser(tmp_path_factory, served):
    "A browser, and `visit` to open a page of the site in it."
    b = Browser(tmp_path_factory.mktemp('profile'))
    def visit(page, **how):
        b.open(SimpleNamespace(as_uri=lambda: served + page), **how)
        return b
    yield visit
    b.close()

def trouble(browser, served):
    "Errors in the console, requests that failed, requests that leave the site."
    browser.js('1')   # take in what is still to be read
    said = [e['entry']['text'] for e in browser.events('Log.entryAdded') if e['entry']['level'] in ('error', 'warning')]
    said += [e['exceptionDetails']['text'] for e in browser.events('Runtime.exceptionThrown')]
    said += [str(e['args']) for e in browser.events('Runtime.consoleAPICalled') if e['type'] in ('error', 'warning')]
    said += [e['errorText'] for e in browser.events('Network.loadingFailed') if not e.get('canceled')]
    said += [e['response']['url'] for e in browser.events('Network.responseReceived') if e['response']['status'] >= 400]
    asked = [e['request']['url'] for e in browser.events('Network.requestWillBeSent')]
    assert asked, 'nothing was loaded'
    return said + [url for url in asked if not url.startswith((served, 'data:', 'about:'))]

# For every block of code, also in a folded one: its longest line in columns, and how many pixels are out of its box
BLOCKS = '''(() => {
  document.querySelectorAll('details').forEach(d => d.open = true)
  return [...document.querySelectorAll('details.source pre, .cell_input pre')].map(pre =>
    [Math.max(...pre.textContent.split('\\n').map(line => line.length)), pre.scrollWidth - pre.clientWidth]) })()'''

@pytest.fixture(scope='module')
def looks(browser, served, pages):
    """Of every third page, or with ARLDM_SOAK=1 of every page: what went wrong, what is wider than the window at 1280 and at
    390 pixels, its blocks of code at 1280."""
    found = {}
    for name in list(pages)[::1 if os.environ.get('ARLDM_SOAK') == '1' else 3]:
        b = browser(name, width=1280)
        wide = b.js(SEEN)
        b.ask('Emulation.setDeviceMetricsOverride', width=390, height=900, deviceScaleFactor=1, mobile=True)
        narrow, said = b.js(SEEN), trouble(b, served)
        b.ask('Emulation.setDeviceMetricsOverride', width=1280, height=900, deviceScaleFactor=1, mobile=False)
        found[name] = SimpleNamespace(said=said, wide=wide, narrow=narrow, blocks=b.js(BLOCKS))
    return found

@browses
def test_every_page_loads_and_fits(looks):
    "No error, no request elsewhere, nothing wider than the window but what scrolls by itself."
    wrong = {name: page for name, page in looks.items() if page.said or page.wide != [0, []] or page.narrow != [0, []]}
    assert not wrong, wrong

@browses
def test_code_fits(looks, browser, pages):
    "At 1280 pixels and more no block of code scrolls sideways, unless a line of it has more than 100 columns."
    found = {name: page.blocks for name, page in looks.items() if 'class="source"' in pages[name].text}
    assert len(found) > 20
    for name in 'model/history.html', 'model/arldm.html', 'train/loop.html':
        found[f'{name} at 1320'] = browser(name, width=1320).js(BLOCKS)
    for name, blocks in found.items():
        wide = [block for block in blocks if block[0] <= 100 and block[1] > 0]
        assert blocks and not wide, f'{name}: {wide}'

@browses
@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
def test_readable(browser, dark):
    "Text stands out from what is behind it."
    for name in ('index', 'trouble', 'model/history', 'score/distances', 'cli/train', 'data/index', 'genindex'):
        paper, pale = browser(f'{name}.html', dark=dark).js(CONTRAST)
        assert (paper < .1) == dark, f'{name}: the page has a luminance of {paper}'
        assert not pale, f'{name}: {pale}'

@browses
def test_search(browser, served):
    "The search finds a function, and where it is spoken of, without asking anybody else."
    b = browser('search.html?q=history_visible')
    found = b.ask('Runtime.evaluate', returnByValue=True, awaitPromise=True, expression='''new Promise(done => {
        const look = n => { const found = [...document.querySelectorAll('#search-results li a')].map(a => a.href)
            if (found.some(link => link.includes('/model/arldm.html')) || !n) done(found); else setTimeout(look, 50, n - 1) }
        look(100) })''')['result']['value']
    assert found and '/model/history.html#arldm.model.history.history_visible' in found[0]
    assert any('/model/arldm.html' in link for link in found)
    assert not trouble(b, served)

@browses
def test_transparent_figures(browser):
    "A figure that is drawn for light and dark pages shows the page behind it; the others have white paper."
    papers = browser('index.html', dark=True).js("""[...document.querySelectorAll('.cell_output img')]
        .map(i => [i.classList.contains('transparent'), getComputedStyle(i).backgroundColor])""")
    assert {tuple(paper) for paper in papers} == {(True, 'rgba(0, 0, 0, 0)'), (False, 'rgb(255, 255, 255)')}

@browses
def test_figures_are_crisp(browser):
    "A figure of many pixels is shown at half its width where there is room, and none is stretched."
    for width in 390, 1400:
        sizes = browser('score/distances.html', width=width).js('''[...document.querySelectorAll('.cell_output img')]
            .map(i => [i.naturalWidth, i.clientWidth, i.naturalHeight/i.naturalWidth - i.height/i.width])''')
        assert sizes and all(shown <= pixels and abs(bent) < .02 for pixels, shown, bent in sizes)
        if width == 1400: assert [1136, 568] in [s[:2] for s in sizes]
    strips = browser('journey.html', width=390).js("[...document.querySelectorAll('.cell_output img.wide')].map(i => i.clientWidth)")
    assert strips and set(strips) == {500}, 'captions of a strip that is as narrow as a phone cannot be read'
