"""Interceptor: every call comes in past the gate, and every error leaves it as a typed status."""

# grpcio's own classes are generic in its type stubs only; unevaluated annotations let both be right.
from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from hermosis_server.bound import bind
from hermosis_server.engine.overview import Activity
from hermosis_server.errors import InvalidRequest
from hermosis_server.rpc import status
from hermosis_server.rpc.gate import Call, Gate
from hermosis_server.rpc.permissions import OPEN_PREFIX
from hermosis_server.tracing import Tracing

Method = Callable[[Any, Any], Any]


class Door(grpc.aio.ServerInterceptor):
    """Wraps each handler: nobody comes in past the gate, and every error leaves as a typed status.

    Args:
      gate:     lets calls in.
      activity: counts the bytes of their messages, save those of streams that read and write bytes by themselves.
      tracing:  makes a span of each call; None while nobody traces.
    """

    def __init__(self, gate: Gate, activity: Activity, tracing: Tracing | None = None) -> None:
        self._gate = gate
        self._tracing = tracing
        self._activity = activity

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        name = handler_call_details.method
        if handler is None or name.startswith(OPEN_PREFIX):
            return handler
        if inspect.iscoroutinefunction(handler.stream_stream):
            # Such a method reads and writes bytes by itself.
            return grpc.stream_stream_rpc_method_handler(self._guarded(name, handler.stream_stream), None, None)
        # Bytes reach the handler unparsed: what is no message is refused like any other bad input.
        parse = functools.partial(
            _parsed_stream if handler.request_streaming else _parsed, self._parser(handler.request_deserializer)
        )
        kind = f"{_kind(handler.request_streaming)}_{_kind(handler.response_streaming)}"
        method = getattr(handler, kind)
        behaviour = self._guarded(name, (_written if handler.response_streaming else _answered)(method, parse))
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        wrapped: grpc.RpcMethodHandler[Any, Any] = make(behaviour, None, self._counted(handler.response_serializer))
        return wrapped

    def _guarded(self, name: str, method: Method) -> Callable[[Any, Any], Awaitable[Any]]:
        async def handler(request: Any, context: Any) -> Any:
            try:
                async with self._gate.admitted(name, context) as call:
                    bind(call)  # gRPC makes a task for each call
                    if self._tracing is None:
                        return await method(request, call)
                    with self._tracing.call(name, context.invocation_metadata() or ()) as span:
                        span.set_attribute("hermosis.tenant", call.identity.tenant)
                        try:
                            return await method(request, call)
                        finally:
                            span.set_attribute("hermosis.session_id", call.session_id)
            except Exception as error:
                await _abort(context, error)
                raise

        return handler

    def _parser(self, deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes, Call], Any]:
        def parse(raw: bytes, call: Call) -> Any:
            self._activity.received_bytes += len(raw)
            try:
                message = deserialize(raw) if deserialize else raw
            except DecodeError:
                raise no_message() from None
            call.note(message)
            return message

        return parse

    def _counted(self, serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes]:
        def count(message: Any) -> bytes:
            raw = serialize(message) if serialize else message
            self._activity.sent_bytes += len(raw)
            return raw

        return count


def _kind(streaming: bool) -> str:
    return "stream" if streaming else "unary"


def no_message() -> InvalidRequest:
    """The refusal of bytes that cannot be parsed."""
    return InvalidRequest(
        "the bytes that came are no message of this call; generate the client from this server's .proto files"
    )


async def _parsed_stream(
    parse: Callable[[bytes, Call], Any], raw: AsyncIterator[bytes], call: Call
) -> AsyncIterator[Any]:
    async for message in raw:
        await call.pace(len(message))
        yield parse(message, call)


def _parsed(parse: Callable[[bytes, Call], Any], raw: bytes, call: Call) -> Any:
    call.charge(len(raw))
    return parse(raw, call)


def _answered(method: Method, parse: Callable[[Any, Call], Any]) -> Method:
    async def behaviour(request: Any, call: Call) -> Any:
        answer = await method(parse(request, call), call)
        call.note(getattr(answer, "session", None))
        return answer

    return behaviour


def _written(method: Method, parse: Callable[[Any, Call], Any]) -> Method:
    """Writes what a method yields. In the task of the call, so that the gate can end it wherever it waits."""

    async def behaviour(request: Any, call: Call) -> None:
        async with aclosing(method(parse(request, call), call)) as responses:
            async for response in responses:
                await call.write(response)

    return behaviour


async def _abort(context: Any, error: Exception) -> None:
    """Ends the call; never returns."""
    error = status.known(error)
    details = status.to_status(error)
    code = status.CODES[type(error)]
    await context.abort(code, details.message, ((status.DETAILS_KEY, details.SerializeToString()),))
