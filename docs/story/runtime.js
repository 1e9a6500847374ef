// What the UNet runs on: WebAssembly; WebGPU if the browser has it, it gives the same numbers, and it takes less time.
import {Model, openSession} from './model.js'

const TOLERANCE = 1e-3   // largest difference, relative to the largest number
const TRIALS = 3         // calls that are timed on both

async function importRuntime(name) {
  const ort = await import(`./ort.${name}.bundle.min.mjs`)
  ort.env.wasm.numThreads = 1   // more need headers that few servers send
  ort.env.logLevel = 'fatal'   // what fails is thrown, too
  return ort
}

// Whether there is a GPU, and JSPI, with which the runtime waits for it; `isForced`: one that the CPU imitates counts, too
async function hasWebGPU(isForced) {
  if (!('Suspending' in WebAssembly)) return false
  const adapter = await navigator.gpu?.requestAdapter()
  return adapter && (isForced || !adapter.info.isFallbackAdapter)
}

// Load a model. Only if there is a GPU, the larger runtime is loaded, which has both; `isForced`: draw with it even if it is slower
export async function loadModel(read, loaded, isForced) {
  let failure = null
  try {
    if (await hasWebGPU(isForced)) {
      const ort = await importRuntime('jspi'), model = await Model.load(ort, read, loaded)
      const gpu = await openSession(ort, await read(model.manifest.parts.unet.file), 'webgpu')
      const unet = model.sessions.unet = new UNet(model.sessions.unet, gpu, isForced)
      const {device} = ort.env.webgpu   // what the runtime does not answer for: no memory, invalid commands
      device.addEventListener('uncapturederror', event => { event.preventDefault(); unet.error = event.error })
      return model
    }
  } catch (e) { failure = e }
  const model = await Model.load(await importRuntime('wasm'), read, loaded)
  model.sessions.unet = new UNet(model.sessions.unet)
  if (failure) model.sessions.unet.giveUp(failure)
  return model
}

// A session on WebAssembly, and perhaps one on WebGPU beside it, as one session
export class UNet {
  constructor(wasm, gpu = null, isForced = false) {
    const {inputNames, outputNames} = wasm
    Object.assign(this, {wasm, gpu, isForced, inputNames, outputNames, error: null})
    Object.assign(this, {lengths: new Set(), trials: 0, spent: {wasm: 0, gpu: 0}})
    this.runtime = gpu ? 'WebGPU' : 'WebAssembly'
  }

  giveUp({message}) {
    this.gpu = null
    const why = message.trim().split('\n')[0].split(/\. |message: /i).at(-1)   // the end of what the runtime says
    this.runtime = `WebAssembly (WebGPU given up: ${why})`
  }

  async run(feeds) {
    if (this.gpu) try { return await this.runOnGpu(feeds) } catch (e) { this.giveUp(e) }
    return this.wasm.run(feeds)
  }

  // The first call for each length of context, and a few more, are made on both: they are compared, the few are timed
  async runOnGpu(feeds) {
    const length = feeds.context.dims[1], isNew = !this.lengths.has(length), [name] = this.outputNames
    const start = performance.now(), out = await this.gpu.run(feeds), middle = performance.now()
    if (this.error) throw this.error
    if (!isNew && this.trials === TRIALS) return out
    const {[name]: {data: want}} = await this.wasm.run(feeds), end = performance.now()
    const most = TOLERANCE*Math.max(...want.map(Math.abs))
    if (!want.every((x, i) => Math.abs(out[name].data[i] - x) <= most)) throw new Error('it gives other numbers')
    this.lengths.add(length)
    if (isNew) return out   // the first call compiles what the others run
    this.spent.gpu += middle - start
    this.spent.wasm += end - middle
    if (++this.trials < TRIALS || this.isForced || this.spent.gpu <= this.spent.wasm) return out
    const [gpu, wasm] = [this.spent.gpu, this.spent.wasm].map(ms => `${Math.round(ms/TRIALS)} ms`)
    throw new Error(`a call takes ${gpu}, without it ${wasm}`)
  }
}
