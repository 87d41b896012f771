"""The server's memory stays as it is, whatever its clients do: a real process, measured from outside.

The bounds are several times what was measured, and a fraction of what each kind of trouble would take if it were kept.
"""

from typing import Any

import pytest

from benchmarks.soak import MIB, QUICK, SCENARIOS, STAGING, run, table


@pytest.fixture(scope="module")
def soaked() -> dict[str, dict[str, Any]]:
    rows, bed = run(QUICK)
    assert len(bed.curve) > 20
    print(table(rows))
    return {str(row["scenario"]): row for row in rows}


def test_vectors_that_are_announced_take_no_memory_before_their_data_comes(soaked: Any) -> None:
    told = soaked["announced terabytes"]["told"]
    assert told["refused"] == 8
    assert told["announced, MiB"] >= 56
    assert told["taken, MiB"] < 32


def test_slow_readers_do_not_take_more_than_the_budget_and_a_message_each(soaked: Any) -> None:
    assert soaked["slow readers"]["told"]["sent, MiB"] > 0
    assert soaked["slow readers"]["peak, MiB"] < STAGING / MIB + QUICK.readers * 10


@pytest.mark.parametrize("scenario", list(SCENARIOS))
def test_what_comes_again_takes_nothing_more(soaked: Any, scenario: str) -> None:
    # How much of their budget slow readers fill in the first wave depends on the machine's other load.
    most = STAGING / MIB if scenario == "slow readers" else 64
    assert soaked[scenario]["later waves, MiB"] < most


def test_idle_streams_and_sessions_cost_little(soaked: Any) -> None:
    assert soaked["idle streams"]["told"]["bytes a stream"] < 100_000
    assert soaked["sessions that come and go"]["told"]["bytes a session"] < 100_000
