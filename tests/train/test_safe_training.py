"Training deletes, replaces and takes for granted only what it made and compared; what cannot work is said before step 1."
import json, math, os, re, shutil, signal, sys, warnings, zipfile
from pathlib import Path

import pytest, torch
from safetensors.torch import load_file, save_file

from arldm import settings
from arldm.train import setup as begin
from arldm.train import cache
from arldm.cli import port as home
from arldm.cli import porting
from arldm.train import optim as optimise
from arldm.model import port
from arldm.cli import training_run as runs
from arldm.train import checkpoint as survive
from arldm.toy import corpus as toy
from arldm.train import loop as training
from arldm.cli.convert import convert
from arldm.core import StoryError
from arldm.data.dataset import StoryDataset, Vocabulary, collate, to_memory, word_tokenizers
from arldm.draw.pipeline import StoryPipeline
from arldm.model.arldm import ARLDM
from arldm.cli.train import train
from arldm.settings import FREEZE, resolve
from arldm.data.story import Story, StoryFile, write_stories
from arldm.train.checkpoint import (Log, Trained, load_checkpoint, read_log, save_checkpoint,
                                    stop_signals)

HOW = dict(preset='tiny', resolution=16, train_batch_size=2, max_train_steps=2, checkpointing_steps=2, num_validation_stories=1, learning_rate=3e-3)
UNET = 'unet/diffusion_pytorch_model.safetensors'

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    toy.write_toy(folder/'raw', (6, 1, 1), progress=False)
    convert('toy', folder/'raw', folder/'stories.h5', quiet=True)
    return folder/'stories.h5'

@pytest.fixture(scope='module')
def finished(data, tmp_path_factory):
    run = tmp_path_factory.mktemp('finished')/'run'
    train(run, data=data, **HOW)
    return run

@pytest.fixture
def run(finished, tmp_path): return shutil.copytree(finished, tmp_path/'run')

@pytest.fixture(scope='module')
def model(tmp_path_factory):
    vocab = Vocabulary(*word_tokenizers(['ada jumps'], tmp_path_factory.mktemp('words')), length=6)
    torch.manual_seed(0)
    return ARLDM.create('tiny', vocab, resolution=16)

def files(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob('*') if p.is_file()}

def one_line(f, *said):
    "A `StoryError` of one line that says all this, and advises nobody to delete anything."
    with pytest.raises(StoryError) as e: f()
    assert '\n' not in str(e.value) and all(x in str(e.value) for x in said), str(e.value)
    assert not re.search('remove|delete', str(e.value))
    return str(e.value)

def averages(run): return torch.load(max((run/'checkpoints').glob('*.pt')), weights_only=True)['ema']['shadow_params']

def is_of(run): # whether the pipeline holds the averaged weights of the newest checkpoint
    trained = [p for k, p in ARLDM.load(run/'pipeline').named_parameters() if not k.startswith('vae.')]
    theirs = averages(run)
    return len(trained) == len(theirs) and all(map(torch.equal, trained, theirs))


# the pipeline of a run

def test_killed_between_checkpoint_and_pipeline(run, monkeypatch):
    "A run that went on and was killed before its pipeline was written makes it when it is called again."
    def killed(*_): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(runs, '_write_model', killed)
        with pytest.raises(KeyboardInterrupt): train(run, max_train_steps=3)
    assert (run/'checkpoints/000003.pt').exists() and not is_of(run)
    train(run, max_train_steps=3)
    assert is_of(run)
    before = files(run)
    train(run)
    assert files(run) == before

def test_same_step_other_weights(run):
    "The same number of steps is not the same weights."
    path = run/'checkpoints/000002.pt'
    state = torch.load(path, weights_only=True)
    for p in state['ema']['shadow_params']: p += 1
    torch.save(state, path)
    assert not is_of(run)
    train(run)
    assert is_of(run)

@pytest.mark.parametrize('lost', ['model_index.json', UNET])
def test_a_lost_file_of_the_pipeline_comes_back(run, lost):
    before = (run/'pipeline'/lost).read_bytes()
    (run/'pipeline'/lost).unlink()
    train(run)
    assert (run/'pipeline'/lost).read_bytes() == before and is_of(run)

def test_somebodys_pipeline_is_not_replaced(run):
    "A changed or an added file is refused before any step, and stays."
    (run/'pipeline/notes.txt').write_text('mine')
    assert train(run) == run/'pipeline'
    before = files(run)
    for how in dict(max_train_steps=3), dict(max_train_steps=3, dry_run=True):
        one_line(lambda: train(run, **how), 'pipeline/notes.txt', 'move')
    assert files(run) == before
    (run/'pipeline/notes.txt').unlink()
    (run/'pipeline/model_index.json').write_text('{}')
    one_line(lambda: train(run), 'pipeline/model_index.json', 'move')
    (run/'pipeline').rename(run.parent/'mine')
    train(run)
    assert is_of(run)

def test_a_failed_replacement_loses_nothing(run, monkeypatch):
    "The old pipeline is there after a failure, and the next start makes the new one."
    before, real = files(run/'pipeline'), os.rename
    def rename(a, b):
        if Path(b).name == 'pipeline' and '-old-' not in str(a): raise OSError(16, 'Device or resource busy')
        real(a, b)
    with monkeypatch.context() as m:
        m.setattr(os, 'rename', rename)
        with pytest.raises(OSError): train(run, max_train_steps=3)
    assert files(run/'pipeline') == before
    train(run, max_train_steps=3)
    assert is_of(run) and not [p for p in run.iterdir() if p.name.startswith('.pipeline')]

def test_advice_destroys_nothing():
    "No message of these chapters tells anybody to delete something."
    for module in begin, cache, home, porting, port, runs, settings, survive, training:
        assert not re.search(r'(remove|delete) (it|them)\b', Path(module.__file__).read_text(encoding='utf-8')), module


# what stands in the way

@pytest.mark.parametrize('name', ['log.csv', 'checkpoints/best.pt', 'pipeline/model.bin', 'strips/a.png', 'tensorboard/x'])
def test_a_new_run_beside_somebodys_files(data, tmp_path, name):
    path = tmp_path/'run'/name
    path.parent.mkdir(parents=True)
    path.write_text('mine')
    for how in {}, dict(dry_run=True): one_line(lambda: train(tmp_path/'run', data=data, **HOW, **how), 'settings.json')
    assert files(tmp_path) == {f'run/{name}': b'mine'}

def test_own_names_in_checkpoints_are_left_alone(model, tmp_path):
    "Only `<step>.pt` is read, counted and removed; what is no whole checkpoint is set aside."
    parts = dict(model=torch.nn.Linear(1, 1))
    for name in '000004-good.pt', '7.pt', '0000005.pt', 'best.pt': (tmp_path/name).write_bytes(b'mine')
    for step in 1, 2, 3: save_checkpoint(tmp_path, step, parts)
    (tmp_path/'000009.pt').write_bytes(b'mine too')
    with pytest.warns(UserWarning, match='000009.pt is damaged'): assert load_checkpoint(tmp_path, parts) == 3
    for step in 4, 9: save_checkpoint(tmp_path, step, parts)
    assert load_checkpoint(tmp_path, parts) == 9
    kept = files(tmp_path)
    assert [kept[n] for n in ('000004-good.pt', '7.pt', '0000005.pt', 'best.pt')] == [b'mine']*4
    assert b'mine too' in kept.values() and {'000004.pt', '000009.pt'} <= kept.keys() and '000003.pt' not in kept

def test_somebodys_log_is_not_rewritten(run):
    (run/'log.csv').write_text('step,mood\n1,good\n')
    one_line(lambda: train(run, max_train_steps=3), 'log.csv', "'mood'", 'move it away')
    one_line(lambda: Log(run/'log.csv', 1), 'log.csv')
    assert (run/'log.csv').read_text() == 'step,mood\n1,good\n'

def test_a_cache_takes_nobodys_file(finished, data, model, tmp_path):
    stories = StoryDataset(StoryFile(data)['train'], model.vocab, 16, 32, train=True, crops=1)
    frozen = model.freeze(FREEZE['attention'])
    (tmp_path/'null.safetensors').write_bytes(b'mine')
    one_line(lambda: cache.build_cache(frozen, stories, tmp_path), 'null.safetensors', 'another folder')
    assert files(tmp_path) == {'null.safetensors': b'mine'}
    cache.build_cache(frozen, stories, tmp_path/'new', progress=False)
    heads = frozen.text_encoder.config.num_attention_heads
    frozen.text_encoder.config.num_attention_heads = 2
    try: one_line(lambda: cache.build_cache(frozen, stories, tmp_path/'new'), 'weights', 'another folder')
    finally: frozen.text_encoder.config.num_attention_heads = heads
    for text, key in ('[1]', 'object'), ('{"weights": 3, "precision": "float32"}', 'weights'), ('{}', 'weights'):
        (tmp_path/'new/cache.json').write_text(text)
        one_line(lambda: cache.build_cache(frozen, stories, tmp_path/'new'), 'cache.json', key)
    model.freeze()


# a run that was moved

def test_moved_together_with_its_data(data, tmp_path):
    "Run and story file in one folder that is renamed: the run goes on, and computes what it would have computed."
    (tmp_path/'here').mkdir()
    shutil.copy(data, tmp_path/'here/stories.h5')
    train(tmp_path/'here/run', data=tmp_path/'here/stories.h5', **HOW)
    shutil.copytree(tmp_path/'here', tmp_path/'copy')
    train(tmp_path/'copy/run', max_train_steps=3)
    (tmp_path/'here').rename(tmp_path/'there')
    train(tmp_path/'there/run', max_train_steps=3)
    def losses(run): return [r['loss'] for r in read_log(run/'log.csv')]
    assert losses(tmp_path/'there/run') == losses(tmp_path/'copy/run') and len(losses(tmp_path/'there/run')) == 3
    assert averages(tmp_path/'there/run')[0].equal(averages(tmp_path/'copy/run')[0])
    shutil.rmtree(tmp_path/'copy')
    (tmp_path/'there/stories.h5').rename(tmp_path/'elsewhere.h5')
    one_line(lambda: train(tmp_path/'there/run', max_train_steps=4), '--data', 'stories.h5')
    assert train(tmp_path/'there/run', data=tmp_path/'elsewhere.h5')

def test_paths_of_the_start_are_found_again(finished, data, tmp_path, monkeypatch):
    "A relative --model means the same from another working folder, and after both were moved."
    shutil.copytree(finished/'pipeline', tmp_path/'a/base')
    monkeypatch.chdir(tmp_path/'a')
    train('run', data=data, model='base', **HOW)
    monkeypatch.chdir(tmp_path)
    (tmp_path/'a').rename(tmp_path/'b')
    train('b/run', max_train_steps=3)
    assert len(read_log(tmp_path/'b/run/log.csv')) == 3
    assert json.loads((tmp_path/'b/run/settings.json').read_text())['model'] == 'base'

@pytest.mark.parametrize('what', ['weight', 'heads', 'words'])
def test_goes_on_only_with_the_model_it_began_with(model, tmp_path, what):
    "One number among thousands of frozen ones, a configuration, a vocabulary: each is noticed."
    parts = {'model': Trained(model.freeze(FREEZE['ssid-baseline']))}
    save_checkpoint(tmp_path, 1, parts)
    assert load_checkpoint(tmp_path, {'model': Trained(model)}) == 1
    frozen = next(p for k, p in model.named_parameters() if k.startswith('vae.') and p.numel() > 600)
    config, vocab = model.text_encoder.config, model.vocab
    with torch.no_grad(): frozen.view(-1)[1] += float(what == 'weight')
    if what == 'heads': config.num_attention_heads = 2
    if what == 'words': model.vocab = Vocabulary(*word_tokenizers(['ada sleeps'], tmp_path/'words'), length=6)
    try: one_line(lambda: load_checkpoint(tmp_path, {'model': Trained(model)}), '000001.pt', 'the frozen weights')
    finally:
        with torch.no_grad(): frozen.view(-1)[1] -= float(what == 'weight')
        config.num_attention_heads, model.vocab = 4, vocab
        model.freeze()


# numbers that are none

def spoil(path, value=math.nan):
    state = load_file(path)
    name = sorted(k for k, v in state.items() if v.numel() > 1)[0]
    state[name].view(-1)[-1] = value
    save_file(state, path, {'format': 'pt'})
    return name

@pytest.mark.parametrize('value', [math.nan, -math.inf])
def test_a_pipeline_of_nan(run, value):
    name = spoil(run/'pipeline'/UNET, value)
    for load in ARLDM.load, StoryPipeline.from_pretrained: one_line(lambda: load(run), str(run/'pipeline/unet'), name, 'NaN')

def test_base_weights_of_nan(model, tmp_path):
    from arldm.model.pretrained import _part
    model.vae.save_pretrained(tmp_path/'sd/vae')
    name = spoil(tmp_path/'sd/vae/diffusion_pytorch_model.safetensors')
    one_line(lambda: _part(type(model.vae), tmp_path/'sd', 'vae'), 'vae', name, 'NaN')

def test_an_original_checkpoint_of_nan(model):
    state = model.to_original()
    state['unet.conv_in.weight'] = state['unet.conv_in.weight']*math.nan
    one_line(lambda: model.load_original(state), 'unet.conv_in.weight', 'NaN')

def test_a_checkpoint_of_nan(tmp_path):
    "It is not written; and where one was, the one before it is used."
    net = torch.nn.Linear(2, 2)
    for step in 1, 2: save_checkpoint(tmp_path, step, dict(model=net))
    state = torch.load(tmp_path/'000002.pt', weights_only=True)
    state['model']['weight'][0, 0] = math.nan
    torch.save(state, tmp_path/'000002.pt')
    with pytest.warns(UserWarning, match='000002.pt is damaged .*model.weight holds NaN'):
        assert load_checkpoint(tmp_path, dict(model=net)) == 1
    with torch.no_grad(): net.bias[0] = math.inf
    one_line(lambda: save_checkpoint(tmp_path, 3, dict(model=net)), 'after step 3', 'last good checkpoint')
    assert not (tmp_path/'000003.pt').exists()


# files of the wrong shape

def test_settings_of_the_wrong_shape(run):
    good = json.loads((run/'settings.json').read_text())
    for key, value in dict(max_train_steps='4', freeze=[3], learning_rate='x', data=5, pack_context=1, corpus=None, processes='2').items():
        (run/'settings.json').write_text(json.dumps({**good, key: value}))
        one_line(lambda: train(run), 'settings.json', key)
    (run/'settings.json').write_text('[1]')
    one_line(lambda: train(run), 'settings.json', 'an object')
    (run/'settings.json').write_text(json.dumps({**good, 'guidance_scale': math.nan}))           # of an earlier version
    one_line(lambda: train(run), 'guidance_scale')
    train(run, guidance_scale=3.)
    assert json.loads((run/'settings.json').read_text())['max_train_steps'] == 2

BAD = dict(list=[1], nothing={}, no_step=dict(model={}), text=dict(step='2', model={}), other=dict(step=7, model={}),
           no_model=dict(step=2), odd_model=dict(step=2, model=3))

@pytest.mark.parametrize('name', BAD)
def test_checkpoints_of_the_wrong_shape(tmp_path, name):
    parts = dict(model=torch.nn.Linear(1, 1))
    save_checkpoint(tmp_path, 1, parts)
    torch.save(BAD[name], tmp_path/'000002.pt')
    with pytest.warns(UserWarning, match='000002.pt is damaged'): assert load_checkpoint(tmp_path, parts) == 1
    (tmp_path/'000001.pt').unlink()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        one_line(lambda: load_checkpoint(tmp_path, parts), 'none of 1 checkpoint can be read;', 'move')

def test_a_log_with_odd_bytes(tmp_path):
    (tmp_path/'log.csv').write_bytes(b'step,loss\n1,.5\n2,\xff\0\n\xff,1\n3,.25\n')
    rows = read_log(tmp_path/'log.csv')
    assert [r['step'] for r in rows] == [1, 2, 3] and rows[2]['loss'] == .25 and math.isnan(rows[1]['loss'])
    assert all(math.isnan(r['val_loss']) for r in rows)

def test_files_that_unpack_to_more_than_they_are(tmp_path):
    with zipfile.ZipFile(tmp_path/'000002.pt', 'w', zipfile.ZIP_DEFLATED) as z:
        z.writestr('archive/data.pkl', bytes(20 << 20))
        z.writestr('archive/version', '3')
    one_line(lambda: port.read_weights(tmp_path/'000002.pt'), '000002.pt', 'unpacks to 20,971,521 bytes')
    parts = dict(model=torch.nn.Linear(1, 1))
    save_checkpoint(tmp_path, 1, parts)
    with pytest.warns(UserWarning, match='unpacks to 20,971,521 bytes'): assert load_checkpoint(tmp_path, parts) == 1


# settings

@pytest.mark.parametrize('how', [dict(guidance_scale=0.), dict(guidance_scale=math.nan), dict(guidance_scale=math.inf), dict(learning_rate=math.inf),
    dict(adam_weight_decay=math.inf), dict(max_grad_norm=math.inf), dict(timestep_bias_power=math.inf), dict(noise_offset=math.nan),
    dict(resolution=10**9), dict(crops=10**9)], ids=str)
def test_numbers_that_no_run_can_have(how): one_line(lambda: resolve('tiny', **how), *how)

def test_rates_are_made_as_they_are_needed():
    for schedule in settings.CHOICES['lr_scheduler']:
        few, many = (resolve('tiny', lr_scheduler=schedule, lr_warmup_steps=5, max_train_steps=n) for n in (40, 10**15))
        assert list(optimise.each_rate(few)) == optimise.learning_rates(few) and len(optimise.learning_rates(few)) == 40
        assert math.isfinite(next(optimise.each_rate(many)))

def test_a_billion_steps(finished, data, tmp_path):
    from arldm.train.optim import each_rate                                    # without it a list of a billion is made
    s = resolve('tiny', resolution=16, train_batch_size=1, max_train_steps=10**9)
    file, net = StoryFile(data), begin.make_model(s, StoryFile(data), tmp_path)
    records = training.train_steps(net, StoryDataset(file['train'], net.vocab, 16, 32, train=True), s)
    assert next(records)['lr'] == next(each_rate(s))
    records.close()


# before the first step

def stories_of(data, path, lengths, val=5):
    "A story file of stories of these lengths."
    file = StoryFile(data)
    def cut(s, n, i): return Story(f's{i}', s.album, s.captions[:n], s.frames[:n])
    trained = [cut(file['train'][i], n, i) for i, n in enumerate(lengths)]
    write_stories(path, dict(train=trained, val=[cut(file['val'][0], n, 90 + i) for i, n in enumerate((val, 5))]), 'toy')
    return path

def test_stories_of_several_lengths(data, tmp_path):
    "They train together, and validate; one that is too short for its task is named."
    path = stories_of(data, tmp_path/'odd.h5', (5, 5, 4, 5), val=3)
    train(tmp_path/'run', data=path, **dict(HOW, train_batch_size=2, max_train_steps=4, checkpointing_steps=4, num_validation_stories=2))
    log = read_log(tmp_path/'run/log.csv')
    assert len(log) == 4 and all(math.isfinite(r['loss']) for r in log) and math.isfinite(log[-1]['val_loss'])
    long = stories_of(data, tmp_path/'one.h5', (5, 1))
    one_line(lambda: train(tmp_path/'two', data=long, **dict(HOW, train_batch_size=1, task='continuation')), 'story s1', '1 frame')

def test_validation_of_several_lengths(data, model, tmp_path):
    "The loss is the mean of those of the stories alone."
    path = stories_of(data, tmp_path/'odd.h5', (5, 4, 4, 3))
    stories = StoryDataset(StoryFile(path)['train'], model.vocab, 16, 32)
    s = resolve('tiny', resolution=16, train_batch_size=3, num_validation_stories=4)
    total, n = training.validation_loss(model.eval(), stories, s)
    one = training.validation_loss(model, stories, resolve('tiny', resolution=16, train_batch_size=1, num_validation_stories=4))
    assert n == 4 and total.item() == pytest.approx(one[0].item(), rel=1e-5)

def test_stories_of_one_frame(data, model, tmp_path):
    "They train, from pictures and from a cache alike; such a frame has the condition of a first frame."
    file = StoryFile(stories_of(data, tmp_path/'one.h5', (1,)*4, val=1))
    model.freeze(FREEZE['attention']).eval()
    short, five = (StoryDataset(StoryFile(p)['train'], model.vocab, 16, 32, train=True, crops=1) for p in (file.path, data))
    a, b = collate([short[0]]), collate([five[0]])
    with torch.no_grad():
        (x, sees), (y, seen) = (model.condition({k: v for k, v in c.items() if k.endswith(('ids', 'real'))},
                                                to_memory(c['memory'][:, :-1])) for c in (a, b))
    S = model.vocab.length
    assert torch.equal(x, y[:1, :S]) and torch.equal(sees, seen[:1, :S]) and not seen[0, S:].any()
    known = cache.build_cache(model, short, tmp_path/'cache', progress=False)
    losses = [model.loss(collate([source[i] for i in range(4)]), torch.Generator().manual_seed(1), cond_dropout=.5).item()
              for source in (short, known)]
    assert math.isfinite(losses[0]) and losses[1] == pytest.approx(losses[0], rel=1e-5)
    model.freeze()
    train(tmp_path/'run', data=file.path, **dict(HOW, crops=1))
    assert all(math.isfinite(r['loss']) for r in read_log(tmp_path/'run/log.csv'))

@pytest.mark.parametrize('how,said', [(dict(workers=-1), 'workers'), (dict(resolution=20), 'resolution must be'),
    (dict(model='nowhere'), "'nowhere'"), (dict(optimizer='adamw8bit'), 'bitsandbytes'),
    (dict(mixed_precision='fp16'), 'fp16')], ids=str)
def test_a_dry_run_says_what_the_run_says(data, tmp_path, monkeypatch, how, said):
    for name in 'bitsandbytes', 'bitsandbytes.optim': monkeypatch.setitem(sys.modules, name, None)
    if 'mixed_precision' in how and torch.cuda.is_available(): pytest.skip('there is a GPU')
    lines = {one_line(lambda: train(tmp_path/'run', data=data, **{**HOW, **how}, dry_run=dry), said) for dry in (True, False)}
    assert len(lines) == 1 and not [*tmp_path.iterdir()]

def test_places_that_cannot_be(data, tmp_path):
    (tmp_path/'file').write_text('mine')
    (tmp_path/'dangling').symlink_to(tmp_path/'nowhere')
    for dry in True, False:
        one_line(lambda: train(tmp_path/'file/run', data=data, **HOW, dry_run=dry), 'is a file, not a folder')
        one_line(lambda: train(tmp_path/'lat\udcff', data=data, **HOW, dry_run=dry), 'not UTF-8')
        for out, said in ('file/x', 'is a file'), ('dangling', 'is there already'):
            one_line(lambda: home.port(data, tmp_path/out, dry_run=dry), said)
    assert files(tmp_path) == {'file': b'mine'}

def test_an_id_that_no_file_can_have(data, tmp_path):
    "Its strip has a name of its own, in strips/."
    file = StoryFile(data)
    trained = [file['train'][i] for i in range(4)]
    val = Story('../../out', 'x', file['val'][0].captions, file['val'][0].frames)
    write_stories(tmp_path/'odd.h5', dict(train=trained, val=[val]), 'toy')
    train(tmp_path/'run', data=tmp_path/'odd.h5', **HOW)
    assert [p.name for p in (tmp_path/'run/strips').iterdir()] == ['000002-story 1.png']
    assert {p.name for p in tmp_path.iterdir()} == {'odd.h5', 'run'}


# processes and signals

def test_a_file_system_without_locks(run, monkeypatch):
    fcntl = pytest.importorskip('fcntl')
    def lockf(*_): raise OSError(38, 'Function not implemented')
    monkeypatch.setattr(fcntl, 'lockf', lockf)
    with pytest.warns(UserWarning, match='without locks'): train(run, max_train_steps=3)
    assert is_of(run)

@pytest.mark.parametrize('environment,said', [(dict(RANK='abc'), "RANK='abc'"), (dict(WORLD_SIZE='-2'), 'WORLD_SIZE'),
    (dict(RANK='1', WORLD_SIZE='2'), 'torchrun'), (dict(RANK='3', WORLD_SIZE='2'), 'RANK=3')], ids=str)
def test_left_over_ranks(data, tmp_path, monkeypatch, environment, said):
    "A process that nobody started as one of several does not train as if it were."
    for name, value in environment.items(): monkeypatch.setenv(name, value)
    one_line(lambda: train(tmp_path/'run', data=data, **HOW), said, 'unset')
    assert not (tmp_path/'run').exists()

@pytest.mark.skipif(not hasattr(signal, 'SIGHUP'), reason='there is no SIGHUP here')
def test_a_closed_terminal():
    "SIGHUP asks to stop; ignored, as under nohup, it stays so."
    heard = []
    before = signal.signal(signal.SIGHUP, lambda *_: heard.append(1))
    try:
        with stop_signals() as asked: os.kill(os.getpid(), signal.SIGHUP)
        assert asked == ['SIGHUP'] and not heard
        os.kill(os.getpid(), signal.SIGHUP)
        assert heard
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with stop_signals() as asked: os.kill(os.getpid(), signal.SIGHUP)
        assert not asked and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally: signal.signal(signal.SIGHUP, before)

@pytest.mark.parametrize('name, value', [('ACCELERATE_GRADIENT_ACCUMULATION_STEPS', '4'), ('ACCELERATE_DYNAMO_BACKEND', 'INDUCTOR'),
    ('ACCELERATE_USE_DEEPSPEED', 'true')])
def test_left_over_variables_of_accelerate(monkeypatch, name, value):
    "They would change the gradients, or the time of a step, without a word."
    from arldm.settings import resolve
    from arldm.train.loop import accelerator
    monkeypatch.setenv(name, value)
    with pytest.raises(StoryError, match=f'{name} is set to .*, which would change the training; unset {name}'): accelerator(resolve('tiny'))
