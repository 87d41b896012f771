"""Every public word of the contract explains itself: its comment begins with its name."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytest
from google.protobuf import descriptor_pb2

from hermosis.v1 import access_pb2, dynamics_pb2, gradient_pb2, session_pb2, telemetry_pb2, types_pb2

MODULES = [types_pb2, dynamics_pb2, session_pb2, gradient_pb2, telemetry_pb2, access_pb2]


class Word(NamedTuple):
    """One thing that a .proto file declares, with the comment above it."""

    name: str
    full_name: str
    comment: str

    def says_its_name(self) -> bool:
        return self.comment.split(maxsplit=1)[:1] != [] and self.comment.split()[0].rstrip(":,;.") == self.name


def declared(file: descriptor_pb2.FileDescriptorProto) -> Iterator[Word]:
    """Every service, method, message, oneof, field, enum and value of a file."""
    comments = {tuple(location.path): location.leading_comments for location in file.source_code_info.location}

    def word(entry: Any, inside: str, path: tuple[int, ...]) -> Word:
        return Word(entry.name, f"{inside}.{entry.name}", comments.get(path, "").strip())

    def parts(entry: Any, name: str) -> Sequence[tuple[int, Any]]:
        return [(entry.DESCRIPTOR.fields_by_name[name].number, item) for item in enumerate(getattr(entry, name))]

    def walk(entry: Any, inside: str, path: tuple[int, ...], names: Sequence[str]) -> Iterator[Word]:
        for name in names:
            for number, (index, child) in parts(entry, name):
                # protoc makes a hidden oneof for each `optional` field and a hidden message for each map.
                hidden = name == "oneof_decl" and child.name.startswith("_")
                if hidden or (name == "nested_type" and child.options.map_entry):
                    continue
                found = word(child, inside, (*path, number, index))
                yield found
                yield from walk(child, found.full_name, (*path, number, index), CHILDREN[type(child).__name__])

    yield from walk(file, file.package, (), CHILDREN["FileDescriptorProto"])


CHILDREN = {
    "FileDescriptorProto": ["service", "message_type", "enum_type"],
    "ServiceDescriptorProto": ["method"],
    "DescriptorProto": ["field", "oneof_decl", "nested_type", "enum_type"],
    "EnumDescriptorProto": ["value"],
    "MethodDescriptorProto": [],
    "FieldDescriptorProto": [],
    "OneofDescriptorProto": [],
    "EnumValueDescriptorProto": [],
}


def test_every_comment_begins_with_the_name_it_explains(
    compiled: dict[str, descriptor_pb2.FileDescriptorProto],
) -> None:
    words = [word for file in compiled.values() for word in declared(file)]
    assert len(words) > 400
    assert [word.full_name for word in words if not word.says_its_name()] == []


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_enum_begins_at_unspecified(module: Any) -> None:
    for enum in module.DESCRIPTOR.enum_types_by_name.values():
        zero = enum.values_by_number[0].name
        assert zero.endswith("_UNSPECIFIED"), f"{enum.full_name} begins at {zero}"


def test_a_missing_comment_would_be_seen(compiled: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
    file = descriptor_pb2.FileDescriptorProto()
    file.CopyFrom(compiled["hermosis/v1/types.proto"])
    for location in file.source_code_info.location:
        location.leading_comments = location.leading_comments.replace(" shape is", " the length is")
    assert [word.full_name for word in declared(file) if not word.says_its_name()] == ["hermosis.v1.TensorSpec.shape"]
