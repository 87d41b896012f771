// How contributions become a step: the fields of a consistency and of an aggregation, in a form and to be read.

import { Field, numberOr } from "./field.js";
import { count, number } from "./format.js";
import { html } from "./vendor/preact-htm.module.js";

const hasRounds = ({ mode }) => ["BARRIER", "QUORUM", "LOCAL"].includes(mode);
const hasQuorum = ({ mode }) => ["QUORUM", "LOCAL"].includes(mode);

// Of each field its label, what it means, `choices` where it is a word, what `zero` means where it means something of its
// own, and `when` there is such a field.
export const CONSISTENCY = [
  { name: "mode", label: "Consistency", choices: {
    BARRIER: "steps when every worker has sent its gradient",
    QUORUM: "steps when enough workers have",
    ASYNC: "steps on each arrival",
    BOUNDED: "steps on each arrival, while no worker is too far ahead",
    LOCAL: "as BARRIER or QUORUM, with steps on the workers between rounds",
  } },
  { name: "workers", label: "Workers", hint: "that take part in a round" },
  { name: "quorum", label: "Quorum", hint: "contributions that make a step", zero: "all", when: hasQuorum },
  { name: "deadline_s", label: "Deadline", hint: "seconds after which a round steps with what it has", zero: "never", when: hasQuorum },
  { name: "local_steps", label: "Local steps", hint: "of a worker by itself", zero: "1", when: ({ mode }) => mode === "LOCAL" },
  { name: "late", label: "Late contributions", choices: {
    DEFAULT: "as the mode has it: refused, in QUORUM dropped",
    REFUSE: "refused: the worker pulls and computes anew",
    DROP: "dropped: the worker is answered, and nothing changes",
    CARRY: "counted into the round that is in the making",
  } },
  { name: "max_staleness", label: "Staleness, at most", hint: "steps that a gradient may be behind", zero: "no limit",
    when: ({ mode, late }) => mode === "ASYNC" || (late === "CARRY" && hasRounds({ mode })) },
  { name: "max_staleness", label: "Ahead, at most", hint: "steps that a worker may be ahead of the slowest", zero: "0",
    when: ({ mode }) => mode === "BOUNDED" },
  { name: "staleness_weight", label: "Weight of late gradients", choices: {
    AS_NOW: "like one of the present step",
    AS_THEN: "as if it had come in its own time",
  } },
  { name: "lease_s", label: "Lease", hint: "seconds of silence after which rounds go on without a worker", zero: "never" },
];

const CAPPED = ["TRIMMED_MEAN", "KRUM", "MULTI_KRUM"];

export const AGGREGATION = [
  { name: "rule", label: "Aggregation", choices: {
    MEAN: "the mean, weighted by the samples that workers state",
    CLIPPED_MEAN: "the mean of contributions that are first shortened",
    MEDIAN: "the median of each coordinate",
    TRIMMED_MEAN: "the mean without the largest and smallest of each coordinate",
    KRUM: "the contribution that is closest to its neighbours",
    MULTI_KRUM: "the mean of all but those furthest from their neighbours",
  } },
  { name: "max_norm", label: "Contribution, at most", hint: "length that contributions are shortened to", when: ({ rule }) => rule === "CLIPPED_MEAN" },
  { name: "byzantine", label: "Hostile workers", hint: "that are withstood", zero: "0", when: ({ rule }) => CAPPED.includes(rule) },
  { name: "clip_norm", label: "Gradient, at most", hint: "length that a round's gradient is shortened to", zero: "not shortened" },
  { name: "quarantine", label: "Quarantine", hint: "contributions that are not finite are left out, and the round goes on", isFlag: true },
];

const there = (fields, given) => fields.filter(({ when }) => !when || when(given));

// What a form begins with: what the server said, or what it does where nothing is said.
export function filled(fields, said = {}) {
  return Object.fromEntries(fields.map(({ name, choices, isFlag }) => {
    if (choices) return [name, said[name] ?? Object.keys(choices)[0]];
    if (isFlag) return [name, said[name] ?? false];
    return [name, said[name] ? String(said[name]) : ""];
  }));
}

// What the server is to be told: what was left empty has its default.
export function asked(fields, given) {
  const told = there(fields, given).filter(({ name }) => given[name] !== "");
  return Object.fromEntries(told.map(({ name, choices, isFlag }) =>
    [name, choices || isFlag ? given[name] : numberOr(given[name])]));
}

// path: of the fields in what the server is sent. given: as `filled` gives it.
export function FieldsOf({ fields, path, given, change, faults }) {
  const control = ({ name, choices, isFlag }) => (attributes) => {
    if (isFlag) return html`<input type="checkbox" ...${attributes} checked=${given[name]} onChange=${(event) => change({ [name]: event.target.checked })} />`;
    if (!choices) return html`<input inputmode="decimal" ...${attributes} value=${given[name]} onInput=${(event) => change({ [name]: event.target.value })} />`;
    return html`<select ...${attributes} value=${given[name]} onChange=${(event) => change({ [name]: event.target.value })}>
      ${Object.keys(choices).map((word) => html`<option key=${word} value=${word}>${word}</option>`)}</select>`;
  };
  const hint = ({ name, choices, hint: words, zero }) => choices?.[given[name]] ?? [words, zero && `empty means ${zero}`].filter(Boolean).join("; ");
  return there(fields, given).map((field) => html`<${Field} key=${field.name} name=${`${path}.${field.name}`} label=${field.label}
    hint=${hint(field)} faults=${faults} control=${control(field)} />`);
}

function shown({ name, choices, isFlag, zero }, said) {
  const value = said[name];
  if (choices) return value;
  if (isFlag) return value ? "on" : "off";
  if (!value && zero) return zero;
  return name.endsWith("_s") ? `${number(value)} s` : name.endsWith("_norm") ? number(value) : count(value);
}

// How a session's contributions become steps.
export function Rounds({ spec }) {
  const facts = (fields, said) => there(fields, said).map((field) => html`<div key=${field.name}>
    <dt>${field.label}</dt><dd>${shown(field, said)}</dd>
    <dd class="more">${field.choices?.[said[field.name]] ?? field.hint}</dd></div>`);
  return html`<section class="card" aria-labelledby="rounds-title">
    <h3 id="rounds-title">Rounds</h3>
    <dl class="facts">${facts(CONSISTENCY, spec.consistency)}${facts(AGGREGATION, spec.aggregation)}</dl>
  </section>`;
}
