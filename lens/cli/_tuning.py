"""``lens train --tune``: search on validation questions, then train the best setting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lens.cli._config import Settings, was_said
from lens.errors import InputError, VerificationError

if TYPE_CHECKING:
    from lens.experiments.tuning import TuneResult, TuningConfig
    from lens.space.space import Space
    from lens.training.config import LensConfig
    from lens.training.parameters import Lora
    from lens.training.result import TrainResult
    from lens.training.run import RunOptions


def _checked(content: Any) -> dict[str, Any]:
    """Check the settings of a search."""
    from pydantic import ValidationError

    from lens.experiments.tuning import TuningConfig
    from lens.utils.config import problems

    if not isinstance(content, Mapping):
        raise InputError(
            f"got {content!r}, expected a YAML file with 'validation:' questions and what is "
            "searched, or its keys"
        )
    try:
        return TuningConfig.model_validate(content).model_dump(mode="json")
    except ValidationError as error:
        raise InputError("\n".join(problems(error, TuningConfig, content))) from None


def tune_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--tune`` and ``--journal``."""
    for decorate in (
        click.option("--journal", type=click.Path(path_type=Path, file_okay=False),
                     help="Folder that keeps the trials of --tune, to resume from; else one beside "
                     "--out until the result is saved."),
        click.option("--tune", type=Settings("FILE", _checked),
                     help="YAML: choose λ, layers and losses on validation questions first."),
    ):  # fmt: skip
        function = decorate(function)
    return function


@dataclass(frozen=True, slots=True)
class TuneOption:
    """A search as the command line describes it."""

    settings: Mapping[str, Any]
    journal: Path
    temporary: bool

    @classmethod
    def of(
        cls, settings: Mapping[str, Any] | None, journal: Path | None, out: Path
    ) -> TuneOption | None:
        """Take the journal that was named, or one beside the output; None without a search."""
        if settings is None:
            if journal is not None:
                raise InputError("--journal keeps the trials of a search; give --tune FILE too")
            return None
        place = journal or out.with_name(out.name + ".trials")
        return cls(settings, place, journal is None)

    def train(
        self,
        model: Any,
        tokenizer: Any,
        space: Space,
        prompts: Mapping[str, Sequence[str]],
        *,
        layers: str,
        train: str,
        lora: Lora | None,
        losses: LensConfig,
        strength: float | Mapping[str, float],
        seed: int,
        running: RunOptions,
        **training: Any,
    ) -> TrainResult:
        """Search, then train the best setting; arguments are those of `lens.train`.

        Raises
        ------
        VerificationError
            If no trial keeps the bound on the pivot's drift.
        """
        from lens.experiments.tuning import TuningConfig, tune

        tuning = TuningConfig.model_validate(self.settings)
        call = click.get_current_context()
        if was_said(call, "seed"):
            tuning = tuning.model_copy(update={"seed": seed})
        found = tune(
            model, tokenizer, space, prompts, tuning, layers=layers, train=train, lora=lora,
            losses=losses, strength=strength if was_said(call, "strength") else None,
            work=self.journal, running=running, **training,
        )  # fmt: skip
        if not found.within:
            raise VerificationError(self._outside(found, tuning))
        return found.train()

    def forget(self) -> None:
        """Remove a journal that only had to outlast the process."""
        if self.temporary:
            from lens.experiments.tuning import search_folder

            search_folder(self.journal).discard()

    def _outside(self, found: TuneResult, tuning: TuningConfig) -> str:
        best = found.best
        return (
            f"no trial of {len(found.trials)} keeps the pivot's drift within {tuning.max_drift:g} "
            f"nats, so nothing was saved; the nearest is trial {best.number}: {best}, layers "
            f"{best.layers}, strength {spoken(best.strength)}. Lower the range of strengths, "
            "search what holds the pivot (such as losses.terms.1.weight), or raise max_drift: the "
            f"trials are kept in {self.journal} and are not run again for that"
        )


def spoken(strength: Mapping[str, float]) -> str:
    """Strengths as ``--strength`` takes them."""
    return ",".join(f"{lang}={value:.3g}" for lang, value in strength.items())
