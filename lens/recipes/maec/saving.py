"""Write a tuned model: checkpoint, log, card, and what is needed to make it again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens import __version__
from lens.errors import InputError
from lens.io import new_folder
from lens.lsm.saving import versions, write_checkpoint

if TYPE_CHECKING:
    from lens.recipes.maec.training import Tuned

_CARD = """# Tuned model

`{source}`, tuned by lens {version} in {steps} steps on {rows} rows{replay}. {keys}

`reproduce.json` holds every setting and the hashes of what was read, `metrics.jsonl` the loss of
every step.
"""


def save(result: Tuned, out: str | Path, *, force: bool = False) -> None:
    """Write a tuned model to the new folder ``out``: complete, or not at all.

    Raises
    ------
    InputError
        If ``out`` exists and ``force`` is false, or it cannot be written.
    """
    facts: dict[str, Any] = {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": versions(),
        "seed": result.seed,
        "settings": result.settings.model_dump(mode="json"),
        "seconds": round(result.seconds, 3),
        **result.about,
    }
    try:
        with new_folder(out, force=force) as folder:
            facts["checkpoint"] = write_checkpoint(
                result.model, result.tokenizer, folder, band=result.changed, widen=True
            )
            lines = "".join(json.dumps(entry) + "\n" for entry in result.log)
            (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
            (folder / "reproduce.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
            (folder / "README.md").write_text(_card(result), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}; make room") from None


def _card(result: Tuned) -> str:
    keys, replay = result.about["keys"], result.about["replay"]
    told = "All weights were trained."
    if result.settings.train is not None:
        told = f"Of the blocks {result.settings.layers}, {result.settings.train} was trained."
    if keys is not None:
        how = {"mask": "were trained", "revert": "kept what training made of them"}[keys["how"]]
        told = f"{keys['n']} key elements alone {how} (MAEC, arXiv 2410.07825)."
    share = f", {result.settings.replay:.0%} of each batch general text" if replay else ""
    return _CARD.format(
        source=Path(result.model.name_or_path or "an unnamed model").name,
        version=__version__,
        steps=result.settings.steps,
        rows=result.about["corpus"]["rows"],
        replay=share,
        keys=told,
    )
