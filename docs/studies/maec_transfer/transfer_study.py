"""An ability taught in English only, carried to other languages by weights: MAEC and its rivals.

    python docs/studies/maec_transfer/transfer_study.py \
        --config docs/studies/maec_transfer/maec.yaml --out transfer --split test

All settings of each method are searched together, with Optuna, on validation questions of each
world; the test split is asked with ``--split test`` only. Finished parts in ``--out`` are not
computed again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch.nn.functional import cross_entropy

from lens.data.language_id import Identifier, identifier
from lens.demo.corpus import plain_text
from lens.demo.languages import LANGUAGES, OTHERS, PIVOT, check_language
from lens.demo.questions import PEOPLE, Double, answers_both, double_rows, doubles
from lens.errors import InputError, LensError
from lens.evaluation.accuracy import outcomes
from lens.experiments.tuning import require_optuna, sampler
from lens.merging.operations import extract
from lens.merging.operations import merge as merge_checkpoints
from lens.merging.sources import read_key_neurons
from lens.models.generation import generate
from lens.models.loading import load
from lens.models.tokenization import encode, pad, pad_id_of
from lens.stats import hierarchical_interval
from lens.training.config import FinetuneSettings
from lens.training.data import Examples
from lens.training.finetune import examples, finetune_corpus
from lens.utils.config import read_as
from lens.utils.files import write_text
from lens.utils.hashing import hash_of_path
from lens.utils.progress import say
from lens.utils.versions import versions
from lens.utils.workdir import WorkDir


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Corpora(_Frozen):
    """How much is written of each corpus.

    Attributes
    ----------
    rows : int
        Double questions with answers, in each language that they are taught in.
    documents : int
        Documents of plain text in each language.
    held_out : int
        Documents that perplexity is measured on; none of them is trained on.
    """

    rows: int = Field(3000, ge=1)
    documents: int = Field(6000, ge=1)
    held_out: int = Field(64, ge=1)


class Trainings(_Frozen):
    """Settings of each kind of model.

    Attributes
    ----------
    ability : Tuning
        The ability.
    direct : Tuning
        The same in all languages at once: the ceiling.
    replay : Tuning
        The same with a share of plain text in the pivot.
    mixture : Tuning
        With a share of plain text in the pivot and all languages: what one would train on without
        merging.
    located : Tuning
        The brief training that key neurons are found by.
    keys : Tuning
        Key neurons alone, perhaps with a share of plain text in the pivot.
    text : Tuning
        Continued pre-training on the text of one language.
    """

    ability: FinetuneSettings
    direct: FinetuneSettings
    replay: FinetuneSettings
    mixture: FinetuneSettings
    located: FinetuneSettings
    keys: FinetuneSettings
    text: FinetuneSettings


class TransferStudy(_Frozen):
    """The whole study.

    Attributes
    ----------
    base : str
        Model that all others start from; ``{world}`` is replaced by each of ``worlds``.
    worlds : tuple of str
        Names of worlds.
    seeds : tuple of int
        Of the trainings on the ability. Settings of merges are searched with the first and used
        with all; the other models are trained once a world, with the first.
    languages : tuple of str
        The ability is carried to each of them, by a merge of its own.
    searched : tuple of str
        Those of them whose validation questions settings are chosen on, once in each world, for
        all languages; each of them by default.
    trials : int
        Of the search, for each method.
    k1 : tuple of float
        Shares of key neurons that are trained alone.
    validation, test : int
        Questions in each language: the search sees the former only.
    test_from : int
        Test questions left out before these: those that another study asked already.
    max_loss : float
        Largest fall of the ability in the pivot below that of training on it alone, on validation.
    max_perplexity : float
        Largest perplexity of the language's text, over that of its own continued pre-training.
    """

    title: str = "An ability carried to other languages"
    base: str
    worlds: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    languages: tuple[str, ...] = OTHERS
    searched: tuple[str, ...] = ()
    trials: int = Field(60, ge=1)
    k1: tuple[float, ...] = Field((0.05, 0.2), min_length=1)
    corpora: Corpora = Corpora()
    training: Trainings
    validation: int = Field(100, ge=2)
    test: int = Field(300, ge=2)
    test_from: int = Field(0, ge=0)
    max_loss: float = Field(0.03, ge=0)
    max_perplexity: float = Field(1.03, gt=0)

    @model_validator(mode="after")
    def _known(self) -> Self:
        for code in self.languages:
            if check_language(code) == PIVOT:
                raise ValueError(f"languages: {code} is the pivot, in which the ability is taught")
        foreign = [code for code in self.searched if code not in self.languages]
        if foreign:
            raise ValueError(f"searched: {', '.join(foreign)} is none of the languages")
        if not all(0 < share < 1 for share in self.k1):
            raise ValueError("k1: expected shares above 0 and below 1")
        return self


def read_study(path: str | Path) -> TransferStudy:
    """Read a study from YAML; paths in it are relative to the working folder.

    Raises
    ------
    InputError
        With one line per key that is unknown or out of range.
    """
    return read_as(path, TransferStudy)


Values = dict[str, Any]
Kind = Literal["task arithmetic", "TIES", "DARE", "MAEC"]


@dataclass(frozen=True, slots=True)
class Steps:
    """Numbers from ``low`` to ``high``, a step apart."""

    low: float
    high: float
    step: float = 0.05


Space = dict[str, Steps | tuple[str, ...]]

_FACTORS: Space = {"gamma": Steps(0.4, 2.0), "eta": Steps(0.0, 2.4)}
WHOLE = "whole"  # θ_A is trained whole, or key neurons alone
BRIEF = "brief"  # key neurons are found by a brief training, or by θ_A itself
_ARITHMETIC: list[Values] = [
    {"gamma": 1.0, "eta": eta} for eta in (0.6, 1.0, 1.4, 1.8)
]  # fmt: skip


def space(kind: Kind, k1: Sequence[float] = ()) -> Space:
    """Return what the settings of a method may be.

    α of MAEC is 1: with γ and β there is nothing that it could add. A share of 1 and a β of 0 are
    among the values, so that a part can be off.

    Parameters
    ----------
    kind : str
        The method.
    k1 : sequence of float
        Shares of key neurons that were trained alone.
    """
    if kind == "task arithmetic":
        return dict(_FACTORS)
    if kind in ("TIES", "DARE"):
        return {"density": Steps(0.05, 1.0), **_FACTORS}
    return {
        "source": (WHOLE, *(f"keys-{share:g}" for share in k1)),
        "guide": (BRIEF, "ability"),
        "k1": Steps(0.05, 1.0),
        "unit": ("element", "row", "column"),
        "scope": ("model", "tensor"),
        "k2": Steps(0.2, 1.0),
        "beta": Steps(0.0, 1.0),
        **_FACTORS,
        "mu": Steps(0.2, 2.4),
    }


def starts(kind: Kind, best: Mapping[str, Any] | None, k1: Sequence[float] = ()) -> list[Values]:
    """Return what is tried first: of task arithmetic points of a line, of others its best.

    Parameters
    ----------
    best : dict or None
        Settings that task arithmetic was found to do best with, on the same ability and within
        the same bounds; needed by all others, which begin by doing the same.
    """
    if best is None:
        return list(_ARITHMETIC)
    same: Values = {"gamma": best["gamma"], "eta": best["eta"]}
    # fewer weights must change more to do the same: the factors 1.2 and 1.5 below
    if kind == "task arithmetic":
        return [same]
    if kind in ("TIES", "DARE"):
        fewer = {**same, "gamma": 1.5 * best["gamma"], "density": 0.25}
        return [{**same, "density": 1.0}, {**same, "density": 0.5}, fewer]
    off = {
        "source": WHOLE, "guide": BRIEF, "k1": 1.0, "unit": "element", "scope": "model",
        "k2": 1.0, "beta": 0.0, **same, "mu": best["eta"], "eta": 1.0,
    }  # fmt: skip
    masked = [
        {**off, "guide": "ability", "k1": 0.5, "gamma": 1.2 * best["gamma"]},
        {**off, "guide": "ability", "k1": 0.25, "gamma": 1.5 * best["gamma"], "beta": 0.25},
    ]
    alone = [{**off, "source": f"keys-{share:g}", "k1": share} for share in k1]
    return [off, *masked, {**off, "k2": 0.8}, {**off, "beta": 0.2}, *alone]


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


def merge_config(merge: Merge, values: Mapping[str, Any], models: Models, language: str) -> Values:
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


_TOKENS = 24  # the longest answers have 20
_BATCH = 128


@dataclass(frozen=True, slots=True)
class TransferScore:
    """What one model does.

    Attributes
    ----------
    right : list of float
        Per question: 1 if both answers are right, in the language asked.
    right_any : float
        Share that is right in any language.
    fidelity : float
        Share of answers in the language asked.
    pivot : float
        Share of right answers to half as many questions in the pivot.
    perplexity : float
        Of held-out text in the language, a token.
    """

    right: list[float]
    right_any: float
    fidelity: float
    pivot: float
    perplexity: float

    @property
    def share(self) -> float:
        """Share of right answers in the language asked."""
        return sum(self.right) / len(self.right)


def judge(
    model: Any,
    tokenizer: Any,
    *,
    language: str,
    split: str,
    limit: int,
    text: Sequence[str],
    first: int = 0,
) -> TransferScore:
    """Ask a model ``limit`` double questions of a split in a language, and half in the pivot.

    Parameters
    ----------
    text : sequence of str
        Documents that perplexity is measured on.
    first : int
        Questions left out before those that are asked.

    Raises
    ------
    InputError
        If the split has fewer questions.
    """
    asked = [
        *_questions(split, language, first, limit),
        *_questions(split, PIVOT, first, max(limit // 2, 1)),
    ]
    answers = generate(
        model, tokenizer, [double.prompt for double in asked], max_new_tokens=_TOKENS,
        batch_size=_BATCH, label=f"Answering {language}", quiet=True,
    )  # fmt: skip
    found = outcomes(
        answers, asked, identified=_identifier().identify(answers), is_correct=answers_both
    )
    right = found.metric("accuracy_in_language")
    return TransferScore(
        right=[float(x) for x in right[:limit]],
        right_any=float(found.metric("accuracy_any")[:limit].mean()),
        fidelity=float(found.metric("fidelity")[:limit].mean()),
        pivot=float(right[limit:].mean()),
        perplexity=perplexity(model, tokenizer, text),
    )


def _questions(split: str, language: str, first: int, limit: int) -> list[Double]:
    found = doubles(split, language)[first : first + limit]
    if len(found) < limit:
        raise InputError(
            f"the {split} split has {len(doubles(split, language))} double questions, and {limit} "
            f"from number {first + 1} on are wanted; ask fewer"
        )
    return found


@torch.no_grad()
def perplexity(model: Any, tokenizer: Any, text: Sequence[str]) -> float:
    """Perplexity of documents, a token; each is read from its beginning."""
    rows = encode(tokenizer, text, role="text")
    total = count = 0.0
    for at in range(0, len(rows), _BATCH):
        batch = pad(rows[at : at + _BATCH], pad_id=pad_id_of(tokenizer), side="right")
        found = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        learnt = batch.attention_mask[:, 1:].bool()
        lost = cross_entropy(
            found[:, :-1][learnt].float(), batch.input_ids[:, 1:][learnt], reduction="sum"
        )
        total, count = total + float(lost), count + float(learnt.sum())
    return math.exp(total / count)


@cache
def _identifier() -> Identifier:
    return identifier("default", list(LANGUAGES), neutral=PEOPLE)


@torch.no_grad()
def put(model: Any, folder: str | Path) -> None:
    """Give a model the weights of a checkpoint of the same shape, which is faster than loading."""
    from safetensors.torch import load_file

    named = dict(model.named_parameters())
    for file in Path(folder).glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            if name in named:
                named[name].copy_(tensor)


class Models:
    """Trains what a merge is made of, each into a folder of its own, unless it is there.

    Parameters
    ----------
    study : TransferStudy
        Settings.
    world : str
        Name of the world.
    seed : int
        Of corpora and training.
    out : Path
        Folder of the models of all seeds of the world.

    Raises
    ------
    InputError
        If ``out`` holds models of other settings or another base.
    """

    def __init__(self, study: TransferStudy, world: str, *, seed: int, out: Path) -> None:
        self.study, self.world, self.seed = study, world, seed
        self.out, self.shared = out / f"seed-{seed}", out / "shared"
        self.base = study.base.format(world=world)
        _check(out, {
            "base": hash_of_path(self.base), "seeds": list(study.seeds), "k1": list(study.k1),
            "languages": list(study.languages), "corpora": study.corpora.model_dump(),
            "training": study.training.model_dump(),
            "torch": versions()["torch"],
        })  # fmt: skip

    def path(self, name: str) -> str:
        """Folder of a model, or file of key neurons."""
        return str(self._folder(name) / name)

    def make(self) -> None:
        """Train all of them."""
        how = self.study.training
        self._taught("ability", how.ability)
        self._taught("located", how.located)
        for share in self.study.k1:
            self._extract(share)
            beside = (PIVOT,) if how.keys.replay_share else ()
            self._taught(f"keys-{share:g}", how.keys, keys=self._keys(share), general=beside)
        self._taught("replay", how.replay, general=(PIVOT,))
        for language in (PIVOT, *self.study.languages):
            self._made(
                f"text-{language}",
                how.text,
                lambda t, x=language: self._text(t, (x,), how.text.row_tokens),
            )
        every = (PIVOT, *self.study.languages)
        self._taught("mixture", how.mixture, general=every)
        self._taught("direct", how.direct, languages=every)

    def _folder(self, name: str) -> Path:
        once = name in ("direct", "mixture") or name.startswith("text-")
        return self.shared if once else self.out

    def _seed(self, name: str) -> int:
        return self.study.seeds[0] if self._folder(name) == self.shared else self.seed

    def held_out(self, language: str, split: str) -> list[str]:
        """Documents of a split of their own, none of which is among those of any training."""
        seed = {"validation": -1, "test": -2}[split]
        return list(plain_text(self.study.corpora.held_out, language=language, seed=seed))

    def _taught(
        self,
        name: str,
        settings: FinetuneSettings,
        *,
        keys: Path | None = None,
        general: tuple[str, ...] = (),
        languages: tuple[str, ...] = (PIVOT,),
    ) -> None:
        def corpus(tokenizer: Any) -> Examples:
            count = self.study.corpora.rows
            seed = self._seed(name)
            rows = [
                row for code in languages
                for row in double_rows(count, language=code, seed=seed)
            ]  # fmt: skip
            return examples(tokenizer, rows)

        self._made(name, settings, corpus, keys=keys, general=general)

    def _text(self, tokenizer: Any, languages: tuple[str, ...], size: int) -> Examples:
        count = self.study.corpora.documents // len(languages)
        rows = [
            r for x in languages for r in plain_text(count, language=x, seed=self.study.seeds[0])
        ]
        return examples(tokenizer, rows, row_tokens=size)

    def _made(
        self,
        name: str,
        settings: FinetuneSettings,
        corpus: Any,
        *,
        keys: Path | None = None,
        general: tuple[str, ...] = (),
    ) -> None:
        out = Path(self.path(name))
        if out.exists():
            return
        say(f"{self.world}, seed {self.seed}: training {name} …")
        model, tokenizer = load(self.base, dtype="float32")
        replay = self._text(tokenizer, general, settings.row_tokens) if general else None
        finetune_corpus(
            model, tokenizer, corpus(tokenizer), settings=settings, replay=replay,
            keys=None if keys is None else read_key_neurons(keys), seed=self._seed(name),
        ).save(out)  # fmt: skip

    def _keys(self, share: float) -> Path:
        return self.out / f"keys-{share:g}.safetensors"

    def _extract(self, share: float) -> None:
        if self._keys(share).exists():
            return
        extract({
            "merge_method": "maec", "base_model": self.base,
            "abilities": [{"trained": self.path("located")}], "parameters": {"k1": share},
        }, self._keys(share))  # fmt: skip


def _check(out: Path, decided: dict[str, Any]) -> None:
    """Refuse a folder whose models were made otherwise."""
    text = json.dumps(decided, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    record = out / "models.json"
    if record.exists():
        if json.loads(record.read_text(encoding="utf-8"))["sha256"] != digest:
            raise InputError(
                f"'{out}' holds models of other settings or another base; choose another --out"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"sha256": digest, **decided}, indent=1), encoding="utf-8")


_DIGITS = 6  # a multiple of a step is that number, not the nearest sum of binary fractions


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a merge does on validation questions, over the languages that are searched.

    Attributes
    ----------
    share : float
        Share of right answers in the language asked.
    pivot : float
        The same in the pivot.
    perplexity : float
        Of text in the language, over that of its own further pre-training.
    """

    share: float
    pivot: float
    perplexity: float


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a merge must keep.

    Attributes
    ----------
    pivot : float
        Least share of right answers in the pivot.
    perplexity : float
        Largest relative perplexity; infinite where it is not bounded.
    """

    pivot: float
    perplexity: float

    def miss(self, found: SearchResult) -> float:
        """How far it is outside: points of the pivot's share, plus the relative perplexity."""
        return max(self.pivot - found.pivot, 0.0) + max(found.perplexity / self.perplexity - 1, 0)


@dataclass(frozen=True, slots=True)
class MergeTrial:
    """Settings and what they gave on validation questions."""

    values: Values
    found: SearchResult


def search(
    space: Space,
    *,
    judge: Callable[[Values], SearchResult],
    bounds: Bounds,
    starts: Sequence[Values],
    trials: int,
    seed: int = 0,
) -> MergeTrial:
    """Choose settings: a number of trials, all settings changed together; the best within bounds.

    Parameters
    ----------
    space : dict of str to Steps or tuple
        What each setting may be.
    judge : callable
        Merges with some settings and asks validation questions.
    bounds : Bounds
        Settings within them come before those outside.
    starts : sequence of dict
        Tried first, as they are.
    trials : int
        In all, those of ``starts`` included.
    seed : int
        Of what is proposed.

    Raises
    ------
    MissingExtraError
        If Optuna is not installed.

    Notes
    -----
    Each trial is proposed from a seed of its own and the trials before it. A search that was cut
    off therefore proposes the same again, and finds what was judged in its journal.
    """
    optuna = require_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    proposals = optuna.create_study(direction="maximize")
    for values in starts:
        proposals.enqueue_trial(_inside(space, values))
    made = []
    for number in range(trials):
        proposals.sampler = sampler(seed, number)
        trial = proposals.ask()
        values = {name: _suggested(trial, name, choice) for name, choice in space.items()}
        made.append(MergeTrial(values, judge(values)))
        trial.set_constraint("bounds", bounds.miss(made[-1].found))
        proposals.tell(trial, made[-1].found.share)
    return chosen(made, bounds)


def chosen(trials: Sequence[MergeTrial], bounds: Bounds) -> MergeTrial:
    """Best trial within the bounds; where none is, the one that misses them least."""
    return min(trials, key=lambda t: (bounds.miss(t.found), -t.found.share, -t.found.pivot))


def _suggested(trial: Any, name: str, choice: Steps | tuple[str, ...]) -> Any:
    if isinstance(choice, Steps):
        value = trial.suggest_float(name, choice.low, choice.high, step=choice.step)
        return round(value, _DIGITS)
    return trial.suggest_categorical(name, choice)


def _inside(space: Space, values: Mapping[str, Any]) -> Values:
    """Put numbers on the nearest step; what Optuna would refuse is no start."""
    found: Values = {}
    for name, choice in space.items():
        value = values[name]
        if isinstance(choice, Steps):
            steps = round((min(max(value, choice.low), choice.high) - choice.low) / choice.step)
            value = round(choice.low + steps * choice.step, _DIGITS)
        found[name] = value
    return found


Estimate = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class TransferRow:
    """One system.

    Attributes
    ----------
    system : str
        Its name.
    average : (value, low, high)
        Share of right answers in the language asked over all languages, with 95 % intervals over
        worlds, seeds and questions.
    languages : dict of str to (value, low, high)
        The same by language.
    change : (value, low, high) or None
        ``average`` minus that of task arithmetic within the same bounds, on the same worlds, seeds
        and questions.
    right_any, fidelity : float
        Right in any language; answers in the language asked.
    pivot, loss : float
        Ability in the pivot; how far it is below that of the model trained on the ability alone.
    perplexity : float
        Of held-out text, over that of the language's own continued pre-training.
    n : str
        Worlds × seeds × questions.
    """

    system: str
    average: Estimate
    languages: dict[str, Estimate]
    change: Estimate | None
    right_any: float
    fidelity: float
    pivot: float
    loss: float
    perplexity: float
    n: str


def summarise(records: Sequence[Mapping[str, Any]]) -> list[TransferRow]:
    """Average the records of each system over worlds and seeds."""
    table = {_key(r): r for r in records}
    names = list(dict.fromkeys(str(r["system"]) for r in records))
    return [_line(name, records, table) for name in names]


def _key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in ("system", "world", "seed", "language"))


def _line(
    name: str, records: Sequence[Mapping[str, Any]], table: Mapping[Any, Mapping[str, Any]]
) -> TransferRow:
    mine = [r for r in records if r["system"] == name]
    languages = list(dict.fromkeys(str(r["language"]) for r in mine))
    other = against(name)
    others = [table.get((other, *_key(r)[1:])) for r in mine]
    change = None
    if name != other and all(others):
        pairs = zip(mine, others, strict=True)
        change = _estimate([
            {**r, "right": list(np.subtract(r["right"], o["right"]))} for r, o in pairs if o
        ])  # fmt: skip
    alone = [table["ability only", *_key(r)[1:]]["pivot"] for r in mine]
    text = [table["language only", *_key(r)[1:]]["perplexity"] for r in mine]
    groups = _groups(mine)
    return TransferRow(
        name, _estimate(mine),
        {x: _estimate([r for r in mine if r["language"] == x]) for x in languages},
        change,
        float(np.mean([r["right_any"] for r in mine])),
        float(np.mean([r["fidelity"] for r in mine])),
        float(np.mean([r["pivot"] for r in mine])),
        float(np.mean(np.subtract(alone, [r["pivot"] for r in mine]))),
        float(np.mean(np.divide([r["perplexity"] for r in mine], text))),
        f"{len(groups)} × {len(groups[0])} × {groups[0].shape[1]}",
    )  # fmt: skip


def _groups(records: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Per world: seeds in rows, questions in columns, averaged over the languages."""
    found: dict[str, dict[int, list[list[float]]]] = {}
    for r in records:
        found.setdefault(r["world"], {}).setdefault(r["seed"], []).append(r["right"])
    return [
        np.asarray([np.mean(rows, axis=0) for rows in seeds.values()]) for seeds in found.values()
    ]


def _estimate(records: Sequence[Mapping[str, Any]]) -> Estimate:
    groups = _groups(records)
    low, high = hierarchical_interval(groups)
    return float(np.mean([g.mean() for g in groups])), low, high


def tables(lines: Sequence[TransferRow]) -> str:
    """Markdown: averages of every system, then each by language."""
    head = ["system", "in language", "minus task arithmetic", "any language", "fidelity", "English",
            "perplexity", "worlds × seeds × questions"]  # fmt: skip
    rows = [
        [
            line.system, _shown(line.average),
            "–" if line.change is None else _shown(line.change, sign="+"),
            f"{line.right_any:.3f}", f"{line.fidelity:.3f}", f"{line.pivot:.3f}",
            f"× {line.perplexity:.3f}", line.n,
        ]
        for line in lines
    ]  # fmt: skip
    codes = list(lines[0].languages) if lines else []
    by = [[line.system, *(_shown(line.languages[code]) for code in codes)] for line in lines]
    return f"{_markdown(head, rows)}\n\n{_markdown(['by language', *codes], by)}"


def write(
    out: Path, settings: TransferStudy, records: Sequence[Mapping[str, Any]], *, split: str
) -> list[TransferRow]:
    """Write ``table-SPLIT.md`` and ``results-SPLIT.json``; return the lines."""
    lines = summarise(records)
    write_text(out / f"table-{split}.md", tables(lines) + "\n")
    content = {
        "schema": "lens.transfer/1",
        "split": split,
        "study": settings.model_dump(mode="json"),
        "versions": versions(),
        "lines": [asdict(line) for line in lines],
        "records": [{k: v for k, v in r.items() if k != "right"} for r in records],
    }
    write_text(out / f"results-{split}.json", json.dumps(content, indent=1) + "\n")
    return lines


def _shown(value: Estimate, *, sign: str = "") -> str:
    return f"{value[0]:{sign}.3f} ({value[1]:{sign}.3f} to {value[2]:{sign}.3f})"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


Split = Literal["validation", "test"]


def study(
    settings: TransferStudy,
    out: str | Path,
    *,
    split: Split = "validation",
    worlds: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Train, search and judge; return one record per world, seed, language and system.

    Parameters
    ----------
    settings : TransferStudy
        What is done.
    out : path
        Folder of models and records; what is finished there is not done again.
    split : {"validation", "test"}
        Questions of the records. The search sees validation questions in any case.
    worlds : sequence of str, optional
        Only these; several processes may share ``out``, one a world.
    """
    records: list[dict[str, Any]] = []
    for world in worlds or settings.worlds:
        found = _World(settings, world, Path(out))
        with found.work:
            records += found.judged(split)
    return records


class _World:
    """One world: its models by seed, the model that takes their weights, and its records."""

    def __init__(self, settings: TransferStudy, world: str, out: Path) -> None:
        self.settings, self.world, self.out = settings, world, out
        self.made = [Models(settings, world, seed=seed, out=out / world) for seed in settings.seeds]
        self.work = WorkDir(
            out / world, "study", keeps="finished records", always_resumes=True, shared=True
        )
        self.work.open({})
        self.log = self.work.log("records.jsonl", sync=True, strict=True)
        self.finished = {record.fields["key"]: record.fields for record in self.log.records()}
        self.model, self.tokenizer = load(self.made[0].base, dtype="float32")

    def judged(self, split: Split) -> list[dict[str, Any]]:
        records = []
        for models in self.made:
            models.make()
            found = self.chosen()
            for language in self.settings.languages:
                for name, what in self._systems(models, language, found).items():
                    say(f"{self.world}, seed {models.seed}, {language}: {name} …")
                    record = self._record(models, language, split, what, name)
                    records.append(record | {
                        "world": self.world, "split": split,
                        "values": what if isinstance(what, dict) else {},
                    })  # fmt: skip
        return records

    def chosen(self) -> dict[str, Values]:
        """Choose settings of each method on validation questions, with the first seed."""
        best: dict[bool, Values] = {}
        found: dict[str, Values] = {}
        k1 = self.settings.k1
        for merge in MERGES:
            say(f"{self.world}: searching {merge.name}, {self.settings.trials} trials …")
            trial = search(
                space(merge.kind, k1), judge=partial(self._tried, merge),
                bounds=self._bounds(text=not merge.free), trials=self.settings.trials,
                starts=starts(merge.kind, best.get(merge.free), k1),
                seed=self.settings.seeds[0],
            )  # fmt: skip
            say(f"{merge.name}: {trial}")
            found[merge.name] = trial.values
            best.setdefault(merge.free, trial.values)
        return found

    def _tried(self, merge: Merge, values: Values) -> SearchResult:
        """Merge for every language that is searched, and average what the merges do."""
        models, made = self.made[0], []
        for language in self._searched:
            config = merge_config(merge, values, models, language)
            record = self._record(models, language, "validation", config, merge.name)
            own = self._trained(language, f"text-{language}")["perplexity"]
            made.append((_share(record), record["pivot"], record["perplexity"] / own))
        return SearchResult(*(sum(numbers) / len(made) for numbers in zip(*made, strict=True)))

    @property
    def _searched(self) -> tuple[str, ...]:
        return self.settings.searched or self.settings.languages

    def _trained(self, language: str, name: str) -> dict[str, Any]:
        models = self.made[0]
        return self._record(models, language, "validation", models.path(name), name)

    def _bounds(self, *, text: bool) -> Bounds:
        pivots = [self._trained(language, "ability")["pivot"] for language in self._searched]
        largest = self.settings.max_perplexity if text else math.inf
        return Bounds(sum(pivots) / len(pivots) - self.settings.max_loss, largest)

    def _systems(
        self, models: Models, language: str, found: dict[str, Values]
    ) -> dict[str, str | Values]:
        """Everything that is judged: folders, and configs of merges."""
        made: dict[str, str | Values] = {**trained(self.settings, models, language)}
        for merge in MERGES:
            made[merge.name] = merge_config(merge, found[merge.name], models, language)
        for merge in MERGES:
            for part, off in PARTS.items() if merge.kind == "MAEC" else ():
                values = without(off, found[merge.name])
                made[f"{merge.name}, {part}"] = merge_config(merge, values, models, language)
        return made

    def _record(
        self, models: Models, language: str, split: Split, what: str | Values, system: str
    ) -> dict[str, Any]:
        """Judge a model or a merge once; what was judged before is read from the log."""
        asked: dict[str, int] = {"limit": getattr(self.settings, split)}
        if split == "test":
            asked["first"] = self.settings.test_from
        facts = [
            models.seed, language, split, asked, self.settings.corpora.held_out, what,
            versions()["torch"],
        ]  # fmt: skip
        text = json.dumps(facts, sort_keys=True).replace(str(self.out), "")
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        if key not in self.finished:
            judged = self._judge(models, language, split, what, asked)
            told = {"seed": models.seed, "language": language, "asked": f"{split} {asked}"}
            if isinstance(what, dict):
                told |= {"merge": what["merge_method"], "parameters": _settings(what)}
            self.finished[key] = {"key": key, **told, **asdict(judged)}
            self.log.append(self.finished[key])
        return self.finished[key] | {
            "seed": models.seed, "language": language, "system": system,
        }  # fmt: skip

    def _judge(
        self, models: Models, language: str, split: Split, what: str | Values, asked: dict[str, int]
    ) -> TransferScore:
        text = models.held_out(language, split)
        with tempfile.TemporaryDirectory() as folder:
            place = Path(what) if isinstance(what, str) else Path(folder) / "merged"
            if not isinstance(what, str):
                merge_checkpoints(what, place)
            put(self.model, place)
        return judge(self.model, self.tokenizer, language=language, split=split, text=text, **asked)


def _share(record: Mapping[str, Any]) -> float:
    return float(sum(record["right"]) / len(record["right"]))


def _settings(config: Values) -> Values:
    """Return what a merge is made with, without its models: for who reads the records."""
    models = [*config.get("models", ()), *config.get("languages", ())]
    each = [m.get("parameters", {"mu": m.get("mu")}) for m in models]
    return {"run": config["parameters"], "each": each}


def main() -> None:
    """Read the command line, run the study and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", required=True, help="YAML: worlds, seeds, trainings, trials")
    parser.add_argument("--out", required=True, type=Path, help="folder of models and results")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument(
        "--world", action="append", help="only this world; several processes may share --out"
    )
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    given = parser.parse_args()
    try:
        read = read_study(given.config)
        records = study(read, given.out, split=given.split, worlds=given.world)
        if given.world:
            rows = summarise(records)
        else:
            rows = write(given.out, read, records, split=given.split)
    except LensError as error:
        sys.exit(f"transfer_study: {error}")
    print(json.dumps([asdict(row) for row in rows]) if given.json else tables(rows))


if __name__ == "__main__":
    main()
