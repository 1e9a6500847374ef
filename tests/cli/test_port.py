"""`arldm-port`: a checkpoint of the original, in every form it comes in, comes home and goes back bit for bit.

The checkpoint is the recorded original of `parity`, under the names that the original itself wrote.
"""
import json, os, shutil, sys
from collections import OrderedDict
from contextlib import redirect_stderr
from pathlib import Path

import pytest, recorded, torch
from safetensors.torch import save_file

from arldm.core import CORPORA, StoryError
from arldm.draw.pipeline import StoryPipeline
from arldm.cli.port import port
from arldm.model.config import SIZES
from arldm.model.arldm import ARLDM
from arldm.model.port import Misfit, read_weights
from processes import end, fork

TOKENIZERS = recorded.PARITY/'tokenizers'
LENGTH = 'text_encoder.text_model.embeddings.position_embedding.weight'
WORDS = LENGTH.replace('position', 'token'), 'mm_encoder.text_encoder.embeddings.word_embeddings.weight'
SLOTS, BIAS = 'time_embeddings.weight', 'unet.conv_in.bias'
PAIRS = {'unet.conv_in.weight': 'unet.conv_in.weight',                       # the original's name, and ours
         'modal_type_embeddings.weight': 'history.type_embedding.weight', SLOTS: 'history.time_embedding.weight',
         'vae.decoder.mid_block.attentions.0.proj_attn.bias': 'vae.decoder.mid_block.attentions.0.to_out.0.bias',
         'vae.encoder.mid_block.attentions.0.query.weight': 'vae.encoder.mid_block.attentions.0.to_q.weight',
         'text_encoder.text_model.encoder.layers.1.mlp.fc1.bias': 'text_encoder.encoder.layers.1.mlp.fc1.bias',
         'mm_encoder.visual_encoder.blocks.2.attn.proj.weight':
         'memory_encoder.vision_model.encoder.layers.2.self_attn.projection.weight',
         'mm_encoder.text_encoder.encoder.layer.0.crossattention.self.key.weight':
         'memory_encoder.text_encoder.encoder.layer.0.crossattention.self.key.weight'}

@pytest.fixture(scope='module')
def how(tmp_path_factory):
    "Arguments of `port` that name the recorded vocabularies and sizes."
    sd, create, seen = tmp_path_factory.mktemp('sd'), ARLDM.create, []
    shutil.copytree(TOKENIZERS/'clip', sd/'tokenizer')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ARLDM, 'create', lambda size, *x, **kw: seen.append(size) or create(size, *x, **kw))
        recorded.model.__wrapped__()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, 'recorded', seen[0])
        yield dict(sd=sd, bert=TOKENIZERS/'bert', size='recorded')

def lightning(state):
    "What pytorch-lightning 1.6 writes around a state dict."
    best = {'monitor': None, 'best_model_score': None, 'best_model_path': 'last.ckpt', 'current_score': None,
            'dirpath': 'ckpts', 'best_k_models': {}, 'kth_best_model_path': '', 'kth_value': torch.tensor(torch.inf),
            'last_model_path': ''}
    moments = {0: dict(step=7, exp_avg=torch.zeros(3), exp_avg_sq=torch.zeros(3))}
    group = dict(lr=1e-5, betas=(.9, .999), eps=1e-8, weight_decay=1e-4, amsgrad=False, params=[0])
    done = dict(total=dict(ready=7, completed=7), current=dict(ready=7, completed=7), is_last_batch=True)
    weights = OrderedDict(state)
    weights._metadata = OrderedDict({'': dict(version=1)})
    return {'epoch': 1, 'global_step': 7, 'pytorch-lightning_version': '1.6.5', 'state_dict': weights,
            'loops': {'fit_loop': {'state_dict': {}, 'epoch_loop.batch_progress': done}, 'validate_loop': {}},
            'callbacks': {"ModelCheckpoint{'monitor': None, 'mode': 'min', 'save_on_train_epoch_end': None}": best},
            'optimizer_states': [{'state': moments, 'param_groups': [group]}],
            'lr_schedulers': [dict(warmup_epochs=2, max_epochs=9, base_lrs=[1e-5], last_epoch=7, _last_lr=[0.])]}

def saved(path, obj, **kw):
    torch.save(obj, path, **kw)
    return path

def without(*names): return {k: v for k, v in recorded.state().items() if k not in names}
def ids(): return [k for k in recorded.state() if k.endswith('position_ids')]

FORMS = dict(
    lightning=lambda p: saved(p, lightning(recorded.state())), bare=lambda p: saved(p, recorded.state()),
    old=lambda p: saved(p, lightning(recorded.state()), _use_new_zipfile_serialization=False),     # before torch 1.6
    safetensors=lambda p: save_file(recorded.state(), p) or p,
    ids_not_saved=lambda p: saved(p, lightning(without(*ids()))))          # as transformers since 4.31

def same(back, first):
    "Bit for bit: names, kinds of number, shapes and values."
    assert back.keys() == first.keys()
    for k, v in first.items(): assert back[k].dtype == v.dtype and torch.equal(back[k], v), k

@pytest.mark.parametrize('form', sorted(FORMS.keys() - {'bare'}))
def test_home_and_back(form, how, tmp_path):
    first = recorded.state()
    assert len(ids()) == 2 and sum(k.endswith('_null_token') for k in first) == 3
    home = port(FORMS[form](tmp_path/'last.ckpt'), tmp_path/'home', corpus='ssid', **how)
    pipe = StoryPipeline.from_pretrained(home)
    for theirs, ours in PAIRS.items(): assert torch.equal(pipe.model.get_parameter(ours), first[theirs]), theirs
    settings = json.loads((home/'settings.json').read_text())
    assert settings == dict(corpus='ssid', task='visualization', resolution=256, guidance_scale=7.5)
    port(home, tmp_path/'back.ckpt')
    same(torch.load(tmp_path/'back.ckpt', weights_only=True)['state_dict'], first)
    assert {p.name for p in tmp_path.iterdir()} == {'last.ckpt', 'home', 'back.ckpt'}

def test_goes_back_from_a_run(how, tmp_path):
    port(FORMS['bare'](tmp_path/'x.ckpt'), tmp_path/'run/pipeline', **how)
    same(read_weights(port(tmp_path/'run', tmp_path/'back.ckpt')), recorded.state())

def test_in_a_shell(how, tmp_path):
    "Without a size the full one is meant: refused in one line, soon, and without making six gigabytes."
    path = FORMS['lightning'](tmp_path/'last.ckpt')
    args = [path, tmp_path/'out', '--sd', how['sd'], '--bert', how['bert'], '--loose']
    def memory(name): return int(Path('/proc/self/status').read_text().split(f'{name}:')[1].split()[0])    # kB
    def work():
        sys.argv = ['arldm-port', *map(str, args)]
        before = memory('VmRSS')
        with open(tmp_path/'stderr', 'w') as file, redirect_stderr(file):
            try: port()
            finally: print(memory('VmHWM') - before)
    status, said = end(*fork(work))
    error = (tmp_path/'stderr').read_text()
    assert status == 1 and len(error.splitlines()) == 1 and error.startswith('arldm-port: '), error
    assert 'expected (768,), found (32,)' in error
    assert int(said[-1]) < 1e6 and not (tmp_path/'out').exists()


# what a checkpoint was trained on

def trained_on(corpus, length=None):
    "The recorded checkpoint as it would be for another corpus: rows for names that the vocabularies do not have."
    clip, bert = ((TOKENIZERS/name).read_text() for name in ('clip/vocab.json', 'bert/vocab.txt'))
    state, g = dict(recorded.state()), torch.Generator().manual_seed(0)
    def rows(n, width): return torch.randn(n, width, generator=g)
    for table, known in zip(WORDS, (json.loads(clip), bert.split())):
        new = [name for name in CORPORA[corpus].names if name not in known]
        state[table] = torch.cat([state[table], rows(len(new), state[table].shape[1])])
    length = length or CORPORA[corpus].length
    state[LENGTH] = rows(length, state[LENGTH].shape[1])
    for k in 'blip_text_null_token', 'clip_text_null_token':
        state[k] = torch.cat([state[k][:, :2], state[k][:, 2:3].expand(1, length - 2)], 1)
    state['text_encoder.text_model.embeddings.position_ids'] = torch.arange(length)[None]
    return state

@pytest.mark.parametrize('corpus', ['vist-sis', 'vist-dii', 'pororo', 'flintstones'])
def test_corpus_is_read_off_the_tensors(corpus, how, tmp_path):
    state = trained_on(corpus)
    home = port(saved(tmp_path/'x.ckpt', lightning(state)), tmp_path/'home', **how)
    vocab, settings = StoryPipeline.from_pretrained(home).model.vocab, json.loads((home/'settings.json').read_text())
    found = {'vist-sis': 'ssid'}.get(corpus, corpus)         # nothing in the tensors tells these two apart
    assert (settings['corpus'], settings['resolution']) == (found, CORPORA[found].resolution)
    assert vocab.length == CORPORA[corpus].length
    assert vocab.caption_tokenizer.tokenize(' '.join(CORPORA[corpus].names)) == list(CORPORA[corpus].names)
    same(read_weights(port(home, tmp_path/'back.ckpt')), state)

def test_other_caption_length_and_slots(how, tmp_path):
    state = {**trained_on('pororo', 33), SLOTS: recorded.state()[SLOTS].repeat(2, 1)}
    home = port(saved(tmp_path/'x.ckpt', state), tmp_path/'home', **how)
    model = StoryPipeline.from_pretrained(home).model
    assert model.vocab.length == 33 and len(model.history.time_embedding.weight) == 10
    same(read_weights(port(home, tmp_path/'back.ckpt')), state)

@pytest.mark.parametrize('table', WORDS)
def test_impossible_vocabulary(table, how, tmp_path):
    state = {**recorded.state(), table: recorded.state()[table][:-1]}
    with pytest.raises(StoryError) as e: port(saved(tmp_path/'x.ckpt', state), tmp_path/'home', **how)
    found, expected = str(e.value).split('expected')
    assert str(len(state[table])) in found and all(f'({c})' in expected for c in CORPORA)
    assert '679 and 165 (pororo)' in expected and '\n' not in str(e.value)


# names and shapes that do not fit

GONE = 'mm_encoder.text_encoder.encoder.layer.1.output.dense.bias', BIAS.replace('bias', 'weight')
NEW = 'inception.fc.weight', 'unet.x', 'x_null_token', 'x.position_ids'

@pytest.mark.parametrize('gone,new', [(GONE, ()), ((), NEW), (GONE, NEW)], ids=['missing', 'unknown', 'both'])
def test_names_are_listed(gone, new, how, tmp_path, capsys):
    path = saved(tmp_path/'x.ckpt', lightning({**without(*gone), **{k: torch.zeros(1) for k in new}}))
    def listed():
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if line[:9] in ('', 'missing: ', 'unknown: ')]
    lines = [*(f'missing: {k}' for k in sorted(gone)), *(f'unknown: {k}' for k in sorted(new))]
    with pytest.raises(Misfit) as e: port(path, tmp_path/'home', **how)
    assert all(k in str(e.value) for k in gone + new) and '\n' not in str(e.value) and listed() == lines
    assert (set(e.value.missing), set(e.value.unknown)) == ({*gone}, {*new}) and [*tmp_path.iterdir()] == [path]
    home = port(path, tmp_path/'home', loose=True, **how)
    assert listed() == lines
    unet, first = StoryPipeline.from_pretrained(home).unet, recorded.state()
    assert torch.equal(unet.conv_in.bias, first[BIAS]) and unet.conv_in.weight.std() > 0        # random, not zero
    assert torch.equal(unet.conv_in.weight, first['unet.conv_in.weight']) == (not gone)

def test_more_names_than_fit_a_line(how, tmp_path, capsys):
    new = {f'ema.{i}' for i in range(30)}
    path = saved(tmp_path/'x.ckpt', {**recorded.state(), **{k: torch.zeros(1) for k in new}})
    with pytest.raises(Misfit, match='and 22 more') as e: port(path, tmp_path/'home', **how)
    assert set(e.value.unknown) == new == {x[9:] for x in capsys.readouterr().out.splitlines() if x[:9] == 'unknown: '}

SHAPES = dict(short=torch.zeros(3), turned=torch.zeros(1, 16), number=torch.tensor(1.), empty=torch.zeros(0),
              sparse=torch.zeros(16).to_sparse(), nowhere=torch.zeros(16, device='meta'))

@pytest.mark.parametrize('name,loose', [(BIAS, False), (BIAS, True), (LENGTH, True)])
@pytest.mark.parametrize('shape', SHAPES)
def test_shapes_are_refused(name, loose, shape, how, tmp_path):
    path = saved(tmp_path/'x.ckpt', {**recorded.state(), name: SHAPES[shape]})
    with pytest.raises(StoryError) as e: port(path, tmp_path/'home', loose=loose, **how)
    assert '\n' not in str(e.value) and [*tmp_path.iterdir()] == [path]


# other files and places

OTHERS = dict(ours=lambda net: ({'step': 3, 'model': net.state_dict(), 'optimizer': {'state': {}}}, 'a run of ours'),
              blip=lambda net: ({'model': {'visual_encoder.cls_token': torch.zeros(1)}}, 'a BLIP checkpoint'),
              sd=lambda net: ({'first_stage_model.x': torch.zeros(1)}, 'a single-file Stable Diffusion'))

@pytest.mark.parametrize('other', OTHERS)
def test_checkpoints_of_others_are_named(other, how, tmp_path):
    state, said = OTHERS[other](recorded.model())
    with pytest.raises(StoryError, match=said): port(saved(tmp_path/'x.pt', state), tmp_path/'home', **how)

@pytest.mark.parametrize('file', ['vocab.json', 'tokenizer_config.json'])
def test_a_broken_tokenizer(file, how, tmp_path):
    path, sd = FORMS['bare'](tmp_path/'x.ckpt'), shutil.copytree(how['sd'], tmp_path/'sd')
    (sd/'tokenizer'/file).write_text('{')
    with pytest.raises(StoryError, match='expected'): port(path, tmp_path/'home', **{**how, 'sd': sd})

@pytest.mark.parametrize('file', ['text_encoder/model.safetensors', 'unet/diffusion_pytorch_model.safetensors',
                                  'vae/config.json', 'memory_tokenizer/tokenizer.json'])
def test_a_broken_folder_does_not_go_back(file, how, tmp_path):
    home = port(FORMS['bare'](tmp_path/'x.ckpt'), tmp_path/'home', **how)
    (home/file).write_bytes((home/file).read_bytes()[:99])
    with pytest.raises(StoryError): port(home, tmp_path/'back.ckpt')
    assert not (tmp_path/'back.ckpt').exists()

def test_places(how, tmp_path):
    path = FORMS['bare'](tmp_path/'x.ckpt')
    with pytest.raises(StoryError, match='is there already'): port(path, path, **how)
    with pytest.raises(StoryError, match='none.ckpt: expected a checkpoint'): port(tmp_path/'none.ckpt', tmp_path/'out')
    with pytest.raises(StoryError, match='vae, unet'): port(how['sd'], tmp_path/'out')
    assert port(path, tmp_path/'out', dry_run=True, **how) is None and [*tmp_path.iterdir()] == [path]

@pytest.mark.parametrize('flag, value', [('sd', 'x'), ('bert', 'x'), ('corpus', 'ssid'), ('task', 'continuation'), ('size', 'toy'), ('loose', True)])
def test_flags_of_the_other_direction(flag, value, tmp_path):
    with pytest.raises(StoryError, match=f'--{flag} is for checkpoints of the original'):
        port(tmp_path, tmp_path/'back.ckpt', **{flag: value})
