"""Settings of steering."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lens.utils.settings import Layers, Settings, option

Method = Literal["add", "project"]
Tokens = Literal["all", "prompt", "generation"]


class SteerSettings(Settings):
    """What is done to the residual stream, where, and how strongly."""

    language: str | None = option(
        None, "Language to steer to; needed for --method add.", key="lang"
    )
    method: Method = option(
        "add", "Add the difference of means, or project the language subspace out."
    )
    layers: Layers = option("-2:", "Blocks: half-open slices, such as 2:4,-2:.")
    strength: float = option(1.0, "Signed; negative re-injects under --method project.")
    rank: Literal["auto", "full"] | Annotated[int, Field(ge=1)] = option(
        "auto", "Rank for project: auto, full or a number."
    )
    tokens: Tokens = option("all", "Which tokens are steered.")
