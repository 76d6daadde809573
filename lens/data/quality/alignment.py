"""Check that row i says the same in two languages, without knowledge of either."""

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lens.data.quality.report import Finding
from lens.data.quality.rows import of_rows

LEAST_ROWS = 30
"""Fewer rows are not judged for shifts."""
T_SHIFTED = 5.0
"""How many standard errors better a shift must fit, in a window of rows."""
T_PARALLEL = 3.0
"""How many standard errors better a row must fit its partner than rows far away."""
Z_PARALLEL = 4.0
"""Or how far the resemblance of rows must agree between languages, in standard deviations."""
_WINDOW = 50
_REACH = 3
_ROLLS = 8
_ODD = np.log(3.0)
_NUMBERS = re.compile(r"\d+")
_WORDS = re.compile(r"[^\W\d_]{3,}")
_COMMON = 0.1  # a word in a larger share of rows does not identify a row
_KERNEL_ROWS = 400
_KERNEL_WIDTH = 4096
_PERMUTATIONS = 100
_QUESTIONS = ("?", "？", "؟", "՞", "።?")

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Features:
    """What translation keeps of rows, (n,) each.

    ``length`` is the standardised logarithm of the number of characters; ``anchors`` are numbers
    in digits of any script and words that both languages have, such as names; ``asks`` says
    whether there is a question mark.
    """

    length: Floats
    anchors: tuple[frozenset[int | str], ...]
    asks: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Shift:
    """Rows `start` to `stop` (half-open) fit the pivot's `offset` rows later."""

    start: int
    stop: int
    offset: int
    t: float


def features(pivot: Sequence[str], rows: Sequence[str]) -> tuple[Features, Features]:
    """Describe rows of two languages by what translation keeps."""
    words = [[set(_WORDS.findall(row.casefold())) for row in side] for side in (pivot, rows)]
    counts = [Counter(word for found in side for word in found) for side in words]
    most = max(1.0, _COMMON * len(rows))
    shared = {
        word
        for word in counts[0].keys() & counts[1].keys()
        if max(counts[0][word], counts[1][word]) <= most
    }
    first, second = (
        _described(side, [found & shared for found in said])
        for side, said in zip((pivot, rows), words, strict=True)
    )
    return first, second


def _described(rows: Sequence[str], names: Sequence[set[str]]) -> Features:
    logs = np.array([np.log1p(len(row.strip())) for row in rows])
    # Rows of one template differ little; the floor keeps their noise from being blown up.
    length = (logs - logs.mean()) / max(float(logs.std()), 0.2)
    anchors: tuple[frozenset[int | str], ...] = tuple(
        frozenset([*map(int, _NUMBERS.findall(row)), *found])
        for row, found in zip(rows, names, strict=True)
    )
    asks = np.array([any(mark in row for mark in _QUESTIONS) for row in rows])
    return Features(length, anchors, asks)


def fit(pivot: Features, other: Features, partner: NDArray[np.int_]) -> Floats:
    """Score (n,) how well rows of the pivot fit their partners in another language.

    ``partner`` names the row of ``other`` for each, -1 for none, which scores NaN. A score is minus
    the difference of lengths (at most 2), plus 1 for the same anchors to minus 1 for different
    ones, minus 1/2 where one side asks.
    """
    here = np.flatnonzero(partner >= 0)
    there = partner[here]
    score = -np.minimum(np.abs(pivot.length[here] - other.length[there]), 2.0)
    score -= 0.5 * (pivot.asks[here] != other.asks[there])
    for place, (i, j) in enumerate(zip(here, there, strict=True)):
        a, b = pivot.anchors[i], other.anchors[j]
        if a or b:
            score[place] += 2 * len(a & b) / len(a | b) - 1
    out = np.full(len(partner), np.nan)
    out[here] = score
    return out


def find_shift(pivot: Features, other: Features) -> Shift | None:
    """Find where rows of one language are shifted against the pivot, if anywhere."""
    n = len(pivot.length)
    if n < LEAST_ROWS:
        return None
    rows = np.arange(n)
    here = fit(pivot, other, rows)
    best: Shift | None = None
    for offset in (k for k in range(-_REACH, _REACH + 1) if k):
        moved = rows + offset
        gain = fit(pivot, other, np.where((moved >= 0) & (moved < n), moved, -1)) - here
        hits = [(start, t) for start, t in _windows(gain) if t > T_SHIFTED]
        if hits and (best is None or max(t for _, t in hits) > best.t):
            begin = _turn(gain, max(0, hits[0][0] - _WINDOW), hits[0][0] + _WINDOW)
            stop = min(n, hits[-1][0] + _WINDOW)
            best = Shift(begin, stop, -offset, max(t for _, t in hits))
    return best


def parallel_t(pivot: Features, other: Features) -> float | None:
    """How many standard errors better rows fit their partners than rows far away; None if few."""
    n = len(pivot.length)
    if n < LEAST_ROWS:
        return None
    rows = np.arange(n)
    # Far apart and fixed: rows close to each other share their topic and a shift would hide.
    rolls = [np.roll(rows, 5 + (n - 10) * i // _ROLLS) for i in range(_ROLLS)]
    null = np.mean([fit(pivot, other, roll) for roll in rolls], axis=0)
    return _t(fit(pivot, other, rows) - null)


def kernel_z(pivot: Sequence[str], rows: Sequence[str]) -> float:
    """Agreement of two languages on which rows resemble each other, in standard deviations.

    The Hilbert-Schmidt independence criterion (Gretton et al. 2005): tr(K H L H) with cosine
    kernels K, L over hashed runs of four bytes and centring H, against 100 permutations.
    """
    n = len(rows)
    where = [i * n // _KERNEL_ROWS for i in range(_KERNEL_ROWS)] if n > _KERNEL_ROWS else range(n)
    a, b = (_kernel([side[i] for i in where]) for side in (pivot, rows))
    generator = np.random.default_rng(0)
    null = []
    for _ in range(_PERMUTATIONS):
        order = generator.permutation(len(b))
        null.append(float((a * b[np.ix_(order, order)]).sum()))
    spread = float(np.std(null))
    return (float((a * b).sum()) - float(np.mean(null))) / spread if spread > 0 else 0.0


def _kernel(rows: Sequence[str]) -> Floats:
    """Centred cosines between rows over hashed runs of bytes, weighted by how rare they are."""
    table = np.zeros((len(rows), _KERNEL_WIDTH))
    for i, row in enumerate(rows):
        text = f" {row.casefold()} ".encode()
        for j in range(len(text) - 3):
            table[i, zlib.crc32(text[j : j + 4]) % _KERNEL_WIDTH] += 1.0
    table = np.log1p(table) * np.log(len(rows) / np.maximum(1, (table > 0).sum(axis=0)))
    table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    cosines = table @ table.T
    np.fill_diagonal(cosines, 0.0)  # a row resembles itself in any order
    centred: Floats = cosines - cosines.mean(axis=0) - cosines.mean(axis=1)[:, None]
    centred += cosines.mean()
    return centred


def odd_lengths(rows: Sequence[str], pivot: Sequence[str]) -> tuple[list[int], float | None]:
    """Rows more than three times as long or short as usual beside the pivot, and what is usual."""
    pairs = [
        (i, np.log(len(a.strip()) / len(b.strip())))
        for i, (a, b) in enumerate(zip(rows, pivot, strict=False))
        if min(len(a.strip()), len(b.strip())) > 0
    ]
    if not pairs:
        return [], None
    usual = float(np.median([ratio for _, ratio in pairs]))
    odd = [i for i, ratio in pairs if abs(ratio - usual) > _ODD]
    return odd, float(np.exp(usual))


def check_alignment(
    code: str, rows: Sequence[str], pivot_code: str, pivot: Sequence[str]
) -> tuple[list[Finding], int, float | None]:
    """Check the alignment with the pivot: findings, rows of odd length, and the usual ratio."""
    both = [i for i in range(min(len(rows), len(pivot))) if rows[i].strip() and pivot[i].strip()]
    odd, ratio = odd_lengths(rows, pivot)
    found: list[Finding] = []
    if len(both) >= LEAST_ROWS:
        sides = [pivot[i] for i in both], [rows[i] for i in both]
        a, b = features(*sides)
        shift = find_shift(a, b)
        t = parallel_t(a, b)
        if shift is not None:
            found.append(_shifted(code, pivot_code, shift, both))
        elif t is not None and t < T_PARALLEL and kernel_z(*sides) < Z_PARALLEL:
            message = (
                f"its rows fit those of {pivot_code} no better than rows far away do "
                f"(t = {t:.1f}, n = {len(both)})"
            )
            advice = (
                "give rows that are translations of each other, in one order; for rows that are "
                "not parallel use parallel=False in Python, and expect the topic in the subspace"
            )
            found.append(Finding("warning", "parallel", code, message, advice))
    if odd and not found:  # rows that do not belong together differ in length: no news
        message = (
            f"{len(odd)} row(s) ({len(odd) / max(1, len(both)):.1%}) are more than 3 times as long "
            f"or short as usual beside {pivot_code}"
        )
        advice = "read them: a part may be missing, or belong to another row"
        found.append(of_rows("length", code, rows, odd, message, advice, n=len(both), limit=0.02))
    return found, len(odd), ratio


def _shifted(code: str, pivot_code: str, shift: Shift, both: Sequence[int]) -> Finding:
    first, last = both[shift.start] + 1, both[shift.stop - 1] + 1
    far = abs(shift.offset)
    which = "later" if shift.offset > 0 else "earlier"
    change = f"{far} row(s) are {'missing' if shift.offset > 0 else 'too many'} in it"
    message = (
        f"rows {first} to {last} say what {pivot_code} says {far} row(s) {which} "
        f"(t = {shift.t:.1f})"
    )
    advice = (
        f"look at it near row {first}: {change}; or leave out rows {first} to {last}, or the "
        "language"
    )
    return Finding("warning", "shift", code, message, advice, rows=(first,))


def _windows(gain: Floats) -> list[tuple[int, float]]:
    """List starts of windows and how many standard errors their mean gain is above 0."""
    size = min(_WINDOW, len(gain))
    found = []
    last = len(gain) - size
    for start in sorted({*range(0, last + 1, max(1, size // 2)), last}):
        known = gain[start : start + size]
        found.append((start, _t(known[~np.isnan(known)])))
    return found


def _turn(gain: Floats, low: int, high: int) -> int:
    """Row between two from which the gain is best summed: where the shift begins."""
    part = np.nan_to_num(gain[low:high])
    sums = np.cumsum(part[::-1])[::-1]
    return low + int(np.argmax(sums))


def _t(values: Any) -> float:
    if len(values) < 2:
        return 0.0
    spread = float(values.std(ddof=1)) / float(np.sqrt(len(values)))
    mean = float(values.mean())
    return mean / spread if spread > 0 else float(np.sign(mean)) * np.inf if mean else 0.0
