"""Sessions of a real server over NumPy arrays."""

import math
import threading
from collections.abc import Callable

import numpy as np
import pytest

from hermosis_client import Client, Outcome, ParameterLayout, Recipe, Session, SessionStatus, Worker, errors

SHAPES = {"scalar": (), "weight": (3, 4), "empty": (0, 5), "deep": (2, 3, 2)}
LAYOUT = ParameterLayout.of(SHAPES)
P = LAYOUT.parameter_count


def vector(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=P).astype(np.float32)


def ready(client: Client, recipe: Recipe, **options) -> Session:
    session = client.create_session(LAYOUT, recipe, **options)
    if options.get("parameters_on") != "worker":
        session.initialise(vector(0))
    return session


def in_parallel(*calls: Callable[[], object]) -> list[object]:
    """The results of calls made at the same time; raises what one of them raised."""
    results: list[object] = [None] * len(calls)

    def run(index: int) -> None:
        try:
            results[index] = calls[index]()
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def test_exchange_equals_momentum_arithmetic(client: Client) -> None:
    with ready(client, Recipe("sgd", lr=0.1, momentum=0.9)) as session:
        position, momentum = vector(0), np.zeros(P, np.float32)
        for step in range(1, 6):
            gradient = vector(step)
            momentum = np.float32(0.9) * momentum + gradient
            position = position - np.float32(0.1) * momentum
            result, parameters = session.exchange(gradient, loss=1.0 / step)
            assert (result.step, result.sequence, result.outcome) == (step, step, Outcome.APPLIED)
            assert result.energies.loss == 1.0 / step
            assert np.allclose(parameters.flat, position, rtol=1e-6, atol=1e-6)
        assert {name: array.shape for name, array in parameters.items()} == SHAPES


def test_gradients_by_name_and_flat_are_the_same(client: Client) -> None:
    with ready(client, Recipe("sgd", lr=0.1)) as first, ready(client, Recipe("sgd", lr=0.1)) as second:
        gradient = vector(1)
        named = {name: gradient[place].reshape(SHAPES[name]) for name, place in LAYOUT.slices.items()}
        assert np.array_equal(first.exchange(gradient)[1].flat, second.exchange(named)[1].flat)


def test_answers_are_new_arrays_unless_a_place_is_given(client: Client) -> None:
    with ready(client, Recipe("sgd", lr=0.1)) as session, session.worker("w") as worker:
        before = worker.pull()
        after = worker.exchange(vector(1))[1]
        assert not np.array_equal(before.flat, after.flat)
        place = np.zeros(P, np.float32)
        landed = worker.pull(out=place)
        assert landed.flat is place
        assert np.array_equal(place, after.flat)


def test_push_and_pull_make_an_exchange(client: Client) -> None:
    with ready(client, Recipe("sgd", lr=0.1)) as session, ready(client, Recipe("sgd", lr=0.1)) as twin:
        assert session.push(vector(1)).step == 1
        assert np.array_equal(session.pull().flat, twin.exchange(vector(1))[1].flat)
        assert session.exchange(vector(2))[0].sequence == 2  # back to a stream that answers with parameters


def test_lr_scale_of_a_step_multiplies_the_learning_rate(client: Client) -> None:
    with ready(client, Recipe("sgd", lr=0.1)) as session, ready(client, Recipe("sgd", lr=0.025)) as twin:
        result, scaled = session.exchange(vector(1), lr_scale=0.25)
        assert result.energies.learning_rate == pytest.approx(0.025)
        assert np.allclose(scaled.flat, twin.exchange(vector(1))[1].flat, rtol=1e-6)
        assert session.learning_rate() == 0.1


def test_learning_rate_that_was_left_out_is_the_recipes_default(client: Client) -> None:
    described = next(recipe for recipe in client.recipes() if recipe.name == "rmsprop")
    default = next(parameter.default for parameter in described.parameters if parameter.name == "lr")
    with client.create_session(LAYOUT, "rmsprop") as session:
        assert session.learning_rate() == default == 0.01


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_wire_rounds_gradient_and_answer_but_not_the_masters(client: Client, dtype: str) -> None:
    with ready(client, Recipe("sgd", lr=0.1)) as session, ready(client, Recipe("sgd", lr=0.1)) as twin:
        narrow = session.worker("w", gradient_dtype=dtype, reply_dtype=dtype)
        _, coarse = narrow.exchange(vector(1))
        _, fine = twin.exchange(vector(1))
        step = 2.0**-8 if dtype == "bfloat16" else 2.0**-11
        assert np.allclose(coarse.flat, fine.flat, rtol=2 * step, atol=1e-3)
        assert not np.array_equal(coarse.flat, fine.flat)
        masters = session.pull().flat
        assert not np.array_equal(masters, coarse.flat)
        assert np.allclose(masters, coarse.flat, rtol=step)


def test_worker_held_parameters_are_the_servers_bit_for_bit(client: Client) -> None:
    recipe = Recipe("sgd", lr=0.1, momentum=0.9)
    with ready(client, recipe) as server_held, ready(client, recipe, parameters_on="worker") as worker_held:
        position = vector(0)
        for step in range(1, 20):
            result, increment = worker_held.exchange(vector(step))
            assert result.step == step
            position += increment.flat
            assert np.array_equal(position, server_held.exchange(vector(step))[1].flat)
        with pytest.raises(errors.HermosisError):
            worker_held.pull()
        assert worker_held.exchange(vector(20))[0].step == 20


def test_refused_increment_is_zero(client: Client) -> None:
    with ready(client, Recipe("sgd", lr=0.1), parameters_on="worker") as session:
        place = np.full(P, 7.0, np.float32)
        result, increment = session.worker("w").exchange(np.full(P, np.nan, np.float32), out=place)
        assert result.outcome is Outcome.NON_FINITE_GRADIENT
        assert not increment.flat.any()


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_non_finite_gradient_is_an_outcome_and_changes_nothing(client: Client, poison: float) -> None:
    with ready(client, Recipe("sgd", lr=0.1, momentum=0.9)) as session:
        session.exchange(vector(1))
        before = session.pull().flat
        gradient = vector(2)
        gradient[5] = poison
        result, parameters = session.exchange(gradient)
        assert result.outcome is Outcome.NON_FINITE_GRADIENT
        assert not result.applied
        assert result.step == 1
        assert np.array_equal(parameters.flat, before)
        assert session.exchange(vector(2))[0].step == 2


def test_barrier_steps_with_the_mean_of_all_workers(client: Client) -> None:
    recipe = Recipe("sgd", lr=0.1)
    with ready(client, recipe, workers=2) as session, ready(client, recipe) as twin:
        first, second = session.worker("a"), session.worker("b")
        for step in range(1, 4):
            one, two = vector(step), vector(-step % 1000)
            answers = in_parallel(lambda g=one: first.exchange(g), lambda g=two: second.exchange(g))
            expected = twin.exchange((one + two) / 2)[1].flat
            for result, parameters in answers:
                assert (result.step, result.contributions) == (step, 2)
                assert np.allclose(parameters.flat, expected, rtol=1e-5, atol=1e-6)
            assert np.array_equal(answers[0][1].flat, answers[1][1].flat)


def test_async_steps_at_every_arrival_and_tells_the_staleness(client: Client) -> None:
    with ready(client, Recipe("sgd", lr=0.1), workers=2, consistency="async") as session:
        first, second = session.worker("a"), session.worker("b")
        first.pull()
        second.pull()
        assert first.exchange(vector(1))[0].staleness == 0
        assert first.exchange(vector(2))[0].step == 2
        late = second.exchange(vector(3))[0]
        assert (late.step, late.staleness) == (3, 2)
        assert second.exchange(vector(4))[0].staleness == 0


def test_stale_gradient_is_refused_and_the_worker_goes_on_after_a_pull(client: Client) -> None:
    with ready(client, Recipe("sgd", lr=0.1)) as session:
        first, second = session.worker("a"), session.worker("b")
        first.pull()
        second.pull()
        first.exchange(vector(1))
        with pytest.raises(errors.StaleGradient, match="pull"):
            second.exchange(vector(2))
        second.pull()
        assert second.exchange(vector(2))[0].step == 2


def test_a_worker_that_comes_back_under_its_name_continues_its_numbers(client: Client) -> None:
    with ready(client, Recipe("sgd", lr=0.1)) as session:
        with session.worker("w") as worker:
            worker.exchange(vector(1))
        again = session.worker("w")
        again.pull()
        assert again.exchange(vector(2))[0].sequence == 2


def test_closed_worker_and_client_say_so(client: Client, server) -> None:
    with ready(client, Recipe("sgd", lr=0.1)) as session:
        worker: Worker = session.worker("w")
        worker.exchange(vector(1))
        worker.close()
        worker.close()
        with pytest.raises(RuntimeError, match="worker w is closed"):
            worker.exchange(vector(2))
    other = Client(server.address)
    other.close()
    other.close()
    with pytest.raises(RuntimeError, match="client is closed"):
        other.capabilities()


def test_life_of_a_session(client: Client) -> None:
    session = client.create_session(LAYOUT, "adam", display_name="a try", labels={"kind": "test-life"})
    assert session.info().status is SessionStatus.CREATING
    with pytest.raises(errors.SessionNotReady):
        session.exchange(vector(1))
    info = session.initialise(vector(0))
    assert (info.status, info.step, info.display_name) == (SessionStatus.READY, 0, "a try")
    assert info.layout == LAYOUT
    with pytest.raises(errors.SessionNotReady):
        session.initialise(vector(1))
    assert [found.session_id for found in client.sessions(labels={"kind": "test-life"})] == [session.session_id]
    assert session.pause().status is SessionStatus.PAUSED
    with pytest.raises(errors.SessionNotReady, match="resume"):
        session.exchange(vector(1))
    assert session.resume().status is SessionStatus.READY
    edited = session.update(lr_scale=0.5, labels={"kind": "edited"})
    assert (edited.lr_scale, edited.labels, edited.display_name) == (0.5, {"kind": "edited"}, "a try")
    with pytest.raises(errors.PayloadMismatch):
        session.update(lr_scale=0.25, etag=info.etag)
    assert session.exchange(vector(1))[0].energies.learning_rate == pytest.approx(0.0005)
    assert session.close().status is SessionStatus.CLOSED
    with pytest.raises(errors.SessionNotFound):
        client.session(session.session_id)


def test_context_of_a_joined_session_leaves_it_alone(client: Client) -> None:
    with ready(client, Recipe("sgd", lr=0.1), session_id="joined-by-another") as session:
        with client.session("joined-by-another") as joined:
            assert joined.layout == LAYOUT
            joined.exchange(vector(1))
        assert session.info().step == 1


def test_sessions_are_listed_over_several_pages(client: Client) -> None:
    made = [client.create_session({"w": (1,)}, "sgd", labels={"kind": "pages"}) for _ in range(105)]
    listed = [info.session_id for info in client.sessions(labels={"kind": "pages"})]
    assert listed == [session.session_id for session in made]
    for session in made:
        session.close()


def test_hyperparameters_are_refused_by_field(client: Client) -> None:
    with pytest.raises(errors.InvalidHyperparameter) as caught:
        client.create_session(LAYOUT, Recipe("sgd", lr=-1.0))
    assert caught.value.field.endswith("lr")
    with pytest.raises(errors.InvalidHyperparameter, match="no recipe 'sdg'"):
        client.create_session(LAYOUT, "sdg")
    with pytest.raises(ValueError, match="'barier' is not one of 'barrier', 'quorum', 'async'"):
        client.create_session(LAYOUT, "sgd", consistency="barier")  # type: ignore[arg-type]


def test_imported_state_continues_to_the_bit(client: Client) -> None:
    recipe = Recipe("adam", lr=0.01)
    with ready(client, recipe) as session, client.create_session(LAYOUT, recipe) as other:
        session.exchange(vector(1))
        saved = session.export_state()
        assert saved.step == 1
        assert saved.state_digest == session.digest()
        assert set(saved.buffers) == {"parameters", "momentum", "second_moment"}
        uninterrupted = session.exchange(vector(2))[1].flat
        info = session.import_state(saved)
        assert (info.step, info.generation) == (1, 2)
        assert session.digest() == saved.state_digest
        assert np.array_equal(session.exchange(vector(2))[1].flat, uninterrupted)
        other.import_state(saved)  # where nothing has been initialised yet
        assert other.digest() == saved.state_digest
        assert np.array_equal(other.exchange(vector(2))[1].flat, uninterrupted)


def test_damaged_state_is_refused_and_changes_nothing(client: Client) -> None:
    with ready(client, Recipe("adam", lr=0.01)) as session:
        session.exchange(vector(1))
        saved = session.export_state()
        before = session.digest()
        saved.buffers["momentum"][3] += 1
        with pytest.raises(errors.CorruptState):
            session.import_state(saved)
        assert session.digest() == before


def test_workers_elsewhere_are_fenced_off_by_an_import_until_they_pull(client: Client) -> None:
    with ready(client, Recipe("sgd", lr=0.1)) as session, client.session(session.session_id) as elsewhere:
        other = elsewhere.worker("other")
        other.exchange(vector(1))
        session.import_state(session.export_state())
        for _ in range(2):  # it stays fenced off: its next gradient is no better than this one
            with pytest.raises(errors.StaleGeneration):
                other.exchange(vector(2))
        other.pull()
        assert other.exchange(vector(2))[0].generation == 2


def test_telemetry_history_and_watch_tell_of_every_step(client: Client) -> None:
    with ready(client, Recipe("sgd", lr=0.1)) as session:
        assert session.telemetry() is None
        with client.watch([session.session_id]) as watch:
            readings = []
            reader = threading.Thread(target=lambda: readings.extend(watch), daemon=True)
            reader.start()
            for step in range(1, 4):
                session.exchange(vector(step), loss=float(step), sample_count=8)
            assert [reading.step for reading in session.history()] == [1, 2, 3]
            assert [reading.step for reading in session.history(after_step=1)] == [2, 3]
            newest = session.telemetry()
            assert newest is not None
            assert newest.energies.loss == 3.0
            assert newest.received_bytes == 4 * P
            deadline = threading.Event()
            for _ in range(1000):
                if readings:
                    break
                deadline.wait(0.01)
        reader.join(10)
        assert not reader.is_alive()  # closed from another thread than the one that reads
        assert {reading.session_id for reading in readings} == {session.session_id}


def test_workers_are_listed(client: Client) -> None:
    with ready(client, Recipe("sgd", lr=0.1)) as session:
        session.worker("zoe").exchange(vector(1))
        (worker,) = session.workers()
        assert (worker.worker_id, worker.next_sequence, worker.received_bytes) == ("zoe", 2, 4 * P)
        assert worker.connected
        session.disconnect()


def test_capabilities_tell_what_the_server_is(client: Client) -> None:
    capabilities = client.capabilities()
    assert "sgd" in capabilities.recipes
    assert set(capabilities.dtypes) == {"float32", "float16", "bfloat16"}
    assert capabilities.limits.max_chunk_bytes == 2 << 20
    described = {recipe.name: recipe for recipe in client.recipes()}
    assert set(described) == set(capabilities.recipes)
    assert described["adamw"].physics
