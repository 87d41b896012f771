// Several sessions on one axis, one quantity at a time.

import { Chart } from "./chart.js";
import { count, number, optimizer, settings } from "./format.js";
import { joined } from "./joined.js";
import { QUANTITIES } from "./pictures.js";
import * as route from "./route.js";
import { AxisSwitch, Share } from "./session.js";
import { html } from "./vendor/preact-htm.module.js";

const COLORS = ["--line-1", "--line-2", "--line-3", "--line-4", "--line-5", "--line-6", "--line-7", "--line-8"];

export function Compare({ state, act }) {
  const all = [...state.watched.values()];
  const { options } = state.route;
  const quantity = QUANTITIES.find(({ name }) => name === options.quantity) ?? QUANTITIES[0];
  const x = options.axis === "elapsed" ? "elapsed" : "step";
  if (!all.length) return html`<p class="empty">This link names no sessions. <a href="#/">Choose some</a></p>`;
  const lines = all.map((watched, place) => ({ label: watched.name, color: COLORS[place], spanGaps: true }));
  return html`
    <div class="title"><h2>Compare ${all.length} sessions</h2></div>
    <div class="bar">
      <label class="inline"><span>Quantity</span>
        <select name="quantity" value=${quantity.name} onChange=${(event) => act.options({ quantity: event.target.value })}>
          ${QUANTITIES.map(({ name, label }) => html`<option key=${name} value=${name}>${label}</option>`)}
        </select></label>
      <${AxisSwitch} x=${x} names=${{ step: "Step", elapsed: "Time since the first reading" }}
        choose=${(axis) => act.options({ axis: axis === "step" ? "" : axis })} />
      <${Share} say=${act.say} />
    </div>
    <section class="charts" aria-label="Chart">
      <${Chart} key=${quantity.name} title=${quantity.label} x=${x} lines=${lines} canBeLogarithmic=${true}
        data=${joined(all.map(({ series }) => columns(series, quantity.name, x)))} />
    </section>
    <div class="scrolled" tabindex="0" role="region" aria-label="Sessions side by side"><table>
      <thead><tr><th scope="col">Session</th><th scope="col">Status</th><th scope="col">Optimizer</th>
        <th scope="col">Step</th><th scope="col">${quantity.label}</th><th scope="col">Steps a second</th></tr></thead>
      <tbody>${all.map((watched) => html`<tr key=${watched.id}>
        <th scope="row"><a href=${route.write({ view: "session", ids: [watched.id] })}>${watched.name}</a></th>
        <td>${watched.session?.status ?? watched.error}</td>
        <td>${watched.session && `${optimizer(watched.session.spec.optimizer)} ${settings(watched.session.spec.optimizer)}`}</td>
        <td class="number">${count(watched.series.newest?.step)}</td>
        <td class="number">${number(watched.series.newest?.energies[quantity.name])}</td>
        <td class="number">${number(watched.rate)}</td>
      </tr>`)}</tbody>
    </table></div>`;
}

function columns(series, name, x) {
  if (x === "step") return [series.steps(), series.column(name)];
  const times = series.times();
  return [times.map((time) => time - times[0]), series.column(name)];
}
