"""Plan of a merge from configs, index files and headers alone: every problem at once."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lens.errors import InputError
from lens.merging.config import (
    MergeConfig,
    Parameter,
    Value,
    block_number,
    evaluate,
    nearest,
    parse_config,
    resolve,
)
from lens.merging.methods import METHODS
from lens.merging.methods.base import Method
from lens.merging.sources import MergeSource, ModelSource
from lens.merging.tensors import ModelInput, OutputTensor, SourceTensor, is_8_bit
from lens.merging.worker import Needs
from lens.models.checkpoint import OUTPUTS, Checkpoint, Files, Stored
from lens.utils.files import read_object, said, size_in_bytes

_MOST = 4  # names in one message


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

    wanted: tuple[ModelInput, ...]
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


class TensorMatcher:
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
        wanted: Sequence[ModelInput],
        sources: Mapping[str, MergeSource],
        run: dict[str, Value],
    ) -> None:
        self._config, self._method, self._run = config, method, run
        self._sources, self._numbers = sources, {name: i for i, name in enumerate(sources)}
        self._parts = self._divided(tuple(wanted))
        self._wrong = Mismatches()

    def targets(self, problems: list[str]) -> list[OutputTensor]:
        """Tensors of the result in the order in which they are stored in the first model."""
        found: list[OutputTensor] = []
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

    def _divided(self, wanted: tuple[ModelInput, ...]) -> list[Part]:
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
                ModelInput(s.model, (s.parameters, *every), s.model == base, s.layer_range[0])
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

    def _leader(self, part: Part) -> tuple[MergeSource, int]:
        """Model that says which tensors there are, a base if there is one; its first block."""
        wanted = next((w for w in part.wanted if w.base), part.wanted[0])
        return self._sources[wanted.reference], wanted.first

    def _add(self, found: list[OutputTensor], part: Part, name: str, block: int | None) -> None:
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
            inputs.append(SourceTensor(self._numbers[wanted.reference], theirs, values))
        base = next((i for i, w in enumerate(part.wanted) if w.base), None)
        target_name = name if block is None else _renumbered(name, part.start - first)
        if copied:
            inputs, base = [inputs[base or 0]], 0
        found.append(
            OutputTensor(
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

    def _fits(self, source: MergeSource, name: str, leader: MergeSource, stored: Stored) -> bool:
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

    def _parameters(self, wanted: ModelInput, name: str, t: float) -> dict[str, Value]:
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

    def _dtype(self, leader: MergeSource, name: str) -> str:
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


def _blocks(source: MergeSource) -> int:
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


def _scales(source: MergeSource, name: str) -> bool:
    stem = name.removesuffix(".weight")
    return any(f"{stem}.{end}" in source.tensors for end in ("weight_scale", "weight_scale_inv"))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_MOST])
    return shown if len(names) <= _MOST else f"{shown} and {len(names) - _MOST} more tensors"


_SAME = ("model_type", "vocab_size", "hidden_size", "num_attention_heads")
# What a model computes otherwise with weights of the same shapes.
_NOTED = (
    "architectures", "rope_theta", "rope_scaling", "rope_parameters", "sliding_window",
    "layer_types", "hidden_act", "hidden_activation", "rms_norm_eps", "layer_norm_eps",
)  # fmt: skip
_TOKENIZERS = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json")


def compare_configs(
    template: MergeSource,
    sources: Sequence[MergeSource],
    problems: list[str],
    notes: list[str],
    config: MergeConfig,
) -> None:
    """Say what of architecture, vocabulary, ties and tokenizer differs between models."""
    first = template.checkpoint
    if first is None:
        return
    for source in sources:
        if source.checkpoint is not None:
            _compare(template, first, source, source.checkpoint, problems, notes, config)
    wanted = config.chat_template
    if wanted not in (None, "auto") and "{" not in str(wanted):
        problems.append(
            f"chat_template {wanted!r} is no Jinja text; give the text itself, or auto for what "
            "most of the models have"
        )
    source_of = config.tokenizer_source or (config.tokenizer and config.tokenizer.source)
    if source_of not in (None, "base", "union", template.reference):
        problems.append(
            f"tokenizer_source {source_of!r}: the tokenizer of {template.reference} is copied byte "
            "for byte; leave it out, or make that model the base_model"
        )


def _compare(
    template: MergeSource,
    first: Checkpoint,
    source: MergeSource,
    other: Checkpoint,
    problems: list[str],
    notes: list[str],
    config: MergeConfig,
) -> None:
    """Compare one model with the one whose configuration is taken."""
    if other.config.get("quantization_config"):
        problems.append(
            f"{source.reference} is quantized: its numbers mean nothing without their scales; "
            "merge the weights that it was made from"
        )
    for key in (*_SAME, *_NOTED):
        mine, theirs = first.config.get(key), other.config.get(key)
        if mine is None or theirs is None or mine == theirs:
            continue
        text = f"{key} is {_short(theirs)} in {source.reference}, {_short(mine)} in "
        if key in _SAME:
            problems.append(text + template.reference)
        else:
            notes.append(f"{text}{template.reference}, which is taken")
    if None not in (first.tied, other.tied) and first.tied != other.tied:
        problems.append(
            f"{source.reference} has {'' if other.tied else 'no '}tied embeddings, "
            f"{template.reference} has {'' if first.tied else 'none'}; they cannot be merged"
        )
    whose = f"{source.reference} has another"
    if _tokens_differ(first.folder, other.folder):
        text = f"{whose} tokenizer than {template.reference}"
        if "base" in (config.tokenizer_source, config.tokenizer and config.tokenizer.source):
            notes.append(f"{text}, which is taken")
        else:
            problems.append(f"{text}; set tokenizer_source: base if ids mean the same tokens")
    there = template_of(other.folder) if config.chat_template is None else None
    own = template_of(first.folder)
    if there is not None and own is None:
        notes.append(
            f"{source.reference} has a chat template, {template.reference} none; chat_template: "
            "auto takes it over"
        )
    elif there not in (None, own):
        notes.append(f"{whose} chat template than {template.reference}, which is taken")


def template_of(folder: Path) -> Any:
    """Chat template of a model: the file of its own, else what is in tokenizer_config.json."""
    alone = folder / "chat_template.jinja"
    if alone.is_file():
        return alone.read_text(encoding="utf-8", errors="replace").strip()
    found = (read_object(folder / "tokenizer_config.json") or {}).get("chat_template")
    return found.strip() if isinstance(found, str) else found


def new_template(config: MergeConfig, sources: Sequence[MergeSource], own: Path) -> str | None:
    """Chat template that the result gets in place of its own; None where it keeps that."""
    if config.chat_template != "auto":
        return config.chat_template
    folders = [source.checkpoint.folder for source in sources if source.checkpoint is not None]
    found = [text for folder in folders if isinstance(text := template_of(folder), str) and text]
    most = max(found, key=found.count, default=None)
    return None if most == template_of(own) else most


def _tokens_differ(a: Path, b: Path) -> bool:
    """Whether two models number their tokens otherwise."""
    both = a / "tokenizer.json", b / "tokenizer.json"
    if a != b and all(path.is_file() for path in both):
        return not _same_bytes(*both) and _vocabulary(both[0]) != _vocabulary(both[1])
    pairs = [(a / name, b / name) for name in _TOKENIZERS]
    return any(x.is_file() and y.is_file() and not _same_bytes(x, y) for x, y in pairs)


def _same_bytes(a: Path, b: Path) -> bool:
    return a.samefile(b) or a.read_bytes() == b.read_bytes()


def _vocabulary(tokenizer: Path) -> Any:
    """Parts of a tokenizer.json that map text to numbers."""
    content = read_object(tokenizer) or {}
    return [content.get(key) for key in ("model", "added_tokens", "normalizer", "pre_tokenizer")]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


PROCESS = 112 << 20
"""Bytes that Python, NumPy and the plan itself take, of the memory that is allowed."""

_START = 0.3  # seconds until the first byte is read
_READ_RATE, _WRITE_RATE = 2e9, 1e9  # bytes a second of an ordinary disk; estimates only
_LOST = ("int8_mask",)  # parameters of others that change nothing here


@dataclass(frozen=True, slots=True)
class MergePlan:
    """A merge, looked at from all sides before anything is computed.

    Attributes
    ----------
    config : MergeConfig
    method : Method
    sources : tuple of Source
        Opened, nothing but headers read.
    template : Source
        Whose configuration and tokenizer the result takes over.
    targets : tuple of Target
        Tensors of the result, in the order they are written.
    problems : tuple of str
        Why it cannot be done; empty if it can.
    notes : tuple of str
        What one should know.
    needs : Needs
        Memory of one worker.
    workers : int
        How many fit into the memory that is allowed.
    max_memory : int
        Bytes.
    files : Files
        Open files of the sources.
    """

    config: MergeConfig
    method: Method
    sources: tuple[MergeSource, ...]
    template: MergeSource | None
    targets: tuple[OutputTensor, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    needs: Needs
    workers: int
    max_memory: int
    files: Files = field(repr=False, compare=False)

    @property
    def bytes_written(self) -> int:
        """Size of the tensors of the result."""
        return sum(target.nbytes for target in self.targets)

    @property
    def bytes_read(self) -> int:
        """Bytes of the sources, times how often the method reads them."""
        once = sum(
            self.sources[taken.source].tensors[taken.name].nbytes
            for target in self.targets
            for taken in target.inputs
        )
        return once * self.method.passes

    @property
    def memory(self) -> int:
        """Bytes of memory at most."""
        return PROCESS + self.workers * self.needs.total

    @property
    def seconds(self) -> float:
        """Time on an ordinary disk and these cores, roughly."""
        elements = sum(target.size * len(target.inputs) for target in self.targets)
        again = self.method.passes if self.method.whole else 1  # a tensor in hand is in memory
        transfer = self.bytes_read / again / _READ_RATE + self.bytes_written / _WRITE_RATE
        return _START + max(transfer, elements / self.method.rate / max(self.workers, 1))

    def check(self) -> None:
        """Refuse a merge that cannot be done.

        Raises
        ------
        InputError
            With every problem on a line of its own.
        """
        if self.problems:
            raise InputError("this merge cannot be done:\n  " + "\n  ".join(self.problems))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a table or JSON."""
        return {
            "method": self.method.name,
            "sources": [source.reference for source in self.sources],
            "tensors": len(self.targets),
            "parameters": sum(target.size for target in self.targets),
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "memory": self.memory,
            "workers": self.workers,
            "seconds": round(self.seconds, 1),
            "problems": list(self.problems),
            "notes": list(self.notes),
        }


def cores() -> int:
    """CPUs that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def plan_merge(
    config: MergeConfig | Mapping[str, Any],
    *,
    max_memory: int | str = "1GiB",
    out: str | Path | None = None,
    fetch: bool = False,
) -> MergePlan:
    """Look at a merge before it is done; milliseconds for checkpoints of any size.

    Parameters
    ----------
    config : MergeConfig or mapping
        What is merged, and how.
    max_memory : int or str
        Bytes, or a size such as ``"1GiB"``: everything together.
    out : path, optional
        Where the result would go, to see whether there is room.
    fetch : bool
        Download models that are named by hub id and not in its cache; else that is a problem.

    Returns
    -------
    MergePlan
        With every problem that can be seen in headers and configs; `MergePlan.check` raises them.

    Raises
    ------
    InputError
        If the config itself cannot be read.
    """
    config = parse_config(dict(config) if isinstance(config, Mapping) else config)
    name, unknown = config.merge_method, []
    if name not in METHODS:
        unknown = [f"unknown merge_method '{name}'; {nearest(name, METHODS)}"]
        close = difflib.get_close_matches(name, METHODS, n=1)
        if not close:
            raise InputError(unknown[0])
        name = close[0]  # the rest of the problems are those of what was probably meant
    return plan_for(
        METHODS[name], config, max_memory=max_memory, out=out, fetch=fetch, problems=unknown
    )


def plan_for(
    method: Method,
    config: MergeConfig,
    *,
    max_memory: int | str = "1GiB",
    out: str | Path | None = None,
    fetch: bool = False,
    problems: Sequence[str] = (),
) -> MergePlan:
    """Plan as `plan_merge` does, for a method that the config does not name.

    ``problems`` are those that were found before.
    """
    budget, files, problems = size_in_bytes(max_memory), Files(), list(problems)
    wanted, found = method.wanted(config)
    problems += found
    sources = _open(wanted, files, problems, fetch=fetch)
    notes: list[str] = []
    targets: list[OutputTensor] = []
    template = None
    run = _run_parameters(method, config, problems, notes)
    lead = config.base_model or (wanted[0].reference if wanted else None)
    if not found and lead in sources:
        template, there = sources[lead], [one for one in wanted if one.reference in sources]
        if not config.slices or len(there) == len(wanted):  # the rest shows its problems too
            targets = _targets(method, config, there, sources, run, problems)
        compare_configs(template, list(sources.values()), problems, notes, config)
    needs = _needs(method, targets, list(sources.values()))
    workers = min(cores(), (budget - PROCESS) // max(needs.total, 1))
    if workers < 1 and targets:
        problems.append(
            f"max_memory {said(budget)} is too small; this merge takes {said(PROCESS)} for the "
            f"program and {said(needs.total)} for one worker, so give "
            f"{-(-(PROCESS + needs.total) // 10**6)}MB or more"
        )
    plan = MergePlan(
        config, method, tuple(sources.values()), template, tuple(targets), (), (),
        needs, max(workers, 1), budget, files,
    )  # fmt: skip
    if out is not None:
        problems += problems_of_place(Path(out), plan.sources, plan.bytes_written)
    if _computes_in_16_bit(config):
        notes.append(f"dtype {config.dtype} is what is written; all arithmetic is in float32")
    return MergePlan(
        config, method, plan.sources, template, plan.targets, tuple(problems), tuple(notes),
        needs, plan.workers, budget, files,
    )  # fmt: skip


def _targets(
    method: Method,
    config: MergeConfig,
    wanted: Sequence[ModelInput],
    sources: Mapping[str, MergeSource],
    run: dict[str, Value],
    problems: list[str],
) -> list[OutputTensor]:
    """Tensors of the result; what does not fit is added to the problems."""
    so_far = len(problems)
    try:
        targets = TensorMatcher(config, method, wanted, sources, run).targets(problems)
    except InputError as error:
        problems.append(str(error))
        return []
    if targets and len(problems) == so_far:  # else values are missing that it looks at
        problems += method.problems(config, run, targets)
    return targets


def _open(
    wanted: Iterable[ModelInput], files: Files, problems: list[str], *, fetch: bool
) -> dict[str, MergeSource]:
    opened: dict[str, MergeSource] = {}
    for reference, extracted in dict.fromkeys((one.reference, one.extracted) for one in wanted):
        try:
            opened[reference] = (
                _extracted(reference, files)
                if extracted
                else ModelSource(reference, files, fetch=fetch)
            )
        except InputError as error:
            problems.append(str(error))
    return opened


def _extracted(reference: str, files: Files) -> MergeSource:
    from lens.merging.sources import ExtractedSource

    return ExtractedSource(reference, files)


def _run_parameters(
    method: Method, config: MergeConfig, problems: list[str], notes: list[str]
) -> dict[str, Value]:
    """Parameters of the whole run, defaults for wrong ones; unknown ones are problems too."""
    own = {parameter.name: parameter for parameter in method.parameters}
    known = {p.name for other in METHODS.values() for p in other.parameters} | set(_LOST)
    layers = [config.parameters, *(m.parameters for m in config.models)]
    for part in config.slices:
        layers += [part.parameters, *(source.parameters for source in part.sources)]
    for name in dict.fromkeys(name for layer in layers for name in layer):
        if name not in known:
            problems.append(
                f"unknown parameter '{name}' of {method.name}; {nearest(name, own or known)}"
            )
        elif name not in own:
            notes.append(f"parameter '{name}' is not one of {method.name} and changes nothing")
    values: dict[str, Value] = {"seed": float(config.seed)}
    for parameter in method.parameters:
        if parameter.scope == "run":
            try:
                values[parameter.name] = _run_value(parameter, config.parameters)
            except InputError as error:
                problems.append(str(error))
                if parameter.default is not None:
                    values[parameter.name] = parameter.default
    return method.run_parameters(dict(config.parameters), values)


def _run_value(parameter: Parameter, given: Mapping[str, Any]) -> Value:
    value = parameter.default
    if parameter.name in given:
        setting = given[parameter.name]
        if isinstance(setting, list | dict):
            raise InputError(
                f"parameter '{parameter.name}' is one for the whole run, got {setting}"
            )
        value = evaluate(parameter, setting, tensor="", t=0.0)
    if value is None:
        raise InputError(f"parameter '{parameter.name}' is missing")
    return value


def _needs(
    method: Method, targets: Sequence[OutputTensor], sources: Sequence[MergeSource]
) -> Needs:
    rooms: list[int] = []
    out = scratch = 0
    for target in targets:
        n = max((cut.size for cut in target.cuts[:2]), default=0)
        taken = [(sources[t.source], t.name) for t in target.inputs]
        sizes = [source.room_for(name, n) for source, name in taken]
        rooms += [0] * (len(sizes) - len(rooms))
        rooms[: len(sizes)] = [max(a, b) for a, b in zip(rooms, sizes, strict=False)]
        out = max(out, n * target.kind.size)
        extra = max((source.extra_memory(name, n) for source, name in taken), default=0)
        scratch = max(scratch, n * (method.scratch(len(sizes)) + target.kind.size) + extra)
    return Needs(tuple(rooms), out, scratch)


def problems_of_place(out: Path, sources: Iterable[MergeSource], needed: int) -> list[str]:
    """Why a result of so many bytes cannot be put there; nothing if it can."""
    found = [
        f"{out} is, or holds, {reference}, which would be replaced; choose another --out"
        for reference in _replaced(out, sources)
    ]
    place = out.absolute().parent
    while not place.exists():
        place = place.parent
    about = os.statvfs(place)
    free = about.f_bavail * about.f_frsize
    if free < needed:
        found.append(
            f"{place} has {said(free)} left, the result takes {said(needed)}; make room or choose "
            "another --out"
        )
    if not os.access(place, os.W_OK):
        found.append(f"{place} cannot be written to; choose another --out")
    return found


def _replaced(out: Path, sources: Iterable[MergeSource]) -> list[str]:
    """Find the sources of which putting ``out`` in place would remove files."""
    goal = out.resolve()
    return [
        source.reference
        for source in sources
        if any(goal in (path, *path.parents) for path in source.files)
    ]


def _computes_in_16_bit(config: MergeConfig) -> bool:
    return config.dtype in ("bfloat16", "float16") and config.dtype in OUTPUTS
