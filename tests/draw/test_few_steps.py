"One to three steps of every scheduler equal the textbook from the right first time; a frame that is not finite is an error."
from types import SimpleNamespace

import numpy as np, pytest, torch
from diffusers import DDIMScheduler, PNDMScheduler
from torch import nn

from arldm.draw import schedulers as module
from arldm.core import StoryError, asset
from arldm.settings import SCHEDULERS
from arldm.draw.sampling import Sampling, decode_latents, denoise
from arldm.draw.schedulers import make_scheduler
from arldm.draw.pipeline import StoryPipeline
from arldm.model.config import noise_schedule

# data are N(MU, S²)
MU = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
S = .3
Z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
COND = torch.zeros(2, 1, 1), torch.ones(2, 1, dtype=torch.bool)


# the textbook, in double precision, from the schedule's definition

def alphas(zero_snr=False): # ᾱ of every time
    betas = torch.linspace(.00085**.5, .012**.5, 1000, dtype=torch.float64)**2
    root = (1 - betas).cumprod(0).sqrt()
    # arXiv 2305.08891, algorithm 1
    if zero_snr: root = (root - root[-1])*root[0]/(root[0] - root[-1])
    return root**2

# E[ε | x]
def noise_of(x, a): return (1 - a)**.5*(x - a**.5*MU)/(a*S**2 + 1 - a)

# E[x₀ | x]
def clean_of(x, a): return (a**.5*S**2*x + (1 - a)*MU)/(a*S**2 + 1 - a)

# DDIM, η = 0
def move(x, e, a, b): return b**.5*(x - (1 - a)**.5*e)/a**.5 + (1 - b)**.5*e

def ddim(times, A):
    x = Z
    after = [float(A[t]) for t in times[1:]] + [1.]
    for t, b in zip(times, after):
        a = float(A[t])
        x = b**.5*clean_of(x, a) + (1 - b)**.5*noise_of(x, a)
    return x

# arXiv 2202.09778, pseudo linear multi-step; ends at ᾱ₀, as the original's does
def pndm(times, A, v=False):
    a = [float(A[t]) for t in times]
    b = [float(A[t]) for t in times[1:]] + [float(A[0])]
    def said(x, a): return a**.5*noise_of(x, a) - (1 - a)**.5*clean_of(x, a) if v else noise_of(x, a)
    def step(x, e, a, b): return move(x, a**.5*e + (1 - a)**.5*x if v else e, a, b)
    e = [said(Z, a[0])]
    x = step(Z, e[0], a[0], b[0])
    if len(times) > 1: x = step(Z, (e[0] + said(x, b[0]))/2, a[0], b[0])
    for k in range(1, len(times)):
        e.append(said(x, a[k]))
        x = step(x, (3*e[1] - e[0])/2 if k == 1 else (23*e[2] - 16*e[1] + 5*e[0])/12, a[k], b[k])
    return x

def halflogsnr(a): return .5*np.log(a/(1 - a))

def dpm(times, A): # arXiv 2211.01095, 2M, the last step of first order
    a = [float(A[t]) for t in times]
    x = Z
    last = None
    h_last = None
    for k in range(len(times)):
        d = clean_of(x, a[k])
        if k + 1 == len(times): return d
        h = halflogsnr(a[k+1]) - halflogsnr(a[k])
        D = d if last is None else (1 + h/h_last/2)*d - h/h_last/2*last
        x = ((1 - a[k+1])/(1 - a[k]))**.5*x - a[k+1]**.5*np.expm1(-h)*D
        last = d
        h_last = h

# arXiv 2302.04867, order 2, B(h) = e^h − 1; each step is corrected once the next answer is there
def unipc(times, A):
    a = [float(A[t]) for t in times]
    x = Z
    d = []
    prev = Z
    for k in range(len(times)):
        new = clean_of(x, a[k])
        # UniC of the step before
        if k:
            h = halflogsnr(a[k]) - halflogsnr(a[k-1])
            B = np.expm1(-h)
            base = ((1 - a[k])/(1 - a[k-1]))**.5*prev - a[k]**.5*B*d[-1]
            if k == 1: extra = (new - d[-1])/2
            else:
                r = (halflogsnr(a[k-2]) - halflogsnr(a[k-1]))/h
                phi = B/-h - 1
                c = np.linalg.solve([[1, 1], [r, 1]], [phi/B, 2*(phi/-h - .5)/B])
                extra = c[0]*(d[-2] - d[-1])/r + c[1]*(new - d[-1])
            x = base - a[k]**.5*B*extra
        # what the model said before the correction is kept
        d.append(new)
        prev = x
        if k + 1 == len(times): return d[-1]
        h = halflogsnr(a[k+1]) - halflogsnr(a[k])
        D = d[-1] if k == 0 else d[-1] + (d[-2] - d[-1])/(halflogsnr(a[k-1]) - halflogsnr(a[k]))*h/2
        x = ((1 - a[k+1])/(1 - a[k]))**.5*x - a[k+1]**.5*np.expm1(-h)*D

BOOK = {'ddim': ddim, 'pndm': pndm, 'dpm++': dpm, 'unipc': unipc}
TIMES = {'ddim': [[999], [999, 499], [998, 665, 332]], 'dpm++': [[999], [999, 500], [999, 666, 333]]}
TIMES |= {'pndm': TIMES['ddim'], 'unipc': TIMES['dpm++']}
# of `timestep_spacing`
TRAILING = [[999], [999, 499], [999, 666, 332]]

class Gaussian(nn.Module):
    "The exact answer for data N(MU, S²), whatever is asked for."
    def __init__(self, scheduler, A):
        super().__init__()
        self.A = A
        self.called = []
        self.v = scheduler.config.prediction_type == 'v_prediction'
        self.unet = nn.Module()
        self.unet.down_blocks, self.unet.up_blocks = (nn.ModuleList([nn.Identity(), nn.Identity()]) for _ in range(2))
        self.unet.mid_block = nn.Identity()
    def predict(self, x, t, context, visible):
        a = float(self.A[int(t)])
        n = len(x)//len(MU)
        self.called.append((int(t), n))
        mu = MU.repeat(n, 1, 1, 1)
        x = x.double()
        e = (1 - a)**.5*(x - a**.5*mu)/(a*S**2 + 1 - a)
        x0 = (a**.5*S**2*x + (1 - a)*mu)/(a*S**2 + 1 - a)
        return a**.5*e - (1 - a)**.5*x0 if self.v else e

def drawn(name, steps, kind='epsilon', zero_snr=False, uncond=None, **options):
    scheduler = make_scheduler(name, noise_schedule(kind, zero_snr).config)
    model = Gaussian(scheduler, alphas(zero_snr))
    return denoise(model, scheduler, Z.float(), COND, uncond, Sampling(steps, **options)), model.called

def off(a, b): return float((a - b).abs().max())

@pytest.mark.parametrize('kind', ['epsilon', 'v_prediction'])
@pytest.mark.parametrize('steps', [1, 2, 3])
@pytest.mark.parametrize('name', SCHEDULERS)
def test_few_steps_are_the_textbooks(name, steps, kind):
    z, called = drawn(name, steps, kind)
    times = TIMES[name][steps - 1]
    # it combines what the model says
    more = dict(v=kind == 'v_prediction') if name == 'pndm' else {}
    assert off(z, BOOK[name](times, alphas(), **more)) < 2e-4
    assert [t for t, _ in called] == (times[:2] + times[1:] if name == 'pndm' else times)
    # and near the data
    assert float((z - MU).abs().mean()) < .4

@pytest.mark.parametrize('name,steps', [('ddim', 1), ('ddim', 2), ('dpm++', 1), ('dpm++', 2), ('dpm++', 3), ('unipc', 1)])
def test_few_steps_from_pure_noise(name, steps):
    A = alphas(True)
    # diffusers' stand-in for infinite noise
    if name != 'ddim': A[-1] = 2**-24
    scheduler = make_scheduler(name, noise_schedule('v_prediction', True).config)
    z = denoise(Gaussian(scheduler, A), scheduler, Z.float(), COND, sampling=Sampling(steps))
    assert off(z, BOOK[name](TRAILING[steps - 1], A)) < 2e-3

@pytest.mark.parametrize('name', ['ddim', 'pndm'])
@pytest.mark.parametrize('steps', [4, 5, 20, 50, 250, 999])
def test_many_steps_are_as_they_were(name, steps):
    "From four steps on, times and latents are those of the scheduler alone, bit by bit."
    ours = make_scheduler(name)
    plain = make_scheduler(name)
    plain.set_timesteps(steps)
    module.set_timesteps(ours, steps)
    assert torch.equal(ours.timesteps, plain.timesteps)
    if steps > 20: return
    z = drawn(name, steps)[0]
    model = Gaussian(plain, alphas())
    x = Z.float()
    for t in plain.timesteps: x = plain.step(model.predict(x, t, None, None).float(), t, x).prev_sample
    assert torch.equal(z, x)

def test_guidance_interval_and_reuse_with_few_steps():
    guided = dict(uncond=COND, guidance_scale=2.)
    assert drawn('ddim', 1, **guided)[1] == [(999, 2)] and drawn('pndm', 1, **guided)[1] == [(999, 2)]
    assert drawn('ddim', 1, guidance_interval=(.2, .8), **guided)[1] == [(999, 1)]
    assert drawn('ddim', 2, guidance_interval=(0, .5), **guided)[1] == [(999, 2), (499, 1)]
    assert drawn('pndm', 3, guidance_interval=(.5, 1), **guided)[1] == [(998, 1), (665, 1), (665, 2), (332, 2)]
    # both halves say the same here, so guidance adds nothing
    for steps in 1, 2, 3:
        assert off(drawn('ddim', steps, **guided)[0], ddim(TIMES['ddim'][steps-1], alphas())) < 2e-4
        assert torch.equal(drawn('ddim', steps, reuse=2)[0], drawn('ddim', steps)[0])

def test_another_scheduler_of_diffusers_stays_as_it_is():
    own = DDIMScheduler(beta_schedule='scaled_linear', beta_start=.00085, beta_end=.012, steps_offset=1, clip_sample=False)
    before = dict(own.config)
    plain = DDIMScheduler.from_config(own.config)
    plain.set_timesteps(2)
    module.set_timesteps(own, 2)
    assert own.timesteps.tolist() == plain.timesteps.tolist() == [501, 1] and dict(own.config) == before
    with pytest.raises(StoryError, match="1 step of DDIMScheduler would start at timestep 1, .*use more steps"): module.set_timesteps(own, 1)
    with pytest.raises(StoryError, match='^5,000 steps: '): module.set_timesteps(own, 5000)

def test_a_saved_scheduler_begins_where_it_did(tmp_path):
    for name, kind in ('ddim', DDIMScheduler), ('pndm', PNDMScheduler):
        make_scheduler(name, noise_schedule('v_prediction').config).save_pretrained(tmp_path/name)
        module.set_timesteps(back := kind.from_pretrained(tmp_path/name), 1)
        assert back.timesteps.tolist() == [999]

@pytest.mark.parametrize('name', ['ddim', 'pndm'])
def test_one_step_of_the_shipped_model_is_no_garbage(name):
    "One step of DDIM is one step of DPM-Solver++, of PNDM but for the noise that is left at its last time."
    pipe = StoryPipeline.from_pretrained(asset('toy/arldm'))
    pipe.set_progress_bar_config(disable=True)
    captions = ['Leo, a big red star with a hat, is at the beach on the left by day.']
    frames = {}
    for other in name, 'dpm++':
        pipe.scheduler = make_scheduler(other, pipe.scheduler.config)
        frames[other] = np.asarray(pipe(captions, num_inference_steps=1, guidance_scale=1.).frames[0][0], float)
    assert abs(frames[name] - frames['dpm++']).mean() < (1 if name == 'ddim' else 6)


# frames that are not finite

class Broken(nn.Module):
    def __init__(self, value, dtype):
        super().__init__()
        self.dtype = dtype
        self.value = value
        self.config = SimpleNamespace(scaling_factor=1.)
    def decode(self, z):
        x = torch.zeros(len(z), 3, 8, 8, dtype=self.dtype)
        x[-1, 0, 3, 3] = self.value
        return SimpleNamespace(sample=x)

@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('dtype,said', [(torch.float16, 'float16 .*bfloat16 or float32'), (torch.float32, 'weights are damaged'),
                                        (torch.bfloat16, 'weights are damaged')])
def test_a_frame_that_is_not_finite(value, dtype, said):
    with pytest.raises(StoryError, match=said) as e: decode_latents(SimpleNamespace(vae=Broken(value, dtype)), torch.zeros(2, 4, 1, 1))
    assert '\n' not in str(e.value)

def test_a_finite_frame_is_clipped():
    for value, want in (.5, .5), (7., 1.), (-7., -1.):
        x = decode_latents(SimpleNamespace(vae=Broken(value, torch.bfloat16)), torch.zeros(1, 4, 1, 1))
        assert x.dtype == torch.float32 and x[0, 0, 3, 3] == want and x[0, 1, 0, 0] == 0

def test_damaged_weights_end_in_a_line():
    pipe = StoryPipeline.from_pretrained(asset('toy/arldm'))
    pipe.set_progress_bar_config(disable=True)
    pipe.vae.decoder.conv_out.bias.data[0] = float('nan')
    with pytest.raises(StoryError, match='not finite; the weights are damaged'): pipe(['Ada.'], num_inference_steps=1)
