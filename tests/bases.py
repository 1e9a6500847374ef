"Small base weights in the layouts they are published in."
import shutil
from functools import partial

import recorded, torch
from safetensors.torch import load_file, save_file
from transformers import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval

from arldm.model.config import SIZES
from arldm.model.arldm import ARLDM

TOKENIZERS, S = recorded.PARITY/'tokenizers', 77
BLIP = [('vision_model.embeddings.class_embedding', 'visual_encoder.cls_token'), ('.position_embedding', '.pos_embed'),
        ('vision_model.embeddings.pos_embed', 'visual_encoder.pos_embed'), ('.post_layernorm', '.norm'),
        ('.embeddings.patch_embedding', '.patch_embed.proj'), ('vision_model.encoder.layers', 'visual_encoder.blocks'),
        ('vision_model', 'visual_encoder'), ('.self_attn.projection', '.attn.proj'), ('.self_attn.qkv', '.attn.qkv'),
        ('.layer_norm', '.norm'), ('text_encoder.embeddings.pos_embeds', 'text_encoder.embeddings.position_embeddings')]
OLD_VAE = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}

def renamed(name, pairs):
    for a, b in pairs: name = name.replace(a, b)
    return name

def write_blip(cls, folder):
    "A small BLIP as transformers writes it, and as its authors do in `folder.pth`."
    small = dict(num_hidden_layers=3, initializer_range=.02)
    text = dict(small, hidden_size=64, intermediate_size=128, num_attention_heads=1, vocab_size=157,
                max_position_embeddings=96, encoder_hidden_size=128)
    vision = dict(small, hidden_size=128, intermediate_size=256, num_attention_heads=2, image_size=96, patch_size=16,
                  layer_norm_eps=1e-6)
    model = cls(BlipConfig(text_config=text, vision_config=vision)).eval()
    model.save_pretrained(folder)
    torch.save({'model': {renamed(k, BLIP): v for k, v in model.state_dict().items()}}, folder.with_suffix('.pth'))

def _wide(part, width): return {**SIZES['toy'][part], 'hidden_size': width, 'intermediate_size': 2*width}

# a toy model with Stable Diffusion's four latent channels, and captions of BLIP's width
SD = dict(unet={**SIZES['toy']['unet'], 'in_channels': 4, 'out_channels': 4, 'cross_attention_dim': 64},
          vae=dict(block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4),
          clip=_wide('clip', 64), vision=_wide('vision', 64), bert=_wide('bert', 64))

def write_home(d):
    "Small weights in their true layouts: `sd`, the BLIP that serves, `itm`, and the one that does not, `cap`."
    torch.manual_seed(0)
    net = ARLDM.create(SD, recorded.vocabulary(S))
    for part in 'vae', 'unet', 'text_encoder': getattr(net, part).save_pretrained(d/'sd'/part)
    net.noise_scheduler.save_pretrained(d/'sd/scheduler')
    shutil.copytree(TOKENIZERS/'clip', d/'sd/tokenizer')
    write_blip(BlipForImageTextRetrieval, d/'itm'), write_blip(BlipForConditionalGeneration, d/'cap')
    return d

def start(d, sd='sd', blip='itm.pth', corpus='ssid', **kw):
    torch.manual_seed(0)
    return ARLDM.from_pretrained(d/sd, d/blip, corpus, **{'bert': TOKENIZERS/'bert', **kw})

def equal(a, b, how=lambda x: x):
    assert a.keys() == b.keys()
    for k in a: assert a[k].dtype == b[k].dtype and torch.equal(a[k], how(b[k])), k

def change(folder, file, f, to=None, write=partial(save_file, metadata={'format': 'pt'})):
    "Rewrite the tensors of a file, perhaps under another name."
    state = f(load_file(folder/file))
    (folder/file).unlink()
    write(state, folder/(to or file))

WEIGHTS = {'unet': 'unet/diffusion_pytorch_model.safetensors', 'vae': 'vae/diffusion_pytorch_model.safetensors',
           'text_encoder': 'text_encoder/model.safetensors'}
