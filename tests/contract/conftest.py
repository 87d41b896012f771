"""The contract as the installed protoc reads it today, with its comments."""

from pathlib import Path

import grpc_tools
import pytest
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

PROTO_ROOT = Path(__file__).resolve().parents[2] / "proto"
PROTO_FILES = sorted(path.relative_to(PROTO_ROOT).as_posix() for path in PROTO_ROOT.glob("hermosis/**/*.proto"))


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    """Descriptor of each of our .proto files by name, source comments included."""
    target = tmp_path_factory.mktemp("contract") / "descriptors"
    well_known = Path(grpc_tools.__file__).with_name("_proto")
    options = ["--include_source_info", f"--descriptor_set_out={target}"]
    assert protoc.main(["protoc", f"-I{PROTO_ROOT}", f"-I{well_known}", *options, *PROTO_FILES]) == 0
    files = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes()).file
    return {file.name: file for file in files}
