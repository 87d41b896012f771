"""Regenerates the protobuf code beside each .proto, with the oldest toolchain we support.

The version of the generator sets the oldest runtime that a client may have, and light clients live inside other
people's environments; so the toolchain is pinned and lives in an environment of its own under build/.

Run: python3 proto/generate.py
"""

import re
import subprocess
import venv
from pathlib import Path

TOOLCHAIN = ["grpcio-tools==1.76.0", "mypy-protobuf==5.1.0"]
ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT.parent / "build" / "proto-toolchain"


def main() -> None:
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        venv.create(ENVIRONMENT, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *TOOLCHAIN], check=True)
    sources = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("hermosis/**/*.proto"))
    command = [
        str(python), "-m", "grpc_tools.protoc", "-I.",
        f"--plugin=protoc-gen-mypy={ENVIRONMENT}/bin/protoc-gen-mypy",
        f"--plugin=protoc-gen-mypy_grpc={ENVIRONMENT}/bin/protoc-gen-mypy_grpc",
        "--python_out=.", "--grpc_python_out=.", "--mypy_out=quiet:.", "--mypy_grpc_out=quiet:.",
        *sources,
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True)
    for path in ROOT.glob("hermosis/**/*_pb2_grpc.py*"):
        # A .proto without a service still gets an empty gRPC file; it says nothing and is not kept.
        if not re.search(r"^service ", path.with_name(path.name.split("_pb2")[0] + ".proto").read_text(), re.MULTILINE):
            path.unlink()


if __name__ == "__main__":
    main()
