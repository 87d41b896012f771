"""Workers under a codec, on a real server: what is left out comes later, and nothing is lost or counted twice."""

import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tests.faults.proxy import proxy

from hermosis import coding, hot
from hermosis.wire import Dtype
from hermosis_client import Client, Codec, Consistency, Outcome, ParameterLayout, Recipe, Session, TensorSpec, errors
from hermosis_client import codec as messages
from hermosis_client.coded import Feedback, codec_named
from hermosis_client.torch_local import LocalSteps
from hermosis_client.torch_optimizer import RemoteOptimizer

LOSSY = [Codec("int8"), Codec("top_k", 0.05), Codec("random_k", 0.05)]
ALL = [*LOSSY, Codec("deflate")]
LARGE = 3_000_000  # 12 MB, decoded


def name_of(codec: Codec) -> str:
    return codec.kind


@pytest.fixture
def session(client: Client) -> Iterator[Session]:
    with client.create_session({"w": (300,), "b": (7,)}, Recipe("sgd", lr=1.0)) as session:
        session.initialise(np.zeros(307, np.float32))
        yield session


def some(seed: int, size: int = 307) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def flat(tensors: Any) -> np.ndarray:
    return np.concatenate([np.ravel(tensor) for tensor in tensors.values()])


@pytest.mark.parametrize("codec", LOSSY, ids=name_of)
def test_what_is_left_out_of_one_gradient_goes_with_the_next(session: Session, codec: Codec) -> None:
    """The sum of all gradients is the way that the parameters went, and what is still left out."""
    total = np.zeros(307)
    with session.worker("w", codec=codec) as worker:
        for step in range(40):
            total += some(step)
            worker.exchange(some(step))
        assert worker._feedback is not None
        left = worker._feedback.left_out
    assert left is not None
    assert np.abs(left).max() > 0
    np.testing.assert_allclose(-flat(session.pull()), total - left, atol=1e-4)


def test_deflate_changes_nothing(client: Client, session: Session) -> None:
    with client.create_session({"w": (300,), "b": (7,)}, Recipe("sgd", lr=1.0)) as plain:
        plain.initialise(np.zeros(307, np.float32))
        with session.worker("w", codec="deflate", reply_codec="deflate") as one, plain.worker("w") as other:
            for step in range(3):
                mine, theirs = (flat(worker.exchange(some(step))[1]) for worker in (one, other))
                np.testing.assert_array_equal(mine, theirs)
        assert session.digest() == plain.digest()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("codec", LOSSY, ids=name_of)
def test_a_gradient_that_is_not_finite_is_told_and_leaves_nothing(session: Session, codec: Codec, bad: float) -> None:
    with session.worker("w", codec=codec) as worker:
        worker.exchange(some(0))
        assert worker._feedback is not None
        assert worker._feedback.left_out is not None
        before = worker._feedback.left_out.copy()
        broken = some(1)
        broken[123] = bad
        result, _ = worker.exchange(broken)
        assert result.outcome is Outcome.NON_FINITE_GRADIENT
        np.testing.assert_array_equal(worker._feedback.left_out, before)
        result, _ = worker.exchange(some(2))
        assert result.applied
        assert np.isfinite(worker._feedback.left_out).all()
        assert not np.array_equal(worker._feedback.left_out, before)


def test_a_fate_that_is_told_twice_counts_once() -> None:
    """The result came, and the connection broke before the parameters had."""
    layout = ParameterLayout((TensorSpec(name="w", shape=(8,)),))
    feedback = Feedback(codec_named("int8"), layout, Dtype.FLOAT32, "w")
    result = dataclasses.replace(messages.step_result(hot.StepResult(sequence=1)), outcome=Outcome.APPLIED)
    coded = feedback.code(some(0, 8), hot.Commit(1, 1), 1 << 20)
    assert len(list(coded.sending(hot.Commit(1, 1), 0))) == 2
    for _ in range(2):
        feedback.settle(coded, result)
    left = feedback.left_out
    assert left is coded.leaves
    assert left is not None
    kept = left.copy()
    other = feedback.code(some(1, 8), hot.Commit(1, 2), 1 << 20)
    list(other.sending(hot.Commit(1, 2), 0))
    np.testing.assert_array_equal(left, kept)


@pytest.mark.parametrize("codec", LOSSY, ids=name_of)
def test_what_was_left_out_has_the_loss_scale_of_now(session: Session, codec: Codec) -> None:
    total = np.zeros(307)
    with session.worker("w", codec=codec) as worker:
        for step, scale in enumerate([None, 1024.0, 4.0, 1.0]):
            total += some(step)
            worker.exchange(some(step) * np.float32(scale or 1.0), loss_scale=scale)
        assert worker._feedback is not None
        left = worker._feedback.left_out
    np.testing.assert_allclose(-flat(session.pull()), total - left, atol=1e-4)


@pytest.mark.parametrize("codec", LOSSY, ids=name_of)
def test_a_skipped_tensor_gets_nothing_and_what_was_left_out_of_it_waits(session: Session, codec: Codec) -> None:
    with session.worker("w", codec=codec) as worker:
        worker.exchange(some(0))
        assert worker._feedback is not None
        assert worker._feedback.left_out is not None
        before, left = session.pull(), worker._feedback.left_out.copy()
        result, after = worker.exchange({"w": some(1)[:300]}, skipped=["b"])
        assert result.applied
        np.testing.assert_array_equal(after["b"], before["b"])
        np.testing.assert_array_equal(worker._feedback.left_out[300:], left[300:])
        assert not np.array_equal(worker._feedback.left_out[:300], left[:300])
        result, _ = worker.exchange({"w": np.full(300, np.nan, np.float32)}, skipped=["b"])
        assert result.outcome is Outcome.NON_FINITE_GRADIENT
        assert np.isfinite(worker._feedback.left_out).all()


def test_what_is_not_finite_is_not_kept_though_it_was_received(session: Session) -> None:
    with session.worker("w", codec="int8", ack_level="received", reply="none") as worker:
        worker.exchange(np.full(307, np.inf, np.float32))
        assert worker._feedback is not None
        assert worker._feedback.left_out is not None
        assert not worker._feedback.left_out.any()


def test_a_refused_contribution_leaves_nothing(session: Session) -> None:
    with session.worker("w", codec="top_k") as worker, session.worker("other") as other:
        worker.exchange(some(0))
        assert worker._feedback is not None
        assert worker._feedback.left_out is not None
        before = worker._feedback.left_out.copy()
        other.pull()
        other.exchange(some(1))
        with pytest.raises(errors.StaleGradient):
            worker.exchange(some(2))
        np.testing.assert_array_equal(worker._feedback.left_out, before)


@pytest.mark.parametrize("codec", ALL, ids=name_of)
def test_a_contribution_whose_fate_is_unknown_is_sent_as_it_was(server: Any, client: Client, codec: Codec) -> None:
    """The connection breaks when it was counted and before it is answered."""
    with (
        client.create_session({"w": (307,)}, "sgd", consistency=Consistency(workers=2)) as shared,
        proxy() as door,
        Client(door.address, timeout_s=20.0) as behind,
    ):
        shared.initialise(np.zeros(307, np.float32))
        door.open(server.address)
        worker = behind.session(shared.session_id).worker("a", codec=codec)
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(worker.exchange(some(0))[0]))
        thread.start()
        pause = threading.Event()
        while not any(one.next_sequence == 2 for one in shared.workers()):
            pause.wait(0.01)
        door.cut()
        with shared.worker("b") as other:
            other.exchange(some(1))
        thread.join(20)
        assert [(result.outcome, result.step) for result in found] == [(Outcome.APPLIED, 1)]
        assert shared.info().step == 1
        if worker._feedback is not None and worker._feedback.left_out is not None:
            assert np.abs(worker._feedback.left_out).max() > 0  # settled, though the first answer never came
        worker.close()


def test_a_cut_in_the_middle_of_a_coded_gradient_does_not_send_it_all_again(server: Any, client: Client) -> None:
    gradient = some(0, LARGE)
    with (
        client.create_session({"w": (LARGE,)}, "sgd") as session,
        client.create_session({"w": (LARGE,)}, "sgd") as calm,
    ):
        for one in (session, calm):
            one.initialise(np.zeros(LARGE, np.float32))
        with proxy() as door, Client(door.address) as behind:
            door.open(server.address)
            with behind.session(session.session_id).worker("w", codec="int8") as worker:
                worker.pull()
                cut, again = door.cut_after(2_300_000), door.record()
                result, _ = worker.exchange(gradient)
                assert cut.is_set()
                assert sum(map(len, again)) < 2_000_000  # of 3 MB
                assert (result.step, result.duplicate) == (1, False)
        with calm.worker("w", codec="int8") as worker:
            worker.exchange(gradient)
        assert session.digest() == calm.digest()


@pytest.mark.parametrize("codec", LOSSY, ids=name_of)
def test_training_arrives_where_it_does_without_a_codec(client: Client, codec: Codec) -> None:
    """A least-squares problem of 2000 weights; the way back is coded as well."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((400, 200)).astype(np.float32)
    target = rng.standard_normal((200, 10)).astype(np.float32)
    outputs = inputs @ target

    def loss_after(**options: Any) -> float:
        with client.create_session({"w": (200, 10)}, Recipe("sgd", lr=0.02)) as session:
            session.initialise(np.zeros(2000, np.float32))
            weights = np.zeros((200, 10), np.float32)
            with session.worker("w", **options) as worker:
                for _ in range(600):
                    missed = inputs @ weights - outputs
                    _, new = worker.exchange({"w": inputs.T @ missed / 400}, loss=float((missed**2).mean()))
                    weights = new["w"]
            return float(((inputs @ session.pull()["w"] - outputs) ** 2).mean())

    start = float((outputs**2).mean())
    plain = loss_after()
    assert plain < 1e-3 * start
    assert loss_after(codec=codec) < 2e-3 * start
    assert loss_after(codec="int8", reply_codec=codec) < 2e-3 * start


@pytest.mark.parametrize("codec", LOSSY, ids=name_of)
def test_a_coded_answer_comes_to_the_parameters_with_two_workers(client: Client, codec: Codec) -> None:
    consistency = Consistency(mode="async", workers=2)
    with client.create_session({"w": (5000,)}, Recipe("sgd", lr=0.1), consistency=consistency) as session:
        session.initialise(np.zeros(5000, np.float32))
        held, still = {}, np.zeros(5000, np.float32)
        with session.worker("a", reply_codec=codec) as one, session.worker("b", reply_codec=codec) as other:
            for turn in range(20):
                for worker in (one, other):
                    worker.exchange(some(turn, 5000))
            assert all(
                np.abs(flat(worker.exchange(still)[1]) - flat(session.pull())).max() > 0 for worker in (one, other)
            )
            for _ in range(400):  # nothing moves any more: what was left out comes after all
                held = {worker.worker_id: flat(worker.exchange(still)[1]) for worker in (one, other)}
        truth = flat(session.pull())
        for name, values in held.items():
            np.testing.assert_allclose(values, truth, atol=1e-5, err_msg=name)


def test_a_coded_answer_begins_anew_after_a_reconnect(server: Any, client: Client) -> None:
    with client.create_session({"w": (5000,)}, Recipe("sgd", lr=1.0)) as session:
        session.initialise(np.zeros(5000, np.float32))
        with proxy() as door, Client(door.address, timeout_s=20.0) as behind:
            door.open(server.address)
            with behind.session(session.session_id).worker("w", reply_codec="top_k") as worker:

                def is_exact(step: int) -> bool:
                    return np.array_equal(flat(worker.exchange(some(step, 5000))[1]), flat(session.pull()))

                assert [is_exact(step) for step in range(4)] == [True, False, False, False]
                door.cut()
                assert [is_exact(step) for step in range(2)] == [True, False]
                worker.push(some(10, 5000))
                np.testing.assert_array_equal(flat(worker.pull()), flat(session.pull()))  # opens the handle anew
                assert [is_exact(step) for step in range(2)] == [False, False]


def test_what_a_codec_leaves_out_is_seen_in_telemetry(session: Session) -> None:
    with session.worker("w", codec=Codec("top_k", 0.1)) as worker:
        gradient = np.zeros(307, np.float32)
        gradient[:62] = 1.0  # half of which goes: 31 of 307
        worker.exchange(gradient)
        (info,) = session.workers()
        reading = session.telemetry()
        assert reading is not None
        assert reading.compression_error == info.compression_error == pytest.approx(np.sqrt(0.5))
        assert reading.received_bytes == info.received_bytes == 4 + 6 * 31
    with session.worker("w") as worker:
        worker.exchange(gradient)
        reading = session.telemetry()
        assert reading is not None
        assert np.isnan(reading.compression_error)
        assert reading.received_bytes == 4 * 307


def test_a_server_names_its_codecs(client: Client) -> None:
    assert client.capabilities().codecs == ("plain", "int8", "top_k", "random_k", "deflate")


@pytest.mark.parametrize("codec", ["zip", "TOPK", Codec])
def test_a_codec_that_there_is_not_is_named(session: Session, codec: Any) -> None:
    with pytest.raises(ValueError, match="there are plain, int8, top_k, random_k, deflate"):
        session.worker("w", codec=codec)


def test_codecs_by_name_and_by_fraction() -> None:
    assert codec_named("int8") == coding.Codec(coding.CodecKind.INT8)
    assert codec_named(Codec("top_k", 0.25)) == coding.Codec(coding.CodecKind.TOP_K, 0.25)
    with pytest.raises(ValueError, match="fraction"):
        Codec("top_k", 1.5)


def test_torch_optimizers_take_codecs(server: Any, client: Client) -> None:
    torch.manual_seed(0)
    net = torch.nn.Linear(20, 5)
    with RemoteOptimizer(
        net.parameters(), optimizer="adamw", lr=1e-2, address=server.address, codec="int8", reply_codec=Codec("int8")
    ) as optimizer:
        losses = []
        for _ in range(150):
            optimizer.zero_grad()
            loss = net(torch.ones(3, 20)).pow(2).mean()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        (reading,) = [one.telemetry() for one in optimizer.sessions]
        assert reading is not None
        assert reading.received_bytes == 105 + 4
        assert losses[-1] < 0.05 * losses[0]
    with client.create_session({"w": (5, 20), "b": (5,)}, "sgd") as outer:
        outer.initialise(np.zeros(105, np.float32))
        local = LocalSteps(torch.optim.SGD(net.parameters(), lr=0.1), outer, steps=1, codec="random_k")
        net(torch.ones(3, 20)).pow(2).mean().backward()
        local.step()
        assert local.last_result is not None
        assert local.last_result.applied
        local.close()
