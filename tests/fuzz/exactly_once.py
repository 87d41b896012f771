"""Exactly once: a model of what every contribution must have done, driven against the server in any order.

The sessions move by plain SGD with gradients of small whole numbers, so their parameters are exact: a contribution that
was applied twice, out of order or not at all shows in the sum (P3). What a call or an answer shows of a session is
compared with the model at once, so nothing older than what was told may ever be seen (P7).
"""

import contextlib
import copy
import itertools
import sys
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, multiple, precondition, rule
from tests.fuzz.rig import CALL_S, Rig
from tests.rpc.conftest import Dialogue, push_request, reason_of, recipe_message

from hermosis import wire
from hermosis.v1 import gradient_pb2, session_pb2, types_pb2

SIZE = 4
MOST_SESSIONS = 3
STREAM_S = 60.0  # a stream's whole life, which is some hundredths of a second
Request = gradient_pb2.ExchangeRequest
APPLIED, NON_FINITE = types_pb2.OUTCOME_APPLIED, types_pb2.OUTCOME_NON_FINITE_GRADIENT
READY, PAUSED, CREATING = (
    types_pb2.SESSION_STATUS_READY,
    types_pb2.SESSION_STATUS_PAUSED,
    types_pb2.SESSION_STATUS_CREATING,
)

GRADIENTS = st.lists(st.sampled_from([0.0, 1.0, -1.0, 2.0, 8.0]), min_size=SIZE, max_size=SIZE)
POISONED = st.just([1.0, float("nan"), 0.0, float("inf")])
CUTS = st.sets(st.integers(1, SIZE - 1))
WORKERS = st.sampled_from(["a", "b"])


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a contribution."""

    payload: bytes
    outcome: Any
    step: int


@dataclass(slots=True)
class Model:
    """What a session must be.

    Attributes:
      quorum:  contributions that make a step.
      fates:   of each contribution that is remembered, by worker and sequence.
      table:   (sequence, fate) of the last contribution of each worker that was applied; goes with an export.
      pending: contributions of a round that is not complete, and whether their stream still listens.
    """

    session_id: str
    quorum: int
    status: Any = CREATING
    step: int = 0
    generation: int = 1
    lr_scale: float = 1.0
    weights: Any = field(default_factory=lambda: np.zeros(SIZE, np.float32))
    sequences: dict[str, int] = field(default_factory=dict)
    fates: dict[tuple[str, int], Fate] = field(default_factory=dict)
    table: dict[str, tuple[int, Fate]] = field(default_factory=dict)
    pending: dict[str, tuple[int, bytes, bool]] = field(default_factory=dict)

    def following(self, worker: str) -> int:
        return self.sequences.get(worker, 0) + 1

    def finish_round(self) -> Fate | None:
        """Takes the step, if enough contributions are there; each of them then has a fate."""
        if len(self.pending) < self.quorum:
            return None
        vectors = [np.frombuffer(payload, np.float32) for _, payload, _ in self.pending.values()]
        mean = np.sum(vectors, axis=0, dtype=np.float32) / np.float32(len(vectors))
        applied = bool(np.isfinite(mean).all())
        if applied:
            self.weights = self.weights - np.float32(self.lr_scale) * mean
            self.step += 1
        fate = Fate(b"", APPLIED if applied else NON_FINITE, self.step)
        for worker, (sequence, payload, _) in self.pending.items():
            self.fates[worker, sequence] = Fate(payload, fate.outcome, fate.step)
            if applied:
                self.table[worker] = sequence, self.fates[worker, sequence]
        return fate


class ExactlyOnce(RuleBasedStateMachine):
    """Workers, operators and their mistakes."""

    sessions: Bundle[Model] = Bundle("sessions")
    exports: Bundle[tuple[Model, list[Any], Model]] = Bundle("exports")

    def __init__(self, rig: Rig) -> None:
        super().__init__()
        self._stack = contextlib.ExitStack()
        self._server = self._stack.enter_context(rig.case())
        self._streams: dict[tuple[str, str], Dialogue] = {}
        self._open = 0

    def teardown(self) -> None:
        for stream in self._streams.values():
            stream.__exit__()
        self._stack.__exit__(*sys.exc_info())

    @precondition(lambda self: self._open < MOST_SESSIONS)
    @rule(target=sessions, kind=st.sampled_from(["one", "two", "async"]))
    def create(self, kind: str) -> Model:
        consistency = types_pb2.Consistency(
            mode=types_pb2.CONSISTENCY_MODE_ASYNC if kind == "async" else types_pb2.CONSISTENCY_MODE_BARRIER,
            workers=2 if kind == "two" else 1,
        )
        layout = types_pb2.ParameterLayout(tensors=[types_pb2.TensorSpec(name="w", shape=[SIZE])])
        spec = session_pb2.SessionSpec(layout=layout, optimizer=recipe_message("sgd", lr=1.0), consistency=consistency)
        made = self._server.sessions.CreateSession(session_pb2.CreateSessionRequest(spec=spec), timeout=CALL_S).session
        self._open += 1
        return Model(made.session_id, quorum=2 if kind == "two" else 1)

    @rule(model=sessions, values=GRADIENTS, cuts=CUTS, whole=st.booleans())
    def initialise(self, model: Model, values: list[float], cuts: set[int], whole: bool) -> None:
        vector = np.array(values, np.float32)
        pieces = _pieces(cuts)[:: -1 if whole else 1]
        uploads = []
        for begin, end in pieces if whole else pieces[1:]:
            payload = vector[begin:end].tobytes()
            fields = {"session_id": model.session_id, "offset": begin, "crc32": wire.checksum(payload)}
            uploads.append(session_pb2.InitialiseParametersRequest(**fields, payload=payload))
        if model.status != CREATING and uploads:
            self._refused("SessionNotReady", self._server.sessions.InitialiseParameters, iter(uploads))
        elif not whole:
            reason = "LayoutMismatch" if uploads else "InvalidRequest"
            self._refused(reason, self._server.sessions.InitialiseParameters, iter(uploads))
        else:
            self._server.sessions.InitialiseParameters(iter(uploads), timeout=CALL_S)
            model.weights, model.status = vector, READY
        self._look(model)

    @rule(
        model=sessions, worker=WORKERS, values=st.one_of(GRADIENTS, GRADIENTS, POISONED), cuts=CUTS, whole=st.booleans()
    )
    def contribute(self, model: Model, worker: str, values: list[float], cuts: set[int], whole: bool) -> None:
        payload = np.array(values, np.float32).tobytes()
        sequence = model.following(worker)
        waiting = worker in model.pending
        self._send(model, worker, sequence, model.step, payload, _pieces(cuts), whole=whole)
        if model.status != READY:
            self._expect_refusal(model, worker, sequence, "SessionNotReady")
            return
        if waiting:
            self._expect_refusal(model, worker, sequence, "StaleGradient")
            return
        model.sequences[worker] = sequence
        model.pending[worker] = (sequence, payload, True)
        fate = model.finish_round()
        if fate is None:
            self._fence(model, worker)
            return
        round_, model.pending = model.pending, {}
        for member, (number, _, listens) in round_.items():
            if listens:
                self._expect_result(model, member, number, fate, duplicate=False)
        self._look(model)

    @rule(model=sessions, worker=WORKERS, values=GRADIENTS, ahead=st.sampled_from([1, 2, 1000]), whole=st.booleans())
    def skip(self, model: Model, worker: str, values: list[float], ahead: int, whole: bool) -> None:
        """A number that is not the next; it changes nothing."""
        sequence = model.following(worker) + ahead
        payload = np.array(values, np.float32).tobytes()
        self._send(model, worker, sequence, model.step, payload, _pieces(set()), whole=whole)
        self._expect_refusal(model, worker, sequence, "InvalidRequest")
        self._look(model)

    @rule(model=sessions, worker=WORKERS, values=GRADIENTS, ahead=st.integers(1, 3))
    def run_ahead(self, model: Model, worker: str, values: list[float], ahead: int) -> None:
        """A gradient of parameters that are not there yet."""
        if model.status != READY:
            return
        sequence = model.following(worker)
        payload = np.array(values, np.float32).tobytes()
        self._send(model, worker, sequence, model.step + ahead, payload, _pieces(set()), whole=True)
        self._expect_refusal(model, worker, sequence, "InvalidRequest")
        self._look(model)

    @rule(model=sessions, data=st.data(), other_bytes=st.booleans(), whole=st.booleans(), step=st.integers(0, 5))
    def replay(self, model: Model, data: st.DataObject, other_bytes: bool, whole: bool, step: int) -> None:
        """A contribution again, at whatever step the worker believes in."""
        if not model.fates:
            return
        worker, sequence = data.draw(st.sampled_from(sorted(model.fates)), "which")
        if sequence > model.sequences.get(worker, 0):
            return
        fate = model.fates[worker, sequence]
        payload = np.full(SIZE, 77, np.float32).tobytes() if other_bytes else fate.payload
        self._send(model, worker, sequence, step, payload, _pieces({2}), whole=whole)
        if other_bytes:
            self._expect_refusal(model, worker, sequence, "PayloadMismatch")
        else:
            self._expect_result(model, worker, sequence, fate, duplicate=True)
        self._look(model)

    @rule(model=sessions, worker=WORKERS, values=GRADIENTS)
    def damaged(self, model: Model, worker: str, values: list[float]) -> None:
        """A chunk that was damaged on the way: its contribution counts for nothing, and its number is free."""
        if model.status != READY:
            return
        sequence = model.following(worker)
        payload = np.array(values, np.float32).tobytes()
        self._send(model, worker, sequence, model.step, payload, _pieces({1, 2}), whole=False, crc_change=1)
        self._expect_refusal(model, worker, sequence, "CorruptChunk")
        self._look(model)

    @rule(model=sessions, worker=WORKERS)
    def reconnect(self, model: Model, worker: str) -> None:
        """A stream breaks, whatever was under way on it."""
        stream = self._streams.pop((model.session_id, worker), None)
        if stream is not None:
            stream.__exit__()
        if worker in model.pending:
            sequence, payload, _ = model.pending[worker]
            model.pending[worker] = (sequence, payload, False)
        self._stream(model, worker)

    @rule(model=sessions)
    def pause(self, model: Model) -> None:
        request = session_pb2.PauseSessionRequest(session_id=model.session_id)
        if model.status == CREATING:
            self._refused("SessionNotReady", self._server.sessions.PauseSession, request)
        else:
            self._server.sessions.PauseSession(request, timeout=CALL_S)
            model.status = PAUSED
        self._look(model)

    @rule(model=sessions)
    def resume(self, model: Model) -> None:
        request = session_pb2.ResumeSessionRequest(session_id=model.session_id)
        if model.status == CREATING:
            self._refused("SessionNotReady", self._server.sessions.ResumeSession, request)
        else:
            self._server.sessions.ResumeSession(request, timeout=CALL_S)
            model.status = READY
        self._look(model)

    @rule(model=sessions, lr_scale=st.sampled_from([0.5, 1.0, 2.0]))
    def update(self, model: Model, lr_scale: float) -> None:
        request = session_pb2.UpdateSessionRequest(
            session_id=model.session_id, edit=session_pb2.SessionEdit(lr_scale=lr_scale)
        )
        request.update_mask.paths.append("lr_scale")
        self._server.sessions.UpdateSession(request, timeout=CALL_S)
        model.lr_scale = lr_scale
        self._look(model)

    @rule(target=exports, model=sessions)
    def export(self, model: Model) -> Any:
        request = session_pb2.ExportSessionRequest(session_id=model.session_id)
        if model.status == CREATING:
            with contextlib.suppress(grpc.RpcError):
                list(self._server.sessions.ExportSession(request, timeout=CALL_S))
                raise AssertionError("a session without parameters was exported")
            return multiple()
        parts = list(self._server.sessions.ExportSession(request, timeout=CALL_S))
        return model, parts, copy.deepcopy(model)

    @rule(exported=exports)
    def import_back(self, exported: tuple[Model, list[Any], Model]) -> None:
        """The session goes back to what it was; everybody must open it again."""
        model, parts, then = exported
        if model.status == types_pb2.SESSION_STATUS_CLOSED:
            return
        requests = [session_pb2.ImportSessionRequest(session_id=model.session_id, state=parts[0].state)]
        requests += [session_pb2.ImportSessionRequest(chunk=part.chunk) for part in parts[1:]]
        self._server.sessions.ImportSession(iter(requests), timeout=CALL_S)
        for worker, (sequence, _, listens) in model.pending.items():
            if listens:
                self._expect_refusal(model, worker, sequence, "StaleGradient")
        model.generation += 1
        model.step, model.weights, model.pending = then.step, then.weights, {}
        model.table = dict(then.table)
        model.sequences = {worker: sequence for worker, (sequence, _) in then.table.items()}
        model.fates = {(worker, sequence): fate for worker, (sequence, fate) in then.table.items()}
        for key in [key for key in self._streams if key[0] == model.session_id]:
            self._fenced(model, key[1])
            self._streams.pop(key).__exit__()
        self._look(model)

    @rule(model=consumes(sessions))
    def close(self, model: Model) -> None:
        self._server.sessions.CloseSession(session_pb2.CloseSessionRequest(session_id=model.session_id), timeout=CALL_S)
        for worker, (sequence, _, listens) in model.pending.items():
            if listens:
                self._expect_refusal(model, worker, sequence, "SessionNotReady")
        model.status = types_pb2.SESSION_STATUS_CLOSED
        self._open -= 1
        for key in [key for key in self._streams if key[0] == model.session_id]:
            self._streams.pop(key).__exit__()
        request = session_pb2.GetSessionRequest(session_id=model.session_id)
        self._refused("SessionNotFound", self._server.sessions.GetSession, request)

    @rule(model=sessions)
    def pull(self, model: Model) -> None:
        if model.status == CREATING:
            return
        pulled = self._server.gradients.Pull(
            gradient_pb2.PullRequest(session_id=model.session_id, worker_id="a"), timeout=CALL_S
        )
        seen = (pulled.step, pulled.generation, pulled.next_sequence)
        wanted = (model.step, model.generation, model.following("a"))
        assert seen == wanted, f"step, generation and next sequence are {seen}, must be {wanted}"
        assert np.array_equal(np.frombuffer(pulled.payload, np.float32), model.weights), (
            "parameters are not the sum (P3)"
        )

    def _look(self, model: Model) -> None:
        """The session is what it must be."""
        request = session_pb2.GetSessionRequest(session_id=model.session_id)
        session = self._server.sessions.GetSession(request, timeout=CALL_S).session
        seen = (session.step, session.status, session.generation, session.lr_scale)
        wanted = (model.step, model.status, model.generation, model.lr_scale)
        assert seen == wanted, f"step, status, generation and lr_scale are {seen}, must be {wanted}"
        self.pull(model)

    def _stream(self, model: Model, worker: str) -> Dialogue:
        key = model.session_id, worker
        if key not in self._streams:
            opened = gradient_pb2.OpenSession(session_id=model.session_id, worker_id=worker)
            stream = self._streams[key] = Dialogue(self._server, [Request(open=opened)], deadline_s=STREAM_S)
            told = stream.next().opened
            assert (told.step, told.generation, told.status) == (model.step, model.generation, model.status)
            assert told.next_sequence == model.following(worker)
        return self._streams[key]

    def _send(
        self,
        model: Model,
        worker: str,
        sequence: int,
        base_step: int,
        payload: bytes,
        pieces: list[tuple[int, int]],
        *,
        whole: bool,
        crc_change: int = 0,
    ) -> None:
        commit = gradient_pb2.Commit(sequence=sequence, base_step=base_step)
        if whole:
            gradient = push_request("", np.frombuffer(payload, np.float32), sequence, base_step=base_step).gradient
            self._stream(model, worker).send(Request(whole=gradient))
            return
        chunks = []
        for begin, end in reversed(pieces):
            part = payload[4 * begin : 4 * end]
            crc32 = wire.checksum(part) ^ crc_change
            chunks.append(gradient_pb2.GradientChunk(sequence=sequence, offset=begin, crc32=crc32, payload=part))
        self._stream(model, worker).send(*(Request(chunk=chunk) for chunk in chunks), Request(commit=commit))

    def _expect_refusal(self, model: Model, worker: str, sequence: int, reason: str) -> None:
        answer = self._streams[model.session_id, worker].next()
        assert answer.WhichOneof("message") == "refused", f"wanted {reason}, got {answer}"
        told = (answer.refused.sequence, answer.refused.refusal.reason)
        assert told == (sequence, reason), f"wanted {reason} of {sequence}, got {told}"

    def _expect_result(self, model: Model, worker: str, sequence: int, fate: Fate, *, duplicate: bool) -> None:
        """The recorded outcome, and the parameters as they are now."""
        stream = self._streams[model.session_id, worker]
        answer = stream.next()
        if answer.WhichOneof("message") == "whole":
            result, chunk = answer.whole.result, answer.whole.chunk
        else:
            result, chunk = answer.result, stream.next().chunk
        seen = (result.sequence, result.outcome, result.step, result.duplicate)
        assert seen == (sequence, fate.outcome, fate.step, duplicate), (
            f"an outcome is not the recorded one (P3): {seen}"
        )
        assert chunk.step >= fate.step, "older than what was told (P7)"
        assert chunk.step == model.step
        assert np.array_equal(np.frombuffer(chunk.payload, np.float32), model.weights), "not the sum (P3)"

    def _fence(self, model: Model, worker: str) -> None:
        """Waits until all that was sent on a stream has been read: a pull behind it is answered."""
        stream = self._streams[model.session_id, worker]
        stream.send(Request(pull=gradient_pb2.PullParameters()))
        chunk = stream.next().chunk
        assert (chunk.sequence, chunk.step) == (0, model.step)

    def _fenced(self, model: Model, worker: str) -> None:
        """A stream of an older generation can contribute no more."""
        payload = np.ones(SIZE, np.float32).tobytes()
        sequence = model.following(worker)
        self._send(model, worker, sequence, model.step, payload, _pieces(set()), whole=True)
        self._expect_refusal(model, worker, sequence, "StaleGeneration")

    def _refused(self, reason: str, call: Any, request: Any) -> None:
        try:
            call(request, timeout=CALL_S)
        except grpc.RpcError as error:
            assert reason_of(error) == reason  # noqa: PT017  the reason is the point
        else:
            raise AssertionError(f"wanted {reason}, and it was done")


def _pieces(cuts: set[int]) -> list[tuple[int, int]]:
    edges = [0, *sorted(cuts), SIZE]
    return list(itertools.pairwise(edges))
