"""Aggregate: a round's contributions become one gradient by a rule that withstands bad ones.

The plain mean has a way of its own (entries.mean_of). Everything here is done in float32 in the order of worker ids, so
it never depends on who came first; a tie goes to the first.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hermosis.wire import Dtype
from hermosis_server.engine.arena import from_wire
from hermosis_server.engine.entries import Part, mean_of
from hermosis_server.records import Aggregation, AggregationRule


class Aggregated(NamedTuple):
    """What became of a round's parts.

    Attributes:
      part:        the one gradient; None where every part was left out.
      influences:  of each part on it, from 0 to 1, which add up to 1.
      quarantined: parts that were left out for not being finite, by index.
    """

    part: Part | None
    influences: Sequence[float]
    quarantined: frozenset[int]


def aggregate(parts: Sequence[Part], rule: Aggregation) -> Aggregated:
    """One gradient of several.

    Sources: coordinate-wise median and trimmed mean: Yin, Chen, Ramchandran and Bartlett 2018; Krum and multi-Krum:
    Blanchard, El Mhamdi, Guerraoui and Stainer 2017.
    """
    ill = (
        frozenset(index for index, part in enumerate(parts) if not math.isfinite(part.peak))
        if rule.quarantine
        else frozenset()
    )
    kept = [index for index in range(len(parts)) if index not in ill]
    if not kept:
        return Aggregated(None, [0.0] * len(parts), ill)
    good = [parts[index] for index in kept]
    total = sum(part.weight for part in good)
    if ill:  # the others stand for those that were left out
        good = [part._replace(weight=part.weight / total) for part in good]
    part, shares = _by_rule(good, rule)
    if rule.clip_norm:
        part = _clipped(part, rule.clip_norm)
    influences = [0.0] * len(parts)
    for index, share in zip(kept, shares, strict=True):
        influences[index] = share
    return Aggregated(part, influences, ill)


def _by_rule(parts: Sequence[Part], rule: Aggregation) -> tuple[Part, list[float]]:
    total = sum(abs(part.weight) for part in parts) or 1.0
    shares = [abs(part.weight) / total for part in parts]
    finite = all(math.isfinite(part.peak) for part in parts)
    if rule.rule is AggregationRule.MEAN or not finite:  # one that is not finite makes the round so, and is told
        return (parts[0] if len(parts) == 1 and parts[0].weight == 1 else mean_of(parts)), shares
    if rule.rule is AggregationRule.CLIPPED_MEAN:
        norms = [_norm(_vector(part)) for part in parts]
        scales = [min(1.0, rule.max_norm / norm) if norm else 1.0 for norm in norms]
        scaled = [part._replace(weight=part.weight * scale) for part, scale in zip(parts, scales, strict=True)]
        lengths = [abs(part.weight) * norm for part, norm in zip(scaled, norms, strict=True)]
        whole = math.fsum(lengths)
        return mean_of(scaled), [length / whole for length in lengths] if whole else shares
    stacked = torch.stack([_vector(part) for part in parts])
    if rule.rule in (AggregationRule.KRUM, AggregationRule.MULTI_KRUM):
        return _krum(parts, stacked, rule)
    return _trimmed(stacked, _left_out(len(parts), rule))


def _left_out(count: int, rule: Aggregation) -> int:
    """How many of each end of a coordinate are left out; the median leaves one or two in the middle."""
    most = (count - 1) // 2
    return most if rule.rule is AggregationRule.MEDIAN else min(rule.byzantine, most)


def _trimmed(stacked: Tensor, cut: int) -> tuple[Part, list[float]]:
    count = len(stacked)
    values, order = stacked.sort(dim=0, stable=True)
    inner = values[cut : count - cut]
    result = torch.zeros_like(values[0])
    for row in inner:  # in this order whatever the processor
        result.add_(row)
    result.div_(len(inner))
    used = torch.bincount(order[cut : count - cut].reshape(-1), minlength=count)
    return _part(result), (used / used.sum()).tolist()


def _krum(parts: Sequence[Part], stacked: Tensor, rule: Aggregation) -> tuple[Part, list[float]]:
    count = len(parts)
    distances = torch.zeros(count, count, dtype=torch.float64)
    for one in range(count):
        for other in range(one):
            distance = (stacked[one] - stacked[other]).square().sum(dtype=torch.float64)
            distances[one, other] = distances[other, one] = distance
    near = max(1, count - rule.byzantine - 2)
    scores = distances.sort(dim=1).values[:, 1 : 1 + near].sum(dim=1).tolist()  # the first is its own
    chosen = sorted(range(count), key=lambda index: (scores[index], index))
    chosen = chosen[:1] if rule.rule is AggregationRule.KRUM else chosen[: max(1, count - rule.byzantine)]
    weight = 1.0 / len(chosen)
    influences = [weight if index in chosen else 0.0 for index in range(count)]
    return mean_of([parts[index]._replace(weight=weight) for index in sorted(chosen)]), influences


def _clipped(part: Part, most: float) -> Part:
    vector = _vector(part)
    norm = _norm(vector)
    if not math.isfinite(norm) or norm <= most:
        return part
    return _part(vector * (most / norm))


def _vector(part: Part) -> Tensor:
    return from_wire(part.memory, part.dtype).float()


def _norm(vector: Tensor) -> float:
    return math.sqrt(float(vector.double().square().sum()))


def _part(vector: Tensor) -> Part:
    peak = float(vector.abs().amax()) if vector.numel() else 0.0
    return Part(vector.numpy().data.cast("B"), vector.data_ptr(), Dtype.FLOAT32, peak)
