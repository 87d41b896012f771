"""Resident: the part of a session that lives with the device thread, and what can be done with it there.

Every function here runs as a job of the executor, between two steps.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hermosis.wire import Dtype
from hermosis_server.dynamics import (
    SCALARS,
    Family,
    Hamiltonian,
    Power,
    Scalars,
    ThermalProfile,
    initial_scalars,
    spans_of,
    state_digest,
)
from hermosis_server.engine.arena import Arena, Slot, from_wire, wire_bytes
from hermosis_server.engine.cohort import Cohort
from hermosis_server.errors import CorruptState, InvalidRequest, SessionNotReady
from hermosis_server.records import ExportedState, Reply, StateBuffer, StateScalars, Vector, WorkerSequence


@dataclass(eq=False, slots=True)
class Resident:
    """Rows in the arena, and a line of numbers in a cohort.

    Attributes:
      shapes:      of the session's tensors.
      cohort:      whom it steps with.
      line:        of its numbers in the cohort's tables.
      workers:     the last applied contribution of each worker, changed together with the rows.
      refused:     the last one of each worker that was tried and changed nothing; no part of the state digest.
      initialised: whether parameters have been set.
      retentions:  of the last steps, the newest last; None while no late gradient is weighed by them.
      solo:        what the stepper has laid out for steps of this session alone.
    """

    slot: Slot
    shapes: Sequence[tuple[int, ...]]
    hamiltonian: Hamiltonian
    cohort: Cohort
    line: int
    workers: dict[str, WorkerSequence] = field(default_factory=dict)
    refused: dict[str, WorkerSequence] = field(default_factory=dict)
    initialised: bool = False
    retentions: deque[float] | None = None
    solo: Any = None

    @property
    def family(self) -> Family:
        return self.cohort.family

    @property
    def scalars(self) -> tuple[float, ...]:
        """In the order of dynamics.SCALARS; the first is the step."""
        return tuple(self.cohort.scalars[self.line].tolist())

    @property
    def step(self) -> int:
        return int(self.cohort.scalars[self.line, 0])

    @property
    def holds_parameters(self) -> bool:
        return self.cohort.holds_parameters


def reserve(
    arena: Arena, hamiltonian: Hamiltonian, *, shapes: Sequence[tuple[int, ...]], holds_parameters: bool
) -> Resident:
    """Takes rows for a session.

    Raises:
      InvalidHyperparameter: a metric that tensors of these shapes cannot have, or a profile that β cannot follow from
                             its start; nothing was taken.
      OutOfDeviceMemory:     they do not fit; nothing was taken.
    """
    family, scalars, numbers = hamiltonian.family(shapes), initial_scalars(hamiltonian), hamiltonian.numbers()
    spans = spans_of([math.prod(shape) for shape in shapes], by_tensor=family.by_tensor)
    slot = arena.reserve(family.buffers(spans, holds_parameters=holds_parameters))
    cohort = arena.cohorts.find(family, len(numbers), row_elements=slot.row_elements, holds_parameters=holds_parameters)
    line = cohort.join(numbers, scalars)
    cohort.largest[line] = 0.0
    return Resident(slot=slot, shapes=shapes, hamiltonian=hamiltonian, cohort=cohort, line=line)


def release(arena: Arena, resident: Resident) -> None:
    """Gives everything back."""
    arena.release(resident.slot)
    arena.cohorts.leave(resident.cohort, resident.line)


def initialise(arena: Arena, resident: Resident, payload: memoryview, dtype: Dtype) -> None:
    """Sets the initial parameters from wire bytes.

    Raises:
      InvalidRequest:  NaN or infinity among them; nothing was set.
      SessionNotReady: they were set before, or the workers hold them.
    """
    if not resident.holds_parameters:
        raise SessionNotReady("the workers of this session hold its parameters; there is nothing to upload")
    if resident.initialised:
        raise SessionNotReady("the parameters of this session have been set in the meantime; pull them instead")
    parameters = from_wire(payload, dtype)
    if not parameters.isfinite().all():
        raise InvalidRequest("the initial parameters hold NaN or infinity; nothing was set", field="payload")
    arena.fetch([resident.slot])
    arena.write(resident.slot, StateBuffer.PARAMETERS, parameters)
    resident.cohort.largest[resident.line] = resident.slot.largest()
    resident.initialised = True


def read_parameters(arena: Arena, resident: Resident, dtype: Dtype) -> Vector:
    """The parameters in the wire dtype asked for.

    Raises:
      SessionNotReady: the workers hold the parameters, the server has none.
    """
    if not resident.holds_parameters:
        raise SessionNotReady("the workers of this session hold its parameters; the server has none to give")
    payload = _read(resident, StateBuffer.PARAMETERS, dtype)
    return Vector(step=resident.step, reply=Reply.PARAMETERS, dtype=dtype, payload=payload)


def digest(arena: Arena, resident: Resident) -> bytes:
    """Digest of the whole optimizer state."""
    return digest_of(copy_out(arena, resident))


def digest_of(state: ExportedState) -> bytes:
    """What the digest of a state is, whatever it says it is. Any thread may ask."""
    return state_digest(state.buffers, _scalars(state), list(state.workers.values()))


def check_digest(state: ExportedState) -> None:
    """Raises CorruptState unless the state is the one its digest speaks of. Any thread may ask."""
    if digest_of(state) != state.digest:
        raise CorruptState("the state does not reach its digest; export it again")


def copy_out(arena: Arena, resident: Resident) -> ExportedState:
    """Copies the whole optimizer state out; its digest is left to whoever has the time."""
    return ExportedState(
        scalars=_named(resident.scalars),
        buffers={buffer: _read(resident, buffer, Dtype.FLOAT32) for buffer in resident.slot.spans},
        workers=dict(resident.workers),
        refused=dict(resident.refused),
        digest=b"",
    )


def adopt(arena: Arena, resident: Resident, state: ExportedState) -> None:
    """Replaces the whole optimizer state by one whose digest was checked."""
    scalars = _scalars(state)
    arena.fetch([resident.slot])
    for buffer, payload in state.buffers.items():
        arena.write(resident.slot, buffer, from_wire(payload, Dtype.FLOAT32))
    resident.cohort.scalars[resident.line] = scalars
    resident.cohort.largest[resident.line] = resident.slot.largest()
    resident.workers, resident.refused = dict(state.workers), dict(state.refused)
    resident.initialised = True


def change_profile(arena: Arena, resident: Resident, thermal: ThermalProfile) -> Hamiltonian:
    """Goes on from the present state under another thermal profile; gives the dynamics as they are now.

    Raises:
      InvalidHyperparameter: the profile contradicts the rest; nothing changed.
    """
    scalars = Scalars(*resident.scalars)
    if isinstance(thermal, Power) and thermal.reference_log_beta is None and math.isfinite(scalars.log_beta):
        thermal = replace(thermal, reference_log_beta=scalars.log_beta)
    hamiltonian = replace(resident.hamiltonian, thermal=thermal)
    hamiltonian.check_bath(scalars.log_beta)
    family, numbers, old = hamiltonian.family(resident.shapes), hamiltonian.numbers(), resident.cohort
    # H jumps with the profile, so the energy defect counts from here on anew.
    scalars = scalars._replace(reference_energy=math.nan)
    if family.needs_loss and not math.isfinite(scalars.internal_energy):
        scalars = scalars._replace(internal_energy=0.0)  # where such a profile begins
    cohort = arena.cohorts.find(
        family, len(numbers), row_elements=old.row_elements, holds_parameters=old.holds_parameters
    )
    line = cohort.join(numbers, scalars)
    cohort.largest[line] = old.largest[resident.line]
    arena.cohorts.leave(old, resident.line)
    resident.hamiltonian, resident.cohort, resident.line = hamiltonian, cohort, line
    return hamiltonian


def _read(resident: Resident, buffer: StateBuffer, dtype: Dtype) -> memoryview:
    return wire_bytes(resident.slot.read(buffer), dtype)


def _scalars(state: ExportedState) -> tuple[float, ...]:
    return tuple(float(getattr(state.scalars, name)) for name in SCALARS)


def _named(scalars: tuple[float, ...]) -> StateScalars:
    values = dict(zip(SCALARS, scalars, strict=True))
    return StateScalars(step=int(values.pop("step")), **values)
