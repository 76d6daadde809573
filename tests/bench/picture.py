"""The README picture, from a finished demo: ``python -m tests.bench.picture lens-demo OUT.png``."""

from __future__ import annotations

import io
import sys

from PIL import Image

from lens.report.figures import plot_languages
from lens.report.io import read_run

_GAP = 30  # pixels between the panels


def main() -> None:
    """Draw the before/after panels side by side on white."""
    run, out = sys.argv[1:]
    panels = []
    for figure in plot_languages(read_run(run)):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=160, facecolor="white", bbox_inches="tight")
        panels.append(Image.open(buffer).convert("RGB"))
    width = sum(panel.width for panel in panels) + _GAP * (len(panels) - 1)
    picture = Image.new("RGB", (width, max(panel.height for panel in panels)), "white")
    left = 0
    for panel in panels:
        picture.paste(panel, (left, 0))
        left += panel.width + _GAP
    picture.quantize(64).save(out, optimize=True)


if __name__ == "__main__":
    main()
