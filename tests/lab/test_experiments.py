"What an experiment keeps is used again only for the same models, stories and settings; numbers that make no sense end in a line."
import json, subprocess, sys
from functools import partial
from pathlib import Path

import numpy as np, pytest
from PIL import Image

from arldm.cli import demo as demos
from arldm.lab import commands
from arldm.lab import ladder, own_drawings
from arldm.lab import memory_test
from arldm.bench import bench as benchmarks
from arldm.bench import speed
from arldm.lab import ablations
from arldm.core import StoryError, asset
from arldm.draw.pipeline import StoryPipeline
from arldm.score.histories import draw_histories, score_histories
from arldm.data.story import StoryFile, write_stories
from arldm.toy.corpus import toy_story

QUICK = dict(num_inference_steps=1, guidance_scale=1.)

def split_of(folder, stories, name='stories'):
    write_stories(folder/f'{name}.h5', dict(train=stories, test=stories, hard=stories), 'toy')
    return StoryFile(folder/f'{name}.h5')

def open_pipe():
    pipe = StoryPipeline.from_pretrained(asset('toy/arldm'))
    pipe.set_progress_bar_config(disable=True)
    return pipe

@pytest.fixture(scope='module')
def pipe(): return open_pipe()

@pytest.fixture(scope='module')
def file(tmp_path_factory): return split_of(tmp_path_factory.mktemp('toy'), [toy_story(i, 2) for i in range(3)])

def tree(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}

def refused(said, f, *args, **kw):
    with pytest.raises(StoryError, match=said) as e: f(*args, **kw)
    assert '\n' not in str(e.value) and 'delete' not in str(e.value) and 'remove' not in str(e.value)


# drawings with other histories

@pytest.fixture(scope='module')
def drawn(pipe, file, tmp_path_factory):
    out = tmp_path_factory.mktemp('drawn')/'out'
    for _ in draw_histories(pipe, file['test'], out, ('none',), limit=1, **QUICK): pass
    return out

@pytest.mark.parametrize('change,said', [
    (dict(num_inference_steps=2), 'num_inference_steps=1, not 2'), (dict(guidance_scale=2.), 'guidance_scale=1.0, not 2.0'),
    (dict(seed=1), 'seed=0, not 1'), (dict(reuse=2), 'reuse=1, not 2'), (dict(height=32, width=32), 'height=None, not 32'),
    (dict(guidance_interval=(.2, .8)), 'guidance_interval')])
def test_histories_of_other_settings_are_refused(pipe, file, drawn, change, said):
    before = tree(drawn)
    refused(said, list, draw_histories(pipe, file['test'], drawn, ('none',), **{**QUICK, **change}))
    assert tree(drawn) == before

def test_histories_of_other_weights_stories_or_scheduler_are_refused(pipe, file, drawn, tmp_path, monkeypatch):
    before, again = tree(drawn), partial(draw_histories, out=drawn, kinds=('none',), **QUICK)
    other = split_of(tmp_path, [toy_story(i + 50, 2) for i in range(3)])
    refused('stories=', list, again(pipe, other['test']))
    with monkeypatch.context() as m:
        m.setattr(pipe, 'scheduler', StoryPipeline.from_model(pipe.model, 'unipc').scheduler)
        refused('scheduler=', list, again(pipe, file['test']))
    weight = pipe.unet.conv_in.weight.data
    kept = weight.clone()
    weight[0, 0, 0, 0] += 1
    try: refused('weights=', list, again(pipe, file['test']))
    finally: weight.copy_(kept)
    assert tree(drawn) == before
    assert [i for _, i, _ in again(pipe, file['test'])] == file['test'].ids[1:]             # the same goes on

def test_drawings_of_unknown_origin_are_refused(pipe, file, tmp_path):
    (tmp_path/'none').mkdir()
    (tmp_path/'none/mine.txt').write_text('mine')
    refused('none holds mine.txt', list, draw_histories(pipe, file['test'], tmp_path, ('none',), **QUICK))
    assert [p.name for p in tmp_path.rglob('*')] == ['none', 'mine.txt']

def test_scores_of_the_first_stories_only(tmp_path, file):
    "Three stories are drawn, two are asked for: two are scored."
    for kind in 'own', 'reference':
        for i in file['test'].ids:
            (tmp_path/kind/i).mkdir(parents=True)
            for k in 1, 2: Image.new('RGB', (8, 8)).save(tmp_path/kind/i/f'{k}.png')
    rows = score_histories(tmp_path, file['test'], lambda d, kind: dict(ones=np.ones(len(d))), limit=2)
    assert [r['n'] for r in rows] == [2, 2]


# the memory test

@pytest.fixture
def quick_memory_test(pipe, monkeypatch):
    "Pipelines are opened once, two rows are drawn, and the other numbers are not computed."
    monkeypatch.setitem(memory_test.MEMORY_TASKS, 'visualization', ('own',))
    monkeypatch.setattr(memory_test, '_draw_guesses', lambda story, seed: story.pictures())
    monkeypatch.setattr(memory_test, 'score_rows', lambda *a: {row: dict(frames={'seen facts': {2: .5}}) for row in memory_test.ROWS})
    monkeypatch.setattr(memory_test.StoryPipeline, 'from_pretrained', lambda folder, **k: pipe)
    monkeypatch.setattr(memory_test, 'unseen_stories', lambda path: pytest.fail('stories were made'))
    return lambda out, **options: commands.memory_test(out=out, **{'seeds': 1, 'guidance_scale': 1., **options})

def test_a_memory_test_does_not_print_new_settings_over_old_drawings(quick_memory_test, file, tmp_path, capsys):
    data, out = str(file.path), str(tmp_path/'out')
    quick_memory_test(out, data=data, limit=1, num_inference_steps=1)
    assert '| AR-LDM, % | frame 2 |' in capsys.readouterr().out
    before = tree(tmp_path/'out')
    refused('num_inference_steps=1, not 2', quick_memory_test, out, data=data, limit=1, num_inference_steps=2)
    refused('limit=1, not 2.*--out', quick_memory_test, out, data=data, limit=2, num_inference_steps=1)
    refused('seeds=1, not 2', quick_memory_test, out, data=data, limit=1, num_inference_steps=1, seeds=2)
    refused('guidance_scale=1.0, not 2.0', quick_memory_test, out, data=data, limit=1, num_inference_steps=1, guidance_scale=2.)
    other = split_of(tmp_path, [toy_story(i + 70, 2) for i in range(2)])
    refused('stories=', quick_memory_test, out, data=str(other.path), limit=1, num_inference_steps=1)
    assert tree(tmp_path/'out') == before
    quick_memory_test(out, data=data, limit=1, num_inference_steps=1)                                              # the same is welcome

def test_a_killed_memory_test_goes_on_exactly(pipe, file, tmp_path, monkeypatch):
    "Stopped between two stories and started again, it has the bytes of one that was not stopped, and draws no story twice."
    monkeypatch.setitem(memory_test.MEMORY_TASKS, 'visualization', ('own',))
    monkeypatch.setattr(memory_test, '_draw_guesses', lambda story, seed: story.pictures())
    rows = partial(memory_test.draw_rows, pipe=pipe, base=pipe, stories=file['test'], seeds=1, limit=2, **QUICK)
    for _ in rows(tmp_path/'calm'): pass
    for n, _ in enumerate(rows(tmp_path/'killed')):
        if n == 1: break
    half = {k: v for k, v in tree(tmp_path/'killed').items() if k.endswith('.png')}
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path/'killed').rglob('*.png')}
    for _ in rows(tmp_path/'killed'): pass
    calm, again = tree(tmp_path/'calm'), tree(tmp_path/'killed')
    assert 0 < len(half) < len(calm) and calm.keys() == again.keys()
    for name in calm:
        if not name.endswith('.png'): assert calm[name] == again[name], name
        else:
            a, b = (np.asarray(Image.open(tmp_path/x/name), int) for x in ('calm', 'killed'))
            assert abs(a - b).max() <= 1
    assert all(p.stat().st_mtime_ns == t for p, t in stamps.items())

@pytest.mark.parametrize('wrong,said', [
    (dict(resamples=-1), 'resamples must be 0 or more, got -1'), (dict(seeds=0), 'seeds must be at least 1, got 0'),
    (dict(limit=0), 'limit must be at least 1'), (dict(num_inference_steps=0), 'num_inference_steps must be at least 1'),
    (dict(num_inference_steps=10**9), 'num_inference_steps must be below 1000'), (dict(guidance_scale=float('nan')), 'guidance_scale must be 1 .* got nan'),
    (dict(guidance_scale=float('inf')), 'got inf'), (dict(guidance_scale=-1.), 'got -1'), (dict(split='tset'), 'did you mean test')])
def test_wrong_numbers_of_a_memory_test_end_before_any_work(wrong, said, tmp_path):
    refused(said, commands.memory_test, out=str(tmp_path/'out'), **wrong)
    assert not [*tmp_path.iterdir()]


# ladder

@pytest.fixture
def small_ladder(monkeypatch):
    monkeypatch.setattr(ladder, 'SPLIT_SIZES', (2, 1, 1, 1))
    monkeypatch.setattr(ladder, 'write_pairs', partial(ladder.write_pairs, n=2, n_val=1))
    monkeypatch.setattr(ladder, 'train_autoencoder', partial(ladder.train_autoencoder, n=2, train_batch_size=1))
    monkeypatch.setattr(ladder, 'NAMES_MIXTURE', (2, 2))
    monkeypatch.setattr(ladder, 'ARLDM_MIXTURE', (1, 1))
    calls = {}
    monkeypatch.setattr(ladder, 'facts_kept', lambda vae: {})
    monkeypatch.setattr(ladder, 'random_frames', lambda n, seed=0, plain=ladder.random_frames: plain(min(n, 4), seed))
    def train(run, *, data, model, max_train_steps, seed, **settings): calls[run.name] = (model, data, max_train_steps, seed)
    monkeypatch.setattr(commands, 'train', train)
    def learn(run, start, data, max_train_steps, seed): calls[run.name] = (str(start), data, max_train_steps, seed)
    monkeypatch.setattr(own_drawings, 'learn_from_drawings', learn)
    return calls

def test_each_stage_starts_from_the_one_before(small_ladder, tmp_path):
    "From its weights and with its own stories; only the last one asked for gets the steps, and a run that was begun keeps its own."
    def of(*names): return [Path(tmp_path/name) for name in names]
    commands.ladder(out=str(tmp_path), stage='autoencoder', max_train_steps=1, seed=3)
    commands.ladder(out=str(tmp_path), max_train_steps=7, seed=3)
    blank, base, stories, names, arldm = map(str, of('blank', 'base/pipeline', 'stories/pipeline', 'names/pipeline', 'arldm/pipeline'))
    pairs, toy, named, last = of('pairs.h5', 'stories.h5', 'names.h5', 'arldm.h5')
    assert small_ladder == dict(base=(blank, pairs, None, 3), stories=(base, toy, None, 3), names=(stories, named, ladder.NAMES_STEPS, 3),
                                arldm=(names, last, ladder.ARLDM_STEPS, 3), drawings=(arldm, last, 7, 3))
    (tmp_path/'names').mkdir()
    (tmp_path/'names/settings.json').write_text('{}')
    commands.ladder(out=str(tmp_path), seed=3)
    assert small_ladder['names'][2] is None and small_ladder['drawings'][2] is None
    small_ladder.clear()
    commands.ladder(out=str(tmp_path), stage='names', max_train_steps=5, seed=3)
    assert small_ladder['names'][2] == 5 and 'arldm' not in small_ladder
    commands.ladder(out=str(tmp_path), stage='arldm', max_train_steps=5, seed=3)
    assert small_ladder['arldm'][2] == 5 and 'drawings' not in small_ladder

def test_a_ladder_of_other_steps_or_seed_is_refused(small_ladder, tmp_path):
    out = str(tmp_path/'out')
    commands.ladder(out=out, stage='autoencoder', max_train_steps=1)
    before = tree(tmp_path/'out')
    refused('max_train_steps=1, not 2', commands.ladder, out=out, stage='autoencoder', max_train_steps=2)
    refused('seed=0, not 1', commands.ladder, out=out, stage='autoencoder', max_train_steps=1, seed=1)
    refused('seed=0, not 1', commands.ladder, out=out, stage='arldm', seed=1)
    assert tree(tmp_path/'out') == before
    commands.ladder(out=out)                                            # the rungs below are taken as they are, and all is made
    before = tree(tmp_path/'out')
    assert {'blank/model_index.json', 'pairs.h5', 'stories.h5', 'names.h5', 'arldm.h5'} <= before.keys() and not any(k.startswith('raw') for k in before)
    commands.ladder(out=out)
    assert tree(tmp_path/'out') == before

MAKERS = {'pairs.h5': partial(ladder.write_pairs, n=2, n_val=1), 'stories.h5': ladder.write_ladder_stories}

@pytest.mark.parametrize('name', MAKERS)
def test_a_ladder_takes_no_file_that_it_did_not_make(name, tmp_path, monkeypatch):
    make = MAKERS[name]
    monkeypatch.setattr(ladder, 'SPLIT_SIZES', (2, 1, 1, 1))
    (tmp_path/name).write_bytes(b'mine')
    refused(f'{name} exists, and no', make, tmp_path/name)
    (tmp_path/name).rename(tmp_path/'mine')
    make(tmp_path/name)
    with open(tmp_path/name, 'ab') as f: f.write(b'x')
    refused('was changed', make, tmp_path/name)
    assert (tmp_path/'mine').read_bytes() == b'mine'

def test_other_pairs_or_albums_are_refused(tmp_path, monkeypatch):
    ladder.write_pairs(tmp_path/'pairs.h5', n=2, n_val=1)
    refused('pairs=2, not 3', ladder.write_pairs, tmp_path/'pairs.h5', n=3, n_val=1)
    monkeypatch.setattr(ladder, 'SPLIT_SIZES', (2, 1, 1, 1))
    ladder.write_ladder_stories(tmp_path/'stories.h5')
    refused('seed=0, not 1', ladder.write_ladder_stories, tmp_path/'stories.h5', 1)

def test_a_mixture_is_the_first_stories_and_then_openings(tmp_path, monkeypatch):
    monkeypatch.setattr(ladder, 'SPLIT_SIZES', (3, 2, 1, 1))
    paths = tmp_path/'mixture.h5', tmp_path/'stories.h5'
    ladder.write_ladder_stories(paths[1])
    ladder.write_mixture(*paths, 2, 4)
    mixture, stories = map(StoryFile, paths)
    assert list(mixture['train']) == [stories['train'][0], stories['train'][1], *map(ladder.opening, range(4))]
    assert list(mixture['val']) == list(stories['val'])
    ladder.write_mixture(*paths, 2, 4)                                  # the same again: nothing to do
    refused('n_stories=2, not 3', ladder.write_mixture, *paths, 3, 4)
    refused('openings=4, not 5', ladder.write_mixture, *paths, 2, 5)
    for path in paths[1], tmp_path/'stories.h5.json': path.unlink()
    ladder.write_ladder_stories(paths[1], seed=1)                       # others under the same name
    refused('stories=', ladder.write_mixture, *paths, 2, 4)

@pytest.mark.parametrize('wrong', [dict(max_train_steps=0), dict(max_train_steps=-3), dict(seed=-1), dict(seed=2**70)])
@pytest.mark.parametrize('command', [commands.ladder, partial(commands.ablations, 'tricks')])
def test_wrong_numbers_of_ladder_and_ablations(command, wrong, tmp_path):
    refused('must be', command, out=str(tmp_path/'out'), **wrong)
    assert not [*tmp_path.iterdir()]


# ablations

def test_ablations_of_other_steps_start_or_stories_are_refused(file, tmp_path, monkeypatch):
    asked, counts = [], dict.fromkeys(ablations.FACT_KINDS, [[i, True] for i in range(3)])
    monkeypatch.setattr(ablations, 'run_experiment', lambda *a, **k: asked.append(a) or counts)
    run = partial(commands.ablations, 'tricks', out=str(tmp_path/'out'))
    run(data=str(file.path), max_train_steps=1)
    n, before = len(asked), tree(tmp_path/'out')
    refused('max_train_steps=1, not 2', run, data=str(file.path), max_train_steps=2)
    refused('start=', run, data=str(file.path), max_train_steps=1, start=str(asset('toy/base')))
    refused('seed=0, not 1', run, data=str(file.path), max_train_steps=1, seed=1)
    other = split_of(tmp_path, [toy_story(i + 90, 2) for i in range(2)])
    refused('stories=', run, data=str(other.path), max_train_steps=1)
    refused('no pipeline there', run, data=str(file.path), max_train_steps=1, start=str(tmp_path))
    refused('limit must be at least 1', run, data=str(file.path), limit=0)
    assert len(asked) == n and tree(tmp_path/'out') == before

def test_one_experiment_of_other_settings_is_refused(file, tmp_path, monkeypatch):
    "Nothing is trained before the folder is claimed; the second call has another weighting."
    monkeypatch.setattr(ablations, 'train_changed', lambda *a, **k: (a[4]/'model_index.json').write_text('{}'))
    monkeypatch.setattr(ablations, '_draw_and_check', lambda *a: {})
    one = partial(ablations.run_experiment, tmp_path/'x', asset('toy/base'), file, 1, 0)
    one()
    refused('snr_gamma=0.0, not 5.0', one, settings=dict(snr_gamma=5.))
    refused('change=', one, item=ablations.noisy_memory)
    refused('first=None, not 2', one, first=2)
    (tmp_path/'x/pipeline/model_index.json').write_text('{"other": 1}')
    refused('pipeline was changed', one)

def test_memories_drawn_by_another_model_are_refused(file, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, 'draw_split', lambda *a, **k: iter(()))
    ablations._draw_training_stories(tmp_path/'own', asset('toy/arldm'), file, 1)
    refused('start=', ablations._draw_training_stories, tmp_path/'own', asset('toy/base'), file, 1)


# demo

@pytest.fixture
def quick_demo(monkeypatch):
    asked = []
    monkeypatch.setattr(demos, 'DEMO_ALBUMS', (2, 1, 1))
    for name in 'train', 'draw', 'score', 'report': monkeypatch.setattr(demos, name, lambda *a, name=name, **k: asked.append(name))
    return asked

def test_a_demo_of_other_settings_is_refused(quick_demo, tmp_path):
    demo = partial(demos.demo, out=str(tmp_path/'demo'))
    demo(max_train_steps=1, limit=1)
    assert quick_demo == ['train', 'draw', 'score', 'report']
    assert StoryFile(tmp_path/'demo/stories.h5')['train'].file.corpus == 'toy' and not (tmp_path/'demo/raw').exists()
    refused('max_train_steps=1, not 2.*--out', demo, max_train_steps=2, limit=1)
    refused('limit=1, not 2', demo, max_train_steps=1, limit=2)
    for wrong in dict(max_train_steps=0), dict(limit=0), dict(histories=-1): refused('must be', demos.demo, out=str(tmp_path/'b'), **wrong)
    assert len(quick_demo) == 4 and not (tmp_path/'b').exists()

@pytest.mark.parametrize('name', ['raw/mine.txt', 'stories.h5', 'log.csv'])
def test_a_demo_writes_into_no_folder_of_somebody_else(quick_demo, name, tmp_path):
    mine = tmp_path/name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text('mine')
    refused('no made.json says', demos.demo, out=str(tmp_path), max_train_steps=1)
    assert tree(tmp_path) == {name: b'mine'} and not quick_demo

def test_stories_cut_short_by_a_kill_are_made_again(quick_demo, tmp_path, monkeypatch):
    from arldm.cli import convert as module
    plain = module.write_toy
    def killed(raw, *a, **k):
        plain(raw, (1, 0, 0), progress=False)
        raise KeyboardInterrupt
    monkeypatch.setattr(module, 'write_toy', killed)
    with pytest.raises(KeyboardInterrupt): demos.demo(out=str(tmp_path/'demo'), max_train_steps=1)
    monkeypatch.setattr(module, 'write_toy', plain)
    demos.demo(out=str(tmp_path/'demo'), max_train_steps=1)
    assert len(StoryFile(tmp_path/'demo/stories.h5')['train']) == 2


# two at once

HOLD = "import sys, time; from arldm.files.atomic import lock_folder; x = lock_folder(sys.argv[1], 'there first'); print(1, flush=True); time.sleep(60)"

def test_two_commands_at_once_in_one_folder(file, quick_memory_test, small_ladder, quick_demo, tmp_path):
    "The second one says in a line that there is another, and draws nothing."
    places = [tmp_path/'p', tmp_path/'l', tmp_path/'t', tmp_path/'d/.demo']
    hold = [subprocess.Popen([sys.executable, '-c', HOLD, str(p)], stdout=subprocess.PIPE) for p in places]
    try:
        for h in hold: h.stdout.readline()
        refused('another process is', quick_memory_test, str(places[0]), data=str(file.path), limit=1, num_inference_steps=1)
        refused('another process is', commands.ladder, out=str(places[1]), max_train_steps=1)
        refused('another process is', commands.ablations, 'tricks', out=str(places[2]), data=str(file.path), max_train_steps=1)
        refused('another process is', demos.demo, out=str(tmp_path/'d'), max_train_steps=1)
        assert not quick_demo and not any((p/x).exists() for p in places for x in ('test', 'autoencoder', 'tricks', 'stories.h5'))
    finally:
        for h in hold:
            h.kill()
            h.wait()


# benchmarks

def test_a_benchmark_replaces_no_file_of_somebody_else(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setitem(speed.BENCHES, 'data', lambda size: calls.append(size) or [dict(what='x', unit='s', ours=1.)])
    for text in 'mine', '{"mine": 1}', '[]':
        (tmp_path/'out.json').write_text(text)
        refused('is not a benchmark result written by arldm', benchmarks.bench, 'data', out=str(tmp_path/'out.json'))
        assert (tmp_path/'out.json').read_text() == text and not calls
    for again in range(2): benchmarks.bench('data', out=str(tmp_path/'new.json'))
    assert json.loads((tmp_path/'new.json').read_text())['lines'] and len(calls) == 2
    refused('is there already', benchmarks.bench, 'data', out=str(tmp_path))
