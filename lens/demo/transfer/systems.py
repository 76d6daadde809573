"""What is compared: trained models as they are, and merges with the settings that are searched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lens.demo.languages import PIVOT
from lens.demo.transfer.config import TransferStudy
from lens.demo.transfer.models import Models
from lens.demo.transfer.spaces import BRIEF, WHOLE, Kind, Values


@dataclass(frozen=True, slots=True)
class Merge:
    """A merge method, and the ability it takes.

    Attributes
    ----------
    name : str
        In tables.
    kind : str
        Method.
    free : bool
        It takes the ability that was taught without plain text in the pivot beside it, and settings
        need to keep the pivot's ability alone, not the perplexity of text as well.
    """

    name: str
    kind: Kind
    free: bool = False


MERGES = (
    Merge("task arithmetic", "task arithmetic"),
    Merge("TIES", "TIES"),
    Merge("DARE", "DARE"),
    Merge("MAEC", "MAEC"),
    Merge("task arithmetic, text free", "task arithmetic", free=True),
    Merge("TIES, text free", "TIES", free=True),
    Merge("MAEC, text free", "MAEC", free=True),
)
"""In the order of the search: task arithmetic first, whose best is where the others begin."""

# What is off in each line of MAEC, as values of the settings that were found.
PARTS: dict[str, Values] = {
    "without key neurons": {"k1": 1.0, "source": WHOLE},
    "key neurons not trained alone": {"source": WHOLE},
    "located by the brief training": {"guide": BRIEF},
    "without selection": {"k2": 1.0},
    "without β": {"beta": 0.0},
    "η = 1": {"eta": 1.0},
}


def against(name: str) -> str:
    """Return the task arithmetic that a system is compared with: that within the same bounds."""
    plain, free = (
        next(m.name for m in MERGES if m.kind == "task arithmetic" and m.free is wanted)
        for wanted in (False, True)
    )
    return free if any(m.free and name.startswith(m.name) for m in MERGES) else plain


def trained(study: TransferStudy, models: Models, language: str) -> dict[str, str]:
    """Models that are judged as they are: name in tables -> folder."""
    found = {"unchanged": models.base, "ability only": models.path("ability")}
    found |= {f"key neurons only, k1 = {k:g}": models.path(f"keys-{k:g}") for k in study.k1}
    return found | {
        "language only": models.path(f"text-{language}"),
        "ability with replay": models.path("replay"),
        "one mixture": models.path("mixture"),
        "taught in all languages": models.path("direct"),
    }


def config(merge: Merge, values: Mapping[str, Any], models: Models, language: str) -> Values:
    """Return the merge of these settings, for `lens.merging.merge`."""
    ability = models.path("ability" if merge.free else "replay")
    text = models.path(f"text-{language}")
    common: Values = {"base_model": models.base, "out_dtype": "float32", "seed": models.seed}
    if merge.kind == "MAEC":
        return common | _maec(values, models, ability, text)
    method = {"task arithmetic": "task_arithmetic", "TIES": "ties", "DARE": "dare_linear"}
    more = {} if merge.kind == "task arithmetic" else {"density": values["density"]}
    return common | {
        "merge_method": method[merge.kind],
        "models": [
            {"model": ability, "parameters": {"weight": values["gamma"], **more}},
            {"model": text, "parameters": {"weight": values["eta"], **more}},
        ],
        "parameters": {"normalize": False},
    }  # fmt: skip


def _maec(values: Mapping[str, Any], models: Models, ability: str, text: str) -> Values:
    source = str(values["source"])
    alone = source != WHOLE
    k1 = float(source.removeprefix("keys-")) if alone else values["k1"]
    guide = models.path("located") if alone or values["guide"] == BRIEF else ability
    taken: Values = {"trained": ability, "located": guide}
    ranked: Values = {"unit": values["unit"], "scope": values["scope"]}
    if alone:  # they were located element by element over the whole model
        taken["trained"], ranked = models.path(source), {}
    if values["beta"]:
        taken["pivot"] = models.path(f"text-{PIVOT}")
    return {
        "merge_method": "maec",
        "abilities": [taken],
        "languages": [{"model": text, "mu": values["mu"]}],
        "parameters": {
            "k1": k1, "k2": values["k2"], "beta": values["beta"], "gamma": values["gamma"],
            "eta": values["eta"], **ranked,
        },
    }  # fmt: skip


def without(part: Mapping[str, Any], values: Mapping[str, Any]) -> Values:
    """Return settings with a part of the method off; key neurons stay as they were trained."""
    found = {**values, **part}
    alone = str(values["source"])
    if part.get("source") == WHOLE and "k1" not in part and alone != WHOLE:
        found["k1"] = float(alone.removeprefix("keys-"))
    return found
