"""Lines: log lines of server and sidecar, ids first, key=value for people or JSON for machines. Standard library only.

Code logs "event=not_durable session=%s problem=%r" with arguments, which people can grep for. Read apart again, the
same is {"session": …, "event": "not_durable", "problem": …} to a machine.
"""

import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Final

# Whose doing it was, from the widest to the nearest; then what it was.
IDS: Final = ("call", "request", "subject", "tenant", "session", "worker", "incident")
LAST: Final = ("level", "logger", "timestamp", "exception")

_FIELD = re.compile(r"(\w+)=(%[-#0-9.]*[a-z]|[^\s%]+)(?:\s+|\Z)")

# Our tokens, JSON Web Tokens, and whatever follows the word that announces one.
_SECRETS = re.compile(r"hmt_[\w-]+|eyJ[\w-]+\.[\w-]+\.[\w-]*|(?<=[Bb]earer )[^\s'\"]+")


def configure(*, level: str, style: str, ids: Callable[[], Mapping[str, object]]) -> None:
    """Sends every logger's lines to standard error.

    Args:
      level: least level to show.
      style: "text", "json", or "auto" for text on a terminal and json elsewhere.
      ids:   of what is being done where a line is written, by names of IDS.
    """
    people = style == "text" or (style == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(as_text if people else as_json, ids))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class Lines(logging.Formatter):
    """Makes a line of a record: as fields in their order, without secrets.

    Args:
      show: fields as text.
      ids:  as in `configure`; those that a line names itself are nearer.
    """

    def __init__(self, show: Callable[[Mapping[str, object]], str], ids: Callable[[], Mapping[str, object]]) -> None:
        super().__init__()
        self._show = show
        self._ids = ids

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            **self._ids(),
            **(_fields_of(record) or {"event": record.getMessage()}),
            "level": record.levelname.lower(),
            "logger": record.name,
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "exception": self.formatException(record.exc_info) if record.exc_info else "",
        }
        # Last: whatever a line was made of, an exception's text included, is in it by now.
        return redacted(self._show(_ordered(fields)))


def redacted(text: str) -> str:
    """A line without the secrets in it, so that whoever reads logs cannot become somebody else."""
    return _SECRETS.sub("[secret]", text)


def as_json(fields: Mapping[str, object]) -> str:
    """A line for machines."""
    return json.dumps(fields, default=str, ensure_ascii=False)


def as_text(fields: Mapping[str, object]) -> str:
    """A line for people: when and how grave, then key=value; a traceback stands below."""
    apart = {"timestamp", "level", "exception"}
    said = " ".join(f"{key}={_quoted(value)}" for key, value in fields.items() if key not in apart)
    trace = f"\n{fields['exception']}" if "exception" in fields else ""
    return f"{fields['timestamp']} {fields['level']:<8} {said}{trace}"


def _ordered(fields: Mapping[str, object]) -> dict[str, object]:
    """Ids, then the event, then what else there is, then who wrote it when. What is empty is left out."""
    middle = [key for key in fields if key not in IDS and key not in LAST and key != "event"]
    return {key: fields[key] for key in (*IDS, "event", *middle, *LAST) if fields.get(key) not in (None, "")}


def _fields_of(record: logging.LogRecord) -> dict[str, object] | None:
    """The fields of a line that was written as key=value throughout; None for any other."""
    if not isinstance(record.msg, str) or not isinstance(record.args, tuple | None):
        return None
    fields: dict[str, object] = {}
    left, place = iter(record.args or ()), 0
    while place < len(record.msg):
        found = _FIELD.match(record.msg, place)
        if found is None:
            return None
        key, value = found.groups()
        try:
            fields[key] = _value(value, left) if value.startswith("%") else value
        except StopIteration:
            return None
        place = found.end()
    return fields if fields and next(left, fields) is fields else None


def _value(pattern: str, arguments: Iterator[object]) -> object:
    """An argument as it should be read: numbers stay numbers, and rounded ones are rounded."""
    argument = next(arguments)
    if isinstance(argument, float):
        return float(pattern % argument) if pattern.endswith("f") else argument
    return argument if isinstance(argument, bool | int) else str(argument)


def _quoted(value: object) -> str:
    text = str(value)
    return text if re.fullmatch(r"[^\s=\"']+", text) else repr(text)
