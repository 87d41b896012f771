"""Family tree: every recipe as a way through the settings of one Hamiltonian, read off what `resolve` returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from gallery.style import FAINT, INK, MUTED, color_of, sheet
from hermosis_server.dynamics import RECIPES, Euclidean, Exponential, Hamiltonian, NormKind, NormScope, resolve
from hermosis_server.dynamics.metric import MetricPlace, Moments
from hermosis_server.dynamics.parameters import Value

# Settings that turn a recipe into a near relative of itself.
VARIANTS: tuple[tuple[str, dict[str, Value]], ...] = (("sgd", {"momentum": 0.9}), ("cgd", {"metric": "full"}))
LEVELS = ("thermal profile", "metric", "kinetic energy", "force", "scheme")


@dataclass(slots=True)
class Node:
    """A setting with what follows from it; a leaf has a recipe."""

    text: str
    depth: int
    children: list["Node"] = field(default_factory=list)
    recipe: str = ""
    note: str = ""
    height: float = 0.0


def features(hamiltonian: Hamiltonian) -> tuple[str, ...]:
    """The settings that structure the tree, in the order of LEVELS."""
    thermal, metric = hamiltonian.thermal, hamiltonian.metric
    profile = type(thermal).__name__.lower()
    if isinstance(thermal, Exponential) and hamiltonian.coefficients().retention == 0:
        profile += ",\nμ = 0"
    geometry = "flat" if isinstance(metric, Euclidean) else type(metric).__name__.lower()
    if isinstance(metric, Moments) and metric.place is MetricPlace.KICK:
        geometry += ",\non the kick"
    kinetic = hamiltonian.family(()).kinetic.replace("_", "\n")
    return profile, geometry, kinetic, hamiltonian.force.mode.value, hamiltonian.integrator.value.replace("_", "\n")


def extras(hamiltonian: Hamiltonian) -> str:
    """What else is switched on."""
    family = hamiltonian.family(())
    metric = hamiltonian.metric
    learned = metric if isinstance(metric, Moments) else None
    said = [
        (family.normalise, "normalise"),
        (family.lookahead, "lookahead"),
        (family.decoupled_decay, f"decoupled decay {hamiltonian.weight_decay.decoupled:g}"),
        (family.bare_decay, "bare decay"),
        (hamiltonian.norm_kind is NormKind.EUCLIDEAN, "euclidean norm"),
        (hamiltonian.norm_scope is NormScope.TENSOR, "norm of each tensor"),
        (family.rest_cooling, "limit cools"),
        (learned is not None and learned.second_moment_decay == 1, "metric sums"),
    ]
    return ", ".join(text for is_on, text in said if is_on)


def leaves() -> list[tuple[str, Mapping[str, Value]]]:
    every: list[tuple[str, Mapping[str, Value]]] = [(name, {}) for name in RECIPES]
    return [*every, *VARIANTS]


def grown() -> Node:
    """The tree: recipes that share their first settings share a branch."""
    root = Node("H = K + V + E", 0)
    for name, settings in leaves():
        hamiltonian = resolve(name, settings)
        node = root
        for depth, text in enumerate(features(hamiltonian), start=1):
            child = next((each for each in node.children if each.text == text and not each.recipe), None)
            if child is None:
                child = Node(text, depth)
                node.children.append(child)
            node = child
        spelled = ", ".join(f"{key} {value}" for key, value in settings.items())
        leaf = Node(name, len(LEVELS) + 1, recipe=name, note=extras(hamiltonian))
        leaf.text = f"{name} ({spelled})" if spelled else name
        node.children.append(leaf)
    place(root, [0.0])
    return root


def place(node: Node, next_row: list[float]) -> None:
    """Leaves one below the other, every other node in the middle of its children; larger branches first."""
    node.children.sort(key=lambda child: -size(child))
    if not node.children:
        node.height = -next_row[0]
        next_row[0] += 1
        return
    for child in node.children:
        place(child, next_row)
    node.height = (node.children[0].height + node.children[-1].height) / 2


def size(node: Node) -> int:
    return sum(map(size, node.children)) if node.children else 1


def draw(quick: bool) -> Figure:
    root = grown()
    rows = size(root)
    figure = sheet(13, 0.5 * rows + 1.3, "One Hamiltonian, many optimizers: the family tree of the recipes")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_xlim(-0.45, len(LEVELS) + 2.75)
    axes.set_ylim(-rows + 0.4, 1.2)
    for depth, level in enumerate(LEVELS, start=1):
        axes.text(depth, 0.95, level, ha="center", color=MUTED, fontsize=10, fontweight="bold")
    axes.text(len(LEVELS) + 0.72, 0.95, "recipe", color=MUTED, fontsize=10, fontweight="bold")
    branch(axes, root)
    return figure


def branch(axes: Axes, node: Node) -> None:
    for child in node.children:
        join(axes, node, child)
        branch(axes, child)
    if node.recipe:
        x = node.depth - 0.28
        axes.text(x, node.height, node.text, color=color_of(node.recipe), fontsize=11, fontweight="bold", va="center")
        axes.text(x + 1.62, node.height, node.note, color=MUTED, fontsize=9, va="center")
        return
    box = {"boxstyle": "round,pad=0.35", "fc": "white", "ec": INK if node.depth == 0 else MUTED, "lw": 0.9}
    axes.text(
        node.depth, node.height, node.text, ha="center", va="center", fontsize=9 if node.depth else 11, bbox=box,
        fontweight="normal" if node.depth else "bold", linespacing=0.95, zorder=3,
    )  # fmt: skip


def join(axes: Axes, node: Node, child: Node) -> None:
    """A smooth line as thick as what hangs on it, in the colour of a recipe where only one does."""
    end = child.depth - (0.33 if child.recipe else 0)
    middle = (node.depth + end) / 2
    points = [(node.depth, node.height), (middle, node.height), (middle, child.height), (end, child.height)]
    only = child
    while len(only.children) == 1:
        only = only.children[0]
    color = color_of(only.recipe) if only.recipe else FAINT
    path = Path(points, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
    axes.add_patch(PathPatch(path, fc="none", ec=color, lw=1.2 + 0.7 * size(child), capstyle="round", zorder=1))
