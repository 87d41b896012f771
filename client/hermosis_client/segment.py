"""Segment: memory shared with a server on the same machine, where payload lies instead of travelling."""

import mmap
import os
import secrets
import sys
import weakref

from hermosis import hot, wire
from hermosis.v1 import gradient_pb2

# Below this the few copies that the stream makes cost no more than the segment saves.
MIN_PAYLOAD_BYTES = 512 << 10


class Segment:
    """An anonymous file of this process that a server may open. The memory goes with its last user, however that ends.

    Raises:
      OSError: this system makes no such files.

    Attributes:
      offer:    what to open it by.
      gradient: bytes of the gradient's place.
      answer:   bytes of the answer's place.
    """

    def __init__(self, elements: int, gradient_dtype: wire.Dtype, answer_dtype: wire.Dtype) -> None:
        if sys.platform != "linux":
            raise OSError("segments are made on Linux only")
        import fcntl

        places = wire.segment_places(elements, gradient_dtype.itemsize, answer_dtype.itemsize)
        token = secrets.token_bytes(wire.SEGMENT_TOKEN_BYTES)
        descriptor = os.memfd_create("hermosis-segment", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._close_descriptor = weakref.finalize(self, os.close, descriptor)
        os.truncate(descriptor, places.size_bytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        memory = memoryview(mmap.mmap(descriptor, places.size_bytes))
        memory[: len(token)] = token
        self.gradient = memory[places.gradient]
        self.answer = memory[places.answer]
        self.offer = gradient_pb2.SegmentOffer(process_id=os.getpid(), descriptor=descriptor, token=token)
        self._gradient_dtype = gradient_dtype
        self._answer_dtype = answer_dtype

    def put(self, chunk: hot.GradientChunk) -> bytes:
        """Copies a chunk of a gradient to its place; gives the ExchangeRequest that says so."""
        size, itemsize = len(chunk.payload), self._gradient_dtype.itemsize
        begin = chunk.offset * itemsize
        place = self.gradient
        if place:  # A closed one is written no more: its stream has ended.
            place[begin : begin + size] = chunk.payload
        told = gradient_pb2.SegmentChunk(
            handle=chunk.handle,
            sequence=chunk.sequence,
            offset=chunk.offset,
            length=size // itemsize,
            crc32=chunk.crc32,
        )
        return gradient_pb2.ExchangeRequest(segment=told).SerializeToString()

    def found(self, told: gradient_pb2.SegmentChunk) -> hot.ParametersChunk:
        """The chunk of an answer that a message speaks of; its payload is a view of the place."""
        itemsize = self._answer_dtype.itemsize
        payload = self.answer[told.offset * itemsize : (told.offset + told.length) * itemsize]
        dtype = int(self._answer_dtype)
        return hot.ParametersChunk(
            told.handle, told.sequence, told.step, told.reply, told.offset, dtype, told.crc32, payload
        )

    def close(self) -> None:
        """Lets the memory go; views that are in use keep it as long as they are. Harmless when repeated."""
        self._close_descriptor()
        self.gradient = self.answer = memoryview(b"")
