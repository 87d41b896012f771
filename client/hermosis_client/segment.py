"""Segment: memory shared with a server on the same machine, for gradients and their answers."""

import mmap
import os
import secrets
import sys
import weakref

import numpy as np
from numpy.typing import NDArray

from hermosis import wire
from hermosis.v1 import gradient_pb2

# Below this a few copies on the stream cost no more than what the segment saves.
MIN_PAYLOAD_BYTES = 256 << 10


class Segment:
    """An anonymous file of this process that a server may open. The memory goes with its last user, however that ends.

    Raises:
      OSError: this system makes no such files.

    Attributes:
      gradient: bytes of the gradient's place.
      answer:   bytes of the answer's place.
      offer:    what to open it by.
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
        memory = np.frombuffer(mmap.mmap(descriptor, places.size_bytes), np.uint8)
        memory[: len(token)] = np.frombuffer(token, np.uint8)
        self.gradient: NDArray[np.uint8] = memory[places.gradient]
        self.answer: NDArray[np.uint8] = memory[places.answer]
        self.offer = gradient_pb2.SegmentOffer(process_id=os.getpid(), descriptor=descriptor, token=token)

    def close(self) -> None:
        """Lets the memory go; arrays that are in use keep it as long as they are. Harmless when repeated."""
        self._close_descriptor()
        self.gradient = self.answer = np.empty(0, np.uint8)
