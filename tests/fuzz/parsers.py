"""Parsers: what reads bytes from strangers, called directly, and what may come of it.

Each check takes any bytes and fails when the reader raised anything but its documented errors, or when it says another
thing than the generated code does. Hypothesis calls them in the test suite, atheris for as long as one likes.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError, Message

from hermosis import coding, hot, packed, wire
from hermosis.coding import Codec, CodecKind
from hermosis.v1 import gradient_pb2, session_pb2, types_pb2
from hermosis.wire import Dtype
from hermosis_server.engine.assembler import Assembler
from hermosis_server.engine.budget import Budget
from hermosis_server.engine.checks import checked_hamiltonian
from hermosis_server.errors import HermosisError, InternalError
from hermosis_server.records import Limits
from hermosis_server.rpc.codec import coded as coded_codec
from hermosis_server.rpc.codec import gradient as gradient_codec
from hermosis_server.rpc.codec import session as session_codec
from hermosis_server.rpc.lineup import Columns

Request, Response = gradient_pb2.ExchangeRequest, gradient_pb2.ExchangeResponse
LIMITS = Limits(max_parameters=1 << 20, max_tensors=64)


class Parser(NamedTuple):
    """A check, and messages that it begins from."""

    idea: str
    check: Callable[[bytes], None]
    seeds: tuple[Message, ...]


def _hot_request(raw: bytes) -> None:
    _compare(raw, Request, hot.parse_request, {"chunk": "GradientChunk", "commit": "Commit", "whole": "WholeGradient"})


def _hot_response(raw: bytes) -> None:
    kinds = {"chunk": "ParametersChunk", "result": "StepResult", "whole": "WholeAnswer"}
    _compare(raw, Response, hot.parse_response, kinds)


def _compare(raw: bytes, outer: Any, parse: Any, kinds: Mapping[str, str]) -> None:
    """The hand-written parser finds what the generated one finds, or leaves the bytes to it."""
    try:
        expected = outer.FromString(raw)
    except DecodeError:
        expected = None
    try:
        found = parse(raw, outer.FromString)
    except DecodeError:
        found = None
    assert (found is None) == (expected is None), f"one of the parsers refuses {raw.hex()}"
    if expected is None or expected.WhichOneof("message") not in kinds:
        assert found is None or found == expected, "a message of no hot kind was changed"
        return
    name = expected.WhichOneof("message")
    assert type(found).__name__ == kinds[name]
    _same(found, getattr(expected, name))


def _same(found: Any, expected: Any) -> None:
    for name, value in found._asdict().items():
        field = expected.DESCRIPTOR.fields_by_name[name]
        theirs = getattr(expected, name)
        if value is None:
            assert not expected.HasField(name), name
        elif name == "energies":
            assert expected.HasField(name)
            for place, energy in zip(theirs.DESCRIPTOR.fields, value, strict=True):
                _same_number(energy, getattr(theirs, place.name), absent=not _has(theirs, place))
        elif field.is_repeated:
            assert list(value) == list(theirs), name
        elif field.message_type is not None:
            _same(value, theirs)
        elif isinstance(theirs, bytes):
            assert bytes(value) == theirs, name
        elif field.is_repeated:
            assert value == tuple(theirs), name
        else:
            _same_number(value, theirs)


def _has(message: Any, field: Any) -> bool:
    return not field.has_presence or bool(message.HasField(field.name))


def _same_number(ours: float, theirs: float, *, absent: bool = False) -> None:
    both_nan = math.isnan(ours) and (absent or math.isnan(theirs))
    assert both_nan or ours == theirs, f"{ours} is not {theirs}"


def _packed_gradients(raw: bytes) -> None:
    """Columns where the usual form is, and the same numbers that the generated code finds in them."""
    found = packed.read_gradients(raw)
    if found is None:
        return
    expected = Request.FromString(raw).packed  # what is read here the generated code can read
    _same_packed(found, expected, ("number", "want_energies", "without_reply", "crc32", "payload"))
    handles = len(expected.handles)
    try:
        columns = Columns.of(found, handles)
    except HermosisError as error:
        assert not isinstance(error, InternalError)  # noqa: PT017  documented errors are no findings
        return
    for name in ("sequences", "base_steps", "losses"):
        theirs = list(getattr(expected, name))
        for ours, value in zip(getattr(columns, name), theirs or [math.nan] * handles, strict=True):
            _same_number(ours, value)


def _packed_results(raw: bytes) -> None:
    found = packed.read_results(raw)
    if found is None:
        return
    try:
        expected = Response.FromString(raw).packed
    except DecodeError:
        assert not _readable_refusals(found), "bytes that are no message were read as one"
        return
    _same_packed(found, expected, ("number", "crc32", "payload"))
    assert list(found.outcomes) == list(expected.outcomes)
    assert len(found.refusals) == len(expected.refusals)


def _readable_refusals(found: packed.PackedResults) -> bool:
    """Whether the refusals, which are left as they came, can be read."""
    try:
        for refusal in found.refusals:
            gradient_pb2.PackedRefusal.FromString(bytes(refusal))
        types_pb2.Refusal.FromString(bytes(found.refusal or b""))
    except DecodeError:
        return False
    return True


def _same_packed(found: Any, expected: Any, names: tuple[str, ...]) -> None:
    for name in names:
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (bytes(ours) if isinstance(theirs, bytes) else ours) == theirs, name


def _codec(kind: type[Message], translate: Callable[[Any], Any]) -> Callable[[bytes], None]:
    """A check that a message becomes a record, or a refusal that names what is wrong."""

    def check(raw: bytes) -> None:
        try:
            message = kind.FromString(raw)
        except DecodeError:
            return
        try:
            translate(message)
        except HermosisError as error:
            assert not isinstance(error, InternalError), error  # noqa: PT017

    return check


def _create(request: session_pb2.CreateSessionRequest) -> None:
    spec = session_codec.spec(request.spec, LIMITS, None)
    hamiltonian = checked_hamiltonian(spec, LIMITS)
    hamiltonian.family([tensor.shape for tensor in spec.layout.tensors])
    hamiltonian.numbers()


def _chunk(request: gradient_pb2.ExchangeRequest) -> None:
    """A chunk, a segment's and a coded one into the place of a session of ten elements."""
    staged = Assembler(10, Dtype.FLOAT32, LIMITS.max_chunk_bytes, None, Budget(LIMITS.staging_bytes))
    parsed = hot.parse_request(request.SerializeToString(), Request.FromString)
    if isinstance(parsed, hot.GradientChunk):
        chunk = gradient_codec.chunk(parsed, Dtype.FLOAT32)
    elif request.HasField("segment"):
        chunk = gradient_codec.segment_chunk(request.segment, memoryview(bytes(40)), Dtype.FLOAT32)
    elif request.HasField("coded"):
        kind = CodecKind(1 + request.coded.handle % len(CodecKind))
        limit_bytes = LIMITS.max_chunk_bytes
        chunk = coded_codec.gradient_chunk(request.coded, kind, Dtype.FLOAT32, max_chunk_bytes=limit_bytes)
    else:
        return
    staged.add(offset=chunk.offset, dtype=chunk.dtype, crc32=chunk.crc32, payload=chunk.payload)
    assert staged.received <= 10
    if staged.complete:
        assert staged.checksum() == wire.checksum(chunk.payload)


def _wire(raw: bytes) -> None:
    """Checksums of parts add up wherever the cuts are; spans cover a vector once; names are judged, never raised at."""
    cut, element, text = len(raw) // 3, 1 + len(raw) % 5, raw.decode(errors="surrogateescape")
    parts = [raw[:cut], raw[cut : 2 * cut], raw[2 * cut :]]
    assert wire.joined_checksum((wire.checksum(part), len(part)) for part in parts) == wire.checksum(raw)
    covered = [place for span in wire.spans(len(raw), element, 16) for place in range(span.offset, sum(span))]
    assert covered == list(range(len(raw)))
    wire.is_plain_name(text, 256)
    assert len(wire.layout_digest([(raw.decode(errors="replace"), [len(raw)], len(raw) % 4)])) == 32
    places = wire.segment_places(len(raw), 4, 2)
    assert places.gradient.stop <= places.answer.start < places.size_bytes + 1


def _seeds() -> dict[str, tuple[Message, ...]]:
    commit = gradient_pb2.Commit(
        handle=1,
        sequence=300,
        base_step=299,
        loss=0.5,
        lr_scale=1.0,
        sample_count=8,
        skipped=[0, 300],
        loss_scale=8.0,
        compression_error=0.25,
    )
    payload = bytes(range(40))
    whole = gradient_pb2.WholeGradient(commit=commit, dtype=1, crc32=wire.checksum(payload), payload=payload)
    chunk = gradient_pb2.GradientChunk(handle=1, sequence=2, crc32=wire.checksum(payload), payload=payload)
    segment = gradient_pb2.SegmentChunk(handle=1, sequence=2, length=10, crc32=wire.checksum(bytes(40)))
    result = gradient_pb2.StepResult(sequence=1, outcome=1, step=1, generation=1, contributions=1)
    result.energies.kinetic_energy = 0.5
    back = gradient_pb2.ParametersChunk(sequence=1, step=1, reply=1, dtype=1, payload=payload)
    columns = gradient_pb2.PackedGradients(
        number=7, handles=[0, 1], sequences=[1, 1], base_steps=[0, 0], losses=[0.5, 0.25], payload=payload
    )
    results = gradient_pb2.PackedResults(number=7, outcomes=[1, 3], steps=[1, 0], reply_steps=[1, 0], duplicates=[1])
    results.refusals.add(index=1).refusal.reason = "StaleGradient"
    return {
        "requests": (Request(commit=commit), Request(whole=whole), Request(chunk=chunk)),
        "responses": (
            Response(result=result),
            Response(chunk=back),
            Response(whole=gradient_pb2.WholeAnswer(result=result, chunk=back)),
        ),
        "columns": (Request(packed=columns),),
        "results": (Response(packed=results),),
        "chunks": (Request(chunk=chunk), Request(segment=segment), *_coded()),
    }


def _coded() -> Iterator[Message]:
    """Ten elements under each codec; the handle says which, to `_chunk`."""
    values = np.arange(10, dtype=np.float32)
    for kind in CodecKind:
        if kind is CodecKind.PLAIN:
            continue
        payload = (
            coding.encode(Codec(kind, 0.3), values) if Codec(kind).is_lossy else coding.deflate(values.tobytes(), 4)
        )
        yield Request(
            coded=gradient_pb2.CodedChunk(
                handle=int(kind) - 1, sequence=2, length=10, crc32=wire.checksum(payload), payload=payload
            )
        )


def _specs() -> tuple[Message, ...]:
    from tests.fuzz import playground

    return tuple(request[0] for request in playground.right_requests("CreateSession"))


def _edits() -> tuple[Message, ...]:
    from tests.fuzz import playground

    return tuple(request[0] for request in playground.right_requests("UpdateSession"))


SEEDS = _seeds()
PARSERS: Mapping[str, Parser] = {
    "hot-requests": Parser("hot.py reads requests as the generated code does", _hot_request, SEEDS["requests"]),
    "hot-responses": Parser("hot.py reads responses as the generated code does", _hot_response, SEEDS["responses"]),
    "packed-gradients": Parser("packed.py finds the columns of gradients", _packed_gradients, SEEDS["columns"]),
    "packed-results": Parser("packed.py finds the columns of results", _packed_results, SEEDS["results"]),
    "codec-specs": Parser(
        "a spec becomes dynamics, or is refused", _codec(session_pb2.CreateSessionRequest, _create), _specs()
    ),
    "codec-edits": Parser(
        "an edit is read, or refused", _codec(session_pb2.UpdateSessionRequest, session_codec.edit), _edits()
    ),
    "codec-chunks": Parser("a chunk finds its place, or is refused", _codec(Request, _chunk), SEEDS["chunks"]),
    "wire": Parser("checksums, spans, names and digests of anything", _wire, SEEDS["chunks"]),
}
