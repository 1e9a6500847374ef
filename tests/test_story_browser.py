"The page that draws in a browser: bad input; and, as a long form, that it draws what Python draws, fast enough and alone."
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from browser import Browser, chromium

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not chromium(), reason='no chromium here')
soak = pytest.mark.skipif(os.environ.get('ARLDM_SOAK') != '1', reason='long: set ARLDM_SOAK=1')

# a GPU that the CPU imitates
SWIFTSHADER = '--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader'

class Quiet(SimpleHTTPRequestHandler):
    "Serves a folder without a word, and notes what it was asked for."
    def log_message(self, *_): pass

    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()

class Page:
    "A folder that is served, and a browser in it; `asked` are the paths that it asked for."
    def __init__(self, folder, profile, *flags):
        self.folder = folder
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=folder))
        self.server.asked = self.asked = []
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.home = f'http://127.0.0.1:{self.server.server_port}/'
        self.browser = Browser(profile, *flags)
        self.js = self.browser.js

    def open(self, name='draw_a_story.html', **how):
        self.browser.open(self.home + name, **how)
        self.wait('!/not started/.test(document.querySelector(".status").textContent)')

    def wait(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while not self.js(condition):
            assert time.monotonic() < end, f'{condition}: {self.status()}'
            time.sleep(.02)

    def status(self): return self.js('document.querySelector(".status").textContent')
    def notes(self): return self.js('[...document.querySelectorAll(".notes li")].map(e => e.textContent).join("\\n")')
    def press(self, button): self.js(f'document.querySelector({json.dumps(button)}).click()')

    def fill(self, field, text):
        self.js(f'''(() => {{ const e = document.querySelector({json.dumps(field)})
            e.value = {json.dumps(text)}
            e.dispatchEvent(new Event('input')) }})()''')

    def drawn(self, seconds=120): self.wait('document.querySelector("[name=stop]").hidden', seconds)

    def trouble(self):
        "What the console says, and who else was asked."
        self.js('1')
        events = self.browser.events
        said = [e['entry']['text'] for e in events('Log.entryAdded')]
        said = [text for text in said if text != 'No available adapters.']    # what Chromium says where there is no GPU
        said += [str(e) for e in events('Runtime.exceptionThrown') + events('Runtime.consoleAPICalled')]
        asked = [e['request']['url'] for e in events('Network.requestWillBeSent')]
        return said + [url for url in asked if not url.startswith((self.home, 'data:', 'blob:'))]

    def frames(self):
        "The frames as arrays."
        pixels = self.js('''[...document.querySelectorAll('.frames canvas')].map(c =>
            [c.height, c.width, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]])''')
        return [np.array(data).reshape(h, w, 4)[..., :3] for h, w, data in pixels]

    def close(self):
        self.browser.close()
        self.server.shutdown()


# bad input

def tiny_model():
    "A model with random weights and with cards."
    import torch
    from arldm.core import asset
    from arldm.model.arldm import ARLDM
    torch.manual_seed(0)
    return ARLDM.create('tiny', ARLDM.load(asset('toy/arldm')).vocab, resolution=32, n_slots=4, cast=True)

def write_page(folder):
    "Write the page alone; return the folder of what it loads."
    from story_page import SOURCE, copy_page
    (folder/'story').mkdir()
    copy_page(folder/'story')
    head = '<!doctype html><meta charset=utf-8><meta name=viewport content="width=device-width"><link rel=icon href="data:,">'
    (folder/'draw_a_story.html').write_text(head + (SOURCE/'page.html').read_text(encoding='utf-8'), encoding='utf-8')
    return folder/'story'

@pytest.fixture(scope='module')
def bare(docs, tmp_path_factory):
    "The page alone, of a model with cards; of its parts there are a few bytes."
    from export_onnx import write_manifest
    from story_page import RUNTIME
    folder = tmp_path_factory.mktemp('bare')
    story = write_page(folder)
    write_manifest(tiny_model(), {}, story, parts=dict(caption_encoder=dict(file='caption_encoder.onnx', bytes=900)),
        runtime_bytes=[14_000_000, 17_000_000])
    (story/'caption_encoder.onnx').write_bytes(b'x'*100)
    # the runtime is not reached: what comes before it fails
    (story/RUNTIME[0]).write_text('export const env = {wasm: {}}')
    page = Page(folder, tmp_path_factory.mktemp('profile'))
    yield page
    page.close()

FIRST = '.frames li:first-child textarea'

def test_captions_and_numbers(bare):
    "An empty caption, numbers that are none and captions that are too long or unknown are named; nothing is drawn."
    bare.open()
    assert bare.status() == 'ready; the first drawing loads 14 MB, with WebGPU 17 MB'
    assert bare.js('document.querySelectorAll(".frames li").length') == 4    # as many as memory holds
    assert bare.js('[document.querySelector("[name=more]").disabled, document.querySelector("[name=fewer]").disabled]') == [True, False]
    for field, text, line in (
            (FIRST, '  ', 'caption 1 is empty; say what the frame shows, or take the frame away'),
            ('[name=seed]', '-1', 'seed must be a whole number from 0 to 4294967295, got -1'),
            ('[name=guidance]', 'much', 'guidance must be a number from 0 to 20, got much'),
            ('[name=steps]', '', 'steps must be a whole number from 1 to 100, got nothing')):
        before = bare.js(f'document.querySelector({json.dumps(field)}).value')
        bare.fill(field, text)
        bare.press('.draw')
        assert bare.status() == line and bare.js('document.querySelector("[name=stop]").hidden')
        assert bare.js(f'document.activeElement === document.querySelector({json.dumps(field)})')
        bare.fill(field, before)
    bare.fill(FIRST, 'a zebra and a red star ' + 'jumps '*300)    # and letters of the zebra
    assert 'does not know: zebra; pictures will not show that' in bare.notes()
    assert 'caption 1 is too long: of its 312 tokens the model reads 36' in bare.notes()
    bare.press('[name=fewer]')
    assert bare.js('document.querySelectorAll(".frames li").length') == 3
    assert bare.trouble() == []

DROP = '''(async () => { const all = new DataTransfer(), box = document.querySelector('.cast')
    for (const [name, kind, bytes] of %s) all.items.add(new File([Uint8Array.from(bytes)], name, {type: kind}))
    box.dispatchEvent(new DragEvent('drop', {dataTransfer: all, bubbles: true, cancelable: true})) })()'''

def test_cards(bare, tmp_path):
    "Pictures become cards; a file that is none is named, and so is one too many; the others stay."
    bare.open()
    bare.wait('document.querySelectorAll(".cards li").length > 0')
    n = bare.js('document.querySelectorAll(".cards li").length')    # of the example
    Image.new('RGB', (30, 20), 'red').save(tmp_path/'red.png')
    png = list((tmp_path/'red.png').read_bytes())
    bare.js(DROP % json.dumps([['cat.txt', 'text/plain', [1, 2]]]))
    bare.wait('document.querySelector(".status").classList.contains("wrong")')
    assert bare.status() == 'cat.txt is no picture that this browser can read; the others are kept'
    bare.js(DROP % json.dumps([[f'Zed{i}.png', 'image/png', png] for i in range(4)]))
    bare.wait('/room for/.test(document.querySelector(".status").textContent)')
    left = ', '.join(f'Zed{i}.png' for i in range(3 - n, 4))
    assert bare.status() == f'the model has room for 3 cards; take one away before adding {left}'
    assert bare.js('document.querySelectorAll(".cards li").length') == 3 > n
    assert 'no caption mentions Zed0; the card is used all the same' in bare.notes()
    bare.press('.cards li:last-child button')
    assert bare.js('document.querySelectorAll(".cards li").length') == 2

def test_cards_of_the_last_example(bare):
    "Of examples chosen one after the other, while pictures are still read."
    bare.open()
    stories = json.loads((bare.folder/'story/model.json').read_text())['examples']
    last = max(range(len(stories)), key=lambda i: len(stories[i]['cast']))
    choose = '(i => { const e = document.querySelector("[name=example]"); e.value = i; e.dispatchEvent(new Event("change")) })'
    for i in [*range(len(stories)), last]: bare.js(f'{choose}({i})')
    bare.wait(f'document.querySelectorAll(".cards li").length >= {len(stories[last]["cast"])}')
    time.sleep(.3)    # for those that should not come
    assert bare.js('[...document.querySelectorAll(".cards input")].map(e => e.value)') == list(stories[last]['cast'])

# In place of the worker: frames of one colour at once, and a note of what was asked. What would be downloaded is noted, too.
PLAIN = '''asked = []; texts = []
Worker = class extends EventTarget {
    terminate() { asked.push('terminated') }
    postMessage(message) {
        asked.push(message)
        const answer = data => this.dispatchEvent(new MessageEvent('message', {data}))
        const numbers = message.task === 'draw' ? [...message.captions.keys()] : [message.k]
        const text = message.caption ?? message.captions[0]
        if (text === 'hang') return
        setTimeout(() => {
            if (text === 'fail') return answer({said: 'failed', why: 'no room'})
            for (const k of numbers) {
                answer({said: 'step', k, step: 1, steps: 1})
                answer({said: 'frame', k, picture: {width: 4, height: 4, rgb: new Uint8ClampedArray(48)}})
            }
            answer({said: 'done', seconds: 1.26, runtime: 'WebAssembly'})
        })
    }
}
HTMLAnchorElement.prototype.click = () => {}
CanvasRenderingContext2D.prototype.fillText = text => texts.push(text)'''

def test_what_belongs_to_a_picture(bare):
    "The strip has the captions that were drawn; a frame is drawn again with the cards of now; another example clears all."
    script = bare.browser.ask('Page.addScriptToEvaluateOnNewDocument', source=PLAIN)
    bare.open()
    bare.wait('document.querySelectorAll(".cards li").length > 0')
    caption = bare.js(f'document.querySelector("{FIRST}").value')
    bare.press('.draw')
    bare.drawn()
    assert bare.status() == '4 frames drawn in 1.3 s, WebAssembly'
    n = bare.js('asked[0].cast.length')
    bare.fill(FIRST, 'something else')
    bare.js('texts = []')
    bare.press('[name=download]')
    bare.wait('texts.length > 0')
    said = ' '.join(bare.js('texts'))
    assert said.startswith(caption) and 'something' not in said
    bare.press('.cards li:last-child button')
    bare.press('.frames li:nth-child(2) button')
    bare.drawn()
    assert bare.js('[asked[1].task, asked[1].k, asked[1].cast.length]') == ['redraw', 1, n - 1]
    assert bare.js('document.activeElement.ariaLabel') == 'Redraw frame 2'
    bare.js('(e => { e.value = 1; e.dispatchEvent(new Event("change")) })(document.querySelector("[name=example]"))')
    assert bare.js('document.querySelector("canvas").ariaLabel') == 'Frame 1, not drawn yet'
    assert bare.js('document.querySelector("[name=download]").disabled')
    bare.browser.ask('Page.removeScriptToEvaluateOnNewDocument', **script)

@pytest.fixture
def plain(bare):
    "The page with a worker that draws frames of one colour, fails at the caption *fail*, and loads for ever at *hang*."
    script = bare.browser.ask('Page.addScriptToEvaluateOnNewDocument', source=PLAIN)
    bare.open()
    bare.wait('document.querySelectorAll(".cards li").length > 0')
    yield bare
    bare.browser.ask('Page.removeScriptToEvaluateOnNewDocument', **script)

def choose(page, value):
    page.js(f'(e => {{ e.value = {json.dumps(value)}; e.dispatchEvent(new Event("change")) }})(document.querySelector("[name=example]"))')

def test_a_story_of_ones_own_is_not_lost(plain):
    "Examples take its place, and *captions of your own* brings it back, with its cards."
    plain.fill(FIRST, 'mine')
    plain.press('.cards li:last-child button')
    assert plain.js('document.querySelector("[name=example]").value') == ''
    names = plain.js('[...document.querySelectorAll(".cards input")].map(e => e.value)')
    for example in '1', '0': choose(plain, example)
    plain.wait('document.querySelectorAll(".cards li").length > 1')
    assert plain.js(f'document.querySelector("{FIRST}").value') != 'mine'
    choose(plain, '')
    assert plain.js(f'document.querySelector("{FIRST}").value') == 'mine'
    assert plain.js('[...document.querySelectorAll(".cards input")].map(e => e.value)') == names

def test_names_of_cards(plain):
    "Empty and equal ones are refused; a name inside another word is not mentioned."
    field = '.cards li:first-child input'
    plain.fill(field, ' ')
    plain.press('.draw')
    assert plain.status() == 'a card has no name; give it one, such as Ada'
    other = plain.js('document.querySelector(".cards li:last-child input").value')
    plain.fill(field, other.upper())
    plain.press('.draw')
    assert plain.status() == f'two cards are named {other}; names must differ'
    plain.fill(field, 'Eve')
    plain.fill(FIRST, 'Bo waits in the evening')
    assert 'no caption mentions Eve; the card is used all the same' in plain.notes()
    plain.fill(FIRST, 'then eve waits')
    assert 'no caption mentions Eve' not in plain.notes()

def test_pictures_outlive_a_failure(plain):
    "They can be downloaded, but not drawn again: the worker's memory of them is gone."
    plain.press('.draw')
    plain.drawn()
    plain.fill(FIRST, 'fail')
    plain.press('.frames li:first-child button')
    plain.drawn()
    assert plain.status() == 'no room' and plain.js('asked.at(-1)') == 'terminated'
    assert not plain.js('document.querySelector("[name=download]").disabled')
    assert plain.js('[...document.querySelectorAll(".frames button")].every(e => e.disabled)')

def test_stop_while_the_model_loads(plain):
    plain.fill(FIRST, 'hang')
    plain.press('.draw')
    plain.press('[name=stop]')
    assert plain.status() == 'stopped' and plain.js('asked.at(-1)') == 'terminated'
    plain.fill(FIRST, 'a red star')
    plain.press('.draw')
    plain.drawn()
    assert '4 frames drawn' in plain.status()

def test_files(bare):
    "A part that is cut short or missing, no model.json, and a browser without SIMD: a line each."
    bare.open()
    bare.press('.draw')
    bare.drawn(30)
    assert bare.status() == 'caption_encoder.onnx is cut short: 100 of 900 bytes'
    assert [path for path in bare.asked if '/ort' in path] == ['/story/ort.wasm.bundle.min.mjs']    # there is no GPU here
    part = bare.folder/'story/caption_encoder.onnx'
    part.rename(part.with_suffix('.away'))
    bare.press('.draw')
    bare.drawn(30)
    assert bare.status() == 'caption_encoder.onnx could not be loaded: the server says 404'
    manifest = bare.folder/'story/model.json'
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:len(whole)//2])
    bare.open()
    assert bare.status() == 'model.json is cut short or damaged; load the page again'
    manifest.write_bytes(whole)
    manifest.rename(manifest.with_suffix('.away'))
    bare.open()
    assert bare.status() == 'model.json could not be loaded: the server says 404'
    script = bare.browser.ask('Page.addScriptToEvaluateOnNewDocument', source='WebAssembly.validate = () => false')
    bare.open()
    assert bare.status().startswith('this browser has no WebAssembly SIMD')
    bare.browser.ask('Page.removeScriptToEvaluateOnNewDocument', **script)
    manifest.with_suffix('.away').rename(manifest)
    part.with_suffix('.away').rename(part)


# WebGPU

@pytest.fixture(scope='module')
def imitated(docs, tmp_path_factory):
    "The page of a tiny model, in a browser whose GPU is imitated."
    if not find_spec('onnx'): pytest.skip('to export, the package onnx is missing: pip install -e .[dev]')
    import torch
    from arldm.core import StoryError, asset
    from arldm.files.atomic import load_json
    from export_onnx import write_manifest, write_parts
    from story_page import RUNTIME, WEBGPU, install_runtime
    try: dist = install_runtime()
    except StoryError as e: pytest.skip(str(e))

    class FewOperations(torch.nn.Module):
        "In place of a UNet: for all the operations of one, SwiftShader takes a quarter of a minute."
        def __init__(self, config):
            super().__init__()
            self.config = config
            self.conv = torch.nn.Conv2d(config.in_channels, config.out_channels, 3, padding=1)

        def forward(self, latents, t, encoder_hidden_states):
            return SimpleNamespace(sample=self.conv(latents) + encoder_hidden_states.mean() + t/1000)

    folder = tmp_path_factory.mktemp('imitated')
    story = write_page(folder)
    model = tiny_model()
    model.unet = FewOperations(model.unet.config)
    model.vae.decoder.conv_out.weight.data *= 8
    scheduler = load_json(asset('toy/arldm')/'scheduler/scheduler_config.json')
    write_manifest(model, scheduler, story, parts=write_parts(model, story), runtime_bytes=[0, 0])
    for name in (*RUNTIME, *WEBGPU): shutil.copy(dist/name, story)
    page = Page(folder, tmp_path_factory.mktemp('profile'), *SWIFTSHADER)
    yield page
    page.close()

def draw(page, query='', script=''):
    "What the page draws and says, with a script before that of the worker."
    worker = page.folder/'story/worker.js'
    whole = worker.read_text(encoding='utf-8')
    worker.write_text(script + whole, encoding='utf-8')
    page.open(f'draw_a_story.html?{query}&{len(page.asked)}')    # another address each time, so that nothing is cached
    page.wait('document.querySelectorAll(".cards li").length > 0')
    page.fill('[name=steps]', '3')
    page.press('.draw')
    page.drawn()
    worker.write_text(whole, encoding='utf-8')
    assert page.trouble() == []
    m = re.fullmatch(r'4 frames drawn in \d+\.\d s, (.*)', page.status())
    assert m, page.status()
    return np.stack(page.frames()), m[1]

@pytest.fixture(scope='module')
def on_cpu(imitated):
    "The frames without WebGPU, of which nothing is loaded if there is no other GPU than an imitated one."
    before = len(imitated.asked)
    frames, runtime = draw(imitated)
    loaded = [path for path in imitated.asked[before:] if '/ort' in path]
    assert runtime == 'WebAssembly' and len(loaded) == 2 and not any('jspi' in path for path in loaded)
    assert frames.std((1, 2, 3)).min() > 5, 'frames that are almost plain prove nothing'
    return frames

def test_webgpu(imitated, on_cpu):
    "It draws the same frames."
    frames, runtime = draw(imitated, 'webgpu')
    assert runtime == 'WebGPU' and np.abs(frames - on_cpu).max() <= 1

# before the worker: `device` is the GPU's, and what is done at the sixth call of the UNet
AT_SIXTH = '''const {requestDevice} = GPUAdapter.prototype, {mapAsync} = GPUBuffer.prototype
let device, calls = 0
GPUAdapter.prototype.requestDevice = async function (...how) { return device = await requestDevice.apply(this, how) }
GPUBuffer.prototype.mapAsync = function (...how) { if (++calls === 6) { %s } return mapAsync.apply(this, how) }
'''

@pytest.mark.parametrize('query, script, why', [
    ('webgpu', 'GPUAdapter.prototype.requestDevice = () => Promise.reject(new Error("no device"))\n', '.*no device'),
    pytest.param('webgpu', 'GPUQueue.prototype.submit = () => {}\n', 'it gives other numbers', marks=soak),
    pytest.param('webgpu', AT_SIXTH % 'device.destroy()', ".*mapAsync.*", marks=soak),
    pytest.param('webgpu', AT_SIXTH % 'device.createBuffer({size: 16, usage: 0})', '.*usage.*', marks=soak),
    pytest.param('webgpu', AT_SIXTH % 'device.dispatchEvent(new GPUUncapturedErrorEvent("uncapturederror", '
        '{error: new GPUOutOfMemoryError("none left")}))', 'none left', marks=soak),
    pytest.param('', 'Object.defineProperty(GPUAdapterInfo.prototype, "isFallbackAdapter", {get: () => false})\n',
        r'a call takes \d+ ms, without it \d+ ms', marks=soak)], ids=['no device', 'numbers', 'lost', 'error', 'memory', 'slow'])
def test_webgpu_given_up(imitated, on_cpu, query, script, why):
    "A GPU that fails, gives wrong numbers or is slower is left, with a word; the frames are the same."
    frames, runtime = draw(imitated, query, script)
    assert re.fullmatch(rf'WebAssembly \(WebGPU given up: {why}\)', runtime), runtime
    assert np.abs(frames - on_cpu).max() <= 1


# the whole page, of the site

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The site as `make docs` builds it."
    if not shutil.which('npm') or not find_spec('onnx'): pytest.skip('the page needs npm and the package onnx')
    out = tmp_path_factory.mktemp('docs')/'site'
    said = subprocess.run([sys.executable, ROOT/'docs/build.py', '--out', out], capture_output=True, text=True, cwd=ROOT)
    assert said.returncode == 0, said.stderr[-4000:]
    if 'cannot draw' in said.stdout: pytest.skip(said.stdout.strip())
    page = Page(out, tmp_path_factory.mktemp('profile'))
    yield page
    page.close()

@soak
def test_first_strip(site):
    "Five frames after the first click, with nothing in the console and nobody else asked; the page stays responsive."
    site.open()
    site.js('''(() => { let last = performance.now()
        window.longest = 0
        const beat = now => { window.longest = Math.max(window.longest, now - last); last = now; requestAnimationFrame(beat) }
        requestAnimationFrame(beat) })()''')
    start = time.monotonic()
    site.press('.draw')
    site.drawn()
    seconds = time.monotonic() - start
    assert re.fullmatch(r'5 frames drawn in \d+\.\d s, WebAssembly', site.status()) and site.trouble() == []
    print(f'first strip {seconds:.1f} s after the click; longest time between two frames of the page '
          f'{site.js("window.longest"):.0f} ms')

@soak
def test_frames_are_those_of_python(site):
    "What the page draws at first, and a frame drawn again, is what the chapter draws, within a grey level."
    from arldm.core import asset
    from arldm.draw.pipeline import StoryPipeline
    from arldm.files.pictures import decode
    from arldm.toy.corpus import toy_story
    pipe = StoryPipeline.from_pretrained(asset('toy/arldm'))
    pipe.set_progress_bar_config(disable=True)
    captions = site.js('[...document.querySelectorAll("textarea")].map(e => e.value)')
    story = toy_story(3, cards=pipe.history.config.cast)
    assert captions == list(story.captions)
    sampling = dict(cast={name: decode(png) for name, png in story.cast.items()}, num_inference_steps=15, guidance_scale=2.)
    frames = pipe(captions, seed=0, **sampling).images
    off = [np.abs(a - np.asarray(b).astype(int)).max() for a, b in zip(site.frames(), frames)]
    assert len(off) == 5 and max(off) <= 1, off
    site.press('.frames li:nth-child(4) button')
    site.drawn()
    again, = pipe(captions, given=frames, redraw=4, seed=1, **sampling).images
    assert site.status().startswith('frame 4 drawn again with seed 1 in ') and np.abs(site.frames()[3] - np.asarray(again).astype(int)).max() <= 1

@soak
def test_frames_of_webgpu_are_those_of_python(site, tmp_path):
    "With the UNet that comes with the book; two frames of two steps, since a GPU that is imitated takes seconds for a call."
    from arldm.core import asset
    from arldm.draw.pipeline import StoryPipeline
    from arldm.files.pictures import decode
    from arldm.toy.corpus import toy_story
    page = Page(site.folder, tmp_path, *SWIFTSHADER)
    try:
        page.open('draw_a_story.html?webgpu')
        for _ in range(3): page.press('[name=fewer]')
        page.fill('[name=steps]', '2')
        page.press('.draw')
        page.drawn(600)
        assert re.fullmatch(r'2 frames drawn in \d+\.\d s, WebGPU', page.status()) and page.trouble() == []
        drawn = page.frames()
    finally: page.close()
    pipe = StoryPipeline.from_pretrained(asset('toy/arldm'))
    pipe.set_progress_bar_config(disable=True)
    story = toy_story(3, cards=pipe.history.config.cast)
    cast = {name: decode(png) for name, png in story.cast.items()}
    frames = pipe(list(story.captions[:2]), seed=0, cast=cast, num_inference_steps=2, guidance_scale=2.).images
    off = [np.abs(a - np.asarray(b).astype(int)).max() for a, b in zip(drawn, frames)]
    assert len(off) == 2 and max(off) <= 1, off

def resident(pid):
    "Megabytes in memory of a process and all that it started."
    total = int(Path(f'/proc/{pid}/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE')/1e6
    for task in Path(f'/proc/{pid}/task').iterdir():
        for child in (task/'children').read_text().split(): total += resident(child)
    return total

@soak
@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='no /proc here')
def test_memory_is_stable(site):
    "After ten more stories the browser takes hardly more memory than after two."
    used = []
    for seed in range(10):
        site.fill('[name=seed]', str(seed))
        site.press('.draw')
        site.drawn()
        used.append(resident(site.browser.process.pid))
    print('MB after each story:', *map(round, used))
    assert used[-1] < 1.15*used[1]

@soak
def test_keyboard_and_stop(site):
    "Enter in a field draws; Stop stops; the strip can be downloaded then."
    site.open()
    site.js('document.querySelector("[name=seed]").focus()')
    for kind in 'keyDown', 'keyUp':
        site.browser.ask('Input.dispatchKeyEvent', type=kind, key='Enter', code='Enter', windowsVirtualKeyCode=13, text='\r')
    site.wait('/^frame 2/.test(document.querySelector(".status").textContent)')
    assert site.js('document.activeElement.name') == 'stop'
    site.press('[name=stop]')
    site.drawn()
    assert site.status() == 'stopped' and site.js('document.activeElement.className') == 'draw'
    assert site.js('document.querySelector("[name=download]").disabled') is False
    assert site.js('[...document.querySelectorAll(".frames button")].map(b => b.disabled)') == [False] + [True]*4

@soak
@pytest.mark.parametrize('width', [390, 1400])
@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
def test_can_be_read(site, width, dark):
    "Nothing wider than the window, and every text stands out from what is behind it."
    from test_docs import CONTRAST, SEEN
    site.open(width=width, dark=dark)
    assert site.js(SEEN) == [0, []]
    _, pale = site.js(CONTRAST)
    assert not pale, pale
