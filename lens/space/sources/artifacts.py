"""Artifacts of published code: MEXA's and Lens's pickles, LRD's tensors.

* MEXA (arXiv 2410.05873): ``<code>.pkl``, layer -> list of {id, embd_weighted, embd_lasttoken};
  layer 0 are the embeddings, the last one is after the final norm.
* Lens (arXiv 2410.04407): ``<code>_hidden_last.pkl``, a tensor (layers, n, d) of last positions;
  the last layer is after the final norm.
* LRD (arXiv 2505.15257): ``<code>.pt``, a tensor (n, layers, d) of last tokens at block outputs.
"""

from pathlib import Path
from typing import Any

import numpy as np

from lens.arrays import is_tensor
from lens.errors import InputError, ShapeError
from lens.models.sites import FINAL, block_site
from lens.space.sources.arrays import Float64, as_states
from lens.space.sources.pickles import read_pickle, read_torch

_MEXA = {"weighted": "embd_weighted", "last": "embd_lasttoken"}


def read_artifact(path: Path, *, pooling: str) -> dict[str, Float64]:
    """Read the states of one language.

    Parameters
    ----------
    path : Path
        A ``.pkl`` of MEXA or Lens, or a ``.pt`` of LRD.
    pooling : str
        Which of MEXA's two vectors; the others hold last tokens only.

    Returns
    -------
    dict
        Site to (n, d) float64.

    Raises
    ------
    InputError
        When the file is something else, would run code, or is damaged.
    """
    if path.suffix == ".pt":
        states = as_states(read_torch(path), path.name, ndim=3)
        _only_last(pooling, path)
        return {block_site(i): states[:, i] for i in range(states.shape[1])}
    content = read_pickle(path)
    if is_tensor(content) or isinstance(content, np.ndarray):
        states = as_states(content, path.name, ndim=3)
        _only_last(pooling, path)
        last = len(states) - 1
        return {FINAL if i == last else block_site(i): block for i, block in enumerate(states)}
    if isinstance(content, dict) and content and all(isinstance(key, int) for key in content):
        return _mexa(content, path, pooling)
    raise InputError(
        f"'{path.name}' holds {_described(content)}; expected states of MEXA (layer to vectors) or "
        "of Lens, a tensor (layers, n, d)"
    )


def read_bases(path: str | Path) -> dict[str, Float64]:
    """Read the subspaces that published code saved, to compare them with one's own.

    Parameters
    ----------
    path : str or Path
        ``lang_specific_space_last.pkl`` of Lens or ``vector.pt`` of LRD, a tensor
        (layers, rank, d); or ``lang_shared_space_last.pkl``, (layers, d).

    Returns
    -------
    dict
        Site to (d, rank) float64, as `lens.subspace.principal_angles` takes them.

    Raises
    ------
    InputError
        When the file does not exist, is something else, would run code, or is damaged.

    Notes
    -----
    Sites are named ``block.i`` by the order of the layers. What the published Lens code calls its
    last layer was read after the final norm, and is named ``"final"`` for ``.pkl`` files.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"'{path}' does not exist; expected a .pkl of Lens or a .pt of LRD")
    content = read_torch(file) if file.suffix == ".pt" else read_pickle(file)
    if not is_tensor(content) and not isinstance(content, np.ndarray):
        raise InputError(f"'{file.name}' holds {_described(content)}; expected one tensor")
    layers = content[:, np.newaxis] if content.ndim == 2 else content
    bases = as_states(layers, file.name, ndim=3)
    if bases.shape[1] > bases.shape[2]:
        raise ShapeError(f"'{file.name}': shape {bases.shape}, expected (layers, rank, d)")
    last = len(bases) - 1 if file.suffix != ".pt" else -1
    return {
        FINAL if i == last else block_site(i): np.ascontiguousarray(rows.T)
        for i, rows in enumerate(bases)
    }


def _mexa(content: dict[int, Any], path: Path, pooling: str) -> dict[str, Float64]:
    if pooling not in _MEXA:
        raise InputError(f"'{path.name}' has no {pooling} vectors; choose pooling weighted or last")
    layers = sorted(content)
    if layers != list(range(len(layers))) or len(layers) < 2:
        raise InputError(f"'{path.name}' has layers {layers[:5]}...; expected 0, 1, ... in order")
    found: dict[str, Float64] = {}
    for layer in layers[1:]:  # layer 0 are the embeddings, where nothing has been read yet
        site = FINAL if layer == layers[-1] else block_site(layer - 1)
        try:
            rows = sorted(content[layer], key=lambda row: row["id"])
            vectors = [np.asarray(row[_MEXA[pooling]]) for row in rows]
            stacked = np.stack(vectors)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"'{path.name}' layer {layer} is not as MEXA writes it ({error}); expected a list "
                "of id, embd_weighted, embd_lasttoken"
            ) from None
        found[site] = as_states(stacked, f"{path.name} layer {layer}")
    return found


def _only_last(pooling: str, path: Path) -> None:
    if pooling != "last":
        raise InputError(f"'{path.name}' holds last tokens; choose --pooling last, not {pooling}")


def _described(content: Any) -> str:
    if isinstance(content, dict):
        return f"a dict with keys {', '.join(map(repr, list(content)[:5]))}"
    if isinstance(content, list):
        return f"a list of {len(content)}"
    return type(content).__name__
