"Two runs are paired if they drew the same albums; otherwise the verdict says why not."
import shutil

import pytest
from arldm.report.compare import compare_runs
from arldm.core import StoryError
from arldm.files.atomic import load_json, save_json
from arldm.score.evaluate import evaluate
from painted import draw, painting, stories, story_file

@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    d = tmp_path_factory.mktemp('runs')
    split = story_file(d, test=stories(10))['test']
    draw(d/'near/drawn', split)
    draw(d/'far/drawn', split, picture=lambda i, k: painting(7*i + k))
    draw(d/'part/drawn', split, keep=lambda i: i < 12)
    for name in ('near', 'far', 'part'): evaluate(d/name, split, n_resamples=50)
    return d

def test_verdicts(runs):
    rows = {r['name']: r for r in compare_runs(runs/'near', runs/'far')}
    like = rows['similarity to the reference frame (fields)']
    assert like['verdict'].startswith('B worse than A') and like['high'] < 0 and like['difference'] == like['b'] - like['a']
    back = {r['name']: r for r in compare_runs(runs/'far', runs/'near')}['similarity to the reference frame (fields)']
    assert back['verdict'].startswith('B better than A') and back['low'] == pytest.approx(-like['high'])

def test_same_run(runs):
    rows = compare_runs(runs/'near', runs/'near')
    assert len(rows) > 5 and all(r['difference'] == 0 and r['verdict'].startswith('no significant difference') for r in rows)

def test_other_albums_are_not_paired(runs):
    rows = compare_runs(runs/'near', runs/'part')
    assert rows and all(r['verdict'].startswith('not paired') and r['low'] is None for r in rows)

def test_few_albums_have_a_value(runs, tmp_path):
    "The interval is that of the albums that have a value; without their number there is no verdict."
    for name in 'near', 'far': shutil.copytree(runs/name, tmp_path/name)
    like = 'similarity to the reference frame (fields)'
    def row():
        [found] = [r for r in compare_runs(tmp_path/'near', tmp_path/'far') if r['name'] == like]
        return found
    def with_albums(n):
        for name in 'near', 'far':
            saved = load_json(tmp_path/name/'resamples.json')
            saved['n_albums'] = {like: n} if n else {}
            save_json(tmp_path/name/'resamples.json', saved)
        return row()
    all_albums, three = row(), with_albums(3)
    assert three['high'] - three['low'] > 1.5*(all_albums['high'] - all_albums['low'])
    assert with_albums(1)['low'] is None
    assert with_albums(None)['verdict'].startswith('not paired: a run does not say how many albums')

def test_other_resolutions_are_not_paired(runs, tmp_path):
    for name in 'near', 'far': shutil.copytree(runs/name, tmp_path/name)
    scores = load_json(tmp_path/'far/scores.json')
    save_json(tmp_path/'far/scores.json', {**scores, 'side': 2*scores['side']})
    verdicts = {r['verdict'] for r in compare_runs(tmp_path/'near', tmp_path/'far')}
    assert len(verdicts) == 1 and min(verdicts).startswith('not paired: scored at ')

def test_not_scored_and_old(runs, tmp_path):
    with pytest.raises(StoryError, match='not scored yet; score it first: arldm-score'): compare_runs(runs/'near', tmp_path)
    old = load_json(runs/'near/scores.json')
    save_json(tmp_path/'scores.json', dict(scores=[{k: r[k] for k in ('name', 'value', 'n', 'note')} for r in old['scores']]))
    assert all(r['verdict'].startswith('not paired') for r in compare_runs(tmp_path, runs/'near'))
