"""LossScale: by how much the loss of a step is multiplied, so that small gradients survive a narrow dtype."""

from dataclasses import dataclass

LEAST, MOST = 2.0**-24, 2.0**24


@dataclass(slots=True, kw_only=True)
class LossScale:
    """Halves when a step was not finite, and doubles after so many in a row that were.

    Powers of two, so that scaling rounds nothing. Multiply the loss by `value` before the backward pass; the server
    divides the gradient by it.

    Attributes:
      value:        now, from 2^-24 to 2^24.
      growth_steps: good steps after which it doubles; zero means that it stays, whatever happens.
      good_steps:   since it was changed last.

    Source: Micikevicius et al. 2018, "Mixed Precision Training"; the numbers are torch.amp.GradScaler's.
    """

    value: float = 65536.0
    growth_steps: int = 2000
    good_steps: int = 0

    def __post_init__(self) -> None:
        if not LEAST <= self.value <= MOST:
            raise ValueError(f"a loss scale is from 2^-24 to 2^24, got {self.value}")

    def note(self, *, finite: bool) -> None:
        """Learns what became of a step."""
        if not self.growth_steps:
            return
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.value = max(self.value / 2, LEAST)
        elif self.good_steps >= self.growth_steps:
            self.value, self.good_steps = min(self.value * 2, MOST), 0
