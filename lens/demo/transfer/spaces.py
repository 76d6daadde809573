"""What each setting of a merge may be, and where a search begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Values = dict[str, Any]
Kind = Literal["task arithmetic", "TIES", "DARE", "MAEC"]


@dataclass(frozen=True, slots=True)
class Steps:
    """Numbers from ``low`` to ``high``, a step apart."""

    low: float
    high: float
    step: float = 0.05


Space = dict[str, Steps | tuple[str, ...]]

_FACTORS: Space = {"gamma": Steps(0.4, 2.0), "eta": Steps(0.0, 2.4)}
WHOLE = "whole"  # θ_A is trained whole, or key neurons alone
BRIEF = "brief"  # key neurons are found by a brief training, or by θ_A itself
_ARITHMETIC: list[Values] = [
    {"gamma": 1.0, "eta": eta} for eta in (0.6, 1.0, 1.4, 1.8)
]  # fmt: skip


def space(kind: Kind, k1: Sequence[float] = ()) -> Space:
    """Return what the settings of a method may be.

    α of MAEC is 1: with γ and β there is nothing that it could add. A share of 1 and a β of 0 are
    among the values, so that a part can be off.

    Parameters
    ----------
    kind : str
        The method.
    k1 : sequence of float
        Shares of key neurons that were trained alone.
    """
    if kind == "task arithmetic":
        return dict(_FACTORS)
    if kind in ("TIES", "DARE"):
        return {"density": Steps(0.05, 1.0), **_FACTORS}
    return {
        "source": (WHOLE, *(f"keys-{share:g}" for share in k1)),
        "guide": (BRIEF, "ability"),
        "k1": Steps(0.05, 1.0),
        "unit": ("element", "row", "column"),
        "scope": ("model", "tensor"),
        "k2": Steps(0.2, 1.0),
        "beta": Steps(0.0, 1.0),
        **_FACTORS,
        "mu": Steps(0.2, 2.4),
    }


def starts(kind: Kind, best: Mapping[str, Any] | None, k1: Sequence[float] = ()) -> list[Values]:
    """Return what is tried first: of task arithmetic points of a line, of others its best.

    Parameters
    ----------
    best : dict or None
        Settings that task arithmetic was found to do best with, on the same ability and within
        the same bounds; needed by all others, which begin by doing the same.
    """
    if best is None:
        return list(_ARITHMETIC)
    same: Values = {"gamma": best["gamma"], "eta": best["eta"]}
    # fewer weights must change more to do the same: the factors 1.2 and 1.5 below
    if kind == "task arithmetic":
        return [same]
    if kind in ("TIES", "DARE"):
        fewer = {**same, "gamma": 1.5 * best["gamma"], "density": 0.25}
        return [{**same, "density": 1.0}, {**same, "density": 0.5}, fewer]
    off = {
        "source": WHOLE, "guide": BRIEF, "k1": 1.0, "unit": "element", "scope": "model",
        "k2": 1.0, "beta": 0.0, **same, "mu": best["eta"], "eta": 1.0,
    }  # fmt: skip
    masked = [
        {**off, "guide": "ability", "k1": 0.5, "gamma": 1.2 * best["gamma"]},
        {**off, "guide": "ability", "k1": 0.25, "gamma": 1.5 * best["gamma"], "beta": 0.25},
    ]
    alone = [{**off, "source": f"keys-{share:g}", "k1": share} for share in k1]
    return [off, *masked, {**off, "k2": 0.8}, {**off, "beta": 0.2}, *alone]
