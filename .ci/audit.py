"""Dependency audit: are there known vulnerabilities in the versions that constraints.txt names?

pip-audit asks the advisory database OSV, from an environment of its own under build/. Where it cannot be installed, or
the database does not answer, nothing is known and that is said; only what was found fails.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / "build" / "audit"
TOOL = "pip-audit>=2.9,<3"
TIMEOUT_S = "15"


def main() -> int:
    """Audits; 1 where a vulnerability is known, else 0."""
    python = ENVIRONMENT / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not _works([str(python), "-m", "pip_audit", "--version"]):
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)],
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", TOOL],
        ):
            done = _run(command)
            if done.returncode:
                return not_audited(f"pip-audit cannot be installed ({_last_line(done.stderr)})")
    return audit([str(python), "-m", "pip_audit"], ROOT / "constraints.txt")


def audit(tool: list[str], pins: Path) -> int:
    """Asks about every version that is pinned, and says what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        # As they stand in the file: nothing is resolved, so no registry is asked for anything.
        done = _run(
            [*tool, "--requirement", str(pins), "--no-deps", "--disable-pip", "--vulnerability-service", "osv",
             "--timeout", TIMEOUT_S, "--progress-spinner", "off", "--format", "json", "--output", str(report)]
        )  # fmt: skip
        if not report.exists():
            return not_audited(f"the advisory database did not answer ({_last_line(done.stderr)})")
        packages = json.loads(report.read_text())["dependencies"]
    found = list(_vulnerabilities(packages))
    for package in packages:
        if "skip_reason" in package:
            print(f"not audited: {package['name']}: {package['skip_reason']}")
    for line in found:
        print(line)
    print(f"audit: {len(packages)} packages, {len(found)} known vulnerabilities")
    return 1 if found else 0


def not_audited(why: str) -> int:
    """Says that nothing is known, which is no failure."""
    print(f"not audited: {why}")
    return 0


def _vulnerabilities(packages: list[dict[str, Any]]) -> Iterator[str]:
    for package in packages:
        for vulnerability in package.get("vulns", ()):
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
            yield f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in {fixed}"


def _works(command: list[str]) -> bool:
    try:
        return _run(command).returncode == 0
    except OSError:
        return False


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no word why"


if __name__ == "__main__":
    sys.exit(main())
