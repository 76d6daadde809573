"""The demo's second act: an ability taught in English, carried to other languages by weights."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lens.data.language_id import identifier
from lens.demo import models
from lens.demo.corpus import plain_text
from lens.demo.languages import LANGUAGES, PIVOT
from lens.demo.questions import PEOPLE, Double, answers_both, double_rows, doubles
from lens.evaluation.accuracy import Outcomes, compare, outcomes, rows_of
from lens.evaluation.results import ResultRow
from lens.merging.operations import merge
from lens.models.generation import generate
from lens.models.loading import load
from lens.report.record import Example, RunRecord, System
from lens.training.config import FinetuneSettings
from lens.training.finetune import examples, finetune_corpus
from lens.utils.progress import say
from lens.utils.versions import versions

CARRIED = ("spa_Latn", "swh_Latn")
# What the study chose for this world, where text may cost what it will: factors of ability and
# language; parameters of MAEC, and μ.
ARITHMETIC = (1.0, 0.6)
MAEC: dict[str, Any] = {"k1": 0.2, "k2": 1.0, "beta": 0.25, "gamma": 1.6, "eta": 1.05}
MU = 0.7
TITLE = "From an ability in English to the same ability in other languages"
SYSTEMS = (
    System("unchanged", "unchanged", "the mixed model: answers one of two questions"),
    System("ability", "ability only", "taught in English, double questions with their answers"),
    System("language", "language only", "further pre-trained on plain text of the language"),
    System("task-arithmetic", "task arithmetic", "the sum of both changes, each with a factor"),
    System("maec", "MAEC", "key neurons of the ability, without plain English, and the language"),
    System("possible", "taught in all", "double questions in all of these languages"),
)
LIMIT = 200  # questions per language
_COMMON = {"batch_size": 32, "learning_rate": 5e-4, "autocast": True}
# Embeddings and head keep their weights.
_ABILITY = FinetuneSettings(steps=100, modules="full", **_COMMON)
_TEXT = FinetuneSettings(steps=60, batch_size=16, learning_rate=5e-4, row_tokens=128, autocast=True)
_DIRECT = FinetuneSettings(steps=150, **_COMMON)
_QUICK_TEXT, _QUICK_DIRECT = 35, 100  # steps of the two where not everything is computed
_ROWS, _DOCUMENTS = 3000, 4000


class _Act:
    """Models in a temporary folder, and what was measured of them."""

    def __init__(self, folder: Path, *, limit: int, seed: int) -> None:
        self.folder, self.limit, self.seed = folder, limit, seed
        self.base = str(models.checkpoint_path("mixed"))
        self.identifier = identifier("default", list(LANGUAGES), neutral=PEOPLE)
        self.rows: list[ResultRow] = []
        self.answers: dict[str, list[str]] = {}
        self.outcomes: dict[str, Outcomes] = {}
        self.seconds: dict[str, float] = {}

    def tuned(self, name: str, corpus: Iterable[Any], settings: FinetuneSettings) -> str:
        """Train a model from the base and return its folder."""
        say(f"train {name} …")
        started = time.perf_counter()
        model, tokenizer = load(self.base, dtype="float32")
        rows = examples(tokenizer, list(corpus), row_tokens=settings.row_tokens)
        finetune_corpus(model, tokenizer, rows, settings=settings, seed=self.seed).save(
            self.folder / name
        )
        self.seconds[f"train {name}"] = round(time.perf_counter() - started, 2)
        return str(self.folder / name)

    def merged(self, name: str, config: dict[str, Any]) -> str:
        """Merge with the base and return the folder."""
        merge({"base_model": self.base, "out_dtype": "float32", **config}, self.folder / name)
        return str(self.folder / name)

    def measure(self, system: str, models: dict[str, str]) -> None:
        """Ask the test questions, each language of the model that is meant for it."""
        say(f"test {system} …")
        asked: list[Double] = []
        answers: list[str] = []
        for code, place in models.items():
            model, tokenizer = load(place, dtype="float32")
            found = doubles("test", code, self.limit)
            answers += generate(
                model, tokenizer, [q.prompt for q in found], max_new_tokens=24, batch_size=128,
                label=f"Answering {code}",
            )  # fmt: skip
            asked += found
        marked = outcomes(
            answers, asked, identified=self.identifier.identify(answers), is_correct=answers_both
        )
        self.answers[system], self.outcomes[system] = answers, marked
        self.rows += rows_of(marked, system=system, pivot=PIVOT, seed=self.seed)


def run_ability(*, limit: int = LIMIT, seed: int = 0, full: bool = True) -> RunRecord:
    """Teach, merge and ask; return the record of the second act.

    Parameters
    ----------
    limit : int
        Test questions per language, at most 791.
    seed : int
        Of training and bootstrap intervals.
    full : bool
        Train on text and on answers in every language as long as the study did; else shorter.
    """
    on_text, directly = _TEXT, _DIRECT
    if not full:
        on_text = on_text.model_copy(update={"steps": _QUICK_TEXT})
        directly = directly.model_copy(update={"steps": _QUICK_DIRECT})
    with tempfile.TemporaryDirectory() as folder:
        act = _Act(Path(folder), limit=limit, seed=seed)
        every = (PIVOT, *CARRIED)
        english = list(double_rows(_ROWS, language=PIVOT, seed=seed))
        ability = {
            "trained": act.tuned("ability", english, _ABILITY),
            "pivot": act.tuned(PIVOT, plain_text(_DOCUMENTS, language=PIVOT, seed=seed), on_text),
        }
        text = {
            code: act.tuned(code, plain_text(_DOCUMENTS, language=code, seed=seed), on_text)
            for code in CARRIED
        }
        rows = [row for code in every for row in double_rows(_ROWS, language=code, seed=seed)]
        direct = act.tuned("possible", rows, directly)
        act.measure("unchanged", dict.fromkeys(every, act.base))
        act.measure("ability", dict.fromkeys(every, ability["trained"]))
        act.measure("language", text)
        for system, make in (("task-arithmetic", _arithmetic), ("maec", _maec)):
            merged = {
                code: act.merged(f"{system}-{code}", make(ability, text[code])) for code in CARRIED
            }
            # what the merge for the first language kept of the ability in the pivot
            act.measure(system, {PIVOT: merged[CARRIED[0]], **merged})
        act.measure("possible", dict.fromkeys(every, direct))
        return _record(act)


def _arithmetic(ability: dict[str, str], text: str) -> dict[str, Any]:
    gamma, eta = ARITHMETIC
    return {
        "merge_method": "task_arithmetic",
        "models": [
            {"model": ability["trained"], "parameters": {"weight": gamma}},
            {"model": text, "parameters": {"weight": eta}},
        ],
    }


def _maec(ability: dict[str, str], text: str) -> dict[str, Any]:
    return {
        "merge_method": "maec", "abilities": [ability], "languages": [{"model": text, "mu": MU}],
        "parameters": MAEC,
    }  # fmt: skip


def _record(act: _Act) -> RunRecord:
    before, after = act.outcomes["ability"], act.outcomes["maec"]
    judge = act.identifier
    shown = zip(
        [q for code in (PIVOT, *CARRIED) for q in doubles("test", code, act.limit)],
        act.answers["ability"], act.answers["maec"], strict=True,
    )  # fmt: skip
    examples_ = [
        Example(q.language, q.prompt, old, new, q.answer)
        for i, (q, old, new) in enumerate(shown)
        if i % act.limit < 2
    ]
    return RunRecord(
        title=TITLE,
        rows=tuple(act.rows),
        examples=tuple(examples_),
        about={
            "command": f"lens demo --limit {act.limit} --seed {act.seed}",
            "seed": act.seed,
            "versions": versions(),
            "language identifier": f"{judge.name} {judge.version}",
            "task arithmetic": ARITHMETIC,
            "MAEC": {**MAEC, "mu": MU},
            "seconds": act.seconds,
        },
        comparisons=tuple(compare(before, after, pivot=PIVOT)),
        systems=SYSTEMS,
        pivot=PIVOT,
        baseline="ability",
        main="maec",
    )
