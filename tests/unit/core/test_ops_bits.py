"""Every operation of ops.def gives the same bits for any instruction set and number of threads.

Shapes are taken around the borders where code paths change: no element, one, a lane, a piece, a
tile and a chunk, each less one and more one.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lens import _core
from tests.helpers import ops

NUMERIC = [pytest.param(op, id=op.name) for op in ops.NUMERIC.values()]
MOST = 300_000
"""Steps of the largest call."""

BORDERS = sorted(
    {0, 1, 2, 3}
    | {n + step for n in (*ops.LIMITS.values(),) for step in (-1, 0, 1)}
    | {2 * ops.LIMITS["LENS_CHUNK"] + 1}
)


@pytest.fixture(autouse=True)
def isa_in_use():
    """Restore the instruction set after a test that forces others."""
    before = _core.isa()
    yield
    _core.force_isa(before)


@st.composite
def calls(draw, op):
    """Sizes, dtype and seed; one letter is at a border, the others are small."""
    z = {letter: draw(st.integers(0, 5)) for letter in op.letters}
    for letter in draw(st.permutations(op.letters))[: draw(st.integers(1, 2))]:
        z[letter] = draw(st.sampled_from(BORDERS))
    while ops.work(op, ops.sizes(op, z)) > MOST:
        z[max(z, key=z.get)] //= 2
    return z, draw(st.sampled_from(list(ops.codes(op)))), draw(st.integers(0, 2**32 - 1))


def close(op, first, other):
    """Equal bits; to rounding where BLAS is at work, as bases up to their sign."""
    if op.name not in ops.WITH_BLAS:
        return first == other
    if first[1] != other[1] or "Error" in first[1]:
        return first == other
    for arg, a, b in zip((a for a in op.args if a.output), first[0], other[0], strict=True):
        x, y = (np.frombuffer(raw, arg.dtype(0)).astype(float) for raw in (a, b))
        if not np.allclose(np.abs(x), np.abs(y), rtol=1e-6, atol=1e-6):
            return False
    return True


@pytest.mark.parametrize("op", NUMERIC)
def test_any_instruction_set_and_number_of_threads(op):
    @settings(max_examples=25, deadline=None)
    @given(calls(op))
    def check(call):
        z, code, seed = call
        results = {}
        for isa in _core.isas():
            _core.force_isa(isa)
            for n_threads in (1, 2, 7) if isa == _core.isas()[-1] else (1,):
                args = ops.valid_call(op, code=code, given=z, seed=seed, n_threads=n_threads)
                results[isa, n_threads] = ops.run(op, args)
        first = results["baseline", 1]
        for how, other in results.items():
            assert close(op, first, other), (how, z, first[1], other[1])

    check()


@pytest.mark.parametrize("op", NUMERIC)
def test_chunks_are_many_and_threads_many(op):
    """One call that is split for sure, with more threads than chunks and than processors."""
    z = {letter: 1 for letter in op.letters}
    while ops.work(op, ops.sizes(op, z)) < 4 * MOST:
        smallest = min((n for n in z if n not in ops.SIZES.get(op.name, {})), key=z.get)
        z[smallest] *= 2
    results = [ops.run(op, ops.valid_call(op, given=z, n_threads=n)) for n in (1, 3, 64, 2**63 - 1)]
    assert "Error" not in results[0][1], results[0][1]
    assert all(result == results[0] for result in results), op.name


def test_parallel_callers_of_every_operation():
    """All operations at once, each from several threads: nobody disturbs anybody."""
    jobs = [
        (op, code, n_threads)
        for op in ops.NUMERIC.values()
        for code in ops.codes(op)
        for n_threads in (1, 3)
    ]
    expected = [ops.run(op, ops.valid_call(op, code=c, n_threads=n)) for op, c, n in jobs]
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(len(jobs)), 5))

    def call(i):
        op, code, n_threads = jobs[i]
        return ops.run(op, ops.valid_call(op, code=code, n_threads=n_threads)) == expected[i]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, order))
