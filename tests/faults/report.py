"""Report: writes docs/reliability.md from the JSON of a campaign and from measurements taken now.

python -m tests.faults.report
"""

import ast
import json
import tempfile
from pathlib import Path
from typing import Any

from tests.faults import measure
from tests.faults.__main__ import RESULT
from tests.faults.planted import BUGS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "benchmarks" / "results"

# Where each promise is tested beside the drills: those whose name has one of these words.
TESTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "P1": (("tests/rpc/test_durability.py", "tests/storage/*.py", "tests/cli/test_states.py"), ("",)),
    "P2": (
        (
            "tests/rpc/test_durability.py",
            "tests/*/test_resume.py",
            "tests/client/test_lineage.py",
            "tests/*/test_going_on.py",
        ),
        ("",),
    ),
    "P3": (
        ("tests/rpc/*.py", "tests/client/*.py", "tests/engine/*.py"),
        ("repeat", "sequence", "again", "twice", "duplicate", "once"),
    ),
    "P4": (
        ("tests/rpc/*.py", "tests/engine/*.py", "tests/dynamics/*.py", "tests/cli/*.py"),
        ("digest", "twin", "uninterrupted", "restored", "comes_back", "bits"),
    ),
    "P5": (("tests/rpc/*.py", "tests/storage/*.py", "tests/cli/*.py"), ("damage", "flipped", "corrupt", "torn")),
    "P6": (
        ("tests/rpc/*.py", "tests/engine/*.py", "tests/client/*.py"),
        ("nobody", "alone", "others", "other_session", "ill", "does_not_depend", "beside"),
    ),
    "P7": (("tests/rpc/*.py", "tests/client/*.py"), ("never_behind", "pull", "read", "older", "stale")),
}


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
        "Tests are those of the suite, beside the drills, that are about a promise. Runs are looks at it after a",
        "death: a session of a recovered server, or a read. Violations leave out those of planted bugs.",
        "",
        "| promise | | tests | runs | violations | planted bugs that broke it, and were seen |",
        "|---|---|---|---|---|---|",
    ]
    for promise, what in promises.items():
        broken = sum(violation["promise"] == promise for violation in result["violations"])
        seen = ", ".join(name for name, found in planted.items() if promise in found)
        runs = str(result["looks"][promise]) if result["looks"][promise] else "tests only"
        lines.append(f"| {promise} | {what} | {len(tests_of(promise))} | {runs} | {broken} | {seen} |")
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
    lines += ["", "## Memory and fairness", ""]
    for name, title in (("soak", "Memory of the server under load that never ends"), ("fairness", "Beside a flood")):
        newest = max(RESULTS.glob(f"{name}-*.md"), default=None)
        if newest is not None:
            lines += [f"{title}: [benchmarks/results/{newest.name}](../benchmarks/results/{newest.name})", ""]
    return "\n".join(lines).rstrip() + "\n"


def tests_of(promise: str) -> set[tuple[str, str]]:
    """File and name of the test functions that are about a promise."""
    found = set()
    patterns, words = TESTS[promise]
    for path in (path for pattern in patterns for path in ROOT.glob(pattern)):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "name", "") if isinstance(node, ast.FunctionDef) else ""
            if name.startswith("test_") and any(word in name for word in words):
                found.add((path.name, name))
    return found


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
