"""Logs: the lines of the server, each with the call that it is about."""

from hermosis import lines
from hermosis_server import bound


def configure(*, level: str, style: str) -> None:
    """Sends every logger's lines to standard error, in the level and style of the settings."""
    lines.configure(level=level, style=style, ids=bound.ids)
