"""The picture that is left: loss, energies and temperature of a session, from its readings."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hermosis_client import TelemetryReading


def save(path: Path, title: str, readings: Sequence[TelemetryReading]) -> None:
    """Writes a PNG; quantities that the optimizer does not have are left out."""
    figure = Figure(figsize=(9, 9), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    loss, energies, temperature = figure.subplots(3, 1, sharex=True)
    steps = [reading.step for reading in readings]

    def line(axes: Axes, name: str, label: str, color: str | None = None) -> None:
        values = [getattr(reading.energies, name) for reading in readings]
        if any(map(math.isfinite, values)):
            axes.plot(steps, values, label=label, linewidth=1, color=color)

    line(loss, "loss", "loss of the minibatch")
    line(loss, "smoothed_loss", "smoothed loss, -U/zeta")
    loss.set_yscale("log", nonpositive="mask")  # the smoothed loss goes below zero when kinetic energy prevails
    for name in ("kinetic_energy", "potential_energy", "thermal_energy", "total_energy"):
        line(energies, name, name.replace("_", " "))
    # Linear around zero, where the total energy swings with the minibatches; logarithmic for the terms it is made of.
    largest = max((abs(each.energies.potential_energy) for each in readings), default=1.0)
    energies.set_yscale("symlog", linthresh=largest / 30 if 0 < largest < math.inf else 1e-3)
    energies.set_ylabel("energy / beta")
    line(temperature, "kinetic_temperature", "kinetic temperature, twice the kinetic energy a weight")
    temperature.set_yscale("log", nonpositive="mask")
    temperature.set_xlabel("step")
    cooling = temperature.twinx()
    line(cooling, "log_beta", "ln beta (right)", "tab:red")
    for axes in (loss, energies, temperature, cooling):
        if axes.lines:
            axes.legend(loc="lower right" if axes is cooling else "upper right", fontsize="small")
    for axes in (loss, energies, temperature):
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
