"""The GPU benchmark says what is missing, and runs from the first line of its table to the last."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_step.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TRITON_INTERPRET": "0" if torch.cuda.is_available() else "1"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False, timeout=120,
        env=environment,
    )  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_device_it_says_so(tmp_path: Path) -> None:
    done = run("--output", str(tmp_path / "record.json"))
    assert done.returncode == 1
    assert "nothing is measured" in done.stderr
    assert not (tmp_path / "record.json").exists()


def test_a_rehearsal_fills_the_table(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    done = run("--rehearse", "--output", str(tmp_path / "record.json"))
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["rehearsal"] is True
    assert len(record["rows"]) == 13
    goals = [row["goal"] for row in record["rows"] if row["goal"] is not None]
    assert goals == [0.9] * 8 + [50.0] * 2
    assert all(row["figure"] > 0 for row in record["rows"])
