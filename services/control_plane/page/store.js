// What the page knows of the run, and how it asks for it. Charts read `series`; everything else reads `status`.

const HELD = "trustbatch-token";  // in this tab alone, for as long as it is open
const POINTS = 240, COLUMNS = 120, LIVE_MOST = 200;  // live points are thinned by asking again
export const NAMES = [
  "reward_mean", "token_ess", "sequence_ess", "floor_token_ess", "lag_mean", "flight_mean", "queue_mean", "staleness_max",
  "compute_s", "wait_s", "publish_s", "policy_version", "servers.floor_token_ess",
];
export const state = {
  status: null, dial: null, servers: [], runs: [], metrics: [], row: null,
  series: new Map(), ratios: null, other: null, otherSeries: new Map(), any: "", range: 0, live: 0, clockSkew: 0,
};
export const now = () => Date.now() / 1000 - state.clockSkew;
export const holdsToken = () => sessionStorage.getItem(HELD) !== null;
export const keepToken = (text) => sessionStorage.setItem(HELD, text.trim().replace(/[^\x21-\x7e]/g, ""));
export const dropToken = () => sessionStorage.removeItem(HELD);

export function request(path, options = {}) {
  const token = sessionStorage.getItem(HELD), headers = {...options.headers};
  if (token) headers.Authorization = `Bearer ${token}`;
  if (options.body) headers["Content-Type"] = "application/json";
  return fetch(path, {cache: "no-store", signal: AbortSignal.timeout(10000), ...options, headers});
}

export async function ask(path, options) {
  const answer = await request(path, options);
  const served = Date.parse(answer.headers.get("date"));
  if (served) state.clockSkew = Math.abs(Date.now() - served) > 3000 ? (Date.now() - served) / 1000 : 0;
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(body.detail || `${answer.status} ${answer.statusText}`), {answered: true, code: answer.status});
  return body;
}

export async function refresh() {  // everything that charts show; the status comes over the live stream
  state.live = 0;
  const names = wanted(), from = since(now());
  const [series, ratios] = await Promise.all([
    ask(`v1/series?${names.map((name) => `name=${name}`).join("&")}&points=${POINTS}${from}`),
    ask(`v1/histograms?name=log_ratio&columns=${COLUMNS}${from}`),
  ]);
  state.series = columns(series);
  state.ratios = ratios;
  const other = state.other && state.runs.find((run) => run.id === state.other);
  state.otherSeries = other ? columns(await ask(
    `v1/series?${names.map((name) => `name=${name}`).join("&")}&points=${POINTS}&run=${encodeURIComponent(other.id)}${since(other.at || now())}`)) : new Map();
}

function wanted() {  // what another release's control plane does not know is not drawn
  return [...NAMES.filter((name) => state.metrics.some((metric) => metric.name === name)), state.any].filter(Boolean);
}

function since(newest) {
  return state.range ? `&since=${Math.floor(newest - state.range)}` : "";
}

function columns(answer) {  // name, or name|label -> arrays that a chart can draw
  const found = new Map();
  for (const {name, label, points} of answer.series) {
    const column = {label, step: [], at: [], mean: [], min: [], max: []};
    for (const point of points) {
      point.step ??= before(found.get("reward_mean"), point.at);  // of servers, which take no steps
      if (point.step === null) continue;
      if (column.step.length && point.step <= column.step[column.step.length - 1]) cut(column, point.step);
      for (const key of ["step", "at", "mean", "min", "max"]) column[key].push(point[key]);
    }
    found.set(label ? `${name}|${label}` : name, column);
  }
  return found;
}

function cut(column, step) {  // a number that comes again begins a restored lineage
  let keep = column.step.length;
  while (keep && column.step[keep - 1] >= step) keep--;
  for (const key of ["step", "at", "mean", "min", "max"]) column[key].length = keep;
}

export function addRow(row) {  // returns false where it is time to ask for the charts again
  state.row = row;
  if (row.skipped) return true;  // it took no step; its number is that of the step before it
  for (const name of [...NAMES, state.any].filter(Boolean)) {
    for (const [key, value] of values(row, name)) {
      if (!state.series.has(key)) state.series.set(key, {label: key.split("|")[1] || null, step: [], at: [], mean: [], min: [], max: []});
      const column = state.series.get(key);
      cut(column, row.step);
      column.step.push(row.step);
      column.at.push(row.at);
      for (const what of ["mean", "min", "max"]) column[what].push(value);
    }
  }
  if (row.log_ratio_counts && row.log_ratio_counts.length && state.ratios) {
    state.ratios.columns = state.ratios.columns.filter((column) => column.step < row.step);
    state.ratios.columns.push({at: row.at, step: row.step, counts: row.log_ratio_counts});
  }
  return ++state.live < LIVE_MOST;
}

function values(row, name) {  // of `by_staleness.token_ess` one for each label
  const [outer, inner] = name.split(".");
  if (outer === "servers") return [];  // not in the rows of steps
  if (!inner) return outer in row ? [[name, row[outer]]] : [];
  return Object.entries(row[outer] || {}).map(([label, part]) => [`${name}|${label}`, part[inner]]);
}

export const newest = (name) => {
  const column = state.series.get(name);
  return column && column.step.length ? column.mean[column.mean.length - 1] : null;
};

export function pace(points = 30) {  // seconds a step: the median of the newest points, so that a pause does not count
  const column = state.series.get("reward_mean"), length = column ? column.step.length : 0, found = [];
  for (let i = Math.max(1, length - points); i < length; i++) found.push((column.at[i] - column.at[i - 1]) / (column.step[i] - column.step[i - 1]));
  return found.length ? found.sort((a, b) => a - b)[found.length >> 1] : null;
}

export const stepAt = (at) => before(state.series.get("reward_mean"), at);

function before(column, at) {  // the last step that was done by then
  let found = null;
  if (column) for (let i = 0; i < column.at.length && column.at[i] <= at; i++) found = column.step[i];
  return found;
}

export function stepOf(version) {  // the step whose weights a version has
  const column = state.series.get("policy_version");
  if (!column || !column.step.length) return null;
  const i = column.mean.findIndex((v) => v >= version);
  return i < 0 ? column.step[column.step.length - 1] : Math.max(0, column.step[i] - 1);
}
