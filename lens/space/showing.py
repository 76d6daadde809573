"""A space as a table of text or HTML, and the fits that go into its file."""

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lens.errors import InputError

if TYPE_CHECKING:
    from lens.space.space import Space
    from lens.subspace import SubspaceResult

_HEAD = ("site", "rank", "singular values", "why")


def fits(space: "Space") -> "dict[str, SubspaceResult | str]":
    """Fit every site at the automatic rank; where that fails, keep the reason instead.

    Parameters
    ----------
    space : Space
        Any space, even one with two equal languages, which can be kept though not fitted.

    Returns
    -------
    dict
        Site to result or message.
    """
    found: dict[str, SubspaceResult | str] = {}
    for site in space.sites:
        try:
            found[site] = space.fit(site, agnostic="complement")
        except InputError as error:
            found[site] = str(error)
    return found


def summary(space: "Space") -> str:
    """Return a table as text; see `Space.summary`."""
    lines = [f"Space of {len(space.languages)} languages, pivot {space.pivot}", _counts(space)]
    rows = [_HEAD, *_rows(space)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[3]]).rstrip())
    return "\n".join(lines)


def to_html(space: "Space") -> str:
    """Return a table as HTML for notebooks."""
    head = "".join(f"<th>{name}</th>" for name in _HEAD)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in _rows(space))
    title = f"<b>Language space</b>, pivot {html.escape(space.pivot)}"
    return (
        f"<p>{title}<br>{html.escape(_counts(space))}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _cells(row: Sequence[str]) -> str:
    return "".join(f"<td>{html.escape(cell)}</td>" for cell in row)


def _counts(space: "Space") -> str:
    counts: Mapping[str, int] = space.counts
    return "rows: " + ", ".join(f"{code} {n}" for code, n in counts.items())


def _rows(space: "Space") -> list[tuple[str, str, str, str]]:
    rows = []
    for site, result in fits(space).items():
        if isinstance(result, str):
            rows.append((site, "-", "-", result))
            continue
        spectrum = " ".join(f"{value:.3g}" for value in result.singular_values[:8])
        rows.append((site, str(result.rank), spectrum, result.rank_reason))
    return rows
