// Which charts there are, and which series each draws.

import {HeatMap} from "./heatmap.js";
import {Plot} from "./plot.js";
import {state, stepOf} from "./store.js";
import {$, element, ess, known, percent, rate, short} from "./text.js";

const LEAST_LOST = 1e-6;  // an ESS beyond is drawn at the edge and written as 1
const seconds = (v) => `${short(v)} s`;
const STAGES = {
  staleness: [["queue_mean", "queue", "--c3"], ["flight_mean", "flight", "--c2"], ["lag_mean", "lag", "--c1"]],
  time: [["publish_s", "publish", "--c3"], ["wait_s", "waiting", "--c2"], ["compute_s", "compute", "--c1"]],
};
let plots = null;

function zoom(steps) {
  for (const plot of Object.values(plots)) {
    if (plot instanceof Plot) plot.look(steps);
  }
  plots.ratios.zoom = steps;
  if (plots.ratios.data) plots.ratios.draw();
}

export function build(onOpen) {
  const card = (name) => {
    const made = element("section", {class: "chart", id: `chart-${name}`});
    $("charts").append(made);
    return made;
  };
  plots = {
    reward: new Plot(card("reward"), {title: "Reward and held-out accuracy", onOpen, onZoom: zoom}),
    ess: new Plot(card("ess"), {title: "Effective sample size", onOpen, onZoom: zoom}),
    ratios: new HeatMap(card("ratios"), {title: "Ratios over time", onOpen}),
    staleness: new Plot(card("staleness"), {title: "Staleness, versions", onOpen, onZoom: zoom}),
    buckets: element("div", {class: "bars", role: "list"}),
    time: new Plot(card("time"), {title: "What a step takes", onOpen, onZoom: zoom}),
  };
  const buckets = card("buckets");
  $("charts").insertBefore(buckets, $("chart-time"));
  buckets.append(element("div", {class: "title"}, element("h2", {}, "Newest step by staleness"),
    element("span", {class: "legend"}, element("span", {}, element("i", {class: "area share"}), "tokens"), element("span", {}, element("i", {class: "area lost"}), "weight lost"))), plots.buckets);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

function redraw() {  // the colours have changed
  for (const plot of Object.values(plots)) if (plot instanceof Plot) plot.shape = "";
  show();
}

export function addAny(onOpen, onChoose) {  // one more chart of whatever metric is chosen
  const card = element("section", {class: "chart", id: "chart-any"});
  $("charts").append(card);
  plots.any = new Plot(card, {title: "Any metric", onOpen, onZoom: zoom});
  const select = element("select", {id: "any", "aria-label": "Any metric", on: {change: () => onChoose(select.value)}});
  select.append(...state.metrics.map((metric) => element("option", {value: metric.name, title: metric.text, selected: metric.name === state.any}, metric.name)));
  plots.any.heading.replaceChildren(select);
}

export const all = () => zoom(null);

export function show() {
  if (!plots) return;
  const log = $("scale").value === "log", lost = (v) => known(v) ? Math.max(1 - v, LEAST_LOST) : null;
  const ofEss = log ? lost : (v) => v, written = log ? (v) => ess(v > LEAST_LOST ? 1 - v : 1) : ess;
  paint(plots.reward, [
    {key: "reward_mean", label: "reward", color: "--blue", write: rate, least: 0},
    {key: "held-out", label: "held-out accuracy", color: "--orange", write: rate, dots: true, thin: true, points: heldOut()},
  ], {enveloped: true});
  paint(plots.ess, [
    {key: "token_ess", label: "token", color: "--blue", write: written, of: ofEss, least: 0, most: 1},
    {key: "sequence_ess", label: "sequence", color: "--violet", write: written, of: ofEss, thin: true},
    {key: "floor_token_ess", label: "floor", color: "--grey", write: written, of: ofEss, thin: true, sparse: true, points: floor()},
  ], {log, enveloped: true});
  stack(plots.staleness, STAGES.staleness, short, {key: "staleness_max", label: "oldest", color: "--grey", thin: true, write: short});
  stack(plots.time, STAGES.time, seconds);
  plots.ratios.show(state.ratios);
  showBuckets();
  if (plots.any) paint(plots.any, [...state.series.keys()].filter((key) => key.split("|")[0] === state.any).slice(0, 6).map((key, i) =>
    ({key, label: key.split("|")[1] || state.any, color: `--c${i + 1}`})));
}

function paint(plot, lines, {log = false, enveloped = false} = {}) {
  const all = [], tables = [];
  const add = (line, x, y) => {
    all.push(line);
    tables.push([x, y]);
  };
  for (const line of lines) {
    const of = line.of || ((v) => v), column = line.points || state.series.get(line.key), other = state.otherSeries.get(line.key);
    if (enveloped && column && column.min && column.min.some((v, i) => v !== column.max[i])) {
      add({...line, quiet: true, key: `${line.key} min`}, column.step, column.min.map(of));
      add({...line, quiet: true, key: `${line.key} max`, band: true}, column.step, column.max.map(of));
    }
    if (column && column.mean.some(known)) add(line, column.step, column.mean.map(of));
    if (other && other.mean.some(known)) add({...line, key: `${line.key} of ${state.other}`, label: `${line.label}, ${state.other}`, dashed: true}, other.step, other.mean.map(of));
  }
  plot.show(all, tables.length ? uPlot.join(tables.map(([x, y]) => [x, y])) : [[]], {log, compared: state.other || ""});
}

function stack(plot, parts, write, line) {
  const columns = parts.map(([key]) => state.series.get(key)), x = columns[0] ? columns[0].step : [];
  const lines = parts.map(([key, label, color], i) => ({key, label, color, area: true, thin: true, write, own: columns[i] ? columns[i].mean : [], least: 0}));
  const sums = parts.map((_, i) => x.map((_, at) => columns.slice(i).reduce((sum, column) => sum + ((column && column.mean[at]) || 0), 0)));
  const most = line && state.series.get(line.key);
  const more = most && most.step.length === x.length ? [[line], [most.mean]] : [[], []];
  plot.show([...lines, ...more[0]], x.length ? [x, ...sums, ...more[1]] : [[]]);
}

function floor() {  // of tokens that are not stale; where there are none for long, what the servers have proved
  const [own, proved] = ["floor_token_ess", "servers.floor_token_ess"].map((name) => state.series.get(name) || {at: [], step: [], mean: []});
  return (proved.at.at(-1) || 0) > (own.at.at(-1) || 0) + 60 || !own.mean.some(known) ? proved : own;
}

function heldOut() {
  const found = {step: [], mean: []};
  for (const result of state.status ? state.status.evaluations : []) {
    const step = stepOf(result.policy_version);
    if (step === null || !known(result.accuracy) || (found.step.length && step <= found.step[found.step.length - 1])) continue;
    found.step.push(step);
    found.mean.push(result.accuracy);
  }
  return found;
}

function showBuckets() {  // how many tokens each bucket has, and how much of the lost weight
  const parts = Object.entries((state.row && state.row.by_staleness) || {}), tokens = parts.reduce((sum, [, part]) => sum + (part.tokens || 0), 0);
  const losses = parts.map(([, part]) => {  // as lost_by in services/verdict.py has it
    const share = part.tokens / tokens, weight = part.weight_share ?? share;
    return share && part.token_ess ? weight ** 2 / (share * part.token_ess) - 2 * weight + share : 0;
  });
  const all = losses.reduce((sum, loss) => sum + loss, 0);
  plots.buckets.replaceChildren(...(parts.length ? parts.map(([name, part], i) => {
    const share = part.tokens / tokens, blame = all ? losses[i] / all : 0;
    const bars = element("span", {class: "pair"}, element("i", {class: "share"}), element("i", {class: "lost"}));
    bars.children[0].style.width = `${100 * share}%`;
    bars.children[1].style.width = `${100 * blame}%`;
    return element("div", {class: "bucket", role: "listitem"}, element("b", {}, name), bars,
      element("span", {class: "said"}, `${percent(share)} of tokens, ${percent(blame)} of weight lost, ESS ${ess(part.token_ess)}`));
  }) : [element("p", {class: "empty"}, "no data yet")]));
}
