// The live stream, read by fetch() since it must send the token; asks every few seconds where no stream comes through.

import {ask, request, state} from "./store.js";

const SILENT_MS = 40_000;  // the server says something every 15 s
const FIRST_MS = 6_000;  // a proxy that holds the stream back
const POLL_MS = 2_000, LONGEST_MS = 8_000, STREAM_AGAIN_MS = 60_000;
const rest = (ms) => new Promise((done) => setTimeout(done, ms));

export async function follow(told) {  // told: {fresh, status, step, event, connection, closed}
  let lastId = "", failures = 0;
  for (;;) {
    try {
      await told.fresh();
      failures = 0;
      const pause = await stream(told, lastId, (id) => { lastId = id; });
      await poll(told, Date.now() + pause);
    } catch (error) {
      if (error.code === 401) {
        await told.closed();
        continue;
      }
      const wait = Math.min(LONGEST_MS, 1000 * 2 ** failures++) * (.75 + Math.random() / 2);
      told.connection("lost", error, Math.round(wait / 1000));
      await rest(wait);
    }
  }
}

async function stream(told, lastId, remember) {  // milliseconds after which to try again, where there is no stream to be had
  const stop = new AbortController();
  let guard = setTimeout(() => stop.abort(), FIRST_MS), heard = false;
  try {
    const answer = await request("v1/live", {signal: stop.signal, headers: lastId ? {"Last-Event-ID": lastId} : {}});
    if (answer.status === 401) throw Object.assign(new Error("closed"), {code: 401});
    if (answer.status === 404 || answer.status === 501 || !answer.body) return STREAM_AGAIN_MS;
    if (answer.status === 503) return 1000 * answer.headers.get("Retry-After") || STREAM_AGAIN_MS;  // too many listen
    if (!answer.ok) throw Object.assign(new Error((await answer.json()).detail), {answered: true});
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const {value, done} = await reader.read();
      if (done) throw new Error("the control plane ended the stream");
      heard = true;
      told.connection("live");
      clearTimeout(guard);
      guard = setTimeout(() => stop.abort(), SILENT_MS);
      const messages = (text + value).replaceAll("\r\n", "\n").split("\n\n");
      text = messages.pop();
      for (const message of messages) read(message, told, remember);
    }
  } catch (error) {
    if (heard || !stop.signal.aborted) throw error;
    return STREAM_AGAIN_MS;
  } finally {
    clearTimeout(guard);
    stop.abort();
  }
}

function read(message, told, remember) {
  let kind = "message", data = "";
  for (const line of message.split("\n")) {
    const at = line.indexOf(":"), field = at < 0 ? line : line.slice(0, at), value = line.slice(at + 1).replace(/^ /, "");
    if (field === "event") kind = value;
    else if (field === "data") data += data ? `\n${value}` : value;
    else if (field === "id") remember(value);
  }
  if (data && kind in told) told[kind](JSON.parse(data));
}

async function poll(told, until) {  // until it is time to try the stream again
  while (Date.now() < until) {
    const status = await ask("v1/status"), seen = state.row;
    told.connection("polling");
    told.status(status);
    if (status.last && (!seen || status.last.at !== seen.at)) {
      const missing = seen && status.last.step > seen.step ? status.last.step - seen.step : 1;
      for (const row of (await ask(`v1/history?last=${Math.min(500, missing)}`)).steps) told.step(row);
    }
    await rest(POLL_MS);
  }
}
