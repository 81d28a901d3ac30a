// May the batch be trusted, and why not: the verdict, the four things that it rests on, and the run's numbers.

import {newest, pace, state} from "./store.js";
import {$, WORDS, bytes, count, duration, element, ess, known, percent, put, rate, shape, short} from "./text.js";

export const isOver = () => !!state.status && ["finished", "failed", "stopped"].includes(state.status.phase);
const PARTS = {
  ess: ["Effective sample size", (n) => ess(n.token_ess), (n) => `warns below ${ess(n.warn_below)}, bad below ${ess(n.bad_below)}`],
  floor: ["Numerics floor", (n) => ess(n.token_ess), (n) => known(n.mean_nats) ? `${short(n.mean_nats)} nats a token on the same weights` : "ESS on the same weights"],
  staleness: ["Staleness", (n) => short(n.mean), (n) => `versions; oldest ${n.max}; lag ${short(n.lag)}, flight ${short(n.flight)}, queue ${short(n.queue)}`],
  concentration: ["Weight on 1 % of tokens", (n) => percent(n.weight_share), (n, level) => n.mostly && level !== "good" ? `mostly ${n.mostly}` : "1 % where all count alike"],
};

export function showVerdict() {
  const {status} = state, {level, sentence, parts} = status.verdict;
  say(level, WORDS[level], sentence);
  document.title = `${WORDS[level]}: ${status.run_id} · trustbatch`;
  put($("run"), status.run_id);
  put($("phase"), status.paused && !isOver() ? "paused" : status.phase);
  showController(status.controller);
  $("parts").replaceChildren(...Object.keys(PARTS).filter((name) => parts[name]).map((name) => {
    const [title, value, note] = PARTS[name], part = parts[name];
    const number = element("dd", {class: `value ${part.level}`}, shape(part.level), value(part.numbers), element("span", {class: "unseen"}, WORDS[part.level]));
    return element("div", {title: part.sentence, id: `part-${name}`}, element("dt", {}, title), number, element("dd", {class: "note"}, note(part.numbers, part.level)));
  }));
}

const ACTS = {watching: "idle", narrowed: "warn", synced: "warn", paused: "bad"};
function showController(controller) {  // what acts by itself, where it is switched on
  $("controller").hidden = !controller;
  if (!controller) return;
  $("controller").className = ACTS[controller.level] || "idle";
  $("controller").replaceChildren(shape($("controller").className), element("b", {}, "Controller"), ` ${controller.sentence}`);
}

export function say(level, word, sentence) {
  $("verdict").className = level;
  if ($("shape").dataset.level !== level) $("shape").replaceChildren(shape(level));
  $("shape").dataset.level = level;
  put($("level"), word);
  put($("sentence"), sentence);
}

export function showProgress() {
  const {status} = state, step = status.last ? status.last.step : 0, seconds = pace();
  $("progress").hidden = !status.last;
  put($("steps"), `step ${count(step)} of ${count(status.steps_total)}`);
  $("bar").max = status.steps_total;
  $("bar").value = step;
  put($("eta"), isOver() || status.paused || seconds === null || status.verdict.level === "bad" ? "" : `about ${duration(seconds * (status.steps_total - step))} left`);
}

export function showNumbers() {
  const {status} = state, last = state.row || status.last || {}, held = status.evaluations, {backlog} = status;
  const result = held[held.length - 1], takes = (last.compute_s || 0) + (last.wait_s || 0) + (last.publish_s || 0);
  const seconds = pace(), letters = backlog.dead_letters;
  const numbers = [
    ["Reward", rate(last.reward_mean), known(newest("reward_mean")) ? "newest step" : "no step yet"],
    ["Held-out accuracy", result ? rate(result.accuracy) : "–", result ? (held.length > 1 ? `${rate(held[0].accuracy)} at the start` : `version ${result.policy_version}`)
      : status.pending_evaluations.length ? "being measured" : "not measured yet"],
    ["Trained tokens/s", takes ? count(last.tokens / (seconds || takes)) : "–", seconds ? `${short(seconds)} s a step` : "newest step"],
    ["Backlog", count(backlog.unapplied), `groups; ${bytes(backlog.bytes)} in Redis`],
    ["Policy version", status.latest ? count(status.latest.policy_version) : "–", "newest published"],
    ["Dead letters", count(letters), letters ? "trustbatch dead-letters shows them" : "nothing was refused"],
  ];
  $("numbers").replaceChildren(...numbers.map(([title, value, note]) =>
    element("div", {}, element("dt", {}, title), element("dd", {class: "value"}, value), element("dd", {class: "note"}, note))));
}
