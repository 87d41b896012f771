"""Prometheus metrics: the newest reading of each session as gauges, counters of what passed by.

Computed when asked for, so a session that is closed leaves no stale series behind.
"""

import math
from collections import Counter, deque
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, GCCollector, Metric, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from hermosis_client import SessionInfo, SessionStatus, TelemetryReading, errors
from hermosis_sidecar.hall import Hall

_LABELS = ("session_id", "optimizer")

# Attribute of EnergySample or TelemetryReading, name of the metric, what it is.
_ENERGIES = (
    ("loss", "loss", "Mean loss of the newest step's contributions."),
    ("smoothed_loss", "smoothed_loss", "Thermal average of the loss less the kinetic energy."),
    ("kinetic_energy", "kinetic_energy", "Kinetic energy over the thermal mass."),
    ("potential_energy", "potential_energy", "Potential energy over the thermal mass."),
    ("thermal_energy", "thermal_energy", "Thermal energy over the thermal mass."),
    ("total_energy", "total_energy", "Total energy over the thermal mass."),
    ("kinetic_temperature", "kinetic_temperature", "Twice the kinetic energy per parameter."),
    ("energy_defect", "energy_defect", "How far the energy around the kick is from its conserved value."),
    ("log_beta", "log_beta", "ln(beta); the temperature is exp of its negative."),
    ("retention", "retention", "Beta before over beta after the newest step."),
    ("braking", "braking", "Velocity over the Newtonian velocity."),
    ("gradient_norm", "gradient_norm", "Euclidean length of the newest step's mean gradient."),
    ("step_norm", "step_norm", "Euclidean length of the newest change of the parameters."),
    ("learning_rate", "learning_rate", "In force for the newest step."),
    ("kinetic_loss", "kinetic_loss", "Kinetic energy in units of loss."),
    ("internal_energy", "internal_energy", "Internal energy."),
    ("entropy", "entropy", "Entropy since the first step."),
    ("cooling_rate", "cooling_rate", "Logarithmic rate of beta."),
    ("momentum_norm", "momentum_norm", "Euclidean length of the energy moment."),
)
_READING = (
    ("received_bytes", "step_received_bytes", "Gradient payload for the newest step."),
    ("sent_bytes", "step_sent_bytes", "Parameters or increments sent for the newest step."),
    ("device_s", "step_device_seconds", "Time of the newest step's launch, shared by its whole batch."),
    ("wait_s", "step_wait_seconds", "Time between the newest step's last contribution and its launch."),
    ("batch_sessions", "step_batch_sessions", "Sessions that the newest step's launch stepped."),
    ("staleness", "step_staleness_steps", "How far the newest step's gradients were behind."),
    ("contributions", "step_contributions", "Contributions that made the newest step."),
    ("compression_error", "step_compression_error", "Length of what a codec left out, over what was to be sent."),
)


def registry(hall: Hall) -> CollectorRegistry:
    """All metrics of one sidecar, in a registry of their own."""
    registry = CollectorRegistry()
    registry.register(_Sidecar(hall))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


class _Sidecar(Collector):
    def __init__(self, hall: Hall) -> None:
        self._hall = hall

    def collect(self) -> Iterator[Metric]:
        newest, followings = self._hall.newest, self._hall.followings
        counts = newest.counts()
        yield CounterMetricFamily("hermosis_readings", "Readings taken from the live stream.", counts.readings)
        yield CounterMetricFamily("hermosis_steps", "Steps of all sessions that the readings told of.", counts.steps)
        yield GaugeMetricFamily("hermosis_viewers", "Live streams to viewers that are open.", followings.viewers)
        known: deque[SessionInfo] = deque(maxlen=self._hall.settings.metrics_sessions)
        statuses: Counter[SessionStatus] = Counter()
        reachable = 1.0
        try:
            for info in self._hall.probe.sessions():
                known.append(info)
                statuses[info.status] += 1
        except errors.HermosisError:
            reachable = 0.0
        yield GaugeMetricFamily("hermosis_server_reachable", "1 while the server answers, else 0.", reachable)
        if not reachable:
            return
        yield _by_status(statuses)
        yield from _by_session([(info, newest.of(info.session_id)) for info in known])


def _by_status(statuses: Counter[SessionStatus]) -> Metric:
    family = GaugeMetricFamily("hermosis_sessions", "Sessions on the server.", labels=("status",))
    for status in SessionStatus:
        if status:
            family.add_metric((status.name,), statuses[status])
    return family


def _by_session(sessions: list[tuple[SessionInfo, TelemetryReading | None]]) -> Iterator[Metric]:
    families = [
        _family("step", "Steps applied so far.", [(info, info.step) for info, _ in sessions]),
        _family("durable_step", "The last step that survives a crash.", [(i, i.durable_step) for i, _ in sessions]),
        _family("generation", "Rises at every recovery, restore or import.", [(i, i.generation) for i, _ in sessions]),
        _family("parameters", "Elements of the layout.", [(info, info.parameter_count) for info, _ in sessions]),
        _family("workers", "Workers that have contributed.", [(info, info.workers) for info, _ in sessions]),
        _family(
            "expected_workers", "Workers that take part in a round.", [(i, i.consistency.workers) for i, _ in sessions]
        ),
        _family("device_bytes", "Device memory held.", [(info, info.device_bytes) for info, _ in sessions]),
        _family("host_bytes", "Host memory held while it idles.", [(info, info.host_bytes) for info, _ in sessions]),
    ]
    read = [(info, reading) for info, reading in sessions if reading is not None]
    for attribute, name, meaning in _ENERGIES:
        families.append(_family(name, meaning, [(info, getattr(each.energies, attribute)) for info, each in read]))
    for attribute, name, meaning in _READING:
        families.append(_family(name, meaning, [(info, getattr(each, attribute)) for info, each in read]))
    yield from families


def _family(name: str, meaning: str, values: list[tuple[SessionInfo, float]]) -> Metric:
    """One gauge a session; a number that is undefined is left out."""
    family = GaugeMetricFamily(f"hermosis_session_{name}", meaning, labels=_LABELS)
    for info, value in values:
        if not math.isnan(value):
            family.add_metric((info.session_id, _optimizer(info)), value)
    return family


def _optimizer(info: SessionInfo) -> str:
    return getattr(info.optimizer, "name", "hamiltonian")
