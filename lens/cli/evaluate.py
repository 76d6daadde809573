"""``lens eval``: fidelity and accuracy on one's own prompts."""

from __future__ import annotations

import json
from pathlib import Path

from lens.cli.options import Verb, command, print_json
from lens.evaluation.config import EvaluationSettings
from lens.models.config import ModelSettings
from lens.utils.settings import Names, option


class EvaluateCommand(EvaluationSettings, ModelSettings, Verb):
    """Options of ``lens eval``."""

    prompts: Path = option(
        ..., "Prompts: folder of CODE.txt, .jsonl, .json or .tsv; at least two languages."
    )
    languages: Names | None = option(
        None, "Languages to ask; all in the prompts by default.", key="langs"
    )
    limit: int | None = option(None, "Prompts per language.", ge=1)
    pivot: str = option("eng_Latn", "Language that is left out of the average.")
    references: Path | None = option(
        None, "JSONL; line i has the accepted answers of prompt i, one key per language."
    )
    out: Path | None = option(None, "Also write rows and answers (JSON).")
    force: bool = option(False, "Replace --out.")


@command(EvaluateCommand, "eval")
def evaluate(settings: EvaluateCommand) -> None:
    """Answer prompts greedily and measure the answers, with n and 95 % intervals.

    Without --references only fidelity is measured: the share of answers in the language asked.
    """
    from lens.data.corpora import read_parallel
    from lens.data.language_id import identifier
    from lens.evaluation.accuracy import evaluate, read_references
    from lens.utils.files import refuse_existing, write_text

    if settings.out is not None:
        refuse_existing(settings.out, force=settings.force)
    rows = read_parallel(
        settings.prompts, languages=settings.languages, limit=settings.limit, min_rows=1
    ).rows
    identifier(settings.identifier, list(rows))  # before minutes of generation
    references = read_references(settings.references) if settings.references else None
    model, tokenizer = settings.load()
    found = evaluate(
        model,
        tokenizer,
        prompts=rows,
        references=references,
        system=Path(settings.model).name,
        settings=settings,
    )
    content = found.to_dict()
    if settings.out is not None:
        write_text(settings.out, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    if settings.as_json:
        print_json(content)
        return
    from lens.report.console import print_rows

    print_rows(found.rows, title=f"{settings.model} ({found.about['identifier']})")
