"CSD, the style descriptor: equal to CLIP's picture encoder in transformers, whatever form its file has."
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from arldm.core import StoryError
from arldm.score.feature_networks import CSD_CUTS, fingerprint, load_csd, open_network



@pytest.fixture(scope='module')
def theirs():
    "CLIP's picture encoder with random weights, biases and norms, too."
    torch.manual_seed(0)
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(hidden_size=128, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=2, image_size=28, patch_size=14, projection_dim=24, hidden_act='quick_gelu')).eval()
    for p in model.parameters(): p.data += .05*torch.randn_like(p)
    return model

@pytest.fixture(scope='module')
def state(theirs):
    "Its tensors as a checkpoint of CSD names them; the projection is the one for style."
    found = {}
    for name, x in theirs.state_dict().items():
        if 'position_ids' in name: continue
        name = name.removeprefix('vision_model.').replace('embeddings.', '').replace('encoder.layers', 'transformer.resblocks')
        for ours, file in {'patch_embedding': 'conv1', 'position_embedding.weight': 'positional_embedding', 'pre_layrnorm': 'ln_pre',
                           'post_layernorm': 'ln_post', 'layer_norm': 'ln_', 'mlp.fc1': 'mlp.c_fc', 'mlp.fc2': 'mlp.c_proj',
                           'self_attn': 'attn'}.items(): name = name.replace(ours, file)
        found[f'backbone.{name}'] = x
    for i in range(2):
        at = f'backbone.transformer.resblocks.{i}.attn'
        for kind in 'weight', 'bias': found[f'{at}.in_proj_{kind}'] = torch.cat([found.pop(f'{at}.{p}_proj.{kind}') for p in 'qkv'])
    found['last_layer_style'] = found.pop('backbone.visual_projection.weight').T.contiguous()
    found['last_layer_content'] = torch.randn(128, 24)
    return found

@pytest.fixture
def path(tmp_path, state):
    torch.save(state, tmp_path/'csd.pth')
    return tmp_path/'csd.pth'

def test_equals_transformers(theirs, path):
    net = load_csd(path)
    assert (net.side, net.num_features, net.is_published_size) == (28, 24, False) and not net.training
    pictures = torch.randint(0, 256, (3, 3, 28, 28), dtype=torch.uint8)
    mean, std = (torch.tensor(x)[:, None, None] for x in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))
    with torch.no_grad():
        embedded = theirs(pixel_values=(pictures/255 - mean)/std).image_embeds
        assert torch.allclose(net(pictures), embedded/embedded.norm(dim=1, keepdim=True), atol=2e-6)

def test_every_form_of_the_file(state, path, tmp_path):
    "Pickled or safetensors, in half precision, or with the prefix of parallel training: the same network."
    first = fingerprint(load_csd(path))
    save_file(state, tmp_path/'csd.safetensors')
    torch.save({f'module.{name}': x for name, x in state.items()}, tmp_path/'parallel.pth')
    for name in 'csd.safetensors', 'parallel.pth': assert fingerprint(open_network('csd', tmp_path/name)) == first
    torch.save({name: x.half() for name, x in state.items()}, tmp_path/'half.pth')
    half = load_csd(tmp_path/'half.pth')
    assert half.conv1.weight.dtype == torch.float32 and fingerprint(half) != first

def test_a_file_of_another_model_is_one_line(state, tmp_path, monkeypatch):
    def refused(x):
        torch.save(x, tmp_path/'x.pth')
        with pytest.raises(StoryError, match='x.pth: expected weights of CSD') as e: load_csd(tmp_path/'x.pth')
        assert '\n' not in str(e.value)
        return str(e.value)
    assert 'no tensor conv1.weight' in refused({'a': torch.zeros(2)})
    assert '1 tensors are missing' in refused({name: x for name, x in state.items() if name != 'backbone.ln_post.bias'})
    refused({**state, 'backbone.ln_pre.weight': torch.ones(3)})
    monkeypatch.delenv('ARLDM_CSD', raising=False)
    with pytest.raises(StoryError, match='ARLDM_CSD'): open_network('csd')
    monkeypatch.setenv('ARLDM_CSD', str(tmp_path/'absent.pth'))
    with pytest.raises(StoryError, match='absent.pth'): open_network('csd')

def test_the_whole_picture_is_resized():
    "As torchvision resizes a tensor with antialiasing, except for rounding; nothing is cropped."
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90, 3), 'uint8'))
    x = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None]/255
    wanted = torch.nn.functional.interpolate(x, (28, 28), mode='bicubic', antialias=True, align_corners=False).clip(0, 1)
    for cut, _ in CSD_CUTS:
        got = torch.from_numpy(np.asarray(cut(picture, 28)).copy()).permute(2, 0, 1)[None]/255
        assert (got - wanted).abs().max() < 2/255
