"""Ours beside recordings of the original, piece by piece; `python tests/recorded.py` prints all.

The recordings in `parity` come from the unedited original with tiny sizes, random weights and true
tokenizers; ours stands under their names, so that the two compare key by key. A difference is the
largest over all recordings.
"""
import json, zlib
from collections import Counter
from functools import cache
from itertools import chain, combinations
from operator import ne
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np, torch, torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from transformers import BertTokenizer, CLIPTokenizer

from arldm.model.pretrained import resize_grid
from arldm.data.dataset import StoryDataset, Vocabulary, pixels, to_memory
from arldm.draw.schedulers import make_scheduler
from arldm.score.distances import frechet
from arldm.draw.pipeline import StoryPipeline
from arldm.model.encoders import encode_captions
from arldm.draw.frames import draw_frames
from arldm.draw.sampling import Sampling
from arldm.score.inception import Inception, fid64_drawn
from arldm.model.arldm import ARLDM
from arldm.train.optim import learning_rates
from arldm.model.port import translate
from arldm.data.story import Story, StoryFile, write_stories

PARITY = Path(__file__).parent/'parity'
TRAIN = 'visualization_none', 'visualization_some', 'continuation_none'   # task, condition dropped
DRAWN = 'visualization_ddim', 'continuation_pndm'                         # task, scheduler
STEPS = 4, 20, 30, 50, 250
COMPARISONS = {}   # piece -> function that returns its rows

class Row(NamedTuple):
    piece: str
    quantity: str
    difference: float
    tolerance: float

def piece(compare):
    "Enter a generator of (quantity, difference, tolerance) under its name."
    name = compare.__name__.replace('_', ' ')
    COMPARISONS[name] = torch.no_grad()(lambda: [Row(name, *row) for row in compare()])
    return COMPARISONS[name]

def rows(): return chain.from_iterable(compare() for compare in COMPARISONS.values())

def arrays(name):
    recorded = np.load(PARITY/f'{name}.npz')
    return {k: torch.from_numpy(np.asarray(v)) for k, v in recorded.items()}

def described(name): return json.loads((PARITY/f'{name}.json').read_text())

def gap(ours, theirs): # the largest absolute difference
    assert ours.shape == theirs.shape, f'{tuple(ours.shape)} beside {tuple(theirs.shape)}'
    return (ours.double() - theirs.double()).abs().nan_to_num(torch.inf).max().item()

def share(ours, theirs): # the difference as a part of the largest recorded number
    return gap(ours, theirs)/theirs.abs().max().item()

@cache
def state(): return load_file(PARITY/'state_dict.safetensors')
@cache
def names(): # name in the original -> our name, of every parameter
    ours = {name for name, _ in model().named_parameters()}
    return {old: new for old, new in translate(state()).items() if new in ours}

def vocabulary(length, names=()):
    words = CLIPTokenizer.from_pretrained(PARITY/'tokenizers/clip')
    more = BertTokenizer.from_pretrained(PARITY/'tokenizers/bert')
    return Vocabulary(words, more, length, names, legacy=True)

@cache
def model(): # the original's tiny model, rebuilt from its configuration and weights
    c = described('configs')
    def of(part, *keys): return {k: c[part][k] for k in keys}
    layers = ('hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads',
              'layer_norm_eps')
    v, width = c['VIT_CFG'], c['VITW']
    vision = dict(image_size=v['img_size'], patch_size=v['patch_size'], hidden_size=width,
                  intermediate_size=4*width, num_hidden_layers=v['depth'],
                  num_attention_heads=v['num_heads'], layer_norm_eps=1e-6)
    vae = dict(of('VAE_CFG', 'block_out_channels', 'layers_per_block', 'norm_num_groups'),
               scaling_factor=.18215)
    unet = {k: x for k, x in c['UNET_CFG'].items() if k != 'sample_size'}
    sizes = dict(clip=of('CLIP_CFG', *layers, 'hidden_act'), vision=vision, vae=vae, unet=unet,
                 bert=of('MED_CFG', *layers, 'max_position_embeddings'))
    net = ARLDM.create(sizes, vocabulary(c['S']), resolution=c['IMG'])
    return net.load_original(state()).eval()

def stories(name):
    "A recording, its memory pictures, its number of given frames and its tokens of whole stories."
    r = arrays(name)
    given = int('continuation' in name)
    memory = to_memory(arrays('pictures')['pictures'][r['source_rows']])
    def whole(x): return F.pad(x, (0, 0, given, 0))      # a given frame's own caption is never used
    return r, memory, given, dict(
        caption_ids=whole(r['in_captions']), caption_real=whole(r['in_attention_mask']).bool(),
        memory_ids=r['in_source_caption'], memory_real=r['in_source_attention_mask'].bool())

@cache
@torch.enable_grad()
def training(name): # a recorded batch, and ours from encoders to gradients
    r, memory, given, tokens = stories(f'train_{name}')
    net = model()
    z, noise, t = r['latents'], r['noise'], r['timesteps']
    dropped = r['classifier_free_idx'].view(2, -1)
    context, visible = net.condition(tokens, memory, given, dropped)
    loss = net.frame_losses(z, noise, t, context, visible).mean()
    ours = dict(encoder_hidden_states=context, encoder_attention_mask=~visible, loss=loss)
    ours |= gradients_of(loss, net, r)
    with torch.no_grad():
        without_last = net.condition(tokens, memory[:, :-1], given, dropped)
        ours['loss_without_last'] = net.frame_losses(z, noise, t, *without_last).mean()
        noisy = net.noise_scheduler.add_noise(z, noise, t)
        ours['noisy_latents'] = noisy
        ours['noise_pred'] = net.predict(noisy, t, context, visible)
        real = r['in_attention_mask'].bool()
        ours['clip_out'] = encode_captions(net.text_encoder, r['in_captions'], real).flatten(0, 1)
        slots = net.memory_encoder(memory, tokens['memory_ids'], tokens['memory_real'])
        ours['blip_out'] = slots.flatten(0, 1)
        moments = net.moments(r['in_images']).flatten(0, 1)
        ours['vae_mean'], ours['vae_logvar'] = moments.chunk(2, 1)
        caption, slot = net.null_cond()
        ours |= dict(clip_null=caption[None], blip_null=slot[None])
    return r, ours

def gradients_of(loss, net, r): # those that are recorded in `r`, and norms of whole parts
    trained = [old for old in names() if not old.startswith('vae.')]
    parameters = [net.get_parameter(names()[old]) for old in trained]
    found = dict(zip(trained, torch.autograd.grad(loss, parameters, materialize_grads=True)))
    def norm(part):
        norms = [g.double().norm() for old, g in found.items() if old.startswith(part)]
        return torch.stack(norms).norm()
    ours = {}
    for k in r:
        kind, _, what = k.partition('_')
        if kind == 'grad': ours[k] = found[what]
        if kind == 'gradnorm': ours[k] = norm(f'{what}.')
    return ours

@cache
def drawing(name): # two recorded stories, and ours with what went through the UNet
    r, memory, given, tokens = stories(f'sample_{name}')
    net = model()
    calls = []   # of the UNet: latents, context, what is blocked, its prediction
    def predict(z, t, context, visible):
        pred = ARLDM.predict(net, z, t, context, visible)
        calls.append((z.chunk(2)[0], context, ~visible, pred))
        return pred
    scheduler = make_scheduler(name.split('_')[1])
    captions = [{k: v[:, i] for k, v in tokens.items()} for i in range(5)]
    opening = {k: memory[:, k] for k in range(given)}
    def draw(plain=False): # latents and frames; the start is recorded frame by frame
        drawn = draw_frames(net, scheduler, captions, r['init_latents'], opening,
                            Sampling(STEPS[0], 6., plain=plain))
        latents, frames = zip(*drawn)
        return torch.stack(latents), ((torch.stack(frames) + 1)*127.5).round().byte()
    net.predict = predict
    try: latents, frames = draw(plain=True)
    finally: del net.predict
    per_frame = len(calls)/len(latents)
    first_calls = calls[::int(per_frame)]   # of each frame
    contexts = torch.stack([context for _, context, _, _ in first_calls])
    blocked = torch.stack([mask for _, _, mask, _ in first_calls])
    before_steps = torch.stack([z for z, *_ in calls])
    is_drawn = ~blocked.all(1, keepdim=True)   # (V, 1, tokens); other frames are not drawn yet
    theirs = dict(r, context_per_frame=r['context_per_frame']*is_drawn[..., None])
    return theirs, dict(
        timesteps=scheduler.timesteps, unet_calls_per_frame=torch.tensor(per_frame),
        mask_per_frame=blocked, context_per_frame=contexts,
        noise_pred_first_step=torch.stack([pred for *_, pred in first_calls]),
        latents_before_each_step=before_steps.unflatten(0, (len(latents), -1)),
        final_latents_scaled=latents, fast_latents=draw()[0],
        decoded=torch.stack([net.vae.decode(z/.18215).sample for z in latents]),
        images_uint8_in_returned_order=frames.permute(0, 1, 3, 4, 2).flatten(0, 1))

def worst(key, of=gap, ours=None): # over the training batches
    return max(of(us[ours or key], r[key]) for r, us in map(training, TRAIN))

@piece
def checkpoint():
    with TemporaryDirectory() as folder:
        StoryPipeline.from_model(model()).save_pretrained(folder)
        back, first = ARLDM.load(folder).to_original(), state()
    wrong = back.keys() ^ first.keys()
    wrong |= {k for k in back.keys() & first.keys() if not torch.equal(back[k], first[k])}
    yield f'tensors of {len(first)} that differ, original → folder → original', len(wrong), 0

def n_different(ours, theirs): return sum(map(ne, ours, theirs))

def token_differences(theirs, vocab): # how many texts have other ids, by tokenizer
    ours = vocab.encode(theirs['texts'])
    def ids(key):
        rows = zip(ours[f'{key}_ids'], ours[f'{key}_real'])
        return [row[real].tolist() for row, real in rows]
    return dict(clip=n_different(ids('caption'), theirs['clip']),
                bert=n_different(ids('memory'), theirs['bert']))

@piece
def tokens():
    oracle = described('tokenizer_oracle')
    for kind, n in token_differences(oracle, vocabulary(64)).items():
        yield f'{kind.upper()}, texts of 26 that differ', n, 0
    n_named = Counter()
    for names, theirs in oracle['new_tokens'].items():
        n_named.update(token_differences(theirs, vocabulary(64, names.split(','))))
    for kind in 'clip', 'bert':
        yield f'{kind.upper()}, texts of 6 with new names that differ', n_named[kind], 0
    null = model().vocab.null()
    for key, old in ('caption', 'clip'), ('memory', 'blip'):
        recorded = state()[f'{old}_text_null_token']
        yield f'ids of the null {key}', gap(null[f'{key}_ids'], recorded), 0

@piece
def pictures():
    r = arrays('sample_visualization_ddim')
    photos = tuple((PARITY/f'te0_{k}.jpg').read_bytes() for k in range(5))
    with TemporaryDirectory() as folder:
        path = Path(folder)/'stories.h5'
        write_stories(path, dict(test=[Story('0', '0', ('',)*5, photos)]), 'ssid')
        split = StoryFile(path)['test']
        seen = StoryDataset(split, vocabulary(16), 64, 224, legacy=True)[0]
    frames = r['in_images'][0].permute(0, 3, 1, 2)
    memory = arrays('pictures')['pictures'][r['source_rows'][0]]
    black = to_memory(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
    yield 'frames cut from photos, levels of 255', gap(seen['frames'], frames), 0
    yield 'memory cut from photos, levels of 255', gap(seen['memory'], memory), 0
    yield 'black picture as BLIP sees it', gap(black, state()['blip_image_null_token']), 1e-6

@piece
def encoders():
    labels = dict(clip_out='CLIP captions', blip_out='BLIP slots', clip_null='null caption',
                  blip_null='null slot')
    for key, label in labels.items(): yield label, worst(key), 1e-5
    r = arrays('vit_pos_interp')
    yield 'BLIP positions, 24 × 24 to 14 × 14', gap(resize_grid(r['inp'], 14), r['out']), 1e-6

@piece
def training_batch():
    for key, label, tolerance in (
        ('encoder_hidden_states', 'context', 1e-5),
        ('encoder_attention_mask', 'visibility, exact', 0),
        ('vae_mean', 'VAE mean', 1e-5), ('vae_logvar', 'VAE log-variance', 1e-5),
        ('noisy_latents', 'noisy latents', 1e-6), ('noise_pred', 'noise prediction', 1e-5),
        ('loss', 'loss', 1e-6)):
        yield label, worst(key), tolerance
    yield 'loss without the last slot', worst('loss', ours='loss_without_last'), 1e-6

@piece
def gradients():
    recorded, _ = training(TRAIN[0])
    for k in recorded:
        kind, _, name = k.partition('_')
        if kind == 'gradnorm': yield f'norm of {name}, relative', worst(k, share), 1e-5
        if kind == 'grad': yield f'all of {name}, relative', worst(k, share), 1e-5
    last_slots = [ours['grad_time_embeddings.weight'][4] for _, ours in map(training, TRAIN)]
    yield 'time embedding of the last slot, from 0', torch.stack(last_slots).abs().max().item(), 0

@piece
def learning_rate():
    n = 0
    for name, theirs in described('lr_schedule').items():
        warmup, steps = map(int, name[1:].split('_m'))
        s = SimpleNamespace(lr_scheduler='legacy', learning_rate=1e-5, scale_lr=False, lr_warmup_steps=warmup,
                            max_train_steps=steps)
        n += n_different(learning_rates(s, len(theirs)), theirs)
    yield 'rates that differ, warm-up of 0, 1, 2, 3, 5', n, 0

# the original's part -> its switch, and which of its parameters train nevertheless
FREEZING = dict(text_encoder=('clip', 'token_embedding'), mm_encoder=('blip', 'word_embeddings'),
                unet=('resnet', 'attentions'))

@piece
def freezing():
    net, wrong = model(), 0
    def trains(name, frozen):
        if name.startswith('vae.'): return False
        switch, always = FREEZING.get(name.split('.')[0], ('', ''))
        return switch not in frozen or always in name
    for n in 3, 2, 1, 0:
        for frozen in combinations(('clip', 'blip', 'resnet'), n):
            parameters = net.freeze(frozen).named_parameters()
            ours = {name for name, p in parameters if p.requires_grad}
            theirs = {new for old, new in names().items() if trains(old, frozen)}
            wrong += len(ours ^ theirs)
    yield 'parameters that differ, all 8 settings', wrong, 0

@piece
def schedulers():
    r = arrays('schedulers')
    alphas = r['alphas_cumprod']
    yield 'ᾱ, training', gap(model().noise_scheduler.alphas_cumprod, alphas), 0
    for name in 'ddim', 'pndm':
        scheduler = make_scheduler(name)
        yield f'ᾱ, {name}', gap(scheduler.alphas_cumprod, alphas), 0
        gaps = []
        for n in STEPS:
            scheduler.set_timesteps(n)
            gaps.append(gap(scheduler.timesteps, r[f'{name}_{n}_timesteps']))
        yield f'timesteps, {name} {", ".join(map(str, STEPS))}', max(gaps), 0

@piece
def drawings():
    for name in DRAWN:
        theirs, ours = drawing(name)
        for key, label, tolerance in (
            ('timesteps', 'timesteps', 0), ('unet_calls_per_frame', 'UNet calls per frame', 0),
            ('mask_per_frame', 'visibility, exact', 0), ('context_per_frame', 'context', 1e-5),
            ('noise_pred_first_step', 'first noise prediction', 1e-5),
            ('latents_before_each_step', 'latents of each step', 1e-4),
            ('final_latents_scaled', 'final latents', 1e-4), ('decoded', 'decoded', 1e-4),
            ('images_uint8_in_returned_order', 'pictures, levels of 255', 1)):
            yield f'{name.replace("_", " ")}: {label}', gap(ours[key], theirs[key]), tolerance
    for name in DRAWN:
        theirs, ours = drawing(name)
        off = gap(ours['fast_latents'], theirs['final_latents_scaled'])
        yield f'{name.replace("_", " ")}: final latents, drawn the fast way', off, 1e-4

@piece
def distance():
    z = arrays('fid')
    full = z['full_a'], z['full_b']
    def off(key, a, b): return abs(frechet(a.numpy(), b.numpy()) - z[key].item())
    def relative(key, *sets): return off(key, *sets)/z[key].item()
    yield 'full rank, relative', relative('fid_full', *full), 1e-12
    single = relative('fid_full_float32_input', full[0].float(), full[1].float())
    yield 'of float32 features, relative', single, 1e-8
    few = relative('fid_singular', z['sing_a'], z['sing_b'])
    yield 'fewer rows than columns, relative', few, 1e-7
    yield 'of a set to itself', off('fid_same', full[0], full[0]), 1e-9

def regenerated(name, shape): # weights that anybody can make again: seeded with their name
    r = np.random.RandomState(zlib.crc32(name.encode()) & 0x7fffffff)
    if name.endswith('running_var'): x = .5 + r.rand(*shape)
    elif name.endswith('conv.weight'): x = r.randn(*shape)/np.sqrt(np.prod(shape[1:]))
    else: x = name.endswith('bn.weight') + .1*r.randn(*shape)
    return torch.tensor(x, dtype=torch.float32)

@piece
def inception_features():
    r, net, seen = arrays('inception'), Inception(), []
    net.load_state_dict({k: regenerated(k, v.shape) for k, v in net.state_dict().items()})
    net.Conv2d_1a_3x3.register_forward_pre_hook(lambda _, x: seen.append((x[0] + 1)/2))
    features = net(pixels([fid64_drawn(Image.fromarray(r[f'image{i}'].numpy())) for i in range(4)]))
    some = seen[0][..., ::13, ::13]
    yield 'pictures at 299 px, every 13th, of 1', gap(some, r['net_input_299']), 1e-6
    yield 'features, relative', share(features, r['features']), 1e-5

def table(): # the rows of all pieces as aligned text
    lines = [('piece', 'quantity', 'max difference', 'tolerance')]
    for r in rows(): lines.append((r.piece, r.quantity, f'{r.difference:.2g}', f'{r.tolerance:g}'))
    a, b, c, d = (max(map(len, column)) for column in zip(*lines))
    written = []
    for name, quantity, difference, tolerance in lines:
        written.append(f'{name:{a}}  {quantity:{b}}  {difference:>{c}}  {tolerance:>{d}}')
    return '\n'.join(written)

if __name__ == '__main__': print(table())
