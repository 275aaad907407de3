"""Keeps freed memory in the process, where glibc would return it to the system."""

import ctypes
import os
import platform

import torch

VARIABLE = 'MMPATCH_KEEP_HEAP'
#: Parameters of ``mallopt`` (malloc.h of glibc).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory for the next allocation.

    By default glibc returns every large block to the system at once, so that each tensor on the CPU
    costs page faults anew. The setting holds for the whole process: for a tool, not for a library.

    Returns:
        Whether glibc was asked. It is not asked on a GPU, whose memory torch keeps itself, and if
        the environment variable ``MMPATCH_KEEP_HEAP`` is 0. Other C libraries are left alone.
    """
    is_off = os.environ.get(VARIABLE) == '0' or torch.cuda.is_available()
    if is_off or platform.libc_ver()[0] != 'glibc':
        return False
    libc = ctypes.CDLL(None)
    # Large blocks come from the heap instead of mmap, and its free end stays (-1: no threshold).
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, -1))
