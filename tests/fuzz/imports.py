"""Imports: an exported state that came back with other numbers in it, under a digest that is right for them.

Whoever can compute a digest can have a session adopt any state. It may be refused; when it is taken, everything that
can be asked of the session afterwards is still answered.
"""

from typing import Any, NamedTuple

import hypothesis
import numpy as np
from google.protobuf import text_format
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from tests.fuzz import playground
from tests.fuzz.calls import METHODS, Call, made
from tests.fuzz.messages import mutated
from tests.fuzz.rig import CALL_S, Rig, judge_response
from tests.rpc.conftest import Service, push_request

from hermosis import wire
from hermosis.v1 import gradient_pb2, session_pb2
from hermosis_server.dynamics import SCALARS, state_digest
from hermosis_server.records import Outcome, StateBuffer, WorkerSequence

NAMED = {method.name: method for method in METHODS}
SESSION = "play-adam"
SIZE = playground.SIZES[SESSION]


class Import(NamedTuple):
    """What comes back: the head, without the digest, and each buffer's elements; None leaves a buffer as it was."""

    head: session_pb2.SessionState
    elements: dict[int, list[float]]
    honest: bool  # the digest is right for what is sent

    def __repr__(self) -> str:
        return f"<{text_format.MessageToString(self.head, as_one_line=True)[:1000]} {self.elements} {self.honest}>"


@st.composite
def imports(draw: DrawFn) -> Import:
    """A state as the session of the playground might have exported it, changed."""
    scalars = session_pb2.StateScalars(
        step=1, clock=1.0, log_beta=0.1, internal_energy=0.0, unit_momentum=0.5, unit_second_moment=0.5, entropy=0.0,
        reference_energy=0.0,
    )  # fmt: skip
    worker = session_pb2.WorkerSequence(worker_id="worker", sequence=1, payload_crc32=7, outcome=1, step=1)
    right = session_pb2.SessionState(scalars=scalars, workers=[worker])
    numbers = st.sampled_from([0.0, 1.0, -1.0, 1e-45, 3e38, float("nan"), float("inf")])
    vectors = st.lists(numbers, min_size=SIZE, max_size=SIZE)
    buffers = st.sampled_from([int(buffer) for buffer in StateBuffer])
    return Import(
        draw(mutated(right, (SESSION,), most=4)),
        draw(st.dictionaries(buffers, vectors, max_size=2)),
        draw(st.integers(0, 7)) > 0,
    )


def check_import(rig: Rig, case: Import) -> None:
    """Exports, changes, imports, and then asks all that can be asked."""
    hypothesis.note(repr(case))
    with rig.case() as server:
        playground.lay_out(server)
        exported = list(
            server.sessions.ExportSession(session_pb2.ExportSessionRequest(session_id=SESSION), timeout=CALL_S)
        )
        sent = [request.SerializeToString() for request in _changed(exported, case)]
        for one in [Call(NAMED["ImportSession"], sent), *_questions(server)]:
            for response in made(server, one):
                judge_response(response)


def _changed(exported: list[session_pb2.ExportSessionResponse], case: Import) -> list[session_pb2.ImportSessionRequest]:
    """The messages of an import of the exported state with the case's numbers in it."""
    head = session_pb2.SessionState()
    head.CopyFrom(exported[0].state)
    for name in ("scalars", "workers"):
        head.ClearField(name)
    head.scalars.CopyFrom(case.head.scalars)
    head.workers.extend(case.head.workers)
    buffers = {response.chunk.buffer: response.chunk.payload for response in exported[1:]}
    buffers |= {kind: np.array(case.elements[kind], "<f4").tobytes() for kind in buffers if kind in case.elements}
    if case.honest:
        head.state_digest = _digest(head, buffers)
    chunks = [
        session_pb2.StateChunk(buffer=kind, payload=payload, crc32=wire.checksum(payload))
        for kind, payload in buffers.items()
    ]
    return [
        session_pb2.ImportSessionRequest(session_id=SESSION, state=head),
        *(session_pb2.ImportSessionRequest(chunk=chunk) for chunk in chunks),
    ]


def _digest(head: session_pb2.SessionState, buffers: dict[Any, bytes]) -> bytes:
    """The digest that the server will find, as far as there is one for such workers."""
    known = {member.value for member in Outcome}
    workers = {
        entry.worker_id: WorkerSequence(
            entry.worker_id,
            entry.sequence,
            entry.payload_crc32,
            Outcome(entry.outcome) if entry.outcome in known else Outcome.APPLIED,
            entry.step,
        )
        for entry in head.workers
    }
    scalars = [float(getattr(head.scalars, name)) for name in SCALARS]
    return state_digest(
        {StateBuffer(kind): payload for kind, payload in buffers.items()}, scalars, list(workers.values())
    )


def _questions(server: Service) -> list[Call]:
    """One call of everything that reads a session or goes on with it."""
    push = push_request(SESSION, np.ones(SIZE), 2)
    streamed = [*playground.opening(SESSION), gradient_pb2.ExchangeRequest(pull=gradient_pb2.PullParameters())]
    requests: dict[str, list[Any]] = {
        "GetSession": [session_pb2.GetSessionRequest(session_id=SESSION, want_digest=True)],
        "ListWorkers": [session_pb2.ListWorkersRequest(session_id=SESSION)],
        "ExportSession": [session_pb2.ExportSessionRequest(session_id=SESSION)],
        "Pull": [gradient_pb2.PullRequest(session_id=SESSION, worker_id="worker")],
        "Step": [gradient_pb2.StepRequest(push=push)],
        "Exchange": streamed,
        "UpdateSession": next(iter(playground.right_requests("UpdateSession"))),
        "ListSessions": [session_pb2.ListSessionsRequest()],
        "ListTelemetry": next(iter(playground.right_requests("ListTelemetry"))),
    }
    return [
        Call(NAMED[name], [message.SerializeToString() for message in messages]) for name, messages in requests.items()
    ]
