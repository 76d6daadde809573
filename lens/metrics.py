"""Measures of pooled states: alignment of translations, and separability of languages.

The two look at the same states from opposite sides. Neither is a measure of a model's answers.
NumPy arrays or CPU torch tensors in; tensors on another device are refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lens import _core
from lens.arrays import (
    BF16,
    Array,
    ArrayIn,
    Block,
    Float64,
    Result,
    block,
    core_errors,
    same,
    threads,
    whole,
)
from lens.errors import DtypeError, InputError, LensError, ShapeError

__all__ = [
    "MexaLayersResult",
    "MexaResult",
    "SeparabilityResult",
    "mexa",
    "mexa_layers",
    "separability",
]


@dataclass(frozen=True, slots=True)
class MexaResult(Result):
    """Alignment of sentences with their translations at one layer.

    Attributes
    ----------
    score : float
        Share of the sentences that are nearest to their own translation, both ways.
    n : int
        Sentences.
    null : numpy.ndarray (permutations,)
        Scores when translations are dealt out at random.
    variance : float
        Variance between the sentences of ``other``: mean over coordinates, divisor n - 1. Cosine
        does not see a collapse of states; this does.
    pivot_variance : float
        The same of ``pivot``.
    """

    score: float
    n: int
    null: Float64
    variance: float
    pivot_variance: float

    @property
    def p_value(self) -> float:
        """Permutation p-value, (1 + how many of the null reach the score) / (1 + permutations)."""
        return float((1 + (self.null >= self.score).sum()) / (1 + len(self.null)))


def _moments(x: Array, code: int, name: str, n_threads: int) -> tuple[Float64, float]:
    """Mean of the rows, and the mean over coordinates of their variance."""
    mean, m2 = np.empty(x.shape[1]), np.empty(x.shape[1])
    n_threads = n_threads if x.size >= 1 << 20 else 1  # starting one would take longer
    with core_errors(**{name: x}):
        _core.moments_update(mean, m2, None, None, x, 0, code, n_threads)
    return mean, float(m2.mean() / max(len(x) - 1, 1))


def _check_directions(x: Block, name: str) -> None:
    zero = ~x.data.any(axis=1) if x.code != BF16 else ~(x.data & 0x7FFF).any(axis=1)
    if zero.any():
        raise InputError(
            f"{name}: row {int(zero.argmax())} is zero and has no direction; expected none such"
        )


def mexa(
    pivot: ArrayIn,
    other: ArrayIn,
    *,
    permutations: int = 1000,
    seed: int = 0,
    n_threads: int | None = 1,
    dtype: str | None = None,
) -> MexaResult:
    """Share of sentences whose nearest neighbour is their own translation, at one layer.

    Parameters
    ----------
    pivot : array (n, d), float32, float64, float16 or bfloat16
        Pooled states of n sentences in the pivot; MEXA pools with ``mode="weighted"``.
    other : array (n, d), same dtype
        The same sentences in another language, row by row.
    permutations : int
        How many random pairings the null has.
    seed : int
        Seed of these pairings.
    n_threads : int, optional
        Threads to use, None for the CPUs of this process; any number gives the same bits.
    dtype : {"bfloat16"}, optional
        Needed when pivot is raw uint16.

    Returns
    -------
    MexaResult

    Raises
    ------
    ShapeError, DtypeError
        If the arrays do not fit together, or there are fewer than 2 sentences.
    InputError
        If a state is not finite, or zero.

    Notes
    -----
    With s the cosines, sentence i counts when s[i,i] is strictly the largest of its row and of its
    column; equal states tie. s is taken block by block in float32 (float64 for float64 states) and
    never held as a whole, nor are states of length 1. Blocks come from BLAS; where its rounding
    could decide, fixed sums do, so the score does not depend on the BLAS.

    References
    ----------
    MEXA, arXiv:2410.05873.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.eye(4)
    >>> mexa(x, 2 * x).score
    1.0
    """
    a = block(pivot, "pivot", ndim=2, dtype=dtype)
    n, d = a.data.shape
    if n < 2 or d < 1:
        raise ShapeError(f"pivot: shape {a.data.shape}, expected at least 2 rows and 1 column")
    b = same(other, a, "other", "pivot", dtype=dtype)
    permutations, t = whole(permutations, "permutations", 0), threads(n_threads)
    seed = whole(seed, "seed", 0)
    pivot_variance = _moments(a.data, a.code, "pivot", t)[1]
    variance = _moments(b.data, b.code, "other", t)[1]
    row_best, column_best = np.empty(n, np.uint64), np.empty(n, np.uint64)
    try:
        with core_errors():
            _core.match_rows(row_best, column_best, a.data, b.data, a.code, t)
    except InputError:
        _check_directions(a, "pivot")  # names the row
        _check_directions(b, "other")
        raise
    score, null = _score(row_best, column_best, permutations, seed)
    return MexaResult(score, n, null, variance, pivot_variance)


def _score(
    row_best: Array, column_best: Array, permutations: int, seed: int
) -> tuple[float, Float64]:
    """Score of the best places of rows and columns (n: a tie), and of random pairings."""
    n = len(row_best)
    # A pairing counts where both agree, so a random one needs no cosine.
    back = np.append(column_best.astype(np.intp), n)[row_best.astype(np.intp)]
    mutual = np.where(back == np.arange(n), row_best, n).astype(np.intp)
    rng = np.random.default_rng(seed)
    null = np.array([np.mean(mutual == rng.permutation(n)) for _ in range(permutations)])
    return float(np.mean(mutual == np.arange(n))), null


@dataclass(frozen=True, slots=True)
class MexaLayersResult(Result):
    """Alignment over the layers of a model.

    Attributes
    ----------
    layers : tuple of MexaResult
        One a layer; their nulls pair the same sentences, so that nulls can be averaged.
    """

    layers: tuple[MexaResult, ...]

    @property
    def mean(self) -> float:
        """Mean of the scores."""
        return float(np.mean([x.score for x in self.layers]))

    @property
    def max(self) -> float:
        """Largest of the scores."""
        return max(x.score for x in self.layers)

    @property
    def p_mean(self) -> float:
        """Permutation p-value of the mean."""
        null = np.mean([x.null for x in self.layers], axis=0)
        return float((1 + (null >= self.mean).sum()) / (1 + len(null)))

    @property
    def p_max(self) -> float:
        """Permutation p-value of the largest, which takes the choice of a layer into account."""
        null = np.max([x.null for x in self.layers], axis=0)
        return float((1 + (null >= self.max).sum()) / (1 + len(null)))


def mexa_layers(
    pivot: ArrayIn,
    other: ArrayIn,
    *,
    permutations: int = 1000,
    seed: int = 0,
    n_threads: int | None = 1,
    dtype: str | None = None,
) -> MexaLayersResult:
    """`mexa` at every layer, with the null of the mean and of the maximum over layers.

    Parameters
    ----------
    pivot : array (layers, n, d) or sequence of arrays (n, d)
        Pooled states of n sentences in the pivot, layer by layer.
    other : array (layers, n, d) or sequence of arrays (n, d)
        The same sentences in another language.
    permutations, seed, n_threads, dtype
        As in `mexa`; every layer meets the same random pairings.

    Returns
    -------
    MexaLayersResult

    Raises
    ------
    ShapeError, DtypeError, InputError
        As in `mexa`, naming the layer; or if there are no layers, or numbers of them differ.

    References
    ----------
    MEXA, arXiv:2410.05873.
    """
    for name, layers in (("pivot", pivot), ("other", other)):
        if not hasattr(layers, "__len__") or not hasattr(layers, "__getitem__"):
            raise DtypeError(
                f"{name}: got {type(layers).__name__}, expected an array (layers, n, d) or a "
                "sequence of arrays (n, d)"
            )
    if len(pivot) == 0:
        raise ShapeError("pivot: no layers, expected at least 1")
    if len(other) != len(pivot):
        raise ShapeError(f"other: {len(other)} layers, expected {len(pivot)} as pivot has")
    found = []
    for layer, (a, b) in enumerate(zip(pivot, other, strict=True)):
        try:
            one = mexa(a, b, permutations=permutations, seed=seed, n_threads=n_threads, dtype=dtype)
        except LensError as error:
            raise type(error)(f"layer {layer}: {error}") from None
        found.append(one)
    return MexaLayersResult(tuple(found))


@dataclass(frozen=True, slots=True)
class SeparabilityResult(Result):
    """Accuracy of assigning held-out states to the language with the nearest mean.

    Attributes
    ----------
    accuracy : float
        Share of all held-out states given the right language.
    n : int
        Held-out states; every state is held out once.
    languages : tuple of str
        In the order of ``confusion``.
    confusion : numpy.ndarray (languages, languages), int64
        States of the language of a row that were given the language of a column.
    """

    accuracy: float
    n: int
    languages: tuple[str, ...]
    confusion: Array


def _states(states: Mapping[str, ArrayIn], dtype: str | None) -> dict[str, Block]:
    if not isinstance(states, Mapping) or len(states) < 2:
        raise InputError("states_by_language: expected a mapping of at least 2 languages to arrays")
    blocks: dict[str, Block] = {}
    for name, x in states.items():
        found = blocks[name] = block(x, name, ndim=2, dtype=dtype)
        first = next(iter(blocks.values()))
        n, d = found.data.shape
        if n < 2 or d < 1 or d != first.data.shape[1]:
            width = "at least 1" if found is first else first.data.shape[1]
            raise ShapeError(
                f"{name}: shape {(n, d)}, expected at least 2 rows and {width} columns"
            )
        if found.code != first.code:
            raise DtypeError(
                f"{name}: {found.dtype_name}, expected {first.dtype_name} as in the first language"
            )
    return blocks


def separability(
    states_by_language: Mapping[str, ArrayIn],
    *,
    folds: int = 5,
    n_threads: int | None = 1,
    dtype: str | None = None,
) -> SeparabilityResult:
    """Held-out accuracy of telling languages apart by the nearest mean, at one layer.

    Parameters
    ----------
    states_by_language : mapping of str to array (n, d)
        Pooled states of each language, of one dtype: float32, float64, float16 or bfloat16. Row i
        is the same sentence in every language; numbers of rows may differ.
    folds : int
        Row i is held out with all rows of the same i mod folds, in every language, so that no
        translation of a held-out sentence is learned from.
    n_threads, dtype
        As in `mexa`.

    Returns
    -------
    SeparabilityResult

    Raises
    ------
    ShapeError, DtypeError
        If the arrays do not fit together, or a language has fewer than 2 rows.
    InputError
        If there are fewer than 2 languages or 2 folds, or a state is not finite.

    Notes
    -----
    Means are taken in float64; distances are Euclidean, in float32 (float64 for float64 states);
    equal distances go to the first language.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.arange(6.0).reshape(3, 2)
    >>> separability({"eng_Latn": x, "deu_Latn": x + 100}).accuracy
    1.0
    """
    blocks = _states(states_by_language, dtype)
    folds, t = whole(folds, "folds", 2), threads(n_threads)
    for name, x in blocks.items():
        _moments(x.data, x.code, name, t)  # finite? the message counts rows as the caller does
    confusion = np.zeros((len(blocks), len(blocks)), np.int64)
    for fold in range(min(folds, max(len(x.data) for x in blocks.values()))):
        kept = {
            name: np.ascontiguousarray(x.data[np.arange(len(x.data)) % folds != fold])
            for name, x in blocks.items()
        }
        means = np.stack([_moments(kept[name], x.code, name, t)[0] for name, x in blocks.items()])
        for truth, (name, x) in enumerate(blocks.items()):
            held = np.ascontiguousarray(x.data[fold::folds])
            label = np.empty(len(held), np.uint64)
            try:
                _core.nearest_mean(label, held, means.astype(x.accumulator), x.code, t)
            except ValueError:  # every value is finite, so it is the square of one that is not
                raise InputError(
                    f"{name}: a squared distance overflows {x.accumulator}; scale the states down"
                ) from None
            confusion[truth] += np.bincount(label.astype(np.intp), minlength=len(blocks))
    total = int(confusion.sum())
    return SeparabilityResult(float(np.trace(confusion) / total), total, tuple(blocks), confusion)
