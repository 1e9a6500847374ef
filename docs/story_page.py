"""The page that draws: what the folder story/ of the site holds.

The modules of JavaScript in docs/story, the pipeline as ONNX, and ONNX Runtime from npm.
"""
import json
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from arldm.core import StoryError, asset
from arldm.files.atomic import whole_folder

SOURCE = Path(__file__).resolve().parent/'story'
PIPELINE = 'toy/arldm'   # of the assets, see `arldm.asset`
# of onnxruntime-web: the module, and what it loads
RUNTIME = 'ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.wasm'
WEBGPU = 'ort.jspi.bundle.min.mjs', 'ort-wasm-simd-threaded.jspi.wasm'   # if there is a GPU
CHAPTER = 'draw_a_story'  # on whose page it stands


def install_runtime():
    "Return the folder of ONNX Runtime; npm installs it at the pinned version unless it is there."
    # npm empties the folder first, so two processes must not install at once
    with FileLock(SOURCE/'node_modules.lock'): return _installed()


def _installed():
    package = SOURCE/'node_modules/onnxruntime-web'
    pinned = json.loads((SOURCE/'package.json').read_text())['dependencies'][package.name]
    installed = package/'package.json'
    needed = [installed, *(package/'dist'/name for name in (*RUNTIME, *WEBGPU))]
    is_whole = all(path.is_file() for path in needed)
    if is_whole and json.loads(installed.read_text())['version'] == pinned: return package/'dist'
    if not shutil.which('npm'): raise StoryError('npm is not installed')
    command = ['npm', 'ci', '--ignore-scripts', '--no-audit', '--no-fund', '--prefix', str(SOURCE)]
    said = subprocess.run(command, capture_output=True, text=True)
    if said.returncode:
        reason = (said.stderr.strip() or said.stdout.strip() or 'no reason given').splitlines()[0]
        raise StoryError(f'npm could not install onnxruntime-web ({reason})')
    return package/'dist'


def copy_page(out):
    "Copy the modules of the page and its style sheet."
    for path in [*SOURCE.glob('*.js'), SOURCE/'page.css']: shutil.copy(path, out)


def write_story_folder(out, pipeline):
    "Write the folder of the page, which does not exist yet, or raise `StoryError`."
    dist = install_runtime()
    if not find_spec('onnx'): raise StoryError('the Python package onnx is not installed')
    from export_onnx import export   # needs onnx
    with whole_folder(out) as tmp:
        copy_page(tmp)
        sizes = []
        for names in RUNTIME, WEBGPU:
            for name in names: shutil.copy(dist/name, tmp)
            sizes.append(sum((tmp/name).stat().st_size for name in names))
        export(pipeline, tmp, runtime_bytes=sizes)


def story_form(out):
    "Return the page as HTML, and write what it loads; a note if that fails."
    try: write_story_folder(out, asset(PIPELINE))
    except StoryError as e:
        print(f'the page {CHAPTER}.html cannot draw: {e}; all else is built')
        return ('*This copy of the site was built without what the page needs to draw: '
                '`make docs` says what is missing.*')
    return (SOURCE/'page.html').read_text(encoding='utf-8').strip()
