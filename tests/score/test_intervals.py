"Intervals: what they are made of, and that they hold."
import math
import numpy as np, pytest
from arldm.score.intervals import (Estimate, format_value, estimate, mean_of, ratio_of, resample,
                                   verdict, widen)

T = {2: 12.706, 3: 4.303, 4: 3.182, 6: 2.571, 11: 2.228, 31: 2.042, 174: 1.974}  # Student's t, 97.5 %, n - 1 degrees

@pytest.mark.parametrize('n', [n for n in T if n > 2])
def test_widen(n): assert widen(n) == pytest.approx(T[n]/1.96*math.sqrt(n/(n - 1)), rel=.01)

def test_one_album_says_nothing():
    e = estimate(mean_of([1., 2.], [0, 0]), resample(1))
    assert all(map(math.isnan, e.interval)) and verdict(e, e, 'lower').startswith('no verdict')

def test_resamples_are_of_albums_and_repeat():
    resamples = resample(9, 50, 3)
    assert resamples.shape == (50, 9) and (resamples.sum(1) == 9).all() and (resamples == resample(9, 50, 3)).all()
    assert (resamples != resample(9, 50, 4)).any()

def test_statistics_are_those_of_repeated_albums():
    rng = np.random.default_rng(0)
    x, y, a, b = rng.random(30), rng.random(20), rng.integers(5, size=30), rng.integers(5, size=20)
    for w in resample(5, 20):
        repeated = [np.concatenate([np.repeat(v[i == j], w[j]) for j in range(5)]) for v, i in ((x, a), (y, b))]
        assert mean_of(x, a)(w) == pytest.approx(repeated[0].mean())
        assert ratio_of(x, a, y, b)(w) == pytest.approx(repeated[0].mean()/repeated[1].mean())
    assert math.isnan(mean_of([1], [0])([0, 5]))

def test_interval_is_centred():
    resampled = np.random.default_rng(0).normal(10, 1, 4000)                 # far above the value, as with distances
    low, high = Estimate(3., resampled, 1000).interval
    assert low == pytest.approx(3 - 1.96, abs=.1) and high == pytest.approx(3 + 1.96, abs=.1)

def test_albums_without_a_value_do_not_narrow_the_interval():
    "Three of a hundred albums have a value: the interval is that of three."
    values, album = np.array([0, .5, 1]), np.array([4, 50, 99])
    few, many = estimate(mean_of(values, album), resample(100)), estimate(mean_of(np.arange(100), np.arange(100)), resample(100))
    assert few.n_albums == 3 and many.n_albums == 100 and (few - many).n_albums == 3
    resampled = few.resampled[np.isfinite(few.resampled)]
    low, high = few.interval
    assert high - low == pytest.approx(widen(3)*np.ptp(np.quantile(resampled, (.025, .975))))
    assert estimate(ratio_of(values, album, values[1:], album[1:]), resample(100)).n_albums == 2

def test_paired_differences():
    e, f = Estimate(1., np.arange(5.), 5), Estimate(4., np.arange(5.) + 3, 5)
    assert (f - e).value == 3 and (f - e).interval == (3, 3)
    assert verdict(e, f, 'lower').startswith('B worse than A') and verdict(e, f, 'higher').startswith('B better than A')
    assert verdict(e, f, None).startswith('B is higher than A') and 'no significant difference' in verdict(e, e, 'lower')
    assert verdict(e, f, 'lower', unit='%').endswith('+300.0 … +300.0 points')
    assert verdict(e, f, 'lower', unit='points') == verdict(e, f, 'lower', unit='%')

@pytest.mark.parametrize('value,unit,text', [(None, '', '—'), (math.nan, '%', '—'), (.5, '%', '50.0%'), (-1.5, '', '−1.5'),
    (12345.678, '', '1.235e+04'), (-.0004, '%', '0.0%'), (.588, 'points', '+58.8 points'), (-.05, 'points', '−5.0 points'),
    (-.0004, 'points', '0.0 points'), (0, '', '0')])
def test_as_text(value, unit, text): assert format_value(value, unit) == text
