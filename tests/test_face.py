"What one meets first: the public names, whole classes, `help()`, imports that change nothing."
import ast
import inspect
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import arldm
from arldm.cli.docstrings import comments_of, with_sections
from elsewhere import PYTHONPATH

ROOT = Path(arldm.__file__).parent
MODULES = sorted('.'.join(path.relative_to(ROOT).with_suffix('').parts) for path in ROOT.rglob('*.py') if path.stem[0] != '_')
each_module = pytest.mark.parametrize('name', MODULES)

def said(code):
    "What a new process prints."
    env = {'PYTHONPATH': PYTHONPATH, 'PATH': '', 'HOME': '/nonexistent'}
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()

FRESH = '''
import json, sys, diffusers, transformers, torch, warnings
def state():
    loud = [library.utils.logging.get_verbosity() for library in (diffusers, transformers)]
    return loud, transformers.utils.logging.is_progress_bar_enabled(), len(warnings.filters), torch.get_num_threads()
states = [state()]
from arldm import ARLDM
lacks = [method for method in METHODS if not hasattr(ARLDM, method)]
from arldm import ARLDM as again, Settings
import arldm, arldm.model.arldm
same = ARLDM is arldm.model.arldm.ARLDM is arldm.ARLDM is again
import arldm.score.evaluate
helpers = [name for name in ('torchvision', 'torch_fidelity') if name in sys.modules]
from importlib import import_module
for name in MODULES: import_module(f'arldm.{name}')
states.append(state())
print(json.dumps(dict(lacks=lacks, same=same, helpers=helpers, states=states)))
'''

@pytest.fixture(scope='module')
def fresh():
    "What a new process finds after one import, after some, and after that of all modules."
    methods = 'create load from_pretrained from_original to_original loss moments freeze train condition null_cond predict'.split()
    return json.loads(said(FRESH.replace('METHODS', repr(methods)).replace('MODULES', repr(MODULES))).splitlines()[-1])

def source_of(name): return (ROOT/f'{name.replace(".", "/")}.py').read_text(encoding='utf-8')

def tree(name): return ast.parse(source_of(name))


# public names

def test_names_come_lazily():
    "The package alone loads nothing heavy; every name that it lists is there; others are not."
    heavy = said('import sys, arldm; print([m for m in ("torch", "diffusers", "fastcore", "numpy") if m in sys.modules])')
    assert heavy == '[]'
    assert set(dir(arldm)) == set(arldm.__all__) and {'ARLDM', 'StoryPipeline', 'Story', 'write_stories'} <= set(dir(arldm))
    for name in arldm.__all__: assert getattr(arldm, name) is not None
    with pytest.raises(AttributeError, match="module 'arldm' has no attribute 'Pipeline'"): arldm.Pipeline
    assert arldm.StoryFile is import_module('arldm.data.story').StoryFile

def test_names_import_and_reload(fresh):
    "`from arldm import` and a second use give the same object as the module has."
    assert fresh['same'] is True

def test_a_name_is_no_module():
    "A public name that were a part's, too, would become the part as soon as that is imported."
    assert not set(arldm.__all__) & {name.partition('.')[0] for name in MODULES}


def test_one_name_one_thing():
    "No public function, class or constant of one module has a namesake in another."
    homes = {}
    for module in MODULES:
        for node in tree(module).body:
            names = [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else []
            if isinstance(node, ast.FunctionDef) and any('patch' in ast.unparse(d) for d in node.decorator_list): continue
            for target in getattr(node, 'targets', []):
                names += [x.id for x in ast.walk(target) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)]
            for name in names:
                if not name.startswith('_'): homes.setdefault(name, set()).add(module)
    twice = {name: sorted(modules) for name, modules in homes.items() if len(modules) > 1}
    assert not twice


# whole classes

def test_the_model_is_whole(fresh):
    "One import brings every method."
    assert fresh['lacks'] == []

@each_module
def test_no_class_grows_elsewhere(name):
    "A module patches only classes of its own, so that nobody must import it for the sake of another one."
    own = {node.name for node in tree(name).body if isinstance(node, ast.ClassDef)}
    for node in tree(name).body:
        if isinstance(node, ast.FunctionDef) and any('patch' in ast.unparse(d) for d in node.decorator_list):
            owner = ast.unparse(node.args.args[0].annotation)
            assert set(owner.split(' | ')) <= own, f'{owner}.{node.name}'


# help

def documented():
    "(module, name, node, comments beside its parameters) of every public function and method that has such comments."
    for name in MODULES:
        source = source_of(name)
        comments = comments_of(source)
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.FunctionDef) or node.name.startswith('_') and node.name != '__call__': continue
            a = node.args
            beside = [comments[p.end_lineno] for p in (*a.args, *a.kwonlyargs)
                      if p.end_lineno in comments and p.end_lineno < node.body[0].lineno - 1]
            if beside and ast.get_docstring(node): yield name, node, beside

def test_docstrings_say_what_comments_say():
    "Every comment beside a parameter is in the docstring, which `help()` shows."
    found = 0
    for name, node, beside in documented():
        text = ' '.join(ast.get_docstring(node).split())
        for comment in beside: assert ' '.join(comment.split()) in text, f'{name}.{node.name}: {comment}'
        found += len(beside)
    assert found > 800

def test_help_of_public_names():
    "The first page of help is complete: parameters of calls and of fields."
    for name in arldm.__all__:
        thing = getattr(arldm, name)
        if callable(thing): assert inspect.getdoc(thing), name
    for thing, parameters in ((arldm.StoryPipeline.__call__, ('captions', 'num_inference_steps', 'seed')),
                              (arldm.ARLDM.loss, ('batch', 'generator', 'cond_dropout')), (arldm.Settings, ('learning_rate', 'mixed_precision')),
                              (arldm.write_stories, ('path',)), (arldm.Story, ('captions',))):
        doc = inspect.getdoc(thing)
        assert 'Args:' in doc
        for parameter in parameters: assert re.search(rf'^    {parameter}\b.*: \S', doc, re.M), (thing, parameter)

@pytest.mark.parametrize('source', [
    'def f(\n    a:int,  # One\n):\n    r"A\\d."\n    return a\n', 'def f(\n    a:str="\\n\'\\"",  # Say """ or \\\\\n):\n    "A."\n',
    'class A:\n    "A."\n    x: int = 1  # One\n    def f(self,\n          y, # Two\n    ) -> int: # Three\n        "B."\n        return y\n',
    'def f(x): # -> yields\n    "A."\n', 'def f(*xs:int, # Some\n      k:int=1, # One\n      **more, # All\n):\n    "A."\n'])
def test_docstrings_are_python(source):
    "Whatever stands in strings and comments, the code stays the same but for its docstrings."
    def without(text):
        found = ast.parse(text)
        for node in ast.walk(found):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node): node.body = node.body[1:]
        return ast.dump(found)
    assert without(with_sections(source)) == without(source)
    assert with_sections(with_sections(source)).count('Args:') <= 2*source.count('class') + 2


# imports

@each_module
def test_nothing_runs_at_import(name):
    "A module defines; it calls nothing for the sake of an effect."
    for node in tree(name).body:
        effect = isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
        assert not effect, f'line {node.lineno}: {ast.unparse(node)}'

def test_imports_silence_nobody(fresh):
    "Libraries log as loudly after all modules were imported as before."
    (*before, _, before_threads), (*after, _, after_threads) = fresh['states']
    assert before == after and before_threads == after_threads

def test_no_heavy_helpers(fresh):
    "Neither torchvision nor torch-fidelity is needed for scores."
    assert fresh['helpers'] == []
