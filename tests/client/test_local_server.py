"""A private server: its life, its end, and what is said when it cannot be."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from tests.forking import WarmServer

from hermosis_client import Client, ConnectionFailed
from hermosis_client.local_server import LocalServer

PATIENCE_S = 30.0


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(process_id: int) -> bool:
    try:
        with open(f"/proc/{process_id}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_serves_beside_others_until_closed_and_cleans_up(server: WarmServer) -> None:
    other, server = server, LocalServer()
    assert other.address != server.address
    with Client(server.address) as client:
        assert client.capabilities().server_version
    assert '"event": "serving"' in server.log_tail()
    folder = server.data_folder
    assert os.path.isdir(folder)
    server.close()
    server.close()
    assert not is_running(server.process_id)
    assert not os.path.exists(folder)


def test_a_server_that_cannot_start_says_why() -> None:
    with pytest.raises(ConnectionFailed, match="ended before it was ready") as caught:
        LocalServer(arguments=["--device", "abacus"])
    assert "abacus" in str(caught.value)


def test_missing_packages_are_named_with_the_command_that_installs_them() -> None:
    program = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(name)
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torch" else real(name, package)
from hermosis_client.local_server import LocalServer
try:
    LocalServer()
except ModuleNotFoundError as error:
    assert error.name == "torch"
    assert "pip install 'hermosis[server]'" in str(error), error
else:
    raise AssertionError("it started")
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


ORPHAN = """
import os, signal, sys
from hermosis_client.local_server import LocalServer
server = LocalServer()
print(server.process_id, flush=True)
{end}
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [("sys.exit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL)],
    ids=["exits", "killed"],
)
def test_no_server_outlives_the_process_that_started_it(end: str, status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN.format(end=end)], stdout=subprocess.PIPE, text=True, timeout=90, check=False
    )
    assert done.returncode == status
    server_id = int(done.stdout)
    wait_until(lambda: not is_running(server_id))


def test_a_killed_server_is_a_typed_error_within_the_timeout() -> None:
    with LocalServer() as server, Client(server.address, timeout_s=1.0) as client:
        session = client.create_session({"w": (1000,)}, "sgd", workers=2)
        session.initialise({"w": np.zeros(1000, np.float32)})
        watch = client.watch()
        failures: list[BaseException] = []

        def attempt(call: Callable[[], object]) -> None:
            try:
                call()
            except BaseException as error:
                failures.append(error)

        # One waits for a second worker that never comes, one for telemetry.
        threads = [
            threading.Thread(target=attempt, args=(call,), daemon=True)
            for call in (lambda: session.exchange(np.ones(1000, np.float32)), lambda: next(watch))
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: any(worker.next_sequence == 2 for worker in client.session(session.session_id).workers()))
        os.kill(server.process_id, signal.SIGKILL)
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        attempt(session.info)
        assert [type(failure) for failure in failures] == [ConnectionFailed] * 3
        assert all(server.address in str(failure) for failure in failures)


def test_a_program_that_closes_nothing_ends_quietly(server: WarmServer) -> None:
    program = f"""
import numpy as np
from hermosis_client import Client
client = Client({server.address!r})
session = client.create_session({{"w": (1000,)}}, "sgd")
session.initialise({{"w": np.zeros(1000, np.float32)}})
watch = client.watch([session.session_id])
session.exchange(np.ones(1000, np.float32))
print(next(watch).step)
"""
    for _ in range(3):  # a thread of gRPC that met the end of the interpreter would abort it, now and then
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_ctrl_c_ends_a_waiting_exchange(server: WarmServer) -> None:
    program = f"""
import numpy as np
from hermosis_client import Client
with Client({server.address!r}) as client:
    with client.create_session({{"w": (1000,)}}, "sgd", workers=2, session_id="interrupted") as session:
        session.initialise({{"w": np.zeros(1000, np.float32)}})
        try:
            session.worker("alone").exchange(np.ones(1000, np.float32))
        except KeyboardInterrupt:
            print("interrupted", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    with Client(server.address) as client:

        def waiting() -> bool:
            assert process.poll() is None
            found = [info for info in client.sessions() if info.session_id == "interrupted"]
            return bool(found) and any(w.next_sequence == 2 for w in client.session("interrupted").workers())

        wait_until(waiting)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=PATIENCE_S)
        assert output == "interrupted\n"
        assert process.returncode == 0
        assert [info for info in client.sessions() if info.session_id == "interrupted"] == []
