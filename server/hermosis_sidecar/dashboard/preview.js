// The preview of a thermal profile: what it will do to momentum, drawn before anything is changed.

import { Chart } from "./chart.js";
import { number } from "./format.js";
import { memory, preview } from "./thermal.js";
import { html } from "./vendor/preact-htm.module.js";

const LINES = [
  { label: "retention", color: "--line-1", width: 2 },
  { label: "growth of ln β", color: "--line-2" },
];

export function Preview({ profile, stepDuration = 1, beta = 1 }) {
  const told = profile && preview(profile, { stepDuration, beta });
  if (!told)
    return html`<p class="quiet">No preview: this profile answers to the loss, or its numbers are not whole yet.</p>`;
  return html`<div class="preview">
    <p id="preview-words" role="status">${inWords(told.retention)}</p>
    <${Chart} title="Retention over steps" hint="the effective momentum coefficient" x="step"
      lines=${LINES.slice(0, 1)} data=${[told.steps, told.retention]} />
    <${Chart} title="Growth of ln β" hint="since the first step" x="step"
      lines=${LINES.slice(1)} data=${[told.steps, told.logBeta]} />
  </div>`;
}

function inWords(retention) {
  const [first, last] = [retention[0], retention.at(-1)];
  if (retention.every((value) => value === 1)) return "No friction: momentum is kept for ever, and the model never settles.";
  if (Math.max(...retention) > 1) return `The session is heated: momentum grows by itself, ${number(last)}-fold at step ${retention.length}.`;
  const gradients = Math.round(memory(last));
  const meaning = gradients === 1 ? "gradient counts" : `${gradients} gradients count`;
  if (Math.abs(first - last) < 1e-9) return `Every step keeps ${number(first)} of the momentum: about the last ${meaning}.`;
  return `The first step keeps ${number(first)} of the momentum, step ${retention.length} keeps ${number(last)}: by then about the last ${meaning}.`;
}
