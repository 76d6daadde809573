"""The figure of docs/real-text.md, from what `tests.bench.real_text` measured."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from lens.report.figures import SCREEN, site_ticks, styled_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tests.bench.real_text import Study

COLOURS = ("#0b5394", "#b45f06", "#38761d", "#741b47")
_SIZE = (3.75, 2.5)


def draw(made: Study, out: Path) -> None:
    """Four panels, two by two, on white."""
    panels = [_accuracy(made), _shares(made), _topics(made), _rows(made)]
    pictures = []
    for figure in panels:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        drawn = Image.open(buffer).convert("RGBA")  # transparent: the paper is white
        pictures.append(Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn))
    width, height = pictures[0].size
    whole = Image.new("RGB", (2 * width + 30, 2 * height + 30), "white")
    for i, picture in enumerate(pictures):
        whole.paste(picture, ((i % 2) * (width + 30), (i // 2) * (height + 30)))
    out.parent.mkdir(parents=True, exist_ok=True)
    whole.quantize(64).save(out, optimize=True)


def _accuracy(made: Study) -> Figure:
    from tests.bench.real_text import CORPORA

    with styled_axes(*_SIZE, SCREEN) as (figure, ax):
        for colour, (part, label) in zip(COLOURS, CORPORA, strict=True):
            value, low, high, _ = zip(*made.accuracy[part], strict=True)
            ax.fill_between(range(len(value)), low, high, color=colour, alpha=0.15, lw=0)
            ax.plot(value, color=colour, marker="o", markersize=2.8, label=label)
        ax.set_ylim(0.9, 1.004)
        site_ticks(ax, [site.name for site in made.sites])
        ax.set_title("Held-out states whose language is named", color=SCREEN.ink)
        ax.legend(frameon=False, fontsize=7, loc="lower right")
    return figure


def _shares(made: Study) -> Figure:
    from tests.bench.real_text import CORPORA

    with styled_axes(*_SIZE, SCREEN) as (figure, ax):
        for colour, (part, _) in zip(COLOURS, CORPORA, strict=True):
            found = made.moved[part]
            xs = range(len(found))
            ax.fill_between(xs, [t.low for t in found], [t.high for t in found], color=colour,
                            alpha=0.15, lw=0)  # fmt: skip
            ax.plot([t.share for t in found], color=colour, marker="o", markersize=2.8)
            ax.plot([t.null for t in found], color=colour, ls=":", lw=0.9)
        ax.set_ylim(0, 1.03)
        site_ticks(ax, [site.name for site in made.sites])
        ax.set_title("Language variance inside the tico19 subspace", color=SCREEN.ink)
    return figure


def _topics(made: Study) -> Figure:
    with styled_axes(*_SIZE, SCREEN) as (figure, ax):
        xs = range(len(made.topics))
        low, middle, high = zip(*(t.null for t in made.topics), strict=True)
        ax.fill_between(xs, low, high, color=SCREEN.muted, alpha=0.25, lw=0, label="shuffled")
        ax.plot(middle, color=SCREEN.muted, ls=":", lw=0.9)
        ax.plot([t.share for t in made.topics], color=SCREEN.after, marker="o", markersize=2.8,
                label="topic variance inside")  # fmt: skip
        ax.set_ylim(0, max(0.3, 1.15 * max(*high, *(t.share for t in made.topics))))
        site_ticks(ax, [site.name for site in made.sites])
        ax.set_title("Topic variance inside the language subspace", color=SCREEN.ink)
        ax.legend(frameon=False, fontsize=7)
    return figure


def _rows(made: Study) -> Figure:
    chosen = made.seen.at()
    curve = chosen.curve
    with styled_axes(*_SIZE, SCREEN) as (figure, ax):
        if curve is not None:
            ax.fill_between(
                curve.sizes, curve.low, curve.high, color=SCREEN.after, alpha=0.15, lw=0
            )
            ax.plot(curve.sizes, curve.median, color=SCREEN.after, marker="o", markersize=2.8,
                    label="refits to resampled rows")  # fmt: skip
            ax.axhline(curve.bound, color=SCREEN.rule, lw=0.8)
        n, middle, low, high = zip(*made.other, strict=True)
        ax.fill_between(n, low, high, color=SCREEN.upper, alpha=0.15, lw=0)
        ax.plot(n, middle, color=SCREEN.upper, marker="D", markersize=2.8,
                label="against other documents")  # fmt: skip
        ax.set_xscale("log", base=2)
        ticks = [10, 20, 40, 80, 160, 300, 600, 1200]
        ax.minorticks_off()
        ax.set_xticks(ticks, [str(t) for t in ticks])
        ax.set_ylim(0, 30)
        ax.set_xlabel("rows of each language")
        ax.set_title(f"Largest angle, degrees, at {chosen.site}", color=SCREEN.ink)
        ax.legend(frameon=False, fontsize=7)
    return figure
