"""Run a model with some of its blocks left out, and states put in where they would have come from.

Position data and masks are then made by the model's own code, hence right for every architecture.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lens.models.blocks import with_block_output


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
