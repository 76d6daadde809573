"""Settings of generating answers and of measuring them."""

from __future__ import annotations

from lens.models.tokenization import ChatOptions
from lens.utils.settings import Settings, group, option


class AnswerSettings(Settings):
    """How prompts are answered."""

    chat: ChatOptions | None = group(None, "Options of the chat template.")
    max_new_tokens: int = option(64, "Longest answer in tokens.", ge=1)
    batch_size: int = option(16, "Prompts per forward pass.", ge=1)


class EvaluationSettings(AnswerSettings):
    """How answers are measured."""

    pivot: str | None = option(None, "Language that is left out of the average.")
    identifier: str = option("default", "Language identifier: py3langid, lingua or script.")
    neutral: tuple[str, ...] = option(
        (),
        "Words that belong to no language, such as names; the identifier does not see them.",
        hidden=True,
    )
    split: str = option("test", "Name of the split, written into every row.", hidden=True)
    seed: int = option(0, "Seed of the bootstrap intervals.")
    quiet: bool = option(False, "Show no progress bar.", hidden=True)
