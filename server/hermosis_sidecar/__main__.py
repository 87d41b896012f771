"""``python -m hermosis_sidecar``: the sidecar on the command line."""

from typing import Annotated, Any

import typer
from pydantic import ValidationError

from hermosis_sidecar.serving import serve
from hermosis_sidecar.settings import Settings


def _default(name: str) -> str:
    """For the help: what is taken when neither option nor environment says otherwise."""
    return f"HERMOSIS_SIDECAR_{name.upper()} or {Settings.model_fields[name].default}"


def main(
    server: Annotated[
        str | None, typer.Option(help="host:port of the optimization server.", show_default=_default("server"))
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="Address to listen on. The server judges callers by the tokens that they bring. The sidecar speaks "
            "clear text: beyond loopback put a proxy with TLS in front.",
            show_default=_default("host"),
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0 takes a free one.", show_default=_default("port"))
    ] = None,
    history_folder: Annotated[
        str | None,
        typer.Option(
            help="Folder for what was measured, which then survives restarts; '' for nothing.",
            show_default=_default("history_folder"),
        ),
    ] = None,
    until_stdin_closes: Annotated[
        bool, typer.Option("--until-stdin-closes", help="Stop when standard input ends, as it does with the parent.")
    ] = False,
) -> None:
    """REST, metrics and the page for one Hermosis server.

    Prints "HERMOSIS READY address=http://HOST:PORT" on standard output when it listens; logs go to standard error.
    Further settings come from the environment; HERMOSIS_SIDECAR_LIVE_INTERVAL_S=0.5 makes the live stream coarser.
    """
    given: dict[str, Any] = {"server": server, "host": host, "port": port, "history_folder": history_folder}
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise typer.BadParameter(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    serve(settings, until_stdin_closes=until_stdin_closes)


if __name__ == "__main__":
    typer.run(main)
