"""Packed messages: contributions to many sessions in one, from columns to columns.

The handles of a worker's packed messages are the same again and again, so what follows from them alone is found once
(lineup.py). Those sessions that step at each worker's word go to the engine as one volley; the others, and repeats, go
the way of every contribution.
"""

import functools
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from hermosis import packed, wire
from hermosis.packed import PackedGradients
from hermosis_server.engine.assembler import Staging
from hermosis_server.engine.engine import Engine
from hermosis_server.engine.volley import Volley
from hermosis_server.errors import CorruptChunk, InvalidRequest, LayoutMismatch
from hermosis_server.records import Commit, EnergySample, GradientChunk, Reply
from hermosis_server.rpc.lineup import Columns, Group, Lineup, peaks
from hermosis_server.rpc.links import Link
from hermosis_server.rpc.packed_answer import BARE_REFUSAL_BYTES, PackedAnswer, pulled_message, refused_message

# Of an answer beside the payload: what frames it, and the columns of each contribution.
FRAME_BYTES = 1024
COLUMN_BYTES = 32
ENERGY_BYTES = 8 * len(EnergySample._fields)
MAX_KEPT_HANDLES = 1 << 18  # in all lineups of a stream


class Later(Protocol):
    """Counts bytes against the stream's window, and gives the way for the answer that frees them when written."""

    def __call__(self, window_bytes: int, *, sure: bool) -> Callable[[bytes], None]:
        """`sure` where the answer comes whatever the worker sends next."""
        ...


class PackedDesk:
    """Takes the packed messages of one stream.

    Args:
      links: open on the stream, by handle.
      later: announces an answer.
    """

    def __init__(
        self,
        engine: Engine,
        links: Mapping[int, Link],
        *,
        later: Later,
    ) -> None:
        self._engine = engine
        self._links = links
        self._later = later
        self._lineups: dict[bytes, Lineup] = {}
        self._kept_handles = 0

    def forget(self) -> None:
        """A handle was opened or closed: lineups may be of links that are no more."""
        self._lineups.clear()
        self._kept_handles = 0

    def gradients(self, message: PackedGradients) -> None:
        """Counts what can be counted of a message. Its answer follows when the last of its contributions is known."""
        try:
            lineup = self._lineup(bytes(message.handles))
            columns = Columns.of(message, len(lineup.links))
            replies = lineup.silence if message.without_reply else lineup.replies
            refusal_bytes = self._room(replies, energies=message.want_energies)
            _require_payload(message, lineup)
            group, apart = lineup.parted(columns.sequences)
            staging = self._staged(message.payload) if group.places else None
        except Exception as error:
            self._refuse(message.number, error)
            return
        answer = PackedAnswer(
            number=message.number,
            replies=replies,
            energies=message.want_energies,
            waits=len(apart) + (staging is not None),
            refusal_bytes=refusal_bytes,
            send=self._later(
                len(message.payload) + replies[-1].stop,
                sure=all(lineup.links[place].session.steps_at_once for place in apart),
            ),
        )
        if staging is not None:
            self._together(group, lineup.links[group.places[0]], columns, staging, message.without_reply, answer)
        for place in apart:
            gradient = bytes(memoryview(message.payload)[lineup.gradients[place]])
            self._alone(lineup.links[place], columns.commit(place), gradient, message.without_reply, answer, place)

    def pull(self, number: int, handles: Sequence[int]) -> Coroutine[Any, Any, None] | None:
        """Reads the parameters of many sessions, by what is given back, to be run; None where that was refused."""
        try:
            lineup = self._lineup(np.array(handles, "<u4").tobytes())
            refusal_bytes = self._room(lineup.vectors, energies=False)
        except Exception as error:
            self._refuse(number, error)
            return None
        answer = self._later(lineup.vectors[-1].stop, sure=True)

        async def read() -> None:
            wanted = [(link.session.session_id, link.wish.dtype) for link in lineup.links]
            try:
                vectors = await self._engine.pull_many(wanted)
            except Exception as error:
                answer(refused_message(number, error))
            else:
                answer(pulled_message(number, lineup.vectors, vectors, refusal_bytes))

        return read()

    def _refuse(self, number: int, error: Exception) -> None:
        message = refused_message(number, error)
        self._later(len(message), sure=True)(message)

    def _lineup(self, handles: bytes) -> Lineup:
        """The links of handles, as bytes of uint32."""
        lineup = self._lineups.get(handles)
        if lineup is not None:
            return lineup
        names = np.frombuffer(handles, "<u4").tolist()
        if not names or len(set(names)) != len(names):
            raise InvalidRequest("a packed message names no handle, or one of them twice", field="handles")
        missing = next((name for name in names if name not in self._links), None)
        if missing is not None:
            raise InvalidRequest(
                f"handle {missing} is not open on this stream, so where the gradients lie is not known; open it first",
                field="handles",
            )
        coded = next((name for name in names if self._links[name].is_coded), None)
        if coded is not None:
            raise InvalidRequest(
                f"handle {coded} was opened with a codec, and packed messages are plain; open it without",
                field="handles",
            )
        lineup = Lineup([self._links[name] for name in names])
        self._kept_handles += len(names)
        if self._kept_handles > MAX_KEPT_HANDLES:
            self.forget()
            self._kept_handles = len(names)
        self._lineups[handles] = lineup
        return lineup

    def _room(self, replies: Sequence[slice], *, energies: bool) -> int:
        """Bytes that an answer has for refusals; raises InvalidRequest where it might not fit a message."""
        limit = self._engine.limits.max_message_bytes
        columns = len(replies) * (COLUMN_BYTES + (ENERGY_BYTES if energies else 0))
        room: int = limit - FRAME_BYTES - columns - replies[-1].stop
        if room < len(replies) * BARE_REFUSAL_BYTES:
            raise InvalidRequest(
                f"the answer to {len(replies)} handles may take more than a message of {limit} bytes; send several"
            )
        return room

    def _staged(self, payload: packed.Bytes) -> Staging:
        self._engine.intake.require_running()
        staging = self._engine.budget.stage(len(payload))
        staging.memory[:] = memoryview(payload)
        return staging

    def _together(
        self, group: Group, link: Link, columns: Columns, staging: Staging, silent: bool, answer: PackedAnswer
    ) -> None:
        chosen = columns.at(group.places)
        memory = staging.memory
        volley = Volley(
            executor=link.session.executor,
            worker_id=link.worker.worker_id,
            wish=replace(link.wish, reply=Reply.NONE) if silent else link.wish,
            dtype=link.gradient_dtype,
            roster=group.roster,
            sessions=group.sessions,
            residents=group.residents,
            workers=group.workers,
            generations=group.generations,
            sequences=chosen.sequences,
            base_steps=chosen.base_steps,
            losses=chosen.losses,
            lr_scales=chosen.lr_scales,
            staging=staging,
            gradients=group.gradients,
            peaks=peaks(memory, link.gradient_dtype, group.gradients, group.length),
            checksums=[wire.checksum(memory[piece]) for piece in group.gradients],
            reply_bytes=[0] * len(group.places) if silent else group.reply_bytes,
        )
        self._engine.volleys.fire(
            volley,
            refuse=lambda place, error: answer.refuse(group.places[place], error),
            land=functools.partial(answer.land, group.places),
        )

    def _alone(
        self, link: Link, commit: Commit, gradient: bytes, silent: bool, answer: PackedAnswer, place: int
    ) -> None:
        crc32 = wire.checksum(gradient)
        chunk = GradientChunk(
            sequence=commit.sequence, offset=0, dtype=link.gradient_dtype, crc32=crc32, payload=gradient
        )
        tell = functools.partial(answer.take, place)
        try:
            link.contribute(self._engine, commit, chunk, tell, silent=silent)
        except Exception as error:
            tell(error)


def _require_payload(message: PackedGradients, lineup: Lineup) -> None:
    """Raises unless the payload is the gradients of the lineup, undamaged."""
    expected = lineup.gradients[-1].stop
    if len(message.payload) != expected:
        raise LayoutMismatch(
            f"payload is {len(message.payload)} bytes, the gradients of {len(lineup.links)} handles are {expected}; "
            "check the order and the sizes of the sessions, and the dtypes they were opened with",
            field="payload",
        )
    actual = wire.checksum(memoryview(message.payload))
    if actual != message.crc32:
        raise CorruptChunk(
            f"payload has checksum {actual:08x}, its sender computed {message.crc32:08x}; send it again", field="crc32"
        )
