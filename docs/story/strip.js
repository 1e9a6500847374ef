// The frames of a story side by side, each with its caption below, as a PNG.

const SIDE = 208, GAP = 12, LINE = 20

function wrapped(pen, text, width) {
  const lines = ['']
  for (const word of text.split(/\s+/)) {
    const longer = lines.at(-1) ? `${lines.at(-1)} ${word}` : word
    if (!lines.at(-1) || pen.measureText(longer).width <= width) lines[lines.length - 1] = longer
    else lines.push(word)
  }
  return lines
}

// `frames`: [{canvas, caption}]; -> Promise of a Blob
export function strip(frames) {
  const canvas = document.createElement('canvas'), pen = canvas.getContext('2d'), font = '14px system-ui, sans-serif'
  pen.font = font
  const texts = frames.map(({caption}) => wrapped(pen, caption, SIDE))
  canvas.width = GAP + frames.length*(SIDE + GAP)
  canvas.height = 2*GAP + SIDE + LINE*Math.max(...texts.map(lines => lines.length)) + GAP
  pen.fillStyle = 'white'
  pen.fillRect(0, 0, canvas.width, canvas.height)
  Object.assign(pen, {font, fillStyle: '#3c3c3c', imageSmoothingEnabled: false})
  frames.forEach((frame, i) => {
    const left = GAP + i*(SIDE + GAP)
    pen.drawImage(frame.canvas, left, GAP, SIDE, SIDE)
    texts[i].forEach((line, j) => pen.fillText(line, left, GAP + SIDE + LINE*(j + 1), SIDE))
  })
  return new Promise(resolve => canvas.toBlob(resolve, 'image/png'))
}
