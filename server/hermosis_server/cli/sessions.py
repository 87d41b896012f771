"""``hermosis sessions …``: what runs on a server, through the same client that anybody uses."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hermosis_client import Client, SessionInfo
    from hermosis_client.records import RecipeValue

DEFAULT_ADDRESS = "127.0.0.1:50051"

Address = Annotated[str, typer.Option(envvar="HERMOSIS_ADDRESS", help="host:port of the server.")]
Json = Annotated[bool, typer.Option("--json", help="JSON, one line an answer, instead of a table.")]
SessionId = Annotated[str, typer.Argument(help="Id of the session, as `hermosis sessions list` shows it.")]
Token = Annotated[
    str | None,
    typer.Option(help="Token to show. Others on this machine can read a command line; HERMOSIS_TOKEN hides it."),
]
Ca = Annotated[
    str | None,
    typer.Option(
        help="PEM file of the CA of the server's certificate, or 'system'; also HERMOSIS_CA. HERMOSIS_CERTIFICATE "
        "and HERMOSIS_KEY name a certificate of your own."
    ),
]

app = typer.Typer(
    help="See and manage the sessions of a server.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(context: typer.Context, token: Token = None, ca: Ca = None) -> None:
    context.obj = {"token": token, "ca_file": ca}


@contextlib.contextmanager
def connected(context: typer.Context, address: str) -> "Iterator[Client]":
    """A client of the server; its errors end the command with one line that names them."""
    from hermosis_client import Client, HermosisError

    try:
        with Client(address, timeout_s=10.0, **context.obj) as client:
            yield client
    except HermosisError as error:
        typer.echo(f"hermosis: {type(error).__name__}: {error}", err=True)
        raise typer.Exit(1) from None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def show_session(info: "SessionInfo", *, as_json: bool) -> None:
    from hermosis_server.cli import text

    if as_json:
        text.print_json(text.session_facts(info))
    else:
        text.print_rows(text.SESSION_COLUMNS, [text.session_row(info)])


@app.command("list")
def list_sessions(
    context: typer.Context,
    search: Annotated[str, typer.Option(help="Only those with this text in their id, name, recipe or labels.")] = "",
    order_by: Annotated[
        str, typer.Option(help="create_time, session_id or step, with ' desc' behind it for the largest first.")
    ] = "create_time",
    address: Address = DEFAULT_ADDRESS,
    json: Json = False,
) -> None:
    """List the sessions, oldest first."""
    from hermosis_server.cli import text

    with connected(context, address) as client:
        sessions = list(client.sessions(search=search, order_by=order_by))
    if json:
        text.print_json([text.session_facts(info) for info in sessions])
    else:
        text.print_rows(text.SESSION_COLUMNS, [text.session_row(info) for info in sessions])


@app.command()
def show(
    context: typer.Context,
    session_id: SessionId,
    digest: Annotated[bool, typer.Option("--digest", help="Also the digest of its state, read in full.")] = False,
    address: Address = DEFAULT_ADDRESS,
    json: Json = False,
) -> None:
    """Show one session: its optimizer, its tensors and its newest reading."""
    from hermosis_server.cli import text

    with connected(context, address) as client:
        session = client.session(session_id)
        info, reading = session.info(), session.telemetry()
        state_digest = session.digest().hex() if digest else None
    if json:
        facts = text.session_facts(info) | {"reading": text.reading_facts(reading) if reading else None}
        text.print_json(facts | ({"state_digest": state_digest} if digest else {}))
        return
    text.print_rows(text.SESSION_COLUMNS, [text.session_row(info)])
    if info.status_reason:
        typer.echo(f"reason: {info.status_reason}")
    tensors = [(tensor.name, "x".join(map(str, tensor.shape)) or "scalar") for tensor in info.layout.tensors]
    typer.echo()
    text.print_rows(("tensor", "shape"), tensors)
    if reading:
        typer.echo()
        text.print_rows(text.READING_COLUMNS, [text.reading_row(reading)])
    if state_digest:
        typer.echo(f"\ndigest {state_digest}")


@app.command()
def create(
    context: typer.Context,
    optimizer: Annotated[str, typer.Option(help="Recipe, such as adamw; the server lists them when it is unknown.")],
    shape: Annotated[
        list[str] | None, typer.Option(help="NAME=3x4: one tensor; NAME= is a scalar. May be given several times.")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--from", help="File of NumPy arrays (.npz) to take names, shapes and values from.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE: a parameter of the recipe, such as nesterov=true. Several times."),
    ] = None,
    session_id: Annotated[str, typer.Option("--id", help="Id to give; the server chooses when left out.")] = "",
    workers: Annotated[int, typer.Option(min=1, help="Workers that take part in a round.")] = 1,
    consistency: Annotated[
        str, typer.Option(help="barrier waits for every worker; async applies each gradient on arrival.")
    ] = "barrier",
    parameters_on: Annotated[
        str, typer.Option(help="server keeps the weights; worker gets increments and keeps them itself.")
    ] = "server",
    name: Annotated[str, typer.Option(help="A name for people.")] = "",
    address: Address = DEFAULT_ADDRESS,
    json: Json = False,
) -> None:
    """Create a session from shapes, or from an .npz file with the initial weights.

    From shapes alone it stays CREATING until a worker uploads the weights.

    Example: hermosis sessions create --optimizer adamw --set lr=0.001 --from weights.npz
    """
    import numpy as np

    from hermosis_client import Recipe

    if (source is None) == (not shape):
        raise typer.BadParameter("give either --shape or --from")
    try:
        arrays = dict(np.load(source, allow_pickle=False)) if source else None
    except (OSError, ValueError, TypeError) as error:
        raise typer.BadParameter(f"--from {source}: not a readable .npz file ({error})") from None
    with connected(context, address) as client:
        session = client.create_session(
            arrays or dict(_shape(one) for one in shape or ()),
            Recipe(optimizer, **dict(_setting(one) for one in setting or ())),
            session_id=session_id,
            workers=workers,
            consistency=consistency,  # type: ignore[arg-type]  # checked, with a better message, by the client
            parameters_on=parameters_on,  # type: ignore[arg-type]
            display_name=name,
        )
        info = session.initialise(arrays) if arrays else session.info()
    show_session(info, as_json=json)


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, equals, sides = text.partition("=")
    try:
        if not (name and equals):
            raise ValueError
        return name, tuple(int(side) for side in sides.split("x")) if sides else ()
    except ValueError:
        raise typer.BadParameter(f"--shape {text!r} is written NAME=3x4, or NAME= for a scalar") from None


def _setting(text: str) -> "tuple[str, RecipeValue]":
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise typer.BadParameter(f"--set {text!r} is written NAME=VALUE")
    if value in ("true", "false"):
        return name, value == "true"
    try:
        return name, float(value)
    except ValueError:
        return name, value


@app.command()
def pause(
    context: typer.Context, session_id: SessionId, address: Address = DEFAULT_ADDRESS, json: Json = False
) -> None:
    """Refuse further gradients from the next step boundary on; reads still work."""
    with connected(context, address) as client:
        info = client.session(session_id).pause()
    show_session(info, as_json=json)


@app.command()
def resume(
    context: typer.Context, session_id: SessionId, address: Address = DEFAULT_ADDRESS, json: Json = False
) -> None:
    """Take gradients again."""
    with connected(context, address) as client:
        info = client.session(session_id).resume()
    show_session(info, as_json=json)


@app.command()
def close(
    context: typer.Context, session_id: SessionId, address: Address = DEFAULT_ADDRESS, json: Json = False
) -> None:
    """Close a session for good: its weights and its optimizer state are gone."""
    with connected(context, address) as client:
        info = client.session(session_id).close()
    show_session(info, as_json=json)


@app.command()
def watch(
    context: typer.Context,
    session_ids: Annotated[list[str] | None, typer.Argument(help="Sessions to watch; all when left out.")] = None,
    interval_s: Annotated[
        float, typer.Option(min=0, help="Least seconds between two readings of one session; 0 shows every step.")
    ] = 1.0,
    count: Annotated[int, typer.Option(min=0, help="Readings to show before it ends; 0 goes on until Ctrl-C.")] = 0,
    address: Address = DEFAULT_ADDRESS,
    json: Json = False,
) -> None:
    """Follow the steps of sessions as they are applied, until Ctrl-C."""
    from hermosis_server.cli import text

    widths = [max(len(column), 12) for column in text.READING_COLUMNS]

    def line(cells: "list[str] | tuple[str, ...]") -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()

    with connected(context, address) as client, client.watch(session_ids or (), min_interval_s=interval_s) as readings:
        if not json:
            typer.echo(line(text.READING_COLUMNS))
        try:
            for shown, reading in enumerate(readings, start=1):
                if json:
                    text.print_json(text.reading_facts(reading))
                else:
                    print(line(text.reading_row(reading)), flush=True)
                if shown == count:
                    break
        except KeyboardInterrupt:
            return
