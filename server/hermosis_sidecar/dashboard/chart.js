// A chart as everybody can read it: the picture, its words, keys to walk along it, and the same numbers as a table.

import { along, number } from "./format.js";
import { Plot } from "./plot.js";
import { html, useEffect, useRef, useState } from "./vendor/preact-htm.module.js";

const MOST_ROWS = 25;
const last = (values) => values.findLast((value) => value !== null && value !== undefined);

// lines and x as in plot.js; data: [x, ...curves]; marks: [{ x, label }]; hint: what the numbers are.
export function Chart({ title, hint, lines, x, data, marks, canBeLogarithmic, logarithmicAtFirst = false }) {
  const room = useRef(null);
  const plot = useRef(null);
  const [logarithmic, setLogarithmic] = useState(logarithmicAtFirst);
  useEffect(() => {
    plot.current = new Plot(room.current);
    return () => plot.current.destroy();
  }, []);
  useEffect(() => plot.current.draw({ lines, x, data, marks, logarithmic }));

  const walk = (event) => {
    const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (direction === undefined) return;
    event.preventDefault();
    plot.current.walk(direction, event.shiftKey);
  };

  return html`<figure>
    <figcaption>
      <strong>${title}</strong>
      ${hint && html`<span class="quiet">${hint}</span>`}
      ${canBeLogarithmic && html`<label class="switch">
        <input type="checkbox" checked=${logarithmic} onChange=${(event) => setLogarithmic(event.target.checked)} />
        ${" log scale"}
      </label>`}
    </figcaption>
    <div class="plot" ref=${room} tabindex="0" role="group" onKeyDown=${walk}
      aria-label=${inWords({ title, lines, x, data })}></div>
    <${AsTable} ...${{ title, lines, x, data }} />
  </figure>`;
}

function inWords({ title, lines, x, data: [places, ...curves] }) {
  const values = lines.map((line, which) => `${line.label} ${number(last(curves[which]))}`);
  const at = places.length ? `at ${told(x, places.at(-1))}: ${values.join(", ")}` : "no readings yet";
  return `${title} chart, ${at}. Left and right arrow keys walk along it.`;
}

const told = (x, value) => ({ step: "step ", time: "" }[x] ?? "second ") + along(x, value);

function AsTable({ title, lines, x, data: [places, ...curves] }) {
  const [open, setOpen] = useState(false);
  const stride = Math.max(1, Math.ceil(places.length / MOST_ROWS));
  const rows = open ? places.map((_, place) => place).filter((place) => (places.length - 1 - place) % stride === 0) : [];
  return html`<details onToggle=${(event) => setOpen(event.target.open)}>
    <summary>As a table</summary>
    ${open && html`<div class="scrolled" tabindex="0" role="region" aria-label=${`${title} as a table`}><table>
      <caption>${title}, ${rows.length} of ${places.length} points</caption>
      <thead><tr>
        <th scope="col">${x}</th>${lines.map((line, which) => html`<th scope="col" key=${which}>${line.label}</th>`)}
      </tr></thead>
      <tbody>${rows.map((place) => html`<tr key=${places[place]}>
        <th scope="row">${along(x, places[place])}</th>
        ${curves.map((curve, which) => html`<td key=${which}>${number(curve[place])}</td>`)}
      </tr>`)}</tbody>
    </table></div>`}
  </details>`;
}
