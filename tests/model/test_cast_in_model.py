"Cast cards in the model: every frame of their story sees them, nobody sees those of another, and without them nothing changes."
import copy, json

import pytest, torch

from arldm.core import asset
from arldm.data.dataset import to_memory
from arldm.model.arldm import ARLDM, TOKENS
from arldm.model.history import HistoryEmbeddings

STORIES = [['a big red star is at the beach on the left', 'it jumps', 'it goes to the right'],
           ['a small blue circle is in the city on the right', 'it rests', 'it meets a green square']]
NAMES = [['ada', 'a star'], ['bo']]    # of the cards of both stories

@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    net = ARLDM.create('tiny', ARLDM.load(asset('toy/arldm')).vocab, resolution=32, cast=True).eval()
    with torch.no_grad(): net.history.cast_embedding.weight += 1
    for name, m in net.unet.named_modules():
        if name.endswith(('attn2.to_out.0', 'conv_out')): m.weight.data *= 8
    return net

def make_batch(vocab, names=(), n_places=2):
    "A batch of both stories; the pictures of cards that are absent are noise, too."
    g = torch.Generator().manual_seed(0)
    def noise(*shape): return torch.randint(0, 256, (2, *shape, 3, 32, 32), dtype=torch.uint8, generator=g)
    batch = {k: torch.stack([vocab.encode(s)[k] for s in STORIES]) for k in TOKENS}
    batch |= dict(frames=noise(3), memory=noise(3))
    if not names: return batch
    batch['cast_memory'] = noise(n_places)
    for k in 'ids', 'real':
        rows = torch.zeros(2, n_places, vocab.length, dtype=torch.int64 if k == 'ids' else bool)
        for i, own in enumerate(names):
            if own: rows[i, :len(own)] = vocab.encode(own)[f'memory_{k}']
        batch[f'cast_{k}'] = rows
    return batch

def story_of(batch, i, n_cards=2):
    "The batch of story `i` alone, with as many places for cards."
    one = {k: v[i:i + 1] for k, v in batch.items()}
    return {k: v[:, :n_cards] if k.startswith('cast_') else v for k, v in one.items()}

def loss(model, batch, seeds=(0, 1), **options):
    options = dict(cond_dropout=.5) | options
    return model.loss(batch, [torch.Generator().manual_seed(k) for k in seeds], **options)

@torch.no_grad()
def test_a_story_alone(model):
    "A story costs what it costs beside one with more cards; padded, packed and cached all the same."
    batch = make_batch(model.vocab, NAMES)
    alone = [loss(model, story_of(batch, 0), [0]), loss(model, story_of(batch, 1, 1), [1])]
    both = loss(model, batch)
    torch.testing.assert_close(both, sum(alone)/2)
    torch.testing.assert_close(loss(model, batch, pack_context=True), both)
    cards = dict(memory=to_memory(batch['cast_memory']), ids=batch['cast_ids'], real=batch['cast_real'])
    cached = {k: v for k, v in batch.items() if k not in ('cast_memory', 'cast_ids')}
    torch.testing.assert_close(loss(model, cached | {'cast_slots': model.encode_cast(cards)}), both)
    # with one generator per story, nothing but the cards can make the difference
    without = loss(model, make_batch(model.vocab))
    assert abs(both - without) > 1e-4

@torch.no_grad()
def test_absent_cards_are_not_seen(model):
    "Whatever stands in the place of an absent card, NaN excepted, no frame sees it, dropped or not."
    batch = make_batch(model.vocab, NAMES)
    dropped = torch.tensor([[True, False, True]]*2)
    context, visible = model._batch_condition(batch, 0, dropped)
    S = model.vocab.length
    cards = visible.reshape(2, 3, 5, S)[:, :, 1:3]    # caption, two cards, two slots
    real = batch['cast_real']
    assert cards[0, 0].all() and cards[1, 0, 0].all()
    assert not cards[1, :, 1].any()
    assert torch.equal(cards[:, 1], real)
    # all-absent cards are no cards, and nothing that the encoder makes of no tokens reaches a frame
    nobody = make_batch(model.vocab, [[], []])
    torch.testing.assert_close(loss(model, nobody), loss(model, make_batch(model.vocab)))
    assert context.isfinite().all() and model._batch_condition(nobody, 0, dropped)[0].isfinite().all()

@torch.no_grad()
def test_no_cards_nothing_changes(model, tmp_path):
    "A model with the embedding is the same without cards; saved and opened, it is the same with them."
    plain = copy.deepcopy(model)
    del plain.history.cast_embedding
    plain.history.register_to_config(cast=False)
    bare = make_batch(model.vocab)
    assert torch.equal(loss(model, bare), loss(plain, bare))
    # without the embedding, a card is marked as a slot is
    batch = make_batch(model.vocab, NAMES)
    slots = plain.history.type_embedding.weight[1]
    want = loss(plain, batch)
    plain.history.add_cast()
    assert torch.equal(plain.history.cast_embedding.weight[0], slots) and torch.equal(loss(plain, batch), want)
    plain.history.cast_embedding.weight += 1
    assert torch.equal(loss(plain, batch), loss(model, batch))
    model.history.save_pretrained(tmp_path)
    again = HistoryEmbeddings.from_pretrained(tmp_path)
    assert torch.equal(again.cast_embedding.weight, model.history.cast_embedding.weight)
    # folders that were written before there were cards do not mention them
    HistoryEmbeddings(8).save_pretrained(tmp_path/'old')
    path = tmp_path/'old'/'config.json'
    config = json.loads(path.read_text())
    assert config.pop('cast') is False
    path.write_text(json.dumps(config))
    assert not hasattr(HistoryEmbeddings.from_pretrained(tmp_path/'old'), 'cast_embedding')

def test_gradients(model):
    "Every weight of the history has a gradient in every batch; that of the cast is zero without cards."
    history = model.history
    for batch, learns in (make_batch(model.vocab), False), (make_batch(model.vocab, NAMES), True):
        model.zero_grad()
        loss(model, batch, cond_dropout=0.).backward()
        assert all(p.grad is not None for p in history.parameters())
        assert bool(history.cast_embedding.weight.grad.any()) is learns
    model.zero_grad()
    model.eval()

@torch.no_grad()
def test_checkpoints_of_the_original_have_none(model):
    "They load into a model with the embedding, which keeps its own; it cannot be written for the original."
    source = ARLDM.create('tiny', model.vocab, resolution=32)
    other = copy.deepcopy(model).load_original(source.to_original())
    assert torch.equal(other.history.cast_embedding.weight, model.history.cast_embedding.weight)
    assert torch.equal(other.history.type_embedding.weight, source.history.type_embedding.weight)
    with pytest.raises(ValueError, match='history.cast_embedding.weight: the original has no such layer'):
        model.to_original()
