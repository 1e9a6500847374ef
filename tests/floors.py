"""What the package takes from libraries that change every month, and whether their floors have it.

`python tests/floors.py`, where exactly the floors of settings.ini are installed, looks each name up
and writes floors.txt, with which test_floors.py compares the package. What is not seen: methods of
objects, as in `x.sum()`, and keywords where a signature cannot be read or takes any."""
import ast
import inspect
import pkgutil
import sys
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT/'tests'/'floors.txt'
LIBRARIES = 'torch', 'transformers', 'diffusers', 'accelerate'


def floors():
    "Library -> its oldest version in settings.ini."
    config = ConfigParser(interpolation=None)
    config.read(ROOT/'settings.ini', encoding='utf-8')
    pairs = [line.split('>=') for line in config['DEFAULT']['requirements'].split()]
    return {name: oldest for name, oldest in pairs if name in LIBRARIES}

def first_line():
    return '# Found in ' + ', '.join(f'{name} {oldest}' for name, oldest in floors().items())

def imported(tree):
    "Name in a module -> the dotted name it stands for, where that is of one of the libraries."
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.name if alias.asname else alias.name.split('.')[0]
                found[alias.asname or name] = name
        if isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                found[alias.asname or alias.name] = f'{node.module}.{alias.name}'
    return {name: full for name, full in found.items() if full.split('.')[0] in LIBRARIES}

def dotted(node, names):
    "The dotted name of a chain of attributes that begins with an imported name, else None."
    if isinstance(node, ast.Name): return names.get(node.id)
    if not isinstance(node, ast.Attribute): return None
    start = dotted(node.value, names)
    return f'{start}.{node.attr}' if start else None

def used(text):
    "What some code takes: names as `torch.nn.Linear`, keywords as `torch.nn.Linear(bias)`."
    tree = ast.parse(text)
    names = imported(tree)
    found = set(names.values())
    for node in ast.walk(tree):
        found.add(dotted(node, names))
        if isinstance(node, ast.Call) and (name := dotted(node.func, names)):
            found |= {f'{name}({keyword.arg})' for keyword in node.keywords if keyword.arg}
    return found - {None}

def used_by_package():
    found = set()
    for path in sorted((ROOT/'arldm').rglob('*.py')): found |= used(path.read_text(encoding='utf-8'))
    return sorted(found)

def there(entry):
    "Whether this environment has a name, and takes its keyword."
    name, _, keyword = entry.rstrip(')').partition('(')
    try: thing = pkgutil.resolve_name(name)
    except (ImportError, AttributeError): return False
    if not keyword: return True
    try: parameters = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError): return True
    return any(one.name == keyword or one.kind is one.VAR_KEYWORD for one in parameters)

def write_list():
    for name, oldest in floors().items():
        if version(name).split('+')[0] not in (oldest, f'{oldest}.0'):
            sys.exit(f'{name} {version(name)} is installed, {oldest} is needed to write the list')
    found = used_by_package()
    missing = [entry for entry in found if not there(entry)]
    if missing: sys.exit(f'the floors of settings.ini do not have {", ".join(missing)}')
    LIST.write_text('\n'.join([first_line(), *found, '']), encoding='utf-8')
    print(f'tests/floors.txt: {len(found)} names')

if __name__ == '__main__': write_list()
