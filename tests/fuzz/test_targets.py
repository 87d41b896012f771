"""The short form of fuzzing: a fixed number of cases that are the same every time."""

from typing import Any

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz.calls import METHODS
from tests.fuzz.messages import assign, kinds, value
from tests.fuzz.targets import TARGETS, Round, Target

from hermosis.v1 import access_pb2, dynamics_pb2, gradient_pb2, session_pb2, telemetry_pb2, types_pb2
from hermosis_server.rpc.server import SERVICES

FILES = (access_pb2, dynamics_pb2, gradient_pb2, session_pb2, telemetry_pb2, types_pb2)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_the_server_takes_no_harm(target: Target) -> None:
    if target.name == "rest":
        pytest.importorskip("schemathesis", reason="the REST contract needs hermosis[contract]")
    with target.house() as house:
        target.run(house, Round(cases=target.cases))
        assert house.cases >= target.cases // 2


def test_every_method_that_the_server_offers_is_called() -> None:
    pool = descriptor_pool.Default()
    offered = {(name, m.name) for name in SERVICES for m in pool.FindServiceByName(name).methods}
    assert {(method.service, method.name) for method in METHODS} == offered
    assert {method.service.rpartition(".")[2].removesuffix("Service").lower() for method in METHODS} <= {
        name for target in TARGETS for name in (target.name, target.name.removesuffix("s"))
    }


FIELDS = [(kind, field) for file in FILES for kind in kinds(file.DESCRIPTOR) for field in kind.fields]


@settings(max_examples=400, derandomize=True, database=None, deadline=None)
@given(st.sampled_from(FIELDS).flatmap(lambda place: st.tuples(st.just(place), value(place[1], ("some-session",)))))
def test_a_field_of_any_message_can_be_drawn_and_travels(drawn: Any) -> None:
    (kind, field), new = drawn
    made = GetMessageClass(kind)()
    assign(made, field, new)
    assert {there.name for there, _ in made.ListFields()} <= {field.name}
    raw = made.SerializeToString(deterministic=True)
    assert GetMessageClass(kind).FromString(raw).SerializeToString(deterministic=True) == raw
