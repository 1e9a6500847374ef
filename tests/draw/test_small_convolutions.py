"Small convolutions as matrix products: the same output, only where they are small, and only in the thread that asks."
import threading

import pytest, torch
from torch import nn

from arldm.core import asset
from arldm.draw import small_convolutions
from arldm.draw.pipeline import StoryPipeline
from arldm.draw.small_convolutions import SmallConvolutions, has_channels_last

@pytest.fixture
def products(monkeypatch):
    "The shapes of what is convolved by a product."
    shapes = []
    product = small_convolutions._as_product
    def noted(x, weight, bias):
        shapes.append(tuple(x.shape))
        return product(x, weight, bias)
    monkeypatch.setattr(small_convolutions, '_as_product', noted)
    return shapes

def conv(*channels, kernel=3, padding=1, **options):
    torch.manual_seed(0)
    return nn.Conv2d(*channels, kernel, padding=padding, **options).to(memory_format=torch.channels_last).requires_grad_(False)

@pytest.mark.parametrize('shape', [(1, 6, 8, 8), (3, 6, 4, 7), (2, 6, 1, 1), (2, 6, 64, 1)])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('dtype, near', [(torch.float64, 1e-12), (torch.bfloat16, .02)])
def test_the_same_output(products, shape, bias, dtype, near):
    layer, x = conv(6, 5, bias=bias).to(dtype), torch.randn(shape).to(dtype)
    with SmallConvolutions(): y = layer(x)
    torch.testing.assert_close(y, layer(x), atol=near, rtol=near)
    assert products == [shape]

@pytest.mark.parametrize('layer, shape', [
    (conv(6, 5), (1, 6, 13, 5)), (conv(6, 5, stride=2), (1, 6, 8, 8)), (conv(6, 5, kernel=1, padding=0), (1, 6, 4, 4)),
    (conv(6, 6, groups=2), (1, 6, 4, 4)), (conv(6, 5, dilation=2), (1, 6, 8, 8)), (conv(6, 5, padding='same'), (1, 6, 4, 4)),
    (conv(6, 5), (6, 4, 4)), (conv(6, 5).to(memory_format=torch.contiguous_format), (1, 6, 4, 4))], ids=str)
def test_others_are_left_alone(products, layer, shape):
    x = torch.randn(shape)
    with SmallConvolutions(): y = layer(x)
    assert torch.equal(y, layer(x)) and not products

def test_other_threads_do_not_notice(products):
    layer, x = conv(6, 5), torch.randn(1, 6, 4, 4)
    with SmallConvolutions():
        thread = threading.Thread(target=layer, args=(x,))
        thread.start()
        thread.join()
    assert not products

def test_order_of_weights():
    assert has_channels_last(conv(6, 5).weight)
    assert not has_channels_last(torch.zeros(5, 6, 3, 3)) and not has_channels_last(conv(6, 5, kernel=1).weight)

def test_a_story(products):
    "The same latents with the weights in either order; the plain drawing computes nothing in another way."
    pipe = StoryPipeline.from_pretrained(asset('toy/arldm'))
    pipe.set_progress_bar_config(disable=True)
    def draw(**options):
        products.clear()
        z = pipe(['a small red star', 'it jumps'], num_inference_steps=2, guidance_scale=2., output_type='latent', **options).frames[0]
        return torch.stack(list(z)), len(products)
    usual, n = draw()
    assert n == 0
    pipe.unet.to(memory_format=torch.channels_last)
    z, n = draw()
    assert n > 0 and n % 4 == 0, 'the same number in each of four calls'
    plain, n = draw(plain=True)
    assert n == 0
    for other in z, plain: torch.testing.assert_close(other, usual, atol=1e-4, rtol=1e-4)
