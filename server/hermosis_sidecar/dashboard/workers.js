// Who contributes to a session, how much, and whom its round waits for.

import { bytes, count, date, number } from "./format.js";
import { html } from "./vendor/preact-htm.module.js";

export function Workers({ workers }) {
  if (!workers.length) return null;
  const awaited = workers.filter((worker) => worker.awaited).map((worker) => worker.worker_id);
  return html`<section class="card" aria-labelledby="workers-title">
    <h3 id="workers-title">Workers</h3>
    <p id="awaited" class="quiet">${awaited.length ? `The round waits for ${awaited.join(", ")}.` : "No round waits for anybody."}</p>
    <div class="scrolled" tabindex="0" role="region" aria-labelledby="workers-title"><table>
      <thead><tr><th scope="col">Worker</th><th scope="col">Stream</th><th scope="col">Round</th><th scope="col">Influence</th>
        <th scope="col">Sequence</th><th scope="col">Base step</th><th scope="col">Staleness</th><th scope="col">Received</th>
        <th scope="col">Last seen</th></tr></thead>
      <tbody>${workers.map((worker) => html`<tr key=${worker.worker_id}>
        <th scope="row">${worker.worker_id}</th><td>${worker.connected ? "connected" : "away"}</td>
        <td>${worker.lost ? "lost" : worker.awaited ? "awaited" : ""}</td><td>${number(worker.influence)}</td>
        <td>${count(worker.next_sequence)}</td><td>${count(worker.base_step)}</td><td>${count(worker.staleness)}</td>
        <td>${bytes(worker.received_bytes)}</td><td>${date(worker.last_seen_time)}</td>
      </tr>`)}</tbody>
    </table></div>
  </section>`;
}
