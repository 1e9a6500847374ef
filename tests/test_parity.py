"The model equals the original on recordings of it: tiny sizes, random weights, real tokenizers."
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from transformers import BertTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from arldm.dataset import Vocabulary, to_memory
from arldm.draw import draw_frames, make_scheduler
from arldm.encoders import MemoryEncoder, encode_captions
from arldm.history import HistoryEmbeddings, history_visible
from arldm.model import ARLDM
from arldm.port import resize_grid

HERE = Path(__file__).parent/'parity'
TRAIN = 'visualization_none', 'visualization_some', 'continuation_none'


@pytest.fixture(scope='module')
def model():
    "The original's tiny model, rebuilt from its configuration and weights."
    c = json.loads((HERE/'configs.json').read_text())
    v, m = c['VIT_CFG'], c['MED_CFG']
    vision = dict(image_size=v['img_size'], patch_size=v['patch_size'], hidden_size=v['embed_dim'], num_hidden_layers=v['depth'],
                  num_attention_heads=v['num_heads'], intermediate_size=4*v['embed_dim'], layer_norm_eps=1e-6)
    names = 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads', 'vocab_size', 'max_position_embeddings', 'layer_norm_eps'
    text = dict({k: m[k] for k in names}, bos_token_id=c['BERT_VOCAB'])
    clip = CLIPTextConfig(**{**c['CLIP_CFG'], 'max_position_embeddings': c['S'], 'bos_token_id': 668, 'eos_token_id': 669})
    vocab = Vocabulary(CLIPTokenizer.from_pretrained(HERE/'tokenizers/clip'), BertTokenizer.from_pretrained(HERE/'tokenizers/bert'), c['S'])
    model = ARLDM(AutoencoderKL(scaling_factor=.18215, **c['VAE_CFG']), UNet2DConditionModel(**c['UNET_CFG']), CLIPTextModel(clip),
                  MemoryEncoder(vision, text, vocab.enc), HistoryEmbeddings(c['HID'], 5), vocab)
    return model.load_original(load_file(HERE/'state_dict.safetensors')).eval()


def load(name):
    "A recording, as tensors, with its pictures."
    r = {k: torch.from_numpy(v) for k, v in np.load(HERE/f'{name}.npz').items()}
    pictures = torch.from_numpy(np.load(HERE/'pictures.npz')['pictures'])
    return r, to_memory(pictures[r['source_rows']])


def tokens_of(r, n_given):
    "The recorded ids as our tokens of whole stories: a given frame's own caption is never used."
    def whole(x): return torch.cat([torch.zeros_like(x[:, :n_given]), x], 1)
    return dict(caption_ids=whole(r['in_captions']), caption_real=whole(r['in_attention_mask']).bool(),
                memory_ids=r['in_source_caption'], memory_real=r['in_source_attention_mask'].bool())


def close(a, b, eps): assert (a - b).abs().max().item() <= eps


@pytest.mark.parametrize('name', TRAIN)
@torch.no_grad()
def test_encoders(model, name):
    r, memory = load(f'train_{name}')
    t = tokens_of(r, 0)
    close(encode_captions(model.text_encoder, t['caption_ids'], t['caption_real']).flatten(0, 1), r['clip_out'], 1e-5)
    close(model.memory_encoder(memory, t['memory_ids'], t['memory_real']).flatten(0, 1), r['blip_out'], 1e-5)
    caption, slot = model.null()
    close(caption, r['clip_null'][0], 1e-5)
    close(slot, r['blip_null'][0], 1e-5)


@pytest.mark.parametrize('name', TRAIN)
@torch.no_grad()
def test_condition_and_loss(model, name):
    r, memory = load(f'train_{name}')
    G = int(name.startswith('continuation'))
    t, V = tokens_of(r, G), 5 - G
    dropped = r['classifier_free_idx'].view(2, V)
    context, visible = model.condition(t, memory, G, dropped)
    close(context, r['encoder_hidden_states'], 1e-5)
    assert torch.equal(visible, ~r['encoder_attention_mask'])           # the original's True means blocked
    moments = torch.cat([r['vae_mean'], r['vae_logvar']], 1)
    close(model.moments(r['in_images']).flatten(0, 1), moments, 1e-5)
    noisy = model.noise.add_noise(r['latents'], r['noise'], r['timesteps'])
    close(noisy, r['noisy_latents'], 1e-6)
    close(model.predict(noisy, r['timesteps'], context, visible), r['noise_pred'], 1e-5)
    losses = model.frame_losses(r['latents'], r['noise'], r['timesteps'], context, visible)
    close(losses.mean(), r['loss'], 1e-5)
    short, seen = model.condition(t, memory[:, :-1], G, dropped)        # the last slot is seen by nobody
    close(model.frame_losses(r['latents'], r['noise'], r['timesteps'], short, seen).mean(), r['loss'], 1e-5)


@pytest.mark.parametrize('name', TRAIN)
def test_gradients(model, name):
    r, memory = load(f'train_{name}')
    G = int(name.startswith('continuation'))
    model.freeze().zero_grad()
    context, visible = model.condition(tokens_of(r, G), memory, G, r['classifier_free_idx'].view(2, 5 - G))
    model.frame_losses(r['latents'], r['noise'], r['timesteps'], context, visible).mean().backward()
    parts = dict(text_encoder=model.text_encoder, mm_encoder=model.memory_encoder, unet=model.unet,
                 modal_type_embeddings=model.history.type_embedding, time_embeddings=model.history.time_embedding)
    for part, module in parts.items():
        norm = sum((p.grad.double()**2).sum() for p in module.parameters() if p.grad is not None)**.5
        assert norm.item() == pytest.approx(r[f'gradnorm_{part}'].item(), rel=1e-4), part
    assert model.history.time_embedding.weight.grad[4].abs().max() == 0
    model.zero_grad()


@pytest.mark.parametrize('name,n_given', [('visualization_ddim', 0), ('continuation_pndm', 1)])
def test_drawing(model, name, n_given):
    r, memory = load(f'sample_{name}')
    scheduler = make_scheduler(name.split('_')[1])
    steps = len(r['timesteps']) - (name.endswith('pndm'))
    latents = r['init_latents'].transpose(0, 1)                          # recorded frame-major
    given = memory[:, :n_given] if n_given else None
    drawn = list(draw_frames(model, scheduler, tokens_of(r, n_given), latents, given, guidance=6., steps=steps))
    assert torch.equal(scheduler.timesteps, r['timesteps'])
    recorded = r['images_uint8_in_returned_order'].unflatten(0, (-1, 2)) # (V, 2, h, w, 3)
    for k, (z, frames) in enumerate(drawn):
        close(z, r['final_latents_scaled'][k], 1e-3)
        close(frames.permute(0, 2, 3, 1).int(), recorded[k].int(), 2)


@pytest.mark.parametrize('name', ['ddim', 'pndm'])
@pytest.mark.parametrize('steps', [4, 20, 30, 50, 250])
def test_timesteps(name, steps):
    r = np.load(HERE/'schedulers.npz')
    key = next(k for k in r if k.lower().startswith(name) and k.endswith(f'_{steps}_timesteps'))
    scheduler = make_scheduler(name)
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == r[key].tolist()


def test_position_grid():
    r = np.load(HERE/'vit_pos_interp.npz')
    close(resize_grid(torch.from_numpy(r['inp']), 14), torch.from_numpy(r['out']), 1e-6)


def test_history_polarity():
    r, _ = load('train_visualization_none')
    blocked = r['encoder_attention_mask'].view(2, 5, 6, -1)[:, :, 1:]    # (B, V, N, S)
    real = r['in_source_attention_mask'].bool()[:, None] & history_visible(5)[None, ..., None]
    assert torch.equal(real, ~blocked)


@pytest.mark.skipif(not (HERE.parents[2]/'shared/parity').is_dir(), reason='the full recordings stand beside the repository only in CI')
def test_recordings_are_the_full_ones():
    "What the tests ship is what was recorded."
    full = HERE.parents[2]/'shared/parity'
    for f in HERE.glob('*.npz'):
        if f.name == 'pictures.npz': continue
        ours, theirs = np.load(f), np.load(full/f.name)
        for k in set(ours) & set(theirs) - {'in_images'}: assert np.array_equal(ours[k], theirs[k]), (f.name, k)
        if 'source_rows' in ours:
            pictures = to_memory(torch.from_numpy(np.load(HERE/'pictures.npz')['pictures'][ours['source_rows']]))
            close(pictures, torch.from_numpy(theirs['in_source_images']), 1e-5)
