"use strict";
// Texts are data: they are set as text, never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const PAGE = 50;
const byId = (name) => document.getElementById(name);
const blind = data.mode === "blind";
const writable = data.session !== null;
const entries = data.entries.slice();
const key = writable ? `sonotune:${data.session.id}` : "";
const views = new Map(data.items.map((item, at) => [item.id, at]));
let shown = data.items.map((_, at) => at);
let page = 0;
let now = -1; // index of the current utterance in `shown`
let unsaved = 0;
let opened = ""; // clip whose transcript is being corrected

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// Every word is isolated, so that words of another direction do not change places with their neighbours.
const word = (text) => make("bdi", {}, text);

function wordsOf(tokens, rtl) {
  const line = make("div", { class: "words", dir: rtl ? "rtl" : "ltr" });
  for (const token of tokens) {
    if (typeof token === "string") line.append(word(token));
    else if (token.length === 1) line.append(make("mark", {}, word(token[0])));
    else {
      const [said, heard] = token;
      const removed = said && make("del", { title: heard ? "substituted: said" : "deleted" }, word(said));
      const added = heard && make("ins", { title: said ? "substituted: recognised" : "inserted" }, word(heard));
      line.append(said && heard ? make("span", { class: "s" }, removed, added) : removed || added);
    }
    line.append(" ");
  }
  if (!tokens.length) line.append(make("span", { class: "muted" }, "nothing"));
  return line;
}

// --- choices -----------------------------------------------------------------------------------------------------

const listener = () => (writable ? byId("listener").value.trim() : "");
const of = (kind, clip) => entries.filter((one) => one.kind === kind && one.listener === listener() && (!clip || one.clip === clip));
const choiceOf = (clip) => of("choice", clip).at(-1)?.choice ?? "";
const correctionOf = (clip) => entries.filter((one) => one.kind === "correction" && one.clip === clip).at(-1);
const isRevealed = () => of("revealed").length > 0;
const textOf = (item) => correctionOf(item.id)?.text ?? item.transcript ?? "";

function tell(problem) {
  byId("problem").textContent = problem;
}

async function record(entry) {
  if (!listener()) {
    tell("Give your name first: it is kept beside what you choose.");
    byId("listener").focus();
    return false;
  }
  const line = { ...entry, listener: listener(), at: new Date().toISOString() };
  if (data.served) {
    try {
      const answer = await fetch("entries", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(line),
      });
      if (!answer.ok) throw new Error(await answer.text());
    } catch (error) {
      tell(`Not saved: ${error.message}`);
      return false;
    }
  }
  entries.push(line);
  if (!data.served) {
    unsaved += 1;
    remember();
  }
  tell("");
  return true;
}

// What was chosen outlives the tab where the browser lets a page of a file remember anything.
function remember() {
  try {
    localStorage.setItem(key, JSON.stringify({ entries, listener: listener(), unsaved }));
  } catch {
    /* the file that is saved has everything */
  }
  byId("save").hidden = entries.length === 0;
  byId("save").textContent = unsaved ? `Save ${unsaved} new` : "Save again";
}

function recall() {
  if (!writable) return;
  try {
    const kept = JSON.parse(localStorage.getItem(key) ?? "null");
    byId("listener").value = kept?.listener ?? "";
    if (!data.served && kept) {
      entries.push(...kept.entries);
      unsaved = kept.unsaved;
    }
  } catch {
    /* nothing is remembered */
  }
  if (!data.served) remember();
}

function save() {
  const text = [data.session, ...entries].map((line) => `${JSON.stringify(line)}\n`).join("");
  const address = URL.createObjectURL(new Blob([text], { type: "application/jsonl" }));
  make("a", { href: address, download: `choices-${data.session.id}.jsonl` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
  unsaved = 0;
  remember();
}

async function choose(item, choice) {
  if (!(await record({ kind: "choice", clip: item.id, choice }))) return false;
  refresh(item);
  return true;
}

async function correct(item, text) {
  const was = item.transcript;
  if (text === textOf(item)) return tell("The transcript is unchanged.");
  if (await record({ kind: "correction", clip: item.id, text, was })) refresh(item);
}

// --- the list ----------------------------------------------------------------------------------------------------

function card(item) {
  const at = views.get(item.id);
  const chosen = blind ? choiceOf(item.id) : "";
  const head = make(
    "div",
    { class: "head" },
    make("span", { class: "pill none" }, `${at + 1} of ${data.items.length}`),
    make("code", {}, word(item.id)),
    make("span", { class: "small muted" }, word(item.facts)),
  );
  const parts = [head];
  if (item.sound) {
    const preload = data.served ? "none" : "metadata";
    parts.push(make("audio", { controls: true, preload, src: item.sound, "aria-label": `Clip ${at + 1}` }));
  }
  if (item.silence) parts.push(make("p", { class: "small muted" }, `${item.sound ? "" : "Without sound: "}${item.silence}`));
  if (blind) {
    const side = (name, tokens) =>
      make(
        "div",
        { class: `side${chosen === name ? " chosen" : ""}`, role: "group", "aria-label": `${name} text` },
        make("div", { class: "small muted" }, name === "left" ? "Left" : "Right"),
        wordsOf(tokens, item.rtl),
      );
    parts.push(make("div", { class: "sides" }, side("left", item.texts[0]), side("right", item.texts[1])));
    const button = (choice, label) =>
      make("button", { type: "button", "aria-pressed": String(chosen === choice), on: { click: () => choose(item, choice) } }, label);
    parts.push(
      make("div", { class: "choices" }, button("left", "Left is better"), button("right", "Right is better"), button("same", "No difference")),
    );
  } else parts.push(wordsOf(item.texts[0], item.rtl));
  if (writable) parts.push(correction(item));
  const classes = `card item${shown[now] === at ? " now" : ""}`;
  return make(
    "li",
    { class: classes, tabindex: "-1", "data-at": String(at), "aria-label": `Clip ${at + 1}`, on: { focusin: () => mark(at) } },
    ...parts,
  );
}

function correction(item) {
  const done = correctionOf(item.id);
  const summary = done ? "Transcript, corrected" : blind ? "Show and correct the transcript" : "Correct the transcript";
  const area = make("textarea", { dir: "auto", maxlength: "20000", "aria-label": "Transcript" });
  area.value = textOf(item);
  const button = make("button", { type: "button", on: { click: () => correct(item, area.value.trim()) } }, "Save the correction");
  const before = done ? [make("p", { class: "small muted" }, "Before: ", word(item.transcript ?? "none"))] : [];
  return make("details", { open: opened === item.id, on: { toggle: (event) => (opened = event.target.open ? item.id : opened === item.id ? "" : opened) } },
    make("summary", {}, summary), area, ...before, button);
}

function mark(at) {
  now = shown.indexOf(at);
  for (const element of byId("items").children) element.classList.toggle("now", Number(element.dataset.at) === at);
}

function cardAt(at) {
  return byId("items").querySelector(`[data-at="${at}"]`);
}

function refresh(item) {
  const old = cardAt(views.get(item.id));
  if (old) {
    const inside = old.contains(document.activeElement);
    const fresh = card(item);
    // The sound goes on: it is moved, not made anew.
    const sounds = [old.querySelector("audio"), fresh.querySelector("audio")];
    if (sounds[0] && sounds[1] && !sounds[0].paused) fresh.replaceChild(sounds[0], sounds[1]);
    old.replaceWith(fresh);
    if (inside) fresh.focus({ preventScroll: true });
  }
  report();
}

function draw() {
  const pages = Math.max(1, Math.ceil(shown.length / PAGE));
  page = Math.min(Math.max(page, 0), pages - 1);
  byId("items").replaceChildren(...shown.slice(page * PAGE, (page + 1) * PAGE).map((at) => card(data.items[at])));
  byId("page").textContent = `Page ${page + 1} of ${pages}`;
  byId("back").disabled = page === 0;
  byId("forth").disabled = page === pages - 1;
  byId("back").parentElement.hidden = pages === 1;
  report();
}

function report() {
  const parts = [`${shown.length} of ${data.items.length} shown`];
  if (blind) parts.unshift(`${new Set(of("choice").map((one) => one.clip)).size} of ${data.items.length} chosen`);
  const corrected = new Set(entries.filter((one) => one.kind === "correction").map((one) => one.clip)).size;
  if (corrected) parts.push(`${corrected} corrected`);
  byId("status").textContent = parts.join(" · ");
}

function haystack(item) {
  const words = item.texts.flat().flatMap((token) => token);
  return `${item.id} ${item.facts} ${words.join(" ")}`.toLowerCase();
}

function filter() {
  const wanted = byId("find").value.trim().toLowerCase();
  const least = blind ? 0 : Number(byId("least").value) || 0;
  const open = blind && byId("open").checked;
  shown = data.items.flatMap((item, at) =>
    (item.errors === null || item.errors >= least) && (!open || !choiceOf(item.id)) && (!wanted || haystack(item).includes(wanted)) ? [at] : [],
  );
  page = 0;
  now = -1;
  draw();
}

function go(steps) {
  const next = Math.min(Math.max(now + steps, 0), shown.length - 1);
  if (next < 0) return;
  if (Math.floor(next / PAGE) !== page) {
    page = Math.floor(next / PAGE);
    draw();
  }
  pause();
  mark(shown[next]);
  const element = cardAt(shown[next]);
  element.focus({ preventScroll: true });
  element.scrollIntoView({ block: "nearest" });
}

function pause(but) {
  for (const sound of document.querySelectorAll("audio")) if (sound !== but) sound.pause();
}

function play() {
  if (now < 0) go(1);
  const sound = cardAt(shown[now])?.querySelector("audio");
  if (!sound) return;
  if (sound.paused) sound.play().catch((error) => tell(`The clip cannot be played: ${error.message}`));
  else sound.pause();
}

// --- which is which ----------------------------------------------------------------------------------------------

async function reveal() {
  if (!isRevealed() && !(await record({ kind: "revealed" }))) return;
  const bytes = Uint8Array.from(atob(data.names), (letter) => letter.charCodeAt(0));
  const { names, swapped } = JSON.parse(new TextDecoder().decode(bytes));
  const counts = { random: [0, 0, 0], disagreement: [0, 0, 0] };
  const end = entries.findIndex((one) => one.kind === "revealed" && one.listener === listener());
  const last = new Map();
  entries.slice(0, end).forEach((one) => one.kind === "choice" && one.listener === listener() && last.set(one.clip, one.choice));
  for (const [clip, choice] of last) {
    const at = views.get(clip);
    const which = choice === "same" ? 2 : Number((choice === "left") === Boolean(swapped[at]));
    counts[data.items[at].part][which] += 1;
  }
  const row = (label, numbers) =>
    make("tr", {}, make("th", { scope: "row" }, label), ...numbers.map((number) => make("td", { class: "n" }, String(number))));
  const header = make("tr", {}, make("th", {}, "Preferred"), ...["A", "B"].map((letter, side) => make("th", { scope: "col", class: "n" }, `${letter}: `, word(names[side]))), make("th", { scope: "col", class: "n" }, "No difference"));
  byId("revealed").replaceChildren(
    make("b", {}, "Which is which"),
    make("div", { class: "scroll" }, make("table", {}, header, row("drawn at random", counts.random), row("largest disagreements", counts.disagreement))),
    make("p", { class: "small muted" }, "Choices from now on are not blind and do not count. `sonotune preference` gives the interval."),
  );
  byId("revealed").hidden = false;
  byId("reveal").hidden = true;
  byId("revealed").scrollIntoView({ block: "nearest" });
}

// --- keys --------------------------------------------------------------------------------------------------------

async function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, textarea, select")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const chosen = blind ? { 1: "left", 2: "right", 3: "same" }[event.key] : undefined;
  if (event.key === "j") go(1);
  else if (event.key === "k") go(-1);
  else if (event.key === " " && !event.target.closest?.("button, summary, a, audio")) play();
  else if (event.key === "e" && writable && now >= 0) {
    const details = cardAt(shown[now])?.querySelector("details");
    if (!details) return;
    details.open = true;
    details.querySelector("textarea").focus();
  } else if (chosen && now >= 0) {
    event.preventDefault();
    if (await choose(data.items[shown[now]], chosen)) go(1);
    return;
  } else return;
  event.preventDefault();
}

document.addEventListener("keydown", pressed);
document.addEventListener("play", (event) => pause(event.target), true);
byId("back").addEventListener("click", () => ((page -= 1), draw(), scrollTo(0, 0)));
byId("forth").addEventListener("click", () => ((page += 1), draw(), scrollTo(0, 0)));
byId("find").addEventListener("input", filter);
byId(blind ? "open" : "least").addEventListener("input", filter);
if (blind) byId("reveal").addEventListener("click", reveal);
if (writable) {
  byId("save").addEventListener("click", save);
  byId("listener").addEventListener("change", () => {
    try {
      const kept = JSON.parse(localStorage.getItem(key) ?? "{}");
      localStorage.setItem(key, JSON.stringify({ entries: [], unsaved: 0, ...kept, listener: listener() }));
    } catch {
      /* nothing is remembered */
    }
    tell("");
    filter();
  });
}
addEventListener("beforeunload", (event) => unsaved && event.preventDefault());
recall();
if (!blind && !data.items.some((item) => item.errors)) byId("least").value = "0";
filter();
