"""Every operation of ops.def, called wrongly in every way its spec lets one think of.

A refusal is one line that names operation and argument, says what came and what was expected, and
leaves the outputs as they were.
"""

import re

import numpy as np
import pytest

from lens import _core
from tests.helpers import ops

CALLS = [
    pytest.param(op, code, id=f"{op.name}-{code}") for op in ops.OPS.values() for code in (0, 3)
    if code == 0 or op.has_dtype
]  # fmt: skip
ARRAYS = [
    pytest.param(op, arg, id=f"{op.name}-{arg.name}")
    for op in ops.NUMERIC.values()
    for arg in op.arrays
]
TUPLES = [
    pytest.param(op, arg, id=f"{op.name}-{arg.name}")
    for op in ops.OPS.values()
    for arg in op.args
    if arg.kind == "t"
]
SCALARS = [
    pytest.param(op, arg, id=f"{op.name}-{arg.name}")
    for op in ops.OPS.values()
    for arg in op.args
    if not arg.dims
]


def refused(op, args, error, *texts):
    """Check that the call raises, in one line with every text, and writes nothing."""
    before = [x.tobytes() for x in ops.outputs(op, args) if isinstance(x, np.ndarray)]
    with pytest.raises(error) as caught:
        op.call(*args.values())
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert message.startswith(f"{op.name}: "), message
    assert "\n" not in message
    for text in texts:
        assert text in message, f"{text!r} is not in {message!r}"
    after = [x.tobytes() for x in ops.outputs(op, args) if isinstance(x, np.ndarray)]
    assert after == before
    assert _core.live_blocks() == 0


def swap(args, name, bad):
    return args | {name: bad}


@pytest.mark.parametrize(("op", "code"), CALLS)
def test_the_valid_call_is_valid(op, code):
    """Else the tests below prove nothing; tests/helpers/ops.py has the sizes that must fit."""
    op.call(*ops.valid_call(op, code=code).values())


@pytest.mark.parametrize(("op", "arg"), ARRAYS)
def test_not_an_array(op, arg):
    for code in ops.codes(op):
        args = ops.valid_call(op, code=code)
        good = args[arg.name]
        wrong = [good.tolist(), memoryview(good), 1.0, "x", b"x", (good,)]
        for bad in wrong + [None] * (not arg.optional):
            refused(op, swap(args, arg.name, bad), TypeError, f"'{arg.name}' must be a "
                    "numpy.ndarray", str(type(bad)))  # fmt: skip


@pytest.mark.parametrize(("op", "arg"), [p for p in ARRAYS if p.values[1].optional])
def test_none_is_accepted_where_the_spec_says_so(op, arg):
    args = swap(ops.valid_call(op), arg.name, None)
    try:
        op.call(*args.values())
    except ValueError as error:  # some go together: mean and m2
        assert "must be" not in str(error), error


@pytest.mark.parametrize(("op", "arg"), ARRAYS)
def test_wrong_rank(op, arg):
    args = ops.valid_call(op)
    good = args[arg.name]
    letters = "({})".format(", ".join(arg.dims))
    for bad in (good[None], good[..., None], np.zeros((), good.dtype), good.reshape(-1)):
        if bad.ndim != good.ndim:
            refused(op, swap(args, arg.name, bad), ValueError, f"'{arg.name}' has shape ",
                    f"shape {bad.shape}, expected {letters} = (")  # fmt: skip


@pytest.mark.parametrize(("op", "arg"), ARRAYS)
def test_wrong_size(op, arg):
    """A letter in two places is one size; the message names an argument that has it."""
    for axis, letter in enumerate(arg.dims):
        holders = [a.name for a in op.args if letter in a.dims]
        if len(holders) == 1 and arg.dims.count(letter) == 1:
            continue
        for step in (-1, 1):
            args = ops.valid_call(op)
            shape = list(args[arg.name].shape)
            shape[axis] += step
            bad = np.zeros(shape, args[arg.name].dtype)
            with pytest.raises(ValueError, match=r"has shape .*, expected ") as caught:
                op.call(*swap(args, arg.name, bad).values())
            found = re.match(rf"{op.name}: '(\w+)(\[0\])?' has shape", str(caught.value))
            assert found, caught.value
            assert found[1] in holders


DTYPES = ["f2", "f4", "f8", "i4", "i8", "u1", "u2", "u4", "u8", "?", "c16", "O", "U3", "M8[s]"]


@pytest.mark.parametrize(("op", "arg"), ARRAYS)
def test_wrong_dtype(op, arg):
    for code in ops.codes(op):
        args = ops.valid_call(op, code=code)
        good = args[arg.name]
        for dtype in DTYPES:
            if np.dtype(dtype) != good.dtype:
                bad = np.empty(good.shape, dtype)
                refused(op, swap(args, arg.name, bad), TypeError,
                        f"'{arg.name}' has dtype {bad.dtype}, expected {good.dtype}")  # fmt: skip


def misaligned(x):
    """The same values one byte off."""
    raw = np.zeros(x.nbytes + 1, np.uint8)[1:]
    out = raw.view(x.dtype).reshape(x.shape)
    out[...] = x
    return out


def layouts(good):
    """Arrays of the right shape and dtype that are not plain memory, and what is said of them."""
    wide = np.repeat(good, 2, axis=-1)
    yield wide[..., ::2], "is not C-contiguous: it has strides ", str(wide[..., ::2].strides)
    yield good[::-1], "is not C-contiguous: it has strides ", "numpy.ascontiguousarray"
    if good.ndim > 1:
        yield np.asfortranarray(good), "is not C-contiguous: it has strides ", "ascontiguousarray"
        flat = np.broadcast_to(good[:1], good.shape)
        yield flat, "is not C-contiguous: it has strides ", str(flat.strides)
    if good.itemsize > 1:
        swapped = good.astype(good.dtype.newbyteorder())
        yield swapped, "is not in native byte order: it has dtype ", str(swapped.dtype)
        yield misaligned(good), "is not aligned in memory to its item size, ", str(good.itemsize)


@pytest.mark.parametrize(("op", "arg"), ARRAYS)
def test_wrong_layout(op, arg):
    for code in ops.codes(op):
        args = ops.valid_call(op, code=code)
        for bad, *texts in layouts(args[arg.name]) if args[arg.name].size else ():
            refused(op, swap(args, arg.name, bad), ValueError, f"'{arg.name}' {texts[0]}", texts[1])


@pytest.mark.parametrize(("op", "arg"), ARRAYS)
def test_read_only_is_for_inputs(op, arg):
    args = ops.valid_call(op)
    expected = ops.run(op, ops.valid_call(op))
    args[arg.name].flags.writeable = False
    if arg.output:
        refused(op, args, ValueError, f"'{arg.name}' is read-only, but it is an output",
                "expected a writeable array")  # fmt: skip
    else:
        assert ops.run(op, args) == expected


def placed(base, x, offset):
    """The values of x, as an array of its shape and dtype ``offset`` bytes into ``base``."""
    out = base[offset : offset + x.nbytes].view(x.dtype).reshape(x.shape)
    out[...] = x
    return out


@pytest.mark.parametrize(("op", "arg"), [p for p in ARRAYS if p.values[1].output])
def test_overlapping_output(op, arg):
    for other in op.arrays:
        if other is arg:
            continue
        args = ops.valid_call(op)
        a, b = args[arg.name], args[other.name]
        if not a.size or not b.size:  # nothing to share
            continue
        base = np.zeros(2 * (a.nbytes + b.nbytes) + 32, np.uint8)
        room = (a.nbytes + 15) // 8 * 8  # apart: what one may do
        apart = {arg.name: placed(base, a, 0), other.name: placed(base, b, room)}
        assert ops.run(op, args | apart) == ops.run(op, ops.valid_call(op))
        last = (a.nbytes - 1) // 8 * 8  # the last bytes of one are the first of the other
        for start, end in ((0, 0), (0, last), ((b.nbytes - 1) // 8 * 8, 0)):
            together = {other.name: placed(base, b, end)}
            together[arg.name] = base[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
            refused(op, args | together, ValueError, "output '", "shares memory with '",
                    arg.name, other.name, "expected memory of its own")  # fmt: skip


@pytest.mark.parametrize(("op", "arg"), TUPLES)
def test_wrong_tuple(op, arg):
    args = ops.valid_call(op)
    good = args[arg.name]
    one = f"'{arg.name}[1]' "
    for bad in (list(good), good[0], None, 3):
        refused(op, swap(args, arg.name, bad), TypeError,
                f"'{arg.name}' must be a tuple of arrays", str(type(bad)))  # fmt: skip
    many = tuple(good[:1]) * (ops.LIMITS["LENS_MAX_SOURCES"] + 1)
    refused(op, swap(args, arg.name, many), ValueError, f"'{arg.name}' holds 17 arrays",
            "expected at most 16")  # fmt: skip
    for bad, error, *texts in (
        (None, TypeError, "must be a numpy.ndarray", "NoneType"),
        (good[1].tolist(), TypeError, "must be a numpy.ndarray", "list"),
        (good[1].astype(int), TypeError, "has dtype int64", "expected float32, float64, float16"),
        (good[1][None], ValueError, "has shape (1, ", "expected ("),
        (good[1][:-1], ValueError, "has shape (", f"= ({len(good[1])})"),
        *((x, ValueError, *texts) for x, *texts in layouts(good[1])),
    ):
        refused(op, swap(args, arg.name, (good[0], bad, *good[2:])), error, one, *texts)
    for output in (a for a in op.args if a.output):
        mixed = (*good[:-1], args[output.name])
        if args[output.name].shape == good[0].shape:
            refused(op, swap(args, arg.name, mixed), ValueError,
                    f"'{output.name}' shares memory with '{arg.name}'")  # fmt: skip


LARGE = "expected an integer from 0 to 2**63 - 1"
WRONG_SCALARS = {
    "i": [
        (-1, ValueError, "is -1, expected 0 or more"),
        (-(2**63), ValueError, "is -9223372036854775808, expected 0 or more"),
        (2**63, OverflowError, f"is too large, {LARGE}"),
        (-(2**63) - 1, OverflowError, f"is too large, {LARGE}"),
        (10**5000, OverflowError, f"is too large, {LARGE}"),
        (1.0, TypeError, "must be an integer from 0 to 2**63 - 1, got <class 'float'>"),
        ("1", TypeError, "got <class 'str'>"),
        (None, TypeError, "got <class 'NoneType'>"),
        (np.ones(2, int), TypeError, "got <class 'numpy.ndarray'>"),
    ],
    "r": [
        ("1", TypeError, "must be a real number, got <class 'str'>"),
        (None, TypeError, "got <class 'NoneType'>"),
        (1j, TypeError, "got <class 'complex'>"),
        (10**400, OverflowError, "is too large, expected a real number"),
    ],
    "s": [
        (1, TypeError, "must be a string, got <class 'int'>"),
        (None, TypeError, "got <class 'NoneType'>"),
        (b"baseline", TypeError, "got <class 'bytes'>"),
    ],
}
WRONG_SCALARS["c"] = [
    *WRONG_SCALARS["i"][2:],
    (-1, ValueError, "is -1, expected 0 to 3"),
    (4, ValueError, "is 4, expected 0 to 3"),
    (2**62, ValueError, "is 4611686018427387904, expected 0 to 3"),
]


@pytest.mark.parametrize(("op", "arg"), SCALARS)
def test_wrong_scalar(op, arg):
    args = ops.valid_call(op)
    for bad, error, text in WRONG_SCALARS[arg.kind]:
        refused(op, swap(args, arg.name, bad), error, f"'{arg.name}' ", text)


@pytest.mark.parametrize("op", [pytest.param(op, id=op.name) for op in ops.OPS.values()])
def test_wrong_number_of_arguments(op):
    values = list(ops.valid_call(op).values())
    for bad in ([*values, None], values[:-1], [] if values else [1, 2]):
        if len(bad) != len(values):
            text = f"{op.name}: expected {len(values)} arguments, got {len(bad)}"
            with pytest.raises(TypeError, match=text):
                op.call(*bad)
    with pytest.raises(TypeError, match="keyword"):
        op.call(*values, keyword=1)


def test_errors_of_an_argument_itself_are_not_hidden():
    class Index:
        def __index__(self):
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        _core.fail_allocation(Index())


# ---- what no spec can say ----------------------------------------------------------------------


def test_sizes_that_depend_on_each_other():
    fit = ops.OPS["subspace_fit"]
    for given, text in (
        ({"L": 1, "k": 0}, "size L of 'means' is 1, expected at least 2 and at most 6"),
        ({"L": 7, "k": 6}, "size L of 'means' is 7, expected at least 2 and at most 6"),
        ({"L": 4, "k": 4}, "size k of 'basis' is 4, expected 3"),
    ):
        args = ops.valid_call(fit)
        z = {"S": 6, "d": 6} | given
        for arg in fit.arrays:
            args[arg.name] = np.zeros([z[letter] for letter in arg.dims], arg.dtype(0))
        refused(fit, args, ValueError, text)
    angles = ops.OPS["principal_angles"]
    args = ops.valid_call(angles)
    refused(angles, swap(args, "angles", np.empty(1)), ValueError, "size q of 'angles' is 1, "
            "expected 3")  # fmt: skip
    refused(
        angles,
        swap(args, "A", np.empty((0, 6))),
        ValueError,
        "size a of 'A' is 0, expected at least 1",
    )
    for name, arg in (("weights_dots", "sums"), ("weights_histogram", "counts")):
        op = ops.OPS[name]
        args = ops.valid_call(op)
        refused(op, swap(args, arg, args[arg][:-1].copy()), ValueError, f"size k of '{arg}'")


@pytest.mark.parametrize(
    ("name", "changes", "text"),
    [
        ("pool", {"mode": 3}, "mode = 3"),
        ("pool", {"mode": 2**63 - 1}, "mode = 9223372036854775807"),
        ("moments_update", {"mean": None}, "count = 1"),
        ("moments_merge", {"count_a": 0}, "count_a = 0, count_b = 1"),
        ("lape_select", {"rank": 0}, "rank = 0, keep = 1"),
        ("lape_select", {"rank": 37}, "rank = 37, keep = 1"),
        ("lape_select", {"keep": 7}, "rank = 1, keep = 7"),
        ("weights_select", {"low": 0}, "low = 0, high = 1"),
        ("weights_select", {"low": 2}, "low = 2, high = 1"),
        ("weights_select", {"high": 2**32}, "low = 1, high = 4294967296"),
    ],
)
def test_integers_out_of_their_domain_are_shown(name, changes, text):
    op = ops.OPS[name]
    refused(op, ops.valid_call(op) | changes, ValueError, text)


def test_sizes_whose_product_does_not_fit():
    """Arrays without elements may be long: their workspace would be larger than any memory."""
    op = ops.OPS["project"]
    args = ops.valid_call(op)
    z = {"n": 2**40, "r": 2**40, "d": 0}
    for arg in op.arrays:
        args[arg.name] = np.zeros([z[letter] for letter in arg.dims], arg.dtype(0))
    refused(op, args, MemoryError, f"no memory for a workspace of {2**64 - 1} bytes")


def test_an_empty_array_shares_no_memory():
    op = ops.OPS["weights_delta"]
    base = np.zeros(8, np.float32)
    op.call(base[:0], base[4:4], base[2:2], 0, 1)
