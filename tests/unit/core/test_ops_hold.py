"""What holds for every operation of ops.def: inputs stay, references stay, memory comes back."""

import gc
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lens import _core
from tests.helpers import ops
from tests.unit.core.test_ops_refuse import layouts, swap

ALL = [pytest.param(op, id=op.name) for op in ops.OPS.values()]
NUMERIC = [pytest.param(op, id=op.name) for op in ops.NUMERIC.values()]
ALLOCATING = [p for p in ALL if p.values[0].name not in ops.FOR_TESTS - {"force_isa"}]
TIMES = 1000


@pytest.fixture(autouse=True)
def no_failure_is_left_over():
    """A test that fails half-way must not make the next one fail."""
    yield
    _core.fail_allocation(0)


@pytest.mark.parametrize("op", NUMERIC)
def test_inputs_are_not_modified(op):
    for code in ops.codes(op):
        for n_threads in (1, 3):
            args = ops.valid_call(op, code=code, n_threads=n_threads, given={"B": 40, "n": 40})
            before = [x.tobytes() for x in ops.inputs(op, args)]
            op.call(*args.values())
            assert [x.tobytes() for x in ops.inputs(op, args)] == before


@pytest.mark.parametrize("op", [p for p in NUMERIC if any(a.output for a in p.values[0].args)])
def test_every_output_is_written_and_nothing_beside_it(op):
    """Outputs differ in no byte whatever they held before; the bytes around them stay."""
    results = []
    for fill in (0x00, 0xFF):
        args, rooms = ops.valid_call(op), []
        for arg in op.args:
            if arg.output:
                like = args[arg.name]
                room = np.full(like.nbytes + 128, fill, np.uint8)
                rooms.append(room)
                args[arg.name] = room[64 : 64 + like.nbytes].view(like.dtype).reshape(like.shape)
        op.call(*args.values())
        assert all((r[:64] == fill).all() and (r[-64:] == fill).all() for r in rooms)
        results.append([x.tobytes() for x in ops.outputs(op, args)])
    assert results[0] == results[1] or op.name in ops.IN_PART


def failing(op):
    """Calls that are refused, early and late: each a dict of arguments."""
    args = ops.valid_call(op)
    for arg in op.args:
        yield swap(args, arg.name, object())
        if arg.is_array:
            good = args[arg.name]
            yield swap(args, arg.name, good[None])
            yield from (swap(args, arg.name, bad) for bad, *_ in layouts(good))
        if arg.is_array and not arg.output and good.dtype.kind == "f":
            yield swap(args, arg.name, np.full_like(good, np.nan))
        if arg.kind == "t":
            good = args[arg.name]
            yield swap(args, arg.name, (*good[:-1], None))
            yield swap(args, arg.name, good * 5)


def attempt(op, args):
    try:
        op.call(*args.values())
    except (TypeError, ValueError, OverflowError):
        return True
    return False


def objects(op, calls):
    """Everything whose references are counted."""
    held = [None, True, op.call, *(np.dtype(t) for t in ("f2", "f4", "f8", "u1", "u2", "u8"))]
    for args in calls:
        for value in args.values():
            held += [value, *(value if isinstance(value, tuple) else ())]
    return list({id(x): x for x in held}.values())


@pytest.mark.parametrize("op", ALL)
def test_references_and_memory_are_stable(op):
    """1000 calls that succeed and 1000 that fail, spread over every way to fail."""
    valid = ops.valid_call(op)
    wrong = [args for args in failing(op) if attempt(op, args)]
    assert wrong or not op.args
    held = objects(op, [valid, *wrong])

    def once(times):
        for _ in range(times):
            op.call(*valid.values())
        for i in range(times if wrong else 0):
            attempt(op, wrong[i % len(wrong)])

    def grown():
        counts, size = [sys.getrefcount(x) for x in held], tracemalloc.get_traced_memory()[0]
        once(TIMES)
        gc.collect()
        after = [sys.getrefcount(x) for x in held]
        more = max(abs(a - b) for a, b in zip(counts, after, strict=True))
        return more, tracemalloc.get_traced_memory()[0] - size

    once(50)
    tracemalloc.start()
    try:
        once(50)
        # caches of the interpreter and of NumPy fill once; a leak grows every time
        rounds = [grown() for _ in range(3)]
    finally:
        tracemalloc.stop()
    assert min(references for references, _ in rounds) < TIMES // 10, rounds
    assert min(size for _, size in rounds) < 16 * TIMES, rounds
    assert _core.live_blocks() == 0


@pytest.mark.parametrize("op", ALLOCATING)
def test_memory_error_at_any_allocation(op):
    """Fail the first request, the second and so on until none is left to fail."""
    for code in ops.codes(op):
        expected = ops.run(op, ops.valid_call(op, code=code))
        args = ops.valid_call(op, code=code)
        held = objects(op, [args])
        before, n, left = [sys.getrefcount(x) for x in held], 0, 0
        while left == 0:
            n += 1
            assert n < 100, "the operation never succeeds"
            _core.fail_allocation(n)
            try:
                result = ops.run(op, args)
            except MemoryError:
                left = _core.fail_allocation(0)
                assert left == 0
            else:
                left = _core.fail_allocation(0)
                assert left > 0, "a refused request went unnoticed"
            assert _core.live_blocks() == 0
        assert result == expected
        after = [sys.getrefcount(x) for x in held]
        assert max(abs(a - b) for a, b in zip(before, after, strict=True)) < 8


def requests(op):
    """How many requests for memory a valid call makes."""
    _core.fail_allocation(1000)
    ops.run(op, ops.valid_call(op))
    return 1000 - _core.fail_allocation(0)


def test_workspaces_and_values_are_requests():
    """The switch is wired to what it should be wired to, or the test above would prove nothing."""
    assert requests(ops.OPS["pool"]) == 0
    assert requests(ops.OPS["project"]) == 1  # a workspace
    assert requests(ops.OPS["retain_token"]) == 2  # a workspace, and the value
    assert requests(ops.OPS["isas"]) == 2 + len(_core.isas())
    _core.fail_allocation(1)
    op = ops.OPS["project"]
    with pytest.raises(MemoryError, match="project: no memory for a workspace of 288 bytes"):
        op.call(*ops.valid_call(op).values())


def test_exactly_one_request_of_many_threads_fails():
    _core.fail_allocation(500)

    def call(i):
        op = ops.OPS["project"]
        try:
            op.call(*ops.valid_call(op).values())
        except MemoryError:
            return 1
        return 0

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(call, range(1000))) == 1
    assert _core.fail_allocation(0) == 0
    assert _core.live_blocks() == 0
