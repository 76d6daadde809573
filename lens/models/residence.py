"""Drop weights that lie in a mapped file from memory as soon as they have been used.

A checkpoint that needs no conversion is mapped, not read: its pages come into memory when they are
used, and stay. The pages given back here are those the system could read again from the file, so
nothing is lost, whatever was written to a weight in the meantime.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor, nn

_ENTRY = 8  # bytes of /proc/self/pagemap for each page
_PRESENT, _SWAPPED, _OF_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))
_PROBE = 512  # pages looked at first: a weight that lies in no file is told by them
_DONTNEED = 4
_SLACK = 64 << 20


def release(tensors: Iterable[Tensor]) -> int:
    """Give back the memory of tensors that a file holds; they come back when they are used.

    Tensors in ordinary memory or on other devices, and mapped ones that were written to, are
    left alone. Does nothing on systems other than Linux.

    Parameters
    ----------
    tensors : iterable of Tensor
        Weights, mapped or not.

    Returns
    -------
    int
        Bytes given back.
    """
    libc = _libc()
    if libc is None:
        return 0
    given_back = 0
    try:
        with Path("/proc/self/pagemap").open("rb", buffering=0) as table:
            for tensor in tensors:
                if tensor.device.type == "cpu":
                    given_back += _release(tensor, table, libc)
    except OSError:  # a system that hides the table
        return given_back
    return given_back


@contextmanager
def held_briefly(modules: Iterable[nn.Module], *, active: bool = True) -> Iterator[None]:
    """Release the weights of modules after each of their calls, and all of them at the end.

    Parameters
    ----------
    modules : iterable of torch.nn.Module
        Every module inside them that has parameters of its own releases these.
    active : bool
        False does nothing.
    """
    inside = dict.fromkeys(m for module in modules for m in module.modules()) if active else {}
    own = {module: list(module.parameters(recurse=False)) for module in inside}
    handles = [module.register_forward_hook(_after) for module, held in own.items() if held]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        release(parameter for held in own.values() for parameter in held)


class Heap:
    """Gives freed memory that the C library holds on to back, whenever it has grown by a quarter.

    Passes of ever different shapes in 16 bit make torch on the CPU keep small objects between the
    blocks it frees, and these then stay with the process: gigabytes within a hundred passes.
    """

    def __init__(self) -> None:
        self._limit = 0

    def tidy(self) -> None:
        """Give memory back if there is much more of it than after the last time."""
        libc = _libc()
        if libc is None or not hasattr(libc, "malloc_trim") or own_bytes() <= self._limit:
            return
        libc.malloc_trim(0)
        self._limit = own_bytes() * 5 // 4 + _SLACK


def lying_in_files(tensors: Sequence[Tensor]) -> list[bool]:
    """Tell which tensors' memory is a mapping of a file; none where the system does not say."""
    spans = _file_spans()
    starts = [low for low, _ in spans]
    found = []
    for tensor in tensors:
        at = tensor.data_ptr() if tensor.device.type == "cpu" else 0
        i = bisect_right(starts, at) - 1
        found.append(at > 0 and i >= 0 and at < spans[i][1])
    return found


def _file_spans() -> list[tuple[int, int]]:
    """First and last address of every mapping of a file in this process, in order."""
    if not sys.platform.startswith("linux"):
        return []
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    # span, permissions, offset, device, inode, and perhaps a path
    fields = (line.split(maxsplit=5) for line in lines)
    ends = [row[0].split("-") for row in fields if row[4] != "0"]
    return [(int(low, 16), int(high, 16)) for low, high in ends]


def own_bytes() -> int:
    """Resident bytes that no file holds."""
    try:
        _, resident, shared, *_ = Path("/proc/self/statm").read_text(encoding="ascii").split()
    except OSError:
        return 0
    return (int(resident) - int(shared)) * mmap.PAGESIZE


def _after(module: nn.Module, _args: Any, _output: Any) -> None:
    release(module.parameters(recurse=False))


def _release(tensor: Tensor, table: IO[bytes], libc: Any) -> int:
    page = mmap.PAGESIZE
    # whole pages only: others share the first and the last
    first = -(-tensor.data_ptr() // page)
    last = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // page
    if last <= first or not tensor.is_contiguous():
        return 0
    if _written(table, first, min(last, first + _PROBE)) or _written(table, first, last):
        return 0
    size = (last - first) * page
    done = libc.madvise(ctypes.c_void_p(first * page), ctypes.c_size_t(size), _DONTNEED)
    return size if done == 0 else 0


def _written(table: IO[bytes], first: int, last: int) -> bool:
    """Whether pages are, or were, memory of the process's own, which no file could bring back."""
    table.seek(first * _ENTRY)
    content = table.read((last - first) * _ENTRY)
    entries = np.frombuffer(content, np.uint64)
    if len(entries) != last - first:
        return True
    present = (entries & _PRESENT) != 0
    own = present & ((entries & _OF_FILE) == 0)
    return bool(own.any() or (entries & _SWAPPED).any())


@cache
def _libc() -> Any:
    """Return the C library, or None where dropping pages is not known to be safe."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL(None)
    except OSError:
        return None
    return libc if hasattr(libc, "madvise") else None
