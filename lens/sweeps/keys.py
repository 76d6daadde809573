"""Dotted keys, such as ``losses.terms.0.weight``, into nested dicts and lists."""

from __future__ import annotations

from typing import Any

from lens.errors import InputError


def put(values: Any, keys: list[str], value: Any, where: str) -> None:
    """Set a dotted key inside nested dicts and lists."""
    for key in keys[:-1]:
        values = _inside(values, key, where)
    last = keys[-1]
    if isinstance(values, list):
        _inside(values, last, where)
        values[int(last)] = value
    else:
        values[last] = value


def at(values: Any, key: str) -> Any:
    """Value of a dotted key inside nested dicts and lists."""
    for step in key.split("."):
        values = _inside(values, step, key)
    return values


def _inside(values: Any, key: str, where: str) -> Any:
    if isinstance(values, list) and key.isdigit() and int(key) < len(values):
        return values[int(key)]
    if isinstance(values, dict) and key in values:
        return values[key]
    known = range(len(values)) if isinstance(values, list) else values
    raise InputError(f"{where}: no '{key}' here, expected one of {', '.join(map(str, known))}")
