"use strict";
// The embedding explorer: cells of a fold on a canvas. What the data hold reaches the page as text only.
(() => {
  const data = JSON.parse(document.getElementById("cells").textContent);
  const canvas = document.getElementById("plot"), context = canvas.getContext("2d");
  const by = id => document.getElementById(id);
  const state = { variant: 0, fold: "0", hidden: new Set(), mistakes: false, picked: -1, zoom: 1, x: 0, y: 0 };
  const sprite = new Image();
  let points = [], box = [-1, 1, -1, 1];

  function option(select, value, text) {
    const made = document.createElement("option");
    made.value = value;
    made.textContent = text;
    select.append(made);
  }

  function fillFolds() {
    const select = by("fold"), folds = data.variants[state.variant].folds;
    select.replaceChildren();
    folds.forEach((fold, place) => option(select, String(place), `fold ${fold.fold}`));
    if (folds.length > 1) option(select, "all", "all folds");
    if (state.fold !== "all" && !folds[state.fold]) state.fold = "0";
    select.value = state.fold;
  }

  function gather() {
    const variant = data.variants[state.variant];
    const folds = state.fold === "all" ? variant.folds : [variant.folds[state.fold]];
    points = folds.flatMap(fold => fold.cell.map((cell, i) => ({
      cell, fold, x: fold.x[i], y: fold.y[i], predicted: fold.predicted[i], distance: fold.distance[i],
      truth: data.cells.label[cell],
    })));
    const guide = folds.flatMap(fold => fold.guide || []);
    const span = axis => {
      const values = points.map(p => axis ? p.y : p.x).sort((a, b) => a - b);
      const ends = [values[Math.floor(values.length * 0.005)], values[Math.ceil(values.length * 0.995) - 1]];
      return [...ends, ...guide.map(point => point[axis])].filter(Number.isFinite);
    };
    const xs = span(0), ys = span(1);
    const half = 0.55 * Math.max(Math.max(...xs) - Math.min(...xs), Math.max(...ys) - Math.min(...ys), 1e-9);
    const x = (Math.max(...xs) + Math.min(...xs)) / 2, y = (Math.max(...ys) + Math.min(...ys)) / 2;
    box = [x - half, x + half, y - half, y + half];
    by("how").textContent = folds.map(fold => fold.how).filter((how, i, all) => all.indexOf(how) === i).join("; ");
    state.picked = -1;
    describe();
  }

  const shown = p => !state.hidden.has(p.truth) && (!state.mistakes || p.truth !== p.predicted);

  function place(x, y) {
    const width = canvas.clientWidth, height = canvas.clientHeight, side = Math.min(width, height) * state.zoom;
    return [
      width / 2 + ((x - box[0]) / (box[1] - box[0]) - 0.5 - state.x) * side,
      height / 2 - ((y - box[2]) / (box[3] - box[2]) - 0.5 - state.y) * side,
    ];
  }

  function draw() {
    const scale = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    const ink = getComputedStyle(canvas).getPropertyValue("--ink").trim();
    const ground = getComputedStyle(canvas).getPropertyValue("--ground").trim();
    let count = 0, wrong = 0;
    for (const p of points) {
      if (!shown(p)) continue;
      count += 1;
      wrong += p.truth !== p.predicted;
      const [x, y] = place(p.x, p.y);
      context.beginPath();
      context.arc(x, y, 4, 0, 2 * Math.PI);
      context.fillStyle = data.classes[p.truth].colour;
      context.fill();
      context.lineWidth = p.truth === p.predicted ? 0.6 : 1.6;
      context.strokeStyle = ink;
      context.stroke();
    }
    const folds = data.variants[state.variant].folds, guide = folds[state.fold === "all" ? 0 : state.fold].guide;
    context.font = `${width < 500 ? 9 : 11}px system-ui, sans-serif`;
    context.textAlign = "center";
    (guide || []).forEach((point, i) => {
      if (state.hidden.has(i) || !point.every(Number.isFinite)) return;
      const [x, y] = place(...point);
      context.beginPath();
      for (const [dx, dy] of [[6, 0], [0, 6]]) {
        context.moveTo(x - dx, y - dy);
        context.lineTo(x + dx, y + dy);
      }
      context.lineWidth = 5;
      context.strokeStyle = ground;
      context.stroke();
      context.lineWidth = 2.5;
      context.strokeStyle = data.classes[i].colour;
      context.stroke();
      context.lineWidth = 3;
      context.strokeStyle = ground;
      const half = context.measureText(data.classes[i].name).width / 2 + 3;
      const at = Math.min(Math.max(x, half), width - half);
      context.strokeText(data.classes[i].name, at, y - 9);
      context.fillStyle = ink;
      context.fillText(data.classes[i].name, at, y - 9);
    });
    if (state.picked >= 0) {
      const [x, y] = place(points[state.picked].x, points[state.picked].y);
      context.beginPath();
      context.arc(x, y, 8, 0, 2 * Math.PI);
      context.lineWidth = 2.5;
      context.strokeStyle = ink;
      context.stroke();
    }
    by("count").textContent = `${count} cells shown, ${wrong} of them mistaken (thick rim)`;
  }

  function describe() {
    const card = by("card");
    card.hidden = state.picked < 0;
    by("hint").hidden = state.picked >= 0;
    if (state.picked < 0) return;
    const p = points[state.picked], picture = by("picture");
    const { side, columns } = data.sprite, at = data.cells.thumbnail[p.cell];
    picture.hidden = at < 0 || !sprite.complete || !sprite.naturalWidth;
    if (!picture.hidden) {
      const brush = picture.getContext("2d");
      brush.imageSmoothingEnabled = true;
      brush.clearRect(0, 0, picture.width, picture.height);
      const x = at % columns * side, y = Math.floor(at / columns) * side;
      brush.drawImage(sprite, x, y, side, side, 0, 0, picture.width, picture.height);
    }
    const right = p.truth === p.predicted;
    by("truth").textContent = data.classes[p.truth].name;
    by("predicted").textContent = data.classes[p.predicted].name + (right ? " ✓" : " ✗");
    by("predicted").className = right ? "" : "bad";
    by("distance").textContent = p.distance === null ? "–" : p.distance.toPrecision(3);
    by("to").textContent = data.variants[state.variant].to;
    by("where").textContent = `fold ${p.fold.fold}`;
    by("id").textContent = data.cells.id[p.cell];
  }

  function pick(index) {
    if (index === state.picked) return;
    state.picked = index;
    describe();
    draw();
  }

  function nearest(event, reach) {
    const frame = canvas.getBoundingClientRect(), mx = event.clientX - frame.x, my = event.clientY - frame.y;
    let best = -1, least = reach * reach;
    points.forEach((p, i) => {
      if (!shown(p)) return;
      const [x, y] = place(p.x, p.y), away = (x - mx) ** 2 + (y - my) ** 2;
      if (away <= least) [best, least] = [i, away];
    });
    return best;
  }

  // From the picked cell to the nearest one on that side; without one picked, the cell nearest to the middle.
  function step(dx, dy) {
    const from = state.picked < 0
      ? [canvas.clientWidth / 2, canvas.clientHeight / 2] : place(points[state.picked].x, points[state.picked].y);
    let best = -1, least = Infinity;
    points.forEach((p, i) => {
      if (!shown(p) || i === state.picked) return;
      const [x, y] = place(p.x, p.y), ahead = (x - from[0]) * dx + (y - from[1]) * dy;
      const aside = Math.abs((x - from[0]) * dy) + Math.abs((y - from[1]) * dx);
      if (state.picked >= 0 && ahead <= Math.max(0.01, aside)) return;
      const away = Math.hypot(ahead, 2 * aside);
      if (away < least) [best, least] = [i, away];
    });
    if (best >= 0) pick(best);
  }

  function zoom(factor) {
    state.zoom = Math.min(40, Math.max(1, state.zoom * factor));
    if (state.zoom === 1) state.x = state.y = 0;
    draw();
  }

  data.variants.forEach((variant, i) => option(by("variant"), String(i), variant.label));
  const legend = by("legend");
  let group = null;
  data.classes.forEach((each, i) => {
    if (!i || data.classes[i - 1].lineage !== each.lineage) {
      group = document.createElement("div");
      group.className = "lineage";
      legend.append(group);
    }
    const label = document.createElement("label"), box = document.createElement("input");
    const dot = document.createElement("span"), name = document.createElement("span");
    box.type = "checkbox";
    box.checked = true;
    box.addEventListener("change", () => {
      box.checked ? state.hidden.delete(i) : state.hidden.add(i);
      refilter();
    });
    dot.className = "dot";
    dot.style.background = each.colour;
    name.textContent = each.name;
    label.append(box, dot, name);
    group.append(label);
  });

  function refilter() {
    if (state.picked >= 0 && !shown(points[state.picked])) state.picked = -1;
    describe();
    draw();
  }

  function setAll(checked) {
    legend.querySelectorAll("input").forEach((box, i) => {
      box.checked = checked;
      checked ? state.hidden.delete(i) : state.hidden.add(i);
    });
    refilter();
  }

  by("variant").addEventListener("change", event => {
    state.variant = Number(event.target.value);
    fillFolds();
    gather();
    draw();
  });
  by("fold").addEventListener("change", event => {
    state.fold = event.target.value;
    gather();
    draw();
  });
  by("mistakes").addEventListener("change", event => {
    state.mistakes = event.target.checked;
    refilter();
  });
  by("all").addEventListener("click", () => setAll(true));
  by("none").addEventListener("click", () => setAll(false));
  by("in").addEventListener("click", () => zoom(1.5));
  by("out").addEventListener("click", () => zoom(1 / 1.5));
  by("reset").addEventListener("click", () => zoom(0));
  let dragged = null;
  canvas.addEventListener("pointerdown", event => {
    dragged = [event.clientX, event.clientY];
    const found = nearest(event, 18);
    if (found >= 0) pick(found);
  });
  canvas.addEventListener("pointermove", event => {
    if (dragged && event.buttons && state.zoom > 1) {
      const side = Math.min(canvas.clientWidth, canvas.clientHeight) * state.zoom;
      state.x -= (event.clientX - dragged[0]) / side;
      state.y += (event.clientY - dragged[1]) / side;
      dragged = [event.clientX, event.clientY];
      draw();
    } else if (event.pointerType === "mouse") {
      const found = nearest(event, 12);
      if (found >= 0) pick(found);
    }
  });
  addEventListener("pointerup", () => { dragged = null; });
  canvas.addEventListener("keydown", event => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (way) step(...way);
    else if (event.key === "+") zoom(1.5);
    else if (event.key === "-") zoom(1 / 1.5);
    else if (event.key === "Escape") pick(-1);
    else return;
    event.preventDefault();
  });
  addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  sprite.addEventListener("load", describe);
  if (data.sprite.url) sprite.src = data.sprite.url;
  // Where a cell lies on the canvas, for tests and for a console.
  canvas.cells = () => points.filter(shown).map(p => ({ at: place(p.x, p.y), id: data.cells.id[p.cell], truth: p.truth }));
  state.variant = Math.max(0, data.variants.findIndex(variant => variant.baseline));
  by("variant").value = String(state.variant);
  fillFolds();
  gather();
  draw();
})();
