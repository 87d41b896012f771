"""One look for all pictures: a light ground, few lines, names beside what they name.

Recipes are told apart by hue and lightness together, so that they stay apart for eyes that mix up red and green: blue
is momentum in flat space, warm is a learned metric, green is a speed limit.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

DOTS, QUICK_DOTS = 130, 50  # per inch
INK, MUTED, FAINT, GROUND = "#22262b", "#6b7280", "#d5d9de", "#ffffff"

RECIPE_COLORS = {
    "sgd": "#74a6d6",
    "nesterov": "#2c7fb8",
    "nesterov_ode": "#0b3c6f",
    "adam": "#f2a541",
    "adamw": "#d9730d",
    "rmsprop": "#e8746a",
    "adagrad": "#a61e2b",
    "cgd": "#6e3b1f",
    "vradam": "#b45fb0",
    "rgd": "#9bc76b",
    "hermosis": "#12805c",
    "hermosis_literal": "#4a4f55",
}
# For what is not a recipe: schemes, profiles, kinetic energies.
SERIES = ("#0b3c6f", "#d9730d", "#12805c", "#b45fb0", "#2c9fd8", "#a61e2b", "#8a8f2a")
LANDSCAPE = LinearSegmentedColormap.from_list("landscape", ["#ffffff", "#f1f3f6", "#dfe4ea", "#c3cbd5"])

# The type of the keys differs between versions of matplotlib.
RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "figure.facecolor": GROUND,
    "axes.facecolor": GROUND,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.grid": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "mathtext.fontset": "dejavusans",
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
}


def sheet(width: float, height: float, title: str) -> Figure:
    """An empty figure, in inches, with its title at the left."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold")
    return figure


def save(figure: Figure, path: Path, *, dots: int = DOTS) -> None:
    """Writes a PNG of 256 colours without date or version: small, and equal pictures are equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.set_dpi(dots)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def color_of(recipe: str) -> str:
    """A recipe's colour in every picture; a recipe that is not yet in the table is ink."""
    return RECIPE_COLORS.get(recipe, INK)


def label_ends(
    axes: Axes, ends: Sequence[tuple[float, str, str]], *, at: float = 1.0, gap: float = 0.045, size: float = 9
) -> None:
    """Writes names at the right of the axes, each as near to the end of its line as the others let it be.

    Args:
      ends: (y in data, text, colour) of each line.
      at:   where the lines end, as a share of the width; the names begin a little to the right.
      gap:  least distance between names, as a share of the height.
    """
    low, high = 0.0, 1.0
    to_axes = axes.transData + axes.transAxes.inverted()
    places = sorted(
        ((min(max(to_axes.transform((axes.get_xlim()[1], y))[1], low), high), text, color) for y, text, color in ends),
        key=lambda place: place[0],
    )
    heights = spread([height for height, _, _ in places], gap)
    for (height, text, color), shown in zip(places, heights, strict=True):
        axes.plot([at, at + 0.02], [height, shown], transform=axes.transAxes, color=color, lw=0.8, clip_on=False)
        axes.text(at + 0.026, shown, text, transform=axes.transAxes, color=color, va="center", fontsize=size)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Rising heights, moved as little as it takes to be `gap` apart: neighbours that touch move as one block."""
    blocks: list[list[float]] = []  # [mean of what its members want for their first, count]
    for index, height in enumerate(heights):
        blocks.append([height, 1])
        while len(blocks) > 1 and blocks[-2][0] + gap * blocks[-2][1] > blocks[-1][0]:
            start, count = blocks.pop()
            below, members = blocks[-1]
            blocks[-1] = [(below * members + (start - gap * members) * count) / (members + count), members + count]
        assert sum(block[1] for block in blocks) == index + 1
    return [start + gap * place for start, count in blocks for place in range(int(count))]
