"""Valid calls of every operation of the C core, made from what csrc/ops.def says of it.

A new entry of ops.def is covered by every test that uses this module. Only what a spec cannot say
stands here, in three tables: sizes that depend on each other, values that must fit together, and
who calls BLAS.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lens import _core
from tests.helpers import reference as ref

SPECS = Path(__file__).resolve().parents[2] / "csrc" / "ops.def"

SIZE = 6
"""Size of a letter that nothing else is said of."""

LIMITS = {
    name: int(re.search(rf"#define {name} \(?(\d+)", (SPECS.parent / file).read_text())[1])
    for name, file in {
        "LENS_LANES": "kernels.h",
        "LENS_PIECE": "kernels.h",
        "LENS_TILE": "kernels.h",
        "LENS_MAX_SOURCES": "lens.h",
    }.items()
} | {"LENS_CHUNK": 64 * 1024}

SIZES: dict[str, dict[str, Callable[[dict[str, int]], int]]] = {
    "subspace_fit": {"L": lambda z: max(2, min(z["L"], z["d"], 5)), "k": lambda z: z["L"] - 1},
    "principal_angles": {
        "a": lambda z: max(1, min(z["a"], z["d"], 4)),
        "b": lambda z: max(1, min(z["b"], z["d"], 3)),
        "q": lambda z: min(z["a"], z["b"]),
    },
    "thin_svd": {"k": lambda z: min(z["n"], z["d"])},
    "thin_qr": {"r": lambda z: min(z["r"], z["d"])},
    "separate": {"p": lambda z: z["B"]},
    "resample_gram": {"N": lambda z: max(1, z["N"]), "d": lambda z: max(1, z["d"])},
    "resample_refits": {
        "L": lambda z: 2,
        "N": lambda z: 2 * max(1, z["N"] // 2),
        "F": lambda z: max(1, z["F"]),
        "w": lambda z: z["N"],
    },
    "resample_labels": {"L": lambda z: 2, "N": lambda z: max(2, z["N"])},
    "resample_angles": {
        "L": lambda z: max(2, min(z["L"], 5)),
        "k": lambda z: z["L"] - 1,
        "F": lambda z: z["L"] + 1,
        "r": lambda z: max(1, min(z["r"], z["L"] - 1)),
    },
    "weights_dots": {"k": lambda z: 3},
    "weights_histogram": {"k": lambda z: 1 << 16},
    "weights_settle": {"k": lambda z: 0},  # marks of a valid call hold no 2
    "weights_combine": {"s": lambda z: min(z["s"], 5)},
}
"""Sizes that depend on others, or that are bounded, in this order."""

VALUES: dict[str, dict[str, object]] = {
    "lape": {"tokens": 10},
    "force_isa": {"name": _core.isa()},
    "fail_allocation": {"n": 0},
    "resample_refits": {"rows": lambda z: z["N"] // 2},
    "resample_labels": {"labels": lambda z: np.arange(z["N"]) % 2},
    "resample_angles": {
        "K": lambda z: np.eye(z["L"]),
        "cross": lambda z: np.eye(z["L"], z["L"] + 1),
        "mean_square": 4.0,
    },
}
"""Scalars, and what fills an array, where 1 and random numbers will not do."""

WORK: dict[str, Callable[[dict[str, int]], int]] = {
    "thin_svd": lambda z: z["n"] * z["d"] * z["k"],
    "thin_qr": lambda z: z["d"] * z["r"] ** 2,
    "match_rows": lambda z: z["n"] ** 2 * (z["d"] + 1),
    "resample_gram": lambda z: z["S"] * z["N"] ** 2 * z["d"],
    "resample_refits": lambda z: (z["R"] + z["F"]) * z["N"] ** 2,
    "resample_labels": lambda z: (z["P"] + 1) * z["N"] ** 2,
}
"""Steps of a call where they are not the product of its sizes."""

WITH_BLAS = {
    "subspace_fit", "principal_angles", "thin_svd", "thin_qr",
    "matmul_nt", "matmul_tn",
    "resample_gram", "resample_refits", "resample_angles",
}  # fmt: skip
"""Operations equal to rounding only on another instruction set: the CPU chooses BLAS's kernels."""

IN_PART = {"weights_select", "weights_settle"}
"""They write a part of an output only: the first places, or some of what it holds."""

FOR_TESTS = {"fail_allocation", "live_blocks", "force_isa"}
"""They change or show the state of the module itself."""


@dataclass(frozen=True, slots=True)
class Arg:
    """One ``name:kind[dims]flags`` of a spec."""

    name: str
    kind: str
    dims: str
    output: bool
    optional: bool

    @property
    def is_array(self):
        return bool(self.dims) and self.kind != "t"

    def dtype(self, code):
        """Storage of this argument where the dtype code of the call is ``code``."""
        if self.kind == "x":
            return np.dtype(("f4", "f8", "f2", "u2")[code])
        if self.kind == "a":
            return np.dtype("f8" if ref.DTYPES[code] == "float64" else "f4")
        return np.dtype({"d": "f8", "f": "f4", "u": "u8", "h": "u2", "b": "u1"}[self.kind])


@dataclass(frozen=True, slots=True)
class Op:
    """One entry of ops.def."""

    name: str
    args: tuple[Arg, ...]

    @property
    def call(self):
        return getattr(_core, self.name)

    @property
    def letters(self):
        return sorted({letter for arg in self.args for letter in arg.dims})

    @property
    def has_dtype(self):
        return any(arg.kind == "c" for arg in self.args)

    @property
    def arrays(self):
        return [arg for arg in self.args if arg.is_array]


def _read():
    text = re.sub(r"/\*.*?\*/", "", SPECS.read_text(), flags=re.DOTALL)
    entries = re.findall(r"OP\((\w+),\s*((?:\"[^\"]*\"\s*)+),", text)
    ops = {}
    for name, quoted in entries:
        args = []
        for arg in "".join(re.findall(r'"([^"]*)"', quoted)).split():
            part = re.fullmatch(r"(\w+):(\w)(?:\[([\w,]+)\])?([*?]*)", arg)
            assert part, f"{name}: {arg}"
            dims = (part[3] or "").replace(",", "")
            args.append(Arg(part[1], part[2], dims, "*" in part[4], "?" in part[4]))
        ops[name] = Op(name, tuple(args))
    return ops


OPS: dict[str, Op] = _read()
NUMERIC = {name: op for name, op in OPS.items() if op.arrays}
"""Operations that take arrays."""


def sizes(op, given=None):
    """Size of every letter: as given, else SIZE, then made to fit each other."""
    out = {letter: SIZE for letter in op.letters} | (given or {})
    for letter, rule in SIZES.get(op.name, {}).items():
        out[letter] = rule(out)
    return out


def work(op, z):
    """Roughly the steps of a call of these sizes, or the elements of its largest array."""
    largest = max(math.prod(z[d] for d in arg.dims) for arg in op.args if arg.is_array)
    if op.name in WORK:
        return max(largest, WORK[op.name](z))
    free = [letter for letter in op.letters if letter not in SIZES.get(op.name, {})]
    return max(largest, math.prod(max(z[letter], 1) for letter in free))


def _random(rng, arg, shape, code, fill):
    dtype = arg.dtype(code)
    if fill is not None:
        return np.full(shape, fill, dtype)
    if arg.kind == "b":
        return np.ones(shape, dtype)
    if arg.kind in "uh":
        return rng.integers(0, 5, shape).astype(dtype)
    if arg.kind == "x":
        return ref.store(rng.normal(size=shape), ref.DTYPES[code])
    return rng.uniform(0.05, 1, shape).astype(dtype)


def _tuple(rng, arg, z):
    count, n = (z[letter] for letter in arg.dims)
    items = (ref.store(rng.normal(size=n), ref.DTYPES[i % len(ref.DTYPES)]) for i in range(count))
    return tuple(items)


def valid_call(op, *, code=0, given=None, seed=0, n_threads=1):
    """Arguments of a valid call as a dict in order; outputs are filled with a pattern."""
    rng, z, args = np.random.default_rng(seed), sizes(op, given), {}
    values = {
        name: value(z) if callable(value) else value
        for name, value in VALUES.get(op.name, {}).items()
    }
    for arg in op.args:
        shape = tuple(z[letter] for letter in arg.dims)
        if arg.output:
            args[arg.name] = np.full(shape, 0x5A, arg.dtype(code))
        elif arg.is_array:
            args[arg.name] = _random(rng, arg, shape, code, values.get(arg.name))
        elif arg.kind == "t":
            args[arg.name] = _tuple(rng, arg, z)
        elif arg.kind == "r":
            args[arg.name] = values.get(arg.name, 0.5)
        elif arg.kind == "c":
            args[arg.name] = code
        else:
            args[arg.name] = values.get(arg.name, n_threads if arg.name == "n_threads" else 1)
    return args


def outputs(op, args):
    """Output arrays of a call, in order."""
    return [args[arg.name] for arg in op.args if arg.output and args[arg.name] is not None]


def inputs(op, args):
    """Input arrays of a call, in order, those of tuples too."""
    out = []
    for arg in op.args:
        if not arg.output and arg.dims:
            out += args[arg.name] if arg.kind == "t" else [args[arg.name]]
    return out


def run(op, args):
    """Call; the bytes of every output and the repr of what came back, or of the exception."""
    try:
        value = op.call(*args.values())
    except (ValueError, TypeError, OverflowError) as error:  # LinAlgError is a ValueError
        return [], f"{type(error).__name__}: {error}"
    return [x.tobytes() for x in outputs(op, args)], repr(value)


def codes(op):
    """Dtype codes worth trying."""
    return range(len(ref.DTYPES)) if op.has_dtype else range(1)
