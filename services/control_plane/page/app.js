// Puts the parts together: what comes over the live stream is shown, what is clicked is asked for.

import {addAny, all, build, show as showCharts} from "./charts.js";
import {openGroups} from "./groups.js";
import {follow} from "./live.js";
import {showEvents, showMembers} from "./people.js";
import {look, showServers} from "./servers.js";
import {addRow, ask, dropToken, holdsToken, keepToken, refresh, request, state, stepAt} from "./store.js";
import {isOver, say, showNumbers, showProgress, showVerdict} from "./summary.js";
import {$, duration, element, put} from "./text.js";

const RANGES = [["whole run", 0], ["last 24 hours", 86400], ["last 6 hours", 21600], ["last hour", 3600], ["last 10 minutes", 600]];
const LOOK_EVERY_MS = 3000, RUNS_EVERY_MS = 30000;
let runsAt = 0, planned = false, failing = false, lostAt = 0, ticking = null, linked = "live";

function plan() {  // at most one drawing for each frame
  if (planned) return;
  planned = true;
  (document.hidden ? setTimeout : requestAnimationFrame)(() => {
    planned = false;
    if (state.status && !failing && !lostAt) show();
  });
}

function show() {
  const {status} = state, may = !!state.dial && state.dial.may_set;
  showVerdict();
  showProgress();
  showNumbers();
  showCharts();
  showMembers();
  showServers();
  showEvents((at) => {
    const step = stepAt(at);
    openGroups(step === null ? 0 : step);
  });
  $("toggle").hidden = !may;
  $("toggle").disabled = isOver();
  put($("toggle"), status.paused ? "Resume" : "Pause");
  put($("seen"), `updated ${new Date().toLocaleTimeString("en-GB")}`);
  document.body.classList.remove("waiting", "lost");
  if (state.series.size && !performance.getEntriesByName("drawn").length) performance.mark("drawn");
}

async function lookAround(force) {  // what the stream does not carry
  await look();
  if (!force && Date.now() - runsAt < RUNS_EVERY_MS) return;
  runsAt = Date.now();
  state.runs = (await ask("v1/runs").catch(() => state)).runs;  // other runs do not stand before this one
  const names = ["", ...state.runs.filter((run) => !run.own).map((run) => run.id)];
  if (names.length !== $("compare").options.length || names.some((name, i) => $("compare").options[i].value !== name)) {
    $("compare").replaceChildren(...names.map((name) => element("option", {value: name, selected: name === state.other}, name || "no other run")));
  }
}

setInterval(async () => {
  if (!state.status || lostAt || document.hidden) return;
  try {
    await lookAround(false);
    if (failing) link(linked);
    failing = false;
    plan();
  } catch (error) {  // the stream is silent while Redis is away
    failing = error.answered && error.code !== 401;
    if (!failing) return;
    link("lost", "no data");
    trouble(error, LOOK_EVERY_MS / 1000);
  }
}, LOOK_EVERY_MS);

const told = {
  async fresh() {
    const status = await ask("v1/status");
    await metrics();
    await Promise.all([refresh(), lookAround(true)]);
    state.status = status;
    state.row = status.last;
    plan();
  },
  status(next) {
    if (state.status && next.run_id !== state.status.run_id) location.reload();
    state.status = next;
    plan();
  },
  step(row) {
    if (!addRow(row)) refresh().then(plan, () => {});
    plan();
  },
  event() { plan(); },  // the next status has it
  connection(how, error, seconds) {
    clearInterval(ticking);
    link(how, error && error.answered && "no data");  // the control plane is there, what it asks is not
    if (how !== "lost") {
      if (lostAt) plan();
      lostAt = 0;
      return;
    }
    lostAt = lostAt || Date.now();
    const until = Date.now() + 1000 * seconds, tick = () => trouble(error, Math.max(0, Math.ceil((until - Date.now()) / 1000)));
    ticking = setInterval(tick, 1000);
    tick();
  },
  closed() {
    const wrong = holdsToken();
    dropToken();
    say("bad", "Closed", wrong ? "This token is not known here." : "This control plane asks for a token.");
    put($("link"), "closed");
    $("login").hidden = false;
    $("token").focus();
    return new Promise((done) => {
      $("login").onsubmit = (event) => {
        event.preventDefault();
        keepToken($("token").value);
        $("token").value = "";
        $("login").hidden = true;
        say("idle", "Connecting", "Asking the control plane where the run stands.");
        done();
      };
    });
  },
};

const LINKS = {live: "live", polling: "asking every 2 s", lost: "disconnected"};
function link(how, words) {
  if (how !== "lost") linked = how;
  put($("link"), words || LINKS[how]);
  $("link").className = `pill ${how}`;
}

function trouble(error, seconds) {
  document.body.classList.add("lost");
  $("toggle").disabled = true;
  const again = seconds ? `Trying again in ${seconds} s.` : "Trying again now.";
  const silent = duration((Date.now() - lostAt) / 1000);
  if (error.answered) say("bad", "No data", `${error.message} ${again}`);
  else say("bad", "Disconnected", `The control plane has not answered for ${silent}. The run may go on without it. ${again}`);
}

async function metrics() {
  if (state.metrics.length) return;
  state.metrics = (await ask("v1/metrics")).metrics;
  if (!state.metrics.length) return;
  state.any = (state.metrics.find((metric) => metric.name === "by_staleness.token_ess") || state.metrics[0]).name;
  addAny(openGroups, (name) => {
    state.any = name;
    refresh().then(plan, () => {});
  });
}

$("range").append(...RANGES.map(([name, value]) => element("option", {value}, name)));
$("view").addEventListener("submit", (event) => event.preventDefault());
$("range").addEventListener("change", () => {
  state.range = Number($("range").value);
  all();
  refresh().then(plan, () => {});
});
$("compare").append(element("option", {value: ""}, "no other run"));
$("compare").addEventListener("change", () => {
  state.other = $("compare").value || null;
  refresh().then(plan, () => {});
});
$("scale").addEventListener("change", plan);
$("toggle").addEventListener("click", async () => {
  $("toggle").disabled = true;
  try {
    await ask(state.status.paused ? "v1/resume" : "v1/pause", {method: "POST"});
    state.status = await ask("v1/status");
  } catch (error) {
    put($("dial-said"), error.message);
  }
  plan();
});
document.querySelector("footer").addEventListener("click", async (event) => {
  const link = event.target.closest("a");
  if (!link || !holdsToken()) return;
  event.preventDefault();  // a link carries no token, and an address must not
  const text = await (await request(link.getAttribute("href"))).text();
  window.open(URL.createObjectURL(new Blob([text], {type: "text/plain"})), "_blank", "noopener");
});

build(openGroups);
follow(told);
