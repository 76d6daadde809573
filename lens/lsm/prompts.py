"""Check that prompts fit a space and each other before anything is computed from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lens.data.languages import canonical
from lens.errors import InputError
from lens.progress import say
from lens.space import Space


def held_out(
    validation: Mapping[str, Sequence[str]] | None, space: Space, trained: Mapping[str, list[str]]
) -> dict[str, list[str]]:
    """Return validation prompts in the languages that are trained, or none."""
    if validation is None:
        return {}
    rows = checked(validation, space)
    missing = [lang for lang in trained if lang not in rows]
    if missing:
        raise InputError(
            f"the validation prompts lack {', '.join(missing)}; give them in every language trained"
        )
    again = set(rows[space.pivot]) & set(trained[space.pivot])
    if again:
        say(f"{len(again)} validation prompts are training prompts too")
    return {lang: rows[lang] for lang in trained}


def checked(prompts: Mapping[str, Sequence[str]], space: Space) -> dict[str, list[str]]:
    """Prompts by canonical language, the pivot first, or one error that lists every problem."""
    rows = {canonical(lang): list(texts) for lang, texts in prompts.items()}
    problems = []
    if space.pivot not in rows:
        problems.append(f"the pivot {space.pivot} has no prompts")
    if len(rows) < 2:
        problems.append("prompts in at least one language besides the pivot are needed")
    absent = [lang for lang in rows if lang not in space.languages]
    if absent:
        problems.append(
            f"the space has no {', '.join(absent)} (it has {', '.join(space.languages)})"
        )
    if len({len(texts) for texts in rows.values()}) > 1 or not all(rows.values()):
        counts = ", ".join(f"{lang}: {len(texts)}" for lang, texts in rows.items())
        problems.append(f"prompts are not parallel, row counts are {counts}")
    if problems:
        raise InputError("cannot train on these prompts: " + "; ".join(problems))
    pivot = space.pivot
    return {pivot: rows[pivot]} | {lang: rows[lang] for lang in rows if lang != pivot}
