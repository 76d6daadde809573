"""Merge methods by name: one interface, one file of a family each."""

from lens.maec.methods.base import Method
from lens.maec.methods.maec import Maec
from lens.maec.methods.sparse import (
    Breadcrumbs,
    BreadcrumbsTies,
    Dare,
    DareTies,
    Della,
    DellaTies,
    Ties,
)
from lens.maec.methods.weighted import LayerSwap, Linear, Passthrough, Slerp, TaskArithmetic

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Maec(), Linear(), TaskArithmetic(), Ties(), DareTies(), Dare(), DellaTies(), Della(),
        Breadcrumbs(), BreadcrumbsTies(), Slerp(), LayerSwap(), Passthrough(),
    )
}  # fmt: skip
"""Every merge method, by the name it has in a config."""

__all__ = ["METHODS", "Method"]
