"""Every merge method by its name in a config: those of this package, and registered ones."""

import importlib
import inspect
import pkgutil

from lens.errors import InputError
from lens.merging import methods
from lens.merging.methods.base import Method

METHODS: dict[str, Method] = {}
"""The only list of merge methods, by name."""


def register(method: Method) -> None:
    """Add a merge method, so that configs can name it.

    Parameters
    ----------
    method : Method
        An instance; see `Method` for an example.

    Raises
    ------
    InputError
        If another method has its name.
    """
    known = METHODS.get(method.name)
    if known is not None and type(known) is not type(method):
        raise InputError(f"there is a merge method '{method.name}' already; choose another name")
    METHODS[method.name] = method


for _info in pkgutil.iter_modules(methods.__path__):
    if _info.name == "registry":
        continue
    _module = importlib.import_module(f"{methods.__name__}.{_info.name}")
    for _class in vars(_module).values():
        if inspect.isclass(_class) and _class.__module__ == _module.__name__:
            if issubclass(_class, Method) and not inspect.isabstract(_class):
                register(_class())
