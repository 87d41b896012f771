"""Proxy: a TCP door before a server, that a test may shut, cut, slow down, or let replay what it has heard."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
PIECE_BYTES = 64 << 10


class Proxy:
    """One listening port for a server that comes and goes. Its methods may be called from any thread.

    While it is shut, connections are accepted and wait: whoever connects finds out nothing until it opens.

    Attributes:
      address:     host:port to connect to.
      connections: made so far.
    """

    def __init__(self) -> None:
        self.address = ""
        self.connections = 0
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._target: tuple[str, int] = ("", 0)
        self._pipes: set[asyncio.Task[None]] = set()
        self._cut_after: int | None = None
        self._cut = threading.Event()
        self._delay_s = 0.0
        self._recording: list[bytes] | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="faults-proxy", daemon=True)
        self._thread.start()
        self._server = self._run(self._listen())

    def open(self, address: str) -> None:
        """Lets connections through to a server, those that wait as well."""
        host, _, port = address.rpartition(":")
        self._target = host, int(port)
        self._call(self._open.set)

    def shut(self) -> None:
        """Breaks all connections; new ones wait."""
        self._call(self._open.clear)
        self.cut()

    def cut(self) -> None:
        """Breaks all connections that there are."""
        self._call(self._cut_all)

    def cut_after(self, count: int) -> threading.Event:
        """Breaks all connections when so many more bytes have gone to the server; gives what is set then."""
        self._cut = threading.Event()
        self._cut_after = count
        return self._cut

    def delay(self, seconds: float) -> None:
        """Holds each piece back for so long, both ways."""
        self._delay_s = seconds

    def record(self) -> list[bytes]:
        """Keeps the bytes that the next connection sends to the server, piece by piece as they come."""
        self._recording = []
        return self._recording

    def replay(self, pieces: list[bytes]) -> bytes:
        """Sends bytes to the server over a connection of their own, as a confused network would; gives its answer."""

        async def again() -> bytes:
            reader, writer = await asyncio.open_connection(*self._target)
            try:
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                writer.write_eof()
                with contextlib.suppress(OSError):
                    return await asyncio.wait_for(reader.read(-1), 20)
                return b""
            except TimeoutError:
                return b""
            finally:
                writer.close()

        return self._run(again())

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            self._cut_all()
            await asyncio.gather(*self._pipes, return_exceptions=True)

        self._run(end())
        self._call(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # Inside, on the loop's thread

    async def _listen(self) -> asyncio.Server:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()[:2]
        self.address = f"{host}:{port}"
        return server

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "asyncio runs this as a task"
        self._pipes.add(task)
        other: asyncio.StreamWriter | None = None
        try:
            await self._open.wait()
            self.connections += 1
            recording, self._recording = self._recording, None
            back, other = await asyncio.open_connection(*self._target)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._there(reader, other, recording))
                both.create_task(self._pump(back, writer))
        except (ExceptionGroup, OSError, asyncio.CancelledError):
            pass  # one side has gone, or was cut off: so goes the other
        finally:
            self._pipes.discard(task)
            for end in (writer, other):
                if end is not None:
                    end.transport.abort()

    async def _there(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, recording: list[bytes] | None
    ) -> None:
        while piece := await reader.read(PIECE_BYTES):
            if recording is not None:
                recording.append(piece)
            if self._cut_after is not None:
                piece = piece[: self._cut_after]
                self._cut_after -= len(piece)
            await self._write(writer, piece)
            if self._cut_after == 0:
                self._cut_after = None
                self._cut_all()
                self._cut.set()
        raise ConnectionResetError

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(PIECE_BYTES):
            await self._write(writer, piece)
        raise ConnectionResetError

    async def _write(self, writer: asyncio.StreamWriter, piece: bytes) -> None:
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        writer.write(piece)
        await writer.drain()

    def _cut_all(self) -> None:
        for task in self._pipes:
            task.cancel()

    def _call(self, function: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(function)

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


@contextmanager
def proxy() -> Iterator[Proxy]:
    """A proxy that is shut, and gone at the end."""
    made = Proxy()
    try:
        yield made
    finally:
        made.close()
