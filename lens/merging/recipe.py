"""The whole MAEC recipe: from corpora to a merged model by one config, stage by stage."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
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
        File or folder it made.
    kept : bool
        Whether it was finished before.
    seconds : float
        Time it took, 0 where it was kept.
    """

    name: str
    out: str
    kept: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class RecipeResult(Result):
    """A finished recipe.

    Attributes
    ----------
    out : str
        Folder of all stages.
    merged : str
        The merged model.
    stages : tuple of RecipeStage
        In order.
    """

    out: str
    merged: str
    stages: tuple[RecipeStage, ...]


def run_recipe(
    recipe: Recipe | Mapping[str, Any], out: str | Path, *, max_memory: int | str = "1GiB"
) -> RecipeResult:
    """Locate, extract, train and merge as a recipe says.

    Parameters
    ----------
    recipe : Recipe or mapping
        What is learnt from what, and how it is merged.
    out : path
        Folder of all stages: ``located``, ``keys.safetensors``, ``ability``, ``pivot``,
        ``languages/NAME``, ``merged``. A stage found there is kept if settings, corpora, base and
        the stages it builds on are the same and its files are as they were written.
    max_memory : int or str
        Of extracting and merging.

    Returns
    -------
    RecipeResult

    Raises
    ------
    InputError
        If a corpus or model cannot be used, or ``out`` holds something else.

    Notes
    -----
    Each stage is what `train`, `lens.merging.extract` or `lens.merging.merge` make by themselves of the
    same settings, bit for bit.

    References
    ----------
    MAEC, arXiv:2410.07825.
    """
    made = parse_recipe(dict(recipe) if isinstance(recipe, Mapping) else recipe)
    work = _work_folder(Path(out))
    running = _RecipeRun(made, work, max_memory)
    with work:
        return running.go()


class _RecipeRun:
    """State of one run: which stages are finished, and hashes of what they are built on."""

    def __init__(self, recipe: Recipe, work: WorkDir, max_memory: int | str) -> None:
        self.recipe, self.work, self.max_memory = recipe, work, max_memory
        self.out = work.path
        self.finished: dict[str, dict[str, Any]] = {}
        self.stages: list[RecipeStage] = []
        self.base = _contents(locate(recipe.base_model, fetch=True))
        self.corpora: dict[str, Any] = {}

    def go(self) -> RecipeResult:
        recipe = self.recipe
        for source in (
            recipe.ability,
            *recipe.languages,
            *([recipe.pivot] if recipe.pivot else []),
        ):
            self._read(source)  # every unreadable corpus is told before anything is trained
        self.work.open({})
        self.log = self.work.log(_STAGES, sync=True, strict=True)
        for record in self.log.records():  # of a stage that was made again, the last one counts
            self.finished[record.fields["name"]] = record.fields
        write_text(self.out / "recipe.yaml", _yaml(recipe.model_dump(mode="json")))
        ability = recipe.ability
        keys = None
        if not recipe.keyless:
            self._tuned("located", ability, recipe.tuning(ability, ability.locate))
            keys = self.out / "keys.safetensors"
            self._extracted(keys)
        self._tuned("ability", ability, recipe.tuning(ability), keys=keys)
        if recipe.pivot is not None:
            self._tuned("pivot", recipe.pivot, recipe.tuning(recipe.pivot))
        for language in recipe.languages:
            self._tuned(f"languages/{language.name}", language, recipe.tuning(language))
        self._merged()
        return RecipeResult(str(self.out), str(self.out / "merged"), tuple(self.stages))

    def _tuned(
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
            "base": self.base, "settings": settings.model_dump(mode="json"), "rows": rows[1],
            "replay": replay and settings.replay_share and replay[1], "seed": recipe.seed,
            "dtype": recipe.dtype, "how": how,
            "keys": None if how == "all" else self.finished["keys"]["files"],
        }  # fmt: skip

        def make() -> None:
            model, tokenizer = load(recipe.base_model, dtype=recipe.dtype, device=recipe.device)
            learnt = examples(tokenizer, rows[0], row_tokens=settings.row_tokens)
            general: Examples | None = None
            if replay and settings.replay_share:
                general = examples(tokenizer, replay[0], row_tokens=settings.row_tokens)
            found = finetune_corpus(
                model, tokenizer, learnt, settings=settings, replay=general, seed=recipe.seed,
                keys=None if keys is None or how == "all" else read_key_neurons(keys),
                how="revert" if how == "revert" else "mask",
            )  # fmt: skip
            found.save(out, force=True)

        self._stage(name, out, decided, make)

    def _extracted(self, out: Path) -> None:
        chosen = {k: v for k, v in self.recipe.parameters.items() if k in ("k1", "unit", "scope")}
        if "k1" not in chosen:  # the preset's
            chosen["preset"] = self.recipe.parameters["preset"]
        config = parse_config({
            "merge_method": "maec", "base_model": self.recipe.base_model,
            "abilities": [{"trained": str(self.out / "located")}],
            "parameters": {**chosen, "alpha": 1.0, "beta": 0.0},
        })  # fmt: skip
        decided = {"parameters": config.parameters, "located": self.finished["located"]["files"]}
        self._stage("keys", out, decided, lambda: _ignore(
            extract(config, out, max_memory=self.max_memory, force=True)
        ))  # fmt: skip

    def _merged(self) -> None:
        config = self.merge_config()
        built_on = {k: v["files"] for k, v in self.finished.items() if k != "merged"}
        decided = {"config": config.model_dump(mode="json"), "on": built_on, "base": self.base}
        out = self.out / "merged"
        self._stage("merged", out, decided, lambda: _ignore(
            merge(config, out, max_memory=self.max_memory, force=True)
        ))  # fmt: skip

    def merge_config(self) -> MergeConfig:
        """Return the merge at the end."""
        recipe = self.recipe
        ability = {"trained": str(self.out / "ability")}
        if not recipe.keyless:
            ability["located"] = str(self.out / "located")
        if recipe.pivot is not None:
            ability["pivot"] = str(self.out / "pivot")
        values: dict[str, Any] = {
            "merge_method": "maec", "base_model": recipe.base_model, "abilities": [ability],
            "languages": [
                {"name": x.name, "model": str(self.out / "languages" / x.name), "mu": x.mu}
                for x in recipe.languages
            ],
            "parameters": recipe.parameters, "out_dtype": recipe.out_dtype, "seed": recipe.seed,
        }  # fmt: skip
        return parse_config(values)

    def _stage(self, name: str, out: Path, decided: dict[str, Any], make: Any) -> None:
        """Make a stage, unless the same was made before and is still there."""
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
    """SHA-256 of a file, or of every file of a folder that decides a model."""
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


def _yaml(values: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text


def _ignore(_made: object) -> None:
    """Take a result that is on the disk as well."""
