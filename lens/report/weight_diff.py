"""A difference of weights as one HTML page of heat maps, and as a table in a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO

from lens.merging.diff import TensorDiff, WeightDiff
from lens.report.console import console_for, rich_table
from lens.report.html import fragment, page
from lens.report.tables import Cell, Column, Table, TableRow

Cells = Callable[[TensorDiff], tuple[float, str] | None]


def render_weight_diff(diff: WeightDiff) -> str:
    """Render a difference of weights as one HTML page that works offline.

    Parameters
    ----------
    diff : WeightDiff
        From `lens.merging.weight_diff`.

    Returns
    -------
    str
        For each model a heat map of |Δ| / |θ_o|, for each pair one of the cosine of their deltas,
        and the tensors that changed most.
    """
    names = _names(diff)
    largest = max((c.relative or 0 for t in diff.tensors for c in t.changes), default=0) or 1.0
    maps: list[tuple[str, Cells]] = [
        (f"Relative change: {name}", partial(_relative, model=i, largest=largest))
        for i, name in enumerate(names)
    ]
    for number, pair in enumerate(diff.tensors[0].pairs if diff.tensors else ()):
        first, second = (names[k] for k in pair.models)
        maps.append((f"Cosine: {first} and {second}", partial(_cosine, pair=number)))
    blocks = sorted({t.block for t in diff.tensors if t.block is not None})
    body = fragment(
        "weight_diff.html.j2",
        count="one model" if len(names) == 1 else f"{len(names)} models",
        base=Path(diff.base).name,
        largest=f"{largest:.2g}",
        heads=[*blocks, "–"],
        maps=[(title, _heat_rows(diff, [*blocks, None], cell)) for title, cell in maps],
        most=_most(diff, names),
    )
    return page([("Delta diff", body)], wide=True)


def _relative(tensor: TensorDiff, *, model: int, largest: float) -> tuple[float, str] | None:
    change = tensor.changes[model]
    if change.relative is None:
        return None
    effective = change.effective_rank
    rank = "" if effective is None else f", effective rank {effective:.1f}"
    return _depth(change.relative, largest), (
        f"|Δ|/|θ| {change.relative:.2e}, {change.share:.1%} of elements{rank}, "
        f"{change.outliers} outliers"
    )


def _cosine(tensor: TensorDiff, *, pair: int) -> tuple[float, str] | None:
    found = tensor.pairs[pair]
    if found.cosine is None:
        return None
    same = "–" if found.same_sign is None else f"{found.same_sign:.1%}"
    return found.cosine, f"cosine {found.cosine:.3f}, same sign {same}"


def _names(diff: WeightDiff) -> list[str]:
    """Folder names of the models; all that was given where two are the same."""
    short = [Path(model).name for model in diff.models]
    return short if len(set(short)) == len(short) else list(diff.models)


def _depth(value: float, largest: float) -> float:
    """From 0 to 1 on a scale of three decades below the largest."""
    return 0.0 if value <= 0 else max(0.0, 1.0 + math.log10(value / largest) / 3.0)


def _heat_rows(
    diff: WeightDiff, blocks: Sequence[int | None], cell: Cells
) -> list[tuple[str, list[tuple[str, float, str] | None]]]:
    """Rows of a heat map, one for each kind of tensor; None where a block has no such tensor."""
    by_place = {(t.kind, t.block): t for t in diff.tensors}
    rows = []
    for kind in dict.fromkeys(t.kind for t in diff.tensors):
        line: list[tuple[str, float, str] | None] = []
        for block in blocks:
            tensor = by_place.get((kind, block))
            found = None if tensor is None else cell(tensor)
            if tensor is None or found is None:
                line.append(None)
            else:
                line.append(("", found[0], f"{tensor.name}: {found[1]}"))
        rows.append((kind, line))
    return rows


def _most(diff: WeightDiff, names: Sequence[str], count: int = 15) -> Table:
    """Table of the tensors that changed most."""
    changed = sorted(
        ((c.relative, t, i) for t in diff.tensors for i, c in enumerate(t.changes) if c.relative),
        key=lambda row: -(row[0] or 0),
    )[:count]
    rows = []
    for relative, tensor, i in changed:
        change = tensor.changes[i]
        rank = "–" if change.effective_rank is None else f"{change.effective_rank:.1f}"
        neurons = ", ".join(str(k) for k, _ in change.top_rows[:3]) or "–"
        texts = (names[i], f"{relative:.2e}", rank, str(change.outliers), neurons)
        rows.append(TableRow(tensor.name, [Cell(text) for text in texts]))
    heads = ("|Δ|/|θ|", "effective rank", "outliers", "top rows")
    return Table([Column("model", css="text"), *map(Column, heads)], rows, "")


def print_weight_diff(diff: WeightDiff, *, file: IO[str] | None = None) -> None:
    """Print relative changes by block and model, and the cosine of each pair over all tensors."""
    names = _names(diff)
    table = rich_table("Block", *names, title="|Δ| / |θ|")
    for block, values in diff.relative_by_block().items():
        place = "outside" if block is None else str(block)
        table.add_row(place, *(f"{value:.2e}" for value in values))
    console = console_for(file)
    console.print(table)
    for number, pair in enumerate(diff.tensors[0].pairs if diff.tensors else ()):
        first, second = (names[k] for k in pair.models)
        cosine = _over_all(diff, number)
        console.print(
            f"cosine of {first} and {second}: {'–' if cosine is None else f'{cosine:.3f}'}"
        )


def _over_all(diff: WeightDiff, number: int) -> float | None:
    """Cosine of two models' changes of the whole model."""
    i, j = diff.tensors[0].pairs[number].models
    norms = [math.fsum(t.changes[k].norm ** 2 for t in diff.tensors) for k in (i, j)]
    dot = math.fsum(
        (t.pairs[number].cosine or 0.0) * t.changes[i].norm * t.changes[j].norm
        for t in diff.tensors
    )
    size = math.sqrt(norms[0]) * math.sqrt(norms[1])
    return dot / size if size > 0 else None
