"""Language subspace manipulation: train a model to answer in the language it is asked in.

Importing this package does not import torch: every name is loaded on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
