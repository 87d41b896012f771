// All sessions: the device's memory, how the server does, and a table to search, sort and compare from.

import { Alerts, Memory, Numbers } from "./overview.js";
import { bytes, count, number, optimizer } from "./format.js";
import { Spark } from "./spark.js";
import * as route from "./route.js";
import { html, useRef, useState } from "./vendor/preact-htm.module.js";

const STATUSES = ["CREATING", "READY", "PAUSED", "RECOVERING", "FAILED"];
const SEARCH_MS = 250;
const MOST_COMPARED = 8;

export function Fleet({ state, act }) {
  const { overview, fleet, sparks } = state;
  const [compared, setCompared] = useState([]);
  const toggle = (id) =>
    setCompared((before) => (before.includes(id) ? before.filter((other) => other !== id) : [...before, id]));
  const names = new Map((fleet.sessions ?? []).map((session) => [session.session_id, session.display_name]));
  return html`
    <h2 class="unseen">Fleet</h2>
    ${overview && html`
      <${Alerts} alerts=${overview.alerts} />
      <${Numbers} overview=${overview} />
      <${Memory} devices=${overview.devices} names=${names} />`}
    <section aria-labelledby="sessions-title">
      <div class="title">
        <h2 id="sessions-title">Sessions</h2>
        <${Compared} compared=${compared} clear=${() => setCompared([])} />
      </div>
      <${Filters} options=${state.route.options} act=${act} />
      ${fleet.error && html`<p class="fault" role="alert">${fleet.error}</p>`}
      ${fleet.sessions === null
        ? html`<p class="quiet">Asking the server …</p>`
        : html`<${Table} ...${{ sessions: fleet.sessions, sparks, compared, toggle, act, options: state.route.options }} />`}
      ${fleet.more && html`<button type="button" onClick=${act.more}>More</button>`}
    </section>`;
}

function Compared({ compared, clear }) {
  if (!compared.length) return html`<span class="quiet">Tick sessions to compare them.</span>`;
  return html`
    <a class="button main" href=${route.write({ view: "compare", ids: compared })}>Compare ${compared.length}</a>
    <button type="button" onClick=${clear}>Clear</button>`;
}

function Filters({ options, act }) {
  const timer = useRef(null);
  const search = (event) => {
    clearTimeout(timer.current);
    const { value } = event.target;
    timer.current = setTimeout(() => act.options({ search: value.trim() }), SEARCH_MS);
  };
  return html`<div class="bar" role="search">
    <label class="inline"><span>Search</span>
      <input type="search" name="search" defaultValue=${options.search ?? ""} onInput=${search} placeholder="id, name, recipe, label" /></label>
    <label class="inline"><span>Status</span>
      <select name="status" value=${options.status ?? ""} onChange=${(event) => act.options({ status: event.target.value })}>
        <option value="">any</option>
        ${STATUSES.map((status) => html`<option key=${status} value=${status}>${status}</option>`)}
      </select></label>
    <label class="inline"><span>Sort</span>
      <select name="sort" value=${options.sort ?? "-create_time"} onChange=${(event) => act.options({ sort: event.target.value })}>
        <option value="-create_time">newest first</option>
        <option value="create_time">oldest first</option>
        <option value="session_id">by id</option>
        <option value="-step">most steps first</option>
        <option value="step">fewest steps first</option>
      </select></label>
  </div>`;
}

function Table({ sessions, sparks, compared, toggle, act, options }) {
  if (!sessions.length)
    return options.search || options.status
      ? html`<p class="empty">No session is like that.</p>`
      : html`<div class="empty" id="no-sessions"><p>No session yet. This makes one, with two workers on real data:</p>
          <pre><code>hermosis demo</code></pre><p>Or <a href="#/create">make one here</a>.</p></div>`;
  return html`<table class="fleet cards">
    <caption class="unseen">Sessions, with their newest reading</caption>
    <thead><tr>
      <th scope="col"><span class="unseen">Compare</span></th>
      <${Sorted} name="Session" by="session_id" options=${options} act=${act} />
      <th scope="col">Status</th><th scope="col">Optimizer</th>
      <${Sorted} name="Step" by="step" options=${options} act=${act} />
      <th scope="col">Loss</th><th scope="col">Its last readings</th><th scope="col">Workers</th>
      <th scope="col">Memory</th>
    </tr></thead>
    <tbody>${sessions.map((session) => html`<${Row} key=${session.session_id} ...${{ session, sparks }}
      ticked=${compared.includes(session.session_id)} full=${compared.length >= MOST_COMPARED}
      toggle=${() => toggle(session.session_id)} />`)}</tbody>
  </table>`;
}

function Sorted({ name, by, options, act }) {
  const sort = options.sort ?? "-create_time";
  const direction = { [by]: "ascending", [`-${by}`]: "descending" }[sort] ?? "none";
  const turn = () => act.options({ sort: direction === "descending" || (direction === "none" && by !== "step") ? by : `-${by}` });
  return html`<th scope="col" aria-sort=${direction}><button type="button" class="sort" onClick=${turn}>
    ${name}<span aria-hidden="true">${{ ascending: " ▲", descending: " ▼", none: " ↕" }[direction]}</span></button></th>`;
}

function Row({ session, sparks, ticked, full, toggle }) {
  const { session_id: id, display_name: given, status } = session;
  return html`<tr>
    <td class="tick"><input type="checkbox" aria-label=${`Compare ${given || id}`} checked=${ticked} disabled=${full && !ticked} onChange=${toggle} /></td>
    <th scope="row"><a href=${route.write({ view: "session", ids: [id] })}>${given || id}</a>
      ${given && html`<code class="quiet">${id}</code>`}</th>
    <td data-label="Status"><span class="status" data-status=${status} title=${session.status_reason}>${status}</span></td>
    <td data-label="Optimizer">${optimizer(session.optimizer)}</td>
    <td data-label="Step" class="number">${count(session.step)}</td>
    <td data-label="Loss" class="number">${number(session.reading?.energies.loss)}</td>
    <td class="curve"><${Spark} points=${sparks.points(id)} /></td>
    <td data-label="Workers" class="number">${count(session.workers)} of ${count(session.expected_workers)}</td>
    <td data-label="Memory" class="number">${bytes(session.device_bytes || session.host_bytes)}${!session.device_bytes && session.host_bytes ? " (host)" : ""}</td>
  </tr>`;
}
