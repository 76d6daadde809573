"""A matplotlib Figure as SVG to be set inside a page: no ids shared, no addresses, page colours."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import fields
from html import escape
from typing import TYPE_CHECKING, Any

from lens.report.figures import Palette

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that stand for the page's own; each is replaced by the CSS variable of its role.
PAGE = Palette(**{f.name: f"#0a0b{i:02x}" for i, f in enumerate(fields(Palette), 1)})


def inline_svg(figure: Figure, name: str, *, label: str) -> str:
    """Return the figure as an ``<svg>`` element.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Drawn with the palette :data:`PAGE`.
    name : str
        Prefix of every id inside, unique on the page.
    label : str
        What a screen reader says.

    Returns
    -------
    str
        Markup that needs nothing from outside; text stays text.
    """
    from matplotlib import rc_context

    buffer = io.StringIO()
    empty = {key: None for key in ("Creator", "Date", "Format", "Type")}
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=empty)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    for item in fields(PAGE):
        svg = svg.replace(getattr(PAGE, item.name), f"var(--{item.name})")
    # the browser's fonts, so that every script has glyphs; sizes stay as they were drawn
    svg = re.sub(r"(font: (?:\w+ )*[\d.]+px) [^;\"]+", r"\1 var(--sans)", svg)
    svg = re.sub(r"font-family: [^;\"]+", "font-family: var(--sans)", svg)
    # height follows from the viewBox; the width is the natural one unless the column is narrower
    width = float(re.search(r'width="([\d.]+)pt"', svg).group(1))  # type: ignore[union-attr]
    svg = re.sub(r'\s(?:width|height)="[\d.]+pt"', "", svg, count=2)
    head = f'<svg role="img" aria-label="{label}" style="width:{width * 4 / 3:.0f}px"'
    return svg.replace("<svg", head, 1).strip()


def inline_panels(panels: Iterable[Figure], name: str) -> list[Any]:
    """Return figures as markup, each with its title for screen readers."""
    from markupsafe import Markup

    drawn = []
    for i, panel in enumerate(panels):
        label = escape(panel.axes[0].get_title(loc="left"), quote=True)
        drawn.append(Markup(inline_svg(panel, f"{name}{i}", label=label)))
    return drawn
