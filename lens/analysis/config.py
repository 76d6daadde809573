"""Settings of an inspection."""

from __future__ import annotations

from lens.utils.settings import Settings, option


class InspectSettings(Settings):
    """How much of a space is measured, and how often."""

    limit: int | None = option(
        None,
        "Rows of each language, evenly spread; by default 4096 of all languages together, because "
        "n rows make an n x n matrix.",
        ge=2,
    )
    n_resamples: int = option(1000, "Bootstrap refits.", ge=20, key="resamples")
    n_permutations: int = option(
        200,
        "Shuffles of the null of the spectrum, and random pairings of MEXA's.",
        ge=39,
        key="permutations",
    )
    bound: float = option(15.0, "Angle in degrees that is small enough.", gt=0, lt=90)
    seed: int = option(0, "Seed of all draws.", ge=0)
    n_threads: int | None = option(None, "Threads of the C core.", ge=1, key="threads", short="j")
