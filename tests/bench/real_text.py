"""Do language subspaces hold on real text? The tables and the figure of docs/real-text.md.

``python -m tests.bench.real_text [--work DIR] [--picture OUT.png]``; needs the development data and
model (LENS_SHARED, or beside the checkout). States are kept in DIR, so a second run takes a minute.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from lens.analysis.inspect import inspect_space
from lens.analysis.results import Inspection
from lens.data.languages import canonical
from lens.report.console import inspection_summary
from lens.stats import mean_interval, wilson
from lens.subspace import principal_angles
from tests.bench.real_states import READ, UNREAD, Read, read, readings
from tests.helpers.studies import load_study

study = load_study("probe_variants/probe_variants")
directions, share_inside = study.directions, study.share_inside

DRAWS = 1000  # of nulls and bootstraps
CORPORA = (("tico-check", "tico19, other documents"), ("sib", "sib200"), ("bible", "bible-10"),
           ("pydocs", "pydocs-6"))  # fmt: skip


@dataclass(frozen=True)
class Site:
    """The fit at a site: means of the languages, basis, and how states vary within languages."""

    name: str
    means: np.ndarray
    basis: np.ndarray
    within: np.ndarray

    def random_bases(self, rng: np.random.Generator, n: int) -> Iterator[np.ndarray]:
        """Subspaces of the same rank, spanned by draws from the spread within languages."""
        for _ in range(n):
            drawn = self.within.T @ rng.normal(size=(len(self.within), self.basis.shape[1]))
            yield np.linalg.qr(drawn)[0]


def fit(found: dict[str, Read], seen: Inspection) -> list[Site]:
    """Fit every site on TICO-19 at the rank that was advised."""
    sites = []
    for site in seen.sites:
        x = found["tico-fit"].at(site.site)
        means = x.mean(axis=1)
        rest = (x - means[:, None]).reshape(-1, x.shape[2])
        spread = np.linalg.cholesky(rest.T @ rest / len(rest) + 1e-9 * np.eye(x.shape[2])).T
        sites.append(Site(site.site, means, directions(means, site.rank or 1), spread))
    return sites


def common(part: Read) -> tuple[str, ...]:
    """Languages of a part in which the subspace was fitted."""
    return tuple(code for code in READ if code in part.part.languages)


# --- 1: languages separate --------------------------------------------------------------------


def named(x: np.ndarray, truth: Sequence[int], means: np.ndarray) -> np.ndarray:
    """Whether the nearest mean names the language of states (L, n, d), as (n, L)."""
    apart = ((x[:, :, None] - means) ** 2).sum(axis=3)
    return (apart.argmin(axis=2) == np.asarray(truth)[:, None]).T.astype(float)


def separate(found: dict[str, Read], sites: list[Site]) -> dict[str, list[tuple[float, ...]]]:
    """Accuracy of each corpus at each site, with a bootstrap over rows."""
    out: dict[str, list[tuple[float, ...]]] = {}
    for part, _ in CORPORA:
        codes = common(found[part])
        truth = [READ.index(code) for code in codes]
        out[part] = []
        for site in sites:
            hits = named(found[part].at(site.name, codes), truth, site.means)
            out[part].append((hits.mean(), *mean_interval(hits, n_resamples=DRAWS), hits.size))
    return out


# --- 2: one corpus explains another -----------------------------------------------------------


@dataclass(frozen=True)
class Transfer:
    """Another corpus's language means and the subspace fitted on TICO-19."""

    share: float
    low: float
    high: float
    null: float  # 97.5 % of random subspaces
    angles: tuple[float, ...]  # degrees, between fits on the common languages
    angle_null: float  # 2.5 % of the largest angle to random subspaces


def transfer(part: Read, site: Site, rng: np.random.Generator) -> Transfer:
    """Share of variance inside the subspace, and angles between the two fits."""
    codes = common(part)
    x = part.at(site.name, codes)
    means = x.mean(axis=1)
    drawn = rng.integers(x.shape[1], size=(DRAWS // 5, x.shape[1]))
    shares = [share_inside(x[:, rows].mean(axis=1), site.basis) for rows in drawn]
    null = [share_inside(means, basis) for basis in site.random_bases(rng, DRAWS)]
    rank = max(1, min(site.basis.shape[1], len(codes) - 2))
    mine = directions(site.means[[READ.index(code) for code in codes]], rank)
    theirs = directions(means, rank)
    angles = np.degrees(principal_angles(mine, theirs))
    apart = [np.degrees(principal_angles(mine, basis[:, :rank]))[-1]
             for basis in site.random_bases(rng, DRAWS // 5)]  # fmt: skip
    low, high = np.quantile(shares, (0.025, 0.975))
    return Transfer(
        share_inside(means, site.basis), low, high, float(np.quantile(null, 0.975)),
        tuple(angles), float(np.quantile(apart, 0.025)),
    )  # fmt: skip


# --- 3: topics are not in it ------------------------------------------------------------------


@dataclass(frozen=True)
class Topics:
    """Topic directions of sib200 and the language subspace."""

    share: float
    null: tuple[float, float, float]  # 2.5 %, median, 97.5 % under shuffled topics
    p_more: float
    p_less: float
    kept: tuple[float, float, float]  # topic accuracy, whole states
    removed: tuple[float, float, float]  # without the language subspace
    random: float  # without a random subspace of equal rank, mean of 20
    only: tuple[float, float, float]  # inside the language subspace
    random_only: float  # inside a random one, mean of 20
    chance: float  # whole states under shuffled topics, mean of 20
    difference: tuple[float, float, float]  # removed less kept


def topic_share(z: np.ndarray, labels: np.ndarray, basis: np.ndarray, n: int) -> float:
    """Share of the variance between topic means (rows averaged over languages) in a subspace."""
    one_hot = np.eye(n)[labels]
    return share_inside(one_hot.T @ z / one_hot.sum(axis=0)[:, None], basis)


def topic_hits(z: np.ndarray, labels: np.ndarray, n: int) -> np.ndarray:
    """Whether the nearest topic mean of other rows names a state's topic, (rows, L), 5 folds."""
    hits = np.zeros(z.shape[:2])
    for fold in range(5):
        held = np.arange(z.shape[1]) % 5 == fold
        flat = z[:, ~held].mean(axis=0)
        means = np.stack([flat[labels[~held] == k].mean(axis=0) for k in range(n)])
        apart = ((z[:, held, None] - means) ** 2).sum(axis=3)
        hits[:, held] = apart.argmin(axis=2) == labels[held]
    return hits.T


def topics(part: Read, site: Site, rng: np.random.Generator) -> Topics:
    """Whether topics lie in the language subspace, and whether they survive its removal."""
    names = sorted({row["category"] for row in part.rows})
    labels = np.array([names.index(row["category"]) for row in part.rows])
    x = part.at(site.name, common(part))
    z = x - x.mean(axis=1, keepdims=True)
    flat, n, basis = z.mean(axis=0), len(names), site.basis
    share = topic_share(flat, labels, basis, n)
    null = np.array([topic_share(flat, rng.permutation(labels), basis, n) for _ in range(DRAWS)])
    inside = z @ basis @ basis.T
    kept, removed, only = (topic_hits(s, labels, n) for s in (z, z - inside, inside))
    bases = list(site.random_bases(rng, 20))
    others = [topic_hits(z - z @ b @ b.T, labels, n).mean() for b in bases]
    alone = [topic_hits(z @ b, labels, n).mean() for b in bases]
    luck = [topic_hits(z, rng.permutation(labels), n).mean() for _ in bases]

    def interval(hits: np.ndarray) -> tuple[float, float, float]:
        return (float(hits.mean()), *mean_interval(hits, n_resamples=DRAWS))

    low, middle, high = np.quantile(null, (0.025, 0.5, 0.975))
    return Topics(
        share, (low, middle, high), (1 + (null >= share).sum()) / (1 + DRAWS),
        (1 + (null <= share).sum()) / (1 + DRAWS), interval(kept), interval(removed),
        float(np.mean(others)), interval(only), float(np.mean(alone)), float(np.mean(luck)),
        interval(removed - kept),
    )  # fmt: skip


# --- 4: languages of one script ---------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """Two languages of one script: held-out states given the right one of the two."""

    first: str
    second: str
    script: str
    right: int
    n: int


def pairs(found: dict[str, Read], site: str) -> list[Pair]:
    """Every pair of one script; means come from some documents, states from others."""
    parts = {code: "tico" for code in READ} | {code: "unread" for code in UNREAD}
    fitted, held = {}, {}
    for code, kind in parts.items():
        fitted[code] = found[f"{kind}-fit"].at(site, (code,))[0].mean(axis=0)
        held[code] = found[f"{kind}-check"].at(site, (code,))[0]
    script = {code: canonical(code).partition("_")[2] for code in parts}
    out = []
    for a, b in combinations(parts, 2):
        if script[a] != script[b]:
            continue
        means = np.stack([fitted[a], fitted[b]])
        right = sum(int(named(held[code][None], [k], means).sum()) for k, code in enumerate((a, b)))
        out.append(Pair(a, b, script[a], right, len(held[a]) + len(held[b])))
    return sorted(out, key=lambda p: p.right / p.n)


# --- 5: how many rows -------------------------------------------------------------------------


def against_other_documents(
    found: dict[str, Read], site: Site, rng: np.random.Generator
) -> Iterator[tuple[int, float, float, float]]:
    """Largest angle between fits to n rows and the fit to other documents: n, median, 95 %."""
    x = found["tico-fit"].at(site.name)
    rank = site.basis.shape[1]
    other = directions(found["tico-check"].at(site.name).mean(axis=1), rank)
    for n in (10, 20, 40, 80, 160, 300):
        largest = []
        for _ in range(200 if n < 300 else 1):
            rows = rng.permutation(x.shape[1])[:n]
            mine = directions(x[:, rows].mean(axis=1), rank)
            largest.append(np.degrees(principal_angles(mine, other))[-1])
        low, middle, high = np.quantile(largest, (0.025, 0.5, 0.975))
        yield n, middle, low, high


# --- printing ---------------------------------------------------------------------------------


def span(value: float, low: float, high: float) -> str:
    """Value with its interval."""
    return f"{value:.3f} ({low:.3f}–{high:.3f})"


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print("\n| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")


@dataclass(frozen=True)
class Study:
    """Everything that was measured."""

    seen: Inspection
    sites: list[Site]
    accuracy: dict[str, list[tuple[float, ...]]]
    moved: dict[str, list[Transfer]]
    topics: list[Topics]
    pairs: list[Pair]
    other: list[tuple[int, float, float, float]]
    readings: tuple[Any, ...]


def study(found: dict[str, Read], work: Path) -> Study:
    """Measure all of it."""
    seen = inspect_space(found["tico-fit"].space, found["tico-fit"].states, limit=300)
    rng = np.random.default_rng(0)
    sites = fit(found, seen)
    moved = {part: [transfer(found[part], site, rng) for site in sites] for part, _ in CORPORA}
    focus = next(site for site in sites if site.name == seen.at().site)
    return Study(
        seen, sites, separate(found, sites), moved,
        [topics(found["sib"], site, rng) for site in sites], pairs(found, focus.name),
        list(against_other_documents(found, focus, rng)),
        readings(found["tico-fit"], {s.name: s.basis.shape[1] for s in sites}, work),
    )  # fmt: skip


def show(made: Study, found: dict[str, Read]) -> None:
    """Print the tables of docs/real-text.md."""
    show_parts(made, found)
    show_sites(made)
    show_transfer(made, found)
    show_topics(made)
    show_pairs(made)
    table(
        ["rows", "largest angle to the fit on other documents"],
        [[n, f"{middle:.1f}° ({low:.1f}–{high:.1f})"] for n, middle, low, high in made.other],
    )
    table(
        ["reading", "against", "rows", "largest angle by site", "variance kept by site"],
        [[r.name, r.against, r.note, " ".join(f"{angle:.0f}" for angle in r.largest) + "°",
          " ".join(f"{kept:.2f}" for kept in r.kept)] for r in made.readings],
    )  # fmt: skip
    print("\n" + inspection_summary(made.seen))


def show_parts(made: Study, found: dict[str, Read]) -> None:
    """What was read, and numbers that stand in the text."""
    for part, read_part in found.items():
        print(f"{part}: {len(read_part.rows)} rows, {len(read_part.part.languages)} languages "
              f"({' '.join(read_part.part.languages)})")  # fmt: skip
    documents = [
        len({str(row["doc"]) for row in found[part].rows}) for part in ("tico-fit", "tico-check")
    ]
    print("in detail:", made.seen.at().site, "; documents:", documents)
    own = [share_inside(site.means, site.basis) for site in made.sites]
    print("share of the fit's own means inside:", " ".join(f"{value:.3f}" for value in own))
    labels = Counter(row["category"] for row in found["sib"].rows)
    print("topics:", ", ".join(f"{name} {n}" for name, n in labels.most_common()))
    nulls = [max(a.null_high for a in s.alignment) for s in made.seen.sites]
    print("MEXA, 97.5 % of random pairings, at most:", f"{max(nulls):.4f}")
    seen = [s for s in made.seen.sites if s.disjoint and s.matched]
    for kind in ("disjoint", "matched"):
        print(f"{kind}, {made.seen.disjoint_rows} rows, median angle by site:",
              " ".join(f"{getattr(s, kind).median:.1f}" for s in seen))  # fmt: skip


def show_sites(made: Study) -> None:
    """Rank, certainty and accuracy, site by site."""
    table(
        ["site", "rank", "shuffled p", "bootstrap angle", "rows for 15°", "MEXA", *(
            label for _, label in CORPORA)],
        [[s.site, f"{s.rank} of {len(READ) - 1}", f"{s.spectrum.p_value:.3f}",
          f"{s.angles.median:.1f}° ({s.angles.low:.1f}–{s.angles.high:.1f})", s.curve.enough,
          f"{s.mexa:.3f}", *(span(*made.accuracy[part][i][:3]) for part, _ in CORPORA)]
         for i, s in enumerate(made.seen.sites) if s.spectrum and s.angles and s.curve],
    )  # fmt: skip


def show_transfer(made: Study, found: dict[str, Read]) -> None:
    """What the subspace explains of other corpora."""
    for part, label in CORPORA:
        states = int(made.accuracy[part][0][3])
        print(f"\n{label}: {len(common(found[part]))} languages, {states} states")
        table(
            ["site", "share in the subspace", "random subspaces reach", "angles, common languages",
             "random: largest at least"],
            [[site.name, span(t.share, t.low, t.high), f"{t.null:.3f}",
              " ".join(f"{angle:.0f}" for angle in t.angles) + "°", f"{t.angle_null:.0f}°"]
             for site, t in zip(made.sites, made.moved[part], strict=True)],
        )  # fmt: skip


def show_topics(made: Study) -> None:
    """Topics in the language subspace, and without it."""
    sites = [site.name for site in made.sites]
    table(
        ["site", "topic variance inside", "shuffled topics: median (95 %)", "p more", "p less"],
        [[site, f"{t.share:.3f}", f"{t.null[1]:.3f} ({t.null[0]:.3f}–{t.null[2]:.3f})",
          f"{t.p_more:.3f}", f"{t.p_less:.3f}"]
         for site, t in zip(sites, made.topics, strict=True)],
    )  # fmt: skip
    table(
        ["site", "topic accuracy", "languages removed", "change", "random removed",
         "inside languages only", "inside random only", "shuffled topics"],
        [[site, span(*t.kept), span(*t.removed),
          f"{t.difference[0]:+.3f} ({t.difference[1]:+.3f} to {t.difference[2]:+.3f})",
          f"{t.random:.3f}", span(*t.only), f"{t.random_only:.3f}", f"{t.chance:.3f}"]
         for site, t in zip(sites, made.topics, strict=True)],
    )  # fmt: skip


def show_pairs(made: Study) -> None:
    """Languages of one script: the worst, and all scripts other than Latin."""
    shares = [p.right / p.n for p in made.pairs]
    clear = sum(wilson(p.right, p.n)[0] > 0.5 for p in made.pairs)
    print(f"\n{len(made.pairs)} pairs of one script among {len(READ + UNREAD)} languages: median "
          f"{np.median(shares):.3f}, {clear} above chance beyond their interval")  # fmt: skip
    shown = [p for p in made.pairs if p.script != "Latn"] + [
        p for p in made.pairs if p.script == "Latn"][:8]  # fmt: skip
    table(["pair", "script", "right", "n"],
          [[f"{p.first}, {p.second}", p.script, span(p.right / p.n, *wilson(p.right, p.n)), p.n]
           for p in shown])  # fmt: skip


def main() -> None:
    """Read, measure, print, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/real-text"))
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    found = read(arguments.work)
    made = study(found, arguments.work)
    show(made, found)
    if arguments.picture is not None:
        from tests.bench.real_picture import draw

        draw(made, arguments.picture)


if __name__ == "__main__":
    main()
