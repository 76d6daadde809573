"""Language subspaces: identities, agreement with the published procedure, accuracy, bad input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lens import _core
from lens.errors import DtypeError, InputError, ShapeError
from lens.subspace import fit, fit_batch, principal_angles, project
from tests.helpers import reference as ref


def means_of(rng, L, d, *, condition=10.0, offset=3.0):
    """Means whose centred matrix has singular values from 1 down to 1/condition."""
    U = np.linalg.qr(rng.normal(size=(d, L - 1)))[0]
    V = np.linalg.qr(np.c_[np.ones(L), rng.normal(size=(L, L - 1))])[0][:, 1:]
    sigma = np.geomspace(1.0, 1.0 / condition, L - 1)
    return (U * sigma @ V.T).T + offset * rng.normal(size=d) / np.sqrt(d), U, sigma


def longdouble_basis(means, r):
    """Left singular vectors by one-sided Jacobi in long double."""
    A = means.astype(np.longdouble)
    A = (A - A.sum(0) / len(A)).T.copy()
    L = A.shape[1]
    for _ in range(30):
        for p in range(L):
            for q in range(p + 1, L):
                a, b, c = A[:, p] @ A[:, p], A[:, q] @ A[:, q], A[:, p] @ A[:, q]
                if abs(c) <= 1e-40:
                    continue
                zeta = (b - a) / (2 * c)
                t = (1 if zeta >= 0 else -1) / (abs(zeta) + np.sqrt(1 + zeta**2))
                cos = 1 / np.sqrt(1 + t**2)
                A[:, p], A[:, q] = cos * (A[:, p] - t * A[:, q]), cos * (A[:, q] + t * A[:, p])
    sigma = np.sqrt((A * A).sum(0))
    order = np.argsort(-sigma)[:r]
    return (A[:, order] / sigma[order]).astype(float), sigma[order].astype(float)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 9), st.integers(0, 200), st.floats(0, 6), st.integers(0, 2**32 - 1))
def test_identities(L, extra, power, seed):
    rng = np.random.default_rng(seed)
    d = L + extra
    means, _, sigma = means_of(rng, L, d, condition=10**power)
    result = fit(means, rank="full", agnostic="complement")
    r = result.rank
    assert r == L - 1
    assert result.basis.shape == (d, r)
    np.testing.assert_allclose(result.basis.T @ result.basis, np.eye(r), atol=1e-11)
    assert np.abs(result.basis.T @ result.agnostic).max() <= 1e-13 * np.linalg.norm(result.mean)
    np.testing.assert_allclose(result.singular_values, sigma, atol=1e-13)
    np.testing.assert_allclose(result.mean, means.mean(0), atol=1e-14)
    biggest = result.basis[np.abs(result.basis).argmax(0), np.arange(r)]
    assert (biggest > 0).all()
    # r = L-1: every mean has the same part outside M_s, and differences of means lie inside it
    outside = means - means @ result.basis @ result.basis.T
    np.testing.assert_allclose(outside, np.tile(outside[0], (L, 1)), atol=1e-9)


@pytest.mark.parametrize("condition", [1.0, 10.0, 60.0, 70.0, 1e3])
@pytest.mark.parametrize("r", [1, 3, 5, 6])
def test_projectors_equal_the_published_procedure(condition, r):
    means, _, _ = means_of(np.random.default_rng(r), 7, 60, condition=condition)
    result = fit(means, rank=r)
    P_s, P_a = ref.published(means, r)
    m = result.agnostic
    if condition > 1 or r == 6:  # equal singular values leave the choice of directions open
        np.testing.assert_allclose(result.basis @ result.basis.T, P_s, atol=1e-10)
        np.testing.assert_allclose(np.outer(m, m) / (m @ m), P_a, atol=1e-10)
        w = means.mean(0)[:, None]
        centred = (means - means.mean(0)).T
        B = w + result.basis @ (result.basis.T @ centred)
        np.testing.assert_allclose(B.T @ m / (m @ m), np.ones(7), atol=1e-10)


def exact_means(smallest):
    """Means whose factors are known exactly: Hadamard matrices, and powers of two between them.

    Every element is a sum of a few powers of two and fits float64 without rounding, so the left
    singular vectors and the ratios of the singular values are exact: condition 2^-smallest.
    """
    H = np.array([[1.0]])
    for _ in range(6):
        H = np.block([[H, H], [H, -H]])
    U, V = H[:, 1:8] / 8, H[:8, :8][:, 1:]  # (64, 7) orthonormal; (8, 7) orthogonal to ones
    sigma = 2.0 ** np.linspace(0, smallest, 7).round()
    means = V * sigma @ U.T + 3.0
    assert (means.astype(np.longdouble) == (V * sigma).astype(np.longdouble) @ U.T + 3).all()
    return means, U, sigma * np.sqrt(8.0)


@pytest.mark.parametrize("smallest", [0, -6, -20, -26])
def test_exactly_known_factors(smallest):
    """Condition up to 6.7e7; below 1e-9 as far as condition 1e6, where the reference agrees."""
    means, U, sigma = exact_means(smallest)
    result = fit(means, rank="full", agnostic="complement")
    exact, exact_sigma = longdouble_basis(means, 7)
    assert principal_angles(result.basis, U).max() < 1e-9
    np.testing.assert_allclose(result.singular_values, sigma, rtol=1e-9)
    np.testing.assert_allclose(exact_sigma, sigma, rtol=1e-12)
    if smallest == 0:
        return  # equal singular values leave the vectors open
    for found, bound in ((result.basis, 1e-9), (exact, 1e-12)):
        angles = [principal_angles(found[:, [k]], U[:, [k]])[0] for k in range(7)]
        assert max(angles) < bound * max(1.0, 2.0**-smallest / 1e6)


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
def test_ill_conditioned_means_to_1e_9(condition):
    means, _, _ = means_of(np.random.default_rng(7), 7, 96, condition=condition, offset=1.0)
    for r in (1, 3, 6):
        result = fit(means, rank=r)
        exact, sigma = longdouble_basis(means, r)
        assert principal_angles(result.basis, exact).max() < 1e-9
        np.testing.assert_allclose(result.singular_values[:r], sigma, rtol=1e-9)
        np.testing.assert_allclose(result.basis, exact * np.sign((result.basis * exact).sum(0)),
                                   atol=1e-9)  # fmt: skip


def test_both_routes_are_taken_and_agree_at_the_guard():
    rng = np.random.default_rng(8)
    taken = set()
    for condition in (20.0, 63.0, 65.0, 500.0):
        means, U, _ = means_of(rng, 6, 200, condition=condition)
        basis, sigma = np.empty((1, 5, 200)), np.empty((1, 5))
        mean, route = np.empty((1, 200)), np.empty(1, np.uint8)
        _core.subspace_fit(basis, sigma, mean, route, means[None].copy(), 1)
        taken.add(int(route[0]))
        assert principal_angles(basis[0].T, U).max() < 1e-11
    assert taken == {0, 1}


def test_permuting_languages_changes_no_span_and_scaling_scales_m_a():
    rng = np.random.default_rng(9)
    means, _, _ = means_of(rng, 7, 120)
    result = fit(means, rank=4)
    mixed = fit(means[rng.permutation(7)], rank=4)
    assert principal_angles(result.basis, mixed.basis).max() < 1e-12
    np.testing.assert_allclose(mixed.agnostic, result.agnostic, atol=1e-13)
    scaled = fit(1e3 * means, rank=4)
    np.testing.assert_allclose(scaled.agnostic, 1e3 * result.agnostic, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(scaled.singular_values, 1e3 * result.singular_values)


def test_batch_equals_single_for_any_thread_count():
    rng = np.random.default_rng(10)
    means = np.stack([means_of(rng, 5, 70, condition=10.0**s)[0] for s in range(6)])
    single = [fit(m, rank="full") for m in means]
    for n_threads in (1, 2, 5, 64):
        batch = fit_batch(means, rank="full", n_threads=n_threads)
        for a, b in zip(single, batch, strict=True):
            np.testing.assert_array_equal(a.basis, b.basis)
            np.testing.assert_array_equal(a.agnostic, b.agnostic)
            np.testing.assert_array_equal(a.singular_values, b.singular_values)
    again = fit(means[0], rank="full")
    np.testing.assert_array_equal(again.basis, single[0].basis)


def test_many_languages():
    rng = np.random.default_rng(11)
    means = rng.normal(size=(60, 90))
    result = fit(means, rank="full", agnostic="complement")
    exact, _ = ref.subspace(means, 59)
    assert principal_angles(result.basis, exact).max() < 1e-10


# ---- rank --------------------------------------------------------------------------------------


def test_auto_takes_the_smallest_rank_with_95_percent():
    rng = np.random.default_rng(12)
    U = np.linalg.qr(rng.normal(size=(50, 6)))[0]
    V = np.linalg.qr(np.c_[np.ones(7), rng.normal(size=(7, 6))])[0][:, 1:]
    sigma = np.array([5.0, 4.0, 2.0, 0.5, 0.4, 0.3])
    means = (U * sigma @ V.T).T + 1
    result = fit(means)
    assert result.rank == 3
    assert "98.9 %" in result.rank_reason
    noisy = fit(means, noise=np.full(7, 3.0))
    assert noisy.rank == 2
    assert "noise" in noisy.rank_reason


def test_auto_stops_at_l_minus_2_and_says_so():
    means = np.eye(5, 20) + 1
    result = fit(means)
    assert result.rank == 3
    assert "at most L-2 = 3" in result.rank_reason
    assert fit(np.eye(2, 20) + 1).rank == 1
    assert fit(np.eye(3, 20) + 1).rank == 1


def test_auto_with_nothing_but_noise():
    result = fit(np.eye(4, 20) + 1, noise=np.full(4, 100.0))
    assert result.rank == 1
    assert "noise" in result.rank_reason


def test_noise_correction_finds_the_true_rank():
    """Two true directions under heavy sampling noise: corrected rank 2, uncorrected more."""
    rng = np.random.default_rng(13)
    L, d, n = 8, 400, 50
    true = 2.0 * rng.normal(size=(L, 2)) @ np.linalg.qr(rng.normal(size=(d, 2)))[0].T + 1
    samples = true[:, None] + rng.normal(size=(L, n, d))
    noise = samples.var(1, ddof=1).sum(1) / n
    assert fit(samples.mean(1), noise=noise).rank == 2
    assert fit(samples.mean(1)).rank > 2


def test_given_and_full_rank():
    means = np.eye(4, 20) + 1
    assert fit(means, rank="full").rank == 3
    assert fit(means, rank=2).rank_reason == "given: 2"
    np.testing.assert_array_equal(fit(means, rank=1).basis[:, 0], fit(means, rank=3).basis[:, 0])


# ---- bad input ---------------------------------------------------------------------------------

GOOD = np.random.default_rng(14).normal(size=(4, 12))
NAMES = ["eng_Latn", "spa_Latn", "swh_Latn", "tur_Latn"]


def with_row(i, row):
    means = GOOD.copy()
    means[i] = row
    return means


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fit(GOOD[:1]), InputError, "1 language of width 12, expected at least 2"),
        (lambda: fit(GOOD[:, :3]), InputError, "4 languages of width 3"),
        (lambda: fit(GOOD[0]), ShapeError, r"means: shape \(12,\)"),
        (lambda: fit("abc"), DtypeError, "means: got str"),
        (lambda: fit(GOOD + 1j), DtypeError, "complex"),
        (lambda: fit(with_row(1, np.nan)), InputError, r"means: NaN or infinite.*1, 0\)"),
        (lambda: fit(with_row(2, GOOD[1]), languages=NAMES), InputError,
         "spa_Latn and swh_Latn have the same mean"),
        (lambda: fit(with_row(3, (GOOD[1] + GOOD[0]) / 2), rank=3, languages=NAMES), InputError,
         "span 2 directions, but rank 3 was asked for; the means of eng_Latn, spa_Latn, tur_Latn"),
        (lambda: fit(with_row(3, 2 * GOOD[1] - GOOD[0]), rank="full", languages=NAMES), InputError,
         "eng_Latn, spa_Latn, tur_Latn depend on each other"),
        (lambda: fit(GOOD, languages=["a", "b", "a", "c"]), InputError, "a given more than once"),
        (lambda: fit(GOOD, languages=NAMES[:3]), ShapeError, "3 names, expected 4"),
        (lambda: fit(GOOD, rank=4), InputError, "rank: got 4"),
        (lambda: fit(GOOD, rank=0), InputError, "rank: got 0"),
        (lambda: fit(GOOD, rank=True), InputError, "rank: got True"),
        (lambda: fit(GOOD, rank="most"), InputError, "rank: got 'most'"),
        (lambda: fit(GOOD, agnostic="none"), InputError, "agnostic: got 'none'"),
        (lambda: fit(GOOD, noise=np.ones(3)), ShapeError, "noise: shape"),
        (lambda: fit(GOOD, noise=-np.ones(4)), InputError, "noise: holds negative"),
        (lambda: fit(GOOD - GOOD.mean(0), rank=1), InputError, 'use agnostic="complement"'),
        (lambda: fit_batch(np.stack([GOOD, with_row(2, GOOD[1])])), InputError, "site 1: lang"),
        (lambda: principal_angles(np.eye(3), np.eye(4)), ShapeError, r"B: shape \(4, 4\)"),
        (lambda: principal_angles(np.ones((4, 2)), np.eye(4)), InputError, "linearly dependent"),
        (lambda: principal_angles(np.eye(4)[:, :0], np.eye(4)), ShapeError, "A: shape"),
        (lambda: principal_angles(np.full((4, 1), np.nan), np.eye(4)), InputError, "A: holds NaN"),
        (lambda: principal_angles(np.ones((2, 3)), np.eye(2)), ShapeError, "1 to 2 columns"),
        (lambda: project(GOOD, GOOD), ShapeError, r"basis: shape \(4, 12\), expected \(12, r\)"),
        (lambda: project(GOOD, np.eye(12), strength=np.nan), InputError, "strength"),
        (lambda: project(GOOD.T, np.eye(4)), DtypeError, "C-contiguous"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_complement_does_not_need_an_agnostic_direction():
    assert fit(GOOD - GOOD.mean(0), rank="full", agnostic="complement").rank == 3


def test_inputs_are_not_modified():
    means, noise = GOOD.copy(), np.ones(4)
    result = fit(means, noise=noise)
    principal_angles(means.T, result.basis)
    project(means, result.basis)
    np.testing.assert_array_equal(means, GOOD)
    np.testing.assert_array_equal(noise, np.ones(4))


def test_result_to_dict():
    result = fit(GOOD, rank=2)
    assert np.shape(result.to_dict()["basis"]) == (12, 2)
    assert result.to_dict()["rank"] == 2


# ---- angles and projection ---------------------------------------------------------------------


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-9, 1e-5, 0.1, np.pi / 4, 1.0, np.pi / 2 - 1e-9])
def test_angles_small_and_large(angle):
    rng = np.random.default_rng(15)
    Q = np.linalg.qr(rng.normal(size=(300, 4)))[0]
    A = Q[:, :2]
    B = np.c_[np.cos(angle) * Q[:, 0] + np.sin(angle) * Q[:, 2], Q[:, 1]]
    mix = rng.normal(size=(2, 2))
    found = principal_angles(A @ mix, B)
    np.testing.assert_allclose(found, [0.0, angle], rtol=1e-12, atol=3e-15 * np.linalg.cond(mix))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_angles_against_reference(a, b, extra, seed):
    rng = np.random.default_rng(seed)
    d = max(a, b) + extra
    A, B = rng.normal(size=(d, a)), rng.normal(size=(d, b))
    found = principal_angles(A, B)
    assert (np.diff(found) >= 0).all()
    np.testing.assert_allclose(found, ref.angles(A, B), atol=1e-9)
    np.testing.assert_allclose(principal_angles(B, A), found, atol=1e-9)
    assert principal_angles(A, A).max() < 1e-10


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 20), st.sampled_from([5, 16, 17, 512, 513]), st.integers(0, 5),
    st.sampled_from(ref.DTYPES), st.floats(-2, 2), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_projection_against_reference(n, d, r, dtype, strength, seed):
    rng = np.random.default_rng(seed)
    X = ref.store(rng.normal(size=(n, d)), dtype)
    M = np.linalg.qr(rng.normal(size=(d, max(r, 1))))[0][:, :r]
    out = project(X, M, strength=strength, **ref.raw(dtype))
    assert out.dtype == X.dtype
    expected = ref.project(ref.value(X, dtype), M, strength)
    np.testing.assert_allclose(
        ref.value(out, dtype), expected, rtol=ref.EPS[dtype], atol=100 * ref.ACC_EPS[dtype]
    )


@pytest.mark.parametrize("dtype", ref.DTYPES)
def test_strength_zero_is_the_identity_and_one_twice_is_one_once(dtype):
    rng = np.random.default_rng(16)
    X = ref.store(rng.normal(size=(3, 4, 50)), dtype)
    X[0, 0, 0] = ref.store(np.array(-0.0), dtype)
    M = np.linalg.qr(rng.normal(size=(50, 3)))[0]
    kw = ref.raw(dtype)
    assert project(X, M, strength=0.0, **kw).tobytes() == X.tobytes()
    once = project(X, M, **kw)
    twice = project(once, M, **kw)
    bound = 4 * ref.EPS[dtype]
    np.testing.assert_allclose(ref.value(twice, dtype), ref.value(once, dtype), atol=bound)
