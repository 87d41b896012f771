"""Copies in object storage: read as they were put, and a name that is taken is a fence."""

import contextlib
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.storage.stored import snapshot
from tests.tools import tool

from hermosis_server.errors import CorruptState, InvalidRequest, StaleGeneration
from hermosis_server.storage import snapshot_file
from hermosis_server.storage.copies import Copies
from hermosis_server.storage.disk import Disk
from hermosis_server.storage.snapshot_file import StoredSnapshot
from hermosis_server.storage.store import SnapshotInfo, Store

pytest.importorskip("obstore", reason="obstore is not installed (extra `cloud`)")


@contextlib.contextmanager
def s3() -> Iterator[dict[str, Any]]:
    """A server that speaks S3, with a bucket."""
    command = tool("moto_server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [command, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "Running on" in line:
                break
        bucket = urllib.request.Request(f"http://127.0.0.1:{port}/snapshots", method="PUT")
        urllib.request.urlopen(bucket).close()
        yield {
            "config": {
                "endpoint": f"http://127.0.0.1:{port}",
                "access_key_id": "test",
                "secret_access_key": "test",
                "region": "us-east-1",
            },
            "client_options": {"allow_http": True},
        }
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(params=["memory", "file", "s3"])
def copies(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Copies]:
    with contextlib.ExitStack() as stack:
        if request.param == "memory":
            yield Copies("memory:///")
        elif request.param == "file":
            yield Copies(f"file://{tmp_path}/copies")
        else:
            yield Copies("s3://snapshots/folder", stack.enter_context(s3()))


class Disks:
    """Snapshots as files, each written alone."""

    def __init__(self, root: Path) -> None:
        self._root, self._count = root, 0

    def __call__(self, session_id: str = "a", **fields: Any) -> SnapshotInfo:
        self._count += 1
        folder = self._root / f"disk-{self._count}"
        folder.mkdir()
        store = Store(folder, Disk())
        (folder / "sessions" / session_id).mkdir()
        stored = snapshot(session_id, **{key: value for key, value in fields.items() if key != "document"})
        if "document" in fields:
            stored = StoredSnapshot(
                session_id=stored.session_id,
                generation=stored.generation,
                layout=stored.layout,
                state=stored.state,
                document=fields["document"],
            )
        return store.save_snapshot(stored)


@pytest.fixture
def on_disk(tmp_path: Path) -> Disks:
    return Disks(tmp_path)


def content(stored: StoredSnapshot) -> bytes:
    return b"".join(map(bytes, snapshot_file.parts(stored)))


def test_copies_are_read_as_they_were_put_and_the_last_two_are_kept(copies: Copies, on_disk: Disks) -> None:
    put = [on_disk(step=step, generation=generation) for step, generation in ((1, 1), (9, 1), (2, 2))]
    for info in put:
        copies.put(info)
    copies.put(on_disk("ab", step=1))
    held = copies.held("a")
    assert [(each.generation, each.step) for each in held] == [(2, 2), (1, 9)]
    assert all(each.size_bytes > 100 and each.written_s > 1.7e9 for each in held)
    assert [content(copies.read(each)) for each in held] == [info.path.read_bytes() for info in (put[2], put[1])]
    assert copies.sessions() == ["a", "ab"]
    assert copies.held("unknown") == []
    copies.forget("a")
    assert copies.sessions() == ["ab"]


def test_a_name_that_is_taken_is_a_fence(copies: Copies, on_disk: Disks) -> None:
    first = on_disk()
    copies.put(first)
    copies.put(first)  # a reply that was lost, and the same again
    with pytest.raises(StaleGeneration, match="another server"):
        copies.put(on_disk(document=b"of another server"))
    assert content(copies.read(copies.held("a")[0])) == first.path.read_bytes()


def test_a_file_that_has_gone_meanwhile_is_passed_over(copies: Copies, on_disk: Disks) -> None:
    info = on_disk()
    info.path.unlink()
    copies.put(info)
    assert copies.held("a") == []


def test_a_damaged_copy_is_refused(tmp_path: Path, on_disk: Disks) -> None:
    copies = Copies(f"file://{tmp_path}/copies")
    copies.put(on_disk())
    copy = copies.held("a")[0]
    path = tmp_path / "copies" / copy.key
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptState):
        copies.read(copy)
    path.unlink()
    with pytest.raises(OSError, match="cannot be read"):
        copies.read(copy)


@pytest.mark.parametrize(("url", "options"), [("nonsense", {}), ("memory:///", {"no_such": 1}), ("ftp://x/y", {})])
def test_an_address_that_means_nothing_is_refused(url: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="cannot be copied"):
        Copies(url, options)


def test_without_obstore_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "obstore"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(InvalidRequest, match=r"hermosis\[cloud\]"):
        Copies("memory:///")
