"Training with casts: which stories show their cards, and the same losses with a cache, after a stop and in two processes."
import json, os, warnings

import numpy as np, pytest, torch
from PIL import Image

from arldm.cli import training_run
from arldm.cli.train import train
from arldm.core import StoryError
from arldm.data.dataset import StoryDataset, collate
from arldm.data.story import Story, StoryFile, write_stories
from arldm.draw import validation_strips
from arldm.draw.pipeline import StoryPipeline
from arldm.draw.test_set import draw_split
from arldm.draw.validation_strips import draw_strips
from arldm.files.pictures import decode, to_png
from arldm.model.arldm import ARLDM
from arldm.settings import FREEZE, resolve
from arldm.train.cache import build_cache, frozen_inputs
from arldm.train.checkpoint import read_log
from arldm.train.lora import load_trained, replace_trained
from arldm.train.setup import all_texts, check_training_cast, make_model
from bases import TOKENIZERS, write_home
from test_elastic import end, fork, free_port, leg

def png(seed):
    "A picture that is not square."
    return to_png(Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 28, 3), 'uint8')))

NAMES = 'Ada', 'Bo', 'Zed'

def story(i, n_cards, length=3):
    captions = [f'Ada and Bo sit {k} {i}.' for k in range(length)]
    cast = {name: png(1000 + 10*i + k) for k, name in enumerate(NAMES[:n_cards])}
    return Story(str(i), str(i), captions, [png(10*i + k) for k in range(length)], cast)

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "Stories with two, no, one and three cards."
    path = tmp_path_factory.mktemp('cast')/'stories.h5'
    train = [story(i, n) for i, n in enumerate((2, 0, 1, 3))]
    write_stories(path, dict(train=train, val=[story(8, 1), story(9, 0)]), 'toy')
    return path

HOW = dict(resolution=32, crops=2, num_validation_stories=2, learning_rate=3e-3, lr_scheduler='constant')

@pytest.fixture(scope='module')
def model(data, tmp_path_factory):
    return make_model(resolve('tiny', **HOW, cast_probability=.5), StoryFile(data), tmp_path_factory.mktemp('words'))

def stories(data, model, split='train', probability=.5, **how):
    return StoryDataset(StoryFile(data)[split], model, train=True, cast_probability=probability, **dict(crops=2) | how)


# which stories show their cards

def test_how_often_and_when(data, model):
    some = stories(data, model)
    shown = [[name for name, _, _ in some.choose_cast(3, epoch)] for epoch in range(200)]
    assert 80 < sum(map(bool, shown)) < 120 and [*NAMES] in shown and len({len(x) for x in shown}) == 2
    assert shown == [[name for name, _, _ in stories(data, model).choose_cast(3, epoch)] for epoch in range(200)]
    other = [bool(some.choose_cast(0, epoch)) for epoch in range(200)]
    assert other != [bool(x) for x in shown] and not any(some.choose_cast(1, epoch) for epoch in range(99))
    again = stories(data, model, seed=1)
    assert [bool(again.choose_cast(0, epoch)) for epoch in range(200)] != other

def test_always_and_never(data, model):
    assert all(stories(data, model, probability=1).choose_cast(3, epoch) for epoch in range(99))
    never = stories(data, model, probability=0)
    assert not any('cast' in key for key in never[3]) and 'cards' not in frozen_inputs(never)
    plain = StoryDataset(StoryFile(data)['train'], model, train=True, crops=2)
    always = stories(data, model, probability=1)
    for key in 'frames', 'memory': assert torch.equal(always[3, 7][key], plain[3, 7][key])

def test_cards_are_cropped_as_in_drawing(data, model):
    "At the centre, straight from the picture to the size that BLIP reads."
    shown = StoryDataset(StoryFile(data)['val'], model, 16, cast_probability=1)[0]
    side = model.memory_side
    ada = decode(png(1080))
    width = int(side*28/20)
    left = round((width - side)/2)
    expected = ada.resize((width, side), Image.BILINEAR).crop((left, 0, left + side, side))
    assert np.array_equal(shown['cast_memory'][0].permute(1, 2, 0), expected)
    tokens = model.vocab.encode(['Ada'])
    assert torch.equal(shown['cast_ids'], tokens['memory_ids']) and torch.equal(shown['cast_real'], tokens['memory_real'])

def test_stories_of_a_batch(data, model):
    always = stories(data, model, probability=1)
    batch = collate([always[i] for i in range(4)])
    n_real = batch['cast_real'].any(-1).sum(1).tolist()
    assert n_real == [2, 0, 1, 3] and batch['cast_memory'].shape[:2] == (4, 3) and batch['cast_memory'].dtype == torch.uint8
    assert torch.equal(batch['cast_memory'][2, 0], always[2]['cast_memory'][0]) and not batch['cast_memory'][2, 1:].any()
    assert not any('cast' in key for key in collate([always[1]]))

def test_cards_without_room(data, tmp_path):
    model = make_model(resolve('tiny', n_slots=3, resolution=32), StoryFile(data), tmp_path)
    few = stories(data, model, probability=1)
    assert [len(few.cast(i)) for i in range(4)] == [2, 0, 1, 2]
    assert check_training_cast(few) == ('1 story has more cast cards than the 2 for which the model has room, and the last are left '
                               'out; of story 3: Zed')
    assert check_training_cast(stories(data, model, probability=0)) == ''

def test_names_are_words_that_train(data):
    "Also the name of a card that no caption uses."
    split = StoryFile(data)['train']
    assert 'Zed' in all_texts(split, resolve('tiny', cast_probability=.5)) and 'Zed' not in all_texts(split, resolve('tiny'))


# the same losses

def loss_and_gradient(model, batch):
    model.zero_grad()
    loss = model.loss(batch, torch.Generator().manual_seed(1), cond_dropout=.3)
    loss.backward()
    return loss.item(), model.history.cast_embedding.weight.grad.clone()

def test_the_embedding_trains_only_with_cards(data, model):
    always = stories(data, model, probability=1)
    _, with_cards = loss_and_gradient(model, collate([always[0], always[1]]))
    _, without = loss_and_gradient(model, collate([always[1]]))
    assert with_cards.abs().max() > 1e-6 and not without.any()

@pytest.mark.parametrize('frozen', ['attention', 'none'])
def test_cached_cards(data, model, tmp_path, frozen):
    model.freeze(FREEZE[frozen])
    pictures = stories(data, model, probability=1, resolution=64)
    cached = build_cache(model, pictures, tmp_path/'cache', progress=False)
    keys = {'cast_slots' if frozen == 'attention' else 'cast_memory', 'cast_ids', 'cast_real'}
    batch = collate([cached[i, 5] for i in range(4)])
    assert {key for key in batch if 'cast' in key} == keys
    (a, grad_a), (b, grad_b) = (loss_and_gradient(model, x) for x in (collate([pictures[i, 5] for i in range(4)]), batch))
    assert a == pytest.approx(b, rel=1e-5) and torch.allclose(grad_a, grad_b, atol=1e-6)
    again = build_cache(model, stories(data, model, resolution=64), tmp_path/'cache', progress=False)   # another probability, the same cards
    assert len(again) == 4
    with pytest.raises(StoryError, match='was computed from other cards 4, not None; name another folder'):
        build_cache(model, stories(data, model, probability=0, resolution=64), tmp_path/'cache', progress=False)

def test_a_broken_card_is_named(data, model, tmp_path):
    broken = dict(train=[Story('7', 'a', ('x',), (png(0),), {'Ada': png(1)[:60]})])
    write_stories(tmp_path/'x.h5', broken, 'toy')
    always = stories(tmp_path/'x.h5', model, probability=1)
    with pytest.raises(StoryError, match='^story 7, card Ada of the cast: not a whole picture'): always[0]
    model.freeze(FREEZE['attention'])
    with pytest.raises(StoryError, match='^story 7: not a whole picture'): build_cache(model, always, tmp_path/'c', progress=False)


# runs

CAST = dict(HOW, preset='tiny', cast_probability=.5, checkpointing_steps=1, freeze='attention')

@pytest.fixture(scope='module')
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')/'run'
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        train(folder, data=data, **CAST)
    return folder

def test_a_run_with_casts(run, data, model, capsys):
    "Its pipeline knows cards, which moved away from slots; its validation stories and strips show theirs."
    history = ARLDM.load(run/'pipeline').history
    assert history.config.cast and not torch.equal(history.cast_embedding.weight[0], history.type_embedding.weight[1])
    assert json.loads((run/'settings.json').read_text())['cast_probability'] == .5
    train(run.with_name('other'), data=data, dry_run=True, **CAST)
    assert 'would train on 4 stories (3 with a cast, shown with probability 0.5); nothing' in capsys.readouterr().out
    with_cast, without = (Image.open(run/f'strips/000001-{name}.png').height for name in '89')
    assert with_cast > without + 100

def test_stopped_and_resumed(run, data, tmp_path, monkeypatch):
    monkeypatch.setattr(training_run, '_try_strip', lambda *_: None)
    for steps in 1, 3: train(tmp_path/'run', data=data, **CAST, max_train_steps=steps)
    rows = [[{k: r[k] for k in ('loss', 'grad_norm', 'val_loss')} for r in read_log(x/'log.csv')] for x in (run, tmp_path/'run')]
    assert len(rows[0]) == 3 and rows[0] == rows[1]
    with pytest.raises(StoryError, match='run was trained with cast_probability=0.5, not 0.25; use another run folder'):
        train(tmp_path/'run', max_train_steps=4, cast_probability=.25)

def test_from_published_weights(data, tmp_path):
    "Stable Diffusion and BLIP in their own layouts: a setting adds the embedding of cards, which is trained and drawn with."
    base = write_home(tmp_path)
    how = dict(HOW, preset='ssid', model=str(base/'sd'), blip=str(base/'itm.pth'), bert=str(TOKENIZERS/'bert'),
               resolution=64, train_batch_size=1, max_train_steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for name, probability in ('with', 1.), ('without', 0.):
            train(tmp_path/name, data=data, cast_probability=probability, **how)
    model, plain = (ARLDM.load(tmp_path/name/'pipeline') for name in ('with', 'without'))
    assert model.history.config.cast and not plain.history.config.cast
    assert not torch.equal(model.history.cast_embedding.weight[0], model.history.type_embedding.weight[1])
    pipe = StoryPipeline.from_pretrained(tmp_path/'with/pipeline')
    one = StoryFile(data)['train'][0]
    cast = dict(zip(one.cards(), map(decode, one.cast.values())))
    few = dict(num_inference_steps=2, guidance_scale=1., seed=3)
    shown, swapped = (pipe(list(one.captions), cast=cards, **few).frames[0][0]
                      for cards in (cast, dict(zip(cast, reversed(cast.values())))))
    assert np.abs(np.asarray(shown, int) - np.asarray(swapped, int)).max() > 0

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='processes are forked')
def test_two_processes(data, tmp_path):
    "Of the two, one may have stories with cards and the other none."
    for world_size in 1, 2:
        port = free_port()
        how = dict(HOW, train_batch_size=1, cast_probability=.5, num_validation_stories=2)
        started = [fork(lambda rank=rank: leg(tmp_path/f'{world_size}', data, 3, how, rank, world_size, port)) for rank in range(world_size)]
        for process in started:
            code, lines = end(*process)
            assert code == 0, '\n'.join(lines)
    one, two = ([r['loss'] for r in read_log(tmp_path/name/'log.csv')] for name in '12')
    assert len(one) == 3 and one == pytest.approx(two, rel=1e-5)

def test_no_cast_to_show(data, tmp_path):
    write_stories(tmp_path/'x.h5', dict(train=[story(1, 0)], val=[story(8, 1)]), 'toy')
    with pytest.raises(StoryError) as e: train(tmp_path/'run', data=tmp_path/'x.h5', **CAST)
    assert str(e.value) == (f'{tmp_path}/x.h5: no story of split train has a cast to show; leave out --cast-probability, '
                            'or convert stories with casts')
    assert not (tmp_path/'run').exists()
    for wrong in -.1, 1.5, float('nan'):
        with pytest.raises(StoryError, match='cast_probability must be between 0 and 1, got'): resolve(cast_probability=wrong)

def test_without_the_setting_nothing_changes(data, tmp_path):
    "Although the stories have casts: no embedding, and no card."
    model = make_model(resolve('tiny', **HOW), StoryFile(data), tmp_path)
    assert not model.history.config.cast and not hasattr(model.history, 'cast_embedding')


# a LoRA, and drawing

def test_the_embedding_beside_a_lora(run, data, tmp_path, monkeypatch):
    "It trains in full, and comes and goes with the LoRA."
    monkeypatch.setattr(training_run, '_try_strip', lambda *_: None)
    StoryPipeline.from_model(make_model(resolve('tiny', **HOW, n_slots=3, cast_probability=.5), StoryFile(data), tmp_path)).save_pretrained(tmp_path/'base')
    base = ARLDM.load(tmp_path/'base')
    replace_trained(base, {k: x.detach().clone() for k, x in base.named_parameters() if k.startswith('history.') and 'cast' not in k})
    assert not base.history.config.cast
    StoryPipeline.from_model(base).save_pretrained(tmp_path/'plain')
    train(tmp_path/'run', data=data, **{**CAST, 'freeze': 'all'}, model=str(tmp_path/'plain'), lora_rank=2, max_train_steps=1)
    trained = ARLDM.load(tmp_path/'run/pipeline').history.cast_embedding.weight
    base = ARLDM.load(tmp_path/'plain')
    before = load_trained(base, tmp_path/'run/lora/trained_weights.safetensors')
    assert base.history.config.cast and torch.equal(base.history.cast_embedding.weight, trained)
    replace_trained(base, before)
    assert not base.history.config.cast and 'history.cast_embedding.weight' not in base.state_dict()

def test_test_sets_and_strips_are_drawn_with_casts(run, data, tmp_path, monkeypatch):
    "If the model knows cards: other pictures for the story that has one, the same for the others."
    monkeypatch.setattr(validation_strips, 'STRIP_STEPS', 1)
    drawn = []
    for name in 'with', 'without':
        model = ARLDM.load(run/'pipeline')
        if name == 'without':
            replace_trained(model, {k: x.detach().clone() for k, x in model.named_parameters() if k.startswith('history.') and 'cast' not in k})
        pipe = StoryPipeline.from_model(model)
        found = dict(draw_split(pipe, StoryFile(data)['val'], tmp_path/name, num_inference_steps=1))
        drawn.append({i: np.stack([np.array(f) for f in frames]) for i, frames in found.items()})
        strip = draw_strips(tmp_path, resolve('tiny', **HOW), StoryFile(data), model, 1)['strips/8']
        assert (strip.height > 340) == (name == 'with')
    assert np.array_equal(drawn[0]['9'], drawn[1]['9']) and not np.array_equal(drawn[0]['8'], drawn[1]['8'])
