"Several systems: ranks follow from corrected intervals, only common frames count, and two machines agree."
import json, os, shutil

import numpy as np
import pytest
import torch
from PIL import Image

from arldm.cli.report import report
from arldm.core import StoryError
from arldm.data.story import StoryFile
from arldm.draw.matching import match_drawings
from arldm.files.atomic import load_json
from arldm.report.compare import compare_runs
from arldm.report.ranking_page import pair_text, write_ranking
from arldm.report.systems import common_notes, open_systems, score_systems, shared_split, system_names
from arldm.score.evaluate import evaluate
from painted import Small, draw, stories, story_file

T = {1: 2.2622, 3: 2.9333, 6: 3.3642}   # Student's t of 9 degrees of freedom: 5 % divided by 1, 3 and 6, two-sided
LIKE = 'similarity to the reference frame (dinov2)'
SYSTEMS = 'near', 'same', 'far'

def noisy(strength, seed):
    "A system that draws the reference frames with noise."
    def picture(split, i, k):
        x = np.asarray(split[i].pictures()[k - 1].resize((32, 32)), float)
        noise = np.random.default_rng([seed, i, k]).normal(0, strength, (8, 8, 3)).repeat(4, 0).repeat(4, 1)
        return Image.fromarray((x + noise).clip(0, 255).astype('uint8'))
    return picture

def draw_system(folder, split, strength, seed, **options):
    picture = noisy(strength, seed)
    draw(folder, split, picture=lambda i, k: picture(split, i, k), **options)
    return folder

@pytest.fixture(scope='module')
def split(tmp_path_factory): return story_file(tmp_path_factory.mktemp('data'), test=stories(10, 1, 3), train=stories(4, start=50))['test']

@pytest.fixture(scope='module')
def drawn(tmp_path_factory, split):
    top = tmp_path_factory.mktemp('drawn')
    for name, strength, seed in zip(SYSTEMS, (10, 10, 80), range(3)): draw_system(top/name, split, strength, seed)
    return top

@pytest.fixture(scope='module')
def ranked(tmp_path_factory, drawn, split):
    out = tmp_path_factory.mktemp('ranked')/'comparison'
    folders = [drawn/name for name in SYSTEMS]
    page, ranking = write_ranking(folders, split, out, dict(dinov2=Small()), n_resamples=60, store=out.parent/'features.db')
    return out, ranking

def tree(folder): return {p.relative_to(folder).as_posix(): p.is_file() and p.read_bytes() for p in folder.rglob('*')}

def one_line(f, *args, **options):
    with pytest.raises(StoryError) as e: f(*args, **options)
    assert '\n' not in str(e.value)
    return str(e.value)


def test_ranks(ranked):
    _, ranking = ranked
    like = next(s for s in ranking['scores'] if s['name'] == LIKE)
    assert like['ranks'] == dict(near=[1, 2], same=[1, 2], far=[3, 3])
    assert [pair_text(pair) for pair in like['pairs']] == ['cannot tell', 'near is better', 'same is better']
    alike = next(s for s in ranking['scores'] if s['better'] is None)
    assert alike['ranks'] == {}
    assert (ranking['n_stories'], ranking['n_albums'], ranking['n_frames'], ranking['side']) == (10, 10, 30, 32)

def test_ranks_follow_from_the_pairs():
    from arldm.report.systems import _ranks
    wins = [('a', 'b'), ('a', 'c'), ('b', 'd')]
    pairs = [dict(a=x, b=y, better=x if (x, y) in wins else None) for i, x in enumerate('abcd') for y in 'abcd'[i + 1:]]
    assert _ranks('abcd', pairs) == dict(a=[1, 2], b=[2, 3], c=[2, 4], d=[2, 4])

def test_intervals_are_corrected_for_the_number_of_pairs(ranked):
    "An interval of three is as much longer as Student's t says, around the same difference."
    out, ranking = ranked
    alone = {row['name']: row for row in compare_runs(out/'near', out/'far')}
    for s in ranking['scores']:
        pair = next(pair for pair in s['pairs'] if (pair['a'], pair['b']) == ('near', 'far'))
        one = alone[s['name']]
        assert pair['difference'] == one['difference']
        if one['low'] is None or one['low'] == one['high']: continue
        assert (pair['high'] - pair['low'])/(one['high'] - one['low']) == pytest.approx(T[3]/T[1], rel=1e-3)
    six = {row['name']: row for row in compare_runs(out/'near', out/'far', 6)}[LIKE]
    assert (six['high'] - six['low'])/(alone[LIKE]['high'] - alone[LIKE]['low']) == pytest.approx(T[6]/T[1], rel=1e-3)
    assert six['verdict'].endswith('one of 6 at once')

def numbers(ranking):
    found = {}
    for s in ranking['scores']:
        for name, value in s['values'].items(): found[s['name'], name] = value
        for pair in s['pairs']:
            for key in 'difference', 'low', 'high': found[s['name'], pair['a'], pair['b'], key] = pair[key]
    return found

class Silent(Small):
    "The same network on a machine that cannot run it."
    def forward(self, x): raise AssertionError('features are stored, and yet computed again')
Silent.__name__ = 'Small'   # part of the digest of a network

def test_another_machine(ranked, drawn, split, tmp_path):
    "Stored features give the same numbers; features that are rounded differently, the same to a part in ten thousand."
    out, ranking = ranked
    there = StoryFile(shutil.copy(split.file.path, tmp_path/'moved.h5'))['test']
    for name in SYSTEMS: shutil.copytree(drawn/name, tmp_path/'elsewhere'/name)
    folders = [tmp_path/'elsewhere'/name for name in SYSTEMS]
    store = shutil.copy(out.parent/'features.db', tmp_path/'copy.db')
    _, stored = write_ranking(folders, there, tmp_path/'a', dict(dinov2=Silent()), n_resamples=60, store=store)
    for key in 'digests', 'networks', 'side': assert stored[key] == ranking[key]
    assert [s['digest'] for s in stored['systems']] == [s['digest'] for s in ranking['systems']]
    assert numbers(stored) == numbers(ranking)
    class Rounded(Small):
        "Rounds as another machine may: each number by a millionth."
        def forward(self, x):
            noise = np.random.default_rng(self.seen).normal(size=(len(x), self.num_features))
            return super().forward(x)*(1 + 1e-6*torch.from_numpy(noise).float())
    _, again = write_ranking(folders, there, tmp_path/'b', dict(dinov2=Rounded()), n_resamples=60)
    for key, value in numbers(ranking).items():
        assert numbers(again)[key] == pytest.approx(value, rel=1e-4, abs=1e-4), key

def test_only_common_frames_count(drawn, split, tmp_path):
    "A story is missing, a first frame was given: the rest is compared, and said."
    draw_system(tmp_path/'less', split, 10, 3, first=2, keep=lambda i: i != 4)
    systems = open_systems([drawn/'near', tmp_path/'less'], split)
    assert [len(s.drawings) for s in systems] == [18, 18] and len(systems[0].drawn) == 10
    assert systems[0].drawings.digest() == systems[1].drawings.digest()
    notes = common_notes(systems)
    assert notes[0].startswith('2 systems compared on the 18 frames of 9 stories about 9 albums')
    assert notes[1] == 'near: 12 of its 30 frames left out, not drawn by all' and len(notes) == 2
    scores = score_systems(systems, tmp_path/'out', n_resamples=20)
    only = tmp_path/'only'
    draw_system(only, split, 10, 0, first=2, keep=lambda i: i != 4)
    alone = score_systems(open_systems([only, tmp_path/'less'], split), tmp_path/'out2', n_resamples=20)
    assert scores['near']['scores'] == alone['only']['scores']

def test_resolutions_differ(drawn, split, tmp_path):
    "All are compared at the lowest one; what is finer does not count."
    for path in sorted((drawn/'near').glob('*/*.png')):
        (to := tmp_path/'large'/path.parent.name).mkdir(parents=True, exist_ok=True)
        Image.open(path).resize((96, 96), Image.NEAREST).save(to/path.name)
    systems = open_systems([drawn/'near', tmp_path/'large'], split)
    assert 'resolutions differ: 32 (near), 96 (large) pixels; all are compared at 32' in common_notes(systems)[-1]
    scores = score_systems(systems, tmp_path/'out', n_resamples=20)
    values = [{row['name']: row['value'] for row in scores[name]['scores']} for name in ('near', 'large')]
    like = 'similarity to the reference frame (fields)'
    assert values[0][like] == pytest.approx(values[1][like], abs=.01)

def test_named_twice(drawn, split, tmp_path):
    assert 'is the same folder as' in one_line(open_systems, [drawn/'near', drawn/'far', drawn/'..'/drawn.name/'near'], split)
    os.symlink(drawn/'near', tmp_path/'link')
    assert 'is the same folder as' in one_line(open_systems, [drawn/'near', tmp_path/'link'], split)
    evaluate(tmp_path/'link', split, n_resamples=10, out=tmp_path/'scores')
    assert 'are the same drawings' in one_line(open_systems, [drawn/'near', tmp_path/'scores'], split)
    shutil.copytree(drawn/'near', tmp_path/'copy')
    assert common_notes(open_systems([drawn/'near', tmp_path/'copy'], split))[-1] == 'near and copy hold the same pictures'


def test_names():
    assert system_names(['x/uno/base/en', 'y/uno/base/en']) == ['x', 'y'] and system_names(['/a', '/b/a']) == ['a', 'b/a']
    assert system_names(['x/uno', 'y/uno', 'y/story']) == ['x/uno', 'y/uno', 'y/story']

def test_nothing_in_common(drawn, split, tmp_path):
    draw_system(tmp_path/'a', split, 10, 0, keep=lambda i: i < 3)
    draw_system(tmp_path/'b', split, 10, 0, keep=lambda i: i > 5)
    said = one_line(open_systems, [tmp_path/'a', tmp_path/'b'], split)
    assert said == ('there is no frame that all systems have drawn; they drew the stories '
                    'a: s0_0, s1_0, s2_0; b: s6_0, s7_0, s8_0, …')

def test_any_layout_and_nothing_is_written_there(drawn, tmp_path, monkeypatch, capsys):
    "A tree of ViStoryBench, flat files, strips by their scores: the same pictures get the same scores."
    split = story_file(tmp_path, test=stories(4, 1, 3))['test']
    draw_system(tmp_path/'near', split, 10, 0)
    for path in sorted(draw_system(tmp_path/'far', split, 80, 2).glob('*/*.png')):
        story, k = path.parent.name, int(path.stem)
        for to in (tmp_path/f'theirs/tree/base/en/20250429-235959/shots/{story}/shot_{k:02}.png', tmp_path/f'theirs/flat/{story}_{k - 1}.png'):
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)
    (tmp_path/'theirs/strips').mkdir()
    for story in split.ids:
        strip = Image.new('RGB', (96, 32))
        for k in range(3): strip.paste(Image.open(tmp_path/f'far/{story}/{k + 1}.png'), (32*k, 0))
        strip.save(tmp_path/f'theirs/strips/{story}.png')
    monkeypatch.chdir(tmp_path)
    evaluate('theirs/strips', split, drawings=match_drawings('theirs/strips', split, grid='1x3'), n_resamples=9, out='scores/strips')
    before = tree(tmp_path/'theirs')
    page = report('theirs/tree', 'theirs/flat', 'scores/strips', 'near', data='stories.h5', resamples=20)
    assert tree(tmp_path/'theirs') == before and page.as_posix() == 'comparison/ranking.html'
    ranking = load_json('comparison/ranking.json')
    assert [s['name'] for s in ranking['systems']] == ['tree', 'flat', 'strips', 'near']
    for s in ranking['scores']:
        *theirs, _ = s['values'].values()
        assert theirs == [theirs[0]]*3, s['name']
    said = capsys.readouterr().out
    assert 'similarity to the reference frame' in said and all(name in said for name in ('tree', 'flat', 'strips', 'near'))
    text = page.read_text()
    assert 'tree and flat hold the same pictures' in text and 'cannot tell' in text
    again = report('theirs/tree', 'theirs/flat', 'scores/strips', 'near', data='stories.h5', resamples=20)
    assert again.read_text() == text
    said = one_line(report, 'theirs/tree', 'theirs/flat', data='stories.h5', out='theirs/tree/ranking')
    assert 'is in the folder of tree' in said and tree(tmp_path/'theirs') == before

@pytest.mark.parametrize('words, said', [
    (('near', '--out', 'x'), '--out is for a ranking; name two folders or more'),
    (('near', 'far', '--data', 'x.h5'), '--data is for a ranking; name three folders or more, or --out'),
    (('near', 'far', '--resamples', '9'), '--resamples is for a ranking; name three folders or more, or --out'),
    (('near', 'far', 'near'), 'near is the same folder as near; name each system once'),
    (('near', 'far', 'same'), 'no folder says which stories are drawn; name them: --data stories.h5'),
    (('near', 'far', '--out', 'file', '--data', 'stories.h5'), '--out file is not a folder; name a folder'),
    (('near', 'far', '--out', 'mine', '--data', 'stories.h5'), 'mine/ranking.html is there already and is not a report written by arldm'),
    (('near', 'far', 'nowhere', '--data', 'stories.h5'), 'nowhere: no such folder'),
    (('near', 'far', ''), 'others is empty')])
def test_one_line(words, said, drawn, split, tmp_path, monkeypatch, capsys):
    for name in SYSTEMS: os.symlink(drawn/name, tmp_path/name)
    os.symlink(split.file.path, tmp_path/'stories.h5')
    (tmp_path/'file').write_text('')
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine/ranking.html').write_text('my own page')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.argv', ['arldm-report', *words])
    with pytest.raises(SystemExit) as e: report()
    assert e.value.code == 1
    answer = capsys.readouterr().err
    assert answer.startswith(f'arldm-report: {said}') and answer.count('\n') == 1, answer
    assert (tmp_path/'mine/ranking.html').read_text() == 'my own page'

def test_other_systems_under_the_same_names(ranked, drawn, split, tmp_path):
    "A folder that holds scores of other drawings is refused, and stays."
    out, _ = ranked
    before = tree(out)
    shutil.copytree(drawn/'near', tmp_path/'near')
    said = one_line(write_ranking, [tmp_path/'near', drawn/'far'], split, out)
    assert 'is the folder of other drawings' in said and tree(out) == before

def test_scores_that_no_ranking_has_made_stay(drawn, split, tmp_path, monkeypatch):
    "Scores of arldm-score, and folders of drawings, are not replaced by those of a ranking."
    monkeypatch.chdir(tmp_path)
    for name in 'near', 'far': shutil.copytree(drawn/name, tmp_path/'runs'/name)
    for name in 'near', 'far': evaluate(f'runs/{name}', split, n_resamples=20, out=f'scores/{name}')
    before = tree(tmp_path)
    runs, scored = ['runs/near', 'runs/far'], ['scores/near', 'scores/far']
    for folders, out in ((runs, 'runs'), (runs, 'scores'), (scored, 'scores')):
        said = one_line(write_ranking, folders, split, out, n_resamples=20)
        why = 'which are not of a ranking' if (folders, out) == (runs, 'scores') else 'one of the folders to rank'
        assert f'--out {out}: a ranking would replace the scores in {out}/near, {why}' in said
    assert tree(tmp_path) == before
    for folders in runs, scored, runs: write_ranking(folders, split, 'ranked', n_resamples=20)

def test_a_folder_of_another_command_is_refused(drawn, split, tmp_path):
    (tmp_path/'out').mkdir()
    (tmp_path/'out/made.json').write_text('{"model": "x"}')
    assert 'was made with made_by=' in one_line(write_ranking, [drawn/'near', drawn/'far'], split, tmp_path/'out', n_resamples=20)

def test_scores_put_into_a_ranking_stay(drawn, split, tmp_path, monkeypatch):
    "What a ranking wrote, the next one replaces; what somebody else put there, none does."
    monkeypatch.chdir(tmp_path)
    near, far, same = (str(drawn/name) for name in ('near', 'far', 'same'))
    write_ranking([near, far], split, 'ranked', n_resamples=20)
    write_ranking([near, far], split, 'ranked', n_resamples=21)    # its own scores only
    evaluate(same, split, n_resamples=20, out='ranked/same')
    evaluate(near, split, n_resamples=22, out='ranked/near')
    before = tree(tmp_path)
    for folders, name in (([near, far], 'near'), ([far, same], 'same')):
        said = one_line(write_ranking, folders, split, 'ranked', n_resamples=20)
        assert f'the scores in ranked/{name}, which are not of a ranking; move them away, or name another folder' in said
    assert tree(tmp_path) == before
    for name in 'near', 'same': shutil.rmtree(tmp_path/'ranked'/name)
    write_ranking([near, far, same], split, 'ranked', n_resamples=20)
    write_ranking([near, same], split, 'ranked', n_resamples=20)
    from arldm.cli.score import score
    before = tree(tmp_path)
    said = one_line(score, near, data=split.file.path, out='ranked/near', resamples=20)
    assert said == '--out ranked/near holds scores of arldm-report; name another folder' and tree(tmp_path) == before

def test_a_ranking_killed_while_scoring_goes_on(drawn, split, tmp_path, monkeypatch):
    "Also with scores that were put there in between: these stay."
    from arldm.report import systems
    folders = [drawn/'near', drawn/'far']
    def killed(*args, **options):
        if evaluated: raise KeyboardInterrupt
        evaluated.append(evaluate(*args, **options))
        return evaluated[0]
    evaluated = []
    monkeypatch.setattr(systems, 'evaluate', killed)
    with pytest.raises(KeyboardInterrupt): write_ranking(folders, split, tmp_path/'out', n_resamples=20)
    assert (tmp_path/'out/near/scores.json').exists() and not (tmp_path/'out/far/scores.json').exists()
    monkeypatch.undo()
    evaluate(drawn/'far', split, n_resamples=20, out=tmp_path/'out/far')
    assert 'not of a ranking' in one_line(write_ranking, folders, split, tmp_path/'out', n_resamples=20)
    shutil.rmtree(tmp_path/'out/far')
    write_ranking(folders, split, tmp_path/'out', n_resamples=20)

@pytest.mark.parametrize('made', [True, False])
def test_a_ranking_of_an_earlier_version_goes_on(drawn, split, tmp_path, monkeypatch, made):
    "It did not mark which scores it wrote, and still does not have to after some were scored again."
    from arldm.report import systems
    out, (near, far, same) = tmp_path/'out', (drawn/name for name in ('near', 'far', 'same'))
    with monkeypatch.context() as earlier:
        earlier.setattr(systems, '_RANKED', None)
        write_ranking([near, far, same], split, out, n_resamples=20)
    if made: (out/'made.json').write_text(json.dumps(dict(made_by=load_json(out/'made.json')['made_by'])))
    else: (out/'made.json').unlink()
    for folders in [near, far], [far, same], [near, far, same]: write_ranking(folders, split, out, n_resamples=20)

def test_the_split_that_a_folder_names(drawn, tmp_path):
    "With a story file, too; the first folder that names one decides."
    told = story_file(tmp_path, test=stories(2), val=stories(3, start=60))
    record = dict(data='elsewhere.h5', split='val')
    for name in 'one', 'two': (tmp_path/name).mkdir()
    (tmp_path/'two/drawing.json').write_text(json.dumps(record))
    folders = [tmp_path/'one', tmp_path/'two']
    assert shared_split(folders, told.path).name == 'val' and shared_split(folders, told.path, 'test').name == 'test'
    assert shared_split(folders[:1], told.path).name == 'test'

def test_systems_of_any_name(drawn, split, tmp_path):
    "Also one that is called like a row of the page."
    for name, of in dict(frames='near', stories='far').items(): shutil.copytree(drawn/of, tmp_path/name)
    page, _ = write_ranking([tmp_path/'frames', tmp_path/'stories'], split, tmp_path/'out', n_resamples=20)
    text = page.read_text()
    assert all(f'system: {name}' in text and str(tmp_path/name) in text for name in ('frames', 'stories'))
