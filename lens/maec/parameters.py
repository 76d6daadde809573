"""Parameters of a method: which there are, and what each is at one tensor."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lens.errors import InputError

Value = float | bool | str
Scope = Literal["run", "tensor", "model", "others"]
_BLOCK = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a merge method.

    Attributes
    ----------
    name : str
        As in the config.
    default : float, bool, str or None
        Its type is that of the parameter (None: a number that must be given).
    scope : {"run", "tensor", "model", "others"}
        One value for the run; one for each tensor; one for each model and tensor; the same but
        for the base, which has none.
    low, high : float
        Numbers that are allowed, both included.
    choices : tuple of str
        Texts that are allowed.
    """

    name: str
    default: Value | None = None
    scope: Scope = "tensor"
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()

    def check(self, value: Any) -> Value:
        """Return a value as the type of the parameter.

        Raises
        ------
        InputError
            If it is not of that type, or out of range.
        """
        if isinstance(self.default, bool):
            if isinstance(value, bool) or value in (0, 1):
                return bool(value)
            raise InputError(f"parameter '{self.name}': got {value!r}, expected true or false")
        if isinstance(self.default, str):
            if value in self.choices or (not self.choices and isinstance(value, str)):
                return str(value)
            expected = ", ".join(self.choices) or "text"
            raise InputError(f"parameter '{self.name}': got {value!r}, expected {expected}")
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not (math.isfinite(number) and self.low <= number <= self.high):
            bounds = f" from {self.low:g} to {self.high:g}" if self.high < math.inf else ""
            raise InputError(f"parameter '{self.name}': got {value!r}, expected a number{bounds}")
        return number


def block_number(name: str) -> int | None:
    """Read the number of the block that a tensor is of: the first in its name."""
    match = _BLOCK.search(name)
    return None if match is None else int(match[1])


def evaluate(parameter: Parameter, setting: Any, *, tensor: str, t: float) -> Value | None:
    """Value of a setting at one tensor; None if it says nothing about it.

    Parameters
    ----------
    setting : value, list of values, or list of mappings
        A list of numbers is interpolated, one of texts or truth values stepped through; of
        mappings ``{filter, value}`` the first holds whose filter is in the tensor's name.
    t : float
        Place of the tensor's block, 0 for the first to 1 for the last.
    """
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, Sequence) or isinstance(setting, str):
        return parameter.check(setting)
    if not setting:
        return None
    if not any(isinstance(item, Mapping) for item in setting):
        return _interpolated(parameter, setting, t)
    for item in setting:
        if (
            not isinstance(item, Mapping)
            or "value" not in item
            or item.keys() - {"filter", "value"}
        ):
            raise InputError(
                f"parameter '{parameter.name}': got {item!r}, expected {{filter: …, value: …}}"
            )
        wanted = item.get("filter")
        if wanted in (None, "*") or str(wanted) in tensor:
            return evaluate(parameter, item["value"], tensor=tensor, t=t)
    return None


def _interpolated(parameter: Parameter, values: Sequence[Any], t: float) -> Value:
    checked = [parameter.check(value) for value in values]
    last = len(checked) - 1
    if isinstance(checked[0], bool | str):
        return checked[int(t * last)]
    low = int(t * last)
    share = t * last - low
    first, second = float(checked[low]), float(checked[min(low + 1, last)])
    return parameter.check((1 - share) * first + share * second)


def resolve(
    parameter: Parameter, settings: Iterable[Mapping[str, Any]], *, tensor: str, t: float
) -> Value | None:
    """Value at one tensor from settings in falling precedence, else the default."""
    for layer in settings:
        if parameter.name in layer:
            value = evaluate(parameter, layer[parameter.name], tensor=tensor, t=t)
            if value is not None:
                return value
    return parameter.default
