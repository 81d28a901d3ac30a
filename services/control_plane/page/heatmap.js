// How the policy ratios are spread, step by step: a column for each stretch of steps, a row for each bin of ratios.

import {AXIS_WIDTH, css} from "./plot.js";
import {element, known, percent} from "./text.js";

const HEIGHT = 190, BOTTOM = 24, TOP = 8, RIGHT = 10, LEAST = 1e-5;  // shares below are not drawn
const MARKS = [-4, -1, -.25, -1 / 16, -1 / 256, 1 / 256, 1 / 16, .25, 1, 4];  // nats
const ratio = (nats) => {
  const v = Math.exp(nats);
  return v >= 10 ? v.toFixed(0) : v.toPrecision(v >= 1 ? 3 : 2).replace("0.", ".").replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
};

export class HeatMap {
  constructor(card, {title, onOpen}) {
    this.onOpen = onOpen;
    this.said = element("span", {class: "legend"});
    this.canvas = element("canvas", {height: HEIGHT});
    this.box = element("div", {class: "plot heat", tabIndex: 0, role: "slider", "aria-label": `${title}, by step`}, this.canvas);
    this.empty = element("p", {class: "empty"}, "no data yet");
    const scale = element("span", {class: "scale"}, "few", element("i", {}), "many tokens");
    card.append(element("div", {class: "title"}, element("h2", {}, title), scale, this.said), this.box, this.empty);
    this.column = null;
    this.canvas.addEventListener("mousemove", (event) => this.point(event));
    this.canvas.addEventListener("mouseleave", () => this.look(null, null));
    this.canvas.addEventListener("click", () => this.open());
    this.box.addEventListener("keydown", (event) => this.key(event));
    this.box.addEventListener("blur", () => this.look(null, null));
    new ResizeObserver(() => this.data && this.draw()).observe(this.box);
  }

  show(data) {
    this.data = data && data.columns.length ? data : null;
    this.empty.hidden = !!this.data;
    this.box.hidden = !this.data;
    this.said.hidden = !this.data;
    if (!this.data) return;
    this.draw();
    this.look(this.column, this.bin);
  }

  draw() {
    const {columns, edges} = this.data, scale = devicePixelRatio || 1, width = this.box.clientWidth || 300;
    this.canvas.width = width * scale;
    this.canvas.height = HEIGHT * scale;
    const pen = this.canvas.getContext("2d");
    pen.scale(scale, scale);
    const bins = edges.length + 1, tall = (HEIGHT - TOP - BOTTOM) / bins, [r, g, b] = css("--heat").split(" ");
    for (const [i, {counts}] of columns.entries()) {
      const [from, to] = this.span(i), all = counts.reduce((sum, n) => sum + n, 0);
      for (const [bin, n] of counts.entries()) {
        if (!n || n / all < LEAST) continue;
        pen.fillStyle = `rgb(${r} ${g} ${b} / ${1 - .92 * Math.log10(n / all) / Math.log10(LEAST)})`;
        pen.fillRect(from, HEIGHT - BOTTOM - (bin + 1) * tall, to - from, tall + .3);
      }
    }
    this.axes(pen, width, tall);
  }

  axes(pen, width, tall) {
    const {columns, edges} = this.data;
    pen.font = `11px ${css("--font")}`;
    pen.fillStyle = css("--soft");
    pen.strokeStyle = css("--line");
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    let free = Infinity;
    for (const nats of MARKS) {
      const bin = edges.findIndex((edge) => Math.abs(edge - nats) < 1e-9), y = HEIGHT - BOTTOM - (bin + 1) * tall;
      if (bin < 0 || free - y < 13) continue;
      free = y;
      pen.fillText(`×${ratio(nats)}`, AXIS_WIDTH - 6, y);
      pen.beginPath();
      pen.moveTo(AXIS_WIDTH, y);
      pen.lineTo(width - RIGHT, y);
      pen.stroke();
    }
    pen.textBaseline = "alphabetic";
    const shown = Math.max(2, Math.floor((width - AXIS_WIDTH) / 90));
    for (let i = 0; i < shown; i++) {
      const column = Math.round(i * (columns.length - 1) / (shown - 1)), [from, to] = this.span(column);
      if (i && column === Math.round((i - 1) * (columns.length - 1) / (shown - 1))) continue;
      pen.textAlign = i === 0 ? "left" : i === shown - 1 ? "right" : "center";
      pen.fillText(columns[column].step.toLocaleString("en"), i === 0 ? from : i === shown - 1 ? to : (from + to) / 2, HEIGHT - 6);
    }
  }

  span(i) {  // columns begin where the one before ends: from the first step to the last
    const wide = ((this.box.clientWidth || 300) - AXIS_WIDTH - RIGHT) / this.data.columns.length;
    return [AXIS_WIDTH + i * wide, AXIS_WIDTH + (i + 1) * wide];
  }

  point(event) {
    const [from, to] = this.span(0), bins = this.data.edges.length + 1;
    const column = Math.floor((event.offsetX - from) / (to - from)), bin = Math.floor((HEIGHT - BOTTOM - event.offsetY) / ((HEIGHT - TOP - BOTTOM) / bins));
    this.look(column >= 0 && column < this.data.columns.length ? column : null, bin >= 0 && bin < bins ? bin : null);
  }

  key(event) {
    const most = this.data.columns.length - 1, at = this.column ?? most;
    const to = {ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - 10, PageDown: at + 10, Home: 0, End: most}[event.key];
    if (event.key === "Enter" || event.key === " ") this.open();
    else if (to === undefined) return;
    else this.look(Math.min(most, Math.max(0, to)), null);
    event.preventDefault();
  }

  open() {
    this.onOpen(this.data.columns[this.column ?? this.data.columns.length - 1].step);
  }

  look(column, bin) {
    this.column = column !== null && this.data && column < this.data.columns.length ? column : null;
    this.bin = bin;
    if (!this.data) return;
    const {columns, edges} = this.data, chosen = columns[this.column ?? columns.length - 1];
    const all = chosen.counts.reduce((sum, n) => sum + n, 0), share = (from, to) => chosen.counts.slice(from, to).reduce((sum, n) => sum + n, 0) / all;
    const near = [edges.findIndex((e) => e >= -.25), edges.findIndex((e) => e >= .25)].map((i) => i + 1);
    const name = !known(bin) || this.column === null ? `within ×${ratio(-.25)}…×${ratio(.25)} ${percent(share(near[0], near[1]))}`
      : `${bin === 0 ? "below" : `×${ratio(edges[bin - 1])}…`}${bin === edges.length ? "and more" : `×${ratio(edges[bin])}`} ${percent(share(bin, bin + 1))}`;
    this.said.textContent = `step ${chosen.step.toLocaleString("en")}: ${name}`;
    this.box.setAttribute("aria-valuemin", columns[0].step);
    this.box.setAttribute("aria-valuemax", columns[columns.length - 1].step);
    this.box.setAttribute("aria-valuenow", chosen.step);
    this.box.setAttribute("aria-valuetext", this.said.textContent);
  }
}
