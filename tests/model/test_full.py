"The full-size model, Stable Diffusion 1.5 with BLIP-large, with random weights: built, saved, loaded, one frame drawn."
import hashlib, json, os, resource, shutil, string, time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from itertools import islice, product
from multiprocessing import get_context

import pytest, torch
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import BertTokenizer, CLIPTokenizer

from arldm.core import CORPORA, machine
from arldm.data.dataset import Vocabulary
from arldm.draw.pipeline import StoryPipeline
from arldm.model.encoders import quiet_loading
from arldm.model.config import PARTS
from arldm.model.arldm import ARLDM

FULL = bool(os.environ.get('ARLDM_FULL'))
SSID, MOST = CORPORA['ssid'], 14e9   # the corpus whose caption length and frame size are used; bytes of a process
STORY = ['a man walks his dog along the beach', 'he finds a shell and the dog finds a stick']

# Parameters of every part, as published.
VISION = 303_301_632                 # ViT-L/16 for 224 px: 24·(12·1024² + 13·1024) + (16²·3 + 1 + 1 + 197 + 2)·1024
TEXT = 108_891_648                   # BERT-base without its pooler; BLIP has 2 words more and no 2 kinds of segment
CROSS = 12*2_757_120                 # in every layer 2·(768 + 1)·768, 2·(1024 + 1)·768 and a layer norm of 2·768
SIZE = dict(vae=83_653_863, unet=859_520_964,
            text_encoder=123_060_480 + (SSID.length - 77)*768,         # captions longer than CLIP's 77 tokens
            memory_encoder=VISION + TEXT + CROSS, history=(2 + SSID.frames)*768)

def vocabulary(folder):
    "Invented words in the true file formats and numbers: 49,408 of CLIP, 30,522 of BERT."
    (folder/'clip').mkdir(), (folder/'bert').mkdir()
    letters = sorted(ByteLevel.alphabet())
    ends = [x + '</w>' for x in letters]
    merges = list(islice(product(letters, ends), 48_894))              # CLIP's words of two letters
    tokens = [*letters, *ends, *(a + b for a, b in merges), '<|startoftext|>', '<|endoftext|>']
    (folder/'clip/vocab.json').write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder/'clip/merges.txt').write_text('\n'.join(['#version: 0.2', *(f'{a} {b}' for a, b in merges)]), 'utf-8')
    az = string.ascii_lowercase
    tokens = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *az, *('##' + x for x in az)]
    tokens += islice(map(''.join, product(az, repeat=4)), 30_522 - len(tokens))   # BERT's of four
    (folder/'bert/vocab.txt').write_text('\n'.join(tokens))
    words, more = CLIPTokenizer.from_pretrained(folder/'clip'), BertTokenizer.from_pretrained(folder/'bert')
    assert (len(words), len(more)) == (49_408, 30_522)
    return Vocabulary(words, more, SSID.length)

def sizes(model): return {name: sum(p.numel() for p in getattr(model, name).parameters()) for name in PARTS}

def digests(model):
    "What every part says, in a few letters."
    def digest(part):
        h = hashlib.sha256()
        for name, x in part.state_dict().items(): h.update(name.encode()), h.update(x.contiguous().numpy())
        return h.hexdigest()
    return {name: digest(getattr(model, name)) for name in PARTS}

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024   # bytes, pages of mapped files among them

def timed(what, work):
    "Do `work`; print how long it took and the most memory that this process has held until now."
    start = time.monotonic()
    done = work()
    print(f'  {what:8}{time.monotonic() - start:9.0f}{peak()/1e9:6.2f} GB', flush=True)
    return done


# the two halves, each in a process of its own

def build_and_save(folder):
    quiet_loading()
    vocab = vocabulary(folder)
    model = timed('built', lambda: ARLDM.create('full', vocab, resolution=SSID.resolution))
    assert sizes(model) == SIZE
    timed('saved', lambda: StoryPipeline.from_model(model).save_pretrained(folder/'full'))
    return digests(model), peak()

def load_and_draw(folder):
    quiet_loading()
    pipe, finite = timed('loaded', lambda: StoryPipeline.from_pretrained(folder/'full')), []
    pipe.set_progress_bar_config(disable=True)
    said = timed('read', lambda: digests(pipe))        # loading only maps the files
    def look(pipe, i, t, now): return finite.append(now['latents'].isfinite().all().item()) or now
    opening = Image.linear_gradient('L').convert('RGB')
    drawn = timed('drawn', lambda: pipe(STORY, given=[opening], num_inference_steps=2, guidance_scale=7.5,
                                        output_type='pt', callback_on_step_end=look))
    frame, = drawn.frames[0]
    assert frame.shape == (3, SSID.resolution, SSID.resolution) and frame.float().std() > 0 and finite == [True, True]
    return said, peak()

def test_full_size(tmp_path):
    if not FULL: pytest.skip('make full does this: 3 minutes, 8 GB of memory, 6 GB of disk')
    here = machine()
    print(f'\n{sum(SIZE.values()):,} parameters; {here["cpu"]}, threads: {torch.get_num_threads()}, {date.today()}, '
          f'commit {here["commit"]}\n  what      seconds     peak', flush=True)
    measured = []
    try:
        for half in build_and_save, load_and_draw:
            with ProcessPoolExecutor(1, get_context('spawn')) as process:
                measured.append(process.submit(half, tmp_path).result())
    finally: shutil.rmtree(tmp_path)
    (before, most), (after, more) = measured
    assert after == before, 'what was loaded is not what was saved'
    assert max(most, more) < MOST

def test_published_sizes(tmp_path):
    vocab = vocabulary(tmp_path)
    with torch.device('meta'): assert sizes(ARLDM.create('full', vocab)) == SIZE
