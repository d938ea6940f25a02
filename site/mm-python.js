// Python in the page, for figures whose parameters the reader changes.
//
//   import { compute } from "./mm-python.js";
//   const payload = await compute("mmsim.figures.example:splitting", {order: "0"}, (fraction, text) => …);
//
// The first call starts a worker (mm-worker.js) with Pyodide's core and the mmsim wheel, all from the book's own static files;
// later calls use the same one. `onProgress` gets how much of the download is there (0 to 1, or null where that can't be said) and
// what is going on. The promise is rejected with a PythonInPageError whose message can be shown to the reader as it is.

const ANSWER_WITHIN_MS = 60_000;

export class PythonInPageError extends Error {
  constructor(message, {detail = "", fatal = false} = {}) {
    super(message);
    this.name = "PythonInPageError";
    this.detail = detail;             // a traceback, for people who want it
    this.fatal = fatal;               // true: Python cannot run on this page at all
  }
}

// Why Python can't run here, in the reader's words; "" if it can.
export function unavailable() {
  if (location.protocol === "file:")
    return "Python can't start from a file on disk: open the book through a web server (make book).";
  if (typeof WebAssembly !== "object")
    return "This browser has no WebAssembly, so Python can't run in the page.";
  if (typeof Worker !== "function")
    return "This browser has no web workers, so Python can't run in the page.";
  return "";
}

let worker = null;                    // the running worker, or null
let ready = false;
let lastId = 0;
const waiting = new Map();            // id → {resolve, reject, onProgress, timer}

function stop(error) {
  worker?.terminate();
  worker = null;
  ready = false;
  for (const call of waiting.values()) {
    clearTimeout(call.timer);
    call.reject(error);
  }
  waiting.clear();
}

function tell(progress) {
  for (const call of waiting.values()) call.onProgress?.(progress.fraction, progress.text);
}

function start() {
  worker = new Worker(new URL("./mm-worker.js", import.meta.url), {type: "module", name: "mmsim"});
  worker.onmessage = ({data}) => {
    if (data.progress) return tell(data.progress);
    if (data.ready) {
      ready = true;
      for (const id of waiting.keys()) limit(id);
      return;
    }
    if (data.fatal) return stop(new PythonInPageError(data.fatal, {detail: data.detail, fatal: true}));
    const call = waiting.get(data.id);
    if (!call) return;
    waiting.delete(data.id);
    clearTimeout(call.timer);
    if (data.error !== undefined) call.reject(new PythonInPageError(data.error, {detail: data.detail}));
    else call.resolve(JSON.parse(data.payload));
  };
  worker.onerror = (event) => {
    event.preventDefault();
    stop(new PythonInPageError(
      "Python could not start in this browser; it may be too old for module workers.",
      {detail: event.message || "", fatal: true}));
  };
}

// A computation that never ends must not leave the figure waiting: the time counts once Python is running.
function limit(id) {
  const call = waiting.get(id);
  if (!call) return;
  clearTimeout(call.timer);
  call.timer = setTimeout(() => stop(new PythonInPageError(
    `Python gave no answer within ${ANSWER_WITHIN_MS / 1000} seconds and was stopped. Try smaller parameters.`)), ANSWER_WITHIN_MS);
}

// The payload that Python computes for figure `name` with parameter `values`.
export function compute(name, values, onProgress) {
  const why = unavailable();
  if (why) return Promise.reject(new PythonInPageError(why, {fatal: true}));
  return new Promise((resolve, reject) => {
    const id = ++lastId;
    waiting.set(id, {resolve, reject, onProgress, timer: 0});
    try {
      if (!worker) start();
    } catch (error) {
      return stop(new PythonInPageError(
        "Python could not start in this browser.", {detail: String(error), fatal: true}));
    }
    if (ready) limit(id);
    worker.postMessage({id, name, values: JSON.stringify(values)});
  });
}
