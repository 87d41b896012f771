"""The picture of the house as data: who may import whom. docs/architecture.md says the same in words.

A module belongs to the room with the longest name that it begins with. `own` are rooms of ours that it may open,
`outside` the packages of others; the standard library is free to all.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("proto", "server", "client")
OURS = ("hermosis", "hermosis_server", "hermosis_sidecar", "hermosis_client")

WIRE = "hermosis.wire"
HOT = "hermosis.hot"
CODING = "hermosis.coding"
ALLOCATOR = "hermosis.allocator"
PACKED = "hermosis.packed"
CONTRACT = "hermosis.v1"
NOUNS = frozenset(
    {f"hermosis_server.{name}" for name in ("bound", "errors", "failpoints", "identity", "records", "tracing")} | {WIRE}
)
FUSED = frozenset({"hermosis_server.dynamics.fused", "hermosis_server.dynamics.fused_cuda"})
BELOW_ENGINE = FUSED | {"hermosis_server.dynamics", "hermosis_server.storage"}
DEVICE = frozenset({"hermosis_server.engine.arena", "hermosis_server.engine.executor"})
# What a torch optimizer of the client is made of.
TORCH_PARTS = ("group", "overlap", "pending")
# Tensors in the engine live in these and in the executor only.
TENSORS = frozenset(f"hermosis_server.engine.{name}" for name in ("aggregate", "arena", "step", "device", "skipped"))


@dataclass(frozen=True)
class Room:
    """What a module of this room may import besides the room itself."""

    own: frozenset[str] = field(default_factory=frozenset)
    outside: frozenset[str] = field(default_factory=frozenset)


def room(own: frozenset[str] | set[str] = frozenset(), outside: set[str] | None = None) -> Room:
    return Room(frozenset(own), frozenset(outside or ()))


HOUSE = {
    # The contract.
    "hermosis": room(),
    WIRE: room(outside={"isal"}),
    HOT: room({"hermosis.energies", "hermosis"}),
    CODING: room(outside={"numpy", "isal"}),
    PACKED: room(),
    "hermosis.energies": room(),
    ALLOCATOR: room(),
    "hermosis.lines": room(),
    CONTRACT: room(outside={"google.protobuf", "grpc"}),
    # The engine room, from the bottom up.
    "hermosis_server": room(),
    "hermosis_server.errors": room(),
    "hermosis_server.records": room({WIRE}),
    "hermosis_server.failpoints": room({"hermosis_server.errors"}),
    "hermosis_server.bound": room(),
    # Off, it imports nothing of OpenTelemetry.
    "hermosis_server.tracing": room({"hermosis_server.errors"}, {"opentelemetry"}),
    "hermosis_server.identity": room({WIRE, "hermosis_server.errors"}),
    # Who somebody is; neither sessions nor gRPC are known here.
    "hermosis_server.access": room(NOUNS, {"jwt", "cryptography"}),
    "hermosis_server.dynamics": room(NOUNS, {"torch"}),
    # Compiled for the processor; numba stays in here.
    "hermosis_server.dynamics.fused": room(
        NOUNS | {"hermosis", "hermosis_server", "hermosis_server.dynamics"}, {"torch", "numpy", "numba", "llvmlite"}
    ),
    "hermosis_server.dynamics.fused_cuda": room(NOUNS | {"hermosis_server.dynamics"}, {"torch", "triton"}),
    "hermosis_server.storage": room(NOUNS | {"hermosis"}, {"obstore"}),
    "hermosis_server.engine": room(NOUNS | BELOW_ENGINE | DEVICE | TENSORS, {"numpy"}),
    **{name: room(NOUNS | BELOW_ENGINE | TENSORS | {"hermosis_server.engine"}, {"torch", "numpy"}) for name in TENSORS},
    "hermosis_server.engine.executor": room(NOUNS | BELOW_ENGINE | DEVICE | TENSORS | {"hermosis_server.engine"}),
    "hermosis_server.rpc": room(
        NOUNS
        | {CONTRACT, HOT, PACKED, CODING, "hermosis", "hermosis_server", "hermosis_server.access"}
        | {"hermosis_server.engine"}
        | {"hermosis_server.rpc.codec"},
        {"numpy", "grpc", "grpc_health", "grpc_reflection", "google.protobuf", "google.rpc"},
    ),
    # Messages become records and Hamiltonians here, and nowhere else.
    "hermosis_server.rpc.codec": room(
        NOUNS
        | {CONTRACT, HOT, CODING, "hermosis_server.access", "hermosis_server.engine", "hermosis_server.dynamics"}
        | {"hermosis"},
        {"google.protobuf", "numpy"},
    ),
    "hermosis_server.settings": room(NOUNS, {"pydantic", "pydantic_settings"}),
    "hermosis_server.logs": room({"hermosis.lines", "hermosis", "hermosis_server", "hermosis_server.bound"}),
    "hermosis_server.metrics": room(
        NOUNS | {"hermosis_server.engine", "hermosis_server.storage"}, {"prometheus_client"}
    ),
    "hermosis_server.app": room(
        NOUNS
        | DEVICE
        | {"hermosis_server.rpc.codec"}
        | {
            ALLOCATOR,
            "hermosis",
            "hermosis_server",
            "hermosis_server.access",
            "hermosis_server.engine",
            "hermosis_server.logs",
            "hermosis_server.metrics",
            "hermosis_server.rpc",
            "hermosis_server.settings",
            "hermosis_server.storage",
        },
        {"torch", "uvloop"},  # to choose the device; the event loop
    ),
    "hermosis_server.processes": room(),
    # Data folders and files without a server.
    "hermosis_server.offline": room(
        NOUNS | {"hermosis_server.engine", "hermosis_server.rpc.codec", "hermosis_server.storage"}
    ),
    "hermosis_server.state_file": room(
        NOUNS
        | {CONTRACT, "hermosis_client", "hermosis_server.offline", "hermosis_server.rpc.codec"}
        | {"hermosis_server.storage"},
        {"numpy"},
    ),
    # On top: people's doors. They use the client as anybody would, and start the server through app.
    "hermosis_server.cli": room(
        {
            CONTRACT,
            "hermosis_client",
            "hermosis_server",
            "hermosis_server.access",
            "hermosis_server.app",
            "hermosis_server.demo",
            "hermosis_server.errors",
            "hermosis_server.identity",
            "hermosis_server.offline",
            "hermosis_server.processes",
            "hermosis_server.settings",
            "hermosis_server.state_file",
            "hermosis_sidecar",
        },
        {"typer", "rich", "grpc", "grpc_health", "google.protobuf", "numpy", "pydantic", "pydantic_core"},
    ),
    "hermosis_server.__main__": room({"hermosis_server.cli"}),
    "hermosis_server.demo": room(
        {
            "hermosis_client",
            "hermosis_client.torch_optimizer",
            "hermosis_server.cli",
            "hermosis_server.dynamics",
            "hermosis_server.processes",
        },
        {"torch", "numpy", "sklearn", "matplotlib", "rich"},
    ),
    # The hall and the visitor: neither knows the server.
    "hermosis_sidecar": room(
        {"hermosis_client", "hermosis_sidecar.history", CONTRACT, WIRE, "hermosis", "hermosis.lines"},
        {"fastapi", "starlette", "uvicorn", "pydantic", "pydantic_settings", "prometheus_client", "typer"}
        | {"google.protobuf"},
    ),
    # What was measured: a database, and no wire.
    "hermosis_sidecar.history": room(
        {"hermosis_client"}, {"sqlalchemy", "alembic", "numpy", "tsdownsample", "pyarrow", "starlette"}
    ),
    "hermosis_client": room(
        {CONTRACT, HOT, PACKED, CODING, WIRE, ALLOCATOR, "hermosis", "hermosis_client.tracing"},
        {"grpc", "google.protobuf", "google.rpc", "numpy"},
    ),
    "hermosis_client.tracing": room(outside={"opentelemetry"}),
    "hermosis_client.reporting": room({"hermosis_client"}),
    # Each imports its library when a reporter is made.
    **{
        f"hermosis_client.reporting.{name}": room({"hermosis_client", "hermosis_client.reporting"}, {name})
        for name in ("tensorboard", "mlflow", "wandb")
    },
    **{
        f"hermosis_client.{name}": room(
            {"hermosis_client", *(f"hermosis_client.torch_{part}" for part in TORCH_PARTS)}, {"torch"}
        )
        for name in ("torch_optimizer", "torch_local", *(f"torch_{part}" for part in TORCH_PARTS))
    },
    "hermosis_client.jax_optimizer": room({"hermosis_client"}, {"jax", "optax", "numpy"}),
}


def modules() -> dict[str, Path]:
    """Every module of ours by import name, generated code left out."""
    found = {}
    for source in SOURCES:
        for path in sorted((ROOT / source).glob("hermosis*/**/*.py")):
            if "_pb2" not in path.name:
                parts = path.relative_to(ROOT / source).with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(name: str) -> str:
    """The room a module or an imported name lies in."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in HOUSE:
            return ".".join(parts[:end])
    raise KeyError(name)


def imports_of(path: Path, package: str) -> Iterator[tuple[str, int]]:
    """Full dotted names that a file imports anywhere in it, inside functions too, with their lines."""
    for node in ast.walk(ast.parse(path.read_text(), path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            # `from a import b` may mean the module a.b or the name b of a: the longer one, where it is a module.
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def trespasses(name: str, path: Path) -> Iterator[str]:
    """Imports of one module that the picture does not show."""
    home = room_of(name)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for imported, line in imports_of(path, package):
        top = imported.partition(".")[0]
        if top in sys.stdlib_module_names:
            continue
        if top in OURS:
            allowed = room_of(imported) in {home, *HOUSE[home].own}
        else:
            allowed = any(f"{imported}.".startswith(f"{package}.") for package in HOUSE[home].outside)
        if not allowed:
            yield f"{path.name}:{line} imports {imported}, which {home} may not"


def test_every_room_has_modules() -> None:
    """A room that nobody lives in any more is taken off the picture."""
    lived_in = {room_of(name) for name in modules()} | {CONTRACT}
    assert set(HOUSE) == lived_in


def test_allowed_rooms_exist() -> None:
    assert {own for room in HOUSE.values() for own in room.own} <= set(HOUSE)


@pytest.mark.parametrize("name", modules())
def test_module_imports_what_its_room_allows(name: str) -> None:
    assert list(trespasses(name, modules()[name])) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("hermosis_server.dynamics.flows", "from hermosis_server.engine.engine import Engine"),
        ("hermosis_server.engine.session", "import torch"),
        ("hermosis_server.engine.rounds", "from hermosis.v1 import types_pb2"),
        ("hermosis_server.records", "def late() -> None:\n    import numpy"),
        ("hermosis_sidecar.app", "from hermosis_server import errors"),
        ("hermosis_client.session", "import torch.nn"),
        ("hermosis_client.layout", "from ..hermosis_server import records"),
    ],
)
def test_a_forbidden_import_would_be_seen(name: str, line: str, tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text(line)
    assert len(list(trespasses(name, planted))) == 1
