"CIDS: boxes as transformers finds them, crops as CLIP wants them, the best assignment, and ViStoryBench's numbers by hand."
import json
from itertools import combinations, permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessor, CLIPVisionConfig, GroundingDinoConfig

from arldm.cli.convert import convert
from arldm.cli.report import report
from arldm.cli.score import score
from arldm.core import StoryError
from arldm.data.story import Story, StoryFile
from arldm.draw.matching import match_drawings
from arldm.files.pictures import to_png
from arldm.files.row_store import Store
from arldm.score.cids import CUT_OUT, FoundCharacters, _differences, assign, cids, cids_names, cut_out_cast, expected_characters
from arldm.score.cutting_out import CharacterCutter, Detector, box_corners, clip_crop, detector_size, open_detector
from arldm.score.evaluate import evaluate
from arldm.score.feature_networks import open_network
from networks import clip_folder, detector_folder
from painted import Small, draw, painting, row, story_file
from vistory import write_told, write_vistory_data

CROSS, SELF, FOUND = cids_names('character')

@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "Folders of a detector and of CLIP with random weights."
    root = tmp_path_factory.mktemp('weights')
    return detector_folder(root/'dino'), clip_folder(root/'clip')

@pytest.fixture(scope='module')
def detector(folders): return open_detector(folders[0])

def test_no_assignment_is_better():
    "Of 200 matrices of up to 5 rows and columns, every other one with many equal numbers."
    rng = np.random.default_rng(0)
    for n in range(200):
        r, c = rng.integers(0, 6, 2).tolist()
        similarity = rng.integers(-3, 4, (r, c)).astype(float) if n % 2 else rng.normal(size=(r, c))
        column = assign(similarity)
        taken = column[column >= 0]
        assert len(column) == r and len(taken) == min(r, c) == len(set(taken)) and (taken < c).all()
        wide = similarity if r <= c else similarity.T
        orders = np.array([*permutations(range(max(r, c)), min(r, c))], int)       # (orders, rows of `wide`)
        best = wide[np.arange(len(wide)), orders].sum(1).max()
        assert similarity[np.flatnonzero(column >= 0), taken].sum() == pytest.approx(best)

def test_boxes_are_those_of_transformers(folders, detector):
    "Picture, tokens, scores and boxes as its processor makes them, in two shapes."
    theirs = AutoProcessor.from_pretrained(folders[0])
    for size, text in ((150, 120), 'A red rabbit'), ((100, 300), 'character'):
        picture = painting(3, size)
        inputs = theirs(images=picture, text=f'{text.lower()}.', return_tensors='pt')
        assert inputs['pixel_values'].shape[:1:-1] == detector_size(size, 96, 129) and inputs['input_ids'][0].tolist() == detector.tokens(text)
        with torch.no_grad(): out = detector.model(**inputs)
        wanted = theirs.post_process_grounded_object_detection(out, inputs['input_ids'], threshold=.25, target_sizes=[(1, 1)])[0]
        order = wanted['scores'].argsort(descending=True)
        found = detector(picture, text)
        assert len(found) > 1 and np.allclose(found[:, 0], wanted['scores'][order], atol=1e-4)
        corners = np.concatenate([found[:, 1:3] - found[:, 3:]/2, found[:, 1:3] + found[:, 3:]/2], 1)
        assert np.allclose(corners, wanted['boxes'][order], atol=1e-4)
    assert len(detector.tokens('red '*90)) == 32                               # no more than the model takes

def test_no_numbers_is_one_line(folders):
    detector = open_detector(folders[0])
    for p in detector.model.model.decoder.parameters(): p.data.fill_(float('nan'))
    with pytest.raises(StoryError, match='invalid: the detector gave no numbers for 1 pictures'):
        CharacterCutter(detector, Small()).boxes(lambda i: to_png(painting(1)), ['character'], 'drawn')

def test_crops(detector):
    "Corners as the evaluator's integers make them; the crop as CLIP's processor makes it."
    boxes = np.random.default_rng(0).uniform(-.1, 1.1, (200, 4)).astype('float32')
    wanted = []
    for cx, cy, w, h in (torch.from_numpy(boxes)*torch.tensor([90., 70, 90, 70])).int().tolist():
        x0, y0, x1, y1 = [max(0, min(v, m)) for v, m in zip((cx - .5*w, cy - .5*h, cx + .5*w, cy + .5*h), (90, 70)*2)]
        box = [*map(round, (x0, y0, x1, y1))]
        if box[2] > box[0] and box[3] > box[1]: wanted.append(box)
    assert box_corners(boxes, (90, 70)).tolist() == wanted and len(wanted) < 200
    assert detector_size((100, 300), 96, 128) == (43, 129)                     # rounded as GroundingDINO's own code rounds
    processor = CLIPImageProcessor(size=dict(shortest_edge=32), crop_size=dict(height=32, width=32), do_rescale=False, do_normalize=False)
    for size in (90, 51), (33, 80), (5, 7), (32, 32):
        theirs = np.asarray(processor(painting(2, size))['pixel_values'][0])
        assert (np.asarray(clip_crop(painting(2, size), 32)).transpose(2, 0, 1) == theirs).all()

def test_cids_of_a_character():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 4))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    character, found = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2]), np.array([1, 0, 1, 1, 0, 1, 0, 0, 0], bool)
    got = cids(FoundCharacters(x, found), character, x[[1, 4, 6]])
    mine = x[[0, 2, 3]]
    assert got[0] == pytest.approx([(mine @ x[1]).mean(), np.mean([a @ b for a, b in combinations(mine, 2)])])
    assert got[1] == pytest.approx([x[5] @ x[4], 1]) and got[2].tolist() == [0, 0]


def test_what_is_as_published():
    "The sizes of GroundingDINO-T, as transformers' own defaults have them, and of CLIP ViT-L/14."
    vision = CLIPVisionConfig(hidden_size=1024, patch_size=14, num_hidden_layers=24, num_attention_heads=16, image_size=224)
    dino = SimpleNamespace(model=SimpleNamespace(config=GroundingDinoConfig()), prompt='character', side=(800, 1333))
    clip = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(vision_config=vision)), side=224, num_features=768)
    both = SimpleNamespace(detector=dino, clip=clip)
    assert _differences(both, [{}, dict(tag='unrealistic_human')]) == []
    assert _differences(both, [{}, dict(tag='realistic_human')]) == ['1 of 2 characters are realistic humans, of whom CIDS compares the faces']
    clip.side = 336
    assert _differences(both, [{}]) == ['the networks have other sizes']
    clip.side, dino.side = 224, (600, 1333)
    assert _differences(both, [{}]) == ['the networks have other sizes']


# stories whose figures are squares of one colour, in front of a plain ground

CAPTIONS = 'Ada runs.', 'He waits.', 'Bo meets Ada.', 'Ada sleeps.'
RED, BLUE, GREEN = (250, 10, 10), (10, 10, 250), (10, 250, 10)

def scene(*squares, size=(48, 32)):
    "Colours from left to right, each a square of 10 pixels."
    picture = Image.new('RGB', size, 'grey')
    for i, colour in enumerate(squares): picture.paste(colour, (2 + 15*i, 4, 12 + 15*i, 14))
    return to_png(picture)

class Squares(torch.nn.Module):
    "Finds squares of pure colours; counts the pictures that it sees."
    side, prompt = 32, 'character'
    def __init__(self, gain=1.):
        super().__init__()
        self.gain, self.seen = torch.nn.Parameter(torch.tensor(gain)), []
    def tokens(self, text): return [text]
    def forward(self, picture, text):
        self.seen.append(text)
        found, x = [], np.asarray(picture).astype(int)
        for i in range(3):
            if text != 'character' and text != ('red', 'green', 'blue')[i]: continue
            y, x_ = np.nonzero((x[..., i] > 200) & (x.sum(-1) < 300))
            if not len(y): continue
            left, top, right, bottom = x_.min()/picture.width, y.min()/picture.height, (x_.max() + 1)/picture.width, (y.max() + 1)/picture.height
            found.append([.9 - i/10, (left + right)/2, (top + bottom)/2, right - left, bottom - top])
        return np.array(found, 'float32').reshape(-1, 5)

class Mean(torch.nn.Module):
    "CLIP's stand-in: the mean colour."
    name, side, num_features = 'clip', 8, 3
    def forward(self, x): return x.float().flatten(2).mean(2)

ABOUT = {'Ada': dict(description='red', tag='realistic_human'), 'Bo': dict(tag='non_human')}

def coloured(n=4, about=None):
    for i in range(n):
        frames = scene(RED), scene(), scene(BLUE, RED), scene(RED)
        yield Story(f's{i}', f'a{i}', CAPTIONS, frames, {'Bo': scene(BLUE), 'Ada': scene(RED), 'Eve': scene(GREEN)}, about or {})

def drawn(folder, split, frames):
    for i in range(len(split)):
        (folder/split.ids[i]).mkdir(parents=True)
        for k, data in enumerate(frames(i), 1): (folder/split.ids[i]/f'{k}.png').write_bytes(data)

def scored(folder, split, detector=None, **more):
    return evaluate(folder, split, dict(clip=Mean()) | more.pop('nets', {}), detector=detector or Squares(), n_resamples=20, train=0, **more)

def cosine(a, b): return np.dot(a, b)/np.linalg.norm(a)/np.linalg.norm(b)

def test_rows_by_hand(tmp_path, monkeypatch):
    "Bo is drawn green; Ada is right at first, is missing where both are named, and is blue at last; story 0 has nobody."
    monkeypatch.setattr('arldm.score.evaluate.text_rows', lambda *_: None)     # the stand-in cannot read
    split = story_file(tmp_path, 'folder', test=coloured())['test']
    drawn(tmp_path/'run/drawn', split, lambda i: [scene()]*4 if i == 0 else [scene(RED), scene(), scene(GREEN), scene(BLUE)])
    got = scored(tmp_path/'run', split)
    green_blue, red_blue = cosine(GREEN, BLUE), cosine(RED, BLUE)
    # in frame 3 one box is left for two: that of Bo, or of Ada, whoever is more like it
    bo_has_it = cosine(GREEN, BLUE) >= cosine(GREEN, RED)
    ada = [1, red_blue] if bo_has_it else [1, cosine(GREEN, RED), red_blue]
    bo = [green_blue] if bo_has_it else []
    of_story = np.mean([np.mean(ada), np.mean(bo) if bo else 0])
    cross = row(got, CROSS)
    assert cross['value'] == pytest.approx(3/4*of_story, abs=1e-4) and cross['low'] < cross['value'] < cross['high']
    assert cross['beside'][0] == dict(what='reference frames', value=pytest.approx(1, abs=1e-4), n=16)
    assert cross['beside'][1]['what'] == 'cards of other albums'
    colours = [RED, BLUE] if bo_has_it else [RED, GREEN, BLUE]
    self_ada = np.mean([cosine(a, b) for a, b in combinations(colours, 2)])
    assert row(got, SELF)['value'] == pytest.approx(3/4*np.mean([self_ada, 1 if bo else 0]), abs=1e-4)
    assert row(got, SELF)['beside'][1]['what'] == 'characters of other albums' and 'found once, counted as 1' in row(got, SELF)['note']
    found = row(got, FOUND)
    assert (found['value'], found['n'], found['unit']) == (9/16, 16, '%') and found['beside'][0]['value'] == 1
    assert 'not comparable to CIDS: the networks have other sizes' in cross['note'] and '2 of 8 characters never found' in cross['note']
    assert '4 of 12 cast cards should be in no drawn frame' in ' '.join(got['trouble'])
    assert got['networks'].keys() == {'fields', 'clip', CUT_OUT} and cross['network'] == CUT_OUT
    saved = json.loads((tmp_path/'run/scores.json').read_text())
    assert row(saved, CROSS) == json.loads(json.dumps(cross))

def test_the_floor_is_the_cards_of_others(tmp_path, monkeypatch):
    monkeypatch.setattr('arldm.score.evaluate.text_rows', lambda *_: None)
    stories = [Story(f's{i}', f'a{i}', ('Ada runs.',)*3, (scene(c),)*3, {'Ada': scene(c)}) for i, c in enumerate((RED, BLUE))]
    split = story_file(tmp_path, 'folder', test=stories)['test']
    drawn(tmp_path/'drawn', split, lambda i: [scene((RED, BLUE)[i])]*3)
    got = scored(tmp_path, split)
    for name in CROSS, SELF:
        r = row(got, name)
        assert r['value'] == pytest.approx(1, abs=1e-4) and r['beside'][1]['value'] == pytest.approx(cosine(RED, BLUE), abs=1e-3)

def test_who_is_listed_counts_instead_of_who_is_named(tmp_path):
    "As in ViStoryBench's stories: a caption may say she."
    listed = {'Bo': {'shown_in': '2'}, 'Ada': {'shown_in': '1,2,4'}, 'Eve': {'shown_in': 'none'}}
    split = story_file(tmp_path, 'folder', test=coloured(2, listed))['test']
    drawn(tmp_path/'drawn', split, lambda i: [scene(RED)]*4)
    drawings = match_drawings(tmp_path, split)
    characters, character, frame = expected_characters(drawings)
    pairs = {(*characters[c], int(drawings.k[i])) for c, i in zip(character, frame)}
    assert pairs == {(story, *x) for story in (0, 1) for x in (('Bo', 2), ('Ada', 1), ('Ada', 2), ('Ada', 4))}
    cast = cut_out_cast(drawings, CharacterCutter(Squares(), Mean()))
    assert cast.is_listed and '2 of 6 cast cards should be in no drawn frame and are left out' in ' '.join(cast.notes)
    some = story_file(tmp_path/'some', 'folder', test=coloured(2, {'Bo': {'shown_in': '2'}}))['test']
    assert not cut_out_cast(match_drawings(tmp_path, some), CharacterCutter(Squares(), Mean())).is_listed

def test_by_description(tmp_path, monkeypatch):
    "A character is looked for by its description, or its name; realistic humans are counted; the rows have other names."
    monkeypatch.setattr('arldm.score.evaluate.text_rows', lambda *_: None)
    split = story_file(tmp_path, 'folder', test=coloured(about=ABOUT))['test']
    drawn(tmp_path/'drawn', split, lambda i: [scene(RED, BLUE)]*4)
    detector = Squares()
    detector.prompt = 'description'
    got = scored(tmp_path, split, detector)
    cross, self_, found = cids_names('description')
    assert set(detector.seen) == {'red', 'Bo'} and not [r for r in got['scores'] if 'CIDS' in r['name']]
    assert row(got, cross)['value'] == pytest.approx(1/2, abs=1e-4) and row(got, found)['value'] == 3/4     # no Bo without a description
    for words in 'the detector looks for descriptions', '4 of 8 characters are realistic humans': assert words in row(got, cross)['note']
    said = ' '.join(got['trouble'])
    assert '4 of 8 characters have no description; the detector looks for their names' in said
    assert 'the detector found nothing on 4 of 8 cast cards' in said

def test_boxes_are_kept_and_never_mixed(tmp_path):
    "Not computed twice, also after a restart, and anew for other weights, another text or another picture."
    pictures = [scene(RED), scene(BLUE, RED), scene()]
    def look(detector, texts=('character',)*3, **more):
        n = len(detector.seen)
        boxes = CharacterCutter(detector, Mean(), Store(tmp_path/'x.db'), **more).boxes(lambda i: pictures[i], [*texts], 'drawn')
        return [len(b) for b in boxes], len(detector.seen) - n
    first = Squares()
    assert look(first) == ([1, 2, 0], 3) and look(first) == look(Squares()) == ([1, 2, 0], 0)
    assert look(Squares(2.)) == ([1, 2, 0], 3)
    assert look(first, ('character', 'red', 'red')) == ([1, 1, 0], 2)
    pictures.append(scene(GREEN))
    assert look(first, ('character',)*4) == ([1, 2, 0, 1], 1)
    assert look(Squares(3.), share=(0, 2), wait=lambda: None) == ([1, 2, 0], 3)            # the other one has died
    assert look(Squares(4.), share=(0, 2), wait=lambda: look(Squares(4.), share=(1, 2))) == ([1, 2, 0], 2)

def test_what_is_missing_is_said(tmp_path, folders, detector, monkeypatch):
    "No cast, nobody named, no CLIP, no detector: the rows are empty and say why."
    monkeypatch.setattr('arldm.score.evaluate.text_rows', lambda *_: None)
    def why(stories, detector=Squares(), **more):
        split = story_file(tmp_path/str(len(reasons)), 'folder', test=stories)['test']
        draw(tmp_path/str(len(reasons))/'drawn', split)
        empty = row(scored(tmp_path/str(len(reasons)), split, detector, **more), CROSS)
        assert empty['value'] is None
        reasons.append(empty['note'])
    reasons = []
    frames = tuple(map(to_png, map(painting, range(4))))
    why([Story('s', 'a', CAPTIONS, frames)])
    why([Story('s', 'a', ('It rains.',)*4, frames, {'Ada': painting(9)})])
    why([Story('s', 'a', CAPTIONS, frames, {'Ada': painting(9)})], nets=dict(clip=StoryError('no weights named; name CLIP')))
    why([Story('s', 'a', CAPTIONS, frames, {'Ada': painting(9)})], StoryError('x: no config.json in it'))
    assert reasons == ['not measured: the stories have no cast', 'not measured: no frame should show a character of the cast',
                       'not measured: no weights named; name CLIP', 'not measured: x: no config.json in it']

def test_folders_that_are_no_detector(tmp_path, folders):
    def refused(folder, words):
        with pytest.raises(StoryError, match=words) as e: open_detector(folder)
        assert '\n' not in str(e.value)
    refused(tmp_path/'absent', 'absent: no config.json in it; name the folder of a GroundingDINO')
    refused(folders[1], 'clip: expected a GroundingDINO, but its model_type is clip')
    (tmp_path/'config.json').write_text((folders[0]/'config.json').read_text())
    refused(tmp_path, 'expected weights of GroundingDinoForObjectDetection')
    with pytest.raises(StoryError, match='prompt'): Detector(open_detector(folders[0]).model, None, prompt='cat')

def test_arldm_score_on_the_benchmark(tmp_path, folders, capsys, monkeypatch):
    "ViStoryBench's stories have no pictures of frames; CIDS is measured all the same, and kept for the next time."
    told = write_vistory_data(tmp_path/'raw', 3, 5)
    for name, x in told.items():
        for about in x['Characters'].values(): about['tag'] = 'unrealistic_human'
        write_told(tmp_path/'raw'/name, x)
    convert('vistory', tmp_path/'raw', tmp_path/'x.h5', quiet=True)
    split = StoryFile(tmp_path/'x.h5')['test']
    for i in range(len(split)):
        (tmp_path/'run/drawn'/split.ids[i]).mkdir(parents=True)
        for k in range(len(split.rows(i))): painting(100*i + k, (90, 60)).save(tmp_path/'run/drawn'/split.ids[i]/f'{k + 1}.png')
    def run(**more): return score(tmp_path/'run', data=tmp_path/'x.h5', clip=folders[1], detector=folders[0], resamples=10, **more)
    got = run()
    alone = cut_out_cast(match_drawings(tmp_path/'run', split), CharacterCutter(open_detector(folders[0]), open_network('clip', folders[1])))
    assert alone.reference is None and alone.drawn[0].found.any()
    assert row(got, FOUND)['value'] == pytest.approx(alone.drawn[0].found.mean()) and row(got, CROSS)['beside'][0]['what'] == 'cards of other albums'
    assert CROSS in capsys.readouterr().out
    other = run(detector_prompt='description')
    assert row(other, cids_names('description')[0])['value'] is not None
    monkeypatch.setattr(Detector, 'forward', lambda *_: pytest.fail('looked again'))
    again = run()
    assert row(again, CROSS) == row(got, CROSS)
    assert again['networks'] == got['networks'] and CUT_OUT in got['networks']

def test_a_detector_needs_clip(tmp_path, folders, monkeypatch):
    monkeypatch.delenv('ARLDM_CLIP', raising=False)
    with pytest.raises(StoryError, match='name CLIP, too: --clip FOLDER') as e: score(tmp_path, detector=folders[0])
    assert '\n' not in str(e.value)

def test_a_ranking_measures_cids_and_refuses_alike(tmp_path, folders, capsys, monkeypatch):
    "The numbers are those of arldm-score; a page of one run or of two takes none of these flags."
    frames = [painting(k) for k in range(4)]
    told = [Story(f's{i}', f'a{i}', CAPTIONS, tuple(map(to_png, frames)), {'Ada': painting(9 + i)}) for i in range(3)]
    split = story_file(tmp_path, test=told)['test']
    for seed, name in enumerate(('one', 'two')): draw(tmp_path/name, split, picture=lambda i, k: painting(100*seed + 10*i + k))
    alone = [score(tmp_path/name, data=split.file.path, clip=folders[1], detector=folders[0], resamples=10) for name in ('one', 'two')]
    both = tmp_path/'one', tmp_path/'two'
    page = report(*both, out=tmp_path/'ranked', data=split.file.path, clip=folders[1], detector=folders[0], resamples=10)
    ranking = json.loads((tmp_path/'ranked/ranking.json').read_text())
    [got] = [x['values'] for x in ranking['scores'] if x['name'] == CROSS]
    assert got == {name: pytest.approx(row(x, CROSS)['value']) for name, x in zip(('one', 'two'), alone)}
    assert CROSS in page.read_text()
    monkeypatch.delenv('ARLDM_CLIP', raising=False)
    with pytest.raises(StoryError, match='name CLIP, too: --clip FOLDER'): report(*both, out=tmp_path/'r', detector=folders[0])
    for flag in 'csd', 'detector', 'detector_prompt':
        with pytest.raises(StoryError, match=f'--{flag.replace("_", "-")} is for a ranking'): report(*both, **{flag: 'character'})
    for words, asked in (('no config.json in it', dict(clip=folders[1], detector=tmp_path/'nothing')), ('nothing', dict(csd=tmp_path/'nothing.pth'))):
        with pytest.raises(StoryError, match=words): report(*both, out=tmp_path/'r', data=split.file.path, **asked)
    assert not (tmp_path/'r').exists()
