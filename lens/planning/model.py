"""A model without its weights: config, headers, shapes by part, modules on the meta device."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from lens.errors import InputError, MissingExtraError
from lens.models.checkpoint import Checkpoint
from lens.training.config import Lora

Shape = tuple[int, ...]
TORCH_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
"""Names in torch of the floating dtypes that weights are stored and computed in."""
# Tables that old checkpoints hold beside the weights; every model computes them for itself.
TABLES = re.compile(r"(^|\.)(rotary_emb\.inv_freq|(attn|attention)\.(masked_)?bias)$")
CONV1D = re.compile(r"(^|\.)c_(attn|fc|proj)\.")
"""Matrices that GPT-2 stores as (input, output)."""
KINDS = ("full", "attention", "mlp", "bias", "norm")
_BLOCK = re.compile(r"(.*?)\.(\d+)\.(.+)")
_EMBEDDING = re.compile(r"embed|wte|word_emb")
_HEAD = re.compile(r"lm_head|embed_out|output")
_ATTENTION = re.compile(r"attn|attention")
_NORM = re.compile(r"norm|(^|\.)ln_")


def listed(names: Sequence[str], shown: int = 4) -> str:
    """Name the first few."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more if names else "nothing"


# ---------------------------------------------------------------- config


def depth_of(checkpoint: Checkpoint) -> int | None:
    """Return the number of blocks that the config promises."""
    names = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    found = (checkpoint.text_config.get(name) for name in names)
    return next((value for value in found if isinstance(value, int)), None)


def experts_used(checkpoint: Checkpoint) -> float:
    """Share of the experts that a token is sent to; 1 without experts."""
    config = checkpoint.text_config
    used = float(config.get("num_experts_per_tok") or 1)
    every = float(config.get("num_local_experts") or config.get("num_experts") or 1)
    return min(1.0, used / every)


# ---------------------------------------------------------------- shapes by part


@dataclass(frozen=True, slots=True)
class Structure:
    """Shapes of every tensor of a model, by the part it belongs to.

    Attributes
    ----------
    blocks_name : str
        Dotted name of the list of blocks, such as ``"model.layers"``.
    blocks : tuple of dict of str to tuple
        Shapes of each block by the name inside it.
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
        return sum(map(count, self.parts))

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

    def chosen(self, layers: Iterable[int], modules: str) -> dict[str, Shape]:
        """Shapes of what ``modules`` selects in blocks, by full name.

        Raises
        ------
        InputError
            If a part of ``modules`` selects nothing.
        """
        found: dict[str, Shape] = {}
        for kind in (part.strip() for part in modules.split(",")):
            names = {
                f"{self.blocks_name}.{i}.{name}": shape
                for i in layers
                for name, shape in _selected(kind, self.blocks[i]).items()
            }
            if not names:
                known = ", ".join(sorted({n.split(".")[0] for n in self.blocks[0]}))
                raise InputError(
                    f"modules={kind!r} selects nothing in {self.blocks_name}; use one of "
                    f"{', '.join(KINDS)}, or a name inside the block: {known}"
                )
            found |= names
        return found


def count(tensors: Mapping[str, Shape]) -> int:
    """Count the elements of all tensors."""
    return sum(map(prod, tensors.values()))


def adapter_count(chosen: Mapping[str, Shape], lora: Lora) -> int:
    """Count the elements of adapters on the linear layers among the chosen tensors."""
    linear = [(n, s) for n, s in chosen.items() if len(s) == 2 and not _NORM.search(n)]
    lengths = sum(s[1] if CONV1D.search(n) else s[0] for n, s in linear) if lora.dora else 0
    return lengths + sum(lora.rank * (a + b) for _, (a, b) in linear)


def structure_of(checkpoint: Checkpoint) -> Structure:
    """Find the parts of a checkpoint by the names in its headers.

    Raises
    ------
    InputError
        If no tensors are named as those of a list of blocks.
    """
    shapes = {n: stored.shape for n, stored in checkpoint.tensors.items() if not TABLES.search(n)}
    return arranged(shapes, depth=depth_of(checkpoint))


def arranged(tensors: Mapping[str, Shape], *, depth: int | None) -> Structure:
    """Arrange named shapes into blocks and the rest; ``depth`` decides between several lists.

    Raises
    ------
    InputError
        If no tensors are named as those of a list of blocks.
    """
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
        return max(lists[name]) + 1 == depth, sum(map(count, lists[name].values()))

    name = max(lists, key=likelihood)
    blocks = tuple(lists[name].get(i, {}) for i in range(max(lists[name]) + 1))
    others = {n: shape for n, shape in tensors.items() if not n.startswith(f"{name}.")}
    head = {n: shape for n, shape in others.items() if _HEAD.search(n)}
    wide = {n: shape for n, shape in others.items() if len(shape) == 2 and n not in head}
    named = [n for n in wide if _EMBEDDING.search(n)]
    first = max(named or wide, key=lambda n: wide[n][0], default=None)
    embedding: dict[str, Shape] = {} if first is None else {first: wide[first]}
    rest = {n: shape for n, shape in others.items() if n not in head and n not in embedding}
    return Structure(name, blocks, embedding, head, rest)


def _selected(kind: str, block: Mapping[str, Shape]) -> dict[str, Shape]:
    """Tensors of a block that a kind, or a dotted name inside it, selects.

    Training finds attention by what it does (`lens.models.architecture`); here its name must do.
    """
    if kind == "full":
        return dict(block)
    if kind in ("attention", "mlp"):
        holders = {name.split(".")[0] for name, shape in block.items() if len(shape) > 1}
        wanted = {h for h in holders if bool(_ATTENTION.search(h)) == (kind == "attention")}
        return {name: shape for name, shape in block.items() if name.split(".")[0] in wanted}
    if kind in ("norm", "bias"):
        pattern = _NORM if kind == "norm" else re.compile(r"bias$")
        return {name: shape for name, shape in block.items() if pattern.search(name)}
    return {n: s for n, s in block.items() if n == kind or n.startswith(f"{kind}.")}


# ---------------------------------------------------------------- the library's model


@dataclass(frozen=True, slots=True)
class MetaModel:
    """The model that transformers makes of a config, on the meta device: shapes without values.

    Attributes
    ----------
    model : PreTrainedModel
        All of its tensors are on the meta device.
    shapes : dict of str to tuple
        Shape of every parameter, each counted once.
    tied : frozenset of str
        Names under which a checkpoint may hold a parameter a second time.
    renamed : bool
        Whether the library loads this family from tensors of other names than its own.
    """

    model: Any
    shapes: dict[str, Shape]
    tied: frozenset[str]
    renamed: bool

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
        Working dtype as safetensors names it, such as ``"BF16"``.
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
    from transformers import AutoModelForCausalLM

    from lens.models.loading import auto_class

    given = {"dtype": getattr(torch, TORCH_DTYPES[dtype]), "trust_remote_code": trust_remote_code}
    try:
        config = _library_config(checkpoint, trust_remote_code)
        with torch.device("meta"):
            kind: Any = auto_class(config) if any_kind else AutoModelForCausalLM
            model: Any = kind.from_config(config, **given).eval()
    except Exception as error:  # a config can be wrong in as many ways as there are models
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"no model can be made from {checkpoint.path}: {first}") from None
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return MetaModel(model, shapes, frozenset(every - set(shapes)), _is_renamed(model))


def _library_config(checkpoint: Checkpoint, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    if checkpoint.path.is_dir():
        return AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=trust_remote_code)
    settings = dict(checkpoint.config)
    family = settings.pop("model_type", None)
    if family is None:
        raise InputError("it has no model_type")
    return AutoConfig.for_model(family, **settings)


def _is_renamed(model: Any) -> bool:
    """Whether loading merges or renames tensors (experts that are stored one by one)."""
    try:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    except ImportError:
        return False
    return bool(get_checkpoint_conversion_mapping(model.config.model_type))
