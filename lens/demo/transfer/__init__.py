"""An ability taught in English alone, carried to other languages by weights: the MAEC study."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
