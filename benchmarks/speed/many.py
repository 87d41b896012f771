"""A process that steps many small sessions: packed in a message, and by a unary call each."""

import sys

import grpc
import numpy as np

from benchmarks.peers.child import Voice, gradient, obey
from hermosis import wire
from hermosis.v1 import gradient_pb2, gradient_pb2_grpc, types_pb2
from hermosis_client import Client, Recipe


def main() -> None:
    """Arguments: address, sessions, parameters."""
    address, count, parameters = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    voice = Voice.take()
    recipe = Recipe("sgd", lr=1e-3, momentum=0.9)
    start = np.zeros((count, parameters), np.float32)
    gradients = np.tile(gradient(parameters), (count, 1))
    out = np.zeros_like(start)
    with Client(address, timeout_s=300.0) as client, client.create_fleet(start, recipe) as fleet:
        calls = UnaryCalls(address, parameters)
        sessions = [client.create_session({"w": (parameters,)}, recipe) for _ in range(count)]
        for session in sessions:
            session.initialise(start[0])
        calls.sessions = [session.session_id for session in sessions]
        cases = {
            "packed": [lambda: fleet.exchange(gradients, out=out)],
            "unary": [calls.one_by_one],
            "unary at once": [calls.at_once],
        }
        obey(voice, cases)


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
