// Curves and pairs of a run's report page. No library, no network: data is in the page, text is set as text, never as
// markup.
"use strict";

const data = JSON.parse(document.getElementById("report-data").textContent);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function drawn(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// ------------------------------------------------------------------------------------------------------------ curves

const LEFT = 52, RIGHT = 10, TOP = 8, BOTTOM = 24, CLOSEST_ZOOM = 2;
const DASHES = ["", "7 4", "2 3", "9 3 2 3"];

class Chart {
  constructor(place, spec) {
    this.spec = spec;
    this.series = spec.series;
    const steps = this.series.flatMap((one) => one.points.map((point) => point[0]));
    this.all = [Math.min(...steps), Math.max(...steps)];
    if (this.all[0] === this.all[1]) this.all[1] += 1;
    this.view = [...this.all];
    this.svg = drawn("svg", { role: "img", tabindex: "0", "aria-label": spec.title });
    this.reading = element("output", { "aria-live": "off" });
    const zoom = (title, label, act) => {
      const button = element("button", { type: "button", "aria-label": `${label}: ${spec.title}` }, title);
      button.addEventListener("click", act);
      return button;
    };
    place.append(
      element("header", {}, element("h3", {}, spec.title),
        zoom("+", "zoom in", () => this.scale(0.5)), zoom("−", "zoom out", () => this.scale(2)),
        zoom("reset", "whole run", () => this.look(this.all))),
      this.legend(), this.svg, this.reading);
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.svg);
    this.read(this.all[1]);
  }

  legend() {
    const keys = this.series.map((one) => {
      const line = drawn("svg", { "aria-hidden": "true", viewBox: "0 0 26 10" });
      line.append(drawn("line", { x1: 0, x2: 26, y1: 5, y2: 5, ...this.pen(one) }));
      return element("span", { class: "key" }, line, one.title);
    });
    return element("div", {}, ...keys);
  }

  pen(one) {
    return { class: one.thin ? "series thin" : "series", stroke: `var(--${one.color})`, "stroke-dasharray": DASHES[one.dash] };
  }

  listen() {
    let from = null;
    const step = (event) => this.stepAt(event.clientX - this.svg.getBoundingClientRect().left);
    this.svg.addEventListener("pointerdown", (event) => { from = step(event); this.svg.setPointerCapture(event.pointerId); });
    this.svg.addEventListener("pointermove", (event) => { this.read(step(event), from); });
    this.svg.addEventListener("pointerup", (event) => {
      const to = step(event), begin = from;
      from = null;
      const few = (this.view[1] - this.view[0]) / 50;
      if (begin !== null && Math.abs(to - begin) > few) this.look([Math.min(begin, to), Math.max(begin, to)]);
      else this.read(to);
    });
    this.svg.addEventListener("pointercancel", () => { from = null; this.draw(); });
    this.svg.addEventListener("dblclick", () => this.look(this.all));
    this.svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -0.02, ArrowRight: 0.02 }[event.key];
      if (move) { this.read(this.at + move * (this.view[1] - this.view[0])); event.preventDefault(); }
    });
  }

  look([from, to]) {
    const least = Math.min(CLOSEST_ZOOM, this.all[1] - this.all[0]);
    if (to - from < least) { const middle = (from + to) / 2; from = middle - least / 2; to = middle + least / 2; }
    this.view = [Math.max(this.all[0], from), Math.min(this.all[1], to)];
    this.draw();
    this.read(Math.min(Math.max(this.at, this.view[0]), this.view[1]));
  }

  scale(factor) {
    const middle = Math.min(Math.max(this.at, this.view[0]), this.view[1]), half = (this.view[1] - this.view[0]) * factor / 2;
    this.look([middle - half, middle + half]);
  }

  x(step) { return LEFT + (step - this.view[0]) / (this.view[1] - this.view[0]) * (this.width - LEFT - RIGHT); }
  stepAt(x) { return this.view[0] + (x - LEFT) / (this.width - LEFT - RIGHT) * (this.view[1] - this.view[0]); }
  y(value) { return TOP + (this.high - value) / (this.high - this.low) * (this.height - TOP - BOTTOM); }

  draw() {
    this.width = this.svg.clientWidth;
    this.height = this.svg.clientHeight;
    if (!this.width) return;
    const inside = (point) => point[0] >= this.view[0] && point[0] <= this.view[1];
    const seen = this.series.flatMap((one) => one.points.filter(inside).map((point) => point[1])).concat(this.spec.range || []);
    if (!seen.length) seen.push(0);
    const room = (Math.max(...seen) - Math.min(...seen) || 1) * 0.05;
    this.low = Math.min(...seen) - room;
    this.high = Math.max(...seen) + room;
    this.svg.replaceChildren();
    for (const value of ticks(this.low, this.high, 5)) {
      this.svg.append(drawn("line", { class: "grid", x1: LEFT, x2: this.width - RIGHT, y1: this.y(value), y2: this.y(value) }));
      this.write(LEFT - 6, this.y(value) + 4, short(value), "end");
    }
    for (const value of ticks(this.view[0], this.view[1], Math.max(2, Math.floor(this.width / 110))))
      this.write(this.x(value), this.height - 6, short(value), this.x(value) > this.width - 30 ? "end" : "middle");
    for (const level of this.spec.levels.filter((one) => one.at > this.low && one.at < this.high)) {
      this.svg.append(drawn("line", { class: "level", x1: LEFT, x2: this.width - RIGHT, y1: this.y(level.at), y2: this.y(level.at) }));
      this.write(this.width - RIGHT, this.y(level.at) - 4, level.title, "end");
    }
    const clip = drawn("clipPath", { id: `clip-${this.spec.id}` });
    clip.append(drawn("rect", { x: LEFT - 4, y: 0, width: Math.max(0, this.width - LEFT - RIGHT + 8), height: this.height }));
    this.svg.append(clip);
    for (const one of this.series) this.line(one);
    this.svg.append(this.cursor = drawn("g", {}));
  }

  line(one) {
    // the neighbours just outside are drawn too, so that a line does not end inside the picture
    const first = one.points.findLastIndex((point) => point[0] < this.view[0]);
    const after = one.points.findIndex((point) => point[0] > this.view[1]);
    const points = one.points.slice(Math.max(0, first), after < 0 ? undefined : after + 1);
    const clamp = (x) => Math.min(Math.max(x, LEFT - 2000), this.width + 2000);
    const path = points.map(([step, value], i) => `${i ? "L" : "M"}${clamp(this.x(step)).toFixed(1)},${this.y(value).toFixed(1)}`);
    const made = drawn("path", { ...this.pen(one), d: path.join("") });
    const group = drawn("g", {});
    group.setAttribute("clip-path", `url(#clip-${this.spec.id})`);
    group.append(made);
    if (!one.thin)
      for (const [step, value] of points.filter((p) => p[0] >= this.view[0] && p[0] <= this.view[1]))
        group.append(drawn("circle", { cx: this.x(step), cy: this.y(value), r: 3, fill: `var(--${one.color})` }));
    this.svg.append(group);
  }

  write(x, y, text, anchor) {
    const made = drawn("text", { x, y, "text-anchor": anchor });
    made.textContent = text;
    this.svg.append(made);
  }

  read(step, from = null) {
    this.at = Math.min(Math.max(step, this.view[0]), this.view[1]);
    const parts = this.series.map((one) => {
      const near = nearest(one.points, this.at);
      return near ? `${one.title} ${near[1].toPrecision(4)} (step ${near[0]})` : "";
    });
    this.reading.textContent = parts.filter(Boolean).join(" · ");
    if (!this.cursor) return;
    this.cursor.replaceChildren();
    const x = this.x(this.at), bottom = this.height - BOTTOM;
    this.cursor.append(drawn("line", { class: "cursor", x1: x, x2: x, y1: TOP, y2: bottom }));
    if (from !== null) {
      const begin = this.x(from);
      this.cursor.append(drawn("rect", { class: "drag", x: Math.min(begin, x), width: Math.abs(x - begin), y: TOP, height: bottom - TOP }));
    }
  }
}

function nearest(points, step) {
  let best = null;
  for (const point of points) if (best === null || Math.abs(point[0] - step) < Math.abs(best[0] - step)) best = point;
  return best;
}

function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const size = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= raw);
  const made = [];
  for (let value = Math.ceil(low / size) * size; value <= high; value += size) made.push(Math.abs(value) < size / 1e6 ? 0 : value);
  return made;
}

function short(value) { return String(Number(value.toPrecision(4))); }

for (const spec of data.charts) new Chart(document.getElementById(spec.id), spec);

// ------------------------------------------------------------------------------------------------------------- pairs

const PAGE = 20;
const pairs = data.pairs;
const ORDERS = {
  lowest: (a, b) => a.margin - b.margin,
  highest: (a, b) => b.margin - a.margin,
  closest: (a, b) => Math.abs(a.margin) - Math.abs(b.margin),
  row: (a, b) => a.row - b.row,
};
const SHOWN = {
  all: () => true,
  lost: (pair) => pair.margin <= 0,
  won: (pair) => pair.margin > 0,
};

function side(title, text, tokens, change) {
  const facts = `${tokens} tokens, ${change >= 0 ? "+" : ""}${change.toFixed(2)} nats over the reference`;
  return element("div", {}, element("p", {}, element("b", {}, title), ` ${facts}`), element("pre", {}, text));
}

function shown(pair) {
  const margin = element("span", { class: `margin ${pair.margin > 0 ? "won" : "lost"}` }, (pair.margin >= 0 ? "+" : "") + pair.margin.toFixed(3));
  const start = (pair.prompt || pair.chosen).slice(0, 110);
  const made = element("details", {}, element("summary", {}, margin, ` row ${pair.row} · ${start}`));
  made.addEventListener("toggle", () => {
    if (made.childElementCount > 1) return;
    made.append(element("p", {}, element("b", {}, "Prompt")), element("pre", {}, pair.prompt || "(empty)"),
      element("div", { class: "sides" }, side("Chosen", pair.chosen, pair.chosen_tokens, pair.chosen_change),
        side("Rejected", pair.rejected, pair.rejected_tokens, pair.rejected_change)));
  });
  return made;
}

function browse() {
  const list = document.getElementById("pairs-list"), count = document.getElementById("pairs-count");
  const order = document.getElementById("pairs-order"), filter = document.getElementById("pairs-filter");
  const search = document.getElementById("pairs-search"), more = document.getElementById("pairs-more");
  let found = [], seen = 0;
  const next = () => {
    list.append(...found.slice(seen, seen + PAGE).map(shown));
    seen = Math.min(found.length, seen + PAGE);
    count.textContent = `${seen} of ${found.length} pairs`;
    more.hidden = seen >= found.length;
  };
  const begin = () => {
    const words = search.value.toLowerCase();
    const holds = (pair) => [pair.prompt, pair.chosen, pair.rejected].some((text) => text.toLowerCase().includes(words));
    found = pairs.filter((pair) => SHOWN[filter.value](pair) && (!words || holds(pair))).sort(ORDERS[order.value]);
    seen = 0;
    list.replaceChildren();
    next();
  };
  for (const one of [order, filter, search]) one.addEventListener("input", begin);
  more.addEventListener("click", next);
  begin();
}

if (pairs.length) browse();

// ----------------------------------------------------------------------------------------------------------- samples

const chooser = document.getElementById("samples-step");
if (chooser) {
  const show = () => {
    for (const one of document.querySelectorAll("[data-step]")) one.hidden = one.dataset.step !== chooser.value;
  };
  chooser.addEventListener("input", show);
  show();
}
