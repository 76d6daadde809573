"""Apply rules to a running model through hooks that are gone when the `with` block ends."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lens.errors import InputError
from lens.models.architecture import DecoderParts, block_output, locate, with_block_output
from lens.models.layers import resolve_layers
from lens.models.offload import require_whole
from lens.steering.policy import Rule


@dataclass(slots=True)
class _Phase:
    """Whether the model is reading a prompt or a token it has generated."""

    generating: bool = False


@dataclass(slots=True)
class _Step:
    """One rule at one block; its array is kept on each device it is needed on."""

    rule: Rule
    phase: _Phase
    arrays: dict[tuple[torch.device, torch.dtype], torch.Tensor] = field(default_factory=dict)

    def applies(self) -> bool:
        wanted = self.rule.tokens
        return wanted == "all" or (wanted == "generation") == self.phase.generating

    def __call__(self, state: torch.Tensor) -> torch.Tensor:
        """Change a state (batch, tokens, d), computing in float32 or wider."""
        narrow = state.dtype in (torch.float16, torch.bfloat16)
        wide = state.float() if narrow else state
        array = self._array(wide)
        if self.rule.method == "add":
            changed = wide + array
        else:
            changed = wide - self.rule.strength * ((wide @ array) @ array.T)
        if self.rule.preserve_norm:
            length = changed.norm(dim=-1, keepdim=True)
            # A state that became zero has no direction to stretch along.
            tiny = torch.finfo(changed.dtype).tiny
            changed = changed * (wide.norm(dim=-1, keepdim=True) / length.clamp_min(tiny))
        return changed.to(state.dtype)

    def _array(self, state: torch.Tensor) -> torch.Tensor:
        key = (state.device, state.dtype)
        if key not in self.arrays:
            rule = self.rule
            source = rule.basis if rule.vector is None else rule.strength * rule.vector
            self.arrays[key] = torch.as_tensor(source).to(device=key[0], dtype=key[1])
        return self.arrays[key]


@contextmanager
def steer(
    model: nn.Module, rules: Rule | Iterable[Rule], *, blocks: str | None = None
) -> Iterator[None]:
    """Steer a model inside a ``with`` block.

    Parameters
    ----------
    model : torch.nn.Module
        A decoder; its weights are not touched.
    rules : Rule or iterable of Rule
        Applied in order to the output of each block they name.
    blocks : str, optional
        Dotted name of the block list, when `lens.models.locate` cannot find it.

    Yields
    ------
    None
        The hooks are removed on exit, also after an exception.

    Raises
    ------
    InputError
        When a rule does not fit the model.

    Notes
    -----
    ``"add"``: h + a v. ``"project"``: h - a M M^T h. A strength of 0 leaves the forward pass as
    it is, to the bit. With a key-value cache a forward pass over one token after others is
    generation, everything else is the prompt; without a cache every pass reads the whole text
    again and all of it is the prompt.

    References
    ----------
    arXiv 2601.08331 (difference of means), arXiv 2505.15257 (projection).
    """
    require_whole(model)
    parts = locate(model, blocks=blocks)
    listed = [rules] if isinstance(rules, Rule) else list(rules)
    phase = _Phase()
    steps = _steps(listed, parts, phase)
    with ExitStack() as stack:
        if any(step.rule.tokens != "all" for found in steps.values() for step in found):
            # The decoder, not the model: adapters around a model generate with what is inside.
            watch = parts.owner.register_forward_pre_hook(_watch(phase), with_kwargs=True)
            stack.enter_context(watch)
        for layer, found in steps.items():
            stack.enter_context(parts.blocks[layer].register_forward_hook(_hook(found)))
        yield


def _steps(rules: list[Rule], parts: DecoderParts, phase: _Phase) -> dict[int, list[_Step]]:
    steps: dict[int, list[_Step]] = {}
    for number, rule in enumerate(rules, start=1):
        if not isinstance(rule, Rule):
            raise InputError(
                f"rule {number} is a {type(rule).__name__}; expected Rule "
                "(a Policy becomes rules by policy.resolve(space) or space.steer(model, policy))"
            )
        if rule.width != parts.width:
            raise InputError(
                f"rule {number} is made for width {rule.width}; the model has {parts.width}"
            )
        for layer in resolve_layers(rule.layers, len(parts.blocks)):
            if rule.strength != 0:
                steps.setdefault(layer, []).append(_Step(rule, phase))
    return steps


def _hook(steps: list[_Step]) -> Callable[[Any, Any, Any], Any]:
    def change(_module: Any, _args: Any, output: Any) -> Any:
        active = [step for step in steps if step.applies()]
        if not active:
            return output
        state = block_output(output)
        for step in active:
            state = step(state)
        return with_block_output(output, state)

    return change


def _watch(phase: _Phase) -> Callable[[Any, Any, dict[str, Any]], None]:
    def note(_module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        cache: Any = kwargs.get("past_key_values")
        seen = cache.get_seq_length() if hasattr(cache, "get_seq_length") else 0
        tokens = args[0] if args else kwargs.get("input_ids")
        if tokens is None:
            tokens = kwargs.get("inputs_embeds")
        length = tokens.shape[1] if isinstance(tokens, torch.Tensor) else 0
        phase.generating = int(seen) > 0 and length == 1

    return note
