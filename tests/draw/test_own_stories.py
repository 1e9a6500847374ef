"A story of one's own replaces only what was drawn there before, goes on after any stop, and is never another's."
import itertools, json, os, shutil, signal, subprocess, sys, time, warnings
from pathlib import Path

import numpy as np, pytest, torch
from PIL import Image

from arldm.cli import draw as cli
from arldm.draw import own_stories as own
from arldm.core import StoryError, asset
from arldm.data.dataset import Vocabulary, word_tokenizers
from arldm.draw.pipeline import StoryPipeline
from arldm.model.arldm import ARLDM

LINES = ['Ada is a big red star.', 'She jumps.', 'She goes to the right.', 'Night falls.', 'She waits.', 'Bo comes along.',
        'Bo jumps.']
FEW = dict(num_inference_steps=1, guidance_scale=1.)

def make_pipeline(folder, seed):
    words = word_tokenizers(LINES, folder.with_name(folder.name + '-words'))
    torch.manual_seed(seed)
    StoryPipeline.from_model(ARLDM.create('tiny', Vocabulary(*words, 36), 16)).save_pretrained(folder)
    return folder

@pytest.fixture(scope='module')
def models(tmp_path_factory):
    "Two pipeline folders with random weights."
    folder = tmp_path_factory.mktemp('models')
    return [make_pipeline(folder/name, seed) for seed, name in enumerate(('one', 'two'))]

@pytest.fixture
def model(models): return models[0]

@pytest.fixture(autouse=True, scope='module')
def opened_once(models):
    "The two models are opened once for all tests, in each precision."
    opened = StoryPipeline.from_pretrained
    pipes = {}
    def from_pretrained(folder, **options):
        if Path(folder) not in models: return opened(folder, **options)
        key = folder, options.get('dtype')
        return pipes.setdefault(key, pipes.get(key) or opened(folder, **options))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(StoryPipeline, 'from_pretrained', from_pretrained)
        yield

def write(path, lines=LINES[:2]):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(lines) + '\n')
    return path

def photo(path, seed=0):
    colours = np.random.default_rng(seed).integers(0, 256, (24, 40, 3), np.uint8)
    Image.fromarray(colours).save(path)
    return path

def content(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}
def look(folder, n): return [np.asarray(Image.open(folder/f'{k}.png')).astype(int) for k in range(1, n + 1)]
def off(a, b): return max(abs(x - y).max() for x, y in zip(a, b, strict=True))
def made(folder): return json.loads((folder/'manifest.json').read_text())

def one_line(*parts, **options):
    "The command refuses, in one line with these words."
    with pytest.raises(StoryError) as e: cli.draw(**{**FEW, **options})
    for part in parts: assert str(part) in str(e.value), e.value
    assert 'delete' not in str(e.value)

@pytest.fixture
def unopened(monkeypatch):
    "No model may be loaded."
    def never(*_, **__): raise AssertionError('the model is loaded')
    monkeypatch.setattr(StoryPipeline, 'from_pretrained', never)

@pytest.mark.parametrize('option', [dict(data='s.h5'), dict(limit=1), dict(sets=3), dict(fast=True), dict(layout='vistory')])
def test_options_of_a_split_are_not_ignored(tmp_path, unopened, option):
    (tmp_path/'a.txt').write_text('A star.\n')
    one_line(f'--{next(iter(option))} is for the stories of a split', run=asset('toy/arldm'), captions=str(tmp_path/'a.txt'), **option)



# where it goes

@pytest.mark.parametrize('suffix', ['.txt', ''])
def test_a_folder_beside_the_text_stays(model, tmp_path, suffix):
    "Also one that has the name of the text, and for a text without suffix."
    home = tmp_path/'holiday'
    (tmp_path/'holiday/photos').mkdir(parents=True)
    first = photo(home/'first.png')
    (home/'diary.txt').write_text('ten years of work')
    before = content(home)
    text = write(tmp_path/f'{"holiday" if suffix else "mine"}{suffix}')
    folder = cli.draw(model, captions=str(text), given=str(first), **FEW)
    assert content(home) == before and (home/'photos').is_dir()
    assert folder == tmp_path/f'{text.stem}-drawn' and {*content(folder)} == {'1.png', '2.png', 'strip.png', 'manifest.json'}

def test_a_run_is_never_replaced(model, tmp_path):
    "A text whose name without suffix is that of the folder above."
    run = tmp_path/'run'
    shutil.copytree(model, run/'pipeline')
    (run/'log.csv').write_text('step,loss\n')
    before = content(run)
    folder = cli.draw(run, captions=str(write(tmp_path/'...txt')), **FEW)
    assert content(run) == before and (folder/'strip.png').is_file() and folder == tmp_path/'..-drawn'

def test_two_texts_of_one_name(model, tmp_path):
    "Each has a folder of its own; in the same place, the second is refused."
    run = tmp_path/'run'
    shutil.copytree(model, run/'pipeline')
    lines = write(tmp_path/'a/story.txt'), write(tmp_path/'b/story.txt', LINES[2:4])
    a, b = [cli.draw(run, captions=str(text), **FEW) for text in lines]
    first = content(a)
    assert a != b and first['1.png'] != content(b)['1.png']
    cli.draw(run, captions=str(lines[0]), redraw='2', **{**FEW, 'seed': 5})
    assert content(a)['1.png'] == first['1.png'] and content(a)['2.png'] != first['2.png']
    assert look(b, 2)[0].any() and made(b)['captions'] == LINES[2:4]
    one_line('a/story-drawn holds a story with another caption of frame 1', '--redraw all', '--out', run=run,
             captions=str(write(tmp_path/'a/story.md', LINES[2:4])))

def test_out(model, tmp_path):
    text = write(tmp_path/'story.txt')
    assert cli.draw(model, captions=str(text), out=tmp_path/'new/place', **FEW) == tmp_path/'new/place'
    assert {p.name for p in tmp_path.iterdir()} == {'story.txt', 'new'}
    assert [p.name for p in (tmp_path/'new').iterdir()] == ['place']

def test_a_text_that_cannot_be_written_beside(model, tmp_path, monkeypatch):
    text = write(tmp_path/'read-only/story.txt')
    real = os.access
    monkeypatch.setattr(os, 'access', lambda path, mode: Path(path) != text.parent and real(path, mode))
    (tmp_path/'here').mkdir()
    monkeypatch.chdir(tmp_path/'here')
    assert (cli.draw(model, captions=str(text), **FEW)/'strip.png').samefile(tmp_path/'here/story-drawn/strip.png')

def foreign(folder, what, model):
    folder.mkdir()
    if what == 'file': (folder/'diary.txt').write_text('mine')
    if what == 'picture': photo(folder/'1.png')
    if what == 'empty folder': (folder/'photos').mkdir()
    if what == 'pipeline':
        shutil.copytree(model, folder, dirs_exist_ok=True)
        from arldm.files.manifest import write_manifest
        write_manifest(folder, dict(step=3))
    return folder

@pytest.mark.parametrize('what', ['file', 'picture', 'empty folder', 'pipeline', 'link', 'broken link', 'plain file', 'run',
                                  'inside the model', 'the model', 'above', 'no name', 'long name'])
def test_places_of_others(model, tmp_path, unopened, what):
    "They are refused before the model is loaded, and stay as they are."
    out = tmp_path/'out'
    if what in ('file', 'picture', 'empty folder', 'pipeline'): foreign(out, what, model)
    elif what == 'link': out.symlink_to(foreign(tmp_path/'there', 'file', model))
    elif what == 'broken link': out.symlink_to(tmp_path/'nowhere')
    elif what == 'plain file': out.write_text('mine')
    text = write(tmp_path/'text/story.txt')
    run = tmp_path/'run'
    shutil.copytree(model, run/'pipeline')
    out = {'run': run, 'inside the model': run/'pipeline/drawn', 'the model': run/'pipeline', 'above': tmp_path,
           'no name': '..', 'long name': tmp_path/('x'*240)}.get(what, out)
    before = content(tmp_path)
    folders = sorted(tmp_path.rglob('*'))
    for dry_run in True, False: one_line(run=run, captions=str(text), out=out, dry_run=dry_run)
    for dry_run in True, False: one_line(run=run, captions=str(text), out=out, dry_run=dry_run, redraw='all')
    assert content(tmp_path) == before and sorted(tmp_path.rglob('*')) == folders


# again, and otherwise

def test_the_same_again_draws_nothing(model, tmp_path, capsys):
    text = write(tmp_path/'story.txt')
    folder = cli.draw(model, captions=str(text), **FEW)
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.iterdir()}
    capsys.readouterr()
    assert cli.draw(model, captions=str(text), **FEW) == folder
    assert capsys.readouterr().out == f'{folder}/strip.png\n'
    assert before == {p: (p.read_bytes(), p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.iterdir()}
    assert sorted(p.name for p in tmp_path.iterdir()) == ['story-drawn', 'story.txt']

OTHER = dict(captions='another caption of frame 2', more='2 captions, not 3', num_inference_steps='num_inference_steps=1, not 2 for frame 1',
             seed='seed=0, not 3', guidance_scale='guidance_scale=1.0, not 2.0', dtype='dtype=float32, not bfloat16',
             weights='other weights', given='another given picture, or none, as frame 1')

@pytest.mark.parametrize('what', OTHER)
def test_something_else_is_refused(models, tmp_path, what):
    "Until it is asked for: then the new story stands there."
    text = write(tmp_path/'story.txt')
    options = dict(run=models[0], **FEW)
    folder = cli.draw(captions=str(text), **options)
    before = content(folder)
    lines = LINES[:2]
    if what == 'captions': lines = write(text, [LINES[0], LINES[3]]).read_text().splitlines()
    elif what == 'more': lines = write(text, LINES[:3]).read_text().splitlines()
    elif what == 'weights': options['run'] = models[1]
    elif what == 'given': options['given'] = str(photo(tmp_path/'first.png'))
    else: options[what] = dict(num_inference_steps=2, seed=3, guidance_scale=2., dtype='bfloat16')[what]
    for dry_run in True, False:
        one_line(folder, OTHER[what], '--redraw all', '--out', captions=str(text), dry_run=dry_run, **options)
    assert content(folder) == before
    if what in ('weights', 'more'):
        cli.draw(captions=str(text), redraw='all', **options)
        new = cli.draw(captions=str(text), out=tmp_path/'new', **options)
        assert content(folder) == content(new) != before and made(new)['captions'] == lines
        assert not [p for p in tmp_path.iterdir() if p.name[0] == '.' or p.name.endswith('.part')]

def test_redraw(models, tmp_path):
    "The frames that are named, each after those before it; the captions of the others must be the same."
    text = write(tmp_path/'story.txt', LINES[:4])
    model = models[0]
    folder = cli.draw(model, captions=str(text), **FEW)
    before = content(folder)
    frames = look(folder, 4)
    new = write(text, [LINES[0], 'Bo jumps.', *LINES[2:4]]).read_text().splitlines()
    one_line('another caption of frame 2', run=model, captions=str(text), redraw='3')
    one_line('other weights', run=models[1], captions=str(text), redraw='2')
    one_line('no frame 5 to redraw; there are frames 1 to 4', run=model, captions=str(text), redraw='5')
    assert content(folder) == before
    cli.draw(model, captions=str(text), redraw='2,4', seed=7, num_inference_steps=2, guidance_scale=1.)
    pipe = StoryPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    want = pipe(new, [Image.open(folder/f'{k}.png') for k in range(1, 5)], redraw=[2, 4], seed=7, num_inference_steps=2,
                guidance_scale=1.).stories[0]
    again = look(folder, 4)
    assert [np.array_equal(a, b) for a, b in zip(frames, again)] == [True, False, True, False]
    assert off(again, [np.asarray(x).astype(int) for x in want]) <= 1
    assert [frame['seed'] for frame in made(folder)['frames']] == [0, 7, 0, 7] and made(folder)['captions'] == new
    assert np.array_equal(look(cli.draw(model, captions=str(text), redraw='2', **FEW), 2)[0], frames[0])

@pytest.mark.parametrize('redraw', [None, '2', 'all'])
@pytest.mark.parametrize('what', ['changed', 'foreign', 'missing', 'no manifest'])
def test_what_was_changed_is_not_taken_for_ours(model, tmp_path, what, redraw):
    "It is named. A frame that is missing can be drawn again with the whole story."
    text = write(tmp_path/'story.txt')
    folder = cli.draw(model, captions=str(text), **FEW)
    if what == 'changed': photo(folder/'1.png')
    elif what == 'foreign': (folder/'note.txt').write_text('mine')
    elif what == 'missing': (folder/'1.png').unlink()
    else: (folder/'manifest.json').unlink()
    before = content(folder)
    named = dict(changed='1.png', foreign='note.txt', missing='1.png').get(what, folder)
    if (what, redraw) != ('missing', 'all'):
        one_line(named, run=model, captions=str(text), redraw=redraw)
        assert content(folder) == before
    else: assert {*content(cli.draw(model, captions=str(text), redraw='all', **FEW))} > {'1.png', '2.png'}

def test_a_given_picture_is_compared_by_content(model, tmp_path):
    text = write(tmp_path/'story.txt', LINES[:3])
    a = photo(tmp_path/'a.png')
    b = photo(tmp_path/'b.png', 1)
    folder = cli.draw(model, captions=str(text), given=str(a), **FEW)
    shutil.copy(a, tmp_path/'copy.png')
    before = content(folder)
    assert cli.draw(model, captions=str(text), given=str(tmp_path/'copy.png'), **FEW) == folder
    one_line('another given picture', run=model, captions=str(text), given=str(b))
    one_line('another given picture', run=model, captions=str(text), given=str(b), redraw='2')
    one_line('frame 1 was given, not drawn', run=model, captions=str(text), redraw='1')
    assert content(folder) == before and 'given' in made(folder)['frames'][0]
    cli.draw(model, captions=str(text), given=str(a), redraw='3', **FEW)
    assert off(look(folder, 3), [np.asarray(Image.open(p).convert('RGB')).astype(int) for p in sorted(folder.glob('[123].png'))]) == 0
    assert content(folder)['3.png'] == before['3.png'], 'the same settings, the same frame'
    cli.draw(model, captions=str(text), redraw='3', **{**FEW, 'seed': 1})
    assert content(folder)['3.png'] != before['3.png'] and content(folder)['2.png'] == before['2.png']


# a cast

UNTRAINED = 'ignore:the model was not trained with a cast'

@pytest.mark.filterwarnings(UNTRAINED)
def test_a_cast_is_compared_by_content(model, tmp_path, monkeypatch):
    "Another card changes every frame: only the whole story is drawn again. The folder is what it was until then."
    text = str(write(tmp_path/'story.txt', LINES[:2] + LINES[5:6]))
    a, b = photo(tmp_path/'a.png'), photo(tmp_path/'b.png', 1)
    seen = []
    stream = StoryPipeline.stream
    monkeypatch.setattr(StoryPipeline, 'stream', lambda *args, **options: seen.append(options['cast']) or stream(*args, **options))
    folder = cli.draw(model, captions=text, cast=f'Ada={a}, Bo={b}', **FEW)
    assert [np.array_equal(seen[0][name], Image.open(path)) for name, path in (('Ada', a), ('Bo', b))] == [True]*2
    assert made(folder)['cast'] == [dict(name='Ada', picture=own.file_digest(a)), dict(name='Bo', picture=own.file_digest(b))]
    before = content(folder)
    shutil.copy(a, tmp_path/'copy.png')
    assert cli.draw(model, captions=text, cast=f'Ada={tmp_path/"copy.png"},Bo={b}', **FEW) == folder and len(seen) == 1
    advice = '--redraw all draws the whole story again'
    for redraw in None, '3':
        for cast, line in ((f'Ada={b},Bo={b}', 'another card of Ada'), (None, 'a card of Ada'), (f'Ada={a}', 'a card of Bo'),
                           (f'Bo={b},Ada={a}', 'its cards in another order'), (f'Ada={a},Bo={b},Cy={a}', 'no card of Cy')):
            one_line(f'{folder} holds a story with {line}; {advice}', run=model, captions=text, cast=cast, redraw=redraw)
    assert content(folder) == before and len(seen) == 1
    cli.draw(model, captions=text, cast=f'Ada={a},Bo={b}', redraw='2', **{**FEW, 'seed': 1})
    assert list(seen[1]) == ['Ada', 'Bo'] and content(folder)['1.png'] == before['1.png'] != content(folder)['2.png']
    cli.draw(model, captions=text, cast=f'Ada={b}', redraw='all', **FEW)
    assert made(folder)['cast'] == [dict(name='Ada', picture=own.file_digest(b))] and list(seen[2]) == ['Ada']

@pytest.mark.filterwarnings(UNTRAINED)
def test_a_stopped_story_keeps_its_cast(model, tmp_path, monkeypatch):
    text = str(write(tmp_path/'story.txt', LINES[:3]))
    a, b = photo(tmp_path/'a.png'), photo(tmp_path/'b.png', 1)
    calm = cli.draw(model, captions=text, cast=f'Ada={a}', out=tmp_path/'calm', **FEW)
    with monkeypatch.context() as patched, warnings.catch_warnings(), pytest.raises(KeyboardInterrupt):
        warnings.simplefilter('ignore')
        stop_after(patched, 1)
        cli.draw(model, captions=text, cast=f'Ada={a}', **FEW)
    one_line('holds the frames of an unfinished story with another card of Ada', run=model, captions=text, cast=f'Ada={b}')
    folder = cli.draw(model, captions=text, cast=f'Ada={a}', **FEW)
    assert off(look(folder, 3), look(calm, 3)) <= 1 and made(folder)['cast'] == made(calm)['cast']

@pytest.mark.parametrize('cast, said', [
    ('', '--cast : expected names and pictures, such as Ada=ada.png,Bo=bo.png'), ('a.png', '--cast a.png: expected names'),
    ('Ada=', 'expected names'), ('=a.png', 'expected names'), ('Ada=a.png,Ada=a.png', '--cast: two cards of the cast are named Ada and Ada'),
    ('Ada=b.png', 'No such file'), ('Ada=story.txt', 'story.txt: '), ('Ada=.', 'Is a directory')])
def test_casts_that_are_none(model, tmp_path, unopened, monkeypatch, cast, said):
    photo(tmp_path/'a.png')
    monkeypatch.chdir(tmp_path)
    for dry_run in True, False:
        one_line(said, run=model, captions=str(write(tmp_path/'story.txt')), cast=cast, dry_run=dry_run)
    assert {p.name for p in tmp_path.iterdir()} == {'a.png', 'story.txt'}

@pytest.mark.parametrize('dry_run', [True, False])
def test_notes_on_a_cast(model, tmp_path, dry_run):
    "A dry run says what the run says, once."
    a = photo(tmp_path/'a.png')
    text = str(write(tmp_path/'story.txt'))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter('always')
        cli.draw(model, captions=text, cast=f'Ada={a},Bo={a}', dry_run=dry_run, **FEW)
    said = [str(w.message) for w in heard if w.category is UserWarning and 'ca' in str(w.message)]
    assert said == ['no caption mentions Bo; the cards are used all the same',
                    'the model was not trained with a cast, so it may not draw what is on the cards; train it with '
                    '--cast-probability 0.5']

def test_notes_on_a_cast_when_redrawing(model, tmp_path):
    "A card that no caption mentions is said again, once, and not of a caption that comes later."
    a = photo(tmp_path/'a.png')
    text = write(tmp_path/'story.txt')
    last = f'{text.read_text().rstrip()} Cy.'
    text.write_text(last)
    how = dict(captions=str(text), cast=f'Cy={a},Bo={a}', **FEW)
    cli.draw(model, **how)
    for options in dict(redraw='1,2', dry_run=True), dict(redraw='1,2'):
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter('always')
            cli.draw(model, **how, **options)
        said = [str(w.message) for w in heard if 'no caption' in str(w.message)]
        assert said == ['no caption mentions Bo; the cards are used all the same'], options


# stopped, and on to the end

def stop_after(monkeypatch, n, error=KeyboardInterrupt):
    "`stream` is stopped when it has drawn so many frames."
    stream = StoryPipeline.stream
    def some(*args, **options):
        yield from itertools.islice(stream(*args, **options), n)
        raise error
    monkeypatch.setattr(StoryPipeline, 'stream', some)

@pytest.mark.parametrize('n_given', [0, 2])
def test_a_stopped_story_goes_on(model, tmp_path, monkeypatch, n_given):
    "Stopped again and again, the pictures are those of a story that was never stopped; longer than the memory."
    text = write(tmp_path/'story.txt', LINES)
    given = ','.join(str(photo(tmp_path/f'{k}.png', k)) for k in range(n_given)) or None
    calm = cli.draw(model, captions=str(text), given=given, out=tmp_path/'calm', **FEW)
    kept = n_given
    part = tmp_path/'story-drawn.part'
    for n in 1, 3:
        with monkeypatch.context() as patched, pytest.warns(UserWarning, match=f'{kept + n} of 7 frames are kept in {part}'):
            stop_after(patched, n)
            with pytest.raises(KeyboardInterrupt): cli.draw(model, captions=str(text), given=given, **FEW)
        kept += n
        assert {p.name for p in part.iterdir() if p.suffix == '.png'} == {f'{k}.png' for k in range(1, kept + 1)}
        assert not (tmp_path/'story-drawn').exists()
    calls = []
    keep = Image.Image.save
    monkeypatch.setattr(Image.Image, 'save', lambda im, path, *a: (calls.append(path), keep(im, path, *a)))
    folder = cli.draw(model, captions=str(text), given=given, **FEW)
    assert len(calls) == 7 - kept + 1, 'the frames that were left, and the strip'
    assert off(look(folder, 7), look(calm, 7)) <= 1 and not part.exists()
    assert made(folder)['captions'] == LINES and {*content(folder)} == {*content(calm)}

def test_a_story_keeps_its_precision(model, tmp_path, monkeypatch):
    "Unfinished, finished or drawn again: another machine's own choice never mixes two in a story."
    from arldm.draw import drawing_record
    text = write(tmp_path/'story.txt', LINES[:3])
    with monkeypatch.context() as patched, warnings.catch_warnings(), pytest.raises(KeyboardInterrupt):
        warnings.simplefilter('ignore')
        stop_after(patched, 1)
        cli.draw(model, captions=str(text), **FEW)
    monkeypatch.setattr(drawing_record, 'default_dtype', lambda pipeline: 'bfloat16')
    for redraw in None, None, '2', 'all':
        folder = cli.draw(model, captions=str(text), redraw=redraw, **FEW)
        assert [frame['dtype'] for frame in made(folder)['frames']] == ['float32']*3
    pipes, opened = [], own.open_pipeline
    monkeypatch.setattr(own, 'open_pipeline', lambda *args, **options: pipes.append(opened(*args, **options)) or pipes[-1])
    new = cli.draw(model, captions=str(text), out=tmp_path/'new', **FEW)
    assert [frame['dtype'] for frame in made(new)['frames']] == ['bfloat16']*3 and pipes[0].unet.dtype == torch.bfloat16

def test_another_story_does_not_go_on_from_these(models, tmp_path, monkeypatch):
    text = write(tmp_path/'story.txt', LINES[:3])
    with monkeypatch.context() as patched, warnings.catch_warnings(), pytest.raises(KeyboardInterrupt):
        warnings.simplefilter('ignore')
        stop_after(patched, 1)
        cli.draw(models[0], captions=str(text), **FEW)
    part = tmp_path/'story-drawn.part'
    before = content(part)
    one_line(part, 'other weights', '--redraw all', '--out', run=models[1], captions=str(text))
    one_line(part, 'seed=0, not 1', run=models[0], captions=str(text), seed=1)
    assert content(part) == before
    want = cli.draw(models[1], captions=str(text), out=tmp_path/'want', **FEW)
    folder = cli.draw(models[1], captions=str(text), redraw='all', **FEW)
    assert content(folder) == content(want) and not part.exists()

@pytest.mark.parametrize('what', ['changed', 'foreign'])
def test_kept_frames_are_known_by_content(model, tmp_path, monkeypatch, what):
    text = write(tmp_path/'story.txt', LINES[:3])
    with monkeypatch.context() as patched, warnings.catch_warnings(), pytest.raises(KeyboardInterrupt):
        warnings.simplefilter('ignore')
        stop_after(patched, 2)
        cli.draw(model, captions=str(text), **FEW)
    part = tmp_path/'story-drawn.part'
    photo(part/('1.png' if what == 'changed' else '3.png'))
    before = content(part)
    one_line(part/('1.png' if what == 'changed' else '3.png'), run=model, captions=str(text))
    one_line(part, run=model, captions=str(text), redraw='all')
    assert content(part) == before

@pytest.mark.parametrize('n_given', [0, 2, 6])
def test_stream_goes_on(model, n_given):
    "With no opening picture, with some, and with more of them than the memory holds."
    pipe = StoryPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    given = [Image.fromarray(np.random.default_rng(k).integers(0, 256, (20, 32, 3), np.uint8)) for k in range(n_given)]
    lines = LINES + LINES[:2]
    options = dict(seed=4, num_inference_steps=1, guidance_scale=2.)
    whole = [*pipe.stream(lines, given, **options)]
    assert len(whole) == 9 - n_given
    for k in {1, len(whole)//2, len(whole) - 1}:
        rest = [*pipe.stream(lines, given, drawn=whole[:k], **options)]
        assert off([np.asarray(x).astype(int) for x in rest], [np.asarray(x).astype(int) for x in whole[k:]]) <= 1, k

def test_a_long_story_needs_no_more_memory(model):
    "Of 300 frames that were drawn before, only those that the memory holds are looked at."
    pipe = StoryPipeline.from_pretrained(model)
    seen = set()
    pipe.set_progress_bar_config(disable=True)
    class Drawn:
        def __len__(self): return 300
        def __getitem__(self, k): return seen.add(k) or Image.new('RGB', (16, 16), (k % 256, 0, 0))
    assert len([*pipe.stream(['She jumps.']*301, num_inference_steps=1, guidance_scale=1., drawn=Drawn())]) == 1
    assert seen == {0, 297, 298, 299}

def test_killed_at_every_point(model, tmp_path):
    "kill -9 at any change of the disk: the same command draws the same story, and nothing else is left."
    from processes import at_change, end, fork
    pipe = StoryPipeline.from_pretrained(model)
    text = write(tmp_path/'calm/story.txt', LINES[:3])
    calm = tmp_path/'calm'
    def work(text, k=0):
        StoryPipeline.from_pretrained = lambda *_, **__: pipe
        if k: at_change(k, signal.SIGKILL)
        cli.draw(model, captions=str(text), **FEW)
    assert end(*fork(lambda: work(text)))[0] == 0
    for k in 9, 16, 45:
        text = write(tmp_path/str(k)/'story.txt', LINES[:3])
        assert end(*fork(lambda: work(text, k)))[0] == -signal.SIGKILL, k
        assert end(*fork(lambda: work(text)))[0] == 0, k
        assert content(text.parent) == content(calm) and not [*text.parent.glob('.*')], k

def test_two_at_once(model, tmp_path, monkeypatch):
    "One draws, the other says so; or both have the same story."
    from processes import end, fork
    pipe = StoryPipeline.from_pretrained(model)
    text = write(tmp_path/'story.txt', LINES[:3])
    stream = StoryPipeline.stream
    def slow(*args, **options):
        for frame in stream(*args, **options):
            time.sleep(.2)
            yield frame
    def work():
        StoryPipeline.from_pretrained = lambda *_, **__: pipe
        StoryPipeline.stream = slow
        sys.argv = ['arldm-draw', str(model), '--captions', str(text), '--num-inference-steps', '1', '--guidance-scale', '1']
        cli.draw()
    processes = [fork(work) for _ in range(2)]
    both = [end(*process) for process in processes]
    assert sorted(status for status, _ in both) == [0, 1]
    said = next(lines for status, lines in both if status)
    assert len(said) == 1 and 'another process is drawing there' in said[0]
    assert {*content(tmp_path)} == {'story.txt', *(f'story-drawn/{name}' for name in ('1.png', '2.png', '3.png',
        'strip.png', 'manifest.json'))} and not [p for p in tmp_path.iterdir() if p.name.endswith('.part')]

def test_what_cannot_be_deleted_is_left_aside(model, tmp_path):
    "The new story is in place, the old one aside, and a warning says so."
    text = write(tmp_path/'story.txt')
    folder = cli.draw(model, captions=str(text), **FEW)
    old = (folder/'2.png').read_bytes()
    if not shutil.which('chattr') or subprocess.run(['chattr', '+i', folder/'1.png'], capture_output=True).returncode:
        pytest.skip('no file can be made undeletable here')
    try:
        with pytest.warns(UserWarning, match='could not be deleted'): cli.draw(model, captions=str(text), redraw='2', **{**FEW, 'seed': 1})
    finally:
        for p in tmp_path.rglob('1.png'): subprocess.run(['chattr', '-i', p], capture_output=True)
    assert {*content(folder)} == {'1.png', '2.png', 'strip.png', 'manifest.json'} and (folder/'2.png').read_bytes() != old

def test_a_broken_frame_is_never_written(model, tmp_path, monkeypatch):
    "The frames before it are kept."
    text = write(tmp_path/'story.txt', LINES[:3])
    stop_after(monkeypatch, 1, StoryError('the frame is not finite'))
    with pytest.warns(UserWarning, match='1 of 3 frames'): one_line('not finite', run=model, captions=str(text))
    assert [p.name for p in tmp_path.rglob('*.png')] == ['1.png']


# the text and the pictures

BREAKS = {'LF': ('a\nb', ['a', 'b']), 'CRLF': ('a\r\nb', ['a', 'b']), 'CR': ('a\rb', ['a', 'b']),
          'VT': ('a\x0bc\nb', ['a c', 'b']), 'FF': ('a\x0cc\nb', ['a c', 'b']), 'FS': ('a\x1cc\nb', ['a c', 'b']),
          'NEL': ('a\x85c\nb', ['a c', 'b']), 'LS': ('a\u2028c\nb', ['a c', 'b']), 'PS': ('a\u2029c\nb', ['a c', 'b']),
          'blank': ('a\n\n \t\n\u200b\u2060\n\ufeff\nb\n\xa0', ['a', 'b']), 'BOM': ('\ufeffa\nb', ['a', 'b']),
          'space': ('  a \n\u3000b', ['a', 'b']), 'no break': ('a\xa0c\nb', ['a c', 'b'])}

@pytest.mark.parametrize('name', BREAKS)
def test_lines(model, tmp_path, unopened, monkeypatch, name):
    "A caption ends where an editor shows the next line."
    seen, (text, want) = [], BREAKS[name]
    (tmp_path/'story.txt').write_bytes(text.encode())
    place = sys.modules.get('arldm.draw.story_folder', cli)
    plan = place.make_plan
    monkeypatch.setattr(place, 'make_plan', lambda lines, *a, **k: (seen.append(lines), plan(lines, *a, **k))[1])
    with pytest.raises(AssertionError, match='the model is loaded'): cli.draw(model, captions=str(tmp_path/'story.txt'), **FEW)
    assert seen[0] == want and not (tmp_path/'story-drawn').exists()

@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_encodings(tmp_path, encoding):
    from arldm.data.caption_file import read_captions
    (tmp_path/'story.txt').write_bytes('Ada läuft.\r\nÅse 🌟 springt.'.encode(encoding))
    assert read_captions(tmp_path/'story.txt') == ['Ada läuft.', 'Åse 🌟 springt.']

@pytest.mark.parametrize('what', ['latin-1', 'utf-16-le', 'utf-32', 'picture', 'folder', 'device', 'huge', 'empty', 'odd utf-16'])
def test_texts_that_are_none(model, tmp_path, unopened, what):
    text = tmp_path/'story.txt'
    said = 'UTF-8'
    if what == 'folder': text.mkdir()
    elif what == 'device': text = Path('/dev/zero')
    elif what == 'picture': photo(tmp_path/'x.png').rename(text)
    elif what == 'huge':
        with open(text, 'wb') as f: f.truncate(2*10**8)
    elif what == 'odd utf-16': text.write_bytes(b'\xff\xfea')
    else: text.write_bytes(('' if what == 'empty' else 'Ada läuft.').encode('utf-8' if what == 'empty' else what))
    said = dict(folder='not a text file', device='not a text file', huge='at most 100,000,000', empty='no captions in it').get(what, said)
    for dry_run in True, False: one_line(text, said, run=model, captions=str(text), dry_run=dry_run)

@pytest.mark.parametrize('given, names', [
    ('a.png, b.png', ['a.png', 'b.png']), ('a, b.png', ['a, b.png']), ('a.png,a, b.png', ['a.png', 'a, b.png']),
    ('~/a.png,~/b.png', ['a.png', 'b.png']), ('~/a.png, ~/b.png', ['a.png', 'b.png']), (' a.png', ['a.png'])])
def test_lists_of_pictures(model, tmp_path, monkeypatch, given, names):
    "Spaces after commas, commas in names, and the home folder of each."
    for k, name in enumerate(('a.png', 'b.png', 'a, b.png')): photo(tmp_path/name, k)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    folder = cli.draw(model, captions=str(write(tmp_path/'story.txt', LINES[:3])), given=given, **FEW)
    for k, name in enumerate(names, 1):
        want = Image.open(tmp_path/name).crop((8, 0, 32, 24))
        assert np.array_equal(np.asarray(Image.open(folder/f'{k}.png')), np.asarray(want)), name
    assert len(made(folder)['frames']) == 3 and sum('given' in frame for frame in made(folder)['frames']) == len(names)

@pytest.mark.parametrize('given, said', [('', 'a name is empty'), ('a.png,', 'a name is empty'), ('a.png,,a.png', 'a name is empty'),
    ('b.png', 'No such file'), ('a.png,a.png', 'nothing is left to draw')])
def test_pictures_that_are_none(model, tmp_path, unopened, monkeypatch, given, said):
    photo(tmp_path/'a.png')
    monkeypatch.chdir(tmp_path)
    for dry_run in True, False:
        one_line(said, run=model, captions=str(write(tmp_path/'story.txt')), given=given, dry_run=dry_run)


# before any work

@pytest.mark.parametrize('dry_run', [True, False])
@pytest.mark.parametrize('options, said', [
    (dict(guidance_scale=float('nan')), 'guidance_scale'), (dict(guidance_scale=float('inf')), 'guidance_scale'), (dict(guidance_scale=.5), 'guidance_scale'),
    (dict(guidance_interval='0.8,0.2'), 'guidance_interval'), (dict(guidance_interval='nan,1'), 'guidance_interval'),
    (dict(guidance_interval='0'), 'guidance_interval'), (dict(num_inference_steps=5000), 'between 1 and 999'), (dict(reuse=0), 'reuse'),
    (dict(seed=2**64), 'seeds must be between'), (dict(seed=-2**63 - 1), 'seeds must be between'),
    (dict(scheduler='euler'), "no scheduler 'euler'"), (dict(redraw='two'), 'redraw must be'), (dict(redraw='2'), 'no story there'),
    (dict(out=''), '--out is empty'), (dict(given=''), 'a name is empty')])
def test_dry_run_refuses_what_the_run_refuses(model, tmp_path, unopened, options, said, dry_run):
    text = write(tmp_path/'story.txt')
    one_line(said, run=model, captions=str(text), dry_run=dry_run, **options)
    assert [p.name for p in tmp_path.iterdir()] == ['story.txt']

def test_dry_run_opens_the_model(model, tmp_path, capsys):
    text = write(tmp_path/'story.txt')
    run = shutil.copytree(model, tmp_path/'model')
    cli.draw(run, captions=str(text), dry_run=True, **FEW)
    assert capsys.readouterr().out == 'would draw 2 frames in float32; nothing was written\n'
    (run/'unet/diffusion_pytorch_model.safetensors').unlink()
    one_line('expected a pipeline, but loading failed', run=run, captions=str(text), dry_run=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['model', 'story.txt']

def test_a_refused_model_leaves_nothing(model, tmp_path):
    text = write(tmp_path/'story.txt')
    run = shutil.copytree(model, tmp_path/'model')
    (run/'unet/diffusion_pytorch_model.safetensors').write_bytes(b'damaged')
    one_line('expected a pipeline, but loading failed', run=run, captions=str(text), out=tmp_path/'a/b')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['model', 'story.txt']

def test_names_do_not_command_the_terminal(model, tmp_path, capsys):
    text = write(tmp_path/'st\x1b[2Jory\n.txt')
    folder = cli.draw(model, captions=str(text), **FEW)
    assert folder.name == 'st\x1b[2Jory\n-drawn' and (folder/'strip.png').is_file()
    assert capsys.readouterr().out.splitlines()[-1] == f'{tmp_path}/st?[2Jory?-drawn/strip.png'

def test_unknown_words_are_handed_to_the_vocabulary(model, monkeypatch):
    "All captions of a call at once, before anything is drawn; those of a stream as they come."
    seen = []
    pipe = StoryPipeline.from_pretrained(model)
    monkeypatch.setattr(Vocabulary, 'note_unknown', lambda self, captions: seen.append(list(captions)))
    pipe.set_progress_bar_config(disable=True)
    pipe([LINES[:2], LINES[2:3]], num_inference_steps=1, guidance_scale=1.)
    assert seen[0] == LINES[:3]
    seen.clear()
    frames = pipe.stream(iter(LINES), num_inference_steps=1, guidance_scale=1.)
    assert next(frames) and seen == [[LINES[0]]] and next(frames) and seen == [[LINES[0]], [LINES[1]]]


# what attacks found

def test_a_lost_strip_is_put_together_again(model, tmp_path, monkeypatch):
    "No frame is drawn for it."
    text = write(tmp_path/'story.txt')
    folder = cli.draw(model, captions=str(text), **FEW)
    before = content(folder)
    (folder/'strip.png').unlink()
    monkeypatch.setattr(own, 'open_pipeline', None)
    cli.draw(model, captions=str(text), **FEW)
    assert content(folder) == before

def test_a_lost_frame_is_drawn_again_alone(model, tmp_path):
    text = write(tmp_path/'story.txt')
    folder = cli.draw(model, captions=str(text), **FEW)
    before = look(folder, 2)
    (folder/'2.png').unlink()
    one_line('2.png is missing; --redraw 2', run=model, captions=str(text))
    one_line('2.png is missing', run=model, captions=str(text), redraw='1')
    cli.draw(model, captions=str(text), redraw='2', **FEW)
    assert off(look(folder, 2), before) <= 1

def test_a_redraw_that_was_killed_between_two_renames_goes_on(model, tmp_path):
    text = write(tmp_path/'story.txt')
    folder = cli.draw(model, captions=str(text), **FEW)
    first = look(folder, 1)
    folder.rename(folder.with_name(f'.{folder.name}-old-0123abcd'))
    assert cli.draw(model, captions=str(text), redraw='2', **{**FEW, 'seed': 5}) == folder
    assert off(look(folder, 1), first) == 0 and [f['seed'] for f in made(folder)['frames']] == [0, 5]

def test_a_killed_redraw_keeps_the_file_to_share(model, tmp_path):
    text = write(tmp_path/'story.txt')
    folder = cli.draw(model, captions=str(text), **FEW, format='pdf')
    assert (folder/'story.pdf').is_file()
    folder.rename(folder.with_name(f'.{folder.name}-old-0123abcd'))
    cli.draw(model, captions=str(text), redraw='2', **{**FEW, 'seed': 5})
    assert (folder/'story.pdf').is_file()

def test_weights_that_are_replaced_while_they_are_opened(model, tmp_path, monkeypatch):
    "Or the manifest would name those from before."
    mine = shutil.copytree(model, tmp_path/'mine')
    text = write(tmp_path/'story.txt')
    opened = StoryPipeline.from_pretrained
    def replaced(folder, **options):
        pipe = opened(folder, **options)
        (mine/'note.json').write_text('trained again')
        return pipe
    monkeypatch.setattr(StoryPipeline, 'from_pretrained', replaced)
    one_line('was replaced while it was opened', run=mine, captions=str(text))
    assert not (tmp_path/'story-drawn').exists()

def test_kept_frames_are_those_on_the_disk(model, tmp_path, monkeypatch):
    "A frame counts once it and its manifest are written."
    text = write(tmp_path/'story.txt')
    def full(path, obj): raise OSError(28, 'No space left on device', str(path))
    monkeypatch.setattr(own, 'save_json', full)
    with pytest.warns(UserWarning, match='0 of 2 frames are kept'), pytest.raises(OSError): cli.draw(model, captions=str(text), **FEW)
