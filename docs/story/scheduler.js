// DPM-Solver++ (2M, arXiv 2211.01095) and DDIM (arXiv 2010.02502): the steps from noise to latents.
// Settings, timesteps and steps are those of diffusers' DPMSolverMultistepScheduler and DDIMScheduler.

// Whole numbers, halves to the even one, as numpy rounds
function roundHalfEven(x) {
  const below = Math.floor(x), rest = x - below
  if (rest !== .5) return Math.round(x)
  return below % 2 ? below + 1 : below
}

// Cumulated products of alpha for every timestep of training
function alphasCumprod(config) {
  const {num_train_timesteps: T, beta_start, beta_end, beta_schedule} = config
  const scaled = beta_schedule === 'scaled_linear'
  if (!scaled && beta_schedule !== 'linear') throw new Error(`no beta schedule ${beta_schedule}`)
  const [from, to] = scaled ? [Math.sqrt(beta_start), Math.sqrt(beta_end)] : [beta_start, beta_end]
  const products = new Float64Array(T)
  let product = 1
  for (let t = 0; t < T; t++) {
    const beta = from + (to - from)*t/(T - 1)
    product *= 1 - (scaled ? beta*beta : beta)
    products[t] = product
  }
  return config.rescale_betas_zero_snr ? endInNoise(products) : products
}

// The same with pure noise at the last timestep (arXiv 2305.08891)
function endInNoise(products) {
  const first = Math.sqrt(products[0]), last = Math.sqrt(products.at(-1))
  return products.map(a => ((Math.sqrt(a) - last)*first/(first - last))**2)
}

// `n` timesteps from noise to picture; `n_rows` is what linspace and leading count with, n + 1 or n
function spacedTimesteps(config, n, nRows) {
  const T = config.num_train_timesteps, steps = []
  const spacing = config.timestep_spacing
  for (let i = 0; i < n; i++) {
    const k = nRows - 1 - i   // row of this step, counted from the picture
    if (spacing === 'linspace') steps.push(roundHalfEven(k*(T - 1)/(nRows - 1)))
    else if (spacing === 'leading') steps.push(k*Math.floor(T/nRows) + (config.steps_offset ?? 0))
    else steps.push(roundHalfEven(T - i*T/n) - 1)
  }
  return steps
}

class Scheduler {
  constructor(config) {
    this.config = config
    this.alphas = alphasCumprod(config)
  }

  // Picture that the model's output stands for, and the noise in it, where a sample is alpha·x0 + sigma·noise
  x0AndNoise(output, sample, alpha, sigma) {
    const x0 = new Float32Array(sample.length), noise = new Float32Array(sample.length)
    const isV = this.config.prediction_type === 'v_prediction'
    for (let i = 0; i < sample.length; i++) {
      noise[i] = isV ? alpha*output[i] + sigma*sample[i] : output[i]
      x0[i] = isV ? alpha*sample[i] - sigma*output[i] : (sample[i] - sigma*output[i])/alpha
    }
    return [x0, noise]
  }
}

export class DPMSolver extends Scheduler {
  constructor(config) {
    super(config)
    if (config.rescale_betas_zero_snr) this.alphas[this.alphas.length - 1] = 2**-24
  }

  setTimesteps(n) {
    this.timesteps = spacedTimesteps(this.config, n, n + 1)
    // noise levels of the steps, and of the picture
    this.sigmas = [...this.timesteps.map(t => Math.sqrt((1 - this.alphas[t])/this.alphas[t])), 0]
    this.last = null   // x0 of the step before
  }

  step(output, i, sample) {
    const [alphaS, sigmaS, lambdaS] = this.level(i)
    const [alpha, sigma, lambda] = this.level(i + 1)
    const [x0] = this.x0AndNoise(output, sample, alphaS, sigmaS)
    const h = lambda - lambdaS, factor = alpha*Math.expm1(-h)
    const isFirstOrder = !this.last || i === this.timesteps.length - 1
    let half = 0   // how much of the difference to the last x0 is added: 1/(2r)
    if (!isFirstOrder) half = h/(lambdaS - this.level(i - 1)[2])/2
    const next = new Float32Array(sample.length)
    for (let j = 0; j < sample.length; j++) {
      const towards = half ? x0[j] + half*(x0[j] - this.last[j]) : x0[j]
      next[j] = sigma/sigmaS*sample[j] - factor*towards
    }
    this.last = x0
    return next
  }

  // alpha, sigma and log(alpha/sigma) at step i
  level(i) {
    const alpha = 1/Math.sqrt(this.sigmas[i]**2 + 1), sigma = this.sigmas[i]*alpha
    return [alpha, sigma, Math.log(alpha) - Math.log(sigma)]
  }
}

export class DDIM extends Scheduler {
  setTimesteps(n) {
    const T = this.config.num_train_timesteps
    this.stride = Math.floor(T/n)
    this.timesteps = spacedTimesteps(this.config, n, n)
    // so few steps would begin where the model expects to see some of the picture
    const isLeading = this.config.timestep_spacing === 'leading'
    if (isLeading && n <= 3) this.timesteps = this.timesteps.map((_, i) => this.stride*(n - i) - 1)
  }

  step(output, i, sample) {
    const t = this.timesteps[i], before = t - this.stride
    const a = this.alphas[t], aNext = before < 0 ? 1 : this.alphas[before]
    const [x0, noise] = this.x0AndNoise(output, sample, Math.sqrt(a), Math.sqrt(1 - a))
    return x0.map((x, j) => Math.sqrt(aNext)*x + Math.sqrt(1 - aNext)*noise[j])
  }
}

// The scheduler of this name, with the noise schedule of the one that a model comes with
export function makeScheduler(name, config) {
  if (name === 'dpm++') return new DPMSolver(config)
  const timestep_spacing = config.rescale_betas_zero_snr ? 'trailing' : 'leading'
  return new DDIM({...config, timestep_spacing})
}
