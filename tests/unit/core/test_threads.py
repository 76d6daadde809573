"""Threads of the C core beside what else a process does: fork, signals, limits, other threads.

Each test runs a small program of its own, so that nothing here can disturb another test.
"""

import os
import subprocess
import sys
import textwrap

import pytest

from tests.conftest import ROOT

HEAD = """
import os, signal, sys, threading, time
import numpy as np
from lens import _core
from tests.helpers import ops

def results(n_threads=4, names=ops.NUMERIC):
    out = []
    for name in names:
        args = ops.valid_call(ops.OPS[name], given={"n": 40, "B": 40}, n_threads=n_threads)
        out.append(ops.run(ops.OPS[name], args))
    return out
"""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")


def program(body, **environ):
    """Run a program; its output. It must end well within a minute."""
    code = HEAD + textwrap.dedent(body)
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environ,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_fork
def test_fork_between_calls():
    """The child of a process that has used threads uses them again, and so does the parent."""
    assert "parent and child agree" in program("""
        before = results()
        child = os.fork()
        if child == 0:
            os._exit(0 if results() == before and results(1) == before else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert results() == before
        print("parent and child agree")
    """)


# ASan's own allocator may hold a lock in the other thread, which a child would wait for in vain.
needs_no_asan = pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""), reason="ASan's allocator does not survive a fork"
)


@needs_fork
@needs_no_asan
def test_fork_while_another_thread_is_inside_the_core():
    """Threads live for one call and hold no lock, so a child never waits for one it has not."""
    assert "children agree" in program("""
        names = ["weights_dots", "moments_update", "pool"]
        before, stop = results(names=names), threading.Event()
        args = ops.valid_call(ops.OPS["weights_dots"], given={"n": 1 << 20}, n_threads=3)
        def busy():
            while not stop.is_set():
                _core.weights_dots(*args.values())
        thread = threading.Thread(target=busy)
        thread.start()
        for _ in range(20):
            child = os.fork()
            if child == 0:
                os._exit(0 if results(names=names) == before else 1)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
        stop.set()
        thread.join()
        print("children agree")
    """)


@needs_fork
def test_a_pool_of_forked_processes():
    assert "workers agree" in program("""
        import multiprocessing
        before = results()
        with multiprocessing.get_context("fork").Pool(3) as pool:
            assert all(found == before for found in pool.map(results, [1, 2, 3, 4, 5]))
        print("workers agree")
    """)


def test_an_interrupt_lands_after_the_call():
    """Ctrl-C during a long call: the call ends whole, then KeyboardInterrupt is raised."""
    out = program("""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        n = 1000
        while True:  # until the call is long enough for the signal to come in its midst
            args = ops.valid_call(ops.OPS["match_rows"], given={"n": n, "d": 64}, n_threads=2)
            _core.match_rows(*args.values())
            whole = [x.tobytes() for x in ops.outputs(ops.OPS["match_rows"], args)]
            for x in ops.outputs(ops.OPS["match_rows"], args):
                x[...] = 0
            sent = []
            def send():
                time.sleep(0.1)
                sent.append(time.monotonic())
                os.kill(os.getpid(), signal.SIGINT)
            thread = threading.Thread(target=send)
            ended = None
            try:
                thread.start()
                _core.match_rows(*args.values())
                ended = time.monotonic()  # not reached when the signal came during the call
                thread.join()
                time.sleep(1)
            except KeyboardInterrupt:
                pass
            thread.join()
            if ended is None and sent:
                break
            n *= 2
        found = [x.tobytes() for x in ops.outputs(ops.OPS["match_rows"], args)]
        assert found == whole, "half-written"
        _core.match_rows(*args.values())  # and the core goes on working
        print("interrupted after the call")
    """)
    assert "interrupted after the call" in out


def test_a_signal_is_handled_by_the_thread_of_the_interpreter():
    """Threads of the core block all signals: a handler never runs on one of them."""
    assert "handled" in program("""
        seen = []
        def handler(number, frame):
            seen.append(threading.get_ident())
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
        args = ops.valid_call(ops.OPS["weights_dots"], given={"n": 1 << 20}, n_threads=8)
        end = time.monotonic() + 60
        while len(seen) < 20 and time.monotonic() < end:
            _core.weights_dots(*args.values())
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert len(seen) >= 20 and set(seen) == {threading.get_ident()}
        print("handled")
    """)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory differ elsewhere")
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="ASan maps terabytes")
def test_threads_that_cannot_be_started_are_done_without():
    """No memory for the stacks of new threads: fewer work, with the same bits.

    Without BLAS: OpenBLAS ends the process where it finds no room for one more thread's buffer.
    """
    assert "done without" in program("""
        import resource
        from functools import partial
        names = [n for n in ops.NUMERIC if n not in ops.WITH_BLAS | {"match_rows"}]
        results = partial(results, names=names)
        before = results(1)
        pages = int(open("/proc/self/statm").read().split()[0])
        room = pages * resource.getpagesize() + (24 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))
        assert results(64) == before
        failed = 0
        try:
            for _ in range(64):
                threading.Thread(target=time.sleep, args=(1,)).start()
        except RuntimeError:
            failed = 1
        assert failed, "the limit does not hold"
        print("done without")
    """)
