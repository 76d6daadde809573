"""Tell the attention of a block from its feed-forward part by what they do, not by their names.

Attention is what lets a token see another one: change the state of the first token only, and of
all the parts of a block attention alone answers differently at the last token although it was
given the same there. Whatever else holds matrices is the feed-forward part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lens.errors import InputError
from lens.models.blocks import DecoderParts, block_input, device_of, evaluating, forward_arguments

# Parts of one length or more; below this relative size two results are the same but for rounding.
_SAME, _DIFFERENT = 1e-5, 1e-3


@dataclass(frozen=True, slots=True)
class Insides:
    """Names of the parts of one block, relative to the block.

    Attributes
    ----------
    attention, mlp : tuple of str
        Direct children that mix tokens, and the others that hold matrices; either may be empty.
    """

    attention: tuple[str, ...]
    mlp: tuple[str, ...]


def insides(model: nn.Module, parts: DecoderParts, index: int) -> Insides:
    """Find attention and feed-forward part of block ``index`` by running it twice.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    parts : DecoderParts
        What `lens.models.locate` returned for it.
    index : int
        Number of the block.

    Returns
    -------
    Insides
        Names; for BLOOM attention ``("self_attention",)`` and mlp ``("mlp",)``, for OPT mlp
        ``("fc1", "fc2")``.
    """
    block = parts.blocks[index]
    children = {name: child for name, child in block.named_children() if _holds_matrix(child)}
    with evaluating(model):
        args, kwargs = _call(model, parts, block)
        hidden = block_input(args, kwargs)
        changed = hidden.clone()
        changed[:, 0] = hidden[:, 1]
        before = _watched(block, children, args, kwargs, hidden)
        after = _watched(block, children, args, kwargs, changed)
    mixing = tuple(
        name
        for name in children
        if name in before
        and _distance(before[name][0], after[name][0]) < _SAME
        and _distance(before[name][1], after[name][1]) > _DIFFERENT
    )
    return Insides(mixing, tuple(name for name in children if name not in mixing))


def _holds_matrix(module: nn.Module) -> bool:
    """Whether a module has weights of two dimensions; packed ones may be buffers."""
    held = [*module.parameters(), *module.buffers()]
    return any(tensor.ndim >= 2 for tensor in held)


def _call(model: nn.Module, parts: DecoderParts, block: nn.Module) -> Any:
    """Arguments of a block in a run over four tokens."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    handle = block.register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append((args, dict(kwargs))), with_kwargs=True
    )
    weight = getattr(parts.embedding, "weight", None)
    rows = int(weight.shape[0]) if isinstance(weight, Tensor) else 5
    ids = torch.arange(1, 5, device=device_of(model)).unsqueeze(0) % rows
    try:
        model(**forward_arguments(model, {"input_ids": ids}))
    finally:
        handle.remove()
    return seen[0]


def _watched(
    block: nn.Module,
    children: dict[str, nn.Module],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    hidden: Tensor,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Run a block on ``hidden``; give what each child got and returned at the last token."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str) -> Any:
        def hook(_module: nn.Module, given: Any, keywords: dict[str, Any], output: Any) -> None:
            result = output[0] if isinstance(output, tuple | list) else output
            seen[name] = (_last(block_input(given, keywords)), _last(result))

        return hook

    handles = [c.register_forward_hook(note(n), with_kwargs=True) for n, c in children.items()]
    try:
        if args:
            block(hidden, *args[1:], **kwargs)
        else:
            block(**{**kwargs, "hidden_states": hidden})
    except InputError as error:
        raise InputError(f"a part of {type(block).__name__} is unlike others: {error}") from None
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _last(state: Tensor) -> Tensor:
    """State of the last token of a single row, (1, t, d) or (t, d)."""
    return state.reshape(-1, state.shape[-1])[-1].float().clone()


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max().clamp_min(1e-30))
