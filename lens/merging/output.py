"""Output of a merge: preallocated shards, the log of finished chunks, config and model card."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import lens
from lens.arrays import Array
from lens.errors import InputError
from lens.merging.plan import MergePlan, new_template
from lens.merging.tensors import SLICE, Chunk, OutputTensor, is_8_bit
from lens.models.checkpoint import INDEX, copy_rest
from lens.utils.hashing import checksum
from lens.utils.records import Log
from lens.utils.versions import versions
from lens.utils.workdir import WorkDir

_ALIGN = 8
_EVERY = 64 << 20  # bytes written from one fsync to the next


@dataclass(frozen=True, slots=True)
class OutputShard:
    """One safetensors file: its name, its header with the length before it, and its tensors."""

    name: str
    head: bytes
    targets: tuple[OutputTensor, ...]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.head) + sum(target.nbytes for target in self.targets)

    def is_at(self, folder: Path) -> bool:
        """Whether the folder has a file of its name, size and header."""
        try:
            with (folder / self.name).open("rb") as file:
                return file.read(len(self.head)) == self.head and file.seek(0, 2) == self.size
        except OSError:
            return False


def lay_out(targets: Sequence[OutputTensor], shard_size: int) -> list[OutputShard]:
    """Divide tensors into files of at most ``shard_size`` bytes of data, one tensor at least."""
    groups: list[list[OutputTensor]] = [[]]
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
    return [OutputShard(n, head_of(g), tuple(g)) for n, g in zip(names, groups, strict=True)]


def head_of(targets: Sequence[OutputTensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Length and header of a safetensors file of these tensors in order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for target in targets:
        start, end = end, end + target.nbytes
        entry = {"dtype": target.dtype, "shape": list(target.shape), "data_offsets": [start, end]}
        header[target.name] = entry
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % _ALIGN)
    return len(raw).to_bytes(8, "little") + raw


def index_of(shards: Sequence[OutputShard]) -> str | None:
    """Content of the index file; None for a single file, which needs none."""
    if len(shards) == 1:
        return None
    total = sum(target.nbytes for shard in shards for target in shard.targets)
    places = {target.name: shard.name for shard in shards for target in shard.targets}
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


class ShardFiles:
    """The open files of a result in an existing folder.

    They are created and take their space on the disk, or are those of an interrupted or finished
    merge; raises InputError if the disk is full, or a file is missing or has another size.
    """

    def __init__(
        self, folder: Path, shards: Sequence[OutputShard], *, create: bool, writable: bool = True
    ) -> None:
        self._handles: list[int] = []
        self._flusher = _Flusher()
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

    def _open(self, path: Path, shard: OutputShard, *, create: bool, writable: bool) -> None:
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
                f"{path} has another size or header than this merge writes; start again with "
                "--force"
            )
        at = len(shard.head)
        for target in shard.targets:
            self._places[target.number] = handle, at
            at += target.nbytes

    def write(self, target: OutputTensor, chunk: Chunk, content: Array) -> None:
        """Write a chunk at its place."""
        handle, start = self._places[target.number]
        at, left = start + chunk.start * target.kind.size, content.view(np.uint8).data
        while left.nbytes:
            count = os.pwrite(handle, left, at)
            at, left = at + count, left[count:]
        self._flusher.wrote(handle, content.nbytes)

    def read(self, target: OutputTensor, chunk: Chunk) -> bytes:
        """Read a chunk back."""
        handle, start = self._places[target.number]
        size = target.kind.size
        return os.pread(handle, chunk.size * size, start + chunk.start * size)

    def to_disk(self) -> None:
        """Wait until everything has reached the disk."""
        for handle in self._handles:
            os.fsync(handle)

    def start_to_disk(self) -> None:
        """Start to flush what is not on the disk yet."""
        for handle in self._handles:
            self._flusher.start(handle)

    def close(self) -> None:
        """Close the files."""
        try:
            self._flusher.finish()
        finally:
            while self._handles:
                os.close(self._handles.pop())


class _Flusher:
    """Flushes written bytes to the disk in the background, instead of all at the end."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._running: list[Future[None]] = []
        self._since = 0

    def wrote(self, handle: int, n_bytes: int) -> None:
        """Count bytes that were written to a file, and flush now and then."""
        self._since += n_bytes  # an update lost between threads only delays
        if self._since >= _EVERY:
            self._since = 0
            self.start(handle)

    def start(self, handle: int) -> None:
        """Flush a file."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1)
        self._running.append(self._pool.submit(os.fsync, handle))

    def finish(self) -> None:
        """Wait for running flushes and raise their errors."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        while self._running:
            done = self._running.pop()
            if not done.cancelled():
                done.result()


def _preallocate(handle: int, size: int) -> None:
    """Reserve the space now, so that a full disk is noticed before hours of work."""
    allocate = getattr(os, "posix_fallocate", None)
    if allocate is not None:
        try:
            allocate(handle, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    os.ftruncate(handle, size)


def merge_folder(out: Path) -> WorkDir:
    """Work folder of the merge that becomes ``out``, beside it.

    ``model/`` holds the files of the result in their final form, ``facts.json`` what the method
    computed before the first chunk, and ``slices`` a record of each chunk that is written.
    """
    return WorkDir(Path(f"{out}.unfinished"), "merge", keeps="finished chunks")


def finished_slices(log: Log) -> dict[tuple[int, int], int]:
    """Checksums of the chunks written before, by tensor and chunk number."""
    return {
        (record.fields["tensor"], record.fields["slice"]): int(record.fields["xxh64"], 16)
        for record in log.records()
    }


class ChunkComparer:
    """Sink that compares chunks with those in the files of a result."""

    def __init__(self, files: ShardFiles) -> None:
        self._files = files
        self.compared = 0  # chunks
        self.differing: dict[str, list[int]] = {}  # numbers of chunks, by tensor
        self._lock = threading.Lock()

    def missing(self, target: OutputTensor, chunk: Chunk) -> bool:
        """Compute every chunk again."""
        return True

    def write(self, target: OutputTensor, chunk: Chunk, content: Array) -> None:
        """Compare a chunk."""
        same = self._files.read(target, chunk) == content.tobytes()
        with self._lock:
            self.compared += 1
            if not same:
                self.differing.setdefault(target.name, []).append(chunk.number)


class ChunkWriter:
    """Sink that writes chunks into the files of a result, then logs each.

    ``done`` has the checksums of chunks written before; those whose bytes differ are written again.
    """

    def __init__(self, files: ShardFiles, log: Log, done: dict[tuple[int, int], int]) -> None:
        self._files, self._log, self._before = files, log, done
        self.checksums: dict[tuple[int, int], int] = {}

    def missing(self, target: OutputTensor, chunk: Chunk) -> bool:
        """Whether the chunk is not in the file yet."""
        key = target.number, chunk.number
        if key not in self._before:
            return True
        if checksum(self._files.read(target, chunk)) != self._before[key]:
            return True
        self.checksums[key] = self._before[key]
        return False

    def write(self, target: OutputTensor, chunk: Chunk, content: Array) -> None:
        """Write a chunk, then log it."""
        self._files.write(target, chunk, content)
        digest = checksum(content)
        record = {"tensor": target.number, "slice": chunk.number, "xxh64": f"{digest:016x}"}
        self._log.append(record)
        self.checksums[target.number, chunk.number] = digest


SCHEMA = "lens.merge/2"
REPRODUCE = "reproduce.json"
# Files that describe the source and not the result; config.json is written separately.
_LEFT_OUT = (".yaml", ".yml", "config.json", "made.json")
_NOT_OF_THE_RESULT = ("--resume", "--force", "--quiet", "--json", "-v")


def identity(plan: MergePlan, shard_size: int) -> dict[str, Any]:
    """Everything that determines the bytes of a result, as plain values."""
    return {
        "schema": SCHEMA,
        "lens": lens.__version__,
        "config": plan.config.model_dump(mode="json", exclude_defaults=True),
        "sources": {source.reference: source.identity() for source in plan.sources},
        "slice_elements": SLICE,
        "shard_size": shard_size,
    }


def checksum_of(checksums: Sequence[int]) -> str:
    """Checksum of a tensor: the XXH64 of the XXH64s of its chunks."""
    return f"{checksum(b''.join(n.to_bytes(8, 'little') for n in checksums)):016x}"


def write(
    folder: Path,
    plan: MergePlan,
    shards: Sequence[OutputShard],
    decided: Mapping[str, Any],
    facts: Mapping[str, Any],
    checksums: Mapping[tuple[int, int], int],
) -> None:
    """Write everything but the weights into the folder of a result."""
    import yaml

    index = index_of(shards)
    if index is not None:
        (folder / INDEX).write_text(index, encoding="utf-8")
    if plan.template is not None and plan.template.checkpoint is not None:
        source = plan.template.checkpoint.folder
        copy_rest(source, folder, left_out=_LEFT_OUT)
        _write_config(plan, source / "config.json", folder)
        template = new_template(plan.config, plan.sources, source)
        if template is not None:  # it precedes the one in tokenizer_config.json
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    values = plan.config.model_dump(mode="json", exclude_defaults=True)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    (folder / "merge.yaml").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(_card(plan, text), encoding="utf-8")
    written = {
        target.name: checksum_of(
            [checksums[target.number, chunk.number] for chunk in target.chunks]
        )
        for target in plan.targets
    }
    arguments = [a for a in sys.argv[1:] if a not in _NOT_OF_THE_RESULT]
    content = {
        **decided,
        "command": [Path(sys.argv[0]).name, *arguments],
        "versions": versions(("numpy", "pydantic", "pyyaml")),
        "facts": facts,
        "checksums": written,
    }
    (folder / REPRODUCE).write_text(json.dumps(content, indent=1), encoding="utf-8")


def _write_config(plan: MergePlan, path: Path, folder: Path) -> None:
    """Copy config.json; only a new dtype or number of blocks is changed."""
    if not path.is_file():
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    changes: dict[str, Any] = {}
    dtype = plan.config.out_dtype or plan.config.dtype or _decoded(plan)
    key = "torch_dtype" if "torch_dtype" in content else "dtype"
    if dtype is not None and content.get(key) != dtype:
        changes[key] = dtype
    if plan.config.slices and plan.targets:
        for key in ("num_hidden_layers", "n_layer", "num_layers"):
            if key in content:
                changes |= _each_layer(plan, content, int(content[key]))
                changes[key] = plan.targets[0].n_blocks
        changes = {key: value for key, value in changes.items() if content.get(key) != value}
    if not changes:
        shutil.copyfile(path, folder / "config.json")
        return
    text = json.dumps({**content, **changes}, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def _decoded(plan: MergePlan) -> str | None:
    """Dtype of results from 8-bit floats, to which nothing is rounded; None without them."""
    if plan.template is None or not any(is_8_bit(x.kind) for x in plan.template.tensors.values()):
        return None
    return "float32"


def _each_layer(plan: MergePlan, content: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Reorder lists with an entry per layer, such as layer_types, as in the result."""
    blocks: list[int] = []
    for part in plan.config.slices:
        base = part.base_model or plan.config.base_model
        taken = next((s for s in part.sources if s.model == base), part.sources[0])
        blocks += range(*taken.layer_range)
    if max(blocks) >= count:
        return {}
    lists = {key: x for key, x in content.items() if isinstance(x, list) and "layer" in key}
    return {key: [x[n] for n in blocks] for key, x in lists.items() if len(x) == count}


def _card(plan: MergePlan, config: str) -> str:
    method, names = plan.method, [Path(source.reference).name for source in plan.sources]
    listed = "\n".join(f"- {name}" for name in names)
    title = f"{method.title} ({method.paper})" if method.paper else method.title
    return f"""---
tags: [merge, lens]
---
# {method.title} of {len(names)} models

Made by `lens merge` {lens.__version__}: {title}, calculated in float32 and rounded once.

{listed}

```yaml
{config}```

`{REPRODUCE}` holds versions, hashes of what was read, and checksums of what was written;
`lens verify` computes tensors again and compares.
"""
