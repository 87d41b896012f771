"""The asyncio client against a real server: many sessions in one event loop, which is never blocked."""

import asyncio
import inspect
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from contextvars import copy_context

import numpy as np
import pytest
from tests.forking import WarmServer

from hermosis.wire import Dtype
from hermosis_client import Client, Fleet, ParameterLayout, Recipe, Session, Watch, Worker, errors
from hermosis_client.aio import AsyncClient, AsyncContribution, AsyncFleet, AsyncSession, AsyncWatch, AsyncWorker
from hermosis_client.contribution import Contribution
from hermosis_client.cutoff import CutOff, Cutoff
from hermosis_client.exchange import WorkerSettings
from hermosis_client.records import Reply

P = 5
FACES = {
    Client: AsyncClient,
    Session: AsyncSession,
    Worker: AsyncWorker,
    Contribution: AsyncContribution,
    Fleet: AsyncFleet,
    Watch: AsyncWatch,
}
# For the worker that carries a contribution.
CARRYING = {"whole", "pieces", "wait_until_finished", "look_up", "carried_by", "require_wanted", "answered", "landed"}
CARRYING |= {"settle", "wait_until_settled"}
# They wait for nothing, so nobody awaits them.
AT_ONCE = {"worker", "watch", "with_token", "begin", "ready", "finish", "abandon"}


def gradient(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=P).astype(np.float32)


def run(server: WarmServer, scene: Callable[[AsyncClient], Coroutine[None, None, None]]) -> None:
    """A scene in an event loop of its own."""

    async def play() -> None:
        async with AsyncClient(server.address, timeout_s=20.0) as client:
            await scene(client)

    asyncio.run(play())


async def ready(client: AsyncClient, **options) -> AsyncSession:
    session = await client.create_session({"w": (P,)}, Recipe("sgd", lr=0.1), **options)
    await session.initialise(np.zeros(P, np.float32))
    return session


async def contributions(session: AsyncSession, wanted: int) -> None:
    """Returns when that many workers have a gradient in the round."""
    while sum(worker.next_sequence - 1 for worker in await session.workers()) < wanted:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("sync", FACES, ids=lambda sync: sync.__name__)
def test_every_method_has_an_asyncio_face_with_the_same_signature(sync: type) -> None:
    face = FACES[sync]
    names = {name for name in dir(sync) if not name.startswith("_")}
    if sync is Contribution:
        names -= CARRYING
    attributes = {line.split(":")[0].strip() for line in (sync.__doc__ or "").partition("Attributes:")[2].splitlines()}
    assert {name for name in dir(face) if not name.startswith("_")} == names | (attributes - {""})
    for name in names:
        theirs, ours = getattr(sync, name), getattr(face, name)
        if isinstance(theirs, property):
            assert isinstance(ours, property)
            continue
        assert inspect.signature(ours) == inspect.signature(theirs), name
        assert ours.__doc__ == theirs.__doc__
        awaited = inspect.iscoroutinefunction(ours) or inspect.isasyncgenfunction(ours)
        assert awaited is (name not in AT_ONCE), name
    made = inspect.signature(face.__init__) if sync is Client else None
    assert made is None or made == inspect.signature(sync.__init__)


def test_sixty_four_sessions_step_in_one_event_loop(server: WarmServer) -> None:
    async def train(client: AsyncClient, seed: int) -> None:
        async with await ready(client) as session, session.worker("w") as worker:
            position = np.zeros(P, np.float32)
            for step in range(1, 11):
                position -= np.float32(0.1) * gradient(seed + step)
                result, parameters = await worker.exchange(gradient(seed + step), loss=1.0)
                assert result.step == step
                assert np.allclose(parameters["w"], position, atol=1e-6)
            assert worker.step == 10

    async def scene(client: AsyncClient) -> None:
        await asyncio.gather(*(train(client, 100 * index) for index in range(64)))
        ids = [info.session_id async for info in client.sessions()]
        assert len(set(ids)) == len(ids)

    run(server, scene)


def test_a_round_of_more_workers_than_any_pool_has_threads_comes_about(server: WarmServer) -> None:
    async def scene(client: AsyncClient) -> None:
        async with await ready(client, workers=50) as session:
            workers = [session.worker(f"w{index:02}") for index in range(50)]
            results = await asyncio.gather(*(worker.push(gradient(0)) for worker in workers))
            assert {result.step for result in results} == {1}

    run(server, scene)


def test_the_event_loop_goes_on_while_a_worker_waits_for_its_round(server: WarmServer) -> None:
    async def scene(client: AsyncClient) -> None:
        async with await ready(client, workers=2) as session:
            first = asyncio.create_task(session.worker("a").push(gradient(1)))
            await contributions(session, 1)
            for _ in range(50):
                await asyncio.sleep(0.001)
            assert not first.done()
            await session.worker("b").push(gradient(2))
            assert (await first).step == 1

    run(server, scene)


def test_a_cancelled_task_cuts_its_call_off_and_the_worker_goes_on(server: WarmServer) -> None:
    async def scene(client: AsyncClient) -> None:
        async with await ready(client, workers=2) as session:
            a, b = session.worker("a"), session.worker("b")
            task = asyncio.create_task(a.push(gradient(1)))
            await contributions(session, 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            # Nobody else has sent anything, and its own call is over: the next one gets its turn.
            await a.pull()
            await b.push(gradient(2))  # with what was cut off, which had come through
            assert (await session.info()).step == 1
            await asyncio.gather(a.pull(), b.pull())
            results = await asyncio.gather(a.push(gradient(3)), b.push(gradient(4)))
            assert [result.step for result in results] == [2, 2]
            wanted = -0.1 * (gradient(1) + gradient(2) + gradient(3) + gradient(4)) / 2
            assert np.allclose((await session.pull())["w"], wanted, atol=1e-6)

    run(server, scene)


def test_a_contribution_in_the_making_is_awaited_as_it_lands(server: WarmServer) -> None:
    async def scene(client: AsyncClient) -> None:
        async with await ready(client) as session, session.worker("w") as worker:
            values = gradient(3)
            contribution = worker.begin(values)
            contribution.ready(2, P)
            contribution.ready(0, 2)
            contribution.finish(loss=1.0)
            assert (await contribution.wait()).step == 1
            _, parameters = await contribution.result()
            assert contribution.settled
            assert np.allclose(parameters["w"], np.float32(-0.1) * values)

    run(server, scene)


def test_a_cancelled_fleet_goes_on(server: WarmServer) -> None:
    async def scene(client: AsyncClient) -> None:
        start = np.zeros((3, P), np.float32)
        async with await client.create_fleet(start, "sgd", workers=2) as fleet:
            task = asyncio.create_task(fleet.push(start + 1))
            await contributions(fleet.sessions[2], 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            other = await client.fleet([session.session_id for session in fleet.sessions])
            assert (await other.push(start + 1)).step.tolist() == [1, 1, 1]
            await fleet.pull()
            assert fleet.steps.tolist() == [1, 1, 1]
            assert len(other) == 3

    run(server, scene)


@pytest.mark.parametrize(("place", "listening"), [("waiting", True), ("sleep", False)])
def test_a_call_that_is_cut_off_gives_its_thread_back(place: str, listening: bool) -> None:
    """Where it waits for a server that says nothing, and where it waits to try again one that is not there."""
    cutoff, reached, raised = Cutoff(), threading.Event(), list[BaseException]()
    waits = getattr(cutoff, place)

    def noted(argument):
        reached.set()
        return waits(argument)

    def work(worker: Worker) -> None:
        cutoff.install()
        try:
            worker.push(gradient(0))
        except BaseException as error:
            raised.append(error)

    setattr(cutoff, place, noted)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        if not listening:
            silent.close()
        with Client(address, timeout_s=600.0) as client:
            settings = WorkerSettings(
                worker_id="w", gradient_dtype=Dtype.FLOAT32, reply_dtype=Dtype.FLOAT32, reply=Reply.PARAMETERS
            )
            worker = Worker(client._connection, "s", ParameterLayout.of({"w": (P,)}), settings)
            thread = threading.Thread(target=copy_context().run, args=(work, worker), daemon=True)
            thread.start()
            assert reached.wait(60)
            cutoff.cut()
            thread.join(60)
            assert not thread.is_alive()
            assert [type(error) for error in raised] == [CutOff]


def test_a_call_that_was_cut_off_before_it_began_sends_nothing(server: WarmServer) -> None:
    with Client(server.address) as client, client.create_session({"w": (P,)}, "sgd") as session:
        session.initialise(gradient(0))
        worker = session.worker("w")
        worker.exchange(gradient(1))
        stream, cutoff = worker._stream, Cutoff()
        cutoff.cut()

        def work() -> None:
            cutoff.install()
            with pytest.raises(CutOff):
                worker.exchange(gradient(2))

        copy_context().run(work)
        assert worker._stream is stream  # which nothing is under way on
        assert worker.exchange(gradient(2))[0].step == 2


def test_calls_of_several_tasks_share_the_sessions_own_worker(server: WarmServer, monkeypatch) -> None:
    worker = Session.worker

    def slow(self: Session, *words, **named) -> Worker:
        time.sleep(0.05)  # lets the others find that there is none yet
        return worker(self, *words, **named)

    monkeypatch.setattr(Session, "worker", slow)

    async def scene(client: AsyncClient) -> None:
        async with await ready(client) as session:
            answers = await asyncio.gather(*(session.exchange(gradient(seed)) for seed in range(8)))
            assert sorted(result.step for result, _ in answers) == list(range(1, 9))
            assert len(await session.workers()) == 1

    run(server, scene)


def test_a_watch_loses_nothing_when_its_task_is_cancelled_and_ends_when_closed(server: WarmServer) -> None:
    async def scene(client: AsyncClient) -> None:
        async with await ready(client) as session, session.watch() as watch:
            waiting = asyncio.create_task(anext(watch))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            for seed in range(3):
                await session.exchange(gradient(seed))
            steps = []
            async for reading in watch:
                steps.append(reading.step)
                if len(steps) == 3:
                    await watch.close()
            assert steps == [1, 2, 3]

    run(server, scene)


def test_errors_are_the_synchronous_ones(server: WarmServer) -> None:
    async def scene(client: AsyncClient) -> None:
        with pytest.raises(errors.SessionNotFound):
            await client.session("nobody-has-this")
        async with await ready(client) as session:
            with pytest.raises(errors.SessionExists):
                await client.create_session({"w": (P + 1,)}, "sgd", session_id=session.session_id)
            with pytest.raises(ValueError, match="float32"):
                await session.push(np.zeros(P + 1, np.float32))
            async with await session.fork() as twin:
                assert twin.layout == session.layout
        other = client.with_token("")
        await other.close()
        assert (await client.capabilities()).server_version
        assert other.address == client.address
        await client.close()
        with pytest.raises(RuntimeError, match="closed"):
            await client.capabilities()

    run(server, scene)
