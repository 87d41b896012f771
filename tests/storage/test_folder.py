"""The data folder: one server at a time, and a word for what is in the way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hermosis_server.errors import InvalidRequest
from hermosis_server.storage.folder import DataFolder


def test_a_data_folder_has_one_server(tmp_path: Path) -> None:
    with DataFolder(tmp_path / "data"), pytest.raises(InvalidRequest, match=str(os.getpid())):
        DataFolder(tmp_path / "data").__enter__()
    with DataFolder(tmp_path / "data"):
        pass


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidRequest, match="cannot be used"):
        DataFolder(tmp_path / "file" / "data").__enter__()


def test_the_lock_ends_with_a_process_that_is_killed(tmp_path: Path) -> None:
    hold = (
        "import sys, pathlib; from hermosis_server.storage.folder import DataFolder\n"
        f"with DataFolder(pathlib.Path({str(tmp_path)!r})): print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(InvalidRequest, match=str(process.pid)):
        DataFolder(tmp_path).__enter__()
    process.kill()
    process.communicate()
    with DataFolder(tmp_path):
        pass


def test_the_folder_is_its_owner_s_alone(tmp_path: Path) -> None:
    with DataFolder(tmp_path / "data"):
        assert (tmp_path / "data").stat().st_mode & 0o077 == 0
