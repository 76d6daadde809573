"""``lens eval``: fidelity and accuracy on one's own prompts."""

from __future__ import annotations

from pathlib import Path

import click

from lens.cli._options import (
    Listed,
    chat_of,
    chat_options,
    load_model,
    model_options,
    print_json,
    talk_options,
)


@click.command("eval")
@model_options
@click.option(
    "--prompts",
    required=True,
    type=click.Path(path_type=Path),
    help="Prompts: folder of CODE.txt, .jsonl, .json or .tsv; at least two languages.",
)
@click.option("--langs", type=Listed(), help="Languages to ask; all in the prompts by default.")
@click.option("--pivot", default="eng_Latn", show_default=True, help="Left out of the average.")
@click.option(
    "--references",
    type=click.Path(path_type=Path),
    help="JSONL; line i has the accepted answers of prompt i, one key per language.",
)
@click.option(
    "--identifier",
    default="default",
    show_default=True,
    help="Language identifier: py3langid, lingua or script.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Prompts per language.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of bootstrap intervals.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write rows and answers (JSON).")
@click.option("--force", is_flag=True, help="Replace --out.")
@chat_options
@talk_options
def command(
    model: str, revision: str | None, device: str, dtype: str, trust_remote_code: bool,
    prompts: Path, langs: tuple[str, ...] | None, pivot: str, references: Path | None,
    identifier: str, limit: int | None, max_new_tokens: int, batch_size: int, seed: int,
    out: Path | None, force: bool, template: bool | None, system: str | None,
    thinking: bool | None, as_json: bool,
) -> None:  # fmt: skip
    """Answer prompts greedily and measure the answers, with n and 95 % intervals.

    Without --references only fidelity is measured: the share of answers in the language asked.
    """
    from lens.data.corpora import read_parallel
    from lens.data.language_id import identifier as check_identifier
    from lens.evaluation.accuracy import evaluate, read_references
    from lens.utils.files import refuse_existing, write_text

    if out is not None:
        refuse_existing(out, force=force)
    rows = read_parallel(prompts, languages=langs, limit=limit, min_rows=1).rows
    check_identifier(identifier, list(rows))  # before minutes of generation
    accepted = read_references(references) if references else None
    loaded, tokenizer = load_model(
        model, revision=revision, device=device, dtype=dtype, trust_remote_code=trust_remote_code
    )
    found = evaluate(
        loaded, tokenizer, prompts=rows, references=accepted, pivot=pivot, identifier=identifier,
        chat=chat_of(template, system, thinking), system=Path(model).name,
        max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    import json

    if out is not None:
        write_text(out, json.dumps(found.to_dict(), indent=1, ensure_ascii=False) + "\n")
    if as_json:
        print_json(found.to_dict())
        return
    from lens.report.console import print_rows

    print_rows(found.rows, title=f"{model} ({found.about['identifier']})")
