// For operators: who may come in, and who did what.

import { get, isNamed } from "./api.js";
import { date } from "./format.js";
import { Tokens } from "./tokens.js";
import { html, useEffect, useState } from "./vendor/preact-htm.module.js";

const PAGE = 50;
const MOST = 1000; // that the sidecar gives

export function Access({ state, act }) {
  const [known, setKnown] = useState(null);
  const [limit, setLimit] = useState(PAGE);
  const [fault, setFault] = useState(null);
  const look = async () => {
    try {
      const [{ tokens }, { entries }] = await Promise.all([get("v1/tokens"), get(`v1/audit?limit=${limit}`)]);
      setKnown({ tokens, entries });
      setFault(null);
    } catch (error) {
      setFault(error);
    }
  };
  useEffect(() => { look(); }, [limit, state.link.state]);

  return html`
    <h2>Access</h2>
    ${fault && html`<p class="fault" role="alert">${fault.status === 403 ? "Tokens and the audit log are for operators: " : ""}${fault.message}</p>`}
    ${!fault && !known && html`<p class="quiet">Asking the server …</p>`}
    ${!fault && known && html`
      ${asksNobody(known.tokens) ? html`<${Open} />` : html`<${Tokens} tokens=${known.tokens} look=${look} act=${act} />`}
      <${Audit} entries=${known.entries} limit=${limit} more=${() => setLimit(Math.min(MOST, limit + PAGE))} />`}`;
}

// Who brings nothing is let in where nobody is asked, and there alone. The first token ends that for good.
const asksNobody = (tokens) => !isNamed() && !tokens.length;

function Open() {
  return html`<section class="card" aria-labelledby="tokens-title">
    <h3 id="tokens-title">Tokens</h3>
    <div class="empty"><p>This server asks nobody who they are: whoever reaches it may do everything. The first token ends that,
      and is made on the server's machine:</p>
      <pre tabindex="0"><code>hermosis token create --name NAME --role operator</code></pre></div>
  </section>`;
}

function Audit({ entries, limit, more }) {
  return html`<section class="card" aria-labelledby="audit-title">
    <h3 id="audit-title">Audit log</h3>
    ${entries.length
      ? html`<table class="cards">
          <caption>Who managed what, newest first</caption>
          <thead><tr><th scope="col">Time</th><th scope="col">Who</th><th scope="col">Role</th><th scope="col">What</th>
            <th scope="col">About</th><th scope="col">Outcome</th></tr></thead>
          <tbody>${entries.map((entry) => html`<tr>
            <td data-label="Time"><time datetime=${entry.time}>${date(entry.time)}</time></td>
            <th scope="row">${entry.subject}</th><td data-label="Role">${entry.role}</td><td data-label="What">${entry.method}</td>
            <td data-label="About">${entry.session_id || entry.token}</td>
            <td data-label="Outcome" class=${entry.outcome === "OK" ? "" : "fault"}>${entry.outcome}</td>
          </tr>`)}</tbody>
        </table>`
      : html`<p class="empty">Nothing has been managed yet.</p>`}
    ${entries.length === limit && (limit < MOST
      ? html`<button type="button" onClick=${more}>More</button>`
      : html`<p class="quiet">The newest ${MOST}. All that is kept is in audit.jsonl on the server.</p>`)}
  </section>`;
}
