"The benchmark's candidates do the same work as ours, and the benchmark runs; how fast either is depends on the machine."
import os
import contextlib
import io
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from arldm.bench import speed
from arldm.bench import train as steps
from arldm.cli.convert import convert
from arldm.core import CORPORA, StoryError
from arldm.data.dataset import StoryDataset, Vocabulary, collate, word_tokenizers
from arldm.bench.measure import format_line, count_flops
from arldm.bench.synthetic_photos import PHOTO_SIZES, PHOTO_WORDS, encode_picture, photo, write_corpus
from arldm.settings import SETTINGS
from arldm.bench.bench import bench
from arldm.bench.speed import BENCHES, PlainStories, batch_as_floats, reencode
from arldm.data.story import StoryFile

MINI = Path(__file__).parents[2]/'shared/ssid-mini'

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A corpus of three albums, converted both ways."
    folder = tmp_path_factory.mktemp('speed')
    raw = write_corpus(folder/'raw', 3, [(w//2, h//2) for w, h in PHOTO_SIZES])
    reencode(raw, folder/'plain.h5')
    convert('ssid', raw, folder/'ours.h5', quiet=True)
    return folder

@pytest.fixture(scope='module')
def vocab(folder): return Vocabulary(*word_tokenizers(PHOTO_WORDS, folder/'words'), CORPORA['ssid'].length)

def decoded(path): return np.array(Image.open(path).convert('RGB'))


# what is measured on

def test_photos_are_reproducible():
    a, b, c = (encode_picture(photo(np.random.default_rng(seed), (64, 48))) for seed in (1, 1, 2))
    assert a == b != c

def bytes_per_pixel(pictures):
    "JPEG of quality 90, the PNG made of that JPEG, and their ratio, means over some pictures."
    jpegs = [encode_picture(p) for p in pictures]
    pngs = [encode_picture(Image.open(io.BytesIO(j)).convert('RGB'), 'PNG') for j in jpegs]
    pairs = [(len(j)/np.prod(p.size), len(g)/np.prod(p.size)) for j, g, p in zip(jpegs, pngs, pictures)]
    return np.array([(j, g, g/j) for j, g in pairs])

@pytest.mark.skipif(not MINI.is_dir(), reason='the real SSID stories stand beside the repository only in CI')
def test_photos_compress_like_real_ones():
    rng = np.random.default_rng(0)
    real = bytes_per_pixel([Image.open(p).convert('RGB') for p in sorted((MINI/'SSID_Images').glob('*.jpg'))])
    ours = bytes_per_pixel([photo(rng, size) for size in PHOTO_SIZES]).mean(0)
    assert (real.min(0) < ours).all() and (ours < real.max(0)).all()
    assert np.allclose(ours, real.mean(0), rtol=.15)

def test_corpus(folder, tmp_path):
    "Four stories about each album; with few drawings every file still differs, and all decode."
    counts = convert('ssid', folder/'raw', tmp_path/'x.h5', dry_run=True, quiet=True)
    one = dict(stories=4, albums=1, pictures=20, different=5)
    assert counts == dict(train=one, val=one, test=one, skipped={})
    few = write_corpus(tmp_path/'few', 4, [(40, 30)], drawn=3)
    assert convert('ssid', few, tmp_path/'x.h5', quiet=True)['train']['different'] == 10
    assert len({p.read_bytes() for p in few.rglob('*.jpg')}) == 20
    assert len({decoded(p).tobytes() for p in few.rglob('*.jpg')}) == 3


# the candidates do the same

def test_plain_converter_keeps_stories(folder):
    "Captions, order and colours of the plain file are those of the raw corpus, in every split."
    plain, ours = StoryFile(folder/'plain.h5'), StoryFile(folder/'ours.h5')
    assert plain.legacy and plain.splits == ours.splits
    for split, file in speed.SSID_FILES.items():
        records = [r for r, in json.loads((folder/'raw/SSID_Annotations'/file).read_text())['annotations']]
        assert len(plain[split]) == len(records)//5
        for i, story in enumerate(plain[split]):
            group = records[5*i:5*i + 5]
            assert story.captions == tuple(r['storytext'] for r in group) == ours[split][i].captions
            for picture, r in zip(story.pictures(), group):
                assert (np.array(picture) == decoded(folder/f'raw/SSID_Images/{r["youtube_image_id"]}.jpg')).all()

def test_file_is_a_tenth(folder):
    plain, ours = ((folder/f'{name}.h5').stat().st_size for name in ('plain', 'ours'))
    assert ours <= plain/10

@pytest.mark.parametrize('side, memory_side', [(256, 224), (64, 96)])
def test_plain_loader_gives_the_same_pixels(folder, vocab, side, memory_side):
    split = StoryFile(folder/'ours.h5')['train']
    plain, ours = PlainStories(split, vocab, side, memory_side), StoryDataset(split, vocab, side, memory_side)
    assert len(plain) == len(ours) == 4
    plain, ours = (collate([dataset[i] for i in range(4)]) for dataset in (plain, ours))
    assert ours['frames'].dtype == ours['memory'].dtype == torch.uint8
    ours = batch_as_floats(ours)
    assert plain.keys() == ours.keys() and plain['id'] == ours['id']
    for k in plain.keys() - {'id'}: assert torch.allclose(plain[k], ours[k], rtol=0, atol=1e-6), k
    assert plain['frames'].shape == (4, 5, 3, side, side) and plain['frames'].min() < -.8 and plain['frames'].max() > .8


# training steps

@pytest.fixture(scope='module')
def training(tmp_path_factory): return steps.TrainingBench(tmp_path_factory.mktemp('steps'), 'tiny')

def test_candidates_train_on_the_same_stories(training):
    "Plain and ours differ in what is computed, not in which stories come and what is asked of them."
    plain, ours = (steps.recipe('tiny', changes) for changes in steps.CANDIDATES.values())
    differ = {k for k in SETTINGS if getattr(plain, k) != getattr(ours, k)}
    assert differ == {'freeze', 'crops', 'pack_context'} and set(ours.freeze) - set(plain.freeze) == {'words'}
    pictures, features = (steps.recipe_stories(training, s) for s in (plain, ours))
    assert len(pictures) == len(features) == 8
    for key in 'index', 'caption_ids', 'memory_real':
        assert torch.equal(torch.as_tensor(pictures[3, 2][key]), torch.as_tensor(features[3, 2][key]))
    assert 'frames' in pictures[0] and not {'frames', 'memory'} & features[0].keys()

def test_candidates_share_weights_and_keep_to_their_own(training):
    "In turns, the plain candidate moves word tables and attentions, ours only the attentions."
    table, attention = (next(p for n, p in training.model.named_parameters() if name in n)
                        for name in ('token_embedding', 'attn2.to_k'))
    def moved(candidate):
        before = table.clone(), attention.clone()
        next(candidate)
        return [not torch.equal(a, b) for a, b in zip(before, (table, attention))]
    plain, ours = (steps.training_steps(training, changes) for changes in steps.CANDIDATES.values())
    for candidate in plain, ours: next(candidate)                      # the original's first step has a rate of 0
    assert [moved(plain), moved(ours), moved(plain), moved(ours)] == [[True, True], [False, True]]*2
    ours.close()
    plain.close()

def test_a_step_counts_what_is_saved(training):
    "The features spare at least the forward pass of the autoencoder."
    def flops(changes):
        with contextlib.closing(steps.training_steps(training, dict(changes, cond_dropout=0.))) as records: return count_flops(lambda: next(records))
    steps.recipe_stories(training, steps.recipe(training.size, dict(steps.CANDIDATES['ours'], cond_dropout=0.)))       # its features are not counted
    plain, ours = (flops(changes) for changes in steps.CANDIDATES.values())
    frames = torch.zeros(5, 3, 32, 32, dtype=torch.uint8)
    assert plain - ours > count_flops(lambda: training.model.moments(frames)) > 0

def test_rows():
    "Each recipe at both sizes, frozen as the baseline and all trained, in bfloat16."
    rows = steps.training_rows('full')
    columns = {'LoRA': ['cached', 'checkpointed', '8 stories', 'fp8'],
               'baseline frozen': ['plain', 'cached', 'checkpointed', '8-bit', '8 stories', 'fp8'],
               'all trained': ['plain', 'cached', 'checkpointed', '8-bit', '8 stories']}
    assert list(rows) == [f'{side} px, {trained}, {name}' for side in (256, 512) for trained, names in columns.items() for name in names]
    assert rows['256 px, LoRA, fp8'] == dict(resolution=256, freeze='all', lora_rank=8, mixed_precision='bf16', crops=1,
                                             gradient_checkpointing=True, frozen_storage='fp8')
    assert rows['256 px, baseline frozen, plain'] == dict(resolution=256, freeze='ssid-baseline', mixed_precision='bf16', crops=0, pack_context=False)
    assert rows['512 px, all trained, checkpointed'] == dict(resolution=512, freeze='none', mixed_precision='bf16', crops=1,
                                                              gradient_checkpointing=True)

def test_cost_of_a_step(training, monkeypatch):
    "Stories per second and arithmetic are those of a story; what checkpointing repeats is not counted."
    row = dict(steps.training_rows('tiny')['32 px, all trained, cached'], cond_dropout=0.)
    monkeypatch.setattr(steps, 'take_turns', lambda rounds, jobs: jobs['step']() and dict(step=[.5]*rounds))
    found, checkpointed = (steps.measure_training(training, 1, row | more) for more in (dict(train_batch_size=2), dict(gradient_checkpointing=True)))
    assert found['stories_per_s'] == 4 and checkpointed['stories_per_s'] == 2 and 'flops' not in checkpointed
    assert found['flops'] == pytest.approx(steps.step_flops(partial(steps.run_steps, training, row), 1), rel=.05)

@pytest.mark.parametrize('error', [torch.cuda.OutOfMemoryError('CUDA out of memory.'), StoryError('out of memory with 1 story'),
                                   RuntimeError('CUBLAS_STATUS_ALLOC_FAILED')])
def test_what_does_not_fit_is_a_note(training, monkeypatch, error):
    def memory(job): raise error
    monkeypatch.setattr(steps, 'gpu_peak', memory)
    assert steps.measure_training(training, 1, dict(crops=0)) == dict(note='out of memory')
    assert 'model' not in vars(training)

@pytest.fixture(scope='module')
def steps_result(folder): return bench('train', out=folder/'steps.json')

@pytest.mark.skipif(not os.environ.get('ARLDM_SOAK'), reason='a long form: ARLDM_SOAK=1')
def test_tiny_training_bench(folder, steps_result):
    speed, busy, arithmetic, share, memory, *small = steps_result['lines']
    assert all(line['wanted'] == 1.8 and line['plain'] > 0 and line['ours'] > 0 for line in (speed, busy))
    assert arithmetic['ours'] < .8*arithmetic['plain']         # the only ratio that no machine changes
    assert 0 < share['ours'] < 100 and .1 < memory['ours'] < 2
    assert [line['wanted'] for line in small] == [6, 5] and all(.1 < line['ours'] < 2 for line in small)
    assert max(len(format_line(line)) for line in steps_result['lines']) <= 120
    assert json.loads((folder/'steps.json').read_text())['what'] == 'train'


# the command

@pytest.fixture(scope='module')
def result(folder): return bench('data', out=folder/'speed.json')

def test_tiny_bench_has_every_line(folder, result):
    what = ['converting', 'size of the file', 'reading, same pixels', 'reading, --resolution 256',
        'memory for converting 200 pictures']
    assert [line['what'] for line in result['lines']] == what
    assert all(line['ours'] > 0 for line in result['lines'])
    assert result['lines'][1]['gain'] >= 10                 # the only ratio that no machine changes
    assert json.loads((folder/'speed.json').read_text()) == json.loads(json.dumps(result))
    assert {'date', 'cpu', 'cores', 'commit', 'versions', 'seconds'} <= result.keys()

def test_lines_are_readable(result):
    texts = [format_line(line) for line in result['lines']]
    assert [text.split('wanted: ')[1] for text in texts] == [
        'at least 20×', 'at least 10×', 'at least 1.5×', 'at least 3×', 'at most 300 MB']
    assert max(map(len, texts)) <= 110

def test_unknown_words_cost_a_line():
    with pytest.raises(StoryError, match=f"no benchmark 'date'; there are {', '.join(BENCHES)}, gpu"): bench('date')
    with pytest.raises(StoryError, match="no size 'huge'; there are tiny, full"): bench('data', size='huge')

@pytest.mark.parametrize('flag, value', [('minutes', 3.), ('device', 'cpu'), ('commit', 'abc')])
def test_flags_of_the_gpu(flag, value):
    with pytest.raises(StoryError, match=f'--{flag} is for arldm-bench gpu; leave it out for train'): bench('train', **{flag: value})

def test_a_file_that_cannot_be_written_costs_no_measurement(tmp_path, monkeypatch):
    monkeypatch.setitem(BENCHES, 'data', lambda size: pytest.fail('it was measured'))
    (tmp_path/'file').write_text('')
    with pytest.raises(StoryError, match='file is a file, not a folder'): bench('data', out=str(tmp_path/'file/x.json'))

@pytest.mark.parametrize('words, code, said', [(['draft'], 1, "no benchmark 'draft'; there are data"), (['--help'], 0, '[benchmark]')])
def test_shell(words, code, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['arldm-bench', *words])
    with pytest.raises(SystemExit) as end: bench()
    assert end.value.code == code and said in ''.join(capsys.readouterr())
