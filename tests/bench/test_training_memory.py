"Bytes of a training step: by hand for a layer, and the same for fake tensors as for real ones."
import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from arldm.bench import training_memory as memory
from arldm.bench.train import recipe
from arldm.model.arldm import trained_weights

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

def test_parts(monkeypatch):
    monkeypatch.setattr(memory, 'step_peak', lambda model, s: 10**9)
    s = dataclasses.replace(RECIPE, ema_decay=.99)
    found = memory.training_memory(s, 'tiny')
    model = memory.shape_model(s, 'tiny')
    n = sum(p.numel() for p in trained_weights(model))
    every = sum(p.numel() for p in model.parameters())
    assert found == dict(trained=4*n, frozen=4*(every - n), gradients=4*n, optimizer=8*n, average=4*n,
                         activations=10**9 - 4*n, together=4*every + 12*n + 10**9)
    small = memory.training_memory(dataclasses.replace(s, ema_decay=0., optimizer='adamw8bit'), 'tiny')
    assert (small['average'], small['optimizer']) == (0, 2*n)

@pytest.mark.parametrize('changes, least, most', [
    (dict(gradient_checkpointing=True), .2, .6), (dict(train_batch_size=2), 1.7, 2.),
    # a GPU normalizes in float32; without cached features the encoders compute, too
    (dict(device='cuda'), 1.01, 1.5), (dict(crops=0, freeze=()), 1.1, 20.)])
def test_what_a_recipe_changes(usual, changes, least, most):
    assert least < step_peak(**changes)/usual < most
