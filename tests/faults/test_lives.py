"""What one life of a session leaves on disk is never taken for another's: regressions that the kills have found."""

from pathlib import Path

import numpy as np
import pytest
from tests.faults.conftest import Start

from hermosis_client import Client, Durability, Session
from hermosis_client.errors import HermosisError
from hermosis_client.records import SessionStatus

P = 8
JOURNAL = Durability(mode="journal")


def begun(client: Client, session_id: str = "a", durability: Durability = JOURNAL) -> Session:
    session = client.create_session({"w": (P,)}, "adamw", session_id=session_id, durability=durability)
    session.initialise(np.zeros(P, np.float32))
    return session


def push(session: Session, count: int = 1) -> int:
    """Steps, each durable; gives the step."""
    with session.worker("w", ack_level="durable") as worker:
        worker.pull()
        for _ in range(count):
            step = worker.exchange(np.ones(P, np.float32))[0].step
    return step


def test_session_that_was_restored_is_ready_after_a_crash(start: Start) -> None:
    session = begun(start()[1])
    push(session)
    session.restore(session.snapshot().snapshot_id)
    assert start()[1].session("a").info().status is SessionStatus.READY


def test_steps_after_a_replacement_that_a_crash_cut_in_half_are_durable(start: Start) -> None:
    session = begun(start()[1])
    push(session)
    exported = session.export_state()
    # The second record since its start is the replacement's; the first is the recovery's.
    _, client = start("record.written=kill@2", timeout_s=1.0)
    with pytest.raises(HermosisError):
        client.session("a").import_state(exported)
    assert push(start()[1].session("a"), 2) == 3
    assert start()[1].session("a").info().step == 3


def test_session_does_not_inherit_the_steps_of_a_closed_one_of_its_name(start: Start) -> None:
    _, client = start()
    session = begun(client)
    push(session, 3)
    session.close()
    fresh = begun(client).digest()
    session = start()[1].session("a")
    assert (session.info().step, session.digest()) == (0, fresh)


def test_session_made_after_a_restart_does_not_inherit_them_either(start: Start) -> None:
    session = begun(start()[1])
    push(session, 3)
    session.close()
    session = begun(start()[1])
    fresh = session.digest()
    session = start()[1].session("a")
    assert (session.info().step, session.digest()) == (0, fresh)


def test_journal_lets_go_of_sessions_that_were_closed_before_a_restart(start: Start, tmp_path: Path) -> None:
    _, client = start()
    session = begun(client, "gone")
    push(session, 60)  # three segments
    session.close()
    _, client = start()
    session = begun(client, "stays", Durability(mode="journal", snapshot_every_steps=5))
    push(session, 200)
    segments = list((tmp_path / "data" / "journal").glob("*.seg"))
    assert len(segments) < 6, f"{len(segments)} segments are kept"
