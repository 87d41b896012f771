"""Pure physics: optimizers as Hamiltonian systems, stepped for many sessions at once. Needs torch and nothing else."""

from hermosis_server.dynamics.digest import state_digest
from hermosis_server.dynamics.hamiltonian import (
    COEFFICIENTS,
    Coefficients,
    Family,
    Hamiltonian,
    Scheme,
    WeightDecay,
    check_parameters_on_worker,
)
from hermosis_server.dynamics.integrators import Advance, advance_, initial_scalars
from hermosis_server.dynamics.kinetic import Classical, KineticEnergy, Relativistic
from hermosis_server.dynamics.local import Hermosis
from hermosis_server.dynamics.metric import Diagonal, Euclidean, Metric, MetricPlace
from hermosis_server.dynamics.phase_state import SCALARS, PhaseState, Scalars
from hermosis_server.dynamics.recipes import RECIPES, Parameter, Parameters, RecipeSpec, resolve
from hermosis_server.dynamics.rows import RowMap
from hermosis_server.dynamics.thermal import Constant, Exponential, Force, ForceMode, ThermalProfile

__all__ = [
    "COEFFICIENTS",
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
    "Hamiltonian",
    "Hermosis",
    "KineticEnergy",
    "Metric",
    "MetricPlace",
    "Parameter",
    "Parameters",
    "PhaseState",
    "RecipeSpec",
    "Relativistic",
    "RowMap",
    "Scalars",
    "Scheme",
    "ThermalProfile",
    "WeightDecay",
    "advance_",
    "check_parameters_on_worker",
    "initial_scalars",
    "resolve",
    "state_digest",
]
