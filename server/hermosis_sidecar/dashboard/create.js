// The form that makes a session. Nothing is judged here: the server's faults are shown at the fields that they name.

import { get, send } from "./api.js";
import { AGGREGATION, CONSISTENCY, FieldsOf, asked, filled } from "./consistency.js";
import { Field, faultOf, numberOr } from "./field.js";
import { count } from "./format.js";
import { PATH, RecipeForm, parametersOf } from "./recipe.js";
import { html, useEffect, useRef, useState } from "./vendor/preact-htm.module.js";

const FIRST = {
  session_id: "",
  display_name: "",
  labels: "",
  recipe: { name: "adamw", parameters: {} },
  tensors: [{ name: "weight", shape: "64, 32", dtype: "FLOAT32" }, { name: "bias", shape: "64", dtype: "FLOAT32" }],
  consistency: { ...filled(CONSISTENCY), workers: "1" },
  aggregation: filled(AGGREGATION),
  parameters_on: "SERVER",
  durability: "",
  snapshot_every_steps: "",
  snapshot_every_s: "",
};

export function Create({ state, act }) {
  const [recipes, setRecipes] = useState([]);
  const [given, setGiven] = useState(FIRST);
  const [faults, setFaults] = useState([]);
  const [refusal, setRefusal] = useState("");
  const form = useRef(null);
  const set = (changes) => setGiven((before) => ({ ...before, ...changes }));
  useEffect(() => {
    get("v1/recipes").then(({ recipes: found }) => setRecipes(found), (error) => setRefusal(error.message));
  }, []);
  // Whoever cannot see where the fault is gets there.
  useEffect(() => form.current.querySelector("[aria-invalid=true]")?.focus(), [faults]);

  const make = async (event) => {
    event.preventDefault();
    try {
      const session = await send("POST", "v1/sessions", wished(given));
      act.say(`Session ${session.session_id} is made and waits for a worker`);
      act.go({ view: "session", ids: [session.session_id] });
    } catch (error) {
      setFaults((error.faults ?? []).map(({ field, message }) => ({ field: inForm(field), message })));
      setRefusal(error.message);
    }
  };

  const text = (name, label, hint, value, change, more = {}) => html`<${Field} ...${{ name, label, hint, faults }}
    control=${(attributes) => html`<input ...${attributes} ...${more} value=${value} onInput=${(event) => change(event.target.value)} />`} />`;
  const choice = (name, label, hint, value, choices, change) => html`<${Field} ...${{ name, label, hint, faults }}
    control=${(attributes) => html`<select ...${attributes} value=${value} onChange=${(event) => change(event.target.value)}>
      ${choices.map(([word, shown]) => html`<option key=${word} value=${word}>${shown}</option>`)}</select>`} />`;
  const rules = (name, fields) => html`<${FieldsOf} fields=${fields} path=${`spec.${name}`} given=${given[name]} faults=${faults}
    change=${(changes) => set({ [name]: { ...given[name], ...changes } })} />`;
  const modes = (state.server?.durability_modes ?? ["NONE", "SNAPSHOT", "JOURNAL"]).map((word) => [word, word]);
  const standard = state.server?.default_durability_mode;

  return html`<form class="create" ref=${form} onSubmit=${make} novalidate aria-labelledby="create-title">
    <h2 id="create-title">New session</h2>
    <p class="quiet">It waits until a worker uploads the initial parameters; gradients and parameters travel by gRPC.</p>
    <fieldset><legend>Name</legend><div class="fields">
      ${text("session_id", "Id", '1 to 63 of a-z, 0-9 and "-"; empty lets the server choose', given.session_id, (session_id) => set({ session_id }))}
      ${text("spec.display_name", "Name", "for people", given.display_name, (display_name) => set({ display_name }))}
      ${text("spec.labels", "Labels", "for filters: key=value, separated by commas", given.labels, (labels) => set({ labels }))}
    </div></fieldset>
    <fieldset><legend>Optimizer</legend>
      <${RecipeForm} recipes=${recipes} given=${given.recipe} change=${(recipe) => set({ recipe })} faults=${faults} />
      <${Elsewhere} faults=${faults} name=${PATH} />
    </fieldset>
    <fieldset><legend>Shapes</legend>
      <${Tensors} tensors=${given.tensors} change=${(tensors) => set({ tensors })} faults=${faults} />
    </fieldset>
    <fieldset><legend>Rounds</legend><div class="fields">${rules("consistency", CONSISTENCY)}</div></fieldset>
    <fieldset><legend>Aggregation</legend><div class="fields">${rules("aggregation", AGGREGATION)}</div></fieldset>
    <fieldset><legend>Parameters and durability</legend><div class="fields">
      ${choice("spec.parameters_on", "Parameters on", "who keeps the weights", given.parameters_on, [["SERVER", "SERVER"], ["WORKER", "WORKER"]], (parameters_on) => set({ parameters_on }))}
      ${choice("spec.durability.mode", "Durability", "NONE keeps nothing, SNAPSHOT the whole state every so often, JOURNAL every step, too", given.durability, [["", standard ? `the server's (${standard})` : "the server's"], ...modes], (durability) => set({ durability }))}
      ${given.durability && given.durability !== "NONE" && html`
        ${text("spec.durability.snapshot_every_steps", "Steps between snapshots", "empty means not by steps", given.snapshot_every_steps, (snapshot_every_steps) => set({ snapshot_every_steps }), { inputmode: "numeric" })}
        ${text("spec.durability.snapshot_every_s", "Seconds between snapshots", "empty means not by time", given.snapshot_every_s, (snapshot_every_s) => set({ snapshot_every_s }), { inputmode: "decimal" })}`}
    </div></fieldset>
    <p class="fault" role="alert">${refusal}</p>
    <button type="submit" class="main">Make the session</button>
  </form>`;
}

// A fault of the whole recipe belongs to no one parameter.
function Elsewhere({ faults, name }) {
  const found = faults.filter(({ field }) => field === name || field === `${name}.parameters`);
  return found.map(({ message }) => html`<p class="fault">${message}</p>`);
}

function Tensors({ tensors, change, faults }) {
  const set = (place, changes) => change(tensors.map((tensor, which) => (which === place ? { ...tensor, ...changes } : tensor)));
  const sizes = tensors.map(({ shape }) => lengths(shape).reduce((size, length) => size * length, 1));
  const whole = sizes.reduce((sum, size) => sum + size, 0);
  return html`
    ${tensors.map((tensor, place) => {
      const path = `spec.layout.tensors[${place}]`;
      const input = (name, label, hint) => html`<${Field} name=${`${path}.${name}`} label=${label} hint=${hint} faults=${faults}
        control=${(attributes) => html`<input ...${attributes} value=${tensor[name]} onInput=${(event) => set(place, { [name]: event.target.value })} />`} />`;
      return html`<div class="fields tensor" key=${place} role="group" aria-label=${`Tensor ${place + 1}`}>
        ${input("name", "Tensor", "its name in the model")}
        ${input("shape", "Shape", "length of each axis, with commas; empty means a scalar")}
        <${Field} name=${`${path}.dtype`} label="Dtype" hint="of the worker; the server's copy is float32" faults=${faults}
          control=${(attributes) => html`<select ...${attributes} value=${tensor.dtype} onChange=${(event) => set(place, { dtype: event.target.value })}>
            ${["FLOAT32", "FLOAT16", "BFLOAT16"].map((word) => html`<option key=${word} value=${word}>${word}</option>`)}</select>`} />
        <button type="button" aria-label=${`Take tensor ${place + 1} away`} disabled=${tensors.length === 1}
          onClick=${() => change(tensors.filter((_, which) => which !== place))}>Take away</button>
      </div>`;
    })}
    ${faultOf(faults.filter(({ field }) => ["spec.layout", "spec.layout.tensors"].includes(field)), "spec.layout")
      && html`<p class="fault">${faultOf(faults, "spec.layout")}</p>`}
    <div class="bar">
      <button type="button" onClick=${() => change([...tensors, { name: "", shape: "", dtype: "FLOAT32" }])}>Add a tensor</button>
      <p class="quiet" role="status">${Number.isFinite(whole) ? `${count(whole)} parameters` : ""}</p>
    </div>`;
}

const lengths = (shape) => shape.split(/[,×x\s]+/).filter(Boolean).map(numberOr);

function wished(given) {
  const optional = (name) => (given[name].trim() === "" ? {} : { [name]: numberOr(given[name]) });
  const labels = given.labels.split(",").map((label) => label.trim()).filter(Boolean);
  return {
    session_id: given.session_id.trim(),
    spec: {
      layout: { tensors: given.tensors.map((tensor) => ({ ...tensor, shape: lengths(tensor.shape) })) },
      optimizer: { recipe: { name: given.recipe.name, parameters: parametersOf(given.recipe) } },
      consistency: asked(CONSISTENCY, given.consistency),
      aggregation: asked(AGGREGATION, given.aggregation),
      parameters_on: given.parameters_on,
      display_name: given.display_name.trim(),
      labels: Object.fromEntries(labels.map((label) => {
        const [key, ...value] = label.split("=");
        return [key.trim(), value.join("=").trim()];
      })),
      ...(given.durability && {
        durability: { mode: given.durability, ...optional("snapshot_every_steps"), ...optional("snapshot_every_s") },
      }),
    },
  };
}

// The server names a field of the spec by its path within it, or within the request.
const inForm = (field) => (/^(spec|session_id)\b/.test(field) ? field : `spec.${field}`);
