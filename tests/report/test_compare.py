"Two runs are paired if they drew the same albums; otherwise the verdict says why not."
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

def test_not_scored_and_old(runs, tmp_path):
    with pytest.raises(StoryError, match='not scored yet; score it first: arldm-score'): compare_runs(runs/'near', tmp_path)
    old = load_json(runs/'near/scores.json')
    save_json(tmp_path/'scores.json', dict(scores=[{k: r[k] for k in ('name', 'value', 'n', 'note')} for r in old['scores']]))
    assert all(r['verdict'].startswith('not paired') for r in compare_runs(tmp_path, runs/'near'))
