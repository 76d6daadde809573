"""Carry out the study: train, search on validation, judge on a split; finished parts are kept."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lens.lsm.saving import versions
from lens.maec import merge as merge_checkpoints
from lens.models import load
from lens.progress import say
from lens.sweeps.journal import Journal
from lens.world.transfer import systems
from lens.world.transfer.config import TransferStudy
from lens.world.transfer.judging import Judged, judge, put
from lens.world.transfer.models import Models
from lens.world.transfer.searching import Bounds, search
from lens.world.transfer.systems import MERGES, PARTS, Merge, Values

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
        records += _World(settings, world, Path(out)).judged(split)
    return records


class _World:
    """One world: its models by seed, the model that takes their weights, and its journal."""

    def __init__(self, settings: TransferStudy, world: str, out: Path) -> None:
        self.settings, self.world, self.out = settings, world, out
        self.made = [Models(settings, world, seed=seed, out=out / world) for seed in settings.seeds]
        self.journal = Journal(out / world / "records.jsonl")
        self.model, self.tokenizer = load(self.made[0].base, dtype="float32")

    def judged(self, split: Split) -> list[dict[str, Any]]:
        records = []
        for models in self.made:
            models.make()
            found = self.chosen()
            for language in self.settings.languages:
                for name, what in self._systems(models, language, found).items():
                    say(f"{self.world}, seed {models.seed}, {language}: {name} …")
                    record = self._record(models, language, split, what)
                    records.append(record | {
                        "world": self.world, "seed": models.seed, "language": language,
                        "system": name, "split": split, "values": what if isinstance(what, dict)
                        else {},
                    })  # fmt: skip
        return records

    def chosen(self) -> dict[str, Values]:
        """Choose settings of each method on validation questions, with the first seed."""
        models, language = self.made[0], self.settings.searched
        best: dict[tuple[bool, bool], Values] = {}
        found: dict[str, Values] = {}
        for merge in MERGES:
            say(f"{self.world}, {language}: searching {merge.name} …")
            alike = (merge.replayed, merge.bounded)
            found[merge.name] = search(
                merge, bounds=self._bounds(models, language, text=merge.bounded),
                k1=self.settings.k1, best=best.get(alike),
                judge=partial(self._tried, models, language, merge),
            ).values  # fmt: skip
            best.setdefault(alike, found[merge.name])
        return found

    def _tried(self, models: Models, language: str, merge: Merge, values: Values) -> Judged:
        config = systems.config(merge, values, models, language)
        return _as_judged(self._record(models, language, "validation", config))

    def _bounds(self, models: Models, language: str, *, text: bool) -> Bounds:
        ability = self._record(models, language, "validation", models.path("ability"))
        own = self._record(models, language, "validation", models.path(f"text-{language}"))
        largest = own["perplexity"] * self.settings.max_perplexity if text else math.inf
        return Bounds(ability["pivot"] - self.settings.max_loss, largest)

    def _systems(
        self, models: Models, language: str, found: dict[str, Values]
    ) -> dict[str, str | Values]:
        """Everything that is judged: folders, and configs of merges."""
        made: dict[str, str | Values] = {**systems.trained(self.settings, models, language)}
        for merge in MERGES:
            made[merge.name] = systems.config(merge, found[merge.name], models, language)
        maec = next(merge for merge in MERGES if merge.name == "MAEC")
        once = models is self.made[0]  # parts of the method are switched off with one seed
        for name, part in PARTS.items() if once else ():
            values = systems.without(part, found["MAEC"])
            made[name] = systems.config(maec, values, models, language)
        return made

    def _record(
        self, models: Models, language: str, split: Split, what: str | Values
    ) -> dict[str, Any]:
        """Judge a model or a merge once; what was judged before is read from the journal."""
        limit = getattr(self.settings, split)
        facts = [
            models.seed, language, split, limit, self.settings.corpora.held_out, what,
            versions()["torch"],
        ]  # fmt: skip
        text = json.dumps(facts, sort_keys=True).replace(str(self.out), "")
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        if key not in self.journal.records:
            judged = self._judge(models, language, split, what, limit)
            self.journal.add({"key": key, **asdict(judged)})
        return self.journal.records[key]

    def _judge(
        self, models: Models, language: str, split: Split, what: str | Values, limit: int
    ) -> Judged:
        text = models.held_out(language, split)
        with tempfile.TemporaryDirectory() as folder:
            place = Path(what) if isinstance(what, str) else Path(folder) / "merged"
            if not isinstance(what, str):
                merge_checkpoints(what, place)
            put(self.model, place)
        return judge(
            self.model, self.tokenizer, language=language, split=split, limit=limit, text=text
        )


def _as_judged(record: dict[str, Any]) -> Judged:
    return Judged(**{name: record[name] for name in Judged.__dataclass_fields__})
