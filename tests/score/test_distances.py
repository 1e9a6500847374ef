"""Distances between rows of features: equal to torchmetrics, to recorded answers and to the definitions written out."""
from pathlib import Path

import numpy as np, pytest, torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance, poly_mmd

from arldm.score import distances as distance
from arldm.core import StoryError
from arldm.score.distances import frechet, kernel_distance, kid_std, neighbours

RECORDED = np.load(Path(__file__).resolve().parents[1]/'parity'/'fid.npz')

def rows(n, d, seed=0, shift=0.): # correlated rows, none of them centred
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ np.random.default_rng(99).normal(size=(d, d))/d**.5 + rng.normal(size=d)*.1 + shift + .5

def identity(d): # torchmetrics takes rows for pictures
    as_given = nn.Identity()
    as_given.num_features = d
    return as_given

def one_album(x): return np.zeros(len(x), int)


# Fréchet

@pytest.mark.parametrize('a,b,key,rel', [('full_a', 'full_b', 'fid_full', 1e-12), ('sing_a', 'sing_b', 'fid_singular', 1e-7)])
def test_frechet_equals_the_recorded(a, b, key, rel):
    assert frechet(RECORDED[a], RECORDED[b]) == pytest.approx(float(RECORDED[key]), rel=rel)

def test_frechet_of_float32_rows():
    got = frechet(RECORDED['full_a'].astype(np.float32), RECORDED['full_b'].astype(np.float32))
    assert got == pytest.approx(float(RECORDED['fid_full_float32_input']), rel=1e-8)

@pytest.mark.parametrize('n,m', [(90, 70), (70, 90), (20, 90), (90, 20), (12, 15), (24, 24), (25, 24)])
def test_frechet_equals_torchmetrics(n, m, d=24):
    "Rows more and fewer than features, on either side."
    x, y = rows(n, d, 1), rows(m, d, 2, .3)
    theirs = FrechetInceptionDistance(identity(d))
    for z, is_real in ((x, True), (y, False)): theirs.update(torch.from_numpy(z), real=is_real)
    assert frechet(x, y) == pytest.approx(theirs.compute().item(), rel=1e-5)
    assert frechet(x, y) == pytest.approx(frechet(y, x), rel=1e-9)

@pytest.mark.parametrize('n,m', [(12, 15), (12, 40), (30, 40), (24, 24)])
def test_frechet_two_routes(n, m, monkeypatch, d=24):
    "Features that are always 0 change nothing but the way it is computed."
    x, y = rows(n, d, 1), rows(m, d, 2)
    def wider(z): return np.concatenate([z, np.zeros((len(z), 60))], 1)
    expected = frechet(x, y)
    monkeypatch.setattr(np.linalg, 'eigh', lambda *_: pytest.fail('a covariance of many features for few rows'))
    assert frechet(wider(x), wider(y)) == pytest.approx(expected, rel=1e-6)

@pytest.mark.parametrize('n,m', [(40, 60), (10, 60), (60, 10)])
def test_frechet_counts_are_repeated_rows(n, m, d=16):
    x, y, rng = rows(n, d, 1), rows(m, d, 2), np.random.default_rng(0)
    wx, wy = rng.integers(0, 4, n), rng.integers(0, 4, m)
    assert frechet(x, y, wx, wy) == pytest.approx(frechet(np.repeat(x, wx, 0), np.repeat(y, wy, 0)), rel=1e-6)
    assert frechet(x, y, np.ones(n)) == frechet(x, y)
    assert np.isnan(frechet(x, y, np.eye(n)[0])) and np.isnan(frechet(x, y, None, np.zeros(m)))

def test_frechet_of_a_set_to_itself_and_of_a_shift():
    x = rows(500, 4)
    assert 0 <= frechet(x, x) < 1e-9 and 0 <= frechet(x[:3], x[:3]) < 1e-6
    assert frechet(x, x + 3) == pytest.approx(4*9)  # equal covariances: the means alone

def test_frechet_of_dead_and_constant_features():
    "Covariances without an inverse, as far as no spread at all."
    x, y = rows(200, 8, 1), rows(200, 8, 2)
    x[:, :3] = y[:, :3] = 0
    y[:, 3] = x[:, 3] = x[:, 4]
    assert frechet(x, x) < 1e-9 and np.isfinite(frechet(x, y)) and frechet(x, y) > 0
    assert frechet(np.ones((9, 4)), np.ones((9, 4))) == 0
    assert frechet(np.zeros((9, 4)), np.ones((9, 4))) == pytest.approx(4)

def test_frechet_far_from_the_origin():
    "The covariance is not a difference of large sums."
    x, y = rows(100, 8, 1), rows(100, 8, 2)
    assert frechet(x + 1e5, y + 1e5) == pytest.approx(frechet(x, y), rel=1e-5)


# kernels

def by_hand(kx, ky, kxy, unbiased=True): # MMD² from the three kernel matrices
    def mean(k): return (k.sum() - np.trace(k))/(len(k)*(len(k) - 1)) if unbiased else k.mean()
    return mean(kx) + mean(ky) - 2*kxy.mean()

@pytest.mark.parametrize('block', [512, 7])
def test_poly_equals_torchmetrics(block, monkeypatch):
    monkeypatch.setattr(distance, '_BLOCK', block)
    x, y = rows(40, 12, 1), rows(40, 12, 2, .2)
    rng = np.random.default_rng(0)
    stat = kernel_distance(x, y, rng.integers(0, 9, 40), rng.integers(0, 9, 40))
    assert stat(np.ones(9)) == pytest.approx(poly_mmd(*map(torch.from_numpy, (x, y))).item(), rel=1e-9)

def test_poly_of_unequal_sides_equals_the_definition():
    x, y = rows(33, 12, 1), rows(57, 12, 2, .2)
    def k(a, b): return (a @ b.T/12 + 1)**3
    got = kernel_distance(x, y, one_album(x), one_album(y))([1])
    assert got == pytest.approx(by_hand(k(x, x), k(y, y), k(x, y)), rel=1e-9)

def test_rbf_is_cmmd_but_for_the_rows_themselves():
    "CMMD's own code averages over all pairs, each row with itself too (k = 1): adding those gives its number."
    x, y = rows(33, 12, 1), rows(57, 12, 2, .2)
    a, b = (z/np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    def k(a, b): return np.exp(-((a[:, None] - b)**2).sum(2)/(2*10**2))
    kx, ky, kxy = k(a, a), k(b, b), k(a, b)
    got = kernel_distance(x, y, one_album(x), one_album(y), 'rbf')([1])
    assert got == pytest.approx(1000*by_hand(kx, ky, kxy), rel=1e-6)
    diagonal = sum((1 - (k.sum() - len(k))/(len(k)*(len(k) - 1)))/len(k) for k in (kx, ky))
    assert got + 1000*diagonal == pytest.approx(1000*by_hand(kx, ky, kxy, unbiased=False), rel=1e-6)

@pytest.mark.parametrize('kernel,block', [('poly', 512), ('poly', 7), ('rbf', 7)])
def test_album_counts_are_repeated_rows(kernel, block, monkeypatch):
    "Albums in any order, some on one side only, some on neither; counts of any size."
    monkeypatch.setattr(distance, '_BLOCK', block)
    x, y, rng = rows(30, 6, 1), rows(50, 6, 2), np.random.default_rng(0)
    ax, ay = rng.choice([0, 2, 3, 7], 30), rng.choice([0, 1, 3, 7], 50)
    stat, w = kernel_distance(x, y, ax, ay, kernel), np.array([2, 1, 0, 3, 5, 0, 0, 1, 4])
    again = [np.repeat(z, w[a], 0) for z, a in ((x, ax), (y, ay))]
    assert stat(w) == pytest.approx(kernel_distance(*again, *map(one_album, again), kernel)([1]), rel=1e-6)

def test_kernel_distance_where_a_resample_leaves_nothing():
    x, y = rows(5, 3), rows(5, 3, 1)
    stat = kernel_distance(x, y, [0, 0, 0, 1, 1], [0, 0, 0, 0, 2])
    assert np.isnan(stat([0, 1, 1])) and np.isfinite(stat([0, 1, 2])) and np.isnan(stat([0, 0, 0]))

def test_kernel_distance_of_an_unknown_kernel():
    with pytest.raises(StoryError, match='no kernel .linear.; there are poly, rbf'):
        kernel_distance(rows(5, 3), rows(5, 3), [0]*5, [0]*5, 'linear')

def test_kernel_distance_is_unbiased():
    "Pairs of small sets from one source scatter around 0; with the rows themselves they would not."
    got = [kernel_distance(*rows(40, 4, s).reshape(2, 20, 4), [0]*20, [0]*20)([1]) for s in range(300)]
    assert abs(np.mean(got)) < 3*np.std(got)/300**.5 and np.mean(np.array(got) < 0) > .3

@pytest.mark.filterwarnings('ignore:Metric `Kernel')
def test_kid_std_equals_torchmetrics_and_leaves_the_global_generator_alone():
    x, y = rows(60, 12, 1), rows(50, 12, 2, .2)
    torch.manual_seed(5)
    theirs = KernelInceptionDistance(identity(12), 10, 30)
    for z, is_real in ((x, True), (y, False)): theirs.update(torch.from_numpy(z), real=is_real)
    mean, std = theirs.compute()
    state = torch.get_rng_state()
    assert kid_std(x, y, 10, 30, seed=5) == pytest.approx((mean.item(), std.item()), rel=1e-9)
    assert kid_std(x, y, 10, 30, seed=6) != kid_std(x, y, 10, 30, seed=5)
    assert torch.equal(torch.get_rng_state(), state)

def test_kid_std_of_fewer_rows_than_a_subset():
    "A subset is then the whole smaller side: of equal sides every one is the same, and is the distance itself."
    x, y = rows(30, 12, 1), rows(30, 12, 2, .2)
    mean, std = kid_std(x, y, subsets=3)
    assert mean == pytest.approx(kernel_distance(x, y, one_album(x), one_album(y))([1]), rel=1e-9) and std < 1e-9
    for a, b in ((x, y[:7]), (x[:7], y)): assert kid_std(a, b, subsets=3) == kid_std(a, b, subsets=3, size=7)


# neighbours

def by_definition(x, y, k): # loops over the words of the two papers
    def far(a, b): return np.sqrt(((a - b)**2).sum())
    def radius(rows, i): return sorted(far(rows[i], r) for j, r in enumerate(rows) if j != i)[k-1]
    rx, ry = ([radius(z, i) for i in range(len(z))] for z in (x, y))
    within = np.array([[far(a, b) < r for b in y] for a, r in zip(x, rx)])
    back = np.array([[far(a, b) < r for b, r in zip(y, ry)] for a in x])
    return dict(precision=within.any(0), recall=back.any(1), density=within.sum(0)/k, coverage=within.any(1))

@pytest.mark.parametrize('k,block', [(1, 512), (5, 512), (5, 7), (3, 1)])
def test_neighbours_equal_the_definition(k, block, monkeypatch):
    monkeypatch.setattr(distance, '_BLOCK', block)
    x, y = rows(40, 3, 1), rows(25, 3, 2, 1.2)
    got, expected = neighbours(x, y, k), by_definition(x, y, k)
    assert got.keys() == expected.keys()
    for name in expected: assert got[name].tolist() == expected[name].tolist(), name
    assert all(0 < got[name].mean() < 1 for name in ('precision', 'recall', 'coverage'))

@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_neighbours_of_the_told_frames_themselves(dtype, monkeypatch):
    "Each ball holds its own row and the k - 1 nearest; the k-th lies on its rim, so outside, however it is rounded."
    rng, exact = np.random.default_rng(0), distance._squared_distances
    def rounded(x, y): return (d := exact(x, y))*(1 + 1e-13*rng.uniform(-1, 1, d.shape))
    monkeypatch.setattr(distance, "_squared_distances", rounded)
    x = rows(300, 64).astype(dtype) + dtype(100)
    y = x[rng.permutation(300)]
    got = {name: v.mean() for name, v in neighbours(x, y).items()}
    assert got == pytest.approx(dict(precision=1, recall=1, density=1, coverage=1), abs=1e-12)

def test_neighbours_of_noise_and_of_forgotten_groups():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(c, .3, (50, 8)) for c in (0, 5)])
    one_group = {k: v.mean() for k, v in neighbours(x, rng.normal(0, .3, (100, 8))).items()}
    assert one_group['precision'] > .8 and one_group['recall'] < .55 and one_group['coverage'] < .55
    noise = {k: v.mean() for k, v in neighbours(x, x + rng.normal(0, 2, x.shape)).items()}
    assert noise['precision'] < .1 and noise['density'] < .1


# what is refused

FUNCTIONS = dict(frechet=frechet, kernel=lambda x, y: kernel_distance(x, y, [0]*len(x), [0]*len(y)), kid=kid_std,
                 neighbours=neighbours)

@pytest.mark.parametrize('f', FUNCTIONS.values(), ids=FUNCTIONS)
def test_refused_in_one_line(f):
    x = rows(30, 4)
    def bad(*at):
        z = x.astype(np.float32)
        for i, value in at: z[i, i % 4] = value
        return z
    for a, b, words in ((x[:1], x, 'got 1 and 30'), (x, x[:0], 'got 30 and 0'), (x, x[:, :3], r'\(30, 4\) and \(30, 3\)'),
                        (x[0], x, r'\(4,\) and \(30, 4\)'), (bad((3, np.nan), (9, np.inf)), x, '2 of 30 and 0 of 30'),
                        (x, bad((5, -np.inf)), '0 of 30 and 1 of 30')):
        with pytest.raises(StoryError, match=words) as e: f(a, b)
        assert '\n' not in str(e.value)

def test_neighbours_need_more_rows_than_neighbours():
    with pytest.raises(StoryError, match='6 rows of features or more are needed on each side, got 5 and 9'):
        neighbours(rows(5, 3), rows(9, 3))
    assert set(neighbours(rows(6, 3), rows(6, 3, 1))) == {'precision', 'recall', 'density', 'coverage'}
