"Training freezes what the settings name: all settings of the original, all presets, the command, a trap of torch's."
import json
from itertools import chain, combinations

import pytest, recorded, torch

from arldm.train import optim as optimise
from arldm.toy import corpus as toy
from arldm.train import loop as training
from arldm.cli.convert import convert
from arldm.core import StoryError
from arldm.data.dataset import collate
from arldm.model.arldm import ARLDM
from arldm.cli.train import train
from arldm.settings import FREEZE, resolve
from arldm.train.checkpoint import read_log
from processes import end, fork

SWITCHES = [*chain.from_iterable(combinations(('clip', 'blip', 'resnet'), n) for n in range(4))]   # the original's
CHOICES = {**{'+'.join(x) or 'nothing': x for x in SWITCHES}, **FREEZE}

class Stories(list): # what `train` asks of a `StoryDataset`
    def __getitem__(self, i): return super().__getitem__(i[0] if isinstance(i, tuple) else i)   # or (story, epoch)

@pytest.fixture(scope='module')
def fresh():
    "Makes a tiny model; and two stories of two frames."
    vocab, g = recorded.vocabulary(12), torch.Generator().manual_seed(0)
    def model():
        torch.manual_seed(0)
        return ARLDM.create('tiny', vocab, resolution=16)
    def pictures(side): return torch.randint(0, 256, (2, 3, side, side), generator=g).byte()
    tokens = vocab.encode(['a man walks', 'he sleeps'])
    return model, Stories(dict(tokens, frames=pictures(16), memory=pictures(32), index=i, id=str(i)) for i in range(2))

def trains(name, frozen):
    "The rules, written once more: by whole name, for every part."
    part, table = name.split('.')[0], 'token_embedding' in name or 'word_embeddings' in name
    if part == 'vae' or table and 'words' in frozen: return False
    if part == 'text_encoder': return table or 'clip' not in frozen
    if part == 'memory_encoder': return table or 'blip' not in frozen
    if part == 'unet':
        parts = dict(resnet='attentions' not in name, unet='attn2' not in name)
        parts['cross-attention'] = 'attn2' in name
        return not any(parts.get(part) for part in frozen)
    return part == 'history'

@pytest.mark.parametrize('choice', CHOICES)
def test_what_is_frozen_keeps_still(choice, fresh, monkeypatch):
    "Two steps: no gradient, no optimizer state, no change, evaluation mode at work; and what trains does all of it."
    (model, stories), frozen, optimizers, modes, graded = fresh, CHOICES[choice], [], {}, set()
    def adamw(*x, **kw): return optimizers.append(torch.optim.AdamW(*x, **kw)) or optimizers[0]
    monkeypatch.setattr(optimise, 'AdamW', adamw)
    net = model().freeze(frozen)
    before = {name: p.clone() for name, p in net.named_parameters()}
    expected = {name for name in before if trains(name, frozen)}
    for name, m in net.named_modules():
        m.register_forward_hook(lambda m, x, y, name=name: modes.setdefault(name, set()).add(m.training))
    for name, p in net.named_parameters():
        if p.requires_grad: p.register_hook(lambda g, name=name: graded.add(name))
    steps = list(training.train_steps(net, stories, resolve('tiny', max_train_steps=2, lr_warmup_steps=0, cond_dropout=.5, learning_rate=1e-2, freeze=frozen)))
    names = {p: name for name, p in net.named_parameters()}
    assert len(steps) == 2 and {name for p, name in names.items() if p.requires_grad} == expected
    held = {names[p] for group in optimizers[0].param_groups for p in group['params']}
    assert held == expected and graded <= expected and {names[p] for p in optimizers[0].state} <= expected
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert moved <= expected and {name.split('.')[0] for name in moved} == {name.split('.')[0] for name in expected}
    for name, m in net.named_modules():
        whole = {'text_encoder': 'clip', 'memory_encoder': 'blip'}.get(name.split('.')[0], 'vae')
        own = [n for n, _ in m.named_parameters(prefix=name)]
        still = whole in frozen or name.startswith('vae') or own and not expected & {*own}
        if name in modes and (own or still): assert modes[name] == {not still}, name
    assert not any(m.training for m in net.modules())

def backward_channels_last():
    net = ARLDM.create('tiny', recorded.vocabulary(12), resolution=32).freeze(('clip', 'blip', 'resnet')).train()
    net.unet.to(memory_format=torch.channels_last)
    tokens = net.vocab.encode(['a man walks', 'he sleeps'])
    frames = torch.randint(0, 256, (2, 32, 32, 3)).byte().permute(0, 3, 1, 2)
    batch = collate([dict(tokens, frames=frames, memory=frames, index=0, id='0')])
    moments = net.moments(batch['frames'])[0].contiguous(memory_format=torch.channels_last)[None]
    for b in batch, {**batch, 'moments': moments}: net.loss(b, torch.Generator().manual_seed(0)).backward()

def test_channels_last():
    "Group norm's backward on a CPU ends the process when its input lies channels last and needs no gradient."
    assert end(*fork(backward_channels_last)) == (0, [])

def test_the_command(tmp_path):
    "A preset's name or parts with commas; what was frozen is written down and stays."
    toy.write_toy(tmp_path/'raw', (2, 1, 1), progress=False)
    convert('toy', tmp_path/'raw', tmp_path/'toy.h5')
    how, run = dict(data=tmp_path/'toy.h5', preset='tiny', max_train_steps=1), tmp_path/'run'
    def kept(): return json.loads((run/'settings.json').read_text())['freeze']
    train(run, freeze='ssid-baseline', **how)
    assert kept() == ['clip', 'blip', 'resnet']
    for other in 'none', 'history', 'clip, blip':
        with pytest.raises(StoryError, match='was trained with freeze='): train(run, freeze=other, max_train_steps=2)
    for same in 'clip,blip, resnet', 'ssid-baseline', None: train(run, freeze=same, max_train_steps=2)
    assert kept() == ['clip', 'blip', 'resnet'] and len(read_log(run/'log.csv')) == 2
    with pytest.raises(StoryError, match="no part to freeze 'eyes'"):
        train(tmp_path/'new', freeze='clip,eyes', **how)
    assert not (tmp_path/'new').exists()
