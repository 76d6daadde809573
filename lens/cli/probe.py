"""``lens probe``: read a language space from parallel text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import click
from pydantic import BeforeValidator, model_validator

from lens.cli.options import Verb, command, print_json
from lens.data.config import CorpusSettings
from lens.models.config import AnyModelSettings
from lens.models.tokenization import ChatOptions
from lens.space.config import ProbeSettings
from lens.utils.settings import option

if TYPE_CHECKING:
    from lens.data.corpora import Corpus
    from lens.space.space import Space

_CHECKED = 2000  # rows of each language that the check before a probe reads,
_JUDGED = 200  # and those whose language it judges


def _ids(value: object) -> object:
    """Split token ids at commas."""
    return value.split(",") if isinstance(value, str) else value


class ProbeOptions(ProbeSettings, CorpusSettings, AnyModelSettings, Verb):
    """Options of ``lens probe`` and its plan."""

    data: Path | None = option(
        None,
        "Parallel text: folder of CODE.txt, or .jsonl, .json, .tsv, .parquet, a saved dataset.",
    )
    prompts: Path | None = option(None, "User prompts per language, for --role assistant.")
    check: bool = option(
        True, "Check the text first (the cheap part of lens data check); warnings go to stderr."
    )
    states: Path | None = option(
        None,
        "States made elsewhere instead of --model and --data: folder of CODE.npy, .safetensors, "
        ".pt, or CODE/ of requests that vLLM dumped.",
    )
    ignore_tokens: Annotated[tuple[int, ...], BeforeValidator(_ids)] = option(
        (), "Token ids of dumped requests that are not pooled, such as 1,2.", metavar="IDS"
    )
    layout: Literal["tokens-first", "layers-first"] | None = option(
        None, "Axes of dumped hidden_states, where they cannot be told apart."
    )

    @model_validator(mode="after")
    def _one_source(self) -> ProbeOptions:
        if self.states is not None and (self.model is not None or self.data is not None):
            raise ValueError("--states are states already; leave out --model and --data")
        if self.states is None and (self.model is None or self.data is None):
            raise ValueError("give --model and --data, or --states with states made elsewhere")
        return self


class ProbeCommand(ProbeOptions):
    """Options of ``lens probe``."""

    out: Path = option(..., "File of the space, such as space.safetensors.")


@command(ProbeCommand)
def probe(settings: ProbeCommand) -> None:
    """Read the language space of a model from parallel text, or from states made elsewhere.

    Row i must say the same in every language. The file holds statistics only, no text. With
    --states no model is run: the folder holds its states.
    """
    from lens.utils.files import refuse_existing

    refuse_existing(settings.out, force=settings.force)
    if settings.states is None:
        space = _from_model(settings)  # saved before its work folder goes
    else:
        space = _from_states(settings)
        space.save(settings.out)
    if settings.as_json:
        print_json({"out": str(settings.out), **space.to_dict()})
    else:
        click.echo(f"{space.summary()}\n\n{settings.out}")


def _from_model(settings: ProbeCommand) -> Space:
    from lens.data.corpora import read_parallel
    from lens.space.probe import probe

    text = read_parallel(settings.data, **settings.how_to_read)
    if settings.check:
        _check(text, settings.pivot)
    asked = None
    if settings.prompts is not None:
        asked = read_parallel(settings.prompts, languages=settings.languages, min_rows=1).rows
    model, tokenizer = settings.load(layer_by_layer=settings.layer_by_layer or False)
    work = settings.out.with_name(settings.out.name + ".unfinished")
    chat = None if settings.role == "text" else settings.chat or ChatOptions()
    own = settings.model_copy(update={"work": work, "save_to": settings.out, "chat": chat})
    return probe(model, tokenizer, text.rows, prompts=asked, settings=own)


def _from_states(settings: ProbeCommand) -> Space:
    from lens import __version__
    from lens.data.languages import canonical
    from lens.space.importers import read_states
    from lens.space.provenance import Provenance
    from lens.space.space import Space
    from lens.utils.progress import say

    sites, layout = settings.sites, settings.layout
    named = [sites] if isinstance(sites, str | int) else list(sites)
    read = read_states(
        str(settings.states),
        sites=None if sites == "all" else tuple(map(str, named)),
        languages=settings.languages,
        pooling=settings.pooling,
        ignore_tokens=settings.ignore_tokens,
        parallel=settings.parallel,
        tokens_first=None if layout is None else layout == "tokens-first",
    )
    for warning in read.warnings:
        say(f"warning: {warning}")
    pivot = canonical(settings.pivot)
    about = Provenance(
        pivot=pivot,
        pooling=settings.pooling,
        role=settings.role,
        seed=settings.seed,
        package_version=__version__,
    )
    return Space.from_states(
        read.states, pivot=settings.pivot, about=about, row_offset=settings.row_offset
    )


def _check(text: Corpus, pivot: str) -> None:
    """Report on stderr what the data check finds, without slowing the probe down."""
    from lens.data.quality.checks import check_text
    from lens.utils.progress import say

    few = {text.typed[code]: rows[:_CHECKED] for code, rows in text.rows.items()}
    report = check_text(few, pivot=pivot, judge=_JUDGED)
    for found in report.of_level("warning"):
        say(str(found))
    if report.of_level("warning"):
        say("lens data check says more; --no-check leaves this out")
