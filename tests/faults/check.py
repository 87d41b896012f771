"""Check: holds a server that has just recovered, and that nobody has spoken to since, against the ledger."""

from tests.faults.ledger import Ledger, Page
from tests.faults.race import Race
from tests.faults.twin import Twin

from hermosis.v1 import session_pb2
from hermosis_client import Client
from hermosis_client.errors import CorruptState, HermosisError, SessionNotFound


def check(ledger: Ledger, client: Client, twin: Twin) -> None:
    """Accuses in the ledger whatever the server does not keep.

    Args:
      client: of the server, past the door that the load waits at.
    """
    with ledger.pages() as pages:
        known = dict(pages)
    for race in ledger.races.values():
        _check_race(ledger, client, twin, race)
    for session_id, page in known.items():
        if page.gone:
            _check_gone(ledger, client, session_id)
        else:
            _check(ledger, client, twin, session_id, page)


def _check_gone(ledger: Ledger, client: Client, session_id: str) -> None:
    try:
        client.session(session_id)
    except SessionNotFound:
        return
    except HermosisError as error:
        ledger.accuse("P6", session_id, f"it was closed, and is {error!r}")
        return
    ledger.accuse("P6", session_id, "it was closed, and is there again")


def _check(ledger: Ledger, client: Client, twin: Twin, session_id: str, page: Page) -> None:
    ledger.tested("P1")
    try:
        session = client.session(session_id)
        info, digest = session.info(), session.digest()
    except CorruptState as error:
        ledger.accuse("P5", session_id, f"nothing was damaged, and it is set aside: {error}")
        return
    except HermosisError as error:
        ledger.accuse("P1", session_id, f"it cannot be had: {error!r}")
        return
    if info.step < page.durable:
        ledger.accuse("P1", session_id, f"step {page.durable} was promised, it is back at {info.step}")
    page.recovered = info.step
    ledger.tested("P2")
    if info.durable_step > info.step:
        ledger.accuse("P2", session_id, f"durable_step {info.durable_step} is ahead of step {info.step}")
    ledger.tested("P3")
    if info.step > page.most:
        ledger.accuse("P3", session_id, f"it is at step {info.step}, and contributions came for {page.most}")
        return
    right = twin.digests(page.plan, info.step)
    if digest not in right:
        ledger.accuse("P3", session_id, f"step {info.step} has another digest than the uninterrupted run")
    ledger.tested("P4")
    if (told := page.digests.get(info.step)) and digest not in told | right:
        ledger.accuse("P4", session_id, f"step {info.step} has another digest than was told with it")
    for step, digests in page.digests.items():
        ledger.tested("P6")
        if not digests <= twin.digests(page.plan, step):
            ledger.accuse("P6", session_id, f"the digest told with step {step} is not the one of a calm server")
    page.digests.clear()
    if page.status is not None and info.status.name != page.status:
        ledger.accuse("P1", session_id, f"{page.status} was acknowledged, it is {info.status.name}")


def _check_race(ledger: Ledger, client: Client, twin: Twin, race: Race) -> None:
    name = race.plan.name
    for promise in ("P1", "P3", "P4"):
        ledger.tested(promise)
    try:
        session = client.session(name)
        generation, exported = session.info().generation, session.export_state()
    except CorruptState as error:
        ledger.accuse("P5", name, f"nothing was damaged, and it is set aside: {error}")
        return
    except HermosisError as error:
        ledger.accuse("P1", name, f"it cannot be had: {error!r}")
        return
    state = session_pb2.SessionState.FromString(exported.head)
    last = {worker.worker_id: (worker.sequence, worker.step) for worker in state.workers}
    problems = race.problems(state.scalars.step, last)
    for promise, what in problems:
        ledger.accuse(promise, name, what)
    if problems:
        return
    order = race.order(state.scalars.step, last)
    digests = twin.follow(race, order)
    if exported.state_digest != digests[-1]:
        ledger.accuse(
            "P4", name, f"step {exported.step} has another digest than the same contributions on a calm server"
        )
    for step, told in race.told_digests(exported.step):
        ledger.tested("P6")
        if told != digests[step]:
            ledger.accuse("P6", name, f"the digest told with step {step} is not the one of a calm server")
    race.settle(exported.step, generation)
