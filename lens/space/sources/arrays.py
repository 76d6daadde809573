"""Arrays of any library as checked float64 states."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from lens.arrays import is_tensor
from lens.errors import DtypeError, InputError, ShapeError

Float64 = NDArray[np.float64]

_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32}


def as_states(x: Any, name: str, *, ndim: int = 2) -> Float64:
    """Bring states of any array library to float64, or say what is wrong with them.

    Parameters
    ----------
    x : array
        A NumPy array, a torch tensor (bfloat16 too), anything with the array interface
        (``__array_interface__`` or ``__array__``) or DLPack, in memory that the CPU can read.
    name : str
        What the array is called in messages.
    ndim : int
        Number of dimensions expected.

    Returns
    -------
    numpy.ndarray
        float64, contiguous.

    Raises
    ------
    DtypeError
        If x is no array of floating point numbers.
    ShapeError
        If it has other dimensions, or none of some.
    InputError
        If a value is NaN or infinite, or the array is out of reach.
    """
    data = _to_numpy(x, name)
    if data.dtype.kind != "f" and not data.dtype.name.startswith(("bfloat16", "float8")):
        raise DtypeError(
            f"{name}: dtype {data.dtype}, expected floating point states; raw bfloat16 must come "
            "as a torch tensor or in safetensors"
        )
    if data.ndim != ndim or 0 in data.shape:
        wanted = {2: "(n, d)", 3: "(n, sites, d)"}.get(ndim, f"{ndim} dimensions")
        raise ShapeError(f"{name}: shape {data.shape}, expected {wanted}, none of them 0")
    values: Float64 = np.ascontiguousarray(data, dtype=np.float64)
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0, 0])
        raise InputError(
            f"{name}: row {row} is not finite (NaN or infinity); leave the row out or compute it "
            "in a wider dtype"
        )
    return values


def read_tensors(content: bytes, name: str) -> dict[str, NDArray[Any]]:
    """Read the tensors of a safetensors file, bfloat16 widened to float32.

    Raises
    ------
    InputError
        When the file is truncated or damaged, or holds another dtype.
    """
    try:
        tensors: Any = deserialize(content)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise InputError(
            f"{name}: cannot be read as safetensors (truncated or damaged: {error}); copy it again"
        ) from None
    found: dict[str, NDArray[Any]] = {}
    for key, entry in tensors:
        kind, data, shape = entry["dtype"], entry["data"], entry["shape"]
        if kind == "BF16":
            bits = np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16
            found[key] = bits.view(np.float32).reshape(shape)
        elif kind in _TYPES:
            found[key] = np.frombuffer(data, dtype=_TYPES[kind]).reshape(shape)
        else:
            raise DtypeError(f"{name}: tensor '{key}' is {kind}; expected BF16, F16, F32 or F64")
    return found


def _to_numpy(x: Any, name: str) -> NDArray[Any]:
    if isinstance(x, np.ndarray):
        return x
    if is_tensor(x):
        narrow = x.dtype.itemsize < 4 and x.dtype.is_floating_point
        try:
            tensor = x.detach().cpu()
            data: NDArray[Any] = (tensor.float() if narrow else tensor).numpy()
        except (RuntimeError, TypeError, NotImplementedError) as error:
            raise InputError(f"{name}: the tensor has no values to read ({error})") from None
        return data
    converters: tuple[tuple[str, Callable[[Any], NDArray[Any]]], ...] = (
        ("__array_interface__", np.asarray),
        ("__array__", np.asarray),
        ("__dlpack__", _from_dlpack),
    )
    problem = ""
    for attribute, convert in converters:
        if not hasattr(x, attribute):
            continue
        try:
            return convert(x)
        except (TypeError, ValueError, RuntimeError, BufferError) as error:
            problem = f" ({error})"
    if problem:
        raise InputError(
            f"{name}: {type(x).__name__} cannot be read by the CPU{problem}; bring it to the "
            "CPU's memory first"
        )
    raise DtypeError(
        f"{name}: got {type(x).__name__}, expected an array: NumPy, torch, or one with the array "
        "interface or DLPack"
    )


def _from_dlpack(x: Any) -> NDArray[Any]:
    try:
        return np.from_dlpack(x)
    except (BufferError, RuntimeError, TypeError):
        import sys

        torch = sys.modules.get("torch")  # NumPy has no bfloat16; torch reads it, if it is there
        if torch is None:
            raise
        data: NDArray[Any] = torch.from_dlpack(x).cpu().float().numpy()
        return data
