"""Cohorts: sessions that step in one launch, with their numbers in tables, a line a session."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hermosis_server.dynamics import SCALARS, Family

FIRST_LINES = 8
Table = NDArray[np.float64]


@dataclass(eq=False, slots=True)
class Cohort:
    """Sessions of one family, whose rows have one length, and who all hold their parameters here or all do not.

    Attributes:
      coefficients: (lines, n) what `Hamiltonian.numbers` gives.
      scalars:      (lines, len(SCALARS)) where each session stands.
      largest:      (lines,) bounds the magnitude of every element of a session's state; infinite where not known.
    """

    family: Family
    row_elements: int
    holds_parameters: bool
    coefficients: Table
    scalars: Table = field(default_factory=lambda: np.zeros((FIRST_LINES, len(SCALARS))))
    largest: Table = field(default_factory=lambda: np.zeros(FIRST_LINES))
    _free: list[int] = field(default_factory=lambda: list(range(FIRST_LINES))[::-1])

    @classmethod
    def of(cls, family: Family, numbers: int, *, row_elements: int, holds_parameters: bool) -> "Cohort":
        """A cohort without sessions, each of which has so many coefficients."""
        return cls(family, row_elements, holds_parameters, np.zeros((FIRST_LINES, numbers)))

    def join(self, numbers: tuple[float, ...], scalars: tuple[float, ...]) -> int:
        """A line for a session."""
        if not self._free:
            lines = len(self.scalars)
            self.coefficients, self.scalars = (
                np.concatenate([t, np.zeros_like(t)]) for t in (self.coefficients, self.scalars)
            )
            self.largest = np.concatenate([self.largest, np.zeros(lines)])
            self._free = list(range(lines, 2 * lines))[::-1]
        line = self._free.pop()
        self.coefficients[line], self.scalars[line], self.largest[line] = numbers, scalars, np.inf
        return line

    def leave(self, line: int) -> None:
        """Frees a line."""
        self._free.append(line)

    @property
    def empty(self) -> bool:
        return len(self._free) == len(self.scalars)


class Cohorts:
    """All cohorts of one device, found by what their sessions share."""

    def __init__(self) -> None:
        self._cohorts: dict[tuple[Family, int, int, bool], Cohort] = {}

    def find(self, family: Family, numbers: int, *, row_elements: int, holds_parameters: bool) -> Cohort:
        """The cohort of such sessions; a new one where there is none."""
        key = (family, numbers, row_elements, holds_parameters)
        cohort = self._cohorts.get(key)
        if cohort is None:
            cohort = Cohort.of(family, numbers, row_elements=row_elements, holds_parameters=holds_parameters)
            self._cohorts[key] = cohort
        return cohort

    def leave(self, cohort: Cohort, line: int) -> None:
        """Takes a session out, and forgets a cohort without sessions."""
        cohort.leave(line)
        if cohort.empty:
            self._cohorts = {key: other for key, other in self._cohorts.items() if other is not cohort}

    def __len__(self) -> int:
        return len(self._cohorts)
