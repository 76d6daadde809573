"""Read pooled states from hooks while a model runs, stopping after the last site needed."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from lens import stats
from lens.arrays import host
from lens.errors import InputError
from lens.models.blocks import DecoderParts, block_output, forward_arguments
from lens.models.chat import Batch
from lens.models.sites import block_index

Pooling: TypeAlias = Literal["last", "mean", "weighted"]
Pooled: TypeAlias = dict[str, NDArray[np.float64]]

# Fewer numbers than this are pooled by one thread (the bits are the same): that takes milliseconds,
# and a second would have to wait for a core, as torch's own threads spin after a product.
_ALONE = 1 << 22

POOLINGS: tuple[Pooling, ...] = ("last", "mean", "weighted")


class NonFiniteStateError(InputError):
    """A state has NaN or infinity; says at which site and in which row of the batch."""

    def __init__(self, site: str, row: int) -> None:
        super().__init__(f"the state at {site} for row {row} of the batch is not finite")
        self.site = site
        self.row = row


class _Stop(Exception):
    """Ends a forward pass early."""


class SiteReader:
    """Hooks on block outputs (and the final norm) that pool each state as soon as it appears.

    A context manager: hooks exist only inside it, and only pooled states are ever kept.

    Parameters
    ----------
    parts : DecoderParts
        Parts of the model.
    sites : sequence of str
        Canonical site names.
    pooling : str
        ``"last"``, ``"mean"`` or ``"weighted"``.
    n_threads : int, optional
        Threads of the C core.
    """

    def __init__(
        self,
        parts: DecoderParts,
        sites: Sequence[str],
        *,
        pooling: Pooling,
        n_threads: int | None = None,
    ) -> None:
        check_pooling(pooling)
        self.sites = tuple(sites)
        self._modules = [(site, site_module(parts, site)) for site in sites]
        self._pooling: Pooling = pooling
        self._n_threads = n_threads
        self._handles: list[Any] = []
        self._mask: torch.Tensor | None = None
        self._pooled: Pooled = {}

    def __enter__(self) -> Self:
        """Register the hooks."""
        for site, module in self._modules:
            # The last block can also stand for "final" in a model without a final norm.
            self._handles.append(module.register_forward_hook(self._hook(site)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the hooks, whatever happened."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def read(self, model: Any, batch: Batch) -> Pooled:
        """Run one batch and return its pooled states.

        Parameters
        ----------
        model : torch.nn.Module
            The model that the parts belong to.
        batch : Batch
            Padded rows.

        Returns
        -------
        dict
            Site to (n, d) float64.

        Raises
        ------
        InputError
            When a site was not reached by the forward pass.
        """
        self._pooled, self._mask = {}, batch.pool_mask
        tensors = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "position_ids": batch.position_ids,
        }
        try:
            model(**forward_arguments(model, tensors))
        except _Stop:
            pass
        missing = [site for site, _ in self._modules if site not in self._pooled]
        if missing:
            raise InputError(f"the forward pass did not reach {', '.join(missing)}")
        return self._pooled

    def _hook(self, site: str) -> Callable[[Any, Any, Any], None]:
        def read_state(_module: Any, _args: Any, output: Any) -> None:
            if self._mask is None:
                raise InputError("SiteReader hooks ran outside read()")
            state = block_output(output).detach()
            pooled = pool_finite(
                state, self._mask, site, mode=self._pooling, n_threads=self._n_threads
            )
            self._pooled[site] = pooled
            if len(self._pooled) == len(self._modules):
                raise _Stop

        return read_state


def pool_finite(
    states: torch.Tensor,
    mask: torch.Tensor,
    site: str,
    *,
    mode: Pooling,
    n_threads: int | None = None,
) -> NDArray[np.float64]:
    """Pool as `pool_states` does; a state that is not finite names site and row."""
    try:
        pooled = pool_states(states, mask, mode=mode, n_threads=n_threads)
    except InputError:
        _raise_non_finite(states, mask, site)
        raise
    if not np.isfinite(pooled).all():
        _raise_non_finite(states, mask, site)
    return pooled


def _raise_non_finite(state: torch.Tensor, mask: torch.Tensor, site: str) -> None:
    """Name the first row with a bad state, if there is one."""
    bad = (~torch.isfinite(state).all(dim=-1)) & mask.to(state.device)
    rows = torch.nonzero(bad.any(dim=1))
    if len(rows):
        raise NonFiniteStateError(site, int(rows[0]))


def check_pooling(pooling: str) -> None:
    """Refuse a pooling that does not exist."""
    if pooling not in POOLINGS:
        raise InputError(f"unknown pooling {pooling!r}; expected one of: {', '.join(POOLINGS)}")


def site_module(parts: DecoderParts, site: str) -> torch.nn.Module:
    """Return the module whose output is the state at `site`.

    Parameters
    ----------
    parts : DecoderParts
        Parts of the model.
    site : str
        Canonical site name.

    Returns
    -------
    torch.nn.Module
        A block, or the final norm. Where a model has no final norm, ``"final"`` is its last block.
    """
    index = block_index(site)
    if index is not None:
        return parts.blocks[index]
    return parts.final_norm if parts.final_norm is not None else parts.blocks[-1]


def pool_states(
    states: torch.Tensor, mask: torch.Tensor, *, mode: Pooling, n_threads: int | None = None
) -> NDArray[np.float64]:
    """Pool token states to one vector per row, on the device they are on.

    Parameters
    ----------
    states : torch.Tensor
        (n, t, d), any floating dtype.
    mask : torch.Tensor
        (n, t) bool, at least one True in each row.
    mode : str
        ``"last"``, ``"mean"`` or ``"weighted"`` (the i-th real token weighs i).
    n_threads : int, optional
        Threads of the C core, for states on the CPU.

    Returns
    -------
    ndarray
        (n, d) float64.

    Notes
    -----
    `lens.stats.pool`: the C core on the CPU, torch elsewhere; only the result leaves the device.
    """
    if n_threads is None and states.numel() < _ALONE:
        n_threads = 1
    found = stats.pool(states.contiguous(), mask, mode=mode, n_threads=n_threads)
    return np.asarray(host(found), dtype=np.float64)
