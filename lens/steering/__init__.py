"""Steering without training: add a language step, or project a language out, inside a `with`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
