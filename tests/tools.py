"""Tools: programs that tests run and that have an environment of their own, which `python3 run.py test` makes."""

import os
import shutil
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "build" / "tools" / ("Scripts" if os.name == "nt" else "bin")


def tool(name: str) -> Path:
    """A program of tools.txt; the test is skipped where it is not installed."""
    found = shutil.which(name, path=str(FOLDER))
    if found is None:
        pytest.skip(f"{name} is not in build/tools: `python3 run.py setup` installs it")
    return Path(found)
