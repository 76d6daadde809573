"""Settings of Lens training as data: a list of loss terms and settings of the optimizer.

The published method and our default are two values of the same type, not two branches of code;
an ablation is a third value.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from lens.errors import InputError
from lens.models.layers import resolve_sites
from lens.models.tokenization import ChatOptions
from lens.training import terms
from lens.training.terms.align import Align
from lens.training.terms.base import TERMS, LossTerm
from lens.training.terms.language_model import LanguageModel
from lens.training.terms.pivot_kl import PivotKL
from lens.training.terms.retain import Retain
from lens.training.terms.separate import Separate
from lens.utils.config import problems
from lens.utils.settings import Layers, Numbers, Settings, Size, group, grouped, option

for _module in pkgutil.iter_modules(terms.__path__):  # fills TERMS
    importlib.import_module(f"{terms.__name__}.{_module.name}")

if TYPE_CHECKING:
    Term = LossTerm
else:
    Term = Annotated[Union[tuple(TERMS.values())], Field(discriminator="kind")]  # noqa: UP007


class OptimizerSettings(Settings):
    """AdamW with warm-up, cosine decay to zero and clipping."""

    steps: int = option(100, "Optimizer steps.", ge=1)
    batch_size: int = option(8, "Prompts (each in all languages) or rows per step.", ge=1)
    micro_batch_size: int | None = option(
        None, "Prompts or rows per forward pass; gradients add up to those of the step.", ge=1
    )
    learning_rate: float = option(1e-3, "Peak learning rate of AdamW.", gt=0, also=("lr",))
    weight_decay: float = option(0.0, "Weight decay of AdamW.", ge=0)
    max_grad_norm: float = option(1.0, "Gradients are scaled down to this norm.", gt=0)
    warmup_ratio: float = option(0.05, "Share of the steps spent warming up.", ge=0, lt=1)

    @property
    def rows_per_pass(self) -> int:
        """Prompts or rows of one forward pass."""
        return self.micro_batch_size or self.batch_size


class LensConfig(OptimizerSettings):
    """Everything that decides a Lens training run, apart from model, space, prompts and seed."""

    terms: tuple[Term, ...] = option(
        ...,
        "The loss is the weighted sum of these; each is a class of `lens.training.terms`.",
        hidden=True,
    )
    rank: Literal["auto", "full"] | int = option(
        "auto",
        "Rank of the language subspace at every site; with full, every language keeps its own "
        "step exactly, and a lower rank can lose the languages that differ least.",
    )
    shares_every: int = option(
        10,
        "Steps between two entries of share_* in the log, each term's share of the gradient norm "
        "at the states it reads; 0 for none.",
        ge=0,
    )
    validate_every: int = option(
        10,
        "Steps between validations; the weights with the lowest validation loss are kept.",
        ge=1,
        metavar="STEPS",
    )
    patience: int | None = option(
        None, "Stop after this many validations in a row without a lower loss.", ge=1
    )

    @model_validator(mode="after")
    def _whole_steps(self) -> Self:
        problem = self.divided
        if problem:
            raise ValueError(problem)
        return self

    @property
    def divided(self) -> str | None:
        """Problem of a term that needs several prompts at once, where a pass has fewer."""
        kinds = [term.kind for term in self.active if term.needs.whole_step]
        if not kinds or 1 < self.batch_size <= self.rows_per_pass:
            return None
        return (
            f"a {kinds[0]} term compares the prompts of a step with each other: it needs a "
            "batch_size of 2 or more and no micro_batch_size below it; got batch_size "
            f"{self.batch_size} and micro_batch_size {self.micro_batch_size}"
        )

    @property
    def active(self) -> tuple[LossTerm, ...]:
        """Terms with a weight above zero."""
        return tuple(term for term in self.terms if term.weight > 0)

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites that active terms read, in order of first mention."""
        return tuple(dict.fromkeys(term.read_site for term in self.active))

    @property
    def subspace_sites(self) -> tuple[str, ...]:
        """Sites whose language subspace active terms need."""
        return tuple(dict.fromkeys(t.read_site for t in self.active if t.needs.subspace))

    @property
    def references(self) -> Literal["last", "all"]:
        """Frozen states that must be cached of every prompt: of its last token, or of all."""
        needed = {term.needs.references for term in self.active}
        return "all" if "all" in needed else "last"

    @property
    def read_rows(self) -> set[str]:
        """Rows that active terms read: out of "prompts", "answers" and "text"."""
        return {term.needs.rows for term in self.active}

    def placed(self, n_blocks: int) -> LensConfig:
        """Copy with canonical site names, such as ``"block.6"`` for ``"block.-2"`` of 8 blocks.

        Raises
        ------
        InputError
            If a site does not exist in a model of ``n_blocks``.
        """
        known = resolve_sites("all", n_blocks)
        return self.model_copy(update={"terms": tuple(t.placed(known) for t in self.terms)})


PRESETS: dict[str, LensConfig] = {
    "lens-paper": LensConfig(
        terms=(
            Separate(target="shift"),
            Align(agnostic="mean", pivot="trained"),
            Retain(form="token_mean"),
        ),
        rank="full",
        weight_decay=0.1,
    ),
    "self-translation": LensConfig(
        terms=(LanguageModel(rows="answers"), PivotKL(rows="answers")),
        rank="full",
    ),
    "lens": LensConfig(
        terms=(Separate(target="absolute"), Retain(form="token")),
        rank="full",
    ),
    # The default: retain alone let the pivot drift in one world of three (docs/three-worlds.md).
    "lens+kl": LensConfig(
        terms=(Separate(target="absolute"), Retain(form="token"), PivotKL(weight=3.0)),
        rank="full",
    ),
}
# The same terms on other rows: prompts with their translation into the pivot as answers.
PRESETS["question-translation"] = PRESETS["self-translation"]


def resolve(losses: str | LensConfig | dict[str, Any]) -> LensConfig:
    """Turn a preset's name, a mapping or a config into a config.

    A mapping may start from a preset, ``{"preset": "lens", "rank": 3}``.

    Raises
    ------
    InputError
        For an unknown preset, an unknown key or a value out of range.
    """
    if isinstance(losses, LensConfig):
        return losses
    try:
        losses = _with_preset(losses)
    except ValueError as error:
        raise InputError(str(error)) from None
    try:
        return LensConfig.model_validate(losses)
    except ValidationError as error:
        found = problems(error, LensConfig, losses)
        between = "\n  " if len(found) > 1 else " "
        listed = between.join(["the losses are not a valid Lens config:", *found])
        raise InputError(listed) from None


def _with_preset(losses: Any) -> Any:
    """Put the settings of a preset, given by name or by the key ``preset``, below the others."""
    if isinstance(losses, LensConfig):
        return losses
    if isinstance(losses, str):
        if losses not in PRESETS:
            near = difflib.get_close_matches(losses, PRESETS, n=1)
            raise ValueError(
                f"unknown losses '{losses}'; use one of {', '.join(sorted(PRESETS))}"
                + (f" (the nearest is '{near[0]}')" if near else "")
                + ", or pass a LensConfig"
            )
        return PRESETS[losses]
    if isinstance(losses, Mapping) and "preset" in losses:
        base = _with_preset(losses["preset"])
        base = base.model_dump() if isinstance(base, LensConfig) else dict(base)
        return base | {key: value for key, value in losses.items() if key != "preset"}
    return losses


Losses = Annotated[LensConfig, BeforeValidator(_with_preset)]
"""A preset's name, a `LensConfig`, or a mapping that may start from a preset."""


@grouped()
class Lora:
    """Low-rank adapters instead of the weights themselves."""

    rank: int = option(8, "Rank of every adapter.", ge=1)
    alpha: int | None = option(
        None,
        "The adapter's product is scaled by alpha / rank; twice the rank by default.",
        ge=1,
        key="lora-alpha",
    )
    dora: bool = option(
        False,
        "Weight-decomposed form (DoRA, arXiv 2402.09353): lengths of the weight's rows are trained "
        "apart from their directions.",
    )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return {"rank": self.rank, "alpha": self.scale, "dora": self.dora}

    @property
    def scale(self) -> int:
        """Alpha, given or by default."""
        return 2 * self.rank if self.alpha is None else self.alpha


def _adapter(value: Any) -> Any:
    """Take a rank for an adapter of that rank."""
    if isinstance(value, int | str) and not isinstance(value, bool):
        return {"rank": value}
    if isinstance(value, Mapping) and "rank" not in value:
        if value.get("dora") or value.get("alpha"):
            raise ValueError(
                "dora and lora_alpha are settings of adapters; give the rank too: --lora RANK, in "
                "YAML lora: RANK"
            )
        return None
    return value


def _trackers(value: Any) -> Any:
    """Split names at commas; metrics.jsonl is always written, and "none" names no other."""
    names = value.split(",") if isinstance(value, str) else value
    kept = [str(name).strip() for name in names]
    return tuple(name for name in kept if name not in ("", "none", "jsonl"))


@grouped(kw_only=True)
class RunOptions:
    """Checkpoints, memory and trackers of a run; no setting here changes its result."""

    folder: Path | None = option(
        None,
        "Working folder for checkpoints and the log so far, which saving the result removes.",
        hidden=True,
    )
    checkpoint_every: int | None = option(
        None,
        "Steps between checkpoints in a folder beside --out; without it, only when stopped.",
        ge=1,
        metavar="STEPS",
    )
    resume: bool = option(
        False, "Resume from the last checkpoint of the same run, to the same result."
    )
    force: bool = option(False, "Discard an unfinished run in the folder.", hidden=True)
    gradient_checkpointing: bool = option(
        False, "Less memory: compute activations again in the backward pass."
    )
    shard: bool = option(
        False, "Several processes: divide gradients, master weights and moments among them."
    )
    report_to: Annotated[tuple[str, ...], BeforeValidator(_trackers)] = option(
        (), "Trackers besides metrics.jsonl: tensorboard, wandb, trackio."
    )

    @classmethod
    def beside(cls, out: Path) -> Path:
        """Working folder of the run that will become ``out``."""
        return out.with_name(out.name + SUFFIX)

    def writing(self, out: Path, *, force: bool) -> RunOptions:
        """Return the same for a run that becomes ``out``."""
        return replace(self, folder=self.beside(out), force=force)


SUFFIX = ".unfinished"


class ModuleSettings(Settings):
    """Which parameters of a model are trained."""

    layers: Layers = option("-2:", "Blocks to train: half-open slices, such as 2:4,-2:.")
    modules: str = option(
        "full",
        "Parts of the blocks to train: full, attention, mlp, bias, norm, or names inside a "
        "block, with commas between.",
    )
    lora: Annotated[Lora | None, BeforeValidator(_adapter)] = group(
        None, "Train LoRA adapters of this rank instead.", base="rank", metavar="RANK"
    )


class BandSettings(ModuleSettings):
    """Which parameters are trained, the chat template, and where weights and states are."""

    chat: ChatOptions | None = group(None, "Options of the chat template.")
    low_memory: bool = option(
        False,
        "Keep weights that training does not need in files, not in memory.",
        off="keep-in-memory",
    )
    cache: Path | None = option(None, "Folder that keeps the frozen model's states for later runs.")
    max_memory: Size | None = option(
        None,
        "Weights, optimizer and states together, such as 12GB; states that pass it go to disk.",
        metavar="SIZE",
    )


class TrainerSettings(BandSettings):
    """What `LensTrainer` fixes for all of its runs."""

    sites: tuple[str, ...] = option(("final",), "Sites that any later run may read.")
    references: Literal["last", "all"] = option(
        "last",
        "Frozen states to keep of every prompt: all for losses that read more than its last token "
        "(LensConfig.references); those of the pivot are kept whole in any case.",
    )
    cache_batch: int = option(32, "Rows per forward pass while the prefix is cached.", ge=1)


class TrainSettings(BandSettings):
    """A training run: losses, optimizer, strengths, seed, checkpoints and trackers."""

    losses: Losses = group(
        "lens+kl",
        "lens+kl, lens, lens-paper, self-translation, question-translation, or a YAML file.",
        base="preset",
        file=True,
        defaults=False,
        metavar="preset | FILE",
    )
    strength: Numbers = option(
        1.0,
        "Length of the language step, for all or per language.",
        metavar="NUMBER | lang=number,...",
    )
    seed: int = option(0, "Decides the order of prompts.")
    running: RunOptions = group(RunOptions(), "Checkpoints, resuming, memory and trackers.")


class FinetuneSettings(OptimizerSettings):
    """How a model is tuned on a corpus."""

    batch_size: int = option(32, "Rows per step, those of the replay included.", ge=1)
    learning_rate: float = option(2e-5, "Peak learning rate of AdamW.", gt=0, also=("lr",))
    replay_share: float = option(
        0.0,
        "Share of the rows of each batch that is general text, so that nothing else is forgotten.",
        ge=0,
        lt=1,
    )
    row_tokens: int = option(
        512, "Tokens of a row of plain text: documents are joined and cut into such rows.", ge=2
    )
    autocast: bool = option(
        False, "Multiply matrices in bfloat16; weights, gradients and the optimizer stay as is."
    )
    modules: str | None = option(
        None,
        "Train these parts of the blocks only, the rest frozen: full, attention, mlp, "
        "mlp.down_proj, ...; all parameters by default.",
        min_length=1,
        metavar="PARTS",
    )
    layers: Layers = option("all", "Blocks of --modules: 2:6, -4:, 10,12.", metavar="SPEC")

    @model_validator(mode="after")
    def _chosen(self) -> Self:
        if self.modules is None and self.layers != "all":
            raise ValueError(
                "layers are those of 'modules'; add modules: full for all of the blocks"
            )
        return self

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        if self.replay_share and not 0 < self.replayed < self.batch_size:
            raise ValueError(
                f"replay_share {self.replay_share:g} of {self.batch_size} rows is "
                f"{self.replayed} rows; choose a share that leaves at least one row of each kind"
            )
        return self

    @property
    def replayed(self) -> int:
        """Rows of general text in each batch."""
        return round(self.replay_share * self.batch_size)
