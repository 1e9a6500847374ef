"Style and characters against cast cards: the numbers of loops written out, floors of what does not belong together."
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from arldm.cli.score import score
from arldm.core import StoryError
from arldm.data.story import Story
from arldm.draw.matching import match_drawings
from arldm.files.pictures import to_png
from arldm.score.consistency import cosine_between, expected_cards, mean_over_stories
from arldm.score.evaluate import evaluate
from arldm.score.feature_networks import Csd, same_cut, whole_picture
from painted import Small, draw, painting, row, story_file

CAPTIONS = 'ADA runs.', 'He waits, Adam.', "Bo's dog meets Ada."          # who is named: Ada; nobody; both
CHARACTERS = 'character similarity to the cast (dinov2)'
FRAMES, CAST = 'style similarity of frames (csd)', 'style similarity to the cast (csd)'


def cast_stories(n=6, without=()):
    "Two frames or three, and cards of other shapes, a card more than are named; some have no cast."
    for i in range(n):
        frames = tuple(to_png(painting(100*i + k)) for k in range(2 + i % 2))
        cast = {} if i in without else {name: painting(100*i + 50 + j, (24, 60)) for j, name in enumerate(('Bo', 'Ada', 'Eve'))}
        yield Story(f's{i}', f'a{i}', CAPTIONS[:len(frames)], frames, cast)

@pytest.fixture(scope='module')
def csd():
    torch.manual_seed(0)
    net = Csd(28, 14, 64, 1, 8)
    for p in net.parameters(): p.data += .3*torch.randn_like(p)
    return net

@pytest.fixture
def split(tmp_path): return story_file(tmp_path, 'folder', test=cast_stories(without={5}))['test']

@torch.no_grad()
def unit(net, picture, cut):
    x = torch.from_numpy(np.asarray(cut(picture)).copy()).permute(2, 0, 1)[None]
    return torch.nn.functional.normalize(net(x), dim=1)[0].numpy()

def by_hand(split, net, cut, pictures, or_first=False): # -> mean over stories, with cards and among frames
    named = {1: ['Ada'], 2: ['Bo'] if or_first else [], 3: ['Bo', 'Ada']}
    cross, own = [], []
    for i, story in enumerate(split):
        x = [unit(net, p, cut) for p in pictures[i]]
        cards = {name: unit(net, p, cut) for name, p in story.cards().items()}
        of_frames = [np.mean([f @ cards[name] for name in named[k]]) for k, f in enumerate(x, 1) if cards and named[k]]
        if of_frames: cross.append(np.mean(of_frames))
        own.append(np.mean([a @ b for a, b in combinations(x, 2)]))
    return np.mean(cross), np.mean(own)

def test_rows_by_hand(tmp_path, split, csd):
    draw(tmp_path/'run/drawn', split)
    small = Small()
    got = evaluate(tmp_path/'run', split, dict(dinov2=small, csd=csd), n_resamples=20)
    drawn = [[p for _, p in sorted(match(split, tmp_path/'run', i).items())] for i in range(len(split))]
    reference = [s.pictures() for s in split]
    def square(p): return same_cut(p, 32, 16)
    def whole(p): return whole_picture(p, 28)
    def check(name, net, cut, which, **how):
        r = row(got, name)
        assert r['value'] == pytest.approx(by_hand(split, net, cut, drawn, **how)[which], abs=1e-5)
        assert r['beside'][0]['what'] == 'reference frames'
        assert r['beside'][0]['value'] == pytest.approx(by_hand(split, net, cut, reference, **how)[which], abs=1e-5)
        assert r['low'] < r['value'] < r['high'] and len(r['beside']) == 2
        return r
    assert check(CHARACTERS, small, square, 0)['n'] == 5 + 2 and 'not comparable to CIDS' in row(got, CHARACTERS)['note']
    assert check(CAST, csd, whole, 0, or_first=True)['n'] == 3*2 + 2*3 and 'not comparable to CSD' in row(got, CAST)['note']
    r = check(FRAMES, csd, whole, 1)
    x = [(i, unit(csd, p, whole)) for i, of_story in enumerate(drawn) for p in of_story]
    apart = [a @ b for (i, a), (j, b) in combinations(x, 2) if i != j]
    assert r['beside'][1] == dict(what='frames of other albums', value=pytest.approx(np.mean(apart), abs=1e-5), n=len(apart))
    assert got['networks'].keys() == {'fields', 'dinov2', 'csd'} and row(got, FRAMES)['network'] == 'csd'
    assert not [r for r in got['scores'] if r['network'] == 'csd' and r['name'] not in (FRAMES, CAST)]

def match(split, run, story): # {k: picture}
    from PIL import Image
    return {int(path.stem): Image.open(path).convert('RGB') for path in (run/'drawn'/split.ids[story]).glob('*.png')}

def test_a_frame_that_is_the_card(tmp_path, split):
    "1 for the card itself; the floor is what the card of another album reaches."
    draw(tmp_path/'drawn', split, picture=lambda i, k: split[i].cards().get('Ada', painting(7)))
    r = row(evaluate(tmp_path, split.first(5), dict(dinov2=Small()), n_resamples=0), CHARACTERS)
    assert r['value'] < 1 and r['beside'][1]['value'] < r['value']             # Bo is named in two frames
    frame, card = expected_cards(match_drawings(tmp_path, split.first(1)))
    assert (frame.tolist(), card.tolist()) == ([0], [split.cast(0)['Ada']])
    frame, card = expected_cards(match_drawings(tmp_path, split.first(2)), or_first=True)
    assert frame.tolist() == [0, 1, 2, 3, 4, 4] and card.tolist()[:2] == [split.cast(0)['Ada'], split.cast(0)['Bo']]

def test_who_is_listed_counts_instead_of_who_is_named(tmp_path):
    "As in ViStoryBench's stories: a caption may say she."
    story = next(cast_stories())
    listed = replace(story, about={'Bo': {'shown_in': '2'}, 'Ada': {'shown_in': 'none'}})
    split = story_file(tmp_path, 'folder', test=[listed])['test']
    draw(tmp_path/'drawn', split)
    drawings, cast = match_drawings(tmp_path, split), split.cast(0)
    frame, card = expected_cards(drawings)
    assert ([int(drawings.k[i]) for i in frame], card.tolist()) == ([2], [cast['Bo']])
    frame, card = expected_cards(drawings, or_first=True)
    assert card.tolist() == [cast['Bo'] if drawings.k[i] == 2 else [*cast.values()][0] for i in frame]

def test_without_cards_or_weights(tmp_path, csd):
    "No cards, no row about them; style only if it is named, and if its file is bad, the reason."
    split = story_file(tmp_path, 'folder', test=cast_stories(without=range(6)))['test']
    draw(tmp_path/'drawn', split)
    def rows(**nets): return {r['name']: r for r in evaluate(tmp_path, split, nets, n_resamples=0)['scores']}
    assert not [name for name in rows(dinov2=Small()) if 'cast' in name or 'style' in name]
    assert [name for name in rows(csd=csd) if 'cast' in name or 'style' in name] == [FRAMES]
    empty = rows(csd=StoryError('x.pth: expected weights of CSD'))
    assert empty[FRAMES]['value'] is empty[CAST]['value'] is None and 'x.pth' in empty[FRAMES]['note']

def published_names(net): # the tensors of our network as files of CSD name them
    found = {'last_layer_content': torch.zeros(2)}
    for name, x in net.state_dict().items():
        for ours, file in {'in_proj.': 'attn.in_proj_', 'out_proj.': 'attn.out_proj.', 'c_': 'mlp.c_',
                           'layers.': 'transformer.resblocks.'}.items(): name = name.replace(ours, file)
        found[name if name == 'last_layer_style' else f'backbone.{name}'] = x
    return found

def test_arldm_score_takes_csd(tmp_path, split, csd, capsys):
    "The command with a file of weights gives the same rows as the network itself."
    draw(tmp_path/'run/drawn', split)
    torch.save(published_names(csd), tmp_path/'csd.pth')
    Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28)).save_pretrained(tmp_path/'dino')
    got = score(tmp_path/'run', data=split.file.path, dinov2=tmp_path/'dino', csd=tmp_path/'csd.pth', resamples=0, train_pictures=0)
    alone = evaluate(tmp_path/'run', split, dict(csd=csd), n_resamples=0)
    for name in FRAMES, CAST: assert row(got, name)['value'] == pytest.approx(row(alone, name)['value'], abs=1e-6)
    said = capsys.readouterr().out
    assert FRAMES in said and CHARACTERS in said and 'cards of other albums' in said

def test_a_story_counts_once_and_albums_are_resampled():
    stat = mean_over_stories([1, 1, 1, 0], [7, 7, 7, 2], [0, 0, 0, 1])
    assert (stat(np.ones(2)), stat([3, 1]), stat([0, 1])) == (.5, .75, 0)

def test_cosine_between_is_that_of_all_pairs():
    x, album = np.random.default_rng(0).normal(size=(20, 5)), np.repeat([4, 1, 0, 9], [9, 1, 7, 3])
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    apart = [x[i] @ x[j] for i, j in combinations(range(20), 2) if album[i] != album[j]]
    assert cosine_between(x, album) == (pytest.approx(np.mean(apart)), len(apart))
