// Both tokenizers of a model, and the words that one of them does not know.
import {Tokenizer, repaired} from './tokenizer.js'

// Letters with the marks that belong to them; not those beside a digit or after an apostrophe, unless they are three
const LETTER = String.raw`(?:[\p{L}\p{Nl}\p{No}]\p{M}*)`, WORD_LETTER = String.raw`[\p{L}\p{N}_]`
const WORDS = new RegExp(String.raw`(?<!${WORD_LETTER})(?<!${WORD_LETTER}['’])(?<!\p{M})${LETTER}+(?!${WORD_LETTER})`
  + String.raw`|(?<=${WORD_LETTER}['’])${LETTER}{3,}(?!${WORD_LETTER})`, 'gu')
const IDEOGRAPH = /[\u3400-\u9fff\uf900-\ufaff\u{20000}-\u{2a6df}]/u

export function wordsIn(caption) { return repaired(caption).toLowerCase().match(WORDS) ?? [] }

// In a smaller vocabulary, parts of words are no more than steps of a merge
const LARGE = 10_000

// Whether a tokenizer reads a word as one token or, if it has many tokens, most of it in parts of several letters
function isKnown(word, {model, size}) {
  const hasIdeographs = IDEOGRAPH.test(word), isClip = !model.prefix
  if (hasIdeographs && isClip) return true
  const tokens = model.words(model.normalize(word)).flatMap(piece => model.split(piece))
  if (!isClip && tokens.includes(model.unknown)) return false
  if (hasIdeographs || word.length === 1 || tokens.length === 1) return true
  if (size < LARGE) return false
  let inLongParts = 0
  for (const token of tokens) {
    const n = Array.from(model.decode(token)).length
    if (n > 1) inLongParts += n
  }
  return 2*inLongParts > Array.from(word).length
}

export class Vocabulary {
  constructor(manifest, captionSpec, memorySpec) {
    this.length = manifest.length
    this.caption = new Tokenizer(captionSpec, manifest.caption_tokenizer, manifest.length)
    this.memory = new Tokenizer(memorySpec, manifest.memory_tokenizer, manifest.length)
    const names = [...this.caption.own, ...this.memory.own].flatMap(token => wordsIn(token.content))
    this.known = new Map(names.map(word => [word, true]))
  }

  // What both encoders read of a caption, {caption, memory}, and `count`, its tokens
  encode(text) {
    const caption = this.caption.encode(repaired(text)), memory = this.memory.encode(text)
    return {caption, memory, count: Math.max(caption.count, memory.count)}
  }

  // An empty caption of which the padding is attended to, too: the null condition
  null() {
    const tokens = this.encode('')
    for (const {real} of [tokens.caption, tokens.memory]) real.fill(1)
    return tokens
  }

  unknownWords(captions) {
    const unknown = new Set()
    for (const word of captions.flatMap(wordsIn)) {
      if (!this.known.has(word)) this.known.set(word, [this.caption, this.memory].every(t => isKnown(word, t)))
      if (!this.known.get(word)) unknown.add(word)
    }
    return [...unknown]
  }
}
