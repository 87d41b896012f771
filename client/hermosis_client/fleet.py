"""Fleet: one worker of many small sessions, over one stream."""

import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hermosis import wire
from hermosis_client import cutoff, fleet_birth
from hermosis_client.connection import Connection
from hermosis_client.dtypes import Float32, dtype_named
from hermosis_client.errors import ConnectionFailed, HermosisError
from hermosis_client.fleet_stream import FleetStream, Standing
from hermosis_client.fleet_work import FRAME_BYTES, Floats, Ints, Terms, Work
from hermosis_client.records import ENERGIES, AckLevel, Outcome, ParametersOn, Reply
from hermosis_client.retry import Patience
from hermosis_client.session import Session, WireDtype

_Number = TypeVar("_Number", bound=np.generic)

_LARGEST_BYTES = wire.MAX_MESSAGE_BYTES - 2 * FRAME_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetResult:
    """The fates of one contribution of each of M members, as columns; entry i of each is of the same member.

    Attributes:
      parameters:    (M, P) what came back, where all members have P elements; else M flat vectors. None after `push`.
      outcome:       (M,) numbers of `Outcome`; zero, which is UNKNOWN, where the contribution was refused.
      step:          (M,) steps applied so far, this one included if it was applied.
      durable_step:  (M,) the last steps that survive a crash of the server.
      staleness:     (M,) how many steps the gradient was behind.
      contributions: (M,) that made the step.
      duplicate:     (M,) whether the contribution had been answered before.
      energies:      (M,) by name as in `EnergySample`, NaN where undefined; empty unless asked for.
      refusals:      the error of each member that was refused, by its index in this result. A refused contribution
                     changed nothing, and what `parameters` holds for it means nothing.
    """

    parameters: "Float32 | list[Float32] | None"
    outcome: NDArray[np.uint8]
    step: Ints
    durable_step: Ints
    staleness: Ints
    contributions: Ints
    duplicate: NDArray[np.bool_]
    energies: Mapping[str, Floats] = field(default_factory=dict)
    refusals: Mapping[int, HermosisError] = field(default_factory=dict)

    @property
    def applied(self) -> NDArray[np.bool_]:
        """(M,) whether each contribution became part of a step."""
        applied: NDArray[np.bool_] = self.outcome == Outcome.APPLIED
        return applied


class _Crew(NamedTuple):
    """Members of a call.

    Attributes:
      members: (M,) their indices in the fleet.
      starts:  (M + 1,) where each begins in flat vectors.
      replies: (M,) Reply of each.
      shape:   of a float32 array that holds a vector of each: (M, P), or (N,) where their sizes differ.
    """

    members: Ints
    starts: Ints
    replies: NDArray[np.int8]
    shape: tuple[int, ...]


class Fleet:
    """A worker of many sessions: sweeps, ensembles, a model a user. Calls of several threads wait for one another.

    One exchange is as many steps as there are members and costs little more than one, because gradients and answers
    travel packed and the server steps them together. Each member is still a session of its own: its result is what it
    would be alone, to the bit, and what befalls one of them, a refusal or a gradient that is not finite, is no other's
    concern.

        rates = np.geomspace(1e-4, 1e-1, 64)
        start = np.zeros((64, 256), np.float32)
        with Client("127.0.0.1:50051") as client:
            with client.create_fleet(start, [Recipe("adamw", lr=rate) for rate in rates]) as fleet:
                parameters = start
                for _ in range(1000):
                    losses, gradients = value_and_gradient(parameters)  # (64,) and (64, 256)
                    result = fleet.exchange(gradients, losses=losses)
                    parameters = result.parameters

    Each contribution is counted once, as with `Worker`: when the connection breaks, the client connects again, for at
    most its timeout_s, and sends what has no answer yet under the same numbers. After a crash of the server the fleet
    goes on by itself with the members that lost nothing it builds on; each of the others is refused as StaleGeneration
    until it is pulled.

    Made by `Client.create_fleet` and `Client.fleet`. As a context manager it closes the sessions on the server at the
    end where it created them, and only disconnects where it attached to them.

    Attributes:
      sessions:  the members, in order.
      worker_id: numbers the contributions to all of them.
    """

    def __init__(
        self,
        connection: Connection,
        sessions: Sequence[Session],
        *,
        worker_id: str = "",
        gradient_dtype: WireDtype = "float32",
        reply_dtype: WireDtype = "float32",
        reply: Literal["default", "parameters", "increment", "none"] = "default",
        ack_level: Literal["applied", "durable"] = "applied",
        created: bool = False,
    ) -> None:
        if not sessions:
            raise ValueError("a fleet has at least one session")
        if ack_level not in ("applied", "durable"):
            raise ValueError(f"ack_level of a fleet is 'applied' or 'durable', got {ack_level!r}")
        self.sessions = list(sessions)
        self.worker_id = worker_id or f"fleet-{uuid.uuid4().hex[:12]}"
        self._sizes = np.array([session.layout.parameter_count for session in self.sessions], np.int64)
        self._terms = Terms(
            gradient_dtype=dtype_named(gradient_dtype),
            reply_dtype=dtype_named(reply_dtype),
            replies=np.array([_reply(reply, session.parameters_on) for session in self.sessions], np.int8),
            ack_level=AckLevel[ack_level.upper()],
        )
        largest = int(self._sizes.max()) * max(self._terms.gradient_dtype.itemsize, self._terms.reply_dtype.itemsize)
        if largest > _LARGEST_BYTES:
            raise ValueError(
                f"a member has {largest} bytes of parameters on the wire, a packed message holds {_LARGEST_BYTES}; "
                "give large sessions a Worker each"
            )
        self._connection = connection
        self._created = created
        self._everybody = self._crew(np.arange(len(self.sessions)))
        self._standing = Standing(self.sessions, self.worker_id, self._terms)
        self._lock = threading.Lock()
        self._stream: FleetStream | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self.sessions)

    @property
    def steps(self) -> Ints:
        """(S,) step of the parameters that this worker holds of each member; -1 before the first call."""
        return self._standing.steps.copy()

    def exchange(
        self,
        gradients: "Float32 | Sequence[ArrayLike]",
        *,
        losses: ArrayLike | None = None,
        sample_counts: ArrayLike | None = None,
        lr_scales: ArrayLike | None = None,
        members: Sequence[int] | Ints | None = None,
        energies: bool = False,
        out: Float32 | None = None,
    ) -> FleetResult:
        """Sends one gradient of each member, waits for their steps, and takes what comes back.

        Args:
          gradients:     (M, P) where all members have P elements; else a flat vector for each member.
          losses:        (M,) at the parameters the gradients were computed at; NaN where one is unknown.
          sample_counts: (M,) that the gradients are means of; zero where one is unknown.
          lr_scales:     (M,) of this worker's own schedules for this step, which multiply the sessions'.
          members:       (M,) indices of those that take part, each once; None means all S.
          energies:      asks for the energies of the steps.
          out:           to land in: contiguous float32 (M, P), or flat where the members' sizes differ; None means
                         a new one.

        Returns:
          The fates of the contributions and the parameters after the steps, or increments as `Worker.exchange` gives
          them (zeros where nothing was applied). Members that were refused are in `refusals`; nothing is raised for
          them.

        Raises:
          ConnectionFailed: the server could not be reached in time. What was applied meanwhile is told by `pull`; a
                            gradient that is sent without one is refused as stale where its session has gone on.
          ValueError:       shapes that do not fit the fleet; nothing was sent.
        """
        return self._contribute(gradients, losses, sample_counts, lr_scales, members, energies, out, reply=True)

    def push(
        self,
        gradients: "Float32 | Sequence[ArrayLike]",
        *,
        losses: ArrayLike | None = None,
        sample_counts: ArrayLike | None = None,
        lr_scales: ArrayLike | None = None,
        members: Sequence[int] | Ints | None = None,
        energies: bool = False,
    ) -> FleetResult:
        """Sends one gradient of each member and waits for their steps, but takes nothing back. See `exchange`."""
        return self._contribute(gradients, losses, sample_counts, lr_scales, members, energies, None, reply=False)

    def pull(
        self, *, members: Sequence[int] | Ints | None = None, out: Float32 | None = None
    ) -> "tuple[Float32 | list[Float32], Mapping[int, HermosisError]]":
        """The parameters at which the next gradients are computed, at whatever generation the sessions are.

        Args:
          members, out: as in `exchange`.

        Returns:
          (M, P), or M flat vectors where sizes differ; and the errors of members that have none to give, by index.
        """
        with self._lock:
            work = self._work(members, None, out, reply=True)
            self._persist(work)
            self._standing.hold(work)
            return self._answer(work, out), work.refusals

    def close(self) -> None:
        """Closes the sessions on the server, which gives their memory back, and disconnects from them."""
        self.disconnect()
        fleet_birth.close(self.sessions)

    def disconnect(self) -> None:
        """Ends the stream; the sessions live on. Cuts a call in another thread off. Harmless when repeated."""
        self._closed = True
        while not self._lock.acquire(timeout=0.05):
            if (stream := self._stream) is not None:
                stream.cancel()
        try:
            if self._stream is not None:
                self._stream.close()
                self._stream = None
        finally:
            self._lock.release()

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._created:
            self.disconnect()
            return
        try:
            self.close()
        except HermosisError:
            if error is None:  # What went wrong inside matters more than that the server cannot be told.
                raise

    # Inside

    def _contribute(
        self,
        gradients: "Float32 | Sequence[ArrayLike]",
        losses: ArrayLike | None,
        sample_counts: ArrayLike | None,
        lr_scales: ArrayLike | None,
        members: Sequence[int] | Ints | None,
        energies: bool,
        out: Float32 | None,
        *,
        reply: bool,
    ) -> FleetResult:
        with self._lock:
            work = self._work(members, gradients, out, reply=reply)
            count = len(work.members)
            work.losses = _column("losses", losses, count, np.float64)
            work.sample_counts = _column("sample_counts", sample_counts, count, np.int64)
            work.lr_scales = _column("lr_scales", lr_scales, count, np.float64)
            if energies:
                work.ask_for_energies()
            self._persist(work)
            self._standing.hold(work)
            table = work.energies
            return FleetResult(
                parameters=self._answer(work, out) if reply and work.landed is not None else None,
                outcome=work.outcome,
                step=work.step,
                durable_step=work.durable_step,
                staleness=work.staleness,
                contributions=work.contributions,
                duplicate=work.duplicate,
                energies={} if table is None else {name: table[:, i] for i, name in enumerate(ENERGIES)},
                refusals=work.refusals,
            )

    def _work(
        self,
        members: Sequence[int] | Ints | None,
        gradients: "Float32 | Sequence[ArrayLike] | None",
        out: Float32 | None,
        *,
        reply: bool,
    ) -> Work:
        crew = self._everybody if members is None else self._crew(self._chosen(members))
        replies = np.full(len(crew.members), Reply.PARAMETERS, np.int8) if gradients is None else crew.replies
        landed = None
        if reply and (replies != Reply.NONE).any():
            landed = np.zeros(int(crew.starts[-1]), np.float32) if out is None else _flat("out", out, crew.shape)
        return Work(
            members=crew.members,
            starts=crew.starts,
            terms=self._terms,
            replies=replies,
            gradient=None if gradients is None else _gathered(gradients, crew.starts, crew.shape),
            landed=landed,
        )

    def _crew(self, members: Ints) -> "_Crew":
        sizes = self._sizes[members]
        first = int(sizes[0])
        return _Crew(
            members=members,
            starts=np.concatenate([[0], np.cumsum(sizes)]),
            replies=self._terms.replies[members],
            shape=(len(sizes), first) if (sizes == first).all() else (int(sizes.sum()),),
        )

    def _chosen(self, members: Sequence[int] | Ints) -> Ints:
        chosen = np.asarray(members, np.int64).reshape(-1)
        if not len(chosen) or chosen.min() < 0 or chosen.max() >= len(self) or len(np.unique(chosen)) != len(chosen):
            raise ValueError(f"members are indices from 0 to {len(self) - 1}, at least one and each once")
        return chosen

    def _answer(self, work: Work, out: Float32 | None) -> "Float32 | list[Float32]":
        assert work.landed is not None
        if out is not None and out.ndim == 2:
            return out
        sizes = np.diff(work.starts)
        if (sizes == sizes[0]).all():
            return work.landed.reshape(len(sizes), -1)
        return [work.landed[first:end] for first, end in zip(work.starts[:-1], work.starts[1:], strict=True)]

    def _persist(self, work: Work) -> None:
        """Works until every member is settled, on as many streams as it takes."""
        patience: Patience | None = None
        while work.pending.any():
            cutoff.check()
            if self._closed:
                raise RuntimeError(f"fleet of worker {self.worker_id} is closed")
            try:
                self._attempt(work)
            except HermosisError as error:
                if isinstance(error, ConnectionFailed):
                    self._drop()
                trouble, settles = error, False
            except BaseException:
                # Interrupted: what was under way is of no interest any more, the next call begins afresh.
                self._drop()
                raise
            else:
                refused = next((error for place, error in work.refusals.items() if work.pending[place]), None)
                if refused is None:
                    continue
                trouble, settles = refused, True
            # Time counts from the first trouble: a round may have waited long for other workers.
            patience = patience or self._connection.patience()
            try:
                patience.wait_after(trouble)
            except HermosisError:
                if not settles:
                    raise
                work.pending[:] = False  # What was refused stays so.

    def _attempt(self, work: Work) -> None:
        if self._stream is None or self._stream.ended:
            self._stream = FleetStream(self._connection, self._standing)
        self._stream.attempt(work)

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None


def _reply(wanted: str, parameters_on: ParametersOn) -> Reply:
    if wanted == "default":
        return Reply.INCREMENT if parameters_on is ParametersOn.WORKER else Reply.PARAMETERS
    return Reply[wanted.upper()]


def _gathered(gradients: "Float32 | Sequence[ArrayLike]", starts: Ints, shape: tuple[int, ...]) -> Float32:
    """One flat vector of them all, without a copy where they are that already."""
    if isinstance(gradients, np.ndarray) and gradients.shape == shape:
        return np.ascontiguousarray(gradients, np.float32).reshape(-1)
    vectors = [np.asarray(vector, np.float32).reshape(-1) for vector in gradients]
    if [len(vector) for vector in vectors] != np.diff(starts).tolist():
        raise ValueError(f"gradients are a float32 array of shape {shape}, or a vector of each member's size")
    return np.concatenate(vectors)


def _flat(name: str, array: Float32, shape: tuple[int, ...]) -> Float32:
    if array.shape != shape or array.dtype != np.float32 or not array.flags.c_contiguous:
        raise ValueError(
            f"{name} is a contiguous float32 array of shape {shape}, got {array.dtype} of shape {array.shape}"
        )
    return array.reshape(-1)


def _column(name: str, values: ArrayLike | None, count: int, dtype: type[_Number]) -> "NDArray[_Number] | None":
    if values is None:
        return None
    column = np.asarray(values, dtype)
    if column.shape != (count,):
        raise ValueError(f"{name} has shape {column.shape}; wanted one number a member, ({count},)")
    return column
