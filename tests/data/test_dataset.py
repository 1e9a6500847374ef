"Tokens equal the original's; pictures equal a plain recipe; chance depends on seed, epoch and story alone."
import io, json, pickle, random, subprocess, sys, warnings
from pathlib import Path

import numpy as np, pytest, torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import BertTokenizer, CLIPTokenizer

from arldm.core import StoryError, asset
from arldm.data.dataset import (StoryDataset, Vocabulary, collate, center_crop, to_memory,
                                to_target, word_tokenizers)
from arldm.data.story import Story, StoryFile, to_png, write_stories
from arldm.draw.pipeline import StoryPipeline
from arldm.model.arldm import ARLDM

HERE = Path(__file__).resolve().parents[1]/'parity'
ORACLE = json.loads((HERE/'tokenizer_oracle.json').read_text())
TEXTS = ORACLE['texts']
PORORO = tuple('pororo,loopy,eddy,harry'.split(','))

def parity_vocab(length=64, names=(), legacy=False):
    return Vocabulary(CLIPTokenizer.from_pretrained(HERE/'tokenizers/clip'),
                      BertTokenizer.from_pretrained(HERE/'tokenizers/bert'), length, names, legacy)

@pytest.fixture(scope='module')
def parity(): return parity_vocab()

@pytest.mark.parametrize('i', range(len(TEXTS)), ids=lambda i: ascii(TEXTS[i])[:30])
def test_tokens_equal_the_originals(parity, i):
    special = any(word in TEXTS[i] for word in ('[SEP]', '<|endoftext|>'))   # text today, special tokens in the original
    got = (parity_vocab(legacy=True) if special else parity).encode([TEXTS[i]])
    for kind, key in ('clip', 'caption'), ('bert', 'memory'):
        ids, real = got[f'{key}_ids'][0], got[f'{key}_real'][0]
        assert ids[real].tolist() == ORACLE[kind][i]
        assert real.tolist() == [k < len(ORACLE[kind][i]) for k in range(64)]
    assert got['caption_real'][0].long().tolist() == ORACLE['clip_pad64'][i]
    assert set(got['caption_ids'][0][~got['caption_real'][0]].tolist()) <= {669}
    assert set(got['memory_ids'][0][~got['memory_real'][0]].tolist()) <= {0}

def test_blip_tokens_have_blips_ids(parity):
    assert (len(parity.memory_tokenizer), parity.enc) == (157, 156)
    assert parity.memory_tokenizer.bos_token_id == 155 and len(parity.caption_tokenizer) == 670
    again = Vocabulary(parity.caption_tokenizer, parity.memory_tokenizer, 64)   # adds nothing twice
    assert (len(again.memory_tokenizer), again.enc) == (157, 156)

def test_names():
    vocab, oracle = parity_vocab(24, PORORO), ORACLE['new_tokens'][','.join(PORORO)]
    added = vocab.memory_tokenizer.get_added_vocab()
    assert {k: added[k] for k in oracle['bert_added']} == oracle['bert_added']   # BERT knows harry already
    assert {k: v for k, v in vocab.caption_tokenizer.get_added_vocab().items() if k in PORORO} == oracle['clip_added']
    got = parity_vocab(64, PORORO).encode(oracle['texts'])
    for ids, real, want in zip(got['memory_ids'], got['memory_real'], oracle['bert']): assert ids[real].tolist() == want
    clip = vocab.caption_tokenizer
    assert clip.tokenize("pororo's") == clip.tokenize("Pororo's") == ['pororo', "'", 's</w>']

def test_tokenizers_survive_saving(tmp_path):
    vocab = parity_vocab(64, PORORO)
    for part in 'caption', 'memory': getattr(vocab, f'{part}_tokenizer').save_pretrained(tmp_path/part)
    loaded = Vocabulary(CLIPTokenizer.from_pretrained(tmp_path/'caption'),
                        BertTokenizer.from_pretrained(tmp_path/'memory'), 64, PORORO)
    want, got = vocab.encode(TEXTS + ['Loopy and Eddy']), loaded.encode(TEXTS + ['Loopy and Eddy'])
    assert loaded.enc == vocab.enc and all(torch.equal(got[k], want[k]) for k in want)

def test_null_condition(parity):
    null = parity.null()
    assert null['caption_ids'].tolist() == [[668] + [669]*63] and null['memory_ids'].tolist() == [[5, 6] + [0]*62]
    assert null['caption_real'].all() and null['memory_real'].all()
    assert {k: (v.shape, v.dtype) for k, v in null.items()} == {
        f'{w}_{k}': ((1, 64), t)
        for w in ('caption', 'memory') for k, t in (('ids', torch.int64), ('real', torch.bool))}

def test_long_captions_lose_their_ends_and_are_counted():
    vocab, text = parity_vocab(8), 'a man walks into the room and sings a song'
    with pytest.warns(UserWarning, match='more than 8 tokens'): got = vocab.encode([text, 'the car', text])
    assert got['caption_ids'][0, -1] == 669 and got['memory_ids'][0, -1] == 6
    assert got['caption_ids'][0, :7].tolist() == [668, *vocab.caption_tokenizer(text)['input_ids'][1:7]]
    assert got['caption_real'][0].all() and got['caption_real'][1].sum() == 4
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        vocab.encode([text])
    assert vocab.n_truncated == 3
    with pytest.raises(StoryError, match='captions of 1 tokens'): parity_vocab(1)

def test_long_captions_are_counted_across_workers(file, tmp_path):
    clip, bert = word_tokenizers(['a b c'], tmp_path)
    data = StoryDataset(file['train'], Vocabulary(clip, bert, 2), 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for batch in DataLoader(data, 1, num_workers=2, collate_fn=collate): pass
        alone = Vocabulary(clip, bert, 2)
        for i in range(len(data)): alone.encode(file['train'].captions(i))
    assert data.vocab.n_truncated == alone.n_truncated == 5*len(data)

class LongCaptions(torch.utils.data.Dataset):
    "Its items only count truncated captions, many times, so that workers count at the same moment."
    def __init__(self, vocab): self.vocab = vocab
    def __len__(self): return 20
    def __getitem__(self, i):
        for _ in range(500): self.vocab._count_truncated(['a', 'b'])
        return i

def test_workers_that_count_at_the_same_moment_lose_no_count():
    vocab = parity_vocab(8)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for _ in range(2):   # the second loader's workers count on
            assert len(list(DataLoader(LongCaptions(vocab), 1, num_workers=2))) == 20
    LongCaptions(vocab)[0]   # in this process
    assert vocab.n_truncated == 2*500*(20 + 20 + 1)
    assert (vocab._n_truncated > 0).sum() == 3   # each process adds to a count of its own

def test_long_captions_warn_once_even_in_workers(file, tmp_path):
    clip, bert = word_tokenizers(['a b c'], tmp_path)
    vocab = Vocabulary(clip, bert, 2)
    with pytest.warns(UserWarning, match='more than 2 tokens'): vocab.encode(['a b c'])
    data = StoryDataset(file['train'], vocab, 8, 8)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', 'a caption has more than')   # a worker that warned would fail
        for batch in DataLoader(data, 1, num_workers=2, collate_fn=collate): pass
    assert vocab.n_truncated == 1 + 5*len(data)

def test_word_tokenizers(tmp_path):
    rng = random.Random(0)
    words = ['the', 'he', 'them', 'anna', 'banana', 'naïve', 'straße', 'a', 'été', 'aaaa', 'aaaaaa', '中文',
             *(''.join(rng.choices('abcd', k=rng.randint(1, 9))) for _ in range(300))]
    clip, bert = word_tokenizers(words, tmp_path)
    for w in words:
        assert len(clip.tokenize(w)) == 1, w
        assert clip.decode(clip(w)['input_ids'], skip_special_tokens=True).strip() == w
    assert [w for w in words if len(bert.tokenize(w)) != 1] == ['中文']   # BERT reads such letters one by one
    assert sorted(p.name for p in (tmp_path/'clip').iterdir()) == ['merges.txt', 'tokenizer_config.json', 'vocab.json']
    assert sorted(p.name for p in (tmp_path/'bert').iterdir()) == ['tokenizer_config.json', 'vocab.txt']

def test_unknown_words_are_still_read(tmp_path):
    clip, bert = word_tokenizers(['A red ball.', 'It jumps!'], tmp_path)
    text = 'zebra "ünder" 42 % 日本 😀 {x}'
    assert clip.unk_token_id not in clip(text)['input_ids'][1:-1]
    assert clip.decode(clip(text)['input_ids'], skip_special_tokens=True).replace(' ', '') == text.replace(' ', '')
    assert bert.tokenize('zebra 42') == ['z', '##e', '##b', '##r', '##a', '4', '##2']
    assert bert.tokenize('日') == ['[UNK]']
    files = {p: p.read_bytes() for p in tmp_path.rglob('*.*')}
    code = ('import sys; from arldm.data.dataset import word_tokenizers; '
            "word_tokenizers(['It jumps!', 'A red ball.'], sys.argv[1])")
    subprocess.run([sys.executable, '-c', code, str(tmp_path)], check=True)
    assert files == {p: p.read_bytes() for p in tmp_path.rglob('*.*')}   # the same in another process

def photo(seed, w=40, h=30, kind='PNG'):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (h, w, 3), 'uint8')).save(out, kind)
    return out.getvalue()

def grey(v): return to_png(Image.new('RGB', (40, 30), (v, v, v)))

@pytest.fixture
def file(tmp_path):
    sizes = (40, 30), (30, 40), (24, 24), (99, 61), (16, 90)
    tall = [Story(str(i), 'a', tuple('abcde'), tuple(photo(5*i + k, *s) for k, s in enumerate(sizes)))
            for i in range(6)]
    film = [Story('f', 'b', ('x', 'y'), (tuple(grey(50*k) for k in range(4)), photo(9)))]
    write_stories(tmp_path/'x.h5', dict(train=tall, film=film, mixed=[tall[0], film[0]]), 'toy')
    return StoryFile(tmp_path/'x.h5')

def dataset(file, parity, split='train', **k): return StoryDataset(file[split], parity, resolution=32, memory_side=48, **k)

def test_item_and_batch(file, parity):
    batch = next(iter(DataLoader(dataset(file, parity), 3, collate_fn=collate)))
    assert batch['frames'].shape == (3, 5, 3, 32, 32) and batch['memory'].shape == (3, 5, 3, 48, 48)
    assert batch['frames'].dtype == batch['memory'].dtype == torch.uint8 and batch['frames'].is_contiguous()
    assert {batch[k].shape for k in batch if k.endswith(('ids', 'real'))} == {(3, 5, 64)}
    assert (batch['id'], batch['index'].tolist()) == (['0', '1', '2'], [0, 1, 2])
    with pytest.raises(StoryError, match=r'stories of \[2, 5\] frames in one batch'):
        collate([dataset(file, parity, 'mixed')[i] for i in range(2)])

def test_pictures_are_scaled_cut_and_squashed(file, parity):
    item = dataset(file, parity)[1]
    for k, picture in enumerate(file['train'][1].pictures()):
        short = min(picture.size)
        w, h = (32 if s == short else int(32*s/short) for s in picture.size)
        x, y = round((w - 32)/2), round((h - 32)/2)
        want = picture.resize((w, h), Image.BILINEAR).crop((x, y, x + 32, y + 32))
        assert (item['frames'][k].permute(1, 2, 0).numpy() == np.array(want)).all()
        assert (item['memory'][k].permute(1, 2, 0).numpy() == np.array(want.resize((48, 48), Image.BILINEAR))).all()
    scaled = np.array(picture.resize((w, h), Image.BILINEAR))   # (h, w, 3), taller than wide
    for at, top in ((0, 0), 0), ((1, 1), h - 32):
        assert (np.array(center_crop(picture, 32, at)) == scaled[top:top + 32]).all()

@pytest.mark.parametrize('workers', [0, 1, 2])
def test_chance_does_not_depend_on_workers_or_order(file, parity, workers):
    data, seen = dataset(file, parity, train=True, seed=3), []
    for epoch in range(2):
        steps = [[(i, epoch), (i + 1, epoch)] for i in ([4, 0, 2] if workers else [0, 2, 4])]
        loader = DataLoader(data, batch_sampler=steps, num_workers=workers, collate_fn=collate)
        got = {int(i): f for b in loader for i, f in zip(b['index'], b['frames'])}
        alone = dataset(file, parity, train=True, seed=3)
        assert sorted(got) == list(range(6)) and all(torch.equal(got[i], alone[i, epoch]['frames']) for i in got)
        seen.append(got[0])
    assert not torch.equal(*seen)   # another epoch, other squares
    assert not torch.equal(dataset(file, parity, train=True, seed=4)[0]['frames'], seen[0])
    assert torch.equal(pickle.loads(pickle.dumps(alone))[0, 1]['frames'], seen[1])

def test_frames_of_several_pictures(file, parity):
    assert dataset(file, parity, 'film')[0]['frames'][0].unique().tolist() == [0]   # the first picture
    data, seen = dataset(file, parity, 'film', train=True), set()
    for epoch in range(40): seen |= set(data[0, epoch]['frames'][0].unique().tolist())
    assert seen == {0, 50, 100, 150} and len(data[0]['frames']) == 2

def test_legacy_chooses_pictures_at_random_without_training_too(file, parity):
    data, seen = dataset(file, parity, 'film', legacy=True, seed=3), set()
    for epoch in range(40):
        frames = data[0, epoch]['frames']
        seen |= set(frames[0].unique().tolist())
        assert torch.equal(frames[1], data[0]['frames'][1])   # the centre crop of the only picture
        assert torch.equal(frames, dataset(file, parity, 'film', legacy=True, seed=3)[0, epoch]['frames'])
    assert seen == {0, 50, 100, 150}

def test_validation_has_no_chance(file, parity):
    a, b = dataset(file, parity, seed=1), dataset(file, parity, seed=2)
    assert torch.equal(a[0]['frames'], b[0, 5]['frames']) and torch.equal(a[-1]['frames'], b[5]['frames'])
    with pytest.raises(IndexError): a[6]

def test_ranges_on_the_device():
    x = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 3).expand(2, 3, 1, 3)
    assert torch.allclose(to_target(x)[0, 0, 0], torch.tensor([-1., -.6, 1.]))
    mean, std = (.48145466, .4578275, .40821073), (.26862954, .26130258, .27577711)
    for c in range(3): assert torch.allclose(to_memory(x)[1, c, 0], (torch.tensor([0., .2, 1.]) - mean[c])/std[c])


def test_sizes_of_a_model(file):
    "Vocabulary and sizes come from a model or a pipeline; a size that is named counts."
    model = ARLDM.load(asset('toy/base'))
    pipe = StoryPipeline.from_model(model)
    for given in model, pipe:
        data = StoryDataset(file['train'], given)
        assert (data.vocab.length, data.resolution, data.memory_side) == (36, 64, 64)
        assert StoryDataset(file['train'], given, 32).resolution == 32
    assert StoryDataset(file['train'], model.vocab, 16).memory_side == 224
    with pytest.raises(StoryError, match='a vocabulary says nothing of the size of frames; name it, resolution=64'):
        StoryDataset(file['train'], model.vocab)
    text = repr(StoryDataset(file['train'], model, train=True, crops=2))
    assert text.endswith('; 64×64 pixels, memory 64×64; 2 random crops of each picture)')

def test_one_crop_is_the_centre(tmp_path):
    "So what stands still in a story of wide pictures does so in training; with two crops it jumps."
    wide = np.zeros((32, 96, 3), 'uint8')
    wide[:, :32, 0], wide[:, 32:64, 1], wide[:, 64:, 2] = 255, 255, 255   # red, green, blue squares
    pictures = []
    for k in range(6):
        wide[0, 40] = k   # six different pictures
        pictures.append(to_png(Image.fromarray(wide)))
    write_stories(tmp_path/'wide.h5', dict(train=[Story('s', 's', ('a',)*6, tuple(pictures))]), 'ssid')
    split = StoryFile(tmp_path/'wide.h5')['train']
    one, two = (StoryDataset(split, parity_vocab(), 32, 32, train=True, crops=n)[0]['frames'] for n in (1, 2))
    middle = torch.tensor([0, 255, 0])[:, None, None].expand(3, 31, 32)
    assert all(torch.equal(frame[:, 1:], middle) for frame in one)
    assert not all(torch.equal(frame[:, 1:], two[0, :, 1:]) for frame in two)
