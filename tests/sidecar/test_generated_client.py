"""The OpenAPI document is good enough to make a client from: one that was generated manages a session.

The generator wants older packages than ours, so it has an environment of its own: python3 -m venv build/openapi-client,
then build/openapi-client/bin/pip install -r tests/sidecar/openapi_client_requirements.txt.
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.sidecar.conftest import Sidecar

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("generated_client.py")
NAME = "openapi-python-client"


def generator() -> Path:
    found = shutil.which(NAME, path=str(ROOT / "build" / "openapi-client" / "bin")) or shutil.which(NAME)
    if found is None:
        pytest.skip(f"{NAME} is not installed; the first lines of this file say where it goes")
    return Path(found)


def test_a_generated_client_makes_lists_edits_and_closes_a_session(sidecar: Sidecar, tmp_path: Path) -> None:
    tool = generator()
    (tmp_path / "openapi.json").write_text(sidecar.http.get("/openapi.json").text)
    (tmp_path / "settings.yaml").write_text("post_hooks: []\n")  # formatting it would need more tools
    generate = "generate --path openapi.json --output-path generated --meta none --config settings.yaml"
    made = subprocess.run(
        [tool, *generate.split(), "--fail-on-warning"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert made.returncode == 0, made.stdout + made.stderr
    shutil.copy(PROGRAM, tmp_path)
    ran = subprocess.run(
        [tool.with_name("python"), "-W", "error", PROGRAM.name, sidecar.address],
        cwd=tmp_path,
        env={},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {
        "made": "CREATING",
        "listed": [["generated", {"by": "generator"}, None]],
        "edited": [0.25, "edited"],
        "stale": [409, "PayloadMismatch"],
        "closed": "CLOSED",
        "gone": [404, "SessionNotFound"],
    }
