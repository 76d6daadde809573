"""Every error that lens raises on purpose, in one place.

Each class also derives from the built-in exception a caller would expect, so that ordinary
``except ValueError`` code keeps working. ``exit_code`` is what the command line returns.
"""


class LensError(Exception):
    """Root of all errors raised by lens."""

    exit_code = 2


class InputError(LensError, ValueError):
    """An argument, file or model is not what was expected."""


class ShapeError(InputError):
    """An array has the wrong number of dimensions or the wrong length."""


class DtypeError(InputError, TypeError):
    """An array has a dtype, byte order or memory layout that is not supported."""


class DamagedError(InputError):
    """A file is not as lens wrote it."""


class MissingExtraError(LensError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed; "
            f'install it with: pip install "lens-lm[{extra}]"'
        )


class VerificationError(LensError):
    """A result does not agree with what it is checked against."""

    exit_code = 3


def first_line(error: Exception) -> str:
    """First line of another library's error, or the name of its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
