"""Runs a sidecar as a process: says when it listens, stops when it is told to."""

import os
import signal
import socket
import sys
import threading
from types import FrameType

import uvicorn
from fastapi import FastAPI

from hermosis_client import errors
from hermosis_sidecar import logs
from hermosis_sidecar.app import create_app
from hermosis_sidecar.history import Store
from hermosis_sidecar.settings import Settings

# Viewers are ended at once; what is left are calls to the server, which have a time limit of their own.
_PATIENCE_S = 10


def serve(settings: Settings, *, until_stdin_closes: bool = False) -> None:
    """Serves until SIGTERM or SIGINT; prints ``HERMOSIS READY address=http://HOST:PORT`` on stdout when it listens.

    Args:
      settings:           of the sidecar.
      until_stdin_closes: also stops when standard input ends, so that a parent that is killed leaves nothing behind.

    Raises:
      SystemExit: the address cannot be listened on, or what was measured not be kept.
    """
    logs.configure(level=settings.log_level, style=settings.log_format)
    _require_history(settings)
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_PATIENCE_S,
    )
    server = _Server(config, app)
    if until_stdin_closes:
        threading.Thread(target=server.stop_at_end_of_stdin, name="hermosis-stdin", daemon=True).start()
    server.run()


def _require_history(settings: Settings) -> None:
    """Ends the process where the database cannot be opened; in the app's own start it would be a traceback."""
    if url := settings.history_database():
        try:
            Store(url).close()
        except errors.HermosisError as error:
            sys.exit(f"hermosis sidecar: {error}")


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"HERMOSIS READY address=http://{shown}:{port}", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn waits for open responses before it ends the app, and a live stream has no end of its own.
        self._app.state.hall.followings.end_viewers()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn would raise the signal again after a clean stop, which then reads as a crash.
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    def stop_at_end_of_stdin(self) -> None:
        # Not sys.stdin: its lock, held by a thread that waits, is fatal when the interpreter ends.
        while os.read(0, 4096):
            pass
        self.should_exit = True
