"""The sidecar: REST, live stream, metrics and a page for one Hermosis server, in a process of its own.

It is a client of the server like any other and imports neither it nor torch. `python -m hermosis_sidecar` runs it;
`create_app` makes the ASGI app for whoever has a process already.
"""

from hermosis_sidecar.app import create_app
from hermosis_sidecar.serving import serve
from hermosis_sidecar.settings import Settings

__all__ = ["Settings", "create_app", "serve"]
