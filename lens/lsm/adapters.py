"""LoRA and DoRA adapters through PEFT: put on, taken off, written."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lens.errors import InputError, MissingExtraError
from lens.models.quantized import features, is_quantized

# Initial weights of every adapter come from this seed, so that runs differ by their own alone.
_SEED = 0


@dataclass(frozen=True, slots=True)
class Lora:
    """Low-rank adapters instead of the weights themselves.

    Attributes
    ----------
    rank : int
        Rank of every adapter.
    alpha : int, optional
        The adapter's product is scaled by alpha / rank; twice the rank by default.
    dora : bool
        Weight-decomposed form (DoRA, arXiv 2402.09353): lengths of the weight's rows are trained
        apart from their directions.
    """

    rank: int = 8
    alpha: int | None = None
    dora: bool = False

    def __post_init__(self) -> None:
        """Refuse a rank that is none."""
        if not isinstance(self.rank, int) or self.rank < 1:
            raise InputError(f"the rank of a LoRA adapter is {self.rank!r}; expected 1 or more")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return {"rank": self.rank, "alpha": self.scale, "dora": self.dora}

    @property
    def scale(self) -> int:
        """Alpha, given or by default."""
        return 2 * self.rank if self.alpha is None else self.alpha


def require_peft() -> None:
    """Raise MissingExtraError where PEFT is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError("peft", "hf", "training LoRA adapters")


def takes_adapter(module: nn.Module) -> bool:
    """Whether a module is a linear layer that PEFT can put an adapter on."""
    return (
        isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D" or is_quantized(module)
    )


def adapter_bytes(module: Any, lora: Lora) -> int:
    """Bytes of the adapter of one linear layer, in float32."""
    n_in, n_out = features(module) or module.weight.shape  # Conv1D of GPT-2: (input, output)
    return 4 * (lora.rank * (n_in + n_out) + (n_out if lora.dora else 0))


def adapted(model: nn.Module) -> bool:
    """Whether a model carries adapters already."""
    return any(hasattr(module, "base_layer") for module in model.modules())


def attach(model: Any, linears: Sequence[str], lora: Lora) -> tuple[Any, dict[str, nn.Parameter]]:
    """Put adapters on linear layers, in place; they change nothing until they are trained.

    Parameters
    ----------
    model : PreTrainedModel
        Keeps its class and its name; the layers are wrapped.
    linears : sequence of str
        Dotted names of the layers.
    lora : Lora
        Settings.

    Returns
    -------
    peft.PeftModel
        A view of the model, for `detach` and `write`.
    dict of str to Parameter
        The adapters' parameters, by their names in ``model``.
    """
    from peft import LoraConfig, get_peft_model

    transposed = [type(model.get_submodule(n)).__name__ == "Conv1D" for n in linears]
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.scale,
        use_dora=lora.dora,
        target_modules=list(linears),
        fan_in_fan_out=any(transposed),
        bias="none",
        task_type="CAUSAL_LM",
    )
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    training = model.training
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        adapter = get_peft_model(model, config)
    model.train(training)
    found = {name: p for name, p in model.named_parameters() if ".lora_" in name}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(flags.get(name.replace(".base_layer.", "."), False))
    return adapter, found


def detach(adapter: Any) -> None:
    """Take the adapters off: the model is what it was."""
    model = adapter.unload()
    for name in ("peft_config", "_hf_peft_config_loaded"):
        if name in vars(model):
            delattr(model, name)


def write(adapter: Any, folder: Path) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` into a folder."""
    adapter.save_pretrained(folder, save_embedding_layers=False)
