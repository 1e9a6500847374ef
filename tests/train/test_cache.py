"What frozen parts say is kept once for all: by whichever processes, after any damage, and never for anything else."
import json, multiprocessing, pickle, random, resource, shutil, time
from pathlib import Path

import h5py, pytest, torch
from corpora import WRITE, encoded, picture
from torch.utils.data import DataLoader

from arldm.train import cache
from arldm.toy import corpus as toy
from arldm.train.cache import CachedStories, build_cache, frozen_inputs
from arldm.cli.convert import convert
from arldm.core import CORPORA, StoryError
from arldm.data.dataset import StoryDataset, Vocabulary, collate, word_tokenizers
from arldm.model.arldm import ARLDM
from arldm.settings import FREEZE
from arldm.data.story import Story, StoryFile, write_stories

@pytest.fixture(autouse=True)
def small(monkeypatch): monkeypatch.setattr(cache, 'SHARD', 8)

def unequal(path): # stories of two to five frames, one caption far too long
    def story(i):
        captions = tuple(f'picture {k} of {i}' + ' and so on'*(30*(k == 1)) for k in range(i + 2))
        return Story(str(i), str(i), captions, tuple(encoded(picture(5*i + k), 'PNG') for k in range(i + 2)))
    write_stories(path, dict(train=map(story, range(4))), 'toy')

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "Story files by name."
    folder = tmp_path_factory.mktemp('files')
    toy.write_toy(folder/'raw', (4, 1, 1), progress=False)
    for name in 'toy', 'pororo', 'flintstones':
        raw = folder/'raw' if name == 'toy' else WRITE[name](folder/f'raw-{name}')
        convert(name, raw, folder/f'{name}.h5', quiet=True)
    unequal(folder/'unequal.h5')
    return {p.stem: p for p in folder.glob('*.h5')}

@pytest.fixture(scope='module')
def begin(files, tmp_path_factory):
    "Makes a tiny model and its stories."
    def make(name='toy', freezing='attention', seed=0, length=None, more=(), **how):
        file, words = StoryFile(files[name]), tmp_path_factory.mktemp('words')
        corpus, split = CORPORA[file.corpus], file['train']
        tokenizers = word_tokenizers([c for i in range(len(split)) for c in split.captions(i)], words)
        torch.manual_seed(seed)
        vocab = Vocabulary(*tokenizers, length or corpus.length, corpus.names + more)
        net = ARLDM.create('tiny', vocab, resolution=16).freeze(FREEZE[freezing]).eval()
        how = {**dict(resolution=16, memory_side=32, train=True, crops=1), **how}
        return net, StoryDataset(split, vocab, **how)
    return make

@pytest.fixture(scope='module')
def built(begin, tmp_path_factory):
    "A model, its stories, and a cache of them."
    (net, stories), folder = begin(), tmp_path_factory.mktemp('built')/'cache'
    with pytest.MonkeyPatch.context() as m:
        m.setattr(cache, 'SHARD', 8)
        build_cache(net, stories, folder, progress=False)
    return net, stories, folder

def build(net, stories, folder, **how): return build_cache(net, stories, folder, progress=False, **how)
def content(folder): return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())}
def equal(a, b): return a.keys() == b.keys() and all(torch.equal(v, b[k]) if torch.is_tensor(v) else v == b[k]
                                                     for k, v in a.items())

def says_one_line(work, *words):
    with pytest.raises(StoryError) as e: work()
    assert '\n' not in str(e.value) and all(w in str(e.value) for w in words), str(e.value)


# the same answers

def losses(net, batch, task):
    "Loss and gradients on fixed random numbers, a third of the frames unconditional."
    net.zero_grad()
    loss = net.loss(batch, torch.Generator().manual_seed(1), task, .3)
    loss.backward()
    return loss.item(), {k: p.grad.clone() for k, p in net.named_parameters() if p.grad is not None}

CORPUS = 'toy', 'pororo', 'flintstones', 'unequal'

@pytest.mark.parametrize('task', [0, 1], ids=['visualization', 'continuation'])
@pytest.mark.parametrize('name', CORPUS)
@pytest.mark.filterwarnings('ignore:a caption has more')
def test_losses_and_gradients(begin, tmp_path, name, task):
    "Cached and uncached agree, also with several pictures a frame, stories of all lengths and captions that are cut."
    net, stories = begin(name, crops=2)
    kept, batch = build(net, stories, tmp_path/'cache'), 1 if name == 'unequal' else 2
    if name == 'pororo': assert (stories.split.rows(0).reshape(5, -1)[:, 1] >= 0).any()
    for epoch in 0, 1:
        for i in range(0, len(stories) - batch + 1, batch):
            rows = [(k, epoch) for k in range(i, i + batch)]
            (a, ga), (b, gb) = (losses(net, collate([x[r] for r in rows]), task) for x in (stories, kept))
            assert a == pytest.approx(b, rel=1e-5) and ga.keys() == gb.keys()
            for k in ga: assert torch.allclose(ga[k], gb[k], rtol=1e-3, atol=1e-5*max(1, ga[k].abs().max())), k

@pytest.mark.parametrize('freezing,kinds', [('none', {'moments'}), ('ssid-baseline', {'moments'}),
                                            ('attention', {'moments', 'captions', 'slots'})])
def test_what_still_trains_is_not_kept(begin, tmp_path, freezing, kinds):
    net, stories = begin(freezing=freezing)
    kept = build(net, stories, tmp_path)
    assert set(kept.places) == kinds and ('memory' in kept[0]) == (freezing != 'attention')
    (a, ga), (b, gb) = (losses(net, collate([x[0], x[1]]), 0) for x in (stories, kept))
    assert a == pytest.approx(b, rel=1e-5)
    for k in ga: assert torch.allclose(ga[k], gb[k], rtol=1e-3, atol=1e-5*max(1, ga[k].abs().max())), k

def test_training_asks_nothing_else(begin, tmp_path):
    "Every square of 20 epochs and of three seeds is there, and each is encoded once."
    net, stories = begin(crops=3)
    kept = build(net, stories, tmp_path)
    for seed in 0, 1, 2:
        stories.seed = seed
        for epoch in range(20):
            for i in range(len(stories)): kept[i, epoch]
    other = begin(crops=3)[1]
    other.seed = 9
    assert CachedStories(other, tmp_path)[0, 5].keys() == kept[0, 5].keys()
    assert all(len(set(keys)) == len(keys) for keys in frozen_inputs(stories).values())
    says_one_line(lambda: build(net, begin(crops=0)[1], tmp_path/'new'), 'crops=4')
    assert not (tmp_path/'new').exists()

@pytest.mark.parametrize('workers', [1, 2])
def test_workers_read_the_same(built, workers):
    net, stories, folder = built
    kept, rows = CachedStories(stories, folder), [[(0, 0), (1, 3)], [(2, 1), (3, 0)]]
    kept[0]                                                              # its files are open when the workers begin
    def read(n): return list(DataLoader(kept, batch_sampler=rows, num_workers=n, collate_fn=collate))
    assert all(map(equal, read(0), read(workers)))
    assert equal(pickle.loads(pickle.dumps(kept))[1, 3], kept[1, 3])


# the same files

@pytest.mark.parametrize('world', [2, 3, 40])
def test_any_number_of_processes(built, tmp_path, world):
    "Byte for byte, in whichever order the processes come; one without a share of the work needs no other."
    net, stories, folder = built
    def shards(): return len([*(tmp_path/'cache').glob('*-*.safetensors')])
    each = []
    for rank in reversed(range(world)):
        before = shards()
        build(net, stories, tmp_path/'cache', rank=rank, world_size=world)
        each.append(shards() - before)
    assert max(each) - min(each) <= 1
    assert content(tmp_path/'cache') == content(folder)

def cut(path): path.write_bytes(path.read_bytes()[:-7])
def garbage(path): path.write_bytes(random.Random(0).randbytes(3000))
def empty(path): path.write_bytes(b'')
def zeros(path): path.write_bytes(bytes(path.stat().st_size))
def page(path): path.write_text('<!DOCTYPE html>')

@pytest.mark.parametrize('name', ['moments-00001', 'captions-00000', 'slots-00001', 'null'])
@pytest.mark.parametrize('damage', [Path.unlink, cut, garbage, empty, zeros, page], ids=lambda f: f.__name__)
@pytest.mark.filterwarnings('ignore:.*is damaged')
def test_damaged_shards(built, tmp_path, name, damage):
    "One that is gone or damaged is computed again, the others are left alone."
    net, stories, folder = built
    before, copy = content(folder), shutil.copytree(folder, tmp_path/'cache')
    damage(copy/f'{name}.safetensors')
    times = {p.name: p.stat().st_mtime_ns for p in copy.iterdir() if p.stem != name}
    kept = build(net, stories, copy)
    assert content(copy) == before and equal(kept[0], CachedStories(stories, folder)[0])
    assert times == {k: (copy/k).stat().st_mtime_ns for k in times}

@pytest.mark.parametrize('damage', ['zeros', 'one bit'])
@pytest.mark.parametrize('name', ['moments-00000', 'captions-00000', 'slots-00000', 'null'])
def test_changed_numbers_are_not_trained_on(built, tmp_path, name, damage):
    "A failing disk has changed numbers of a file that is otherwise intact: a note, and the loss of a fresh cache."
    net, stories, folder = built
    copy = shutil.copytree(folder, tmp_path/'cache')
    path = copy/f'{name}.safetensors'
    data = bytearray(path.read_bytes())
    x = json.loads(data[8:8 + int.from_bytes(data[:8], 'little')])['no_slot' if name == 'null' else 'x']
    start, end = (8 + int.from_bytes(data[:8], 'little') + at for at in x['data_offsets'])
    if damage == 'zeros': data[start:end] = bytes(end - start)
    else: data[end - 2] ^= 64
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=f'{name}.* is damaged or of other weights, and computed again'):
        kept = build(net, stories, copy)
    batches = [collate([one[i] for i in range(len(stories))]) for one in (kept, CachedStories(stories, folder))]
    assert losses(net, batches[0], 0)[0] == losses(net, batches[1], 0)[0] and content(copy) == content(folder)

@pytest.mark.filterwarnings('ignore:.*is damaged')
def test_without_its_label(built, begin, tmp_path):
    "Answers are not taken for those of other weights when the file that says whose they are is gone."
    net, stories, folder = built
    copy = shutil.copytree(folder, tmp_path/'cache')
    (copy/'cache.json').unlink()
    build(net, stories, copy)
    assert content(copy) == content(folder)
    (copy/'cache.json').unlink()
    other, same = begin(seed=1)
    kept, fresh = build(other, same, copy), build(other, same, tmp_path/'fresh')
    assert all(equal(kept[i], fresh[i]) for i in range(len(same)))

@pytest.mark.parametrize('damage', [cut, garbage, empty, page], ids=lambda f: f.__name__)
def test_a_damaged_label(built, tmp_path, damage):
    net, stories, folder = built
    copy = shutil.copytree(folder, tmp_path/'cache')
    damage(copy/'cache.json')
    before = content(copy)
    says_one_line(lambda: build(net, stories, copy), str(copy/'cache.json'))
    assert content(copy) == before

OTHERS = dict(weights=dict(seed=1), words=dict(more=('zorro',)), data=dict(name='unequal'), length=dict(length=20),
              resolution=dict(resolution=24), memory_side=dict(memory_side=64), crops=dict(crops=2), legacy=dict(legacy=True))

@pytest.mark.parametrize('name', [*OTHERS, 'mixed_precision'])
def test_others_are_refused(built, begin, name):
    "What differs is named in one line, and nothing is touched."
    _, _, folder = built
    net, stories = begin(**OTHERS.get(name, {}))
    before, precision = content(folder), 'bf16' if name == 'mixed_precision' else 'no'
    named = 'crops the centre, not 2' if name == 'crops' else name
    says_one_line(lambda: build(net, stories, folder, mixed_precision=precision), str(folder), named, 'another folder')
    if name not in ('weights', 'mixed_precision'): says_one_line(lambda: CachedStories(stories, folder), named)
    assert content(folder) == before

def test_one_crop_is_the_centre(built, begin):
    "So a cache with one crop in training serves without training as well, and holds the same."
    net, stories, folder = built
    _, centred = begin(train=False)
    a, b = CachedStories(stories, folder), CachedStories(centred, folder)
    assert stories.n_crops == centred.n_crops == 1 and all(equal(a[i], b[i]) for i in range(len(stories)))
    assert build(net, centred, folder) is not None

def test_one_weight_and_one_caption(built, files, tmp_path):
    "The last weight of a part, the last word of the last caption, the first picture: each is noticed."
    net, stories, folder = built
    for part in net.text_encoder, net.memory_encoder, net.vae:
        last = [*part.parameters()][-1].data.view(-1)
        kept, last[-1] = last[-1].clone(), 7
        says_one_line(lambda: build(net, stories, folder), 'weights')
        last[-1] = kept
    for n, (key, at) in enumerate([('train/caption', -1), ('frames', 0)]):
        path = shutil.copy(files['toy'], tmp_path/f'{n}.h5')
        with h5py.File(path, 'r+') as f:
            data = f[key][()]
            data.flat[at] = data.flat[at][:-1] + b'?' if key != 'frames' else data.flat[at][::-1]
            f[key][...] = data
        assert path.stat().st_size == files['toy'].stat().st_size
        other = StoryDataset(StoryFile(path)['train'], stories.vocab, 16, 32, train=True, crops=1)
        says_one_line(lambda: CachedStories(other, folder), 'data')
    build(net, stories, folder)


# trouble

def test_a_damaged_picture(begin, files, tmp_path):
    "It is named, and what was computed before it stays."
    net, stories = begin()
    path = shutil.copy(files['toy'], tmp_path/'bad.h5')
    with h5py.File(path, 'r+') as f:
        data = f['frames'][11].copy()
        data[:] = 7
        f['frames'][11] = data
    stories.split = StoryFile(path)['train']
    bad = next(stories.split.ids[i] for i in range(len(stories)) if 11 in stories.split.rows(i))
    says_one_line(lambda: build(net, stories, tmp_path/'cache'), f'story {bad}: not a whole picture')
    assert (tmp_path/'cache/moments-00000.safetensors').exists()

def start(stories, net, folder, limit=None):
    "Build in a process of its own; what it complains about goes to `folder`.txt."
    def work():
        torch.set_num_threads(1)
        if limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try: build(net, stories, folder)
        except StoryError as e: folder.with_suffix('.txt').write_text(str(e))
    (p := multiprocessing.get_context('fork').Process(target=work)).start()
    return p

def test_killed_and_built_twice_at_once(begin, tmp_path):
    "kill -9 in the middle; then two processes that know nothing of each other finish it; it is the undisturbed one."
    (net, stories), folder = begin(crops=8), tmp_path/'cache'
    killed = start(stories, net, folder)
    while killed.is_alive() and len([*folder.glob('moments-*')]) < 3: time.sleep(.002)
    killed.kill(), killed.join()
    assert killed.exitcode == -9
    for p in [start(stories, net, folder) for _ in range(2)]: assert p.join() or p.exitcode == 0
    build(net, stories, tmp_path/'whole')
    assert content(folder) == content(tmp_path/'whole') and not folder.with_suffix('.txt').exists()

def test_full_disk(built, tmp_path):
    "One line, no half file; and what was written stays."
    net, stories, whole = built
    sizes = {p.name: p.stat().st_size for p in whole.iterdir()}
    most = (sizes['null.safetensors'] + sizes['slots-00000.safetensors'])//2
    start(stories, net, folder := tmp_path/'cache', most).join()
    said, left = (tmp_path/'cache.txt').read_text(), {p.name for p in folder.iterdir()}
    assert '\n' not in said and '00000.safetensors: cannot be written' in said and 'make room' in said
    assert 'moments-00000.safetensors' in left and left <= {k for k, size in sizes.items() if size <= most}
    build(net, stories, folder)
    assert content(folder) == content(whole)
