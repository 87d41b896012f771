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

// A place on the axis of a chart: a step, a time of day, or seconds.
const exact = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
const timeOfDay = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export function along(x, value) {
  if (value === null || value === undefined) return NOTHING;
  return x === "time" ? clock(value) : exact.format(value);
}

export const clock = (seconds) => timeOfDay.format(seconds * 1000);

export const date = (text) => new Date(text).toLocaleString("en-GB");

export function bytes(value) {
  if (value === null || value === undefined) return NOTHING;
  const power = Math.min(4, value < 1 ? 0 : Math.floor(Math.log2(value) / 10));
  return `${short.format(value / 1024 ** power)} ${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return NOTHING;
  if (seconds < 1e-3) return `${short.format(seconds * 1e6)} µs`;
  if (seconds < 1) return `${short.format(seconds * 1e3)} ms`;
  if (seconds < 120) return `${short.format(seconds)} s`;
  return seconds < 7200 ? `${whole.format(seconds / 60)} min` : `${short.format(seconds / 3600)} h`;
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
