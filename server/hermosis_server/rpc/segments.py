"""Segments: memory that a worker on this machine shares with the server, for its gradients and their answers.

The worker makes an anonymous file and names it as a descriptor of its own process; the server opens it there. It has no
name in any file system, so whoever dies leaves nothing behind: the kernel frees the memory with its last user. What
does not check out is not attached, and the payload travels on the stream.
"""

import hmac
import logging
import mmap
import os
import stat
import sys
from contextlib import ExitStack

from hermosis import wire
from hermosis_server.records import SegmentOffer

logger = logging.getLogger(__name__)

# Each one takes a descriptor of this process, which connections need as well.
MAX_SEGMENTS = 256


class Segments:
    """The segments of all workers. Used from the rpc thread only.

    Args:
      limit_bytes: the most memory that workers may share with this server at a time; zero attaches none.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.count = 0

    def attach(self, offer: SegmentOffer, places: wire.SegmentPlaces) -> "Segment | None":
        """Maps an offered segment, to be closed by the caller; None when it is not what it should be."""
        try:
            if self.used_bytes + places.size_bytes > self.limit_bytes or self.count >= MAX_SEGMENTS:
                raise OSError(
                    f"{self.count} segments of {self.used_bytes} bytes are attached, {self.limit_bytes} may be"
                )
            memory = _mapped(offer, places.size_bytes)
        except OSError as error:
            logger.info("event=segment_not_attached process=%d reason=%r", offer.process_id, str(error))
            return None
        self.used_bytes += places.size_bytes
        self.count += 1
        return Segment(self, memory, offer, places)


class StreamSegments:
    """The segments of one stream. The last one let go stays mapped until another is offered or the stream ends.

    A worker that wants another reply opens its handle again; to map the memory anew, page by page, would take longer
    than the copies.

    Args:
      segments: of all workers.
    """

    def __init__(self, segments: Segments) -> None:
        self._segments = segments
        self._spare: Segment | None = None

    def attach(self, offer: SegmentOffer, places: wire.SegmentPlaces) -> "Segment | None":
        """As `Segments.attach`; to be given back to `let_go`."""
        spare, self._spare = self._spare, None
        if spare is not None:
            if (spare.offer, spare.places) == (offer, places):
                return spare
            spare.close()
        return self._segments.attach(offer, places)

    def let_go(self, segment: "Segment") -> None:
        """Nobody uses this segment now."""
        self.close()
        self._spare = segment

    def close(self) -> None:
        """At the end of the stream."""
        if self._spare is not None:
            self._spare.close()
            self._spare = None


class Segment:
    """A mapped segment.

    Attributes:
      offer:    by which it was opened.
      places:   in it.
      gradient: bytes of the gradient's place. The worker may write them at any time: check a copy, never these.
      answer:   bytes of the answer's place.
    """

    def __init__(self, segments: Segments, memory: memoryview, offer: SegmentOffer, places: wire.SegmentPlaces) -> None:
        self.offer = offer
        self.places = places
        self._segments: Segments | None = segments
        self.gradient = memory[places.gradient]
        self.answer = memory[places.answer]

    def close(self) -> None:
        """Lets the memory go; a second call does nothing."""
        if self._segments is not None:
            self._segments.used_bytes -= self.places.size_bytes
            self._segments.count -= 1
            self._segments = None
            # The last view takes the map with it, even where someone is just using one.
            self.gradient = self.answer = memoryview(b"")


def _mapped(offer: SegmentOffer, size_bytes: int) -> memoryview:
    """The offered memory; OSError says what is wrong with it."""
    if sys.platform != "linux":
        raise OSError("segments are known on Linux only")
    import fcntl

    with ExitStack() as closing:
        # Without opening it first: a pipe or a device could block, or notice.
        path = os.open(f"/proc/{offer.process_id}/fd/{offer.descriptor}", os.O_PATH | os.O_CLOEXEC)
        closing.callback(os.close, path)
        if not stat.S_ISREG(os.fstat(path).st_mode):
            raise OSError("the descriptor is no file")
        file = os.open(f"/proc/self/fd/{path}", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        closing.callback(os.close, file)
        if not fcntl.fcntl(file, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise OSError(
                "the file is not sealed against shrinking"
            )  # A worker that shrank it could kill this process.
        if os.fstatvfs(file).f_bsize != mmap.PAGESIZE:
            raise OSError("the file lies in huge pages")  # So could one that made them run out.
        if os.fstat(file).st_size != size_bytes:
            raise OSError(f"the file has {os.fstat(file).st_size} bytes, the session needs {size_bytes}")
        if not hmac.compare_digest(os.pread(file, wire.SEGMENT_TOKEN_BYTES, 0), offer.token):
            raise OSError("the token is not that of the offer")
        return memoryview(mmap.mmap(file, size_bytes))
