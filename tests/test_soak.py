"Damaged, hostile and interrupted: every conversion ends in stories, a counted skip or one line, and never in half a file."
import json, os, pickle, pickletools, random, resource, shutil, signal, struct, subprocess, sys, tempfile, time, traceback
import zlib
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py, numpy as np, pytest
from PIL import Image

from arldm.convert import convert
from arldm.core import StoryError
from arldm.pictures import decode, to_png
from arldm.raw import load_array, load_pickle
from arldm.story import StoryFile, as_tuple, write_stories
from corpora import WRITE, encoded, picture, write_flintstones, write_pororo, write_ssid

SOAK = bool(os.environ.get('ARLDM_SOAK'))
SECONDS, MOST = 20, 1_000_000_000   # of one case, and bytes


# a process for every case

def child(work):
    "What `work()` comes to in a process of its own: kind, detail, and what it wrote to the terminal."
    with tempfile.TemporaryFile('w+') as answer, tempfile.TemporaryFile('w+') as terminal:
        if (pid := os.fork()) == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL), signal.alarm(SECONDS)
            resource.setrlimit(resource.RLIMIT_AS, (6 << 30,)*2)   # for the machine's sake; what counts is MOST
            for fd in 1, 2: os.dup2(terminal.fileno(), fd)
            sys.stdout = sys.stderr = terminal
            try: said = work()
            except (StoryError, OSError) as e: said = 'one line', str(e)
            except BaseException: said = 'traceback', traceback.format_exc()
            terminal.flush()
            answer.write(json.dumps(said))
            answer.flush(), os._exit(0)
        _, status, used = os.wait4(pid, 0)
        if os.WIFSIGNALED(status): return 'signal', signal.Signals(os.WTERMSIG(status)).name
        for f in answer, terminal: f.seek(0)
        kind, detail = json.loads(answer.read())
        if used.ru_maxrss*1024 > MOST: return 'memory', f'{used.ru_maxrss/1024:.0f} MB, then {kind}: {detail}'
        if kind == 'one line' and not (detail and detail.isprintable()): return 'not one line', detail
        if shown := [l for l in terminal.read().splitlines() if 'share albums' not in l and 'if args or kw' not in l]:
            return 'chatter', shown
        return kind, detail

ENDS = 'stories', 'skipped', 'one line'

def look(path):
    "The number of stories in a file, all pictures of all of them decoded."
    file, n = StoryFile(path), 0
    for split in file.splits:
        for i in range(len(file[split])):
            story = file[split][i]
            for k in range(max(len(as_tuple(f)) for f in story.frames)): story.pictures(k)
            n += 1
    return n

def converted(source, raw, out, skip_bad=False, **how):
    "Convert, and look at what came out."
    counts = convert(source, raw, out, skip_bad=skip_bad, quiet=True, **how)
    skipped = counts.pop('skipped')
    try: assert look(out) == sum(c['stories'] for c in counts.values())
    except StoryError as e: raise AssertionError(f'converted, but: {e}') from None
    return ('skipped', skipped) if skipped else ('stories', None)

def conversion(source, raw, out, **how):
    "How a conversion ended, in a process of its own; nothing but a whole file may be left of it."
    ended = child(lambda: converted(source, raw, out, **how))
    left = [p.name for p in out.parent.iterdir()]
    if left != [out.name]*(ended[0] in ('stories', 'skipped')): return 'left', [left, *ended]
    return ended


# the mutator

NUMBERS = 0, 1, 2, 7, 127, 128, 255, 256, 0x7fff, 0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xffffffff, 2**32, 2**40, 2**63

def mutate(data, rng, marks=()):
    "Bytes with a few wrong ones, anywhere, near the beginning, or near one of the `marks`."
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        where = rng.choice([len(data), 300, 60, *[0]*bool(marks)*3])
        at = min(rng.randrange(min(where, len(data)) or 1) if where or not marks else rng.choice(marks) + rng.randrange(64),
                 len(data))
        n = min(rng.choice([1, 2, 4, 8, 30, rng.randrange(1, 3000)]), len(data) - at)
        number = rng.choice([rng.choice(NUMBERS), rng.randrange(2**64)])
        order = rng.choice(['little', 'big'])
        match rng.randrange(11 if not marks else 8):
            case 0 | 1: data[at:at+1] = bytes([data[at] ^ 1 << rng.randrange(8)] if at < len(data) else [])
            case 2: data[at:at+n] = bytes(n)
            case 3: data[at:at+n] = b'\xff'*n
            case 4: data[at:at+n] = rng.randbytes(n)
            case 5: data[at:at+2] = (number % 2**16).to_bytes(2, order)
            case 6: data[at:at+4] = (number % 2**32).to_bytes(4, order)
            case 7: data[at:at+8] = (number % 2**64).to_bytes(8, order)
            case 8: del data[at:]
            case 9: data[at:at] = data[at:at+n]
            case 10: del data[at:at+n]
    return bytes(data)

def mend_png(data):
    "The same PNG with the checksums of its chunks put right, so that more than these is tried."
    out, at = bytearray(data), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at:at+4], 'big')
        if end + 4 > len(data): break
        out[end:end+4] = zlib.crc32(data[at+4:end]).to_bytes(4, 'big')
        at = end + 4
    return bytes(out)

class Raw(str):
    "Text that goes into JSON without quotes."

VALUES = [None, True, [], {}, [[[]]], {'a': None}, '', '.', '..', '../x', '/etc/passwd', 'a\\b', '\0', 'x\0y', 'a\nb', '\x1b[2J',
          '\ud83d', 'x'*300, 'x'*5000, '\u202e', '1', '٣', '1e5', 'third', 'NaN', -1, 0, 1, 2.5, 2**31, 2**64, 10**30,
          float('nan'), float('inf'), Raw('1e400'), Raw('-0'), Raw('9'*4000), Raw('9'*5000), Raw('['*1500 + ']'*1500),
          Raw('['*100_000), Raw('{"a":'*900 + '1' + '}'*900), Raw('"\\u0000\\ud800"'), Raw('"\\')]

def places(tree, way=()):
    "Ways to all that stands in a tree of lists and dictionaries."
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [way][:bool(way)] + [p for k, v in inner for p in places(v, (*way, k))]

def mutate_tree(tree, rng, values=VALUES):
    "Values replaced, removed, doubled or exchanged, in place."
    for _ in range(rng.choice([1, 1, 2, 5])):
        ways = places(tree)
        if not ways: break
        *way, key = rng.choice(ways)
        holder = tree
        for k in way: holder = holder[k]
        value, other = holder[key], tree
        for k in rng.choice(ways): other = other[k]
        match rng.randrange(8):
            case 0: del holder[key]
            case 1: holder[key] = json.loads(json.dumps(other, default=str))
            case 2 if isinstance(holder, list): holder.insert(key, json.loads(json.dumps(value, default=str)))
            case 3 if isinstance(holder, dict): holder[rng.choice(['', 'x', '../x', 'x'*300])] = holder.pop(key)
            case _: holder[key] = rng.choice(values)
    return tree

def mutate_json(data, rng):
    "JSON of another shape: still valid, or not."
    tree, raws = mutate_tree(json.loads(data), rng), []
    def mark(x):
        if isinstance(x, Raw): raws.append(x); return f'@raw{len(raws) - 1}@'
        if isinstance(x, dict): return {k: mark(v) for k, v in x.items()}
        return [mark(v) for v in x] if isinstance(x, list) else x
    text = json.dumps(mark(tree))
    for i, raw in enumerate(raws): text = text.replace(f'"@raw{i}@"', raw)
    return text.encode()

def objects(x):
    "An array of objects."
    out = np.empty(len(x) if isinstance(x, list) else (), object)
    for i, v in enumerate(x) if isinstance(x, list) else [((), x)]: out[i] = v
    return out

LOADED = [v for v in VALUES if not isinstance(v, Raw)] + [10**5000, b'\xff', (1, 2), {1, 2}, np.arange(3), np.float64('nan')]

def mutate_objects(suffix, data, rng):
    "A pickle or an array with other things in it."
    with tempfile.NamedTemporaryFile(suffix=suffix) as f:
        Path(f.name).write_bytes(data)
        tree = load_array(f.name) if suffix == '.npy' else load_pickle(f.name)
        as_lists = lambda x: [as_lists(v) for v in x.tolist()] if isinstance(x, np.ndarray) and x.ndim else x
        tree = as_lists(tree.item() if isinstance(tree, np.ndarray) and not tree.ndim else as_lists(tree))
        tree = mutate_tree(tree, rng, LOADED)
        if suffix == '.pkl': return pickle.dumps(tree, rng.randrange(6))
        np.save(f.name, objects(tree))
        return Path(f.name).read_bytes()

def spoil(suffix, data, rng):
    "A mutation of a file of this kind."
    whole = rng.random() < .6
    if suffix == '.json' and whole: return mutate_json(data, rng)
    if suffix in ('.npy', '.pkl') and len(data) < 6000 and whole and b'|u1' not in data:
        return mutate_objects(suffix, data, rng)
    marks = [i for i in range(len(data)) if data.startswith(HDF5_MARKS, i)] if suffix == '.h5' else ()
    data = mutate(data, rng, marks)
    return mend_png(data) if suffix == '.png' and whole else data

HDF5_MARKS = b'GCOL', b'TREE', b'SNOD', b'HEAP', b'OHDR', b'OCHK', b'FADB', b'EAHD', b'EADB', b'EAIB', b'BTHD', b'\x89HDF'


# mutated corpora and story files

@pytest.fixture(scope='session')
def good(tmp_path_factory):
    "Every corpus as it should be, and what it converts to: folder with source/ and source.h5."
    folder = tmp_path_factory.mktemp('good')
    for source, write in WRITE.items():
        write(folder/source)
        if source != 'pororo': convert(source, folder/source, folder/f'{source}.h5', quiet=True)
    write_original(folder/'original.h5', StoryFile(folder/'ssid.h5'))
    return folder

def write_original(path, file, split='test'):
    "The stories of a split in the original's layout."
    stories = list(file[split])
    with h5py.File(path, 'w') as f:
        for k in range(5):
            d = f.create_dataset(f'{split}/image{k}', (len(stories),), h5py.vlen_dtype('uint8'))
            for i, s in enumerate(stories):
                bgr = Image.merge('RGB', s.pictures()[k].split()[::-1])
                d[i] = np.frombuffer(to_png(bgr), 'uint8')
        text = ['|'.join(c.replace('|', '/') for c in s.captions) for s in stories]
        f.create_dataset(f'{split}/ssid', data=text, dtype=h5py.string_dtype())

def report(what, ended):
    "Print how many ended how; fail with those that ended otherwise."
    counts = Counter(kind for kind, _ in ended.values())
    reasons = sum((Counter(d) for k, d in ended.values() if k == 'skipped'), Counter())
    print(f'\n{what}: {len(ended)} cases: {", ".join(f"{n} {k}" for k, n in counts.most_common())}'
          + f' ({", ".join(f"{n} × {r}" for r, n in reasons.most_common())})'*bool(reasons))
    wrong = {seed: e for seed, e in ended.items() if e[0] not in ENDS}
    assert not wrong, '\n'.join(f'{what}, seed {seed}: {kind}\n{detail}' for seed, (kind, detail) in wrong.items())

KINDS = [('ssid', '.json'), ('ssid', '.jpg'), ('ssid', '.png'), ('vist-sis', '.json'), ('vist-dii', '.json'),
         ('pororo', '.npy'), ('pororo', '.png'), ('flintstones', '.json'), ('flintstones', '.npy'), ('flintstones', '.pkl')]

def mutated(good, source, suffix, seed, folder):
    "Convert a corpus of which a file or two are mutated."
    rng, raw = random.Random(f'{source}{suffix}{seed}'), folder/'raw'
    shutil.copytree(good/source, raw, copy_function=os.link)
    files = sorted(raw.rglob(f'*{suffix}'))
    for file in rng.sample(files, min(len(files), rng.choice([1, 1, 1, 2]))):
        if rng.random() < .02: os.unlink(file); continue
        data = spoil(suffix, file.read_bytes(), rng)
        os.unlink(file), file.write_bytes(data)
    (folder/'out').mkdir()
    return conversion(source, raw, folder/'out'/'x.h5', skip_bad=rng.random() < .5, side=rng.choice([0, 0, 12]))

@pytest.mark.parametrize('source,suffix', KINDS)
def test_mutated_corpora(good, source, suffix):
    ended = {}
    for seed in range(250 if SOAK else 12):
        with tempfile.TemporaryDirectory(dir=good) as folder:
            ended[seed] = mutated(good, source, suffix, seed, Path(folder))
    report(f'{source} {suffix}', ended)

def looked_at(path):
    "Open a story file and look at every story of it by itself."
    try: return 'stories', look(path)
    except StoryError as first:
        with suppress(StoryError):
            file = StoryFile(path)
            for split in file.splits:
                with suppress(StoryError):
                    for i in range(len(file[split])):
                        with suppress(StoryError): file[split][i].pictures(1)
        return 'one line', str(first)

@pytest.mark.parametrize('name', ['ssid', 'flintstones', 'original'])
def test_mutated_story_files(good, name):
    ended, data, bad = {}, (good/f'{name}.h5').read_bytes(), good/'bad.h5'
    for seed in range(300 if SOAK else 12):
        rng = random.Random(f'{name}{seed}')
        bad.write_bytes(spoil('.h5', data, rng))
        ended[seed] = child(lambda: looked_at(bad))
        bad.unlink()
    report(f'{name}.h5', ended)
