"""Allocator: glibc's malloc keeps large blocks instead of giving them back. Standard library only.

By default every block of more than 128 KiB to 32 MiB goes back to the kernel when it is freed, and comes again page by
page, zeroed: for messages of a megabyte that costs more than copying them. Kept memory stays at its peak, so what is in
flight must be bounded, and is.
"""

import ctypes
import os
import sys

VARIABLE = "HERMOSIS_ALLOCATOR"

# Parameters of mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_SETTINGS = {
    _M_MMAP_THRESHOLD: 1 << 30,
    _M_TRIM_THRESHOLD: (1 << 31) - 1,
    _M_TOP_PAD: 64 << 20,
    # One arena for all threads: what one thread frees, another uses again.
    _M_ARENA_MAX: 1,
}

_tuned = False


def keep_memory() -> bool:
    """Sets the process's malloc up for large messages; a second call does nothing.

    Does nothing either where the C library is another one, or the environment says HERMOSIS_ALLOCATOR=system.

    Returns:
      Whether the process's malloc is set up so.
    """
    global _tuned
    if not _tuned and sys.platform == "linux" and os.environ.get(VARIABLE, "") != "system":
        try:
            library = ctypes.CDLL(None)
            library.gnu_get_libc_version  # noqa: B018  (only glibc has it, and only glibc's mallopt has these numbers)
            taken = [library.mallopt(name, value) for name, value in _SETTINGS.items()]
            _tuned = all(taken)
        except (AttributeError, OSError):
            pass
    return _tuned
