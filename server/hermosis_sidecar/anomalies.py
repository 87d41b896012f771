"""Anomalies: what looks wrong in a run of readings, in words for people, with what to do about it.

Each rule is a pure function of the readings and of what else is known of the session. docs/dashboard.md lists the rules
with their thresholds. They look for trouble that can be acted on: a run that is merely noisy or slow has none.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from hermosis_client import EnergySample, TelemetryReading

WINDOW = 50  # readings, the newest, that most rules judge

_PARTS = 5  # of a window, whose medians are compared, so that the noise of minibatches is not taken for a trend
_MOST_DEFECT_SHARE = 0.1  # of the potential energy
_DEFECT_GROWTH = 4.0  # over a window
_EXPLODED = 2.0  # times the first loss
_FEWEST_STALLED_S = 30.0
_STALLED_STEPS = 20.0  # usual times between two steps
_FROZEN_BRAKING = 1e-2
_FROZEN_STEP = 1e-3  # of the longest step of the run
_FRICTIONLESS = 1e-6  # of the momentum lost at each step, at most
_VANISHED = 1e-6  # of the largest gradient of the run
_LEARNED = 0.5  # of the first loss: below that, small gradients are no fault
_FEWEST_STALE = 8  # steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What else is known of a session.

    Attributes:
      now_s:             seconds since 1970, by the clock of the readings.
      is_ready:          whether it takes gradients.
      connected_workers: that hold a stream.
      expected_workers:  that make a round.
    """

    now_s: float
    is_ready: bool
    connected_workers: int
    expected_workers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Anomaly:
    """One thing that looks wrong.

    Attributes:
      rule:       its name, for programs.
      since_step: from where on.
      text:       what was seen.
      advice:     what to do.
    """

    rule: str
    since_step: int
    text: str
    advice: str


Readings = Sequence[TelemetryReading]
_Rule = Callable[[Readings, Situation], Anomaly | None]


def anomalies(readings: Readings, situation: Situation) -> list[Anomaly]:
    """What looks wrong, the gravest first.

    Args:
      readings:  of one life of one session, by step; they may be thinned where they are old.
      situation: of the session now.
    """
    if not readings:
        return []
    found = (rule(readings, situation) for rule in _RULES)
    return [anomaly for anomaly in found if anomaly is not None]


def loss_not_finite(readings: Readings, _: Situation) -> Anomaly | None:
    """The loss was a finite number and is none any more, for three readings; a single one may be a bad minibatch."""
    if any(math.isfinite(reading.energies.loss) for reading in readings[-3:]):
        return None
    finite = [place for place, reading in enumerate(readings) if math.isfinite(reading.energies.loss)]
    if not finite:
        return None  # Workers that tell no loss at all are no fault.
    return Anomaly(
        rule="loss_not_finite",
        since_step=readings[finite[-1] + 1].step,
        text="The loss is not a finite number any more",
        advice="Pause, restore the last snapshot from before and halve the learning rate. If it comes again at the "
        "same data, look for a logarithm or a division by zero in the model.",
    )


def loss_exploding(readings: Readings, _: Situation) -> Anomaly | None:
    """The median of the last ten losses is twice that of the first ten, and four times the best ten in a row."""
    told = [reading for reading in readings if math.isfinite(reading.energies.loss)]
    if len(told) < 30:
        return None
    medians = [median(reading.energies.loss for reading in told[place : place + 10]) for place in range(len(told) - 9)]
    first, best, last = medians[0], min(medians), medians[-1]
    if best <= 0 or last < _EXPLODED * first or last < 2 * _EXPLODED * best:
        return None
    place = max(place for place, value in enumerate(medians) if value <= first)
    return Anomaly(
        rule="loss_exploding",
        since_step=told[place + 9].step,
        text=f"The loss explodes: it was {first:.3g} at first, {best:.3g} at best and is {last:.3g} now",
        advice="Restore a snapshot from before and halve the learning rate, or take a recipe with a speed limit.",
    )


def defect_growing(readings: Readings, _: Situation) -> Anomaly | None:
    """The energy defect grows over the whole window, fourfold or more, and is a tenth of the potential energy."""
    window = [reading for reading in readings[-WINDOW:] if math.isfinite(reading.energies.energy_defect)]
    if len(window) < WINDOW:
        return None
    size = WINDOW // _PARTS
    parts = [window[place : place + size] for place in range(0, WINDOW, size)]
    medians = [median(abs(reading.energies.energy_defect) for reading in part) for part in parts]
    if any(after <= before for before, after in pairwise(medians)) or medians[-1] < _DEFECT_GROWTH * medians[0]:
        return None
    potentials = [abs(value) for value in _finite(reading.energies.potential_energy for reading in parts[-1])]
    if not potentials or medians[-1] < _MOST_DEFECT_SHARE * median(potentials):
        return None
    steps = window[-1].step - window[0].step + 1
    return Anomaly(
        rule="defect_growing",
        since_step=window[0].step,
        text=f"The step is too large for the curvature: the energy defect has been growing for {steps} steps",
        advice="Halve the learning rate.",
    )


def stalled(readings: Readings, situation: Situation) -> Anomaly | None:
    """It is READY and workers hold streams, but no step came for 30 s and for 20 usual times between two steps."""
    if not situation.is_ready or not situation.connected_workers:
        return None
    last = readings[-1]
    waited_s = situation.now_s - last.time_s
    usual_s = [
        (after.time_s - before.time_s) / (after.step - before.step) for before, after in pairwise(readings[-WINDOW:])
    ]
    if waited_s < max(_FEWEST_STALLED_S, _STALLED_STEPS * (median(usual_s) if usual_s else 0.0)):
        return None
    connected, expected = situation.connected_workers, situation.expected_workers
    if connected < expected:
        advice = f"A round needs {expected} workers and {connected} {_are(connected)} connected: start those that lack."
    else:
        advice = "Look at the workers: their logs say what they wait for."
    return Anomaly(
        rule="stalled",
        since_step=last.step,
        text=f"No step for {waited_s:.0f} s, though {connected} {_workers(connected)} {_are(connected)} connected",
        advice=advice,
    )


def frozen(readings: Readings, _: Situation) -> Anomaly | None:
    """Over the window braking is below 0.01 and steps a thousandth of the longest, though gradients are there."""
    longest = _largest(reading.energies.step_norm for reading in readings)
    steep = _largest(reading.energies.gradient_norm for reading in readings)
    stretch = _stretch(
        readings,
        lambda sample: (
            sample.braking < _FROZEN_BRAKING
            and sample.step_norm < _FROZEN_STEP * longest
            and sample.gradient_norm > _VANISHED * steep
        ),
    )
    if not stretch:
        return None
    return Anomaly(
        rule="frozen",
        since_step=stretch[0].step,
        text="Learning is frozen: the temperature has fallen so far that the speed limit lets nothing move",
        advice="Fork the session with the recipe hermosis, whose speed limit does not fall as it cools.",
    )


def no_friction(readings: Readings, _: Situation) -> Anomaly | None:
    """Retention is 1, or above, at every step of the window."""
    stretch = _stretch(readings, lambda sample: sample.retention > 1 - _FRICTIONLESS)
    if not stretch:
        return None
    heats = all(reading.energies.retention > 1 + _FRICTIONLESS for reading in stretch[-WINDOW:])
    seen = (
        "The session is heated: its momentum grows by itself"
        if heats
        else "The temperature stands still: nothing takes energy out, so the loss swings and never settles"
    )
    return Anomaly(
        rule="no_friction",
        since_step=stretch[0].step,
        text=seen,
        advice="Set an exponential thermal profile with momentum retention 0.9.",
    )


def gradients_vanished(readings: Readings, _: Situation) -> Anomaly | None:
    """Gradients are a millionth of the run's largest, over the window, though the loss is above half of the first."""
    steep = _largest(reading.energies.gradient_norm for reading in readings)
    stretch = _stretch(readings, lambda sample: sample.gradient_norm <= _VANISHED * steep)
    if not stretch:
        return None
    losses = _finite(reading.energies.loss for reading in readings)
    if not losses or median(losses[-10:]) < _LEARNED * median(losses[:10]) or not losses[-1]:
        return None
    return Anomaly(
        rule="gradients_vanished",
        since_step=stretch[0].step,
        text="The gradients have vanished, though the loss has hardly fallen",
        advice="Look for a saturated activation, a detached part of the model or a mask of zeros; a smaller learning "
        "rate from a snapshot before may keep units from dying.",
    )


def staleness_high(readings: Readings, situation: Situation) -> Anomaly | None:
    """Half of the window's steps used gradients 8 steps old or more, and over twice as old as there are workers."""
    window = readings[-WINDOW:]
    usual = median(reading.staleness for reading in window)
    if len(window) < WINDOW or usual < _FEWEST_STALE or usual <= 2 * situation.connected_workers:
        return None
    return Anomaly(
        rule="staleness_high",
        since_step=window[0].step,
        text=f"Gradients are old when they are used: {usual:.0f} steps, half of the time",
        advice="Let workers pull more often or take equally large minibatches; else lower momentum or learning rate.",
    )


_RULES: Sequence[_Rule] = (
    loss_not_finite,
    loss_exploding,
    defect_growing,
    stalled,
    frozen,
    no_friction,
    gradients_vanished,
    staleness_high,
)


def _stretch(readings: Readings, holds: Callable[[EnergySample], bool]) -> Readings:
    """The newest readings for all of which something holds; empty where they are fewer than a window."""
    fails = (place for place in reversed(range(len(readings))) if not holds(readings[place].energies))
    stretch = readings[next(fails, -1) + 1 :]
    return stretch if len(stretch) >= WINDOW else []


def _largest(values: Iterable[float]) -> float:
    return max(_finite(values), default=0.0)


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _workers(count: int) -> str:
    return "worker" if count == 1 else "workers"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
