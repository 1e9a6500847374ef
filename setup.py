"The package's metadata: settings.ini, arldm/__init__.py (version), pyproject.toml (oldest Python)."
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

def found_in(file, pattern):
    "What the group of a regular expression matches in a file."
    return re.search(pattern, (here/file).read_text(encoding='utf-8'), re.M)[1]

def pythons():
    "Classifiers of every Python from the oldest that is required to the newest that is tested."
    oldest = int(found_in('pyproject.toml', r'^requires-python = ">=3\.(\d+)"$'))
    newest = int(facts['newest_python'].split('.')[1])
    return [f'Programming Language :: Python :: 3.{minor}' for minor in range(oldest, newest + 1)]


setup(
    version=found_in('arldm/__init__.py', r'^__version__ = "(.+)"$'),
    description=facts['description'],
    keywords=facts['keywords'],
    author=facts['author'],
    license_expression=facts['license'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else '',
    long_description_content_type='text/markdown',
    classifiers=lines('classifiers') + pythons(),
    packages=find_packages(include=['arldm', 'arldm.*']) + ['arldm.assets'],
    include_package_data=False,
    package_dir={'arldm.assets': 'data'},   # small models and the report's templates travel inside the package
    package_data={'arldm.assets': ['*/README.md', 'toy/**/*.json', 'toy/**/*.safetensors', 'report/*']},
    exclude_package_data={'arldm.assets': ['toy/raw/**']},
    install_requires=lines('requirements'),
    extras_require=dict(dev=lines('dev_requirements'), lite=lines('lite_requirements')),
    entry_points=dict(console_scripts=lines('console_scripts'), nbdev=['arldm = arldm._modidx:d']),
)
