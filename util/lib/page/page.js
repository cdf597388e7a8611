// The page of util/verify_images.py. Every decision is sent at once; the page moves on when it is on disk.
"use strict";

const [CORRECT, WRONG, UNCLEAR, UNDO] = ["1", "0", "-1", "undo"];
const IMAGE_KEYS = [..."1234567890abcdefghijklopqrtvwxABCDEFGHIJKLOPQRTVWX"];  // of a grid's images: no letter that has another meaning
const token = new URLSearchParams(location.search).get("token") || "";
const $ = (id) => document.getElementById(id);

// Another one after a reload, so that a copy of the tab never has the same.
const window_ = Array.from(crypto.getRandomValues(new Uint32Array(4)), (x) => x.toString(36)).join("");
let author = "", setup = null, single = false;
let batch = null;       // {rows, examples}: what is shown; a row has label (null: undecided) and before, its number of decisions
let ahead = [];         // batches that are loaded already
let loading = null;     // a promise of the next of them
let choice = 0;         // which filter they are of
let actions = [];       // what u takes back, the last at the end: {batch, rows}
let cursor = 0;         // index of the row in batch.rows that keys are about
let began = 0, made = 0, renewed = 0;  // for the rate: since when, and how many decisions; when leases were renewed

// --- the server ---

async function call(action, body) {
  const options = {method: "POST", headers: {"X-Token": token}, body: JSON.stringify({author, window: window_, ...body})};
  let answer;
  try {
    answer = await fetch(action, options);
  } catch {
    throw new Error("The server does not answer. Start the command again, and open the URL that it prints.");
  }
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

function url(path) {
  return `${path}${path.includes("?") ? "&" : "?"}token=${encodeURIComponent(token)}`;
}

function say(text, isError = false) {
  $("message").textContent = text;
  $("message").classList.toggle("error", isError);
}

let last = Promise.resolve();  // actions run one after the other
let waiting = 0;               // how many there are
let moving = false;            // a second key that moves on is not taken for the images that it has not shown yet

function inTurn(action) {  // what goes wrong is shown
  document.body.dataset.waiting = ++waiting;
  last = last.catch(() => {}).then(async () => {
    try {
      say("");
      await action();
    } catch (error) {
      say(error.message, true);
    }
    draw();
    document.body.dataset.waiting = --waiting;
  });
  return last;
}

function movesOn(action) {
  if (moving) return;
  moving = true;
  inTurn(action).finally(() => { moving = false; });
}

async function decide(changes) {  // changes: [{row, label, right_class}]
  for (let i = 0; i < changes.length; i += 500) {
    const part = changes.slice(i, i + 500);
    const sent = part.map(({row, label, right_class = ""}) => ({row: row.row, label, right_class, before: row.before}));
    showProgress((await call("decide", {decisions: sent, filter: filter()})).progress);
    for (const {row, label} of part) {
      row.before += label === UNDO ? -1 : 1;
      row.label = label === UNDO ? null : label;
      made += label === UNDO ? -1 : 1;
    }
  }
}

function filter() {
  return {class_name: $("filter_class").value, verdict: setup.review ? $("filter_verdict").value : "", suggested: $("filter_suggested").value};
}

function held() {
  return [batch, ...ahead].flatMap((b) => (b ? b.rows.map((row) => row.row) : []));
}

async function load() {  // the next batch, whose images the browser fetches before they are shown
  const answer = await call("batch", {held: held(), filter: filter()});
  showProgress(answer.progress);
  for (const row of answer.rows) {
    row.label = null;
    new Image().src = imageUrl(row);
  }
  return answer.rows.length ? {rows: answer.rows, examples: answer.examples} : null;
}

async function next() {
  began = began || performance.now();
  batch = null;
  await loading;  // or its rows would come twice
  batch = ahead.shift() || await load();
  cursor = 0;
  if (batch) loadAhead();
  else setTimeout(() => batch || inTurn(next), 15000);  // others may give rows back
}

function loadAhead() {
  if (ahead.length) return;
  const of = choice;
  const more = load().then((found) => { if (found && of === choice) ahead.push(found); });
  loading = more.catch(() => {});  // the next action says what is wrong
}

function startAnew() {  // another filter, or many rows decided at once: what was loaded is of no use
  choice += 1;
  ahead = [];
  return next();
}

// --- decisions ---

function open_() {
  return batch ? batch.rows.filter((row) => row.label === null) : [];
}

function mark(index, label) {  // in the grid: marks an image, or takes the mark back
  const marked = batch, row = batch.rows[index];
  inTurn(async () => {
    if (batch !== marked) return;
    cursor = index;
    row.saving = true;
    draw();
    try {
      const own = row.label;
      if (own !== null) {
        await decide([{row, label: UNDO}]);
        actions = actions.filter((action) => !(action.rows.length === 1 && action.rows[0] === row));
      }
      if (own !== label) {
        await decide([{row, label}]);
        actions.push({batch, rows: [row]});
      }
    } finally {
      delete row.saving;
    }
  });
}

function acceptRest() {
  movesOn(async () => {
    const rows = open_();
    if (rows.length) {
      await decide(rows.map((row) => ({row, label: row.unseen ? UNCLEAR : CORRECT})));  // nobody saw what cannot be shown
      actions.push({batch, rows});
    }
    await next();
  });
}

function choose(label, right_class = "") {  // one by one
  movesOn(async () => {
    const row = batch && batch.rows[cursor];
    if (!row || row.label !== null) return;
    await decide([{row, label, right_class}]);
    actions.push({batch, rows: [row]});
    await forward();
  });
}

async function forward() {
  const rest = batch ? batch.rows.findIndex((row) => row.label === null) : -1;
  if (rest < 0) await next();
  else cursor = rest;
}

function undo() {
  movesOn(async () => {
    const action = actions.at(-1);
    if (!action) throw new Error("There is nothing to take back.");
    await decide(action.rows.filter((row) => row.label !== null).map((row) => ({row, label: UNDO})));  // some are, if it broke off
    actions.pop();
    if (action.batch && action.batch !== batch) {
      if (batch && open_().length) ahead.unshift(batch);
      batch = action.batch;
    }
    cursor = batch ? Math.max(0, batch.rows.indexOf(action.rows[0])) : 0;
  });
}

function acceptSuggestions() {
  movesOn(async () => {
    const above = parseFloat($("above").value);
    if (Number.isNaN(above)) throw new Error("Give a cosine, for example 0.5.");
    const {count} = await call("suggestions", {filter: filter(), above, count_only: true});
    if (!count) throw new Error(`No row is left whose suggestion has a cosine of ${above} or more.`);
    if (!confirm(`Relabel ${count} rows as suggested?`)) return;
    const answer = await call("suggestions", {filter: filter(), above, count_only: false});
    actions.push({batch: null, rows: answer.rows.map((row) => ({row, before: 1, label: WRONG}))});
    await startAnew();
    say(`${answer.rows.length} rows relabelled; u takes that back.`);
  });
}

// --- what is shown ---

function imageUrl(row) {
  return url(`image/${row.row}?start=${setup.start}`);
}

function picture(source, name, onMissing = () => {}) {
  const image = document.createElement("img");
  image.alt = name;
  image.addEventListener("load", () => image.classList.toggle("tiny", image.naturalWidth <= 64));
  image.addEventListener("error", async () => {
    onMissing();
    const text = document.createElement("div");
    text.className = "missing";
    const answer = await fetch(source).catch(() => null);
    text.textContent = `cannot be shown: ${answer && !answer.ok ? await answer.text() : "no answer"}`;
    image.replaceWith(text);
  });
  image.src = source;
  return image;
}

function showProgress({done, total, alike, twice, with_others}) {
  $("bar").value = total ? done / total : 1;
  const minutes = (performance.now() - began) / 60000;
  const rate = made > 4 ? made / minutes : 0;
  const left = rate ? `, ${Math.round(rate)} per minute, about ${Math.ceil((total - done) / rate)} min left` : "";
  const again = twice ? `; ${alike} of ${twice} asked twice were decided alike` : "";
  const others = with_others ? `; ${with_others} are with other people now` : "";
  $("numbers").textContent = `${done} of ${total} answered${left}${again}${others}`;
}

function question() {
  if (!batch) return [$("message").matches(".error") ? "The page has stopped." : "Nothing is left to ask here.", ""];
  if (setup.review) return ["Labelled as", batch.rows[cursor].class_name];
  return [single ? "Is this right:" : "Mark what is not", batch.rows[cursor].class_name];
}

let drawn = null;  // the batch whose cells are in the grid
function draw() {
  if (!setup) return;
  const [text, name] = question();
  $("question").textContent = text;
  $("class_name").textContent = name;
  document.title = name || "Verify images";
  $("grid").hidden = single || !batch;
  $("single").hidden = !single || !batch;
  document.querySelector("main").classList.toggle("single", single);
  $("mode").textContent = single ? "Grid (m)" : "One by one (m)";
  if (!batch) $("examples").replaceChildren();
  else if (single) drawSingle();
  else drawGrid();
  if (batch) drawExamples();
}

function drawGrid() {
  if (drawn !== batch) {
    drawn = batch;
    $("grid").replaceChildren(...batch.rows.map((row, index) => {
      const cell = document.createElement("div");
      cell.className = "cell";
      cell.tabIndex = -1;
      cell.setAttribute("role", "checkbox");
      cell.setAttribute("aria-label", row.key);
      cell.title = [row.key, row.why].filter(Boolean).join("\n");
      const key = IMAGE_KEYS[index];
      if (key) {
        cell.dataset.key = key;
        cell.setAttribute("aria-keyshortcuts", /[A-Z]/.test(key) ? `Shift+${key}` : key);
      }
      cell.append(picture(imageUrl(row), row.key, () => { row.unseen = true; }));
      cell.addEventListener("click", () => mark(index, WRONG));
      cell.addEventListener("dblclick", () => zoom(row));
      return cell;
    }));
    scrollTo(0, 0);
  }
  batch.rows.forEach((row, index) => {
    const cell = $("grid").children[index];
    if (row.label === null) delete cell.dataset.label;
    else cell.dataset.label = row.label;
    cell.toggleAttribute("data-saving", Boolean(row.saving));
    cell.setAttribute("aria-checked", String(row.label === WRONG));
    cell.tabIndex = index === cursor ? 0 : -1;
  });
  if (!document.querySelector("dialog[open]") && !$("filter").contains(document.activeElement)) $("grid").children[cursor].focus();
}

let shown = null;  // the row in the single view
function drawSingle() {
  const row = batch.rows[cursor];
  if (shown !== row) {
    shown = row;
    const image = picture(imageUrl(row), row.key);
    image.id = "single_image";
    image.addEventListener("dblclick", () => zoom(row));
    $("single").replaceChild(image, $("single").firstElementChild);
  }
  const facts = [row.key, row.why];
  if (setup.review) {
    facts.push(row.score === null ? "no score" : `score ${row.score.toFixed(3)}`, row.verdict);
    const cosine = row.nearest_cosine === null ? "" : ` (cosine ${row.nearest_cosine.toFixed(3)})`;  // a classifier has none
    if (row.nearest_class) facts.push(`nearest: ${row.nearest_class}${cosine}`);
  }
  $("facts").textContent = facts.filter(Boolean).join(" · ");
}

function drawExamples() {
  const row = batch.rows[cursor], names = [row.class_name];
  if (setup.review && row.nearest_class && row.nearest_class !== row.class_name) names.push(row.nearest_class);
  const key = JSON.stringify(names);
  if ($("examples").dataset.names === key && $("examples").children.length) return;
  $("examples").dataset.names = key;
  $("examples").replaceChildren(...names.filter((name) => (batch.examples[name] || []).length).map((name) => {
    const section = document.createElement("section"), title = document.createElement("p"), images = document.createElement("div");
    section.className = "examples";
    title.className = "caption";
    title.textContent = `Examples of ${name}, not truth`;
    images.append(...batch.examples[name].map((path) => picture(url(path), name)));
    section.append(title, images);
    return section;
  }));
}

function zoom(row) {
  $("zoom_image").src = url(`image/${row.row}?large=1&start=${setup.start}`);
  $("zoom_image").alt = row.key;
  $("zoom_image").onload = () => $("zoom_image").classList.toggle("tiny", $("zoom_image").naturalWidth <= 64);
  $("zoom").showModal();
}

function switchMode() {
  if (setup.review) return;
  single = !single;
  if (batch && open_().length && batch.rows[cursor].label !== null) cursor = batch.rows.findIndex((row) => row.label === null);
  drawButtons();
  draw();
  if (single && batch && !open_().length) movesOn(next);  // all of them are marked
}

function drawButtons() {
  const choices = setup.review ? REVIEW : SINGLE;
  $("choices").replaceChildren(...Object.entries(choices).map(([key, [text, action]]) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `${text} (${key})`;
    button.addEventListener("click", () => { button.blur(); action(); });
    return button;
  }));
  const keys = single
    ? Object.entries(choices).map(([key, [text]]) => [key, text])
    : [["key of an image", "mark or unmark it"], ["arrows", "move"], ["space", "mark or unmark"], ["s", "cannot tell"],
      ["Enter", "the rest is right, next page"]];
  keys.push(["u", "undo"], ["z", "zoom"], ...(setup.review ? [] : [["m", single ? "grid" : "one by one"]]));
  $("help").replaceChildren(...keys.flatMap(([key, text]) => {
    const kbd = document.createElement("kbd");
    kbd.textContent = key;
    return [kbd, ` ${text}   `];
  }));
}

// --- keys ---

const SINGLE = {
  y: ["Right", () => choose(CORRECT)], n: ["Wrong", () => choose(WRONG)], s: ["Cannot tell", () => choose(UNCLEAR)],
};
const REVIEW = {
  k: ["Keep", () => choose(CORRECT)], r: ["Relabel", () => askRelabel()], d: ["Drop", () => choose(WRONG)],
  s: ["Cannot tell", () => choose(UNCLEAR)],
};

function move(key) {
  const cells = [...$("grid").children], top = cells[0].offsetTop;
  const columns = cells.findIndex((cell) => cell.offsetTop > top) < 0 ? cells.length : cells.findIndex((cell) => cell.offsetTop > top);
  const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns}[key];
  if (cells[cursor + step]) cursor += step;
  draw();
}

function onKey(event) {
  if (!setup || event.ctrlKey || event.altKey || event.metaKey) return;
  if ($("zoom").open) {
    if (event.key === "z") $("zoom").close();
    return;
  }
  if (document.querySelector("dialog[open]") || event.target.matches("input, select")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const entry = (setup.review ? REVIEW : SINGLE)[key], image = IMAGE_KEYS.indexOf(event.key);
  if (event.target.matches("button") && (key === " " || key === "Enter")) return;  // it presses the button
  let action = null;
  if (key === "u") action = undo;
  else if (key === "m") action = switchMode;
  else if (batch && key === "z") action = () => zoom(batch.rows[cursor]);
  else if (batch && single && entry) action = entry[1];
  else if (batch && !single && key.startsWith("Arrow")) action = () => move(key);
  else if (batch && !single && key === " ") action = () => mark(cursor, WRONG);
  else if (batch && !single && key === "s") action = () => mark(cursor, UNCLEAR);
  else if (batch && !single && batch.rows[image]) action = () => mark(image, WRONG);
  else if ((!single || !batch) && key === "Enter") action = acceptRest;
  if (!action) return;
  event.preventDefault();
  if (event.repeat && !key.startsWith("Arrow")) return;
  action();
}

// --- the dialogs ---

function askRelabel() {
  const row = batch && batch.rows[cursor];
  if (moving || !row || row.label !== null) return;
  $("wanted").value = "";
  listClasses();
  $("relabel").showModal();
}

function listClasses() {  // those that begin with what was typed, then those that hold it; without a text the suggestion first
  const row = batch.rows[cursor], text = $("wanted").value.trim().toLowerCase();
  const names = setup.class_names.filter((name) => name !== row.class_name && name.toLowerCase().includes(text));
  const rank = (name) => (!text && name === row.nearest_class ? -1 : name.toLowerCase().startsWith(text) ? 0 : 1);
  names.sort((a, b) => rank(a) - rank(b));
  $("found").replaceChildren(...names.slice(0, 50).map((name) => {
    const item = document.createElement("li");
    item.textContent = name;
    item.addEventListener("click", () => relabel(name));
    return item;
  }));
}

function relabel(name) {
  $("relabel").close();
  if (name) choose(WRONG, name);
}

function askName() {
  return new Promise((resolve) => {
    $("ask").addEventListener("cancel", (event) => event.preventDefault());
    $("ask").addEventListener("close", () => resolve($("name").value.trim()));
    $("ask").showModal();
  });
}

// --- the start ---

async function start() {
  author = localStorage.getItem("author") || "";
  setup = await call("start");
  author = setup.author || author;
  while (!author) {
    author = await askName();
    localStorage.setItem("author", author);
  }
  setup = await call("start");
  actions = setup.history.map((row) => {
    const rows = [{...row, label: CORRECT}];
    return {batch: {rows, examples: {}}, rows};
  });
  single = setup.review;
  $("filter").hidden = !setup.review;
  $("mode").hidden = setup.review;
  $("write").title = setup.list_path;
  for (const id of ["filter_class", "filter_suggested"]) $(id).append(...setup.class_names.map((name) => new Option(name, name)));
  showProgress(setup.progress);
  drawButtons();
  await inTurn(next);
}

document.addEventListener("keydown", onKey);
document.addEventListener("pointerdown", renew);
document.addEventListener("keydown", renew);
function renew() {  // a person who marks a page for long keeps it
  if (!setup || !author || performance.now() - renewed < 60000) return;
  renewed = performance.now();
  call("renew", {held: held()}).catch(() => {});
}
addEventListener("pagehide", () => {
  if (author) navigator.sendBeacon(url("leave"), JSON.stringify({author, window: window_}));
});
$("mode").addEventListener("click", () => { $("mode").blur(); switchMode(); });
$("undo").addEventListener("click", () => { $("undo").blur(); undo(); });
$("write").addEventListener("click", () => inTurn(async () => {
  $("write").blur();
  say((await call("write")).text);
}));
$("accept_all").addEventListener("click", acceptSuggestions);
$("zoom").addEventListener("click", () => $("zoom").close());
$("wanted").addEventListener("input", listClasses);
$("relabel").addEventListener("submit", (event) => {
  event.preventDefault();
  const first = $("found").firstElementChild;
  if (first) relabel(first.textContent);
});
for (const id of ["filter_class", "filter_verdict", "filter_suggested"]) {
  $(id).addEventListener("change", () => inTurn(async () => {
    $(id).blur();
    await startAnew();
  }));
}
start().catch((error) => say(error.message, true));
