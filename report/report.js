"use strict";
// The page of report.py. data/index.js calls REPORT(..) once, data/pair-*.js call REPORT_PAIR(..)
// when they are loaded. Text of the user (clips, classes) reaches the page as text nodes only.

const $ = (id) => document.getElementById(id);
const METRICS = { accuracy: "Accuracy", iou: "IoU", f1: "F1" };
const NAMES = { prob: "Prob95", t_base: "Base_T", t_adj: "DQN_T", rms: "RMS", d_raw: "D_raw",
  d_adj: "D_adj" };
const ROWS = [["before", "t_base", "Base"], ["after", "t_adj", "DQN"], ["label", "label", "Truth"]];
const AXIS = 66; // pixels left of every plot, so that they share one time axis
const AROUND_S = 0.5; // heard before and after a changed stretch

let report; // what data/index.js brought
const loaded = new Map(); // number -> pair data
const waiting = new Map(); // number -> functions to call when its data have come
const state = { rows: [], n: null, pair: null, time: 0, range: [0, 1], end: 1, selection: null,
  loop: false, stopAt: null, at: -1, hover: null };
let panels = []; // uPlot instances of the chosen pair
let everyPlot = []; // with the overview's: redrawn when the theme changes

// ------------------------------------------------------------------ small helpers

function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null)); // strings become text nodes
  return element;
}

const percent = (value) => (100 * value).toFixed(2);
const points = (value, digits = 2) => (value < 0 ? "−" : "+") +
  Math.abs(100 * value).toFixed(digits);
const tone = (value) => (Math.abs(value) < 5e-5 ? "" : value > 0 ? "good" : "bad");
const between = ([low, high]) => `[${points(low)}, ${points(high)}]`;
const count = (value) => value.toLocaleString("en");
const several = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

function unpack(text) {
  const bytes = atob(text);
  const values = new Array(bytes.length / 2);
  for (let i = 0; i < values.length; i++)
    values[i] = (bytes.charCodeAt(2 * i) + 256 * bytes.charCodeAt(2 * i + 1)) / 65535;
  return values;
}

// ------------------------------------------------------------------ light and dark

const systemDark = matchMedia("(prefers-color-scheme: dark)");
let wanted = null;
try { wanted = localStorage.getItem("theme"); } catch { /* storage may be off for files */ }
let palette = {};
const colour = (name) =>
  (palette[name] ??=
    getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());

function applyTheme() {
  const dark = wanted ? wanted === "dark" : systemDark.matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  palette = {};
  if ($("theme")) $("theme").textContent = dark ? "Light" : "Dark";
  everyPlot.forEach((plot) => plot.redraw(false, true));
}
applyTheme(); // this file is loaded in the head: no flash of the other theme
systemDark.addEventListener("change", applyTheme);

// ------------------------------------------------------------------ plots

const ink = { stroke: () => colour("quiet"), font: "12px system-ui, sans-serif",
  grid: { stroke: () => colour("line"), width: 1 },
  ticks: { stroke: () => colour("line"), size: 4 } };
const line = (name, more) => ({ stroke: () => colour(name), width: 1.6, points: { show: false },
  ...more });

function key(entries) {
  const box = h("div", { class: "key" });
  for (const [name, text, kind] of entries) {
    const mark = name ? h("i", { class: kind || "", style: `border-color: var(--${name})` }) : null;
    box.append(h("span", name ? {} : { class: "quiet" }, mark, text));
  }
  return box;
}

function simplePlot(home, title, entries, options, data) {
  const box = h("div", {}, h("h3", {}, title), key(entries));
  const names = entries.map((entry) => entry[1]).join(", ");
  const place = h("div", { role: "img", "aria-label": `${title}: ${names}` });
  box.append(place);
  home.append(box);
  const plot = new uPlot({ width: place.clientWidth || 400, height: 170, legend: { show: false },
    padding: [8, 12, 0, 0], ...options }, data, place);
  everyPlot.push(plot);
  new ResizeObserver(() => plot.setSize({ width: place.clientWidth, height: 170 })).observe(place);
}

// ------------------------------------------------------------------ overview

function table(head, rows, attributes) {
  return h("table", attributes, head ? h("thead", {}, h("tr", {},
    ...head.map((x) => h("th", { scope: "col" }, x)))) : null,
    h("tbody", {}, ...rows));
}
const cells = (values, attributes) => h("tr", attributes || {}, ...values.map((x) =>
  x instanceof Node && x.tagName === "TD" ? x : h("td", {}, x)));
const card = (size, title, ...children) =>
  h("section", { class: `card ${size}` }, title ? h("h2", {}, title) : null, ...children);

function comparison({ results: r }) {
  const names = Object.keys(METRICS);
  const gain = (row, interval) => names.map((m) => {
    const value = r.after[m] - row[m];
    return h("td", { class: tone(value) }, points(value), " ",
      h("small", {}, between(interval[m])));
  });
  const values = (row) => names.map((m) => percent(row[m]));
  const first = table(["Mean over pairs", ...names.map((m) => `${METRICS[m]} (%)`)], [
    cells(["Before: base threshold Base_T", ...values(r.before)]),
    cells(["After: learned threshold DQN_T", ...values(r.after)], { class: "strong" }),
    cells(["Gain (points)", ...gain(r.before, r.interval)], { class: "strong stack" }),
  ]);
  const rest = table(["Rule", ...names.map((m) => `${METRICS[m]} (%)`),
    ...names.map((m) => `DQN minus rule: ${METRICS[m]}`)],
    r.yardsticks.map((row) => cells([h("td", { class: "name" }, row.name,
      row.setting && row.setting.length < 50 ? h("small", {}, `  ${row.setting}`) : ""),
      ...values(row), ...gain(row, row.interval)], { class: "margins" })));
  const total = r.fixed_frames + r.broken_frames;
  return [
    card("two-thirds", "Before and after", first,
      h("p", { class: "quiet", style: "margin: 8px 0 0" },
        "In brackets: 95 % interval of the difference, in points; 1,000 draws of whole clips.")),
    card("third", "Decisions that changed", table(null, [
      cells(["Fixed: wrong before, right after", h("td", { class: "good" },
        `${count(r.fixed_frames)} frames`)]),
      cells(["Broken: right before, wrong after", h("td", { class: "bad" },
        `${count(r.broken_frames)} frames`)]),
      cells(["Changed in all", `${percent(total / r.num_frames)} % of ${count(r.num_frames)}`]),
      cells(["Right where some action is right", `${percent(r.threshold_selection.accuracy)} %`]),
      cells(["Pooled over frames, F1",
        `${percent(r.pooled.before.f1)} → ${percent(r.pooled.after.f1)} %`]),
    ])),
    card("", "Against simple rules", h("p", { class: "quiet" },
      "Tuned on the training split only. A plus means that the learned threshold is better."),
      h("div", { class: "scroll" }, rest)),
  ];
}

function perClass({ results: r, pairs }) {
  const rows = Object.entries(r.per_class)
    .map(([name, row]) => ({ name, ...row, gain: row.after.f1 - row.before.f1 }))
    .sort((a, b) => b.gain - a.gain);
  const most = Math.max(0.01, ...rows.map((row) => Math.abs(row.gain)));
  const shown = new Set(pairs.map((row) => row.label));
  return card("", "Gain by class", h("div", { class: "scroll" }, table(
    ["Class", "Pairs", "F1 before (%)", "F1 after (%)", "Accuracy (points)", "IoU (points)",
      "F1 (points)", "F1: loss left, gain right"],
    rows.map((row) => {
      const gains = Object.keys(METRICS).map((m) => row.after[m] - row.before[m]);
      const width = 50 * Math.abs(row.gain) / most;
      const side = row.gain < 0 ? `right: 50%; background: var(--bad)`
        : `left: 50%; background: var(--good)`;
      const name = shown.has(row.name)
        ? h("button", { class: "link", title: "show the pairs of this class", onclick: () =>
          showClass(row.name) }, row.name)
        : row.name;
      return cells([h("td", { class: "name" }, name), String(row.pairs), percent(row.before.f1),
        percent(row.after.f1),
        ...gains.map((value) => h("td", { class: tone(value) }, points(value))),
        h("td", {}, h("div", { class: "bar", "aria-hidden": "true" },
          h("b", { style: "left: 50%" }),
          h("i", { style: `width: ${width}%; ${side}` })))]);
    }))));
}

function errors({ results: r, errors: e }) {
  const rows = [];
  for (const end of ["onset", "offset"]) {
    const row = r.onsets[end];
    if (!row.events) continue;
    for (const [when, text] of [["before", "base"], ["after", "DQN"]]) {
      const x = row[when];
      rows.push(cells([`${end === "onset" ? "Onset" : "Offset"}, ${text}`, count(row.events),
        x.median_ms.toFixed(0),
        x.mean_ms.toFixed(0), (x.bias_ms < 0 ? "−" : "+") + Math.abs(x.bias_ms).toFixed(0),
        `${(100 * x.within_100_ms).toFixed(1)} %`]));
    }
  }
  const box = h("div", { class: "curves" });
  const content = rows.length
    ? [table(["End, threshold", "Events", "Median error (ms)", "Mean error (ms)", "Bias (ms)",
      "Within 100 ms"], rows), box]
    : [h("p", {}, "No event was found by both thresholds as exactly one event.")];
  const section = card("", "Onset and offset errors", h("p", { class: "quiet" },
    "Events that both thresholds found as exactly one event. A positive bias is late."),
      ...content);
  const draw = () => {
    for (const end of rows.length ? ["onset", "offset"] : []) {
      const step = e.centres[1] - e.centres[0];
      const x = [...e.centres.map((c) => c - step / 2), e.centres.at(-1) + step / 2];
      const paths = uPlot.paths.stepped({ align: 1 });
      const tall = (values) => [...values, values.at(-1)];
      simplePlot(box, `How late the ${end} is found (ms; the outer bins hold the rest)`,
        [["t_base", "Base_T: events", "dash"], ["t_adj", "DQN_T: events"]], {
          scales: { x: { time: false } }, cursor: { y: false },
          axes: [{ ...ink, size: 28 }, { ...ink, size: 46 }],
          series: [{}, line("t_base", { paths, dash: [6, 4], width: 2 }),
            line("t_adj", { paths, width: 2 })],
        }, [x, tall(e[`${end}_before`]), tall(e[`${end}_after`])]);
    }
  };
  return [section, draw];
}

function training({ training: t }) {
  if (!t) return [card("", "Training", h("p", {}, "This policy came without a training log.")),
    () => {}];
  const box = h("div", { class: "curves" });
  const text = `${count(t.episodes)} episodes in the order of finishing` +
    (t.each > 1 ? `; each point is the mean of ${t.each}` : "") +
      ". Drag to zoom all four, double click to go back.";
  const section = card("", "Training", h("p", { class: "quiet" }, text), box);
  const curve = (title, entries) => {
    const some = entries.filter(([name]) => t[name]);
    if (!some.length) {
      box.append(h("div", {}, h("h3", {}, title), h("p", { class: "quiet" },
        "Not in this run's log.")));
      return;
    }
    simplePlot(box, title, some.map(([name, label, dash, ink]) =>
      [ink || name, label, dash ? "dash" : ""]), {
      scales: { x: { time: false } }, cursor: { y: false, sync: { key: "training" } },
      axes: [{ ...ink, size: 28 }, { ...ink, size: 52 }],
      series: [{}, ...some.map(([name, , dash, ink, width]) =>
        line(ink || name, { dash: dash ? [6, 4] : undefined, width: width || 1.6, spanGaps: true,
          points: { show: t[name].filter((x) => x !== null).length < 60, size: 5 } }))],
    }, [t.x, ...some.map(([name]) => t[name])]);
  };
  return [section, () => {
    curve("Reward of an episode (sum over its frames)", [["reward", "Reward", false, "reward", 1],
      ["unchanged", "Avg10 of never shifting (Base_T kept)", true, "t_base", 1.4],
        ["avg10", "Avg10: mean of the last 10", false, "avg10", 2.4]]);
    curve("Epsilon: share of random actions", [["epsilon", "Epsilon"]]);
    curve("Loss: mean over the gradient steps of an episode", [["loss", "Loss"]]);
    curve("Q: mean value of the actions taken", [["q", "Q"]]);
  }];
}

function settingsCard({ settings, facts }) {
  const groups = Object.entries(settings).map(([name, rows]) => h("section", {}, h("h3", {}, name),
    table(null, rows.map(([field, value, usual]) => cells([field.replaceAll("_", " "),
      h("td", { class: usual === null ? "" : "strong" }, value,
        usual === null ? "" : h("small", {}, `  (slides: ${usual})`))])), { class: "facts" })));
  const differ = Object.values(settings).flat().filter(([, , usual]) => usual !== null);
  const changed = table(["Setting", "This run", "Slides"], differ.map(([field, value, usual]) =>
    cells([field.replaceAll("_", " "), h("td", { class: "name" }, value),
      h("td", { class: "name quiet" }, usual)])));
  const all = h("details", {}, h("summary", {}, "All settings"),
    h("div", { class: "settings" }, ...groups));
  return [card("half", "Data", table(null, facts.map((row) => cells(row)), { class: "facts" })),
    card("half", "Configuration", differ.length
      ? h("p", { class: "quiet" }, "Where this run differs from the settings of the slides:")
      : h("p", {}, "The settings of the slides."), differ.length ? changed : null),
    card("", null, all)];
}

let drawOverview = null; // plots need a width: drawn when the part is first shown

function buildOverview() {
  const cards = h("div", { class: "cards" });
  const [curves, drawCurves] = training(report);
  const [late, drawErrors] = errors(report);
  cards.append(...comparison(report), ...settingsCard(report), curves, perClass(report), late);
  $("overview").append(cards);
  drawOverview = () => { drawCurves(); drawErrors(); drawOverview = null; };
}

// ------------------------------------------------------------------ list of pairs

const gainOf = (row) => row.after[2] - row.before[2];
const SORTS = {
  gain: (a, b) => gainOf(b) - gainOf(a),
  loss: (a, b) => gainOf(a) - gainOf(b),
  broken: (a, b) => b.broken - a.broken,
  fixed: (a, b) => b.fixed - a.fixed,
  clip: (a, b) => (a.clip < b.clip ? -1 : a.clip > b.clip ? 1 : 0),
};

function fillList() {
  const label = $("class").value, text = $("search").value.trim().toLowerCase();
  const chosen = report.pairs.filter((row) =>
    (label === "" || row.label === report.classes[label]) && row.clip.toLowerCase().includes(text));
  chosen.sort((a, b) => SORTS[$("sort").value](a, b) || a.n - b.n);
  state.rows = chosen;
  $("list").replaceChildren(...chosen.map((row) => h("li", {}, h("button", {
    "data-n": row.n, onclick: () => showPair(row.n) },
    h("span", {}, row.label), h("b", { class: tone(gainOf(row)) }, points(gainOf(row), 1)),
    h("span", { class: "clip" }, row.clip), h("span", { class: "why" }, row.why)))));
  const all = report.results.num_pairs;
  const left = report.pairs.length < all ? ` (chosen of ${count(all)})` : "";
  $("count").textContent = chosen.length
    ? `${chosen.length} of ${report.pairs.length} pairs${left}; gain in F1, points`
      : "no pair matches";
  markCurrent(false);
}

function markCurrent(focus) {
  for (const button of $("list").querySelectorAll("button")) {
    const current = Number(button.dataset.n) === state.n;
    if (current !== (button.getAttribute("aria-current") === "true"))
      button.setAttribute("aria-current", String(current));
    if (current) {
      button.scrollIntoView({ block: "nearest" });
      if (focus) button.focus({ preventScroll: true });
    }
  }
}

function filterChanged() {
  fillList();
  if (state.rows.length && !state.rows.some((row) => row.n === state.n)) showPair(state.rows[0].n);
}

function showClass(name) {
  $("class").value = String(report.classes.indexOf(name));
  $("search").value = "";
  filterChanged();
  show("pairs");
}

function stepPair(step) {
  if (!state.rows.length) return;
  const here = state.rows.findIndex((row) => row.n === state.n);
  const next = here < 0 ? 0 : clamp(here + step, 0, state.rows.length - 1);
  showPair(state.rows[next].n);
}

// ------------------------------------------------------------------ one pair

function REPORT_PAIR([n, pair]) {
  for (const name of Object.keys(NAMES)) pair.signals[name] = unpack(pair.signals[name]);
  if (pair.sound) {
    pair.sound.low = unpack(pair.sound.low).map((x) => 2 * x - 1);
    pair.sound.high = unpack(pair.sound.high).map((x) => 2 * x - 1);
  }
  pair.x = pair.signals.prob.map((_, i) => (i + 0.5) * pair.frame_s);
  pair.stretches = ["fixed", "broken"]
    .flatMap((kind) => pair[kind].map(([a, b]) => ({ kind, a: a * pair.frame_s, b: b * pair.frame_s,
      frames: b - a })))
    .sort((one, two) => one.a - two.a);
  loaded.set(n, pair);
}

function load(n) {
  if (loaded.has(n)) return Promise.resolve(loaded.get(n));
  if (!waiting.has(n)) waiting.set(n, new Promise((resolve, reject) => {
    const source = `data/pair-${String(n).padStart(5, "0")}.js`;
    const element = h("script", { src: source });
    element.onload = () => (loaded.has(n) ? resolve(loaded.get(n))
      : reject(new Error(`${source} is damaged`)));
    element.onerror = () => reject(new Error(`${source} cannot be read`));
    document.head.append(element);
  }));
  return waiting.get(n);
}

const picture = new Image(); // the spectrogram of the chosen pair

async function showPair(n) {
  const began = performance.now();
  const row = report.pairs.find((each) => each.n === n);
  state.n = n;
  $("audio").pause();
  markCurrent($("list").contains(document.activeElement)); // the focus goes along
  history.replaceState(null, "", `#pair=${n}`);
  let pair;
  try { pair = await load(n); } catch (error) { return note(error.message); }
  if (state.n !== n) return; // another one was chosen meanwhile
  Object.assign(state, { pair, row, time: 0, selection: null, stopAt: null, at: -1 });
  state.end = Math.max(pair.frames * pair.frame_s, pair.sound ? pair.sound.duration : 0);
  state.range = [0, state.end];
  describe(row, pair);
  await openSound(row, pair);
  if (state.n !== n) return;
  fillPanels(pair);
  setSelection(null);
  movePlayhead();
  await new Promise((done) => requestAnimationFrame(done));
  if (state.n !== n) return;
  document.documentElement.dataset.pair = n;
  document.documentElement.dataset.switchMs = (performance.now() - began).toFixed(1);
  const here = state.rows.findIndex((each) => each.n === n); // the neighbours open at once
  for (const near of [state.rows[here + 1], state.rows[here - 1]])
    if (near) load(near.n).catch(() => {});
}

function describe(row, pair) {
  $("pair-label").textContent = row.label;
  const length = +(pair.frames * pair.frame_s).toFixed(2), step = +(1000 * pair.frame_s).toFixed(3);
  $("pair-clip").textContent = `${row.clip} (${length} s, ${step} ms frames)`;
  const names = Object.values(METRICS);
  $("pair-scores").replaceChildren(
    h("tr", {}, h("th", {}, "%"), ...names.map((name) => h("th", {}, name)), h("th", {}, "Frames")),
    cells(["Before → after",
      ...names.map((_, i) =>
      `${(100 * row.before[i]).toFixed(1)} → ${(100 * row.after[i]).toFixed(1)}`),
      `${row.fixed} fixed`]),
    cells(["Gain", ...names.map((_, i) => h("td", { class: tone(row.after[i] - row.before[i]) },
      points(row.after[i] - row.before[i], 1))),
      `${row.broken} broken`]));
  const has = (kind) => report.pairs.some((each) => each[kind]);
  $("next-fixed").disabled = !has("fixed");
  $("next-broken").disabled = !has("broken");
  $("next-stretch").disabled = $("prev-stretch").disabled = !has("fixed") && !has("broken");
  say(pair.stretches.length ? `changed in this pair: ${several(pair.stretches.length, "place")}`
    : "no decision changed in this pair");
}

const say = (text) => { $("status").textContent = text; };
function note(text) { $("note").textContent = text; $("note").hidden = !text; }

async function openSound(row, pair) {
  const audio = $("audio"), number = row.sound;
  const has = number !== null && pair.sound;
  $("play").disabled = $("loop").disabled = !has;
  const missing = report.audio ? "the audio of this clip was not at hand when the page was made"
    : "this split has signals only (imported, or without audio)";
  note(has ? "" : `No sound: ${missing}. Everything else works.`);
  if (!has) { audio.removeAttribute("src"); audio.load(); picture.removeAttribute("src"); return; }
  const base = `clips/${String(number).padStart(5, "0")}`;
  if (audio.getAttribute("src") !== `${base}.mp3`) audio.src = `${base}.mp3`;
  audio.currentTime = 0;
  picture.src = `${base}.webp`;
  await picture.decode().catch(() => {}); // a missing picture leaves its panel empty
}

// ------------------------------------------------------------------ the panels of a pair

function rectangle(u, a, b, low, high, fill) {
  const x = u.valToPos(a, "x", true), width = Math.max(1, u.valToPos(b, "x", true) - x);
  const top = u.valToPos(high, "y", true);
  u.ctx.fillStyle = fill;
  u.ctx.fillRect(x, top, width, u.valToPos(low, "y", true) - top);
  return [x, width, top];
}

function inside(u, draw) {
  u.ctx.save();
  u.ctx.beginPath();
  u.ctx.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
  u.ctx.clip();
  draw();
  u.ctx.restore();
}

function drawSpectrogram(u) {
  if (!state.pair?.sound || !picture.complete || !picture.naturalWidth) return;
  const [first, last] = state.pair.sound.span;
  const x = u.valToPos(first, "x", true), width = u.valToPos(last, "x", true) - x;
  inside(u, () => u.ctx.drawImage(picture, x, u.bbox.top, width, u.bbox.height));
}

function shadeChanges(u) {
  if (state.pair) inside(u, () => state.pair.stretches.forEach(({ kind, a, b }) =>
    rectangle(u, a, b, -1, 2, colour(kind))));
}

function drawStrips(u) {
  const pair = state.pair;
  if (!pair) return;
  inside(u, () => {
    ROWS.forEach(([name, ink], i) => pair[name].forEach(([a, b]) =>
      rectangle(u, a * pair.frame_s, b * pair.frame_s, 3.12 - i, 3.88 - i, colour(ink))));
    u.ctx.textAlign = "center";
    u.ctx.textBaseline = "middle";
    u.ctx.font = `bold ${13 * devicePixelRatio}px system-ui, sans-serif`;
    for (const { kind, a, b } of pair.stretches) {
      const [x, width] = rectangle(u, a, b, 0.12, 0.88, colour(kind));
      if (width < 12 * devicePixelRatio) continue;
      u.ctx.fillStyle = colour("text");
      u.ctx.fillText(kind === "fixed" ? "+" : "×", x + width / 2, u.valToPos(0.5, "y", true));
    }
  });
}

// What the rest of the part leaves of the window is shared; never less than three quarters.
const heightOf = (base, last) => Math.round(base * clamp((innerHeight - 388) / 474, 0.75, 1.6)) +
  (last ? 28 : 0);

function addPanel(name, base, title, entries, y, series, hooks, last) {
  const place = h("div", { class: "panel", id: `panel-${name}`, role: "group",
    "aria-label": title });
  const legend = key([...entries, ["", title]]);
  legend.querySelectorAll("span").forEach((span, i) => {
    if (series[i]?.stroke && NAMES[entries[i]?.[0]]) span.append(h("output",
      { id: `value-${entries[i][0]}` }));
  });
  place.append(legend);
  $("plots").append(place);
  const plot = new uPlot({
    width: Math.max(200, place.clientWidth), height: heightOf(base, last), legend: { show: false },
      padding: [6, 18, last ? 0 : 6, 0],
    scales: { x: { time: false, auto: false, range: () => state.range },
      y: { range: () => y.range() } },
    cursor: { y: false, points: { show: false }, drag: { x: false, y: false, setScale: false },
      sync: { key: "pair", scales: ["x", null] }, bind: { dblclick: () => null } },
    axes: [{ ...ink, show: Boolean(last), size: 28, values: (u, splits) =>
      splits.map((s) => `${+s.toFixed(3)} s`) },
      { ...ink, size: AXIS, splits: y.splits, values: y.values,
        grid: { ...ink.grid, show: y.grid !== false } }],
    series: [{}, ...series],
    hooks: { ...hooks, setCursor: [(u) => { if (name === "main") hover(u); }] },
  }, [[0, 1], ...series.map(() => [0, 0])], place);
  Object.assign(plot, { name, base, last });
  plot.place = place;
  plot.playhead = plot.over.appendChild(h("div", { class: "playhead" }));
  plot.chosen = plot.over.appendChild(h("div", { class: "chosen", hidden: "" }));
  point(plot);
  panels.push(plot);
  everyPlot.push(plot);
}

function buildPanels() {
  const unit = { range: () => [-0.03, 1.03], splits: () => [0, 0.25, 0.5, 0.75, 1],
    values: (u, all) => all.map(String) };
  const marks = () => (state.pair?.sound ? state.pair.sound.marks : []);
  const peak = () => Math.max(1e-3, ...(state.pair?.sound
    ? [...state.pair.sound.low, ...state.pair.sound.high].map(Math.abs) : [1]));
  addPanel("spectrogram", 92, "Spectrogram: log-mel, kHz", [],
    { range: () => [0, 1], splits: () => marks().map((m) => m[1]), values: () =>
      marks().map(([hz]) => String(hz / 1000)), grid: false },
    [{ paths: () => null, points: { show: false } }], { draw: [drawSpectrogram] });
  let top = 1;
  addPanel("wave", 50, "Waveform: share of full scale", [],
    { range: () => { top = peak(); return [-top, top]; }, splits: () => [-top, 0, top],
      values: (u, all) => all.map((v) => v.toPrecision(2).replace(/^0\.0+$/, "0")), grid: false },
    [line("audio", { width: 1 }), line("audio", { width: 1 })], {});
  panels.at(-1).addBand({ series: [2, 1], fill: () => colour("audio") });
  addPanel("main", 160, "on: Prob95 above the threshold",
    [["prob", "Prob95"], ["t_base", "Base_T", "dash"], ["t_adj", "DQN_T"],
    ["fixed", "fixed", "box"], ["broken", "broken", "box"]],
    unit, [line("prob", { width: 2.2 }), line("t_base", { width: 1.8, dash: [6, 4] }),
      line("t_adj", { width: 1.8 })], { drawClear: [shadeChanges] });
  addPanel("scores", 88, "loudness, raw and adjusted score",
    [["rms", "RMS"], ["d_raw", "D_raw"], ["d_adj", "D_adj"]],
    { ...unit, splits: () => [0, 0.5, 1] }, [line("rms"), line("d_raw"), line("d_adj")], {});
  addPanel("strips", 84, "Decisions: on where filled", [["t_base", "base (signal “binary”)", "box"],
    ["t_adj", "DQN", "box"], ["label", "ground truth", "box"],
    ["fixed", "+ fixed", "box"], ["broken", "× broken", "box"]],
    { range: () => [0, 4], splits: () => [0.5, 1.5, 2.5, 3.5], values: () =>
      ["Change", ...ROWS.map((r) => r[2]).reverse()], grid: false },
    [{ paths: () => null, points: { show: false } }], { draw: [drawStrips] }, true);
  new ResizeObserver(resize).observe($("plots"));
}

function resize() {
  for (const plot of panels)
    if (plot.place.clientWidth) plot.setSize({ width: plot.place.clientWidth,
      height: heightOf(plot.base, plot.last) });
  placeSelection();
  movePlayhead();
}

function fillPanels(pair) {
  const { x, signals: s, sound } = pair;
  const empty = [[0, 1], [0, 0]];
  const wave = sound && sound.low.map((_, i) => ((i + 0.5) * sound.duration) / sound.low.length);
  const data = { spectrogram: empty, strips: empty, main: [x, s.prob, s.t_base, s.t_adj],
    scores: [x, s.rms, s.d_raw, s.d_adj],
    wave: sound ? [wave, sound.low, sound.high] : [[0, 1], [0, 0], [0, 0]] };
  for (const plot of panels) {
    plot.place.hidden = !sound && (plot.name === "spectrogram" || plot.name === "wave");
    plot.setData(data[plot.name], true);
  }
  readout();
}

// ------------------------------------------------------------------ zoom, pan, selection

function setRange(first, last) {
  const width = clamp(last - first, Math.min(0.05, state.end), state.end);
  first = clamp(first, 0, state.end - width);
  state.range = [first, first + width];
  panels.forEach((plot) => plot.setScale("x", { min: first, max: first + width }));
  placeSelection();
  movePlayhead();
}

function zoom(factor, centre) {
  const [first, last] = state.range;
  const middle = centre ?? (state.time >= first && state.time <= last ? state.time
    : (first + last) / 2);
  setRange(middle - (middle - first) * factor, middle + (last - middle) * factor);
}
const pan = (share) => { const [a, b] = state.range, step = share * (b - a);
  setRange(a + step, b + step); };

function setSelection(selection) {
  state.selection = selection;
  $("zoom-selection").disabled = !selection;
  placeSelection();
}

function placeSelection() {
  for (const plot of panels) {
    plot.chosen.hidden = !state.selection;
    if (!state.selection) continue;
    const [a, b] = state.selection.map((t) => plot.valToPos(t, "x"));
    plot.chosen.style.left = `${a}px`;
    plot.chosen.style.width = `${Math.max(1, b - a)}px`;
  }
}

function point(plot) { // mouse: click seeks, drag selects, shift + drag pans, the wheel zooms
  const time = (event) =>
    clamp(plot.posToVal(event.clientX - plot.over.getBoundingClientRect().left, "x"), 0, state.end);
  let from = null;
  plot.over.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    from = { x: event.clientX, t: time(event), range: state.range, shift: event.shiftKey,
      moved: false };
    plot.over.setPointerCapture(event.pointerId);
  });
  plot.over.addEventListener("pointermove", (event) => {
    if (!from || (!from.moved && Math.abs(event.clientX - from.x) < 4)) return;
    from.moved = true;
    const [a, b] = from.range;
    const moved = ((event.clientX - from.x) / plot.over.clientWidth) * (b - a);
    if (from.shift) setRange(a - moved, b - moved);
    else setSelection([from.t, time(event)].sort((one, two) => one - two));
  });
  plot.over.addEventListener("pointerup", (event) => {
    if (from && !from.moved) seek(time(event));
    else if (from && !from.shift) { seek(state.selection[0]); state.stopAt = state.selection[1]; }
    from = null;
  });
  plot.over.addEventListener("pointercancel", () => { from = null; });
  plot.over.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (event.shiftKey ||
      Math.abs(event.deltaX) > Math.abs(event.deltaY)) pan(Math.sign(event.deltaX ||
      event.deltaY) * 0.1);
    else zoom(event.deltaY > 0 ? 1.25 : 0.8, time(event));
  }, { passive: false });
}

function hover(u) {
  state.hover = u.cursor.left >= 0 ? u.posToVal(u.cursor.left, "x") : null;
  readout();
}

function readout() { // values under the mouse, else at the playhead
  if (!state.pair) return;
  const { frames, frame_s: step, signals } = state.pair;
  const i = clamp(Math.floor((state.hover ?? state.time) / step + 1e-9), 0, frames - 1);
  for (const name of Object.keys(NAMES))
    $(`value-${name}`).textContent = signals[name][i].toFixed(3);
}

// ------------------------------------------------------------------ sound

function movePlayhead() {
  for (const plot of panels) plot.playhead.style.transform = `translateX(${plot.valToPos(state.time,
    "x")}px)`;
  $("clock").textContent = `${state.time.toFixed(2)} / ${state.end.toFixed(2)} s`;
  if (state.hover === null) readout();
}

function seek(time) {
  state.time = state.at = clamp(time, 0, state.end);
  state.stopAt = null;
  if (!$("play").disabled) $("audio").currentTime = state.time;
  movePlayhead();
}

function play() {
  const audio = $("audio");
  if ($("play").disabled) return;
  if (!audio.paused) return audio.pause();
  const span = loopSpan();
  if (state.loop &&
    (audio.currentTime < span[0] || audio.currentTime >= span[1])) audio.currentTime = span[0];
  if (audio.ended || audio.currentTime >= state.end - 0.01) audio.currentTime = 0;
  audio.play().catch((error) => error.name === "AbortError" ||
    note(`The sound cannot be played: ${error.message}`));
}

const loopSpan = () => state.selection || state.range;

function follow() { // called while playing: loop, stop after a stretch, keep the cursor in sight
  const audio = $("audio");
  if (audio.paused) return;
  const [first, last] = loopSpan();
  if (state.loop && audio.currentTime >= last) audio.currentTime = first;
  else if (!state.loop && state.stopAt !== null && audio.currentTime >= state.stopAt) {
    audio.pause(); state.stopAt = null; }
  state.time = audio.currentTime;
  const [a, b] = state.range;
  if (!state.loop && state.time > b && b < state.end) setRange(b, b + (b - a));
  movePlayhead();
}
function frame() { follow(); if (!$("audio").paused) requestAnimationFrame(frame); }

function toggleLoop() {
  state.loop = !state.loop;
  $("loop").setAttribute("aria-pressed", String(state.loop));
}

async function jump(kind, step) {
  // to the next changed stretch, in this pair or a later one; and play it
  const fits = (each) => !kind || each.kind === kind;
  const wanted = (row) => (kind ? row[kind] : row.fixed + row.broken) > 0;
  let found = state.pair?.stretches.filter((each) => fits(each) &&
    (step > 0 ? each.a > state.at + 1e-6 : each.a < state.at - 1e-6)) || [];
  if (!found.length) {
    const here = state.rows.findIndex((row) => row.n === state.n), size = state.rows.length;
    for (let k = 1; k <= size; k++) {
      const row = state.rows[(((here + step * k) % size) + size) % size];
      if (!wanted(row)) continue;
      await showPair(row.n);
      found = state.pair.stretches.filter(fits);
      break;
    }
  }
  if (!found.length) return say(`no ${kind || "changed"} stretch in the listed pairs`);
  const stretch = step > 0 ? found[0] : found.at(-1);
  const all = state.pair.stretches;
  const span = [Math.max(0, stretch.a - AROUND_S), Math.min(state.end, stretch.b + AROUND_S)];
  setSelection(span);
  if (state.end > 30 || span[0] < state.range[0] || span[1] > state.range[1])
    setRange(...(state.end > 30 ? [span[0] - 3, span[1] + 3] : [0, state.end]));
  seek(span[0]);
  state.at = stretch.a;
  state.stopAt = span[1];
  const { kind: what, a, b, frames } = stretch;
  const place = `${all.indexOf(stretch) + 1} of ${all.length}`;
  say(`${what}: ${a.toFixed(2)} to ${b.toFixed(2)} s, ${several(frames, "frame")}; ` +
    `change ${place} in this pair`);
  if (!$("play").disabled && $("audio").paused) play();
}

// ------------------------------------------------------------------ parts, keys, start

function show(part) {
  for (const name of ["overview", "pairs"]) {
    $(name).hidden = name !== part;
    $(`tab-${name}`).setAttribute("aria-current", name === part ? "page" : "false");
  }
  if (part === "overview") {
    $("audio").pause();
    history.replaceState(null, "", "#view=overview");
    if (drawOverview) drawOverview();
    return;
  }
  if (!panels.length) buildPanels();
  else resize();
  if (state.n === null && state.rows.length) return showPair(state.rows[0].n);
  if (state.n !== null) history.replaceState(null, "", `#pair=${state.n}`);
}

const KEYS = {
  " ": play, n: () => jump(null, 1), N: () => jump(null, -1), f: () => jump("fixed", 1), b: () =>
    jump("broken", 1),
  l: () => !$("loop").disabled && toggleLoop(), z: () => state.selection &&
    setRange(...state.selection),
  "+": () => zoom(0.7), "=": () => zoom(0.7), "-": () => zoom(1 / 0.7), 0: () =>
    setRange(0, state.end),
  "[": () => pan(-0.25), "]": () => pan(0.25), ",": () => seek(state.time - 0.5), ".": () =>
    seek(state.time + 0.5),
  ArrowDown: () => stepPair(1), ArrowRight: () => stepPair(1), ArrowUp: () => stepPair(-1),
    ArrowLeft: () => stepPair(-1),
  "/": () => $("search").focus(), Escape: () => setSelection(null),
};

function pressed(event) {
  const target = event.target, typing = target.matches?.("input, select, textarea");
  if (typing && event.key === "Escape") return target.blur();
  if (target.id === "search" && event.key === "Enter" &&
    state.rows.length) return showPair(state.rows[0].n).then(() => markCurrent(true));
  if ($("pairs").hidden || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  // A button that was reached by the keyboard keeps its space; in the list, space plays.
  const button = target.matches?.("button:focus-visible") && !$("list").contains(target);
  if (event.key === " " && button) return;
  if (!(event.key in KEYS)) return;
  event.preventDefault();
  KEYS[event.key]();
}

function fromHash() {
  const n = Number(/^#pair=(\d+)$/.exec(location.hash)?.[1] ?? NaN);
  if (report.pairs.some((row) => row.n === n)) { state.n = n; show("pairs"); return showPair(n); }
  return show(location.hash === "#view=pairs" ? "pairs" : "overview");
}

function connect() {
  const on = (id, what, event = "click") => $(id).addEventListener(event, what);
  on("tab-overview", () => show("overview"));
  on("tab-pairs", () => Promise.resolve(show("pairs")).then(() => markCurrent(true)));
  on("theme", () => {
    wanted = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("theme", wanted); } catch { /* not kept, then */ }
    applyTheme();
  });
  for (const id of ["class", "sort"]) on(id, filterChanged, "change");
  on("search", filterChanged, "input");
  on("play", play);
  on("loop", toggleLoop);
  on("prev-stretch", () => jump(null, -1));
  on("next-stretch", () => jump(null, 1));
  on("next-fixed", () => jump("fixed", 1));
  on("next-broken", () => jump("broken", 1));
  on("zoom-in", () => zoom(0.7));
  on("zoom-out", () => zoom(1 / 0.7));
  on("zoom-all", () => setRange(0, state.end));
  on("zoom-selection", () => state.selection && setRange(...state.selection));
  on("audio", () => { $("play").textContent = "Pause"; requestAnimationFrame(frame); }, "play");
  on("audio", () => { $("play").textContent = "Play"; }, "pause");
  on("audio", follow, "timeupdate");
  on("audio", () => { if (state.loop) { $("audio").currentTime = loopSpan()[0]; $("audio").play();
    } }, "ended");
  document.addEventListener("keydown", pressed);
  addEventListener("hashchange", fromHash);
  addEventListener("resize", () => panels.length && !$("pairs").hidden && resize());
}

function REPORT(data) {
  report = data;
  const { results: r } = data;
  report.classes = [...new Set(data.pairs.map((row) => row.label))].sort();
  document.title = `${data.run}: report`;
  $("run").textContent = data.run;
  const absent = r.num_pairs - r.present_pairs;
  $("line").textContent = `${r.split} split, ${count(r.present_pairs)} pairs, ` +
    (absent ? `${count(absent)} absent ones not counted, ` : "") +
    `F1 ${percent(r.before.f1)} → ${percent(r.after.f1)} %`;
  $("class").append(h("option", { value: "" }, "all classes"),
    ...report.classes.map((name, i) => h("option", { value: String(i) }, name)));
  buildOverview();
  connect();
  fillList();
  applyTheme();
  fromHash();
  requestAnimationFrame(() => {
    document.documentElement.dataset.openMs = performance.now().toFixed(0);
    document.documentElement.dataset.ready = "1";
  });
}
