"""What the journal costs: the same exchanges with it on and off, on the same server, in turns."""

from benchmarks.speed.goals import Result
from benchmarks.speed.lab import Lab, figure, result
from benchmarks.speed.passes import Case, Part
from benchmarks.speed.rigs import HermosisServer, Seat
from hermosis_client import Durability

LARGE = 1_000_000  # parameters: 4 MB
# Little enough that the warm-up comes to the point where segments are used again, as a server does that runs for long.
JOURNAL_BYTES = 512 << 20
OFF, APPLIED, DURABLE = "off", "applied", "durable"


def measure_journal(lab: Lab) -> list[Result]:
    """4 MB and 40 KB with one worker: goodput of a journalled session against one that is kept nowhere."""
    server = lab.workshop.hermosis("--journal-bytes", str(JOURNAL_BYTES))
    sizes = {"4 MB": LARGE, "40 KB": lab.settings.medium}
    cases = [_case(server, label, size, how) for label, size in sizes.items() for how in (OFF, APPLIED, DURABLE)]
    readings = lab.run(cases)
    figures = [
        figure(
            f"{label}, acknowledged as {how.upper()}",
            readings[f"{label} {how}"],
            readings[f"{label} {OFF}"],
            judged=how == APPLIED,
        )
        for label in sizes
        for how in (APPLIED, DURABLE)
    ]
    notes = [
        "journal: the goal is about goodput, so it judges answers that do not wait for the disk; one worker that waits "
        "for each of its steps to be on disk is shown beside"
    ]
    return [result("journal", figures, notes=notes)]


def _case(server: HermosisServer, label: str, size: int, how: str) -> Case:
    session = server.session(size, durability=None if how == OFF else Durability(mode="journal"))
    level = "durable" if how == DURABLE else "applied"
    seat = Seat(case="one", session_id=session.session_id, worker_id="w", ack_level=level)
    return Case(name=f"{label} {how}", parts=[Part(child=server.workers([seat]), case="one")])
