"""Load a decoder, find its parts by structure, encode text for it and capture its states.

Importing this package does not import torch: every name is loaded on first use.
"""

from importlib import import_module
from typing import Any

_NAMES = {
    "Batch": "chat",
    "CaptureResult": "capturing",
    "ChatOptions": "chat",
    "DecoderParts": "blocks",
    "EncodedRow": "chat",
    "capture": "capturing",
    "encode": "chat",
    "encode_prompts": "chat",
    "load": "loading",
    "locate": "blocks",
    "pad": "chat",
    "resolve_layers": "sites",
    "resolve_sites": "sites",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    """Import a public function the first time it is asked for (PEP 562)."""
    if name not in _NAMES:
        raise AttributeError(f"module 'lens.models' has no attribute '{name}'")
    return getattr(import_module(f"lens.models.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    """Names offered to completion in a notebook."""
    return list(__all__)
