"""The list of sessions: searched, in any order, page by page while sessions come and go."""

from typing import Any

import grpc
import pytest

from hermosis.v1 import session_pb2, types_pb2
from hermosis_server.access.tokens import TokenFile
from hermosis_server.engine.engine import Quarantined

ORDERS = ("", "create_time", "create_time desc", "session_id", "session_id desc", "step", "step desc")


def pages(server: Any, size: int, **asked: Any) -> Any:
    """The pages of a list, each as ids."""
    token = ""
    while True:
        request = session_pb2.ListSessionsRequest(page_size=size, page_token=token, **asked)
        page = server.sessions.ListSessions(request, timeout=10)
        yield [session.session_id for session in page.sessions]
        token = page.next_page_token
        if not token:
            return


def listed(server: Any, **asked: Any) -> list[str]:
    return [session_id for page in pages(server, 1000, **asked) for session_id in page]


def make(server: Any, session_id: str, **spec: Any) -> None:
    message = session_pb2.SessionSpec(
        layout=types_pb2.ParameterLayout(tensors=[types_pb2.TensorSpec(name="w", shape=[2])]),
        parameters_on=types_pb2.PARAMETERS_ON_WORKER,
        **{"optimizer": {"recipe": {"name": "sgd"}}} | spec,
    )
    server.sessions.CreateSession(session_pb2.CreateSessionRequest(session_id=session_id, spec=message), timeout=10)


def close(server: Any, session_id: str) -> None:
    server.sessions.CloseSession(session_pb2.CloseSessionRequest(session_id=session_id), timeout=10)


@pytest.fixture(scope="module")
def seven(hosting: Any) -> Any:
    """Sessions whose three orders differ, two of them at the same step."""
    with hosting() as server:
        for session_id in ("gold", "apple", "fern", "birch", "elm", "cedar", "dune"):
            make(server, session_id)
        yield server


def steps(server: Any, **by_session: int) -> None:
    def set_steps(engine: Any) -> None:
        for session_id, step in by_session.items():
            engine.session(session_id).step = step

    server.inside(set_steps)


def test_each_order_sorts_by_what_it_says(seven: Any) -> None:
    steps(seven, gold=3, apple=9, fern=0, birch=5, elm=3, cedar=1, dune=7)
    born = ["gold", "apple", "fern", "birch", "elm", "cedar", "dune"]
    assert listed(seven) == listed(seven, order_by="create_time") == born
    assert listed(seven, order_by="create_time desc") == born[::-1]
    assert listed(seven, order_by="session_id") == sorted(born)
    assert listed(seven, order_by="session_id desc") == sorted(born, reverse=True)
    assert listed(seven, order_by="step") == ["fern", "cedar", "elm", "gold", "birch", "dune", "apple"]
    assert listed(seven, order_by="step desc") == ["apple", "dune", "birch", "elm", "gold", "cedar", "fern"]


@pytest.mark.parametrize("order_by", ORDERS)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_pages_show_what_stays_once_while_others_come_and_go(hosting: Any, order_by: str, size: int) -> None:
    with hosting() as server:
        for number in range(8):
            make(server, f"s{number * 5 % 8}-stays")
            make(server, f"s{number * 3 % 8}-goes")
        steps(server, **{f"s{number}-stays": number // 2 for number in range(8)})
        whole = [name for name in listed(server, order_by=order_by) if "stays" in name]
        seen: list[str] = []
        for turn, page in enumerate(pages(server, size, order_by=order_by)):
            seen += page
            if turn < 8:
                close(server, f"s{turn}-goes")
                make(server, f"s{turn}-comes")
        assert [name for name in seen if "stays" in name] == whole
        assert len(seen) == len(set(seen))


def test_the_token_of_one_order_is_refused_in_another(seven: Any, tools: Any) -> None:
    first = session_pb2.ListSessionsRequest(page_size=2, order_by="session_id")
    token = seven.sessions.ListSessions(first, timeout=10).next_page_token
    for other in ("session_id desc", "step", ""):
        request = session_pb2.ListSessionsRequest(page_size=2, order_by=other, page_token=token)
        with pytest.raises(grpc.RpcError) as refused:
            seven.sessions.ListSessions(request, timeout=10)
        assert tools.reason_of(refused.value) == "InvalidRequest"


@pytest.mark.parametrize("order_by", ["loss", "step asc", " step", "step  desc", "desc", "STEP"])
def test_an_order_that_is_none_is_refused_with_those_that_are(seven: Any, tools: Any, order_by: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        listed(seven, order_by=order_by)
    assert tools.reason_of(refused.value) == "InvalidRequest"
    assert "create_time, session_id, step" in str(refused.value)


def test_search_looks_at_id_name_recipe_and_labels_whatever_the_case(hosting: Any) -> None:
    with hosting() as server:
        make(server, "plain")
        make(server, "by-zebra-id")
        make(server, "by-name", display_name="The ZEBRA run")
        make(server, "by-label", labels={"animal": "zebra"})
        make(server, "by-recipe", optimizer={"recipe": {"name": "adam"}})
        assert listed(server, search="Zebra") == ["by-zebra-id", "by-name", "by-label"]
        assert listed(server, search="animal=zeb") == ["by-label"]
        assert listed(server, search="ADAM") == ["by-recipe"]
        assert listed(server, search="zebra", labels={"animal": "zebra"}) == ["by-label"]
        assert listed(server, search="ostrich") == []
        with pytest.raises(grpc.RpcError):
            listed(server, search="ß" * 129)


def test_search_does_not_look_at_the_name_of_the_tenant(hosting: Any, tmp_path: Any) -> None:
    token = TokenFile(tmp_path).create("ann", role="operator", tenant="acme")
    with hosting(data_folder=tmp_path) as server:
        spec = session_pb2.SessionSpec(
            layout={"tensors": [{"name": "w", "shape": [2]}]},  # type: ignore[arg-type]
            optimizer={"recipe": {"name": "sgd"}},  # type: ignore[arg-type]
        )
        metadata = (("authorization", f"Bearer {token}"),)
        server.sessions.CreateSession(
            session_pb2.CreateSessionRequest(session_id="theirs", spec=spec), metadata=metadata, timeout=10
        )
        for text, found in (("the", 1), ("acme", 0)):
            request = session_pb2.ListSessionsRequest(search=text)
            assert len(server.sessions.ListSessions(request, metadata=metadata, timeout=10).sessions) == found


def test_sessions_that_were_set_aside_end_the_list_in_every_order_and_count_into_pages(hosting: Any) -> None:
    with hosting() as server:
        for session_id in ("b", "c"):
            make(server, session_id)

        def set_aside(engine: Any) -> None:
            for name in ("a-damaged", "d-damaged"):
                engine.quarantined[name] = Quarantined(problem="its checksum", record=None)

        server.inside(set_aside)
        for order_by in ORDERS:
            found = list(pages(server, 3, order_by=order_by))
            assert [len(page) for page in found] == [3, 1]
            assert [*found[0][2:], *found[1]] == ["a-damaged", "d-damaged"]
        assert listed(server, search="D-DAM") == ["d-damaged"]
        assert listed(server, labels={"a": "b"}) == []
