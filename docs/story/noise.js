// The random numbers of torch: Generator.manual_seed(seed) and randn on a CPU, so that a seed means the same frames here.

class MersenneTwister {
  constructor(seed) {
    this.state = new Uint32Array(624)
    this.state[0] = seed
    for (let i = 1; i < 624; i++) {
      const s = this.state[i - 1] ^ (this.state[i - 1] >>> 30)
      this.state[i] = Math.imul(1812433253, s) + i
    }
    this.at = 624
  }

  // A whole number of 32 bits
  next() {
    if (this.at === 624) this.twist()
    let y = this.state[this.at++]
    y ^= y >>> 11
    y ^= (y << 7) & 0x9d2c5680
    y ^= (y << 15) & 0xefc60000
    return (y ^ (y >>> 18)) >>> 0
  }

  twist() {
    const s = this.state
    for (let i = 0; i < 624; i++) {
      const y = (s[i] & 0x80000000) | (s[(i + 1) % 624] & 0x7fffffff)
      s[i] = s[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0)
    }
    this.at = 0
  }
}

// In place: uniform numbers in [0, 1), 16 of them from `from` on, become normal ones, by Box and Muller
function boxMuller(x, from) {
  for (let j = from; j < from + 8; j++) {
    const radius = Math.sqrt(-2*Math.log(1 - x[j])), angle = 2*Math.PI*x[j + 8]
    x[j] = radius*Math.cos(angle)
    x[j + 8] = radius*Math.sin(angle)
  }
}

// Initial noise of the frames of a story: of the first, of the second, and so on, each Float32Array of `size` numbers
export function* initialNoise(seed, size) {
  if (size < 16) throw new Error(`noise of ${size} numbers; torch makes fewer than 16 in another way`)
  const random = new MersenneTwister(seed)
  const uniform = () => (random.next() & 0xffffff)/2**24
  while (true) {
    const x = Float32Array.from({length: size}, uniform)
    for (let i = 0; i + 16 <= size; i += 16) boxMuller(x, i)
    if (size % 16) {   // the last 16 numbers are drawn again
      for (let i = size - 16; i < size; i++) x[i] = uniform()
      boxMuller(x, size - 16)
    }
    yield x
  }
}
