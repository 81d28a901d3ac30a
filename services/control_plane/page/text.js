// How numbers are written, and how elements are made: text from processes is never HTML.

export const $ = (id) => document.getElementById(id);
export const known = (v) => v !== null && v !== undefined && !Number.isNaN(v);

export function element(tag, properties, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name === "class") made.className = value;
    else if (name === "on") for (const [kind, act] of Object.entries(value)) made.addEventListener(kind, act);
    else if (name in made && !name.includes("-")) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => known(child) && child !== false));
  return made;
}

export function put(node, text) {  // only where it changed: a screen reader hears no repetition
  if (node.textContent !== text) node.textContent = text;
}

const bare = (text) => text.replace(/^(-?)0\./, "$1.");

export function ess(v) {  // .93, .9993, 1: as many digits as say something
  if (!known(v)) return "–";
  if (v > 1 - 5e-7) return "1";
  return bare(v.toFixed(Math.max(2, -Math.floor(Math.log10(1 - v)))));
}

export function short(v) {  // three significant digits
  if (!known(v)) return "–";
  const size = Math.abs(v);
  if (v === 0) return "0";
  if (size < 1e-3 || size >= 1e6) return v.toExponential(1).replace("e-", "e−").replace("e+", "e");
  if (size >= 1000) return Math.round(v).toLocaleString("en");
  if (Number.isInteger(v)) return `${v}`;
  return bare(v.toPrecision(3)).replace("-", "−");
}

export const count = (v) => known(v) ? Math.round(v).toLocaleString("en") : "–";
export const rate = (v) => !known(v) ? "–" : Number.isInteger(v) ? `${v}` : bare(v.toFixed(3));
export const percent = (v) => !known(v) ? "–" : v === 0 ? "0 %" : v < .0001 ? "< .01 %" : `${bare((100 * v).toPrecision(v >= 1 ? 3 : 2))} %`;

export function duration(s) {
  if (!known(s) || !isFinite(s)) return "–";
  s = Math.max(0, Math.round(s));
  if (s >= 3600) return `${Math.floor(s / 3600)} h ${String(Math.floor(s % 3600 / 60)).padStart(2, "0")} min`;
  return s >= 60 ? `${Math.floor(s / 60)} min ${String(s % 60).padStart(2, "0")} s` : `${s} s`;
}

export function bytes(n) {
  if (n >= 2 ** 30) return `${(n / 2 ** 30).toFixed(1)} GiB`;
  return n >= 2 ** 20 ? `${(n / 2 ** 20).toFixed(1)} MiB` : `${Math.ceil(n / 1024)} KiB`;
}

export const clock = (at) => new Date(at * 1000).toLocaleTimeString("en-GB");

const SHAPES = {  // told apart without colour: disc with a tick, triangle, octagon, ring
  good: ["M12 1.5a10.5 10.5 0 1 0 0 21 10.5 10.5 0 0 0 0-21z", "m7 12.5 3.4 3.4L17 9"],
  warn: ["M12 2 23 21.5H1z", "M12 9v6M12 18v.6"],
  bad: ["M7.5 1.5h9l6 6v9l-6 6h-9l-6-6v-9z", "m8 8 8 8m0-8-8 8"],
  idle: ["M12 2.5a9.5 9.5 0 1 0 0 19 9.5 9.5 0 0 0 0-19z", "M9.5 8.5v7M14.5 8.5v7"],
};
export const WORDS = {good: "Good", warn: "Warning", bad: "Bad", idle: "Idle"};

export function shape(level) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", `shape-${level}`);
  for (const [i, line] of SHAPES[level].entries()) {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", line);
    path.setAttribute("class", i ? "sign" : "body");
    svg.append(path);
  }
  return svg;
}
