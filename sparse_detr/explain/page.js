"use strict";
// The page of `sparse-detr explain`: everything is in the JSON of the script element `data`; nothing is loaded.

const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const SVG = at("overlay").namespaceURI;
const state = { image: 0, budget: 0, level: 0, layer: 0, detection: 0, view: "tokens", points: true, truth: false };
let photo = null;

const image = () => data.images[state.image];
const view = () => image().views[state.budget];

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

function bits(text, count) {
  const packed = bytes(text);
  return Uint8Array.from({ length: count }, (_, i) => (packed[i >> 3] >> (7 - (i & 7))) & 1);
}

// Every array of an image is decoded once.
const decoded = new Map();
function cached(key, make) {
  if (!decoded.has(key)) decoded.set(key, make());
  return decoded.get(key);
}

function starts() {
  let start = 0;
  return image().levels.map(([height, width]) => { const here = start; start += height * width; return here; });
}

const count = () => image().levels.reduce((sum, [height, width]) => sum + height * width, 0);

function kept(budget = state.budget, layer = state.layer) {
  const layers = image().views[budget].kept;
  const text = layers[Math.min(layer, layers.length - 1)];
  return cached(`${state.image} kept ${budget} ${layer}`, () => bits(text, count()));
}

function values(name) {
  const text = image()[name];
  return text && cached(`${state.image} ${name}`, () => bytes(text));
}

function element(name, attributes, parent, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

function paragraph(text, parent, name) {
  const made = document.createElement("p");
  made.textContent = text;
  if (name) made.className = name;
  parent.append(made);
}

// ---------------------------------------------------------------- the picture

const HEAT = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
function heatColor(value) {
  const place = Math.min(Math.max(value, 0), 1) * (HEAT.length - 1);
  const low = Math.min(Math.floor(place), HEAT.length - 2);
  return HEAT[low].map((from, i) => from + (HEAT[low + 1][i] - from) * (place - low));
}

function cellPicture(level, paint) {
  const [height, width] = image().levels[level];
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  const start = starts()[level];
  for (let i = 0; i < height * width; i++) pixels.data.set(paint(start + i), 4 * i);
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function drawPicture() {
  const canvas = at("picture");
  const context = canvas.getContext("2d");
  canvas.width = image().shown[0];
  canvas.height = image().shown[1];
  context.drawImage(photo, 0, 0, canvas.width, canvas.height);
  const levels = state.level ? [state.level - 1] : image().levels.map((_, i) => i);
  if (state.view === "tokens") drawTokens(context, levels);
  else if (["scores", "attention", "pooling", "objects"].includes(state.view)) drawHeat(context, levels);
  else if (state.view !== "image") {
    context.fillStyle = "#0007";
    context.fillRect(0, 0, canvas.width, canvas.height);
  }
}

function drawTokens(context, levels) {
  const mask = kept();
  // Dark where no token is refined; the levels share the darkness, so that all together give the same.
  const alpha = 255 * (1 - Math.pow(0.22, 1 / levels.length));
  context.imageSmoothingEnabled = false;
  for (const level of levels) {
    const cells = cellPicture(level, (token) => [0, 0, 0, mask[token] ? 0 : alpha]);
    context.drawImage(cells, 0, 0, context.canvas.width, context.canvas.height);
  }
}

function drawHeat(context, levels) {
  const map = values(state.view);
  context.imageSmoothingEnabled = levels.length > 1;
  context.globalAlpha = 0.7 / Math.sqrt(levels.length);
  for (const level of levels) {
    const cells = cellPicture(level, (token) => [...heatColor(map[token] / 255), 255]);
    context.drawImage(cells, 0, 0, context.canvas.width, context.canvas.height);
  }
  context.globalAlpha = 1;
}

// ---------------------------------------------------------------- boxes and points

function budgetColor(smallest) {
  if (smallest === null) return "#ff2d55";
  return `rgb(${heatColor(1 - Math.sqrt(smallest)).map(Math.round).join(",")})`;
}

function shownBoxes() {
  if (state.view === "found") {
    return image().found.map((row) => ({ box: row.box, color: budgetColor(row.smallest), text: `${row.name}: ${row.text}` }));
  }
  if (state.view === "compare") {
    const colors = { lost: "#ff2d55", gained: "#34d058", both: "#c8c8d0", neither: "#ffd60a" };
    return image().compare.map((row) => ({ box: row.box, color: colors[row.kind], text: `${row.name}: ${row.words}` }));
  }
  return view().detections.map((found) => ({ box: found.box, color: found.color, text: `${found.name} ${found.score.toFixed(2)}` }));
}

function addBox(parent, [x0, y0, x1, y1], attributes) {
  return element("rect", { x: x0, y: y0, width: Math.max(x1 - x0, 0.5), height: Math.max(y1 - y0, 0.5), ...attributes }, parent);
}

function drawOverlay() {
  const overlay = at("overlay");
  overlay.replaceChildren();
  overlay.setAttribute("viewBox", `0 0 ${image().size[0]} ${image().size[1]}`);
  overlay.setAttribute("preserveAspectRatio", "none");
  const detections = !["found", "compare"].includes(state.view);
  const boxes = shownBoxes().map((found, index) => ({ ...found, index }));
  // Small boxes last, so that they are on top and can be clicked.
  const area = ({ box }) => (box[2] - box[0]) * (box[3] - box[1]);
  for (const { box, color, text, index } of boxes.sort((a, b) => area(b) - area(a))) {
    const chosen = detections && index === state.detection;
    addBox(overlay, box, { class: "halo" });
    const made = addBox(overlay, box, {
      class: `box${chosen ? " chosen" : ""}`, stroke: color, "data-index": index, tabindex: 0, role: "button", "aria-label": text,
    });
    element("title", {}, made, text);
    const choose = () => { if (detections) { state.detection = index; } else { at("status").textContent = text; return; } show(); };
    made.addEventListener("click", choose);
    made.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(); });
  }
  if (state.truth) for (const found of image().truth || []) addBox(overlay, found.box, { class: "truth" });
  if (state.points && detections) drawPoints(overlay);
}

function samplingPoints(found) {
  const raw = bytes(found.points);
  const whole = new DataView(raw.buffer);
  const mask = kept(state.budget, 0);
  const begin = starts();
  const points = [];
  for (let i = 0; i < raw.length; i += 6) {
    const x = whole.getUint16(i, true) / 65535, y = whole.getUint16(i + 2, true) / 65535;
    const level = raw[i + 4];
    const [height, width] = image().levels[level];
    const cell = Math.min(Math.floor(y * height), height - 1) * width + Math.min(Math.floor(x * width), width - 1);
    points.push({ x, y, level, weight: raw[i + 5] / 255, refined: mask[begin[level] + cell] === 1 });
  }
  return points;
}

function drawPoints(overlay) {
  const found = view().detections[state.detection];
  if (!found || !found.points) return;
  const [width, height] = image().size;
  const unit = Math.max(width, height) / 220;
  for (const point of samplingPoints(found)) {
    if (state.level && point.level !== state.level - 1) continue;
    const side = unit * (0.9 + 1.8 * point.weight);
    element("rect", {
      class: `point ${point.refined ? "refined" : "unrefined"}`,
      x: point.x * width - side / 2, y: point.y * height - side / 2, width: side, height: side,
      fill: point.refined ? "#ffd60a" : "none", stroke: point.refined ? "#0008" : "#ff5c8a",
    }, overlay);
  }
}

// ---------------------------------------------------------------- text and charts

function lineOf(shares, scores, place) {
  return shares.map((share, i) => place(share, scores[i]).join(",")).join(" ");
}

function chart(caption, shares, lines, band, xLabel, mark) {
  const figure = document.createElement("figure");
  const title = document.createElement("figcaption");
  title.textContent = caption;
  figure.append(title);
  const [width, height, left, bottom, top] = [420, 150, 30, 26, 8];
  const last = shares[shares.length - 1];
  const place = (share, score) => [left + (width - left - 10) * (share / last), top + (height - top - bottom) * (1 - Math.min(score, 1))];
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": caption }, figure);
  for (const score of [0, 0.5, 1]) {
    const [x, y] = place(0, score);
    element("line", { class: "axis", x1: x, y1: y, x2: width - 10, y2: y }, svg);
    element("text", { x: x - 5, y: y + 4, "text-anchor": "end" }, svg, score);
  }
  for (const share of [0, 0.5, 1]) {
    element("text", { x: place(share * last, 0)[0], y: height - bottom + 13, "text-anchor": share === 1 ? "end" : "middle" }, svg, `${Math.round(100 * share * last)} %`);
  }
  element("text", { x: width - 10, y: height - 2, "text-anchor": "end" }, svg, xLabel);
  if (band) {
    const there = lineOf(shares, band[1], place), back = lineOf([...shares].reverse(), [...band[0]].reverse(), place);
    element("polygon", { class: "band", points: `${there} ${back}` }, svg);
  }
  for (const { name, scores, words } of lines) {
    element("polyline", { class: name, points: lineOf(shares, scores, place) }, svg);
    if (words) element("text", { class: name, x: left + 6, y: name === "explained" ? height - bottom - 18 : height - bottom - 5 }, svg, words);
  }
  if (mark !== undefined) {
    const [x] = place(mark, 0);
    element("line", { class: "random", x1: x, y1: top, x2: x, y2: height - bottom }, svg);
  }
  at("charts").append(figure);
}

function comparisonChart(caption, found, xLabel, words) {
  chart(`${caption} — faithfulness ${found.faithfulness.toFixed(2)}`, found.shares, [
    { name: "random", scores: found.random, words: "– – as many random tokens" },
    { name: "explained", scores: found.explained, words },
  ], [found.lowest, found.highest], xLabel);
}

function showDetection() {
  const found = view().detections[state.detection];
  at("story").replaceChildren();
  at("charts").replaceChildren();
  const total = view().detections.length;
  at("name").textContent = found ? `Detection ${state.detection + 1} of ${total}` : "No detection";
  if (!found) {
    paragraph(`Nothing is found with a score of at least ${data.threshold} at this budget.`, at("story"));
    return;
  }
  const explained = view().own ? image().explained[state.detection] : undefined;
  if (explained) {
    explained.sentences.forEach((sentence) => paragraph(sentence, at("story")));
    if (explained.dropped) comparisonChart("Score as tokens under the box are dropped", explained.dropped, "of these tokens dropped", "— tokens under the box");
    if (explained.alone) comparisonChart("Score with only tokens under the box refined", explained.alone, "of these tokens refined", "— tokens under the box");
    if (explained.points) comparisonChart("Score as tokens at its sampling points are dropped", explained.points, "of these tokens dropped", "— tokens at its points");
  } else {
    paragraph(`This detection is of class ${found.name} and has a score of ${found.score.toFixed(2)}.`, at("story"));
    paragraph(image().not_editable ? `No causal test: ${image().not_editable}.` : view().own
      ? `No causal test was run on it; --detection ${state.detection + 1} runs it.`
      : "Causal tests are at the model's own budget: move the slider there.", at("story"));
  }
  if (found.points) {
    const points = samplingPoints(found);
    const on = points.filter((point) => point.refined).length;
    paragraph(`It looked most at ${points.length} points: ${on} on refined tokens, ${points.length - on} on tokens that are not refined.`, at("story"));
  }
  const near = nearest(found.box);
  if (near && near.budgets.length > 1) {
    chart(`${near.name}: ${near.text}`, near.budgets, [{ name: "explained", scores: near.scores }], null, "budget (rho)", view().ratio);
  }
}

function overlap(a, b) {
  const wide = Math.min(a[2], b[2]) - Math.max(a[0], b[0]), high = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (wide <= 0 || high <= 0) return 0;
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  return (wide * high) / (area(a) + area(b) - wide * high);
}

function nearest(box) {
  const best = [...image().found].sort((a, b) => overlap(b.box, box) - overlap(a.box, box))[0];
  return best && overlap(best.box, box) >= 0.5 ? best : null;
}

function sizesChart() {
  at("sizes").replaceChildren();
  if (!image().found.length) {
    paragraph(image().no_budget, at("sizes"));
    return;
  }
  image().size_sentences.forEach((sentence) => paragraph(sentence, at("sizes")));
  const edges = [0.05, 0.1, 0.2, 0.3, 0.5, 1];
  const names = ["≤ 5 %", "10 %", "20 %", "30 %", "50 %", "100 %", "never"];
  const bin = (row) => (row.smallest === null ? 6 : edges.findIndex((edge) => row.smallest <= edge));
  for (const size of ["small", "medium", "large"]) {
    const rows = image().found.filter((row) => row.size === size);
    if (!rows.length) continue;
    const counts = names.map((_, i) => rows.filter((row) => bin(row) === i).length);
    const figure = document.createElement("figure");
    const title = document.createElement("figcaption");
    title.textContent = `${size} objects`;
    figure.append(title);
    const svg = element("svg", { viewBox: "0 0 420 92", role: "img", "aria-label": `${size} objects by smallest budget` }, figure);
    counts.forEach((number, i) => {
      const height = (54 * number) / Math.max(...counts);
      element("rect", { class: "bar", x: 10 + 58 * i, y: 70 - height, width: 44, height }, svg);
      element("text", { x: 32 + 58 * i, y: 65 - height, "text-anchor": "middle" }, svg, number || "");
      element("text", { x: 32 + 58 * i, y: 86, "text-anchor": "middle" }, svg, names[i]);
    });
    at("sizes").append(figure);
  }
}

function ledgerTable() {
  at("ledger").replaceChildren();
  image().ledger.sentences.forEach((sentence) => paragraph(sentence, at("ledger")));
  const table = document.createElement("table");
  const add = (cells, kind) => {
    const row = table.insertRow();
    cells.forEach((cell) => { const made = document.createElement(kind); made.textContent = cell; row.append(made); });
  };
  add(["", "refined", "of", "background", "GFLOPs", "ms"], "th");
  const number = (value) => (value === null ? "–" : value.toLocaleString("en", { maximumSignificantDigits: 2 }));
  for (const [name, refined, tokens, background, gigaflops, milliseconds] of image().ledger.rows) {
    const share = background === null || !refined ? "–" : `${Math.round((100 * background) / refined)} %`;
    add([name, refined ?? "–", tokens ?? "–", share, number(gigaflops), number(milliseconds)], "td");
  }
  at("ledger").append(table);
}

function checks() {
  at("checks").replaceChildren();
  if (!image().checks.length) return;
  const title = document.createElement("h2");
  title.textContent = "Checks";
  at("checks").append(title);
  image().checks.forEach((sentence) => paragraph(sentence, at("checks")));
}

// ---------------------------------------------------------------- controls

const LEGENDS = {
  tokens: "Bright: the encoder refines these tokens. Dark: it does not.",
  scores: "Token scores: what the model expects a token to be worth. Yellow: most.",
  attention: "The decoder's attention to the tokens, at the model's own budget. Yellow: most.",
  pooling: "Weight of every token in the pooled tokens. Yellow: most.",
  objects: "Yellow: object tokens, which attend to each other in the last layer that has them.",
  found: "Colour: smallest budget at which the object is found; yellow: small, violet: large, red: never.",
  compare: "Against the second model: green gained, red lost, grey both, yellow neither.",
  image: "The image alone.",
};
const VIEW_NAMES = { tokens: "Refined tokens", scores: "Scores", attention: "Attention", pooling: "Pooling", objects: "Object tokens", found: "Found from", compare: "Compare", image: "Image" };

function viewNames() {
  const here = image();
  return Object.keys(VIEW_NAMES).filter((name) =>
    ["scores", "attention", "pooling", "objects"].includes(name) ? here[name]
      : name === "found" ? here.found.length : name === "compare" ? here.compare : true);
}

function buttons(id, entries, pressed, choose) {
  const group = at(id);
  group.replaceChildren();
  group.hidden = entries.length < 2 && id !== "marks";
  group.style.display = group.hidden ? "none" : "";
  for (const [value, text] of entries) {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.dataset.value = value;
    made.setAttribute("aria-pressed", pressed(value));
    made.addEventListener("click", () => { choose(value); show(); at(id).querySelector(`[data-value="${value}"]`)?.focus(); });
    group.append(made);
  }
}

function showControls() {
  const here = image();
  at("budget-row").hidden = here.views.length < 2;
  at("budget").max = here.views.length - 1;
  at("budget").value = state.budget;
  at("budget-value").textContent = view().ratio === null ? "all it has" : `${+(100 * view().ratio).toFixed(1)} %${view().own ? " (own)" : ""}`;
  buttons("views", viewNames().map((name) => [name, VIEW_NAMES[name]]), (name) => name === state.view, (name) => { state.view = name; });
  const levels = here.levels.map(([height, width], i) => [i + 1, `Level ${i + 1}: ${width} × ${height}`]);
  buttons("levels", levels.length > 1 ? [[0, "All levels"], ...levels] : [], (level) => level === state.level, (level) => { state.level = level; });
  const layers = view().kept.map((_, i) => [i, `Encoder layer ${i + 1}`]);
  buttons("layers", layers, (layer) => layer === state.layer, (layer) => { state.layer = layer; });
  const marks = [...(view().detections.some((found) => found.points) ? [["points", "Sampling points"]] : []), ...(here.truth ? [["truth", "True boxes"]] : [])];
  buttons("marks", marks, (mark) => state[mark], (mark) => { state[mark] = !state[mark]; });
  at("legend").textContent = LEGENDS[state.view];
  const mask = kept(), begin = state.level ? starts()[state.level - 1] : 0;
  const size = state.level ? here.levels[state.level - 1][0] * here.levels[state.level - 1][1] : mask.length;
  const refined = mask.subarray(begin, begin + size).reduce((sum, bit) => sum + bit, 0);
  const where = state.level ? ` of level ${state.level}` : "";
  at("status").textContent = `${refined.toLocaleString("en")} of ${size.toLocaleString("en")} tokens${where} are refined; ${view().detections.length} objects are found with a score of at least ${data.threshold}.`;
}

function show() {
  const layers = view().kept.length;
  state.layer = Math.min(state.layer, layers - 1);
  state.detection = Math.max(Math.min(state.detection, view().detections.length - 1), 0);
  if (!viewNames().includes(state.view)) state.view = "tokens";
  showControls();
  drawPicture();
  drawOverlay();
  showDetection();
  Object.assign(document.body.dataset, { budget: state.budget, level: state.level, layer: state.layer, detection: state.detection, view: state.view });
}

async function showImage(index) {
  state.image = index;
  state.budget = image().views.findIndex((one) => one.own);
  state.level = state.layer = state.detection = 0;
  at("title").textContent = image().name;
  photo = new Image();
  photo.src = image().jpeg;
  await photo.decode();
  sizesChart();
  ledgerTable();
  checks();
  show();
  document.body.dataset.ready = index;
}

function changeBudget(budget) {
  const box = view().detections[state.detection]?.box;
  state.budget = Math.max(0, Math.min(budget, image().views.length - 1));
  // Stay with the same object.
  const places = view().detections.map((found) => (box ? overlap(found.box, box) : 0));
  const best = places.indexOf(Math.max(...places));
  if (best >= 0 && places[best] >= 0.5) state.detection = best;
  show();
}

function step(list, value, by = 1) {
  return list[(list.indexOf(value) + by + list.length) % list.length];
}

function moveDetection(by) {
  const total = view().detections.length;
  if (total) state.detection = (state.detection + by + total) % total;
  show();
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || at("help").open || event.target.tagName === "SELECT") return;
  const keys = {
    ArrowLeft: () => changeBudget(state.budget - 1),
    ArrowRight: () => changeBudget(state.budget + 1),
    n: () => moveDetection(1),
    p: () => moveDetection(-1),
    v: () => { state.view = step(viewNames(), state.view); show(); },
    l: () => { state.layer = (state.layer + 1) % view().kept.length; show(); },
    "?": () => at("help").showModal(),
  };
  const digit = /^[0-9]$/.test(event.key) && +event.key <= image().levels.length;
  if (digit) { state.level = +event.key; show(); }
  else if (keys[event.key]) keys[event.key]();
  else return;
  event.preventDefault();
}

at("model").textContent = data.model;
at("chooser").hidden = data.images.length < 2;
data.images.forEach((one, i) => at("image").add(new Option(one.name, i)));
at("image").addEventListener("change", (event) => showImage(+event.target.value));
at("budget").addEventListener("input", (event) => changeBudget(+event.target.value));
at("previous").addEventListener("click", () => moveDetection(-1));
at("next").addEventListener("click", () => moveDetection(1));
at("help-button").addEventListener("click", () => at("help").showModal());
document.addEventListener("keydown", press);
showImage(0);
