"""How long each mode and codec takes to a loss, over slow links with a slow worker and workers that are killed.

python -m benchmarks.slow_links [--mode barrier …] [--codec float32 …] [--limit-s 25] [--save]
"""

import argparse
import itertools
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.slow_links import report
from benchmarks.slow_links.cases import CODECS, MODES, Measured, Trouble, measure
from benchmarks.slow_links.crew import warm_up
from benchmarks.speed.machine import described
from hermosis_client import Client
from hermosis_client.local_server import LocalServer

RESULTS = Path(__file__).parents[1] / "results"


def run(pairs: list[tuple[str, str]], trouble: Trouble) -> list[Measured]:
    """The cases, one after the other, on one server; with Ctrl-C those that are done."""
    done: list[Measured] = []
    say = sys.stderr.isatty()
    try:
        warm_up()
        with LocalServer(arguments=["--log-level", "error"]) as server, Client(server.address) as client:
            for number, (mode, codec) in enumerate(pairs, 1):

                def show(loss: float, what: str = f"{number} of {len(pairs)}: {mode}, {codec}") -> None:
                    if say:
                        print(f"\r\033[K{what}: loss {loss:.3f}", end="", file=sys.stderr, flush=True)

                done.append(measure(client, mode, codec, trouble, show))
                if say:
                    print("\r\033[K", end="", file=sys.stderr)
                print(report.row(done[-1]), flush=True)
    except KeyboardInterrupt:
        print(f"\nstopped after {len(done)} of {len(pairs)} cases", file=sys.stderr)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--mode", choices=list(MODES), action="append", help="these modes")
    parser.add_argument("--codec", choices=list(CODECS), action="append", help="these codecs")
    parser.add_argument("--limit-s", type=float, default=Trouble().limit_s, help="seconds that a case may take")
    parser.add_argument("--target", type=float, default=Trouble().target, help="loss that is to be reached")
    parser.add_argument("--save", action="store_true", help=f"table, numbers and picture into {RESULTS.name}/")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    trouble = Trouble(limit_s=chosen.limit_s, target=chosen.target)
    pairs = list(itertools.product(chosen.mode or MODES, chosen.codec or CODECS))
    print(report.HEAD, report.RULE, sep="\n", flush=True)
    cases = run(pairs, trouble)
    if chosen.save and cases:
        today = datetime.now(UTC).date().isoformat()
        path, machine = RESULTS / f"slow-links-{today}.json", described()
        found = {(case.mode, case.codec): case for case in (*report.recorded(path), *cases)}
        cases = [found[pair] for pair in itertools.product(MODES, CODECS) if pair in found]
        path.write_text(report.record(today, trouble, machine, cases) + "\n")
        path.with_suffix(".md").write_text(report.page(today, trouble, machine, cases))
        report.draw(path.with_suffix(".png"), trouble, cases)


if __name__ == "__main__":
    main()
