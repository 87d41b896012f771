"""Readings as they come: one stream from the server, many viewers."""

import asyncio

from tests.sidecar.conftest import Events, Sidecar, eventually, push

from hermosis_client import Client, EnergySample, Session, TelemetryReading
from hermosis_sidecar.live import Heard, Viewer
from hermosis_sidecar.newest import NewestReadings


def reading(session_id: str, step: int) -> TelemetryReading:
    return TelemetryReading(
        session_id=session_id,
        step=step,
        time_s=1.8e9 + step,
        energies=EnergySample(loss=1.0 / step),
        contributions=1,
        staleness=0,
        received_bytes=4,
        sent_bytes=4,
        device_s=0.0,
        batch_sessions=1,
        wait_s=0.0,
    )


def followed(sidecar: Sidecar, query: str = "") -> Events:
    """A stream of a sidecar that follows its server."""
    events = Events(sidecar, query)
    eventually(lambda: {"reachable": True} in events.named("server"), "the sidecar to follow the server")
    return events


def test_every_viewer_gets_every_step_of_its_sessions(sidecar: Sidecar, client: Client, session: Session) -> None:
    with (
        client.create_session({"w": (1,)}, "sgd") as other,
        followed(sidecar) as of_all,
        followed(sidecar, f"?session_id={session.session_id}") as of_one,
    ):
        assert of_all.response.headers["content-type"].startswith("text/event-stream")
        other.initialise({"w": [1.0]})
        push(other, 9.0)
        push(session, 3.0, 2.0, 1.0)

        def steps_seen(events: Events) -> list[int]:
            return [each["step"] for each in events.named("reading") if each["session_id"] == session.session_id]

        for events in (of_all, of_one):
            eventually(lambda events=events: len(steps_seen(events)) >= 3, "three readings")  # type: ignore[misc]
            assert steps_seen(events) == [1, 2, 3]
            assert events.named("reading")[-1]["energies"]["loss"] == 1.0
        assert {each["session_id"] for each in of_one.named("reading")} == {session.session_id}
        assert other.session_id in {each["session_id"] for each in of_all.named("reading")}


def test_one_stream_more_than_allowed_is_refused_and_a_place_is_free_again_when_one_leaves(
    small_sidecar: Sidecar,
) -> None:
    with followed(small_sidecar):
        refused = small_sidecar.http.get("/v1/live")
        assert refused.status_code == 429
        assert refused.json()["reason"] == "Overloaded"
        assert int(refused.headers["retry-after"]) > 0

    def admitted() -> bool:
        with small_sidecar.http.stream("GET", "/v1/live") as response:
            return response.status_code == 200

    eventually(admitted, "the place to be free")


def test_slow_viewer_loses_the_oldest_readings_and_hears_of_the_server_all_the_same() -> None:
    async def story() -> list[Heard | bool]:
        viewer = Viewer(frozenset(), capacity=3, reachable=True)
        events = viewer.events()
        heard = [await anext(events)]
        for step in range(1, 11):
            viewer.take(Heard(step, reading("a", step)))
        viewer.tell(False)
        heard += [await anext(events) for _ in range(4)]
        viewer.end()
        return heard + [event async for event in events]

    told = asyncio.run(story())
    assert told[:2] == [True, False]
    assert [event.id for event in told[2:] if not isinstance(event, bool)] == [8, 9, 10]


def test_counts_follow_steps_that_the_thinned_stream_left_out() -> None:
    newest = NewestReadings()
    for step in (1, 2, 10):
        newest.take(reading("a", step))
    newest.take(reading("b", 500))  # First seen in the middle of its life: only the step seen counts.
    newest.take(reading("a", 4))  # Set back.
    newest.take(reading("a", 5))
    assert newest.counts() == (6, 10 + 1 + 1 + 1)


def test_newest_reading_is_asked_for_only_where_the_stream_has_not_told() -> None:
    now = 100.0
    newest = NewestReadings(clock=lambda: now)
    asked: list[int] = []

    def ask(step: int) -> TelemetryReading | None:
        def answer() -> TelemetryReading:
            asked.append(step)
            return reading("a", step)

        return newest.of_step("a", step, answer)

    assert ask(0) is None
    newest.take(reading("a", 7))
    assert ask(7) == reading("a", 7)
    assert ask(9) == reading("a", 7), "a stream in good order is not overtaken"
    assert asked == []
    now = 102.0
    assert ask(9) == reading("a", 9)
    assert ask(9) == reading("a", 9)
    assert asked == [9]
