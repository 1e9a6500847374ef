"The wheel: built without a network, installed where no repository is, and its demo run there; what loads torch and when."
import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = 'arldm', 'data', 'nbs', 'settings.ini', 'setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE', \
    'constraints.txt', 'CHANGELOG.md', 'CONTRIBUTING.md', 'CITATION.cff'
WORKING = {'data/toy/raw/SSID_Annotations/SSID_Test.json': '[]', 'data/toy/toy.h5': '', 'data/ssid/album.json': '[]'}

def said(*command, **how):
    "What a command prints; where it fails, all of it is shown."
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | dict(OMP_NUM_THREADS='1', TQDM_DISABLE='1')
    r = subprocess.run([*map(str, command)], capture_output=True, text=True, env=env, **how)
    assert r.returncode == 0, r.stdout + r.stderr
    return r.stdout

@pytest.fixture(scope='module')
def dist(tmp_path_factory):
    "Source distribution and wheel, made from a copy of the repository in which somebody has worked."
    copy = tmp_path_factory.mktemp('copy')
    for name in SOURCES:
        if (ROOT/name).is_dir():
            shutil.copytree(ROOT/name, copy/name, ignore=shutil.ignore_patterns('__pycache__', '.*', '*.h5', 'raw'))
        else: shutil.copy(ROOT/name, copy)
    for name, text in WORKING.items():
        (copy/name).parent.mkdir(parents=True, exist_ok=True)
        (copy/name).write_text(text)
    log = said(sys.executable, '-m', 'build', '--no-isolation', '.', cwd=copy)
    assert 'no files found matching' not in log and 'absent from the `packages`' not in log, log
    return copy/'dist'

@pytest.fixture(scope='module')
def wheel(dist): return next(dist.glob('*.whl'))

@pytest.fixture(scope='module')
def clean(wheel, tmp_path_factory):
    "The bin folder of an environment with the wheel in it; requirements are those of the one that runs this."
    place = tmp_path_factory.mktemp('clean')/'env'
    said(sys.executable, '-m', 'venv', '--without-pip', place)
    python = place/'bin/python'
    site = Path(said(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))').strip())
    (site/'requirements.pth').write_text(sysconfig.get_path('purelib'))
    said(sys.executable, '-m', 'pip', '--python', python, 'install', '--no-deps', '--no-index', wheel)
    return place/'bin'

def shipped():
    "Every file of the small models, and the templates of the report."
    return {f'arldm/assets/{p.relative_to(ROOT/"data")}' for name in ('toy/base', 'toy/arldm', 'report')
        for p in (ROOT/'data'/name).rglob('*.*') if p.is_file()}

def test_what_travels(wheel):
    "All modules, the small models and the templates; nothing that somebody made in the folder; below 40 MB."
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(p.relative_to(ROOT)) for p in (ROOT/'arldm').rglob('*.py')}
    assert not (modules | shipped()) - names
    assert not [name for name in names if name.endswith('.h5') or '/raw/' in name or 'album' in name]
    assert {name.split('/')[0].split('-')[0] for name in names} == {'arldm'}
    assert wheel.stat().st_size < 40e6

def test_notebooks_travel_with_the_source(dist):
    names = said(sys.executable, '-m', 'tarfile', '-l', next(dist.glob('*.tar.gz')))
    for path in [*(ROOT/'nbs').rglob('[!.]*.ipynb'), ROOT/'CHANGELOG.md']:
        assert f'/{path.relative_to(ROOT)} ' in names.replace('\n', ' \n'), path
    assert '/raw/' not in names and '.h5' not in names

def test_metadata(wheel):
    with zipfile.ZipFile(wheel) as z:
        name = next(n for n in z.namelist() if n.endswith('METADATA'))
        facts = email.message_from_bytes(z.read(name))
    assert facts['Name'] == 'arldm' and facts['License-Expression'] == 'Apache-2.0'
    oldest = int(re.fullmatch(r'>=3\.(\d+)', facts['Requires-Python'])[1])
    pythons = [int(x) for x in re.findall(r'Python :: 3\.(\d+)', '\n'.join(facts.get_all('Classifier')))]
    assert pythons == [*range(oldest, pythons[-1] + 1)] and pythons[-1] >= 13

def test_installed_alone(clean, tmp_path):
    "The package that runs is the installed one, and so are its models."
    code = 'import arldm.core as c; print(c.__file__, c.asset("toy/base"), c.asset("toy/arldm"), sep="\\n")'
    places = said(clean/'python', '-c', code, cwd=tmp_path).split()
    assert len(places) == 3 and all(Path(p).is_relative_to(clean.parent) for p in places), places

def test_demo_without_the_repository(clean, tmp_path):
    "From raw stories to a report; a smaller world than the demo's own, and one step of training."
    code = 'from arldm.cli import demo as demos; demos.DEMO_ALBUMS = 8, 2, 2; demos.demo(out="demo", max_train_steps=1, limit=1, histories=0)'
    report = said(clean/'python', '-c', code, cwd=tmp_path).split()[-1]
    assert (tmp_path/report).name == 'report.html' and '<html' in (tmp_path/report).read_text(encoding='utf-8')
    assert (tmp_path/'demo/scores.json').is_file()

LIGHT = ['import arldm', 'import arldm.core', 'import arldm.settings', 'import arldm.data.story', 'import arldm.data.corpora',
    *(f'from arldm.{module} import {name}; sys.argv[1:] = ["--help"]; {name}()'
      for module, name in (('cli.convert', 'convert'), ('cli.fetch_vist', 'fetch_vist')))]

@pytest.mark.parametrize('code', LIGHT)
def test_light(code):
    "No torch, no diffusers and no matplotlib for what needs none."
    heavy = 'torch', 'diffusers', 'transformers', 'accelerate', 'matplotlib'
    said(sys.executable, '-c', f'''import atexit, os, sys
sys.path.insert(0, {str(ROOT)!r})
def end():
    sys.stdout.flush()
    os._exit(hasattr(sys, 'last_type') or bool([print(m) for m in {heavy} if m in sys.modules]))
atexit.register(end)
{code}''')
