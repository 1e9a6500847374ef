"Cast cards in drawing: in every frame of their story, however long, and in no other story."
import warnings

import numpy as np, pytest, torch
from PIL import Image

from arldm.core import StoryError, asset
from arldm.settings import resolve
from arldm.files.pictures import to_png
from arldm.data.dataset import to_memory
from arldm.data.story import Story, StoryFile, write_stories
from arldm.draw.cast import cast_tensors, check_cast
from arldm.draw.frames import Memory, preprocess_frame
from arldm.draw.pipeline import StoryPipeline
from arldm.draw.test_set import draw_split
from arldm.draw.validation_strips import draw_strips
from arldm.model.arldm import ARLDM
from arldm.score.histories import draw_histories

A = ['ada is a big red star at the beach on the left', 'ada jumps', 'it goes to the right']
B = ['bo is a small blue circle in the city on the right', 'it rests', 'it meets cy']
FEW = dict(num_inference_steps=2, guidance_scale=2.)

@pytest.fixture(scope='module')
def tiny():
    "Random weights, 32 pixels, trained with a cast as far as it knows; conditions count for more."
    torch.manual_seed(0)
    net = ARLDM.create('tiny', ARLDM.load(asset('toy/arldm')).vocab, resolution=32, cast=True).eval()
    with torch.no_grad(): net.history.cast_embedding.weight += 1
    for name, m in net.unet.named_modules():
        if name.endswith(('attn2.to_out.0', 'conv_out')): m.weight.data *= 8
    pipe = StoryPipeline.from_model(net)
    pipe.set_progress_bar_config(disable=True)
    # names that the toy vocabulary does not know are not the subject here
    pipe.model.vocab.note_unknown = lambda captions: None
    return pipe

def card(seed): return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 48, 3), 'uint8'))

ADA, BO, CY = {'Ada': card(1)}, {'Bo': card(2)}, {'Bo': card(2), 'Cy': card(3)}

def latents(pipe, captions, **options):
    out = pipe(captions, output_type='latent', **{**FEW, **options}).frames
    return out[0] if len(out) == 1 else out

def relative(x, y): return ((x - y).norm()/y.norm()).item()

def test_a_story_alone(tiny):
    "Whatever cards the stories beside it have; drawn fast or plain, with a negative prompt or without."
    for options in {}, dict(negative_prompt='dark'), dict(guidance_scale=1.):
        together = latents(tiny, [A, B, A], cast=[None, CY, ADA], **options)
        alone = [latents(tiny, A, seed=0, **options), latents(tiny, B, seed=1, cast=CY, **options),
                 latents(tiny, A, seed=2, cast=ADA, **options)]
        plain = latents(tiny, [A, B, A], cast=[None, CY, ADA], plain=True, **options)
        assert max(map(relative, together, alone)) < 1e-4 and max(map(relative, plain, alone)) < 1e-4
    # and the cards count, from the first frame on
    bare = latents(tiny, A, seed=2)
    want = latents(tiny, A, seed=2, cast=ADA)
    other = latents(tiny, A, seed=2, cast={'Ada': card(9)})
    for k in range(3): assert relative(want[k], bare[k]) > 1e-3 and relative(want[k], other[k]) > 1e-4

@torch.no_grad()
@pytest.mark.parametrize('n_given', [0, 1])
def test_training_equals_drawing(tiny, n_given):
    "All frames at once, as in training, predict what one frame after the other predicts, cond and uncond."
    model = tiny.model
    vocab = model.vocab
    casts = [check_cast(ADA), check_cast(CY)]
    cast = cast_tensors(casts, vocab.encode, model.memory_side)
    tokens = {k: torch.stack([vocab.encode(s)[k] for s in (A, B)]) for k in vocab.encode(A)}
    pictures = preprocess_frame([card(k) for k in range(4)], model.memory_side).reshape(2, 2, 3, 32, 32)
    V = 3 - n_given
    noisy = torch.randn(2*V, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor(500)
    for null in False, True:
        dropped = torch.full((2, V), null)
        context, visible = model.condition(tokens, pictures, n_given, dropped, cast=cast)
        at_once = model.predict(noisy, t, context, visible).reshape(2, V, 4, 8, 8)
        memory = Memory(model, cast=cast)
        for k in range(3):
            caption = {name: x[:, k] for name, x in tokens.items()}
            if k >= n_given:
                now = memory.context(caption, model.null_cond() if null else None)
                one = model.predict(noisy.reshape(2, V, 4, 8, 8)[:, k - n_given], t, *now)
                assert relative(one, at_once[:, k - n_given]) < 1e-5
            if k < 2: memory.add(pictures[:, k], caption)

def test_long_stories_keep_their_cards(tiny):
    "Some of the frames are forgotten, and the last ones still see the card."
    texts = (B*4)[:7]
    with pytest.warns(UserWarning, match='forgets'): want = latents(tiny, texts, cast=CY)
    # two cards and four slots: more places than a story without cards ever has
    plain = latents(tiny, texts, cast=CY, plain=True)
    assert relative(plain, want) < 1e-4
    memory = Memory(tiny.model, cast=cast_tensors([check_cast(ADA)], tiny.model.vocab.encode, 32))
    card_tokens = memory.cards
    caption = tiny.model.vocab.encode(['ada jumps'])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for k in range(9):
            context, visible = memory.context(caption)
            S = caption['caption_ids'].shape[1]
            assert torch.equal(visible[0, S:2*S], memory.cast_real[0, 0]) and visible[0, S:2*S].any()
            assert memory.cards is card_tokens and len(memory) <= memory.capacity
            memory.add(to_memory(torch.full((1, 3, 32, 32), 20*k, dtype=torch.uint8)), caption)
    assert context.shape[1] == (1 + 1 + memory.capacity)*S

def test_streamed_continued_and_drawn_again(tiny):
    "`stream`, continuing a story, and drawing frames again draw what one call draws."
    def off(x, y): return np.abs(np.asarray(x, int) - np.asarray(y, int)).max()
    frames = tiny(B, cast=CY, **FEW).frames[0]
    streamed = list(tiny.stream(B, cast=CY, **FEW))
    assert max(map(off, streamed, frames)) <= 1
    [last] = tiny.stream(B, drawn=frames[:2], cast=CY, **FEW)
    assert off(last, frames[2]) <= 1
    [again] = tiny(B, frames, redraw=3, cast=CY, **FEW).frames[0]
    assert off(again, frames[2]) <= 1
    [bare] = tiny(B, frames, redraw=3, **FEW).frames[0]
    assert off(bare, frames[2]) > 1
    opened = tiny(B, [card(5)], cast=CY, **FEW).frames[0]
    streamed = list(tiny.stream(B, [card(5)], cast=CY, **FEW))
    assert max(map(off, streamed, opened)) <= 1

def test_without_cards_nothing_changes(tiny):
    want = latents(tiny, A)
    for cast in {}, None, [None], [{}]: assert torch.equal(latents(tiny, A, cast=cast), want)
    kept = tiny.history.config.cast
    tiny.history.register_to_config(cast=False)    # as a model without the embedding
    try: assert torch.equal(latents(tiny, A), want)
    finally: tiny.history.register_to_config(cast=kept)

def said(work):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter('always')
        work()
    heard = [w for w in heard if w.category is UserWarning]
    assert {w.filename for w in heard} <= {__file__}
    return [str(w.message) for w in heard]

def test_notes(tiny):
    "What is odd is said in one line each, and the story is drawn."
    two = dict(num_images_per_prompt=2, **FEW)
    assert said(lambda: tiny(A, cast=ADA, **two)) == []
    unused = 'no caption mentions Bo; the cards are used all the same'
    assert said(lambda: tiny(A, cast=ADA | BO, **two)) == [unused]
    assert said(lambda: list(tiny.stream(A, cast=ADA | BO, **FEW))) == [unused]
    assert said(lambda: list(tiny.stream(iter(A), cast=ADA | BO, **FEW))) == []
    six = {f'N{k}': card(k) for k in range(6)}
    names = [' '.join(six), *A[1:]]
    left_out = 'the cast has 6 cards, but the model has room for 4; left out: N4, N5'
    assert said(lambda: tiny(names, cast=six, **FEW)) == [left_out]
    four = dict(list(six.items())[:4])
    assert torch.equal(latents(tiny, names, cast=four), latents(tiny, names, cast=six))
    # cards of a model that knows no cast are marked as slots
    plain = StoryPipeline(**tiny.components)
    plain.set_progress_bar_config(disable=True)
    row = tiny.history.cast_embedding.weight
    old = row.detach().clone()
    untrained = ('the model was not trained with a cast, so it may not draw what is on the cards; train it with '
                 '--cast-probability 0.5')
    try:
        tiny.history.register_to_config(cast=False)
        assert said(lambda: tiny(A, cast=ADA, **FEW)) == [untrained]
        without = latents(tiny, A, cast=ADA)
        tiny.history.register_to_config(cast=True)
        with torch.no_grad(): row[0] = tiny.history.type_embedding.weight[1]
        assert torch.equal(latents(tiny, A, cast=ADA), without)
    finally:
        tiny.history.register_to_config(cast=True)
        with torch.no_grad(): row.copy_(old)

@pytest.mark.parametrize('cast,line', [
    ({'Ada': card(1), 'ADA': card(2)}, 'cast: two cards of the cast are named Ada and ADA; names must differ'),
    ({'Ada': 'ada.png'}, 'the card of Ada must be a picture, got str; pass PIL pictures or uint8 arrays (h, w, 3)'),
    ({'Ada\n': card(1)}, "cast: 'Ada\\n' cannot name a card of the cast; expected text of one line, such as Ada"),
    ({' ': card(1)}, "cast: ' ' cannot name a card of the cast; expected text of one line, such as Ada"),
    ({5: card(1)}, 'cast: 5 cannot name a card of the cast; expected text of one line, such as Ada'),
    ('Ada', 'cast must be a dictionary, name -> picture, got str'),
    ([ADA, BO], '1 stories, but cast for 2')])
def test_bad_casts(tiny, cast, line):
    with pytest.raises(StoryError) as e: tiny(A, cast=cast, **FEW)
    assert str(e.value) == line
    if not isinstance(cast, list):
        with pytest.raises(StoryError) as e: list(tiny.stream(A, cast=cast, **FEW))
        assert str(e.value) == line

def test_a_bad_cast_among_stories(tiny):
    "The others are drawn; one cast for several stories is not distributed."
    with pytest.warns(UserWarning, match='story 1: the card of Bo must be a picture, got str.*; not drawn'):
        out = tiny([A, B], cast=[ADA, {'Bo': 'bo.png'}], **FEW)
    assert [len(f) for f in out.frames] == [3, 0]
    assert relative(latents(tiny, [A, A], cast=[ADA, None], seed=[0, 1])[0], latents(tiny, A, cast=ADA)) < 1e-4
    with pytest.raises(StoryError, match='2 stories, but one cast; pass a list with a cast for each story'):
        tiny([A, B], cast=ADA, **FEW)

def test_a_story_file_may_have_unused_cards(tiny, tmp_path):
    "Its test set, other histories and strips are drawn without a note, which own stories get."
    def png(seed): return to_png(card(seed))
    story = Story('a', 'a', tuple(A), (png(4), png(5), png(6)), {'Ada': png(1), 'Cleo': png(2)})
    write_stories(tmp_path/'x.h5', {split: [story] for split in ('train', 'val', 'test')}, 'toy')
    file = StoryFile(tmp_path/'x.h5')
    with pytest.warns(UserWarning, match='no caption mentions Cleo'): tiny(A, cast={'Ada': card(1), 'Cleo': card(2)}, **FEW)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        [_] = draw_split(tiny, file['test'], tmp_path/'drawn', **FEW)
        [_] = draw_histories(tiny, file['test'], tmp_path/'histories', kinds=('own',), **FEW)
        draw_strips(tmp_path, resolve('toy', resolution=32, cast_probability=.5), file, tiny.model, 1)
    assert len(list((tmp_path/'strips').iterdir())) > 0
