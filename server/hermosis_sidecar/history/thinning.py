"""Thinning: as many readings as a picture can show, with the peaks of the loss among them.

MinMaxLTTB (Van Der Donckt et al., 2023) by the library tsdownsample: least and largest of each stretch, and of these
the ones that keep the shape. First and last always stay.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from tsdownsample import MinMaxDownsampler, MinMaxLTTBDownsampler

from hermosis_sidecar.history.store import Losses

# A preselection of a page leaves this many candidates for each reading that is wanted.
_CANDIDATES = 4


def chosen(steps: NDArray[np.int64], losses: NDArray[np.float64], at_most: int) -> NDArray[np.int64]:
    """Places of the readings that stay, in order, at most that many.

    Args:
      steps:  (N,) rising.
      losses: (N,) NaN where undefined.
    """
    count = len(steps)
    if count <= at_most:
        return np.arange(count)
    if at_most < 3:
        return np.array([0, count - 1][-at_most:], np.int64)
    found = MinMaxLTTBDownsampler().downsample(steps, _finite(losses), n_out=at_most)
    return np.unique(np.concatenate(([0], np.asarray(found, np.int64), [count - 1])))


def candidates(pages: Iterable[Losses], at_most: int) -> Losses:
    """Of any number of pages so many that `chosen` can choose among them, however long the history is."""
    kept: list[Losses] = []
    held = 0
    for page in pages:
        kept.append(page)
        held += len(page[0])
        if held > 2 * _CANDIDATES * max(at_most, 1000):
            kept = [_preselected(_joined(kept), _CANDIDATES * max(at_most, 1000))]
            held = len(kept[0][0])
    return _joined(kept)


def _preselected(page: Losses, at_most: int) -> Losses:
    found = MinMaxDownsampler().downsample(_finite(page[2]), n_out=at_most - at_most % 2)
    places = np.unique(np.concatenate(([0], np.asarray(found, np.int64), [len(page[0]) - 1])))
    return page[0][places], page[1][places], page[2][places]


def _joined(pages: Sequence[Losses]) -> Losses:
    if not pages:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float64)
    ids, steps, losses = (np.concatenate(column) for column in zip(*pages, strict=True))
    return ids, steps, losses


def _finite(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is undefined lies on the floor, what is infinite beyond the largest: a curve that blows up shows it."""
    finite = losses[np.isfinite(losses)]
    floor, top = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    return np.nan_to_num(losses, nan=floor, posinf=top + 1.0, neginf=floor - 1.0)
