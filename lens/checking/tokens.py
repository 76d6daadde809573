"""Checks of text under a tokenizer: parity of token counts, truncation, special tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lens.checking.findings import Finding
from lens.checking.rows import clearly_more, sample
from lens.models.chat import ChatOptions, encode_prompts, uses_template

PARITY = 4.0
"""Tokens per token of the pivot from which a warning is given."""
_UNKNOWN = 0.01


@dataclass(frozen=True, slots=True)
class Counted:
    """Tokens of one language: per row, unknown ones, and rows that are cut."""

    lengths: list[int]
    unknown: int
    cut: int


def count_tokens(tokenizer: Any, rows: Sequence[str], *, max_tokens: int | None = None) -> Counted:
    """Count the tokens of rows, with the special ones that the tokenizer adds."""
    encoded = tokenizer(list(rows), add_special_tokens=True)["input_ids"] if rows else []
    unknown = getattr(tokenizer, "unk_token_id", None)
    lengths = [len(ids) for ids in encoded]
    return Counted(
        lengths,
        0 if unknown is None else sum(list(ids).count(unknown) for ids in encoded),
        0 if max_tokens is None else sum(length > max_tokens for length in lengths),
    )


def check_tokens(
    counts: Mapping[str, Counted], pivot: str, *, max_tokens: int | None, given: bool
) -> list[Finding]:
    """Judge numbers of tokens.

    Parameters
    ----------
    counts : mapping
        Canonical code to counts.
    pivot : str
        Language to compare with.
    max_tokens : int or None
        Longest row that is read.
    given : bool
        Whether the user gave it; otherwise it is what the model takes.
    """
    found = []
    for code, counted in counts.items():
        ratio = parity(counted, counts[pivot])
        if ratio is not None and ratio > PARITY:
            found.append(Finding(
                "warning", "tokens", code,
                f"{ratio:.1f} tokens for each of {pivot}: the tokenizer hardly knows this language",
                "means run over many more tokens than in the pivot: prefer --pooling last or "
                "weighted, and compare with a model whose tokenizer knows it",
            ))  # fmt: skip
        total = sum(counted.lengths)
        if clearly_more(counted.unknown, total, _UNKNOWN):
            found.append(Finding(
                "warning", "tokens", code,
                f"{counted.unknown / total:.1%} of its tokens are unknown to the tokenizer",
                "the model cannot read them; choose a model made for this language",
            ))  # fmt: skip
        if counted.cut:
            limit = "max_tokens" if given else "what the model takes"
            found.append(Finding(
                "warning", "cut", code,
                f"{counted.cut} of {len(counted.lengths)} rows "
                f"({counted.cut / len(counted.lengths):.1%}) are longer than {limit}, {max_tokens} "
                f"tokens (the longest: {max(counted.lengths)})",
                "raise --max-tokens, or shorten these rows in every language"
                if given else "shorten these rows in every language, or cut them by --max-tokens",
            ))  # fmt: skip
    return found


def parity(counted: Counted, pivot: Counted) -> float | None:
    """Tokens per token of the pivot, over all rows."""
    below = sum(pivot.lengths)
    return sum(counted.lengths) / below if below and counted.lengths else None


def check_special(tokenizer: Any, code: str, rows: Sequence[str]) -> list[Finding]:
    """Find rows that hold the text of a special token, which the tokenizer would obey."""
    special = [str(token) for token in getattr(tokenizer, "all_special_tokens", []) if token]
    where = [i for i, row in enumerate(rows) if any(token in row for token in special)]
    if not where:
        return []
    return [Finding(
        "warning", "special tokens", code,
        f"{len(where)} row(s) hold the text of a special token ({', '.join(special[:6])})",
        "remove it from the text: the tokenizer would read it as a command", *sample(rows, where),
    )]  # fmt: skip


def check_template(tokenizer: Any, chat: ChatOptions | None = None) -> list[Finding]:
    """Find a chat template that writes the beginning-of-sequence token the tokenizer adds too."""
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is None or not uses_template(tokenizer, chat):
        return []
    begins = list(tokenizer("a", add_special_tokens=True)["input_ids"])[:1] == [bos]
    ours = encode_prompts(tokenizer, ["a"], chat=chat)[0]
    if ours[:2] == [bos, bos]:
        return [Finding(
            "warning", "template", "",
            "the chat template writes the beginning-of-sequence token twice",
            "repair the template: keep its first {{ bos_token }} only",
        )]  # fmt: skip
    if begins and ours[:1] == [bos]:
        return [Finding(
            "note", "template", "",
            "the chat template writes the beginning-of-sequence token, and the tokenizer adds one",
            "lens adds none to a rendered prompt; elsewhere pass add_special_tokens=False, or "
            "there are two",
        )]  # fmt: skip
    return []
