"""The three models of the sample world: where they are and how they are loaded."""

import hashlib
from pathlib import Path
from typing import Any

from lens.errors import InputError

CHECKPOINTS = ("base", "chat", "mixed")


def checkpoint_path(name: str) -> Path:
    """Return the folder of one of the shipped models.

    Parameters
    ----------
    name : str
        ``"base"`` (trained on running text), ``"chat"`` (tuned on English questions only) or
        ``"mixed"`` (tuned on mostly English questions and a few in each other language).

    Returns
    -------
    pathlib.Path
        A folder in Hugging Face layout: hand it to any tool that takes one.

    Raises
    ------
    InputError
        Unknown name, or the package was installed without its checkpoints.
    """
    if name not in CHECKPOINTS:
        raise InputError(
            f"the sample world has no model '{name}'; choose one of {', '.join(CHECKPOINTS)}"
        )
    path = Path(__file__).parent / "checkpoints" / name
    if not (path / "model.safetensors").is_file():
        raise InputError(
            f"the sample world's model '{name}' is not at {path}; "
            "make it with: python docs/studies/sample_world/train_world.py --out DIR, "
            "and give that folder as the model"
        )
    return path


def load(name: str) -> tuple[Any, Any]:
    """Load one of the shipped models with the ordinary Hugging Face classes.

    Parameters
    ----------
    name : str
        ``"base"``, ``"chat"`` or ``"mixed"``.

    Returns
    -------
    model : transformers.PreTrainedModel
        In float32 and evaluation mode.
    tokenizer : transformers.PreTrainedTokenizerBase
        With a chat template.

    Raises
    ------
    InputError
        Unknown name.
    MissingExtraError
        torch or transformers is not installed.
    """
    # The same front door as for any other checkpoint.
    from lens.models.loading import load as load_checkpoint

    return load_checkpoint(checkpoint_path(name), dtype="float32")


def digests() -> dict[str, str]:
    """Hash the weights (SHA-256) of every shipped model."""
    return {
        name: hashlib.sha256((checkpoint_path(name) / "model.safetensors").read_bytes()).hexdigest()
        for name in CHECKPOINTS
    }
