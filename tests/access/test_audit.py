"""The audit log: a line for each management call, and nothing of what was sent."""

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.forking import WarmServer

from hermosis.lines import redacted
from hermosis_client import Client, errors
from hermosis_server.access.audit import KEPT_FILES, AuditEntry, AuditLog
from hermosis_server.access.tokens import TokenFile


def entry(session: str) -> AuditEntry:
    return AuditEntry(
        subject="s", tenant="t", role="operator", method="M", session=session, request_id="r", outcome="OK"
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_full_file_makes_room_and_the_oldest_goes(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, limit_bytes=600)
    for number in range(40):
        log.write(entry(f"number-{number}"))
    files = [log.path, *(log.path.with_name(f"audit.jsonl.{number}") for number in range(1, KEPT_FILES + 1))]
    assert set(tmp_path.iterdir()) == set(files)
    assert all(file.stat().st_size <= 600 for file in files)
    kept = [line["session"] for file in reversed(files) for line in lines(file)]
    assert kept == [f"number-{number}" for number in range(40 - len(kept), 40)]
    assert 10 < len(kept) < 40
    log.close()


def test_a_log_that_is_opened_again_goes_on_where_it_was(tmp_path: Path) -> None:
    for number in range(2):
        log = AuditLog(tmp_path)
        log.write(entry(f"number-{number}"))
        log.close()
    assert [line["session"] for line in lines(log.path)] == ["number-0", "number-1"]
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600


def test_what_cannot_be_written_does_not_stop_the_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "audit.jsonl").mkdir()
    AuditLog(tmp_path).write(entry("lost"))
    assert "audit_not_written" in caplog.text
    assert "lost" in caplog.text


def test_names_cannot_break_out_of_their_line(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.write(entry('a"}\n{"subject": "forged"\r\u2028'))
    log.close()
    assert len(log.path.read_text().splitlines()) == 1


SECRET = "weights-that-nobody-may-read"


@pytest.fixture(scope="module")
def server() -> Iterator[WarmServer]:
    with WarmServer(arguments=["--require-token", "--log-level", "debug", "--log-format", "json"]) as server:
        yield server


def test_a_real_server_notes_who_managed_what_and_logs_no_secret(server: WarmServer) -> None:
    tokens = TokenFile(Path(server.data_folder))
    made = {role: tokens.create(role, role=role) for role in ("operator", "worker", "viewer")}
    wrong = "hmt_" + "w" * 43
    forged = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJmb3JnZWQifQ.c2lnbmF0dXJl"
    for token in (wrong, forged):
        with Client(server.address, token=token) as nobody, pytest.raises(errors.Unauthenticated):
            nobody.capabilities()
    with (
        Client(server.address, token=made["operator"]) as operator,
        Client(server.address, token=made["worker"]) as worker,
        Client(server.address, token=made["viewer"]) as viewer,
    ):
        session = operator.create_session({SECRET: (2,)}, "sgd", session_id="noted", display_name=SECRET)
        worker.session("noted").initialise({SECRET: np.ones(2, np.float32)})
        with worker.session("noted").worker() as hand:
            hand.exchange({SECRET: np.ones(2, np.float32)})
        with pytest.raises(errors.PermissionDenied):
            viewer.session("noted").pause()
        with pytest.raises(errors.SessionExists):
            operator.create_session({"w": (3,)}, "sgd", session_id="noted")
        chosen = operator.create_session({"w": (3,)}, "sgd").session_id
        session.pause()
        session.close()
    told = lines(Path(server.data_folder) / "audit.jsonl")
    assert [(line["subject"], line["method"], line["session"], line["outcome"]) for line in told] == [
        ("operator", "CreateSession", "noted", "OK"),
        ("worker", "InitialiseParameters", "noted", "OK"),
        ("viewer", "PauseSession", "", "PermissionDenied"),  # What somebody sends who may not is not even parsed.
        ("operator", "CreateSession", "noted", "SessionExists"),
        ("operator", "CreateSession", chosen, "OK"),
        ("operator", "PauseSession", "noted", "OK"),
        ("operator", "CloseSession", "noted", "OK"),
    ]
    assert all(line["tenant"] == "default" and line["time_s"] > 1e9 for line in told)
    assert told[0]["request_id"]
    assert SECRET not in (Path(server.data_folder) / "audit.jsonl").read_text()
    log = server.log_tail(limit_bytes=1 << 20)
    assert len(log) > 100
    for secret in (*made.values(), wrong, forged):
        assert secret not in log
        assert secret.removeprefix("hmt_") not in log


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("authorization: Bearer abc.def", "authorization: Bearer [secret]"),
        ("{'authorization': 'bearer xyz'}", "{'authorization': 'bearer [secret]'}"),
        ("token hmt_A-b_9 came", "token [secret] came"),
        ("got eyJhbGciOi.eyJzdWIi.c2ln, wanted none", "got [secret], wanted none"),
        ("event=serving session=hm", "event=serving session=hm"),
    ],
)
def test_secrets_are_taken_out_of_lines(line: str, kept: str) -> None:
    assert redacted(line) == kept


def test_the_log_of_a_real_process_is_redacted_whatever_it_is_made_of() -> None:
    import subprocess
    import sys

    program = """
import logging
from hermosis_server import logs
for style in ("text", "json"):
    logs.configure(level="debug", style=style)
    log = logging.getLogger("x")
    log.debug("event=call metadata=%r", (("authorization", "Bearer hmt_SECRET-1"),))
    try:
        raise ValueError("bad token hmt_SECRET-2")
    except ValueError:
        log.exception("failed")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.count("[secret]") >= 4
    assert "SECRET" not in done.stderr
