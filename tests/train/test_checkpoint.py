"A run that is killed, stopped, damaged or split over processes computes what an undisturbed one does."
import math, os, random, resource, shutil, signal, subprocess, sys, time
from pathlib import Path

import pytest, torch

from arldm.toy import corpus as toy
from arldm.train import loop as training
from arldm.train.setup import make_model
from arldm.cli.convert import convert
from arldm.core import StoryError
from arldm.data.dataset import StoryDataset
from arldm.train.optim import make_ema
from arldm.cli.train import train
from arldm.settings import resolve
from arldm.data.story import StoryFile
from arldm.train.checkpoint import load_checkpoint, read_log, save_checkpoint
from elsewhere import PYTHONPATH
from processes import end, family, fork, kill

SOAK = bool(os.environ.get('ARLDM_SOAK'))
KILLS, LONG = (20, dict(max_train_steps=80, checkpointing_steps=5)) if SOAK else (1, {})   # kill -9, and the run that survives it
HOW = dict(preset='tiny', max_train_steps=8, checkpointing_steps=2, learning_rate=3e-3)
CODE = 'from arldm.cli.train import train; train()'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    toy.write_toy(folder/'raw', (6, 1, 1), progress=False)
    convert('toy', folder/'raw', folder/'stories.h5', quiet=True)
    return folder/'stories.h5'

@pytest.fixture(scope='module')
def whole(data, tmp_path_factory):
    "The undisturbed run, four stories a step."
    run = tmp_path_factory.mktemp('whole')/'run'
    train(run, data=data, train_batch_size=4, **HOW)
    return run

def start(run, data, processes=1, parts=1, batch=4, **how):
    "The same as a command, in processes of its own."
    how = dict(HOW, data=data, train_batch_size=batch//processes//parts, gradient_accumulation_steps=parts, **how)
    words = [f'--{k.replace("_", "-")}={v}' for k, v in how.items()]
    (run.parent/'train.py').write_text(CODE)
    many = ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={processes}'] if processes > 1 else []
    env = {**os.environ, 'PYTHONPATH': PYTHONPATH, 'TQDM_DISABLE': '1', 'OMP_NUM_THREADS': '1'}
    return subprocess.Popen([sys.executable, *many, run.parent/'train.py', run, *words], text=True, env=env,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

def losses(run): return [r['loss'] for r in read_log(run/'log.csv')]
def last(run): return torch.load(max((run/'checkpoints').glob('*.pt')), weights_only=True)['model']
def differ(a, b): return [k for k in a.keys() | b.keys() if not torch.equal(a[k], b[k])]

def steps_of(run): return len(losses(run)) if (run/'log.csv').exists() else 0
def wait_for_step(process, run, step): # whether it got there before it ended
    while process.poll() is None and steps_of(run) < step: time.sleep(.01)
    return process.poll() is None


@pytest.mark.skipif(not os.environ.get('ARLDM_SOAK'), reason='a long form: ARLDM_SOAK=1')
def test_two_processes_equal_one(whole, data, tmp_path):
    run = tmp_path/'run'
    said, _ = (p := start(run, data, processes=2)).communicate(timeout=300)
    assert p.returncode == 0, said
    assert losses(run) == pytest.approx(losses(whole), rel=1e-5)
    a, b = last(run), last(whole)
    assert all(torch.allclose(a[k].float(), b[k].float(), atol=1e-4) for k in a)

@pytest.mark.skipif(not os.environ.get('ARLDM_SOAK'), reason='a long form: ARLDM_SOAK=1')
def test_two_processes_with_all_savings_equal_one(data, tmp_path):
    "Two processes, a cache that both build, two parts a step, computed twice: the losses of a plain one."
    how = dict(crops=2, freeze='attention', resolution=32)     # at 16 the UNet's inmost maps are one pixel, and rounding grows
    p = start(tmp_path/'run', data, processes=2, parts=2, gradient_checkpointing=True, **how)
    said, _ = p.communicate(timeout=300)
    assert p.returncode == 0 and (tmp_path/'run/cache/slots-00000.safetensors').exists(), said
    s, file = resolve(**HOW, train_batch_size=4, **how), StoryFile(data)
    net = make_model(s, file, tmp_path/'words').freeze(s.freeze)
    def stories(split, **how): return StoryDataset(file[split], net.vocab, s.resolution, net.memory_side, **how)
    records = [*training.train_steps(net, stories('train', train=True, crops=2), s, None, make_ema(net, s), stories('val'))]
    kept = read_log(tmp_path/'run/log.csv')
    for name in 'loss', 'lr', 'grad_norm', 'val_loss':
        assert [r[name] for r in kept] == pytest.approx([r[name] for r in records], rel=1e-5, nan_ok=True), name
    assert [r['lr'] for r in kept] == [r['lr'] for r in records]

@pytest.mark.skipif(not Path('/proc/self/task').is_dir(), reason='who started whom is read from /proc')
@pytest.mark.skipif(not os.environ.get('ARLDM_SOAK'), reason='a long form: ARLDM_SOAK=1')
def test_stops_with_its_readers(whole, data, tmp_path):
    "SIGTERM to the training process and to its readers at once, as schedulers send it; nobody is left behind."
    for attempt in range(3):
        run, process = tmp_path/f'run{attempt}', start(tmp_path/f'run{attempt}', data, checkpointing_steps=50, workers=2)
        wait_for_step(process, run, 1)
        for pid in (all_of_it := family(process.pid)): os.kill(pid, signal.SIGTERM)
        said, _ = process.communicate(timeout=300)
        if (done := steps_of(run)) < 8: break
    assert process.returncode == 0 and f'stopped by a signal after step {done}' in said, said
    assert len(all_of_it) >= 3 and not any(Path(f'/proc/{pid}').exists() for pid in all_of_it)
    train(run, checkpointing_steps=2, workers=1)
    assert losses(run) == losses(whole) and not differ(last(run), last(whole))

@pytest.mark.parametrize('name', ['SIGTERM', 'SIGUSR1'] if SOAK else ['SIGTERM'])
def test_stops_when_asked_and_goes_on(whole, data, tmp_path, monkeypatch, name):
    for attempt in range(3):                                       # a machine that stalls may let a run finish first
        run = tmp_path/f'run{attempt}'
        words = [f'--{k.replace("_", "-")}={v}' for k, v in dict(HOW, data=data, train_batch_size=4, checkpointing_steps=50).items()]
        monkeypatch.setattr(sys, 'argv', ['arldm-train', str(run), *words])
        pid, file = fork(train)
        while steps_of(run) < 1 and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG): time.sleep(.01)
        os.kill(pid, getattr(signal, name))
        status, said = end(pid, file)
        if (done := steps_of(run)) < 8: break
    assert status == 0 and f'stopped by a signal after step {done}' in '\n'.join(said), said
    assert [p.name for p in (run/'checkpoints').glob('*.pt')] == [f'{done:06d}.pt'] and done < 8
    train(run, checkpointing_steps=2)
    assert losses(run) == losses(whole) and not differ(last(run), last(whole))

LORA = dict(resolution=32, crops=1, lora_rank=2, lora_alpha=4., ema_decay=.9, num_validation_stories=1)

def written(run): # name -> content, of what a run leaves
    "Its pipeline, its LoRA, and its log without times; manifests name the checkpoint file, which holds its own path."
    found = {}
    for folder in run/'pipeline', run/'lora':
        for path in folder.rglob('*'):
            if path.is_file() and path.name != 'manifest.json': found[str(path.relative_to(run))] = path.read_bytes()
    for r in read_log(run/'log.csv'): found[f'step {r["step"]}'] = repr({k: v for k, v in r.items() if k != 'stories_per_s'})
    return found

def not_the_same(run, other): # names
    a, b = written(run), written(other)
    return [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]

@pytest.mark.skipif(not os.environ.get('ARLDM_SOAK'), reason='a long form: ARLDM_SOAK=1')
@pytest.mark.skipif(not Path('/proc/self/task').is_dir(), reason='who started whom is read from /proc')
@pytest.mark.parametrize('processes, how', [(1, {}), (2, {}), (1, LORA), (2, dict(LORA, mixed_precision='bf16'))],
                         ids=['1', '2', '1-lora', '2-lora-bf16'])
def test_killed_at_random_moments(data, tmp_path, processes, how):
    "kill -9 of everything, again and again; the end is bit for bit that of the undisturbed run of as many processes."
    undisturbed, run, rng, kills, how = tmp_path/'whole', tmp_path/'run', random.Random(processes), 0, how | LONG
    started = time.monotonic()
    start(undisturbed, data, processes, **how).communicate(timeout=600)
    while kills < KILLS:
        process = start(run, data, processes, **how)
        if wait_for_step(process, run, steps_of(run) + rng.randint(0, 2)): time.sleep(rng.random()*.3)
        if (run/'pipeline').is_dir(): break
        kill(process)
        kills += 1
    said, _ = (p := start(run, data, processes, **how)).communicate(timeout=600)
    assert p.returncode == 0 and kills == KILLS and losses(run) == losses(undisturbed), said
    assert not differ(last(run), last(undisturbed)) and not not_the_same(run, undisturbed)
    assert (run/'lora').is_dir() == ('lora_rank' in how)
    if SOAK: print(f'\n  {processes} processes: {kills} kills survived, bit-identical, {time.monotonic() - started:.0f} s')

def test_a_damaged_newest_checkpoint(whole, data, tmp_path):
    run = shutil.copytree(whole, tmp_path/'run', ignore=shutil.ignore_patterns('pipeline'))
    newest = run/'checkpoints/000008.pt'
    newest.write_bytes(newest.read_bytes()[:5000])
    with pytest.warns(UserWarning, match='000008.pt is damaged'): train(run)
    assert losses(run) == losses(whole) and not differ(last(run), last(whole))

def test_killed_between_the_last_checkpoint_and_the_pipeline(whole, tmp_path):
    run = shutil.copytree(whole, tmp_path/'run', ignore=shutil.ignore_patterns('pipeline'))
    train(run)
    assert (run/'pipeline/model_index.json').is_file() and losses(run) == losses(whole)

def test_a_loss_gone_mad(data, tmp_path):
    run = tmp_path/'run'
    with pytest.raises(StoryError, match='the loss of step . is .*good checkpoint is .*00000.*pt'):
        train(run, data=data, train_batch_size=4, **dict(HOW, learning_rate=1e6, checkpointing_steps=1))
    good = sorted((run/'checkpoints').glob('*.pt'))
    assert good and len(losses(run)) == int(good[-1].stem)

def test_the_newest_is_the_one_of_most_steps(tmp_path):
    parts = dict(model=torch.nn.Linear(1, 1))
    for step in 999_000, 999_500, 1_000_000: save_checkpoint(tmp_path, step, parts)
    assert load_checkpoint(tmp_path, parts) == 1_000_000
    assert sorted(p.name for p in tmp_path.iterdir()) == ['1000000.pt', '999500.pt']

def test_a_file_that_was_not_accepted_is_kept(tmp_path):
    "Of another program, or with NaN: when its step is done again it is set aside, and the new file takes its name."
    parts = dict(model=torch.nn.Linear(1, 1))
    save_checkpoint(tmp_path, 1, parts)
    for step, state in (2, {'step': 2, 'net': torch.ones(3)}), (3, {'step': 3, 'model': {k: v*math.nan for k, v in parts['model'].state_dict().items()}}):
        path = tmp_path/f'00000{step}.pt'
        torch.save(state, path)
        before = path.read_bytes()
        with pytest.warns(UserWarning, match=path.name): assert load_checkpoint(tmp_path, parts) == step - 1
        save_checkpoint(tmp_path, step, parts)
        [aside] = tmp_path.glob(f'00000{step}-damaged-*.pt')
        assert aside.read_bytes() == before and load_checkpoint(tmp_path, parts) == step

def test_a_full_disk_at_the_very_end(whole, tmp_path, monkeypatch):
    "The finished pipeline cannot be written: one line, and all checkpoints stay."
    run = shutil.copytree(whole, tmp_path/'run', ignore=shutil.ignore_patterns('pipeline'))
    monkeypatch.setattr(sys, 'argv', ['arldm-train', str(run)])
    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000,)*2)
        train()
    status, said = end(*fork(work))
    assert status == 1 and said[-1].startswith('arldm-train: ') and 'Traceback' not in '\n'.join(said), said
    assert 'pipeline could not be written' in said[-1]
    assert not (run/'pipeline').exists() and not differ(last(run), last(whole))

def test_a_checkpoint_of_another_size(whole, data, tmp_path):
    run = tmp_path/'run'
    train(run, data=data, train_batch_size=4, **dict(HOW, max_train_steps=2))
    path = run/'checkpoints/000002.pt'
    state = torch.load(path, weights_only=True)
    state['model'] = {k: v[:1] if v.dim() else v for k, v in state['model'].items()}
    torch.save(state, path)
    with pytest.raises(StoryError, match='000002.pt is of another model') as e: train(run, max_train_steps=4)
    assert '\n' not in str(e.value)
