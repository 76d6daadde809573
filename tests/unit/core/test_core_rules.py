"""House rules of the C core and of the layers above it, read from the sources."""

import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CSRC = ROOT / "csrc"

LEVELS = {
    "lens.h": 0, "status.c": 0, "dtype.h": 0,
    "parallel.h": 1, "parallel.c": 1, "blas.h": 1, "blas.c": 1, "simd.h": 1,
    "kernels.h": 2,
    "convert.h": 4, "convert.c": 4, "module.c": 4, "ops.def": 4, "shims.h": 4,
}  # fmt: skip


def level(name):
    """Level of a source file: templates and their instances are 2, families 3."""
    if name in LEVELS:
        return LEVELS[name]
    if name.startswith("py_"):
        return 4
    return 2 if name.endswith(".inc.h") or name.startswith("kernels") else 3


def code(path):
    """Source without comments and string literals."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", path.read_text(), flags=re.DOTALL)
    return re.sub(r'"(?:\\.|[^"\\\n])*"', '""', text)


SOURCES = sorted(p for p in CSRC.iterdir() if p.suffix in {".c", ".h", ".def"})


@pytest.fixture(autouse=True, scope="module")
def sources_exist():
    assert len(SOURCES) > 20, "csrc was not found beside tests"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_includes_only_its_own_level_or_lower(path):
    for name in re.findall(r'#include "([^"]+)"', path.read_text()):
        assert level(name) <= level(path.name), f"{path.name} includes {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_python_stays_in_level_four(path):
    if level(path.name) < 4:
        assert not re.search(
            r"Python\.h|numpy/|\bPy[A-Z]\w*_\w+", path.read_text().replace("PyExc_", "")
        )
    if path.name.endswith(".c") and "Python.h" in path.read_text():
        assert path.name in {"convert.c", "module.c", "shims.h"} or path.name.startswith("py_")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_blas_has_one_user(path):
    if path.name != "blas.c":
        assert not re.search(r"\b(scipy_|cblas_|LAPACKE_)|cblas\.h|lapacke\.h", code(path))


def with_templates(path):
    """Source of a file and of the templates it includes, directly or through another one."""
    names = re.findall(r'#include "(\w+\.inc\.h)"', path.read_text())
    return "\n".join([code(path), *(with_templates(CSRC / name) for name in names)])


# A function or table with external linkage: `lens_status lens_pool(...) {`, `lens_ops[] = {`.
DEFINITION = re.compile(
    r"^(?!typedef|static|extern)[A-Za-z_][\w *]*\b(lens_\w+)(?:\([^;{}]*\)|\[\] =)\s*\{", re.M
)


def test_c_files_form_no_circle():
    """Neither by includes nor by who calls whom; CycleError names the files of a circle."""
    text = {path.name: with_templates(path) for path in SOURCES if path.suffix == ".c"}
    home = {}
    for name, source in text.items():
        for symbol in DEFINITION.findall(source):
            assert home.setdefault(symbol, name) == name, f"{symbol} is also defined in {name}"
    assert {"lens_pool", "lens_blas_init", "lens_ops", "lens_return"} <= set(home)
    uses = {
        name: {home[word] for word in re.findall(r"\blens_\w+", source) if word in home} - {name}
        for name, source in text.items()
    }
    assert uses["factor.c"] == {"blas.c", "kernels.c", "status.c"}
    # Macros make the names of the tables of kernels, out of reach of a search for words.
    uses["kernels.c"] |= {name for name in text if name.startswith("kernels_")}
    TopologicalSorter(uses).prepare()
    TopologicalSorter(
        {path.name: re.findall(r'#include "([^"]+)"', path.read_text()) for path in SOURCES}
    ).prepare()


NAMES = "malloc|calloc|realloc|free|alloca|printf|fprintf|puts|getenv|setenv|exit|abort|assert"
FORBIDDEN = rf"\b({NAMES})\s*\("


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_core_owns_nothing_and_says_nothing(path):
    found = re.search(FORBIDDEN, code(path))
    assert found is None, f"{path.name} calls {found.group(1)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_head(path):
    lines = path.read_text().splitlines()
    assert lines[0] == "/* SPDX-License-Identifier: MIT"
    assert all(len(line) <= 130 for line in lines)


def test_no_openmp_and_no_fast_math():
    for path in SOURCES:
        assert not re.search(r"pragma omp|fast-math|Ofast", path.read_text()), path.name


def test_shims_are_short():
    text = "".join(path.read_text() for path in SOURCES if level(path.name) == 4)
    bodies = re.findall(r"^SHIM\((\w+)\) \{\n(.*?)^\}", text, flags=re.DOTALL | re.MULTILINE)
    assert len(bodies) > 10
    for name, body in bodies:
        assert len(body.splitlines()) <= 15, f"shim of {name}"


def python(name):
    """Source of a module of the package, or of all files of a folder; "" for the core itself."""
    folder = ROOT / "lens"
    paths = [folder / f"{name}.py", *sorted((folder / name).glob("*.py"))]
    return "\n".join(path.read_text() for path in paths if path.exists())


def test_torch_is_not_imported_below_the_losses():
    for name in (
        "arrays",
        "stats",
        "subspace",
        "losses",
        "metrics",
        "neurons",
        "weights",
        "resample",
        "errors",
    ):
        source = python(name)
        assert not re.search(r"^\s*(import|from) torch", source, flags=re.MULTILINE), name


def test_lower_layers_do_not_import_upper_ones():
    order = [
        "_core",
        "errors",
        "arrays",
        ("stats", "subspace", "losses", "metrics", "neurons", "weights", "resample"),
    ]
    allowed = set()
    for entry in order:
        names = entry if isinstance(entry, tuple) else (entry,)
        for name in names:
            text = python(name)
            found = set(re.findall(r"^from lens\.(\w+)", text, flags=re.MULTILINE))
            found |= set(re.findall(r"^from lens import (\w+)", text, flags=re.MULTILINE))
            assert found <= allowed | {name}, f"lens/{name} imports {found - allowed}"
        allowed |= set(names)


def test_every_operation_is_in_the_stub():
    ops = re.findall(r"^OP\((\w+),", (CSRC / "ops.def").read_text(), flags=re.MULTILINE)
    stub = (ROOT / "lens" / "_core.pyi").read_text()
    assert set(ops) == set(re.findall(r"^def (\w+)\(", stub, flags=re.MULTILINE))
