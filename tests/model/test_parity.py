"Ours equals recordings of the original, and a table that says so would notice if it did not."
from pathlib import Path

import pytest, recorded, torch

from arldm.data.dataset import to_memory, to_target
from arldm.draw.schedulers import make_scheduler
from arldm.model.history import history_visible
from arldm.model.arldm import ARLDM
from recorded import COMPARISONS, PARITY, gap

FULL = Path(__file__).resolve().parents[3]/'shared/parity'
LEFT_OUT = {'in_images', 'in_source_images', 'source_caption_after', 'original_images_returned'}   # large


@pytest.mark.parametrize('piece', COMPARISONS)
def test_equals_the_recorded(piece):
    rows = list(COMPARISONS[piece]())
    assert rows
    for row in rows: assert row.difference <= row.tolerance, row

def test_table():
    "One line per row, under a head, in columns."
    head, *lines = recorded.table().splitlines()
    assert len({len(line) for line in (head, *lines)}) == 1
    assert {line.split('  ')[0] for line in lines} == COMPARISONS.keys()


# a comparison must be able to fail

@pytest.fixture
def red(monkeypatch):
    "Breaks something and names the quantities of a piece that are then too far off."
    def forget(): recorded.training.cache_clear(), recorded.drawing.cache_clear()
    def broken(piece, *what):
        monkeypatch.setattr(*what)
        return {row.quantity for row in COMPARISONS[piece]() if not row.difference <= row.tolerance}
    forget()
    yield broken
    forget()

def test_sees_a_frame_that_looks_at_itself(red):
    def too_much(n_frames, n_given=0): return history_visible(n_frames, n_given + 1)[:, :n_frames + n_given]
    assert {'visibility, exact', 'noise prediction'} <= red('training batch', 'arldm.model.arldm.history_visible', too_much)

def test_sees_colours_exchanged(red):
    assert red('encoders', recorded, 'to_memory', lambda x: to_memory(x.flip(-3))) == {'BLIP slots'}

@pytest.mark.parametrize('picture', [False, True])
def test_sees_query_key_and_value_exchanged(red, picture):
    net = recorded.model()
    if picture:
        qkv = net.memory_encoder.vision_model.encoder.layers[1].self_attn.qkv.weight
        assert red('encoders', qkv, 'data', qkv.data.roll(len(qkv)//3, 0)) == {'BLIP slots', 'null slot'}
    else:
        own = net.text_encoder.encoder.layers[1].self_attn
        assert red('encoders', own.q_proj.weight, 'data', own.k_proj.weight.data) == {'CLIP captions', 'null caption'}

def test_sees_guidance_the_other_way_round(red):
    right = ARLDM.predict
    def exchanged(*x): return torch.cat(right(*x).chunk(2)[::-1])
    assert {f'{task}: final latents' for task in ('visualization ddim', 'continuation pndm')} <= red(
        'drawings', ARLDM, 'predict', exchanged)

def test_sees_timesteps_one_late(red):
    def late(name):
        scheduler = make_scheduler(name)
        scheduler.register_to_config(steps_offset=1)
        return scheduler
    assert len(red('schedulers', recorded, 'make_scheduler', late)) == 2

def test_sees_a_part_that_does_not_freeze(red):
    right = ARLDM.freeze
    assert red('freezing', ARLDM, 'freeze', lambda net, parts: right(net, set(parts) - {'blip'}))


# the recordings

@pytest.mark.skipif(not FULL.is_dir(), reason='../shared/parity, the whole recordings, is not here')
@pytest.mark.parametrize('path', [p for p in sorted(PARITY.rglob('*')) if p.is_file() and p.name != 'pictures.npz'],
                         ids=lambda path: path.name)
def test_recordings_are_whole_and_unchanged(path):
    folder = 'ssid_img' if path.suffix == '.jpg' else '.'
    if path.suffix != '.npz':
        assert path.read_bytes() == (FULL/folder/path.relative_to(PARITY)).read_bytes()
        return
    ours, theirs = recorded.arrays(path.stem), recorded.arrays((FULL/path.stem).resolve())
    made = {'source_rows', *({'in_images'} if 'loss' in ours else {})}   # kept as bytes, not as numbers
    assert theirs.keys() - ours.keys() <= LEFT_OUT and ours.keys() - theirs.keys() <= made
    for k in ours.keys() - made: assert torch.equal(ours[k], theirs[k]), k
    if 'loss' in ours: assert gap(to_target(ours['in_images']), theirs['in_images']) <= 1e-5
    if 'source_rows' in ours:
        pictures = recorded.arrays('pictures')['pictures'][ours['source_rows']]
        assert gap(to_memory(pictures), theirs['in_source_images']) <= 1e-5
