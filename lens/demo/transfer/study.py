"""Carry out the study: train, search on validation, judge on a split; finished parts are kept."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lens.demo.transfer import systems
from lens.demo.transfer.config import TransferStudy
from lens.demo.transfer.judging import TransferScore, judge, put
from lens.demo.transfer.models import Models
from lens.demo.transfer.searching import Bounds, SearchResult, search
from lens.demo.transfer.spaces import Values, space, starts
from lens.demo.transfer.systems import MERGES, PARTS, Merge
from lens.merging.operations import merge as merge_checkpoints
from lens.models.loading import load
from lens.utils.progress import say
from lens.utils.versions import versions
from lens.utils.workdir import WorkDir

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
            config = systems.config(merge, values, models, language)
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
        made: dict[str, str | Values] = {**systems.trained(self.settings, models, language)}
        for merge in MERGES:
            made[merge.name] = systems.config(merge, found[merge.name], models, language)
        for merge in MERGES:
            for part, off in PARTS.items() if merge.kind == "MAEC" else ():
                values = systems.without(off, found[merge.name])
                made[f"{merge.name}, {part}"] = systems.config(merge, values, models, language)
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
