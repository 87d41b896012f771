"""The command line against a real server, in this process."""

import gc
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.forking import WarmServer
from typer.testing import CliRunner, Result

from hermosis_client import Client
from hermosis_server.cli import text
from hermosis_server.cli.root import app

COMMANDS = ["up", "serve", "sidecar", "health", "demo", "sessions", "token", "top"]
SESSIONS = ["list", "show", "create", "pause", "resume", "close", "watch", "edit", "fork", "snapshots", "workers"]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with WarmServer() as server:
        yield server.address


@pytest.fixture
def hermosis(address: str, monkeypatch: pytest.MonkeyPatch) -> "Hermosis":
    monkeypatch.setenv("HERMOSIS_ADDRESS", address)
    return Hermosis()


class Hermosis:
    def __call__(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments))

    def json(self, *arguments: str) -> object:
        result = self(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


def weights(folder: Path) -> str:
    path = folder / "weights.npz"
    np.savez(path, w=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.ones((), np.float32))
    return str(path)


@pytest.mark.parametrize("words", [[], ["sessions"], *([c] for c in COMMANDS), *(["sessions", c] for c in SESSIONS)])
def test_every_command_explains_itself(words: list[str]) -> None:
    shown = CliRunner().invoke(app, [*words, "--help"])
    assert shown.exit_code == 0
    assert "Usage" in shown.output
    expected = {0: COMMANDS, 1: SESSIONS}.get(len(words), []) if words in ([], ["sessions"]) else []
    for name in expected:
        assert f" {name} " in shown.output


def test_flags_of_serve_are_the_settings_with_their_descriptions() -> None:
    from hermosis_server.settings import Settings

    shown = " ".join(CliRunner().invoke(app, ["serve", "--help"]).output.split())
    for name, setting in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in shown
        assert " ".join((setting.description or "?").split())[:40] in shown


def test_a_server_collects_its_own_garbage_and_not_what_was_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, int]] = []
    monkeypatch.setattr(
        "hermosis_server.app.serve", lambda settings: seen.append((gc.isenabled(), gc.get_freeze_count()))
    )
    before = gc.get_freeze_count()
    CliRunner().invoke(app, ["serve"])
    [(collects, passed_by)] = seen
    assert collects
    assert passed_by > before
    assert gc.isenabled()


def test_serve_refuses_what_settings_refuse() -> None:
    refused = CliRunner().invoke(app, ["serve", "--port", "70000"])
    assert refused.exit_code == 2
    assert "--port" in refused.output


def test_session_from_a_file_is_ready_with_its_weights(hermosis: Hermosis, address: str, tmp_path: Path) -> None:
    facts = hermosis.json(
        "sessions", "create", "--optimizer", "adamw", "--set", "lr=0.25", "--from", weights(tmp_path), "--id", "filed"
    )
    assert isinstance(facts, dict)
    assert facts["status"] == "READY"
    assert facts["optimizer"] == {"recipe": "adamw", "parameters": {"lr": 0.25}}
    assert [tensor["shape"] for tensor in facts["layout"]] == [[2, 3], []]
    with Client(address) as client:
        pulled = client.session("filed").pull()
    assert pulled["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert pulled["b"] == 1


def test_settings_are_numbers_flags_and_words(hermosis: Hermosis) -> None:
    create = ("sessions", "create", "--shape", "w=2x3", "--optimizer")
    for recipe, *settings in (
        ("sgd", "momentum=0.9", "nesterov=true"),
        ("rgd", "form=euler", "delta=0"),
        ("vradam", "norm=tensor"),
        ("cgd", "metric=full"),
    ):
        facts = hermosis.json(*create, recipe, *(word for each in settings for word in ("--set", each)))
        assert isinstance(facts, dict)
        given = facts["optimizer"]["parameters"]
        assert {f"{name}={value}".lower().removesuffix(".0") for name, value in given.items()} == set(settings)


def test_session_from_shapes_waits_for_its_weights(hermosis: Hermosis) -> None:
    facts = hermosis.json("sessions", "create", "--optimizer", "sgd", "--shape", "w=2x3", "--shape", "s=")
    assert isinstance(facts, dict)
    assert facts["status"] == "CREATING"
    assert facts["parameter_count"] == 7


def test_a_session_lives_pauses_and_ends(hermosis: Hermosis, tmp_path: Path) -> None:
    made = ("sessions", "create", "--optimizer", "sgd", "--from", weights(tmp_path), "--id", "life")
    assert hermosis(*made).exit_code == 0
    listed = hermosis("sessions", "list").stdout.splitlines()
    assert listed[0].split("\t")[0] == "session"
    assert [line.split("\t")[:4] for line in listed if line.startswith("life")] == [["life", "READY", "0", "sgd"]]

    assert "PAUSED" in hermosis("sessions", "pause", "life").stdout
    assert "READY" in hermosis("sessions", "resume", "life").stdout
    shown = hermosis("sessions", "show", "life", "--digest").stdout
    assert "w\t2x3" in shown
    assert "b\tscalar" in shown
    assert len(shown.split("digest ")[1].strip()) == 64
    assert "CLOSED" in hermosis("sessions", "close", "life").stdout
    assert not any(line.startswith("life") for line in hermosis("sessions", "list").stdout.splitlines())


def test_watch_shows_steps_as_they_come(hermosis: Hermosis, address: str) -> None:
    with Client(address) as client, client.create_session({"w": (2,)}, "sgd", session_id="watched") as session:
        session.initialise({"w": np.ones(2, np.float32)})
        arguments = [sys.executable, "-m", "hermosis_server", "sessions", "watch", "watched", "--interval-s", "0"]
        command = [*arguments, "--count", "2", "--json", "--address", address]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
            # Its stream begins at some time after its start; steps are taken until it has seen two.
            while watch.poll() is None:
                session.exchange({"w": np.ones(2, np.float32)}, loss=0.5)
            assert watch.stdout is not None
            readings = [json.loads(line) for line in watch.stdout]
    assert watch.returncode == 0
    assert len(readings) == 2
    assert readings[1]["step"] == readings[0]["step"] + 1
    assert readings[0]["session_id"] == "watched"
    assert readings[0]["energies"]["loss"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "nobody"], "SessionNotFound"),
        (["create", "--optimizer", "nope", "--shape", "w=2"], "InvalidHyperparameter"),
        (["create", "--optimizer", "sgd", "--set", "lr=-1", "--shape", "w=2"], "lr"),
        (["create", "--optimizer", "sgd", "--shape", "w=2", "--id", "Not An Id"], "session_id"),
    ],
)
def test_refusals_of_the_server_are_one_line_that_names_them(
    hermosis: Hermosis, arguments: list[str], said: str
) -> None:
    refused = hermosis("sessions", *arguments)
    assert refused.exit_code == 1
    assert refused.stderr.startswith("hermosis: ")
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["create", "--optimizer", "sgd"], "--shape or --from"),
        (["create", "--optimizer", "sgd", "--shape", "w"], "NAME=3x4"),
        (["create", "--optimizer", "sgd", "--shape", "w=axb"], "NAME=3x4"),
        (["create", "--optimizer", "sgd", "--shape", "w=2", "--set", "lr"], "NAME=VALUE"),
        (["create", "--optimizer", "sgd", "--shape", "w=2", "--consistency", "maybe"], "maybe"),
        (["create", "--optimizer", "sgd", "--from", "/nowhere/weights.npz"], "weights.npz"),
        (["list", "--address", "nonsense"], "host:port"),
    ],
)
def test_mistakes_on_the_command_line_are_explained(hermosis: Hermosis, arguments: list[str], said: str) -> None:
    refused = hermosis("sessions", *arguments)
    assert refused.exit_code == 2
    assert said in " ".join(refused.output.split())
    assert "Traceback" not in refused.output


def test_health_tells_by_its_exit_status(hermosis: Hermosis, address: str) -> None:
    assert hermosis("health").exit_code == 0
    assert hermosis("health").stdout == "SERVING\n"
    nobody = hermosis("health", "--address", "127.0.0.1:1", "--timeout-s", "2")
    assert nobody.exit_code == 1
    assert nobody.stdout.startswith("UNREACHABLE")


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("typer", "'sessions', 'list'", "server"),
        ("rich", "'sessions', 'list'", "server"),
        ("torch", "'serve', '--port', '0'", "server"),
        ("pydantic_settings", "'serve', '--port', '0'", "server"),
        ("fastapi", "'up', '--port', '0'", "sidecar"),
        ("fastapi", "'sidecar', '--port', '0'", "sidecar"),
        ("sklearn", "'demo'", "demo"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(package: str, arguments: str, extra: str) -> None:
    program = f"""
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == {package!r} else find(name, package)
sys.modules[{package!r}] = None
sys.argv = ["hermosis", {arguments}]
from hermosis_server.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    assert f"pip install 'hermosis[{extra}]'" in done.stderr
    assert package in done.stderr
    assert "Traceback" not in done.stderr


def test_module_and_script_are_the_same_command() -> None:
    module = [sys.executable, "-m", "hermosis_server", "--version"]
    script = [str(Path(sys.executable).with_name("hermosis")), "--version"]
    shown = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in (module, script)]
    assert shown[0] == shown[1]
    assert shown[0].startswith("hermosis 0.")


@pytest.mark.parametrize(
    ("log_beta", "shown"),
    [(0.0, "1"), (math.log(2), "0.5"), (1000.0, "5.08e-435"), (-1000.0, "1.97e+434"), (math.inf, "0"), (math.nan, "-")],
)
def test_temperature_is_shown_beyond_the_range_of_floats(log_beta: float, shown: str) -> None:
    assert text.temperature(log_beta) == shown


def test_json_has_null_for_what_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    text.print_json({"loss": math.nan, "rate": math.inf, "digest": b"\x0f", "parts": (1.5, math.nan)})
    assert json.loads(capsys.readouterr().out) == {"loss": None, "rate": None, "digest": "0f", "parts": [1.5, None]}
