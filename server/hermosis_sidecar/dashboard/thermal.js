// What a thermal profile does to momentum before there is a session: retention, beta before over beta after, of each
// step. docs/theory.md, section 3, states the profiles; the server computes the same.

// The profile that a recipe's parameters stand for, in protobuf's JSON; null where this page does not know it.
export function profileOfRecipe(name, values) {
  const exponential = (retention) => ({ exponential: { momentum_retention: retention } });
  if (["sgd", "nesterov", "rmsprop", "rgd", "hermosis", "hermosis_literal"].includes(name))
    return exponential(values.momentum);
  if (["adam", "adamw", "vradam"].includes(name)) return exponential(values.beta1);
  if (name === "adagrad") return exponential(0);
  if (name === "cgd") return exponential(values.gradient_window / (1 + values.gradient_window));
  if (name === "nesterov_ode") return { power: { exponent: values.exponent, age: values.age } };
  return null;
}

// Growth of ln beta from time 0 to a time, beta being `beta` at time 0; null where it answers to the loss and cannot be
// known before.
function growth(profile, beta, stepDuration) {
  const [kind, given] = Object.entries(profile)[0];
  switch (kind) {
    case "constant":
      return () => 0;
    case "exponential": {
      const rate = given.cooling_rate ?? -Math.log(given.momentum_retention ?? 0.9) / stepDuration;
      return (time) => (time === 0 ? 0 : rate * time);
    }
    case "linear":
      return (time) => Math.log1p(((given.rate ?? 0) * time) / beta);
    case "power":
      return (time) => given.exponent * Math.log1p(time / given.age);
    case "tabulated":
      return (time) => tabulated(given.knots, time) - tabulated(given.knots, 0);
    default:
      return null;
  }
}

function tabulated(knots, time) {
  const after = knots.findIndex((knot) => (knot.time ?? 0) > time);
  if (after === 0) return Math.log(knots[0].beta);
  if (after < 0) return Math.log(knots.at(-1).beta);
  const [one, other] = [knots[after - 1], knots[after]];
  const share = (time - (one.time ?? 0)) / (other.time - (one.time ?? 0));
  return Math.log(one.beta) + share * Math.log(other.beta / one.beta);
}

// { steps, retention, logBeta } over the first steps, logBeta being the growth since the start; null where it cannot be
// told, and shorter where beta would reach zero.
export function preview(profile, { steps = 200, beta = 1, stepDuration = 1 } = {}) {
  const grown = growth(profile, beta, stepDuration);
  if (grown === null) return null;
  const told = { steps: [], retention: [], logBeta: [] };
  for (let step = 1; step <= steps; step += 1) {
    const before = grown((step - 1) * stepDuration);
    const after = grown(step * stepDuration);
    const retention = after === Infinity ? 0 : Math.exp(before - after);
    if (Number.isNaN(retention) || retention === Infinity) break;
    told.steps.push(step);
    told.retention.push(retention);
    told.logBeta.push(Number.isFinite(after) ? after : null);
  }
  return told.steps.length ? told : null;
}

// How many of the last gradients count: 1/(1 - retention).
export const memory = (retention) => 1 / (1 - retention);
