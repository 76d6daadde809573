"""The language space: statistics of a model's states per site and language, and what they give."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
