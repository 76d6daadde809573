"""Merge checkpoints of any size: abilities and languages in weight space (MAEC, arXiv 2410.07825).

A merge is planned from headers, streamed chunk by chunk in bounded memory, can be interrupted and
resumed to the same bytes, and verified afterwards. torch is not needed.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
