"""NumpyOptimizer against arithmetic in NumPy and against itself, on a real server."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from tests.forking import WarmServer

from hermosis_client import Client, Consistency, Outcome, Recipe, errors
from hermosis_client.numpy_optimizer import Array, NumpyOptimizer

STEPS = 50


def start(dtype: str = "float32") -> dict[str, Array]:
    random = np.random.default_rng(0)
    return {"w": random.normal(size=(3, 4)).astype(dtype), "b": np.ones(4, dtype), "scale": np.full((), 2.0, dtype)}


def gradients(parameters: dict[str, Array], step: int) -> dict[str, Array]:
    """Of a badly scaled bowl, with noise, in float64."""
    random = np.random.default_rng(step)
    return {
        name: (1 + place) * array.astype(np.float64) + 0.1 * random.normal(size=array.shape)
        for place, (name, array) in enumerate(parameters.items())
    }


def train(parameters: dict[str, Array], optimizer: NumpyOptimizer, steps: int = STEPS) -> None:
    for step in range(steps):
        optimizer.step(gradients(parameters, step), loss=1.0)


def flat(parameters: dict[str, Array]) -> Array:
    return np.concatenate([np.asarray(array, np.float64).reshape(-1) for array in parameters.values()])


@pytest.fixture
def remote(server: WarmServer) -> Iterator[Callable[..., NumpyOptimizer]]:
    """Makes optimizers on the common server; closes their sessions and ends them."""
    made: list[NumpyOptimizer] = []

    def make(parameters: dict[str, Array], *words: Recipe | str, **options: object) -> NumpyOptimizer:
        made.append(NumpyOptimizer(parameters, *words, **{"address": server.address, "timeout_s": 20.0, **options}))
        return made[-1]

    yield make
    for optimizer in made:
        try:
            optimizer.session.close()
        except (errors.SessionNotFound, RuntimeError):
            continue
        finally:
            optimizer.close()


def by_hand(name: str, parameters: dict[str, Array], rate: Callable[[int], float]) -> None:
    """sgd with momentum 0.9, or adamw with weight decay 0.1, in float64 and in place."""
    first = {key: np.zeros_like(array) for key, array in parameters.items()}
    second = {key: np.zeros_like(array) for key, array in parameters.items()}
    for step in range(STEPS):
        lr = rate(step)
        for key, gradient in gradients(parameters, step).items():
            if name == "sgd":
                first[key] = 0.9 * first[key] + gradient
                parameters[key] -= lr * first[key]
                continue
            first[key] = 0.9 * first[key] + 0.1 * gradient
            second[key] = 0.999 * second[key] + 0.001 * gradient**2
            mean, square = first[key] / (1 - 0.9 ** (step + 1)), second[key] / (1 - 0.999 ** (step + 1))
            parameters[key] -= lr * (0.1 * parameters[key] + mean / (np.sqrt(square) + 1e-8))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "settings"), [("sgd", {"momentum": 0.9}), ("adamw", {"weight_decay": 0.1})])
def test_arrays_are_stepped_in_place_as_by_hand(remote, name: str, settings: dict[str, float], dtype: str) -> None:
    parameters, wanted = start(dtype), start("float64")
    own = parameters["w"]
    train(parameters, remote(parameters, name, lr=0.02, **settings))
    by_hand(name, wanted, lambda _: 0.02)
    assert parameters["w"] is own
    assert not np.allclose(flat(parameters), flat(start()), atol=0.1)
    np.testing.assert_allclose(flat(parameters), flat(wanted), rtol=2e-4, atol=2e-5)


def test_the_learning_rate_of_each_step_is_what_was_assigned(remote) -> None:
    parameters, wanted = start(), start("float64")
    optimizer = remote(parameters, "adamw", lr=0.02, weight_decay=0.1)
    assert optimizer.lr == 0.02
    for step in range(STEPS):
        optimizer.lr = 0.02 * step / STEPS
        optimizer.step(gradients(parameters, step))
    by_hand("adamw", wanted, lambda step: 0.02 * step / STEPS)
    np.testing.assert_allclose(flat(parameters), flat(wanted), rtol=2e-4, atol=2e-5)


def test_worker_held_parameters_are_the_servers_bit_for_bit(remote) -> None:
    held, kept = start(), start()
    train(held, remote(held, "sgd", lr=0.02, momentum=0.9))
    train(kept, remote(kept, "sgd", lr=0.02, momentum=0.9, parameters_on="worker"))
    assert np.array_equal(flat(held), flat(kept))


def test_workers_that_join_take_the_parameters_over_and_share_the_steps(remote, client: Client) -> None:
    first, second = start(), {name: np.zeros_like(array) for name, array in start().items()}
    one = remote(first, "sgd", lr=0.1, session="numpy-shared", consistency="async", worker_id="a")
    two = remote(second, session="numpy-shared", worker_id="b")
    assert np.array_equal(flat(first), flat(second))
    one.step(gradients(first, 0))
    two.pull()
    assert np.array_equal(flat(first), flat(second))
    assert two.step(gradients(second, 1)).step == 2
    assert {worker.worker_id for worker in client.session("numpy-shared").workers()} == {"a", "b"}
    with pytest.raises(ValueError, match="differ from tensor 1"):
        remote({"w": start()["w"]}, session="numpy-shared")
    with pytest.raises(ValueError, match="other settings"):
        remote(start(), "adamw", session="numpy-shared")


def test_a_gradient_that_is_not_finite_changes_nothing_and_warns_once(remote) -> None:
    parameters = start()
    optimizer = remote(parameters, "sgd", lr=0.1)
    bad = {**gradients(parameters, 0), "b": np.full(4, np.nan)}
    with pytest.warns(RuntimeWarning, match="NON_FINITE_GRADIENT") as caught:
        optimizer.step(bad)
    assert caught[0].filename == __file__
    assert optimizer.step(bad).outcome is Outcome.NON_FINITE_GRADIENT  # a second warning would be an error
    assert np.array_equal(flat(parameters), flat(start()))


def test_a_checkpoint_is_the_sessions(remote) -> None:
    parameters = start()
    optimizer = remote(parameters, "adamw", lr=0.02)
    train(parameters, optimizer, steps=5)
    saved, then = optimizer.session.export_state(), flat(parameters)
    train(parameters, optimizer, steps=5)
    optimizer.session.import_state(saved)
    optimizer.pull()
    assert np.array_equal(flat(parameters), then)
    assert optimizer.step(gradients(parameters, 5)).step == 6


@pytest.mark.parametrize("array", [[1.0], np.ones(2, np.int64), np.broadcast_to(1.0, 3)], ids=["list", "int", "view"])
def test_what_cannot_be_changed_in_place_is_refused_before_anything_starts(array: object) -> None:
    with pytest.raises(TypeError, match="parameter w is"):
        NumpyOptimizer({"w": array}, "sgd", address="127.0.0.1:1")


def test_a_parameter_without_a_gradient_does_not_move(remote) -> None:
    parameters = start()
    optimizer = remote(parameters, "adamw", lr=0.1)
    optimizer.step(gradients(parameters, 0))
    before = {name: array.copy() for name, array in parameters.items()}
    optimizer.step({"w": np.ones_like(parameters["w"])})
    assert np.array_equal(parameters["b"], before["b"])
    assert np.array_equal(parameters["scale"], before["scale"])
    assert not np.array_equal(parameters["w"], before["w"])
    with pytest.raises(ValueError, match=r"not in it \['weight'\]"):
        optimizer.step({"weight": np.ones_like(parameters["w"])})


def test_a_rule_in_full_and_a_codec_are_the_sessions_and_the_workers(remote) -> None:
    rule = Consistency(mode="quorum", workers=2, quorum=1, late="carry", lease_s=30.0)
    optimizer = remote(start(), "sgd", lr=0.1, session="numpy-rule", consistency=rule, codec="int8")
    assert optimizer.step(gradients(start(), 0)).applied
    assert optimizer.session.info().consistency == rule
    assert optimizer.session.workers()[0].compression_error > 0
    remote(start(), "sgd", lr=0.1, session="numpy-rule", consistency=rule)  # joins
    with pytest.raises(ValueError, match="other settings"):
        remote(start(), "sgd", lr=0.1, session="numpy-rule", consistency="async")
    with pytest.raises(ValueError, match="workers is 4, and 2 in consistency"):
        remote(start(), "sgd", workers=4, consistency=rule)


def test_without_an_address_it_has_a_server_of_its_own() -> None:
    parameters = start()
    with NumpyOptimizer(parameters, "sgd", lr=0.1) as optimizer:
        assert optimizer.step(gradients(parameters, 0)).step == 1
    assert not np.array_equal(flat(parameters), flat(start()))
    with pytest.raises(RuntimeError, match="closed"):
        optimizer.step(gradients(parameters, 1))
