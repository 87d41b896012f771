"""Interceptor: every error leaves a call as a typed status, whichever method it comes from."""

# grpcio's own classes are generic in its type stubs only; unevaluated annotations let both be right.
from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from hermosis_server.errors import InvalidRequest
from hermosis_server.rpc import status


class TypedErrors(grpc.aio.ServerInterceptor):
    """Wraps each handler; those that answer once and those that answer with a stream."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith("/grpc."):
            return handler  # Health and reflection speak in statuses of their own.
        if inspect.iscoroutinefunction(handler.stream_stream):
            # Such a method reads and writes bytes by itself.
            return grpc.stream_stream_rpc_method_handler(_conversation(handler.stream_stream), None, None)
        # Bytes reach the handler unparsed: what is no message is refused like any other bad input.
        parse = _parser(handler.request_deserializer)
        if handler.request_streaming:
            parse = functools.partial(_parsed_stream, parse)
        kind = "stream" if handler.request_streaming else "unary"
        if handler.response_streaming:
            behaviour: Any = _stream(getattr(handler, f"{kind}_stream"), parse)
            make = getattr(grpc, f"{kind}_stream_rpc_method_handler")
        else:
            behaviour = _unary(getattr(handler, f"{kind}_unary"), parse)
            make = getattr(grpc, f"{kind}_unary_rpc_method_handler")
        wrapped: grpc.RpcMethodHandler[Any, Any] = make(behaviour, None, handler.response_serializer)
        return wrapped


def _parser(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    def parse(raw: bytes) -> Any:
        try:
            return deserialize(raw) if deserialize else raw
        except DecodeError:
            raise no_message() from None

    return parse


def no_message() -> InvalidRequest:
    """The refusal of bytes that cannot be parsed."""
    return InvalidRequest(
        "the bytes that came are no message of this call; generate the client from this server's .proto files"
    )


async def _parsed_stream(parse: Callable[[bytes], Any], raw: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for message in raw:
        yield parse(message)


def _unary(method: Callable[[Any, Any], Awaitable[Any]], parse: Callable[[Any], Any]) -> Callable[..., Awaitable[Any]]:
    async def handler(request: Any, context: Any) -> Any:
        try:
            return await method(parse(request), context)
        except Exception as error:
            await _abort(context, error)
            raise

    return handler


def _stream(
    method: Callable[[Any, Any], AsyncIterator[Any]], parse: Callable[[Any], Any]
) -> Callable[..., AsyncIterator[Any]]:
    async def handler(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for response in method(parse(request), context):
                yield response
        except Exception as error:
            await _abort(context, error)

    return handler


def _conversation(method: Callable[[Any, Any], Awaitable[None]]) -> Callable[[Any, Any], Awaitable[None]]:
    async def handler(requests: Any, context: Any) -> None:
        try:
            await method(requests, context)
        except Exception as error:
            await _abort(context, error)

    return handler


async def _abort(context: Any, error: Exception) -> None:
    """Ends the call; never returns."""
    error = status.known(error)
    details = status.to_status(error)
    code = status.CODES[type(error)]
    await context.abort(code, details.message, ((status.DETAILS_KEY, details.SerializeToString()),))
