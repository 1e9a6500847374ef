"Every option of training against a trusted or a plainer way to compute the same, and the command under bad input."
import dataclasses, io, json, math, os, re, shutil, sys
from contextlib import redirect_stdout
from itertools import islice
from pathlib import Path

import pytest, torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from arldm.train import setup as begins
from arldm.toy import corpus as toy
from arldm.train import loop as training
from arldm.cli.convert import convert
from arldm.core import BadStory, StoryError
from arldm.data.dataset import StoryDataset, collate, to_memory, to_target
from arldm.model.arldm import LOSS_WEIGHTS
from arldm.model.config import SIZES, noise_schedule
from arldm.model.arldm import ARLDM
from arldm.train.optim import averaged, decay_groups, make_ema, make_optimizer
from arldm.cli.train import train
from arldm.settings import FREEZE, PRESETS, SETTINGS, resolve
from arldm.data.story import StoryFile, write_stories
from arldm.train.checkpoint import read_log
from arldm.train.loop import validation_loss

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    toy.write_toy(folder/'raw', (6, 5, 1), progress=False)
    convert('toy', folder/'raw', folder/'stories.h5', quiet=True)
    return folder/'stories.h5'

@pytest.fixture(scope='module')
def begin(data, tmp_path_factory):
    "Makes a tiny model, its stories to train on and to validate with, and settings."
    words = tmp_path_factory.mktemp('words')
    def make(**how):
        s = resolve('tiny', **dict(dict(resolution=16, train_batch_size=4, max_train_steps=2, lr_warmup_steps=0, learning_rate=3e-3), **how))
        file, net = StoryFile(data), begins.make_model(s, StoryFile(data), words).freeze(s.freeze)
        def stories(split, **how): return StoryDataset(file[split], net.vocab, s.resolution, net.memory_side, **how)
        return net, stories('train', train=True, seed=s.seed, crops=s.crops), stories('val'), s
    return make

def run_through(net, stories, val, s, run=None, n=None, **how): # the records of `n` steps, and the EMA
    ema = make_ema(net, s)
    records = training.train_steps(net, stories, s, run, ema, val, **how)
    out = [*islice(records, n)]
    records.close()
    return out, ema

def column(records, name): return [r[name] for r in records]
def as_text(records): return [{k: repr(v) for k, v in r.items() if k != 'stories_per_s'} for r in records]
def weights(net): return {k: p.detach().clone() for k, p in net.named_parameters()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# the loss

def weighting_by_hand(name, gamma, snr, v):
    if name == 'none' and not gamma: return torch.ones_like(snr)
    weight = snr.clamp(max=gamma) if gamma else snr/(.1 + snr)
    return weight/(snr + 1) if v else torch.where(snr > 0, weight/snr, 1.)

@pytest.mark.parametrize('weighting,gamma', [*((name, 0.) for name in LOSS_WEIGHTS), ('none', 5.), ('none', 3.)])
@pytest.mark.parametrize('prediction,zero', [('epsilon', False), ('v_prediction', False), ('v_prediction', True)])
def test_losses_are_those_of_diffusers(begin, prediction, zero, weighting, gamma):
    "Noisy latents, aim and weight, at all times from the first to the last."
    net, g, t = begin()[0], torch.Generator().manual_seed(0), torch.tensor([0, 1, 250, 500, 750, 998, 999])
    z, noise, guess = (torch.randn(7, 4, 2, 2, generator=g) for _ in range(3))
    trusted = DDPMScheduler(1000, .00085, .012, 'scaled_linear', rescale_betas_zero_snr=zero)
    net.noise_scheduler, seen = noise_schedule(prediction, zero), []
    net.predict = lambda noisy, *_: seen.append(noisy) or guess
    context, visible = torch.zeros(7, 3, 32), torch.ones(7, 3, dtype=torch.bool)
    found = net.frame_losses(z, noise, t, context, visible, weighting=weighting, snr_gamma=gamma)
    aim = trusted.get_velocity(z, noise, t) if prediction == 'v_prediction' else noise
    snr = compute_snr(trusted, t)
    assert bool(snr[-1] == 0) == zero and torch.equal(seen[0], trusted.add_noise(z, noise, t))
    expected = ((guess - aim)**2).mean((1, 2, 3))*weighting_by_hand(weighting, gamma, snr, prediction == 'v_prediction')
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-8) and found.isfinite().all()

def test_pure_noise_trains(begin, monkeypatch):
    "Where every frame is drawn at the last time, of zero signal: losses, gradients and weights stay finite."
    net, stories, val, s = begin(prediction_type='v_prediction', rescale_betas_zero_snr=True, timestep_bias_power=1e9, weighting='none', checkpointing_steps=1)
    times, real = [], ARLDM.frame_losses
    monkeypatch.setattr(ARLDM, 'frame_losses', lambda *x, **kw: times.append(x[3]) or real(*x, **kw))
    records, _ = run_through(net, stories, val, s)
    assert (times[0] == 999).all() and all(math.isfinite(x) for r in records for x in r.values())
    assert all(p.isfinite().all() for p in net.parameters())

def plain(net, batch, seeds, drop):
    "The loss without options, story by story and frame by frame."
    found = []
    for b, seed in enumerate(seeds):
        g = torch.Generator().manual_seed(seed)
        known = net.vae.encode(to_target(batch['frames'][b])).latent_dist
        z = (known.mean + known.std*torch.randn(1, *known.mean.shape, generator=g)[0])*.18215
        noise = torch.randn(1, *z.shape, generator=g)[0]
        t = (1000*torch.rand(len(z), generator=g)).long()
        dropped = torch.rand(1, len(z), generator=g) < drop
        tokens = {k: batch[k][b:b + 1] for k in ('caption_ids', 'caption_real', 'memory_ids', 'memory_real')}
        memory = to_memory(batch['memory'][b:b + 1, :-1])
        context, visible = net.condition(tokens, memory, 0, dropped)
        noisy = noise_schedule().add_noise(z, noise, t)
        for k in range(len(z)):
            guess = net.predict(noisy[k:k + 1], t[k:k + 1], context[k:k + 1], visible[k:k + 1])
            found.append(((guess - noise[k])**2).mean())
    return torch.stack(found).mean()

def test_without_options(begin):
    net, stories, *_ = begin()
    net.eval()
    batch, seeds = collate([stories[0], stories[1]]), [3, 4]
    found = net.loss(batch, [torch.Generator().manual_seed(s) for s in seeds], 0, .4)
    assert found.item() == pytest.approx(plain(net, batch, seeds, .4).item(), rel=1e-5)

def test_offset_noise(begin, monkeypatch):
    "It shifts all latents of a frame and channel by one number of the asked spread, and nothing else."
    net, stories, *_ = begin()
    batch, seen, real = collate([stories[0], stories[1]]), [], ARLDM.frame_losses
    def note(self, z, noise, t, context, visible, **options):
        seen.append((z, noise, t, context, visible))
        return real(self, z, noise, t, context, visible, **options)
    monkeypatch.setattr(ARLDM, 'frame_losses', note)
    for offset in 0., .5, 1.:
        with torch.no_grad(): net.loss(batch, [torch.Generator().manual_seed(s) for s in (3, 4)], noise_offset=offset)
    none, half, full = seen
    assert all(torch.equal(a, b) for k, (a, b) in enumerate(zip(none, full)) if k != 1)
    shift = full[1] - none[1]                                                               # (10, 4, 2, 2)
    assert torch.allclose(shift, shift[..., :1, :1].expand_as(shift), atol=1e-6) and .7 < shift.std() < 1.3
    assert torch.allclose(half[1] - none[1], shift/2, atol=1e-6) and len(shift.mean((2, 3)).unique()) == 40


# one step, several ways

@pytest.mark.parametrize('how', [{}, dict(weighting='none', snr_gamma=5., noise_offset=.1, prediction_type='v_prediction', crops=1)], ids=str)
def test_parts_of_a_step(begin, how, monkeypatch):
    "Six stories as 6, 3 × 2, 2 × 3 or 1 × 6: the same loss and the same gradients."
    found, real = [], training._backward
    def backward(state, *more):
        loss = real(state, *more)
        gradients = {k: p.grad.clone() for k, p in state.wrapped.named_parameters() if p.requires_grad}
        found.append({'loss': loss.clone(), **gradients})
        return loss
    monkeypatch.setattr(training, '_backward', backward)
    for n in 1, 2, 3, 6:
        net, stories, _, s = begin(train_batch_size=6//n, gradient_accumulation_steps=n, max_train_steps=1, **how)
        assert s.stories_per_step == 6
        assert len(run_through(net, stories, None, s)[0]) == 1
    for other in found[1:]:
        assert other['loss'].item() == pytest.approx(found[0]['loss'].item(), rel=1e-5)
        for k, g in found[0].items(): assert (other[k] - g).abs().max() <= 1e-4*g.abs().max() + 1e-5, k

SHAKY = {**SIZES['tiny'], 'vision': dict(SIZES['tiny']['vision'], num_hidden_layers=2, drop_path_rate=.5),
         'bert': dict(SIZES['tiny']['bert'], hidden_dropout_prob=.3, attention_probs_dropout_prob=.3)}

@pytest.mark.parametrize('chance', [False, True], ids=['still', 'dropout'])
@pytest.mark.parametrize('frozen,twice', [('none', 'unet clip text vision'), ('ssid-baseline', 'unet clip text'),
                                          ('attention', 'unet')])
def test_checkpointing(begin, monkeypatch, frozen, twice, chance):
    "Blocks are computed twice, with the same chance, to the same result; and once when it is switched off again."
    if chance: monkeypatch.setitem(begins.SIZES, 'tiny', SHAKY)
    net, stories, val, s = begin(freeze=frozen, legacy=chance, train_batch_size=2)
    text, before = net.memory_encoder.text_encoder, weights(net)
    modules = dict(unet=net.unet.down_blocks[0].resnets[0], clip=net.text_encoder.encoder.layers[0].mlp,
                   text=text.encoder.layer[0].attention, vision=net.memory_encoder.vision_model.encoder.layers[-1].mlp)
    counts, found = dict.fromkeys(modules, 0), []
    def count(name):
        def hook(*_): counts[name] += 1
        return hook
    for name, m in modules.items(): m.register_forward_pre_hook(count(name))
    for on in False, True, False:
        net.load_state_dict(before, strict=False)
        counts.update(dict.fromkeys(modules, 0))
        records, _ = run_through(net, stories, None, dataclasses.replace(s, gradient_checkpointing=on, max_train_steps=1))
        found.append((as_text(records), weights(net), dict(counts)))
    (a, wa, once), (b, wb, double), (c, wc, again) = found
    assert once == again and {k for k in modules if double[k] > once[k]} == {*twice.split()}, (once, double)
    assert a == c and same(wa, wc)
    assert a == b and same(wa, wb)

class Unreadable(torch.utils.data.Dataset):
    "Of stories that cannot be read."
    def __init__(self, error): self.error = error
    def __len__(self): return 2
    def __getitem__(self, i): raise self.error

@pytest.mark.parametrize('error', [StoryError('story 7: no picture?'), BadStory('bad picture', 'story 7: no picture?')])
def test_an_error_of_a_reader_is_one_line(begin, error):
    "torch hands on the traceback of another process as text."
    net, _, _, s = begin()
    with pytest.raises(StoryError) as e: next(iter(training.train_steps(net, Unreadable(error), s, workers=1)))
    assert str(e.value).removesuffix('?') == 'story 7: no picture'

def test_readers_change_nothing(begin):
    found = [run_through(*begin(crops=crops), workers=n)[0] for crops in (0, 2) for n in (0, 2)]
    assert as_text(found[0]) == as_text(found[1]) and as_text(found[2]) == as_text(found[3])


# the optimizer

def decays(name, p):
    "The rule, written once more, by names and shapes."
    table = re.search(r'embeddings\.(token|word|position|class)_embeddings?(\.|$)|^history\.', name)
    return name.endswith('weight') and p.dim() > 1 and not table

@pytest.mark.parametrize('decay', ['matrices', 'all'])
@pytest.mark.parametrize('frozen', ['none', 'attention'])
def test_what_decays(begin, decay, frozen):
    "Without gradients a step takes exactly lr·decay from what decays, and nothing from the rest."
    net, _, _, s = begin(decay_parameters=decay, adam_weight_decay=.5, freeze=frozen)
    assert len(decay_groups(net, s)) == (1 if decay == 'all' else 2)
    optimizer, before = make_optimizer(net, s), weights(net)
    for p in net.parameters(): p.grad = torch.zeros_like(p) if p.requires_grad else None
    optimizer.step()
    for name, p in net.named_parameters():
        less = p.requires_grad and (decay == 'all' or decays(name, p))
        assert torch.allclose(p, before[name]*(1 - 3e-3*.5 if less else 1), rtol=1e-6, atol=0), name
        assert less or torch.equal(p, before[name]), name

def test_eight_bits(begin, tmp_path):
    "Where bitsandbytes is installed: trains, and goes on bit for bit."
    pytest.importorskip('bitsandbytes', reason='bitsandbytes is not installed')
    how, found = dict(optimizer='adamw8bit', max_train_steps=4, checkpointing_steps=2), []
    for n in 4, 3:
        run = tmp_path/str(n)
        run_through(*begin(**how), run, n)
        net, *rest = begin(**how)
        run_through(net, *rest, run)
        found.append((as_text(read_log(run/'log.csv')), weights(net)))
    assert found[0][0] == found[1][0] and same(found[0][1], found[1][1])

def test_no_eight_bits(begin, monkeypatch):
    monkeypatch.setitem(sys.modules, 'bitsandbytes', None)
    monkeypatch.setitem(sys.modules, 'bitsandbytes.optim', None)
    net, _, _, s = begin(optimizer='adamw8bit')
    with pytest.raises(StoryError, match='pip install bitsandbytes'): make_optimizer(net, s)


# the validation loss

def test_validation_loss_compares(begin):
    "It is the same for every way to train and to share it out, between other training, and follows the weights."
    net, stories, val, s = begin(num_validation_stories=4)
    net.eval()
    def loss(rank=0, world=1, **how): return validation_loss(net, val, dataclasses.replace(s, **how), rank, world)
    first = loss()
    assert first[1] == 4 and first.isfinite().all() and loss(num_validation_stories=99)[1] == len(val)
    for how in dict(train_batch_size=1), dict(train_batch_size=3), dict(gradient_accumulation_steps=4), dict(seed=7), \
            dict(weighting='p2', timestep_bias_power=3.), dict(snr_gamma=5.), dict(noise_offset=1., learning_rate=9., crops=1):
        torch.manual_seed(5)
        assert torch.allclose(loss(**how), first, rtol=1e-5), how
    for world in 2, 3, 8: assert torch.allclose(sum(loss(r, world) for r in range(world)), first, rtol=1e-5)
    assert torch.equal(loss(), first)
    net.unet.conv_out.bias.data += .1
    assert not torch.allclose(loss(), first, rtol=1e-3)

@pytest.mark.parametrize('decay', [0., .9])
def test_validation_loss_is_recorded(begin, tmp_path, decay):
    "At every save and at the end, of the averaged weights where there are such; the log of a resumed run is the same."
    found, how = [], dict(max_train_steps=5, checkpointing_steps=2, ema_decay=decay, num_validation_stories=3)
    for n in 5, 3:                                                       # the second run stops between two checkpoints
        run = tmp_path/str(n)
        run_through(*begin(**how), run, n)
        net, stories, val, s = begin(**how)
        _, ema = run_through(net, stories, val, s, run)
        found.append(as_text(read_log(run/'log.csv')))
    losses = [float(r['val_loss']) for r in found[0]]
    assert found[0] == found[1] and [math.isfinite(x) for x in losses] == [False, True, False, True, True]
    def loss():
        total, n = validation_loss(net, val, s)
        return (total/n).item()
    with averaged(net, ema): assert loss() == pytest.approx(losses[-1], rel=1e-6)
    assert (loss() == pytest.approx(losses[-1], rel=1e-6)) == (not decay)

@pytest.mark.parametrize('how', [dict(num_validation_stories=0), dict(val=None)], ids=str)
def test_no_validation(begin, how):
    net, stories, val, s = begin(checkpointing_steps=1, **{k: v for k, v in how.items() if k != 'val'})
    assert all(map(math.isnan, column(run_through(net, stories, how.get('val', val), s)[0], 'val_loss')))


# precision

@pytest.mark.skipif(not os.environ.get('ARLDM_SOAK'), reason='a long form: ARLDM_SOAK=1')
def test_precision_is_each_runs_own(begin, tmp_path):
    "bfloat16 goes on bit for bit; what is trained afterwards, in the same process, is float32 to the last bit."
    plain, found = as_text(run_through(*begin())[0]), []
    for n in 4, 3:
        run, how = tmp_path/str(n), dict(mixed_precision='bf16', max_train_steps=4, checkpointing_steps=2, ema_decay=.9)
        run_through(*begin(**how), run, n)
        net, *rest = begin(**how)
        run_through(net, *rest, run)
        found.append((as_text(read_log(run/'log.csv')), weights(net)))
    assert found[0][0] == found[1][0] and same(found[0][1], found[1][1])
    assert {p.dtype for p in net.parameters()} == {torch.float32} and found[0][0][0]['loss'] != plain[0]['loss']
    with pytest.raises(StoryError, match='has completed 4 steps, more than'):
        run_through(net, *rest[:2], resolve('tiny', max_train_steps=3), run)
    other, stories, val, s = begin()
    net.load_state_dict(other.state_dict())
    assert as_text(run_through(net, stories, val, s)[0]) == plain
    x = torch.randn(1, 4, 2, 2)
    a, b = (m.eval().unet(x, 5, torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))).sample
            for m in (net, net))
    assert a.dtype == torch.float32 and torch.equal(a, b) and not torch.is_autocast_enabled('cpu')

@pytest.mark.parametrize('where', [1, 2])
def test_a_gradient_gone_mad(begin, tmp_path, monkeypatch, where):
    "A loss that is no number in any part of a step stops it, and no checkpoint is written of it."
    net, stories, val, s = begin(max_train_steps=4, checkpointing_steps=1, train_batch_size=2, gradient_accumulation_steps=2)
    real, calls = ARLDM.loss, []
    def loss(*x, **kw): return calls.append(0) or real(*x, **kw)*(math.nan if len(calls) == 2 + where else 1)
    monkeypatch.setattr(ARLDM, 'loss', loss)
    with pytest.raises(StoryError, match='of step 2 is nan.*000001.pt') as e:
        run_through(net, stories, None, s, tmp_path)
    assert '\n' not in str(e.value) and [p.name for p in (tmp_path/'checkpoints').iterdir()] == ['000001.pt']


# the command

def says(capsys, monkeypatch, *words):
    "What the command says in this process, and its exit code."
    monkeypatch.setattr(sys, 'argv', ['arldm-train', *map(str, words)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped: train()
    return stopped.value.code, capsys.readouterr().err.strip().splitlines()

def files(folder): return {p: p.read_bytes() for p in sorted(Path(folder).rglob('*')) if p.is_file()}

PRESET = resolve('tiny')
EVERY = dict(task='continuation', model='tiny', blip='none.pth', bert='none', resolution=16, crops=1, n_slots=6,
             freeze='all-but-words', lora_rank=2, lora_alpha=4., lora_targets='all', lora_encoders=True, frozen_storage='fp8',
             cast_probability=.5, legacy=True, guidance_scale=3.5, seed=11, max_train_steps=1, autoencoder_steps=1,
             train_batch_size=3,
             gradient_accumulation_steps=2,
             gradient_checkpointing=True, pack_context=False,
             mixed_precision='bf16',
             allow_tf32=True, max_train_samples=3, checkpoints_total_limit=3,
             optimizer='adamw', learning_rate=2e-4, scale_lr=True, lr_scheduler='constant_with_warmup', lr_warmup_steps=3,
             lr_num_cycles=1, lr_power=1., adam_beta1=.8, adam_beta2=.9, adam_epsilon=1e-7, adam_weight_decay=.02,
             decay_parameters='all', max_grad_norm=2., ema_decay=.5,
             cond_dropout=.3, weighting='none', snr_gamma=0., timestep_bias_power=1.5, noise_offset=.05,
             prediction_type='v_prediction', rescale_betas_zero_snr=True, checkpointing_steps=7, num_validation_stories=1)

def test_every_setting_is_a_flag(data, tmp_path, monkeypatch):
    "Each reaches settings.json, where a resumed run finds it."
    words = [f'--{k.replace("_", "-")}={v}' for k, v in EVERY.items()]
    assert {*EVERY, 'preset', 'corpus'} == {*SETTINGS}
    assert [k for k, v in EVERY.items() if v == getattr(PRESET, k)] == [
        'model', 'optimizer', 'lr_num_cycles', 'lr_power', 'snr_gamma']
    played = [dataclasses.replace(story, cast={'Ada': story.frames[0]}) for story in StoryFile(data)['train']]
    write_stories(tmp_path/'cast.h5', dict(train=played, val=StoryFile(data)['val']), 'toy')
    monkeypatch.setattr(sys, 'argv', ['arldm-train', str(tmp_path/'run'), '--data', str(tmp_path/'cast.h5'), '--preset=tiny', *words])
    train()
    kept = json.loads((tmp_path/'run/settings.json').read_text())
    assert {k: kept[k] for k in SETTINGS} == dict(EVERY, preset='tiny', corpus='toy', freeze=list(FREEZE['all-but-words']))
    # The pipeline draws with the noise schedule of the training, not with that of the weights it began from
    schedule = json.loads((tmp_path/'run/pipeline/scheduler/scheduler_config.json').read_text())
    assert schedule['prediction_type'] == 'v_prediction' and schedule['rescale_betas_zero_snr'] is True
    before = files(tmp_path)
    train(tmp_path/'run'), train()
    assert files(tmp_path) == before

def test_dry_run_checks_the_cache_of_validation_stories(data, tmp_path, monkeypatch, capsys):
    cache = tmp_path/'cache'/'validation-1'
    cache.mkdir(parents=True)
    (cache/'cache.json').write_text(json.dumps(dict(weights={}, mixed_precision='no')))
    monkeypatch.setattr(sys, 'argv', ['arldm-train', str(tmp_path/'run'), '--data', str(data), '--preset=tiny', '--crops=1',
                                      '--num-validation-stories=1', f'--cache={tmp_path/"cache"}', '--dry-run'])
    with pytest.raises(SystemExit): train()
    assert 'validation-1 was computed from other weights' in capsys.readouterr().err
    assert not (tmp_path/'run').exists()

@pytest.mark.parametrize('words,said', [
    ('--legacy', 'legacy=True'), ('--legacy false', 'legacy=False'), ('--legacy=true', 'legacy=True'),
    ('--gradient-checkpointing', 'gradient_checkpointing=True'),
    ('--gradient-checkpointing 0', 'gradient_checkpointing=False'),
    ('--rescale-betas-zero-snr --prediction-type v_prediction --weighting none', 'rescale_betas_zero_snr=True'),
    ('--snr-gamma 5 --weighting none', 'snr_gamma=5.0'), ('--freeze none', 'freeze=none'), ('--ema-decay 0', 'ema_decay=0.0')])
def test_flags(data, tmp_path, monkeypatch, words, said):
    called = ['arldm-train', str(tmp_path/'run'), '--data', str(data), '--dry-run', '--train-batch-size=2', *words.split()]
    monkeypatch.setattr(sys, 'argv', called)
    with redirect_stdout(out := io.StringIO()): train()
    assert said in out.getvalue().split() and 'nothing was written' in out.getvalue() and not [*tmp_path.iterdir()]

WRONG = {'--preset ssid-baselin': 'did you mean ssid-baseline?', '--preset papr': 'did you mean paper?',
         '--mixed-precision fp16': "mixed_precision='fp16' needs a GPU",
         '--gradient-accumulation-steps 0': 'must be at least 1',
         '--rescale-betas-zero-snr': "rescale_betas_zero_snr needs prediction_type='v_prediction'",
         '--rescale-betas-zero-snr --prediction-type v_prediction': "needs weighting='none' and snr_gamma=0",
         '--rescale-betas-zero-snr --prediction-type v_prediction --weighting none --snr-gamma 5': 'and snr_gamma=0',
         '--snr-gamma 5': "weighting='p2' and snr_gamma=5.0 both weight the loss", '--snr-gamma=-1': 'snr_gamma must not be',
         '--ema-decay 1': 'ema_decay must be', '--cond-dropout 1.5': 'cond_dropout must be between 0 and 1',
         '--cond-dropout nan': 'cond_dropout must be between 0 and 1', '--learning-rate nan': 'learning_rate must not be below 0',
         '--crops=-1': 'crops must not be below 0', '--max-train-steps 0': 'max_train_steps must be',
         '--seed=-1': 'seed', '--seed 99999999999999': 'seed', '--timestep-bias-power 0': 'timestep_bias_power',
         '--timestep-bias-power=-1': 'timestep_bias_power', '--weighting pp2': 'did you mean p2?',
         '--lr-scheduler cosin': "no lr_scheduler 'cosin'", '--max-train-steps 3 --num-train-epochs 1': 'both say how long', '--prediction-type x0': "no prediction_type 'x0'",
         '--optimizer adam': 'did you mean adamw?', '--decay-parameters none': 'no decay_parameters',
         '--freeze eyes': "no part to freeze 'eyes'", '--legacy maybe': 'legacy', '--stepps 3': 'unrecognized',
         '--optimizer adamw8bit': 'pip install bitsandbytes', '--checkpointing-steps 0': 'checkpointing_steps must be at least 1'}

@pytest.mark.parametrize('words', WRONG)
def test_mistakes_write_nothing(data, tmp_path, capsys, monkeypatch, words):
    if torch.cuda.is_available() and 'fp16' in words: pytest.skip('there is a GPU')
    for name in 'bitsandbytes', 'bitsandbytes.optim': monkeypatch.setitem(sys.modules, name, None)
    preset = [] if '--preset' in words else ['--preset', 'tiny']
    code, lines = says(capsys, monkeypatch, tmp_path/'run', '--data', data, *preset, *words.split())
    lines = [x for x in lines if 'training:' not in x]
    assert code == 1 and len(lines) == 1 and WRONG[words] in lines[0], lines
    assert not [*tmp_path.iterdir()]

@pytest.fixture(scope='module')
def finished(data, tmp_path_factory):
    run = tmp_path_factory.mktemp('finished')/'run'
    train(run, data=data, preset='tiny', resolution=16, train_batch_size=2, crops=1, freeze='attention', max_train_steps=4,
          checkpointing_steps=2)
    return run

def other_data(data, tmp_path):
    toy.write_toy(tmp_path/'raw', (7, 1, 1), progress=False)
    convert('toy', tmp_path/'raw', tmp_path/'other.h5', quiet=True)
    return ['--data', tmp_path/'other.h5']

RESUMED = {'differences': (['--crops=2', '--learning-rate=1', '--freeze=none', '--train-batch-size=3', '--seed=1',
                            '--prediction-type=v_prediction'], 'learning_rate=0.001, not 1.0'), 'freeze': (['--freeze=none'], "freeze=('clip', 'blip'"),
           'fewer steps': (['--max-train-steps=3'], 'has completed 4 steps, more than the 3 of its settings'),
           'stories': (other_data, 'does not hold the stories'), 'no file': (['--data=nowhere.h5'], 'no such file')}

@pytest.mark.parametrize('name', RESUMED)
def test_a_finished_run_keeps_its_settings(finished, data, tmp_path, capsys, monkeypatch, name):
    words, said = RESUMED[name]
    words, before = words(data, tmp_path) if callable(words) else words, files(finished)
    code, lines = says(capsys, monkeypatch, finished, *words)
    lines = [x for x in lines if 'training:' not in x and 'note: ' not in x]
    assert code == 1 and len(lines) == 1 and said in lines[0], lines
    if name == 'differences': assert all(w[2:].split('=')[0].replace('-', '_') in lines[0] for w in words)
    assert files(finished) == before

@pytest.mark.skipif(not os.environ.get('ARLDM_SOAK'), reason='a long form: ARLDM_SOAK=1')
def test_moved_and_without_its_cache(finished, data, tmp_path):
    "Run folder and story file elsewhere, the cache gone: more steps are those of one long run."
    run, stories = shutil.copytree(finished, tmp_path/'here'), shutil.copy(data, tmp_path/'there.h5')
    shutil.rmtree(run/'cache')
    train(run, data=stories, max_train_steps=6)
    whole = tmp_path/'whole'
    how = dict(preset='tiny', resolution=16, train_batch_size=2, crops=1, freeze='attention', checkpointing_steps=2)
    train(whole, data=data, max_train_steps=4, **how), train(whole, max_train_steps=6)
    assert as_text(read_log(run/'log.csv')) == as_text(read_log(whole/'log.csv'))
    assert json.loads((run/'settings.json').read_text())['data'] == str(stories)

def test_another_number_of_processes(finished, data, capsys, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    code, lines = says(capsys, monkeypatch, finished, '--max-train-steps=6')
    assert code == 1 and lines[-1].endswith(
        f'{finished} was trained on 2 stories a step by 1 process; with 2 processes: --train-batch-size 1'), lines

@pytest.mark.parametrize('full', [torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 9.00 GiB.'), MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    RuntimeError('could not create a primitive')], ids=['gpu', 'python', 'cpu', 'onednn'])
def test_out_of_memory(begin, monkeypatch, full):
    "One line that names what makes a step smaller and is not yet in use; other errors stay what they are."
    def loss(*_, **__): raise full
    monkeypatch.setattr(ARLDM, 'loss', loss)
    for how, said in ((dict(), '4 stories of 16 pixels at once; try --train-batch-size 2 '
                       '--gradient-accumulation-steps 2, or --gradient-checkpointing, or a smaller resolution'),
                      (dict(train_batch_size=3, gradient_accumulation_steps=2, gradient_checkpointing=True), '3 stories of 16 '
                       'pixels at once; try --train-batch-size 1 --gradient-accumulation-steps 6, or a smaller resolution'),
                      (dict(train_batch_size=1, gradient_accumulation_steps=4, gradient_checkpointing=True),
                       '1 story of 16 pixels at once; try a smaller resolution')):
        with pytest.raises(StoryError, match=re.escape(said)): run_through(*begin(**how))
    full = RuntimeError('another one')
    with pytest.raises(RuntimeError, match='another one'): run_through(*begin())
