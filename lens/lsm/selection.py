"""Choose the strength λ of every language on a validation split.

One run per grid value, all languages at once; each language then takes the value that served it
best among the runs that left the pivot alone. The whole grid is kept for the report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lens.errors import InputError


@dataclass(frozen=True, slots=True)
class Trial:
    """What one language got from one grid value, on validation.

    Attributes
    ----------
    language : str
        FLORES code.
    strength : float
        λ of the run.
    quality : float
        What is maximised: share of answers correct and in the language.
    fidelity : float
        Share of answers in the language.
    drift : float
        Mean KL of the pivot's next-token distribution from the frozen model's, nats.
    """

    language: str
    strength: float
    quality: float
    fidelity: float
    drift: float


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen strength per language, and every trial it was chosen from."""

    strength: dict[str, float]
    trials: tuple[Trial, ...]
    max_drift: float


def choose_strengths(
    trial: Callable[[float], Sequence[Trial]],
    grid: Sequence[float],
    *,
    max_drift: float = 0.02,
) -> Choice:
    """Run ``trial`` for each λ of ``grid`` and keep the best λ per language.

    Parameters
    ----------
    trial : callable
        Trains and validates at one λ for all languages; returns one `Trial` per language.
    grid : sequence of float
        Values of λ.
    max_drift : float
        Largest pivot drift allowed, nats. When no value stays below it, the one with the least
        drift is taken.

    Returns
    -------
    Choice
        Ties go to fidelity, then to the smaller λ.

    Raises
    ------
    InputError
        If the grid is empty.
    """
    if not grid:
        raise InputError("the grid of strengths is empty; give at least one value")
    trials = [one for value in grid for one in trial(value)]
    languages = dict.fromkeys(one.language for one in trials)
    strength = {}
    for language in languages:
        mine = [one for one in trials if one.language == language]
        allowed = [one for one in mine if one.drift <= max_drift]
        if not allowed:
            allowed = [min(mine, key=lambda one: (one.drift, one.strength))]
        best = max(allowed, key=lambda one: (one.quality, one.fidelity, -one.strength))
        strength[language] = best.strength
    return Choice(strength, tuple(trials), max_drift)
