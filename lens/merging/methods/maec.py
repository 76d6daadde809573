"""MAEC: locate, extract, select, combine (arXiv 2410.07825; no code was released)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lens.arrays import Array, to_dict
from lens.errors import InputError
from lens.merging.config import Ability, MergeConfig, Parameter, Value
from lens.merging.methods.base import Method
from lens.merging.tensors import Chunk, ModelInput, OutputTensor
from lens.merging.worker import Executor, TensorTask, signs
from lens.weights import (
    BUCKETS,
    TopKMask,
    before_each,
    bucket,
    compare,
    count_ties,
    histogram,
    importance,
    lows_in,
    share_of,
    sum_of_squares,
    threshold,
    topk_mask,
    topk_units,
)

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]
_NONE = np.empty(0)

# === locate: key neurons ==========================================================================


@dataclass(frozen=True, slots=True)
class KeyNeuronSearch:
    """Search for the share of units that an ability changed most."""

    delta: Callable[[TensorTask, Chunk], Float32]  # θ' − θ_o of a chunk
    share: float  # k1, of all units
    unit: str  # element, row (output neuron) or column
    per_tensor: bool  # the share of each tensor, not of the whole model

    def find(self, executor: Executor, targets: Sequence[OutputTensor]) -> dict[str, Any]:
        """Masks of all tensors by name, as plain values; `mask_of` reads them."""
        ordered = sorted((t for t in targets if not t.copied), key=lambda t: t.name)
        if self.unit != "element":
            return self._units(executor, ordered)
        search = self._per_tensor if self.per_tensor else self._global
        return {name: to_dict(mask) for name, mask in search(executor, ordered).items()}

    def _per_tensor(
        self, executor: Executor, targets: Sequence[OutputTensor]
    ) -> dict[str, TopKMask]:
        def mask(task: TensorTask) -> TopKMask:
            def deltas() -> Iterator[Float32]:
                return (self.delta(task, chunk) for chunk in task.chunks)

            return topk_mask(share_of(self.share, task.target.size), deltas)

        found = executor.map(mask, targets, whole=True, label="Locating")
        return {target.name: result for target, result in found}

    def _global(self, executor: Executor, targets: Sequence[OutputTensor]) -> dict[str, TopKMask]:
        """Take the steps of `topk_mask` over all tensors, each step in one parallel pass."""

        def each(function: Callable[[Float32], Any]) -> Iterator[tuple[OutputTensor, Any]]:
            def run(task: TensorTask) -> Any:
                return function(self.delta(task, task.chunks[0]))

            return executor.map(run, targets, whole=False, label="Locating")

        counts = np.zeros(BUCKETS, np.uint64)
        for _, found in each(histogram):
            counts += found
        q, wanted = bucket(counts, share_of(self.share, sum(t.size for t in targets)))
        lows = lows_in(np.empty(0, np.float32), q)
        if 0 <= q < BUCKETS:
            for _, found in each(lambda delta: lows_in(delta, q)):
                lows += found
        at = threshold(q, wanted, lows)
        if at.ties == at.of:
            return {t.name: TopKMask(at.key) for t in targets}
        ties: dict[str, list[int]] = {t.name: [] for t in targets}
        for target, n in each(lambda delta: count_ties(delta, at.key)):
            ties[target.name].append(n)
        masks, left = {}, at.ties
        for name, of_chunks in ties.items():  # in the order of names, as the targets are
            masks[name] = TopKMask(at.key, 0, left, before_each(of_chunks) if of_chunks else ())
            left = max(left - sum(of_chunks), 0)
        return masks

    def _units(self, executor: Executor, targets: Sequence[OutputTensor]) -> dict[str, Any]:
        def sizes(task: TensorTask) -> NDArray[np.float64]:
            target, found = task.target, list[Array]()
            if len(target.shape) < 2:
                found = [np.abs(self.delta(task, chunk)) for chunk in task.chunks]
                return np.concatenate([_NONE, *found])
            total, by_row = np.zeros(target.shape[-1]), is_by_row(self.unit, target)
            for chunk in task.chunks:
                rows = self.delta(task, chunk).reshape(-1, target.shape[-1])
                if by_row:
                    found.append(importance(rows, unit="row").reshape(-1))
                else:
                    total += importance(rows, unit="column").reshape(-1) * len(rows)
            if by_row:
                return np.concatenate([_NONE, *found])
            return total / max(target.size // max(target.shape[-1], 1), 1)

        by_name = {
            target.name: np.asarray(result, np.float64)
            for target, result in executor.map(sizes, targets, whole=True, label="Locating")
        }
        masks: dict[str, Bool] = {}
        for names in [[name] for name in by_name] if self.per_tensor else [list(by_name)]:
            masks |= topk_units({name: by_name[name] for name in names}, share=self.share)
        return {name: {"units": np.packbits(mask).tobytes().hex()} for name, mask in masks.items()}


def is_by_row(unit: str, target: OutputTensor) -> bool:
    """Whether units of a matrix are its rows as stored."""
    return (unit == "row") != target.transposed


def mask_of(
    found: Mapping[str, Any], unit: str, target: OutputTensor, delta: Float32 | None, chunk: Chunk
) -> Bool:
    """Mask of a chunk, from what `KeyNeuronSearch.find` returned for its tensor.

    ``delta`` is θ' − θ_o of the chunk, needed where elements were searched for.
    """
    if "units" not in found:
        if delta is None:
            raise ValueError("a mask of elements needs their deltas")
        return TopKMask(**{**found, "before": tuple(found["before"])}).mask(delta, chunk.number)
    columns = target.shape[-1] if len(target.shape) > 1 else 1
    flat, by_row = len(target.shape) < 2, is_by_row(unit, target)
    n = target.size // max(columns, 1) if flat or by_row else columns
    bits = np.frombuffer(bytes.fromhex(found["units"]), np.uint8)
    units = np.unpackbits(bits, count=n).view(np.bool_)
    if flat:
        return units[chunk.start : chunk.stop]
    if by_row:
        return np.repeat(units[chunk.start // columns : chunk.stop // columns], columns)
    return np.tile(units, chunk.size // columns)


# === select: how similar ability and languages are at each tensor =================================


@dataclass(frozen=True, slots=True)
class TaskVectorSimilarity:
    """Ability and languages at one tensor.

    Attributes
    ----------
    cosine : float or None
        Of the flattened deltas; None where one of them is zero.
    null : float or None
        The same after the signs of the ability's delta were drawn at random.
    null_sd : float or None
        Standard deviation of that over all draws: √Σ(xy)² / (|x| |y|). A masked delta is nearly
        orthogonal to anything; only a cosine of several times this size is evidence.
    ability, language : float
        Norms of the two deltas.
    """

    cosine: float | None
    null: float | None
    null_sd: float | None
    ability: float
    language: float


Part = Callable[[TensorTask, Chunk], Float32]


def similarities(
    executor: Executor,
    targets: Sequence[OutputTensor],
    facts: Mapping[str, Any],
    *,
    ability: Part,
    language: Part,
) -> dict[str, TaskVectorSimilarity]:
    """Compare two deltas at every tensor, in one pass over the sources."""

    def sums(task: TensorTask) -> list[float]:
        chunk, seed = task.chunks[0], int(float(task.target.parameters["seed"]))
        x, y = ability(task, chunk), language(task, chunk)
        try:
            found = compare((x, None), (y, None))
        except InputError:
            raise task.find_nonfinite(chunk) from None
        drawn = x * signs(seed, task.target.name, chunk.number, chunk.size)
        null = compare((drawn, None), (y, None)).dot
        drawn *= y
        return [*found.squares, found.dot, null, sum_of_squares(drawn)]

    chosen = [t for t in targets if not t.copied]
    totals = {t.name: [0.0] * 5 for t in chosen}
    for target, found in executor.map(sums, chosen, whole=False, label="Comparing", facts=facts):
        total = totals[target.name]
        for k, value in enumerate(found):
            total[k] += value
    return {name: _similarity(*total) for name, total in totals.items()}


def _similarity(
    xx: float, yy: float, xy: float, null: float, variance: float
) -> TaskVectorSimilarity:
    norms = math.sqrt(xx), math.sqrt(yy)
    size = norms[0] * norms[1]
    if size == 0:
        return TaskVectorSimilarity(None, None, None, *norms)
    cosine = max(-1.0, min(1.0, xy / size))
    return TaskVectorSimilarity(cosine, null / size, math.sqrt(variance) / size, *norms)


def lowest(similarity: Mapping[str, TaskVectorSimilarity], share: float) -> set[str]:
    """Names of the share k2 of tensors with the lowest cosine, among those that have one."""
    ranked = sorted((x.cosine, name) for name, x in similarity.items() if x.cosine is not None)
    return {name for _, name in ranked[: share_of(share, len(ranked))]}


def part_of(found: TaskVectorSimilarity, chosen: bool) -> str:
    """Name the part of a tensor: ability, language, both or neither."""
    if found.cosine is not None:
        return "both" if chosen else "language"
    if found.ability > 0:
        return "ability"
    return "language" if found.language > 0 else "neither"


# === the method ===================================================================================


class Maec(Method):
    """θ_o + γ R(A) + η R_lang where ability and languages are least similar, else θ_o + R_lang.

    R(A) = Σ_a w_a [α(θ_A − θ_o) − β(θ_c − θ_o)] on the key neurons of each ability;
    R_lang = Σ_l μ_l (θ_l − θ_o). Deltas are float32. With no parameter set it is task arithmetic.
    The preset ``paper`` holds the paper's settings from memory, not verified.
    """

    name = "maec"
    title = "MAEC"
    paper = "arXiv 2410.07825"
    passes = 4
    rate = 2e8
    parameters = (
        Parameter("preset", "", "run", choices=("", "paper")),
        Parameter("k1", 1.0, "run", 0.0, 1.0),
        Parameter("k2", 1.0, "run", 0.0, 1.0),
        Parameter("alpha", 1.0, "run"),
        Parameter("beta", 0.0, "run"),
        Parameter("gamma", 1.0, "run"),
        Parameter("eta", 1.0, "run"),
        Parameter("unit", "element", "run", choices=("element", "row", "column")),
        Parameter("scope", "model", "run", choices=("model", "tensor")),
        Parameter("mask_pivot", True, "run"),
    )
    presets: ClassVar[dict[str, dict[str, Value]]] = {
        "paper": {"alpha": 0.8, "beta": 0.2, "gamma": 0.2, "eta": 1.0, "k1": 0.05, "k2": 0.8}
    }

    def inputs(self, config: MergeConfig) -> tuple[list[ModelInput], list[str]]:
        """List the base, the models of every ability, and the languages."""
        problems = []
        if config.models or config.slices:
            problems.append("maec takes abilities and languages; models are for the other methods")
        if config.base_model is None:
            problems.append("maec needs a base_model, of which the others are changes")
        if not config.abilities and not config.languages:
            problems.append("maec needs abilities, languages, or both")
        if problems:
            return [], problems
        taken = [ModelInput(str(config.base_model), (), True, fixed={"role": "base"})]
        for number, ability in enumerate(config.abilities):
            place: dict[str, Value] = {"ability": float(number), "weight": ability.weight}
            for role, reference in _roles(ability).items():
                fixed = {"role": role, **place}
                taken.append(ModelInput(reference, (), fixed=fixed, extracted=role == "extracted"))
        for language in config.languages:
            mu: dict[str, Value] = {"role": "language", "weight": language.mu}
            taken.append(ModelInput(language.model, (), fixed=mu))
        return taken, []

    def problems(
        self, config: MergeConfig, parameters: Mapping[str, Value], targets: Sequence[OutputTensor]
    ) -> list[str]:
        """Find parts of the config that do not belong together."""
        found = []
        without = [a.name for a in config.abilities if a.trained and not a.pivot]
        if parameters["beta"] != 0 and without:
            found.append(
                f"beta is {parameters['beta']}, but ability '{without[0]}' has no pivot model"
            )
        deep = [t.name for t in targets if len(t.shape) > 2]
        if parameters["unit"] == "column" and parameters["k1"] != 1 and deep:
            found.append(
                f"unit column: tensor '{deep[0]}' has more than two axes; use row or element"
            )
        return found

    def scratch(self, n_inputs: int) -> int:
        """R(A), R_lang, the located delta, a mask, and their products."""
        return 40

    def prepare(self, executor: Executor, targets: Sequence[OutputTensor]) -> dict[str, Any]:
        """Locate the key neurons of each ability, then rank the tensors."""
        first = next((t for t in targets if not t.copied), None)
        if first is None:
            return {}
        facts: dict[str, Any] = {"located": self.locate(executor, targets), "tensors": {}}
        roles = {i.parameters.get("role") for i in first.inputs}
        if not roles & {"trained", "extracted"} or "language" not in roles:
            return facts

        def language(task: TensorTask, chunk: Chunk) -> Float32:
            delta: Float32 = task.mix(_language_weights(task.target), chunk)
            return delta

        found = similarities(executor, targets, facts, ability=self.ability, language=language)
        chosen = lowest(found, float(first.parameters["k2"]))
        facts["tensors"] = {
            name: {**to_dict(one), "part": part_of(one, name in chosen)}
            for name, one in found.items()
        }
        return facts

    def locate(self, executor: Executor, targets: Sequence[OutputTensor]) -> dict[str, Any]:
        """Masks of the key neurons by ability and tensor, as plain values; k1 = 1 needs none."""
        first = next(t for t in targets if not t.copied)
        p, found = first.parameters, {}
        for number in _abilities(first) if float(p["k1"]) < 1 else ():
            at = _models_of(first, number)
            if "trained" in at:
                delta = _delta_of(at.get("located", at["trained"]))
                k1, per_tensor = float(p["k1"]), p["scope"] == "tensor"
                search = KeyNeuronSearch(delta, k1, str(p["unit"]), per_tensor)
                found[str(number)] = search.find(executor, targets)
        return found

    def ability(self, task: TensorTask, chunk: Chunk) -> Float32:
        """R(A) of a chunk."""
        total = np.zeros(chunk.size, np.float32)
        for number in _abilities(task.target):
            total += self.one_ability(task, number, chunk)[0]
        return total

    def one_ability(
        self, task: TensorTask, number: int, chunk: Chunk
    ) -> tuple[Float32, Bool | None]:
        """w_a R(a) of one ability in a chunk, and its mask if it has one."""
        target, at = task.target, _models_of(task.target, number)
        base = target.base_input
        weight = target.value("weight", at.get("trained", at.get("extracted", 0)))
        if "extracted" in at:
            return task.mix({at["extracted"]: weight}, chunk), None
        alpha, beta = (weight * float(target.parameters[name]) for name in ("alpha", "beta"))
        own = {at["trained"]: alpha, base: -alpha}
        pivot = {at["pivot"]: -beta, base: beta} if beta else {}
        mask = self.mask(task, number, chunk)
        if mask is None:
            return task.mix(_added(own, pivot), chunk), None
        unmasked = pivot if not target.parameters["mask_pivot"] else {}
        delta: Float32 = task.mix(own if unmasked else _added(own, pivot), chunk)
        delta *= mask
        if unmasked:
            delta += task.mix(unmasked, chunk)
        return delta, mask

    def mask(self, task: TensorTask, number: int, chunk: Chunk) -> Bool | None:
        """Key neurons of one ability in a chunk; None where all are taken."""
        target, at = task.target, _models_of(task.target, number)
        found = task.facts.get("located", {}).get(str(number), {}).get(target.name)
        if found is None:
            return None
        delta = None
        if "units" not in found:
            delta = task.delta(at.get("located", at["trained"]), chunk)
        return mask_of(found, str(target.parameters["unit"]), target, delta, chunk)

    def run(self, task: TensorTask) -> None:
        """Combine ability and languages as the tensor's part says."""
        target = task.target
        fact = task.facts.get("tensors", {}).get(target.name)
        if fact is None:  # nothing to rank: abilities alone, or languages alone
            part = "both" if _abilities(target) else "language"
        else:
            part = fact["part"]
        gamma, eta = (float(target.parameters[name]) for name in ("gamma", "eta"))
        weights = {target.base_input: 1.0}
        if part in ("both", "language"):
            scale = eta if part == "both" else 1.0
            languages = _language_weights(target)
            weights = _added(weights, {i: scale * w for i, w in languages.items()})
        for chunk in task.missing:
            needs_ability = part in ("both", "ability") and gamma
            plus = (gamma, self.ability(task, chunk)) if needs_ability else None
            task.write_mix(weights, chunk, plus=plus)


def _delta_of(i: int) -> Part:
    return lambda task, chunk: task.delta(i, chunk)


def _roles(ability: Ability) -> dict[str, str]:
    """Models of an ability by their role."""
    roles = ("trained", "located", "pivot", "extracted")
    return {role: name for role in roles if (name := getattr(ability, role)) is not None}


def _abilities(target: OutputTensor) -> list[int]:
    """Numbers of the abilities, each once."""
    numbers = [i.parameters["ability"] for i in target.inputs if "ability" in i.parameters]
    return list(dict.fromkeys(int(float(number)) for number in numbers))


def _models_of(target: OutputTensor, ability: int) -> dict[str, int]:
    """Find the inputs that are the models of an ability, by role."""
    return {
        str(taken.parameters["role"]): i
        for i, taken in enumerate(target.inputs)
        if taken.parameters.get("ability") == float(ability)
    }


def _language_weights(target: OutputTensor) -> dict[int, float]:
    """R_lang as weights of inputs: μ_l for each language, and −Σ μ for the base."""
    mu = {
        i: float(taken.parameters["weight"])
        for i, taken in enumerate(target.inputs)
        if taken.parameters["role"] == "language"
    }
    return {target.base_input: -math.fsum(mu.values()), **mu}


def _added(a: Mapping[int, float], b: Mapping[int, float]) -> dict[int, float]:
    return {i: a.get(i, 0.0) + b.get(i, 0.0) for i in {**a, **b}}
