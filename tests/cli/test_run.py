"""run.py: one set-up, remembered; cut short, it starts afresh; what is missing is said."""

import ast
import importlib.util
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "run.py"


class Fake:
    """run.py in a folder of its own, with the steps that take long replaced by notes of what was asked."""

    def __init__(self, run: Any, root: Path) -> None:
        self.run = run
        self.done: list[str] = []
        self.compiled = 0
        self.fault: BaseException | None = None
        run.ROOT, run.ENVIRONMENT = root, root / ".venv"
        run.PYTHON, run.STAMP, run.LOCK = root / ".venv/python", root / ".venv/stamp.json", root / "build/setup.lock"
        (root / "pyproject.toml").write_text("name")
        (root / "constraints.txt").write_text("a==1")
        run.make_environment = self.make_environment
        run.install = self.install
        run.compile_step = self.compile_step

    def make_environment(self, *, clear: bool) -> None:
        self.done.append("clear" if clear else "make")
        self.run.ENVIRONMENT.mkdir(exist_ok=True)
        self.run.PYTHON.touch()

    def install(self, extra: str) -> None:
        self.done.append(extra)
        if self.fault is not None:
            raise self.fault

    def compile_step(self) -> None:
        assert self.run.STAMP.exists(), "what is installed counts, should this be interrupted"
        self.compiled += 1

    def set_up(self, extra: str) -> list[str]:
        """What one set-up had to do."""
        self.done.clear()
        self.run.set_up(extra)
        return list(self.done)


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_under_test", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(loaded(), tmp_path)


def test_second_run_has_nothing_to_do(fake: Fake) -> None:
    assert fake.set_up("demo") == ["make", "demo"]
    assert fake.set_up("demo") == []
    assert fake.compiled == 1


def test_environment_for_development_serves_the_demo_but_not_the_other_way(fake: Fake) -> None:
    fake.set_up("demo")
    assert fake.set_up("dev") == ["make", "dev"]
    assert fake.set_up("demo") == []


def test_environments_for_development_and_for_benchmarks_stand_together(fake: Fake) -> None:
    fake.set_up("dev")
    assert fake.set_up("benchmark") == ["make", "benchmark"]
    assert fake.set_up("dev") == []
    assert fake.set_up("benchmark") == []


def test_device_benchmarks_need_no_environment(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(subprocess, "call", lambda command, **_: called.append(command) or 1)
    monkeypatch.setattr(sys, "argv", ["run.py", "bench", "--gpu", "--rehearse"])
    monkeypatch.setattr(fake.run.os, "chdir", lambda folder: None)
    with pytest.raises(SystemExit):
        fake.run.main()
    assert called == [[sys.executable, "benchmarks/gpu_step.py", "--rehearse"]]
    assert fake.done == []


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_requirement_is_installed(fake: Fake, name: str) -> None:
    fake.set_up("dev")
    (fake.run.ROOT / name).write_text("changed")
    assert fake.set_up("dev") == ["make", "dev"]


def test_a_lost_environment_is_made_again(fake: Fake) -> None:
    fake.set_up("dev")
    fake.run.PYTHON.unlink()
    assert fake.set_up("dev") == ["make", "dev"]


def test_an_interrupted_set_up_starts_afresh(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.fault = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        fake.set_up("dev")
    fake.fault = None
    assert fake.set_up("dev") == ["clear", "dev"]
    assert "interrupted" in capsys.readouterr().err
    assert fake.set_up("dev") == []


def test_a_failed_download_keeps_what_is_there(fake: Fake) -> None:
    fake.set_up("demo")
    fake.fault = SystemExit("no network")
    with pytest.raises(SystemExit):
        fake.set_up("dev")
    fake.fault = None
    assert fake.set_up("dev") == ["make", "dev"]


def test_two_set_ups_at_once_take_turns(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    begun, go_on, said_waiting = threading.Event(), threading.Event(), threading.Event()

    def slow_install(extra: str) -> None:
        fake.done.append(extra)
        begun.set()
        assert go_on.wait(60)

    def say(line: str) -> None:
        if "waiting" in line:
            said_waiting.set()

    fake.run.install, fake.run.say = slow_install, say
    first, second = (threading.Thread(target=fake.run.set_up, args=("dev",)) for _ in range(2))
    first.start()
    assert begun.wait(60)
    second.start()
    assert said_waiting.wait(60)
    go_on.set()
    first.join(60)
    second.join(60)
    assert fake.done == ["make", "dev"], "the second found the work done"


def test_a_python_without_venv_is_told_what_to_install(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensurepip" else find(name))
    with pytest.raises(SystemExit, match="apt install python3-venv"):
        fake.set_up("dev")


def test_nothing_of_the_callers_leads_out_of_the_environment(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("PIP_USER", "1")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "kept")
    environment = fake.run.environment()
    assert not {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE"} & set(environment)
    assert environment["PIP_USER"] == "0"
    assert environment["PIP_INDEX_URL"] == "kept"


def test_older_pythons_can_read_it_far_enough_to_be_told() -> None:
    ast.parse(SOURCE.read_text(), feature_version=(3, 6))
    program = f"import sys, runpy; sys.version_info = (3, 9, 1); runpy.run_path({str(SOURCE)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "needs Python 3.11 or newer; this is Python 3.9" in done.stderr


def test_pip_speaks_plainly_and_a_failure_shows_its_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run: Any = loaded()
    pip = tmp_path / "pip"
    pip.write_text(
        "#!/bin/sh\n"
        "echo '  Downloading torch-2.13.0-cp311-none-linux.whl (188.1 MB)'\n"
        "echo '  Downloading idna-3.2-py3-none-any.whl (61 kB)'\n"
        "echo 'Installing collected packages: torch, idna'\n"
        "echo 'ERROR: the disk is full'\n"
        "exit 1\n"
    )
    pip.chmod(0o755)
    run.PYTHON = pip
    with pytest.raises(SystemExit, match="the disk is full"):
        run.install("dev")
    said = capsys.readouterr().err
    assert "downloading torch 2.13.0, 188.1 MB" in said
    assert "idna" not in said
    assert "unpacking 2 packages" in said


def test_tools_are_made_once_and_again_when_others_are_named(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    run = fake.run
    run.PYTHON, run.TOOLS, run.TOOLS_REQUIREMENTS = sys.executable, run.ROOT / "build/tools", run.ROOT / "tools.txt"
    run.TOOLS_REQUIREMENTS.write_text("# none\n")
    run.set_up_tools()
    assert "Installing what tools.txt names" in capsys.readouterr().err
    run.set_up_tools()
    assert capsys.readouterr().err == ""
    assert (run.TOOLS / "pyvenv.cfg").exists()
    run.TOOLS_REQUIREMENTS.write_text("./no-such-folder\n")
    for _ in range(2):  # it is tried again
        run.set_up_tools()
        said = capsys.readouterr().err
        assert "no-such-folder" in said
        assert said.endswith("the tests that need it are skipped.\n")


def test_help_names_every_command() -> None:
    done = subprocess.run([sys.executable, SOURCE, "--help"], capture_output=True, text=True, check=True)
    for command in ("demo", "up", "gallery", "bench", "test", "fuzz", "check", "audit", "setup"):
        assert f"\n  {command} " in done.stdout


def test_stamp_is_whole_or_absent(fake: Fake) -> None:
    fake.set_up("demo")
    fake.run.STAMP.write_text("{half a lin")
    assert fake.set_up("demo") == ["make", "demo"]
    assert json.loads(fake.run.STAMP.read_text())["extras"] == ["demo"]
