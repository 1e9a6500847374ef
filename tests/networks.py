"Small feature networks with weights that anybody can make again."
import zlib
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizerFast, CLIPVisionConfig

HERE = Path(__file__).resolve().parent
STAGES = {'0': ['Conv2d_1a_3x3', 'Conv2d_2a_3x3', 'Conv2d_2b_3x3'], '1': ['Conv2d_3b_1x1', 'Conv2d_4a_3x3'],
          '2': [f'Mixed_{k}' for k in '5b 5c 5d 6a 6b 6c 6d 6e'.split()], '3': [f'Mixed_{k}' for k in '7a 7b 7c'.split()]}

def clip_folder(folder, seed=0):
    torch.manual_seed(seed)
    small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    words = CLIPTokenizerFast.from_pretrained(HERE/'parity/tokenizers/clip')
    text = CLIPTextConfig(vocab_size=len(words), eos_token_id=words.eos_token_id, bos_token_id=words.bos_token_id,
                          max_position_embeddings=20, **small)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), projection_dim=8,
                                 vision_config=CLIPVisionConfig(image_size=32, patch_size=8, **small).to_dict()))
    for p in model.parameters(): p.data += .02*torch.randn_like(p)            # biases, too
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder

def published(key):
    "blocks.2.3.branch3x3.conv.weight -> Mixed_6a.branch3x3.conv.weight"
    _, stage, place, rest = key.split('.', 3)
    return f'{STAGES[stage][int(place)]}.{rest}'

def regenerated(shapes):
    "Weights that anybody can make again: a generator seeded with each published name."
    out = {}
    for name, shape in shapes.items():
        r = np.random.RandomState(zlib.crc32(name.encode()) & 0x7fffffff)
        if name.endswith('num_batches_tracked'): continue
        elif name.endswith('running_var'): v = .5 + r.rand(*shape)
        elif name.endswith('bn.weight'): v = 1 + .1*r.randn(*shape)
        elif name.endswith(('running_mean', 'bias')): v = .1*r.randn(*shape)
        else: v = r.randn(*shape)/np.sqrt(np.prod(shape[1:]))
        out[name] = torch.tensor(v, dtype=torch.float32)
    return out
