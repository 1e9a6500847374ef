"""Build the site: the notebooks as nbdev processes them, turned to pages of MyST, rendered by Sphinx.

What nbdev hides stays hidden. In place of an exported cell stand the entries that nbdev's `show_doc` makes of it, as
entries of Sphinx's own kind, so that search and index know them, and the cell itself, folded away. Names in backticks
become links. Chapters keep nbdev's addresses: data/11_story.ipynb is data/story.html. Every part has a page that lists
its chapters.
"""
import argparse
import ast
import base64
import io
import json
import os
import re
import shutil
import struct
import sys
import tempfile
from collections import Counter
from configparser import ConfigParser
from pathlib import Path

from nbdev.serve import proc_nbs
from PIL import Image
from sphinx.cmd.build import main as sphinx

from chapters import first_chapters, parts
from entries import FULL, definitions, entry

docs = Path(__file__).resolve().parent
root = docs.parent
DIRECTIVE = re.compile(r'#\s*\|\s*([\w-]+)\s*:?\s*(.*)')
LITERAL = re.compile(r'^ *(?P<f>```+|~~~+).*?^ *(?P=f)[ \t]*$|^#.*?$', re.S | re.M)   # fenced code, headings
THEIRS = re.compile(r'\[(`[^`]+`)\]\((?!http)[^)]*\.html#[^)]*\)')   # nbdev's links, made only where arldm is installed
NOTEBOOK = dict(nbformat=4, nbformat_minor=5, metadata=dict(
    kernelspec=dict(name='python3', display_name='Python 3', language='python'),
    language_info=dict(name='python', pygments_lexer='ipython3')))


def split_directives(source):
    "The directives of a cell and the rest of its source."
    lines = source.splitlines()
    found = [DIRECTIVE.match(line) for line in lines]
    return {m[1]: m[2].strip() for m in found if m}, '\n'.join(l for l, m in zip(lines, found) if not m).strip('\n')


class Chapter:
    "A notebook and what nbdev made of it."
    def __init__(self, path, processed):
        self.folder, self.name, self.main = path.parent, 'index', False
        self.cells, kept = ([dict(c, source=''.join(c['source'])) for c in json.loads(p.read_text('utf-8'))['cells']]
            for p in (path, processed))
        directives = [split_directives(cell['source'])[0] for cell in self.cells]
        homes = [d.get('default_exp') or d.get('export') for d in directives]   # a class grows through chapters
        home = next(filter(None, homes), None)
        self.module = f'arldm.{home}' if home else 'arldm'
        self.kept = {cell['id']: cell for cell in kept}
        said = [''.join(c['outputs'][0]['data']['text/markdown']) for c in kept if 'show_doc(' in c['source']]
        self.said = {re.search('^### (.+)$', text, re.M)[1]: text for text in said}
        head, _, rest = self.cells[0]['source'].partition('\n> ')
        self.title = head.removeprefix('# ').strip()
        self.claim, _, self.opening = rest.partition('\n')   # nbdev drops what follows the claim
        sources = [split_directives(cell['source'])[1] for cell in self.cells if '#| export' in cell['source']]
        self.defined = [(name, node, kind, s) for s in sources for name, node, kind in definitions(s)]
        self.classes = {name: (node, s) for name, node, kind, s in self.defined if kind == 'class'}

    def parameters(self):
        "All names of parameters and fields."
        for x in (x for _, node, _, _ in self.defined for x in ast.walk(node)):
            if isinstance(x, ast.arg): yield x.arg
            if isinstance(x, ast.AnnAssign) and isinstance(x.target, ast.Name): yield x.target.id


class Book:
    "All chapters in order, and what can be linked to."
    def __init__(self, processed, outside):
        self.index, self.outside = Chapter(root/'nbs/index.ipynb', processed/'index.ipynb'), outside
        self.parts = [(part, title, about, [self.chapter(entry, processed) for entry in found])
            for part, title, about, found in parts()]
        self.first = [self.chapter(entry, processed) for entry in first_chapters()]
        self.chapters = [*self.first, *(c for *_, found in self.parts for c in found)]
        short = Counter(c.name.rpartition('/')[2] for c in self.chapters)   # comments say: chapter loss, chapter cli/train
        self.mentions = {c.name if short[name] > 1 else name: c for c in self.chapters for name in [c.name.rpartition('/')[2]]}
        self.parameters = {name for c in self.chapters for name in c.parameters()}
        config = ConfigParser(interpolation=None)
        config.read(root/'settings.ini', encoding='utf-8')
        self.commands = {where: command for command, where in
            (line.split('=') for line in config['DEFAULT']['console_scripts'].split())}
        self.names = {command: ('py:obj', where.replace(':', '.')) for where, command in self.commands.items()
            if command != 'arldm'}   # the package, too
        for c in self.chapters:
            if c.module != 'arldm': self.names.setdefault(c.module, ('doc', f'/{c.name}'))
            for name in c.said: self.names.setdefault(name, ('py:obj', f'{c.module}.{name}'))

    def chapter(self, entry, processed):
        "A chapter of the list."
        chapter = Chapter(entry.path, processed/entry.path.relative_to(root/'nbs'))
        chapter.name, chapter.main = entry.name, entry.main
        return chapter

    def linked(self, text, chapter):
        "Markdown whose names, chapters and links to notebooks lead to pages of this site."
        def to(role, text, target): return f'{{{role}}}`{text} <{target}>`'
        def name(m):
            bare = m[1].removesuffix('()')
            if bare in chapter.said: return to('py:obj', m[1], f'{chapter.module}.{bare}')
            if m[1] in self.parameters or bare not in self.names: return m[0]   # of two meanings the nearer one
            role, target = self.names[bare]
            return to(role, m[1], target)
        def mentioned(m):
            if m[0] not in self.mentions: return m[0]
            return to('doc', self.mentions[m[0]].title, f'/{self.mentions[m[0]].name}')
        def file(m):
            path = (chapter.folder/m[2]).resolve()
            if path.is_dir(): return m[1]
            target = self.outside/'files'/path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
            return f'<a href="{os.path.relpath(target, (self.outside/chapter.name).parent)}">{m[1]}</a>'
        def prose(part):
            part = re.sub(r'\[([^][]*)\]\((\.\./(?![^)]*\.ipynb)[^)]+)\)', file, THEIRS.sub(r'\1', part))
            part = re.sub(r'\]\(((?:\.\./|\w+/)*)(?:\d\d[a-z]?_)?(\w+\.ipynb)', r'](\1\2', part)
            part = re.sub(r'(?<=hapter )(?:\w+/)?\w+\b', mentioned, part)
            return re.sub(r'(?<![`\[\w}])`([\w.-]+(?:\(\))?)`(?!`)', name, part)
        at, found = 0, []
        for m in LITERAL.finditer(text):
            found += [prose(text[at:m.start()]), THEIRS.sub(r'\1', m[0])]
            at = m.end()
        return ''.join([*found, prose(text[at:])])

    def page(self, chapter):
        "The cells of a page."
        yield markdown(f'# {chapter.title}', f'{FULL}{{py:currentmodule}} {chapter.module}\n{FULL}',
            self.contents() if chapter is self.index else self.label(chapter),
            f'{{.claim}}\n{self.linked(chapter.claim, chapter)}', self.linked(chapter.opening, chapter))
        alt = chapter.title
        for cell in chapter.cells[1:]:
            directives, body = split_directives(cell['source'])
            if 'hide' in directives or directives.get('include') == 'false': continue
            if 'export' in directives: yield from self.exported(body, chapter)
            elif cell['id'] not in chapter.kept: continue
            elif cell['cell_type'] == 'code': yield code(chapter.kept[cell['id']], alt)
            elif cell['cell_type'] == 'markdown':
                yield markdown(self.linked(chapter.kept[cell['id']]['source'], chapter))
                alt = last_words(cell['source']) or alt

    def label(self, chapter):
        "Where the chapter is: its part, its module, and whether it is a main one."
        part = chapter.name.rpartition('/')[0]
        said = [f'{{doc}}`{title} </{name}/index>`' for name, title, *_ in self.parts if name and name == part]
        if chapter.said: said.append(f'`{chapter.module}`')
        said.append('main chapter' if chapter.main else 'details')
        return '{.chapter}\n' + ' · '.join(said)

    def exported(self, body, chapter):
        "The entries of an exported cell, and the cell, folded away; nothing of one that only imports."
        if all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(body).body): return
        parts = []
        for name, node, kind in definitions(body):
            if name not in chapter.said: continue
            command = self.commands.get(f'{chapter.module}:{name}')
            head, text = entry(chapter.said[name], name, node, kind, chapter.classes, body, command)
            parts.append(f'{FULL}{head}\n\n{self.linked(text, chapter)}\n{FULL}')
        names = defined_names(body)
        summary = f'Source of {names}, {chapter.module}' if names else f'Source, {chapter.module}'
        fold = f'<details class="source"><summary>{summary}</summary>', f'{FULL}python\n{body}\n{FULL}', '</details>'
        yield markdown(*parts, *fold)

    def contents(self):
        "The hidden tables of contents that become the sidebar: the first chapters, those at the top, a page for each part."
        top = next(found for part, _, _, found in self.parts if not part)
        begin = [f'{c.title} </{c.name}>' for c in self.first]
        book = [f'{c.title} </{c.name}>' for c in top] + [f'/{part}/index' for part, *_ in self.parts if part]
        return '\n\n'.join([toctree(begin, 'Begin here'), toctree(book, 'The book'), toctree(['All names <genindex>'], 'Names')])

    def part_page(self, title, about, found):
        "The cells of the page that lists the chapters of a part."
        yield markdown(f'# {title}', f'{{.claim}}\n{about}', toctree([f'{c.title} </{c.name}>' for c in found]))
        lines = [f'* {{doc}}`{c.title} </{c.name}>`{", a main chapter" if c.main else ""}: {self.linked(c.claim, c)}' for c in found]
        yield markdown('\n'.join(lines))


def toctree(lines, caption=None):
    "A hidden table of contents."
    head = [f':caption: {caption}'] if caption else []
    return '\n'.join([f'{FULL}{{toctree}}', ':hidden:', *head, '', *lines, FULL])


def markdown(*parts): return dict(cell_type='markdown', metadata={}, source='\n\n'.join(filter(None, parts)))


def last_words(text):
    "The last paragraph of some Markdown as plain text, for those who do not see the figure that it speaks of."
    last = re.split(r'\n\s*\n', text.strip())[-1]
    if re.match(r'[#|`>$]', last): return ''
    return ' '.join(re.sub(r'\[([^]]*)\]\([^)]*\)|[`*_$]', r'\1', last).split())[:300].replace('"', "'")


def code(cell, alt):
    "A code cell as MyST-NB shows it: what it prints to stderr left out, pictures at their size, `code-fold` folded."
    directives, source = split_directives(cell['source'])
    without = [what for key, what in (('echo', 'input'), ('output', 'output')) if directives.get(key) == 'false']
    outputs = [o for o in cell['outputs'] if o.get('name') != 'stderr']
    image = dict(alt=directives.get('fig-alt', '').strip('"') or alt)
    for data in (o['data'] for o in outputs if 'data' in o):
        if 'text/markdown' in data: data['text/markdown'] = THEIRS.sub(r'\1', ''.join(data['text/markdown']))
        if 'image/png' not in data: continue
        data.pop('image/jpeg', None)
        png = base64.b64decode(''.join(data['image/png']))
        width, per_metre = struct.unpack('>I', png[16:20])[0], re.search(b'pHYs(....)', png[:4096], re.S)
        if per_metre and struct.unpack('>I', per_metre[1])[0] > 110/.0254: image['width'] = f'{(width := width//2)}px'
        if width <= 128: image['classes'] = 'pixels'
        if width >= 500: image['classes'] = 'wide'
        if Image.open(io.BytesIO(png)).convert('RGBA').getpixel((0, 0))[3] == 0: image['classes'] = 'wide transparent'
    tags = [f'remove-{what}' for what in without]
    if directives.get('code-fold') == 'true': tags.append('hide-input')
    metadata = dict(tags=tags, mystnb=dict(image=image))
    return dict(cell_type='code', metadata=metadata, execution_count=None, source=source, outputs=outputs)


def defined_names(source):
    "What a cell defines, as HTML: its functions, classes and constants; those with an underscore only if there are no others."
    names = [name for name, *_ in definitions(source)]
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, (ast.AnnAssign, ast.AugAssign)): targets = [node.target]
        names += [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
    public = [name for name in names if not name.startswith('_')]
    return ', '.join(f'<code>{name}</code>' for name in dict.fromkeys(public or names))


def write_page(path, cells):
    "A notebook that Sphinx reads."
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [dict(cell, id=f'c{k}') for k, cell in enumerate(cells)]
    path.write_text(json.dumps(dict(NOTEBOOK, cells=cells)), encoding='utf-8')


def main(out, processed):
    with tempfile.TemporaryDirectory() as folder:
        source, html, outside = (Path(folder)/name for name in ('source', 'html', 'outside'))
        for path in source, outside: path.mkdir()
        book = Book(processed, outside)
        for part, title, about, found in book.parts:
            if part: write_page(source/part/'index.ipynb', book.part_page(title, about, found))
        for chapter in book.index, *book.chapters: write_page(source/f'{chapter.name}.ipynb', book.page(chapter))
        failed = sphinx(['-c', str(docs), '-q', '-W', '--keep-going', '-d', f'{folder}/trees',
            '-D', f'html_extra_path={outside}', str(source), str(html)])
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(html, out)
        return failed


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description='Build the site')
    parser.add_argument('--out', type=Path, default=root/'_docs', help='folder of the site, written again from nothing')
    sys.exit(main(parser.parse_args().out, proc_nbs(n_workers=1)))
