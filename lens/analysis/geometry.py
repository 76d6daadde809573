"""How the means of languages lie to one another: lengths, angles, and who joins whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lens.arrays import ArrayIn, Float64, float64, to_dict
from lens.errors import InputError, ShapeError


@dataclass(frozen=True, slots=True)
class LanguageGeometry:
    """The means of languages at one site, seen from their common mean.

    Attributes
    ----------
    languages : tuple of str
        In the order of the rows.
    norms : numpy.ndarray (L,)
        Distance of each mean from the mean of the means, in units of the states.
    cosines : numpy.ndarray (L, L)
        Cosines between the centred means; without any structure they are -1/(L-1).
    distances : numpy.ndarray (L, L)
        Euclidean distances between the means.
    merges : tuple of (int, int, float)
        Average linkage of the distances: the two groups joined, and their distance. Numbers below L
        are languages, L + k is the result of merge k.
    order : tuple of int
        Languages in the order in which the tree draws without crossings.
    """

    languages: tuple[str, ...]
    norms: Float64
    cosines: Float64
    distances: Float64
    merges: tuple[tuple[int, int, float], ...]
    order: tuple[int, ...]

    @property
    def angles(self) -> Float64:
        """Angles between the centred means, degrees, shape (L, L)."""
        out: Float64 = np.degrees(np.arccos(np.clip(self.cosines, -1.0, 1.0)))
        return out

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, arrays as nested lists."""
        return to_dict(self) | {
            "languages": list(self.languages),
            "merges": [list(merge) for merge in self.merges],
            "order": list(self.order),
        }


def language_geometry(means: ArrayIn, *, languages: Sequence[str]) -> LanguageGeometry:
    """Lengths, angles and a tree of the means of languages.

    Parameters
    ----------
    means : array (L, d), float64
        Mean state of each language.
    languages : sequence of str
        Their names.

    Returns
    -------
    LanguageGeometry

    Raises
    ------
    ShapeError, DtypeError
        If there are fewer than 2 means, or not as many names.
    InputError
        If a value is not finite, or a mean equals the mean of the means and has no direction.

    Examples
    --------
    >>> import numpy as np
    >>> means = np.array([[0.0, 0], [1, 0], [9, 0]])
    >>> found = language_geometry(means, languages=["a", "b", "c"])
    >>> found.merges
    ((0, 1, 1.0), (2, 3, 8.5))
    """
    data = float64(means, "means", shape=(None, None))
    names = tuple(str(name) for name in languages)
    if len(data) < 2 or len(names) != len(data):
        raise ShapeError(
            f"means: {len(data)} rows and {len(names)} names of languages, expected at least 2 "
            "rows and a name for each"
        )
    centred = data - data.mean(axis=0)
    norms = np.linalg.norm(centred, axis=1)
    if (norms <= 1e-12 * np.abs(data).max()).any():
        alone = names[int(norms.argmin())]
        raise InputError(
            f"means: that of {alone} equals the mean of all and has no direction from it; expected "
            "different languages: check that no text was given twice"
        )
    products = centred @ centred.T
    cosines = products / np.outer(norms, norms)
    squares = np.diag(products)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * products, 0.0))
    np.fill_diagonal(distances, 0.0)
    merges = average_linkage(distances)
    return LanguageGeometry(
        names, norms, cosines, distances, merges, leaf_order(merges, len(names))
    )


def average_linkage(distances: Float64) -> tuple[tuple[int, int, float], ...]:
    """Join the two nearest groups until one is left (UPGMA, Sokal and Michener 1958).

    Parameters
    ----------
    distances : numpy.ndarray (L, L)
        Symmetric, zero on the diagonal.

    Returns
    -------
    tuple of (int, int, float)
        L - 1 merges, the smaller number first; O(L^3), meant for hundreds of languages at most.
    """
    L = len(distances)
    apart = np.array(distances, dtype=np.float64)
    np.fill_diagonal(apart, np.inf)
    name, size = list(range(L)), np.ones(L)
    merges: list[tuple[int, int, float]] = []
    for step in range(L - 1):
        a, b = sorted(divmod(int(apart.argmin()), L))
        first, second = sorted((name[a], name[b]))
        merges.append((first, second, float(apart[a, b])))
        joined = (size[a] * apart[a] + size[b] * apart[b]) / (size[a] + size[b])
        apart[a], apart[:, a] = joined, joined
        apart[b], apart[:, b] = np.inf, np.inf
        apart[a, a] = np.inf
        size[a] += size[b]
        name[a] = L + step
    return tuple(merges)


def leaf_order(merges: Sequence[tuple[int, int, float]], L: int) -> tuple[int, ...]:
    """Languages from one end of the tree to the other."""
    groups: dict[int, tuple[int, ...]] = {i: (i,) for i in range(L)}
    for step, (a, b, _) in enumerate(merges):
        groups[L + step] = groups.pop(a) + groups.pop(b)
    return next(iter(groups.values()))
