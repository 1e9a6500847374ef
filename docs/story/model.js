// The parts of a model as ONNX files, run by ONNX Runtime; model.json says what they are.
import {Vocabulary} from './vocabulary.js'

const SPECS = ['caption_tokenizer', 'memory_tokenizer']

// Read model.json and both tokenizers with `read(name)` -> Uint8Array; -> {manifest, vocabulary}
export async function loadVocabulary(read) {
  const json = async name => {
    const text = new TextDecoder().decode(await read(name))
    try { return JSON.parse(text) } catch { throw new Error(`${name} is cut short or damaged; load the page again`) }
  }
  const [manifest, ...specs] = await Promise.all([json('model.json'), ...SPECS.map(name => json(`${name}.json`))])
  return {manifest, vocabulary: new Vocabulary(manifest, ...specs)}
}

// A part as a session on 'wasm' or 'webgpu'
export function openSession(ort, data, provider) {
  return ort.InferenceSession.create(data, {executionProviders: [provider], logSeverityLevel: 3})   // errors
}

export class Model {
  // `ort`: the module onnxruntime-web; `loaded(n, of)`: called with the bytes that are there
  static async load(ort, read, loaded = () => {}) {
    const model = new Model()
    Object.assign(model, await loadVocabulary(read), {ort, sessions: {}})
    const parts = Object.entries(model.manifest.parts)
    const all = parts.reduce((sum, [, part]) => sum + part.bytes, 0)
    let there = 0
    for (const [name, {file, bytes}] of parts) {
      const data = await read(file)
      if (data.length !== bytes) throw new Error(`${file} is cut short: ${data.length} of ${bytes} bytes`)
      model.sessions[name] = await openSession(ort, data, 'wasm')
      loaded(there += bytes, all)
    }
    model.nullCond = await model.encode(model.vocabulary.null(), model.black())
    return model
  }

  // Run a part on [data, shape] of each input, in the order of the file; -> Float32Array
  async run(name, ...inputs) {
    const session = this.sessions[name], feeds = {}
    inputs.forEach(([data, shape], i) => {
      const type = {BigInt64Array: 'int64', Uint8Array: 'bool', Float32Array: 'float32'}[data.constructor.name]
      feeds[session.inputNames[i]] = new this.ort.Tensor(type, data, shape)
    })
    return (await session.run(feeds))[session.outputNames[0]].data
  }

  black() {
    const {memory_side: side, mean, std} = this.manifest
    return Float32Array.from({length: 3*side*side}, (_, i) => -mean[Math.floor(i/side/side)]/std[Math.floor(i/side/side)])
  }

  // Encoded caption, (S, D)
  encodeCaption({ids, real}) {
    const shape = [1, ids.length]
    return this.run('caption_encoder', [BigInt64Array.from(ids, BigInt), shape], [real, shape])
  }

  // A normalised picture with its caption as a slot, (S, D')
  encodeSlot(picture, {ids, real}) {
    const side = this.manifest.memory_side, shape = [1, ids.length]
    return this.run('memory_encoder', [picture, [1, 3, side, side]], [BigInt64Array.from(ids, BigInt), shape], [real, shape])
  }

  async encode(tokens, picture) {
    return {caption: await this.encodeCaption(tokens.caption), slot: await this.encodeSlot(picture, tokens.memory)}
  }

  // The UNet's output for latents at a timestep
  predict(latents, t, context) {
    const width = this.manifest.width
    return this.run('unet', [latents, [1, ...this.manifest.latents]], [BigInt64Array.of(BigInt(t)), []],
      [context, [1, context.length/width, width]])
  }

  decode(latents) { return this.run('decoder', [latents, [1, ...this.manifest.latents]]) }
}
