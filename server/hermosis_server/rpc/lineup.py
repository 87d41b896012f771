"""Lineup: what follows from the handles of a packed message alone; and the columns that come with them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from hermosis.packed import Bytes, PackedGradients
from hermosis.wire import Dtype
from hermosis_server.engine.resident import Resident
from hermosis_server.engine.rounds import WorkerRecord
from hermosis_server.engine.session import Session
from hermosis_server.engine.volley import Roster
from hermosis_server.errors import InvalidRequest
from hermosis_server.records import AckLevel, Commit, DurabilityMode, Reply
from hermosis_server.rpc.links import Link


class Group(NamedTuple):
    """Links whose sessions step by themselves at one worker's word, all with the same wish and dtype, as columns.

    Attributes:
      places:      in the message.
      gradients:   where each gradient lies in the payload.
      length:      of every gradient, in bytes, where they are alike and fill the payload; else zero.
      reply_bytes: of each reply.
    """

    places: Sequence[int]
    roster: Roster
    sessions: Sequence[Session]
    residents: Sequence[Resident]
    workers: Sequence[WorkerRecord]
    generations: Sequence[int]
    gradients: Sequence[slice]
    length: int
    reply_bytes: Sequence[int]


@dataclass(slots=True)
class Lineup:
    """The links of a message's handles, in its order; entry i of everything is of the same one.

    Attributes:
      gradients: where each one's gradient lies in the payload, in bytes.
      replies:   where its reply lies in the payload of an answer that carries replies.
      silence:   the same of one that carries none.
      vectors:   the same of the answer to a pull.
      together:  those that may go as one volley.
      apart:     the places of the others.
    """

    links: list[Link]
    gradients: list[slice] = field(init=False)
    replies: list[slice] = field(init=False)
    silence: list[slice] = field(init=False)
    vectors: list[slice] = field(init=False)
    together: Group = field(init=False)
    apart: list[int] = field(init=False)

    def __post_init__(self) -> None:
        links = self.links
        counts = [link.session.spec.layout.parameter_count for link in links]
        self.gradients = _pieces(c * link.gradient_dtype.itemsize for link, c in zip(links, counts, strict=True))
        self.vectors = _pieces(c * link.wish.dtype.itemsize for link, c in zip(links, counts, strict=True))
        self.replies = _pieces(
            0 if link.wish.reply is Reply.NONE else _size(vector)
            for link, vector in zip(links, self.vectors, strict=True)
        )
        self.silence = [slice(0, 0)] * len(links)
        together = self._together()
        self.together = self._group(together)
        self.apart = sorted(set(range(len(links))) - set(together))

    def parted(self, sequences: Sequence[int]) -> tuple[Group, Sequence[int]]:
        """Who goes together and the places of who goes apart; a contribution that was counted before always does."""
        group = self.together
        rows = zip(group.places, group.sessions, group.workers, strict=True)
        new = [place for place, session, worker in rows if not session.answered_before(worker, sequences[place])]
        if len(new) == len(group.places):
            return group, self.apart
        return self._group(new), sorted(set(range(len(self.links))) - set(new))

    def _together(self) -> list[int]:
        first = self.links[0]
        sessions: set[str] = set()
        places = []
        for place, link in enumerate(self.links):
            begin, size = self.gradients[place].start, _size(self.gradients[place])
            if (
                link.ack_level is AckLevel.APPLIED
                and link.session.steps_at_once
                and link.session.spec.durability.mode is not DurabilityMode.JOURNAL
                and link.session.resident is not None
                and link.session.session_id not in sessions
                and link.session.executor is first.session.executor
                and (link.worker.worker_id, link.wish) == (first.worker.worker_id, first.wish)
                and link.gradient_dtype is first.gradient_dtype
                and size > 0
                and begin % link.gradient_dtype.itemsize == 0
            ):
                sessions.add(link.session.session_id)
                places.append(place)
        return places

    def _group(self, places: list[int]) -> Group:
        links = [self.links[place] for place in places]
        gradients = [self.gradients[place] for place in places]
        alike = len({_size(piece) for piece in gradients}) == 1
        return Group(
            places=places,
            roster=Roster([link.session.session_id for link in links]),
            sessions=[link.session for link in links],
            residents=[link.session.on_device for link in links],
            workers=[link.worker for link in links],
            generations=[link.generation for link in links],
            gradients=gradients,
            length=_size(gradients[0]) if len(gradients) == len(self.links) and alike else 0,
            reply_bytes=[_size(self.replies[place]) for place in places],
        )


class Columns(NamedTuple):
    """The numbers of a packed message, a list each."""

    sequences: list[int]
    base_steps: list[int]
    losses: list[float]
    sample_counts: list[int]
    lr_scales: list[float]

    @classmethod
    def of(cls, message: PackedGradients, count: int) -> "Columns":
        """Reads them; raises InvalidRequest where one has not an entry for each of the handles."""
        return cls(
            sequences=_column("sequences", message.sequences, "<u8", count),
            base_steps=_column("base_steps", message.base_steps, "<u8", count),
            losses=_column("losses", message.losses, "<f8", count, absent=math.nan),
            sample_counts=_column("sample_counts", message.sample_counts, "<u8", count, absent=0),
            lr_scales=_column("lr_scales", message.lr_scales, "<f8", count, absent=1.0),
        )

    def commit(self, place: int) -> Commit:
        """The numbers of one contribution."""
        return Commit(
            sequence=self.sequences[place],
            base_step=self.base_steps[place],
            loss=self.losses[place],
            sample_count=self.sample_counts[place],
            lr_scale=self.lr_scales[place],
        )

    def at(self, places: Sequence[int]) -> "Columns":
        """The entries at places, which are all or some of them, in order."""
        if len(places) == len(self.sequences):
            return self
        columns: list[Any] = [[column[place] for place in places] for column in self]
        return Columns(*columns)


def _column(name: str, raw: Bytes, dtype: str, count: int, *, absent: float | None = None) -> list[Any]:
    if absent is not None and not len(raw):
        return [absent] * count
    column = np.frombuffer(raw, dtype)
    if len(column) != count:
        raise InvalidRequest(f"{name} has {len(column)} entries for {count} handles", field=name)
    return list(column.tolist())


def peaks(memory: memoryview, dtype: Dtype, gradients: Sequence[slice], length: int) -> list[float]:
    """The largest magnitude in each of some gradients; infinite or NaN where one of its elements is.

    Args:
      gradients: in order, aligned to their elements, none empty.
      length:    as in `Group`.
    """
    size = dtype.itemsize
    # Without its sign bit a number's bits are ordered as its magnitude is, NaN beyond infinity.
    bits = np.frombuffer(memory[: gradients[-1].stop], f"<u{size}") & (0x7FFFFFFF if size == 4 else 0x7FFF)
    if length:
        largest = bits.reshape(-1, length // size).max(axis=1)
    else:
        edges = np.array([(piece.start, piece.stop) for piece in gradients]).reshape(-1) // size
        largest = np.maximum.reduceat(bits, edges[:-1])[::2]
    if dtype is Dtype.BFLOAT16:
        return list((largest.astype("<u4") << 16).view("<f4").tolist())
    return list(largest.view(f"<f{size}").tolist())


def _size(piece: slice) -> int:
    return int(piece.stop) - int(piece.start)


def _pieces(sizes: Iterable[int]) -> list[slice]:
    """Slices of these sizes, one after another."""
    pieces, end = [], 0
    for size in sizes:
        pieces.append(slice(end, end + size))
        end += size
    return pieces
