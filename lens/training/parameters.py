"""Which parameters are trained: parts of blocks, or LoRA and DoRA adapters on them."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lens.errors import InputError, MissingExtraError
from lens.models.architecture import DecoderParts, insides
from lens.models.quantization import features, is_quantized, passes_gradient, unpack
from lens.training.config import Lora
from lens.utils.progress import say

# Initial weights of every adapter come from this seed, so that runs differ by their own alone.
_SEED = 0


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

    Returns PEFT's view of the model, for `detach` and `write`, and the adapters' parameters by
    their names in ``model``, which keeps its class and its name.
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


KINDS = ("full", "attention", "mlp", "bias", "norm")


class Trainable:
    """The trained part of a model, chosen before anything is run and put on when it is needed.

    Parameters
    ----------
    model : PreTrainedModel
        The model. Linear layers with packed weights (8 or 4 bit) are replaced by ordinary ones
        here if they are trained themselves, or would stop the gradient on its way down.
    parts : DecoderParts
        What `lens.models.locate` returned for it.
    layers : sequence of int
        Blocks that are trained.
    modules : str
        ``"full"``, ``"attention"``, ``"mlp"``, ``"bias"``, ``"norm"``, a dotted name inside the
        blocks such as ``"mlp.down_proj"``, or several of these separated by commas.
    lora : int or Lora, optional
        Train adapters of this rank on the linear layers of ``modules`` instead.

    Raises
    ------
    InputError
        If ``modules`` is unknown or selects nothing (the message lists what there is), or the model
        carries adapters already.
    MissingExtraError
        If adapters are asked for and PEFT is not installed.
    """

    def __init__(
        self,
        model: Any,
        parts: DecoderParts,
        layers: Sequence[int],
        *,
        modules: str = "full",
        lora: int | Lora | None = None,
    ) -> None:
        _refuse_adapters(model)
        self.model, self.layers, self.modules = model, tuple(layers), modules
        self.lora = Lora(lora) if isinstance(lora, int) else lora
        self.parameters: dict[str, nn.Parameter] = {}
        self.adapter: Any = None
        blocks = [_BlockParameters(model, parts, i) for i in self.layers]
        kinds = [kind.strip() for kind in modules.split(",") if kind.strip()]
        if not kinds:
            raise InputError(
                f"modules={modules!r} names nothing; expected one of {', '.join(KINDS)}"
            )
        if self.lora is None:
            self._linears: list[str] = []
            _unpack(blocks, kinds)
            self._names = [n for b in blocks for n in b.parameters(kinds)]
        else:
            require_peft()
            self._names = []
            self._linears = [n for b in blocks for n in b.linears(kinds)]
            if self.lora.dora:  # reads the whole weight in every step
                _unpack(blocks, kinds)
        _let_gradients_through(model, parts, min(self.layers))

    @property
    def nbytes(self) -> int:
        """Bytes of what is trained, in float32; adapters are counted before they are put on."""
        if self.lora is None:
            return 4 * sum(int(self.model.get_parameter(n).numel()) for n in self._names)
        linears = [self.model.get_submodule(name) for name in self._linears]
        return sum(adapter_bytes(linear, self.lora) for linear in linears)

    def activate(self) -> dict[str, nn.Parameter]:
        """Put adapters on, if they are wanted, and return the trained parameters by name."""
        if self.lora is not None and self.adapter is None:
            _refuse_adapters(self.model)
            self.adapter, self.parameters = attach(self.model, self._linears, self.lora)
        elif self.lora is None:
            self.parameters = {name: self.model.get_parameter(name) for name in self._names}
        return self.parameters

    def release(self) -> None:
        """Take the adapters off again."""
        if self.adapter is not None:
            detach(self.adapter)
            self.adapter, self.parameters = None, {}

    def to_dict(self) -> dict[str, Any]:
        """Return what is trained as plain data."""
        return {
            "layers": list(self.layers),
            "modules": self.modules,
            "lora": None if self.lora is None else self.lora.to_dict(),
        }


@dataclass(slots=True)
class _BlockParameters:
    """One trained block, and names inside it."""

    model: nn.Module
    parts: DecoderParts
    index: int

    @property
    def name(self) -> str:
        return f"{self.parts.blocks_name}.{self.index}"

    @property
    def module(self) -> nn.Module:
        return self.parts.blocks[self.index]

    @property
    def packed(self) -> list[str]:
        """Full names of linear layers with packed weights."""
        inside = self.module.named_modules()
        return [f"{self.name}.{name}" for name, module in inside if name and is_quantized(module)]

    def parameters(self, kinds: Sequence[str]) -> list[str]:
        """Full names of the parameters that ``kinds`` select, in the model's order."""
        chosen = {name for kind in kinds for name in self._parameters_of(kind)}
        names = (f"{self.name}.{n}" for n, _ in self.module.named_parameters())
        return [name for name in names if name in chosen]

    def linears(self, kinds: Sequence[str]) -> list[str]:
        """Full names of the linear layers that ``kinds`` select, for adapters."""
        wrong = [kind for kind in kinds if kind in ("bias", "norm")]
        if wrong:
            raise InputError(
                f"adapters go on linear layers, and modules={wrong[0]!r} selects none; use "
                "'full', 'attention' or 'mlp' with lora, or leave lora out"
            )
        inside = [
            f"{self.name}.{name}"
            for name, module in self.module.named_modules()
            if name and takes_adapter(module)
        ]
        chosen: set[str] = set()
        for kind in kinds:
            found = [name for name in inside if self.within(name, self.scope(kind))]
            if not found:
                raise self._nothing(kind, "no linear layer")
            chosen.update(found)
        return [name for name in inside if name in chosen]

    def scope(self, kind: str) -> list[str]:
        """Dotted names inside the block whose contents a kind selects; [""] is everything."""
        if kind in ("full", "bias", "norm"):
            return [""]
        if kind in ("attention", "mlp"):
            found = insides(self.model, self.parts, self.index)
            names = found.attention if kind == "attention" else found.mlp
            if not names:
                raise self._nothing(kind, f"no part that works as {kind}")
            return list(names)
        known = [n for n, _ in (*self.module.named_modules(), *self.module.named_parameters())]
        if kind not in known:
            raise self._nothing(kind, "no such name")
        return [kind]

    def _parameters_of(self, kind: str) -> list[str]:
        named = dict(self.module.named_parameters())
        names = [f"{self.name}.{n}" for n in named if named[n].is_floating_point()]
        if kind == "bias":
            names = [n for n in names if n.endswith("bias")]
        elif kind == "norm":
            norms = [
                n for n, m in self.module.named_modules() if "norm" in type(m).__name__.lower()
            ]
            names = [n for n in names if self.within(n, norms)]
        else:
            scope = self.scope(kind)
            names = [n for n in names if self.within(n, scope)]
        if not names:
            raise self._nothing(kind, "no parameter")
        return names

    def within(self, name: str, scope: Sequence[str]) -> bool:
        """Whether a full name is one of ``scope`` or below one of it."""
        inner = name.removeprefix(f"{self.name}.")
        return any(not s or inner == s or inner.startswith(f"{s}.") for s in scope)

    def _nothing(self, kind: str, what: str) -> InputError:
        held = {
            n for n, m in self.module.named_modules() if n and any(True for _ in m.parameters())
        }
        listed = ", ".join(sorted(held))
        return InputError(
            f"modules={kind!r}: {what} in {self.name} ({type(self.module).__name__}); use one of "
            f"{', '.join(KINDS)}, or a name inside the block: {listed}"
        )


def _refuse_adapters(model: nn.Module) -> None:
    if adapted(model):
        raise InputError(
            "the model carries adapters already; merge them first (merge_and_unload in PEFT), "
            "or take those of an earlier trainer off with its release()"
        )


def _unpack(blocks: Sequence[_BlockParameters], kinds: Sequence[str]) -> None:
    """Replace packed linear layers that are about to be trained by ordinary ones."""
    names = []
    for block in blocks:
        for kind in kinds if block.packed else ():
            if kind not in ("bias", "norm"):
                scope = block.scope(kind)
                names += [n for n in block.packed if n not in names and block.within(n, scope)]
    if names:
        unpack(blocks[0].model, names, dtype=_working_dtype(blocks[0].module))


def _let_gradients_through(model: nn.Module, parts: DecoderParts, first: int) -> None:
    """Replace packed layers that stop gradients, in the trained blocks and above them."""
    dtype = _working_dtype(parts.blocks[first])
    above = [_BlockParameters(model, parts, index) for index in range(first, len(parts.blocks))]
    names = [
        name
        for block in above
        for name in block.packed
        if not passes_gradient(model.get_submodule(name), dtype=dtype)
    ]
    if names:
        say(
            f"{len(names)} packed layers from block {first} on pass no gradient on this device; "
            "they are unpacked"
        )
        unpack(model, names, dtype=dtype)


def _working_dtype(block: nn.Module) -> torch.dtype:
    """Dtype of the weights that are not packed."""
    plain = [m for m in block.modules() if not is_quantized(m)]
    held = [p for m in plain for p in m.parameters(recurse=False)]
    return next((p.dtype for p in held if p.is_floating_point()), torch.float32)
