"""25 million parameters: over a stream, against the bare stream and other systems, and through shared memory."""

from collections.abc import Sequence

from benchmarks.speed.goals import Figure, Result
from benchmarks.speed.lab import Lab, Readings, against, figure, result
from benchmarks.speed.passes import Case, Part
from benchmarks.speed.rigs import (
    ADAMW,
    FLOWER,
    FLOWER_KEPT,
    GLOO,
    NAIVE,
    NAIVE_KEPT,
    RAY,
    RAY_VIEW,
    SGD,
    TORCH_RPC,
    TORCH_RPC_TCP,
    HermosisServer,
    Seat,
    knows_shared_memory,
)
from benchmarks.speed.statistics import Reading, better

TWO = (
    "2 workers: a barrier session steps once a round of two, an async one on each gradient as the peers do; "
    "exchanges of both workers are counted together"
)
RAY_LANDS = (
    "Ray hands out a read-only view into its store; judged is the exchange that ends with the weights in the worker's "
    "own memory, as everybody else's does; the view is told beside it. Its first exchanges, into fresh pages of the "
    "store, are some three times slower: the warm-up leaves them out"
)
STREAMED = {"1 worker": "sgd, 1", "2 workers, barrier": "barrier, 2", "2 workers, async": "async, 2"}
BFLOAT16 = {"1 worker": "bfloat16, 1", "2 workers, barrier": "bfloat16, 2"}


def hermosis_cases(
    server: HermosisServer, parameters: int, names: Sequence[str], *, shared_memory: bool = False
) -> list[Case]:
    """Hermosis with one and two workers, by the names of STREAMED, BFLOAT16 and "adamw, 1"."""
    places: list[list[Seat]] = [[], []]
    for name in names:
        kind, workers = name.split(", ")
        session = server.session(
            parameters,
            ADAMW if kind == "adamw" else SGD,
            workers=1 if kind == "async" else int(workers),
            consistency="async" if kind == "async" else "barrier",
        )
        for place in range(int(workers)):
            places[place].append(
                Seat(
                    case=name,
                    session_id=session.session_id,
                    worker_id=f"worker-{place}",
                    dtype="bfloat16" if kind == "bfloat16" else "float32",
                    shared_memory=shared_memory,
                )
            )
    children = [server.workers(seats) if seats else None for seats in places]
    return [
        Case(
            name=name,
            parts=[Part(child=child, case=name) for child in children[: int(name.split(", ")[1])] if child],
            server=server.process_id,
        )
        for name in names
    ]


def measure_streams(lab: Lab) -> list[Result]:
    """The bare stream, Hermosis over a stream and torch's rpc, in turns."""
    size = lab.settings.bulk
    ours = hermosis_cases(lab.workshop.hermosis(), size, [*STREAMED.values(), *BFLOAT16.values(), "adamw, 1"])
    bare = []
    for form in ("aio", "sync"):
        raw = lab.workshop.raw(form)
        clients = [raw.client(4 * size) for _ in range(2)]
        bare += [Case(name=f"raw {form}, {count}", parts=clients[:count], server=raw.process_id) for count in (1, 2)]
    peers, missing = lab.peers([TORCH_RPC_TCP, TORCH_RPC], parameters=size)
    readings = lab.run([*bare, *ours, *peers])
    compared = {"1 worker": STREAMED["1 worker"], "1 worker, adamw": "adamw, 1", **STREAMED}
    notes = [
        "the raw stream lands its bytes nowhere and takes no step: " + "; ".join(ceilings(readings)),
        TWO,
    ]
    loose = [
        Figure(label=f"{each.label}, as it comes (shared memory)", ratio=each.ratio, ours=each.ours,
               theirs=each.theirs, unit=each.unit, judged=False, disturbed=each.disturbed)
        for each in against("torch-rpc", TORCH_RPC, STREAMED, readings, missing).figures
    ]  # fmt: skip
    tcp = against("torch-rpc", TORCH_RPC_TCP, STREAMED, readings, missing, notes=[TWO])
    return [
        result(
            "ceiling",
            [figure(label, readings[case], ceiling(readings, label)) for label, case in compared.items()],
            notes=notes,
        ),
        result("cpu", [cpu_figure(label, case, readings, size) for label, case in compared.items()]),
        result("torch-rpc", [*tcp.figures, *loose], notes=tcp.notes, failure=tcp.failure),
        against("torch-rpc-bfloat16", TORCH_RPC_TCP, BFLOAT16, readings, missing),
    ]


def ceiling(readings: Readings, label: str) -> Sequence[Reading]:
    """The better of both forms of the raw server, for as many workers."""
    forms = [readings[f"raw {form}, {label.split()[0]}"] for form in ("aio", "sync")]
    return forms[better(forms[0], forms[1], lambda reading: reading.rate)]


def ceilings(readings: Readings) -> list[str]:
    """Which form of the raw server is the better one, in words."""
    words = []
    for count in (1, 2):
        asyncio, threads = (readings[f"raw {form}, {count}"] for form in ("aio", "sync"))
        name = "threads" if better(asyncio, threads, lambda reading: reading.rate) else "asyncio"
        words.append(f"{count} worker{'s' * (count > 1)} against its server with {name}")
    return words


def cpu_figure(label: str, case: str, readings: Readings, size: int) -> Figure:
    """Server CPU seconds a GB of payload, both directions counted."""
    gigabytes = 8 * size / 1e9
    return figure(
        label, readings[case], ceiling(readings, label), lambda reading: reading.cpu_s / gigabytes, unit="CPU s/GB"
    )


def measure_plain(lab: Lab) -> list[Result]:
    """Hermosis and plain gRPC servers, Flower among them, as they come and with our allocator settings."""
    size = lab.settings.bulk
    ours = hermosis_cases(lab.workshop.hermosis(), size, list(STREAMED.values()))
    peers, missing = lab.peers([NAIVE, NAIVE_KEPT, FLOWER, FLOWER_KEPT], parameters=size)
    readings = lab.run([*ours, *peers])
    flower = [TWO, "Flower: the rounds of its server (Server.fit_round) with one or two clients over its gRPC stream"]
    return [
        against("naive", NAIVE, STREAMED, readings, missing, notes=[TWO]),
        against("naive-allocator", NAIVE_KEPT, STREAMED, readings, missing),
        against("flower", FLOWER, STREAMED, readings, missing, notes=flower),
        against("flower-allocator", FLOWER_KEPT, STREAMED, readings, missing),
    ]


def measure_same_host(lab: Lab) -> list[Result]:
    """Hermosis by its same-host path, and two that use shared memory or C++ sockets."""
    size = lab.settings.bulk
    server = lab.workshop.hermosis()
    ours = hermosis_cases(server, size, list(STREAMED.values()), shared_memory=True)
    peers, missing = lab.peers([RAY, GLOO], parameters=size)
    readings = lab.run([*ours, *peers])
    notes = [TWO]
    if not knows_shared_memory():
        notes.append("this client has no same-host path yet: these are streams")
    ray = against("ray", RAY, STREAMED, readings, missing)
    views = [
        figure(f"{label}, {RAY_VIEW}", readings[case], readings[f"{RAY_VIEW}, {label.split()[0]}"], judged=False)
        for label, case in STREAMED.items()
        if RAY.name not in missing
    ]
    return [
        result("ray", [*ray.figures, *views], notes=[*notes, RAY_LANDS], failure=ray.failure),
        against("gloo", GLOO, STREAMED, readings, missing, notes=notes),
    ]
