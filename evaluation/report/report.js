"use strict";
// Draws the page from the JSON in #data. All text from predictions and prompts goes in through textContent.
const data = JSON.parse(document.getElementById("data").textContent);
const NS = "http://www.w3.org/2000/svg";
// Okabe and Ito's colours, which most colour-blind readers can tell apart
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F4B9B", "#8C6D31"];
const HEAT = [[240, 73, 110], [235, 184, 57], [12, 215, 159]];
const STOCK = "default";
const AGNOSTIC = "query-agnostic";
// scores of samples are 0..1 where the unit is points; otherwise they are shown as they are
const POINTS = data.unit === "points", SCALE = POINTS ? 100 : 1;
const byId = (id) => document.getElementById(id);
// one colour for a method of a model; `model` is empty where all runs are of one. The first model without a method is black.
const series = (run) => `${run.model}|${run.label}`;
const plain = data.runs.filter((run) => run.edition === STOCK).map(series)[0];
const coloured = [...new Set(data.runs.map(series).filter((name) => name !== plain))];
const colour = (run) => series(run) === plain ? "#1b1f24" : COLOURS[coloured.indexOf(series(run)) % COLOURS.length];

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function shape(parent, name, attributes = {}, text = null) {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  parent.append(node);
  return node;
}

// settings make labels long: where a method occurs with several, each gets a number, which the legend explains
const variants = (run) => [...new Set(data.runs.filter((one) => one.edition === run.edition).map((one) => one.label))];
function shortName(run) {
  const model = run.model ? `${run.model}, ` : "";
  if (run.edition === STOCK) return `${model}stock model`;
  const labels = variants(run);
  return model + (labels.length === 1 ? run.edition : `${run.edition} #${labels.indexOf(run.label) + 1}`);
}
const atBudget = (run) => `${shortName(run)}${run.budget === null ? "" : ` @ ${run.budget}`}`;
const runName = (run) => `${atBudget(run)}, ${run.protocol}`;
const fixed = (value, digits = 1) => value === null || value === undefined ? "–" : value.toFixed(digits);
function bytes(value) {
  for (const unit of ["B", "kB", "MB"]) {
    if (value < 1000) return `${value.toPrecision(3).replace(/\.0+$/, "")} ${unit}`;
    value /= 1000;
  }
  return `${value.toPrecision(3)} GB`;
}

// budgets as places on the axis: tokens first, then fractions; runs without a swept budget stand at "as given"
const swept = data.runs.filter((run) => run.edition !== STOCK);
const order = (budget) => budget === null ? Infinity : Number.isInteger(budget) ? budget : 1e12 + budget;
const budgets = [...new Set(swept.map((run) => run.budget))].sort((a, b) => order(a) - order(b));

function curves(id, task, title, value, format, options = {}) {
  const box = byId(id);
  const width = options.width || 380, height = options.height || 250;
  const left = 62, right = 14, top = 26, bottom = 40;
  const svg = document.createElementNS(NS, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", title);
  const runs = data.runs.filter((run) => run.tasks[task]);
  const highest = options.top || Math.max(1e-9, ...runs.map((run) => value(run.tasks[task]))) * 1.1;
  const y = (v) => height - bottom - (height - top - bottom) * v / highest;
  const x = (i) => left + (width - left - right) * (i + 0.5) / Math.max(1, budgets.length);
  shape(svg, "text", { x: left, y: 14, "font-weight": 600 }, title);
  for (let i = 0; i <= 4; i++) {
    const v = highest * i / 4;
    shape(svg, "line", { x1: left, x2: width - right, y1: y(v), y2: y(v), class: "axis" });
    shape(svg, "text", { x: left - 6, y: y(v) + 4, "text-anchor": "end", class: "soft" }, format(v));
  }
  budgets.forEach((budget, i) => shape(svg, "text",
    { x: x(i), y: height - bottom + 18, "text-anchor": "middle", class: "soft" }, budget === null ? "as given" : String(budget)));
  if (budgets.length) shape(svg, "text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle", class: "soft" },
    "budget (tokens, or fraction of the prompt)");
  if (options.chance && runs.length && runs[0].tasks[task].chance <= highest) {
    const level = runs[0].tasks[task].chance;
    shape(svg, "line", { x1: left, x2: width - right, y1: y(level), y2: y(level), stroke: "#888", "stroke-dasharray": "6 4", class: "chance" });
    shape(svg, "text", { x: width - right, y: y(level) - 4, "text-anchor": "end", class: "soft" }, `chance ${fixed(level)}`);
  }
  for (const run of runs.filter((one) => one.edition === STOCK)) {
    const v = value(run.tasks[task]);
    const line = shape(svg, "line", { x1: left, x2: width - right, y1: y(v), y2: y(v), stroke: colour(run), "stroke-width": 1.6,
      "stroke-dasharray": run.protocol === AGNOSTIC ? "2 4" : "none" });
    shape(line, "title", {}, `${runName(run)}: ${format(v)}`);
  }
  const groups = new Map();
  for (const run of runs.filter((one) => one.edition !== STOCK)) {
    const key = `${series(run)}|${run.protocol}`;
    groups.set(key, [...(groups.get(key) || []), run]);
  }
  [...groups.values()].forEach((group, number) => {
    // points of different curves at one budget stand side by side, so that whiskers do not cover each other
    const shift = (number - (groups.size - 1) / 2) * Math.min(9, 60 / groups.size);
    const points = group.map((run) => [x(budgets.indexOf(run.budget)) + shift, y(value(run.tasks[task])), run])
      .sort((a, b) => a[0] - b[0]);
    shape(svg, "polyline", { points: points.map((p) => `${p[0]},${p[1]}`).join(" "), fill: "none", stroke: colour(group[0]),
      "stroke-width": 2, "stroke-dasharray": group[0].protocol === AGNOSTIC ? "2 4" : "none", class: "curve" });
    for (const [px, py, run] of points) {
      const entry = run.tasks[task];
      if (options.whiskers && entry.interval) {
        shape(svg, "line", { x1: px, x2: px, y1: y(entry.interval[0]), y2: y(entry.interval[1]), stroke: colour(run), class: "whisker" });
      }
      const dot = shape(svg, "circle", { cx: px, cy: py, r: 4, fill: run.protocol === AGNOSTIC ? "#fff" : colour(run), stroke: colour(run), "stroke-width": 2 });
      shape(dot, "title", {}, `${runName(run)}: ${format(value(entry))} (n = ${entry.n})`);
    }
  });
  box.replaceChildren(svg);
}

function legend() {
  const seen = new Set();
  for (const run of data.runs) {
    if (seen.has(series(run))) continue;
    seen.add(series(run));
    const svg = document.createElementNS(NS, "svg");
    svg.setAttribute("viewBox", "0 0 34 12");
    shape(svg, "line", { x1: 0, x2: 34, y1: 6, y2: 6, stroke: colour(run), "stroke-width": 2 });
    const settings = run.edition !== STOCK && run.label !== run.edition ? `: ${run.label}` : "";
    byId("legend").append(element("span", {}, svg, shortName(run) + settings));
  }
}

function heatColour(score) {
  const place = Math.max(0, Math.min(1, score / 100)) * 2;
  const i = Math.min(1, Math.floor(place)), part = place - i;
  const mixed = HEAT[i].map((from, c) => Math.round(from + (HEAT[i + 1][c] - from) * part));
  return `rgb(${mixed.join(",")})`;
}

function heatMaps(task) {
  const runs = data.runs.filter((run) => run.tasks[task] && run.tasks[task].heat);
  byId("heat-section").hidden = runs.length === 0;
  byId("heat").replaceChildren(...runs.map((run) => {
    const { lengths, depths, values } = run.tasks[task].heat;
    const width = 360, left = 40, top = 34, cell = Math.min(26, 220 / depths.length);
    const across = (width - left - 8) / lengths.length, height = top + cell * depths.length + 52;
    const svg = document.createElementNS(NS, "svg");
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("class", "heat");
    shape(svg, "text", { x: left, y: 12, "font-weight": 600 }, atBudget(run));
    shape(svg, "text", { x: left, y: 27, class: "soft" }, `${run.protocol}, ${fixed(run.tasks[task].score)} (n = ${run.tasks[task].n})`);
    values.forEach((row, d) => row.forEach((score, n) => {
      const rect = shape(svg, "rect", { x: left + n * across, y: top + d * cell, width: across - 1, height: cell - 1, fill: score === null ? "#eee" : heatColour(score) });
      shape(rect, "title", {}, `${lengths[n]} tokens, depth ${depths[d]} %: ${fixed(score)}`);
    }));
    const every = Math.ceil(lengths.length / 8), each = Math.ceil(depths.length / 10);
    lengths.forEach((length, n) => { if (n % every === 0) shape(svg, "text", { x: left + (n + 0.5) * across, y: height - 34, "text-anchor": "middle", class: "soft" }, String(length)); });
    depths.forEach((depth, d) => { if (d % each === 0) shape(svg, "text", { x: left - 5, y: top + (d + 0.5) * cell + 4, "text-anchor": "end", class: "soft" }, String(depth)); });
    shape(svg, "text", { x: left, y: height - 14, class: "soft" }, "tokens across, depth of the needle in % down");
    return element("figure", {}, svg);
  }));
}

function fill(table, heads, rows) {
  const cells = (kind, values) => values.map((value) => {
    const cell = element(kind, typeof value === "object" && value !== null && value.number ? { class: "number" } : {});
    cell.append(typeof value === "object" && value !== null ? value.text : String(value));
    return cell;
  });
  const body = element("tbody");
  for (const row of rows) {
    const tr = element("tr", {}, ...cells("td", row.values));
    if (row.open) {
      tr.tabIndex = 0;
      tr.addEventListener("click", row.open);
      tr.addEventListener("keydown", (event) => { if (event.key === "Enter") row.open(); });
    }
    body.append(tr);
  }
  table.replaceChildren(element("thead", {}, element("tr", {}, ...cells("th", heads))), body);
}
const number = (text) => ({ number: true, text: String(text) });

function runTable(task) {
  const heads = ["method", "budget", "protocol", ...["score", "95 % interval", "to the stock model", "chance", "n", "first token s", "cache", "peak cache"].map(number)];
  fill(byId("runs"), heads, data.runs.filter((run) => run.tasks[task]).map((run) => {
    const entry = run.tasks[task];
    const span = (bounds) => bounds ? `${fixed(bounds[0])} to ${fixed(bounds[1])}` : "n too small";
    const gap = entry.difference ? `${fixed(entry.difference[0])} (${fixed(entry.difference[1])} to ${fixed(entry.difference[2])})` : "–";
    return { values: [shortName(run), run.budget === null ? "–" : String(run.budget), run.protocol, number(fixed(entry.score, 2)), number(span(entry.interval)),
      number(gap), number(fixed(entry.chance, 2)), number(`${entry.n}${entry.complete ? "" : " so far"}`), number(fixed(entry.cost.ttft_seconds, 3)),
      number(bytes(entry.cost.cache_bytes)), number(bytes(entry.cost.peak_cache_bytes))] };
  }));
}

function sampleTable(task) {
  const shown = data.samples.filter((sample) => sample.task === task || task === "all samples");
  const heads = ["", "task", "sample", "properties", ...data.runs.map((run) => number(`${atBudget(run)}${run.protocol === AGNOSTIC ? " (agnostic)" : ""}`))];
  fill(byId("samples"), heads, shown.map((sample) => ({
    values: [Object.values(sample.answers).some((answer) => answer.kept) ? "●" : "", sample.task, sample.id, JSON.stringify(sample.group),
      ...data.runs.map((_, i) => number(sample.answers[i] ? fixed(SCALE * sample.answers[i].score, POINTS ? 1 : 3) : "–"))],
    open: () => drill(sample),
  })));
}

function drill(sample) {
  byId("drill-title").textContent = `${sample.task}, sample ${sample.id}`;
  const rows = Object.entries(sample.answers).map(([i, answer]) =>
    ({ values: [runName(data.runs[i]), number(fixed(SCALE * answer.score, POINTS ? 1 : 3)), answer.prediction, number(`${answer.prompt_tokens}${answer.truncated ? " (cut)" : ""}`)] }));
  fill(byId("drill-answers"), ["run", number("score"), "answer", number("prompt tokens")], [...rows,
    { values: ["reference", "", JSON.stringify(sample.reference, null, 1), ""] }]);
  const kept = Object.entries(sample.answers).filter(([, answer]) => answer.kept);
  byId("drill-choice").hidden = kept.length === 0;
  byId("drill-run").replaceChildren(...kept.map(([i]) => element("option", { value: i }, runName(data.runs[i]))));
  byId("drill-run").onchange = () => prompt(sample.answers[byId("drill-run").value]);
  // the run with the fewest kept tokens says most about what a method throws away
  const share = (answer) => [...answer.kept].reduce((sum, digit) => sum + Number(digit), 0);
  if (kept.length) byId("drill-run").value = kept.reduce((a, b) => share(b[1]) < share(a[1]) ? b : a)[0];
  // opened first: what is not shown cannot be scrolled
  if (!byId("drill").open) byId("drill").showModal();
  prompt(kept.length ? sample.answers[byId("drill-run").value] : null);
}

function prompt(answer) {
  const box = byId("drill-prompt");
  box.hidden = !answer;
  byId("drill-share").textContent = "";
  if (!answer) return box.replaceChildren();
  const tokens = data.prompts[answer.prompt];
  const held = [...answer.kept].filter((digit) => digit !== "0").length;
  byId("drill-share").textContent = `${held} of ${tokens.length} prompt tokens are held by at least one layer and head when the answer ends. The darker, the more of them; grey: by none.`;
  const parts = document.createDocumentFragment();
  let run = "", level = null;
  const flush = () => {
    if (!run) return;
    const node = element(level === "0" ? "span" : "mark", level === "0" ? { class: "lost" } : { style: `background: rgb(12 160 120 / ${10 + 6 * Number(level)}%)` });
    node.textContent = run;
    parts.append(node);
    run = "";
  };
  tokens.forEach((token, i) => {
    if (answer.kept[i] !== level) { flush(); level = answer.kept[i]; }
    run += token;
  });
  flush();
  box.replaceChildren(parts);
  const first = box.querySelector("mark");
  box.scrollTop = first ? Math.max(0, first.offsetTop - box.offsetTop - 80) : 0;
}

function show(task) {
  curves("quality", task, POINTS ? "score" : `${data.unit} (less is better)`, (entry) => entry.score, (v) => fixed(v, POINTS ? 0 : 1), { width: 1100, height: 330, top: POINTS ? 100 : undefined, whiskers: true, chance: true });
  curves("ttft", task, "time to first token (s)", (entry) => entry.cost.ttft_seconds, (v) => v.toPrecision(2));
  curves("cache", task, "cache held at the end", (entry) => entry.cost.cache_bytes, bytes);
  curves("peak", task, "peak of the cache", (entry) => entry.cost.peak_cache_bytes, bytes);
  heatMaps(task);
  runTable(task);
  sampleTable(task);
}

legend();
byId("task").append(...data.tasks.map((task) => element("option", { value: task }, task)));
byId("task").addEventListener("change", () => show(byId("task").value));
byId("lead").textContent = `${data.runs.length} runs over ${data.samples.length} samples, preset ${data.facts.preset}.`;
fill(byId("facts"), ["setting", "value"], Object.entries(data.facts).map(([key, value]) =>
  ({ values: [key, typeof value === "object" ? JSON.stringify(value) : String(value)] })));
show(data.tasks[0]);
document.documentElement.dataset.ready = "true";
