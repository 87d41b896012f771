"""The commands and their help; what they do is in the files beside this one."""

from pathlib import Path
from typing import Annotated

import typer

from hermosis_server import __version__
from hermosis_server.cli import editing, sessions, tokens, top
from hermosis_server.cli.extras import DEMO, SERVER, SIDECAR, require

HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    help="""Hermosis keeps optimizers on a server: workers stream gradients, the server steps, weights come back.

    New here? `hermosis demo` trains a small network with two worker processes in about half a minute.
    `hermosis up` starts a server and its page; `hermosis sessions list` shows what runs on it.
    """,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=HELP,
)
app.add_typer(sessions.app, name="sessions")
app.add_typer(tokens.app, name="token")
app.command()(top.top)
for command in (editing.edit, editing.fork, editing.snapshots, editing.workers):
    sessions.app.command()(command)

# Arguments and help of these belong to another program, which is not imported before it is wanted.
PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hermosis {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def up(
    port: Annotated[int, typer.Option(help="TCP port of the server; 0 takes a free one.")] = 50051,
    page_port: Annotated[int, typer.Option(help="TCP port of the page; 0 takes a free one.")] = 8080,
    data_folder: Annotated[
        str | None, typer.Option(help="Folder for what must outlive the server.", show_default="hermosis-data")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where sessions live: auto, cpu, cuda or cuda:N.", show_default="auto")
    ] = None,
) -> None:
    """Start a server and its page, both on loopback, until Ctrl-C.

    They are two processes: the page can never hold up a gradient. When either ends, the other is stopped.
    Further settings come from the environment, as `hermosis serve --help` and `hermosis sidecar --help` say.
    """
    from hermosis_server.cli.up import run

    require(*SERVER, *SIDECAR)
    raise typer.Exit(run(port=port, page_port=page_port, data_folder=data_folder, device=device))


@app.command(context_settings=PASS_ON)
def serve(context: typer.Context) -> None:
    """Start the server alone. Each flag is also an environment variable."""
    from hermosis_server.cli.serve import command

    command()(args=context.args, prog_name="hermosis serve")


@app.command(context_settings=PASS_ON)
def sidecar(context: typer.Context) -> None:
    """Start the page alone: REST, metrics and live charts of a server elsewhere."""
    from hermosis_sidecar.__main__ import main

    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, context_settings=HELP)
    alone.command()(main)
    alone(args=context.args, prog_name="hermosis sidecar")


@app.command()
def health(
    address: Annotated[
        str, typer.Option(envvar="HERMOSIS_ADDRESS", help="host:port of the server.")
    ] = sessions.DEFAULT_ADDRESS,
    timeout_s: Annotated[float, typer.Option(help="Seconds to wait for an answer.")] = 3.0,
    ca: Annotated[
        str | None, typer.Option(help="PEM file of the CA of the server's certificate, or 'system'; also HERMOSIS_CA.")
    ] = None,
) -> None:
    """Ask a server whether it serves; the exit status is 0 when it does, 1 when not."""
    from hermosis_server.cli.serve import health_of

    status = health_of(address, timeout_s=timeout_s, ca_file=ca)
    typer.echo(status)
    raise typer.Exit(0 if status == "SERVING" else 1)


@app.command()
def certificates(
    folder: Annotated[Path, typer.Argument(help="Folder for the files; made if missing.")],
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address by which clients call the server. Several times.", show_default="localhost"),
    ] = None,
    client: Annotated[str, typer.Option(help="Whom the client certificate is for.")] = "developer",
    role: Annotated[str, typer.Option(help="Its role: operator, worker or viewer.")] = "operator",
    tenant: Annotated[str, typer.Option(help="Its tenant.")] = "default",
) -> None:
    """Make a certificate authority for development, and a server's and a client's certificate.

    A folder that has an authority already gets new certificates of the same one.
    """
    from hermosis_server.access.development import make_certificates
    from hermosis_server.errors import HermosisError
    from hermosis_server.identity import checked_identity

    try:
        identity = checked_identity(subject=client, tenant=tenant, role=role, sessions="*")
        written = make_certificates(folder, hosts=host or ("localhost", "127.0.0.1", "::1"), client=identity)
    except (HermosisError, OSError, ValueError) as error:
        typer.echo(f"hermosis: {error}", err=True)
        raise typer.Exit(1) from None
    for path in written:
        typer.echo(path)


@app.command()
def demo(
    optimizer: Annotated[str, typer.Option(help="Recipe to train with, such as hermosis, adamw or sgd.")] = "hermosis",
    workers: Annotated[int, typer.Option(min=1, max=16, help="Worker processes that share every minibatch.")] = 2,
    epochs: Annotated[
        int, typer.Option(min=1, help="Passes over the training images. More is more exact, and takes longer.")
    ] = 20,
    lr: Annotated[float | None, typer.Option(help="Learning rate.", show_default="a good one for the recipe")] = None,
    results: Annotated[str, typer.Option(help="Folder for the plot; made if missing.")] = "demo-results",
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the server and the page up after the training, until Ctrl-C.")
    ] = False,
) -> None:
    """Train a small network on handwritten digits with separate worker processes, and compare with one process.

    A server, its page and the workers are real processes on free loopback ports, with a data folder that is thrown
    away; Ctrl-C ends all of them. The same recipe then runs locally in one process from the same start.
    """
    require(*SERVER, *SIDECAR, *DEMO)
    from hermosis_server.demo.show import DemoSettings, run

    settings = DemoSettings(
        optimizer=optimizer,
        workers=workers,
        epochs=epochs,
        lr=lr,
        results=results,
        keep=keep,
    )
    raise typer.Exit(run(settings))
