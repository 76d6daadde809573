"""What of configuration, tokenizer and template differs between models that are to be merged."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lens.maec.config import MergeConfig
from lens.maec.sources import Source


def compare_configs(
    template: Source,
    sources: Sequence[Source],
    problems: list[str],
    notes: list[str],
    config: MergeConfig,
) -> None:
    """Say what of architecture, vocabulary, ties and tokenizer differs between models."""
    first = template.checkpoint
    if first is None:
        return
    for source in sources:
        other = source.checkpoint
        if other is None:
            continue
        if other.config.get("quantization_config"):
            problems.append(
                f"{source.reference} is quantized: its numbers mean nothing without their scales; "
                "merge the weights that it was made from"
            )
        for key in ("model_type", "vocab_size", "hidden_size", "num_attention_heads"):
            mine, theirs = first.config.get(key), other.config.get(key)
            if mine is not None and theirs is not None and mine != theirs:
                problems.append(
                    f"{key} is {theirs!r} in {source.reference}, {mine!r} in {template.reference}"
                )
        if None not in (first.tied, other.tied) and first.tied != other.tied:
            problems.append(
                f"{source.reference} has {'' if other.tied else 'no '}tied embeddings, "
                f"{template.reference} has {'' if first.tied else 'none'}; they cannot be merged"
            )
        whose = f"{source.reference} has another"
        if _differs(first.folder, other.folder, "tokenizer.json", _vocabulary):
            text = f"{whose} tokenizer than {template.reference}"
            if "base" in (config.tokenizer_source, config.tokenizer and config.tokenizer.source):
                notes.append(f"{text}, which is taken")
            else:
                problems.append(f"{text}; set tokenizer_source: base if ids mean the same tokens")
        if _differs(first.folder, other.folder, "chat_template.jinja", bytes):
            notes.append(f"{whose} chat template than {template.reference}, which is taken")
    source_of = config.tokenizer_source or (config.tokenizer and config.tokenizer.source)
    if source_of not in (None, "base", "union", template.reference):
        problems.append(
            f"tokenizer_source {source_of!r}: the tokenizer of {template.reference} is copied byte "
            "for byte; leave it out, or make that model the base_model"
        )


def _differs(a: Path, b: Path, name: str, content: Callable[[bytes], Any]) -> bool:
    """Whether a file that both folders have differs in what matters of its content."""
    paths = a / name, b / name
    if a == b or not all(path.is_file() for path in paths):
        return False
    first, second = (path.read_bytes() for path in paths)
    return first != second and content(first) != content(second)


def _vocabulary(tokenizer: bytes) -> Any:
    """Parts of a tokenizer.json that map text to numbers."""
    try:
        content = json.loads(tokenizer)
    except ValueError:
        return None
    return [content.get(key) for key in ("model", "added_tokens", "normalizer", "pre_tokenizer")]
