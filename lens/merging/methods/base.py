"""What every merge method is: parameters, what it is made from, and how one tensor is made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lens.merging.config import MergeConfig, Parameter, Value
from lens.merging.tensors import ModelInput
from lens.merging.worker import TensorTask

if TYPE_CHECKING:
    from lens.merging.executor import MergeExecutor
    from lens.merging.tensors import OutputTensor


class Method(ABC):
    """A way to make one checkpoint from several.

    Attributes
    ----------
    name, title, paper : str
        In configs; for people; where it is from.
    parameters : tuple of Parameter
        Those it has.
    needs_base : bool
        Whether there must be a base model.
    models : tuple (low, high)
        How many models it takes beside the base, both included.
    whole : bool
        Whether a tensor must be in one worker's hands: something of all of it decides each element.
    passes : int
        How often sources are read.
    rate : float
        Elements of all inputs a second and core, about: plans tell the time by it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str] = ""
    parameters: ClassVar[tuple[Parameter, ...]] = ()
    needs_base: ClassVar[bool] = True
    models: ClassVar[tuple[int, int]] = (1, 16)
    whole: ClassVar[bool] = False
    passes: ClassVar[int] = 1
    rate: ClassVar[float] = 1e9

    def wanted(self, config: MergeConfig) -> tuple[list[ModelInput], list[str]]:
        """Models that are read, in order, and what is wrong with their number."""
        if config.abilities or config.languages:
            return [], [f"{self.name} merges models; abilities and languages are for maec"]
        base, every = config.base_model, (config.parameters,)
        if config.slices:
            taken = [
                ModelInput(s.model, (), s.model == base) for p in config.slices for s in p.sources
            ]
            counts = [[s.model for s in p.sources] for p in config.slices]
            bases = [p.base_model or base for p in config.slices]
        else:
            taken = [
                ModelInput(m.model, (m.parameters, *every), m.model == base) for m in config.models
            ]
            if base and not any(w.base for w in taken):
                taken.append(ModelInput(base, every, True))
            counts, bases = [[w.reference for w in taken]], [base]
        problems = [] if taken else ["nothing to merge; name models"]
        for names, its_base in zip(counts, bases, strict=True):
            counted = len(names) - (self.needs_base and its_base in names)
            low, high = self.models
            if self.needs_base and its_base not in names:
                problems.append(f"{self.name} needs a base_model, of which the others are changes")
            elif taken and not low <= counted <= high:
                number = str(low) if low == high else f"{low} to {high}"
                beside = " beside the base" if self.needs_base else ""
                problems.append(f"{self.name} takes {number} models{beside}, got {counted}")
            if len(set(names)) < len(names):
                problems.append(f"a model is named twice among {', '.join(names)}")
        return taken, problems

    def run_parameters(self, given: dict[str, Value], values: dict[str, Value]) -> dict[str, Value]:
        """Parameters of the run, from those that were given and those with their defaults."""
        return values

    def scratch(self, n_inputs: int) -> int:
        """Bytes that are held for each element, beside inputs and output."""
        return 0

    def problems(
        self, config: MergeConfig, parameters: dict[str, Value], targets: Sequence[OutputTensor]
    ) -> list[str]:
        """Say what of the config does not fit together, given the parameters of the run."""
        return []

    def prepare(self, stream: MergeExecutor, targets: Sequence[OutputTensor]) -> dict[str, Any]:
        """Find out from all tensors what the making of each needs; plain values."""
        return {}

    def make(self, work: TensorTask) -> None:
        """Write ``work.missing``; what cannot be merged is copied."""
        if not work.target.copied:
            return self.run(work)
        for cut in work.missing:
            work.copy(0, cut)

    @abstractmethod
    def run(self, work: TensorTask) -> None:
        """Write ``work.missing``."""
