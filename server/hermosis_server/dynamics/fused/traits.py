"""Traits: a family as the numbers that compiled code branches on."""

import enum
import functools

import numpy as np
from numpy.typing import NDArray

from hermosis_server.dynamics.family import Family, Scheme
from hermosis_server.dynamics.kinetic import KineticKind, NormScope
from hermosis_server.dynamics.thermal import ForceMode, ProfileKind


class Trait(enum.IntEnum):
    """Columns of the traits, (len(Trait),) int64; 1 for yes, unless said otherwise."""

    CONFORMAL = 0
    PUBLISHES = 1  # drifts once more to the next point: leapfrog and conformal
    PROFILE = 2  # place in PROFILES
    FORCE = 3  # place in FORCES
    RELATIVISTIC = 4
    REST_COOLING = 5
    BY_TENSOR = 6  # norms of each span
    BY_COORDINATE = 7  # norms of each element
    EUCLIDEAN_NORM = 8
    DIAGONAL = 9
    POWER_UNITS = 10  # of the metric, in eighths
    EPSILON_INSIDE = 11
    CENTERED = 12
    NORMALISE_METRIC = 13
    METRIC_ON_KICK = 14
    NORMALISE = 15
    LOOKAHEAD = 16
    FIRST_KICK = 17
    BARE_DECAY = 18
    THERMAL_DECAY = 19
    DECOUPLED_DECAY = 20
    FOLLOWS_SPEED = 21


PROFILES = (ProfileKind.STEADY, ProfileKind.LINEAR, ProfileKind.POWER)
FORCES = (ForceMode.UNIT, ForceMode.PHYSICAL, ForceMode.EMA)
KINETICS = (KineticKind.CLASSICAL, KineticKind.RELATIVISTIC)


def covers(family: Family) -> bool:
    """Whether the fused step takes sessions of this family; all others go through the flows."""
    return not family.matrix and family.profile in PROFILES and family.kinetic in KINETICS


@functools.lru_cache(maxsize=1024)
def traits_of(family: Family) -> NDArray[np.int64]:
    """The traits of a family that is covered, to be read only.

    A classical energy is the same sum over any norm groups, and never brakes: its scope is the session.
    """
    brakes = family.kinetic is KineticKind.RELATIVISTIC
    traits = np.zeros(len(Trait), dtype=np.int64)
    for trait, value in (
        (Trait.CONFORMAL, family.conformal),
        (Trait.PUBLISHES, family.scheme is not Scheme.SYMPLECTIC_EULER),
        (Trait.PROFILE, PROFILES.index(family.profile)),
        (Trait.FORCE, FORCES.index(family.force)),
        (Trait.RELATIVISTIC, brakes),
        (Trait.REST_COOLING, family.rest_cooling),
        (Trait.BY_TENSOR, brakes and family.norm_scope is NormScope.TENSOR),
        (Trait.BY_COORDINATE, brakes and family.norm_scope is NormScope.COORDINATE),
        (Trait.EUCLIDEAN_NORM, family.euclidean_norm),
        (Trait.DIAGONAL, family.diagonal),
        (Trait.POWER_UNITS, family.power_units),
        (Trait.EPSILON_INSIDE, family.epsilon_inside),
        (Trait.CENTERED, family.centered),
        (Trait.NORMALISE_METRIC, family.normalise_metric),
        (Trait.METRIC_ON_KICK, family.metric_on_kick),
        (Trait.NORMALISE, family.normalise),
        (Trait.LOOKAHEAD, family.lookahead),
        (Trait.FIRST_KICK, family.first_kick),
        (Trait.BARE_DECAY, family.bare_decay),
        (Trait.THERMAL_DECAY, family.thermal_decay),
        (Trait.DECOUPLED_DECAY, family.decoupled_decay),
        (Trait.FOLLOWS_SPEED, family.decay_follows_speed),
    ):
        traits[trait] = value
    return traits
