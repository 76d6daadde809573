"""Find the decoder blocks of any model by structure, and prove by a forward pass that they are.

The blocks are the outermost ``nn.ModuleList`` of modules of one class whose outputs form the
residual stream: each block receives exactly what the one before it returned, and the final norm
receives what the last one returned. Names are only a hint for the order of the candidates.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lens.errors import InputError
from lens.models.quantized import keep_layout

# How the libraries we know name their block lists and final norms; any other name works too.
BLOCK_NAMES = ("layers", "h", "blocks")
NORM_NAMES = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm", "norm_f")


@dataclass(frozen=True, slots=True)
class DecoderParts:
    """The parts of a decoder that lens works with.

    Attributes
    ----------
    blocks : torch.nn.ModuleList
        Decoder blocks, first to last; their outputs are the residual stream.
    blocks_name : str
        Dotted name of the list inside the model, such as ``"model.layers"``.
    owner : torch.nn.Module
        The module that holds the list and runs it.
    final_norm : torch.nn.Module or None
        Norm after the last block; None when the model has none.
    lm_head : torch.nn.Module or None
        Output embeddings.
    embedding : torch.nn.Module or None
        Input embeddings.
    rotary : torch.nn.Module or None
        Rotary position module shared by the blocks, if there is one.
    width : int
        Width of the residual stream.
    """

    blocks: nn.ModuleList
    blocks_name: str
    owner: nn.Module
    final_norm: nn.Module | None
    lm_head: nn.Module | None
    embedding: nn.Module | None
    rotary: nn.Module | None
    width: int


# Name of the verified list and its identity, per model: the check costs a forward pass, and
# capture asks again and again. Names, not modules, so that no model is kept alive.
_KNOWN: WeakKeyDictionary[nn.Module, tuple[str, int]] = WeakKeyDictionary()


def locate(model: nn.Module, *, blocks: str | None = None) -> DecoderParts:
    """Find the decoder blocks, final norm, head, embeddings and rotary module of a model.

    Parameters
    ----------
    model : torch.nn.Module
        A causal language model of transformers, or anything called in the same way.
    blocks : str, optional
        Dotted name of the block list, for a model whose structure is not understood.

    Returns
    -------
    DecoderParts
        Parts, verified by a forward pass over four tokens.

    Raises
    ------
    InputError
        When no list of modules passes the check; the message lists the candidates.
    """
    known, identity = _KNOWN.get(model, ("", 0))
    if known and blocks in (None, known):
        parts = _parts(model, known)
        if id(parts.blocks) == identity:
            return parts
    keep_layout(model)
    candidates = _candidates(model)
    names = [blocks] if blocks is not None else [name for name, _ in candidates]
    reasons: list[str] = []
    for name in names:
        try:
            parts = _parts(model, name)
            _verify(model, parts)
        except InputError as error:
            reasons.append(f"  {name}: {error}")
            continue
        _KNOWN[model] = (parts.blocks_name, id(parts.blocks))
        return parts
    raise InputError(_refusal(model, candidates, reasons))


def block_output(output: Any) -> torch.Tensor:
    """Return the residual stream from what a block returned (a tensor, or a tuple with it first).

    Parameters
    ----------
    output : torch.Tensor or tuple
        Return value of a block's forward.

    Returns
    -------
    torch.Tensor
        Hidden states, (batch, tokens, width).

    Raises
    ------
    InputError
        When there is no such tensor.
    """
    state = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(state, torch.Tensor) or state.ndim != 3:
        shape = tuple(state.shape) if isinstance(state, torch.Tensor) else type(state).__name__
        raise InputError(f"a block returned {shape}; expected a tensor (batch, tokens, width)")
    return state


def with_block_output(output: Any, state: torch.Tensor) -> Any:
    """Put `state` in the place that `block_output` reads, keeping the rest of the tuple."""
    return (state, *output[1:]) if isinstance(output, tuple | list) else state


def block_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return the hidden states a block was called with, by position or by keyword."""
    state = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(state, torch.Tensor):
        raise InputError("a block was called without hidden states as its first argument")
    return state


def text_config(model: nn.Module) -> Any:
    """Return the configuration of the text part of a model, or None when there is no config."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def device_of(model: nn.Module) -> torch.device:
    """Device on which the model expects its token ids."""
    return next(model.parameters()).device


def accepts(model: nn.Module, argument: str) -> bool:
    """Whether the model's forward names `argument` itself (BLOOM has no ``position_ids``)."""
    # An adapter around the model passes on whatever it is given.
    unwrap: Any = getattr(model, "get_base_model", None)
    inner = model if unwrap is None else unwrap()
    return argument in inspect.signature(inner.forward).parameters


def forward_arguments(model: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Keep the arguments that the model's forward takes, and switch its cache off.

    Parameters
    ----------
    model : torch.nn.Module
        The model to be called.
    tensors : dict
        ``input_ids``, ``attention_mask`` and perhaps ``position_ids``.

    Returns
    -------
    dict
        Keyword arguments.
    """
    arguments: dict[str, Any] = {k: v for k, v in tensors.items() if accepts(model, k)}
    if accepts(model, "use_cache"):
        arguments["use_cache"] = False
    return arguments


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run without gradients and dropout, then put every module back in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _candidates(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """Outermost module lists of one class, the most likely first."""
    found: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        nested = any(name.startswith(f"{outer}.") for outer, _ in found)
        if isinstance(module, nn.ModuleList) and len(module) and not nested:
            if len({type(block) for block in module}) == 1:
                found.append((name, module))
    depth = getattr(text_config(model), "num_hidden_layers", None)

    def likelihood(item: tuple[str, nn.ModuleList]) -> tuple[bool, bool, int]:
        name, module = item
        return (len(module) == depth, name.rpartition(".")[2] in BLOCK_NAMES, len(module))

    return sorted(found, key=likelihood, reverse=True)


def _parts(model: nn.Module, name: str) -> DecoderParts:
    try:
        blocks = model.get_submodule(name)
        owner = model.get_submodule(name.rpartition(".")[0])
    except AttributeError:
        raise InputError("there is no module of this name") from None
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        raise InputError(f"it is a {type(blocks).__name__}; expected a ModuleList with blocks")
    children = dict(owner.named_children())
    norms = [children[n] for n in NORM_NAMES if n in children]
    norms += [m for n, m in children.items() if "norm" in type(m).__name__.lower()]
    rotary = [m for m in children.values() if "rotary" in type(m).__name__.lower()]
    return DecoderParts(
        blocks=blocks,
        blocks_name=name,
        owner=owner,
        final_norm=norms[0] if norms else None,
        lm_head=_embeddings(model, "get_output_embeddings"),
        embedding=_embeddings(model, "get_input_embeddings"),
        rotary=rotary[0] if rotary else None,
        width=_width(model, blocks),
    )


def _width(model: nn.Module, blocks: nn.ModuleList) -> int:
    width = getattr(text_config(model), "hidden_size", None)
    if isinstance(width, int):
        return width
    # Without a config: the commonest length of one-dimensional weights is that of the norms.
    lengths = [p.shape[0] for p in blocks[0].parameters() if p.ndim == 1]
    if not lengths:
        raise InputError("its width is unknown: no config.hidden_size and no norm in the blocks")
    return max(set(lengths), key=lengths.count)


def _embeddings(model: nn.Module, getter: str) -> nn.Module | None:
    get = getattr(model, getter, None)
    try:
        module = get() if get is not None else None
    except NotImplementedError:
        return None
    return module if isinstance(module, nn.Module) else None


def _verify(model: nn.Module, parts: DecoderParts) -> None:
    """Run four tokens and check that the blocks carry the residual stream."""
    seen: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    result: list[torch.Tensor] = []
    handles = []
    chain = [(f"block {i}", block) for i, block in enumerate(parts.blocks)]
    if parts.final_norm is not None:
        chain.append(("the final norm", parts.final_norm))
    for label, module in chain:

        def read(_m: Any, args: Any, kwargs: Any, output: Any, label: str = label) -> None:
            seen.append((label, block_input(args, kwargs), block_output(output)))

        handles.append(module.register_forward_hook(read, with_kwargs=True))

    def read_result(_m: Any, _args: Any, output: Any) -> None:
        result.append(block_output(output[0] if not isinstance(output, torch.Tensor) else output))

    handles.append(parts.owner.register_forward_hook(read_result))
    ids = torch.arange(4, device=device_of(model)).unsqueeze(0) % _vocabulary(parts)
    try:
        with evaluating(model):
            tensors = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            model(**forward_arguments(model, tensors))
    finally:
        for handle in handles:
            handle.remove()
    _check_chain([label for label, _ in chain], seen)
    _check_result(parts, seen[-1][2], result)


def _vocabulary(parts: DecoderParts) -> int:
    weight = getattr(parts.embedding, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, torch.Tensor) else 4


def _check_chain(labels: list[str], seen: list[tuple[str, torch.Tensor, torch.Tensor]]) -> None:
    order = [label for label, _, _ in seen]
    if order != labels:
        raise InputError(f"they ran in the order {order[:8]}; expected each once, in order")
    for (_, _, before), (label, after, _) in pairwise(seen):
        if before.shape != after.shape or not _same(before, after):
            raise InputError(f"the input of {label} is not the output of the one before it")


def _check_result(parts: DecoderParts, last: torch.Tensor, result: list[torch.Tensor]) -> None:
    """Check that what the decoder returns is the output of the final norm."""
    if last.shape[-1] != parts.width:
        raise InputError(f"their outputs are {last.shape[-1]} wide; expected {parts.width}")
    # A projection may follow the final norm (OPT-350m): then the widths differ, nothing to compare.
    if result and result[-1].shape == last.shape and not _same(last, result[-1]):
        raise InputError("the decoder's result is not the output of its final norm")


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.is_meta or hasattr(a, "fake_mode"):  # a model made to plan with has no values
        return a.shape == b.shape
    return torch.equal(a, b.to(a.device)) or torch.allclose(a, b.to(a.device), equal_nan=True)


def _refusal(
    model: nn.Module, candidates: list[tuple[str, nn.ModuleList]], reasons: list[str]
) -> str:
    lists = [f"  {name} ({len(m)} x {type(m[0]).__name__})" for name, m in candidates]
    return "\n".join(
        [
            f"cannot find the decoder blocks of {type(model).__name__}: expected a ModuleList "
            "of blocks of one class, each given what the one before it returned",
            "candidates:" if lists else "candidates: none",
            *lists,
            *(["tried:", *reasons] if reasons else []),
            "name the right one with blocks='dotted.name.of.the.list'",
        ]
    )
