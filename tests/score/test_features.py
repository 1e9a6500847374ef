"Features: equal to transformers' own road, computed once, kept through kills, and never a row too old."
import io, multiprocessing, os, resource, signal, time
from pathlib import Path

import numpy as np, pytest, torch
from PIL import Image
from transformers import (CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizerFast, CLIPVisionConfig, Dinov2Config,
    Dinov2Model)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from arldm.score import feature_networks as features
from arldm.core import StoryError
from arldm.score.feature_networks import (Clip, Dino, Fields, LatentFeatures, Store, features_file,
                                  features_of, fingerprint, networks, open_network, same_cut)
from arldm.files.pictures import to_png
from painted import Small, painting
from networks import clip_folder

HERE = Path(__file__).resolve().parents[1]
torch.set_num_threads(1)                                                       # these tests fork

def plain(p, side): return p.resize((side, side))
def pictures(n, size=(24, 20)): return [to_png(painting(i, size)) for i in range(n)]
def seen_by(net, data, store=None, cut_name='plain', **how):
    return features_of(net, data.__getitem__, len(data), plain, cut_name, store, **how)


# networks

def dino_folder(folder, seed=0):
    torch.manual_seed(seed)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=56)
    Dinov2Model(config).save_pretrained(folder)
    return folder

@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    d = tmp_path_factory.mktemp('weights')
    return dict(dinov2=dino_folder(d/'dino'), clip=clip_folder(d/'clip'))

def uint8(ps): return torch.from_numpy(np.stack([np.asarray(p) for p in ps])).permute(0, 3, 1, 2)

@torch.no_grad()
def test_clip_equals_the_library(folders):
    "Pictures through transformers' own processor, texts through its own tokenizer, embeddings as its own model has them."
    net, model = open_network('clip', folders['clip']), CLIPModel.from_pretrained(folders['clip']).eval()
    ps = [painting(i, (32, 32)) for i in range(5)]
    ready = CLIPImageProcessorPil(do_resize=False, do_center_crop=False)(ps, return_tensors='pt')
    words = CLIPTokenizerFast.from_pretrained(folders['clip'])
    texts = ['a dog', 'the old house by the sea and a boat', 'a ' + 'very '*40 + 'long story', '']
    said = words(texts, padding=True, truncation=True, max_length=20, return_tensors='pt')
    theirs = model(**said, **ready)
    assert (net.name, net.side, net.num_features) == ('clip', 32, 8)
    assert torch.allclose(net(uint8(ps)), theirs.image_embeds, atol=1e-6)
    assert torch.allclose(net.words(texts), theirs.text_embeds, atol=1e-6)
    alone = torch.cat([net.words([t]) for t in texts])                         # whatever it is padded beside
    assert torch.allclose(alone, theirs.text_embeds, atol=1e-6)

@torch.no_grad()
def test_dino_equals_the_library(folders):
    net, model = open_network('dinov2', folders['dinov2']), Dinov2Model.from_pretrained(folders['dinov2']).eval()
    ps = [painting(i, (224, 224)) for i in range(3)]
    ready = BitImageProcessorPil(do_resize=False, do_center_crop=False, image_mean=[.485, .456, .406],
                                 image_std=[.229, .224, .225])(ps, return_tensors='pt')
    assert torch.allclose(net(uint8(ps)), model(**ready).last_hidden_state[:, 0], atol=1e-5)
    assert (net.name, net.side, net.num_features) == ('dinov2', 224, 16)

def test_networks_by_argument_and_by_variable(folders, monkeypatch):
    for name in ('DINOV2', 'CLIP', 'INCEPTION'): monkeypatch.delenv(f'ARLDM_{name}', raising=False)
    monkeypatch.setenv('ARLDM_CLIP', str(folders['clip']))
    got = networks(dict(clip=None, dinov2=str(folders['dinov2']), inception=None))
    assert isinstance(got['clip'], Clip) and isinstance(got['dinov2'], Dino)
    assert isinstance(got['inception'], StoryError) and 'ARLDM_INCEPTION' in str(got['inception'])
    with pytest.raises(StoryError, match='facebook/dinov2-large by ARLDM_DINOV2'): open_network('dinov2')
    with pytest.raises(StoryError, match='did you mean clip'): open_network('clipp')

def damaged(folder, how):
    if how == 'empty folder': [p.unlink() for p in folder.iterdir()]
    if how == 'torn weights': os.truncate(folder/'model.safetensors', (folder/'model.safetensors').stat().st_size//2)
    if how == 'no weights': (folder/'model.safetensors').unlink()
    if how == 'html': (folder/'config.json').write_text('<html>')
    if how == 'half the tensors':
        from safetensors.torch import load_file, save_file
        kept = dict(list(load_file(folder/'model.safetensors').items())[::2])
        save_file(kept, folder/'model.safetensors', metadata=dict(format='pt'))
    return folder

@pytest.mark.parametrize('how', ['empty folder', 'torn weights', 'no weights', 'html', 'half the tensors'])
@pytest.mark.parametrize('name,make', [('dinov2', dino_folder), ('clip', clip_folder)])
def test_damaged_weights_cost_one_line(name, make, how, tmp_path, capfd):
    with pytest.raises(StoryError, match=f'{tmp_path}/w: expected weights of .*, but loading failed') as e:
        open_network(name, damaged(make(tmp_path/'w'), how))
    assert '\n' not in str(e.value) and len(str(e.value)) < 400

def test_another_models_folder_is_refused(folders):
    with pytest.raises(StoryError): open_network('dinov2', folders['clip'])
    with pytest.raises(StoryError): open_network('clip', '/no/such/folder')

def test_fields_are_means_over_a_grid():
    x = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), dtype='uint8')
    f = x/255
    down, across = (np.zeros_like(f) for _ in range(2))
    down[:, :, :-1], across[..., :-1] = abs(np.diff(f, axis=2)), abs(np.diff(f, axis=3))
    every = np.concatenate([f, down, across], 1)                               # (2, 9, 64, 64)
    expected = every.reshape(2, 9, 4, 16, 4, 16).mean((3, 5)).reshape(2, -1)
    assert Fields()(torch.from_numpy(x)).numpy() == pytest.approx(expected, abs=1e-6) and Fields.num_features == 144

def test_latent_features():
    class Posterior:
        def __init__(self, mean): self.mean = mean
    class Vae(torch.nn.Module):
        dtype, config = torch.float32, type('Config', (), dict(latent_channels=4))
        def encode(self, x):
            assert x.min() >= -1 and x.max() <= 1
            z = torch.nn.functional.avg_pool2d(x, 8)
            return type('Out', (), dict(latent_dist=Posterior(torch.cat([z, z[:, :1]], 1))))
    x = torch.full((2, 3, 64, 64), 255, dtype=torch.uint8)
    net = LatentFeatures(Vae())
    assert net.num_features == 64 and torch.equal(net(x), torch.ones(2, 64))


# preparation

@pytest.mark.parametrize('size', [(64, 64), (90, 64), (64, 200), (20, 30)])
def test_same_cut_is_a_centre_square(size):
    got = same_cut(painting(0, size), 64, 48)
    assert (got.size, got.mode) == ((48, 48), 'RGB')
    grey = same_cut(Image.new('L', size, 77), 64, 48)
    assert np.unique(np.asarray(grey)).tolist() == [77]

def test_same_cut_is_antialiased_and_drops_the_sides():
    stripes = np.zeros((256, 256, 3), 'uint8')
    stripes[:, ::2] = 255                                                      # lines of one pixel vanish into grey
    got = np.asarray(same_cut(Image.fromarray(stripes), 256, 64)).astype(int)
    assert abs(got[4:-4, 4:-4] - 128).max() <= 3
    wide = np.zeros((60, 180, 3), 'uint8')
    wide[:, :60, 0] = wide[:, 120:, 2] = wide[:, 60:120, 1] = 255              # red, green, blue thirds
    assert (np.asarray(same_cut(Image.fromarray(wide), 60, 30)).argmax(-1) == 1).all()


# computed once

def test_rows_are_in_order_and_each_different_picture_is_seen_once():
    data = pictures(7)
    data = [data[i] for i in (3, 0, 3, 6, 1, 2, 4, 5, 0, 3)]
    for batch in (1, 3, 32):
        net = Small()
        got = seen_by(net, data, batch=batch)
        assert net.seen == 7 and got.dtype == np.float32 and got.shape == (10, 12)
        from arldm.files.pictures import decode
        with torch.no_grad(): expected = Small()(uint8([plain(decode(d), 16) for d in data])).numpy()
        assert got == pytest.approx(expected, abs=1e-6)
    assert seen_by(Small(), []).shape == (0, 12)

def test_only_what_changed_is_computed_again(tmp_path):
    store, data = Store(tmp_path/'x.db'), pictures(9)
    def computed(net, data, **how):
        seen_by(net, data, store, **how)
        return net.seen
    assert computed(Small(), data) == 9 and computed(Small(), data) == 0
    data[4] = to_png(painting(99, (24, 20)))                                   # another picture under the same name
    assert computed(Small(), data) == 1
    assert computed(Small(gain=2.), data) == 9                                 # other weights
    assert computed(Small(), data, cut_name='other') == 9                      # another preparation
    bigger = Small()
    bigger.side = 20
    assert computed(bigger, data) == 9                                         # another size
    again = Store(tmp_path/'x.db')
    net = Small()
    assert (seen_by(net, data, again) == seen_by(Small(), data)).all() and net.seen == 0

def test_fingerprint_is_of_kind_and_weights(folders):
    one, same, other = (Small(gain=g) for g in (1., 1., 1.0000001))
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    class Other(Small): pass
    assert fingerprint(Other()) != fingerprint(one)
    clip = open_network('clip', folders['clip'])
    before = fingerprint(clip)
    assert before == fingerprint(open_network('clip', folders['clip']))
    assert before != fingerprint(open_network('clip', folders['clip']).to(torch.bfloat16))

def test_a_row_of_another_length_is_computed_again(tmp_path):
    store, data = Store(tmp_path/'x.db'), pictures(3)
    seen_by(Small(), data, store)
    store.db.execute("update rows set row = x'00000000'")
    store.db.commit()
    assert seen_by(Small(), data, store).shape == (3, 12)

def test_a_picture_that_is_none_stops_here():
    data = pictures(5)
    data[3] = data[3][:40]
    with pytest.raises(StoryError): seen_by(Small(), data)

@pytest.mark.parametrize('make', [lambda p: p.write_bytes(os.urandom(9000)), lambda p: p.write_text('no database\n'*400),
                                  lambda p: p.mkdir()], ids=['bytes', 'text', 'folder'])
def test_a_damaged_store_is_named(make, tmp_path):
    make(tmp_path/'x.db')
    with pytest.raises(StoryError, match='x.db is there already and is not a store of features written by arldm; move it away'): Store(tmp_path/'x.db')

def test_a_store_damaged_inside_gives_no_wrong_row(tmp_path):
    "Every page overwritten in turn: the right rows, or one line."
    path, data = tmp_path/'x.db', pictures(60)
    right = seen_by(Small(), data, store := Store(path), batch=60)
    store.db.close()
    whole = path.read_bytes()
    for at in range(0, len(whole), 4096):
        path.write_bytes(whole[:at] + bytes(4096) + whole[at + 4096:])
        try: got = seen_by(Small(), data, s := Store(path))
        except StoryError as e: assert 'move it away' in str(e)
        else:
            assert (got == right).all()
            s.db.close()

def test_where_features_are_kept(tmp_path, monkeypatch):
    data, run = tmp_path/'stories.h5', tmp_path/'run'
    assert features_file(data, run) == tmp_path/'stories.features.db'
    monkeypatch.setattr(features.os, 'access', lambda p, how: False)
    assert features_file(data, run) == run/'features.db'


# killed, and several at once

FORK = multiprocessing.get_context('fork')
def apart(f, *args): # f(tell, *args) in a process of its own; what it tells is read from the end that is returned
    here, there = FORK.Pipe(duplex=False)
    p = FORK.Process(target=f, args=(there.send, *args))
    p.start()
    there.close()
    return p, here

class Slow(Small):
    def forward(self, x):
        time.sleep(.1)
        self.tell(len(x))
        return super().forward(x)

def slowly(tell, path):
    Slow.__name__, net = 'Small', Slow()
    net.tell = tell
    seen_by(net, pictures(40), Store(path), batch=4)

def test_killed_in_the_middle_it_goes_on(tmp_path):
    p, said = apart(slowly, tmp_path/'x.db')
    for _ in range(3): assert said.recv() == 4
    os.kill(p.pid, signal.SIGKILL)
    p.join()
    net = Small()
    got = seen_by(net, pictures(40), Store(tmp_path/'x.db'))
    assert net.seen <= 40 - 8 and (got == seen_by(Small(), pictures(40))).all()  # two batches or more had been kept

@pytest.mark.skipif('ARLDM_SOAK' not in os.environ, reason='the long form of the test above: dozens of kills, at any time')
def test_killed_again_and_again(tmp_path):
    rng, right = np.random.default_rng(0), seen_by(Small(), pictures(40))
    for i in range(40):
        p, said = apart(slowly, tmp_path/f'{i//4}.db')
        time.sleep(rng.uniform(.02, .5))
        os.kill(p.pid, signal.SIGKILL)
        p.join()
        assert (seen_by(Small(), pictures(40), Store(tmp_path/f'{i//4}.db') if i % 4 == 3 else None) == right).all()

def test_two_shares_and_one_that_died(tmp_path):
    "Each computes its own half; what a dead process owed is computed by those that are left."
    data, path = pictures(20), tmp_path/'x.db'
    first, second = Small(), Small()
    met = []
    def other(): met.append(seen_by(second, data, Store(path), share=(1, 2)))  # runs while the first one waits
    got = seen_by(first, data, Store(path), share=(0, 2), wait=other)
    assert (first.seen, second.seen) == (10, 10) and (got == met[0]).all()
    alone = Small()
    seen_by(alone, data, Store(tmp_path/'y.db'), share=(1, 2))                 # nobody else ever comes
    assert alone.seen == 20


# memory

def uniform(i): # a different picture each time, 27 kB large and quick to make
    x = np.full((96, 96, 3), i % 251, 'uint8')
    x[0, 0] = i//251
    Image.fromarray(x).save(out := io.BytesIO(), 'BMP')
    return out.getvalue()

def growth(tell, path, n):
    def most(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    def go(n): features_of(Small(), uniform, n, plain, 'x', Store(path))
    go(500)
    before = most()
    go(500 + n)
    tell(most() - before)

def test_memory_does_not_grow_with_pictures(tmp_path):
    "Two thousand more need room for their rows and keys, not for pictures of 27 kB each."
    n = 20_000 if 'ARLDM_SOAK' in os.environ else 2_000
    p, said = apart(growth, tmp_path/'x.db', n)
    grown = said.recv()
    p.join()
    assert grown < 4 + n*2e-3                                                  # MiB; the pictures alone are n*.027
