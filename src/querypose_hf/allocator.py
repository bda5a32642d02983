"""How the commands' memory is allocated."""

import ctypes
import os
import sys


# mallopt(3): what to set, and to what
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_KEPT = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**28))


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory for the next image, in place of giving it back to the system.

    Every large feature map is mapped anew otherwise, page by page, in each image or training step. The process keeps
    the memory that it once needed. Nothing is done with other allocators than glibc's, and where the environment has
    settings of it (`MALLOC_...`).
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in _KEPT:
            mallopt(parameter, value)
