"The modules of the page that draws, docs/story, against Python: run by node, with what Python computes."
import copy
import json
import random
import shutil
import subprocess
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from arldm.core import StoryError, asset, story_generator
from arldm.data.crops import center_crop
from arldm.data.dataset import Vocabulary
from arldm.draw.frames import initial_noise
from arldm.draw.pipeline import StoryPipeline
from arldm.draw.schedulers import make_scheduler, set_timesteps
from arldm.model.arldm import ARLDM
from arldm.model.config import SIZES
from arldm.toy.corpus import toy_story

ROOT = Path(__file__).resolve().parent.parent
STORY = ROOT/'docs/story'
missing = [name for name in ('onnx', 'onnxruntime') if not find_spec(name)]
exports = pytest.mark.skipif(bool(missing), reason=f'to export, {" and ".join(missing)} are missing: pip install -e .[dev]')
node = pytest.mark.skipif(not shutil.which('node'), reason='no node here; Debian has it as nodejs')


@pytest.fixture(scope='module')
def runtime(docs):
    "The module of ONNX Runtime for WebAssembly, as npm installs it."
    from story_page import RUNTIME, install_runtime
    try: return install_runtime()/RUNTIME[0]
    except StoryError as e: pytest.skip(str(e))

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "Run a task of story_page.mjs."
    folder = tmp_path_factory.mktemp('node')
    def run(task, **given):
        (folder/'in.json').write_text(json.dumps(dict(given, task=task)), encoding='utf-8')
        said = subprocess.run(['node', ROOT/'tests/story_page.mjs', folder/'in.json', folder/'out.json'],
                              capture_output=True, text=True)
        assert said.returncode == 0, said.stderr[-3000:]
        return json.loads((folder/'out.json').read_text(encoding='utf-8'))
    return run

@pytest.fixture(scope='module')
def models():
    "The model that comes with the book; another with random weights, other sizes, 8 latent channels, cards, new words."
    shipped = ARLDM.load(asset('toy/arldm'))
    torch.manual_seed(0)
    small = SIZES['tiny']
    narrow = {**small['bert'], 'hidden_size': 48, 'intermediate_size': 96}
    sizes = dict(small, bert=narrow, unet={**small['unet'], 'in_channels': 8, 'out_channels': 8})
    vocab = Vocabulary(*copy.deepcopy((shipped.vocab.caption_tokenizer, shipped.vocab.memory_tokenizer)), length=30)
    net = ARLDM.create(sizes, vocab, resolution=48, n_slots=4, cast=True).eval()
    net.vae = AutoencoderKL.from_config({**net.vae.config, 'latent_channels': 8, 'scaling_factor': .5}).eval()
    net.add_words(['zebra', 'Ångström'])
    with torch.no_grad(): net.history.cast_embedding.weight += 1
    for name, m in net.unet.named_modules():
        if name.endswith(('attn2.to_out.0', 'conv_out')): m.weight.data *= 8
    net.vae.decoder.conv_out.weight.data *= 4
    return dict(shipped=shipped, other=net)

@pytest.fixture(scope='module')
def pipes(models):
    made = {name: StoryPipeline.from_model(model) for name, model in models.items()}
    for pipe in made.values():
        pipe.set_progress_bar_config(disable=True)
        pipe.model.vocab.note_unknown = lambda captions: None
    return made

@pytest.fixture(scope='module')
def exported(docs, models, pipes, tmp_path_factory):
    "Folders with what the page loads of both."
    from export_onnx import write_manifest, write_parts
    made = {}
    for name, model in models.items():
        made[name] = tmp_path_factory.mktemp(name)
        write_manifest(model, pipes[name].scheduler.config, made[name], parts=write_parts(model, made[name]))
    return made


# the exported parts

@exports
@pytest.mark.parametrize('name', ['shipped', 'other'])
def test_parts_equal_torch(docs, exported, models, name):
    "Every part within 1e-4, with other lengths than it was exported with; all together 20 MB at most."
    import onnxruntime
    from export_onnx import parts
    torch.manual_seed(1)
    S = models[name].vocab.length
    total = 0
    for part, (module, inputs, axes) in parts(models[name]).items():
        path = exported[name]/f'{part}.onnx'
        session = onnxruntime.InferenceSession(path)
        inputs = {key: torch.randn(x.shape) if x.is_floating_point() else x for key, x in inputs.items()}
        if 'ids' in inputs:
            inputs['ids'] = torch.randint(200, (1, S))
            inputs['real'] = torch.arange(S)[None] < 7
        for length in (0, 1, 3) if axes else (0,):
            for key in axes: inputs[key] = torch.randn(1, 9*length + 9 if key == 'context' else length, *inputs[key].shape[2:])
            with torch.no_grad(): want = module(*inputs.values())
            got, = session.run(None, {key: x.numpy() for key, x in inputs.items()})
            assert want.std() > .01 and np.abs(got - want.numpy()).max() <= 1e-4, (part, length)
        total += path.stat().st_size
    assert total <= 20e6

def test_what_cannot_be_exported(docs, models, pipes):
    "A scheduler or memory encoder that the page does not know is refused in one line."
    from export_onnx import check
    config = {'_class_name': 'DPMSolverMultistepScheduler', **pipes['other'].scheduler.config}
    check(models['other'], config)
    for change, line in ((dict(use_karras_sigmas=True), 'use_karras_sigmas'), (dict(_class_name='PNDMScheduler'), 'PNDM'),
                         (dict(prediction_type='sample'), "prediction_type epsilon and v_prediction, the scheduler has 'sample'"),
                         (dict(beta_schedule='squaredcos_cap_v2'), 'beta_schedule linear')):
        with pytest.raises(StoryError, match=line): check(models['other'], {**config, **change})

def test_nothing_is_exported_over_other_files(docs, tmp_path):
    from export_onnx import main
    (tmp_path/'model.json').write_text('mine')
    with pytest.raises(SystemExit, match='is there already; move it away'): main([str(tmp_path/'nowhere'), str(tmp_path)])
    with pytest.raises(SystemExit, match='nowhere'): main([str(tmp_path/'nowhere'), str(tmp_path/'out')])
    assert [p.name for p in tmp_path.iterdir()] == ['model.json'] and (tmp_path/'model.json').read_text() == 'mine'

def test_half_an_installation_is_installed_again(docs, tmp_path, monkeypatch):
    "Of the pinned version, but npm was stopped before the runtime was there."
    import story_page
    pinned = json.loads((STORY/'package.json').read_text())['dependencies']['onnxruntime-web']
    shutil.copy(STORY/'package.json', tmp_path)
    dist = tmp_path/'node_modules/onnxruntime-web/dist'
    dist.mkdir(parents=True)
    (dist.parent/'package.json').write_text(json.dumps(dict(version=pinned)))
    monkeypatch.setattr(story_page, 'SOURCE', tmp_path)
    monkeypatch.setenv('PATH', '')
    with pytest.raises(StoryError, match='npm is not installed'): story_page.install_runtime()
    for name in story_page.RUNTIME: (dist/name).touch()
    with pytest.raises(StoryError, match='npm is not installed'): story_page.install_runtime()
    for name in story_page.WEBGPU: (dist/name).touch()
    assert story_page.install_runtime() == dist

def test_without_npm(docs, tmp_path, monkeypatch, capsys):
    "The rest of the site is built, with one line that says what is missing."
    import story_page
    shutil.copy(STORY/'package.json', tmp_path)
    monkeypatch.setattr(story_page, 'SOURCE', tmp_path)
    monkeypatch.setenv('PATH', '')
    assert 'built without' in story_page.story_form(tmp_path/'out') and not (tmp_path/'out').exists()
    assert capsys.readouterr().out == 'the page draw_a_story.html cannot draw: npm is not installed; all else is built\n'


# the modules, one by one

ODD = ['', ' ', 'Ada’s “big” red star…', "ada's hat isn't theirs, they'll say she'd've", 'Straße ÀÉÎ naïve café coöperate',
    'cafe\u0301 in two characters', 'ΟΔΥΣΣΕΥΣ sees Σ', '日本語の星 and 山', 'a 3rd star, 12 of 100½ ²', 'emoji 🌟🌟 star👩‍🚀',
    'नमस्ते दुनिया', 'tab\there\nand  there \u00a0 wide', '<|startoftext|> [SEP] [PAD] <|endoftext|>', 'zebra-zebra, Zebras zebra',
    'the Ångström and the ångström', 'x'*120, 'well-known $5 + 3 = 8 ^ ~ `tick` <b>', 'ﬁne ﬂag ＡＢＣ', 'İstanbul', '\u200bzero\u00adwidth',
    'under_score snake_case', 'ада и звезда', 'star '*200, 'don’t, it’s Ada’s',
    'a boy sleeping beside squares', 'a constructor sleeps, toString']

def odd_captions():
    "500 captions: of the toy world, and with words and characters that it does not know."
    rng = random.Random(0)
    told = [caption for i in range(60) for caption in toy_story(i).captions]
    words = [w for caption in told + ODD[:-2] for w in caption.split()]
    mixed = [' '.join(rng.choices(words, k=rng.randint(1, 12))).swapcase() for _ in range(500 - len(told) - len(ODD))]
    return told + ODD + mixed

@node
@pytest.mark.parametrize('name', ['shipped', 'other'])
def test_tokens(docs, run, models, tmp_path, name):
    "Both tokenizers, masks and unknown words are the same on 500 captions; words with a token of their own, too."
    from export_onnx import write_manifest
    captions = odd_captions()
    assert len(captions) == 500
    vocab = models[name].vocab
    write_manifest(models[name], {}, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        want = vocab.encode(captions)
    got = run('tokens', folder=str(tmp_path), captions=captions)
    wrong = {}
    for key, mine in dict(caption_ids='caption', memory_ids='memory', caption_real='captionReal', memory_real='memoryReal').items():
        for caption, a, b in zip(captions, want[key].int().tolist(), got[mine]):
            if a != b: wrong[key, caption] = a, b
    unknown = [vocab.unknown_words([caption]) for caption in captions]
    for caption, a, b in zip(captions, unknown, got['unknown']):
        if a != b: wrong['unknown', caption] = a, b
    assert not wrong, (len(wrong), list(wrong.items())[:6])
    assert sum(map(bool, unknown)) > 30

@node
@pytest.mark.parametrize('seed, size', [(0, 256), (2**32 - 1, 100), (7, 16)])
def test_noise_is_that_of_torch(run, seed, size):
    noise = initial_noise([story_generator(seed)], (size,))
    want = [next(noise)[0] for _ in range(6)]
    assert np.abs(np.array(run('noise', seed=seed, size=size, n=6)) - torch.stack(want).numpy()).max() < 1e-5

@node
def test_steps(run):
    "Timesteps and every sample are those of diffusers, for few steps and many, and each kind of model."
    rng = np.random.default_rng(0)
    asked, want = [], []
    for name in 'dpm++', 'ddim':
        for like in (dict(prediction_type='v_prediction'), dict(prediction_type='epsilon'),
                     dict(prediction_type='v_prediction', rescale_betas_zero_snr=True)):
            for n in 1, 2, 3, 7, 20:
                scheduler = make_scheduler(name, like)
                config = dict(make_scheduler('dpm++', like).config)
                del config['lambda_min_clipped']    # not JSON
                set_timesteps(scheduler, n)
                z, *outputs = rng.standard_normal((n + 1, 20)).astype('float32')
                asked.append(dict(name=name, config=config, n=n, sample=z.tolist(), outputs=np.array(outputs).tolist()))
                z = torch.from_numpy(z)
                samples = []
                for t, output in zip(scheduler.timesteps, outputs):
                    z = scheduler.step(torch.from_numpy(output), t, z).prev_sample
                    samples.append(z.numpy())
                want.append((scheduler.timesteps.tolist(), np.array(samples)))
    for of, (timesteps, samples), got in zip(asked, want, run('steps', runs=asked)):
        assert got['timesteps'] == timesteps, of
        wrong = np.abs(samples - got['samples']).max()
        assert wrong < 2e-4*max(1, np.abs(samples).max()), (of, wrong)

def as_json(picture): return dict(width=picture.width, height=picture.height, rgb=np.asarray(picture).ravel().tolist())

def as_array(frame): return np.array(frame['rgb'], 'uint8').reshape(frame['height'], frame['width'], 3)

@node
def test_scaling_is_that_of_pillow(run):
    "Larger and smaller, wide and tall: every byte."
    rng = np.random.default_rng(0)
    asked, want = [], []
    for (w, h), to in ((64, 64), (64, 64)), ((64, 64), (32, 32)), ((37, 90), (48, 33)), ((201, 120), (64, 70)), ((20, 9), (61, 80)), ((90, 200), (60, 40)):
        picture = Image.fromarray(rng.integers(0, 256, (h, w, 3), 'uint8'))
        asked.append(dict(as_json(picture), to=to))
        want.append((np.asarray(picture.resize(to, Image.BILINEAR)), np.asarray(center_crop(picture, to[0]))))
    for got, (resized, cropped) in zip(run('scaled', pictures=asked), want):
        assert np.array_equal(as_array(got['resized']), resized) and np.array_equal(as_array(got['cropped']), cropped)

@exports
@node
def test_numbers_of_another_runtime(run, runtime, exported, tmp_path):
    "A second session of the UNet is used if it is off by 1e-4 of the first, and given up if by 5e-3; the first answers then."
    import onnx
    from onnx import numpy_helper
    files = [exported['other']/'unet.onnx']
    for i, factor in enumerate((1.0001, 1.005)):
        model = onnx.load(files[0])
        for weight in model.graph.initializer:
            if 'conv_out' in weight.name:
                weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)*np.float32(factor), weight.name))
        files.append(tmp_path/f'{i}.onnx')
        onnx.save(model, files[-1])
    manifest = json.loads((exported['other']/'model.json').read_text())
    near, far = run('unet', runtime=str(runtime), files=[str(file) for file in files], latents=manifest['latents'],
                    width=manifest['width'], lengths=[9, 9, 20])
    assert near['runtime'] == 'WebGPU' and all(2e-5 < off < 2e-4 for off in near['off']), near
    assert far == dict(runtime='WebAssembly (WebGPU given up: it gives other numbers)', off=[0, 0, 0])


# whole stories

def seeds_and_cards():
    "A story of the other pipeline with cards, frame 2 drawn again, noise from the seed here and there."
    rng = np.random.default_rng(0)
    cast = {name: Image.fromarray(rng.integers(0, 256, (40, 30 + 25*i, 3), 'uint8')) for i, name in enumerate(['Ada', 'Zebra'])}
    return dict(captions=['Ada is here with a zebra', 'she jumps', 'Zebra goes home', 'nothing more'], cast=cast, seed=5)

STORIES = dict(
    shipped=dict(pipeline='shipped', captions=toy_story(3).captions, scheduler='dpm++', steps=4, guidance=2.),
    cards=dict(pipeline='other', scheduler='dpm++', steps=3, guidance=3., **seeds_and_cards()),
    ddim=dict(pipeline='other', scheduler='ddim', steps=3, guidance=1., **seeds_and_cards()))

def drawn_here(pipe, captions, scheduler, steps, guidance, cast=None, seed=None, **_):
    "Frames of the pipeline, and with a seed frame 2 drawn again; and the noise, if it was made here."
    pipe.scheduler = make_scheduler(scheduler, pipe.scheduler.config)
    sampling = dict(cast=cast, num_inference_steps=steps, guidance_scale=guidance)
    z = None
    if seed is None:
        z = torch.randn(len(captions), *pipe._latent_shape(None, None), generator=torch.Generator().manual_seed(3))
        return list(pipe(list(captions), latents=[z], **sampling).images), z.flatten(1).tolist()
    frames = list(pipe(list(captions), seed=seed, **sampling).images)
    return [*frames, *pipe(list(captions), given=frames, redraw=2, seed=9, **sampling).images], None

@pytest.fixture(scope='module')
def drawn(run, runtime, exported, pipes):
    "The frames of each story, the pipeline's and the page's, as arrays."
    want, asked = {}, {}
    for name, story in STORIES.items():
        want[name], noise = drawn_here(pipes[story['pipeline']], **story)
        asked[name] = dict(folder=str(exported[story['pipeline']]), captions=story['captions'], noise=noise,
            cast=[dict(as_json(picture), name=who) for who, picture in story.get('cast', {}).items()],
            settings=dict(sampler=story['scheduler'], steps=story['steps'], guidance=story['guidance'], seed=story.get('seed')),
            redraw=None if noise else dict(frame=1, seed=9))
    got = run('stories', runtime=str(runtime), stories=asked)
    frames = {}
    for name in STORIES:
        frames[name] = np.stack(list(map(np.asarray, want[name]))).astype(int), np.stack(list(map(as_array, got[name]))).astype(int)
    return frames

@exports
@node
@pytest.mark.parametrize('name', STORIES)
def test_stories(drawn, name):
    "Every frame of the page is within one grey level of the pipeline's."
    want, got = drawn[name]
    assert want.shape == got.shape and len(want) == 5
    assert min(frame.std() for frame in want) > 5, 'frames that are almost plain prove nothing'
    assert np.abs(want - got).max() <= 1
