"""Build the C extension ``lens._core``; everything else is in pyproject.toml.

Environment: LENS_BLAS=<pkg-config name> chooses a BLAS; SANITIZE, COVERAGE, DEBUG and WERROR
change the compiler flags (see _build/native.py).
"""

import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).parent / "_build"))
from native import clean_rpath, compile_flags, find_blas, switch_flags, vendor

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

if sys.platform == "win32":
    raise SystemExit(
        "lens does not build on Windows yet: its C core needs POSIX threads.\n"
        "Install it inside WSL (Windows Subsystem for Linux) instead."
    )


class BuildExt(build_ext):
    """Find the BLAS only when something is compiled, and carry its libraries along."""

    def build_extension(self, ext: Extension) -> None:
        """Compile and link; always from scratch, since flags are not tracked."""
        import numpy as np

        blas = find_blas()
        target = Path(self.get_ext_fullpath(ext.name))
        self.vendored = target.parent / "_lib"
        # As system headers, the warnings of NumPy and Python stay out of ours.
        headers = [np.get_include(), sysconfig.get_path("include")]
        includes = [flag for header in headers for flag in ("-isystem", header)]
        ext.extra_compile_args = [*compile_flags(), *includes, *blas.cflags]
        ext.extra_link_args = ["-pthread", *switch_flags(), *vendor(blas, self.vendored), "-lm"]
        self.force = True
        self.announce(f"lens: linking {blas.name}", level=2)
        super().build_extension(ext)
        clean_rpath(target, self.vendored)

    def copy_extensions_to_source(self) -> None:
        """Bring the libraries beside the extension for in-place and editable builds."""
        super().copy_extensions_to_source()
        build_py = self.get_finalized_command("build_py")
        folder = Path(build_py.get_package_dir("lens")) / "_lib"
        shutil.rmtree(folder, ignore_errors=True)  # may hold an earlier choice
        if self.vendored.is_dir():
            shutil.copytree(self.vendored, folder)

    def get_outputs(self) -> list[str]:
        """List the libraries too, so that installers know of them."""
        vendored = getattr(self, "vendored", Path("missing"))
        return [*super().get_outputs(), *map(str, sorted(vendored.glob("*")))]


MACROS = [
    ("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"),
    ("NPY_TARGET_VERSION", "NPY_2_0_API_VERSION"),
]
if not FREE_THREADED:  # free-threaded Python has no limited API before 3.15
    MACROS.append(("Py_LIMITED_API", "0x030B0000"))

setup(
    ext_modules=[
        Extension(
            "lens._core",
            sources=sorted(str(path) for path in Path("csrc").glob("*.c")),
            define_macros=MACROS,
            py_limited_api=not FREE_THREADED,
        )
    ],
    cmdclass={"build_ext": BuildExt},
    options={} if FREE_THREADED else {"bdist_wheel": {"py_limited_api": "cp311"}},
)
