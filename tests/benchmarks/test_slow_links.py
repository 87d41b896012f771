"""Many workers over slow links: a case measures what it says, and the page tells what was not reached."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.forking import WarmServer, warm_up

from benchmarks.links import Line
from benchmarks.slow_links import report
from benchmarks.slow_links.cases import Measured, Trouble, measure
from hermosis_client import Client

QUICK = Trouble(
    line=Line(rtt_s=0.004, rate=2e8, loss=0.0), target=1.5, limit_s=20.0, compute_s=0.002, kill_every_s=0.3, away_s=0.1
)
PARAMETERS = 50_826


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    warm_up()
    with WarmServer() as server, Client(server.address) as client:
        yield client


@pytest.mark.parametrize(("codec", "element_bytes"), [("float32", 4), ("bfloat16", 2)])
def test_a_case_counts_the_bytes_that_passed_its_links(client: Client, codec: str, element_bytes: int) -> None:
    measured = measure(client, "quorum", codec, replace(QUICK, kill_every_s=0.0))
    assert measured.reached_s == measured.seconds
    assert measured.final_loss <= QUICK.target
    assert measured.contributions >= 3 * measured.steps
    gradient = element_bytes * PARAMETERS
    # Beside them the first pulls, and what was under way at the end.
    assert gradient < measured.up_bytes < 2 * gradient
    assert gradient < measured.down_bytes < 3 * gradient


def test_workers_are_killed_all_the_while(client: Client) -> None:
    measured = measure(client, "async", "float32", replace(QUICK, target=0.0, limit_s=2.0))
    assert measured.kills >= 3
    assert measured.reached_s is None
    assert measured.steps > 10


def test_the_page_says_what_was_not_reached() -> None:
    there = Measured(
        mode="async", codec="float32", reached_s=3.0, seconds=3.0, steps=5, contributions=5, final_loss=0.3,
        up_bytes=2e5, down_bytes=2e5, kills=0, curve=[(0.0, 0, 2.3), (3.0, 5, 0.3)],
    )  # fmt: skip
    never = replace(there, mode="barrier", reached_s=None, seconds=18.1)
    machine = dict.fromkeys(("processor", "cores", "system", "python", "torch", "grpcio"), "it")
    page = report.page("2026-11-27", Trouble(), machine, [there, never])
    assert "| async | float32 | 3.0 |" in page
    assert "| barrier | float32 | not in 18 |" in page
    assert "emulated" in page
