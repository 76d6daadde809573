"""Locate the decoder blocks of any model by structure and verify them by a forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lens.errors import InputError
from lens.models.layers import block_index, resolve_sites
from lens.models.quantization import keep_layout

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
# Whether a token sees those after it, per model.
_AHEAD: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


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
        parts = parts_of(model, known)
        if id(parts.blocks) == identity:
            return parts
    keep_layout(model)
    found = candidates(model)
    names = [blocks] if blocks is not None else [name for name, _ in found]
    reasons: list[str] = []
    for name in names:
        try:
            parts = parts_of(model, name)
            verify(model, parts)
        except InputError as error:
            reasons.append(f"  {name}: {error}")
            continue
        remember(model, parts.blocks_name)
        return parts
    raise InputError(refusal(model, found, reasons))


def remember(model: nn.Module, name: str) -> None:
    """Note the verified block list of a model, for `locate`."""
    _KNOWN[model] = (name, id(model.get_submodule(name)))


def looks_ahead(model: nn.Module) -> bool:
    """Whether a token sees those after it, as in an encoder; known once the model was located."""
    return _AHEAD.get(model, False)


def find_direction(model: nn.Module, parts: DecoderParts) -> None:
    """Test whether a token sees those after it by changing the last of four tokens."""
    if model in _AHEAD:
        return
    first: list[torch.Tensor] = []

    def stop(_module: Any, _args: Any, output: Any) -> None:
        first.append(block_output(output)[0, 0])
        raise SeenError

    with parts.blocks[0].register_forward_hook(stop):
        for last in (3, 4):
            with evaluating(model), suppress(SeenError):
                run_tokens(model, parts, [0, 1, 2, last])
    if len(first) == 2 and type(first[0]) is torch.Tensor and not first[0].is_meta:
        _AHEAD[model] = not _same(first[0], first[1])


class SeenError(Exception):
    """Ends a forward pass early: what was wanted of it has been seen."""


def block_output(output: Any) -> torch.Tensor:
    """Residual stream (batch, tokens, width) that a block returned, alone or first in a tuple."""
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
    devices = (parameter.device for parameter in model.parameters())
    return next((device for device in devices if device.type != "meta"), torch.device("cpu"))


def accepts(model: nn.Module, argument: str) -> bool:
    """Whether the model's forward names `argument` itself (BLOOM has no ``position_ids``)."""
    # An adapter around the model passes on whatever it is given.
    unwrap: Any = getattr(model, "get_base_model", None)
    inner = model if unwrap is None else unwrap()
    return argument in inspect.signature(inner.forward).parameters


def forward_arguments(model: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Keep the arguments that the model's forward takes, and switch its cache off."""
    arguments: dict[str, Any] = {k: v for k, v in tensors.items() if accepts(model, k)}
    if looks_ahead(model):  # some encoders begin to count at another number: they do it themselves
        arguments.pop("position_ids", None)
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


def run_tokens(model: nn.Module, parts: DecoderParts, tokens: Sequence[int]) -> None:
    """Run one row of token ids, taken modulo the vocabulary, for the hooks that watch."""
    weight = getattr(parts.embedding, "weight", None)
    rows = int(weight.shape[0]) if isinstance(weight, Tensor) else 4
    ids = torch.tensor([list(tokens)], device=device_of(model)) % rows
    tensors = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    model(**forward_arguments(model, tensors))


def candidates(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
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


def parts_of(model: nn.Module, name: str) -> DecoderParts:
    """Parts of a model whose block list has a name, not verified."""
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


def verify(model: nn.Module, parts: DecoderParts) -> None:
    """Run four tokens and check that the blocks carry the residual stream."""
    find_direction(model, parts)
    seen: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    result: list[torch.Tensor] = []
    chain = [(f"block {i}", block) for i, block in enumerate(parts.blocks)]
    if parts.final_norm is not None:
        chain.append(("the final norm", parts.final_norm))

    def read(label: str) -> Any:
        def hook(_module: Any, args: Any, kwargs: Any, output: Any) -> None:
            seen.append((label, block_input(args, kwargs), block_output(output)))

        return hook

    def read_result(_module: Any, _args: Any, output: Any) -> None:
        result.append(block_output(output[0] if not isinstance(output, torch.Tensor) else output))

    with ExitStack() as stack:
        for label, module in chain:
            stack.enter_context(module.register_forward_hook(read(label), with_kwargs=True))
        stack.enter_context(parts.owner.register_forward_hook(read_result))
        with evaluating(model):
            run_tokens(model, parts, range(4))
    _check_chain([label for label, _ in chain], seen)
    _check_result(parts, seen[-1][2], result)


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


def refusal(model: nn.Module, found: list[tuple[str, nn.ModuleList]], reasons: list[str]) -> str:
    """Say that no list of a model will do, which there are, and why not."""
    lists = [f"  {name} ({len(m)} x {type(m[0]).__name__})" for name, m in found]
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


def site_module(parts: DecoderParts, site: str) -> torch.nn.Module:
    """Return the module whose output is a site's state; without a final norm, the last block."""
    index = block_index(site)
    if index is not None:
        return parts.blocks[index]
    return parts.final_norm if parts.final_norm is not None else parts.blocks[-1]


# Relative differences below the first are rounding, above the second a change.
_SAME, _DIFFERENT = 1e-5, 1e-3


@dataclass(frozen=True, slots=True)
class Insides:
    """Names of the children of a block that mix tokens, and of the others that hold matrices."""

    attention: tuple[str, ...]
    mlp: tuple[str, ...]


def insides(model: nn.Module, parts: DecoderParts, index: int) -> Insides:
    """Find attention and feed-forward part of block ``index`` by running it twice.

    Attention is what changes at the last token when the first one does. For BLOOM these are
    ``("self_attention",)`` and ``("mlp",)``; the feed-forward part of OPT is ``("fc1", "fc2")``.
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
    hook = block.register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append((args, dict(kwargs))), with_kwargs=True
    )
    with hook:
        run_tokens(model, parts, range(1, 5))
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

    with ExitStack() as stack:
        for name, child in children.items():
            stack.enter_context(child.register_forward_hook(note(name), with_kwargs=True))
        try:
            if args:
                block(hidden, *args[1:], **kwargs)
            else:
                block(**{**kwargs, "hidden_states": hidden})
        except InputError as error:
            kind = type(block).__name__
            raise InputError(f"a part of {kind} is unlike others: {error}") from None
    return seen


def _last(state: Tensor) -> Tensor:
    """State of the last token of a single row, (1, t, d) or (t, d)."""
    return state.reshape(-1, state.shape[-1])[-1].float().clone()


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max().clamp_min(1e-30))


def logits(model: Any, parts: DecoderParts, states: Tensor) -> Tensor:
    """Apply the output head, and the scaling or capping that some families put behind it.

    ``logit_scale`` (Cohere) multiplies, ``logits_scaling`` (Granite) divides, and with
    ``final_logit_softcapping`` c (Gemma) logits become c·tanh(logits/c).
    """
    if parts.lm_head is None:
        raise InputError(
            "the model has no output head, so it predicts no tokens; load it with "
            "AutoModelForCausalLM"
        )
    config = model.config.get_text_config()
    out: Tensor = parts.lm_head(states).float()
    scale = getattr(config, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)
    cap = getattr(config, "final_logit_softcapping", None)
    out = out if scale is None else out * scale
    out = out if divisor is None else out / divisor
    return out if cap is None else cap * (out / cap).tanh()


@dataclass(frozen=True, slots=True)
class Site:
    """A place where states can be read: the output of a module."""

    name: str
    module: str
    kind: str


@dataclass(frozen=True, slots=True)
class Description:
    """The structure that lens found in a model.

    Attributes
    ----------
    model, type : str
        Class of the model, and the type its config names.
    direction : str
        ``"decoder"``, or ``"encoder"`` where a token sees those after it.
    blocks : str
        Dotted name of the list of blocks.
    n_blocks, width, parameters : int
        Number of blocks, width of the residual stream, number of parameters.
    sites : tuple of Site
        In the order of the forward pass.
    """

    model: str
    type: str
    direction: str
    blocks: str
    n_blocks: int
    width: int
    parameters: int
    sites: tuple[Site, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values."""
        return asdict(self)

    def to_text(self) -> str:
        """Return a table for people to read."""
        size = f"{self.parameters / 1e6:.1f} M parameters"
        head = [
            f"{self.model} ({self.type}, {self.direction}), {size}",
            f"{self.n_blocks} blocks of width {self.width} in {self.blocks}",
        ]
        wide = max(len(site.name) for site in self.sites)
        names = max(len(site.module) for site in self.sites)
        rows = [f"  {s.name:<{wide}}  {s.module:<{names}}  {s.kind}" for s in self.sites]
        return "\n".join([*head, *rows])


def describe(model: nn.Module, *, blocks: str | None = None) -> Description:
    """Describe a model.

    Parameters
    ----------
    model : torch.nn.Module
        What `lens.models.load` returned, or any other; its weights are not looked at.
    blocks : str, optional
        Dotted name of the block list, when `lens.models.locate` cannot find it.

    Returns
    -------
    Description
        Blocks and sites.

    Raises
    ------
    InputError
        When the structure is not understood; the message lists the candidates.
    """
    parts = locate(model, blocks=blocks)
    names = {id(module): name for name, module in model.named_modules()}
    found = []
    for site in resolve_sites("all", len(parts.blocks)):
        module = site_module(parts, site)
        found.append(Site(site, names[id(module)], type(module).__name__))
    config: Any = getattr(model, "config", None)
    return Description(
        model=type(model).__name__,
        type=str(getattr(config, "model_type", "unknown")),
        direction="encoder" if looks_ahead(model) else "decoder",
        blocks=parts.blocks_name,
        n_blocks=len(parts.blocks),
        width=parts.width,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        sites=tuple(found),
    )
