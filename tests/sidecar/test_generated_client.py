"""The OpenAPI document is good enough to make a client from: one that was generated manages a session."""

import json
import shutil
import subprocess
from pathlib import Path

from tests.sidecar.conftest import Sidecar
from tests.tools import tool

PROGRAM = Path(__file__).with_name("generated_client.py")


def test_a_generated_client_makes_lists_edits_and_closes_a_session(sidecar: Sidecar, tmp_path: Path) -> None:
    generator = tool("openapi-python-client")
    (tmp_path / "openapi.json").write_text(sidecar.http.get("/openapi.json").text)
    (tmp_path / "settings.yaml").write_text("post_hooks: []\n")  # formatting it would need more tools
    generate = "generate --path openapi.json --output-path generated --meta none --config settings.yaml"
    made = subprocess.run(
        [generator, *generate.split(), "--fail-on-warning"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert made.returncode == 0, made.stdout + made.stderr
    shutil.copy(PROGRAM, tmp_path)
    ran = subprocess.run(
        [generator.with_name("python"), "-W", "error", PROGRAM.name, sidecar.address],
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
