// Pictures as the memory encoder reads them: scaled as Pillow scales (bilinear, 8 bits), normalised as for CLIP.
// A picture here is {width, height, rgb}, rgb of 3 bytes a pixel, row after row.

// For each of `to` pixels: the first of `from` pixels that it takes from, and their weights in units of 2^-22
function weights(from, to) {
  const scale = from/to, reach = Math.max(scale, 1)
  return Array.from({length: to}, (_, i) => {
    const centre = (i + .5)*scale
    const first = Math.max(0, Math.trunc(centre - reach + .5))
    const last = Math.min(from, Math.trunc(centre + reach + .5))
    const w = Array.from({length: last - first}, (_, k) => Math.max(0, 1 - Math.abs((k + first - centre + .5)/reach)))
    const sum = w.reduce((a, b) => a + b)
    return {first, w: w.map(x => Math.round(x/sum*2**22))}
  })
}

// One direction: `lines` lines of pixels `pixel` bytes apart, each line `line` bytes after the one before
function scaled(rgb, from, to, lines, [pixel, line], [newPixel, newLine]) {
  if (from === to) return rgb
  const out = new Uint8ClampedArray(to*lines*3), table = weights(from, to)
  for (let y = 0; y < lines; y++)
    for (let x = 0; x < to; x++)
      for (let c = 0; c < 3; c++) {
        let sum = 2**21
        table[x].w.forEach((w, k) => { sum += w*rgb[y*line + (table[x].first + k)*pixel + c] })
        out[y*newLine + x*newPixel + c] = sum >> 22
      }
  return out
}

export function resize({width, height, rgb}, newWidth, newHeight) {
  const across = (from, h) => scaled(from, width, newWidth, h, [3, 3*width], [3, 3*newWidth])
  const down = (from, w) => scaled(from, height, newHeight, w, [3*w, 3], [3*w, 3])
  // as Pillow 13: first the direction that leaves fewer pixels, if the height shrinks
  const isDownFirst = newHeight < height && width*newHeight < newWidth*height
  rgb = isDownFirst ? across(down(rgb, width), newHeight) : down(across(rgb, height), newWidth)
  return {width: newWidth, height: newHeight, rgb}
}

// Python's round, for halves
const round = x => x % 1 === .5 && Math.floor(x) % 2 === 0 ? Math.floor(x) : Math.round(x)

// The short side is scaled to `side` pixels, and a square is cut from the middle
export function centerCrop(picture, side) {
  const {width: w, height: h} = picture
  const [width, height] = w <= h ? [side, Math.trunc(side*h/w)] : [Math.trunc(side*w/h), side]
  const left = round((width - side)/2), top = round((height - side)/2)
  const small = resize(picture, width, height), rgb = new Uint8ClampedArray(side*side*3)
  for (let y = 0; y < side; y++) {
    const from = ((top + y)*width + left)*3
    rgb.set(small.rgb.subarray(from, from + side*3), y*side*3)
  }
  return {width: side, height: side, rgb}
}

// Float32Array (3, height, width) of a picture, about mean 0 and standard deviation 1
export function normalised({width, height, rgb}, mean, std) {
  const n = width*height
  return Float32Array.from({length: 3*n}, (_, i) => {
    const c = Math.floor(i/n)
    return (rgb[(i - c*n)*3 + c]/255 - mean[c])/std[c]
  })
}

// What the autoencoder's decoder returns, float (3, side, side) in [-1, 1], as a picture
export function fromDecoder(x, side) {
  const n = side*side, rgb = new Uint8ClampedArray(3*n)   // rounds halves to even and clamps
  for (let c = 0; c < 3; c++)
    for (let i = 0; i < n; i++) rgb[3*i + c] = (x[c*n + i] + 1)*127.5
  return {width: side, height: side, rgb}
}
