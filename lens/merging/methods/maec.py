"""MAEC: locate, extract, select, combine (arXiv 2410.07825; no code was released)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lens.arrays import Array, to_dict
from lens.errors import InputError
from lens.merging.config import Ability, MergeConfig, Parameter, Value
from lens.merging.methods.base import Method
from lens.merging.tensors import Chunk, ModelInput, OutputTensor
from lens.merging.worker import TensorTask, signs
from lens.weights import (
    BUCKET_BITS,
    BUCKETS,
    TensorCut,
    before_each,
    bucket,
    compare,
    count_ties,
    histogram,
    importance,
    largest,
    lows_in,
    sum_of_squares,
    tensor_cut,
    threshold,
    topk_units,
)

if TYPE_CHECKING:
    from lens.merging.executor import MergeExecutor

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]
Change = Callable[[TensorTask, Chunk], Float32]
_SOME = (0, 1 << 31)  # all of those that equal the key
_NONE = np.empty(0)


@dataclass(frozen=True, slots=True)
class Locating:
    """What is located, and how.

    Attributes
    ----------
    change : callable
        Gives θ' − θ_o of a slice.
    share : float
        k1, of all units.
    unit : {"element", "row", "column"}
        Rows are output neurons.
    per_tensor : bool
        Select the share of each tensor instead of the whole model.
    """

    change: Change
    share: float
    unit: str
    per_tensor: bool

    def find(self, stream: MergeExecutor, targets: Sequence[OutputTensor]) -> dict[str, Any]:
        """Masks of all tensors, as plain values by name."""
        ordered = sorted((t for t in targets if not t.copied), key=lambda t: t.name)
        if self.unit != "element":
            return self._units(stream, ordered)
        return (
            self._per_tensor(stream, ordered) if self.per_tensor else self._global(stream, ordered)
        )

    def _per_tensor(self, stream: MergeExecutor, targets: Sequence[OutputTensor]) -> dict[str, Any]:
        def cut(work: TensorTask) -> TensorCut:
            def slices() -> Iterator[Float32]:
                return (self.change(work, cut) for cut in work.cuts)

            return tensor_cut(largest(count(self.share, work.target.size), slices), slices)

        found = stream.map(cut, targets, whole=True, label="Locating")
        return {piece.target.name: _plain(made) for piece, made in found}

    def _global(self, stream: MergeExecutor, targets: Sequence[OutputTensor]) -> dict[str, Any]:
        def run(function: Callable[[Float32], Any]) -> Iterator[tuple[Any, Any]]:
            def each(work: TensorTask) -> Any:
                return function(self.change(work, work.cuts[0]))

            return stream.map(each, targets, whole=False, label="Locating")

        counts = np.zeros(BUCKETS, np.uint64)
        for _, made in run(histogram):
            counts += made
        q, wanted = bucket(counts, count(self.share, sum(t.size for t in targets)))
        lows = np.zeros(1 << BUCKET_BITS, np.uint64)
        if 0 <= q < BUCKETS:
            for _, made in run(lambda delta: lows_in(delta, q)):
                lows += made
        at = threshold(q, wanted, lows)
        if at.ties == at.of:
            return {t.name: _plain(TensorCut(at.key, *_SOME)) for t in targets}
        ties: dict[str, list[int]] = {t.name: [] for t in targets}
        for piece, made in run(lambda delta: count_ties(delta, at.key)):
            ties[piece.target.name].append(made)
        cuts, left = {}, at.ties
        for name, found in ties.items():  # in the order of names, as the targets are
            cuts[name] = _plain(TensorCut(at.key, 0, left, before_each(found) if found else ()))
            left = max(left - sum(found), 0)
        return cuts

    def _units(self, stream: MergeExecutor, targets: Sequence[OutputTensor]) -> dict[str, Any]:
        def sizes(work: TensorTask) -> NDArray[np.float64]:
            target = work.target
            found: list[Array] = []
            if len(target.shape) < 2:
                found += [np.abs(self.change(work, cut)) for cut in work.cuts]
                return np.concatenate([_NONE, *found])
            total = np.zeros(target.shape[-1])
            by_row = is_by_row(self.unit, target)
            for cut in work.cuts:
                rows = self.change(work, cut).reshape(-1, target.shape[-1])
                if by_row:
                    found.append(importance(rows, unit="row").reshape(-1))
                else:
                    total += importance(rows, unit="column").reshape(-1) * len(rows)
            if by_row:
                return np.concatenate([_NONE, *found])
            return total / max(target.size // max(target.shape[-1], 1), 1)

        found = {
            piece.target.name: np.asarray(made, np.float64)
            for piece, made in stream.map(sizes, targets, whole=True, label="Locating")
        }
        masks: dict[str, Bool] = {}
        for names in [[name] for name in found] if self.per_tensor else [list(found)]:
            masks |= topk_units({name: found[name] for name in names}, share=self.share)
        return {name: {"units": np.packbits(mask).tobytes().hex()} for name, mask in masks.items()}


def count(share: float, n: int) -> int:
    """Share of n: floor(share n + 1/2)."""
    return int(np.floor(share * n + 0.5))


def is_by_row(unit: str, target: OutputTensor) -> bool:
    """Whether units of a matrix are its rows, as it is stored."""
    return (unit == "row") != target.transposed


def _plain(cut: TensorCut) -> dict[str, Any]:
    return {"key": cut.key, "first": cut.first, "last": cut.last, "before": list(cut.before)}


def mask_of(
    found: dict[str, Any], unit: str, target: OutputTensor, delta: Float32 | None, cut: Chunk
) -> Bool:
    """Mask of a slice, from what `Locating.find` gave for its tensor.

    Parameters
    ----------
    delta : numpy.ndarray, float32, or None
        θ' − θ_o of the slice; needed for elements.
    """
    if "units" not in found:
        if delta is None:
            raise ValueError("a mask of elements needs their changes")
        made = TensorCut(found["key"], found["first"], found["last"], tuple(found["before"]))
        return made.mask(delta, cut.number)
    columns = target.shape[-1] if len(target.shape) > 1 else 1
    flat = len(target.shape) < 2
    by_row = is_by_row(unit, target)
    n = target.size // max(columns, 1) if flat or by_row else columns
    bits = np.frombuffer(bytes.fromhex(found["units"]), np.uint8)
    units = np.unpackbits(bits, count=n).view(np.bool_)
    if flat:
        return units[cut.start : cut.stop]
    if by_row:
        return np.repeat(units[cut.start // columns : cut.stop // columns], columns)
    return np.tile(units, cut.size // columns)


Part = Callable[[TensorTask, Chunk], Float32]


@dataclass(frozen=True, slots=True)
class TaskVectorSimilarity:
    """Ability and languages at one tensor.

    Attributes
    ----------
    cosine : float or None
        Of the flattened changes; None where one of them is zero.
    null : float or None
        The same after the signs of the ability's change were drawn anew.
    null_sd : float or None
        Standard deviation of that over all draws: √Σ(xy)² / (|x| |y|). A masked change is nearly
        orthogonal to anything; only a cosine of several times this size says something.
    ability, language : float
        Norms of the two changes.
    """

    cosine: float | None
    null: float | None
    null_sd: float | None
    ability: float
    language: float

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values."""
        return to_dict(self)


def measure(
    stream: MergeExecutor,
    targets: Sequence[OutputTensor],
    seed: int,
    facts: dict[str, Any],
    *,
    ability: Part,
    language: Part,
) -> dict[str, TaskVectorSimilarity]:
    """Compare two changes at every tensor, in one pass over the sources.

    Parameters
    ----------
    seed : int
        Of the null's signs.
    facts : dict
        What ``ability`` and ``language`` need to know.
    ability, language : callable
        The changes of a slice.

    Returns
    -------
    dict of str to Likeness
    """

    def sums(work: TensorTask) -> list[float]:
        cut = work.cuts[0]
        x, y = ability(work, cut), language(work, cut)
        try:
            found = compare((x, None), (y, None))
        except InputError:
            raise work.blame(cut) from None
        drawn = x * signs(seed, work.target.name, cut.number, cut.size)
        null = compare((drawn, None), (y, None)).dot
        drawn *= y
        return [*found.squares, found.dot, null, sum_of_squares(drawn)]

    totals: dict[str, list[float]] = {t.name: [0.0] * 5 for t in targets if not t.copied}
    chosen = [t for t in targets if not t.copied]
    for piece, made in stream.map(sums, chosen, whole=False, label="Comparing", facts=facts):
        total = totals[piece.target.name]
        for k, value in enumerate(made):
            total[k] += value
    return {name: _likeness(*total) for name, total in totals.items()}


def _likeness(
    xx: float, yy: float, xy: float, null: float, variance: float
) -> TaskVectorSimilarity:
    size = math.sqrt(xx) * math.sqrt(yy)
    if size == 0:
        return TaskVectorSimilarity(None, None, None, math.sqrt(xx), math.sqrt(yy))
    cosine = max(-1.0, min(1.0, xy / size))
    return TaskVectorSimilarity(
        cosine, null / size, math.sqrt(variance) / size, math.sqrt(xx), math.sqrt(yy)
    )


PAPER: dict[str, Value] = {
    "alpha": 0.8, "beta": 0.2, "gamma": 0.2, "eta": 1.0, "k1": 0.05, "k2": 0.8,
}  # fmt: skip
"""Recollected settings of the paper, not verified: the preset ``paper``."""


class Maec(Method):
    """θ_o + γ R(A) + η R_lang where ability and languages are least alike, θ_o + R_lang elsewhere.

    R(A) = Σ_a w_a [α(θ_A − θ_o) − β(θ_c − θ_o)] on the key neurons of each ability;
    R_lang = Σ_l μ_l (θ_l − θ_o). Changes are float32. With no parameter set it is task arithmetic.
    """

    name: ClassVar[str] = "maec"
    title: ClassVar[str] = "MAEC"
    paper: ClassVar[str] = "arXiv 2410.07825"
    passes: ClassVar[int] = 4
    rate: ClassVar[float] = 2e8
    parameters: ClassVar[tuple[Parameter, ...]] = (
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

    def wanted(self, config: MergeConfig) -> tuple[list[ModelInput], list[str]]:
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
            for role, reference in roles(ability).items():
                fixed: dict[str, Value] = {
                    "role": role,
                    "ability": float(number),
                    "weight": ability.weight,
                }
                taken.append(ModelInput(reference, (), fixed=fixed, extracted=role == "extracted"))
        for language in config.languages:
            mu: dict[str, Value] = {"role": "language", "weight": language.mu}
            taken.append(ModelInput(language.model, (), fixed=mu))
        return taken, []

    def run_parameters(self, given: dict[str, Value], values: dict[str, Value]) -> dict[str, Value]:
        """Let a preset say what is not given."""
        preset = PAPER if values.get("preset") == "paper" else {}
        return {**values, **{name: v for name, v in preset.items() if name not in given}}

    def problems(
        self, config: MergeConfig, parameters: dict[str, Value], targets: Sequence[OutputTensor]
    ) -> list[str]:
        """Parts of the config that do not belong together."""
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
        """R(A), R_lang, the located change, a mask, and their products."""
        return 40

    def prepare(self, stream: MergeExecutor, targets: Sequence[OutputTensor]) -> dict[str, Any]:
        """Locate the key neurons of each ability, then rank the tensors."""
        first = next((t for t in targets if not t.copied), None)
        if first is None:
            return {}
        facts: dict[str, Any] = {"located": self.locate(stream, targets)}
        roles_there = {i.parameters.get("role") for i in first.inputs}
        if not roles_there & {"trained", "extracted"} or "language" not in roles_there:
            return facts | {"tensors": {}}
        p = first.parameters
        seed = int(float(p["seed"]))
        likeness = measure(
            stream, targets, seed, facts,
            ability=self.ability, language=lambda work, cut: work.mix(changes(work.target), cut),
        )  # fmt: skip
        chosen = lowest(likeness, float(p["k2"]))
        facts["tensors"] = {
            name: {**found.to_dict(), "part": part_of(found, name in chosen)}
            for name, found in likeness.items()
        }
        return facts

    def locate(self, stream: MergeExecutor, targets: Sequence[OutputTensor]) -> dict[str, Any]:
        """Masks of the key neurons by ability and tensor, as plain values; k1 = 1 needs none."""
        first = next(t for t in targets if not t.copied)
        p = first.parameters
        if float(p["k1"]) >= 1:
            return {}
        made = {}
        for number in dict.fromkeys(abilities(first)):
            at = places(first, number)
            if "trained" in at:
                change = partial(_change, at.get("located", at["trained"]))
                locating = Locating(change, float(p["k1"]), str(p["unit"]), p["scope"] == "tensor")
                made[str(number)] = locating.find(stream, targets)
        return made

    def ability(self, work: TensorTask, cut: Chunk) -> Float32:
        """R(A) of a slice."""
        total = np.zeros(cut.size, np.float32)
        for number in dict.fromkeys(abilities(work.target)):
            total += self.one_ability(work, number, cut)[0]
        return total

    def one_ability(
        self, work: TensorTask, number: int, cut: Chunk
    ) -> tuple[Float32, NDArray[np.bool_] | None]:
        """w_a R(a) of one ability in a slice, and its mask if it has one."""
        target, at = work.target, places(work.target, number)
        base = int(target.base or 0)
        weight = target.number_of("weight", at.get("trained", at.get("extracted", 0)))
        if "extracted" in at:
            extracted: Float32 = work.mix({at["extracted"]: weight}, cut)
            return extracted, None
        alpha, beta = (weight * float(target.parameters[name]) for name in ("alpha", "beta"))
        own = {at["trained"]: alpha, base: -alpha}
        pivot = {at["pivot"]: -beta, base: beta} if beta else {}
        mask = self.mask(work, number, cut)
        if mask is None:
            return work.mix(_added(own, pivot), cut), None
        if pivot and not target.parameters["mask_pivot"]:
            made: Float32 = work.mix(own, cut)
            made *= mask
            made += work.mix(pivot, cut)
            return made, mask
        made = work.mix(_added(own, pivot), cut)
        made *= mask
        return made, mask

    def mask(self, work: TensorTask, number: int, cut: Chunk) -> NDArray[np.bool_] | None:
        """Key neurons of one ability in a slice; None where all are taken."""
        target, at = work.target, places(work.target, number)
        found = work.facts.get("located", {}).get(str(number), {}).get(target.name)
        if found is None:
            return None
        change = None
        if "units" not in found:
            change = work.delta(at.get("located", at["trained"]), cut)
        return mask_of(found, str(target.parameters["unit"]), target, change, cut)

    def run(self, work: TensorTask) -> None:
        """Combine by the part that the tensor has."""
        target = work.target
        fact = work.facts.get("tensors", {}).get(target.name)
        if fact is None:  # nothing to rank: abilities alone, or languages alone
            part = "both" if abilities(target) else "language"
        else:
            part = fact["part"]
        gamma, eta = (float(target.parameters[name]) for name in ("gamma", "eta"))
        base = int(target.base or 0)
        for cut in work.missing:
            weights = {base: 1.0}
            if part == "both":
                weights = _added(weights, {i: eta * w for i, w in changes(target).items()})
            elif part == "language":
                weights = _added(weights, changes(target))
            needs_ability = part in ("both", "ability")
            plus = (gamma, self.ability(work, cut)) if needs_ability and gamma else None
            work.write_mix(weights, cut, plus=plus)


def _change(i: int, work: TensorTask, cut: Chunk) -> Float32:
    return work.delta(i, cut)


def roles(ability: Ability) -> dict[str, str]:
    """Models of an ability by their role."""
    every = {
        "trained": ability.trained, "located": ability.located, "pivot": ability.pivot,
        "extracted": ability.extracted,
    }  # fmt: skip
    return {role: reference for role, reference in every.items() if reference is not None}


def abilities(target: OutputTensor) -> list[int]:
    """Numbers of the abilities."""
    return [int(float(i.parameters["ability"])) for i in target.inputs if "ability" in i.parameters]


def places(target: OutputTensor, ability: int) -> dict[str, int]:
    """Which inputs are the models of an ability, by role."""
    return {
        str(taken.parameters["role"]): i
        for i, taken in enumerate(target.inputs)
        if taken.parameters.get("ability") == float(ability)
    }


def changes(target: OutputTensor) -> dict[int, float]:
    """R_lang as weights of inputs: μ_l for each language, and −Σ μ for the base."""
    of = {
        i: float(taken.parameters["weight"])
        for i, taken in enumerate(target.inputs)
        if taken.parameters["role"] == "language"
    }
    return {int(target.base or 0): -math.fsum(of.values()), **of}


def _added(a: dict[int, float], b: dict[int, float]) -> dict[int, float]:
    return {i: a.get(i, 0.0) + b.get(i, 0.0) for i in {**a, **b}}


def lowest(likeness: dict[str, TaskVectorSimilarity], share: float) -> set[str]:
    """Names of the share k2 of tensors with the lowest cosine, of those that have one."""
    ranked = sorted((x.cosine, name) for name, x in likeness.items() if x.cosine is not None)
    return {name for _, name in ranked[: count(share, len(ranked))]}


def part_of(found: TaskVectorSimilarity, chosen: bool) -> str:
    """Name what a tensor is made of: ability, language, both or neither."""
    if found.cosine is not None:
        return "both" if chosen else "language"
    if found.ability > 0:
        return "ability"
    return "language" if found.language > 0 else "neither"
