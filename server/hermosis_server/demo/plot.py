"""The picture that is left: loss, energies and temperature of a session, from its readings."""

from collections.abc import Sequence
from pathlib import Path

from hermosis_client import TelemetryReading
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def save(path: Path, title: str, readings: Sequence[TelemetryReading]) -> None:
    """Writes a PNG; quantities that the optimizer does not have are left out."""
    figure = Figure(figsize=(9, 9), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    loss, energies, temperature = figure.subplots(3, 1, sharex=True)
    steps = [reading.step for reading in readings]

    def line(axes: Axes, name: str, label: str) -> None:
        values = [getattr(reading.energies, name) for reading in readings]
        if any(value == value for value in values):
            axes.plot(steps, values, label=label, linewidth=1)

    line(loss, "loss", "loss of the minibatch")
    line(loss, "smoothed_loss", "smoothed loss, -U/zeta")
    loss.set_yscale("log")
    for name in ("kinetic_energy", "potential_energy", "thermal_energy", "total_energy"):
        line(energies, name, name.replace("_", " "))
    energies.set_yscale("symlog", linthresh=1e-3)
    energies.set_ylabel("energy / beta")
    temperature.plot(steps, [reading.energies.log_beta for reading in readings], label="ln beta = -ln temperature")
    temperature.set_xlabel("step")
    for axes in (loss, energies, temperature):
        axes.grid(alpha=0.3)
        axes.legend(loc="best", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
