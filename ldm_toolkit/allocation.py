"""How this process's C library keeps memory. Level 0."""

import ctypes

__all__ = ["keep_freed_memory"]

# mallopt(3), glibc's malloc.h: pieces that are mapped one by one, what goes back from the end of
# the heap, what is asked for at its end, heaps of single threads.
_MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD, _ARENA_MAX = -4, -1, -2, -8
_SETTINGS = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 64 << 20, _ARENA_MAX: 1}


def keep_freed_memory() -> bool:
    """Let malloc keep what is freed for the next tensor, in place of giving it to the kernel.

    The layers of a network ask for pieces of tens of megabytes and free them; glibc maps each anew,
    and the kernel clears every page of it: a quarter of a CPU's time in bfloat16, a third in
    float32, and no memory is saved by it. For a process of our own, which ends: the setting is the
    whole process's. False where the C library is another, which is left as it is.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS; Windows has no such library
        return False
    done = [mallopt(name, value) for name, value in _SETTINGS.items()]
    return 0 not in done
