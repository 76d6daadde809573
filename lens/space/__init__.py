"""The language space: statistics of a model's states per site and language, and what they give."""

from lens.space.about import About, Shard
from lens.space.space import Space
from lens.space.states import States

__all__ = ["About", "Shard", "Space", "States"]
