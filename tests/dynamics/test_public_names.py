"""The door of the room: exactly these names, and nothing happens on the way in."""

import subprocess
import sys

from hermosis_server import dynamics

NAMES = """
    Advance COEFFICIENTS Classical Coefficients Constant Diagonal Euclidean Exponential Family Force ForceMode Full
    Hamiltonian Hermosis KineticEnergy Kronecker Linear MATRIX_BUFFERS Metric MetricPlace NormKind NormScope Parameter
    Parameters PhaseState Polynomial Power Quartic RECIPES RecipeSpec Relativistic RowMap SCALARS Scalars Scheme Spans
    Tabulated Term ThermalProfile Truncated VelocityRegularised WeightDecay advance_ check_parameters_on_worker
    initial_scalars pieces publish_ resolve row_count spans_of state_digest update_
"""


def test_public_names_are_these() -> None:
    assert sorted(dynamics.__all__) == sorted(NAMES.split())
    assert all(hasattr(dynamics, name) for name in dynamics.__all__)


def test_digest_needs_no_torch() -> None:
    """Its file imports the standard library and the records only, so that storage tools can hash without a device."""
    code = (
        "import sys, importlib.util as u; sys.modules['torch'] = None;"
        f"s = u.spec_from_file_location('digest', {dynamics.digest.__file__!r});"
        "m = u.module_from_spec(s); s.loader.exec_module(m); m.state_digest({}, [], [])"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
