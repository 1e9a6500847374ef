"""Write README.md from nbs/index.ipynb and its pictures into docs/readme_files/.

`--check` writes nothing and fails on a difference. Left out: raw cells, cells marked `#| hide`,
directive lines, what goes to stderr; `#| echo: false` leaves out a cell's code, `#| output: false`
what it shows. The overview of the chapters is written into the notebook first. Links of the notebook are
turned to where they lead from the top folder.
"""
import base64
import json
import re
import sys
from pathlib import Path

from chapters import overview

root = Path(__file__).resolve().parent.parent
notebook, readme, pictures = root/'nbs/index.ipynb', root/'README.md', root/'docs/readme_files'
SUFFIX = {'image/svg+xml': 'svg', 'image/png': 'png', 'image/jpeg': 'jpg', 'image/gif': 'gif'}
CHAPTERS = '<!-- chapters -->'   # opens the cell that lists them
HEAD = '<!-- Written by `make readme` from nbs/index.ipynb: edit the notebook. -->'
DIRECTIVE = re.compile(r'#\s*\|\s*([\w-]+)\s*:?\s*(.*)')


def split_directives(source):
    "Split a cell into its directives, name -> value, and the rest of its source."
    directives, rest = {}, []
    for line in source.splitlines():
        m = DIRECTIVE.match(line)
        if m: directives[m[1]] = m[2].strip()
        else: rest.append(line)
    return directives, '\n'.join(rest).strip()


def relink(text):
    "Turn links that lead from nbs/ into links that lead from the top folder."
    def turn(m):
        path, mark, part = m[2].partition('#')
        target = (notebook.parent/path).resolve()
        inside = path and ':' not in path and target.is_relative_to(root)
        return m[1] + (target.relative_to(root).as_posix() + mark + part if inside else m[2])
    return re.sub(r'(\]\(|(?:src|href)=")([^)"\s]+)', turn, text)


def shown(output, name, files, alt):
    "Return one output as Markdown; a picture is added to the dict `files`, with `alt` as its text."
    data = output.get('data', {})
    data = {kind: ''.join(value) for kind, value in data.items() if isinstance(value, (str, list))}
    if output['output_type'] == 'error':
        sys.exit(f'nbs/index.ipynb: cell {name} holds an error; run it again')
    for kind, suffix in SUFFIX.items():
        if kind in data:
            file = f'{name}.{suffix}'
            files[file] = data[kind].encode() if suffix == 'svg' else base64.b64decode(data[kind])
            return f'![{alt}]({(pictures/file).relative_to(root).as_posix()})'
    if 'text/markdown' in data: return relink(data['text/markdown'])
    if 'text/html' in data: return data['text/html']
    text = data.get('text/plain', '')
    if not text and output.get('name') == 'stdout': text = ''.join(output.get('text', ''))
    return f'```\n{text.rstrip()}\n```' if text.strip() else ''


def with_chapters(text):
    "Return the notebook's JSON with the current chapters in the cell that lists them."
    parsed = json.loads(text)
    for cell in parsed['cells']:
        if ''.join(cell['source']).startswith(CHAPTERS):
            cell['source'] = f'{CHAPTERS}\n\n## The book\n\n{overview()}'.splitlines(True)
    return json.dumps(parsed, indent=1, ensure_ascii=False, sort_keys=True) + '\n'


def render():
    "Return the text of README.md, and its pictures, file name -> bytes."
    parts, files = [HEAD], {}
    for cell in json.loads(notebook.read_text(encoding='utf-8'))['cells']:
        directives, source = split_directives(''.join(cell['source']))
        if cell['cell_type'] == 'raw' or 'hide' in directives: continue
        if cell['cell_type'] == 'markdown':
            parts.append(relink(source.removeprefix(CHAPTERS).lstrip('\n')))
        else:
            if source and directives.get('echo') != 'false':
                parts.append(f'```python\n{source}\n```')
            wanted = cell['outputs'] if directives.get('output') != 'false' else []
            alt = directives.get('fig-alt', '').strip('"')
            for k, output in enumerate(wanted):
                parts.append(shown(output, f'{cell["id"]}-{k}', files, alt))
    return '\n\n'.join(part for part in parts if part) + '\n', files


def main(check):
    "Write README.md and its pictures; with `check`, exit with a message if they differ instead."
    if not notebook.exists(): sys.exit('nbs/index.ipynb, the source of README.md, is missing')
    book = notebook.read_text(encoding='utf-8')
    new = with_chapters(book)
    if CHAPTERS in book and new != book:
        if check:
            sys.exit('nbs/index.ipynb does not list the present chapters: run `make readme` '
                     'and commit what it writes')
        notebook.write_text(new, encoding='utf-8')
    text, files = render()
    old = {path.name: path.read_bytes() for path in pictures.glob('*')}
    if check:
        if not readme.exists() or readme.read_text(encoding='utf-8') != text or old != files:
            sys.exit('README.md is out of step with nbs/index.ipynb: run `make readme` and commit '
                     'what it writes')
        return
    readme.write_text(text, encoding='utf-8')
    for name in old.keys() - files.keys(): (pictures/name).unlink()
    if files: pictures.mkdir(exist_ok=True)
    for name, data in files.items(): (pictures/name).write_bytes(data)


if __name__ == '__main__': main('--check' in sys.argv[1:])
