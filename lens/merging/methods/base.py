"""The contract of a merge method: five methods, of which only `Method.run` must be written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lens.merging.config import MergeConfig, Parameter, Value
from lens.merging.tensors import ModelInput, OutputTensor
from lens.merging.worker import Executor, TensorTask


class Method(ABC):
    """A way to make one checkpoint from several.

    A method declares attributes and implements up to five methods, called in this order:

    1. `inputs` names the models it reads; by default those of the config.
    2. `problems` checks the parameters against the tensors, before anything is read.
    3. `scratch` states its memory, from which the number of workers follows.
    4. `prepare` computes, once, what every tensor needs to know.
    5. `run` computes one tensor, or one chunk of it. It must depend on nothing but its task, so
       that a merge gives the same bytes on any number of cores and when resumed.

    A module of this package is found by itself; `register` adds a method from elsewhere.

    Attributes
    ----------
    name, title, paper : str
        In configs; for people; where it was published.
    parameters : tuple of Parameter
        Its parameters.
    presets : mapping of str to mapping
        Values of run parameters by name of preset; the parameter ``preset`` chooses one.
    needs_base : bool
        Whether there must be a base model.
    models : tuple (low, high)
        How many models it takes besides the base, both included.
    whole : bool
        Whether one worker needs a whole tensor: each element depends on all of it.
    passes : int
        How often sources are read.
    rate : float
        Elements of all inputs a second and core, roughly, for the plan's estimate of time.

    Examples
    --------
    A point on the line between the base and one other model:

    >>> from lens.merging.config import Parameter
    >>> class Midpoint(Method):
    ...     name, title, models = "midpoint", "Midpoint", (1, 1)
    ...     parameters = (Parameter("t", 0.5, low=0.0, high=1.0),)
    ...
    ...     def run(self, task):
    ...         base, (other,) = task.target.base_input, task.target.others
    ...         t = task.target.parameters["t"]
    ...         for chunk in task.missing:
    ...             task.write_mix({base: 1 - t, other: t}, chunk)
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str] = ""
    parameters: ClassVar[tuple[Parameter, ...]] = ()
    presets: ClassVar[Mapping[str, Mapping[str, Value]]] = {}
    needs_base: ClassVar[bool] = True
    models: ClassVar[tuple[int, int]] = (1, 16)
    whole: ClassVar[bool] = False
    passes: ClassVar[int] = 1
    rate: ClassVar[float] = 1e9

    def inputs(self, config: MergeConfig) -> tuple[list[ModelInput], list[str]]:
        """Models that are read, in order, and what is wrong with their number."""
        if config.abilities or config.languages:
            return [], [f"{self.name} merges models; abilities and languages are for maec"]
        base, shared = config.base_model, (config.parameters,)
        if config.slices:
            taken = [
                ModelInput(s.model, (), s.model == base) for p in config.slices for s in p.sources
            ]
            groups = [([s.model for s in p.sources], p.base_model or base) for p in config.slices]
        else:
            taken = [
                ModelInput(m.model, (m.parameters, *shared), m.model == base) for m in config.models
            ]
            if base and not any(one.base for one in taken):
                taken.append(ModelInput(base, shared, True))
            groups = [([one.reference for one in taken], base)]
        problems = [] if taken else ["nothing to merge; name models"]
        for names, its_base in groups:
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

    def problems(
        self,
        config: MergeConfig,
        parameters: Mapping[str, Value],
        targets: Sequence[OutputTensor],
    ) -> list[str]:
        """List what in the config does not fit together, given the parameters of the run."""
        return []

    def scratch(self, n_inputs: int) -> int:
        """Bytes held per element of a chunk, besides inputs and output."""
        return 0

    def prepare(self, executor: Executor, targets: Sequence[OutputTensor]) -> dict[str, Any]:
        """Compute from all tensors what `run` needs, as plain values: JSON keeps them."""
        return {}

    @abstractmethod
    def run(self, task: TensorTask) -> None:
        """Write every chunk of ``task.missing``."""


def write_tensor(method: Method, task: TensorTask) -> None:
    """Write ``task.missing`` by a method; tensors that cannot be merged are copied."""
    if not task.target.copied:
        return method.run(task)
    for chunk in task.missing:
        task.copy(0, chunk)
