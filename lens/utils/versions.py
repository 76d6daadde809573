"""Versions of Python and of the packages that can change a result."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import lens

PACKAGES = ("numpy", "torch", "transformers", "tokenizers", "safetensors")


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Versions of everything that can change a result."""
    found = {"lens": lens.__version__, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
