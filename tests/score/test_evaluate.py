"Scores: the SSID baseline's number to the letter, honest numbers beside it, nothing made up, nothing silent."
import json, math, os
from pathlib import Path

import numpy as np, pytest, torch, torch.nn.functional as F
from PIL import Image

from arldm.score import inception
from arldm.core import StoryError
from arldm.files.atomic import load_json
from arldm.score.feature_networks import Store, open_network
from arldm.score.inception import Inception
from arldm.score.coherence import FactAnswers, answers_per_frame
from arldm.score.evaluate import evaluate
from arldm.report.compare import compare_runs
from painted import Small, draw, painting, row, stories, story_file
from networks import clip_folder, published, regenerated

PARITY = Path(__file__).resolve().parents[1]/'parity'


# the SSID baseline's protocol, written down once more from its description

@pytest.fixture(scope='module')
def eyes():
    keys = json.loads((PARITY/'inception_keys.json').read_text())
    net = Inception()
    net.load_state_dict(regenerated({published(k): shape for k, shape in keys.items()}))
    for m in net.modules():                          # so that it tells pictures apart by more than rounding does
        if isinstance(m, torch.nn.Conv2d): m.weight.data *= 1.4
    return net

def resized(p): # short side 64, centre 64 x 64
    w, h = p.size
    w, h = (64, int(64*h/w)) if w <= h else (int(64*w/h), 64)
    x, y = round((w - 64)/2), round((h - 64)/2)
    return p.resize((w, h), Image.BILINEAR).crop((x, y, x + 64, y + 64))

@torch.no_grad()
def by_hand(eyes, reference, drawn):
    def rows(ps):
        x = torch.tensor(np.stack([np.asarray(p.resize((64, 64), Image.BILINEAR)) for p in ps])).permute(0, 3, 1, 2)/255
        x = F.interpolate(x, (299, 299), mode='bilinear', align_corners=False)
        return np.concatenate([eyes((b*255)).double().numpy() for b in x.split(8)])
    a, b = rows(map(resized, reference)), rows(drawn)
    (m1, c1), (m2, c2) = ((x.mean(0), (x - x.mean(0))/np.sqrt(len(x) - 1)) for x in (a, b))   # covariances are c.T @ c
    roots = np.linalg.svd(c1 @ c2.T, compute_uv=False)               # of the eigenvalues of their product, without its rounding
    return ((m1 - m2)**2).sum() + (c1**2).sum() + (c2**2).sum() - 2*roots.sum()

class Narrow(torch.nn.Module):
    "Some 24 features of an Inception, so that matrices stay small."
    name, side, num_features = 'inception', 299, 24
    def __init__(self, eyes):
        super().__init__()
        self.eyes = eyes
    def forward(self, x): return self.eyes(x)[:, ::86]

soak = pytest.mark.skipif(os.environ.get('ARLDM_SOAK') != '1', reason='long: set ARLDM_SOAK=1')

@pytest.mark.parametrize('first', [pytest.param(1, marks=soak), 2], ids=['visualization', 'continuation'])
def test_fid64_to_the_letter(eyes, tmp_path, first):
    "Each reference frame as often as it is reference, drawings squashed, the given frame on neither side."
    split = story_file(tmp_path, test=stories(1 + first, each=2, n=2, size=(90, 70)))['test']   # three pictures at least
    draw(tmp_path/'drawn', split, first, size=(80, 66))
    net = Narrow(eyes)
    got = evaluate(tmp_path, split, dict(inception=net), n_resamples=0, train=0)
    reference = [p for s in split for p in s.pictures()[first - 1:]]
    drawn = [Image.open(p).convert('RGB') for s in split for p in sorted((tmp_path/'drawn'/s.id).glob('*.png'))]
    assert row(got, 'FID64')['value'] == pytest.approx(by_hand(net, reference, drawn), rel=1e-4)
    assert row(got, 'FID64')['n'] == len(drawn) == (8, 6)[first - 1] and row(got, 'FID')['value'] != row(got, 'FID64')['value']

def test_fid64_needs_the_published_file(tmp_path, monkeypatch):
    torch.save({}, tmp_path/'w.pth')
    with pytest.raises(StoryError, match='SHA-256'): open_network('inception', tmp_path/'w.pth')
    monkeypatch.setattr(inception, 'INCEPTION_SHA256', '0'*64)
    with pytest.raises(StoryError, match='0000'): open_network('inception', tmp_path/'w.pth')


# the honest set

@pytest.fixture
def split(tmp_path): return story_file(tmp_path, train=stories(4, start=50), test=stories(8, each=2))['test']

def test_each_told_picture_once(tmp_path, split):
    "More stories about the same albums change FID64's weights, but not what an honest distance is of."
    draw(tmp_path/'run/drawn', split)
    one = evaluate(tmp_path/'run', split, dict(dinov2=Small()), n_resamples=0)
    assert 'each once' in row(one, 'FD-DINOv2')['note'] and row(one, 'FD-DINOv2')['note'].startswith('24 reference')
    assert [b['n'] for b in row(one, 'FD-DINOv2')['beside']] == [12, 12]

def test_told_again_is_at_nought(tmp_path):
    split = story_file(tmp_path, test=stories(8, each=1))['test']
    draw(tmp_path/'drawn', split, size=(40, 32), picture=lambda i, k: split[i].pictures()[k-1])
    got = evaluate(tmp_path, split, dict(dinov2=Small()))
    assert row(got, 'FD-DINOv2')['value'] == pytest.approx(0, abs=1e-9)
    assert row(got, 'similarity to the reference frame (dinov2)')['value'] == pytest.approx(1)
    assert row(got, 'neighbouring frames alike (dinov2)')['value'] is None or \
           row(got, 'neighbouring frames alike (dinov2)')['value'] == pytest.approx(1)
    assert row(got, 'precision')['value'] == row(got, 'coverage')['value'] == 1

def test_several_sets(tmp_path, split):
    "The value is the mean, the spread their standard deviation; a set that lacks frames is left out and named."
    for j, name in enumerate(('drawn', 'drawn2', 'drawn3')):
        draw(tmp_path/'run'/name, split, picture=lambda i, k: painting(j*10**4 + i*10 + k))
        draw(tmp_path/f'one{j}/drawn', split, picture=lambda i, k: painting(j*10**4 + i*10 + k))
    together = row(evaluate(tmp_path/'run', split, n_resamples=20), 'FD-fields')
    alone = [row(evaluate(tmp_path/f'one{j}', split, n_resamples=20), 'FD-fields')['value'] for j in range(3)]
    assert together['value'] == pytest.approx(np.mean(alone)) and together['spread'] == pytest.approx(np.std(alone, ddof=1))
    (tmp_path/'run/drawn3'/split.ids[0]/'1.png').unlink()
    out = evaluate(tmp_path/'run', split, n_resamples=0)
    assert out['seeds'] == 2 and any('drawn3, which is left out' in line for line in out['trouble'])

@pytest.mark.parametrize('first', ['asked', 'not asked'])
def test_sets_of_which_different_facts_can_be_asked(tmp_path, split, first):
    "A fact that one set has and the other has not, such as the landmark of a wrong place, is measured in the one that has it."
    for j, name in enumerate(('drawn', 'drawn2')): draw(tmp_path/'run'/name, split, picture=lambda i, k: painting(j*10**4 + i*10 + k))
    asked = [] # the first story once in each set
    def facts(story, pictures): raise AssertionError('asked for single frames')
    def by_frame(story, pictures):
        if story.id == split.ids[0]: asked.append(story.id)
        found = {k: {'stated place': [True]} for k in pictures}
        if (len(asked) == 1) == (first == 'asked'):
            for k in pictures: found[k]['seen landmark'] = [k % 2 == 0]
        return found
    facts.by_frame = by_frame
    got = evaluate(tmp_path/'run', split, facts=facts, n_resamples=20)
    even = [k % 2 == 0 for story in split for k in range(1, len(story) + 1)]
    assert len(asked) == 2 and row(got, 'stated facts')['value'] == 1
    assert row(got, 'seen facts')['value'] == pytest.approx(np.mean(even))
    assert [x['value'] for x in got['frames'] if x['name'] == 'seen facts'] == [k % 2 == 0 for k in range(1, len(split[0]) + 1)]

def test_more_tellings_do_not_narrow_the_interval(tmp_path):
    "Albums are drawn, not frames: four copies of each story say no more than one."
    width = {}
    for each in (1, 4):
        split = story_file(tmp_path/str(each), test=stories(12, each=each))['test']
        draw(tmp_path/str(each)/'drawn', split, picture=lambda i, k: painting(i//each*10 + k))
        r = row(evaluate(tmp_path/str(each), split), 'similarity to the reference frame (fields)')
        width[each] = r['high'] - r['low']
    assert width[4] == pytest.approx(width[1], rel=.05)

def test_clip_rows(tmp_path, split):
    net = open_network('clip', clip_folder(tmp_path/'clip'))
    draw(tmp_path/'run/drawn', split)
    got = evaluate(tmp_path/'run', split, dict(clip=net), n_resamples=10)
    with torch.no_grad():
        def pic(p): return net(torch.tensor(np.asarray(p.resize((32, 32), Image.BICUBIC))).permute(2, 0, 1)[None])[0]
        scores, ranks, xs, ys = [], [], [], []
        for s in split:
            words = net.words(list(s.captions))
            for k in range(3):
                cos = words @ pic(Image.open(tmp_path/'run/drawn'/s.id/f'{k+1}.png'))
                scores.append(100*max(0, cos[k].item()))
                xs, ys = [*xs, pic(Image.open(tmp_path/'run/drawn'/s.id/f'{k+1}.png'))], [*ys, words[k]]
                ranks.append(1/(1 + (cos > cos[k]).sum().item()))
    assert row(got, 'CLIP score')['value'] == pytest.approx(np.mean(scores), rel=1e-3)
    other = [100*max(0, (xs[i] @ ys[(i + 24) % 48]).item()) for i in range(48)]            # captions of albums half of all away
    assert row(got, 'CLIP score')['beside'][1] == dict(what='captions of other albums', value=pytest.approx(np.mean(other), rel=1e-3), n=48)
    assert row(got, 'rank of the own caption')['value'] == pytest.approx(np.mean(ranks), abs=.03)
    assert dict((b['what'], b['value']) for b in row(got, 'rank of the own caption')['beside'])['chance'] == pytest.approx(11/18)
    assert {f['name'] for f in got['frames']} >= {'CLIP score'} and row(got, 'CMMD')['value'] is not None


# what is missing, broken or too little

def test_missing_networks_skip_their_rows(tmp_path, split):
    draw(tmp_path/'drawn', split)
    got = evaluate(tmp_path, split, dict(dinov2=StoryError('weights are elsewhere')), n_resamples=0)
    empty = {r['name']: r['note'] for r in got['scores'] if r['value'] is None}
    assert empty['FD-DINOv2'] == 'not measured: weights are elsewhere' and 'no weights of inception' in empty['FID64']
    assert row(got, 'FD-fields')['value'] > 0 and not any(r.get('invalid') for r in got['scores'] if r['name'] in empty and
                                                          'not measured' in r['note'])

def test_features_that_are_no_numbers(tmp_path, split):
    class Bad(Small):
        def forward(self, x):
            x = super().forward(x)
            x[0, 0] = math.nan
            return x
    draw(tmp_path/'drawn', split)
    got = evaluate(tmp_path, split, dict(dinov2=Bad()), n_resamples=0)
    assert row(got, 'FD-DINOv2')['invalid'] and row(got, 'FD-DINOv2')['value'] is None
    assert 'not finite for' in row(got, 'FD-DINOv2')['note'] and row(got, 'FD-fields')['value'] > 0

def test_few_pictures_say_what_they_do(tmp_path, split):
    draw(tmp_path/'drawn', split, keep=lambda i: i < 6)
    note = row(evaluate(tmp_path, split, n_resamples=0), 'FD-fields')['note']
    assert 'pictures for 144 features' in note and 'reads high' in note

def test_one_album_one_frame(tmp_path):
    "No floors, no pairs, no intervals; and no crash."
    split = story_file(tmp_path, test=stories(1, each=2, n=1))['test']
    draw(tmp_path/'drawn', split)
    got = evaluate(tmp_path, split)
    assert all(r.get('low') is None for r in got['scores']) and any('only 1 album: there are no intervals' in line for line in got['trouble'])
    assert got['copies'] == [] and 'copies_floor' not in got

@pytest.mark.parametrize('n, note', [(1, 'cosine, centred; no other story to compare with'), (2, 'cosine, centred')])
def test_one_story_has_no_other_to_compare_with(n, note, tmp_path):
    split = story_file(tmp_path, train=stories(2, start=50), test=stories(n, each=1))['test']
    draw(tmp_path/'drawn', split)
    got = evaluate(tmp_path, split)
    assert row(got, 'similarity to the reference frame (fields)')['note'] == note
    floor = got['copies_floor']
    assert floor['network'] == 'fields' and floor['n'] == len(set(r for i in range(n) for r in split.rows(i).ravel()))
    assert -1 <= floor['similarity'] <= 1

def test_bad_folders(tmp_path, split):
    draw(tmp_path/'run/drawn', split, keep=lambda i: i < 4)
    good = split.ids[0]
    (tmp_path/'run/drawn'/good/'9.png').write_bytes((tmp_path/'run/drawn'/good/'1.png').read_bytes())
    (tmp_path/'run/drawn'/split.ids[1]/'2.png').unlink()
    (tmp_path/'run/drawn/unheard').mkdir()
    painting(0).save(tmp_path/'run/drawn/unheard/1.png')
    painting(0, (64, 64)).save(tmp_path/'run/drawn'/split.ids[2]/'1.png')
    (tmp_path/'run/drawn/a file').write_text('')
    lines = '\n'.join(evaluate(tmp_path/'run', split, n_resamples=0)['trouble'])
    for said in ('12 of 16 stories', '1 drawn story is not in the split and left out', 'unheard', '1 drawn frame is more', '1 frame of a drawn',
                 'have 2 sizes'): assert said in lines
    for data in b'', (tmp_path/'run/drawn'/good/'1.png').read_bytes()[:90]:
        (tmp_path/'run/drawn'/good/'1.png').write_bytes(data)
        before = (tmp_path/'run/scores.json').read_bytes()
        with pytest.raises(StoryError, match='1 of 11 drawings cannot be read') as e: evaluate(tmp_path/'run', split, n_resamples=0)
        assert '\n' not in str(e.value) and (tmp_path/'run/scores.json').read_bytes() == before

def test_an_empty_split(tmp_path):
    file = story_file(tmp_path, test=stories(1), val=[])
    draw(tmp_path/'drawn', file['test'])
    with pytest.raises(StoryError, match='val holds no stories'): evaluate(tmp_path, file['val'])

def test_the_same_twice(tmp_path, split):
    draw(tmp_path/'drawn', split)
    one, two = (evaluate(tmp_path, split, store=Store(tmp_path/'rows.db')) for _ in range(2))
    assert one == two == load_json(tmp_path/'scores.json')
    assert all(r['verdict'].startswith('no significant difference') for r in compare_runs(tmp_path, tmp_path))

def test_facts_and_characters(tmp_path):
    split = story_file(tmp_path, 'pororo', test=stories(6, each=1))['test']
    draw(tmp_path/'drawn', split, first=2)
    def facts(story, drawn): return {'remembered place': [int(story.id[1]) < 3]*len(drawn), 'stated size': [True]*len(drawn)}
    facts.chance = lambda: {'remembered place': .25}
    got = evaluate(tmp_path, split, facts=facts, characters=lambda ps: [{'pororo'} for _ in ps])
    assert row(got, 'remembered facts')['value'] == .5 and row(got, 'remembered facts')['n'] == 12
    assert row(got, 'remembered facts')['beside'] == [dict(what='chance', value=.25, n=12)]
    assert [f['k'] for f in got['frames'] if f['name'] == 'remembered facts'] == [2, 3]
    assert got['stories']['name'] == 'facts correct' and got['stories']['unit'] == '%' and got['stories']['values']['s0_0'] == 1
    assert row(got, 'character accuracy')['value'] == 0 and row(got, 'stated facts')['value'] == 1

def test_answers_are_counted_by_frame():
    place = FactAnswers(np.array([True, False, True]), np.array([0, 0, 1]), np.array([0, 1, 3]))
    size = FactAnswers(np.array([True]), np.array([0]), np.array([1]))
    both = FactAnswers.concat([place, size])
    assert both.share()([1, 1]) == .75 and both.share()([1, 0]) == pytest.approx(2/3)
    for answers in [place, size], [both]:
        right, total = answers_per_frame(answers, 5)
        assert right.tolist() == [1, 1, 0, 1, 0] and total.tolist() == [1, 2, 0, 1, 0]
    assert [x.tolist() for x in answers_per_frame([], 2)] == [[0, 0], [0, 0]]
