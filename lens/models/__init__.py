"""Load a decoder, find its parts by structure, encode text for it and capture its states.

Importing this package does not import torch: every name is loaded on first use.
"""

from typing import TYPE_CHECKING

from lens._lazy import lazy

if TYPE_CHECKING:  # for type checkers and editors: the same names, at no cost at run time
    from lens.models.blocks import DecoderParts as DecoderParts
    from lens.models.blocks import locate as locate
    from lens.models.capturing import CaptureResult as CaptureResult
    from lens.models.capturing import capture as capture
    from lens.models.chat import Batch as Batch
    from lens.models.chat import ChatOptions as ChatOptions
    from lens.models.chat import EncodedRow as EncodedRow
    from lens.models.chat import encode as encode
    from lens.models.chat import encode_prompts as encode_prompts
    from lens.models.chat import pad as pad
    from lens.models.loading import load as load
    from lens.models.sites import resolve_layers as resolve_layers
    from lens.models.sites import resolve_sites as resolve_sites

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

__getattr__, __dir__, __all__ = lazy(__name__, _NAMES)
