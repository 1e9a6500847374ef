// Cast cards: pictures with names, from files that are dropped or chosen, and from the examples.

const LARGEST = 1024   // pixels of the longer side; larger pictures are made smaller first

// A file as a picture, turned as its EXIF says, transparent parts white
export async function decodePicture(blob, name) {
  let bitmap
  try { bitmap = await createImageBitmap(blob) } catch {
    throw new Error(`${name} is no picture that this browser can read; the others are kept`)
  }
  const shrink = Math.min(1, LARGEST/Math.max(bitmap.width, bitmap.height))
  const width = Math.max(1, Math.round(bitmap.width*shrink)), height = Math.max(1, Math.round(bitmap.height*shrink))
  const canvas = Object.assign(document.createElement('canvas'), {width, height})
  const pen = canvas.getContext('2d', {willReadFrequently: true})
  pen.fillStyle = 'white'
  pen.fillRect(0, 0, width, height)
  pen.drawImage(bitmap, 0, 0, width, height)
  bitmap.close()
  const rgba = pen.getImageData(0, 0, width, height).data, rgb = new Uint8ClampedArray(3*width*height)
  for (let i = 0; i < width*height; i++) rgb.set(rgba.subarray(4*i, 4*i + 3), 3*i)
  return {width, height, rgb}
}

// Show a picture {width, height, rgb} in a canvas
export function paint(canvas, {width, height, rgb}) {
  Object.assign(canvas, {width, height})
  const pixels = new ImageData(width, height)
  for (let i = 0; i < width*height; i++) {
    pixels.data.set(rgb.subarray(3*i, 3*i + 3), 4*i)
    pixels.data[4*i + 3] = 255
  }
  canvas.getContext('2d').putImageData(pixels, 0, 0)
}

// The cards of the page; `changed()` is called after each change, `edited()` before one that the user makes,
// `failed(message)` for a file that is no picture
export class Cards {
  constructor(box, capacity, {changed, edited, failed}) {
    Object.assign(this, {list: box.querySelector('.cards'), capacity, changed, edited, failed, cards: []})
    box.hidden = false
    const input = this.input = box.querySelector('input[type=file]')
    input.addEventListener('change', async () => { await this.addFiles([...input.files]); input.value = '' })
    box.addEventListener('dragover', event => { event.preventDefault(); box.classList.add('over') })
    box.addEventListener('dragleave', () => box.classList.remove('over'))
    box.addEventListener('drop', event => {
      event.preventDefault()
      box.classList.remove('over')
      this.addFiles([...event.dataTransfer.files])
    })
  }

  // Whether there is no room for files, which is then said
  isFull(files) {
    if (this.cards.length < this.capacity) return false
    const names = files.map(file => file.name).join(', ')
    this.failed(`the model has room for ${this.capacity} cards; take one away before adding ${names}`)
    return true
  }

  // `reading` is a promise until all pictures are read
  track(promise) {
    const reading = this.reading = Promise.allSettled([this.reading, promise])
    reading.then(() => { if (this.reading === reading) this.reading = null })
    return promise
  }

  addFiles(files) { return this.track(this.readFiles(files)) }

  async readFiles(files) {
    for (const [i, file] of files.entries()) {
      if (this.isFull(files.slice(i))) return
      await this.add(file)
    }
  }

  async add(file) {
    let picture
    try { picture = await decodePicture(file, file.name) } catch (e) { return this.failed(e.message) }
    if (this.isFull([file])) return   // of two drops at once
    this.edited()
    this.cards.push({name: file.name.replace(/\.[^.]*$/, ''), picture})
    this.show()
  }

  // Other cards instead: {name: data URL}
  replace(urls) { this.track(this.read(urls)) }

  // Cards that were shown before
  restore(cards) {
    this.cards = cards
    this.show()
  }

  async read(urls) {
    const cards = this.cards = []   // what is still being read for the cards before them is not shown
    this.show()
    for (const [name, url] of Object.entries(urls))
      cards.push({name, picture: await decodePicture(await (await fetch(url)).blob(), name)})
    if (cards === this.cards) this.show()
  }

  show() {
    const names = () => [...this.list.querySelectorAll('input')]
    const typing = names().indexOf(document.activeElement), at = names()[typing]?.selectionStart
    this.list.replaceChildren(...this.cards.map((card, i) => {
      const item = document.createElement('li'), canvas = document.createElement('canvas')
      const name = Object.assign(document.createElement('input'), {value: card.name, size: 8, ariaLabel: `Name on card ${i + 1}`})
      const drop = Object.assign(document.createElement('button'), {type: 'button', textContent: '×', ariaLabel: `Take card ${i + 1} away`})
      paint(canvas, card.picture)
      name.addEventListener('input', () => { card.name = name.value; this.edited(); this.changed() })
      drop.addEventListener('click', () => {
        this.edited()
        this.cards.splice(i, 1)
        this.show()
        const next = this.list.querySelectorAll('button')[Math.min(i, this.cards.length - 1)]
        ;(next ?? this.input).focus()
      })
      item.append(canvas, name, drop)
      return item
    }))
    const field = names()[typing]   // of a name that is being written while a picture is read
    field?.focus()
    field?.setSelectionRange(at, at)
    this.changed()
  }
}
