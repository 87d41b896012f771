"""An engine on each device that is here, and the little that its tests need again and again."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from hermosis import wire
from hermosis.wire import Dtype
from hermosis_server.engine.arena import Arena, staging_buffer
from hermosis_server.engine.engine import Engine
from hermosis_server.engine.executor import Executor
from hermosis_server.engine.rounds import Answer, awaited
from hermosis_server.engine.scheduler import StepQueue
from hermosis_server.engine.session import Session, SessionSpec
from hermosis_server.records import (
    AckLevel,
    Commit,
    Consistency,
    ConsistencyMode,
    Limits,
    ParameterLayout,
    ParametersOn,
    RecipeChoice,
    Reply,
    ReplyWish,
    TensorSpec,
)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
if DEVICES == ["cpu"]:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton looks once, as it is imported.


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.device(request.param)
    torch.set_num_threads(threads)


class Bench:
    """An engine with short words for what a worker does."""

    def __init__(self, engine: Engine, executor: Executor) -> None:
        self.engine = engine
        self.executor = executor

    async def session(
        self,
        size: int,
        recipe: str = "sgd",
        *,
        session_id: str = "",
        workers: int = 1,
        mode: ConsistencyMode = ConsistencyMode.BARRIER,
        max_staleness: int = 0,
        parameters_on: ParametersOn = ParametersOn.SERVER,
        start: np.ndarray | None = None,
        **parameters: float | bool | str,
    ) -> Session:
        """A READY session of one tensor."""
        tensors = (TensorSpec(name="w", shape=(size,)),)
        digest = wire.layout_digest((t.name, t.shape, t.dtype) for t in tensors)
        spec = SessionSpec(
            layout=ParameterLayout(tensors=tensors, digest=digest, parameter_count=size),
            optimizer=RecipeChoice(name=recipe, parameters=parameters),
            consistency=Consistency(mode=mode, workers=workers, max_staleness=max_staleness),
            parameters_on=parameters_on,
        )
        session = await self.engine.create_session(spec, session_id=session_id)
        if parameters_on is ParametersOn.SERVER:
            upload = self.engine.begin_parameters(session.session_id, Dtype.FLOAT32)
            fill(upload, np.zeros(size, np.float32) if start is None else start)
            await self.engine.initialise(session.session_id, upload)
            upload.release()
        return session

    def send(
        self,
        session: Session,
        gradient: np.ndarray,
        *,
        sequence: int,
        base_step: int | None = None,
        worker_id: str = "worker",
        reply: Reply = Reply.PARAMETERS,
        level: AckLevel = AckLevel.APPLIED,
        **commit: Any,
    ) -> asyncio.Future[Answer]:
        """Counts a gradient at once; await the result for its fate."""
        worker = session.workers.get(worker_id) or session.join(worker_id)
        assembler = self.engine.intake.begin_gradient(session, worker, sequence, Dtype.FLOAT32)
        fill(assembler, gradient)
        base = session.step if base_step is None else base_step
        wish = ReplyWish(reply=reply)
        number = Commit(sequence=sequence, base_step=base, **commit)
        fate, tell = awaited()
        self.engine.intake.contribute(session, worker, number, wish, assembler, tell, level=level)
        return fate


def fill(assembler: Any, values: np.ndarray) -> None:
    """Sends a float32 vector in one chunk."""
    payload = np.asarray(values, np.float32).tobytes()
    assembler.add(offset=0, dtype=Dtype.FLOAT32, crc32=wire.checksum(payload), payload=payload)


@contextlib.asynccontextmanager
async def bench(device: torch.device, *, linger_s: float = 0.0, **limits: int) -> AsyncIterator[Bench]:
    chosen = Limits(**limits)
    arena = Arena(device, limit_bytes=chosen.device_bytes)
    executor = Executor(arena, StepQueue(batch_bytes=1 << 26, linger_s=linger_s))
    pinned = device.type == "cuda"
    engine = Engine([executor], limits=chosen, allocate=lambda size: staging_buffer(size, pinned=pinned))
    try:
        yield Bench(engine, executor)
    finally:
        await engine.stop()


Scenario = Callable[[Bench], Coroutine[Any, Any, None]]


@pytest.fixture
def play(device: torch.device) -> Callable[..., None]:
    """Runs a scenario on an engine of its own, to its end, within a deadline."""

    def run(scenario: Scenario, **settings: Any) -> None:
        async def whole() -> None:
            async with asyncio.timeout(60), bench(device, **settings) as ready:
                await scenario(ready)

        asyncio.run(whole())

    return run


def floats(answer: Answer) -> np.ndarray:
    """The vector of an answer."""
    assert answer.vector is not None
    return np.frombuffer(answer.vector.payload, np.float32)
