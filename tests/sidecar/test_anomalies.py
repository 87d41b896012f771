"""Anomalies: each rule sees its trouble in made-up readings, and a healthy run has none, made-up or real."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from tests.sidecar.conftest import Sidecar, push

from hermosis_client import Client, EnergySample, Recipe, Session, TelemetryReading
from hermosis_sidecar import anomalies
from hermosis_sidecar.anomalies import Anomaly, Situation

STEPS = 200
Change = Callable[[int], dict[str, float]]


def reading(step: int, staleness: int = 0, **changes: float) -> TelemetryReading:
    """Of a run that falls from loss 1 with the noise of minibatches."""
    noise = 1 + 0.2 * math.sin(12.9898 * step)
    loss = (0.05 + math.exp(-step / 50)) * noise
    sample = {
        "loss": loss,
        "potential_energy": loss,
        "energy_defect": 0.02 * loss * math.sin(78.233 * step),
        "gradient_norm": math.sqrt(loss),
        "step_norm": 0.01 * math.sqrt(loss),
        "braking": 1.0,
        "retention": 0.9,
    }
    return TelemetryReading(
        session_id="run",
        step=step,
        time_s=1000.0 + 0.1 * step,
        energies=EnergySample(**{**sample, **changes}),
        contributions=1,
        staleness=staleness,
        received_bytes=0,
        sent_bytes=0,
        device_s=0.0,
        batch_sessions=1,
        wait_s=0.0,
    )


def run(change: Change = lambda _: {}, steps: int = STEPS) -> list[TelemetryReading]:
    return [reading(step, **change(step)) for step in range(1, steps + 1)]


NOW = Situation(now_s=1000.0 + 0.1 * STEPS + 1, is_ready=True, connected_workers=2, expected_workers=2)


def found(readings: Sequence[TelemetryReading], situation: Situation = NOW) -> dict[str, Anomaly]:
    return {anomaly.rule: anomaly for anomaly in anomalies.anomalies(readings, situation)}


@pytest.mark.parametrize("steps", [0, 1, 2, 10, 49, 50, 51, 100, STEPS])
def test_a_healthy_run_has_none(steps: int) -> None:
    assert found(run(steps=steps), replace(NOW, now_s=1000.0 + 0.1 * steps + 1)) == {}


def test_a_run_that_tells_no_loss_has_none() -> None:
    unknown = {"loss": math.nan, "energy_defect": math.nan, "potential_energy": math.nan}
    assert found(run(lambda _: unknown)) == {}


def test_a_run_that_has_converged_has_none() -> None:
    def converged(step: int) -> dict[str, float]:
        left = math.exp(-step / 4)
        return {"loss": left, "gradient_norm": left, "step_norm": left, "energy_defect": left / 9}

    assert found(run(converged)) == {}


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_any_more(loss: float) -> None:
    assert found(run(lambda step: {"loss": loss} if step > 190 else {}))["loss_not_finite"].since_step == 191
    assert "loss_not_finite" not in found(run(lambda step: {"loss": loss} if step > 198 else {})), "too early to tell"


def test_a_loss_that_explodes() -> None:
    told = found(run(lambda step: {"loss": 0.1 * 1.2 ** (step - 150)} if step > 150 else {}))["loss_exploding"]
    assert 150 < told.since_step < 180
    assert "halve the learning rate" in told.advice
    assert "loss_exploding" not in found(run(lambda step: {"loss": 3.0} if step % 10 == 0 else {})), (
        "single minibatches"
    )
    risen = found(run(lambda step: {"loss": 0.5} if step > 150 else {}))
    assert "loss_exploding" not in risen, "above its best, but below where it began"


def test_an_energy_defect_that_grows() -> None:
    def growing(step: int) -> dict[str, float]:
        return {"energy_defect": -1e-3 * 1.15 ** (step - 140)} if step > 140 else {}

    told = found(run(growing))["defect_growing"]
    assert told.since_step == 151
    assert told.text == "The step is too large for the curvature: the energy defect has been growing for 50 steps"
    assert told.advice == "Halve the learning rate."
    assert "defect_growing" not in found(run(lambda step: {"energy_defect": 1e-15 * 1.15**step})), "too small to matter"


def test_a_session_without_steps_though_workers_are_connected() -> None:
    late = replace(NOW, now_s=NOW.now_s + 60)
    told = found(run(), late)["stalled"]
    assert told.since_step == STEPS
    assert told.text == "No step for 61 s, though 2 workers are connected"
    assert "Look at the workers" in told.advice
    lacking = found(run(), replace(late, connected_workers=1))["stalled"]
    assert lacking.advice == "A round needs 2 workers and 1 is connected: start those that lack."
    assert found(run(), replace(late, connected_workers=0)) == {}, "nobody is there to step"
    assert found(run(), replace(late, is_ready=False)) == {}, "paused"


def test_a_slow_session_is_not_stalled() -> None:
    slow = [replace(each, time_s=1000.0 + 20 * each.step) for each in run()]
    situation = replace(NOW, now_s=slow[-1].time_s + 60)
    assert found(slow, situation) == {}


def test_a_temperature_so_low_that_nothing_moves() -> None:
    stuck = {"braking": 1e-4, "step_norm": 1e-9, "loss": 0.9, "gradient_norm": 1.0}
    told = found(run(lambda step: stuck if step > 100 else {}))["frozen"]
    assert told.since_step == 101
    clipped = {"braking": 1e-4, "step_norm": 5e-3}
    assert found(run(lambda step: clipped if step > 100 else {})) == {}, "at the speed limit, but moving"


@pytest.mark.parametrize(("retention", "word"), [(1.0, "stands still"), (1.01, "heated")])
def test_a_temperature_that_does_not_fall(retention: float, word: str) -> None:
    assert word in found(run(lambda _: {"retention": retention}))["no_friction"].text
    fading = found(run(lambda step: {"retention": 1 - 3 / (step + 10)}))
    assert fading == {}, "Nesterov's differential equation"


def test_gradients_that_have_vanished() -> None:
    gone = {"gradient_norm": 1e-9, "loss": 0.9}
    told = found(run(lambda step: gone if step > 120 else {}))["gradients_vanished"]
    assert told.since_step == 121
    assert "gradients_vanished" in found(run(lambda _: {"gradient_norm": 0.0, "loss": 0.7})), "from the first step on"


def test_gradients_that_are_old_when_they_are_used() -> None:
    old = [reading(step, staleness=12) for step in range(1, STEPS + 1)]
    assert found(old)["staleness_high"].text == "Gradients are old when they are used: 12 steps, half of the time"
    assert found(old, replace(NOW, connected_workers=12)) == {}, "as old as so many workers make them"


def test_the_gravest_comes_first_and_all_are_told() -> None:
    def both(step: int) -> dict[str, float]:
        return {"retention": 1.0, **({"loss": math.inf} if step > 190 else {})}

    assert list(found(run(both))) == ["loss_not_finite", "no_friction"]


def train(session: Session, steps: int, curvature: float) -> None:
    parameters = {name: np.array(value) for name, value in session.pull().items()}
    for _ in range(steps):
        loss = sum(float((value**2).sum()) for value in parameters.values()) * curvature / 2
        gradients = {name: curvature * value for name, value in parameters.items()}
        parameters = {name: np.array(value) for name, value in session.exchange(gradients, loss=loss)[1].items()}


def asked(sidecar: Sidecar, session: Session) -> list[str]:
    answer = sidecar.http.get(f"/v1/sessions/{session.session_id}/anomalies")
    assert answer.status_code == 200, answer.text
    return [anomaly["rule"] for anomaly in answer.json()["anomalies"]]


@pytest.mark.parametrize("recipe", ["adamw", "hermosis", "sgd", "nesterov_ode"])
def test_a_real_run_on_a_bowl_has_none(sidecar: Sidecar, client: Client, recipe: str) -> None:
    with client.create_session({"w": (4, 2)}, Recipe(recipe, lr=0.01)) as session:
        assert asked(sidecar, session) == [], "before the first step"
        session.initialise({"w": np.ones((4, 2), np.float32)})
        train(session, 150, curvature=1.0)
        assert asked(sidecar, session) == []


def test_a_real_run_with_too_large_a_step_is_told_to_halve_it(sidecar: Sidecar, client: Client) -> None:
    with client.create_session({"w": (2,)}, Recipe("sgd", lr=0.405, momentum=0.9)) as session:
        session.initialise({"w": np.full(2, 1e-3, np.float32)})
        train(session, 60, curvature=10.0)  # stable below lr 2 (1 + momentum)/curvature, which is 0.38
        assert {"defect_growing", "loss_exploding"} <= set(asked(sidecar, session))


def test_anomalies_of_a_session_that_is_not_there_are_a_problem(sidecar: Sidecar, session: Session) -> None:
    push(session, 1.0)
    assert asked(sidecar, session) == []
    answer = sidecar.http.get("/v1/sessions/nobody/anomalies")
    assert (answer.status_code, answer.json()["reason"]) == (404, "SessionNotFound")
