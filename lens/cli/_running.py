"""Options of ``lens train`` about how a run is carried out, gathered into one value."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lens.cli._options import Listed

if TYPE_CHECKING:
    from lens.training.run import RunOptions

_AT_LEAST_ONE = click.IntRange(min=1)


@dataclass(frozen=True, slots=True)
class RunFlags:
    """What the user asked for; None where nothing was said."""

    micro_batch_size: int | None
    max_grad_norm: float | None
    warmup_ratio: float | None
    weight_decay: float | None
    gradient_checkpointing: bool
    shard: bool
    validation: Path | None
    validate_every: int | None
    patience: int | None
    refusal_prompts: Path | None
    checkpoint_every: int | None
    resume: bool
    report_to: tuple[str, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """Those that are settings of the training itself."""
        names = (
            "micro_batch_size",
            "max_grad_norm",
            "warmup_ratio",
            "weight_decay",
            "validate_every",
            "patience",
        )
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None}

    def running(self, out: Path, *, force: bool) -> RunOptions:
        """How the run that becomes ``out`` is carried out, checked."""
        from lens.training.run import RunOptions

        running = RunOptions(
            folder=RunOptions.beside(out),
            checkpoint_every=self.checkpoint_every,
            resume=self.resume,
            force=force,
            gradient_checkpointing=self.gradient_checkpointing,
            shard=self.shard,
            report_to=tuple(name for name in self.report_to if name not in ("none", "jsonl")),
        )
        running.check()
        return running

    def validation_rows(self, languages: Sequence[str]) -> dict[str, list[str]] | None:
        """Read the validation prompts, in the trained languages."""
        from lens.data.corpora import read_parallel

        if self.validation is None:
            return None
        return read_parallel(self.validation, languages=tuple(languages)).rows

    def refusals(self) -> list[str]:
        """Prompts of ``--refusal-prompts``, one per line."""
        from lens.evaluation.results import read_text

        if self.refusal_prompts is None:
            return []
        lines = read_text(self.refusal_prompts).split("\n")
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise click.UsageError(f"{self.refusal_prompts} holds no prompts; one per line")
        return found


def run_flags(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options, and pass them on as ``run``."""
    names = [field.name for field in fields(RunFlags)]

    @functools.wraps(function)
    def gathered(*args: Any, **given: Any) -> Any:
        return function(*args, run=RunFlags(**{n: given.pop(n) for n in names}), **given)

    decorated: Callable[..., Any] = gathered
    for decorate in (
        click.option("--report-to", type=Listed(), default="none", show_default=True,
                     help="Trackers besides metrics.jsonl: tensorboard, wandb, trackio."),
        click.option("--resume", is_flag=True,
                     help="Go on from the last checkpoint of the same run, to the same result."),
        click.option("--checkpoint-every", type=_AT_LEAST_ONE, metavar="STEPS",
                     help="Write checkpoints beside --out; without it, only when stopped."),
        click.option("--refusal-prompts", type=click.Path(path_type=Path),
                     help="Prompts, one per line, whose refusals must not move: report how far."),
        click.option("--patience", type=_AT_LEAST_ONE,
                     help="Stop after so many validations without a lower loss."),
        click.option("--validate-every", type=_AT_LEAST_ONE, metavar="STEPS",
                     help="Steps between validations; 10 by default."),
        click.option("--validation", type=click.Path(path_type=Path),
                     help="Held-out parallel prompts; the weights that do best on them are kept."),
        click.option("--shard", is_flag=True,
                     help="Several processes: divide gradients and optimizer among them."),
        click.option("--gradient-checkpointing", is_flag=True,
                     help="Less memory: compute activations again in the backward pass."),
        click.option("--weight-decay", type=click.FloatRange(min=0), help="AdamW's."),
        click.option("--warmup", "warmup_ratio", type=click.FloatRange(min=0, max=1, max_open=True),
                     help="Share of the steps spent warming up."),
        click.option("--clip", "max_grad_norm", type=click.FloatRange(min=0, min_open=True),
                     help="Largest gradient norm."),
        click.option("--micro-batch", "micro_batch_size", type=_AT_LEAST_ONE,
                     help="Prompts per forward pass; gradients add up to those of the step."),
    ):  # fmt: skip
        decorated = decorate(decorated)
    return decorated
