"""Replay: a tried round as a journal entry, and back.

An entry holds what came in, not what it led to: the gradients as they came over the wire, and the numbers beside them.
Stepping them again leads to the same bits, because sums have a fixed order; the entry's fingerprint proves that it did.
"""

import json
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hermosis.wire import Dtype
from hermosis_server.engine.assembler import Assembler
from hermosis_server.engine.batch import StepDone
from hermosis_server.engine.rounds import Contribution, StepTicket, WorkerRecord, mean_loss
from hermosis_server.errors import CorruptState
from hermosis_server.records import Commit, EnergySample, Outcome, Reply, ReplyWish

_LENGTH = struct.Struct("<I")
_ENERGIES = struct.Struct(f"<{len(EnergySample._fields)}d")

Parts = list[bytes | memoryview]


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedRound:
    """A round as the journal tells it; the payloads lie in the entry's memory."""

    outcome: Outcome
    fingerprint: int
    lr_scale: float
    commits: Sequence[tuple[str, Commit, Dtype, int]]  # worker, numbers, dtype and checksum of its gradient
    late_weights: Sequence[float]  # beside the mean's; empty where each counts in full
    gradients: Sequence[memoryview]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """An edit of the dynamics between two steps."""

    document: bytes  # the session's whole spec from then on


def step(contributions: Sequence[Contribution], lr_scale: float, done: StepDone) -> Parts:
    """What the journal keeps of a round. Of one that changed nothing the gradients are left out."""
    applied = done.outcome is Outcome.APPLIED
    head: dict[str, Any] = {
        "outcome": int(done.outcome),
        "fingerprint": fingerprint(done.energies) if applied else 0,
        "lr_scale": lr_scale,
        "contributions": [
            [
                one.worker.worker_id,
                one.commit.sequence,
                one.commit.base_step,
                one.commit.loss,
                one.commit.sample_count,
                int(one.gradient.dtype),
                one.ticket.payload_crc32,
            ]
            for one in contributions
        ],
    }
    if any(one.commit.skipped for one in contributions):
        head["skipped"] = [one.commit.skipped for one in contributions]
    if any(one.commit.loss_scale is not None for one in contributions):
        head["loss_scales"] = [one.commit.loss_scale for one in contributions]
    if done.mixture.late_weights:
        head["late"] = [weight.hex() for weight in done.mixture.late_weights]
    gradients = [_memory(one.gradient) for one in contributions] if applied else []
    return [*_framed(head), *gradients]


def edit(document: bytes) -> Parts:
    """What the journal keeps of an edit."""
    return [*_framed({"edit": len(document)}), document]


def read(body: memoryview) -> TriedRound | Edited:
    """An entry of the journal.

    Raises:
      CorruptState: its checksum was right, and yet it says nothing sensible; it was written by another version.
    """
    try:
        head, rest = _unframed(body)
        if "edit" in head:
            return Edited(document=bytes(rest))
        return _tried(head, rest)
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise CorruptState(f"an entry of the journal cannot be read ({error})") from error


def fingerprint(energies: EnergySample) -> int:
    """What two steps share only where every energy and norm has the same bits. Each is a sum over the state."""
    return zlib.crc32(_ENERGIES.pack(*(math.nan if math.isnan(value) else value for value in energies)))


def contributions(tried: TriedRound, workers: dict[str, WorkerRecord], take: "Any") -> list[Contribution]:
    """The round once more; `take` gives an assembler for so many elements of a dtype."""
    made = []
    for (worker_id, commit, dtype, crc32), payload in zip(tried.commits, tried.gradients, strict=True):
        assembler: Assembler = take(len(payload) // dtype.itemsize, dtype)
        for begin in range(0, len(payload), assembler.max_chunk_bytes):
            piece = payload[begin : begin + assembler.max_chunk_bytes]
            assembler.add(offset=begin // dtype.itemsize, dtype=dtype, crc32=zlib.crc32(piece), payload=piece)
        worker = workers.setdefault(worker_id, WorkerRecord(worker_id))
        wish = ReplyWish(reply=Reply.NONE)
        made.append(
            Contribution(
                worker=worker,
                commit=commit,
                wish=wish,
                gradient=assembler,
                ticket=StepTicket(crc32),
                counted_s=0.0,
            )
        )
    return made


def loss(made: list[Contribution]) -> float:
    """The round's loss, as it was when it was stepped first."""
    return mean_loss(made)


def _tried(head: dict[str, Any], rest: memoryview) -> TriedRound:
    commits, sizes = [], []
    count = len(head["contributions"])
    skipped, loss_scales = head.get("skipped", [()] * count), head.get("loss_scales", [None] * count)
    for one, passed_over, loss_scale in zip(head["contributions"], skipped, loss_scales, strict=True):
        worker_id, sequence, base_step, lost, samples, dtype, crc32 = one
        commit = Commit(
            sequence=sequence,
            base_step=base_step,
            loss=lost,
            sample_count=samples,
            skipped=tuple(passed_over),
            loss_scale=loss_scale,
        )
        commits.append((worker_id, commit, Dtype(dtype), crc32))
        sizes.append(Dtype(dtype).itemsize)
    outcome = Outcome(head["outcome"])
    gradients = []
    if outcome is Outcome.APPLIED:
        elements, left = divmod(len(rest), sum(sizes))
        if left:
            raise ValueError(f"{len(rest)} bytes of gradients for {len(sizes)} contributions")
        begin = 0
        for size in sizes:
            gradients.append(rest[begin : begin + elements * size])
            begin += elements * size
    return TriedRound(
        outcome=outcome,
        fingerprint=head["fingerprint"],
        lr_scale=head["lr_scale"],
        commits=commits,
        late_weights=[float.fromhex(weight) for weight in head.get("late", ())],
        gradients=gradients,
    )


def _memory(gradient: Assembler) -> memoryview:
    assert gradient.staging is not None, "a counted gradient is kept"
    return gradient.staging.memory


def _framed(head: dict[str, Any]) -> Parts:
    text = json.dumps(head, separators=(",", ":")).encode()
    return [_LENGTH.pack(len(text)), text]


def _unframed(body: memoryview) -> tuple[dict[str, Any], memoryview]:
    (length,) = _LENGTH.unpack_from(body)
    head = json.loads(bytes(body[_LENGTH.size : _LENGTH.size + length]))
    if not isinstance(head, dict):
        raise ValueError("the head is no object")
    return head, body[_LENGTH.size + length :]
