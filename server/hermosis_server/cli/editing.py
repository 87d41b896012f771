"""``hermosis sessions edit, fork, snapshots, workers``: what changes a session while it runs, and what it has."""

import datetime
import json as json_module
from typing import Annotated

import typer

from hermosis_server.cli.sessions import DEFAULT_ADDRESS, Address, Json, SessionId, connected, show_session


def edit(
    context: typer.Context,
    session_id: SessionId,
    lr_scale: Annotated[float | None, typer.Option(help="Multiplies the learning rate; positive.")] = None,
    thermal: Annotated[
        str | None,
        typer.Option(
            help="Thermal profile to go on with, as JSON of hermosis.v1.ThermalProfile: "
            '\'{"exponential": {"momentum_retention": 0.9}}\'.'
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Display name, for people; empty takes it away.")] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE, for filters. Several times: together they replace all that were there."),
    ] = None,
    etag: Annotated[
        str, typer.Option(help="Of the session that this is based on: refuses where somebody edited it since.")
    ] = "",
    address: Address = DEFAULT_ADDRESS,
    json: Json = False,
) -> None:
    """Edit a running session between two steps; what is left out stays as it is."""
    from google.protobuf import json_format

    from hermosis.v1 import dynamics_pb2

    if lr_scale is None and thermal is None and name is None and label is None:
        raise typer.BadParameter("give one or more of --lr-scale, --thermal, --name and --label")
    try:
        profile = None if thermal is None else json_format.ParseDict(_object(thermal), dynamics_pb2.ThermalProfile())
    except json_format.ParseError as error:
        raise typer.BadParameter(f"--thermal: {error}") from None
    labels = None if label is None else dict(_label(one) for one in label)
    with connected(context, address) as client:
        info = client.session(session_id).update(
            lr_scale=lr_scale, thermal_profile=profile, display_name=name, labels=labels, etag=etag
        )
    show_session(info, as_json=json)


def fork(
    context: typer.Context,
    session_id: SessionId,
    new_id: Annotated[str, typer.Option("--id", help="Id to give; the server chooses when left out.")] = "",
    address: Address = DEFAULT_ADDRESS,
    json: Json = False,
) -> None:
    """Make a session that goes on from this one's present state, with workers of its own."""
    with connected(context, address) as client:
        info = client.session(session_id).fork(new_id).info()
    show_session(info, as_json=json)


def snapshots(
    context: typer.Context, session_id: SessionId, address: Address = DEFAULT_ADDRESS, json: Json = False
) -> None:
    """List what of a session is on the server's disk, newest first."""
    from hermosis_server.cli import text

    with connected(context, address) as client:
        held = client.snapshots(session_id)
    if json:
        text.print_json([text.facts(snapshot) for snapshot in held])
        return
    rows = [
        (one.snapshot_id, str(one.step), str(one.generation), f"{one.size_bytes:,}", _time(one.time_s)) for one in held
    ]
    text.print_rows(("snapshot", "step", "generation", "bytes", "written"), rows)


def workers(
    context: typer.Context, session_id: SessionId, address: Address = DEFAULT_ADDRESS, json: Json = False
) -> None:
    """List who contributes to a session, and where each stands."""
    from hermosis_server.cli import text

    with connected(context, address) as client:
        known = client.session(session_id).workers()
    if json:
        text.print_json([text.facts(worker) for worker in known])
        return
    columns = ("worker", "connected", "next", "base step", "staleness", "bytes", "last seen")
    rows = [
        (
            one.worker_id,
            "yes" if one.connected else "no",
            str(one.next_sequence),
            str(one.base_step),
            str(one.staleness),
            f"{one.received_bytes:,}",
            _time(one.last_seen_time_s),
        )
        for one in known
    ]
    text.print_rows(columns, rows)


def _object(text: str) -> dict[str, object]:
    try:
        given = json_module.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"--thermal is no JSON ({error})") from None
    if not isinstance(given, dict):
        raise typer.BadParameter('--thermal is one JSON object, such as {"constant": {}}')
    return given


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise typer.BadParameter(f"--label {text!r} is written KEY=VALUE")
    return key, value


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).isoformat(" ", "seconds")
