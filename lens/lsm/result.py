"""What a Lens run gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lens.lsm.config import LensConfig

State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A finished Lens run.

    Attributes
    ----------
    model : PreTrainedModel
        The model given to training, its band now trained.
    band : dict of str to Tensor
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
    band: State
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

    def save(self, out: Any, *, force: bool = False) -> None:
        """Write a Hugging Face checkpoint, the log and ``reproduce.json`` to a new folder."""
        from lens.lsm.saving import save

        save(self, out, force=force)

    @torch.no_grad()
    def load(self, band: State) -> None:
        """Copy a band's weights, ``band`` or ``original``, into the model."""
        for name, weights in band.items():
            self.model.get_parameter(name).copy_(weights)
