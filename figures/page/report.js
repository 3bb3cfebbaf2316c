"use strict";
// The page of report.py. data/index.js calls REPORT(..) once; data/pair-*.js call REPORT_PAIR(..)
// and data/others.js REPORT_OTHERS(..) when they are loaded. Text of the user (clips, classes,
// runs) reaches the page as text nodes only.

const $ = (id) => document.getElementById(id);
const METRICS = { accuracy: "Accuracy", iou: "IoU", f1: "F1" };
const F1 = 2; // its place among the metrics of a pair
const INKS = ["t_adj", "t_adj2"]; // of the policies
const SIGNALS = ["prob", "t_base", "rms", "d_raw", "d_adj"];
const AROUND_S = 0.5; // heard before and after a changed stretch
const VALUES = { iou: "expected IoU", overlap_70: "P(overlap ≥ 0.7)", overlap_50: "P(≥ 0.5)",
  collar: "P(within collars)", worth: "expected reward" }; // of a candidate, by its networks
const LANES = 6; // of candidates that overlap, and how many of them are spelt out
const FEW = 3; // pairs off the page that are spelt out

let report; // what data/index.js brought
let others = null; // the pairs of the split that are not on the page, once they are asked for
const loaded = new Map(); // number -> pair data
const waiting = new Map(); // number -> promise of its data
const state = { rows: [], policy: 0, n: null, row: null, pair: null, time: 0, range: [0, 1], end: 1,
  selection: null, loop: false, stopAt: null, at: -1, hover: null, touch: false };
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
const sign = (value) => (Math.abs(value) < 5e-5 ? "" : value > 0 ? "good" : "bad");
// Grey where a difference may be chance: its interval covers zero, or is of one clip.
const tone = (row, [low, high]) => (row.num_clips === 1 || (low <= 0 && high >= 0) ? "quiet"
  : low > 0 ? "good" : "bad");
const between = ([low, high]) => `[${points(low)}, ${points(high)}]`;
const count = (value) => value.toLocaleString("en");
const several = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const clipped = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
const narrow = matchMedia("(max-width: 899px)");

const beside = () => report.policies.length > 1;
const shifts = (i) => report.policies[i].shifts; // the threshold: a DQN
const called = (i) => (shifts(i) ? "DQN" : "policy");
const who = (i) => (beside() ? report.policies[i].name : called(i)); // a policy in a sentence
const whose = (i) => (shifts(i) ? "DQN_T" : "policy") +
  (beside() ? ` of ${report.policies[i].name}` : "");

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
const WIDE = { width: 5, alpha: 0.45 }; // the base threshold: seen under one that equals it
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
    padding: [8, 20, 0, 0], ...options }, data, place);
  everyPlot.push(plot);
  new ResizeObserver(() => plot.setSize({ width: place.clientWidth, height: 170 })).observe(place);
}

// ------------------------------------------------------------------ overview

function table(head, rows, attributes) {
  return h("table", attributes, head ? h("thead", {}, h("tr", {}, ...head.map((x) =>
    (x instanceof Node ? x : h("th", { scope: "col" }, x))))) : null,
    h("tbody", {}, ...rows));
}
const cells = (values, attributes) => h("tr", attributes || {}, ...values.map((x) =>
  x instanceof Node && x.tagName === "TD" ? x : h("td", {}, x)));
const card = (size, title, ...children) =>
  h("section", { class: `card ${size}` }, title ? h("h2", {}, title) : null, ...children);

const METRIC_NAMES = Object.keys(METRICS);
const change = (row, value, interval, more = "") => h("td",
  { class: `${tone(row, interval)} ${more}` }, points(value), " ",
  h("small", {}, between(interval)));
const wide = (m) => (m === "f1" ? "" : "wide"); // differences that one column has no room for
const head = (text, kind) => h("th", { scope: "col", class: kind }, text);
const mid = (value) => h("td", { class: "mid" }, value); // a phone has no room for

function verdicts() {
  const two = report.difference;
  return card("", null, ...report.policies.map(({ name, results }) =>
    h("p", { class: "verdict" }, beside() ? h("b", {}, `${name}: `) : null, results.verdict)),
    two && h("p", { class: "verdict" }, h("b", {}, `${who(1)} minus ${who(0)}: `),
      METRIC_NAMES.map((m) => `${METRICS[m]} ${points(two.gain[m])} ${between(two.interval[m])}`)
        .join(", ") + " points."));
}

// What the verdict is about where every class of every clip was asked for.
function allPairs({ name, results, all_pairs: rows }) {
  const ours = ["DQN, gated", "DQN", "policy"].find((one) => rows[one]);
  const lines = Object.entries(rows).sort((a, b) => b[1].macro_f1 - a[1].macro_f1);
  return card("", beside() ? `All pairs: ${name}` : "All pairs", h("p", { class: "quiet" },
    "Every class of every clip, so false alarms in absent classes count. Best macro-F1 first. " +
    "A plus: the policy is better."), h("div", { class: "scroll" },
    table(["System", "Macro-F1 (%)", head("Micro-F1 (%)", "mid"),
      head("Absent pairs on (%)", "mid"), `${ours} minus system: macro-F1`],
    lines.map(([system, row]) => {
      const [gain, ...ends] = row.behind;
      return cells([h("td", { class: "name" }, system), percent(row.macro_f1),
        mid(percent(row.micro_f1)), mid(percent(row.false_alarms)),
        system === ours ? "" : change(results, gain, ends)],
      { class: system === ours ? "margins strong" : "margins" });
    }))));
}

function beforeAfter() {
  const row = (text, values, more) => cells([text, ...METRIC_NAMES.map((m) => percent(values[m]))],
    more);
  const gain = (text, r, gains, intervals) => cells([text,
    ...METRIC_NAMES.map((m) => change(r, gains[m], intervals[m]))], { class: "strong stack" });
  const rows = [row("Before: base threshold Base_T", report.before)];
  report.policies.forEach(({ results: r }, i) => {
    const after = beside() ? `After: ${who(i)}` : `After: ${shifts(0) ? "learned threshold DQN_T" : "decisions of the policy"}`;
    rows.push(row(after, r.after, { class: "strong" }),
      gain("Gain (points)", r, r.gain, r.interval));
  });
  const two = report.difference, r = report.policies[0].results;
  if (two) rows.push(gain(`${who(1)} minus ${who(0)} (points)`, r, two.gain, two.interval));
  return card("two-thirds", "Before and after",
    table(["Mean over pairs", ...METRIC_NAMES.map((m) => `${METRICS[m]} (%)`)], rows),
    h("p", { class: "quiet", style: "margin: 8px 0 0" },
      "In brackets: 95 % interval of the difference, in points; 1,000 draws of whole clips. " +
      "Green: better; red: worse; grey: may be chance." + (report.known ? ""
        : " Present pairs only: false alarms in absent classes do not count here; above they do.")));
}

function decisions() {
  const rows = report.policies.map((policy) => policy.results);
  const line = (text, value, kind) => cells([text, ...rows.map((r) =>
    h("td", kind ? { class: kind } : {}, value(r)))]);
  const changed = (r) => `${percent((r.fixed_frames + r.broken_frames) / report.num_frames)} %`;
  const selected = ({ threshold_selection: { accuracy } }) =>
    (accuracy === null ? "shifts none" : `${percent(accuracy)} %`);
  const names = beside() ? ["", ...rows.map((_, i) => who(i))] : null;
  return card("third", "Decisions that changed", table(names, [
    line("Fixed: wrong before, right after", (r) => `${count(r.fixed_frames)} frames`, "good"),
    line("Broken: right before, wrong after", (r) => `${count(r.broken_frames)} frames`, "bad"),
    line(`Changed, of ${count(report.num_frames)} frames`, changed),
    ...(rows.some((r) => r.threshold_selection.frames)
      ? [line("Right, of frames that some shift gets right", selected)] : []),
    line("F1 pooled over frames (%)", (r) => `${percent(r.pooled.before.f1)} → ` +
      percent(r.pooled.after.f1)),
  ]));
}

function rules() {
  // the ceilings of two policies may differ: a row of one has no cell for the other
  const found = new Map();
  report.policies.forEach(({ results: r }, i) => r.yardsticks.forEach((row) => {
    if (!found.has(row.name)) found.set(row.name, { ...row, against: {} });
    found.get(row.name).against[i] = row.interval;
  }));
  const shown = beside() ? ["f1"] : METRIC_NAMES;
  const columns = report.policies.flatMap((_, i) => shown.map((m) => [i, m]));
  const rows = [...found.values()].sort((a, b) => b.f1 - a.f1).map((row) =>
    cells([h("td", { class: "name" }, row.name, row.setting && row.setting.length < 50
      ? h("small", {}, `  ${row.setting}`) : ""), mid(percent(row.accuracy)),
    mid(percent(row.iou)), percent(row.f1),
    ...columns.map(([i, m]) => (row.against[i] ? change(report.policies[i].results,
      report.policies[i].results.after[m] - row[m], row.against[i][m], wide(m)) : h("td", {})))],
    { class: "margins" }));
  return card("", "Against simple rules", h("p", { class: "quiet" },
    (report.known ? "" : "Present pairs only. ") + "Best F1 first. Rules are tuned on the " +
    "training split unless fixed; a ceiling knows the labels. A plus: the policy is better."),
  h("div", { class: "scroll" },
    table(["Rule", head("Accuracy (%)", "mid"), head("IoU (%)", "mid"), "F1 (%)",
      ...columns.map(([i, m]) => head(`${who(i)} minus rule: ${METRICS[m]}`, wide(m)))], rows)));
}

function perClass() {
  const shown = new Set(report.pairs.map((row) => row.label));
  const tables = report.policies.map((policy) => policy.results.per_class);
  const gainOf = (row, m) => row.after[m] - row.before[m];
  const labels = Object.keys(tables[0]).sort((a, b) =>
    gainOf(tables[0][b], "f1") - gainOf(tables[0][a], "f1"));
  const most = Math.max(0.01, ...tables.flatMap((t) => Object.values(t).map((row) =>
    Math.abs(gainOf(row, "f1")))));
  const columns = beside() ? ["f1"] : METRIC_NAMES;
  const after = (value) => (beside() ? mid(value) : value);
  const bars = beside() ? "wide" : "mid"; // of two policies one column has no room
  const bar = (row) => {
    const gain = gainOf(row, "f1"), kind = tone(row, row.interval.f1);
    const side = gain < 0 ? "right: 50%" : "left: 50%";
    return h("i", { style: `width: ${50 * Math.abs(gain) / most}%; ${side}; ` +
      `background: var(--${kind})` });
  };
  const line = (label) => {
    const rows = tables.map((t) => t[label]);
    const name = shown.has(label) ? h("button", { class: "link",
      title: "show the pairs of this class", onclick: () => showClass(label) }, label) : label;
    return cells([h("td", { class: "name" }, name), String(rows[0].pairs),
      mid(percent(rows[0].before.f1)), ...rows.map((row) => after(percent(row.after.f1))),
      ...rows.flatMap((row) => columns.map((m) =>
        change(row, gainOf(row, m), row.interval[m], wide(m)))),
      h("td", { class: bars }, h("div", { class: beside() ? "bar two" : "bar",
        "aria-hidden": "true" }, h("b", { style: "left: 50%" }), ...rows.map(bar)))],
    { class: "margins" });
  };
  const tail = beside() ? " (above, below)" : "";
  return card("", "Gain by class", h("div", { class: "scroll" }, table(
    ["Class", "Pairs", head("F1 before (%)", "mid"),
      ...report.policies.map((_, i) => (beside() ? head(`F1 ${who(i)} (%)`, "mid")
        : "F1 after (%)")),
      ...report.policies.flatMap((_, i) => columns.map((m) =>
        head(beside() ? `${who(i)}: F1 (points)` : `${METRICS[m]} (points)`, wide(m)))),
      head(`F1: loss left, gain right${tail}`, bars)], labels.map(line))));
}

function errors() {
  const systems = [["Base", "Base_T", "t_base", report.policies[0].results.ends.before],
    ...report.policies.map(({ results }, i) => [who(i), whose(i), INKS[i], results.ends.after])];
  const rows = ["onset", "offset"].flatMap((end) => systems.map(([name, , , ends]) => {
    const x = ends[end], first = `${end === "onset" ? "Onset" : "Offset"}, ${name}`;
    return x.events ? cells([first, count(x.events), x.median_ms.toFixed(1),
      mid(x.mean_ms.toFixed(0)),
      (x.bias_ms < 0 ? "−" : "+") + Math.abs(x.bias_ms).toFixed(0),
      `${(100 * x.within_200_ms).toFixed(1)} %`]) : cells([first, "0", "", mid(""), "", ""]);
  }));
  const box = h("div", { class: "curves" });
  const section = card("", "Onset and offset errors", h("p", { class: "quiet" },
    "Each system by its own matches: true events that meet exactly one found event of their " +
    "class, which meets no other. A positive bias is late."), h("div", { class: "scroll" },
    table(["End, threshold", "Events", "Median error (ms)", head("Mean error (ms)", "mid"),
      "Bias (ms)", "Within 200 ms"], rows)), box);
  const draw = () => {
    const x = report.error_bins, paths = uPlot.paths.stepped({ align: 1 });
    for (const end of ["onset", "offset"]) {
      const some = systems.filter(([, , , ends]) => ends[end].events);
      if (!some.length) continue;
      const tall = (values) => [...values, values.at(-1)];
      simplePlot(box, `How late the ${end} is found (ms)`, some.map(([, text, ink]) =>
        [ink, `${text}: events`, ink === "t_base" ? "wide" : ""]), {
        scales: { x: { time: false } }, cursor: { y: false },
        axes: [{ ...ink, size: 28 }, { ...ink, size: 46 }],
        series: [{}, ...some.map(([, , ink]) => (ink === "t_base" ? line(ink, { paths, ...WIDE })
          : line(ink, { paths, width: 2 })))],
      }, [x, ...some.map(([, , , ends]) => tall(ends[end].histogram))]);
    }
  };
  return [section, draw];
}

// The operating curve of a policy over events: what a threshold on its confidences would give.
function operatingCurve({ name, curve }) {
  const box = h("div", {});
  const title = beside() ? `Operating curve: ${name}` : "Operating curve";
  const section = card("half", title, h("p", { class: "quiet" },
    `${curve.what}; at 0 all that the policy emits.`), box);
  return [section, () => simplePlot(box, "Share (0 to 1)", [["prob", "Precision"],
    ["q", "Recall"], ["t_adj", "F1"]], {
    scales: { x: { time: false }, y: { range: [0, 1] } }, cursor: { y: false },
    axes: [{ ...ink, size: 28 }, { ...ink, size: 46 }],
    series: [{}, line("prob"), line("q"), line("t_adj", { width: 2.4 })],
  }, [curve.confidence, curve.precision, curve.recall, curve.f1])];
}

function training({ name, training: t }) {
  const title = beside() ? `Training: ${name}` : "Training";
  if (!t) return [card("", title, h("p", {}, "This policy came without a training log.")),
    () => {}];
  const box = h("div", { class: "curves" });
  const text = `${count(t.episodes)} episodes in the order of finishing` +
    (t.each > 1 ? `; each point is the mean of ${t.each}` : "") +
      ". Drag to zoom them all, double click to go back.";
  const section = card("", title, h("p", { class: "quiet" }, text), box);
  const curve = (title, entries) => {
    const some = entries.filter(([name]) => t[name]);
    if (!some.length) {
      box.append(h("div", {}, h("h3", {}, title), h("p", { class: "quiet" },
        "Not in this run's log.")));
      return;
    }
    simplePlot(box, title, some.map(([name, label, dash, ink]) =>
      [ink || name, label, dash ? "dash" : ""]), {
      scales: { x: { time: false } }, cursor: { y: false, sync: { key: title } },
      axes: [{ ...ink, size: 28 }, { ...ink, size: 52 }],
      series: [{}, ...some.map(([name, , dash, ink, width]) =>
        line(ink || name, { dash: dash ? [6, 4] : undefined, width: width || 1.6, spanGaps: true,
          points: { show: t[name].filter((x) => x !== null).length < 60, size: 5 } }))],
    }, [t.x, ...some.map(([name]) => t[name])]);
  };
  return [section, () => {
    if (t.reward) curve("Reward of an episode (sum over its frames)", [["reward", "Reward", false, "reward", 1],
      ["unchanged", "Avg10 of never shifting (Base_T kept)", true, "t_base", 1.4],
        ["avg10", "Avg10: mean of the last 10", false, "avg10", 2.4]]);
    if (t.epsilon.some((x) => x > 0))
      curve("Epsilon: share of random actions", [["epsilon", "Epsilon"]]);
    curve("Loss: mean over the gradient steps of an episode", [["loss", "Loss"]]);
    if (t.reward) curve("Q: mean value of the actions taken", [["q", "Q"]]);
  }];
}

function settingsCard({ name, settings }) {
  const groups = Object.entries(settings).map(([name, rows]) => h("section", {}, h("h3", {}, name),
    table(null, rows.map(([field, value, usual]) => cells([field.replaceAll("_", " "),
      h("td", { class: usual === null ? "" : "strong" }, value,
        usual === null ? "" : h("small", {}, `  (slides: ${usual})`))])), { class: "facts" })));
  const differ = Object.values(settings).flat().filter(([, , usual]) => usual !== null);
  const changed = table(["Setting", "This run", "Slides"], differ.map(([field, value, usual]) =>
    cells([field.replaceAll("_", " "), h("td", { class: "name" }, value),
      h("td", { class: "name quiet" }, usual)])));
  const title = (text) => (beside() ? `${text}: ${name}` : text);
  return card("half", title("Configuration"), differ.length
    ? h("p", { class: "quiet" }, "Where this run differs from the settings of the slides:")
    : h("p", {}, "The settings of the slides."), differ.length ? changed : null,
  h("details", {}, h("summary", {}, "All settings"), h("div", { class: "settings" }, ...groups)));
}

const dataCard = () => card("half", "Data", table(null, report.facts.map((row) => cells(row)),
  { class: "facts" }));

let drawOverview = null; // plots need a width: drawn when the part is first shown

function buildOverview() {
  const cards = h("div", { class: "cards" }), draws = [];
  const drawn = ([section, draw]) => { draws.push(draw); return section; };
  cards.append(verdicts(), ...report.policies.filter((p) => p.all_pairs).map(allPairs),
    beforeAfter(), decisions(), rules(),
    ...report.policies.filter((policy) => policy.curve).map((policy) =>
      drawn(operatingCurve(policy))),
    ...report.policies.map((policy) => drawn(training(policy))), perClass(), drawn(errors()),
    dataCard(), ...report.policies.map(settingsCard));
  $("overview").append(cards);
  drawOverview = () => { drawOverview = null; draws.forEach((draw) => draw()); };
}

// ------------------------------------------------------------------ list of pairs

const did = (row) => row.policies[state.policy]; // what the chosen policy did in a pair
const gainOf = (row) => (row.present ? did(row).after[F1] - row.before[F1] : 0);
const SORTS = {
  gain: (a, b) => gainOf(b) - gainOf(a),
  loss: (a, b) => gainOf(a) - gainOf(b),
  broken: (a, b) => did(b).broken - did(a).broken,
  fixed: (a, b) => did(b).fixed - did(a).fixed,
  clip: (a, b) => (a.clip < b.clip ? -1 : a.clip > b.clip ? 1 : 0),
};

function fillList() {
  const label = report.classes[$("class").value] ?? null;
  const text = $("search").value.trim().toLowerCase();
  const chosen = report.pairs.filter((row) =>
    (label === null || row.label === label) && row.clip.toLowerCase().includes(text));
  chosen.sort((a, b) => SORTS[$("sort").value](a, b) || a.n - b.n);
  state.rows = chosen;
  $("list").replaceChildren(...chosen.map((row) => h("li", {}, h("button", {
    "data-n": row.n, onclick: () => { chooser(false); showPair(row.n); } },
    h("span", {}, row.label), row.present ? h("b", { class: sign(gainOf(row)) },
      points(gainOf(row), 1)) : h("span", { class: "why" }, "absent"),
    h("span", { class: "clip" }, row.clip), h("span", { class: "why" }, row.why)))));
  const of = beside() ? ` of ${who(state.policy)}` : "";
  const by = beside() ? ` by the gain of ${who(0)}` : "";
  const left = report.pairs.length < report.num_pairs
    ? ` (chosen of ${count(report.num_pairs)}${by})` : "";
  $("count").textContent = `${chosen.length} of ${report.pairs.length} pairs${left}; gain in F1` +
    `${of}, points`;
  if (!chosen.length) explainNone(label, text);
  markCurrent(false);
}

function REPORT_OTHERS(value) { others = value; }

// Why the list is empty: there is no such pair, or it is merely not one of those on the page.
async function explainNone(label, text) {
  const say = (words) => { $("count").textContent = words; };
  say("no pair on this page matches");
  try { await fetchScript("data/others.js", () => others !== null); } catch { return; }
  if (state.rows.length) return; // typed on meanwhile
  const found = others.clips.filter(([clip]) => clip.toLowerCase().includes(text))
    .flatMap(([clip, numbers]) => numbers.map((k) => [others.labels[k], clip]))
    .filter(([other]) => label === null || other === label);
  if (!found.length) return say("no pair matches, neither on this page nor in the split");
  const named = found.slice(0, FEW).map(([other, clip]) => `${other} in ${clip}`).join("; ");
  const rest = found.length > FEW ? `; and ${count(found.length - FEW)} more` : "";
  say(`no pair on this page matches. In the split ${found.length === 1 ? "one does" :
    `${count(found.length)} do`}: ${named}${rest}. visualize.py --html --pairs ` +
      `${report.num_pairs} makes a page of all ${count(report.num_pairs)} pairs.`);
}

function chooser(open) { // the list of pairs where there is one column only
  $("side").classList.toggle("open", open);
  $("choose").setAttribute("aria-expanded", String(open));
}

function markCurrent(focus) {
  for (const button of $("list").querySelectorAll("button")) {
    const current = Number(button.dataset.n) === state.n;
    if (current !== (button.getAttribute("aria-current") === "true"))
      button.setAttribute("aria-current", String(current));
    if (current) {
      if (!narrow.matches) button.scrollIntoView({ block: "nearest" });
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

// Where a frame begins; as sed/timeline.py: the first begins at 0 and may be longer.
const secondsAt = ({ frame_s: step, start_s: start }, frame) =>
  frame < 1 ? frame * (start + step) : start + frame * step;

function REPORT_PAIR([n, pair]) {
  for (const name of SIGNALS) pair.signals[name] = unpack(pair.signals[name]);
  if (pair.sound) {
    pair.sound.low = unpack(pair.sound.low).map((x) => 2 * x - 1);
    pair.sound.high = unpack(pair.sound.high).map((x) => 2 * x - 1);
  }
  pair.x = pair.signals.prob.map((_, i) =>
    (secondsAt(pair, i) + secondsAt(pair, i + 1)) / 2);
  pair.policies.forEach((policy, i) => {
    if (policy.t_adj) pair.signals[INKS[i]] = unpack(policy.t_adj);
    policy.stretches = ["fixed", "broken"]
      .flatMap((kind) => policy[kind].map(([a, b]) => ({ kind, a: secondsAt(pair, a),
        b: secondsAt(pair, b), frames: b - a })))
      .sort((one, two) => one.a - two.a);
    policy.boxes = inLanes(policy.boxes || []);
  });
  loaded.set(n, pair);
}

// Candidates of a pair, the surest first, each in the first lane where it overlaps none.
function inLanes(boxes) {
  const ends = [], ordered = [...boxes].sort((a, b) => b.confidence - a.confidence);
  for (const box of ordered) {
    const free = ends.findIndex((lane) => lane.every((other) =>
      other.offset <= box.onset || other.onset >= box.offset));
    box.lane = free >= 0 ? free : Math.min(ends.length, LANES - 1);
    (ends[box.lane] ??= []).push(box);
  }
  return ordered;
}

function fetchScript(source, there) {
  return new Promise((resolve, reject) => {
    if (there()) return resolve();
    const element = h("script", { src: source });
    element.onload = () => (there() ? resolve() : reject(new Error(`${source} is damaged`)));
    element.onerror = () => reject(new Error(`${source} cannot be read`));
    document.head.append(element);
  });
}

function load(n) {
  if (!waiting.has(n)) waiting.set(n,
    fetchScript(`data/pair-${String(n).padStart(5, "0")}.js`, () => loaded.has(n))
      .then(() => loaded.get(n)));
  return waiting.get(n);
}

const mine = () => state.pair.policies[state.policy]; // of the chosen pair and policy
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
  state.end = Math.max(secondsAt(pair, pair.frames), pair.sound ? pair.sound.duration : 0);
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
  const length = +secondsAt(pair, pair.frames).toFixed(2), step = +(1000 * pair.frame_s).toFixed(3);
  $("pair-clip").textContent = `${row.clip} (${length} s, ${step} ms frames)`;
  const place = state.rows.findIndex((each) => each.n === row.n) + 1;
  $("choose").textContent = (place ? `Pair ${place} of ${state.rows.length}: choose` : "Choose") +
    " another ▾";
  const value = (x) => (100 * x).toFixed(1);
  const policies = row.policies.map((policy, i) => {
    const name = beside() ? h("button", { "aria-pressed": String(i === state.policy),
      title: "show what this policy changed (p)", onclick: () => choosePolicy(i) }, who(i))
      : who(i);
    return cells([h("td", { class: "left" }, name), ...policy.after.map((x, k) => h("td", {},
      value(x), " ", h("small", { class: sign(x - row.before[k]) },
        points(x - row.before[k], 1)))), `${policy.fixed} fixed, ${policy.broken} broken`]);
  });
  $("pair-scores").replaceChildren(
    h("tr", {}, h("th", {}, "%"), ...Object.values(METRICS).map((name) => h("th", {}, name)),
      h("th", {}, "Frames")),
    cells(["Base", ...row.before.map(value), ""]),
    ...policies);
  const has = (kind) => report.pairs.some((each) => did(each)[kind]);
  $("next-fixed").disabled = !has("fixed");
  $("next-broken").disabled = !has("broken");
  $("next-stretch").disabled = $("prev-stretch").disabled = !has("fixed") && !has("broken");
  const places = mine().stretches.length, by = beside() ? ` by ${who(state.policy)}` : "";
  say(places ? `changed${by} in this pair: ${several(places, "place")}`
    : `no decision changed${by} in this pair`);
}

function choosePolicy(i) {
  state.policy = i;
  state.at = -1;
  fillList();
  if (!state.pair) return;
  describe(state.row, state.pair);
  fillPanels(state.pair);
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
  if (state.pair) inside(u, () => mine().stretches.forEach(({ kind, a, b }) =>
    rectangle(u, a, b, -1, 2, colour(kind))));
}

// Name, colour and runs of each row of decisions, from the top; changes come below them.
const strips = () => [["Base", "t_base", (pair) => pair.before],
  ...report.policies.map((_, i) => [clipped(who(i), 12), INKS[i],
    (pair) => pair.policies[i].after]),
  ["Truth", "label", (pair) => pair.label]];

function drawStrips(u) {
  const pair = state.pair;
  if (!pair) return;
  const rows = strips();
  inside(u, () => {
    rows.forEach(([, ink, runs], i) => runs(pair).forEach(([a, b]) => rectangle(u,
      secondsAt(pair, a), secondsAt(pair, b), rows.length - i + 0.12, rows.length - i + 0.88,
      colour(ink))));
    u.ctx.textAlign = "center";
    u.ctx.textBaseline = "middle";
    u.ctx.font = `bold ${13 * devicePixelRatio}px system-ui, sans-serif`;
    for (const { kind, a, b } of mine().stretches) {
      const [x, width] = rectangle(u, a, b, 0.12, 0.88, colour(kind));
      if (width < 12 * devicePixelRatio) continue;
      u.ctx.fillStyle = colour("text");
      u.ctx.fillText(kind === "fixed" ? "+" : "×", x + width / 2, u.valToPos(0.5, "y", true));
    }
  });
}

const lanes = () => Math.max(2, ...(state.pair ? mine().boxes.map((box) => box.lane + 1) : []));

function drawBoxes(u) { // filled where chosen, else an outline, fainter where less sure
  if (!state.pair) return;
  inside(u, () => [...mine().boxes].reverse().forEach((box) => {
    const low = LANES - 0.9 - box.lane, high = low + 0.8;
    u.ctx.globalAlpha = box.chosen ? 1 : 0.25 + 0.6 * clamp(box.confidence, 0, 1);
    const [x, width, top] = rectangle(u, box.onset, box.offset, low, high,
      box.chosen ? colour(INKS[state.policy]) : colour("soft"));
    u.ctx.strokeStyle = colour(INKS[state.policy]);
    u.ctx.lineWidth = devicePixelRatio;
    u.ctx.strokeRect(x, top, width, u.valToPos(low, "y", true) - top);
  }));
  u.ctx.globalAlpha = 1;
}

// The candidates under the pointer, the surest first, in a box beside it.
function nameBoxes(plot, event) {
  const x = event.clientX - plot.over.getBoundingClientRect().left, time = plot.posToVal(x, "x");
  const found = mine().boxes.filter((box) => box.onset <= time && time < box.offset);
  const emitted = (box) => (report.known ? "" : box.chosen ? "emitted: " : "not emitted: ");
  const text = (box) => h("li", {}, h("b", {}, emitted(box)),
    `${box.onset.toFixed(2)} to ${box.offset.toFixed(2)} s, confidence ` +
    [box.confidence.toFixed(2), ...Object.entries(box.values).map(([name, value]) =>
      `${VALUES[name] ?? name} ${value.toFixed(2)}`)].join(", "));
  const more = found.length > LANES ? [h("li", {}, `and ${found.length - LANES} less sure`)] : [];
  const tip = $("candidates");
  tip.hidden = !found.length;
  tip.replaceChildren(...found.slice(0, LANES).map(text), ...more);
  tip.style.left = `${clamp(x, 0, plot.place.clientWidth - tip.offsetWidth)}px`;
}

// What the rest of the window leaves is shared by the canvases; never less than six tenths of their
// usual size. In one column the window scrolls, and nothing needs to be small.
function heights() {
  const shown = panels.filter((plot) => !plot.place.hidden), view = $("view");
  const sum = (size) => shown.reduce((total, plot) => total + size(plot), 0);
  const bottom = $("plots").getBoundingClientRect().bottom - view.getBoundingClientRect().top;
  const rest = bottom + view.scrollTop + 8 - sum((plot) => plot.height - (plot.last ? 28 : 0));
  const share = narrow.matches ? 1
    : clamp((view.clientHeight - rest) / sum((plot) => plot.base), 0.6, 1.6);
  return (plot) => Math.round(plot.base * share) + (plot.last ? 28 : 0);
}

// Pixels left of every plot, one time axis for all: as wide as the longest name of a row.
const left = () => {
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = ink.font;
  const widest = Math.max(...["Change", ...strips().map((row) => row[0])].map((text) =>
    pen.measureText(text).width));
  return Math.ceil(Math.max(narrow.matches ? 0 : 52, widest) + 14);
};


function addPanel(name, base, title, entries, y, series, hooks, last) {
  const place = h("div", { class: "panel", id: `panel-${name}`, role: "group",
    "aria-label": title });
  const legend = key([...entries, ["", title]]);
  legend.querySelectorAll("span").forEach((span, i) => {
    if (series[i]?.stroke && entries[i] && (SIGNALS.includes(entries[i][0]) ||
      INKS.includes(entries[i][0]))) span.append(h("output", { id: `value-${entries[i][0]}` }));
  });
  place.append(legend);
  $("plots").append(place);
  const plot = new uPlot({
    width: Math.max(200, place.clientWidth), height: base, legend: { show: false },
      padding: [6, 18, last ? 0 : 6, 0],
    scales: { x: { time: false, auto: false, range: () => state.range },
      y: { range: () => y.range() } },
    cursor: { y: false, points: { show: false }, drag: { x: false, y: false, setScale: false },
      sync: { key: "pair", scales: ["x", null] }, bind: { dblclick: () => null } },
    axes: [{ ...ink, show: Boolean(last), size: 28, values: (u, splits) =>
      splits.map((s) => `${+s.toFixed(3)} s`) },
      { ...ink, size: left, splits: y.splits, values: y.values,
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

const shifting = () => report.policies.map((_, i) => i).filter(shifts);

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
  const policies = shifting().map((i) => [INKS[i], whose(i)]);
  addPanel("main", 160, "on: Prob95 above the threshold",
    [["prob", "Prob95"], ["t_base", "Base_T", "wide"], ...policies,
    ["fixed", "fixed", "box"], ["broken", "broken", "box"]],
    unit, [line("prob", { width: 2.2 }), line("t_base", WIDE),
      ...policies.map(([ink]) => line(ink, { width: 1.8 }))], { drawClear: [shadeChanges] });
  addPanel("scores", 88, "loudness, raw and adjusted score",
    [["rms", "RMS"], ["d_raw", "D_raw"], ["d_adj", "D_adj"]],
    { ...unit, splits: () => [0, 0.5, 1] }, [line("rms"), line("d_raw"), line("d_adj")], {});
  const candidates = "Candidate events, named under the pointer; " + (report.known
    ? "not used here, as the class is known to sound" : "filled where emitted");
  addPanel("boxes", 48, candidates, [],
    { range: () => [LANES - lanes(), LANES], splits: () => [], values: () => [], grid: false },
    [{ paths: () => null, points: { show: false } }], { draw: [drawBoxes] });
  const boxes = panels.at(-1);
  boxes.place.append(h("ul", { id: "candidates", hidden: "" }));
  for (const kind of ["pointerdown", "pointermove"])
    boxes.over.addEventListener(kind, (event) => nameBoxes(boxes, event));
  boxes.over.addEventListener("pointerleave", (event) => { // what a finger names stays
    if (event.pointerType !== "touch") $("candidates").hidden = true; });
  document.addEventListener("pointerdown", (event) => {
    if (!boxes.over.contains(event.target)) $("candidates").hidden = true; });
  const rows = strips();
  addPanel("strips", 21 * (rows.length + 1), "Decisions: on where filled",
    [["t_base", "base (signal “binary”)", "box"],
    ...report.policies.map((_, i) => [INKS[i], who(i), "box"]), ["label", "ground truth", "box"],
    ["fixed", "+ fixed", "box"], ["broken", "× broken", "box"]],
    { range: () => [0, rows.length + 1], splits: () => [...rows, 0].map((_, i) => i + 0.5),
      values: () => ["Change", ...rows.map((row) => row[0]).reverse()], grid: false },
    [{ paths: () => null, points: { show: false } }], { draw: [drawStrips] }, true);
  new ResizeObserver(resize).observe($("plots"));
}

function resize() {
  const of = heights();
  for (const plot of panels)
    if (plot.place.clientWidth) plot.setSize({ width: plot.place.clientWidth, height: of(plot) });
  placeSelection();
  movePlayhead();
}

function fillPanels(pair) {
  const { x, signals: s, sound } = pair;
  const empty = [[0, 1], [0, 0]];
  const wave = sound && sound.low.map((_, i) => ((i + 0.5) * sound.duration) / sound.low.length);
  const data = { spectrogram: empty, strips: empty, boxes: empty,
    main: [x, s.prob, s.t_base, ...shifting().map((i) => s[INKS[i]])],
    scores: [x, s.rms, s.d_raw, s.d_adj],
    wave: sound ? [wave, sound.low, sound.high] : [[0, 1], [0, 0], [0, 0]] };
  for (const plot of panels) {
    const heard = plot.name === "spectrogram" || plot.name === "wave";
    plot.place.hidden = (heard && !sound) || (plot.name === "boxes" && !mine().boxes.length);
    plot.setData(data[plot.name], true);
  }
  resize();
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

// Click seeks, drag selects, shift + drag pans, the wheel zooms. One finger is the mouse (up and
// down scrolls the page), two fingers zoom and pan.
function point(plot) {
  const share = (event) => {
    const box = plot.over.getBoundingClientRect();
    return (event.clientX - box.left) / box.width;
  };
  const time = (event) => clamp(state.range[0] + share(event) * (state.range[1] - state.range[0]),
    0, state.end);
  const fingers = new Map(); // pointer -> where it is and which time it took hold of
  let from = null;
  const holding = (finger) => { state.hover = finger; readout(); };
  plot.over.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    state.touch = event.pointerType === "touch";
    fingers.set(event.pointerId, { at: share(event), t: time(event) });
    from = fingers.size > 1 ? null : { x: event.clientX, t: time(event), range: state.range,
      shift: event.shiftKey, moved: false, selection: state.selection };
    plot.over.setPointerCapture(event.pointerId);
  });
  plot.over.addEventListener("pointermove", (event) => {
    const finger = fingers.get(event.pointerId);
    if (finger && fingers.size === 2) {
      finger.at = share(event);
      const [one, two] = [...fingers.values()].sort((a, b) => a.t - b.t);
      if (two.at - one.at < 0.02) return;
      const width = (two.t - one.t) / (two.at - one.at);
      return setRange(one.t - one.at * width, one.t + (1 - one.at) * width);
    }
    if (!from || (!from.moved && Math.abs(event.clientX - from.x) < 4)) return;
    from.moved = true;
    const [a, b] = from.range;
    const moved = ((event.clientX - from.x) / plot.over.clientWidth) * (b - a);
    if (from.shift) return setRange(a - moved, b - moved);
    setSelection([from.t, time(event)].sort((one, two) => one - two));
    if (state.touch) holding(time(event));
  });
  plot.over.addEventListener("pointerup", (event) => {
    fingers.delete(event.pointerId);
    if (from && !from.moved) seek(time(event));
    else if (from && !from.shift) { seek(state.selection[0]); state.stopAt = state.selection[1]; }
    from = null;
    if (state.touch) holding(null);
  });
  plot.over.addEventListener("pointercancel", (event) => { // the page scrolls instead
    fingers.delete(event.pointerId);
    if (from?.moved && !from.shift) setSelection(from.selection);
    from = null;
    if (state.touch) holding(null);
  });
  plot.over.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (event.shiftKey ||
      Math.abs(event.deltaX) > Math.abs(event.deltaY)) pan(Math.sign(event.deltaX ||
      event.deltaY) * 0.1);
    else zoom(event.deltaY > 0 ? 1.25 : 0.8, time(event));
  }, { passive: false });
}

function hover(u) {
  if (state.touch) return; // a tap leaves a mouse behind, which would hide the playhead's values
  state.hover = u.cursor.left >= 0 ? u.posToVal(u.cursor.left, "x") : null;
  readout();
}

function readout() { // values under the pointer, else at the playhead
  if (!state.pair) return;
  const { frames, frame_s: step, start_s: start, signals } = state.pair;
  const time = state.hover ?? state.time;
  const i = clamp(Math.floor((time - start) / step + 1e-9), 0, frames - 1);
  for (const name of [...SIGNALS, ...shifting().map((i) => INKS[i])])
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
  const wanted = (row) => (kind ? did(row)[kind] : did(row).fixed + did(row).broken) > 0;
  let found = state.pair && mine().stretches.filter((each) => fits(each) &&
    (step > 0 ? each.a > state.at + 1e-6 : each.a < state.at - 1e-6));
  if (!found?.length) {
    const here = state.rows.findIndex((row) => row.n === state.n), size = state.rows.length;
    for (let k = 1; k <= size; k++) {
      const row = state.rows[(((here + step * k) % size) + size) % size];
      if (!wanted(row)) continue;
      await showPair(row.n);
      found = mine().stretches.filter(fits);
      break;
    }
  }
  if (!found?.length) return say(`no ${kind || "changed"} stretch in the listed pairs`);
  const stretch = step > 0 ? found[0] : found.at(-1);
  const all = mine().stretches;
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
  p: () => choosePolicy((state.policy + 1) % report.policies.length),
  "/": () => { chooser(true); $("search").focus(); }, Escape: () => setSelection(null),
};

function pressed(event) {
  const target = event.target, typing = target.matches?.("input, select, textarea");
  if (typing && event.key === "Escape") return target.blur();
  if (target.id === "search" && event.key === "Enter" &&
    state.rows.length) { chooser(false);
    return showPair(state.rows[0].n).then(() => markCurrent(true)); }
  if ($("pairs").hidden || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  // A button that was reached by the keyboard keeps its space; in the list, space plays.
  const button = target.matches?.("button:focus-visible") && !$("list").contains(target);
  if (event.key === " " && button) return;
  if (narrow.matches && ["ArrowUp", "ArrowDown"].includes(event.key)) return; // the window scrolls
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
  on("choose", () => chooser(!$("side").classList.contains("open")));
  on("prev-pair", () => stepPair(-1));
  on("next-pair", () => stepPair(1));
  narrow.addEventListener("change", () => panels.length && !$("pairs").hidden && resize());
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
  const names = data.policies.map((policy) => policy.name).join(" and ");
  report.classes = [...new Set([...data.pairs.map((row) => row.label),
    ...Object.keys(data.policies[0].results.per_class)])].sort();
  document.title = `${names}: report`;
  $("run").textContent = names;
  const absent = data.num_pairs - data.present_pairs;
  $("line").textContent = `${data.split} split, ${count(data.present_pairs)} pairs` +
    (absent ? `, ${count(absent)} absent ones not counted` : "");
  $("help-policy").hidden = !beside();
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
