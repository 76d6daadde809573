"""Models of which one block's weights are in memory at a time.

Everything but the blocks and the output head is loaded (tensors that need no conversion are mapped
from the checkpoint, not read); a block is loaded by transformers' own code when it is its turn, so
names, merged experts and dtypes are handled as for the whole model, and forgotten afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from lens.errors import InputError
from lens.models.blocks import (
    DecoderParts,
    SeenError,
    block_input,
    block_output,
    candidates,
    device_of,
    evaluating,
    find_direction,
    forward_arguments,
    parts_of,
    refusal,
    remember,
    verify,
    with_block_output,
)

T = TypeVar("T")


class BlockStore:
    """Loads the blocks of a checkpoint into its model, one at a time.

    Parameters
    ----------
    model : PreTrainedModel
        The model whose blocks are on the meta device.
    blocks_name : str
        Dotted name of the list of blocks.
    open_model : callable
        Load the checkpoint with the given ``device_map``.
    device : str
        Where a block goes.
    """

    def __init__(self, model: nn.Module, blocks_name: str, open_model: Any, device: str) -> None:
        self._model = ref(model)  # the registry below must not keep it alive
        self._blocks_name, self._open, self._device = blocks_name, open_model, device
        self.samples: dict[str, bytes] | None = None  # of `fingerprint`: reading them takes time

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """Hold the weights of one block inside a ``with`` block."""
        model = self._model()
        if model is None:
            raise InputError("the model of these blocks is gone")
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
        model = self._model()
        if model is None:
            raise InputError("the model of these blocks is gone")
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
    """Load a model without its blocks and output head.

    Parameters
    ----------
    open_model : callable
        Load the checkpoint with the given ``device_map``, a dict.
    device : str
        Where what is loaded goes.
    blocks : str, optional
        Dotted name of the list of blocks.

    Returns
    -------
    PreTrainedModel
        A model that `lens.probe` runs block by block.

    Raises
    ------
    InputError
        When no list of modules of the model carries the residual stream.
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
    """Run two tokens through the first block; give the form of its result and the dtype.

    Parameters
    ----------
    model : torch.nn.Module
        The model, its first block in memory.
    parts : DecoderParts
        Its parts.

    Returns
    -------
    form : None or tuple
        What a block returns beside the states: None for nothing, else a tuple to fill.
    dtype : torch.dtype
        Of the states.
    """
    seen: list[tuple[Any, torch.dtype]] = []

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        form = (None,) * len(output) if isinstance(output, tuple) else None
        seen.append((form, block_output(output).dtype))
        raise SeenError

    handle = parts.blocks[0].register_forward_hook(hook)
    ids = torch.zeros(1, 2, dtype=torch.int64, device=device_of(model))
    try:
        with evaluating(model):
            tensors = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            model(**forward_arguments(model, tensors))
    except SeenError:
        return seen[0]
    finally:
        handle.remove()
    raise InputError("the forward pass did not reach the first block")


def _check_wiring(model: nn.Module, parts: DecoderParts) -> None:
    """Check that each block is given what the one before it returned, without their weights."""
    find_direction(model, parts)  # while the weights of the first block are there
    form, _ = first_output(model, parts)

    def stand_in(mark: float) -> Any:
        # A mark of its own, so that blocks side by side are told from blocks in a row.
        def forward(*args: Any, **kwargs: Any) -> Any:
            return with_block_output(form, block_input(args, kwargs) + mark)

        return forward

    with ExitStack() as stack:
        for i, block in enumerate(parts.blocks):
            block.forward = stand_in(i + 1.0)
            stack.callback(_restore, block)
        verify(model, parts)


def _restore(block: nn.Module) -> None:
    del block.forward


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
    """Move what has values; `Module.to` refuses a model that is in part without."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not parameter.is_meta:
                parameter.data = parameter.data.to(device)
        for name, buffer in module.named_buffers(recurse=False):
            if not buffer.is_meta:
                setattr(module, name, buffer.to(device))
