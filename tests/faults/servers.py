"""Servers: `hermosis serve` as real processes that a test may arm, kill, freeze and start again on the same folder."""

import functools
import resource
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.forking import Forked

from hermosis_server import cli, failpoints

SEGMENT_BYTES = 16 << 10  # so small that a load of seconds rolls the journal over and over


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """How a server shall be.

    Attributes:
      failpoints: as HERMOSIS_FAILPOINTS has it; empty arms nothing.
      plant:      a bug of planted.py; empty plants none.
      volatile:   lets what was not synced be lost when the process is killed, as a power cut does.
      flags:      further words of the command line.
      segment_bytes: of the journal.
    """

    failpoints: str = ""
    plant: str = ""
    volatile: bool = False
    flags: Sequence[str] = ()
    segment_bytes: int = SEGMENT_BYTES


class Server(Forked):
    """One process. Its log is `log`; nothing is left of it after `close`.

    Args:
      folder: its data folder.
      log:    file for its standard error, appended to.
      wishes: how it shall be.
    """

    def __init__(self, folder: Path, log: Path, wishes: Wishes = Wishes()) -> None:
        words = ["hermosis", "serve", "--port", "0", "--data-folder", str(folder), "--device", "cpu", *wishes.flags]
        armed = {failpoints.VARIABLE: wishes.failpoints}
        super().__init__(functools.partial(_serve, wishes), words, log, armed)

    def freeze(self) -> None:
        self.tell(signal.SIGSTOP)

    def thaw(self) -> None:
        self.tell(signal.SIGCONT)

    def limit_files(self, limit_bytes: int | None) -> None:
        """Lets no file grow beyond so many bytes, as `ulimit -f` does; None lets them all."""
        most = resource.RLIM_INFINITY
        resource.prlimit(self.process_id, resource.RLIMIT_FSIZE, (most if limit_bytes is None else limit_bytes, most))


def _serve(wishes: Wishes) -> None:
    from tests.faults import planted

    from hermosis_server.storage.journal import Journal

    # Keyword defaults are the one place where the length of a segment is said.
    assert Journal.__init__.__kwdefaults__ is not None
    Journal.__init__.__kwdefaults__["segment_bytes"] = wishes.segment_bytes
    if wishes.volatile:
        planted.volatile_disk()
    if wishes.plant:
        planted.BUGS[wishes.plant].plant()
    cli.main()
