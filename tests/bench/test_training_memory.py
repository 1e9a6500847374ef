"Bytes of a training step: by hand for a layer, and the same for fake tensors as for real ones."
import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from arldm.bench import training_memory as memory
from arldm.bench.train import recipe
from arldm.model.arldm import trained_weights
from arldm.settings import resolve

N = 64
MATRIX = 4*N*N                                      # bytes of an N×N matrix in float32
RECIPE = recipe('tiny', dict(freeze='attention', crops=1, mixed_precision='bf16'))

def step_peak(device='cpu', **changes):
    s = dataclasses.replace(RECIPE, **changes)
    return memory.step_peak(memory.shape_model(s, 'tiny', device), s)

@pytest.fixture(scope='module')
def usual(): return step_peak()

def test_live_and_peak_of_matrices():
    a, b = torch.ones(2, N, N).unbind()
    with memory.LiveBytes() as found:
        c = a@b                                     # 1 alive
        d = c + a@b                                 # 3 at the peak, then 2
        a.t().add_(1)                               # what was there before is not counted, nor views
        d.view(-1).mul_(2)
    assert (found.live, found.peak) == (2*MATRIX, 3*MATRIX)
    del c, d
    assert found.live == 0

def test_checkpointing_keeps_the_input_only():
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(N, N, bias=False), nn.Sigmoid()) for _ in range(4)))
    kept = {}
    for whether in False, True:
        x = torch.ones(N, N, requires_grad=True)
        with memory.LiveBytes() as found:
            y = checkpoint(layers, x, use_reentrant=False) if whether else layers(x)
        kept[whether] = found.live
    # each sigmoid keeps its output, which the next product needs, too
    assert kept == {False: 4*MATRIX, True: MATRIX}

def test_fake_tensors_take_what_real_ones_take(usual):
    model = memory.shape_model(RECIPE, 'tiny', 'cpu').to_empty(device='cpu')
    for x in model.state_dict().values(): x.zero_()
    with memory.LiveBytes() as found:
        with torch.autocast('cpu', torch.bfloat16): loss = memory.fake_loss(model, RECIPE)
        loss.backward()
    # statistics of normalizations are real in another precision
    assert usual == pytest.approx(found.peak, rel=.003)

def sizes(weights): return sum(p.numel() for p in weights)

def test_parts(monkeypatch):
    monkeypatch.setattr(memory, 'step_peak', lambda model, s: 10**9)
    s = dataclasses.replace(RECIPE, ema_decay=.99, mixed_precision='no')
    found = memory.training_memory(s, 'tiny')
    model = memory.shape_model(s, 'tiny')
    n = sizes(trained_weights(model))
    # features of the other parts are cached
    frozen = sizes(model.unet.parameters()) + sizes(model.history.parameters()) - n
    assert found == dict(trained=4*n, frozen=4*frozen, gradients=4*n, optimizer=8*n, average=4*n,
                         activations=10**9 - 4*n, together=4*frozen + 16*n + 10**9)
    uncached = memory.training_memory(dataclasses.replace(s, crops=0), 'tiny')
    assert uncached['frozen'] == 4*(sizes(model.parameters()) - n)
    small = memory.training_memory(dataclasses.replace(s, ema_decay=0., optimizer='adamw8bit'), 'tiny')
    assert (small['average'], small['optimizer']) == (0, 2*n)

def test_other_latents():
    "The toy model's latents have 8 channels, those of the other sizes 4."
    toy = resolve('toy-arldm')
    cached, uncached = (memory.training_memory(dataclasses.replace(toy, crops=crops), 'toy', 'cpu') for crops in (1, 0))
    assert cached['trained'] == uncached['trained'] > 0 and cached['frozen'] < uncached['frozen']

def test_frozen_matrices_in_fewer_bits(monkeypatch):
    monkeypatch.setattr(memory, 'step_peak', lambda model, s: 10**9)
    changes = dict(mixed_precision='no'), {}, dict(frozen_storage='fp8')
    full, half, quarter = (memory.training_memory(dataclasses.replace(RECIPE, **x), 'tiny')['frozen'] for x in changes)
    # biases keep float32 in the last one
    assert .5 <= half/full < .52 and .25 < quarter/full < .3

def test_a_lora_is_what_trains():
    s = recipe('tiny', dict(freeze='all', lora_rank=2, crops=1, mixed_precision='bf16'))
    lora, attention = (memory.training_memory(x, 'tiny') for x in (s, RECIPE))
    assert lora['trained'] < .3*attention['trained'] and lora['together'] < attention['together']

def test_largest_batch(monkeypatch):
    "A process of 2 GB and 4 GB a story: 0.8 GB and a twentieth are added."
    monkeypatch.setattr(memory, 'training_memory', lambda s, size: dict(together=2e9 + 4e9*s.train_batch_size))
    one, largest = memory.largest_batches(RECIPE)
    assert one == dict(together=6e9) and largest == {8: 1, 12: 2, 16: 2, 24: 4}
    assert memory.largest_batches(RECIPE, most=2)[1][24] == 2

@pytest.mark.parametrize('changes, least, most', [
    (dict(gradient_checkpointing=True), .2, .6), (dict(train_batch_size=2), 1.7, 2.),
    # a GPU normalizes in float32; without cached features the encoders compute, too
    (dict(device='cuda'), 1.01, 1.5), (dict(crops=0, freeze=()), 1.1, 20.)])
def test_what_a_recipe_changes(usual, changes, least, most):
    assert least < step_peak(**changes)/usual < most
