"""A process that steps many small sessions: packed in a message, and by a unary call each."""

import sys

import grpc
import numpy as np

from benchmarks.peers.child import Exchange, Voice, gradient, obey
from hermosis import wire
from hermosis.v1 import gradient_pb2, gradient_pb2_grpc, types_pb2
from hermosis_client import Client, FleetResult, Recipe


def main() -> None:
    """Arguments: address, sessions, parameters, and the cases to be ready for; all when there are none."""
    address, count, parameters = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    voice = Voice.take()
    recipe = Recipe("sgd", lr=1e-3, momentum=0.9)
    start = np.zeros((count, parameters), np.float32)
    gradients = np.tile(gradient(parameters), (count, 1))
    out = np.zeros_like(start)
    with Client(address, timeout_s=300.0) as client:
        fleet = client.create_fleet(start, recipe)
        cases: dict[str, list[Exchange]] = {"packed": [lambda: packed(fleet.exchange(gradients, out=out))]}
        if "packed" not in sys.argv[4:]:
            calls = UnaryCalls(address, parameters)
            for _ in range(count):
                session = client.create_session({"w": (parameters,)}, recipe)
                session.initialise(start[0])
                calls.sessions.append(session.session_id)
            cases |= {"unary": [calls.one_by_one], "unary at once": [calls.at_once]}
        obey(voice, cases)


def packed(answer: FleetResult) -> None:
    """RuntimeError where a session of the fleet was not stepped: a refusal is fast, and no measurement."""
    if answer.refusals or not answer.applied.all():
        raise RuntimeError(f"{len(answer.refusals)} sessions of the fleet were refused")


class UnaryCalls:
    """Step calls as anybody would make them from the .proto; every round steps each session once."""

    def __init__(self, address: str, parameters: int) -> None:
        self.sessions: list[str] = []
        self._step = 0
        self._payload = gradient(parameters).tobytes()
        self._crc32 = wire.checksum(self._payload)
        self._stub = gradient_pb2_grpc.GradientServiceStub(grpc.insecure_channel(address))

    def one_by_one(self) -> None:
        for request in self._requests():
            self._check(self._stub.Step(request))

    def at_once(self) -> None:
        for answer in [self._stub.Step.future(request) for request in self._requests()]:
            self._check(answer.result())

    def _requests(self) -> list[gradient_pb2.StepRequest]:
        requests = []
        for session_id in self.sessions:
            commit = gradient_pb2.Commit(sequence=self._step + 1, base_step=self._step)
            whole = gradient_pb2.WholeGradient(
                commit=commit, dtype=types_pb2.DTYPE_FLOAT32, crc32=self._crc32, payload=self._payload
            )
            push = gradient_pb2.PushRequest(session_id=session_id, worker_id="w", gradient=whole)
            requests.append(gradient_pb2.StepRequest(push=push, reply=gradient_pb2.REPLY_PARAMETERS))
        self._step += 1
        return requests

    def _check(self, answer: gradient_pb2.StepResponse) -> None:
        np.frombuffer(answer.payload, np.float32).copy()
        if answer.result.step != self._step:
            raise RuntimeError(f"a session is at step {answer.result.step}, not {self._step}")


if __name__ == "__main__":
    main()
