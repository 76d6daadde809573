"""Cached prefix states: run what is frozen once, train what is above it many times.

When only blocks ``first_block`` and up are trained, nothing below them ever changes. So each row
is sent through the whole frozen model once; the residual stream that enters the first trained
block and the reference outputs are cached, and every training step starts from there. No second
model is held and no frozen lower block runs again (``docs/training.md``).
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from itertools import accumulate
from math import prod
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lens.errors import DamagedError, InputError
from lens.models.architecture import DecoderParts, block_input, block_output, device_of, text_config
from lens.models.fingerprint import model_fingerprint, sha256_json
from lens.models.layers import FINAL, block_index
from lens.models.offload import Heap, first_output, passing_through, release, replace_hidden
from lens.models.quantization import answer, is_quantized
from lens.utils import files
from lens.utils.files import reserve
from lens.utils.progress import progress, say

Keep: TypeAlias = Literal["last", "all"] | int


@dataclass(frozen=True, slots=True)
class CachedRow:
    """One encoded row and its states in the frozen model.

    Attributes
    ----------
    input_ids : Tensor
        Token ids, shape (t,), int64.
    entry : Tensor
        Residual stream entering the first trained block, shape (t, d), dtype of the model.
    reference : dict of str to Tensor
        Frozen states of the last k tokens by site, shape (k, d).
    """

    input_ids: Tensor
    entry: Tensor
    reference: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class PrefixBatch:
    """Rows padded on the right to one length.

    A decoder never looks right, so real tokens do not see the padding and no attention mask is
    needed: ``lengths`` says which tokens are real.
    """

    input_ids: Tensor
    entry: Tensor
    lengths: Tensor

    @property
    def mask(self) -> Tensor:
        """1 for real tokens, 0 for padding; shape (n, t), float32."""
        steps = torch.arange(self.input_ids.shape[1], device=self.lengths.device)
        return (steps < self.lengths[:, None]).float()

    def last(self, states: Tensor) -> Tensor:
        """States of the last real token of every row, shape (n, d)."""
        return states[torch.arange(len(states), device=states.device), self.lengths - 1]


def pad_right(rows: Sequence[Tensor], length: int | None = None) -> Tensor:
    """Stack tensors of different length along a new first axis, zeros behind the shorter ones."""
    padded: Tensor = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    if length is None or padded.shape[1] >= length:
        return padded
    extra = padded.new_zeros(padded.shape[0], length - padded.shape[1], *padded.shape[2:])
    return torch.cat([padded, extra], dim=1)


def kept_tokens(length: int, keep: Keep) -> int:
    """How many reference states of a row of ``length`` tokens are kept."""
    if keep == "all":
        return length
    wanted = 1 if keep == "last" else keep
    if not isinstance(wanted, int) or wanted < 1:
        raise InputError(f"keep is {keep!r}; expected 'last', 'all' or a number of tokens from 1")
    return min(wanted, length)


Shapes: TypeAlias = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}


def in_memory(shapes: Shapes) -> dict[str, Tensor]:
    """Allocate tensors in memory."""
    return {name: torch.empty(shape, dtype=dtype) for name, (dtype, shape) in shapes.items()}


def in_unnamed_file(shapes: Shapes) -> dict[str, Tensor]:
    """Allocate tensors in a mapped temporary file that vanishes with the process."""
    size = nbytes(shapes)
    handle, name = tempfile.mkstemp(prefix="lens-prefix-")
    try:
        with os.fdopen(handle, "wb") as file:
            _reserve(file, 0, size, Path(name).parent)
        return _mapped(Path(name), 0, shapes)
    finally:
        Path(name).unlink()


@contextmanager
def new_file(path: Path, shapes: Shapes, about: Mapping[str, str]) -> Iterator[dict[str, Tensor]]:
    """Yield mapped tensors to fill; the file gets its name once the block succeeds."""
    header = _header(shapes, {**about, "sha256": "0" * 64})
    with files.new_file(path) as (file, part):
        file.write(header)
        _reserve(file, len(header), nbytes(shapes), path.parent)
        yield _mapped(part, len(header), shapes)
        os.fsync(file.fileno())
        file.seek(len(header))
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        file.write(_header(shapes, {**about, "sha256": digest}))


def open_file(path: Path, about: Mapping[str, str], *, verify: bool = True) -> dict[str, Tensor]:
    """Map the tensors of a file that `new_file` wrote; they are read page by page.

    ``about`` must agree with its header; ``verify`` reads the file once and checks its SHA-256.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"cannot be read ({error})") from None
    wrong = [key for key, value in about.items() if found.get(key) != value]
    if wrong:
        raise DamagedError(f"was written for something else ({', '.join(wrong)} differ)")
    if verify:
        with path.open("rb") as raw:
            raw.seek(8 + struct.unpack("<Q", raw.read(8))[0])
            if hashlib.file_digest(raw, "sha256").hexdigest() != found.get("sha256"):
                raise DamagedError("has other numbers than were written (SHA-256 differs)")
    return tensors


def prepare_folder(folder: Path) -> None:
    """Create a folder for cache files, and remove the leftovers of killed writers."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot use '{folder}' as a cache folder: {error.strerror}; name a folder that can "
            "be written to"
        ) from None
    files.remove_leftovers(folder)


def nbytes(shapes: Shapes) -> int:
    """Bytes that tensors of these shapes take."""
    return sum(prod(shape) * dtype.itemsize for dtype, shape in shapes.values())


def _header(shapes: Shapes, about: Mapping[str, str]) -> bytes:
    """Write a safetensors header for tensors that follow one another without gaps."""
    content: dict[str, object] = {"__metadata__": dict(about)}
    at = 0
    for name, (dtype, shape) in shapes.items():
        end = at + prod(shape) * dtype.itemsize
        content[name] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _reserve(file: IO[bytes], start: int, size: int, folder: Path) -> None:
    """Reserve disk space now: a mapped file that runs out of it later kills the process."""
    try:
        file.flush()
        reserve(file, start, size)
    except OSError as error:
        raise InputError(
            f"no room for {size / 1e6:.0f} MB of cached states in '{folder}': {error.strerror}; "
            "free some space, name another folder, or cache fewer prompts"
        ) from None


def _mapped(path: Path, start: int, shapes: Shapes) -> dict[str, Tensor]:
    """Tensors over a shared mapping of a file; what is written to them goes to the file."""
    total = start + nbytes(shapes)
    if total == start:
        return in_memory(shapes)
    storage: Any = torch.UntypedStorage.from_file(str(path), True, total)
    tensors = {}
    for name, (dtype, shape) in shapes.items():
        flat = torch.empty(0, dtype=dtype)
        tensors[name] = flat.set_(storage, start // dtype.itemsize, shape, (shape[-1], 1))
        start += prod(shape) * dtype.itemsize
    return tensors


SCHEMA = "lens.prefix/2"


def frozen_facts(
    model: nn.Module, parts: DecoderParts, *, first_block: int, sites: Sequence[str]
) -> dict[str, Any]:
    """Identity of the cached states: every byte of the weights that are read, and the settings."""
    highest = max((_reach(site, len(parts.blocks)) for site in sites), default=first_block)
    unused = tuple(f"{parts.blocks_name}.{i}." for i in range(highest + 1, len(parts.blocks)))
    return {
        "schema": SCHEMA,
        "weights": _weights_sha256(model, unused),
        "config": model_fingerprint(model)["config_sha256"],
        "attention": getattr(text_config(model), "_attn_implementation", None),
        "device": device_of(model).type,
        "first_block": first_block,
        "sites": list(sites),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def rows_key(
    frozen: dict[str, Any], rows: Sequence[Sequence[int]], *, keep: object, batch_size: int
) -> str:
    """Hash of the model's facts, the token ids and how they are run."""
    return sha256_json(
        {**frozen, "rows": [list(row) for row in rows], "keep": keep, "batch_size": batch_size}
    )


def _reach(site: str, count: int) -> int:
    """Highest block that decides the state at a site."""
    return count - 1 if site == FINAL else (block_index(site) or 0)


def _weights_sha256(model: nn.Module, unused: tuple[str, ...]) -> str:
    """Hash every byte of the weights that are read.

    Not ``state_dict()``: that is a packed layer's own code, and may repack it. What such a layer
    keeps elsewhere (scales, tables) is covered by its answer to a fixed vector.
    """
    digest = hashlib.sha256()
    held = [*model.named_parameters(), *model.named_buffers()]
    packed = [(n, m) for n, m in model.named_modules() if is_quantized(m) and n != ""]
    held += [(name, answer(module)) for name, module in packed if not name.startswith(unused)]
    for name, value in sorted(held, key=itemgetter(0)):
        if name.startswith(unused):
            continue
        digest.update(f"{name} {value.dtype}{tuple(value.shape)}".encode())
        content = value.detach().to("cpu").contiguous().reshape(-1)
        digest.update(content.view(torch.uint8).numpy().data)
        release([value])
    return digest.hexdigest()


class PrefixCache:
    """Prefix states and frozen reference states of a set of rows.

    ``first_block`` is the lowest block that will be trained; ``sites``, none below it, are where
    the losses read states. With a ``folder`` the states are kept in files there, for any later run
    over the same model and rows: a file is named by the hash of everything its content depends on,
    and a damaged one is computed again with a notice. Without it, at most ``memory`` bytes stay in
    memory and the rest goes to temporary files that vanish with the process. ``low_memory`` returns
    memory that passes have freed to the system at once.
    """

    def __init__(
        self,
        model: Any,
        parts: DecoderParts,
        *,
        first_block: int,
        sites: Sequence[str] = ("final",),
        folder: str | Path | None = None,
        memory: int | None = None,
        low_memory: bool = False,
    ) -> None:
        count = len(parts.blocks)
        if not 0 <= first_block < count:
            raise InputError(
                f"first_block is {first_block}, but the model has blocks 0 to {count - 1}; "
                "choose one of these"
            )
        for site in sites:
            if site != FINAL and (block_index(site) or 0) < first_block:
                raise InputError(
                    f"site '{site}' lies below the first trained block ({first_block}), where "
                    "training changes nothing; choose a site at or above it"
                )
        self.model, self.parts = model, parts
        self.first_block, self.sites = first_block, tuple(sites)
        self.rows: list[CachedRow] = []
        self.reused = 0
        self.device = next(parts.blocks[first_block].parameters()).device
        self.folder = None if folder is None else Path(folder)
        self._frozen: dict[str, Any] = {}
        self._memory, self._in_memory = memory, 0
        self._heap = Heap() if low_memory else None
        if self.folder is not None:
            prepare_folder(self.folder)
            self._frozen = frozen_facts(model, parts, first_block=first_block, sites=self.sites)
        self._output_form = first_output(model, parts)[0] if first_block else None

    @property
    def nbytes(self) -> int:
        """Bytes held by entries and references, in memory or on disk."""
        kept = [t for row in self.rows for t in (row.entry, *row.reference.values())]
        return sum(t.numel() * t.element_size() for t in kept)

    @torch.no_grad()
    def add(
        self,
        rows: Sequence[Sequence[int]],
        *,
        keep: Keep = "last",
        batch_size: int = 32,
        label: str = "Caching prefix",
    ) -> range:
        """Run encoded rows through the frozen model, and return the new rows' indices for `batch`.

        ``keep`` says of how many tokens at the end of each row the reference states are kept.
        """
        start = len(self.rows)
        if not len(rows):
            return range(start, start)
        lengths = [len(row) for row in rows]
        kept = [kept_tokens(t, keep) for t in lengths]
        totals = {"entry": sum(lengths)} | dict.fromkeys(map(_stored, self.sites), sum(kept))
        if self.folder is None:
            tensors = self._compute(rows, kept, totals, batch_size=batch_size, label=label)
        else:
            key = rows_key(self._frozen, rows, keep=keep, batch_size=batch_size)
            path = self.folder / f"{key}.safetensors"
            found = self._found(path, key, totals)
            if found is None:
                self._compute(rows, kept, totals, batch_size=batch_size, label=label, path=path)
                found = open_file(path, {"key": key}, verify=False)
            tensors = found
        entries = tensors["entry"].split(lengths)
        references = {site: tensors[_stored(site)].split(kept) for site in self.sites}
        for i, (row, entry) in enumerate(zip(rows, entries, strict=True)):
            reference = {site: parts[i] for site, parts in references.items()}
            self.rows.append(CachedRow(torch.tensor(list(row)), entry, reference))
        release(tensors.values())
        return range(start, len(self.rows))

    def _found(self, path: Path, key: str, totals: Mapping[str, int]) -> dict[str, Tensor] | None:
        """Tensors of an earlier run, if its file is there and sound."""
        if not path.exists():
            return None
        try:
            tensors = open_file(path, {"key": key})
            if {name: len(tensor) for name, tensor in tensors.items()} != totals:
                raise DamagedError("holds other tensors than its name says")
        except DamagedError as error:
            say(f"cached states in {path} are damaged: the file {error}; they are computed again")
            return None
        self.reused += 1
        return tensors

    def _compute(
        self,
        rows: Sequence[Sequence[int]],
        kept: Sequence[int],
        totals: Mapping[str, int],
        *,
        batch_size: int,
        label: str,
        path: Path | None = None,
    ) -> dict[str, Tensor]:
        """Run rows, the longest first, and write their states in the order of the rows.

        Rows of like length share a batch, so that little of it is padding.
        """
        tensors: dict[str, Tensor] = {}
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        entry_ends = list(accumulate(map(len, rows)))
        reference_ends = list(accumulate(kept))
        with ExitStack() as stack:
            for at in progress(range(0, len(rows), batch_size), label):
                chosen = order[at : at + batch_size]
                ids = [torch.tensor(list(rows[i])) for i in chosen]
                seen: dict[str, Tensor] = {}
                with _entry_of(self.parts.blocks[self.first_block], seen):
                    states = self._forward(pad_right(ids))
                states = {"entry": seen["entry"]} | {_stored(s): states[s] for s in self.sites}
                if not tensors:
                    shapes = {n: (x.dtype, (totals[n], x.shape[-1])) for n, x in states.items()}
                    tensors = stack.enter_context(self._room(shapes, path))
                for at_batch, i in enumerate(chosen):
                    length = len(rows[i])
                    for name, values in states.items():
                        count, end = kept[i], reference_ends[i]
                        if name == "entry":
                            count, end = length, entry_ends[i]
                        tensors[name][end - count : end] = values[at_batch, length - count : length]
        return tensors

    def _room(self, shapes: Shapes, path: Path | None) -> AbstractContextManager[dict[str, Tensor]]:
        """Tensors to fill, wherever this cache keeps them."""
        if path is not None:
            return new_file(path, shapes, {"key": path.stem, "schema": SCHEMA})
        size = nbytes(shapes)
        if self._memory is None or self._in_memory + size <= self._memory:
            self._in_memory += size
            return nullcontext(in_memory(shapes))
        say(
            f"{size / 1e6:.0f} MB of cached states go to a temporary file: with "
            f"{self._in_memory / 1e6:.0f} MB in memory already, they would pass the "
            f"{self._memory / 1e6:.0f} MB that the memory limit leaves"
        )
        return nullcontext(in_unnamed_file(shapes))

    def batch(self, indices: Sequence[int], length: int | None = None) -> PrefixBatch:
        """Gather rows into one right-padded batch, at least ``length`` tokens long."""
        rows = [self.rows[i] for i in indices]
        ids = [row.input_ids for row in rows]
        lengths = torch.tensor([len(row) for row in ids], device=self.device)
        entry = pad_right([row.entry for row in rows], length).to(self.device)
        release(row.entry for row in rows)
        return PrefixBatch(pad_right(ids, length).to(self.device), entry, lengths)

    def reference(self, indices: Sequence[int], site: str) -> Tensor:
        """Frozen states of rows at a site: (n, k, d) padded, of the last k tokens kept."""
        return pad_right([self.rows[i].reference[site] for i in indices]).to(self.device)

    def last_reference(self, indices: Sequence[int], site: str) -> Tensor:
        """Frozen states of the last token of rows at a site, shape (n, d)."""
        return torch.stack([self.rows[i].reference[site][-1] for i in indices]).to(self.device)

    def forward(self, batch: PrefixBatch) -> dict[str, Tensor]:
        """States of the model *as it is now* at every site, from the cached entry.

        Blocks below ``first_block`` pass their input through, so the cost is that of the trained
        layers (and of the embedding look-up, whose result is replaced). Positions and masks come
        from the model's own code, hence are right for every architecture.
        """
        blocks = self.parts.blocks
        with passing_through(blocks[: self.first_block], self._output_form):
            entry = blocks[self.first_block].register_forward_pre_hook(
                lambda _module, args, kwargs: replace_hidden(args, kwargs, batch.entry),
                with_kwargs=True,
            )
            with entry:
                return self._forward(batch.input_ids)

    def _forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        if self._heap is not None:
            self._heap.tidy()
        states: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for site in self.sites:
                if site != FINAL:
                    block = self.parts.blocks[block_index(site) or 0]
                    stack.enter_context(block.register_forward_hook(_recording(site, states)))
            out = self.model.base_model(
                input_ids=input_ids.to(device_of(self.model)), use_cache=False
            )
        states[FINAL] = out.last_hidden_state
        return {site: values.to(self.device) for site, values in states.items()}


def _recording(site: str, states: dict[str, Tensor]) -> Callable[[Any, Any, Any], None]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        states[site] = block_output(output)

    return hook


def _entry_of(block: nn.Module, seen: dict[str, Tensor]) -> AbstractContextManager[Any]:
    """Record the hidden states that enter a block, inside a ``with`` block."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["entry"] = block_input(args, kwargs)

    return block.register_forward_pre_hook(hook, with_kwargs=True)


def _stored(site: str) -> str:
    """Name of a site's references among the stored tensors."""
    return f"reference.{site}"
