"""Pure physics: optimizers as Hamiltonian systems, many sessions at once. Needs torch, and the fused pass numba."""

from hermosis_server.dynamics.digest import state_digest
from hermosis_server.dynamics.family import COEFFICIENTS, Coefficients, Family, Scheme
from hermosis_server.dynamics.hamiltonian import Hamiltonian, WeightDecay, check_parameters_on_worker
from hermosis_server.dynamics.integrators import Advance, advance_, initial_scalars, publish_, update_
from hermosis_server.dynamics.kinetic import (
    Classical,
    KineticEnergy,
    NormKind,
    NormScope,
    Quartic,
    Relativistic,
    Truncated,
    VelocityRegularised,
)
from hermosis_server.dynamics.local import Hermosis
from hermosis_server.dynamics.metric import Diagonal, Euclidean, Full, Kronecker, Metric, MetricPlace
from hermosis_server.dynamics.parameters import Parameter, Parameters
from hermosis_server.dynamics.phase_state import MATRIX_BUFFERS, SCALARS, PhaseState, Scalars
from hermosis_server.dynamics.recipes import RECIPES, RecipeSpec, resolve
from hermosis_server.dynamics.rows import RowMap, Spans, pieces, row_count, spans_of
from hermosis_server.dynamics.thermal import (
    Constant,
    Exponential,
    Force,
    ForceMode,
    Linear,
    Polynomial,
    Power,
    Tabulated,
    Term,
    ThermalProfile,
)

__all__ = [
    "COEFFICIENTS",
    "MATRIX_BUFFERS",
    "RECIPES",
    "SCALARS",
    "Advance",
    "Classical",
    "Coefficients",
    "Constant",
    "Diagonal",
    "Euclidean",
    "Exponential",
    "Family",
    "Force",
    "ForceMode",
    "Full",
    "Hamiltonian",
    "Hermosis",
    "KineticEnergy",
    "Kronecker",
    "Linear",
    "Metric",
    "MetricPlace",
    "NormKind",
    "NormScope",
    "Parameter",
    "Parameters",
    "PhaseState",
    "Polynomial",
    "Power",
    "Quartic",
    "RecipeSpec",
    "Relativistic",
    "RowMap",
    "Scalars",
    "Scheme",
    "Spans",
    "Tabulated",
    "Term",
    "ThermalProfile",
    "Truncated",
    "VelocityRegularised",
    "WeightDecay",
    "advance_",
    "check_parameters_on_worker",
    "initial_scalars",
    "pieces",
    "publish_",
    "resolve",
    "row_count",
    "spans_of",
    "state_digest",
    "update_",
]
