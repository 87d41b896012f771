#!/usr/bin/env python3
"""One command for a fresh clone: makes .venv beside this file, installs what is needed once, then runs.

Only the standard library is used here, and nothing outside this folder is changed. Run `python3 run.py --help`.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  (this very line must speak to older versions)
    sys.exit(
        f"Hermosis needs Python 3.11 or newer; this is Python {sys.version_info[0]}.{sys.version_info[1]} "
        f"({sys.executable}).\nInstall a newer one and call it by name, for example: python3.12 run.py demo"
    )

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = ENVIRONMENT / "hermosis-setup.json"
LOCK = ROOT / "build" / "setup.lock"
# Programs that the tests run and whose packages do not agree with ours.
TOOLS = ROOT / "build" / "tools"
TOOLS_REQUIREMENTS = ROOT / "tests" / "tools.txt"

HELP = """\
The first call makes the environment in .venv and installs into it, which takes some minutes; later calls start at once.

commands:
  demo      train a small network on handwritten digits: server, page and two workers as separate processes
  up        start the server and its page and keep them running until Ctrl-C
  gallery   draw pictures of the theory into docs/gallery, computed by the server's own steps
  bench     measure every goal of speed side by side with other systems, under 15 minutes; --gpu for CUDA
  faults    kill servers under load in every way there is, a hundred times each; --runs 2 takes some minutes
  test      run the test suite, a process a core; what follows is given to pytest (-n 0 for one process)
  fuzz      ask a real server everything that it must refuse: --hours H, or --cases N; --help tells more
  check     formatting, lint, types, and that the generated protobuf code fits the .proto files
  audit     known vulnerabilities in the versions of constraints.txt; needs a network, and says so without one
  setup     only make the environment, with everything for development

examples:
  python3 run.py demo
  python3 run.py demo --optimizer adamw --workers 4
  python3 run.py test tests/contract -x
  python3 run.py demo --help       the options of that command itself

To start afresh, delete the folder .venv. pip reads its usual settings (PIP_INDEX_URL and the like).
"""

COMMANDS = ["demo", "up", "gallery", "bench", "faults", "test", "fuzz", "check", "audit", "setup"]
EXTRAS = {"demo": "demo", "up": "demo", "gallery": "demo", "bench": "benchmark"}  # what a command needs; else dev

CHECKS = [
    ("formatting", ["ruff", "format", "--check", "."]),
    ("lint", ["ruff", "check", "."]),
    ("types", ["mypy", "server", "client", "proto", "gallery", "benchmarks", "run.py"]),
    ("proto lint and generated code", ["pytest", "-q", "tests/contract/test_generated_code.py"]),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python3 run.py",
        usage="python3 run.py COMMAND [options of the command]",
        description="Sets Hermosis up and runs it.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    if len(sys.argv) == 1:
        parser.print_help()
        sys.exit(2)
    arguments = parser.parse_args()
    if arguments.rest and arguments.command in ("check", "audit", "setup"):
        parser.error(f"{arguments.command} takes no further words, got {' '.join(arguments.rest)}")

    if arguments.command == "bench" and "--gpu" in arguments.rest:
        bench_gpu([word for word in arguments.rest if word != "--gpu"])
    if arguments.command == "audit":
        sys.exit(subprocess.call([sys.executable, ROOT / ".ci" / "audit.py"], env=environment()))
    set_up(EXTRAS.get(arguments.command, "dev"))
    if arguments.command in ("test", "setup"):
        set_up_tools()
    if arguments.command in ("demo", "up"):
        become(["hermosis_server", arguments.command, *arguments.rest])
    elif arguments.command == "gallery":
        become(["gallery", *arguments.rest])
    elif arguments.command == "bench":
        become(["benchmarks.speed", *arguments.rest])
    elif arguments.command == "faults":
        become(["tests.faults", *arguments.rest])
    elif arguments.command == "test":
        # A process a core, four at most: each imports torch. `-n 0` among the rest is one process, for a debugger.
        become(["pytest", "-n", str(min(4, os.cpu_count() or 1)), "--dist", "worksteal", *arguments.rest])
    elif arguments.command == "fuzz":
        become(["tests.fuzz", *arguments.rest])
    elif arguments.command == "check":
        sys.exit(check())
    else:
        say(f"Ready. The command is {PYTHON.with_name('hermosis').relative_to(ROOT)}")


def bench_gpu(rest: list[str]) -> NoReturn:
    """The CUDA part, with the Python that runs this: a machine with a device may have no network to set up over."""
    if importlib.util.find_spec("torch") is None:
        sys.exit(f"bench --gpu needs torch and triton, and {sys.executable} has no torch; call a Python that has them.")
    os.chdir(ROOT)
    sys.exit(subprocess.call([sys.executable, "benchmarks/gpu_step.py", *rest]))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def set_up(extra: str) -> None:
    """Makes .venv hold hermosis[extra]; returns at once where a finished set-up is found."""
    wanted = fingerprint()
    if is_finished(wanted, extra):
        return
    need_venv()
    with set_up_lock() as was_interrupted:
        if is_finished(wanted, extra):  # by another run.py, while this one waited
            return
        if was_interrupted and ENVIRONMENT.exists():
            say("The last set-up was interrupted; starting it afresh.")
        make_environment(clear=was_interrupted)
        before = installed(wanted)
        STAMP.unlink(missing_ok=True)
        install(extra)
        partial = STAMP.with_suffix(".partial")
        partial.write_text(json.dumps({"fingerprint": wanted, "extras": sorted({extra, *before})}) + "\n")
        partial.replace(STAMP)
        compile_step()


def fingerprint() -> str:
    """What the environment is made from, this folder's place included: an editable install points at it."""
    digest = hashlib.sha256(f"{sys.version_info[:3]} {ROOT}".encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def is_finished(wanted: str, extra: str) -> bool:
    # The others hold everything that demo needs.
    enough = {"demo", "dev", "benchmark"} if extra == "demo" else {extra}
    return PYTHON.exists() and bool(enough & installed(wanted))


def installed(wanted: str) -> set[str]:
    """The extras that finished set-ups of this fingerprint have brought."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return set()
    return set(stamp.get("extras", ())) if stamp.get("fingerprint") == wanted else set()


def need_venv() -> None:
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f"This Python ({sys.executable}) comes without {' and '.join(missing)}, so no environment can be made.\n"
            f"On Debian and Ubuntu: sudo apt install python3-venv   (or python3.{sys.version_info[1]}-venv)"
        )


@contextlib.contextmanager
def set_up_lock() -> Iterator[bool]:
    """Lets one run.py at a time set up; yields whether the one before was killed half-way."""
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("a+") as lock:
        wait_for(lock.fileno())
        os.set_inheritable(lock.fileno(), True)  # pip holds the lock as well, should this process be killed
        lock.seek(0)
        was_interrupted = bool(lock.read())
        lock.write("a set-up is under way\n")
        lock.flush()
        try:
            yield was_interrupted
        except KeyboardInterrupt:
            raise
        except BaseException:
            lock.truncate(0)  # pip said no by itself, so what is installed is whole
            raise
        lock.truncate(0)


def wait_for(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: two set-ups at once are the user's own risk there
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("Another run.py is setting up; waiting for it …")
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def make_environment(*, clear: bool) -> None:
    if PYTHON.exists() and not clear and answers([str(PYTHON), "-m", "pip", "--version"]):
        return
    say("Making the environment in .venv …")
    if ENVIRONMENT.exists():
        shutil.rmtree(ENVIRONMENT)
    made = subprocess.run(
        [sys.executable, "-m", "venv", ENVIRONMENT], env=environment(), capture_output=True, text=True, check=False
    )
    if made.returncode:
        sys.exit(f"Making the environment failed:\n{made.stdout}{made.stderr}")


def answers(command: list[str]) -> bool:
    return subprocess.run(command, env=environment(), capture_output=True, check=False).returncode == 0


def install(extra: str) -> None:
    """Runs pip; says what it downloads, and on failure everything it said last."""
    say(f"Installing hermosis[{extra}]; the first time this takes some minutes, most of them for torch …")
    began = time.monotonic()
    command = [str(PYTHON), "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--progress-bar=off",
               "-e", f".[{extra}]", "-c", "constraints.txt"]  # fmt: skip
    last: deque[str] = deque(maxlen=40)
    pip = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        close_fds=False,
    )
    try:
        assert pip.stdout is not None
        with pip.stdout:
            for line in pip.stdout:
                last.append(line)
                download = re.match(r"\s*Downloading (?:\S*/)?([\w.]+)-(\d[\w.+]*)\S* \(([^)]+)\)", line)
                if download and not download[3].endswith("kB"):
                    say("  downloading {} {}, {}".format(*download.groups()))
                elif line.startswith("Installing collected packages"):
                    say(f"  unpacking {line.count(',') + 1} packages")
    except BaseException:
        pip.terminate()
        raise
    finally:
        pip.wait()
    if pip.returncode:
        sys.exit(f"{''.join(last)}\npip failed, see above. Without a network, point pip at packages on disk.")
    say(f"Set up in {time.monotonic() - began:.0f} s.")


def compile_step() -> None:
    """Fills Numba's cache, which is beside the sources, so that no first server has to."""
    say("Compiling the step, once for all servers …")
    program = "from hermosis_server.dynamics import fused; fused.warm_up()"
    subprocess.run([PYTHON, "-c", program], cwd=ROOT, env=environment(), check=False)  # a server would compile it too


def set_up_tools() -> None:
    """Makes an environment for the tools of the tests; without them some tests are skipped by name."""
    requirements = TOOLS_REQUIREMENTS.read_bytes()
    wanted = hashlib.sha256(f"{sys.version_info[:3]} {ROOT}".encode() + requirements).hexdigest()
    stamp = TOOLS / "hermosis-tools"
    TOOLS.parent.mkdir(exist_ok=True)
    with TOOLS.with_suffix(".lock").open("a") as lock:
        wait_for(lock.fileno())
        if stamp.exists() and stamp.read_text() == wanted:
            return
        say(f"Installing what {TOOLS_REQUIREMENTS.relative_to(ROOT)} names for the tests …")
        make = [sys.executable, "-m", "venv", "--clear", "--without-pip", str(TOOLS)]
        fill = [str(PYTHON), "-m", "pip", f"--python={TOOLS}", "install", "--quiet", "--no-input", "--no-compile",
                "--disable-pip-version-check", "--retries=1", "-r", str(TOOLS_REQUIREMENTS)]  # fmt: skip
        for command in (make, fill):
            done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
            if done.returncode:
                say(f"{done.stdout}{done.stderr}\nThat failed; the tests that need it are skipped.")
                return
        stamp.write_text(wanted)


def environment() -> dict[str, str]:
    """The caller's environment without what would lead Python or pip out of .venv, or slow each start down."""
    out = ("PYTHONPATH", "PYTHONHOME", "PIP_USER")
    slow = ("PYTHONDONTWRITEBYTECODE",)  # each of many processes would compile all our sources anew
    kept = {name: value for name, value in os.environ.items() if name not in out + slow}
    return {**kept, "PIP_USER": "0"}


def become(module: list[str]) -> None:
    """Runs a module of the environment in place of this process, so that signals reach it directly."""
    command = [str(PYTHON), "-m", *module]
    os.chdir(ROOT)
    if os.name == "posix":
        os.execve(command[0], command, environment())
    sys.exit(subprocess.call(command, env=environment()))


def check() -> int:
    failed = []
    for name, command in CHECKS:
        say(f"── {name}")
        if subprocess.run([PYTHON, "-m", *command], cwd=ROOT, env=environment(), check=False).returncode:
            failed.append(name)
    say(f"check failed: {', '.join(failed)}" if failed else "check passed")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        say("\nInterrupted.")
        sys.exit(130)
