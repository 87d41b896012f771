"""The command ``hermosis``. Each command imports what it needs when it runs, so that help is quick and always there."""

import sys

__all__ = ["main"]

# Which extra of the distribution brings a package.
_EXTRAS = {
    "typer": "server",
    "rich": "server",
    "torch": "server",
    "pydantic": "server",
    "pydantic_settings": "server",
    "structlog": "server",
    "grpc_health": "server",
    "grpc_reflection": "server",
    "fastapi": "sidecar",
    "uvicorn": "sidecar",
    "prometheus_client": "sidecar",
    "sklearn": "demo",
    "matplotlib": "demo",
}


def main() -> None:
    """Runs the command line; a package that is missing is named with the command that installs it."""
    try:
        from hermosis_server.cli.root import app

        app(prog_name="hermosis")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        print(
            f"hermosis: this command needs the package {package}, which is not installed. Install it with:\n"
            f"  pip install 'hermosis[{_EXTRAS[package]}]'",
            file=sys.stderr,
        )
        sys.exit(1)
