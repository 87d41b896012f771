"""``hermosis token …``: who may come in. Works on the data folder, whether a server runs on it or not."""

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hermosis_server.access.tokens import TokenFile, TokenRecord

_UNITS_S = {"m": 60, "h": 3600, "d": 86_400}

Folder = Annotated[
    Path, typer.Option("--data-folder", envvar="HERMOSIS_DATA_FOLDER", help="Data folder of the server.")
]
DEFAULT_FOLDER = Path("hermosis-data")

app = typer.Typer(
    help="Make, list and revoke the tokens that a server asks for. With the first one it asks everybody.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@contextlib.contextmanager
def opened(folder: Path) -> "Iterator[TokenFile]":
    """The token file; what is refused ends the command with one line."""
    from hermosis_server.access.tokens import TokenFile
    from hermosis_server.errors import HermosisError

    try:
        yield TokenFile(folder)
    except (HermosisError, OSError) as error:
        typer.echo(f"hermosis: {error}", err=True)
        raise typer.Exit(1) from None


@app.command()
def create(
    name: Annotated[str, typer.Option(help="A name for people, to list and revoke it by.")],
    role: Annotated[
        str, typer.Option(help="viewer reads; worker also sends gradients and reads weights; operator does everything.")
    ],
    tenant: Annotated[str, typer.Option(help="Whose sessions it is for: tenants do not see each other's.")] = "default",
    session: Annotated[str, typer.Option(help="Ids of the sessions it is for; * and ? stand for any letters.")] = "*",
    expires: Annotated[
        str | None, typer.Option(help="How long it holds, such as 12h or 30d.", show_default="for ever")
    ] = None,
    data_folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Make a token and print it: this once, for only its fingerprint is kept."""
    lifetime_s = None if expires is None else _seconds(expires)
    with opened(data_folder) as tokens:
        token = tokens.create(name, role=role, tenant=tenant, sessions=session, lifetime_s=lifetime_s)
    typer.echo(token)


@app.command("list")
def list_tokens(
    data_folder: Folder = DEFAULT_FOLDER,
    json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """List the tokens, oldest first, those revoked included."""
    from hermosis_server.cli import text

    with opened(data_folder) as tokens:
        records = tokens.records
    now_s = time.time()
    facts = [_facts(record, now_s) for record in records]
    if json:
        text.print_json(facts)
    else:
        columns = ("name", "role", "tenant", "sessions", "status", "expires")
        text.print_rows(columns, [tuple(str(fact[column] or "") for column in columns) for fact in facts])


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Name of the token, as `hermosis token list` shows it.")],
    tenant: Annotated[
        str | None, typer.Option(help="Whose token it is, where several have one of that name.", show_default="any")
    ] = None,
    data_folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Let a token in no longer; a running server ends its calls within a second or two."""
    with opened(data_folder) as tokens:
        tokens.revoke(name, tenant=tenant)


def _facts(record: "TokenRecord", now_s: float) -> dict[str, str | None]:
    status = "valid"
    if record.revoked_s is not None:
        status = "revoked"
    elif record.expires_s is not None and record.expires_s <= now_s:
        status = "expired"
    expires = None if record.expires_s is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.expires_s))
    return {
        "name": record.name,
        "role": record.role.lower(),
        "tenant": record.tenant,
        "sessions": record.sessions,
        "status": status,
        "expires": expires,
    }


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d{1,6})([mhd])", text)
    if match is None or int(match[1]) == 0:
        raise typer.BadParameter(f"--expires {text!r} is written like 90m, 12h or 30d")
    return int(match[1]) * _UNITS_S[match[2]]
