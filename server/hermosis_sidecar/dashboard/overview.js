// How the server does: alerts, numbers, and a map of its devices' memory by session.

import { bytes, count, duration, number } from "./format.js";
import * as route from "./route.js";
import { treemap } from "./treemap.js";
import { html } from "./vendor/preact-htm.module.js";

const MOST_BOXES = 60;

export function Alerts({ alerts }) {
  if (!alerts.length) return null;
  return html`<section class="anomalies" aria-labelledby="alerts-title">
    <h2 id="alerts-title">Alerts</h2>
    <ul>${alerts.map(({ severity, rule, session_id: id, text }) => html`<li key=${`${rule} ${id}`} data-severity=${severity}>
      <strong>${severity}</strong> ${id && html`<a href=${route.write({ view: "session", ids: [id] })}>${id}</a>: `}${text}
    </li>`)}</ul>
  </section>`;
}

export function Numbers({ overview }) {
  const numbers = [
    ["Steps a second", number(overview.steps_per_s)],
    ["Received", `${bytes(overview.received_bytes_per_s)}/s`],
    ["Sent", `${bytes(overview.sent_bytes_per_s)}/s`],
    ["Queue", `${count(overview.queue_rounds)} rounds`, bytes(overview.queue_bytes)],
    ["Sessions a batch", number(overview.batch_sessions), "mean of the last minute"],
    ["A step, half of them", duration(overview.step_s.p50), "p50"],
    ["A step, 99 of 100", duration(overview.step_s.p99), "p99"],
    ["Streams", count(overview.streams)],
    ["Staging", bytes(overview.staging_bytes), `of ${bytes(overview.staging_limit_bytes)}`],
    ["Up for", duration(overview.uptime_s)],
  ];
  return html`<section aria-label="The server's numbers"><dl class="facts">${numbers.map(([name, value, more]) => html`<div key=${name}>
    <dt>${name}</dt><dd>${value}</dd>${more && html`<dd class="more">${more}</dd>`}</div>`)}</dl></section>`;
}

// names: of sessions, by id, as far as they are known.
export function Memory({ devices, names }) {
  return html`<section class="card" aria-labelledby="memory-title">
    <h2 id="memory-title">Device memory</h2>
    ${devices.map((device) => html`<${Device} key=${device.name} device=${device} names=${names} />`)}
  </section>`;
}

const sum = (sessions, what) => sessions.reduce((all, session) => all + session[what], 0);

function Device({ device, names }) {
  const held = device.sessions.filter((session) => session.device_bytes > 0).sort((one, other) => other.device_bytes - one.device_bytes);
  const shown = held.slice(0, MOST_BOXES);
  // The server names those with the most, and of the caller's tenant alone.
  const rest = device.used_bytes - sum(shown, "device_bytes");
  const idle = device.sessions.filter((session) => session.host_bytes > 0);
  const areas = [
    ...shown.map(({ session_id: id, device_bytes: size }) => ({ id, size, name: names.get(id) || id })),
    ...(rest > 0.005 * device.used_bytes ? [{ id: "", size: rest, name: "others" }] : []),
  ].sort((one, other) => other.size - one.size);
  const used = device.capacity_bytes > 0 ? device.used_bytes / device.capacity_bytes : 0;
  return html`<div class="device-map">
    <p><strong>${device.name}</strong> <span class="quiet">${bytes(device.used_bytes)} of ${bytes(device.capacity_bytes)} in use, ${bytes(device.free_bytes)} free${idle.length ? `; ${idle.length} idle in host memory (${bytes(sum(idle, "host_bytes"))})` : ""}</span></p>
    <div class="gauge" role="img" aria-label=${`${number(100 * used)} percent of ${device.name} in use`}>
      <span style=${{ width: `${Math.min(100, 100 * used)}%` }}></span></div>
    <${Map} areas=${areas} />
  </div>`;
}

// Areas are shares of the memory that sessions hold; the gauge above tells how much of the device that is.
function Map({ areas }) {
  if (!areas.length) return html`<p class="quiet">No session holds memory of this device.</p>`;
  const sizes = areas.map(({ size }) => size);
  const boxes = treemap(sizes, 100, 32); // In percent of the width; the height is set by the style's aspect.
  return html`<ul class="map">${areas.map(({ id, size, name }, place) => {
    const { x, y, width, height } = boxes[place];
    const style = { left: `${x}%`, top: `${y / 0.32}%`, width: `${width}%`, height: `${height / 0.32}%` };
    const words = html`<span>${name}</span><span class="more">${bytes(size)}</span>`;
    return html`<li key=${id || "others"} style=${style} title=${`${name}: ${bytes(size)}`}>
      ${id ? html`<a href=${route.write({ view: "session", ids: [id] })}>${words}</a>` : words}</li>`;
  })}</ul>`;
}
