// Captions become tokens as the tokenizers of Hugging Face make them, from their own tokenizer.json:
// byte pair encoding for CLIP, WordPiece for BERT.

// What ftfy repairs in the captions for CLIP, without its guesses about wrong encodings and HTML
const REPAIRS = [[/[\u02bc\u2018-\u201b]/g, "'"], [/[\u201c-\u201f]/g, '"'], [/\r\n|[\r\u2028\u2029\u0085]/g, '\n'],
  [/[\ufb00-\ufb06\uff01-\uffef\u3000]/g, c => c.normalize('NFKC')],
  [/[\0-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]/g, '']]
export function repaired(text) {
  for (const [found, replacement] of REPAIRS) text = text.replace(found, replacement)
  return text.normalize('NFC')
}

// Each character by itself, so that a sigma at the end of a word is as any other
const lower = text => Array.from(text, c => c.toLowerCase()).join('')

function normalizeClip(text) { return lower(text.normalize('NFC').replace(/\s+/gu, ' ')) }

const IDEOGRAPH = /[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u{20000}-\u{2a6df}\u{2a700}-\u{2ceaf}\u{2f800}-\u{2fa1f}]/gu
function normalizeBert(text) {
  const clean = text.replace(/[\t\n\r]/g, ' ').replace(/[\p{C}\ufffd]/gu, '').replace(/\p{Zs}/gu, ' ')
  return lower(clean.replace(IDEOGRAPH, ' $& ').normalize('NFD').replace(/\p{Mn}/gu, ''))
}

// GPT-2's letters for the 256 bytes
const BYTE_LETTERS = (() => {
  const isPlain = b => b >= 33 && b <= 126 || b >= 161 && b <= 172 || b >= 174
  let next = 256
  return Array.from({length: 256}, (_, b) => String.fromCodePoint(isPlain(b) ? b : next++))
})()
const BYTE_PIECES = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu

class BytePairs {
  constructor(spec) {
    this.vocab = spec.model.vocab
    this.unknown = spec.model.unk_token
    this.ranks = new Map(spec.model.merges.map((merge, i) => [merge.join?.(' ') ?? merge, i]))
    const split = spec.pre_tokenizer.pretokenizers.find(step => step.type === 'Split')
    this.pieces = new RegExp(split.pattern.Regex, 'gu')
    this.normalize = normalizeClip
  }

  words(text) {
    return (text.match(this.pieces) ?? []).flatMap(piece => piece.match(BYTE_PIECES) ?? [])
  }

  // The pair of the lowest rank is merged, again and again
  split(word) {
    const parts = Array.from(new TextEncoder().encode(word), b => BYTE_LETTERS[b])
    parts.push(`${parts.pop()}</w>`)
    while (parts.length > 1) {
      let best = Infinity, at = 0
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity
        if (rank < best) [best, at] = [rank, i]
      }
      if (best === Infinity) break
      parts.splice(at, 2, parts[at] + parts[at + 1])
    }
    return parts.map(part => Object.hasOwn(this.vocab, part) ? part : this.unknown)
  }

  // The text of a token
  decode(token) {
    const bytes = Array.from(token.replace(/<\/w>$/, ''), c => BYTE_LETTERS.indexOf(c))
    return new TextDecoder().decode(Uint8Array.from(bytes)).trim()
  }
}

class WordPieces {
  constructor(spec) {
    this.vocab = spec.model.vocab
    this.unknown = spec.model.unk_token
    this.prefix = spec.model.continuing_subword_prefix
    this.longest = spec.model.max_input_chars_per_word
    this.normalize = normalizeBert
  }

  words(text) { return text.match(/[\p{P}$+<=>^`|~]|[^\s\p{P}$+<=>^`|~]+/gu) ?? [] }

  // The longest piece that is in the vocabulary, again and again
  split(word) {
    const letters = Array.from(word), parts = []
    if (letters.length > this.longest) return [this.unknown]
    for (let from = 0; from < letters.length;) {
      let to = letters.length, piece = ''
      for (; to > from; to--) {
        piece = (from ? this.prefix : '') + letters.slice(from, to).join('')
        if (Object.hasOwn(this.vocab, piece)) break
      }
      if (to === from) return [this.unknown]
      parts.push(piece)
      from = to
    }
    return parts
  }

  decode(token) { return token.replace(this.prefix, '') }
}

const isWordLetter = c => c !== undefined && /[\p{L}\p{N}\p{M}_]/u.test(c)

export class Tokenizer {
  // `spec`: tokenizer.json; `ends`: {start, end, pad}, ids
  constructor(spec, ends, length) {
    Object.assign(this, {ends, length})
    this.model = spec.model.type === 'BPE' ? new BytePairs(spec) : new WordPieces(spec)
    // names and words with a token of their own; special tokens are ordinary text in a caption
    const own = spec.added_tokens.filter(token => !token.special)
    this.own = own.map(t => ({...t, text: t.normalized ? this.model.normalize(t.content) : t.content}))
    this.size = new Set([...Object.keys(spec.model.vocab), ...spec.added_tokens.map(token => token.content)]).size
    this.own.sort((a, b) => b.text.length - a.text.length)
  }

  // Tokens of a text, without those at its ends
  tokenize(text) {
    const tokens = []
    for (const part of this.cut([text], token => !token.normalized)) {
      if (part.content) { tokens.push(part.content); continue }
      for (const piece of this.cut([this.model.normalize(part)], token => token.normalized)) {
        if (piece.content) tokens.push(piece.content)
        else for (const word of this.model.words(piece)) tokens.push(...this.model.split(word))
      }
    }
    return tokens
  }

  // Cut one text at the tokens of its own for which `which` holds: a list of texts and tokens
  cut([text], which) {
    const own = this.own.filter(which), parts = []
    let from = 0
    for (let at = 0; own.length && at < text.length; at++) {
      const token = own.find(token => text.startsWith(token.text, at) && (!token.single_word
        || !isWordLetter(text[at - 1]) && !isWordLetter(text[at + token.text.length])))
      if (!token) continue
      if (at > from) parts.push(text.slice(from, at))
      parts.push(token)
      from = at + token.text.length
      at = from - 1
    }
    if (from < text.length) parts.push(text.slice(from))
    return parts
  }

  // ids: `length` numbers; real: 1 for each token, 0 for padding; count: tokens before truncation
  encode(text) {
    const {start, end, pad} = this.ends, own = new Map(this.own.map(token => [token.content, token.id]))
    let ids = this.tokenize(text).map(token => own.get(token) ?? this.model.vocab[token])
    ids = [start, ...ids, end]
    const count = ids.length
    if (count > this.length) ids = [...ids.slice(0, this.length - 1), end]
    const real = Uint8Array.from({length: this.length}, (_, i) => i < ids.length)
    while (ids.length < this.length) ids.push(pad)
    return {ids, real, count}
  }
}
