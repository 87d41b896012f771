"""Plain frozen data that crosses a layer. No torch, no protobuf, no behaviour beyond reading itself.

Enumerations have the numbers of their twins in hermosis.v1, so translating one is a cast; a test compares them.
"""

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hermosis.wire import Dtype


class SessionStatus(enum.IntEnum):
    CREATING = 1
    READY = 2
    PAUSED = 3
    RECOVERING = 4
    FAILED = 5
    CLOSED = 6


class ParametersOn(enum.IntEnum):
    SERVER = 1
    WORKER = 2


class ConsistencyMode(enum.IntEnum):
    BARRIER = 1
    QUORUM = 2
    ASYNC = 3
    BOUNDED = 4
    LOCAL = 5


class LatePolicy(enum.IntEnum):
    REFUSE = 1
    DROP = 2
    CARRY = 3


class StalenessWeight(enum.IntEnum):
    AS_NOW = 1
    AS_THEN = 2


class AggregationRule(enum.IntEnum):
    MEAN = 1
    CLIPPED_MEAN = 2
    MEDIAN = 3
    TRIMMED_MEAN = 4
    KRUM = 5
    MULTI_KRUM = 6


class DurabilityMode(enum.IntEnum):
    NONE = 1
    SNAPSHOT = 2
    JOURNAL = 3


class AckLevel(enum.IntEnum):
    RECEIVED = 1
    APPLIED = 2
    DURABLE = 3


class Outcome(enum.IntEnum):
    APPLIED = 1
    RECEIVED = 2
    NON_FINITE_GRADIENT = 3
    NON_FINITE_STATE = 4
    DROPPED = 5


class Reply(enum.IntEnum):
    PARAMETERS = 1
    INCREMENT = 2
    NONE = 3


class AlertSeverity(enum.IntEnum):
    WARNING = 1
    CRITICAL = 2


class StateBuffer(enum.IntEnum):
    PARAMETERS = 1
    MOMENTUM = 2
    SECOND_MOMENT = 3
    FIRST_MOMENT = 4
    LEAD = 5
    COVARIANCE = 6
    EIGENVECTORS = 7
    EIGENVALUES = 8


class EnergySample(NamedTuple):
    """The thermodynamics of one step; NaN means undefined. types.proto has the meanings, dynamics the formulas."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    name: str
    shape: tuple[int, ...]
    dtype: Dtype = Dtype.FLOAT32

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterLayout:
    """A model's tensors as one flat vector of P elements; `digest` names the layout on the wire."""

    tensors: tuple[TensorSpec, ...]
    digest: bytes
    parameter_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeChoice:
    """A named optimizer with the parameters that were given; the others have the recipe's defaults."""

    name: str
    parameters: Mapping[str, float | bool | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Consistency:
    """When contributions become a step; the fields mean what they mean in hermosis.v1, zero included."""

    mode: ConsistencyMode = ConsistencyMode.BARRIER
    workers: int = 1
    quorum: int = 0
    deadline_s: float = 0.0
    max_staleness: int = 0
    local_steps: int = 0
    late: LatePolicy = LatePolicy.REFUSE
    staleness_weight: StalenessWeight = StalenessWeight.AS_NOW
    lease_s: float = 0.0

    @property
    def has_rounds(self) -> bool:
        """Whether contributions wait for one another."""
        return self.mode in (ConsistencyMode.BARRIER, ConsistencyMode.QUORUM, ConsistencyMode.LOCAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregation:
    """How the contributions of a round become one gradient."""

    rule: AggregationRule = AggregationRule.MEAN
    max_norm: float = 0.0
    byzantine: int = 0
    quarantine: bool = False
    clip_norm: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether it is the mean of all and no more."""
        return self.rule is AggregationRule.MEAN and not (self.quarantine or self.clip_norm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Durability:
    """What reaches the disk of a session; zero means not by steps, or not by time."""

    mode: DurabilityMode = DurabilityMode.NONE
    snapshot_every_steps: int = 0
    snapshot_every_s: float = 0.0


class GradientChunk(NamedTuple):
    """A piece of one worker's gradient, still in wire bytes."""

    sequence: int
    offset: int  # in elements, from the start of the flat parameter vector
    dtype: Dtype
    crc32: int
    payload: bytes | bytearray | memoryview  # little-endian
    saved_bytes: int = 0  # that a codec spared the wire


class SegmentOffer(NamedTuple):
    """What a worker says about its shared memory; nothing of it is believed."""

    process_id: int
    descriptor: int
    token: bytes


class Commit(NamedTuple):
    """The end of one worker's gradient, with the numbers that belong to it."""

    sequence: int
    base_step: int  # step of the parameters this gradient was computed at
    loss: float = math.nan
    sample_count: int = 0
    lr_scale: float | None = None
    want_digest: bool = False
    skipped: tuple[int, ...] = ()  # tensors without a gradient
    loss_scale: float | None = None
    compression_error: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyWish:
    """What a worker wants back for a contribution.

    Attributes:
      place: memory shared with the worker, where a step may write it; two wishes are equal wherever they are to lie.
    """

    reply: Reply
    dtype: Dtype = Dtype.FLOAT32
    place: memoryview | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The fate of one contribution, and what its worker asked for."""

    sequence: int
    outcome: Outcome
    step: int
    generation: int
    durable_step: int = 0
    duplicate: bool = False
    staleness: int = 0
    contributions: int = 0
    energies: EnergySample | None = None
    state_digest: bytes = b""


class Vector(NamedTuple):
    """A flat vector in wire bytes."""

    step: int
    reply: Reply
    dtype: Dtype
    payload: memoryview


class TelemetryReading(NamedTuple):
    """One applied step of one session."""

    session_id: str
    step: int
    time_s: float  # seconds since 1970 by the server's clock
    energies: EnergySample
    contributions: int
    staleness: int
    received_bytes: int
    sent_bytes: int
    device_s: float
    batch_sessions: int
    wait_s: float
    compression_error: float = math.nan  # the largest that was stated


@dataclass(frozen=True, slots=True, kw_only=True)
class StateScalars:
    """The numbers of an optimizer state that are not one a parameter; NaN means undefined."""

    step: int
    clock: float
    log_beta: float
    internal_energy: float
    unit_momentum: float
    unit_second_moment: float
    entropy: float
    reference_energy: float
    published_cooling: float


class WorkerSequence(NamedTuple):
    worker_id: str
    sequence: int
    payload_crc32: int
    outcome: Outcome
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedState:
    """A session's whole optimizer state in plain bytes.

    Attributes:
      buffers: little-endian float32.
      workers: the last applied contribution of each worker.
      refused: the last one of each worker that was tried and changed nothing; no part of the digest.
      digest:  of scalars, buffers and workers.
    """

    scalars: StateScalars
    buffers: Mapping[StateBuffer, memoryview]
    workers: Mapping[str, WorkerSequence]
    digest: bytes
    refused: Mapping[str, WorkerSequence] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Hard limits, checked before memory is taken. Sizes in bytes, times in seconds."""

    chunk_bytes: int = 1 << 20
    max_chunk_bytes: int = 2 << 20
    max_message_bytes: int = 4 << 20
    max_sessions: int = 10_000
    max_parameters: int = 1 << 34
    max_tensors: int = 100_000
    max_rank: int = 16
    max_workers: int = 1024
    max_streams: int = 16_384
    window_bytes: int = 256 << 20
    session_bytes: int = 2 << 30
    staging_bytes: int = 4 << 30
    device_bytes: int = 4 << 30
    segment_bytes: int = 8 << 30
    max_readings: int = 10_000  # of telemetry, a session
    idle_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionMemory:
    """What one session holds."""

    session_id: str
    device_bytes: int
    host_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOverview:
    """The memory of one device, and of its sessions those with the most."""

    name: str
    capacity_bytes: int
    used_bytes: int
    free_bytes: int
    sessions: Sequence[SessionMemory]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Something that somebody should look at; of the whole server where session_id is empty."""

    severity: AlertSeverity
    rule: str
    text: str
    session_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """How a server does; telemetry.proto has the meanings. NaN is what there was none of."""

    time_s: float
    uptime_s: float
    steps: int
    received_bytes: int
    sent_bytes: int
    steps_per_s: float
    received_bytes_per_s: float
    sent_bytes_per_s: float
    queue_rounds: int
    queue_bytes: int
    batch_sessions: float
    step_p50_s: float
    step_p99_s: float
    streams: int
    staging_bytes: int
    staging_limit_bytes: int
    devices: Sequence[DeviceOverview]
    alerts: Sequence[Alert]
