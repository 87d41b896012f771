"""A disk that fails or is full: nothing more is acknowledged as durable, and what was acknowledged is there."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.faults.conftest import Start, begun, stepped, until_refused
from tests.faults.plans import JOURNALLED
from tests.faults.twin import Twin

from hermosis_client import Client
from hermosis_client.errors import StorageFailed, StorageFull

PLAN = JOURNALLED
STEPS = 60  # more than any of the failing calls below is away


@pytest.mark.parametrize(
    "failpoint",
    ["disk.write=EIO@15", "disk.sync=EIO@15", "disk.sync=EIO@16", "disk.rename=EIO@4", "disk.allocate=EIO@2"],
)
def test_after_an_error_of_the_disk_nothing_is_acknowledged_and_what_was_is_there(
    failpoint: str, start: Start, twin: Twin
) -> None:
    _, client = start(failpoint, timeout_s=2.0)
    acknowledged, error = until_refused(begun(client, PLAN).worker("worker-0", ack_level="durable"), PLAN, STEPS)
    assert isinstance(error, StorageFailed)
    with pytest.raises(StorageFailed):
        stepped(client.session(PLAN.name).worker("worker-0", ack_level="durable"), PLAN)
    session = start()[1].session(PLAN.name)
    recovered = session.info().step
    assert recovered >= acknowledged > 0
    assert session.digest() in twin.digests(PLAN, recovered)


def test_want_of_room_that_passes_delays_a_durable_step_and_loses_nothing(start: Start, twin: Twin) -> None:
    server, client = start("disk.allocate=ENOSPC@2")
    stepped(begun(client, PLAN).worker("worker-0", ack_level="durable"), PLAN, STEPS)
    assert '"event": "not_durable"' in server.log.read_text()
    session = start()[1].session(PLAN.name)
    assert session.info().step == STEPS
    assert session.digest() in twin.digests(PLAN, STEPS)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_refuses_durable_steps_and_takes_them_when_there_is_room(
    small_disk: Path, start: Start, twin: Twin
) -> None:
    folder = small_disk / "data"
    server, client = start(timeout_s=2.0, folder=folder)
    session = begun(client, PLAN)
    worker = session.worker("worker-0", ack_level="durable")
    stepped(worker, PLAN)
    ballast = small_disk / "ballast"
    free = os.statvfs(small_disk)
    ballast.write_bytes(bytes(free.f_bavail * free.f_frsize))
    acknowledged, error = until_refused(worker, PLAN, STEPS)
    assert isinstance(error, StorageFull)
    ballast.unlink()
    patient = Client(server.address, timeout_s=60)
    again = patient.session(PLAN.name).worker("worker-0", ack_level="durable")
    acknowledged = stepped(again, PLAN, 5)
    patient.close()
    session = start(folder=folder)[1].session(PLAN.name)
    assert session.info().step >= acknowledged
    assert session.digest() in twin.digests(PLAN, session.info().step)
    start()  # gives the small disk back


def test_limit_on_the_size_of_files_refuses_durable_steps_and_takes_them_when_it_is_raised(
    start: Start, twin: Twin
) -> None:
    """It falls in the middle of an entry, in room that was taken before; no snapshot fits, and the log does."""
    plan = replace(PLAN, name="wide", parameters=20_000)
    server, client = start(timeout_s=2.0, segment_bytes=1 << 20)
    worker = begun(client, plan).worker("worker-0", ack_level="durable")
    stepped(worker, plan, 2)
    server.limit_files(200_000)
    acknowledged, error = until_refused(worker, plan, STEPS)
    assert isinstance(error, StorageFull)
    assert acknowledged == 2
    server.limit_files(None)
    with Client(server.address, timeout_s=60) as patient:
        acknowledged = stepped(patient.session(plan.name).worker("worker-0", ack_level="durable"), plan, 5)
    session = start()[1].session(plan.name)
    assert session.info().step >= acknowledged >= 7
    assert session.digest() in twin.digests(plan, session.info().step)


def test_snapshots_that_find_no_room_leave_the_session_serving(start: Start, twin: Twin) -> None:
    _, client = start("disk.open=ENOSPC@12")
    begun(client, PLAN)
    session = client.session(PLAN.name)
    stepped(session.worker("worker-0"), PLAN, STEPS)
    assert session.digest() in twin.digests(PLAN, STEPS)
