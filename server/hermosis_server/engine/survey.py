"""Survey: how the whole server does, put together when somebody asks."""

import contextlib
import heapq
import time
from collections.abc import Callable, Iterable

from hermosis_server.engine.alerts import Facts, alerts
from hermosis_server.engine.engine import Engine
from hermosis_server.engine.session import Session
from hermosis_server.records import DeviceOverview, Overview, SessionMemory


async def survey(engine: Engine, *, sees: Callable[[str], bool], max_sessions: int) -> Overview:
    """The overview for somebody.

    Args:
      sees:         whether they may see a session, by its name in the engine.
      max_sessions: of each device to name, those with the most memory.

    Raises:
      ServerStopping, Recovering: ask again shortly.
    """
    engine.require_serving()
    disk = None
    if engine.keeper is not None:
        with contextlib.suppress(OSError):  # of a disk that has gone the keeper hears when it writes
            disk = await engine.keeper.disk_use()
    seen = [session for session in engine.sessions() if sees(session.session_id)]
    devices = [
        DeviceOverview(
            name=executor.device,
            capacity_bytes=executor.limit_bytes,
            used_bytes=executor.used_bytes,
            free_bytes=max(0, executor.limit_bytes - executor.used_bytes),
            sessions=_largest((session for session in seen if session.executor is executor), max_sessions),
        )
        for executor in engine.executors
    ]
    activity = engine.activity
    pace = activity.pace()
    facts = Facts(
        storage_failure="" if engine.keeper is None else engine.keeper.failure,
        set_aside={name: found.problem for name, found in engine.quarantined.items() if sees(name)},
        blocked={session.session_id: str(session.obstacle()) for session in seen if session.obstacle is not None},
        refusing=engine.budget.refusing,
        queue_rounds=activity.queue_rounds,
        queue_grows=pace.queue_grows,
        devices=devices,
        disk=disk,
    )
    return Overview(
        time_s=time.time(),
        uptime_s=time.monotonic() - activity.began_s,
        steps=activity.steps,
        received_bytes=activity.received_bytes,
        sent_bytes=activity.sent_bytes,
        steps_per_s=pace.steps_per_s,
        received_bytes_per_s=pace.received_bytes_per_s,
        sent_bytes_per_s=pace.sent_bytes_per_s,
        queue_rounds=activity.queue_rounds,
        queue_bytes=activity.queue_bytes,
        batch_sessions=pace.batch_sessions,
        step_p50_s=pace.step_p50_s,
        step_p99_s=pace.step_p99_s,
        streams=activity.streams,
        staging_bytes=engine.budget.used_bytes,
        staging_limit_bytes=engine.budget.limit_bytes,
        devices=devices,
        alerts=alerts(facts),
    )


def _largest(sessions: Iterable[Session], count: int) -> list[SessionMemory]:
    held = [(session.resident.slot, session) for session in sessions if session.resident is not None]
    largest = heapq.nlargest(count, held, key=lambda pair: pair[0].size_bytes)
    return [
        SessionMemory(session_id=session.session_id, device_bytes=slot.device_bytes, host_bytes=slot.host_bytes)
        for slot, session in largest
    ]
