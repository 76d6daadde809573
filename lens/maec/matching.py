"""Which tensors of which models belong together, and what does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lens.errors import InputError
from lens.maec.config import MergeConfig
from lens.maec.decoding import is_8_bit
from lens.maec.parameters import Value, block_number, resolve
from lens.maec.sources import Source
from lens.maec.targets import Input, Target
from lens.stored import OUTPUTS, Stored

if TYPE_CHECKING:
    from lens.maec.methods import Method

_MOST = 4  # names in one message


@dataclass(frozen=True, slots=True)
class Wanted:
    """One model that a method reads.

    Attributes
    ----------
    reference : str
        As in the config.
    settings : tuple of mapping
        Parameters that hold for it, in falling precedence.
    base : bool
        Whether it is the base.
    first : int
        Its block that becomes block ``start`` of the result; see `Part`.
    fixed : mapping
        Values that come from its place in the config, beside its parameters.
    extracted : bool
        Whether it is a file of `lens.maec.extract` and no model.
    """

    reference: str
    settings: tuple[Mapping[str, Any], ...] = ()
    base: bool = False
    first: int = 0
    fixed: Mapping[str, Value] = field(default_factory=dict)
    extracted: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive blocks of the result and what each is made from.

    Attributes
    ----------
    wanted : tuple of Wanted
        Models, in order.
    settings : tuple of mapping
        Parameters that hold for all of them, in falling precedence.
    start, stop : int
        Blocks of the result, half-open.
    """

    wanted: tuple[Wanted, ...]
    settings: tuple[Mapping[str, Any], ...]
    start: int
    stop: int

    def place(self, block: int) -> float:
        """How far a block is from the first (0) to the last (1); 1 if there is one only."""
        last = self.stop - self.start - 1
        return (block - self.start) / last if last > 0 else 1.0


@dataclass(slots=True)
class Mismatches:
    """What does not fit, put together so that one message names many tensors."""

    missing: dict[str, list[str]] = field(default_factory=dict)
    shapes: list[str] = field(default_factory=list)
    other: dict[str, list[str]] = field(default_factory=dict)

    def note(self, problem: str, name: str) -> None:
        """Take up a problem of one tensor."""
        self.other.setdefault(problem, []).append(name)

    def told(self) -> list[str]:
        """One line for each kind and model."""
        lines = [
            f"{reference} lacks {_listed(names)}, which {where} has; are these versions of one "
            "model?"
            for key, names in self.missing.items()
            for reference, where in [key.split("\0")]
        ]
        lines += self.shapes[:_MOST]
        if len(self.shapes) > _MOST:
            lines.append(f"and {len(self.shapes) - _MOST} more tensors of other shapes or kinds")
        return lines + [f"{text}, at {_listed(names)}" for text, names in self.other.items()]


class Matching:
    """Finds for each tensor of the result the tensors it is made from.

    Parameters
    ----------
    config : MergeConfig
    method : Method
    wanted : sequence of Wanted
        Models of a merge without slices.
    sources : mapping of str to Source
        By reference, all opened.
    run : dict
        Parameters of the whole run.
    """

    def __init__(
        self,
        config: MergeConfig,
        method: Method,
        wanted: Sequence[Wanted],
        sources: Mapping[str, Source],
        run: dict[str, Value],
    ) -> None:
        self._config, self._method, self._run = config, method, run
        self._sources, self._numbers = sources, {name: i for i, name in enumerate(sources)}
        self._parts = self._divided(tuple(wanted))
        self._wrong = Mismatches()

    def targets(self, problems: list[str]) -> list[Target]:
        """Tensors of the result in the order in which they are stored in the first model."""
        found: list[Target] = []
        for part in self._parts:
            leader, first = self._leader(part)
            for name in leader.in_order():
                block = block_number(name)
                if block is None:
                    if part is self._parts[-1 if _is_last(name) else 0]:
                        self._add(found, part, name, None)
                elif 0 <= block - first < part.stop - part.start:
                    self._add(found, part, name, block - first + part.start)
        self._find_extra()
        problems += self._wrong.told()
        return found

    def _transposed(self, name: str) -> bool:
        """Whether a weight is stored as (in, out)."""
        leader, _ = self._leader(self._parts[0])
        return leader.checkpoint is not None and bool(leader.checkpoint.is_conv1d(name))

    def _divided(self, wanted: tuple[Wanted, ...]) -> list[Part]:
        if not self._config.slices:
            return [
                Part(
                    wanted,
                    (self._config.parameters,),
                    0,
                    _blocks(self._sources[wanted[0].reference]),
                )
            ]
        parts, start = [], 0
        for piece in self._config.slices:
            base = piece.base_model or self._config.base_model
            length = piece.sources[0].layer_range[1] - piece.sources[0].layer_range[0]
            every = (piece.parameters, self._config.parameters)
            models = tuple(
                Wanted(s.model, (s.parameters, *every), s.model == base, s.layer_range[0])
                for s in piece.sources
            )
            for s in piece.sources:
                low, high = s.layer_range
                if not 0 <= low < high <= _blocks(self._sources[s.model]) or high - low != length:
                    raise InputError(
                        f"layer_range {list(s.layer_range)} of {s.model}, which has "
                        f"{_blocks(self._sources[s.model])} blocks; expected {length} of them, as "
                        "for the first model of the slice"
                    )
            parts.append(Part(models, every, start, start + length))
            start += length
        return parts

    def _leader(self, part: Part) -> tuple[Source, int]:
        """Model that says which tensors there are, a base if there is one; its first block."""
        wanted = next((w for w in part.wanted if w.base), part.wanted[0])
        return self._sources[wanted.reference], wanted.first

    def _add(self, found: list[Target], part: Part, name: str, block: int | None) -> None:
        """Make the target for tensor ``name`` of the part's leader."""
        leader, first = self._leader(part)
        stored = leader.tensors[name]
        t = 0.0 if block is None else part.place(block)
        copied = not stored.kind.floating
        inputs = []
        for wanted in part.wanted:
            source = self._sources[wanted.reference]
            theirs = name
            if block is not None:
                theirs = _renumbered(name, wanted.first - first)
            if not self._fits(source, theirs, leader, stored):
                return
            try:
                values = {} if copied else self._parameters(wanted, theirs, t)
            except InputError as error:
                self._wrong.note(f"{error} for {wanted.reference}", theirs)
                return
            inputs.append(Input(self._numbers[wanted.reference], theirs, values))
        base = next((i for i, w in enumerate(part.wanted) if w.base), None)
        target_name = name if block is None else _renumbered(name, part.start - first)
        if copied:
            inputs, base = [inputs[base or 0]], 0
        found.append(
            Target(
                number=len(found),
                name=target_name,
                shape=stored.shape,
                dtype=self._dtype(leader, name),
                inputs=tuple(inputs),
                base=base,
                parameters={} if copied else self._shared(part, name, t),
                n_blocks=self._parts[-1].stop,
                copied=copied,
                transposed=self._transposed(name),
            )
        )

    def _fits(self, source: Source, name: str, leader: Source, stored: Stored) -> bool:
        other = source.tensors.get(name)
        if other is None:
            key = f"{source.reference}\0{leader.reference}"
            self._wrong.missing.setdefault(key, []).append(name)
            return False
        if other.shape != stored.shape or other.kind.floating != stored.kind.floating:
            rows = " (vocabularies of different sizes?)" if _is_vocabulary(name) else ""
            self._wrong.shapes.append(
                f"tensor '{name}' is {other.dtype} {list(other.shape)} in {source.reference}, "
                f"{stored.dtype} {list(stored.shape)} in {leader.reference}{rows}"
            )
            return False
        if other.kind.size == 1 and other.kind.floating and _scales(source, name):
            self._wrong.note(
                f"{source.reference} is in 8 bit with scales; convert it to bfloat16 first", name
            )
            return False
        return True

    def _parameters(self, wanted: Wanted, name: str, t: float) -> dict[str, Value]:
        scopes = ("model",) if wanted.base else ("model", "others")
        values = dict(wanted.fixed)
        for parameter in self._method.parameters:
            if parameter.scope in scopes:
                value = resolve(parameter, wanted.settings, tensor=name, t=t)
                if value is None:
                    raise InputError(f"parameter '{parameter.name}' is missing")
                values[parameter.name] = value
        return values

    def _shared(self, part: Part, name: str, t: float) -> dict[str, Value]:
        values = dict(self._run)
        for parameter in self._method.parameters:
            if parameter.scope == "tensor":
                value: Value | None = None
                try:
                    value = resolve(parameter, part.settings, tensor=name, t=t)
                    problem = f"parameter '{parameter.name}' is missing"
                except InputError as error:
                    problem = str(error)
                if value is None:
                    self._wrong.note(problem, name)
                else:
                    values[parameter.name] = value
        return values

    def _dtype(self, leader: Source, name: str) -> str:
        checkpoint = leader.checkpoint  # an adapter does not change what the model is stored in
        stored = (leader if checkpoint is None else checkpoint).tensors[name]
        kind, wanted = stored.kind, self._config.out_dtype or self._config.dtype
        if not kind.floating:
            return stored.dtype
        if wanted:
            return OUTPUTS[wanted]
        return "F32" if is_8_bit(kind) else stored.dtype

    def _find_extra(self) -> None:
        """Tensors of other models that the first does not have would be lost silently."""
        if self._config.slices:
            return
        leader, _ = self._leader(self._parts[0])
        for source in self._sources.values():
            if source.checkpoint is None:  # a file of changes says nothing of unchanged tensors
                continue
            extra = sorted(source.tensors.keys() - leader.tensors.keys())
            if extra:
                key = f"{leader.reference}\0{source.reference}"
                self._wrong.missing.setdefault(key, []).extend(extra)


def _blocks(source: Source) -> int:
    return 1 + max(
        (n for name in source.tensors if (n := block_number(name)) is not None), default=-1
    )


def _is_last(name: str) -> bool:
    """Whether a tensor outside the blocks comes after them."""
    return name.endswith(("lm_head.weight", "embed_out.weight")) or (
        "embed" not in name and any(part in name for part in ("norm", "ln_f"))
    )


def _renumbered(name: str, by: int) -> str:
    block = block_number(name)
    if by == 0 or block is None:
        return name
    parts = name.split(".")
    parts[parts.index(str(block))] = str(block + by)
    return ".".join(parts)


def _is_vocabulary(name: str) -> bool:
    return any(part in name for part in ("embed", "lm_head", "wte"))


def _scales(source: Source, name: str) -> bool:
    stem = name.removesuffix(".weight")
    return any(f"{stem}.{end}" in source.tensors for end in ("weight_scale", "weight_scale_inv"))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_MOST])
    return shown if len(names) <= _MOST else f"{shown} and {len(names) - _MOST} more tensors"
