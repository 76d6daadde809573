"""How sure a language subspace is: bootstrap, permutation null and choice of rank.

All of it works on one N x N matrix of inner products of the pooled states of a site; no refit looks
at the states again, so its cost does not depend on their width.
"""

from lens.resample.grams import Gram, gram, gram_batch
from lens.resample.nulls import NullSpectrum, permutation_spectrum
from lens.resample.ranks import RankChoice, choose_rank
from lens.resample.refits import BootstrapResult, StabilityCurve, bootstrap, stability_curve

__all__ = [
    "BootstrapResult",
    "Gram",
    "NullSpectrum",
    "RankChoice",
    "StabilityCurve",
    "bootstrap",
    "choose_rank",
    "gram",
    "gram_batch",
    "permutation_spectrum",
    "stability_curve",
]
