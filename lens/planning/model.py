"""A model without values: structure from tensor names, modules on the meta device."""

from __future__ import annotations

import importlib.util
import logging
import re
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

from lens.errors import InputError, MissingExtraError
from lens.models.checkpoint import Checkpoint

Shape = tuple[int, ...]
_BLOCK = re.compile(r"(.*?)\.(\d+)\.(.+)")
_EMBEDDING = re.compile(r"embed|wte|word_emb")
_HEAD = re.compile(r"lm_head|embed_out|output")
# Tables that old checkpoints hold beside the weights, and every model computes for itself.
TABLES = re.compile(r"(^|\.)(rotary_emb\.inv_freq|(attn|attention)\.(masked_)?bias)$")
_CONV1D = re.compile(r"\.c_(attn|fc|proj)\.")  # GPT-2 keeps (input, output)
_ATTENTION = re.compile(r"attn|attention")
_NORM = re.compile(r"norm|(^|\.)ln_")
KINDS = ("full", "attention", "mlp", "bias", "norm")


@dataclass(frozen=True, slots=True)
class Structure:
    """Shapes of every tensor of a model, by the part it belongs to.

    Attributes
    ----------
    blocks_name : str
        Dotted name of the list of decoder blocks, such as ``"model.layers"``.
    blocks : tuple of dict of str to tuple
        Of each block, shapes by the name inside it.
    embedding, head, rest : dict of str to tuple
        Input embedding, output head where it has weights of its own, everything else.
    """

    blocks_name: str
    blocks: tuple[dict[str, Shape], ...]
    embedding: dict[str, Shape]
    head: dict[str, Shape]
    rest: dict[str, Shape]

    @property
    def parameters(self) -> int:
        """Number of all parameters."""
        return sum(self.of_block) + sum(map(count, (self.embedding, self.head, self.rest)))

    @property
    def of_block(self) -> tuple[int, ...]:
        """Number of parameters of each block."""
        return tuple(count(block) for block in self.blocks)

    @property
    def parts(self) -> tuple[dict[str, Shape], ...]:
        """Every block, and what is around them."""
        return (*self.blocks, self.embedding, self.head, self.rest)

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return max((shape[0] for shape in self.embedding.values()), default=0)

    @property
    def width(self) -> int:
        """Width of the residual stream: the embedding's, or else that of most norms."""
        lengths = Counter(shape[0] for shape in self.blocks[0].values() if len(shape) == 1)
        wide = next((shape[-1] for shape in self.embedding.values()), 0)
        if wide in lengths or not lengths:  # else something is between embedding and blocks
            return wide
        return lengths.most_common(1)[0][0]

    def chosen(self, layers: Iterable[int], train: str) -> dict[str, Shape]:
        """Shapes of what ``train`` selects in blocks, by full name.

        Raises
        ------
        InputError
            If a part of ``train`` selects nothing.
        """
        found: dict[str, Shape] = {}
        for kind in (part.strip() for part in train.split(",")):
            names = {
                f"{self.blocks_name}.{i}.{name}": shape
                for i in layers
                for name, shape in _selected(kind, self.blocks[i]).items()
            }
            if not names:
                known = ", ".join(sorted({n.split(".")[0] for n in self.blocks[0]}))
                raise InputError(
                    f"train={kind!r} selects nothing in {self.blocks_name}; use one of "
                    f"{', '.join(KINDS)}, or a name inside the block: {known}"
                )
            found |= names
        return found


def count(tensors: Mapping[str, Shape]) -> int:
    """Count the elements of all tensors."""
    return sum(elements(tensors))


def elements(tensors: Mapping[str, Shape]) -> list[int]:
    """Elements of each tensor."""
    return [prod(shape) for shape in tensors.values()]


def adapter_count(chosen: Mapping[str, Shape], rank: int, *, dora: bool = False) -> int:
    """Elements of adapters of a rank on the linear layers among the chosen tensors."""
    linear = [(n, s) for n, s in chosen.items() if len(s) == 2 and not _NORM.search(n)]
    lengths = sum(s[1] if _CONV1D.search(n) else s[0] for n, s in linear) if dora else 0
    return lengths + sum(rank * (a + b) for _, (a, b) in linear)


def structure_of(checkpoint: Checkpoint) -> Structure:
    """Find the parts of a checkpoint by the names in its headers.

    Raises
    ------
    InputError
        If no tensors are named as those of a list of blocks.
    """
    tensors = {
        name: stored.shape for name, stored in checkpoint.tensors.items() if not TABLES.search(name)
    }
    return arranged(tensors, depth=depth_of(checkpoint))


def arranged(tensors: Mapping[str, Shape], *, depth: int | None) -> Structure:
    """Arrange named shapes into blocks and the rest; ``depth`` decides between several lists."""
    lists: dict[str, dict[int, dict[str, Shape]]] = {}
    for name, shape in tensors.items():
        match = _BLOCK.fullmatch(name)
        if match:
            lists.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = shape
    if not lists:
        raise InputError(
            f"none of the {len(tensors)} tensors is named like part of a block, such as "
            "model.layers.0.mlp.up_proj.weight"
        )

    def likelihood(name: str) -> tuple[bool, int]:
        held = lists[name]
        return max(held) + 1 == depth, sum(count(block) for block in held.values())

    name = max(lists, key=likelihood)
    blocks = tuple(lists[name].get(i, {}) for i in range(max(lists[name]) + 1))
    others = {n: s for n, s in tensors.items() if not n.startswith(f"{name}.")}
    embedding, head, rest = _around(others)
    return Structure(name, blocks, embedding, head, rest)


def depth_of(checkpoint: Checkpoint) -> int | None:
    """Return the number of blocks that the config promises."""
    config = checkpoint.text_config
    names = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    return next((int(config[n]) for n in names if isinstance(config.get(n), int)), None)


def _around(
    others: Mapping[str, Shape],
) -> tuple[dict[str, Shape], dict[str, Shape], dict[str, Shape]]:
    """Tell embedding, head and the rest apart."""
    heads = {n: s for n, s in others.items() if _HEAD.search(n)}
    wide = {n: s for n, s in others.items() if len(s) == 2 and n not in heads}
    named = {n: s for n, s in wide.items() if _EMBEDDING.search(n)}
    first = max(named or wide, key=lambda n: wide[n][0], default=None)
    embedding: dict[str, Shape] = {} if first is None else {first: wide[first]}
    rest = {n: s for n, s in others.items() if n not in heads and n not in embedding}
    return embedding, heads, rest


def _selected(kind: str, block: Mapping[str, Shape]) -> dict[str, Shape]:
    """Tensors of a block that a kind, or a dotted name inside it, takes in.

    Training finds attention by what it does (`lens.models.architecture`); here its name must do.
    """
    if kind == "full":
        return dict(block)
    if kind in ("attention", "mlp"):
        holders = {name.split(".")[0] for name, shape in block.items() if len(shape) > 1}
        wanted = {
            name for name in holders if bool(_ATTENTION.search(name)) == (kind == "attention")
        }
        return {name: shape for name, shape in block.items() if name.split(".")[0] in wanted}
    if kind in ("norm", "bias"):
        pattern = _NORM if kind == "norm" else re.compile(r"bias$")
        return {name: shape for name, shape in block.items() if pattern.search(name)}
    return {n: s for n, s in block.items() if n == kind or n.startswith(f"{kind}.")}


# Blocks from this size on the C library (glibc) asks the system for, and gives back at once.
LARGE_BLOCK = 32 << 20
TORCH_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


@dataclass(frozen=True, slots=True)
class MetaModel:
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


def make_meta_model(
    checkpoint: Checkpoint,
    *,
    dtype: str,
    any_kind: bool = False,
    trust_remote_code: bool = False,
) -> MetaModel:
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
    return MetaModel(model, mode, shapes, frozenset(every - set(shapes)), _renamed(model), any_kind)


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
class BlockWork:
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

    def widened(self, times: int) -> BlockWork:
        """Return the same work with elements so many times as large."""
        return BlockWork(self.flops, self.peak * times, self.scattered * times)


@contextmanager
def observed() -> Iterator[BlockWork]:
    """Count operations and memory of what is done inside; for fake tensors."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import FlopCounterMode

    work = BlockWork()
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


def parts_of(ghost: MetaModel) -> Any:
    """Parts of the model by `lens.models.locate`; order and shapes stand in for values."""
    from lens.models.architecture import locate

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


def attempted(action: Callable[[], BlockWork]) -> BlockWork | None:
    """Do fake work; None where the architecture does something that values alone decide."""
    try:
        with quiet():
            return action()
    except (RuntimeError, NotImplementedError):
        return None
