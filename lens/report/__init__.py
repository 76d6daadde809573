"""Turn a finished run into a page, a table and files; nothing here computes a result."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
