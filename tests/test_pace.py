"The benchmark of drawing: both rivals draw the same, arithmetic is exact, every row of the table is a line."
import os
import json

import pytest
import torch

from arldm import pace
from arldm.core import StoryError
from arldm.draw import StoryPipeline
from arldm.measure import as_text, count_flops
from arldm.speed import bench

CPU = pytest.mark.skipif(torch.cuda.is_available(), reason='with a GPU there is another table')

@pytest.fixture(scope='module')
def track(tmp_path_factory): return pace.Track(tmp_path_factory.mktemp('pace'), 'tiny')

@pytest.fixture
def easel(track, monkeypatch):
    "With stories of two frames."
    short(monkeypatch)
    return pace.Easel(track)

def short(monkeypatch):
    "Every easel has two stories of two frames from now on."
    begin = pace.Easel.__init__
    def init(self, *args):
        begin(self, *args)
        self.captions, self.opening = [captions[:2] for captions in self.captions[:2]], self.opening[:1]
    monkeypatch.setattr(pace.Easel, '__init__', init)

def in_words(line): return as_text(line).split('   wanted: ')


# what is drawn

@pytest.mark.parametrize('batch', [1, 9])
def test_easel_draws(track, batch):
    "So many stories, of the side of the size; more stories than there are begin again."
    easel = pace.Easel(track)
    drawn = easel.draw('dpm++', 1, batch)
    assert [len(frames) for frames in drawn.frames] == [5]*batch and drawn.frames[0][0].size == (32, 32)
    assert len(easel.captions) == 8 and drawn.captions[-1] == easel.captions[(batch - 1) % 8]

def test_rivals_draw_the_same(easel):
    "Plain and ours end with the same latents."
    plain, ours = (easel.draw('pndm', 3, plain=plain, output_type='latent').frames[0] for plain in (True, False))
    for p, o in zip(plain, ours, strict=True): assert (p - o).norm() <= 1e-4*p.norm()


# arithmetic

@pytest.mark.parametrize('scheduler, steps', [('pndm', 4), ('ddim', 3)])
@pytest.mark.parametrize('plain', [True, False])
def test_counting_goes_on_exactly(easel, scheduler, steps, plain):
    flops = pace.story_flops(easel, plain=plain)(pace.questions(scheduler, steps))
    assert flops == count_flops(lambda: easel.draw(scheduler, steps, plain=plain))

def test_plain_computes_more(easel):
    plain, ours = pace.story_flops(easel, plain=True), pace.story_flops(easel)
    assert plain(3) > ours(3) and plain(51)/ours(51) > plain(3)/ours(3)

def test_a_batch_counts_its_mean(easel):
    "Guidance shows all tokens to one half, so stories cost the same arithmetic, alone and together."
    alone = pace.story_flops(easel)(3)
    assert count_flops(lambda: easel.draw('dpm++', 3, 2))/2 == pytest.approx(alone, rel=.02)


# bfloat16

def test_no_imitated_bfloat16(easel, monkeypatch):
    "Without units there is no number, and the pipeline stays as it was."
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: dict(avx2=True, avx512_bf16=False, cpu_name='bf16'))
    lines = [dict(what=f'{n}, CPU time', plain=8.) for n in ('a', 'b')]
    found = pace.in_bfloat16(easel, 'tiny', 1, lines)
    assert [in_words(line)[1] for line in found] == ['at most 0.45×', 'at most 0.20×']
    assert all(line['note'] == 'no bfloat16 units here' and 'ours' not in line for line in found)
    assert easel.pipe.unet.dtype == torch.float32

@pytest.mark.parametrize('name', ['avx512_bf16', 'amx_bf16', 'bf16'])
def test_bfloat16_units(monkeypatch, name):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: {'avx2': True, name: True})
    assert pace.bfloat16_units()

def test_bfloat16_where_there_are_units(track, easel, monkeypatch):
    "Ours in bfloat16 against the plain way's CPU time in float32."
    monkeypatch.setattr(pace, 'bfloat16_units', lambda: True)
    monkeypatch.setattr(pace, 'take_turns', lambda rounds, **jobs: {name: [job()] for name, job in jobs.items()})
    easel = pace.Easel(track, pace.copy.deepcopy(track.model))
    a, b = pace.in_bfloat16(easel, 'tiny', 1, [dict(what=f'{n}, CPU time', plain=1e9, unit='s') for n in ('a', 'b')])
    assert (a['what'], b['what']) == ('a, bfloat16', 'b, bfloat16') and easel.pipe.unet.dtype == torch.bfloat16
    assert a['part'] == a['ours']/1e9 > 0 and in_words(a)[1] == 'at most 0.45×'


# the table for a GPU

@pytest.fixture
def few_rows(monkeypatch):
    "Each kind of pipeline with one small row; fast kernels are asked for, not compiled."
    asked = []
    short(monkeypatch)
    monkeypatch.setattr(StoryPipeline, 'enable_fast_kernels', lambda self, graphs=False: asked.append((self, graphs)),
                        raising=False)
    kinds = list(pace.RECIPES)
    rows = dict(zip(kinds, ({'plain, 1 story': dict(plain=True), 'ours, 1 story': {}}, pace._rows('bfloat16', 2),
                            pace._rows('compiled', 2), pace._rows('graphs', 2))))
    monkeypatch.setattr(pace, 'RECIPES', rows)
    monkeypatch.setattr(pace, 'GOALS', {('pndm', 'graphs, 2 stories'): 'at most 0.30 s'})
    monkeypatch.setattr(pace, 'STEPS', dict(tiny=(2, 3, 2)))
    monkeypatch.setattr(pace, 'matrix_rate', lambda dtype, device: 1e11 if dtype == torch.bfloat16 else 0)
    return asked

@pytest.mark.skipif(not os.environ.get('ARLDM_SOAK'), reason='a long form: ARLDM_SOAK=1')
def test_table_for_a_gpu(track, few_rows):
    "A line for every row and scheduler, with all that the table shows; each kind draws with a pipeline of its own."
    lines = pace.recipes(track.folder, 'tiny', 1)
    rows = 'plain, 1 story', 'ours, 1 story', 'bfloat16, 2 stories', 'compiled, 2 stories', 'graphs, 2 stories'
    assert [line['what'] for line in lines] == [f'{how}, {row}' for row in rows for how in ('pndm 3', 'dpm++ 2')]
    for line in lines:
        assert line['ours'] > 0 and line['share'] > 0 and {'memory', 'flops'} <= line.keys() and line['unit'] == 's/story'
        assert len(as_text(line)) <= 120
    flops = {line['what']: line['flops'] for line in lines}
    assert flops['pndm 3, plain, 1 story'] > flops['pndm 3, ours, 1 story'] == flops['pndm 3, graphs, 2 stories']
    assert [line['wanted'] for line in lines if line['wanted']] == ['at most 0.30 s']
    (one, first), (other, second) = few_rows
    assert (first, second) == (False, True) and one is not other

def test_no_memory_is_a_note(track, few_rows, monkeypatch):
    "What does not fit says so, whoever notices, and does not end the table."
    draw = pace.Easel.draw
    def full(self, scheduler, steps, batch=1, **how):
        if batch == 2 and scheduler == 'pndm': raise torch.cuda.OutOfMemoryError
        if batch == 2: raise StoryError('out of memory with 2 stories at once; try 1')
        return draw(self, scheduler, steps, batch, **how)
    monkeypatch.setattr(pace.Easel, 'draw', full)
    lines = pace.recipes(track.folder, 'tiny', 1)
    assert len(lines) == 10
    for line in lines:
        if '2 stories' in line['what']: assert line['note'].startswith('out of memory') and 'ours' not in line
        else: assert line['ours'] > 0
    assert as_text(lines[-2]).endswith('out of memory   wanted: at most 0.30 s')

def test_goals_are_rows():
    "Every goal belongs to a row of the table, of the scheduler that it names."
    rows = {name for kind in pace.RECIPES.values() for name in kind}
    assert {name for _, name in pace.GOALS} <= rows and {scheduler for scheduler, _ in pace.GOALS} == {'pndm', 'dpm++'}


# the command

@pytest.mark.skipif(not os.environ.get('ARLDM_SOAK'), reason='a long form: ARLDM_SOAK=1')
@CPU
def test_tiny_bench(tmp_path):
    "Both races and their arithmetic, bfloat16 or why not, and how the other table gets filled."
    result = bench('draw', out=tmp_path/'draw.json')
    lines = result['lines']
    names = '2 PNDM steps', '2 DPM++ for 5 PNDM'
    race = [what for name in names for what in (f'{name}, CPU time', f'{name}, time passed', 'its arithmetic',
                                                "share of the machine's matrix rate")]
    assert [line['what'] for line in lines] == [*race, *(f'{name}, bfloat16' for name in names), 'on a GPU']
    assert all(line['plain'] > 0 and line['ours'] > 0 for line in lines[:8])
    assert lines[0]['wanted'] == 'at most 0.90×' and 'wanted' not in lines[4]
    assert lines[2]['part'] < 1 and lines[6]['part'] < lines[2]['part']       # the only ratios that no machine changes
    assert 'arldm-bench draw --size full' in lines[-1]['note']
    assert max(len(as_text(line)) for line in lines) <= 120
    assert json.loads((tmp_path/'draw.json').read_text())['what'] == 'draw'
