"The panel in a notebook, by its widgets: numbers, then frames; what it is drawing; every error as a line."
from datetime import datetime, timezone
from io import BytesIO

import pytest
import torch
from PIL import Image

from arldm.core import StoryError, asset
from arldm.draw.panel import story_panel
from arldm.draw.pipeline import StoryPipeline

pytest.importorskip('ipywidgets')

@pytest.fixture(scope='module')
def pipe():
    pipe = StoryPipeline.from_pretrained(asset('toy/arldm'))
    pipe.set_progress_bar_config(disable=True)
    return pipe

def test_the_panel_says_what_is_wrong_and_goes_on(pipe, monkeypatch):
    panel = story_panel(pipe, ['Ada is a big red star.', 'She jumps.'], num_inference_steps=1)
    monkeypatch.setattr(pipe, 'stream', lambda *a, **k: (_ for _ in ()).throw(StoryError('no such thing')))
    panel.draw_button.click()
    assert panel.message.value == 'no such thing' and not panel.draw_button.disabled and all(b.disabled for b in panel.redraw_buttons)
    monkeypatch.undo()
    panel.draw_button.click()
    assert panel.message.value == '' and len(panel.frames) == 2 and not any(b.disabled for b in panel.redraw_buttons)

def shown(panel): return [Image.open(BytesIO(p.value)).convert('RGB') for p in panel.pictures]

def test_the_panel_shows_numbers_before_the_first_drawing(pipe):
    "A light square of the frame's size with dark writing on it, another one for each frame."
    squares = shown(story_panel(pipe, ['Ada is a big red star.', 'She jumps.'], side=120))
    assert [s.size for s in squares] == [(120, 120)]*2 and squares[0].tobytes() != squares[1].tobytes()
    for square in squares:
        colours = [colour for _, colour in square.getcolors(10_000)]
        assert min(max(colours)) > 220 and max(min(colours)) < 130

def test_one_text_is_one_caption(pipe):
    "As it is for the pipeline; not a field for each letter."
    assert story_panel(pipe, 'Ada is a big red star.').texts() == ['Ada is a big red star.']

@pytest.mark.parametrize('side', [-1, 0, 15])
def test_a_frame_can_be_seen(pipe, side):
    with pytest.raises(StoryError, match=f'^side must be at least 16 pixels, got {side}$'): story_panel(pipe, ['a'], side=side)

def test_the_panel_says_which_frame_it_draws(pipe, monkeypatch):
    "And the frames that are not drawn yet show their numbers, not the story before."
    panel = story_panel(pipe, ['Ada is a big red star.', 'She jumps.', 'Night falls.'], num_inference_steps=1)
    blank, said = shown(panel), []
    for again in range(2):
        seen = []
        monkeypatch.setattr(panel, '_show', lambda k, frame: (seen.append([panel.progress.value, *shown(panel)]), type(panel)._show(panel, k, frame)))
        panel.draw_button.click()
        assert [line for line, *_ in seen] == [f'drawing frame {k} of 3' for k in (1, 2, 3)] and panel.progress.value == ''
        for k, (_, *pictures) in enumerate(seen): assert [a.tobytes() == b.tobytes() for a, b in zip(pictures, blank)] == [i >= k for i in range(3)]
    seen.clear()
    panel.redraw_buttons[1].click()
    assert seen[0][0] == 'drawing frame 2 of 3 again' and panel.progress.value == ''

@pytest.mark.parametrize('error, line', [
    (StoryError('<b>no such</b> thing & more'), '&lt;b&gt;no such&lt;/b&gt; thing &amp; more'),
    (torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB.'),
     'out of memory (CUDA out of memory. Tried to allocate 2 GiB.); end other programs, or process less at once'),
    (ZeroDivisionError('division by zero'), "ZeroDivisionError: division by zero; Jupyter's log has the traceback"),
    (KeyboardInterrupt(), 'stopped')])
def test_every_error_is_shown_in_the_panel(pipe, monkeypatch, error, line):
    "The last drawing stays, the buttons work again, and the traceback of what is no `StoryError` goes on to Jupyter."
    panel = story_panel(pipe, ['Ada is a big red star.', 'She jumps.'], num_inference_steps=1)
    panel.draw()
    before = [p.value for p in panel.pictures]
    def fail(*args, **kw): raise error
    for name, act in ('stream', panel.draw), ('__call__', lambda: panel.redraw(1)):
        monkeypatch.setattr(type(pipe), name, fail)
        if isinstance(error, StoryError): act()
        else:
            with pytest.raises(type(error)): act()
        assert panel.message.value == line and panel.progress.value == ''
        assert [p.value for p in panel.pictures] == before and len(panel.frames) == 2
        assert not any(button.disabled for button in (panel.draw_button, *panel.redraw_buttons))

def test_the_panel_draws_what_the_pipeline_draws(pipe):
    captions = ['Ada is a big red star.', 'She jumps.']
    panel = story_panel(pipe, captions, num_inference_steps=2)
    panel.seed.value, panel.guidance.value = 5, 3.
    panel.draw()
    want = pipe(captions, num_inference_steps=2, guidance_scale=3., seed=5).frames[0]
    assert [a.tobytes() for a in panel.frames] == [a.tobytes() for a in want]

def test_the_panel_names_unknown_words(pipe, monkeypatch):
    panel = story_panel(pipe, ['Ada sees a dragon.'], num_inference_steps=1)
    monkeypatch.setattr(pipe, 'stream', lambda *a, **k: iter(()))
    for again in range(2):                                                            # not only the first time
        panel.draw_button.click()
        assert 'does not know: sees, dragon' in panel.message.value
    panel.captions[0].value = 'Ada is a big red star.'
    panel.draw_button.click()
    assert panel.message.value == ''

def dropped(*files): # what the button holds when (name, bytes) were dropped on it
    return [dict(name=name, type='image/png', size=len(data), content=data, last_modified=datetime.now(timezone.utc))
            for name, data in files]

def png(colour):
    file = BytesIO()
    Image.new('RGB', (40, 20), colour).save(file, 'PNG')
    return file.getvalue()

@pytest.mark.filterwarnings('ignore:the model was not trained', 'ignore:no caption mentions')
def test_cards_are_dropped_named_and_removed(pipe, monkeypatch):
    "Both ways of drawing show them; of other files the panel says what they are."
    seen = []
    call = type(pipe).__call__
    monkeypatch.setattr(type(pipe), 'stream', lambda *a, cast, **k: seen.append(cast) or iter([Image.new('RGB', (64, 64))]*2))
    monkeypatch.setattr(type(pipe), '__call__', lambda *a, cast, **k: seen.append(cast) or call(*a, cast=cast, **k))
    panel = story_panel(pipe, ['Ada is a big red star.', 'She jumps.'], num_inference_steps=1, cast={'Ada': Image.new('L', (30, 30))})
    panel.upload.value = dropped(('Bo.png', png('red')), ('notes.txt', b'no picture'))
    assert panel.message.value.startswith('notes.txt: ') and panel.upload.value == ()
    assert [*panel.cast()] == ['Ada', 'Bo'] and len(panel.cast_row.children) == 3
    panel.draw()
    assert [*seen[0]] == ['Ada', 'Bo'] and seen[0]['Bo'].getpixel((0, 0)) == (255, 0, 0)
    assert panel.message.value.endswith('no caption mentions Bo; the cards are used all the same')
    name, remove = panel.cast_row.children[2].children[1:]
    name.value = 'ada '
    panel.draw()
    assert panel.message.value == 'cast: two cards of the cast are named Ada and ada; names must differ' and len(seen) == 1
    name.value = 'Cy'
    panel.redraw(2)
    assert [*seen[1]] == ['Ada', 'Cy']
    remove.click()
    panel.draw()
    assert [*seen[2]] == ['Ada'] and len(panel.cast_row.children) == 2
    with pytest.raises(StoryError, match='the card of Di must be a picture, got str'): story_panel(pipe, ['a'], cast={'Di': 'di.png'})
