// Drawing, apart from the page so that it stays responsive. Takes {task: 'draw' | 'redraw' | 'stop', …};
// answers {said: 'loading' | 'step' | 'frame' | 'done' | 'stopped' | 'failed', …}.
import {read} from './files.js'
import {loadModel} from './runtime.js'
import {Story} from './story.js'

const isForced = new URLSearchParams(location.search).has('webgpu')
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
    model ??= await loadModel(read, (bytes, of) => postMessage({said: 'loading', bytes, of}), isForced)
    const start = performance.now()
    await tasks[task](given)
    postMessage({said: 'done', seconds: (performance.now() - start)/1000, runtime: model.sessions.unet.runtime})
  } catch (e) {
    postMessage(e instanceof Stopped ? {said: 'stopped'} : {said: 'failed', why: e.message})
  }
})
