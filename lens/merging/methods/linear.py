"""Methods that are one linear combination per tensor, rounded once: linear, SLERP, layer swap."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence

from lens.errors import InputError
from lens.merging.config import MergeConfig, Parameter, Value, block_number
from lens.merging.methods.base import Method
from lens.merging.tensors import OutputTensor
from lens.merging.worker import TensorTask

_COLLINEAR = 0.9995  # |cosine| above which the arc is treated as a straight line
_NO_NORM = 1e-8


class Weighted(Method):
    """Σ w_i θ_i, with weights that depend on the tensor's name alone."""

    @abstractmethod
    def weights(self, target: OutputTensor) -> dict[int, float]:
        """Weight of each input at one tensor."""

    def run(self, task: TensorTask) -> None:
        """Write the combination; a single model of weight 1 is copied."""
        weights = self.weights(task.target)
        for chunk in task.missing:
            task.write_mix(weights, chunk)


class Linear(Weighted):
    """Weighted mean of models (model soups)."""

    name = "linear"
    title = "Linear"
    paper = "arXiv 2203.05482"
    needs_base = False
    parameters = (
        Parameter("weight", None, "model"),
        Parameter("normalize", True),
    )

    def problems(
        self, config: MergeConfig, parameters: Mapping[str, Value], targets: Sequence[OutputTensor]
    ) -> list[str]:
        """Refuse weights that sum to zero."""
        try:
            for target in targets:
                if not target.copied:
                    self.weights(target)
        except InputError as error:
            return [str(error)]
        return []

    def weights(self, target: OutputTensor) -> dict[int, float]:
        """w_i, or w_i / Σ w."""
        w = {i: target.value("weight", i) for i in range(len(target.inputs))}
        total = math.fsum(w.values()) if target.parameters["normalize"] else 1.0
        if total == 0.0:
            raise InputError(
                f"tensor '{target.name}': the weights sum to 0 and cannot be normalized; change "
                "them or set normalize: false"
            )
        return {i: x / total for i, x in w.items()}


class TaskArithmetic(Weighted):
    """θ_o + λ Σ w_i (θ_i − θ_o)."""

    name = "task_arithmetic"
    title = "Task arithmetic"
    paper = "arXiv 2212.04089"
    parameters = (
        Parameter("weight", None, "others"),
        Parameter("normalize", False),
        Parameter("lambda", 1.0),
    )

    def weights(self, target: OutputTensor) -> dict[int, float]:
        """λ w_i for the models, the rest of 1 for the base."""
        w = {i: target.value("weight", i) for i in target.others}
        total = math.fsum(w.values())
        scale = float(target.parameters["lambda"])
        if target.parameters["normalize"] and abs(total) >= _NO_NORM:
            scale /= total
        w = {i: scale * x for i, x in w.items()}
        return {target.base_input: 1.0 - math.fsum(w.values()), **w}


class Passthrough(Weighted):
    """One model, its tensors scaled; with slices, blocks in a new order."""

    name = "passthrough"
    title = "Passthrough"
    needs_base = False
    models = (1, 1)
    parameters = (Parameter("scale", 1.0, "model"),)

    def weights(self, target: OutputTensor) -> dict[int, float]:
        """Its scale."""
        return {0: target.value("scale", 0)}


class LayerSwap(Weighted):
    """Blocks of a second model replace those of the base; their neighbours are averaged.

    The base, such as a model trained on mathematics, keeps the middle; the other one gives the
    lowest and highest blocks, which read and write a language.
    """

    name = "layer_swap"
    title = "Layer swapping"
    paper = "arXiv 2410.01335"
    models = (1, 1)
    parameters = (
        Parameter("layers", "", "run"),
        Parameter("transition", 1.0, "run", low=0.0),
        Parameter("embeddings", False, "run"),
    )

    def problems(
        self, config: MergeConfig, parameters: Mapping[str, Value], targets: Sequence[OutputTensor]
    ) -> list[str]:
        """Refuse layers that are no slices of blocks."""
        if not parameters["layers"]:
            return ["layer_swap needs parameters.layers, half-open slices such as '0:4,-2:'"]
        try:
            swapped(str(parameters["layers"]), targets[0].n_blocks)
        except InputError as error:
            return [str(error)]
        return []

    def weights(self, target: OutputTensor) -> dict[int, float]:
        """Weight 1 for the second model in its blocks, ½ in the neighbouring ones, 0 elsewhere."""
        p = target.parameters
        chosen = swapped(str(p["layers"]), target.n_blocks)
        number = block_number(target.name)
        if number is None:
            share = 1.0 if p["embeddings"] else 0.0
        else:
            away = min((abs(number - k) for k in chosen), default=target.n_blocks)
            share = 1.0 if away == 0 else 0.5 if away <= float(p["transition"]) else 0.0
        return {target.base_input: 1.0 - share, target.others[0]: share}


def swapped(layers: str, count: int) -> set[int]:
    """Numbers of the blocks in half-open slices such as ``0:4,-2:``.

    Raises
    ------
    InputError
        If the text has another form, or names no block of ``count``.
    """
    found: set[int] = set()
    for part in layers.split(","):
        first, colon, last = part.strip().partition(":")
        try:
            start = int(first) if first else None
            stop = int(last) if last else None
        except ValueError:
            raise InputError(f"layers: got {part!r}, expected slices such as '0:4,-2:'") from None
        if not colon:
            if start is None or not -count <= start < count:
                raise InputError(f"layers: got {part!r}, expected a block from 0 to {count - 1}")
            found.add(range(count)[start])
        found |= set(range(count)[start:stop]) if colon else set()
    if not found:
        raise InputError(f"layers: {layers!r} names none of the {count} blocks")
    return found


class Slerp(Method):
    """Point at the share t of the arc from the base to a second model."""

    name = "slerp"
    title = "SLERP"
    models = (1, 1)
    whole = True
    passes = 2
    parameters = (Parameter("t", None),)

    def scratch(self, n_inputs: int) -> int:
        """Both models in float32, where their dtypes differ."""
        return 8

    def run(self, task: TensorTask) -> None:
        """Measure the angle of the flattened tensors, then combine."""
        base, other = task.target.base_input, task.target.others[0]
        aa = bb = ab = 0.0
        for chunk in task.chunks:
            found = task.compare(base, other, chunk)
            aa, bb, ab = aa + found.squares[0], bb + found.squares[1], ab + found.dot
        near, far = arc(float(task.target.parameters["t"]), aa, bb, ab)
        for chunk in task.missing:
            task.write_mix({base: near, other: far}, chunk)


def arc(t: float, aa: float, bb: float, ab: float) -> tuple[float, float]:
    """Weights of two vectors for the point at the share t of the arc between them.

    sin((1−t)ω)/sin ω and sin(tω)/sin ω with the angle ω between them; 1−t and t where they are
    almost parallel or opposite.

    Parameters
    ----------
    aa, bb, ab : float
        Squared norms and dot product.
    """
    norms = [math.sqrt(x) if math.sqrt(x) > _NO_NORM else 1.0 for x in (aa, bb)]
    cosine = max(-1.0, min(1.0, ab / norms[0] / norms[1]))
    if abs(cosine) > _COLLINEAR:
        return 1.0 - t, t
    angle = math.acos(cosine)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
