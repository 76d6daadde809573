"""Look into a language space: spectra, certainty, geometry, alignment, and what to make of them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
