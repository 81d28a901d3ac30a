// One chart on uPlot: lines of any number of series, a comparison run dashed, numbers in the legend, keys and clicks.

import {element, known, put, short} from "./text.js";

const HEIGHT = 190, DOUBLE_MS = 250;  // for a second click, which means something else
export const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
export const AXIS_WIDTH = 54;

export class Plot {
  // lines: [{key, label, color, write, band, area, dots}], data: {x, ys: [[...]]}
  constructor(card, {title, onOpen, onZoom}) {
    this.title = title;
    this.onOpen = onOpen;
    this.onZoom = onZoom;
    this.zoom = null;
    this.card = card;
    this.legend = element("span", {class: "legend"});
    this.heading = element("h2", {}, title);
    this.box = element("div", {class: "plot", tabIndex: 0, role: "slider", "aria-label": `${title}, by step`});
    this.empty = element("p", {class: "empty"}, "no data yet");
    card.append(element("div", {class: "title"}, this.heading, this.legend), this.box, this.empty);
    this.box.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.chart && this.chart.setSize({width: this.box.clientWidth, height: HEIGHT})).observe(this.box);
    this.shape = "";
  }

  show(lines, data, {log = false, compared = ""} = {}) {
    const filled = data[0].length > 0;
    this.empty.hidden = filled;
    this.box.hidden = !filled;
    this.lines = lines;
    if (!filled) {
      this.legend.replaceChildren();
      return;
    }
    const form = JSON.stringify([lines.map((line) => [line.key, line.label, line.dashed]), log, compared]);
    if (form !== this.shape || !this.chart) this.build(lines, data, log, form);
    else this.chart.setData(data, !this.zoom);
    this.say();
  }

  build(lines, data, log, form) {
    if (this.chart) this.chart.destroy();
    this.shape = form;
    const soft = css("--soft"), grid = {stroke: css("--line"), width: 1}, font = `11px ${css("--font")}`;
    const axis = {stroke: soft, font, grid, ticks: {show: false}, gap: 4};
    this.chart = new uPlot({
      width: this.box.clientWidth || 300, height: HEIGHT, legend: {show: false}, padding: [8, 10, 0, 0],
      cursor: {sync: {key: "steps", setSeries: false}, drag: {x: true, y: false, setScale: false}, y: false, points: {size: 7}},
      scales: {x: {time: false}, y: log ? {distr: 3, dir: -1, range: (u, low, high) => [Math.max(low || 1e-6, 1e-6), 1]} : {range: ranged(lines)}},
      axes: [
        {...axis, size: 24, space: 70, values: (u, splits) => splits.map((v) => Number.isInteger(v) ? v.toLocaleString("en") : "")},
        {...axis, size: AXIS_WIDTH, space: 30, splits: log ? decades : undefined, values: (u, splits) => splits.map((v) => log ? decade(v) : tick(v))},
      ],
      series: [{}, ...lines.map((line) => drawn(line))],
      bands: lines.flatMap((line, i) => line.band ? [{series: [i + 1, i], fill: css(line.color) + "26"}] : []),
      hooks: {setCursor: [() => this.say()], setSelect: [() => this.selected()]},
    }, data, this.box);
    if (this.zoom) this.look(this.zoom);
    this.chart.over.addEventListener("mousedown", () => { this.dragged = false; });
    this.chart.over.addEventListener("click", () => {
      clearTimeout(this.clicked);
      if (!this.dragged) this.clicked = setTimeout(() => this.open(), DOUBLE_MS);
    });
    this.chart.over.addEventListener("dblclick", () => {
      clearTimeout(this.clicked);
      this.onZoom(null);
    });
  }

  look(zoom) {  // the steps that are shown; null: all
    this.zoom = zoom;
    if (!this.chart) return;
    const x = this.chart.data[0], [min, max] = zoom || [x[0], x[x.length - 1]];
    this.chart.setScale("x", {min, max});
  }

  selected() {
    const {left, width} = this.chart.select;
    if (width < 4) return;
    this.dragged = true;
    this.onZoom([left, left + width].map((place) => this.chart.posToVal(place, "x")));
    this.chart.setSelect({left: 0, width: 0, top: 0, height: 0}, false);
  }

  at() {  // the index under the cursor, else the newest
    const index = this.chart.cursor.idx;
    return known(index) ? index : this.chart.data[0].length - 1;
  }

  step() {
    return this.chart.data[0][this.at()];
  }

  open() {
    this.onOpen(Math.round(this.step()));
  }

  key(event) {
    const {length} = this.chart.data[0];
    const to = {ArrowLeft: this.at() - 1, ArrowRight: this.at() + 1, PageUp: this.at() - 20, PageDown: this.at() + 20, Home: 0, End: length - 1}[event.key];
    if (event.key === "Enter" || event.key === " ") this.open();
    else if (event.key === "+" || event.key === "-") this.closer(event.key === "+" ? 1 / 4 : 1);
    else if (event.key === "Escape" && this.zoom) this.onZoom(null);
    else if (to === undefined) return;
    else {
      const index = Math.min(length - 1, Math.max(0, to));
      this.chart.setCursor({left: this.chart.valToPos(this.chart.data[0][index], "x"), top: HEIGHT / 3});
    }
    event.preventDefault();
  }

  closer(part) {  // half of what is shown, or twice, around the cursor
    const {min, max} = this.chart.scales.x, reach = (max - min) * part;
    this.onZoom([this.step() - reach, this.step() + reach]);
  }

  say() {  // the legend's numbers, and the same for who does not see the chart
    if (!this.chart) return;
    const index = this.at(), {data} = this.chart, shown = this.lines.filter((line) => !line.quiet);
    if (this.legend.children.length !== shown.length || this.named !== this.shape) {
      this.named = this.shape;
      this.legend.replaceChildren(...shown.map((line) => {
        const mark = element("i", {class: line.dashed ? "dashed" : line.area ? "area" : ""});
        mark.style.color = css(line.color);
        return element("span", {}, mark, element("span", {}, line.label), element("b", {}));
      }));
    }
    const texts = shown.map((line) => {
      const value = line.own ? line.own[index] : last(data[this.lines.indexOf(line) + 1], index, line.dots || line.dashed || line.sparse);
      return known(value) ? (line.write || short)(value) : "–";
    });
    texts.forEach((text, i) => put(this.legend.children[i].lastChild, text));
    const step = Math.round(this.step());
    this.box.setAttribute("aria-valuemin", data[0][0]);
    this.box.setAttribute("aria-valuemax", data[0][data[0].length - 1]);
    this.box.setAttribute("aria-valuenow", step);
    this.box.setAttribute("aria-valuetext", `step ${step}: ${shown.map((line, i) => `${line.label} ${texts[i]}`).join(", ")}`);
  }
}

const last = (column, index, sparse) => {  // of a line with few points, the newest one so far
  while (sparse && index > 0 && !known(column[index])) index--;
  return column[index];
};

const tick = (v) => known(v) ? short(+v.toPrecision(6)).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "") : "";
const decades = (u, axis, low, high) => Array.from({length: 10}, (_, i) => 10 ** -i).filter((v) => v >= low * .999 && v <= high * 1.001);
const decade = (v) => !v ? "" : v > .5 ? "0" : (1 - v).toFixed(Math.round(-Math.log10(v))).replace("0.", ".");  // 1 - ESS of .1 is an ESS of .9

function ranged(lines) {
  const {least, most} = lines[0];
  return (u, low, high) => {
    if (!known(low)) return [0, 1];
    let [from, to] = uPlot.rangeNum(known(least) ? Math.min(least, low) : low, known(most) ? Math.max(most, high) : high, .08, true);
    if (known(least) && low >= least) from = least;
    if (known(most) && high <= most) to = most;
    return [from, to];
  };
}

function drawn(line) {
  const color = css(line.color);
  return {
    scale: "y", stroke: line.quiet ? "transparent" : color, width: line.quiet ? 0 : line.thin || line.dashed ? 1.2 : 1.8, spanGaps: true,
    dash: line.dashed ? [6, 4] : undefined, fill: line.area ? color + (line.area === true ? "" : line.area) : undefined,
    points: line.dots ? {show: true, size: 6, fill: color, stroke: color} : {show: false},
  };
}
