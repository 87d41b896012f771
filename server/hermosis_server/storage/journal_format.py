"""JournalFormat: how an entry lies in a segment, and how a segment is read when parts of it cannot be believed.

    header | body, padded to 8 bytes | the header once more, marked as footer

The header has a checksum of its own and one of the body. It is there twice so that one damaged bit still leaves a name
to the entry that it took. Each entry also carries a hash chained to the entry before, the serial number of its segment
(a segment is used again and again, and holds the remains of its former life), and how far the journal was known to be
on disk when it was written: that tells an entry that was torn, which nobody was promised, from one that was lost.
"""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from hermosis import wire

_HEADER = struct.Struct("<4sIIB3xQQQQQQQd8s128s")
_MAGIC, _FOOT = b"HJe1", b"HJf1"
_CHECKED_FROM = 8  # the magic word and the checksum itself are not under the checksum
SIZE = _HEADER.size
ALIGN = 8
FIRST_CHAIN = b"hermosis"


def entry_bytes(body_bytes: int) -> int:
    """Of the whole entry with a body of that length."""
    return 2 * SIZE + body_bytes + -body_bytes % ALIGN


SEAL_BYTES = entry_bytes(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What an entry says of itself.

    Attributes:
      sequence: of the entry in the journal, without gaps.
      durable:  the highest sequence that was on disk when this was written.
      serial:   of the segment.
      begin:    sequence of the first entry of the segment: what is missing before the first readable one.
      session_id: whose entry it is. A seal has none, and no body: it tells nothing but `durable`, so that the last
                entry has a witness too.
      chain:    hash over the chain of the entry before and all that is above.
    """

    body_bytes: int
    body_crc32: int
    sequence: int
    durable: int
    step: int
    generation: int
    serial: int
    begin: int
    session_id: str = ""
    created_s: float = 0.0
    chain: bytes = bytes(8)

    def chained(self, before: bytes) -> "Header":
        """The header with its place in the chain."""
        return replace(self, chain=hashlib.blake2b(before + self._fields(bytes(8)), digest_size=8).digest())

    def follows(self, before: bytes) -> bool:
        """Whether its place in the chain is after that one."""
        return self.chained(before).chain == self.chain

    def head(self) -> bytes:
        return self._packed(_MAGIC)

    def foot(self) -> bytes:
        return self._packed(_FOOT)

    @property
    def entry_bytes(self) -> int:
        """Of the whole entry."""
        return entry_bytes(self.body_bytes)

    def _packed(self, magic: bytes) -> bytes:
        fields = self._fields(self.chain)
        return magic + struct.pack("<I", wire.checksum(fields)) + fields

    def _fields(self, chain: bytes) -> bytes:
        name = self.session_id.encode()
        numbers = (self.body_bytes, self.sequence, self.durable, self.step, self.generation, self.serial, self.begin)
        packed = _HEADER.pack(_MAGIC, 0, self.body_crc32, len(name), *numbers, self.created_s, chain, name)
        return packed[_CHECKED_FROM:]


class Piece(NamedTuple):
    """Something found in a segment.

    Attributes:
      header: None where nothing readable says what was lost.
      body:   None where it is damaged.
      begin, end: in the segment, in bytes.
    """

    header: Header | None
    body: memoryview | None
    begin: int
    end: int


def pieces(segment: memoryview, serial: int) -> Iterator[Piece]:
    """What lies in a segment, in order. Between what can be believed, damage is told as what little is known of it.

    Args:
      segment: the whole of it.
      serial:  entries of other serials are remains, and not told.
    """
    at = 0
    while (header := _header(segment, at, _MAGIC, serial)) is not None or at < len(segment):
        if header is not None and at + header.entry_bytes <= len(segment):
            end = at + header.entry_bytes
            body = segment[at + SIZE : at + SIZE + header.body_bytes]
            whole = bytes(segment[end - SIZE : end]) == header.foot() and wire.checksum(body) == header.body_crc32
            yield Piece(header, body if whole else None, at, end)
            at = end
            continue
        found = _next(segment, at, serial)
        if found is None:
            return
        yield found
        at = found.end


def _next(segment: memoryview, at: int, serial: int) -> Piece | None:
    """The damage that begins here, up to the next thing that can be read; None where nothing more comes."""
    raw = segment.obj if isinstance(segment.obj, bytes | bytearray) else bytes(segment)
    after = at + 1
    while True:
        places = [place for magic in (_MAGIC, _FOOT) if (place := raw.find(magic, after)) >= 0]
        if not places:
            return None
        place = min(places)
        if place % ALIGN == 0:
            if _header(segment, place, _MAGIC, serial) is not None:
                return Piece(None, None, at, place)
            if (header := _header(segment, place, _FOOT, serial)) is not None:
                begins_here = header.entry_bytes == place + SIZE - at
                return Piece(header if begins_here else None, None, at, place + SIZE)
        after = place + 1


def _header(segment: memoryview, at: int, magic: bytes, serial: int) -> Header | None:
    """The header here, if there is one of that segment's present life."""
    raw = bytes(segment[at : at + SIZE])
    if len(raw) < SIZE or raw[:4] != magic:
        return None
    _, checksum, body_crc32, length, *numbers, created_s, chain, name = _HEADER.unpack(raw)
    body_bytes, sequence, durable, step, generation, found, begin = numbers
    if checksum != wire.checksum(raw[_CHECKED_FROM:]) or found != serial:
        return None
    return Header(
        body_bytes=body_bytes,
        body_crc32=body_crc32,
        sequence=sequence,
        durable=durable,
        step=step,
        generation=generation,
        serial=serial,
        begin=begin,
        session_id=name[:length].decode(),
        created_s=created_s,
        chain=chain,
    )
