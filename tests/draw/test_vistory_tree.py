"`arldm-draw --layout vistory`: a tree of copies that ViStoryBench's readers find, scored as the drawings themselves."
import json, os, re, shutil
from dataclasses import replace
from pathlib import Path

import pytest

from arldm.cli.convert import convert
from arldm.cli.draw import draw
from arldm.cli.score import score
from arldm.core import StoryError, asset
from arldm.data.story import StoryFile
from arldm.draw.drawing_files import drawn_frames
from arldm.draw.pipeline import StoryPipeline
from arldm.draw.test_set import draw_split
from arldm.draw.vistory_tree import write_vistory
from arldm.score.evaluate import evaluate
from painted import draw as paint, stories, story_file
from vistory import write_vistory_data

FAST = dict(num_inference_steps=1, guidance_scale=1., layout='vistory')
MODEL = asset('toy/arldm')

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "A story file of 01 of 4 shots, 02 of 7 shots (more than the model remembers) and 03 of 2."
    folder = tmp_path_factory.mktemp('data')
    told = write_vistory_data(folder/'ViStory', 3, 8)
    convert('vistory', folder/'ViStory', folder/'x.h5', quiet=True)
    assert [len(x['Shots']) for x in told.values()] == [4, 7, 2]
    return folder/'x.h5'

@pytest.fixture(scope='module')
def drawn(data, tmp_path_factory):
    "The first two stories, drawn twice."
    out = tmp_path_factory.mktemp('drawn')/'out'
    assert draw(MODEL, data=data, out=out, limit=2, sets=2, **FAST) == out/'drawn'
    return out

def by_their_rules(root):
    "{method/mode/language/timestamp: {story: {number: bytes}}}: every folder below a timestamp is a story."
    found = {}
    for time in Path(root).glob('*/*/*/*'):
        assert re.fullmatch(r'\d{8}_\d{6}', time.name) and time.parent.name in ('en', 'ch')
        shots = found[time.relative_to(root).as_posix()] = {}
        for story in filter(Path.is_dir, time.iterdir()):
            assert int(story.name)
            shots[story.name] = {int(x.stem.split('_')[-1]): x.read_bytes() for x in (story/'shots').iterdir()}
    return found

def ours(folder):
    return {s: {k: path.read_bytes() for k, path in x.items()} for s, x in drawn_frames(folder).items()}

def trees(out): return {key: x for key, x in sorted(by_their_rules(out/'vistory').items())}

def test_every_set_is_a_mode(drawn):
    (one, first), (two, second) = trees(drawn).items()
    assert one.startswith('arldm/seed-0/en/') and two.startswith('arldm/seed-1000000/en/')
    assert first == ours(drawn/'drawn') and second == ours(drawn/'drawn2') and first != second
    assert {s: sorted(x) for s, x in first.items()} == {'01': [1, 2, 3, 4], '02': [1, 2, 3, 4, 5, 6, 7]}
    record = json.loads((drawn/'drawing.json').read_text())
    for key, seed in (one, 0), (two, 1_000_000):
        kept = json.loads((drawn/'vistory'/key/'manifest.json').read_text())['drawing']
        assert kept == {name: record[name] for name in kept} | dict(seed=seed) and len(kept['weights']) == 32

def test_more_stories_join(data, drawn, tmp_path, capsys):
    out = shutil.copytree(drawn, tmp_path/'out')
    before = trees(out)
    draw(MODEL, data=data, out=out, limit=2, **FAST)    # nothing new
    assert trees(out) == before
    capsys.readouterr()
    draw(MODEL, data=data, out=out, **FAST)
    key = next(iter(before))
    assert list(trees(out)) == list(before) and trees(out)[key] == ours(out/'drawn')
    assert sorted(trees(out)[key]) == ['01', '02', '03']
    assert f'{out/"vistory"/key}: 3 of 3 stories in the layout of ViStoryBench' in capsys.readouterr().out

def test_other_drawings_get_a_timestamp_of_their_own(data, drawn, tmp_path, monkeypatch):
    out = shutil.copytree(drawn, tmp_path/'out')
    before = trees(out)
    for name in 'drawing.json', 'drawn', 'drawn2': (out/name).rename(tmp_path/name)
    monkeypatch.setattr('time.strftime', lambda form, at: '20300101_000000')
    draw(MODEL, data=data, out=out, limit=1, **{**FAST, 'num_inference_steps': 2})
    after = trees(out)
    assert {key: x for key, x in after.items() if key in before} == before
    new, = after.keys() - before.keys()
    assert new == 'arldm/seed-0/en/20300101_000000' and after[new] == ours(out/'drawn')

def test_two_drawings_of_one_second(tmp_path, monkeypatch):
    told = [replace(story, id=f'{i:02d}') for i, story in enumerate(stories(3, 2, 3), 1)]
    split = story_file(tmp_path, test=told, train=list(stories(4, start=50)), val=[])['test']
    paint(tmp_path/'run/drawn', split)
    monkeypatch.setattr('time.time', lambda: 1_900_000_000.5)
    places = [write_vistory(split, tmp_path/'run/drawn', 'run', dict(seed=0, steps=steps))[0] for steps in (1, 2, 1)]
    assert len(set(places)) == 2 and places[0] == places[2] and len(trees(tmp_path/'run')) == 2

def test_a_copy_that_was_killed(tmp_path, monkeypatch):
    "Neither a half-written tree nor one that was renamed aside is taken for the benchmark's."
    told = [replace(story, id=f'{i:02d}') for i, story in enumerate(stories(2, 2, 2), 1)]
    split = story_file(tmp_path, test=told, train=list(stories(4, start=50)), val=[])['test']
    paint(tmp_path/'run/drawn', split)
    def write(): return write_vistory(split, tmp_path/'run/drawn', 'run', dict(seed=0))[0]
    place = write()
    half = shutil.copytree(place, place.with_name(f'.{place.name}-host-1-0123abcd'))
    assert write() == place
    shutil.rmtree(half)
    place.rename(place.with_name(f'.{place.name}-old-0123abcd'))
    assert write() == place and len(trees(tmp_path/'run')) == 1
    assert not list(place.parent.glob('.*-old-*'))

def test_what_others_changed_stays(data, drawn, tmp_path):
    out = shutil.copytree(drawn, tmp_path/'out')
    picture = next((out/'vistory/arldm/seed-0').rglob('shot_01.png'))
    picture.write_bytes(b'mine')
    before = trees(out)
    with pytest.raises(StoryError, match='shot_01.png was not written by arldm, or was changed since'):
        draw(MODEL, data=data, out=out, **FAST)
    assert trees(out) == before and len(ours(out/'drawn')) == 3    # drawn, and kept

def test_of_several_processes_the_first_copies(data, drawn, tmp_path, monkeypatch):
    out = tmp_path/'out'
    for rank in 1, 0:
        monkeypatch.setenv('RANK', str(rank))
        monkeypatch.setenv('WORLD_SIZE', '2')
        with pytest.warns(UserWarning, match='draws of 2 stories only'): draw(MODEL, data=data, out=out, limit=2, **FAST)
        assert (out/'vistory').exists() == (rank == 0)
    [copied] = trees(out).values()
    assert {s: sorted(x) for s, x in copied.items()} == {'01': [1, 2, 3, 4], '02': [1, 2, 3, 4, 5, 6, 7]}

def test_refused_before_anything_is_drawn(data, tmp_path):
    (tmp_path/'a.txt').write_text('a story\n')
    named = story_file(tmp_path, test=list(stories(1, 2, 2)))
    for options, said in ((dict(data=named.path), 'story s0_0 has no number as its id'),
                          (dict(captions=tmp_path/'a.txt'), '--layout is for the stories of a split'),
                          (dict(data=data, layout='uno'), "no layout 'uno'; there are vistory")):
        with pytest.raises(StoryError, match=said): draw(MODEL, out=tmp_path/'out', **{**FAST, **options})
    assert not (tmp_path/'out').exists()
    draw(MODEL, data=data, out=tmp_path/'out', dry_run=True, **FAST)
    assert not (tmp_path/'out').exists()

def test_what_the_benchmark_calls_the_model(tmp_path):
    "The run, also of its pipeline folder; a model of the hub by its name there."
    from arldm.cli.drawing_run import _method_name
    assert [_method_name(tmp_path/name) for name in ('run', 'run/pipeline', 'models--me--small/snapshots/0a1b')] == ['run', 'run', 'small']

def test_continuation_names_what_is_missing(data, tmp_path):
    pipe = StoryPipeline.from_pretrained(MODEL)
    found = dict(draw_split(pipe, StoryFile(data)['test'], tmp_path, 1, num_inference_steps=1))
    assert sorted(map(str, found.values())) == [f'story 0{i} has captions, but no pictures' for i in (1, 2, 3)]


# scores

def test_scored_as_our_layout(tmp_path):
    told = [replace(story, id=f'{i:02d}') for i, story in enumerate(stories(3, 2, 3), 1)]
    split = story_file(tmp_path, test=told, train=list(stories(4, start=50)), val=[])['test']
    paint(tmp_path/'run/drawn', split)
    write_vistory(split, tmp_path/'run/drawn', 'run', dict(seed=0))
    got, want = (evaluate(tmp_path/'run'/name, split, n_resamples=5, train=4) for name in ('vistory', 'drawn'))
    assert got['scores'] == want['scores'] and not got['trouble'][:-1]
    assert got['frames'] == want['frames'] and any(row['value'] for row in got['scores'])

def test_without_reference_no_number_is_made_up(data, drawn, capsys):
    got = score(drawn/'vistory/arldm/seed-0', data=data, resamples=5)
    assert {row['value'] for row in got['scores']} == {None}
    said = capsys.readouterr().out
    assert re.search(r'matched +2 +11\n', said) and 'captions, but no pictures' in said
    assert not os.path.exists(drawn/'vistory/arldm/seed-0/scores.json')
