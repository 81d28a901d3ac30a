// How the policy ratios are spread, step by step: a column for each stretch of steps, a row for each bin of ratios.

import {AXIS_WIDTH, css} from "./plot.js";
import {element, known, percent} from "./text.js";

const HEIGHT = 190, BOTTOM = 24, TOP = 8, RIGHT = 10, LEAST = 3e-4;  // a share of which a bin is faint
const MARKS = [-1, -.25, -1 / 16, 0, 1 / 16, .25, 1];  // nats
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
    this.zoom = null;
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
    const tall = (HEIGHT - TOP - BOTTOM) / (edges.length + 1), [r, g, b] = css("--heat").split(" ");
    this.axes(pen, width, tall);
    for (const [i, {counts}] of columns.entries()) {
      const [from, to] = this.span(i), all = counts.reduce((sum, n) => sum + n, 0);
      if (to <= AXIS_WIDTH || from >= width - RIGHT) continue;
      const left = Math.max(from, AXIS_WIDTH), wide = Math.min(to, width - RIGHT) - left;
      for (const [bin, n] of counts.entries()) {
        if (!n) continue;
        const strength = Math.max(0, 1 - Math.log(n / all) / Math.log(LEAST));
        pen.fillStyle = `rgb(${r} ${g} ${b} / ${.06 + .94 * strength ** 1.7})`;
        pen.fillRect(left, HEIGHT - BOTTOM - (bin + 1) * tall, wide + .3, tall + .3);
      }
    }
  }

  axes(pen, width, tall) {
    const {edges} = this.data;
    pen.font = `11px ${css("--font")}`;
    pen.fillStyle = css("--soft");
    pen.strokeStyle = css("--line");
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const nats of MARKS) {
      const after = edges.filter((edge) => edge < nats - 1e-9).length, y = HEIGHT - BOTTOM - (after + (nats ? 1 : .5)) * tall;
      pen.fillText(`×${ratio(nats)}`, AXIS_WIDTH - 6, y);
      line(pen, AXIS_WIDTH, y, width - RIGHT, y);
    }
    pen.textBaseline = "alphabetic";
    pen.textAlign = "center";
    const [low, high] = this.steps(), rough = (high - low) / Math.max(2, (width - AXIS_WIDTH) / 80), power = 10 ** Math.floor(Math.log10(rough));
    const apart = Math.max(1, [1, 2, 5, 10].map((m) => m * power).find((m) => m >= rough));
    for (let step = Math.ceil(low / apart) * apart; step <= high; step += apart) {
      const x = this.place(step);
      if (x > AXIS_WIDTH + 4 && x < width - RIGHT - 4) pen.fillText(step.toLocaleString("en"), x, HEIGHT - 6);
    }
  }

  steps() {  // the first and the last that are shown
    const {columns} = this.data;
    return this.zoom || [columns[0].step - this.wide(0), columns[columns.length - 1].step];
  }

  wide(i) {  // how many steps a column is of
    const {columns} = this.data;
    return columns.length === 1 ? 1 : i ? columns[i].step - columns[i - 1].step : columns[1].step - columns[0].step;
  }

  place(step) {
    const [low, high] = this.steps();
    return AXIS_WIDTH + (step - low) / Math.max(1e-9, high - low) * ((this.box.clientWidth || 300) - AXIS_WIDTH - RIGHT);
  }

  span(i) {
    const {step} = this.data.columns[i];
    return [this.place(step - this.wide(i)), this.place(step)];
  }

  point(event) {
    const bins = this.data.edges.length + 1, bin = Math.floor((HEIGHT - BOTTOM - event.offsetY) / ((HEIGHT - TOP - BOTTOM) / bins));
    const column = event.offsetX < AXIS_WIDTH ? -1 : this.data.columns.findIndex((_, i) => this.span(i)[1] > event.offsetX);
    this.look(column < 0 ? null : column, bin >= 0 && bin < bins ? bin : null);
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

function line(pen, ...ends) {
  pen.beginPath();
  pen.moveTo(ends[0], ends[1]);
  pen.lineTo(ends[2], ends[3]);
  pen.stroke();
}
