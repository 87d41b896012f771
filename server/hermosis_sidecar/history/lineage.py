"""Lineage: which life of which session a reading belongs to, and what was missed of it.

Readings carry an id and a step alone. Their session may have been closed and made anew under the same id, or set back
to an older step; both are seen when the server is asked about the session, at the latest when a step comes twice. What
the server still holds of a life then says where it begins. Used from the recorder's thread alone.
"""

import math
import time
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass

from hermosis_client import Client, SessionInfo, SessionStatus, TelemetryReading, errors
from hermosis_sidecar.history.differences import Happened, differences
from hermosis_sidecar.history.ids import Ids
from hermosis_sidecar.history.records import Event, EventKind, Kept, KeptEvent, Life, Steps
from hermosis_sidecar.history.store import Store

_MOST_READINGS = 10_000  # that the server gives at a time
# Who brings something about tells of it within so many seconds, in which a look may have noticed it already.
_CLOCKS_S = 0.5  # that two clocks of one server may drift apart between two looks
_SOON_S = 5.0


@dataclass(slots=True)
class _Present:
    """A session as it was last seen."""

    life: Life
    info: SessionInfo
    last_step: int = 0
    last_time_s: float = 0.0
    gap: Steps | None = None  # steps of which readings may be missing
    noticed: frozenset[EventKind] = frozenset()  # by the newest look that noticed anything
    noticed_s: float = 0.0


class Lineage:
    """The sessions that are there.

    Args:
      client:     to ask with, under the sidecar's own token.
      interval_s: least time between two readings that are kept.
      clock:      seconds since 1970.
    """

    def __init__(
        self, store: Store, client: Client, ids: Ids, *, interval_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._client = client
        self._ids = ids
        self._interval_s = interval_s
        self._clock = clock
        self._present: dict[str, _Present] = {}
        self._aside: dict[str, str] = {}
        self._away = True
        self._started_s = 0.0  # when the server did, by its own clock, as of the last look
        self._looked = False
        self._happened: list[KeptEvent] = []
        self._ending = False

    def happened(self) -> list[KeptEvent]:
        """What was noticed since the last call."""
        told, self._happened = self._happened, []
        return told

    def end(self) -> None:
        """Lets a look that is under way end early. From any thread."""
        self._ending = True

    def lost(self) -> None:
        """The server is away: what comes next may be another incarnation of it."""
        self._away = True

    def found(self) -> None:
        """The server is followed again: what it did meanwhile is to be asked for."""
        for present in self._present.values():
            present.gap = Steps(after_step=present.last_step)

    def place(self, reading: TelemetryReading) -> Kept | None:
        """The reading in its life; None where its session is not known any more."""
        present = self._present.get(reading.session_id)
        if present is None or (reading.step <= present.last_step and reading.time_s > present.last_time_s):
            present = self._asked(reading.session_id)
        if present is None:
            return None
        if reading.step > present.last_step:
            if present.last_step and self._leaps(present, reading):
                after = present.last_step if present.gap is None else present.gap.after_step
                present.gap = Steps(after_step=after, before_step=reading.step)
            present.last_step, present.last_time_s = reading.step, reading.time_s
        return Kept(reading_id=self._ids.of(reading), life_key=present.life.life_key, reading=reading)

    def look(self) -> None:
        """Compares the sessions that the server has with those known, and asks for what was missed.

        Raises:
          HermosisError: the server cannot be asked, or the store fails; to be tried again.
        """
        started_s = self._server_started_s()  # before the list: what begins in between is told from it
        there = {info.session_id: info for info in self._client.sessions()}
        self._part_with_those_not(there)
        aside = {}
        for info in there.values():
            if self._ending:
                return
            if info.create_time_s:
                self._suspect(info.session_id)
                self._meet(info)
            else:
                aside[info.session_id] = info.status_reason  # Damaged on disk: nothing else is known of it.
        for session_id in aside.keys() - self._aside.keys():
            self._set_aside(session_id, aside[session_id])
        self._aside, self._away, self._started_s = aside, False, started_s
        for present in list(self._present.values()):
            if self._ending:
                return
            if present.gap is not None:
                self._fill(present, present.gap)

    def note(self, session_id: str, happened: Happened, step: int | None) -> None:
        """An event that somebody brought about and tells, so that it is not noticed a second time."""
        present = self._present.get(session_id)
        if present is not None and happened.kind in present.noticed and self._clock() - present.noticed_s < _SOON_S:
            present.noticed -= {happened.kind}
            return
        before, self._happened = self._happened, []
        if happened.kind != "closed":
            present = self._asked(session_id)
        elif present is not None:
            self._leave(session_id)
        others = [kept for kept in self._happened if kept.event.kind != happened.kind]
        self._happened = [*before, *others]
        if present is not None:
            present.noticed -= {happened.kind}
            self._tell(present, happened, present.info.step if step is None else step)

    # --- sessions that come, change and go

    def _asked(self, session_id: str) -> _Present | None:
        try:
            self._meet(self._client.session(session_id).info())
        except errors.SessionNotFound:
            return None
        except errors.CorruptState:
            return self._present.get(session_id)  # It was set aside.
        return self._present.get(session_id)

    def _meet(self, info: SessionInfo) -> None:
        told = len(self._happened)
        present = self._present.get(info.session_id)
        if present is None or _told_apart(present.info) != _told_apart(info):
            present = self._begin(info, present)
        for happened in differences(present.info, info):
            self._tell(present, happened, info.step)
        present.info = info
        if len(self._happened) > told:
            present.noticed = frozenset(kept.event.kind for kept in self._happened[told:])
            present.noticed_s = self._clock()

    def _begin(self, info: SessionInfo, before: _Present | None) -> _Present:
        """A life that was not known here; it may be in the store since before the sidecar was started."""
        known = self._store.lives(info.session_id)
        earlier = [life for life in known if life.create_time_s == info.create_time_s]
        again = next((life for life in earlier if life.generation == info.generation), None)
        held = self._held(info) if again is None else []
        life = again or self._store.begin(
            info.session_id,
            create_time_s=info.create_time_s,
            generation=info.generation,
            after_step=held[0].step - 1 if held else info.step,
            from_time_s=_first_time_s(info, earlier, held),
        )
        present = self._present[info.session_id] = _Present(life=life, info=info)
        newest = self._store.newest(life)
        if newest is not None:
            present.last_step, present.last_time_s = newest.reading.step, newest.reading.time_s
        present.gap = Steps(after_step=present.last_step)
        self._tell_beginning(present, before, known, earlier, again)
        if held:
            self._fill(present, present.gap, held)
        return present

    def _tell_beginning(
        self, present: _Present, before: _Present | None, known: list[Life], earlier: list[Life], again: Life | None
    ) -> None:
        info = present.info
        if again is not None:
            return
        if earlier:
            generation = f"generation {info.generation} goes on from step {info.step}"
            kind: EventKind = "server_restarted" if self._is_another_server() else "restored"
            self._tell(present, Happened(kind, generation), info.step)
            return
        for life in known:
            if not life.closed:
                self._close(life, before)
        self._tell(present, Happened("created", info.display_name), 0, info.create_time_s)
        if info.status is SessionStatus.READY:
            self._tell(present, Happened("ready", "the first parameters are there"), 0)

    def _is_another_server(self) -> bool:
        """Whether the server was started since the last look, which may have been too quick for it to be missed."""
        return self._away or self._server_started_s() > self._started_s + _CLOCKS_S

    def _server_started_s(self) -> float:
        overview = self._client.overview(max_sessions=1)
        return overview.time_s - overview.uptime_s

    def _part_with_those_not(self, there: Container[str]) -> None:
        if not self._looked:  # Since the sidecar was started: some may have gone before.
            for life in self._store.lives():
                if not life.closed and life.session_id not in there and self._is_gone(life.session_id):
                    self._close(life, None)
            self._looked = True
        for session_id in [each for each in self._present if each not in there]:
            if self._is_gone(session_id):
                self._leave(session_id)

    def _is_gone(self, session_id: str) -> bool:
        """A list is no proof: a server that still reads its sessions back shows those that it has."""
        try:
            self._client.session(session_id)
        except errors.SessionNotFound:
            return True
        except errors.CorruptState:
            return False
        return False

    def _leave(self, session_id: str) -> None:
        present = self._present.pop(session_id)
        same = [life for life in self._store.lives(session_id) if life.create_time_s == present.life.create_time_s]
        self._store.close_lives(life.life_key for life in same)
        text = "not there any more since the server was away" if self._away else ""
        self._tell(present, Happened("closed", text), present.info.step)

    def _close(self, life: Life, present: _Present | None) -> None:
        """A life whose end nobody saw."""
        self._store.close_lives([life.life_key])
        if life.until_step is not None:
            return  # Its session went on with a later generation, of which it is told.
        newest = self._store.newest(life)
        step = present.info.step if present is not None else newest.reading.step if newest is not None else 0
        self._tell_of(life, Happened("closed", ""), step, self._clock())

    def _set_aside(self, session_id: str, reason: str) -> None:
        present = self._present.get(session_id)
        lives = self._store.lives(session_id)
        life = present.life if present is not None else lives[-1] if lives else None
        if life is not None:
            step = present.last_step if present is not None else 0
            self._tell_of(life, Happened("quarantined", reason), step, self._clock())

    def _tell(self, present: _Present, happened: Happened, step: int, time_s: float | None = None) -> None:
        self._tell_of(present.life, happened, step, self._clock() if time_s is None else time_s)

    def _tell_of(self, life: Life, happened: Happened, step: int, time_s: float) -> None:
        event = Event(
            event_id=self._ids.next(),
            session_id=life.session_id,
            time_s=time_s,
            step=step,
            kind=happened.kind,
            text=happened.text,
        )
        self._happened.append(KeptEvent(life_key=life.life_key, event=event))

    # --- what was missed

    def _leaps(self, present: _Present, reading: TelemetryReading) -> bool:
        """Whether the stream, which is thinned by time alone, must have lost readings since the last one."""
        steps = reading.step - present.last_step
        seconds = reading.time_s - present.last_time_s
        return steps > 1 and seconds > 2 * self._interval_s + 2 * seconds / steps

    def _suspect(self, session_id: str) -> None:
        """What the last look saw has not come by the stream: it was broken and mended, and nobody was told."""
        present = self._present.get(session_id)
        if present is not None and present.gap is None and present.last_step < present.info.step:
            present.gap = Steps(after_step=present.last_step)

    def _held(self, info: SessionInfo, after_step: int = 0) -> list[TelemetryReading]:
        if info.step == 0:
            return []
        try:
            return self._client.session(info.session_id).history(after_step, _MOST_READINGS)
        except errors.SessionNotFound:
            return []

    def _fill(self, present: _Present, gap: Steps, held: list[TelemetryReading] | None = None) -> None:
        """Adds what the server holds of a gap, no denser than what comes by the stream."""
        if held is None:
            held = self._held(present.info, gap.after_step) if present.info.step > gap.after_step else []
        missed = [reading for reading in self._spaced(held) if reading.step in gap]
        if missed:
            self._ids.reserve(
                self._store.ids_between(int(missed[0].time_s * 1e6) - 1000, int(missed[-1].time_s * 1e6) + 1000)
            )
            life_key = present.life.life_key
            self._store.add(
                [Kept(reading_id=self._ids.of(reading), life_key=life_key, reading=reading) for reading in missed]
            )
            if missed[-1].step > present.last_step:
                present.last_step, present.last_time_s = missed[-1].step, missed[-1].time_s
        present.last_step = max(present.last_step, present.info.step)  # No more is to be had of what went before.
        present.gap = None

    def _spaced(self, readings: Iterable[TelemetryReading]) -> Iterator[TelemetryReading]:
        last_s = float("-inf")
        for reading in readings:
            if reading.time_s - last_s >= self._interval_s:
                last_s = reading.time_s
                yield reading


def _first_time_s(info: SessionInfo, earlier: list[Life], held: list[TelemetryReading]) -> float:
    """Since when readings of the id must be of this life."""
    if not earlier:
        return info.create_time_s
    return held[0].time_s if held else math.inf


def _told_apart(info: SessionInfo) -> tuple[float, int]:
    return info.create_time_s, info.generation
