"""States of a small real model on real text: the corpora of `tests.bench.real_text`, read once.

Uses the development data and model (LENS_SHARED, or beside the checkout).
"""

from __future__ import annotations

import json
import lzma
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import lens
from lens.data.languages import canonical
from lens.space.space import Space
from lens.space.state_store import StateStore as KeptStates
from lens.utils.files import write_text
from tests.conftest import shared_folder
from tests.helpers.studies import load_study

study = load_study("probe_variants/probe_variants")

# Languages that polyglot-14m was trained on, as far as each corpus has them.
READ = ("en", "ar", "es", "fr", "hi", "id", "pt", "ru", "sw", "tl", "zh")
MORE = ("de", "ja", "ko", "vi")
UNREAD = ("bn", "fa", "ha", "lg", "ln", "mr", "ms", "my", "om", "rw", "ta", "ti", "ur", "zu")
CUT = 128  # tokens of a row in a language the model has not read; up to 12 times as many as English
_FILES = {
    "tico19": "tico19/tico19.jsonl.xz",
    "sib200": "sib200/sib200.open.jsonl.xz",
    "bible-10": "bible-10/bible_parallel.open.jsonl.xz",
    "pydocs-6": "pydocs-6/pydocs_parallel.open.jsonl.xz",
}


@dataclass(frozen=True)
class Part:
    """Rows of a corpus: languages, number of rows, which lines, and where rows are cut."""

    name: str
    corpus: str
    languages: tuple[str, ...]
    rows: int
    fit: bool = True
    max_tokens: int = 512  # one Hindi row is longer


PARTS = (
    Part("tico-fit", "tico19", READ, 300),
    Part("tico-check", "tico19", READ, 200, fit=False),
    Part("sib", "sib200", READ + MORE, 400),
    Part("bible", "bible-10", ("en", "es", "fr", "ru", "tl", "zh", "de", "ja", "ko", "vi"), 200),
    Part("pydocs", "pydocs-6", ("en", "es", "fr", "pt", "zh", "ja"), 200),
    Part("unread-fit", "tico19", ("en", *UNREAD), 80, max_tokens=CUT),
    Part("unread-check", "tico19", ("en", *UNREAD), 60, fit=False, max_tokens=CUT),
)


def lines(corpus: str) -> list[dict[str, Any]]:
    """All rows of a corpus."""
    with lzma.open(shared_folder() / "data" / _FILES[corpus], "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def check_documents(rows: list[dict[str, Any]]) -> set[str]:
    """Every third document of TICO-19 by size, held back from the fit."""
    sizes = Counter(str(row["doc"]) for row in rows)
    by_size = sorted(sizes, key=lambda doc: (-sizes[doc], doc))
    return set(by_size[1::3])


def chosen(part: Part) -> list[dict[str, Any]]:
    """Rows of a part, complete in its languages, evenly spread."""
    rows = lines(part.corpus)
    if part.corpus == "tico19":
        held = check_documents(rows)
        rows = [row for row in rows if (str(row["doc"]) in held) != part.fit]
    elif part.corpus in ("bible-10", "pydocs-6"):
        rows = [row for row in rows if row["split"] == "dev"]  # the model was trained on the rest
    rows = [row for row in rows if all(str(row.get(code) or "").strip() for code in part.languages)]
    if len(rows) <= part.rows:
        return rows
    return [rows[i * len(rows) // part.rows] for i in range(part.rows)]


@dataclass(frozen=True)
class Read:
    """A part with its states."""

    part: Part
    rows: list[dict[str, Any]]
    space: Space
    states: KeptStates

    def at(self, site: str, languages: tuple[str, ...] | None = None) -> np.ndarray:
        """States (L, n, d) float64 at a site, languages as typed in the corpus."""
        codes = self.part.languages if languages is None else languages
        return np.stack([self.states.values(site, canonical(code)) for code in codes]).astype(float)


def model_and_tokenizer() -> tuple[Any, Any]:
    """Load polyglot-14m."""
    return lens.models.load(shared_folder() / "models" / "polyglot-14m", dtype="float32")


def read(work: Path) -> dict[str, Read]:
    """Probe every part, or take what an earlier run left in the folder."""
    model = tokenizer = None
    found = {}
    for part in PARTS:
        rows = chosen(part)
        place = work / part.name
        if not (place / "space.safetensors").is_file():
            if model is None:
                model, tokenizer = model_and_tokenizer()
            texts = {code: [row[code] for row in rows] for code in part.languages}
            space = lens.probe(
                model,
                tokenizer,
                texts,
                pivot="en",
                keep_states=place / "states",
                states_dtype="float32",
                max_tokens=part.max_tokens,
                force=True,
                n_threads=1,
            )
            space.save(place / "space.safetensors")
        found[part.name] = Read(
            part, rows, Space.load(place / "space.safetensors"), KeptStates(place / "states")
        )
    return found


def readings(found: Read, ranks: dict[str, int], work: Path) -> tuple[Any, ...]:
    """Other ways of reading the rows of a part, measured or as an earlier run left them."""
    place = work / "readings.json"
    if not place.is_file():
        texts = {code: [row[code] for row in found.rows] for code in found.part.languages}
        # Evenly spread rows, so that both halves hold every kind of document.
        texts = {code: rows[::3] + rows[1::3] for code, rows in texts.items()}
        made = study.compare_readings(
            found.space, *model_and_tokenizer(), texts, ranks=ranks, limit=len(found.rows) // 3
        )
        write_text(place, json.dumps({"ranks": ranks, "readings": [r.to_dict() for r in made]}))
    stored = json.loads(place.read_text(encoding="utf-8"))
    if stored["ranks"] != ranks:
        raise RuntimeError(f"{place} was made with other ranks; remove it to measure again")
    return tuple(
        study.ReadingComparison(
            **r
            | {
                "sites": tuple(r["sites"]),
                "kept": tuple(r["kept"]),
                "angles": tuple(map(tuple, r["angles"])),
            }
        )
        for r in stored["readings"]
    )  # fmt: skip
