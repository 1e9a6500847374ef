"Drawings of a split know from what they were made: other models, stories or settings are never mixed in one folder."
import dataclasses, json, shutil, sys, time, warnings
from pathlib import Path

import numpy as np, pytest, torch
from PIL import Image

from arldm.cli import draw as cli
from arldm.cli import drawing_run as engine
from arldm.core import StoryError, has_bfloat16_units
from arldm.data.dataset import Vocabulary, word_tokenizers
from arldm.draw import drawing_record as records
from arldm.draw.pipeline import StoryPipeline
from arldm.draw.small_convolutions import has_channels_last
from arldm.files.atomic import save_json
from arldm.model.arldm import ARLDM
from arldm.files.pictures import to_png
from arldm.settings import resolve
from arldm.data.story import Story, write_stories

FEW = dict(num_inference_steps=1, guidance_scale=1.)

def story(i, text='a red star'):
    picture = to_png(Image.new('RGB', (16, 16), (40*i, 0, 99)))
    return Story(f's{i}', f'a{i}', (f'{text} {i}', 'it jumps'), (picture, picture))

def make_pipeline(folder, seed):
    words = word_tokenizers(['a red star it jumps 0 1 2 3'], folder.with_name(folder.name + '-words'))
    torch.manual_seed(seed)
    StoryPipeline.from_model(ARLDM.create('tiny', Vocabulary(*words, 36), 16)).save_pretrained(folder)
    return folder

@pytest.fixture(scope='module')
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp('models')
    return [make_pipeline(folder/name, seed) for seed, name in enumerate(('one', 'two'))]

@pytest.fixture(autouse=True, scope='module')
def opened_once(models):
    "The two models are opened once for all tests, in each precision."
    opened = StoryPipeline.from_pretrained
    pipes = {}
    def from_pretrained(folder, **kwargs):
        for place in Path(folder).resolve(), (Path(folder)/'pipeline').resolve():
            if place not in models: continue
            key = place, kwargs.get('dtype')
            if key not in pipes: pipes[key] = opened(folder, **kwargs)
            return pipes[key]
        return opened(folder, **kwargs)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(StoryPipeline, 'from_pretrained', from_pretrained)
        yield

def make_run(run, model):
    run.mkdir(parents=True)
    (run/'pipeline').symlink_to(model)
    write_stories(run/'stories.h5', dict(test=map(story, range(4)), val=map(story, range(2))), 'toy')
    settings(run)
    return run

@pytest.fixture
def run(models, tmp_path):
    "A run with four stories in its folder, as training leaves it."
    return make_run(tmp_path/'run', models[0])

@pytest.fixture(scope='module')
def fixed(models, tmp_path_factory):
    "A run that no test changes, with one story drawn."
    run = make_run(tmp_path_factory.mktemp('fixed')/'run', models[0])
    cli.draw(run, limit=1, dtype='float32', **FEW)
    return run

def own_pipeline(run): # a copy instead of a link
    model = (run/'pipeline').resolve()
    (run/'pipeline').unlink()
    shutil.copytree(model, run/'pipeline')

def settings(run, **other):
    where = dict(data=str(run/'stories.h5'), data_relative='stories.h5')
    save_json(run/'settings.json', {**dataclasses.asdict(resolve(resolution=16)), **where, **other})

def content(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}
def record(run): return json.loads((run/'drawing.json').read_text())
def drawn(run, name='drawn'): return sorted(str(p.relative_to(run/name)) for p in (run/name).rglob('*.png'))

def one_line(*parts, run, **options):
    "The command refuses in one line with these words, in a dry run too, and nothing is written."
    before = content(run.parent)
    for dry_run in True, False:
        with pytest.raises(StoryError) as e: cli.draw(run, **{**FEW, **options}, dry_run=dry_run)
        for part in parts: assert str(part) in str(e.value), e.value
        assert '\n' not in str(e.value) and 'delete' not in str(e.value)
    assert content(run.parent) == before


# by content

def test_another_model(run, models):
    "A pipeline that was swapped, or made again by more training."
    cli.draw(run, limit=2, **FEW)
    (run/'pipeline').unlink()
    (run/'pipeline').symlink_to(models[1])
    one_line('made with weights=', '--out ANOTHER_FOLDER', run=run)
    other = cli.draw(run, out=run.parent/'other', limit=2, **FEW)
    assert drawn(run.parent/'other') == drawn(run) == ['s0/1.png', 's0/2.png', 's1/1.png', 's1/2.png']
    assert other == run.parent/'other/drawn' and content(other) != content(run/'drawn')
    assert record(run)['weights'] != record(run.parent/'other')['weights']

def test_other_stories_under_the_same_path(run):
    "Also as a second set; the same stories elsewhere are the same."
    cli.draw(run, limit=2, **FEW)
    shutil.copy(run/'stories.h5', run.parent/'copy.h5')
    assert cli.draw(run, data=run.parent/'copy.h5', limit=3, **FEW) == run/'drawn' and len(drawn(run)) == 6
    write_stories(run/'stories.h5', dict(test=[story(i, 'a blue star') for i in range(4)]), 'toy')
    one_line('made with stories=', '--out', run=run)
    one_line('made with stories=', run=run, sets=2)
    one_line('split=test, not val', run=run, data=run.parent/'copy.h5', split='val')

@pytest.mark.parametrize('what, said', [
    (dict(task='continuation'), 'made with task=visualization, not continuation'), (dict(resolution=24), 'made with resolution=16, not 24')])
def test_other_settings_of_the_run(run, what, said):
    cli.draw(run, limit=1, **FEW)
    settings(run, **what)
    one_line(said, run=run)

@pytest.mark.parametrize('k, other, said', [
    ('seed', 1, 'seed=0, not 1'), ('scheduler', 'ddim', 'scheduler=dpm++, not ddim'), ('num_inference_steps', 2, 'num_inference_steps=1, not 2'),
    ('dtype', 'bfloat16', 'dtype=float32, not bfloat16'), ('guidance_scale', 2., 'guidance_scale=1.0, not 2.0'),
    ('reuse', 2, 'reuse=1, not 2'), ('guidance_interval', '0,.5', 'guidance_interval=[0.0, 1.0], not [0.0, 0.5]')])
def test_other_ways(fixed, k, other, said):
    one_line(f'{fixed} was made with {said}; --out ANOTHER_FOLDER draws elsewhere', run=fixed, **{'dtype': 'float32', k: other})

@pytest.mark.parametrize('k', ['weights', 'seed', 'dtype'])
def test_a_key_that_is_missing_is_different(fixed, k):
    "Drawings from before it was written down are not mixed with new ones."
    before = record(fixed)
    save_json(fixed/'drawing.json', {name: x for name, x in before.items() if name != k})
    one_line(f'{k}=unknown', run=fixed, dtype='float32')
    save_json(fixed/'drawing.json', before)

def test_drawings_of_which_nothing_is_said(run):
    cli.draw(run, limit=1, **FEW)
    (run/'drawing.json').unlink()
    one_line(run/'drawn', 'no drawing.json says how', run=run)

def test_what_is_written_down(run):
    from arldm.train.cache import data_digest
    from arldm.files.manifest import folder_digest
    from arldm.data.story import StoryFile
    cli.draw(run, limit=1, seed=3, dtype='float32', **FEW)
    assert record(run) == dict(weights=folder_digest(run/'pipeline'), stories=data_digest(StoryFile(run/'stories.h5')['test']),
        split='test', task='visualization', resolution=16, scheduler='dpm++', num_inference_steps=1, guidance_scale=1., seed=3, guidance_interval=[0., 1.],
        reuse=1, dtype='float32', data=str(run/'stories.h5'), data_relative='stories.h5', sets=1)

def test_sets(run):
    assert cli.draw(run, sets=2, limit=1, **FEW) == run/'drawn' and drawn(run, 'drawn2') == drawn(run)
    assert content(run/'drawn') != content(run/'drawn2') and record(run)['sets'] == 2
    cli.draw(run, limit=1, **FEW)
    assert record(run)['sets'] == 2                                             # two are there
    one_line('seeds must be between', run=run, seed=2**64 - 10, sets=2)

def test_two_ways_at_the_same_instant(run):
    "Exactly one wins."
    from processes import end, fork
    pipe = StoryPipeline.from_pretrained(run/'pipeline')
    start = time.time() + 1
    def work(seed):
        def open_pipeline(*_):
            time.sleep(max(0, start - time.time()))
            return pipe
        engine.open_pipeline = open_pipeline
        sys.argv = ['arldm-draw', str(run), '--num-inference-steps=1', '--guidance-scale=1', f'--seed={seed}']
        cli.draw()
    processes = [fork(lambda seed=seed: work(seed)) for seed in (1, 2)]
    ends = [end(*process) for process in processes]
    assert sorted(status for status, _ in ends) == [0, 1], ends
    winner = 1 if ends[0][0] == 0 else 2
    assert record(run)['seed'] == winner and f'made with seed={winner}, not {3 - winner}' in ends[2 - winner][1][0]
    calm = cli.draw(run, out=run.parent/'calm', seed=winner, **FEW)
    a = content(run/'drawn')
    b = content(calm)
    assert a.keys() == b.keys() and len(a) == 8
    for name in a:
        x, y = (np.asarray(Image.open(folder/name)).astype(int) for folder in (run/'drawn', calm))
        assert abs(x - y).max() <= 1


# moved

@pytest.mark.parametrize('move', [shutil.move, shutil.copytree])
def test_a_moved_run_goes_on(run, tmp_path, move):
    "Its data is found inside it; what is drawn stays."
    own_pipeline(run)
    cli.draw(run, limit=2, **FEW)
    before = content(run/'drawn')
    there = tmp_path/'elsewhere/new'
    there.parent.mkdir()
    move(run, there)
    if run.exists(): (run/'stories.h5').write_bytes(b'no more')
    cli.draw(there, **FEW)
    assert {**content(there/'drawn'), **before} == content(there/'drawn') and len(content(there/'drawn')) == 8
    assert record(there)['data'] == str(there/'stories.h5') and record(there)['data_relative'] == 'stories.h5'


# before any work

def test_a_pipeline_folder_is_not_drawn_into(models, run):
    "Its drawings need a folder of their own."
    model = shutil.copytree(models[0], run.parent/'model')
    data = run/'stories.h5'
    one_line('is in the pipeline folder', '--out FOLDER', run=model, data=data)
    one_line('is in the pipeline folder', run=model, data=data, out=model/'drawings')
    one_line('is in the pipeline folder', run=run, out=run/'pipeline')
    before = content(model)
    cli.draw(model, data=data, out=run.parent/'mine', limit=1, **FEW)
    assert content(model) == before and drawn(run.parent/'mine') == ['s0/1.png', 's0/2.png']

@pytest.mark.parametrize('options, said', [
    (dict(guidance_scale=float('nan')), 'guidance_scale'), (dict(guidance_scale=float('inf')), 'guidance_scale'), (dict(guidance_interval='0.8,0.2'), 'guidance_interval'),
    (dict(guidance_interval='nan,nan'), 'guidance_interval'), (dict(num_inference_steps=5000), 'between 1 and 999'), (dict(seed=2**64 - 2), 'seeds must be between'),
    (dict(seed=-2**64), 'seeds must be between'), (dict(limit=0), 'limit'), (dict(split='dev'), "no split 'dev'"), (dict(batch_size=0), 'batch_size'),
    (dict(data='missing.h5'), 'no such file'), (dict(given='a.png'), 'need --captions'), (dict(redraw='2'), 'need --captions'),
    (dict(out=''), '--out is empty'), (dict(out='/dev/null/x'), '/dev/null is not a folder')])
def test_a_refused_draw_leaves_nothing(fixed, options, said): one_line(said, run=fixed, **{'out': fixed.parent/'new', **options})

def test_a_model_that_cannot_draw_leaves_nothing(run):
    settings(run, resolution=20)
    one_line('multiples of 8', run=run)
    settings(run)
    own_pipeline(run)
    (run/'pipeline/unet/diffusion_pytorch_model.safetensors').unlink()
    one_line('expected a pipeline, but loading failed', run=run)

def test_weights_that_are_no_numbers(run, tmp_path):
    "No frame of them is ever written, neither of a split nor of an own story."
    from safetensors.torch import load_file, save_file
    own_pipeline(run)
    path = run/'pipeline/unet/diffusion_pytorch_model.safetensors'
    weights = load_file(path)
    save_file({k: w*float('nan') if k == 'conv_out.weight' else w for k, w in weights.items()}, path, {'format': 'pt'})
    (tmp_path/'story.txt').write_text('a red star\nit jumps\n')
    for options in {}, dict(captions=str(tmp_path/'story.txt')):
        with pytest.raises(StoryError, match='finite|NaN|nan'): cli.draw(run, **FEW, **options)
    assert not [*tmp_path.rglob('*.png')]

def test_dry_run_says_what_would_be_drawn(run, capsys):
    def said(): return [line.removesuffix(' of split test in float32; nothing was written') for line in capsys.readouterr().out.splitlines()]
    cli.draw(run, dry_run=True, limit=1)
    cli.draw(run, dry_run=True)
    cli.draw(run, dry_run=True, sets=3)
    assert said() == ['would draw 1 story', 'would draw 4 stories', 'would draw 12 stories']
    assert not (run/'drawn').exists() and not (run/'drawing.json').exists()
    few = dict(FEW, dtype='float32')
    cli.draw(run, limit=1, **few)
    capsys.readouterr()
    cli.draw(run, dry_run=True, sets=3, **few)
    cli.draw(run, dry_run=True, limit=1, **few)
    assert said() == ['would draw 11 stories', 'would draw 0 stories']

@pytest.mark.parametrize('name, value, said', [
    ('settings', [1], 'it must be an object, got [1]'), ('settings', dict(guidance_scale='two'), 'guidance_scale must be a number'),
    ('settings', dict(resolution='64'), 'resolution must be a whole number'), ('settings', dict(task=3), 'task must be text'),
    ('settings', dict(task='drawing'), "no task 'drawing'"), ('settings', dict(data=[1]), 'data must be text'),
    ('settings', dict(guidance_scale=None), 'guidance_scale must be a number'), ('drawing', [1], 'it must be an object'),
    ('drawing', dict(seed='0'), 'seed=0'), ('drawing', None, 'it must be an object, got null')])
def test_files_of_odd_shapes(fixed, name, value, said):
    "They are named, with the key."
    path = fixed/f'{name}.json'
    old = path.read_text()
    save_json(path, {**json.loads(old), **value} if isinstance(value, dict) else value)
    try: one_line(said, fixed if name == 'drawing' else path, run=fixed, dtype='float32')
    finally: path.write_text(old)


# precision

@pytest.mark.parametrize('name', ['avx512_bf16', 'amx_bf16', 'bf16'])
def test_bfloat16_units(monkeypatch, name):
    "Of any CPU; a name or a unit that is not there does not count."
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: {'avx2': True, name: True})
    assert has_bfloat16_units()
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: {'avx2': True, name: False, 'cpu_name': 'bf16'})
    assert not has_bfloat16_units()

def on(monkeypatch, device='cpu', units=True, channels=16):
    "From now on the machine seems to be such, and a UNet of so many channels is full-size; the tiny one has 16."
    monkeypatch.setattr(records, 'pick_device', lambda: torch.device(device))
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda: units)
    monkeypatch.setattr(records, 'has_bfloat16_units', lambda: units)
    monkeypatch.setattr(records, 'FULL_SIZE_CHANNELS', channels)

@pytest.mark.parametrize('device, units, channels, dtype', [
    ('cpu', True, 16, 'bfloat16'), ('cpu', True, 17, 'float32'), ('cpu', False, 16, 'float32'),
    ('cuda', True, 17, 'bfloat16'), ('cuda', False, 16, 'float32'), ('mps', True, 16, 'float32')])
def test_auto(models, monkeypatch, device, units, channels, dtype):
    "bfloat16 on a GPU that has it, and for full-size models on a CPU that has units for it."
    on(monkeypatch, device, units, channels)
    auto = records.SamplingSettings(dtype='auto')
    assert auto.with_dtype(models[0]).dtype == dtype
    for named in 'float32', 'bfloat16', 'float16':
        assert auto.with_dtype(models[0], dict(dtype=named)).dtype == named
        assert records.SamplingSettings(dtype=named).with_dtype(models[0], dict(dtype='float32')).dtype == named
    assert auto.with_dtype(models[0], dict(dtype='auto')).dtype == dtype

def test_auto_of_a_damaged_pipeline(tmp_path, monkeypatch):
    "Opening it says what is wrong, not this."
    on(monkeypatch)
    assert records.default_dtype(tmp_path) == 'float32'
    (tmp_path/'unet').mkdir()
    for text in '', '{}', '{"block_out_channels": []}':
        (tmp_path/'unet/config.json').write_text(text)
        assert records.default_dtype(tmp_path) == 'float32'

@pytest.mark.parametrize('begun', ['float32', 'bfloat16'])
def test_a_folder_keeps_its_precision(run, monkeypatch, capsys, begun):
    "Also on a machine that would begin in another one; the precision is said and written down."
    on(monkeypatch, units=begun == 'bfloat16')
    cli.draw(run, limit=1, **FEW)
    on(monkeypatch, units=begun != 'bfloat16')
    capsys.readouterr()
    cli.draw(run, limit=3, dry_run=True, **FEW)
    assert capsys.readouterr().out == f'would draw 2 stories of split test in {begun}; nothing was written\n'
    pipes = []
    opened = engine.open_pipeline
    monkeypatch.setattr(engine, 'open_pipeline', lambda *args: pipes.append(opened(*args)) or pipes[-1])
    cli.draw(run, limit=3, **FEW)
    assert record(run)['dtype'] == begun and pipes[0].unet.dtype == getattr(torch, begun) and len(drawn(run)) == 6
    other = 'float32' if begun == 'bfloat16' else 'bfloat16'
    one_line(f'{run} was made with dtype={begun}, not {other}; --out ANOTHER_FOLDER draws elsewhere', run=run, dtype=other)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_order_of_weights(run, monkeypatch, dtype):
    "Full-size models have channels-last weights on a CPU."
    own_pipeline(run)
    for channels, is_full_size in (17, False), (16, True):
        on(monkeypatch, channels=channels)
        pipe = records.open_pipeline(run, records.SamplingSettings(dtype=dtype))
        assert {has_channels_last(part.conv_in.weight) for part in (pipe.unet, pipe.vae.encoder, pipe.vae.decoder)} == {is_full_size}


# which pipeline

def test_a_pipeline_that_a_kill_left_aside(run, tmp_path):
    "It is put back before anybody says that there is none."
    own_pipeline(run)
    from arldm.files.manifest import write_manifest
    write_manifest(run/'pipeline', dict(step=4))
    def draw(): cli.draw(run, limit=1, **FEW)
    def load(): StoryPipeline.from_pretrained(run)
    for k, use in enumerate((draw, load)):
        (run/'pipeline').rename(run/f'.pipeline-old-{k}2345678')
        use()
        assert (run/'pipeline/model_index.json').is_file() and not [*run.glob('.pipeline-old-*')]

def test_a_newer_checkpoint_is_named(run):
    "Nothing is refused: the older pipeline is a good one."
    from arldm.files.manifest import write_manifest
    own_pipeline(run)
    write_manifest(run/'pipeline', dict(step=4))
    (run/'checkpoints').mkdir()
    for name in '000004.pt', 'best-000009.pt', '000006.pt.part': (run/'checkpoints'/name).write_bytes(b'')
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        cli.draw(run, limit=1, **FEW)
    (run/'checkpoints/000006.pt').write_bytes(b'')
    with pytest.warns(UserWarning, match=f'is that of step 4, the newest checkpoint is of step 6; arldm-train {run}'):
        cli.draw(run, limit=2, **FEW)
    assert len(drawn(run)) == 4

def test_home(run, monkeypatch):
    own_pipeline(run)
    monkeypatch.setenv('HOME', str(run.parent))
    assert isinstance(StoryPipeline.from_pretrained('~/run'), StoryPipeline)
    assert isinstance(StoryPipeline.from_pretrained('~/run/pipeline'), StoryPipeline)


# several processes

def test_variables_that_somebody_left(run, monkeypatch, capsys):
    "The share is drawn and said, before and after; without them, all."
    for k, x in dict(RANK='1', WORLD_SIZE='2').items(): monkeypatch.setenv(k, x)
    with pytest.warns(UserWarning, match='draws of 4 stories only 2, 4: .*RANK=1 and WORLD_SIZE=2.*unset both to draw all'):
        cli.draw(run, **FEW)
    assert drawn(run) == ['s1/1.png', 's1/2.png', 's3/1.png', 's3/2.png']
    assert capsys.readouterr().out == f'{run}: 2 of 4 stories drawn\n'
    for k in 'RANK', 'WORLD_SIZE': monkeypatch.delenv(k)
    cli.draw(run, **FEW)
    assert len(drawn(run)) == 8

@pytest.mark.parametrize('rank, size, said', [('abc', '2', 'RANK='), ('2', '2', 'expected a rank below'), ('0', '-1', 'WORLD_SIZE')])
def test_variables_that_make_no_sense(fixed, monkeypatch, rank, size, said):
    monkeypatch.setenv('RANK', rank)
    monkeypatch.setenv('WORLD_SIZE', size)
    one_line(said, run=fixed, dtype='float32')

def test_a_story_that_another_command_has_just_drawn(run, monkeypatch):
    "It is left as it is."
    from arldm.draw import test_set as gallery
    made = gallery.make_plan
    def meanwhile(texts, given, **options):
        if texts[0] == 'a red star 0':
            (run/'drawn/s0').mkdir(parents=True)
            Image.new('RGB', (16, 16)).save(run/'drawn/s0/1.png')
        return made(texts, given, **options)
    monkeypatch.setattr(gallery, 'make_plan', meanwhile)
    cli.draw(run, **FEW)
    assert len(drawn(run)) == 7 and not np.asarray(Image.open(run/'drawn/s0/1.png')).any()

def test_a_copied_run_draws_the_stories_that_it_was_trained_on(run, tmp_path):
    "Even if another story file lies beside it, where its own lay."
    from arldm.train.cache import data_digest
    from arldm.data.story import StoryFile, write_stories
    own_pipeline(run)
    def stories_at(folder, *texts):
        folder.mkdir(exist_ok=True)
        stories = [story(i, t) for i, t in enumerate(texts)]
        write_stories(folder/'toy.h5', dict(train=stories, test=stories), 'toy')
        return folder/'toy.h5'
    mine = stories_at(tmp_path/'a', 'a red star')
    stories_at(tmp_path/'b', 'a green ball')
    settings(run, data=str(mine), data_relative='../toy.h5', stories=data_digest(StoryFile(mine)['train']))
    for folder in 'a', 'b': shutil.copytree(run, tmp_path/folder/'run')
    for folder in 'a', 'b':
        cli.draw(tmp_path/folder/'run', **FEW)
        assert record(tmp_path/folder/'run')['data'] == str(mine)
    mine.unlink()
    one_line('b/toy.h5 does not hold the stories that', 'name the file to draw: --data', run=tmp_path/'b/run')
