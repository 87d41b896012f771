"""The numbers that travel: enumerations on both sides of the codec, and message bytes fixed for ever."""

import enum
from typing import Any

import pytest
from google.protobuf.message import Message

from hermosis.coding import CodecKind
from hermosis.v1 import gradient_pb2, session_pb2, telemetry_pb2, types_pb2
from hermosis.wire import Dtype
from hermosis_server import records

TWINS = [
    (Dtype, types_pb2.Dtype),
    (CodecKind, types_pb2.CodecKind),
    (records.SessionStatus, types_pb2.SessionStatus),
    (records.ParametersOn, types_pb2.ParametersOn),
    (records.ConsistencyMode, types_pb2.ConsistencyMode),
    (records.LatePolicy, types_pb2.LatePolicy),
    (records.StalenessWeight, types_pb2.StalenessWeight),
    (records.AggregationRule, types_pb2.AggregationRule),
    (records.DurabilityMode, types_pb2.DurabilityMode),
    (records.AckLevel, types_pb2.AckLevel),
    (records.AlertSeverity, telemetry_pb2.AlertSeverity),
    (records.Outcome, types_pb2.Outcome),
    (records.Reply, gradient_pb2.Reply),
    (records.StateBuffer, session_pb2.StateBuffer),
]


@pytest.mark.parametrize(("record", "wire"), TWINS, ids=lambda side: getattr(side, "__name__", ""))
def test_record_enumerations_have_the_numbers_of_the_wire(record: type[enum.IntEnum], wire: Any) -> None:
    prefix = wire.DESCRIPTOR.values_by_number[0].name.removesuffix("UNSPECIFIED")
    on_the_wire = {name.removeprefix(prefix): number for name, number in wire.items() if number}
    assert {member.name: member.value for member in record} == on_the_wire


def test_every_record_enumeration_has_a_twin() -> None:
    own = {kind for kind in vars(records).values() if isinstance(kind, type) and issubclass(kind, enum.Enum)}
    assert own - {record for record, _ in TWINS} == set()


@pytest.mark.parametrize(
    ("record", "message"),
    [(records.EnergySample, types_pb2.EnergySample), (records.StateScalars, session_pb2.StateScalars)],
)
def test_record_fields_are_those_of_the_message(record: Any, message: type[Message]) -> None:
    fields = getattr(record, "_fields", None) or tuple(record.__dataclass_fields__)
    assert fields == tuple(message.DESCRIPTOR.fields_by_name)


# Bytes as a client of this version sends them; an older or newer end must read them the same. Never edit, only add.
GOLDEN = [
    (
        types_pb2.ParameterLayout(
            tensors=[
                types_pb2.TensorSpec(name="w", shape=[2, 3], dtype=types_pb2.DTYPE_FLOAT32),
                types_pb2.TensorSpec(name="b"),
            ]
        ),
        "0a090a01771202020318010a030a0162",
    ),
    (
        gradient_pb2.ExchangeRequest(
            open=gradient_pb2.OpenSession(
                handle=7,
                session_id="digits",
                worker_id="w-0",
                generation=1,
                gradient_dtype=types_pb2.DTYPE_FLOAT16,
                reply=gradient_pb2.REPLY_PARAMETERS,
                reply_dtype=types_pb2.DTYPE_FLOAT32,
                ack_level=types_pb2.ACK_LEVEL_APPLIED,
            )
        ),
        "0a19080712066469676974731a03772d3020013002380140014802",
    ),
    (
        gradient_pb2.ExchangeRequest(
            chunk=gradient_pb2.GradientChunk(
                handle=7, sequence=300, offset=262144, crc32=0x8BB98613, payload=b"\x00\x01\x02\x03"
            )
        ),
        "1214080710ac02188080102d1386b98b320400010203",
    ),
    (
        gradient_pb2.ExchangeRequest(
            commit=gradient_pb2.Commit(handle=7, sequence=300, base_step=299, loss=0.5, sample_count=32, lr_scale=0.25)
        ),
        "1a1c080710ac0218ab0221000000000000e03f282031000000000000d03f",
    ),
    (
        gradient_pb2.StepRequest(
            push=gradient_pb2.PushRequest(
                session_id="digits",
                worker_id="w-0",
                gradient=gradient_pb2.WholeGradient(
                    commit=gradient_pb2.Commit(sequence=1), crc32=1, payload=b"\x00\x00\x80\x3f"
                ),
            ),
            reply=gradient_pb2.REPLY_INCREMENT,
        ),
        "0a1e0a066469676974731203772d30320f0a0210011d0100000022040000803f1002",
    ),
    (
        gradient_pb2.ExchangeResponse(
            refused=gradient_pb2.StreamRefusal(
                handle=7, sequence=2, refusal=types_pb2.Refusal(reason="CorruptChunk", code=3, retry_after_s=0.5)
            )
        ),
        "2a1f080710021a190a0c436f72727570744368756e6b100329000000000000e03f",
    ),
    (
        session_pb2.CreateSessionRequest(
            request_id="r", session_id="s", spec=session_pb2.SessionSpec(display_name="d")
        ),
        "0a01721201731a03320164",
    ),
    (telemetry_pb2.WatchTelemetryRequest(session_ids=["a", "b"], min_interval_s=0.1), "0a01610a0162119a9999999999b93f"),
]


@pytest.mark.parametrize(("message", "golden"), GOLDEN, ids=lambda part: type(part).__name__)
def test_messages_keep_their_bytes(message: Message, golden: str) -> None:
    assert message.SerializeToString(deterministic=True).hex() == golden
    assert type(message).FromString(bytes.fromhex(golden)) == message
