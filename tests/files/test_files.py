"Whatever is written is whole, whatever is replaced was made here, and whatever is reused was compared by content."
import errno, itertools, json, os, shutil, signal, subprocess, sys, warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from arldm import core
from arldm.files import atomic as files
from arldm.files import kept_results, manifest
from arldm.command_line import command
from arldm.core import StoryError, say
from arldm.files.atomic import (FolderTaken, as_read_back, create_json, load_json, lock_folder, refuse_foreign,
                                save_json, whole_folder)
from arldm.files.manifest import (MANIFEST, folder_digest, hinted_path, path_hints, read_manifest,
                                  recover_folder, record_provenance, replace_folder)
from arldm.files.raw_folder import RawFolder
from elsewhere import PYTHONPATH


# the files of a corpus

def test_the_file_nearer_to_the_top_counts(tmp_path):
    "Then the first in the alphabet, whatever lies deeper."
    for name in 'b/x.json', 'a/old/x.json', 'c/x.json', 'a/old/1.png', 'b/1.png':
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).write_text('')
    raw = RawFolder(tmp_path)
    assert raw.files['x.json'] == str(tmp_path/'b/x.json') and raw.pictures['1'] == str(tmp_path/'b/1.png')


# folders that are replaced

def write(folder, text, names=('a.txt', 'unet/b.txt')):
    with replace_folder(folder, dict(step=text)) as tmp:
        for name in names:
            (tmp/name).parent.mkdir(exist_ok=True)
            (tmp/name).write_text(text)

def content(folder): # {name: text} of all files
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob('*')) if p.is_file()}

def whole(folder): # what was written, if all of it is there
    recover_folder(folder)
    texts = content(folder)
    return texts['a.txt'] if texts.keys() == {'a.txt', 'unet/b.txt', MANIFEST} and texts['unet/b.txt'] == texts['a.txt'] else None

def at_change(k):
    "Kill this process before its `k`-th change of the disk."
    count, changes = itertools.count(1), ('os.mkdir', 'os.rename', 'os.remove', 'os.rmdir', 'os.chmod', 'shutil.rmtree')
    def heard(event, args):
        if event in changes or event == 'open' and 'w' in str(args[1]):
            if next(count) == k: os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(heard)

def test_killed_at_every_point_of_a_replacement(tmp_path):
    "Either the old folder is there whole or the new one, never neither; the next replacement leaves nothing behind."
    ends = []
    for k in itertools.count(1):
        folder = tmp_path/str(k)/'pipeline'
        folder.parent.mkdir()
        write(folder, 'old')
        if (pid := os.fork()) == 0:
            at_change(k)
            write(folder, 'new')
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        ends.append(whole(folder))
        write(folder, 'newest')
        assert whole(folder) == 'newest' and os.listdir(folder.parent) == ['pipeline'], k
        if status == 0: break
    assert set(ends) == {'old', 'new'} and ends == sorted(ends, reverse=True) and k > 12, ends

@pytest.mark.parametrize('name', ['thesis.tex', 'unet/note.txt', '.hidden'])
def test_a_file_of_somebody_else_is_never_deleted(tmp_path, name):
    folder = tmp_path/'story'
    write(folder, 'old')
    (folder/name).write_text('ten years of work')
    before = content(folder)
    with pytest.raises(StoryError, match=f'{name} was not written by arldm'): write(folder, 'new')
    assert content(folder) == before and os.listdir(tmp_path) == ['story']

def test_a_folder_that_was_not_made_here_is_never_replaced(tmp_path):
    folder = tmp_path/'holiday'
    folder.mkdir()
    (folder/'1.png').write_text('a photo')
    for what in (lambda: write(folder, 'new'), lambda: whole_folder(folder).__enter__()):
        with pytest.raises(StoryError, match='move'): what()
    assert content(folder) == {'1.png': 'a photo'}
    shutil.rmtree(folder)
    folder.symlink_to(tmp_path)
    for what in (lambda: write(folder, 'new'), lambda: whole_folder(folder).__enter__()):
        with pytest.raises(FolderTaken): what()

def test_a_changed_file_is_somebodys_work(tmp_path):
    folder = tmp_path/'story'
    write(folder, 'old')
    (folder/'a.txt').write_text('retouched by hand')
    with pytest.raises(StoryError, match='a.txt was not written by arldm, or was changed since'): write(folder, 'new')
    assert (folder/'a.txt').read_text() == 'retouched by hand'

def test_a_file_that_comes_while_the_new_folder_is_filled_stays(tmp_path):
    folder = tmp_path/'story'
    write(folder, 'old')
    with pytest.raises(StoryError, match='late.txt'):
        with replace_folder(folder) as tmp:
            (tmp/'a.txt').write_text('new')
            (folder/'late.txt').write_text('mine')
    assert content(folder)['late.txt'] == 'mine' and content(folder)['a.txt'] == 'old'

@pytest.mark.parametrize('name', ['../precious.txt', '/precious.txt', 'unet/../../precious.txt', '.'])
def test_a_manifest_reaches_nothing_outside(tmp_path, name):
    "Made by hand, or shipped with a model."
    folder, precious = tmp_path/'story', tmp_path/'precious.txt'
    write(folder, 'old')
    precious.write_text('ten years')
    made = load_json(folder/MANIFEST)
    made['files'][str(precious) if name[0] == '/' else name] = manifest.file_digest(precious)
    save_json(folder/MANIFEST, made)
    with pytest.raises(StoryError, match='is not a file of this folder'): write(folder, 'new')
    assert precious.read_text() == 'ten years' and content(folder)['a.txt'] == 'old'

@pytest.mark.parametrize('name', ['.story-old-best', '.story-old-copy', '.story-old-notes.txt', '.story-old-0123abcd'])
def test_copies_of_somebody_are_not_taken_for_leftovers(tmp_path, name):
    folder, copy = tmp_path/'story', tmp_path/name
    write(folder, 'old')
    if name.endswith('.txt'): copy.write_text('notes')
    else:
        shutil.copytree(folder, copy)
        (copy/'a.txt').write_text('edited by hand')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        write(folder, 'new')
    assert (copy.read_text() if name.endswith('.txt') else (copy/'a.txt').read_text()) in ('notes', 'edited by hand')
    assert content(folder)['a.txt'] == 'new'

def test_temporary_names_of_the_living_are_left_alone(tmp_path):
    "Also those of a target whose name holds dots and dashes, such as a date."
    import uuid
    start, dead = f'-{uuid.getnode():x}-', 999_999
    there = [f'.st{start}{os.getpid()}-aaaaaaaa.2026-{dead}-05', f'.st{start}{os.getpid()}-aaaaaaaa', f'.st{start}mine',
             f'.st{start}{dead}-aaaaaaaa', f'.v1{start}{dead}-aaaaaaaa.5-ssid']
    for name in there: (tmp_path/name).mkdir()
    for target in 'st', 'v1.5-ssid':
        with whole_folder(tmp_path/target) as tmp: (tmp/'a').touch()
    assert {p.name for p in tmp_path.iterdir()} == {*there[:3], 'st', 'v1.5-ssid'}

def undeletable(path, on): return subprocess.run(['chattr', '+i' if on else '-i', path], capture_output=True).returncode == 0

def test_an_old_file_that_cannot_be_deleted_costs_nothing(tmp_path):
    "As an open picture on a network drive or on Windows: the new folder is in place, the old one waits aside."
    folder = tmp_path/'pipeline'
    write(folder, 'old')
    if not undeletable(folder/'a.txt', True): pytest.skip('chattr needs root, and a file system that knows it')
    try:
        with pytest.warns(UserWarning, match='could not be deleted completely'): write(folder, 'new')
        assert content(folder)['a.txt'] == 'new'
        aside, = tmp_path.glob('.pipeline-old-*')
        assert content(aside)['a.txt'] == 'old'
    finally: undeletable(next(tmp_path.glob('.pipeline-old-*/a.txt'), folder/'a.txt'), False)
    write(folder, 'newest')
    assert os.listdir(tmp_path) == ['pipeline'] and content(folder)['a.txt'] == 'newest'

def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    folder, rename = tmp_path/'pipeline', os.rename
    write(folder, 'old')
    def fail_in(a, b):
        if Path(b) == folder and '-old-' not in str(a): raise OSError(errno.EIO, 'Input/output error', str(b))
        rename(a, b)
    monkeypatch.setattr(os, 'rename', fail_in)
    with pytest.raises(OSError, match='Input/output'): write(folder, 'new')
    monkeypatch.undo()
    assert whole(folder) == 'old' and os.listdir(tmp_path) == ['pipeline']


# provenance

def test_other_facts_are_refused_and_paths_are_only_hints(tmp_path):
    path, facts = tmp_path/'run/drawing.json', dict(weights='0'*32, steps=20, interval=(0., 1.))
    record_provenance(path, facts, dict(data='/a/stories.h5'))
    record_provenance(path, facts, dict(data='/b/stories.h5'))
    assert load_json(path) == {**facts, 'interval': [0, 1], 'data': '/b/stories.h5'}
    for other in dict(steps=21), dict(weights='1'*32), dict(interval=(0, .5)), dict(seed=0):
        with pytest.raises(StoryError, match=f'was made with {next(iter(other))}=.*, not .*; take another'):
            record_provenance(str(path), facts | other, advice='take another')
    assert load_json(path)['data'] == '/b/stories.h5' and os.listdir(path.parent) == ['drawing.json']

def test_of_commands_at_the_same_instant_one_wins(tmp_path):
    children = []
    for seed in range(8):
        if (pid := os.fork()) == 0:
            try: record_provenance(tmp_path/'drawing.json', dict(seed=seed))
            except StoryError: os._exit(1)
            os._exit(0)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert sorted(codes) == [0] + [1]*7 and codes[load_json(tmp_path/'drawing.json')['seed']] == 0
    assert os.listdir(tmp_path) == ['drawing.json']

def test_without_hard_links_a_file_is_created_all_the_same(tmp_path, monkeypatch):
    def link(*_): raise PermissionError(errno.EPERM, 'Operation not permitted')
    monkeypatch.setattr(os, 'link', link)
    assert create_json(tmp_path/'a.json', 1) and not create_json(tmp_path/'a.json', 2)
    assert load_json(tmp_path/'a.json') == 1 and os.listdir(tmp_path) == ['a.json']

def test_a_moved_folder_finds_its_data(tmp_path):
    "Data within the folder, beside it and elsewhere; an absolute path alone, as older runs have it."
    for place in 'd/stories.h5', 'stories.h5':
        (tmp_path/'at/d').mkdir(parents=True)
        (tmp_path/'at'/place).write_text('mine')
        hints = path_hints(tmp_path/'at/d', tmp_path/'at'/place)
        (tmp_path/'at').rename(tmp_path/'moved')
        assert hinted_path(tmp_path/'moved/d', hints).resolve() == (tmp_path/'moved'/place).resolve()
        shutil.rmtree(tmp_path/'moved')
    (tmp_path/'far.h5').touch(), (tmp_path/'run').mkdir()
    hints = path_hints(tmp_path/'run', tmp_path/'far.h5')
    (tmp_path/'run').rename(tmp_path/'r'), (tmp_path/'deep/er').mkdir(parents=True)
    shutil.move(tmp_path/'r', tmp_path/'deep/er/r')
    assert hinted_path(tmp_path/'deep/er/r', hints) == tmp_path/'far.h5'
    assert hinted_path(tmp_path, dict(data=str(tmp_path/'far.h5'))) == tmp_path/'far.h5'
    assert hinted_path(tmp_path, {}) is None

def test_a_digest_is_of_names_and_contents(tmp_path):
    write(tmp_path/'a', 'x'), write(tmp_path/'b', 'x'), write(tmp_path/'c', 'y'), write(tmp_path/'d', 'x', ['a.txt', 'unet/c.txt'])
    save_json(tmp_path/'b'/MANIFEST, {'step': 99})
    (tmp_path/'b/.nfs0001').touch()
    a, b, c, d = (folder_digest(tmp_path/name) for name in 'abcd')
    assert a == b and len({a, c, d}) == 3


# JSON

@pytest.mark.parametrize('text, said', [
    ('[1]', 'it must be an object, got [1]'), ('{"steps": "4"}', 'steps must be a whole number, got "4"'),
    ('{"steps": true}', 'steps must be a whole number, got true'), ('{"steps": 4.5}', 'steps must be a whole number, got 4.5'),
    ('{}', 'steps is missing'), ('{"steps": 4, "lr": "1"}', 'lr must be a number or null'),
    ('{"steps": 4, "rows": [{"n": 1}, 2]}', 'rows[1] must be an object, got 2'),
    ('{"steps": 4, "rows": [{"n": null}]}', 'rows[0].n must be a whole number, got null'),
    ('{"steps": 4, "by": {"7": "x"}}', 'by.7 must be a number, got "x"')])
def test_the_line_names_the_key(tmp_path, text, said):
    shape = {'steps': int, 'lr?': (float, type(None)), 'rows?': [dict(n=int)], 'by?': {'*': float}}
    (tmp_path/'s.json').write_text(text)
    with pytest.raises(StoryError) as e: load_json(tmp_path/'s.json', shape)
    assert str(e.value) == f'{tmp_path}/s.json: {said}' or str(e.value).startswith(f'{tmp_path}/s.json: {said}')
    (tmp_path/'s.json').write_text('{"steps": 4, "lr": 1, "rows": [{"n": 2}], "by": {"7": 0.5}, "more": []}')
    assert load_json(tmp_path/'s.json', shape)['lr'] == 1

def test_a_byte_order_mark_is_read_and_other_encodings_are_named(tmp_path):
    (tmp_path/'a.json').write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}')
    assert load_json(tmp_path/'a.json') == dict(a='é')
    for encoding in 'utf-16', 'latin-1':
        (tmp_path/'a.json').write_bytes('{"a": "é"}'.encode(encoding))
        with pytest.raises(StoryError, match='expected UTF-8'): load_json(tmp_path/'a.json')

def test_names_that_are_no_unicode_survive(tmp_path):
    save_json(tmp_path/'a.json', dict(data=os.fsdecode(b'/runs/lat\xff')))
    assert os.fsencode(json.loads((tmp_path/'a.json').read_bytes())['data']) == b'/runs/lat\xff'

def test_numbers_of_numpy_and_torch_stay_numbers(tmp_path):
    "Not text, which whoever reads the file would refuse."
    facts = dict(a=np.float32(.5), b=np.int64(3), c=np.bool_(True), d=np.array([1, 2]), e=torch.tensor(2.5), f=tmp_path, g='lat\udcff', h=np.float32)
    plain = dict(a=.5, b=3, c=True, d=[1, 2], e=2.5, f=str(tmp_path), g='lat\udcff', h=str(np.float32))
    save_json(tmp_path/'a.json', facts)
    assert load_json(tmp_path/'a.json') == plain and as_read_back(facts) == plain
    record_provenance(tmp_path/'made.json', facts)
    record_provenance(tmp_path/'made.json', plain)       # the same facts
    assert load_json(tmp_path/'made.json') == plain
    kept_results.keep_file(tmp_path/'kept', facts, lambda path: path.write_text('x'))
    kept_results.keep_file(tmp_path/'kept', plain, lambda path: pytest.fail('made again'))

def test_a_foreign_file_is_not_written_over(tmp_path):
    (tmp_path/'scores.json').write_text('my grades')
    def ours(path): return 'scores' in load_json(path)
    with pytest.raises(StoryError, match='is not a table written by arldm; move it away'): refuse_foreign(tmp_path/'scores.json', ours, 'table')
    save_json(tmp_path/'scores.json', dict(scores=[]))
    refuse_foreign(tmp_path/'scores.json', ours, 'table'), refuse_foreign(tmp_path/'none.json', ours, 'table')
    with pytest.raises(StoryError, match='move it away'): refuse_foreign(tmp_path, ours, 'table')


# locks, terminals, homes

@pytest.mark.parametrize('code', [errno.ENOSYS, errno.ENOLCK])
def test_without_locks_the_work_goes_on(tmp_path, monkeypatch, code):
    def lockf(*_): raise OSError(code, os.strerror(code))
    monkeypatch.setattr(files.fcntl, 'lockf', lockf)
    with pytest.warns(UserWarning, match='without locks'): assert lock_folder(tmp_path, 'training') is None

def test_a_lock_leaves_what_is_in_the_folder(tmp_path):
    (tmp_path/'.lock').write_text('my notes')
    lock_folder(tmp_path, 'training').close()
    assert (tmp_path/'.lock').read_text() == 'my notes'

PROGRAM = '''
from arldm.command_line import command
from arldm.core import StoryError, say
import sys, warnings
@command
def paint(path:str, *, wrong:bool=False):
    "Painted → with care: ½ é"
    say(f'→ {path} \\x1b[31mred'), warnings.warn('é\\x1b[2J')
    if wrong: raise StoryError('→ \\x1b[2J')
paint()
'''

@pytest.mark.parametrize('encoding', ['ascii', 'cp1252', 'utf-8'])
def test_no_terminal_is_too_poor_and_none_is_commanded(tmp_path, encoding):
    (tmp_path/'paint.py').write_text(PROGRAM, encoding='utf-8')
    def run(*words):
        env = {**os.environ, 'PYTHONIOENCODING': encoding, 'PYTHONPATH': PYTHONPATH, 'HOME': '/home/ada'}
        return subprocess.run([sys.executable, tmp_path/'paint.py', *words], env=env, capture_output=True)
    fine, wrong, helped = run('~/x'), run(b'lat\xff', '--wrong'), run('--help')
    assert fine.returncode == helped.returncode == 0 and wrong.returncode == 1
    assert b'/home/ada/x ?[31mred\n' in fine.stdout and b'Painted' in helped.stdout
    assert b'\x1b' not in fine.stdout + fine.stderr + wrong.stdout + wrong.stderr
    assert wrong.stderr.count(b'\n') == 2 and b'Traceback' not in fine.stderr + wrong.stderr + helped.stderr
    assert run('').stderr == b'arldm-paint: path is empty; expected a name\n'

@pytest.mark.parametrize('error', [MemoryError(), RuntimeError('CUDA out of memory.'), RuntimeError('could not create a primitive'),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"), RuntimeError('std::bad_alloc')])
def test_memory_runs_out_in_many_words(error): assert core.error_line(error).startswith('out of memory')

def test_a_closed_terminal_swallows_what_is_said(tmp_path):
    (tmp_path/'paint.py').write_text(PROGRAM, encoding='utf-8')
    env = {**os.environ, 'PYTHONPATH': PYTHONPATH}
    line = f'{sys.executable} {tmp_path/"paint.py"} here >&- 2>&-'
    assert subprocess.run(line, shell=True, env=env).returncode == 0
