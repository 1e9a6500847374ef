// Run the modules of docs/story on what a file of JSON asks, for test_story_page.py: node story_page.mjs IN OUT
import {readFileSync, writeFileSync} from 'node:fs'
import {join} from 'node:path'
import {pathToFileURL} from 'node:url'
import {loadVocabulary, Model, openSession} from '../docs/story/model.js'
import {initialNoise} from '../docs/story/noise.js'
import {centerCrop, resize} from '../docs/story/pictures.js'
import {UNet} from '../docs/story/runtime.js'
import {makeScheduler} from '../docs/story/scheduler.js'
import {Story} from '../docs/story/story.js'

const [asked, out] = process.argv.slice(2)
const {task, ...given} = JSON.parse(readFileSync(asked))
const reader = folder => async name => new Uint8Array(readFileSync(join(folder, name)))
const picture = ({width, height, rgb}) => ({width, height, rgb: Uint8ClampedArray.from(rgb)})
const plain = ({width, height, rgb}) => ({width, height, rgb: Array.from(rgb)})

const tasks = {
  async tokens({folder, captions}) {
    const {vocabulary} = await loadVocabulary(reader(folder))
    const rows = captions.map(caption => vocabulary.encode(caption))
    return {caption: rows.map(r => r.caption.ids), memory: rows.map(r => r.memory.ids),
      captionReal: rows.map(r => Array.from(r.caption.real)), memoryReal: rows.map(r => Array.from(r.memory.real)),
      unknown: captions.map(caption => vocabulary.unknownWords([caption]))}
  },
  noise({seed, size, n}) {
    const noise = initialNoise(seed, size)
    return Array.from({length: n}, () => Array.from(noise.next().value))
  },
  // Samples after each step, with outputs given
  steps({runs}) {
    return runs.map(({name, config, n, sample, outputs}) => {
      const scheduler = makeScheduler(name, config)
      scheduler.setTimesteps(n)
      const samples = scheduler.timesteps.map((_, i) => Array.from(sample = scheduler.step(outputs[i], i, sample)))
      return {timesteps: scheduler.timesteps, samples}
    })
  },
  scaled({pictures}) {
    return pictures.map(p => ({resized: plain(resize(picture(p), p.to[0], p.to[1])), cropped: plain(centerCrop(picture(p), p.to[0]))}))
  },
  // Each of the other files in place of WebGPU, beside the first: how far what is answered is off the first, and what it ran on
  async unet({runtime, files, latents, width, lengths}) {
    const ort = await import(pathToFileURL(runtime))
    ort.env.wasm.numThreads = 1
    const open = file => openSession(ort, new Uint8Array(readFileSync(file)), 'wasm')
    const tensor = shape => new ort.Tensor('float32', Float32Array.from({length: shape.reduce((a, b) => a*b)}, (_, i) => Math.sin(i)), shape)
    const [first, ...others] = await Promise.all(files.map(open)), answers = []
    for (const other of others) {
      const unet = new UNet(first, other, true), off = []
      for (const n of lengths) {
        const feeds = {latents: tensor([1, ...latents]), t: new ort.Tensor('int64', BigInt64Array.of(500n), []), context: tensor([1, n, width])}
        const want = (await first.run(feeds)).out.data, got = (await unet.run(feeds)).out.data
        off.push(Math.max(...want.map((x, i) => Math.abs(got[i] - x)))/Math.max(...want.map(Math.abs)))
      }
      answers.push({runtime: unet.runtime, off})
    }
    return answers
  },
  async stories({runtime, stories}) {
    const ort = await import(pathToFileURL(runtime)), models = {}, drawn = {}
    ort.env.wasm.numThreads = 1
    for (const [name, {folder, captions, noise, cast, settings, redraw}] of Object.entries(stories)) {
      models[folder] ??= await Model.load(ort, reader(folder))
      const story = new Story(models[folder], settings)
      await story.setCast(cast.map(card => ({name: card.name, picture: picture(card)})))
      drawn[name] = []
      const given = noise?.map(x => Float32Array.from(x)).values()
      for await (const frame of story.frames(captions, settings.seed, undefined, given)) drawn[name].push(plain(frame))
      if (redraw) drawn[name].push(plain(await story.redraw(redraw.frame, captions[redraw.frame], redraw.seed)))
    }
    return drawn
  },
}
writeFileSync(out, JSON.stringify(await tasks[task](given)))
