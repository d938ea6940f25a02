// Shows the explanation of a word that leads to the glossary: on pointing at it, on keyboard focus, and on the first tap of a finger.
// The explanations stand in the page (#mm-terms); without this script the words are plain links.

const data = document.getElementById("mm-terms");
const words = data ? JSON.parse(data.textContent) : {};
const WAIT = 250;                       // ms: a pointer that only passes opens nothing
const box = document.createElement("div");
box.id = "mm-tip";
box.className = "mm-tip";
box.setAttribute("role", "tooltip");
box.hidden = true;
document.body.append(box);

let owner = null;
let timer = 0;
let finger = false;                     // whether the last pointer was one

const wordOf = (target) => {
  const link = target instanceof Element ? target.closest("a[href*='#term-']") : null;
  return link && link.querySelector(".std-term") && words[decodeURIComponent(link.hash.slice(1))] ? link : null;
};

function place(link) {
  const first = link.getClientRects()[0];
  const width = document.documentElement.clientWidth;
  box.style.maxWidth = `${Math.min(352, width - 16)}px`;
  const left = Math.max(8, Math.min(first.left, width - box.offsetWidth - 8));
  const below = first.bottom + 4 + box.offsetHeight <= innerHeight || first.top < box.offsetHeight + 8;
  box.style.left = `${left + scrollX}px`;
  box.style.top = `${(below ? link.getBoundingClientRect().bottom + 4 : first.top - box.offsetHeight - 4) + scrollY}px`;
}

function show(link) {
  clearTimeout(timer);
  if (owner === link) return;
  hide();
  const [name, text] = words[decodeURIComponent(link.hash.slice(1))];
  const title = document.createElement("strong");
  title.textContent = name;
  box.innerHTML = text;                 // made by the build from the glossary's own source
  box.prepend(title);
  if (finger) {
    const more = document.createElement("a");
    more.href = link.href;
    more.textContent = "In the glossary";
    box.append(more);
  }
  box.hidden = false;
  owner = link;
  link.setAttribute("aria-describedby", box.id);
  place(link);
}

function hide() {
  clearTimeout(timer);
  if (!owner) return;
  owner.removeAttribute("aria-describedby");
  owner = null;
  box.hidden = true;
}

const later = (action, ms) => { clearTimeout(timer); timer = setTimeout(action, ms); };

addEventListener("pointerdown", (event) => {
  finger = event.pointerType === "touch";
  if (owner && !box.contains(event.target) && wordOf(event.target) !== owner) hide();
}, true);
document.addEventListener("pointerover", (event) => {
  if (event.pointerType === "touch") return;
  const link = wordOf(event.target);
  if (link) later(() => { finger = false; show(link); }, WAIT);
  else if (box.contains(event.target)) clearTimeout(timer);      // the explanation stays while it is read
  else if (owner !== document.activeElement) later(hide, WAIT);
});
document.addEventListener("focusin", (event) => {
  const link = wordOf(event.target);
  if (link && !finger) show(link);
});
document.addEventListener("focusout", (event) => {
  if (event.target === owner && !box.contains(event.relatedTarget)) hide();
});
document.addEventListener("click", (event) => {
  const link = wordOf(event.target);
  if (link && finger && owner !== link) {                        // the first tap explains, the second follows
    event.preventDefault();
    show(link);
  }
});
addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
addEventListener("resize", hide);
