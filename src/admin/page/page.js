// Keeps an open page fresh, and saves clicks. Without it everything works as well, by hand.
"use strict";

// When the relay says that something has changed, the page is fetched anew, and its parts that are marked as
// live are replaced: but for those that somebody is using.
const EVERY = 1500;

function inUse(part) {
  const focused = document.activeElement;
  return (focused && focused !== document.body && part.contains(focused)) ||
    part.querySelector("input:checked, details[open]") !== null;
}

function renew(html) {
  const fresh = new DOMParser().parseFromString(html, "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const other = fresh.getElementById(part.id);
    if (other && !inUse(part) && other.innerHTML !== part.innerHTML) {
      part.replaceChildren(...other.childNodes);
      prepare(part);
    }
  }
}

let last = 0;
let planned = null;

function plan() {
  if (planned !== null) return;
  planned = setTimeout(async () => {
    planned = null;
    last = Date.now();
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (answer.ok && !answer.redirected) renew(await answer.text());
    } catch {
      // The relay is away; the page stays as it is.
    }
  }, Math.max(0, last + EVERY - Date.now()));
}

let stream = null;

function watch() {
  if (document.hidden) {
    if (stream) stream.close();
    stream = null;
  } else if (!stream && document.querySelector("[data-live]") && document.querySelector("nav")) {
    stream = new EventSource("/live");
    stream.addEventListener("change", plan);
  }
}

// One box for all boxes of a list.
function prepare(part) {
  const boxes = [...part.querySelectorAll("form.picked input[name=id]")];
  const actions = part.querySelector("form.picked .actions");
  if (!boxes.length || !actions) return;
  const all = document.createElement("input");
  all.type = "checkbox";
  const label = document.createElement("label");
  label.className = "all";
  label.append(all, " Select all here");
  all.addEventListener("change", () => boxes.forEach((box) => { box.checked = all.checked; }));
  actions.prepend(label);
}

// What takes several requests goes on by itself.
const onward = document.querySelector("form[data-onward]");
if (onward) setTimeout(() => onward.submit(), 300);

prepare(document);
document.addEventListener("visibilitychange", watch);
watch();
