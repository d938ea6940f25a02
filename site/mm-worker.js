// The web worker behind mm-python.js: Pyodide's core with mmsim in it. Everything comes from this file's own folder.

const here = new URL("./", import.meta.url);
const post = (message) => self.postMessage(message);

// Count the bytes that arrive, so that the reader sees how far the download is. Sizes are those of the unpacked files
// (mm-python.json), because a server may compress what it sends.
let total = 0;
let loaded = 0;
let told = 0;
const plainFetch = self.fetch.bind(self);

function count(bytes) {
  loaded += bytes;
  const now = lastByte = performance.now();
  if (now - told < 50 && loaded < total) return;
  told = now;
  const mb = (n) => (n / 1e6).toFixed(1);
  const there = Math.min(loaded, total);
  post({progress: {fraction: there / total, text: `Loading Python, ${mb(there)} of ${mb(total)} MB:`}});
}

// Pyodide waits for ever for a file that can't be had; this promise ends the wait.
let fail;
const failure = new Promise((_, reject) => { fail = reject; });
failure.catch(() => {});
let lastByte = performance.now();
const STALLED_AFTER_MS = 60_000;

async function countingFetch(resource, options) {
  const name = String(resource.url ?? resource).replace(/^.*\//, "");
  let response;
  try {
    response = await plainFetch(resource, options);
  } catch (error) {
    fail(new Error(`${name} could not be fetched`));
    throw error;
  }
  if (!response.ok) fail(new Error(`${name}: the server answered ${response.status}`));
  if (!response.ok || !response.body) return response;
  const counter = new TransformStream({
    transform(chunk, controller) {
      count(chunk.byteLength);
      controller.enqueue(chunk);
    },
  });
  const headers = {"content-type": response.headers.get("content-type") || "application/octet-stream"};
  return new Response(response.body.pipeThrough(counter), {status: response.status, headers});
}

async function get(name) {
  const response = await self.fetch(new URL(name, here));
  if (!response.ok) throw new Error(`${name}: the server answered ${response.status}`);
  return response;
}

async function boot() {
  const manifest = await (await get("mm-python.json")).json();
  total = Object.entries(manifest.bytes).filter(([name]) => !name.endsWith(".mjs")).reduce((sum, [, size]) => sum + size, 0);
  self.fetch = countingFetch;
  const [{loadPyodide}, wheel] = await Promise.all([
    import(new URL("pyodide/pyodide.mjs", here).href),
    get(manifest.wheel).then((response) => response.arrayBuffer()),
  ]);
  const watch = setInterval(() => {
    if (performance.now() - lastByte > STALLED_AFTER_MS) fail(new Error("the download stands still"));
  }, 5000);
  const pyodide = await Promise.race([loadPyodide({indexURL: new URL("pyodide/", here).href}), failure]);
  clearInterval(watch);
  self.fetch = plainFetch;
  post({progress: {fraction: null, text: "Starting Python"}});
  pyodide.unpackArchive(wheel, "wheel");
  return pyodide.runPython("from mmsim.draw.figure import compute; compute");
}

// Of a Python traceback the last line says what went wrong: "mmsim.errors.InputError: order must be …".
function message(error) {
  const lines = String(error.message || error).trim().split("\n");
  return lines[lines.length - 1].replace(/^(?:[\w]+\.)*(\w+): /, (whole, kind) => (/^(InputError|ValueError)$/.test(kind) ? "" : `${kind}: `));
}

const python = boot();
python.then(() => post({ready: true}), (error) => post({
  fatal: `Python could not be loaded: ${message(error)}`, detail: String(error.stack || error)}));

self.onmessage = async ({data}) => {
  let compute;
  try {
    compute = await python;
  } catch {
    return;                            // the page has been told
  }
  try {
    post({progress: {fraction: null, text: "Computing"}});
    post({id: data.id, payload: compute(data.name, data.values)});
  } catch (error) {
    post({id: data.id, error: message(error), detail: String(error.message || error)});
  }
};
