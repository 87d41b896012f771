"""The answer to a packed message: what it says when much was refused, and where what is missing lies."""

import numpy as np

from hermosis import packed
from hermosis.v1 import gradient_pb2
from hermosis.wire import Dtype
from hermosis_server.errors import Overloaded, StaleGradient
from hermosis_server.rpc.lineup import peaks
from hermosis_server.rpc.packed_answer import BARE_REFUSAL_BYTES, PackedAnswer

PLACES = [slice(0, 8), slice(8, 8), slice(8, 12)]


def refused(refusal_bytes: int) -> packed.PackedResults:
    sent: list[bytes] = []
    answer = PackedAnswer(
        number=3, replies=PLACES, energies=False, waits=3, refusal_bytes=refusal_bytes, send=sent.append
    )
    for place in (2, 0, 1):
        assert not sent, "the answer comes with the last"
        error = StaleGradient("x" * 400, metadata={"step": "4"}) if place else Overloaded("y" * 400, retry_after_s=0.25)
        answer.take(place, error)
    found = packed.read_results(sent[0])
    assert found is not None
    return found


def refusals(answer: packed.PackedResults) -> list[gradient_pb2.PackedRefusal]:
    return [gradient_pb2.PackedRefusal.FromString(bytes(raw)) for raw in answer.refusals]


def test_refusals_say_all_where_there_is_room() -> None:
    said = refusals(refused(10_000))
    assert [each.index for each in said] == [0, 1, 2]
    assert said[1].refusal.metadata == {"step": "4"}
    assert len(said[2].refusal.message) == 400


def test_where_there_is_none_reason_code_and_time_are_left() -> None:
    answer = refused(3 * BARE_REFUSAL_BYTES)
    said = refusals(answer)
    assert [each.refusal.reason for each in said] == ["Overloaded", "StaleGradient", "StaleGradient"]
    assert (said[0].refusal.retry_after_s, said[0].refusal.message, said[1].refusal.metadata) == (0.25, "", {})
    assert sum(len(raw) + 8 for raw in answer.refusals) <= 3 * BARE_REFUSAL_BYTES
    assert bytes(answer.payload) == bytes(12), "every reply has its place"


def test_peaks_are_those_of_each_gradient_in_every_dtype() -> None:
    rows = np.array([[0.5, -2.0, 1.0], [np.inf, 0.0, -1.0], [0.0, -0.0, 0.0], [1.0, np.nan, 9.0]], np.float32)
    expected = [2.0, np.inf, 0.0, np.nan]
    encodings = {
        Dtype.FLOAT32: rows,
        Dtype.FLOAT16: rows.astype(np.float16),
        Dtype.BFLOAT16: (rows.view(np.uint32) >> 16).astype(np.uint16),
    }
    for dtype, values in encodings.items():
        memory, size = memoryview(values.tobytes()), 3 * dtype.itemsize
        every = [slice(i * size, (i + 1) * size) for i in range(4)]
        np.testing.assert_array_equal(peaks(memory, dtype, every, size), expected)
        some = [slice(0, size - dtype.itemsize), every[1], every[3]]
        np.testing.assert_array_equal(peaks(memory, dtype, some, 0), [2.0, np.inf, np.nan])
