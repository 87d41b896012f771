"""Readings on their way to where experiments are kept: none is lost, and files are read back."""

import importlib.util
import math
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from tests.forking import WarmServer

from hermosis_client import Client, EnergySample, HermosisError, Session, TelemetryReading
from hermosis_client.reporting import report, scalars
from hermosis_client.reporting.tensorboard import TensorBoardReporter


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


@pytest.fixture
def session(client: Client) -> Session:
    session = client.create_session({"w": (2,)}, "hermosis")
    session.initialise({"w": np.ones(2, np.float32)})
    return session


def step(session: Session, count: int) -> None:
    for index in range(count):
        session.exchange({"w": np.ones(2, np.float32)}, loss=1.0 / (index + 1))


class Kept:
    """A reporter that keeps readings; it may wait, or fail at a step."""

    def __init__(self, *, fails_at: int = 0) -> None:
        self.readings: list[TelemetryReading] = []
        self.closed = 0
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self._fails_at = fails_at

    def take(self, reading: TelemetryReading) -> None:
        self.may_go_on.wait(20)
        if reading.step == self._fails_at:
            raise OSError("the disk is full")
        self.readings.append(reading)

    def close(self) -> None:
        self.closed += 1

    @property
    def steps(self) -> list[int]:
        return [reading.step for reading in self.readings]


def test_every_step_from_there_on_is_reported_once_and_in_order(session: Session) -> None:
    kept = Kept()
    step(session, 3)
    with report(session, to=kept):
        step(session, 40)
    assert kept.steps == list(range(4, 44))
    assert kept.readings[0].energies.loss == 1.0
    assert kept.closed == 1
    step(session, 1)
    assert len(kept.readings) == 40


def test_a_broken_watch_loses_nothing_that_the_server_still_holds(session: Session) -> None:
    kept = Kept()
    with report(session, to=kept) as reporting:
        step(session, 5)
        call = reporting._watch._call
        assert call is not None
        call.cancel()  # as if the connection had gone
        step(session, 5)
    assert kept.steps == list(range(1, 11))


def test_a_session_that_was_closed_meanwhile_ends_the_report_in_good_order(session: Session) -> None:
    kept = Kept()
    with report(session, to=kept):
        step(session, 2)
        session.close()
    assert kept.closed == 1


def test_a_reporter_that_fails_is_told_of_at_the_end_and_given_no_more(session: Session) -> None:
    kept = Kept(fails_at=3)
    reporting = report(session, to=kept)
    step(session, 5)
    with pytest.raises(OSError, match="the disk is full"):
        reporting.close()
    reporting.close()
    assert kept.steps == [1, 2]
    assert kept.closed == 1


def test_what_went_wrong_in_the_body_is_what_is_seen(session: Session) -> None:
    kept = Kept(fails_at=1)
    with pytest.raises(ZeroDivisionError) as seen, report(session, to=kept):  # noqa: PT012
        step(session, 1)
        raise ZeroDivisionError
    assert seen.value.__notes__ == ["and the report ended early: the disk is full"]
    assert kept.closed == 1


def test_an_interval_thins_readings(session: Session) -> None:
    kept = Kept()
    with report(session, to=kept, min_interval_s=3600):
        step(session, 5)
        while not kept.readings:  # the first comes at once
            kept.may_go_on.wait(0.01)
    assert kept.steps == [1]


def test_scalars_have_names_and_no_undefined_numbers() -> None:
    energies = EnergySample(loss=1.0, kinetic_energy=math.inf)
    reading = TelemetryReading(
        session_id="a",
        step=7,
        time_s=1.8e9,
        energies=energies,
        contributions=2,
        staleness=0,
        received_bytes=8,
        sent_bytes=8,
        device_s=0.5,
        batch_sessions=1,
        wait_s=0.25,
    )
    assert scalars(reading) == {
        "energies/loss": 1.0,
        "step/contributions": 2.0,
        "step/staleness": 0.0,
        "step/received_bytes": 8.0,
        "step/sent_bytes": 8.0,
        "step/device_s": 0.5,
        "step/batch_sessions": 1.0,
        "step/wait_s": 0.25,
    }


def test_importing_reporters_imports_none_of_their_libraries() -> None:
    program = """
import sys
from hermosis_client.reporting import mlflow, report, tensorboard, wandb
assert not {"tensorboard", "mlflow", "wandb", "torch"} & set(sys.modules), sorted(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["TensorBoard", "MLflow", "Wandb"])
def test_a_library_that_is_missing_is_named_with_its_cure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"hermosis_client.reporting.{name.lower()}")
    for known in [known for known in sys.modules if known.partition(".")[0] == name.lower()]:
        monkeypatch.delitem(sys.modules, known)
    monkeypatch.setitem(sys.modules, name.lower(), None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        getattr(module, f"{name}Reporter")(*(["folder"] if name == "TensorBoard" else []))


@needs("tensorboard")
def test_tensorboard_reads_back_what_was_reported(session: Session, tmp_path: Path) -> None:
    with report(session, to=TensorBoardReporter(tmp_path / "run")):
        step(session, 5)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tmp_path / "run"))
    read.Reload()
    told = session.history()
    curve = read.Scalars("energies/loss")
    assert [point.step for point in curve] == [1, 2, 3, 4, 5]
    assert [point.value for point in curve] == pytest.approx([reading.energies.loss for reading in told])
    assert [point.wall_time for point in curve] == [reading.time_s for reading in told]
    assert set(read.Tags()["scalars"]) == set().union(*map(scalars, told))


@needs("mlflow")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_reads_back_what_was_reported(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    import mlflow

    from hermosis_client.reporting.mlflow import MLflowReporter

    with pytest.raises(ValueError, match="no MLflow run is active"):
        MLflowReporter()
    where = (tmp_path / "runs").as_uri()
    client = mlflow.MlflowClient(where)
    run = client.create_run(client.create_experiment("first"))
    with report(session, to=MLflowReporter(run.info.run_id, tracking_uri=where)):
        step(session, 3)
    curve = client.get_metric_history(run.info.run_id, "energies/loss")
    assert [(point.step, point.value) for point in curve] == [
        (reading.step, reading.energies.loss) for reading in session.history()
    ]


@needs("wandb")
@pytest.mark.filterwarnings("ignore")
def test_wandb_is_given_each_step_with_its_number(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    import wandb

    from hermosis_client.reporting.wandb import STEP, WandbReporter

    with pytest.raises(ValueError, match="no W&B run is active"):
        WandbReporter()
    with wandb.init(mode="offline", dir=tmp_path) as run:
        logged = []
        log = run.log
        monkeypatch.setattr(run, "log", lambda line: (logged.append(line), log(line)))
        with report(session, to=WandbReporter()):
            step(session, 3)
    assert [line[STEP] for line in logged] == [1, 2, 3]
    wandb.teardown()  # lets its process write all that it has
    (file,) = tmp_path.rglob("*.wandb")
    assert b"energies/loss" in file.read_bytes()


def test_a_server_that_stays_away_is_told_of_at_the_end() -> None:
    server, kept = WarmServer(), Kept()
    with Client(server.address, timeout_s=0.5) as client:
        session = client.create_session({"w": (2,)}, "sgd")
        session.initialise({"w": np.ones(2, np.float32)})
        reporting = report(session, to=kept)
        step(session, 1)
        while not kept.readings:
            kept.may_go_on.wait(0.01)
            kept.may_go_on.set()
        server.close()
        with pytest.raises(HermosisError):
            reporting.close()
    assert kept.steps == [1]
    assert kept.closed == 1
