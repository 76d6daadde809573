"""What LAPACK says of a failure reaches the user."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FAULTY = r"""
static int fail(int n, double *work, int lwork, int *iwork) {
    if (lwork != -1)
        return 7;
    *work = 1 + 6 * n + 2 * n * n; /* a question of how much room it needs */
    *iwork = 3 + 5 * n;
    return 0;
}
#define NAME(f) int f(int layout, char job, char half, int n, double *a, int lda, double *w, \
                      double *work, int lwork, int *iwork, int liwork) \
    { return fail(n, work, lwork, iwork); }
NAME(LAPACKE_dsyevd_work)
NAME(scipy_LAPACKE_dsyevd_work)
#define SVD(f) int f(int layout, char job, int m, int n, double *a, int lda, double *s, double *u, \
                     int ldu, double *vt, int ldvt, double *work, int lwork, int *iwork) \
    { return fail(m < n ? m : n, work, lwork, iwork) ? 5 : 0; }
SVD(LAPACKE_dgesdd_work)
SVD(scipy_LAPACKE_dgesdd_work)
#define QR(f) int f(int layout, int m, int n, double *a, int lda, double *tau, double *work, \
                    int lwork) \
    { int none; return fail(n, work, lwork, &none) ? -4 : 0; }
QR(LAPACKE_dgeqrf_work)
QR(scipy_LAPACKE_dgeqrf_work)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="preloads a library, as Linux can")
def test_the_info_of_lapack_reaches_the_message(tmp_path):
    """LAPACK gives up on no finite matrix we know of, so one that fails takes its place."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build the failing routine with")
    (tmp_path / "faulty.c").write_text(FAULTY)
    library = tmp_path / "faulty.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "faulty.c"], check=True)
    code = """
from tests.helpers import ops
for name, n in (*(("subspace_fit", n) for n in (1, 2, 7)), ("thin_svd", 1), ("thin_qr", 1)):
    op = ops.OPS[name]
    try:
        op.call(*ops.valid_call(op, n_threads=n).values())
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""
    preload = " ".join(filter(None, [os.environ.get("LD_PRELOAD"), str(library)]))
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=120,
        env=os.environ | {"LD_PRELOAD": preload, "PYTHONPATH": str(root)}, check=True,
    )  # fmt: skip
    said = "LinAlgError: {}: LAPACK did not converge, {}LAPACK info {}"
    assert done.stdout.splitlines() == [
        *[said.format("subspace_fit", "site 0, ", 7)] * 3,
        said.format("thin_svd", "", 5),
        said.format("thin_qr", "", -4),
    ]
