"""JSON of the REST API. Names are those of hermosis.v1, and so are the meanings; enumerations go by their bare word.

A number that is undefined or infinite is null, since JSON knows neither.
"""

import enum
from datetime import datetime
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    StrictBool,
    model_validator,
)

from hermosis_client import records

Uint32 = Annotated[int, Field(ge=0, lt=2**32)]
Int64 = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


def _word(value: object) -> object:
    return value.name if isinstance(value, enum.Enum) else value


# A number that may be undefined.
Measure = float | None
DtypeWord = Literal["FLOAT32", "FLOAT16", "BFLOAT16"]

# Enumerations of the client's records, written by their word.
StatusWord = Literal["UNKNOWN", "CREATING", "READY", "PAUSED", "RECOVERING", "FAILED", "CLOSED"]
Status = Annotated[records.SessionStatus, PlainSerializer(_word, return_type=StatusWord)]
ParametersOn = Annotated[
    records.ParametersOn, PlainSerializer(_word, return_type=Literal["UNKNOWN", "SERVER", "WORKER"])
]
ConsistencyMode = Annotated[
    records.ConsistencyMode,
    PlainSerializer(_word, return_type=Literal["UNKNOWN", "BARRIER", "QUORUM", "ASYNC", "BOUNDED", "LOCAL"]),
]
ConsistencyWord = Literal["BARRIER", "QUORUM", "ASYNC", "BOUNDED", "LOCAL"]
LateWord = Literal["DEFAULT", "REFUSE", "DROP", "CARRY"]
StalenessWord = Literal["AS_NOW", "AS_THEN"]
AggregationWord = Literal["MEAN", "CLIPPED_MEAN", "MEDIAN", "TRIMMED_MEAN", "KRUM", "MULTI_KRUM"]
DurabilityMode = Annotated[
    records.DurabilityMode, PlainSerializer(_word, return_type=Literal["UNKNOWN", "NONE", "SNAPSHOT", "JOURNAL"])
]
Role = Annotated[records.Role, PlainSerializer(_word, return_type=Literal["UNKNOWN", "VIEWER", "WORKER", "OPERATOR"])]
ParameterKind = Annotated[
    records.ParameterKind, PlainSerializer(_word, return_type=Literal["UNKNOWN", "NUMBER", "FLAG", "CHOICE"])
]


class _Shown(BaseModel):
    """Read from the client's records by attribute."""

    model_config = ConfigDict(from_attributes=True, ser_json_inf_nan="null")


class _Asked(BaseModel):
    """Given by a caller; a field that is not known is a mistake, not a wish."""

    model_config = ConfigDict(extra="forbid")


# --- the spec of a session


class TensorSpec(_Asked):
    name: str = Field(description="Unique within the layout.")
    shape: list[Int64] = Field(description="Length of each axis; empty means a scalar.")
    dtype: DtypeWord = Field(
        default="FLOAT32", description="The worker's own dtype; the server's copy is always float32."
    )


class ParameterLayout(_Asked):
    tensors: list[TensorSpec] = Field(description="The model's tensors in the order of the flat vector.")


class Recipe(_Asked):
    name: str = Field(description="As GET /v1/recipes lists it.", examples=["adamw"])
    parameters: dict[str, StrictBool | Number | str] = Field(
        default={}, description="By name; those left out have their default.", examples=[{"lr": 0.001}]
    )


class Optimizer(_Asked):
    recipe: Recipe | None = Field(default=None, description="A named optimizer.")
    hamiltonian: dict[str, JsonValue] | None = Field(
        default=None,
        description="The whole dynamics: hermosis.v1.Hamiltonian in protobuf's JSON, with its own field names.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> "Optimizer":
        if (self.recipe is None) == (self.hamiltonian is None):
            raise ValueError("give either recipe or hamiltonian")
        return self


class Consistency(_Shown):
    """When contributions become a step, and what becomes of those that come late."""

    mode: Literal["UNKNOWN", "BARRIER", "QUORUM", "ASYNC", "BOUNDED", "LOCAL"] = Field(
        description="When contributions become a step."
    )
    workers: int = Field(description="Workers that take part in a round.")
    quorum: int = Field(description="Contributions that make a step of QUORUM and LOCAL; zero means all.")
    deadline_s: float = Field(description="Seconds after which such a round steps with what it has; zero means never.")
    max_staleness: int = Field(
        description="The most steps that a gradient may be behind; zero means no limit in ASYNC."
    )
    local_steps: int = Field(description="Steps of a LOCAL worker by itself; zero means 1.")
    late: Literal["UNKNOWN", "DEFAULT", "REFUSE", "DROP", "CARRY"] = Field(
        description="What becomes of a contribution that comes too late."
    )
    staleness_weight: Literal["UNKNOWN", "AS_NOW", "AS_THEN"] = Field(description="How much a late gradient counts.")
    lease_s: float = Field(
        description="Seconds of silence after which rounds go on without a worker; zero means never."
    )


class Aggregation(_Shown):
    """How the contributions of a round become one gradient."""

    rule: Literal["UNKNOWN", "MEAN", "CLIPPED_MEAN", "MEDIAN", "TRIMMED_MEAN", "KRUM", "MULTI_KRUM"] = Field(
        description="By which."
    )
    max_norm: float = Field(description="That CLIPPED_MEAN shortens contributions to.")
    byzantine: int = Field(description="Hostile workers that TRIMMED_MEAN, KRUM and MULTI_KRUM withstand.")
    quarantine: bool = Field(description="Whether contributions that are not finite are left out.")
    clip_norm: float = Field(description="Length that the round's gradient is shortened to; zero means not.")


class Durability(BaseModel):
    mode: DurabilityMode = Field(description="What reaches the server's disk.")
    snapshot_every_steps: int = Field(description="Steps between snapshots; zero means not by steps.")
    snapshot_every_s: float = Field(description="Seconds between snapshots; zero means not by time.")


class SessionSpec(BaseModel):
    """What a session was made from, with later edits."""

    layout: ParameterLayout
    optimizer: Optimizer
    consistency: Consistency
    durability: Durability
    parameters_on: ParametersOn = Field(description="Who keeps the weights.")
    display_name: str = Field(description="For people.")
    labels: dict[str, str] = Field(description="For filters.")
    aggregation: Aggregation


class NewConsistency(_Asked):
    mode: ConsistencyWord = Field(
        default="BARRIER",
        description="BARRIER steps when every worker has sent its gradient, QUORUM when enough have, ASYNC on each "
        "arrival, BOUNDED too while nobody is too far ahead, LOCAL as BARRIER or QUORUM with steps on the workers.",
    )
    workers: Uint32 = Field(default=1, description="Workers that take part in a round.")
    quorum: Uint32 = Field(default=0, description="Contributions that make a step of QUORUM and LOCAL; zero means all.")
    deadline_s: Annotated[Number, Field(ge=0)] = Field(
        default=0.0, description="Seconds after which such a round steps with what it has; zero means never."
    )
    max_staleness: Int64 = Field(default=0, description="The most steps that a gradient may be behind.")
    local_steps: Uint32 = Field(default=0, description="Steps of a LOCAL worker by itself; zero means 1.")
    late: LateWord = Field(default="DEFAULT", description="What becomes of a contribution that comes too late.")
    staleness_weight: StalenessWord = Field(default="AS_NOW", description="How much a late gradient counts.")
    lease_s: Annotated[Number, Field(ge=0)] = Field(
        default=0.0, description="Seconds of silence after which rounds go on without a worker; zero means never."
    )


class NewAggregation(_Asked):
    rule: AggregationWord = Field(default="MEAN", description="By which contributions become one gradient.")
    max_norm: Annotated[Number, Field(ge=0)] = Field(default=0.0, description="For CLIPPED_MEAN.")
    byzantine: Uint32 = Field(default=0, description="Hostile workers to withstand.")
    quarantine: StrictBool = Field(default=False, description="Leaves contributions that are not finite out.")
    clip_norm: Annotated[Number, Field(ge=0)] = Field(
        default=0.0, description="Shortens the round's gradient to this length; zero means not."
    )


class NewDurability(_Asked):
    mode: Literal["NONE", "SNAPSHOT", "JOURNAL"] = Field(
        description="NONE keeps nothing, SNAPSHOT the whole state every so often, JOURNAL every step, too."
    )
    snapshot_every_steps: Int64 = Field(default=0, description="Steps between snapshots; zero means not by steps.")
    snapshot_every_s: Annotated[Number, Field(ge=0)] = Field(
        default=0.0, description="Seconds between snapshots; zero means not by time, both zero leave it to the server."
    )


class NewSessionSpec(_Asked):
    """What a session is to be made from."""

    layout: ParameterLayout
    optimizer: Optimizer
    consistency: NewConsistency = NewConsistency()
    durability: NewDurability | None = Field(default=None, description="None leaves it to the server.")
    parameters_on: Literal["SERVER", "WORKER"] = Field(default="SERVER", description="Who keeps the weights.")
    display_name: str = Field(default="", description="For people.")
    labels: dict[str, str] = Field(default={}, description="For filters.")
    aggregation: NewAggregation = NewAggregation()


class NewSession(_Asked):
    """A session to be made. It stays CREATING until a worker uploads the initial parameters by gRPC."""

    session_id: str = Field(default="", description='1 to 63 of a-z, 0-9 and "-"; empty means the server chooses.')
    spec: NewSessionSpec


class SessionEdit(_Asked):
    """What is to change at a step boundary; what is left out or null stays as it is."""

    lr_scale: Annotated[Number, Field(gt=0)] | None = Field(
        default=None, description="Multiplies the learning rate.", examples=[0.5]
    )
    thermal_profile: dict[str, JsonValue] | None = Field(
        default=None,
        description="To go on with from the present beta: hermosis.v1.ThermalProfile in protobuf's JSON.",
        examples=[{"exponential": {"momentum_retention": 0.9}}],
    )
    display_name: str | None = Field(default=None, description="For people.")
    labels: dict[str, str] | None = Field(default=None, description="For filters; they replace all that were there.")
    consistency: NewConsistency | None = Field(default=None, description="From the next step on.")

    @model_validator(mode="after")
    def _something(self) -> "SessionEdit":
        if all(value is None for value in self.__dict__.values()):
            raise ValueError("give one or more of lr_scale, thermal_profile, display_name, labels and consistency")
        return self


class Restoring(_Asked):
    """Where a session is to be set back to."""

    snapshot_id: str = Field(default="", description="As the list of snapshots shows it; empty means the newest.")


class Forking(_Asked):
    """A session that is to go on from another's present state."""

    session_id: str = Field(default="", description='1 to 63 of a-z, 0-9 and "-"; empty means the server chooses.')
    optimizer: Optimizer | None = Field(
        default=None, description="Of the new session, which must keep the same vectors; null means the same."
    )


# --- telemetry


class EnergySample(_Shown):
    """The thermodynamics of one step; energies are divided by the thermal mass beta. Null means undefined."""

    loss: Measure = Field(description="Mean over the round's contributions.")
    smoothed_loss: Measure = Field(description="Thermal average of the loss less the kinetic energy.")
    kinetic_energy: Measure
    potential_energy: Measure
    thermal_energy: Measure
    total_energy: Measure
    kinetic_loss: Measure = Field(description="Kinetic energy in units of loss.")
    kinetic_temperature: Measure = Field(description="Twice the kinetic energy per parameter.")
    energy_defect: Measure = Field(description="How far the energy around the kick is from its conserved value.")
    internal_energy: Measure
    entropy: Measure
    log_beta: Measure = Field(description="ln(beta); the temperature is exp(-log_beta).")
    retention: Measure = Field(description="Beta before over beta after: the effective momentum coefficient.")
    cooling_rate: Measure = Field(description="Logarithmic rate of beta; null also when infinite.")
    braking: Measure = Field(description="Velocity over the Newtonian velocity.")
    step_norm: Measure = Field(description="Euclidean length of the change of the parameters.")
    gradient_norm: Measure
    momentum_norm: Measure
    learning_rate: Measure = Field(description="In force for the step, lr_scale included.")


class TelemetryReading(_Shown):
    """One applied step of one session."""

    session_id: str
    step: int
    time: datetime = Field(validation_alias="time_s", description="Of the step, by the server's clock.")
    energies: EnergySample
    contributions: int = Field(description="That made the step.")
    staleness: int = Field(description="The largest of the step's contributions, in steps.")
    received_bytes: int = Field(description="Gradient payload for the step.")
    sent_bytes: int = Field(description="Parameters or increments for the step.")
    device_s: Measure = Field(description="Seconds the step's launch took, shared by its whole batch.")
    batch_sessions: int = Field(description="Sessions that the launch stepped.")
    wait_s: Measure = Field(description="Seconds between the last contribution and the launch.")
    compression_error: Measure = Field(
        description="Length of what a codec left out of a gradient, over what was to be sent: the largest of a "
        "step's contributions; null where none stated one."
    )


class Telemetry(BaseModel):
    reading: TelemetryReading | None = Field(description="The newest; null before the first step.")


# --- sessions


class SessionSummary(BaseModel):
    """A session in a list: without its layout, with its newest reading."""

    session_id: str
    display_name: str
    status: Status
    status_reason: str = Field(description="Why it FAILED; empty otherwise.")
    step: int
    durable_step: int = Field(description="The last step that survives a crash; zero means none does.")
    generation: int
    parameter_count: int
    device: str = Field(description="Device that it was placed on.")
    device_bytes: int = Field(description="Device memory held; zero while it idles in host memory.")
    host_bytes: int = Field(description="Host memory held while it idles there.")
    optimizer: Optimizer
    lr_scale: float
    consistency_mode: ConsistencyMode
    durability_mode: DurabilityMode
    workers: int = Field(description="That have contributed or hold a stream.")
    expected_workers: int = Field(description="That take part in a round.")
    labels: dict[str, str]
    create_time: datetime
    reading: TelemetryReading | None = Field(description="The newest known; null before the first step.")


class SessionList(BaseModel):
    sessions: list[SessionSummary]
    next_page_token: str = Field(description="Asks for the page after this one; empty means that there is none.")


class Session(BaseModel):
    """A session as the server sees it now."""

    session_id: str
    spec: SessionSpec
    status: Status
    status_reason: str = Field(description="Why it FAILED; empty otherwise.")
    step: int = Field(description="Steps applied so far.")
    durable_step: int = Field(description="The last step that survives a crash; zero means none does.")
    generation: int = Field(description="Rises at every recovery, restore or import.")
    layout_digest: str = Field(description="SHA-256 of the canonical layout, in hexadecimal.")
    parameter_count: int
    device: str = Field(description="Device that it was placed on.")
    device_bytes: int = Field(description="Device memory held; zero while it idles in host memory.")
    host_bytes: int = Field(description="Host memory held while it idles there.")
    lr_scale: float
    create_time: datetime
    etag: str
    workers: int = Field(description="That have contributed or hold a stream.")


class Snapshot(BaseModel):
    """A session's whole state on the server's disk."""

    snapshot_id: str
    step: int
    state_digest: str = Field(description="SHA-256 over the whole optimizer state, in hexadecimal.")


class SnapshotInfo(BaseModel):
    """A snapshot as the disk has it."""

    snapshot_id: str
    step: int
    generation: int = Field(description="Of the session when it was written.")
    size_bytes: int
    time: datetime = Field(description="Of its writing, by the server's clock.")


class SnapshotList(BaseModel):
    snapshots: list[SnapshotInfo] = Field(description="Newest first.")


class Worker(_Shown):
    """One contributor as the server sees it."""

    worker_id: str
    connected: bool = Field(description="Whether it holds a stream.")
    next_sequence: int = Field(description="That the server expects of it.")
    base_step: int = Field(description="Of its last contribution.")
    staleness: int = Field(description="Of its last contribution, in steps.")
    received_bytes: int = Field(description="Gradient payload since the server started.")
    awaited: bool = Field(description="Whether a round waits for it.")
    lost: bool = Field(description="Silent for longer than the lease, or gone: rounds go on without it.")
    influence: float = Field(description="Of its last contribution on the gradient of its round, from 0 to 1.")
    compression_error: Measure = Field(description="That its last contribution stated; null where it stated none.")
    last_seen_time: datetime


class WorkerList(BaseModel):
    workers: list[Worker] = Field(description="By worker_id.")


# --- access


class Token(BaseModel):
    """What is known of a token."""

    name: str
    role: Role
    tenant: str
    sessions: str = Field(description="Pattern of the ids that its bearer sees.")
    create_time: datetime
    expire_time: datetime | None = Field(description="Since when it lets nobody in; null means never.")
    revoke_time: datetime | None = Field(description="Since when it lets nobody in; null means it was not revoked.")


class TokenList(BaseModel):
    tokens: list[Token] = Field(description="Oldest first, those that hold no longer included.")


class NewToken(_Asked):
    """A token to be made, of the caller's tenant."""

    name: str = Field(description="To revoke it by: 1 to 63 letters, digits, '.', '_' and '-'.", examples=["rig-1"])
    role: Literal["VIEWER", "WORKER", "OPERATOR"] = Field(
        description="A VIEWER reads; a WORKER also sends gradients and reads weights; an OPERATOR does everything."
    )
    sessions: str = Field(
        default="",
        description="Pattern of session ids, with * and ?; empty means the caller's own.",
        examples=["run-*"],
    )
    lifetime_s: Annotated[Number, Field(ge=0)] = Field(
        default=0.0, description="Seconds that it holds; zero means for ever."
    )


class MadeToken(Token):
    """A token that was just made."""

    secret: str = Field(description="The token itself. It is shown this once: nobody can show it again.")


class AuditEntry(BaseModel):
    """One management call."""

    time: datetime
    subject: str = Field(description="Name of the caller's token, certificate or account.")
    role: Role
    method: str
    session_id: str = Field(description="That it was about; empty where it was about none.")
    token: str = Field(description="Name of the token that it was about; empty where it was about none.")
    request_id: str
    outcome: str = Field(description="OK, or the name of the error's class.")


class AuditList(BaseModel):
    entries: list[AuditEntry] = Field(description="Newest first.")


# --- the server


class Limits(_Shown):
    """Hard limits that the server keeps; sizes in bytes."""

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


class Capabilities(_Shown):
    """What the server is and what it allows."""

    server_version: str
    device: str = Field(description="That steps are computed on.")
    limits: Limits
    dtypes: list[str] = Field(description="That it takes and gives.")
    recipes: list[str] = Field(description="By name; GET /v1/recipes tells more.")
    consistency_modes: list[ConsistencyMode]
    durability_modes: list[DurabilityMode]
    default_durability_mode: DurabilityMode
    device_bytes_free: int
    codecs: list[str] = Field(description="That gradients and answers may be coded by.")


class RecipeParameter(_Shown):
    name: str
    kind: ParameterKind
    default_value: StrictBool | Measure | str = Field(validation_alias="default")
    minimum: Measure = Field(description="Null means unbounded.")
    minimum_excluded: bool
    maximum: Measure = Field(description="Null means unbounded.")
    maximum_excluded: bool
    choices: list[str]
    description: str


class RecipeDescription(_Shown):
    name: str
    parameters: list[RecipeParameter] = Field(description="In the order in which they should be shown.")
    physics: str
    source: str = Field(description="Of the formula.")


class RecipeList(BaseModel):
    recipes: list[RecipeDescription]


class Health(BaseModel):
    status: Literal["ok"]
