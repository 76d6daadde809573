"""Find out all that a plan of training is made from, and everything that is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens.errors import InputError
from lens.planning import checks
from lens.planning.known import Asked, Known
from lens.planning.plans import Model, Problem
from lens.planning.rows import Encoding, Lengths, Rows
from lens.planning.structures import Shape, adapter_count, count

if TYPE_CHECKING:
    from lens.lsm import LensConfig, Lora
    from lens.space import Space


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Asked):
    """What is to be planned; every setting as in `lens.train`."""

    layers: str = "-2:"
    train: str = "full"
    lora: int | Lora | None = None
    losses: str | LensConfig | dict[str, Any] = "pinned"
    space: Space | str | Path | None = None
    validation: Rows | str | Path | None = None
    low_memory: bool = False
    gradient_checkpointing: bool = False
    checkpoint_every: int | None = None
    cache: str | Path | None = None
    max_memory: str | int | None = None
    out: str | Path | None = None
    answer_tokens: int | None = None


@dataclass(slots=True)
class Findings(Known[Request]):
    """What is known of a run; `look` finds it out, and lists every problem on the way.

    Attributes
    ----------
    layers, chosen : tuple of int, dict
        Trained blocks, and the shapes of what is trained in them.
    held_out : Lengths or None
        Tokens of the prompts for validation; ``lengths`` are those of the prompts.
    """

    layers: tuple[int, ...] = ()
    chosen: dict[str, Shape] = field(default_factory=dict)
    held_out: Lengths | None = None

    @property
    def config(self) -> LensConfig:
        """Losses and optimizer settings."""
        from lens.lsm.config import resolve

        return resolve(self.request.losses)

    @property
    def countable(self) -> bool:
        """Whether enough is known to count work and memory."""
        return self.structure is not None and bool(self.chosen) and self.lengths is not None

    def look(self, prompts: Rows | str | Path) -> None:
        """Find out everything that can be found out without measuring."""
        self.look_at_model()
        self._look_at_band()
        space = self._space()
        self.lengths = self._look_at_rows(prompts, space, "prompts")
        if self.request.validation is not None:
            self.held_out = self._look_at_rows(self.request.validation, space, "validation")
        if self.structure is not None:
            self.problems += checks.of_tokenizer(self.checkpoint, self.structure, self.request.chat)
            if space is not None:
                sites = self.config.placed(len(self.structure.blocks)).subspace_sites
                rows = self.lengths.tokens if self.lengths else ()
                self.problems += checks.of_space(space, self.checkpoint, rows, sites)

    def _look_at_band(self) -> None:
        """Resolve layers, sites and what of them is trained."""
        from lens.models.sites import block_index, resolve_layers

        if self.structure is None:
            return
        depth = len(self.structure.blocks)
        try:
            self.layers = resolve_layers(self.request.layers, depth)
            placed = self.config.placed(depth)
            self.chosen = self.structure.chosen(self.layers, self.request.train)
        except InputError as error:
            self.problems.append(Problem("layers", str(error)))
            return
        below = [s for s in placed.sites if s != "final" and (block_index(s) or 0) < self.layers[0]]
        if below:
            self.problems.append(
                Problem("layers", f"the losses read {', '.join(below)}, below the first trained "
                        f"block ({self.layers[0]}), where training changes nothing")
            )  # fmt: skip
        self._look_at_adapters()

    def _look_at_adapters(self) -> None:
        if self.request.lora is None:
            return
        rank = rank_of(self.request.lora)
        linear = [s for s in self.chosen.values() if len(s) == 2]
        if rank < 1:
            text = f"the rank of a LoRA adapter is {rank}; expected 1 or more"
        elif not linear or self.request.train in ("bias", "norm"):
            text = f"adapters go on linear layers, and train={self.request.train!r} selects none"
        elif rank > min(min(shape) for shape in linear):
            smallest = min(linear, key=min)
            text = (
                f"LoRA rank {rank} is above what a weight of shape {list(smallest)} can have; "
                f"choose one up to {min(smallest)}, or train the weights themselves"
            )
        else:
            return
        self.problems.append(Problem("lora", text))

    def _space(self) -> Space | None:
        from lens.space import Space

        given = self.request.space
        if given is None or isinstance(given, Space):
            return given
        try:
            return Space.load(given)
        except (InputError, OSError) as error:
            self.problems.append(Problem("space", str(error)))
            return None

    def _look_at_rows(
        self, given: Rows | str | Path, space: Space | None, what: str
    ) -> Lengths | None:
        pivot = None if space is None else space.pivot
        return self.look_at_rows(
            given, what, pivot=pivot, encoding=Encoding("user", self.request.chat)
        )

    @property
    def model(self) -> Model | None:
        """What the model is, as far as it is known."""
        return self.described(trained=self.trained, layers=self.layers)

    @property
    def trained(self) -> int:
        """Number of trained parameters."""
        lora = self.request.lora
        if lora is None:
            return count(self.chosen)
        return adapter_count(self.chosen, rank_of(lora), dora=bool(getattr(lora, "dora", False)))


def rank_of(lora: int | Lora) -> int:
    """Rank of adapters, however it was given."""
    return lora if isinstance(lora, int) else lora.rank
