"""The committed protobuf code is what the .proto files say, whichever toolchain is installed."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

PROTO_ROOT = Path(__file__).resolve().parents[2] / "proto"
PROTO_FILES = sorted(path.relative_to(PROTO_ROOT).as_posix() for path in PROTO_ROOT.glob("hermosis/**/*.proto"))


def generated(proto: str, suffix: str) -> ModuleType:
    return importlib.import_module(proto.removesuffix(".proto").replace("/", ".") + suffix)


def without_json_names(file: descriptor_pb2.FileDescriptorProto) -> descriptor_pb2.FileDescriptorProto:
    """protoc spells out the default JSON name of each field in a descriptor set, and leaves it out of _pb2.py."""

    def messages(of: Any) -> Iterator[descriptor_pb2.DescriptorProto]:
        for message in of:
            yield message
            yield from messages(message.nested_type)

    plain = descriptor_pb2.FileDescriptorProto()
    plain.CopyFrom(file)
    plain.ClearField("source_code_info")
    for message in messages(plain.message_type):
        for field in message.field:
            field.ClearField("json_name")
    return plain


def test_there_are_proto_files() -> None:
    assert "hermosis/v1/gradient.proto" in PROTO_FILES


@pytest.mark.parametrize("proto", PROTO_FILES)
def test_committed_descriptor_equals_the_compiled_one(
    proto: str, compiled: dict[str, descriptor_pb2.FileDescriptorProto]
) -> None:
    committed = descriptor_pb2.FileDescriptorProto.FromString(generated(proto, "_pb2").DESCRIPTOR.serialized_pb)
    assert without_json_names(committed) == without_json_names(compiled[proto]), "run: python3 proto/generate.py"


@pytest.mark.parametrize("proto", PROTO_FILES)
def test_committed_stubs_have_every_method(proto: str, compiled: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
    services = compiled[proto].service
    if not services:
        assert not (PROTO_ROOT / proto.replace(".proto", "_pb2_grpc.py")).exists()
        return
    stubs = generated(proto, "_pb2_grpc")
    for service in services:
        servicer = getattr(stubs, f"{service.name}Servicer")
        methods = {name for name in vars(servicer) if not name.startswith("_")}
        assert methods == {method.name for method in service.method}, "run: python3 proto/generate.py"


@pytest.mark.parametrize("proto", PROTO_FILES)
def test_committed_types_name_every_message_and_field(
    proto: str, compiled: dict[str, descriptor_pb2.FileDescriptorProto]
) -> None:
    types = (PROTO_ROOT / proto.replace(".proto", "_pb2.pyi")).read_text()
    for message in compiled[proto].message_type:
        body = types.partition(f"\nclass {message.name}(")[2].partition("\nGlobal___")[0]
        for field in message.field:
            assert f"{field.name}:" in body or f"{field.name}(self)" in body, (
                f"{message.name}.{field.name}: run python3 proto/generate.py"
            )


def test_contract_keeps_bufs_standard_rules() -> None:
    buf = Path(sys.executable).with_name("buf")
    found = subprocess.run([buf, "lint"], cwd=PROTO_ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
