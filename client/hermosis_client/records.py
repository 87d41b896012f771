"""Plain frozen data that the client takes and gives. Numbers that do not exist are NaN.

Enumerations have the numbers of their twins in hermosis.v1; a number that a newer server may send and this version
does not know reads as UNKNOWN.
"""

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from hermosis.v1 import dynamics_pb2
from hermosis_client.layout import ParameterLayout


class _Known(enum.IntEnum):
    @classmethod
    def _missing_(cls, value: object) -> "_Known | None":
        return cls(0) if isinstance(value, int) and value != 0 else None


class SessionStatus(_Known):
    """Where a session stands in its life."""

    UNKNOWN = 0
    CREATING = 1
    READY = 2
    PAUSED = 3
    RECOVERING = 4
    FAILED = 5
    CLOSED = 6


class ParametersOn(_Known):
    """Who keeps the weights."""

    UNKNOWN = 0
    SERVER = 1
    WORKER = 2


class ConsistencyMode(_Known):
    """When contributions become a step."""

    UNKNOWN = 0
    BARRIER = 1
    QUORUM = 2
    ASYNC = 3
    BOUNDED = 4
    LOCAL = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Consistency:
    """When contributions become a step, and what becomes of those that come late.

    Attributes:
      mode:          "barrier" steps when every worker has sent its gradient; "quorum" when `quorum` of them have, or at
                     the deadline; "async" on each arrival; "bounded" too, but lets none run more than `max_staleness`
                     steps ahead of the slowest; "local" as barrier or quorum, for workers that take `local_steps` by
                     themselves and send how far they went, as a gradient.
      workers:       that take part in a round.
      quorum:        contributions that make a step of "quorum" and "local"; zero means all.
      deadline_s:    after which a round of "quorum" or "local" steps with what it has; zero means never.
      max_staleness: the most steps a gradient may be behind; zero means no limit in "async".
      local_steps:   of a worker by itself; zero means 1.
      late:          a contribution after its round, or too far behind, is refused (StaleGradient), dropped
                     (Outcome.DROPPED) or carried into the next round; "default" is what the mode does.
      staleness_weight: "as_now" counts a late gradient like any; "as_then" as if it had come in its own time.
      lease_s:       how long a worker may be silent before rounds go on without it; zero means for ever.
    """

    mode: Literal["barrier", "quorum", "async", "bounded", "local"] = "barrier"
    workers: int = 1
    quorum: int = 0
    deadline_s: float = 0.0
    max_staleness: int = 0
    local_steps: int = 0
    late: Literal["default", "refuse", "drop", "carry"] = "default"
    staleness_weight: Literal["as_now", "as_then"] = "as_now"
    lease_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregation:
    """How the contributions of a round become one gradient.

    Attributes:
      rule:       "mean"; "clipped_mean" of contributions shortened to max_norm; "median" of each coordinate;
                  "trimmed_mean" without the `byzantine` largest and smallest of each; "krum", the one closest to its
                  neighbours; "multi_krum", the mean of all but the `byzantine` that are furthest from theirs.
      max_norm:   of a contribution.
      byzantine:  hostile workers that are withstood.
      quarantine: leaves contributions with NaN or infinity out of the round, which goes on with the others.
      clip_norm:  Euclidean length that the round's gradient is shortened to; zero means not.
    """

    rule: Literal["mean", "clipped_mean", "median", "trimmed_mean", "krum", "multi_krum"] = "mean"
    max_norm: float = 0.0
    byzantine: int = 0
    quarantine: bool = False
    clip_norm: float = 0.0


class DurabilityMode(_Known):
    """What reaches the server's disk."""

    UNKNOWN = 0
    NONE = 1
    SNAPSHOT = 2
    JOURNAL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Durability:
    """What the server keeps of a session on disk.

    Attributes:
      mode: "none"; "snapshot", the whole state every so often; or "journal", every step too, before it is acknowledged
            as durable.
      snapshot_every_steps: zero means not by steps.
      snapshot_every_s:     zero means not by time; both zero leave it to the server.
    """

    mode: Literal["none", "snapshot", "journal"]
    snapshot_every_steps: int = 0
    snapshot_every_s: float = 0.0


class AlertSeverity(_Known):
    """How soon somebody should look."""

    UNKNOWN = 0
    WARNING = 1
    CRITICAL = 2


class AckLevel(_Known):
    """What an acknowledgement promises."""

    UNKNOWN = 0
    RECEIVED = 1
    APPLIED = 2
    DURABLE = 3


class Outcome(_Known):
    """The fate of one contribution."""

    UNKNOWN = 0
    APPLIED = 1
    RECEIVED = 2
    NON_FINITE_GRADIENT = 3
    NON_FINITE_STATE = 4
    DROPPED = 5


class Reply(_Known):
    """What comes back for a contribution."""

    UNKNOWN = 0
    PARAMETERS = 1
    INCREMENT = 2
    NONE = 3


class ParameterKind(_Known):
    """The type of a recipe's parameter."""

    UNKNOWN = 0
    NUMBER = 1
    FLAG = 2
    CHOICE = 3


class Role(_Known):
    """What the bearer of a token may do; each may do what those before it may."""

    UNKNOWN = 0
    VIEWER = 1
    WORKER = 2
    OPERATOR = 3


RecipeValue = float | bool | str


@dataclass(frozen=True, init=False)
class Recipe:
    """A named optimizer with its parameters: ``Recipe("adamw", learning_rate=1e-3)``.

    Parameters left out have the default that `Client.recipes` tells. Numbers, flags and words only.
    """

    name: str
    items: tuple[tuple[str, RecipeValue], ...] = ()

    def __init__(self, name: str, /, **parameters: RecipeValue) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "items", tuple(sorted(parameters.items())))

    @property
    def parameters(self) -> dict[str, RecipeValue]:
        """The parameters that were given, by name."""
        return dict(self.items)

    def __repr__(self) -> str:
        return f"Recipe({', '.join([repr(self.name), *(f'{name}={value!r}' for name, value in self.items)])})"


# A full Hamiltonian is said as its message; its fields are documented in dynamics.proto.
Optimizer = Recipe | dynamics_pb2.Hamiltonian


class EnergySample(NamedTuple):
    """The thermodynamics of one step; NaN means undefined. Energies are divided by the thermal mass beta.

    loss is the round's mean, smoothed_loss its thermal average less the kinetic energy; kinetic, potential, thermal and
    total energy are K, V, E and H after the step; kinetic_loss is the kinetic energy in units of loss;
    kinetic_temperature is twice the kinetic energy a parameter; energy_defect is how far the energy around the kick is
    from its conserved value; internal_energy is U; entropy is S since the first step; log_beta is ln(beta), so
    the temperature is exp(-log_beta); retention is beta before over beta after; braking is the velocity over the
    Newtonian one; norms are euclidean; learning_rate is the one in force, lr_scale included.
    Source of the formulas: Learning Dynamics v0.1.0; docs/theory.md.
    """

    loss: float = math.nan
    smoothed_loss: float = math.nan
    kinetic_energy: float = math.nan
    potential_energy: float = math.nan
    thermal_energy: float = math.nan
    total_energy: float = math.nan
    kinetic_loss: float = math.nan
    kinetic_temperature: float = math.nan
    energy_defect: float = math.nan
    internal_energy: float = math.nan
    entropy: float = math.nan
    log_beta: float = math.nan
    retention: float = math.nan
    cooling_rate: float = math.nan
    braking: float = math.nan
    step_norm: float = math.nan
    gradient_norm: float = math.nan
    momentum_norm: float = math.nan
    learning_rate: float = math.nan


ENERGIES = EnergySample._fields  # in the order of a packed message's columns


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The fate of one contribution."""

    sequence: int
    outcome: Outcome
    step: int  # applied so far, this one included if it was applied
    durable_step: int
    generation: int
    duplicate: bool  # answered before; the outcome is the recorded one
    staleness: int  # how many steps the gradient was behind
    contributions: int  # that made the step
    energies: EnergySample  # all NaN where nothing was applied
    state_digest: bytes  # empty unless asked for

    @property
    def applied(self) -> bool:
        """Whether the contribution became part of a step."""
        return self.outcome is Outcome.APPLIED


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryReading:
    """One applied step of one session."""

    session_id: str
    step: int
    time_s: float  # seconds since 1970 by the server's clock
    energies: EnergySample
    contributions: int
    staleness: int  # the largest of the step's contributions, in steps
    received_bytes: int
    sent_bytes: int
    device_s: float  # of the launch, shared by its whole batch
    batch_sessions: int  # that the launch stepped
    wait_s: float  # between the last contribution and the launch
    compression_error: float = math.nan  # the largest that a contribution stated; NaN where none did


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """A session as the server sees it now."""

    session_id: str
    status: SessionStatus
    status_reason: str  # why it FAILED
    step: int
    durable_step: int
    generation: int
    layout: ParameterLayout
    parameter_count: int
    device: str
    device_bytes: int
    host_bytes: int
    lr_scale: float
    optimizer: Optimizer
    consistency: Consistency
    aggregation: Aggregation
    workers: int  # that have contributed or hold a stream
    durability: DurabilityMode
    snapshot_every_steps: int  # zero means not by steps
    snapshot_every_s: float  # zero means not by time
    parameters_on: ParametersOn
    display_name: str
    labels: Mapping[str, str]
    create_time_s: float  # seconds since 1970 by the server's clock
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A session's whole state on the server's disk."""

    snapshot_id: str
    step: int
    state_digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotInfo:
    """A snapshot as the server's disk has it."""

    snapshot_id: str
    step: int
    generation: int  # of the session when it was written
    size_bytes: int
    time_s: float  # seconds since 1970 by the server's clock


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """One contributor as the server sees it."""

    worker_id: str
    connected: bool
    next_sequence: int
    base_step: int
    staleness: int
    received_bytes: int
    awaited: bool  # others have contributed to the round in the making, and this one has not
    lost: bool  # silent for longer than the lease, or gone: rounds go on without it
    influence: float  # of its last contribution on the gradient of its round, from 0 to 1
    compression_error: float  # that its last contribution stated; NaN where it stated none
    last_seen_time_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeParameter:
    """One parameter of a recipe. Bounds are infinite where there are none."""

    name: str
    kind: ParameterKind
    default: RecipeValue | None
    minimum: float = -math.inf
    minimum_excluded: bool = False
    maximum: float = math.inf
    maximum_excluded: bool = False
    choices: tuple[str, ...] = ()
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeDescription:
    """What the server tells of a recipe."""

    name: str
    parameters: tuple[RecipeParameter, ...]
    physics: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Hard limits that the server keeps. Sizes in bytes."""

    chunk_bytes: int
    max_chunk_bytes: int
    max_message_bytes: int
    max_sessions: int
    max_parameters: int
    max_tensors: int
    max_rank: int
    max_workers: int
    window_bytes: int
    staging_bytes: int
    device_bytes: int
    segment_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a server is and what it allows."""

    server_version: str
    device: str
    limits: Limits
    dtypes: tuple[str, ...]
    recipes: tuple[str, ...]
    consistency_modes: tuple[ConsistencyMode, ...]
    durability_modes: tuple[DurabilityMode, ...]
    default_durability_mode: DurabilityMode
    device_bytes_free: int
    codecs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenInfo:
    """What the server knows of a token. Times are seconds since 1970 by its clock; None means never."""

    name: str
    role: Role
    tenant: str
    sessions: str  # pattern of the ids that its bearer sees
    create_time_s: float
    expire_time_s: float | None
    revoke_time_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """A token that was just made.

    Attributes:
      secret: the token itself, which nobody can show again.
    """

    info: TokenInfo
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One management call."""

    time_s: float  # seconds since 1970 by the server's clock
    subject: str
    role: Role
    method: str
    session_id: str  # empty where it was about none
    token: str  # the name of the one that it was about; empty where it was about none
    request_id: str
    outcome: str  # "OK", or the class name of the error


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionMemory:
    """What one session holds."""

    session_id: str
    device_bytes: int
    host_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOverview:
    """The memory of one device, and of the caller's sessions there those with the most."""

    name: str
    capacity_bytes: int
    used_bytes: int
    free_bytes: int
    sessions: tuple[SessionMemory, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Something that somebody should look at; of the whole server where session_id is empty."""

    severity: AlertSeverity
    rule: str
    session_id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """How a server does: all tenants together, except where sessions are named. NaN is what there was none of."""

    time_s: float  # seconds since 1970 by the server's clock
    uptime_s: float
    steps: int  # since the server started, as are the bytes
    received_bytes: int
    sent_bytes: int
    steps_per_s: float  # of the last five to ten seconds, as are the bytes
    received_bytes_per_s: float
    sent_bytes_per_s: float
    queue_rounds: int  # that wait for a device or are with it
    queue_bytes: int
    batch_sessions: float  # of a launch, mean of the last minute
    step_p50_s: float  # from a round's last contribution to the end of its step, in the last minute
    step_p99_s: float
    streams: int
    staging_bytes: int
    staging_limit_bytes: int
    devices: tuple[DeviceOverview, ...]
    alerts: tuple[Alert, ...]  # the gravest first
