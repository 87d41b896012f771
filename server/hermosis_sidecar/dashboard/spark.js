// A small curve without axes. Its numbers stand beside it, so it says nothing to who does not see.

import { html, useEffect, useRef } from "./vendor/preact-htm.module.js";
import { color } from "./plot.js";

const WIDTH = 120;
const HEIGHT = 28;

export function Spark({ values }) {
  const canvas = useRef(null);
  useEffect(() => draw(canvas.current, values.filter((value) => value !== null)), [values.length, values.at(-1)]);
  return html`<canvas class="spark" ref=${canvas} width=${WIDTH * 2} height=${HEIGHT * 2} aria-hidden="true"></canvas>`;
}

function draw(canvas, values) {
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (values.length < 2) return;
  const [least, largest] = [Math.min(...values), Math.max(...values)];
  const room = canvas.height - 6;
  pen.beginPath();
  values.forEach((value, place) => {
    const height = largest > least ? (value - least) / (largest - least) : 0.5;
    pen.lineTo((place / (values.length - 1)) * canvas.width, 3 + room * (1 - height));
  });
  pen.strokeStyle = color("--line-1");
  pen.lineWidth = 2.5;
  pen.lineJoin = "round";
  pen.stroke();
}
