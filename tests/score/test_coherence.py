"Is it a story? Each figure against a plain count, a trusted library, or a case whose answer is known."
import numpy as np, pytest, torch

from arldm.score.coherence import (by_frame, centred, character_scores, characters_seen, distant_frames,
                                   similarity, names_in, nearest, reciprocal_rank, similarity_to_reference, pairs,
                                   reciprocal_rank_by_chance, relative_similarity, text_score, unusual)
from arldm.core import StoryError


def rows(n, d=6, seed=0): return np.random.default_rng(seed).normal(size=(n, d)).astype('float32')


# rows

def test_centred_rows_have_length_one_and_the_mean_stays_nothing():
    x, mean = rows(20) + 5, np.full(6, 5.)
    got = centred(x, mean)
    assert got.dtype == np.float32 and np.allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    assert np.allclose(got, (x - 5)/np.linalg.norm(x - 5, axis=1, keepdims=True), atol=1e-5)
    same = rows(1).repeat(3, 0)
    assert (centred(same, same[0]*np.float32(1 + 2e-7)) == 0).all()    # not rounding errors blown up to length 1

def test_unrelated_rows_have_no_likeness_once_centred():
    x = rows(400, 50) + 3
    def mean_cosine(y): return (y@y.T)[~np.eye(400, dtype=bool)].mean()
    assert mean_cosine(centred(x, 0)) > .8 and abs(mean_cosine(centred(x, x.mean(0)))) < .01

@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_what_is_no_number_is_counted_and_refused(value):
    x = rows(9000)
    x[[1, 5000, 8999], 2] = value
    for call in (lambda: centred(x, 0), lambda: nearest(x, rows(3), 0), lambda: nearest(rows(3), x, 0)):
        with pytest.raises(StoryError, match='^3 of 9000 rows'): call()

def test_one_picture_alone_is_no_row():
    with pytest.raises(StoryError, match=r'shape \(6,\)'): centred(rows(1)[0], 0)


# within a story

def plain_pairs(story, k, adjacent):
    n = range(len(k))
    return {(i, j) for i in n for j in n if story[i] == story[j] and k[i] < k[j] and (not adjacent or k[j] == k[i] + 1)}

def test_pairs_are_those_of_a_plain_count():
    rng = np.random.default_rng(0)
    of = [(f's{s}', k) for s in range(12) for k in range(1, 8) if rng.random() < .7]
    rng.shuffle(of)
    story, k = [s for s, _ in of], [int(k) for _, k in of]
    for how in 'adjacent', 'all':
        got = [tuple(p) for p in pairs(story, k, how).tolist()]
        assert len(got) == len(set(got)) and set(got) == plain_pairs(story, k, how == 'adjacent')

def test_stories_of_one_frame_have_no_pairs():
    assert pairs([], []).shape == pairs([7], [1]).shape == pairs([7, 8], [1, 2], 'all').shape == (0, 2)
    with pytest.raises(StoryError, match='did you mean adjacent'): pairs([7], [1], 'adjacents')

def test_relative_similarity_is_a_ratio_of_means_and_follows_the_albums():
    story, k = np.repeat(range(4), 3), np.tile([1, 2, 3], 4)
    album, at = np.repeat([0, 0, 1, 1], 3), pairs(story, k)
    drawn, reference = centred(rows(12, seed=1) + 1, 0), centred(rows(12, seed=2) + 1, 0)
    stat = relative_similarity(drawn, reference, at, album)
    a, b = (np.array([x[i]@x[j] for i, j in at]) for x in (drawn, reference))
    assert stat(np.ones(2)) == pytest.approx(a.mean()/b.mean(), rel=1e-5)
    assert stat(np.array([2, 0])) == pytest.approx(a[:4].mean()/b[:4].mean(), rel=1e-5)    # the first album's pairs
    assert relative_similarity(reference, reference, at, album)(np.array([1, 3])) == pytest.approx(1)

def test_similarity_to_the_reference_frame_and_its_drift():
    reference = centred(rows(30), 0)
    assert similarity_to_reference(reference, reference) == pytest.approx(np.ones(30), abs=1e-6)
    assert similarity_to_reference(reference, -reference) == pytest.approx(-np.ones(30), abs=1e-6)
    with pytest.raises(StoryError, match='one of each'): similarity_to_reference(reference, reference[1:])
    k, album = np.tile([3, 1, 2], 10), np.repeat(range(5), 6)
    stats = by_frame(k*10. + album, k, album)
    assert list(stats) == [1, 2, 3] and [s(np.ones(5)) for s in stats.values()] == [12, 22, 32]
    assert stats[2](np.array([0, 0, 0, 0, 5])) == 24


@pytest.mark.parametrize('album', [[0, 1], [0, 0, 1, 1, 2, 2], [2, 0, 1, 0, 2, 1, 1], [0]*5, [3, 3, 3, 0]])
def test_distant_frames_are_others(album):
    "Every frame once, none is its own; and of another album, if no album has more than half of the frames."
    album = np.array(album)
    other = distant_frames(album)
    assert sorted(other) == list(range(len(album))) and (other != np.arange(len(album))).all()
    if np.bincount(album).max() <= len(album)//2: assert (album[other] != album).all()

def test_one_frame_has_no_other(): assert distant_frames(np.array([0])).tolist() == [0]


# too much alike

def test_unusual_is_the_highest_hundredth():
    reference = np.random.default_rng(0).permutation(np.arange(1000)/1000)
    assert unusual(reference, reference).sum() == 10
    assert unusual([.9899, .99, 1], reference).tolist() == [False, True, True]

def test_equal_told_pictures_do_not_hide_copies():
    reference = np.concatenate([np.arange(1000)/1000, np.ones(100)])       # every eleventh reference pair is one picture twice
    assert unusual([.9899, .995, 1], reference).tolist() == [False, True, True]
    assert unusual([.999, 1], np.ones(5)).tolist() == [False, True]   # nothing else to set a limit by
    with pytest.raises(StoryError, match='no reference frames'): unusual([.5], [])

@pytest.mark.parametrize('block', [1, 7, 64, 4096])
def test_nearest_in_blocks_is_nearest_in_all(block):
    x, train, mean = rows(50), rows(90, seed=1), rows(1, seed=2)[0]
    cosines = centred(x, mean)@centred(train, mean).T
    near, place = nearest(x, train, mean, block)
    assert (place == cosines.argmax(1)).all() and near == pytest.approx(cosines.max(1), abs=1e-6)

def test_nearest_finds_the_copied_row_on_disk(tmp_path):
    train = np.lib.format.open_memmap(tmp_path/'train.npy', 'w+', 'float32', (500, 6))
    train[:] = rows(500, seed=3)
    near, place = nearest(train[[400, 17]]*1, train, 0, 64)
    assert place.tolist() == [400, 17] and near == pytest.approx([1, 1], abs=1e-6)

def test_nearest_refuses_nothing_and_another_network():
    with pytest.raises(StoryError, match='no training pictures'): nearest(rows(3), np.zeros((0, 6)), 0)
    with pytest.raises(StoryError, match='6 features and training rows of 5'): nearest(rows(3), rows(3, 5), 0)


# captions

def test_reciprocal_rank_is_that_of_a_plain_sort():
    pictures, captions = rows(5, 30), rows(7, 30, 1)
    own, cosines = np.array([0, 2, 3, 4, 6]), centred(pictures, 0)@centred(captions, 0).T
    plain = [1/(1 + sorted(c, reverse=True).index(c[j])) for c, j in zip(cosines.tolist(), own)]
    assert reciprocal_rank(pictures, captions, own) == pytest.approx(plain)

def test_equal_captions_do_not_help():
    captions = rows(5, 30)
    captions[[1, 4]] = captions[0]                                   # three captions are one
    captions[4] += 1e-7                                              # but for rounding
    got = reciprocal_rank(captions, captions, np.arange(5))
    assert got == pytest.approx([(1 + 1/2 + 1/3)/3, (1 + 1/2 + 1/3)/3, 1, 1, (1 + 1/2 + 1/3)/3])
    same = captions[:1].repeat(5, 0)
    assert reciprocal_rank(rows(5, 30, 2), same, np.arange(5)) == pytest.approx(np.full(5, reciprocal_rank_by_chance(5)))

def test_captions_sorted_by_chance_have_the_rank_of_chance():
    got = [reciprocal_rank(rows(5, 40, i), rows(5, 40, 1000 + i), np.arange(5)).mean() for i in range(400)]
    assert reciprocal_rank_by_chance(5) == pytest.approx((1 + 1/2 + 1/3 + 1/4 + 1/5)/5)
    assert np.mean(got) == pytest.approx(reciprocal_rank_by_chance(5), abs=.02)

@pytest.fixture(scope='module')
def clip():
    "A tiny CLIP with random weights, pictures and captions for it, and its rows of both."
    from transformers import CLIPConfig, CLIPModel
    torch.manual_seed(0)
    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = CLIPModel(CLIPConfig(projection_dim=8, text_config=dict(small, vocab_size=50, eos_token_id=49),
                                 vision_config=dict(small, image_size=16, patch_size=8))).eval()
    for name in 'get_image_features', 'get_text_features':            # torchmetrics 1.9 expects tensors
        def plain(*args, f=getattr(model, name)): return f(*args).pooler_output
        setattr(model, name, plain)
    pictures = list(torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8))
    return model, pictures, [f'caption {i}' for i in range(6)]

class Processor:
    "Turns pictures into pixels and captions into ids, as a CLIP processor does."
    def __call__(self, text=None, images=None, **_):
        if images is not None: return dict(pixel_values=torch.stack([p.float()/128 - 1 for p in images]))
        ids = torch.tensor([[1, 2 + int(t.split()[1]), 20, 49] for t in text])
        return dict(input_ids=ids, attention_mask=torch.ones_like(ids))

@torch.no_grad()
def test_text_score_equals_torchmetrics(clip):
    from torchmetrics.functional.multimodal import clip_score
    model, pictures, captions = clip
    said = Processor()(text=captions)
    x = model.get_image_features(Processor()(images=pictures)['pixel_values']).numpy()
    y = model.get_text_features(said['input_ids'], said['attention_mask']).numpy()
    ours = text_score(x, y)
    theirs = [float(clip_score(p, c, lambda: (model, Processor()))) for p, c in zip(pictures, captions)]
    assert ours == pytest.approx(theirs, abs=1e-4) and max(ours) > 1
    assert (text_score(x, -x) == 0).all() and text_score(x, 3*x) == pytest.approx(np.full(6, 100), abs=1e-4)


# characters

NAMES = 'fred', 'Wilma', 'Mr. Slate'

def test_names_in_a_caption_are_whole_words():
    assert names_in("FRED's car, wilma.", NAMES) == {'fred', 'Wilma'}
    assert names_in('Alfred and Freddy meet mr. slate', NAMES) == {'Mr. Slate'}
    assert names_in('Mr! Slate', NAMES) == set()

def test_a_classifier_is_asked_in_batches_and_checked():
    asked = []
    def double(pictures):
        asked.append(len(pictures))
        return [{'FRED'} if p else set() for p in pictures]
    assert characters_seen(double, iter([1, 0, 1, 1, 0]), NAMES, batch=2) == [{'fred'}, set(), {'fred'}, {'fred'}, set()]
    assert asked == [2, 2, 1]
    with pytest.raises(StoryError, match='1 sets for 2'): characters_seen(lambda _: [set()], [1, 2], NAMES)
    with pytest.raises(StoryError, match="no character 'barney'"): characters_seen(lambda _: [{'Barney'}], [1], NAMES)

def test_character_scores_are_those_of_a_plain_count():
    rng, album = np.random.default_rng(0), np.repeat(range(10), 4)
    seen, want = ([{n for n in NAMES if rng.random() < .5} for _ in album] for _ in range(2))
    got = character_scores(seen, want, album)
    def f1(w):
        tp, fp, fn = (sum(w[a]*len(f(s, t)) for s, t, a in zip(seen, want, album))
                      for f in (lambda s, t: s & t, lambda s, t: s - t, lambda s, t: t - s))
        return 2*tp/(2*tp + fp + fn)
    for w in np.ones(10), np.arange(10): assert got['f1'](w) == pytest.approx(f1(w))
    assert got['exact'].tolist() == [float(s == w) for s, w in zip(seen, want)]
    nobody = character_scores([set()], [set()], np.array([0]))
    assert nobody['exact'].tolist() == [1] and np.isnan(nobody['f1'](np.ones(1)))
