"""What a decoder block returns: a tensor, or a tuple that starts with it."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def hidden_of(output: Any) -> Tensor:
    """Hidden states (n, t, d) in a block's output."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """A block's output with its hidden states replaced, in the same form."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
