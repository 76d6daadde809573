"""Pickles of arrays, read without the power to run code.

A pickle names functions to call. This reader knows those that build arrays, tensors and plain
containers, and refuses any other by its name.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from lens.errors import InputError, MissingExtraError

_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")


class _Refused(Exception):
    """A pickle asked for something that is no array."""


class _Reader(pickle.Unpickler):
    """An unpickler that can build arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what builds arrays; refuse the rest by name."""
        if module in _MULTIARRAY and name in ("_reconstruct", "scalar"):
            return getattr(import_module("numpy._core.multiarray"), name)
        if module in _NUMERIC and name == "_frombuffer":
            return _frombuffer
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if module == "numpy.dtypes" and name.endswith("DType"):
            return getattr(np.dtypes, name)
        if (module, name) == ("_codecs", "encode"):
            return _encode
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module in ("builtins", "__builtin__") and name in ("set", "frozenset"):
            return {"set": set, "frozenset": frozenset}[name]
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _tensor_storage
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _torch_function(name)
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to objects outside the file."""
        raise _Refused(f"a persistent object {pid!r}")


def read_pickle(path: Path) -> Any:
    """Read a pickle of arrays, tensors, numbers, text and plain containers.

    Parameters
    ----------
    path : Path
        File.

    Returns
    -------
    object
        Its content.

    Raises
    ------
    InputError
        When the pickle names anything else, which is then not run, or is damaged.
    MissingExtraError
        When it holds tensors and torch is not installed.
    """
    try:
        return _Reader(io.BytesIO(path.read_bytes())).load()
    except _Refused as error:
        raise InputError(
            f"'{path.name}' asks for {error}, which builds no array: it may run code and was not "
            "loaded; save its arrays as .npy or safetensors where it was made"
        ) from None
    except MissingExtraError:
        raise
    except Exception as error:  # a damaged pickle fails in any way
        raise InputError(
            f"'{path.name}' cannot be read as a pickle ({_short(error)}); it is cut off or "
            "damaged: copy it again"
        ) from None


def read_torch(path: Path) -> Any:
    """Read a ``.pt`` file of tensors by ``torch.load(weights_only=True)``.

    Raises
    ------
    InputError
        When it holds anything but tensors and plain containers, or is damaged.
    MissingExtraError
        When torch is not installed.
    """
    torch = _torch()
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the file leads to
        raise InputError(
            f"'{path.name}' cannot be read as tensors alone ({_short(error)}); save its tensors as "
            "safetensors where it was made"
        ) from None


def _tensor_storage(content: bytes) -> Any:
    """Read what torch puts inside a plain pickle, as weights alone; torch's own would run code."""
    return _torch().load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _torch_function(name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(_torch()._utils, name)
    return function


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise MissingExtraError("torch", "hf", "reading saved tensors") from None
    return torch


def _frombuffer(buffer: Any, dtype: Any, shape: Any, order: Any, *rest: Any) -> Any:
    """Build an array of numbers from its bytes."""
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise _Refused(f"an array of {dtype}")
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Bytes as old protocols write them."""
    if encoding != "latin1":
        raise _Refused(f"_codecs.encode to {encoding}")
    return text.encode("latin1")


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
