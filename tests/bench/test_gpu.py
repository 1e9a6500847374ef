"""What a CUDA GPU draws and trains is what the CPU does, within tolerances whose reasons are given.

`pytest -m gpu` runs these tests. Without a GPU they run on the CPU as far as that makes sense.
ARLDM_DEVICE names another device, such as cuda:0.
"""
import gc
import math
import os
import shutil
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from PIL import Image
from safetensors.torch import load_file

from arldm.train import loop as training
from arldm.lab.attention import attention
from arldm.train.setup import make_model
from arldm.train.cache import build_cache
from arldm.core import StoryError, asset
from arldm.data.dataset import StoryDataset
from arldm.draw.pipeline import StoryPipeline
from arldm.toy.reader import read
from arldm.score.feature_networks import _features
from arldm.score.inception import Inception
from arldm.cli.convert import toy_file
from arldm.model.arldm import ARLDM
from arldm.train.optim import averaged, make_ema
from arldm.settings import FREEZE, resolve
from arldm.data.story import StoryFile
from arldm.train.checkpoint import checkpoints
from arldm.toy.corpus import toy_story

DEVICE = os.environ.get('ARLDM_DEVICE') or ('cuda' if torch.cuda.is_available() else 'cpu')
ON_GPU = torch.device(DEVICE).type == 'cuda'
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(
    torch.cuda.is_available() and not ON_GPU,
    reason='ARLDM_DEVICE is not cuda, but training takes the GPU that is there by itself')]

def cuda_only(why): return pytest.mark.skipif(not ON_GPU, reason=f'needs a CUDA GPU: {why}')

def compiler_missing():
    "What Triton lacks to build its launcher; empty if nothing."
    compiler = os.environ.get('CC') or shutil.which('gcc') or shutil.which('clang')
    if not compiler: return 'a C compiler'
    header = Path(sysconfig.get_paths()['include'])/'Python.h'
    return '' if header.exists() else f'the header {header}'

needs_compiler = pytest.mark.skipif(bool(compiler_missing()),
                                    reason=f'torch.compile on a GPU needs {compiler_missing()}')


# Tolerances. A level is one of 255; a drawing is 2 or 3 frames in up to 8 steps.

# float32 rounds otherwise in another order. On the CPU, float64 or `plain` against float32 differ
# by at most 1 level, and by .00008 in the mean. TF32 would differ by about .05 in the mean.
LEVELS, MEAN_LEVELS = 2, .001

# A batch of another size is computed by other kernels: the CPU's differ by 1 level.
BATCH_LEVELS = 1

# Drawing in bfloat16 and float16 against float32, mean levels: on the CPU .35 to .52, .04 to .05.
HALF_LEVELS = {torch.bfloat16: 1.5, torch.float16: .15}

# 8 bits keep 3 of bfloat16's 7 binary digits. Mean levels between the two on the CPU: .64 to .93.
FP8_LEVELS = 2.5

# Atomic additions on a GPU reorder the sums of gradients, and Adam enlarges what is left of small
# ones. On the CPU another order, six steps in two parts each instead of one, changes losses by 2e-7
# of them and weights by 1.2e-4 of their way; in bfloat16 by .0012 and .024.
LOSS, WAY = dict(no=1e-5, bf16=.005), dict(no=.002, bf16=.1)   # by `mixed_precision`

# Two sums and a product in float32 for each of a few steps, against the same in float64.
EMA = 1e-6

# Rounding in the few layers of an encoder, as a part of the largest number: 4e-7 between batches of
# 7 and of 32 on the CPU, and a GPU has its own exp and erf. TF32 would differ by about .001.
FEATURES = 2e-5

# Shares of a pixel's attention, which sum to 1: 4.5e-8 apart at most between two sets of float32
# kernels of the CPU, 4.7e-5 in the mean between bfloat16 and float32.
ATTENTION, HALF_ATTENTION = 1e-5, .0005


# helpers

def opened(where=DEVICE, dtype=torch.float32, to=True):
    "The toy model's pipeline; on the CPU, as a reader opens it, unless it shall go to a device."
    pipe = StoryPipeline.from_pretrained(asset('toy/arldm'), dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(where) if to else pipe

def draw(pipe, texts, steps=4, **how):
    "The frames of one story, or of several, as arrays of whole numbers (V, h, w, 3)."
    out = pipe(texts, num_inference_steps=steps, **{'guidance_scale': 2., **how})
    stories = [np.stack([np.asarray(frame, int) for frame in story]) for story in out.frames]
    return stories if isinstance(texts[0], list) else stories[0]

def most(a, b): return np.abs(a - b).max()
def mean(a, b): return np.abs(a - b).mean()

def check_near(a, b):
    "Two drawings in float32 are the same but for rounding; on one CPU, to the last bit."
    assert a.shape == b.shape and a.std() > 10
    assert most(a, b) <= LEVELS and mean(a, b) <= MEAN_LEVELS, (most(a, b), mean(a, b))

def devices(module): return {p.device.type for p in module.parameters()}
def size(module): return sum(p.numel()*p.element_size() for p in module.parameters())

def one_line(f, *args, **how):
    "The line of the `StoryError` that a call ends with."
    with pytest.raises(StoryError) as e: f(*args, **how)
    text = str(e.value)
    assert '\n' not in text
    return text

@pytest.fixture(scope='module', autouse=True)
def settled():
    "float32 is no TF32 on a GPU, and the CPU computes in one thread; afterwards all is as before."
    if ON_GPU and not torch.cuda.is_available():
        pytest.fail(f'ARLDM_DEVICE={DEVICE}, but torch {torch.__version__} sees no CUDA GPU')
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, torch.get_num_threads()
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    torch.set_num_threads(1)
    yield
    matmul.allow_tf32, cudnn.allow_tf32 = before[:2]
    torch.set_num_threads(before[2])

@pytest.fixture(scope='module')
def pipe(): return opened()

@pytest.fixture(scope='module')
def cpu_pipe(): return opened('cpu')

@pytest.fixture(scope='module')
def texts():
    "The captions of 32 stories, two frames each."
    return [list(toy_story(i).captions[:2]) for i in range(32)]

STAR = ['a big red star is at the beach on the left', 'it jumps', 'it goes to the right']


# drawing

@pytest.mark.parametrize('noisy', [False, True], ids=['dpm++', 'noisy scheduler'])
def test_drawn_as_on_the_cpu(pipe, cpu_pipe, noisy, monkeypatch):
    "A story looks the same wherever it is drawn, also where the scheduler adds noise of its own."
    if noisy:
        for p in pipe, cpu_pipe:
            other = EulerAncestralDiscreteScheduler.from_config(p.scheduler.config)
            monkeypatch.setattr(p, 'scheduler', other)
    here, there = draw(pipe, STAR), draw(cpu_pipe, STAR)
    assert devices(pipe.unet) == {torch.device(DEVICE).type} and devices(cpu_pipe.unet) == {'cpu'}
    check_near(here, there)
    if not ON_GPU: assert most(here, there) == 0
    assert mean(draw(pipe, STAR, seed=1), there) > 1                # the comparison sees it

def test_given_and_redrawn_as_on_the_cpu(pipe, cpu_pipe):
    "Pictures that are given go to the device; what comes back lies on the CPU."
    photo = toy_story(5).pictures()[0]
    here, there = (draw(p, STAR, given=photo) for p in (pipe, cpu_pipe))
    assert len(here) == 2
    check_near(here, there)
    whole = [photo, *pipe(STAR, given=photo, num_inference_steps=2).frames[0]]
    again, there = (draw(p, STAR, given=whole, redraw=[2]) for p in (pipe, cpu_pipe))
    check_near(again, there)
    for kind in 'pt', 'latent':
        out = pipe(STAR[:1], num_inference_steps=2, output_type=kind)
        assert out.frames[0].device.type == 'cpu'

@pytest.mark.parametrize('dtype', HALF_LEVELS, ids=str)
def test_half_precision(pipe, texts, dtype):
    "bfloat16 and float16 draw nearly what float32 draws; the frames show the same facts."
    half = opened(dtype=dtype)
    exact, rounded = draw(pipe, texts[0], steps=8), draw(half, texts[0], steps=8)
    assert 0 < mean(exact, rounded) <= HALF_LEVELS[dtype], mean(exact, rounded)
    assert {p.dtype for p in half.model.parameters()} == {dtype}
    assert read(rounded.astype(np.uint8)) == read(exact.astype(np.uint8))

def test_batches(pipe, texts):
    "A story is the same alone, among 7 and among 32."
    among_32, among_7 = draw(pipe, texts, steps=3), draw(pipe, texts[:7], steps=3)
    for i in 0, 6:
        alone = draw(pipe, texts[i], steps=3, seed=i)
        assert most(alone, among_7[i]) <= BATCH_LEVELS and most(alone, among_32[i]) <= BATCH_LEVELS
    for a, b in zip(among_7, among_32): assert most(a, b) <= BATCH_LEVELS
    assert most(among_7[0], among_7[1]) > 20

FP8_IDS = ['plain', 'usual']
FP8_WAYS = [True, pytest.param(False, marks=cuda_only(
    'on the CPU, drawing multiplies by weights that layers cast only when they are called'))]

@pytest.mark.parametrize('plain', FP8_WAYS, ids=FP8_IDS)
def test_eight_bit_weights(texts, plain):
    "A UNet that stores 8 bits and computes in bfloat16 takes half the room and draws nearly alike."
    pipe = opened(dtype=torch.bfloat16)
    before, wide = draw(pipe, texts[0], steps=8, plain=plain), size(pipe.unet)
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn,
                                       compute_dtype=torch.bfloat16)
    after = draw(pipe, texts[0], steps=8, plain=plain)
    assert .5 <= size(pipe.unet)/wide < .52 and pipe.unet.dtype == torch.bfloat16
    assert pipe.unet.conv_in.weight.dtype == torch.float8_e4m3fn      # also after drawing
    assert 0 < mean(before, after) <= FP8_LEVELS, mean(before, after)


# fast kernels

def check_fast(fast, slow, texts):
    "Stories of other lengths and numbers, drawn one after the other, equal the slow drawing."
    for several, how in [([STAR], {}), ([STAR[:2]]*3, {}), (texts[:5], {}), ([STAR, STAR[:1]], {}),
                         ([STAR], dict(guidance_scale=1)),
                         # 2 steps alone, 4 guided, 2 alone: each kind is recorded and repeated
                         ([STAR[:2]]*2, dict(steps=8, guidance_interval=(.25, .75))),
                         ([STAR[:2]], dict(steps=6, reuse=2)), ([STAR], dict(plain=True)),
                         ([STAR], {})]:
        for a, b in zip(draw(fast, several, **how), draw(slow, several, **how)): check_near(a, b)

@cuda_only('CUDA graphs')
def test_graphs_alone(pipe, texts, monkeypatch):
    "Recorded calls, repeated, say what the calls say, and are recorded again for another story."
    graphs = opened()
    monkeypatch.setattr(graphs, '_graphs', True)
    replayed, replay = [], torch.cuda.CUDAGraph.replay
    def counted(graph):
        replayed.append(id(graph))                              # a graph itself would keep memory
        return replay(graph)
    monkeypatch.setattr(torch.cuda.CUDAGraph, 'replay', counted)
    check_fast(graphs, pipe, texts)
    assert len(replayed) > 20

@pytest.fixture(scope='module')
def fast():
    "A pipeline with compiled blocks."
    pipe = opened()
    pipe.enable_fast_kernels()
    yield pipe
    torch._dynamo.reset()

@needs_compiler
@cuda_only('tests/draw/test_pipeline.py compiles for the CPU, with ARLDM_SOAK=1')
def test_compiled(fast, pipe, texts):
    "Compiled blocks draw what plain ones draw."
    check_fast(fast, pipe, texts)

@needs_compiler
@cuda_only('CUDA graphs of compiled blocks')
def test_compiled_and_recorded(fast, pipe, texts):
    "Graphs of compiled blocks draw what plain blocks draw."
    fast.enable_fast_kernels(graphs=True)
    assert fast._graphs
    check_fast(fast, pipe, texts)


# offloading

def offload_model(pipe): pipe.enable_model_cpu_offload()
def offload_layers(pipe): pipe.enable_sequential_cpu_offload()

def offload_groups(pipe, **how):
    # `history` uses its tables without calling them, so no hook would fetch them
    pipe.enable_group_offload(torch.device(DEVICE), exclude_modules=['history'], **how)

def offload_leaves(pipe): offload_groups(pipe, offload_type='leaf_level')
def offload_blocks(pipe): offload_groups(pipe, offload_type='block_level', num_blocks_per_group=1)

# With blocks, keys and values of a frame cannot be computed before their block is called: `plain`.
OFFLOADS = [('model', offload_model, 'cpu', {}), ('layers', offload_layers, 'meta', {}),
            ('leaves', offload_leaves, 'cpu', {}),
            ('blocks', offload_blocks, 'cpu', dict(plain=True))]

@cuda_only('offloading moves weights between it and the CPU')
@pytest.mark.parametrize('name,enable,rest,how', OFFLOADS, ids=[case[0] for case in OFFLOADS])
def test_offload(pipe, name, enable, rest, how):
    "Weights that wait on the CPU until they are needed draw the same frames, and wait there again."
    waiting = opened(to=False)
    enable(waiting)
    for several in [STAR], [STAR[:2]]*2:
        want = draw(pipe, several, **how)
        for a, b in zip(draw(waiting, several, **how), want): check_near(a, b)
        assert devices(waiting.unet) == {rest}
    unguided = draw(waiting, STAR, guidance_scale=1, **how)
    check_near(unguided, draw(pipe, STAR, guidance_scale=1, **how))


# training

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return toy_file(tmp_path_factory.mktemp('data')/'stories.h5', (6, 1, 1))

@pytest.fixture(scope='module')
def begin(data, tmp_path_factory):
    "Makes the shipped toy model, its stories, and settings; training itself chooses the device."
    words = tmp_path_factory.mktemp('words')
    def make(**how):
        usual = dict(model='toy-base', train_batch_size=2, lr_warmup_steps=0, learning_rate=1e-3, lr_scheduler='constant', ema_decay=0.,
                     num_validation_stories=0)
        s, file = resolve('toy', **{**usual, **how}), StoryFile(data)
        net = make_model(s, file, words).freeze(s.freeze)
        stories = StoryDataset(file['train'], net.vocab, s.resolution, net.memory_side, train=True,
                               seed=s.seed, crops=s.crops)
        return net, stories, s
    return make

def weights(net):
    "Copies of the weights that train, on the CPU."
    return {k: p.detach().cpu().clone() for k, p in net.named_parameters() if p.requires_grad}

def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

def distance(a, b):
    squares = [(a[k].double() - b[k].double()).square().sum() for k in a]
    return float(torch.stack(squares).sum().sqrt())

def run_through(net, stories, s, run=None, n=None, ema=None, workers=0):
    "The losses of the next `n` steps, or of all that are left."
    records = training.train_steps(net, stories, s, run, ema, workers=workers)
    losses = []
    for record in records:
        losses.append(record['loss'])
        if len(losses) == n: break
    records.close()
    assert devices(net) == {torch.device(DEVICE).type}
    return losses

def near(losses, precision='no'):
    return pytest.approx(losses, rel=LOSS[precision] if ON_GPU else 0, abs=0)

@pytest.mark.parametrize('precision', ['no', pytest.param('bf16', marks=cuda_only(
    'tests/train/test_loop.py resumes in bfloat16 on the CPU, with ARLDM_SOAK=1'))])
def test_resumed(begin, tmp_path, precision):
    "Three steps, a stop, and three more are six steps: losses, weights and averaged weights."
    how = dict(max_train_steps=6, checkpointing_steps=3, ema_decay=.9, mixed_precision=precision)
    net, stories, s = begin(**how)
    first, whole_ema = weights(net), make_ema(net, s)
    whole = run_through(net, stories, s, tmp_path/'whole', ema=whole_ema)
    cut, _, _ = begin(**how)
    begun = run_through(cut, stories, s, tmp_path/'cut', 3, make_ema(cut, s))
    assert [path.name for path in checkpoints(tmp_path/'cut/checkpoints')] == ['000003.pt']
    resumed, _, _ = begin(**how)
    ema = make_ema(resumed, s)
    rest = run_through(resumed, stories, s, tmp_path/'cut', ema=ema)
    assert len(whole) == 6 and len(begun) == len(rest) == 3
    assert begun + rest == near(whole, precision)
    a, b = weights(resumed), weights(net)
    with averaged(resumed, ema): mean_a = weights(resumed)
    with averaged(net, whole_ema): mean_b = weights(net)
    assert distance(mean_b, b) > .01*distance(b, first) > 0
    if not ON_GPU: assert same(a, b) and same(mean_a, mean_b)
    for x, y in (a, b), (mean_a, mean_b): assert distance(x, y) <= WAY[precision]*distance(b, first)

def test_ema(begin):
    "The weights of all steps averaged, on the same device; `averaged` gives the weights back."
    net, stories, s = begin(max_train_steps=4, ema_decay=.6)
    ema, average = make_ema(net, s), {k: w.double() for k, w in weights(net).items()}
    for k, _ in enumerate(training.train_steps(net, stories, s, None, ema)):
        decay = min(.6, 1 - (1 + k)**-.75)                              # as its warm-up has it
        for name, w in weights(net).items(): average[name].lerp_(w.double(), 1 - decay)
    trained, last = [p for p in net.parameters() if p.requires_grad], weights(net)
    assert k == 3 and devices(net) == {torch.device(DEVICE).type}
    assert [x.device for x in ema.shadow_params] == [p.device for p in trained]
    with averaged(net, ema) as lent: inside = weights(lent)
    for name, want in average.items():
        assert (inside[name] - want).abs().max() <= EMA*max(1, want.abs().max()), name
    assert same(weights(net), last) and distance(inside, last) > 100*EMA

def test_pinned(begin):
    "Batches lie in memory that a GPU can fetch by itself, where there is one."
    _, stories, s = begin(max_train_steps=2)
    for workers in 0, 2:
        [(_, batch)] = next(iter(training.step_batches(stories, s, workers=workers)))
        tensors = [x for x in batch.values() if torch.is_tensor(x)]
        assert len(tensors) >= 6 and {x.is_pinned() for x in tensors} == {ON_GPU}

def test_readers_change_nothing(begin):
    "Two processes that read ahead give the losses of none."
    alone, helped = (run_through(*begin(max_train_steps=3), workers=n) for n in (0, 2))
    assert len(alone) == 3 and helped == near(alone)


# float16

accelerator = training.accelerator

def watch_scaler(monkeypatch, **how):
    "The accelerators that training makes from now on; with a scaler of this kind, if one is given."
    made = []
    def watched(s):
        acc = accelerator(s)
        if how: acc.scaler = torch.amp.GradScaler('cuda', **how)
        made.append(acc)
        return acc
    monkeypatch.setattr(training, 'accelerator', watched)
    return made

@cuda_only('the CPU trains in no float16')
def test_float16(begin, tmp_path, monkeypatch):
    "A step whose gradients overflow changes no weight and lowers the scale; checkpoints keep it."
    net, stories, s = begin(max_train_steps=4, checkpointing_steps=1, mixed_precision='fp16')
    made = watch_scaler(monkeypatch, init_scale=2.**40, backoff_factor=2.**-30)
    before = weights(net)
    records = training.train_steps(net, stories, s, tmp_path)
    first = next(records)
    assert math.isfinite(first['loss']) and not math.isfinite(first['grad_norm'])
    assert same(weights(net), before) and made[0].scaler.get_scale() == 2.**10
    for _ in range(2):
        record, earlier = next(records), weights(net)
        assert math.isfinite(record['loss']) and 0 < record['grad_norm'] < math.inf
        assert not same(earlier, before) and all(w.isfinite().all() for w in earlier.values())
        before = earlier
    records.close()
    newest = checkpoints(tmp_path/'checkpoints')[-1]
    kept = torch.load(newest, weights_only=True, map_location='cpu')
    assert kept['step'] == 3 and kept['scaler']['scale'] == 2.**10
    assert kept['scaler']['_growth_tracker'] == 2                       # good steps since it fell
    again, stories, s = begin(max_train_steps=4, checkpointing_steps=1, mixed_precision='fp16')
    made = watch_scaler(monkeypatch)                                    # it would begin with 65536
    losses = run_through(again, stories, s, tmp_path)
    assert len(losses) == 1 and math.isfinite(losses[0])
    assert made[0].scaler.get_scale() == 2.**10 and not same(weights(again), before)

@cuda_only('the CPU trains in no float16')
def test_float16_as_float32(begin):
    "Losses in float16 are nearly those in float32; at so slow a rate a skipped step hardly counts."
    found = [run_through(*begin(max_train_steps=3, learning_rate=1e-5, mixed_precision=p)) for p in ('no', 'fp16')]
    assert found[0] == pytest.approx(found[1], rel=LOSS['bf16']) and found[0] != found[1]


# memory

@pytest.fixture
def little_room():
    "A function that grants this process some bytes more than it has; after a test, all of them."
    def grant(more):
        gc.collect()
        torch.cuda.empty_cache()
        _, total = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + more)/total)
    before = torch.cuda.get_per_process_memory_fraction()
    yield grant
    torch.cuda.set_per_process_memory_fraction(before)
    gc.collect()
    torch.cuda.empty_cache()

MORE = 64 << 20     # bytes; the calls below want gigabytes

@cuda_only('its memory')
def test_too_many_stories(pipe, little_room):
    "Drawing too much at once ends in one line of advice; a small story is drawn afterwards."
    want = draw(pipe, STAR)
    little_room(MORE)
    said = one_line(draw, pipe, [STAR[:1]]*256, height=256, width=256)
    assert said == 'out of memory with 256 stories at once; try 128 (--batch-size 128)'
    said = one_line(draw, pipe, STAR[:1], height=2048, width=2048)
    assert said.startswith('out of memory with 1 story at once; try smaller frames')
    torch.cuda.set_per_process_memory_fraction(1.)
    gc.collect()
    torch.cuda.empty_cache()
    check_near(draw(pipe, STAR), want)

@cuda_only('its memory')
def test_too_large_a_step(begin, pipe, little_room):
    "Training that finds no room ends in one line of advice; drawing and training go on afterwards."
    want = draw(pipe, STAR)
    little_room(MORE)
    said = one_line(run_through, *begin(train_batch_size=6, resolution=512, max_train_steps=1))
    assert said == ('out of memory with 6 stories of 512 pixels at once; try --train-batch-size 3 '
                    '--gradient-accumulation-steps 2, or --gradient-checkpointing, or a smaller resolution in another run')
    torch.cuda.set_per_process_memory_fraction(1.)
    gc.collect()
    torch.cuda.empty_cache()
    check_near(draw(pipe, STAR), want)
    assert len(run_through(*begin(max_train_steps=1))) == 1


# frozen features

def test_cached_features(data, tmp_path):
    "What frozen parts say about pictures and captions is the same wherever it was computed."
    net, file = ARLDM.load(asset('toy/base')).freeze(FREEZE['attention']), StoryFile(data)
    stories = StoryDataset(file['train'], net.vocab, 64, net.memory_side, train=True, crops=1)
    build_cache(net, stories, tmp_path/'cpu', progress=False)
    build_cache(net.to(DEVICE), stories, tmp_path/'here', progress=False, batch=7)
    names = sorted(path.name for path in (tmp_path/'cpu').glob('*.safetensors'))
    kinds = ['captions-00000', 'moments-00000', 'null', 'slots-00000']
    assert names == [f'{kind}.safetensors' for kind in kinds]
    for name in names:
        here, there = load_file(tmp_path/'here'/name), load_file(tmp_path/'cpu'/name)
        assert here.keys() == there.keys()
        for k, want in there.items():
            assert here[k].shape == want.shape and want.double().std() > 0
            assert (here[k] - want).abs().max() <= FEATURES*want.abs().max(), (name, k)
    assert (tmp_path/'here/cache.json').read_bytes() == (tmp_path/'cpu/cache.json').read_bytes()


# looking and scoring

def test_attention(pipe):
    "Where a frame looks is the same on every device; a pipeline in bfloat16 can be asked, too."
    texts = list(toy_story(5).captions)
    frames = [Image.fromarray(np.uint8(frame)) for frame in draw(pipe, texts, steps=2)]
    there = attention(opened('cpu'), texts, frames, 2)
    here = attention(pipe, texts, frames, 2)
    assert here.device.type == 'cpu' and here.shape == there.shape
    assert (here - there).abs().max() <= ATTENTION
    half = attention(opened(dtype=torch.bfloat16), texts, frames, 2)
    assert half.dtype == torch.float32 and (half - there).abs().mean() <= HALF_ATTENTION

def test_picture_features():
    "A feature network sees the same on every device: no TF32 in its convolutions."
    torch.manual_seed(0)
    net, rng = Inception().eval(), np.random.default_rng(0)
    squares = [Image.fromarray(rng.integers(0, 256, (net.side, net.side, 3), 'uint8')) for _ in range(2)]
    with torch.no_grad():
        there = _features(net, squares)
        here = _features(net.to(DEVICE), squares)
    assert here.shape == (2, net.num_features) and np.abs(here).max() > 0
    assert np.abs(here - there).max() <= FEATURES*np.abs(there).max()
