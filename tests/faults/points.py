"""Points: which failpoints the code reaches, and how often each is met before it kills."""

import random
import re
from pathlib import Path

import hermosis_server
from hermosis_server import failpoints

ONCE = ("recovery.",)  # reached once a start
RARE = (
    "session.",
    "create.",
    "initialise.",
    "import.",
    "update.",
    "snapshot.pruned",
    "disk.allocate",
)  # … or a few times
_SOURCES = Path(hermosis_server.__file__).parent


def reached_by_code() -> list[str]:
    """The points that a line of the server names, in the order of POINTS."""
    text = "\n".join(path.read_text() for path in _SOURCES.rglob("*.py") if path.name != "failpoints.py")
    named = set(re.findall(r'(?:reach\(|aside=)"([a-z_.]+)"', text))
    return [name for name in failpoints.POINTS if name in named]


def hits(name: str, count: int, seed: int) -> list[int]:
    """So many hit counts for a point: early ones, of the recovery, and late ones, of the load."""
    if name.startswith(ONCE):
        return [1] * count
    if name.startswith(RARE):
        return [1 + index % 2 for index in range(count)]
    draw = random.Random(f"{seed} {name}")
    return [draw.randint(1, 6) if index % 2 == 0 else draw.randint(7, 30) for index in range(count)]
