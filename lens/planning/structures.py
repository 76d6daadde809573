"""Blocks, embedding and head of a model, from the names and shapes of its tensors.

Names come from safetensors headers, or from a model without values that transformers made from a
config (`lens.planning.models`); nothing here looks at a weight.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from lens.errors import InputError
from lens.planning.checkpoints import Checkpoint

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

    Training finds attention by what it does (`lens.models.insides`); here its name must do.
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
