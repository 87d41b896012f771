"""A real PostgreSQL server where its programs are, readings to keep, and a sidecar whose history outlives it."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.forking import WarmServer
from tests.sidecar.conftest import Sidecar, eventually

from hermosis_client import Client, EnergySample, Session, TelemetryReading
from hermosis_sidecar.history import Kept, Life, Steps, Store

# Of sidecars that notice at once what a person would notice soon.
QUICK = {"retry_s": "0.1", "history_look_s": "0.2"}


class Archive:
    """A sidecar's folder, looked into beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._url = f"sqlite:///{folder}/history.db"

    def steps(self, session_id: str) -> list[int]:
        store = Store(self._url)
        try:
            lives = store.lives(session_id)
            lives = [life for life in lives if life.create_time_s == lives[-1].create_time_s]
            return [each.reading.step for each in store.readings(lives, Steps())]
        finally:
            store.close()

    def awaits(self, session_id: str, *steps: int) -> None:
        """Waits until just these steps are kept."""
        eventually(lambda: self.steps(session_id) == list(steps), f"{steps} to be kept, not {self.steps(session_id)}")


def a_session(client: Client, session_id: str, **more: Any) -> Session:
    session = client.create_session({"w": (2,)}, "sgd", session_id=session_id, **more)
    session.initialise({"w": np.ones(2, np.float32)})
    return session


def a_reading(step: int, *, time_s: float | None = None, loss: float = 1.0, session_id: str = "a") -> TelemetryReading:
    """One that has another number in every field."""
    return TelemetryReading(
        session_id=session_id,
        step=step,
        time_s=1.8e9 + step if time_s is None else time_s,
        energies=EnergySample(*(loss + place for place in range(len(EnergySample._fields)))),
        contributions=2,
        staleness=3,
        received_bytes=4,
        sent_bytes=5,
        device_s=0.25,
        batch_sessions=6,
        wait_s=0.5,
        compression_error=0.125,
    )


def kept(life: Life, reading: TelemetryReading) -> Kept:
    """With the id that it gets where no other has it."""
    return Kept(reading_id=round(reading.time_s * 1e6), life_key=life.life_key, reading=reading)


def _programs() -> Path | None:
    found = shutil.which("postgres")
    folders = [Path(os.path.realpath(found)).parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """What the shared sidecar keeps."""
    return Archive(tmp_path_factory.mktemp("history"))


@pytest.fixture(scope="session")
def shared(server: WarmServer, archive: Archive) -> Iterator[Sidecar]:
    """A sidecar for all tests that need not kill theirs."""
    with Sidecar(server.address, history_folder=str(archive.folder), live_interval_s="0", **QUICK) as sidecar:
        yield sidecar


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server of our own on a socket in a temporary folder."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'hermosis[postgres]'")
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL's programs are not here: neither on PATH nor in /usr/lib/postgresql")
    as_user: list[str] = []
    name = pwd.getpwuid(os.getuid()).pw_name
    with tempfile.TemporaryDirectory(prefix="hermosis-pg-") as folder:
        if os.getuid() == 0:  # PostgreSQL refuses root.
            if shutil.which("setpriv") is None:
                pytest.skip("root needs setpriv to run PostgreSQL as somebody else")
            nobody = pwd.getpwnam("nobody")
            name = nobody.pw_name
            as_user = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        control = [*as_user, str(programs / "pg_ctl"), "-D", f"{folder}/data", "-w", "-s"]

        def run(*command: str) -> None:
            with open(f"{folder}/out", "ab") as out:
                subprocess.run(command, check=True, cwd=folder, timeout=60, stdout=out, stderr=out)

        run(*as_user, str(programs / "initdb"), "-D", f"{folder}/data", "-A", "trust", "-E", "UTF8", "--no-sync")
        flags = f"-k {folder} -c listen_addresses= -c fsync=off"
        run(*control, "-l", f"{folder}/log", "-o", flags, "start")
        try:
            yield f"postgresql://{name}@/postgres?host={folder}"
        finally:
            run(*control, "-m", "immediate", "stop")
