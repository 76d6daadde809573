"""The Gram matrix of the pooled states of a site."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lens import _core
from lens.arrays import (
    Array,
    ArrayIn,
    Block,
    Float64,
    Result,
    block,
    core_errors,
    is_tensor,
    threads,
)
from lens.errors import DtypeError, InputError, ShapeError


@dataclass(frozen=True, slots=True)
class Gram(Result):
    """Inner products of the pooled states of all languages at one site.

    Rows come one language after the other; y is a state less the mean of all N states.

    Attributes
    ----------
    matrix : numpy.ndarray (N, N)
        y_i . y_k.
    drift : numpy.ndarray (N,)
        y_i . mean, which M_a needs.
    mean : numpy.ndarray (d,)
        Mean of all states.
    counts : numpy.ndarray (L,), int64
        Rows of each language.
    languages : tuple of str
        Their names, in the order of the rows.
    """

    matrix: Float64
    drift: Float64
    mean: Float64
    counts: Array
    languages: tuple[str, ...]

    @property
    def starts(self) -> Array:
        """First row of each language, shape (L,)."""
        return np.cumsum(self.counts) - self.counts


def gram(
    states: Mapping[str, ArrayIn] | Sequence[ArrayIn] | ArrayIn,
    *,
    languages: Sequence[str] | None = None,
    n_threads: int | None = None,
    dtype: str | None = None,
) -> Gram:
    """Inner products of the pooled states of one site: all that resampling needs of them.

    Parameters
    ----------
    states : mapping or sequence of arrays (n_l, d), or array (L, n, d)
        Pooled states of each language, of one dtype: float32, float64, float16 or bfloat16. An
        array is read in place; separate arrays are first put together in their own dtype.
    languages : sequence of str, optional
        Names, unless states is a mapping.
    n_threads : int, optional
        Threads to use, by default the CPUs of this process; any number gives the same bits.
    dtype : {"bfloat16"}, optional
        Needed when states are raw uint16.

    Returns
    -------
    Gram

    Raises
    ------
    ShapeError, DtypeError
        If the arrays do not fit together.
    InputError
        If there are fewer than 2 languages, a language has fewer than 2 rows, or a state is not
        finite: the message names language, row and column.

    Notes
    -----
    Accumulated in float64, 512 columns at a time, since activations are massive in a few
    coordinates: N^2 d multiplications, N^2 float64 of memory and no float64 copy of the states.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[0.0, 1.0], [0.0, 3.0]])
    >>> gram({"eng_Latn": x, "deu_Latn": x + 1}).matrix.round(2).tolist()[0]
    [2.5, -0.5, 0.5, -2.5]
    """
    names: Sequence[str] | None = languages
    if isinstance(states, Mapping):
        if languages is not None:
            raise InputError("languages: given, but states is a mapping that names them already")
        names, states = [str(name) for name in states], list(states.values())
    if isinstance(states, np.ndarray) or is_tensor(states):
        x = block(states, "states", ndim=3, dtype=dtype)
        counts = np.full(x.data.shape[0], x.data.shape[1], dtype=np.int64)
        named = _names(names, len(counts))
        _check(counts, named)
        rows = x.data.reshape(int(counts.sum()), x.data.shape[2])
    elif isinstance(states, Sequence) and not isinstance(states, str | bytes):
        named = _names(names, len(states))
        blocks = _blocks(list(states), named, dtype)
        counts = np.array([len(b.data) for b in blocks], dtype=np.int64)
        _check(counts, named)
        x, rows = blocks[0], np.concatenate([b.data for b in blocks])
    else:
        raise DtypeError(
            f"states: got {type(states).__name__}, expected a mapping or sequence of arrays "
            "(n, d), or an array (L, n, d)"
        )
    return _grams(rows[None], x.code, counts, named, n_threads)[0]


def gram_batch(
    states: ArrayIn,
    *,
    languages: Sequence[str] | None = None,
    n_threads: int | None = None,
    dtype: str | None = None,
) -> tuple[Gram, ...]:
    """Inner products of several sites at once.

    Parameters
    ----------
    states : array (S, L, n, d), float32, float64, float16 or bfloat16
        Pooled states of n rows of each language at each site.
    languages, n_threads, dtype
        As in `gram`.

    Returns
    -------
    tuple of Gram
        One a site; together S (L n)^2 float64.

    Raises
    ------
    ShapeError, DtypeError, InputError
        As in `gram`; the message names the site by its index.
    """
    x = block(states, "states", ndim=4, dtype=dtype)
    S, L, n, d = x.data.shape
    counts = np.full(L, n, dtype=np.int64)
    named = _names(languages, L)
    _check(counts, named)
    return _grams(x.data.reshape(S, L * n, d), x.code, counts, named, n_threads)


def _names(languages: Sequence[str] | None, L: int) -> tuple[str, ...]:
    if languages is None:
        return tuple(f"language {i}" for i in range(L))
    names = tuple(str(name) for name in languages)
    if len(names) != L:
        raise ShapeError(f"languages: {len(names)} names, expected {L} as states has languages")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"languages: {', '.join(twice)} given more than once; expected every language once"
        )
    return names


def _check(counts: Array, names: tuple[str, ...]) -> None:
    if len(counts) < 2:
        raise InputError(
            f"states: {len(counts)} language{'s' if len(counts) != 1 else ''}, expected at least 2"
        )
    few = [f"{name} {n}" for name, n in zip(names, counts.tolist(), strict=True) if n < 2]
    if few:
        raise InputError(
            f"states: too few rows ({', '.join(few)}); expected at least 2 in each language, "
            "because resampling one row says nothing about its spread"
        )


def _blocks(states: list[ArrayIn], names: tuple[str, ...], dtype: str | None) -> list[Block]:
    blocks: list[Block] = []
    for name, x in zip(names, states, strict=True):
        found = block(x, name, ndim=2, dtype=dtype)
        blocks.append(found)
        if found.data.shape[1] != blocks[0].data.shape[1]:
            raise ShapeError(
                f"{name}: shape {found.data.shape}, expected {blocks[0].data.shape[1]} columns as "
                f"{names[0]} has"
            )
        if found.code != blocks[0].code:
            raise DtypeError(
                f"{name}: {found.dtype_name}, expected {blocks[0].dtype_name} as {names[0]} has"
            )
    return blocks


def _grams(
    X: Array, code: int, counts: Array, names: tuple[str, ...], n_threads: int | None
) -> tuple[Gram, ...]:
    """Grams of X (S, N, d)."""
    S, N, d = X.shape
    if d < 1:
        raise ShapeError(f"states: width {d}, expected at least 1")
    matrix, drift, mean = np.empty((S, N, N)), np.empty((S, N)), np.empty((S, d))
    try:
        with core_errors():
            _core.resample_gram(matrix, drift, mean, X, code, threads(n_threads))
    except InputError as error:
        _raise_nonfinite(X, code, counts, names)
        raise InputError(f"states: their squares overflow float64; scale them ({error})") from None
    return tuple(Gram(matrix[s], drift[s], mean[s], counts, names) for s in range(S))


def _raise_nonfinite(X: Array, code: int, counts: Array, names: tuple[str, ...]) -> None:
    exact = np.empty(X.shape[2], np.float32)
    for s, site in enumerate(X):
        for i, row in enumerate(site):
            values = row
            if row.dtype == np.uint16:
                _core.dtype_load(exact, row, code)
                values = exact
            bad = np.flatnonzero(~np.isfinite(values))
            if len(bad):
                language = int(np.searchsorted(np.cumsum(counts), i, side="right"))
                at = f"site {s}, " if len(X) > 1 else ""
                raise InputError(
                    f"states: NaN or infinite value in {at}{names[language]}, row "
                    f"{i - int(counts[:language].sum())}, column {int(bad[0])}; expected finite "
                    "numbers"
                )
