"""The command `python3 run.py gallery`."""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import torch
from rich.console import Console
from rich.progress import track

from gallery.roster import PICTURES
from gallery.style import DOTS, QUICK_DOTS, RC, save

FOLDER = Path("docs/gallery")
HELP = """\
Each picture is drawn from steps of the server's own dynamics (server/hermosis_server/dynamics), in float64 and without
chance: the same version draws the same picture. docs/gallery/README.md explains what is to be seen.

pictures: {names}

examples:
  python3 run.py gallery                               all of them, into docs/gallery
  python3 run.py gallery --only rosenbrock             one of them; may be given again
  python3 run.py gallery --out pictures                into another folder
  python3 run.py gallery --quick                       few points, into a temporary folder: does everything still run?
"""


def main(words: Sequence[str] | None = None) -> None:
    made = parser()
    arguments = made.parse_args(words)
    folder = arguments.out
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="hermosis-gallery-")) if arguments.quick else FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        made.error(f"cannot make the folder {folder}: {error.strerror}; wanted one that may be written to")
    names = arguments.only or list(PICTURES)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors here are small; threads would only wait for each other
    try:
        for path, seconds in draw(progress(names), folder, quick=arguments.quick):
            print(f"{path}  {path.stat().st_size / 1000:.0f} kB, {seconds:.1f} s", flush=True)
    finally:
        torch.set_num_threads(threads)


def draw(names: Iterable[str], folder: Path, *, quick: bool) -> Iterable[tuple[Path, float]]:
    """Writes pictures one by one; tells where each is and how long it took."""
    for name in names:
        began = time.monotonic()
        path = folder / f"{name}.png"
        with matplotlib.rc_context(RC):
            save(PICTURES[name](quick), path, dots=QUICK_DOTS if quick else DOTS)
        yield path, time.monotonic() - began


def progress(names: Sequence[str]) -> Iterable[str]:
    """A bar on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    return track(names, description="drawing", console=console) if console.is_terminal else names


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python3 run.py gallery",
        description="Draws the gallery: pictures of the theory, computed by the code that the server runs.",
        epilog=HELP.format(names=", ".join(PICTURES)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--out", type=Path, metavar="DIR", help=f"folder for the pictures (default {FOLDER})")
    made.add_argument("--quick", action="store_true", help="few steps and points; a temporary folder unless --out")
    made.add_argument(
        "--only", action="append", choices=list(PICTURES), metavar="NAME", help="only this picture; may be repeated"
    )
    return made


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
