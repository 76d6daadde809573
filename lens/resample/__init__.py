"""How sure a language subspace is: bootstrap, permutation null and choice of rank.

All of it works on one N x N matrix of inner products of the pooled states of a site; no refit looks
at the states again, so its cost does not depend on their width.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
