"LoRA, textual inversion, custom attention processors and hooks do what they say, as in diffusers' own pipelines."
import copy

import numpy as np, pytest, torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor2_0, FusedAttnProcessor2_0
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file
from test_pipeline import A as TEXTS, FEW, latents, make_tiny, one_line, quiet, relative

from arldm.draw.drawing_record import pipeline_digest
from arldm.draw.pipeline import StoryPipeline

A = TEXTS[:2]     # two frames: the second has a memory
TARGETS = dict(unet=['to_q', 'to_k', 'to_v', 'to_out.0'], text_encoder=['q_proj', 'k_proj', 'v_proj', 'out_proj'])


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)

@pytest.fixture(scope='module')
def kept(): return make_tiny()

@pytest.fixture(scope='module')
def base(kept): return latents(kept, A)

@pytest.fixture(scope='module')
def weights(kept): return {k: v.clone() for k, v in kept.model.state_dict().items()}

@pytest.fixture
def pipe(kept, weights):
    "The random model; whatever a test attached is removed, and what it fused, which rounds."
    yield kept
    kept.unload_lora_weights()
    kept.model.load_state_dict(weights)

@pytest.fixture(scope='module')
def lora(tmp_path_factory):
    "A folder with a LoRA of UNet and text encoder, as a training script writes it."
    pipe, layers = make_tiny(), {}
    torch.manual_seed(1)
    for name, targets in TARGETS.items():
        part = getattr(pipe, name)
        part.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=targets))
        layers[f'{name}_lora_layers'] = get_peft_model_state_dict(part)
    folder = tmp_path_factory.mktemp('lora')
    StoryPipeline.save_lora_weights(folder, **layers)
    return folder

def share(lora, part=''):
    "The weights of a LoRA, or those of one part."
    found = load_file(lora/'pytorch_lora_weights.safetensors')
    return {name: x for name, x in found.items() if name.startswith(part)}

def by_hand(pipe, weights, scale=1.):
    "A copy of a pipeline, with scale·B·A added to its matrices."
    other = quiet(StoryPipeline(**copy.deepcopy(pipe.components)))
    modules = dict(other.model.named_modules())
    for name, a in weights.items():
        if 'lora_A' in name:
            b = weights[name.replace('lora_A', 'lora_B')]
            modules[name.removesuffix('.lora_A.weight')].weight.data += scale*(b @ a)
    return other

def assert_whole(pipe, weights):
    now = pipe.model.state_dict()
    assert now.keys() == weights.keys() and all(torch.equal(x, now[name]) for name, x in weights.items())


# a LoRA

@pytest.mark.parametrize('part', ['unet', 'text_encoder'])
def test_draws_as_merged_by_hand(pipe, base, lora, part):
    "Conditions, null condition and noise predictions alike: what LoRA means."
    found = share(lora, part)
    want = {scale: latents(by_hand(pipe, found, scale), A) for scale in (1., .5)}
    pipe.load_lora_weights(found, adapter_name='paint')
    assert relative(latents(pipe, A), base) > .01
    assert relative(latents(pipe, A), want[1.]) < 1e-4
    assert relative(latents(pipe, A, plain=True), want[1.]) < 1e-4
    pipe.set_adapters('paint', .5)
    assert relative(latents(pipe, A), want[.5]) < 1e-4

def test_scale_disable_delete(pipe, base, lora, weights):
    pipe.load_lora_weights(lora, adapter_name='paint')
    drawn = latents(pipe, A)
    for undo, again in ((lambda: pipe.set_adapters('paint', 0.), lambda: pipe.set_adapters('paint', 1.)),
                        (pipe.disable_lora, pipe.enable_lora)):
        undo()
        assert torch.equal(latents(pipe, A), base)
        again()
        assert torch.equal(latents(pipe, A), drawn)
    pipe.delete_adapters('paint')
    assert torch.equal(latents(pipe, A), base) and not any(pipe.get_list_adapters().values())
    pipe.unload_lora_weights()
    assert torch.equal(latents(pipe, A), base) and pipe.get_list_adapters() == {}
    assert_whole(pipe, weights)

def test_fuse(pipe, lora, tmp_path):
    want = latents(by_hand(pipe, share(lora), .5), A)
    pipe.load_lora_weights(lora)
    pipe.fuse_lora(lora_scale=.5)
    assert relative(latents(pipe, A), want) < 1e-4
    pipe.unfuse_lora()                  # diffusers keeps the scale
    assert relative(latents(pipe, A), want) < 1e-4
    pipe.fuse_lora()
    pipe.unload_lora_weights()          # keeps what is fused
    fused = latents(pipe, A)
    assert relative(fused, want) < 1e-4
    pipe.save_pretrained(tmp_path)
    assert torch.equal(latents(quiet(StoryPipeline.from_pretrained(tmp_path)), A), fused)

def test_two_adapters(pipe, lora):
    found = share(lora)
    unet, text = share(lora, 'unet'), share(lora, 'text_encoder')
    want = latents(by_hand(by_hand(pipe, unet, .7), text, .4), A)
    pipe.load_lora_weights(unet, adapter_name='paint')
    pipe.load_lora_weights(text, adapter_name='words')
    pipe.set_adapters(['paint', 'words'], [.7, .4])
    assert pipe.get_list_adapters() == {'unet': ['paint'], 'text_encoder': ['words']}
    assert relative(latents(pipe, A), want) < 1e-4 and len(found) == len(unet) + len(text)

def test_another_use_of_adapters_is_another_pipeline(pipe, lora):
    "By their scale, and whether they are on: drawings of the two may not be in one folder."
    plain = pipeline_digest(pipe)
    pipe.load_lora_weights(share(lora), adapter_name='paint')
    digests = [plain, pipeline_digest(pipe)]
    pipe.set_adapters('paint', .5)
    digests.append(pipeline_digest(pipe))
    pipe.disable_lora()
    digests.append(pipeline_digest(pipe))
    assert len(set(digests)) == 4
    pipe.enable_lora()
    assert pipeline_digest(pipe) == digests[2]
    pipe.unload_lora_weights()
    assert pipeline_digest(pipe) == plain

def test_sources(pipe, lora):
    drawn = []
    for source in str(lora), lora/'pytorch_lora_weights.safetensors', share(lora):
        pipe.load_lora_weights(source)
        drawn.append(latents(pipe, A))
        pipe.unload_lora_weights()
    assert all(torch.equal(x, drawn[0]) for x in drawn)

def test_same_layout_as_stable_diffusion(pipe, lora):
    "A LoRA that a StoryPipeline saved is loaded by diffusers' own pipeline, into the same layers."
    parts = {name: getattr(pipe, name) for name in ('vae', 'unet', 'text_encoder', 'tokenizer', 'scheduler')}
    other = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    other.load_lora_weights(lora, adapter_name='paint')
    assert other.get_list_adapters() == pipe.get_list_adapters() == {'unet': ['paint'], 'text_encoder': ['paint']}
    found = get_peft_model_state_dict(pipe.unet, adapter_name='paint')
    assert all(torch.equal(x, found[name.removeprefix('unet.')]) for name, x in share(lora, 'unet').items())

def test_from_pipe(pipe, base, lora):
    "As in diffusers, both share the parts, so an adapter set by one is that of the other."
    other = quiet(StoryPipeline.from_pipe(pipe))
    other.load_lora_weights(lora, adapter_name='paint')
    drawn = latents(other, A)
    assert relative(drawn, base) > .01 and torch.equal(latents(pipe, A), drawn)
    other.set_adapters('paint', 0.)
    assert torch.equal(latents(pipe, A), base) and torch.equal(latents(other, A), base)

@pytest.mark.parametrize('part', ['unet', 'text_encoder'])
def test_not_saved(pipe, lora, tmp_path, part):
    pipe.load_lora_weights(share(lora, part))
    assert one_line(pipe.save_pretrained, tmp_path/'out') == (
        f'{part}: adapters are attached, and a folder with them could not be opened again; call unload_lora_weights() '
        'before saving, and fuse_lora() before that to keep their effect; save_lora_weights() writes adapters alone')
    assert not (tmp_path/'out').exists()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path/'out')
    assert StoryPipeline.from_pretrained(tmp_path/'out').get_list_adapters() == {}


# a LoRA that does not fit

def wider(weights, part):
    return {name: torch.cat([x, x], 1) if 'lora_A' in name and name.startswith(part) else x
            for name, x in weights.items()}

@pytest.mark.parametrize('part', ['unet', 'text_encoder'])
def test_other_size(pipe, base, lora, weights, part):
    bad = wider(share(lora), part)
    assert one_line(pipe.load_lora_weights, bad) == 'state dict: this LoRA was made for a model of other sizes'
    assert_whole(pipe, weights)
    # beside others: they stay as they were
    for name in 'a', 'b': pipe.load_lora_weights(lora, adapter_name=name)
    pipe.set_adapters(['a', 'b'], [.3, .6])
    drawn = latents(pipe, A)
    one_line(pipe.load_lora_weights, bad, adapter_name='c')
    assert pipe.get_list_adapters() == {'unet': ['a', 'b'], 'text_encoder': ['a', 'b']}
    assert torch.equal(latents(pipe, A), drawn)

def test_hotswap_of_encoders_changes_nothing(pipe, lora, weights):
    "diffusers would find out after it has changed the UNet."
    pipe.load_lora_weights(share(lora, 'unet'), adapter_name='a')
    drawn = latents(pipe, A)
    other = {name: 2*x for name, x in share(lora).items()}
    said = one_line(pipe.load_lora_weights, other, adapter_name='a', hotswap=True)
    assert said.startswith('hotswap replaces weights of the UNet only') and torch.equal(latents(pipe, A), drawn)
    pipe.load_lora_weights({name: 2*x for name, x in share(lora, 'unet').items()}, adapter_name='a', hotswap=True)
    assert not torch.equal(latents(pipe, A), drawn)

def test_no_lora(pipe, lora, weights, tmp_path):
    nowhere = tmp_path/'nowhere'
    assert one_line(pipe.load_lora_weights, nowhere).startswith(f'{nowhere}: expected a LoRA, but loading failed (')
    one_line(pipe.load_lora_weights, {'a': torch.ones(1)}, match="Make sure all LoRA param names contain `'lora'`")
    stranger = {'unet.stranger.lora_A.weight': torch.ones(2, 2), 'unet.stranger.lora_B.weight': torch.ones(2, 2)}
    one_line(pipe.load_lora_weights, stranger, match='stranger')
    one_line(pipe.load_lora_weights, {}, match='0 of its 0 layers are in the UNet')
    one_line(pipe.load_lora_weights, {name.replace('unet.', 'transformer.'): x for name, x in share(lora).items() if name.startswith('unet.')},
             match='0 of its')
    more = {name.replace('down_blocks.0', 'down_blocks.7'): x for name, x in share(lora).items() if 'down_blocks.0' in name}
    assert more
    one_line(pipe.load_lora_weights, {**share(lora), **more}, match=r'\d+ of its \d+ layers are in the UNet or an encoder')
    (tmp_path/'broken.safetensors').write_bytes(b'nothing')
    one_line(pipe.load_lora_weights, tmp_path/'broken.safetensors')
    assert_whole(pipe, weights)
    pipe.load_lora_weights(lora, adapter_name='paint')
    one_line(pipe.load_lora_weights, lora, adapter_name='paint', match='paint already in use')
    with pytest.raises(ValueError, match='strange'): pipe.set_adapters('strange')


# textual inversion

def test_textual_inversion(tmp_path):
    "A word of two vectors is drawn with both, and opened again."
    pipe = make_tiny()
    texts = ['a <thing> is at the beach', 'it jumps']
    before = latents(pipe, texts)
    torch.manual_seed(0)
    vectors = torch.randn(2, pipe.text_encoder.config.hidden_size)
    pipe.load_textual_inversion({'<thing>': vectors})
    drawn = latents(pipe, texts)
    assert relative(drawn, before) > .01
    pipe.text_encoder.get_input_embeddings().weight.data[-1] *= -1
    assert relative(latents(pipe, texts), drawn) > .01      # the second vector counts
    pipe.text_encoder.get_input_embeddings().weight.data[-1] = vectors[1]
    pipe.save_pretrained(tmp_path)
    assert torch.equal(latents(quiet(StoryPipeline.from_pretrained(tmp_path)), texts), drawn)
    pipe.unload_textual_inversion()
    assert torch.equal(latents(pipe, texts), before)


# attention processors and hooks of one's own

class OtherContext(AttnProcessor2_0):
    "Lets the UNet see its context turned round."
    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        if encoder_hidden_states is not None: encoder_hidden_states = -encoder_hidden_states.flip(-1)
        return super().__call__(attn, hidden_states, encoder_hidden_states, *args, **kwargs)

def test_processor_is_obeyed(pipe, base):
    before = pipe.unet.attn_processors
    pipe.unet.set_attn_processor(OtherContext())
    try:
        drawn = latents(pipe, A)
        assert relative(drawn, base) > .01
        assert relative(drawn, latents(pipe, A, plain=True)) < 1e-4
    finally: pipe.unet.set_attn_processor(before)
    assert torch.equal(latents(pipe, A), base)

def cross_attention(pipe, name):
    return [m for k, m in pipe.unet.named_modules() if k.endswith(f'attn2.{name}')]

@pytest.mark.parametrize('name', ['to_k', 'to_v'])
@pytest.mark.parametrize('when', ['before', 'after', 'ever more'])
def test_hook_is_obeyed(pipe, base, name, when):
    "Also one that does something else in every step."
    layers, drawn = cross_attention(pipe, name), []
    for plain in False, True:
        n_calls = dict.fromkeys(layers, 0)
        def before(layer, args): return (args[0]*1.5,)
        def after(layer, args, out):
            n_calls[layer] += 1
            return out*(1.5 if when == 'after' else n_calls[layer])
        if when == 'before': handles = [layer.register_forward_pre_hook(before) for layer in layers]
        else: handles = [layer.register_forward_hook(after) for layer in layers]
        try: drawn.append(latents(pipe, A, plain=plain))
        finally:
            for handle in handles: handle.remove()
    assert relative(drawn[0], base) > .01 and relative(drawn[0], drawn[1]) < 1e-4
    assert torch.equal(latents(pipe, A), base)

def test_null_condition_follows_hooks(pipe, base):
    "A hook that doubles what the caption encoder says is the encoder with a doubled last layer."
    norm = pipe.text_encoder.final_layer_norm
    handle = norm.register_forward_hook(lambda layer, args, out: out*2)
    try: drawn = latents(pipe, A)
    finally: handle.remove()
    other = quiet(StoryPipeline(**copy.deepcopy(pipe.components)))
    for x in other.text_encoder.final_layer_norm.parameters(): x.data *= 2
    assert relative(drawn, base) > .01 and relative(drawn, latents(other, A)) < 1e-5
    assert torch.equal(latents(pipe, A), base)


# what StableDiffusionMixin adds

def test_freeu(pipe, base):
    pipe.enable_freeu(s1=.9, s2=.2, b1=1.2, b2=1.4)
    free = latents(pipe, A)
    assert relative(free, base) > .01 and relative(free, latents(pipe, A, plain=True)) < 1e-4
    pipe.disable_freeu()
    assert torch.equal(latents(pipe, A), base)

def test_fused_projections(base, tmp_path):
    pipe = make_tiny()
    pipe.fuse_qkv_projections()
    assert {type(p) for p in pipe.unet.attn_processors.values()} == {FusedAttnProcessor2_0}
    assert relative(latents(pipe, A), base) < 1e-4
    pipe.unfuse_qkv_projections()
    assert torch.equal(latents(pipe, A), base)
    pipe.save_pretrained(tmp_path)      # diffusers keeps the fused matrices beside the others
    assert torch.equal(latents(quiet(StoryPipeline.from_pretrained(tmp_path)), A), base)

def test_vae_slicing_and_tiling(pipe):
    whole = pipe([A, A], output_type='np', height=64, width=64, **FEW).frames
    pipe.enable_vae_slicing()
    sliced = pipe([A, A], output_type='np', height=64, width=64, **FEW).frames
    pipe.disable_vae_slicing()
    assert np.abs(np.subtract(whole, sliced)).max() < 1e-2
    pipe.enable_vae_tiling()
    pipe.vae.tile_latent_min_size, pipe.vae.tile_sample_min_size = 4, 32
    calls = []
    handle = pipe.vae.decoder.register_forward_pre_hook(lambda *_: calls.append(1))
    tiled = pipe([A, A], output_type='np', height=64, width=64, **FEW).frames
    handle.remove()
    pipe.disable_vae_tiling()
    assert len(calls) > len(A)
    assert np.abs(np.subtract(whole, tiled)).mean() < .1
