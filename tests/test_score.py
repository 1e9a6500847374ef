"""Scores: equal to the original where it recorded numbers, honest where something is missing."""
import json, random, sys, zlib
from io import BytesIO
from pathlib import Path

import numpy as np, pytest, torch
from PIL import Image

from arldm.core import StoryError, load_json
from arldm.score import (Inception, LatentFeatures, batches, drawn_frames, fid64_drawn, fid64_real, frechet, halves,
    load_inception, match_drawings, score)
from arldm.story import Story, StoryFile, write_stories

PARITY = Path(__file__).parent/'parity'


# the distance

class Rows(torch.nn.Module):
    "Rows of numbers as their own features."
    def __init__(self, num_features, dtype=torch.float64):
        super().__init__()
        self.num_features, self.dtype = num_features, dtype
    def forward(self, x): return x.to(self.dtype)

class Means(torch.nn.Module):
    "The mean colour as features."
    num_features = 3
    def forward(self, x):
        assert x.dtype == torch.uint8 and x.shape[1:] == (3, 64, 64)
        return x.float().mean((2, 3))

@pytest.mark.parametrize('a,b,key,rel', [('full_a', 'full_b', 'fid_full', 1e-9), ('sing_a', 'sing_b', 'fid_singular', 1e-6)])
def test_frechet_equals_the_recorded(a, b, key, rel):
    z = np.load(PARITY/'fid.npz')
    def parts(x): return torch.tensor(x).split(7)  # batches of any size give the same distance
    assert frechet(Rows(16), parts(z[a]), parts(z[b])) == pytest.approx(float(z[key]), rel=rel)

def test_frechet_is_not_rounded_by_float32_features():
    z = np.load(PARITY/'fid.npz')
    got = frechet(Rows(16, torch.float32), [torch.tensor(z['full_a'])], [torch.tensor(z['full_b'])])
    assert got == pytest.approx(float(z['fid_full_float32_input']), rel=1e-8)

def test_frechet_of_a_set_to_itself_and_of_a_shift():
    a = torch.randn(500, 4, generator=torch.manual_seed(0)).double()
    assert 0 <= frechet(Rows(4), [a], [a]) < 1e-9
    assert frechet(Rows(4), [a], [a + 3]) == pytest.approx(4*9)  # equal covariances: the means alone

def test_frechet_needs_two_pictures():
    with pytest.raises(StoryError, match='two pictures'): frechet(Rows(4), [torch.ones(1, 4)], [torch.ones(9, 4)])

def test_batches_hold_no_more_than_their_size():
    taken = []
    def pictures():
        for i in range(7):
            taken.append(i)
            yield Image.new('RGB', (8, 6), (i, 0, 0))
    stream = batches(pictures(), 3)
    first = next(stream)
    assert first.shape == (3, 3, 6, 8) and first.dtype == torch.uint8 and len(taken) == 3
    assert [len(b) for b in stream] == [3, 1] and first[:, 0, 0, 0].tolist() == [0, 1, 2]


# the Inception

STAGES = {'0': ['Conv2d_1a_3x3', 'Conv2d_2a_3x3', 'Conv2d_2b_3x3'], '1': ['Conv2d_3b_1x1', 'Conv2d_4a_3x3'],
          '2': [f'Mixed_{k}' for k in '5b 5c 5d 6a 6b 6c 6d 6e'.split()], '3': [f'Mixed_{k}' for k in '7a 7b 7c'.split()]}

def published(key):
    "blocks.2.3.branch3x3.conv.weight -> Mixed_6a.branch3x3.conv.weight"
    _, stage, place, rest = key.split('.', 3)
    return f'{STAGES[stage][int(place)]}.{rest}'

def regenerated(shapes):
    "Weights that anybody can make again: a generator seeded with each published name."
    out = {}
    for name, shape in shapes.items():
        r = np.random.RandomState(zlib.crc32(name.encode()) & 0x7fffffff)
        if name.endswith('num_batches_tracked'): continue
        elif name.endswith('running_var'): v = .5 + r.rand(*shape)
        elif name.endswith('bn.weight'): v = 1 + .1*r.randn(*shape)
        elif name.endswith(('running_mean', 'bias')): v = .1*r.randn(*shape)
        else: v = r.randn(*shape)/np.sqrt(np.prod(shape[1:]))
        out[name] = torch.tensor(v, dtype=torch.float32)
    return out

@pytest.fixture(scope='module')
def weights():
    keys = json.loads((PARITY/'inception_keys.json').read_text())
    return regenerated({published(k): shape for k, shape in keys.items()})

def test_inception_has_the_recorded_parameters():
    keys = json.loads((PARITY/'inception_keys.json').read_text())
    assert {k: list(v.shape) for k, v in Inception().state_dict().items()} == {published(k): v for k, v in keys.items()}

def test_inception_equals_the_recorded(weights, tmp_path):
    torch.save({**weights, 'fc.weight': torch.zeros(1008, 2048), 'fc.bias': torch.zeros(1008)}, tmp_path/'w.pth')
    net, z = load_inception(tmp_path/'w.pth'), np.load(PARITY/'inception.npz')
    assert not net.training
    x = next(batches([fid64_drawn(Image.fromarray(z[f'image{i}'])) for i in range(4)]))
    with torch.no_grad(): got = net(x).numpy()
    assert got.shape == (4, 2048)
    assert np.abs(got - z['features']).max() < 1e-4*np.abs(z['features']).max()

def test_load_inception_by_variable(weights, tmp_path, monkeypatch):
    torch.save(weights, tmp_path/'w.pth')
    monkeypatch.setenv('ARLDM_INCEPTION', str(tmp_path/'w.pth'))
    assert torch.equal(load_inception().Conv2d_1a_3x3.conv.weight, weights['Conv2d_1a_3x3.conv.weight'])

class Evil:
    def __reduce__(self): return (Path.touch, (Path('evil'),))

@pytest.mark.parametrize('make', [lambda p: None, lambda p: p.write_bytes(b'<html>not found</html>'), lambda p: p.write_bytes(b''),
    lambda p: torch.save({'a': torch.zeros(1)}, p), lambda p: torch.save([1, 2], p), lambda p: torch.save(Evil(), p)],
    ids=['absent', 'html', 'empty', 'other weights', 'list', 'code'])
def test_load_inception_says_one_line(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path/'w.pth')
    with pytest.raises(StoryError, match='pt_inception-2015-12-05-6726825d.pth') as e: load_inception(tmp_path/'w.pth')
    assert '\n' not in str(e.value) and not (tmp_path/'evil').exists()

def test_load_inception_without_a_path(monkeypatch):
    monkeypatch.delenv('ARLDM_INCEPTION', raising=False)
    with pytest.raises(StoryError, match='ARLDM_INCEPTION'): load_inception()


# preparation

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
    features = LatentFeatures(Vae())
    assert features.num_features == 64 and torch.equal(features(x), torch.ones(2, 64))


# folders

def encoded(colour, size=(64, 64)):
    out = BytesIO()
    Image.new('RGB', size, colour).save(out, 'png')
    return out.getvalue()

def colour(*key): return tuple(random.Random(str(key)).randrange(256) for _ in range(3))

@pytest.fixture
def split(tmp_path):
    "Twelve stories of three frames about six albums."
    stories = [Story(f's{i}', f'a{i//2}', ('one', 'two', 'three'), tuple(encoded(colour(i//2, k)) for k in range(3))) for i in range(12)]
    write_stories(tmp_path/'stories.h5', dict(test=stories), 'toy')
    return StoryFile(tmp_path/'stories.h5')['test']

def draw(folder, split, ids, first=1):
    "Draw what was told."
    for s in ids:
        (folder/s).mkdir(parents=True)
        for k, p in enumerate(split[split.index(s)].pictures(), 1):
            if k >= first: p.save(folder/s/f'{k}.png')

def test_drawn_frames(tmp_path, split):
    draw(tmp_path/'run'/'drawn', split, ['s1', 's0'], first=2)
    (tmp_path/'run'/'drawn'/'s0'/'notes.png').write_bytes(b'')
    (tmp_path/'run'/'drawn'/'empty').mkdir()
    (tmp_path/'run'/'drawn'/'a file').write_text('')
    for folder in tmp_path/'run', tmp_path/'run'/'drawn':
        found = drawn_frames(folder)
        assert {s: list(f) for s, f in found.items()} == {'s0': [2, 3], 's1': [2, 3]}
    assert found['s1'][3] == tmp_path/'run'/'drawn'/'s1'/'3.png'

def test_drawn_frames_counts_beyond_nine_in_order(tmp_path):
    (tmp_path/'s').mkdir()
    for k in 10, 2, 1: (tmp_path/'s'/f'{k}.png').write_bytes(b'')
    assert list(drawn_frames(tmp_path)['s']) == [1, 2, 10]

def test_drawn_frames_says_one_line(tmp_path):
    with pytest.raises(StoryError, match='no such folder'): drawn_frames(tmp_path/'absent')
    with pytest.raises(StoryError, match='no drawings'): drawn_frames(tmp_path)

def test_match_drawings(tmp_path, split):
    with pytest.raises(StoryError, match='none of the 1 drawn stories'): match_drawings({'x': {1: Path('x/1.png')}}, split)
    with pytest.raises(StoryError, match='frames 1 to 3'): match_drawings({'s0': {4: Path('4.png')}}, split)
    with pytest.raises(StoryError, match='frames 1 to 3'): match_drawings({'s0': {0: Path('0.png')}}, split)
    matched, missing, unknown = match_drawings({'s3': {1: 0}, 'x': {1: 0}, 's1': {2: 0}}, split)
    assert [i for i, _ in matched] == [1, 3] and unknown == ['x'] and missing == [f's{i}' for i in (0, 2, *range(4, 12))]

def test_halves_share_no_album(split):
    matched = [(i, {1: 0}) for i in range(12)]
    a, b = halves(split, matched)
    assert sorted(a + b, key=lambda m: m[0]) == matched and len(a) == len(b) == 6
    assert not {split.albums[i] for i, _ in a} & {split.albums[i] for i, _ in b}
    assert (a, b) == halves(split, matched)


# scores

def test_score_of_what_was_told(tmp_path, split):
    draw(tmp_path/'run'/'drawn', split, split.ids[:10])
    out = score(tmp_path/'run', split, Means(), progress=False)
    assert out == load_json(tmp_path/'run'/'scores.json')
    distance, floor = out['scores']
    assert distance['value'] < 1e-6 < floor['value'] and distance['n'] == 30 and distance['better'] == 'lower'
    assert out['missing'] == ['s10', 's11'] and out['n_stories'] == 10 and out['split'] == 'test' and out['facts'] == []

def test_score_compares_only_what_was_drawn(tmp_path, split):
    "A continuation: the given frame takes part on neither side."
    draw(tmp_path/'run'/'drawn', split, split.ids, first=2)
    distance = score(tmp_path/'run', split, Means(), progress=False)['scores'][0]
    assert distance['n'] == 24 and distance['value'] < 1e-6

def test_score_sees_a_wrong_colour(tmp_path, split):
    draw(tmp_path/'drawn', split, split.ids)
    for p in (tmp_path/'drawn').glob('*/*.png'): Image.new('RGB', (64, 64), 'red').save(p)
    distance, floor = score(tmp_path, split, Means(), progress=False)['scores']
    assert distance['value'] > floor['value']

def test_score_without_features_makes_nothing_up(tmp_path, split):
    draw(tmp_path/'drawn', split, ['s0'])
    rows = score(tmp_path, split, progress=False)['scores']
    assert [(r['name'], r['value']) for r in rows] == [('FID64', None)]
    assert 'pt_inception-2015-12-05-6726825d.pth' in rows[0]['note']

def test_score_of_one_album_has_no_floor(tmp_path, split):
    draw(tmp_path/'drawn', split, ['s0', 's1'])
    assert score(tmp_path, split, Means(), progress=False)['scores'][1]['value'] is None

def test_score_with_few_frames_says_so(tmp_path, split):
    class Many(Means):
        num_features = 48
        def forward(self, x): return super().forward(x).repeat(1, 16)
    draw(tmp_path/'drawn', split, split.ids)
    assert all('reads high' in r['note'] for r in score(tmp_path, split, Many(), progress=False)['scores'])

def test_facts(tmp_path, split):
    draw(tmp_path/'drawn', split, ['s0', 's1'], first=2)
    def facts(story, drawn):
        assert list(drawn) == [2, 3] and all(p.mode == 'RGB' for p in drawn.values())
        return {'carried place': [True]*2, 'carried colour': [story.id == 's0']*2, 'told size': [True], 'told shape': []}
    facts.chance = {'carried place': .25, 'carried colour': .75}
    out = score(tmp_path, split, facts=facts, progress=False)
    assert out['facts'] == [dict(name='carried colour', value=.5, n=4, chance=.75), dict(name='carried place', value=1., n=4, chance=.25),
                            dict(name='told size', value=1., n=2, chance=None)]
    carried, told = out['scores'][1:]
    assert (carried['name'], carried['value'], carried['n'], carried['better']) == ('carried facts', .75, 8, 'higher')
    assert '50%' in carried['note'] and told['value'] == 1 and '%' not in told['note']

def test_score_of_a_broken_picture(tmp_path, split):
    draw(tmp_path/'drawn', split, ['s0', 's1'])
    (tmp_path/'drawn'/'s1'/'2.png').write_bytes((tmp_path/'drawn'/'s1'/'2.png').read_bytes()[:60])
    with pytest.raises(StoryError, match='2.png: not a picture'): score(tmp_path, split, Means(), progress=False)
    assert not (tmp_path/'scores.json').exists()

def test_no_heavy_helpers():
    "Neither torchvision nor torch-fidelity nor scipy is needed."
    import subprocess
    code = 'import sys, arldm.score; print([m for m in ("torchvision", "torch_fidelity") if m in sys.modules])'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    assert out.stdout.strip() == '[]'
