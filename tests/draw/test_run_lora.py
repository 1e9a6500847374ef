"The LoRA of a run: attached to the base it draws what the merged pipeline draws, and is taken off again without a trace."
import numpy as np, pytest, torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from test_adapters import one_thread  # noqa: F401
from test_pipeline import A as TEXTS, latents, quiet, relative

from arldm.core import StoryError, asset
from arldm.draw.adapters import adapter_layers
from arldm.draw.pipeline import StoryPipeline
from arldm.model.arldm import ARLDM, trained_weights
from arldm.settings import resolve
from arldm.train.lora import LORA_FILE, TRAINED_FILE, add_lora, merge_lora, save_lora

A = TEXTS[:2]

def trained(**settings):
    "The shipped base with a LoRA, as if it had been trained."
    s = resolve('toy', lora_rank=4, lora_alpha=8., **settings)
    model = add_lora(ARLDM.load(asset('toy/base')).freeze(s.freeze), s)
    torch.manual_seed(1)
    for x in trained_weights(model): x.data.add_(.05*torch.randn_like(x))
    return model

def base(): return quiet(StoryPipeline.from_pretrained(asset('toy/base')))

@pytest.fixture(scope='module', params=[{}, dict(lora_encoders=True, lora_targets='all', freeze='all-but-words')], ids=['unet', 'all'])
def run(request, tmp_path_factory):
    "A run folder with its LoRA, and the pipeline in which it is merged."
    folder = tmp_path_factory.mktemp('run')
    model = trained(**request.param)
    (folder/'lora').mkdir()
    save_lora(model, folder/'lora')
    return folder, quiet(StoryPipeline.from_model(merge_lora(model)))

def frames(pipe): return np.stack(pipe(A, num_inference_steps=4, output_type='np').frames)*255

def test_attached_equals_merged(run):
    "Within one grey level, of pictures that differ from those of the base."
    folder, merged = run
    pipe = base()
    before, weights = frames(pipe), {k: v.clone() for k, v in pipe.model.state_dict().items()}
    pipe.load_lora_weights(folder)
    attached = frames(pipe)
    assert abs(attached - before).max() > 20
    assert abs(attached - frames(merged)).max() < 1
    pipe.fuse_lora()
    assert abs(frames(pipe) - frames(merged)).max() < 1
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert abs(frames(pipe) - before).max() < 1
    now = pipe.model.state_dict()
    assert now.keys() == weights.keys()
    for name, x in weights.items(): assert torch.allclose(now[name], x, atol=1e-5), name
    assert torch.equal(now['history.time_embedding.weight'], weights['history.time_embedding.weight'])
    pipe.load_lora_weights(folder)    # the last bit of an unfused number is not that of the base

def test_fused_and_saved(run, tmp_path):
    "What is fused stays after unloading, and so do the embeddings that belong to it."
    folder, merged = run
    pipe = base()
    pipe.load_lora_weights(folder, adapter_name='run')
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path)
    again = quiet(StoryPipeline.from_pretrained(tmp_path))
    assert abs(frames(again) - frames(merged)).max() < 1

def test_scale_zero_is_the_base_with_other_embeddings(run):
    folder, merged = run
    pipe = base()
    pipe.load_lora_weights(folder, adapter_name='run')
    pipe.set_adapters('run', 0.)
    drawn = latents(pipe, A)
    other = base()
    for name in 'history.type_embedding.weight', 'history.time_embedding.weight':
        other.model.get_parameter(name).data.copy_(merged.model.get_parameter(name))
    if not pipe.get_list_adapters().get('memory_encoder'): assert relative(drawn, latents(other, A)) < 1e-5

def test_float16_is_the_same_base(run):
    folder, _ = run
    pipe = base().to(torch.float16)
    pipe.load_lora_weights(folder)
    assert pipe.get_list_adapters()['unet'] == ['default_0']

def refused(pipe, source, said):
    with pytest.raises(StoryError) as e: pipe.load_lora_weights(source)
    assert str(e.value) == said
    assert not any(pipe.get_list_adapters().values())

def test_another_base_is_named(run):
    folder, _ = run
    pipe = quiet(StoryPipeline.from_pretrained(asset('toy/arldm')))
    before = latents(pipe, A)
    refused(pipe, folder, f'{folder}/lora/{TRAINED_FILE} was trained beside another model: this one has another vae, unet, text_encoder, '
            'memory_encoder; load it into the pipeline that the run started from, or open the pipeline of the run')
    assert torch.equal(latents(pipe, A), before)

def test_another_size(run):
    refused(quiet(StoryPipeline.from_model(ARLDM.create('tiny', base().model.vocab))), run[0],
            f'{run[0]}/lora: this LoRA was made for a model of other sizes')

def test_half_of_it(run, tmp_path):
    "The LoRA without what trained beside it would draw something else."
    (tmp_path/LORA_FILE).write_bytes((run[0]/'lora'/LORA_FILE).read_bytes())
    refused(base(), tmp_path, f'{tmp_path}: {TRAINED_FILE}, which trained beside this LoRA, is missing')
    (tmp_path/TRAINED_FILE).write_bytes((run[0]/'lora'/TRAINED_FILE).read_bytes()[:-9])
    refused(base(), tmp_path, f'{tmp_path}/{TRAINED_FILE}: not written by arldm-train, or damaged (Error while deserializing header: '
            'incomplete metadata, file not fully covered)')

def test_two_runs(run):
    pipe = base()
    pipe.load_lora_weights(run[0], adapter_name='one')
    with pytest.raises(StoryError, match='unload_lora_weights'): pipe.load_lora_weights(run[0], adapter_name='two')
    assert pipe.get_list_adapters()['unet'] == ['one']

def test_what_leaves_with_it(run):
    "Also through a copy of the pipeline, and when the adapter is deleted by its name; not with another adapter."
    folder, _ = run
    pipe = base()
    before = pipe.history.time_embedding.weight.clone()
    def same(): return torch.equal(pipe.history.time_embedding.weight, before)
    pipe.load_lora_weights(folder)
    StoryPipeline.from_pipe(pipe).unload_lora_weights()
    assert same()
    pipe.load_lora_weights(folder/'lora', adapter_name='run')
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=['to_k']), adapter_name='other')
    pipe.delete_adapters('other')
    assert not same()
    pipe.delete_adapters('run')
    assert same()
    pipe.load_lora_weights(folder, subfolder='lora')
    assert not same()

def test_hotswap(run):
    "Refused before anything is swapped: the embeddings would be those of the other run."
    folder, _ = run
    pipe = base()
    pipe.load_lora_weights(folder, adapter_name='run')
    weight = adapter_layers(pipe.unet)[0].lora_B['run'].weight
    weight.data.fill_(7.)
    with pytest.raises(StoryError, match='hotswap takes a LoRA alone'): pipe.load_lora_weights(folder, adapter_name='run', hotswap=True)
    assert (weight == 7).all()

def test_another_noise_schedule(run):
    "A LoRA that was trained to predict v draws noise where the noise is predicted."
    pipe = base()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type='epsilon')
    refused(pipe, run[0], f'{run[0]}/lora/{TRAINED_FILE} was trained beside another model: this one has another noise schedule; load '
            'it into the pipeline that the run started from, or open the pipeline of the run')

def test_more_slots(tmp_path):
    "A run of longer stories has more embeddings of time; unloading takes them away again."
    s = resolve('toy', lora_rank=2)
    model = ARLDM.load(asset('toy/base'))
    model.history.resize(9)
    (tmp_path/'lora').mkdir()
    save_lora(add_lora(model.freeze(s.freeze), s), tmp_path/'lora')
    pipe = base()
    pipe.load_lora_weights(tmp_path)
    assert pipe.history.config.n_slots == 9 and torch.equal(pipe.history.time_embedding.weight, model.history.time_embedding.weight)
    pipe.unload_lora_weights()
    assert pipe.history.config.n_slots == len(pipe.history.time_embedding.weight) == 5

def test_diffusers_reads_it(run):
    "A pipeline of diffusers takes the UNet's share, and that of CLIP."
    model = ARLDM.load(asset('toy/base'))
    pipe = StableDiffusionPipeline(model.vae, model.text_encoder, model.vocab.caption_tokenizer, model.unet, model.noise_scheduler, None, None, requires_safety_checker=False)
    pipe.load_lora_weights(run[0]/'lora')
    layer = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q
    assert layer.scaling == {'default_0': 2.} and layer.r == {'default_0': 4}
