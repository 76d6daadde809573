"""Resampling of what does not fit: one message that names it; nothing given is changed."""

import numpy as np
import pytest

from lens import _core, resample
from lens.errors import DtypeError, InputError, ShapeError
from tests.helpers import reference as ref

GOOD = np.random.default_rng(18).normal(size=(3, 10, 12))
GRAM = resample.gram(GOOD)
UNEQUAL = resample.gram([GOOD[0], GOOD[1][:8]], languages=["eng_Latn", "spa_Latn"])


def with_value(value):
    x = GOOD.copy()
    x[1, 4, 7] = value
    return x


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: resample.gram(GOOD[:1]), InputError, "states: 1 language, expected at least 2"),
        (lambda: resample.gram([]), InputError, "states: 0 languages"),
        (lambda: resample.gram(GOOD[0]), ShapeError, r"states: shape \(10, 12\), expected 3 dim"),
        (lambda: resample.gram(GOOD[:, :1].copy()), InputError, "too few rows .language 0 1"),
        (lambda: resample.gram({"a": GOOD[0], "b": GOOD[1, :1]}), InputError, "too few rows .b 1"),
        (lambda: resample.gram(3), DtypeError, "states: got int"),
        (lambda: resample.gram("ab"), DtypeError, "states: got str"),
        (lambda: resample.gram([GOOD[0], GOOD[1].astype("f4")]), DtypeError, "language 1: float32"),
        (lambda: resample.gram([GOOD[0], GOOD[1, :, :5].copy()]), ShapeError, "language 1: shape"),
        (lambda: resample.gram(GOOD.transpose(0, 2, 1)), DtypeError, "C-contiguous"),
        (lambda: resample.gram(np.zeros((2, 3, 0))), ShapeError, "width 0"),
        (lambda: resample.gram(GOOD, languages=["a", "b"]), ShapeError, "2 names, expected 3"),
        (lambda: resample.gram(GOOD, languages=["a", "b", "a"]), InputError, "a given more than"),
        (lambda: resample.gram({"a": GOOD[0]}, languages=["a"]), InputError, "is a mapping that"),
        (lambda: resample.gram(with_value(np.nan)), InputError,
         "NaN or infinite value in language 1, row 4, column 7"),
        (lambda: resample.gram(with_value(np.inf)), InputError, "language 1, row 4, column 7"),
        (lambda: resample.gram(ref.float_to_bf16(with_value(np.inf)), dtype="bf16"), InputError,
         "language 1, row 4, column 7"),
        (lambda: resample.gram_batch(np.stack([GOOD, with_value(np.nan)])), InputError,
         "in site 1, language 1, row 4"),
        (lambda: resample.gram(with_value(1e200)), InputError, "overflow float64; scale them"),
        (lambda: resample.gram_batch(GOOD), ShapeError, "expected 4 dimensions"),
        (lambda: resample.bootstrap(GOOD, rank=1), InputError, "gram: got ndarray, expected"),
        (lambda: resample.bootstrap(GRAM, rank=3), InputError, "rank: got 3, .* from 1 to 2"),
        (lambda: resample.bootstrap(GRAM, rank=True), InputError, "rank: got True"),
        (lambda: resample.bootstrap(GRAM, rank=1, n_resamples=0), InputError, "n_resamples: got 0"),
        (lambda: resample.bootstrap(GRAM, rank=1, seed=-1), InputError, "seed: got -1"),
        (lambda: resample.bootstrap(GRAM, rank=1, interval=1), InputError, "interval: got 1"),
        (lambda: resample.bootstrap(GRAM, rank=1, n_threads=0), InputError, "n_threads: got 0"),
        (lambda: resample.bootstrap(UNEQUAL, rank=1), InputError,
         "numbers differ .eng_Latn 10, spa_Latn 8.; give parallel rows, or joint=False"),
        (lambda: resample.permutation_spectrum(UNEQUAL), InputError, "numbers differ"),
        (lambda: resample.permutation_spectrum(GRAM, n_permutations=0), InputError, "n_permut"),
        (lambda: resample.stability_curve(GRAM, [], rank=1), InputError, "sizes: empty"),
        (lambda: resample.stability_curve(GRAM, [0], rank=1), InputError, "sizes: got 0"),
        (lambda: resample.stability_curve(GRAM, 5, rank=1), InputError, "sizes: got 5, expected a"),
        (lambda: resample.choose_rank(GRAM, n_permutations=18), InputError, "n_permutations"),
        (lambda: resample.choose_rank(GRAM, n_splits=0), InputError, "n_splits: got 0"),
        (lambda: resample.choose_rank(resample.gram(GOOD[:, :3].copy())), InputError,
         "3 rows in a language, expected at least 4"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def core(**changed):
    """Call resample_angles with good arguments except for those given."""
    K = np.eye(3)[None].copy()
    arguments = {
        "angles": np.empty((1, 1)), "agnostic": np.empty(1), "sigma": np.empty((1, 2)), "K": K,
        "cross": np.zeros((1, 3, 4)), "fit": np.zeros((3, 4)), "mean_square": 1.0, "n_threads": 1,
    }  # fmt: skip
    return _core.resample_angles(*(arguments | changed).values())


def test_core_refuses_sizes_that_do_not_fit():
    core()
    for changed in (
        {"angles": np.empty((1, 3))},
        {"sigma": np.empty((1, 3))},
        {"cross": None},
        {"agnostic": None},
        {"cross": np.zeros((1, 3, 5)), "fit": np.zeros((3, 5))},
    ):
        with pytest.raises(ValueError, match="sizes do not fit"):
            core(**changed)
    K, cross, G = np.empty((1, 2, 2)), np.empty((1, 2, 1)), np.eye(4)
    for rows, width in (([2, 3], 4), ([2, 0], 4), ([1, 3], 2), ([4, 0], 4), ([2, 2], 3)):
        with pytest.raises(ValueError, match="sizes do not fit"):
            _core.resample_refits(
                K, cross, G, np.zeros((1, 4)), np.ones((1, width)), np.array(rows, np.uint64), 1
            )
    for labels, place in (([0, 1, 2, 0], "row 2"), ([0, 0, 0, 0], "permutation 0$")):
        with pytest.raises(ValueError, match=place):
            _core.resample_labels(np.empty((1, 2, 2)), G, np.array([labels], np.uint64), 1)


def test_inputs_are_not_modified():
    x = GOOD.copy()
    gram = resample.gram(x)
    matrix, drift = gram.matrix.copy(), gram.drift.copy()
    resample.bootstrap(gram, rank=2, n_resamples=5)
    resample.permutation_spectrum(gram, n_permutations=5)
    resample.stability_curve(gram, [3], rank=1, n_resamples=5)
    resample.choose_rank(gram, n_resamples=5)
    np.testing.assert_array_equal(x, GOOD)
    np.testing.assert_array_equal(gram.matrix, matrix)
    np.testing.assert_array_equal(gram.drift, drift)
