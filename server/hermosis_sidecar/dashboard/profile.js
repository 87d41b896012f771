// The form of a thermal profile, by kind and numbers; the two kinds that are lists are given in protobuf's JSON.

import { Preview } from "./preview.js";
import { html, useEffect, useState } from "./vendor/preact-htm.module.js";

const KINDS = {
  exponential: {
    words: "Friction at a constant rate.",
    numbers: [["momentum_retention", "Retention of momentum over a step", 0.9, "0 up to, but not, 1"]],
  },
  constant: { words: "No friction.", numbers: [] },
  linear: {
    words: "Beta grows by as much in each unit of time: friction fades as 1/t.",
    numbers: [["rate", "Growth of beta per unit of time", 0.1, "negative heats"]],
  },
  power: {
    words: "Friction is exponent over age. Exponent 3 is Nesterov's differential equation.",
    numbers: [["exponent", "Exponent", 3, "not 0"], ["age", "Age, in units of time", 10, "above 0"]],
  },
  tabulated: { words: "ln β is linear between knots.", json: '{"knots": [{"time": 0, "beta": 1}, {"time": 100, "beta": 10}]}' },
  polynomial: {
    words: "Beta answers to the loss.",
    json: '{"terms": [{"coefficient": 0.1, "internal_energy_power": 1, "beta_power": 1}]}',
  },
};

// Calls `change` with the profile in protobuf's JSON, or with null while it is not whole.
export function ProfileForm({ change, stepDuration }) {
  const [kind, setKind] = useState("exponential");
  const [given, setGiven] = useState({});
  const { words, numbers = [], json } = KINDS[kind];
  const profile = made(kind, given);
  useEffect(() => change(profile), []);

  const choose = (next) => {
    setKind(next);
    setGiven({});
    change(made(next, {}));
  };
  const fill = (name, value) => {
    const next = { ...given, [name]: value };
    setGiven(next);
    change(made(kind, next));
  };

  return html`
    <label class="field"><span>Profile</span>
      <select name="thermal_profile" value=${kind} onChange=${(event) => choose(event.target.value)}>
        ${Object.keys(KINDS).map((each) => html`<option key=${each} value=${each}>${each}</option>`)}
      </select><small class="quiet">${words}</small></label>
    ${numbers.map(([name, label, first, hint]) => html`<label class="field" key=${name}><span>${label}</span>
      <input name=${name} inputmode="decimal" value=${given[name] ?? String(first)}
        onInput=${(event) => fill(name, event.target.value)} /><small class="quiet">${hint}</small></label>`)}
    ${json && html`<label class="field"><span>In JSON</span>
      <textarea name="json" rows="4" onInput=${(event) => fill("json", event.target.value)}>${given.json ?? json}</textarea></label>`}
    <${Preview} profile=${profile} stepDuration=${stepDuration} />`;
}

function made(kind, given) {
  const { numbers = [], json } = KINDS[kind];
  if (json) {
    try {
      return { [kind]: JSON.parse(given.json ?? json) };
    } catch {
      return null;
    }
  }
  const values = numbers.map(([name, , first]) => [name, Number(String(given[name] ?? first).trim() || NaN)]);
  return values.every(([, value]) => Number.isFinite(value)) ? { [kind]: Object.fromEntries(values) } : null;
}
