"""A model without values, made from its config by transformers, and the work of a step in it.

Tensors are fake: they have shape, dtype and device and no memory, so the library's own code tells
parameter names, operations and what autograd keeps, for any architecture and size, in a moment.
"""

from __future__ import annotations

import importlib.util
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lens.errors import InputError, MissingExtraError
from lens.planning.checkpoints import Checkpoint
from lens.planning.structures import Shape, Structure, arranged, depth_of

# Blocks from this size on the C library (glibc) asks the system for, and gives back at once.
LARGE_BLOCK = 32 << 20
TORCH_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


@dataclass(frozen=True, slots=True)
class Ghost:
    """A model without values.

    Attributes
    ----------
    model : PreTrainedModel
        All of its tensors are fake.
    mode : FakeTensorMode
        Whatever is done with the model is done inside it.
    shapes : dict of str to tuple
        Shape of every parameter, each counted once.
    tied : frozenset of str
        Names under which a checkpoint may hold a parameter a second time.
    renamed : bool
        Whether the library stores this family under other names than it holds.
    any_kind : bool
        Whether it was made as `lens.models.load` would: an encoder as such, a model of text and
        pictures as a whole.
    """

    model: Any
    mode: Any
    shapes: dict[str, Shape]
    tied: frozenset[str]
    renamed: bool
    any_kind: bool = False

    def structure(self, checkpoint: Checkpoint) -> Structure:
        """Parts of the model, by the same rules as those of a checkpoint."""
        return arranged(self.shapes, depth=depth_of(checkpoint))


def make_ghost(
    checkpoint: Checkpoint, *, dtype: str, any_kind: bool = False, trust_remote_code: bool = False
) -> Ghost:
    """Make the model that a config describes, without values.

    Parameters
    ----------
    checkpoint : Checkpoint
        Its config is used.
    dtype : str
        What the model will compute in, such as ``"BF16"``.
    any_kind : bool
        Make what `lens.models.load` would load, an encoder for instance; by default a causal
        language model.
    trust_remote_code : bool
        Allow code that comes with the checkpoint to run.

    Raises
    ------
    MissingExtraError
        If torch or transformers is not installed.
    InputError
        If the config cannot be made into such a model.
    """
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "hf", "a plan that knows the architecture")
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode()
    working = getattr(torch, TORCH_DTYPES[dtype])
    try:
        config = config_of(checkpoint, trust_remote_code)
        with mode:
            model: Any = (
                kind_of(config, any_kind)
                .from_config(config, dtype=working, trust_remote_code=trust_remote_code)
                .eval()
            )
    except Exception as error:  # a config can be wrong in as many ways as there are models
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"no model can be made from {checkpoint.path}: {first}") from None
    held = {id(p) for p in model.parameters()}
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    every = {name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in held}
    return Ghost(model, mode, shapes, frozenset(every - set(shapes)), _renamed(model), any_kind)


def kind_of(config: Any, any_kind: bool) -> Any:
    """Class that makes a model of a config."""
    if any_kind:
        from lens.models.loading import auto_class

        return auto_class(config)
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM


def config_of(checkpoint: Checkpoint, trust_remote_code: bool) -> Any:
    """Return the library's configuration of a checkpoint."""
    from transformers import AutoConfig

    if checkpoint.path.is_dir():
        return AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=trust_remote_code)
    settings = dict(checkpoint.config)
    family = settings.pop("model_type", None)
    if family is None:
        raise InputError("it has no model_type")
    return AutoConfig.for_model(family, **settings)


def _renamed(model: Any) -> bool:
    """Whether loading puts tensors together or renames them (experts stored one by one)."""
    try:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    except ImportError:
        return False
    return bool(get_checkpoint_conversion_mapping(model.config.model_type))


@dataclass(slots=True)
class Work:
    """What a piece of work takes.

    Attributes
    ----------
    flops : int
        Floating-point operations of matrix products and attention.
    peak : int
        Most bytes of new tensors alive at one time.
    scattered : int
        Of these, bytes in blocks that come from the heap of the C library.
    """

    flops: int = 0
    peak: int = 0
    scattered: int = 0

    def widened(self, times: int) -> Work:
        """Return the same work with elements so many times as large."""
        return Work(self.flops, self.peak * times, self.scattered * times)


@contextmanager
def observed() -> Iterator[Work]:
    """Count operations and memory of what is done inside; for fake tensors."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import FlopCounterMode

    work = Work()
    alive: dict[int, Any] = {}
    now = small = 0

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal now
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, torch.Tensor):
                    note(tensor.untyped_storage(), 0)  # was there before: a weight, an input
            out = function(*args, **(kwargs or {}))
            for tensor in tree_leaves(out):
                if isinstance(tensor, torch.Tensor):
                    storage = tensor.untyped_storage()
                    note(storage, storage.nbytes())
            if now > work.peak:
                work.peak, work.scattered = now, small
            return out

    def note(storage: Any, size: int) -> None:
        nonlocal now, small
        key = id(storage)
        if key in alive:
            return

        scattered = size if size < LARGE_BLOCK else 0

        def gone(_reference: Any) -> None:
            nonlocal now, small
            now, small = now - size, small - scattered
            alive.pop(key, None)

        alive[key] = weakref.ref(storage, gone)
        now, small = now + size, small + scattered

    watching: Any = Watching
    with watching(), FlopCounterMode(display=False, custom_mapping=_attention()) as counter:
        yield work
    work.flops = int(counter.get_total_flops())


def _attention() -> dict[Any, Callable[..., int]]:
    """Operations of attention on a CPU, which torch's own table leaves out."""
    import torch
    from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

    def forward(q: Shape, k: Shape, v: Shape, *_args: Any, **_kwargs: Any) -> int:
        return int(sdpa_flop_count(q, k, v))

    def backward(grad: Shape, q: Shape, k: Shape, v: Shape, *_args: Any, **_kwargs: Any) -> int:
        return int(sdpa_backward_flop_count(grad, q, k, v))

    ops = torch.ops.aten
    return {
        ops._scaled_dot_product_flash_attention_for_cpu: forward,
        ops._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }


def parts_of(ghost: Ghost) -> Any:
    """Parts of the model by `lens.models.locate`; order and shapes stand in for values."""
    from lens.models.blocks import locate

    with ghost.mode, quiet():
        return locate(ghost.model)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch from logging what a fake tensor cannot do: the caller has another way."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def attempted(action: Callable[[], Work]) -> Work | None:
    """Do fake work; None where the architecture does something that values alone decide."""
    try:
        with quiet():
            return action()
    except (RuntimeError, NotImplementedError):
        return None
