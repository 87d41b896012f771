// One field of a form: its label, what it means, and what the server found wrong with it.

import { html } from "./vendor/preact-htm.module.js";

// A number where the text is one, and the text where it is not: then the server says so, at the field.
export const numberOr = (text) => (text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text.trim());

// What the server found wrong with a field or what is in it, by the path of the field.
export function faultOf(faults, name) {
  const within = faults.filter(({ field }) => field === name || field.startsWith(`${name}.`) || field.startsWith(`${name}[`));
  return within.map(({ message }) => message).join("; ");
}

// `control` makes the input from the attributes that tie it to its words.
export function Field({ name, label, hint, faults, control }) {
  const fault = faultOf(faults, name);
  const attributes = {
    id: name,
    name,
    "aria-invalid": fault ? "true" : null,
    "aria-describedby": `${name}-hint${fault ? ` ${name}-fault` : ""}`,
  };
  return html`<div class="field">
    <label for=${name}>${label}</label>
    ${control(attributes)}
    <small class="quiet" id=${`${name}-hint`}>${hint}</small>
    ${fault && html`<small class="fault" id=${`${name}-fault`}>${fault}</small>`}
  </div>`;
}
