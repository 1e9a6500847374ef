"Base weights: Stable Diffusion and BLIP start a model in every form they are published in."
import dataclasses, json, os, shutil, warnings
from functools import partial

import pytest, recorded, torch
from bases import OLD_VAE, S, SD, TOKENIZERS, WEIGHTS, change, equal, renamed, start, write_home
from safetensors.torch import save_file
from transformers import BlipForImageTextRetrieval

from arldm.model.pretrained import load_blip, published_schedule
from arldm.train.setup import make_model
from arldm.model.pretrained import PUBLISHED
from arldm.core import CORPORA, StoryError
from arldm.data.dataset import collate
from arldm.draw.pipeline import StoryPipeline
from arldm.draw.schedulers import make_scheduler
from arldm.model.arldm import ARLDM
from arldm.model.config import noise_schedule
from arldm.settings import resolve
from arldm.train.loop import train_steps

@pytest.fixture(scope='module')
def home(tmp_path_factory): return write_home(tmp_path_factory.mktemp('base'))

def test_names_of_blip_are_the_recorded(home):
    "The table of this file writes the names that the original's recorded state dict has."
    recorded_names = {k.removeprefix('mm_encoder.') for k in recorded.state() if k.startswith('mm_encoder.')}
    written = {k for k in torch.load(home/'itm.pth')['model'] if k.startswith(('visual_encoder.', 'text_encoder.'))}
    assert written == recorded_names - {'text_encoder.embeddings.position_ids'}

def test_both_forms_of_blip_give_transformers_slots(home):
    ours, pth = (load_blip(home/name, 156, side=96) for name in ('itm', 'itm.pth'))
    equal(ours.state_dict(), pth.state_dict())
    theirs = BlipForImageTextRetrieval.from_pretrained(home/'itm').eval()
    pictures, ids, real = torch.randn(2, 3, 96, 96), torch.randint(0, 150, (2, 7)), torch.ones(2, 7)
    with torch.no_grad():
        slots, ids[:, 0] = ours(pictures, ids, real.bool()), 156     # [ENC] takes the place of the first token
        seen = theirs.vision_model(pictures).last_hidden_state
        assert torch.equal(slots, theirs.text_encoder(ids, attention_mask=real, encoder_hidden_states=seen,
                                                      is_decoder=False).last_hidden_state)

@pytest.mark.parametrize('old', [False, True])
def test_files_of_2022_start_the_same_model(old, home, tmp_path):
    "Old names of the autoencoder's attention, CLIP's prefix and position indices; `.bin` files."
    sd = shutil.copytree(home/'sd', tmp_path/'sd')
    def vae(state): return {renamed(k, OLD_VAE.items()): v for k, v in state.items()}
    def clip(state): return {**{f'text_model.{k}': v for k, v in state.items()},
                             'text_model.embeddings.position_ids': torch.arange(S)[None]}
    bins = [file.replace('.safetensors', '.bin').replace('/model', '/pytorch_model') for file in WEIGHTS.values()]
    write = torch.save if old else partial(save_file, metadata={'format': 'pt'})
    for (part, file), to in zip(WEIGHTS.items(), bins):
        change(sd, file, dict(unet=dict, vae=vae, text_encoder=clip)[part], old and to, write)
    assert 'vae.encoder.mid_block.attentions.0.query.weight' in recorded.state() and len([*sd.rglob('*.bin')]) == 3*old
    equal(start(home).state_dict(), start(home, sd).state_dict())

def test_half_precision_is_widened(home, tmp_path):
    sd = shutil.copytree(home/'sd', tmp_path/'sd')
    for file in WEIGHTS.values(): change(sd, file, lambda state: {k: v.half() for k, v in state.items()})
    config = sd/'text_encoder/config.json'
    config.write_text(json.dumps({**json.loads(config.read_text()), 'dtype': 'float16'}))
    blip = {k: v.half() for k, v in torch.load(home/'itm.pth')['model'].items()}
    torch.save({'model': blip}, tmp_path/'half.pth')
    net, wide = start(home, sd, tmp_path/'half.pth'), start(home)
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    for part in 'unet', 'vae':
        equal(getattr(net, part).state_dict(), getattr(wide, part).state_dict(), lambda x: x.half().float())

@pytest.mark.skipif(not os.environ.get('ARLDM_SOAK'), reason='a long form: ARLDM_SOAK=1')
def test_a_blip_folder_brings_its_vocabulary(home, tmp_path):
    blip = shutil.copytree(home/'itm', tmp_path/'itm')
    tokens = (TOKENIZERS/'bert/vocab.txt').read_text().split()
    (blip/'vocab.txt').write_text('\n'.join(tokens + ['zyzzyva']))
    assert start(home, blip=blip, bert=None).vocab.memory_tokenizer.tokenize('zyzzyva') == ['zyzzyva']
    assert 'zyzzyva' not in start(home, blip=blip).vocab.memory_tokenizer.get_vocab()
    with pytest.raises(StoryError, match='bert-base-uncased: expected vocab.txt'): start(home, bert=None)

class Stories(list): # what `train` asks of a `StoryDataset`
    def __getitem__(self, i): return super().__getitem__(i[0] if isinstance(i, tuple) else i)   # or (story, epoch)

def stories(net, n=2, side=32):
    g = torch.Generator().manual_seed(0)
    def pictures(side): return torch.randint(0, 256, (2, 3, side, side), generator=g).byte()
    tokens = net.vocab.encode(['a man walks', 'he sleeps'])
    def story(i): return dict(tokens, frames=pictures(side), memory=pictures(net.memory_side), index=i, id=str(i))
    return Stories(map(story, range(n)))

def test_it_trains_and_is_saved(home, tmp_path):
    net = start(home, corpus='pororo')
    before = {k: v.clone() for k, v in net.state_dict().items()}
    record, = train_steps(net, stories(net), resolve('tiny', max_train_steps=1, lr_warmup_steps=0))
    moved = {k.split('.')[0] for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert record['loss'] < 10 and moved == {'unet', 'text_encoder', 'memory_encoder', 'history'}
    StoryPipeline.from_model(net).save_pretrained(tmp_path/'home')
    back = StoryPipeline.from_pretrained(tmp_path/'home').model
    equal(back.state_dict(), net.state_dict())
    assert back.vocab.memory_tokenizer.get_vocab() == net.vocab.memory_tokenizer.get_vocab()

def second_kind(home, folder):
    "A small Stable Diffusion in the fashion of 2.1: wider captions than BLIP's, heads per level, it predicts v."
    sd = shutil.copytree(home/'sd', folder, ignore=shutil.ignore_patterns('unet', 'text_encoder'))
    unet = dict(SD['unet'], cross_attention_dim=96, attention_head_dim=(2, 3), use_linear_projection=True)
    clip = dict(SD['clip'], hidden_size=96, hidden_act='gelu')
    net = ARLDM.create(dict(SD, unet=unet, clip=clip), recorded.vocabulary(S))
    for part in 'unet', 'text_encoder': getattr(net, part).save_pretrained(sd/part)
    make_scheduler('ddim', dict(prediction_type='v_prediction')).save_pretrained(sd/'scheduler')
    return sd

def test_without_a_schedule(home, tmp_path, monkeypatch):
    "What the UNet predicts is never assumed in silence: a folder costs a warning, the hub's file must be found."
    sd = shutil.copytree(home/'sd', tmp_path/'sd')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert published_schedule(sd).config.prediction_type == 'epsilon'
    shutil.rmtree(sd/'scheduler')
    with pytest.warns(UserWarning, match='sd: scheduler/scheduler_config.json, .* is missing; the noise is assumed'):
        assert published_schedule(sd).config.prediction_type == 'epsilon'
    def offline(*_, **how): raise OSError('We couldn\'t connect to the hub\nand more')
    monkeypatch.setattr('arldm.model.pretrained.cached_file', offline)
    with pytest.raises(StoryError, match=r'ada/sd: scheduler/scheduler_config.json, .* cannot be read \(We .*download'):
        published_schedule('ada/sd')

@pytest.mark.parametrize('entry, said', [(dict(prediction_type='sample'), "the model predicts 'sample', expected epsilon or v_prediction"),
                                         (dict(beta_schedule='linear'), "beta_schedule is 'linear', expected 'scaled_linear'"),
                                         (dict(beta_end=.02), 'beta_end is 0.02, expected 0.012')])
def test_another_schedule_is_refused(entry, said, home, tmp_path):
    sd = shutil.copytree(home/'sd', tmp_path/'sd')
    path = sd/'scheduler/scheduler_config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **entry}))
    with pytest.raises(StoryError, match=said): published_schedule(sd)

def test_a_smaller_vocabulary_is_refused(home, tmp_path):
    "Words would get the embeddings of others."
    bert = shutil.copytree(TOKENIZERS/'bert', tmp_path/'bert')
    lines = (bert/'vocab.txt').read_text().splitlines()
    (bert/'vocab.txt').write_text('\n'.join(lines[:-9]) + '\n')
    with pytest.raises(StoryError, match='157 words have embeddings, but the vocabulary has 148 tokens'): start(home, bert=bert)

def test_saved_in_half_precision(home, tmp_path):
    "A pipeline in float16 is trained in float32, every part of it."
    StoryPipeline.from_model(start(home)).to(dtype=torch.float16).save_pretrained(tmp_path)
    assert {x.dtype for x in ARLDM.load(tmp_path).parameters()} == {torch.float32}

def test_stable_diffusion_2(home, tmp_path, monkeypatch, capsys):
    "One line in the table of published weights; widths and the kind of prediction are read from its configuration."
    monkeypatch.setitem(PUBLISHED, 'sd-2.1', str(second_kind(home, tmp_path/'sd')))
    s = resolve('tiny', model='sd-2.1', blip=str(home/'itm.pth'), bert=str(TOKENIZERS/'bert'), resolution=32,
                max_train_steps=1, lr_warmup_steps=0, n_slots=5)
    with pytest.raises(StoryError, match="sd-2.1 was trained to predict v"): make_model(s, None, tmp_path)
    s = dataclasses.replace(s, prediction_type='v_prediction')
    net = make_model(s, None, tmp_path)
    said = capsys.readouterr().out
    assert '64 wide' in said and 'sd-2.1 96: the layer between them, history.slot_projection, is new' in said
    assert (net.unet.config.cross_attention_dim, net.slot_width, net.history.config.n_slots) == (96, 64, 5)
    before = net.history.slot_projection.weight.clone()
    record, = train_steps(net, stories(net), s)
    assert record['loss'] < 10 and not torch.equal(net.history.slot_projection.weight, before)
    StoryPipeline.from_model(net).save_pretrained(tmp_path/'home')
    pipe = StoryPipeline.from_pretrained(tmp_path/'home')
    pipe.set_progress_bar_config(disable=True)
    equal(pipe.model.state_dict(), net.state_dict())
    assert pipe.model.noise_scheduler.config.prediction_type == 'v_prediction'
    def draw(**kw):
        return torch.from_numpy(pipe(['a man walks', 'he sleeps', 'he wakes'], num_inference_steps=2, output_type='np',
                                     generator=torch.Generator().manual_seed(0), **kw).frames[0])
    assert draw().shape == (3, 32, 32, 3) and torch.allclose(draw(), draw(plain=True), atol=1.1/255)  # a grey level
    with pytest.raises(StoryError, match='the original knows only the prediction of noise'): net.to_original()
    net.noise_scheduler = noise_schedule()
    with pytest.raises(StoryError, match='history.slot_projection.*the original has no such layer'): net.to_original()


# as the original

def test_legacy(home, tmp_path):
    "New rows fifty times as wide; chance in BLIP while training, none in drawing; all of it survives saving."
    ours, net = (start(home, corpus='flintstones', legacy=legacy) for legacy in (False, True))
    assert (net.vocab.length, len(net.text_encoder.get_input_embeddings().weight)) == (91, 670 + 7)
    for table, known in ((lambda m: m.text_encoder.embeddings.position_embedding, S),
                         (lambda m: m.text_encoder.get_input_embeddings(), 670),
                         (lambda m: m.memory_encoder.text_encoder.get_input_embeddings(), 157)):
        spread, theirs = (table(m).weight[known:].std().item() for m in (ours, net))
        assert .01 < spread < .05 and .8 < theirs < 1.2
        assert torch.equal(table(ours).weight[:known], table(net).weight[:known])
    StoryPipeline.from_model(net).save_pretrained(tmp_path/'home')
    batch = collate(stories(net))
    def loss(m): return m.loss(batch, torch.Generator().manual_seed(1), cond_dropout=0.)
    for m in net, StoryPipeline.from_pretrained(tmp_path/'home').model:
        config = m.memory_encoder.config
        assert config.text['hidden_dropout_prob'] == config.text['attention_probs_dropout_prob'] == .1
        assert torch.equal(loss(m.eval()), loss(m.eval())) and torch.equal(loss(m), loss(net.eval()))
        assert not torch.equal(loss(m.train()), loss(m))
        assert m.vocab.caption_tokenizer.tokenize('fred Fred')[0] == 'fred'
        assert 'fred' not in m.vocab.caption_tokenizer.tokenize('Fred')
    assert ours.vocab.caption_tokenizer.tokenize('Fred') == ['fred']
    assert torch.equal(loss(ours.train()), loss(ours))

def test_the_seeds_preset(home, tmp_path, monkeypatch):
    "Needs nothing but the two places of the weights (and BERT's vocabulary, here beside BLIP's folder)."
    monkeypatch.chdir(tmp_path)
    blip = shutil.copytree(home/'itm', tmp_path/'itm')
    shutil.copy(TOKENIZERS/'bert/vocab.txt', blip)
    s = resolve('ssid-baseline', model=str(home/'sd'), blip=str(blip), n_slots=5)
    net = make_model(s, None, tmp_path)
    assert s.legacy and s.freeze == ('clip', 'blip', 'resnet') and net.vocab.length == CORPORA['ssid'].length
    assert net.memory_encoder.config.text['hidden_dropout_prob'] == .1
