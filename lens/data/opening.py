"""Open text files, plain or compressed, and say what is wrong with their bytes."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from lens.data.found import SHOWN, Found
from lens.errors import MissingExtraError

COMPRESSED = (".gz", ".xz", ".bz2", ".zst")
"""Endings of compressed files, after the ending that says what they hold."""


def kind(file: Path) -> str:
    """Return the ending that says what a file holds, such as ``.jsonl`` of ``a.jsonl.xz``."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_lines(file: Path, found: Found) -> list[str]:
    """Lines of a UTF-8 file; undecodable ones are reported and kept with marks in their place."""
    content = _bytes(file, found)
    if content is None:
        return []
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        broken = [
            number
            for number, line in enumerate(content.split(b"\n"), start=1)
            if not _decodes(line)
        ]
        listed = ", ".join(map(str, broken[:SHOWN])) + (", ..." if len(broken) > SHOWN else "")
        found.problems.append(f"{file.name}: not UTF-8 in line(s) {listed}; convert it to UTF-8")
        text = content.decode("utf-8-sig", errors="replace")
    # Only line ends separate rows: str.splitlines would also cut at U+2028 and others.
    return [line.rstrip("\r\n") for line in io.StringIO(text, newline="\n")]


def _bytes(file: Path, found: Found) -> bytes | None:
    try:
        content = file.read_bytes()
    except OSError as error:
        found.problems.append(f"{file.name}: cannot be read ({error.strerror})")
        return None
    suffix = file.suffix.lower()
    if suffix not in COMPRESSED:
        return content
    try:
        return _opener(suffix)(content)
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        found.problems.append(
            f"{file.name}: cannot be decompressed ({error}); it is cut off or damaged: fetch or "
            "compress it again"
        )
        return None


def _opener(suffix: str) -> Callable[[bytes], bytes]:
    if suffix == ".zst":
        return _zstd()
    return {".gz": gzip.decompress, ".xz": lzma.decompress, ".bz2": bz2.decompress}[suffix]


def _zstd() -> Callable[[bytes], bytes]:
    """Zstandard is in the standard library from Python 3.14; before, a package brings it."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            decompress: Callable[[bytes], bytes] = import_module(name).decompress
        except ImportError:
            continue
        return _checked(decompress, import_module(name).ZstdError)
    raise MissingExtraError("backports.zstd", "zstd", "reading .zst on this Python")


def _checked(decompress: Callable[[bytes], bytes], error: type[Exception]) -> Callable[..., bytes]:
    def run(content: bytes) -> bytes:
        try:
            return decompress(content)
        except error as problem:
            raise ValueError(str(problem)) from None

    return run


def _decodes(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
