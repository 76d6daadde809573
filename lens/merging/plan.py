"""Plan of a merge from configs, index files and headers alone: every problem at once."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

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
from lens.merging.methods import METHODS, Method
from lens.merging.sources import ExtractedSource, MergeSource, ModelSource
from lens.merging.tensors import ModelInput, OutputTensor, SourceTensor, is_8_bit
from lens.merging.worker import WorkerMemory
from lens.models.checkpoint import OUTPUTS, Checkpoint, Files, Stored
from lens.utils.files import read_object, said, size_in_bytes

_MOST = 4  # names in one message

# === tensors of the result ========================================================================


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive blocks of the result and the models they come from."""

    inputs: tuple[ModelInput, ...]  # in order
    settings: tuple[Mapping[str, Any], ...]  # parameters for all, in order of precedence
    start: int
    stop: int  # blocks of the result, half-open

    def place(self, block: int) -> float:
        """Position of a block from the first (0) to the last (1); 1 for a single block."""
        last = self.stop - self.start - 1
        return (block - self.start) / last if last > 0 else 1.0


@dataclass(slots=True)
class Mismatches:
    """Tensors that do not fit, grouped so that one message names many of them."""

    missing: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    shapes: list[str] = field(default_factory=list)
    other: dict[str, list[str]] = field(default_factory=dict)

    def add(self, problem: str, name: str) -> None:
        """Add a problem of one tensor."""
        self.other.setdefault(problem, []).append(name)

    def lines(self) -> list[str]:
        """One line for each kind and model."""
        found = [
            f"{reference} lacks {_listed(names)}, which {where} has; are these versions of one "
            "model?"
            for (reference, where), names in self.missing.items()
        ]
        found += self.shapes[:_MOST]
        if len(self.shapes) > _MOST:
            found.append(f"and {len(self.shapes) - _MOST} more tensors of other shapes or kinds")
        return found + [f"{text}, at {_listed(names)}" for text, names in self.other.items()]


class TensorMatcher:
    """Finds for each tensor of the result the tensors it is computed from.

    ``inputs`` are the models of a merge without slices, ``sources`` all of them by reference, and
    ``run`` holds the parameters of the whole run.
    """

    def __init__(
        self,
        config: MergeConfig,
        method: Method,
        inputs: Sequence[ModelInput],
        sources: Mapping[str, MergeSource],
        run: Mapping[str, Value],
    ) -> None:
        self._config, self._method, self._run = config, method, run
        self._sources, self._numbers = sources, {name: i for i, name in enumerate(sources)}
        self._parts = self._divide(tuple(inputs))
        self._wrong = Mismatches()

    def targets(self, problems: list[str]) -> list[OutputTensor]:
        """Tensors of the result, in the order in which the first model stores them."""
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
        problems += self._wrong.lines()
        return found

    def _divide(self, inputs: tuple[ModelInput, ...]) -> list[Part]:
        if not self._config.slices:
            n_blocks = _blocks(self._sources[inputs[0].reference])
            return [Part(inputs, (self._config.parameters,), 0, n_blocks)]
        parts, start = [], 0
        for piece in self._config.slices:
            base = piece.base_model or self._config.base_model
            length = piece.sources[0].layer_range[1] - piece.sources[0].layer_range[0]
            shared = (piece.parameters, self._config.parameters)
            models = tuple(
                ModelInput(s.model, (s.parameters, *shared), s.model == base, s.layer_range[0])
                for s in piece.sources
            )
            for s in piece.sources:
                (low, high), n_blocks = s.layer_range, _blocks(self._sources[s.model])
                if not 0 <= low < high <= n_blocks or high - low != length:
                    raise InputError(
                        f"layer_range {list(s.layer_range)} of {s.model}, which has {n_blocks} "
                        f"blocks; expected {length} of them, as for the first model of the slice"
                    )
            parts.append(Part(models, shared, start, start + length))
            start += length
        return parts

    def _leader(self, part: Part) -> tuple[MergeSource, int]:
        """Model whose tensors the result has, the base if there is one; its first block."""
        leader = next((one for one in part.inputs if one.base), part.inputs[0])
        return self._sources[leader.reference], leader.first

    def _add(self, found: list[OutputTensor], part: Part, name: str, block: int | None) -> None:
        """Add the output tensor for tensor ``name`` of the part's leader."""
        leader, first = self._leader(part)
        stored = leader.tensors[name]
        t = 0.0 if block is None else part.place(block)
        copied = not stored.kind.floating
        inputs = []
        for one in part.inputs:
            source = self._sources[one.reference]
            theirs = name if block is None else _renumbered(name, one.first - first)
            if not self._fits(source, theirs, leader, stored):
                return
            try:
                values = {} if copied else self._parameters(one, theirs, t)
            except InputError as error:
                self._wrong.add(f"{error} for {one.reference}", theirs)
                return
            inputs.append(SourceTensor(self._numbers[one.reference], theirs, values))
        base = next((i for i, one in enumerate(part.inputs) if one.base), None)
        if copied:
            inputs, base = [inputs[base or 0]], 0
        checkpoint = self._leader(self._parts[0])[0].checkpoint
        found.append(
            OutputTensor(
                number=len(found),
                name=name if block is None else _renumbered(name, part.start - first),
                shape=stored.shape,
                dtype=self._dtype(leader, name),
                inputs=tuple(inputs),
                base=base,
                parameters={} if copied else self._shared(part, name, t),
                n_blocks=self._parts[-1].stop,
                copied=copied,
                transposed=checkpoint is not None and bool(checkpoint.is_conv1d(name)),
            )
        )

    def _fits(self, source: MergeSource, name: str, leader: MergeSource, stored: Stored) -> bool:
        other = source.tensors.get(name)
        if other is None:
            key = source.reference, leader.reference
            self._wrong.missing.setdefault(key, []).append(name)
            return False
        if other.shape != stored.shape or other.kind.floating != stored.kind.floating:
            is_vocabulary = any(part in name for part in ("embed", "lm_head", "wte"))
            rows = " (vocabularies of different sizes?)" if is_vocabulary else ""
            self._wrong.shapes.append(
                f"tensor '{name}' is {other.dtype} {list(other.shape)} in {source.reference}, "
                f"{stored.dtype} {list(stored.shape)} in {leader.reference}{rows}"
            )
            return False
        if is_8_bit(other.kind) and _has_scales(source, name):
            self._wrong.add(
                f"{source.reference} is in 8 bit with scales; convert it to bfloat16 first", name
            )
            return False
        return True

    def _parameters(self, one: ModelInput, name: str, t: float) -> dict[str, Value]:
        scopes = ("model",) if one.base else ("model", "others")
        values = dict(one.fixed)
        for parameter in self._method.parameters:
            if parameter.scope in scopes:
                value = resolve(parameter, one.settings, tensor=name, t=t)
                if value is None:
                    raise InputError(f"parameter '{parameter.name}' is missing")
                values[parameter.name] = value
        return values

    def _shared(self, part: Part, name: str, t: float) -> dict[str, Value]:
        values = dict(self._run)
        for parameter in self._method.parameters:
            if parameter.scope != "tensor":
                continue
            try:
                value = resolve(parameter, part.settings, tensor=name, t=t)
                if value is None:
                    raise InputError(f"parameter '{parameter.name}' is missing")
                values[parameter.name] = value
            except InputError as error:
                self._wrong.add(str(error), name)
        return values

    def _dtype(self, leader: MergeSource, name: str) -> str:
        checkpoint = leader.checkpoint  # an adapter does not change the dtype of its model
        stored = (leader if checkpoint is None else checkpoint).tensors[name]
        chosen = self._config.out_dtype or self._config.dtype
        if not stored.kind.floating:
            return stored.dtype
        if chosen:
            return OUTPUTS[chosen]
        return "F32" if is_8_bit(stored.kind) else stored.dtype

    def _find_extra(self) -> None:
        """Report tensors of other models that the first lacks: they would be lost silently."""
        if self._config.slices:
            return
        leader, _ = self._leader(self._parts[0])
        for source in self._sources.values():
            if source.checkpoint is None:  # an extracted ability lists changed tensors only
                continue
            extra = sorted(source.tensors.keys() - leader.tensors.keys())
            if extra:
                key = leader.reference, source.reference
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


def _has_scales(source: MergeSource, name: str) -> bool:
    stem = name.removesuffix(".weight")
    return any(f"{stem}.{end}" in source.tensors for end in ("weight_scale", "weight_scale_inv"))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_MOST])
    return shown if len(names) <= _MOST else f"{shown} and {len(names) - _MOST} more tensors"


# === configurations, tokenizers, chat templates ===================================================

_SAME = ("model_type", "vocab_size", "hidden_size", "num_attention_heads")
# Settings that change what a model computes with weights of the same shapes.
_NOTED = (
    *("architectures", "rope_theta", "rope_scaling", "rope_parameters", "sliding_window"),
    *("layer_types", "hidden_act", "hidden_activation", "rms_norm_eps", "layer_norm_eps"),
)
_TOKENIZERS = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json")


def compare_configs(
    template: MergeSource,
    sources: Sequence[MergeSource],
    problems: list[str],
    notes: list[str],
    config: MergeConfig,
) -> None:
    """Report where architecture, vocabulary, ties and tokenizer differ between models."""
    first = template.checkpoint
    if first is None:
        return
    for source in sources:
        if source.checkpoint is not None:
            found = _differences(template.reference, first, source.reference, source.checkpoint)
            for text, is_problem in (*found, *_texts_differ(template, source, config)):
                (problems if is_problem else notes).append(text)
    chosen = config.chat_template
    if chosen not in (None, "auto") and "{" not in str(chosen):
        problems.append(
            f"chat_template {chosen!r} is no Jinja text; give the text itself, or auto for what "
            "most of the models have"
        )
    source_of = config.tokenizer_source or (config.tokenizer and config.tokenizer.source)
    if source_of not in (None, "base", "union", template.reference):
        problems.append(
            f"tokenizer_source {source_of!r}: the tokenizer of {template.reference} is copied byte "
            "for byte; leave it out, or make that model the base_model"
        )


def _differences(
    name: str, first: Checkpoint, other_name: str, other: Checkpoint
) -> Iterator[tuple[str, bool]]:
    """Differences of the configurations, and whether each is a problem."""
    if other.config.get("quantization_config"):
        yield (
            f"{other_name} is quantized: its numbers mean nothing without their scales; merge the "
            "weights that it was made from",
            True,
        )
    for key in (*_SAME, *_NOTED):
        mine, theirs = first.config.get(key), other.config.get(key)
        if mine is None or theirs is None or mine == theirs:
            continue
        text = f"{key} is {_short(theirs)} in {other_name}, {_short(mine)} in {name}"
        yield (text, True) if key in _SAME else (f"{text}, which is taken", False)
    if None not in (first.tied, other.tied) and first.tied != other.tied:
        yield (
            f"{other_name} has {'' if other.tied else 'no '}tied embeddings, {name} has "
            f"{'' if first.tied else 'none'}; they cannot be merged",
            True,
        )


def _texts_differ(
    template: MergeSource, source: MergeSource, config: MergeConfig
) -> Iterator[tuple[str, bool]]:
    """Differences of tokenizer and chat template, and whether each is a problem."""
    if template.checkpoint is None or source.checkpoint is None:
        return
    first, other = template.checkpoint.folder, source.checkpoint.folder
    if _tokens_differ(first, other):
        text = f"{source.reference} has another tokenizer than {template.reference}"
        if "base" in (config.tokenizer_source, config.tokenizer and config.tokenizer.source):
            yield f"{text}, which is taken", False
        else:
            yield f"{text}; set tokenizer_source: base if ids mean the same tokens", True
    theirs = template_of(other) if config.chat_template is None else None
    own = template_of(first)
    if theirs is not None and own is None:
        yield (
            f"{source.reference} has a chat template, {template.reference} none; chat_template: "
            "auto takes it over",
            False,
        )
    elif theirs not in (None, own):
        text = f"{source.reference} has another chat template than {template.reference}"
        yield f"{text}, which is taken", False


def template_of(folder: Path) -> Any:
    """Chat template of a model: the file of its own, else what is in tokenizer_config.json."""
    alone = folder / "chat_template.jinja"
    if alone.is_file():
        return alone.read_text(encoding="utf-8", errors="replace").strip()
    found = (read_object(folder / "tokenizer_config.json") or {}).get("chat_template")
    return found.strip() if isinstance(found, str) else found


def new_template(config: MergeConfig, sources: Sequence[MergeSource], own: Path) -> str | None:
    """Chat template that replaces the one in ``own``; None if that is kept."""
    if config.chat_template != "auto":
        return config.chat_template
    folders = [source.checkpoint.folder for source in sources if source.checkpoint is not None]
    found = [text for folder in folders if isinstance(text := template_of(folder), str) and text]
    most = max(found, key=found.count, default=None)
    return None if most == template_of(own) else most


def _tokens_differ(a: Path, b: Path) -> bool:
    """Whether two models number their tokens differently."""
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


# === the plan =====================================================================================

PROCESS = 112 << 20
"""Bytes of the allowed memory that Python, NumPy and the plan itself take."""

_START = 0.3  # seconds until the first byte is read
_READ_RATE, _WRITE_RATE = 2e9, 1e9  # bytes a second of an ordinary disk; estimates only
_IGNORED = ("int8_mask",)  # mergekit's parameters that change nothing here


@dataclass(frozen=True, slots=True)
class MergePlan:
    """A merge, checked before anything is computed; a context manager that closes its files.

    Attributes
    ----------
    config : MergeConfig
    method : Method
    sources : tuple of MergeSource
        Opened; only headers were read.
    template : MergeSource
        Source of the result's configuration and tokenizer.
    targets : tuple of OutputTensor
        Tensors of the result, in the order they are written.
    problems : tuple of str
        Why it cannot be done; empty if it can.
    notes : tuple of str
        What one should know.
    worker_memory : WorkerMemory
        Memory of one worker.
    workers : int
        How many fit into the allowed memory.
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
    worker_memory: WorkerMemory
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
        """Upper bound of the memory in bytes."""
        return PROCESS + self.workers * self.worker_memory.total

    @property
    def seconds(self) -> float:
        """Rough time on an ordinary disk and these cores."""
        elements = sum(target.size * len(target.inputs) for target in self.targets)
        cached = self.method.passes if self.method.whole else 1  # later passes hit the page cache
        transfer = self.bytes_read / cached / _READ_RATE + self.bytes_written / _WRITE_RATE
        return _START + max(transfer, elements / self.method.rate / max(self.workers, 1))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.files.close()

    def check(self) -> None:
        """Raise InputError if the merge cannot be done, with one problem per line."""
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
    """Check a merge before it is done; milliseconds for checkpoints of any size.

    Parameters
    ----------
    config : MergeConfig or mapping
        Models and method.
    max_memory : int or str
        Bytes, or a size such as ``"1GiB"``, for everything together.
    out : path, optional
        Where the result would go, to check its disk.
    fetch : bool
        Download models named by hub id that are not cached; otherwise that is a problem.

    Returns
    -------
    MergePlan
        With every problem visible in headers and configs; `MergePlan.check` raises them.

    Raises
    ------
    InputError
        If the config itself cannot be read.
    """
    config = parse_config(config)
    name, unknown = config.merge_method, []
    if name not in METHODS:
        unknown = [f"unknown merge_method '{name}'; {nearest(name, METHODS)}"]
        close = difflib.get_close_matches(name, METHODS, n=1)
        if not close:
            raise InputError(unknown[0])
        name = close[0]  # the other problems are reported for the method probably meant
    more: dict[str, Any] = {"max_memory": max_memory, "out": out, "fetch": fetch}
    return plan_for(METHODS[name], config, problems=unknown, **more)


def plan_for(
    method: Method,
    config: MergeConfig,
    *,
    max_memory: int | str = "1GiB",
    out: str | Path | None = None,
    fetch: bool = False,
    problems: Sequence[str] = (),
) -> MergePlan:
    """Plan as `plan_merge` does, for a method that may be unregistered.

    ``problems`` are those found before.
    """
    budget, files, problems = size_in_bytes(max_memory), Files(), list(problems)
    inputs, found = method.inputs(config)
    problems += found
    sources = _open(inputs, files, problems, fetch=fetch)
    notes: list[str] = []
    targets: list[OutputTensor] = []
    template = None
    run = _run_parameters(method, config, problems, notes)
    lead = config.base_model or (inputs[0].reference if inputs else None)
    if not found and lead in sources:
        template, opened = sources[lead], [one for one in inputs if one.reference in sources]
        if not config.slices or len(opened) == len(inputs):  # the rest shows its problems too
            so_far = len(problems)
            try:
                targets = TensorMatcher(config, method, opened, sources, run).targets(problems)
            except InputError as error:
                problems.append(str(error))
            if targets and len(problems) == so_far:  # otherwise parameters may be missing
                problems += method.problems(config, run, targets)
        compare_configs(template, list(sources.values()), problems, notes, config)
    memory = _worker_memory(method, targets, list(sources.values()))
    workers = min(cores(), (budget - PROCESS) // max(memory.total, 1))
    if workers < 1 and targets:
        problems.append(
            f"max_memory {said(budget)} is too small; this merge takes {said(PROCESS)} for the "
            f"program and {said(memory.total)} for one worker, so give "
            f"{-(-(PROCESS + memory.total) // 10**6)}MB or more"
        )
    if out is not None:
        size = sum(target.nbytes for target in targets)
        problems += problems_of_place(Path(out), sources.values(), size)
    if config.dtype in ("bfloat16", "float16"):
        notes.append(f"dtype {config.dtype} is what is written; all arithmetic is in float32")
    return MergePlan(
        config=config,
        method=method,
        sources=tuple(sources.values()),
        template=template,
        targets=tuple(targets),
        problems=tuple(problems),
        notes=tuple(notes),
        worker_memory=memory,
        workers=max(workers, 1),
        max_memory=budget,
        files=files,
    )


def _open(
    inputs: Iterable[ModelInput], files: Files, problems: list[str], *, fetch: bool
) -> dict[str, MergeSource]:
    opened: dict[str, MergeSource] = {}
    for reference, extracted in dict.fromkeys((one.reference, one.extracted) for one in inputs):
        try:
            if extracted:
                opened[reference] = ExtractedSource(reference, files)
            else:
                opened[reference] = ModelSource(reference, files, fetch=fetch)
        except InputError as error:
            problems.append(str(error))
    return opened


def _run_parameters(
    method: Method, config: MergeConfig, problems: list[str], notes: list[str]
) -> dict[str, Value]:
    """Parameters of the run, defaults for invalid ones; unknown ones are problems too."""
    own = {parameter.name: parameter for parameter in method.parameters}
    known = {p.name for other in METHODS.values() for p in other.parameters} | set(_IGNORED)
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
    preset = method.presets.get(str(values.get("preset")), {})
    return values | {name: v for name, v in preset.items() if name not in config.parameters}


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


def _worker_memory(
    method: Method, targets: Sequence[OutputTensor], sources: Sequence[MergeSource]
) -> WorkerMemory:
    buffers: list[int] = []
    out = scratch = 0
    for target in targets:
        n = max((chunk.size for chunk in target.chunks[:2]), default=0)
        taken = [(sources[t.source], t.name) for t in target.inputs]
        sizes = [source.buffer_bytes(name, n) for source, name in taken]
        buffers += [0] * (len(sizes) - len(buffers))
        buffers[: len(sizes)] = [max(a, b) for a, b in zip(buffers, sizes, strict=False)]
        out = max(out, n * target.kind.size)
        extra = max((source.extra_memory(name, n) for source, name in taken), default=0)
        scratch = max(scratch, n * (method.scratch(len(sizes)) + target.kind.size) + extra)
    return WorkerMemory(tuple(buffers), out, scratch)


def problems_of_place(out: Path, sources: Iterable[MergeSource], needed: int) -> list[str]:
    """Why a result of ``needed`` bytes cannot be put there; empty if it can."""
    goal = out.resolve()
    found = [
        f"{out} is, or holds, {source.reference}, which would be replaced; choose another --out"
        for source in sources
        if any(goal in (path, *path.parents) for path in source.files)
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
