"""The ceiling: a bare gRPC stream of bytes, nothing done with them. The server as asyncio or with a thread a stream.

A stream says in its metadata how many bytes make a round; after so many the server sends as many back, in messages of
1 MiB or less. With rounds of one small message it is an empty echo.
"""

import argparse
import asyncio
import queue
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from benchmarks.peers.child import MEBIBYTE, Exchange, Voice, end_with_stdin, keep_freed_memory, obey

METHOD = "/benchmark.Raw/Exchange"
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["aio", "sync", "worker"])
    parser.add_argument("--address", default="")
    parser.add_argument("--bytes", type=int, default=0, help="of a round, one way")
    parser.add_argument("--streams", type=int, default=1)
    asked = parser.parse_args()
    keep_freed_memory()
    voice = Voice.take()
    if asked.role == "aio":
        end_with_stdin()
        asyncio.run(serve_asyncio(voice))
    elif asked.role == "sync":
        end_with_stdin()
        serve_threads(voice)
    else:
        with grpc.insecure_channel(asked.address, options=OPTIONS) as channel:
            obey(voice, {"one": [stream(channel, asked.bytes) for _ in range(asked.streams)]})


def messages(size: int) -> list[bytes]:
    """A round of one direction."""
    return [bytes(min(MEBIBYTE, size - start)) for start in range(0, size, MEBIBYTE)]


def size_of_round(metadata: object) -> int:
    return int(dict(metadata)["bytes"])  # type: ignore[call-overload]


def stream(channel: grpc.Channel, size: int) -> Exchange:
    """A stream held open, and one round on it."""
    outbox: queue.SimpleQueue[list[bytes]] = queue.SimpleQueue()

    def drawn() -> Iterator[bytes]:
        while True:
            yield from outbox.get()

    method: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(METHOD)
    call = method(drawn(), metadata=(("bytes", str(size)),))
    sent = messages(size)

    def exchange() -> None:
        outbox.put(sent)
        missing = size
        while missing:
            missing -= len(next(call))

    return exchange


class Bare(grpc.GenericRpcHandler):
    def __init__(self, handler: Any) -> None:
        self._handler: Any = grpc.stream_stream_rpc_method_handler(handler)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handler


async def serve_asyncio(voice: Voice) -> None:
    async def handle(requests: AsyncIterator[bytes], context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        size = size_of_round(context.invocation_metadata())
        back = messages(size)
        missing = size
        async for message in requests:
            missing -= len(message)
            if missing <= 0:
                missing = size
                for each in back:
                    await context.write(each)

    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers([Bare(handle)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    voice.tell(address=f"127.0.0.1:{port}")
    voice.tell(ready=True)
    await server.wait_for_termination()


def serve_threads(voice: Voice) -> None:
    def handle(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        size = size_of_round(context.invocation_metadata())
        back = messages(size)
        missing = size
        for message in requests:
            missing -= len(message)
            if missing <= 0:
                missing = size
                yield from back

    server = grpc.server(ThreadPoolExecutor(128), options=OPTIONS)
    server.add_generic_rpc_handlers([Bare(handle)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    voice.tell(address=f"127.0.0.1:{port}")
    voice.tell(ready=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
