"""Files of the result: laid out and preallocated before the first byte is calculated."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lens.arrays import Array
from lens.errors import InputError
from lens.maec.targets import Cut, Target

_ALIGN = 8
_EVERY = 64 << 20  # bytes written from one fsync to the next
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Shard:
    """One file: its name, its header with the length before it, its tensors, and its size."""

    name: str
    head: bytes
    targets: tuple[Target, ...]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.head) + sum(target.nbytes for target in self.targets)

    def is_at(self, folder: Path) -> bool:
        """Whether it was begun there: a file of its name, size and header."""
        try:
            with (folder / self.name).open("rb") as file:
                return file.read(len(self.head)) == self.head and file.seek(0, 2) == self.size
        except OSError:
            return False


def lay_out(targets: Sequence[Target], shard_size: int) -> list[Shard]:
    """Divide tensors into files of at most ``shard_size`` bytes of data, one tensor at least."""
    groups: list[list[Target]] = [[]]
    used = 0
    for target in targets:
        if groups[-1] and used + target.nbytes > shard_size:
            groups.append([])
            used = 0
        groups[-1].append(target)
        used += target.nbytes
    count = len(groups)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    if count == 1:
        names = ["model.safetensors"]
    return [Shard(n, head_of(g), tuple(g)) for n, g in zip(names, groups, strict=True)]


def head_of(targets: Sequence[Target], metadata: Mapping[str, str] | None = None) -> bytes:
    """Length and header of a safetensors file of these tensors, one after the other."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for target in targets:
        start, end = end, end + target.nbytes
        header[target.name] = {
            "dtype": target.dtype, "shape": list(target.shape), "data_offsets": [start, end],
        }  # fmt: skip
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % _ALIGN)
    return len(raw).to_bytes(8, "little") + raw


def index_of(shards: Sequence[Shard]) -> str | None:
    """Content of the index file; None for a single file, which needs none."""
    if len(shards) == 1:
        return None
    total = sum(target.nbytes for shard in shards for target in shard.targets)
    places = {target.name: shard.name for shard in shards for target in shard.targets}
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


class ShardFiles:
    """The open files of a result.

    Parameters
    ----------
    folder : Path
        Where they are; it exists.
    shards : sequence of Shard
    create : bool
        Whether to make them; else they are there, from a merge that was interrupted or finished.
    writable : bool
        Whether they may be written to.

    Raises
    ------
    InputError
        If there is no room, or a file is not there or has another size.
    """

    def __init__(
        self, folder: Path, shards: Sequence[Shard], *, create: bool, writable: bool = True
    ) -> None:
        self._handles: list[int] = []
        self._behind = _Behind()
        self._places: dict[int, tuple[int, int]] = {}
        try:
            for shard in shards:
                self._open(folder / shard.name, shard, create=create, writable=writable)
        except OSError as error:
            self.close()
            what, next_ = ("write", "make room or choose another --out")
            if not writable:
                what, next_ = ("read", "its files are not as merge wrote them")
            raise InputError(f"cannot {what} {folder}: {error.strerror}; {next_}") from None
        except InputError:
            self.close()
            raise

    def _open(self, path: Path, shard: Shard, *, create: bool, writable: bool) -> None:
        flags = os.O_RDWR if writable else os.O_RDONLY
        handle = os.open(path, flags | (os.O_CREAT | os.O_TRUNC if create else 0), 0o644)
        self._handles.append(handle)
        if create:
            _preallocate(handle, shard.size)
            os.pwrite(handle, shard.head, 0)
        elif (
            os.fstat(handle).st_size != shard.size
            or os.pread(handle, len(shard.head), 0) != shard.head
        ):
            raise InputError(
                f"{path} has another size or header than this merge writes; merge anew with --force"
            )
        at = len(shard.head)
        for target in shard.targets:
            self._places[target.number] = handle, at
            at += target.nbytes

    def write(self, target: Target, cut: Cut, content: Array) -> None:
        """Write a slice at its place."""
        handle, start = self._places[target.number]
        at, left = start + cut.start * target.kind.size, content.view(np.uint8).data
        while left.nbytes:
            count = os.pwrite(handle, left, at)
            at, left = at + count, left[count:]
        self._behind.wrote(handle, content.nbytes)

    def read(self, target: Target, cut: Cut) -> bytes:
        """Read a slice back."""
        handle, start = self._places[target.number]
        size = target.kind.size
        return os.pread(handle, cut.size * size, start + cut.start * size)

    def to_disk(self) -> None:
        """Wait until everything has reached the disk."""
        for handle in self._handles:
            os.fsync(handle)

    def start_to_disk(self) -> None:
        """Begin to bring to the disk what is not there yet."""
        for handle in self._handles:
            self._behind.start(handle)

    def close(self) -> None:
        """Close the files."""
        try:
            self._behind.finish()
        finally:
            while self._handles:
                os.close(self._handles.pop())


class _Behind:
    """Brings to the disk, while others calculate, what is written already.

    Otherwise all of it would wait for the end, and the disk would be idle until then.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._under_way: list[Future[None]] = []
        self._since = 0

    def wrote(self, handle: int, n_bytes: int) -> None:
        """Take note of bytes that were written."""
        self._since += n_bytes  # a lost update, between threads, only delays
        if self._since < _EVERY:
            return
        self._since = 0
        self.start(handle)

    def start(self, handle: int) -> None:
        """Bring to the disk what is written to a file by now."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1)
        self._under_way.append(self._pool.submit(os.fsync, handle))

    def finish(self) -> None:
        """Wait for what is under way; an error of the disk is raised here."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        while self._under_way:
            done = self._under_way.pop()
            if not done.cancelled():
                done.result()


def _preallocate(handle: int, size: int) -> None:
    """Take the room now, so that a full disk is noticed before hours of work."""
    allocate = getattr(os, "posix_fallocate", None)
    if allocate is not None:
        try:
            allocate(handle, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    os.ftruncate(handle, size)
