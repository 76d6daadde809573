"""Lens training in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lens.lsm.adapters import Lora
from lens.lsm.config import LensConfig, resolve
from lens.lsm.result import TrainResult
from lens.lsm.running import Running
from lens.lsm.training import LensTrainer
from lens.models.chat import ChatOptions
from lens.space import Space


def train(
    model: Any,
    tokenizer: Any,
    space: Space,
    prompts: Mapping[str, Sequence[str]],
    *,
    layers: str = "-2:",
    train: str = "full",
    lora: int | Lora | None = None,
    losses: str | LensConfig | dict[str, Any] = "pinned",
    strength: float | Mapping[str, float] = 1.0,
    texts: Mapping[str, Sequence[str]] | None = None,
    answers: Mapping[str, Sequence[str | None]] | None = None,
    chat: ChatOptions | None = None,
    steps: int | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    low_memory: bool = False,
    cache: str | Path | None = None,
    max_memory: str | int | None = None,
    validation: Mapping[str, Sequence[str]] | None = None,
    running: Running | None = None,
) -> TrainResult:
    """Train a band of blocks with Lens, from prompts alone.

    Parameters
    ----------
    model, tokenizer
        A Hugging Face decoder and its tokenizer; the model is trained in place.
    space : Space
        Language space of this model, from `lens.probe`.
    prompts : mapping of str to sequence of str
        Parallel prompts per language, the pivot among them; no answers.
    layers : str
        Blocks to train: half-open slices such as ``"-2:"`` or ``"2:4,-2:"``.
    train : str
        What of them: ``"full"``, ``"attention"``, ``"mlp"``, ``"bias"``, ``"norm"``, a name
        inside them, or several separated by commas.
    lora : int or Lora, optional
        Train adapters of this rank on their linear layers instead; the result is saved as a PEFT
        adapter.
    losses : str, LensConfig or dict
        ``"pinned"`` (the corrected losses, and the pivot's predictions are held), ``"corrected"``
        (without that), ``"lens-v1"`` (as published) or settings of one's own.
    strength : float or mapping
        λ per language: length of the language step in units of m_l − m_c.
    texts : mapping, optional
        Plain text per language, for terms with ``rows="text"``.
    answers : mapping, optional
        Answers to the prompts, for `LanguageModel` terms; None where a prompt has none.
    chat : ChatOptions, optional
        Chat template flags.
    steps, learning_rate, batch_size : optional
        Override the config's.
    seed : int
        Decides the order of prompts.
    low_memory : bool
        Keep weights that training does not need in a temporary file, see `LensTrainer`.
    cache : str or Path, optional
        Folder that keeps cached states for later runs over the same model and prompts.
    max_memory : str or int, optional
        Limit such as ``"12GB"``; cached states that would pass it go to temporary files.
    validation : mapping of str to sequence of str, optional
        Held-out prompts in the same languages; the weights that do best on them are kept.
    running : Running, optional
        Checkpoints, resuming, activation checkpointing, trackers.

    Returns
    -------
    TrainResult
        With ``.model``, ``.log`` and ``.save(folder)``.

    Raises
    ------
    InputError
        For prompts, languages, layers, losses or a space that do not fit the model.

    References
    ----------
    Lens, arXiv 2410.04407.
    """
    config = resolve(losses)
    given = {"steps": steps, "learning_rate": learning_rate, "batch_size": batch_size}
    changed = {key: value for key, value in given.items() if value is not None}
    config = resolve(config.model_dump() | changed)
    trainer = LensTrainer(
        model,
        tokenizer,
        space,
        prompts,
        layers=layers,
        train=train,
        lora=lora,
        sites=config.sites,
        texts=texts,
        answers=answers,
        references=config.references,
        chat=chat,
        low_memory=low_memory,
        cache=cache,
        max_memory=max_memory,
        validation=validation,
    )
    return trainer.run(config, strength=strength, seed=seed, running=running)
