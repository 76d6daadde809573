"""Make the moments of a space: from states, from two spaces, or by leaving languages out."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lens.data.languages import canonical
from lens.errors import InputError
from lens.space.about import About, combined_data
from lens.stats import StreamingMoments

# Site to language to statistics.
MomentsTable: TypeAlias = dict[str, dict[str, StreamingMoments]]


def check_table(table: MomentsTable, pivot: str) -> None:
    """Refuse a table that cannot be a space.

    Parameters
    ----------
    table : dict
        Site to language to statistics.
    pivot : str
        Canonical code of the central language.

    Raises
    ------
    InputError
        When there is no site, fewer than two languages, no pivot, or sites that differ in their
        languages.
    """
    if not table:
        raise InputError("a space needs at least one site")
    languages = list(next(iter(table.values())))
    if any(list(found) != languages for found in table.values()):
        raise InputError("every site of a space must have the same languages, in one order")
    listed = ", ".join(languages) or "none"
    if len(languages) < 2:
        raise InputError(
            f"a space needs at least two languages; found: {listed}. "
            "Language directions are differences between languages: add the pivot"
        )
    if pivot not in languages:
        raise InputError(f"the pivot {pivot} is not among the languages: {listed}")


def from_states(states: Mapping[str, Mapping[str, NDArray[Any]]]) -> MomentsTable:
    """Compute the moments of pooled states.

    Parameters
    ----------
    states : mapping
        Site to language (any spelling) to (n, d) states.

    Returns
    -------
    dict
        Site to canonical language to statistics.

    Raises
    ------
    InputError
        When a shape is wrong, a language comes twice, or a state is not finite.
    """
    table: MomentsTable = {}
    for site, languages in states.items():
        table[site] = {}
        for typed, block in languages.items():
            values = np.ascontiguousarray(block, dtype=np.float64)
            if values.ndim != 2 or not len(values):
                raise InputError(
                    f"states of {typed} at {site} have shape {values.shape}; expected (n, d)"
                )
            bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
            if len(bad):
                raise InputError(
                    f"the state at {site} for row {bad[0]} of {typed} is not finite "
                    "(NaN or infinity); leave the row out or compute it in a wider dtype"
                )
            code = canonical(typed)
            if code in table[site]:
                raise InputError(f"duplicate language {code} (as {typed!r}) at {site}; keep one")
            table[site][code] = StreamingMoments(values.shape[1])
            table[site][code].update(values, 0)
    return table


def combine(
    ours: MomentsTable, theirs: MomentsTable, about: tuple[About, About], *, shared: str
) -> tuple[MomentsTable, About]:
    """Join two tables read in the same way.

    Parameters
    ----------
    ours, theirs : dict
        Tables with the same sites.
    about : tuple of About
        Their records.
    shared : str
        What a language in both must be: ``"merge"`` different rows, to be added; ``"same"`` the
        same rows, to be taken once.

    Returns
    -------
    table : dict
        Languages of both.
    about : About
        Their joint record.

    Raises
    ------
    InputError
        When the rows of a shared language are not as demanded.
    """
    mine, other = about
    data = combined_data(mine, other, shared=shared)
    table: MomentsTable = {}
    for site, languages in ours.items():
        table[site] = dict(languages)
        for code, found in theirs[site].items():
            if code in languages and shared == "merge":
                table[site][code] = _merged(languages[code], found)
            else:
                table[site].setdefault(code, found)
    truncated = {**other.truncated, **mine.truncated}
    if shared == "merge":
        for code in mine.truncated.keys() & other.truncated.keys():
            truncated[code] = mine.truncated[code] + other.truncated[code]
    joint = replace(
        mine,
        data=data,
        typed={**other.typed, **mine.typed},
        prompts_sha256={**other.prompts_sha256, **mine.prompts_sha256},
        truncated=truncated,
        parallel=mine.parallel and other.parallel,
        ranks={},  # chosen on fewer rows or languages
    )
    return table, joint


def restrict(table: MomentsTable, about: About, languages: list[str]) -> tuple[MomentsTable, About]:
    """Keep some languages of a table and its record."""

    def keep(entries: dict[str, Any]) -> dict[str, Any]:
        return {code: entries[code] for code in languages if code in entries}

    record = replace(
        about,
        typed=keep(about.typed),
        data=keep(about.data),
        truncated=keep(about.truncated),
        prompts_sha256=keep(about.prompts_sha256),
        ranks={},
    )
    return {site: keep(found) for site, found in table.items()}, record


def _merged(ours: StreamingMoments, theirs: StreamingMoments) -> StreamingMoments:
    """Merge into a copy: a space is never changed."""
    copy = StreamingMoments.from_arrays(ours.to_arrays())
    copy.merge(theirs)
    return copy
