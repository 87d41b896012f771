"""Rigs: a server and its workers, of Hermosis or of a peer, ready to be measured."""

import functools
import inspect
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.children import ROOT, Child
from benchmarks.speed.passes import Case, Part
from hermosis_client import Client, Durability, Recipe, Session
from hermosis_client.local_server import LocalServer

PEER_ENVIRONMENT = ROOT / "build" / "peers" / "bin" / "python"
SGD = Recipe("sgd", lr=1e-3, momentum=0.9)
ADAMW = Recipe("adamw", lr=1e-3)


class Missing(Exception):
    """A peer that is not installed; the message says how to get it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A system to be compared with.

    Attributes:
      module:    of benchmarks.peers.
      needs:     import name of its package.
      leads:     whether its server takes the orders.
      spins:     whether it keeps a processor busy while it waits; it is then stopped until its turn.
      also:      further forms of its exchange: by name, the worker's case.
    """

    name: str
    module: str
    needs: str
    options: Sequence[str] = ()
    leads: bool = False
    spins: bool = False
    also: Mapping[str, str] = field(default_factory=dict)

    @property
    def forms(self) -> dict[str, str]:
        """All forms of its exchange: by name, the worker's case."""
        return {self.name: "one", **self.also}


NAIVE = Peer(name="plain gRPC", module="naive", needs="grpc")
NAIVE_KEPT = Peer(name="plain gRPC, our allocator settings", module="naive", needs="grpc", options=("--keep-memory",))
FLOWER = Peer(name="Flower", module="flower", needs="flwr", leads=True)
FLOWER_KEPT = Peer(
    name="Flower, our allocator settings", module="flower", needs="flwr", leads=True, options=("--keep-memory",)
)
RAY_VIEW = "Ray actor, read-only view"
RAY = Peer(name="Ray actor", module="ray_actor", needs="ray", also={RAY_VIEW: "view"})
TORCH_RPC = Peer(name="torch rpc", module="torch_rpc", needs="torch", spins=True)
TORCH_RPC_TCP = Peer(name="torch rpc, TCP", module="torch_rpc", needs="torch", options=("--tcp",), spins=True)
GLOO = Peer(name="gloo", module="gloo", needs="torch", spins=True)


@dataclass(slots=True)
class Workshop:
    """Makes rigs and ends them all when it is closed."""

    peer_python: Path | None
    threads: int
    resources: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> "Workshop":
        return self

    def __exit__(self, *_: object) -> None:
        self.resources.close()

    def child(self, python: str, *arguments: str) -> Child:
        child = Child(python, arguments)
        self.resources.callback(child.close)
        return child

    def python_with(self, package: str) -> str:
        """An interpreter that has a package.

        Raises:
          Missing: there is none.
        """
        own = [str(self.peer_python)] if self.peer_python else []
        for python in (sys.executable, *own):
            if has(python, package):
                return python
        raise Missing(f"{package} is not installed; see benchmarks/peers/requirements.txt")

    def peer(self, peer: Peer, *, parameters: int) -> list[Case]:
        """Starts a peer with two workers; gives the cases of each of its forms with one worker, and with two.

        Raises:
          Missing: its package is not there.
        """
        python = self.python_with(peer.needs)
        module = f"benchmarks.peers.{peer.module}"
        common = ("--parameters", str(parameters), *peer.options)
        server = self.child(python, module, "server", *common)
        address = server.address()
        workers = [
            self.child(python, module, "worker", "--address", address, "--rank", str(rank), *common) for rank in (1, 2)
        ]
        for child in (server, *workers):
            child.wait_ready()

        def case(form: str, count: int) -> Case:
            name = f"{form}, {count}"
            if peer.leads:
                parts = [Part(child=server, case=str(count), weight=count)]
            else:
                parts = [Part(child=worker, case=peer.forms[form]) for worker in workers[:count]]
            return Case(name=name, parts=parts, server=server.process_id, resting=resting)

        resting = (server, *workers) if peer.spins else ()
        for child in resting:
            child.rest()
        return [case(form, count) for form in peer.forms for count in (1, 2)]

    def raw(self, form: str) -> "RawServer":
        """The bare byte stream's server: "aio" or "sync"."""
        server = self.child(sys.executable, "benchmarks.peers.raw", form)
        address = server.address()
        server.wait_ready()
        return RawServer(self, server, address, form)

    def hermosis(self, *arguments: str) -> "HermosisServer":
        """A real server process with room for what is measured here."""
        room = ("--device-memory-bytes", str(64 << 30), "--staging-bytes", str(16 << 30), "--device", "cpu")
        server = LocalServer(arguments=(*room, "--threads", str(self.threads), "--log-level", "warning", *arguments))
        self.resources.callback(server.close)
        client = Client(server.address, timeout_s=300.0)
        self.resources.callback(client.close)
        return HermosisServer(self, server, client)


@dataclass(frozen=True, slots=True)
class RawServer:
    workshop: Workshop
    server: Child
    address: str
    form: str

    @property
    def process_id(self) -> int:
        return self.server.process_id

    def client(self, size: int, *, streams: int = 1) -> Part:
        """A client process with streams of rounds of that many bytes each way."""
        child = self.workshop.child(
            sys.executable, "benchmarks.peers.raw", "worker",
            *("--address", self.address, "--bytes", str(size), "--streams", str(streams)),
        )  # fmt: skip
        child.wait_ready()
        return Part(child=child, case="one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """One worker's place in a session, in a process of workers.

    Attributes:
      case: several seats of one case run on a thread each.
    """

    case: str
    session_id: str
    worker_id: str
    dtype: str = "float32"
    shared_memory: bool = False
    ack_level: str = "applied"


@dataclass(frozen=True, slots=True)
class HermosisServer:
    workshop: Workshop
    server: LocalServer
    client: Client

    @property
    def process_id(self) -> int:
        return self.server.process_id

    def session(
        self,
        parameters: int,
        recipe: Recipe = SGD,
        *,
        workers: int = 1,
        consistency: Any = "barrier",
        durability: Durability | None = None,
    ) -> Session:
        """A session that is READY. Kept nowhere unless asked for, as the peers are."""
        session = self.client.create_session(
            {"w": (parameters,)}, recipe, workers=workers, consistency=consistency, durability=durability
        )
        session.initialise(np.zeros(parameters, np.float32))
        return session

    def workers(self, seats: Sequence[Seat]) -> Child:
        """A process with these seats; orders go by their case."""
        described = json.dumps([{name: getattr(seat, name) for name in Seat.__slots__} for seat in seats])
        child = self.workshop.child(sys.executable, "benchmarks.speed.worker", self.server.address, described)
        child.wait_ready()
        return child

    def many(self, sessions: int, parameters: int) -> Child:
        """A process with that many small sessions of its own (benchmarks/speed/many.py)."""
        child = self.workshop.child(
            sys.executable, "benchmarks.speed.many", self.server.address, str(sessions), str(parameters)
        )
        child.wait_ready()
        return child


@functools.cache
def has(python: str, package: str) -> bool:
    """Whether an interpreter can find a package."""
    program = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    try:
        return subprocess.run([python, "-c", program], cwd=ROOT, check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def knows_shared_memory() -> bool:
    """Whether this client has the same-host path."""
    return "shared_memory" in inspect.signature(Session.worker).parameters


def knows_fleets() -> bool:
    """Whether this client packs many sessions into a message."""
    return hasattr(Client, "create_fleet")


def segment_option(shared_memory: bool) -> dict[str, bool]:
    """The option that turns the same-host path on or off; nothing where the client has none."""
    return {"shared_memory": shared_memory} if knows_shared_memory() else {}


def version_in(python: Path, package: str) -> str:
    """Version of a package in another environment."""
    program = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([python, "-c", program], check=False, capture_output=True, text=True)
    return done.stdout.strip() or "not installed"
