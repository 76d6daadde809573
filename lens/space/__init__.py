"""The language space: statistics of a model's states per site and language, and what they give."""

from lens.space.about import About, Shard
from lens.space.sources import States, as_states, read_bases, read_states
from lens.space.space import Space

__all__ = ["About", "Shard", "Space", "States", "as_states", "read_bases", "read_states"]
