"""Drill: a load, a server that dies again and again in a way that was asked for, and the check after each death."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.faults.check import check
from tests.faults.ledger import Ledger, Violation
from tests.faults.load import PATIENCE_S, Load
from tests.faults.proxy import Proxy, proxy
from tests.faults.servers import Server, Wishes
from tests.faults.twin import Twin

from hermosis_client import Client

TURNS = 25  # that each thread of the load may take before a death that does not come is given up


class Drill:
    """One data folder through many deaths.

    Args:
      folder: for the data and the log.
      twin:   what must come back.
      wishes: of every server, besides where it shall die.
    """

    def __init__(self, folder: Path, door: Proxy, twin: Twin, wishes: Wishes) -> None:
        self.ledger = Ledger()
        self.door = door
        self._folder = folder
        self._twin = twin
        self._wishes = wishes
        self.server = self._start("")
        assert self.server.ready(), self.server.tail()
        door.open(self.server.address)
        self._load = Load(door.address, self.ledger)
        self._load.start()

    @property
    def violations(self) -> list[Violation]:
        return self.ledger.violations

    def die(self, failpoints: str) -> bool:
        """Comes back from the death before, checks, and meets its failpoints. False if it met none: it was killed then.

        What this death did shows at the next one, or in `settle`.
        """
        self._fall()
        self.server = self._start(failpoints)
        if not self.server.ready():
            return True
        self._look()
        self.door.open(self.server.address)
        return self._until_it_ends()

    def take_spares_away(self) -> None:
        """Lets the next server make segments instead of using old ones again. For a server that is dead."""
        for spare in self._folder.rglob("*.spare"):
            spare.unlink()

    def settle(self) -> None:
        """Comes back from the death before for good, and checks."""
        self._fall()
        self.server = self._start("")
        assert self.server.ready(), self.server.tail()
        self._look()

    def kill_after(self, turns: int) -> None:
        """Kills a settled server when every thread of the load had so many turns."""
        self.door.open(self.server.address)
        self._load.turns.allow(turns)
        self._load.turns.rested(lambda: False)
        self.settle()

    def kill_in_full_course(self, after_acknowledgements: int) -> None:
        """Kills a settled server while calls of all kinds are under way."""
        enough = self.ledger.acknowledgements + after_acknowledgements
        self.door.open(self.server.address)
        self._load.turns.allow(after_acknowledgements + TURNS)
        self._load.turns.rested(lambda: self.ledger.acknowledgements >= enough)
        self.server.kill()
        self.settle()

    def limit_files_and_kill(self, limit_bytes: int) -> bool:
        """Lets a settled server that has begun a segment write no file longer than that, raises it, and kills it later.

        Returns:
          Whether the limit was met, by several sessions.
        """
        self.rest(1)
        self.server.limit_files(limit_bytes)
        self._load.turns.allow(TURNS // 3)

        def met() -> bool:
            return self.server.log.read_text().count('"not_durable"') >= 3

        while not self._load.turns.rested(met, timeout_s=0.1):
            assert not self.server.ended(), self.server.tail()
        was_met = met()
        self.server.limit_files(None)
        self._come_to_rest()  # with the same turns: workers of a bounded race must not be told different numbers
        self.settle()
        return was_met

    def rest(self, turns: int = TURNS) -> None:
        """Lets every thread of the load have turns, and waits for them."""
        self.door.open(self.server.address)
        self._load.turns.allow(turns)
        self._come_to_rest()

    def close(self) -> None:
        self.door.shut()
        self._load.stop()
        self._twin.forget(self.ledger.races.values())
        self.server.close()

    def _start(self, failpoints: str) -> Server:
        return Server(self._folder / "data", self._folder / "server.log", replace(self._wishes, failpoints=failpoints))

    def _come_to_rest(self) -> None:
        assert self._load.turns.rested(lambda: False), f"the load did not come to rest:\n{self.server.tail()}"

    def _until_it_ends(self) -> bool:
        """Whether it ended by itself before the load came to rest."""
        turns, server = self._load.turns, self.server

        def watch() -> None:
            server.ended(PATIENCE_S)
            turns.wake()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        turns.allow(TURNS)
        turns.rested(server.ended)
        ended = server.ended()
        if not ended:
            server.kill()
        watcher.join()
        return ended

    def _fall(self) -> None:
        self.door.shut()
        self.server.close()

    def _look(self) -> None:
        """Checks what a server recovered, before the load hears of it."""
        self.ledger.restarted()
        with Client(self.server.address, timeout_s=PATIENCE_S) as client:
            check(self.ledger, client, self._twin)


@contextmanager
def drill(folder: Path, twin: Twin, wishes: Wishes = Wishes()) -> Iterator[Drill]:  # noqa: B008  (it is frozen)
    """A drill whose processes and threads are gone at the end."""
    with proxy() as door:
        made = Drill(folder, door, twin, wishes)
        try:
            yield made
        finally:
            made.close()
