"""Build the site: the notebooks as nbdev processes them, as pages of MyST, rendered by Sphinx.

What nbdev hides stays hidden. In place of an exported cell stand the entries that nbdev's
`show_doc` makes of it, as entries of Sphinx's own kind, so that search and index know them, and the
cell itself, folded away. Names in backticks become links. Chapters keep nbdev's addresses:
data/11_story.ipynb is data/story.html. Every part has a page that lists its chapters.
"""
import argparse
import ast
import base64
import gc
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
from story_page import CHAPTER, story_form

docs = Path(__file__).resolve().parent
root = docs.parent
DIRECTIVE = re.compile(r'#\s*\|\s*([\w-]+)\s*:?\s*(.*)')
# fenced code and headings, in which names are not linked
LITERAL = re.compile(r'^ *(?P<f>```+|~~~+).*?^ *(?P=f)[ \t]*$|^#.*?$', re.S | re.M)
# nbdev's links to documentation, which nbdev makes only if arldm is installed
NBDEV_LINK = re.compile(r'\[(`[^`]+`)\]\((?!http)[^)]*\.html#[^)]*\)')
NOTEBOOK = dict(nbformat=4, nbformat_minor=5, metadata=dict(
    kernelspec=dict(name='python3', display_name='Python 3', language='python'),
    language_info=dict(name='python', pygments_lexer='ipython3')))


def split_directives(source):
    "Split a cell into its directives, name -> value, and the rest of its source."
    directives, rest = {}, []
    for line in source.splitlines():
        m = DIRECTIVE.match(line)
        if m: directives[m[1]] = m[2].strip()
        else: rest.append(line)
    return directives, '\n'.join(rest).strip('\n')


def cells_of(path):
    "Read the cells of a notebook, each with its source as one string."
    cells = json.loads(path.read_text('utf-8'))['cells']
    return [dict(cell, source=''.join(cell['source'])) for cell in cells]


class Chapter:
    "A notebook and what nbdev made of it."
    def __init__(self, path, processed, name='index', main=False):
        self.folder, self.name, self.main = path.parent, name, main
        self.cells = cells_of(path)
        self.kept = {cell['id']: cell for cell in cells_of(processed)}
        self.said = {}   # name -> the Markdown that `show_doc` printed of it
        for cell in self.kept.values():
            if 'show_doc(' in cell['source']:
                text = ''.join(cell['outputs'][0]['data']['text/markdown'])
                self.said[re.search('^### (.+)$', text, re.M)[1]] = text
        head, _, rest = self.cells[0]['source'].partition('\n> ')
        self.title = head.removeprefix('# ').strip()
        self.claim, _, self.opening = rest.partition('\n')   # nbdev drops what follows the claim
        homes = []          # modules that cells export to
        self.defined = []   # nodes of the functions and classes in exported cells
        self.classes = {}   # name -> (node, source of its cell)
        for cell in self.cells:
            directives, source = split_directives(cell['source'])
            home = directives.get('default_exp') or directives.get('export')
            if home: homes.append(home)
            if '#| export' in cell['source']: self.define(source)
        self.module = f'arldm.{homes[0]}' if homes else 'arldm'

    def define(self, source):
        "Add what an exported cell defines to `defined` and `classes`."
        for name, node, kind in definitions(source):
            self.defined.append(node)
            if kind == 'class': self.classes[name] = node, source

    def parameters(self):
        "Yield the names of all parameters and fields that the chapter defines."
        for node in self.defined:
            for x in ast.walk(node):
                if isinstance(x, ast.arg): yield x.arg
                is_field = isinstance(x, ast.AnnAssign) and isinstance(x.target, ast.Name)
                if is_field: yield x.target.id


def commands():
    "Return function -> command for all commands: arldm.cli.draw:draw -> arldm-draw."
    config = ConfigParser(interpolation=None)
    config.read(root/'settings.ini', encoding='utf-8')
    found = {}
    for line in config['DEFAULT']['console_scripts'].split():
        command, where = line.split('=')
        found[where] = command
    return found


class Book:
    "All chapters in order, and what can be linked to."
    def __init__(self, processed, outside, drawing=False):
        self.outside = outside
        self.drawing = drawing   # whether the page of `CHAPTER` draws
        self.index = Chapter(root/'nbs/index.ipynb', processed/'index.ipynb')
        def chapters(entries):
            found = []
            for e in entries:
                made = processed/e.path.relative_to(root/'nbs')
                found.append(Chapter(e.path, made, e.name, e.main))
            return found
        self.first = chapters(first_chapters())
        self.parts = []
        for part, title, about, found in parts():
            self.parts.append((part, title, about, chapters(found)))
        self.chapters = [*self.first]
        for *_, found in self.parts: self.chapters += found
        self.mentions = self.all_mentions()
        self.parameters = set()
        for c in self.chapters: self.parameters.update(c.parameters())
        self.commands = commands()
        self.names = {}   # name -> role and target of a link
        for where, command in self.commands.items():
            if command != 'arldm':   # which is the package, too
                self.names[command] = 'py:obj', where.replace(':', '.')
        for c in self.chapters:
            if c.module != 'arldm': self.names.setdefault(c.module, ('doc', f'/{c.name}'))
            for name in c.said: self.names.setdefault(name, ('py:obj', f'{c.module}.{name}'))

    def all_mentions(self):
        "Return short name -> chapter, as comments say 'chapter loss'; cli/train if two share one."
        def short(c): return c.name.rpartition('/')[2]
        n = Counter(map(short, self.chapters))
        return {c.name if n[short(c)] > 1 else short(c): c for c in self.chapters}

    def linked(self, text, chapter):
        "Turn the names, mentions of chapters and links in Markdown into links within this site."
        def to(role, text, target): return f'{{{role}}}`{text} <{target}>`'
        def name(m):
            bare = m[1].removesuffix('()')
            if bare in chapter.said: return to('py:obj', m[1], f'{chapter.module}.{bare}')
            # a name that is also a parameter most likely means the parameter
            if m[1] in self.parameters or bare not in self.names: return m[0]
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
            link = os.path.relpath(target, (self.outside/chapter.name).parent)
            return f'<a href="{link}">{m[1]}</a>'
        def prose(part):
            part = NBDEV_LINK.sub(r'\1', part)
            part = re.sub(r'\[([^][]*)\]\((\.\./(?![^)]*\.ipynb)[^)]+)\)', file, part)
            part = re.sub(r'\]\(((?:\.\./|\w+/)*)(?:\d\d[a-z]?_)?(\w+\.ipynb)', r'](\1\2', part)
            part = re.sub(r'(?<=hapter )(?:\w+/)?\w+\b', mentioned, part)
            return re.sub(r'(?<![`\[\w}])`([\w.-]+(?:\(\))?)`(?!`)', name, part)
        found = []
        at = 0
        for m in LITERAL.finditer(text):
            found += [prose(text[at:m.start()]), NBDEV_LINK.sub(r'\1', m[0])]
            at = m.end()
        return ''.join([*found, prose(text[at:])])

    def page(self, chapter):
        "Yield the cells of a chapter's page."
        yield markdown(f'# {chapter.title}', f'{FULL}{{py:currentmodule}} {chapter.module}\n{FULL}',
                       self.contents() if chapter is self.index else self.label(chapter),
                       f'{{.claim}}\n{self.linked(chapter.claim, chapter)}',
                       self.linked(chapter.opening, chapter))
        if chapter.name == CHAPTER and self.drawing: yield markdown(story_form(self.outside/'story'))
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
        "Return the line below a title: part, module, and whether it is a main chapter."
        if chapter in self.first: return ''
        part = chapter.name.rpartition('/')[0]
        words = []
        for name, title, *_ in self.parts:
            if name and name == part: words.append(f'{{doc}}`{title} </{name}/index>`')
        if chapter.said: words.append(f'`{chapter.module}`')
        words.append('main chapter' if chapter.main else 'details')
        return '{.chapter}\n' + ' · '.join(words)

    def exported(self, body, chapter):
        "Yield the entries of an exported cell, with its source folded; nothing if it only imports."
        imports = ast.Import, ast.ImportFrom
        if all(isinstance(node, imports) for node in ast.parse(body).body): return
        parts = []
        for name, node, kind in definitions(body):
            if name not in chapter.said: continue
            command = self.commands.get(f'{chapter.module}:{name}')
            head, text = entry(chapter.said[name], name, node, kind, chapter.classes, body, command)
            parts.append(f'{FULL}{head}\n\n{self.linked(text, chapter)}\n{FULL}')
        names = defined_names(body)
        summary = f'Source of {names}, {chapter.module}' if names else f'Source, {chapter.module}'
        yield markdown(*parts, f'<details class="source"><summary>{summary}</summary>',
                       f'{FULL}python\n{body}\n{FULL}', '</details>')

    def contents(self):
        "Return the hidden tables of contents that fill the sidebar: first chapters, parts, names."
        book = []
        for part, _, _, found in self.parts:
            if part: book.append(f'/{part}/index')
            else: book = toctree_lines(found) + book
        return '\n\n'.join([toctree(toctree_lines(self.first), 'Begin here'),
                            toctree(book, 'The book'), toctree(['All names <genindex>'], 'Names')])

    def part_page(self, title, about, found):
        "Yield the cells of the page that lists the chapters of a part."
        yield markdown(f'# {title}', f'{{.claim}}\n{about}', toctree(toctree_lines(found)))
        lines = []
        for c in found:
            mark = ', a main chapter' if c.main else ''
            lines.append(f'* {{doc}}`{c.title} </{c.name}>`{mark}: {self.linked(c.claim, c)}')
        yield markdown('\n'.join(lines))


def toctree_lines(chapters): return [f'{c.title} </{c.name}>' for c in chapters]


def toctree(lines, caption=None):
    "Return a hidden table of contents in MyST."
    head = [f':caption: {caption}'] if caption else []
    return '\n'.join([f'{FULL}{{toctree}}', ':hidden:', *head, '', *lines, FULL])


def markdown(*parts):
    "Return a Markdown cell of these parts; empty ones are left out."
    return dict(cell_type='markdown', metadata={}, source='\n\n'.join(filter(None, parts)))


def last_words(text):
    "Return the last paragraph of some Markdown as plain text, the alternative text of a figure."
    last = re.split(r'\n\s*\n', text.strip())[-1]
    if re.match(r'[#|`>$]', last): return ''
    plain = re.sub(r'\[([^]]*)\]\([^)]*\)|[`*_$]', r'\1', last)
    return ' '.join(plain.split())[:300].replace('"', "'")


def image_look(png):
    "Return MyST-NB's options for a PNG: its width in pixels, and a class of the style sheet."
    look = {}
    width = struct.unpack('>I', png[16:20])[0]   # where a PNG's header holds it
    per_metre = re.search(b'pHYs(....)', png[:4096], re.S)
    if per_metre and struct.unpack('>I', per_metre[1])[0] > 110/.0254:   # over 110 dpi
        width = width//2
        look['width'] = f'{width}px'
    if width <= 128: look['classes'] = 'pixels'
    if width >= 500: look['classes'] = 'wide'
    corner = Image.open(io.BytesIO(png)).convert('RGBA').getpixel((0, 0))
    if corner[3] == 0: look['classes'] = 'wide transparent'
    return look


def code(cell, alt):
    "Return a code cell for MyST-NB: without stderr, with pictures at their size, folded if asked."
    directives, source = split_directives(cell['source'])
    outputs = [o for o in cell['outputs'] if o.get('name') != 'stderr']
    image = dict(alt=directives.get('fig-alt', '').strip('"') or alt)
    for output in outputs:
        data = output.get('data', {})
        if 'text/markdown' in data:
            data['text/markdown'] = NBDEV_LINK.sub(r'\1', ''.join(data['text/markdown']))
        if 'image/png' in data:
            data.pop('image/jpeg', None)
            image |= image_look(base64.b64decode(''.join(data['image/png'])))
    tags = []
    if directives.get('echo') == 'false': tags.append('remove-input')
    if directives.get('output') == 'false': tags.append('remove-output')
    if directives.get('code-fold') == 'true': tags.append('hide-input')
    metadata = dict(tags=tags, mystnb=dict(image=image))
    return dict(cell_type='code', metadata=metadata, execution_count=None, source=source,
                outputs=outputs)


def defined_names(source):
    "Return the public names that a cell defines as HTML, or the private ones if all are private."
    names = [name for name, *_ in definitions(source)]
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, (ast.AnnAssign, ast.AugAssign)): targets = [node.target]
        for target in targets:
            names += [n.id for n in ast.walk(target) if isinstance(n, ast.Name)]
    public = [name for name in names if not name.startswith('_')]
    return ', '.join(f'<code>{name}</code>' for name in dict.fromkeys(public or names))


def write_page(path, cells):
    "Write a notebook of these cells, for Sphinx to read."
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [dict(cell, id=f'c{k}') for k, cell in enumerate(cells)]
    path.write_text(json.dumps(dict(NOTEBOOK, cells=cells)), encoding='utf-8')


def main(out, processed, drawing=True):
    "Build the site into `out` from the notebooks that nbdev processed; return Sphinx's exit code."
    with tempfile.TemporaryDirectory() as folder:
        source, html, outside = Path(folder)/'source', Path(folder)/'html', Path(folder)/'outside'
        source.mkdir()
        outside.mkdir()
        book = Book(processed, outside, drawing)
        for part, title, about, found in book.parts:
            if part: write_page(source/part/'index.ipynb', book.part_page(title, about, found))
        for chapter in book.index, *book.chapters:
            write_page(source/f'{chapter.name}.ipynb', book.page(chapter))
        failed = sphinx(['-c', str(docs), '-q', '-W', '--keep-going', '-d', f'{folder}/trees',
                         '-D', f'html_extra_path={outside}', str(source), str(html)])
        if not (html/'index.html').is_file(): return failed or 1    # the site that is there stays
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(html, out)
        return failed


def refuse_others(out):
    "End with a line if the folder holds anything but a site, which would be lost."
    if out.exists() and not (out.is_dir() and ((out/'.buildinfo').exists() or not any(out.iterdir()))):
        sys.exit(f'{out} is not a site that was built here; name another folder')


if __name__ == '__main__':
    gc.disable()   # a third of the time; the trees of all pages take 600 MB
    parser = argparse.ArgumentParser(description='Build the site')
    parser.add_argument('--out', type=Path, default=root/'_docs',
                        help='folder of the site, written again from nothing')
    parser.add_argument('--no-drawing', action='store_true',
                        help='leave out the page that draws, which needs npm and half a minute')
    args = parser.parse_args()
    refuse_others(args.out)
    sys.exit(main(args.out, proc_nbs(n_workers=1), not args.no_drawing))
