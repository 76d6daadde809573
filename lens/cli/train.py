"""``lens train``: Lens training of the top blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
from pydantic import BeforeValidator, model_validator

from lens.cli.options import Verb, command, print_json
from lens.errors import InputError, VerificationError
from lens.experiments.config import TuningConfig
from lens.models.config import ModelSettings
from lens.training.config import TrainSettings
from lens.utils.settings import Names, option

if TYPE_CHECKING:
    from lens.space.space import Space
    from lens.training.result import TrainResult

Prompts = Mapping[str, Sequence[str]]
Answers = Mapping[str, Sequence[str | None]]

_QUESTIONS = "question-translation"  # the model's own prompts are its answers


def _keys(value: Any) -> Any:
    if isinstance(value, Mapping | TuningConfig) or value is None:
        return value
    raise ValueError(
        f"got {value!r}, expected a YAML file with 'validation:' questions and what is searched, "
        "or its keys"
    )


class TrainOptions(TrainSettings, ModelSettings, Verb):
    """Options of ``lens train`` and its plan."""

    prompts: Path = option(
        ..., "Parallel prompts, no answers: folder of CODE.txt, .jsonl, .json or .tsv."
    )
    languages: Names | None = option(
        None, "Languages to train; all in the prompts by default.", key="langs"
    )
    limit: int | None = option(None, "Prompts per language.", ge=2)
    low_memory: bool = option(
        True,
        "Keep weights that training does not need in files, not in memory.",
        off="keep-in-memory",
    )
    answers: Path | None = option(
        None,
        "Answers to the prompts, line by line, for losses that read them; else they are generated.",
    )
    texts: Path | None = option(
        None,
        "Parallel plain text: examples of translation, or what losses with rows: text read.",
    )
    translator: str | None = option(
        None, "Model that translates with the same tokenizer; else --model."
    )
    validation: Path | None = option(
        None, "Held-out parallel prompts; the weights that do best on them are kept."
    )
    refusal_prompts: Path | None = option(
        None, "Prompts, one per line, whose refusals must not move: report how far they do."
    )
    tune: Annotated[TuningConfig | None, BeforeValidator(_keys)] = option(
        None,
        "YAML: choose λ, layers and losses on validation questions first.",
        file=True,
        metavar="FILE",
    )
    journal: Path | None = option(
        None,
        "Folder that keeps the trials of --tune, to resume from; else one beside --out until the "
        "result is saved.",
    )
    force: bool = option(False, "Replace --out, discard an unfinished run.")

    preset: str | None = option(None, "Preset that the losses start from.", hidden=True)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: dict[str, Any]) -> dict[str, Any]:
        losses = values.get("losses")
        while isinstance(losses, Mapping):
            losses = losses.get("preset")
        return {**values, "preset": losses if isinstance(losses, str) else None}

    @model_validator(mode="after")
    def _fits(self) -> TrainOptions:
        if self.journal is not None and self.tune is None:
            raise ValueError("--journal keeps the trials of a search; give --tune FILE too")
        return self

    def check_rows(self) -> None:
        """Refuse rows that do not fit the losses, before a model is loaded."""
        given = {"prompts", "answers"} if self.preset == _QUESTIONS else {"prompts"}
        reads = self.losses.read_rows - given
        unread = [name for name in ("answers", "translator") if "answers" not in reads]
        unread += [] if reads else ["texts"]
        named = [f"--{name}" for name in unread if getattr(self, name) is not None]
        if named:
            raise InputError(
                f"{', '.join(named)}: not for these losses; only for losses that read answers or "
                "text, such as --losses self-translation"
            )
        if "answers" in reads and self.answers is None and self.texts is None:
            raise InputError(
                "these losses learn from answers: give --answers, or --texts, parallel plain text "
                "that shows the model how to translate its own"
            )
        if "text" in reads and self.texts is None:
            raise InputError("these losses read plain text in the languages trained; give --texts")


class TrainCommand(TrainOptions):
    """Options of ``lens train``."""

    space: Path = option(..., "Space file of this model, from lens probe.")
    out: Path = option(..., "Checkpoint folder.")


@command(TrainCommand)
def train(settings: TrainCommand) -> None:
    """Train the top blocks so that the model answers in the language it is asked in.

    Needs prompts alone, the same ones in every language. With --losses self-translation the model
    learns from its own pivot answers, which it (or --translator) translates; that needs --texts.
    With --tune, settings are chosen on validation questions first. Writes a Hugging Face
    checkpoint with the log and reproduce.json.
    """
    from lens.data.corpora import read_parallel
    from lens.experiments.tuning import search_folder
    from lens.space.space import Space
    from lens.training.processes import finish, start
    from lens.training.run import check_running
    from lens.utils.files import refuse_existing

    out, force = settings.out, settings.force
    refuse_existing(out, force=force)
    settings = settings.model_copy(update={"running": settings.running.writing(out, force=force)})
    check_running(settings.running)
    refusals = _refusal_prompts(settings.refusal_prompts)
    space = Space.load(settings.space)
    prompts: Prompts = _prompts(settings, space.pivot)
    settings.check_rows()
    held_out = None
    if settings.validation is not None:
        held_out = read_parallel(settings.validation, languages=tuple(prompts)).rows
    processes, device = start(settings.device)
    if settings.tune is not None and processes.count > 1:
        raise InputError("--tune runs in one process; train the chosen setting with several")
    settings = settings.model_copy(update={"device": device})
    model, tokenizer = settings.load()
    prompts, answers = _answers(settings, model, tokenizer, prompts, space.pivot)
    rows = {
        "texts": _plain_text(settings, prompts, space.pivot),
        "answers": answers,
        "validation": held_out,
    }
    result = _train(settings, model, tokenizer, space, prompts, rows)
    if processes.main:
        if refusals:
            result.about["refusal_drift"] = _refusal_drift(result, refusals, settings)
        result.save(out, force=force)
        if settings.tune is not None and settings.journal is None:
            search_folder(_journal(settings)).discard()
        _report(result, settings)
    finish()


def _prompts(settings: TrainCommand, pivot: str) -> dict[str, list[str]]:
    """Read the prompts of the languages that were named, or all, the pivot among them."""
    from lens.data.corpora import read_parallel
    from lens.data.languages import canonical

    languages = settings.languages
    if languages:
        languages = (pivot, *(code for code in languages if canonical(code) != pivot))
    return read_parallel(settings.prompts, languages=languages, limit=settings.limit).rows


def _answers(
    settings: TrainCommand, model: Any, tokenizer: Any, prompts: Prompts, pivot: str
) -> tuple[Prompts, Answers | None]:
    """Return prompts and answers: read, generated by the model, or none where none are needed."""
    from lens.data.corpora import read_parallel
    from lens.models.loading import load
    from lens.training.translation import question_translation, self_translate

    if "answers" not in settings.losses.read_rows:
        return prompts, None
    if settings.preset == _QUESTIONS:
        asked = question_translation(model, tokenizer, prompts, pivot=pivot, chat=settings.chat)
        return asked.prompts, asked.answers
    if settings.answers is not None:
        found = read_parallel(settings.answers, languages=tuple(prompts)).rows
        count = len(prompts[pivot])
        return prompts, {code: rows[:count] for code, rows in found.items()}
    other = None
    if settings.translator is not None:
        other, _ = load(settings.translator, device=settings.device, dtype=settings.dtype)
    texts = read_parallel(settings.texts, languages=tuple(prompts)).rows
    made = self_translate(
        model, tokenizer, prompts, texts, pivot=pivot, translator=other, chat=settings.chat
    )
    shares = ", ".join(f"{code} {share:.0%}" for code, share in made.kept.items())
    click.echo(f"translations kept: {shares}", err=True)
    return prompts, made.answers


def _plain_text(
    settings: TrainCommand, prompts: Prompts, pivot: str
) -> dict[str, list[str]] | None:
    """Read the text that losses train on; None where none does."""
    from lens.data.corpora import read_parallel

    if "text" not in settings.losses.read_rows:
        return None
    rows = read_parallel(settings.texts, languages=tuple(prompts)).rows
    return {code: texts for code, texts in rows.items() if code != pivot}


def _train(
    settings: TrainCommand,
    model: Any,
    tokenizer: Any,
    space: Space,
    prompts: Prompts,
    rows: Mapping[str, Any],
) -> TrainResult:
    """Train with the settings, or search first and train the best setting."""
    from lens.experiments.tuning import tune
    from lens.report.text import beyond_drift_text
    from lens.training.trainer import train

    if settings.tune is None:
        return train(model, tokenizer, space, prompts, **rows, settings=settings)
    tuning, journal = settings.tune, _journal(settings)
    if "seed" in settings.model_fields_set:
        tuning = tuning.model_copy(update={"seed": settings.seed})
    found = tune(
        model, tokenizer, space, prompts, tuning, work=journal, rows=rows, settings=settings
    )
    if not found.within:
        raise VerificationError(beyond_drift_text(found, journal))
    return found.train()


def _journal(settings: TrainCommand) -> Path:
    return settings.journal or settings.out.with_name(settings.out.name + ".trials")


def _refusal_prompts(path: Path | None) -> list[str]:
    from lens.evaluation.results import read_text

    if path is None:
        return []
    found = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    if not found:
        raise InputError(f"{path} holds no prompts; expected one per line")
    return found


def _refusal_drift(
    result: TrainResult, prompts: list[str], settings: TrainCommand
) -> dict[str, Any]:
    from dataclasses import asdict

    from lens.evaluation.drift import refusal_drift

    return asdict(refusal_drift(result, prompts, chat=settings.chat))


def _report(result: TrainResult, settings: TrainCommand) -> None:
    from lens.report.text import training_text

    if not settings.as_json:
        click.echo(f"{training_text(result)}\n{settings.out}")
        return
    shown = ("validation", "refusal_drift", "tuning")
    found = {key: result.about[key] for key in shown if key in result.about}
    last = result.log[-1] if result.log else {}
    print_json({"out": str(settings.out), "steps": len(result.log), "last": last, **found})
