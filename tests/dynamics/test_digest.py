"""The state digest: equal for equal states, different for everything else."""

import hashlib
import math
import struct

import pytest

from hermosis_server.dynamics import SCALARS, state_digest
from hermosis_server.records import Outcome, StateBuffer, WorkerSequence

BUFFERS = {StateBuffer.PARAMETERS: struct.pack("<3f", 1, 2, 3), StateBuffer.MOMENTUM: struct.pack("<3f", 4, 5, 6)}
NUMBERS = [float(each) for each in range(len(SCALARS))]
WORKERS = [
    WorkerSequence(worker_id=worker, sequence=3, payload_crc32=7, outcome=Outcome.APPLIED, step=2)
    for worker in ("a", "é")
]
DIGEST = state_digest(BUFFERS, NUMBERS, WORKERS)


def test_digest_is_the_documented_bytes() -> None:
    """Spelled out, so that another language, or a later version, can be held against it."""
    text = b"hermosis.state.v1" + struct.pack("<I", 2)
    text += (
        struct.pack("<IQ", 1, 12)
        + struct.pack("<3f", 1, 2, 3)
        + struct.pack("<IQ", 2, 12)
        + struct.pack("<3f", 4, 5, 6)
    )
    text += struct.pack("<I9d", 9, *NUMBERS) + struct.pack("<I", 2)
    for name in (b"a", "é".encode()):
        text += struct.pack("<I", len(name)) + name + struct.pack("<QIIQ", 3, 7, 1, 2)
    assert hashlib.sha256(text).digest() == DIGEST


def test_order_and_kind_of_buffers_do_not_matter() -> None:
    turned = {kind: memoryview(bytearray(BUFFERS[kind])).cast("I") for kind in reversed(BUFFERS)}
    assert state_digest(turned, NUMBERS, WORKERS[::-1]) == DIGEST


def test_every_nan_is_the_same() -> None:
    (odd,) = struct.unpack("<d", struct.pack("<Q", 0xFFF8000000000123))
    assert math.isnan(odd)
    assert state_digest(BUFFERS, [*NUMBERS[:8], math.nan], []) == state_digest(BUFFERS, [*NUMBERS[:8], odd], [])


@pytest.mark.parametrize("place", range(len(SCALARS)))
def test_each_scalar_counts(place: int) -> None:
    changed = [*NUMBERS[:place], math.nextafter(NUMBERS[place], 99), *NUMBERS[place + 1 :]]
    assert state_digest(BUFFERS, changed, WORKERS) != DIGEST


@pytest.mark.parametrize(
    "change",
    [
        {"worker_id": "b"},
        {"sequence": 4},
        {"payload_crc32": 8},
        {"outcome": Outcome.NON_FINITE_STATE},
        {"step": 3},
    ],
    ids=str,
)
def test_everything_of_a_worker_counts(change: dict[str, object]) -> None:
    changed = WORKERS[0]._replace(**change)  # type: ignore[arg-type]
    assert state_digest(BUFFERS, NUMBERS, [changed, WORKERS[1]]) != DIGEST


def test_bytes_and_kind_of_each_buffer_count() -> None:
    payload = bytearray(BUFFERS[StateBuffer.MOMENTUM])
    payload[-1] ^= 1
    assert state_digest({**BUFFERS, StateBuffer.MOMENTUM: bytes(payload)}, NUMBERS, WORKERS) != DIGEST
    other = dict(zip((StateBuffer.PARAMETERS, StateBuffer.SECOND_MOMENT), BUFFERS.values(), strict=True))
    assert state_digest(other, NUMBERS, WORKERS) != DIGEST
    assert state_digest(BUFFERS, NUMBERS, WORKERS[:1]) != DIGEST
