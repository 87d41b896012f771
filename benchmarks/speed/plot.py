"""Growth in one picture: more and more sessions, more and more streams."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.speed.goals import Result

AXES = {
    "growth-sessions": ("sessions of 256 parameters", {"session steps/s": "-o", "p99 of an exchange, ms": "--s"}),
    "growth-streams": ("streams of 1 MB gradients", {"goodput, GB/s": "-o", "p99 of an exchange, ms": "--s"}),
}


def draw(path: Path, results: Sequence[Result]) -> bool:
    """Draws what growth was measured; False where there is none."""
    grown = [each for each in results if each.series]
    if not grown:
        return False
    figure = Figure(figsize=(6.5 * len(grown), 4.2), layout="constrained")
    for panel, each in zip(figure.subplots(1, len(grown), squeeze=False)[0], grown, strict=True):
        label, lines = AXES[each.goal.name]
        twin = panel.twinx()
        for axis, (name, style), colour in zip((panel, twin), lines.items(), ("tab:blue", "tab:red"), strict=True):
            points = each.series[name]
            axis.plot([x for x, _ in points], [y for _, y in points], style, color=colour, label=name)
            axis.set_ylabel(name, color=colour)
            axis.set(xscale="log", yscale="log")
        panel.set(xlabel=label, title=each.goal.name)
    figure.savefig(path, dpi=110)
    return True
