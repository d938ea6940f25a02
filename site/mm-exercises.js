// Answer forms under the exercises that have numbers as answers, and the reader's progress.
// What is asked, what is right and further hints stand in the page (#mm-exercises, made by mm_exercises.py from mmsim.exercises).
// Progress is a list of solved exercises in this browser's local storage; nothing is sent anywhere. All text goes through textContent.

const KEY = 'mm-progress';
const LABEL = /^ex\d\d-[a-z0-9-]{1,40}$/;
const MOST = 2000;                      // exercises in a file of progress
const SIZES = { bytes: 1, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40 };
const FORGETS = 'This browser keeps nothing for this page: what you solve is forgotten when you leave it.';

function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

// -- numbers: as mmsim/exercises/answers.py reads them --------------------------------------------------------

function plain(text) {
  let found = /^([+-]?)0x([0-9a-f]+(?:_[0-9a-f]+)*)$/i.exec(text);
  if (found) {
    const value = BigInt(`0x${found[2].replaceAll('_', '')}`);
    return found[1] === '-' ? -value : value;
  }
  found = /^([+-]?)(\d{1,3}(?:[ \u00a0\u2009\u202f]\d{3})+|\d{1,3}(?:,\d{3})+|\d{1,3}(?:['_]\d{3})+|\d+)(\.\d+)?$/.exec(text);
  if (!found) return null;
  const digits = found[2].replace(/\D/g, '');
  const value = found[3] ? Number(digits + found[3]) : BigInt(digits);
  return found[1] === '-' ? -value : value;
}

/** A number as people write it; a size in `unit`. Throws an Error with one sentence. */
export function readNumber(answer, unit = '') {
  const text = answer.trim().replaceAll('\u2212', '-');
  if (!text) throw new Error('there is no answer yet; write a number');
  if (text.length > 80) throw new Error(`an answer of ${text.length} characters is no number`);
  let value = plain(text);
  let scale = 0;
  if (value === null) {
    const found = /^(.*?[0-9a-f])\s*(?:([kmgt])(?:i?b)?|(b|bytes?))$/i.exec(text);
    if (found) {
      value = plain(found[1]);
      scale = 1024 ** (found[2] ? ' kmgt'.indexOf(found[2].toLowerCase()) : 0);
    }
  }
  if (value === null) throw new Error(`“${text.slice(0, 40)}” is no number; write 375, 0x240 or 64 KiB, and 2.5 with a point`);
  if (!scale) return value;
  if (!SIZES[unit]) throw new Error(`“${text.slice(0, 40)}” is a size, but the answer is a number${unit && ` of ${unit}`}`);
  if (typeof value === 'number') return value * scale / SIZES[unit];
  const size = value * BigInt(scale);
  const divisor = BigInt(SIZES[unit]);
  return size % divisor ? Number(size) / SIZES[unit] : size / divisor;
}

export function readList(answer) {
  const items = answer.replace(/^[\s[\]()]+|[\s[\]()]+$/g, '').split(/[\s,;]+/).filter(Boolean);
  if (!items.length) throw new Error('there is no answer yet; write numbers, as in 0, 2, 3');
  return items.map((item) => readNumber(item)).join();
}

/** Whether an answer to a part is right. Throws an Error with one sentence if it is no number. */
export function isRight(part, answer) {
  if (part.kind === 'list') return readList(answer) === part.expected;
  const given = readNumber(answer, part.unit);
  if (part.within) return Math.abs(Number(given) - Number(part.expected)) <= part.within;
  return typeof given === 'bigint' ? given.toString() === part.expected : given === Number(part.expected);
}

// -- progress -------------------------------------------------------------------------------------------------

/** The labels in a file of progress. Throws an Error with one sentence unless it is one, all of it. */
export function readProgress(text) {
  let data;
  try { data = JSON.parse(text); } catch { throw new Error('The file is no JSON.'); }
  if (data?.format !== KEY || data.version !== 1 || !Array.isArray(data.solved)) throw new Error('The file holds no progress of this book.');
  if (data.solved.length > MOST || !data.solved.every((label) => typeof label === 'string' && LABEL.test(label))) {
    throw new Error('The file names something that is no exercise; nothing of it was taken.');
  }
  return data.solved;
}

const asText = (labels) => JSON.stringify({ format: KEY, version: 1, solved: [...labels].sort() });
let solved = new Set();
let kept = true;
const shown = [];                       // functions that draw what depends on progress
const redraw = () => shown.forEach((draw) => draw());

function load() {
  let text = null;
  try { text = localStorage.getItem(KEY); } catch { kept = false; return; }
  try { solved = new Set(text ? readProgress(text) : []); } catch { solved = new Set(); }
}

function save(labels) {
  solved = new Set(labels);
  try { localStorage.setItem(KEY, asText(solved)); } catch { kept = false; }
  redraw();
}

/** A bar "3 of 9 solved" that follows the progress. */
function bar(labels, name) {
  const progress = h('progress', { max: labels.length, 'aria-label': name });
  const words = h('span');
  shown.push(() => {
    const count = labels.filter((label) => solved.has(label)).length;
    progress.value = count;
    words.textContent = `${count} of ${labels.length} solved`;
  });
  return [progress, words];
}

function note() {
  const paragraph = h('p', { class: 'mm-ex-note', role: 'note' });
  shown.push(() => { paragraph.textContent = kept ? '' : FORGETS; paragraph.hidden = kept; });
  return paragraph;
}

// -- forms ----------------------------------------------------------------------------------------------------

function form(label, exercise, place) {
  const result = h('p', { class: 'mm-ex-result', role: 'status' });
  const hints = h('div', { class: 'mm-ex-hints', 'aria-live': 'polite' });
  const fields = exercise.parts.map((part, number) => {
    const id = `answer-${label}-${number}`;
    const mark = h('span', { class: 'mm-ex-mark', id: `${id}-mark` });
    const input = h('input', { id, type: 'text', maxlength: 90, autocomplete: 'off', autocapitalize: 'off', spellcheck: 'false', 'aria-describedby': mark.id });
    const unit = part.unit ? `, in ${part.unit}` : '';
    return { part, input, mark, row: h('div', { class: 'mm-ex-part' }, h('label', { for: id }, part.ask + unit), input, mark) };
  });

  const tell = (text, right) => { result.textContent = text; result.className = `mm-ex-result${right ? ' mm-right' : text ? ' mm-not-yet' : ''}`; };

  function check(event) {
    event.preventDefault();
    let count = 0;
    for (const { part, input, mark } of fields) {
      let right = false;
      let wide = '';
      try {
        right = isRight(part, input.value);
        mark.textContent = right ? '✓ right' : '✗ not yet';
      } catch (error) {
        mark.textContent = `✗ ${error.message}`;
        wide = ' mm-ex-wide';
      }
      mark.className = `mm-ex-mark ${right ? 'mm-right' : 'mm-not-yet'}${wide}`;
      input.setAttribute('aria-invalid', String(!right));
      count += right;
    }
    const all = count === fields.length;
    const left = fields.find(({ input }) => input.getAttribute('aria-invalid') === 'true');
    if (all) save([...solved, label]);
    tell(all ? '✓ Right.' : `✗ Not yet${fields.length > 1 ? `: ${count} of ${fields.length} right` : ''}.`, all);
    if (left) left.input.focus();
  }

  // First the hint that stands in the page, then the further ones, then the solution.
  const open = (box) => {
    const folded = box?.classList.contains('toggle-hidden');
    if (folded) box.querySelector('.toggle-button')?.click();
    return folded;
  };
  const further = [...exercise.hints];
  const more = h('button', {
    type: 'button', onclick: () => {
      if (open(place.querySelector('.admonition.dropdown'))) { /* it was folded, and is open now */ }
      else if (further.length) hints.append(h('p', {}, `Hint: ${further.shift()}`));
      else {
        let solution = place.nextElementSibling;
        while (solution && !solution.classList.contains('solution')) solution = solution.nextElementSibling;
        open(solution);
      }
      more.textContent = further.length ? 'Next hint' : 'Solution';
    },
  }, 'Hint');

  shown.push(() => {
    place.classList.toggle('mm-solved', solved.has(label));
    if (solved.has(label) && !result.textContent) tell('✓ Solved.', true);
    if (!solved.has(label) && result.textContent === '✓ Solved.') tell('');
  });
  return h('form', { class: 'mm-ex', 'aria-label': `Answer to exercise ${exercise.number}`, novalidate: '', onsubmit: check },
    ...fields.map((field) => field.row),
    h('div', { class: 'mm-ex-buttons' }, h('button', { type: 'submit', class: 'mm-ex-check' }, 'Check'), more, result), hints);
}

// -- the page "Progress" --------------------------------------------------------------------------------------

function overview(chapters) {
  const said = h('p', { class: 'mm-ex-result', role: 'status' });
  const tell = (text, right) => { said.textContent = text; said.className = `mm-ex-result ${right ? 'mm-right' : 'mm-not-yet'}`; };
  const known = chapters.flatMap((chapter) => chapter.labels);
  const rows = chapters.map((chapter) => h('li', {}, h('a', { href: chapter.href }, chapter.title), ' ', ...bar(chapter.labels, chapter.title)));

  function exportFile() {
    const address = URL.createObjectURL(new Blob([asText(solved)], { type: 'application/json' }));
    h('a', { href: address, download: 'mm-progress.json' }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
    tell(`✓ Written: ${solved.size} solved.`, true);
  }

  async function importFile() {
    const [chosen] = file.files;
    if (!chosen) return;
    try {
      if (chosen.size > 200_000) throw new Error('The file is too large to be progress of this book.');
      const labels = readProgress(await chosen.text()).filter((label) => known.includes(label));
      const added = labels.filter((label) => !solved.has(label)).length;
      save([...solved, ...labels]);
      tell(`✓ Read: ${labels.length} solved, ${added} of them new here.`, true);
    } catch (error) {
      tell(`✗ ${error.message}`, false);
    }
    file.value = '';
  }

  function forget() {
    if (!confirm('Forget which exercises are solved?')) return;
    save([]);
    tell('✓ Forgotten.', true);
  }

  const file = h('input', { type: 'file', id: 'mm-import', accept: '.json,application/json', onchange: importFile });
  return [h('ul', { class: 'mm-ex-chapters' }, ...rows), note(),
    h('div', { class: 'mm-ex mm-ex-buttons' }, h('button', { type: 'button', onclick: exportFile }, 'Export'),
      h('button', { type: 'button', onclick: forget }, 'Forget'), h('span', {}, h('label', { for: 'mm-import' }, 'Import: '), file)), said];
}

// -- the page -------------------------------------------------------------------------------------------------

function start({ exercises, chapters, progress }) {
  load();
  const forms = Object.entries(exercises);
  for (const [label, exercise] of forms) {
    const place = document.getElementById(label);
    place?.append(form(label, exercise, place));
  }
  const heading = document.querySelector('section#exercises > h2');
  if (heading && forms.length) {
    const [meter, words] = bar(forms.map(([label]) => label), 'Exercises solved');
    heading.after(h('div', { class: 'mm-ex-progress' }, meter, words, h('a', { href: progress }, 'Progress')), note());
  }
  document.getElementById('mm-progress')?.replaceChildren(...overview(chapters));
  for (const { href, labels } of document.getElementById('mm-progress') ? [] : chapters) {     // the list of chapters on the first page
    const link = [...document.querySelectorAll('article td a')].find((a) => a.href === new URL(href, location.href).href);
    if (!link) continue;
    const [meter, words] = bar(labels, '');
    const count = h('span', { class: 'mm-ex-count' }, words);
    shown.push(() => { count.hidden = !meter.value; });
    link.parentElement.append(count);
  }
  redraw();
  addEventListener('storage', (event) => { if (event.key === KEY || event.key === null) { load(); redraw(); } });
}

const data = document.getElementById('mm-exercises');
if (data) start(JSON.parse(data.textContent));
