// The tokens of the caller's tenant: a list, a form that makes one and shows its secret once, and revoking.

import { send } from "./api.js";
import { copied } from "./copy.js";
import { Field } from "./field.js";
import { date } from "./format.js";
import { Question } from "./question.js";
import { html, useEffect, useRef, useState } from "./vendor/preact-htm.module.js";

const DAY_S = 86_400;
const ROLES = {
  VIEWER: "reads and watches",
  WORKER: "also sends gradients and reads weights",
  OPERATOR: "does everything, tokens included",
};

const MAKE = {
  name: "Make the token",
  ask: "Its bearer does what the role may, with the sessions that the pattern matches. The secret is shown once.",
  form: TokenForm,
  run: ({ given }) => send("POST", "v1/tokens", {
    name: given.name ?? "",
    role: given.role ?? "VIEWER",
    sessions: given.sessions ?? "",
    lifetime_s: lifetime(given.days ?? ""),
  }),
};

const revoke = (name) => ({
  name: "Revoke",
  ask: "It lets nobody in any more, and what goes on under it ends within two seconds. This cannot be undone.",
  grave: true,
  run: () => send("DELETE", `v1/tokens/${encodeURIComponent(name)}`),
});

// What is no number goes to the server as it is, which says so at the field.
const lifetime = (days) => (days.trim() === "" ? 0 : Number.isFinite(Number(days)) ? Number(days) * DAY_S : days);

export function Tokens({ tokens, look, act }) {
  const [open, setOpen] = useState(null);
  const [made, setMade] = useState(null);
  const ask = (action, title, done) => setOpen({ action, title, done });
  const make = () => ask(MAKE, "New token", async (token) => {
    act.say(`Token ${token.name} is made`);
    setMade(token);
    await look();
  });
  const end = ({ name }) => ask(revoke(name), `Revoke: ${name}`, async () => {
    act.say(`Token ${name} is revoked`);
    await look();
  });
  return html`<section class="card" aria-labelledby="tokens-title">
    <div class="title"><h3 id="tokens-title">Tokens</h3><button type="button" onClick=${make}>New token</button></div>
    ${tokens.length
      ? html`<table class="cards">
          <caption>Of this tenant, without their secrets</caption>
          <thead><tr><th scope="col">Name</th><th scope="col">Role</th><th scope="col">Sessions</th><th scope="col">Made</th>
            <th scope="col">Holds</th><th scope="col"><span class="unseen">Revoke</span></th></tr></thead>
          <tbody>${tokens.map((token) => html`<${Row} key=${`${token.name} ${token.create_time}`} token=${token} end=${end} />`)}</tbody>
        </table>`
      : html`<p class="empty">There is none that you may see.</p>`}
    ${open && html`<${Question} ...${open} about=${{}} leave=${() => setOpen(null)} />`}
    ${made && !open && html`<${Secret} made=${made} say=${act.say} leave=${() => setMade(null)} />`}
  </section>`;
}

function Row({ token, end }) {
  const { name, role, sessions, create_time: made, expire_time: expires, revoke_time: revoked } = token;
  const over = revoked ? `revoked ${date(revoked)}` : expires && Date.parse(expires) <= Date.now() ? `expired ${date(expires)}` : "";
  return html`<tr>
    <th scope="row">${name}</th><td data-label="Role">${role}</td><td data-label="Sessions"><code>${sessions}</code></td>
    <td data-label="Made">${date(made)}</td>
    <td data-label="Holds" class=${over ? "quiet" : ""}>${over || (expires ? `until ${date(expires)}` : "for ever")}</td>
    <td>${!revoked && html`<button type="button" class="grave" aria-label=${`Revoke ${name}`} onClick=${() => end(token)}>Revoke</button>`}</td>
  </tr>`;
}

function TokenForm({ given, faults, change }) {
  const text = (name, path, label, hint, more = {}) => html`<${Field} ...${{ name: path, label, hint, faults }}
    control=${(attributes) => html`<input ...${attributes} ...${more} autocomplete="off" value=${given[name] ?? ""}
      onInput=${(event) => change({ [name]: event.target.value })} />`} />`;
  const role = given.role ?? "VIEWER";
  return html`<div class="fields">
    ${text("name", "name", "Name", "to revoke it by: 1 to 63 letters, digits, '.', '_' and '-'")}
    <${Field} name="role" label="Role" hint=${ROLES[role]} faults=${faults}
      control=${(attributes) => html`<select ...${attributes} value=${role} onChange=${(event) => change({ role: event.target.value })}>
        ${Object.keys(ROLES).map((word) => html`<option key=${word} value=${word}>${word}</option>`)}</select>`} />
    ${text("sessions", "sessions", "Sessions", "a pattern of ids, with * and ?; empty means all that you see")}
    ${text("days", "lifetime_s", "Days", "that it holds; empty means for ever", { inputmode: "decimal" })}
  </div>`;
}

// Escape does not close it: what it shows is shown this once.
function Secret({ made, say, leave }) {
  const dialog = useRef(null);
  const field = useRef(null);
  const [told, setTold] = useState("");
  useEffect(() => dialog.current.showModal(), []);
  const copy = async () => {
    const done = await copied(made.secret);
    if (!done) field.current.select();
    const text = done ? "Token copied" : "This browser gives no clipboard to this address: the token is selected, copy it";
    setTold(text);
    say(text);
  };
  return html`<dialog ref=${dialog} aria-labelledby="secret-title" onClose=${leave} onCancel=${(event) => event.preventDefault()}>
    <h2 id="secret-title">Token: ${made.name}</h2>
    <p>It is shown this once. Put it where its bearer finds it, and nowhere else.</p>
    <div class="bar">
      <input ref=${field} class="link-text" readonly aria-label="Secret" value=${made.secret} onFocus=${(event) => event.target.select()} />
      <button type="button" onClick=${copy}>Copy</button>
    </div>
    <p class="quiet">${told}</p>
    <div class="bar"><button type="button" class="main" onClick=${() => dialog.current.close()}>I have it</button></div>
  </dialog>`;
}
