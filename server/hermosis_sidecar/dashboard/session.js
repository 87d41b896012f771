// The view of one session: what it is, how it does, what can be done about it.

import { Actions } from "./actions.js";
import { getFile, sessionPath } from "./api.js";
import { Chart } from "./chart.js";
import { Rounds } from "./consistency.js";
import { copied } from "./copy.js";
import { bytes, count, date, number, optimizer, settings, temperature } from "./format.js";
import { PICTURES, pictured } from "./pictures.js";
import { html, useState } from "./vendor/preact-htm.module.js";
import { Workers } from "./workers.js";

export function SessionView({ state, act }) {
  const watched = state.watched.get(state.route.ids[0]);
  if (!watched) return html`<p class="empty">This link names no session. <a href="#/">All sessions</a></p>`;
  const { session, series } = watched;
  const note = watched.error || (session ? meaning(session) : "Asking the server …");
  const x = state.route.options.axis === "time" ? "time" : "step";
  return html`
    <div class="title">
      <h2 id="session-title">${watched.name}</h2>
      ${session && html`<span class="status" data-status=${session.status}>${session.status}</span>`}
      ${session && session.spec.display_name && html`<code class="quiet">${watched.id}</code>`}
    </div>
    <p id="session-note" class="quiet">${note}</p>
    ${session && html`<${Actions} session=${session} watched=${watched} act=${act} />`}
    <${Anomalies} anomalies=${watched.anomalies} />
    ${session && html`<${Facts} watched=${watched} />`}
    <div class="bar">
      <${AxisSwitch} x=${x} choose=${(axis) => act.options({ axis: axis === "step" ? "" : axis })} />
      <${Share} say=${act.say} />
      <${Export} id=${watched.id} say=${act.say} />
    </div>
    <section class="charts" aria-label="Charts">
      ${PICTURES.map((picture) => html`<${Chart} key=${picture.title} ...${picture} x=${x}
        data=${pictured(picture, series, x)} marks=${marks(watched.events, x)} />`)}
      <${Staleness} series=${series} />
    </section>
    ${session && html`<${Rounds} spec=${session.spec} />`}
    <${Workers} workers=${watched.workers} />
    <${Events} events=${watched.events} />
  `;
}

// What a status means for the one who looks on.
function meaning({ status, status_reason: reason }) {
  return {
    CREATING: "Waiting for a worker to upload the initial parameters.",
    PAUSED: "Takes no gradients until it is resumed.",
    RECOVERING: "Being rebuilt after a restart of the server.",
    FAILED: `Quarantined: ${reason}`,
    CLOSED: "Closed; what is shown is the last that was seen of it.",
  }[status] ?? "";
}

const marks = (events, x) => events.map(({ kind, step, time }) => ({
  x: x === "time" ? Date.parse(time) / 1000 : step,
  label: kind.replaceAll("_", " "),
}));

function Anomalies({ anomalies }) {
  if (!anomalies.length) return null;
  return html`<section class="anomalies" aria-labelledby="anomalies-title">
    <h3 id="anomalies-title">What looks wrong</h3>
    <ul>${anomalies.map(({ rule, since_step: since, text, advice }) => html`<li key=${rule}>
      <strong>${text}</strong> <span class="quiet">since step ${count(since)}</span><br />${advice}
    </li>`)}</ul>
  </section>`;
}

function Facts({ watched }) {
  const { session, series } = watched;
  const newest = series.newest;
  const energies = newest?.energies ?? {};
  const { consistency, durability } = session.spec;
  const facts = [
    ["Step", count(Math.max(session.step, newest?.step ?? 0))],
    ["Loss", number(energies.loss)],
    ["Smoothed loss", number(energies.smoothed_loss)],
    ["Steps a second", number(watched.rate)],
    ["Optimizer", optimizer(session.spec.optimizer), settings(session.spec.optimizer)],
    ["Learning rate", number(energies.learning_rate), `lr_scale ${number(session.lr_scale)}`],
    ["Temperature", temperature(energies.log_beta)],
    ["Retention", number(energies.retention), "the effective momentum coefficient"],
    ["Parameters", count(session.parameter_count)],
    ["Device memory", bytes(session.device_bytes), session.device],
    ["Workers", `${count(session.workers)} of ${count(consistency.workers)}`, consistency.mode],
    ["Durable step", count(session.durable_step), durability.mode],
  ];
  return html`<dl class="facts">${facts.map(([name, value, more]) => html`<div key=${name}>
    <dt>${name}</dt><dd>${value}</dd>${more && html`<dd class="more">${more}</dd>`}
  </div>`)}</dl>`;
}

export function AxisSwitch({ x, choose, names = { step: "Step", time: "Time" } }) {
  return html`<fieldset class="choice"><legend>Axis</legend>${Object.entries(names).map(([axis, name]) => html`
    <label key=${axis}><input type="radio" name="axis" checked=${x === axis} onChange=${() => choose(axis)} /> ${name}</label>
  `)}</fieldset>`;
}

export function Share({ say }) {
  const [shown, setShown] = useState(false);
  const copy = async () => {
    if (await copied(location.href)) say("Link copied");
    else setShown(true);
  };
  return html`<button type="button" onClick=${copy}>Copy link</button>
    ${shown && html`<input class="link-text" readonly aria-label="Link to this view" value=${location.href} />`}`;
}

function Export({ id, say }) {
  const save = async (format) => {
    try {
      const address = URL.createObjectURL(await getFile(`${sessionPath(id)}/telemetry/export?format=${format}`));
      const link = Object.assign(document.createElement("a"), { href: address, download: `${id}.${format}` });
      link.click();
      URL.revokeObjectURL(address);
    } catch (error) {
      say(error.message);
    }
  };
  return html`<button type="button" onClick=${() => save("csv")}>Save as CSV</button>
    <button type="button" onClick=${() => save("parquet")}>Save as Parquet</button>`;
}

function Staleness({ series }) {
  const counts = series.staleness();
  const most = Math.max(1, ...counts.map((each) => each.count));
  return html`<figure>
    <figcaption><strong>Staleness</strong><span class="quiet">steps that a gradient was behind; readings with each</span></figcaption>
    ${counts.length === 0 && html`<p class="empty">No readings yet.</p>`}
    <ul class="bars">${counts.map(({ label, count: found }) => html`<li key=${label}>
      <span class="of">${label}</span>
      <span class="rod"><span style=${{ width: `${(100 * found) / most}%` }}></span></span>
      <span class="number">${count(found)}</span>
    </li>`)}</ul>
  </figure>`;
}

function Events({ events }) {
  if (!events.length) return null;
  return html`<section class="card" aria-labelledby="events-title">
    <h3 id="events-title">Events</h3>
    <ol class="events" reversed>${events.slice(-50).reverse().map((event) => html`<li key=${event.event_id}>
      <time datetime=${event.time}>${date(event.time)}</time> <span class="number">step ${count(event.step)}</span>
      ${" "}<strong>${event.kind.replaceAll("_", " ")}</strong> ${event.text}
    </li>`)}</ol>
  </section>`;
}
