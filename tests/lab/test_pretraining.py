"Questions about pictures have the right answers, pretraining resumes exactly, and a linear probe reads what is there."
import pytest
import torch
from torch import nn

from arldm.core import StoryError, asset
from arldm.draw.pipeline import StoryPipeline
from arldm.lab import pretraining as m
from arldm.toy.reader import read, read_cards
from arldm.toy.scene import Figure, Look, Scene, has_hard
from arldm.train.cache import weights_digest
from arldm.train.checkpoint import save_checkpoint

ADA, BO = Look('red', 'star', 'big', 'hat', 'dots', 'pink'), Look('blue', 'circle', 'small', 'nothing', 'plain', 'nothing')
SCENE = Scene('beach', 'night', (Figure(ADA, 'left', 'jump'), Figure(BO, 'right')), 'palm')

def answered(answers): # question -> its answer, without those that have none
    return {q: choices[a] for (q, choices), a in zip(m.QUESTIONS.items(), answers) if a != -100}

def test_the_answers_are_the_facts_of_the_scene():
    got = answered(m.answers_of(SCENE.figures, 'Along comes Bo.', SCENE))
    names = {q: a for q, a in got.items() if q.startswith('text ')}
    assert names == {f'text {name}': name == 'bo' for name in ('ada', 'bo', 'cleo', 'dan', 'eve', 'finn', 'ivy', 'leo')}
    assert {q: a for q, a in got.items() if q not in names} == {
        'place': 'beach', 'time': 'night', 'landmark': ('beach', 'palm'),
        'left figure': True, 'left colour': 'red', 'left shape': 'star', 'left size': 'big', 'left accessory': 'hat',
        'left pattern': 'dots', 'left scarf': 'pink', 'left action': 'jump', 'middle figure': False,
        'right figure': True, 'right colour': 'blue', 'right shape': 'circle', 'right size': 'small',
        'right accessory': 'nothing', 'right pattern': 'plain', 'right scarf': 'nothing', 'right action': 'stand'}

def test_examples_are_what_their_pictures_show():
    seen = [set() for _ in m.QUESTIONS]
    for i in range(300):
        picture, text, answers = m.slot_example(i)
        if i % 4: 
            scene, = read([picture])
            assert answers == m.answers_of(scene.figures, text, scene) and not has_hard(scene)
        else:
            look, = read_cards([picture])
            assert answers == m.answers_of((Figure(look, 'middle'),), text) and text in ('Ada', 'Bo', 'Cleo', 'Dan', 'Eve', 'Finn', 'Ivy', 'Leo')
            assert not answered(answers).keys() & {'place', 'time', 'landmark', 'left colour', 'right colour'}
        for of_question, answer in zip(seen, answers): of_question.add(answer)
    for (question, choices), of_question in zip(m.QUESTIONS.items(), seen):
        assert {*range(len(choices))} <= of_question, question             # every answer occurs

@pytest.fixture
def pipe(): return StoryPipeline.from_pretrained(asset('toy/base'))

def test_padding_has_no_answers(pipe):
    "Only the tokens of the text are mixed."
    pictures, ids, real, _ = m.slot_examples(6, pipe.model.vocab)
    head = nn.Linear(pipe.memory_encoder.config.text['hidden_size'], sum(map(len, m.QUESTIONS.values())))
    def logits(ids):
        with torch.no_grad(): return torch.cat(m.answer_logits(pipe.memory_encoder, head, pictures, ids, real, torch.Generator().manual_seed(1)), -1)
    others = torch.where(real, ids, torch.randint(5, 30, ids.shape))
    assert not torch.equal(others, ids) and torch.allclose(logits(ids), logits(others), atol=1e-5)
    assert not torch.allclose(logits(ids), logits(ids.roll(1, 0)), atol=1e-2)

@pytest.mark.parametrize('pretrain, part', [(m.pretrain_memory_encoder, 'memory_encoder'), (m.pretrain_text_encoder, 'text_encoder')])
def test_pretraining_goes_on(pretrain, part, tmp_path):
    "Stopped and resumed it has the weights of one that was not; nothing else changes; one from other weights is refused."
    how = dict(max_train_steps=4, train_batch_size=3, n=8)
    def start(): return StoryPipeline.from_pretrained(asset('toy/base'))
    pipe = start()
    *_, whole = pretrain(tmp_path/'a', pipe, **how)
    assert whole is getattr(pipe, part)
    for name, component in start().components.items():
        if isinstance(component, nn.Module): assert (weights_digest(component) == weights_digest(getattr(pipe, name))) == (name != part)
    some = pretrain(tmp_path/'b', start(), **how)
    for _ in range(2): next(some)
    save_checkpoint(tmp_path/'b/checkpoints', 2, some.gi_yieldfrom.gi_frame.f_locals['parts'])
    some.close()
    *rest, resumed = pretrain(tmp_path/'b', start(), **how)
    assert [step for step, _ in rest] == [3, 4] and not resumed.training
    assert weights_digest(resumed) == weights_digest(whole)
    assert [*pretrain(tmp_path/'b', start(), **how)][:-1] == []         # no step is left
    with pytest.raises(StoryError, match='start='): next(pretrain(tmp_path/'b', pipe, **how))

def test_words_so_far():
    words = m.words_so_far(torch.tensor([[1, 3, 1, 0]]), 4)
    assert words.tolist() == [[[False, True, False, False], [False, True, False, True], [False, True, False, True], [True, True, False, True]]]

def test_the_loss_of_words_is_least_for_the_words_themselves(pipe):
    "A head that answers with the log-odds of the mixed words, against others; names weigh five times as much."
    tokens = pipe.model.vocab.encode(['Ada jumps.', 'Bo sleeps in the city.'])
    real, n_words = tokens['caption_real'], 1 + int(tokens['caption_ids'].max())
    words = m.words_so_far(tokens['caption_ids'], n_words)
    weights = m._word_weights(pipe.model.vocab, n_words)
    names = pipe.model.vocab.encode(['Ada', 'Bo'])['caption_ids'][:, 1]
    assert (weights[names] == 5).all() and (weights == 5).sum() <= 8 and (weights[weights != 5] == 1).all()
    def loss(encoded, head):
        torch.manual_seed(0)
        return m._words_loss(encoded, real, words, weights, head).item()
    right = loss(words.float(), lambda mixed: torch.logit(mixed.clamp(1e-6, 1 - 1e-6)))
    assert right < loss(words.float(), lambda mixed: torch.logit(mixed.roll(1, -1).clamp(1e-6, 1 - 1e-6)))
    assert right < loss(words.float(), lambda mixed: torch.zeros_like(mixed))

def test_a_linear_probe_reads_what_is_there(pipe, monkeypatch):
    "From slots that are the answers themselves it reads all."
    made = m.slot_examples(1500, pipe.model.vocab, first=10_000_000)
    one_hot = [nn.functional.one_hot(answers.clamp(min=0), len(choices)) for answers, choices in zip(made[3].T, m.QUESTIONS.values())]
    slots = torch.cat(one_hot, -1).float()
    rows = iter(slots.split(250))
    class Answers(nn.Module):
        def forward(self, pictures, ids, real): return next(rows)[:, None].expand(-1, ids.shape[1], -1)
    monkeypatch.setattr(pipe, 'memory_encoder', Answers())
    assert set(m.linear_probe(pipe, 1200, 300).values()) == {1.}
