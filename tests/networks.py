"Small feature networks with weights that anybody can make again."
import zlib
from pathlib import Path

import numpy as np
import torch
from transformers import (BertConfig, BertTokenizer, CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizerFast, CLIPVisionConfig,
                          GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig)

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

WORDS = {0: '[PAD]', 100: '[UNK]', 101: '[CLS]', 102: '[SEP]', 103: '[MASK]', 1012: '.', 1029: '?', 110: 'character', 111: 'ada',
         112: 'a', 113: 'red', 114: 'rabbit', 115: 'bo'}                      # special ones where BERT has them

def detector_folder(folder, seed=0, side=(96, 129)):
    "A GroundingDINO of random weights; about half of its boxes have a high score."
    folder.mkdir(parents=True, exist_ok=True)
    (folder/'vocab.txt').write_text('\n'.join(WORDS.get(i, f'[unused{i}]') for i in range(1030)))
    torch.manual_seed(seed)
    swin = SwinConfig(embed_dim=8, depths=[1]*4, num_heads=[1, 1, 2, 2], window_size=4, out_features=['stage2', 'stage3', 'stage4'])
    bert = BertConfig(vocab_size=1030, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = GroundingDinoForObjectDetection(GroundingDinoConfig(
        backbone_config=swin, text_config=bert, d_model=32, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=16, num_queries=8, max_text_len=32))
    for p in model.model.decoder.parameters(): p.data += .2*torch.randn_like(p)       # so that pictures and texts matter
    model.save_pretrained(folder)
    BertTokenizer(str(folder/'vocab.txt')).save_pretrained(folder)
    size = f'{{"shortest_edge": {side[0]}, "longest_edge": {side[1]}}}'
    (folder/'preprocessor_config.json').write_text(f'{{"image_processor_type": "GroundingDinoImageProcessor", "size": {size}}}')
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
