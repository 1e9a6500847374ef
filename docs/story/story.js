// Autoregressive drawing: every drawn frame is added to the memory that the next ones attend to.
import {Memory} from './memory.js'
import {initialNoise} from './noise.js'
import {fromDecoder} from './pictures.js'
import {makeScheduler} from './scheduler.js'

// Classifier-free guidance; a scale of 1 or less is none
async function guided(model, latents, t, {cond, uncond}, scale) {
  const output = await model.predict(latents, t, cond)
  if (!(scale > 1)) return output
  const without = await model.predict(latents, t, uncond)
  return output.map((x, i) => without[i] + scale*(x - without[i]))
}

export class Story {
  // `settings`: {sampler: 'dpm++' or 'ddim', steps, guidance}
  constructor(model, settings) { Object.assign(this, {model, settings, memory: new Memory(model)}) }

  // Cards, [{name, picture}]: as many as the model has room for, the first ones
  async setCast(cards) {
    this.memory.cards = []
    for (const card of cards.slice(0, this.memory.capacity)) await this.memory.addCard(card)
  }

  // Draw frame k, from 0, from noise and what is remembered of the frames before it; `onStep(i, n)` may throw to stop
  async frame(k, caption, noise, onStep = () => {}) {
    const {model, settings: {sampler, steps, guidance}} = this
    const tokens = model.vocabulary.encode(caption), contexts = await this.memory.contexts(k, tokens)
    const scheduler = makeScheduler(sampler, model.manifest.scheduler)
    scheduler.setTimesteps(steps)
    let latents = noise
    for (const [i, t] of scheduler.timesteps.entries()) {
      latents = scheduler.step(await guided(model, latents, t, contexts, guidance), i, latents)
      await onStep(i + 1, steps)
    }
    const pixels = await model.decode(latents)
    if (!pixels.every(Number.isFinite)) throw new Error('a frame has values that are not finite; use less guidance')
    const picture = fromDecoder(pixels, model.manifest.side)
    await this.memory.add(picture, tokens, k)
    return picture
  }

  // Draw all frames; -> yields pictures. `noise`: an iterator of Float32Array, by default that of torch for this seed
  async* frames(captions, seed, onStep, noise = initialNoise(seed, this.noiseSize)) {
    for (const [k, caption] of captions.entries()) {
      yield await this.frame(k, caption, noise.next().value, (i, n) => onStep?.(k, i, n))
    }
  }

  // Draw one frame again, as `StoryPipeline` does with `redraw`: frame k has the k-th noise of a seed
  async redraw(k, caption, seed, onStep) {
    const noise = initialNoise(seed, this.noiseSize)
    for (let i = 0; i < k; i++) noise.next()
    return this.frame(k, caption, noise.next().value, (i, n) => onStep?.(k, i, n))
  }

  get noiseSize() { return this.model.manifest.latents.reduce((a, b) => a*b) }
}
