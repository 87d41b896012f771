// What is asked before something is done: what will happen, what must be known for it, and what the server found wrong.

import { html, useEffect, useRef, useState } from "./vendor/preact-htm.module.js";

// action: its name, what to `ask`, a `form` where something must be known, and `run`, which does it. `about` is what it is
// about: form and run get it, beside what the form was `given`. `done` hears what came of it, before the dialog closes.
export function Question({ action, title, about, done, leave }) {
  const dialog = useRef(null);
  const [given, setGiven] = useState({});
  const [faults, setFaults] = useState([]);
  const [refusal, setRefusal] = useState("");
  const [busy, setBusy] = useState(false);
  useEffect(() => dialog.current.showModal(), []);
  // Whoever cannot see where the fault is gets there.
  useEffect(() => dialog.current.querySelector("[aria-invalid=true]")?.focus(), [faults]);

  const run = async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      await done(await action.run({ ...about, given }));
      dialog.current.close();
    } catch (error) {
      setFaults(error.faults ?? []);
      setRefusal(error.message);
      setBusy(false);
    }
  };

  const Form = action.form;
  return html`<dialog ref=${dialog} aria-labelledby="question" onClose=${leave}>
    <form onSubmit=${run} novalidate>
      <h2 id="question">${title}</h2>
      <p>${action.ask}</p>
      ${Form && html`<${Form} ...${about} given=${given} faults=${faults}
        change=${(changes) => setGiven((before) => ({ ...before, ...changes }))} />`}
      <p class="fault" role="alert">${refusal}</p>
      <div class="bar">
        <button type="submit" class=${action.grave ? "grave" : "main"} disabled=${busy}>${action.name}</button>
        <button type="button" onClick=${() => dialog.current.close()}>Cancel</button>
      </div>
    </form>
  </dialog>`;
}
