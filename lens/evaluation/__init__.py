"""Measure a model: fidelity, in-language accuracy and pivot drift, each with n and an interval.

``generate`` answers prompts, ``identifier`` names the language of an answer, ``outcomes`` and
``score`` turn both into numbers with 95 % intervals, ``pivot_kl`` says how far the pivot moved.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
