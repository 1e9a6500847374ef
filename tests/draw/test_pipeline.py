"`StoryPipeline` keeps to the conventions of diffusers, draws what a plain loop draws, and refuses what makes no sense."
import io, multiprocessing, os, resource, shutil, threading, warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import accelerate, diffusers, numpy as np, pytest, torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import DDIMScheduler, callbacks
from diffusers.image_processor import VaeImageProcessor
from diffusers.training_utils import EMAModel
from PIL import Image
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from arldm.draw import sampling as denoise
from arldm.core import StoryError, asset, story_generator
from arldm.settings import SCHEDULERS
from arldm.draw.schedulers import make_scheduler, set_timesteps
from arldm.draw.pipeline import StoryPipeline
from arldm.model.config import PARTS
from arldm.model.arldm import ARLDM

A = ['a big red star is at the beach on the left', 'it jumps', 'it goes to the right']
B = ['a small blue circle is at the city on the right', 'it rests', 'it meets a green square']
FEW = dict(num_inference_steps=2, guidance_scale=2.)
soak = pytest.mark.skipif(os.environ.get('ARLDM_SOAK') != '1', reason='long: set ARLDM_SOAK=1')
def defect(why): return pytest.mark.xfail(strict=True, reason=why)

def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe

@pytest.fixture(scope='module', autouse=True)
def one_thread():
    "So small a model is drawn no faster by more, and a forked process could not use them."
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)

@pytest.fixture(scope='module')
def toy(): return quiet(StoryPipeline.from_pretrained(asset('toy/arldm')))

def make_tiny():
    "Random weights, 32 pixels; conditions count for more than they do at birth."
    vocab = ARLDM.load(asset('toy/arldm')).vocab
    torch.manual_seed(0)
    net = ARLDM.create('tiny', vocab, resolution=32).eval()
    for name, m in net.unet.named_modules():
        if name.endswith(('attn2.to_out.0', 'conv_out')): m.weight.data *= 8
    return quiet(StoryPipeline.from_model(net))

@pytest.fixture(scope='module')
def kept(): return make_tiny()

@pytest.fixture
def tiny(kept):
    "The random model; whatever a test does to its scheduler is undone."
    scheduler = kept.scheduler
    state = {k: v.clone() for k, v in kept.model.state_dict().items()}
    yield kept
    kept.scheduler = scheduler
    now = kept.model.state_dict()
    assert now.keys() == state.keys() and all(torch.equal(v, now[k]) for k, v in state.items())

@pytest.fixture(scope='module')
def saved(kept, tmp_path_factory):
    kept.save_pretrained(folder := tmp_path_factory.mktemp('run')/'pipeline')
    return folder

def latents(pipe, captions, *more, **options):
    out = pipe(captions, *more, output_type='latent', **{**FEW, **options}).frames
    return out[0] if len(out) == 1 else out

def relative(x, y): return ((x - y).norm()/y.norm()).item()

def off(xs, ys): # in levels of 255
    return max(np.abs(np.asarray(x, int) - np.asarray(y, int)).max() for x, y in zip(xs, ys, strict=True))

def photo(w=48, h=48, seed=0, mode='RGB'):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)).convert(mode)

class Count:
    "Counts the calls of a module, and their rows."
    def __init__(self, module, key=None):
        self.rows = []
        def see(m, args, kw): self.rows.append(len(args[0] if args else kw[key]))
        self.handle = module.register_forward_pre_hook(see, with_kwargs=True)
    def __enter__(self): return self.rows
    def __exit__(self, *_): self.handle.remove()

def one_line(f, *args, match=None, **kw):
    with pytest.raises(StoryError, match=match) as e: f(*args, **kw)
    text = str(e.value)
    assert text and '\n' not in text and len(text) < 400
    return text


# diffusers' conventions: opening, saving, moving

def test_round_trip(tiny, saved):
    files = [p for p in saved.rglob('*') if p.is_file()]
    assert {p.suffix for p in files} == {'.json', '.safetensors', '.py'} and [p.name for p in files if p.suffix == '.py'] == ['pipeline.py']
    # a run folder holds pipeline/
    for folder in saved, saved.parent, str(saved):
        again = quiet(StoryPipeline.from_pretrained(folder))
        want = tiny.model.state_dict()
        assert all(torch.equal(v, want[k]) for k, v in again.model.state_dict().items())
        assert torch.equal(latents(again, A), latents(tiny, A)) and type(again.scheduler) is type(tiny.scheduler)

@pytest.mark.parametrize('word,kind', [('dtype', torch.bfloat16), ('torch_dtype', torch.float16)], ids=str)
def test_half(toy, saved, tiny, word, kind):
    half = quiet(StoryPipeline.from_pretrained(saved, **{word: kind}))
    assert half.dtype == kind and {p.dtype for p in half.model.parameters()} == {kind}
    out = latents(half, [A, B[:2]])
    assert out[0].dtype == torch.float32 and all(x.isfinite().all() for x in out)
    assert relative(out[0][0], latents(tiny, [A, B[:2]])[0][0]) < .1
    assert half.to(torch.float32).dtype == torch.float32 and latents(half, A).isfinite().all()

def test_to_half_and_back(saved):
    "The null condition follows the weights' precision."
    pipe = quiet(StoryPipeline.from_pretrained(saved))
    assert pipe.to('cpu') is pipe and pipe.to(torch.bfloat16).dtype == torch.bfloat16
    assert pipe.model.null_cond()[0].dtype == torch.bfloat16
    assert pipe.to('cpu', torch.float32).model.null_cond()[0].dtype == torch.float32

def test_variant(tiny, tmp_path):
    tiny.save_pretrained(tmp_path, variant='fp16')
    assert (tmp_path/'unet/diffusion_pytorch_model.fp16.safetensors').is_file()
    assert torch.equal(latents(quiet(StoryPipeline.from_pretrained(tmp_path, variant='fp16')), A), latents(tiny, A))
    one_line(StoryPipeline.from_pretrained, tmp_path)

def test_parts_replaced(saved, tiny):
    "A part handed to `from_pretrained` is taken instead of the folder's."
    pipe = StoryPipeline.from_pretrained(saved, unet=tiny.unet, scheduler=(s := make_scheduler('ddim')))
    assert pipe.unet is tiny.unet and pipe.scheduler is s

def test_components(tiny):
    other = quiet(StoryPipeline(**tiny.components))
    assert all(getattr(other, k) is v for k, v in tiny.components.items()) and len(tiny.components) == 8
    assert torch.equal(latents(other, A), latents(tiny, A))

def test_from_pipe(tiny):
    other = StoryPipeline.from_pipe(tiny)
    assert all(getattr(other, k) is v for k, v in tiny.components.items())

@pytest.mark.skipif(torch.accelerator.is_available(), reason='there is an accelerator')
@pytest.mark.parametrize('enable', ['enable_model_cpu_offload', 'enable_sequential_cpu_offload'])
def test_offload_needs_accelerator(tiny, enable):
    with pytest.raises(RuntimeError, match='requires accelerator'): getattr(tiny, enable)()

def test_offload_hooks(saved, tiny):
    pipe = quiet(StoryPipeline.from_pretrained(saved))
    hook = None
    names = pipe.model_cpu_offload_seq.split('->')
    assert {*names} == {k for k, v in pipe.components.items() if isinstance(v, torch.nn.Module)}
    for name in names: _, hook = accelerate.cpu_offload_with_hook(getattr(pipe, name), 'cpu', prev_module_hook=hook)
    assert torch.equal(latents(pipe, A), latents(tiny, A))
    assert torch.equal(latents(pipe, A, plain=True), latents(tiny, A, plain=True))

class Here(ModelHook):
    "Like model offload: a part is here from its `pre_forward` until the next part's."
    here = None
    def __init__(self, name): self.name = name
    def pre_forward(self, module, *args, **kw):
        Here.here = self.name
        return args, kw

def test_offload_brings_weights_first(saved):
    "No weight is used before accelerate has been asked to bring its part."
    pipe = quiet(StoryPipeline.from_pretrained(saved))
    early = set()
    for name in PARTS:
        def used(m, *_, name=name): Here.here == name or early.add(name)
        for m in getattr(pipe, name).modules():
            if m is not getattr(pipe, name) and m._parameters: m.register_forward_pre_hook(used)
        add_hook_to_module(getattr(pipe, name), Here(name))
    latents(pipe, A)
    assert not early

def test_sequential_offload(saved, tiny):
    "As `enable_sequential_cpu_offload` does it, with weights on no device until their layer is called."
    pipe = quiet(StoryPipeline.from_pretrained(saved))
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module) and name not in pipe._exclude_from_cpu_offload:
            accelerate.cpu_offload(part, 'cpu', offload_buffers=len(part._parameters) > 0)
    assert relative(latents(pipe, A), latents(tiny, A)) < 1e-4
    cast = {'Ada': photo()}
    with pytest.warns(UserWarning, match='not trained with a cast'):
        assert relative(latents(pipe, A, cast=cast), latents(tiny, A, cast=cast)) < 1e-4

@pytest.mark.parametrize('options', [dict(offload_type='block_level', num_blocks_per_group=1), dict(offload_type='leaf_level')],
    ids=lambda options: options['offload_type'])
def test_group_offload(saved, tiny, options):
    "All parts, the history embeddings included; weights are read through their modules."
    pipe = quiet(StoryPipeline.from_pretrained(saved))
    pipe.enable_group_offload(torch.device('cpu'), **options)
    assert torch.equal(latents(pipe, A), latents(tiny, A))
    # where a hook has replaced the UNet's `forward`, nothing is reused, and the result is the exact one
    reuse = 1 if 'forward' in vars(pipe.unet) else 2
    want = latents(tiny, A, num_inference_steps=3, reuse=reuse)
    assert torch.equal(latents(pipe, A, num_inference_steps=3, reuse=2), want)

def test_layerwise_casting(saved, tiny):
    "Weights that are kept in 8 bits and computed with in 32 draw as weights that were rounded once."
    pipe = quiet(StoryPipeline.from_pretrained(saved))
    rounded = quiet(StoryPipeline.from_pretrained(saved))
    for name in 'unet', 'memory_encoder', 'history':
        getattr(pipe, name).enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
        weights = dict(getattr(rounded, name).named_parameters())
        for key, w in getattr(pipe, name).named_parameters():
            if w.dtype == torch.float8_e4m3fn: weights[key].data = w.data.float()
    for options in dict(), dict(plain=True), dict(reuse=2, num_inference_steps=3):
        assert torch.equal(latents(pipe, A, **options), latents(rounded, A, **options))
    assert pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k.weight.dtype == torch.float8_e4m3fn
    assert relative(latents(pipe, A), latents(tiny, A)) > .01

def test_training_needs_no_grad(tiny):
    assert not latents(tiny, A).requires_grad and torch.is_grad_enabled()


# diffusers' conventions: the call

def test_progress_bar(tiny, monkeypatch):
    "One bar that counts the steps of all frames, also of stories of several lengths."
    monkeypatch.delenv('TQDM_DISABLE', raising=False)
    bars = []
    make = tiny.progress_bar
    tiny.set_progress_bar_config(disable=False, file=io.StringIO(), desc='drawing')
    monkeypatch.setattr(tiny, 'progress_bar', lambda *a, **kw: bars.append(make(*a, **kw)) or bars[-1])
    try: tiny([A, B[:2]], num_inference_steps=3)
    finally: quiet(tiny)
    assert [(b.n, b.total, b.desc.rstrip(': ')) for b in bars] == [(15, 15, 'drawing')]

def test_callback(tiny):
    seen = []
    def look(pipe, i, t, kw):
        seen.append((pipe, i, int(t), [*kw], tuple(kw['latents'].shape)))
        return {}
    want = latents(tiny, [A, B])
    out = latents(tiny, [A, B], callback_on_step_end=look)
    scheduler = make_scheduler('dpm++', tiny.scheduler.config)
    set_timesteps(scheduler, FEW['num_inference_steps'])
    times = [int(t) for t in scheduler.timesteps]
    steps = [(tiny, i, t, ['latents'], (2, 4, 4, 4)) for i, t in enumerate(times)]
    assert seen == steps*len(A)
    assert torch.equal(out[1], want[1])
    assert torch.equal(latents(tiny, [A, B], callback_on_step_end=lambda *_: None)[1], want[1])

def test_callback_changes(tiny):
    def blank(pipe, i, t, kw): return {'latents': torch.full_like(kw['latents'], i)}
    assert (latents(tiny, A, callback_on_step_end=blank) == 1).all()
    # in place, as one may
    def add(pipe, i, t, kw): kw['latents'].mul_(.5)
    assert not torch.equal(latents(tiny, A, callback_on_step_end=add), latents(tiny, A))

class Look(callbacks.PipelineCallback):
    tensor_inputs = ['latents']
    def callback_fn(self, pipe, i, t, kw): return {**kw, 'latents': kw['latents']*0}

def test_pipeline_callback(tiny):
    assert (latents(tiny, A, callback_on_step_end=Look(None, 1)) == 0).all()

@pytest.mark.parametrize('stories', [[A], [A, B]], ids=['one', 'two'])
def test_guidance_cutoff(tiny, stories):
    "diffusers' callback that ends guidance after a part of the steps, in every frame."
    cut = callbacks.SDCFGCutoffCallback(cutoff_step_ratio=.5)
    with Count(tiny.unet) as rows:
        out = latents(tiny, stories, num_inference_steps=4, callback_on_step_end=cut)
    n = len(stories)
    # the callback ends guidance after step int(.5·4), counted from 0
    assert rows == [2*n, 2*n, 2*n, n]*3
    want = latents(tiny, stories, num_inference_steps=4, guidance_interval=(0, .75))
    assert max(map(relative, out, want)) < 1e-5
    cut = callbacks.MultiPipelineCallbacks([Look(None, 1), callbacks.SDCFGCutoffCallback(None, 0)])
    assert all((z == 0).all() for z in latents(tiny, stories, callback_on_step_end=cut))

def test_guidance_changes(tiny):
    "`_guidance_scale` counts from the next step on and starts again with every frame."
    seen = []
    def change(pipe, i, t, kw):
        seen.append((pipe.guidance_scale, pipe.do_classifier_free_guidance, pipe.num_timesteps, int(pipe.current_timestep) == int(t)))
        pipe._guidance_scale = 5.
    changed = latents(tiny, A, num_inference_steps=3, guidance_scale=2., callback_on_step_end=change)
    assert seen == [(2., True, 3, True), (5., True, 3, True), (5., True, 3, True)]*3
    assert relative(changed, latents(tiny, A, num_inference_steps=3)) > 1e-3
    # guidance can also be switched on
    def on(pipe, i, t, kw): pipe._guidance_scale = 2.
    with Count(tiny.unet) as rows: latents(tiny, A[:1], num_inference_steps=3, guidance_scale=1, callback_on_step_end=on)
    assert rows == [1, 2, 2]
    # after the call as in diffusers: the scale that was set last
    assert tiny.current_timestep is None and tiny.guidance_scale == 2 and not tiny.interrupt

def test_context_changes(tiny):
    "What a callback returns as `prompt_embeds` is the context from then on, guided or not."
    def double(pipe, i, t, kw): return {'prompt_embeds': kw['prompt_embeds']*2}
    inputs = dict(num_inference_steps=2, callback_on_step_end_tensor_inputs=['prompt_embeds'])
    for options in dict(), dict(guidance_scale=1), dict(plain=True):
        seen = []
        def look(module, args, kw): seen.append(kw['encoder_hidden_states'].clone())
        handle = tiny.unet.register_forward_pre_hook(look, with_kwargs=True)
        try: latents(tiny, A[:1], callback_on_step_end=double, **inputs, **options)
        finally: handle.remove()
        assert torch.equal(seen[1], seen[0]*2)
    def in_place(pipe, i, t, kw): kw['prompt_embeds'].mul_(2)
    assert torch.equal(latents(tiny, A, callback_on_step_end=in_place, **inputs), latents(tiny, A, callback_on_step_end=double, **inputs))
    def cut(pipe, i, t, kw): return {'prompt_embeds': kw['prompt_embeds'][:, 1:]}
    one_line(tiny, A, **FEW, callback_on_step_end=cut, callback_on_step_end_tensor_inputs=['prompt_embeds'], match='expected')

def test_context_changes_before_guidance(tiny):
    "A context that was replaced in a step without guidance stays replaced when guidance begins, and the other way round."
    inputs = dict(num_inference_steps=3, callback_on_step_end_tensor_inputs=['prompt_embeds'])
    def first(pipe, i, t, kw): return {'prompt_embeds': kw['prompt_embeds']*(2 if i == 0 else 1)}
    for interval in (.3, 1), (0, .3):
        for options in dict(), dict(plain=True):
            seen = []
            def look(module, args, kw): seen.append((kw['encoder_hidden_states'].clone(), kw['encoder_attention_mask']))
            handle = tiny.unet.register_forward_pre_hook(look, with_kwargs=True)
            try:
                latents(tiny, A[:1], guidance_interval=interval, **inputs, **options)
                before = [context[-1][visible[-1]] for context, visible in seen]
                seen.clear()
                latents(tiny, A[:1], guidance_interval=interval, callback_on_step_end=first, **inputs, **options)
                after = [context[-1][visible[-1]] for context, visible in seen]
            finally: handle.remove()
            assert torch.equal(after[0], before[0])
            assert all(torch.equal(x, 2*y) for x, y in zip(after[1:], before[1:], strict=True))
    # in place and then without guidance, as out of place
    def in_place(pipe, i, t, kw):
        if i == 0: kw['prompt_embeds'].mul_(2)
        pipe._guidance_scale = 0.
    def out_of_place(pipe, i, t, kw):
        pipe._guidance_scale = 0.
        return first(pipe, i, t, kw)
    assert torch.equal(latents(tiny, A, callback_on_step_end=in_place, **inputs), latents(tiny, A, callback_on_step_end=out_of_place, **inputs))

def test_callback_sees_the_scheduler_of_the_call(tiny):
    seen = []
    def look(pipe, i, t, kw): seen.append(int(pipe.scheduler.timesteps[i]) == int(t) and pipe.scheduler.step_index == i + 1)
    before = tiny.scheduler
    latents(tiny, A[:1], num_inference_steps=3, callback_on_step_end=look)
    assert seen == [True]*3 and tiny.scheduler is before and before.step_index is None

def test_callback_returns_something_else(tiny):
    one_line(tiny, A, **FEW, callback_on_step_end=lambda p, i, t, kw: kw['latents'], match='must return a dict .*; it returned Tensor')
    one_line(tiny, A, **FEW, callback_on_step_end=lambda p, i, t, kw: {'latents': kw['latents'][..., 1:]}, match='latents of the shape')

def test_gradients_in_a_callback(tiny):
    weight = tiny.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k.weight
    def gradient(z, t, context):
        with torch.enable_grad(): loss = tiny.unet(torch.cat([z]*2), t, encoder_hidden_states=context).sample.pow(2).sum()
        return torch.autograd.grad(loss, weight)[0]
    found = []
    def differentiate(pipe, i, t, kw):
        context = kw['prompt_embeds']
        assert type(context) is torch.Tensor
        found.append((gradient(kw['latents'], t, context), gradient(kw['latents'], t, context.clone())))
    latents(tiny, A[:1], callback_on_step_end=differentiate, callback_on_step_end_tensor_inputs=['latents', 'prompt_embeds'])
    assert len(found) == 2 and all(torch.equal(x, y) and x.norm() > 0 for x, y in found)

def test_null_condition_follows_between_frames(saved):
    "Weights that a callback, or the reader of a stream, changes between two frames."
    pipe = quiet(StoryPipeline.from_pretrained(saved))
    table = next(pipe.text_encoder.parameters())
    def double(*_):
        if len(steps) == 1: table.data.mul_(2)    # after the last step of the first frame
        steps.append(1)
    steps = []
    changed = pipe(A[:2], **FEW, callback_on_step_end=double).frames[0]
    # the first frame as it was, the second with the weights of now
    rest = [*pipe.stream(A[:2], drawn=changed[:1], **FEW)]
    assert off(rest, changed[1:]) <= 1
    table.data.div_(2)
    frames = pipe.stream(A[:2], **FEW)
    streamed = [next(frames)]
    table.data.mul_(2)
    streamed += frames
    assert off(streamed[1:], [*pipe.stream(A[:2], drawn=streamed[:1], **FEW)]) <= 1

def test_context_changes_in_hooks(tiny):
    def zero(module, args, kw):
        if float(args[1]) < 600: kw['encoder_hidden_states'].zero_()
    handle = tiny.unet.register_forward_pre_hook(zero, with_kwargs=True)
    try: assert relative(latents(tiny, A[:1], num_inference_steps=3), latents(tiny, A[:1], num_inference_steps=3, plain=True)) < 1e-5
    finally: handle.remove()

def test_weights_of_inference_mode(tiny, saved):
    with torch.inference_mode(): pipe = quiet(StoryPipeline.from_pretrained(saved))
    assert torch.equal(latents(pipe, A[:1]), latents(tiny, A[:1]))

@pytest.mark.parametrize('change', ['data', 'copy'])
def test_weights_change_in_callback(saved, change):
    "A callback may change weights, in place or by `.data`, from the next step on."
    pipe = quiet(StoryPipeline.from_pretrained(saved))
    weight = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_v.weight
    def double(pipe, i, t, kw):
        if i: return
        if change == 'data': weight.data = weight.data*2
        else:
            with torch.no_grad(): weight.copy_(weight*2)
    out = latents(pipe, A[:1], callback_on_step_end=double)
    weight.data = weight.data/2
    assert relative(latents(pipe, A[:1], plain=True, callback_on_step_end=double), out) < 1e-5
    weight.data = weight.data/2
    assert relative(latents(pipe, A[:1]), out) > 1e-4

def test_callback_gets_what_it_asked_for(tiny):
    seen = []
    tiny(A, **FEW, callback_on_step_end_tensor_inputs=[], callback_on_step_end=lambda p, i, t, kw: seen.append({**kw}))
    assert seen == [{}]*6

def test_interrupt(tiny):
    "As the manual of diffusers says: a callback sets `_interrupt`, and no further step is made."
    def stop(pipe, i, t, kw): pipe._interrupt = True
    for stories, drawn in ([A[:1]], [1]), ([A, B[:2]], [1, 0]):
        with Count(tiny.unet) as calls: out = tiny(stories, num_inference_steps=5, callback_on_step_end=stop)
        assert len(calls) == 1
        # the frame in progress is there as it is, the others are not
        assert [len(f) for f in out.frames] == [len(s) for s in out.stories] == drawn
        assert repr(out) and out._repr_png_()

def test_interrupt_from_another_thread(tiny):
    def stop(pipe, i, t, kw):
        thread = threading.Thread(target=setattr, args=(pipe, '_interrupt', True))
        thread.start()
        thread.join()
    with Count(tiny.unet) as calls: tiny(A, num_inference_steps=5, callback_on_step_end=stop)
    assert len(calls) == 1 and len(tiny(A, **FEW).frames[0]) == 3

def test_output_types(tiny):
    out = {kind: tiny([A, B[:2]], **FEW, height=24, width=40, output_type=kind).frames
           for kind in ('pil', 'np', 'pt', 'latent')}
    for i, n in enumerate((3, 2)):
        pil = np.stack([np.asarray(p) for p in out['pil'][i]])
        assert pil.shape == (n, 24, 40, 3) and {p.mode for p in out['pil'][i]} == {'RGB'} and pil.std() > 0
        assert isinstance(out['np'][i], np.ndarray) and out['np'][i].dtype == np.float32
        assert ((out['np'][i]*255).round() == pil).all() and 0 <= out['np'][i].min() <= out['np'][i].max() <= 1
        assert out['pt'][i].dtype == torch.float32 and tuple(out['pt'][i].shape) == (n, 3, 24, 40)
        assert np.allclose(out['pt'][i].permute(0, 2, 3, 1).numpy(), out['np'][i], atol=1e-7)
        z = out['latent'][i]
        assert z.dtype == torch.float32 and tuple(z.shape) == (n, 4, 3, 5)
        own = tiny.vae.decode(z/tiny.vae.config.scaling_factor, return_dict=False)[0].detach()
        own = VaeImageProcessor().postprocess(own, 'pil')
        # what diffusers makes of it
        assert off(own, out['pil'][i]) <= 1

def test_return_dict(tiny):
    frames, stories, captions, bad = tiny([A, B[:2]], **FEW, return_dict=False)
    out = tiny([A, B[:2]], **FEW)
    assert out[0] is out.frames is out['frames'] and captions == out.captions == [A, B[:2]] and bad == out.bad == {}
    assert [len(s) for s in stories] == [3, 2] and off(frames[0], out.frames[0]) == 0
    assert out.strip(1).size[0] > 100 and out._repr_png_()[:4] == b'\x89PNG'
    assert repr(out) == 'StoryOutput of 2 stories; frames drawn: 3 of 3, 2 of 2'
    again = tiny(A, given=stories[0], redraw=[2], **FEW)
    assert repr(again) == 'StoryOutput of 1 story; frames drawn: 1 of 3'


# schedulers

NOISY = dict(cls='DPMSolverMultistepScheduler', algorithm_type='sde-dpmsolver++')
PNDM = dict(cls='PNDMScheduler', skip_prk_steps=True)
KARRAS = dict(cls='DPMSolverMultistepScheduler', use_karras_sigmas=True)
OTHERS = ['DDIMScheduler', 'DDPMScheduler', 'DEISMultistepScheduler', 'DPMSolverMultistepScheduler', 'LCMScheduler',
          'DPMSolverSinglestepScheduler', 'EulerAncestralDiscreteScheduler', 'EulerDiscreteScheduler',
          'HeunDiscreteScheduler', 'KDPM2AncestralDiscreteScheduler', 'KDPM2DiscreteScheduler', 'TCDScheduler',
          'UniPCMultistepScheduler']

@pytest.mark.skipif(not os.environ.get('ARLDM_SOAK'), reason='a long form: ARLDM_SOAK=1')
@pytest.mark.parametrize('options', [*({'cls': c} for c in OTHERS), PNDM, NOISY, KARRAS, {**NOISY, **KARRAS}],
                         ids=lambda options: '-'.join(str(v).replace('Scheduler', '') for v in options.values()))
def test_scheduler_swap(tiny, options):
    "Any scheduler draws: finite, the same again, the same alone as in company; and noise of its own from the seed."
    options = dict(options)
    cls = getattr(diffusers, options.pop('cls'))
    tiny.scheduler = cls.from_config(tiny.scheduler.config, **options)
    both = latents(tiny, [A[:2], B[:2]], num_inference_steps=3)
    one = latents(tiny, B[:2], num_inference_steps=3, seed=1)
    assert all(x.isfinite().all() for x in both) and relative(*both) > .01
    assert relative(one, both[1]) < 1e-4
    assert torch.equal(latents(tiny, B[:2], num_inference_steps=3, seed=1), one)
    assert relative(latents(tiny, B[:2], num_inference_steps=3, seed=1, plain=True), one) < 1e-4

@pytest.mark.parametrize('name', ['DDIMScheduler', 'DDPMScheduler', 'PNDMScheduler'])
def test_scheduler_swap_keeps_what_was_trained(toy, name):
    "Latents are no pictures: what lies outside [-1, 1] may not be cut off."
    swapped = getattr(diffusers, name).from_config(toy.scheduler.config)
    assert not swapped.config.get('clip_sample', False) and swapped.config.get('skip_prk_steps', True)

def test_swap_by_name(tiny):
    for name in SCHEDULERS:
        tiny.scheduler = make_scheduler(name, tiny.scheduler.config)
        assert latents(tiny, A).isfinite().all()


# chance

def test_seeds(tiny):
    want = latents(tiny, [A, A])
    assert torch.equal(latents(tiny, [A, A], seed=[0, 1])[1], want[1])
    assert torch.equal(latents(tiny, [A, A], seed=(0, 1))[1], want[1])
    assert not torch.equal(*want)
    for seed in -1, 2**63, -2**63: assert latents(tiny, A, seed=seed).isfinite().all()

def test_generators(tiny):
    def fresh(*seeds): return [torch.Generator().manual_seed(s) for s in seeds]
    want = latents(tiny, [A, B])
    assert torch.equal(latents(tiny, [A, B], generator=fresh(0, 1))[1], want[1])
    assert torch.equal(latents(tiny, A, generator=fresh(0)[0]), want[0]) or relative(
        latents(tiny, A, generator=fresh(0)[0]), want[0]) < 1e-4
    one = fresh(7)[0]
    first = latents(tiny, A, generator=one)
    second = latents(tiny, A, generator=one)
    assert not torch.equal(first, second) and torch.equal(first, latents(tiny, A, generator=fresh(7)[0]))
    # one for all, as in diffusers
    x, y = latents(tiny, [A, A], generator=fresh(7)[0])
    assert not torch.equal(x, y)
    one_line(tiny, [A, B], **FEW, generator=fresh(0), match='2 stories to draw, but 1 seeds')
    one_line(tiny, [A, B], **FEW, seed=[1, 2, 3], match='2 stories to draw, but 3 seeds')

def test_latents(tiny):
    g = story_generator(0)
    z = torch.stack([torch.randn(4, 4, 4, generator=g) for _ in A])
    want = latents(tiny, A)
    for kind in torch.float32, torch.float64: assert relative(latents(tiny, A, latents=[z.to(kind)]), want) < 1e-4
    ragged = latents(tiny, [A, B[:2]], latents=[z, z[:2]])
    assert relative(ragged[0], want) < 1e-4 and len(ragged[1]) == 2
    given = latents(tiny, A, [photo()], latents=[z[1:]])
    assert len(given) == 2
    one_line(tiny, A, **FEW, latents=[z[:2]], match=r'story 0 must have the shape \(3, 4, 4, 4\), got \(2,')
    one_line(tiny, A, **FEW, latents=z, match='must have the shape')
    one_line(tiny, [A, A], **FEW, latents=[z], match='story 1')
    one_line(tiny, A, **FEW, latents=[z], height=40, match=r'\(3, 4, 5, 4\)')


# what is computed

def test_guidance_one_is_none(tiny):
    with Count(tiny.unet) as rows: latents(tiny, [A, B], guidance_scale=1)
    assert rows == [2]*6
    with Count(tiny.unet) as rows: latents(tiny, [A, B])
    assert rows == [4]*6
    with Count(tiny.text_encoder, 'input_ids') as rows: latents(tiny, [A, B], guidance_scale=1)
    # no null caption either
    assert rows == [2]*3

def test_guidance_interval(tiny):
    with Count(tiny.unet) as rows: z = latents(tiny, A, num_inference_steps=5, guidance_interval=(.2, .8))
    assert rows == [1, 2, 2, 2, 1]*3
    assert relative(z, latents(tiny, A, num_inference_steps=5, guidance_interval=(.2, .8), plain=True)) < 1e-4
    assert torch.equal(latents(tiny, A, guidance_interval=(0, 0)), latents(tiny, A, guidance_scale=1))
    assert torch.equal(latents(tiny, A, guidance_interval=(0, 1)), latents(tiny, A))

def test_reuse(tiny):
    want = latents(tiny, A, num_inference_steps=4)
    assert torch.equal(latents(tiny, A, num_inference_steps=4, reuse=1), want)
    with Count(tiny.unet) as calls, Count(tiny.unet.down_blocks[0].resnets[0]) as shallow, \
         Count(tiny.unet.mid_block.resnets[0]) as deep:
        z = latents(tiny, A, num_inference_steps=4, reuse=2)
    assert (len(calls), len(shallow), len(deep)) == (12, 12, 6)
    assert 0 < relative(z, want) and z.isfinite().all()
    # nothing stays behind
    assert torch.equal(latents(tiny, A, num_inference_steps=4), want)

def test_encoded_once(tiny):
    "A slot is encoded once, the last frame's never; the null context once in a batch of a call."
    with Count(tiny.memory_encoder) as slots, Count(tiny.text_encoder, 'input_ids') as captions:
        for _ in range(2): latents(tiny, [A, B])
    assert slots == [1, 2, 2]*2 and captions == [1, 2, 2, 2]*2
    with Count(tiny.memory_encoder) as slots: latents(tiny, [A, B], [[photo()], [photo()]])
    assert slots == [1, 2, 2]
    with Count(tiny.memory_encoder) as slots: latents(tiny, A[:1], guidance_scale=1)
    assert slots == []

def test_keys_and_values_once_per_frame(tiny):
    attention = tiny.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    def products(**options): # how often the weights of keys and values are multiplied with a context
        with Products({attention.to_k.weight, attention.to_v.weight}) as counter:
            latents(tiny, A, num_inference_steps=4, **options)
        return counter.n
    assert products() == 2*3 and products(plain=True) == 2*12
    # a callback may change what they depend on
    assert products(callback_on_step_end=lambda *_: None) == 2*12
    with torch.inference_mode(): assert torch.equal(latents(tiny, A), latents(tiny, A, guidance_interval=(0, 1)))

class Products(TorchDispatchMode):
    "Counts the products with some weights."
    def __init__(self, weights):
        super().__init__()
        self.places = {w.data_ptr() for w in weights}
        self.n = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if 'mm' in str(func) and any(x.data_ptr() in self.places for x in args): self.n += 1
        return func(*args, **(kwargs or {}))

def test_one_decode(tiny, monkeypatch):
    rows = []
    decode = tiny.vae.decode
    monkeypatch.setattr(tiny.vae, 'decode', lambda z, *a, **kw: rows.append(len(z)) or decode(z, *a, **kw))
    latents(tiny, [A, B, A])
    assert rows == [3, 3, 3]

def change_by_step(pipe):
    optimizer = torch.optim.SGD(pipe.text_encoder.parameters(), .1)
    pipe.model.null_caption().sum().backward()
    optimizer.step()
def change_by_state(pipe):
    pipe.text_encoder.load_state_dict({k: v*1.1 for k, v in pipe.text_encoder.state_dict().items()})
def change_memory(pipe):
    with torch.no_grad(): next(pipe.memory_encoder.vision_model.parameters()).add_(.1)
def change_part(pipe):
    pipe.text_encoder = make_tiny().text_encoder
    with torch.no_grad(): next(pipe.text_encoder.parameters()).mul_(1.1)
def change_by_ema(pipe):
    weights = [*pipe.text_encoder.parameters()]
    EMAModel([w.detach()*1.1 for w in weights]).copy_to(weights)

@pytest.mark.parametrize('change', [change_by_step, change_by_state, change_memory, change_part, pytest.param(
    change_by_ema)])
def test_null_follows_the_weights(saved, change):
    pipe = quiet(StoryPipeline.from_pretrained(saved))
    before = latents(pipe, A[:2])
    change(pipe)
    now = latents(pipe, A[:2])
    fresh = latents(quiet(StoryPipeline(**pipe.components)), A[:2])
    assert torch.equal(now, fresh) and not torch.equal(now, before)

@pytest.mark.parametrize('given', [0, 1, 2])
@pytest.mark.parametrize('guidance', [1, 2.])
@pytest.mark.parametrize('name', SCHEDULERS)
def test_plain(tiny, name, guidance, given):
    tiny.scheduler = make_scheduler(name, tiny.scheduler.config)
    texts = [A, [*B, 'it jumps'], B]
    seen = [[photo(seed=i) for i in range(given)]]*3
    options = dict(guidance_scale=guidance, given=seen if given else None)
    fast = latents(tiny, texts, **options)
    plain = latents(tiny, texts, **options, plain=True)
    assert [len(x) for x in fast] == [3 - given, 4 - given, 3 - given]
    assert max(map(relative, fast, plain)) < 1e-4

def by_hand(pipe, captions, scheduler, steps, guidance, given=(), seed=0):
    "An independent drawing: the whole context, hidden tokens masked, both halves in every step, frame by frame."
    tokens = pipe.model.vocab.encode(captions)
    P = pipe.memory_encoder.picture_side
    n_slots = 5
    mean = torch.tensor([.48145466, .4578275, .40821073])[:, None, None]
    std = torch.tensor([.26862954, .26130258, .27577711])[:, None, None]
    def seen(im):
        return (torch.from_numpy(np.array(im.resize((P, P), Image.BILINEAR))).permute(2, 0, 1)/255 - mean)/std
    def text(ids, real): return pipe.text_encoder(ids, attention_mask=real.long()).last_hidden_state
    nil = pipe.model.vocab.encode([''])
    S = tokens['caption_ids'].shape[1]
    ones = torch.ones(1, S).bool()
    blank = pipe.memory_encoder(((torch.zeros(3, P, P) - mean)/std)[None], nil['memory_ids'], ones)
    types = pipe.history.type_embedding.weight
    times = pipe.history.time_embedding.weight
    frames = [*given]
    out = []
    g = torch.Generator().manual_seed(seed)
    for _ in given: torch.randn(1, 8, 8, 8, generator=g) # each frame has its own noise
    for k in range(len(given), len(captions)):
        past = [*range(k)]
        # the window
        while len(past) > n_slots - 1: del past[min(max(1, len(given)), n_slots - 2)]
        row = lambda name, j: tokens[name][j:j + 1]
        slots = [pipe.memory_encoder(seen(frames[j])[None], row('memory_ids', j), row('memory_real', j)) for j in past]
        hidden = torch.zeros(1, (n_slots - len(past))*S, types.shape[1])
        def context(caption, slots):
            return torch.cat([caption + types[0], *(s + types[1] + times[j] for j, s in enumerate(slots)), hidden], 1)
        cond = context(text(row('caption_ids', k), row('caption_real', k)), slots)
        uncond = context(text(nil['caption_ids'], ones), [blank for _ in past])
        dark = torch.zeros(1, hidden.shape[1]).bool()
        visible = torch.cat([torch.cat([ones]*(1 + len(past)) + [dark], 1),
                             torch.cat([row('caption_real', k), *(row('memory_real', j) for j in past), dark], 1)])
        set_timesteps(scheduler, steps)
        z = torch.randn(1, 8, 8, 8, generator=g)*scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.scale_model_input(torch.cat([z, z]), t)
            noise_preds = pipe.unet(x, t, torch.cat([uncond, cond]), encoder_attention_mask=visible).sample
            pred_uncond, pred_cond = noise_preds.chunk(2)
            noise_pred = pred_uncond + guidance*(pred_cond - pred_uncond)
            z = scheduler.step(noise_pred, t, z).prev_sample
        x = pipe.vae.decode(z/pipe.vae.config.scaling_factor).sample[0]
        frames.append(Image.fromarray(((x/2 + .5).clamp(0, 1)*255).round().byte().permute(1, 2, 0).numpy()))
        out.append(z)
    return torch.cat(out), frames[len(given):]

@pytest.mark.parametrize('name,given,n', [('ddim', 0, 3), ('pndm', 1, 3), ('dpm++', 1, 7), ('unipc', 0, 6)])
@torch.no_grad()
def test_by_hand(toy, name, given, n):
    texts = (A + ['it rests', 'it jumps', 'it goes to the left', 'it jumps'])[:n]
    first = [photo(64, 64)][:given]
    scheduler = make_scheduler(name, toy.scheduler.config)
    kept = toy.scheduler
    want, frames = by_hand(toy, texts, scheduler, 3, 3., first)
    toy.scheduler = type(scheduler).from_config(scheduler.config)
    try: z = latents(toy, texts, first, num_inference_steps=3, guidance_scale=3.)
    finally: toy.scheduler = kept
    assert relative(z, want) < 1e-4 and frames[0].size == (64, 64)

def test_by_hand_can_fail(toy):
    "The comparison sees what it has to: the history, the caption, the guidance."
    with torch.no_grad(): want, _ = by_hand(toy, A, make_scheduler('ddim'), 3, 3.)
    toy.scheduler, kept = make_scheduler('ddim'), toy.scheduler
    try:
        other = latents(toy, [B[0], *A[1:]], num_inference_steps=3, guidance_scale=3.)
        weaker = latents(toy, A, num_inference_steps=3, guidance_scale=2.9)
    finally: toy.scheduler = kept
    assert relative(other[2], want[2]) > 1e-3 and relative(weaker, want) > 1e-3

def test_long(tiny):
    texts = A*4
    out = tiny(texts, [photo()], **FEW)
    assert len(out.frames[0]) == 11 and len(out.stories[0]) == 12
    assert relative(latents(tiny, texts), latents(tiny, texts, plain=True)) < 1e-4

def test_sizes(tiny):
    for h, w in (8, 8), (72, 40), (40, 72): assert tiny(A[:2], **FEW, height=h, width=w).frames[0][1].size == (w, h)


# drawing again, and one by one

def test_redraw(toy):
    first = toy(A, **FEW)
    for which in [1], [3], [2], [1, 3], [3, 1], [1, 2, 3]:
        again = toy(A, given=first.stories[0], redraw=which, **FEW)
        assert off(again.stories[0], first.stories[0]) <= 1 and len(again.frames[0]) == len(which)
    changed = toy([*A[:2], 'it meets a small blue square'], given=first.stories[0], redraw=[3], **FEW)
    assert off(changed.stories[0][:2], first.stories[0][:2]) == 0
    assert off(changed.stories[0][2:], first.stories[0][2:]) > 5
    both = toy([A, B], given=[first.stories[0]]*2, redraw=[2], **FEW)
    assert off(both.frames[0], first.stories[0][1:2]) <= 1 and [len(f) for f in both.frames] == [1, 1]

def test_redraw_after_given(toy):
    first = toy(A, photo(64, 64), **FEW)
    assert off(toy(A, given=first.stories[0], redraw=[3], **FEW).stories[0], first.stories[0]) <= 1

def test_redraw_with_noisy_scheduler(toy):
    kept = toy.scheduler
    toy.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(kept.config)
    try: first, again = (first := toy(A, **FEW)), toy(A, given=first.stories[0], redraw=[2], **FEW)
    finally: toy.scheduler = kept
    assert off(again.stories[0], first.stories[0]) <= 1

@pytest.mark.parametrize('given', [0, 2])
def test_stream(toy, given):
    pictures = [photo(70, 50, i) for i in range(given)]
    asked = []
    def teller():
        for k, c in enumerate(A):
            asked.append((k, len(shown)))
            yield c
    shown = []
    for frame in toy.stream(teller(), pictures, seed=3, **FEW): shown.append(frame)
    want = toy(A, pictures or None, seed=3, **FEW).frames[0]
    assert off(shown, want) <= 1 and {f.mode for f in shown} == {'RGB'}
    # not a frame too early
    assert asked == [(k, max(0, k - given)) for k in range(3)]

def test_stream_half_read(tiny):
    "A stream that waits and another call do not disturb each other; one that is left alone leaves nothing behind."
    want = [*tiny.stream(A, **FEW)]
    calm = latents(tiny, B)
    stream = tiny.stream(A, **FEW)
    shown = [next(stream)]
    assert torch.equal(latents(tiny, B), calm)
    assert torch.equal(latents(tiny, B, num_inference_steps=3), latents(tiny, B, num_inference_steps=3))
    shown += stream
    assert off(shown, want) == 0
    other = tiny.stream(A, **FEW)
    next(other)
    other.close()

def shape_of(pipe): return [(k, type(m), 'forward' in vars(m)) for k, m in pipe.model.named_modules()]

@pytest.mark.parametrize('options', [dict(), dict(reuse=2), dict(plain=True)], ids=str)
@pytest.mark.parametrize('kind', [ValueError, KeyboardInterrupt, SystemExit])
def test_everything_is_put_back(tiny, kind, options):
    "No call changes the model, not even while it draws."
    before = shape_of(tiny)
    names = tiny.unet.state_dict().keys()
    want = latents(tiny, A)
    at = []
    def fail(pipe, i, t, kw):
        at.append(shape_of(pipe) == before and pipe.unet.state_dict().keys() == names)
        if len(at) == 3: raise kind('stop')
    with pytest.raises(kind): latents(tiny, A, callback_on_step_end=fail, **options)
    assert at == [True]*3
    assert shape_of(tiny) == before and torch.equal(latents(tiny, A), want)

def test_put_back_after_failing_layer(tiny, monkeypatch):
    before = shape_of(tiny)
    monkeypatch.setattr(tiny.unet.mid_block.resnets[0], 'forward', None)
    with pytest.raises(TypeError): latents(tiny, A, reuse=2)
    monkeypatch.undo()
    assert shape_of(tiny) == before


# all schedulers that fit

# EDMEulerScheduler is listed, but has no noise schedule with timesteps
FITTING = sorted({kind.__name__ for kind in DDIMScheduler().compatibles} - {'EDMEulerScheduler'})
SDE = dict(algorithm_type='sde-dpmsolver++')

@pytest.mark.parametrize('name,options', [*[(name, {}) for name in FITTING], ('DPMSolverMultistepScheduler', SDE),
    ('DDPMScheduler', {}), ('LCMScheduler', {}), ('SASolverScheduler', {})])
def test_every_scheduler_follows_the_seed(tiny, name, options):
    "Also one that adds noise in its steps, in a batch, and when a frame is drawn again."
    try: tiny.scheduler = getattr(diffusers, name).from_config(tiny.scheduler.config, **options)
    except ImportError as e: pytest.skip(f'a package is not installed: {str(e).strip()[:80]}')
    more = dict(num_inference_steps=3, seed=[8, 3])
    first = tiny([B[:2], A[:2]], **FEW | more, output_type='latent')
    alone = latents(tiny, A[:2], **FEW | more | dict(seed=3))
    assert relative(first.frames[1], alone) < 1e-4 and alone.isfinite().all()
    assert torch.equal(alone, latents(tiny, A[:2], **FEW | more | dict(seed=3)))
    assert relative(first.frames[0], alone) > .1
    again = latents(tiny, A[:2], given=first.stories[1], redraw=[2], **FEW | more | dict(seed=3))
    # the given first frame has 8 bits, as memory has it
    assert relative(again[0], alone[1]) < .01

def test_seeds_of_brownian_noise():
    "DPMSolverSDEScheduler, which needs torchsde, makes its noise from a seed for each story."
    scheduler = SimpleNamespace(step=lambda model_output, timestep, sample: None, noise_sampler_seed=None)
    assert denoise._step_options(scheduler, [torch.Generator().manual_seed(i) for i in (5, 6)], 0.) == {}
    assert scheduler.noise_sampler_seed == [5, 6]

@pytest.mark.parametrize('name', ['EDMEulerScheduler', 'EDMDPMSolverMultistepScheduler', 'FlowMatchEulerDiscreteScheduler',
    'FlowMatchHeunDiscreteScheduler', 'CMStochasticIterativeScheduler', 'SCMScheduler', 'IPNDMScheduler', 'KarrasVeScheduler',
    'DDIMInverseScheduler', 'DPMSolverMultistepInverseScheduler', 'CogVideoXDDIMScheduler', 'RePaintScheduler', 'ScoreSdeVeScheduler',
    'DDPMWuerstchenScheduler'])
def test_schedulers_of_other_models(tiny, name):
    tiny.scheduler = getattr(diffusers, name).from_config(tiny.scheduler.config)
    text = one_line(tiny, A, **FEW, match=f'^{name} was made for other models or tasks; use ')
    assert 'DPMSolverMultistepScheduler' in text

@pytest.mark.parametrize('own', [dict(), dict(beta_schedule='linear', beta_start=.00085, beta_end=.012)], ids=['default', 'linear'])
def test_another_noise_schedule(tiny, own):
    tiny.scheduler = DDIMScheduler(**own)
    one_line(tiny, A, **FEW, match='the model was trained with .*; make it by DDIMScheduler.from_config')

def test_tokenizers_stay_as_they_are(tiny):
    "Whether '[SEP]' in a caption is special is a setting of a tokenizer: calls in other threads must not see it switched."
    latents(tiny, A[:1])
    for tokenizer in tiny.tokenizer, tiny.memory_tokenizer:
        tiny.maybe_convert_prompt(['a [SEP] b'], tokenizer)
        assert tokenizer._tokenizer.encode_special_tokens

def test_maximum_length(tiny, saved):
    for pipe in tiny, StoryPipeline.from_pretrained(saved):
        n = pipe.text_encoder.config.max_position_embeddings
        assert pipe.model and pipe.tokenizer.model_max_length == pipe.memory_tokenizer.model_max_length == n


# threads

def requests(): # twelve different ones
    for k in range(12):
        texts = [A, B[:2], [A, B], ['[SEP] <|endoftext|> a star']][k % 4]
        yield texts, dict(num_inference_steps=2 + k % 2, guidance_scale=[2., 1, 3.][k % 3], seed=k,
                          reuse=1 + (k % 4 == 2), plain=k == 5)

@pytest.mark.parametrize('name', ['pndm', pytest.param('ancestral', marks=soak)])
def test_threads(tiny, name):
    "Four threads share a pipeline, and copies with its parts: they draw what one after the other draws, bit for bit."
    if name == 'ancestral': tiny.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(tiny.scheduler.config)
    else: tiny.scheduler = make_scheduler(name, tiny.scheduler.config)
    pipes = [tiny, tiny, quiet(StoryPipeline.from_pipe(tiny)), quiet(StoryPipeline(**tiny.components))]
    def draw(pipe, texts, options):
        seen = []
        def look(pipe, i, t, kw): seen.append((pipe.guidance_scale, pipe.num_timesteps >= options['num_inference_steps']))
        out = pipe(texts, output_type='latent', callback_on_step_end=look if options['seed'] % 2 else None, **options)
        assert all(state == (options['guidance_scale'], True) for state in seen)
        return out.frames
    wanted = [draw(tiny, *request) for request in requests()]
    def all_requests(pipe): return [draw(pipe, *request) for request in requests()]
    with ThreadPoolExecutor(4) as pool: found = list(pool.map(all_requests, pipes))
    for frames in found:
        for got, want in zip(frames, wanted, strict=True): assert all(map(torch.equal, got, want))


# fast kernels

@soak
def test_compiled(toy):
    pipe = quiet(StoryPipeline.from_pretrained(asset('toy/arldm')))
    # no graphs where there is no GPU
    pipe.enable_fast_kernels(graphs=True)
    for texts in A, [A, B], [A, B, A, B[:2]]:
        for options in dict(), dict(plain=True), dict(guidance_scale=1):
            x = latents(pipe, texts, **options)
            y = latents(toy, texts, **options)
            assert max(map(relative, x, y)) < 1e-4 if isinstance(x, list) else relative(x, y) < 1e-4
    assert pipe.model.state_dict().keys() == toy.model.state_dict().keys()

@pytest.mark.skipif(not torch.cuda.is_available(), reason='CUDA graphs need a GPU')
@pytest.mark.parametrize('options', [dict(), dict(guidance_interval=(.2, .8)), dict(reuse=2), dict(plain=True)], ids=str)
def test_graphs(toy, options):
    pipe = quiet(StoryPipeline.from_pretrained(asset('toy/arldm')).to('cuda'))
    want = latents(pipe, [A, B], num_inference_steps=6, **options)
    pipe.enable_fast_kernels(graphs=True)
    assert max(map(relative, latents(pipe, [A, B], num_inference_steps=6, **options), want)) < 1e-3

class OnPaper:
    "Stands for a CUDA graph: operations are written down in the second call and repeated, whatever Python would say."
    def __init__(self, predict): self.predict, self.calls = predict, 0
    def __call__(self, x, t, context, visible):
        self.calls += 1
        if self.calls == 1: return self.predict(x, t, context, visible)
        if self.calls == 2:
            again = lambda x, t: self.predict(x, t, context, visible)
            self.replay = make_fx(again)(x, t)
        return self.replay(x, t)

@pytest.mark.skipif(not os.environ.get('ARLDM_SOAK'), reason='a long form: ARLDM_SOAK=1')
@pytest.mark.parametrize('options', [dict(), pytest.param(dict(guidance_interval=(0, .5)), marks=soak),
    dict(reuse=2)],
    ids=str)
def test_graphs_on_paper(tiny, options, monkeypatch):
    want = latents(tiny, A[:1], num_inference_steps=4, **options)
    monkeypatch.setattr(denoise, 'GraphCallable', OnPaper)
    monkeypatch.setattr(tiny, '_graphs', True)
    assert relative(latents(tiny, A[:1], num_inference_steps=4, **options), want) < 1e-4


# bad requests

P3 = [photo(seed=i) for i in range(3)]
BAD = [
    (([['x', 3]],), {}, 'captions must be text, got 3'), (([],), {}, 'no captions'), (([[], []],), {}, 'no captions'),
    (([[A]],), {}, 'captions must be text'), ((A, P3), {}, '3 captions, 3 given'),
    ((A, P3*2), {}, '3 captions, 6 given'), ((A, 'a.png'), {}, 'must be pictures, got str'),
    ((A, [None]), {}, 'got NoneType'), ((A, [[[P3[0]]]]), {}, 'got list'),
    ((A, torch.zeros(3, 8, 8)), {}, 'got Tensor'), (([A, B], [[P3[0]]]), {}, '2 stories, but given frames for 1'),
    ((A, np.zeros((8, 8, 3))), {}, 'got ndarray'), ((A,), dict(height=100), 'multiples of 8'),
    ((A,), dict(height=0), 'multiples'), ((A,), dict(width=-8), 'multiples of 8'),
    ((A,), dict(guidance_scale=-.5), '0 or more .up to 1: no guidance.'),
    ((A,), dict(guidance_scale=float('nan')), 'guidance_scale'),
    ((A,), dict(num_inference_steps=0), 'between 1 and 999, got 0'),
    ((A,), dict(num_inference_steps=-1), 'between 1 and'),
    ((A,), dict(reuse=0), 'reuse must be a whole number'), ((A,), dict(guidance_interval=(.8, .2)), 'between 0 and 1'),
    ((A,), dict(guidance_interval=(0, float('nan'))), 'interval'),
    ((A,), dict(output_type='pill'), 'did you mean pil'), ((A,), dict(output_type=None), 'there are pil'),
    ((A,), dict(callback_on_step_end_tensor_inputs=['noise_pred']), "no callback tensor 'noise_pred'"),
    ((A, P3), dict(redraw=[4]), 'no frame 4 to redraw; there are frames 1 to 3'),
    ((A, P3), dict(redraw=[0]), 'no frame 0'), ((A, P3[:2]), dict(redraw=[2]), 'to redraw some frames, give all of them'),
    ((A,), dict(redraw=[2]), 'give all'), ((A, P3), dict(redraw=['2']), 'to redraw'),
    ((A,), dict(height=2**40), 'out of memory with 1 story')]

@pytest.mark.parametrize('args,options,match', BAD, ids=lambda x: '')
def test_bad_request(tiny, args, options, match): one_line(tiny, *args, **{**FEW, **options}, match=match)

def enough(*_): raise RuntimeError('a step was made')

EXACT = torch.zeros(3, 4, 4, 4)
LATER = [
    ('inf', (A,), dict(guidance_scale=float('inf'))), ('text for a number', (A,), dict(guidance_scale='7')),
    ('no number', (A,), dict(guidance_scale=None)), ('half a step', (A,), dict(num_inference_steps=2.5)),
    ('text for steps', (A,), dict(num_inference_steps='5')), ('half reuse', (A,), dict(reuse=1.5)),
    ('more steps than training', (A,), dict(num_inference_steps=1001, callback_on_step_end=enough)),
    ('text for height', (A,), dict(height='64')), ('height as float', (A,), dict(height=64.)),
    ('interval as text', (A,), dict(guidance_interval='0,1')),
    ('half an interval', (A,), dict(guidance_interval=(0,))), ('seed 1.5', (A,), dict(seed=1.5)),
    ('seed too large', (A,), dict(seed=2**64)), ('seed as text', (A,), dict(seed='a')),
    ('no seed', (A,), dict(seed=None)), ('generator as text', (A,), dict(generator='x')),
    ('no captions', (None,), {}), ('text and a number', (['x', 3],), {}), ('a number', (5,), {}),
    ('lone surrogate', (['a \ud800'],), {}), ('one picture for two', ([A, B], P3[0]), {}),
    ('five channels', (A, np.zeros((8, 8, 5), np.uint8)), {}),
    ('four dimensions', (A, np.zeros((1, 8, 8, 3), np.uint8)), {}), ('no pixels', (A, Image.new('RGB', (0, 9))), {}),
    ('redraw 2.', (A, P3), dict(redraw=[2.])),
    ('NaN', (A,), dict(latents=[EXACT*float('nan')])), ('lists', (A,), dict(latents=[EXACT.tolist()])),
    ('numpy', (A,), dict(latents=[EXACT.numpy()])), ('no latents', ([A, B],), dict(latents=[EXACT, None]))]

@pytest.mark.parametrize('what,args,options', LATER, ids=[x[0] for x in LATER])
def test_bad_request_unchecked(tiny, what, args, options): one_line(tiny, *args, **{**FEW, **options})

@pytest.mark.parametrize('seed', [np.int64(3), range(3, 4), np.arange(3, 4)], ids=str)
def test_numpy_seed(tiny, seed): assert torch.equal(latents(tiny, A, seed=seed), latents(tiny, A, seed=3))

def test_captions_as_generator(tiny): assert torch.equal(latents(tiny, (c for c in A)), latents(tiny, A))

def test_captions_of_any_shape(tiny):
    want = latents(tiny, A)
    assert torch.equal(latents(tiny, tuple(A)), want) and torch.equal(latents(tiny, np.array(A)), want)
    assert torch.equal(latents(tiny, [A]), want)
    assert torch.equal(latents(tiny, A[0]), latents(tiny, A[:1])) and latents(tiny, ['', '\0', '🎈']).isfinite().all()
    out = tiny([tuple(A), iter(B), 'it jumps', A, A], **FEW)
    assert [len(frames) for frames in out.frames] == [3, 3, 1, 3, 3]

STREAMS = [
    ('one text', 'it jumps', (), {}), ('no captions', [], (), {}), ('no text', [None], (), {}),
    ('lists', [A], (), {}), ('one picture', A, P3[0], {}), ('all given', A, P3, {}), ('seed', A, (), dict(seed=1.5))]

@pytest.mark.parametrize('what,texts,given,options', STREAMS, ids=[x[0] for x in STREAMS])
def test_stream_unchecked(tiny, what, texts, given, options):
    if what == 'one text': assert len([*tiny.stream(texts, **FEW)]) == 1
    elif what == 'one picture': assert len([*tiny.stream(texts, given, **FEW)]) == 2
    else: one_line(lambda: [*tiny.stream(texts, given, **FEW, **options)])

def test_long_caption(saved):
    pipe = quiet(StoryPipeline.from_pretrained(saved))
    long = 'the red star '*333
    with pytest.warns(UserWarning, match='more than 36 tokens') as said:
        a = latents(pipe, [[long, 'it jumps'], [long + 'and more', 'it jumps']], seed=[0, 0])
    assert len([w for w in said if 'tokens' in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        assert relative(latents(pipe, [long, 'it jumps']), a[0]) < 1e-4
    # both are cut at the same word
    assert relative(*a) < 1e-4

@pytest.mark.parametrize('size', [(1, 1), (1, 3000), (3000, 1), (33, 31)], ids=str)
def test_odd_sizes(tiny, size):
    out = tiny(A[:2], photo(*size), **FEW)
    assert out.frames[0][0].size == (32, 32) and len(out.stories[0]) == 2

@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'L', 'P', '1', 'I;16', 'I', 'F', 'CMYK', 'YCbCr'])
def test_odd_modes(tiny, mode):
    "Drawn as if the picture had been RGB, as far as the mode can say it; what is transparent shows white."
    x = photo(mode='L')
    want = x.convert('RGB')
    same = x.convert(mode) if mode != 'I;16' else Image.fromarray(np.asarray(x).astype(np.uint16) << 8)
    if mode == 'I': same = Image.fromarray(np.asarray(x).astype(np.int32) << 8)
    if mode in ('RGBA', 'LA'):
        same.putalpha(x)
        want = Image.composite(want, Image.new('RGB', x.size, 'white'), x)
    if mode == 'P': same.info['transparency'] = 0
    given = tiny(A[:2], same, **FEW).stories[0][0]
    assert given.mode == 'RGB' and off([given], [want]) <= (255 if mode == '1' else 3)

def test_turned(tiny):
    x = photo(40, 40)
    exif = Image.Exif()
    exif[0x112] = 6
    x.rotate(90).save(data := io.BytesIO(), 'PNG', exif=exif)
    assert off(tiny(A[:2], Image.open(data), **FEW).stories[0], tiny(A[:2], x, **FEW).stories[0]) == 0

def test_arrays(tiny):
    x = photo()
    assert off(tiny(A[:2], np.asarray(x), **FEW).frames[0], tiny(A[:2], x, **FEW).frames[0]) == 0

def broken():
    photo(100, 100).save(data := io.BytesIO(), 'PNG')
    return Image.open(io.BytesIO(data.getvalue()[:9000]))

@pytest.mark.parametrize('texts,given', [([A, [], B], None), ([A, [3], B], None), ([A, B[:1], B], [[P3[0]]]*3),
    ([A, B, B], [[P3[0]], ['x.png'], [P3[1]]]), ([A, B, B], [P3[0], broken(), P3[1]])], ids=lambda _: '')
def test_one_bad_story(tiny, texts, given):
    with pytest.warns(UserWarning, match='story 1: .*not drawn'): out = tiny(texts, given, **FEW)
    assert [len(f) > 0 for f in out.frames] == [True, False, True] and [*out.bad] == [1]
    assert out.stories[1] == out.captions[1] == [] and out._repr_png_()
    assert off(out.frames[2], tiny(texts[2], given and given[2], seed=2, **FEW).frames[0]) <= 1

@pytest.mark.parametrize('texts,given', [([A, 5, B], None), ([A, None, B], None), ([A, ['\ud800'], B], None),
    ([A, B, B], [P3[0], np.zeros((8, 8, 5), np.uint8), P3[1]]), ([A, B, B], [P3[0], Image.new('RGB', (0, 0)), P3[1]])],
    ids=['number', 'none', 'surrogate', 'channels', 'no pixels'])
def test_one_worse_story(tiny, texts, given):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert [*tiny(texts, given, **FEW).bad] == [1]


# folders that are none

FILES = sorted(f'{p.parent.name}/{p.name}' if p.parent.name != 'arldm' else p.name
               for p in asset('toy/arldm').rglob('*') if p.is_file())

def spoiled(saved, tmp_path, file):
    shutil.copytree(saved, tmp_path/'p')
    return tmp_path/'p', tmp_path/'p'/file

@pytest.mark.parametrize('file', [f for f in FILES
                                  # nothing of it is needed
                                  if not f.endswith('tokenizer_config.json')])
def test_part_deleted(saved, tmp_path, file):
    folder, path = spoiled(saved, tmp_path, file)
    path.unlink()
    assert str(folder) in one_line(StoryPipeline.from_pretrained, folder)

@pytest.mark.parametrize('file', FILES)
def test_part_cut(saved, tmp_path, file):
    folder, path = spoiled(saved, tmp_path, file)
    path.write_bytes(path.read_bytes()[:path.stat().st_size//2])
    assert str(folder) in one_line(StoryPipeline.from_pretrained, folder)

@pytest.mark.parametrize('part', PARTS)
def test_tensor_missing(saved, tmp_path, part):
    from safetensors.torch import load_file, save_file
    folder, path = spoiled(saved, tmp_path, next(f for f in FILES if f.startswith(f'{part}/') and 'safetensors' in f))
    state = load_file(path)
    del state[sorted(state)[len(state)//2]]
    save_file(state, path, metadata={'format': 'pt'})
    one_line(StoryPipeline.from_pretrained, folder)

@pytest.mark.parametrize('text,match', [('{', 'not valid JSON'), ('{}', 'expected a StoryPipeline'),
    ('{"_class_name": "StableDiffusionPipeline"}', 'expected a StoryPipeline, as arldm-train makes it, found a StableDiffusionPipeline'),
    ('{"_class_name": "StoryPipeline"}', 'expected a pipeline, but loading failed'),
    ('[]', 'StoryPipeline')], ids=str)
def test_index(saved, tmp_path, text, match):
    folder, path = spoiled(saved, tmp_path, 'model_index.json')
    path.write_text(text)
    one_line(StoryPipeline.from_pretrained, folder, match=match)

def test_no_pipeline(saved, tmp_path, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    one_line(StoryPipeline.from_pretrained, tmp_path, match='model_index.json is missing')
    one_line(StoryPipeline.from_pretrained, saved/'unet', match='model_index.json is missing')
    for where in tmp_path/'nowhere', saved/'model_index.json', 'nowhere':
        assert one_line(StoryPipeline.from_pretrained, where) == (
            f'{where}: no such folder; expected a pipeline folder, a run folder, or a name on the hub such as user/name')
    assert one_line(StoryPipeline.from_pretrained, 'somebody/stories', cache_dir=tmp_path) == (
        'somebody/stories: no such folder here, and it is not among the downloads from the hub; local_files_only and '
        'HF_HUB_OFFLINE allow no download')


# memory

def starve(pipe, room, texts, options, answer):
    "In a process of its own, with `room` bytes more than it has now."
    size = int(open('/proc/self/statm').read().split()[0])*resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + room, resource.RLIM_INFINITY))
    try: pipe(texts, **FEW, **options)
    except BaseException as e: answer.send((type(e).__name__, str(e)))
    else: answer.send(('drawn', ''))

# Already the noise of these frames has no room, whatever memory earlier tests have left to be used again.
@pytest.mark.skipif(not os.path.exists('/proc/self/statm'), reason='reads /proc')
@pytest.mark.parametrize('texts,options,match', [
    ([A[:1]]*600, dict(height=2**14, width=2**14), '600 stories at once; try 300 (--batch-size 300)'),
    (A[:1], dict(height=2**18, width=2**18), '1 story at once; try smaller frames')], ids=['batch', 'size'])
def test_out_of_memory(tiny, texts, options, match):
    here, there = multiprocessing.Pipe(False)
    child = multiprocessing.get_context('fork').Process(target=starve, args=(tiny, 150 << 20, texts, options, there))
    child.start()
    there.close()
    kind, text = here.recv()
    child.join()
    assert kind == 'StoryError' and match in text and '\n' not in text
