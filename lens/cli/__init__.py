"""The command line: one file per group of verbs."""

from lens.cli.app import main

__all__ = ["main"]
