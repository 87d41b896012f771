// One chart: curves over steps or time, with marks of events. Drawn by uPlot, which index.html loads before this.

import { along, number } from "./format.js";
import { thinned } from "./thin.js";

export const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const HEIGHT = 240;
const positive = (values) => values.map((value) => (value > 0 ? value : null));
const last = (values) => values.findLast((value) => value !== null && value !== undefined) ?? null;
const ticks = (_, values) => values.map((value) => (value === null ? "" : number(value)));

function axis(options) {
  return {
    stroke: () => color("--quiet"),
    grid: { stroke: () => color("--rule"), width: 1 },
    ticks: { stroke: () => color("--rule"), width: 1, size: 4 },
    font: "12px system-ui, sans-serif",
    ...options,
  };
}

// The form of a chart, which asks for a new drawing board when it changes.
// lines: [{ label, color, width?, scale? }] of which scale "right" has an axis of its own; x: "step", "time", "elapsed".
const formOf = ({ lines, x, logarithmic }) => JSON.stringify([lines, x, logarithmic]);

export class Plot {
  constructor(room) {
    this.room = room;
    this.plot = null;
    this.range = null; // what the reader has zoomed to
    this.walked = null; // x of the point that the keys have come to
    this.form = "";
    this.waiting = null;
    this.watcher = new ResizeObserver(() => this.#resize());
    this.watcher.observe(room);
    this.inSight = false; // a chart that nobody sees is not drawn
    this.sight = new IntersectionObserver((entries) => {
      this.inSight = entries.at(-1).isIntersecting;
      if (this.inSight && this.chart) this.draw(this.chart);
    }, { rootMargin: "200px" });
    this.sight.observe(room);
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    this.recolor = () => this.plot?.redraw(false, true);
    this.dark.addEventListener("change", this.recolor);
  }

  // data: [x, ...curves] as long as each other; marks: [{ x, label }].
  draw(chart) {
    this.chart = chart;
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      this.#draw();
    });
  }

  // Walks the cursor along the points; the legend tells the values. Where it stands outlives drawings, as live ones come
  // several times a second, until the pointer takes it.
  walk(direction, far) {
    if (this.chart && !this.plot?.data[0].length) {
      this.inSight = true; // the key comes before the first drawing
      this.#draw();
    }
    const x = this.plot?.data[0];
    if (!x?.length) return;
    const stride = far ? Math.max(1, x.length >> 4) : 1;
    const at = this.walked === null ? this.plot.cursor.idx : x.findLastIndex((value) => value <= this.walked);
    const from = at ?? (direction < 0 ? x.length : -1);
    this.walked = x[Math.min(x.length - 1, Math.max(0, from + direction * stride))];
    this.#point(this.plot);
  }

  destroy() {
    cancelAnimationFrame(this.waiting);
    this.waiting = null;
    this.watcher.disconnect();
    this.sight.disconnect();
    this.dark.removeEventListener("change", this.recolor);
    this.plot?.destroy();
  }

  #resize() {
    if (this.room.clientWidth === 0 || !this.chart) return;
    this.plot?.setSize(this.#size());
    this.draw(this.chart);
  }

  #size() {
    return { width: Math.max(200, this.room.clientWidth), height: HEIGHT };
  }

  #draw() {
    if (this.room.clientWidth === 0 || !this.inSight) return;
    const form = formOf(this.chart);
    if (form !== this.form) this.#make(form);
    const { lines, data, logarithmic } = this.chart;
    const [x, ...curves] = data;
    const shown = curves.map((curve, which) => (logarithmic || lines[which].scale ? positive(curve) : curve));
    const [from, to] = this.range ?? [x[0] ?? 0, x.at(-1) ?? 1];
    const places = thinned(x, shown, { from, to, pixels: Math.max(100, this.room.clientWidth) });
    const pick = (values) => places.map((place) => values[place] ?? null);
    // Without a range of the reader's, uPlot fits the axis to the data.
    this.plot.setData([pick(x), ...shown.map(pick)], this.range === null);
    if (this.range) this.plot.setScale("x", { min: from, max: to });
  }

  #make(form) {
    this.plot?.destroy();
    this.form = form;
    this.range = null;
    const { lines, x, logarithmic } = this.chart;
    const twoScales = lines.some((line) => line.scale);
    const axes = [
      axis({ size: 34, space: 70, values: (_, values) => values.map((value) => along(x, value)) }),
      axis({ size: 62, values: ticks }),
    ];
    if (twoScales) axes.push(axis({ size: 62, values: ticks, scale: "right", side: 1, grid: { show: false } }));
    const options = {
      ...this.#size(),
      scales: { x: { time: false }, y: { distr: logarithmic ? 3 : 1 }, ...(twoScales && { right: { distr: 3 } }) },
      axes,
      cursor: { sync: { key: x }, points: { size: 7 }, y: false },
      legend: { markers: { width: 2 } },
      series: [
        { label: x === "elapsed" ? "seconds" : x, value: (plot, value) => along(x, value ?? last(plot.data[0])) },
        ...lines.map((line) => ({
          label: line.label,
          scale: line.scale ?? "y",
          stroke: () => color(line.color),
          width: line.width ?? 1.25,
          points: { show: false },
          spanGaps: Boolean(line.spanGaps),
          // Away from the pointer the legend tells the newest values.
          value: (plot, value, which, place) => number(place === null ? last(plot.data[which]) : value),
        })),
      ],
      hooks: {
        draw: [(plot) => this.#mark(plot), (plot) => this.#point(plot)],
        setSelect: [(plot) => this.#zoom(plot)],
      },
    };
    this.plot = new uPlot(options, [[], ...lines.map(() => [])], this.room);
    this.plot.over.addEventListener("mousemove", () => { this.walked = null; });
    this.plot.over.addEventListener("dblclick", () => {
      this.range = null;
      this.draw(this.chart);
    });
  }

  #point(plot) {
    if (this.walked === null) return;
    const left = Math.min(plot.over.clientWidth, Math.max(0, plot.valToPos(this.walked, "x"))); // rounding leads outside
    plot.setCursor({ left, top: 10 });
  }

  #zoom(plot) {
    if (!(plot.select.width > 0)) return;
    const { left, width } = plot.select;
    this.range = [plot.posToVal(left, "x"), plot.posToVal(left + width, "x")];
    this.draw(this.chart); // Between its ends are more points than were worth drawing before.
  }

  #mark(plot) {
    const marks = this.chart.marks ?? [];
    if (!marks.length) return;
    const { ctx: pen, bbox } = plot;
    const ratio = devicePixelRatio;
    pen.save();
    pen.strokeStyle = pen.fillStyle = color("--quiet");
    pen.setLineDash([3 * ratio, 3 * ratio]);
    pen.lineWidth = ratio;
    pen.textAlign = "left";
    pen.textBaseline = "alphabetic";
    pen.font = `${11 * ratio}px system-ui, sans-serif`;
    let free = -Infinity; // where the next label has room
    for (const { x, label } of marks) {
      const at = plot.valToPos(x, "x", true);
      if (!(at >= bbox.left && at <= bbox.left + bbox.width)) continue;
      pen.beginPath();
      pen.moveTo(at, bbox.top);
      pen.lineTo(at, bbox.top + bbox.height);
      pen.stroke();
      const wide = pen.measureText(label).width;
      const left = at + wide + 8 * ratio > bbox.left + bbox.width ? at - wide - 4 * ratio : at + 4 * ratio;
      if (left < free) continue;
      pen.fillText(label, left, bbox.top + 12 * ratio);
      free = left + wide + 4 * ratio;
    }
    pen.restore();
  }
}
