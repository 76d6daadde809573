"""Keep weights out of memory while they are not needed; run a model one block at a time."""

from __future__ import annotations

import ctypes
import mmap
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any, TypeVar
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import Tensor, nn

from lens.errors import InputError
from lens.models.architecture import (
    DecoderParts,
    SeenError,
    block_input,
    block_output,
    candidates,
    evaluating,
    find_direction,
    parts_of,
    refusal,
    remember,
    run_tokens,
    verify,
    with_block_output,
)

_ENTRY = 8  # bytes of /proc/self/pagemap for each page
_PRESENT, _SWAPPED, _OF_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))
_PROBE = 512  # pages read first: enough to recognise a weight that lies in no file
_DONTNEED = 4
_SLACK = 64 << 20


def release(tensors: Iterable[Tensor]) -> int:
    """Drop tensors that a file holds from memory, and return the bytes; they come back on use.

    Tensors in ordinary memory or on other devices, and mapped ones that were written to, are
    left alone. Does nothing on systems other than Linux.
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
    """Release the weights of modules after each of their calls, and all of them at the end."""
    inside = dict.fromkeys(m for module in modules for m in module.modules()) if active else {}
    own = {module: list(module.parameters(recurse=False)) for module in inside}
    with ExitStack() as stack:
        stack.callback(release, [parameter for held in own.values() for parameter in held])
        for module, held in own.items():
            if held:
                stack.enter_context(module.register_forward_hook(_after))
        yield


class Heap:
    """Returns memory that was freed but kept by the C library, whenever it has grown by a quarter.

    Passes of ever different shapes in 16 bit make torch on the CPU keep small objects between the
    blocks it frees, and these then stay with the process: gigabytes within a hundred passes.
    """

    def __init__(self) -> None:
        self._limit = 0

    def tidy(self) -> None:
        """Return memory to the system if much more is kept than after the last call."""
        libc = _libc()
        if libc is None or not hasattr(libc, "malloc_trim") or own_bytes() <= self._limit:
            return
        libc.malloc_trim(0)
        self._limit = own_bytes() * 5 // 4 + _SLACK


def lying_in_files(tensors: Sequence[Tensor]) -> list[bool]:
    """Whether each tensor lies in a mapped file; False where the system does not say."""
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
    """Whether pages are or were private memory, which no file could restore."""
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


def spill(modules: Iterable[nn.Module]) -> int:
    """Move the weights of modules from memory to unnamed temporary files, mapped in their place.

    The modules stay usable, and give the same results: a weight that is read comes back from the
    file, page by page, and the system may drop it again. The files have no names and vanish with
    the process. Weights that lie in a file already, as those of a checkpoint loaded in its own
    dtype do, stay there.
    """
    parameters = {id(p): p for module in modules for p in module.parameters()}
    moved = 0
    for parameter in _movable(list(parameters.values())):
        parameter.data = _mapped(parameter.data.contiguous())
        moved += parameter.numel() * parameter.element_size()
    return moved


def set_aside(parameters: Mapping[str, nn.Parameter], *, in_files: bool) -> dict[str, torch.Tensor]:
    """Return the values of parameters that are about to be trained.

    With ``in_files`` values on the CPU lie in mapped files, which `release` drops from memory; a
    parameter whose own values lie in the checkpoint's file gets memory for new ones. Otherwise the
    values are copied in memory.
    """
    if not in_files:
        return {name: p.detach().clone() for name, p in parameters.items()}
    kept = {}
    in_memory = {id(p) for p in _movable(list(parameters.values()))}
    for name, parameter in parameters.items():
        values = parameter.detach()
        kept[name] = _mapped(values.contiguous()) if id(parameter) in in_memory else values
        if kept[name] is values:
            parameter.data = values.clone()
        release([kept[name]])
    return kept


def _movable(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """CPU parameters whose values lie in ordinary memory."""
    mapped = lying_in_files(parameters)
    pairs = zip(parameters, mapped, strict=True)
    return [p for p, in_file in pairs if not in_file and p.device.type == "cpu" and p.numel()]


def _mapped(values: torch.Tensor) -> torch.Tensor:
    """Return a copy of a tensor that lives in a mapped, already unlinked file."""
    with tempfile.NamedTemporaryFile(prefix="lens-", delete=False) as file:
        path = Path(file.name)
        try:
            values.view(-1).view(torch.uint8).numpy().tofile(file)
            file.flush()
        except OSError as error:
            path.unlink()
            raise InputError(
                f"cannot move {values.numel() * values.element_size()} bytes of weights to "
                f"{path.parent}: {error}; free some space, or train without low_memory"
            ) from None
    try:
        flat = torch.from_file(str(path), shared=True, size=values.numel(), dtype=values.dtype)
    finally:
        path.unlink()
    return flat.view(values.shape)


def replace_hidden(
    args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Put ``hidden`` where a block call carries its hidden states."""
    if args:
        return (hidden, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": hidden}


@contextmanager
def passing_through(blocks: Iterable[nn.Module], form: Any) -> Iterator[None]:
    """Make blocks return their input, in the form their real output has."""

    def bypass(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        return with_block_output(form, hidden_states)

    bypassed = [(block, vars(block).get("forward")) for block in blocks]
    for block, _ in bypassed:
        block.forward = bypass
    try:
        yield
    finally:
        for block, own in bypassed:
            if own is None:
                del block.forward
            else:  # accelerate puts one there for a model over several devices
                block.forward = own


T = TypeVar("T")


class BlockStore:
    """Loads the blocks of a checkpoint into its model, one at a time."""

    def __init__(self, model: nn.Module, blocks_name: str, open_model: Any, device: str) -> None:
        self._model = ref(model)  # the registry below must not keep it alive
        self._blocks_name, self._open, self._device = blocks_name, open_model, device
        self.samples: dict[str, bytes] | None = None  # of `fingerprint`: reading them takes time

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """Hold the weights of one block inside a ``with`` block."""
        model = self._living()
        blocks: Any = model.get_submodule(self._blocks_name)
        absent = blocks[index]
        name = f"{self._blocks_name}.{index}"
        loaded = self._fetch(model, f"{name}.").get_submodule(name)
        blocks[index] = loaded.to(self._device).eval()
        try:
            yield loaded
        finally:
            blocks[index] = absent
            loaded.to_empty(device="meta")  # now, not when cycles are next collected

    def read(self, what: Callable[[Tensor], T]) -> dict[str, T]:
        """Apply a function to every parameter that is not in memory, a module's worth at a time."""
        model = self._living()
        absent = [name for name, p in model.named_parameters() if p.is_meta]
        depth = self._blocks_name.count(".") + 2
        groups = {
            ".".join(name.split(".")[:depth]) + "."
            if name.startswith(f"{self._blocks_name}.")
            else name
            for name in absent
        }
        found: dict[str, T] = {}
        for prefix in sorted(groups):
            loaded = self._fetch(model, prefix)
            named = loaded.named_parameters()
            # No name may be left for a tensor: one view of a mapped file holds all of its pages.
            found.update({n: what(p) for n, p in named if n.startswith(prefix)})
            loaded.to_empty(device="meta")
        return found

    def _living(self) -> nn.Module:
        model = self._model()
        if model is None:
            raise InputError("the model of these blocks is gone")
        return model

    def _fetch(self, model: nn.Module, prefix: str) -> nn.Module:
        """Load the tensors of one prefix; everything else stays on the meta device."""
        loaded: nn.Module = self._open(_on_meta(model, lambda name: not name.startswith(prefix)))
        return loaded


_STORES: WeakKeyDictionary[nn.Module, BlockStore] = WeakKeyDictionary()


def store_of(model: nn.Module) -> BlockStore | None:
    """Where the blocks of a model come from; None for an ordinary model."""
    return _STORES.get(model)


def require_whole(model: nn.Module) -> None:
    """Refuse a model that was loaded layer by layer where all of it must run at once."""
    if model in _STORES:
        raise InputError(
            "this model was loaded layer by layer, which is for probing alone; load the whole "
            "model to train, steer or generate with it"
        )


def open_by_blocks(open_model: Any, *, device: str, blocks: str | None = None) -> Any:
    """Load a model without its blocks and output head, for `lens.probe` to run block by block.

    ``open_model`` loads the checkpoint with a given ``device_map``, a dict.
    """
    shape = open_model({"": "meta"})
    found = candidates(shape)
    names = [name for name, _ in found] if blocks is None else [blocks]
    reasons = []
    for name in names:
        head = parts_of(shape, name).lm_head
        out = [n for n, module in shape.named_modules() if module is head and head is not None]
        absent = (f"{name}.", *(f"{n}." for n in out))
        model = open_model(_on_meta(shape, lambda key, absent=absent: key.startswith(absent)))
        _move(model, device)
        store = _STORES[model] = BlockStore(model, name, open_model, device)
        try:
            with store.block(0):
                _check_wiring(model, parts_of(model, name))
        except InputError as error:
            reasons.append(f"  {name}: {error}")
            continue
        remember(model, name)
        return model
    raise InputError(refusal(shape, found, reasons))


def first_output(model: nn.Module, parts: DecoderParts) -> tuple[Any, torch.dtype]:
    """Form of what a block returns, for `with_block_output` (None: states only), and its dtype.

    Two tokens are run through the first block, whose weights must be in memory.
    """
    seen: list[tuple[Any, torch.dtype]] = []

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        form = (None,) * len(output) if isinstance(output, tuple) else None
        seen.append((form, block_output(output).dtype))
        raise SeenError

    with parts.blocks[0].register_forward_hook(hook), evaluating(model):
        try:
            run_tokens(model, parts, [0, 0])
        except SeenError:
            return seen[0]
    raise InputError("the forward pass did not reach the first block")


def _check_wiring(model: nn.Module, parts: DecoderParts) -> None:
    """Check that each block is given what the one before it returned, without their weights."""
    find_direction(model, parts)  # while the weights of the first block are there
    form, _ = first_output(model, parts)

    def stand_in(mark: float) -> Any:
        # A mark of its own, to distinguish blocks in a row from blocks side by side.
        def forward(*args: Any, **kwargs: Any) -> Any:
            return with_block_output(form, block_input(args, kwargs) + mark)

        return forward

    with ExitStack() as stack:
        for i, block in enumerate(parts.blocks):
            block.forward = stand_in(i + 1.0)
            stack.callback(delattr, block, "forward")
        verify(model, parts)


def _on_meta(model: nn.Module, absent: Any) -> dict[str, str]:
    """Map the tensors that ``absent`` names to the meta device; the others are loaded.

    By full names: transformers matches the beginnings of names, and ``h.1`` begins ``h.10``.
    """
    named: Iterable[tuple[str, Any]] = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    return {name: "meta" for name, _ in named if absent(name)}


def _move(model: nn.Module, device: str) -> None:
    """Move tensors that have values; `Module.to` refuses a model where some have none."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not parameter.is_meta:
                parameter.data = parameter.data.to(device)
        for name, buffer in module.named_buffers(recurse=False):
            if not buffer.is_meta:
                setattr(module, name, buffer.to(device))
