"""The Inception of the FID papers: equal to the recorded one, loaded only from the published file."""
import hashlib, json, zlib
from pathlib import Path

import numpy as np, pytest, torch
from PIL import Image

from arldm.score import inception
from arldm.core import StoryError
from arldm.score.inception import Inception, fid64_drawn, fid64_real, load_inception
from networks import published, regenerated

PARITY = Path(__file__).resolve().parents[1]/'parity'

def recorded_shapes():
    keys = json.loads((PARITY/'inception_keys.json').read_text())
    return {published(k): shape for k, shape in keys.items()}

def trust(path, monkeypatch):
    "Let a file made here pass for the published one."
    monkeypatch.setattr(inception, 'INCEPTION_SHA256', hashlib.sha256(path.read_bytes()).hexdigest())

def batch(*pictures): return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2)


# the network

@pytest.fixture(scope='module')
def weights(): return regenerated(recorded_shapes())

@pytest.fixture(scope='module')
def net(weights):
    net = Inception()
    net.load_state_dict(weights)
    return net

def test_inception_has_the_recorded_parameters(net):
    assert {k: list(v.shape) for k, v in net.state_dict().items()} == recorded_shapes()
    assert (net.name, net.side, net.num_features, net.training) == ('inception', 299, 2048, False)
    assert not any(p.requires_grad for p in net.parameters())

def test_inception_equals_the_recorded(net):
    z, seen = np.load(PARITY/'inception.npz'), []
    hook = net.Conv2d_1a_3x3.register_forward_pre_hook(lambda _, x: seen.append((x[0] + 1)/2))
    got = net(batch(*[fid64_drawn(Image.fromarray(z[f'image{i}'])) for i in range(4)])).numpy()
    hook.remove()
    assert np.abs(seen[0][..., ::13, ::13].numpy() - z['net_input_299']).max() < 1e-6
    assert got.shape == (4, 2048) and np.abs(got - z['features']).max() < 1e-5*np.abs(z['features']).max()

def test_pictures_of_299_pixels_are_left_as_they_are(net, monkeypatch):
    "No resampling at 299 pixels, and none but the plain bilinear one elsewhere."
    seen, rng = [], np.random.default_rng(0)
    hook = net.Conv2d_1a_3x3.register_forward_pre_hook(lambda _, x: seen.append((x[0] + 1)/2))
    exact, large = (rng.integers(0, 256, (side, side, 3), np.uint8) for side in (299, 600))
    both = net(batch(exact)), net(batch(large))
    hook.remove()
    assert torch.allclose(seen[0]*255, batch(exact).float(), atol=1e-4)
    at = (np.arange(299) + .5)*600/299 - .5                                  # where each pixel's centre lies
    def along(a, axis):                                                      # linear interpolation, no smoothing
        low = np.floor(at).astype(int)
        part = (at - low).reshape([-1 if i == axis else 1 for i in range(3)])
        return a.take(low, axis)*(1 - part) + a.take(low + 1, axis)*part
    expected = along(along(large.astype(float), 0), 1)
    assert np.abs(seen[1][0].permute(1, 2, 0).numpy()*255 - expected).max() < .05   # of 255; places are float32
    assert all(x.shape == (1, 2048) and x.isfinite().all() for x in both)


# the weights

def test_load_inception(weights, tmp_path, monkeypatch):
    "The published file's classifier is left out; a path that is given goes before the variable."
    torch.save({**weights, 'fc.weight': torch.zeros(1008, 2048), 'fc.bias': torch.zeros(1008)}, tmp_path/'w.pth')
    trust(tmp_path/'w.pth', monkeypatch)
    monkeypatch.setenv('ARLDM_INCEPTION', str(tmp_path/'other.pth'))
    state = (net := load_inception(tmp_path/'w.pth')).state_dict()
    assert not net.training and all(torch.equal(state[k], v) for k, v in weights.items())
    with pytest.raises(StoryError, match='other.pth: no such file'): load_inception()

class Evil:
    def __reduce__(self): return (Path.touch, (Path('evil'),))

@pytest.mark.parametrize('make', [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_bytes(b'<html>not found</html>'),
    lambda p: p.write_bytes(b''), lambda p: torch.save({'a': torch.zeros(1)}, p), lambda p: torch.save([1, 2], p),
    lambda p: torch.save(Evil(), p)], ids=['absent', 'folder', 'html', 'empty', 'other weights', 'list', 'code'])
@pytest.mark.parametrize('trusted', [False, True])
def test_load_inception_says_one_line(make, trusted, tmp_path, monkeypatch):
    "Even a file with the right digest is read as tensors only."
    monkeypatch.chdir(tmp_path)
    make(tmp_path/'w.pth')
    if trusted and (tmp_path/'w.pth').is_file(): trust(tmp_path/'w.pth', monkeypatch)
    with pytest.raises(StoryError, match='pt_inception-2015-12-05-6726825d.pth') as e: load_inception(tmp_path/'w.pth')
    assert '\n' not in str(e.value) and not (tmp_path/'evil').exists()

def test_load_inception_checks_the_digest_first(weights, tmp_path, monkeypatch):
    "Fitting weights from elsewhere would give numbers: they are refused, unread, with both digests."
    torch.save(weights, tmp_path/'w.pth')
    monkeypatch.setattr(torch, 'load', lambda *a, **k: pytest.fail('read before its digest was known'))
    with pytest.raises(StoryError) as e: load_inception(tmp_path/'w.pth')
    found = hashlib.sha256((tmp_path/'w.pth').read_bytes()).hexdigest()
    published = '6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2'
    for part in found, published, 'fid_weights of mseitzer/pytorch-fid': assert part in str(e.value)

def test_load_inception_without_a_path(monkeypatch):
    monkeypatch.delenv('ARLDM_INCEPTION', raising=False)
    with pytest.raises(StoryError, match='ARLDM_INCEPTION'): load_inception()


# FID64's two resizes

@pytest.mark.parametrize('size', [(64, 64), (300, 200), (200, 300), (85, 64), (1000, 70), (64, 500), (30, 40)])
def test_fid64_sizes(size):
    picture = Image.new('L', size)
    for f in fid64_drawn, fid64_real: assert (f(picture).size, f(picture).mode) == ((64, 64), 'RGB')

def test_fid64_real_cuts_the_centre_and_drawn_squashes():
    a = np.zeros((100, 300, 3), np.uint8)
    a[:, :100, 0] = a[:, 200:, 2] = a[:, 100:200, 1] = 255  # red, green, blue thirds
    real, drawn = (np.asarray(f(Image.fromarray(a))) for f in (fid64_real, fid64_drawn))
    assert real[32, 2:62].argmax(-1).tolist() == [1]*60
    assert drawn[32, [5, 32, 58]].argmax(-1).tolist() == [0, 1, 2]
