"""The chapters of the book by parts: the sidebar of the site and the overview in README.md."""
import ast
import json
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

root = Path(__file__).resolve().parent.parent
NOTEBOOKS = root/'nbs'
# part -> its title; '' are the chapters at the top that export a module
TITLES = {'': 'Common ground', 'files': 'Files', 'data': 'Data', 'toy': 'Toy world',
          'model': 'Model', 'train': 'Training', 'draw': 'Drawing', 'score': 'Scores',
          'report': 'Reports', 'cli': 'Commands', 'lab': 'Laboratory', 'bench': 'Benchmarks'}
# what people come for, beside the parts
FIRST = 'draw_a_story', 'your_stories', 'journey', 'howto', 'ssid', 'glossary', 'trouble'
# the path of a reader; the other chapters are details
MAIN = {'core', 'story', 'dataset', 'history', 'encoders', 'arldm', 'loop', 'sampling', 'frames',
        'pipeline', 'evaluate', 'journey'}


@dataclass(frozen=True)
class Entry:
    "What the lists of chapters show of a chapter."
    path: Path     # Notebook
    number: str    # '16', or '16a' for one between 16 and 17; '' for those of `FIRST`
    name: str      # Address on the site, such as data/story
    title: str
    claim: str
    main: bool     # Whether its module is in `MAIN`


def entry(path):
    "Read the `Entry` of a chapter from its notebook."
    place = path.relative_to(NOTEBOOKS).parent
    number, short = re.fullmatch(r'(?:(\d\d[a-z]?)_)?(\w+)', path.stem).groups('')
    first = ''.join(json.loads(path.read_text(encoding='utf-8'))['cells'][0]['source'])
    title = re.search('^# (.+)$', first, re.M)[1].strip()
    claim = re.search('^> (.+)$', first, re.M)[1].strip()
    return Entry(path, number, (place/short).as_posix(), title, claim, short in MAIN)


def chapters(part):
    "Return the chapters of one part in order; for '' those at the top that export a module."
    found = [entry(path) for path in (NOTEBOOKS/part).glob('[0-9][0-9]*_*.ipynb')]
    return sorted(found, key=lambda chapter: chapter.number)


def first_chapters():
    "Return the chapters that come before the parts."
    return [entry(NOTEBOOKS/f'{name}.ipynb') for name in FIRST]


def parts():
    "Yield (part, its title, what it is about, its chapters) in the order of the book."
    for part, title in TITLES.items():
        about = 'What every chapter needs.'
        if part:
            source = (root/'arldm'/part/'__init__.py').read_text(encoding='utf-8')
            about = ast.get_docstring(ast.parse(source))
        yield part, title, about, chapters(part)


def link(chapter):
    "Return a Markdown link from the front page to a chapter."
    return f'[{chapter.title}]({chapter.path.relative_to(NOTEBOOKS).as_posix()})'


def overview():
    "Return a paragraph for the front page: the parts in order, main chapters, and the pages beside."
    names, main = [], []
    for part, _, _, found in parts():
        if part: names.append(part)
        main += [link(chapter) for chapter in found if chapter.main]
    beside = ', '.join(link(chapter) for chapter in first_chapters())
    text = (f'Each part is a folder of notebooks and a subpackage, and imports only from those before '
            f'it: {", ".join(names)}. The thread through them: {" → ".join(main)}. Beside them: {beside}.')
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)
