// A small curve without axes. Its numbers stand beside it, so it says nothing to who does not see.

import { html, useEffect, useRef } from "./vendor/preact-htm.module.js";
import { color } from "./plot.js";

const WIDTH = 120;
const HEIGHT = 28;

// points: [{ step, loss }], by step.
export function Spark({ points }) {
  const canvas = useRef(null);
  useEffect(() => draw(canvas.current, points.filter(({ loss }) => loss !== null)), [points.length, points.at(-1)?.step]);
  return html`<canvas class="spark" ref=${canvas} width=${WIDTH * 2} height=${HEIGHT * 2} aria-hidden="true"></canvas>`;
}

function draw(canvas, points) {
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (points.length < 2) return;
  const losses = points.map(({ loss }) => loss);
  const [least, largest] = [Math.min(...losses), Math.max(...losses)];
  const [first, last] = [points[0].step, points.at(-1).step];
  const room = canvas.height - 6;
  pen.beginPath();
  for (const { step, loss } of points) {
    const height = largest > least ? (loss - least) / (largest - least) : 0.5;
    pen.lineTo(((step - first) / (last - first)) * canvas.width, 3 + room * (1 - height));
  }
  pen.strokeStyle = color("--line-1");
  pen.lineWidth = 2.5;
  pen.lineJoin = "round";
  pen.stroke();
}
