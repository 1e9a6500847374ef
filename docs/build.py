"""Build the site: the notebooks as nbdev processes them, turned to pages of MyST, rendered by Sphinx.

What nbdev hides stays hidden. In place of an exported cell stand the entries that nbdev's `show_doc` makes of it, as
entries of Sphinx's own kind, so that search and index know them, and the cell itself, folded away. Names in backticks
and the numbers of chapters become links. Chapters keep nbdev's addresses: 02_story.ipynb is story.html.
"""
import argparse
import ast
import base64
import io
import json
import re
import shutil
import struct
import sys
import tempfile
import tokenize
from configparser import ConfigParser
from pathlib import Path

from nbdev.serve import proc_nbs
from sphinx.cmd.build import main as sphinx

docs = Path(__file__).resolve().parent
root = docs.parent
PARTS = {'00': 'Ground', '02': 'Stories', '04': 'A small world', '05': 'The model', '10': 'Training', '11b': 'Drawing',
    '12d': 'Scoring', '15': 'All together', '17': 'Full size, full speed'}   # the first chapter of each part
DIRECTIVE = re.compile(r'#\s*\|\s*([\w-]+)\s*:?\s*(.*)')
LITERAL = re.compile(r'^ *(?P<f>```+|~~~+).*?^ *(?P=f)[ \t]*$|^#.*?$', re.S | re.M)   # fenced code, headings
THEIRS = re.compile(r'\[(`[^`]+`)\]\((?!http)[^)]*\.html#[^)]*\)')   # links of nbdev, which makes them where arldm is installed
FULL = '`'*9   # fences what may hold fences


# a notebook

def split_directives(source):
    "The directives of a cell and the rest of its source."
    lines = source.splitlines()
    found = [DIRECTIVE.match(line) for line in lines]
    return {m[1]: m[2].strip() for m in found if m}, '\n'.join(l for l, m in zip(lines, found) if not m).strip('\n')


def definitions(source):
    "The functions and classes of a cell, `Class.method` for patched ones, with the word Sphinx has for their kind."
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef): yield node.name, node, 'class'
        if not isinstance(node, ast.FunctionDef): continue
        how = next((ast.unparse(d) for d in node.decorator_list if ast.unparse(d).startswith('patch')), None)
        kind = 'function' if not how else 'property' if 'as_prop' in how else 'method'
        owners = ast.unparse(node.args.args[0].annotation).split(' | ') if how else [None]
        for owner in owners: yield '.'.join(filter(None, [owner, node.name])), node, kind


class Chapter:
    "A notebook, what nbdev made of it, and what both are called."
    def __init__(self, path, processed):
        self.number, _, self.name = path.stem.rpartition('_')
        self.module = f'arldm.{self.name}'
        self.cells, kept = ([dict(c, source=''.join(c['source'])) for c in json.loads(p.read_text('utf-8'))['cells']]
            for p in (path, processed))
        self.kept = {cell['id']: cell for cell in kept}
        said = [''.join(cell['outputs'][0]['data']['text/markdown']) for cell in kept if 'show_doc(' in cell['source']]
        self.said = {re.search('^### (.+)$', text, re.M)[1]: text for text in said}
        head, _, self.opening = self.cells[0]['source'].partition('\n> ')
        self.title = head.removeprefix('# ').strip()
        self.claim, _, self.opening = self.opening.partition('\n')   # nbdev drops what follows the claim

    @property
    def spoken(self): return self.number.removeprefix('0')   # as prose names it: chapter 8a


# entries

def comments(source):
    "The comments of some code, by line; those that go on below one belong to its line."
    found, last = {}, None
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT: continue
        alone = not token.line[:token.start[1]].strip()
        last = last if alone and last else token.start[0]
        found[last] = f'{found.get(last, "")} {token.string.lstrip("# ")}'.strip()
    return found


def type_of(node):
    "An annotation without the modules that its types come from."
    text = re.sub(r'\b(?:[A-Za-z_]\w*\.)+(?=\w)', '', ast.unparse(node)) if node else ''
    return '' if text == 'NoneType' else text   # all that nbdev knows of `x=None`


def parameters(said):
    "The parameters that `show_doc` has put down, as (name, type, default, comment), and the result, as (type, comment)."
    code = re.search(r'```python\n(?:async )?(.*?)\n```', said, re.S)[1]
    code = re.sub(r'<(?:built-in )?function (\w+?)(_arg)?(?: at \w+)?>', r'\1', code)
    code = re.sub('=<[^<>]+>', '=...', code)
    lines, notes = code.splitlines(), comments(code)
    node = ast.parse(code + '\n    pass').body[0]
    a, end = node.args, next(k for k, line in enumerate(lines, 1) if line.startswith(')') or '()' in line)
    plain = [*a.posonlyargs, *a.args]
    defaults = dict(zip(plain[::-1], a.defaults[::-1])) | {k: v for k, v in zip(a.kwonlyargs, a.kw_defaults) if v}
    every = [('', p) for p in plain] + [('*', p) for p in [a.vararg] if p] + [('', p) for p in a.kwonlyargs] + \
        [('**', p) for p in [a.kwarg] if p]
    last = {p.lineno: p.arg for _, p in every}   # a comment speaks of the last parameter on its line
    note = {last[k]: text for k, text in notes.items() if k in last and k < end}
    rows = [(star + p.arg, type_of(p.annotation), ast.unparse(defaults[p]) if p in defaults else '', note.get(p.arg, ''))
            for star, p in every]
    if a.kwonlyargs and not a.vararg: rows.insert(len(plain), ('*', '', '', ''))
    return rows, (type_of(node.returns), ' '.join(text for k, text in notes.items() if k >= end))


def signature(rows, result, types):
    "A signature on one line, with types or without."
    def one(name, kind, default):
        kind = f': {kind}' if types and kind else ''
        return name + kind + (f' = {default}' if kind and default else f'={default}' if default else '')
    return f'({", ".join(one(*row[:3]) for row in rows)})' + (f' -> {result}' if result else '')


def table(rows, result):
    "Parameters that carry a comment explain themselves in a table, as nbdev's own."
    def cell(text, code=False):
        text = text.replace('|', r'\|')
        return f'`{text}`' if code and text else text
    body = [(f'``{name}``', cell(kind, True), cell(default, True), cell(note)) 
        for name, kind, default, note in rows if name != '*']
    if any(result): body.append(('*returns*', cell(result[0], True), '', cell(result[1])))
    used = [k for k in range(4) if k == 0 or any(row[k] for row in body)]
    head = [('Parameter', 'Type', 'Default', 'Details')[k] for k in used]
    lines = [head, ['---']*len(used), *([row[k] for k in used] for row in body)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def fields(node, classes):
    "The comments of a dataclass's fields, those of the classes before it, too."
    found = {}
    for base in node.bases: found |= fields(classes[base.id][0], classes) if getattr(base, 'id', '') in classes else {}
    notes = comments(classes[node.name][1])
    return found | {f.target.id: notes.get(f.end_lineno, '') for f in node.body if isinstance(f, ast.AnnAssign)}


def entry(said, name, node, kind, book, module):
    "One entry of Sphinx's Python domain."
    rows, result = parameters(said)
    if result == ('None', ''): result = '', ''
    if kind == 'class' and 'dataclass' in ' '.join(map(ast.unparse, node.decorator_list)):
        notes = fields(node, book.classes[module])
        rows = [(*row[:3], row[3] or notes.get(row[0], '')) for row in rows]
    told = any(row[3] for row in rows) or result[1]
    doc = re.sub(r'^\*(.*)\*$', r'\1', said.rpartition('```')[2].strip(), count=1, flags=re.M)
    head = name + ('' if kind == 'property' else signature(rows, '' if kind == 'class' else result[0], not told))
    command = book.commands.get(f'{module}:{name}')
    one_line = '\n:single-line-parameter-list:' if told and kind != 'property' else ''   # the table has a line for each
    parts = [f'{FULL}{{py:{kind}}} {head}{one_line}', f'On the command line: `{command}`' if command else '',
        doc, table(rows, result) if told else '']
    return '\n\n'.join(filter(None, parts)) + f'\n{FULL}'


# pages

class Book:
    "All chapters in order, and what can be linked to."
    def __init__(self, processed):
        paths = sorted(p for p in (root/'nbs').glob('*.ipynb') if p.stem[:2].isdigit())
        self.index = Chapter(root/'nbs/index.ipynb', processed/'index.ipynb')
        self.chapters = [Chapter(path, processed/path.name) for path in paths]
        self.numbers = {c.spoken: c for c in self.chapters}
        self.names, self.classes, self.parameters = {}, {}, set()
        for c in self.chapters:
            self.names.setdefault(c.module, ('doc', c.name))
            for name in c.said: self.names.setdefault(name, ('py:obj', f'{c.module}.{name}'))
            sources = [split_directives(cell['source'])[1] for cell in c.cells if '#| export' in cell['source']]
            known = [(name, node, kind, s) for s in sources for name, node, kind in definitions(s)]
            self.classes[c.module] = {name: (node, s) for name, node, kind, s in known if kind == 'class'}
            self.parameters |= {x.arg for _, node, _, _ in known for x in ast.walk(node) if isinstance(x, ast.arg)}
            self.parameters |= {x.target.id for _, node, _, _ in known for x in ast.walk(node)
                if isinstance(x, ast.AnnAssign) and isinstance(x.target, ast.Name)}
        config = ConfigParser(interpolation=None)
        config.read(root/'settings.ini', encoding='utf-8')
        scripts = [line.split('=') for line in config['DEFAULT']['console_scripts'].split()]
        self.commands = {where: command for command, where in scripts}
        for command, where in scripts: self.names[command] = 'py:obj', where.replace(':', '.')

    def linked(self, text, chapter):
        "Markdown whose names, chapter numbers and links to notebooks lead to pages of this site."
        def name(m):
            bare = m[1].removesuffix('()')
            if bare in chapter.said: return to('py:obj', m[1], f'{chapter.module}.{bare}')
            if m[1] in self.parameters: return m[0]   # of another chapter and also a parameter's name: who knows
            return to(self.names[bare][0], m[1], self.names[bare][1]) if bare in self.names else m[0]
        def number(m):
            return to('doc', m[0], self.numbers[m[0]].name) if m[0] in self.numbers else m[0]
        def outside(m):
            path = (root/'nbs'/m[2]).resolve()
            if path.is_dir(): return m[1]
            (target := self.files/path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
            return f'<a href="{target.relative_to(self.files.parent).as_posix()}">{m[1]}</a>'
        def prose(part):
            part = THEIRS.sub(r'\1', part)
            part = re.sub(r'\[([^][]*)\]\((\.\./[^)]+)\)', outside, part)
            part = re.sub(r'\]\((?:\d\d[a-z]?_)?(\w+\.ipynb)', r'](\1', part)
            part = re.sub(r'(?<=hapter)s?\s+\d+[a-z]?(?:(?:,| and| to|–)\s?\d+[a-z]?)*\b',
                lambda m: re.sub(r'\d+[a-z]?', number, m[0]), part)
            return re.sub(r'(?<![`\[\w}])`([\w.-]+(?:\(\))?)`(?!`)', name, part)
        at, found = 0, []
        for m in LITERAL.finditer(text):
            found += [prose(text[at:m.start()]), m[0]]
            at = m.end()
        return ''.join([*found, prose(text[at:])])

    def page(self, chapter):
        "The cells of a page."
        label = f'Chapter {chapter.spoken} · `{chapter.module}`' if chapter.said else f'Chapter {chapter.spoken}'
        head = [f'# {chapter.title}', f'{FULL}{{py:currentmodule}} {chapter.module}\n{FULL}', f'{{.chapter}}\n{label}' if chapter.number else '', f'{{.claim}}\n{self.linked(chapter.claim, chapter)}']
        if not chapter.number: head.append(self.contents())
        yield markdown('\n\n'.join([*filter(None, head), self.linked(chapter.opening, chapter)]))
        alt = chapter.title
        for cell in chapter.cells[1:]:
            directives, body = split_directives(cell['source'])
            if 'hide' in directives or directives.get('include') == 'false': continue
            if 'export' in directives: yield from self.exported(body, chapter)
            elif cell['id'] not in chapter.kept: continue
            elif cell['cell_type'] == 'markdown':
                yield markdown(self.linked(chapter.kept[cell['id']]['source'], chapter))
                alt = plain(cell['source']) or alt
            elif cell['cell_type'] == 'code': yield code(chapter.kept[cell['id']], alt)

    def exported(self, body, chapter):
        "The entries of an exported cell, and the cell, folded away; nothing of one that only imports."
        if all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(body).body): return
        entries = [entry(chapter.said[name], name, node, kind, self, chapter.module)
            for name, node, kind in definitions(body) if name in chapter.said]
        fold = f'<details class="source"><summary>Source</summary>\n\n{FULL}python\n{body}\n{FULL}\n\n</details>'
        yield markdown('\n\n'.join([*(self.linked_entry(e, chapter) for e in entries), fold]))

    def linked_entry(self, text, chapter):
        "The same entry with links in what follows its head."
        head, mark, rest = text.partition('\n\n')
        return head + mark + self.linked(rest.removesuffix(FULL), chapter) + FULL if mark else text

    def contents(self):
        "The hidden tables of contents that become the sidebar."
        parts = []
        for c in self.chapters:
            if c.number in PARTS: parts.append(f'{FULL}{{toctree}}\n:hidden:\n:caption: {PARTS[c.number]}\n')
            parts.append(f'{c.spoken}   {c.title} <{c.name}>')
            if c is self.chapters[-1] or self.chapters[self.chapters.index(c) + 1].number in PARTS: parts.append(FULL + '\n')
        return '\n'.join([*parts, f'{FULL}{{toctree}}\n:hidden:\n:caption: Names\n\nAll names <genindex>\n{FULL}'])


def to(role, text, target): return f'{{{role}}}`{text} <{target}>`'

def markdown(text): return dict(cell_type='markdown', metadata={}, source=text)


def plain(text):
    "The last paragraph of some Markdown, for those who do not see the figure that it speaks of."
    last = re.split(r'\n\s*\n', text.strip())[-1]
    if re.match(r'[#|`>$]', last): return ''
    return ' '.join(re.sub(r'\[([^]]*)\]\([^)]*\)|[`*_$]', r'\1', last).split())[:300].replace('"', "'")


def high(png):
    "Half the width of a PNG whose pixels are small, else None."
    found = re.search(b'pHYs(....)', png[:4096], re.S)
    if found and struct.unpack('>I', found[1])[0] > 110/.0254: return struct.unpack('>I', png[16:20])[0]//2


def code(cell, alt):
    "A code cell as MyST-NB shows it: what it prints to stderr left out, pictures at their size."
    directives, source = split_directives(cell['source'])
    tags = [f'remove-{part}' for key, part in (('echo', 'input'), ('output', 'output')) if directives.get(key) == 'false']
    outputs, image = [o for o in cell['outputs'] if o.get('name') != 'stderr'], dict(alt=alt)
    for o in outputs:
        data = o.get('data', {})
        if 'text/markdown' in data: data['text/markdown'] = THEIRS.sub(r'\1', ''.join(data['text/markdown']))
        if 'image/png' in data:
            data.pop('image/jpeg', None)
            png = base64.b64decode(''.join(data['image/png']))
            if (width := high(png)): image['width'] = f'{width}px'
            if struct.unpack('>I', png[16:20])[0] <= 128: image['classes'] = 'pixels'
    return dict(cell_type='code', metadata=dict(tags=tags, mystnb=dict(image=image)), execution_count=None,
        source=source, outputs=outputs)


def main(out, processed):
    meta = dict(kernelspec=dict(name='python3', display_name='Python 3', language='python'),
        language_info=dict(name='python', pygments_lexer='ipython3'))
    with tempfile.TemporaryDirectory() as folder:
        book, source = Book(processed), Path(folder)
        book.files = source/'extra/root/files'
        book.files.mkdir(parents=True)
        for c in [book.index, *book.chapters]:
            cells = [dict(cell, id=f'c{k}') for k, cell in enumerate(book.page(c))]
            (source/f'{c.name}.ipynb').write_text(json.dumps(dict(cells=cells, metadata=meta, nbformat=4, nbformat_minor=5)))
        failed = sphinx(['-c', str(docs), '-q', '-W', '--keep-going', '-b', 'html', '-d', f'{folder}/extra/.trees',
            '-D', f'html_extra_path={folder}/extra/root', folder, f'{folder}/extra/html'])
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(f'{folder}/extra/html', out)
        return failed


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description='Build the site')
    parser.add_argument('--out', type=Path, default=root/'_docs')
    out = parser.parse_args().out
    sys.exit(main(out, proc_nbs(n_workers=2)))
