"""The whole MAEC recipe: from corpora to a merged model by one config, stage by stage."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from lens import __version__
from lens.arrays import Result
from lens.errors import InputError
from lens.merging.config import MergeConfig, Recipe, RecipeSource, parse_config, parse_recipe
from lens.merging.operations import extract, merge
from lens.merging.sources import locate, read_key_neurons
from lens.models.loading import load
from lens.training.config import FinetuneSettings
from lens.training.data import Examples
from lens.training.finetune import (
    examples,
    finetune_corpus,
    read_rows,
    read_text,
)
from lens.utils.files import write_text
from lens.utils.progress import say
from lens.utils.workdir import WorkDir

_STAGES = "stages.jsonl"
_DECIDING = (".safetensors", ".json", ".jinja", ".model", ".bin", ".txt")
_REPORTING = ("reproduce.json", "made.json")  # how a model was made, which decides nothing


@dataclass(frozen=True, slots=True)
class RecipeStage(Result):
    """One step of a recipe.

    Attributes
    ----------
    name : str
        ``located``, ``keys``, ``ability``, ``pivot``, ``languages/NAME`` or ``merged``.
    out : str
        Its file or folder.
    kept : bool
        Whether an earlier run finished it.
    seconds : float
        Time taken, 0 if it was kept.
    """

    name: str
    out: str
    kept: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class RecipeResult(Result):
    """A finished recipe: folder of all stages, the merged model in it, and the stages in order."""

    out: str
    merged: str
    stages: tuple[RecipeStage, ...]


def run_recipe(
    recipe: Recipe | Mapping[str, Any], out: str | Path, *, max_memory: int | str = "1GiB"
) -> RecipeResult:
    """Locate, extract, train and merge by a recipe.

    Parameters
    ----------
    recipe : Recipe or mapping
        Corpora, settings and the parameters of the merge.
    out : path
        Folder of all stages: ``located``, ``keys.safetensors``, ``ability``, ``pivot``,
        ``languages/NAME``, ``merged``. A stage found there is reused if settings, corpora, base and
        the stages it builds on are the same and its files are unchanged.
    max_memory : int or str
        For extracting and merging.

    Returns
    -------
    RecipeResult

    Raises
    ------
    InputError
        If a corpus or model cannot be used, or ``out`` holds something else.

    Notes
    -----
    Each stage equals, bit for bit, what `lens.training.finetune`, `lens.merging.extract` or
    `lens.merging.merge` produce from the same settings.

    References
    ----------
    MAEC, arXiv:2410.07825.
    """
    work = _work_folder(Path(out))
    running = _RecipeRun(parse_recipe(recipe), work, max_memory)
    with work:
        return running.go()


class _RecipeRun:
    """State of one run: its finished stages, and hashes of their inputs."""

    def __init__(self, recipe: Recipe, work: WorkDir, max_memory: int | str) -> None:
        self.recipe, self.work, self.max_memory = recipe, work, max_memory
        self.out = work.path
        self.finished: dict[str, dict[str, Any]] = {}
        self.stages: list[RecipeStage] = []
        self.base = _contents(locate(recipe.base_model, fetch=True))
        self.corpora: dict[str, Any] = {}

    def go(self) -> RecipeResult:
        recipe = self.recipe
        for source in recipe.sources:
            self._read(source)  # reports an unreadable corpus before anything is trained
        self.work.open({})
        self.log = self.work.log(_STAGES, sync=True, strict=True)
        for record in self.log.records():  # the last record of a stage counts
            self.finished[record.fields["name"]] = record.fields
        text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_text(self.out / "recipe.yaml", text)
        ability = recipe.ability
        keys = None
        if not recipe.keyless:
            self._train("located", ability, recipe.settings(ability, ability.locate))
            keys = self.out / "keys.safetensors"
            self._extract(keys)
        self._train("ability", ability, recipe.settings(ability), keys=keys)
        if recipe.pivot is not None:
            self._train("pivot", recipe.pivot, recipe.settings(recipe.pivot))
        for language in recipe.languages:
            self._train(f"languages/{language.name}", language, recipe.settings(language))
        self._merge()
        return RecipeResult(str(self.out), str(self.out / "merged"), tuple(self.stages))

    def _train(
        self,
        name: str,
        source: RecipeSource,
        settings: FinetuneSettings,
        *,
        keys: Path | None = None,
    ) -> None:
        recipe, out = self.recipe, self.out / name
        how = recipe.ability.how if keys is not None else "all"
        rows, replay = self._read(source)
        decided = {
            "base": self.base,
            "settings": settings.model_dump(mode="json"),
            "rows": rows[1],
            "replay": replay and settings.replay_share and replay[1],
            "seed": recipe.seed,
            "dtype": recipe.dtype,
            "how": how,
            "keys": None if how == "all" else self.finished["keys"]["files"],
        }

        def make() -> None:
            model, tokenizer = load(recipe.base_model, dtype=recipe.dtype, device=recipe.device)
            learned = examples(tokenizer, rows[0], row_tokens=settings.row_tokens)
            general: Examples | None = None
            if replay and settings.replay_share:
                general = examples(tokenizer, replay[0], row_tokens=settings.row_tokens)
            found = finetune_corpus(
                model,
                tokenizer,
                learned,
                settings=settings,
                replay=general,
                seed=recipe.seed,
                keys=None if keys is None or how == "all" else read_key_neurons(keys),
                how="revert" if how == "revert" else "mask",
            )
            found.save(out, force=True)

        self._stage(name, out, decided, make)

    def _extract(self, out: Path) -> None:
        chosen = {k: v for k, v in self.recipe.parameters.items() if k in ("k1", "unit", "scope")}
        if "k1" not in chosen:  # the preset has it
            chosen["preset"] = self.recipe.parameters["preset"]
        config = parse_config(
            {
                "merge_method": "maec",
                "base_model": self.recipe.base_model,
                "abilities": [{"trained": str(self.out / "located")}],
                "parameters": {**chosen, "alpha": 1.0, "beta": 0.0},
            }
        )
        decided = {"parameters": config.parameters, "located": self.finished["located"]["files"]}
        make = partial(extract, config, out, max_memory=self.max_memory, force=True)
        self._stage("keys", out, decided, make)

    def _merge(self) -> None:
        config = self.merge_config()
        built_on = {k: v["files"] for k, v in self.finished.items() if k != "merged"}
        decided = {"config": config.model_dump(mode="json"), "on": built_on, "base": self.base}
        out = self.out / "merged"
        make = partial(merge, config, out, max_memory=self.max_memory, force=True)
        self._stage("merged", out, decided, make)

    def merge_config(self) -> MergeConfig:
        """Return the merge at the end."""
        recipe = self.recipe
        ability = {"trained": str(self.out / "ability")}
        if not recipe.keyless:
            ability["located"] = str(self.out / "located")
        if recipe.pivot is not None:
            ability["pivot"] = str(self.out / "pivot")
        values: dict[str, Any] = {
            "merge_method": "maec",
            "base_model": recipe.base_model,
            "abilities": [ability],
            "languages": [
                {"name": x.name, "model": str(self.out / "languages" / x.name), "mu": x.mu}
                for x in recipe.languages
            ],
            "parameters": recipe.parameters,
            "out_dtype": recipe.out_dtype,
            "seed": recipe.seed,
        }
        return parse_config(values)

    def _stage(
        self, name: str, out: Path, decided: dict[str, Any], make: Callable[[], object]
    ) -> None:
        """Run a stage, unless the same was finished before and its files are unchanged."""
        text = json.dumps([__version__, name, decided], sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()
        known = self.finished.get(name)
        if known is not None and known["key"] == key and _contents(out) == known["files"]:
            self.stages.append(RecipeStage(name, str(out), True, 0.0))
            return
        say(f"{name} …")
        started = time.perf_counter()
        self.finished.pop(name, None)
        make()
        self.finished[name] = {"name": name, "key": key, "files": _contents(out)}
        self.log.append(self.finished[name])
        self.stages.append(RecipeStage(name, str(out), False, time.perf_counter() - started))

    def _read(self, source: RecipeSource) -> tuple[tuple[Any, str], tuple[Any, str] | None]:
        """Corpus and replay of a source, each with its hash."""
        main = self._corpus(source.rows or str(source.text), answers=source.rows is not None)
        return main, None if source.replay is None else self._corpus(source.replay, answers=False)

    def _corpus(self, path: str, *, answers: bool) -> tuple[Any, str]:
        place = f"{path} {answers}"
        if place not in self.corpora:
            rows = read_rows(path) if answers else read_text(path)
            digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
            self.corpora[place] = (rows, digest)
        found: tuple[Any, str] = self.corpora[place]
        return found


def _contents(path: Path) -> dict[str, str]:
    """SHA-256 of a file, or of every file of a folder that affects a model."""
    files = [path] if path.is_file() else sorted(path.glob("*"))
    return {
        file.name: _sha256(file)
        for file in files
        if file.is_file() and file.suffix in _DECIDING and file.name not in _REPORTING
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _work_folder(out: Path) -> WorkDir:
    """Work folder of a recipe: its output, where no other files than its own are."""
    work = WorkDir(out, "recipe", keeps="finished stages", always_resumes=True, shared=True)
    work.check()
    names = {p.name for p in out.iterdir() if not p.name.startswith(".")} if out.exists() else set()
    if not work.begun and names - {"recipe.yaml"}:
        raise InputError(f"'{out}' exists and is no folder of lens maec run; choose another")
    return work
