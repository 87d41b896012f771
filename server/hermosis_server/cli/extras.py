"""Which extra brings a package, so that a missing one is named with its cure. Standard library only."""

import importlib.util

_EXTRAS = {
    "typer": "server",
    "rich": "server",
    "torch": "server",
    "pydantic": "server",
    "pydantic_settings": "server",
    "jwt": "server",
    "cryptography": "server",
    "grpc_health": "server",
    "grpc_reflection": "server",
    "fastapi": "sidecar",
    "uvicorn": "sidecar",
    "prometheus_client": "server",
    "sklearn": "demo",
    "matplotlib": "demo",
}
SERVER = ("torch", "pydantic_settings", "prometheus_client", "grpc_health", "grpc_reflection")
SIDECAR = ("fastapi", "uvicorn", "prometheus_client")
DEMO = ("sklearn", "matplotlib")


def require(*packages: str) -> None:
    """Raises ModuleNotFoundError for the first package that is missing: before processes are started that need it."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def cure(error: ModuleNotFoundError) -> str | None:
    """What to do about a missing package; None where no extra of ours brings it."""
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRAS:
        return None
    return (
        f"this command needs the package {package}, which is not installed. Install it with:\n"
        f"  pip install 'hermosis[{_EXTRAS[package]}]'"
    )
