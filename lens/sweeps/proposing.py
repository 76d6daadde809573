"""What proposes the settings of a trial: Optuna's tree-structured Parzen estimator."""

from __future__ import annotations

from typing import Any

import numpy as np

from lens.errors import MissingExtraError


def require_optuna() -> Any:
    """Return Optuna.

    Raises
    ------
    MissingExtraError
        If it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise MissingExtraError("optuna", "tune", "tuning") from None
    return optuna


def sampler(seed: int, number: int) -> Any:
    """Make what proposes a trial, from the trials before and a seed of its own.

    A search that was cut off and goes on so proposes what it would have proposed.
    """
    own = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
    return require_optuna().samplers.TPESampler(seed=own, multivariate=True)
