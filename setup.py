"The package's metadata: read from settings.ini, the version from arldm/__init__.py, the rest in pyproject.toml."
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
config = ConfigParser(interpolation=None)
config.read(here/'settings.ini', encoding='utf-8')
facts = config['DEFAULT']
readme = here/'README.md'


def lines(name):
    "The lines of one entry of settings.ini."
    return [line for line in facts[name].splitlines() if line]


setup(
    version=re.search(r'^__version__ = "(.+)"$', (here/'arldm/__init__.py').read_text(encoding='utf-8'), re.M)[1],
    description=facts['description'],
    keywords=facts['keywords'],
    author=facts['author'],
    license=facts['license'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else '',
    long_description_content_type='text/markdown',
    packages=find_packages(include=['arldm', 'arldm.*']),
    install_requires=lines('requirements'),
    extras_require=dict(dev=lines('dev_requirements')),
    entry_points=dict(console_scripts=lines('console_scripts'), nbdev=['arldm = arldm._modidx:d']),
)
