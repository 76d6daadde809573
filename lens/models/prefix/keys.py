"""What a kept set of cached states depends on, as one hash.

Anything that can change a bit of the states is in it, so a file found under the hash is right for
the model and rows at hand, and a change of any of them makes a new file instead of a wrong result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from operator import itemgetter
from typing import Any

import torch
from torch import nn

from lens.models.blocks import DecoderParts, device_of, text_config
from lens.models.fingerprint import model_fingerprint, sha256_json
from lens.models.quantized import answer, is_quantized
from lens.models.residence import release
from lens.models.sites import FINAL, block_index

SCHEMA = "lens.prefix/2"


def frozen_facts(
    model: nn.Module, parts: DecoderParts, *, first_block: int, sites: Sequence[str]
) -> dict[str, Any]:
    """Everything about the model that decides its cached states.

    Parameters
    ----------
    model : torch.nn.Module
        The model, as it is now; every byte of the weights that are read is hashed.
    parts : DecoderParts
        Its parts.
    first_block : int
        The first trained block.
    sites : sequence of str
        Sites whose states are kept.
    """
    highest = max((_reach(site, len(parts.blocks)) for site in sites), default=first_block)
    unused = tuple(f"{parts.blocks_name}.{i}." for i in range(highest + 1, len(parts.blocks)))
    return {
        "schema": SCHEMA,
        "weights": _weights_sha256(model, unused),
        "config": model_fingerprint(model)["config_sha256"],
        "attention": getattr(text_config(model), "_attn_implementation", None),
        "device": device_of(model).type,
        "first_block": first_block,
        "sites": list(sites),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def rows_key(
    frozen: dict[str, Any], rows: Sequence[Sequence[int]], *, keep: object, batch_size: int
) -> str:
    """Hash of the model's facts, the token ids and how they are run."""
    return sha256_json(
        {**frozen, "rows": [list(row) for row in rows], "keep": keep, "batch_size": batch_size}
    )


def _reach(site: str, count: int) -> int:
    """Highest block that decides the state at a site."""
    return count - 1 if site == FINAL else (block_index(site) or 0)


def _weights_sha256(model: nn.Module, unused: tuple[str, ...]) -> str:
    """Hash every byte of the weights that are read.

    Not ``state_dict()``: that is a packed layer's own code, and may repack it. What such a layer
    keeps elsewhere (scales, tables) is covered by its answer to a fixed vector.
    """
    digest = hashlib.sha256()
    held = [*model.named_parameters(), *model.named_buffers()]
    packed = [(n, m) for n, m in model.named_modules() if is_quantized(m) and n != ""]
    held += [(name, answer(module)) for name, module in packed if not name.startswith(unused)]
    for name, value in sorted(held, key=itemgetter(0)):
        if name.startswith(unused):
            continue
        digest.update(f"{name} {value.dtype}{tuple(value.shape)}".encode())
        content = value.detach().to("cpu").contiguous().reshape(-1)
        digest.update(content.view(torch.uint8).numpy().data)
        release([value])
    return digest.hexdigest()
