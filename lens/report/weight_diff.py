"""A delta atlas as one HTML page of heat maps, and as a table in a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import IO

from lens.merging.diff import TensorDiff, WeightDiff

_STYLE = """
table.heat { width: auto; }
table.heat td { padding: 0; width: 1.5rem; height: 1.5rem; border: 1px solid var(--paper); }
table.heat th { font-weight: 400; padding: .1rem .4rem; }
table.heat th[scope="row"] { max-width: none; white-space: nowrap; }
main { max-width: 76rem; }
"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Delta atlas</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>
<body><main><header><h1>What {count} changed</h1>
<p>Changes from {base}, tensor by tensor: rows are tensors, columns blocks, the last what is
in none. A cell tells its numbers when pointed at. Relative change is darkest at {largest} and white
from a thousandth of that down; a cosine is darkest at 1, and in the other colour below 0.</p>
</header>
{sections}
</main></body></html>
"""


def render_atlas(atlas: WeightDiff) -> str:
    """Render an atlas as one HTML page that works offline.

    Parameters
    ----------
    atlas : Atlas

    Returns
    -------
    str
        For each model a heat map of |Δ| / |θ_o|, for each pair one of the cosine of their changes,
        and the tensors that changed most.
    """
    names = _names(atlas)
    style = (files("lens.report") / "templates" / "report.css").read_text(encoding="utf-8")
    sections = []
    largest = max((c.relative or 0 for t in atlas.tensors for c in t.changes), default=0) or 1.0
    for i, name in enumerate(names):

        def share(tensor: TensorDiff, i: int = i) -> tuple[float, str] | None:
            change = tensor.changes[i]
            if change.relative is None:
                return None
            rank = (
                ""
                if change.effective_rank is None
                else (f", effective rank {change.effective_rank:.1f}")
            )
            return _depth(change.relative, largest), (
                f"|Δ|/|θ| {change.relative:.2e}, {change.share:.1%} of elements{rank}, "
                f"{change.outliers} outliers"
            )

        sections.append(_section(f"Relative change: {name}", atlas, share, "--after"))
    for number, pair in enumerate(atlas.tensors[0].pairs if atlas.tensors else ()):
        first, second = (names[k] for k in pair.models)

        def alike(tensor: TensorDiff, number: int = number) -> tuple[float, str] | None:
            found = tensor.pairs[number]
            if found.cosine is None:
                return None
            same = "–" if found.same_sign is None else f"{found.same_sign:.1%}"
            return found.cosine, f"cosine {found.cosine:.3f}, same sign {same}"

        sections.append(_section(f"Cosine: {first} and {second}", atlas, alike, "--after"))
    sections.append(_most(atlas, names))
    what = "one model" if len(names) == 1 else f"{len(names)} models"
    return _PAGE.format(
        style=style + _STYLE, count=what, base=escape(Path(atlas.base).name),
        sections="\n".join(sections), largest=f"{largest:.2g}",
    )  # fmt: skip


def _names(atlas: WeightDiff) -> list[str]:
    """Folder names of the models; all that was given where two are the same."""
    short = [Path(model).name for model in atlas.models]
    return short if len(set(short)) == len(short) else list(atlas.models)


def _depth(value: float, largest: float) -> float:
    """From 0 to 1 on a scale of three decades below the largest."""
    return 0.0 if value <= 0 else max(0.0, 1.0 + math.log10(value / largest) / 3.0)


def _section(
    title: str,
    atlas: WeightDiff,
    cell: Callable[[TensorDiff], tuple[float, str] | None],
    colour: str,
) -> str:
    """One heat map; a negative value takes the other colour."""
    blocks = sorted({t.block for t in atlas.tensors if t.block is not None})
    by_place = {(t.kind, t.block): t for t in atlas.tensors}
    heads = "".join(f"<th>{n}</th>" for n in (*blocks, "–"))
    lines = []
    for kind in dict.fromkeys(t.kind for t in atlas.tensors):
        cells = "".join(_cell(by_place.get((kind, n)), cell, colour) for n in (*blocks, None))
        lines.append(f'<tr><th scope="row">{escape(kind)}</th>{cells}</tr>')
    return (
        f'<section><h2>{escape(title)}</h2><div class="scroll"><table class="heat"><thead><tr>'
        f"<th></th>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def _cell(
    tensor: TensorDiff | None, cell: Callable[[TensorDiff], tuple[float, str] | None], colour: str
) -> str:
    found = None if tensor is None else cell(tensor)
    if tensor is None or found is None:
        return "<td></td>"
    value, text = found
    shown = colour if value >= 0 else "--upper"
    mix = f"color-mix(in srgb, var({shown}) {abs(value):.0%}, var(--wash))"
    return (
        f'<td style="background:{mix}" title="{escape(f"{tensor.name}: {text}", quote=True)}"></td>'
    )


def _most(atlas: WeightDiff, names: Sequence[str], count: int = 15) -> str:
    """Table of the tensors that changed most."""
    rows = sorted(
        ((c.relative, t, i) for t in atlas.tensors for i, c in enumerate(t.changes) if c.relative),
        key=lambda row: -(row[0] or 0),
    )[:count]
    lines = []
    for relative, tensor, i in rows:
        change = tensor.changes[i]
        rank = "–" if change.effective_rank is None else f"{change.effective_rank:.1f}"
        neurons = ", ".join(str(k) for k, _ in change.top_rows[:3]) or "–"
        model = escape(names[i])
        lines.append(
            f'<tr><th scope="row">{escape(tensor.name)}</th><td class="text">{model}</td>'
            f"<td>{relative:.2e}</td><td>{rank}</td><td>{change.outliers}</td><td>{neurons}</td></tr>"
        )
    heads = "".join(
        f"<th>{h}</th>" for h in ("", "model", "|Δ|/|θ|", "effective rank", "outliers", "top rows")
    )
    return (
        f'<section><h2>Most changed</h2><div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def print_atlas(atlas: WeightDiff, *, file: IO[str] | None = None) -> None:
    """Print relative changes by block and model, and the cosine of each pair over all tensors."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title="|Δ| / |θ|", title_justify="left", pad_edge=False)
    table.add_column("Block")
    names = _names(atlas)
    for name in names:
        table.add_column(name, justify="right")
    for block, values in atlas.relative_by_block().items():
        place = "outside" if block is None else str(block)
        table.add_row(place, *(f"{value:.2e}" for value in values))
    console = Console(file=file, highlight=False)
    console.print(table)
    for number, pair in enumerate(atlas.tensors[0].pairs if atlas.tensors else ()):
        first, second = (names[k] for k in pair.models)
        cosine = _over_all(atlas, number)
        console.print(
            f"cosine of {first} and {second}: {'–' if cosine is None else f'{cosine:.3f}'}"
        )


def _over_all(atlas: WeightDiff, number: int) -> float | None:
    """Cosine of two models' changes of the whole model."""
    i, j = atlas.tensors[0].pairs[number].models
    norms = [math.fsum(t.changes[k].norm ** 2 for t in atlas.tensors) for k in (i, j)]
    dot = math.fsum(
        (t.pairs[number].cosine or 0.0) * t.changes[i].norm * t.changes[j].norm
        for t in atlas.tensors
    )
    size = math.sqrt(norms[0]) * math.sqrt(norms[1])
    return dot / size if size > 0 else None
