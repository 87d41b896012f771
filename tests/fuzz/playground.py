"""Playground: sessions of every sort for a case to play with, made anew for each, and right requests to begin from."""

import base64
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from google.protobuf.message import Message
from tests.rpc.conftest import Service, push_request, recipe_message

from hermosis.v1 import access_pb2, dynamics_pb2, gradient_pb2, session_pb2, telemetry_pb2, types_pb2
from hermosis.wire import checksum

DEADLINE_S = 20.0

# id → (sizes of the tensors, recipe, further fields of the spec). "two" waits for two workers.
_SORTS: Mapping[str, tuple[tuple[int, ...], str, dict[str, Any]]] = {
    "play-sgd": ((5,), "sgd", {}),
    "play-adam": ((6, 2), "adam", {}),
    "play-new": ((5,), "sgd", {}),
    "play-two": ((3,), "sgd", {"consistency": types_pb2.Consistency(workers=2)}),
    "play-worker": ((4,), "sgd", {"parameters_on": types_pb2.PARAMETERS_ON_WORKER}),
    "play-async": ((5,), "rgd", {"consistency": types_pb2.Consistency(mode=types_pb2.CONSISTENCY_MODE_ASYNC)}),
}
IDS = tuple(_SORTS)
SIZES = {session_id: sum(sizes) for session_id, (sizes, _, _) in _SORTS.items()}
STEPPED = ("play-sgd", "play-adam")  # have taken one step, of `worker`


def lay_out(service: Service) -> None:
    """Makes the sessions."""
    for session_id in IDS:
        request = session_pb2.CreateSessionRequest(session_id=session_id, spec=spec(session_id))
        service.sessions.CreateSession(request, timeout=DEADLINE_S)
        if session_id not in ("play-new", "play-worker"):
            service.sessions.InitialiseParameters(iter([upload(session_id)]), timeout=DEADLINE_S)
    for session_id in STEPPED:
        service.gradients.Push(push_request(session_id, np.ones(SIZES[session_id]), 1), timeout=DEADLINE_S)


def spec(session_id: str) -> session_pb2.SessionSpec:
    sizes, recipe, fields = _SORTS[session_id]
    tensors = [types_pb2.TensorSpec(name=f"t{place}", shape=[size]) for place, size in enumerate(sizes)]
    layout = types_pb2.ParameterLayout(tensors=tensors)
    return session_pb2.SessionSpec(layout=layout, optimizer=recipe_message(recipe, lr=0.5), **fields)


def upload(session_id: str) -> session_pb2.InitialiseParametersRequest:
    payload = np.ones(SIZES[session_id], np.float32).tobytes()
    return session_pb2.InitialiseParametersRequest(session_id=session_id, crc32=checksum(payload), payload=payload)


def hamiltonian() -> dynamics_pb2.Hamiltonian:
    """One that states every part, so that a mutation meets each of them."""
    return dynamics_pb2.Hamiltonian(
        learning_rate=0.1,
        step_duration=1.0,
        initial_beta=1.0,
        thermal_profile=dynamics_pb2.ThermalProfile(power=dynamics_pb2.PowerProfile(exponent=3, age=1)),
        kinetic_energy=dynamics_pb2.KineticEnergy(
            relativistic=dynamics_pb2.RelativisticKinetic(speed_limit=1.0), norm_scope=1, norm_kind=1
        ),
        metric=dynamics_pb2.Metric(kind=2, second_moment_decay=0.99, epsilon=1e-8, power=0.5, place=1),
        force=dynamics_pb2.Force(mode=1, gradient_gain=1.0),
        weight_decay=dynamics_pb2.WeightDecay(decoupled=0.01),
        integrator=dynamics_pb2.Integrator(scheme=1),
    )


def right_requests(method: str) -> Iterator[list[Message]]:
    """Requests that a method takes, each the messages of one call."""
    step = push_request("play-sgd", np.ones(5), 2)
    edit = session_pb2.SessionEdit(
        lr_scale=0.5, display_name="d", labels={"a": "b"}, thermal_profile=hamiltonian().thermal_profile
    )
    update = session_pb2.UpdateSessionRequest(session_id="play-adam", edit=edit, etag="1", request_id="r")
    update.update_mask.paths.extend(["lr_scale", "display_name", "labels", "thermal_profile"])
    physical = spec("play-adam")
    physical.optimizer.hamiltonian.CopyFrom(hamiltonian())
    page_token = base64.urlsafe_b64encode(b'["create_time", false, 0, 1.5, "play-sgd"]').decode()
    several: dict[str, list[list[Message]]] = {
        "CreateSession": [
            [session_pb2.CreateSessionRequest(request_id="r", session_id="made", spec=made)]
            for made in (spec("play-two"), physical)
        ],
        "UpdateSession": [[update]],
        "InitialiseParameters": [[upload("play-new")]],
        "ListSessions": [
            [session_pb2.ListSessionsRequest(page_size=2, page_token=page_token, status=2, labels={"a": "b"})],
            [session_pb2.ListSessionsRequest(search="PLAY", order_by="step desc")],
        ],
        "CreateToken": [[access_pb2.CreateTokenRequest(name="rig", role=2, sessions="run-*", lifetime_s=60)]],
        "RevokeToken": [[access_pb2.RevokeTokenRequest(name="rig")]],
        "ListAudit": [[access_pb2.ListAuditRequest(limit=3)]],
        "Push": [[step]],
        "Step": [[gradient_pb2.StepRequest(push=step, reply=1, reply_dtype=2)]],
        "Pull": [[gradient_pb2.PullRequest(session_id="play-sgd", worker_id="worker", dtype=3)]],
        "ListTelemetry": [[telemetry_pb2.ListTelemetryRequest(session_id="play-sgd", after_step=0, max_readings=3)]],
        "WatchTelemetry": [[telemetry_pb2.WatchTelemetryRequest(session_ids=["play-sgd"], min_interval_s=1)]],
        "Exchange": [[*opening("play-sgd"), gradient_pb2.ExchangeRequest(whole=step.gradient)]],
    }
    yield from several.get(method, [])


def opening(session_id: str, handle: int = 0, worker_id: str = "worker", **fields: Any) -> list[Message]:
    """The first message of a stream."""
    opened = gradient_pb2.OpenSession(handle=handle, session_id=session_id, worker_id=worker_id, **fields)
    return [gradient_pb2.ExchangeRequest(open=opened)]
