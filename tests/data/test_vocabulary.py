"Words that a vocabulary does not know are named once; special tokens written in a caption are text."
import pickle, time, warnings
from pathlib import Path

import pytest
import torch
from transformers import BertTokenizer, CLIPTokenizer

from arldm.core import StoryError, asset
from arldm.data.dataset import Vocabulary, collate, word_tokenizers
from arldm.data import vocabulary
from arldm.data.vocabulary import is_known, words_in
from arldm.toy.captions import TOY_WORDS
from arldm.toy.corpus import toy_story

HERE = Path(__file__).resolve().parents[1]/'parity/tokenizers'
SPECIAL = '[SEP]', '[ENC]', '[DEC]', '[CLS]', '[PAD]', '[UNK]', '[MASK]', '<|endoftext|>', '<|startoftext|>'

def toy(length=36):
    return Vocabulary(CLIPTokenizer.from_pretrained(asset('toy/arldm')/'tokenizer'),
                      BertTokenizer.from_pretrained(asset('toy/arldm')/'memory_tokenizer'), length)

def recorded(length=64, names=()):
    return Vocabulary(CLIPTokenizer.from_pretrained(HERE/'clip'), BertTokenizer.from_pretrained(HERE/'bert'), length, names)

def notes(vocab, captions):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        vocab.note_unknown(captions)
    return [str(w.message) for w in said]


# words that the vocabulary does not know

def test_the_toys_own_captions_give_no_note():
    vocab = toy()
    assert notes(vocab, [c for i in range(200) for t in range(2) for c in toy_story(i, telling=t).captions]) == []
    assert notes(vocab, [c for i in range(50) for c in toy_story(i, hard=True).captions]) == [] and notes(vocab, TOY_WORDS) == []

def test_unknown_words_are_named_once():
    vocab, captions = toy(), ['Ada sees a huge dragon.', 'The dragon and a castle!', 'She jumps.']
    assert vocab.unknown_words(captions) == ['sees', 'huge', 'dragon', 'castle']
    line, = notes(vocab, captions)
    assert 'know: sees, huge, dragon, castle; pictures' in line and '\n' not in line
    assert notes(vocab, captions) == []                                                   # each only once
    assert 'know: wizard;' in notes(vocab, ['A dragon, a wizard.'])[0]
    assert vocab.unknown_words(captions) == ['sees', 'huge', 'dragon', 'castle']          # asked, it still says

def test_of_many_words_eight_are_named():
    words = [f'{a}{b}zx' for a in 'bcdfg' for b in 'qwv']
    line, = notes(toy(), [' '.join(words)])
    assert ', '.join(words[:8]) + ' and 7 more' in line and words[8] not in line

@pytest.mark.parametrize('text', ['3 red 80 1,000 3rd', '!? … — “” () ★ 🙂', "Ada's she'll", '', 'a I é', 'Pororo meets pororo',
                                  'RED Red', '[[]]'])
def test_what_is_no_unknown_word(text, tmp_path):
    words = word_tokenizers(['Ada she red meets i'], tmp_path)
    assert Vocabulary(*words, 36, ('pororo',)).unknown_words([text]) == []

def test_pieces_that_are_longer_than_letters_are_known(monkeypatch):
    "As real vocabularies spell rare words: three pieces of the recorded BERT's, which is an extract; letters alone are not."
    monkeypatch.setattr(vocabulary, '_LARGE', 100)
    vocab, bert = recorded(), recorded().memory_tokenizer
    pieces = [t for t in bert.get_vocab() if t.startswith('##') and len(t) > 4]
    whole = [t for t in bert.get_vocab() if t.isalpha() and len(t) > 3]
    if pieces: assert is_known(whole[0] + pieces[0][2:], bert)
    assert all(is_known(w, bert) for w in whole) and not is_known('zzz', bert) and vocab.unknown_words(['zzz']) == ['zzz']

def test_chinese_characters(tmp_path):
    words = word_tokenizers(['中文'], tmp_path)
    vocab = Vocabulary(*words, 36)
    assert vocab.unknown_words(['中文文中']) == [] and vocab.unknown_words(['中文字']) == ['中文字']

def test_a_hundred_thousand_captions_are_fast(monkeypatch):
    "Each different word is tokenised once."
    vocab, calls = toy(), []
    plain = type(vocab.memory_tokenizer).tokenize
    monkeypatch.setattr(type(vocab.memory_tokenizer), 'tokenize', lambda self, w, **k: calls.append(w) or plain(self, w, **k))
    start = time.perf_counter()
    vocab.unknown_words(f'Ada jumps over dragon {chr(97 + i % 26)*4} number {i}.' for i in range(100_000))
    assert len(calls) <= 4*32 and time.perf_counter() - start < 5

def test_workers_take_it_along():
    vocab = toy()
    assert len(notes(vocab, ['A dragon.'])) == 1
    again = pickle.loads(pickle.dumps(vocab.__dict__ | dict(_n_truncated=None)))
    assert again['_warned_words'] == {'dragon'}


# special tokens in a caption

@pytest.mark.parametrize('make', [toy, recorded])
@pytest.mark.parametrize('special', SPECIAL)
def test_special_tokens_in_a_caption_are_text(make, special):
    vocab = make()
    got = vocab.encode([f'ada {special} jumps'])
    for key, tokenizer in ('caption', vocab.caption_tokenizer), ('memory', vocab.memory_tokenizer):
        first, *inner, last = got[f'{key}_ids'][0][got[f'{key}_real'][0]].tolist()
        own = {tokenizer.convert_tokens_to_ids(t) for t in tokenizer.all_special_tokens if t != '[UNK]'}
        assert not own & {*inner} and len(inner) > 4   # [UNK] may be a bracket
        assert {first, last} <= own                                                  # begin and end are where they were

def test_special_tokens_read_like_their_characters():
    vocab = toy()
    for special in SPECIAL:
        if special[0] != '[': continue
        a, b = (vocab.encode([f'ada {x} jumps']) for x in (special, f'[ {special[1:-1].lower()} ]'))
        assert all(torch.equal(a[k], b[k]) for k in a), special

def test_names_are_still_single_tokens_and_truncation_keeps_the_end():
    vocab = recorded(8, ('pororo', 'loopy'))
    for tokenizer in vocab.caption_tokenizer, vocab.memory_tokenizer:
        ids = tokenizer('Loopy [SEP] pororo', split_special_tokens=True)['input_ids']
        assert {tokenizer.convert_tokens_to_ids(n) for n in ('pororo', 'loopy')} <= {*ids}
    with pytest.warns(UserWarning, match='more than 8 tokens'): got = vocab.encode(['loopy [SEP] <|endoftext|> a b c d e f'])
    assert got['caption_ids'][0, -1] == vocab.caption_tokenizer.eos_token_id
    assert got['memory_ids'][0, -1] == vocab.memory_tokenizer.sep_token_id

def test_stories_of_other_lengths_say_what_works():
    items = [dict(caption_ids=torch.zeros(n, 4), index=0, id='x') for n in (2, 5)]
    with pytest.raises(StoryError, match=r'\[2, 5\] frames in one batch.*use batches of 1, or leave out'): collate(items)

def test_clip_counts_letters_and_not_the_end_of_a_word(tmp_path, monkeypatch):
    "CLIP marks the end of a word with `</w>`, which is no letter of it; of a small vocabulary only whole words are known."
    clip, _ = word_tokenizers(['A boat.'], tmp_path)
    def known(): return [is_known(word, clip) for word in ('boat', 'boats', 'zzz', 'q')]
    assert known() == [True, False, False, True]
    monkeypatch.setattr(vocabulary, '_LARGE', 100)
    assert known() == [True, True, False, True]

def test_parts_that_no_caption_has_are_not_known():
    "Each is made of steps of merges of other words, as in *bo* of Bo and *y*."
    words = 'boy', 'hope', 'forty', 'squares', 'others'
    assert toy().unknown_words([' '.join(words)]) == [*words]

@pytest.mark.parametrize('text, words', [('हिन्दी बिल्ली', ['हिन्दी', 'बिल्ली']), ('cafe\u0301!', ['café']), ('שָׁלוֹם', ['שָׁלוֹם'])])
def test_combining_characters_belong_to_words(tmp_path, text, words):
    "One token for each word in a vocabulary that grows by them."
    vocab = Vocabulary(*word_tokenizers(['a ball'], tmp_path), 12)
    assert words_in(text) == words == vocab.add_words([text]) and vocab.unknown_words([text]) == []
    for tokenizer in vocab.caption_tokenizer, vocab.memory_tokenizer:
        assert len(tokenizer.tokenize(text.rstrip('!'))) == len(words) and tokenizer.unk_token not in tokenizer.tokenize(text)
