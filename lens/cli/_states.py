"""Options of ``lens probe`` for states made elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from lens.cli._options import Listed
from lens.errors import InputError

if TYPE_CHECKING:
    from lens.models.hidden_states import Pooling
    from lens.space.space import Space

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class StateOptions:
    """What was given about states made elsewhere."""

    states: Path | None
    ignore_tokens: tuple[int, ...]
    layout: str | None
    parallel: bool
    row_offset: int

    def space(
        self,
        languages: tuple[str, ...] | None,
        *,
        pivot: str,
        sites: str,
        pooling: Pooling | str,
        role: str,
        seed: int,
    ) -> Space:
        """Read the states and make a space of them; what to think about goes to stderr."""
        from lens import __version__
        from lens.data.languages import canonical
        from lens.space.importers import read_states
        from lens.space.provenance import Provenance
        from lens.space.space import Space
        from lens.utils.progress import say

        named = None if sites == "all" else tuple(part.strip() for part in sites.split(","))
        if self.states is None:
            raise InputError("no states were given; expected a folder after --states")
        read = read_states(
            self.states, sites=named, languages=languages, pooling=str(pooling),
            ignore_tokens=self.ignore_tokens, parallel=self.parallel,
            tokens_first=None if self.layout is None else self.layout == "tokens-first",
        )  # fmt: skip
        for warning in read.warnings:
            say(f"warning: {warning}")
        about = Provenance(
            pivot=canonical(pivot), pooling=str(pooling), role=role, seed=seed,
            package_version=__version__,
        )  # fmt: skip
        return Space.from_states(read.states, pivot=pivot, about=about, row_offset=self.row_offset)


def state_options(function: F) -> F:
    """States made elsewhere, gathered in one argument ``given``."""

    @wraps(function)
    def gathered(
        *args: Any, states: Path | None, ignore_tokens: tuple[str, ...] | None,
        layout: Literal["tokens-first", "layers-first"] | None, parallel: bool, row_offset: int,
        **rest: Any,
    ) -> Any:  # fmt: skip
        try:
            ids = tuple(map(int, ignore_tokens or ()))
        except ValueError:
            text = ",".join(ignore_tokens or ())
            raise InputError(f"--ignore-tokens {text}: expected token ids such as 1,2") from None
        given = StateOptions(states, ids, layout, parallel, row_offset)
        return function(*args, given=given, **rest)

    made: Any = gathered
    for decorate in (
        click.option("--row-offset", type=click.IntRange(min=0), default=0, show_default=True,
                     help="Id of the first row of --states, for shards to merge."),
        click.option("--parallel/--not-parallel", default=True, show_default=True,
                     help="Whether --states must have equally many rows in every language."),
        click.option("--layout", type=click.Choice(["tokens-first", "layers-first"]),
                     help="Axes of dumped hidden_states, where they cannot be told apart."),
        click.option("--ignore-tokens", type=Listed(),
                     help="Token ids of dumped requests that are not pooled."),
        click.option("--states", type=click.Path(path_type=Path),
                     help="States made elsewhere instead of --model and --data: folder of "
                     "CODE.npy, .safetensors, .pt, or CODE/ of requests that vLLM dumped."),
    ):  # fmt: skip
        made = decorate(made)
    result: F = made
    return result
