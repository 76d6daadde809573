"""Singular values of the means under shuffled language labels."""

from dataclasses import dataclass

import numpy as np

from lens import _core
from lens.arrays import Array, Float64, Result, core_errors, threads, whole
from lens.resample.bootstrap import Refits, check_gram, require_parallel, spectra
from lens.resample.gram import Gram

_BLOCK = 256  # permutations drawn and computed at a time


@dataclass(frozen=True, slots=True)
class NullSpectrum(Result):
    """Singular values of the centred means, and of means of rows with shuffled labels.

    Attributes
    ----------
    singular_values : numpy.ndarray (L-1,)
        Observed, descending.
    null : numpy.ndarray (P, L-1)
        Under each permutation, descending.
    p_values : numpy.ndarray (L-1,)
        For each component, (1 + how many of the null reach it) / (1 + P).
    p_value : float
        The same for the variance between languages, the sum of the squares.
    """

    singular_values: Float64
    null: Float64
    p_values: Float64
    p_value: float

    def quantiles(self, q: float) -> Float64:
        """Quantile q, from 0 to 1, of the null of each component, shape (L-1,)."""
        out: Float64 = np.quantile(self.null, q, axis=0)
        return out


def permutation_spectrum(
    gram: Gram,
    *,
    n_permutations: int = 1000,
    joint: bool = True,
    seed: int = 0,
    n_threads: int | None = None,
) -> NullSpectrum:
    """Whether language labels carry anything: the spectrum when they are shuffled.

    Parameters
    ----------
    n_permutations : int
        Shuffles.
    joint : bool
        Whether rows are parallel: labels are then shuffled among the languages of each row, else
        over all rows.
    gram, seed, n_threads
        As in `lens.resample.bootstrap`; any number of threads gives the same bits.

    Returns
    -------
    NullSpectrum

    Raises
    ------
    InputError
        If ``joint`` is asked for with unequal numbers of rows, or an argument is out of range.

    Notes
    -----
    Shuffles come from NumPy's PCG64 generator, ``permuted`` within rows. With hundreds of rows
    nearly every component of a real model passes; the null is a gate, not a choice of rank. A
    strong language effect spreads over all components of the null, so the test of the later ones
    is conservative.

    Examples
    --------
    >>> import numpy as np
    >>> from lens.resample import gram, permutation_spectrum
    >>> x = np.random.default_rng(0).normal(size=(2, 50, 8))
    >>> x[1] += 1
    >>> permutation_spectrum(gram(x), n_permutations=99).p_value
    0.01
    """
    check_gram(gram)
    observed = Refits(gram, joint=False, n_threads=n_threads).singular_values()
    if joint:
        require_parallel(gram)
    P, t = whole(n_permutations, "n_permutations", 1), threads(n_threads)
    rng = np.random.default_rng(whole(seed, "seed", 0))
    L = len(gram.counts)
    null = np.empty((P, L - 1))
    for done in range(0, P, _BLOCK):
        labels = _shuffles(rng, gram, min(_BLOCK, P - done), joint)
        K = np.empty((len(labels), L, L))
        with core_errors():
            _core.resample_labels(K, gram.matrix, labels, t)
        null[done : done + len(labels)] = spectra(K, t)
    # Rounding must not break the tie of a shuffle that changes nothing.
    reached = null >= observed * (1 - 1e-9)
    total = (null**2).sum(1) >= (observed**2).sum() * (1 - 1e-9)
    return NullSpectrum(
        observed, null, (1 + reached.sum(0)) / (1 + P), float((1 + total.sum()) / (1 + P))
    )


def _shuffles(rng: np.random.Generator, gram: Gram, n: int, joint: bool) -> Array:
    """Labels (n, N) of the rows, in their order in the Gram."""
    L = len(gram.counts)
    if not joint:
        labels = np.repeat(np.arange(L, dtype=np.uint64), gram.counts)
        return rng.permuted(np.tile(labels, (n, 1)), axis=1)
    rows = int(gram.counts[0])
    drawn = rng.permuted(np.tile(np.arange(L, dtype=np.uint64), (n * rows, 1)), axis=1)
    return np.ascontiguousarray(drawn.reshape(n, rows, L).transpose(0, 2, 1)).reshape(n, L * rows)
