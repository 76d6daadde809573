"""Find, train, steer and measure the languages inside a language model.

Everything is loaded on first use, so that ``import lens`` costs almost nothing and never
imports NumPy, torch or transformers by itself.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
