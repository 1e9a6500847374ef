"Scores and reports: nothing of somebody else's is replaced, nothing is compared that does not belong together."
import errno, json, math, os, re, shutil, sqlite3, subprocess, sys, threading
from pathlib import Path

import numpy as np, pytest
from PIL import Image

from arldm.cli import score as exam
from arldm.cli import scoring_run as engine
from arldm.cli import report as reports
from arldm.lab import memory_test
from arldm.score.intervals import resample
from arldm.train.cache import data_digest
from arldm.report.compare import compare_runs
from arldm.core import StoryError
from arldm.draw.drawing_files import drawn_frames
from arldm.draw.matching import match_drawings
from arldm.score.feature_networks import Store, same_cut
from arldm.files.atomic import load_json, save_json
from arldm.files.manifest import folder_digest
from arldm.report.page import fact_bars, open_picture, story_figure
from arldm.files.pictures import decode
from arldm.report.report import write_report
from arldm.report.run_folder import read_run
from arldm.score.evaluate import evaluate
from arldm.data.story import StoryFile
from arldm.score.table import training_pictures
from elsewhere import PYTHONPATH
from parts import part
from painted import Small, draw, painting, row, stories, story_file

@pytest.fixture
def split(tmp_path): return story_file(tmp_path/'data', train=stories(4, start=50), test=stories(4, each=2))['test']

@pytest.fixture
def run(tmp_path, split): # drawn, and it says so
    draw(tmp_path/'run/drawn', split)
    save_json(tmp_path/'run/drawing.json', dict(data=str(split.file.path), data_relative='../data/stories.h5', split='test',
        stories=data_digest(split), weights='0'*32, num_inference_steps=4, seed=0))
    return tmp_path/'run'

def scored(run, split, n_resamples=0): return evaluate(run, split, n_resamples=n_resamples, train=0)


# how drawings are named

def renumber(folder, by):
    for place in folder.iterdir():
        paths = sorted(place.glob('*.png'), key=lambda p: int(p.stem)*(-1 if by > 0 else 1))
        for p in paths: p.rename(p.with_stem(str(int(p.stem) + by)))

@pytest.mark.parametrize('where', ['drawn', 'drawn2'])
def test_frames_numbered_from_0(where, run, split):
    if where == 'drawn2': shutil.copytree(run/'drawn', run/'drawn2')
    renumber(run/where, -1)
    with pytest.raises(StoryError, match='numbered from 0 to 2, expected 1 to 3; rename'): match_drawings(run, split)

def test_a_continuation_numbered_from_1_is_named(run, split):
    for place in (run/'drawn').iterdir(): (place/'3.png').unlink()
    assert any('must be 2.png' in line for line in match_drawings(run, split).trouble)

def test_two_files_of_one_frame(run, split):
    shutil.copy(run/'drawn/s0_0/1.png', run/'drawn/s0_0/01.png')
    with pytest.raises(StoryError, match='are both frame 1; move one'): match_drawings(run, split)

def test_pictures_of_other_names_are_named(run, split):
    place = run/'drawn/s0_0'
    (place/'1.png').rename(place/'1.PNG')
    painting(0).save(place/'2.jpg')
    said = '\n'.join(match_drawings(run, split).trouble)
    assert '2 pictures among the drawings are not named <k>.png and left out, first s0_0/1.PNG' in said
    assert 'move the folder of such a story away and run arldm-draw' in said
    for p in (run/'drawn').glob('*/*'): p.rename(p.with_suffix('.jpg'))
    with pytest.raises(StoryError, match='found pictures with other names: s0_0/1.jpg, s0_0/2.jpg, s0_0/3.jpg, …; draw first'): match_drawings(run, split)

def test_stories_that_are_just_being_drawn_are_left_alone(run, split):
    shutil.copytree(run/'drawn/s0_0', run/'drawn/.s0_1-2f-77-abcdef01')
    shutil.copytree(run/'drawn/s0_0', run/'drawn/.x')                  # a name that a story may have
    assert match_drawings(run, split).unknown == ['.x']
    assert [name for name in drawn_frames(run/'drawn') if name[0] == '.'] == ['.x']

def test_flat_drawings_are_counted(tmp_path, split):
    draw(tmp_path/'flat', split, picture=lambda i, k: Image.new('RGB', (32, 32)) if k > 1 else painting(i))
    assert '16 of 24 drawings are one flat colour, first s0_0/2.png' in match_drawings(tmp_path/'flat', split).trouble
    draw(tmp_path/'some', split, picture=lambda i, k: Image.new('RGB', (32, 32)) if k > 2 else painting(i, (32, 32)))
    assert match_drawings(tmp_path/'some', split).trouble == []


# what cannot be measured

@pytest.mark.parametrize('n', [1, 2])
def test_one_or_two_frames_measure_nothing(n, tmp_path):
    split = story_file(tmp_path/'data', train=stories(4, start=50), test=stories(1, each=1, n=n))['test']
    draw(tmp_path/'drawn', split)
    got = evaluate(tmp_path, split)
    measured = {r['name']: r['value'] for r in got['scores'] if r['value'] is not None}
    assert measured == {} and got['frames'] == [] and got['copies_floor']['n'] == n
    assert all(r['note'].startswith('not measured: ') for r in got['scores'])
    assert 'only 1 album: there are no intervals' in got['trouble']

def test_one_story_is_not_held_against_itself(tmp_path):
    split = story_file(tmp_path/'data', test=stories(1, each=1, n=6))['test']
    draw(tmp_path/'drawn', split)
    got = scored(tmp_path, split)
    assert row(got, 'similarity to the reference frame (fields)')['beside'] == []
    assert row(got, 'frames repeated (fields)')['value'] is None

def test_nothing_in_parts_of_almost_nothing(tmp_path):
    "Reference frames of a story that are alike by chance only."
    split = story_file(tmp_path/'data', test=stories(1, each=1, n=8))['test']
    draw(tmp_path/'drawn', split, picture=lambda i, k: painting(0))
    found = [r for r in scored(tmp_path, split)['scores'] if 'alike' in r['name']]
    assert len(found) == 2 and not any(r['value'] for r in found)
    assert all(r['note'].startswith('not measured: the cosine of reference frames of a story is only ') for r in found)


# numbers that cannot be

@pytest.mark.parametrize('n_resamples', [-1, 10**12, math.nan])
def test_the_number_of_resamples_has_bounds(n_resamples):
    with pytest.raises(StoryError, match='resamples must be 0 or more, at most 100,000, got'): resample(5, n_resamples)

def test_no_albums_and_no_training_pictures_less_than_none(split):
    with pytest.raises(StoryError, match='no albums'): resample(0)
    with pytest.raises(StoryError, match='train must be 0 or more, got -1'): training_pictures(split.file, -1)

def test_a_frame_numbered_like_a_date_ends(run, split):
    shutil.copy(run/'drawn/s0_0/1.png', run/'drawn/s0_0/20261128120000.png')
    html = part('story', story_figure('s', dict(drawn=drawn_frames(run/'drawn')['s0_0']), split[0]))
    assert html.count('<li>') == 4 and '<b>20261128120000</b>' in html
    html = part('story', story_figure('s', dict(drawn={k: run/'none' for k in range(1, 5000)})))
    assert html.count('<li>') == 100 and '4,899 more are not shown' in html


# whose files these are

@pytest.mark.parametrize('name', ['scores.json', 'resamples.json'])
@pytest.mark.parametrize('text', ['{"my": "notes"}', 'no json', '[1]'])
def test_foreign_scores_stay(name, text, run, split):
    (run/name).write_text(text)
    for f in (lambda: scored(run, split), lambda: exam.score(str(run), dry_run=True)):
        with pytest.raises(StoryError, match=f'{name} is there already .* written by arldm; move it away'): f()
    assert (run/name).read_text() == text

def test_own_scores_are_written_again(run, split):
    assert scored(run, split) == scored(run, split)

def test_foreign_pages_stay(run, tmp_path):
    shutil.copytree(run, tmp_path/'other')
    for folder, name, f in ((run, 'report.html', lambda: write_report(run)),
                            (run, 'against-other.html', lambda: write_report(run, against=tmp_path/'other'))):
        (folder/name).write_text('<html>my thesis</html>')
        with pytest.raises(StoryError, match='is there already and is not a report written by arldm'): f()
        assert (folder/name).read_text() == '<html>my thesis</html>'
        (folder/name).unlink()
        assert f() == f() == folder/name and 'content="arldm"' in (folder/name).read_text()

def test_a_foreign_database_is_never_written_to(tmp_path, run):
    path = tmp_path/'mine.db'
    with sqlite3.connect(path) as db: db.execute('create table letters (text)')
    db.close()
    before = path.read_bytes()
    for f in (lambda: Store(path), lambda: exam.score(str(run), store=str(path), dry_run=True)):
        with pytest.raises(StoryError, match='mine.db is there already and is not a store of features'): f()
    assert path.read_bytes() == before and os.listdir(tmp_path).count('mine.db-journal') == 0
    with pytest.raises(StoryError, match='stories.h5 is there already and is not a store'): Store(tmp_path/'data/stories.h5')

def test_a_damaged_store_may_be_moved_away(tmp_path):
    (store := Store(tmp_path/'x.db')).put([b'k'], np.ones((1, 3)))
    store.db.close()
    data = (tmp_path/'x.db').read_bytes()
    (tmp_path/'x.db').write_bytes(data[:100] + b'?'*(len(data) - 100))
    with pytest.raises(StoryError, match='move it away, features are computed again'): Store(tmp_path/'x.db')

def test_a_killed_writer_leaves_a_store(tmp_path):
    "Its journal is rolled back when the store is opened."
    (store := Store(tmp_path/'x.db')).put([b'k'], np.ones((1, 3)))
    store.db.execute('pragma cache_size = 1')
    store.db.execute('begin immediate')
    for i in range(2000): store.db.execute('insert into rows values (?, ?)', (b'%d' % i, b'x'*400))
    for name in 'x.db', 'x.db-journal': shutil.copy(tmp_path/name, tmp_path/name.replace('x', 'y'))
    store.db.rollback()
    assert {k: v.tolist() for k, v in Store(tmp_path/'y.db').get([b'k', b'7']).items()} == {b'k': [1, 1, 1]}

def test_a_full_disk_says_so(tmp_path):
    store = Store(tmp_path/'x.db')
    pages = store.db.execute('pragma page_count').fetchone()[0]
    store.db.execute(f'pragma max_page_count = {pages}')
    with pytest.raises(StoryError, match='full.*make room and run the same command again, nothing is lost') as e:
        store.put([b'%d' % i for i in range(99)], np.ones((99, 999)))
    assert 'delete' not in str(e.value) and 'move' not in str(e.value)

NO_LOCKS = """#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
static int ask(const char *name, int fd, int what, void *how) {
  if (what == F_SETLK || what == F_SETLKW || what == F_GETLK) { errno = atoi(getenv("LOCKS_FAIL")); return -1; }
  return ((int (*)(int, int, ...))dlsym((void *)-1, name))(fd, what, how);
}
#define ASK(name) int name(int fd, int what, ...) { \\
  va_list a; va_start(a, what); void *how = va_arg(a, void *); va_end(a); return ask(#name, fd, what, how); }
ASK(fcntl) ASK(fcntl64)
"""

STORED = """import sys, numpy as np; from arldm.files.row_store import Store
store = Store(sys.argv[1]); store.put([sys.argv[2].encode()], np.full((1, 2), 7))
print({k: v.tolist() for k, v in store.get([b'a', b'b']).items()})"""

@pytest.mark.parametrize('name', ['ENOLCK', 'ENOSYS'])
def test_a_store_on_a_drive_without_locks(tmp_path, name):
    "It is made, and used again, after a warning: no wait for a lock that never comes, no advice to make room."
    source, library, path = tmp_path/'locks.c', tmp_path/'locks.so', tmp_path/'x.db'
    source.write_text(NO_LOCKS)
    if not shutil.which('cc') or subprocess.run(['cc', '-shared', '-fPIC', '-o', library, source, '-ldl']).returncode:
        pytest.skip('needs a C compiler')
    env = {**os.environ, 'PYTHONPATH': PYTHONPATH, 'LD_PRELOAD': str(library),
           'LOCKS_FAIL': str(getattr(errno, name))}
    for key, found in ('a', {b'a': [7, 7]}), ('b', {b'a': [7, 7], b'b': [7, 7]}):
        done = subprocess.run([sys.executable, '-c', STORED, path, key], env=env, capture_output=True, text=True, timeout=15)
        assert done.stdout == f'{found}\n'.replace('7', '7.0'), done.stderr
        assert done.stderr.count('x.db is on a file system without locks; make sure that no second command') == 1
    assert os.listdir(tmp_path).count('x.db-journal') == 0
    assert {k: v.tolist() for k, v in Store(path).get([b'a', b'b']).items()} == found        # where there are locks

@pytest.mark.parametrize('name', ['ENOSYS', 'ENOLCK', 'EOPNOTSUPP', 'EINVAL'])
def test_processes_do_not_share_a_store_without_locks(tmp_path, monkeypatch, name):
    def lockf(*_): raise OSError(getattr(errno, name), 'no locks')
    monkeypatch.setattr('fcntl.lockf', lockf)
    with pytest.warns(UserWarning, match='x.db is on a file system without locks'): Store(tmp_path/'x.db')
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(StoryError, match='several processes cannot share .* --store FILE'): Store(tmp_path/'x.db')


# which stories these are

def test_a_moved_run_finds_its_stories(tmp_path, run, split):
    scored(run, split)
    (tmp_path/'elsewhere').mkdir()
    for name in 'run', 'data': (tmp_path/name).rename(tmp_path/'elsewhere'/name)
    moved = tmp_path/'elsewhere/run'
    assert engine.what_to_score(moved)[1].file.path.resolve() == tmp_path/'elsewhere/data/stories.h5'
    assert 'Reference frames and captions are not shown' not in write_report(moved).read_text()

def test_drawings_of_other_stories(tmp_path, run, split, capsys):
    "The story file was converted again, from other stories of the same names."
    story_file(tmp_path/'data', test=[s.__class__(s.id, s.album, ('other',)*3, s.frames) for s in split])
    other = StoryFile(split.file.path)['test']
    line = 'the drawings were made from other stories than those of split test'
    assert any(line in said for said in scored(run, other)['trouble'])
    exam.score(str(run), dry_run=True)
    assert f'note: {line}' in capsys.readouterr().out and line in write_report(run).read_text()

def test_scores_say_what_they_are_of(run, split):
    got = scored(run, split)
    drawings, frames = (got['digests'][name] for name in ('drawings', 'frames'))
    assert got['digests'] == dict(stories=data_digest(split), weights='0'*32, drawings=drawings, frames=frames)
    assert all(re.fullmatch('[0-9a-f]{32}', digest) for digest in (drawings, frames))
    assert got['drawing'] == dict(split='test', num_inference_steps=4, seed=0) and got['data_relative'] == '../data/stories.h5'
    page = write_report(run).read_text()
    assert 'not those that were scored' not in page
    painting(1, (32, 32)).save(run/'drawn/s0_0/1.png')
    assert 'the drawings are not those that were scored; score them again' in write_report(run).read_text()
    assert scored(run, split)['digests']['drawings'] != got['digests']['drawings']

def test_other_stories_are_not_paired(tmp_path, run, split):
    file = story_file(tmp_path/'data2', test=[s.__class__(s.id, s.album, ('other',)*3, s.frames) for s in split])
    draw(tmp_path/'two/drawn', file['test'])
    scored(run, split, 5), scored(tmp_path/'two', file['test'], 5)
    assert {r['verdict'] for r in compare_runs(run, tmp_path/'two')} == {'not paired: the runs drew different stories'}
    page = write_report(run, against=tmp_path/'two').read_text()
    assert 'A and B drew different stories' in page and 'not paired: the runs drew different stories' in page

def test_other_frames_are_not_paired(tmp_path, run, split):
    shutil.copytree(run, tmp_path/'less')
    for place in (tmp_path/'less/drawn').iterdir(): (place/'1.png').unlink()
    for folder in run, tmp_path/'less': scored(folder, split, 5)
    assert {r['verdict'] for r in compare_runs(run, tmp_path/'less')} == {'not paired: different frames of these stories were scored'}
    scores = load_json(run/'scores.json')
    del scores['digests']['frames']                                         # as they were written before
    save_json(run/'scores.json', scores)
    assert all('does not say which frames were scored; score it again' in r['verdict'] for r in compare_runs(run, run))

def test_other_weights_are_not_paired(tmp_path, run, split):
    runs = [run, tmp_path/'other', tmp_path/'same', tmp_path/'none']
    for folder in runs[1:]: shutil.copytree(run, folder)
    for folder, gain in zip(runs, (1., 2., 1.)): evaluate(folder, split, {'dinov2': Small(gain=gain)}, n_resamples=5, train=0)
    scored(runs[3], split, 5)
    def verdicts(other): return {r['name']: r['verdict'] for r in compare_runs(run, other)}
    other, same, none = map(verdicts, runs[1:])
    assert other['FD-DINOv2'] == other['precision'] == 'not paired: different weights of dinov2'
    assert other['FD-fields'].startswith('no significant difference')                   # no weights in it
    assert all(said.startswith('no significant difference') for said in same.values()) and 'FD-DINOv2' in same
    assert none['precision'] == 'not paired: measured by dinov2 and fields'

def test_resamples_of_other_scores_are_not_paired(run, split):
    scored(run, split, 5)
    scores = load_json(run/'scores.json')
    for r in scores['scores']:
        if r['name'] == 'FD-fields': r['value'] += 1
    save_json(run/'scores.json', scores)
    verdicts = {r['name']: r['verdict'] for r in compare_runs(run, run)}
    assert verdicts['FD-fields'].startswith('not paired: the resamples belong to earlier scores')
    assert verdicts['similarity to the reference frame (fields)'].startswith('no significant difference')


# files of another shape

@pytest.mark.parametrize('name,text,said', [
    ('scores.json', '[1]', 'scores.json: it must be an object'),
    ('scores.json', '{"scores": [{"name": 5, "value": 1}]}', r'scores\[0\].name must be text, got 5'),
    ('scores.json', '{"scores": [{"name": "a", "value": "1"}]}', r'scores\[0\].value must be a number'),
    ('scores.json', '{"scores": [], "stories": {"name": "x", "values": [1]}}', 'stories.values must be an object'),
    ('scores.json', '{"scores": [], "copies": [{"story": "../../x", "k": 1}]}', r'copies\[0\].similarity is missing'),
    ('drawing.json', '[1]', 'drawing.json: it must be an object'),
    ('drawing.json', '{"data": 5}', 'data must be text or null, got 5'),
    ('settings.json', '[1]', 'settings.json: it must be an object'),
    ('settings.json', '{"data": {"a": 1}}', 'data must be text or null')])
def test_shapes(name, text, said, run):
    (run/name).write_text(text)
    with pytest.raises(StoryError, match=said): write_report(run)
    if name == 'drawing.json':
        with pytest.raises(StoryError, match=said): exam.score(str(run))

@pytest.mark.parametrize('text,said', [('[1]', 'it must be an object'), ('{"albums": 1, "rows": {}}', 'albums must be a list'),
    ('{"albums": ["a"], "rows": {"FD-fields": ["x"]}}', 'rows must be lists of numbers')])
def test_shape_of_resamples(text, said, run, split):
    scored(run, split, 5)
    (run/'resamples.json').write_text(text)
    with pytest.raises(StoryError, match=said): compare_runs(run, run)

def test_histories_need_all_settings(run):
    with pytest.raises(StoryError, match='drawing.json: scheduler is missing'): exam.score(str(run), histories=2)


# pages

def test_the_report_decodes_as_the_score(tmp_path):
    Image.fromarray((np.arange(64*64).reshape(64, 64)*16).astype('uint16')).save(tmp_path/'1.png')
    photo = painting(3, (40, 20))
    photo.getexif()[0x112] = 6
    photo.save(tmp_path/'2.png', exif=photo.getexif())
    for name in '1.png', '2.png':
        assert np.array_equal(open_picture(tmp_path/name), decode((tmp_path/name).read_bytes()))
    turned = decode((tmp_path/'2.png').read_bytes())
    assert turned.size == (20, 40) and np.array_equal(same_cut(Image.open(tmp_path/'2.png'), 20, 20), same_cut(turned, 20, 20))
    assert open_picture(tmp_path/'none.png') is None

def test_names_that_are_no_text(tmp_path, run, split):
    odd = Path(os.fsdecode(bytes(tmp_path) + b'/lat\xff'))
    run.rename(odd)
    assert '<title>lat?: drawn stories</title>' in write_report(odd).read_text()
    shutil.copytree(odd, tmp_path/'b')
    assert os.fsencode(write_report(tmp_path/'b', against=odd).name) == b'against-lat\xff.html'

def test_names_in_attributes_are_escaped():
    rows = [dict(name='"><img', value=.5, n=3), dict(name='', value=.5, n=3), dict(name='stated place', value=1., n=3)]
    html = part('facts', fact_bars(rows))
    assert '<img' not in html and html.count('class="stated"') == 1
    assert '<bad' not in part('story', story_figure('t', {'"><bad>': {1: Path('none')}}))

def test_counted_in_words(tmp_path):
    split = story_file(tmp_path/'data', test=stories(1, each=1, n=1))['test']
    draw(tmp_path/'drawn', split)
    assert repr(match_drawings(tmp_path, split)) == '1 frame of 1 story, 1 album; 1 set'
    got = scored(tmp_path, split)
    page = write_report(tmp_path).read_text()
    assert 'The folder holds 1 frame of 1 story of split test' in page and '1 story, 1 album, 1 drawn frame' in page and '1 albums' not in str(got)

def test_reports_of_nothing(tmp_path, run):
    for place in tmp_path/'nowhere', run/'drawing.json':
        with pytest.raises(StoryError, match='no settings, log or drawings'): write_report(place)
    assert write_report(run/'drawn') == run/'drawn/report.html'                    # a folder of drawings only


# what drawing.json knows

def know(run, **more): save_json(run/'drawing.json', {**load_json(run/'drawing.json'), **more})

@pytest.mark.parametrize('task, lost', [('visualization', 8), ('continuation', 0)])
def test_first_frames_are_missing_by_the_task(task, lost, run, split):
    know(run, task=task)
    for place in (run/'drawn').iterdir(): (place/'1.png').unlink()
    said = [line for line in scored(run, split)['trouble'] if 'missing' in line]
    assert [line.split(';')[0] for line in said] == [f'{lost} frames of drawn stories are missing, first s0_0/1.png']*(lost > 0)
    assert not any('must be 2.png' in line for line in load_json(run/'scores.json')['trouble'])

def model(run, text): # a pipeline folder, as far as weights are compared
    (run/'pipeline').mkdir(exist_ok=True)
    (run/'pipeline/model_index.json').write_text(text)

def test_drawings_of_other_weights(run, split):
    line = f'the drawings were made with other weights than {run}/pipeline has now'
    model(run, 'old')
    know(run, weights=folder_digest(run/'pipeline'), scheduler='ddim', dtype='float32', guidance_scale=1., guidance_interval=[0, 1], reuse=1)
    assert line not in scored(run, split)['trouble'] and line not in write_report(run).read_text()
    assert engine.history_sampling(run, engine.read_drawing(run)) == engine.SamplingSettings('ddim', 4, 1., (0, 1))  # nothing to refuse
    model(run, 'new')
    assert line in write_report(run).read_text()
    assert line in scored(run, split)['trouble'] and write_report(run).read_text().count(line) == 1
    with pytest.raises(StoryError, match=re.escape(f'--histories draws again, but {line}; score without it')):
        exam.score(str(run), histories=2)
    assert not (run/'histories').exists()

def test_sets_that_arldm_draw_did_not_draw(run, split):
    def seeds(): return scored(run, split)['seeds'], [s for s in load_json(run/'scores.json')['trouble'] if 'drawn2' in s]
    draw(run/'drawn2', split, picture=lambda i, k: painting(10*i + k, (32, 32)))
    assert seeds() == (2, ['drawn2 is taken as another seed of the same model'])
    know(run, sets=1)
    assert seeds() == (1, ['drawn2 is left out: drawing.json says that arldm-draw drew 1 set here; if it drew this one, too, '
                           'run it again with --sets 2'])
    know(run, sets=2)
    assert seeds() == (2, [])
    shutil.rmtree(run/'drawn2')
    shutil.copytree(run/'drawn', run/'drawn2')
    assert seeds() == (1, ['drawn2 is left out: its pictures are those of another set, so it was not drawn from another seed'])

def test_verdicts_of_stale_scores_say_so(tmp_path, run, split, capsys):
    shutil.copytree(run, tmp_path/'two')
    for folder in run, tmp_path/'two': scored(folder, split, 5)
    reports.report(str(run), str(tmp_path/'two'))
    assert 'not those that were scored' not in capsys.readouterr().out
    painting(1, (32, 32)).save(tmp_path/'two/drawn/s0_0/1.png')
    reports.report(str(run), str(tmp_path/'two'))
    said = capsys.readouterr().out
    assert 'note: B: the drawings are not those that were scored; score them again' in said and 'note: A: the drawings' not in said
    assert said.index('not those that were scored') < said.index('no significant difference')

def test_a_pipe_as_drawing_json_ends(run):
    (run/'drawing.json').unlink()
    os.mkfifo(run/'drawing.json')
    writer = os.open(run/'drawing.json', os.O_RDWR)
    os.write(writer, b'{}')
    end = threading.Timer(.3, os.close, [writer])                            # or a reader would wait for ever
    end.start()
    with pytest.raises(StoryError, match='drawing.json is not a file'): engine.read_drawing(run)
    end.join()

def test_the_memory_test_keeps_what_is_wrong(tmp_path, monkeypatch, capsys):
    def some(folder, *args, **how): return dict(scores=[], frames=[], trouble=[f'{folder.name} lacks a frame'])
    monkeypatch.setattr(memory_test, 'evaluate', some)
    monkeypatch.setattr(memory_test, 'LatentFeatures', lambda vae: None)
    for folder in memory_test.ROWS.values(): (tmp_path/'visualization'/folder).mkdir(parents=True)
    table = memory_test.score_rows(tmp_path, {'visualization': None}, None)
    assert table['reference frames']['trouble'] == ['reference lacks a frame']
    assert 'note: visualization, reference frames: reference lacks a frame' in capsys.readouterr().out
    assert memory_test.memory_table(table).count('\n') == 1 + len(memory_test.ROWS)
