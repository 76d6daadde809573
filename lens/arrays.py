"""Arrays as the C core expects them: checked, never copied silently.

NumPy arrays and CPU torch tensors are accepted. torch is looked up in ``sys.modules`` and never
imported here: a tensor can only exist if the caller imported it. Pooling and the losses compute on
other devices as well, through functions of the same name in ``lens.torch_ops`` (see `anywhere`);
everything else refuses a tensor that is not on the CPU.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from lens.errors import DtypeError, InputError, LensError, ShapeError

Array = NDArray[Any]
Float64 = NDArray[np.float64]
ArrayIn: TypeAlias = Any
"""A NumPy array or a CPU torch tensor; torch is no dependency, so it cannot be named here."""

P = ParamSpec("P")
R = TypeVar("R")

FAR = -1  # a tensor on another device
F32, F64, F16, BF16 = range(4)  # dtype codes of the C core: the order of _core.dtypes()
_CODES = {"float32": F32, "float64": F64, "float16": F16}
_NAMES = ("float32", "float64", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Block:
    """Raw storage of an array with the core's dtype code; bfloat16 is held as uint16."""

    data: Array
    code: int

    @property
    def accumulator(self) -> np.dtype[Any]:
        """Dtype of bases and targets used with this block: float64 for float64, else float32."""
        return np.dtype(np.float64 if self.code == F64 else np.float32)

    @property
    def dtype_name(self) -> str:
        """Name of the stored dtype, such as ``bfloat16``."""
        return _NAMES[self.code]


def is_tensor(x: object) -> bool:
    """Whether x is a torch tensor, found out without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def _is_far(tensor: Any) -> bool:
    """Whether a tensor is out of the C core's reach. The tests replace this one."""
    return bool(tensor.device.type != "cpu")


def is_elsewhere(x: object) -> bool:
    """Whether x is a tensor on another device than the CPU."""
    return is_tensor(x) and _is_far(x)


def torch_op(name: str) -> Any:
    """Look up an operation of ``lens.torch_ops``, which builds on the numerics, by its name."""
    return getattr(import_module("lens.torch_ops"), name)


def anywhere(function: Callable[P, R]) -> Callable[P, R]:
    """Let a public function take tensors on any device; its first argument decides.

    NumPy arrays and CPU tensors go to the function, which calls the C core; tensors on another
    device go to the function of the same name and signature in ``lens.torch_ops``, which returns
    tensors on that device.
    """
    name, first = function.__name__, function.__code__.co_varnames[0]

    @wraps(function)
    def dispatch(*args: P.args, **kwargs: P.kwargs) -> R:
        if is_elsewhere(args[0] if args else kwargs.get(first)):
            return cast(R, torch_op(name)(*args, **kwargs))
        return function(*args, **kwargs)

    return dispatch


def require_cpu(x: object, name: str) -> None:
    """Refuse a tensor on another device than the CPU."""
    if is_elsewhere(x):
        raise InputError(
            f"{name}: the tensor is on device '{cast(Any, x).device}', expected 'cpu'; move it to "
            "the CPU with .cpu()"
        )


def host(x: ArrayIn) -> Array:
    """Bring an array to the CPU's memory as NumPy's; no copy if it is there."""
    data: Array = x.detach().cpu().numpy() if is_tensor(x) else x
    return data


def _from_tensor(x: Any, name: str) -> tuple[Array, str | None]:
    torch = sys.modules["torch"]
    require_cpu(x, name)
    x = x.detach()
    if x.dtype is torch.bfloat16:
        return x.view(torch.uint16).numpy(), "bfloat16"
    return x.numpy(), None


def block(x: ArrayIn, name: str, *, ndim: int | None = None, dtype: str | None = None) -> Block:
    """View an array as the core sees it; nothing is copied.

    ``dtype="bfloat16"`` says what raw uint16 holds. Another dtype, byte order, memory layout or
    number of dimensions is refused.
    """
    data, found = _from_tensor(x, name) if is_tensor(x) else (x, None)
    if not isinstance(data, np.ndarray):
        raise DtypeError(
            f"{name}: got {type(x).__name__}, expected a numpy.ndarray or a CPU torch tensor; "
            "convert it with numpy.asarray"
        )
    if data.dtype == np.uint16 and (found or dtype in ("bfloat16", "bf16")):
        code = BF16
    elif dtype is not None and dtype not in (data.dtype.name, "bfloat16", "bf16"):
        raise DtypeError(f"{name}: dtype='{dtype}' was given but the array is {data.dtype}")
    else:
        code = _CODES.get(data.dtype.name, -1)
    if code < 0:
        hint = '; pass dtype="bfloat16" for raw bits' if data.dtype == np.uint16 else ""
        raise DtypeError(
            f"{name}: dtype {data.dtype}, expected float32, float64, float16 or bfloat16{hint}"
        )
    if ndim is not None and data.ndim != ndim:
        raise ShapeError(f"{name}: shape {data.shape}, expected {ndim} dimensions")
    _check_layout(data, name)
    return Block(data, code)


def storage(
    x: ArrayIn, name: str, *, ndim: int | None = None, dtype: str | None = None
) -> tuple[Any, int]:
    """Return what `block` holds, or the checked tensor and FAR for one on another device."""
    if is_elsewhere(x):
        return torch_op("tensor")(x, name, ndim=ndim, dtype=dtype), FAR
    found = block(x, name, ndim=ndim, dtype=dtype)
    return found.data, found.code


def _check_layout(data: Array, name: str) -> None:
    if not data.dtype.isnative:
        raise DtypeError(
            f"{name}: big-endian or otherwise swapped bytes ({data.dtype.str}), expected native; "
            f"use {name}.astype({name}.dtype.newbyteorder('='))"
        )
    if not data.flags.c_contiguous:
        raise DtypeError(
            f"{name}: strides {data.strides} for shape {data.shape}, expected a C-contiguous "
            "array; use numpy.ascontiguousarray (torch: .contiguous())"
        )
    if not data.flags.aligned:
        raise DtypeError(f"{name}: the memory is not aligned to {data.dtype}; use {name}.copy()")


def same(x: ArrayIn, like: Block, name: str, like_name: str, *, dtype: str | None = None) -> Block:
    """View x, which must have the shape and dtype of another block."""
    if like.code == BF16 and dtype is None and not is_tensor(x):
        dtype = "bfloat16"
    out = block(x, name, dtype=dtype)
    if out.data.shape != like.data.shape:
        raise ShapeError(
            f"{name}: shape {out.data.shape}, expected {like.data.shape} as {like_name} has"
        )
    if out.code != like.code:
        raise DtypeError(f"{name}: {out.dtype_name}, expected {like.dtype_name} as {like_name} has")
    return out


def _check_real(x: ArrayIn, name: str) -> None:
    """Refuse complex numbers and text, which NumPy would convert."""
    kind = np.asarray(x).dtype
    if kind.kind not in "biufO":
        what = "complex numbers" if kind.kind == "c" else f"got {type(x).__name__} of {kind}"
        raise DtypeError(f"{name}: {what}, expected an array of real numbers")


def float64(
    x: ArrayIn, name: str, *, shape: tuple[int | None, ...], finite: bool = True
) -> Float64:
    """Return x as a contiguous, finite float64 array of the given shape (None: any length).

    Meant for small arrays (means, bases, weights): a copy is made where one is needed.
    ``finite=False`` leaves the search for NaN to the core.
    """
    if is_tensor(x):
        require_cpu(x, name)
        x = host(x.double())
    _check_real(x, name)
    try:
        out: Float64 = np.ascontiguousarray(x, dtype=np.float64).reshape(np.shape(x))
    except (TypeError, ValueError):
        raise DtypeError(f"{name}: got {type(x).__name__}, expected an array of numbers") from None
    wrong = out.ndim != len(shape) or any(
        want not in (None, have) for want, have in zip(shape, out.shape, strict=True)
    )
    if wrong:
        text = ", ".join("any" if n is None else str(n) for n in shape)
        raise ShapeError(f"{name}: shape {out.shape}, expected ({text})")
    if finite and not np.isfinite(out).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(out))[0])
        raise InputError(f"{name}: NaN or infinite value at index {where}; expected finite numbers")
    return out


def rows_of(basis: ArrayIn, name: str, d: int, dtype: np.dtype[Any]) -> Array:
    """Turn a (d, r) basis into the (r, d) rows of the core; no copy if it is column-major."""
    if is_tensor(basis):
        require_cpu(basis, name)
        basis = host(basis.double())
    if not isinstance(basis, np.ndarray) or basis.ndim != 2 or basis.shape[0] != d:
        raise ShapeError(f"{name}: shape {np.shape(basis)}, expected ({d}, r)")
    _check_real(basis, name)
    rows = np.ascontiguousarray(basis.T, dtype=dtype)
    if not np.isfinite(rows).all():
        raise InputError(f"{name}: holds NaN or infinite values; expected finite numbers")
    return rows


def mask01(mask: ArrayIn, name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return a boolean or 0/1 integer mask as uint8; anything else is refused."""
    data = host(mask)
    if not isinstance(data, np.ndarray) or data.dtype.kind not in "biu":
        kind = getattr(data, "dtype", type(data).__name__)
        raise DtypeError(f"{name}: got {kind}, expected a boolean or integer array of 0 and 1")
    if data.shape != shape:
        raise ShapeError(f"{name}: shape {data.shape}, expected {shape}")
    if data.dtype.kind != "b" and data.size and (data.min() < 0 or data.max() > 1):
        raise InputError(
            f"{name}: values from {data.min()} to {data.max()}, expected 1 for a real token and 0 "
            "for padding"
        )
    return np.ascontiguousarray(data, dtype=np.uint8)


def whole(value: Any, name: str, least: int, most: int | None = None) -> int:
    """Return an integer within bounds as an int; refuse anything else."""
    integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not integer or value < least or (most is not None and value > most):
        span = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InputError(f"{name}: got {value!r}, expected an integer {span}")
    return int(value)


def threads(n_threads: int | None) -> int:
    """Return the number of threads to use; None means the CPUs this process may run on."""
    if n_threads is not None:
        return whole(n_threads, "n_threads", 1)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _not_finite(x: Array) -> Array:
    """Where an array holds NaN or infinity; uint16 is bfloat16."""
    bad: Array = (x & 0x7F80) == 0x7F80 if x.dtype == np.uint16 else ~np.isfinite(x)
    return bad


def _blame(text: str, arrays: Mapping[str, Array | None]) -> str:
    """Say which array the core means when it has found something to refuse in their values."""
    if "masked out" in text and "mask" in arrays:
        return f"mask: {text}; expected 1 for every real token"
    if "NaN or infinite" not in text or not arrays:
        return text
    given = {name: x for name, x in arrays.items() if x is not None and name != "mask"}
    row = re.search(r", (?:row|element|token) (\d+)", text)
    where = int(row[1]) if row else ...
    found = [name for name, x in given.items() if _not_finite(x[where]).any()]
    if found:
        return f"{' and '.join(found)}: {text}; expected finite numbers"
    return f"{' and '.join(given)}: {text}, from sums or squares that overflow; scale them down"


@contextmanager
def core_errors(**arrays: Array | None) -> Iterator[None]:
    """Turn what the C core raises into the package's own errors.

    ``arrays`` are the arguments whose values may be refused, by the names their caller knows.
    """
    try:
        yield
    except LensError:
        raise
    except TypeError as error:
        raise DtypeError(str(error)) from None
    except (ValueError, OverflowError) as error:
        raise InputError(_blame(str(error), arrays)) from None


def _plain(value: Any) -> Any:
    if isinstance(value, Result):
        return value.to_dict()
    if isinstance(value, np.ndarray | np.generic) or is_tensor(value):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def to_dict(result: Any) -> dict[str, Any]:
    """Fields of a result dataclass as plain Python values, arrays and tuples as lists."""
    return {field.name: _plain(getattr(result, field.name)) for field in fields(result)}


class Result:
    """Base of the dataclasses that numeric functions return."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, arrays and tuples as nested lists."""
        return to_dict(self)
