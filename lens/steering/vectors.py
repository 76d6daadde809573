"""Rules of the standard steering baselines: difference of means, projection, random controls."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lens.errors import InputError
from lens.models.layers import LayerSpec
from lens.steering.config import Tokens
from lens.steering.policy import EVERY, Policy, PolicyRule, Rule, SteeringSpace
from lens.subspace import thin_qr

if TYPE_CHECKING:
    from lens.subspace import SubspaceResult


def diffmean_rules(
    space: SteeringSpace,
    language: str,
    *,
    layers: LayerSpec,
    strength: float = 1.0,
    tokens: Tokens = "all",
    preserve_norm: bool = False,
) -> tuple[Rule, ...]:
    """Rules that add the difference of means, block by block.

    Parameters
    ----------
    space : Space
        Space of the model.
    language : str
        Language to steer to, any spelling.
    layers : str, int or sequence of int
        Blocks, see `lens.models.resolve_layers`.
    strength : float
        Steps of m_l - m_c; 1 moves a mean pivot state onto the mean of the language.
    tokens : str
        ``"all"``, ``"prompt"`` or ``"generation"``.
    preserve_norm : bool
        Give each changed state the norm it had.

    Returns
    -------
    tuple of Rule
        One per block, each with the step read at that block.

    Raises
    ------
    InputError
        When the space does not have the language or a block.

    References
    ----------
    arXiv 2601.08331.
    """
    how: Any = {"strength": strength, "tokens": tokens, "preserve_norm": preserve_norm}
    rule = PolicyRule(EVERY, layers, **how)
    return Policy((rule,)).resolve(space, language=language)


def random_rules(
    space: SteeringSpace,
    language: str,
    *,
    layers: LayerSpec,
    seed: int,
    strength: float = 1.0,
    tokens: Tokens = "all",
    preserve_norm: bool = False,
) -> tuple[Rule, ...]:
    """Rules like `diffmean_rules`, with random directions of the same norms.

    Parameters
    ----------
    space, language, layers, strength, tokens, preserve_norm
        As in `diffmean_rules`.
    seed : int
        Seed of the directions; each block draws its own.

    Returns
    -------
    tuple of Rule
        One per block.

    Raises
    ------
    InputError
        As `diffmean_rules`.
    """
    how: Any = {"strength": strength, "tokens": tokens, "preserve_norm": preserve_norm}
    real = diffmean_rules(space, language, layers=layers, **how)
    generator = np.random.default_rng(seed)
    rules = []
    for rule in real:
        direction = generator.standard_normal(rule.width)
        norm = 0.0 if rule.vector is None else float(np.linalg.norm(rule.vector))
        vector = direction * (norm / np.linalg.norm(direction))
        rules.append(replace(rule, vector=vector))
    return tuple(rules)


def project_rules(
    space: SteeringSpace,
    *,
    layers: LayerSpec,
    strength: float = 1.0,
    rank: Any = "auto",
    tokens: Tokens = "all",
    preserve_norm: bool = False,
) -> tuple[Rule, ...]:
    """Rules that project the language subspace out (or, with a negative strength, strengthen it).

    Parameters
    ----------
    space, layers, strength, tokens, preserve_norm
        As in `diffmean_rules`; strength 1 removes the subspace.
    rank : int, "auto" or "full"
        Rank of the subspace, see `lens.subspace.fit`.

    Returns
    -------
    tuple of Rule
        One per block.

    Raises
    ------
    InputError
        When the space does not have a block.

    References
    ----------
    arXiv 2505.15257.
    """
    how: Any = {"strength": strength, "tokens": tokens, "preserve_norm": preserve_norm}
    rank = rank if isinstance(rank, str) else int(rank)
    return Policy((PolicyRule(EVERY, layers, "project", rank=rank, **how),)).resolve(space)


def random_basis(width: int, rank: int, *, seed: int) -> NDArray[np.float64]:
    """Draw an orthonormal basis of a uniformly random subspace.

    Parameters
    ----------
    width, rank : int
        d and r, with r at most d.
    seed : int
        Seed.

    Returns
    -------
    ndarray
        (d, r) float64 with orthonormal columns.

    Raises
    ------
    InputError
        When the rank does not fit.
    """
    if not 1 <= rank <= width:
        raise InputError(f"rank is {rank}; expected 1 to {width}, the width")
    gaussian = np.random.default_rng(seed).standard_normal((width, rank))
    return thin_qr(gaussian).Q  # with its signs settled, else it would not be uniform


def random_subspace(result: "SubspaceResult", *, seed: int) -> "SubspaceResult":
    """Replace the basis of a fit by a random one of equal rank.

    Parameters
    ----------
    result : SubspaceResult
        A fit.
    seed : int
        Seed.

    Returns
    -------
    SubspaceResult
        The same but for the basis, and for the agnostic direction, which is made orthogonal to it
        (the mean of the means without its part in the new basis).
    """
    width, rank = result.basis.shape
    basis = random_basis(width, rank, seed=seed)
    agnostic = result.mean - basis @ (basis.T @ result.mean)
    return replace(result, basis=basis, agnostic=agnostic)


def carry(
    vector: NDArray[np.float64], *, source: NDArray[np.float64], target: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Map a vector to the same coordinates in another basis: a control of equal norm and geometry.

    Parameters
    ----------
    vector : ndarray
        (d,) or (n, d) float64.
    source, target : ndarray
        (d, r) orthonormal bases.

    Returns
    -------
    ndarray
        target source^T vector; what lay outside the source is lost.

    Raises
    ------
    InputError
        When the shapes do not fit.
    """
    if source.shape != target.shape or vector.shape[-1] != source.shape[0]:
        raise InputError(
            f"shapes do not fit: vector {vector.shape}, source {source.shape}, "
            f"target {target.shape}; expected (..., d), (d, r), (d, r)"
        )
    return np.asarray((vector @ source) @ target.T)
