"""Budget: bytes that may be in use at a time. Beyond all of them is refused, and taken again when a quarter is free.

One class serves the server and each session; what a session takes counts for the server as well. Without the gap
between the two marks a server at its limit would let in one gradient for each that leaves, and refuse the other
senders again and again.
"""

from typing import Final

from hermosis_server.errors import Overloaded

RESUME: Final = 0.75  # of the limit
RETRY_AFTER_S: Final = 0.25


class Budget:
    """Bytes in use, and the most that may be. Used from the rpc thread only.

    Args:
      limit_bytes: the most that is taken.
      owner:       whose bytes these are, for messages.
      whole:       the budget that this one is a part of, and that is itself no part; what is used here is used there.

    Attributes:
      used_bytes: at present; may exceed the limit by what was held and not asked for.
      refusing:   since a refusal the use has not sunk to the lower mark.
    """

    __slots__ = ("_owner", "_resume_bytes", "_whole", "limit_bytes", "refusing", "used_bytes")

    def __init__(self, limit_bytes: int, *, owner: str = "the server", whole: "Budget | None" = None) -> None:
        self.resize(limit_bytes)
        self.used_bytes = 0
        self.refusing = False
        self._owner = owner
        self._whole = whole

    def resize(self, limit_bytes: int) -> None:
        """Another limit from now on; what is held stays."""
        self.limit_bytes, self._resume_bytes = limit_bytes, int(limit_bytes * RESUME)

    def take(self, size_bytes: int, *, awaited: bool = False) -> None:
        """Counts bytes that are asked for; `give` them back.

        Args:
          awaited: others wait for what these bytes are for, and hold bytes as long as they do. Only the limit
                   itself stops it: at the lower mark they would wait for one another.

        Raises:
          Overloaded: there is no room just now, here or in the whole; nothing was counted.
        """
        self._require_room(size_bytes, awaited)
        if self._whole is not None:
            self._whole._require_room(size_bytes, awaited)
        self.hold(size_bytes)

    def hold(self, size_bytes: int) -> None:
        """Counts bytes that are there already, whatever the limit; `give` them back."""
        self.used_bytes += size_bytes
        if self._whole is not None:
            self._whole.used_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        """Bytes are no longer in use."""
        self.used_bytes -= size_bytes
        if self.refusing and self.used_bytes <= self._resume_bytes:
            self.refusing = False
        if self._whole is not None:
            self._whole.give(size_bytes)

    def _require_room(self, size_bytes: int, awaited: bool) -> None:
        free = self.limit_bytes - self.used_bytes
        if size_bytes <= free and (awaited or not self.refusing):
            return
        # One that is large would not fit below the lower mark either; it does not close the door to small ones.
        self.refusing = self.used_bytes > self._resume_bytes
        until = f", and nothing is taken above {self._resume_bytes}" if self.refusing else ""
        raise Overloaded(
            f"{size_bytes} bytes of host memory were asked for, {max(0, free)} of {self.limit_bytes} of {self._owner} "
            f"are free{until}; send it again shortly",
            retry_after_s=RETRY_AFTER_S,
        )
