"The parameters of a call: names of diffusers, negative prompts, several drawings, sampling options, forms of the output."
import functools, inspect

import diffusers, numpy as np, pytest, torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from diffusers.schedulers import AysSchedules
from PIL import Image

from arldm.core import StoryError, asset
from arldm.data.strips import as_picture
from arldm.draw.pipeline import StoryPipeline
from arldm.draw.schedulers import make_scheduler, step_generators
from arldm.draw.story_output import StoryOutput
from arldm.model.arldm import ARLDM

A = ['a big red star is at the beach on the left', 'it jumps', 'it goes to the right']
B = ['a small blue circle is at the city on the right', 'it rests']
FEW = dict(num_inference_steps=2, guidance_scale=2.)

@pytest.fixture(scope='module', autouse=True)
def one_thread():
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)

@pytest.fixture(scope='module')
def kept():
    "Random weights, 32 pixels; conditions count for more than they do at birth."
    vocab = ARLDM.load(asset('toy/arldm')).vocab
    torch.manual_seed(0)
    net = ARLDM.create('tiny', vocab, resolution=32).eval()
    for name, m in net.unet.named_modules():
        if name.endswith(('attn2.to_out.0', 'conv_out')): m.weight.data *= 8
    pipe = StoryPipeline.from_model(net)
    pipe.set_progress_bar_config(disable=True)
    return pipe

@pytest.fixture
def tiny(kept):
    scheduler = kept.scheduler
    yield kept
    kept.scheduler = scheduler

def latents(pipe, captions, *more, **options):
    return pipe(captions, *more, output_type='latent', **{**FEW, **options}).frames

def photo(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 48, 3), np.uint8))

def relative(x, y): return ((x - y).norm()/y.norm()).item()

def one_line(f, *args, match, **kw):
    with pytest.raises(StoryError, match=match) as e: f(*args, **kw)
    text = str(e.value)
    assert '\n' not in text and len(text) < 400
    return e.value


# names

def test_names_of_diffusers(tiny):
    want = latents(tiny, A, photo())
    assert torch.equal(tiny(prompt=A, image=photo(), output_type='latent', **FEW).frames, want)
    assert torch.equal(tiny(captions=A, image=[photo()], output_type='latent', **FEW).frames, want)
    streamed = list(tiny.stream(prompt=A, image=photo(), **FEW))
    assert [p.tobytes() for p in streamed] == [p.tobytes() for p in tiny.stream(A, photo(), **FEW)]

@pytest.mark.parametrize('options,match', [
    (dict(captions=A, prompt=A), 'captions and prompt are names of the same parameter; pass only one'),
    (dict(captions=A, given=photo(), image=photo()), 'given and image are names of the same parameter'),
    (dict(), 'no captions; pass a list with one for each frame'), (dict(image=photo()), 'no captions; pass a list with one')])
def test_names_twice_or_missing(tiny, options, match):
    one_line(tiny, **options, **FEW, match=match)
    one_line(lambda: list(tiny.stream(**options, **FEW)), match=match)

@pytest.mark.parametrize('name,match', [
    ('num_inference_step', "no parameter 'num_inference_step'; did you mean num_inference_steps\\?"),
    ('guidence_scale', 'did you mean guidance_scale'), ('negative_prompts', 'did you mean negative_prompt\\?'),
    ('prompt_embeds', 'captions are read by the memory encoder as well, so they have to be text'),
    ('negative_prompt_embeds', 'use negative_prompt'), ('cross_attention_kwargs', 'use pipe.set_adapters'),
    ('clip_skip', 'the last layer of the text encoder'), ('ip_adapter_image', 'use cast for pictures of characters, given for frames to continue'),
    ('zzz', 'there are captions, given, ')])
def test_unknown_names(tiny, name, match):
    for call in tiny, tiny.stream:
        with pytest.raises(TypeError) as e: call(A, **{name: 1})
        error = one_line(call, A, **{name: 1}, match=match)
        assert str(error) == str(e.value)

def test_all_parameters_are_seen():
    "Callers of diffusers read the signature, to see what a pipeline takes."
    seen = inspect.signature(StoryPipeline.__call__).parameters
    assert {'prompt', 'image', 'negative_prompt', 'num_images_per_prompt', 'guidance_rescale', 'eta', 'timesteps', 'sigmas',
        'num_inference_steps', 'guidance_scale', 'height', 'width', 'generator', 'latents', 'output_type', 'return_dict',
        'callback_on_step_end', 'callback_on_step_end_tensor_inputs'} <= seen.keys()
    for method in StoryPipeline.__call__, StoryPipeline.stream:
        kinds = {p.kind for p in inspect.signature(method).parameters.values()}
        assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
        assert 'negative_prompt' in method.__doc__


# negative prompts

def context_of_call(pipe, captions, given, **options): # what the first step passes to the UNet: contexts, visible tokens
    seen = []
    def see(module, args, kw): seen.append((kw['encoder_hidden_states'], kw['encoder_attention_mask']))
    handle = pipe.unet.register_forward_pre_hook(see, with_kwargs=True)
    try: latents(pipe, captions, given, plain=True, num_inference_steps=2, **options)
    finally: handle.remove()
    return seen[0]

@torch.no_grad()
def test_negative_prompt_by_hand(tiny):
    "It replaces the null caption; its own tokens are visible, and of the null slots all."
    text = 'a green square'
    contexts, visible = context_of_call(tiny, A, photo())
    negative, negative_visible = context_of_call(tiny, A, photo(), negative_prompt=text)
    tokens = tiny.model.vocab.encode([text])
    ids, real = tokens['caption_ids'], tokens['caption_real']
    S = ids.shape[1]
    caption = tiny.text_encoder(ids, attention_mask=real.long()).last_hidden_state
    assert relative(negative[:1, :S], caption + tiny.history.type_embedding.weight[0]) < 1e-5
    assert torch.equal(negative[:, S:], contexts[:, S:]) and torch.equal(negative[1], contexts[1])
    # masks are repeated for each head of attention, first those of the null condition
    assert torch.equal(negative_visible[0, :S], real[0]) and visible[0, :2*S].all() and real.sum() < S
    assert torch.equal(negative_visible[:, S:], visible[:, S:]) and torch.equal(negative_visible[-1], visible[-1])

def test_negative_prompt(tiny):
    texts = [A[:2], B[:1]]
    none = latents(tiny, texts)
    want = latents(tiny, texts, negative_prompt='a green square')
    assert min(map(relative, want, none)) > 1e-3
    for same in ['a green square']*2, (['a green square']*2, ['a green square']):
        assert all(map(torch.equal, latents(tiny, texts, negative_prompt=same), want))
    # of one story, frame by frame
    alone = latents(tiny, A[:2], negative_prompt='a green square')
    assert torch.equal(latents(tiny, A[:2], negative_prompt=['a green square']*2), alone)
    other = latents(tiny, A[:2], negative_prompt=[['a green square', 'it rains']])
    assert torch.equal(other[0, 0], alone[0, 0]) and relative(other[0, 1], alone[0, 1]) > 1e-3
    # the caption of a given frame has one that is not used
    given = latents(tiny, A[:2], photo(), negative_prompt='a green square')
    assert torch.equal(latents(tiny, A[:2], photo(), negative_prompt=['it rains', 'a green square']), given)
    # some stories without
    some = latents(tiny, texts, negative_prompt=[None, 'a green square'])
    assert relative(some[0], none[0]) < 1e-4 and relative(some[1], want[1]) < 1e-4
    assert relative(latents(tiny, texts, negative_prompt='a green square', plain=True)[1], want[1]) < 1e-4

def test_negative_prompt_of_streams(tiny):
    want = tiny(A, photo(), negative_prompt='a green square', **FEW).frames[0]
    assert [p.tobytes() for p in tiny.stream(A, photo(), negative_prompt='a green square', **FEW)] == [p.tobytes() for p in want]

def test_empty_negative_prompt_is_not_the_null_caption(tiny):
    "Of the null caption all tokens are visible, as in training; of an empty text only its first and last."
    assert relative(latents(tiny, A, negative_prompt='')[0], latents(tiny, A)[0]) > 1e-4

def test_negative_prompt_without_guidance(tiny):
    "As in diffusers it is not used."
    want = latents(tiny, A, guidance_scale=1)
    assert torch.equal(latents(tiny, A, guidance_scale=1, negative_prompt='a green square'), want)

@pytest.mark.parametrize('captions,negative,match', [
    (A, ['x', 'y'], '3 captions, 2 negative prompts; pass one text for all frames, or a list with one for each'),
    (A, 5, 'negative_prompt must be a list, got 5'), (A, ['x', 'y', 5], 'negative_prompt must be text, got 5'),
    ([A, B], ['x'], '2 stories, but negative_prompt for 1'), ([A, B], [['x', 'y'], ['x', 'y', 'z', 'x']], 'story 0: 3 captions, 2 negative prompts;')])
def test_bad_negative_prompts(tiny, captions, negative, match):
    one_line(tiny, captions, negative_prompt=negative, **FEW, match=match)

def test_one_bad_negative_prompt(tiny):
    with pytest.warns(UserWarning, match='story 1: 2 captions, 3 negative prompts.*not drawn') as said:
        out = tiny([A, B], negative_prompt=[['x']*3]*2, **FEW)
    assert list(out.bad) == [1]
    assert [w.filename for w in said if 'not drawn' in str(w.message)] == [__file__]


# several drawings of a story

def test_several_drawings(tiny):
    out = tiny([A, B], num_images_per_prompt=2, output_type='latent', **FEW)
    assert out.captions == [A, A, B, B] and [len(s) for s in out.stories] == [3, 3, 2, 2]
    want = latents(tiny, [A, A, B, B], seed=[0, 1, 2, 3])
    assert all(map(torch.equal, out.frames, want)) and relative(want[1], want[0]) > .01
    assert relative(latents(tiny, B, seed=3)[0], want[3]) < 1e-4
    again = latents(tiny, [A, B], num_images_per_prompt=2, seed=[0, 1, 2, 3])
    assert all(map(torch.equal, again, want))
    generators = [torch.Generator().manual_seed(s) for s in range(4)]
    again = latents(tiny, [A, B], num_images_per_prompt=2, generator=generators)
    assert all(map(torch.equal, again, want))

def test_several_drawings_of_bad_stories(tiny):
    with pytest.warns(UserWarning, match='story 0') as said:
        out = tiny([[5], B], num_images_per_prompt=2, **FEW)
    assert len([w for w in said if 'not drawn' in str(w.message)]) == 1
    assert list(out.bad) == [0, 1] and [len(f) for f in out.frames] == [0, 0, 2, 2]

@pytest.mark.parametrize('options,match', [
    (dict(num_images_per_prompt=0), 'num_images_per_prompt must be a whole number of at least 1, got 0'),
    (dict(num_images_per_prompt=1.5), 'at least 1, got 1.5'),
    (dict(num_images_per_prompt=2, seed=[1]), '2 stories to draw, but 1 seeds')])
def test_bad_number_of_drawings(tiny, options, match): one_line(tiny, A, **FEW, **options, match=match)


# sampling

def steps_of(monkeypatch, scheduler): # each step of the calls that follow: (model_output, t, z, keywords, result)
    seen = []
    step = type(scheduler).step
    @functools.wraps(step)
    def see(self, model_output, t, z, **kw):
        out = step(self, model_output, t, z, **kw)
        seen.append((model_output, int(t), z, kw, out.prev_sample))
        return out
    monkeypatch.setattr(type(scheduler), 'step', see)
    return seen

def test_guidance_rescale(tiny, monkeypatch):
    "As in diffusers, in every step."
    halves = []
    handle = tiny.unet.register_forward_hook(lambda m, args, out: halves.append(out[0].chunk(2)))
    steps = steps_of(monkeypatch, tiny.scheduler)
    try: z = latents(tiny, [A[:1], B[:1]], guidance_scale=5., guidance_rescale=.7)
    finally: handle.remove()
    assert len(steps) == len(halves) == 2
    for (model_output, *_), (pred_uncond, pred_cond) in zip(steps, halves):
        want = rescale_noise_cfg(pred_uncond + 5*(pred_cond - pred_uncond), pred_cond, .7)
        assert relative(model_output, want) < 1e-5
    assert relative(z, latents(tiny, [A[:1], B[:1]], guidance_scale=5.)) > .01
    assert torch.equal(latents(tiny, A, guidance_rescale=0.), latents(tiny, A))
    # without guidance there is nothing to rescale
    assert torch.equal(latents(tiny, A, guidance_scale=1, guidance_rescale=.7), latents(tiny, A, guidance_scale=1))

def test_eta(tiny, monkeypatch):
    "DDIM of eta 1 by equation 12 and 16 of arXiv 2010.02502, with the frame's own random numbers."
    tiny.scheduler = make_scheduler('ddim')
    none = latents(tiny, A[:2], num_inference_steps=4)
    steps = steps_of(monkeypatch, tiny.scheduler)
    z = latents(tiny, A[:2], num_inference_steps=4, eta=1.)
    assert len(steps) == 8 and relative(z, none) > .01
    alphas = tiny.scheduler.alphas_cumprod
    for first in 0, 4:
        generators = step_generators(steps[first][2], [torch.Generator().manual_seed(0)])
        for pred, t, x, _, result in steps[first:first + 4]:
            a = alphas[t]
            a_prev = alphas[t - 250] if t >= 250 else torch.tensor(1.)
            sigma = ((1 - a_prev)/(1 - a)*(1 - a/a_prev)).sqrt()
            x0 = (x - (1 - a).sqrt()*pred)/a.sqrt()
            noise = torch.randn(x.shape, generator=generators[0])
            want = a_prev.sqrt()*x0 + (1 - a_prev - sigma**2).clamp(0).sqrt()*pred + sigma*noise
            assert relative(result, want) < 1e-4
    assert torch.equal(latents(tiny, A[:2], num_inference_steps=4, eta=1.), z)
    assert torch.equal(latents(tiny, A[:2], num_inference_steps=4, eta=0), none)

def test_timesteps(tiny, monkeypatch):
    times = AysSchedules['StableDiffusionTimesteps']
    steps = steps_of(monkeypatch, tiny.scheduler)
    z = latents(tiny, A[:1], timesteps=times)
    assert [t for _, t, *_ in steps] == times and z.isfinite().all()
    assert torch.equal(latents(tiny, A[:1], timesteps=np.array(times), num_inference_steps=7), z)
    assert torch.equal(latents(tiny, A[:1], timesteps=torch.tensor(times)), z)
    # those that the scheduler would choose itself
    scheduler = make_scheduler('dpm++')
    scheduler.set_timesteps(3)
    want = latents(tiny, A[:1], num_inference_steps=3)
    assert torch.equal(latents(tiny, A[:1], timesteps=scheduler.timesteps.tolist()), want)
    frames = list(tiny.stream(A[:1], timesteps=scheduler.timesteps.tolist(), guidance_scale=2.))
    assert frames[0].tobytes() == tiny(A[:1], num_inference_steps=3, guidance_scale=2.).frames[0][0].tobytes()

def test_sigmas(tiny, monkeypatch):
    tiny.scheduler = diffusers.EulerDiscreteScheduler.from_config(tiny.scheduler.config)
    sigmas = AysSchedules['StableDiffusionSigmas']
    steps = steps_of(monkeypatch, tiny.scheduler)
    z = latents(tiny, A[:1], sigmas=sigmas)
    # to the last noise level, 0, leads the last step
    assert len(steps) == len(sigmas) - 1 and z.isfinite().all()
    for (pred, _, x, _, result), sigma, lower in zip(steps, sigmas, sigmas[1:]):
        assert relative(result, x + (lower - sigma)*pred) < 1e-4

SETTINGS = [
    ('dpm++', dict(timesteps=[999, 500], sigmas=[1., .5]), 'timesteps and sigmas say the same in two ways; pass only one of them'),
    ('ddim', dict(timesteps=[999, 500]), 'DDIMScheduler takes no timesteps'), ('dpm++', dict(sigmas=[9., 1.]), 'takes no sigmas'),
    ('dpm++', dict(timesteps=[500, 999]), 'timesteps must be numbers that fall, such as 999, 500, 250; got \\[500, 999\\]'),
    ('dpm++', dict(timesteps=[]), 'timesteps must be numbers that fall'), ('dpm++', dict(timesteps=5), 'timesteps must be a list, got int'), ('dpm++', dict(timesteps={999}), 'must be a list, got set'),
    ('dpm++', dict(timesteps=['a']), 'timesteps must be numbers'), ('dpm++', dict(timesteps=[1000, 1]), 'the first of timesteps must be between 0 and 999, got 1000.0'),
    ('dpm++', dict(timesteps=[9, -1]), 'timesteps must be numbers that fall'),
    ('dpm++', dict(timesteps=[1, 0]), 'would start at timestep 1'),
    ('ddim', dict(eta=-1), 'eta must be between 0 and 1, got -1'), ('ddim', dict(eta='1'), "eta must be between 0 and 1, got '1'"),
    ('dpm++', dict(eta=1.), 'DPMSolverMultistepScheduler takes no eta; use ddim'),
    ('dpm++', dict(guidance_rescale=2.), 'guidance_rescale must be between 0 and 1, got 2.0'),
    ('dpm++', dict(guidance_rescale=float('nan')), 'guidance_rescale must be between 0 and 1, got nan'),
    ('dpm++', dict(guidance_scale=-.1), 'guidance_scale must be 0 or more'),
    ('dpm++', dict(guidance_scale=float('nan')), 'guidance_scale must be 0 or more')]

@pytest.mark.parametrize('name,options,match', SETTINGS, ids=[str(x[1]) for x in SETTINGS])
def test_bad_settings(tiny, name, options, match):
    tiny.scheduler = make_scheduler(name)
    one_line(tiny, A, **{**FEW, **options}, match=match)
    one_line(lambda: list(tiny.stream(A, **{**FEW, **options})), match=match)

@pytest.mark.parametrize('scale', [0, .5, 1])
def test_guidance_scales_up_to_one_are_none(tiny, scale):
    "As in diffusers."
    rows = []
    handle = tiny.unet.register_forward_pre_hook(lambda m, args, kw: rows.append(len(kw['encoder_hidden_states'])), with_kwargs=True)
    try: z = latents(tiny, A[:2], guidance_scale=scale)
    finally: handle.remove()
    assert set(rows) == {1} and torch.equal(z, latents(tiny, A[:2], guidance_scale=1))

def test_one_frame_to_redraw(tiny):
    first = tiny(A, **FEW)
    want = tiny(A, given=first.stories[0], redraw=[3], **FEW)
    again = tiny(A, given=first.stories[0], redraw=3, **FEW)
    assert len(again.frames[0]) == 1 and again.frames[0][0].tobytes() == want.frames[0][0].tobytes()


# forms of the output

def test_arrays_before_rounding(tiny):
    "Arrays and tensors have more than 8 bits; rounded they are the pictures, and the memory of the next frame is the same."
    out = {kind: tiny([A, A], **FEW, output_type=kind) for kind in ('pil', 'np', 'pt', 'latent')}
    values = out['np'].frames
    assert values.dtype == np.float32 and values.shape == (2, 3, 32, 32, 3)
    assert 0 <= values.min() < .5 < values.max() <= 1
    assert np.abs(values*255 - (values*255).round()).max() > .3
    pictures = np.stack([[np.asarray(p) for p in story] for story in out['pil'].frames])
    assert ((values*255).round() == pictures).all()
    assert torch.equal(out['pt'].frames.permute(0, 1, 3, 4, 2), torch.from_numpy(values))
    assert out['latent'].frames.shape == (2, 3, 4, 4, 4)
    for other in out.values():
        assert [p.tobytes() for story in other.stories for p in story] == [p.tobytes() for p in out['pil'].images]
    z = out['latent'].frames.flatten(0, 1)
    with torch.no_grad(): x = tiny.vae.decode(z/tiny.vae.config.scaling_factor).sample
    assert (out['pt'].images - (x/2 + .5).clamp(0, 1)).abs().max() < 1e-4

def test_rounding_is_that_of_diffusers():
    "Also at the borders between two levels."
    x = torch.cat([torch.linspace(-1, 1, 255*8 + 1), torch.rand(10000)*2 - 1])[None, :, None].expand(3, -1, 1)
    want = ((x/2 + .5).clamp(0, 1)*255).round().byte()
    assert np.array_equal(np.asarray(as_picture(x)), want.permute(1, 2, 0).numpy())

@pytest.mark.parametrize('kind', ['np', 'pt', 'latent'])
def test_stories_of_two_lengths(tiny, kind):
    out = tiny([A, B], **FEW, output_type=kind)
    assert isinstance(out.frames, list) and [len(f) for f in out.frames] == [3, 2]
    assert len(out.images) == 5 and type(out.images) is type(out.frames[0])
    assert out.images.shape[1:] == out.frames[0].shape[1:]
    equal = tiny([A[:2], B], **FEW, output_type=kind)
    assert equal.frames.shape == (2, *out.frames[1].shape) and equal.images.shape == (4, *out.frames[1].shape[1:])

def test_images(tiny):
    out = tiny([A, B], **FEW)
    assert out.images == out.frames[0] + out.frames[1]
    assert repr(out) == 'StoryOutput of 2 stories; frames drawn: 3 of 3, 2 of 2'
    with pytest.warns(UserWarning, match='not drawn'): some = tiny([A, []], **FEW, output_type='np')
    assert some.frames[0].shape == (3, 32, 32, 3) and some.frames[1] == [] and some.images.shape == (3, 32, 32, 3)
    frames, *_ = tiny(A, **FEW, output_type='np', return_dict=False)
    assert frames.shape == (1, 3, 32, 32, 3)
    assert StoryOutput(frames=[]).images == []
