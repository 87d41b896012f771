"""The desk: an operator reaches its own tenant's tokens and doings, within its own pattern, and no others."""

import itertools
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermosis_server.access.audit import AuditEntry, AuditLog
from hermosis_server.access.desk import MAX_LIFETIME_S, Desk, lies_within
from hermosis_server.access.tokens import TokenFile
from hermosis_server.errors import InvalidRequest, PermissionDenied, Unauthenticated
from hermosis_server.identity import LOCAL_OPERATOR, Identity, Role

ANN = Identity(subject="ann", role=Role.OPERATOR)
HALF = Identity(subject="half", role=Role.OPERATOR, sessions="run-*")
STRANGER = Identity(subject="stranger", role=Role.OPERATOR, tenant="acme")


def make(
    desk: Desk, by: Identity, name: str, *, role: str = "VIEWER", sessions: str = "", lifetime_s: float = 0
) -> str:
    return desk.create(by, name=name, role=role, sessions=sessions, lifetime_s=lifetime_s).secret


def names(desk: Desk, by: Identity) -> list[str]:
    return [record.name for record in desk.tokens(by)]


def test_a_token_is_of_its_makers_tenant_and_pattern(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    for by in (ANN, HALF, STRANGER):
        secret = make(desk, by, f"by-{by.subject}")
        admitted = TokenFile(tmp_path).admit(secret).identity
        assert (admitted.tenant, admitted.sessions, admitted.role) == (by.tenant, by.sessions, Role.VIEWER)


def test_an_operator_sees_and_revokes_what_is_within_its_reach_and_no_more(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    make(desk, ANN, "all")
    make(desk, ANN, "runs", sessions="run-1*")
    make(desk, STRANGER, "theirs")
    assert names(desk, ANN) == ["all", "runs"]
    assert names(desk, HALF) == ["runs"]
    assert names(desk, STRANGER) == ["theirs"]
    for by, name in ((ANN, "theirs"), (HALF, "all"), (STRANGER, "all"), (ANN, "never-was")):
        with pytest.raises(InvalidRequest, match="there is no token"):
            desk.revoke(by, name)
    assert desk.revoke(HALF, "runs").revoked_s is not None
    assert [record.name for record in desk.tokens(ANN) if record.revoked_s is None] == ["all"]


def test_tenants_may_call_their_tokens_alike(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    secrets = {by.tenant: make(desk, by, "rig") for by in (ANN, STRANGER)}
    with pytest.raises(InvalidRequest, match="there is a token rig"):
        make(desk, ANN, "rig")
    desk.revoke(STRANGER, "rig")
    tokens = TokenFile(tmp_path)
    assert tokens.admit(secrets["default"]).identity.tenant == "default"
    with pytest.raises(Unauthenticated):
        tokens.admit(secrets["acme"])


def test_a_name_that_several_tenants_have_is_revoked_for_the_one_that_is_named(tmp_path: Path) -> None:
    tokens = TokenFile(tmp_path)
    for tenant in ("default", "acme"):
        tokens.create("rig", role="viewer", tenant=tenant)
    with pytest.raises(InvalidRequest, match="default, acme"):
        tokens.revoke("rig")
    assert tokens.revoke("rig", tenant="acme").tenant == "acme"
    assert tokens.revoke("rig").tenant == "default"


@pytest.mark.parametrize("sessions", ["*", "run*", "?un-1", "other", "*run-1"])
def test_no_token_sees_more_than_its_maker(tmp_path: Path, sessions: str) -> None:
    with pytest.raises(PermissionDenied, match=r"within run-\*"):
        make(Desk(tmp_path), HALF, "more", sessions=sessions)
    assert TokenFile(tmp_path).records == []


PATTERNS = st.text("ab-*?", min_size=1, max_size=5)
IDS = ["".join(letters) for size in range(5) for letters in itertools.product("ab-", repeat=size)]


@given(PATTERNS, PATTERNS)
def test_what_lies_within_a_pattern_matches_nothing_else(inner: str, outer: str) -> None:
    if lies_within(inner, outer):
        assert all(fnmatchcase(each, outer) for each in IDS if fnmatchcase(each, inner))


@pytest.mark.parametrize(
    ("inner", "outer"),
    [("run-1", "run-*"), ("run-1*", "run-*"), ("*", "*"), ("a?", "a?"), ("ab", "a?"), ("a-?-b", "a*b")],
)
def test_what_plainly_lies_within_is_allowed(inner: str, outer: str) -> None:
    assert lies_within(inner, outer)


def test_where_nobody_is_asked_nobody_makes_the_token_that_shuts_the_others_out(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    with pytest.raises(PermissionDenied, match="hermosis token create"):
        make(desk, LOCAL_OPERATOR, "mine", role="OPERATOR")
    assert not (tmp_path / "tokens.json").exists()
    assert desk.tokens(LOCAL_OPERATOR) == []


@pytest.mark.parametrize("lifetime_s", [-1.0, float("nan"), float("inf"), MAX_LIFETIME_S * 1.1])
def test_a_lifetime_that_is_none_is_refused(tmp_path: Path, lifetime_s: float) -> None:
    with pytest.raises(InvalidRequest, match="lifetime_s"):
        make(Desk(tmp_path), ANN, "long", lifetime_s=lifetime_s)


def note(folder: Path, *entries: tuple[Identity, str], limit_bytes: int = 1 << 20) -> None:
    log = AuditLog(folder, limit_bytes=limit_bytes)
    for by, session in entries:
        log.write(
            AuditEntry(
                subject=by.subject,
                tenant=by.tenant,
                role="operator",
                method="PauseSession",
                session=session,
                request_id="",
                outcome="OK",
            )
        )
    log.close()


def told(folder: Path, by: Identity, limit: int = 100) -> list[str]:
    return [entry.session for _, entry in Desk(folder).audit(by, limit)]


def test_the_audit_shows_the_newest_of_ones_own_tenant(tmp_path: Path) -> None:
    note(tmp_path, *((by, f"run-{number}") for number in range(5) for by in (ANN, STRANGER)), (ANN, "acme"))
    assert told(tmp_path, STRANGER) == [f"run-{number}" for number in range(4, -1, -1)]
    assert told(tmp_path, ANN, 2) == ["acme", "run-4"]
    assert told(tmp_path, Identity(subject="x", tenant="nobody")) == []


def test_the_audit_of_a_limited_operator_is_of_its_sessions_and_of_what_it_did(tmp_path: Path) -> None:
    note(tmp_path, (ANN, "run-1"), (ANN, "other"), (ANN, ""), (HALF, ""))
    assert told(tmp_path, HALF) == ["", "run-1"]


def test_the_audit_is_read_across_all_its_files_from_the_end(tmp_path: Path) -> None:
    note(tmp_path, *((ANN, f"run-{number}") for number in range(20)), limit_bytes=700)
    assert len(list(tmp_path.glob("audit.jsonl*"))) == 5
    read = told(tmp_path, ANN)
    assert read == [f"run-{number}" for number in range(19, 19 - len(read), -1)]
    assert 12 < len(read) < 20


def test_the_audit_is_read_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note(tmp_path, *((ANN, f"run-{number}") for number in range(9)))
    for size in (1, 7, 150, 151):
        monkeypatch.setattr("hermosis_server.access.audit_reader._BLOCK_BYTES", size)
        assert told(tmp_path, ANN) == [f"run-{number}" for number in range(8, -1, -1)]


def test_a_line_that_a_crash_cut_off_is_left_out(tmp_path: Path) -> None:
    note(tmp_path, (ANN, "whole"), (ANN, "cut"))
    path = tmp_path / "audit.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert told(tmp_path, ANN) == ["whole"]
    path.write_bytes(path.read_bytes() + b'{"tenant": "default", "time_s": null}\n"default"\n\xff"default"\n')
    assert told(tmp_path, ANN) == ["whole"]


def test_secrets_are_in_no_file(tmp_path: Path) -> None:
    secret = make(Desk(tmp_path), ANN, "mine")
    assert re.fullmatch(r"hmt_[\w-]{43}", secret)
    assert all(secret not in path.read_text() for path in tmp_path.iterdir())
