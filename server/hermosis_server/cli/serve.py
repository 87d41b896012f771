"""``hermosis serve`` and ``hermosis health``. The flags of serve are the fields of Settings: said once, there."""

import gc
import inspect
import typing
from typing import Annotated, Any

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from hermosis_client.access import Access
from hermosis_server.settings import Settings


def command() -> typer.Typer:
    """The command line of serve, with a flag and an environment variable for each setting."""

    def serve(**given: Any) -> None:
        """Start the server alone, until SIGTERM or Ctrl-C.

        Prints "HERMOSIS READY address=HOST:PORT" on standard output when it listens; logs go to standard error.
        Each flag is an environment variable too: --data-folder is HERMOSIS_DATA_FOLDER. HERMOSIS_ALLOCATOR=system
        leaves the C library's malloc as it is; by default it keeps freed memory, which large messages need again.
        """
        try:
            settings = Settings(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            named = f"{_flag(str(first['loc'][0]))}: " if first["loc"] else ""
            raise typer.BadParameter(f"{named}{first['msg']}") from None
        # What is imported stays until the end: nobody shall look for garbage in it, while it comes or later.
        gc.disable()
        try:
            from hermosis_server.app import serve
        finally:
            gc.freeze()
            gc.enable()
        status = serve(settings)
        gc.freeze()  # the interpreter would look through everything once more before it ends
        raise typer.Exit(status)

    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(name, field))
        for name, field in Settings.model_fields.items()
    ]
    serve.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    serve.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    alone = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,  # so many flags read better as plain text
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    alone.command()(serve)
    return alone


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _option(name: str, field: FieldInfo) -> Any:
    kind = field.annotation
    known = kind if kind in (bool, int, float) or typing.get_origin(kind) is typing.Literal else str
    default = "none" if field.default is None else field.default
    option = typer.Option(
        _flag(name),
        help=field.description if kind is bool else f"{field.description}  [default: {default}]",
        envvar=f"HERMOSIS_{name.upper()}",
        show_envvar=False,
        show_default=False,
    )
    return Annotated[known | None, option]  # type: ignore[operator]


def health_of(address: str, *, timeout_s: float, ca_file: str | None = None) -> str:
    """What the server's health service says: SERVING, NOT_SERVING, or why it cannot be asked."""
    # It asks for no token; over TLS it must see a certificate that it knows, as everybody must.
    try:
        channel = Access.of(token="", ca_file=ca_file).channel(address, [("grpc.enable_http_proxy", 0)])
    except ValueError as error:
        return f"UNREACHABLE: {error}"
    with channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            return f"UNREACHABLE: {error.code().name}: {error.details()}"
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
