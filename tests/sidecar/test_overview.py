"""How the whole server does, by REST and on the live stream."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import pytest
from google.protobuf.descriptor import FieldDescriptor
from tests.forking import WarmServer
from tests.sidecar.conftest import Events, Sidecar, eventually, push

from hermosis.v1 import telemetry_pb2
from hermosis_client import Client, Overview, Session, errors
from hermosis_sidecar import schemas_overview
from hermosis_sidecar.overviews import Overviews, together

EMPTY = Overview(
    time_s=1.8e9,
    uptime_s=1.0,
    steps=0,
    received_bytes=0,
    sent_bytes=0,
    steps_per_s=0.0,
    received_bytes_per_s=0.0,
    sent_bytes_per_s=0.0,
    queue_rounds=0,
    queue_bytes=0,
    batch_sessions=float("nan"),
    step_p50_s=float("nan"),
    step_p99_s=float("nan"),
    streams=0,
    staging_bytes=0,
    staging_limit_bytes=0,
    devices=(),
    alerts=(),
)


@pytest.fixture(scope="module")
def quick_sidecar(server: WarmServer) -> Iterator[Sidecar]:
    with Sidecar(server.address, live_interval_s="0", overview_interval_s="0.05") as sidecar:
        yield sidecar


def test_the_overview_tells_of_pace_and_memory(sidecar: Sidecar, client: Client, session: Session) -> None:
    push(session, 3.0, 2.0, 1.0)
    shown = sidecar.http.get("/v1/overview").json()
    assert shown["steps_per_s"] > 0
    assert 0 < shown["step_s"]["p50"] <= shown["step_s"]["p99"]
    assert shown["batch_sessions"] >= 1
    assert shown["streams"] >= 1
    assert shown["alerts"] == []
    (device,) = shown["devices"]
    assert session.session_id in {held["session_id"] for held in device["sessions"]}
    assert device["used_bytes"] + device["free_bytes"] == device["capacity_bytes"]


def test_the_overview_names_as_many_sessions_as_are_asked_for(
    sidecar: Sidecar, client: Client, session: Session
) -> None:
    with client.create_session({"w": (1000,)}, "sgd") as larger:
        (device,) = sidecar.http.get("/v1/overview", params={"max_sessions": 1}).json()["devices"]
        assert [held["session_id"] for held in device["sessions"]] == [larger.session_id]
    assert sidecar.http.get("/v1/overview", params={"max_sessions": 0}).status_code == 422


def test_what_there_is_none_of_is_null() -> None:
    shown = json.loads(schemas_overview.overview(EMPTY).model_dump_json())
    assert shown["batch_sessions"] is None
    assert shown["step_s"] == {"p50": None, "p99": None}
    assert shown["time"] == "2027-01-15T08:00:00Z"


def test_fields_are_those_of_the_contract() -> None:
    def names(message: str) -> set[str]:
        fields: list[FieldDescriptor] = telemetry_pb2.DESCRIPTOR.message_types_by_name[message].fields
        return {field.name for field in fields}

    apart = {"steps", "received_bytes", "sent_bytes", "step_p50_s", "step_p99_s"}
    assert set(schemas_overview.Overview.model_fields) == names("Overview") - apart | {"step_s"}
    for schema in (schemas_overview.DeviceOverview, schemas_overview.SessionMemory, schemas_overview.Alert):
        assert set(schema.model_fields) == names(schema.__name__)


def test_viewers_that_ask_get_overviews_between_their_readings(quick_sidecar: Sidecar, session: Session) -> None:
    with Events(quick_sidecar, "?overview=true") as asking, Events(quick_sidecar) as other:
        for events in (asking, other):
            eventually(lambda events=events: events.named("server")[-1:] == [{"reachable": True}], "the server")  # type: ignore[misc]
        eventually(lambda: len(asking.named("overview")) >= 3, "overviews")
        push(session, 2.0, 1.0)
        eventually(lambda: len(asking.named("reading")) >= 2 and len(other.named("reading")) >= 2, "readings")
        seen = len(asking.named("overview"))
        eventually(lambda: len(asking.named("overview")) > seen, "overviews after readings")
        assert asking.named("overview")[-1]["steps_per_s"] > 0
        assert other.named("overview") == []


def test_viewers_of_one_token_share_what_is_asked_and_a_server_that_is_away_is_asked_again() -> None:
    asked: list[str] = []

    def ask(token: str) -> Overview:
        asked.append(token)
        if len(asked) == 1:
            raise errors.ConnectionFailed("away")
        return EMPTY

    async def scenario() -> None:
        overviews = Overviews(ask, interval_s=0.05)
        followed = [overviews.follow(token) for token in ("a", "a", "b")]
        assert await asyncio.gather(*map(anext, followed)) == [EMPTY] * 3

    asyncio.run(scenario())
    assert asked[0] == "a"
    assert 1 <= asked.count("b") <= 2
    assert 2 <= asked.count("a") <= 3


def test_two_sources_are_given_together_until_the_first_ends() -> None:
    async def scenario() -> None:
        go_on, ended = asyncio.Event(), asyncio.Event()

        async def first() -> AsyncIterator[int]:
            yield 1
            await go_on.wait()
            yield 2

        async def second() -> AsyncIterator[str]:
            try:
                yield "a"
                yield "b"
                go_on.set()
                await asyncio.Event().wait()
            finally:
                ended.set()

        assert sorted(map(str, [each async for each in together(first(), second())])) == ["1", "2", "a", "b"]
        assert ended.is_set()

    asyncio.run(scenario())
