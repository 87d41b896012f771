"""The pictures by name."""

from collections.abc import Callable

from matplotlib.figure import Figure

from gallery import energy, family_tree, phase_portrait, quadratic, rosenbrock, speed_limit, thermal

PICTURES: dict[str, Callable[[bool], Figure]] = {
    "family-tree": family_tree.draw,
    "phase-portrait": phase_portrait.draw,
    "energy": energy.draw,
    "thermal-profiles": thermal.draw,
    "speed-limit": speed_limit.draw,
    "rosenbrock": rosenbrock.draw,
    "quadratic": quadratic.draw,
}
