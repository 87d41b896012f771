// What is drawn of a session: which quantities share a picture, and how they are read. Words are those of
// docs/theory.md, section 9.

export const PICTURES = [
  {
    title: "Loss",
    lines: [
      { name: "loss", label: "loss", color: "--line-1" },
      { name: "smoothed_loss", label: "smoothed loss", color: "--line-2", width: 2 },
    ],
    canBeLogarithmic: true,
  },
  {
    title: "Energies",
    hint: "per unit of thermal mass; the total stays near zero",
    lines: [
      { name: "kinetic_energy", label: "kinetic", color: "--line-1" },
      { name: "potential_energy", label: "potential", color: "--line-3" },
      { name: "thermal_energy", label: "thermal", color: "--line-2" },
      { name: "total_energy", label: "total", color: "--line-4", width: 2 },
    ],
  },
  {
    title: "Energy defect",
    hint: "growth means that the step is too large for the curvature",
    lines: [{ name: "energy_defect", label: "energy defect", color: "--line-4" }],
  },
  {
    title: "Temperature",
    hint: "ln β = −ln T; kinetic temperature on the right",
    lines: [
      { name: "log_beta", label: "ln β", color: "--line-1", width: 2 },
      { name: "kinetic_temperature", label: "kinetic temperature", color: "--line-2", scale: "right" },
    ],
  },
  {
    title: "Friction",
    hint: "retention is the effective momentum coefficient; cooling rate on the right",
    lines: [
      { name: "retention", label: "retention", color: "--line-1", width: 2 },
      { name: "cooling_rate", label: "cooling rate", color: "--line-2", scale: "right" },
    ],
  },
  {
    title: "Norms",
    hint: "euclidean",
    lines: [
      { name: "gradient_norm", label: "gradient", color: "--line-1" },
      { name: "momentum_norm", label: "momentum", color: "--line-2" },
      { name: "step_norm", label: "step", color: "--line-3" },
    ],
    canBeLogarithmic: true,
    logarithmicAtFirst: true,
  },
  {
    title: "Braking",
    hint: "1 is Newtonian, near 0 is at the speed limit; learning rate on the right",
    lines: [
      { name: "braking", label: "braking", color: "--line-1", width: 2 },
      { name: "learning_rate", label: "learning rate", color: "--line-2", scale: "right" },
    ],
  },
];

// What can be compared between sessions: every line above once.
export const QUANTITIES = PICTURES.flatMap(({ lines }) => lines.map(({ name, label }) => ({ name, label })));

// The columns of a picture: x, and each line.
export const pictured = ({ lines }, series, x) => [
  x === "time" ? series.times() : series.steps(),
  ...lines.map(({ name }) => series.column(name)),
];
