"Turn what nbdev's `show_doc` prints of a function or class into an entry of Sphinx's domain."
import ast
import io
import re
import tokenize

FULL = '`'*9   # a fence around text that may hold shorter fences


def definitions(source):
    """Yield (name, node, Sphinx's word for its kind) of the functions and classes of a cell.

    A patched method is named `Class.method`."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef): yield node.name, node, 'class'
        if not isinstance(node, ast.FunctionDef): continue
        decorators = [ast.unparse(d) for d in node.decorator_list]
        patches = [d for d in decorators if d.startswith('patch')]
        if not patches:
            yield node.name, node, 'function'
            continue
        kind = 'property' if 'as_prop' in patches[0] else 'method'
        for owner in ast.unparse(node.args.args[0].annotation).split(' | '):
            yield f'{owner}.{node.name}', node, kind


def comments(source, above=False):
    """Return the comments of some code, line -> text.

    A comment on a line of its own continues the comment before it. With `above`, it does so only if
    it is right below that comment in the same column; otherwise it is about the next line of code.
    """
    found, waiting = {}, []
    line = row = column = None   # the line that the last comment is about, and where it stands
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip('# ')
            alone = not token.line[:token.start[1]].strip()
            goes_on = line and not waiting and (not above or token.start == (row + 1, column))
            if not alone or not above and not line:
                line = token.start[0]
                found[line] = text
            elif goes_on: found[line] = f'{found[line]} {text}'.strip()
            else: waiting.append(text)
            row, column = token.start
        elif waiting and token.string.strip():
            if token.string not in ('def', 'async', 'class', '@'):
                found[token.start[0]] = ' '.join(waiting)
            waiting = []
    return found


def type_of(node):
    "Return an annotation as text, without the modules of its types; '' if there is none."
    if not node: return ''
    text = re.sub(r'\b(?:[A-Za-z_]\w*\.)+(?=\w)', '', ast.unparse(node))
    return '' if text == 'NoneType' else text   # all that nbdev knows of `x=None`


def all_arguments(a):
    "List the arguments of a signature as (stars, argument, default or None)."
    plain = [*a.posonlyargs, *a.args]
    defaults = [None]*(len(plain) - len(a.defaults)) + a.defaults
    found = [('', p, default) for p, default in zip(plain, defaults)]
    if a.vararg: found.append(('*', a.vararg, None))
    for p, default in zip(a.kwonlyargs, a.kw_defaults): found.append(('', p, default))
    if a.kwarg: found.append(('**', a.kwarg, None))
    return found


def parameters(said):
    """Read the signature that `show_doc` printed.

    Returns the parameters as a list of (name, type, default, comment), and the result as (type,
    comment)."""
    code = re.search(r'```python\n(?:async )?(.*?)\n```', said, re.S)[1]
    # defaults that are not Python code: functions by their name, other objects as ...
    code = re.sub(r'<(?:built-in )?function (\w+?)(_arg)?(?: at \w+)?>', r'\1', code)
    code = re.sub('=<[^<>]+>', '=...', code)
    # the further lines of a comment, which nbdev prints without `#`
    code = re.sub(r'\n(?!\s|\)|def |class )', ' ', code)
    notes = comments(code)
    node = ast.parse(f'{code}\n    pass').body[0]
    for end, line in enumerate(code.splitlines(), 1):
        if re.match(r'\)|def \w+\(\)', line): break
    arguments = all_arguments(node.args)
    last_on_line = {p.lineno: p.arg for _, p, _ in arguments}   # which a comment speaks of
    note = {last_on_line[k]: text for k, text in notes.items() if k in last_on_line and k < end}
    rows = []
    for stars, p, default in arguments:
        value = ast.unparse(default) if default else ''
        rows.append((stars + p.arg, type_of(p.annotation), value, note.get(p.arg, '')))
    if node.args.kwonlyargs and not node.args.vararg:
        rows.insert(len(node.args.posonlyargs) + len(node.args.args), ('*', '', '', ''))
    result = type_of(node.returns), ' '.join(text for k, text in notes.items() if k >= end)
    return rows, ('', '') if result == ('None', '') else result


def signature_end(source, node):
    "Return the number of the line on which the signature of a function ends."
    if node.returns: return node.returns.end_lineno
    lines = source.splitlines()
    for k in range(max(node.lineno, node.body[0].lineno - 1), node.lineno - 1, -1):
        if re.match(r'[^#]*:\s*(#|$)', lines[k-1]): return k
    return node.lineno


def constructor(node):
    "Return the node of the `__init__` of a class, or None."
    for part in node.body:
        if getattr(part, 'name', '') == '__init__': return part


def described(source, node):
    """Return the comments on the parameters of a function, name -> comment, and on its result.

    For a class, those of its `__init__`."""
    if isinstance(node, ast.ClassDef): node = constructor(node)
    if not node: return {}, ''
    notes, end = comments(source, above=True), signature_end(source, node)
    back = notes.get(end, '')
    found, last_on_line = {}, {}
    for _, p, _ in all_arguments(node.args):
        found[p.arg] = ''
        last_on_line[p.lineno] = p.arg
    for k, name in last_on_line.items():
        if k < end: found[name] = notes.get(k, '')
    if end in last_on_line and not node.returns and not back.startswith('->'):
        found[last_on_line[end]] = back
        back = ''
    return found, back.removeprefix('->').strip()


def signature(rows, result, types):
    "Return a signature on one line, with types or without."
    written = []
    for name, kind, default, _ in rows:
        if types and kind: written.append(f'{name}: {kind}' + (f' = {default}' if default else ''))
        else: written.append(f'{name}={default}' if default else name)
    return f'({", ".join(written)})' + (f' -> {result}' if result else '')


def table(rows, result):
    "Return a Markdown table of parameters with nbdev's columns; empty columns are left out."
    def code(text): return f'`{text}`' if text else ''
    body = []
    for name, kind, default, note in rows:
        if name != '*': body.append((f'``{name}``', code(kind), code(default), note))
    if any(result): body.append(('*returns*', code(result[0]), '', result[1]))
    lines = [('Parameter', 'Type', 'Default', 'Details'), ['---']*4, *body]
    used = [0]
    for k in 1, 2, 3:
        if any(row[k] for row in body): used.append(k)
    written = []
    for line in lines:
        cells = [line[k].replace('|', r'\|') for k in used]
        written.append(f'| {" | ".join(cells)} |')
    return '\n'.join(written)


def fields(node, classes):
    "Return field -> comment of a dataclass and of the dataclasses that it inherits from."
    found = {}
    for base in node.bases:
        name = getattr(base, 'id', '')
        if name in classes: found |= fields(classes[name][0], classes)
    notes = comments(classes[node.name][1], above=True)
    for f in node.body:
        if isinstance(f, ast.AnnAssign):
            found[f.target.id] = notes.get(f.end_lineno) or notes.get(f.lineno, '')
    return found


def entry(said, name, node, kind, classes, source, command=None):
    """Return the head of an entry and the text below it.

    Types are in the head, or in a table below it if parameters have comments."""
    # `show_doc` moves or drops the comments of the last parameter and of the result
    rows, result = parameters(said)
    notes, back = described(source, node)
    rows = [(*row[:3], notes.get(row[0].lstrip('*'), row[3])) for row in rows]
    result = result[0] if back or result[0] != 'None' else '', back
    if kind == 'class' and 'dataclass' in ' '.join(map(ast.unparse, node.decorator_list)):
        notes = fields(node, classes)
        rows = [(*row[:3], row[3] or notes.get(row[0], '')) for row in rows]
    documented = any(row[3] for row in rows) or result[1]
    head = f'{{py:{kind}}} {name}'
    if kind != 'property':
        head += signature(rows, '' if kind == 'class' else result[0], not documented)
        if documented: head += '\n:single-line-parameter-list:'
    # the table below says the rest
    doc = re.split(r'\n\s*(?:Args|Returns):', said.rpartition('```')[2])[0]
    doc = re.sub(r'^\*(.*)\*$', r'\1', doc.strip(), count=1, flags=re.M)
    body = []
    if command: body.append(f'On the command line: `{command}`')
    if doc: body.append(doc)
    if documented: body.append(table(rows, result))
    return head, '\n\n'.join(body)
