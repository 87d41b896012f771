"""The dependency audit: what is known fails it, what cannot be known is said."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).resolve().parents[2] / ".ci" / "audit.py"


@pytest.fixture
def audit() -> Any:
    spec = importlib.util.spec_from_file_location("audit_under_test", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tool(folder: Path, *, report: object = None, word: str = "", status: int = 0) -> list[str]:
    """Something that takes pip-audit's arguments and writes such a report, or only says a word."""
    program = folder / "tool.py"
    program.write_text(
        "import pathlib, sys\n"
        f"report = {json.dumps(report)!r}\n"
        "if report != 'null':\n"
        "    pathlib.Path(sys.argv[sys.argv.index('--output') + 1]).write_text(report)\n"
        f"print({word!r}, file=sys.stderr)\n"
        f"sys.exit({status})\n"
    )
    return [sys.executable, str(program)]


GOOD = {"name": "idna", "version": "3.20", "vulns": []}
BAD = {"name": "h11", "version": "0.1", "vulns": [{"id": "CVE-1", "fix_versions": ["0.2"], "aliases": []}]}
SKIPPED = {"name": "torch", "skip_reason": "no such version"}


def test_a_known_vulnerability_fails_by_name(audit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = tool(tmp_path, report={"dependencies": [GOOD, BAD, SKIPPED]}, status=1)
    assert audit.audit(asked, tmp_path / "pins") == 1
    said = capsys.readouterr().out
    assert "h11 0.1: CVE-1, fixed in 0.2" in said
    assert "not audited: torch: no such version" in said
    assert "3 packages, 1 known" in said


def test_a_clean_report_passes(audit: Any, tmp_path: Path) -> None:
    assert audit.audit(tool(tmp_path, report={"dependencies": [GOOD]}), tmp_path / "pins") == 0


def test_a_database_that_does_not_answer_is_said_and_is_no_failure(
    audit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.audit(tool(tmp_path, word="ERROR: connection refused", status=1), tmp_path / "pins") == 0
    assert "not audited: the advisory database did not answer (ERROR: connection refused)" in capsys.readouterr().out


def test_a_tool_that_cannot_be_had_is_said_and_is_no_failure(
    audit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "ENVIRONMENT", tmp_path / "nothing")
    monkeypatch.setattr(audit.sys, "executable", sys.executable)
    monkeypatch.setattr(audit, "TOOL", str(tmp_path / "no-such-tool.whl"))
    assert audit.main() == 0
    assert "not audited: pip-audit cannot be installed (" in capsys.readouterr().out
