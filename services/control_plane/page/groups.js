// The groups behind a step: prompt, completions, every token coloured by how its probability has changed since it was drawn.

import {ask} from "./store.js";
import {$, count, element, ess, known, percent, rate, short} from "./text.js";

const BOUNDS = [.02, .1, .3, .7, 1.5];  // nats
const dialog = $("groups"), body = $("groups-body");
let opened = 0;

$("groups-close").addEventListener("click", () => dialog.close());

export async function openGroups(step) {
  const mine = ++opened;
  $("groups-title").textContent = `Groups behind step ${count(step)}`;
  body.replaceChildren(element("p", {class: "empty", role: "status"}, "Asking for the groups of this step."));
  if (!dialog.open) dialog.showModal();
  try {
    const {groups} = await ask(`v1/groups?step=${step}`);
    if (mine !== opened) return;
    if (!groups.length) await none(step, mine);
    else body.replaceChildren(legend(), ...groups.map((group) => one(group)));
    if (groups.length) body.querySelector(".token")?.setAttribute("tabindex", "0");
  } catch (error) {
    if (mine === opened) body.replaceChildren(element("p", {class: "failed", role: "alert"}, `The groups cannot be shown: ${error.message}`));
  }
}

async function none(step, mine) {  // examples are bounded: only some steps have them
  const {groups} = await ask("v1/groups");
  const steps = [...new Set(groups.map((group) => group.step))].sort((a, b) => Math.abs(a - step) - Math.abs(b - step)).slice(0, 5);
  if (mine !== opened) return;
  body.replaceChildren(
    element("p", {class: "empty"}, steps.length ? `No group of step ${count(step)} is kept (learner.examples_bytes bounds them). The nearest steps of which some are:`
      : "No groups are kept: the learner has not trained yet, or learner.examples_bytes is 0."),
    element("p", {class: "choices"}, ...steps.map((other) => element("button", {type: "button", on: {click: () => openGroups(other)}}, `step ${count(other)}`))));
}

function legend() {
  const marks = [...BOUNDS.keys()].reverse().map((i) => element("i", {class: `down${i + 1}`}));
  const more = [...BOUNDS.keys()].map((i) => element("i", {class: `up${i + 1}`}));
  return element("p", {class: "token-legend"}, "less likely now ", ...marks, element("i", {class: "same"}), ...more, " more likely now than when drawn. Point at a token, or walk with the arrow keys, for its numbers.");
}

function one(group) {
  const facts = [`prompt ${count(group.prompt_index)}`, group.environment, `from ${group.server_id}`, `kept for its ${[group.why].flat().join(" and ")}`,
    `${percent(group.weight_share)} of the step's weight`, `reward ${rate(mean(group.rewards))}`];
  return element("article", {class: "group"},
    element("h3", {}, `Group ${group.group_id}`),
    element("p", {class: "facts"}, facts.join(" · ")),
    element("pre", {class: "prompt"}, group.prompt),
    ...group.trajectories.map((trajectory, i) => completion(trajectory, i)));
}

function completion(trajectory, number) {
  const logs = trajectory.log_ratio, tell = element("p", {class: "tell", role: "status"}, summary(trajectory));
  const tokens = trajectory.tokens.map((text, i) => element("span", {class: `token ${shade(logs[i])}`, tabIndex: -1, "data-i": i}, visible(text)));
  const line = element("p", {class: "tokens", role: "group", "aria-label": `Completion ${number + 1}`}, ...tokens);
  const look = (node) => {
    const i = Number(node.dataset.i);
    const ratio = known(logs[i]) ? `ratio ×${short(Math.exp(logs[i]))} · log ratio ${short(logs[i])} nats` : "not trained on";
    tell.textContent = `token ${trajectory.start + i + 1}: ${JSON.stringify(trajectory.tokens[i])} · ${ratio} · drawn by version ${version(trajectory, i)}`;
  };
  line.addEventListener("mouseover", (event) => event.target.classList.contains("token") && look(event.target));
  line.addEventListener("mouseleave", () => { tell.textContent = summary(trajectory); });
  line.addEventListener("focusin", (event) => look(event.target));
  line.addEventListener("keydown", (event) => walk(event, tokens));
  if (tokens.length) tokens[0].tabIndex = 0;
  return element("div", {class: "completion"},
    element("p", {class: "reward"}, element("b", {}, rate(trajectory.reward)), element("span", {}, "reward")), element("div", {}, line, tell));
}

function walk(event, tokens) {  // one stop of the Tab key for a completion, arrows within
  const at = tokens.indexOf(event.target), to = {ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tokens.length - 1}[event.key];
  if (to === undefined || !tokens[to]) return;
  tokens[at].tabIndex = -1;
  tokens[to].tabIndex = 0;
  tokens[to].focus();
  event.preventDefault();
}

function summary(trajectory) {
  const logs = trajectory.log_ratio.filter(known), ratios = logs.map(Math.exp), sum = logs.reduce((a, b) => a + b, 0);
  const drawn = trajectory.versions.map(([number, start, end]) => `${number} (${count(end - start)})`).join(", ");
  const cut = trajectory.length > trajectory.tokens.length ? `, ${count(trajectory.tokens.length)} shown` : "";
  return `${count(trajectory.length)} tokens${cut} of version ${drawn} · ratio of all ×${short(Math.exp(sum))}` +
    `${ratios.length ? ` · ESS ${ess(mean(ratios) ** 2 / mean(ratios.map((r) => r * r)))}` : ""} · ${percent(trajectory.weight_share)} of the step's weight · ended by ${trajectory.finish_reason}`;
}

function version(trajectory, i) {
  const span = trajectory.versions.find(([, start, end]) => start <= trajectory.start + i && trajectory.start + i < end);
  return span ? span[0] : "unknown";
}

const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
const visible = (text) => text.replaceAll("\n", "⏎\n").replaceAll("\t", "⇥\t") || "∅";

function shade(log) {
  if (!known(log)) return "unknown";
  const size = BOUNDS.filter((bound) => Math.abs(log) >= bound).length;
  return size ? `${log > 0 ? "up" : "down"}${size}` : "same";
}
