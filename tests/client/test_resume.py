"""A cut connection costs what had not come yet: the client goes on where the server's copy of the gradient ends."""

import socket
import threading
from typing import Any

import numpy as np

from hermosis_client import Client

SIZE = 3_000_000  # 12 MB


class CuttingProxy:
    """Passes bytes on, and cuts its first connection off after so many from the client."""

    def __init__(self, address: str, cut_after: int) -> None:
        host, _, port = address.rpartition(":")
        self._target = host, int(port)
        self._cut_after = cut_after
        self.passed: list[int] = []  # bytes of each connection
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        for end in self._ends:
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._ends += [near, far]
            place = len(self.passed)
            self.passed.append(0)
            threading.Thread(target=self._pump, args=(near, far, place), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, None), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, place: int | None) -> None:
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
                if place is not None:
                    self.passed[place] += len(data)
                    if place == 0 and self.passed[0] > self._cut_after:
                        break
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


def test_a_cut_in_the_middle_of_a_gradient_does_not_send_it_all_again(server: Any) -> None:
    gradient = np.random.default_rng(0).standard_normal(SIZE).astype(np.float32)
    proxy = CuttingProxy(server.address, cut_after=9_000_000)
    with Client(server.address) as direct, Client(proxy.address) as client:
        session, calm = (direct.create_session({"w": (SIZE,)}, "sgd") for _ in range(2))
        for one in (session, calm):
            one.initialise(np.zeros(SIZE, np.float32))
        with client.session(session.session_id).worker("w", shared_memory=False) as worker:
            result, _ = worker.exchange(gradient)
            assert (result.step, result.duplicate) == (1, False)
        with calm.worker("w") as worker:
            worker.exchange(gradient)
        assert session.digest() == calm.digest()
        assert sum(proxy.passed[1:]) < 8_000_000, proxy.passed
        session.close()
        calm.close()
    proxy.close()
