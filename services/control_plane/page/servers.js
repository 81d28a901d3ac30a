// Rollout servers, with the lag that each is asked for as a dial, and a button that drains it.

import {isOver} from "./summary.js";
import {ask, now, state} from "./store.js";
import {$, count, duration, element, ess, known, put, shape} from "./text.js";

const rows = new Map();  // server id -> its row: kept, so that what is being typed stays
const ALL = "";
const NUMBERS = ["behind", "serves", "time", "floor", "flight", "groups"];
const COLUMNS = ["asked", "behind", "serves", "state", "time", "floor", "flight", "groups", "actions"];

export async function look() {
  const [dial, servers] = await Promise.all([ask("v1/lag"), ask("v1/servers")]);
  state.dial = dial;
  state.servers = Array.isArray(servers) ? servers : servers.servers;
}

export function showServers() {
  const may = !!state.dial && state.dial.may_set && !isOver(), body = $("servers");
  const wanted = state.servers.map((server) => server.server_id);
  for (const [id, row] of rows) if (id !== ALL && !wanted.includes(id)) { row.line.remove(); rows.delete(id); }
  for (const server of state.servers) {
    if (!rows.has(server.server_id)) rows.set(server.server_id, made(server.server_id));
    fill(rows.get(server.server_id), server, may);
  }
  if (!rows.has(ALL)) rows.set(ALL, made(ALL));
  const all = rows.get(ALL);
  put(all.head, state.servers.length ? "all servers" : "no rollout server is there yet");
  dial(all, state.dial ? state.dial.text : "", may);
  all.drain.hidden = true;
  const order = [...wanted.map((id) => rows.get(id).line), all.line];
  if (order.some((line, i) => body.children[i] !== line)) body.replaceChildren(...order);
}

function made(id) {
  const cells = COLUMNS.map((name) => element("td", {class: NUMBERS.includes(name) ? "right" : name}));
  const input = element("input", {"aria-label": `Lag asked of ${id || "all servers"}`, autocomplete: "off", spellcheck: false, required: true, placeholder: "8 or uniform:0:16"});
  const set = element("button", {type: "submit", "aria-label": `Set the lag of ${id || "all servers"}`}, "Set");
  const form = element("form", {class: "dial", on: {submit: (event) => { event.preventDefault(); turn(id, input); }}}, input, set);
  const text = element("span"), drain = element("button", {type: "button", hidden: true, on: {click: () => empty(id, drain)}}, "Drain");
  input.addEventListener("input", () => { form.classList.add("dirty"); put($("dial-said"), ""); });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { form.classList.remove("dirty"); showServers(); }
  });
  const head = element("th", {scope: "row"}), of = Object.fromEntries(COLUMNS.map((name, i) => [name, cells[i]]));
  of.asked.append(form, text);
  of.actions.append(drain);
  return {line: element("tr", {class: id ? "" : "all"}, head, ...cells), head, of, input, form, text, drain};
}

function dial(row, text, may) {
  row.form.hidden = !may;
  row.text.hidden = may;
  put(row.text, text);
  if (!row.form.classList.contains("dirty") && row.input.value !== text) row.input.value = text;
}

function fill(row, server, may) {
  const {of} = row, level = !server.alive ? "bad" : known(server.refused) ? "warn" : "good";
  const member = state.status.members.find((m) => m.component === `rollout:${server.server_id}`) || {};
  if (row.level !== level) row.head.replaceChildren(shape(level), server.server_id);
  row.level = row.head.className = level;
  dial(row, `${known(server.lag_asked) ? server.lag_asked : ""}`, may && server.alive);
  put(row.text, server.alive ? `${server.lag_asked ?? "–"} ${server.arm}`.trim() : "–");
  put(of.behind, known(server.lag_served) ? `${server.lag_served}` : "–");
  put(of.serves, known(server.policy_version) && server.policy_version >= 0 ? `v${server.policy_version}` : "–");
  put(of.state, `${server.draining ? (server.drained ? "drained: " : "draining: ") : ""}${server.state || "serving"}`);
  put(of.time, known(member.since) ? duration(now() - member.since) : "–");
  put(of.floor, server.floor ? ess(server.floor.token_ess) : "–");
  put(of.flight, count(server.in_flight));
  put(of.groups, count(server.groups));
  row.drain.hidden = !may || !server.alive;
  put(row.drain, server.draining ? "Take back" : "Drain");
  row.drain.title = server.draining ? "It is to take new groups again" : "It finishes what it has and takes no new groups";
  row.drain.setAttribute("aria-label", `${row.drain.textContent} ${server.server_id}`);
}

async function turn(id, input) {
  const said = $("dial-said"), wanted = input.value.trim(), lag = /^\d+$/.test(wanted) ? +wanted : wanted;
  try {
    state.dial = await ask(`v1/lag${id ? `?server=${encodeURIComponent(id)}` : ""}`, {method: "PUT", body: JSON.stringify(lag)});
    input.form.classList.remove("dirty");
    said.className = "";
    put(said, `${id || "All servers"}: asked to lag by ${wanted} from the next group on.`);
    await look();
    showServers();
  } catch (error) {
    said.className = "bad";
    put(said, error.message);
  }
}

async function empty(id, button) {
  const back = button.textContent !== "Drain";
  button.disabled = true;
  try {
    await ask(`v1/servers/${encodeURIComponent(id)}/${back ? "undrain" : "drain"}`, {method: "POST"});
    put($("dial-said"), back ? `${id} takes new groups again.` : `${id} finishes what it has and takes no new groups.`);
    $("dial-said").className = "";
    await look();
    showServers();
  } catch (error) {
    $("dial-said").className = "bad";
    put($("dial-said"), error.message);
  }
  button.disabled = false;
}
