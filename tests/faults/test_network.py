"""Networks and peers that misbehave: cut, slow, repeating, frozen, half dead. A gradient counts once, or not at all."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.faults.conftest import Start, begun, stepped
from tests.faults.plans import BARRIER, JOURNALLED, Plan
from tests.faults.proxy import proxy
from tests.faults.servers import Server, Wishes
from tests.faults.twin import Twin
from tests.forking import Ended

from hermosis_client import Client, Durability
from hermosis_client.errors import HermosisError

LARGE = Plan(name="large", parameters=400_000, durability=Durability(mode="journal"), ack_level="durable")


@pytest.mark.parametrize("plan", [JOURNALLED, LARGE], ids=lambda plan: plan.name)
def test_connections_cut_in_the_middle_of_a_gradient_cost_no_step_and_add_none(
    plan: Plan, start: Start, twin: Twin
) -> None:
    server, client = start()
    begun(client, plan)
    with proxy() as door, Client(door.address, timeout_s=60) as far:
        door.open(server.address)
        worker = far.session(plan.name).worker("worker-0", ack_level="durable", shared_memory=False)
        stepped(worker, plan)
        for tenth in range(0, 10, 2):
            cut = door.cut_after(1 + 4 * plan.parameters * tenth // 10)
            stepped(worker, plan)
            assert cut.is_set()
        step = stepped(worker, plan)
        worker.close()
    session = client.session(plan.name)
    assert session.info().step == step == 7
    assert session.digest() in twin.digests(plan, step)


def test_slow_network_changes_nothing_but_the_time(start: Start, twin: Twin) -> None:
    server, client = start()
    begun(client, JOURNALLED)
    with proxy() as door, Client(door.address, timeout_s=60) as far:
        door.open(server.address)
        door.delay(0.02)
        with far.session(JOURNALLED.name).worker("worker-0") as worker:
            stepped(worker, JOURNALLED, 5)
    assert client.session(JOURNALLED.name).digest() in twin.digests(JOURNALLED, 5)


def test_bytes_of_a_connection_that_are_replayed_are_not_counted_again(start: Start, twin: Twin) -> None:
    server, client = start()
    begun(client, JOURNALLED)
    with proxy() as door:
        door.open(server.address)
        heard = door.record()
        with Client(door.address, timeout_s=60) as far, far.session(JOURNALLED.name).worker("worker-0") as worker:
            stepped(worker, JOURNALLED, 5)
        assert sum(map(len, heard)) > 5 * 4 * JOURNALLED.parameters
        assert door.replay(heard), "the server answered the second connection"
    session = client.session(JOURNALLED.name)
    assert session.info().step == 5
    assert session.digest() in twin.digests(JOURNALLED, 5)
    with session.worker("worker-0") as worker:
        stepped(worker, JOURNALLED)
    assert session.digest() in twin.digests(JOURNALLED, 6)


def test_server_that_is_frozen_and_thawed_goes_on_where_it_was(start: Start, twin: Twin) -> None:
    server, client = start()
    worker = begun(client, JOURNALLED).worker("worker-0", ack_level="durable")
    stepped(worker, JOURNALLED)
    server.freeze()
    steps = threading.Thread(target=stepped, args=(worker, JOURNALLED, 3))
    steps.start()
    steps.join(0.3)
    assert steps.is_alive()
    server.thaw()
    steps.join(60)
    assert client.session(JOURNALLED.name).digest() in twin.digests(JOURNALLED, 4)


WORKER = """
import os, signal, sys
from hermosis_client import Client
from tests.faults.conftest import stepped
from tests.faults.plans import BARRIER
with Client(sys.argv[1], timeout_s=60) as client:
    worker = client.session(BARRIER.name).worker(sys.argv[2])
    worker.pull()
    print("ready", flush=True)
    for line in sys.stdin:
        stepped(worker, BARRIER, int(line))
        print("done", flush=True)
"""


class WorkerProcess:
    """A worker that contributes as often as it is told, in a process that may be frozen or killed."""

    def __init__(self, address: str, worker_id: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, address, worker_id],
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.hears("ready")

    def says(self, count: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()

    def hears(self, word: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == word

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_worker_that_dies_in_a_round_is_taken_over_by_its_successor(start: Start, twin: Twin) -> None:
    """The dead worker's contribution stands; whoever comes under its name is told so and goes on."""
    server, client = start()
    session = begun(client, BARRIER)
    with session.worker("worker-1") as other:
        first = WorkerProcess(server.address, "worker-0")
        first.says(1)
        while not any(worker.next_sequence == 2 for worker in session.workers()):
            pass  # the server has counted it; the round waits for the other
        first.close()
        stepped(other, BARRIER)
        second = WorkerProcess(server.address, "worker-0")
        second.says(2)
        stepped(other, BARRIER, 2)
        second.hears("done")
        second.close()
    assert session.digest() in twin.digests(BARRIER, 3)


def test_worker_that_is_frozen_holds_its_round_up_and_harms_no_other_session(start: Start, twin: Twin) -> None:
    server, client = start()
    session, calm = begun(client, BARRIER), begun(client, JOURNALLED)
    frozen = WorkerProcess(server.address, "worker-0")
    os.kill(frozen.process.pid, signal.SIGSTOP)
    frozen.says(1)
    with session.worker("worker-1") as other, calm.worker("worker-0") as worker:
        waiting = threading.Thread(target=stepped, args=(other, BARRIER))
        waiting.start()
        stepped(worker, JOURNALLED, 5)
        assert waiting.is_alive()
        os.kill(frozen.process.pid, signal.SIGCONT)
        frozen.hears("done")
        waiting.join(60)
    frozen.close()
    assert session.digest() in twin.digests(BARRIER, 1)
    assert calm.digest() in twin.digests(JOURNALLED, 5)


def test_worker_that_dies_in_the_middle_of_a_gradient_leaves_no_trace(start: Start, twin: Twin) -> None:
    server, client = start()
    session = begun(client, LARGE)
    with proxy() as door, Client(door.address, timeout_s=1) as dying:
        door.open(server.address)
        worker = dying.session(LARGE.name).worker("worker-0", shared_memory=False)
        worker.pull()
        cut = door.cut_after(2 * LARGE.parameters)
        gone = threading.Thread(target=_ignoring, args=(worker.exchange, LARGE.gradient("worker-0", 7)))
        gone.start()
        assert cut.wait(60)
        door.shut()
        gone.join(60)
    with session.worker("worker-0") as successor:
        stepped(successor, LARGE)
    assert session.digest() in twin.digests(LARGE, 1)


def _ignoring(function: Callable[..., object], *words: object) -> None:
    with contextlib.suppress(HermosisError):
        function(*words)


def test_second_server_on_the_same_folder_is_refused_and_the_first_goes_on(
    start: Start, twin: Twin, tmp_path: Path
) -> None:
    _, client = start()
    worker = begun(client, JOURNALLED).worker("worker-0", ack_level="durable")
    stepped(worker, JOURNALLED)
    second = Server(tmp_path / "data", tmp_path / "second", Wishes())
    with pytest.raises(Ended, match="belongs to a running server"):
        _ = second.address
    assert second.exit_status == 2
    second.close()
    stepped(worker, JOURNALLED)
    assert start()[1].session(JOURNALLED.name).digest() in twin.digests(JOURNALLED, 2)


def test_command_as_a_user_starts_it_survives_a_kill_too(twin: Twin, tmp_path: Path) -> None:
    """The other servers of this suite are forked from one that is warm; this one is `python -m hermosis_server`."""
    command = [sys.executable, "-m", "hermosis_server", "serve", "--port", "0", "--data-folder", str(tmp_path / "data")]
    plan = JOURNALLED
    steps = 0
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        address = process.stdout.readline().split("address=")[1].strip()
        with Client(address, timeout_s=60) as client:
            session = client.session(plan.name) if steps else begun(client, plan)
            assert session.digest() in twin.digests(plan, steps)
            with session.worker("worker-0", ack_level="durable") as worker:
                steps = stepped(worker, plan, 4)
            process.kill()
        process.communicate()
    assert steps == 8
