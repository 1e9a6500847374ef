"The commands: the whole chain on toy and on real stories, mistakes in one line, stopping and going on."
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arldm.cli import draw as cli
from arldm.cli import score as exam
from arldm.cli import demo as demos
from arldm.cli import report as reports
from arldm.toy import corpus as toy
from arldm.cli.convert import convert
from arldm.cli.train import train
from arldm.core import StoryError
from arldm.data.story import StoryFile
from elsewhere import PYTHONPATH

MINI = Path(__file__).resolve().parents[3]/'shared/ssid-mini'
needs_mini = pytest.mark.skipif(not MINI.is_dir(), reason='the real SSID stories stand beside the repository only in CI')

PLACES = dict(convert=sys.modules['arldm.cli.convert'], train=sys.modules['arldm.cli.train'], draw=cli, score=exam, report=reports, demo=demos)


@pytest.fixture(scope='module')
def toy_file(tmp_path_factory):
    "A small toy corpus, converted."
    d = tmp_path_factory.mktemp('toy')
    toy.write_toy(d/'raw', (12, 2, 4), progress=False)
    convert('toy', d/'raw', d/'toy.h5')
    return d/'toy.h5'


@pytest.fixture(scope='module')
def run(toy_file, tmp_path_factory):
    "A tiny model trained for three steps, and its drawings."
    d = tmp_path_factory.mktemp('runs')/'tiny'
    train(d, data=toy_file, preset='tiny')
    cli.draw(d, num_inference_steps=2)
    return d


def shell(command, args, cwd=None):
    "Run a command in a process of its own."
    code = f'from {PLACES[command].__name__} import {command}; {command}()'
    env = {**os.environ, 'PYTHONPATH': PYTHONPATH, 'TQDM_DISABLE': '1', 'OMP_NUM_THREADS': '1'}
    return subprocess.run([sys.executable, '-c', code, *map(str, args)], capture_output=True, text=True, cwd=cwd, env=env)


def says(capsys, monkeypatch, command, args):
    "What a command says on standard error, and its exit code, in this process."
    monkeypatch.setattr(sys, 'argv', ['arldm', *map(str, args)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped, warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)     # pytest shows what a command does not
        getattr(PLACES[command], command)()
    return stopped.value.code, capsys.readouterr().err.strip().splitlines()


def test_a_run_folder_explains_itself(run, toy_file):
    assert {'settings.json', 'log.csv', 'checkpoints', 'pipeline', 'drawn', 'drawing.json'} <= {p.name for p in run.iterdir()}
    settings = json.loads((run/'settings.json').read_text())
    assert settings['preset'] == 'tiny' and settings['data'] == str(toy_file) and settings['versions']['torch']
    drawn = sorted(str(p.relative_to(run/'drawn')) for p in run.glob('drawn/*/*'))
    ids = StoryFile(toy_file)['test'].ids
    assert drawn == sorted(f'{i}/{k}.png' for i in ids for k in range(1, 6))


def logged_scores(run):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    events = accumulator.EventAccumulator(str(run/'tensorboard')).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()['scalars']}

def test_scores_have_a_step(run, tmp_path):
    "Scores are logged at the step of the pipeline that drew; one line where it is not known."
    with pytest.raises(StoryError) as e: exam.score(run, report_to='tensorbord', dry_run=True)
    assert 'did you mean tensorboard?' in str(e.value)
    copy = shutil.copytree(run, tmp_path/'run')
    record = json.loads((copy/'drawing.json').read_text())
    (copy/'drawing.json').write_text(json.dumps({**record, 'weights': '0'*32}))
    with pytest.raises(StoryError) as e: exam.score(copy, report_to='tensorboard')
    assert str(e.value) == (f'--report-to: the drawings were made with other weights than {copy}/pipeline has now, so their '
                            'training step is unknown; score without it, or draw again')
    shutil.rmtree(copy/'pipeline')
    with pytest.raises(StoryError) as e: exam.score(copy, report_to='tensorboard')
    assert str(e.value) == ('--report-to logs at the training step of a pipeline, but '
                            f'{copy} holds none from arldm-train; score without it')

def test_score_and_report(run):
    scores = exam.score(run, report_to='tensorboard')
    assert {r['name'].split(':')[0] for r in scores['scores']} and all('n' in r for r in scores['scores'])
    assert logged_scores(run) == {f'scores/{r["group"]}/{r["name"]}': [(3, pytest.approx(r['value']))]
                                  for r in scores['scores'] if r['value'] is not None and not r.get('invalid')}
    page = reports.report(run).read_text()
    assert page.count('data:image') >= 4*5*2 and not re.search('(src|href)="(?!data:|#)', page)


def test_pictures_do_not_depend_on_the_batch(run, tmp_path):
    "The same stories one by one: at most one grey level apart."
    other = tmp_path/'one-by-one'
    other.mkdir()
    for name in ('settings.json', 'pipeline'): (other/name).symlink_to(run/name)
    cli.draw(other, num_inference_steps=2, batch_size=1)
    for p in run.glob('drawn/*/*.png'):
        a, b = (np.asarray(Image.open(x)).astype(int) for x in (p, other/p.relative_to(run)))
        assert abs(a - b).max() <= 1, p


def test_drawing_goes_on(run):
    "A lost story is drawn again, the others are left alone, and the pictures are the same."
    first = next((run/'drawn').iterdir())
    before = {p.name: p.read_bytes() for p in first.iterdir()}
    kept = {p: p.stat().st_mtime_ns for p in run.glob('drawn/*/*.png') if p.parent != first}
    for p in first.iterdir(): p.unlink()
    first.rmdir()
    cli.draw(run, num_inference_steps=2)
    assert before.keys() == {p.name for p in first.iterdir()}
    for p in first.iterdir(): assert abs(np.asarray(Image.open(p)).astype(int) - _decoded(before[p.name])).max() <= 1
    assert kept == {p: p.stat().st_mtime_ns for p in kept}


def _decoded(data):
    import io
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


def test_continuation_starts_with_frame_2(toy_file, tmp_path):
    train(tmp_path/'run', data=toy_file, preset='tiny', task='continuation', max_train_steps=1)
    cli.draw(tmp_path/'run', num_inference_steps=1, limit=1, scheduler='pndm')
    assert sorted(p.name for p in (tmp_path/'run').glob('drawn/*/*')) == ['2.png', '3.png', '4.png', '5.png']
    exam.score(tmp_path/'run')
    assert 'given' in reports.report(tmp_path/'run').read_text()


def test_own_captions(run, tmp_path):
    (tmp_path/'mine.txt').write_text('a big red star is at the beach on the left\n\nit jumps\n')
    folder = cli.draw(run, captions=tmp_path/'mine.txt', num_inference_steps=1)
    assert sorted(p.name for p in folder.iterdir()) == ['1.png', '2.png', 'manifest.json', 'strip.png']


@needs_mini
def test_the_chain_on_real_stories(tmp_path):
    "SSID's own layout, tiny untrained weights: convert, train, draw, score, report."
    counts = convert('ssid', MINI, tmp_path/'ssid.h5')
    assert sum(counts[s]['stories'] for s in ('train', 'val', 'test')) == 48
    run = tmp_path/'run'
    train(run, data=tmp_path/'ssid.h5', preset='tiny', max_train_steps=3)
    cli.draw(run, num_inference_steps=2, limit=4)
    scores = exam.score(run)
    assert scores['n_stories'] == 4 and any(
        r['name'] == 'FID64' and r['value'] is None and 'ARLDM_INCEPTION' in r['note'] for r in scores['scores'])
    page = reports.report(run).read_text()
    story = StoryFile(tmp_path/'ssid.h5')['test'][0]
    assert page.count('data:image') >= 4*5*2 and story.captions[1].split("'")[0] in page


def test_dry_runs_write_nothing(toy_file, run, tmp_path):
    before = sorted(run.rglob('*'))
    convert('toy', toy_file.parent/'raw', tmp_path/'x.h5', dry_run=True)
    train(tmp_path/'new', data=toy_file, dry_run=True)
    cli.draw(run, num_inference_steps=2, dry_run=True)
    with pytest.raises(StoryError, match='made with seed=0, not 5'): cli.draw(run, num_inference_steps=2, seed=5, dry_run=True)
    exam.score(run, dry_run=True)
    assert not list(tmp_path.iterdir()) and sorted(run.rglob('*')) == before


WRONG = [
    ('convert', ['sid', 'RAW', 'OUT/x.h5'], "no source 'sid'"),
    ('convert', ['ssid', 'OUT', 'OUT/x.h5'], 'SSID_Train.json'),
    ('convert', ['ssid', 'OUT/nowhere', 'OUT/x.h5'], 'no such folder'),
    ('convert', ['ssid', 'RAW', 'OUT/x.h5', '--skip-the-bad'], 'unrecognized arguments'),
    ('convert', ['ssid'], 'required: raw, out'),
    ('train', ['OUT/new'], '--data'),
    ('train', ['OUT/new', '--data', 'OUT/none.h5'], 'no such file'),
    ('train', ['OUT/new', '--data', 'RAW/SSID_Annotations/SSID_Test.json'], 'not an HDF5 file'),
    ('train', ['OUT/new', '--data', 'FILE', '--preset', 'huge'], "no preset 'huge'"),
    ('train', ['OUT/new', '--data', 'FILE', '--task', 'drawing'], "no task 'drawing'"),
    ('train', ['OUT/new', '--data', 'FILE', '--max-train-steps', 'many'], 'invalid int'),
    ('train', ['OUT/new', '--data', 'FILE', '--model', 'OUT/nothing'], "nothing'; --model takes toy-base"),
    ('train', ['RUN', '--seed', '7'], 'was trained with seed=0'),
    ('train', ['RUN', '--preset', 'toy'], 'was trained with model=tiny, not toy-base, '),
    ('train', ['OUT/new', '--data', 'FILE', '--train-batch-size', '0'], 'train_batch_size must be at least 1'),
    ('draw', ['RUN', '--num-inference-steps', '0'], 'num_inference_steps must be at least 1'),
    ('draw', ['OUT/nowhere'], 'no such run'),
    ('draw', ['OUT/nowhere', '--data', 'FILE'], 'no pipeline there'),
    ('draw', ['RUN', '--split', 'valid'], "no split 'valid'"),
    ('draw', ['RUN', '--scheduler', 'euler'], "no scheduler 'euler'"),
    ('draw', ['RUN', '--captions', 'OUT/none.txt'], 'not a text file'),
    ('draw', ['RUN', '--num-inference-steps', '2', '--seed', '9'], 'made with seed=0'),
    ('score', ['OUT'], 'does not say what was drawn'),
    ('score', ['OUT', '--data', 'FILE', '--split', 'test'], 'no drawings'),
    ('score', ['RUN', '--split', 'dev'], "no split 'dev'"),
    ('score', ['RUN', '--resamples', '-1'], 'resamples must be 0 or more'),
    ('score', ['OUT', '--data', 'FILE', '--histories', '2'], 'never drew into'),
    ('report', ['OUT'], 'not a run folder'),
    ('report', ['RUN', 'OUT'], 'not a run folder'),
    ('demo', ['--size', 'big'], 'unrecognized arguments'),
]


@pytest.mark.parametrize('command,args,expected', WRONG, ids=[f'{c}-{e}' for c, _, e in WRONG])
def test_mistakes_cost_one_line(command, args, expected, run, toy_file, tmp_path, capsys, monkeypatch):
    places = dict(RAW=toy_file.parent/'raw', FILE=toy_file, RUN=run, OUT=tmp_path)
    for name, place in places.items(): args = [a.replace(name, str(place)) for a in args]
    code, lines = says(capsys, monkeypatch, command, args)
    assert code == 1 and len(lines) == 1 and expected in lines[0], (code, lines)
    assert lines[0].startswith(f'arldm-{command}: ') and not list(tmp_path.iterdir())


def test_in_a_shell(tmp_path):
    "The same in a process of its own: exit code 1, one line, no traceback."
    r = shell('convert', ['ssid', tmp_path, tmp_path/'x.h5'])
    assert r.returncode == 1 and len(r.stderr.strip().splitlines()) == 1 and 'Traceback' not in r.stderr, r.stderr
    help_text = shell('train', ['--help'])
    said = ' '.join(help_text.stdout.split())                            # wherever the lines break
    assert help_text.returncode == 0 and '--checkpointing-steps' in said and 'default: the one for the corpus' in said


@pytest.mark.skipif(not os.environ.get('ARLDM_SOAK'), reason='a long form: ARLDM_SOAK=1')
def test_demo_in_small(tmp_path, monkeypatch):
    "The demo's own road, shortened."
    monkeypatch.setattr(demos, 'DEMO_ALBUMS', (12, 2, 3))
    page = demos.demo(out=tmp_path/'demo', max_train_steps=2, limit=2)
    assert page == tmp_path/'demo'/'report.html' and (tmp_path/'demo'/'scores.json').exists()
    facts = json.loads((tmp_path/'demo'/'scores.json').read_text())['facts']
    assert {f['name'] for f in facts} >= {'remembered colour', 'remembered place', 'stated action'}


def test_a_killed_conversion_leaves_no_story_file(tmp_path):
    "kill -9 while stories are being written: the name that was asked for never appears."
    code = '''import itertools, sys, time
from PIL import Image
from arldm.data.story import Story, to_png, write_stories
def stories():
    for i in itertools.count():
        yield Story(str(i), str(i), ('a caption',), (to_png(Image.new('RGB', (8, 8), (i % 256, i // 256 % 256, 0))),))
        print(i, flush=True)
write_stories(sys.argv[1], dict(train=stories()), 'toy')'''
    env = {**os.environ, 'PYTHONPATH': PYTHONPATH}
    p = subprocess.Popen([sys.executable, '-c', code, tmp_path/'x.h5'], stdout=subprocess.PIPE, text=True, env=env)
    for _ in range(200): assert p.stdout.readline()
    p.send_signal(signal.SIGKILL)
    p.wait()
    p.stdout.close()
    assert not (tmp_path/'x.h5').exists()
    with pytest.raises(StoryError, match='no such file'): StoryFile(tmp_path/'x.h5')['train']
