"""Bad arrays at the public functions: one error of ours that names the argument and the repair.

Each function is a row of CASES: its arguments as they should be, and what kind each array is. The
wrong ones are made from that. `test_every_public_function_has_a_case` keeps the table complete.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable

import numpy as np
import pytest

from lens import losses, metrics, neurons, pooling, subspace, weights
from lens.errors import DtypeError, InputError, LensError, ShapeError

MODULES = (losses, metrics, neurons, pooling, subspace, weights)
RNG = np.random.default_rng(0)
VIEWS = ("state", "any", "gate")


def states(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Case:
    """A call, its good arguments, and of each array its kind and the letters of its shape.

    Kinds: ``state`` (a view of float storage), ``any`` (the same, where NaN passes), ``gate``
    (where infinity passes), ``number`` (small, converted to float64), ``mask`` (0 and 1), ``whole``
    (integers), ``basis`` (d, r). A letter that two arrays share must agree, and so must the dtypes
    of views, unless ``free`` follows. ``none`` follows where None is allowed.
    """

    call: Callable[..., object]
    arguments: dict[str, object]
    arrays: dict[str, str]

    def has(self, name, flag):
        return flag in self.arrays[name].split()[2:]

    def like(self, name):
        """Whether another array must have the dtype of this one."""
        views = [n for n, spec in self.arrays.items() if spec.split()[0] in VIEWS]
        return len(views) > 1 and name in views and not self.has(name, "free")

    def refused(self, name, bad):
        with pytest.raises(LensError) as caught:
            self.call(**self.arguments | {name: bad})
        message = str(caught.value)
        assert "\n" not in message
        assert caught.value.__cause__ is None
        return caught.value, message


def top_k(a, b):
    return weights.topk_masks({"x": a}, {"x": b}, k=1)


B, T, D, R, L = 5, 4, 12, 2, 3
STATES = {"h": "state Bd", "h0": "state Bd"}
TOKENS = {"h": "state Btd", "h0": "state Btd", "mask": "mask Bt"}
LOSS = {"h": states(B, D), "h0": states(B, D), "basis": np.eye(D)[:, :R], "target": np.ones(R)}
ALIGN = {"h": states(B, D), "pivot": states(B, D), "weights": np.ones(B)}
PAIR = {"a": states(3, 4), "b": states(3, 4)}
COUNTS = {"counts": np.ones((L, 6), int), "tokens": np.full(L, 9)}

CASES = {
    "losses.separate": Case(
        losses.separate,
        LOSS | {"weights": np.ones(B)},
        STATES | {"basis": "basis dr", "target": "number r", "weights": "number B none"},
    ),
    "losses.align mean": Case(
        losses.align,
        ALIGN | {"direction": np.ones(D)},
        {"h": "state Bd", "pivot": "state Bd", "direction": "number d", "weights": "number B none"},
    ),
    "losses.align complement": Case(
        losses.align,
        ALIGN | {"basis": np.eye(D)[:, :R]},
        {"h": "state Bd", "pivot": "state Bd", "basis": "basis dr", "weights": "number B none"},
    ),
    **{
        f"losses.retain {form}": Case(
            losses.retain,
            {"h": states(B, T, D), "h0": states(B, T, D), "mask": np.ones((B, T), int)}
            | {"form": form},
            TOKENS,
        )
        for form in ("token", "token_mean")
    },
    "pooling.pool": Case(
        pooling.pool,
        {"states": states(B, T, D), "mask": np.ones((B, T), bool), "mode": "mean"},
        {"states": "state Btd", "mask": "mask Bt"},
    ),
    "pooling.StreamingMoments": Case(
        lambda X, row_ids_start: pooling.StreamingMoments(D).update(X, row_ids_start),
        {"X": states(B, D), "row_ids_start": 0},
        {"X": "state Bd"},
    ),
    "subspace.fit": Case(
        subspace.fit,
        {"means": RNG.normal(size=(L, D)), "noise": np.zeros(L)},
        {"means": "number Ld", "noise": "number L none"},
    ),
    "subspace.fit_batch": Case(
        subspace.fit_batch,
        {"means": RNG.normal(size=(2, L, D)), "noise": np.zeros((2, L))},
        {"means": "number SLd", "noise": "number SL none"},
    ),
    "subspace.principal_angles": Case(
        subspace.principal_angles,
        {"A": RNG.normal(size=(D, R)), "B": RNG.normal(size=(D, R))},
        {"A": "basis da", "B": "basis db"},
    ),
    "subspace.thin_svd": Case(
        subspace.thin_svd, {"X": RNG.normal(size=(B, D))}, {"X": "number nd"}
    ),
    "subspace.thin_qr": Case(
        subspace.thin_qr, {"X": RNG.normal(size=(D, B))}, {"X": "number dr"}
    ),
    "subspace.project": Case(
        subspace.project,
        {"X": states(B, D), "basis": np.eye(D)[:, :R]},
        {"X": "any *d", "basis": "basis dr"},
    ),
    "metrics.mexa": Case(
        metrics.mexa,
        {"pivot": states(B, D), "other": states(B, D)},
        {"pivot": "state Bd", "other": "state Bd"},
    ),
    "metrics.separability": Case(
        lambda eng, deu: metrics.separability({"eng": eng, "deu": deu}),
        {"eng": states(B, D), "deu": states(B + 1, D)},
        {"eng": "state nd", "deu": "state md"},
    ),
    "neurons.Counts": Case(
        lambda gates, mask: neurons.Counts(D).update(gates, mask),
        {"gates": states(B, T, D), "mask": np.ones((B, T), int)},
        {"gates": "gate Btd", "mask": "mask Bt none"},
    ),
    "neurons.lape": Case(neurons.lape, COUNTS, {"counts": "whole Lm", "tokens": "whole L"}),
    "weights.delta": Case(weights.delta, PAIR, {"a": "any *n", "b": "any *n none"}),
    "weights.sum_of_squares": Case(
        weights.sum_of_squares, PAIR, {"a": "state *n", "b": "state *n none"}
    ),
    "weights.compare": Case(
        lambda a, b, c, d: weights.compare((a, b), (c, d)),
        PAIR | {"c": states(3, 4), "d": states(3, 4)},
        {"a": "state *n", "b": "state *n none", "c": "state *n", "d": "state *n none"},
    ),
    "weights.histogram": Case(weights.histogram, PAIR, {"a": "state *n", "b": "state *n none"}),
    "weights.topk_masks": Case(top_k, PAIR, {"a": "state *n", "b": "state *n none"}),
    "weights.importance": Case(
        lambda a, b: weights.importance(a, b), PAIR, {"a": "state *n", "b": "state *n none"}
    ),
    "weights.count_nonfinite": Case(
        weights.count_nonfinite, {"x": states(3, 4)}, {"x": "any *n"}
    ),
    "weights.combine": Case(
        lambda first, second, weights_: weights.combine([first, second], weights_),
        {"first": states(3, 4), "second": states(3, 4), "weights_": np.ones(2)},
        {"first": "any *n free", "second": "any *n free", "weights_": "number s"},
    ),
}  # fmt: skip
SPOKEN = {"first": "sources[0]", "second": "sources[1]", "weights_": "weights"}
"""What a message calls an argument that has another name here."""
ELSEWHERE = {"Pair", "Unit", "TopK", "mexa_layers", "topk_units"}
"""Tested beside what they are made of: in test_weights.py, test_metrics.py, test_masks.py."""

ROWS = [
    pytest.param(case, name, *spec.split()[:2], id=f"{label} {name}")
    for label, case in CASES.items()
    for name, spec in case.arrays.items()
]


def test_every_public_function_has_a_case():
    have = {label.split()[0] for label in CASES}
    for module in MODULES:
        short = module.__name__.removeprefix("lens.")
        for name in set(module.__all__) - ELSEWHERE:
            item = getattr(module, name)
            result = dataclasses.is_dataclass(item)  # results are made by functions, not by users
            if callable(item) and not result:
                assert f"{short}.{name}" in have, f"add lens.{short}.{name} to CASES"


def test_every_array_argument_has_a_kind():
    for label, case in CASES.items():
        if inspect.isfunction(case.call) and case.call.__name__ != "<lambda>":
            assert set(case.arguments) <= set(inspect.signature(case.call).parameters), label


@pytest.mark.parametrize("label", CASES)
def test_the_good_call_is_good(label):
    case = CASES[label]
    kept = {name: np.copy(case.arguments[name]) for name in case.arrays}
    case.call(**case.arguments)
    for name, before in kept.items():
        np.testing.assert_array_equal(case.arguments[name], before)


def names_of(case, name):
    """An argument, and those that share a letter of its shape: the message may name either."""
    letters = set(case.arrays[name].split()[1])
    return [
        SPOKEN.get(other, other)
        for other, spec in case.arrays.items()
        if letters & set(spec.split()[1])
    ]


def says(message, names, *texts):
    assert any(re.match(rf"{re.escape(n)}(:| and )", message) for n in names), (message, names)
    assert re.search(r"expected|scale|use ", message), message
    for text in texts:
        assert text in message, (text, message)


@pytest.mark.parametrize(("case", "name", "kind", "letters"), ROWS)
def test_wrong_rank(case, name, kind, letters):
    good = np.asarray(case.arguments[name])
    for bad in (good[None], good[0], good.reshape(-1), np.zeros((), good.dtype)):
        rank = bad.ndim == good.ndim
        allowed = letters[0] == "*" and len(case.arrays) == 1  # one array of any shape
        allowed |= name == "X" and kind == "any" and bad.ndim > 0 and bad.shape[-1] == D
        allowed |= name == "counts" and bad.ndim > 2  # (languages, layers, neurons)
        if not rank and not allowed:
            error, message = case.refused(name, bad)
            assert isinstance(error, ShapeError | DtypeError), message
            says(message, names_of(case, name))
            assert re.search(r"shape|scalar|got \w*float|weights of", message), message


@pytest.mark.parametrize(("case", "name", "kind", "letters"), ROWS)
def test_wrong_size(case, name, kind, letters):
    """A letter of two arrays is one size."""
    good = np.asarray(case.arguments[name])
    if letters[0] == "*":
        letters = "*" * (good.ndim - 1) + letters[-1]
    for axis, letter in enumerate(letters):
        others = [n for n, s in case.arrays.items() if letter in s.split()[1] and n != name]
        if others and letter != "*":
            bad = np.ascontiguousarray(np.delete(good, 0, axis))
            error, message = case.refused(name, bad)
            assert isinstance(error, ShapeError), message
            says(message, names_of(case, name), str(bad.shape[axis]))


WRONG_DTYPES = [np.int64, np.bool_, np.complex64, np.dtype("O"), np.dtype("U3"), np.uint16]


@pytest.mark.parametrize(("case", "name", "kind", "letters"), ROWS)
def test_wrong_dtype(case, name, kind, letters):
    good = np.asarray(case.arguments[name])
    for dtype in WRONG_DTYPES:
        bad = np.ones(good.shape, dtype)
        if kind in ("number", "basis") and bad.dtype.kind not in "cU":
            continue  # converted
        if kind in ("mask", "whole") and bad.dtype.kind in "biu":
            continue
        error, message = case.refused(name, bad)
        assert isinstance(error, DtypeError), message
        says(message, [SPOKEN.get(name, name)])
        assert re.search(rf"{re.escape(str(bad.dtype))}|complex|ndarray", message), message


@pytest.mark.parametrize(("case", "name", "kind", "letters"), ROWS)
def test_not_an_array(case, name, kind, letters):
    for bad in (object(), "text"):
        error, message = case.refused(name, bad)
        assert isinstance(error, DtypeError | ShapeError), message
        says(message, [SPOKEN.get(name, name)])
    if case.has(name, "none"):
        case.call(**case.arguments | {name: None})
    elif case.call is losses.align and name in ("basis", "direction"):
        assert "neither of direction and basis" in case.refused(name, None)[1]
    else:
        says(case.refused(name, None)[1], [SPOKEN.get(name, name)])


@pytest.mark.parametrize(
    ("case", "name", "kind", "letters"),
    [row for row in ROWS if row.values[2] in VIEWS],
)
def test_wrong_layout(case, name, kind, letters):
    """Large arrays are never copied silently."""
    good = case.arguments[name]
    raw = np.zeros(good.nbytes + 1, np.uint8)[1:].view(good.dtype).reshape(good.shape)
    for bad, texts in (
        (np.repeat(good, 2, axis=-1)[..., ::2], ("strides", "expected a C-contiguous")),
        (np.asfortranarray(good), ("strides", "expected a C-contiguous")),
        (good.astype(good.dtype.newbyteorder()), (">f4", "expected native")),
        (raw, ("aligned", "float32")),
        (good.astype(np.float64), ("float64", "float32")),
    ):
        if bad.dtype == np.float64 and not case.like(name):
            continue
        error, message = case.refused(name, bad)
        assert isinstance(error, DtypeError), message
        says(message, names_of(case, name), *texts)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("case", "name", "kind", "letters"),
    [row for row in ROWS if row.values[2] in ("state", "number", "basis", "gate")],
)
def test_not_finite(case, name, kind, letters, value):
    if kind == "gate" and not np.isnan(value):
        case.call(**case.arguments | {name: np.full_like(case.arguments[name], value)})
        return  # infinity is above zero, or below
    bad = np.array(case.arguments[name])
    bad[(-1,) * bad.ndim] = value
    error, message = case.refused(name, bad)
    assert isinstance(error, InputError), message
    says(message, [SPOKEN.get(name, name)], "NaN", "expected finite numbers")


def test_overflow_of_finite_numbers_is_told_from_nan():
    big = np.full((B, D), 3e38, np.float32)
    with pytest.raises(InputError, match=r"h and h0: .*overflow; scale them down"):
        losses.separate(big, -big, np.eye(D)[:, :R], np.ones(R))


@pytest.mark.parametrize(
    "label", ["pooling.pool", "losses.retain token", "losses.retain token_mean"]
)
def test_a_mask_without_tokens_is_named(label):
    case = CASES[label]
    error, message = case.refused("mask", np.zeros((B, T), int))
    assert isinstance(error, InputError)
    says(message, ["mask"], "masked out", "expected 1")


@pytest.mark.parametrize(
    ("case", "name", "kind", "letters"), [row for row in ROWS if row.values[2] == "mask"]
)
def test_values_of_masks(case, name, kind, letters):
    for bad in (np.full((B, T), 2), np.full((B, T), -1)):
        _, message = case.refused(name, bad)
        says(message, ["mask"], str(bad[0, 0]))
    _, message = case.refused(name, np.ones((B, T)))
    says(message, ["mask"], "float64")
