"""A viewer that comes back is told what it missed, once."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.forking import WarmServer
from tests.sidecar.conftest import Events, Sidecar, eventually, push
from tests.sidecar.history.conftest import QUICK, Archive, a_reading, a_session

from hermosis_client import Client, Session
from hermosis_sidecar.history.ids import Ids
from hermosis_sidecar.live import Heard, Viewer


@pytest.fixture
def run(client: Client) -> Iterator[Session]:
    with a_session(client, "run") as session:
        yield session


def steps(events: Events) -> list[int]:
    return [reading["step"] for reading in events.named("reading")]


def comes_to(events: Events, step: int) -> None:
    eventually(lambda: steps(events)[-1:] == [step], f"step {step} after {steps(events)}")


def test_viewer_that_comes_back_gets_what_it_missed_without_gap_or_doubling(shared: Sidecar, run: Session) -> None:
    with Events(shared, "?session_id=run") as events:
        eventually(lambda: {"reachable": True} in events.named("server"), "the server to be followed")
        push(run, 5.0, 4.0)
        comes_to(events, 2)
        seen = events.ids[-1]
        assert events.ids == sorted(set(events.ids))
    push(run, 3.0, 2.0)
    run.pause()
    run.resume()
    with Events(shared, "?session_id=run", last_event_id=seen) as events:
        comes_to(events, 4)
        push(run, 1.0)
        comes_to(events, 5)
        assert steps(events) == [3, 4, 5]
        assert events.ids == sorted(set(events.ids))


def test_viewer_that_comes_back_to_a_sidecar_that_was_killed_gets_what_both_missed(
    server: WarmServer, run: Session, tmp_path: Path
) -> None:
    settings = {"history_folder": str(tmp_path), "live_interval_s": "0", **QUICK}
    with Sidecar(server.address, **settings) as sidecar, Events(sidecar) as events:
        eventually(lambda: {"reachable": True} in events.named("server"), "the server to be followed")
        push(run, 5.0, 4.0)
        comes_to(events, 2)
        sidecar.kill()  # What it told a moment ago may not have been kept yet.
        assert events.ended.wait(10)
    push(run, 3.0, 2.0)
    with (
        Sidecar(server.address, **settings) as sidecar,
        Events(sidecar, "?session_id=run", last_event_id=events.ids[-1]) as again,
    ):
        comes_to(again, 4)
        push(run, 1.0)
        comes_to(again, 5)
        assert steps(again) == [3, 4, 5]
        Archive(tmp_path).awaits("run", 1, 2, 3, 4, 5)


def test_viewer_that_comes_back_hears_of_events_too_and_of_its_own_sessions_alone(
    shared: Sidecar, run: Session, client: Client
) -> None:
    path = "/v1/sessions/run/events"
    with Events(shared, "?session_id=run") as events:
        eventually(lambda: shared.http.get(path).json()["events"], "the session to be noticed")
        run.pause()
        told = eventually(lambda: [each for each in events.named("event") if each["kind"] == "paused"], "the event")
        paused = told[0]
        assert shared.http.get(path).json()["events"][-1] == paused
        assert events.ids[-1] == paused["event_id"]
    with a_session(client, "other"):
        path = "/v1/sessions/other/events"
        eventually(lambda: shared.http.get(path).json()["events"], "the other one to be noticed")
    run.resume()
    with Events(shared, "?session_id=run", last_event_id=paused["event_id"]) as events:
        eventually(lambda: events.named("event"), "the event")
        assert [(event["session_id"], event["kind"]) for event in events.named("event")] == [("run", "resumed")]


def test_id_that_is_none_is_refused(shared: Sidecar) -> None:
    for wrong in ("x", "-1", str(2**63)):
        refused = shared.http.get("/v1/live", headers={"Last-Event-ID": wrong})
        assert refused.status_code == 422, wrong
        assert refused.json()["reason"] == "InvalidRequest"


def test_what_comes_live_while_the_missed_is_told_follows_it_once() -> None:
    async def story() -> list[int]:
        viewer = Viewer(frozenset(), capacity=3, reachable=True)
        told: set[int] = set()

        async def missed() -> AsyncIterator[Heard]:
            for step in (1, 2, 3):
                viewer.take(Heard(step + 2, a_reading(step + 2)))
                yield Heard(step, a_reading(step))
            told.add(3)

        heard = viewer.events(missed(), told)
        first = [await anext(heard) for _ in range(6)]
        return [each.id for each in first if isinstance(each, Heard)]

    assert asyncio.run(story()) == [1, 2, 3, 4, 5]


def test_reading_has_the_id_of_its_microsecond_by_whatever_way_it_comes() -> None:
    ids, later = Ids(), Ids()
    first, second, third = (a_reading(1, session_id=name, time_s=1.8e9) for name in "abc")
    given = [ids.of(reading) for reading in (first, second, third, second, first)]
    assert given == [1_800_000_000_000_000 + place for place in (0, 1, 2, 1, 0)]
    assert later.of(first) == given[0], "after a restart too"
    later.reserve([given[0] + 1])
    assert later.of(third) == given[0] + 2
    assert ids.next() == given[2] + 1
    assert list(itertools.islice(iter(ids.next, None), 2)) == [given[2] + 2, given[2] + 3]
