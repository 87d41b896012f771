"""Quotas of tenants in a real server: one that takes its all leaves the others theirs."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2

from hermosis.v1 import session_pb2
from hermosis_client import Client, errors
from hermosis_server.access.tokens import TokenFile

DEADLINE_S = 20.0
RATE = 4_000_000


@pytest.fixture(scope="module")
def house(hosting: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("data")
    tenants = folder / "tenants.toml"
    tenants.write_text(
        f"[small]\nsessions = 0\ndevice_bytes = 200000\n[slow]\nbytes_per_s = {RATE}\n[free]\nsessions = 0\n"
    )
    tokens = TokenFile(folder)
    made = {name: tokens.create(name, role="operator", tenant=name) for name in ("few", "small", "slow", "free")}
    with hosting(data_folder=folder, require_token=True, tenant_sessions=2, tenants=tenants) as service:
        yield service, made


def client_of(house: tuple[Any, dict[str, str]], who: str, timeout_s: float = 20) -> Client:
    service, tokens = house
    return Client(service.address, token=tokens[who], timeout_s=timeout_s)


def test_a_tenant_has_as_many_sessions_as_it_may_and_others_have_theirs(house: Any, tools: Any) -> None:
    with client_of(house, "few") as few, client_of(house, "free") as free:
        first = few.create_session({"w": (1,)}, "sgd")
        few.create_session({"w": (1,)}, "sgd")
        with pytest.raises(errors.QuotaExceeded, match=r"tenant few.*tenant_sessions") as refused:
            few.create_session({"w": (1,)}, "sgd")
        assert refused.value.metadata == {"tenant": "few", "limit": "tenant_sessions"}
        for _ in range(3):
            free.create_session({"w": (1,)}, "sgd")
        first.close()
        few.create_session({"w": (1,)}, "sgd")


def test_a_refusal_names_tenant_and_limit_as_grpc_says_it(house: Any, tools: Any) -> None:
    service, tokens = house
    spec = {"layout": {"tensors": [{"name": "w", "shape": [1 << 20]}]}, "optimizer": {"recipe": {"name": "sgd"}}}
    request = session_pb2.CreateSessionRequest(spec=spec)  # type: ignore[arg-type]
    with pytest.raises(grpc.RpcError) as refused:
        service.sessions.CreateSession(
            request, metadata=(("authorization", f"Bearer {tokens['small']}"),), timeout=DEADLINE_S
        )
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    failures = [detail for detail in tools.details_of(refused.value).details if "QuotaFailure" in detail.type_url]
    failure = error_details_pb2.QuotaFailure()
    assert failures[0].Unpack(failure)
    assert failure.violations[0].subject == "tenant:small"
    assert "tenant_device_bytes" in failure.violations[0].description


def test_memory_beyond_the_limit_is_given_back_also_when_many_are_made_at_once(house: Any) -> None:
    service, _ = house

    def free_bytes() -> int:
        return int(service.inside(lambda engine: engine._executors[0].free_bytes))

    with client_of(house, "small") as small:
        before = free_bytes()
        refusals: list[errors.QuotaExceeded] = []

        def make() -> None:
            try:
                small.create_session({"w": (10_000,)}, "sgd")
            except errors.QuotaExceeded as error:
                refusals.append(error)

        makers = [threading.Thread(target=make) for _ in range(6)]
        for maker in makers:
            maker.start()
        for maker in makers:
            maker.join()
        held = sum(info.device_bytes for info in small.sessions())
        assert {refusal.metadata["limit"] for refusal in refusals} == {"tenant_device_bytes"}
        assert held <= 200_000
        for info in small.sessions():
            small.session(info.session_id).close()
        assert free_bytes() == before


@pytest.mark.parametrize("shared_memory", [True, False])
def test_streams_of_a_tenant_come_no_faster_than_they_may(house: Any, shared_memory: bool) -> None:
    weights = np.ones(RATE // 4, np.float32)  # a second's worth of bytes
    with (
        client_of(house, "slow") as slow,
        slow.create_session({"w": weights.shape}, "sgd", parameters_on="worker", consistency="async") as session,
        session.worker(shared_memory=shared_memory, reply="none") as worker,
    ):
        worker.push(weights)
        assert worker.path == ("segment" if shared_memory else "stream")
        begin = time.monotonic()
        for _ in range(2):
            worker.push(weights)
        worker.resync()
        # At least this long, however fast the machine is; a slow one takes longer.
        assert time.monotonic() - begin > 1.0


def test_a_single_call_is_told_when_to_come_again_and_the_client_does(house: Any) -> None:
    service, tokens = house
    with client_of(house, "slow", timeout_s=30) as slow:
        meter = service.inside(lambda engine: engine.quotas.meter("slow"))
        service.inside(lambda engine: meter.take(2 * RATE))
        with pytest.raises(grpc.RpcError) as refused:
            service.sessions.ListSessions(
                session_pb2.ListSessionsRequest(page_size=1),
                metadata=(("authorization", f"Bearer {tokens['slow']}"),),
                timeout=DEADLINE_S,
            )
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        list(slow.sessions())


def test_a_file_of_tenants_that_cannot_be_read_stops_the_server(hosting: Any, tmp_path: Path) -> None:
    from hermosis_server.errors import InvalidRequest

    with pytest.raises(InvalidRequest, match="tenants"), hosting(data_folder=tmp_path, tenants=tmp_path / "none"):
        pass
