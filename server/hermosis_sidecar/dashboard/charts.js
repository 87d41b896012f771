// The three pictures of a session: loss, energies, temperature. Drawn by uPlot, which index.html loads before this.

import { number } from "./format.js";

const PICTURES = [
  {
    title: "Loss",
    lines: [
      { name: "loss", label: "loss", color: "--line-1" },
      { name: "smoothed_loss", label: "smoothed loss", color: "--line-2", width: 2 },
    ],
    canBeLogarithmic: true,
  },
  {
    title: "Energies",
    hint: "per unit of thermal mass",
    lines: [
      { name: "kinetic_energy", label: "kinetic", color: "--line-1" },
      { name: "potential_energy", label: "potential", color: "--line-3" },
      { name: "thermal_energy", label: "thermal", color: "--line-2" },
      { name: "total_energy", label: "total", color: "--line-4", width: 2 },
    ],
  },
  {
    title: "Temperature",
    hint: "ln β = −ln T; kinetic temperature on the right",
    lines: [
      { name: "log_beta", label: "ln β", color: "--line-1", width: 2 },
      { name: "kinetic_temperature", label: "kinetic temperature", color: "--line-2", scale: "kinetic" },
    ],
  },
];

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const positive = (values) => values.map((value) => (value > 0 ? value : null));
const last = (values) => values.findLast((value) => value !== null) ?? null;

function axis(options) {
  return {
    stroke: () => color("--quiet"),
    grid: { stroke: () => color("--rule"), width: 1 },
    ticks: { stroke: () => color("--rule"), width: 1, size: 4 },
    font: "12px system-ui, sans-serif",
    ...options,
  };
}

const ticks = (_, values) => values.map((value) => (value === null ? "" : number(value)));

class Chart {
  constructor(picture) {
    this.picture = picture;
    this.logarithmic = false;
    this.zoomed = false;
    this.series = null;
    this.plot = null;
    this.#build();
    new ResizeObserver(() => this.#resize()).observe(this.room);
  }

  #build() {
    const { title, hint, canBeLogarithmic } = this.picture;
    this.figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    const name = document.createElement("strong");
    name.textContent = title;
    caption.append(name);
    if (hint) {
      const small = document.createElement("span");
      small.className = "quiet";
      small.textContent = hint;
      caption.append(small);
    }
    if (canBeLogarithmic) caption.append(this.#logarithmSwitch());
    this.room = document.createElement("div");
    this.room.className = "plot";
    this.room.tabIndex = 0;
    this.room.setAttribute("role", "group");
    this.room.addEventListener("keydown", (event) => this.#walk(event));
    this.figure.append(caption, this.room);
  }

  #logarithmSwitch() {
    const label = document.createElement("label");
    const box = document.createElement("input");
    box.type = "checkbox";
    box.addEventListener("change", () => {
      this.logarithmic = box.checked;
      this.#remake();
      if (this.series) this.draw(this.series);
    });
    label.append(box, " log scale");
    return label;
  }

  #remake() {
    this.plot?.destroy();
    this.zoomed = false;
    const twoScales = this.picture.lines.some((line) => line.scale);
    const axes = [axis({ size: 34 }), axis({ size: 62, values: ticks })];
    if (twoScales) axes.push(axis({ size: 62, values: ticks, scale: "kinetic", side: 1, grid: { show: false } }));
    const options = {
      ...this.#size(),
      scales: { x: { time: false }, y: { distr: this.logarithmic ? 3 : 1 }, ...(twoScales && { kinetic: { distr: 3 } }) },
      axes,
      cursor: { sync: { key: "steps" }, points: { size: 7 }, y: false },
      legend: { markers: { width: 2 } },
      series: [
        { label: "step", value: (plot, value, _, place) => number(place === null ? last(plot.data[0]) : value) },
        ...this.picture.lines.map((line) => ({
          label: line.label,
          scale: line.scale ?? "y",
          stroke: () => color(line.color),
          width: line.width ?? 1.25,
          points: { show: false },
          spanGaps: false,
          // Away from the pointer the legend tells the newest values.
          value: (plot, value, which, place) => number(place === null ? last(plot.data[which]) : value),
        })),
      ],
      hooks: { setSelect: [(plot) => { this.zoomed ||= plot.select.width > 0; }] },
    };
    this.plot = new uPlot(options, [[], ...this.picture.lines.map(() => [])], this.room);
    this.plot.over.addEventListener("dblclick", () => { this.zoomed = false; });
  }

  #size() {
    return { width: Math.max(240, this.room.clientWidth), height: 240 };
  }

  #resize() {
    if (this.room.clientWidth === 0) return;
    if (this.plot) this.plot.setSize(this.#size());
    else this.#remake();
    if (this.series) this.draw(this.series);
  }

  draw(series) {
    this.series = series;
    if (!this.plot) return;
    const columns = this.picture.lines.map((line) => {
      const values = series.column(line.name);
      return this.logarithmic || line.scale ? positive(values) : values;
    });
    this.plot.setData([series.steps(), ...columns], !this.zoomed);
    if (this.zoomed) this.plot.redraw();
    this.room.setAttribute("aria-label", this.#inWords(series, columns));
  }

  #inWords(series, columns) {
    const values = this.picture.lines.map((line, which) => `${line.label} ${number(last(columns[which]))}`);
    const at = series.newest ? `at step ${series.newest.step}: ${values.join(", ")}` : "no readings yet";
    return `${this.picture.title} chart, ${at}. Left and right arrow keys walk along the steps.`;
  }

  // Walks the cursor along the steps by keyboard; the legend tells the values.
  #walk(event) {
    const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (direction === undefined || !this.plot?.data[0].length) return;
    event.preventDefault();
    const steps = this.plot.data[0];
    const stride = event.shiftKey ? Math.max(1, steps.length >> 4) : 1;
    const from = this.plot.cursor.idx ?? (direction < 0 ? steps.length : -1);
    const place = Math.min(steps.length - 1, Math.max(0, from + direction * stride));
    this.plot.setCursor({ left: this.plot.valToPos(steps[place], "x"), top: 10 });
  }
}

export class Charts {
  constructor(room) {
    this.charts = PICTURES.map((picture) => new Chart(picture));
    room.append(...this.charts.map((chart) => chart.figure));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      for (const chart of this.charts) chart.plot?.redraw(false, true);
    });
  }

  draw(series) {
    for (const chart of this.charts) chart.draw(series);
  }
}
