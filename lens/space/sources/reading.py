"""Find and read states in a file or folder, whichever form they are in."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lens.data.languages import canonical, is_language
from lens.errors import InputError, ShapeError
from lens.models.sites import FINAL
from lens.space.sources.arrays import Float64, as_states, read_tensors
from lens.space.sources.artifacts import read_artifact
from lens.space.sources.dumps import common_first_token, layers_of, read_dumps

_ENDINGS = (".npy", ".safetensors", ".pkl", ".pt")
_SITE = re.compile(r"block\.\d+")
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class States:
    """States made elsewhere.

    Attributes
    ----------
    states : dict
        Site to language (as typed) to (n, d) float64, as `Space.from_states` takes them.
    warnings : tuple of str
        What to think about before they are used.
    """

    states: dict[str, dict[str, Float64]]
    warnings: tuple[str, ...] = ()


def read_states(
    path: str | Path,
    *,
    sites: Sequence[str] | None = None,
    languages: Sequence[str] | None = None,
    pooling: str = "mean",
    ignore_tokens: Collection[int] = (),
    tokens_first: bool | None = None,
    parallel: bool = True,
) -> States:
    """Read states that another program made.

    Parameters
    ----------
    path : str or Path
        A folder with one entry per language: ``<code>.npy`` of (n, d) or (n, sites, d);
        ``<code>.safetensors`` with one tensor per site; a folder ``<code>/`` of requests as vLLM
        dumps them; ``<code>.pkl`` of MEXA or Lens; ``<code>.pt`` of LRD (also
        ``<code>/acts/<code>.pt``). Or one ``.safetensors`` file with tensors ``<site>/<code>``.
    sites : sequence of str, optional
        Names of the sites, ``block.N`` or ``final``, where the source does not name them.
    languages : sequence of str, optional
        Languages to read; all by default.
    pooling : str
        How tokens of a dump become one vector, or which vectors of MEXA.
    ignore_tokens, tokens_first
        As in `lens.space.sources.dumps.read_dumps`.
    parallel : bool
        Whether every language must have equally many rows.

    Returns
    -------
    States
        Checked: names, shapes, dtypes, finite values, numbers of rows.

    Raises
    ------
    InputError
        When something is missing, damaged or does not fit; the message says what to do.

    Notes
    -----
    vLLM's layer id k is the state after k blocks, so ``block.(k-1)``.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise InputError(f"states '{path}' do not exist; expected a folder or a .safetensors file")
    for site in sites or ():
        if site != FINAL and not _SITE.fullmatch(site):
            raise InputError(f"site {site!r}: expected names such as block.7 or final")
    warnings: list[str] = []
    table: dict[str, dict[str, Float64]] = {}
    if place.is_file():
        table = _one_file(place)
    else:
        entries = _entries(place)
        _require(entries, languages, place.name)
        for typed, entry in entries.items():
            if languages is not None and canonical(typed) not in map(canonical, languages):
                continue
            read = _language(
                entry, typed, sites, pooling, ignore_tokens, tokens_first, warnings
            )  # fmt: skip
            for site, block in read.items():
                table.setdefault(site, {})[typed] = block
    table = _chosen(table, sites, languages, place.name)
    _check(table, parallel)
    return States(table, tuple(dict.fromkeys(warnings)))


def _entries(folder: Path) -> dict[str, Path]:
    """Files and folders that are named after a language, by that name."""
    found: dict[str, Path] = {}
    for item in sorted(folder.iterdir()):
        if item.name.startswith(".") or (item.is_file() and item.suffix not in _ENDINGS):
            continue
        typed = _typed(item.name.split(".", 1)[0])
        if typed is None:
            continue
        if typed in found:
            raise InputError(
                f"'{folder.name}' has {found[typed].name} and {item.name} for {typed}; keep one"
            )
        found[typed] = item
    if not found:
        names = ", ".join(sorted(item.name for item in folder.iterdir())[:_SHOWN]) or "nothing"
        raise InputError(
            f"no states of a language in '{folder.name}' (it has: {names}); expected "
            "swh_Latn.npy, .safetensors, .pkl or .pt, or a folder swh_Latn/ of dumped requests"
        )
    return found


def _typed(stem: str) -> str | None:
    """Language that a name begins with: "en_hidden_last" is English."""
    parts = stem.split("_")
    for stop in range(len(parts), 0, -1):
        if is_language("_".join(parts[:stop])):
            rest = parts[stop:]
            # "de_direction" of the published code is no state, and "sw_extra" is a guess.
            return "_".join(parts[:stop]) if rest in ([], ["hidden", "last"]) else None
    return None


def _language(
    entry: Path,
    typed: str,
    sites: Sequence[str] | None,
    pooling: str,
    ignore_tokens: Collection[int],
    tokens_first: bool | None,
    warnings: list[str],
) -> dict[str, Float64]:
    """Read one language in whichever form it is."""
    if entry.is_dir():
        files = sorted(entry.glob("*.safetensors"), key=_natural)
        saved = entry / "acts" / f"{entry.name}.pt"
        if not files and saved.is_file():
            return read_artifact(saved, pooling=pooling)
        if not files:
            raise InputError(f"'{entry.name}' has no *.safetensors; expected dumped requests")
        return _dumped(files, typed, sites, pooling, ignore_tokens, tokens_first, warnings)
    if entry.suffix == ".npy":
        return _numpy(entry, sites)
    if entry.suffix == ".safetensors":
        tensors = read_tensors(entry.read_bytes(), entry.name)
        if len(tensors) == 1 and not _is_site(next(iter(tensors))):
            [block] = tensors.values()
            return _split_sites(as_any(block, entry.name), entry.name, sites)
        return {site: as_states(block, f"{entry.name} {site}") for site, block in tensors.items()}
    return read_artifact(entry, pooling=pooling)


def _dumped(
    files: Sequence[Path],
    typed: str,
    sites: Sequence[str] | None,
    pooling: str,
    ignore_tokens: Collection[int],
    tokens_first: bool | None,
    warnings: list[str],
) -> dict[str, Float64]:
    if not sites:
        has = layers_of(files[0])
        raise InputError(
            f"the requests in '{typed}' hold {has or 'some'} layer(s) without names; name each "
            "with --sites, such as block.3,block.7 (vLLM's layer id k is block k-1)"
        )
    blocks = read_dumps(
        files, n_sites=len(sites), pooling=pooling, ignore_tokens=ignore_tokens,
        tokens_first=tokens_first,
    )  # fmt: skip
    first = common_first_token(files)
    if first is not None and first not in ignore_tokens and pooling != "last":
        warnings.append(
            f"every request begins with token {first}, likely the beginning of the sequence, whose "
            f"state is large and says nothing; leave it out with --ignore-tokens {first}"
        )
    return dict(zip(sites, blocks, strict=True))


def _numpy(file: Path, sites: Sequence[str] | None) -> dict[str, Float64]:
    try:
        data = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        first = str(error).splitlines()[0]
        raise InputError(
            f"{file.name}: cannot be read as .npy ({first}); save it again with numpy.save, as "
            "numbers and not as objects"
        ) from None
    return _split_sites(as_any(data, file.name), file.name, sites)


def as_any(data: object, name: str) -> Float64:
    """States of one site, (n, d), or of several, (n, sites, d)."""
    return as_states(data, name, ndim=3 if getattr(data, "ndim", 2) == 3 else 2)


def _split_sites(block: Float64, name: str, sites: Sequence[str] | None) -> dict[str, Float64]:
    count = 1 if block.ndim == 2 else block.shape[1]
    if not sites:
        raise InputError(
            f"{name} holds {count} site(s) without names; say where the states were read with "
            "--sites, such as block.7 or final"
        )
    if len(sites) != count:
        raise ShapeError(f"{name}: shape {block.shape}, but {len(sites)} sites are named")
    if block.ndim == 2:
        return {sites[0]: block}
    return {site: np.ascontiguousarray(block[:, i]) for i, site in enumerate(sites)}


def _one_file(file: Path) -> dict[str, dict[str, Float64]]:
    if file.suffix != ".safetensors":
        raise InputError(
            f"'{file.name}': expected a folder, or a .safetensors file of <site>/<code>"
        )
    table: dict[str, dict[str, Float64]] = {}
    for key, block in read_tensors(file.read_bytes(), file.name).items():
        site, _, typed = key.partition("/")
        if not _is_site(site) or not is_language(typed):
            raise InputError(
                f"'{file.name}' has a tensor '{key}'; expected names such as block.7/swh_Latn"
            )
        table.setdefault(site, {})[typed] = as_states(block, f"{file.name} {key}")
    return table


def _chosen(
    table: dict[str, dict[str, Float64]],
    sites: Sequence[str] | None,
    languages: Sequence[str] | None,
    source: str,
) -> dict[str, dict[str, Float64]]:
    """Keep the sites and languages asked for, in order; a missing one is refused."""
    absent = [site for site in sites or () if site not in table]
    if absent or not table:
        has = ", ".join(table) or "none"
        raise InputError(f"'{source}' has no site {', '.join(absent)}; it has: {has}")
    if languages is not None:
        _require([typed for found in table.values() for typed in found], languages, source)
        wanted = {canonical(typed) for typed in languages}
        table = {
            site: {typed: block for typed, block in found.items() if canonical(typed) in wanted}
            for site, found in table.items()
        }
    named = [(site, table[site]) for site in sites] if sites else list(table.items())
    return dict(sorted(named, key=_site_order))


def _require(found: Collection[str], languages: Sequence[str] | None, source: str) -> None:
    """Refuse languages that are not there, naming those that are."""
    present = {canonical(typed) for typed in found}
    missing = [typed for typed in languages or () if canonical(typed) not in present]
    if missing:
        has = ", ".join(sorted(present))
        raise InputError(f"'{source}' has no states of {', '.join(missing)}; it has: {has}")


def _check(table: dict[str, dict[str, Float64]], parallel: bool) -> None:
    """Refuse languages that are not at every site, and numbers of rows that differ."""
    everywhere = {typed for found in table.values() for typed in found}
    for site, found in table.items():
        missing = sorted(everywhere - set(found))
        if missing:
            raise InputError(f"{site} has no states of {', '.join(missing)}; other sites have")
    counts = {
        typed: {len(found[typed]) for found in table.values()} for typed in sorted(everywhere)
    }
    uneven = [typed for typed, lengths in counts.items() if len(lengths) > 1]
    if uneven:
        raise ShapeError(f"{', '.join(uneven)}: numbers of rows differ between sites")
    if parallel and len({next(iter(lengths)) for lengths in counts.values()}) > 1:
        listed = ", ".join(f"{typed} {next(iter(n))}" for typed, n in counts.items())
        raise InputError(
            f"unequal numbers of rows: {listed}; row i must say the same in every language "
            "(parallel=False, --not-parallel, accepts rows that are not parallel)"
        )


def _is_site(name: str) -> bool:
    return name == FINAL or _SITE.fullmatch(name) is not None


def _site_order(item: tuple[str, object]) -> tuple[bool, int]:
    site = item[0]
    return (True, 0) if site == FINAL else (False, int(site.partition(".")[2]))


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    """Request 10 comes after request 9."""
    parts = re.split(r"(\d+)", path.name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts if part]
