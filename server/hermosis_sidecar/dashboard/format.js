// How numbers and names are written on the page.

const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const NOTHING = "–";

export function number(value) {
  if (value === null || value === undefined) return NOTHING;
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return short.format(value);
}

export function count(value) {
  return value === null || value === undefined ? NOTHING : whole.format(value);
}

// The temperature is exp(-ln beta); far into a cooling it is too small for a double, so the power of ten is written.
export function temperature(logBeta) {
  if (logBeta === null || logBeta === undefined) return NOTHING;
  const direct = Math.exp(-logBeta);
  if (direct > 1e-300 && direct < 1e300) return number(direct);
  return `10^${Math.round(-logBeta / Math.LN10)}`;
}

export const optimizer = ({ recipe }) => recipe?.name ?? "hamiltonian";

// The parameters that were given to a recipe, for people.
export function settings({ recipe }) {
  const given = Object.entries(recipe?.parameters ?? {});
  return given.map(([name, value]) => `${name} ${typeof value === "number" ? number(value) : value}`).join(", ");
}
