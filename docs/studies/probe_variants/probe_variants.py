"""What other ways of reading states would have changed, measured on the same model and text.

    python docs/studies/probe_variants/probe_variants.py SPACE --model M --data TEXT

The probe published with Lens (arXiv:2410.04407) read position -1 with the side of the padding left
unset, cut rows after 64 tokens, and used text that was not parallel.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lens.arrays import Float64, whole
from lens.data.corpora import read_parallel
from lens.data.languages import canonical_all
from lens.errors import InputError
from lens.report.console import console_for, stacked_table
from lens.report.figures import SCREEN, Palette, site_ticks, styled_axes
from lens.report.tables import Cell, Column, Table, TableRow
from lens.space.space import Space
from lens.subspace import principal_angles, thin_svd
from lens.utils.progress import progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lens.models.tokenization import EncodedRow

CUT = 64  # tokens, the chat template counted
BATCH = 8  # rows padded together

Means = dict[str, Float64]
"""Site to the means of the languages, (L, d)."""


@dataclass(frozen=True, slots=True)
class ReadingComparison:
    """A way of reading states, beside another.

    Attributes
    ----------
    name : str
        Short.
    against : str
        What it is compared with.
    note : str
        How many rows it touches.
    rows : int
        Rows of each language.
    sites : tuple of str
        Sites.
    angles : tuple of tuple of float
        Principal angles between the two subspaces, degrees, ascending; one tuple a site.
    kept : tuple of float
        Variance between languages, as the other reading has it, inside the subspace of this one:
        of what the other's own subspace holds, so that 1 means nothing is lost.
    """

    name: str
    against: str
    note: str
    rows: int
    sites: tuple[str, ...]
    angles: tuple[tuple[float, ...], ...]
    kept: tuple[float, ...]

    @property
    def largest(self) -> tuple[float, ...]:
        """Largest angle of each site, degrees."""
        return tuple(angles[-1] for angles in self.angles)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values."""
        return asdict(self)


def compare_readings(
    space: Space,
    model: Any,
    tokenizer: Any,
    rows: Mapping[str, Sequence[str]],
    *,
    ranks: Mapping[str, int],
    limit: int = 200,
) -> tuple[ReadingComparison, ...]:
    """Read the same rows as the space was read, and as a careless probe reads them.

    Parameters
    ----------
    space : Space
        Says how its rows were read, and in which languages.
    model, tokenizer
        Those the space was read with.
    rows : mapping
        Parallel text of every language of the space, in any spelling.
    ranks : mapping
        Rank of each site; sites that are not in it are left out.
    limit : int
        Rows of each language, and as many others to see what other rows alone change; half of the
        rows where there are fewer.

    Returns
    -------
    tuple of Reading
        Other rows read alike (the yardstick); a cut after 64 tokens; position -1 of batches of 8
        rows padded on the right, against the last real token.

    Raises
    ------
    InputError
        If model, tokenizer or languages are not those of the space, there are fewer than 4 rows,
        or the model was loaded layer by layer.
    """
    space.check_model(model)
    space.check_tokenizer(tokenizer)
    texts = _texts(space, rows)
    n = min(whole(limit, "limit", 2), len(next(iter(texts.values()))) // 2)
    if n < 2:
        raise InputError(
            "readings: fewer than 4 rows of a language, expected at least 4, half of them to see "
            "what other rows alone change"
        )
    sites = tuple(site for site in space.sites if site in ranks)
    first = {code: found[:n] for code, found in texts.items()}
    other = {code: found[n : 2 * n] for code, found in texts.items()}
    about = space.about
    reader = _VariantReader(space, model, tokenizer, sites)
    usual = reader.means(first, about.pooling)
    last = usual if about.pooling == "last" else reader.means(first, "last")
    padded, pads = reader.at_the_end(first)
    total = n * len(texts)
    compared = _Comparison(sites, ranks, n)
    found = [
        compared.reading("other rows", "the rows looked at", f"{n} other rows", reader.means(
            other, about.pooling), usual),
    ]  # fmt: skip
    if about.pooling != "last":
        note = f"{about.pooling} against last"
        found.append(compared.reading("last token", "this space's pooling", note, last, usual))
    note = f"{pads} of {total} rows end in padding"
    found.append(
        compared.reading("position −1, padded right", "the last real token", note, padded, last)
    )
    if about.role == "user":  # a prompt is never cut: its end is what matters
        return tuple(found)
    cut, touched = reader.cut(first, about.pooling)
    note = f"{touched} of {total} rows are longer"
    found.append(compared.reading(f"cut after {CUT} tokens", "whole rows", note, cut, usual))
    return tuple(found)


def _texts(space: Space, rows: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    typed = canonical_all(rows)
    absent = [code for code in space.languages if code not in typed]
    if absent:
        raise InputError(
            f"readings: no text in {', '.join(absent)}; expected every language of the space "
            f"({', '.join(space.languages)})"
        )
    texts = {code: list(rows[typed[code]]) for code in space.languages}
    if len({len(found) for found in texts.values()}) > 1:
        listed = ", ".join(f"{code} {len(found)}" for code, found in texts.items())
        raise InputError(f"readings: unequal numbers of rows ({listed}); expected parallel rows")
    return texts


class _VariantReader:
    """Reads rows as a space was read, or not quite so."""

    def __init__(self, space: Space, model: Any, tokenizer: Any, sites: tuple[str, ...]) -> None:
        from lens.models.offload import store_of
        from lens.models.tokenization import ChatOptions

        if store_of(model) is not None:
            raise InputError(
                "readings: the model was loaded layer by layer, expected a whole one; leave "
                "--model out, or load a smaller one"
            )
        self._about, self._model, self._tokenizer = space.about, model, tokenizer
        self._sites = sites
        names = {field.name for field in fields(ChatOptions)}
        known = {k: v for k, v in self._about.chat.items() if k in names}
        self._chat = ChatOptions(**known) if known else None
        if self._about.role == "assistant":
            raise InputError(
                "readings: this space was read in the assistant's turn behind prompts, which it "
                "does not hold; expected one of role text or user"
            )

    def means(self, texts: Mapping[str, list[str]], pooling: str) -> Means:
        """Means of rows read as the space's were, but for the pooling."""
        return self._captured(texts, pooling, self._about.max_tokens)[0]

    def cut(self, texts: Mapping[str, list[str]], pooling: str) -> tuple[Means, int]:
        """Means of rows cut after 64 tokens, and how many were."""
        return self._captured(texts, pooling, min(CUT, self._about.max_tokens or CUT))

    def _captured(
        self, texts: Mapping[str, list[str]], pooling: str, max_tokens: int | None
    ) -> tuple[Means, int]:
        from lens.models.hidden_states import capture_sets

        found = capture_sets(
            self._model,
            self._tokenizer,
            texts,
            sites=list(self._sites),
            pooling=pooling,
            role=self._about.role,
            chat=self._chat,
            max_tokens=max_tokens,
            n_threads=1,
        )
        means = {
            site: np.stack([found[code].moments[site].result().mean for code in texts])
            for site in self._sites
        }
        return means, sum(result.n_truncated for result in found.values())

    def at_the_end(self, texts: Mapping[str, list[str]]) -> tuple[Means, int]:
        """Means at position -1 of batches padded on the right, and how many of them pad."""
        import torch

        from lens.models.architecture import device_of, evaluating, locate
        from lens.models.hidden_states import SiteReader
        from lens.models.tokenization import encode, pad, pad_id_of

        parts = locate(self._model)
        sums = {site: np.zeros((len(texts), parts.width)) for site in self._sites}
        pads = 0
        reader = SiteReader(parts, self._sites, pooling="last", n_threads=1)
        with evaluating(self._model), reader:
            for place, (code, rows) in enumerate(texts.items()):
                encoded = encode(
                    self._tokenizer, rows, role=self._about.role, chat=self._chat,  # type: ignore[arg-type]
                    max_tokens=self._about.max_tokens,
                )  # fmt: skip
                for some in progress(list(_batches(encoded)), f"Reading {code}"):
                    batch = pad(some, pad_id=pad_id_of(self._tokenizer), side="right",
                                device=device_of(self._model))  # fmt: skip
                    end = torch.zeros_like(batch.pool_mask)
                    end[:, -1] = True
                    pads += int((batch.attention_mask[:, -1] == 0).sum())
                    states = reader.read(self._model, replace(batch, pool_mask=end))
                    for site in self._sites:
                        sums[site][place] += states[site].sum(axis=0)
        n = len(next(iter(texts.values())))
        return {site: total / n for site, total in sums.items()}, pads


def _batches(rows: Sequence[EncodedRow]) -> Iterator[Sequence[EncodedRow]]:
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]


class _Comparison:
    """Turns two sets of means into angles and shares."""

    def __init__(self, sites: tuple[str, ...], ranks: Mapping[str, int], rows: int) -> None:
        self._sites, self._ranks, self._rows = sites, ranks, rows

    def reading(
        self, name: str, against: str, note: str, one: Means, other: Means
    ) -> ReadingComparison:
        angles, kept = [], []
        for site in self._sites:
            basis = directions(one[site], self._ranks[site])
            theirs = directions(other[site], self._ranks[site])
            angles.append(tuple(np.degrees(principal_angles(basis, theirs)).tolist()))
            kept.append(share_inside(other[site], basis) / share_inside(other[site], theirs))
        return ReadingComparison(
            name, against, note, self._rows, self._sites, tuple(angles), tuple(kept)
        )


def directions(means: Float64, rank: int) -> Float64:
    """First left singular vectors of the centred means, (d, rank)."""
    return thin_svd(means - means.mean(axis=0), rank=rank).right


def share_inside(means: Float64, basis: Float64) -> float:
    """Share of the variance between means that lies in the span of an orthonormal basis."""
    centred = means - means.mean(axis=0)
    return float(((centred @ basis) ** 2).sum() / (centred**2).sum())


def plot_readings(
    readings: Sequence[ReadingComparison], *, palette: Palette = SCREEN
) -> list[Figure]:
    """Largest angle between subspaces read in two ways, over the sites: one panel a reading."""
    panels = []
    yardstick = readings[0] if readings else None
    for reading in readings[1:]:
        with styled_axes(2.35, 1.7, palette) as (figure, ax):
            if yardstick is not None:
                ax.plot(yardstick.largest, color=palette.before, ls=":", lw=1.1)
            ax.plot(reading.largest, color=palette.after, marker="o", markersize=2.6)
            ax.set_ylim(-2, 92)
            ax.set_yticks([0, 45, 90])
            site_ticks(ax, list(reading.sites), most=5)
            ax.set_title(reading.name, color=palette.ink)
        panels.append(figure)
    return panels


def table(readings: Sequence[ReadingComparison]) -> Table:
    """Angles and variance kept of every reading, from the smallest to the largest of the sites."""
    columns = [Column("Against", css="why"), Column("Rows", css="why")]
    columns += [Column("Angle", below="by site"), Column("Variance kept", below="by site")]
    rows = []
    for r in readings:
        kept = _span([100 * share for share in r.kept], " %")
        texts = (r.against, r.note, _span(r.largest, "°"), kept)
        rows.append(TableRow(r.name, [Cell(text) for text in texts]))
    return Table(columns, rows, "Reading")


def _span(values: Sequence[float], unit: str) -> str:
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the variants of a probe and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("space", type=Path, help="file of lens probe")
    parser.add_argument("--model", required=True, help="model that the space was read with")
    parser.add_argument(
        "--data", type=Path, required=True, help="parallel text, as lens probe takes"
    )
    parser.add_argument("--limit", type=int, default=200, help="rows of each language")
    given = parser.parse_args(arguments)
    from lens.models.loading import load

    space = Space.load(given.space)
    rows = read_parallel(given.data, languages=space.languages, limit=2 * given.limit).rows
    model, tokenizer = load(given.model)
    ranks = {site: space.fit(site, agnostic="complement").rank for site in space.sites}
    found = compare_readings(space, model, tokenizer, rows, ranks=ranks, limit=given.limit)
    console_for().print(stacked_table(table(found), title=f"{min(r.rows for r in found)} rows"))


if __name__ == "__main__":
    main()
