"""What was tried on the sample world, on the validation split: ``python -m tests.bench.recipes``.

One row per setting: where the language step is read, which losses act where, how long. λ is the
same for all languages here; the demo chooses it per language. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lens.demo.languages import LANGUAGES, OTHERS, PIVOT
from lens.demo.models import load
from lens.demo.questions import text
from lens.demo.run import Judge, train_prompts
from lens.space.probe import probe
from lens.space.space import Space
from lens.training import PRESETS, Align, LensConfig, Retain, Separate
from lens.training.trainer import LensTrainer

PLAIN = "end of a plain prompt"
READINGS: dict[str, dict[str, Any]] = {
    PLAIN: {"rows": "prompts", "role": "text", "pooling": "last"},
    "end of a prompt in the template": {"rows": "prompts", "role": "user", "pooling": "last"},
    "assistant's turn, mean": {"rows": "texts", "role": "assistant", "pooling": "mean"},
    "running text, mean": {"rows": "texts", "role": "text", "pooling": "mean"},
    "running text, last token": {"rows": "texts", "role": "text", "pooling": "last"},
}
BASE = PRESETS["lens"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """One setting: a name, where the step is read, λ, trained blocks and the losses."""

    name: str
    strength: float
    reading: str = PLAIN
    layers: str = "-2:"
    config: LensConfig = field(default=BASE)
    texts: bool = False


def _with(**changes: Any) -> LensConfig:
    return BASE.model_copy(update=changes)


def recipes() -> Iterator[Recipe]:
    """Yield every setting of the study."""
    for reading in READINGS:
        for strength in (1.0, 1.5, 2.0, 2.5, 3.0):
            yield Recipe("`lens`", strength, reading)
    for strength in (1.0, 2.0, 3.0):
        yield Recipe(
            "`lens-paper`",
            strength,
            "end of a prompt in the template",
            config=PRESETS["lens-paper"],
        )
        yield Recipe("`lens-paper`", strength, config=PRESETS["lens-paper"])
    yield Recipe("target=shift", 1.5, config=_with(terms=(Separate(target="shift"), Retain())))
    yield Recipe("target=shift", 2.0, config=_with(terms=(Separate(target="shift"), Retain())))
    for rank in ("auto", 3):
        yield Recipe(f"rank={rank}", 2.0, config=_with(rank=rank))
    for layers in ("-1:", "-3:", "-4:"):
        yield Recipe("other blocks", 2.0, layers=layers)
    yield Recipe("50 steps", 2.0, config=_with(steps=50))
    yield Recipe("200 steps", 2.0, config=_with(steps=200))
    yield Recipe("no retain", 2.0, config=_with(terms=(Separate(),)))
    yield Recipe(
        "retain=token_mean", 2.0, config=_with(terms=(Separate(), Retain(form="token_mean")))
    )
    for agnostic, weight in (("mean", 1.0), ("complement", 0.1), ("complement", 0.5)):
        align = Align(agnostic=agnostic, weight=weight)  # type: ignore[arg-type]
        yield Recipe(
            f"+ align {agnostic} × {weight:g}",
            2.0,
            config=_with(terms=(Separate(), align, Retain())),
        )
    yield Recipe(
        "+ retain on text", 2.0, config=_with(terms=(Separate(), Retain(), Retain(rows="text"))),
        texts=True,
    )  # fmt: skip
    for block in (4, 5, 6):
        terms = (Separate(site=f"block.{block}"), Retain(site=f"block.{block}"))
        yield Recipe(
            f"losses at block {block}", 2.0, layers=f"{block - 1}:{block + 1}",
            config=_with(terms=terms),
        )  # fmt: skip


class Study:
    """Model, spaces and judge shared by all recipes."""

    def __init__(self, limit: int) -> None:
        self.model, self.tokenizer = load("chat")
        reference, _ = load("chat")
        self.judge = Judge("validation", reference=reference, tokenizer=self.tokenizer, limit=limit)
        self.rows = {
            "prompts": train_prompts(),
            "texts": {lang: text(lang, 300) for lang in LANGUAGES},
        }
        self.spaces: dict[str, Space] = {}

    def space(self, reading: str) -> Space:
        """Probe the model once per reading."""
        if reading not in self.spaces:
            how = dict(READINGS[reading])
            rows = self.rows[how.pop("rows")]
            prompts = self.rows["prompts"] if how["role"] == "assistant" else None
            self.spaces[reading] = probe(
                self.model, self.tokenizer, rows, pivot=PIVOT, prompts=prompts, **how
            )
        return self.spaces[reading]

    def run(self, recipe: Recipe) -> str:
        """Train, validate, put the weights back; return one line of the table."""
        trainer = LensTrainer(
            self.model,
            self.tokenizer,
            self.space(recipe.reading),
            self.rows["prompts"],
            layers=recipe.layers,
            sites=recipe.config.sites,
            texts={lang: self.rows["texts"][lang] for lang in OTHERS} if recipe.texts else None,
        )
        trainer.run(recipe.config, strength=recipe.strength)
        said = self.judge.ask(self.model)
        drift = self.judge.drift(self.model).value
        trainer.restore()
        shares = [
            sum(said.share(metric, lang) for lang in OTHERS) / len(OTHERS)
            for metric in ("fidelity", "accuracy_in_language", "accuracy_any")
        ]
        cells = [
            recipe.name,
            recipe.reading,
            f"`{recipe.layers}`",
            f"{recipe.strength:g}",
            *(f"{share:.3f}" for share in shares),
            f"{said.share('accuracy_in_language', PIVOT):.3f}",
            f"{drift:.4f}",
        ]
        return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the study as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=100, help="validation questions per language")
    study = Study(parser.parse_args().limit)
    heads = ("losses", "step read at", "blocks", "λ", "fidelity", "in language", "any language",
             "pivot", "KL")  # fmt: skip
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for recipe in recipes():
        print(study.run(recipe), flush=True)


if __name__ == "__main__":
    main()
