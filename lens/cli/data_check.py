"""``lens data check``: the data doctor."""

from __future__ import annotations

from pathlib import Path

import click

from lens.cli._options import Listed, chat_of, chat_options, part_options, print_json, talk_options


@click.command("check")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--langs", type=Listed(), help="Languages to check; all in the data by default.")
@click.option("--pivot", default="eng_Latn", show_default=True, help="Language to compare with.")
@click.option("--model", help="Folder or hub id: count tokens with its tokenizer.")
@click.option("--revision", help="Branch, tag or commit of a hub id (or ID@REVISION).")
@click.option("--trust-remote-code", is_flag=True, help="Run code of the checkpoint.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Length that rows will be cut to.")
@click.option("--limit", type=click.IntRange(min=1), help="Rows per language.")
@click.option("--judge", type=click.IntRange(min=1),
              help="Judge the language of so many rows of each; all by default.")  # fmt: skip
@click.option("--strict", is_flag=True, help="Fail on warnings too.")
@click.option("--notes", is_flag=True, help="List what is merely good to know.")
@part_options
@chat_options
@talk_options
@click.pass_context
def command(
    ctx: click.Context, path: Path, langs: tuple[str, ...] | None, pivot: str, model: str | None,
    revision: str | None, trust_remote_code: bool, max_tokens: int | None, limit: int | None,
    judge: int | None, strict: bool, notes: bool, split: str | None, column: str | None,
    incomplete: str, template: bool | None, system: str | None, thinking: bool | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Check the parallel text in PATH before anything is computed from it.

    Language and script of every row, empty and repeated rows, whether row i says the same in
    every language, and with --model tokens, truncation and the chat template. Exits with 2 when
    the text cannot be used, with --strict also on warnings.
    """
    from lens.data.quality.checks import check_text

    tokenizer, longest = None, None
    if model is not None:
        from lens.models.loading import load_tokenizer

        tokenizer, longest = load_tokenizer(
            model, revision=revision, trust_remote_code=trust_remote_code
        )
    report = check_text(
        path, languages=langs, pivot=pivot, tokenizer=tokenizer, longest=longest,
        max_tokens=max_tokens, limit=limit, judge=judge, split=split, column=column,
        incomplete=incomplete, chat=chat_of(template, system, thinking),
    )  # fmt: skip
    if as_json:
        print_json({**report.to_dict(), "passes": report.passes(strict=strict)})
    else:
        click.echo(report.summary(notes=notes))
    if not report.passes(strict=strict):
        ctx.exit(2)
