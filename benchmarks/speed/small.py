"""Small gradients: 40 KB and 1 KB, many streams, beside a large one, and many sessions in a message."""

from benchmarks.speed.bulk import STREAMED, TWO, hermosis_cases
from benchmarks.speed.goals import Result
from benchmarks.speed.lab import Lab, figure, result
from benchmarks.speed.passes import Case, Part
from benchmarks.speed.rigs import FLOWER, GLOO, NAIVE, NAIVE_KEPT, RAY, TORCH_RPC, TORCH_RPC_TCP, Seat, knows_fleets
from benchmarks.speed.statistics import Reading

TINY = 256  # parameters: 1 KB
MANY = 64  # sessions, and streams
PROCESSES = 4  # of clients, for many streams
PEERS = (NAIVE, NAIVE_KEPT, FLOWER, RAY, TORCH_RPC, TORCH_RPC_TCP, GLOO)


def measure_medium(lab: Lab) -> list[Result]:
    """40 KB with one and two workers against every peer that is here."""
    size = lab.settings.medium
    ours = hermosis_cases(lab.workshop.hermosis(), size, list(STREAMED.values()))
    peers, missing = lab.peers(PEERS, parameters=size)
    readings = lab.run([*ours, *peers], slower=0.5)
    figures = [
        figure(f"{peer.name}, {label}", readings[case], readings[f"{peer.name}, {label.split()[0]}"])
        for peer in PEERS
        if peer.name not in missing
        for label, case in STREAMED.items()
    ]
    return [result("medium", figures, notes=[TWO, *(f"{name} is left out: {why}" for name, why in missing.items())])]


def measure_round_trip(lab: Lab) -> list[Result]:
    """One small session against an empty echo, and against itself while a large gradient streams."""
    server, raw = lab.workshop.hermosis(), lab.workshop.raw("aio")
    tiny, large = server.session(TINY), server.session(lab.settings.bulk)
    one = Part(child=server.workers([Seat(case="one", session_id=tiny.session_id, worker_id="w")]), case="one")
    bulk = Part(child=server.workers([Seat(case="one", session_id=large.session_id, worker_id="w")]), case="one")
    echo, raw_bulk = raw.client(4 * TINY), raw.client(4 * lab.settings.bulk)
    cases = [
        Case(name="echo", parts=[echo], lockstep=False),
        Case(name="alone", parts=[one], lockstep=False),
        Case(name="beside", parts=[one], beside=[bulk], lockstep=False),
        Case(name="echo beside", parts=[echo], beside=[raw_bulk], lockstep=False),
    ]
    readings = lab.run(cases)

    def p50(reading: Reading) -> float:
        return 1e3 * reading.p50_s

    def p99(reading: Reading) -> float:
        return 1e3 * reading.p99_s

    more = {"unit": "ms", "judged": False}
    return [
        result(
            "round-trip",
            [
                figure("p50", readings["alone"], readings["echo"], p50, unit="ms"),
                figure("p99", readings["alone"], readings["echo"], p99, **more),  # type: ignore[arg-type]
            ],
        ),
        result(
            "beside-bulk",
            [
                figure("p50", readings["beside"], readings["alone"], p50, unit="ms"),
                figure("p99", readings["beside"], readings["alone"], p99, **more),  # type: ignore[arg-type]
                figure("p50 of the bare streams", readings["echo beside"], readings["echo"], p50, **more),  # type: ignore[arg-type]
            ],
            notes=["beside-bulk: the client of the large gradients takes its share of the same cores, as it would"],
        ),
    ]


def measure_many_streams(lab: Lab) -> list[Result]:
    """64 streams of as many threads in 4 processes, to an echo server and to ours."""
    server, raw = lab.workshop.hermosis(), lab.workshop.raw("aio")
    sessions = [server.session(TINY) for _ in range(MANY)]
    ours = [
        server.workers(
            [Seat(case="all", session_id=session.session_id, worker_id="w") for session in sessions[place::PROCESSES]]
        )
        for place in range(PROCESSES)
    ]
    echoes = [raw.client(4 * TINY, streams=MANY // PROCESSES) for _ in range(PROCESSES)]
    readings = lab.run(
        [
            Case(name="echo", parts=echoes, lockstep=False),
            Case(name="hermosis", parts=[Part(child=child, case="all") for child in ours], lockstep=False),
        ],
    )
    notes = ["streams: the echo's client sends ready bytes; ours goes through hermosis_client, on the same cores"]
    return [result("streams", [figure(f"{MANY} streams", readings["hermosis"], readings["echo"])], notes=notes)]


def measure_packed(lab: Lab) -> list[Result]:
    """64 sessions in one message against a unary call each, one after another and all at once."""
    if not knows_fleets():
        return [result("packed", failure="this client has no fleets yet")]
    server = lab.workshop.hermosis()
    part = server.many(MANY, TINY)
    names = ("packed", "unary", "unary at once")
    readings = lab.run([Case(name=name, parts=[Part(child=part, case=name, weight=MANY)]) for name in names])
    return [
        result(
            "packed",
            [
                figure(f"against {what}", readings["packed"], readings[name], unit="session steps/s")
                for name, what in (("unary", "one call after another"), ("unary at once", "64 calls at once"))
            ],
        )
    ]
