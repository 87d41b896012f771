"""The allocator keeps what large messages need again, and leaves it alone when asked to."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource
from hermosis import allocator
print(allocator.keep_memory(), end=" ")
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
size, before = 32 << 20, 0
for turn in range(6):
    if turn == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = library.malloc(size)
    ctypes.memset(block, 1, size)
    library.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
@pytest.mark.parametrize(("choice", "kept"), [("", True), ("system", False)])
def test_freed_blocks_come_again_without_page_faults(choice: str, kept: bool) -> None:
    # glibc raises its own threshold to 32 MiB at most, so at that size every block is the kernel's.
    environment = os.environ | {"HERMOSIS_ALLOCATOR": choice}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    said, faults = done.stdout.split()
    assert said == str(kept)
    # Huge pages may make them few, but never none.
    assert (int(faults) < 10) is kept, faults
