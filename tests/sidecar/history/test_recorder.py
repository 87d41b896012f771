"""The recorder over a real server: gaps, troubles of the database, what is noted, how long it is kept."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from tests.faults.proxy import Proxy
from tests.forking import WarmServer
from tests.sidecar.conftest import Sidecar, eventually, push
from tests.sidecar.history.conftest import QUICK, Archive, a_session

from hermosis_client import Client, Session, errors
from hermosis_client.local_server import LocalServer
from hermosis_sidecar.history import Event, EventKind, Kept, Retention, Steps, Store
from hermosis_sidecar.history.differences import Happened
from hermosis_sidecar.history.ids import Ids
from hermosis_sidecar.history.lineage import Lineage
from hermosis_sidecar.history.recorder import Recorder
from hermosis_sidecar.history.records import KeptEvent

FOR_EVER = Retention(raw_s=1e9, keep_s=1e9)


class FailingStore(Store):
    """Whose disk is full until `healed`."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.healed = threading.Event()
        self.healed.set()
        self.failed = threading.Event()

    def add(self, new: Sequence[Kept], happened: Sequence[KeptEvent] = ()) -> None:
        if not self.healed.is_set():
            self.failed.set()
            raise errors.StorageFailed("no space left on the device")
        super().add(new, happened)


class Bench:
    """A recorder of one real session, fed by hand."""

    def __init__(self, url: str, client: Client, session: Session) -> None:
        self.store = FailingStore(url)
        self.session = session
        self.told: list[Event] = []
        self.ids = Ids()
        self._client = client
        self._recorders: list[Recorder] = []

    def recorder(
        self,
        *,
        retention: Retention = FOR_EVER,
        queue: int = 1000,
        look_s: float = 0.05,
        clock: Callable[[], float] = lambda: 1.8e9,
    ) -> Recorder:
        lineage = Lineage(self.store, self._client, self.ids, interval_s=0.0)
        recorder = Recorder(
            self.store,
            lineage,
            self.ids,
            retention=retention,
            tell=lambda kept: self.told.append(kept.event),
            look_s=look_s,
            queue=queue,
            clock=clock,
        )
        self._recorders.append(recorder)
        return recorder

    def steps(self) -> list[int]:
        return [each.reading.step for each in self.store.readings(self.store.lives("fed"), Steps())]

    def kinds(self) -> list[str]:
        return [event.kind for event in self.told]

    def close(self) -> None:
        for recorder in self._recorders:
            recorder.close()
        self.store.close()


@pytest.fixture
def bench(tmp_path: Path, client: Client) -> Iterator[Bench]:
    with a_session(client, "fed") as session:
        bench = Bench(f"sqlite:///{tmp_path}/history.db", client, session)
        yield bench
        bench.close()


def settle(recorder: Recorder) -> None:
    assert recorder.settling().wait(20)


def test_steps_that_the_stream_lost_are_asked_for(bench: Bench) -> None:
    recorder = bench.recorder()
    recorder.start()
    recorder.followed(True)
    eventually(lambda: recorder.caught_up, "the first look")
    push(bench.session, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0)
    whole = bench.session.history()
    for reading in (*whole[:2], *whole[4:]):
        recorder.take(reading)
    eventually(lambda: bench.steps() == [1, 2, 3, 4, 5, 6], "the steps between")
    ids = [each.reading_id for each in bench.store.readings(bench.store.lives("fed"), Steps())]
    assert ids == sorted(set(ids)), "as if they had come in order"


def test_database_that_fails_for_a_while_loses_nothing(bench: Bench) -> None:
    recorder = bench.recorder()
    recorder.start()
    recorder.followed(True)
    eventually(lambda: recorder.caught_up, "the first look")
    bench.store.healed.clear()
    push(bench.session, 3.0, 2.0, 1.0)
    for reading in bench.session.history():
        recorder.take(reading)
    assert bench.store.failed.wait(20)
    assert bench.steps() == []
    bench.store.healed.set()
    eventually(lambda: bench.steps() == [1, 2, 3], "the readings to be written")
    assert recorder.dropped == 0


def test_what_does_not_fit_the_queue_is_counted_and_holds_up_nobody(bench: Bench) -> None:
    recorder = bench.recorder(queue=2)
    push(bench.session, 3.0, 2.0, 1.0)
    given = [recorder.take(reading) for reading in bench.session.history()]
    assert len(set(given)) == 3
    assert recorder.dropped == 1


@pytest.mark.parametrize("noticed_first", [False, True])
def test_event_that_is_noted_is_told_once(bench: Bench, noticed_first: bool) -> None:
    recorder = bench.recorder(look_s=0.01 if noticed_first else 1e6)
    recorder.start()
    recorder.followed(True)
    eventually(lambda: bench.kinds() == ["created", "ready"], "the beginning")
    changes: tuple[tuple[Callable[[], object], EventKind], ...] = (
        (bench.session.pause, "paused"),
        (bench.session.resume, "resumed"),
    )
    for change, kind in changes:
        change()
        if noticed_first:
            eventually(lambda kind=kind: bench.kinds()[-1] == kind, "it to be noticed")  # type: ignore[misc]
        recorder.note("fed", Happened(kind, "by ann"))
        settle(recorder)
    assert bench.kinds() == ["created", "ready", "paused", "resumed"]
    assert bench.told[-1].text == ("takes gradients again" if noticed_first else "by ann")


def test_event_that_nobody_could_notice_is_kept_with_its_step(bench: Bench) -> None:
    recorder = bench.recorder()
    recorder.start()
    recorder.followed(True)
    eventually(lambda: bench.kinds() == ["created", "ready"], "the beginning")
    push(bench.session, 1.0)
    recorder.note("fed", Happened("anomaly", "the loss explodes"), 77)
    recorder.note("fed", Happened("snapshot", "1-1"))
    recorder.note("nobody", Happened("snapshot", ""))
    settle(recorder)
    assert [(event.kind, event.step) for event in bench.told[2:]] == [("anomaly", 77), ("snapshot", 1)]
    [life] = bench.store.lives("fed")
    assert [kept.event for kept in bench.store.events([life], 100)] == bench.told


def test_readings_are_thinned_and_forgotten_as_they_grow_old(bench: Bench) -> None:
    push(bench.session, *[1.0] * 5)
    whole = bench.session.history()
    now = whole[-1].time_s
    recorder = bench.recorder()
    recorder.start()
    recorder.followed(True)
    eventually(lambda: bench.steps() == [1, 2, 3, 4, 5], "the readings")
    recorder.close()
    two_days = Retention(raw_s=2 * 86400, keep_s=30 * 86400)
    minutes = len({reading.time_s // 60 for reading in whole})
    for later_s, left in ((86400, 5), (2 * 86400 + 120, minutes), (31 * 86400, 0)):
        aged = bench.recorder(retention=two_days, clock=lambda later_s=later_s: now + later_s)  # type: ignore[misc]
        aged.start()
        eventually(lambda left=left: len(bench.steps()) == left, f"{left} readings")  # type: ignore[misc]
        aged.close()
        assert len(bench.steps()) == left


def test_connection_that_broke_leaves_no_gap(server: WarmServer, client: Client, tmp_path: Path) -> None:
    proxy = Proxy()
    proxy.open(server.address)
    try:
        with (
            Sidecar(proxy.address, history_folder=str(tmp_path), live_interval_s="0", **QUICK),
            a_session(client, "broken") as session,
        ):
            archive = Archive(tmp_path)
            push(session, 6.0, 5.0)
            archive.awaits("broken", 1, 2)
            proxy.shut()
            push(session, 4.0, 3.0, 2.0)
            proxy.open(server.address)
            push(session, 1.0)
            archive.awaits("broken", 1, 2, 3, 4, 5, 6)
    finally:
        proxy.close()


def test_a_restart_too_quick_to_be_missed_is_told_from_a_restore(tmp_path: Path) -> None:
    """Real servers: one from a warm process is there sooner than two clocks are told apart."""
    store, data = Store(f"sqlite:///{tmp_path}/history.db"), tmp_path / "data"
    with LocalServer(data_folder=data) as server:
        port = server.address.rpartition(":")[2]
        client = Client(server.address, timeout_s=30)
        session = client.create_session({"w": (2,)}, "sgd", session_id="run")
        session.initialise({"w": np.zeros(2, np.float32)})
        lineage = Lineage(store, client, Ids(), interval_s=0.0)
        lineage.look()
        lineage.happened()
    with LocalServer(data_folder=data, arguments=["--port", port]):
        lineage.look()  # nobody has said that the server was away
        assert [kept.event.kind for kept in lineage.happened()] == ["server_restarted"]
        client.restore("run")
        lineage.look()
        assert [kept.event.kind for kept in lineage.happened()] == ["restored"]
        client.close()
    store.close()
