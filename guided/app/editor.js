// The guide editor. Names of classes and files are only ever set as text, never as markup.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const HALF = 500; // the drawing is 1000 units wide
const $ = (id) => document.getElementById(id);

let guide = null; // what the server told: name, file, version, classes, lines
let points = []; // [x, y] of each class
let saved = []; // as in the file
let past = [];
let future = [];
let chosen = -1;
let nodes = []; // {group, halo, dot, text, picture} of each class
let lines = [];
let reach = 1; // coordinates from the middle to the edge
let unit = 1; // units of the drawing in a pixel of the screen
let asked = 0; // number of the last check asked for
let writes = 0; // begun and ended, so odd while one is under way
let timer = null;
let lastKey = { row: -1, time: 0 };

const copy = (list) => list.map((point) => [...point]);
const round = (value) => Math.round(value * 1e4) / 1e4 + 0;
const same = (one, other) => one.every(([x, y], row) => x === other[row][0] && y === other[row][1]);
const words = (label) => label.replaceAll("_", " ");

async function ask(place, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  let answer;
  try {
    answer = await fetch(place, options);
  } catch {
    throw new Error("The editor does not answer; is the command still running?");
  }
  const told = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(told.error), { status: answer.status });
  return told;
}

function say(text, bad = false) {
  $("message").textContent = text;
  $("message").hidden = !text;
  $("message").classList.toggle("bad", bad);
}

function element(name, attributes = {}, parent = null) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (parent) parent.append(made);
  return made;
}

const toUnits = ([x, y]) => [(x / reach) * HALF, (-y / reach) * HALF];

function fit() {
  const farthest = Math.max(...points.map(([x, y]) => Math.max(Math.abs(x), Math.abs(y))), 1e-6);
  reach = farthest * 1.25;
}

function build() {
  const plot = $("plot");
  plot.replaceChildren();
  plot.setAttribute("viewBox", `${-HALF} ${-HALF} ${2 * HALF} ${2 * HALF}`);
  const rings = element("g", {}, plot);
  for (const share of [0.25, 0.5, 0.75, 1]) element("circle", { class: "ring", r: (share * HALF) / 1.25 }, rings);
  element("path", { class: "axis", d: `M${-HALF} 0H${HALF}M0 ${-HALF}V${HALF}` }, rings);
  lines = guide.lines.map((line) => ({
    rows: line.rows, node: element("line", { class: "line", stroke: line.colour }, plot),
  }));
  nodes = guide.classes.map((entry, row) => {
    const group = element("g", { class: "point", tabindex: "0", role: "button" }, plot);
    group.dataset.row = row;
    const node = {
      group,
      halo: element("circle", { class: "halo" }, group),
      picture: entry.tiles ? element("image", { href: `tile/${row}/0` }, group) : null,
      dot: element("circle", { class: "dot", fill: entry.colour }, group),
      text: element("text", {}, group),
    };
    node.text.textContent = words(entry.label);
    group.addEventListener("focus", () => choose(row));
    group.addEventListener("pointerdown", (event) => startDrag(event, row));
    group.addEventListener("keydown", (event) => moveByKey(event, row));
    return node;
  });
}

// Boxes in units: [left, top, right, bottom].
const meet = (one, other) => one[0] < other[2] && other[0] < one[2] && one[1] < other[3] && other[1] < one[3];

function place(node, [x, y], taken, tile) {
  // The side that leads away from the middle first; then wherever nothing is covered and nothing is cut off.
  const gap = 11 * unit;
  const length = node.text.getComputedTextLength() + (tile ? tile + 4 * unit : 0);
  const height = Math.max(tile, 15 * unit);
  const right = [x + gap, y - height / 2, x + gap + length, y + height / 2];
  const left = [x - gap - length, y - height / 2, x - gap, y + height / 2];
  const middle = Math.max(-HALF, Math.min(HALF - length, x - length / 2));
  const below = [middle, y + gap, middle + length, y + gap + height];
  const above = [middle, y - gap - height, middle + length, y - gap];
  const sides = x >= -1e-6 ? [right, left, below, above] : [left, right, below, above];
  const inside = sides.filter((box) => box[0] >= -HALF && box[2] <= HALF);
  const hits = (box) => taken.filter((other) => meet(box, other)).length;
  return inside.reduce((best, box) => (hits(box) < hits(best) ? box : best), inside[0] ?? below);
}

function draw() {
  const { width, height } = $("plot").getBoundingClientRect();
  unit = (2 * HALF) / Math.max(1, Math.min(width, height));
  const wide = width >= 500; // on a phone the pictures would cover the drawing
  const places = points.map(toUnits);
  const dot = 9 * unit;
  const taken = places.map(([x, y]) => [x - dot, y - dot, x + dot, y + dot]);
  nodes.forEach((node, row) => {
    const [x, y] = places[row];
    const tile = wide && node.picture ? 30 * unit : 0;
    node.group.setAttribute("transform", `translate(${x} ${y})`);
    node.group.setAttribute("aria-label", `${words(guide.classes[row].label)}, x ${points[row][0]}, y ${points[row][1]}`);
    node.halo.setAttribute("r", 16 * unit);
    node.halo.setAttribute("stroke-width", 2.5 * unit);
    node.dot.setAttribute("r", 7 * unit);
    node.dot.setAttribute("stroke-width", 2 * unit);
    node.text.setAttribute("font-size", (wide ? 12.5 : 11) * unit);
    node.text.setAttribute("stroke-width", 3 * unit);
    const box = place(node, places[row], taken, tile);
    const [left, top, , bottom] = box;
    taken.push(box);
    if (node.picture) {
      node.picture.setAttribute("width", tile);
      node.picture.setAttribute("height", tile);
      node.picture.setAttribute("x", left - x);
      node.picture.setAttribute("y", (top + bottom) / 2 - tile / 2 - y);
    }
    node.text.setAttribute("x", left - x + (tile ? tile + 4 * unit : 0));
    node.text.setAttribute("y", (top + bottom) / 2 - y);
    node.text.setAttribute("dominant-baseline", "central");
    node.group.classList.toggle("chosen", row === chosen);
  });
  for (const { rows, node } of lines) {
    const [[x1, y1], [x2, y2]] = rows.map((row) => toUnits(points[row]));
    for (const [key, value] of Object.entries({ x1, y1, x2, y2 })) node.setAttribute(key, value);
    node.setAttribute("stroke-width", 2.5 * unit);
  }
  $("undo").disabled = !past.length;
  $("redo").disabled = !future.length;
  $("save").disabled = same(points, saved);
  if (chosen >= 0) {
    // Not while it is typed in.
    if (document.activeElement !== $("x")) $("x").value = points[chosen][0];
    if (document.activeElement !== $("y")) $("y").value = points[chosen][1];
  }
}

function choose(row) {
  if (row === chosen) return;
  chosen = row;
  const entry = guide.classes[row];
  $("chosen").textContent = words(entry.label);
  $("facts").textContent = `${entry.lineage}, stage ${entry.stage}`;
  $("coordinates").hidden = false;
  $("tiles").replaceChildren(...Array.from({ length: entry.tiles }, (_, number) => {
    const picture = document.createElement("img");
    picture.src = `tile/${row}/${number}`;
    picture.alt = "";
    return picture;
  }));
  draw();
}

function changed() {
  draw();
  clearTimeout(timer);
  timer = setTimeout(check, 120);
}

function remember() {
  past.push(copy(points));
  future = [];
}

async function check() {
  const number = ++asked;
  const before = writes;
  try {
    const told = await ask("check", { points });
    if (number !== asked) return;
    show(told.findings);
    // What this page writes itself meanwhile is no change by another.
    if (told.version !== guide.version && writes === before && writes % 2 === 0) say("The file has been changed on disk; reload the page to see it.", true);
  } catch (error) {
    say(error.message, true);
  }
}

function show(findings) {
  const suspects = new Set(findings.filter((each) => each.classes.length <= 4).flatMap((each) => each.classes));
  nodes.forEach((node, row) => node.group.classList.toggle("suspect", suspects.has(guide.classes[row].label)));
  const items = findings.map((finding) => {
    const item = document.createElement("li");
    item.className = finding.level;
    const head = document.createElement("b");
    head.textContent = `${finding.level}: ${finding.rule}`;
    item.append(head, finding.text);
    return item;
  });
  if (!items.length) {
    const item = document.createElement("li");
    item.textContent = "Nothing is wrong with the drawing.";
    items.push(item);
  }
  $("findings").replaceChildren(...items);
}

function startDrag(event, row) {
  if (event.button !== 0) return;
  event.preventDefault();
  const group = nodes[row].group;
  group.focus();
  group.setPointerCapture(event.pointerId);
  const before = copy(points);
  const matrix = $("plot").getScreenCTM().inverse();
  const place = (each) => new DOMPoint(each.clientX, each.clientY).matrixTransform(matrix);
  const [x, y] = toUnits(points[row]);
  const start = place(event);
  const move = (each) => {
    const now = place(each);
    const inside = (value) => Math.max(-HALF, Math.min(HALF, value));
    points[row] = [
      round((inside(x + now.x - start.x) / HALF) * reach), round((-inside(y + now.y - start.y) / HALF) * reach),
    ];
    changed();
  };
  const end = () => {
    for (const [name, listener] of Object.entries(listeners)) group.removeEventListener(name, listener);
    if (!same(points, before)) {
      past.push(before);
      future = [];
    }
    changed();
  };
  const listeners = { pointermove: move, pointerup: end, pointercancel: end };
  for (const [name, listener] of Object.entries(listeners)) group.addEventListener(name, listener);
}

function moveByKey(event, row) {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  const step = steps[event.key];
  if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  // Steps of one point in quick succession are undone together.
  if (lastKey.row !== row || event.timeStamp - lastKey.time > 800) remember();
  lastKey = { row, time: event.timeStamp };
  const size = (event.shiftKey ? 0.1 : 0.01) * 10 ** Math.floor(Math.log10(reach / 1.25) + 0.5);
  points[row] = points[row].map((value, axis) => round(value + step[axis] * size));
  changed();
}

function go(from, to) {
  if (!from.length) return;
  to.push(copy(points));
  points = from.pop();
  lastKey = { row: -1, time: 0 };
  changed();
}

async function review() {
  try {
    const told = await ask("diff", { points, version: guide.version });
    $("note").textContent = told.note;
    $("note").hidden = !told.note;
    $("diff").replaceChildren(...told.diff.map((text, number) => {
      const line = document.createElement("span");
      if (number > 1) line.className = { "+": "added", "-": "removed" }[text[0]] ?? "";
      line.textContent = `${text}\n`;
      return line;
    }));
    $("write").disabled = !told.diff.length;
    $("review").showModal();
  } catch (error) {
    say(error.status === 409 ? `${error.message}. Reload the page to see it; your moves are lost then.` : error.message, true);
  }
}

async function write() {
  writes++;
  try {
    const told = await ask("save", { points, version: guide.version });
    guide.version = told.version;
    saved = copy(points);
    say("Written.");
  } catch (error) {
    say(error.message, true);
  }
  writes++;
  $("review").close();
  draw();
}

async function start() {
  try {
    guide = await ask("state");
  } catch (error) {
    say(error.message, true);
    return;
  }
  $("name").textContent = guide.name;
  $("file").textContent = guide.file;
  document.title = `${guide.name}: guide editor`;
  points = guide.classes.map(({ x, y }) => [x, y]);
  saved = copy(points);
  fit();
  build();
  draw();
  check();
  new ResizeObserver(draw).observe($("plot"));
}

for (const [axis, id] of ["x", "y"].entries()) {
  $(id).addEventListener("change", () => {
    const value = $(id).valueAsNumber;
    if (!Number.isFinite(value) || Math.abs(value) > 1e6) return draw();
    remember();
    points[chosen][axis] = round(value);
    changed();
  });
}
$("coordinates").addEventListener("submit", (event) => event.preventDefault());
$("undo").addEventListener("click", () => go(past, future));
$("redo").addEventListener("click", () => go(future, past));
$("save").addEventListener("click", review);
$("cancel").addEventListener("click", () => $("review").close());
$("write").addEventListener("click", write);
document.addEventListener("keydown", (event) => {
  if (!(event.ctrlKey || event.metaKey) || $("review").open || event.target instanceof HTMLInputElement) return;
  const key = event.key.toLowerCase();
  if (key === "z") event.shiftKey ? go(future, past) : go(past, future);
  else if (key === "y") go(future, past);
  else if (key === "s") $("save").disabled || review();
  else return;
  event.preventDefault();
});
window.addEventListener("beforeunload", (event) => {
  if (guide && !same(points, saved)) event.preventDefault();
});
start();
