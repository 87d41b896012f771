"""AsyncClient, AsyncSession, AsyncWorker, AsyncFleet: the client for asyncio.

    async with AsyncClient("127.0.0.1:50051") as client:
        async with await client.create_session({"w": (3, 4)}, "adamw") as session:
            await session.initialise({"w": w})
            result, parameters = await session.exchange({"w": gradient}, loss=loss)

Nothing is written twice: each method is the synchronous one of the same name, with its arguments, answer and errors, on
a thread beside the event loop, which is never blocked. There are as many threads as calls were ever under way at once,
without a limit, since calls of one round wait for one another; they are used again, and end with the client. A worker
that waits for nobody holds none of them, only gRPC's own for its stream.

A task that is cancelled while a worker, fleet or session exchanges, pushes or pulls cuts that call off. The object
stays usable: its next call begins afresh. Whether the contribution that was cut off counts is then unknown, so `pull`
before the next gradient. Other calls run to their end, at most timeout_s, and nobody hears of their answer; `close`
cuts everything off.
"""

import asyncio
import contextvars
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from types import TracebackType
from typing import Concatenate, Generic, Literal, ParamSpec, Protocol, Self, TypeVar, overload

from hermosis_client.client import Client
from hermosis_client.contribution import Contribution
from hermosis_client.cutoff import Cutoff
from hermosis_client.exchange import Worker
from hermosis_client.fleet import Fleet
from hermosis_client.fleet_work import Ints
from hermosis_client.layout import ParameterLayout
from hermosis_client.records import ParametersOn, TelemetryReading
from hermosis_client.session import Session
from hermosis_client.watch import Watch


class _Closing(Protocol):
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


_Words = ParamSpec("_Words")
_Sync = TypeVar("_Sync")
_Sync_co = TypeVar("_Sync_co", covariant=True)
_Answer = TypeVar("_Answer")
_Made = TypeVar("_Made")

# ThreadPoolExecutor makes a thread only when none is free; this is a limit that no process reaches.
_NO_LIMIT = 1 << 20


class Calls:
    """Runs the blocking calls of one client beside the event loop."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_NO_LIMIT, thread_name_prefix="hermosis-call")

    def begin(self, call: Callable[[], _Answer]) -> asyncio.Future[_Answer]:
        """The future answer of a call that nobody cuts off."""
        context = contextvars.copy_context()  # for the trace that the call is a part of
        return asyncio.get_running_loop().run_in_executor(self._threads, context.run, call)

    async def run(self, call: Callable[[], _Answer]) -> _Answer:
        """The answer of a call, which ends when the task that awaits it is cancelled."""
        cutoff = Cutoff()

        def bound() -> _Answer:
            cutoff.install()
            return call()

        try:
            return await self.begin(bound)
        except asyncio.CancelledError:
            cutoff.cut()
            raise


class Beside(Generic[_Sync_co]):
    """The asyncio face of a synchronous object; as a context manager it ends as that does."""

    def __init__(self, sync: _Sync_co, calls: Calls) -> None:
        self._sync = sync
        self._calls = calls

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self: "Beside[_Closing]",
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._calls.run(partial(self._sync.__exit__, kind, error, trace))


@overload
def awaited(
    method: Callable[Concatenate[_Sync, _Words], _Answer],
) -> Callable[Concatenate[Beside[_Sync], _Words], Coroutine[None, None, _Answer]]: ...
@overload
def awaited(
    method: Callable[Concatenate[_Sync, _Words], _Answer], face: Callable[[_Answer, Calls], _Made]
) -> Callable[Concatenate[Beside[_Sync], _Words], Coroutine[None, None, _Made]]: ...
def awaited(
    method: Callable[Concatenate[_Sync, _Words], _Answer], face: Callable[[_Answer, Calls], _Made] | None = None
) -> Callable[Concatenate[Beside[_Sync], _Words], Coroutine[None, None, _Answer | _Made]]:
    """A synchronous method as a coroutine; `face` gives what it makes an asyncio face."""

    @wraps(method)
    async def call(self: Beside[_Sync], /, *words: _Words.args, **named: _Words.kwargs) -> _Answer | _Made:
        answer = await self._calls.run(partial(method, self._sync, *words, **named))
        return answer if face is None else face(answer, self._calls)

    return call


@overload
def direct(
    method: Callable[Concatenate[_Sync, _Words], _Answer],
) -> Callable[Concatenate[Beside[_Sync], _Words], _Answer]: ...
@overload
def direct(
    method: Callable[Concatenate[_Sync, _Words], _Answer], face: Callable[[_Answer, Calls], _Made]
) -> Callable[Concatenate[Beside[_Sync], _Words], _Made]: ...
def direct(
    method: Callable[Concatenate[_Sync, _Words], _Answer], face: Callable[[_Answer, Calls], _Made] | None = None
) -> Callable[Concatenate[Beside[_Sync], _Words], _Answer | _Made]:
    """A synchronous method that waits for nothing; `face` gives what it makes an asyncio face."""

    @wraps(method)
    def call(self: Beside[_Sync], /, *words: _Words.args, **named: _Words.kwargs) -> _Answer | _Made:
        answer = method(self._sync, *words, **named)
        return answer if face is None else face(answer, self._calls)

    return call


def iterated(
    method: Callable[Concatenate[_Sync, _Words], Iterator[_Answer]],
) -> Callable[Concatenate[Beside[_Sync], _Words], AsyncIterator[_Answer]]:
    """A synchronous generator as an asynchronous one."""

    @wraps(method)
    async def each(self: Beside[_Sync], /, *words: _Words.args, **named: _Words.kwargs) -> AsyncIterator[_Answer]:
        answers = method(self._sync, *words, **named)
        while (answer := await self._calls.run(partial(next, answers, None))) is not None:
            yield answer

    return each


class AsyncWatch(Beside[Watch], AsyncIterator[TelemetryReading]):
    """`Watch` as an asynchronous iterator. A task that is cancelled while it waits loses no reading."""

    _coming: asyncio.Future[TelemetryReading | None] | None = None

    async def __anext__(self) -> TelemetryReading:
        if self._coming is None:
            self._coming = self._calls.begin(partial(next, self._sync, None))
        try:
            reading = await asyncio.shield(self._coming)
        except Exception:
            self._coming = None
            raise
        self._coming = None
        if reading is None:
            raise StopAsyncIteration
        return reading

    close = awaited(Watch.close)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        if self._coming is not None:
            await asyncio.wait([self._coming])  # It ends now, and would find the event loop closed.


class AsyncContribution(Beside[Contribution]):
    """`Contribution` for asyncio. A task that is cancelled while it waits for one does not cut it off."""

    ready = direct(Contribution.ready)
    finish = direct(Contribution.finish)
    abandon = direct(Contribution.abandon)
    wait = awaited(Contribution.wait)
    result = awaited(Contribution.result)

    @property
    def settled(self) -> bool:
        """Whether nothing more will happen to it."""
        return self._sync.settled


class AsyncWorker(Beside[Worker]):
    """`Worker` for asyncio."""

    begin = direct(Worker.begin, AsyncContribution)
    exchange = awaited(Worker.exchange)
    push = awaited(Worker.push)
    pull = awaited(Worker.pull)
    resync = awaited(Worker.resync)
    close = awaited(Worker.close)

    @property
    def worker_id(self) -> str:
        """Numbers the contributions."""
        return self._sync.worker_id

    @property
    def step(self) -> int | None:
        """Step of the parameters this worker holds; None before the first call."""
        return self._sync.step

    @property
    def path(self) -> Literal["segment", "stream"]:
        """How payload travels now."""
        return self._sync.path


class AsyncSession(Beside[Session]):
    """`Session` for asyncio."""

    info = awaited(Session.info)
    learning_rate = awaited(Session.learning_rate)
    initialise = awaited(Session.initialise)
    snapshot = awaited(Session.snapshot)
    restore = awaited(Session.restore)
    snapshots = awaited(Session.snapshots)
    pause = awaited(Session.pause)
    resume = awaited(Session.resume)
    update = awaited(Session.update)
    close = awaited(Session.close)
    disconnect = awaited(Session.disconnect)
    worker = direct(Session.worker, AsyncWorker)
    exchange = awaited(Session.exchange)
    push = awaited(Session.push)
    pull = awaited(Session.pull)
    workers = awaited(Session.workers)
    telemetry = awaited(Session.telemetry)
    watch = direct(Session.watch, AsyncWatch)
    history = awaited(Session.history)
    digest = awaited(Session.digest)
    export_state = awaited(Session.export_state)
    import_state = awaited(Session.import_state)

    fork = awaited(Session.fork, lambda session, calls: AsyncSession(session, calls))

    @property
    def session_id(self) -> str:
        """Unique on the server."""
        return self._sync.session_id

    @property
    def layout(self) -> ParameterLayout:
        """Order and shapes of the tensors."""
        return self._sync.layout

    @property
    def parameters_on(self) -> ParametersOn:
        """Who keeps the weights."""
        return self._sync.parameters_on


class AsyncFleet(Beside[Fleet]):
    """`Fleet` for asyncio."""

    exchange = awaited(Fleet.exchange)
    push = awaited(Fleet.push)
    pull = awaited(Fleet.pull)
    close = awaited(Fleet.close)
    disconnect = awaited(Fleet.disconnect)

    def __len__(self) -> int:
        return len(self._sync)

    @property
    def sessions(self) -> list[AsyncSession]:
        """The members, in order."""
        return [AsyncSession(session, self._calls) for session in self._sync.sessions]

    @property
    def worker_id(self) -> str:
        """Numbers the contributions to all of them."""
        return self._sync.worker_id

    @property
    def steps(self) -> Ints:
        """(S,) step of the parameters that this worker holds of each member; -1 before the first call."""
        return self._sync.steps


def _client(client: Client, calls: Calls) -> "AsyncClient":
    face = AsyncClient.__new__(AsyncClient)
    Beside.__init__(face, client, calls)
    return face


class AsyncClient(Beside[Client]):
    """`Client` for asyncio; made with the same arguments. Its calls may come from any task."""

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 30.0,
        token: str | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        certificate: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
    ) -> None:
        client = Client(address, timeout_s=timeout_s, token=token, ca_file=ca_file, certificate=certificate, key=key)
        super().__init__(client, Calls())

    with_token = direct(Client.with_token, _client)

    capabilities = awaited(Client.capabilities)
    overview = awaited(Client.overview)
    recipes = awaited(Client.recipes)
    create_session = awaited(Client.create_session, AsyncSession)
    session = awaited(Client.session, AsyncSession)
    import_session = awaited(Client.import_session, AsyncSession)
    create_fleet = awaited(Client.create_fleet, AsyncFleet)
    fleet = awaited(Client.fleet, AsyncFleet)  # of sessions by their ids
    sessions = iterated(Client.sessions)
    session_page = awaited(Client.session_page)
    snapshots = awaited(Client.snapshots)
    restore = awaited(Client.restore)
    watch = direct(Client.watch, AsyncWatch)
    close = awaited(Client.close)
    create_token = awaited(Client.create_token)
    tokens = awaited(Client.tokens)
    revoke_token = awaited(Client.revoke_token)
    audit = awaited(Client.audit)

    @property
    def address(self) -> str:
        """host:port of the server."""
        return self._sync.address
