"""The installed package is complete, and its BLAS is its own."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import lens

PACKAGE = Path(lens.__file__).parent
LIBRARIES = PACKAGE / "_lib"
vendored = pytest.mark.skipif(
    not LIBRARIES.is_dir(), reason="built against a BLAS of the system (LENS_BLAS)"
)


def run_outside(code: str, folder: Path) -> str:
    """Run ``code`` in a fresh interpreter whose working directory is ``folder``."""
    env = {k: v for k, v in os.environ.items() if k not in ("LD_LIBRARY_PATH", "LD_PRELOAD")}
    env["PYTHONPATH"] = str(PACKAGE.parent)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def extension() -> Path:
    (path,) = PACKAGE.glob("_core*.so")
    return path


def test_import_outside_the_checkout(tmp_path: Path) -> None:
    code = (
        "import numpy as np, lens.subspace\n"
        "means = np.array([[3.0, 1, 0, 0], [0, 3, 1, 0], [0, 0, 3, 1]])\n"
        "basis = lens.subspace.fit(means, rank=1).basis\n"
        "print(basis.shape, round(float((basis**2).sum()), 12))"
    )
    assert run_outside(code, tmp_path) == "(4, 1) 1.0"


@vendored
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_the_blas_that_is_loaded_is_the_one_carried_along(tmp_path: Path) -> None:
    code = (
        "import lens._core\n"
        "lines = open('/proc/self/maps').read().splitlines()\n"
        "print(*{line.split()[-1] for line in lines if 'openblas' in line}, sep='\\n')"
    )
    ours = {Path(line) for line in run_outside(code, tmp_path).splitlines() if "lens" in line}
    assert ours == {LIBRARIES / "liblens_openblas.so"}


@vendored
@pytest.mark.skipif(not shutil.which("readelf"), reason="needs readelf")
@pytest.mark.skipif(sys.platform != "linux", reason="needs ELF")
def test_extension_links_only_to_its_own_openblas() -> None:
    def dynamic(path: Path, tag: str) -> set[str]:
        out = subprocess.run(["readelf", "-dW", path], capture_output=True, text=True, check=True)
        return set(re.findall(rf"\({tag}\).*\[(.*)\]", out.stdout))

    needed = dynamic(extension(), "NEEDED")
    system = {name for name in needed if re.match(r"(lib(c|m|pthread|gcc_s|asan|ubsan)|ld-)", name)}
    assert needed - system == {"liblens_openblas.so"}
    assert dynamic(extension(), "RUNPATH") | dynamic(extension(), "RPATH") == {"$ORIGIN/_lib"}
    for library in LIBRARIES.glob("*.so*"):
        assert dynamic(library, "SONAME") == {library.name}
        assert library.name.startswith("liblens_")


@vendored
def test_licence_of_openblas_travels_with_it() -> None:
    text = (LIBRARIES / "LICENSE-openblas.txt").read_text(encoding="utf-8")
    assert "OpenBLAS" in text


def test_one_version_everywhere(root: Path) -> None:
    found = {"lens.__version__": lens.__version__}
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    found["CITATION.cff"] = re.search(r"^version: (\S+)", citation, re.M)[1]  # type: ignore[index]
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    found["CHANGELOG.md"] = re.search(r"^## \[(\d\S*)\]", changes, re.M)[1]  # type: ignore[index]
    try:
        found["metadata"] = importlib.metadata.version("lens-lm")
    except importlib.metadata.PackageNotFoundError:
        pass  # used through PYTHONPATH: nothing is installed
    assert len(set(found.values())) == 1, found


def test_constraints_cover_every_requirement(root: Path) -> None:
    import tomllib

    def name(requirement: str) -> str:
        return re.split(r"[\[<>=!~ ;]", requirement)[0].lower().replace("_", "-")

    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {name(r) for r in project["dependencies"]}
    wanted |= {name(r) for extra in project["optional-dependencies"].values() for r in extra}
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {name(line) for line in lines if "==" in line and not line.startswith("#")}
    assert wanted - {"lens-lm"} <= pinned


def test_constraints_pin_the_blas_that_is_built_with(root: Path) -> None:
    native = (root / "_build" / "native.py").read_text(encoding="utf-8")
    pin = re.search(r'BLAS_WHEEL = "(.*)"', native)[1]  # type: ignore[index]
    assert pin in (root / "constraints.txt").read_text(encoding="utf-8").splitlines()


def test_wheel_contents(root: Path) -> None:
    if not (path := os.environ.get("LENS_WHEEL")):
        pytest.skip("no wheel to look into: make wheel")
    with zipfile.ZipFile(root / path) as wheel:
        names = set(wheel.namelist())
    shipped = {n for n in names if n.startswith("lens/") and not n.startswith("lens/_lib/")}
    source = {
        path.relative_to(root).as_posix()
        for path in (root / "lens").rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and "_lib" not in path.parts
        and path.suffix not in (".so", ".dylib")
    }
    extensions = {n for n in shipped if n.endswith(".so")}
    assert extensions == {"lens/_core.abi3.so"}
    assert source - shipped == set(), "files of lens/ that the wheel lacks"
    assert shipped - source - extensions == set(), "files in the wheel that are not in lens/"
    assert {"lens/_lib/liblens_openblas.so", "lens/_lib/LICENSE-openblas.txt"} <= names
    assert any(n.endswith("licenses/LICENSE") for n in names)
