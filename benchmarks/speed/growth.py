"""What happens when there is more of everything: the server's memory, the number of sessions, and of streams."""

import sys

from benchmarks.speed.goals import Figure, Result
from benchmarks.speed.lab import Lab, result
from benchmarks.speed.machine import memory_bytes
from benchmarks.speed.passes import Case, Part
from benchmarks.speed.rigs import Seat, knows_fleets
from benchmarks.speed.small import TINY
from benchmarks.speed.statistics import Measure, Reading, Spread, counted

WORKERS = 8
STREAM_PARAMETERS = 250_000  # 1 MB
STREAMS = (1, 2, 4, 8, 16, 32, 64)

Points = list[tuple[float, float]]


def measure_memory(lab: Lab) -> list[Result]:
    """Eight workers of one large session in rounds; memory beside the parameters and momenta, in gradients a worker."""
    size, steps = lab.settings.bulk, lab.settings.memory_steps
    server = lab.workshop.hermosis()
    server.session(1)  # what the first session brings with it is none of the large one's
    empty = memory_bytes(server.process_id)
    session = server.session(size, workers=WORKERS)
    state = 8 * size  # parameters and momenta, float32
    seats = [Seat(case="all", session_id=session.session_id, worker_id=f"w{number}") for number in range(WORKERS)]
    halves = [server.workers(seats[place::2]) for place in range(2)]
    case = Case(name="rounds", parts=[Part(child=child, case="all") for child in halves])
    used: Points = []
    for step in range(1, steps + 1):
        lab.told(f"step {step} of {steps}")
        case.run(rounds=1, seconds=0.0)
        used.append((step, memory_bytes(server.process_id)))
    peak = memory_bytes(server.process_id, peak=True)
    above = (peak - empty - state) / (4 * size) / WORKERS
    half = used[len(used) // 2][1]
    return [
        result(
            "memory",
            [
                Figure(
                    label="peak", ratio=Spread.exactly(above), unit="GB, above the state",
                    ours=Spread.exactly((peak - empty - state) / 1e9),
                )
            ],
        ),
        result(
            "memory-flat",
            [
                Figure(
                    label=f"after {steps} steps", ratio=Spread.exactly(used[-1][1] / half), unit="GB",
                    ours=Spread.exactly(used[-1][1] / 1e9), theirs=Spread.exactly(half / 1e9),
                )
            ],
        ),
    ]  # fmt: skip


def measure_growth(lab: Lab) -> list[Result]:
    """Sessions, then streams."""
    return [measure_sessions(lab), measure_streams(lab)]


def measure_sessions(lab: Lab) -> Result:
    """Sessions of 256 parameters, packed by one client that has more and more of them."""
    if not knows_fleets():
        return result("growth-sessions", failure="this client has no fleets yet")
    server = lab.workshop.hermosis("--max-sessions", "20000")
    counts = [count for count in (1, 10, 100, 1_000, 10_000) if count <= lab.settings.most_sessions]
    readings = {}
    for count in counts:
        lab.told(f"making {count} sessions")
        child = lab.workshop.child(
            sys.executable, "benchmarks.speed.many", server.server.address, str(count), str(TINY), "packed"
        )
        child.wait_ready()
        case = Case(name=str(count), parts=[Part(child=child, case="packed", weight=count)])
        rounds = case.warmed_rounds(warm_up_s=lab.settings.warm_up_s / 3, seconds=lab.settings.seconds)
        lab.told(f"{count} sessions")
        readings[count] = [case.run(rounds=rounds, seconds=0.0) for _ in range(lab.settings.passes)]
        child.close()
    rates: Points = [(count, median_of(several, lambda reading: reading.rate)) for count, several in readings.items()]
    return grown("growth-sessions", "sessions", "session steps/s", rates, p99s(readings))


def measure_streams(lab: Lab) -> Result:
    """A session of 1 MB a stream, a worker each, in two client processes."""
    server = lab.workshop.hermosis()
    size = min(STREAM_PARAMETERS, lab.settings.bulk)
    sessions = [server.session(size) for _ in range(STREAMS[-1])]
    places: list[list[Seat]] = [[], []]
    for streams in STREAMS:
        for number, session in enumerate(sessions[:streams]):
            places[number % 2].append(Seat(case=str(streams), session_id=session.session_id, worker_id=f"w{streams}"))
    halves = [server.workers(seats) for seats in places]
    readings = {}
    for streams in STREAMS:
        lab.told(f"{streams} streams")
        parts = [Part(child=child, case=str(streams)) for child in halves[: min(2, streams)]]
        case = Case(name=str(streams), parts=parts, lockstep=False)
        case.run(rounds=0, seconds=lab.settings.warm_up_s / 6)
        readings[streams] = [case.run(rounds=0, seconds=lab.settings.seconds / 2) for _ in range(lab.settings.passes)]
    goodput: Points = [
        (streams, median_of(several, lambda reading: reading.rate * 8 * size / 1e9))
        for streams, several in readings.items()
    ]
    return grown("growth-streams", "streams", "goodput, GB/s", goodput, p99s(readings))


def median_of(readings: list[Reading], measure: Measure) -> float:
    """Over the passes without other load, where enough are."""
    passes, _ = counted([[reading] for reading in readings])
    return Spread.of([measure(reading) for (reading,) in passes]).median


def p99s(readings: dict[int, list[Reading]]) -> Points:
    """Milliseconds."""
    return [(count, median_of(several, lambda reading: 1e3 * reading.p99_s)) for count, several in readings.items()]


def grown(name: str, what: str, unit: str, points: Points, p99: Points) -> Result:
    """The worst point as a share of the best that came before it; the points themselves go into the plot."""
    at, share = cliff(points)
    return result(
        name,
        [
            Figure(
                label=f"at {at:,.0f} {what}",
                ratio=Spread.exactly(share),
                ours=Spread.exactly(dict(points)[at]),
                unit=unit,
            )
        ],
        series={unit: points, "p99 of an exchange, ms": p99},
        notes=[f"{name}: {unit} " + ", ".join(f"{y:,.3g} at {x:,.0f}" for x, y in points)],
    )


def cliff(points: Points) -> tuple[float, float]:
    """Where the curve falls most below its best before, and the share that is left there; 1 where it never falls."""
    best_before, worst = points[0][1], (points[0][0], 1.0)
    for count, value in points:
        share = value / best_before
        if share < worst[1]:
            worst = (count, share)
        best_before = max(best_before, value)
    return worst
