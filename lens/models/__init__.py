"""Load a decoder, find its parts by structure, encode text for it and capture its states.

Importing this package does not import torch: every name is loaded on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
