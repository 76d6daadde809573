"""Which layers to act on: where the curves of alignment and separability cross."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lens.arrays import Float64


@dataclass(frozen=True, slots=True)
class LayerBand:
    """Layer band of a model by the crossing rule.

    Attributes
    ----------
    rule : {"crossing", "scaled", "none"}
        ``crossing``: alignment is above separability at these sites. ``scaled``: only once each
        curve is stretched to its own span. ``none``: there is no band.
    sites : tuple of str
        The longest run of such block outputs; empty without a band.
    reason : str
        Why, for people to read.
    """

    rule: str
    sites: tuple[str, ...]
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values."""
        return asdict(self) | {"sites": list(self.sites)}


@dataclass(frozen=True, slots=True)
class LayerCurve:
    """Values of a measure over sites with their intervals, less chance: 0 is chance, 1 all."""

    values: Float64
    low: Float64
    high: Float64

    @property
    def varies(self) -> bool:
        """Whether the largest value lies above the smallest beyond both intervals."""
        return bool(self.low[self.values.argmax()] > self.high[self.values.argmin()])

    @property
    def scaled(self) -> Float64:
        """Stretched from 0 to 1."""
        least, most = self.values.min(), self.values.max()
        out: Float64 = (self.values - least) / (most - least)
        return out


def above_chance(values: Sequence[float], chance: Sequence[float]) -> Float64:
    """(x - chance) / (1 - chance), one a site."""
    x, c = np.asarray(values, float), np.asarray(chance, float)
    out: Float64 = (x - c) / np.maximum(1 - c, np.finfo(float).tiny)
    return out


def crossing(sites: Sequence[str], *, alignment: LayerCurve, separability: LayerCurve) -> LayerBand:
    """Read the band off two curves over the block outputs.

    Parameters
    ----------
    sites : sequence of str
        Block outputs in order.
    alignment, separability : LayerCurve
        Mean MEXA and accuracy of naming the language, over chance.

    Returns
    -------
    LayerBand
        Where the first curve is above the second the model represents meaning rather than
        language: there languages may be removed. Above that band they are written.
    """
    if len(sites) < 3:
        return LayerBand("none", (), f"{len(sites)} block outputs are too few for a band")
    peak = sites[int(alignment.values.argmax())]
    aligned, separate = alignment.values, separability.values
    if (aligned > separate).any():
        run = _longest(aligned > separate)
        if run == (0, len(sites)):
            return LayerBand(
                "none",
                (),
                "alignment is above separability at every block: the curves do not cross",
            )
        return LayerBand(
            "crossing",
            tuple(sites[run[0] : run[1]]),
            "translations are nearer to each other there than languages are apart",
        )
    text = (
        f"alignment (at most {aligned.max():.2f}, at {peak}) stays below separability (at least "
        f"{separate.min():.2f}) at every block: the curves do not cross"
    )
    if not (alignment.varies and separability.varies):
        flat = "separability" if alignment.varies else "alignment"
        return LayerBand("none", (), f"{text}, and {flat} does not vary beyond its interval")
    run = _longest(alignment.scaled > separability.scaled)
    return LayerBand(
        "scaled",
        tuple(sites[run[0] : run[1]]),
        f"{text}; stretched to their own spans they do, which shows where alignment is high for "
        "this model, not that languages are gone there",
    )


def _longest(mask: Any) -> tuple[int, int]:
    """Half-open range of the longest run of True, the first of equal ones."""
    best, start = (0, 0), None
    for i, on in enumerate([*mask, False]):
        if on and start is None:
            start = i
        elif not on and start is not None:
            if i - start > best[1] - best[0]:
                best = (start, i)
            start = None
    return best
