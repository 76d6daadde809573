"""What of configuration, tokenizer and template differs between models that are to be merged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lens.io import read_object
from lens.maec.checkpoint import Checkpoint
from lens.maec.config import MergeConfig
from lens.maec.sources import Source

_SAME = ("model_type", "vocab_size", "hidden_size", "num_attention_heads")
# What a model computes otherwise with weights of the same shapes.
_NOTED = (
    "architectures", "rope_theta", "rope_scaling", "rope_parameters", "sliding_window",
    "layer_types", "hidden_act", "hidden_activation", "rms_norm_eps", "layer_norm_eps",
)  # fmt: skip
_TOKENIZERS = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json")


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
        if source.checkpoint is not None:
            _compare(template, first, source, source.checkpoint, problems, notes, config)
    wanted = config.chat_template
    if wanted not in (None, "auto") and "{" not in str(wanted):
        problems.append(
            f"chat_template {wanted!r} is no Jinja text; give the text itself, or auto for what "
            "most of the models have"
        )
    source_of = config.tokenizer_source or (config.tokenizer and config.tokenizer.source)
    if source_of not in (None, "base", "union", template.reference):
        problems.append(
            f"tokenizer_source {source_of!r}: the tokenizer of {template.reference} is copied byte "
            "for byte; leave it out, or make that model the base_model"
        )


def _compare(
    template: Source,
    first: Checkpoint,
    source: Source,
    other: Checkpoint,
    problems: list[str],
    notes: list[str],
    config: MergeConfig,
) -> None:
    """Compare one model with the one whose configuration is taken."""
    if other.config.get("quantization_config"):
        problems.append(
            f"{source.reference} is quantized: its numbers mean nothing without their scales; "
            "merge the weights that it was made from"
        )
    for key in (*_SAME, *_NOTED):
        mine, theirs = first.config.get(key), other.config.get(key)
        if mine is None or theirs is None or mine == theirs:
            continue
        text = f"{key} is {_short(theirs)} in {source.reference}, {_short(mine)} in "
        if key in _SAME:
            problems.append(text + template.reference)
        else:
            notes.append(f"{text}{template.reference}, which is taken")
    if None not in (first.tied, other.tied) and first.tied != other.tied:
        problems.append(
            f"{source.reference} has {'' if other.tied else 'no '}tied embeddings, "
            f"{template.reference} has {'' if first.tied else 'none'}; they cannot be merged"
        )
    whose = f"{source.reference} has another"
    if _tokens_differ(first.folder, other.folder):
        text = f"{whose} tokenizer than {template.reference}"
        if "base" in (config.tokenizer_source, config.tokenizer and config.tokenizer.source):
            notes.append(f"{text}, which is taken")
        else:
            problems.append(f"{text}; set tokenizer_source: base if ids mean the same tokens")
    there = template_of(other.folder) if config.chat_template is None else None
    own = template_of(first.folder)
    if there is not None and own is None:
        notes.append(
            f"{source.reference} has a chat template, {template.reference} none; chat_template: "
            "auto takes it over"
        )
    elif there not in (None, own):
        notes.append(f"{whose} chat template than {template.reference}, which is taken")


def template_of(folder: Path) -> Any:
    """Chat template of a model: the file of its own, else what is in tokenizer_config.json."""
    alone = folder / "chat_template.jinja"
    if alone.is_file():
        return alone.read_text(encoding="utf-8", errors="replace").strip()
    found = (read_object(folder / "tokenizer_config.json") or {}).get("chat_template")
    return found.strip() if isinstance(found, str) else found


def new_template(config: MergeConfig, sources: Sequence[Source], own: Path) -> str | None:
    """Chat template that the result gets in place of its own; None where it keeps that."""
    if config.chat_template != "auto":
        return config.chat_template
    folders = [source.checkpoint.folder for source in sources if source.checkpoint is not None]
    found = [text for folder in folders if isinstance(text := template_of(folder), str) and text]
    most = max(found, key=found.count, default=None)
    return None if most == template_of(own) else most


def _tokens_differ(a: Path, b: Path) -> bool:
    """Whether two models number their tokens otherwise."""
    both = a / "tokenizer.json", b / "tokenizer.json"
    if a != b and all(path.is_file() for path in both):
        return not _same_bytes(*both) and _vocabulary(both[0]) != _vocabulary(both[1])
    pairs = [(a / name, b / name) for name in _TOKENIZERS]
    return any(x.is_file() and y.is_file() and not _same_bytes(x, y) for x, y in pairs)


def _same_bytes(a: Path, b: Path) -> bool:
    return a.samefile(b) or a.read_bytes() == b.read_bytes()


def _vocabulary(tokenizer: Path) -> Any:
    """Parts of a tokenizer.json that map text to numbers."""
    content = read_object(tokenizer) or {}
    return [content.get(key) for key in ("model", "added_tokens", "normalizer", "pre_tokenizer")]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
