"""Next-token logits from final states, as the model itself computes them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lens.errors import InputError
from lens.models.blocks import DecoderParts


def logits(model: Any, parts: DecoderParts, states: Tensor) -> Tensor:
    """Apply the output head, and the scaling or capping that some families put behind it.

    Parameters
    ----------
    model : PreTrainedModel
        Its config says what follows the head.
    parts : DecoderParts
        What `lens.models.locate` returned for it.
    states : Tensor
        States after the final norm, shape (..., d).

    Returns
    -------
    Tensor
        Logits, shape (..., vocabulary), float32.

    Raises
    ------
    InputError
        If the model has no output head.

    Notes
    -----
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
