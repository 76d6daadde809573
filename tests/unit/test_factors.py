"""Thin SVD and thin QR: identities at any shape, rank and scale, and against other routes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lens.errors import DtypeError, InputError, ShapeError
from lens.subspace import thin_qr, thin_svd
from tests.helpers import reference as ref

SHAPES = [(1, 1), (1, 50), (50, 1), (2, 2), (7, 7), (5, 300), (300, 5), (60, 64), (64, 60)]


def matrix(rng, n, d, rank, dtype=np.float64):
    """A random matrix of this rank."""
    return (rng.normal(size=(n, rank)) @ rng.normal(size=(rank, d))).astype(dtype)


def check_svd(X, found, rtol=1e-14):
    """Orthonormal, descending, signs settled, and X itself to rounding of its largest value."""
    left, values, right = found.left, found.singular_values, found.right
    np.testing.assert_allclose(left.T @ left, np.eye(len(values)), atol=1e-13)
    np.testing.assert_allclose(right.T @ right, np.eye(len(values)), atol=1e-13)
    assert (values >= 0).all() and (np.diff(values) <= 0).all()
    assert (right[np.abs(right).argmax(0), np.arange(len(values))] > 0).all()
    size = values[0] * rtol * sum(X.shape)
    np.testing.assert_allclose((left * values) @ right.T, X, rtol=0, atol=size + 1e-322)


def check_qr(X, found, rtol=1e-14):
    Q, R = found.Q, found.R
    np.testing.assert_allclose(Q.T @ Q, np.eye(len(R)), atol=1e-13)
    assert not np.tril(R, -1).any() and (np.diag(R) >= 0).all()
    size = np.abs(X).max(0) * rtol * len(X)  # each column to its own rounding
    assert (np.abs(Q @ R - X) <= size + 1e-322).all()


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("deficient", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_identities(n, d, deficient, dtype):
    k = min(n, d)
    rank = max(1, k // 2) if deficient else k
    X = matrix(np.random.default_rng(n), n, d, rank, dtype)
    kept = X.copy()
    found = thin_svd(X)
    check_svd(X.astype(float), found)
    assert found.left.shape == (n, k) and found.right.shape == (d, k)
    exact = np.linalg.svd(X.astype(float), compute_uv=False)
    np.testing.assert_allclose(found.singular_values, exact, atol=1e-13 * exact[0])
    tall = X if n >= d else np.ascontiguousarray(X.T)
    check_qr(tall.astype(float), thin_qr(tall))
    np.testing.assert_array_equal(X, kept)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(-1060, 1000),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_any_shape_rank_and_scale(n, d, rank, exponent, seed):
    X = np.ldexp(matrix(np.random.default_rng(seed), n, d, rank), exponent)
    check_svd(X, thin_svd(X))
    tall = X if n >= d else np.ascontiguousarray(X.T)
    check_qr(tall, thin_qr(tall))


@pytest.mark.parametrize(("n", "d"), [(6, 6), (5, 12), (12, 5)])
@pytest.mark.parametrize("scale", [1.0, 1e150, 1e-150, 1e-300])
def test_against_long_double(n, d, scale):
    """Vectors too: the singular values are apart."""
    rng = np.random.default_rng(n)
    X = (np.geomspace(1, 1e-3, n)[:, None] * rng.normal(size=(n, d))) * scale
    left, values, right = ref.thin_svd(X / scale)
    signs = np.sign(right[np.abs(right).argmax(0), np.arange(right.shape[1])])
    found = thin_svd(X)
    np.testing.assert_allclose(found.singular_values / scale, values.astype(float), rtol=1e-11)
    np.testing.assert_allclose(found.right, (right * signs).astype(float), atol=1e-10)
    np.testing.assert_allclose(found.left, (left * signs).astype(float), atol=1e-10)
    tall = X if n >= d else np.ascontiguousarray(X.T)
    Q, R = ref.thin_qr(tall / scale)
    found = thin_qr(tall)
    np.testing.assert_allclose(found.Q, Q.astype(float), atol=1e-10)
    np.testing.assert_allclose(found.R / scale, R.astype(float), atol=1e-12)


def test_rank_takes_the_first_and_signs_agree():
    X = np.random.default_rng(3).normal(size=(20, 30))
    whole = thin_svd(X)
    for rank in (1, 7, 20):
        some = thin_svd(X, rank=rank)
        np.testing.assert_array_equal(some.left, whole.left[:, :rank])
        np.testing.assert_array_equal(some.right, whole.right[:, :rank])
        np.testing.assert_array_equal(some.singular_values, whole.singular_values[:rank])
    flipped = thin_svd(-X)
    np.testing.assert_allclose(flipped.right, whole.right, atol=1e-12)
    np.testing.assert_allclose(flipped.left, -whole.left, atol=1e-12)
    assert np.shape(whole.to_dict()["right"]) == (30, 20)


def test_zeros_have_some_completion():
    for shape in ((4, 4), (3, 9), (9, 3)):
        found = thin_svd(np.zeros(shape))
        check_svd(np.zeros(shape), found)
        assert not found.singular_values.any()
    found = thin_qr(np.zeros((9, 3)))
    check_qr(np.zeros((9, 3)), found)
    assert not np.array(found.to_dict()["R"]).any()


def test_columns_of_any_length_keep_their_directions():
    """One of 1e-300 beside one of 1e300: neither is lost."""
    X = np.random.default_rng(4).normal(size=(12, 3)) * [1e300, 1.0, 1e-300]
    found = thin_qr(X)
    check_qr(X, found)
    plain = thin_qr(X / [1e300, 1.0, 1e-300])
    np.testing.assert_allclose(found.Q, plain.Q, atol=1e-13)


def test_torch_tensors_of_any_dtype():
    torch = pytest.importorskip("torch")
    X = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        exact = X.to(dtype).double().numpy()
        np.testing.assert_array_equal(thin_svd(X.to(dtype)).left, thin_svd(exact).left)
        np.testing.assert_array_equal(thin_qr(X.to(dtype)).Q, thin_qr(exact).Q)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: thin_svd(np.ones(3)), ShapeError, r"X: shape \(3,\), expected \(any, any\)"),
        (lambda: thin_svd(np.ones((0, 3))), ShapeError, r"X: shape \(0, 3\), expected at least"),
        (lambda: thin_svd(np.eye(3), rank=4), InputError, "rank: got 4, expected None or an"),
        (lambda: thin_svd(np.eye(3), rank=0), InputError, "rank: got 0"),
        (lambda: thin_svd(np.eye(3), rank=True), InputError, "rank: got True"),
        (lambda: thin_svd(np.eye(3), rank=1.0), InputError, "rank: got 1.0"),
        (lambda: thin_svd(np.eye(3) * 1j), DtypeError, "X: complex numbers"),
        (lambda: thin_svd(np.full((2, 2), 1.7e308)), InputError, "X: .*overflow; scale them down"),
        (lambda: thin_qr(np.full((2, 2), 1.7e308)), InputError, "X: .*overflow; scale them down"),
        (lambda: thin_qr(np.ones((2, 3))), ShapeError, r"X: shape \(2, 3\), expected 1 to 2 c"),
        (lambda: thin_qr(np.ones((2, 0))), ShapeError, r"X: shape \(2, 0\), expected 1 to 2 c"),
        (lambda: thin_qr(np.array([[1.0], [np.nan]])), InputError, r"X: NaN.*\(1, 0\)"),
        (lambda: thin_svd(np.array([[1.0, -np.inf]])), InputError, r"X: NaN.*\(0, 1\)"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
