"""MAEC: locate, extract, select, combine (arXiv 2410.07825; no code was released)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lens.maec.config import Ability, MergeConfig
from lens.maec.locating import Locating, count, mask_of
from lens.maec.matching import Wanted
from lens.maec.methods.base import Method
from lens.maec.parameters import Parameter, Value
from lens.maec.selecting import Likeness, measure
from lens.maec.targets import Cut, Target
from lens.maec.work import Work

if TYPE_CHECKING:
    from lens.maec.stream import Stream

Float32 = NDArray[np.float32]

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

    def wanted(self, config: MergeConfig) -> tuple[list[Wanted], list[str]]:
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
        taken = [Wanted(str(config.base_model), (), True, fixed={"role": "base"})]
        for number, ability in enumerate(config.abilities):
            for role, reference in roles(ability).items():
                fixed: dict[str, Value] = {
                    "role": role,
                    "ability": float(number),
                    "weight": ability.weight,
                }
                taken.append(Wanted(reference, (), fixed=fixed, extracted=role == "extracted"))
        for language in config.languages:
            mu: dict[str, Value] = {"role": "language", "weight": language.mu}
            taken.append(Wanted(language.model, (), fixed=mu))
        return taken, []

    def run_parameters(self, given: dict[str, Value], values: dict[str, Value]) -> dict[str, Value]:
        """Let a preset say what is not given."""
        preset = PAPER if values.get("preset") == "paper" else {}
        return {**values, **{name: v for name, v in preset.items() if name not in given}}

    def problems(
        self, config: MergeConfig, parameters: dict[str, Value], targets: Sequence[Target]
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

    def prepare(self, stream: Stream, targets: Sequence[Target]) -> dict[str, Any]:
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

    def locate(self, stream: Stream, targets: Sequence[Target]) -> dict[str, Any]:
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

    def ability(self, work: Work, cut: Cut) -> Float32:
        """R(A) of a slice."""
        total = np.zeros(cut.size, np.float32)
        for number in dict.fromkeys(abilities(work.target)):
            total += self.one_ability(work, number, cut)[0]
        return total

    def one_ability(
        self, work: Work, number: int, cut: Cut
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

    def mask(self, work: Work, number: int, cut: Cut) -> NDArray[np.bool_] | None:
        """Key neurons of one ability in a slice; None where all are taken."""
        target, at = work.target, places(work.target, number)
        found = work.facts.get("located", {}).get(str(number), {}).get(target.name)
        if found is None:
            return None
        change = None
        if "units" not in found:
            change = work.delta(at.get("located", at["trained"]), cut)
        return mask_of(found, str(target.parameters["unit"]), target, change, cut)

    def run(self, work: Work) -> None:
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


def _change(i: int, work: Work, cut: Cut) -> Float32:
    return work.delta(i, cut)


def roles(ability: Ability) -> dict[str, str]:
    """Models of an ability by their role."""
    every = {
        "trained": ability.trained, "located": ability.located, "pivot": ability.pivot,
        "extracted": ability.extracted,
    }  # fmt: skip
    return {role: reference for role, reference in every.items() if reference is not None}


def abilities(target: Target) -> list[int]:
    """Numbers of the abilities."""
    return [int(float(i.parameters["ability"])) for i in target.inputs if "ability" in i.parameters]


def places(target: Target, ability: int) -> dict[str, int]:
    """Which inputs are the models of an ability, by role."""
    return {
        str(taken.parameters["role"]): i
        for i, taken in enumerate(target.inputs)
        if taken.parameters.get("ability") == float(ability)
    }


def changes(target: Target) -> dict[int, float]:
    """R_lang as weights of inputs: μ_l for each language, and −Σ μ for the base."""
    of = {
        i: float(taken.parameters["weight"])
        for i, taken in enumerate(target.inputs)
        if taken.parameters["role"] == "language"
    }
    return {int(target.base or 0): -math.fsum(of.values()), **of}


def _added(a: dict[int, float], b: dict[int, float]) -> dict[int, float]:
    return {i: a.get(i, 0.0) + b.get(i, 0.0) for i in {**a, **b}}


def lowest(likeness: dict[str, Likeness], share: float) -> set[str]:
    """Names of the share k2 of tensors with the lowest cosine, of those that have one."""
    ranked = sorted((x.cosine, name) for name, x in likeness.items() if x.cosine is not None)
    return {name for _, name in ranked[: count(share, len(ranked))]}


def part_of(found: Likeness, chosen: bool) -> str:
    """Name what a tensor is made of: ability, language, both or neither."""
    if found.cosine is not None:
        return "both" if chosen else "language"
    if found.ability > 0:
        return "ability"
    return "language" if found.language > 0 else "neither"
