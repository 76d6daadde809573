"""Hidden states that a server wrote, one safetensors file per request, as vLLM's connector does.

A file holds ``token_ids`` (t,) and ``hidden_states``, (t, layers, d) or, in older versions,
(layers, t, d). Which of the two is seen from the number of tokens; one request with as many tokens
as layers does not tell, so all files are asked.
"""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lens.errors import InputError, ShapeError
from lens.space.sources.arrays import Float64, as_states, read_tensors
from lens.stats import pool

KEYS = {"token_ids", "hidden_states"}


def is_dump(tensors: Collection[str]) -> bool:
    """Whether the names of a file's tensors are those of a dumped request."""
    return set(tensors) >= KEYS


def read_dumps(
    files: Sequence[Path],
    *,
    n_sites: int,
    pooling: str,
    ignore_tokens: Collection[int] = (),
    tokens_first: bool | None = None,
) -> list[Float64]:
    """Pool the dumped requests of one language.

    Parameters
    ----------
    files : sequence of Path
        One request each; row i is file i.
    n_sites : int
        Number of layers that the server was told to write.
    pooling : str
        ``"last"``, ``"mean"`` or ``"weighted"``.
    ignore_tokens : collection of int
        Ids that are not pooled, such as the beginning of the sequence.
    tokens_first : bool, optional
        Whether tokens come before layers in the shape; found out by default.

    Returns
    -------
    list of ndarray
        Per layer (n, d) float64.

    Raises
    ------
    InputError
        When a file is damaged, the shapes do not agree, or the order of axes stays open.
    """
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
        kept = ~np.isin(ids, list(ignore_tokens))
        if not kept.any():
            raise InputError(f"{place}: no token is left to pool; give fewer ids to ignore")
        for site, values in enumerate(layers):
            block = as_states(values, f"{place} layer {site}")
            mask = kept[np.newaxis, :]
            pooled[site].append(pool(block[np.newaxis], mask, mode=pooling)[0])  # type: ignore[arg-type]
    return [np.stack(rows) for rows in pooled]


def layers_of(file: Path) -> int | None:
    """Return the number of layers in a dump; None where there are as many tokens."""
    [(_, ids, states)] = _requests([file])
    first, second = states.shape[:2]
    if first == second:
        return None
    return int(second if first == len(ids) else first)


def common_first_token(files: Sequence[Path]) -> int | None:
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
        if not is_dump(tensors):
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
