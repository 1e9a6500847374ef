"What nbdev's `show_doc` says of a function or class, turned into an entry of Sphinx's Python domain."
import ast
import io
import re
import tokenize

FULL = '`'*9   # fences what may hold fences


def definitions(source):
    "The functions and classes of a cell, `Class.method` for patched ones, each with the word Sphinx has for its kind."
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef): yield node.name, node, 'class'
        if not isinstance(node, ast.FunctionDef): continue
        how = next((ast.unparse(d) for d in node.decorator_list if ast.unparse(d).startswith('patch')), None)
        kind = 'function' if not how else 'property' if 'as_prop' in how else 'method'
        owners = ast.unparse(node.args.args[0].annotation).split(' | ') if how else [None]
        for owner in owners: yield '.'.join(filter(None, [owner, node.name])), node, kind


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
    "The parameters that `show_doc` names, as (name, type, default, comment), and the result, as (type, comment)."
    code = re.search(r'```python\n(?:async )?(.*?)\n```', said, re.S)[1]
    code = re.sub(r'<(?:built-in )?function (\w+?)(_arg)?(?: at \w+)?>', r'\1', code)
    code = re.sub('=<[^<>]+>', '=...', code)
    lines, notes = code.splitlines(), comments(code)
    node = ast.parse(f'{code}\n    pass').body[0]
    a, end = node.args, next(k for k, line in enumerate(lines, 1) if re.match(r'\)|def \w+\(\)', line))
    plain = [*a.posonlyargs, *a.args]
    default = dict(zip(plain[::-1], a.defaults[::-1])) | {k: v for k, v in zip(a.kwonlyargs, a.kw_defaults) if v}
    every = [('', p) for p in plain] + [('*', a.vararg)] + [('', p) for p in a.kwonlyargs] + [('**', a.kwarg)]
    every = [(star, p) for star, p in every if p]
    last = {p.lineno: p.arg for _, p in every}   # a comment speaks of the last parameter on its line
    note = {last[k]: text for k, text in notes.items() if k in last and k < end}
    rows = [(star + p.arg, type_of(p.annotation), ast.unparse(default[p]) if p in default else '', note.get(p.arg, ''))
        for star, p in every]
    if a.kwonlyargs and not a.vararg: rows.insert(len(plain), ('*', '', '', ''))
    result = type_of(node.returns), ' '.join(text for k, text in notes.items() if k >= end)
    return rows, ('', '') if result == ('None', '') else result


def beside(source, node):
    "What stands beside the parameters of a function, or of a class's `__init__`, {name: comment}, and beside its result."
    if isinstance(node, ast.ClassDef): node = next((f for f in node.body if getattr(f, 'name', '') == '__init__'), None)
    if not node: return {}, ''
    a, lines, notes = node.args, source.splitlines(), comments(source)
    every = [p for p in (*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg) if p]
    below = range(max(node.lineno, node.body[0].lineno - 1), node.lineno - 1, -1)
    end = node.returns.end_lineno if node.returns else next((k for k in below if re.match('[^#]*:\\s*(#|$)', lines[k-1])),
        node.lineno)
    found, last, back = {p.arg: '' for p in every}, {p.lineno: p.arg for p in every}, notes.get(end, '')
    found |= {name: notes.get(k, '') for k, name in last.items() if k < end}
    if end in last and not node.returns and not back.startswith('->'): found[last[end]], back = back, ''
    return found, back.removeprefix('->').strip()


def signature(rows, result, types):
    "All parameters on one line, with types or without."
    def one(name, kind, default, _):
        if not types or not kind: return f'{name}={default}' if default else name
        return f'{name}: {kind} = {default}' if default else f'{name}: {kind}'
    return f'({", ".join(one(*row) for row in rows)})' + (f' -> {result}' if result else '')


def table(rows, result):
    "A line for each parameter, in the columns of nbdev's own table; empty columns are left out."
    def code(text): return f'`{text}`' if text else ''
    body = [(f'``{name}``', code(kind), code(default), note) for name, kind, default, note in rows if name != '*']
    if any(result): body.append(('*returns*', code(result[0]), '', result[1]))
    used = [k for k in range(4) if k == 0 or any(row[k] for row in body)]
    body = [[text.replace('|', r'\|') for text in row] for row in body]
    lines = [('Parameter', 'Type', 'Default', 'Details'), ['---']*4, *body]
    return '\n'.join(f'| {" | ".join(line[k] for k in used)} |' for line in lines)


def fields(node, classes):
    "The comments of a dataclass's fields, those of the classes before it, too."
    found = {}
    for base in node.bases: found |= fields(classes[base.id][0], classes) if getattr(base, 'id', '') in classes else {}
    notes = comments(classes[node.name][1])
    return found | {f.target.id: notes.get(f.end_lineno, '') for f in node.body if isinstance(f, ast.AnnAssign)}


def entry(said, name, node, kind, classes, source, command=None):
    "The head of an entry and what stands below it: types in the head, or in a table where parameters have comments."
    rows, result = parameters(said)   # which moves or drops the comments of the last parameter and of the result
    notes, back = beside(source, node)
    rows = [(*row[:3], notes.get(row[0].lstrip('*'), row[3])) for row in rows]
    result = result[0] if back or result[0] != 'None' else '', back
    if kind == 'class' and 'dataclass' in ' '.join(map(ast.unparse, node.decorator_list)):
        notes = fields(node, classes)
        rows = [(*row[:3], row[3] or notes.get(row[0], '')) for row in rows]
    documented = any(row[3] for row in rows) or result[1]
    head = '' if kind == 'property' else signature(rows, '' if kind == 'class' else result[0], not documented)
    head = f'{{py:{kind}}} {name}{head}' + ('\n:single-line-parameter-list:' if documented and head else '')
    doc = re.split(r'\n\s*(?:Args|Returns):', said.rpartition('```')[2])[0]   # the table below says the rest
    doc = re.sub(r'^\*(.*)\*$', r'\1', doc.strip(), count=1, flags=re.M)
    body = f'On the command line: `{command}`' if command else '', doc, table(rows, result) if documented else ''
    return head, '\n\n'.join(filter(None, body))
