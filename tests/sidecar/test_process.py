"""The sidecar as a process: what it prints, how it ends, what it never imports."""

import signal
import subprocess
import sys

import pytest
import typer
from click.testing import Result
from tests.forking import WarmServer
from tests.sidecar.conftest import Events, Sidecar, eventually
from typer.testing import CliRunner

from hermosis_sidecar.__main__ import main


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_in_good_order_though_somebody_views(server: WarmServer, number: signal.Signals) -> None:
    with Sidecar(server.address) as sidecar, Events(sidecar) as events:
        eventually(lambda: events.named("server"), "the stream to begin")
        sidecar.process.tell(number)
        assert sidecar.process.ended(5)
        assert sidecar.process.exit_status == 0
        assert events.ended.wait(5)
        assert sidecar.process.tail() == ""


def test_end_of_standard_input_ends_it(server: WarmServer) -> None:
    with Sidecar(server.address) as sidecar, Events(sidecar) as events:
        eventually(lambda: events.named("server"), "the stream to begin")
        assert sidecar.end() == ""
        assert sidecar.process.exit_status == 0


def test_it_needs_neither_server_nor_torch() -> None:
    """With both blocked, the whole app is made, and its command line is read; nothing warns."""
    program = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "hermosis_server"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
import hermosis_sidecar.__main__
from hermosis_sidecar.app import create_app
from hermosis_sidecar.settings import Settings
create_app(Settings()).openapi()
try:
    import hermosis_server
except ModuleNotFoundError:
    print("blocked")
"""
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "blocked"), done.stderr


def run(*arguments: str) -> Result:
    """The command line, without the process."""
    command = typer.Typer(pretty_exceptions_enable=False)
    command.command()(main)
    return CliRunner().invoke(command, list(arguments), env={"COLUMNS": "200", "NO_COLOR": "1"})


def test_help_tells_options_defaults_and_environment() -> None:
    told = run("--help").stdout
    for word in ("--server", "--host", "--port", "--until-stdin-closes", "HERMOSIS_SIDECAR_PORT", "127.0.0.1:50051"):
        assert word in told


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["--port", "70000"], "port"), (["--server", "no-port"], "host:port"), (["--server", "http://x:1"], "host:port")],
)
def test_argument_that_cannot_be_right_is_explained(arguments: list[str], word: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert word in result.stderr


def test_port_that_is_taken_is_said(sidecar: Sidecar) -> None:
    port = sidecar.address.rpartition(":")[2]
    command = [sys.executable, "-m", "hermosis_sidecar", "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "address already in use" in done.stderr
    assert "Traceback" not in done.stderr
