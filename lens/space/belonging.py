"""Whether a space belongs to the model and the tokenizer it is about to be used with."""

from __future__ import annotations

from typing import Any

from lens.errors import InputError
from lens.space.about import About, model_difference, same_model


def check_model(about: About, width: int, model: Any) -> None:
    """Raise InputError when a model is not the recorded one, or of another width."""
    from lens.models.fingerprint import model_fingerprint  # needs torch, a space does not

    found = model_fingerprint(model)
    if not about.model:
        if found["hidden_size"] not in (None, width):
            raise InputError(f"this space has width {width}, the model has {found['hidden_size']}")
        return
    if not same_model(about.model, found):
        difference = model_difference(about.model, found)
        raise InputError(
            f"this space was read from another model: {difference} (the space's, then this "
            "model's); probe this model, or load the one the space belongs to"
        )


def check_tokenizer(about: About, tokenizer: Any) -> None:
    """Raise InputError when a tokenizer is not the recorded one."""
    from lens.models.fingerprint import tokenizer_sha256

    expected = about.tokenizer_sha256
    if expected is not None and tokenizer_sha256(tokenizer) != expected:
        raise InputError(
            "this space was read with another tokenizer: its vocabulary, merges or "
            "normalisation differ; probe with this one, or load the one it was read with"
        )
