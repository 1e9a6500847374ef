"A gallery that is killed, stopped, hindered, divided over batches or processes holds the pictures of a calm one."
import dataclasses, io, itertools, json, os, random, re, resource, shutil, signal, socket, subprocess, sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np, pytest, torch
from PIL import Image

from arldm import progress
from arldm.cli import draw as cli
from arldm.cli import drawing_run as engine
from arldm.files import atomic as files
from arldm.toy import corpus as toy
from arldm.cli.convert import convert
from arldm.core import StoryError, asset, has_bfloat16_units
from arldm.files.atomic import save_json
from arldm.data.dataset import Vocabulary, word_tokenizers
from arldm.draw.pipeline import StoryPipeline
from arldm.draw.test_set import draw_split
from arldm.model.arldm import ARLDM
from arldm.settings import resolve
from arldm.data.story import Story, StoryFile, write_stories
from elsewhere import PYTHONPATH
from processes import at_change, end, family, fork

SOAK = bool(os.environ.get('ARLDM_SOAK'))
# kill -9 of the real command, and the stories that it draws
KILLS, STORIES = (20, 60) if SOAK else (1, 12)
ENV = {**os.environ, 'PYTHONPATH': PYTHONPATH, 'TQDM_DISABLE': '1', 'OMP_NUM_THREADS': '1'}
needs_proc = pytest.mark.skipif(not Path('/proc/self/task').is_dir(), reason='who started whom is read from /proc')


# what is drawn

@pytest.fixture(scope='module')
def toys(tmp_path_factory):
    "Toy stories of five frames each."
    folder = tmp_path_factory.mktemp('toys')
    toy.write_toy(folder/'raw', (1, 1, 36), progress=False)
    convert('toy', folder/'raw', folder/'stories.h5', quiet=True)
    return list(StoryFile(folder/'stories.h5')['test'])

def cut(story, n, name): return Story(str(name), story.album, story.captions[:n], story.frames[:n])
def torn(story, k): # its picture `k` is cut short
    return dataclasses.replace(story, frames=tuple(f[:200] if i == k else f for i, f in enumerate(story.frames)))

@pytest.fixture(scope='module')
def tiny(toys, tmp_path_factory):
    "A pipeline folder with random weights."
    folder = tmp_path_factory.mktemp('tiny')
    words = word_tokenizers(list(itertools.chain.from_iterable(s.captions for s in toys)), folder)
    torch.manual_seed(0)
    StoryPipeline.from_model(ARLDM.create('tiny', Vocabulary(*words, 36), 16)).save_pretrained(folder/'pipeline')
    return folder/'pipeline'

def make_run(run, pipeline, stories, **options):
    "A run folder as training leaves it, with stories to draw."
    run.mkdir(parents=True)
    write_stories(run/'stories.h5', dict(test=stories), 'toy')
    (run/'pipeline').symlink_to(pipeline)
    save_json(run/'settings.json', {**dataclasses.asdict(resolve(**options)), 'data': str(run/'stories.h5')})
    return run

def fresh(run, at): # a copy that is not drawn
    return shutil.copytree(run, at, symlinks=True, ignore=shutil.ignore_patterns('drawn', 'drawing.json'))

@pytest.fixture(scope='module')
def small(tiny, toys, tmp_path_factory):
    "Three stories of two frames for the tiny model, not drawn yet."
    stories = [cut(s, 2, f'story {i}') for i, s in enumerate(toys[:3])]
    return make_run(tmp_path_factory.mktemp('small')/'run', tiny, stories, resolution=16, guidance_scale=1.)

OPTIONS = dict(num_inference_steps=1, batch_size=2)     # two stories, then one

@pytest.fixture(scope='module')
def calm(small, tmp_path_factory):
    "The same, drawn without disturbance."
    run = fresh(small, tmp_path_factory.mktemp('calm')/'run')
    cli.draw(run, **OPTIONS)
    return run


# what was drawn

def drawn(run): # {name: PNG}
    return {str(p.relative_to(run/'drawn')): p.read_bytes() for p in (run/'drawn').rglob('*') if p.is_file()}
def finished(run): return {p.name for p in (run/'drawn').glob('[!.]*')} # not under a temporary name
def record(run): return json.loads((run/'drawing.json').read_text())
def leftovers(run): return [p for p in run.rglob('.*')]

def levels(a, b):
    "The most that pictures of two galleries, {name: PNG}, differ; `None` where they are not of the same frames."
    if a.keys() != b.keys() or not a: return None
    def pixels(png): return np.asarray(Image.open(io.BytesIO(png))).astype(int)
    most = 0
    for name in a:
        p = pixels(a[name])
        q = pixels(b[name])
        most = max(most, abs(p - q).max() if p.shape == q.shape else 255)
    return most

def same(run, other): # within a level, nothing left over, and the same said about how it was done
    assert levels(drawn(run), drawn(other)) in (0, 1) and finished(run) == finished(other)
    assert not leftovers(run) and record(run) == record(other)


# processes

def command(run, **options):
    "What the command does when it is given these words."
    sys.argv = ['arldm-draw', str(run), *(f'--{k.replace("_", "-")}={v}' for k, v in {**OPTIONS, **options}.items())]
    cli.draw()

DONE = re.compile(r': \d+ of \d+ stor(y|ies) drawn$')

def ended(*job):
    "Exit code and complaints of a command: what it prints, except how many stories are drawn."
    code, said = end(*job)
    return code, [line for line in said if not DONE.search(line)]

def draw(run, **options): return ended(*fork(lambda: command(run, **options)))

@pytest.fixture
def opened(tiny, monkeypatch):
    "The tiny pipeline, opened once for all processes to come."
    pipe = engine.open_pipeline(tiny, engine.SamplingSettings())
    monkeypatch.setattr(engine, 'open_pipeline', lambda *_: pipe)
    # on a busy machine the work lasts long enough for a line of progress
    monkeypatch.setattr(engine, 'progress_bar', partial(progress.progress_bar, delay=3600))

def disturbed(run, k, sign, **options):
    def work():
        at_change(k, sign)
        command(run, **options)
    return ended(*fork(work))

def test_killed_at_every_point(small, opened, tmp_path):
    "kill -9 before changes of the disk and within pictures, in the soak all: whole stories or none, the same in the end."
    calm = fresh(small, tmp_path/'calm')
    some = dict(limit=3 if SOAK else 2)
    assert draw(calm, **some) == (0, [])
    whole = drawn(calm)
    for k in itertools.count(1, 1 if SOAK else 2):
        run = fresh(small, tmp_path/str(k))
        status, said = disturbed(run, k, signal.SIGKILL, **some)
        if status != -signal.SIGKILL: break
        kept = finished(run)
        there = {name: png for name, png in drawn(run).items() if name[0] != '.'}
        assert there == {name: png for name, png in whole.items() if name.split('/')[0] in kept}, k
        assert draw(run, **some) == (0, []), k
        same(run, calm)
        if len(kept) != 1: assert drawn(run) == whole, f'{k}: drawn beside the same stories, to the byte'
        assert {**drawn(run), **there} == drawn(run), f'{k}: what was there stays as it was'
        shutil.rmtree(run)
    assert (status, said) == (0, []) and drawn(run) == whole and k > 20
    if SOAK: print(f'\n  killed at {k - 1} points')

def test_progress_names_story_and_frame(small, tmp_path, capsys, monkeypatch):
    "One line for the stories and the frame that is drawn, and none of the pipeline's own."
    monkeypatch.setattr(progress, 'tqdm', partial(progress.tqdm, disable=False))
    monkeypatch.setattr(engine, 'progress_bar', partial(progress.progress_bar, seconds=0))
    cli.draw(fresh(small, tmp_path/'run'), **OPTIONS)
    out, said = capsys.readouterr()
    assert out == f"{tmp_path/'run'}: 3 of 3 stories drawn\n"
    lines = [line.partition(' [')[0] for line in said.splitlines()]
    assert lines[0] == 'drawing test set in float32: 0/3 stories' and lines[-1] == 'drawing test set in float32: 3/3 stories, frame 2'
    assert {f'drawing test set in float32: 0/3 stories, frame {k}' for k in (1, 2)} | {'drawing test set in float32: 2/3 stories, frame 1'} <= {*lines}
    assert not set(said) & {'\r', '\x1b'}

@pytest.mark.parametrize('k', range(1, 40) if SOAK else (3, 8, 14, 21, 27, 33))
def test_stopped_at_every_point(small, calm, opened, tmp_path, k):
    "Ctrl-C: one line, exit code 130, nothing left over."
    run = fresh(small, tmp_path/'run')
    status, said = disturbed(run, k, signal.SIGINT)
    if status: assert (status, said) == (130, ['arldm-draw: stopped; run the same command again to continue'])
    there = drawn(run)
    assert not leftovers(run) and there == {k: v for k, v in drawn(calm).items() if k.split('/')[0] in finished(run)}
    assert draw(run) == (0, []) and {**drawn(run), **there} == drawn(run)
    same(run, calm)

def test_ctrl_c_loses_no_finished_story(small, calm, opened, tmp_path, monkeypatch):
    run = fresh(small, tmp_path/'run')
    made = engine.draw_split
    def slow(*args, **options):
        for one in made(*args, **options):
            yield one
            time.sleep(2)
    monkeypatch.setattr(engine, 'draw_split', slow)
    pid, said = fork(lambda: command(run, batch_size=1))
    while not finished(run) and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT): time.sleep(.01)
    time.sleep(.2)
    there = drawn(run)
    os.kill(pid, signal.SIGINT)
    assert end(pid, said) == (130, ['arldm-draw: stopped; run the same command again to continue'])
    assert there and {**drawn(run), **there} == drawn(run) and len(finished(run)) < 3 and not leftovers(run)
    monkeypatch.undo()
    assert draw(run) == (0, [])
    same(run, calm)


# the real command, alone and under torchrun

def start(run, processes=1, **options):
    (run.parent/'draw.py').write_text('from arldm.cli.draw import draw; draw()')
    many = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}'] if processes > 1 else []
    words = [f'--{k.replace("_", "-")}={v}' for k, v in options.items()]
    return subprocess.Popen([sys.executable, *many, run.parent/'draw.py', run, *words], text=True, env=ENV,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

def kill(process): # all of it at once, with -9; some of it may end by itself meanwhile
    with suppress(OSError):
        for pid in family(process.pid) if process.poll() is None else ():
            with suppress(ProcessLookupError): os.kill(pid, signal.SIGKILL)
    process.communicate()

@pytest.fixture(scope='module')
def trained(toys, tmp_path_factory):
    "Continuations for the trained model; the first cannot be drawn, and every other one is long."
    stories = [cut(toys[i % len(toys)], 4 if i % 2 else 2, i) for i in range(STORIES)]
    run = tmp_path_factory.mktemp('trained')/'run'
    return make_run(run, asset('toy/arldm'), [torn(stories[0], 0), *stories[1:]], task='continuation')

@pytest.fixture(scope='module')
def trained_calm(trained, tmp_path_factory):
    run = fresh(trained, tmp_path_factory.mktemp('calm')/'run')
    with pytest.raises(StoryError, match=f'^1 of {STORIES} stories could not be drawn, first 0 .*not a whole picture'):
        cli.draw(run, num_inference_steps=2, batch_size=5)
    return run

@pytest.mark.skipif(not os.environ.get('ARLDM_SOAK'), reason='a long form: ARLDM_SOAK=1')
@needs_proc
@pytest.mark.parametrize('processes', [
    pytest.param(1, marks=pytest.mark.skipif(not SOAK, reason='the long form; every point is tested above')), 2])
def test_killed_at_random_moments(trained, trained_calm, tmp_path, processes):
    "kill -9 of everything, then on to the end: the pictures that one process draws undisturbed."
    run = fresh(trained, tmp_path/'run')
    rng = random.Random(processes)
    options = dict(num_inference_steps=2, batch_size=2)
    for _ in range(KILLS):
        wanted = len(finished(run)) + rng.randint(not SOAK, 2)
        process = start(run, processes, **options)
        if wanted == len(finished(run)): time.sleep(rng.random()*8)
        while process.poll() is None and len(finished(run)) < wanted: time.sleep(.01)
        time.sleep(rng.random()*.2)
        kill(process)
        calmly = drawn(trained_calm)
        there = {name: png for name, png in drawn(run).items() if name[0] != '.'}
        assert not there or levels(there, {k: v for k, v in calmly.items() if k.split('/')[0] in finished(run)}) <= 1
    if processes == 1: assert draw(run, **options)[0] == 1
    else:
        said, _ = (process := start(run, processes, **options)).communicate(timeout=300)
        assert process.returncode == 1 and 'story 0: not a whole picture' in said, said
    same(run, trained_calm)
    if SOAK: print(f'\n  {processes} processes: {KILLS} kills survived, the same pictures')

def test_a_process_waits_for_the_others(toys, tiny, opened, tmp_path, monkeypatch):
    "One that cannot draw a story is not done before all are, for torchrun stops the others as soon as one fails."
    stories = [torn(toys[0], 0), *toys[1:6]]
    run = make_run(tmp_path/'run', tiny, stories, task='continuation', resolution=16, guidance_scale=1.)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    made = engine.draw_split
    def late(*args, **options):
        if os.environ['RANK'] == '1': time.sleep(3)
        yield from made(*args, **options)
    monkeypatch.setattr(engine, 'draw_split', late)
    def work(rank):
        os.environ.update(RANK=str(rank), WORLD_SIZE='2', LOCAL_RANK=str(rank), MASTER_ADDR='127.0.0.1',
                          MASTER_PORT=str(port), TORCHELASTIC_RUN_ID='test')
        command(run)
    first, second = [fork(partial(work, rank)) for rank in range(2)]
    one_line(ended(*first), f'1 of 6 stories could not be drawn, first {stories[0].id} ')
    assert finished(run) == {s.id for s in stories[1:]} and ended(*second) == (0, [])


# batches, processes and memory

def test_batches_and_processes_change_nothing(toys, tmp_path):
    "Alone, in sevens, 32 at once, dealt out to two: no value of a picture differs by more than a level."
    lengths = [2]*32 + [1, 3, 4, 5]
    write_stories(tmp_path/'s.h5', dict(test=[cut(s, n, i) for i, (s, n) in enumerate(zip(toys, lengths))]), 'toy')
    stories = StoryFile(tmp_path/'s.h5')['test']
    pipe = StoryPipeline.from_pretrained(asset('toy/arldm'))
    pipe.set_progress_bar_config(disable=True)
    def gallery(batch, rows=range(36), world=1):
        for rank in range(world):
            for _ in draw_split(pipe, stories, tmp_path/f'{batch}-{world}'/'drawn', batch=batch, rank=rank, world_size=world,
                                limit=rows[-1] + 1, num_inference_steps=2, guidance_scale=2.): pass
        return drawn(tmp_path/f'{batch}-{world}')
    def first(gallery, n): return {k: v for k, v in gallery.items() if int(k.split('/')[0]) < n}
    whole = gallery(32)
    names = []
    for i, n in enumerate(lengths): names += [f'{i}/{k}.png' for k in range(1, n + 1)]
    assert sorted(whole) == sorted(names)
    assert levels(whole, gallery(7)) <= 1
    assert levels(first(whole, 5), gallery(1, range(5))) <= 1
    assert levels(first(whole, 7), gallery(3, range(7), world=2)) <= 1
    different = {Image.open(io.BytesIO(png)).tobytes() for png in whole.values()}
    assert len(different) == len(whole), 'no two frames are the same'

@pytest.mark.skipif(not has_bfloat16_units(), reason='this CPU has no units for bfloat16')
@pytest.mark.parametrize('guidance_scale', [1., 2.])
def test_batches_and_processes_in_bfloat16(toys, tmp_path, guidance_scale):
    "Alone, all at once, dealt out to two: the same files on a CPU, also where no guidance shows all tokens."
    write_stories(tmp_path/'s.h5', dict(test=[cut(s, 3, i) for i, s in enumerate(toys[:5])]), 'toy')
    stories = StoryFile(tmp_path/'s.h5')['test']
    pipe = StoryPipeline.from_pretrained(asset('toy/arldm'), dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    def gallery(batch, world=1):
        for rank in range(world):
            for _ in draw_split(pipe, stories, tmp_path/f'{batch}-{world}'/'drawn', batch=batch, rank=rank, world_size=world,
                                num_inference_steps=2, guidance_scale=guidance_scale): pass
        return drawn(tmp_path/f'{batch}-{world}')
    whole = gallery(5)
    assert len(whole) == 15 and gallery(1) == whole and gallery(2, world=2) == whole

WATCHED = '''
import re, sys
from pathlib import Path
from arldm.cli import draw as cli
from arldm.cli import drawing_run as engine
def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])*1024/1e6
made, at = engine.draw_split, []
def watched(*args, **how):
    for i, one in enumerate(made(*args, **how), 1):
        if i == 60: at.append(peak())
        yield one
engine.draw_split = watched
cli.draw(sys.argv[1], num_inference_steps=1, batch_size=16)
print(f'{at[0]} {peak()}')'''

@pytest.mark.skipif(not Path('/proc/self/status').is_file(), reason='memory is read from /proc')
@pytest.mark.skipif(not os.environ.get('ARLDM_SOAK'), reason='a long form: ARLDM_SOAK=1')
def test_memory_does_not_grow(toys, tiny, tmp_path):
    "The most memory that 500 stories take is what the first 60 of them take; a frame alone is 12 kB."
    stories = [cut(toys[i % len(toys)], 5 if SOAK else 2, i) for i in range(500)]
    run = make_run(tmp_path/'run', tiny, stories, task='continuation', resolution=64, guidance_scale=1.)
    # so that a frame that is let go leaves the process
    env = {**ENV, 'MALLOC_MMAP_THRESHOLD_': '16000'}
    said = subprocess.check_output([sys.executable, '-c', WATCHED, run], env=env, text=True)
    sixty, all_of_them = map(float, said.split()[-2:])
    assert len(finished(run)) == 500
    assert all_of_them - sixty < 4, f'{sixty} MB, then {all_of_them} MB'


# what stands in the way

def one_line(answer, *parts):
    "Exit code 1, and one line with these words in it."
    status, said = answer
    assert status == 1 and len(said) == 1 and said[0].startswith('arldm-draw: '), answer
    for part in parts: assert part in said[0], said[0]

def test_nothing_is_drawn_twice(small, calm, opened, tmp_path):
    run = fresh(small, tmp_path/'run')
    assert draw(run, limit=2) == (0, []) and finished(run) == {'story 0', 'story 1'}
    def times(): return {p: p.stat().st_mtime_ns for p in (run/'drawn').rglob('*')}
    before = times()
    assert draw(run, limit=1) == (0, []) and times() == before
    assert draw(run) == (0, []) and {p: t for p, t in times().items() if p in before and p.parent.name != 'run'} == {
        p: t for p, t in before.items() if p.parent.name != 'run'}
    assert drawn(run) == drawn(calm)
    same(run, calm)
    before = times()
    assert draw(run, batch_size=1) == (0, []) and times() == before

@pytest.mark.parametrize('k, other, said', [
    ('seed', 1, 'made with seed=0, not 1'), ('scheduler', 'ddim', 'made with scheduler=dpm++, not ddim'),
    ('dtype', 'bfloat16', 'made with dtype=float32, not bfloat16'), ('num_inference_steps', 2, 'made with num_inference_steps=1, not 2'),
    ('guidance_scale', 2., 'made with guidance_scale=1.0, not 2.0'), ('reuse', 2, 'made with reuse=1, not 2'),
    ('guidance_interval', '0,.5', 'made with guidance_interval=[0.0, 1.0], not [0.0, 0.5]'), ('data', 'other.h5', 'made with stories=')])
def test_drawings_are_not_mixed(calm, opened, toys, tmp_path, k, other, said):
    if k == 'data': write_stories(tmp_path/other, dict(test=[cut(s, 2, f'story {i}') for i, s in enumerate(toys[3:6])]), 'toy')
    if k == 'data': other = tmp_path/other
    before = drawn(calm)
    words = (calm/'drawing.json').read_bytes()
    one_line(draw(calm, **{k: other}), f'{calm} was {said}')
    assert drawn(calm) == before and (calm/'drawing.json').read_bytes() == words

def test_bad_stories_keep_no_other_back(toys, tiny, opened, tmp_path):
    "A damaged opening and a story that ends with it are named; a damaged frame that is to be drawn is never asked for."
    a, b, c, d, e = (cut(s, 3, name) for s, name in zip(toys, 'abcde'))
    stories = [a, torn(b, 0), cut(c, 1, 'c'), d, torn(e, 2)]
    run = make_run(tmp_path/'run', tiny, stories, task='continuation', resolution=16)
    for batch in 1, 2, 16:
        one_line(draw(run, batch_size=batch), '2 of 5 stories could not be drawn, first b (story b: not a whole picture')
        assert sorted(drawn(run)) == ['a/2.png', 'a/3.png', 'd/2.png', 'd/3.png', 'e/2.png', 'e/3.png']
        assert not leftovers(run)
        if batch > 1: continue
        shutil.rmtree(run/'drawn')

PLAIN = 'a b', 'Ünïcode ✓', '.hidden', 'c.d', 'e*[f]?', '-1', 'x'*120
UNSAFE = 'a/b', '..', '.', '/', '../run/stolen', 'y'*300, 'z'*230, 'new\nline'

def test_odd_names(toys, tiny, opened, tmp_path):
    "A story whose name cannot be that of a folder is refused, and nothing is written elsewhere."
    stories = [cut(toys[i], 1, name) for i, name in enumerate((*UNSAFE[:4], *PLAIN, *UNSAFE[4:]))]
    run = make_run(tmp_path/'run', tiny, stories, resolution=16)
    before = {p for p in tmp_path.rglob('*')}
    for _ in range(2):
        one_line(draw(run, batch_size=4), f'{len(UNSAFE)} of {len(stories)} stories could not be drawn, first a/b ')
        assert sorted(drawn(run)) == sorted(f'{name}/1.png' for name in PLAIN)
        more = {p for p in tmp_path.rglob('*')} - before
        assert {p for p in more if run/'drawn' not in p.parents} == {run/'drawn', run/'drawing.json'}

def test_a_file_in_the_way(small, calm, opened, tmp_path):
    run = fresh(small, tmp_path/'run')
    (run/'drawn').mkdir()
    (run/'drawn/story 0').write_text('mine')
    one_line(draw(run, batch_size=1), '1 of 3 stories', 'story 0')
    assert finished(run) == {'story 0', 'story 1', 'story 2'} and not leftovers(run)
    assert (run/'drawn/story 0').read_text() == 'mine'
    (run/'drawn/story 0').unlink()
    assert draw(run) == (0, [])
    same(run, calm)

def test_drawn_is_a_file(small, opened, tmp_path):
    run = fresh(small, tmp_path/'run')
    (run/'drawn').write_text('mine')
    one_line(draw(run), 'drawn')
    assert (run/'drawn').read_text() == 'mine' and not leftovers(run)

@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_not_writable(small, opened, tmp_path):
    run = fresh(small, tmp_path/'run')
    (run/'drawn').mkdir()
    (run/'drawn').chmod(0o500)
    one_line(draw(run), 'Permission denied')
    (run/'drawn').chmod(0o700)
    assert draw(run) == (0, []) and len(finished(run)) == 3

def test_a_full_disk(small, calm, opened, tmp_path):
    "No picture has room: one line, what was drawn stays, nothing is left over."
    run = fresh(small, tmp_path/'run')
    assert draw(run, limit=1) == (0, [])
    size = len((run/'drawing.json').read_bytes()) + 50
    assert size < min(map(len, drawn(run).values()))
    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        command(run)
    one_line(ended(*fork(full)), 'File too large')
    assert finished(run) == {'story 0'} and not leftovers(run)
    assert draw(run) == (0, [])
    same(run, calm)

def test_two_commands_at_once(small, calm, opened, tmp_path, monkeypatch):
    "Both draw the same stories and put them in the same place; there, too, they may meet."
    run = fresh(small, tmp_path/'run')
    remove = shutil.rmtree
    def slow(*args, **kwargs):
        remove(*args, **kwargs)
        time.sleep(.1)
    monkeypatch.setattr(files.shutil, 'rmtree', slow)
    both = [fork(lambda: command(run)) for _ in range(2)]
    assert [ended(*one) for one in both] == [(0, []), (0, [])]
    same(run, calm)

def test_damaged_words_about_the_drawings(small, opened, tmp_path):
    run = fresh(small, tmp_path/'run')
    assert draw(run, limit=1) == (0, [])
    (run/'drawing.json').write_text('{"seed": ')
    one_line(draw(run), 'drawing.json: not valid JSON')
    assert finished(run) == {'story 0'}
