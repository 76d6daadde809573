"""Cached prefix states: run what is frozen once, train what is above it many times.

When only blocks ``first_block`` and up are trained, nothing below them ever changes. So each row
is sent through the whole frozen model once; the residual stream that enters the first trained
block and the reference outputs are kept, and every training step starts from there. No second
model is held and no frozen lower block runs again (``docs/training.md``).
"""

from lens.models.prefix.cache import PrefixCache
from lens.models.prefix.rows import Batch, CachedRow, pad_right

__all__ = ["Batch", "CachedRow", "PrefixCache", "pad_right"]
