"""Write a finished run: checkpoint, log, model card and what is needed to make it again."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lens
from lens.io import new_folder
from lens.lsm import adapters
from lens.models.loading import quiet_bars

if TYPE_CHECKING:
    from lens.lsm.training import TrainResult

_CARD = """# Lens-trained model

Blocks {layers} of `{source}` were trained with Lens (arXiv 2410.04407) by lens {version}, on
{prompts} parallel prompts in {languages} (pivot {pivot}). No answers were used.

`reproduce.json` holds every setting, `metrics.jsonl` the losses of every step.
"""


def versions() -> dict[str, str]:
    """Versions of everything that can change a result."""
    found = {"lens": lens.__version__, "python": platform.python_version()}
    for package in ("numpy", "torch", "transformers", "tokenizers", "safetensors"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def reproduction(result: TrainResult) -> dict[str, Any]:
    """Collect settings, hashes, versions and command of a run, ready for JSON."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": versions(),
        "seed": result.seed,
        "layers": list(result.layers),
        "strength": result.strength,
        "losses": result.config.model_dump(),
        "seconds": round(result.seconds, 3),
        **result.about,
    }


def save(result: TrainResult, out: str | Path, *, force: bool = False) -> None:
    """Write ``result`` to the new folder ``out``: complete, or not at all.

    Raises
    ------
    InputError
        If ``out`` exists and ``force`` is false.
    """
    facts = reproduction(result)
    with new_folder(out, force=force) as folder:
        with quiet_bars():
            if result.adapter is None:
                result.model.save_pretrained(folder)
            else:
                adapters.write(result.adapter, folder)
        result.tokenizer.save_pretrained(folder)
        lines = "".join(json.dumps(entry) + "\n" for entry in result.log)
        (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
        (folder / "reproduce.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        (folder / "README.md").write_text(_card(result), encoding="utf-8")


def _card(result: TrainResult) -> str:
    return _CARD.format(
        layers=", ".join(map(str, result.layers)),
        source=Path(result.model.name_or_path or "an unnamed model").name,
        version=lens.__version__,
        prompts=result.about.get("prompts", "?"),
        languages=", ".join(result.strength),
        pivot=result.about.get("pivot", "?"),
    )
