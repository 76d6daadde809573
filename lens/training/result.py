"""The result of a training run, and how it is saved."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

import lens
from lens.errors import InputError
from lens.models.checkpoint import SourceCheckpoint
from lens.models.fingerprint import tokenizer_sha256
from lens.models.loading import quiet_bars
from lens.training import parameters
from lens.training.config import LensConfig
from lens.training.run import RunFolder
from lens.utils.files import new_folder
from lens.utils.versions import versions

_CARD = """# Lens-trained model

Blocks {layers} of `{source}` were trained with Lens (arXiv 2410.04407) by lens {version}, on
{prompts} parallel prompts in {languages} (pivot {pivot}). {answers}
{tuning}
`reproduce.json` holds every setting, `metrics.jsonl` the losses of every step.
"""


def write_run(
    folder: Path, log: Sequence[dict[str, float]], facts: dict[str, Any], card: str
) -> None:
    """Write what belongs beside trained weights: log, settings with hashes, and the card."""
    facts = {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": versions(),
        **facts,
    }
    lines = "".join(json.dumps(entry) + "\n" for entry in log)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    (folder / "reproduce.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")


def write_checkpoint(
    model: Any, tokenizer: Any, folder: Path, *, changed: Mapping[str, Tensor], widen: bool = False
) -> dict[str, Any]:
    """Write a model whose tensors ``changed`` alone differ from its files, and its tokenizer.

    Files of the source checkpoint are taken over where they can be. ``widen`` writes the model's
    own dtype where the source has another: a small change is lost in 16 bits.
    """
    source = SourceCheckpoint.of(model, changed)
    if source is not None and widen and not source.stores(model, changed):
        source = None
    if source is None:
        with quiet_bars():
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return {"form": "whole"}
    written = source.write(folder, model, changed)
    source.write_rest(folder)
    if not _same_tokenizer(tokenizer, folder):
        tokenizer.save_pretrained(folder)
    return {
        "form": "changed files",
        "rewritten": written,
        "taken_over": sorted(file.name for file in source.files if file.name not in written),
    }


def _same_tokenizer(tokenizer: Any, folder: Path) -> bool:
    """Whether the files in a folder are this tokenizer, with its template."""
    from transformers import AutoTokenizer

    try:
        found: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return False
    same_template = getattr(found, "chat_template", None) == tokenizer.chat_template
    return same_template and tokenizer_sha256(found) == tokenizer_sha256(tokenizer)


State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A finished Lens run.

    Attributes
    ----------
    model : PreTrainedModel
        The model given to training, its blocks now trained.
    weights : dict of str to Tensor
        Trained parameters by name, as they are in ``model``.
    log : list of dict
        One entry per step: every loss, learning rate, movement along and across the language step.
    config, strength, seed, layers
        What decided the run.
    seconds : float
        Wall time of the steps, without the prefix pass.
    adapter : peft.PeftModel or None
        PEFT's view of the model when adapters were trained.
    original : dict of str to Tensor
        The same parameters before training.
    unfinished : Path or None
        Working folder of the run, which `save` removes.
    """

    model: Any
    tokenizer: Any
    weights: State
    log: list[dict[str, float]]
    config: LensConfig
    strength: dict[str, float]
    seed: int
    layers: tuple[int, ...]
    seconds: float
    about: dict[str, Any] = field(default_factory=dict)
    adapter: Any = None
    original: State = field(default_factory=dict)
    unfinished: Path | None = None

    def save(self, out: str | Path, *, force: bool = False) -> None:
        """Write a Hugging Face checkpoint, the log and ``reproduce.json``: all or nothing.

        Files of the source checkpoint that training did not change are taken over as they are. The
        working folder of the run, if it had one, is removed at the end.

        Raises
        ------
        InputError
            If ``out`` exists and ``force`` is false, or there is no space; a run with a working
            folder can then be resumed, and is only saved again.
        """
        facts = {
            "seed": self.seed,
            "layers": list(self.layers),
            "strength": self.strength,
            "losses": self.config.model_dump(),
            "seconds": round(self.seconds, 3),
            **self.about,
        }
        tuning = facts.get("tuning")
        if tuning is not None:  # the trials have a file of their own
            facts["tuning"] = tuning | {"trials": len(tuning["trials"]), "file": "trials.json"}
        work, place = self.unfinished, Path(out).resolve().parent
        beside = work is not None and work.is_dir() and work.resolve().parent == place
        try:
            with new_folder(out, force=force, inside=work if beside else None) as folder:
                facts["checkpoint"] = self._write_model(folder)
                write_run(folder, self.log, facts, self._card())
                if tuning is not None:
                    trials = json.dumps(tuning, indent=1)
                    (folder / "trials.json").write_text(trials, encoding="utf-8")
                if work is not None and (work / "tensorboard").is_dir():
                    shutil.copytree(work / "tensorboard", folder / "tensorboard")
        except (OSError, SafetensorError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            problem = f"cannot write {out}: {reason}"
            if work is not None:
                problem += (
                    f"; the finished training is kept in {work}: make room, then run the same "
                    "command with --resume"
                )
            raise InputError(problem) from None
        if work is not None:
            RunFolder(work).discard()

    def _write_model(self, folder: Path) -> dict[str, Any]:
        """Write weights, configuration and tokenizer; report where each came from."""
        if self.adapter is None:
            return write_checkpoint(self.model, self.tokenizer, folder, changed=self.weights)
        with quiet_bars():
            parameters.write(self.adapter, folder)
        self.tokenizer.save_pretrained(folder)
        return {"form": "adapter"}

    def _card(self) -> str:
        answers, tuned = "No answers were used.", ""
        if "answers" in self.config.read_rows:
            answers = "Answers given to training were used, see `reproduce.json` for their hashes."
        if tuning := self.about.get("tuning"):
            best = tuning["best"]
            strength = ", ".join(f"{lang} {value:.3g}" for lang, value in best["strength"].items())
            tuned = (
                f"\nLayers, losses and strengths (λ: {strength}) are those of trial "
                f"{best['number']} of {len(tuning['trials'])}, chosen by {tuning['metric']} on "
                f"validation questions ({best['quality']:.3f}) under a bound on the pivot's drift "
                f"(KL {best['drift']:.4f} of at most {tuning['max_drift']:g} nats). `trials.json` "
                "holds every trial.\n"
            )
        return _CARD.format(
            layers=", ".join(map(str, self.layers)),
            source=Path(self.model.name_or_path or "an unnamed model").name,
            version=lens.__version__,
            prompts=self.about.get("prompts", "?"),
            languages=", ".join(self.strength),
            pivot=self.about.get("pivot", "?"),
            answers=answers,
            tuning=tuned,
        )

    @torch.no_grad()
    def load(self, weights: State) -> None:
        """Copy ``weights`` or ``original`` into the model."""
        for name, tensor in weights.items():
            self.model.get_parameter(name).copy_(tensor)
