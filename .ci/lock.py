"Write constraints.txt: the exact version of every package in this environment."
import re
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

root = Path(__file__).resolve().parent.parent
project = (root/'pyproject.toml').read_text(encoding='utf-8')
name, oldest = (re.search(rf'^{key} = "(?:>=)?(.+)"$', project, re.M)[1] for key in ('name', 'requires-python'))
OURS = {name, 'pip', 'setuptools', 'wheel'}   # ourselves, and what installs us
GPU = re.compile('nvidia-|cuda-|triton')      # torch names these exactly, and only where it was built with CUDA


def newer_python(package):
    "The Python a package asks for where our oldest one will not do, else empty."
    asked = SpecifierSet(package.metadata['Requires-Python'] or '')
    if asked.contains(f'{oldest}.99'): return ''
    return next(f'python_full_version >= "{one.version}"' for one in asked if one.operator == '>=')


def conditions(packages):
    "For each package the Pythons its pin holds for: an older Python takes older packages, and what those demand."
    found = {key: newer_python(package) for key, package in packages.items()}
    for condition, package in [(found[key], package) for key, package in packages.items() if found[key]]:
        for need in map(Requirement, package.requires or ()):
            key = canonicalize_name(need.name)
            if need.specifier and 'extra' not in str(need.marker): found[key] = found.get(key) or condition
    return found


packages = {canonicalize_name(package.name): package for package in distributions()}
packages = {key: package for key, package in sorted(packages.items()) if key not in OURS and not GPU.match(key)}
when = conditions(packages)
pins = [f'{key}=={package.version.split("+")[0]}' + (f' ; {when[key]}' if when[key] else '')
        for key, package in packages.items()]
head = '# Exact versions, written by `make lock`. Where a pin asks for a newer Python, an older one takes what fits it.'
(root/'constraints.txt').write_text('\n'.join([head, *pins, '']), encoding='utf-8')
print(f'constraints.txt: {len(pins)} packages')
