"""Hermosis client: sessions of a Hermosis server over NumPy arrays.

    with Client("127.0.0.1:50051") as client, client.create_session({"w": (3, 4)}, "adamw") as session:
        session.initialise({"w": w})
        result, parameters = session.exchange({"w": gradient}, loss=loss)

`Client.create_fleet` makes many small sessions that one worker drives together (`Fleet`).
`hermosis_client.torch_optimizer.RemoteOptimizer` is the same as a torch.optim.Optimizer, `jax_optimizer.remote` as a
transformation of optax, `numpy_optimizer.NumpyOptimizer` steps plain arrays, and `aio.AsyncClient` is all of the client
for asyncio. `local_server.LocalServer` runs a server for as long as it is needed.
"""

from hermosis_client.client import Client
from hermosis_client.coded import Codec
from hermosis_client.contribution import Contribution
from hermosis_client.errors import ConnectionFailed, HermosisError
from hermosis_client.exchange import Worker
from hermosis_client.fleet import Fleet, FleetResult
from hermosis_client.layout import ParameterLayout, Tensors, TensorSpec
from hermosis_client.loss_scale import LossScale
from hermosis_client.records import (
    Aggregation,
    Alert,
    AlertSeverity,
    AuditEntry,
    Capabilities,
    Consistency,
    DeviceOverview,
    Durability,
    EnergySample,
    NewToken,
    Outcome,
    Overview,
    Recipe,
    RecipeDescription,
    Role,
    SessionInfo,
    SessionMemory,
    SessionStatus,
    Snapshot,
    SnapshotInfo,
    StepResult,
    TelemetryReading,
    TokenInfo,
    WorkerInfo,
)
from hermosis_client.session import Session
from hermosis_client.state import ExportedState
from hermosis_client.watch import Watch

__all__ = [
    "Aggregation",
    "Alert",
    "AlertSeverity",
    "AuditEntry",
    "Capabilities",
    "Client",
    "Codec",
    "ConnectionFailed",
    "Consistency",
    "Contribution",
    "DeviceOverview",
    "Durability",
    "EnergySample",
    "ExportedState",
    "Fleet",
    "FleetResult",
    "HermosisError",
    "LossScale",
    "NewToken",
    "Outcome",
    "Overview",
    "ParameterLayout",
    "Recipe",
    "RecipeDescription",
    "Role",
    "Session",
    "SessionInfo",
    "SessionMemory",
    "SessionStatus",
    "Snapshot",
    "SnapshotInfo",
    "StepResult",
    "TelemetryReading",
    "TensorSpec",
    "Tensors",
    "TokenInfo",
    "Watch",
    "Worker",
    "WorkerInfo",
]
