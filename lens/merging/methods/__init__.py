"""Merge methods by name: one interface, one file of a family each."""

from lens.merging.methods.base import Method
from lens.merging.methods.linear import LayerSwap, Linear, Passthrough, Slerp, TaskArithmetic
from lens.merging.methods.maec import Maec
from lens.merging.methods.sparse import (
    Breadcrumbs,
    BreadcrumbsTies,
    Dare,
    DareTies,
    Della,
    DellaTies,
    Ties,
)

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Maec(), Linear(), TaskArithmetic(), Ties(), DareTies(), Dare(), DellaTies(), Della(),
        Breadcrumbs(), BreadcrumbsTies(), Slerp(), LayerSwap(), Passthrough(),
    )
}  # fmt: skip
"""Every merge method, by the name it has in a config."""

__all__ = ["METHODS", "Method"]
