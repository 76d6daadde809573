"""Import states made elsewhere: arrays of any library, files, and dumps of a server."""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from lens.arrays import is_tensor
from lens.data.languages import canonical, is_language
from lens.errors import DtypeError, InputError, MissingExtraError, ShapeError, first_line
from lens.models.layers import FINAL, block_site
from lens.pooling import pool

Float64 = NDArray[np.float64]

_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32}


def as_states(x: Any, name: str, *, ndim: int = 2) -> Float64:
    """Bring states of any array library to float64, or say what is wrong with them.

    Parameters
    ----------
    x : array
        A NumPy array, a torch tensor (bfloat16 too), anything with the array interface
        (``__array_interface__`` or ``__array__``) or DLPack, in memory that the CPU can read.
    name : str
        What the array is called in messages.
    ndim : int
        Number of dimensions expected.

    Returns
    -------
    numpy.ndarray
        float64, contiguous.

    Raises
    ------
    DtypeError
        If x is no array of floating point numbers.
    ShapeError
        If the number of dimensions differs, or one of them has length 0.
    InputError
        If a value is NaN or infinite, or the array is out of reach.
    """
    data = _to_numpy(x, name)
    if data.dtype.kind != "f" and not data.dtype.name.startswith(("bfloat16", "float8")):
        raise DtypeError(
            f"{name}: dtype {data.dtype}, expected floating point states; raw bfloat16 must come "
            "as a torch tensor or in safetensors"
        )
    if data.ndim != ndim or 0 in data.shape:
        wanted = {2: "(n, d)", 3: "(n, sites, d)"}.get(ndim, f"{ndim} dimensions")
        raise ShapeError(f"{name}: shape {data.shape}, expected {wanted}, none of them 0")
    values: Float64 = np.ascontiguousarray(data, dtype=np.float64)
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0, 0])
        raise InputError(
            f"{name}: row {row} is not finite (NaN or infinity); leave the row out or compute it "
            "in a wider dtype"
        )
    return values


def read_tensors(content: bytes, name: str) -> dict[str, NDArray[Any]]:
    """Read the tensors of a safetensors file, bfloat16 widened to float32."""
    try:
        tensors: Any = deserialize(content)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise InputError(
            f"{name}: cannot be read as safetensors (truncated or damaged: {error}); copy it again"
        ) from None
    found: dict[str, NDArray[Any]] = {}
    for key, entry in tensors:
        kind, data, shape = entry["dtype"], entry["data"], entry["shape"]
        if kind == "BF16":
            bits = np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16
            found[key] = bits.view(np.float32).reshape(shape)
        elif kind in _TYPES:
            found[key] = np.frombuffer(data, dtype=_TYPES[kind]).reshape(shape)
        else:
            raise DtypeError(f"{name}: tensor '{key}' is {kind}; expected BF16, F16, F32 or F64")
    return found


def _to_numpy(x: Any, name: str) -> NDArray[Any]:
    if isinstance(x, np.ndarray):
        return x
    if is_tensor(x):
        narrow = x.dtype.itemsize < 4 and x.dtype.is_floating_point
        try:
            tensor = x.detach().cpu()
            data: NDArray[Any] = (tensor.float() if narrow else tensor).numpy()
        except (RuntimeError, TypeError, NotImplementedError) as error:
            raise InputError(f"{name}: the tensor has no values to read ({error})") from None
        return data
    converters: tuple[tuple[str, Callable[[Any], NDArray[Any]]], ...] = (
        ("__array_interface__", np.asarray),
        ("__array__", np.asarray),
        ("__dlpack__", _from_dlpack),
    )
    problem = ""
    for attribute, convert in converters:
        if not hasattr(x, attribute):
            continue
        try:
            return convert(x)
        except (TypeError, ValueError, RuntimeError, BufferError) as error:
            problem = f" ({error})"
    if problem:
        raise InputError(
            f"{name}: {type(x).__name__} cannot be read by the CPU{problem}; bring it to the "
            "CPU's memory first"
        )
    raise DtypeError(
        f"{name}: got {type(x).__name__}, expected an array: NumPy, torch, or one with the array "
        "interface or DLPack"
    )


def _from_dlpack(x: Any) -> NDArray[Any]:
    try:
        return np.from_dlpack(x)
    except (BufferError, RuntimeError, TypeError):
        import sys

        torch = sys.modules.get("torch")  # NumPy has no bfloat16; torch reads it, if it is there
        if torch is None:
            raise
        data: NDArray[Any] = torch.from_dlpack(x).cpu().float().numpy()
        return data


def _read_torch(path: Path, pooling: str) -> dict[str, Float64]:
    """Read a ``.pt`` file of one tensor (n, layers, d) of last tokens, without running code."""
    try:
        import torch
    except ImportError:
        raise MissingExtraError("torch", "hf", "reading saved tensors") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the file leads to
        raise InputError(
            f"'{path.name}' cannot be read as tensors alone ({first_line(error)}); save its "
            "tensors as safetensors where it was made"
        ) from None
    states = as_states(content, path.name, ndim=3)
    if pooling != "last":
        raise InputError(f"'{path.name}' holds last tokens; choose --pooling last, not {pooling}")
    return {block_site(i): states[:, i] for i in range(states.shape[1])}


@dataclass(frozen=True, slots=True)
class _Reading:
    """How files are read: see `read_states`."""

    sites: Sequence[str] = ()
    pooling: str = "mean"
    ignore_tokens: Collection[int] = ()
    tokens_first: bool | None = None


def _read_dumps(files: Sequence[Path], how: _Reading) -> list[Float64]:
    """Pool the dumped requests of one language, one a file: per layer (n, d) float64."""
    n_sites, tokens_first = len(how.sites), how.tokens_first
    if tokens_first is None:
        tokens_first = _tokens_first(files, n_sites)
    pooled: list[list[Float64]] = [[] for _ in range(n_sites)]
    width = None
    for file, ids, states in _requests(files):
        place = f"{file.parent.name}/{file.name}"
        layers = np.moveaxis(states, 1, 0) if tokens_first else states
        if layers.shape[:2] != (n_sites, len(ids)):
            raise ShapeError(
                f"{place}: hidden_states {states.shape} for {len(ids)} tokens and {n_sites} "
                "site(s); expected (tokens, layers, d), one site named for each layer"
            )
        width = width or layers.shape[2]
        if layers.shape[2] != width:
            raise ShapeError(f"{place}: width {layers.shape[2]}, expected {width} as before")
        kept = ~np.isin(ids, list(how.ignore_tokens))
        if not kept.any():
            raise InputError(f"{place}: no token is left to pool; give fewer ids to ignore")
        for site, values in enumerate(layers):
            block, mask = as_states(values, f"{place} layer {site}"), kept[np.newaxis, :]
            pooled[site].append(pool(block[np.newaxis], mask, mode=how.pooling)[0])  # type: ignore[arg-type]
    return [np.stack(rows) for rows in pooled]


def _layers_of(file: Path) -> int | None:
    """Return the number of layers in a dump; None where there are as many tokens."""
    [(_, ids, states)] = _requests([file])
    first, second = states.shape[:2]
    if first == second:
        return None
    return int(second if first == len(ids) else first)


def _common_first_token(files: Sequence[Path]) -> int | None:
    """Return the token all requests begin with, if there is one: likely a special token."""
    firsts = {int(ids[0]) for _, ids, _ in _requests(files[:20]) if len(ids)}
    return firsts.pop() if len(firsts) == 1 and len(files) > 1 else None


def _tokens_first(files: Sequence[Path], n_sites: int) -> bool:
    for _, ids, states in _requests(files):
        if states.shape[0] != states.shape[1]:
            return bool(states.shape[0] == len(ids))
    raise InputError(
        f"{files[0].parent.name}: every request has as many tokens as layers ({n_sites}), so the "
        "order of axes cannot be seen; give tokens_first= (--layout tokens-first or layers-first)"
    )


def _requests(files: Sequence[Path]) -> Iterator[tuple[Path, NDArray[Any], NDArray[Any]]]:
    for file in files:
        name = f"{file.parent.name}/{file.name}"
        tensors = read_tensors(file.read_bytes(), name)
        if not {"token_ids", "hidden_states"} <= set(tensors):
            raise InputError(
                f"{name}: holds {', '.join(tensors) or 'nothing'}; expected token_ids and "
                "hidden_states as the other requests do"
            )
        ids, states = tensors["token_ids"], tensors["hidden_states"]
        if ids.ndim != 1 or states.ndim != 3 or len(ids) not in states.shape[:2]:
            raise ShapeError(
                f"{name}: token_ids {ids.shape} and hidden_states {states.shape}; expected (t,) "
                "and (t, layers, d) or (layers, t, d)"
            )
        yield file, ids, states


_ENDINGS = (".npy", ".safetensors", ".pkl", ".pt")
_SITE = re.compile(r"block\.\d+")
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class ImportedStates:
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
) -> ImportedStates:
    """Read states that another program made.

    Parameters
    ----------
    path : str or Path
        A folder with one entry per language: ``<code>.npy`` of (n, d) or (n, sites, d);
        ``<code>.safetensors`` with one tensor per site; a folder ``<code>/`` of requests as vLLM
        dumps them; ``<code>.pt`` of one tensor (n, layers, d), last tokens (also
        ``<code>/acts/<code>.pt``). Or one ``.safetensors`` file with tensors ``<site>/<code>``.
        Pickles are refused.
    sites : sequence of str, optional
        Names of the sites, ``block.N`` or ``final``, where the source does not name them.
    languages : sequence of str, optional
        Languages to read; all by default.
    pooling : str
        How tokens of a dump become one vector; ``"last"`` for ``.pt``.
    ignore_tokens, tokens_first
        Ids of tokens in dumps that are not pooled, such as the beginning of the sequence; and
        whether tokens come before layers in the shape, by default found out.
    parallel : bool
        Whether every language must have equally many rows.

    Returns
    -------
    ImportedStates
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
    how = _Reading(tuple(sites or ()), pooling, ignore_tokens, tokens_first)
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
            for site, block in _language(entry, typed, how, warnings).items():
                table.setdefault(site, {})[typed] = block
    table = _chosen(table, sites, languages, place.name)
    _check(table, parallel)
    return ImportedStates(table, tuple(dict.fromkeys(warnings)))


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
            "swh_Latn.npy, .safetensors or .pt, or a folder swh_Latn/ of dumped requests"
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


def _language(entry: Path, typed: str, how: _Reading, warnings: list[str]) -> dict[str, Float64]:
    """Read one language in whichever form it is."""
    if entry.is_dir():
        files = sorted(entry.glob("*.safetensors"), key=_natural)
        saved = entry / "acts" / f"{entry.name}.pt"
        if not files and saved.is_file():
            return _read_torch(saved, how.pooling)
        if not files:
            raise InputError(f"'{entry.name}' has no *.safetensors; expected dumped requests")
        return _dumped(files, typed, how, warnings)
    if entry.suffix == ".npy":
        return _numpy(entry, how.sites)
    if entry.suffix == ".safetensors":
        tensors = read_tensors(entry.read_bytes(), entry.name)
        if len(tensors) == 1 and not _is_site(next(iter(tensors))):
            [block] = tensors.values()
            return _split_sites(_any(block, entry.name), entry.name, how.sites)
        return {site: as_states(block, f"{entry.name} {site}") for site, block in tensors.items()}
    if entry.suffix == ".pt":
        return _read_torch(entry, how.pooling)
    raise InputError(
        f"'{entry.name}' is a pickle, which may run code, and is not read; load it where it was "
        f"made and save its states as {typed}.npy of (n, sites, d) by numpy.save, or as "
        f"{typed}.safetensors with one (n, d) tensor per site"
    )


def _dumped(
    files: Sequence[Path], typed: str, how: _Reading, warnings: list[str]
) -> dict[str, Float64]:
    if not how.sites:
        has = _layers_of(files[0])
        raise InputError(
            f"the requests in '{typed}' hold {has or 'some'} layer(s) without names; name each "
            "with --sites, such as block.3,block.7 (vLLM's layer id k is block k-1)"
        )
    blocks = _read_dumps(files, how)
    first = _common_first_token(files)
    if first is not None and first not in how.ignore_tokens and how.pooling != "last":
        warnings.append(
            f"every request begins with token {first}, likely the beginning of the sequence, whose "
            f"state is large and says nothing; leave it out with --ignore-tokens {first}"
        )
    return dict(zip(how.sites, blocks, strict=True))


def _numpy(file: Path, sites: Sequence[str]) -> dict[str, Float64]:
    try:
        data = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{file.name}: cannot be read as .npy ({first_line(error)}); save it again with "
            "numpy.save, as numbers and not as objects"
        ) from None
    return _split_sites(_any(data, file.name), file.name, sites)


def _any(data: object, name: str) -> Float64:
    """States of one site, (n, d), or of several, (n, sites, d)."""
    return as_states(data, name, ndim=3 if getattr(data, "ndim", 2) == 3 else 2)


def _split_sites(block: Float64, name: str, sites: Sequence[str]) -> dict[str, Float64]:
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
