// Files that lie beside this module, asked for anew: those of an older model must not be mixed with them.
export async function read(name) {
  let answer
  try { answer = await fetch(new URL(name, import.meta.url), {cache: 'no-cache'}) } catch {
    throw new Error(`${name} could not be loaded; is there a connection?`)
  }
  if (!answer.ok) throw new Error(`${name} could not be loaded: the server says ${answer.status}`)
  try { return new Uint8Array(await answer.arrayBuffer()) } catch {
    throw new Error(`${name} is cut short: the connection broke off; load the page again`)
  }
}
