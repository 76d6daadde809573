"""Merge methods: one contract, one module for each family; a new module is found by itself."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
