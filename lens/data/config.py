"""Settings of reading parallel text."""

from __future__ import annotations

from typing import Any, Literal

from lens.utils.settings import Names, Settings, option

MissingRows = Literal["refuse", "drop"]


class CorpusSettings(Settings):
    """Which part of a data set is read, and what is done with rows that lack a language."""

    languages: Names | None = option(
        None, "Languages, with commas between; all in the data by default.", key="langs"
    )
    limit: int | None = option(None, "Rows per language.", ge=1)
    split: str | None = option(None, "Split of a data set, where it has several.")
    column: str | None = option(None, "Field of text, where a language has several.")
    missing_rows: MissingRows = option("refuse", "Rows that are empty in some language.")

    @property
    def how_to_read(self) -> dict[str, Any]:
        """Arguments of `lens.data.read_parallel`."""
        return {name: getattr(self, name) for name in CorpusSettings.model_fields}
