"""A contribution in pieces is the same as one that is whole."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from tests.forking import WarmServer

from hermosis_client import Client, Session, Worker

SIZE = 1_000_000
RNG = np.random.default_rng(0)


@pytest.fixture(params=[False, True], ids=["wire", "segment"])
def workers(request: pytest.FixtureRequest, client: Client) -> Iterator[tuple[Worker, Worker]]:
    """One to send in pieces and one to send whole, each of a session of its own."""
    sessions: list[Session] = []
    for _ in range(2):
        sessions.append(client.create_session({"w": (SIZE,)}, "adam"))
        sessions[-1].initialise(np.zeros(SIZE, np.float32))
    yield tuple(session.worker("w", shared_memory=request.param) for session in sessions)  # type: ignore[misc]
    for session in sessions:
        session.close()


def cuts(count: int) -> list[tuple[int, int]]:
    """A vector in so many pieces, in no order, some of them empty."""
    places = np.sort(RNG.integers(0, SIZE, count - 1)).tolist()
    pieces = list(zip([0, *places], [*places, SIZE], strict=True))
    RNG.shuffle(pieces)
    return [(int(start), int(stop)) for start, stop in pieces]


@pytest.mark.parametrize("count", [1, 2, 7, 500])
def test_pieces_in_any_order_from_several_threads_are_the_whole(workers: tuple[Worker, Worker], count: int) -> None:
    for _ in range(3):
        gradient = RNG.standard_normal(SIZE).astype(np.float32)
        filled = np.full(SIZE, np.nan, np.float32)
        out = np.empty(SIZE, np.float32)
        contribution = workers[0].begin(filled)

        def fill(pieces: list[tuple[int, int]], filled=filled, gradient=gradient, contribution=contribution) -> None:
            for start, stop in pieces:
                filled[start:stop] = gradient[start:stop]
                contribution.ready(start, stop)

        pieces = cuts(count)
        threads = [threading.Thread(target=fill, args=(pieces[number::3],)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        contribution.finish(loss=1.0, out=out)
        _, whole = workers[1].exchange(gradient, loss=1.0)
        contribution.wait(SIZE // 3)
        assert np.array_equal(out[: SIZE // 3], whole.flat[: SIZE // 3])
        result, tensors = contribution.result()
        assert np.array_equal(tensors.flat, whole.flat)
        assert tensors.flat is out
        assert (result.step, result.duplicate) == (workers[1].step, False)


def test_a_gradient_with_a_gap_is_not_finished(workers: tuple[Worker, Worker]) -> None:
    contribution = workers[0].begin(np.ones(SIZE, np.float32))
    contribution.ready(0, SIZE - 1)
    with pytest.raises(ValueError, match="999999 of 1000000"):
        contribution.finish()
    contribution.ready(SIZE - 1, SIZE)
    contribution.finish()
    assert contribution.wait().step == 1


def test_what_is_abandoned_does_not_count(workers: tuple[Worker, Worker]) -> None:
    workers[0].exchange(np.ones(SIZE, np.float32))
    workers[1].exchange(np.ones(SIZE, np.float32))
    for most in (0, 3 * SIZE // 4, SIZE):
        contribution = workers[0].begin(np.full(SIZE, 7, np.float32))
        contribution.ready(0, most)
        contribution.abandon()
        contribution.abandon()
        gradient = RNG.standard_normal(SIZE).astype(np.float32)
        again = workers[0].begin(gradient)
        again.ready(SIZE // 2, SIZE)
        again.ready(0, SIZE // 2)
        again.finish()
        again.abandon()  # too late
        result, tensors = again.result()
        assert not result.duplicate
        assert np.array_equal(tensors.flat, workers[1].exchange(gradient)[1].flat)


def test_what_is_abandoned_is_no_part_of_the_next(client: Client) -> None:
    """The server keeps the beginning of a large gradient; the next one first has what would go on from there."""
    size, sent = 3_000_000, 8 << 18  # eight chunks
    gradients = RNG.standard_normal((2, size)).astype(np.float32)
    sessions = [client.create_session({"w": (size,)}, "adam") for _ in range(2)]
    for session in sessions:
        session.initialise(np.zeros(size, np.float32))
    with sessions[0].worker("w", shared_memory=False) as worker:
        worker.exchange(gradients[0])
        before = client.overview().received_bytes
        contribution = worker.begin(gradients[0])
        contribution.ready(0, sent)
        while client.overview().received_bytes < before + 4 * sent:
            time.sleep(0.01)
        contribution.abandon()
        contribution = worker.begin(gradients[1])
        contribution.ready(sent, size)
        contribution.ready(0, sent)
        contribution.finish()
        _, tensors = contribution.result()
    for gradient in gradients:
        _, whole = sessions[1].exchange(gradient)
    assert np.array_equal(tensors.flat, whole.flat)
    for session in sessions:
        session.close()


def test_one_contribution_waits_for_the_other(workers: tuple[Worker, Worker]) -> None:
    gradients = RNG.standard_normal((3, SIZE)).astype(np.float32)
    begun = [workers[0].begin(gradient) for gradient in gradients]
    for contribution in reversed(begun):
        contribution.ready(0, SIZE)
        contribution.finish()
    for number, contribution in enumerate(begun, start=1):
        result, tensors = contribution.result()
        assert result.step == number
        assert np.array_equal(tensors.flat, workers[1].exchange(gradients[number - 1])[1].flat)


def test_closing_ends_what_is_under_way(workers: tuple[Worker, Worker]) -> None:
    contribution = workers[0].begin(np.ones(SIZE, np.float32))
    contribution.ready(0, SIZE // 2)
    workers[0].close()
    with pytest.raises(RuntimeError, match="closed"):
        contribution.wait()


@pytest.mark.parametrize("begun", ["begun", "half", "finished"])
def test_a_program_may_end_in_the_middle(server: WarmServer, begun: str) -> None:
    program = """
import sys
import numpy as np
from hermosis_client import Client
client = Client(sys.argv[1])
session = client.create_session({"w": (1_000_000,)}, "sgd", workers=2)
session.initialise(np.zeros(1_000_000, np.float32))
worker = session.worker("w")
contribution = worker.begin(np.ones(1_000_000, np.float32))
if sys.argv[2] != "begun":
    contribution.ready(0, 500_000)
if sys.argv[2] == "finished":
    contribution.ready(500_000, 1_000_000)
    contribution.finish()  # and the other worker never comes
"""
    done = subprocess.run(
        [sys.executable, "-c", program, server.address, begun], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
