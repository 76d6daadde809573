"""Steering without training: add a language step, or project a language out, inside a `with`."""

from typing import TYPE_CHECKING

from lens._lazy import lazy

if TYPE_CHECKING:  # for type checkers and editors: the same names, at no cost at run time
    from lens.steering.controls import carry as carry
    from lens.steering.controls import diffmean_rules as diffmean_rules
    from lens.steering.controls import project_rules as project_rules
    from lens.steering.controls import random_basis as random_basis
    from lens.steering.controls import random_rules as random_rules
    from lens.steering.controls import random_subspace as random_subspace
    from lens.steering.hooks import steer as steer
    from lens.steering.rules import Policy as Policy
    from lens.steering.rules import PolicyRule as PolicyRule
    from lens.steering.rules import Rule as Rule

_NAMES = {
    "Policy": "rules",
    "PolicyRule": "rules",
    "Rule": "rules",
    "carry": "controls",
    "diffmean_rules": "controls",
    "project_rules": "controls",
    "random_basis": "controls",
    "random_rules": "controls",
    "random_subspace": "controls",
    "steer": "hooks",
}

__getattr__, __dir__, __all__ = lazy(__name__, _NAMES)
