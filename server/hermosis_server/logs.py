"""Logs: one line an event, ids first, key=value for people or JSON for machines, on standard error."""

import logging
import re
import sys

import structlog

# Our tokens, JSON Web Tokens, and whatever follows the word that announces one.
_SECRETS = re.compile(r"hmt_[\w-]+|eyJ[\w-]+\.[\w-]+\.[\w-]*|(?<=[Bb]earer )[^\s'\"]+")


def redacted(text: str) -> str:
    """A line without the secrets in it, so that whoever reads logs cannot become somebody else."""
    return _SECRETS.sub("[secret]", text)


def _redact(logger: object, method: str, line: object) -> str:
    """After everything else: whatever a line was made of, an exception's text included, is in it by now."""
    return redacted(str(line))


def configure(*, level: str, style: str) -> None:
    """Sends every logger's lines through structlog.

    Args:
      level: least level to show.
      style: "text", "json", or "auto" for text on a terminal and json elsewhere.
    """
    terminal = sys.stderr.isatty()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor
    if style == "text" or (style == "auto" and terminal):
        renderer = structlog.dev.ConsoleRenderer(colors=terminal)
    else:
        renderer = structlog.processors.JSONRenderer()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer, _redact],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
