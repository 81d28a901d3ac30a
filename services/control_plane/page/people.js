// What each process waits for, and what happened.

import {now, state} from "./store.js";
import {$, clock, duration, element, known, shape} from "./text.js";

export function showMembers() {
  const lines = state.status.members.map((member) => element("li", {class: member.alive ? "good" : "bad"},
    shape(member.alive ? "good" : "bad"),
    element("span", {class: "who"}, member.component),
    element("span", {class: "state"}, member.state || (member.alive ? "serving" : "no heartbeat"), member.alive ? "" : element("span", {class: "unseen"}, " (gone)")),
    element("span", {class: "time"}, known(member.since) ? duration(now() - member.since) : ""),
    member.metrics && /^https?:/.test(member.metrics) ? element("a", {href: member.metrics, "aria-label": `metrics of ${member.component}`}, "metrics") : null));
  $("members").replaceChildren(...(lines.length ? lines : [element("li", {class: "empty"}, "no process has reported yet")]));
}

let shown = "";
export function showEvents(onOpen) {
  const {events} = state.status, form = JSON.stringify(events);
  if (form === shown) return;
  shown = form;
  const focused = [...$("events").querySelectorAll("button")].indexOf(document.activeElement);
  $("events").replaceChildren(...(events.length ? events.map((event) => element("li", {},
    element("button", {type: "button", title: "Groups behind the step at that time", on: {click: () => onOpen(event.at)}},
      element("time", {dateTime: new Date(event.at * 1000).toISOString()}, clock(event.at)),
      element("span", {class: "kind"}, event.kind), element("span", {class: "text"}, event.text), element("span", {class: "by"}, event.by)))) : [element("li", {class: "empty"}, "nothing yet")]));
  if (focused >= 0 && $("events").querySelectorAll("button")[focused]) $("events").querySelectorAll("button")[focused].focus();
}
