"""Ours beside recordings of the original, piece by piece; `python tests/recorded.py` prints the table.

The recordings in `parity` come from the unedited original with tiny sizes, random weights and true tokenizers; ours
stands under their names, so that the two compare key by key. A difference is the largest over all recordings.
"""
import json, zlib
from functools import cache
from itertools import chain, combinations, product
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
from arldm.draw.sampling import make_scheduler
from arldm.score.distances import frechet
from arldm.draw.pipeline import StoryPipeline
from arldm.model.encoders import encode_captions
from arldm.draw.frames import draw_frames
from arldm.score.inception import Inception, fid64_drawn
from arldm.model.arldm import ARLDM
from arldm.train.optim import learning_rates
from arldm.model.port import translate
from arldm.data.story import Story, StoryFile, write_stories

PARITY = Path(__file__).parent/'parity'
TRAIN = 'visualization_none', 'visualization_some', 'continuation_none'   # task, and whose condition was dropped
DRAWN = 'visualization_ddim', 'continuation_pndm'                         # task, scheduler
STEPS = 4, 20, 30, 50, 250
COMPARISONS = {}                                                          # piece -> function that returns its rows
Row = NamedTuple('Row', [('piece', str), ('quantity', str), ('difference', float), ('tolerance', float)])

def piece(compare):
    "Enter a generator of (quantity, difference, tolerance) under its name."
    name = compare.__name__.replace('_', ' ')
    COMPARISONS[name] = torch.no_grad()(lambda: [Row(name, *row) for row in compare()])
    return COMPARISONS[name]

def rows(): return chain.from_iterable(compare() for compare in COMPARISONS.values())
def arrays(name): return {k: torch.from_numpy(np.asarray(v)) for k, v in np.load(PARITY/f'{name}.npz').items()}
def described(name): return json.loads((PARITY/f'{name}.json').read_text())

def gap(ours, theirs): # the largest absolute difference
    assert ours.shape == theirs.shape, f'{tuple(ours.shape)} beside {tuple(theirs.shape)}'
    return (ours.double() - theirs.double()).abs().nan_to_num(torch.inf).max().item()
def share(ours, theirs): return gap(ours, theirs)/theirs.abs().max().item()   # of the largest recorded number

@cache
def state(): return load_file(PARITY/'state_dict.safetensors')
@cache
def names(): # name in the original -> our name, of every parameter
    ours = {name for name, _ in model().named_parameters()}
    return {old: new for old, new in translate(state()).items() if new in ours}

def vocabulary(length, names=()):
    kinds = dict(clip=CLIPTokenizer, bert=BertTokenizer)
    words = (kind.from_pretrained(PARITY/'tokenizers'/name) for name, kind in kinds.items())
    return Vocabulary(*words, length, names, legacy=True)

@cache
def model(): # the original's tiny model, rebuilt from its configuration and weights
    c = described('configs')
    def of(part, *keys): return {k: c[part][k] for k in keys}
    layers = 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads', 'layer_norm_eps'
    v, width = c['VIT_CFG'], c['VITW']
    vision = dict(image_size=v['img_size'], patch_size=v['patch_size'], hidden_size=width, intermediate_size=4*width,
                  num_hidden_layers=v['depth'], num_attention_heads=v['num_heads'], layer_norm_eps=1e-6)
    vae = dict(of('VAE_CFG', 'block_out_channels', 'layers_per_block', 'norm_num_groups'), scaling_factor=.18215)
    sizes = dict(clip=of('CLIP_CFG', *layers, 'hidden_act'), bert=of('MED_CFG', *layers, 'max_position_embeddings'),
                 vision=vision, vae=vae, unet={k: x for k, x in c['UNET_CFG'].items() if k != 'sample_size'})
    return ARLDM.create(sizes, vocabulary(c['S']), resolution=c['IMG']).load_original(state()).eval()

def stories(name): # a recording, its memory pictures, its number of given frames and its tokens of whole stories
    r, given = arrays(name), int('continuation' in name)
    memory = to_memory(arrays('pictures')['pictures'][r['source_rows']])
    def whole(x): return F.pad(x, (0, 0, given, 0))      # a given frame's own caption is never used
    return r, memory, given, dict(
        caption_ids=whole(r['in_captions']), caption_real=whole(r['in_attention_mask']).bool(),
        memory_ids=r['in_source_caption'], memory_real=r['in_source_attention_mask'].bool())

@cache
@torch.enable_grad()
def training(name): # a recorded batch, and ours from encoders to gradients
    (r, memory, given, tokens), net = stories(f'train_{name}'), model()
    z, noise, t, dropped = r['latents'], r['noise'], r['timesteps'], r['classifier_free_idx'].view(2, -1)
    context, visible = net.condition(tokens, memory, given, dropped)
    loss, noisy = net.frame_losses(z, noise, t, context, visible).mean(), net.noise_scheduler.add_noise(z, noise, t)
    trained = [old for old in names() if not old.startswith('vae.')]
    found = torch.autograd.grad(loss, [net.get_parameter(names()[old]) for old in trained], materialize_grads=True)
    found = dict(zip(trained, found))
    def norm(part): return torch.stack([g.double().norm() for old, g in found.items() if old.startswith(part)]).norm()
    with torch.no_grad():
        without_last = net.condition(tokens, memory[:, :-1], given, dropped)
        captions = encode_captions(net.text_encoder, r['in_captions'], r['in_attention_mask'].bool()).flatten(0, 1)
        slots = net.memory_encoder(memory, tokens['memory_ids'], tokens['memory_real']).flatten(0, 1)
        (mean, logvar), (caption, slot) = net.moments(r['in_images']).flatten(0, 1).chunk(2, 1), net.null_cond()
        return r, dict(
            clip_out=captions, blip_out=slots, clip_null=caption[None], blip_null=slot[None],
            encoder_hidden_states=context, encoder_attention_mask=~visible, vae_mean=mean, vae_logvar=logvar,
            noisy_latents=noisy, noise_pred=net.predict(noisy, t, context, visible), loss=loss,
            loss_without_last=net.frame_losses(z, noise, t, *without_last).mean(),
            **{k: found[k[5:]] for k in r if k.startswith('grad_')},
            **{k: norm(k[9:] + '.') for k in r if k.startswith('gradnorm_')})

@cache
def drawing(name): # two recorded stories, and ours with what went through the UNet
    (r, memory, given, tokens), net, calls = stories(f'sample_{name}'), model(), []
    def predict(z, t, context, visible):
        calls.append((z.chunk(2)[0], context, ~visible, ARLDM.predict(net, z, t, context, visible)))
        return calls[-1][-1]
    scheduler, captions = make_scheduler(name.split('_')[1]), [{k: v[:, i] for k, v in tokens.items()} for i in range(5)]
    def draw(**how): # latents and frames; the start is recorded frame by frame
        opening = {k: memory[:, k] for k in range(given)}
        drawn = draw_frames(net, scheduler, captions, r['init_latents'], opening, guidance_scale=6., num_inference_steps=STEPS[0], **how)
        return [*map(torch.stack, zip(*drawn))]
    net.predict = predict
    try: latents, frames = draw(plain=True)
    finally: del net.predict
    per_frame = len(calls)/len(latents)
    _, contexts, blocked, guesses = map(torch.stack, zip(*calls[::int(per_frame)]))
    drawn = ~blocked.all(1, keepdim=True)                                     # (V, 1, tokens); others are not drawn yet
    return dict(r, context_per_frame=r['context_per_frame']*drawn[..., None]), dict(
        timesteps=scheduler.timesteps, unet_calls_per_frame=torch.tensor(per_frame),
        mask_per_frame=blocked, context_per_frame=contexts, noise_pred_first_step=guesses,
        latents_before_each_step=torch.stack([z for z, *_ in calls]).unflatten(0, (len(latents), -1)),
        final_latents_scaled=latents, fast_latents=draw()[0], decoded=torch.stack([net.vae.decode(z/.18215).sample for z in latents]),
        images_uint8_in_returned_order=frames.permute(0, 1, 3, 4, 2).flatten(0, 1))

def worst(key, of=gap, ours=None): # over the training batches
    return max(of(us[ours or key], r[key]) for r, us in map(training, TRAIN))

@piece
def checkpoint():
    with TemporaryDirectory() as folder:
        StoryPipeline.from_model(model()).save_pretrained(folder)
        back, first = ARLDM.load(folder).to_original(), state()
    wrong = [k for k in back.keys() | first if not (k in back and k in first and torch.equal(back[k], first[k]))]
    yield f'tensors of {len(first)} that differ, original → folder → original', len(wrong), 0

@piece
def tokens():
    oracle, keys = described('tokenizer_oracle'), dict(clip='caption', bert='memory')
    def off(theirs, vocab): # how many texts of either tokenizer have other ids
        got = vocab.encode(theirs['texts'])
        def ids(key): return [i[real].tolist() for i, real in zip(got[f'{key}_ids'], got[f'{key}_real'])]
        return {kind: sum(map(ne, ids(key), theirs[kind])) for kind, key in keys.items()}
    for kind, n in off(oracle, vocabulary(64)).items(): yield f'{kind.upper()}, texts of 26 that differ', n, 0
    named = [off(theirs, vocabulary(64, names.split(','))) for names, theirs in oracle['new_tokens'].items()]
    for kind in keys: yield f'{kind.upper()}, texts of 6 with new names that differ', sum(x[kind] for x in named), 0
    null = model().vocab.null()
    for key, old in ('caption', 'clip'), ('memory', 'blip'):
        yield f'ids of the null {key}', gap(null[f'{key}_ids'], state()[f'{old}_text_null_token']), 0

@piece
def pictures():
    r, photos = arrays('sample_visualization_ddim'), tuple((PARITY/f'te0_{k}.jpg').read_bytes() for k in range(5))
    with TemporaryDirectory() as folder:
        write_stories(path := Path(folder)/'stories.h5', dict(test=[Story('0', '0', ('',)*5, photos)]), 'ssid')
        seen = StoryDataset(StoryFile(path)['test'], vocabulary(16), 64, 224, legacy=True)[0]
    frames, memory = r['in_images'][0].permute(0, 3, 1, 2), arrays('pictures')['pictures'][r['source_rows'][0]]
    black = to_memory(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
    yield 'frames cut from photos, levels of 255', gap(seen['frames'], frames), 0
    yield 'memory cut from photos, levels of 255', gap(seen['memory'], memory), 0
    yield 'black picture as BLIP sees it', gap(black, state()['blip_image_null_token']), 1e-6

@piece
def encoders():
    labels = dict(clip_out='CLIP captions', blip_out='BLIP slots', clip_null='null caption', blip_null='null slot')
    for key, label in labels.items(): yield label, worst(key), 1e-5
    r = arrays('vit_pos_interp')
    yield 'BLIP positions, 24 × 24 to 14 × 14', gap(resize_grid(r['inp'], 14), r['out']), 1e-6

@piece
def training_batch():
    quantities = dict(
        encoder_hidden_states=('context', 1e-5), encoder_attention_mask=('visibility, exact', 0),
        vae_mean=('VAE mean', 1e-5), vae_logvar=('VAE log-variance', 1e-5), noisy_latents=('noisy latents', 1e-6),
        noise_pred=('noise prediction', 1e-5), loss=('loss', 1e-6))
    for key, (label, tolerance) in quantities.items(): yield label, worst(key), tolerance
    yield 'loss without the last slot', worst('loss', ours='loss_without_last'), 1e-6

@piece
def gradients():
    for k in training(TRAIN[0])[0]:
        what, _, name = k.partition('_')
        if what in ('gradnorm', 'grad'): yield f'{what[4:] or "all"} of {name}, relative', worst(k, share), 1e-5
    last = max(us['grad_time_embeddings.weight'][4].abs().max().item() for _, us in map(training, TRAIN))
    yield 'time embedding of the last slot, from 0', last, 0

@piece
def learning_rate():
    recorded = described('lr_schedule')
    def off(name):
        warmup, steps = map(int, name[1:].split('_m'))
        s = SimpleNamespace(lr_scheduler='legacy', learning_rate=1e-5, lr_warmup_steps=warmup, max_train_steps=steps)
        return sum(map(ne, learning_rates(s, len(recorded[name])), recorded[name]))
    yield 'rates that differ, warm-up of 0, 1, 2, 3, 5', sum(map(off, recorded)), 0

@piece
def freezing():
    net, wrong = model(), 0
    rules = dict(text_encoder=('clip', 'token_embedding'), mm_encoder=('blip', 'word_embeddings'),
                 unet=('resnet', 'attentions'))    # the original's part -> its switch, and what trains all the same
    def trains(name, frozen):
        switch, still = rules.get(name.split('.')[0], ('', ''))
        return not name.startswith('vae.') and (switch not in frozen or still in name)
    for frozen in chain.from_iterable(combinations(('clip', 'blip', 'resnet'), n) for n in (3, 2, 1, 0)):
        ours = {name for name, p in net.freeze(frozen).named_parameters() if p.requires_grad}
        wrong += len(ours ^ {new for old, new in names().items() if trains(old, frozen)})
    yield 'parameters that differ, all 8 settings', wrong, 0

@piece
def schedulers():
    r = arrays('schedulers')
    yield 'ᾱ, training', gap(model().noise_scheduler.alphas_cumprod, r['alphas_cumprod']), 0
    for name in 'ddim', 'pndm':
        scheduler, ours = make_scheduler(name), {}
        for n in STEPS: scheduler.set_timesteps(n), ours.update({f'{name}_{n}_timesteps': scheduler.timesteps})
        yield f'ᾱ, {name}', gap(scheduler.alphas_cumprod, r['alphas_cumprod']), 0
        yield f'timesteps, {name} {", ".join(map(str, STEPS))}', max(gap(ours[k], r[k]) for k in ours), 0

@piece
def drawings():
    quantities = dict(
        timesteps=('timesteps', 0), unet_calls_per_frame=('UNet calls per frame', 0),
        mask_per_frame=('visibility, exact', 0), context_per_frame=('context', 1e-5),
        noise_pred_first_step=('first noise prediction', 1e-5), latents_before_each_step=('latents of each step', 1e-4),
        final_latents_scaled=('final latents', 1e-4), decoded=('decoded', 1e-4),
        images_uint8_in_returned_order=('pictures, levels of 255', 1))
    for name, (key, (label, tolerance)) in product(DRAWN, quantities.items()):
        r, us = drawing(name)
        yield f'{name.replace("_", " ")}: {label}', gap(us[key], r[key]), tolerance
    for name in DRAWN:
        r, us = drawing(name)
        gone = gap(us['fast_latents'], r['final_latents_scaled'])
        yield f'{name.replace("_", " ")}: final latents, drawn the fast way', gone, 1e-4

@piece
def distance():
    z = arrays('fid')
    full = z['full_a'], z['full_b']
    def off(key, a, b): return abs(frechet(a.numpy(), b.numpy()) - z[key].item())
    def relative(key, *sets): return off(key, *sets)/z[key].item()
    yield 'full rank, relative', relative('fid_full', *full), 1e-12
    yield 'of float32 features, relative', relative('fid_full_float32_input', *(x.float() for x in full)), 1e-8
    yield 'fewer rows than columns, relative', relative('fid_singular', z['sing_a'], z['sing_b']), 1e-7
    yield 'of a set to itself', off('fid_same', full[0], full[0]), 1e-9

def regenerated(name, shape): # weights that anybody can make again: random numbers seeded with their name
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
    yield 'pictures at 299 px, every 13th, of 1', gap(seen[0][..., ::13, ::13], r['net_input_299']), 1e-6
    yield 'features, relative', share(features, r['features']), 1e-5

def table(): # the rows of all pieces as aligned text
    lines = [Row('piece', 'quantity', 'max difference', 'tolerance'),
             *(r._replace(difference=f'{r.difference:.2g}', tolerance=f'{r.tolerance:g}') for r in rows())]
    a, b, c, d = (max(map(len, column)) for column in zip(*lines))
    return '\n'.join(f'{r.piece:{a}}  {r.quantity:{b}}  {r.difference:>{c}}  {r.tolerance:>{d}}' for r in lines)

if __name__ == '__main__': print(table())
