"""What comes back: servers that start on the folder of another one, as it lay there at some moment.

A copy of the folder of a running server is what a crash at that moment would have left, without the wait for a process.
"""

import dataclasses
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from hermosis import wire
from hermosis.v1 import dynamics_pb2, gradient_pb2, session_pb2, types_pb2
from hermosis_server import failpoints
from hermosis_server.dynamics import RECIPES
from hermosis_server.engine import resident as on_device
from hermosis_server.storage import snapshot_file
from hermosis_server.storage.disk import Disk

DURABLE = types_pb2.ACK_LEVEL_DURABLE
RNG = np.random.default_rng(3)
GRADIENTS = RNG.standard_normal((20, 5)).astype(np.float32)


def kept(mode: str, steps: int = 0, seconds: float = 0.0) -> types_pb2.Durability:
    return types_pb2.Durability(
        mode=types_pb2.DurabilityMode.Value(f"DURABILITY_MODE_{mode}"),
        snapshot_every_steps=steps,
        snapshot_every_s=seconds or (0 if steps else 1e6),
    )


class Folders:
    """Servers, each on a folder of its own."""

    def __init__(self, host: Any, root: Path) -> None:
        self._host, self.root, self._count = host, root, 0

    def start(self, folder: Path | None = None, **settings: Any) -> Any:
        if folder is None:
            folder = self.root / "first"
            folder.mkdir()
        hosted = self._host(folder=folder, **settings)
        hosted.server.folder = folder
        return hosted.server

    def crashed(self, server: Any, **settings: Any) -> Any:
        """A server on what a crash would leave now."""
        return self.start(self.copy(server), **settings)

    def copy(self, server: Any) -> Path:
        self._count += 1
        copy = self.root / f"copy-{self._count}"
        shutil.copytree(server.folder, copy)
        return copy


@pytest.fixture
def folders(host: Any, tmp_path: Path) -> Iterator[Folders]:
    yield Folders(host, tmp_path)
    failpoints.arm("")


def push(server: Any, session: Any, numbers: range, **changed: Any) -> Any:
    for number in numbers:
        result = server.push(session, GRADIENTS[number], number, **{"ack_level": DURABLE} | changed)
    return result


def get(server: Any, session: Any) -> session_pb2.Session:
    return server.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session.session_id), timeout=10).session


def pull(server: Any, session: Any) -> Any:
    request = gradient_pb2.PullRequest(session_id=session.session_id, worker_id="worker")
    return server.gradients.Pull(request, timeout=10)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_a_journalled_session_comes_back_as_it_was_and_goes_on_like_its_twin(folders: Any, recipe: str) -> None:
    first = folders.start()
    session = first.create(5, recipe, parameters={"lr": 0.1}, start=1.0, durability=kept("JOURNAL", steps=4))
    assert push(first, session, range(1, 8), loss=1.0).durable_step == 7
    second = folders.crashed(first)
    assert second.digest(session) == first.digest(session)
    there = get(second, session)
    assert (there.step, there.durable_step, there.generation) == (7, 7, session.generation + 1)
    assert pull(second, session).next_sequence == 8
    for server in (first, second):
        push(server, session, range(8, 12), loss=1.0)
    assert second.digest(session) == first.digest(session), "restored is not uninterrupted"
    cold = second.create(5, recipe, parameters={"lr": 0.1}, start=1.0)
    assert second.digest(cold) != second.digest(session)


def test_what_was_acknowledged_as_durable_is_there_without_any_snapshot_after_it(folders: Any) -> None:
    first = folders.start()
    session = first.create(5, durability=kept("JOURNAL"))
    for step in range(1, 6):
        push(first, session, range(step, step + 1))
        assert get(folders.crashed(first), session).step == step


def test_a_repeat_after_recovery_is_answered_with_the_recorded_outcome(folders: Any, tools: Any) -> None:
    first = folders.start()
    session = first.create(5, durability=kept("JOURNAL"))
    push(first, session, range(1, 4))
    second = folders.crashed(first)
    before = second.digest(session)
    again = push(second, session, range(3, 4))
    assert (again.duplicate, again.step, again.outcome) == (True, 3, types_pb2.OUTCOME_APPLIED)
    with pytest.raises(grpc.RpcError) as caught:
        second.push(session, GRADIENTS[9], 3)
    assert tools.reason_of(caught.value) == "PayloadMismatch"
    with pytest.raises(grpc.RpcError) as caught:
        second.push(session, GRADIENTS[9], 5)
    assert tools.reason_of(caught.value) == "InvalidRequest"
    assert second.digest(session) == before


@pytest.mark.parametrize("mode", ["JOURNAL", "SNAPSHOT"])
def test_a_contribution_that_changed_nothing_keeps_its_number(folders: Any, mode: str) -> None:
    first = folders.start()
    session = first.create(5, durability=kept(mode))
    push(first, session, range(1, 3))
    assert first.push(session, [np.nan] * 5, 3, base_step=2).outcome == types_pb2.OUTCOME_NON_FINITE_GRADIENT
    first.sessions.SnapshotSession(session_pb2.SnapshotSessionRequest(session_id=session.session_id), timeout=10)
    second = folders.crashed(first)
    assert pull(second, session).next_sequence == 4
    again = second.push(session, [np.nan] * 5, 3, base_step=2)
    assert (again.duplicate, again.outcome) == (True, types_pb2.OUTCOME_NON_FINITE_GRADIENT)
    assert push(second, session, range(4, 5), base_step=2).step == 3


def test_a_snapshot_session_goes_back_to_its_last_snapshot_and_had_said_so(folders: Any, tools: Any) -> None:
    first = folders.start()
    session = first.create(5, durability=kept("SNAPSHOT", steps=4))
    for number in range(1, 7):
        result = push(first, session, range(number, number + 1), ack_level=types_pb2.ACK_LEVEL_APPLIED)
    tools.poll(lambda: get(first, session).durable_step >= 4)
    assert result.step == 6
    second = folders.crashed(first)
    there = get(second, session)
    assert there.step == there.durable_step == get(first, session).durable_step < 6
    assert pull(second, session).next_sequence == there.step + 1
    with pytest.raises(grpc.RpcError) as caught:  # a worker that believes in the lost steps
        push(second, session, range(7, 8), generation=session.generation)
    assert tools.reason_of(caught.value) == "StaleGeneration"


def test_durable_is_kept_by_a_snapshot_where_there_is_no_journal(folders: Any) -> None:
    first = folders.start()
    session = first.create(5, durability=kept("SNAPSHOT"))
    assert push(first, session, range(1, 4)).durable_step == 3
    assert get(folders.crashed(first), session).step == 3


def test_a_session_that_nothing_is_kept_of_is_gone(folders: Any, tools: Any) -> None:
    first = folders.start()
    session = first.create(5, durability=kept("NONE"))
    push(first, session, range(1, 2), ack_level=types_pb2.ACK_LEVEL_APPLIED)
    with pytest.raises(grpc.RpcError) as caught:
        push(first, session, range(2, 3))
    assert tools.reason_of(caught.value) == "InvalidRequest"
    with pytest.raises(grpc.RpcError) as caught:
        get(folders.crashed(first), session)
    assert tools.reason_of(caught.value) == "SessionNotFound"


def test_a_closed_session_stays_closed_and_its_id_is_free(folders: Any, tools: Any) -> None:
    first = folders.start()
    session = first.create(5, durability=kept("JOURNAL"))
    push(first, session, range(1, 3))
    first.sessions.CloseSession(session_pb2.CloseSessionRequest(session_id=session.session_id), timeout=10)
    second = folders.crashed(first)
    with pytest.raises(grpc.RpcError) as caught:
        get(second, session)
    assert tools.reason_of(caught.value) == "SessionNotFound"
    request = session_pb2.CreateSessionRequest(session_id=session.session_id, spec=session.spec)
    assert second.sessions.CreateSession(request, timeout=10).session.step == 0


def test_what_a_session_is_beside_its_state_comes_back_too(folders: Any) -> None:
    first = folders.start()
    session = first.create(
        5, durability=kept("JOURNAL"), display_name="net", labels={"a": "b"}, consistency=types_pb2.Consistency(mode=3)
    )
    push(first, session, range(1, 3))
    edit = session_pb2.SessionEdit(lr_scale=0.5, display_name="other")
    request = session_pb2.UpdateSessionRequest(session_id=session.session_id, edit=edit)
    request.update_mask.paths.extend(["lr_scale", "display_name"])
    first.sessions.UpdateSession(request, timeout=10)
    push(first, session, range(3, 5))
    first.sessions.PauseSession(session_pb2.PauseSessionRequest(session_id=session.session_id), timeout=10)
    second = folders.crashed(first)
    here, there = get(first, session), get(second, session)
    assert there.status == types_pb2.SESSION_STATUS_PAUSED
    assert second.digest(session) == first.digest(session), "replay took another learning rate"
    for name in ("spec", "lr_scale", "etag", "create_time", "layout_digest"):
        assert getattr(here, name) == getattr(there, name), name


def test_an_edit_of_the_dynamics_is_replayed_between_its_steps(folders: Any) -> None:
    first = folders.start()
    session = first.create(5, "hermosis", parameters={"lr": 0.1}, start=1.0, durability=kept("JOURNAL"))
    push(first, session, range(1, 4))
    profile = dynamics_pb2.ThermalProfile(exponential=dynamics_pb2.ExponentialProfile(momentum_retention=0.5))
    request = session_pb2.UpdateSessionRequest(
        session_id=session.session_id, edit=session_pb2.SessionEdit(thermal_profile=profile)
    )
    request.update_mask.paths.append("thermal_profile")
    first.sessions.UpdateSession(request, timeout=10)
    push(first, session, range(4, 7))
    second = folders.crashed(first)
    assert second.digest(session) == first.digest(session)
    assert get(second, session).spec.optimizer == get(first, session).spec.optimizer
    for server in (first, second):
        push(server, session, range(7, 9))
    assert second.digest(session) == first.digest(session)


def test_a_restored_session_fences_workers_and_comes_back_restored(folders: Any, tools: Any) -> None:
    first = folders.start()
    session = first.create(5, durability=kept("JOURNAL"))
    push(first, session, range(1, 4))
    request = session_pb2.SnapshotSessionRequest(session_id=session.session_id)
    snapshot = first.sessions.SnapshotSession(request, timeout=10)
    assert (snapshot.step, snapshot.state_digest) == (3, first.digest(session))
    push(first, session, range(4, 7))
    back = session_pb2.RestoreSessionRequest(session_id=session.session_id, snapshot_id=snapshot.snapshot_id)
    restored = first.sessions.RestoreSession(back, timeout=10).session
    assert (restored.step, restored.durable_step, restored.generation) == (3, 3, session.generation + 1)
    assert first.digest(session) == snapshot.state_digest
    with pytest.raises(grpc.RpcError) as caught:
        push(first, session, range(7, 8), generation=session.generation)
    assert tools.reason_of(caught.value) == "StaleGeneration"
    push(first, session, range(4, 6))
    second = folders.crashed(first)
    assert get(second, session).step == 5
    assert second.digest(session) == first.digest(session), "entries of the history that was left were replayed"


def test_an_unknown_snapshot_is_refused_and_those_there_are_named(folders: Any, tools: Any) -> None:
    first = folders.start()
    session = first.create(5, durability=kept("SNAPSHOT"))
    request = session_pb2.RestoreSessionRequest(session_id=session.session_id, snapshot_id="7-7")
    with pytest.raises(grpc.RpcError) as caught:
        first.sessions.RestoreSession(request, timeout=10)
    assert tools.reason_of(caught.value) == "InvalidRequest"
    assert "0-1" in caught.value.details()


def test_a_session_whose_workers_hold_the_parameters_comes_back(folders: Any) -> None:
    first = folders.start()
    session = first.create(
        5, "adamw", parameters_on=types_pb2.PARAMETERS_ON_WORKER, parameters={"lr": 0.1, "weight_decay": 0.0},
        durability=kept("JOURNAL"),
    )  # fmt: skip
    push(first, session, range(1, 6))
    second = folders.crashed(first)
    assert second.digest(session) == first.digest(session)


def test_a_session_without_its_parameters_waits_for_them_after_a_crash_too(folders: Any) -> None:
    first = folders.start()
    session = first.create(5, durability=kept("JOURNAL"))
    request = session_pb2.CreateSessionRequest(session_id="early", spec=session.spec)
    early = first.sessions.CreateSession(request, timeout=10).session
    second = folders.crashed(first)
    assert get(second, early).status == types_pb2.SESSION_STATUS_CREATING


def test_a_creation_that_comes_again_after_a_crash_gives_the_same_session(folders: Any, tools: Any) -> None:
    first = folders.start()
    spec = first.create(5).spec
    spec.durability.CopyFrom(kept("JOURNAL"))
    request = session_pb2.CreateSessionRequest(request_id="once", spec=spec)
    session = first.sessions.CreateSession(request, timeout=10).session
    second = folders.crashed(first)
    assert second.sessions.CreateSession(request, timeout=10).session.session_id == session.session_id
    request.session_id, request.request_id = session.session_id, "twice"
    with pytest.raises(grpc.RpcError) as caught:
        second.sessions.CreateSession(request, timeout=10)
    assert tools.reason_of(caught.value) == "SessionExists"


def newest(folder: Path, session: Any) -> Path:
    return max((folder / "sessions" / session.session_id).glob("*.safetensors"))


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0x10
    path.write_bytes(raw)


def test_a_damaged_snapshot_costs_a_journalled_session_nothing(folders: Any) -> None:
    first = folders.start()
    session = first.create(5, "adamw", parameters={"lr": 0.1}, durability=kept("JOURNAL", steps=3))
    for number in range(1, 9):
        push(first, session, range(number, number + 1))
    copy = folders.copy(first)
    flip(newest(copy, session), -3)
    second = folders.start(copy)
    assert second.digest(session) == first.digest(session)


def test_a_damaged_session_is_set_aside_and_the_others_go_on(folders: Any, tools: Any) -> None:
    first = folders.start()
    victim, other = (first.create(5, durability=kept("SNAPSHOT")) for _ in range(2))
    for session in (victim, other):
        push(first, session, range(1, 4))
    copy = folders.copy(first)
    flip(newest(copy, victim), -3)
    second = folders.start(copy)
    assert second.digest(other) == first.digest(other)
    with pytest.raises(grpc.RpcError) as caught:
        get(second, victim)
    assert tools.reason_of(caught.value) == "CorruptState"
    listed = {one.session_id: one for one in second.sessions.ListSessions(session_pb2.ListSessionsRequest()).sessions}
    assert listed[victim.session_id].status == types_pb2.SESSION_STATUS_FAILED
    assert "checksum" in listed[victim.session_id].status_reason
    with pytest.raises(grpc.RpcError) as caught:
        second.sessions.CreateSession(session_pb2.CreateSessionRequest(session_id=victim.session_id, spec=other.spec))
    assert tools.reason_of(caught.value) == "SessionExists"
    older = min((copy / "sessions" / victim.session_id).glob("*.safetensors")).name
    request = session_pb2.RestoreSessionRequest(session_id=victim.session_id, snapshot_id=f"{int(older[11:31])}-1")
    restored = second.sessions.RestoreSession(request, timeout=10).session
    assert (restored.step, restored.status) == (int(older[11:31]), types_pb2.SESSION_STATUS_READY)
    assert restored.generation > get(first, victim).generation


def test_nothing_is_acknowledged_after_a_sync_that_failed(folders: Any, tools: Any) -> None:
    first = folders.start()
    session, calm = first.create(5, durability=kept("JOURNAL")), first.create(5, durability=kept("NONE"))
    push(first, session, range(1, 3))
    failpoints.arm("disk.sync=EIO")
    with pytest.raises(grpc.RpcError) as caught:
        push(first, session, range(3, 4))
    assert tools.reason_of(caught.value) == "StorageFailed"
    failpoints.arm("")
    with pytest.raises(grpc.RpcError) as caught:  # though the disk would take it now
        push(first, session, range(4, 5))
    assert tools.reason_of(caught.value) == "StorageFailed"
    assert get(first, session).durable_step == 2
    push(first, calm, range(1, 3), ack_level=types_pb2.ACK_LEVEL_APPLIED)
    assert get(folders.crashed(first), session).step in (2, 3)


def test_a_full_disk_refuses_what_must_be_durable_until_there_is_room(folders: Any, tools: Any) -> None:
    first = folders.start()
    session = first.create(5, durability=kept("JOURNAL"))
    failpoints.arm("disk.allocate=ENOSPC,disk.write=ENOSPC")
    with pytest.raises(grpc.RpcError) as caught:
        push(first, session, range(1, 2))
    assert tools.reason_of(caught.value) == "StorageFull"
    with pytest.raises(grpc.RpcError) as caught:
        push(first, session, range(2, 3))
    assert tools.reason_of(caught.value) == "StorageFull"
    failpoints.arm("")

    def taken() -> bool:
        try:
            return bool(push(first, session, range(1, 2)).durable_step >= 1)
        except grpc.RpcError as error:
            return tools.reason_of(error) != "StorageFull"

    tools.poll(taken)
    push(first, session, range(2, 5))
    second = folders.crashed(first)
    assert get(second, session).step == 4
    assert second.digest(session) == first.digest(session)


def test_sessions_are_recovering_and_not_unknown_until_all_are_back(folders: Any, tools: Any, monkeypatch: Any) -> None:
    first = folders.start()
    session = first.create(5, durability=kept("JOURNAL"))

    def recovering(engine: Any) -> bool:
        engine.recovering = not engine.recovering
        return bool(engine.recovering)

    assert first.inside(recovering)
    for call in (lambda: get(first, session), lambda: push(first, session, range(1, 2)), lambda: first.create(5)):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert tools.reason_of(caught.value) == "Recovering"
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not first.inside(recovering)
    assert push(first, session, range(1, 2)).step == 1


def test_stopping_in_good_order_loses_nothing_of_a_snapshot_session(folders: Any, host: Any) -> None:
    (folders.root / "first").mkdir()
    hosted = host(folder=folders.root / "first")
    session = hosted.server.create(5, durability=kept("SNAPSHOT"))
    push(hosted.server, session, range(1, 6), ack_level=types_pb2.ACK_LEVEL_APPLIED)
    before = hosted.server.digest(session)
    hosted.stop()
    second = folders.start(folders.root / "first")
    assert (get(second, session).step, second.digest(session)) == (5, before)


def test_packed_answers_tell_what_is_durable(folders: Any, tools: Any) -> None:
    first = folders.start()
    modes = ("NONE", "SNAPSHOT", "JOURNAL")
    sessions = [first.create(5, durability=kept(mode, steps=0 if mode == "NONE" else 1000)) for mode in modes]
    opening = [
        gradient_pb2.ExchangeRequest(
            open=gradient_pb2.OpenSession(
                handle=handle, session_id=session.session_id, worker_id="worker", reply=gradient_pb2.REPLY_NONE,
                ack_level=DURABLE if modes[handle] == "JOURNAL" else types_pb2.ACK_LEVEL_APPLIED,
            )
        )
        for handle, session in enumerate(sessions)
    ]  # fmt: skip
    with tools.Dialogue(first, opening) as dialogue:
        assert all(dialogue.next().HasField("opened") for _ in modes)
        for number in (1, 2):
            payload = np.stack([GRADIENTS[number]] * 3).tobytes()
            message = gradient_pb2.PackedGradients(
                number=number,
                handles=range(3),
                sequences=[number] * 3,
                base_steps=[number - 1] * 3,
                crc32=wire.checksum(payload),
                payload=payload,
            )
            dialogue.send(gradient_pb2.ExchangeRequest(packed=message))
            answer = dialogue.next().packed
            assert (list(answer.steps), list(answer.durable_steps)) == (
                [number] * 3,
                [0, 0, number],
            )
    second = folders.crashed(first)
    assert second.digest(sessions[2]) == first.digest(sessions[2])


def test_an_entry_that_lands_after_a_restore_makes_nothing_of_the_restored_state_durable(
    folders: Any, tools: Any
) -> None:
    first = folders.start()
    session = first.create(5, durability=kept("JOURNAL"))
    journal, gate = first.engine.keeper.journal, threading.Event()

    class Held(Disk):
        def sync(self, file: int) -> None:
            assert gate.wait(20)
            super().sync(file)

    journal._disk = Held()
    push(first, session, range(1, 4), ack_level=types_pb2.ACK_LEVEL_APPLIED)
    restored = first.sessions.RestoreSession(
        session_pb2.RestoreSessionRequest(session_id=session.session_id, snapshot_id="0-1"), timeout=10
    ).session
    assert (restored.step, restored.durable_step) == (0, 0)
    gate.set()
    tools.poll(lambda: first.inside(lambda engine: engine.budget.used_bytes) == 0)  # the entries have landed
    assert get(first, session).durable_step == 0
    assert push(first, session, range(1, 2)).durable_step == 1


def test_a_snapshot_of_another_layout_sets_its_session_aside_and_no_other(folders: Any, tools: Any) -> None:
    first = folders.start()
    victim, other = first.create(5, durability=kept("SNAPSHOT")), first.create(7, durability=kept("SNAPSHOT"))
    copy = folders.copy(first)
    disk = Disk()
    path = newest(copy, victim)
    stored = snapshot_file.read(newest(copy, other))
    snapshot_file.write(disk, path, dataclasses.replace(stored, session_id=victim.session_id))
    second = folders.start(copy)
    assert second.digest(other) == first.digest(other)
    with pytest.raises(grpc.RpcError) as caught:
        get(second, victim)
    assert tools.reason_of(caught.value) == "CorruptState"
    assert second.inside(lambda engine: [one.session_id for one in engine.sessions()]) == [other.session_id]


def test_what_nobody_foresaw_in_one_session_keeps_no_other_from_coming_back(
    folders: Any, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = folders.start()
    victim, other = (first.create(5, durability=kept("SNAPSHOT")) for _ in range(2))
    adopt = on_device.adopt

    def failing(arena: Any, resident: Any, state: Any) -> None:
        if not seen:
            seen.append(resident)
            raise RuntimeError("nobody foresaw this")
        adopt(arena, resident, state)

    seen: list[Any] = []
    monkeypatch.setattr(on_device, "adopt", failing)
    second = folders.crashed(first)
    listed = {
        one.session_id: one.status for one in second.sessions.ListSessions(session_pb2.ListSessionsRequest()).sessions
    }
    assert sorted(listed) == sorted([victim.session_id, other.session_id])
    assert sorted(listed.values()) == [types_pb2.SESSION_STATUS_READY, types_pb2.SESSION_STATUS_FAILED]
