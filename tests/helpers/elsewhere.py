"""Tensors that seem to be on another device, for tests where there is none.

`elsewhere` takes CPU tensors for far ones, also for those of a device without float64.
"""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from lens import arrays, torch_ops
from tests.helpers import reference as ref

NARROW = ["float32", "float16", "bfloat16"]  # the dtypes of a device without float64
DEVICES = [(dtype, True) for dtype in ref.DTYPES] + [(dtype, False) for dtype in NARROW]
"""Every dtype, and whether the device has float64."""


@contextmanager
def elsewhere(float64=True):
    """Take every CPU tensor for one on another device, perhaps on one without float64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "_is_far", lambda tensor: True)
        patch.setattr(torch_ops, "has_float64", lambda kind: float64)
        yield


def both(function, *args, float64=True, **kwargs):
    """Results of the C core and of torch."""
    core = function(*args, **kwargs)
    with elsewhere(float64):
        return core, function(*args, **kwargs)


def normal(rng, shape, dtype, scale=1.0, shift=0.0):
    x = torch.from_numpy(scale * rng.normal(size=shape) + shift)
    return x.to(getattr(torch, dtype))


def values(x):
    """float64 of an array, of a tensor, or of bfloat16 bits."""
    if isinstance(x, torch.Tensor):
        return x.detach().double().numpy()
    return ref.value(x, "bfloat16") if x.dtype == np.uint16 else np.asarray(x, np.float64)
