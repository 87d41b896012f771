"""AccessService on a real server: tokens that let in and are told once, and a log of who did what."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hermosis.v1 import access_pb2, access_pb2_grpc
from hermosis_client import Client, Role, errors
from hermosis_server.access.tokens import TokenFile


class Asking:
    """A server that asks for tokens, and a client for each of three operators."""

    def __init__(self, service: Any, folder: Path) -> None:
        self.service = service
        self.folder = folder
        self.ann, self.half, self.stranger = (
            self.under(TokenFile(folder).create(name, role="operator", tenant=tenant, sessions=sessions))
            for name, tenant, sessions in (
                ("ann", "default", "*"),
                ("half", "default", "mine-*"),
                ("stranger", "acme", "*"),
            )
        )

    def under(self, token: str) -> Client:
        return Client(self.service.address, token=token, timeout_s=20)


@pytest.fixture
def asking(hosting: Any, tmp_path: Path) -> Iterator[Asking]:
    with hosting(require_token=True, data_folder=tmp_path) as service:
        asking = Asking(service, tmp_path)
        yield asking
        for client in (asking.ann, asking.half, asking.stranger):
            client.close()


def test_a_token_lets_in_as_what_it_was_made_for_until_it_is_revoked(asking: Asking) -> None:
    made = asking.ann.create_token("rig", "worker", sessions="run-*", lifetime_s=3600)
    assert (made.info.role, made.info.tenant, made.info.sessions) == (Role.WORKER, "default", "run-*")
    assert made.info.expire_time_s == pytest.approx(made.info.create_time_s + 3600)
    assert made.secret not in repr(made)
    with asking.under(made.secret) as rig:
        assert rig.capabilities()
        with pytest.raises(errors.PermissionDenied):
            rig.create_session({"w": (2,)}, "sgd", session_id="run-1")
        with pytest.raises(errors.PermissionDenied):
            rig.tokens()
        assert asking.ann.revoke_token("rig").revoke_time_s is not None
        with pytest.raises(errors.Unauthenticated, match="revoked"):
            rig.capabilities()
    listed = {token.name: token for token in asking.ann.tokens()}
    assert list(listed) == ["ann", "half", "rig"]
    assert listed["rig"].revoke_time_s is not None
    assert listed["ann"].expire_time_s is None


def test_a_call_that_comes_again_is_answered_with_the_same_token(asking: Asking) -> None:
    stub = access_pb2_grpc.AccessServiceStub(asking.service.channel)

    def create(by: Client, name: str) -> Any:
        request = access_pb2.CreateTokenRequest(request_id="once", name=name, role=access_pb2.ROLE_VIEWER)
        return stub.CreateToken(request, metadata=by._connection.metadata, timeout=20)

    first = create(asking.ann, "again")
    assert create(asking.ann, "again").secret == first.secret
    assert create(asking.half, "other").secret != first.secret
    assert [token.name for token in asking.ann.tokens()].count("again") == 1


def test_operators_of_other_tenants_and_patterns_meet_nothing_of_each_other(asking: Asking) -> None:
    asking.ann.create_token("shared", "viewer")
    asking.stranger.create_token("shared", "viewer")
    asking.half.create_token("mine", "viewer")
    assert [token.name for token in asking.ann.tokens()] == ["ann", "half", "shared", "mine"]
    assert [token.name for token in asking.half.tokens()] == ["half", "mine"]
    assert [token.name for token in asking.stranger.tokens()] == ["stranger", "shared"]
    assert asking.half.tokens()[1].sessions == "mine-*"
    with pytest.raises(errors.PermissionDenied):
        asking.half.create_token("more", "viewer", sessions="*")
    for who, name in ((asking.half, "shared"), (asking.stranger, "ann"), (asking.ann, "stranger")):
        with pytest.raises(errors.InvalidRequest, match="there is no token"):
            who.revoke_token(name)
    asking.stranger.revoke_token("shared")
    assert next(token for token in asking.ann.tokens() if token.name == "shared").revoke_time_s is None


def test_what_cannot_be_a_token_is_refused_by_its_field(asking: Asking) -> None:
    wrong = {
        "name": access_pb2.CreateTokenRequest(name="a b", role=access_pb2.ROLE_VIEWER),
        "role": access_pb2.CreateTokenRequest(name="a"),
        "sessions": access_pb2.CreateTokenRequest(name="a", role=access_pb2.ROLE_VIEWER, sessions="A[b]"),
        "lifetime_s": access_pb2.CreateTokenRequest(name="a", role=access_pb2.ROLE_VIEWER, lifetime_s=-1),
    }
    for field, request in wrong.items():
        with pytest.raises(errors.InvalidRequest) as refused:
            asking.ann._connection.call(asking.ann._connection.access_service.CreateToken, request)
        assert refused.value.field == field
    with pytest.raises(errors.InvalidRequest, match="there is a token ann"):
        asking.ann.create_token("ann", "viewer")
    with pytest.raises(ValueError, match="viewer, worker, operator"):
        asking.ann.create_token("a", "king")  # type: ignore[arg-type]


def test_the_audit_tells_who_did_what_and_not_who_looked(asking: Asking) -> None:
    made = asking.ann.create_token("rig", "worker")
    asking.ann.create_session({"w": (2,)}, "sgd", session_id="theirs")
    asking.half.create_session({"w": (2,)}, "sgd", session_id="mine-1").close()
    asking.stranger.create_session({"w": (2,)}, "sgd", session_id="secret")
    asking.ann.revoke_token("rig")
    asking.ann.tokens()
    told = [(entry.subject, entry.method, entry.session_id, entry.token) for entry in asking.ann.audit()]
    assert told == [
        ("ann", "RevokeToken", "", "rig"),
        ("half", "CloseSession", "mine-1", ""),
        ("half", "CreateSession", "mine-1", ""),
        ("ann", "CreateSession", "theirs", ""),
        ("ann", "CreateToken", "", "rig"),
    ]
    assert [entry.method for entry in asking.half.audit()] == ["CloseSession", "CreateSession"]
    assert [entry.session_id for entry in asking.stranger.audit()] == ["secret"]
    [newest] = asking.ann.audit(1)
    assert (newest.role, newest.outcome, newest.method) == (Role.OPERATOR, "OK", "RevokeToken")
    assert newest.request_id
    assert made.secret not in (asking.folder / "audit.jsonl").read_text()


def test_a_server_that_asks_nobody_makes_no_token_and_stays_open(hosting: Any) -> None:
    with hosting() as service, Client(service.address, timeout_s=20) as client:
        with pytest.raises(errors.PermissionDenied, match="hermosis token create"):
            client.create_token("first", "operator")
        assert client.tokens() == []
        assert client.capabilities()
        assert [(entry.subject, entry.method, entry.outcome) for entry in client.audit()] == [
            ("local", "CreateToken", "PermissionDenied")
        ]
