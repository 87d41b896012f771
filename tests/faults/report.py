"""Report: writes docs/reliability.md from the JSON of a campaign and from measurements taken now.

python -m tests.faults.report
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from tests.faults import measure
from tests.faults.__main__ import RESULT
from tests.faults.planted import BUGS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"


def page(result: dict[str, Any], costs: list[measure.Cost], recoveries: list[measure.Recovery], machine: str) -> str:
    """The whole page."""
    planted, promises = result["planted"], result["promises"]
    lines = [
        "# Reliability",
        "",
        "Written by `python -m tests.faults.report` from a run of `python3 run.py faults`; do not edit. How the suite",
        "works: [decision 0076](decisions/0076-what-the-faults-suite-does.md).",
        "",
        f"{sum(result['deaths'].values())} servers died under load (seed {result['seed']}, {result['runs']} deaths at "
        f"each place), and {result['acknowledgements']} acknowledgements were held against what came back. "
        f"{result['losses_told']} times a worker was told to resume from an earlier step. "
        f"Violations: {len(result['violations'])}.",
        "",
        "| promise | | looks | broken | PLANTED: seen broken by |",
        "|---|---|---|---|---|",
    ]
    for promise, what in promises.items():
        broken = sum(violation["promise"] == promise for violation in result["violations"])
        seen = ", ".join(name for name, found in planted.items() if promise in found)
        where = str(result["looks"][promise]) if result["looks"][promise] else "tests only"
        lines.append(f"| {promise} | {what} | {where} | {broken} | {seen} |")
    lines += ["", "| death | servers |", "|---|---|"]
    lines += [f"| {kind} | {count} |" for kind, count in result["deaths"].items()]
    lines += ["", "## Planted bugs", "", "| bug | noticed as |", "|---|---|"]
    lines += [f"| {BUGS[name].what} | {', '.join(seen) or 'NOT NOTICED'} |" for name, seen in planted.items()]
    lines += [
        "",
        "## Cost of durability",
        "",
        f"Steps a second of one worker with AdamW; {machine}. The modes took turns.",
        "",
    ]
    lines += ["| parameters | " + " | ".join(measure.MODES) + " |", "|---" * (len(measure.MODES) + 1) + "|"]
    for cost in costs:
        base = cost.steps_per_s["none"]
        cells = [f"{rate:.0f} ({rate / base:.0%})" for rate in cost.steps_per_s.values()]
        lines.append(f"| {cost.size} | " + " | ".join(cells) + " |")
    lines += ["", "## Time of recovery", "", "From the start of a warm process to its READY line.", ""]
    lines += ["| what was recovered | snapshots | seconds | with an empty folder |", "|---|---|---|---|"]
    lines += [
        f"| {one.what} | {one.state_bytes / 1e6:.0f} MB | {one.seconds:.2f} | {one.idle_s:.2f} |" for one in recoveries
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    result = json.loads(RESULT.read_text())
    with tempfile.TemporaryDirectory(prefix="hermosis-faults-") as name:
        costs = measure.costs(Path(name))
        machine = measure.machine()
        recoveries = measure.recoveries(Path(name))
    PAGE.write_text(page(result, costs, recoveries, machine))
    print(PAGE.relative_to(Path.cwd()))


if __name__ == "__main__":
    main()
