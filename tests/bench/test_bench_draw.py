"The benchmark of drawing: both candidates draw the same, arithmetic is exact, every row of the table is a line."
import os
import json

import pytest
import torch

from arldm.bench import draw as pace
from arldm.core import StoryError
from arldm.draw.pipeline import StoryPipeline
from arldm.bench.measure import format_line, count_flops
from arldm.bench.bench import bench

@pytest.fixture(scope='module')
def training(tmp_path_factory): return pace.TrainingBench(tmp_path_factory.mktemp('pace'), 'tiny')

@pytest.fixture
def drawing(training, monkeypatch):
    "With stories of two frames."
    short(monkeypatch)
    return pace.DrawingBench(training)

def short(monkeypatch):
    "Every drawing has two stories of two frames from now on."
    begin = pace.DrawingBench.__init__
    def init(self, *args):
        begin(self, *args)
        self.captions, self.opening = [captions[:2] for captions in self.captions[:2]], self.opening[:1]
    monkeypatch.setattr(pace.DrawingBench, '__init__', init)

def in_words(line): return format_line(line).split('   wanted: ')


# what is drawn

@pytest.mark.parametrize('batch', [1, 9])
def test_drawing_bench(training, batch):
    "So many stories, of the side of the size; more stories than there are begin again."
    drawing = pace.DrawingBench(training)
    drawn = drawing.draw('dpm++', 1, batch)
    assert [len(frames) for frames in drawn.frames] == [5]*batch and drawn.frames[0][0].size == (32, 32)
    assert len(drawing.captions) == 8 and drawn.captions[-1] == drawing.captions[(batch - 1) % 8]

def test_candidates_draw_the_same(drawing):
    "Plain and ours end with the same latents."
    plain, ours = (drawing.draw('pndm', 3, plain=plain, output_type='latent').frames[0] for plain in (True, False))
    for p, o in zip(plain, ours, strict=True): assert (p - o).norm() <= 1e-4*p.norm()


# arithmetic

@pytest.mark.parametrize('scheduler, steps', [('pndm', 4), ('ddim', 3)])
@pytest.mark.parametrize('plain', [True, False])
def test_counting_goes_on_exactly(drawing, scheduler, steps, plain):
    flops = pace.story_flops(drawing, plain=plain)(pace.unet_calls(scheduler, steps))
    assert flops == count_flops(lambda: drawing.draw(scheduler, steps, plain=plain))

def test_plain_computes_more(drawing):
    plain, ours = pace.story_flops(drawing, plain=True), pace.story_flops(drawing)
    assert plain(3) > ours(3) and plain(51)/ours(51) > plain(3)/ours(3)

def test_a_batch_counts_its_mean(drawing):
    "Stories cost the same arithmetic, alone and together, except for the null condition, which they share."
    alone = pace.story_flops(drawing)(3)
    null = count_flops(torch.no_grad()(drawing.pipe.model.null_cond))
    assert count_flops(lambda: drawing.draw('dpm++', 3, 2)) == pytest.approx(2*alone - null, rel=.005)


# bfloat16

def test_no_imitated_bfloat16(drawing, monkeypatch):
    "Without units there is no number, and the pipeline stays as it was."
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: dict(avx2=True, avx512_bf16=False, cpu_name='bf16'))
    lines = [dict(what=f'{n}, CPU time', plain=8.) for n in ('a', 'b')]
    found = pace.in_bfloat16(drawing, 'tiny', 1, lines)
    assert [in_words(line)[1] for line in found] == ['at most 0.45×', 'at most 0.20×']
    assert all(line['note'] == 'no bfloat16 units here' and 'ours' not in line for line in found)
    assert drawing.pipe.unet.dtype == torch.float32

def test_bfloat16_where_there_are_units(training, drawing, monkeypatch):
    "Ours in bfloat16 against the plain way's CPU time in float32."
    monkeypatch.setattr(pace, 'has_bfloat16_units', lambda: True)
    monkeypatch.setattr(pace, 'take_turns', lambda rounds, jobs: {name: [job()] for name, job in jobs.items()})
    drawing = pace.DrawingBench(training, training.new_model())
    a, b = pace.in_bfloat16(drawing, 'tiny', 1, [dict(what=f'{n}, CPU time', plain=1e9, unit='s') for n in ('a', 'b')])
    assert (a['what'], b['what']) == ('a, bfloat16', 'b, bfloat16') and drawing.pipe.unet.dtype == torch.bfloat16
    assert a['part'] == a['ours']/1e9 > 0 and in_words(a)[1] == 'at most 0.45×'


# the rows for a GPU

def test_rows():
    "Both schedulers for every kind and number of stories, and the paper's frame size."
    rows = pace.drawing_rows('full')
    names = [f'{kind}, {n} stories' for kind in ('bfloat16', 'compiled', 'graphs') for n in (16, 64)]
    expected = [f'{scheduler}, {name}' for name in ('plain, 1 story', 'ours, 1 story', *names) for scheduler in ('pndm 50', 'dpm++ 20')]
    assert list(rows) == [*expected, 'dpm++ 20, graphs, 512 px, guidance 6, 8 stories']
    assert rows['pndm 50, plain, 1 story'] == ('float32', {}, dict(scheduler='pndm', num_inference_steps=50, plain=True))
    assert rows['dpm++ 20, graphs, 512 px, guidance 6, 8 stories'][1:] == (dict(side=512, guidance_scale=6.),
                                                                         dict(scheduler='dpm++', num_inference_steps=20, batch=8))

def test_each_kind_has_a_pipeline_of_its_own(training, monkeypatch):
    "In the precision of the row, with fast kernels where it asks for them, of the frame size and guidance that it names."
    asked = []
    monkeypatch.setattr(StoryPipeline, 'enable_fast_kernels', lambda self, graphs=False: asked.append((self, graphs)))
    drawings = {kind: pace.make_drawing_bench(training, kind) for kind in pace.PIPELINE_KINDS}
    assert [drawings[kind].pipe.unet.dtype for kind in pace.PIPELINE_KINDS] == [torch.float32] + [torch.bfloat16]*3
    assert asked == [(drawings['compiled'].pipe, False), (drawings['graphs'].pipe, True)]
    assert len({id(drawing.pipe.unet) for drawing in drawings.values()}) == 4
    large = pace.make_drawing_bench(training, 'float32', 64, 1.)
    assert large.draw('dpm++', 1).frames[0][0].size == (64, 64) and large.guidance_scale == 1.

def test_no_memory_is_a_note(drawing, monkeypatch):
    "What does not fit says so, whoever notices; any other error is one."
    def failing(error):
        def draw(*args, **how): raise error
        monkeypatch.setattr(pace.DrawingBench, 'draw', draw)
    failing(torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 9 GiB'))
    assert pace.measure_drawing(drawing, 1, 'pndm', 2) == dict(note='out of memory')
    failing(StoryError('out of memory with 2 stories at once; try 1'))
    assert pace.measure_drawing(drawing, 1, 'pndm', 2) == dict(note='out of memory')
    for error in RuntimeError('an illegal memory access'), StoryError('a frame has values that are not finite'):
        failing(error)
        with pytest.raises(type(error), match='illegal|finite'): pace.measure_drawing(drawing, 1, 'pndm', 2)

def test_cost_of_a_story(drawing, monkeypatch):
    "Seconds are those of a story, not of the batch."
    monkeypatch.setattr(pace, 'take_turns', lambda rounds, jobs: jobs['draw']() or dict(draw=[3.]))
    assert pace.measure_drawing(drawing, 1, 'dpm++', 1, batch=2)['seconds'] == 1.5

def test_flops_of_the_rows(training, monkeypatch):
    "The arithmetic that a share is taken of is that of the settings that were timed."
    short(monkeypatch)
    flops = pace.drawing_flops(training)
    drawing = pace.DrawingBench(training)
    drawing.draw('pndm', 1)                                                        # knows its null condition from now on
    assert flops['ours']['pndm 5'] == count_flops(lambda: drawing.draw('pndm', 5))
    assert flops['plain']['dpm++ 2'] == count_flops(lambda: drawing.draw('dpm++', 2, plain=True))

def test_where_the_time_goes(drawing):
    "No part is counted twice or left with a clock on it."
    seconds = pace.part_seconds(drawing, 'dpm++', 2)
    parts = [seconds[name] for name in ('unet', 'vae', 'memory_encoder', 'text_encoder')]
    assert all(x > 0 for x in parts) and sum(parts) < seconds['all'] and len(seconds) == 5
    for part in drawing.pipe.unet, drawing.pipe.vae.decoder, drawing.pipe.text_encoder: assert 'forward' not in vars(part)


# the command

@pytest.mark.skipif(not os.environ.get('ARLDM_SOAK'), reason='a long form: ARLDM_SOAK=1')
def test_tiny_bench(tmp_path):
    "Both comparisons and their FLOPs, bfloat16 or why not, and how the other table gets filled."
    result = bench('draw', out=tmp_path/'draw.json')
    lines = result['lines']
    names = '2 PNDM steps', '2 DPM++ for 5 PNDM'
    compared = [what for name in names for what in (f'{name}, CPU time', f'{name}, time passed', 'its arithmetic',
                                                "share of the machine's matrix rate")]
    assert [line['what'] for line in lines] == [*compared, *(f'{name}, bfloat16' for name in names)]
    assert all(line['plain'] > 0 and line['ours'] > 0 for line in lines[:8])
    assert lines[0]['wanted'] == 'at most 0.90×' and 'wanted' not in lines[4]
    assert lines[2]['part'] < 1 and lines[6]['part'] < lines[2]['part']       # the only ratios that no machine changes
    assert max(len(format_line(line)) for line in lines) <= 120
    assert json.loads((tmp_path/'draw.json').read_text())['what'] == 'draw'
