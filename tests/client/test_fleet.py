"""A fleet is as many workers as it has members, only cheaper: the same answers, and the same troubles one by one."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests.forking import WarmServer

from hermosis import packed, wire
from hermosis.v1 import types_pb2
from hermosis_client import Client, Fleet, Outcome, Recipe, errors, fleet_birth, fleet_stream, fleet_work

RATES = np.geomspace(1e-3, 1e-1, 12)
START = np.random.default_rng(0).normal(size=(12, 30)).astype(np.float32)


def sweep(client: Client, **settings) -> Fleet:
    return client.create_fleet(START, [Recipe("adam", lr=rate) for rate in RATES], **settings)


def normal(seed: int, shape: tuple[int, ...] = START.shape) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def sgd(client: Client, start: np.ndarray = START, **settings) -> Fleet:
    return client.create_fleet(start, Recipe("sgd", lr=1.0), **settings)


@pytest.mark.parametrize(
    ("sent", "back"), [("float32", "float32"), ("bfloat16", "float32"), ("float32", "bfloat16"), ("float16", "float16")]
)
def test_each_member_gets_what_a_worker_of_its_own_would_get(client: Client, sent, back) -> None:
    with sweep(client, gradient_dtype=sent, reply_dtype=back) as fleet, contextlib.ExitStack() as stack:
        twins = [stack.enter_context(client.create_session({"w": (30,)}, Recipe("adam", lr=rate))) for rate in RATES]
        for twin, start in zip(twins, START, strict=True):
            twin.initialise(start)
        workers = [twin.worker(gradient_dtype=sent, reply_dtype=back) for twin in twins]
        for step in range(1, 4):
            gradients, losses = normal(step), np.arange(12.0)
            result = fleet.exchange(gradients, losses=losses, lr_scales=np.full(12, 0.5), energies=True)
            assert result.applied.all()
            assert not result.refusals
            assert (result.step == step).all()
            assert (result.contributions == 1).all()
            for index, worker in enumerate(workers):
                alone, parameters = worker.exchange(gradients[index], loss=losses[index], lr_scale=0.5)
                np.testing.assert_array_equal(result.parameters[index], parameters.flat)
                for name, column in result.energies.items():
                    np.testing.assert_array_equal(column[index], getattr(alone.energies, name), name)


def test_a_sweep_finds_its_best_rate(client: Client) -> None:
    target = normal(5, (30,))
    with client.create_fleet(np.zeros_like(START), [Recipe("sgd", lr=rate) for rate in RATES]) as fleet:
        parameters = np.zeros_like(START)
        for _ in range(30):
            parameters = fleet.exchange(parameters - target).parameters
        errors_left = ((parameters - target) ** 2).sum(axis=1)
    assert (np.diff(errors_left) < 0).all()


def test_a_fleet_larger_than_a_message_goes_in_several(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_work, "MESSAGE_BYTES", 2048)
    with sgd(client) as fleet:
        work = fleet._work(None, START, None, reply=True)
        assert [len(places) for places in work.cut(np.arange(12))] == [6, 6]
        for step in range(1, 4):
            result = fleet.exchange(np.ones_like(START))
            np.testing.assert_array_equal(result.parameters, ones_behind(step))
        np.testing.assert_array_equal(fleet.pull()[0], ones_behind(3))


def ones_behind(steps: int) -> np.ndarray:
    """START after steps of one."""
    values = START.copy()
    for _ in range(steps):
        values -= np.float32(1.0)
    return values


def test_some_members_may_take_part_and_land_in_place(client: Client) -> None:
    with sgd(client) as fleet:
        out = np.zeros((3, 30), np.float32)
        result = fleet.exchange(np.ones((3, 30), np.float32), members=[7, 0, 4], out=out)
        assert result.parameters is out
        np.testing.assert_array_equal(out, ones_behind(1)[[7, 0, 4]])
        assert fleet.steps.tolist() == [1, -1, -1, -1, 1, -1, -1, 1, -1, -1, -1, -1]
        result = fleet.exchange(np.ones_like(START))
        assert result.step[[7, 0, 4, 1]].tolist() == [2, 2, 2, 1]


def test_members_of_different_shapes(client: Client) -> None:
    shapes = [{"w": (3, 4), "b": (3,)}, {"w": (2,)}, {"w": (5, 5)}]
    starts = [{name: np.ones(shape) for name, shape in layout.items()} for layout in shapes]
    with client.create_fleet(starts, "sgd", labels={"kind": "mixed"}, display_names=["a", "b", "c"]) as fleet:
        sizes = [session.layout.parameter_count for session in fleet.sessions]
        assert sizes == [15, 2, 25]
        assert {info.display_name for info in client.sessions(labels={"kind": "mixed"})} == {"a", "b", "c"}
        result = fleet.exchange([np.full(size, 2.0) for size in sizes], lr_scales=[1.0, 0.0, 1.0])
        assert [len(vector) for vector in result.parameters] == sizes
        out = np.zeros(sum(sizes), np.float32)
        again = fleet.exchange([np.zeros(size) for size in sizes], out=out)
        np.testing.assert_array_equal(out, np.concatenate(result.parameters))
        assert [np.shares_memory(vector, out) for vector in again.parameters] == [True] * 3
        alike = fleet.exchange(np.zeros((1, 25), np.float32), members=[2])
        assert alike.parameters.shape == (1, 25)


def test_push_takes_nothing_back_and_pull_catches_up(client: Client) -> None:
    with sgd(client) as fleet:
        first = fleet.push(np.ones_like(START), energies=True)
        assert first.parameters is None
        assert np.isfinite(first.energies["gradient_norm"]).all()
        assert set(map(type, fleet.push(np.ones_like(START)).refusals.values())) == {errors.StaleGradient}
        parameters, refusals = fleet.pull()
        np.testing.assert_array_equal(parameters, ones_behind(1))
        assert not refusals
        assert (fleet.exchange(np.ones_like(START)).step == 2).all()


def test_where_workers_hold_the_parameters_increments_come(client: Client) -> None:
    with sgd(client, parameters_on="worker") as fleet:
        gradients = np.ones_like(START)
        gradients[3, 3] = np.inf
        result = fleet.exchange(gradients)
        assert result.outcome[3] == Outcome.NON_FINITE_GRADIENT
        assert fleet.steps[[2, 3]].tolist() == [1, 0]
        expected = -np.ones_like(START)
        expected[3] = 0.0
        np.testing.assert_array_equal(result.parameters, expected)
        assert set(map(type, fleet.pull()[1].values())) == {errors.SessionNotReady}


def test_one_members_trouble_is_its_own(client: Client) -> None:
    with sgd(client) as fleet:
        fleet.sessions[2].pause()
        fleet.sessions[5].close()
        result = fleet.exchange(np.ones_like(START))
        assert {index: type(error) for index, error in result.refusals.items()} == {
            2: errors.SessionNotReady,
            5: errors.SessionNotFound,
        }
        assert np.flatnonzero(~result.applied).tolist() == [2, 5]
        fleet.sessions[2].resume()
        result = fleet.exchange(np.ones((2, 30), np.float32), members=[1, 2])
        assert result.step.tolist() == [2, 1]


def test_a_restored_member_is_refused_until_it_is_pulled(client: Client) -> None:
    with sgd(client) as fleet:
        state = fleet.sessions[1].export_state() if fleet.exchange(np.ones_like(START)).applied.all() else None
        fleet.exchange(np.ones_like(START))
        fleet.sessions[1].import_state(state)
        result = fleet.exchange(np.ones_like(START))
        assert {index: type(error) for index, error in result.refusals.items()} == {1: errors.StaleGeneration}
        fleet._drop()  # a new stream fences it off all the same
        assert list(fleet.exchange(np.ones_like(START)).refusals) == [1]
        parameters, _ = fleet.pull(members=[1])
        np.testing.assert_array_equal(parameters[0], ones_behind(1)[1])
        result = fleet.exchange(np.ones_like(START))
        assert not result.refusals
        assert result.step.tolist() == [5, 2, *[5] * 10]


def test_a_pull_that_never_came_makes_nobody_go_on(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with sgd(client) as fleet:
        state = fleet.sessions[1].export_state() if fleet.pull() else None
        fleet.exchange(np.ones_like(START))
        fleet.sessions[1].import_state(state)
        with monkeypatch.context() as patch:
            patch.setattr(fleet_stream.FleetStream, "_exchange", interrupted)
            with pytest.raises(KeyboardInterrupt):
                fleet.pull()
        result = fleet.exchange(np.ones_like(START))
        assert {index: type(error) for index, error in result.refusals.items()} == {1: errors.StaleGeneration}
        assert result.step.tolist() == [2, 0, *[2] * 10]


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_two_fleets_make_the_rounds_of_their_sessions_together(client: Client) -> None:
    with sgd(client, workers=2, worker_id="a") as first:
        ids = [session.session_id for session in first.sessions]
        with client.fleet(ids, worker_id="b") as second, ThreadPoolExecutor(1) as pool:
            for step in range(1, 4):
                other = pool.submit(second.exchange, 2 * np.ones_like(START))
                result = first.exchange(np.zeros_like(START))
                assert (result.contributions == 2).all()
                np.testing.assert_array_equal(result.parameters, ones_behind(step))
                np.testing.assert_array_equal(other.result(20).parameters, result.parameters)
        assert client.session(ids[0]).info().step == 3, "who attached only disconnects"


class Wire:
    """A way to a server that can be made to swallow answers, and be cut."""

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self._target = (host, int(port))
        self._door = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._door.getsockname()[1]}"
        self.swallow = False
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def cut(self) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Harmless when repeated."""
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self.cut()
        for thread in self._threads:
            thread.join(10)
        for end in (self._door, *self._ends):
            end.close()

    def _start(self, target, *arguments: object) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._door.accept()
                far = socket.create_connection(self._target)
                self._ends += [near, far]
                self._start(self._pump, near, far, False)
                self._start(self._pump, far, near, True)

    def _pump(self, source: socket.socket, drain: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if not (answers and self.swallow):
                    drain.sendall(data)
        for end in (source, drain):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def cable(server: WarmServer) -> Iterator[Wire]:
    wire = Wire(server.address)
    yield wire
    wire.close()


def until_step(client: Client, session_id: str, step: int) -> None:
    pause = threading.Event()
    for _ in range(500):
        if client.session(session_id).info().step >= step:
            return
        pause.wait(0.02)
    raise AssertionError(f"step {step} did not come")


def test_what_was_counted_when_the_connection_broke_is_counted_once(client: Client, cable: Wire, monkeypatch) -> None:
    monkeypatch.setattr(fleet_work, "MESSAGE_BYTES", 2048)  # several messages, all in doubt
    with sgd(client) as owner, Client(cable.address, timeout_s=20.0) as far, ThreadPoolExecutor(1) as pool:
        fleet = far.fleet([session.session_id for session in owner.sessions])
        fleet.exchange(np.ones_like(START))
        cable.swallow = True
        call = pool.submit(fleet.exchange, np.ones_like(START), energies=True)
        for session in owner.sessions:
            until_step(client, session.session_id, 2)
        cable.swallow = False
        cable.cut()
        result = call.result(20)
        assert result.duplicate.all()
        assert (result.step == 2).all()
        assert np.isfinite(result.energies["step_norm"]).all()
        np.testing.assert_array_equal(result.parameters, ones_behind(2))
        after = fleet.exchange(np.ones_like(START))
        assert not after.duplicate.any()
        np.testing.assert_array_equal(after.parameters, ones_behind(3))
        fleet.disconnect()


def test_what_never_comes_back_is_told_and_the_fleet_goes_on_after_a_pull(client: Client, cable: Wire) -> None:
    with sgd(client) as owner, Client(cable.address, timeout_s=1.0) as far, ThreadPoolExecutor(1) as pool:
        fleet = far.fleet([session.session_id for session in owner.sessions])
        fleet.pull()
        cable.swallow = True
        call = pool.submit(fleet.exchange, np.ones_like(START))
        until_step(client, owner.sessions[11].session_id, 1)
        cable.close()
        with pytest.raises(errors.ConnectionFailed):
            call.result(20)
        assert (fleet.steps == 0).all(), "nothing that came partly is taken for come"
        fleet.disconnect()


def test_closing_cuts_a_call_off_that_waits_in_another_thread(client: Client) -> None:
    with sgd(client, workers=2) as fleet, ThreadPoolExecutor(1) as pool:
        call = pool.submit(fleet.exchange, np.ones_like(START))
        while not any(worker.connected for worker in fleet.sessions[0].workers()):
            pass
        fleet.disconnect()
        with pytest.raises(RuntimeError, match="is closed"):
            call.result(20)


def test_sessions_are_made_all_or_none(client: Client) -> None:
    before = len(list(client.sessions()))
    with pytest.raises(errors.InvalidHyperparameter):
        client.create_fleet(START, [Recipe("sgd", lr=0.1)] * 11 + [Recipe("sgd", lr=-1.0)])
    with pytest.raises(errors.InvalidRequest):
        client.create_fleet(np.where(np.arange(12)[:, None] == 7, np.nan, START), "sgd")
    assert len(list(client.sessions())) == before


def test_a_session_that_was_closed_by_others_is_closed(client: Client) -> None:
    with sgd(client) as fleet:
        fleet_birth.close(fleet.sessions[:3])
    assert not list(client.sessions(labels={"kind": "mixed"}))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda fleet: fleet.exchange(np.ones((11, 30), np.float32)),
        lambda fleet: fleet.exchange(np.ones((12, 29), np.float32)),
        lambda fleet: fleet.exchange(np.ones_like(START), losses=np.ones(3)),
        lambda fleet: fleet.exchange(np.ones_like(START), members=[0, 1]),
        lambda fleet: fleet.exchange(np.ones((2, 30), np.float32), members=[0, 0]),
        lambda fleet: fleet.exchange(np.ones((2, 30), np.float32), members=[0, 12]),
        lambda fleet: fleet.exchange(np.ones_like(START), out=np.ones((12, 30))),
    ],
    ids=["members", "size", "losses", "subset", "twice", "beyond", "out"],
)
def test_what_does_not_fit_is_said_before_anything_is_sent(client: Client, wrong) -> None:
    with sgd(client) as fleet:
        with pytest.raises(ValueError, match=r"\S"):
            wrong(fleet)
        assert fleet._stream is None


@pytest.mark.parametrize(
    "wrong",
    [
        lambda client: client.create_fleet(START[0], "sgd"),
        lambda client: client.create_fleet(START, ["sgd"] * 3),
        lambda client: client.create_fleet(START, "sgd", session_ids=["a"]),
        lambda client: client.fleet([]),
        lambda client: client.create_fleet(START, "sgd", ack_level="received"),
    ],
    ids=["one row", "optimizers", "ids", "nobody", "ack_level"],
)
def test_lengths_that_do_not_fit_make_nothing(client: Client, wrong) -> None:
    before = len(list(client.sessions()))
    with pytest.raises(ValueError, match=r"\S"):
        wrong(client)
    assert len(list(client.sessions())) == before


def test_a_member_too_large_for_a_message_is_left_to_workers(client: Client) -> None:
    with client.create_session({"w": (1 << 20,)}, "sgd") as large, pytest.raises(ValueError, match="Worker"):
        client.fleet([large])
    before = len(list(client.sessions()))
    with pytest.raises(ValueError, match="Worker"):
        client.create_fleet(np.zeros((1, 1 << 20), np.float32), "sgd")
    assert len(list(client.sessions())) == before


def work_of(fleet: Fleet) -> fleet_work.Work:
    return fleet._work([0, 1], np.ones((2, 30), np.float32), None, reply=True)


def answer_with(**columns: object) -> packed.PackedResults:
    """A right answer to two contributions, but for what is said."""
    payload = np.arange(60, dtype=np.float32).tobytes()
    right = {"outcomes": b"\1\1", "steps": np.array([4, 5], "<u8").tobytes(), "payload": payload}
    fields = right | {"crc32": wire.checksum(payload)} | columns
    found = packed.read_results(packed.write_results(packed.PackedResults(number=1, **fields)))
    assert found is not None
    return found


def refusal(reason: str, **said: float) -> bytes:
    return types_pb2.Refusal(reason=reason, message="on request", **said).SerializeToString()


def test_a_message_that_is_refused_as_a_whole_is_so_for_each_of_its_members(client: Client) -> None:
    with sgd(client) as fleet:
        work = work_of(fleet)
        work.land(packed.PackedResults(refusal=refusal("Overloaded", retry_after_s=0.25)), np.arange(2))
        assert work.pending.all(), "worth another attempt"
        work.land(packed.PackedResults(refusal=refusal("LayoutMismatch")), np.arange(1))
        assert work.pending.tolist() == [False, True]
        work.land(
            answer_with(outcomes=b"\1", steps=bytes(8), payload=bytes(120), crc32=wire.checksum(bytes(120))),
            np.array([1]),
        )
        assert (work.pending.any(), work.settled.tolist()) == (False, [False, True])
        assert {place: type(error) for place, error in work.refusals.items()} == {0: errors.LayoutMismatch}


@pytest.mark.parametrize(
    "damage",
    [
        {"crc32": 0},
        {"payload": b""},
        {"outcomes": b"\1"},
        {"steps": bytes(24)},
        {"stalenesses": bytes(4)},
        {"duplicates": np.array([2], "<u4").tobytes()},
        {"refusals": [b"\x08\x02"]},
        {"refusals": [b"\xff"]},
    ],
    ids=lambda damage: next(iter(damage)),
)
def test_an_answer_that_makes_no_sense_is_broken(client: Client, damage: dict) -> None:
    with sgd(client) as fleet:
        right = work_of(fleet)
        right.land(answer_with(), np.arange(2))
        np.testing.assert_array_equal(right.landed, np.arange(60))
        with pytest.raises(fleet_work.BrokenAnswer):
            work_of(fleet).land(answer_with(**damage), np.arange(2))
