"""Intervals and paired tests against known values, and their coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lens.errors import InputError, ShapeError
from lens.stats import mcnemar, mean_interval, paired_bootstrap, stratified_interval, wilson


def test_wilson_known_values() -> None:
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert wilson(0, 20) == pytest.approx((0.0, 0.161125), abs=1e-6)
    assert wilson(20, 20)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson([8, 0], [10, 20])
    np.testing.assert_allclose(low, [0.490162, 0.0], atol=1e-6)
    np.testing.assert_allclose(high, [0.943318, 0.161125], atol=1e-6)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_wilson_covers(share: float) -> None:
    hits = np.random.default_rng(1).binomial(60, share, size=4000)
    low, high = wilson(hits, 60)
    assert 0.92 <= np.mean((low <= share) & (share <= high)) <= 0.985


def test_bootstrap_covers_the_mean() -> None:
    rng = np.random.default_rng(2)
    found = [mean_interval(rng.exponential(2.0, 80), i, n_resamples=400) for i in range(400)]
    assert 0.88 <= np.mean([low <= 2.0 <= high for low, high in found]) <= 0.98


def test_few_levels_and_many_levels_agree() -> None:
    hits = np.random.default_rng(3).random(300) < 0.4
    counted = mean_interval(hits, 0)
    drawn = mean_interval(hits + np.linspace(0, 1e-9, 300), 0)
    assert counted == pytest.approx(drawn, abs=0.01)


def test_columns_of_an_item_stay_together() -> None:
    one = np.random.default_rng(4).random(200)
    same = np.stack([one] * 5, axis=1)
    opposite = np.stack([one, -one], axis=1)
    assert mean_interval(same, 0) == pytest.approx(mean_interval(one, 0), abs=1e-12)
    assert mean_interval(opposite, 0) == pytest.approx((0.0, 0.0), abs=1e-12)


def test_bootstrap_repeats_with_its_seed_and_not_with_another() -> None:
    values = np.random.default_rng(5).random(50)
    assert mean_interval(values, 7) == mean_interval(values, 7)
    assert mean_interval(values, 7) != mean_interval(values, 8)


def test_stratified_interval_is_wider_than_the_joint_one_of_opposites() -> None:
    one = np.random.default_rng(6).random(100)
    low, high = stratified_interval([one, 1 - one])
    assert low < 0.5 < high
    assert mean_interval(np.stack([one, 1 - one], 1), 0) == pytest.approx((0.5, 0.5))


def test_paired_bootstrap() -> None:
    rng = np.random.default_rng(7)
    before = rng.random(400) < 0.3
    after = before | (rng.random(400) < 0.3)
    found = paired_bootstrap(before, after)
    assert found.difference == pytest.approx(after.mean() - before.mean())
    assert 0 < found.low < found.difference < found.high
    assert found.n == 400
    assert paired_bootstrap(before, before).high == 0.0


def test_mcnemar_known_values() -> None:
    def case(gained: int, lost: int) -> tuple[list[bool], list[bool]]:
        both = [True] * 5
        return both + [False] * gained + [True] * lost, both + [True] * gained + [False] * lost

    found = mcnemar(*case(10, 2))
    assert (found.gained, found.lost) == (10, 2)
    assert found.p_value == pytest.approx(2 * 79 / 4096)
    assert mcnemar(*case(3, 3)).p_value == 1.0
    assert mcnemar(*case(0, 0)).p_value == 1.0
    assert mcnemar(*case(3000, 0)).p_value == pytest.approx(0.0, abs=1e-300)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: wilson(3, 2), InputError),
        (lambda: wilson(1, 2, confidence=95), InputError),
        (lambda: mean_interval([1.0, math.nan]), InputError),
        (lambda: mean_interval(np.zeros((2, 2, 2))), ShapeError),
        (lambda: mean_interval([1.0], n_resamples=0), InputError),
        (lambda: paired_bootstrap([1.0, 2.0], [1.0]), ShapeError),
        (lambda: mcnemar([True], [True, False]), ShapeError),
        (lambda: stratified_interval([]), InputError),
    ],
)
def test_bad_input_of_intervals(call, error) -> None:
    with pytest.raises(error, match=r"expected|expects|needs|drop"):
        call()
