"""Settings of checking text."""

from __future__ import annotations

from lens.data.config import CorpusSettings
from lens.models.tokenization import ChatOptions
from lens.utils.settings import group, option


class CheckSettings(CorpusSettings):
    """What is read, and what it is checked for."""

    pivot: str = option(
        "eng_Latn", "Language the others are compared with; the first one where it is absent."
    )
    max_tokens: int | None = option(None, "Length that rows will be cut to.", ge=1)
    judge: int | None = option(
        None, "Rows per language whose language is judged, evenly spread; all by default.", ge=1
    )
    chat: ChatOptions | None = group(None, "Options of the chat template.")
