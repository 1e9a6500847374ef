"The rules of the house: what every chapter, module and settings file keeps to."
import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

try: import tomllib
except ImportError: import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PARTS = 'files', 'data', 'toy', 'model', 'train', 'draw', 'score', 'report', 'cli', 'lab', 'bench'   # in the order of imports
NOTEBOOKS = sorted(path for path in (ROOT/'nbs').rglob('*.ipynb') if path.parent.name[0] != '.')
CHAPTERS = sorted((path for path in NOTEBOOKS if path.name[:2].isdigit()), key=lambda path: path.name)
MODULES = sorted(path for path in (ROOT/'arldm').rglob('*.py') if path.stem[0] != '_')
CORPORA = 'folder', 'toy', 'ssid', 'vist', 'pororo', 'flintstones'
DYNAMIC = {'version', 'description', 'keywords', 'authors', 'license', 'classifiers', 'dependencies',
    'optional-dependencies', 'scripts', 'entry-points', 'readme'}
ENTRIES = {'description', 'keywords', 'author', 'license', 'classifiers', 'newest_python', 'requirements', 'dev_requirements',
    'lite_requirements', 'console_scripts'}
FORBIDDEN = {'torchvision', 'torch-fidelity', 'scipy'}
DIRECTIVE = re.compile(r'#\s*\|\s*(\w+)\s*:?\s*(.*)')
IMPORTED_AS = {'pil': 'pillow', 'huggingface_hub': 'huggingface-hub'}   # imported name -> required name, where they differ
TRIED = {('bench/gpu_rows.py', 'pytest'), ('train/optim.py', 'bitsandbytes'), ('draw/panel.py', 'ipywidgets'), ('draw/panel.py', 'ipython'), ('data/strips.py', 'ipython'), ('train/trackers.py', 'wandb')}   # what may be absent, with one clear line


def each(paths): return pytest.mark.parametrize('path', paths, ids=lambda path: path.relative_to(ROOT).as_posix())

def dotted(path):
    "arldm/data/story.py is data.story."
    return '.'.join(path.relative_to(ROOT/'arldm').with_suffix('').parts)

def cells(path, kind='code'):
    "The cells of one kind in a notebook, each with its `text` and, for code, its `directives` and `body` without them."
    found = []
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
        if cell['cell_type'] != kind: continue
        text = ''.join(cell['source'])
        directives = {m[1]: m[2].strip() for m in map(DIRECTIVE.match, text.splitlines()) if m}
        body = [line for line in text.splitlines() if not DIRECTIVE.match(line)]
        found.append(SimpleNamespace(id=cell['id'], text=text, directives=directives, body=body,
            outputs=cell.get('outputs', [])))
    return found

def module_of(path):
    "The module a chapter exports, or None."
    return next((cell.directives['default_exp'] for cell in cells(path) if 'default_exp' in cell.directives), None)

@cache
def order():
    "Module -> the chapter's number: '16', or '16a' for one between 16 and 17."
    return {module_of(path): path.stem.partition('_')[0] for path in CHAPTERS if module_of(path)}

def tree(path): return ast.parse(path.read_text(encoding='utf-8'))

def imports(node):
    "(level, module, names) of every import under `node`, wherever it stands."
    for one in ast.walk(node):
        if isinstance(one, ast.Import): yield from ((0, alias.name, []) for alias in one.names)
        if isinstance(one, ast.ImportFrom): yield one.level, one.module or '', [alias.name for alias in one.names]

def our_modules(node, module='here'):
    "The modules of our own package, such as data.story, imported under `node` in a module of ours."
    for level, name, names in imports(node):
        parts = name.split('.') if name else []
        if level: parts = module.split('.')[:-level] + parts
        elif parts[0] == 'arldm': parts = parts[1:]
        else: continue
        if parts in ([], *([part] for part in PARTS)): yield from ('.'.join([*parts, one]) for one in names)
        else: yield '.'.join(parts)

def plain(text):
    "Python out of a notebook cell: magics and shell lines left out."
    return '\n'.join('pass' if re.match(r'[%!]', line) else line for line in text.splitlines())

def settings():
    config = ConfigParser(interpolation=None)
    config.read(ROOT/'settings.ini', encoding='utf-8')
    return config['DEFAULT']

def lines(name): return [line for line in settings()[name].splitlines() if line]

def required(*entries):
    "Names of the required packages."
    return {re.match(r'[\w.-]+', line)[0].lower().replace('_', '-') for entry in entries for line in lines(entry)}

def setup_call(monkeypatch):
    "What setup.py hands to setuptools."
    said = {}
    fake = SimpleNamespace(setup=lambda **facts: said.update(facts), find_packages=lambda **_: [])
    monkeypatch.setitem(sys.modules, 'setuptools', fake)
    exec((ROOT/'setup.py').read_text(encoding='utf-8'), dict(__file__=str(ROOT/'setup.py')))
    return said


# the book

@each(NOTEBOOKS)
def test_opening(path):
    "A chapter opens with its title and its claim."
    first = cells(path, 'markdown')[0].text.splitlines()
    assert first[0].startswith('# '), 'the first cell opens with "# Title"'
    assert any(line.startswith('> ') for line in first[1:]), 'a "> " claim follows the title'

@each(NOTEBOOKS)
def test_notebook_size(path):
    assert path.stat().st_size <= 400_000, 'smaller figures (dpi), fewer stored outputs'

@each(NOTEBOOKS)
def test_no_saved_error(path):
    assert not [cell.id for cell in cells(path) for output in cell.outputs if output['output_type'] == 'error']

@each([path for path in NOTEBOOKS if not path.stem.endswith('_panel')])   # panel: in Jupyter its cell is the panel itself
def test_saved_results_survive_run_all(path):
    found = cells(path)
    if any(cell.directives.get('eval') == 'false' and cell.outputs for cell in found):
        assert any('keep_saved()' in cell.body for cell in found), 'Run All would start hours of work and wipe its result'

@each(NOTEBOOKS)
def test_code_cells(path):
    "Exported cells are short; no line of code is wide; nothing is star-imported from our own package."
    wrong = []
    for cell in cells(path):
        if {'export', 'exporti', 'exports'} & cell.directives.keys() and len(cell.body) > 40:
            wrong.append(f'cell {cell.id}: {len(cell.body)} exported lines')
        wrong += [f'cell {cell.id}: {len(line)} columns: {line.strip()[:40]}' for line in cell.body if len(line) > 100]
        wrong += [f'cell {cell.id}: a star import from {module}' for level, module, names in
            imports(ast.parse(plain(cell.text))) if '*' in names and (level or module.split('.')[0] == 'arldm')]
    assert not wrong, '\n'.join(wrong)

@each(CHAPTERS)
def test_named_alike(path):
    "nbs/data/15_dataset.ipynb exports arldm/data/dataset.py."
    assert re.fullmatch(r'\d\d[a-z]?_\w+', path.stem)
    part, name = path.parent.relative_to(ROOT/'nbs').as_posix(), path.stem.partition('_')[2]
    if (module := module_of(path)): assert module == (name if part == '.' else f'{part}.{name}')

def test_numbers_follow_the_parts():
    "Chapters are numbered through the whole book, part after part."
    numbers = [path.stem.partition('_')[0] for path in CHAPTERS]
    assert len({*numbers}) == len(numbers)
    places = [path.parent.relative_to(ROOT/'nbs').as_posix() for path in CHAPTERS]
    assert list(dict.fromkeys(places)) == ['.', *PARTS]


# the modules

GROWS = {'model.arldm': 600}   # one class, which grows through five chapters

def test_module_size():
    "Lines that chapters export, without what export adds to docstrings."
    lengths = {}
    for path in CHAPTERS:
        for cell in cells(path):
            if 'export' not in cell.directives: continue
            name = cell.directives['export'] or module_of(path)
            lengths[name] = lengths.get(name, 0) + len(cell.body) + 2
    long = {name: n for name, n in lengths.items() if n > GROWS.get(name, 400)}
    assert not long, f'is each of these one noun? {long}'

# habits that make code hard to follow: few, or none

COMPREHENSIONS = ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp
AT_MOST = dict(comprehensions=40, nested=2, tuple_assignments=12)   # per 1,000 lines of code
# Commands and worker processes end there; tokenizers raises plain `Exception` for a damaged file; every tracker its own
CATCH_ALL = {'command_line', 'bench.budget', 'model.config', 'train.trackers'}

def is_nested(node):
    "Whether a comprehension has several `for`s, or another comprehension in it."
    inner = [other for other in ast.walk(node) if isinstance(other, COMPREHENSIONS) and other is not node]
    return len(node.generators) > 1 or bool(inner)

def habits(code):
    "How often each habit of `AT_MOST` occurs in a module."
    found = dict.fromkeys(AT_MOST, 0)
    for node in ast.walk(code):
        if isinstance(node, COMPREHENSIONS):
            found['comprehensions'] += 1
            found['nested'] += is_nested(node)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
            found['tuple_assignments'] += isinstance(node.value, ast.Tuple)
    return found

def riddles(code):
    "(line, what is wrong there): statements whose value nobody uses, and assignments in the test of a `while`."
    for node in ast.walk(code):
        if isinstance(node, ast.Expr) and isinstance(node.value, (ast.Tuple, *COMPREHENSIONS)):
            yield node.lineno, 'a tuple or a comprehension as a statement'
        if isinstance(node, ast.While) and any(isinstance(x, ast.NamedExpr) for x in ast.walk(node.test)):
            yield node.lineno, 'an assignment in the test of a while'
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            text = isinstance(node.left, (ast.List, ast.JoinedStr)) or isinstance(getattr(node.left, 'value', 0), str)
            truth = isinstance(node.right, (ast.Compare, ast.BoolOp)) or (isinstance(node.right, ast.UnaryOp)
                and isinstance(node.right.op, ast.Not)) or getattr(getattr(node.right, 'func', None), 'id', '') == 'bool'
            if text and truth: yield node.lineno, 'a product with a truth value'

def test_habits():
    total, lines = dict.fromkeys(AT_MOST, 0), 0
    for path in MODULES:
        lines += sum(bool(line.strip()) for line in path.read_text(encoding='utf-8').splitlines())
        for habit, n in habits(tree(path)).items(): total[habit] += n
    often = {habit: round(1000*n/lines, 1) for habit, n in total.items() if 1000*n > AT_MOST[habit]*lines}
    assert not often, f'per 1,000 lines of code, at most {AT_MOST}: {often}'

@each(MODULES)
def test_no_riddles(path): assert not [*riddles(tree(path))]

def test_riddles_are_seen():
    for text in ('a(), b()', '[f(x) for x in y]', 'while (x := f()): pass', "z = f'{a}'*bool(a)", 'z = [1]*(n > 1)'):
        assert [line for line, _ in riddles(ast.parse(text))] == [1], text
    assert not [*riddles(ast.parse("z = '?'*len(x) + ' '*n\nw = [0]*n"))]

@each(MODULES)
def test_exceptions_are_named(path):
    "Only what a library may raise is caught, except where commands end; what is raised again may be anything."
    found = []
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.ExceptHandler): continue
        everything = node.type is None or getattr(node.type, 'id', '') in ('Exception', 'BaseException')
        again = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
        if everything and not again: found.append(node.lineno)
    if dotted(path) not in CATCH_ALL: assert not found, f'lines {found} catch everything'


@each(MODULES)
def test_module_has_its_notebook(path):
    assert dotted(path) in order(), 'no notebook exports this module any more'

@each(MODULES)
def test_no_later_chapter(path):
    "A module imports only from lower-numbered chapters, and so only from its own part and parts before it."
    numbers, module = order(), dotted(path)
    found = set(our_modules(tree(path), module)) - {'__version__'}
    assert found <= numbers.keys(), f'{path.name} imports what no chapter exports: {found - numbers.keys()}'
    later = [name for name in found if numbers[name] >= numbers[module]]
    assert not later, f'{path.name} imports from later chapters: {later}'

def test_no_later_chapter_sees():
    "All ways of importing another module are seen, wherever they stand."
    for text in ('from arldm.cli.draw import f', 'import arldm.cli.draw', 'from arldm.cli import draw', 'from . import draw',
            'from .draw import f', 'from ..cli import draw', 'from ..cli.draw import f'):
        assert list(our_modules(ast.parse(f'def g():\n    {text}'), 'cli.train')) == ['cli.draw'], text

def test_parts_have_a_sentence():
    "Every folder of modules is a part, and says in one sentence what it is about."
    folders = {path.parent.name for path in (ROOT/'arldm').glob('*/__init__.py')}
    assert folders == set(PARTS)
    for part in PARTS: assert ast.get_docstring(tree(ROOT/'arldm'/part/'__init__.py'))

@each(MODULES)
def test_imports_are_required(path):
    "A module imports nothing that settings.ini does not require."
    ours = {'arldm', *sys.stdlib_module_names}
    names = {module.split('.')[0].lower() for level, module, _ in imports(tree(path)) if not level}
    tried = {name for module, name in TRIED if module == path.relative_to(ROOT/'arldm').as_posix()}
    missing = {IMPORTED_AS.get(name, name) for name in names - ours - tried} - required('requirements')
    assert not missing, f'settings.ini requires no {missing}'

def test_export_in_step(tmp_path):
    "nbdev-export writes exactly what is committed, so the same again, and touches nothing else."
    for name in 'nbs', 'arldm':
        shutil.copytree(ROOT/name, tmp_path/name, ignore=shutil.ignore_patterns('__pycache__', '.*'))
    for name in 'pyproject.toml', 'settings.ini': shutil.copy(ROOT/name, tmp_path)
    def state(): return {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    before = state()
    surroundings = {key: value for key, value in os.environ.items() if key != 'IN_TEST'}   # with it nothing is exported
    subprocess.run([Path(sys.executable).parent/'nbdev-export'], cwd=tmp_path, env=surroundings, check=True)
    after = state()
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == set()


# the settings

def test_pyproject_holds_no_facts():
    "pyproject.toml names the package and leaves every other fact to settings.ini and arldm/__init__.py."
    project = tomllib.loads((ROOT/'pyproject.toml').read_text(encoding='utf-8'))
    assert project.keys() == {'build-system', 'project', 'tool'} and project['tool'].keys() == {'nbdev'}
    assert project['project'].keys() <= {'name', 'requires-python', 'dynamic', 'urls'}
    assert set(project['project']['dynamic']) == DYNAMIC
    assert project['tool']['nbdev']['update_pyproject'] is False

def test_settings_hold_each_fact_once():
    assert set(settings()) == ENTRIES
    facts = [value for name in ENTRIES for value in lines(name)]
    for file in 'pyproject.toml', 'setup.py', 'MANIFEST.in', 'Makefile':
        text = (ROOT/file).read_text(encoding='utf-8')
        assert not [fact for fact in facts if fact in text], f'{file} repeats a fact of settings.ini'

def test_setup_reads_settings(monkeypatch):
    said = setup_call(monkeypatch)
    assert [said[name] for name in ('description', 'keywords', 'author', 'license_expression')] == [
        settings()[name] for name in ('description', 'keywords', 'author', 'license')]
    pythons = [one for one in said['classifiers'] if one not in lines('classifiers')]
    assert pythons[0].endswith(' 3.10') and pythons[-1].endswith(f" {settings()['newest_python']}"), pythons
    assert said['install_requires'] == lines('requirements')
    assert said['extras_require'] == dict(dev=lines('dev_requirements'), lite=lines('lite_requirements'))
    assert said['entry_points'] == dict(console_scripts=lines('console_scripts'), nbdev=['arldm = arldm._modidx:d'])

def test_version_has_one_home(monkeypatch):
    version = importlib.import_module('arldm').__version__
    assert setup_call(monkeypatch)['version'] == version
    for file in 'settings.ini', 'setup.py', 'pyproject.toml':
        assert f'"{version}"' not in (ROOT/file).read_text(encoding='utf-8')

def test_requirements():
    "Nothing that breaks beside a CPU torch, nothing of one machine, and an exact version for each requirement."
    pins = [line.split(' ;')[0] for line in (ROOT/'constraints.txt').read_text().splitlines() if line[0] != '#']
    assert all(re.fullmatch(r'[a-z0-9.-]+==[\w.]+', pin) for pin in pins), 'name==version, no +cpu'
    pinned = {pin.split('==')[0] for pin in pins}
    needed = required('requirements', 'dev_requirements', 'lite_requirements')
    assert needed <= pinned and not FORBIDDEN & (pinned | needed)
    assert not [name for name in pinned if re.match('nvidia-|cuda-|triton', name)]

@pytest.mark.parametrize('script', lines('console_scripts'))
def test_console_script(script):
    "Every command leads to a function."
    module, function = re.fullmatch(r'arldm(?:-[\w-]+)?=([\w.]+):(\w+)', script).groups()
    assert callable(getattr(importlib.import_module(module), function))

@pytest.mark.parametrize('corpus', CORPORA)
def test_data_readme(corpus):
    "Each corpus says where it comes from, on what terms, how its files lie and which command reads them."
    text = (ROOT/'data'/corpus/'README.md').read_text(encoding='utf-8')
    for heading in 'Source', 'Licence', 'Tree', 'Command': assert f'\n## {heading}\n' in text
    commands = {script.split('=')[0] for script in lines('console_scripts')}
    assert set(re.findall(r'arldm-[a-z-]+', text)) <= commands

def test_citation():
    "CITATION.cff: version 1.2, the author and licence of settings.ini, and the paper."
    cited = yaml.safe_load((ROOT/'CITATION.cff').read_text(encoding='utf-8'))
    assert cited['cff-version'] == '1.2.0' and {'message', 'title', 'authors'} <= cited.keys()
    assert cited['authors'] == [dict(name=settings()['author'])] and cited['license'] == settings()['license']
    assert cited['keywords'] == settings()['keywords'].split(', ')
    paper, = cited['references']
    assert {'type', 'title', 'authors'} <= paper.keys() and paper['identifiers'][0]['value'] == 'arXiv:2211.10950'

def test_changes_name_the_version():
    "The newest section of the list of changes is about the version that this is."
    newest = re.search(r'^## (\S+?),? ', (ROOT/'CHANGELOG.md').read_text(encoding='utf-8'), re.M)[1]
    assert newest == importlib.import_module('arldm').__version__

def test_contributing_names_what_there_is():
    "Targets of make, files and tools that CONTRIBUTING.md names are there."
    text, targets = ((ROOT/name).read_text(encoding='utf-8') for name in ('CONTRIBUTING.md', 'Makefile'))
    for target in re.findall(r'`?make ([a-z]+)', text): assert f'\n{target}:' in targets, target
    for path in re.findall(r'(?:nbs|tests|docs|\.ci)/[\w/.]+\w', text): assert (ROOT/path).exists(), path
    for tool in re.findall(r'nbdev-[a-z-]+', text): assert (Path(sys.executable).parent/tool).exists(), tool


@pytest.mark.parametrize('linked', [False, True])
def test_make_empties_no_environment_of_others(tmp_path, linked):
    "A .venv that make did not make, or a link to one, is refused and stays as it is."
    for name in 'Makefile', 'settings.ini', 'setup.py', 'pyproject.toml', 'constraints.txt': shutil.copy(ROOT/name, tmp_path)
    mine = tmp_path/('elsewhere' if linked else '.venv')
    mine.mkdir()
    (mine/'mine').write_text('stays')
    if linked:
        (mine/'made-in').write_text('another folder')
        (tmp_path/'.venv').symlink_to(mine)
    said = subprocess.run(['make', '.venv/made-in', f'PYTHON={sys.executable}'], cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode and 'make did not make it: move it away' in said.stdout
    assert (mine/'mine').read_text() == 'stays'


@pytest.mark.parametrize('made', ['made-by-make', 'made-in', None])
def test_make_clean_keeps_what_make_did_not_make(tmp_path, made):
    shutil.copy(ROOT/'Makefile', tmp_path)
    (tmp_path/'.venv').mkdir()
    (tmp_path/'.venv'/(made or 'mine')).write_text('')
    (tmp_path/'_docs').mkdir()
    subprocess.run(['make', '-s', 'clean'], cwd=tmp_path, check=True)
    assert (tmp_path/'.venv').exists() == (made is None) and not (tmp_path/'_docs').exists()

def test_make_keeps_what_it_rewrites(tmp_path):
    "An edit of an exported module is not lost without a copy."
    script = tmp_path/'Makefile'
    line = next(line for line in re.findall(r'^unchanged = (?:.*\\\n)*.*\n', (ROOT/'Makefile').read_text(), re.M))
    script.write_text(line + 'test:\n\t@$(call unchanged,a.py,echo new > a.py,the file)\nsame:\n\t@$(call unchanged,a.py,true,the file)\n')
    (tmp_path/'a.py').write_text('edited')
    said = subprocess.run(['make', '-s', 'test'], cwd=tmp_path, capture_output=True, text=True)
    kept = Path(re.search(r'as they were before: (.*) [(]tar[)]', said.stdout)[1])
    assert said.returncode and subprocess.run(['tar', '-xOf', kept, 'a.py'], capture_output=True, text=True).stdout == 'edited'
    kept.unlink()
    assert subprocess.run(['make', '-s', 'same'], cwd=tmp_path, capture_output=True, text=True).stdout == ''


def test_faults_have_tests():
    "Every test that the appendix of the last chapter names is there."
    text = ''.join(cell.text for cell in cells(ROOT/'nbs/trouble.ipynb', 'markdown'))
    named = re.findall(r'((?:\w+/)?test_\w+\.py)::(test_\w+)', text)
    missing = [f'{file}::{name}' for file, name in named
               if not re.search(rf'^def {name}\(', (ROOT/'tests'/file).read_text(encoding='utf-8'), re.M)]
    assert len(named) > 50 and not missing, missing


def test_glossary():
    "Terms stand in the order of the alphabet, under their letters, each once, and lead to a chapter or to another term."
    terms = []
    for cell in cells(ROOT/'nbs/glossary.ipynb', 'markdown')[2:]:
        head, *entries = cell.text.split('\n\n')
        first, last = re.fullmatch(r'## ([A-Z])(?: to ([A-Z]))?', head).groups()
        for entry in entries:
            term = re.match(r'\*\*([^*]+)\*\*', entry)[1]
            terms.append(term)
            assert first <= term[0] <= (last or first), f'{term} does not stand under its letter'
            assert re.search(r'\]\([\w/]+\.ipynb\)|: see \*', entry), f'{term} leads nowhere'
    assert terms == sorted(terms, key=str.casefold) and len(terms) == len({*terms}) > 60


# README.md from a notebook

SAMPLE = [
    dict(cell_type='raw', source=['---\n', 'title: left out\n', '---']),
    dict(cell_type='markdown', source=['# Sample\n', '\n', '> A claim.\n', '\n',
        '[a chapter](00_core.ipynb#part), [the licence](../LICENSE), [a site](https://example.org/a), [below](#below)']),
    dict(cell_type='code', id='aa', source='#| hide\nsecret = 1', outputs=[]),
    dict(cell_type='code', id='bb', source='#| eval: false\n#| fig-alt: "A strip"\nstory[0]', outputs=[
        dict(output_type='execute_result', data={'image/png': 'aGVsbG8=\n', 'text/plain': ['<Image>']})]),
    dict(cell_type='code', id='cc', source='#| echo: false\nprint(1)', outputs=[
        dict(output_type='stream', name='stdout', text=['1\n', '2\n']),
        dict(output_type='stream', name='stderr', text='progress')]),
]

@pytest.fixture
def readme(tmp_path):
    "A folder with the sample as its index.ipynb, and a function running docs/readme.py there."
    for name in 'docs', 'nbs': (tmp_path/name).mkdir()
    for name in 'readme.py', 'chapters.py': shutil.copy(ROOT/'docs'/name, tmp_path/'docs')
    (tmp_path/'nbs/index.ipynb').write_text(json.dumps(dict(cells=SAMPLE)), encoding='utf-8')
    command = [sys.executable, tmp_path/'docs/readme.py']
    return lambda *flags: subprocess.run([*command, *flags], capture_output=True, text=True)

def test_readme(readme, tmp_path):
    assert readme().returncode == 0
    text = (tmp_path/'README.md').read_text(encoding='utf-8').split('\n\n', 1)[1]
    assert text == ('# Sample\n\n> A claim.\n\n[a chapter](nbs/00_core.ipynb#part), [the licence](LICENSE), '
        '[a site](https://example.org/a), [below](#below)\n\n'
        '```python\nstory[0]\n```\n\n![A strip](docs/readme_files/bb-0.png)\n\n```\n1\n2\n```\n')
    assert (tmp_path/'docs/readme_files/bb-0.png').read_bytes() == b'hello'

def test_readme_pictures_have_words():
    assert '![](' not in (ROOT/'README.md').read_text(encoding='utf-8')

def test_readme_is_short():
    "The front page ends before the reader does, and its first lines say how to get the book."
    lines = (ROOT/'README.md').read_text(encoding='utf-8').splitlines()
    assert len(lines) <= 120
    assert any(line.startswith('git clone') for line in lines[:25])

def test_readme_check(readme, tmp_path):
    "The check sees a missing README, a changed text, a changed picture and one too many, and is content after writing."
    assert readme('--check').returncode == 1
    stray = tmp_path/'docs/readme_files/stray.png'
    for spoil in (lambda: (tmp_path/'README.md').write_text('other'), lambda: stray.write_bytes(b''),
        lambda: (tmp_path/'docs/readme_files/bb-0.png').write_bytes(b'other')):
        readme()
        assert readme('--check').returncode == 0 and not stray.exists()
        spoil()
        said = readme('--check')
        assert said.returncode == 1 and 'make readme' in said.stderr and 'Traceback' not in said.stderr

def test_shipped_folders_name_no_machine():
    "Libraries write where weights were loaded from; what is shipped must not."
    for f in (ROOT/'data').rglob('*.json'): assert 'name_or_path' not in f.read_text(encoding='utf-8'), f


# what a signature tells

def too_new(text):
    "Syntax that Python 3.10 does not know and 3.11 does: stars in subscripts, `except*`."
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, getattr(ast, 'TryStar', ())): yield node.lineno
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple) and any(
                isinstance(x, ast.Starred) for x in node.slice.elts):
            if not ast.get_source_segment(text, node.slice).startswith('('): yield node.lineno

@each(MODULES + sorted((ROOT/'tests').rglob('*.py')) + sorted((ROOT/'docs').glob('*.py')))
def test_syntax_of_the_oldest_python(path):
    assert not [*too_new(path.read_text(encoding='utf-8'))]

def test_syntax_of_the_oldest_python_sees(): assert [*too_new('x = A[b, *c]\ny = A[(b, *c)]\nz = A[b, c]')] == [1]

def documented(arg, default, text):
    "Whether a parameter's type can be read: an annotation, a default that shows it, or a comment in its line."
    code, _, comment = text[arg.lineno - 1].partition('#')
    shown = default is not None and not (isinstance(default, ast.Constant) and default.value is None)
    return arg.annotation or shown or (comment.strip() and not code.rstrip().endswith(':'))

def undocumented(text):
    "Public functions of a module, and their parameters of which nothing is said."
    for f in ast.parse(text).body:
        if not isinstance(f, ast.FunctionDef) or f.name.startswith('_'): continue
        plain = f.args.posonlyargs + f.args.args
        defaults = [None]*(len(plain) - len(f.args.defaults)) + f.args.defaults
        pairs = [*zip(plain, defaults), *zip(f.args.kwonlyargs, f.args.kw_defaults)]
        bare = [arg.arg for arg, default in pairs if not documented(arg, default, text.splitlines())]
        if bare: yield f.name, bare

@each(MODULES)
def test_signatures_tell_types(path):
    "Every parameter of a public function has a type hint, a default that shows its type, or a docment."
    found = [f'{name}({", ".join(bare)})' for name, bare in undocumented(path.read_text(encoding='utf-8'))]
    assert not found, f'no type to be read: {"; ".join(found)}'

def test_signatures_tell_types_sees():
    text = 'def f(a:int, c,\n  d, # Rows\n  b=1,\n  *, e): # nothing about e\n  pass\ndef _g(a): pass'
    assert [*undocumented(text)] == [('f', ['c', 'e'])]
