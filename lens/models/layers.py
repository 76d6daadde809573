"""Names of the sites where a state is read: block outputs, and the site after the final norm."""

import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from lens.errors import InputError

FINAL = "final"

LayerSpec: TypeAlias = str | int | Sequence[int]
SiteSpec: TypeAlias = str | int | Sequence[str | int]

_SLICE = re.compile(r"(-?\d+)?:(-?\d+)?")


def resolve_layers(spec: LayerSpec, n_blocks: int) -> tuple[int, ...]:
    """Turn a layer specification into block numbers.

    Parameters
    ----------
    spec : str, int or sequence of int
        Half-open slices and single numbers separated by commas (``"-2:"``, ``"10:20,24"``),
        ``"all"``, one number, or several numbers. Negative numbers count from the last block.
    n_blocks : int
        Number of blocks of the model.

    Returns
    -------
    tuple of int
        0-based block numbers, ascending, without repeats.

    Raises
    ------
    InputError
        When the text cannot be read, a block does not exist, or nothing is selected.
    """
    found: set[int] = set()
    for part in _parts(spec):
        found.update(_range(part, n_blocks) if isinstance(part, str) else [_block(part, n_blocks)])
    if not found:
        raise InputError(
            f"layers {spec!r} select no block; this model has {n_blocks} blocks, "
            f"0 to {n_blocks - 1} (slices are half-open: '-2:' is the last two)"
        )
    return tuple(sorted(found))


def resolve_sites(spec: SiteSpec, n_blocks: int) -> tuple[str, ...]:
    """Turn a site specification into site names.

    Parameters
    ----------
    spec : str, int or sequence of those
        ``"all"`` (every block and ``"final"``), ``"block.7"``, ``"block.-1"``, ``7``, ``-1``,
        ``"final"``, or a layer slice such as ``"-2:"``.
    n_blocks : int
        Number of blocks of the model.

    Returns
    -------
    tuple of str
        Canonical names, blocks ascending and ``"final"`` last.

    Raises
    ------
    InputError
        When a site does not exist.
    """
    items: Iterable[str | int] = [spec] if isinstance(spec, str | int) else spec
    blocks: set[int] = set()
    final = False
    for item in items:
        if item == FINAL:
            final = True
        elif item == "all":
            final = True
            blocks.update(range(n_blocks))
        elif isinstance(item, str) and item.startswith("block."):
            blocks.add(_block(item.removeprefix("block."), n_blocks))
        else:
            blocks.update(resolve_layers(item, n_blocks))
    if not blocks and not final:
        raise InputError("no site was asked for; expected 'all', 'final', 'block.N' or a slice")
    return (*(block_site(i) for i in sorted(blocks)), *([FINAL] if final else []))


def resolve_site(spec: str | int, sites: Sequence[str]) -> str:
    """Find one site among those that exist (``-1`` is the last block, not ``"final"``)."""
    text = str(spec)
    if text in sites:
        return text
    number = text.removeprefix("block.")
    blocks = [site for site in sites if site != FINAL]
    if re.fullmatch(r"-\d+", number) and int(number) >= -len(blocks):
        return blocks[int(number)]
    if re.fullmatch(r"\d+", number) and block_site(int(number)) in sites:
        return block_site(int(number))
    raise InputError(f"unknown site {spec!r}; this one has: {', '.join(sites)}")


def block_site(index: int) -> str:
    """Name of the output of block `index` (0-based)."""
    return f"block.{index}"


def block_index(site: str) -> int | None:
    """Block number of a canonical site name, None for ``"final"``."""
    return None if site == FINAL else int(site.removeprefix("block."))


def _parts(spec: LayerSpec) -> list[str | int]:
    if isinstance(spec, bool):
        raise InputError(f"layers {spec!r}: expected text such as '-2:', a number or numbers")
    if isinstance(spec, str):
        return [part.strip() for part in spec.split(",") if part.strip()]
    return [spec] if isinstance(spec, int) else list(spec)


def _range(part: str, n_blocks: int) -> Iterable[int]:
    if part == "all":
        return range(n_blocks)
    slice_match = _SLICE.fullmatch(part)
    if slice_match is None:
        return [_block(part, n_blocks)]
    ends = [int(group) if group else None for group in slice_match.groups()]
    for end in ends:
        if end is not None and not -n_blocks <= end <= n_blocks:
            raise InputError(
                f"layers '{part}' reach outside the model, which has {n_blocks} blocks, "
                f"0 to {n_blocks - 1}"
            )
    return range(n_blocks)[slice(*ends)]


def _block(value: str | int, n_blocks: int) -> int:
    try:
        index = int(value)
    except ValueError:
        raise InputError(
            f"layer {value!r} is not a number or a slice; expected for instance '-2:', '10:20,24'"
        ) from None
    if not -n_blocks <= index < n_blocks:
        raise InputError(
            f"unknown layer {index}; this model has {n_blocks} blocks, 0 to {n_blocks - 1} "
            f"(or -{n_blocks} to -1)"
        )
    return index % n_blocks
