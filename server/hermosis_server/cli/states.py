"""Commands about whole states: a data folder held against its checksums, snapshots, and sessions as files."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hermosis_server.cli import sessions
from hermosis_server.cli.extras import SERVER, require

if TYPE_CHECKING:
    from hermosis_server.offline import Verdict


def verify(
    path: Annotated[Path, typer.Argument(help="Data folder of a server that does not run, or one state file.")],
    json: sessions.Json = False,
) -> None:
    """Hold a data folder against its checksums, and say how far each session can be brought back.

    Nothing is changed. The exit status is 0 when everything that was promised is there, 1 when not.
    """
    require(*SERVER)
    from hermosis_server.cli import text
    from hermosis_server.offline import verify as verify_folder
    from hermosis_server.offline import verify_file

    with refusals(), told("reading {}") as progress:
        verdicts = verify_folder(path, progress) if path.is_dir() else [verify_file(path)]
    if json:
        text.print_json([_facts(verdict) for verdict in verdicts])
    else:
        text.print_rows(
            ("session", "comes back at", "snapshots", "journal entries", "problems"), list(map(_row, verdicts))
        )
    raise typer.Exit(int(any(verdict.problems for verdict in verdicts)))


def fetch(
    url: Annotated[str, typer.Argument(help="Where a server copied its snapshots (--copies): s3://bucket/folder …")],
    data_folder: Annotated[Path, typer.Argument(help="Empty folder for a new server; made if missing.")],
) -> None:
    """Fill an empty data folder from copies in object storage, to start a server on it: for when a machine is lost."""
    require(*SERVER)
    from hermosis_server.offline import fetch as fetch_copies

    with refusals(), told("fetching {}") as progress:
        fetched = fetch_copies(url, data_folder, progress)
    typer.echo(f"{len(fetched)} sessions; now: hermosis serve --data-folder {data_folder}")


def snapshot(
    context: typer.Context,
    session_id: sessions.SessionId,
    address: sessions.Address = sessions.DEFAULT_ADDRESS,
    token: sessions.Token = None,
    ca: sessions.Ca = None,
    json: sessions.Json = False,
) -> None:
    """Write a session to the server's disk now; what it has stepped is durable when this returns."""
    from hermosis_server.cli import text

    context.obj = {"token": token, "ca_file": ca}
    with sessions.connected(context, address) as client:
        written = client.session(session_id).snapshot()
    if json:
        facts = {"snapshot_id": written.snapshot_id, "step": written.step, "state_digest": written.state_digest}
        text.print_json(facts)
    else:
        typer.echo(f"snapshot {written.snapshot_id} of step {written.step}, digest {written.state_digest.hex()}")


def restore(
    context: typer.Context,
    session_id: sessions.SessionId,
    snapshot_id: Annotated[
        str, typer.Option("--snapshot", help="Snapshot to go back to.", show_default="the newest")
    ] = "",
    address: sessions.Address = sessions.DEFAULT_ADDRESS,
    token: sessions.Token = None,
    ca: sessions.Ca = None,
    json: sessions.Json = False,
) -> None:
    """Set a session back to a snapshot: also one that was set aside as damaged, or is only left as a copy.

    Workers are refused (StaleGeneration) until they pull.
    """
    context.obj = {"token": token, "ca_file": ca}
    with sessions.connected(context, address) as client:
        info = client.restore(session_id, snapshot_id)
    sessions.show_session(info, as_json=json)


@sessions.app.command("export")
def export_session(
    context: typer.Context,
    session_id: sessions.SessionId,
    path: Annotated[Path, typer.Argument(help="File to write, such as run.safetensors.")],
    address: sessions.Address = sessions.DEFAULT_ADDRESS,
) -> None:
    """Write a session's whole state to one file, which any reader of safetensors opens."""
    require(*SERVER)
    from hermosis_server import state_file

    with sessions.connected(context, address) as client:
        exported = client.session(session_id).export_state()
    with refusals():
        size = state_file.write(path, session_id, exported)
    typer.echo(f"{path}: session {session_id} at step {exported.step}, {size:,} bytes")


@sessions.app.command("import")
def import_session(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="State file: an export, or a snapshot from a data folder.")],
    session_id: Annotated[
        str | None, typer.Option("--id", help="Id to give; empty lets the server choose.", show_default="the file's")
    ] = None,
    address: sessions.Address = sessions.DEFAULT_ADDRESS,
    json: sessions.Json = False,
) -> None:
    """Make a session from a state file; it goes on where that one was."""
    require(*SERVER)
    from hermosis_server import state_file

    with refusals():
        known_as, exported = state_file.read(path)
    with sessions.connected(context, address) as client:
        info = client.import_session(exported, known_as if session_id is None else session_id).info()
    sessions.show_session(info, as_json=json)


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """What is refused ends the command with one line that names it."""
    from hermosis_server.errors import HermosisError

    try:
        yield
    except (HermosisError, OSError) as error:
        typer.echo(f"hermosis: {type(error).__name__}: {error}", err=True)
        raise typer.Exit(1) from None


@contextlib.contextmanager
def told(sentence: str) -> Iterator[Callable[[str], None]]:
    """Says on a terminal what is being done; nothing elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda what: None
        return
    with console.status("") as status:
        yield lambda what: status.update(sentence.format(what))


def _facts(verdict: "Verdict") -> dict[str, object]:
    return {
        "session_id": verdict.session_id,
        "step": verdict.step,
        "snapshots": verdict.snapshots,
        "entries": verdict.entries,
        "problems": verdict.problems,
    }


def _row(verdict: "Verdict") -> list[str]:
    step = "nowhere" if verdict.step is None else f"step {verdict.step}"
    problems = "; ".join(verdict.problems) or "none"
    return [verdict.session_id, step, str(len(verdict.snapshots)), str(verdict.entries), problems]
