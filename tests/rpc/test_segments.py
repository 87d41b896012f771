"""Segments: what a worker offers is attached only when it is what it should be, and is gone when it is let go."""

import fcntl
import mmap
import os
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hermosis import wire
from hermosis.wire import Dtype
from hermosis_client.segment import Segment as Offered
from hermosis_server.records import SegmentOffer
from hermosis_server.rpc.segments import MAX_SEGMENTS, Segments, StreamSegments

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="segments are known on Linux only")

ELEMENTS = 5000
PLACES = wire.segment_places(ELEMENTS, 4, 2)
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL if sys.platform == "linux" else 0
HUGE_PAGES = 4  # MFD_HUGETLB, which Python names from 3.14 on


@pytest.fixture
def segments() -> Segments:
    return Segments(1 << 20)


@pytest.fixture
def make() -> Iterator[Callable[..., SegmentOffer]]:
    """Makes files as a worker would, each wrong in one way or none."""
    descriptors = []

    def make(
        *, size: int = PLACES.size_bytes, seals: int = SEALS, flags: int = 0, written: bytes = b""
    ) -> SegmentOffer:
        descriptor = os.memfd_create("hermosis-test", os.MFD_ALLOW_SEALING | flags)
        descriptors.append(descriptor)
        os.truncate(descriptor, size)
        token = secrets.token_bytes(32)
        if not flags:
            os.pwrite(descriptor, written or token, 0)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        return SegmentOffer(os.getpid(), descriptor, token)

    yield make
    for descriptor in descriptors:
        os.close(descriptor)


def held(name: str) -> int:
    """How many maps of this process are of that memory."""
    return Path("/proc/self/maps").read_text().count(f"memfd:{name}")


def descriptors() -> set[str]:
    """What this process has open."""
    listed = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return {os.readlink(path) for path in listed if os.path.lexists(path)}


def test_both_ends_see_the_same_bytes_until_each_lets_go(segments: Segments) -> None:
    offered = Offered(ELEMENTS, Dtype.FLOAT32, Dtype.BFLOAT16)
    offer = SegmentOffer(offered.offer.process_id, offered.offer.descriptor, offered.offer.token)
    segment = segments.attach(offer, PLACES)
    assert segment is not None
    assert (segments.count, segments.used_bytes) == (1, PLACES.size_bytes)
    offered.gradient[:] = bytes(range(250)) * (4 * ELEMENTS // 250)
    assert bytes(segment.gradient) == bytes(offered.gradient)
    segment.answer[:] = bytes(range(250)) * (2 * ELEMENTS // 250)
    assert bytes(offered.answer) == bytes(segment.answer)
    assert held("hermosis-segment") == 2
    segment.close()
    segment.close()
    assert held("hermosis-segment") == 1
    assert (segments.count, segments.used_bytes) == (0, 0)
    offered.close()
    offered.close()
    assert held("hermosis-segment") == 0
    assert "/memfd:hermosis-segment (deleted)" not in descriptors()


def test_a_stream_keeps_the_last_segment_that_was_let_go(segments: Segments, make: Callable[..., SegmentOffer]) -> None:
    stream, first, second = StreamSegments(segments), make(), make()
    attached = stream.attach(first, PLACES)
    assert attached is not None
    stream.let_go(attached)
    assert stream.attach(first, PLACES) is attached
    stream.let_go(attached)
    other = stream.attach(second, PLACES)
    assert other is not None
    assert segments.count == 1
    assert not attached.answer
    both = stream.attach(first, PLACES)
    assert both is not None
    stream.let_go(other)
    stream.let_go(both)
    assert segments.count == 1
    assert stream.attach(first, PLACES._replace(answer=slice(0, 4))) is not both
    stream.close()
    assert not both.answer


def test_memory_in_use_outlives_its_closing(segments: Segments, make: Callable[..., SegmentOffer]) -> None:
    segment = segments.attach(make(), PLACES)
    assert segment is not None
    place = segment.answer
    segment.close()
    place[:3] = b"abc"
    assert held("hermosis-test") == 1
    del place
    assert held("hermosis-test") == 0


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"size": PLACES.size_bytes - 4096}, "session needs"),
        ({"size": PLACES.size_bytes + 4096}, "session needs"),
        ({"size": 0}, "session needs"),
        ({"size": 1 << 40}, "session needs"),
        ({"seals": 0}, "not sealed"),
        ({"seals": SEALS & ~fcntl.F_SEAL_SHRINK}, "not sealed"),
        ({"seals": SEALS | fcntl.F_SEAL_WRITE}, "not permitted"),
        ({"written": bytes(32)}, "token"),
        ({"flags": HUGE_PAGES, "size": 2 << 20}, "huge pages"),
    ],
    ids=str,
)
def test_a_file_that_is_not_as_agreed_is_not_attached(
    segments: Segments,
    make: Callable[..., SegmentOffer],
    caplog: pytest.LogCaptureFixture,
    wrong: dict[str, int],
    reason: str,
) -> None:
    caplog.set_level("INFO")
    assert segments.attach(make(**wrong), PLACES) is None
    assert reason in caplog.text
    assert (segments.count, segments.used_bytes, held("hermosis-test")) == (0, 0, 0)


@pytest.mark.parametrize("token", [b"", bytes(32), bytes(31), bytes(4096)], ids=len)
def test_the_token_must_be_that_of_the_memory(
    segments: Segments, make: Callable[..., SegmentOffer], token: bytes
) -> None:
    assert segments.attach(make()._replace(token=token), PLACES) is None


@pytest.mark.parametrize("process_id", [0, 1 << 22, (1 << 32) - 1])
def test_a_process_that_is_not_there_offers_nothing(
    segments: Segments, make: Callable[..., SegmentOffer], process_id: int
) -> None:
    assert segments.attach(make()._replace(process_id=process_id), PLACES) is None


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("file", "Invalid argument|not sealed"),  # as its file system has it
        ("unsealable", "not sealed"),
        ("folder", "no file"),
        ("pipe", "no file"),
        ("device", "no file"),
        ("socket", "no file"),
        ("none", "No such file"),
    ],
)
def test_nothing_but_a_sealed_anonymous_file_is_used_and_no_pipe_or_device_even_opened(
    segments: Segments, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, reason: str
) -> None:
    caplog.set_level("INFO")
    token = secrets.token_bytes(32)
    (tmp_path / "file").write_bytes(token.ljust(PLACES.size_bytes, b"\0"))
    make = {
        "file": lambda: os.open(tmp_path / "file", os.O_RDWR),
        "unsealable": lambda: os.memfd_create("unsealable"),
        "folder": lambda: os.open(tmp_path, os.O_RDONLY),
        "pipe": lambda: os.dup(pipe[0]),
        "device": lambda: os.open("/dev/zero", os.O_RDWR),
        "socket": lambda: socket.socket().detach(),
        "none": lambda: os.dup(pipe[0]),
    }
    pipe = os.pipe()
    descriptor = make[kind]()
    if kind == "none":
        os.close(descriptor)
    before = descriptors()
    try:
        assert segments.attach(SegmentOffer(os.getpid(), descriptor, token), PLACES) is None
        assert re.search(reason, caplog.text)
        assert descriptors() == before
    finally:
        for each in {*pipe, descriptor} - ({descriptor} if kind == "none" else set()):
            os.close(each)


def test_no_more_memory_is_attached_than_the_limit(segments: Segments, make: Callable[..., SegmentOffer]) -> None:
    segments.limit_bytes = 2 * PLACES.size_bytes + 100
    first, second = segments.attach(make(), PLACES), segments.attach(make(), PLACES)
    assert first is not None
    assert second is not None
    assert segments.attach(make(), PLACES) is None
    first.close()
    assert segments.attach(make(), PLACES) is not None


def test_no_more_segments_are_attached_than_leave_descriptors_for_connections(
    segments: Segments, make: Callable[..., SegmentOffer]
) -> None:
    segments.limit_bytes = 1 << 40
    offer = make()
    attached = [segments.attach(offer, PLACES) for _ in range(MAX_SEGMENTS)]
    assert None not in attached
    assert segments.attach(offer, PLACES) is None


def test_an_attached_file_can_no_longer_shrink(segments: Segments, make: Callable[..., SegmentOffer]) -> None:
    offer = make()
    segment = segments.attach(offer, PLACES)
    assert segment is not None
    with pytest.raises(PermissionError):
        os.truncate(offer.descriptor, 4096)
    # A hole is the most a worker can make of it, and that reads as zeros.
    segment.answer[:] = b"\1" * len(segment.answer)
    mapped = mmap.mmap(offer.descriptor, PLACES.size_bytes)
    mapped.madvise(mmap.MADV_REMOVE)
    assert not any(segment.answer)


def test_the_memory_of_a_killed_process_stays_readable_and_goes_with_its_last_user(segments: Segments) -> None:
    worker = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    with worker:
        assert worker.stdout is not None
        process_id, descriptor, token = worker.stdout.readline().split()
        segment = segments.attach(SegmentOffer(int(process_id), int(descriptor), bytes.fromhex(token)), PLACES)
        assert segment is not None
        worker.kill()
    assert bytes(segment.gradient) == b"\7" * len(segment.gradient)
    segment.close()
    assert held("hermosis-segment") == 0


CHILD = f"""
from hermosis.wire import Dtype
from hermosis_client.segment import Segment
segment = Segment({ELEMENTS}, Dtype.FLOAT32, Dtype.BFLOAT16)
segment.gradient[:] = bytes([7]) * len(segment.gradient)
offer = segment.offer
print(offer.process_id, offer.descriptor, offer.token.hex(), flush=True)
input()
"""
