// What can be done to a session, each after a question that says what will happen.

import { get, send, sessionPath } from "./api.js";
import { numberOr } from "./field.js";
import { bytes, count, date, number } from "./format.js";
import { ProfileForm } from "./profile.js";
import { html, useEffect, useRef, useState } from "./vendor/preact-htm.module.js";

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
  const possible = Object.entries(ACTIONS).filter(([, action]) => action.when.includes(session.status));
  return html`
    <div class="bar" role="group" aria-label="Actions">
      ${possible.map(([key, { name, grave }]) => html`<button type="button" key=${key} class=${grave ? "grave" : ""}
        onClick=${() => setOpen(key)}>${name}</button>`)}
    </div>
    ${open && html`<${Question} key=${open} action=${ACTIONS[open]} session=${session} watched=${watched} act=${act}
      leave=${() => setOpen(null)} />`}`;
}

function Question({ action, session, watched, act, leave }) {
  const dialog = useRef(null);
  const [given, setGiven] = useState({});
  const [fault, setFault] = useState("");
  const [busy, setBusy] = useState(false);
  // What is changed is what was seen when the question was put: an edit of somebody else's meanwhile is not overwritten.
  const [match] = useState({ "if-match": `"${watched.session.etag}"` });
  useEffect(() => dialog.current.showModal(), []);

  const run = async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      const done = await action.run({ path: sessionPath(session.session_id), match, given });
      act.say(`${action.name}: done, at step ${count(done.step)}`);
      await watched.look(); // The next question is about what is there now.
      dialog.current.close();
      action.then?.(done, act);
    } catch (error) {
      setFault(error.message);
      setBusy(false);
    }
  };

  const Form = action.form;
  return html`<dialog ref=${dialog} aria-labelledby="question" onClose=${leave}>
    <form onSubmit=${run} novalidate>
      <h2 id="question">${action.name}: ${watched.name}</h2>
      <p>${action.ask}</p>
      ${Form && html`<${Form} session=${session} given=${given}
        change=${(changes) => setGiven((before) => ({ ...before, ...changes }))} />`}
      <p class="fault" role="alert">${fault}</p>
      <div class="bar">
        <button type="submit" class=${action.grave ? "grave" : "main"} disabled=${busy}>${action.name}</button>
        <button type="button" onClick=${() => dialog.current.close()}>Cancel</button>
      </div>
    </form>
  </dialog>`;
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
