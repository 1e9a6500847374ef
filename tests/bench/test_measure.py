"What the book measures with: time in turns, arithmetic against formulas and against written-out attention, memory."
import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel

from arldm.bench.measure import (format_line, speedup_line, count_flops, gpu_peak, matrix_rate,
                                 peak_memory, take_turns)
from arldm.model.config import SIZES

aten = torch.ops.aten
BACKWARD = ['flash_attention_for_cpu', 'flash_attention', 'efficient_attention', 'cudnn_attention']


# time

def test_turns_are_taken():
    said = []
    seconds = take_turns(2, dict(plain=lambda: said.append('a'), ours=lambda: said.append('b')))
    assert said == ['a', 'b', 'a', 'b'] and [len(s) for s in seconds.values()] == [2, 2]

def test_gain_is_the_median_ratio():
    line = speedup_line('x', 'things/s', 10, dict(plain=[2, 8, 40], ours=[1, 2, 20]), 'ours', 3)
    assert (line['plain'], line['ours'], line['gain'], line['wanted']) == (1.25, 5, 2, 3)

@pytest.mark.parametrize('line, said', [
    (dict(plain=.0123, ours=.0246, gain=2, wanted=1.8), 'x 0.0123 → 0.0246 s 2.0× wanted: at least 1.8×'),
    (dict(ours=1234.56, wanted=300), 'x 1,234.6 s wanted: at most 300 s'),
    (dict(plain=9.126, ours=3), 'x 9.13 → 3 s'),
    (dict(ours=2, note='11.0 GB', wanted='at most 12 GB'), 'x 2 s 11.0 GB wanted: at most 12 GB')])
def test_lines(line, said): assert ' '.join(format_line(dict(line, what='x', unit='s')).split()) == said

def test_line_of_what_was_not_measured():
    assert format_line(dict(what='512 px', note='out of memory', wanted=None)).split(maxsplit=2)[2] == 'out of memory'


# arithmetic

@pytest.mark.parametrize('device', ['cpu', 'meta'])
@pytest.mark.parametrize('masked', [False, True])
def test_attention_is_counted(device, masked):
    "Two products forward and four backward, of q·k with 2·3·40·24·16 operations each."
    q, k, v = (torch.randn(2, 3, n, 16, device=device, requires_grad=True) for n in (40, 24, 24))
    mask = torch.ones(2, 1, 40, 24, dtype=torch.bool, device=device) if masked else None
    def forward(): return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    product = 2*(2*3*40*24*16)
    assert count_flops(forward) == 2*product
    assert count_flops(lambda: forward().sum().backward()) == 6*product

@pytest.mark.parametrize('kind', BACKWARD)
def test_no_kernel_counts_its_weights_twice(kind):
    "The formula of every kernel's backward pass is that of the mathematics."
    from arldm.bench.measure import _FORMULAS
    q, k = torch.empty(2, 3, 40, 16, device='meta'), torch.empty(2, 3, 24, 16, device='meta')
    formula = _FORMULAS[getattr(aten, f'_scaled_dot_product_{kind}_backward')]
    assert formula(q.shape, q.shape, k.shape, k.shape, q.shape, None, scale=None) == 8*(2*3*40*24*16)

def unet_step(device):
    "Forward and backward through the tiny UNet, its input needing a gradient."
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(sample_size=4, **SIZES['tiny']['unet'])
        noisy, context = torch.randn(2, 4, 8, 8, requires_grad=True), torch.randn(2, 12, 32)
        visible = torch.ones(2, 12, dtype=torch.bool)
        unet(noisy, torch.tensor(3), context, encoder_attention_mask=visible).sample.sum().backward()

def test_a_model_counts_the_same_everywhere():
    "On the CPU, on a device without numbers, and with attention written out."
    counted = count_flops(lambda: unet_step('cpu'))
    with sdpa_kernel(SDPBackend.MATH): written_out = count_flops(lambda: unet_step('cpu'))
    assert 0 < counted == written_out == count_flops(lambda: unet_step('meta'))

def test_fixed_weights_save_their_part():
    "A fixed layer in the middle costs two thirds of a trained one."
    def cost(fixed):
        layers = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
        layers[1].requires_grad_(not fixed)
        return count_flops(lambda: layers(torch.randn(4, 8)).sum().backward())
    product = 2*4*8*8
    assert (cost(False), cost(True)) == (8*product, 7*product)       # the first input needs no gradient

def test_rate():
    "The rate is that of the best product, of every kind of number."
    assert matrix_rate(sides=(128, 256)) > 1e8 and matrix_rate(torch.bfloat16, sides=(128,)) > 1e6


# memory

def test_peak_is_of_a_process_of_its_own():
    held = bytearray(300_000_000)                           # must not count
    held[::4096] = b'x'*len(held[::4096])
    bare = peak_memory('')
    assert bare < 100 and 45 < peak_memory('import sys; x = bytearray(int(sys.argv[1]))', 50_000_000) - bare < 60

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU here')
def test_gpu_peak():
    before = torch.cuda.memory_allocated()/1e6
    assert 99 < gpu_peak(lambda: torch.empty(100_000_000, dtype=torch.uint8, device='cuda')) - before < 110
