// What a frame may attend to: its caption, the cast cards, and the frames before it, each encoded once as a slot.
import {centerCrop, normalised, resize} from './pictures.js'

export class Memory {
  constructor(model) {
    Object.assign(this, {model, cards: [], slots: []})
    // no frame attends to the last frame of a story
    this.capacity = Math.max(1, model.manifest.n_slots - 1)
  }

  // Cards: {name, picture}
  async addCard({name, picture}) {
    const {vocabulary, manifest} = this.model
    this.cards.push(await this.slot(centerCrop(picture, manifest.memory_side), vocabulary.encode(name).memory))
  }

  // A drawn frame with its caption; `k`, from 0, replaces that of a frame drawn again
  async add(picture, tokens, k = this.slots.length) {
    const side = this.model.manifest.memory_side
    this.slots[k] = await this.slot(resize(picture, side, side), tokens.memory)
  }

  async slot(picture, tokens) {
    const {mean, std} = this.model.manifest
    return {states: await this.model.encodeSlot(normalised(picture, mean, std), tokens), real: tokens.real}
  }

  // Contexts of frame k, from 0, {cond, uncond}: the visible tokens only, each Float32Array (tokens, D)
  async contexts(k, tokens) {
    const {nullCond, manifest: {length: S, width: D}} = this.model
    const past = this.slots.slice(0, k), places = [...this.cards, ...past]
    const caption = await this.model.encodeCaption(tokens.caption)
    const all = await this.join(caption, this.cards.map(c => c.states), past.map(slot => slot.states))
    const real = [tokens.caption.real, ...places.map(place => place.real)]
    const visible = Array.from({length: all.length/D}, (_, i) => i).filter(i => real[Math.floor(i/S)][i % S])
    const cond = new Float32Array(visible.length*D)
    visible.forEach((from, to) => cond.set(all.subarray(from*D, from*D + D), to*D))
    // as of a condition dropped in training, all tokens of what there is are visible
    const uncond = await this.join(nullCond.caption, this.cards.map(() => nullCond.slot), past.map(() => nullCond.slot))
    return {cond, uncond}
  }

  // Add embeddings of type and time to a caption, cards and slots, and join them
  join(caption, cards, slots) {
    const {length: S, width: D, slot_width: W} = this.model.manifest
    const stacked = states => {
      const data = new Float32Array(states.length*S*W)
      states.forEach((x, i) => data.set(x, i*S*W))
      return [data, [1, states.length, S, W]]
    }
    return this.model.run('history', [caption, [1, S, D]], stacked(slots), stacked(cards))
  }
}
