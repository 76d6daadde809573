"""Hashes that identify a model, a tokenizer, a chat template and rows of text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from lens.models.architecture import text_config
from lens.models.offload import release, store_of
from lens.models.tokenization import ChatOptions, uses_template

# Elements read from each parameter, evenly spread: any training moves some of them.
_SAMPLE = 256
# Entries of a config that change without the model changing.
_VOLATILE = frozenset(
    "_attn_implementation _attn_implementation_internal _name_or_path architectures bos_token_id "
    "dtype eos_token_id output_attentions output_hidden_states pad_token_id return_dict "
    "torch_dtype transformers_version use_cache".split()
)


def model_fingerprint(model: nn.Module) -> dict[str, Any]:
    """Type, sizes and hashes of the config and the weights of a model.

    The weights' hash covers up to 256 evenly spread elements of every parameter, widened to
    float32: it does not change when a checkpoint is loaded in a wider dtype, and it takes
    milliseconds. It does change when any block is trained.
    """
    config: Any = getattr(model, "config", None)
    content = config.to_dict() if hasattr(config, "to_dict") else {}
    stable = {key: value for key, value in content.items() if key not in _VOLATILE}
    text = text_config(model)
    digest = hashlib.sha256()
    absent = _absent_samples(model)
    release(model.parameters())  # or all mapped weights would be in memory beside the samples
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(absent[name] if parameter.is_meta else _sample(parameter))
        release([parameter])  # of a mapped checkpoint, far more than the sample was read
    return {
        "model_type": getattr(config, "model_type", type(model).__name__),
        "hidden_size": getattr(text, "hidden_size", None),
        "num_hidden_layers": getattr(text, "num_hidden_layers", None),
        "vocab_size": getattr(text, "vocab_size", None),
        "config_sha256": sha256_json(stable),
        "weights_sha256": digest.hexdigest(),
    }


def _sample(parameter: torch.Tensor) -> bytes:
    """Bytes of evenly spread elements, widened."""
    flat = parameter.detach().reshape(-1)
    step = max(flat.numel() // _SAMPLE, 1)
    return flat[::step][:_SAMPLE].to("cpu", torch.float32).contiguous().numpy().tobytes()


def _absent_samples(model: nn.Module) -> dict[str, bytes]:
    """Sample the parameters that a model loaded block by block does not hold."""
    store = store_of(model)
    if store is None:
        return {}
    if store.samples is None:
        store.samples = store.read(_sample)
    return store.samples


def tokenizer_sha256(tokenizer: Any) -> str:
    """Hash what decides the token ids of a text: vocabulary, merges, normalisation."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return sha256_json(dict(sorted(tokenizer.get_vocab().items())))
    content = json.loads(backend.to_str())
    # Settings of the last call, not of the tokenizer.
    content.pop("padding", None)
    content.pop("truncation", None)
    return sha256_json(content)


def template_sha256(tokenizer: Any, chat: ChatOptions | None) -> str | None:
    """Hash the chat template together with its options; None when no template is used."""
    if not uses_template(tokenizer, chat):
        return None
    options = (chat or ChatOptions()).to_dict()
    # "Use it if there is one" and "use it" are the same once it is used.
    options["template"] = True
    return sha256_json({"template": tokenizer.chat_template, "options": options})


def sha256_rows(rows: Sequence[str]) -> str:
    """Hash rows of text, each with its length, so that moving a boundary changes the hash."""
    return _sha256_of_parts(row.encode("utf-8", "surrogatepass") for row in rows)


def sha256_json(content: Any) -> str:
    """Hash plain data in canonical JSON."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def rows_sha256(rows: Sequence[Sequence[int]]) -> str:
    """Hash encoded rows, boundaries included."""
    return _sha256_of_parts(" ".join(map(str, row)).encode() for row in rows)


def _sha256_of_parts(parts: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
