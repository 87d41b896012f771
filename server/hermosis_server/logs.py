"""Logs: one line an event, ids first, key=value for people or JSON for machines, on standard error."""

import logging
import sys

import structlog


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
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
