// Drawing, apart from the page so that it stays responsive. Takes {task: 'draw' | 'redraw' | 'stop', …};
// answers {said: 'loading' | 'step' | 'frame' | 'done' | 'stopped' | 'failed', …}.
import * as ort from './ort.wasm.bundle.min.mjs'
import {read} from './files.js'
import {Model} from './model.js'
import {Story} from './story.js'

ort.env.wasm.numThreads = 1   // more need headers that few servers send
ort.env.logLevel = 'error'

class Stopped extends Error {}
let model = null, story = null, isStopped = false

// Show a step, and let a message to stop arrive
async function onStep(k, step, steps) {
  postMessage({said: 'step', k, step, steps})
  await new Promise(resolve => setTimeout(resolve))
  if (isStopped) throw new Stopped()
}

const show = (k, picture) => postMessage({said: 'frame', k, picture})

const tasks = {
  async draw({captions, seed, settings, cast}) {
    model ??= await Model.load(ort, read, (bytes, of) => postMessage({said: 'loading', bytes, of}))
    story = new Story(model, settings)
    await story.setCast(cast)
    let k = 0
    for await (const picture of story.frames(captions, seed, onStep)) show(k++, picture)
  },
  async redraw({k, caption, seed, settings, cast}) {
    story.settings = settings
    await story.setCast(cast)
    show(k, await story.redraw(k, caption, seed, onStep))
  },
}

addEventListener('message', async ({data: {task, ...given}}) => {
  isStopped = task === 'stop'
  if (isStopped) return
  try {
    await tasks[task](given)
    postMessage({said: 'done'})
  } catch (e) {
    postMessage(e instanceof Stopped ? {said: 'stopped'} : {said: 'failed', why: e.message})
  }
})
