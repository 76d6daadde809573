"""Resampling from the Gram matrix against refits from the states."""

import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lens import _core, resample, subspace
from lens.errors import InputError
from tests.helpers import reference as ref

SIZES = [2, 3, 7, 8, 9, 63, 65]
WIDTHS = [3, 15, 16, 17, 511, 513]


def states_of(rng, L, n, d, dtype="float64", *, effect=2.0, shared=0.5):
    """Stored states of L languages; n is a number of rows or one for each language."""
    counts = [n] * L if isinstance(n, int) else n
    common, most = rng.normal(size=d) + 3, max(counts)
    content = shared * rng.normal(size=(most, d))
    return [
        ref.store(common + effect * rng.normal(size=d) + content[:m] + rng.normal(size=(m, d)),
                  dtype)
        for m in counts
    ]  # fmt: skip


def draws(seed, counts, R, joint):
    """Row numbers of R refits, as `bootstrap` says that it draws them."""
    rng = np.random.default_rng(seed)
    if joint:
        rows = rng.integers(counts[0], size=(R, counts[0]))
        return [[rows[r]] * len(counts) for r in range(R)]
    each = [rng.integers(n, size=(R, n)) for n in counts]
    return [[rows[r] for rows in each] for r in range(R)]


def angle(a, b):
    return float(np.arccos(min(1.0, a @ b / np.linalg.norm(a) / np.linalg.norm(b))))


def check_bootstrap(stored, dtype, rank, joint, seed, R=4, n_threads=1):
    """Angles, singular values and M_a of a bootstrap against refits from the states."""
    gram = resample.gram(stored, n_threads=n_threads, **ref.raw(dtype))
    result = resample.bootstrap(
        gram, rank=rank, n_resamples=R, joint=joint, seed=seed, n_threads=n_threads
    )
    states = [ref.value(x, dtype) for x in stored]
    counts = [len(x) for x in states]
    sigma, basis, m_a = ref.refit(states, [slice(None)] * len(states), rank)
    np.testing.assert_allclose(result.fit_singular_values, sigma, rtol=1e-7, atol=1e-10)
    for r, rows in enumerate(draws(seed, counts, R, joint)):
        again, refitted, other = ref.refit(states, rows, rank)
        np.testing.assert_allclose(result.singular_values[r], again, rtol=1e-7, atol=1e-6)
        expected = ref.angles(basis, refitted)
        # The promise of the docstring: errors**2 / sin(angle), and errors near 0.
        slack = result.errors[r] ** 2 / np.maximum(np.sin(expected), result.errors[r]) + 1e-12
        assert (np.abs(result.angles[r] - expected) <= 2 * slack).all()
        assert abs(result.agnostic_angles[r] - angle(m_a, other)) < 1e-6
    return result


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 6), st.sampled_from(SIZES), st.sampled_from(WIDTHS),
    st.sampled_from(ref.DTYPES), st.booleans(), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_bootstrap_equals_refits_from_states(L, n, d, dtype, joint, seed):
    rng = np.random.default_rng(seed)
    L = min(L, d)
    counts = n if joint else [n + i % 3 for i in range(L)]
    stored = states_of(rng, L, counts, d, dtype)
    rank = int(rng.integers(1, L))
    check_bootstrap(stored, dtype, rank, joint, seed % 1000)


@pytest.mark.parametrize("dtype", ref.DTYPES)
@pytest.mark.parametrize("joint", [True, False])
def test_larger_than_one_tile(dtype, joint):
    """Three tiles of the Gram matrix, two chunks of refits, several pieces of columns."""
    rng = np.random.default_rng(1)
    stored = states_of(rng, 5, 210 if joint else [200, 230, 210, 190, 205], 1100, dtype)
    result = check_bootstrap(stored, dtype, 4, joint, 7, R=150, n_threads=2)
    assert result.reliable.all()
    assert result.errors.max() < 1e-5


@pytest.mark.parametrize("dtype", ref.DTYPES)
def test_gram_is_the_gram(dtype):
    rng = np.random.default_rng(2)
    stored = states_of(rng, 3, [200, 311, 250], 700, dtype)
    exact = np.concatenate([ref.value(x, dtype) for x in stored]).astype(np.longdouble)
    y = exact - exact.mean(0)
    for n_threads in (1, 2, 7):
        gram = resample.gram(stored, n_threads=n_threads, **ref.raw(dtype))
        some = (y[::40] @ y.T).astype(float)
        np.testing.assert_allclose(gram.matrix[::40], some, atol=1e-10)
        np.testing.assert_array_equal(gram.matrix, gram.matrix.T)
        np.testing.assert_allclose(gram.drift, (y @ exact.mean(0)).astype(float), atol=1e-10)
        np.testing.assert_allclose(gram.mean, exact.mean(0).astype(float), rtol=1e-13)
        assert gram.counts.tolist() == [200, 311, 250]
        assert gram.starts.tolist() == [0, 200, 511]


def test_every_way_to_give_states():
    rng = np.random.default_rng(3)
    x = np.stack(states_of(rng, 3, 20, 30))
    names = ["eng_Latn", "spa_Latn", "tur_Latn"]
    by_name = resample.gram(dict(zip(names, x, strict=True)))
    for gram in (
        resample.gram(x, languages=names),
        resample.gram(list(x), languages=names),
        resample.gram_batch(np.stack([x + 1, x]), languages=names)[1],
    ):
        np.testing.assert_allclose(gram.matrix, by_name.matrix, atol=1e-11)
        assert gram.languages == by_name.languages == tuple(names)
    assert resample.gram(x).languages == ("language 0", "language 1", "language 2")
    torch = pytest.importorskip("torch")
    for far in (torch.empty(2, 3, 4, device="meta"), [torch.empty(3, 4, device="meta")] * 2):
        with pytest.raises(
            InputError, match=r"(states|language 0): .* move it to the CPU with .cpu"
        ):
            resample.gram(far)
    half = torch.tensor(x).bfloat16()
    raw = half.view(torch.uint16).numpy()
    np.testing.assert_array_equal(
        resample.gram(half).matrix, resample.gram(raw, dtype="bfloat16").matrix
    )


def test_draws_do_not_depend_on_threads_and_results_agree():
    gram = resample.gram(states_of(np.random.default_rng(4), 4, 60, 80))
    first = resample.bootstrap(gram, rank=2, n_resamples=300, seed=9, n_threads=1)
    for n_threads in (2, 5, 64):
        again = resample.bootstrap(gram, rank=2, n_resamples=300, seed=9, n_threads=n_threads)
        np.testing.assert_allclose(again.angles, first.angles, atol=1e-10)
        np.testing.assert_allclose(again.singular_values, first.singular_values, rtol=1e-10)
    other = resample.bootstrap(gram, rank=2, n_resamples=300, seed=10)
    assert np.abs(other.angles - first.angles).max() > 1e-3


def test_more_refits_than_are_held_at_once(monkeypatch):
    gram = resample.gram(states_of(np.random.default_rng(5), 3, 12, 10))
    whole = resample.bootstrap(gram, rank=1, n_resamples=50, seed=3)
    monkeypatch.setattr(sys.modules["lens.resample.bootstrap"], "BLOCK", 7)
    pieces = resample.bootstrap(gram, rank=1, n_resamples=50, seed=3)
    np.testing.assert_allclose(pieces.angles, whole.angles, atol=1e-10)


def label_products(labels, L, n_threads):
    rng = np.random.default_rng(6)
    y = rng.normal(size=(labels.shape[1], 20))
    K = np.empty((len(labels), L, L))
    _core.resample_labels(K, y @ y.T, labels, n_threads)
    return K, y


@pytest.mark.parametrize("N", [2, 127, 128, 129, 300])
def test_label_sums_have_the_same_bits_everywhere(N):
    rng = np.random.default_rng(N)
    L = min(3, N)
    labels = np.stack([rng.permutation(np.arange(N) % L) for _ in range(130)]).astype(np.uint64)
    before = _core.isa()
    first, y = label_products(labels, L, 1)
    for p in (0, 63, 64, 129):
        means = np.stack([y[labels[p] == a].mean(0) for a in range(L)])
        np.testing.assert_allclose(first[p], means @ means.T, atol=1e-12)
    try:
        for isa in _core.isas():
            _core.force_isa(isa)
            for n_threads in (1, 2, 64):
                assert label_products(labels, L, n_threads)[0].tobytes() == first.tobytes()
    finally:
        _core.force_isa(before)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(2, 5), st.sampled_from([2, 3, 16, 43]), st.sampled_from([4, 17]), st.booleans(),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_permutation_spectrum_against_shuffled_states(L, n, d, joint, seed):
    rng = np.random.default_rng(seed)
    states = states_of(rng, min(L, d), n if joint else [n, *[n + 1] * (min(L, d) - 1)], d)
    L, counts = len(states), [len(x) for x in states]
    found = resample.permutation_spectrum(
        resample.gram(states), n_permutations=5, joint=joint, seed=seed % 1000
    )
    draw = np.random.default_rng(seed % 1000)
    if joint:
        labels = draw.permuted(np.tile(np.arange(L), (5 * n, 1)), axis=1)
        labels = labels.reshape(5, n, L).transpose(0, 2, 1).reshape(5, -1)
        for p in labels:  # every row still has every language once
            assert (np.sort(p.reshape(L, n), axis=0) == np.arange(L)[:, None]).all()
    else:
        labels = draw.permuted(np.tile(np.repeat(np.arange(L), counts), (5, 1)), axis=1)
    for p in range(5):
        expected = ref.shuffled_spectrum(states, labels[p])
        np.testing.assert_allclose(found.null[p], expected, rtol=1e-6, atol=1e-6)


# ---- known answers -----------------------------------------------------------------------------


def test_permutation_null_is_uniform_without_an_effect_and_small_with_one():
    """p-values of 60 data sets without language effect fill the unit interval evenly."""
    rng = np.random.default_rng(7)
    p_values = []
    for _ in range(60):
        x = states_of(rng, 3, 20, 12, effect=0.0)
        p_values.append(resample.permutation_spectrum(resample.gram(x), n_permutations=99).p_value)
    steps = np.sort(p_values)
    distance = np.abs(steps - (np.arange(60) + 0.5) / 60).max()
    assert distance < 0.2  # Kolmogorov: 0.175 has probability 5 %
    strong = resample.permutation_spectrum(resample.gram(states_of(rng, 3, 20, 12, effect=1.0)))
    assert strong.p_value == strong.p_values[0] == 1 / 1001
    assert (np.diff(strong.quantiles(0.5)) <= 0).all()


def test_two_languages():
    rng = np.random.default_rng(8)
    x = states_of(rng, 2, 50, 30)
    result = check_bootstrap(x, "float64", 1, True, 5)
    assert result.angles.shape == (4, 1)
    choice = resample.choose_rank(resample.gram(x))
    assert choice.rank == 1
    assert choice.held_out.tolist() == [1.0]


def test_one_language_twice():
    """Two equal languages leave L-2 directions, in the fit and in every joint refit."""
    rng = np.random.default_rng(9)
    x = states_of(rng, 3, 50, 30)
    gram = resample.gram([*x, x[0]])
    result = resample.bootstrap(gram, rank=2, n_resamples=20)
    assert result.reliable.all()
    assert result.singular_values[:, 2].max() < 1e-6
    with pytest.raises(InputError, match=r"rank: 3, but the means of .*span only 2 dir"):
        resample.bootstrap(gram, rank=3)
    alone = resample.bootstrap(resample.gram(x), rank=2, n_resamples=20)
    assert np.abs(alone.angles - result.angles).max() < 1.0  # weights differ, directions hardly


def test_refits_that_equal_the_fit_have_no_angle():
    """Rows that are all equal: every refit is the fit, and the error bound covers what is left."""
    rng = np.random.default_rng(10)
    means = rng.normal(size=(5, 1, 400)) * np.geomspace(1, 1e-2, 5)[:, None, None]
    x = np.ascontiguousarray(np.broadcast_to(means, (5, 12, 400)))
    result = resample.bootstrap(resample.gram(x), rank=4, n_resamples=30)
    assert (result.angles <= result.errors[:, None]).all()
    assert result.errors.max() < 1e-4
    assert result.stable_share == 1.0
    assert (result.agnostic_angles < 1e-5).all()


@pytest.mark.parametrize("condition", [1e1, 1e2, 1e3])
def test_ill_conditioned_means(condition):
    """Angles stay within their bound of refits in long double, until the bound says: no longer."""
    rng = np.random.default_rng(11)
    L, n, d = 5, 30, 64
    U = np.linalg.qr(rng.normal(size=(d, L - 1)))[0]
    V = np.linalg.qr(np.c_[np.ones(L), rng.normal(size=(L, L - 1))])[0][:, 1:]
    means = (U * np.geomspace(1, 1 / condition, L - 1) @ V.T).T
    noise = 0.5 / condition * rng.normal(size=(L, n, d))
    result = check_bootstrap(list(means[:, None] + noise + 1), "float64", L - 1, True, 2, R=10)
    assert result.reliable.all()
    assert result.angles.max() > 0.05


def test_refits_beyond_double_are_flagged():
    """One language moves only by rounding when its few rows that differ are not drawn."""
    rng = np.random.default_rng(12)
    x = np.tile(rng.normal(size=(3, 1, 20)), (1, 8, 1))
    x[2] = x[1]
    x[2, 0] += 1.0  # language 2 differs from 1 by one row, left out of a third of the draws
    result = resample.bootstrap(resample.gram(x), rank=2, n_resamples=200)
    missing = np.array([0 not in rows[0] for rows in draws(0, [8] * 3, 200, True)])
    assert 20 < missing.sum() < 150
    np.testing.assert_array_equal(result.reliable, ~missing)
    assert result.stable_share == np.mean(~missing)


def test_stability_grows_with_rows():
    x = states_of(np.random.default_rng(13), 4, 100, 50, effect=0.4)
    gram = resample.gram(x)
    curve = resample.stability_curve(gram, [5, 20, 100, 1000], rank=3, n_resamples=100)
    assert (np.diff(curve.median) < 0).all()
    assert (curve.low <= curve.median).all()
    assert (curve.median <= curve.high).all()
    assert curve.angles.shape == (4, 100)
    same = resample.stability_curve(gram, [100], rank=3, n_resamples=100)
    boot = resample.bootstrap(gram, rank=3, n_resamples=100)
    np.testing.assert_allclose(same.angles[0], boot.angles[:, -1], atol=1e-10)
    assert curve.median[2] == pytest.approx(boot.angles[:, -1].mean(), rel=0.2)


# ---- choice of rank ----------------------------------------------------------------------------


def planted(rng, sigma, n=120, d=64, noise=1.0):
    """States whose means have the given singular values, in L = len(sigma) + 1 languages."""
    L = len(sigma) + 1
    U = np.linalg.qr(rng.normal(size=(d, L - 1)))[0]
    V = np.linalg.qr(np.c_[np.ones(L), rng.normal(size=(L, L - 1))])[0][:, 1:]
    means = (U * np.asarray(sigma) @ V.T).T
    content = rng.normal(size=(1, n, d))
    return np.ascontiguousarray(means[:, None] + content + noise * rng.normal(size=(L, n, d)) + 3)


@pytest.mark.parametrize("joint", [True, False])
def test_rank_of_planted_directions(joint):
    x = planted(np.random.default_rng(14), [5, 4, 2, 0.3, 0.2, 0.1])
    choice = resample.choose_rank(resample.gram(x), joint=joint)
    assert choice.rank == 3
    assert choice.stable
    assert "held-out" in choice.reason
    assert choice.held_out[-1] == 1.0
    assert choice.held_out[2] > 0.95 > choice.held_out[1]
    assert choice.p_value < 0.01
    fitted = subspace.fit(x.mean(1), rank=choice.rank)
    assert fitted.basis.shape == (64, 3)


def test_held_out_shares_are_free_of_noise():
    """Noise is a fifth of the variance of the means, and nothing of the held-out variance."""
    x = planted(np.random.default_rng(0), [8, 6, 0, 0, 0, 0], n=40, d=300)
    choice = resample.choose_rank(resample.gram(x), n_resamples=50)
    raw = np.linalg.svd(x.mean(1) - x.mean((0, 1)), compute_uv=False)[:-1] ** 2
    assert raw[:2].sum() / raw.sum() < 0.8
    assert choice.held_out[1] > 0.98
    assert choice.rank == 2


def test_rank_stops_at_l_minus_2_and_says_so():
    x = planted(np.random.default_rng(15), [5, 5, 5, 5])
    choice = resample.choose_rank(resample.gram(x), n_resamples=50)
    assert choice.rank <= 3
    assert "at most L-2 = 3" in choice.reason


def test_a_pair_of_equal_directions_is_taken_whole():
    """Three directions would do, but the third turns freely in the plane of a pair."""
    x = planted(np.random.default_rng(16), [5, 4, 1.4, 1.4, 0.01, 0.01], n=200, noise=0.7)
    choice = resample.choose_rank(resample.gram(x))
    assert choice.held_out[2] > 0.95
    assert choice.stable_shares[2] < 0.95
    assert choice.rank == 4
    assert choice.stable
    assert "only from 4 on" in choice.reason


def test_without_language_effect_the_gate_is_shut():
    x = states_of(np.random.default_rng(17), 4, 60, 30, effect=0.0)
    choice = resample.choose_rank(resample.gram(x))
    assert choice.rank == 1
    assert choice.p_value > 0.05
    assert "shuffled labels" in choice.reason


def test_results_to_dict():
    gram = resample.gram(np.random.default_rng(18).normal(size=(3, 10, 12)))
    boot = resample.bootstrap(gram, rank="full", n_resamples=5).to_dict()
    assert np.shape(boot["angles"]) == (5, 2)
    assert boot["largest"][0] <= boot["largest"][1]
    assert boot["interval"] == 0.95
    null = resample.permutation_spectrum(gram, n_permutations=5).to_dict()
    assert np.shape(null["null"]) == (5, 2)
    curve = resample.stability_curve(gram, [3, 5], rank=1, n_resamples=4).to_dict()
    assert curve["sizes"] == [3, 5]
    choice = resample.choose_rank(gram, n_resamples=5).to_dict()
    assert choice["rank"] == 1
    assert re.match(r"1[, ]", choice["reason"])
    assert gram.to_dict()["languages"] == ["language 0", "language 1", "language 2"]
