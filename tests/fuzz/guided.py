"""Coverage-guided fuzzing of the parsers by atheris, which lives in an environment of its own.

atheris is 100 MB and knows few versions of Python, so nothing else depends on it; where it cannot be had, its targets
are left out by name.
"""

import hashlib
import importlib
import math
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
CASE_S = 20


class Missing(Exception):
    """What is needed and cannot be had, in a line."""


class Guided(NamedTuple):
    name: str
    idea: str


TARGETS = (
    Guided("hot-requests", "hot.py against the generated code (coverage-guided)"),
    Guided("hot-responses", "the same for answers (coverage-guided)"),
    Guided("packed-gradients", "packed.py against the generated code (coverage-guided)"),
    Guided("packed-results", "the same for answers (coverage-guided)"),
    Guided("codec-specs", "a session's spec to its dynamics (coverage-guided)"),
    Guided("codec-edits", "edits of a session (coverage-guided)"),
    Guided("codec-chunks", "chunks to their place (coverage-guided)"),
    Guided("wire", "checksums, spans, names and digests (coverage-guided)"),
)


def environment(folder: Path, say: Callable[[str], None]) -> Path:
    """The Python that has atheris and all that this one has; made on the first call.

    Raises:
      Missing: it cannot be made here.
    """
    folder = folder.absolute()
    python = folder / "bin" / "python"
    finished = folder / "finished"
    wanted = f"{sys.version}\n{sysconfig.get_path('purelib')}\n{REQUIREMENTS.read_text()}"
    if finished.exists() and finished.read_text() == wanted:
        return python
    say(f"making an environment for atheris in {folder} …")
    _do([sys.executable, "-m", "venv", "--clear", str(folder)])
    _do([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(REQUIREMENTS)])
    paths = (sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "packages-of-the-other-environment.pth").write_text("\n".join(dict.fromkeys(paths)) + "\n")
    finished.write_text(wanted)
    return python


def run(python: Path, name: str, memory: Path, *, seconds: float, cases: float, seed: int) -> tuple[int, list[Path]]:
    """Fuzzes a target, what failed before first; how many cases were tried, and the files of those that fail."""
    corpus, crashes = memory / "corpus" / name, memory / "crashes"
    corpus.mkdir(parents=True, exist_ok=True)
    crashes.mkdir(parents=True, exist_ok=True)
    tried = 0
    for known in sorted(crashes.glob(f"{name}-*")):
        tried += 1
        if _child(python, name, crashes, [str(known)]).returncode:
            return tried, [known]
        known.unlink()  # it passes now, and belongs among those that cover something
    limits = [
        f"-runs={-1 if cases == math.inf else int(cases)}",
        f"-seed={seed % (1 << 31) or 1}",
        f"-timeout={CASE_S}",
    ]
    if seconds < math.inf:
        limits.append(f"-max_total_time={max(1, round(seconds))}")
    done = _child(python, name, crashes, [f"-artifact_prefix={crashes}/{name}-", *limits, str(corpus)])
    counted = re.findall(r"^#(\d+)\s|Done (\d+) runs", done.stdout, re.MULTILINE)
    tried += max((int(first or last) for first, last in counted), default=0)
    found = sorted(crashes.glob(f"{name}-*"))
    if done.returncode:
        (memory / "findings").mkdir(parents=True, exist_ok=True)
        log = memory / "findings" / f"{name}.txt"
        log.write_text(done.stdout, errors="backslashreplace")
        found = found or [log]
    return tried, found


def _child(python: Path, name: str, crashes: Path, words: list[str]) -> "subprocess.CompletedProcess[str]":
    paths = [str(ROOT), *(str(ROOT / package) for package in ("proto", "server", "client"))]
    return subprocess.run(
        [str(python), "-m", "tests.fuzz.guided", name, str(crashes), *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
        check=False,
    )


def _do(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no word why"]
        raise Missing(f"atheris cannot be had: {lines[-1]}")


def _fuzz(name: str, crashes: str, words: list[str]) -> None:
    """In the child: never returns when it fuzzes."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["hermosis", "hermosis_server"]):
        parsers = importlib.import_module("tests.fuzz.parsers")
    parser = parsers.PARSERS[name]
    if words and os.path.isdir(words[-1]):
        for place, message in enumerate(parser.seeds):
            Path(words[-1], f"seed-{place}").write_bytes(message.SerializeToString())

    def check(raw: bytes) -> None:
        try:
            parser.check(raw)
        except Exception:
            # atheris keeps what crashed the process, and not always what raised.
            Path(crashes, f"{name}-{hashlib.sha256(raw).hexdigest()[:16]}").write_bytes(raw)
            raise

    atheris.Setup([name, *words], check)
    atheris.Fuzz()


if __name__ == "__main__":
    _fuzz(sys.argv[1], sys.argv[2], sys.argv[3:])
