"A memory encoder of one's own: it draws, trains, is saved and opened again, or is refused by one line."
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from arldm.core import StoryError
from arldm.draw.pipeline import StoryPipeline
from arldm.model.arldm import ARLDM
from arldm.settings import resolve
from arldm.train.cache import frozen_parts
from arldm.train.loop import train_steps
from processes import end, fork
from test_pipeline import A, FEW, make_tiny

SOURCE = '''
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

class MeanColour(ModelMixin, ConfigMixin):
    "The words of the caption, each with the mean colour of the picture."
    @register_to_config
    def __init__(self, n_words, width, side=16):
        super().__init__()
        self.picture_side = side
        self.words = nn.Embedding(n_words, width)
        self.colour = nn.Linear(3, width)
    def forward(self, pictures, ids, real):
        assert pictures.shape == (len(ids), 3, 16, 16) and ids.shape == real.shape
        return self.words(ids) + self.colour(pictures.mean((2, 3)))[:, None]
'''
CONTRACT = 'expected a tensor (1, 36, 32): number of pictures, tokens of a caption, width'

@pytest.fixture
def encoder(tmp_path, monkeypatch):
    "An encoder with a class of its own, in a module that lies beside a story file."
    (tmp_path/'my_encoder.py').write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'my_encoder', raising=False)
    import my_encoder
    torch.manual_seed(1)
    yield my_encoder.MeanColour(400, 32)
    del sys.modules['my_encoder']

@pytest.fixture(scope='module')
def tiny(): return make_tiny().components

def with_encoder(tiny, encoder): # a pipeline that shares all other parts
    pipe = StoryPipeline(**{**tiny, 'memory_encoder': encoder})
    pipe.set_progress_bar_config(disable=True)
    return pipe

@pytest.fixture
def pipe(tiny, encoder): return with_encoder(tiny, encoder)

def latents(pipe, **how): return pipe(A, output_type='latent', **FEW, **how).frames[0]

def in_another_process(tmp_path):
    "The status and the lines of a process that has not imported the module: it opens the pipeline and draws."
    def work():
        ours = sys.modules.pop('my_encoder')
        pipe = StoryPipeline.from_pretrained(tmp_path/'saved')
        assert type(pipe.memory_encoder) is sys.modules['my_encoder'].MeanColour is not ours.MeanColour
        np.save(tmp_path/'drawn.npy', latents(pipe).numpy())
    return end(*fork(work))

def test_it_draws_and_its_pictures_count(pipe):
    "Later frames depend on the picture that is remembered, through the encoder; the first does not."
    before = latents(pipe)
    with torch.no_grad(): pipe.memory_encoder.colour.weight += 1
    after = latents(pipe)
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])
    batch = pipe([A, A], seed=[0, 5], output_type='latent', **FEW).frames[0]
    torch.testing.assert_close(batch, after, rtol=1e-5, atol=1e-3)   # of latents of up to 130

def test_saved_and_opened_in_another_process(pipe, tmp_path):
    pipe.save_pretrained(tmp_path/'saved')
    assert json.loads((tmp_path/'saved/model_index.json').read_text())['memory_encoder'] == ['my_encoder', 'MeanColour']
    status, said = in_another_process(tmp_path)
    assert status == 0, said
    assert 'Expected types' not in '\n'.join(said)
    assert torch.equal(torch.from_numpy(np.load(tmp_path/'drawn.npy')), latents(pipe))
    model = ARLDM.load(tmp_path/'saved')
    assert type(model.memory_encoder) is type(pipe.memory_encoder) and model.slot_width == 32
    assert torch.equal(latents(StoryPipeline.from_model(model)), latents(pipe))

def test_a_class_that_cannot_be_imported_is_named(pipe, tmp_path, monkeypatch):
    "The folder is opened where the module is not: one line, and the encoder may be passed instead."
    pipe.save_pretrained(tmp_path/'saved')
    with monkeypatch.context() as elsewhere, pytest.raises(StoryError) as e:
        elsewhere.delitem(sys.modules, 'my_encoder')
        elsewhere.setattr(sys, 'path', [place for place in sys.path if not Path(place, 'my_encoder.py').exists()])
        StoryPipeline.from_pretrained(tmp_path/'saved')
    assert str(e.value) == (f"{tmp_path/'saved'}: the class of its memory encoder, MeanColour of my_encoder, cannot be "
        "imported (No module named 'my_encoder'); set PYTHONPATH to where my_encoder lies")
    passed = StoryPipeline.from_pretrained(tmp_path/'saved', memory_encoder=pipe.memory_encoder)
    assert torch.equal(latents(passed), latents(pipe))

@pytest.mark.parametrize('entry, why', [(['json', 'dumps'], 'is no ModelMixin'), (['json', 'no'], 'cannot be imported'),
    (['', 'x'], 'cannot be imported'), ([3], r'memory_encoder(\[0\] must be text|=\[3\], expected \[module, class\])'), ('json', 'must be a list')])
def test_other_classes_are_refused(entry, why, pipe, tmp_path):
    pipe.save_pretrained(tmp_path/'saved')
    path = tmp_path/'saved/model_index.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'memory_encoder': entry}))
    for load in ARLDM.load, StoryPipeline.from_pretrained:
        with pytest.raises(StoryError, match=why): load(tmp_path/'saved')

def test_a_class_of_a_script_is_not_saved(pipe, tmp_path, monkeypatch):
    "No other process could import it; nothing is written."
    kind = type(pipe.memory_encoder)
    monkeypatch.setattr(kind, '__module__', '__main__')
    monkeypatch.setattr(sys.modules['__main__'], 'MeanColour', kind, raising=False)
    with pytest.raises(StoryError) as e: pipe.save_pretrained(tmp_path/'saved')
    assert str(e.value) == ('MeanColour is defined in __main__, from where no other process can import it; move the class '
        'to a file such as my_encoder.py and import it from there')
    assert not (tmp_path/'saved').exists()

def test_a_class_in_a_function_is_not_saved(tiny, tmp_path):
    class Local(ModelMixin, ConfigMixin): picture_side = 16
    pipe = with_encoder(tiny, Local())
    with pytest.raises(StoryError, match='Local is defined in test_own_encoder.test_a_class_in_a_function_is_not_saved'):
        pipe.save_pretrained(tmp_path/'saved')
    assert not (tmp_path/'saved').exists()

class Wrong(ModelMixin, ConfigMixin):
    picture_side = 16
    @register_to_config
    def __init__(self, kind='narrow'):
        super().__init__()
        self.layer = nn.Linear(1, 1)
    def forward(self, pictures, ids, real):
        n, S = ids.shape
        return dict(narrow=torch.zeros(n, S, 31), short=torch.zeros(n, S - 1, 32), one=torch.zeros(n, 32), none=None)[
            self.config.kind]

@pytest.mark.parametrize('kind, found', dict(narrow='(1, 36, 31)', short='(1, 35, 32)', one='(1, 32)',
    none='NoneType').items())
def test_wrong_slots_are_refused(kind, found, tiny):
    pipe = with_encoder(tiny, Wrong(kind))
    with pytest.raises(StoryError) as e: latents(pipe)
    assert str(e.value) == f'Wrong returned {found}, {CONTRACT}'

def test_an_encoder_says_its_picture_side(tiny, monkeypatch):
    monkeypatch.delattr(Wrong, 'picture_side')
    pipe = with_encoder(tiny, Wrong())
    with pytest.raises(StoryError) as e: latents(pipe)
    assert str(e.value) == ('Wrong has no picture_side; set it in __init__: how many pixels high and wide are the pictures '
        'it reads')

def test_new_words_need_a_method(encoder, monkeypatch):
    "Without `resize_words` the vocabulary stays as it was; with it the encoder hears of its new size."
    model = make_tiny().model
    model.memory_encoder = encoder
    n = len(model.vocab.memory_tokenizer)
    with pytest.raises(StoryError) as e: model.add_words(['a big hippopotamus'])
    assert str(e.value) == ("MeanColour has no method resize_words(size), so the model cannot learn new words such as "
        "'hippopotamus'")
    assert len(model.vocab.memory_tokenizer) == n and model.add_words(A) == []
    sizes = []
    monkeypatch.setattr(type(encoder), 'resize_words', lambda self, size: sizes.append(size), raising=False)
    assert model.add_words(['a big hippopotamus']) == ['hippopotamus'] and sizes == [n + 1]

def test_it_trains(encoder):
    "Gradients reach it, and the features of a frozen one can be cached."
    model = make_tiny().model
    model.memory_encoder = encoder
    tokens = model.vocab.encode(A)
    story = dict(frames=torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8),
                 memory=torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8), **tokens)
    class Stories(torch.utils.data.Dataset):
        def __len__(self): return 2
        def __getitem__(self, at): return story
    s = resolve('tiny', max_train_steps=2, train_batch_size=2, gradient_accumulation_steps=1, learning_rate=1e-3)
    before = encoder.colour.weight.detach().clone()
    losses = [r['loss'] for r in train_steps(model, Stories(), s)]
    assert len(losses) == 2 and all(np.isfinite(losses))
    assert not torch.equal(before, encoder.colour.weight)
    assert 'slots' in frozen_parts(model.freeze(('blip',)))
    pictures = torch.randn(2, 3, 16, 16)
    tokens = {k: v[:3] for k, v in tokens.items()}
    with torch.no_grad():   # as the cache asks for them: three captions of two pictures
        slots = model.encode_slots(pictures, tokens, which=torch.tensor([1, 0, 1]))
        assert torch.equal(slots, model.encode_slots(pictures[[1, 0, 1]], tokens))
