// The page: fields and buttons, what is odd about a story, and the worker that draws it.
import {Cards, paint} from './cards.js'
import {read} from './files.js'
import {loadVocabulary} from './model.js'
import {strip} from './strip.js'

const form = document.getElementById('story'), at = form.elements
const [list, status, notes, progress] = ['.frames', '.status', '.notes', 'progress'].map(s => form.querySelector(s))
let manifest, vocabulary, cards = null, worker = null
let isDrawing = false
let wanted = new Map()   // frames of this task: number, from 0 -> caption
let doneLine = ''        // what is said when they are drawn
let pressed              // the button that began the task
const frames = []        // {item, canvas, field, button, isDrawn, isKept: by the worker, caption: of its picture, redraws}
let own = null           // captions and cards of the user's own, while an example is shown
let isOwn = false        // whether they are shown now
let hasBegun = false     // whether the worker has drawn a step: then it can stop by itself

function say(text, isWrong = false) {
  status.textContent = text
  status.classList.toggle('wrong', isWrong)
}

const captions = () => frames.map(frame => frame.field.value.trim())

// The smallest module that needs SIMD: a function that returns a vector
const hasSimd = () => WebAssembly.validate(Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0,
  10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11))


// frames

function placeholder(canvas, k) {
  const side = manifest.side
  Object.assign(canvas, {width: side, height: side, ariaLabel: `Frame ${k + 1}, not drawn yet`})
  const pen = canvas.getContext('2d')
  pen.fillStyle = '#8884'
  pen.fillRect(0, 0, side, side)
  Object.assign(pen, {fillStyle: '#888', font: `${side/4}px sans-serif`, textAlign: 'center', textBaseline: 'middle'})
  pen.fillText(k + 1, side/2, side/2)
}

function addFrame(caption = '') {
  const k = frames.length, item = document.createElement('li'), canvas = document.createElement('canvas')
  const field = Object.assign(document.createElement('textarea'), {value: caption, ariaLabel: `Caption ${k + 1}`, rows: 3})
  const button = Object.assign(document.createElement('button'), {type: 'button', textContent: 'Redraw', disabled: true,
    ariaLabel: `Redraw frame ${k + 1}`})
  canvas.setAttribute('role', 'img')
  const frame = {item, canvas, field, button, isDrawn: false, isKept: false, redraws: 0}
  field.addEventListener('input', () => { edited(); note() })
  button.addEventListener('click', () => redraw(k))
  placeholder(canvas, k)
  item.append(canvas, field, button)
  list.append(item)
  frames.push(frame)
}

// No frame is drawn
function clear() {
  frames.forEach((frame, k) => { Object.assign(frame, {isDrawn: false, isKept: false, redraws: 0}); placeholder(frame.canvas, k) })
}

// The story is no longer an example; what it took the place of can be chosen again
function edited() {
  if (!isOwn && own) return
  isOwn = true
  at.example.value = ''
}

// An example, or again what it took the place of
function choose() {
  const example = manifest.examples[at.example.value]
  if (isOwn && example) own = {captions: frames.map(frame => frame.field.value), cards: cards?.cards}
  isOwn = !example
  if (example) {
    setCaptions(example.captions)
    cards?.replace(example.cast ?? {})
  } else if (own) {
    setCaptions(own.captions)
    if (own.cards) cards.restore(own.cards)
  } else {
    setCaptions(frames.map(() => ''))
    cards?.replace({})
  }
}

// Captions of another story
function setCaptions(texts) {
  while (frames.length > texts.length) frames.pop().item.remove()
  while (frames.length < texts.length) addFrame()
  texts.forEach((text, k) => { frames[k].field.value = text })
  clear()
  note()
}

// Which buttons can be pressed now
function refresh() {
  form.querySelector('.draw').disabled = isDrawing
  at.stop.hidden = progress.hidden = !isDrawing
  at.fewer.disabled = isDrawing || frames.length === 1
  at.more.disabled = isDrawing || frames.length >= manifest.n_slots
  at.example.disabled = isDrawing
  at.download.disabled = isDrawing || !frames.some(frame => frame.isDrawn)
  for (const frame of frames) frame.button.disabled = isDrawing || !frame.isKept
}


// what is odd, and what is wrong

// Whether a caption has a name as a whole word
function mentions(caption, name) {
  const word = name.trim().replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&')
  return new RegExp(`(?<![\\p{L}\\p{N}_])${word}(?![\\p{L}\\p{N}_])`, 'iu').test(caption)
}

function note() {
  const texts = captions(), found = []
  const unknown = vocabulary.unknownWords([...texts, ...(cards?.cards ?? []).map(card => card.name)])
  if (unknown.length) {
    const more = unknown.length > 8 ? ` and ${unknown.length - 8} more` : ''
    const named = unknown.slice(0, 8).map(word => word.slice(0, 30)).join(', ')
    found.push(`the model’s vocabulary does not know: ${named}${more}; pictures will not show that`)
  }
  texts.forEach((text, k) => {
    const {count} = vocabulary.encode(text)
    if (count > vocabulary.length) found.push(`caption ${k + 1} is too long: of its ${count} tokens the model reads ${vocabulary.length}`)
  })
  for (const {name} of cards?.cards ?? [])
    if (name.trim() && !texts.some(text => mentions(text, name))) found.push(`no caption mentions ${name}; the card is used all the same`)
  // a list that stays the same is not announced again
  if (found.join('\n') !== [...notes.children].map(item => item.textContent).join('\n'))
    notes.replaceChildren(...found.map(text => Object.assign(document.createElement('li'), {textContent: text})))
  for (const frame of frames) frame.field.removeAttribute('aria-invalid')
  refresh()
}

// A number from a field, or an error that names it
function number(name, low, high, isWhole) {
  const text = at[name].value.trim(), x = Number(text)
  if (text && x >= low && x <= high && (!isWhole || Number.isInteger(x))) return x
  at[name].focus()
  throw new Error(`${name} must be a ${isWhole ? 'whole ' : ''}number from ${low} to ${high}, got ${text || 'nothing'}`)
}

function settings() {
  return {steps: number('steps', 1, 100, true), guidance: number('guidance', 0, 20), sampler: at.sampler.value}
}

function checkCaption(k) {
  const field = frames[k].field, text = field.value.trim()
  if (text) return text
  field.setAttribute('aria-invalid', 'true')
  field.focus()
  throw new Error(`caption ${k + 1} is empty; say what the frame shows, or take the frame away`)
}


// The cards by their names, which must differ
function checkCast() {
  const cast = (cards?.cards ?? []).map(({name, picture}) => ({name: name.trim(), picture})), seen = new Set()
  for (const {name} of cast) {
    const key = name.toLowerCase()
    if (!name || seen.has(key))
      throw new Error(name ? `two cards are named ${name}; names must differ` : 'a card has no name; give it one, such as Ada')
    seen.add(key)
  }
  return cast
}


// drawing

function start(message, captions, line, button) {
  if (!worker) {
    hasBegun = false
    worker = new Worker(new URL(`worker.js${location.search}`, import.meta.url), {type: 'module'})
    worker.addEventListener('message', ({data}) => answers[data.said](data))
    worker.addEventListener('error', () => answers.failed({why: 'the worker that draws could not start'}))
  }
  wanted = captions
  doneLine = line
  pressed = button
  isDrawing = true
  progress.removeAttribute('value')
  refresh()
  at.stop.focus()
  worker.postMessage(message)
}

function end(text, isWrong) {
  isDrawing = false
  const isLost = [document.body, at.stop].includes(document.activeElement)   // the focus, when Stop is hidden
  for (const frame of frames) frame.item.classList.remove('drawing')
  refresh()
  if (isLost) (pressed.disabled ? form.querySelector('.draw') : pressed).focus()
  say(text, isWrong)
}

const answers = {
  loading({bytes, of}) { say(`loading the model, ${(bytes/1e6).toFixed(1)} of ${(of/1e6).toFixed(1)} MB`) },
  step({k, step, steps}) {
    hasBegun = true
    frames.forEach((frame, i) => frame.item.classList.toggle('drawing', i === k))
    progress.value = ([...wanted.keys()].indexOf(k) + step/steps)/wanted.size
    if (step === 1) say(`frame ${k + 1} of ${frames.length}`)   // not every step, for screen readers
  },
  frame({k, picture}) {
    paint(frames[k].canvas, picture)
    Object.assign(frames[k], {isDrawn: true, isKept: true, caption: wanted.get(k)})
    frames[k].canvas.ariaLabel = `Frame ${k + 1}: ${wanted.get(k)}`
  },
  done({seconds, runtime}) { end(`${doneLine} in ${seconds.toFixed(1)} s, ${runtime}`) },
  stopped() { end('stopped') },
  failed({why}) {
    dismiss()
    end(why, true)
  },
}

// The worker's memory of the frames is gone with it
function dismiss() {
  worker.terminate()
  worker = null
  for (const frame of frames) frame.isKept = false
}

function stop() {
  if (hasBegun) return worker.postMessage({task: 'stop'})
  dismiss()   // while it loads, it does not listen
  end('stopped')
}

function draw() {
  if (isDrawing) return
  if (cards?.reading) return cards.reading.finally(draw)
  try {
    const texts = frames.map((_, k) => checkCaption(k)), seed = number('seed', 0, 2**32 - 1, true)
    const message = {task: 'draw', captions: texts, seed, settings: settings(), cast: checkCast()}
    clear()
    say(worker ? 'reading the captions' : 'loading the model')
    start(message, new Map(texts.entries()), `${texts.length} frame${texts.length === 1 ? '' : 's'} drawn`,
      form.querySelector('.draw'))
  } catch (e) { say(e.message, true) }
}

// Another seed each time; what the page shows of the other frames stays
function redraw(k) {
  if (cards?.reading) return cards.reading.finally(() => redraw(k))
  try {
    const caption = checkCaption(k), seed = (number('seed', 0, 2**32 - 1, true) + frames[k].redraws + 1) % 2**32
    const message = {task: 'redraw', k, caption, seed, settings: settings(), cast: checkCast()}
    frames[k].redraws++
    start(message, new Map([[k, caption]]), `frame ${k + 1} drawn again with seed ${seed}`, frames[k].button)
  } catch (e) { say(e.message, true) }
}

async function download() {
  const url = URL.createObjectURL(await strip(frames.filter(frame => frame.isDrawn)))
  Object.assign(document.createElement('a'), {href: url, download: 'story.png'}).click()
  setTimeout(() => URL.revokeObjectURL(url), 10000)
}

async function begin() {
  form.addEventListener('submit', event => { event.preventDefault(); draw() })
  if (!hasSimd()) return say('this browser has no WebAssembly SIMD, which drawing needs; use one from 2022 or later', true)
  try { ({manifest, vocabulary} = await loadVocabulary(read)) } catch (e) { return say(e.message, true) }
  if (manifest.cast) cards = new Cards(form.querySelector('.cast'), Math.max(1, manifest.n_slots - 1),
    {changed: note, edited, failed: text => say(text, true)})
  manifest.examples.forEach(({captions: [first]}, i) => at.example.add(new Option(first.length > 60 ? `${first.slice(0, 58)}…` : first, i)))
  at.example.addEventListener('change', choose)
  at.more.addEventListener('click', () => { edited(); addFrame(); note(); frames.at(-1).field.focus() })
  at.fewer.addEventListener('click', () => { edited(); frames.pop().item.remove(); note() })
  at.stop.addEventListener('click', stop)
  at.download.addEventListener('click', download)
  at.example.value = '0'
  at.example.dispatchEvent(new Event('change'))
  await cards?.reading
  const parts = Object.values(manifest.parts).reduce((sum, part) => sum + part.bytes, 0)
  const [wasm, webgpu] = manifest.runtime_bytes.map(bytes => `${((parts + bytes)/1e6).toFixed(0)} MB`)
  say(`ready; the first drawing loads ${wasm}, with WebGPU ${webgpu}`)
}

begin()
