"""Any language: a Node program that knows nothing but the .proto files trains a session to the weights NumPy gets."""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.forking import WarmServer

HERE = Path(__file__).resolve().parent
PROTO = HERE.parents[1] / "proto"
PROGRAM = HERE / "node"


@pytest.fixture(scope="module")
def modules() -> Path:
    """A folder with the two npm packages, kept between runs."""
    if os.environ.get("CI"):
        pytest.skip("CI is set: the Node client is not part of the one check, which installs nothing from npm")
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not here; install Node.js 20 to run the client in another language")
    manifest = (PROGRAM / "package.json").read_text()
    key = hashlib.sha256(manifest.encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"hermosis-node-{os.getuid()}-{key}"
    if not (folder / "installed").exists():
        folder.mkdir(exist_ok=True)
        (folder / "package.json").write_text(manifest)
        command = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=150, check=False)
        if done.returncode:
            pytest.skip(f"npm could not install the gRPC packages: {done.stderr.strip()[-300:]}")
        (folder / "installed").touch()
    return folder


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with WarmServer() as server:
        yield server.address


def test_a_client_from_the_proto_files_alone_trains_a_session(modules: Path, address: str) -> None:
    command = ["node", str(PROGRAM / "client.mjs"), address, str(PROTO)]
    done = subprocess.run(command, cwd=modules, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)

    gradient = np.array([0.1, 0.2, -0.3, 0.7], np.float32)
    weights = [np.array([0.5, -1.25, 3, 0.1], np.float32)]
    for _ in range(2):
        weights.append(weights[-1] - np.float32(0.1) * gradient)

    unary = told["unary"]
    assert unary["steps"] == ["1", "2"]
    assert unary["duplicate"] is True
    assert unary["loss"] == 1.5
    assert unary["refused"] == [3, "InvalidRequest"]
    np.testing.assert_array_equal(np.float32(unary["stepped"]), weights[2])
    np.testing.assert_array_equal(np.float32(unary["pulled"]), weights[2])
    assert told["exchange"]["answers"] == ["opened", "result", "chunk"]
    np.testing.assert_array_equal(np.float32(told["exchange"]["parameters"]), weights[1])
