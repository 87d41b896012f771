// What can be done to a session, each after a question that says what will happen.

import { get, send, sessionPath } from "./api.js";
import { CONSISTENCY, FieldsOf, asked, filled } from "./consistency.js";
import { numberOr } from "./field.js";
import { bytes, count, date, number } from "./format.js";
import { ProfileForm } from "./profile.js";
import { Question } from "./question.js";
import { html, useEffect, useState } from "./vendor/preact-htm.module.js";

const LIVE = ["READY", "PAUSED"];

// name, when it can be done, what is asked before, and what it does. `given` is what the form holds.
const ACTIONS = {
  pause: {
    name: "Pause",
    when: ["READY"],
    ask: "From the next step on, gradients are refused until the session is resumed. Workers wait.",
    run: ({ path }) => send("POST", `${path}/pause`),
  },
  resume: {
    name: "Resume",
    when: ["PAUSED"],
    ask: "Gradients are taken again.",
    run: ({ path }) => send("POST", `${path}/resume`),
  },
  rate: {
    name: "Learning rate",
    when: LIVE,
    ask: "lr_scale multiplies the learning rate from the next step on. Friction and β stay as they are.",
    form: ScaleForm,
    run: ({ path, match, given }) => send("PATCH", path, { lr_scale: given.lr_scale }, match),
  },
  thermal: {
    name: "Thermal profile",
    when: LIVE,
    ask: "β goes on from where it is, by the new profile, from the next step on.",
    form: ProfileEdit,
    run: ({ path, match, given }) => send("PATCH", path, { thermal_profile: whole(given.thermal_profile) }, match),
  },
  consistency: {
    name: "Consistency",
    when: LIVE,
    ask: "Contributions become steps by the new rule, from the next step on. What has come for the round in the making stays in it.",
    form: ConsistencyEdit,
    run: ({ path, match, session, given }) =>
      send("PATCH", path, { consistency: asked(CONSISTENCY, { ...filled(CONSISTENCY, session.spec.consistency), ...given }) }, match),
  },
  snapshot: {
    name: "Snapshot",
    when: LIVE,
    ask: "The whole session is written to the server's disk now.",
    run: ({ path }) => send("POST", `${path}/snapshot`),
  },
  restore: {
    name: "Restore",
    when: [...LIVE, "FAILED"],
    ask: "The session goes back to a snapshot. What came after it is undone, and workers pull its parameters.",
    form: SnapshotChoice,
    run: ({ path, given }) => send("POST", `${path}/restore`, { snapshot_id: given.snapshot_id ?? "" }),
  },
  fork: {
    name: "Fork",
    when: LIVE,
    ask: "A new session goes on from this one's present state, with workers of its own.",
    form: ForkForm,
    run: ({ path, given }) => send("POST", `${path}/fork`, { session_id: given.session_id ?? "" }),
    then: (forked, act) => act.go({ view: "session", ids: [forked.session_id] }),
  },
  close: {
    name: "Close",
    when: ["CREATING", ...LIVE, "FAILED"],
    ask: "The server gives back the session's memory, and its weights with it. Workers are sent away. This cannot be undone.",
    grave: true,
    run: ({ path }) => send("DELETE", path),
  },
};

function whole(profile) {
  if (!profile) throw new Error("The profile is not whole: give a number in each of its fields.");
  return profile;
}

export function Actions({ session, watched, act }) {
  const [open, setOpen] = useState(null);
  const possible = Object.values(ACTIONS).filter((action) => action.when.includes(session.status));
  // What is changed is what was seen when the question was put: an edit of somebody else's meanwhile is not overwritten.
  const put = (action) => setOpen({
    action,
    about: { session: watched.session, path: sessionPath(watched.id), match: { "if-match": `"${watched.session.etag}"` } },
  });
  const done = async (told) => {
    act.say(`${open.action.name}: done, at step ${count(told.step)}`);
    await watched.look(); // The next question is about what is there now.
    open.action.then?.(told, act);
  };
  return html`
    <div class="bar" role="group" aria-label="Actions">
      ${possible.map((action) => html`<button type="button" key=${action.name} class=${action.grave ? "grave" : ""}
        onClick=${() => put(action)}>${action.name}</button>`)}
    </div>
    ${open && html`<${Question} key=${open.action.name} ...${open} title=${`${open.action.name}: ${watched.name}`} done=${done}
      leave=${() => setOpen(null)} />`}`;
}

function ScaleForm({ session, given, change }) {
  const text = given.text ?? String(session.lr_scale);
  const fill = (value) => change({ text: value, lr_scale: numberOr(value) });
  useEffect(() => fill(text), []);
  return html`<label class="field"><span>lr_scale</span>
      <input name="lr_scale" inputmode="decimal" value=${text} onInput=${(event) => fill(event.target.value)} />
      <small class="quiet">now ${number(session.lr_scale)}; above 0</small></label>
    <div class="bar">${[0.1, 0.5, 2].map((factor) => html`<button type="button" key=${factor}
      onClick=${() => fill(String(session.lr_scale * factor))}>× ${factor}</button>`)}</div>`;
}

function ProfileEdit({ session, change }) {
  const { hamiltonian } = session.spec.optimizer;
  return html`<${ProfileForm} stepDuration=${hamiltonian?.step_duration ?? 1}
    change=${(profile) => change({ thermal_profile: profile })} />`;
}

function ConsistencyEdit({ session, given, faults, change }) {
  const now = { ...filled(CONSISTENCY, session.spec.consistency), ...given };
  return html`<div class="fields">
    <${FieldsOf} fields=${CONSISTENCY} path="consistency" given=${now} change=${change} faults=${faults} />
  </div>`;
}

function SnapshotChoice({ session, given, change }) {
  const [snapshots, setSnapshots] = useState(null);
  const [fault, setFault] = useState("");
  useEffect(() => {
    get(`${sessionPath(session.session_id)}/snapshots`).then(
      ({ snapshots: found }) => setSnapshots(found),
      (error) => setFault(error.message),
    );
  }, []);
  if (fault) return html`<p class="fault" role="alert">${fault}</p>`;
  if (snapshots === null) return html`<p class="quiet">Asking for the snapshots …</p>`;
  if (!snapshots.length) return html`<p class="quiet">There is no snapshot of this session.</p>`;
  const chosen = given.snapshot_id ?? snapshots[0].snapshot_id;
  return html`<label class="field"><span>Snapshot</span>
    <select name="snapshot_id" value=${chosen} onChange=${(event) => change({ snapshot_id: event.target.value })}>
      ${snapshots.map((each) => html`<option key=${each.snapshot_id} value=${each.snapshot_id}>
        ${`step ${count(each.step)}, ${date(each.time)}, ${bytes(each.size_bytes)}`}</option>`)}
    </select></label>`;
}

function ForkForm({ given, change }) {
  return html`<label class="field"><span>Id of the new session</span>
    <input name="session_id" value=${given.session_id ?? ""} onInput=${(event) => change({ session_id: event.target.value.trim() })} />
    <small class="quiet">1 to 63 of a-z, 0-9 and "-"; empty lets the server choose</small></label>`;
}
