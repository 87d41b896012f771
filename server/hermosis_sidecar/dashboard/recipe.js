// The part of a form that chooses a recipe and fills its parameters, each with its meaning, bounds and default.

import { Field, numberOr } from "./field.js";
import { number } from "./format.js";
import { Preview } from "./preview.js";
import { profileOfRecipe } from "./thermal.js";
import { html } from "./vendor/preact-htm.module.js";

export const PATH = "spec.optimizer.recipe";

// given: { name, parameters: { name: text or flag } }.
export function RecipeForm({ recipes, given, change, faults }) {
  const recipe = recipes.find(({ name }) => name === given.name);
  const set = (name, value) => change({ ...given, parameters: { ...given.parameters, [name]: value } });
  return html`
    <${Field} name=${`${PATH}.name`} label="Recipe" faults=${faults} hint=${recipe?.physics ?? ""}
      control=${(attributes) => html`<select ...${attributes} value=${given.name}
        onChange=${(event) => change({ name: event.target.value, parameters: {} })}>
        ${recipes.map(({ name }) => html`<option key=${name} value=${name}>${name}</option>`)}
      </select>`} />
    ${recipe && html`<p class="quiet">Source: ${recipe.source}</p>`}
    <div class="fields">${recipe?.parameters.map((parameter) => html`<${Parameter} key=${`${recipe.name} ${parameter.name}`}
      parameter=${parameter} value=${given.parameters[parameter.name]} set=${(value) => set(parameter.name, value)}
      faults=${faults} />`)}</div>
    ${recipe && html`<section aria-label="Preview of the thermal profile">
      <h3>What this does to momentum</h3>
      <${Preview} profile=${previewed(recipe, given)} />
    </section>`}`;
}

function Parameter({ parameter, value, set, faults }) {
  const { name, kind, description, choices, default_value: standard } = parameter;
  const control = {
    FLAG: (attributes) => html`<input type="checkbox" ...${attributes} checked=${value ?? standard}
      onChange=${(event) => set(event.target.checked)} />`,
    CHOICE: (attributes) => html`<select ...${attributes} value=${value ?? standard} onChange=${(event) => set(event.target.value)}>
      ${choices.map((choice) => html`<option key=${choice} value=${choice}>${choice}</option>`)}</select>`,
  }[kind] ?? ((attributes) => html`<input inputmode="decimal" ...${attributes} value=${value ?? ""}
      placeholder=${String(standard)} onInput=${(event) => set(event.target.value)} />`);
  return html`<${Field} name=${`${PATH}.parameters.${name}`} label=${name} faults=${faults} control=${control}
    hint=${[description, bounds(parameter), `default ${standard}`].filter(Boolean).join("; ")} />`;
}

function bounds({ kind, minimum, maximum, minimum_excluded: above, maximum_excluded: below }) {
  if (kind !== "NUMBER") return "";
  const least = minimum === null ? "" : `${above ? "above" : "at least"} ${number(minimum)}`;
  const most = maximum === null ? "" : `${below ? "below" : "at most"} ${number(maximum)}`;
  return [least, most].filter(Boolean).join(" and ");
}

// What the server is to be told: what was left empty has its default.
export function parametersOf({ parameters }) {
  const filled = Object.entries(parameters).filter(([, value]) => value !== "");
  return Object.fromEntries(filled.map(([name, value]) => [name, typeof value === "string" ? numberOr(value) : value]));
}

function previewed(recipe, given) {
  const defaults = recipe.parameters.map((parameter) => [parameter.name, parameter.default_value]);
  const profile = profileOfRecipe(recipe.name, { ...Object.fromEntries(defaults), ...parametersOf(given) });
  const numbers = profile && Object.values(Object.values(profile)[0]);
  return numbers?.every((value) => Number.isFinite(value)) ? profile : null;
}
