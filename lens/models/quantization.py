"""Linear layers with packed weights (bitsandbytes, GPTQ, AWQ and others), by structure.

None of these libraries is imported: a layer is known by its packed weight, and unpacked by its
outputs for the unit vectors, which are its weight matrix.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from lens.errors import InputError

_ROWS = 1024  # unit vectors at once
# Whose weight may be stored in a floating dtype although it is packed.
_PACKED_CLASSES = ("Linear4bit", "Linear8bitLt")
# Where a quantisation config lists the layers it leaves alone.
_LEFT_ALONE = ("llm_int8_skip_modules", "modules_to_not_convert")


def is_quantized(module: nn.Module) -> bool:
    """Whether a module is a linear layer whose weight is packed."""
    if features(module) is None or any(True for _ in module.children()):
        return False
    weight = getattr(module, "weight", None)
    if type(module).__name__ in _PACKED_CLASSES:
        return True
    return type(weight) is not nn.Parameter or not weight.is_floating_point()


def keep_layout(model: nn.Module) -> None:
    """Stop bitsandbytes from packing 4-bit weights anew when they are first run on a newer CPU.

    That layout passes no gradient, and is not written to a checkpoint as it should be.
    """
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def passes_gradient(module: Any, *, dtype: torch.dtype) -> bool:
    """Whether a packed layer hands a gradient to its input, once it has been run without.

    Kernels made for inference do not, and a library may switch to such a kernel for good when a
    layer is run without gradients.
    """
    n_in, _ = features(module) or (0, 0)
    device = _device(module)
    x = torch.ones(2, n_in, device=device, dtype=dtype)
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            module(x)
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the cause of the warning is tested here
            given = x.clone().requires_grad_()
            (grad,) = torch.autograd.grad(module(given).sum(), given, allow_unused=True)
    except (RuntimeError, NotImplementedError):
        return False
    finally:
        module.train(training)
    return grad is not None and bool(grad.any())


def unpack(model: nn.Module, names: list[str], *, dtype: torch.dtype) -> None:
    """Replace packed linear layers of a model by ordinary ones, in place and in its config.

    If one cannot be run here, or gives weights that are not finite, the model stays as it was.
    """
    made = {name: _unpacked(model.get_submodule(name), name, dtype) for name in names}
    for name, linear in made.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, linear)
    if made:
        _tell_config(model, list(made))


@torch.no_grad()
def _unpacked(module: Any, name: str, dtype: torch.dtype) -> nn.Linear:
    """Ordinary linear layer from a packed one's outputs for the unit vectors."""
    n_in, n_out = features(module) or (0, 0)
    device = _device(module)
    linear = nn.Linear(n_in, n_out, bias=module.bias is not None, device=device, dtype=dtype)
    bias, module.bias = module.bias, None
    try:
        for start in range(0, n_in, _ROWS):
            stop = min(start + _ROWS, n_in)
            units = torch.zeros(stop - start, n_in, device=device, dtype=dtype)
            units[:, start:stop].fill_diagonal_(1)
            linear.weight[:, start:stop] = module(units).T
    except (RuntimeError, ImportError, NotImplementedError, TypeError, ValueError) as error:
        raise InputError(
            f"cannot unpack {name} ({type(module).__name__}) on {device}: {error}; train adapters "
            "on it instead (lora), or load the model without quantisation"
        ) from None
    finally:
        module.bias = bias
    if linear.bias is not None and isinstance(bias, Tensor):
        linear.bias.copy_(bias)
    if not all(bool(p.isfinite().all()) for p in linear.parameters()):
        raise InputError(
            f"{name} ({type(module).__name__}) gives weights that are not finite in {dtype}; load "
            "the model in float32 or bfloat16"
        )
    return linear


def answer(module: nn.Module) -> Tensor:
    """Output of a packed layer for one fixed vector, which differs for any two weights."""
    n_in, _ = features(module) or (0, 0)
    held = [*module.parameters(), *module.buffers()]
    dtype = next((t.dtype for t in held if t.is_floating_point()), torch.float32)
    vector = torch.linspace(0.5, 1.5, n_in).to(held[0].device, dtype)
    with torch.no_grad():
        result: Tensor = module(vector.expand(2, -1))
    return result


def features(module: nn.Module) -> tuple[int, int] | None:
    """Input and output width of a linear layer, however its library spells them."""
    for one, two in (("in_features", "out_features"), ("infeatures", "outfeatures")):
        found = getattr(module, one, None), getattr(module, two, None)
        if isinstance(found[0], int) and isinstance(found[1], int):
            return found[0], found[1]
    return None


def _device(module: nn.Module) -> torch.device | None:
    return next((t.device for t in (*module.parameters(), *module.buffers())), None)


def _tell_config(model: nn.Module, names: list[str]) -> None:
    """List layers as not quantised, so that a saved checkpoint is loaded as it is."""
    config: Any = getattr(getattr(model, "config", None), "quantization_config", None)
    for key in _LEFT_ALONE:
        if config is not None and hasattr(config, key):
            # None means "the output head", which stays as it is.
            listed = getattr(config, key) or ["lm_head"]
            setattr(config, key, [*listed, *(n for n in names if n not in listed)])
            return
