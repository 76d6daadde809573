"""Neurons that speak one language: counting when gates are open, and choosing by entropy.

Language activation probability entropy (LAPE). A neuron here is one gate of an MLP, after the
activation function; it is open on a token when its value is above zero. Tensors on another device
than the CPU are refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lens import _core
from lens.arrays import (
    Array,
    ArrayIn,
    Float64,
    Result,
    block,
    core_errors,
    mask01,
    require_cpu,
    threads,
    whole,
)
from lens.errors import DtypeError, InputError, ShapeError

__all__ = [
    "CountResult",
    "Counts",
    "LapeResult",
    "lape",
]

UInt64 = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class CountResult(Result):
    """How often each gate was open.

    Attributes
    ----------
    tokens : int
        Tokens seen.
    positive : numpy.ndarray (neurons,), uint64
        On how many of them each gate was above zero.
    """

    tokens: int
    positive: UInt64


class Counts:
    """Count on how many tokens each gate of one layer is open, in batches.

    Parameters
    ----------
    neurons : int
        Gates of the layer.

    Examples
    --------
    >>> import numpy as np
    >>> counts = Counts(2)
    >>> counts.update(np.array([[0.5, -1.0], [0.25, 2.0]]))
    >>> counts.result().to_dict()
    {'tokens': 2, 'positive': [2, 1]}
    """

    __slots__ = ("_positive", "_tokens", "neurons")

    def __init__(self, neurons: int) -> None:
        self.neurons = whole(neurons, "neurons", 1)
        self._tokens = 0
        self._positive = np.zeros(self.neurons, np.uint64)

    def update(
        self,
        gates: ArrayIn,
        mask: ArrayIn = None,
        *,
        dtype: str | None = None,
        n_threads: int | None = 1,
    ) -> None:
        """Count a batch; if it is refused, nothing is counted.

        Parameters
        ----------
        gates : array (t, neurons) or (n, t, neurons), float32, float64, float16 or bfloat16
            Values of the gates.
        mask : array (t,) or (n, t), bool or integer, optional
            1 for a real token, 0 for padding, which is not read. Default: every token is real.
        dtype : {"bfloat16"}, optional
            Needed when gates is raw uint16.
        n_threads : int, optional
            Threads to use, None for the CPUs of this process; any number counts the same.

        Raises
        ------
        ShapeError, DtypeError
            If the arrays do not fit together.
        InputError
            If a real token holds NaN; the message names the token, counted through all rows of
            the batch, and the neuron. Infinity is above zero.
        """
        x = block(gates, "gates", dtype=dtype)
        data, code, shape = x.data, x.code, x.data.shape
        if len(shape) not in (2, 3) or shape[-1] != self.neurons:
            raise ShapeError(
                f"gates: shape {shape}, expected (tokens, {self.neurons}) or (rows, tokens, "
                f"{self.neurons})"
            )
        m = None if mask is None else mask01(mask, "mask", shape[:-1]).reshape(-1)
        rows = data.reshape(-1, self.neurons)
        out = np.empty_like(self._positive)
        with core_errors(gates=rows):
            _core.neuron_count(out, self._positive, rows, m, code, threads(n_threads))
        self._positive = out
        self._tokens += len(rows) if m is None else int(m.sum(dtype=np.int64))

    def merge(self, other: "Counts") -> None:
        """Add the counts of other tokens of the same layer; ``other`` stays as it is."""
        if not isinstance(other, Counts):
            raise DtypeError(f"other: got {type(other).__name__}, expected Counts")
        if other.neurons != self.neurons:
            raise ShapeError(f"other: {other.neurons} neurons, expected {self.neurons}")
        self._positive = self._positive + other._positive
        self._tokens += other._tokens

    def result(self) -> CountResult:
        """Return the counts so far, as a copy."""
        return CountResult(self._tokens, self._positive.copy())


@dataclass(frozen=True, slots=True)
class LapeResult(Result):
    """Activation probabilities, their entropy, and the neurons chosen for each language.

    Attributes
    ----------
    threshold : float
        The probability tau that a gate's must exceed.
    probability : numpy.ndarray (languages, ...)
        Share of a language's tokens on which each gate is open.
    entropy : numpy.ndarray (...)
        Entropy in nats; infinite where no probability exceeds the threshold.
    members : numpy.ndarray (languages, ...), bool
        Whether a neuron was chosen and belongs to the language. It may belong to several.
    """

    threshold: float
    probability: Float64
    entropy: Float64
    members: NDArray[np.bool_]

    @property
    def indices(self) -> tuple[Array, ...]:
        """Neurons of each language, one array (number, dimensions) each; it may be empty."""
        return tuple(np.argwhere(mine) for mine in self.members)


def _counts_of(x: ArrayIn, name: str) -> UInt64:
    require_cpu(x, name)
    data = np.asarray(x)
    if data.dtype.kind not in "iu":
        raise DtypeError(f"{name}: dtype {data.dtype}, expected whole numbers")
    if data.size and data.min() < 0:
        raise InputError(f"{name}: holds {data.min()}, expected no negative number")
    return np.ascontiguousarray(data, dtype=np.uint64).reshape(data.shape)


def lape(
    counts: ArrayIn,
    tokens: ArrayIn | Sequence[int],
    *,
    quantile: float = 0.95,
    share: float = 0.01,
) -> LapeResult:
    """Choose the neurons that are open on few languages only.

    Parameters
    ----------
    counts : array (languages, ...), integer
        How often each gate was open, such as (languages, layers, neurons) from `Counts`.
    tokens : array (languages,), integer
        Tokens seen of each language, at least 1.
    quantile : float
        Which of all probabilities is the threshold: the round(quantile * K)-th smallest of K.
    share : float
        Choose round(share * number of neurons), those of lowest entropy.

    Returns
    -------
    LapeResult

    Raises
    ------
    ShapeError, DtypeError
        If the arrays do not fit together.
    InputError
        If a language has no tokens, a count exceeds them, or quantile or share is not between 0
        and 1.

    Notes
    -----
    p = counts / tokens, q = p / sum over languages, entropy = -sum q ln q with 0 ln 0 = 0. A neuron
    without any p above the threshold is never chosen, so fewer than the share may be. A chosen
    neuron belongs to *every* language with p above the threshold, and a language without neurons
    keeps its place. Equal entropies: the first neuron goes first. Halves round to even.

    References
    ----------
    Language-specific neurons, arXiv:2402.16438.

    Examples
    --------
    >>> result = lape([[9, 5, 1, 0], [0, 5, 1, 8]], [10, 10], quantile=0.5, share=0.5)
    >>> result.members.astype(int).tolist()
    [[1, 0, 0, 0], [0, 0, 0, 1]]
    """
    c, n = _counts_of(counts, "counts"), _counts_of(tokens, "tokens")
    if c.ndim < 2 or c.size == 0:
        raise ShapeError(f"counts: shape {c.shape}, expected (languages, ..., neurons), not empty")
    if n.shape != c.shape[:1]:
        raise ShapeError(f"tokens: shape {n.shape}, expected {c.shape[:1]}")
    for name, value in (("quantile", quantile), ("share", share)):
        if not 0 <= value <= 1:
            raise InputError(f"{name}: got {value!r}, expected a number from 0 to 1")
    flat = c.reshape(len(c), -1)
    p, raw, entropy = np.empty(flat.shape), np.empty(flat.shape[1]), np.empty(flat.shape[1])
    members = np.empty(flat.shape, np.uint8)
    rank, keep = max(1, round(quantile * flat.size)), round(share * flat.shape[1])
    with core_errors():
        _core.lape(p, raw, flat, n)
        tau = _core.lape_select(members, entropy, p, raw, rank, keep)
    return LapeResult(
        tau, p.reshape(c.shape), entropy.reshape(c.shape[1:]), members.view(bool).reshape(c.shape)
    )
