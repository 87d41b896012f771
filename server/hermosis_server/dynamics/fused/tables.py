"""Tables: what a fused pass is told of a batch, in columns that compiled code reads by number.

Named tuples of numbers rather than enumerations: compiled code knows those as constants.
"""

from typing import NamedTuple


class _Rows(NamedTuple):
    """Columns of the table of rows, (R, len(Row)) int64.

    All but LENGTH are addresses in bytes of the row's first element; zero where there is no such row. State rows are
    float32 and padded to E elements with zeros; gradient and reply have LENGTH elements, in the session's wire dtypes.
    """

    POSITION: int
    MOMENTUM: int
    SECOND_MOMENT: int
    FIRST_MOMENT: int
    LEAD: int
    GRADIENT: int
    REPLY: int
    LENGTH: int


Row = _Rows(*range(8))


class _Wholes(NamedTuple):
    """Columns of the table of sessions, (S, len(Whole)) int64.

    Dtypes are numbers of wire.Dtype; REPLY is one of records.Reply, or zero for none.
    """

    FIRST_ROW: int
    ROWS: int
    FIRST_SPAN: int
    SPANS: int
    GRADIENT_DTYPE: int
    REPLY: int
    REPLY_DTYPE: int
    ELEMENTS: int


Whole = _Wholes(*range(8))


class _Numbers(NamedTuple):
    """Columns of the table of what comes with a gradient, (S, len(Number)) float64.

    PEAK is the largest magnitude in the gradient, infinite or NaN where it is not finite. LARGEST is that in the state.
    """

    LOSS: int
    LR_SCALE: int
    PEAK: int
    LARGEST: int


Number = _Numbers(*range(4))


class _Plans(NamedTuple):
    """Columns of the table of a step's numbers, (S, len(Plan)) float64: known before the kick."""

    RETENTION: int
    GAIN: int
    FIRST: int
    STARTED: int
    STIFFNESS: int
    UNIT_MOMENTUM: int
    UNIT_SECOND_MOMENT: int
    RAISING: int
    LOG_BETA: int
    PACE: int
    HEAT_BEFORE: int
    HEAT_AFTER: int


Plan = _Plans(*range(12))


class _Sums(NamedTuple):
    """Columns of the sums of each row, (R, len(Sum)) float64.

    KINETIC, SLOPE and POWER are those of norms by coordinate; elsewhere they follow from SQUARE and WORK.
    """

    GRADIENT: int
    MOMENTUM: int
    POSITION: int
    SQUARE_BEFORE: int
    WORK_BEFORE: int
    SQUARE: int
    WORK: int
    KINETIC_BEFORE: int
    KINETIC: int
    SLOPE: int
    POWER: int
    INCREMENT: int
    PEAK: int


Sum = _Sums(*range(13))


class _Flags(NamedTuple):
    """Entries of a family's flags, (len(Flag),) int64: which flows its steps are made of."""

    RELATIVISTIC: int
    REST_COOLING: int
    BY_TENSOR: int
    BY_COORDINATE: int
    EUCLIDEAN_NORM: int
    DIAGONAL: int
    CENTERED: int
    POWER_UNITS: int
    EPSILON_INSIDE: int
    NORMALISE_METRIC: int
    METRIC_ON_KICK: int
    NORMALISE: int
    LOOKAHEAD: int
    FIRST_KICK: int
    BARE_DECAY: int
    THERMAL_DECAY: int
    DECOUPLED_DECAY: int
    DECAY_FOLLOWS_SPEED: int
    FORCE: int
    PARAMETERS: int


Flag = _Flags(*range(20))


# Outcomes of a session; UNPROVEN means that its step might not stay finite, and nothing was touched.
APPLIED, NON_FINITE_GRADIENT, UNPROVEN = 0, 1, 2
