"""Build backend: setuptools, plus the OpenBLAS wheel where one exists.

A static build requirement would make the build impossible on platforms without such a wheel
and useless where LENS_BLAS names another BLAS, so the question is answered at build time.
"""

import shutil
from pathlib import Path
from typing import Any

from native import blas_requirements
from setuptools import build_meta as _setuptools
from setuptools.build_meta import *  # noqa: F403  (the hooks that stay as they are)


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """Return what setuptools asks for, and the BLAS of this platform."""
    return [*_setuptools.get_requires_for_build_wheel(config_settings), *blas_requirements()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """Return what setuptools asks for, and the BLAS of this platform."""
    return [*_setuptools.get_requires_for_build_editable(config_settings), *blas_requirements()]


def build_wheel(
    wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None
) -> str:
    """Build a wheel of the files that exist now.

    setuptools copies into build/lib and never removes from it, so a module that was deleted, or
    a library of an earlier BLAS choice, would otherwise be shipped.
    """
    for stale in (*Path("build").glob("lib*"), *Path("build").glob("bdist*")):
        shutil.rmtree(stale)
    return _setuptools.build_wheel(wheel_directory, config_settings, metadata_directory)
