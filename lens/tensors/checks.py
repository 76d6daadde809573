"""What every operation asks of its tensors, with the errors of the C core's front door."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lens.errors import DtypeError, InputError, ShapeError

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@cache
def has_float64(device_type: str) -> bool:
    """Whether a kind of device computes in float64; tried once."""
    try:
        one = torch.ones(1, dtype=torch.float64, device=device_type)
        return (one + one).dtype == torch.float64
    except (TypeError, RuntimeError):
        return False


def wide(x: Tensor) -> torch.dtype:
    """Dtype of sums on the device of x: float64 where there is one."""
    return torch.float64 if has_float64(x.device.type) else torch.float32


def accumulator(x: Tensor) -> torch.dtype:
    """Dtype of products: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def tensor(x: Any, name: str, *, ndim: int | None = None, dtype: str | None = None) -> Tensor:
    """Return x, which must be a tensor of a supported dtype, cut off from autograd."""
    if not isinstance(x, Tensor):
        raise DtypeError(f"{name}: got {type(x).__name__}, expected a torch tensor")
    if x.dtype not in NAMES:
        raise DtypeError(f"{name}: dtype {x.dtype}, expected float32, float64, float16 or bfloat16")
    if dtype not in (None, NAMES[x.dtype], "bf16" if x.dtype == torch.bfloat16 else None):
        raise DtypeError(f"{name}: dtype='{dtype}' was given but the tensor is {NAMES[x.dtype]}")
    if ndim is not None and x.ndim != ndim:
        raise ShapeError(f"{name}: shape {tuple(x.shape)}, expected {ndim} dimensions")
    return x.detach()


def same(x: Any, like: Tensor, name: str, like_name: str) -> Tensor:
    """Return x, which must have the shape, dtype and device of another tensor."""
    if not isinstance(x, Tensor):
        raise DtypeError(
            f"{name}: got {type(x).__name__}, expected a tensor on device '{like.device}', where "
            f"{like_name} is"
        )
    out = tensor(x, name)
    if out.shape != like.shape:
        raise ShapeError(
            f"{name}: shape {tuple(out.shape)}, expected {tuple(like.shape)} as {like_name} has"
        )
    if out.dtype != like.dtype:
        raise DtypeError(
            f"{name}: {NAMES[out.dtype]}, expected {NAMES[like.dtype]} as {like_name} has"
        )
    if out.device != like.device:
        raise InputError(
            f"{name}: the tensor is on device '{out.device}', expected '{like.device}', where "
            f"{like_name} is"
        )
    return out


def small(
    x: Any, name: str, *, like: Tensor, shape: Sequence[int | None], dtype: torch.dtype
) -> Tensor:
    """Return finite numbers, from anywhere, on the device of another tensor."""
    try:
        out = x.detach() if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))
    except (TypeError, ValueError):
        raise DtypeError(f"{name}: got {type(x).__name__}, expected an array of numbers") from None
    if out.is_complex():
        raise DtypeError(f"{name}: complex numbers, expected real ones")
    wrong = out.ndim != len(shape) or any(
        want not in (None, have) for want, have in zip(shape, out.shape, strict=True)
    )
    if wrong:
        text = ", ".join("any" if n is None else str(n) for n in shape)
        raise ShapeError(f"{name}: shape {tuple(out.shape)}, expected ({text})")
    out = out.to(dtype).to(like.device)  # in this order: the device may lack the dtype it had
    refuse(~out.isfinite(), f"{name}: NaN or infinite value; expected finite numbers")
    return out


def mask01(mask: Any, name: str, *, like: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a boolean or 0/1 integer mask, from anywhere, as a boolean tensor."""
    if not isinstance(mask, Tensor | np.ndarray):
        raise DtypeError(f"{name}: got {type(mask).__name__}, expected an array of 0 and 1")
    out = torch.as_tensor(mask).detach()
    if out.is_floating_point() or out.is_complex():
        raise DtypeError(f"{name}: got {out.dtype}, expected a boolean or integer array of 0 and 1")
    if out.shape != torch.Size(shape):
        raise ShapeError(f"{name}: shape {tuple(out.shape)}, expected {tuple(shape)}")
    refuse((out != 0) & (out != 1), f"{name}: a value other than 0 and 1")
    return out.to(device=like.device, dtype=torch.bool)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product in the dtype of its factors, also where autocast would take a shorter one."""
    if a.is_meta:  # autocast knows no such device
        return a @ b
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def first(bad: Tensor) -> tuple[int, ...] | None:
    """Index of the first true element, if there is one; a meta tensor holds no values."""
    if bad.is_meta or not bool(bad.any()):
        return None
    flat = int(bad.reshape(-1).to(torch.uint8).argmax())
    return tuple(int(i) for i in np.unravel_index(flat, tuple(bad.shape)))


def refuse(bad: Tensor, message: str, *axes: str) -> None:
    """Raise InputError if an element is true, naming the first by the given axes."""
    where = first(bad)
    if where is not None:
        names = axes or ("index",) * (len(where) == 1)
        place = [f"{axis} {i}" for axis, i in zip(names, where, strict=bool(axes))]
        raise InputError(", ".join([message, *place]))
