"""Moments per site and language: computed from states, checked, joined and restricted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from lens.data.languages import canonical
from lens.errors import InputError, ShapeError
from lens.pooling import StreamingMoments
from lens.space.importers import Float64, as_states
from lens.space.provenance import Provenance, SpaceShard, combined_data

# Site to language to statistics.
MomentsTable: TypeAlias = dict[str, dict[str, StreamingMoments]]


def check_table(table: MomentsTable, pivot: str) -> None:
    """Refuse a table without sites, two languages or the pivot, or of uneven languages."""
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


def from_states(
    states: Mapping[str, Mapping[str, Any]], about: Provenance, *, row_offset: int = 0
) -> tuple[MomentsTable, Provenance]:
    """Compute the moments of pooled states by site and language, under canonical codes.

    The record gets their rows (with hashes of the states) and spellings where it names none.
    """
    table: MomentsTable = {}
    typed_as: dict[str, str] = {}
    digests: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for site, languages in states.items():
        table[site] = {}
        for typed, block in languages.items():
            values = as_states(block, f"states of {typed} at {site}")
            code = canonical(typed)
            if code in table[site]:
                raise InputError(f"duplicate language {code} (as {typed!r}) at {site}; keep one")
            _same_shape(values, table[site], counts.get(code), f"states of {typed} at {site}")
            table[site][code] = StreamingMoments(values.shape[1])
            table[site][code].update(values, row_offset)
            counts[code] = len(values)
            typed_as.setdefault(code, typed)
            digest = digests.setdefault(code, hashlib.sha256())
            digest.update(f"{site}{values.shape}".encode())
            digest.update(values.tobytes())
    shards = {c: [SpaceShard(row_offset, counts[c], d.hexdigest())] for c, d in digests.items()}
    return table, replace(about, typed=about.typed or typed_as, data=about.data or shards)


def _same_shape(
    values: Float64, others: Mapping[str, StreamingMoments], rows: int | None, name: str
) -> None:
    """Refuse another width than other languages have, or other rows than at other sites."""
    width = next(iter(others.values())).d if others else values.shape[1]
    if values.shape[1] != width:
        raise ShapeError(f"{name}: width {values.shape[1]}, expected {width} as before")
    if rows not in (None, len(values)):
        raise ShapeError(f"{name}: {len(values)} rows, expected {rows} as at the other sites")


def combine(
    ours: MomentsTable, theirs: MomentsTable, about: tuple[Provenance, Provenance], *, shared: str
) -> tuple[MomentsTable, Provenance]:
    """Join two tables with the same sites, and their records.

    A language in both must have different rows where ``shared`` is ``"merge"``, which are added,
    and the same rows where it is ``"same"``, which are taken once.
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


def restrict(
    table: MomentsTable, about: Provenance, languages: list[str]
) -> tuple[MomentsTable, Provenance]:
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
